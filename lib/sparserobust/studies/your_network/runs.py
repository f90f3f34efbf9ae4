"""The runs of the last page: a network that is not of this library, trained as usual and under
attack."""

from collections.abc import Iterator

from sparserobust.analysis import Audit
from sparserobust.config import Objective
from sparserobust.objectives import Adversarial, Natural
from sparserobust.running.experiment import Experiment, planned
from sparserobust.running.scales import StudySettings
from sparserobust.settings import settings

NATURAL, ADVERSARIAL = "trained as usual", "trained under attack"
AUDIT = "audit"  # the name under which it is measured


@settings
class YourNetworkSettings(StudySettings):
    """`objective` is that of the second network."""

    objective: Adversarial

    def check(self):
        audits = [group.measurements[AUDIT] for group in self.measurements.values()
                  if AUDIT in group.measurements]
        self.require(len(audits) == 1 and isinstance(audits[0], Audit),
                     f"measurements: one of kind audit is needed, under the name {AUDIT}")

    @property
    def audit(self) -> Audit:
        """How the networks are judged."""
        (found,) = (group.measurements[AUDIT] for group in self.measurements.values()
                    if AUDIT in group.measurements)
        assert isinstance(found, Audit)  # as checked
        return found


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment[YourNetworkSettings]:
    """The two networks of each seed (`running.experiment.planned`). Labels: `net` (how it was
    trained), `seed`."""
    return planned("your_network", scale, seeds, YourNetworkSettings, _rows)


def _rows(own: YourNetworkSettings, net: str, seed: int, first: bool) -> Iterator[dict]:
    objectives: dict[str, Objective] = {NATURAL: Natural(), ADVERSARIAL: own.objective}
    for name, objective in objectives.items():
        yield {"net": name, "run": own.run(seed, objective=objective)}
