"""Numbers of others that give ours a scale (`data/anchors.yaml`): printed by others, under other budgets, and never
shown as ours, nor as those of one of the five papers (for these see `reported`)."""

from functools import cache
from typing import Any

import pandas

from sparserobust import yamls
from sparserobust.errors import UserError
from sparserobust.paths import anchors_file
from sparserobust.reporting.reported import GRADES
from sparserobust.settings import Checked, located, settings, unknown

FILE = anchors_file()
STRUCTURES = ("weights", "channels", "none")


@settings
class Anchors(Checked):
    """One table of somebody else: a cell (clean, AutoAttack, and maybe its standard deviation over seeds), in percent,
    for each method in `rows` and each architecture and share removed [%] in `columns`; None where nothing is on
    record. `grade` is where it was read, as data/reported/README.md has it."""

    source: str
    grade: str
    data: str
    epsilon: float
    structure: str  # what is removed
    columns: dict[str, tuple[float, ...]]
    rows: dict[str, tuple[tuple[float, ...] | None, ...]]

    def check(self):
        self.require(bool(self.source), "name the source")
        self.choice("grade", *GRADES)
        self.choice("structure", *STRUCTURES)
        self.require(0 < self.epsilon < 1, "epsilon is a radius for pixels in [0, 1]")
        places = self.places
        self.require(all(0 <= share < 100 for _, share in places), "columns are shares removed, in percent")
        for method, cells in self.rows.items():
            self.require(len(cells) == len(places), f"{method} has {len(cells)} cells for {len(places)} columns")
            for cell in filter(None, cells):
                self.require(len(cell) in (2, 3) and 0 <= cell[1] <= cell[0] <= 100, f"{method} has {list(cell)}, "
                             "which is no [clean, AutoAttack] in percent")

    @property
    def places(self) -> list[tuple[str, float]]:
        """Architecture and share removed [%] of each column."""
        return [(architecture, share) for architecture, shares in self.columns.items() for share in shares]

    def lines(self) -> list[dict[str, Any]]:
        """A row of `table` for each cell that is on record."""
        return [{"method": method, "architecture": architecture, "data": self.data, "structure": self.structure,
                 "sparsity": share / 100, "epsilon": self.epsilon, "clean": cell[0] / 100, "autoattack": cell[1] / 100,
                 "autoattack_sd": cell[2] / 100 if len(cell) > 2 else None, "source": self.source, "grade": self.grade}
                for method, cells in self.rows.items()
                for (architecture, share), cell in zip(self.places, cells, strict=True) if cell]


def table(**labels) -> pandas.DataFrame:
    """All anchors, or those with these values in these columns (method, architecture, data, structure, sparsity): one
    row each, with `clean` and `autoattack` accuracy at radius `epsilon` as shares, as `sparsity`, the share removed,
    is; `autoattack_sd` over seeds, where that is on record; `source` and `grade`. `UserError` for an unknown column or
    value, and for a mistake in the file."""
    frame = pandas.DataFrame([line for anchors in _read(yamls.text(FILE)) for line in anchors.lines()])
    frame["autoattack_sd"] = frame["autoattack_sd"].astype(float)
    for label, value in labels.items():
        if label not in frame:
            unknown("column", label, "anchors", dict.fromkeys(frame))
        known = frame[frame[label] == value]
        if known.empty:
            raise UserError(f"there are no anchors with {label} {value!r}; there are {_listed(frame[label])}")
        frame = known
    return frame.reset_index(drop=True)


def _listed(column: pandas.Series) -> str:
    return ", ".join(map(str, column.unique()))


@cache
def _read(text: str) -> tuple[Anchors, ...]:
    with located(FILE.name):
        return tuple(Anchors.parse(entry) for entry in yamls.parsed(text, FILE.name))
