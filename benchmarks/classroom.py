"""What a class needs, and a class of thirty that is graded. docs/teaching.md shows what came out.

    python benchmarks/classroom.py kernel 00 04       # CPU seconds and memory of a student's kernel, page by page
    python benchmarks/classroom.py class 00           # a page handed out, thirty submissions, graded (--ungraded: not)
"""

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient

from sparserobust import kernels, notebook_runner
from sparserobust.teaching import handout

WRONG = "0.5", "-1", "'both'", "float('nan')", "'a half'", "None", "torch", "10**400"
ODD = {  # what some submissions do, before their answers or (None) in place of the second
    "loops": (None, "while True:\n    pass"),
    "loops on": (None, "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True:\n    pass"),
    "crashes": (None, "import ctypes\nctypes.string_at(0)"),
    "name error": (None, "answer = 1 / slope"),
    "fills memory": (None, "answer = torch.ones(1 << 33).sum()"),
    "fills the disk": (None, "with open('full', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 24))"),
    "fork bomb": (None, "import os\nwhile True:\n    os.fork()"),
    "prints right": (None, "print('right: so')\nanswer = -7"),
    "patches the checks": ("from sparserobust.studies import checks\nfor name in ('number', 'choice', 'chosen_run'):\n"
                           "    setattr(checks, name, lambda *_, **__: checks.right('so'))", "answer = -7"),
    "deletes files": ("import os, shutil\nfor name in ('SPARSEROBUST_STORE', 'HOME'):\n"
                      "    shutil.rmtree(os.environ[name], ignore_errors=True)", None),
    "kills processes": ("import os\nfor process in range(1, 70000):\n    if process != os.getpid():\n        try:\n"
                        "            os.kill(process, 9)\n        except OSError:\n            pass", None),
    "calls home": (None, "import socket\nanswer = socket.create_connection(('192.0.2.1', 80), timeout=5)"),
    "stays": ("import subprocess\nsubprocess.Popen(['sleep', '600'], start_new_session=True)", None)}


def submissions(page: nbformat.NotebookNode, right: int = 8, wrong: int = 7, unfinished: int = 2):
    """Names and notebooks of a class of thirty, by default."""
    chance = random.Random(0)
    solved = {number: code for number, (code, _) in handout.solutions(page).items()}
    for n in range(right):
        yield f"right {n + 1}", _handed_in(page, solved)
    for n in range(wrong):
        missed = chance.sample(list(solved), 1 + n % len(solved))
        yield f"wrong {n + 1}", _handed_in(page, solved | {each: f"answer = {chance.choice(WRONG)}" for each in missed})
    for n in range(unfinished):
        yield f"unfinished {n + 1}", _handed_in(page, dict(list(solved.items())[:n]))
    for name, (before, second) in ODD.items():
        yield name, _handed_in(page, solved | ({"2": second} if second else {}), before)


def _handed_in(page: nbformat.NotebookNode, answers: dict[str, str], before: str | None = None):
    notebook = handout.students(page)
    for cell in notebook.cells:
        if number := handout.exercise(cell):
            cell.source = answers.get(number, cell.source)
    if before:
        place = next(n for n, cell in enumerate(notebook.cells) if handout.exercise(cell))
        notebook.cells.insert(place, nbformat.v4.new_code_cell(before))
    return notebook


def simulated(name: str, folder: Path) -> None:
    """Hand a page out, and let thirty hand in."""
    handout.write(name, folder)
    path = notebook_runner.find(name)
    for student, notebook in submissions(nbformat.read(path, as_version=4)):
        home = folder / "submitted" / student / path.stem
        home.mkdir(parents=True)
        nbformat.write(notebook, home / path.name)


def kernel(name: str) -> str:
    """What the kernel that executes a page takes, with all processes that it starts."""
    path, seconds, memory, over = notebook_runner.find(name), [0.0], [0.0], threading.Event()
    client = NotebookClient(nbformat.read(path, as_version=4), timeout=3600, kernel_name="python3",
                            kernel_manager_class=kernels.Manager, resources={"metadata": {"path": str(path.parent)}})

    def watch() -> None:
        while not over.wait(0.2):
            try:
                below = psutil.Process().children(recursive=True)
                memory.append(sum(each.memory_full_info().uss for each in below))
                seconds.append(sum(sum(each.cpu_times()[:2]) for each in below))
            except psutil.NoSuchProcess:
                pass

    begun, watching = time.monotonic(), threading.Thread(target=watch)
    watching.start()
    try:
        client.execute()
    finally:
        over.set()
        watching.join()
    return (f"{path.stem}: {max(seconds):.0f} s of CPU in {time.monotonic() - begun:.0f} s, "
            f"at most {max(memory) / 2**20:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("kernel").add_argument("page", nargs="+")
    part = parts.add_parser("class")
    part.add_argument("page")
    part.add_argument("--ungraded", action="store_true", help="only write the submissions, and say how many")
    chosen = parser.parse_args()
    if chosen.part == "kernel":
        for name in chosen.page:
            print(kernel(name), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        simulated(chosen.page, Path(folder))
        print(len(list(Path(folder, "submitted").iterdir())), "submissions", flush=True)
        if not chosen.ungraded:
            grade = [sys.executable, "-m", "sparserobust.cli", "grade", folder, "--seconds", "20"]
            sys.exit(subprocess.run(grade).returncode)


if __name__ == "__main__":
    main()
