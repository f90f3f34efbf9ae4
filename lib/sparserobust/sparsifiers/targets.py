"""What a sparsifier acts on, and one line where there is nothing."""

from itertools import chain

from torch import Tensor

from sparserobust.config import Sparsifier
from sparserobust.sparsity import Acting, weights


def convolving(model) -> dict[str, Acting]:
    """Name to weight of every convolution."""
    return {name: w for name, w in weights(model).items() if w.convolves}


def acted_on(sparsifier: Sparsifier, model, convolutions: bool = False) -> dict[str, Acting]:
    """Name to convolution and linear weight, or to those of `convolutions` alone; `UserError` of the sparsifier if
    there are none."""
    found = convolving(model) if convolutions else weights(model)
    kinds = "convolution" if convolutions else "convolution or linear"
    sparsifier.require(bool(found), f"this network has no {kinds} weights, so there is nothing to act on")
    return found


def written(sparsifier: Sparsifier, model, convolutions: bool = False) -> dict[str, Acting]:
    """The same for a sparsifier that writes into weights: one that is computed from others is a `UserError`, too."""
    found = acted_on(sparsifier, model, convolutions)
    for name, w in found.items():
        sparsifier.require(w.plain, f"it writes into weights, and {name} is computed from other parameters: make it "
                           "plain first, by torch.nn.utils.prune.remove or parametrize.remove_parametrizations")
    return found


def drop_gradients(model) -> None:
    """The optimiser leaves alone what has no gradient, with its decay and momentum."""
    for p in model.parameters():
        p.grad = None


def as_trained(model) -> dict[str, Tensor]:
    """Name to parameter, and to running statistic, for `sparse_weights` in place of moving averages: those of masked
    weights fill zeros, those of constants are rounded."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    return {name: t.detach() for name, t in tensors if t.is_floating_point()}
