"""One network, judged as a whole: what it withstands, what it weighs, and whether the numbers can be believed."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch

from sparserobust import imagewise
from sparserobust.analysis.cost import Deployable, FileSize, MACs
from sparserobust.analysis.layer_table import LayerTable
from sparserobust.analysis.lipschitz import guaranteed_radius
from sparserobust.analysis.masking import (
    AGAIN,
    AUTOATTACK,
    AVERAGED,
    CLEAN,
    GRADIENTS,
    LONGER,
    MARGIN,
    NOISE,
    ONE_STEP,
    PGD20,
    SQUARE,
    Evidence,
    flags_of,
    look,
)
from sparserobust.analysis.weights import ChannelSparsity, RemainingParameters, WeightSparsity
from sparserobust.answers import NotFinite, is_random
from sparserobust.attacks import FGSM, PGD, AutoAttack, DeepFool, check_radius
from sparserobust.config import Attack, Measurement
from sparserobust.errors import UserError, quoted
from sparserobust.evaluation import Accuracy, Distance
from sparserobust.query_attacks import RandomNoise, Square
from sparserobust.settings import settings

log = logging.getLogger("sparserobust")

Keep = Callable[[str, Callable[[], dict]], dict]  # gives what has such an identity: measures it, or knows it
CURVE = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # radii, in multiples of epsilon
COUNTS = ("value", "count", "total")
DRAWS = 10  # of a random network, where its gradients are averaged


def _keep_nothing(identity: str, measure: Callable[[], dict]) -> dict:
    return measure()


@settings
class Audit(Measurement, kind="audit"):
    """Everything that is asked of a network whose robustness is claimed in a ball of radius `epsilon` and norm `norm`
    (linf or l2), on one set of `images` test images (all, for None). What is dear is asked of the first `few` of them.
    The value is the share of images that are classified correctly and withstand every attack.

        attacks       name to `count` of `total` images that withstand: `clean`; `one step` of the gradient; `random
                      noise`; `PGD-20`; and, on the images that withstand it, as an attacker would go on: the same again
                      (what a second chance finds), with the margin loss, with averaged gradients (if the network is
                      random), with 100 steps, `Square` and, unless it is switched off, `AutoAttack`. Counts of these
                      are of those that withstand both
        curve         radius to the count of `few` that withstand PGD-20; the last radius spans the box
        distance      mean l2 length of what DeepFool adds, of the images it fools
        certificate   of `few` images the count that provably keep their class within `epsilon`, and the mean radius
        network       zero weights and channels, parameters, multiply-accumulates, bytes, milliseconds, and what is left
                      when zero channels are removed
        flags         why the numbers may be too good: `kind`, `found` (what was seen here), `means` (what that says)
        not_measured  name to why: never a number in place of one that could not be taken

    `RuntimeError` if an image whose class is proved was fooled: then the bound is wrong."""

    epsilon: float
    norm: str = "linf"
    images: int | None = 1000
    few: int = 100
    queries: int = 1000
    autoattack: bool = True
    sampled: ClassVar[bool] = True

    def check(self):
        self.choice("norm", "linf", "l2")
        check_radius(self)
        self.require(self.epsilon > 0, "epsilon must be positive")
        self.require(self.images is None or self.images > 0, "images must be positive")
        self.require(self.few > 0 and self.queries > 0, "few and queries must be positive")

    @property
    def cost(self):
        return sum(measure.cost for measure in self.accuracies(random=False).values())

    def pgd(self, steps: int = 20, radius: float | None = None, **more: Any) -> PGD:
        """PGD as the audit runs it: steps of a quarter of the radius, of a tenth where there are a hundred."""
        radius = self.epsilon if radius is None else radius
        return PGD(epsilon=radius, step_size=radius / (4 if steps < 100 else 10), steps=steps, norm=self.norm, **more)

    def accuracies(self, random: bool) -> dict[str, Accuracy]:
        """Name of every attack (and `clean`) to the accuracy under it, for a `random` network or a deterministic one.
        What follows PGD-20 tries the images that it leaves."""
        first = Accuracy(images=self.images, attack=self.pgd())

        def then(attack: Attack) -> Accuracy:
            return Accuracy(images=self.images, attack=attack, after=first)

        step = (FGSM(epsilon=self.epsilon) if self.norm == "linf" else
                PGD(epsilon=self.epsilon, step_size=self.epsilon, steps=1, norm=self.norm, random_start=False))
        found = {CLEAN: Accuracy(images=self.images), ONE_STEP: Accuracy(images=self.images, attack=step),
                 NOISE: Accuracy(images=self.images, attack=RandomNoise(epsilon=self.epsilon, norm=self.norm)),
                 PGD20: first, AGAIN: then(self.pgd()), MARGIN: then(self.pgd(loss="margin")),
                 LONGER: then(self.pgd(steps=100)),
                 SQUARE: then(Square(epsilon=self.epsilon, queries=self.queries, norm=self.norm))}
        if random:
            found[AVERAGED] = then(self.pgd(eot_draws=DRAWS))
        if self.autoattack:
            found[AUTOATTACK] = then(AutoAttack(epsilon=self.epsilon, norm=self.norm))
        return found

    def __call__(self, model, splits, *others, keep: Keep = _keep_nothing):
        """Every accuracy goes through `keep`, as plain data."""
        training = [name or "the whole" for name, module in model.named_modules() if module.training]
        split, few = splits.test.sample(self.images), splits.test.sample(min(self.few, self.images or self.few))
        unmeasured: dict[str, str] = {}
        not_finite: set[str] = set()

        def tried(name: str, measure: Callable[[], Any]) -> Any:
            log.info("audit: %s", name)
            try:
                return measure()
            except UserError as error:
                unmeasured[name] = str(error)
                if isinstance(error, NotFinite):
                    not_finite.add(name)
            except torch.OutOfMemoryError:
                raise UserError(f"memory ran out in '{name}': free some, or ask for fewer images at a time by `images` "
                                "and `few`") from None
            except Exception as error:  # whatever the network of somebody else does: it is told, and nothing counted
                unmeasured[name] = f"{type(error).__name__} {quoted(str(error))}"
            return None

        def accuracy(measure: Accuracy, first: dict | None) -> dict:
            return keep(measure.identity, lambda: _told(measure(model, splits, before=first)))

        random = bool(tried("asking twice", lambda: is_random(model, split.images)))
        attacks: dict[str, dict] = {}
        for name, measure in self.accuracies(random).items():
            if PGD20 not in attacks:  # or could not be taken: then those that would follow it stand alone
                measure = replace(measure, after=None)
            first = attacks[PGD20] if measure.after else None
            if found := tried(name, partial(accuracy, measure, first)):
                attacks[name] = found
            elif name == CLEAN:
                raise UserError(f"the network cannot be judged: {unmeasured[CLEAN]}")
        right = {name: imagewise.unpack(found["each"][""]) > 0 for name, found in attacks.items()}
        withstood = torch.from_numpy(sum(~hits for hits in right.values()) == 0)
        curve = tried("curve over the radius", lambda: self._curve(partial(accuracy, first=None), few))
        distance = tried("distance", lambda: Distance(attack=DeepFool(), images=len(few))(model, splits))
        certificate = tried("certificate", lambda: guaranteed_radius(model, few.images, few.labels, self.norm).cpu())
        if certificate is not None:
            certificate = self._certificate(certificate, right)
        seen = tried(GRADIENTS, lambda: look(model, few))
        network = {name: found for name, measure in NETWORK.items()
                   if (found := tried(name, partial(measure, model, splits)))}
        evidence = Evidence(right=right, curve=curve, seen=seen, random=random, training=training,
                            raised={name: found["flags"] for name, found in attacks.items()},
                            unmeasured=unmeasured, not_finite=not_finite,
                            classes=len(splits.classes or ()) or (seen.logits if seen else 2))
        return {
            "value": float(withstood.double().mean()), "count": int(withstood.sum()), "total": len(split),
            "attacks": {name: {key: found[key] for key in COUNTS} for name, found in attacks.items()},
            "each": {"": imagewise.pack(withstood.numpy())} | {n: imagewise.pack(hits) for n, hits in right.items()},
            "curve": curve, "certificate": certificate,
            "distance": distance and {key: distance[key] for key in ("value", "total", "not_fooled")},
            "network": network, "random": random, "flags": flags_of(evidence), "not_measured": unmeasured,
            "parts": {name: found["value"] for name, found in attacks.items()}}

    def _curve(self, accuracy: Callable[[Accuracy], dict], few) -> list[dict]:
        whole = 1.0 if self.norm == "linf" else float(few.images[0].numel()) ** 0.5
        found = []
        for radius in [*(m * self.epsilon for m in CURVE if m * self.epsilon < whole), whole]:
            attack = self.pgd(radius=radius) if radius else None
            result = accuracy(Accuracy(images=len(few), attack=attack))
            found.append({"radius": radius, "count": result["count"], "total": result["total"]})
        return found

    def _certificate(self, radii, right) -> dict:
        proved = radii >= self.epsilon
        for name, hits in right.items():
            if (proved & ~torch.from_numpy(hits[:len(radii)])).any():
                raise RuntimeError(f"{name} fooled the network on an image whose class is proved: the bound is wrong")
        return {"count": int(proved.sum()), "total": len(radii), "mean_radius": float(radii.mean())}


def _told(found: dict) -> dict:
    """What an audit needs of a measured accuracy."""
    return {key: found[key] for key in (*COUNTS, "flags")} | {"each": {"": found["each"][""]}}


NETWORK: dict[str, Measurement] = {
    "sparsity": WeightSparsity(), "channel_sparsity": ChannelSparsity(), "parameters": RemainingParameters(),
    "macs": MACs(), "file_size": FileSize(), "deployable": Deployable(), "layers": LayerTable()}


