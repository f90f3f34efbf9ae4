"""What the weights of a network look like."""

from typing import ClassVar

import numpy as np
import torch
from torch import nn

from sparserobust import sparsity
from sparserobust.analysis.shapes import random_images
from sparserobust.config import Measurement
from sparserobust.data import Splits
from sparserobust.errors import UserError
from sparserobust.files import six_digits
from sparserobust.models import Ensemble
from sparserobust.settings import settings
from sparserobust.training import weights_replaced


@settings
class WeightSparsity(Measurement, kind="sparsity"):
    """Share of exactly zero convolution and linear weights."""

    def __call__(self, model, splits):
        _check_acting(model, splits)
        zero, total = sparsity.zero_weights(model)
        return {"value": zero / total, "count": zero, "total": total}


@settings
class ChannelSparsity(Measurement, kind="channel_sparsity"):
    """Share of input channels, over all convolutions, that are removed (Dinh et al. 2020: l2 norm below 1e-15)."""

    def __call__(self, model, splits):
        _check_acting(model, splits)
        removed, groups = sparsity.removed_channels(model), sparsity.channel_groups(model)
        if not groups:
            raise _without_convolutions(self, model)
        return {"value": removed / groups, "count": removed, "total": groups}


@settings
class RemainingParameters(Measurement, kind="remaining_parameters"):
    """Share of all trainable parameters that are not exactly zero."""

    def __call__(self, model, splits):
        _check_acting(model, splits)
        left = sparsity.remaining_parameters(model)
        total = sparsity.parameters(model)
        if not total:
            raise UserError(f"{self.kind} knows networks with parameters: {type(model).__name__} has none")
        return {"value": left / total, "count": left, "total": total}


def _wide(t: torch.Tensor) -> torch.Tensor:
    """In float32 at least, whose sums and comparisons are not those of rounded numbers."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


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
        sparsity.zero_weights(model)  # a line where there is nothing to count
        return self._counted(torch.cat([w.detach().flatten() for w in sparsity.prunable(model).values()]).cpu())

    def _counted(self, weights: torch.Tensor) -> dict:
        weights = _wide(weights)  # numpy does not know bfloat16, and limits would be rounded
        near = int((weights.abs() < self.near_zero).sum())
        counts, _ = np.histogram(weights.clamp(-self.limit, self.limit), self.bins, (-self.limit, self.limit))
        return {"value": near / len(weights), "count": near, "total": len(weights),
                "histogram": counts.tolist(), "limit": self.limit}


@settings
class LayerWeights(WeightHistogram, kind="layer_weights"):
    """The same for one layer, the last 3x3 convolution of the network, in an ensemble of its first net (64x64x3x3 in
    ResNet20), with its picture: the l2 norm of each kernel, a row per output channel (Dinh et al. 2020, figure 2, where
    the layer is "random")."""

    limit: float = 0.33
    bins: int = 67

    def __call__(self, model, splits):
        net = model.members[0] if isinstance(model, Ensemble) else model
        layers = [(name, w) for name, w in sparsity.convolutions(net).items() if w.shape[2:] == (3, 3)]
        if not layers:
            raise _without_convolutions(self, model, "3x3 convolution")
        name, w = layers[-1]
        picture = w.detach().double().pow(2).sum((2, 3)).sqrt().cpu()
        return self._counted(w.detach().flatten().cpu()) | {
            "layer": name, "std": float(_wide(w.detach()).std()),
            "picture": [[round(v, 4) for v in row] for row in picture.tolist()]}


@settings
class ChannelNorms(Measurement, kind="channel_norms"):
    """The l2 norm of every input channel of every convolution, layer by layer, to six digits (Dinh et al. 2020, figure
    5). The value is the share of channels that are small but not removed: below a twentieth of the largest norm of
    their convolution, yet not below 1e-15."""

    def __call__(self, model, splits):
        norms = {name: sparsity.channel_norms(w) for name, w in sparsity.channels(model).items()}
        if not norms:
            raise _without_convolutions(self, model)
        small, total = 0, 0
        for n in norms.values():
            small += int(((n >= sparsity.CHANNEL_NORM_IS_ZERO) & (n < 0.05 * n.max())).sum())
            total += len(n)
        return {"value": small / total, "count": small, "total": total,
                "norms": {name: [six_digits(v) for v in n.tolist()] for name, n in norms.items()}}


@settings
class LayerSparsity(Measurement, kind="layer_sparsity"):
    """Share of exactly zero weights (the value), and of every convolution and linear layer its zeros, the smallest
    magnitude left in it (just after pruning, that is the threshold), its largest, and the standard deviation of all
    its entries."""

    def __call__(self, model, splits):
        _check_acting(model, splits)
        layers, (zero, total) = {}, sparsity.zero_weights(model)
        for name, w in sparsity.prunable(model).items():
            size = w.detach().abs()
            left = size[size > 0]
            layers[name.removesuffix(".weight")] = {
                "zero": int((size == 0).sum()), "total": size.numel(), "largest": float(size.max()),
                "smallest": float(left.min()) if len(left) else 0.0,
                "std": float(_wide(w.detach()).std()) if w.numel() > 1 else 0.0}
        return {"value": zero / total, "count": zero, "total": total, "layers": layers}


@settings
class WithoutBlankPixels(Measurement, kind="without_blank_pixels"):
    """Another measurement, on the network whose first layer, a linear one, does not read the pixels that are zero in
    all training images. In natural training their weights never got a gradient: they are as they were drawn, shrunk by
    weight decay, useless on clean images, and an attack may use them."""

    measurement: Measurement
    sampled: ClassVar[bool] = True

    @property
    def revision(self) -> int:  # type: ignore[override]  # read only, as all fields are
        """That of the other measurement."""
        return self.measurement.revision

    @property
    def cost(self):
        return self.measurement.cost

    @property
    def required_runs(self):
        return self.measurement.required_runs

    def __call__(self, model, splits, *others):
        sparsity.zero_weights(model)
        name, first = next(iter(sparsity.weights(model).items()))
        read = (splits.train.images.flatten(1) != 0).any(0)
        if not first.plain or first.tensor.shape[1:] != read.shape:
            raise UserError(f"the first layer of {type(model).__name__} is a convolution, or does not read the pixels: "
                            "it has no weight of its own for each of them")
        with weights_replaced(model, {name: first.tensor.detach() * read}):
            return self.measurement(model, splits, *others)


def _check_acting(model: nn.Module, splits: Splits | None) -> None:
    """That zeros of weights act as such, on an image of the data's shape if there are data."""
    if splits:
        sparsity.check_acting(model, random_images(model, splits.image_shape, 1))


def _without_convolutions(measurement: Measurement, model: nn.Module, what: str = "convolution") -> UserError:
    return UserError(f"{measurement.kind} knows networks with a {what}: {type(model).__name__} has none")
