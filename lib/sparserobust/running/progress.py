"""How far a sweep is: a tqdm bar weighted by cost, in a terminal, in a notebook and in a log."""

import os
import shutil
import sys
from collections.abc import Callable

from tqdm import tqdm

from sparserobust.config import Run
from sparserobust.provenance import in_notebook

# Set for a kernel whose standard error is passed on to the terminal of its caller: the columns of that, 0 for a log
CALLER = "SPARSEROBUST_PROGRESS"
FORMAT = "{percentage:5.1f}%|{bar:10}| {desc}, {remaining} left{postfix}"
INTERRUPTED = "interrupted: finished runs are kept, the others go on from their last epoch"
LIVE, LOGGED = 0.5, 15.0  # seconds between two states of the bar where they replace each other, and in a log


class Monitor:
    """Shows which jobs are under way, how many are finished, and how long the others may take."""

    def __init__(self, jobs: list[dict]):
        self.jobs, self.finished_jobs = jobs, 0
        self.costs = {job["run"].identity: max(cost(job), 1.0) for job in jobs}  # computed once: messages come often
        self.shares = dict.fromkeys(self.costs, 0.0)  # of the cost of each job
        self.current: dict[str, str] = {}
        self.failures: list[tuple[str, str]] = []  # (label, reason)
        self.bar = tqdm(desc=f"0 of {len(jobs)} runs", total=sum(self.costs.values()), bar_format=FORMAT,
                        smoothing=0, miniters=0, position=0, **_output())

    def message(self, job: dict, answer: dict) -> None:
        """What a worker reports of a job under way: {"doing", "epochs"}, or something else when it has just begun."""
        run: Run = job["run"]
        doing, epochs = answer.get("doing", "starting"), answer.get("epochs", 0)
        trained = min(epochs / max(run.recipe.trained_epochs, 1), 1)  # a run that it needs may be longer
        now = f"training {trained:.0%}" if doing == "training" else doing
        with tqdm.get_lock():
            self.current[run.identity] = f"{now}: {job['label']}"
            # measuring takes time even where its cost counts as nothing
            self._show(run.identity, min(run.cost / self.costs[run.identity], 0.9) * trained)

    def finished(self, job: dict, failure: str | None) -> None:
        """A job has ended, with the reason if it failed."""
        identity = job["run"].identity
        with tqdm.get_lock():
            self.current.pop(identity, None)
            self.finished_jobs += 1
            if failure:
                self.failures.append((job["label"] or identity, failure))
            self._show(identity, 1.0)

    def _show(self, identity: str, share: float) -> None:
        step = max(share - self.shares[identity], 0.0)
        self.shares[identity] += step
        self.bar.set_description_str(f"{self.finished_jobs} of {len(self.jobs)} runs", refresh=False)
        self.bar.set_postfix_str("; ".join(self.current.values()), refresh=False)
        self.bar.update(step * self.costs[identity])

    def close(self, line: str | None = None) -> None:
        """Replace the bar by `line`, or else by how many runs are finished and how long they took."""
        failed = f", {len(self.failures)} failed" if self.failures else ""
        line = line or (f"{self.finished_jobs - len(self.failures)} runs trained and measured{failed}, "
                        f"in {duration(self.bar.format_dict['elapsed'])}")
        self.bar.bar_format = "{desc}"
        self.bar.set_description_str(line, refresh=False)
        self.bar.close()


def cost(job: dict) -> float:
    """Of training and measuring, roughly; in forward and backward passes."""
    run: Run = job["run"]
    return run.cost + run.model.cost * sum(m.cost for m in job["measurements"])


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
