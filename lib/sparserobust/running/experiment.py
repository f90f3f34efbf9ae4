"""What a notebook runs at one scale, and how much of it can be shown."""

from dataclasses import dataclass, replace
from typing import Self

import pandas

from sparserobust.config import Measurement, Run
from sparserobust.running.store import Store
from sparserobust.running.sweep import Grid, labelled, sweep, wanted


@dataclass(frozen=True)
class Experiment:
    """All runs of a notebook at one scale. What labels its grid rows have is the paper's affair."""

    scale: str
    seeds: list[int]
    grid: Grid
    measurements: dict[str, Measurement]
    settings: dict

    @property
    def nets(self) -> list[str]:
        """The networks that the settings list and of which the grid has rows."""
        present = {row["net"] for row in self.grid}
        return [net for net in self.settings["nets"] if net in present]

    def of(self, net: str) -> dict:
        """The settings of a network: its own come before those of all."""
        return self.settings | self.settings["nets"][net]

    def rows(self, **labels) -> Grid:
        """Grid rows with these labels."""
        return [row for row in self.grid if all(row[k] == v for k, v in labels.items())]

    @property
    def whole_grid(self) -> Grid:
        """The grid rows, each with all that is measured on it under `also`."""
        return [row | {"also": wanted(row, self.measurements)} for row in self.grid]

    def redraws(self, store: Store) -> bool:
        """Whether only what is known already is shown: the scale asks for it (`redraw: true`, since computing takes
        hours), and published records may stand in."""
        return bool(self.settings.get("redraw")) and store.use_published

    def known(self, store: Store) -> Self:
        """The experiment as it can be shown now: all of it, or, where it only redraws, those rows and measurements
        under `also` that are stored or published, with the seeds that are left. Of a row something must be known that
        was asked of test images, if anything is."""
        if not self.redraws(store):
            return self
        grid = []
        for row in self.grid:
            known = {name for name, m in wanted(row, self.measurements).items() if self.shown(store, row["run"], m)}
            asked = {name for name, m in wanted(row, self.measurements).items() if m.sampled}
            if known & asked or (known and not asked):
                grid.append(row | {"also": {name: m for name, m in row.get("also", {}).items() if name in known}})
        return replace(self, grid=grid, seeds=[seed for seed in self.seeds if any(r["seed"] == seed for r in grid)])

    def shown(self, store: Store, run: Run, measurement: Measurement) -> dict | None:
        """The result of a measurement: taken now if need be, or, where it only redraws, as far as it is known."""
        if self.redraws(store):
            return store.find(run, measurement, fewer_images=True)
        return store.measure(run, measurement)

    def measured(self, store: Store, workers: int | None = None) -> pandas.DataFrame:
        """The `sweep` of the grid; where it only redraws, what is stored or published of it."""
        if self.redraws(store):
            return labelled(self.grid, self.measurements, store, known=True)
        return sweep(self.grid, self.measurements, store, workers)
