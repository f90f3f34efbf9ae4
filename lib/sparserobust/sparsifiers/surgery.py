"""Dynamic network surgery (Guo, Yao & Chen 2016): weights are pruned while they are trained, and those that turn out to
be needed come back."""

import torch
from torch import Tensor

from sparserobust.config import Sparsifier
from sparserobust.provenance import double
from sparserobust.settings import settings
from sparserobust.sparsifiers.targets import written
from sparserobust.sparsity import prunable


@settings
class DynamicNetworkSurgery(Sparsifier, kind="surgery"):
    """As released (yiwenguo/Dynamic-Network-Surgery): the network computes with mask * raw. The gradient, taken there,
    moves all of raw, so that a masked weight can grow and be spliced in again. Before iteration i, counted from 0, each
    layer by itself, with probability (1 + gamma i)^-power and while i < stop, revises its mask by the threshold t:

        mask = 0 where |raw| <= 0.9 t,   1 where |raw| > 1.1 t,   else as it was;     t = max(mean + rate * std, 0)

    with mean and standard deviation of |w| over the non-zero weights that training begins with. Unlike the released
    code it leaves biases alone, as all sparsity here does: they are not masked and do not enter t."""

    rates: tuple[float, ...]  # of each convolution and linear layer in order, or one for all; a higher one prunes more
    stop: int  # iterations (batches) after which masks stay
    gamma: float = 1e-4
    power: float = 1.0

    def check(self):
        self.require(len(self.rates) > 0, "rates are missing: one for each layer, or one for all")
        self.require(self.stop >= 0, "stop cannot be negative")
        self.require(min(self.gamma, self.power) >= 0, "gamma and power cannot be negative")

    @torch.no_grad()
    def start(self, model):
        written(self, model)
        weights = prunable(model)
        rates = self.rates * len(weights) if len(self.rates) == 1 else self.rates
        self.require(len(rates) == len(weights), f"{len(rates)} rates for {len(weights)} convolution and linear layers:"
                     " give each its own, or one for all")
        self.require(all(bool(w.any()) for w in weights.values()),
                     "a layer has zero weights only: surgery begins with a trained network, give the run a start")
        thresholds = [threshold(w, rate) for w, rate in zip(weights.values(), rates, strict=True)]
        state = {"iteration": torch.tensor(0), "thresholds": torch.tensor(thresholds, dtype=torch.float64)}
        for name, w in weights.items():
            state |= {name: w.clone(), f"mask {name}": torch.ones_like(w)}
        self._revise(model, state)
        return state

    @torch.no_grad()
    def before_step(self, model, state, lr):
        for name, w in prunable(model).items():
            w.copy_(state[name])

    @torch.no_grad()
    def after_step(self, model, state, lr):
        for name, w in prunable(model).items():
            state[name].copy_(w)
        state["iteration"] += 1
        self._revise(model, state)

    def _revise(self, model, state: dict) -> None:
        """Masks for the coming iteration; the network gets mask * raw."""
        iteration = int(state["iteration"])
        probability = (1 + self.gamma * iteration) ** -self.power if iteration < self.stop else 0.0
        for (name, w), t in zip(prunable(model).items(), state["thresholds"].tolist(), strict=True):
            raw, mask = state[name], state[f"mask {name}"]
            # what is certain is not drawn: at the start, outside the seeded epochs, dice would not be repeatable
            if probability == 1 or float(torch.rand(())) < probability:
                mask.masked_fill_(raw.abs() <= 0.9 * t, 0.0).masked_fill_(raw.abs() > 1.1 * t, 1.0)
            w.copy_(mask * raw)

    def sparse_weights(self, model, state):
        return {name: w.detach() for name, w in prunable(model).items()}  # not their moving average, which fills zeros


def threshold(w: Tensor, rate: float) -> float:
    """max(mean + rate * std, 0) of the magnitudes of the non-zero weights."""
    sizes = double(w[w != 0].abs())
    return max(float(sizes.mean() + rate * sizes.std(correction=0)), 0.0)
