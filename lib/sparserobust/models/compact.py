"""Removing for real what a sparsifier has set to zero: smaller dense convolutions, no sparse format."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from sparserobust.errors import UserError
from sparserobust.models.gates import fold_gates
from sparserobust.models.noise import NoisyConv2d
from sparserobust.models.preact_resnet import Block, Ensemble, Member
from sparserobust.models.winners import KWinners


def compact(model: Ensemble) -> Ensemble:
    """A copy of `model`, on the same device and in the same mode, without the input channels of convolutions whose
    weights are all exactly zero. Images (n, c, h, w) to the same logits (n, classes) up to rounding, and with the same
    noise for the same seed. (Only where images with channels last meet a network without, and one channel is left in a
    branch, is the noise another draw: PyTorch loses the layout there, in whose order noise is drawn.) What goes:

    - an input channel of a block's second convolution, with the output channel of the first convolution and the
      entries of the norm that make it;
    - an input channel that neither the first convolution nor the shortcut reads: the branch picks the others out of
      the residual stream, and its norm shrinks; likewise an image channel that the stem does not read.

    What stays: the residual stream itself, since other blocks read it and noise is scaled by its standard deviation;
    zero *output* channels, since the norm that follows shifts them to constants; zeros scattered over kernels; one
    channel of every convolution. Gates are multiplied into the weights. Noise on weights keeps its spread on each of
    them (its draws are others, since they follow the shape). The state_dict fits the compact copy of any network with
    the same zeros.

    `UserError` for k-winners, and for noise on weights that also lies on zeros or has another granularity than channel.
    """
    if any(isinstance(layer, KWinners) for layer in model.modules()):
        raise UserError("compact does not know k-winners: with fewer units in a layer, others would win")
    model = deepcopy(model)
    fold_gates(model)
    noisy = [layer for layer in model.modules() if isinstance(layer, NoisyConv2d)]
    if any(layer.noise.granularity != "channel" or not layer.noise.masked for layer in noisy):
        raise UserError("compact knows noise on weights only if it is masked and of granularity channel")
    spreads = [layer.weight.std() for layer in noisy]
    for member in model.members:
        assert isinstance(member, Member) and isinstance(member.stem, nn.Conv2d)
        member.stem = _narrowed(member.stem, member.stem)
        for block in member.blocks:
            assert isinstance(block, Block)
            _shrink(block)
    for layer, spread in zip(noisy, spreads, strict=True):
        layer.noise.scale.data *= spread / layer.weight.std()  # which is larger without the zeros
    return model


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
    _keep(block.conv2, inner, axis=1)
    _keep(block.norm2, inner)
    _keep(block.conv1, inner)  # before its input channels are looked at: with fewer outputs it may read fewer
    block.norm1 = _narrowed(block.norm1, *(layer for layer in (block.conv1, block.shortcut) if layer is not None))


def _narrowed(first: nn.Module, *readers: nn.Conv2d) -> nn.Module:
    """`first` behind a pick of the channels that its readers (it may be its own) read, readers and norm made to match;
    `first` itself where they read all."""
    channels = _read(*readers)
    if len(channels) == readers[0].in_channels:
        return first
    for layer in readers:
        _keep(layer, channels, axis=1)
    if isinstance(first, nn.BatchNorm2d):
        _keep(first, channels)
    return nn.Sequential(Pick(channels), first)


def _read(*readers: nn.Conv2d) -> Tensor:
    """Indices of the input channels that any of these convolutions reads, but at least one: a convolution cannot be
    empty, and a branch cannot be dropped with it. Even where a block's first convolution is zero, the shift of its
    second norm makes the second convolution read a constant, and its output is not zero."""
    read = torch.stack([(layer.weight != 0).any(dim=(0, 2, 3)) for layer in readers]).any(0)
    read[0] |= not read.any()
    return read.nonzero().flatten()


def _keep(layer: nn.Conv2d | nn.BatchNorm2d, channels: Tensor, axis: int = 0) -> None:
    """Only these entries of a norm, output channels (axis 0) or input channels (axis 1) of a convolution."""
    for t in [*layer.parameters(), *layer.buffers()]:
        if t.dim() > axis:
            layout = torch.contiguous_format if t.is_contiguous() else torch.channels_last
            t.data = t.data.index_select(axis, channels).to(memory_format=layout)
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    else:
        layer.num_features = len(layer.weight)
