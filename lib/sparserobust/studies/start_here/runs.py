"""The runs of the first page, for readers new to adversarial attacks: two small networks, one
trained as usual and one under attack."""

from collections.abc import Iterator

from sparserobust.attacks import PGD
from sparserobust.config import Measurement, Objective
from sparserobust.evaluation import Accuracy
from sparserobust.objectives import Adversarial, Natural
from sparserobust.running.experiment import Experiment, planned
from sparserobust.running.scales import Group, StudySettings
from sparserobust.settings import settings

NATURAL, ADVERSARIAL = "trained as usual", "trained under attack"


@settings
class StartHereSettings(StudySettings):
    """`objective` is that of the second network; `radii` are those of Figure 2."""

    objective: Adversarial
    radius: float  # at which the pictures are attacked
    radii: tuple[float, ...]

    @property
    def groups(self) -> dict[str, Group]:
        attacked: dict[str, Measurement] = {f"{radius:g}": Accuracy(attack=attack(radius))
                                            for radius in self.radii}
        return super().groups | {"radii": Group(measurements=attacked)}


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment[StartHereSettings]:
    """The two networks of each seed (`running.experiment.planned`). Labels: `net` (how it was
    trained), `seed`."""
    return planned("start_here", scale, seeds, StartHereSettings, _rows)


def _rows(own: StartHereSettings, net: str, seed: int, first: bool) -> Iterator[dict]:
    objectives: dict[str, Objective] = {NATURAL: Natural(), ADVERSARIAL: own.objective}
    for name, objective in objectives.items():
        yield {"net": name, "run": own.run(seed, objective=objective)}


def attack(radius: float) -> PGD:
    """Twenty gradient steps that raise the loss, from the image itself; no pixel moves further than
    `radius`."""
    return PGD(epsilon=radius, step_size=max(radius, 1e-6) / 5, steps=20, random_start=False)
