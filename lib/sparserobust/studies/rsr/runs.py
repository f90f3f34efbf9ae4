"""The runs of Robust Sparse Regularization (Rakin et al. 2019): noise on weights, a lasso and adversarial training,
then pruning.

Of the paper itself only the abstract is on record. What stands beside our numbers comes from its companion (He, Rakin &
Fan 2019, "PNI"), and is marked so.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sparserobust.config import Attack, Measurement, Recipe, Run, Sparsifier
from sparserobust.evaluation import Accuracy
from sparserobust.models import NoisyWeights
from sparserobust.objectives import Adversarial
from sparserobust.running.experiment import Experiment, planned
from sparserobust.running.scales import Group, StudySettings
from sparserobust.settings import Settings, settings
from sparserobust.sparsifiers import Dense, Lasso, Magnitude, RelativeThreshold

METHODS = {"AT": (False, False), "AT + lasso": (False, True), "AT + noise": (True, False), "RSR": (True, True)}
STAGES = ("dense", "pruned", "fine-tuned", "trained on")  # the last: as long as fine-tuned, but nothing pruned
ABLATED = "ResNet-20"  # the network on which the ingredients are taken apart
ON_ABLATED_ONLY = {("AT", "pruned"), ("AT", "fine-tuned"), ("RSR", "trained on")}
BLACK_BOX = (("AT", "dense"), ("RSR", "pruned"))  # A and B: each is attacked by way of the other


@settings
class Curves(Settings):
    """Accuracy under PGD as its radius (with the step in proportion), or its number of steps, grows."""

    rows: tuple[dict[str, Any], ...]
    accuracy: Accuracy
    radius: tuple[float, ...]
    steps: tuple[int, ...]

    def measurements(self) -> dict[str, Measurement]:
        """By name, such as `radius 0.1` and `steps 7`."""
        attack: Any = self.accuracy.attack  # one with a radius and steps
        per_radius = attack.step_size / attack.epsilon
        attacks = {f"radius {e:g}": replace(attack, epsilon=e, step_size=per_radius * e) for e in self.radius}
        attacks |= {f"steps {n}": replace(attack, steps=n) for n in self.steps}
        return {name: replace(self.accuracy, attack=changed) for name, changed in attacks.items()}


@settings
class BlackBox(Settings):
    """The network whose AT and RSR versions attack each other, with how many images, by which attack."""

    net: str
    images: int
    transfer: Attack


@settings
class Varied(Settings):
    """What is varied in figure 1."""

    sparsity: tuple[float, ...]
    threshold: tuple[float, ...]
    lam: tuple[float, ...]


@settings
class RSRSettings(StudySettings):
    """`lam` is lambda, the weight of the lasso; `sparsity` and `threshold` say how much is pruned."""

    objective: Adversarial
    fine_tuning: Recipe
    lam: float
    sparsity: float
    threshold: float
    varied: Varied
    curves: Curves
    black_box: BlackBox

    @property
    def groups(self) -> dict[str, Group]:
        return super().groups | {"curves": Group(rows=self.curves.rows, measurements=self.curves.measurements())}


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment[RSRSettings]:
    """Everything the notebook runs at a scale, or all of it with these seeds (`running.experiment.planned`). Labels:
    `net` (the paper's), `ours` (what stands for it), `method`, `stage`, `varied` and `level` (what differs from the
    main row, and its value; empty for a main row), `seed`."""
    return planned("rsr", scale, seeds, RSRSettings, _rows)


def _rows(own: RSRSettings, net: str, seed: int, first: bool) -> Iterator[dict]:
    """Grid rows of one network and seed. Only the first seed has those in which something is varied for a figure."""
    for method, stage, varied, level in _cases(own, net, first):
        row = {"ours": own.stand_in, "method": method, "stage": stage, "varied": varied, "level": level,
               "run": run(own, seed, method, stage, varied, level)}
        if net == own.black_box.net and not varied and (method, stage) in BLACK_BOX:
            other = BLACK_BOX[1 - BLACK_BOX.index((method, stage))]
            row["measurements"] = {"transfer": Accuracy(attack=own.black_box.transfer, images=own.black_box.images,
                                                        source=run(own, seed, *other))}
        yield row


def _cases(own: RSRSettings, net: str, first: bool) -> Iterator[tuple[str, str, str, Any]]:
    """(method, stage, varied, level)"""
    for method in METHODS if net == ABLATED else ("AT", "RSR"):
        for stage in STAGES:
            if net == ABLATED or (method, stage) not in ON_ABLATED_ONLY:
                yield method, stage, "", None
    if net != ABLATED:
        return
    for stage in ("pruned", "fine-tuned"):
        yield "RSR", stage, "unmasked", None
    if first:
        for method in ("AT", "RSR"):
            for level in own.varied.sparsity:
                yield method, "pruned", "sparsity", level
        for varied, levels in (("threshold", own.varied.threshold), ("lambda", own.varied.lam)):
            for level in levels:
                yield "RSR", "pruned", varied, level
        yield "RSR", "fine-tuned", "threshold", own.threshold
        for granularity in ("layer", "element"):
            yield "AT + noise", "dense", "granularity", granularity
        yield "AT", "dense", "clean_weight", 0.0


def run(own: RSRSettings, seed: int, method: str, stage: str, varied: str = "", level: Any = None) -> Run:
    """The run of a method at a stage, in which one thing may be varied."""
    noise, lasso = METHODS[method]
    change = {varied: level}
    model = own.model
    if noise:
        model = NoisyWeights(model=model, granularity=change.get("granularity", "channel"))
    objective = replace(own.objective, clean_weight=change.get("clean_weight", own.objective.clean_weight))
    sparsifier = Lasso(lam=change.get("lambda", own.lam)) if lasso else Dense()
    dense = own.run(seed, model=model, objective=objective, sparsifier=sparsifier)
    if stage == "dense":
        return dense
    if varied in ("threshold", "lambda"):  # how much goes is found, by the threshold or by what the lasso made small
        pruner: Sparsifier = RelativeThreshold(threshold=change.get("threshold", own.threshold))
    else:
        pruner = Magnitude(sparsity=change.get("sparsity", own.sparsity))
    if varied == "unmasked":
        model = replace(model, masked=False)
    recipe = replace(own.fine_tuning, epochs=0) if stage == "pruned" else own.fine_tuning
    return dense.then(model=model, objective=replace(objective, clean_epochs=0), recipe=recipe,
                      sparsifier=Dense() if stage == "trained on" else pruner)
