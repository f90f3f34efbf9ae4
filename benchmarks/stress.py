"""What becomes of a sweep whose processes are killed, of four sweeps in one store, and of a sweep on a full disk.

    python benchmarks/stress.py [--kills 20] [--disks 61] [--only kills|crowd|disk]

Each part prints one line: how many of its checks passed, and seconds; what fell short stands above it.

- kills: a process of a sweep is killed at a random moment, or two at once. A driver leaves no process behind; other
  processes are replaced, or the driver ends with one line. The next sweep finishes.
- crowd: each run is trained by one of the four sweeps, and each of them gets the right answers.
- disk: the store is on a file system of few pages or few inodes. A sweep finishes, or says in one line that there is no
  space; when there is enough, this process finishes it. Needs root on Linux, for the mount.

To finish is to leave the files of an undisturbed store, filled without an engine, bit for bit, and no other file.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from uuid import uuid4

import psutil

from sparserobust import Data, Recipe, Run, Store, UserError, models, objectives
from sparserobust.analysis import WeightSparsity
from sparserobust.attacks import FGSM
from sparserobust.evaluation import Accuracy
from sparserobust.provenance import with_threads
from sparserobust.running import progress, sweep
from sparserobust.sparsifiers import RGSM, Magnitude

MARK = "SPARSEROBUST_STRESS"  # environment variable by which the processes of a driver are known
WORKERS = 2
LIMIT = 300  # seconds after which a driver hangs
ORPHANED = 5  # seconds that processes may outlive their driver
PAGE = 4096
MEASURED = {"clean": Accuracy(images=100), "sparsity": WeightSparsity()}
BASE = Run(data=Data(train_images=64), model=models.PreActResNet(depth=8, width=2), objective=objectives.Natural(),
           recipe=Recipe(epochs=8, batch_size=24))
DRIVER = [{"driver": deadly} for deadly in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
KILL = signal.SIGKILL
VICTIMS: list[dict[str, signal.Signals]] = [
    *DRIVER, {"worker": KILL}, {"cluster": KILL}, {"fork server": KILL}, {"driver": KILL, "worker": KILL},
    {"driver": KILL, "cluster": KILL}, {"cluster": KILL, "fork server": KILL}]


# ------------------------------------------------------------------------------------------------------- the sweep


def rows() -> sweep.Grid:
    """Three chains of four runs, each also measured with the attack on another network of its chain."""
    grid = []
    for seed in range(3):
        dense = replace(BASE, seed=seed, sparsifier=RGSM(lambda1=0.75))
        half, most = (replace(BASE, seed=seed, start=dense, sparsifier=Magnitude(sparsity=share),
                              recipe=replace(BASE.recipe, epochs=4)) for share in (0.5, 0.8))
        tuned = replace(most, start=most)
        for net, run, source in (("dense", dense, most), ("half", half, dense), ("most", most, dense),
                                 ("tuned", tuned, half)):
            transfer = Accuracy(attack=FGSM(epsilon=0.1), images=100, source=source)
            grid.append({"net": net, "seed": seed, "run": run, "measurements": {"transfer": transfer}})
    return grid


def drive(store: str, chosen: list[int]) -> int:
    """In a driver: sweep these rows; prints which runs were trained for it, and its answers."""
    trained, message = set(), progress.Monitor.message

    def recorded(self, task, doing, epochs):
        if doing == "training":
            trained.add(task.run.identity)
        message(self, task, doing, epochs)

    progress.Monitor.message = recorded  # type: ignore[method-assign]
    grid = rows()
    try:
        frame = sweep.sweep([grid[n] for n in chosen], MEASURED, Store(store, use_published=False), WORKERS)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"trained": sorted(trained), "answers": answers(frame)}))
    return 0


def answers(frame) -> list[str]:
    """One line for each run and measurement."""
    return [json.dumps(row) for row in frame.drop(columns=["where", "processor"]).to_dict("records")]


class Driver:
    """A sweep of these rows in a process of its own."""

    def __init__(self, store: Path, chosen: list[int]):
        self.mark, self.store = uuid4().hex, store
        self.out, self.err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--sweep", store, "--rows", *map(str, chosen)], stdout=self.out, stderr=self.err,
            env=os.environ | {MARK: self.mark, "PYTHONPATH": os.pathsep.join(sys.path)})

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
        """Send the signals at once, when there is a process for each; False if the driver ended before."""
        while self.process.poll() is None:
            named = {role: process for process, role in self.family().items()}
            if victims.keys() <= named.keys():
                for role, deadly in victims.items():
                    named[role].send_signal(deadly)
                return True
        return False

    def wait_for_work(self) -> None:
        """Until it has begun to train, or has ended."""
        while self.process.poll() is None and not any(self.store.glob(".partial-*")):
            time.sleep(0.02)

    def wait(self) -> int | None:
        """Its exit code; None, and it is killed, if it hangs."""
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def said(self) -> tuple[str, str]:
        """What it printed, on standard output and as errors."""
        return tuple(file.seek(0) or file.read() for file in (self.out, self.err))  # type: ignore[return-value]

    def orphans(self) -> list[str]:
        """What is alive of its processes some seconds after its end."""
        end = time.monotonic() + ORPHANED
        while (found := self.family()) and time.monotonic() < end:
            time.sleep(0.05)
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        return list(found.values())


# ------------------------------------------------------------------------------------------------------ what is right


def content(store: Path) -> dict[str, object]:
    """What has to be the same in two stores: all that lies there but provenance and locks."""
    found: dict[str, object] = {}
    for path in store.rglob("*"):
        name = path.relative_to(store)
        if name.parts[0] == ".locks":
            continue
        if path.is_dir() or path.name == "provenance.json":
            found[str(name)] = None
        elif path.parent.name == "measured" and path.suffix == ".json":
            found[str(name)] = {k: v for k, v in json.loads(path.read_text()).items() if k != "provenance"}
        else:
            found[str(name)] = path.read_bytes()
    return found


@cache
def undisturbed(*chosen: int) -> tuple[dict[str, object], list[str]]:
    """Content and answers of a store that this process filled, run after run."""
    with tempfile.TemporaryDirectory() as folder:
        found = serially(Path(folder), list(chosen))
        return content(Path(folder)), found


def serially(store: Path, chosen: list[int]) -> list[str]:
    """Fill a store in this process, run after run; returns the answers."""
    with with_threads(1):
        return answers(sweep.frame_of([rows()[n] for n in chosen], MEASURED, Store(store, use_published=False)))


def unfinished(store: Path, chosen: list[int]) -> str:
    """What is wrong with the next sweep, and with the store after it; nothing if all is well."""
    driver = Driver(store, chosen)
    if (code := driver.wait()) != 0:
        return f"the next sweep ended with {code}: {driver.said()[1]}"
    return different(store, chosen)


def different(store: Path, chosen: list[int]) -> str:
    """What is wrong with a store in which these rows should be finished."""
    wanted, found = undisturbed(*chosen)[0], content(store)
    wrong = [name for name in sorted(wanted.keys() | found.keys())
             if name not in wanted or name not in found or wanted[name] != found[name]]
    return f"missing, too much or different: {', '.join(wrong)}" if wrong else ""


def unclear(code: int | None, errors: str, word: str | None) -> str:
    """What is wrong with how a driver ended that should finish, or, if there is a word, say with it why not."""
    last = errors.strip().splitlines()[-1:] or [""]
    if "Traceback" not in errors and (code == 0 or (code == 1 and word and word in last[0])):
        return ""
    return f"hangs, and says: {errors}" if code is None else f"ends with {code}, and says: {errors}"


# ----------------------------------------------------------------------------------------------------------- the parts


def kills(number: int) -> Iterator[str]:
    chance, everything = random.Random(0), list(range(len(rows())))
    with tempfile.TemporaryDirectory() as folder:
        times, driver = [time.monotonic()], Driver(Path(folder), everything)
        for wait in (driver.wait_for_work, driver.wait):
            wait()
            times.append(time.monotonic())
        assert driver.process.returncode == 0, driver.said()[1]
    for n in range(number):
        victims, problem, early = VICTIMS[n % len(VICTIMS)], None, n % 4 == 3
        while problem is None:
            problem = killed(victims, early, chance.uniform(0, times[1] - times[0] if early else times[2] - times[1]))
        yield problem


def killed(victims: dict[str, signal.Signals], early: bool, moment: float) -> str | None:
    """What is wrong after these were killed so many seconds after a sweep was started (`early`) or had begun to train;
    None if it had ended before."""
    everything = list(range(len(rows())))
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(Path(folder), everything)
        if not early:
            driver.wait_for_work()
        time.sleep(moment)
        struck, code = driver.kill(victims), driver.wait()
        if not struck:
            return None
        word = "run it again" if "cluster" in victims else None
        orphans, measured = driver.orphans(), len(list(Path(folder).glob("*/measured/*.json")))
        problems = [f"alive are {orphans}" if orphans else "",
                    "" if "driver" in victims else unclear(code, driver.said()[1], word),
                    unfinished(Path(folder), everything)]
        names = " and ".join(f"{role} {deadly.name}" for role, deadly in victims.items())
        when = f"{moment:.1f} s after {'its start' if early else 'work began'}"
        print(f"  {names} {when}, {measured} measured, exit code {code}", file=sys.stderr, flush=True)
        return "; ".join(f"{names}: {problem}" for problem in problems if problem)


def crowd() -> Iterator[str]:
    grid = rows()
    with tempfile.TemporaryDirectory() as folder:
        choices = [[n for n in range(len(grid)) if n % 4 != left_out] for left_out in range(4)]
        drivers = [Driver(Path(folder), chosen) for chosen in choices]
        trained: list[str] = []
        for driver, chosen in zip(drivers, choices, strict=True):
            code, wanted = driver.wait(), undisturbed(*chosen)[1]
            out, errors = driver.said()
            told = json.loads(out) if code == 0 else {"trained": [], "answers": [errors] * len(wanted)}
            trained += told["trained"]
            for right, answer in zip(wanted, told["answers"], strict=True):
                yield "" if answer == right else f"{answer}, not {right}"
        for row in grid:
            times = trained.count(row["run"].identity)
            yield "" if times == 1 else f"run {row['run'].identity} was trained by {times} sweeps"
        yield unfinished(Path(folder), list(range(len(grid))))


def disk(number: int) -> Iterator[str]:
    chosen = [0, 1]
    limits = [f"size={PAGE * n}" for n in range(1, 47)] + [f"size=64m,nr_inodes={n}" for n in range(2, 32, 2)]
    for limit in limits[::len(limits) // number]:
        with mounted(limit) as store:
            driver = Driver(store, chosen)
            code = driver.wait()
            problem = unclear(code, driver.said()[1], "space")
            subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=10000", store], check=True)
            serially(store, chosen)
            after = different(store, chosen)
            print(f"  {limit}: exit code {code}", file=sys.stderr, flush=True)
            yield "; ".join(f"{limit}: {each}" for each in (problem, after) if each)


@contextmanager
def mounted(limit: str) -> Iterator[Path]:
    """A folder on a file system of its own, in memory."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--disks", type=int, default=61, help="sizes of the disk")
    parser.add_argument("--only", choices=["kills", "crowd", "disk"])
    parser.add_argument("--sweep", metavar="STORE", help="be one of the drivers")
    parser.add_argument("--rows", type=int, nargs="*", help="with --sweep: rows of the grid")
    chosen = parser.parse_args()
    if chosen.sweep:
        return drive(chosen.sweep, chosen.rows)
    signal.signal(signal.SIGTERM, lambda *caught: sys.exit(1))  # no file system stays mounted
    parts = {"kills": lambda: kills(chosen.kills), "crowd": crowd, "disk": lambda: disk(chosen.disks)}
    failed = 0
    for name, part in parts.items():
        if chosen.only not in (None, name):
            continue
        if name == "disk" and not (sys.platform == "linux" and os.geteuid() == 0):
            print("disk: left out, it needs root on Linux")
            continue
        begun, problems = time.perf_counter(), []
        for problem in part():
            problems.append(problem)
            if problem:
                print(f"  {problem}", flush=True)
        wrong = sum(map(bool, problems))
        failed += wrong
        print(f"{name}: {len(problems) - wrong} of {len(problems)}, {time.perf_counter() - begun:.0f} s", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
