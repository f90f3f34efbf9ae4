"""What the weights of a network look like."""

import numpy as np
import torch

from sparserobust import sparsity
from sparserobust.config import Measurement, settings


@settings
class WeightSparsity(Measurement, kind="sparsity"):
    """Share of exactly zero convolution and linear weights."""

    def __call__(self, model, splits):
        zero, total = sparsity.zero_weights(model)
        return {"value": zero / total, "count": zero, "total": total}


@settings
class ChannelSparsity(Measurement, kind="channel_sparsity"):
    """Share of input channels, over all convolutions, that are removed (Dinh et al. 2020: l2 norm below 1e-15)."""

    def __call__(self, model, splits):
        removed, groups = sparsity.removed_channels(model), sparsity.channel_groups(model)
        return {"value": removed / groups, "count": removed, "total": groups}


@settings
class RemainingParameters(Measurement, kind="remaining_parameters"):
    """Parameters that are not exactly zero, of all trainable parameters."""

    def __call__(self, model, splits):
        left = sparsity.remaining_parameters(model)
        return {"value": left, "count": left, "total": sparsity.parameters(model)}


@settings
class WeightHistogram(Measurement, kind="weight_histogram"):
    """Share of convolution and linear weights with magnitude below `near_zero` (the value), and the counts of a
    histogram over [-limit, limit], the ends holding what lies beyond (Dinh et al. 2020, figure 1)."""

    limit: float = 0.5
    bins: int = 201
    near_zero: float = 1e-3

    def check(self):
        self.require(self.limit > 0 and self.bins > 0 and self.near_zero > 0, "limit, bins and near_zero are positive")

    def __call__(self, model, splits):
        weights = torch.cat([w.detach().flatten() for w in sparsity.prunable(model).values()]).cpu()
        near = int((weights.abs() < self.near_zero).sum())
        counts, _ = np.histogram(weights.clamp(-self.limit, self.limit), self.bins, (-self.limit, self.limit))
        return {"value": near / len(weights), "count": near, "total": len(weights),
                "histogram": counts.tolist(), "limit": self.limit}
