"""Many runs side by side: a grid of runs in, a tidy frame of measurements out."""

from collections.abc import Callable, Sequence

import pandas

from sparserobust import data
from sparserobust.config import Measurement, Run
from sparserobust.errors import UserError
from sparserobust.running import engine
from sparserobust.running.jobs import Task, tasks
from sparserobust.running.store import Store

Grid = list[dict]  # each row: labels of your choice (net, beta, seed, ...), the run under "run", and, if more is to be
# measured on it than on all rows, a dictionary of those measurements under "measurements"
TAKEN = ("metric", "value", "count", "total", "where", "processor", "sampled", "each", "chance")  # columns of a result


def sweep(grid: Grid, measurements: dict[str, Measurement], store: Store | None = None, workers: int | None = None
          ) -> pandas.DataFrame:
    """Train what is not trained yet, measure what is not measured yet, and return one row per grid row and measurement:
    the grid row's labels, `run` (its identity), `chance` (what guessing would get), `metric` (the measurement's name in
    `measurements`), `value`, `count`, `total`, `where` and `processor`; `sampled`, whether it depends on the images
    that were drawn, and `each`, the values of single images as `imagewise.unpack` reads them (None where they were not
    kept). Counts of units over images are left out: no interval of images follows from them. Where a measurement has
    `parts`, each is a row of its own, `<name> <part>`.

    `workers` processes work side by side (default: one per core, or per GPU). A run that fails
    leaves the others alone; when all are through, `UserError` names the failed ones with their reasons.
    """
    store = store or Store()
    compute(grid, measurements, store, workers)
    return frame_of(grid, measurements, store)


def compute(grid: Grid, measurements: dict[str, Measurement], store: Store | None = None, workers: int | None = None
            ) -> None:
    """The first half of `sweep`: train and measure what is not known yet, and read nothing back."""
    compute_all([grid], measurements, store, workers)


def compute_all(grids: Sequence[Grid], measurements: dict[str, Measurement], store: Store | None = None,
                workers: int | None = None, finished: Callable[[str], object] | None = None) -> None:
    """As `compute`, of several grids in order of importance: what the first needs is begun first. `finished` is told
    the identity of a run once all that was missing of it is known."""
    store = store or Store()
    jobs = missing([row for grid in grids for row in grid], measurements, store)
    ranks: dict[str, int] = {}
    for rank, grid in enumerate(grids):
        for row in grid:
            ranks.setdefault(row["run"].identity, rank)
    jobs = [job | {"rank": ranks[job["run"].identity]} for job in jobs]

    def ended(task: Task, failure: str | None) -> None:
        if finished and task.measurements and not failure:
            finished(task.run.identity)

    if jobs and (failures := engine.work(tasks(jobs, store), store, workers, ended)):
        raise UserError("\n".join([f"{len(failures)} of {len(jobs)} runs failed, the others are kept:",
                                   *(f"  {name}: {why}" for name, why in failures)]))


def missing(grid: Grid, measurements: dict[str, Measurement], store: Store) -> list[dict]:
    """One job per distinct run of which something is not known yet."""
    jobs: dict[str, dict] = {}
    for row in grid:
        labels, run = _labels(row), row["run"]
        missing = [m for m in wanted(row, measurements).values() if store.find(run, m) is None]
        if missing:
            name = " ".join(v if isinstance(v, str) else f"{k} {v}" for k, v in labels.items() if v is not None)
            job = jobs.setdefault(run.identity, {"run": run, "measurements": [], "label": name})
            job["measurements"] += [m for m in missing if m not in job["measurements"]]
    return list(jobs.values())


def wanted(row: dict, measurements: dict[str, Measurement]) -> dict[str, Measurement]:
    """All that is measured on a grid row, by name."""
    found = measurements | row.get("measurements", {})
    for name, measurement in found.items():
        if not isinstance(measurement, Measurement):
            raise UserError(f"'{name}' is no measurement, being of type {type(measurement).__name__}: accuracy under "
                            "an attack is Accuracy(attack=...)")
    return found


def _labels(row: dict) -> dict:
    """`UserError` for a label that would be lost, and for a row that is none."""
    if not isinstance(row, dict) or not isinstance(row.get("run"), Run):
        raise UserError("a row of a grid is a dictionary with a Run as its 'run', and labels that tell it apart")
    if taken := [label for label in row if label in TAKEN]:
        raise UserError(f"'{taken[0]}' is a column that every result has: call the label otherwise")
    return {k: v for k, v in row.items() if k not in ("run", "measurements")}


def frame_of(grid: Grid, measurements: dict[str, Measurement], store: Store, known: bool = False) -> pandas.DataFrame:
    """As `sweep` describes it; with `known` nothing is computed, and what is not known has no row."""
    rows = []
    for row in grid:
        labels = _labels(row) | {"run": row["run"].identity, "chance": 1 / data.classes(row["run"].data)}
        for name, measurement in wanted(row, measurements).items():
            result = (store.find(row["run"], measurement, fewer_images=True) if known
                      else store.measure(row["run"], measurement))
            if result is None:
                continue
            each = result.get("each", {})
            if measurement.sampled and not measurement.counts_images:
                result = result | {"count": None, "total": None}
            rows.append(labels | {"metric": name, "sampled": measurement.sampled, "each": each.get("")}
                        | {k: result.get(k) for k in ("value", "count", "total", "where", "processor")})
            rows += [rows[-1] | {"metric": f"{name} {part}", "value": value, "count": None, "total": None,
                                 "each": each.get(part)} for part, value in result.get("parts", {}).items()]
    return pandas.DataFrame(rows)
