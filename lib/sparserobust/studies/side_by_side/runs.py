"""All five papers on one network, one data set and one training budget: not a paper, but the
question that they share. How each method gets to its cut network stands in `studies.methods`."""

from collections.abc import Iterator

from sparserobust.running.experiment import Experiment, planned
from sparserobust.settings import settings
from sparserobust.studies.methods import DENSE, ContestSettings


@settings
class SideBySideSettings(ContestSettings):
    """The contest of the five papers' methods."""


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment[SideBySideSettings]:
    """Everything the notebook runs at a scale, or all of it with these seeds
    (`running.experiment.planned`). Labels: `method`, `cut` (weights or channels; of the dense
    network None), `level` (share removed, in numbers of the one dense network), `seed`."""
    return planned("side_by_side", scale, seeds, SideBySideSettings, _rows)


def _rows(own: SideBySideSettings, net: str, seed: int, first: bool) -> Iterator[dict]:
    yield {"method": DENSE, "cut": None, "level": 0.0, "run": own.run(seed)}
    yield from own.cut_rows(seed)
