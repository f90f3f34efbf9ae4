"""All methods on one network with one budget: that they really have one, what they end with, how they are ranked."""

import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparserobust import Data, Store, data, imagewise, sparsity, training
from sparserobust.analysis import WeightSparsity
from sparserobust.models import PreActResNet
from sparserobust.reporting import claims, crossed, estimates, tables
from sparserobust.running import scales, sweep
from sparserobust.running.experiment import Results
from sparserobust.sparsifiers import Channels, Magnitude
from sparserobust.studies import contest, contest_plots, ledger, questions
from sparserobust.studies import methods as m
from sparserobust.studies.methods import named
from sparserobust.studies.questions import ATTACKED, MARGIN
from sparserobust.studies.side_by_side import comparisons, runs, toy
from sparserobust.studies.side_by_side.comparisons import QUESTIONS

SCALES = [name for name in scales.names() if scales.has(name, "side_by_side")]
SOME = [name for name in SCALES if runs.experiment(name, [0]).settings.only]  # that have some methods
every_scale = pytest.mark.parametrize("scale", SCALES)
whole_scale = pytest.mark.parametrize("scale", [name for name in SCALES if name not in SOME])


# ---------------------------------------------------------------------------------------------------------- the grid


@every_scale
def test_every_method_takes_the_same_budget(scale):
    experiment = runs.experiment(scale)
    own = experiment.settings
    gradients = own.recipe.epochs * (own.objective.attack.steps + 1)
    assert {m.budget(row["run"]) for row in experiment.grid} == {gradients}


@every_scale
def test_every_comparison_finds_its_metric_on_both_sides(scale):
    experiment = runs.experiment(scale)
    asked = list(comparisons.contrasts(experiment.settings))
    for contrast in asked:
        for labels in (contrast.treatment, contrast.reference):
            rows = experiment.rows(**labels)
            assert [row["seed"] for row in rows] == experiment.seeds
            assert all(contrast.metric in row["measurements"] for row in rows)
    if scale not in SOME:
        assert len(asked) == 2 * len(QUESTIONS) * len(experiment.settings.cuts)


@pytest.mark.parametrize("scale", SOME)
def test_a_scale_may_have_some_of_the_methods_and_their_questions(scale):
    experiment = runs.experiment(scale, [0, 1])
    assert {row["method"] for row in experiment.grid} == {m.DENSE, *experiment.settings.only}
    results = found(experiment, lambda row, metric: np.arange(SMALL_IMAGES) % 2 < 1)
    rows = comparisons.judged(results)
    lines = ledger(results, rows)
    assert [line.split()[0] for line in lines["line"]] == ["splitting", "RSR", "lasso", "noise"]
    words = comparisons.in_words(lines, experiment.settings)
    assert list(words.index) == ["splitting", "RSR", "lasso", "noise"] and len(rows) == 8


def test_methods_that_leave_no_question_are_one_line(refusal):
    experiment = runs.experiment(SOME[0], [0, 1])
    alone = experiment.only(method=m.DENSE)
    results = found(alone, lambda row, metric: np.arange(SMALL_IMAGES) % 2 < 1)
    assert "none of the questions" in refusal(questions.ledger, claims.judge(results.frame, []), QUESTIONS)


@pytest.mark.parametrize(("changes", "words"), [
    ({"only": ["magnitud"]}, "unknown method 'magnitud'; did you mean 'magnitude'"),
    ({"methods": {"memebers": 3}}, "unknown setting 'memebers'; did you mean 'members'"),
    ({"methods": {"lasso": None}}, "setting 'lasso' is missing"),
    ({"methods": {"splitting": {"channels": None}}}, "splitting needs settings for channels"),
    ({"model": {"kind": "resnet"}}, "PreActResNet"),
    ({"measurements": {"autoattack": {"rows": {"method": "laso"}}}}, "did you mean 'lasso'"),
], ids=str)
def test_a_mistake_in_the_settings_is_one_line(monkeypatch, refusal, changes, words):
    written = scales._sections("side_by_side")
    changed = written | {"quick": scales.merged(written["quick"], changes)}
    monkeypatch.setattr(scales, "_sections", lambda study: changed)
    assert words in refusal(runs.experiment, "quick")


def test_what_is_cut_ends_with_as_many_weights_or_channels(digits):
    """The masks alone, on networks that were not trained."""
    experiment = runs.experiment("quick", [0])
    left = {}
    for row in experiment.grid:
        cutting = [r for r in row["run"].lineage if isinstance(r.sparsifier, Magnitude | Channels)]
        if row["method"] in (m.SMALL, m.TICKET) or not cutting:
            continue
        run = cutting[-1]
        model = training.build(run, digits)
        run.sparsifier.start(model)
        zero, total = sparsity.zero_weights(model)
        left.setdefault((row["cut"], row["level"]), {})[row["method"]] = total - zero
    for (cut, level), counts in left.items():
        sizes = np.array(list(counts.values()))
        if cut == m.WEIGHTS:
            whole = sparsity.zero_weights(training.build(experiment.row(method=m.DENSE)["run"], digits))[1]
            assert np.abs(sizes - (1 - level) * whole).max() <= 2
        else:  # an ensemble keeps the stems and shortcuts of both members
            assert len({size for method, size in counts.items() if method != m.FK}) == 1


def test_channels_by_share_remove_the_same_of_every_layer(digits):
    run = runs.experiment("quick", [0]).row(method=m.MAGNITUDE, cut=m.CHANNELS)["run"]
    for criterion in ("filters", "readers"):
        model = training.build(run, digits)
        Channels(share=0.5, criterion=criterion).start(model)
        for block in model.members[0].blocks:
            read = (block.conv2.weight != 0).any(dim=(0, 2, 3))
            written = (block.conv1.weight != 0).any(dim=(1, 2, 3))
            assert int(read.sum()) == len(read) // 2 and torch.equal(read, written)


def test_readers_go_by_the_norm_of_what_reads_them(digits):
    model = training.build(runs.experiment("quick", [0]).row(method=m.DENSE)["run"], digits)
    block = model.members[0].blocks[0]
    with torch.no_grad():
        block.conv2.weight[:, 3] = 0
        block.conv1.weight[3] *= 100
    Channels(share=0.125, criterion="readers").start(model)
    assert not block.conv1.weight[3].any() and block.conv1.weight[[0, 1, 2, 4, 5, 6, 7]].flatten(1).any(1).all()


@pytest.mark.parametrize("settings", [{}, {"sparsity": 0.5, "share": 0.5}, {"share": 1.0},
                                      {"share": 0.5, "criterion": "scales"}], ids=str)
def test_channels_want_sparsity_or_share(settings, refusal):
    assert "share" in refusal(Channels, **settings)


# ----------------------------------------------------------------------------------------- small from the start


def counted(model, channels: int, classes: int = 10) -> int:
    """Convolution and linear weights of the network, built."""
    return sparsity.zero_weights(model.build((channels, 8, 8), classes))[1]


@whole_scale
def test_the_small_network_has_as_many_weights_as_a_cut_leaves(scale):
    experiment = runs.experiment(scale, [0])
    channels = {"digits": 1, "cifar10": 3}[experiment.settings.data.name]
    dense = counted(experiment.settings.model, channels)
    for row in experiment.rows(method=m.SMALL, cut=m.WEIGHTS):
        left = counted(row["run"].model, channels)
        assert left == pytest.approx((1 - row["level"]) * dense, rel=0.01) and row["run"].start is None


@settings(max_examples=25)
@given(percent=st.integers(50, 98), width=st.integers(12, 40), depth=st.sampled_from([8, 14, 20]),
       members=st.integers(1, 2))
def test_a_small_network_is_found_for_every_level(percent, width, depth, members):
    model = PreActResNet(depth=depth, width=width, members=members)
    small = m.small_model(model, percent / 100, Data(name="digits"))
    dense = model.weights(1, 10)
    assert counted(small, 1) == pytest.approx(dense - round(percent / 100 * dense), rel=0.01)
    assert replace(small, widths=(), width=width) == model
    assert small == m.small_model(model, percent / 100, Data(name="digits"))


@pytest.mark.parametrize("name", ["digits", "cifar10"])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.88, 0.9, 0.92, 0.95, 0.97])
def test_no_other_widths_within_a_percent_have_proportions_as_close(level, name):
    """By trying all of them."""
    model, channels = PreActResNet(depth=8, width=8), data.IMAGES[name][0]
    left = (dense := model.weights(channels, 10)) - round(level * dense)
    tried = {}
    for a, b, c in product(range(1, 20), range(1, 36), range(1, 36)):
        missed = abs(model.weights(channels, 10, (a, b, c)) - left)
        if missed <= 0.01 * left:
            tried[a, b, c] = (max(4 * a, 2 * b, c) / min(4 * a, 2 * b, c), missed)
    widths = m.small_model(model, level, Data(name=name)).widths
    assert tried[widths] == pytest.approx(min(tried.values()))


def test_proportions_are_those_of_the_large_network():
    wide = PreActResNet(widths=(64, 64, 64))
    a, b, c = m.small_model(wide, 0.8, Data(name="mnist")).widths
    assert max(a, b, c) <= 1.1 * min(a, b, c)
    assert m.small_model(wide, 0.0, Data(name="mnist")) == wide


def test_fewer_classes_have_fewer_weights():
    model = PreActResNet(depth=8, width=12)
    small = m.small_model(model, 0.9, Data(name="cifar100", classes=(3, 7)))
    assert counted(small, 3, 2) == pytest.approx(0.1 * counted(model, 3, 2), rel=0.01)
    small = m.small_model(model, 0.9, Data(name="cifar100"))
    assert counted(small, 3, 100) == pytest.approx(0.1 * counted(model, 3, 100), rel=0.01)


@pytest.mark.parametrize(("model", "level", "name", "words"), [
    (PreActResNet(), 0.9999, "digits", ["level 0.9999", "27 weights", "1 %", "choose another level"]),
    (PreActResNet(), 1.0, "digits", ["[0, 1)"]),
    (PreActResNet(), -0.1, "digits", ["[0, 1)"]),
    (PreActResNet(), 0.9, "imagenet", ["imagenet", "cifar10"]),
], ids=["tiny", "all", "negative", "imagenet"])
def test_no_small_network(refusal, model, level, name, words):
    message = refusal(m.small_model, model, level, Data(name=name))
    assert all(word in message for word in words), message


def test_a_grid_is_made_without_the_images_and_knows_what_they_are(monkeypatch, digits):
    assert data.IMAGES["digits"] == (digits.image_shape[0], len(digits.classes))
    assert data.IMAGES.keys() == data._SOURCES.keys() and data.IMAGES["cifar10"][1] == len(data.CIFAR10_CLASSES)
    monkeypatch.setattr(data, "_load", lambda name: pytest.fail(f"{name} was loaded"))
    assert runs.experiment("laptop").grid


# ------------------------------------------------------------------------------------------------------- ranking


def answers(rates, seeds=3, images=400, seed=0):
    dice = np.random.default_rng(seed)
    hard = dice.random(images)  # the same images are hard for all
    return {f"m{i}": np.stack([(hard + 0.1 * dice.random(images) < rate) for _ in range(seeds)]).astype(int)
            for i, rate in enumerate(rates)}


def test_what_was_not_answered_has_no_rank(refusal):
    right = answers([0.2, 0.8])
    right["m0"] = right["m0"].astype(float)
    right["m0"][0, 0] = np.nan
    assert "not finite" in refusal(estimates.ranking, right)


def test_ranks_of_methods_that_lie_far_apart_are_certain():
    found = estimates.ranking(answers([0.2, 0.8, 0.5]))
    assert list(found.index) == ["m1", "m2", "m0"]
    assert (found["rank"] == [1, 2, 3]).all() and (found["rank_low"] == found["rank_high"]).all()
    assert found["best"].tolist() == [100, 0, 0]


def test_equal_methods_share_their_ranks():
    one = answers([0.5])["m0"]
    found = estimates.ranking({"a": one, "b": one.copy()})
    assert found["rank"].tolist() == [1, 1] and found["best"].tolist() == [50, 50]
    assert (found["rank_high"] == 1).all()


def test_means_that_are_equal_but_for_the_order_of_adding_are_equal():
    values = np.random.default_rng(0).integers(0, 2, (2, 3, 100)).astype(float)
    one, other = estimates._redrawn(values, 500).T
    ties = np.abs(one - other) < 1e-9
    assert ties.any() and (one[ties] == other[ties]).all()


@given(st.integers(0, 100))
def test_a_mean_lies_in_its_interval_and_shares_add_up(seed):
    found = estimates.ranking(answers([0.3, 0.5, 0.52], images=60, seed=seed), draws=200)
    assert ((found["low"] <= found["mean"] + 1e-9) & (found["mean"] <= found["high"] + 1e-9)).all()
    assert found["best"].sum() == pytest.approx(100)
    assert ((found["rank_low"] <= found["rank"]) & (found["rank"] <= found["rank_high"])).all()


def test_the_interval_is_that_of_means_over_images():
    """One seed, so only images are redrawn: the binomial interval, nearly."""
    right = np.array([[1] * 300 + [0] * 100])
    row = estimates.ranking({"a": right}, draws=4000).iloc[0]
    reach = 196 * (0.75 * 0.25 / 400) ** 0.5
    assert row["low"] == pytest.approx(75 - reach, abs=0.5) and row["high"] == pytest.approx(75 + reach, abs=0.5)


def test_methods_with_other_images_cannot_be_ranked(refusal):
    assert "same images" in refusal(estimates.ranking, {"a": np.ones((2, 3)), "b": np.ones((2, 4))})


def test_the_front_holds_what_nothing_beats():
    points = pandas.DataFrame({"size": [1, 2, 3, 4, 2], "y": [0.2, 0.5, 0.4, 0.6, 0.3], "name": list("abcde")})
    assert contest.front(points, "size", "y")["name"].tolist() == ["a", "b", "d"]
    for _, row in points.iterrows():
        beaten = ((points["size"] <= row["size"]) & (points["y"] > row["y"])).any()
        assert beaten != (row["name"] in "abd")


def test_nothing_collapsed_and_nothing_on_other_images_is_on_a_front():
    """By the images of most; a network that always gives one answer is small and resists as well as guessing does."""
    networks = pandas.DataFrame({
        "method": list("abcd"), "cut": "weights", "level": 0.9, "size": [1.0, 2, 3, 4], "pgd": [0.1, 0.3, 0.4, 0.2],
        "collapsed": [True, False, False, False], "drawn": [True, True, False, True]})
    points, panels = contest.fronts(networks, {"size": "size"})
    assert len(points) == 4 and panels["size"][1]["method"].tolist() == ["b"]
    assert contest.front_note(points) == " Not on the front, collapsed or on other test images: a, c."
    points, panels = contest.fronts(networks.assign(collapsed=False, drawn=False), {"size": "size"})
    assert panels["size"][1]["method"].tolist() == ["a", "b", "c"] and contest.front_note(points) == ""


def test_no_mark_covers_another_and_those_of_the_front_stay():
    x, y = pandas.Series([10.0, 10.0, 10.0, 100.0, 10.0]), pandas.Series([50.0, 50.0, 30.0, 70.0, 50.0])
    right, *places, left = contest_plots.apart(x, y, first=np.array([False, True, False, True, False]))
    assert places == pytest.approx([10, 10, 100])
    assert 11 < right < 13 and left == pytest.approx(100 / right)  # room: 4.5 % of the axis, on either side


# -------------------------------------------------------------------------------------------- claims and joining


RATES = {m.RSR: 0.8, m.MAGNITUDE: 0.5, m.DENSE: 0.6}
SMALL_IMAGES = 100


def right(row, metric) -> np.ndarray:
    """Which images a network answers right: the same ones whatever the seed, but for RSR's, which gain with each seed;
    a tenth more of them if they are clean."""
    rate = RATES.get(row["method"], 0.4) + 0.04 * row["seed"] * (row["method"] == m.RSR) + 0.1 * (metric == "clean")
    return np.arange(SMALL_IMAGES) < round(SMALL_IMAGES * rate)


def found(experiment, right=right, lacks=lambda row, metric: False):
    """The results of an experiment, of the accuracies that are judged."""
    return Results(experiment, None, pandas.DataFrame([
        {k: row[k] for k in ("method", "cut", "level", "seed")} | {
            "run": row["run"].identity, "metric": metric, "value": right(row, metric).mean(), "chance": 0.1,
            "sampled": True, "each": imagewise.pack(right(row, metric))}
        for row in experiment.grid for metric in (ATTACKED, "clean") if not lacks(row, metric)]))


@pytest.fixture(scope="module")
def quick():
    return runs.experiment("quick", [0, 1, 2])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The published results of one seed on digits."""
    return runs.experiment("quick", [0]).results(Store(tmp_path_factory.mktemp("empty")))


@pytest.fixture(scope="module")
def rows(quick):
    return comparisons.judged(found(quick))


def test_questions_are_paired_as_they_say(quick, rows):
    by_claim = rows.set_index("claim")
    rsr = by_claim.loc["RSR 90 % of the weights"]
    assert rsr["ours"] == pytest.approx(34) and rsr["verdict"] == claims.HOLDS
    low, high = crossed.over_seeds([30.0, 34.0, 38.0]).interval()
    assert rsr["low"] < low < high < rsr["high"]  # images are a sample, too
    assert by_claim.loc["sparsity 90 % of the weights", "ours"] == pytest.approx(-20)
    assert by_claim.loc["TSCNC 50 % of the channels", "ours"] == pytest.approx(-10)  # where no scores are learned
    assert by_claim.loc["TSCNC 90 % of the weights", "ours"] == 0
    assert rows["reported"].isna().all() and (rows["n_seeds"] == 3).all() and (rows["images"] == 100).all()
    assert rsr["margin"] == MARGIN and rows["where"].eq("06_side_by_side, claims").all()
    words = comparisons.in_words(ledger(found(quick), rows), quick.settings)
    assert list(words.index) == list(QUESTIONS) and words.loc["RSR", "90 % of the weights"] == claims.HOLDS
    assert words.loc["RSR", "asked of"] == "Rakin et al. 2019" and words.loc["pruning", "asked of"] == "all"


def test_clean_accuracy_is_judged_too(quick, rows):
    """Each question twice: here clean answers are those under attack, one in five of RSR's taken away."""
    def other(row, metric):
        kept = np.arange(SMALL_IMAGES) % 5 > 0 if metric == "clean" and row["method"] == m.RSR else True
        return right(row, ATTACKED) & kept

    judged = comparisons.judged(found(quick, other)).set_index("claim")
    clean = judged.index.str.endswith(", clean")
    assert set(judged.index[clean]) == {f"{name}, clean" for name in judged.index[~clean]}
    for name in judged.index[~clean]:
        same = judged.loc[f"{name}, clean", "ours"] == judged.loc[name, "ours"]
        assert same == (name.split()[0] not in ("RSR", "noise")), name
    assert judged[~clean]["ours"].tolist() == rows[~rows["claim"].str.endswith(", clean")]["ours"].tolist()
    assert judged.loc["RSR 90 % of the weights, clean", "quantity"] == "accuracy on clean images: RSR minus magnitude"


@whole_scale
def test_all_questions_at_all_cuts_are_one_family(scale):
    """22 at the quick scale; clean accuracies are no part of it."""
    experiment = runs.experiment(scale)

    def scattered(row, metric):
        return np.random.default_rng(int(row["run"].identity[:8], 16)).random(SMALL_IMAGES) < 0.5

    rows = comparisons.judged(found(experiment, scattered))
    lines = comparisons.ledger(rows)
    asked = [f"{name} {named(*cut)}" for cut in experiment.settings.cuts for name in QUESTIONS]
    assert lines["claim"].tolist() == lines["line"].tolist() == asked and lines["words"].is_unique
    if scale != "full":
        assert len(lines) == 22
    assert len(rows) == 2 * len(lines) and not lines["claim"].str.contains("clean").any()
    own = rows.set_index("claim").loc[asked]
    assert own["p"].notna().all() and own["p_same"].notna().all()
    p, p_same = claims.adjusted(own["p"].to_numpy(), own["p_same"].to_numpy())
    assert lines["p_holm"].to_numpy() == pytest.approx(np.fmin(p, p_same))
    assert (lines["p_holm"] >= lines["p"]).all() and (lines["p_holm"] > lines["p"]).any()
    assert lines["p_holm"].min() == pytest.approx(min(1, len(lines) * lines["p"].min()))
    verdicts = comparisons.in_words(lines, experiment.settings)
    assert list(verdicts.columns) == ["asked of", "what", *(named(*cut) for cut in experiment.settings.cuts)]


def test_answers_are_those_of_all_methods_on_the_seeds_they_share(quick):
    """In the shape (seeds, images), methods in the order of the grid."""
    whole = contest.answers(found(quick).frame, ATTACKED, m.WEIGHTS, 0.9)
    assert list(whole) == list(m.WAYS) and {a.shape for a in whole.values()} == {(3, 100)}
    for seed in range(3):
        assert whole[m.RSR][seed].tolist() == right({"method": m.RSR, "seed": seed}, ATTACKED).tolist()
        assert whole[m.MAGNITUDE][seed].sum() == 50
    four = found(runs.experiment("quick", [0, 1, 2, 3]),
                 lacks=lambda row, metric: (row["method"], row["seed"]) == (m.LASSO, 1))
    some = contest.answers(four.frame, ATTACKED, m.WEIGHTS, 0.9)
    assert {a.shape for a in some.values()} == {(3, 100)} and some[m.RSR].sum(1).tolist() == [80, 88, 92]
    frame = found(quick).frame
    kept = frame.assign(each=frame["each"].mask(frame["method"] == m.LASSO))
    assert set(whole) - set(contest.answers(kept, ATTACKED, m.WEIGHTS, 0.9)) == {m.LASSO}


def test_the_ranking_keeps_most_methods_as_seeds_are_added(quick):
    """Where not all have three seeds in common, those that do are ranked."""
    five = runs.experiment("quick", [0, 1, 2, 3, 4, 5])
    results = found(five, lacks=lambda row, metric: (row["seed"] > 2) == (row["method"] == m.LASSO))
    assert set(contest.answers(results.frame, ATTACKED, m.WEIGHTS, 0.9)) == set(m.WAYS) - {m.LASSO}
    one = results.frame[results.frame["method"].isin([m.LASSO, m.RSR])]
    assert len(contest.answers(one, ATTACKED, m.WEIGHTS, 0.9)) == 1
    assert contest.answers(one[one["method"] == "nobody"], ATTACKED, m.WEIGHTS, 0.9) == {}


def test_a_line_of_a_table_has_networks_that_answered_images_chosen_alike(quick):
    """Drawn ones or the first of the test set: as most methods have them, unless that leaves one with too few; the
    caption says how many seeds that leaves, and a column which lines cannot be compared."""
    frame = found(runs.experiment("quick", [0, 1, 2, 3, 4])).frame
    first = (frame["method"] == m.RSR) & (frame["seed"] < 2)
    more = first | (frame["method"] == m.LASSO) & (frame["seed"] < 3)
    mixed = frame.assign(each=frame["each"].where(~more, imagewise.FIRST + frame["each"]))
    left = contest.alike(mixed)
    assert set(left[left["method"] == m.RSR]["seed"]) == {2, 3, 4}
    assert set(left[left["method"] == m.LASSO]["seed"]) == {0, 1, 2}
    three_of_both = frame.assign(each=frame["each"].where(frame["seed"] < 3, imagewise.FIRST + frame["each"]))
    but_rsr = frame.assign(each=mixed["each"].where(mixed["method"] == m.RSR, imagewise.FIRST + frame["each"]))
    assert set(contest.alike(three_of_both)["seed"]) == {0, 1, 2}
    assert set(contest.alike(but_rsr).query("method == @m.RSR")["seed"]) == {2, 3, 4}, "too few first ones"
    counts = contest.seed_counts(mixed)
    assert sorted(set(counts)) == [3, 5] and contest.alike(frame).equals(frame)
    assert tables.spread(range(5), counts) == "3 to 5 seeds: mean ± standard deviation"
    assert tables.spread(range(5), [3, 3]) == tables.spread(range(3)) == "3 seeds: mean ± standard deviation"


def test_a_method_with_fewer_seeds_than_test_anything_takes_none_from_the_others(quick):
    results = found(quick, lacks=lambda row, metric: row["method"] == m.LASSO and row["seed"] > 0)
    shown = contest.answers(results.frame, ATTACKED, "weights", 0.9)
    assert m.LASSO not in shown and {a.shape for a in shown.values()} == {(3, 100)}
    alone = found(quick, lacks=lambda row, metric: row["seed"] > 0)
    assert m.LASSO in contest.answers(alone.frame, ATTACKED, "weights", 0.9)
    nothing = found(quick, lacks=lambda row, metric: row["cut"] == "channels")
    assert list(contest.rankings(nothing)) == ["90 % of the weights"]


def test_the_table_says_which_lines_have_other_images_and_the_caption_who_is_not_ranked(published):
    networks, frame = contest.networks(published), published.frame
    assert "images" not in contest.table(published, networks) and contest.images_note(frame) == ""
    assert contest.unranked(published, contest.rankings(published)) == ""
    first = (frame["method"] == m.LASSO) & (frame["cut"] == m.WEIGHTS)
    mixed = replace(published, frame=frame.assign(each=frame["each"].where(~first, imagewise.FIRST + frame["each"])))
    shown = contest.table(mixed, networks)
    assert "chosen alike" in contest.images_note(mixed.frame)
    assert set(shown.index[shown["images"] == "first"]) == {m.LASSO} and (shown["images"] == "first").sum() == 1
    told = contest.unranked(mixed, contest.rankings(mixed))
    assert told.endswith(f"of the others: 90 % of the weights: {m.LASSO}.")
    unknown = replace(published, frame=frame.assign(each=frame["each"].where(frame["cut"] != m.WEIGHTS)))
    rankings = contest.rankings(unknown)  # no answers are known of a whole cut
    assert "90 % of the weights" not in rankings and m.LASSO in contest.unranked(unknown, rankings)


def test_a_run_that_is_measured_in_part_has_blanks(published):
    experiment = published.experiment
    lasso = experiment.row(method=m.LASSO, cut=m.WEIGHTS)
    part = lasso | {"measurements": {k: v for k, v in lasso["measurements"].items() if k not in ("file", "deployable")}}
    grid = [part if row is lasso else row for row in experiment.grid]
    networks = contest.networks(replace(experiment, grid=grid).results(published.store)).set_index("run")
    blank = networks.loc[lasso["run"].identity, ["latency_ms", "file_kb", "macs_left"]]
    assert blank.isna().all() and not networks.drop(lasso["run"].identity)["file_kb"].isna().any()


def test_who_is_in_the_ring_has_a_line_for_each_method_and_cut_whatever_its_seeds(quick, refusal):
    whole = contest.overview(quick)
    later = replace(quick, grid=[row for row in quick.grid if row["seed"] > 0 or row["method"] != m.LASSO])
    assert len(contest.overview(later)) == len(whole) and set(contest.overview(later).index) == set(whole.index)
    assert "nothing of scale quick" in refusal(contest.overview, replace(quick, grid=[]))


def test_rankings_are_those_of_each_cut_and_the_dense_network_has_its_interval(quick):
    results = found(quick)
    rankings = contest.rankings(results)
    assert list(rankings) == ["90 % of the weights", "50 % of the channels"]
    assert all(ranking.index[0] == m.RSR and m.DENSE not in ranking.index for ranking in rankings.values())
    assert len(contest.ranks(rankings)) == sum(map(len, rankings.values()))
    for dense in contest.dense_networks(results).values():
        assert dense["mean"] == pytest.approx(60) and 45 < dense["low"] < 55 and 65 < dense["high"] < 75


def test_best_of_some_at_the_first_cut():
    rankings = {"weights": pandas.DataFrame({"mean": [90, 70, 60, 65]}, index=["x", m.TICKET, m.LASSO, m.MAGNITUDE]),
                "channels": pandas.DataFrame({"mean": [99]}, index=[m.LASSO])}
    assert comparisons.best_of(rankings) == m.TICKET and comparisons.best_of(rankings, ["x", m.LASSO]) == "x"
    assert {m.LASSO, m.TICKET, m.FK, m.MAGNITUDE} == set(comparisons.ASKED)


def test_the_network_of_the_toy_is_cut_two_ways(quick):
    whole = toy.network(quick)
    stem, again = (model.members[0].stem.weight for model in (whole, toy.network(quick)))
    assert torch.equal(stem, again) and bool(toy.kept(whole).all())
    copies = toy.cuts(whole, 0.9)
    assert bool(toy.kept(whole).all()), "the network itself is left alone"
    together, apart = map(toy.kept, copies.values())
    assert len(together) == len(apart) and abs(int(together.sum()) - int(apart.sum())) < 10
    sizes = torch.cat([weight.detach().abs().flatten() for weight in sparsity.prunable(whole).values()])
    assert sizes[together].min() > sizes[~together].max()
    left = toy.left_by_layer(whole, 0.9).set_index(["series", "layer"])["value"]
    assert left["magnitude, layer by layer"].between(9, 11).all() and left["magnitude, global"].std() > 5
    assert left["magnitude, global", "stem"] == pytest.approx(
        100 * float((copies["magnitude, global"].members[0].stem.weight != 0).double().mean()))


def test_a_difference_is_paired_by_image_and_seed(quick):
    """The same images are hard for both; where they are not, the interval is wider."""
    def own(dealt: bool):
        def answers(row, metric):
            dice = np.random.default_rng(int(row["run"].identity[:8], 16))
            hard = np.random.default_rng(7).permutation(np.linspace(0, 1, 300))
            if dealt and row["method"] == m.MAGNITUDE:
                hard = np.random.default_rng(1).permutation(hard)
            return hard + 0.1 * dice.random(300) < {m.RSR: 0.6}.get(row["method"], 0.5)
        return found(quick, answers)

    results = own(False)
    row, apart = (comparisons.judged(r).set_index("claim").loc["RSR 90 % of the weights"]
                  for r in (results, own(True)))
    cut = estimates.matching(results.frame, {"metric": ATTACKED, "cut": m.WEIGHTS})
    value = cut.groupby("method")["value"].mean()
    assert row["ours"] == pytest.approx(100 * (value[m.RSR] - value[m.MAGNITUDE])) and row["low"] < row["ours"]
    assert apart["high"] - apart["low"] > 1.5 * (row["high"] - row["low"])


# ---------------------------------------------------------------------------------------------------------- tables


def sized(method: str, cut: str | None, level: float, seed: int, **values) -> dict:
    return {"method": method, "cut": cut, "level": level, "seed": seed} | values


def test_tables_have_a_line_for_each_method_and_cut():
    networks = contest.with_removed(pandas.DataFrame([
        sized(m.DENSE, None, 0.0, 0, file_kb=40.0, macs_left=100.0, pgd=0.6),
        sized(m.FK, m.WEIGHTS, 0.9, 0, file_kb=10.0, macs_left=150.0, pgd=0.3),
        sized(m.FK, m.WEIGHTS, 0.9, 1, file_kb=12.0, macs_left=150.0, pgd=0.4)]))
    assert networks["removed"].tolist() == ["nothing", "90 % of the weights", "90 % of the weights"]
    columns = {"file": ("file_kb", 1), "MACs": ("macs_left", 0)}
    shown = contest._by_method(contest._means(networks, columns))
    assert shown.index.tolist() == [m.DENSE, m.FK]
    assert shown.loc[m.FK].tolist() == ["90 % of the weights", "11.0 ± 1.4", "150"]
    assert contest._means(networks, columns, spread=False).loc[f"90 % of the weights, {m.FK}", "file"] == "11.0"


def test_what_the_accuracy_under_attack_follows_is_told_for_each_cut():
    """By rank: it need not be in proportion."""
    rows = [sized(method, cut, 0.9, seed, **{"pgd": pgd + 0.01 * seed, "margins ratio": pgd**5 * sign, "kappa": -pgd})
            for cut, sign in ((m.WEIGHTS, 1), (m.CHANNELS, -1)) for seed in (0, 1)
            for method, pgd in (("a", 0.1), ("b", 0.2), ("c", 0.9))]
    dense = sized(m.DENSE, None, 0.0, 0, **{"pgd": 0.9, "margins ratio": 0.0, "kappa": 9.0})
    told = contest.rank_correlations(contest.with_removed(pandas.DataFrame([dense, *rows])))
    assert told == ("Rank correlation of accuracy under attack over methods. 90 % of the weights removed: +1.00 with "
                    "margin / slope, -1.00 with kappa; 90 % of the channels removed: -1.00 with margin / slope, -1.00 "
                    "with kappa.")


OWN = '''
from sparserobust.config import settings
from sparserobust.sparsifiers import Magnitude

@settings
class Mine(Magnitude, kind="mine"):
    """A class of somebody else."""
'''


@pytest.mark.slow
def test_a_class_in_a_file_of_ones_own_reaches_the_workers(tmp_path, monkeypatch, tiny_run):
    (tmp_path / "my_own_file.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import my_own_file

    run = tiny_run(sparsifier=my_own_file.Mine(sparsity=0.5))
    assert "my_own_file" in run.modules and "my_own_file" not in tiny_run().modules
    frame = sweep.sweep([{"run": run}], {"sparsity": WeightSparsity()}, Store(tmp_path / "runs"), workers=1)
    assert frame["value"].item() == pytest.approx(0.5, abs=0.01)
    sys.modules.pop("my_own_file")



def test_a_method_joins_at_every_level_with_the_same_budget_measurements_and_figures():
    experiment = runs.experiment("quick", [0, 1])
    before = len(experiment.grid)
    added = m.join(experiment, "mine", lambda cut, level: Magnitude(sparsity=level), cuts=[m.WEIGHTS])
    assert added == experiment.grid[before:] and [row["seed"] for row in added] == experiment.seeds
    assert {m.budget(row["run"]) for row in experiment.grid} == {16.0}
    beside = experiment.rows(method=m.MAGNITUDE, cut=m.WEIGHTS)
    assert [row["measurements"] for row in added] == [row["measurements"] for row in beside]
    rankings = contest.rankings(found(experiment))
    assert "mine" in rankings["90 % of the weights"].index and "mine" not in rankings["50 % of the channels"].index


def test_networks_that_answered_other_images_are_not_ranked():
    def row(method, seed, each):
        return {"metric": "pgd", "cut": "weights", "level": 0.9, "method": method, "seed": seed, "each": each}

    drawn, first = imagewise.pack(np.array([True, False])), imagewise.FIRST + "10"
    rows = [row(name, seed, drawn) for name in ("a", "b") for seed in (0, 1)]
    rows += [row("old", seed, first) for seed in (0, 1)]
    assert list(contest.answers(pandas.DataFrame(rows), "pgd", "weights", 0.9)) == ["a", "b"]
    earlier = [row(name, 0, first) for name in ("a", "b")] + [row("new", 0, drawn)]
    assert list(contest.answers(pandas.DataFrame(earlier), "pgd", "weights", 0.9)) == ["a", "b"]
