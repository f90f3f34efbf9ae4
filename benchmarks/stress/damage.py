"""Files that are damaged between two sweeps: those of the store, what is published, settings, reported numbers, data.

The next sweep gives the undisturbed answers, and says that it has computed something anew, or it ends with one line
that says what to do. Then what it knows is published, and that is right, too. A result that was not damaged stays.
"""

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from faults import (
    BYTES,
    JSON,
    NOBODY,
    TEXT,
    Damage,
    Fault,
    Forked,
    Problems,
    damages,
    ending,
    evenly,
    home,
    may_be_nobody,
    remove,
    restored,
)
from kills import Driver
from sweeps import LIMIT, MEASURED, answers, different, few, rows, serially, undisturbed, value, without_provenance

from sparserobust import Store, data, studies
from sparserobust.evaluation import Accuracy
from sparserobust.reporting import reported as papers
from sparserobust.running import sweep

EXTRA = Accuracy(images=50)  # is known, and no sweep asks for it
PUBLISHED = Path("data/published/quick")


class Subject:
    """A finished store, in a folder, and what is right: its answers, and what is published of it."""

    def __init__(self, folder: Path):
        self.folder, self.grid = folder / "whole", few()
        self.used = folder / "used"  # a copy that is damaged
        remove(home() / PUBLISHED)
        ended = Forked(self._fill).wait(LIMIT)
        assert ended.code == 0, ended.err
        self.told = json.loads(ended.out)
        self.published = {path.name: json.loads(path.read_text()) for path in (home() / PUBLISHED).iterdir()}

    def _fill(self) -> None:
        store = Store(self.folder, use_published=False)
        for row in self.grid:
            store.measure(row["run"], EXTRA)
        self.sweep(self.folder, False)

    def sweep(self, folder: Path, use_published: bool) -> None:
        """Print the answers, and then publish what is known."""
        frame = sweep.frame_of(self.grid, MEASURED, Store(folder, use_published=use_published))
        print(json.dumps(answers(frame)), flush=True)
        if not use_published:
            Store(folder, use_published=False).publish([row["run"] for row in self.grid], "quick")

    def copied(self) -> Path:
        """The copy, whole again; nothing is published."""
        remove(self.used)
        remove(home() / PUBLISHED)
        return Path(shutil.copytree(self.folder, self.used))

    def files(self, *patterns: str) -> list[Path]:
        """Those of the finished store, relative to it: the first that fits each pattern, if there is one."""
        return [min(found).relative_to(self.folder) for pattern in patterns if (found := list(
            self.folder.glob(pattern)))]

    def problems(self, said: bool, nobody: bool, damaged: Path | None = None) -> Problems:
        """What is wrong with the next sweep over the copy, and with what it leaves; `said`: that something was computed
        anew has to be said."""
        if nobody and os.geteuid() == 0:
            for path in (self.used, *self.used.rglob("*"), home() / "data", home() / "data/published"):
                with suppress(FileNotFoundError):
                    shutil.chown(path, NOBODY, NOBODY)
        ended = Forked(self.sweep, self.used, False, nobody=nobody).wait(LIMIT)
        problems = ending(ended)
        if ended.out and json.loads(ended.out.splitlines()[0]) != self.told:
            problems.append(("believed", "the sweep gives other answers"))
        if ended.code == 0:
            problems += self._wrongly_published(said and not ended.err)
        return problems + self._lost(damaged)

    def _wrongly_published(self, silent: bool) -> Problems:
        problems: Problems = []
        for name, wanted in self.published.items():
            path = home() / PUBLISHED / name
            found = json.loads(path.read_text()) if path.exists() else {"measured": {}}
            asked = {"record", *(measurement.identity for measurement in MEASURED.values())}
            now, then = _results(found), _results(wanted)
            if not asked <= now.keys() or any(each != then.get(key) for key, each in now.items()):
                problems.append(("believed", f"another record is published of {name}"))
            elif found != wanted and silent:
                problems.append(("unsaid", f"of {name} something was computed anew, or altered, without a word"))
        return problems

    def _lost(self, damaged: Path | None) -> Problems:
        """Results that were not damaged and are nowhere in the store any more."""
        there = [value(path) for path in self.used.rglob("*") if path.is_file() and path.suffix != ".lock"
                 and (path.suffix != ".json" or _is_json(path))]
        results = {path.relative_to(self.folder): value(path) for path in sorted(self.folder.rglob("*"))
                   if path.suffix in (".json", ".safetensors")}
        return [("lost", f"{name} was not damaged, and is gone") for name, each in results.items()
                if name != damaged and each not in there]


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, OSError, RecursionError):
        return False


def _results(entry: dict) -> dict:
    """What a published entry says, without provenance."""
    return {"record": entry.get("record")} | {
        key: without_provenance(each) if isinstance(each, dict) else each for key, each in entry["measured"].items()}


def store(number: int) -> Iterator[Fault]:
    """Each kind of file of a store, of a run that others start with and of one that starts with it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        subject = Subject(Path(folder))
        first, last = subject.grid[0]["run"].identity, subject.grid[1]["run"].identity
        clean, transfer = MEASURED["clean"].identity, subject.grid[1]["measurements"]["transfer"].identity
        kinds = [(name, {**BYTES, **(JSON if name.endswith("json") else {})}) for name in (
            f"{first}/record.json", f"{first}/provenance.json", f"{first}/model.safetensors",
            f"{first}/measured/{clean}.json", f"{first}/measured/{EXTRA.identity}.json", f"{last}/record.json",
            f"{last}/provenance.json", f"{last}/model.safetensors", f"{last}/measured/{transfer}.json")]
        whole = sum(len(each) for _, each in kinds)
        for name, damaging in kinds:
            path = subject.folder / name
            siblings = [each for each in subject.folder.glob(f"*/{'measured/' * ('measured' in name)}*{path.suffix}")
                        if each != path and (each.name == path.name or "measured" in name)]
            for fault, damage in damages(path, damaging, siblings, max(1, number * len(damaging) // whole)):
                damage(subject.copied() / name)
                said = fault not in ("deleted",)
                yield Fault(f"{path.parent.name}/{path.name}: {fault}",
                            subject.problems(said, fault == "unreadable", Path(name)))
        for fault, break_it in evenly(list(STRUCTURE.items()), max(1, number // 10)):
            break_it(subject.copied(), first)
            yield Fault(fault, [each for each in subject.problems(False, False) if each[0] != "lost"])


def _in_place(name: str, folder: bool) -> Callable[[Path, str], None]:
    """A folder, or a file, where something else is expected; `name` may have the run's identity in it."""
    def change(store: Path, identity: str) -> None:
        path = store / name.format(identity)
        remove(path)
        path.parent.mkdir(exist_ok=True)
        if folder:
            path.mkdir()
            (path / "something").write_text("")
        else:
            path.write_text("something")
        for measured in (store / identity).glob("measured/*.json"):  # so that there is something to do
            measured.unlink()

    return change


STRUCTURE = {
    "a file for the folder of a run": _in_place("{}", False),
    "a file for the folder of its measurements": _in_place("{}/measured", False),
    "a file where a run is trained": _in_place(".partial-{}", False),
    "a file where a damaged run is put": _in_place(".damaged-{}", False),
    "an empty folder of a run": _in_place("{}", True),
}


def by_workers(number: int) -> Iterator[Fault]:
    """The same, where worker processes do what is to be done: is it still said by the one who swept?"""
    chosen = [0, 1]
    undisturbed(*chosen)
    cases = {"model.safetensors": "a bit flipped", "record.json": "truncated", "measured/*.json": "truncated"}
    for name, fault in evenly(list(cases.items()), number):
        with tempfile.TemporaryDirectory() as folder:
            Forked(serially, Path(folder), chosen).wait(LIMIT)
            path = min(Path(folder).glob(f"{rows()[1]['run'].identity}/{name}"))
            BYTES[fault](path, random.Random(0), [])
            ended = Driver(Path(folder), chosen).wait()
            problems = ending(ended)
            if ended.code == 0:
                if json.loads(ended.out)["answers"] != undisturbed(*chosen)[1]:
                    problems.append(("believed", "the sweep gives other answers"))
                if "damaged" not in ended.err:
                    problems.append(("unsaid", f"it was computed anew without a word: {ended.err[-200:]!r}"))
                for aside in Path(folder).glob(".damaged-*"):
                    remove(aside)
                problems += different(Path(folder), chosen)
        yield Fault(f"{path.name}: {fault}", problems)


class _Stopped(BaseException):
    """Interrupts a training."""


def checkpoint(number: int) -> Iterator[Fault]:
    """The checkpoint of a run that was interrupted."""
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(Path(folder))
        run, other = subject.grid[0]["run"], subject.grid[2]["run"]

        def begin(run, store: Path) -> None:
            def stop(doing: str, epochs: float) -> None:
                if epochs >= 1:
                    raise _Stopped

            with suppress(_Stopped):
                Store(store, use_published=False).train(run, stop)

        with tempfile.TemporaryDirectory() as begun:
            for each in (run, other):
                Forked(begin, each, Path(begun)).wait(LIMIT)
            path = next(Path(begun).glob(f".partial-{run.identity}/*.safetensors"))
            sibling = next(Path(begun).glob(f".partial-{other.identity}/*.safetensors"))
            repeated = {f"{name}, {n}": each for n in range(20) for name, each in BYTES.items() if "flipped" in name}
            kinds = BYTES | {name: each for name, each in TEXT.items() if "digit" in name} | {
                "another epoch": lambda where, chance, siblings: where.write_bytes(
                    where.read_bytes().replace(b'"epoch":"1"', b'"epoch":"0"'))} | repeated
            for fault, damage in damages(path, kinds, [sibling], number):
                store = subject.copied()
                remove(store / run.identity)
                shutil.copytree(path.parent, store / path.parent.name)
                damage(store / path.parent.name / path.name)
                # a training that goes on from it is as good as one that begins anew: only what comes out counts
                yield Fault(fault, [each for each in subject.problems(fault != "deleted", fault == "unreadable")
                                    if each[0] not in ("lost", "unsaid")])


def locks(number: int) -> Iterator[Fault]:
    """Lock files, and the folder in which they are, while there is something to measure."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        subject = Subject(Path(folder))
        identity = subject.grid[0]["run"].identity
        lock = f".locks/{identity}.lock"

        def text(store: Path) -> None:
            (store / lock).write_text("something")

        def someone_elses(store: Path) -> None:
            (store / lock).chmod(0o600)  # of root's, if root tries it: the sweep is nobody's

        def not_writable(store: Path) -> None:
            (store / ".locks").chmod(0o555)

        def nowhere(store: Path) -> None:
            (store / lock).unlink()
            (store / lock).symlink_to("/nowhere/at/all")

        cases: dict[str, tuple[Callable[[Path], None], bool]] = {
            "text in a lock": (text, False), "a lock is deleted": (lambda store: (store / lock).unlink(), False),
            "a folder for a lock": (lambda store: _in_place(lock, True)(store, identity), False),
            "a file for all locks": (lambda store: _in_place(".locks", False)(store, identity), False),
            "no folder of locks": (lambda store: remove(store / ".locks"), False),
            "a link to nowhere for a lock": (nowhere, False),
            "a mark of a task for a lock": (lambda store: (store / ".locks" / "sweep-train-x").mkdir(), False),
            "someone else's lock": (someone_elses, True), "locks that cannot be made": (not_writable, True),
            "an unreadable folder of locks": (lambda store: (store / ".locks").chmod(0), True),
        }
        for fault, (break_it, nobody) in evenly(list(cases.items()), number):
            if nobody and not may_be_nobody():
                continue
            store = subject.copied()
            for measured in (store / identity).glob("measured/*.json"):
                measured.unlink()
            if nobody and os.geteuid() == 0:
                for path in (store, *store.rglob("*")):
                    shutil.chown(path, NOBODY, NOBODY)
                shutil.chown(store / lock if "lock" in fault and "locks" not in fault else store / ".locks", 0, 0)
            break_it(store)
            ended = Forked(subject.sweep, store, False, nobody=nobody).wait(LIMIT)
            problems = ending(ended)
            if ended.out and json.loads(ended.out.splitlines()[0]) != subject.told:
                problems.append(("believed", "the sweep gives other answers"))
            yield Fault(fault, problems)


def published(number: int) -> Iterator[Fault]:
    """A published record, from which a sweep over an empty store takes its answers: one line that names the file."""
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(Path(folder))
        whole = subject.copied()
        with restored(home() / PUBLISHED):
            remove(home() / PUBLISHED)
            Forked(subject.sweep, whole, False).wait(LIMIT)
            found = [home() / PUBLISHED / f"{row['run'].identity}.json" for row in subject.grid]
            for path in found[:2]:
                for fault, damage in damages(path, BYTES | JSON, found[2:], max(1, number // 2)):
                    if fault == "unreadable" and os.geteuid() == 0:
                        continue  # to root nothing is unreadable; the store's files are tried as nobody
                    with restored(path):
                        damage(path)
                        remove(subject.used)
                        ended = Forked(subject.sweep, subject.used, True).wait(LIMIT)
                        problems = ending(ended, path.name if ended.code and fault != "deleted" else "")
                        if ended.code == 0 and json.loads(ended.out.splitlines()[0]) != subject.told:
                            problems.append(("believed", "the sweep gives other answers"))
                        if ended.code == 0 and not ended.err and fault != "deleted":
                            problems += _republished(subject, path)
                    yield Fault(f"{path.name}: {fault}", problems)


def _republished(subject: Subject, path: Path) -> Problems:
    """What is wrong with a record that was published again after damage of which nothing was said."""
    run = next(row["run"] for row in subject.grid if row["run"].identity == path.stem)
    ended = Forked(Store(subject.used).publish, [run], "quick").wait(LIMIT)
    if ended.code or ended.err:
        return ending(ended)
    return [] if json.loads(path.read_text()) == subject.published[path.name] else [
        ("believed", "damage that a sweep did not notice is published again")]


def settings(number: int) -> Iterator[Fault]:
    """Settings files; what is valid though altered is what somebody asked for."""
    kinds: dict[str, Damage] = BYTES | {name: TEXT[name] for name in ("nested too deeply", "not text")}
    names = ("start_here.yaml", "scales.yaml")
    for name, sibling in zip(names, reversed(names), strict=True):
        path = home() / "notebooks/settings" / name
        for fault, damage in damages(path, kinds, [path.with_name(sibling)], max(1, number // 2)):
            with restored(path):
                damage(path)
                ended = Forked(studies.experiments, "quick", nobody=fault == "unreadable").wait(30)
            yield Fault(f"{name}: {fault}", ending(ended))


SLIPS = {  # of a person, in a file of reported numbers: the text, and what becomes of it
    "a direction in capitals": ("direction: increase", "direction: Increase"),
    "a direction misspelt": ("direction: increase", "direction: increas"),
    "a value not a number": ("value: ", "value: .nan # "),
    "a value infinite": ("value: ", "value: .inf # "),
    "a value as text": ("value: ", "value: '7' # "),
    "a value true": ("value: ", "value: true # "),
    "a margin below zero": ("margin: ", "margin: -"),
    "a kind misspelt": ("kind: reported", "kind: Reported"),
    "a grade misspelt": ("grade: paper", "grade: papr"),
    "a key misspelt": ("statement: ", "statment: "),
    "a section misspelt": ("\nledger:", "\nledgr:"),
    "an unknown section": ("\nclaims:", "\nsomething: 1\nclaims:"),
    "a key twice": ("    value: ", "    value: 1\n    value: "),
    "a unit as a list": ("unit: ", "unit: [1] # "),
    "a statement as a number": ("statement: ", "statement: 7 # "),
    "a source as a mapping": ("source: ", "source: {a: 1} # "),
    "a lower bound as text": ("kind: reported", "kind: reported\n    lower_bound: 'no'"),
    "a derived flag as text": ("kind: reported", "kind: reported\n    derived: 'false'"),
}


def reported(number: int) -> Iterator[Fault]:
    """Files of reported numbers: damaged as any, or by a slip of a person, which has to be refused."""
    folder = home() / "data/reported"
    kinds: dict[str, Damage] = BYTES | {name: TEXT[name] for name in ("nested too deeply", "not text")}
    for name in ("iwi", "fk_resnet"):
        path = folder / f"{name}.yaml"
        for fault, damage in damages(path, kinds, [folder / "rsr.yaml"], max(1, number // 4)):
            with restored(path):
                damage(path)
                ended = Forked(papers.load, name, nobody=fault == "unreadable").wait(30)
            problems = ending(ended)
            if ended.code == 0 and fault == "a sibling in its place":
                problems.append(("believed", "the numbers of another paper are taken for this one's"))
            yield Fault(f"{path.name}: {fault}", problems)
        for fault, (before, after) in evenly(list(SLIPS.items()), max(1, number // 4)):
            if before not in path.read_text():
                continue
            with restored(path):
                path.write_text(path.read_text().replace(before, after, 1))
                ended = Forked(papers.load, name).wait(30)
            yield Fault(f"{path.name}: {fault}", ending(ended) + (
                [("believed", "it is taken as it stands")] if ended.code == 0 else []))


NO_NETWORK = dict.fromkeys(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"], "http://127.0.0.1:9")
DATA = {"mnist": ("MNIST/raw", "t10k-labels-idx1-ubyte", "train-labels-idx1-ubyte"),
        "cifar10": ("cifar-10-batches-bin", "test_batch.bin", "data_batch_1.bin")}


def no_data() -> str:
    """Why no data set can be damaged here; nothing if there is one."""
    here = [name for name, (folder, *_) in DATA.items() if (data_folder() / folder).exists()]
    return "" if here else f"no data set is in {data_folder()}: sparserobust data mnist fetches one"


def data_folder() -> Path:
    return Path(os.environ["SPARSEROBUST_DATA"])


def data_sets(number: int) -> Iterator[Fault]:
    """A file of a data set, without a network to fetch it anew; the others are links to the real ones."""
    for name, (folder, damaged, sibling) in DATA.items():
        real = data_folder() / folder
        if not real.exists():
            continue
        whole = Forked(_load, name, data_folder()).wait(LIMIT)
        for fault, damage in damages(real / damaged, BYTES, [real / sibling], max(1, number // 2)):
            with tempfile.TemporaryDirectory() as there:
                Path(there).chmod(0o755)
                (Path(there) / folder).mkdir(parents=True)
                for path in real.iterdir():
                    (Path(there) / folder / path.name).symlink_to(path)
                copy = Path(there) / folder / damaged
                copy.unlink()
                shutil.copy(real / damaged, copy)
                damage(copy)
                ended = Forked(_load, name, there, nobody=fault == "unreadable").wait(60)
            problems = ending(ended)
            if ended.code == 0 and ended.out != whole.out:
                problems.append(("believed", "other images are read"))
            yield Fault(f"{damaged}: {fault}", problems)


def _load(name: str, folder: Path) -> None:
    """Print a digest of a data set that lies in this folder, without a network."""
    os.environ |= NO_NETWORK | {"SPARSEROBUST_DATA": str(folder)}
    splits = data.load(name)
    print([float((split.images.double().mean((1, 2, 3)) * (split.labels + 1)).sum())
           for split in (splits.train, splits.validation, splits.test)])
