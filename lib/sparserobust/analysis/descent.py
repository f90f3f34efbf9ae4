"""Theorem 1 of Dinh et al. 2020, on a net so small that every step can be measured exactly.

    L(w, u) = f(w) + penalty(u) + beta / 2 |w - u|^2        never rises as long as        lr < 2 / (beta + L)

where f is the loss (for RGSM with its group lasso) and the number L a Lipschitz constant of grad f along the path. The
theorem speaks of plain gradient descent on all images; momentum and minibatches are there to see what they change.
"""

from itertools import count

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sparserobust import data
from sparserobust.config import Data
from sparserobust.errors import UserError
from sparserobust.optimisers import SGD
from sparserobust.provenance import with_threads
from sparserobust.seeding import global_seed, stream
from sparserobust.sparsifiers.splitting import Splitting


def small_net(seed: int = 0, smooth: bool = True, batch_norm: bool = False) -> nn.Sequential:
    """Images (n, 1, 8, 8) to logits (n, 10), in float64: two 3x3 convolutions (8 and 16 channels, the second with
    stride 2), each followed by softplus (`smooth`) or ReLU, then global mean and a linear layer."""
    layers = []
    with global_seed(seed, "init"):
        for channels_in, channels, stride in ((1, 8, 1), (8, 16, 2)):
            # no bias in front of a BatchNorm: it would have no effect, and a gradient of nothing but rounding
            convolution = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=not batch_norm)
            nn.init.kaiming_normal_(convolution.weight)
            layers += [convolution, *([nn.BatchNorm2d(channels)] if batch_norm else []),
                       nn.Softplus() if smooth else nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).double()


@with_threads(1)
def follow(splitting: Splitting, lr: float, steps: int, seed: int = 0, images: int = 300, momentum: float = 0.0,
           batch_size: int | None = None, smooth: bool = True, batch_norm: bool = False):
    """Train `small_net` with RVSM or RGSM on the first training images of digits, with cross entropy, and watch what
    theorem 1 speaks of (Dinh et al. 2020, algorithms 1 and 2).

    Returns a pandas table with one row for each step t, from (w^t, u^t) to (w^t+1, u^t+1). Norms are l2; everything is
    measured on all images, also where a step sees but a minibatch of them.

        step              t, from 0
        lagrangian        L(w^t, u^t), in nats
        gradient_norm     |grad_w L(w^t, u^t)| over all parameters
        lipschitz         |grad f(w^t+1) - grad f(w^t)| / |w^t+1 - w^t|
        lipschitz_layer   the same for each parameter tensor by itself, the largest (assumption 1); never the smaller
        longest_lr        2 / (beta + the largest lipschitz so far): the theorem wants lr below it
        distance          |w^t - u^t| over the convolutions
        nonzero           entries of u^t that are not zero
        flipped           entries of u that become zero in this step, or cease to be

    `lipschitz` knows the two ends of a step and not what lies between: it estimates from below. Momentum is Nesterov's,
    BatchNorm stays in training mode. Raises `UserError` for settings that cannot be followed.
    """
    import pandas

    if splitting.replace != "end":
        raise UserError(f"theorem 1 knows no epochs: replace must be 'end', not '{splitting.replace}'")
    if lr <= 0 or steps < 1 or not 0 <= momentum < 1 or (batch_size is not None and batch_size < 1):
        raise UserError("lr must be positive, steps and batch_size start at 1, and momentum lies in [0, 1)")
    split = data.load(Data(train_images=images)).train
    # centred and stretched: on [0, 1] the loss would stay on a plateau for hundreds of steps
    pixels, labels = 10 * (split.images - split.images.mean()).double(), split.labels
    model = small_net(seed, smooth, batch_norm)
    weights = dict(model.named_parameters())
    u = splitting.start(model)
    optimiser = SGD(weights, momentum)

    def loss_and_gradient(chosen=slice(None)):
        loss = cross_entropy(model(pixels[chosen]), labels[chosen]) + splitting.added_loss(model, u)
        return loss.item(), dict(zip(weights, torch.autograd.grad(loss, weights.values()), strict=True))

    rows, largest = [], 0.0
    loss, gradient = loss_and_gradient()
    for step, chosen in zip(range(steps), _minibatches(seed, images, batch_size), strict=False):
        w = {name: p.detach().clone() for name, p in weights.items()}
        gap = {name: w[name] - u[name] for name in u}
        kept = {name: u[name] != 0 for name in u}
        penalty = sum(splitting.penalty_of(sparse) for sparse in u.values())
        row = {"step": step, "lagrangian": loss + penalty + splitting.beta / 2 * _length(gap) ** 2,
               "gradient_norm": _length({name: g + splitting.beta * gap.get(name, 0) for name, g in gradient.items()})}

        downhill = gradient if batch_size is None else loss_and_gradient(chosen)[1]
        for name, p in weights.items():
            p.grad = downhill[name].clone()
        splitting.before_step(model, u, lr)
        optimiser.step(lr)
        splitting.after_step(model, u, lr)

        gradient_before, (loss, gradient) = gradient, loss_and_gradient()
        bend = {name: gradient[name] - gradient_before[name] for name in w}
        move = {name: p.detach() - w[name] for name, p in weights.items()}
        lipschitz = _length(bend) / _length(move)
        largest = max(largest, lipschitz)
        rows.append(row | {
            "lipschitz": lipschitz,
            "lipschitz_layer": torch.stack([bend[name].norm() / move[name].norm() for name in w]).max().item(),
            "longest_lr": 2 / (splitting.beta + largest),
            "distance": _length(gap),
            "nonzero": sum(int(k.sum()) for k in kept.values()),
            "flipped": sum(int((kept[name] != (u[name] != 0)).sum()) for name in u),
        })
    return pandas.DataFrame(rows)


def rises(frame) -> int:
    """Number of steps of `follow` at which the Lagrangian rises, by more than rounding (a relative 1e-10)."""
    values = frame["lagrangian"].to_numpy()
    falls = values[1:] <= values[:-1] * (1 + 1e-10)  # never so for nan: where a path has diverged counts as rising
    return int((~falls).sum())


def bound(frame, lr: float):
    """A bound on the smallest `gradient_norm` of the first T steps, as a column with T = 1, 2, ...

        sqrt( L_0 / (lr (1 - lr (beta + L) / 2) T) )      L_0: first lagrangian, L: largest lipschitz of these T steps

    and infinity where lr is not below 2 / (beta + L). It is this project's derivation (the paper states the order, its
    proof is not on record): with u held, a step lowers the Lagrangian by at least lr (1 - lr (beta + L) / 2) |grad|^2;
    u = prox(w) does not raise it; and it is never negative. So it holds for plain gradient descent with u from the new
    w, as far as the largest `lipschitz`, an estimate from below, comes up to L.
    """
    share = lr / frame["longest_lr"]
    squared = frame["lagrangian"].iloc[0] / (lr * (1 - share) * (frame["step"] + 1))
    return squared.where(share < 1, float("inf")) ** 0.5


def _minibatches(seed: int, images: int, batch_size: int | None):
    """Without end: indices of minibatches, reshuffled for every pass over the images as in training."""
    for epoch in count():
        yield from torch.randperm(images, generator=stream(seed, "order", epoch)).split(batch_size or images)


def _length(tensors: dict) -> float:
    """Joint l2 norm."""
    return torch.cat([t.flatten() for t in tensors.values()]).norm().item()
