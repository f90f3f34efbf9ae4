"""Many runs side by side: a grid of runs in, a tidy frame of measurements out."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import pandas

from sparserobust import data
from sparserobust.config import Measurement, Run
from sparserobust.environment import cores, device
from sparserobust.errors import UserError
from sparserobust.progress import Progress, bar, duration
from sparserobust.runs import Store

# For glibc: freed memory is kept for the next step instead of going back to the system and coming again page by page,
# an eighth of an ensemble's training time
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33),
               "MALLOC_TOP_PAD_": str(2**26)}
Grid = list[dict]  # each row: labels of your choice (net, beta, seed, ...), the run under "run", and, if more is to be
# measured on it than on all rows, a dictionary of those measurements under "also"


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
        return [row | {"also": _wanted(row, self.measurements)} for row in self.grid]

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
            known = {name for name, m in _wanted(row, self.measurements).items() if self.shown(store, row["run"], m)}
            asked = {name for name, m in _wanted(row, self.measurements).items() if m.sampled}
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
            return _frame(self.grid, self.measurements, store, known=True)
        return sweep(self.grid, self.measurements, store, workers)


def sweep(grid: Grid, measurements: dict[str, Measurement], store: Store | None = None, workers: int | None = None,
          threads: int = 1) -> pandas.DataFrame:
    """Train what is not trained yet, measure what is not measured yet, and return one row per grid row and measurement:
    the grid row's labels, `run` (its identity), `chance` (what guessing would get), `metric` (the measurement's name in
    `measurements`), `value`, `count`, `total`, `where` and `processor`; `sampled`, whether it depends on the images
    that were drawn, and `each`, the values of single images as `imagewise.unpack` reads them (None where they were not
    kept). Where a measurement has `parts`, each is a row of its own, `<name> <part>`.

    `workers` processes of `threads` threads work side by side (default: one per core, one on a GPU). A run that fails
    leaves the others alone; when all are through, `UserError` names the failed ones with their reasons.
    """
    store = store or Store()
    compute(grid, measurements, store, workers, threads)
    return _frame(grid, measurements, store)


def compute(grid: Grid, measurements: dict[str, Measurement], store: Store | None = None, workers: int | None = None,
            threads: int = 1) -> None:
    """The first half of `sweep`: train and measure what is not known yet, and read nothing back."""
    store = store or Store()
    jobs = missing(grid, measurements, store)
    if jobs:
        failures = _work(jobs, store, workers or (1 if device().type == "cuda" else cores()), threads)
        if failures:
            raise UserError("\n".join([f"{len(failures)} of {len(jobs)} runs failed, the others are kept:",
                                       *(f"  {name}: {why}" for name, why in failures)]))


def missing(grid: Grid, measurements: dict[str, Measurement], store: Store) -> list[dict]:
    """One job per distinct run of which something is not known yet, the longest first."""
    jobs: dict[str, dict] = {}
    for row in grid:
        run = row["run"]
        missing = [m for m in _wanted(row, measurements).values() if store.find(run, m) is None]
        if missing:
            labels = " ".join(v if isinstance(v, str) else f"{k} {v}" for k, v in _labels(row).items() if v is not None)
            job = jobs.setdefault(run.identity, {"run": run, "measurements": [], "label": labels})
            job["measurements"] += [m for m in missing if m not in job["measurements"]]
    return sorted(jobs.values(), key=_cost, reverse=True)


def needed(job: dict) -> list[Run]:
    """All runs that have to be trained for a job."""
    ends = [job["run"], *(other for m in job["measurements"] for other in m.others)]
    return [run for end in ends for run in end.lineage]


def _cost(job: dict) -> float:
    """Of training and measuring, roughly; not above that of the runs it needs, which have to be trained before."""
    run: Run = job["run"]
    cost = run.cost + run.model.cost * sum(m.cost for m in job["measurements"])
    return min(cost, *(needed.cost for needed in run.needs)) if run.needs else cost


def _wanted(row: dict, measurements: dict[str, Measurement]) -> dict[str, Measurement]:
    return measurements | row.get("also", {})


def _labels(row: dict) -> dict:
    return {k: v for k, v in row.items() if k not in ("run", "also")}


def _frame(grid: Grid, measurements: dict[str, Measurement], store: Store, known: bool = False) -> pandas.DataFrame:
    """As `sweep` describes it; with `known` nothing is computed, and what is not known has no row."""
    rows = []
    for row in grid:
        labels = _labels(row) | {"run": row["run"].identity, "chance": 1 / data.classes(row["run"].data)}
        for name, measurement in _wanted(row, measurements).items():
            result = (store.find(row["run"], measurement, fewer_images=True) if known
                      else store.measure(row["run"], measurement))
            if result is None:
                continue
            each = result.get("each", {})
            rows.append(labels | {"metric": name, "sampled": measurement.sampled, "each": each.get("")}
                        | {k: result.get(k) for k in ("value", "count", "total", "where", "processor")})
            rows += [rows[-1] | {"metric": f"{name} {part}", "value": value, "count": None, "total": None,
                                 "each": each.get(part)} for part, value in result.get("parts", {}).items()]
    return pandas.DataFrame(rows)


def _outside(job: dict) -> list[str]:
    """Modules outside this library that a worker has to import before it knows the settings of a job."""
    found = job["run"].modules.union(*(m.modules for m in job["measurements"]))
    if "__main__" in found:
        raise UserError("a class of your own is defined in a notebook or script, where worker processes cannot see it: "
                        "move it into a file and import it from there")
    return sorted(name for name in found if name.split(".")[0] != "sparserobust")


def _work(jobs: list[dict], store: Store, workers: int, threads: int) -> list[tuple[str, str]]:
    """Run the jobs; returns what failed, as (label, reason)."""
    outside = {job["run"].identity: _outside(job) for job in jobs}
    board, turns = _Board(jobs), _Turns(jobs, store)
    started = [_Worker(threads) for _ in range(min(workers, len(jobs)))]

    def work(worker: _Worker) -> None:
        while job := turns.next():
            plain = {"run": job["run"].plain(), "measurements": [m.plain() for m in job["measurements"]],
                     "store": str(store.folder), "use_published": store.use_published,
                     "use_earlier": store.use_earlier,
                     "modules": outside[job["run"].identity], "path": sys.path}
            try:
                board.finished(job, worker.do(plain, lambda answer, job=job: board.heard(job, answer)))
            finally:
                turns.done(job)

    executor = ThreadPoolExecutor(len(started))
    try:
        for future in [executor.submit(work, worker) for worker in started]:
            future.result()
    except BaseException:  # an interrupt: what is finished is kept, what is under way goes on from its checkpoint
        turns.stop()
        executor.shutdown(wait=False, cancel_futures=True)
        board.progress.close("interrupted: finished runs are kept, the others go on from their last epoch")
        raise
    finally:
        for worker in started:
            worker.stop()
    board.close()
    return board.failures


class _Turns:
    """Which job is next: the first in the order that need not wait for a run that another job is training."""

    def __init__(self, jobs: list[dict], store: Store):
        self.pending, self.store = list(jobs), store
        self.under_way: dict[str, list[Run]] = {}  # by the run of a job: all that it trains, unless that is done
        self.changed = threading.Condition()

    def next(self) -> dict | None:
        """The next job, once there is one that can begin; None when all have begun."""
        with self.changed:
            while self.pending:
                busy = self._missing(run for runs in self.under_way.values() for run in runs)
                for job in self.pending:
                    if not busy or not busy & self._missing(needed(job)):
                        self.pending.remove(job)
                        self.under_way[job["run"].identity] = needed(job)
                        return job
                self.changed.wait(1)  # a job may have trained what others need, and go on
            return None

    def done(self, job: dict) -> None:
        with self.changed:
            del self.under_way[job["run"].identity]
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.pending.clear()
            self.changed.notify_all()

    def _missing(self, runs: Iterable[Run]) -> set[str]:
        return {run.identity for run in runs if not self.store.has_record(run)}


class _Worker:
    """A worker process, started anew if it dies."""

    def __init__(self, threads: int):
        self.threads = threads
        self._start()

    def _start(self):
        # a session of its own: an interrupt from the keyboard is this process's to handle, not the worker's
        self.process = subprocess.Popen([sys.executable, "-m", "sparserobust.worker", str(self.threads)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1,
                                        start_new_session=True, env=KEEP_MEMORY | os.environ)

    def do(self, job: dict, hear) -> str | None:
        """Do a job; returns None, or why it failed."""
        if self.process.poll() is not None:
            self._start()
        assert self.process.stdin is not None and self.process.stdout is not None  # pipes
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            for line in self.process.stdout:
                answer = json.loads(line)
                if "done" in answer or "failed" in answer:
                    return answer.get("failed")
                hear(answer)
        except BrokenPipeError:
            pass
        return f"its process died (exit code {self.process.wait()}); was memory short?"

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class _Board:
    """What is known of the jobs under way, shown as one line."""

    def __init__(self, jobs: list[dict]):
        self.jobs, self.begun, self.lock = jobs, time.monotonic(), threading.Lock()
        self.share = {job["run"].identity: 0.0 for job in jobs}  # of its training done; 1 when finished
        self.cost = {job["run"].identity: max(job["run"].cost, 1.0) for job in jobs}  # asked once: answers come often
        self.current: dict[str, str] = {}
        self.failures: list[tuple[str, str]] = []
        self.done = 0
        self.progress = Progress()
        self._show()

    def heard(self, job: dict, answer: dict) -> None:
        with self.lock:
            if "doing" in answer:
                run: Run = job["run"]
                share = min(answer["epochs"] / max(run.recipe.trained_epochs, 1), 1)  # a needed run may be longer
                # what follows training costs time too: a run counts as nine tenths done when it is trained
                self.share[run.identity] = max(self.share[run.identity], 0.9 * share)
                much = f" {share:.0%}" if answer["doing"] == "training" else ""
                self.current[run.identity] = f"{job['label']} ({answer['doing']}{much})"
            self._show()

    def finished(self, job: dict, failure: str | None) -> None:
        with self.lock:
            identity = job["run"].identity
            self.current.pop(identity, None)
            self.share[identity] = 1.0
            self.done += 1
            if failure:
                self.failures.append((job["label"] or identity, failure))
            self._show()

    def _show(self):
        share = sum(self.cost[i] * s for i, s in self.share.items()) / sum(self.cost.values())
        elapsed = time.monotonic() - self.begun
        left = f", about {duration(elapsed * (1 - share) / share)} left" if share > 0.02 else ""
        now = "; ".join(self.current.values())
        self.progress.show(f"{bar(share)} {self.done} of {len(self.jobs)} runs{left}. {now}")

    def close(self):
        failed = f", {len(self.failures)} failed" if self.failures else ""
        self.progress.close(f"{self.done - len(self.failures)} runs trained and measured{failed}, "
                            f"in {duration(time.monotonic() - self.begun)}")
