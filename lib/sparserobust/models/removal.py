"""Removing channels that nobody reads from a network of any kind, as its dependency graph (`couplings`) allows."""

from collections import Counter
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from sparserobust.errors import UserError, quoted
from sparserobust.models.couplings import IN, OUT, Convolution, Couplings
from sparserobust.models.noise import is_noisy, noise_off
from sparserobust.models.unknown import passed_unknown
from sparserobust.seeding import stream

TRIED = 4  # random images on which a network without channels has to answer as it did with them
TOLERANCE = 1e-5  # how far the answers may be apart, from rounding, as a share of how far logits of an image are


def spread(logits: Tensor, tolerance: float) -> Tensor:
    """How far logits (n, classes) may be apart for rounding: a share of the largest distance from the mean of an image,
    since what all logits of an image have in common says nothing; but not less than what their precision resolves."""
    apart = logits - logits.mean(1, keepdim=True) if logits.shape[1] > 1 else logits
    return torch.maximum(tolerance * apart.abs().max(), 8 * torch.finfo(logits.dtype).eps * logits.abs().max())


class Trial:
    """Images in [0, 1], and how a network answers them: random ones, dark ones, bright ones, black and white. On the
    CPU, since a GPU rounds convolutions to 10 bits, and in double precision, if the network knows it, without the noise
    of this library."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], images: Tensor | None = None):
        """The images have this shape (c, h, w); some of `images` (n, c, h, w), if there are any, come to them. Where
        the network has no answer to an even image, since it divides by its contrast, black and white are left out.
        `UserError` if the network does not take them, and answer each time with the same finite logits (n, classes)."""
        if len(shape) != 3 or not all(isinstance(side, int) and side > 0 for side in shape):
            raise UserError(f"the shape of an image is (channels, height, width), not {quoted(shape)}")
        random = torch.rand(TRIED, *shape, generator=stream(0, "compact"))
        random[::2].round_()  # black and white, for stronger contrasts
        shades = [random[1:2] / 8, 1 - random[1:2] / 8]
        even = [torch.zeros(1, *shape), torch.ones(1, *shape)]
        given = [] if images is None else [images[:TRIED].cpu()]
        self.images = torch.cat([*even, random, *shades, *given]).double()
        self.expected = self.logits(model)
        if self.expected is None:  # such as one with single precision written into it
            self.images = self.images.float()
            self.expected = self.logits(model)
        name = type(model).__name__
        if self.expected is None:
            raise UserError(f"{name} takes no images of shape {tuple(self.images.shape[1:])}: {quoted(self.refused)}")
        if not isinstance(self.expected, Tensor) or self.expected.dim() != 2:
            raise UserError(f"{name} puts out something else than logits (n, classes), as networks here do")
        if not self.expected[:len(even)].isfinite().all():
            self.images = self.images[len(even):]
            self.expected = self.logits(model)
        if not self.expected.isfinite().all():
            raise UserError(f"{name} answers with numbers that are not finite: look at its weights")
        if not torch.equal(self.expected, self.logits(model)):
            raise UserError(f"{name} answers at random, so that there is nothing to compare another copy with")

    def copy(self, model: nn.Module) -> nn.Module:
        """A copy as it is tried: on the CPU, in the precision of the images, in eval mode."""
        return deepcopy(model).to("cpu", self.images.dtype).eval()

    def logits(self, model: nn.Module) -> Any:
        """What the network puts out; None if it stops, and then `refused` says why."""
        try:
            with torch.no_grad(), noise_off(self.copy(model)) as copy:
                return copy(self.images)
        except Exception as error:  # a network from elsewhere may stop in any way
            self.refused = f"{type(error).__name__}: {error}"
            return None

    def passed(self, model: nn.Module) -> bool:
        """Whether the answers are those expected, up to rounding."""
        return self._close(self.logits(model), self.expected, spread(self.expected, TOLERANCE))

    def same(self, model: nn.Module, small: nn.Module) -> bool:
        """Whether two networks with the same weights answer alike. Even where the logits hardly depend on the image,
        as in a deep network with random weights, what depends on it is the same."""
        logits = self.logits(model)
        margin = spread(logits, TOLERANCE)
        if logits.dtype == torch.float64:
            margin = TOLERANCE * (logits - logits.mean(0)).abs().max() + 1e-12 * logits.abs().max()
        return self._close(self.logits(small), logits, margin)

    @staticmethod
    def _close(logits: Any, expected: Tensor, margin: Tensor) -> bool:
        return logits is not None and logits.shape == expected.shape and bool(
            (logits - expected).abs().max() <= margin)


def without_unread(model: nn.Module, trial: Trial) -> nn.Module:
    """A copy without the channels that may go:

    - those that no layer reads, with all that makes them, norms and depthwise convolutions on their way included;
    - those that zero weights put out, where they are zero, or a constant, wherever they are read: nothing that depends
      on the images (`unknown`) may come to them. What the constant adds is put into biases; where padding makes it
      none, or there is noise, it stays.

    What stays: a channel of a residual stream that any block reads; zeros scattered over kernels; one channel of every
    layer; single channels of convolutions in groups; what layers pass that share a tensor; what `Couplings` says is
    fixed; and all channels of a kind without
    which the network does not answer as before, such as those of which `forward` names the number. `UserError` for a
    network that decides by the numbers of its images what to do."""
    passed_unknown(trial.copy(model), trial.images)
    couplings = Couplings.of(trial.copy(model).requires_grad_(True), trial.images)
    folded = deepcopy(model)
    if not len(couplings.fixed):  # it has no layer with channels
        return folded
    holders = Counter(p for layer in model.modules() for p in layer._parameters.values())
    for (name, _), numbers in couplings.sets.items():
        if any(holders[p] > 1 for p in model.get_submodule(name)._parameters.values() if p is not None):
            couplings.fixed[numbers] = True
    _fold_constants(folded, couplings, trial)
    if trial.passed(folded):
        model = folded
    kept = _kept(model, couplings)
    if not trial.same(model, _narrow(model, couplings, kept)):
        for space in couplings.space[~kept].unique():
            elsewhere = couplings.space != space
            if not trial.same(model, _narrow(model, couplings, kept | elsewhere)):
                kept = kept | ~elsewhere
    return _narrow(model, couplings, kept)


def keep(layer: nn.Module, channels: Tensor, axis: int = OUT) -> None:
    """Only these entries of a norm, output channels (axis 0) or input channels (axis 1) of a convolution or a linear
    layer; of a convolution in groups, only these groups."""
    for t in [*layer.parameters(), *layer.buffers()]:
        along = axis
        if isinstance(layer, Convolution) and t is layer.weight:
            along = 1 - axis if layer.transposed else axis
            if along == 1 and layer.groups > 1:  # what a group reads, or writes
                continue
        if t.dim() > axis:
            layout = torch.channels_last if t.dim() == 4 and not t.is_contiguous() else torch.contiguous_format
            t.data = t.data.index_select(along, channels.to(t.device)).to(memory_format=layout)
    if isinstance(layer, Convolution) and axis == IN:
        layer.groups = max(1, layer.groups * len(channels) // layer.in_channels)
    for names in (("out_channels", "in_channels"), ("out_features", "in_features"), ("num_features",),
                  ("num_parameters",)):
        if hasattr(layer, names[0]):
            setattr(layer, names[axis], len(channels))


def _narrow(model: nn.Module, couplings: Couplings, kept: Tensor) -> nn.Module:
    """A copy with those sets of channels only that are kept, (sets,)."""
    small = deepcopy(model)
    for (name, side), numbers in couplings.sets.items():
        if not kept[numbers].all():
            keep(small.get_submodule(name), kept[numbers].nonzero().flatten(), side)
    return small


def _kept(model: nn.Module, couplings: Couplings) -> Tensor:
    """Which sets of channels stay, (sets,): those that others read which stay, and one in every layer."""
    sets = couplings.sets
    read = {name: (matrix(layer) != 0).any(2).cpu() for name, layer in _mixing(model, couplings).items()}
    stay = couplings.fixed | ~_passing(couplings, OUT, read) | ~_passing(couplings, IN, read)

    def needed(kept: Tensor) -> Tensor:
        found = stay.clone()
        for name, nonzero in read.items():
            found[sets[name, IN][nonzero[kept[sets[name, OUT]]].any(0)]] = True
        return found

    kept = torch.ones_like(stay)
    while not torch.equal(fewer := needed(kept), kept):
        kept = fewer
    while True:
        more = kept | needed(kept)
        for numbers in sets.values():
            more[numbers[0]] |= not more[numbers].any()
        if torch.equal(more, kept):
            return kept
        kept = more


@torch.no_grad()
def _fold_constants(model: nn.Module, couplings: Couplings, trial: Trial) -> None:
    """Channels that zero weights put out are no longer read where they do not vary, over pixels and images; what they
    add goes into biases. Where weights become zero so, it is done again."""
    layers = _mixing(model, couplings)
    changed = not is_noisy(model)  # noise on weights has no place in a bias
    while changed:
        changed = False
        constant = _passing(couplings, OUT, layers) & ~couplings.fixed
        for name, layer in layers.items():
            constant[couplings.sets[name, OUT][(matrix(layer) != 0).any(2).any(1).cpu()]] = False
        if not (constant & _passing(couplings, IN, layers)).any():
            return
        ranges = _ranges(model, layers, trial)
        if ranges is None:
            return
        for name, layer in layers.items():
            low, high = ranges[name]
            nearly = 1e-6 * high.abs() if _unpadded(layer) else torch.zeros_like(high)
            same = (high - low <= nearly) & (_unpadded(layer) | (high == 0))
            constant[couplings.sets[name, IN][~same]] = False
        for name, layer in layers.items():
            weight = matrix(layer)
            gone = constant[couplings.sets[name, IN]].to(weight.device) & (weight != 0).any(2).any(0)
            if gone.any():
                changed = True
                added = weight.sum(2)[:, gone].double() @ ranges[name][1].to(weight.device)[gone].double()
                if added.any():
                    if layer.bias is None:
                        layer.bias = nn.Parameter(torch.zeros_like(weight[:, 0, 0]), layer.weight.requires_grad)
                    layer.bias += added
                (layer.weight if _transposed(layer) else layer.weight.transpose(0, 1))[gone] = 0


def _ranges(model: nn.Module, layers: dict[str, Any], trial: Trial) -> dict[str, tuple[Tensor, Tensor]] | None:
    """Smallest and largest number in each channel that these layers read, (channels,) each; NaN where they depend on
    the images. None if that cannot be followed."""
    copy = trial.copy(model)
    found = {name: (torch.full((matrix(layer).shape[1],), torch.inf), torch.full((matrix(layer).shape[1],), -torch.inf))
             for name, layer in layers.items()}

    def look(name: str, axis: int, given: tuple, named: dict) -> None:
        x = given[0] if given else named["input"]
        low, high = x.movedim(axis, 0).flatten(1).aminmax(dim=1)
        found[name] = torch.minimum(found[name][0], low), torch.maximum(found[name][1], high)

    for name in layers:
        layer, axis = copy.get_submodule(name), 1 if isinstance(layers[name], Convolution) else -1
        layer.register_forward_pre_hook(
            lambda _, given, named, name=name, axis=axis: look(name, axis, given, named), with_kwargs=True)
    return found if passed_unknown(copy, trial.images) else None


def _mixing(model: nn.Module, couplings: Couplings) -> dict[str, Any]:
    """Name to layer of what mixes channels: linear layers, and convolutions that are not in groups."""
    return {name: layer for name, side in couplings.sets if side == IN
            and getattr(layer := model.get_submodule(name), "groups", 1) == 1}


def _passing(couplings: Couplings, side: int, names: Iterable[str]) -> Tensor:
    """Which sets of channels (sets,) pass this side of any of these layers."""
    found = torch.zeros_like(couplings.fixed)
    for name in names:
        found[couplings.sets[name, side]] = True
    return found


def matrix(layer: Any) -> Tensor:
    """The weight of a linear layer, or of a convolution that is not in groups, as (out, in, pixels of a kernel)."""
    weight = layer.weight.detach()
    weight = weight.transpose(0, 1) if _transposed(layer) else weight
    return weight.reshape(*weight.shape[:2], -1)


def _transposed(layer: Any) -> bool:
    return getattr(layer, "transposed", False)


def _unpadded(layer: Any) -> bool:
    """Whether a layer turns a constant into a constant."""
    return isinstance(layer, nn.Linear) or (
        not _transposed(layer) and layer.padding in ("valid", (0,) * len(layer.kernel_size)))
