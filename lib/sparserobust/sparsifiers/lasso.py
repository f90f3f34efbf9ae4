"""A penalty on the size of weights."""

import torch

from sparserobust.config import Sparsifier
from sparserobust.settings import settings
from sparserobust.sparsifiers import proximal
from sparserobust.sparsifiers.targets import acted_on, written
from sparserobust.sparsity import prunable


@settings
class Lasso(Sparsifier, kind="lasso"):
    """lam * sum of |w| over convolution and linear weights is added to the loss (Rakin et al. 2019). It makes weights
    small, not zero: gradient steps jump over zero, so something has to prune what is small (`Magnitude`)."""

    lam: float

    def check(self):
        self.require(self.lam >= 0, "lam cannot be negative")

    def start(self, model):
        acted_on(self, model)
        return {}

    def added_loss(self, model, state):
        return self.lam * torch.stack([w.abs().sum() for w in prunable(model).values()]).sum()


@settings
class ProximalLasso(Sparsifier, kind="proximal_lasso"):
    """The same penalty by proximal gradient steps (ISTA; Beck & Teboulle 2009): after each step of the optimiser,
    convolution and linear weights are shrunk by lr * lam and are exactly zero where they were smaller. It minimises
    loss + lam * sum of |w| for plain gradient descent; with momentum m it comes to rest where (1 - m) lam would, since
    momentum makes steps along the gradient 1 / (1 - m) times as long, but not the shrinkage."""

    lam: float

    def check(self):
        self.require(self.lam >= 0, "lam cannot be negative")

    def start(self, model):
        written(self, model)
        return {}

    @torch.no_grad()
    def after_step(self, model, state, lr):
        for w in prunable(model).values():
            w.copy_(proximal.l1(w, lr * self.lam))

    def sparse_weights(self, model, state):
        return {name: w.detach() for name, w in prunable(model).items()}  # not their moving average, which fills zeros
