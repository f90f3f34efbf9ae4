"""SGD and Adam, by the functions behind `torch.optim`: its classes import a compiler when the first one is made, which
takes longer than many a training here."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd


class SGD:
    """Moves `parameters`, name to tensor, along their gradients, with Nesterov momentum; `decay` maps names to weight
    decay, 0 for all others. Parameters without a gradient stay. `buffers` are the momenta, name to tensor."""

    def __init__(self, parameters: Mapping[str, Tensor], momentum: float, decay: dict[str, float] | None = None):
        self.parameters, self.momentum = parameters, momentum
        self.decay = {name: (decay or {}).get(name, 0.0) for name in parameters}
        self.buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for decay in set(self.decay.values()):
            names = [n for n, p in self.parameters.items() if self.decay[n] == decay and p.grad is not None]
            buffers = [self.buffers.get(name) for name in names]
            gradients = [g for n in names if (g := self.parameters[n].grad) is not None]
            sgd([self.parameters[n] for n in names], gradients, buffers, lr=lr,
                momentum=self.momentum, nesterov=self.momentum > 0, weight_decay=decay, dampening=0.0, maximize=False)
            self.buffers |= {name: b for name, b in zip(names, buffers, strict=True) if b is not None}


class Adam:
    """Moves one tensor `x` along gradients that are handed to it (Kingma & Ba 2015)."""

    def __init__(self, x: Tensor, lr: float):
        self.x, self.lr = x, lr
        none: list[Tensor] = []
        self.state = [torch.zeros_like(x)], [torch.zeros_like(x)], none, [torch.tensor(0.0)]

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        adam([self.x], [gradient], *self.state, amsgrad=False, beta1=0.9, beta2=0.999, lr=self.lr, weight_decay=0.0,
             eps=1e-8, maximize=False)
