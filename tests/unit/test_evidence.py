"""The queue of evidence: what it asks, in which order, when it stops, and that nothing finished is lost."""

from dataclasses import replace
from types import SimpleNamespace

import pandas
import pytest

from scaffolding import experiment_of
from sparserobust import UserError, cli, data, evidence, paths, provenance, studies
from sparserobust.config import Data
from sparserobust.evaluation import Accuracy
from sparserobust.files import read_json
from sparserobust.reporting import claims, reported
from sparserobust.running import engine, forecast, scales, sweep
from sparserobust.running.experiment import Results
from sparserobust.running.store import Store

NOT_ASKED = {  # lines of a ledger that the queue leaves out
    "fk_resnet": {"C8"},  # no run is kept of it
    "rsr": {"C1", "C2", "C3", "C5.VGG"}}  # networks that are not trained at this scale

# ------------------------------------------------------------------------------------------------- the file itself


@pytest.fixture(scope="module")
def questions():
    return evidence.load_questions()


def test_every_claim_of_the_five_papers_is_asked_once(questions):
    first = [question for question in questions if question.rank == 1]
    for paper in reported.papers():
        lines = [question.line for question in first if question.paper == paper]
        assert sorted(lines) == sorted({line.id for line in reported.load(paper).ledger} - NOT_ASKED.get(paper, set()))


@pytest.mark.parametrize("paper", sorted(studies.modules().keys() - {"start_here", "your_network"}))
def test_the_rows_that_a_question_names_are_all_that_its_verdict_needs(paper, questions):
    """Judged from nothing but these rows, a claim comes out as it does from all that is published."""
    asked = [question for question in questions if (question.scale, question.paper) == ("laptop", paper)]
    store = Store()
    whole = studies.modules()[paper].experiment("laptop").known(store)
    results = whole.results(store)
    before = studies.ledger(results).set_index("line")
    assert not results.frame.empty and asked
    for question in asked:
        some = replace(whole, grid=[row for row in whole.grid if question.matches(row)])
        rows = pandas.Series([question.matches(row) for row in results.frame.to_dict("records")])
        if not rows.any():
            continue
        after = studies.ledger(Results(some, store, results.frame[rows])).set_index("line")
        for column in ("claim", "ours", "low", "high", "p", "n_seeds", "images"):
            one, other = before.loc[question.line, column], after.loc[question.line, column]
            assert one == other or (pandas.isna(one) and pandas.isna(other)), (question.line, column)


# ------------------------------------------------------------------------------------------------- the queue


@pytest.fixture
def pretended(tmp_path, monkeypatch, tiny_run):
    """A project with two papers of two networks each, `large` five times as dear as `small`; `said` holds what their
    ledgers answer by (paper, seeds known)."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "evidence.yaml").write_text("""
ranks:
  - scale: pretended
    papers:
      large: {C1: [{net: [one, two]}]}
      small: {C1: [{net: [one, two]}], C2: [{net: one}]}
  - scale: pretended
    papers:
      first: {C1: [{net: one}]}
""")
    for module in (paths, evidence.paths):
        monkeypatch.setattr(module, "PROJECT", tmp_path)
    said: dict = {}

    def module(name: str, epochs: int):
        def experiment(scale, seeds=None):
            grid = [{"net": net, "seed": seed, "run": tiny_run(seed=seed, epochs=epochs, lr=lr),
                     "measurements": {"clean": Accuracy(images=20)}}
                    for seed in range(5) for net, lr in (("one", 0.1), ("two", 0.2))]
            return experiment_of(grid, "pretended", range(5), redraw=said.get("redraw", True), study=name)

        return SimpleNamespace(experiment=experiment, judged=None)

    def ledger(results):
        name = results.experiment.study
        networks = pandas.Series([row["seed"] for row in results.experiment.grid]).value_counts()
        lines = []
        for line in ("C1", "C2"):
            known = int((networks >= (2 if line == "C1" and name != "first" else 1)).sum())
            lines.append({"line": line, "verdict": said.get((name, known), claims.OPEN), "n_seeds": known,
                          "words": "w", "ours": 1.0, "low": 0.0, "high": 2.0, "unit": "percentage points",
                          "images": 20, "reported": None, "why": "", "direction": "increase", "threshold": 0.0})
        return pandas.DataFrame(lines)

    def check(scale):
        if scale != "pretended":
            raise UserError(f"unknown scale '{scale}': did you mean 'pretended'?")

    modules = {"large": module("large", 10), "small": module("small", 2), "first": module("first", 1)}
    monkeypatch.setattr(studies, "modules", lambda: modules)
    monkeypatch.setattr(studies, "ledger", ledger)
    monkeypatch.setattr(scales, "check", check)
    return said


def numbers(units: list[evidence.Unit]) -> list[tuple[str, str, int]]:
    return [(unit.question.paper, unit.question.line, unit.seed) for unit in units]


def test_the_cheapest_of_a_rank_comes_first_with_the_fewest_seeds_that_test_anything(pretended, tmp_path):
    order = evidence.Queue(tmp_path / "store").in_order()
    assert [numbers(units) for units in order] == [
        [(paper, line, seed) for seed in range(3)]
        for paper, line in (("small", "C2"), ("small", "C1"), ("large", "C1"), ("first", "C1"))]
    small, large = order[1], order[2]
    assert len(small[0].grid) == 2 and small[0].seconds < large[0].seconds
    # training and measuring of 64 and 20 images at one second a unit of cost; to measure small ones costs an eighth
    run = small[0].grid[0]["run"]
    assert small[0].seconds == pytest.approx(2 * run.model.cost * (2 * 64 / 1e4 + 0.3 * 20 / 1e4 / 8))


def test_it_works_until_all_is_decided_and_publishes_each_unit(pretended, tmp_path):
    pretended |= {("small", 3): claims.HOLDS, ("large", 3): claims.FAILS, ("first", 3): claims.OPEN,
                  ("first", 4): claims.SAME}
    queue = evidence.Queue(tmp_path / "store", workers=2)
    told = list(queue.work(600))
    assert "nothing more fits" in told[-1]
    assert {question.paper: queue.verdict(question)["verdict"] for question in queue.questions} == {
        "small": claims.HOLDS, "large": claims.FAILS, "first": claims.SAME}
    published = [read_json(path) for path in (tmp_path / "data/published/pretended").glob("*.json")]
    seeds = pandas.Series([entry["record"]["run"].get("seed", 0) for entry in published]).value_counts().to_dict()
    assert seeds == {0: 5, 1: 5, 2: 5, 3: 1}  # the one claim that was open after three
    assert all(entry["measured"] for entry in published)
    assert any("small C1: holds (was: " in line for line in told)
    again = evidence.Queue(tmp_path / "store")
    assert again.in_order() == [] and "nothing more fits" in next(again.work(600))
    assert list(again.table()["needs seeds"]) == [""] * 4


def test_the_training_that_two_runs_share_is_spent_once(pretended, tmp_path, monkeypatch):
    """Of a run and its twin, whose weights one training kept; measuring them takes time for each."""
    def entry(seconds: float, measuring: float) -> dict:
        made = {"device": "cpu", "seconds": 3600 * seconds}
        return {"provenance": made, "measured": {"clean": {"provenance": made | {"seconds": 3600 * measuring}}}}

    queue = evidence.Queue(tmp_path / "store")
    runs = {"best": entry(1.5, 0.25), "last": entry(1.5, 0.25), "other": entry(2, 0.25), "unknown": None}
    monkeypatch.setattr(queue.store, "known", lambda run: runs[run.identity])
    named = [SimpleNamespace(identity=identity) for identity in runs]
    experiment = SimpleNamespace(grid=[{"run": SimpleNamespace(lineage=named[:i + 1])} for i in range(4)])
    assert queue._hours_spent(experiment) == pytest.approx({"CPU": 1.5 + 2 + 3 * 0.25, "GPU": 0})


def test_the_effort_is_what_was_spent_and_what_it_takes_to_judge_once_more(pretended, tmp_path, monkeypatch):
    """Judged as the ledger has it; what two claims need counts once, what is published not again."""
    pretended |= {("small", 3): claims.HOLDS, ("first", 3): claims.SAME}
    ledger = pandas.DataFrame([*(("01_small", line, claims.OPEN) for line in ("C1", "C2", "C3")),
                               ("02_first", "C1", claims.FAILS)], columns=["notebook", "line", "verdict"])
    monkeypatch.setattr(evidence.artifacts, "has_ledger", lambda scale: True)
    monkeypatch.setattr(evidence.artifacts, "ledger", lambda scale: ledger)
    monkeypatch.setattr(forecast, "_published", lambda: iter(()))  # a second for each unit of cost
    queue = evidence.Queue(tmp_path / "store")
    before = queue.effort().set_index("study")
    assert before["decided"].to_dict() == {"large": 0, "small": 0, "first": 1}
    assert before["not decided"].to_dict() == {"large": 1, "small": 3, "first": 0}
    assert before["of these queued"].to_dict() == {"large": 1, "small": 2, "first": 0}
    assert not before[["core hours spent", "GPU hours spent"]].any(axis=None)
    units = {question.paper: queue.units(question) for question in queue.questions if question.line == "C1"}
    seconds = {paper: sum(unit.seconds for unit in some) for paper, some in units.items()}
    assert (3600 * before["core hours to come"]).to_dict() == pytest.approx(seconds | {"first": 0})

    rows = [row for unit in units["small"][:2] for row in unit.grid]
    sweep.compute(rows, {}, queue.store)
    queue.store.publish([row["run"] for row in rows], "pretended")
    took = sum(queue.store.seconds(row["run"]) + queue.store.seconds(row["run"], row["measurements"]["clean"])
               for row in rows)
    after = evidence.Queue(tmp_path / "nothing").effort().set_index("study")
    assert 3600 * after.loc["small", "core hours spent"] == pytest.approx(took)
    assert 3600 * after.loc["small", "core hours to come"] == pytest.approx(units["small"][2].seconds)
    assert after.loc["large", "core hours to come"] == before.loc["large", "core hours to come"]
    assert evidence.effort_table().splitlines()[-1].count("|") == len(after.columns) + 2


def test_what_does_not_fit_is_left(pretended, tmp_path, monkeypatch):
    queue, done = evidence.Queue(tmp_path / "store", workers=1), []
    monkeypatch.setattr(sweep, "compute", lambda grid, *more: done.append(grid))
    cheap = min(unit.seconds for units in queue.in_order() for unit in units)
    told = list(queue.work(0.5 * cheap))
    assert len(told) == 1 and not done


def test_a_unit_that_fails_is_named_and_the_others_go_on(pretended, tmp_path, monkeypatch):
    original, refused = sweep.compute, []

    def compute(grid, measurements, store, workers):
        if any(row["paper"] == "small" for row in grid):
            refused.append(grid)
            raise evidence.UserError("1 of 1 runs failed")
        original(grid, measurements, store, workers)

    monkeypatch.setattr(sweep, "compute", compute)
    pretended |= {("large", 3): claims.HOLDS, ("first", 3): claims.HOLDS}
    queue = evidence.Queue(tmp_path / "store", workers=3)
    told = list(queue.work(600))
    assert "1 of 1 runs failed" in told and 1 <= len(refused) <= 3
    verdicts = queue.table().set_index("claim")["verdict"]
    assert verdicts["large C1"] == claims.HOLDS and verdicts["small C1"] == claims.UNTESTED


@pytest.mark.parametrize(("old", "new", "told"), [
    ("small:", "smal:", "no paper 'smal'"),
    ("net: one", "net: onne", "evidence.yaml, small C2: unknown net 'onne'; did you mean 'one'?"),
    ("[one, two]", "[one, too]", "unknown net 'too'; did you mean 'two'?"),
    ("net: one", "nets: one", "evidence.yaml, small C2: unknown label 'nets'; did you mean 'net'?"),
    ("net: one", "net: one, seed: 7", "scale pretended has no rows {'net': 'one', 'seed': 7}"),
    ("ranks:", "ranks: []\nothers:", "unknown setting 'others'"),
    ("scale: pretended", "scale: pretender", "did you mean 'pretended'"),
    ("scale: pretended", "scael: pretended", "evidence.yaml: Evidence: ranks: Rank: unknown setting 'scael'; did you"),
    ("[{net: one}]", "[]", "evidence.yaml: small C2: no rows are named"),
    ("net: one", "on: one", "evidence.yaml, line 6: key 'on' is read as True"),
    ("{net: one}", "one", "evidence.yaml: Evidence: ranks: Rank: papers: small: C2 should be"),
    ("ranks:", "ranks:\nrank:", "unknown setting 'rank'; did you mean 'ranks'?")])
def test_a_mistake_in_the_file_is_one_line(old, new, told, pretended, tmp_path, refusal):
    path = tmp_path / "notebooks" / "evidence.yaml"
    path.write_text(path.read_text().replace(old, new))
    assert told in refusal(lambda: evidence.Queue(tmp_path / "store").table())


def test_a_file_without_questions_says_so(pretended, tmp_path, refusal, monkeypatch):
    path = tmp_path / "notebooks" / "evidence.yaml"
    for nothing in ("ranks: []", "ranks: [{scale: pretended, papers: {}}]",
                    "ranks: [{scale: pretended, papers: {small: {}}}]"):
        path.write_text(nothing)
        assert "evidence.yaml: no claim of any paper is named" in refusal(evidence.Queue, tmp_path / "store")
    monkeypatch.delattr(studies.modules()["small"], "judged")  # a page that judges no claims
    path.write_text("ranks: [{scale: pretended, papers: {small: {C1: [{seed: 0}]}}}]")
    assert "no paper 'small'; known: large, first" in refusal(evidence.Queue, tmp_path / "store")


def test_what_a_scale_computes_as_a_whole_is_not_asked_claim_by_claim(pretended, tmp_path, refusal):
    pretended["redraw"] = False
    assert "sparserobust compute --scale pretended" in refusal(evidence.Queue, tmp_path / "store")


def test_what_three_seeds_cannot_test_gets_no_more_of_them(pretended, tmp_path):
    pretended |= {("small", 3): claims.UNTESTED, ("large", 3): claims.OPEN, ("first", 3): claims.HOLDS}
    list(evidence.Queue(tmp_path / "store", workers=2).work(600))
    table = evidence.Queue(tmp_path / "store").table().set_index("claim")
    assert table["seeds"].to_dict() == {"small C1": 3, "small C2": 3, "large C1": 5, "first C1": 3}
    assert set(table["needs seeds"]) == {""}


def test_earlier_results_are_shown_and_decide_nothing(pretended, tmp_path, monkeypatch):
    def known(self, store):
        return self if store.use_earlier else replace(self, grid=[])

    pretended |= {("small", 5): claims.HOLDS}
    queue = evidence.Queue(tmp_path / "store")
    monkeypatch.setattr(type(next(iter(queue.experiments.values()))), "known", known)
    question = next(question for question in queue.questions if question.paper == "small")
    assert queue.verdict(question)["verdict"] == claims.HOLDS
    assert [unit.seed for unit in queue.units(question)] == [0, 1, 2]


def test_without_dask_one_comes_after_the_other(monkeypatch):
    assert engine.side_by_side(3) == 3 and engine.side_by_side() == provenance.side_by_side()
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    assert engine.side_by_side(3) == engine.side_by_side() == 1


def test_a_line_that_no_ledger_has_is_told_once_there_is_a_ledger(pretended, tmp_path, refusal):
    path = tmp_path / "notebooks" / "evidence.yaml"
    path.write_text(path.read_text().replace("C2", "C3"))
    assert "small has no line 'C3'" in refusal(lambda: list(evidence.Queue(tmp_path / "store", workers=1).work(60)))


def test_the_command_shows_what_is_needed_and_works_for_a_while(pretended, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPARSEROBUST_STORE", str(tmp_path / "store"))
    worked = []
    monkeypatch.setattr(evidence.Queue, "work",
                        lambda self, seconds: worked.append((seconds, self.workers)) or ["done"])
    monkeypatch.setattr(cli.os, "nice", lambda by: by)
    assert cli.main(["evidence"]) == 0 and not worked
    assert "small C2" in capsys.readouterr().out
    assert cli.main(["evidence", "--hours", "0.5"]) == cli.main(["evidence", "--minutes", "12", "--workers", "8"]) == 0
    assert worked == [(1800, provenance.side_by_side()), (720, 8)] and "done\n" in capsys.readouterr().out


def test_training_images_are_counted_without_the_files():
    assert data.training_images(Data()) == len(data.load("digits").train)
    assert data.training_images(Data(name="cifar10", train_images=20_000)) == 20_000
    assert data.training_images(Data(name="mnist", classes=(1, 7))) == 11_000
    assert data.TRAINING.keys() == data.IMAGES.keys()
