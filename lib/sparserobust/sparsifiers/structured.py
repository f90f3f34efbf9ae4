"""Pruning of whole channels, where the network knows who writes and who reads them (`inner_channels` of its modules).
Residual streams are left alone, as many layers write and read them."""

import math

import torch
from torch import nn

from sparserobust.config import Sparsifier
from sparserobust.models.gates import acting_weight
from sparserobust.settings import settings
from sparserobust.sparsifiers.magnitude import FixedMask
from sparserobust.sparsifiers.targets import written
from sparserobust.sparsity import prunable, zero_weights

Inner = tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d | nn.Linear]  # writer, norm and reader of channels


@settings
class Channels(FixedMask, kind="channels"):
    """Removes whole inner channels from the network a run starts with (its `start`), as few as it takes, then trains
    what is left at a fixed mask; with a recipe of 0 epochs it only prunes. Zeros that are there before count and stay;
    every layer keeps one channel at least. Which channels go first, ties by position:

    - criterion `filters`: those with the smallest l1 norm of the filter that writes them, ranked in their own layer,
      so that each layer loses the same share (Li et al. 2017, who set that share by hand for each stage);
    - criterion `readers`: those with the smallest l2 norm of the weights that read them, ranked in their own layer (the
      channels of Dinh et al. 2020, so that those which RGSM has set to zero go first);
    - criterion `scales`: those with the smallest |gamma| of the norm they pass, ranked over all layers (Liu et al.
      2017, network slimming, who also choose what a layer reads of the residual stream; `ScaleLasso` trains for this).

    A removed channel has neither the weights that write it nor those that read it. Its norm still puts out a constant,
    beta in training mode, but nobody reads it (except k-winners, among which it competes)."""

    sparsity: float | None = None  # share of convolution and linear weights that is zero afterwards, at least; or
    share: float | None = None  # share of the inner channels of each layer that goes, whatever else is zero
    criterion: str = "filters"

    def check(self):
        self.require((self.sparsity is None) != (self.share is None), "give sparsity or share, one of the two")
        self.require(self.share is None or self.criterion != "scales",
                     "scales are ranked over all layers: give sparsity, not a share of each layer")
        for name, value in (("sparsity", self.sparsity), ("share", self.share)):
            self.require(value is None or 0 <= value < 1, f"{name} is a share in [0, 1), got {value}")
        self.choice("criterion", "filters", "readers", "scales")

    @torch.no_grad()
    def start(self, model):
        written(self, model)
        masks = super().start(model)
        mask_of = {w: masks[name] for name, w in prunable(model).items()}
        zero, total = zero_weights(model)
        order = self._order(model)
        self.require(bool(order) or not self.share, "no layer has more than one inner channel: there is nothing to "
                     "remove")
        for key, channel, writer, reader in order:
            if key > self.share + 1e-9 if self.sparsity is None else zero / total >= self.sparsity:
                break
            for mask in (mask_of[writer.weight][channel], mask_of[reader.weight][:, channel]):
                zero += int(mask.count_nonzero())  # where row and column of two channels cross, only the first time
                mask.zero_()
        self.require(zero / total >= (self.sparsity or 0), f"sparsity {self.sparsity} is out of reach: with one inner "
                     f"channel left a layer, it is {math.floor(1000 * zero / total) / 1000:g} in this network")
        self.after_step(model, masks, 0.0)
        return masks

    def _order(self, model) -> list[tuple[float, int, nn.Conv2d, nn.Conv2d | nn.Linear]]:
        """(key, channel, writer, reader) of all inner channels but the best of each layer, the first to go first."""
        order = []
        for writer, norm, reader in inner_channels(model, self):
            if self.criterion == "scales":
                keys, channels = (t.tolist() for t in norm.weight.abs().sort(stable=True))
            else:
                if self.criterion == "filters":
                    sizes = acting_weight(writer).abs().sum((1, 2, 3))
                else:
                    sizes = acting_weight(reader).transpose(0, 1).flatten(1).norm(dim=1)
                channels = sizes.argsort(stable=True).tolist()
                keys = [rank / len(channels) for rank in range(1, len(channels) + 1)]  # share lost with this channel
            order += [(key, channel, writer, reader) for key, channel in zip(keys[:-1], channels[:-1], strict=True)]
        return sorted(order, key=lambda candidate: candidate[0])


@settings
class ScaleLasso(Sparsifier, kind="scale_lasso"):
    """lam * sum of |gamma| over the norms that inner channels pass is added to the loss (Liu et al. 2017, eq. 1, there
    over all norms): the training that precedes `Channels(criterion="scales")`. As with `Lasso`, scales become small,
    not zero."""

    lam: float

    def check(self):
        self.require(self.lam >= 0, "lam cannot be negative")

    def start(self, model):
        self.require(all(norm.affine for _, norm, _ in inner_channels(model, self)), "its norms have no scales")
        return {}

    def added_loss(self, model, state):
        return self.lam * torch.cat([norm.weight for _, norm, _ in inner_channels(model, self)]).abs().sum()


def inner_channels(model: nn.Module, sparsifier: Sparsifier) -> list[Inner]:
    """(writer, norm, reader) of all layers with inner channels; a `UserError` of the sparsifier if there are none."""
    found = [inner for module in model.modules() for inner in getattr(module, "inner_channels", list)()]
    sparsifier.require(bool(found), "this network has no inner channels; preact_resnet, resnet, resnet18, vgg16 and "
                       "wide_resnet do")
    return found
