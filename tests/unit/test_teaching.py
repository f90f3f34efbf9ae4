"""Handing out and grading, with a toy page in a project of its own: a class of honest, wrong and hostile submissions is
graded once, and each test looks at what became of one of them, or of all others."""

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy
import pandas
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell

from sparserobust import Run, files, notebook_runner
from sparserobust.sparsifiers import Magnitude
from sparserobust.teaching import answering, grading, handout, sandbox

START = """
from types import SimpleNamespace
import torch
from sparserobust.studies import checks

def close(answer):
    return checks.number(answer, 0.25, "a quarter", {0.5: "that is a half"})

def named(answer):
    return checks.choice(answer, "deep", "it is", {"wide": "it is not"})

exercises = SimpleNamespace(exercise_1=checks.exercise(close), exercise_2=checks.exercise(named))
"""


def page() -> nbformat.NotebookNode:
    cells = [new_markdown_cell("# A toy", id="title"), new_code_cell(START.strip(), id="start"),
             new_markdown_cell("Answers. Solutions are folded.", id="exercises")]
    for number, solution, said in (("1", "half = 1 / 2\nanswer = half**2", "Half of\na half."),
                                   ("2", "answer = 'deep'", "")):
        cells += [new_markdown_cell(f"**{number}.** What?", id=f"exercise-{number}-text"),
                  new_code_cell(f"answer = ...  # your answer\nexercises.exercise_{number}(answer)",
                                id=f"exercise-{number}", execution_count=3),
                  new_markdown_cell(f"<details><summary>Solution</summary>\n\n```python\n{solution}\n```\n\n{said}\n\n"
                                    "</details>", id=f"solution-{number}")]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def answered(*sources: str | None, before: str = "") -> nbformat.NotebookNode:
    """What a student hands in: these answers, and a cell more before them."""
    handed_in = handout.students(page())
    for number, source in enumerate(sources, 1):
        if source is not None:
            next(cell for cell in handed_in.cells if cell.id == f"exercise-{number}").source = source
    if before:
        handed_in.cells.insert(2, new_code_cell(before))
    return handed_in


# --------------------------------------------------------------------------------------------------------- handing out


def test_the_page_of_the_class_has_no_outputs_and_no_solutions():
    sources = [cell.source for cell in handout.students(page()).cells]
    assert sources[2] == "Answers."
    assert sources[3:] == ["**1.** What?", "answer = ...  # your answer",
                           "verdict = exercises.exercise_1(answer)\nverdict", "**2.** What?",
                           "answer = ...  # your answer", "verdict = exercises.exercise_2(answer)\nverdict"]
    assert all(cell.execution_count is None and not cell.outputs for cell in handout.students(page()).cells
               if cell.cell_type == "code")


def test_the_teachers_edition_has_solutions_and_hidden_tests():
    cells = {cell.id: cell for cell in handout.teachers(page()).cells}
    assert cells["exercise-1"].source == ("### BEGIN SOLUTION\nhalf = 1 / 2\nanswer = half**2\n# Half of\n# a half.\n"
                                          "### END SOLUTION")
    assert 'assert verdict.startswith("right: "), verdict' in cells["exercise-1-check"].source
    assert cells["exercise-1"].metadata.nbgrader.solution and not cells["exercise-1"].metadata.nbgrader.locked
    check = cells["exercise-1-check"].metadata.nbgrader
    assert check.grade and check.locked and check.points == 1 and not check.solution


@pytest.mark.parametrize("name", notebook_runner.names())
def test_nbgrader_accepts_every_page_and_makes_the_same_of_the_teachers_edition(name):
    from nbgrader.nbgraderformat import MetadataValidator
    from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions

    original = nbformat.read(notebook_runner.find(name), as_version=4)
    handed_out, made = handout.students(original), handout.teachers(original)
    for edition in (handed_out, made):
        nbformat.validate(edition)
        MetadataValidator().validate_nb(edition)
    stub = {"python": "answer = ...  # your answer"}
    assert json.dumps(stub) in handout.CONFIGURATION
    for step in (ClearSolutions(code_stub=stub), ClearHiddenTests()):
        made, _ = step.preprocess(made, {})
    assert made == handed_out


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A project with one page."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "notebooks").mkdir()
    nbformat.write(page(), folder / "notebooks" / "90_toy.ipynb")
    return folder


def command(home: Path, *words: str | Path | float) -> subprocess.CompletedProcess:
    here = {f"SPARSEROBUST_{name}": str(home / name.lower()) for name in ("STORE", "BUILD", "FIGURES")}
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=home,
                          env=os.environ | here | {"SPARSEROBUST_HOME": str(home)})


@pytest.fixture(scope="module")
def course(home) -> Path:
    done = command(home, "-m", "sparserobust.cli", "handout", "toy", "-o", "course")
    assert done.returncode == 0, done.stderr
    return home / "course"


def test_a_handout_is_never_written_over(home, course):
    done = command(home, "-m", "sparserobust.cli", "handout", "90_toy", "-o", "course")
    assert done.returncode == 1 and "is there already" in done.stderr and len(done.stderr.splitlines()) == 1


def test_before_anything_comes_back_there_is_nothing_to_grade(home, course):
    """The page that is handed out and the teacher's edition lie in the same folder."""
    done = command(home, "-m", "sparserobust.cli", "grade", "course")
    assert done.returncode == 1 and "no notebooks in" in done.stderr and len(done.stderr.splitlines()) == 1


def test_nbgrader_validates_releases_and_grades_it(course):
    """Its own commands, as a teacher types them: the release is ours, and so are the points."""
    with_alembic = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def nbgrader(*words: str):
        return subprocess.run([sys.executable, "-m", "nbgrader", *words], cwd=course, capture_output=True, text=True,
                              env=with_alembic)

    ours = (course / "release" / "90_toy" / "90_toy.ipynb").read_text()
    assert "Success" in nbgrader("validate", "source/90_toy/90_toy.ipynb").stdout
    done = nbgrader("generate_assignment", "90_toy", "--force")
    assert done.returncode == 0, done.stderr
    theirs = nbformat.read(course / "release" / "90_toy" / "90_toy.ipynb", as_version=4)
    assert [cell.source for cell in theirs.cells] == [cell.source for cell in nbformat.reads(ours, as_version=4).cells]
    for name, answers in (("half", ("answer = 0.25", "answer = 'wide'")), ("whole", GOOD)):
        for number, answer in enumerate(answers, 1):
            next(cell for cell in theirs.cells if cell.id == f"exercise-{number}").source = answer
        folder = course / "submitted" / name / "90_toy"
        folder.mkdir(parents=True)
        nbformat.write(theirs, folder / "90_toy.ipynb")
    done = nbgrader("autograde", "90_toy")
    assert done.returncode == 0, done.stderr
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course}/gradebook.db") as book:
        scores = {name: book.find_submission("90_toy", name).score for name in ("half", "whole")}
    assert scores == {"half": 1, "whole": 2}


# ------------------------------------------------------------------------------------------------------------- grading

GOOD = "answer = 0.25", "answer = 'deep'"
LISTENING = socket.create_server(("127.0.0.1", 0))
MEDDLING = """
from sparserobust.studies import checks
checks.number = checks.choice = lambda *_, **__: checks.right("so")
exercises.exercise_1 = exercises.exercise_2 = lambda answer: checks.right("so")
close.__code__ = (lambda answer: checks.right("so")).__code__
"""
DESTRUCTIVE = """
import pathlib, shutil, os
for place in (os.environ["SPARSEROBUST_HOME"], os.environ["SPARSEROBUST_STORE"]):
    shutil.rmtree(place, ignore_errors=True)
for path in pathlib.Path(os.environ["SPARSEROBUST_HOME"]).rglob("*.ipynb"):
    try:
        path.write_text("gone")
    except OSError:
        pass
"""
SPYING = """
import os, pathlib
files = list(pathlib.Path(os.environ["SPARSEROBUST_HOME"], "class").rglob("*.ipynb"))
seen = any(path.read_text() for path in files) or not files
"""
KILLING = """
import os, signal
for process in {os.getppid(), 1, -1, *(int(name) for name in os.listdir("/proc") if name.isdigit())} - {os.getpid()}:
    try:
        os.kill(process, signal.SIGKILL)
    except OSError:
        pass
"""
FORGING = """
import json, os
said = json.dumps([{"submission": "wrong", "exercise": n, "outcome": "right", "words": "forged"} for n in "12"])
for file in range(1, 100):
    try:
        os.write(file, len(said).to_bytes(4, "big") + said.encode())
    except OSError:
        pass
"""
REMOUNTING = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x10000000 | 0x20000)
done = [libc.mount(None, place.encode(), None, ctypes.c_ulong(4096 | 32), None)
        for place in ("/", os.environ["SPARSEROBUST_HOME"])]
done += [libc.umount2(b"/dev", 2), libc.umount2(b"/proc", 2)]
escaped = any(each == 0 for each in done)
"""
CALLING = """
import socket
try:
    socket.create_connection(("127.0.0.1", PORT), timeout=5)
    reached = True
except OSError:
    reached = False
""".replace("PORT", str(LISTENING.getsockname()[1]))
STAYING = """
import subprocess
subprocess.Popen(["sleep", "98765"], start_new_session=True)
"""
FORKING = """
import os, time
for _ in range(300):
    if not os.fork():
        time.sleep(60)
        os._exit(0)
"""
SPREADING = """
import os, time
for _ in range(4):
    if not os.fork():
        full = b"full" * (150 << 20)
        time.sleep(60)
time.sleep(5)
"""
CLASS = {
    "right": answered(*GOOD), "wrong": answered("answer = 0.5", "answer = 'wide'"), "open": answered(),
    "half": answered(GOOD[0]), "own cell": answered("answer = mine", GOOD[1], before="mine = 1 / 4"),
    "error": answered("answer = 0.25 / nothing", GOOD[1]), "syntax": answered("answer = (", GOOD[1]),
    "late error": answered("answer = 0.25\nnothing", GOOD[1]),
    "loop": answered("while True:\n    pass", GOOD[1]),
    "stubborn": answered(GOOD[0], "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass"),
    "crash": answered(GOOD[0], "import ctypes\nctypes.string_at(0)"),
    "exit": answered(GOOD[0], "import os\nos._exit(0)"), "sys.exit": answered("raise SystemExit", GOOD[1]),
    "memory": answered("full = bytearray(4 << 30)", GOOD[1]), "spreading": answered(GOOD[0], SPREADING),
    "forking": answered(GOOD[0], FORKING),
    "disk": answered("with open('full', 'wb') as file:\n    while True: file.write(bytes(1 << 24))", GOOD[1]),
    "meddling": answered("answer = 0.5", "answer = 'wide'", before=MEDDLING),
    "destructive": answered(*GOOD, before=DESTRUCTIVE), "killing": answered(*GOOD, before=KILLING),
    "forging": answered("answer = 0.5", "answer = 'wide'", before=FORGING),
    "spying": answered("answer = 0.5 if seen else 0.25", GOOD[1], before=SPYING),
    "staying": answered(*GOOD, before=STAYING),
    "calling": answered("answer = 0.5 if reached else 0.25", GOOD[1], before=CALLING),
    "remounting": answered("answer = 0.5 if escaped else 0.25", GOOD[1], before=REMOUNTING),
    "storing": answered("import os, pathlib\npath = pathlib.Path(os.environ['SPARSEROBUST_STORE'], 'kept')\n"
                        "path.write_text('mine')\nanswer = 0.25 * (path.read_text() == 'mine')", GOOD[1]),
    "class": answered("class Odd:\n    __eq__ = __float__ = lambda *_: 0.25\nanswer = Odd()", "answer = 10**5000"),
    "function": answered("answer = lambda images: images", "answer = float('nan')"),
    "noise": answered("print('right: so\\n' * 10**6)\nanswer = 0.5", "answer = '\\x1b[2J' * 10**6"),
}
SECONDS = 6


def handed_in(folder: Path) -> None:
    for name, notebook in CLASS.items():
        (folder / name).mkdir(parents=True)
        for cell in notebook.cells:
            if cell.id.endswith("-check"):  # what a submission shows counts for nothing
                cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "right: so"})]
        nbformat.write(notebook, folder / name / "90_toy.ipynb")
    (folder / "binary.ipynb").write_bytes(bytes(range(256)))
    (folder / "deep.ipynb").write_text("[" * 100_000)
    (folder / "list.ipynb").write_text('{"cells": [1, null]}')
    (folder / "gone.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook()))


@pytest.fixture(scope="module")
def graded(home) -> SimpleNamespace:
    folder, kept = home / "class", home / "store" / "kept"
    handed_in(folder)
    kept.parent.mkdir()
    kept.write_text("theirs")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    done = command(home, "-m", "sparserobust.cli", "grade", folder, "--seconds", SECONDS, "--memory", "1", "-o",
                   home / "grades.csv")
    assert done.returncode == 0, done.stderr
    rows = pandas.read_csv(home / "grades.csv", dtype=str).set_index(["submission", "exercise"])
    after = {path: path.read_bytes() for path in before if path.exists()}
    return SimpleNamespace(rows=rows, out=done.stdout, err=done.stderr, unharmed=before == after, kept=kept)


OUTCOMES = {
    "right": ("right", "right"), "wrong": ("not yet", "not yet"), "open": ("-", "-"), "half": ("right", "-"),
    "own cell": ("right", "right"), "error": ("error", "right"), "syntax": ("error", "right"),
    "late error": ("right", "right"), "loop": ("time", "right"), "stubborn": ("right", "time"),
    "crash": ("right", "error"), "exit": ("right", "error"), "sys.exit": ("error", "right"),
    "memory": ("error", "right"), "spreading": ("right", "error"), "forking": ("right", "error"),
    "disk": ("error", "right"),
    "meddling": ("not yet", "not yet"), "destructive": ("right", "right"), "killing": ("right", "right"),
    "forging": ("not yet", "not yet"), "spying": ("right", "right"), "staying": ("right", "right"),
    "calling": ("right", "right"), "remounting": ("right", "right"), "storing": ("right", "right"),
    "class": ("not yet", "not yet"), "function": ("by hand", "not yet"), "noise": ("not yet", "not yet"),
    "binary": ("error", "error"), "deep": ("error", "error"), "list": ("error", "error"), "gone": ("-", "-")}


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_submission_gets_what_it_earns_whatever_the_others_do(graded, name):
    rows = graded.rows.loc[name]
    assert tuple(rows["outcome"]) == OUTCOMES[name], rows["words"].tolist()


def test_everybody_is_in_the_table(graded):
    others = {"binary", "deep", "list", "gone"}
    assert set(graded.rows.index.get_level_values(0)) == OUTCOMES.keys() == CLASS.keys() | others
    table = {line.rsplit("  ", 1)[0].split("  ")[0]: line.split()[-1] for line in graded.out.splitlines()
             if line}
    assert table["right"] == "2" and table["wrong"] == "0" and table["half"] == "1"
    assert f"90_toy: {len(OUTCOMES)} submissions in " in graded.out and not graded.err
    assert "exercise 1, not yet: that is a half (forging, meddling, noise, wrong)" in graded.out
    assert "own solutions" not in graded.out and graded.out.replace("\n", "").isprintable()


@pytest.mark.parametrize("name, number, words", [
    ("wrong", "1", "not yet: that is a half"), ("right", "1", "right: a quarter"),
    ("error", "1", "NameError: name 'nothing' is not defined"),
    ("open", "2", "not answered yet: replace the three dots"),
    ("loop", "1", f"the cell took longer than {SECONDS} seconds"),
    ("stubborn", "2", f"it took longer than {3 * SECONDS} seconds"), ("memory", "1", "MemoryError"),
    ("spreading", "2", "it took too much memory"), ("forking", "2", "it had more than 64 processes"),
    ("disk", "1", "OSError: [Errno 28] No space left on device"), ("crash", "2", "its process ended"),
    ("class", "1", "not yet: a number is expected, not an Odd"), ("binary", "1", "cannot be read: not a notebook"),
    ("gone", "1", "its cell is gone")])
def test_the_words_are_the_checks_own_or_those_of_the_error(graded, name, number, words):
    said = graded.rows.loc[(name, number), "words"]
    assert said == words or (words == "OSError: [Errno 28] No space left on device" and "File too large" in said)


def test_nothing_is_harmed_and_nothing_stays(graded):
    assert graded.unharmed and graded.kept.read_text() == "theirs"
    LISTENING.setblocking(False)
    with pytest.raises(BlockingIOError):
        LISTENING.accept()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert b"98765" not in path.read_bytes()


def test_without_a_sandbox_limits_hold(home, graded):
    folder = home / "trusted"
    for name in ("right", "wrong", "loop", "memory", "crash", "calling"):
        (folder / name).mkdir(parents=True)
        nbformat.write(CLASS[name], folder / name / "90_toy.ipynb")
    done = command(home, "-m", "sparserobust.cli", "grade", folder, "--seconds", "3", "--memory", "1", "--no-sandbox")
    assert done.returncode == 0, done.stderr
    rows = pandas.read_csv(folder / "grades.csv", dtype=str).groupby("submission")["outcome"].agg(tuple)
    assert rows.to_dict() == {name: OUTCOMES[name] for name in rows.index} and len(rows) == 6


@pytest.mark.parametrize("made, said", [([], "no notebooks in"), (["x.ipynb", "y.ipynb"], "says of which page it is"),
                                        (["a/90_toy.ipynb", "a/more.ipynb"], "two notebooks of 'a'")])
def test_a_folder_that_cannot_be_graded_is_said_in_one_line(home, tmp_path, made, said):
    for name in made:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    done = command(home, "-m", "sparserobust.cli", "grade", tmp_path)
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1


# -------------------------------------------------------------------------------------------------------- plain answers


@pytest.mark.parametrize("answer", [..., True, 3, 0.5, "word", -10**20])
def test_plain_answers_come_back_as_they_were(answer):
    assert answering.restored(json.loads(json.dumps(answering.plain(answer)))) == answer


def test_numbers_that_are_none_come_back_as_such():
    assert math.isnan(answering.restored(json.loads(json.dumps(answering.plain(math.nan)))))
    assert [answering.restored(answering.plain(sign * 10**5000)) for sign in (1, -1)] == [math.inf, -math.inf]


def test_of_a_course_with_several_pages_one_is_graded(tmp_path):
    first, second = notebook_runner.names()[:2]
    for name in (first, second):
        (tmp_path / "submitted" / "anna" / name).mkdir(parents=True)
        (tmp_path / "submitted" / "anna" / name / f"{name}.ipynb").write_text("{}")
    assert [(each.name, each.path.stem) for each in grading.submissions(tmp_path, second)] == [("anna", second)]


def test_scalars_of_any_library_are_numbers():
    for half in (numpy.float32(0.5), torch.tensor([0.5]), pandas.Series([0.5]), numpy.array(0.5)):
        assert answering.restored(answering.plain(half)) == 0.5
    for other in (numpy.zeros(2), torch.zeros(2), None, [1], pandas.DataFrame(), 0.5j):
        assert type(answering.restored(answering.plain(other))).__name__ == type(other).__name__


class Raises:
    """Whoever looks at it gets an error that `item` alone would not give."""

    def item(self):
        raise AttributeError("no")


@pytest.mark.parametrize("answer", [torch.nn.LazyLinear(3), torch.nn.Linear(2, 2, device="meta"), Raises()],
                         ids=["lazy", "meta", "raises"])
def test_an_odd_answer_does_not_end_a_submission(answer):
    assert answering.plain(answer) == {"kind": "other", "type": type(answer).__name__}


def test_a_run_comes_back_and_one_from_outside_does_not(tiny_run):
    run = tiny_run(sparsifier=Magnitude(sparsity=0.5), start=tiny_run())
    for answer in (run, {"run": run, "net": "A"}):
        assert answering.restored(json.loads(json.dumps(answering.plain(answer)))) == run
    evil = answering.plain(run)
    evil["settings"]["model"] = {"kind": "foreign", "builder": "evil.py:build"}
    assert not isinstance(answering.restored(evil), Run)


def test_a_network_comes_back_as_the_one_that_is_expected_with_other_tensors():
    like, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    given = json.loads(json.dumps(answering.plain(other)))
    assert torch.equal(answering.restored(given, like).weight, other.weight)
    for unlike in (torch.nn.Linear(2, 3), torch.nn.Linear(3, 2).double(), None):
        assert not answering.restored(given, unlike).state_dict()
    assert files.packed({"a": torch.ones(1)}) in (answering.base64.b64decode(answering.plain(
        torch.nn.ParameterDict({"a": torch.ones(1)}))["tensors"]),)


def test_a_cell_of_the_page_is_not_asked_again(tmp_path):
    nbformat.write(answered(GOOD[0], before="mine = 1"), path := tmp_path / "a.ipynb")
    found = grading.cells(path, handout.students(page()))
    assert found == [("mine = 1", "", False), ("answer = 0.25", "1", False),
                     ("verdict = exercises.exercise_1(answer)\nverdict", "1", True),
                     ("answer = ...  # your answer", "2", False),
                     ("verdict = exercises.exercise_2(answer)\nverdict", "2", True)]


def test_processes_can_be_confined_here():
    assert sandbox.possible() == ""
