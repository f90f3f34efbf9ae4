"""HYDRA's pruning stage (Sehwag et al. 2020): which weights stay is trained with the run's own loss, the weights are
not."""

import math

import torch

from sparserobust.config import Sparsifier
from sparserobust.settings import settings
from sparserobust.sparsifiers.targets import written
from sparserobust.sparsity import all_but_smallest, prunable


@settings
class LearnedScores(Sparsifier, kind="learned_scores"):
    """As released (inspire-group/hydra): the network computes with mask * w, and only a score s for each convolution
    and linear weight is trained. In every layer alike the share `sparsity` of smallest |s| is masked. The gradient
    passes straight through the ranking, as if the mask were |s|, and s moves by SGD at the learning rate of the run:

        s = sqrt(6 / fan_in) w / max|w|  at the start;     g = dloss/d(mask * w) * w * sign(s) + weight_decay s,
                                                           v <- momentum v + g,   s <- s - lr v

    so that training begins with the mask of `Magnitude(scope="layerwise")`, and counts of removed weights are rounded
    as there (released: rounded down). Weights stay bit for bit those of the run's `start`, and so do all other
    parameters: biases, scales of noise, and scales and shifts of norms too, which the released code still trains unless
    told `--freeze-bn`. Running statistics of norms move as in any training. Momentum and weight decay of the recipe
    have nothing to act on."""

    sparsity: float  # share of weights to remove, in each layer
    momentum: float = 0.9
    weight_decay: float = 1e-4  # of scores

    def check(self):
        self.require(0 <= self.sparsity < 1, f"sparsity is a share in [0, 1), got {self.sparsity:g}")
        self.require(0 <= self.momentum < 1, "momentum must lie in [0, 1)")
        self.require(self.weight_decay >= 0, "weight_decay cannot be negative")

    @torch.no_grad()
    def start(self, model):
        state = {}
        for name, layer in written(self, model).items():
            w, fan_in = layer.tensor, layer.filters[0].numel()
            largest = w.abs().max().clamp_min(torch.finfo(w.dtype).tiny)  # a layer of zeros has scores of zero
            state |= {name: w.clone(), f"score {name}": math.sqrt(6 / fan_in) * w / largest,
                      f"momentum {name}": torch.zeros_like(w)}
        self._mask(model, state)
        return state

    @torch.no_grad()
    def before_step(self, model, state, lr):
        for name, w in prunable(model).items():
            score, momentum = state[f"score {name}"], state[f"momentum {name}"]
            gradient = 0.0 if w.grad is None else w.grad * state[name] * score.sign()  # none where a layer is not used
            momentum.mul_(self.momentum).add_(gradient + self.weight_decay * score)
            score.sub_(momentum, alpha=lr)
        for p in model.parameters():
            p.grad = None  # the optimiser leaves alone what has no gradient, with its decay and momentum
        self._mask(model, state)

    def _mask(self, model, state: dict) -> None:
        """The network gets mask * w."""
        for name, w in prunable(model).items():
            sizes = state[f"score {name}"].abs().flatten()
            w.copy_(all_but_smallest(sizes, round(self.sparsity * len(sizes))).view_as(w) * state[name])

    def sparse_weights(self, model, state):
        # not their moving averages: those of masked weights fill zeros, those of constants are rounded
        return {name: p.detach() for name, p in model.named_parameters()}
