"""What a study runs at one scale, and what came out of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, Self

import pandas

from sparserobust.config import Measurement, Run
from sparserobust.errors import UserError
from sparserobust.running import scales
from sparserobust.running.scales import S
from sparserobust.running.store import Store
from sparserobust.running.sweep import Grid, frame_of, sweep

Rows = Callable[[S, str, int, bool], Iterable[dict]]


def planned(study: str, scale: str, seeds: list[int] | None, form: type[S], rows: Rows[S]) -> "Experiment[S]":
    """Everything a study runs at a scale, or all of it with these seeds.

    `form` is the class of its settings. `rows(own, net, seed, first)` gives the grid rows of a network and a seed,
    where `own` are the settings of that network and `first` says whether it is the first seed: dictionaries with
    labels (a study's own, such as method and level) and the run under `run`; under `measurements` there may be some
    that no settings file can name, as they depend on other runs. All others are those of the settings file whose
    selectors pick the row. `UserError` for an unknown scale, bad seeds, and anything wrong in the settings file."""
    settings = scales.load(scale, study, form)
    chosen = scales.checked_seeds(seeds, next(iter(settings.values())).seeds)
    grid: Grid = []
    for net, own in settings.items():
        for seed in seeds or own.all_seeds:
            for row in rows(own, net, seed, seed == chosen[0]):
                labels = ({"net": net} if net else {}) | row | {"seed": seed}
                grid.append(labels | {"measurements": _taken(own, labels, chosen[0]) | row.get("measurements", {})})
    for net, own in settings.items():
        for name, group in own.groups.items():
            scales.checked(group.rows, grid, f"{study}.yaml, {scale}{f', {net}' if net else ''}, measurements, {name}")
    return Experiment(study, scale, chosen, grid, settings)


def _taken(own: scales.StudySettings, row: dict, first_seed: int) -> dict[str, Measurement]:
    """The measurements that the settings name for a grid row."""
    found: dict[str, Measurement] = {}
    for group in own.groups.values():
        if scales.selected(row, group.rows, first_seed):
            if twice := [name for name, m in group.measurements.items() if found.get(name, m) != m]:
                raise UserError(f"two groups measure {twice[0]} of the same rows, each in its own way: rename one of "
                                "them, or let `rows` keep them apart")
            found |= group.measurements
    return found


@dataclass(frozen=True)
class Experiment(Generic[S]):
    """All runs of a study at one scale. Grid rows have the labels that the study gives them, `seed`, the run under
    `run`, and what is measured on it under `measurements`."""

    study: str
    scale: str
    seeds: list[int]
    grid: Grid
    settings_by_net: dict[str, S]

    @property
    def settings(self) -> S:
        """The settings of the first network: for what all have in common."""
        return next(iter(self.settings_by_net.values()))

    @property
    def tables(self) -> dict[str, Grid]:
        """The grid rows that each of the paper's tables and figures shows, of those that have any. A row may be in
        several."""
        found = {name: [row for row in self.grid if scales.selected(row, selectors, self.seeds[0])]
                 for name, selectors in self.settings.tables.items()}
        return {name: rows for name, rows in found.items() if rows}

    @property
    def nets(self) -> list[str]:
        """The networks of which the grid has rows."""
        present = {row["net"] for row in self.grid if "net" in row}
        return [net for net in self.settings_by_net if net in present]

    def settings_for(self, net: str) -> S:
        """The settings of a network."""
        return self.settings_by_net[net]

    def only(self, **labels) -> Self:
        """The experiment without grid rows that do not have these labels."""
        return replace(self, grid=self.rows(**labels))

    def rows(self, **labels) -> Grid:
        """Grid rows with these labels; a row that lacks one of them is none of these."""
        return [row for row in self.grid if all(k in row and row[k] == v for k, v in labels.items())]

    def row(self, **labels) -> dict:
        """The first grid row with these labels. `UserError` if there is none."""
        if not (found := self.rows(**labels)):
            raise UserError(f"scale {self.scale} has no run with {labels}")
        return found[0]

    def measurement(self, name: str) -> Measurement:
        """What `name` stands for, on the first grid row that has it. `UserError` if none has."""
        if name not in self.measurements:
            raise UserError(f"scale {self.scale} measures no '{name}'")
        return self.measurements[name]

    @property
    def measurements(self) -> dict[str, Measurement]:
        """All that is measured, by name: of each the first one."""
        return {name: m for row in reversed(self.grid) for name, m in row["measurements"].items()}

    def redraws(self, store: Store) -> bool:
        """Whether only what is known already is shown: the scale asks for it (`redraw: true`, since computing takes
        hours), and published records may stand in."""
        return self.settings.redraw and store.use_published

    def known(self, store: Store) -> Self:
        """The experiment as it can be shown now: all of it, or, where it only redraws, those rows and measurements
        that are stored or published, with the seeds that are left. Of a row something must be known that was asked of
        test images, if anything is."""
        if not self.redraws(store):
            return self
        grid = []
        for row in self.grid:
            known = {name: m for name, m in row["measurements"].items() if self.shown(store, row["run"], m)}
            asked = [name for name, m in row["measurements"].items() if m.sampled]
            if known and (not asked or any(name in known for name in asked)):
                grid.append(row | {"measurements": known})
        return replace(self, grid=grid, seeds=[seed for seed in self.seeds if any(r["seed"] == seed for r in grid)])

    def shown(self, store: Store, run: Run, measurement: Measurement) -> dict | None:
        """The result of a measurement: taken now if need be, or, where it only redraws, as far as it is known."""
        if self.redraws(store):
            return store.find(run, measurement, fewer_images=True)
        return store.measure(run, measurement)

    def results(self, store: Store, workers: int | None = None) -> "Results[S]":
        """What comes out: all is trained and measured that is not known yet, by so many worker processes (default:
        one per core, or per GPU); where it only redraws, what is stored or published of it."""
        if self.redraws(store):
            return Results(self, store, frame_of(self.grid, {}, store, known=True))
        return Results(self, store, sweep(self.grid, {}, store, workers))


@dataclass(frozen=True)
class Results(Generic[S]):
    """What came out of an experiment: `frame` has a row per grid row and measurement (`sweep` lists its columns)."""

    experiment: Experiment[S]
    store: Store
    frame: pandas.DataFrame

    def only(self, **labels) -> Self:
        """What came out for the grid rows with these labels."""
        chosen = (self.frame[list(labels)] == pandas.Series(labels)).all(axis=1)
        return replace(self, experiment=self.experiment.only(**labels), frame=self.frame[chosen])

    def details(self, measurement: str, **labels) -> list[tuple[dict, dict]]:
        """Whole results of a measurement, not only its headline, each with its grid row: of all rows with these
        labels on which it was taken."""
        found = [(row, self.experiment.shown(self.store, row["run"], row["measurements"][measurement]))
                 for row in self.experiment.rows(**labels) if measurement in row["measurements"]]
        return [(row, result) for row, result in found if result is not None]

    def detail(self, measurement: str, **labels) -> dict:
        """The same of the first of these rows. `UserError` if there is none."""
        if not (found := self.details(measurement, **labels)):
            raise UserError(f"'{measurement}' was not measured at scale {self.experiment.scale} on {labels}")
        return found[0][1]

    def history(self, **labels) -> list[dict]:
        """What was recorded after each epoch of training the first run with these labels."""
        return self.store.record(self.experiment.row(**labels)["run"])["history"]
