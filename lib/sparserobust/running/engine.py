"""Who does the tasks of a sweep: Dask's workers, or, where Dask is not installed, this process, one after the other."""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any
from uuid import uuid4

from sparserobust import outside, provenance
from sparserobust.errors import UserError
from sparserobust.running import cluster, jobs
from sparserobust.running.jobs import Task
from sparserobust.running.progress import INTERRUPTED, Monitor
from sparserobust.running.store import Store

TOPIC = "sparserobust"  # of Dask's events: how far tasks are
PACK = 1000  # tasks that cost less than this part of a worker's share of all go to it together
Finished = Callable[[Task, str | None], None]


def work(tasks: list[Task], store: Store, workers: int | None,
         finished: Finished | None = None) -> list[tuple[str, str]]:
    """Do the tasks, in this order as far as they need not wait; returns what failed, as (label, reason). `finished` is
    called after each one, with why it failed."""
    orders = {task.key: jobs.order(task, store) for task in tasks}
    monitor = Monitor(tasks, finished)
    engine, sweep = _by_dask if _has_dask() else _here, uuid4().hex
    try:
        engine(tasks, orders, side_by_side(workers), monitor, sweep)
    except BaseException as end:  # an interrupt: finished work is kept, what is under way goes on from its checkpoint
        monitor.close(INTERRUPTED)
        end.add_note(INTERRUPTED)  # so that nobody says it again
        raise
    finally:
        jobs.clear(store, sweep)
    monitor.close()
    return monitor.failures


def side_by_side(workers: int | None = None) -> int:
    """How many tasks are done at a time: as many as asked for, or as this machine affords; one where Dask is not
    installed."""
    return (workers or provenance.side_by_side()) if _has_dask() else 1


def _has_dask() -> bool:
    return importlib.util.find_spec("distributed") is not None


def _here(tasks: list[Task], orders: dict[str, dict], workers: int, monitor: Monitor, sweep: str) -> None:
    failures: dict[str, str | None] = {}
    for task in tasks:
        failure = next(filter(None, (failures[need] for need in task.needs)), None)
        failures[task.key] = failure or jobs.perform(orders[task.key], partial(monitor.message, task), sweep)
        monitor.finished(task, failures[task.key])


def _by_dask(tasks: list[Task], orders: dict[str, dict], workers: int, monitor: Monitor, sweep: str) -> None:
    from distributed import as_completed

    of_key = {task.key: task for task in tasks}

    def message(event: tuple) -> None:
        of_sweep, key, doing, epochs = event[1]
        if of_sweep == sweep:
            monitor.message(of_key[key], doing, epochs)

    with cluster.connected(min(workers, len(tasks))) as client:
        if cluster.given():
            _upload(client, {name for order in orders.values() for name in order["modules"]},
                    {name for order in orders.values() for name in order["outside"]})
            workers = len(client.scheduler_info(n_workers=-1)["workers"])
            if not workers:
                monitor.note("no worker has come yet")
        client.subscribe_topic(TOPIC, message)
        packs: dict[str, list[Task]] = {}  # that are under way
        ended: set[str] = set()
        futures: dict[str, Any] = {}
        small = sum(task.cost for task in tasks) / max(workers, 1) / PACK
        ranks = [list(rank) for _, rank in groupby(packed(tasks, small), lambda pack: pack[0].rank)]
        under_way = as_completed(loop=client.loop)

        def submit_next() -> None:
            for pack in ranks.pop(0):
                asked = [orders[task.key] for task in pack]
                future = client.submit(_on_worker, asked, sweep, *(futures[need] for need in pack[0].needs),
                                       key=f"{pack[0].key}-{_digest(asked)}", priority=-len(futures))
                futures.update({task.key: future for task in pack})
                packs[future.key] = pack
                under_way.add(future)

        def submit_enough() -> None:
            """A worker without work takes what is ready, and what is more important then waits for it: so tasks of the
            next rank are kept back until one would be idle."""
            if not ranks:
                return
            there = len(client.scheduler_info(n_workers=-1)["workers"]) if cluster.given() else workers
            while ranks and sum(ended.issuperset(pack[0].needs) for pack in packs.values()) < max(there, 1):
                submit_next()

        try:
            submit_enough()
            for future in under_way:
                outcome = _outcome(future)
                for task in packs.pop(future.key):
                    ended.add(task.key)
                    monitor.finished(task, outcome[task.key] if isinstance(outcome, dict) else outcome)
                submit_enough()
        finally:
            client.cancel(list(futures.values()))


def packed(tasks: list[Task], small: float) -> list[list[Task]]:
    """The tasks in packs that a worker gets as a whole: single ones, but for those that cost less than `small`
    together, that wait for the same, and that no other waits for."""
    waited_for = {need for task in tasks for need in task.needs}
    packs: list[list[Task]] = []
    begun: dict[tuple, list[Task]] = {}
    for task in tasks:
        pack = begun.get((task.rank, task.needs), [])
        if task.key in waited_for or sum(other.cost for other in [*pack, task]) > small:
            pack = []
        if not pack:
            packs.append(pack)
            if task.key not in waited_for:
                begun[task.rank, task.needs] = pack
        pack.append(task)
    return packs


def _digest(orders: list[dict]) -> str:
    """What is asked of a run, and for which store, is part of a task's name: others may ask for the same run."""
    return hashlib.sha256(json.dumps(orders, sort_keys=True).encode()).hexdigest()[:12]


def _on_worker(orders: list[dict], sweep: str, *needs: dict[str, str | None]) -> dict[str, str | None]:
    """In a worker: what failed of the tasks in a pack, by key, given the same of those that it needs."""
    from distributed import Reschedule, get_worker

    worker = get_worker()
    task = worker.state.tasks[worker.get_current_task()]

    def report(key: str, doing: str, epochs: float) -> None:
        if task.state == "cancelled":  # nobody waits for it any more: its checkpoint is kept
            raise jobs.Abandoned
        worker.log_event(TOPIC, (sweep, key, doing, epochs))

    failure = next((why for need in needs for why in need.values() if why), None)
    try:
        return {order["key"]: failure or jobs.perform(order, partial(report, order["key"]), sweep)
                for order in orders}
    except jobs.Abandoned:
        raise Reschedule from None  # if somebody asks for it just now


def _outcome(future) -> dict[str, str | None] | str:
    """What failed in the tasks of a pack, by key, or why all of them did."""
    from distributed import KilledWorker

    if future.status == "finished":
        return future.result()
    if future.status != "error":
        raise UserError("the connection to the scheduler is lost: finished runs are kept; start it again if it has "
                        "ended, then repeat the command")
    error = future.exception()
    if isinstance(error, KilledWorker):
        return "workers died again and again while they had this to do; was memory short?"
    return f"{type(error).__name__}: {error}"


def _upload(client, modules: set[str], named: set[str]) -> None:
    """Send files that define classes of somebody's own, or are named in settings, to workers that may not see them;
    packages and folders they must have."""
    for name in sorted(modules):
        if "." not in name and (file := sys.modules[name].__file__) and file.endswith(".py"):
            client.upload_file(file)
    for path in sorted({path for name in named for path in outside.files(name)}):
        client.upload_file(str(path), load=False)
