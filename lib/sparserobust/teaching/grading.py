"""A folder of submissions of one page: who solved what.

The page is executed once, in this process. For each submission it is forked twice: in a sandbox (`sandbox.run`) what
the submission changed or added is executed on top of it, and its answers come back as plain data (`answering`);
another fork, in which nothing of the submission is ever executed, checks them with the page's own code and results. So
a verdict is never taken from a process that a submission could have meddled with, nor from the outputs that it holds.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import nbformat
import pandas
import torch

from sparserobust import notebook_runner, paths, studies
from sparserobust.errors import UserError, quoted
from sparserobust.running import sweep
from sparserobust.running.store import Store
from sparserobust.teaching import handout, sandbox
from sparserobust.teaching.answering import Cell, Page, described, one_line, restored

SIZE = 20 << 20  # bytes of a submission
CELLS_WORTH = 3  # times as long as one cell may take a whole submission
PATIENCE = 600  # seconds that checks may take: some train
WORDS = 500  # characters of a check's words
FORMULA = "=+-@ "  # what makes one of a text in a spreadsheet
NONE, ERROR, TIME, BY_HAND = "-", "error", "time", "by hand"  # beside the check's own "right" and "not yet"


@dataclass(frozen=True)
class Submission:
    """Whose it is, and where it lies."""

    name: str
    path: Path


@dataclass(frozen=True)
class Limits:
    """Of one submission: seconds that a cell may take, and bytes of memory; whether it is confined."""

    seconds: float = 60
    memory: int = 2 << 30
    confined: bool = True


def submissions(folder: Path, page: str | None = None) -> list[Submission]:
    """The notebooks in a folder, or in its `submitted/` where it is an nbgrader course, each named after the first
    folder on the way to it, or itself; without those that are named like another page than `page`. `UserError` if
    there is none, or two of one name."""
    others = set(notebook_runner.names()) - {page} if page else set()
    inside = folder / "submitted" if (folder / "submitted").is_dir() else folder
    found: dict[str, Submission] = {}
    for path in sorted(inside.rglob("*.ipynb")):
        within = path.relative_to(inside)
        hidden = any(part.startswith(".") for part in within.parts)
        if hidden or path.stem in others or path.is_symlink() or not path.is_file():
            continue
        name = one_line(within.parts[0].removesuffix(".ipynb")).lstrip(FORMULA)
        if name in found:
            raise UserError(f"two notebooks of {quoted(name)}: {found[name].path}, {path}; --page says which to grade")
        found[name] = Submission(name, path)
    if not found:
        raise UserError(f"no notebooks in {inside}: what students hand in is a file NAME.ipynb or a folder NAME there")
    return list(found.values())


def page_of(given: list[Submission]) -> str:
    """The page that most submissions are of, by the name of their file or the library that they import."""
    known = notebook_runner.names()
    votes = [name for name in known for each in given if name in each.path.name or _mentions(each.path, name)]
    if not votes:
        raise UserError(f"no submission says of which page it is: say so, such as --page {known[0]}")
    return max(known, key=votes.count)


def _mentions(path: Path, name: str) -> bool:
    with path.open("rb") as file:
        return f'"{name}\\"'.encode() in file.read(SIZE)  # Artifacts(scale, "00_start_here")


def cells(path: Path, page: nbformat.NotebookNode) -> list[Cell]:
    """What a submission has to be asked for: its code cells that are not the page's own, and where it answers and
    checks its exercises. `UserError` for what is no notebook."""
    own = {cell.source.strip() for cell in page.cells if cell.cell_type == "code" and not _answers(cell)}
    if path.stat().st_size > SIZE:
        raise UserError(f"larger than {SIZE >> 20} MB")
    try:
        found = []
        for cell in json.loads(path.read_bytes())["cells"]:
            source = "".join(cell["source"]).strip()
            exercise, checks = _answers(cell) or ("", False)
            if cell["cell_type"] == "code" and source and (exercise or source not in own):
                found.append(Cell(source, exercise, checks))
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UnicodeDecodeError):
        raise UserError("not a notebook") from None


def _answers(cell) -> tuple[str, bool] | None:
    """Of which exercise a cell is the answer, or (True) the check; by nbgrader's name, which outlasts the cell's."""
    name = str(cell.get("metadata", {}).get("nbgrader", {}).get("grade_id") or cell.get("id", ""))
    found = handout.NAME.fullmatch(name)
    return (found[1], bool(found[2])) if found else None


class Class:
    """A page, executed in this process, on top of which submissions are graded."""

    def __init__(self, name: str, limits: Limits, scratch: Path):
        _compute(name)
        original = nbformat.read(notebook_runner.find(name), as_version=4)
        self.name, self.limits, self.scratch = name, limits, scratch
        self.checks, self.solutions = handout.checks(original), handout.solutions(original)
        self.handed_out, self.page = handout.students(original), Page()
        self.own = Submission(name, scratch / f"{name}.ipynb")
        nbformat.write(handout.teachers(original), self.own.path)
        for cell in self.handed_out.cells:
            if _answers(cell):
                break
            if cell.cell_type == "code" and (error := self.page.execute(cell.source)):
                raise UserError(f"{name}, cell {cell.id}: {error}")

    def graded(self, submission: Submission, hidden: list[Path]) -> list[dict]:
        """What each exercise of a submission comes to: a row each. To be called in a fork."""
        try:
            given, ended = self._given(cells(submission.path, self.handed_out), hidden)
        except (UserError, OSError) as error:
            given, ended = {}, f"cannot be read: {described(error)}"
        return [{"submission": submission.name, "exercise": number} | self._judged(number, given.get(number), ended)
                for number in self.checks]

    def _given(self, asked: list[Cell], hidden: list[Path]) -> tuple[dict[str, dict], str]:
        """The answers to the exercises as plain data, and why the submission's process was ended before its time."""
        seconds, limits = self.limits.seconds, sandbox.Limits(CELLS_WORTH * self.limits.seconds, self.limits.memory)
        said, ended = sandbox.run(lambda out: self.page.answer(asked, seconds, out), limits, self.scratch, hidden,
                                  paths.store_folder(), self.limits.confined)
        given: dict[str, dict] = {}
        for line in said.split(b"\n")[:-1]:
            try:
                entry = json.loads(line)
                given[entry["exercise"]] = {"answer": dict(entry["answer"]), "error": str(entry["error"])}
            except (ValueError, TypeError, KeyError, RecursionError):
                ended = "its answers cannot be read"
        missing = [cell.exercise for cell in asked if cell.exercise not in given]
        return given, ended or ("its process ended" if any(missing) else "")

    def _judged(self, number: str, given: dict | None, ended: str) -> dict:
        """What an answer comes to, and the check's own words, or those of an error."""
        if given is None:
            return _failed(ended) if ended else {"outcome": NONE, "words": "its cell is gone"}
        if given["answer"].get("kind") == "none" and given["error"]:
            return _failed(one_line(given["error"]))
        if given["answer"].get("kind") == "function":
            return {"outcome": BY_HAND, "words": "a function, which is not called here: run its cell"}
        try:
            like = self._solved(number) if given["answer"].get("kind") == "network" else None
            answer = restored(given["answer"], like)
        except Exception as error:  # whatever a submission made up
            return _failed(f"its answer cannot be read: {described(error)}")
        try:
            verdict = str(eval(self.checks[number], self.page.names | {"answer": answer}))
        except Exception as error:
            return _failed(f"the check failed: {described(error)}")
        outcome, _, _ = verdict.partition(": ")
        return {"outcome": {"not answered yet": NONE}.get(outcome, outcome), "words": one_line(verdict, WORDS)}

    def _solved(self, number: str):
        self.page.execute(self.solutions[number][0])
        return self.page.names.get("answer")


def _compute(name: str) -> None:
    """Compute what a page needs, elsewhere: the threads of a process that has trained would not survive a fork."""
    study, store = name.split("_", 1)[1], Store()
    if study in studies.modules() and sweep.missing(studies.modules()[study].experiment("quick").grid, {}, store):
        done = subprocess.run([sys.executable, "-m", "sparserobust.cli", "compute", "--study", study])
        if done.returncode:
            raise UserError(f"what {name} needs cannot be computed")


def _failed(words: str) -> dict:
    said = words.lstrip(FORMULA)
    return {"outcome": TIME if "took longer than" in said else ERROR, "words": said}


def grade(folder: Path, name: str | None, limits: Limits, workers: int) -> Iterator[list[dict]]:
    """The rows of one submission after the other, as they are finished; before them those of the page's own solutions.
    """
    page = notebook_runner.find(name).stem if name else None
    given, folder = submissions(folder, page), folder.resolve()
    hidden = [path for path in folder.rglob("*") if path.is_file()]
    torch.set_num_threads(1)  # before anything is computed: threads would not survive a fork
    with tempfile.TemporaryDirectory() as scratch, paths.figures_in(Path(scratch) / "figures"):
        os.environ |= {"SPARSEROBUST_BUILD": scratch, "SPARSEROBUST_DEVICE": "cpu", "MPLBACKEND": "agg"}
        course = Class(page or page_of(given), limits, Path(scratch))
        yield from _side_by_side(course, [course.own], hidden, 1)
        yield from _side_by_side(course, given, hidden, workers)


def _side_by_side(course: Class, given: list[Submission], hidden: list[Path], workers: int) -> Iterator[list[dict]]:
    fork, waiting = multiprocessing.get_context("fork"), given[::-1]
    running: dict[Connection, tuple] = {}
    patience = CELLS_WORTH * course.limits.seconds + PATIENCE

    def work(submission: Submission, out: Connection) -> None:
        out.send_bytes(json.dumps(course.graded(submission, hidden)).encode())

    while waiting or running:
        while waiting and len(running) < workers:
            reading, writing = fork.Pipe(duplex=False)
            process = fork.Process(target=work, args=(submission := waiting.pop(), writing))
            process.start()
            writing.close()
            running[reading] = submission, process, time.monotonic() + patience
        for _, process, end in running.values():
            if time.monotonic() > end:
                process.kill()
        ready = wait(list(running), 1)
        for reading in [each for each in running if each in ready]:
            submission, process, _ = running.pop(reading)
            try:
                yield json.loads(reading.recv_bytes())
            except EOFError:
                yield [{"submission": submission.name, "exercise": number} | _failed("its grading broke off")
                       for number in course.checks]
            process.join()


def table(rows: pandas.DataFrame) -> pandas.DataFrame:
    """A line for each submission, a column for each exercise: what it came to."""
    wide = rows.pivot(index="submission", columns="exercise", values="outcome")
    return wide.assign(solved=(wide == "right").sum(axis=1)).rename_axis(index=None, columns=None)


def said(rows: pandas.DataFrame) -> list[str]:
    """For each exercise, what was said of answers that are not right, the most frequent first, and of whose."""
    lines = []
    for number, of_exercise in rows[~rows["outcome"].isin(["right", NONE])].groupby("exercise"):
        groups = sorted(of_exercise.groupby("words")["submission"], key=lambda group: -len(group[1]))
        lines += [f"exercise {number}, {words} ({', '.join(sorted(names))})" for words, names in groups]
    return lines
