"""What all properties share: faults and what is wrong after them, a project of its own, work in a process of its own,
and what can be done to a file."""

import json
import os
import random
import shutil
import signal
import string
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534
KINDS = {
    "lost": "results that were there, and are gone",
    "believed": "wrong answers or files, taken for right",
    "unsaid": "damage that was met without a word, or without the name of the file",
    "traceback": "ends other than with an answer or with one line that says why not",
    "hang": "no end within the limit",
    "left": "processes, or files, that stay behind",
}
Problems = list[tuple[str, str]]  # the kind, and what happened


class Fault(NamedTuple):
    """One fault that was tried, and what was wrong afterwards."""

    name: str
    problems: Problems


# ---------------------------------------------------------------------------------------------------- the project


def make_project(folder: Path) -> dict[str, str]:
    """A small project: the first page, its settings, reported numbers, figures of one page, and nothing computed.
    Returns the environment in which the library takes it for the project."""
    home = folder / "above" / "it" / "project"
    for name in ("notebooks/00_start_here.ipynb", "notebooks/own_method.py", "notebooks/settings/scales.yaml",
                 "notebooks/settings/start_here.yaml", "data/reported", "figures/quick/01_fk_resnet", "README.md",
                 "docs"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, home / name)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return {"SPARSEROBUST_HOME": str(home), "SPARSEROBUST_STORE": str(folder / "store"), "SPARSEROBUST_DEVICE": "cpu",
            "SPARSEROBUST_DATA": os.environ.get("SPARSEROBUST_DATA") or str(REPOSITORY / "data"),
            "SPARSEROBUST_FIGURES": "", "DASK_SCHEDULER_ADDRESS": "", "OMP_NUM_THREADS": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}


def home() -> Path:
    return Path(os.environ["SPARSEROBUST_HOME"])


@contextmanager
def restored(*paths: Path) -> Iterator[None]:
    """After the block these files and folders are as before, or not there if they were not."""
    with tempfile.TemporaryDirectory() as folder:
        kept = {path: Path(folder) / str(number) for number, path in enumerate(paths)}
        for path, copy in kept.items():
            if path.exists():
                (shutil.copytree if path.is_dir() else shutil.copy2)(path, copy)
        try:
            yield
        finally:
            for path, copy in kept.items():
                remove(path)
                if copy.exists():
                    (shutil.copytree if copy.is_dir() else shutil.copy2)(copy, path)


def remove(path: Path) -> None:
    """A file or a whole folder, if it is there, whatever its permissions."""
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o755)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------- a process of its own


class Ended(NamedTuple):
    """How work in a process of its own ended: its exit code (None: it hung and was killed) and what it said."""

    code: int | None
    out: str
    err: str


def said(file: IO[str]) -> str:
    """All that was written into a file."""
    file.seek(0)
    return file.read()


class Forked:
    """`work(*arguments)` in a fork of this process, which has imported the library already; `nobody`: as another user.
    Its exit code is the whole number that `work` returns, else 0; 1 after a `UserError`, said as on the command line.
    """

    def __init__(self, work: Callable[..., object], *arguments: object, nobody: bool = False):
        self.out, self.err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._be(lambda: work(*arguments), nobody)

    def _be(self, work: Callable[[], object], nobody: bool) -> None:
        from sparserobust.errors import UserError

        code: Any = 3
        try:
            os.setsid()
            os.dup2(self.out.fileno(), 1)
            os.dup2(self.err.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if nobody and os.geteuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            code = work()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 0)

    def running(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def kill(self) -> None:
        """It and what it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, limit: float = 60) -> Ended:
        """Until it ends, or is killed after so many seconds."""
        end = time.monotonic() + limit
        while (runs := self.running()) and time.monotonic() < end:
            time.sleep(0.002)
        self.kill()
        while self.running():
            time.sleep(0.002)
        return Ended(None if runs else self.code, said(self.out), said(self.err))


def ending(ended: Ended, word: str = "") -> Problems:
    """What is wrong with an end that should be an answer, or one line that says, with this word, why there is none."""
    if ended.code is None:
        return [("hang", f"hangs, and says: {ended.err[-500:]}")]
    said = [line for line in ended.err.splitlines() if "error: " in line]
    if ended.code == 0 and "Traceback" not in ended.err:
        return []
    if ended.code in (1, 2) and said and "Traceback" not in ended.err:
        return [] if word in ended.err else [("unsaid", f"says nothing of {word}: {said[-1]}")]
    return [("traceback", f"ends with {ended.code}, and says: {' | '.join(ended.err.splitlines()[-2:])[-500:]}")]


# ------------------------------------------------------------------------------------------------- faults of a file


Damage = Callable[[Path, random.Random, list[Path]], None]  # the file, chance, and its siblings


def _bytes(change: Callable[[bytes, random.Random], bytes]) -> Damage:
    return lambda path, chance, siblings: _write(path, change(path.read_bytes(), chance))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _flipped(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1:]


def _digit(content: bytes, chance: random.Random) -> bytes:
    """One digit changed, of those in text."""
    text = content[:content.find(b"}}", 8) + 1] if content[:1] not in b"{[#\n" and b"}}" in content else content
    place = chance.choice([n for n, byte in enumerate(text) if chr(byte) in string.digits])
    other = chance.choice([d for d in string.digits if ord(d) != content[place]])
    return content[:place] + other.encode() + content[place + 1:]


def _swapped(path: Path, chance: random.Random, siblings: list[Path]) -> None:
    _write(path, chance.choice(siblings).read_bytes())


def _folder(path: Path, chance: random.Random, siblings: list[Path]) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("")


def _json(change: Callable[[dict, random.Random], object]) -> Damage:
    def damage(path: Path, chance: random.Random, siblings: list[Path]) -> None:
        content = json.loads(path.read_text())
        change(content, chance)
        _write(path, json.dumps(content, indent=1, sort_keys=True).encode())

    return damage


def _places(content: Any, of_values: bool) -> list[tuple[dict, str]]:
    """Each dictionary within and each of its keys; with `of_values` only those that lead to no further dictionary."""
    found = []
    for key, value in content.items():
        if not (of_values and isinstance(value, dict) and value):
            found.append((content, key))
        if isinstance(value, dict):
            found += _places(value, of_values)
    return found


def _set(value: object, name: str = "") -> Damage:
    """Another value in a place of this name, if there is any, else anywhere."""
    def change(content: dict, chance: random.Random) -> None:
        places = _places(content, True)
        container, key = chance.choice([p for p in places if p[1] == name] or places)
        container[key] = value

    return _json(change)


def _without(content: dict, chance: random.Random) -> None:
    container, key = chance.choice(_places(content, False))
    del container[key]


BYTES: dict[str, Damage] = {
    "truncated": _bytes(lambda content, chance: content[:chance.randrange(1, max(len(content), 2))]),
    "emptied": _bytes(lambda content, chance: b""),
    "zeroed": _bytes(lambda content, chance: bytes(len(content))),
    "a bit flipped": _bytes(_flipped),
    "another bit flipped": _bytes(_flipped),
    "a third bit flipped": _bytes(_flipped),
    "a sibling in its place": _swapped,
    "deleted": lambda path, chance, siblings: path.unlink(),
    "a folder in its place": _folder,
    "unreadable": lambda path, chance, siblings: path.chmod(0),
}
TEXT: dict[str, Damage] = {
    "a digit changed": _bytes(_digit), "another digit changed": _bytes(_digit), "a third digit changed": _bytes(_digit),
    "nested too deeply": _bytes(lambda content, chance: b"[" * 100_000),
    "not text": _bytes(lambda content, chance: b"\xff\xfe" + content),
}
JSON: dict[str, Damage] = TEXT | {
    "its value 7": _set(7, "value"), "its value NaN": _set(float("nan"), "value"), "its value text": _set("x", "value"),
    "its value null": _set(None, "value"), "some value 7": _set(7), "some value NaN": _set(float("nan")),
    "some value text": _set("x"), "a key removed": _json(_without), "another key removed": _json(_without),
    "a third key removed": _json(_without),
    "a list in its place": _bytes(lambda content, chance: b"[]\n"),
}


def may_be_nobody() -> bool:
    """Whether a permission can be missing: to root none is, unless it can be another user who finds the library."""
    found = [Path(sys.prefix).resolve(), REPOSITORY]
    return os.geteuid() != 0 or all(each.stat().st_mode & 1 for path in found for each in (path, *path.parents))


def damages(path: Path, kinds: dict[str, Damage], siblings: list[Path], only: int) -> Iterator[tuple[str, Callable]]:
    """So many of these faults, evenly chosen: the name of each and how to do it to a file."""
    for name, damage in evenly(list(kinds.items()), only):
        if (siblings or damage is not _swapped) and (name != "unreadable" or may_be_nobody()):
            yield name, lambda where, damage=damage, name=name: damage(where, random.Random(f"{path.name} {name}"),
                                                                       siblings)


def evenly(items: list, number: int) -> list:
    """So many of the items, from the first on at equal distances."""
    return [items[n * len(items) // number] for n in range(number)] if number < len(items) else items
