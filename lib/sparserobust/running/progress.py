"""How far a sweep is: a tqdm bar weighted by cost, in a terminal, in a notebook and in a log."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from tqdm import tqdm

from sparserobust.provenance import in_notebook

if TYPE_CHECKING:
    from sparserobust.running.jobs import Task

# Set for a kernel whose standard error is passed on to the terminal of its caller: the columns of that, 0 for a log
CALLER = "SPARSEROBUST_PROGRESS"
FORMAT = "{percentage:5.1f}%|{bar:10}| {desc}, {remaining} left{postfix}"
EARLY, KNOWN = FORMAT.replace("{remaining}", "?"), 0.02  # until so much is done nobody knows how long the rest takes
INTERRUPTED = "interrupted: finished runs are kept, the others resume from their last epoch"
LIVE, LOGGED = 0.5, 15.0  # seconds between two states of the bar where they replace each other, and in a log


class Monitor:
    """Shows which tasks are under way, how many runs are finished, and how long the others may take. `finished` is
    called with each task that has ended, and with why it failed."""

    def __init__(self, tasks: "list[Task]", finished: "Callable[[Task, str | None], object] | None" = None):
        self.left = Counter(task.run.identity for task in tasks)  # how many tasks of each run
        self.runs, self.when_finished = len(self.left), finished
        self.shares = dict.fromkeys((task.key for task in tasks), 0.0)  # of the cost of each task
        self.current: dict[str, str] = {}
        self.failed: set[str] = set()  # runs
        self.failures: list[tuple[str, str]] = []  # of what was to be measured: (label, reason)
        self.bar = tqdm(desc=f"0 of {self.runs} runs", total=sum(task.cost for task in tasks), bar_format=EARLY,
                        smoothing=0, miniters=0, position=0, **_output())

    def note(self, text: str) -> None:
        """Show what there is to say while no task is under way."""
        self.bar.set_postfix_str(text)

    def message(self, task: "Task", doing: str, epochs: float) -> None:
        """What is done of a task just now, and how many epochs are trained."""
        run = task.run
        trained = min(epochs / max(run.recipe.trained_epochs, 1), 1)
        now = f"training {trained:.0%}" if doing == "training" else doing
        with tqdm.get_lock():
            self.current[task.key] = f"{now}: {task.label}"
            # measuring takes time even where its cost counts as nothing
            self._show(task, min(task.training_cost / task.cost, 0.9) * trained)

    def finished(self, task: "Task", failure: str | None) -> None:
        """A task has ended, with the reason if it failed."""
        with tqdm.get_lock():
            self.current.pop(task.key, None)
            self.left -= Counter([task.run.identity])
            if failure:
                self.failed.add(task.run.identity)
                if task.measurements:
                    self.failures.append((task.label or task.run.identity, failure))
            self._show(task, 1.0)
        if self.when_finished:
            self.when_finished(task, failure)

    def _show(self, task: "Task", share: float) -> None:
        step = max(share - self.shares[task.key], 0.0)
        self.shares[task.key] += step
        self.bar.set_description_str(f"{self.runs - len(self.left)} of {self.runs} runs", refresh=False)
        self.bar.set_postfix_str("; ".join(self.current.values()), refresh=False)
        self.bar.bar_format = FORMAT if self.bar.n + step * task.cost >= KNOWN * self.bar.total else EARLY
        self.bar.update(step * task.cost)

    def close(self, line: str | None = None) -> None:
        """Replace the bar by `line`, or else by how many runs are finished and how long they took."""
        failed = f", {len(self.failed)} failed" if self.failed else ""
        line = line or (f"{self.runs - len(self.failed)} runs trained and measured{failed}, "
                        f"in {duration(self.bar.format_dict['elapsed'])}")
        self.bar.bar_format = "{desc}"
        self.bar.set_description_str(line, refresh=False)
        self.bar.close()


class Lines:
    """A stream for tqdm where lines cannot be overwritten: `show` gets each state of the bar as a line."""

    def __init__(self, show: Callable[[str], object]):
        self.show = show

    def write(self, text: str) -> None:
        if line := text.split("\r")[-1].strip():
            self.show(line)

    def flush(self) -> None:
        """Nothing is held back."""


def stderr():
    """Standard error as a stream for tqdm: in a terminal itself, in a log a new line for each state of the bar."""
    return sys.stderr if sys.stderr.isatty() else Lines(lambda line: print(line, file=sys.stderr, flush=True))


def columns() -> int:
    """Of the terminal that standard error goes to, 80 where it does not say; 0 for a log."""
    return shutil.get_terminal_size().columns if sys.stderr.isatty() else 0


def _output() -> dict:
    """Arguments of tqdm: where this process shows its bar, how wide and how often."""
    given = os.environ.get(CALLER)
    if given is None and in_notebook():  # one output that is replaced: a saved page could not show a widget
        from IPython.display import display

        output = display({"text/plain": ""}, raw=True, display_id=True)
        return {"file": Lines(lambda line: output.update({"text/plain": line}, raw=True)), "mininterval": LIVE}
    width = columns() if given is None else int(given)
    return {"file": stderr() if given is None else sys.stderr, "mininterval": LIVE if width else LOGGED,
            "ncols": width - 1 if width else None, "nrows": 20}  # tqdm would show nothing in a terminal of unknown size


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
