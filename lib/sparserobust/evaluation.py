"""Accuracy, clean and under attack. Answers are always counted in float32."""

from dataclasses import replace

import torch

from sparserobust.attacks import FGSM, PGD, AutoAttack, l2_norm, predicted
from sparserobust.config import Attack, Measurement, settings
from sparserobust.environment import global_seed, has_bfloat16, stream
from sparserobust.models import is_noisy, noise_off

BATCH = 250


@settings
class Accuracy(Measurement, kind="accuracy"):
    """Share of the first `images` test images (all, for None) that are classified correctly after the attack (clean,
    for None). A noisy network answers with one fresh draw; `noise: false` silences it for attacker and answer.
    `precision` is that of the attack's own passes: where only signs of gradients count, bfloat16 turns a few of them
    (on CIFAR-10 at most one answer in 250 came out otherwise), in half to a quarter of the time where a processor has
    it."""

    attack: Attack | None = None
    images: int | None = None
    noise: bool = True
    precision: str = "float32"  # float32 | bfloat16 (FGSM and l-infinity PGD only)

    def check(self):
        self.require(self.images is None or self.images > 0, "images must be positive")
        self.require(self.precision in ("float32", "bfloat16"),
                     f"precision is float32 or bfloat16, not '{self.precision}'")
        signs = isinstance(self.attack, FGSM) or (isinstance(self.attack, PGD) and self.attack.norm == "linf")
        self.require(self.precision == "float32" or signs,
                     "precision bfloat16 is for FGSM and l-infinity PGD, which follow signs; others need float32")

    def __call__(self, model, splits):
        if not self.noise:
            with noise_off(model):
                return replace(self, noise=True)(model, splits)
        split, attack = splits.test.first(self.images), self.attack
        draws = getattr(attack, "eot_draws", 1)
        if draws > 1 and not is_noisy(model):  # every draw would be the same
            attack, draws = replace(attack, eot_draws=1), 1
        correct, length, flags, batch = 0, 0.0, [], max(1, BATCH // draws)
        rough = self.precision == "bfloat16" and has_bfloat16(split.images.device.type)
        with global_seed(0, "evaluation noise", self.identity):
            chance = stream(0, "evaluation", self.identity, device=split.images.device)
            for images, labels in zip(split.images.split(batch), split.labels.split(batch), strict=True):
                images = images.contiguous(memory_format=torch.channels_last)
                if isinstance(attack, AutoAttack):
                    attacked, raised = attack.run(model, images, labels, chance)
                    flags += [flag for flag in raised if flag not in flags]
                elif attack:
                    with torch.autocast(images.device.type, torch.bfloat16, enabled=rough):
                        attacked = attack(model, images, labels, chance)
                else:
                    attacked = images
                correct += int((predicted(model, attacked) == labels).sum())
                length += float(l2_norm(attacked - images).sum())
        return {"value": correct / len(split), "count": correct, "total": len(split),
                "mean_l2": length / len(split), "flags": flags}
