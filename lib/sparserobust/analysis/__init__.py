"""Measurements of trained networks other than accuracy."""

from sparserobust.analysis.activations import Activations
from sparserobust.analysis.audit import Audit
from sparserobust.analysis.conditioning import Conditioning, LocalLipschitz
from sparserobust.analysis.cost import Deployable, FileSize, MACs, macs, step_costs
from sparserobust.analysis.health import Health, best_minus_last, symptoms
from sparserobust.analysis.layer_table import LayerTable, layers
from sparserobust.analysis.linear import LinearRadii, Theorem31
from sparserobust.analysis.masks import MaskOverlap
from sparserobust.analysis.radii import LayerNorms, Margins, RadiusOrder
from sparserobust.analysis.random_masks import RandomMasks
from sparserobust.analysis.stability import Stability
from sparserobust.analysis.weights import (
           ChannelNorms,
           ChannelSparsity,
           LayerSparsity,
           LayerWeights,
           RemainingParameters,
           WeightHistogram,
           WeightSparsity,
           WithoutBlankPixels,
)

__all__ = ["Activations", "Audit", "ChannelNorms", "ChannelSparsity", "Conditioning", "Deployable", "FileSize",
           "Health", "LayerNorms", "LayerSparsity", "LayerTable", "LayerWeights", "LinearRadii", "LocalLipschitz",
           "MACs", "Margins", "MaskOverlap", "RadiusOrder", "RandomMasks", "RemainingParameters", "Stability",
           "Theorem31", "WeightHistogram", "WeightSparsity", "WithoutBlankPixels", "best_minus_last", "layers",
           "macs", "step_costs", "symptoms"]
