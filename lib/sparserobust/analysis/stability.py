"""How far the averaged output of a noisy network moves when its input moves."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sparserobust import imagewise
from sparserobust.attacks import l2_norm, per_image, under_attack
from sparserobust.config import Measurement
from sparserobust.evaluation import BATCH
from sparserobust.models import is_noisy, noise_off
from sparserobust.models.noise import Noise
from sparserobust.seeding import global_seed, stream
from sparserobust.settings import settings


@settings
class Stability(Measurement, kind="stability"):
    """The stability theorem of Wang et al. (2019), measured: with noise of size sigma in every layer, the averaged
    output u obeys |u(x + d) - u(x)| <= C (|d| / sigma)^alpha, norms l2, for sigma up to 1 and the same weights.

    u is the mean softmax output over `draws` of the noise. `levels` are set, one after another, in all noise layers of
    one trained network, also where it was built with level 0; these layers multiply them by the standard deviation of
    their activations, so a level stands for sigma up to that factor. `lengths` are those of d, for whole images with
    pixels in [0, 1]; x + d may leave that box, for clipping would shorten d. With `direction: random`, d is uniform on
    the sphere and the same at all levels; with `gradient`, it points where u of the label falls fastest, as seen with
    other draws. `images` test images are drawn (all, for None).

    `value` is the exponent alpha: the slope of log(change) against log(length / level) by least squares, over all
    levels above 0 together, where the change is the mean over images of |u(x + d) - u(x)|. It mixes two slopes, in
    shares that depend on the grid: against log(length), by level in `slopes` (1 wherever d is so short that u is
    linear, with noise or without), and against log(1 / level) at equal length, `level_slope`, which alone says whether
    noise stabilises (above 0). `ratio` says it too: change at the highest level over change at the lowest above 0, mean
    over lengths (below 1). `changes` and `largest` are the mean and the maximum over images, by level and length, and
    the parts `level <level>` the mean over both; the
    theorem bounds the maximum, and the mean can rise with the level where the maximum falls, since noise makes
    confident outputs less sure. `accuracy` is that of u, by level: a constant output is stable and useless.
    A slope or ratio is None where some change is 0, and `level_slope` where only one level is above 0.
    """

    levels: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.4)
    lengths: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0)
    direction: str = "random"  # random | gradient
    draws: int = 16
    images: int | None = 100
    revision: ClassVar[int] = 2  # the first one took the first images
    sampled: ClassVar[bool] = True

    def check(self):
        self.require(min(self.levels, default=0) >= 0 < max(self.levels, default=0),
                     "levels cannot be negative, and one must be above 0: alpha is fitted to those")
        self.require(min(self.lengths, default=0) > 0 and len(set(self.lengths)) > 1,
                     "lengths are positive, and a slope needs two")
        self.choice("direction", "random", "gradient")
        self.require(self.draws >= 1, "draws starts at 1")
        self.require(self.images is None or self.images > 0, "images must be positive")

    def __call__(self, model, splits):
        layers = [m for m in model.modules() if isinstance(m, Noise)]
        self.require(bool(layers), "this network has no noise layers whose level could be set")
        split, changes, accuracy = splits.test.sample(self.images), [], []
        with under_attack(model), noise_off(model):  # noise_off: for the former levels, that it brings back
            for level in self.levels:
                for layer in layers:
                    layer.level = level
                change, correct = self._measured(model, split)
                changes.append(change)
                accuracy.append(correct / len(split))
        changes = torch.stack(changes).double().cpu()  # level, length, image
        mean, largest = changes.mean(2).numpy(), changes.amax(2).numpy()
        level, length = np.meshgrid(self.levels, self.lengths, indexing="ij")
        noisy = level > 0
        low, high = (self.levels.index(pick(x for x in self.levels if x > 0)) for pick in (min, max))
        return {"value": _slope(length[noisy] / level[noisy], mean[noisy]),
                "level_slope": _slope(1 / level[noisy], mean[noisy]),
                "slopes": [_slope(self.lengths, row) for row in mean],
                "ratio": float((mean[high] / mean[low]).mean()) if mean[low].all() else None,
                "each": {f"level {x:g}": imagewise.pack(changes[i].mean(0).numpy()) for i, x in enumerate(self.levels)},
                "parts": {f"level {x:g}": float(row.mean()) for x, row in zip(self.levels, mean, strict=True)},
                "changes": mean.tolist(), "largest": largest.tolist(), "accuracy": accuracy,
                "levels": list(self.levels), "lengths": list(self.lengths)}

    def _measured(self, model, split) -> tuple[Tensor, int]:
        """|u(x + d) - u(x)|, (lengths, images), and how many images u classifies correctly."""
        changes, correct = [], 0
        for i, (images, labels) in enumerate(zip(split.images.split(BATCH), split.labels.split(BATCH), strict=True)):
            images = images.contiguous(memory_format=torch.channels_last)
            d = self._directions(model, images, labels, i)
            # u(x) goes the way of the others, as x + 0 d: the order in which noise is drawn depends on memory layout
            u, *moved = [self._averaged(model, images + length * d, i) for length in (0.0, *self.lengths)]
            changes.append(torch.stack([l2_norm(other - u) for other in moved]))
            correct += int((u.argmax(1) == labels).sum())
        return torch.cat(changes, 1), correct

    def _averaged(self, model, images, batch: int) -> Tensor:
        """u, (n, classes), with the same draws whenever it is asked for one batch: so a difference is that of the
        expectations, and not of the dice."""
        with torch.no_grad(), global_seed(0, "stability noise", self.identity, batch):
            return sum(model(images).float().softmax(1) for _ in range(self._passes(model))) / self._passes(model)

    def _passes(self, model) -> int:
        return self.draws if is_noisy(model) else 1

    def _directions(self, model, images, labels, batch: int) -> Tensor:
        """Of unit length, shaped as the images; zero for an image where the output has no gradient."""
        if self.direction == "random":
            chance = stream(0, "stability directions", self.identity, batch, device=images.device)
            d = torch.randn(images.shape, generator=chance, device=images.device)
        else:
            x, d = images.clone().requires_grad_(True), torch.zeros_like(images)
            with global_seed(0, "stability gradient", self.identity, batch):
                for _ in range(self._passes(model)):
                    log_p = model(x).float().log_softmax(1).gather(1, labels[:, None])
                    # grad(p) = p grad(log p), which keeps its digits where p is almost 1
                    d -= torch.autograd.grad((log_p.detach().exp() * log_p).sum(), x)[0]
        return d / per_image(l2_norm(d).clamp_min(1e-30), d)


def _slope(x, y) -> float | None:
    """Of log y against log x, by least squares; None where there is none."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if np.all(y) and np.ptp(x) > 0 else None
