"""How much of each layer goes, where not all lose the same share."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from sparserobust.errors import UserError
from sparserobust.provenance import double
from sparserobust.settings import settings
from sparserobust.sparsifiers.scores import LearnedScores
from sparserobust.sparsity import prunable


def erk(shapes: Sequence[Sequence[int]], removed: int) -> list[int]:
    """Erdos-Renyi-Kernel (Mocanu et al. 2018; Evci et al. 2020): how many of `removed` weights each layer loses, of
    shapes (out, in of one group, *kernel). What a layer keeps is proportional to the sum of its shape, so that its
    density is to (out + in + kh + kw) / (out in kh kw). `UserError` if less than a weight a layer is left."""
    sizes = [math.prod(shape) for shape in shapes]
    kept = proportional([sum(shape) for shape in shapes], sizes, sum(sizes) - removed)
    return [size - k for size, k in zip(sizes, kept, strict=True)]


def proportional(shares: Sequence[float], sizes: Sequence[int], kept: int) -> list[int]:
    """How many weights layers of these sizes keep, `kept` in all: in proportion to positive `shares`, but one at least
    and not more than there are, with the others scaled anew. Rounded by largest remainders; of equal ones the first
    layer gets more. `UserError` if less than a weight a layer is left."""
    if kept < len(sizes):
        raise UserError(f"{kept} of {sum(sizes)} weights for {len(sizes)} layers: no layer can do with none, lower the "
                        "sparsity")
    exact = [Fraction(share) for share in shares]

    def scaled(c: Fraction) -> list[Fraction]:
        return [min(max(c * share, Fraction(1)), Fraction(size)) for share, size in zip(exact, sizes, strict=True)]

    # what is kept in all grows with c, in a straight line from one scale at which a layer meets a bound to the next
    corners = sorted(Fraction(n) / share for share, size in zip(exact, sizes, strict=True) for n in (1, size))
    above = bisect_left(corners, Fraction(kept), key=lambda c: sum(scaled(c), Fraction()))
    a, b = corners[max(above - 1, 0)], corners[above]
    low, high = sum(scaled(a)), sum(scaled(b))
    wanted = scaled(a + (b - a) * (kept - low) / ((high - low) or 1))
    counts = [math.floor(w) for w in wanted]
    for i in sorted(range(len(sizes)), key=lambda i: counts[i] - wanted[i])[:kept - sum(counts)]:
        counts[i] += 1
    return counts


@settings
class LearnedRates(LearnedScores, kind="learned_rates"):
    """`LearnedScores` that learns the share k of weights which each layer keeps, too (HARP, Zhao & Wressnegger 2023).
    With target = 1 - sparsity and kept = the sum of k n over the layers of n weights, over the sum of n:

        k = k_min + (1 - k_min) sigmoid(r),   k_min = least * target;   loss + gamma_t max(kept / target - 1, 0)
        dloss/dk = sum over the layer of w * dloss/d(mask * w), as if the mask grew evenly with k, within [-1, 1]

    and r moves as scores do. gamma_t = gamma (1 + epochs done) grows until an epoch ends on target. As released, every
    layer begins at a tenth, or on target if that is more; not as released, dloss/dk is clipped: where a narrow network
    has channels without weights, norms amplify it a hundredfold a layer. What is validated and handed over has exactly
    round(sparsity * n) zeros: all k are multiplied by one number, but no layer keeps more than all or less than one
    weight (`proportional`)."""

    gamma: float = 0.1  # released: 0.01 for 20 epochs of 391 steps
    least: float = 0.1  # k of a layer, as a share of the target, is not smaller
    rates_lr: float = 1.0  # learning rate of r, times that of the run

    def check(self):
        super().check()
        self.require(self.gamma >= 0, "gamma cannot be negative")
        self.require(self.rates_lr >= 0, "rates_lr cannot be negative")
        self.require(0 < self.least < 1, "least must lie between 0 and 1")

    @property
    def target(self) -> float:
        return 1 - self.sparsity

    @property
    def k_min(self) -> float:
        return self.least * self.target

    @torch.no_grad()
    def start(self, model):
        state = self._scores(model)
        sizes = _sizes(model)
        begin = torch.full_like(sizes, (max(self.target, 0.1) - self.k_min) / (1 - self.k_min))
        state |= {"rates": begin.logit(1e-3), "rates momentum": torch.zeros_like(sizes),
                  "epochs": torch.tensor(0), "met": torch.tensor(False)}
        self.sparse_weights(model, state)  # a target that is too small is said now
        self._mask(model, state)
        return state

    def rates(self, state: dict) -> Tensor:
        """k of each layer, (layers,)."""
        return self.k_min + (1 - self.k_min) * state["rates"].sigmoid()

    def excess(self, model, state: dict) -> float:
        """kept / target - 1."""
        sizes = _sizes(model)
        return float((self.rates(state) * sizes).sum() / sizes.sum()) / self.target - 1

    @torch.no_grad()
    def before_step(self, model, state, lr):
        sizes = _sizes(model)
        gradient = torch.stack([double(torch.zeros_like(w).sum()) if w.grad is None else
                                (double(w.grad) * double(state[name])).sum() for name, w in prunable(model).items()])
        gradient = gradient.cpu().clamp(-1, 1)
        if self.excess(model, state) > 0:
            gradient += self.gamma * (1 + int(state["epochs"])) * sizes / sizes.sum() / self.target
        s = state["rates"].sigmoid()
        gradient = gradient * (1 - self.k_min) * s * (1 - s) + self.weight_decay * state["rates"]
        state["rates momentum"].mul_(self.momentum).add_(gradient)
        state["rates"].sub_(state["rates momentum"], alpha=self.rates_lr * lr)
        self.require(bool(state["rates"].isfinite().all()), "the shares of layers are no numbers any more: lower lr")
        super().before_step(model, state, lr)

    def after_epoch(self, model, state):
        state["met"] |= round(self.excess(model, state), 4) <= 0
        state["epochs"] += ~state["met"]

    def _removed(self, state, sizes):
        return [min(round((1 - k) * size), size - 1) for k, size in zip(self.rates(state).tolist(), sizes, strict=True)]

    @torch.no_grad()
    def sparse_weights(self, model, state):
        sizes = [int(size) for size in _sizes(model)]
        shares = (self.rates(state) * _sizes(model)).tolist()
        kept = proportional(shares, sizes, sum(sizes) - round(self.sparsity * sum(sizes)))
        removed = [size - count for size, count in zip(sizes, kept, strict=True)]
        return super().sparse_weights(model, state) | self._masked(state, prunable(model), removed)


def _sizes(model) -> Tensor:
    """Weights of each layer, (layers,)."""
    return torch.tensor([w.numel() for w in prunable(model).values()], dtype=torch.float64)
