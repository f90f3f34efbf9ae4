"""Relaxed splitting: RVSM for weights, RGSM for channels (Dinh et al. 2020, algorithms 1 and 2).

    minimise  f(w) + penalty(u) + beta / 2 |w - u|^2      by     w <- w - lr (grad f(w) + beta (w - u)),   u <- prox(w)

w is trained, u is sparse and pulls w; at the end w is replaced by u. Only convolution weights take part.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from sparserobust.config import Sparsifier
from sparserobust.provenance import double
from sparserobust.settings import settings
from sparserobust.sparsifiers import proximal
from sparserobust.sparsifiers.targets import convolving, written
from sparserobust.sparsity import channel_norms, channels


@settings
class Splitting(Sparsifier):
    """What RVSM and RGSM share, and where the paper and its released code differ. Defaults follow the paper, except
    that u is computed from the new w: the paper prints the old one, but its theorem and its code need the new one."""

    beta: float  # strength of the pull of w towards u
    pull: str = "decoupled"  # decoupled: straight into w (as released) | gradient: through the optimiser's momentum
    u_from: str = "new"  # new: u = prox(w after the step) | old: prox(w before it), as printed
    replace: str = "end"  # w <- u: at the end | every_epoch (released RVSM) | swap w and u every epoch (released RGSM)

    def check(self):
        self.require(self.beta > 0, "beta must be positive")
        self.choice("pull", "decoupled", "gradient")
        self.choice("u_from", "new", "old")
        self.choice("replace", "end", "every_epoch", "swap")

    @abstractmethod
    def prox(self, w: Tensor) -> Tensor:
        """The sparse u nearest to w, (out, in, *kernel) to the same shape."""

    @abstractmethod
    def penalty_of(self, u: Tensor) -> float:
        """penalty(u) of one convolution (out, in, *kernel): u = prox(w) minimises penalty(u) + beta / 2 |w - u|^2."""

    def start(self, model):
        return {name: w.by_channels(self.prox, w.tensor.detach()).clone()
                for name, w in written(self, model, convolutions=True).items()}

    @torch.no_grad()
    def before_step(self, model, state, lr):
        for name, layer in convolving(model).items():
            w, u = layer.tensor, state[name]
            printed = layer.by_channels(self.prox, w) if self.u_from == "old" else None
            if self.pull == "decoupled":
                w.add_(w - u, alpha=-lr * self.beta)
            elif w.grad is None:  # a layer that is not used
                w.grad = self.beta * (w - u)
            else:
                w.grad.add_(w - u, alpha=self.beta)
            if printed is not None:
                u.copy_(printed)

    @torch.no_grad()
    def after_step(self, model, state, lr):
        if self.u_from == "new":
            for name, w in convolving(model).items():
                state[name].copy_(w.by_channels(self.prox, w.tensor))

    @torch.no_grad()
    def after_epoch(self, model, state):
        if self.replace == "end":
            return
        for name, w in convolving(model).items():
            dense = w.tensor.clone()
            w.tensor.copy_(state[name])
            if self.replace == "swap":
                state[name].copy_(dense)

    def sparse_weights(self, model, state):
        if self.replace == "swap":  # w and u have just changed places: w is the sparse one
            return {name: w.tensor.detach() for name, w in convolving(model).items()}
        return dict(state)


@settings
class RVSM(Splitting, kind="rvsm"):
    """Relaxed variable splitting: sparsity of single weights (eq. 4, algorithm 1). With l0 the threshold is
    sqrt(2 lam / beta)."""

    lam: float = 1e-6
    penalty: str = "l0"  # l0 | l1 | tl1 (transformed l1 with parameter a)
    a: float = 1.0

    def check(self):
        super().check()
        self.require(self.lam >= 0, "lam cannot be negative")
        self.require(self.a > 0, "a must be positive")
        self.choice("penalty", "l0", "l1", "tl1")

    def prox(self, w):
        level = self.lam / self.beta
        if self.penalty == "tl1":
            return proximal.transformed_l1(w, level, self.a)
        return proximal.l0(w, level) if self.penalty == "l0" else proximal.l1(w, level)

    def penalty_of(self, u):
        size = double(u.detach()).abs()
        if self.penalty == "tl1":
            size = (self.a + 1) * size / (self.a + size)
        return self.lam * (size != 0 if self.penalty == "l0" else size).sum().item()


@settings
class RGSM(Splitting, kind="rgsm"):
    """Relaxed group-wise splitting: sparsity of input channels (eqs. 5 and 6, algorithm 2). The group l0 threshold is
    sqrt(2 lambda1 / beta); lambda2 weighs a group lasso in the loss."""

    beta: float = 1.0
    lambda1: float
    lambda2: float = 1e-5
    penalty: str = "group_l0"  # group_l0 (as released) | group_l1

    def check(self):
        super().check()
        self.require(min(self.lambda1, self.lambda2) >= 0, "lambda1 and lambda2 cannot be negative")
        self.choice("penalty", "group_l0", "group_l1")

    def added_loss(self, model, state):
        if not self.lambda2:
            return 0.0
        # 1e-8 under the root keeps the gradient of a channel at zero finite, as released
        norms = [(w.float().pow(2).sum((0, *range(2, w.dim()))) + 1e-8).sqrt().sum() for w in channels(model).values()]
        return self.lambda2 * torch.stack(norms).sum()

    def prox(self, w):
        level = self.lambda1 / self.beta
        return proximal.group_l0(w, level) if self.penalty == "group_l0" else proximal.group_l1(w, level)

    def penalty_of(self, u):
        norms = channel_norms(u)
        return self.lambda1 * (norms != 0 if self.penalty == "group_l0" else norms).sum().item()
