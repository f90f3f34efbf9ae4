"""What is handed to an engine: tasks, each a run with what is done to it, and what has to be done before."""

import importlib
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from sparserobust import data, files
from sparserobust.config import Measurement, Run
from sparserobust.errors import UserError
from sparserobust.running.store import Store

UNIT = 1e4  # images, of a pass that costs 1
LARGE = 512  # pixels of an image from which on a pass of it costs as much in measuring as in training
LEAST = 0.1  # cost of a task
ATTEMPTS = 3  # to do one, each of which its worker process did not survive


class Abandoned(BaseException):
    """Raised by the `report` of a task that is not wanted any more."""


@dataclass(frozen=True)
class Task:
    """A run to train, unless it is trained, and then to measure. `needs` are the keys of tasks that come before;
    `trains` is False where one of them trains this very run, or its twin."""

    run: Run
    measurements: tuple[Measurement, ...]
    label: str
    needs: tuple[str, ...]
    trains: bool = True
    rank: int = 0  # of importance, before any order by length; 0 the first

    @property
    def key(self) -> str:
        return f"{'train' if self.trains else 'measure'}-{self.run.identity}"

    @cached_property
    def cost(self) -> float:
        """Of training and measuring, about seconds of a processor core; never nothing, since a measurement takes time
        even where its cost counts as nothing."""
        return max(self.training_cost + sum(measuring_cost(self.run, m) for m in self.measurements), LEAST)

    @property
    def training_cost(self) -> float:
        return training_cost(self.run) if self.trains else 0.0


def training_cost(run: Run) -> float:
    """Of training a run: one is what a forward and backward pass of ten thousand images takes a model of cost 1."""
    return run.cost * data.training_images(run.data) / UNIT


def measuring_cost(run: Run, measurement: Measurement) -> float:
    """Of a measurement on a run, in the same unit."""
    return run.model.cost * measurement.cost * measuring_share(run)


def measuring_share(run: Run) -> float:
    """What a pass of images costs in measuring, as a share of one in training. A training step on few small images
    mostly waits for operations to start; many are measured at a time."""
    _, height, width = data.image_shape(run.data)
    return min(1.0, height * width / LARGE)


def needed(job: dict) -> list[Run]:
    """All runs that have to be trained for a job."""
    ends = [job["run"], *(other for m in job["measurements"] for other in m.required_runs)]
    return [run for end in ends for run in end.lineage]


def tasks(jobs: list[dict], store: Store) -> list[Task]:
    """One task for each run that has to be trained, with its measurements; these are a task of their own where others
    wait for the run. Those that hold up most work come first, and each after those that it needs."""
    ranks = {job["run"].identity: _rank(job) for job in jobs}

    def twin(job: dict) -> Run | None:
        """The twin that trains for this run, too: if somebody wants it as early, or begins with it."""
        run = job["run"].twin
        if run is None or store.has_record(job["run"]) or ranks.get(run.identity, math.inf) > _rank(job):
            return None
        return run

    def others(job: dict) -> list[Run]:
        return [run for run in (*needed(job), twin(job)) if run and run.identity != job["run"].identity]

    before = {run.identity for job in jobs for run in others(job) if not store.has_record(run)}  # others wait for these
    first: dict[str, tuple[Run, dict]] = {}  # each of them with the first of the jobs that need it
    for job in sorted(jobs, key=_rank):
        for run in (*others(job), job["run"]):
            if run.identity in before:
                first.setdefault(run.identity, (run, job))

    def waits_for(*runs: Run) -> tuple[str, ...]:
        return tuple(dict.fromkeys(f"train-{run.identity}" for run in runs if run.identity in before))

    found = [Task(run, (), job["label"], waits_for(*run.needs), rank=_rank(job)) for run, job in first.values()]
    for job in jobs:
        run, trained_by = job["run"], job["run"] if job["run"].identity in before else twin(job)
        begins_with = run.needs if trained_by is None else (trained_by,)
        besides = [other for m in job["measurements"] for other in m.required_runs]
        found.append(Task(run, tuple(job["measurements"]), job["label"], waits_for(*begins_with, *besides),
                          trained_by is None and not store.has_twin(run), _rank(job)))
    chains = _chains(found)
    return sorted(found, key=lambda task: (task.rank, -chains[task.key]))


def _rank(job: dict) -> int:
    return job.get("rank", 0)


def _chains(found: list[Task]) -> dict[str, float]:
    """By key: the cost of a task and of the costliest chain of tasks that wait for it, one after the other."""
    waiting: dict[str, list[Task]] = {}
    for task in found:
        for need in task.needs:
            waiting.setdefault(need, []).append(task)
    chains: dict[str, float] = {}

    def chain(task: Task) -> float:
        if task.key not in chains:
            chains[task.key] = task.cost + max(map(chain, waiting.get(task.key, [])), default=0.0)
        return chains[task.key]

    for task in found:
        chain(task)
    return chains


def modules(task: Task) -> list[str]:
    """Modules outside this library that define settings of a task. `UserError` if another process cannot import
    them."""
    found = task.run.modules.union(*(m.modules for m in task.measurements))
    if "__main__" in found:
        raise UserError("a class of your own is defined in a notebook or script, where worker processes cannot see it: "
                        "move it into a file and import it from there")
    return sorted(name for name in found if name.split(".")[0] != "sparserobust")


def named_outside(task: Task) -> set[str]:
    """What a task names that is outside the library."""
    return task.run.named_outside.union(*(m.named_outside for m in task.measurements))


def order(task: Task, store: Store) -> dict:
    """A task in JSON, as it crosses to another process. Where that may import from, and find files, is told for what
    is somebody's own alone."""
    own, outside = modules(task), named_outside(task)
    here = dict.fromkeys([*(str(Path(folder).absolute()) for folder in sys.path), str(Path.cwd())])
    path = list(here) if own or outside else []
    return {"key": task.key, "identity": task.run.identity, "run": task.run.plain(),
            "measurements": [m.plain() for m in task.measurements],
            "store": [str(store.folder), store.use_published, store.use_earlier],
            "modules": own, "outside": sorted(outside), "path": path}


def perform(order: dict, report: Callable[[str, float], None], sweep: str = "") -> str | None:
    """Do a task; returns None, or why it failed. What has been read of the store serves all tasks of a `sweep`."""
    try:
        with _attempt(order, sweep):
            sys.path += [folder for folder in order["path"] if folder not in sys.path]
            for name in order["modules"]:
                importlib.import_module(name)
            run, store = Run.parse(order["run"]), _store(sweep, *order["store"])
            if run.identity != order["identity"]:
                raise UserError("a worker knows this run by another name: it has another version of the library, or of "
                                "a class of your own; start the workers again")
            store.train(run, report)
            for measurement in order["measurements"]:
                store.measure(run, Measurement.parse(measurement), report)
    except UserError as error:
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _attempt(order: dict, sweep: str) -> Iterator[None]:
    """`UserError` if the processes that did this task in this sweep have died too often. An engine cannot tell which of
    the tasks that a worker had killed it; so each leaves a mark while it is under way."""
    marks = _marks(order["store"][0], sweep, order["key"])
    with files.one_line(marks):
        marks.parent.mkdir(exist_ok=True)
        with marks.open("ab") as file:
            if file.tell() >= ATTEMPTS:
                raise UserError(f"its worker process died {ATTEMPTS} times; was memory short?")
            file.write(b".")
    try:
        yield
    finally:
        marks.unlink(missing_ok=True)  # whoever gave the task up has cleared it


def clear(store: Store, sweep: str) -> None:
    """Remove what tasks have left whose processes died in this sweep."""
    for marks in _marks(store.folder, sweep, "").parent.glob(f"{sweep}-*"):
        marks.unlink(missing_ok=True)  # a worker that is through just now removes its own


def _marks(folder: Path | str, sweep: str, key: str) -> Path:
    return Path(folder) / ".locks" / f"{sweep}-{key}"


@lru_cache(maxsize=1)
def _store(sweep: str, folder: str, use_published: bool, use_earlier: bool) -> Store:
    return Store(folder, use_published, use_earlier)
