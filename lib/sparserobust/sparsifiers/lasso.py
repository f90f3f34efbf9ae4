"""A penalty on the size of weights."""

import torch

from sparserobust.config import Sparsifier, settings
from sparserobust.sparsity import prunable


@settings
class Lasso(Sparsifier, kind="lasso"):
    """lam * sum of |w| over convolution and linear weights is added to the loss (Rakin et al. 2019). It makes weights
    small, not zero: gradient steps jump over zero, so something has to prune what is small (`Magnitude`)."""

    lam: float

    def check(self):
        self.require(self.lam >= 0, "lam cannot be negative")

    def added_loss(self, model, state):
        return self.lam * torch.stack([w.abs().sum() for w in prunable(model).values()]).sum()
