"""Proximal maps: prox(y) = argmin over x of  level * penalty(x) + (x - y)^2 / 2, in closed form.

In relaxed splitting with pull beta and penalty weight lambda, `level` is lambda / beta.
"""

import torch
from torch import Tensor

from sparserobust.provenance import double
from sparserobust.sparsity import channel_norms


def l0(y: Tensor, level: float) -> Tensor:
    """Hard threshold: keeps entries beyond sqrt(2 level), zeroes the others (Dinh et al. 2020, eq. 4)."""
    return torch.where(y.abs() > (2 * level) ** 0.5, y, 0.0)


def l1(y: Tensor, level: float) -> Tensor:
    """Soft threshold: shrinks entries by `level`."""
    return y.sign() * (y.abs() - level).clamp_min(0)


def transformed_l1(y: Tensor, level: float, a: float = 1.0) -> Tensor:
    """For the penalty (a + 1)|x| / (a + |x|), which lies between l0 (a to 0) and l1 (a to infinity) (Zhang & Xin 2017,
    theorem 3.1)."""
    threshold = level * (a + 1) / a if level <= a * a / (2 * (a + 1)) else (2 * level * (a + 1)) ** 0.5 - a / 2
    size = double(y.abs())
    # theirs by half angles: 2/3 (a + size) cos(angle / 3) - 2/3 a + size / 3 is nothing but rounding if a is large
    sine = (27 / 4 * level / (a + size) * (a / (a + size)) * ((a + 1) / (a + size))).sqrt().clamp_max(1)
    root = (size - 4 / 3 * (a + size) * (sine.arcsin() / 3).sin().square()).clamp_min(0)
    return torch.where(size > threshold, double(y).sign() * root, 0.0).to(y)


def group_l0(y: Tensor, level: float) -> Tensor:
    """Hard threshold of whole input channels of a convolution weight (out, in, *kernel): zeroes those whose l2 norm is
    at most sqrt(2 level) (Dinh et al. 2020, eq. 6)."""
    kept = channel_norms(y) > (2 * level) ** 0.5
    return y * _for_channels(kept, y)


def group_l1(y: Tensor, level: float) -> Tensor:
    """Group lasso: shrinks the l2 norm of each input channel by `level` (Dinh et al. 2020, section 3.2)."""
    norms = channel_norms(y)
    factor = (norms - level).clamp_min(0) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return y * _for_channels(factor, y)


def _for_channels(factor: Tensor, y: Tensor) -> Tensor:
    """Factors (in,) so shaped that they multiply the input channels of y (out, in, *kernel)."""
    return factor.to(y).view(-1, *[1] * (y.dim() - 2))
