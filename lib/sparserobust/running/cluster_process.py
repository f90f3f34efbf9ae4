"""A Dask scheduler, workers, or both, until they are told to end.

As a script it is the local cluster of one sweep: it reads an order, one line of JSON, from standard input, answers with
the scheduler's address and the certificate that was made for it, and ends with its standard input, that is, with the
process that started it.
"""

# Imports neither torch nor this library, and Dask only where it is used: workers are forked from a server that has
# imported all of it once, and begins with that while this process is still busy with its own imports.

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Nanny, Scheduler
    from distributed.security import Security

LOOPBACK = "127.0.0.1"
FORKS = sys.platform == "linux"
# For glibc: freed memory is kept for the next step instead of going back to the system and coming again page by page,
# an eighth of an ensemble's training time
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33),
               "MALLOC_TOP_PAD_": str(2**26)}
# On Apple's GPU, what is not written for it is computed by the CPU; torch asks when it is imported
APPLE = {"PYTORCH_ENABLE_MPS_FALLBACK": "1"}
# A worker that ends with its scheduler logs an error in itself; who counts semaphores warns when this process is killed
QUIET = {"DASK_LOGGING": str({"distributed": "warning", "distributed.nanny": "critical"}),
         "PYTHONWARNINGS": "ignore:resource_tracker"}
# The driver says in one line that its workers are gone; that these miss their scheduler, too, is no news
QUIET_WORKERS = {"DASK_LOGGING": str({"distributed": "critical", "distributed.nanny": "critical"})}
SETTINGS: dict[str, object] = {
    "distributed.scheduler.worker-saturation": 1.0,  # a worker gets its next run when it is through with one
    "distributed.scheduler.allowed-failures": 1_000_000,  # blames all tasks of a worker: `jobs` knows which it was
    "distributed.worker.multiprocessing-method": "forkserver" if FORKS else "spawn",
    "distributed.nanny.pre-spawn-environ": {},
    "distributed.admin.tick.limit": "1 h",  # a loop that torch holds up is no news
}


def prepare(quiet: dict[str, str] = QUIET) -> None:
    """Before anything else of this module is used: the environment of the workers, and the server they come from."""
    for name, value in (KEEP_MEMORY | APPLE | quiet).items():
        os.environ.setdefault(name, value)
    os.environ["PYTHONSAFEPATH"] = "1"  # nothing is imported from the folder where a process starts
    if FORKS:
        multiprocessing.set_forkserver_preload(["sparserobust.running.engine", "distributed"])
        forkserver.ensure_running()


async def serve(security: "Security", said: "Callable[[Scheduler], object]", scheduler: dict,
                environments: Sequence[dict] = (), **options) -> None:
    """Run a scheduler, and workers beside it, with these options, until it ends, or one of them for good; `said` is
    called once it listens."""
    import dask
    from distributed import Scheduler

    with dask.config.set(SETTINGS):
        async with Scheduler(security=security, protocol="tls://", **scheduler) as running:
            said(running)
            workers = _workers(running.address, security, environments, **options)
            await asyncio.gather(*workers)
            ends = [asyncio.ensure_future(each.finished()) for each in (running, *workers)]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)


async def work(security: "Security", address: str, environments: Sequence[dict], **options) -> None:
    """Run workers for the scheduler at `address` until that is gone."""
    import dask

    with dask.config.set(SETTINGS):
        workers = _workers(address, security, environments, **options)
        await asyncio.gather(*workers)
        await asyncio.gather(*(worker.finished() for worker in workers))


def _workers(address: str, security: "Security", environments: Sequence[dict], **options) -> "list[Nanny]":
    """One worker process for each of these environments, with one thread, started anew when it dies."""
    from distributed import Nanny

    return [Nanny(address, security=security, nthreads=1, memory_limit=0, env=environment, dashboard=False,
                  dashboard_address=f"{LOOPBACK}:0", **options) for environment in environments]


def as_nice_as_its_parent() -> None:
    """Where Linux shares the processor among sessions first (autogroups), niceness counts within a session only, and
    this process is a session of its own: give the session the niceness that its process has inherited."""
    group = Path("/proc/self/autogroup")
    if hasattr(os, "nice") and os.nice(0) > 0 and group.exists():
        with suppress(OSError):  # not allowed here: then it is a little less nice
            group.write_text(str(os.nice(0)), encoding="ascii")


def main() -> None:
    """What a worker process does from its start, with the folders of its parent's `sys.path` as arguments."""
    as_nice_as_its_parent()
    sys.path += [folder for folder in sys.argv[1:] if folder not in sys.path]
    prepare(QUIET | QUIET_WORKERS)
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answer
    order = sys.stdin.readline()
    if not order:  # the process that started it is gone
        _end_with_standard_input()
    environments = json.loads(order)
    threading.Thread(target=_end_with_standard_input, daemon=True).start()

    from distributed.security import Security

    logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)  # the driver says what there is to say
    made = Security.temporary()
    certificate, key = made.tls_scheduler_cert, made.tls_scheduler_key

    def said(scheduler: "Scheduler") -> None:
        answers.write(json.dumps([scheduler.address, certificate, key]) + "\n")

    asyncio.run(serve(made, said, {"host": LOOPBACK, "port": 0, "dashboard": False,
                                   "dashboard_address": f"{LOOPBACK}:0"}, environments, host=LOOPBACK))


def _end_with_standard_input() -> None:
    sys.stdin.read()
    if sys.platform != "win32":
        os.killpg(0, signal.SIGKILL)  # with the workers, whatever they do
    os._exit(0)  # else they notice, and end themselves


if __name__ == "__main__":
    main()
