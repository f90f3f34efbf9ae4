"""Accuracy, clean and under attack. Answers are always counted in float32."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparserobust import imagewise, inputs
from sparserobust.answers import STILL_RANDOM, flag, flagged, is_random, predicted
from sparserobust.attacks import FGSM, PGD, l2_norm
from sparserobust.config import Attack, Measurement, Run
from sparserobust.errors import UserError
from sparserobust.models import noise_off
from sparserobust.provenance import has_bfloat16
from sparserobust.seeding import global_seed, stream
from sparserobust.settings import settings

BATCH = 250


@settings
class Accuracy(Measurement, kind="accuracy"):
    """Share of `images` test images (all, for None) that are classified correctly after the attack (clean, for None).
    The images are drawn once, at random (`data.Split.sample`): the same for all attacks and all networks of a data set.
    Whether each was classified correctly is kept (`each`), under `clean` without the attack, too; `of_correct` is the
    share of those right without the attack that withstand it.

    A noisy network answers with one fresh draw (where the noise lies on weights, one for each batch of up to 250
    images); `noise: false` silences it for attacker and answer. `trials` repeats all of it with fresh chance; the value
    is then the mean, `trial_values` holds each. `source` makes it a transfer attack: attacked is the network of that
    run, and the answers are this one's. `after` is another accuracy, of as many images or more: what its attack fooled
    counts as wrong, and this attack tries the other images only, so that it cannot read higher. `split` is test, or
    validation where something is chosen. `precision` is that of the attack's own passes: where only signs of gradients
    count, bfloat16 turns a few of them (on CIFAR-10 at most one answer in 250 came out otherwise), in half to a quarter
    of the time where a processor has it. (`answers` had to be asked for once, and has no effect any more.)"""

    attack: Attack | None = None
    images: int | None = None
    noise: bool = True
    precision: str = "float32"  # float32 | bfloat16 (FGSM and l-infinity PGD only)
    trials: int = 1
    source: Run | None = None
    answers: bool = False
    after: "Accuracy | None" = None
    split: str = "test"  # test | validation
    revision: ClassVar[int] = 2  # the first one took the first images
    sampled: ClassVar[bool] = True

    def check(self):
        self.require(self.images is None or self.images > 0, "images must be positive")
        self.require(self.trials > 0, "trials start at 1")
        self.choice("precision", "float32", "bfloat16")
        self.choice("split", "test", "validation")
        signs = isinstance(self.attack, FGSM) or (isinstance(self.attack, PGD) and self.attack.norm == "linf")
        self.require(self.precision == "float32" or signs,
                     "precision bfloat16 is for FGSM and l-infinity PGD, which follow signs; others need float32")
        self.require(self.source is None or self.attack is not None, "a source goes with an attack")
        if self.after is not None:
            enough = self.after.images is None or (self.images is not None and self.after.images >= self.images)
            self.require(enough, "what comes before (after) needs as many images")
            self.require(self.attack is not None and (self.noise, self.split, self.source, self.trials, 1)
                         == (self.after.noise, self.after.split, self.after.source, 1, self.after.trials),
                         "what comes before (after) has the same noise, split and source, one trial, and goes with an "
                         "attack")

    @property
    def cost(self):
        per_image = 0.3 + (self.attack.cost if self.attack else 0)  # an answer is a forward pass
        return self.trials * (self.images or 10_000) / 10_000 * per_image + (self.after.cost if self.after else 0)

    @property
    def required_runs(self):
        return () if self.source is None else (self.source,)

    def __call__(self, model, splits, *others, before: dict | None = None):
        """`before` is what `after` gave of this network, where that is known: it is not taken again."""
        if len(others) != len(self.required_runs):
            raise TypeError("a transfer attack is called with the network that is attacked, any other without")
        (attacked,) = others or (model,)
        with flagged() as flags:
            if self.noise:
                result = self._measured(model, attacked, splits, before)
            else:
                with noise_off(model), noise_off(attacked):
                    result = self._measured(model, attacked, splits, before)
        return result | {"flags": flags}

    def _measured(self, model, attacked, splits, before: dict | None = None) -> dict:
        split, attack = getattr(splits, self.split).sample(self.images), self.attack
        draws, trials = getattr(attack, "eot_draws", 1), self.trials
        if attack is not None and draws > 1 and not is_random(attacked, split.images):  # all draws would be the same
            attack, draws = replace(attack, eot_draws=1), 1
        if trials > 1 and (attack is None or isinstance(attack, FGSM)):  # no chance but that of the networks
            trials = trials if is_random(model, split.images) or is_random(attacked, split.images) else 1
        if not self.noise:
            self.require(not any(is_random(net, split.images) for net in (model, attacked)), STILL_RANDOM)
        tried = torch.arange(len(split))
        if self.after is not None:
            before = before or self.after._measured(model, attacked, splits)
            for what in before.get("flags", ()):
                flag(what)
            stood = imagewise.unpack(before["each"][""])[:len(split)] > 0
            tried = torch.from_numpy(stood).nonzero()[:, 0]
        right = torch.zeros(trials, len(split), dtype=torch.bool)
        clean, lengths = right[0].clone(), torch.zeros(trials, len(split))
        rough = self.precision == "bfloat16" and has_bfloat16(split.images.device.type)
        with global_seed(0, "evaluation noise", self.identity):
            chance = stream(0, "evaluation", self.identity, device=split.images.device)
            for trial in range(trials):
                if trial and attack is not None and attack.by_seed:  # it would do the same again
                    chance = stream(0, "evaluation", self.identity, "trial", trial, device=split.images.device)
                for index in tried.split(max(1, BATCH // draws)) if len(tried) else ():  # not one empty batch
                    images = split.images[index.to(split.images.device)].contiguous(memory_format=torch.channels_last)
                    labels = split.labels[index.to(split.labels.device)]
                    if attack:
                        with torch.autocast(images.device.type, torch.bfloat16, enabled=rough):
                            adversarial = attack(attacked, images, labels, chance)
                    else:
                        adversarial = images
                    right[trial, index] = _right(model, adversarial, labels).cpu()
                    lengths[trial, index] = l2_norm(adversarial - images).cpu().to(lengths.dtype)
            if attack is not None:
                for index in torch.arange(len(split)).split(BATCH):
                    images = split.images[index.to(split.images.device)].contiguous(memory_format=torch.channels_last)
                    clean[index] = _right(model, images, split.labels[index.to(split.labels.device)]).cpu()
        values = right.double().mean(1)
        count = float(right.double().mean(0).sum())
        moved = lengths > 0
        result: dict[str, Any] = {
            "value": float(values.mean()), "count": count if trials > 1 else round(count), "total": len(split),
            "mean_l2": float(lengths.mean()), "mean_l2_of_moved": float(lengths.sum()) / max(int(moved.sum()), 1),
            "each": {"": imagewise.pack(right.numpy())}}
        if self.trials > 1:
            result["trial_values"] = values.tolist() * (self.trials // trials)
        if attack is not None:
            result["each"]["clean"] = imagewise.pack(clean.numpy())
            withstood = right.double().mean(0)[clean]
            result["of_correct"] = float(withstood.mean()) if len(withstood) else None
        return result


def _right(model, images: Tensor, labels: Tensor) -> Tensor:
    """Whether each image (n,) gets its label."""
    model = inputs.network(model)
    with inputs.answering(model):
        return predicted(model, images) == labels


def reached(model, attack: Attack, images: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The l2 length (n,) of what an attack adds to each image; infinite where the answer is right all the same."""
    adversarial = attack(model, images, labels, generator)
    return torch.where(_right(model, adversarial, labels), torch.inf, l2_norm(adversarial - images))


@settings
class Distance(Measurement, kind="distance"):
    """How far `images` test images (all, for None; drawn as `Accuracy` draws them) have to be moved: the value is the
    mean l2 length of what the attack adds, an attack that looks for the nearest wrong answer (`DeepFool`,
    `CarliniWagnerL2`), with zero for images that are misclassified without it: r_2 of Guo et al. 2018. `relative` is
    the mean of length over |x|. An image that the attack does not fool has no length: it is left out of both means, and
    `not_fooled` counts it. A black image has no relative length."""

    attack: Attack
    images: int | None = None
    split: str = "test"  # test | validation
    revision: ClassVar[int] = 2  # the first one took the first images
    sampled: ClassVar[bool] = True

    def check(self):
        self.require(getattr(self.attack, "norm", None) == "l2" and getattr(self.attack, "epsilon", None) is None,
                     f"{self.attack.kind} does not look for the nearest wrong answer: take deepfool or cw_l2")
        self.require(self.images is None or self.images > 0, "images must be positive")
        self.choice("split", "test", "validation")

    @property
    def cost(self):
        return (self.images or 10_000) / 10_000 * self.attack.cost

    def __call__(self, model, splits):
        split = getattr(splits, self.split).sample(self.images)
        lengths = []
        with global_seed(0, "evaluation noise", self.identity):
            chance = stream(0, "evaluation", self.identity, device=split.images.device)
            for images, labels in zip(split.images.split(BATCH), split.labels.split(BATCH), strict=True):
                right = _right(model, images, labels)
                lengths.append(torch.where(right, reached(model, self.attack, images, labels, chance), 0.0))
        lengths = torch.cat(lengths)
        fooled = lengths.isfinite()
        lengths[~fooled] = torch.nan
        if not fooled.any():
            raise UserError(f"{self.attack.kind} fooled the network on none of {len(split)} images: give it more steps")
        size = l2_norm(split.images)
        relative = torch.where(size > 0, lengths / size, torch.nan)
        return {"value": float(lengths.nanmean()), "total": len(split), "not_fooled": int((~fooled).sum()),
                "each": {"": imagewise.pack(lengths.cpu()), "relative": imagewise.pack(relative.cpu())},
                "parts": {"relative": float(relative.nanmean()), "not_fooled": float((~fooled).double().mean())}}
