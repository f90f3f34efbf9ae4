"""Worker processes on this machine that train and measure, and which job is next."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from sparserobust.config import Run
from sparserobust.errors import UserError
from sparserobust.running.progress import INTERRUPTED, Monitor
from sparserobust.running.store import Store

# For glibc: freed memory is kept for the next step instead of going back to the system and coming again page by page,
# an eighth of an ensemble's training time
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33),
               "MALLOC_TOP_PAD_": str(2**26)}


def work(jobs: list[dict], store: Store, workers: int, threads: int) -> list[tuple[str, str]]:
    """Run the jobs; returns what failed, as (label, reason)."""
    outside = {job["run"].identity: _outside(job) for job in jobs}
    monitor, turns = Monitor(jobs), _Turns(jobs, store)
    started = [_Worker(threads) for _ in range(min(workers, len(jobs)))]

    def work(worker: _Worker) -> None:
        while job := turns.next():
            plain = {"run": job["run"].plain(), "measurements": [m.plain() for m in job["measurements"]],
                     "store": str(store.folder), "use_published": store.use_published,
                     "use_earlier": store.use_earlier,
                     "modules": outside[job["run"].identity], "path": sys.path}
            try:
                monitor.finished(job, worker.do(plain, partial(monitor.message, job)))
            finally:
                turns.done(job)

    executor = ThreadPoolExecutor(len(started))
    try:
        for future in [executor.submit(work, worker) for worker in started]:
            future.result()
    except BaseException:  # an interrupt: what is finished is kept, what is under way goes on from its checkpoint
        turns.stop()
        executor.shutdown(wait=False, cancel_futures=True)
        monitor.close(INTERRUPTED)
        raise
    finally:
        for worker in started:
            worker.stop()
    monitor.close()
    return monitor.failures


def needed(job: dict) -> list[Run]:
    """All runs that have to be trained for a job."""
    ends = [job["run"], *(other for m in job["measurements"] for other in m.required_runs)]
    return [run for end in ends for run in end.lineage]


def _outside(job: dict) -> list[str]:
    """Modules outside this library that a worker has to import before it knows the settings of a job."""
    found = job["run"].modules.union(*(m.modules for m in job["measurements"]))
    if "__main__" in found:
        raise UserError("a class of your own is defined in a notebook or script, where worker processes cannot see it: "
                        "move it into a file and import it from there")
    return sorted(name for name in found if name.split(".")[0] != "sparserobust")


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
        self.process = subprocess.Popen([sys.executable, "-m", "sparserobust.running.worker", str(self.threads)],
                                        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1,
                                        start_new_session=True, env=KEEP_MEMORY | os.environ)

    def do(self, job: dict, on_message: Callable[[dict], None]) -> str | None:
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
                on_message(answer)
        except BrokenPipeError:
            pass
        return f"its process died (exit code {self.process.wait()}); was memory short?"

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
