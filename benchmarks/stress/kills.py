"""A process of a sweep is killed, two at once, and four sweeps work in one store.

A driver leaves no process behind; other processes are replaced, or the driver ends with one line. The next sweep
finishes. In a crowd each run is trained by one of the sweeps, and each of them gets the right answers.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil
from faults import Ended, Fault, Problems, ending, said
from sweeps import LIMIT, different, rows, undisturbed

MARK = "SPARSEROBUST_STRESS"  # environment variable by which the processes of a command are known
ORPHANED = 5  # seconds that processes may outlive the one that started them
KILL = signal.SIGKILL
VICTIMS: list[dict[str, signal.Signals]] = [
    *({"driver": deadly} for deadly in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)),
    {"worker": KILL}, {"cluster": KILL}, {"fork server": KILL}, {"driver": KILL, "worker": KILL},
    {"driver": KILL, "cluster": KILL}, {"cluster": KILL, "fork server": KILL}]


class Command:
    """A command in a process of its own, and all processes that it starts."""

    def __init__(self, *words: str | Path, **environment: str):
        self.mark = uuid4().hex
        self.out, self.err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen([sys.executable, *words], stdout=self.out, stderr=self.err,
                                        env=os.environ | {MARK: self.mark} | environment)

    def family(self) -> dict[psutil.Process, str]:
        """Its processes that are alive, wherever they hang, and what each is."""
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found[process] = self._role(process)
        return found

    def _role(self, process: psutil.Process) -> str:
        words = " ".join(process.cmdline())
        if process.pid == self.process.pid:
            return "driver"
        if "cluster_process.py" in words:
            return "cluster"
        if "forkserver" not in words:
            return "helper"
        parent = process.parent()
        return "worker" if parent and "forkserver" in " ".join(parent.cmdline()) else "fork server"

    def kill(self, victims: dict[str, signal.Signals]) -> bool:
        """Send the signals at once, when there is a process for each; False if the command ended before."""
        while self.process.poll() is None:
            named = {role: process for process, role in self.family().items()}
            if victims.keys() <= named.keys():
                for role, deadly in victims.items():
                    named[role].send_signal(deadly)
                return True
        return False

    def wait(self, limit: float = LIMIT) -> Ended:
        """How it ends; after so many seconds it is killed."""
        code = None
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(limit)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        return Ended(code, said(self.out), said(self.err))

    def orphans(self) -> Problems:
        """What is alive of its processes some seconds after its end, which is then killed."""
        end = time.monotonic() + ORPHANED
        while (found := self.family()) and time.monotonic() < end:
            time.sleep(0.05)
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        return [("left", f"alive are {list(found.values())}")] if found else []


class Driver(Command):
    """A sweep of these rows in a store."""

    def __init__(self, store: Path, chosen: list[int]):
        super().__init__(Path(__file__).with_name("__main__.py"), "--sweep", store, "--rows", *map(str, chosen))
        self.store = store

    def wait_for_work(self) -> None:
        """Until it has begun to train, or has ended."""
        while self.process.poll() is None and not any(self.store.glob(".partial-*")):
            time.sleep(0.02)


def unfinished(store: Path, chosen: list[int]) -> Problems:
    """What is wrong with the next sweep, and with the store after it."""
    ended = Driver(store, chosen).wait()
    if ended.code != 0:
        return ending(ended) or [("lost", f"the next sweep ended with {ended.code}: {ended.err}")]
    found = json.loads(ended.out)["answers"]
    wrong = [("believed", "the next sweep gives other answers")] if found != undisturbed(*chosen)[1] else []
    return wrong + different(store, chosen)


def killed_sweeps(number: int) -> Iterator[Fault]:
    """A process of a sweep is killed at a random moment, or two at once, by each of four signals."""
    chance, everything = random.Random(0), list(range(len(rows())))
    with tempfile.TemporaryDirectory() as folder:
        times, driver = [time.monotonic()], Driver(Path(folder), everything)
        for wait in (driver.wait_for_work, driver.wait):
            wait()
            times.append(time.monotonic())
        assert driver.process.returncode == 0, driver.wait().err
    for n in range(number):
        victims, fault, early = VICTIMS[n % len(VICTIMS)], None, n % 4 == 3
        while fault is None:
            moment = chance.uniform(0, times[1] - times[0] if early else times[2] - times[1])
            fault = _killed(victims, early, moment)
        yield fault


def _killed(victims: dict[str, signal.Signals], early: bool, moment: float) -> Fault | None:
    """These are killed so many seconds after a sweep was started (`early`) or had begun to train; None if it had ended
    before."""
    everything = list(range(len(rows())))
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(Path(folder), everything)
        if not early:
            driver.wait_for_work()
        time.sleep(moment)
        struck, ended = driver.kill(victims), driver.wait()
        if not struck:
            return None
        names = " and ".join(f"{role} {deadly.name}" for role, deadly in victims.items())
        name = f"{names} {moment:.1f} s after {'its start' if early else 'work began'}"
        problems = driver.orphans() + unfinished(Path(folder), everything)
        if "driver" not in victims:
            problems += ending(ended, "run it again" if "cluster" in victims and ended.code else "")
        return Fault(name, problems)


def crowd(number: int) -> Iterator[Fault]:
    """Four sweeps in one store, each of three quarters of all runs; a fault is an answer or a run."""
    grid = rows()
    with tempfile.TemporaryDirectory() as folder:
        choices = [[n for n in range(len(grid)) if n % 4 != left_out] for left_out in range(4)]
        drivers = [Driver(Path(folder), chosen) for chosen in choices]
        trained: list[str] = []
        for driver, chosen in zip(drivers, choices, strict=True):
            ended, wanted = driver.wait(), undisturbed(*chosen)[1]
            if ended.code != 0:
                yield Fault("a sweep", ending(ended) or [("lost", f"a sweep ended with {ended.code}: {ended.err}")])
                continue
            told = json.loads(ended.out)
            trained += told["trained"]
            for right, answer in zip(wanted, told["answers"], strict=True):
                yield Fault("an answer", [] if answer == right else [("believed", f"{answer}, not {right}")])
        for row in grid:
            identity, times = row["run"].identity, trained.count(row["run"].identity)
            yield Fault(f"run {identity}", [] if times == 1 else [("lost", f"it was trained by {times} sweeps")])
        yield Fault("the store", unfinished(Path(folder), list(range(len(grid)))))
