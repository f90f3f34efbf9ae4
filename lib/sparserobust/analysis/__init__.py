"""Measurements of trained networks other than accuracy."""

from sparserobust.analysis.cost import Deployable, macs
from sparserobust.analysis.stability import Stability
from sparserobust.analysis.weights import (
    ChannelNorms,
    ChannelSparsity,
    LayerSparsity,
    LayerWeights,
    RemainingParameters,
    WeightHistogram,
    WeightSparsity,
)

__all__ = ["ChannelNorms", "ChannelSparsity", "Deployable", "LayerSparsity", "LayerWeights", "RemainingParameters",
           "Stability", "WeightHistogram", "WeightSparsity", "macs"]
