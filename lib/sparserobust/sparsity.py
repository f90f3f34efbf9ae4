"""How sparsity is counted. One definition, used by every table.

Sparsity: share of exactly zero entries among convolution and linear weights. Channel sparsity: as Dinh et al. 2020
count it, the share of *input* channels, over all convolutions, whose l2 norm is below 1e-15.
"""

import torch
from torch import Tensor, nn

CHANNEL_NORM_IS_ZERO = 1e-15  # Dinh et al. 2020, section 4: the norm below which a channel counts as removed


def convolutions(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name to weight (out, in, k, k) of every convolution, the 3-channel stem and 1x1 shortcuts included."""
    return {name: p for name, p in model.named_parameters() if p.dim() == 4}


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name to weight of every convolution (4-D) and linear layer (2-D)."""
    return {name: p for name, p in model.named_parameters() if p.dim() in (2, 4)}


def channel_norms(weight: Tensor) -> Tensor:
    """l2 norm of each input channel, (in,), of a convolution weight (out, in, k, k)."""
    return weight.detach().double().pow(2).sum((0, 2, 3)).sqrt()


def all_but_smallest(scores: Tensor, removed: int) -> Tensor:
    """Mask of ones, shaped like `scores` (n,), with zeros for the `removed` smallest; ties are broken by position."""
    mask = torch.ones_like(scores)
    mask[scores.argsort(stable=True)[:removed]] = 0
    return mask


def zero_weights(model: nn.Module) -> tuple[int, int]:
    """How many convolution and linear weights are exactly zero, and how many there are."""
    weights = prunable(model).values()
    return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)


def sparsity(model: nn.Module) -> float:
    """Share of exactly zero convolution and linear weights, in [0, 1]."""
    zero, total = zero_weights(model)
    return zero / total


def channel_groups(model: nn.Module) -> int:
    """Number of input channels over all convolutions: 675 for ResNet20."""
    return sum(w.shape[1] for w in convolutions(model).values())


def removed_channels(model: nn.Module) -> int:
    """Number of input channels, over all convolutions, with l2 norm below 1e-15."""
    return sum(int((channel_norms(w) < CHANNEL_NORM_IS_ZERO).sum()) for w in convolutions(model).values())


def channel_sparsity(model: nn.Module) -> float:
    """Share of input channels with l2 norm below 1e-15, in [0, 1]; 0 for a network without convolutions."""
    return removed_channels(model) / max(channel_groups(model), 1)


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters())


def remaining_parameters(model: nn.Module) -> int:
    """Number of trainable parameters that are not exactly zero."""
    return sum(int((p != 0).sum()) for p in model.parameters())
