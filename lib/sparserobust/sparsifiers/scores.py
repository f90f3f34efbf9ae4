"""HYDRA's pruning stage (Sehwag et al. 2020): which weights stay is trained with the run's own loss, the weights are
not."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sparserobust.config import Sparsifier
from sparserobust.settings import settings
from sparserobust.sparsifiers.targets import as_trained, drop_gradients, written
from sparserobust.sparsity import all_but_smallest, prunable, same_share


@settings
class LearnedScores(Sparsifier, kind="learned_scores"):
    """As released (inspire-group/hydra): the network computes with mask * w, and only a score s for each convolution
    and linear weight is trained. In every layer alike the share `sparsity` of smallest |s| is masked. The gradient
    passes straight through the ranking, as if the mask were |s|, and s moves by SGD at the learning rate of the run:

        s = sqrt(6 / fan_in) w / max|w|  at the start;     g = dloss/d(mask * w) * w * sign(s) + weight_decay s,
                                                           v <- momentum v + g,   s <- s - lr v

    so that training begins with the mask of `Magnitude(scope="layerwise")`, and counts of removed weights are rounded
    as there, one weight at least left (released: rounded down). Weights stay bit for bit those of the run's `start`,
    and so do all other parameters: biases, scales of noise, and scales and shifts of norms too, which the released code
    still trains unless told `--freeze-bn`. Running statistics of norms move as in any training. Momentum and weight
    decay of the recipe have nothing to act on."""

    sparsity: float  # share of weights to remove, in each layer
    momentum: float = 0.9
    weight_decay: float = 1e-4  # of scores

    def check(self):
        self.require(0 <= self.sparsity < 1, f"sparsity is a share in [0, 1), got {self.sparsity:g}")
        self.require(0 <= self.momentum < 1, "momentum must lie in [0, 1)")
        self.require(self.weight_decay >= 0, "weight_decay cannot be negative")

    @torch.no_grad()
    def start(self, model):
        state = self._scores(model)
        self._mask(model, state)
        return state

    @torch.no_grad()
    def before_step(self, model, state, lr):
        self._step(model, state, self._gradients(model, state), lr)

    def _scores(self, model) -> dict:
        """Of every layer its weights, scores and their momentum."""
        state: dict[str, Tensor] = {}
        for name, layer in written(self, model).items():
            w, fan_in = layer.tensor, layer.filters[0].numel()
            largest = w.abs().max().clamp_min(torch.finfo(w.dtype).tiny)  # a layer of zeros has scores of zero
            state |= {name: w.clone(), f"score {name}": math.sqrt(6 / fan_in) * w / largest,
                      f"momentum {name}": torch.zeros_like(w)}
        return state

    def _gradients(self, model, state: dict) -> dict[str, Tensor]:
        """Of the loss, with respect to the scores of each layer; zero where a layer is not used, or frozen."""
        return {name: torch.zeros_like(w) if w.grad is None else w.grad * state[name] * state[f"score {name}"].sign()
                for name, w in prunable(model).items()}

    def _step(self, model, state: dict, gradients: dict[str, Tensor], lr: float) -> None:
        """Scores move, then the network gets the new mask; nothing else in it moves."""
        for name, gradient in gradients.items():
            score, momentum = state[f"score {name}"], state[f"momentum {name}"]
            momentum.mul_(self.momentum).add_(gradient + self.weight_decay * score)
            score.sub_(momentum, alpha=lr)
        drop_gradients(model)
        self._mask(model, state)

    def _removed(self, state: dict, sizes: Sequence[int]) -> Sequence[int]:
        """How many weights the layers of these sizes lose."""
        return same_share(self.sparsity, sizes)

    def _mask(self, model, state: dict) -> None:
        """The network gets mask * w."""
        weights = prunable(model)
        masked = self._masked(state, weights, self._removed(state, [w.numel() for w in weights.values()]))
        for name, w in weights.items():
            w.copy_(masked[name])

    def _masked(self, state: dict, names: Iterable[str], removed: Sequence[int]) -> dict[str, Tensor]:
        """mask * w of the layers of these names, which lose so many weights."""
        return {name: all_but_smallest(state[f"score {name}"].abs().flatten(), count).view_as(state[name]) * state[name]
                for name, count in zip(names, removed, strict=True)}

    def sparse_weights(self, model, state):
        return as_trained(model)


@settings
class SharpScores(LearnedScores, kind="sharp_scores"):
    """`LearnedScores` in a flat valley (S2AP, Piras et al. 2025): the loss is that of the worst scores near s,

        min over s  max over z  loss(mask(s + z) * w),   |z| <= radius |s| in each layer
        z = radius |s| g / |g|,   g = dloss/ds at s;     s steps as there, along the gradient at s + z

    so that a mask is sought which small changes of scores do not harm. A step takes the loss twice, each time with an
    attack of its own, and so costs twice that of plain scores; whoever keeps the first attack's images pays less.
    Their radius differs from network to network; 0.01 is what adversarial weight perturbation takes (Wu et al. 2020).
    Unlike there it acts from the first epoch, and what is fine-tuned afterwards is not perturbed."""

    radius: float = 0.01  # share of the norm of a layer's scores

    def check(self):
        super().check()
        self.require(self.radius >= 0, "radius cannot be negative")

    @property
    def passes(self):
        return 2

    @torch.no_grad()
    def moved(self, model, state):
        for name, g in self._gradients(model, state).items():
            score = state[f"score {name}"]
            z = self.radius * score.norm() * (g / g.norm().clamp_min(torch.finfo(g.dtype).tiny))
            state |= {f"unmoved {name}": score, f"score {name}": score + z}
        self._mask(model, state)
        return True

    @torch.no_grad()
    def before_step(self, model, state, lr):
        gradients = self._gradients(model, state)
        for name in gradients:
            state[f"score {name}"] = state.pop(f"unmoved {name}")
        self._step(model, state, gradients, lr)
