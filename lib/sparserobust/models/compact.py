"""Removing for real what a sparsifier has set to zero: smaller dense convolutions, no sparse format."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from sparserobust.errors import UserError, quoted
from sparserobust.inputs import Function, copied
from sparserobust.models.gates import fold_gates
from sparserobust.models.noise import NoisyConv2d, NoisyLinear
from sparserobust.models.preact_resnet import Block, Ensemble, Member
from sparserobust.models.removal import Trial, keep, without_unread
from sparserobust.models.winners import KWinners
from sparserobust.sparsity import check_hooks


def compact(model: nn.Module, images: Tensor | None = None, *,
            image_shape: tuple[int, int, int] | None = None) -> nn.Module:
    """A copy of `model`, on the same device and in the same mode, without the channels whose weights are exactly zero
    wherever they are read. In eval mode images (n, c, h, w) go to the same logits (n, classes), up to rounding: that is
    tried on random images in [0, 1] of this `image_shape` (c, h, w), and on some of the `images` if there are any. One
    of the two is needed, but not for pre-activation ensembles. The model itself stays as it is.

    Gates, masks of `torch.nn.utils.prune` and parametrisations are multiplied into the weights. Noise on weights keeps
    its spread on each of them (its draws are others, since they follow the shape). The state_dict fits the compact copy
    of any network with the same zeros. What goes is said by `removal.without_unread` for networks of any kind.

    In a pre-activation ensemble (`PreActResNet`) a branch can read a part of the residual stream, so that more goes,
    and the noise is the same for the same seed. (Only where images with channels last meet a network without, and one
    channel is left in a branch, is it another draw: PyTorch loses the layout there, in whose order noise is drawn.)
    There goes:

    - an input channel of a block's second convolution, with the output channel of the first convolution and the
      entries of the norm that make it;
    - an input channel that neither the first convolution nor the shortcut reads: the branch picks the others out of
      the residual stream, and its norm shrinks; likewise an image channel that the stem does not read.

    There stays: the residual stream itself, since other blocks read it and noise is scaled by its standard deviation;
    zero *output* channels, since the norm that follows shifts them to constants; zeros scattered over kernels; one
    channel of every convolution.

    `UserError` for k-winners, for noise on weights that also lies on zeros or has another granularity than channel, and
    for a network that cannot be copied or traced, decides by the numbers of its images what to do, answers at random
    or with what are no finite logits. `RuntimeError` if the copy does not answer as the network does.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"compact takes a network, a torch.nn.Module, not {quoted(model)}")
    if any(isinstance(layer, KWinners) for layer in model.modules()):
        raise UserError("compact does not know k-winners: with fewer units in a layer, others would win")
    model = plain_copy(model)
    fold_gates(model)
    if any(layer.noise.granularity != "channel" or not layer.noise.masked for layer in _noisy(model)):
        raise UserError("compact knows noise on weights only if it is masked and of granularity channel")
    spreads = [layer.weight.std() for layer in _noisy(model)]
    shape = image_shape if images is None else tuple(images.shape[1:])
    trial = Trial(model, shape, images) if shape else None
    if isinstance(model, Ensemble) and not any(isinstance(layer, Pick) for layer in model.modules()):
        for member in model.members:
            assert isinstance(member, Member) and isinstance(member.stem, nn.Conv2d)
            member.stem = _narrowed(member.stem, member.stem)
            for block in member.blocks:
                assert isinstance(block, Block)
                _shrink(block)
    elif trial:
        model = without_unread(model, trial)
    else:
        raise UserError(f"compact tries {type(model).__name__} on images: give image_shape=(channels, height, width)")
    for layer, spread in zip(_noisy(model), spreads, strict=True):
        layer.noise.scale.data *= spread / layer.weight.std()  # which is larger without the zeros
    if trial and not trial.passed(model):
        raise RuntimeError(f"the compact copy of {type(model).__name__} is wrong: it answers in another way")
    return model


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy with masks of `torch.nn.utils.prune`, parametrisations and norms of weights multiplied into the weights,
    as they act in eval mode; wrappers for several devices, and of compiled networks, are taken off. `UserError` for a
    function, TorchScript, and what Python cannot copy."""
    inner: Any = model
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    if any(isinstance(part, torch.jit.ScriptModule) for part in parts):
        raise UserError("layers cannot be changed in a program of TorchScript: give the network that it was made from")
    if not parts or any(isinstance(part, Function) for part in parts):
        raise UserError("the weights of a function are out of sight: give the network itself, a torch.nn.Module")
    check_hooks(model)
    while isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(inner, "_orig_mod"):
        inner = getattr(inner, "_orig_mod", None) or inner.module
    inner = copied(inner)
    for layer in list(inner.modules()):
        for hook in list(layer._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(layer, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(layer, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(layer, hook.name)
        if parametrize.is_parametrized(layer):
            for name, steps in list(layer.parametrizations.items()):
                steps.eval()  # in training mode a spectral norm would be estimated further
                kind: Any = type(layer)
                layer.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))  # the original keeps its own
                parametrize.remove_parametrizations(layer, name)
    return inner


def _noisy(model: nn.Module) -> list[NoisyConv2d | NoisyLinear]:
    return [layer for layer in model.modules() if isinstance(layer, NoisyConv2d | NoisyLinear)]


class Pick(nn.Module):
    """Some channels (k,) of (n, c, h, w), as (n, k, h, w) in the same memory layout."""

    channels: Tensor

    def __init__(self, channels: Tensor):
        super().__init__()
        self.register_buffer("channels", channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_contiguous():
            return x.index_select(1, self.channels)
        rows = x.movedim(1, -1)  # with channels last, up to ten times faster than picking along axis 1
        return rows.gather(-1, self.channels.expand(*rows.shape[:-1], -1)).movedim(-1, 1)

    def extra_repr(self) -> str:
        return f"{len(self.channels)} channels"


def _shrink(block: Block) -> None:
    inner = _read(block.conv2)
    keep(block.conv2, inner, axis=1)
    keep(block.norm2, inner)
    keep(block.conv1, inner)  # before its input channels are looked at: with fewer outputs it may read fewer
    block.norm1 = _narrowed(block.norm1, *(layer for layer in (block.conv1, block.shortcut) if layer is not None))


def _narrowed(first: nn.Module, *readers: nn.Conv2d) -> nn.Module:
    """`first` behind a pick of the channels that its readers (it may be its own) read, readers and norm made to match;
    `first` itself where they read all."""
    channels = _read(*readers)
    if len(channels) == readers[0].in_channels:
        return first
    for layer in readers:
        keep(layer, channels, axis=1)
    if isinstance(first, nn.BatchNorm2d):
        keep(first, channels)
    return nn.Sequential(Pick(channels), first)


def _read(*readers: nn.Conv2d) -> Tensor:
    """Indices of the input channels that any of these convolutions reads, but at least one: a convolution cannot be
    empty, and a branch cannot be dropped with it. Even where a block's first convolution is zero, the shift of its
    second norm makes the second convolution read a constant, and its output is not zero."""
    read = torch.stack([(layer.weight != 0).any(dim=(0, 2, 3)) for layer in readers]).any(0)
    read[0] |= not read.any()
    return read.nonzero().flatten()
