"""Noise inside a network, on activations or on weights, and switching it off."""

from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparserobust.config import Model
from sparserobust.models.gates import gated
from sparserobust.settings import settings
from sparserobust.sparsity import weights


class Noise(nn.Module):
    """x + level * std(x) * gaussian, with the standard deviation over the whole batch tensor, through which gradients
    flow; in training and evaluation alike, as released. `level` 0 switches it off."""

    def __init__(self, level: float):
        super().__init__()
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        return _Noisy.apply(x, self.level) if self.level else x

    def extra_repr(self) -> str:
        return f"level={self.level}"


class _Noisy(torch.autograd.Function):
    """x + level * std(x) * gaussian. The gradient by hand takes two passes over the tensor, autograd's takes eight; an
    ensemble trains a fifth faster on a CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, level: float) -> Tensor:
        spread, gaussian = standard_deviation(x), gaussian_like(x)
        ctx.save_for_backward(x, gaussian, spread)
        ctx.level = level
        return x + level * spread.to(x.dtype) * gaussian

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        x, gaussian, spread = ctx.saved_tensors
        mean = x.mean(dtype=spread.dtype)
        # d std / dx = (x - mean) / ((n - 1) std); a constant x has no spread, and no direction in which it grows
        along = (gradient * gaussian).sum(dtype=spread.dtype)
        weight = torch.where(spread > 0, ctx.level * along / ((x.numel() - 1) * spread), 0.0)
        return torch.addcmul(gradient, x, weight.to(x.dtype)).sub_((weight * mean).to(x.dtype)), None


def standard_deviation(x: Tensor) -> Tensor:
    """Of all entries, as `x.std()`, in at least float32; ten times faster for bfloat16 on a CPU. Meant for activations:
    it loses digits where the mean is many times the spread."""
    n, dtype = x.numel(), torch.promote_types(x.dtype, torch.float32)
    squares = torch.linalg.vector_norm(x, dtype=dtype) ** 2
    return ((squares - n * x.mean(dtype=dtype) ** 2) / (n - 1)).clamp_min(0).sqrt()


def gaussian_like(x: Tensor) -> Tensor:
    """As `torch.randn_like`; drawn flat because that is nine times faster for channels_last tensors on a CPU."""
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        return torch.randn_like(x)
    return torch.randn(x.numel(), device=x.device).to(x.dtype).as_strided(x.shape, x.stride())


class WeightNoise(nn.Module):
    """w + scale * eta with eta ~ N(0, std(w)^2), drawn anew at every forward pass, in training and evaluation alike
    (He, Rakin & Fan 2019, "PNI", eqs. 5 to 7; what Rakin et al. 2019 build on). The scale is learned, one for the
    layer, one per output channel, or one per weight; the standard deviation is that of the whole layer and, like eta, a
    constant in back-propagation. `masked`: weights that are exactly zero get no noise. `level` 0 switches it off."""

    def __init__(self, weight: Tensor, granularity: str, initial_scale: float, masked: bool):
        super().__init__()
        count = {"layer": 1, "channel": len(weight), "element": weight.numel()}[granularity]
        # flat, whatever it belongs to: what counts, penalises or prunes weights goes by their 2 or 4 dimensions
        self.scale = nn.Parameter(torch.full((count,), initial_scale))
        self.granularity, self.masked, self.level = granularity, masked, 1.0

    def forward(self, weight: Tensor) -> Tensor:
        if not self.level:
            return weight
        with torch.no_grad():
            noise = gaussian_like(weight) * (self.level * weight.std())
            if self.masked:
                noise *= weight != 0
        shape = weight.shape if self.granularity == "element" else (-1, *[1] * (weight.dim() - 1))
        return weight + noise * self.scale.view(shape)

    def extra_repr(self) -> str:
        return f"{self.granularity}, {len(self.scale)} scales, level={self.level}"


class NoisyConv2d(nn.Conv2d):
    """A convolution with `noise` on its weight."""

    noise: WeightNoise

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.noise(self.weight), self.bias)


class NoisyLinear(nn.Linear):
    """A linear layer with `noise` on its weight."""

    noise: WeightNoise

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.noise(self.weight), self.bias)


@settings
class NoisyWeights(Model, kind="noisy_weights"):
    """Any network with noise on the weights of all its convolutions and linear layers, which must be plain `nn.Conv2d`
    and `nn.Linear`. Names of parameters stay what they were; the scales are added as `<layer>.noise.scale`."""

    model: Model
    granularity: str = "channel"  # one learned scale per: layer | channel | element
    initial_scale: float = 0.25
    masked: bool = True  # no noise on weights that are exactly zero

    def check(self):
        self.choice("granularity", "layer", "channel", "element")

    @property
    def cost(self) -> float:
        return 1.1 * self.model.cost

    def fits(self, other: Model) -> bool:
        return isinstance(other, NoisyWeights) and replace(other, masked=self.masked) == self

    def build(self, image_shape, classes):
        net = self.model.build(image_shape, classes)
        self.require(not gated(net), "noise on the weights of a network with gates is not known here")
        for layer in list(net.modules()):
            if type(layer) in (nn.Conv2d, nn.Linear):
                layer.__class__ = NoisyConv2d if type(layer) is nn.Conv2d else NoisyLinear
                layer.noise = WeightNoise(layer.weight, self.granularity, self.initial_scale, self.masked)
        for name, w in weights(net).items():
            self.require(isinstance(w.layer, NoisyConv2d | NoisyLinear), f"{name} belongs to {type(w.layer).__name__}: "
                         "noise goes on the weights of plain nn.Conv2d and nn.Linear layers")
        return net


def noise_scales(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name of each layer with noise on its weights to the scales it learns, (1,), (out,) or (weights,)."""
    return {name.removesuffix(".noise"): m.scale for name, m in model.named_modules() if isinstance(m, WeightNoise)}


def one_draw_a_pass(model: nn.Module) -> bool:
    """Whether all images of a forward pass share one draw, as they do where the noise lies on weights."""
    return any(isinstance(m, WeightNoise) and m.level for m in model.modules())


def is_noisy(model: nn.Module) -> bool:
    """Whether a network has noise of this library that is on; `answers.is_random` also finds that of others."""
    return any(isinstance(m, Noise | WeightNoise) and m.level for m in model.modules())


@contextmanager
def noise_off(model: nn.Module):
    """No noise inside the block, the former levels after it."""
    layers = [(m, m.level) for m in model.modules() if isinstance(m, Noise | WeightNoise)]
    try:
        for layer, _ in layers:
            layer.level = 0.0
        yield model
    finally:
        for layer, level in layers:
            layer.level = level
