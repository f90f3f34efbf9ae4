"""Dynamic sparse training: as sparse as at the end from the first step on, while the mask moves (SET, Mocanu et al.
2018; RigL, Evci et al. 2020; with attacked images Flying Bird, Chen et al. 2022)."""

import math

import torch
from torch import Tensor

from sparserobust.config import Sparsifier
from sparserobust.settings import settings
from sparserobust.sparsifiers.rates import erk, proportional
from sparserobust.sparsifiers.targets import as_trained, written
from sparserobust.sparsity import all_but_smallest, mask_weights, prunable


@settings
class DynamicSparse(Sparsifier, kind="dynamic_sparse"):
    """The first mask is drawn at random within each layer, from the run's seed, and removes exactly the share
    `sparsity` of all convolution and linear weights. Whenever `every` further steps are done, as long as fewer than
    `stop` are, each layer drops the smallest of its kept weights and grows as many masked ones:

        share / 2 (1 + cos(pi done / stop)) * kept    weights, rounded

    those where the gradient of the next batch is largest in magnitude (RigL), or, as a control, at random (SET). The
    next step already moves them. What was just dropped may grow again and then keeps its value; all else begins at
    zero. RigL updates the mask in place of a step; Flying Bird does so after it, every 900 or 1200 steps, with
    share 0.5 and random growth unless told otherwise.

    - The number of masked weights never changes. A kept weight that has got no gradient other than zero since it grew
      is zero, too, so that a dead unit may raise the counted sparsity.
    - Of a `start` the weights are taken over, and not which of them are zero: zeros that are kept begin at zero.
    - Masked weights get no gradient. What is left of a dropped weight's momentum fades by the recipe's factor at each
      step and is not reset, as the released codes do; it acts on the weight only if that grows again meanwhile.
    - The recipe's averaging has nothing to act on: the average over masks that move has no zeros."""

    sparsity: float  # share of weights that is masked
    every: int  # steps (batches) between updates of the mask
    stop: int  # steps after which it stays
    share: float = 0.3  # of a layer's kept weights, exchanged at the beginning; 0: the first mask stays
    growth: str = "gradient"  # gradient | random
    rates: str = "erk"  # what each layer keeps: erk (as `sparsifiers.rates` has it) | uniform, the same share

    def check(self):
        self.require(0 <= self.sparsity < 1, f"sparsity is a share in [0, 1), got {self.sparsity:g}")
        self.require(0 <= self.share <= 1, f"share is one in [0, 1], got {self.share:g}")
        self.require(self.every > 0 and self.stop >= 0, "every starts at 1, and stop cannot be negative")
        self.choice("growth", "gradient", "random")
        self.choice("rates", "erk", "uniform")

    @torch.no_grad()
    def start(self, model):
        layers = written(self, model)
        sizes = [layer.tensor.numel() for layer in layers.values()]
        removed = round(self.sparsity * sum(sizes))
        if self.rates == "erk":
            counts = erk([layer.filters.shape for layer in layers.values()], removed)
        else:
            kept = proportional(sizes, sizes, sum(sizes) - removed)
            counts = [size - k for size, k in zip(sizes, kept, strict=True)]
        state = {"steps": torch.tensor(0)}
        for (name, layer), count in zip(layers.items(), counts, strict=True):
            w = layer.tensor
            state[name] = (torch.randperm(w.numel()) >= count).view_as(w).to(w)  # on the CPU: the same on every device
        mask_weights(model, state)
        return state

    @torch.no_grad()
    def before_step(self, model, state, lr):
        done = int(state["steps"])
        for name, w in prunable(model).items():
            if w.grad is None:  # a layer that is not used
                continue
            if 0 < done < self.stop and done % self.every == 0:
                share = self.share / 2 * (1 + math.cos(math.pi * done / self.stop))
                by = w.grad.abs() if self.growth == "gradient" else torch.rand(w.shape).to(w)  # on the CPU, too
                state[name].copy_(moved(state[name], w, share, by))
                w.mul_(state[name])
            w.grad.mul_(state[name])

    @torch.no_grad()
    def after_step(self, model, state, lr):
        mask_weights(model, state)
        state["steps"] += 1

    def sparse_weights(self, model, state):
        return as_trained(model)


def moved(mask: Tensor, w: Tensor, share: float, by: Tensor) -> Tensor:
    """A mask of 0 and 1 with as many ones, all tensors of one shape: the `share` of the kept weights w that is smallest
    is dropped, then as many grow where `by`, which is not negative, is largest. Ties are broken by position."""
    masked = (mask == 0).flatten()
    count = int(masked.sum())
    dropped = round(share * (len(masked) - count))
    kept = all_but_smallest(w.abs().flatten().masked_fill(masked, -1.0), count + dropped)
    return all_but_smallest(by.flatten().masked_fill(kept > 0, math.inf), count).view_as(mask)
