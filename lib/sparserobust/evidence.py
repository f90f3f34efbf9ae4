"""The queue of evidence: what each open claim still needs, and the computing of it, the most valuable first.

`notebooks/evidence.yaml` names, in order of worth, claims with the grid rows that judge them. A unit is one claim and
one seed, with all that it needs. A claim gets the fewest seeds that test anything, then one more at a time,
until it holds, does not hold, or shows no difference, or all seeds of the scale are spent; its p values take account of
so many looks (`claims`). What a unit has finished is published at once.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas

from sparserobust import paths, studies, yamls
from sparserobust.errors import UserError
from sparserobust.reporting import artifacts, claims, tables
from sparserobust.reporting.estimates import FEWEST
from sparserobust.running import engine, forecast, scales, sweep
from sparserobust.running.experiment import Experiment
from sparserobust.running.progress import duration
from sparserobust.running.store import Store
from sparserobust.settings import Checked, located, settings

DECIDED = (claims.HOLDS, claims.FAILS, claims.SAME)


@dataclass(frozen=True)
class Question:
    """A line of a paper's ledger at a scale, and which grid rows judge it: those that match one of `rows`, where each
    label is a value or a list of them. `rank` is its place in the order of worth, 1 the first."""

    rank: int
    scale: str
    paper: str
    line: str
    rows: tuple[dict, ...] = field(compare=False)  # dictionaries have no hash

    def matches(self, row: dict) -> bool:
        return scales.selected(row, self.rows)


@dataclass(frozen=True)
class Unit:
    """A claim and a seed, with the grid rows that are not known yet, and how long they take by one process [s]."""

    question: Question
    seed: int
    grid: list[dict] = field(compare=False)
    seconds: float = field(compare=False)

    def __str__(self) -> str:
        return f"{self.question.paper} {self.question.line}, seed {self.seed}"


@settings
class Rank(Checked):
    """The questions of one scale that are worth the same: the rows that judge them, by paper and line."""

    scale: str
    papers: dict[str, dict[str, tuple[dict[str, Any], ...]]]


@settings
class Evidence(Checked):
    """The file: its ranks in order of worth."""

    ranks: tuple[Rank, ...]


def load_questions() -> list[Question]:
    """The questions of the file, in its order. `UserError` for a mistake in it."""
    path, questions = paths.evidence_file(), []
    judging = [name for name, module in studies.modules().items() if hasattr(module, "judged")]
    content = yamls.parsed(yamls.text(path), path.name)
    with located(path.name):
        for number, rank in enumerate(Evidence.parse(content).ranks, 1):
            scales.check(rank.scale)
            for paper, lines in rank.papers.items():
                if paper not in judging:
                    raise UserError(f"no paper '{paper}'; known: {', '.join(judging)}")
                for line, rows in lines.items():
                    if not rows:
                        raise UserError(f"{paper} {line}: no rows are named")
                    questions.append(Question(number, rank.scale, paper, line, rows))
        if not questions:
            raise UserError("no claim of any paper is named")
    return questions


class Queue:
    """What is asked, what is known of it, and what comes next, with so many `workers` (default: as many as this machine
    affords). Results of a measurement's first revision are no reason not to compute: a claim that was judged by them is
    judged anew by others, on which they have no bearing."""

    def __init__(self, folder: Path | str | None = None, pace: forecast.Pace | None = None, workers: int | None = None):
        self.store, self.questions = Store(folder, use_earlier=False), load_questions()
        self.pace, self.workers = pace or forecast.Pace(), engine.side_by_side(workers)
        modules = studies.modules()
        self.experiments: dict[tuple[str, str], Experiment] = {
            (scale, paper): modules[paper].experiment(scale)
            for scale, paper in dict.fromkeys((question.scale, question.paper) for question in self.questions)}
        for (scale, _), experiment in self.experiments.items():
            if not experiment.settings.redraw:
                raise UserError(f"evidence.yaml: scale {scale} is computed as a whole: sparserobust compute --scale "
                                f"{scale}. Claims are asked one by one where its settings say `redraw: true`")
        for question in self.questions:
            grid, where = self._experiment(question).grid, f"evidence.yaml, {question.paper} {question.line}"
            scales.checked(question.rows, grid, where)
            for wanted in question.rows:
                if not any(scales.selected(row, [wanted]) for row in grid):
                    raise UserError(f"{where}: scale {question.scale} has no rows {wanted}")
        self._lines: dict[tuple[str, str, bool], pandas.DataFrame] = {}

    def _experiment(self, question: Question) -> Experiment:
        return self.experiments[question.scale, question.paper]

    def verdict(self, question: Question, earlier: bool = True) -> dict:
        """The line of the ledger as the pages show it, by what is stored or published now; without `earlier` by what
        counts for the queue."""
        of = question.scale, question.paper, earlier
        if of not in self._lines:
            store = Store(self.store.folder) if earlier else self.store
            known = self._experiment(question).known(store)
            if not known.grid:
                return {"verdict": claims.UNTESTED, "n_seeds": 0}
            self._lines[of] = studies.ledger(known.results(store)).set_index("line")
        if question.line not in self._lines[of].index:
            raise UserError(f"evidence.yaml: the ledger of {question.paper} has no line '{question.line}'")
        return self._lines[of].loc[question.line].to_dict()

    def units(self, question: Question) -> list[Unit]:
        """What the question needs until it is next judged: of the fewest seeds those that are not complete, or one
        more; nothing where it is decided, where no seed is left, or where the fewest test nothing, as of a network that
        collapses."""
        verdict, seeds = self.verdict(question, earlier=False)["verdict"], self._experiment(question).seeds
        if verdict in DECIDED:
            return []

        def incomplete(some: list[int]) -> Iterator[Unit]:
            return (unit for seed in some if (unit := self._unit(question, seed)).grid)

        more = seeds[FEWEST:] if verdict == claims.OPEN else []
        return list(incomplete(seeds[:FEWEST])) or list(islice(incomplete(more), 1))

    def in_order(self) -> list[list[Unit]]:
        """The units of each question that has some, the most valuable first: by rank, then by what it costs to judge it
        again."""
        found = [(question.rank, sum(unit.seconds for unit in units), units) for question in self.questions
                 if (units := self.units(question))]
        return [units for *_, units in sorted(found, key=lambda entry: entry[:2])]

    def work(self, seconds: float) -> Iterator[str]:
        """Compute whole units for so long; yields what was decided, and what it cost. A unit that is not expected to be
        through in time is left for another day; one that fails is named and left out. What an earlier call finished
        and could not publish is published first."""
        end = time.monotonic() + seconds
        failed: set[Unit] = set()
        for question in self.questions:
            self._publish(question, self._rows(question))
        while True:
            left = end - time.monotonic()
            batch = self._batch(left, failed)
            if not batch:
                yield f"nothing more fits into the {duration(max(left, 0))} that are left"
                return
            before = {question: self.verdict(question)["verdict"] for question in self.questions}
            started = time.monotonic()
            yield f"{'; '.join(map(str, batch))}: about {duration(self._wall_time(batch))}"
            rows = [row for unit in batch for row in unit.grid]
            try:
                for _ in range(2):  # trained anew with other weights, a network loses what was published of it
                    sweep.compute(rows, {}, self.store, self.workers)
            except UserError as error:
                yield str(error)
            failed |= {unit for unit in batch if sweep.missing(unit.grid, {}, self.store)}
            for unit in batch:
                self._publish(unit.question, unit.grid)
            self._lines.clear()
            took = duration(time.monotonic() - started)
            for question, verdict in before.items():
                now = self.verdict(question)
                changed = "" if now["verdict"] == verdict else f" (was: {verdict})"
                if changed or question in {unit.question for unit in batch}:
                    told = f", {claims.sentence(now)}" if now["n_seeds"] else ""
                    yield f"{question.paper} {question.line}: {now['verdict']}{changed}{told} [{took}]"

    def table(self) -> pandas.DataFrame:
        """One line per question, in the order of the file: verdict and seeds now, what it needs, and how long that
        takes here."""
        lines = []
        for question in self.questions:
            verdict, units = self.verdict(question), self.units(question)
            lines.append({"rank": question.rank, "scale": question.scale, "claim": f"{question.paper} {question.line}",
                          "verdict": verdict["verdict"], "seeds": verdict["n_seeds"],
                          "needs seeds": ", ".join(str(unit.seed) for unit in units),
                          "minutes": round(self._wall_time(units) / 60) if units else ""})
        return pandas.DataFrame(lines)

    def effort(self) -> pandas.DataFrame:
        """One line per paper and scale: how many of its claims the ledger has decided and how many not, of how many of
        these more seeds are queued, what was computed until now [hours of a core, and of a GPU], and what it takes to
        judge the queued ones once more."""
        lines = []
        for (scale, paper), experiment in self.experiments.items():
            asked = [question for question in self.questions if (question.scale, question.paper) == (scale, paper)]
            verdicts = {question.line: claims.UNTESTED for question in asked}
            if artifacts.has_ledger(scale):
                ledger = artifacts.ledger(scale)
                ledger = ledger[ledger["notebook"].str.endswith(f"_{paper}")]
                verdicts |= dict(zip(ledger["line"], ledger["verdict"], strict=True))
            units = [unit for question in asked if verdicts[question.line] not in DECIDED
                     for unit in self.units(question)]
            decided, hours = sum(verdict in DECIDED for verdict in verdicts.values()), self._hours_spent(experiment)
            queued = {unit.question for unit in units}
            lines.append({"scale": scale, "study": paper, "decided": decided, "not decided": len(verdicts) - decided,
                          "of these queued": len(queued), "core hours spent": hours["CPU"],
                          "GPU hours spent": hours["GPU"], "core hours to come": self._together(units) / 3600})
        return pandas.DataFrame(lines)

    def _hours_spent(self, experiment: Experiment) -> dict[str, float]:
        """By device: of all that is published of an experiment. Many processes share a GPU."""
        runs = {run.identity: run for row in experiment.grid for run in row["run"].lineage}
        known = list(filter(None, map(self.store.known, runs.values())))
        training = {entry["provenance"]["seconds"]: entry["provenance"] for entry in known}  # a twin has its run's
        measuring = [measured["provenance"] for entry in known for measured in entry["measured"].values()]
        hours = {"CPU": 0.0, "GPU": 0.0}
        for made in (*training.values(), *measuring):
            share = forecast.SHARING if made["device"] == "cuda" else 1
            hours["CPU" if made["device"] == "cpu" else "GPU"] += made["seconds"] / share / 3600
        return hours

    def _together(self, units: list[Unit]) -> float:
        """Seconds of one process for all of these, what several need once."""
        return self._seconds(sweep.missing([row for unit in units for row in unit.grid], {}, self.store))

    def _batch(self, left: float, failed: set[Unit]) -> list[Unit]:
        """The first units that fit into the time left, two for each worker, so that few workers wait for the last of
        them; none twice under two names."""
        batch: list[Unit] = []
        for unit in (unit for units in self.in_order() for unit in units):
            others = {row["run"].identity for other in batch for row in other.grid}
            new = any(row["run"].identity not in others for row in unit.grid)
            if len(batch) < 2 * self.workers and new and unit not in failed and self._wall_time([*batch, unit]) < left:
                batch.append(unit)
        return batch

    def _rows(self, question: Question) -> list[dict]:
        """The grid rows of a question, with all that is measured on them."""
        return [{"paper": question.paper} | row for row in self._experiment(question).grid
                if question.matches(row)]

    def _unit(self, question: Question, seed: int) -> Unit:
        grid = [row for row in self._rows(question) if row["seed"] == seed]
        jobs = sweep.missing(grid, {}, self.store)
        unknown = {job["run"].identity for job in jobs}
        return Unit(question, seed, [row for row in grid if row["run"].identity in unknown], self._seconds(jobs))

    def _seconds(self, jobs: list[dict]) -> float:
        """How long these take by one process."""
        return (sum(self.pace.training(run) for run in forecast.untrained(jobs, self.store))
                + sum(self.pace.measuring(job["run"], m) for job in jobs for m in job["measurements"]))

    def _publish(self, question: Question, rows: list[dict]) -> None:
        """Publish what is trained here and measured as a whole."""
        self.store.publish([row["run"] for row in rows if self.store.trained(row["run"])
                            and not sweep.missing([row], {}, self.store)], question.scale)

    def _wall_time(self, units: list[Unit]) -> float:
        """How long units take side by side [s]: what a unit trains it mostly trains one after the other."""
        return max([sum(unit.seconds for unit in units) / self.workers, *(unit.seconds for unit in units)])


def effort_table() -> str:
    """What `Queue.effort` finds where nothing is trained, in Markdown; without sums, since pages share runs."""
    with TemporaryDirectory() as empty:
        effort = Queue(empty, forecast.Core()).effort()
    hours = {column: effort[column].map("{:.1f}".format) for column in effort.columns if "hours" in column}
    return tables.markdown(effort.assign(**hours).set_index("scale"))
