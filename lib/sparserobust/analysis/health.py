"""Whether the accuracy of a trained network under attack can be believed, and whether training
lost it: masked gradients (Athalye et al. 2018), catastrophic overfitting (Wong et al. 2020), robust
overfitting (Rice et al. 2020)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sparserobust import imagewise, inputs
from sparserobust.answers import STILL_RANDOM, is_random, mean_logits, under_attack
from sparserobust.attacks import check_radius, into_ball, random_in_ball
from sparserobust.config import Measurement
from sparserobust.evaluation import BATCH
from sparserobust.models import noise_off
from sparserobust.query_attacks import Square
from sparserobust.seeding import global_seed, stream
from sparserobust.settings import settings

DRAWS = 10  # of a noisy network's loss: one draw scatters by a tenth or more

# What `symptoms` goes by. In brackets: ResNet-8 on digits, trained against PGD of the radius
# measured, 100 images, with and without noise.
LOWEST_RATIO = 0.5  # accuracy under PGD over that under FGSM (0.7 to 1); Wong et al. report 0
LARGEST_RISE = 0.15  # of the loss from 20 to 50 steps (up to 0.07; with noise up to 0.1)
MOST_BEATEN = 0.02  # share of images that Square fools and PGD does not (up to 0.02)
MOST_BLOCKED = 0.1  # share of images without a gradient (0); some a confident answer rounds off
ERRORS = 3  # standard errors of a rate that lies above its limit not by chance of the sample


@settings
class Health(Measurement, kind="health"):
    """On `images` test images (all, for None), in the l-infinity ball of radius `epsilon`, which
    should be that of training. The value is the accuracy under PGD of the most steps divided by
    the accuracy under FGSM, None where the latter is zero: 1 or a little below in a healthy
    network, near 0 after catastrophic overfitting.

        clean, fgsm, pgd, square  accuracy without attack, and under each; Square has `queries`
        loss_k, accuracy_k        mean cross entropy, and accuracy, after k of PGD's `steps`, all on
                                  one path
        still_rising              relative growth of the loss between the last two of `steps`: 0
                                  where the attack has converged, None from a loss of zero
        square_below_pgd          share of images that Square fools and PGD does not: where a black
                                  box finds more than a white box, gradients mislead
        zero_gradient             share of correctly classified images whose loss has an input
                                  gradient that is exactly zero or not finite, None if all are wrong
        chance, images            one over the number of classes, and the number of images

    PGD takes steps of epsilon / 4 from a random start. A noisy network is attacked with its noise
    on; every answer is one fresh draw, and the losses are means over `DRAWS`. Against noise, Square
    is weak: only noise that spares the answers is seen to mask gradients. `noise: false` silences
    it. A mean that is not finite is None."""

    epsilon: float
    images: int | None = 100
    steps: tuple[int, ...] = (1, 5, 10, 20, 50)
    queries: int = 200
    noise: bool = True
    sampled: ClassVar[bool] = True

    def check(self):
        check_radius(self)
        self.require(self.epsilon > 0, "epsilon must be positive")
        self.require(self.images is None or self.images > 0, "images must be positive")
        rising = list(self.steps) == sorted(set(self.steps))
        self.require(rising and len(self.steps) > 1 and self.steps[0] >= 1,
                     "steps are two or more numbers that rise, from 1")
        self.require(self.queries >= 1, "queries start at 1")

    @property
    def cost(self):
        square = Square(epsilon=self.epsilon, queries=self.queries)
        return (self.images or 10_000) / 10_000 * (self.steps[-1] + 4 + square.cost)

    def __call__(self, model, splits):
        if not self.noise:
            with noise_off(model):
                self.require(not is_random(model, splits.test.sample(self.images).images), STILL_RANDOM)
                return self._measured(model, splits)
        return self._measured(model, splits)

    def _measured(self, model, splits) -> dict:
        split, found = splits.test.sample(self.images), []
        square = Square(epsilon=self.epsilon, queries=self.queries)
        classes = len(splits.classes or ()) or inputs.asked(model, split.images[:1]).shape[1]
        with under_attack(model), global_seed(0, "health noise", self.identity):
            chance = stream(0, "health", self.identity, device=split.images.device)
            for images, labels in zip(split.images.split(BATCH), split.labels.split(BATCH),
                                      strict=True):
                images = images.contiguous(memory_format=torch.channels_last)
                uphill = input_gradient(model, images, labels)
                fgsm = stepped(images, uphill, self.epsilon, images, self.epsilon)
                losses, path = pgd_path(model, images, labels, self.epsilon, self.steps, chance)
                squared = square(model, images, labels, chance)
                hits = [answers(model, x, labels)[1] for x in (images, fgsm, squared)]
                flat = uphill.flatten(1)
                blocked = ~flat.isfinite().all(1) | ~flat.any(1)
                found.append((*hits, blocked, losses, path))
        clean, fgsm, squared, blocked, losses, path = (
            torch.cat(each, dim=-1).cpu() for each in zip(*found, strict=True))
        right = {"clean": clean, "fgsm": fgsm, "pgd": path[-1], "square": squared,
                 "square_below_pgd": path[-1] & ~squared}
        parts = {name: _mean(hits) for name, hits in right.items()}
        for k, loss, hits in zip(self.steps, losses, path, strict=True):
            parts |= {f"loss_{k}": _mean(loss), f"accuracy_{k}": _mean(hits)}
        before, last = losses[-2:].double().mean(1)
        parts |= {"still_rising": _finite(last / before - 1),
                  "zero_gradient": _mean(blocked[clean]), "chance": 1 / classes,
                  "images": len(split)}
        return {"value": parts["pgd"] / parts["fgsm"] if parts["pgd"] is not None and parts["fgsm"] else None,
                "total": len(split), "parts": parts,
                "each": {name: imagewise.pack(hits.numpy()) for name, hits in right.items()}}


def symptoms(parts: dict) -> list[str]:
    """What the `parts` of a result of `Health` say, in words; an empty list for a healthy network.
    'catastrophic overfitting' takes for granted that training knew an attack of this radius:
    otherwise a low ratio says no more than that one step finds less than many."""
    found, n = [], parts["images"]
    low = parts["pgd"] < LOWEST_RATIO * parts["fgsm"]
    if low and _above(parts["fgsm"], parts["chance"], n):
        found.append("catastrophic overfitting")
    if (parts["still_rising"] or 0) > LARGEST_RISE:
        found.append("attack not converged")
    beaten = _above(parts["square_below_pgd"], MOST_BEATEN, n)
    if beaten or (parts["zero_gradient"] or 0) > MOST_BLOCKED:
        found.append("masked gradients")
    return found


def _above(share: float, limit: float, n: int) -> bool:
    """Whether a share of n images is above a limit by more than the images drawn explain."""
    return share > limit + ERRORS * math.sqrt(limit * (1 - limit) / n)


def best_minus_last(history: list[dict]) -> float | None:
    """Robust overfitting (Rice et al. 2020): the highest accuracy under attack on the validation
    split in a run's `history`, minus the last one, from 0 to 1. None where it was recorded fewer
    than two times: `Recipe.watched` records it every epoch."""
    robust = [row["validation_robust"] for row in history if "validation_robust" in row]
    return max(robust) - robust[-1] if len(robust) > 1 else None


def pgd_path(model, images: Tensor, labels: Tensor, epsilon: float, steps: Sequence[int],
             generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """One path of l-infinity PGD (Madry et al. 2018) in steps of epsilon / 4 from a random start:
    the cross entropy of each image, and whether it is classified correctly, both (len(steps), n),
    after each number of steps in `steps`, which rise. The loss of a noisy network is the mean over
    `DRAWS` draws; its answer is the first of them."""
    losses, right, draws = [], [], DRAWS if is_random(model, images) else 1
    with under_attack(model):
        start = random_in_ball(images, epsilon, "linf", generator)
        x = into_ball(images + start, images, epsilon, "linf")
        for step in range(1, steps[-1] + 1):
            x = stepped(x, input_gradient(model, x, labels), epsilon / 4, images, epsilon)
            if step in steps:
                drawn = [answers(model, x, labels) for _ in range(draws)]
                losses.append(torch.stack([loss for loss, _ in drawn]).mean(0))
                right.append(drawn[0][1])
    return torch.stack(losses), torch.stack(right)


def answers(model, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of each image (n,), without gradient, and whether it is classified correctly
    (n,)."""
    with torch.no_grad():
        logits = mean_logits(model, images, 1)
    return cross_entropy(logits, labels, reduction="none"), logits.argmax(1) == labels


def input_gradient(model, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the cross entropy of each image at its pixels, shaped as the images."""
    x = images.detach().requires_grad_(True)
    loss = cross_entropy(mean_logits(model, x, 1), labels, reduction="sum")
    # 0 x: the gradient is zero, not an error, where the loss is cut off from the pixels
    return torch.autograd.grad(loss + 0 * x.sum(), x)[0]


def stepped(x: Tensor, gradient: Tensor, size: float, images: Tensor, epsilon: float) -> Tensor:
    """A step along the sign of the gradient (zero where that is no number), projected."""
    return into_ball(x + size * gradient.sign(), images, epsilon, "linf")


def _mean(values: Tensor) -> float | None:
    """None for no values, and where one is not finite."""
    return _finite(values.double().mean())


def _finite(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None
