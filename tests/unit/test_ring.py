"""The ring: that it is fair, what it asks, and what is made of two epochs and two masks of one network."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas
import pytest

from sparserobust import data, imagewise, paths, sparsity, training
from sparserobust.config import Dense
from sparserobust.reporting import claims
from sparserobust.running import scales
from sparserobust.running.experiment import Results
from sparserobust.sparsifiers import Channels, FixedMask, Magnitude
from sparserobust.studies import contest, ledger
from sparserobust.studies import methods as m
from sparserobust.studies.questions import ATTACKED
from sparserobust.studies.ring import comparisons, report, runs

SCALES = [name for name in scales.names() if scales.has(name, "ring")]
every_scale = pytest.mark.parametrize("scale", SCALES)
IMAGES = 100


@every_scale
def test_every_method_takes_the_same_budget_but_one_that_says_so(scale):
    experiment = runs.experiment(scale, [0])
    whole = m.budget(experiment.row(method=m.DENSE)["run"])
    for row in experiment.only(part=runs.RING).grid:
        times = experiment.settings.methods.members if row["method"] == runs.LONGER_ENSEMBLE else 1
        assert m.budget(row["run"]) == times * whole, row["method"]


@every_scale
def test_every_method_is_at_every_cut_that_it_can_make(scale):
    experiment = runs.experiment(scale, [0])
    for cut, level in experiment.settings.cuts:
        there = [row["method"] for row in experiment.rows(part=runs.RING, cut=cut, level=level)]
        assert there == [name for name, way in runs.RingSettings.ways.items() if cut in way.cuts]
    assert {row["method"] for row in experiment.rows(part=runs.RING, cut=None)} == {m.DENSE, runs.TWO_STAGES}
    assert set(m.WAYS) < set(runs.RingSettings.ways)


def test_what_is_in_no_other_contest_stays_out_of_it():
    assert runs.ERK not in m.WAYS and runs.ERK not in m.ContestSettings.ways


@every_scale
def test_every_question_finds_its_two_methods(scale):
    experiment = runs.experiment(scale, [0])
    own = experiment.settings
    found = [*comparisons.questions.contrasts(own, comparisons.QUESTIONS, "")]
    assert len({c.claim.id for c in found}) == len(found)
    for contrast in found:
        for labels in (contrast.treatment, contrast.reference):
            (row,) = experiment.only(part=runs.RING).rows(**labels)
            assert contrast.metric in row["measurements"]
    weights = [c for c in found if c.treatment["level"] == own.primary and c.metric == ATTACKED]
    assert len(weights) == len(comparisons.QUESTIONS)
    for part, contrasts in ((runs.OVERFITTING, comparisons.overfitting(own)),
                            (runs.STABILITY, comparisons.stability(own))):
        for contrast in contrasts:
            for labels in (contrast.treatment, contrast.reference):
                assert experiment.only(part=part).rows(**labels)


def test_all_that_is_cut_has_as_many_weights(digits):
    """The masks alone, on networks that were not trained, to a hundredth."""
    experiment = runs.experiment("quick", [0])
    whole = sparsity.zero_weights(training.build(experiment.row(method=m.DENSE)["run"], digits))[1]
    sizes = {}
    for row in experiment.rows(part=runs.RING, cut=m.WEIGHTS):
        cutting = [r for r in row["run"].lineage if type(r.sparsifier) not in (FixedMask, runs.OnlyNorms, runs.Dense)]
        cutting = [r for r in cutting if hasattr(r.sparsifier, "sparsity")]
        if row["method"] in (m.SMALL, m.TICKET):
            continue
        run = cutting[-1]
        model = training.build(run, digits)
        run.sparsifier.start(model)
        zero, total = sparsity.zero_weights(model)
        sizes[row["method"]] = (total - zero) / (whole * (1 - row["level"]))
    assert len(sizes) == 20 and set(sizes) > {runs.DYNAMIC, runs.RATES, runs.SHARP, runs.ERK, runs.NORMS}
    assert all(abs(size - 1) < 0.01 for method, size in sizes.items() if method != runs.RATES), sizes


# ----------------------------------------------------------------------------------------------------------- tuning


@every_scale
def test_each_method_has_as_many_candidates_and_the_first_was_the_best(scale):
    own = runs.experiment(scale, [0]).settings
    known = report.tuned(own.tuned_at)
    assert set(own.candidates) == set(own.ways) and {len(c) for c in own.candidates.values()} == {3}
    for method, candidates in own.candidates.items():
        values = [known.get((method, runs.as_text(changes))) for changes in candidates]
        if any(value is not None for value in values):
            assert None not in values and values[0] == max(values), (method, candidates, values)


@pytest.mark.parametrize("scale", [path.stem for path in paths.tuning_file("quick").parent.glob("*.csv")])
def test_what_was_tuned_are_methods_and_candidates_of_the_ring(scale):
    found = pandas.read_csv(paths.tuning_file(scale))
    own = runs.experiment(scale).settings
    asked = {(method, runs.as_text(changes)) for method, tried in own.candidates.items() for changes in tried}
    assert {*zip(found["method"], found["changes"], strict=True)} == asked


def test_seeds_of_tuning_are_no_seeds_of_the_ring():
    own = runs.experiment("quick").settings
    assert not {*own.tuning_seeds} & {*own.seeds}
    grid = runs.tuning("quick")
    assert {row["measurements"]["validation"].split for row in grid} == {"validation"}
    assert len(grid) == 3 * len(own.ways) * len(own.tuning_seeds)
    assert {row["run"].seed for row in grid} == {*own.tuning_seeds}


def test_a_candidate_changes_what_it_names_and_nothing_else():
    own = runs.experiment("quick").settings
    other = runs.changed(own, {"recipe": {"lr": 0.7}, "methods": {"splitting": {"weights": {"lam": 0.5}}}})
    assert other.recipe == replace(own.recipe, lr=0.7) and other.methods.splitting.weights.lam == 0.5
    assert replace(other, recipe=own.recipe, methods=own.methods) == own
    assert other.methods.splitting.channels == own.methods.splitting.channels


LEFT_OUT = {"candidates": {"magnitude": None}}


@pytest.mark.parametrize(("changes", "words"), [
    ({"candidates": {"magnitude": [{"after_cut": {"lrr": 0.1}}] * 3}}, "unknown setting 'lrr'; did you mean 'lr'"),
    ({"candidates": {"magnitud": [{}] * 3}}, "unknown method 'magnitud'; did you mean 'magnitude'"),
    ({"candidates": {"magnitude": [{}] * 2}}, "as many candidates as any other"),
    (LEFT_OUT, "candidates of 'magnitude' are missing"),
    ({"primary": 0.5}, "primary is one of the levels"),
    ({"overfitting": {"recipe": {"epochs": -1}}}, "epochs cannot be negative"),
], ids=str)
def test_a_mistake_in_the_settings_is_one_line(monkeypatch, refusal, changes, words):
    written = scales._sections("ring")
    shared = written["shared"]
    if changes == LEFT_OUT:
        shared = scales.merged(shared, changes)
    changed = written | {"shared": shared, "quick": scales.merged(written["quick"], changes)}
    monkeypatch.setattr(scales, "_sections", lambda study: changed)
    assert words in refusal(runs.experiment, "quick")


def test_what_was_tried_is_told_with_its_numbers(monkeypatch, tmp_path):
    own = runs.experiment("quick").settings
    path = tmp_path / "quick.csv"
    monkeypatch.setattr(paths, "tuning_file", lambda scale: path)
    assert report.tuning(own).loc["lasso", "in the ring"] == "lasso 0.003"
    pandas.DataFrame([{"method": "lasso", "changes": json.dumps({"methods": {"lasso": 0.003}}), "value": 61.25},
                      {"method": "splitting", "value": 50,
                       "changes": json.dumps({"methods": {"splitting": {"weights": {"lam": 0.00125}}}})}]
                     ).to_csv(path, index=False)
    table = report.tuning(own)
    assert table.loc["lasso", "in the ring"] == "lasso 0.003: 61.2"
    assert "splitting weights lam 0.00125: 50.0" in table.loc["splitting", "tried"]
    assert table.loc["magnitude", "in the ring"] == "after_cut lr 0.4"


# ------------------------------------------------------------------------------------------------------ what is judged


def answers(row, metric) -> np.ndarray:
    """Which images a network answers right: more at its best epoch, and of those the dense one forgets most."""
    if row["part"] == runs.OVERFITTING:
        forgotten = {m.DENSE: 30 + row["seed"], runs.DYNAMIC: 10, runs.FIXED: 12}[row["method"]]
        forgotten *= row["kept"] == "last" and metric == ATTACKED
        return (np.arange(IMAGES) < 50) & (np.arange(IMAGES) >= forgotten)
    return np.arange(IMAGES) < {m.MAGNITUDE: 50, runs.RATES: 55 + row["seed"], m.SCORES: 52}.get(row["method"], 40)


@pytest.fixture(scope="module")
def results():
    """Made up: images are what seeds have in common, so that each seed adds its own."""
    experiment = runs.experiment("quick")
    rows = []
    for row in experiment.grid:
        labels = {k: v for k, v in row.items() if k not in ("run", "measurements")}
        labels |= {"run": row["run"].identity, "chance": 0.1}
        if row["part"] == runs.STABILITY:
            shared = {m.SCORES: 0.5, runs.SHARP: 0.7, runs.RATES: 0.45}[row["method"]] + 0.01 * row["seed"]
            rows += [labels | {"metric": metric, "sampled": False, "each": None, "value": value}
                     for metric, value in (("seeds", shared), ("seeds chance", 0.1), ("epochs", shared + 0.1),
                                           ("epochs chance", 0.1))]
            continue
        for metric in ("clean", ATTACKED):
            right = np.roll(answers(row, metric), row["seed"])
            rows.append(labels | {"metric": metric, "sampled": True, "each": imagewise.pack(right),
                                  "value": right.mean()})
    return Results(experiment, None, pandas.DataFrame(rows))


def test_only_what_is_asked_for_is_left(results):
    ring = results.only(part=runs.RING, cut=m.CHANNELS)
    assert {row["cut"] for row in ring.experiment.grid} == set(ring.frame["cut"]) == {m.CHANNELS}
    assert len(ring.frame) == 2 * len(ring.experiment.grid) < len(results.frame)


def test_the_dense_network_stands_beside_those_that_answered_images_chosen_as_it_did(results):
    ring = results.only(part=runs.RING)
    usual = contest.dense_networks(ring)
    assert list(usual) == list(contest.rankings(ring)) and all(found["mean"] > 0 for found in usual.values())
    frame, dense = ring.frame.copy(), ring.frame["method"] == m.DENSE

    def first(rows):
        frame.loc[rows, "each"] = [imagewise.FIRST + "".join(str(int(right)) for right in imagewise.unpack(text))
                                   for text in ring.frame.loc[rows, "each"]]
        return contest.dense_networks(replace(ring, frame=frame))

    assert first(dense) == {}  # the others were drawn
    at_one_cut = ring.frame["cut"] == m.CHANNELS
    assert list(first(at_one_cut | dense)) == [name for name in usual if "channels" in name]


def test_a_gap_is_what_is_forgotten_image_by_image(results):
    found = report.gaps(results).set_index(["method", "seed"])
    assert set(found["metric"]) == {comparisons.GAP, "clean"}
    found = found[found["metric"] == comparisons.GAP]
    assert len(found) == 9
    assert found.loc[(m.DENSE, 0), "value"] == pytest.approx(0.3)
    each = imagewise.unpack(found.loc[(runs.DYNAMIC, 1), "each"])
    assert each.sum() == 10 and set(each) == {0.0, 1.0} and each[1:11].all()
    table = report.overfitting(results)
    assert table.loc[m.DENSE].tolist() == ["50.0", "19.0", "31.0 ± 1.0"]


def test_a_network_that_gains_until_the_end_has_a_gap_below_zero(results):
    frame = results.frame.copy()
    frame.loc[frame["kept"] == "best", "kept"] = "was best"
    frame.loc[frame["kept"] == "last", "kept"] = "best"
    frame.loc[frame["kept"] == "was best", "kept"] = "last"
    found = report.gaps(replace(results, frame=frame))
    found = found[found["metric"] == comparisons.GAP]
    assert found["value"].max() < 0 and imagewise.unpack(found["each"].iloc[0]).min() == -1


@pytest.mark.parametrize("kept", ["best", "last"])
def test_a_network_that_answers_the_same_to_all_has_nothing_to_forget(results, kept):
    """It has no gap, which would be the smallest: the claim is not tested."""
    frame = results.frame.copy()
    fallen = (frame["part"] == runs.OVERFITTING) & (frame["method"] == runs.FIXED)
    frame.loc[fallen & (frame["metric"] == "clean") & (frame["kept"] == kept), "value"] = 0.1
    lines = ledger(results, comparisons.judged(replace(results, frame=frame))).set_index("line")
    assert lines.loc["fixed 80 % of the weights", "verdict"] == claims.UNTESTED
    assert "collapsed" in lines.loc["fixed 80 % of the weights", "why"]
    assert lines.loc["overfitting 80 % of the weights", "alone"] == claims.HOLDS


def test_a_seed_of_which_one_epoch_is_known_counts_nowhere(results):
    frame = results.frame
    some = frame[(frame["part"] != runs.OVERFITTING) | (frame["seed"] == 0) | (frame["kept"] == "best")]
    assert report.overfitting(replace(results, frame=some)).loc[m.DENSE].tolist() == ["50.0", "20.0", "30.0"]


def test_the_ledger_holds_the_primary_cut_under_attack_and_what_is_asked_once(results):
    rows = comparisons.judged(results)
    lines = ledger(results, rows)
    names = [*(f"{name} 95 % of the weights" for name in comparisons.QUESTIONS),
             "overfitting 80 % of the weights", "fixed 80 % of the weights", "stable 95 % of the weights",
             "settled 95 % of the weights", "stable-rates 95 % of the weights"]
    assert lines["line"].tolist() == names and lines["words"].is_unique
    assert any(claim.endswith("50 % of the channels, clean") for claim in rows["claim"])
    by = lines.set_index("line")
    assert by.loc["rates 95 % of the weights", "ours"] == pytest.approx(6)
    assert by.loc["rates-scores 95 % of the weights", "ours"] == pytest.approx(4)
    assert by.loc["cut 95 % of the weights", "ours"] == pytest.approx(10)
    assert by.loc["overfitting 80 % of the weights", "ours"] == pytest.approx(-21)
    assert by.loc["overfitting 80 % of the weights", "alone"] == claims.HOLDS
    assert by.loc["stable 95 % of the weights", "ours"] == pytest.approx(20 / 0.9)  # a tenth is chance
    assert by.loc["stable 95 % of the weights", "images"] == 0 < by.loc["rates 95 % of the weights", "images"]
    assert by.loc["rates 95 % of the weights", "words"].startswith("Zhao & Wressnegger 2023: learned rates")
    assert "primary" not in lines
    by["verdict"] = claims.OPEN
    assert comparisons.beat_magnitude(by) == 0
    by.loc[["rates 95 % of the weights", "rates-scores 95 % of the weights"], "verdict"] = claims.HOLDS
    assert comparisons.beat_magnitude(by) == 1, "the other is not about magnitude"


def test_what_is_not_there_yet_is_not_tested(results):
    """At a scale that is filled bit by bit."""
    some = results.only(part=runs.RING)
    some = replace(some, frame=some.frame.drop(columns="kept"))
    lines = ledger(some, comparisons.judged(some)).set_index("line")
    assert lines.loc["overfitting 80 % of the weights", "verdict"] == claims.UNTESTED
    assert lines.loc["stable 95 % of the weights", "verdict"] == claims.UNTESTED
    assert lines.loc["rates 95 % of the weights", "verdict"] != claims.UNTESTED
    assert report.gaps(some).empty


def test_masks_of_scores_have_a_line_each(results):
    table = report.stability(results)
    assert list(table.index) == [m.SCORES, runs.SHARP, runs.RATES]
    assert table.loc[runs.SHARP, "two seeds [%]"] == pytest.approx(71) and table.shape == (3, 4)


@every_scale
def test_the_control_that_is_not_cut_differs_from_magnitude_in_nothing_else(scale):
    experiment = runs.experiment(scale, [0])
    cut = experiment.row(part=runs.RING, method=m.MAGNITUDE, cut=m.WEIGHTS, level=0.95)["run"]
    assert replace(cut, sparsifier=Dense()) == experiment.row(method=runs.TWO_STAGES)["run"]


def test_forgotten_images_of_different_samples():
    sample, fewer = imagewise.pack([1, 1, 1, 0]), imagewise.pack([1, 0])
    for other in (imagewise.FIRST + "1111", math.nan, None):
        assert report._forgotten(other, sample) is None
    assert imagewise.unpack(report._forgotten(sample, fewer)).tolist() == [0, 1]


@every_scale
def test_scores_are_learned_twice_of_one_network(scale):
    """With other chance, and up to the last epoch but one: of the same start."""
    for row in runs.experiment(scale, [0]).rows(part=runs.STABILITY):
        run = row["run"]
        other, earlier = (row["measurements"][name].other for name in ("seeds", "epochs"))
        assert run.start == other.start == earlier.start and run.start.sparsifier == runs.Dense()
        assert replace(other, seed=run.seed) == run and other.seed != run.seed
        assert earlier.recipe.trained_epochs == run.recipe.trained_epochs - 1


def test_rates_of_the_toy_remove_as_much():
    shapes = {"narrow": (16, 16, 3, 3), "wide": (64, 64, 3, 3), "head": (10, 64)}
    table = report.layer_rates(shapes, 0.9).pivot(index="layer", columns="series", values="value")
    sizes = pandas.Series({name: np.prod(shape) for name, shape in shapes.items()})
    for rule in ("ERK", "uniform"):
        assert (table[rule] * sizes).sum() / sizes.sum() == pytest.approx(10, abs=0.01)
    assert table.loc["narrow", "ERK"] > table.loc["wide", "ERK"] and table["uniform"].max() < 10.1


def test_what_others_reach_is_theirs():
    table, sources = report.others()
    assert table.loc["HARP", "99 % of the weights"] == "83.1 / 45.5" and table.loc["HARP", "nothing"] == ""
    assert table.loc["N-FGSM", "nothing"] == "78.6 / 47.8" and "AdversarialPruningBenchmark" in sources
    assert "(radius 0.031)" in sources and "(radius 0.03137)" in sources


def test_the_digits_scale_has_what_quick_has():
    """So that a run of quick is one of it; what is trained too long is trained longer."""
    few, all_levels = (runs.experiment(scale).only(part=runs.RING) for scale in ("quick", "digits"))
    assert {row["run"].identity for row in few.grid} < {row["run"].identity for row in all_levels.grid}
    assert data.image_shape(few.settings.data) == (1, 8, 8)
    assert {type(r.sparsifier) for row in few.grid for r in row["run"].lineage} >= {Magnitude, Channels}
