"""A page for a class, and its teacher's edition, in the folders of an nbgrader course: `release/` and `source/`.
`submitted/` is there for what comes back.

Each exercise of a page becomes two cells: one for the answer, and one that checks it, which nbgrader locks and grades.
The teacher's edition has the solution in the first and a hidden test in the second, so that
`nbgrader generate_assignment` makes the same page of it as is handed out here."""

import re
from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from sparserobust import files, notebook_runner, paths
from sparserobust.errors import UserError

NAME = re.compile(r"exercise-(\d+)(-check)?")  # of the cell that answers an exercise, and of the one that checks it
CONFIGURATION = '''# of this nbgrader course: what stands in place of a solution, and seconds that a cell may take
c = get_config()
c.ClearSolutions.code_stub = {"python": "answer = ...  # your answer"}
c.Execute.timeout = 600
'''


def write(name: str, folder: Path) -> tuple[Path, Path]:
    """Write a page to hand out and its teacher's edition into `folder`; their paths. `UserError` if one is there
    already: a teacher may have changed it."""
    page = notebook_runner.find(name)
    parts = {part: folder / part / page.stem / page.name for part in ("release", "source")}
    if there := next((path for path in parts.values() if path.exists()), None):
        raise UserError(f"{there} is there already: remove it, or name another folder")
    original = nbformat.read(page, as_version=4)
    for path, edition in zip(parts.values(), (students(original), teachers(original)), strict=True):
        paths.writable(path.parent)
        files.write(path, nbformat.writes(edition).encode() + b"\n")
    (folder / "submitted").mkdir(exist_ok=True)  # what comes back goes there, and only that is graded
    if not (configuration := folder / "nbgrader_config.py").exists():
        files.write(configuration, CONFIGURATION.encode())
    return parts["release"], parts["source"]


def exercise(cell: NotebookNode) -> str:
    """The number of the exercise that a cell of a page answers and checks, as text; nothing if it is none."""
    found = re.fullmatch(r"exercise-(\d+)", cell.get("id", ""))
    return found[1] if found else ""


def checks(page: NotebookNode) -> dict[str, str]:
    """What checks the answer of each exercise of a page, such as `exercises.exercise_1(answer)`, by its number."""
    return {exercise(cell): cell.source.split("\n", 1)[1] for cell in page.cells if exercise(cell)}


def solutions(page: NotebookNode) -> dict[str, tuple[str, str]]:
    """The code of each exercise's solution, and what is said of it."""
    found = {}
    for cell in page.cells:
        if name := re.fullmatch(r"solution-(\d+)", cell.get("id", "")):
            code, said = re.split(r"```python\n(.*?)\n```", cell.source, maxsplit=1, flags=re.DOTALL)[1:]
            found[name[1]] = code, said.replace("</details>", "").strip()
    return found


def students(page: NotebookNode) -> NotebookNode:
    """The page to hand out."""
    return _edition(page, {number: "answer = ...  # your answer" for number in checks(page)}, "")


def teachers(page: NotebookNode) -> NotebookNode:
    """The same with solutions and tests that `nbgrader generate_assignment` takes out."""
    answers = {}
    for number, (code, said) in solutions(page).items():
        comment = "\n".join(f"# {line}".rstrip() for line in said.split("\n") if said)
        answers[number] = "\n".join(filter(None, ["### BEGIN SOLUTION", code, comment, "### END SOLUTION"]))
    hidden = '### BEGIN HIDDEN TESTS\nassert verdict.startswith("right: "), verdict\n### END HIDDEN TESTS\n'
    return _edition(page, answers, hidden)


def _edition(page: NotebookNode, answers: dict[str, str], hidden: str) -> NotebookNode:
    """A page without outputs and solution cells, with these `answers` and with `hidden` tests."""
    edition, known = deepcopy(page), checks(page)
    edition.cells = []
    for cell in deepcopy(page.cells):
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
        if number := exercise(cell):
            check = nbformat.v4.new_code_cell(f"verdict = {known[number]}\n{hidden}verdict", id=f"{cell.id}-check")
            cell.source = answers[number]
            edition.cells += [_graded(cell, solution=True), _graded(check, grade=True, locked=True, points=1)]
        elif not re.fullmatch(r"solution-\d+", cell.id):
            cell.source = cell.source.replace(" Solutions are folded.", "").replace("\nSolutions are folded.", "")
            edition.cells.append(cell)
    return edition


def _graded(cell: NotebookNode, **what) -> NotebookNode:
    """The cell with what nbgrader has to know of it."""
    cell.metadata["nbgrader"] = {"grade": False, "grade_id": cell.id, "locked": False, "schema_version": 3,
                                 "solution": False, "task": False} | what
    return cell
