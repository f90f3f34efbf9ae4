"""ADMM with a cap on what stays (Zhang et al. 2018), the method that Dinh et al. 2020 compare theirs with: once done as
it is meant, once with the flaws of the code that was released.

    minimise f(w) subject to w = z, z sparse:   z <- project(w + dual),   dual <- dual + w - z,
                                                w <- w - lr (grad f(w) + rho (w - z + dual))

Against relaxed splitting it has the dual variable, which closes the gap between w and z, and a cap in place of a
penalty: how much is removed is chosen, not found.
"""

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from sparserobust.config import Sparsifier
from sparserobust.settings import settings
from sparserobust.sparsifiers.targets import convolving, written
from sparserobust.sparsity import all_but_smallest, channel_norms


@settings
class ADMM(Sparsifier, kind="admm"):
    """Done as it is meant: in every convolution the projection removes the share `sparsity` of the weights (or input
    channels) that are smallest, rounded down; w is pulled once per batch, the dual lives as long as training, and at
    the end w is projected, so that zeros are zeros."""

    sparsity: float  # share to remove
    granularity: str = "weight"  # weight | channel
    rho: float = 1e-2  # strength of the pull

    def check(self):
        self.require(0 <= self.sparsity < 1, f"sparsity is a share in [0, 1), got {self.sparsity:g}")
        self.choice("granularity", "weight", "channel")
        self.require(self.rho > 0, "rho must be positive")

    def project(self, w: Tensor) -> Tensor:
        """The nearest tensor to w (out, in, *kernel) of which the share `sparsity` is zero."""
        size = w.abs().flatten() if self.granularity == "weight" else channel_norms(w)
        kept = all_but_smallest(size, self._removed(len(size))).to(w)
        return w * kept.view(w.shape if self.granularity == "weight" else (-1, *[1] * (w.dim() - 2)))

    def _removed(self, size: int) -> int:
        """Of so many: the share as it is written, rounded down (29 of 100 are 0.29 of them, and in floats less)."""
        return math.floor(Fraction(repr(float(self.sparsity))) * size)

    @torch.no_grad()
    def start(self, model):
        weights = written(self, model, convolutions=True)
        sizes = [w.tensor.numel() if self.granularity == "weight" else w.channels.shape[1] for w in weights.values()]
        self.require(self._removed(max(sizes)) > 0 or not self.sparsity, f"{self.sparsity:g} of {max(sizes)}, "
                     "the most that a layer has, is rounded down to none: there is nothing to remove")
        return ({name: w.by_channels(self.project, w.tensor) for name, w in weights.items()}
                | {f"dual {name}": torch.zeros_like(w.tensor) for name, w in weights.items()})

    @torch.no_grad()
    def before_step(self, model, state, lr):
        weights = convolving(model)
        for name, layer in weights.items():
            w, z, dual = layer.tensor, state[name], state[f"dual {name}"]
            z.copy_(layer.by_channels(self.project, w + dual))
            dual.add_(w - z)
            for _ in range(self.pulls(len(weights))):
                w.sub_(w - z + dual, alpha=lr * self.rho)

    def pulls(self, layers: int) -> int:
        """How often w is pulled in each batch."""
        return 1

    def sparse_weights(self, model, state):
        return {name: w.by_channels(self.project, w.tensor.detach()) for name, w in convolving(model).items()}


@settings
class ReleasedADMM(ADMM, kind="admm_released"):
    """As in the released `main.py`, faults included: single weights are cut at a percentile of their *signed* values,
    channels at a percentile of norms half of which are already overwritten by 0 and 1; the pull stands inside a second
    loop over layers, so it acts once per convolution of the net; the dual is forgotten after every epoch; and w is
    never projected, so only what the pull brings down to zero counts as removed. (The code also forgets the optimiser's
    momentum after every epoch, with all its methods; that is not copied.)"""

    def project(self, w):
        percent, array = 100 * self.sparsity, w.cpu().numpy()
        if self.granularity == "weight":
            return torch.where(w.abs() < float(np.percentile(array, percent)), 0.0, w)
        flags = np.sqrt((array**2).sum((0, *range(2, array.ndim))) + 1e-8)
        for i in range(len(flags)):
            flags[i] = flags[i] > np.percentile(flags, percent)
        return w * torch.from_numpy(flags).to(w).view(-1, *[1] * (w.dim() - 2))

    def pulls(self, layers):
        return layers

    @torch.no_grad()
    def after_epoch(self, model, state):
        state |= self.start(model)

    def sparse_weights(self, model, state):
        return {}
