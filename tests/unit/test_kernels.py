"""Forked kernels do what started ones do, and none outlives the process that started it."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from sparserobust import kernels

CELLS = ["""
import os, sys, multiprocessing
import torch, pandas, beside
print(beside.WORD, os.getcwd(), os.environ["GIVEN"], __name__, sys.argv[0] == "", torch.get_num_threads())
torch.manual_seed(0)
print(torch.rand(2), torch.ones(400, 400).matmul(torch.ones(400, 400)).sum())""", """
import matplotlib.pyplot as plt
plt.plot([1, 2])
pandas.DataFrame([range(30)])""", """
def two(x: int): return 2 * x
print(two.__module__, multiprocessing.get_context("fork").Pool(1).map(abs, [-1]))
raise ValueError("why")"""]
SCRIPT = """
import sys, nbformat
from nbclient import NotebookClient
from sparserobust import kernels
if sys.argv[1] == "forked":
    kernels.fork()
page = nbformat.read("page.ipynb", as_version=4)
resources = {"metadata": {"path": "folder"}}
NotebookClient(page, kernel_manager_class=kernels.Manager, allow_errors=True, resources=resources).execute()
nbformat.write(page, "executed.ipynb")
"""
forking = pytest.mark.skipif(not kernels.POSSIBLE, reason="kernels are forked on Linux only")


@pytest.fixture
def start(tmp_path):
    """Starts the execution of a page with these cells in a process, with forked kernels or others."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "beside.py").write_text("WORD = 'found'")

    def start(cells: list[str], how: str) -> subprocess.Popen:
        page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbformat.write(page, tmp_path / "page.ipynb")
        return subprocess.Popen([sys.executable, "-c", SCRIPT, how], cwd=tmp_path, env=os.environ | {"GIVEN": "here"})

    return start


def executed(folder) -> list:
    """The outputs of all cells, and of an error its name and value."""
    outputs = [output for cell in nbformat.read(folder / "executed.ipynb", as_version=4).cells
               for output in cell.outputs]
    return [(o.ename, o.evalue) if o.output_type == "error" else {key: o[key] for key in o if key != "metadata"}
            for o in outputs]


@forking
@pytest.mark.slow
def test_a_forked_kernel_gives_what_a_started_one_gives(start, tmp_path):
    assert start(CELLS, "forked").wait() == 0
    forked = executed(tmp_path)
    assert start(CELLS, "started").wait() == 0
    assert forked == executed(tmp_path)
    assert "found" in forked[0]["text"] and "image/png" in forked[2]["data"] and forked[-1] == ("ValueError", "why")


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@forking
@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_kernel_outlives_the_process_that_started_it(start, tmp_path, signum):
    note = tmp_path / "pids"
    cell = f"""
import os, pathlib, subprocess, time
child = subprocess.Popen(["sleep", "600"])
pathlib.Path({str(note)!r}).write_text(f"{{os.getpid()}} {{os.getppid()}} {{child.pid}}\\n")
time.sleep(600)"""
    process, pids, deadline = start([cell], "forked"), [], time.monotonic() + 120
    while not note.exists() or not note.read_text().endswith("\n"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    pids = [int(pid) for pid in note.read_text().split()]
    assert all(map(lives, pids))
    process.send_signal(signum)
    process.wait(60)
    deadline = time.monotonic() + 20
    while any(map(lives, pids)):
        assert time.monotonic() < deadline, "kernel, the process it was forked from, or a child of it"
        time.sleep(0.1)


@forking
@pytest.mark.slow
def test_an_interrupt_reaches_the_code_of_a_page_and_not_the_process_it_was_forked_from(start, tmp_path):
    """Ctrl-C goes to all processes of a terminal, also while the one that kernels come from is still importing."""
    waits = ("import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); "  # as in a terminal
             "from sparserobust import kernels; kernels.fork(); print(flush=True); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", waits], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True, text=True)
    process.stdout.readline()
    time.sleep(1)  # it imports for longer
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert said.count("Traceback") == 1 and said.rstrip().endswith("KeyboardInterrupt")  # its own
    assert start(["import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)"], "forked").wait() == 0
    assert executed(tmp_path)[0][0] == "KeyboardInterrupt"


LINGERING = """
import time
kernel = get_ipython().kernel
answer = kernel.shell_handlers["kernel_info_request"]  # Papermill's last question, whose answer is all it waits for

async def answer_and_linger(*arguments):
    await answer(*arguments)
    time.sleep(0.05)

kernel.shell_handlers["kernel_info_request"] = answer_and_linger"""
BY_PAPERMILL = """
import papermill
from sparserobust import kernels
papermill.execute_notebook("page.ipynb", "executed.ipynb", {}, kernel_name="python3", progress_bar=False,
                           kernel_manager_class=kernels.Manager)"""


@pytest.mark.slow
def test_a_kernel_that_has_just_answered_ends_without_a_word(tmp_path):
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (LINGERING, "1")])
    nbformat.write(page, tmp_path / "page.ipynb")
    ended = subprocess.run([sys.executable, "-c", BY_PAPERMILL], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0 and executed(tmp_path)[-1]["data"] == {"text/plain": "1"}
    assert "KeyboardInterrupt" not in ended.stdout + ended.stderr
