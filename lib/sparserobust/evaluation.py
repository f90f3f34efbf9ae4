"""Accuracy, clean and under attack. Answers are always counted in float32."""

import statistics
from dataclasses import replace

import torch
from torch import Tensor

from sparserobust.attacks import FGSM, PGD, AutoAttack, l2_norm, predicted
from sparserobust.config import Attack, Measurement, Run, settings
from sparserobust.environment import global_seed, has_bfloat16, stream
from sparserobust.errors import UserError
from sparserobust.models import is_noisy, noise_off

BATCH = 250


@settings
class Accuracy(Measurement, kind="accuracy"):
    """Share of the first `images` test images (all, for None) that are classified correctly after the attack (clean,
    for None). A noisy network answers with one fresh draw (where the noise lies on weights, one for each batch of up to
    250 images); `noise: false` silences it for attacker and answer. `trials` repeats all of it with fresh chance; the
    value is then the mean, `trial_values` holds each. With `answers`, `right` is a text with a 1 or a 0 for each image
    (of the last trial). `source` makes it a transfer attack: attacked is the network of that run, and the answers are
    this one's. `precision` is that of the attack's own passes: where only signs of gradients count, bfloat16 turns a
    few of them (on CIFAR-10 at most one answer in 250 came out otherwise), in half to a quarter of the time where a
    processor has it."""

    attack: Attack | None = None
    images: int | None = None
    noise: bool = True
    precision: str = "float32"  # float32 | bfloat16 (FGSM and l-infinity PGD only)
    trials: int = 1
    source: Run | None = None
    answers: bool = False  # keep which images were classified correctly

    def check(self):
        self.require(self.images is None or self.images > 0, "images must be positive")
        self.require(self.trials > 0, "trials start at 1")
        self.choice("precision", "float32", "bfloat16")
        signs = isinstance(self.attack, FGSM) or (isinstance(self.attack, PGD) and self.attack.norm == "linf")
        self.require(self.precision == "float32" or signs,
                     "precision bfloat16 is for FGSM and l-infinity PGD, which follow signs; others need float32")
        self.require(self.source is None or self.attack is not None, "a source goes with an attack")

    @property
    def cost(self):
        per_image = 0.3 + (self.attack.cost if self.attack else 0)  # an answer is a forward pass
        return self.trials * (self.images or 10_000) / 10_000 * per_image

    @property
    def others(self):
        return () if self.source is None else (self.source,)

    def __call__(self, model, splits, *others):
        if len(others) != len(self.others):
            raise TypeError("a transfer attack is called with the network that is attacked, any other without")
        (attacked,) = others or (model,)
        if not self.noise:
            with noise_off(model), noise_off(attacked):
                return replace(self, noise=True)(model, splits, *others)
        split, attack = splits.test.first(self.images), self.attack
        draws = getattr(attack, "eot_draws", 1)
        if draws > 1 and not is_noisy(attacked):  # every draw would be the same
            attack, draws = replace(attack, eot_draws=1), 1
        chancy = is_noisy(model) or is_noisy(attacked) or not (attack is None or isinstance(attack, FGSM))
        trials = self.trials if chancy else 1  # without chance, all would be the same
        correct, length, moved, flags, batch = [], 0.0, 0, [], max(1, BATCH // draws)
        rough = self.precision == "bfloat16" and has_bfloat16(split.images.device.type)
        with global_seed(0, "evaluation noise", self.identity):
            chance = stream(0, "evaluation", self.identity, device=split.images.device)
            for _ in range(trials):
                right = ""
                for images, labels in zip(split.images.split(batch), split.labels.split(batch), strict=True):
                    images = images.contiguous(memory_format=torch.channels_last)
                    if isinstance(attack, AutoAttack):
                        adversarial, raised = attack.run(attacked, images, labels, chance)
                        flags += [flag for flag in raised if flag not in flags]
                    elif attack:
                        with torch.autocast(images.device.type, torch.bfloat16, enabled=rough):
                            adversarial = attack(attacked, images, labels, chance)
                    else:
                        adversarial = images
                    hits = predicted(model, adversarial) == labels
                    right += "".join("01"[hit] for hit in hits.tolist())
                    lengths = l2_norm(adversarial - images)
                    length, moved = length + float(lengths.sum()), moved + int((lengths > 0).sum())
                correct.append(right.count("1"))
        count = statistics.mean(correct)
        result = {"value": count / len(split), "count": count, "total": len(split),
                  "mean_l2": length / trials / len(split), "mean_l2_of_moved": length / max(moved, 1), "flags": flags}
        values = [c / len(split) for c in correct] * (self.trials // trials)
        return (result | ({"trial_values": values} if self.trials > 1 else {})
                | ({"right": right} if self.answers else {}))


def reached(model, attack: Attack, images: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The l2 length (n,) of what an attack adds to each image; infinite where the answer is right all the same."""
    adversarial = attack(model, images, labels, generator)
    return torch.where(predicted(model, adversarial) != labels, l2_norm(adversarial - images), torch.inf)


@settings
class Distance(Measurement, kind="distance"):
    """How far the first `images` test images (all, for None) have to be moved: the value is the mean l2 length of what
    the attack adds, an attack that looks for the nearest wrong answer (`DeepFool`, `CarliniWagnerL2`), with zero for
    images that are misclassified without it: r_2 of Guo et al. 2018. `relative` is the mean of length over |x|. An
    image that the attack does not fool has no length: it is left out of both means, and `not_fooled` counts it."""

    attack: Attack
    images: int | None = None

    def check(self):
        self.require(getattr(self.attack, "norm", None) == "l2" and getattr(self.attack, "epsilon", None) is None,
                     f"{self.attack.kind} does not look for the nearest wrong answer: take deepfool or cw_l2")
        self.require(self.images is None or self.images > 0, "images must be positive")

    @property
    def cost(self):
        return (self.images or 10_000) / 10_000 * self.attack.cost

    def __call__(self, model, splits):
        split = splits.test.first(self.images)
        lengths, relative, not_fooled = [], [], 0
        with global_seed(0, "evaluation noise", self.identity):
            chance = stream(0, "evaluation", self.identity, device=split.images.device)
            for images, labels in zip(split.images.split(BATCH), split.labels.split(BATCH), strict=True):
                right = predicted(model, images) == labels
                length = reached(model, self.attack, images, labels, chance)
                fooled = length.isfinite()
                length = torch.where(right, length, 0.0)[fooled]
                lengths.append(length)
                relative.append(length / l2_norm(images[fooled]))
                not_fooled += int((~fooled).sum())
        lengths, relative = torch.cat(lengths), torch.cat(relative)
        if not len(lengths):
            raise UserError(f"{self.attack.kind} fooled the network on none of {len(split)} images: give it more steps")
        return {"value": float(lengths.mean()), "total": len(split), "not_fooled": not_fooled,
                "parts": {"relative": float(relative.mean()), "not_fooled": not_fooled / len(split)}}
