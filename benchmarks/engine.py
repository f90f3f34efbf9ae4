"""What the engine adds to a sweep: runs of a given length, by Dask's workers and by a bare pool of Python's.

    python benchmarks/engine.py [--runs 300] [--seconds 1] [--workers 2]

Each run sleeps, so that other work on the machine matters little. The pool hands out the same tasks without a
scheduler, progress, dependencies or encryption. Both start their processes in the time that counts, and both begin with
an empty store; the order of the two alternates with each `--repeats`.
"""

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from statistics import median

from naps import Nap

from sparserobust import Data, Recipe, Run, Store, models, objectives
from sparserobust.running import jobs, sweep

RUN = Run(data=Data(train_images=64), model=models.Linear(), objective=objectives.Natural(), recipe=Recipe(epochs=0))


def silent(doing: str, epochs: float) -> None:
    """No progress is shown."""


def by_pool(grid: sweep.Grid, store: Store, workers: int) -> None:
    tasks = jobs.tasks(sweep.missing(grid, {}, store), store)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        asked = [pool.submit(jobs.perform, jobs.order(task, store), silent) for task in tasks]
        assert not any(future.result() for future in asked)


def by_dask(grid: sweep.Grid, store: Store, workers: int) -> None:
    sweep.compute(grid, {}, store, workers)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    chosen = parser.parse_args()
    grid = [{"run": Run.parse(RUN.plain() | {"seed": seed}), "measurements": {"nap": Nap(seconds=chosen.seconds)}}
            for seed in range(chosen.runs)]
    seconds: dict[str, list[float]] = {"pool": [], "Dask": []}
    engines = [("pool", by_pool), ("Dask", by_dask)]
    for repeat in range(chosen.repeats):
        for name, engine in engines[:: -1 if repeat % 2 else 1]:
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                engine(grid, Store(folder, use_published=False), chosen.workers)
                seconds[name].append(time.perf_counter() - begun)
    pool, dask = median(seconds["pool"]), median(seconds["Dask"])
    print(f"{chosen.runs} runs of {chosen.seconds:g} s by {chosen.workers} workers: pool {pool:.1f} s, "
          f"Dask {dask:.1f} s, {dask / pool - 1:+.1%}")


if __name__ == "__main__":
    main()
