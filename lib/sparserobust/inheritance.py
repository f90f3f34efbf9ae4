"""Inverse weights inheritance: a network begins with the weights of a smaller one (Wang et al. 2020). The paper's
algorithm is not on record; this is a reading of its claim."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sparserobust.answers import differ, is_random, under_attack
from sparserobust.config import Inheritance
from sparserobust.errors import UserError
from sparserobust.models.noise import WeightNoise, noise_off
from sparserobust.models.resnet import Padded
from sparserobust.models.winners import KWinners
from sparserobust.sparsity import weights as acting_weights


@torch.no_grad()
def inherit(model: nn.Module, weights: dict[str, Tensor], settings: Inheritance, images: Tensor | None = None) -> None:
    """Put `weights`, the state dictionary of a smaller network of the same topology, narrower or pruned, into the fresh
    `model`. Every tensor goes into the leading corner of its namesake, running statistics included; convolution and
    linear weights that are exactly zero count as not there. What the smaller network does not have:

    - weights that were pruned, and weights that read a new channel, begin at `kappa` times their default;
    - weights by which a new channel reads inherited ones, biases and norms of new channels begin at their default.

    With `kappa` 0 the inherited channels do not see the new ones, and the network computes what the smaller one does
    (but for noise and k-winners, which look at all channels together). New channels are not zero themselves, since no
    gradient reaches a weight between two channels that are. A channel that lost all its weights on both sides is such a
    case: it may need a `kappa` above 0 to come back.

    `UserError` where the tensors do not fit, where channels cannot be told apart as inherited and new, and for weights
    that are computed from other parameters; with `images` (n, c, h, w) also where, with `kappa` 0, answers to them
    depend on new channels after all, as behind a norm over groups of channels, or where two branches are joined.
    """
    _check_fit(model, weights)
    if images is not None and any(t.shape != weights[name].shape for name, t in model.state_dict().items()):
        _check_apart(deepcopy(model), weights, images)
    layers = acting_weights(model)
    for name, large in model.state_dict().items():
        small = weights[name].to(large)
        corner = large[tuple(map(slice, small.shape))]  # a view
        if name in layers:
            large[:, small.shape[1]:] *= settings.kappa
            small = torch.where(small == 0, settings.kappa * corner, small)
        corner.copy_(small)


def _check_apart(heir: nn.Module, weights: dict[str, Tensor], images: Tensor) -> None:
    inherit(heir, weights, Inheritance(kappa=0))
    layers, devices = acting_weights(heir), [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices), under_attack(heir), noise_off(heir):
        if is_random(heir, images) or any(isinstance(layer, KWinners) for layer in heir.modules()):
            return
        before = heir(images)
        for name, large in heir.state_dict().items():
            old = weights[name].shape
            new = torch.ones_like(large, dtype=torch.bool)
            new[tuple(map(slice, old))] = False
            if name in layers:
                new[:, old[1]:] = False  # what reads new channels is zero, and stays so
            if large.is_floating_point():
                large[new] = 1.5 * large[new] + 0.1
        if differ(heir(images), before):
            raise UserError("inheritance: inherited channels see new ones, as behind a norm over groups of channels or "
                            "where branches are joined: take a network in which each channel keeps its place")


def _check_fit(model: nn.Module, weights: dict[str, Tensor]) -> None:
    small, large = ({name: tuple(t.shape) for name, t in some.items()} for some in (weights, model.state_dict()))
    for name in small | large:
        if name not in small or name not in large:
            raise UserError(f"inheritance: only one of the two networks has {name}: they differ in more than width")
        old, new = small[name], large[name]
        if len(old) != len(new) or old[2:] != new[2:] or any(m > n for m, n in zip(old, new, strict=True)):
            raise UserError(f"inheritance: {name} of shape {old} does not fit into {new}: the smaller network has at "
                            "most as many channels, and kernels of the same size")
    for name, w in acting_weights(model).items():
        if not w.plain:
            raise UserError(f"inheritance: {name} is computed from other parameters: make it plain first, by "
                            "torch.nn.utils.prune.remove or parametrize.remove_parametrizations")
        if small[name] != large[name] and (w.groups > 1 or getattr(w.layer, "transposed", False)
                                           or not isinstance(w.layer, nn.Linear | _ConvNd)):
            raise UserError(f"inheritance: {name}, of another width, belongs to {type(w.layer).__name__}: only linear "
                            "layers and convolutions without groups, not transposed, are known")
    if small == large:
        return
    if any(isinstance(layer, Padded) for layer in model.modules()):
        raise UserError("inheritance: where shortcuts are padded with zeros, new channels are added to inherited ones: "
                        "take preact_resnet, resnet18 or vgg16 instead of resnet")
    if any(isinstance(layer, WeightNoise) and layer.granularity == "element" for layer in model.modules()):
        raise UserError("inheritance: noise scales of single weights do not go into another width: take granularity "
                        "channel or layer")
