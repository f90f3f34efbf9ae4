"""Progress of a sweep: weighted by cost, in a terminal, in a notebook and in a log."""

import os
import pty
import re
import sys
from contextlib import suppress
from dataclasses import replace

import nbclient
import nbformat
import pytest

from sparserobust import Data, notebook_runner
from sparserobust.analysis import WeightSparsity
from sparserobust.attacks import PGD
from sparserobust.evaluation import Accuracy
from sparserobust.running import progress
from sparserobust.running.jobs import Task
from sparserobust.running.progress import Monitor

LAST = "1 runs trained and measured, 1 failed, in 40 s"


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, as tqdm reads it."""
    now = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.delenv(progress.CALLER, raising=False)
    return now


@pytest.fixture
def jobs(tiny_run):
    """Two jobs, of which the first costs three times as much as the second."""
    costly, cheap = tiny_run(data=Data(), epochs=6), tiny_run(data=Data(), epochs=2, seed=1)
    return [Task(costly, (WeightSparsity(),), "net a", ()), Task(cheap, (WeightSparsity(),), "net b", ())]


def sweep(jobs, clock):
    """A sweep of 40 seconds with a message each second."""
    monitor = Monitor(jobs)
    for second in range(40):
        clock[0] += 1
        monitor.message(jobs[0], "training", 6 * second / 40)
    monitor.finished(jobs[0], None)
    monitor.finished(jobs[1], "no")
    monitor.close()
    return monitor


def test_a_log_gets_a_line_every_15_seconds(jobs, clock, capfd):
    monitor = sweep(jobs, clock)
    assert monitor.failures == [("net b", "no")]
    written = capfd.readouterr().err
    assert "\r" not in written
    first, *others, last = written.splitlines()
    assert "0 of 2 runs" in first and last == LAST
    # after 15 seconds 35 % of the first run are trained, which with its measurement is three quarters of the cost
    assert [re.sub(r"\|.*\|", "", line) for line in others] == [
        "23.6% 0 of 2 runs, 00:48 left, training 35%: net a", "48.9% 0 of 2 runs, 00:31 left, training 72%: net a"]


def test_what_is_under_way_is_shown_from_the_start(jobs, clock):
    monitor = Monitor(jobs)
    monitor.message(jobs[0], "training", 0.1)
    monitor.message(jobs[1], "measuring accuracy", 2)
    shown = str(monitor.bar)
    assert "0 of 2 runs" in shown and shown.endswith("training 2%: net a; measuring accuracy: net b")
    assert 20 < float(shown.split("%")[0]) < 25, "of the cost: nearly a quarter, although no run is finished"
    monitor.finished(jobs[1], None)
    assert "1 of 2 runs" in str(monitor.bar) and "net b" not in str(monitor.bar)
    monitor.close()


def test_the_share_of_a_job_never_falls(jobs, clock):
    """A run that it starts from may have more epochs than its own."""
    monitor, shares = Monitor(jobs), []
    for epochs in (1, 60, 1, 3):
        monitor.message(jobs[0], "training", epochs)
        shares.append(monitor.bar.n)
    monitor.finished(jobs[0], None)
    monitor.finished(jobs[1], None)
    assert shares[0] < shares[1] == shares[2] == shares[3] < jobs[0].cost
    assert monitor.bar.n == pytest.approx(monitor.bar.total)
    monitor.close()


def test_measuring_counts_by_its_cost(tiny_run, clock):
    attack = PGD(epsilon=0.1, step_size=0.1, steps=50)
    job = Task(tiny_run(data=Data()), (Accuracy(images=10_000, attack=attack),), "net", ())
    monitor = Monitor([job])
    monitor.message(job, "training", 2)
    assert 0 < monitor.bar.n / monitor.bar.total < 0.2
    monitor.close()


def test_a_line_is_given_for_an_interrupt(jobs, clock, capfd):
    Monitor(jobs).close(progress.INTERRUPTED)
    assert capfd.readouterr().err.splitlines()[1:] == [progress.INTERRUPTED]


def test_a_terminal_has_one_line_that_is_replaced(jobs, clock, monkeypatch):
    """Also a terminal that does not say how large it is, as in a container."""
    jobs[0] = replace(jobs[0], label="a name longer than the line " * 5)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("COLUMNS", "80")
        sweep(jobs, clock)
    written = ""
    with os.fdopen(ours, newline="") as shown, suppress(OSError):  # so a terminal ends
        while text := shown.read(1):
            written += text
    *states, last = [line.rstrip() for line in written.rstrip("\r\n").split("\r")]
    assert "\n" not in "".join(states) and last == LAST
    assert len(states) > 30 and max(map(len, states)) < 80
    assert any("training 35%: a name" in line for line in states)


CELL = """
from sparserobust import config
from sparserobust.analysis import WeightSparsity
from sparserobust.models import PreActResNet
from sparserobust.objectives import Natural
from sparserobust.running.jobs import Task
from sparserobust.running.progress import Monitor

run = config.Run(data=config.Data(), model=PreActResNet(depth=8, width=2), objective=Natural(),
                 recipe=config.Recipe(epochs=2))
job = Task(run, (), "net a", ())
monitor = Monitor([job])
monitor.bar.mininterval = 0
for epoch in range(3):
    monitor.message(job, "training", epoch)
monitor.finished(job, None)
monitor.close()
print("computed")
"""


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A notebook with a sweep in its only cell."""
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    nbformat.write(page, tmp_path / "page.ipynb")
    monkeypatch.setattr(notebook_runner, "find", lambda name: tmp_path / "page.ipynb")
    monkeypatch.delenv(progress.CALLER, raising=False)
    return tmp_path / "page.ipynb"


@pytest.mark.slow
def test_a_notebook_has_one_text_that_is_replaced_and_no_widget(notebook):
    page = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(page, kernel_name="python3").execute()
    shown, printed = page.cells[0].outputs
    assert shown.output_type == "display_data" and printed.text == "computed\n"
    assert list(shown.data) == ["text/plain"]
    assert re.fullmatch(r"1 runs trained and measured, in \d s", shown.data["text/plain"])


@pytest.mark.slow
def test_the_caller_of_a_notebook_sees_its_progress_and_the_committed_page_does_not_keep_it(
        notebook, tmp_path, monkeypatch, capfd):
    executed, run = tmp_path / "executed.ipynb", notebook_runner.run
    monkeypatch.setattr(notebook_runner, "run", lambda name, parameters: run(name, parameters, executed))
    notebook_runner.refresh("page")
    assert progress.CALLER not in os.environ
    lines = [line for line in capfd.readouterr().err.splitlines() if "runs" in line]
    assert re.fullmatch(r"1 runs trained and measured, in \d s", lines[-1]) and "0 of 1 runs" in lines[0]
    kept = [output for output in nbformat.read(executed, as_version=4).cells[0].outputs if output.name == "stderr"]
    assert len(kept) == 1 and kept[0].text.count("runs") == 1, "the executed copy keeps the last state of the bar"
    (only,) = nbformat.read(notebook, as_version=4).cells[0].outputs
    assert only.text == "computed\n"
