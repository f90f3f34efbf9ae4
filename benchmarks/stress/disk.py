"""The store is on a file system of few pages or few inodes, or on one that cannot be written any more.

A sweep finishes, or says in one line that there is no space; when there is enough, the next one finishes. Needs root on
Linux, for the mount.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults import Fault, Forked, ending, evenly
from kills import Driver
from sweeps import LIMIT, different, serially, undisturbed

PAGE = 4096
CHOSEN = [0, 1]
ENOUGH = "size=64m,nr_inodes=10000"


def possible() -> str:
    """Why no disk can be filled here; nothing if it can."""
    return "" if sys.platform == "linux" and os.geteuid() == 0 else "it needs root on Linux, for the mount"


@contextmanager
def mounted(limit: str) -> Iterator[Path]:
    """A folder on a file system of its own, in memory."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def full(number: int) -> Iterator[Fault]:
    """So many sizes of a disk, in pages and in inodes; every tenth sweep with worker processes."""
    limits = [f"size={PAGE * n}" for n in range(1, 47)] + [f"size=64m,nr_inodes={n}" for n in range(2, 32, 2)]
    for n, limit in enumerate(evenly(limits, number)):
        with mounted(limit) as store:
            sweep = Driver(store, CHOSEN) if n % 10 == 5 else Forked(serially, store, CHOSEN)
            ended = sweep.wait(LIMIT)
            yield Fault(limit, ending(ended, "space" if ended.code else "") + _finished(store, ENOUGH))


def read_only(number: int) -> Iterator[Fault]:
    """The disk cannot be written from a random moment on: at once, while a sweep works, when all is finished."""
    chance = random.Random(0)
    undisturbed(*CHOSEN)
    begun = time.monotonic()
    with mounted(ENOUGH) as store:
        Forked(serially, store, CHOSEN).wait(LIMIT)
        whole = time.monotonic() - begun
    for n in range(number):
        moment = chance.uniform(0, whole) if n > 1 else (0, 2 * whole + 1)[n]
        with mounted(ENOUGH) as store:
            sweep = Forked(serially, store, CHOSEN) if moment else None
            time.sleep(moment)
            # what is open for writing keeps a disk writable: until it is closed
            while subprocess.run(["mount", "-o", "remount,ro", store], capture_output=True).returncode:
                time.sleep(0.001)
            ended = (sweep or Forked(serially, store, CHOSEN)).wait(LIMIT)
            again = Forked(serially, store, CHOSEN).wait(LIMIT)
            problems = ending(ended, "write" if ended.code else "") + ending(again, "write" if again.code else "")
            yield Fault(f"read-only after {moment:.1f} s", problems + _finished(store, f"rw,{ENOUGH}"))


def _finished(store: Path, options: str) -> list[tuple[str, str]]:
    """What is wrong with the next sweep, when the disk is mounted with these options, and with the store after it."""
    subprocess.run(["mount", "-o", f"remount,{options}", store], check=True)
    return ending(Forked(serially, store, CHOSEN).wait(LIMIT)) or different(store, CHOSEN)
