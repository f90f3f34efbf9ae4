"""What a run takes over from another but its weights: which of them are zero, or how they are distributed."""

import torch
from torch import Tensor

from sparserobust.config import Run, Sparsifier
from sparserobust.settings import settings
from sparserobust.sparsifiers.magnitude import FixedMask
from sparserobust.sparsifiers.targets import written
from sparserobust.sparsity import check_same, prunable


@settings
class Ticket(FixedMask, kind="ticket"):
    """A lottery ticket (Frankle & Carbin 2019): convolution and linear weights that are zero in the run `pruned` are
    zero and stay zero; the others begin where this run does. Without `start` that is its own initialisation, so with
    the seed of the pruned run its weights are rewound to the very beginning; a start that stopped after k epochs
    rewinds them to there, one with another seed draws them anew."""

    pruned: Run

    @property
    def required_runs(self):
        return (self.pruned,)

    @torch.no_grad()
    def start(self, model, pruned):
        written(self, model)
        own = prunable(model)
        check_same(own, pruned, f"{self.kind}: run {self.pruned.identity}")
        masks = {name: (pruned[name] != 0).to(w) for name, w in own.items()}
        self.after_step(model, masks, 0.0)
        return masks


@settings
class MatchedHistogram(Sparsifier, kind="matched_histogram"):
    """Weights get the distribution of another network's, and nothing else of it. Of every convolution and linear layer,
    u is the nearest tensor to w that has exactly the values of the same layer of `target`: sorted alike. w is pulled to
    u before each step, w <- w - lr beta (w - u), and replaced by it at the end, as in relaxed splitting."""

    target: Run
    beta: float = 1.0

    def check(self):
        self.require(self.beta > 0, "beta must be positive")

    @property
    def required_runs(self):
        return (self.target,)

    def start(self, model, target):
        written(self, model)
        own = prunable(model)
        check_same(own, target, f"{self.kind}: run {self.target.identity}")
        return {name: target[name].flatten().sort().values.to(w.device) for name, w in own.items()}

    @torch.no_grad()
    def before_step(self, model, state, lr):
        for name, w in prunable(model).items():
            w.sub_(w - matched(w, state[name]), alpha=lr * self.beta)

    def sparse_weights(self, model, state):
        return {name: matched(w.detach(), state[name]) for name, w in prunable(model).items()}


def matched(w: Tensor, values: Tensor) -> Tensor:
    """The tensor nearest to `w` that has these `values`, sorted in ascending order, in some order: the smallest stands
    where w is smallest, and so on (rearrangement inequality)."""
    result = torch.empty_like(values)
    result[w.flatten().argsort(stable=True)] = values
    return result.view(w.shape)
