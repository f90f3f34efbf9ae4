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
from sparserobust.models import PreActResNet, ResNet
from sparserobust.reporting import claims, crossed, estimates
from sparserobust.running import pool, scales, sweep
from sparserobust.sparsifiers import Channels, Magnitude
from sparserobust.studies.side_by_side import report as s

SOME = [name for name in scales.names() if "only" in scales.load(name, s.PAPER)]  # scales that have some methods
every_scale = pytest.mark.parametrize("scale", scales.names())
whole_scale = pytest.mark.parametrize("scale", [name for name in scales.names() if name not in SOME])


@every_scale
def test_every_method_takes_the_same_budget(scale):
    experiment = s.experiment(scale)
    settings = experiment.settings
    steps = settings["objective"]["attack"]["steps"]
    assert {s.budget(row["run"]) for row in experiment.grid} == {settings["recipe"]["epochs"] * (steps + 1)}


@whole_scale
def test_every_cut_has_every_method_once_a_seed(scale):
    experiment = s.experiment(scale)
    for cut, level in experiment.cuts:
        for seed in experiment.seeds:
            methods = [row["method"] for row in experiment.rows(cut=cut, level=level, seed=seed)]
            assert len(methods) == len(set(methods)) == (12 if cut == s.WEIGHTS else 11)
            assert set(s.PAPERS) <= set(methods)
    asked = {method for _, _, *pair in s.QUESTIONS.values() for method in pair}
    assert asked <= {row["method"] for row in experiment.grid}


@pytest.mark.parametrize("scale", SOME)
def test_a_scale_may_have_some_of_the_methods_and_their_questions(scale):
    experiment = s.experiment(scale, [0, 1])
    assert experiment.cuts == [(s.WEIGHTS, 0.95)]
    methods = [row["method"] for row in experiment.grid]
    assert sorted(methods) == sorted(2 * experiment.settings["only"])
    rows = s.judged(framed(experiment, lambda row, metric: np.arange(SMALL_IMAGES) % 2 < 1), experiment)
    lines = s.ledger(rows)
    assert [line.split()[0] for line in lines["line"]] == ["splitting", "RSR", "lasso", "noise"]
    assert list(s.in_words(lines).index) == ["splitting", "RSR", "lasso", "noise"] and len(rows) == 8


def test_what_is_cut_ends_with_as_many_weights_or_channels(digits):
    """The masks alone, on networks that were not trained."""
    experiment = s.experiment("quick", [0])
    left = {}
    for row in experiment.grid:
        cutting = [r for r in row["run"].lineage if isinstance(r.sparsifier, Magnitude | Channels)]
        if row["method"] in (s.SMALL, s.TICKET) or not cutting:
            continue
        run = cutting[-1]
        model = training.build(run, digits)
        run.sparsifier.start(model)
        zero, total = sparsity.zero_weights(model)
        left.setdefault((row["cut"], row["level"]), {})[row["method"]] = total - zero
    for (cut, level), found in left.items():
        sizes = np.array(list(found.values()))
        if cut == s.WEIGHTS:
            whole = sparsity.zero_weights(training.build(experiment.rows(method=s.DENSE)[0]["run"], digits))[1]
            assert np.abs(sizes - (1 - level) * whole).max() <= 2
        else:  # an ensemble keeps the stems and shortcuts of both members
            assert len({size for method, size in found.items() if method != s.FK}) == 1


def test_channels_by_share_remove_the_same_of_every_layer(digits):
    run = s.experiment("quick", [0]).rows(method=s.MAGNITUDE, cut=s.CHANNELS)[0]["run"]
    for criterion in ("filters", "readers"):
        model = training.build(run, digits)
        Channels(share=0.5, criterion=criterion).start(model)
        for block in model.members[0].blocks:
            read = (block.conv2.weight != 0).any(dim=(0, 2, 3))
            written = (block.conv1.weight != 0).any(dim=(1, 2, 3))
            assert int(read.sum()) == len(read) // 2 and torch.equal(read, written)


def test_readers_go_by_the_norm_of_what_reads_them(digits):
    model = training.build(s.experiment("quick", [0]).rows(method=s.DENSE)[0]["run"], digits)
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
    experiment = s.experiment(scale, [0])
    channels = {"digits": 1, "cifar10": 3}[experiment.settings["data"]["name"]]
    rows = experiment.rows(method=s.SMALL, cut=s.WEIGHTS)
    dense = counted(experiment.rows(method=s.DENSE)[0]["run"].model, channels)
    assert [row["level"] for row in rows] == experiment.settings[s.WEIGHTS]
    for row in rows:
        left = counted(row["run"].model, channels)
        assert left == pytest.approx((1 - row["level"]) * dense, rel=0.01)
        assert row["run"].start is None


@settings(max_examples=25)
@given(percent=st.integers(50, 98), width=st.integers(12, 40), depth=st.sampled_from([8, 14, 20]),
       members=st.integers(1, 2))
def test_a_small_network_is_found_for_every_level(percent, width, depth, members):
    model = PreActResNet(depth=depth, width=width, members=members)
    small = s.small_model(model, percent / 100, Data(name="digits"))
    dense = model.weights(1, 10)
    assert counted(small, 1) == pytest.approx(dense - round(percent / 100 * dense), rel=0.01)
    assert replace(small, widths=(), width=width) == model
    assert small == s.small_model(model, percent / 100, Data(name="digits"))


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
    widths = s.small_model(model, level, Data(name=name)).widths
    assert tried[widths] == pytest.approx(min(tried.values()))


def test_proportions_are_those_of_the_large_network():
    wide = PreActResNet(widths=(64, 64, 64))
    a, b, c = s.small_model(wide, 0.8, Data(name="mnist")).widths
    assert max(a, b, c) <= 1.1 * min(a, b, c)
    assert s.small_model(wide, 0.0, Data(name="mnist")) == wide


def test_fewer_classes_have_fewer_weights():
    model = PreActResNet(depth=8, width=12)
    small = s.small_model(model, 0.9, Data(name="cifar100", classes=(3, 7)))
    assert counted(small, 3, 2) == pytest.approx(0.1 * counted(model, 3, 2), rel=0.01)
    small = s.small_model(model, 0.9, Data(name="cifar100"))
    assert counted(small, 3, 100) == pytest.approx(0.1 * counted(model, 3, 100), rel=0.01)


@pytest.mark.parametrize(("model", "level", "name", "words"), [
    (PreActResNet(), 0.9999, "digits", ["level 0.9999", "27 weights", "1 %", "choose another level"]),
    (PreActResNet(), 1.0, "digits", ["[0, 1)"]),
    (PreActResNet(), -0.1, "digits", ["[0, 1)"]),
    (ResNet(), 0.9, "digits", ["preact_resnet", "not for resnet"]),
    (PreActResNet(), 0.9, "imagenet", ["imagenet", "cifar10"]),
], ids=["tiny", "all", "negative", "resnet", "imagenet"])
def test_no_small_network(refusal, model, level, name, words):
    message = refusal(s.small_model, model, level, Data(name=name))
    assert all(word in message for word in words), message


def test_a_grid_is_made_without_the_images_and_knows_what_they_are(monkeypatch, digits):
    assert data.IMAGES["digits"] == (digits.image_shape[0], len(digits.classes))
    assert data.IMAGES.keys() == data._SOURCES.keys() and data.IMAGES["cifar10"][1] == len(data.CIFAR10_CLASSES)
    monkeypatch.setattr(data, "_load", lambda name: pytest.fail(f"{name} was loaded"))
    assert s.experiment("laptop").grid


# ------------------------------------------------------------------------------------------------------- ranking


def answers(rates, seeds=3, images=400, seed=0):
    dice = np.random.default_rng(seed)
    hard = dice.random(images)  # the same images are hard for all
    return {f"m{i}": np.stack([(hard + 0.1 * dice.random(images) < rate) for _ in range(seeds)]).astype(int)
            for i, rate in enumerate(rates)}


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
    points = pandas.DataFrame({"size": [1, 2, 3, 4, 2], "y": [0.2, 0.5, 0.4, 0.6, 0.1], "name": list("abcde")})
    assert s.front(points, "size", "y")["name"].tolist() == ["a", "b", "d"]
    for _, row in points.iterrows():
        beaten = ((points["size"] <= row["size"]) & (points["y"] > row["y"])).any()
        assert beaten != (row["name"] in "abd")


# -------------------------------------------------------------------------------------------- claims and joining


RATES = {s.RSR: 0.8, s.MAGNITUDE: 0.5, s.DENSE: 0.6}
SMALL_IMAGES = 100


def right(row, metric) -> np.ndarray:
    """Which images a network answers right: the same ones whatever the seed, but for RSR's, which gain with each seed;
    a tenth more of them if they are clean."""
    rate = RATES.get(row["method"], 0.4) + 0.04 * row["seed"] * (row["method"] == s.RSR) + 0.1 * (metric == "clean")
    return np.arange(SMALL_IMAGES) < round(SMALL_IMAGES * rate)


def framed(experiment, right=right) -> pandas.DataFrame:
    """As `sweep` returns it, of the accuracies that are judged."""
    return pandas.DataFrame([
        {k: row[k] for k in ("method", "cut", "level", "seed")} | {
            "run": row["run"].identity, "metric": metric, "value": right(row, metric).mean(), "chance": 0.1,
            "sampled": True, "each": imagewise.pack(right(row, metric))}
        for row in experiment.grid for metric in (s.ATTACKED, "clean")])


@pytest.fixture(scope="module")
def quick():
    return s.experiment("quick", [0, 1, 2])


@pytest.fixture(scope="module")
def rows(quick):
    return s.judged(framed(quick), quick)


def test_questions_are_paired_as_they_say(rows):
    found = rows.set_index("claim")
    rsr = found.loc["RSR 90 % of the weights"]
    assert rsr["ours"] == pytest.approx(34) and rsr["verdict"] == claims.HOLDS
    low, high = crossed.over_seeds([30.0, 34.0, 38.0]).interval()
    assert rsr["low"] < low < high < rsr["high"]  # images are a sample, too
    assert found.loc["sparsity 90 % of the weights", "ours"] == pytest.approx(-20)
    assert found.loc["TSCNC 50 % of the channels", "ours"] == pytest.approx(-10)  # where no scores are learned
    assert found.loc["TSCNC 90 % of the weights", "ours"] == 0
    assert found["reported"].isna().all() and (found["n_seeds"] == 3).all() and (found["images"] == 100).all()
    assert rsr["margin"] == s.MARGIN and found["where"].eq("06_side_by_side, claims").all()
    words = s.in_words(s.ledger(rows))
    assert list(words.index) == list(s.QUESTIONS) and words.loc["RSR", "90 % of the weights"] == claims.HOLDS


def test_clean_accuracy_is_judged_too(quick, rows):
    """Each question twice: here clean answers are those under attack, one in five of RSR's taken away."""
    def other(row, metric):
        kept = np.arange(SMALL_IMAGES) % 5 > 0 if metric == "clean" and row["method"] == s.RSR else True
        return right(row, s.ATTACKED) & kept

    found = s.judged(framed(quick, other), quick).set_index("claim")
    clean = found.index.str.endswith(", clean")
    assert set(found.index[clean]) == {f"{name}, clean" for name in found.index[~clean]}
    for name in found.index[~clean]:
        same = found.loc[f"{name}, clean", "ours"] == found.loc[name, "ours"]
        assert same == (name.split()[0] not in ("RSR", "noise")), name
    assert found[~clean]["ours"].tolist() == rows[~rows["claim"].str.endswith(", clean")]["ours"].tolist()
    assert found.loc["RSR 90 % of the weights, clean", "quantity"] == "accuracy on clean images: RSR minus magnitude"


@whole_scale
def test_all_questions_at_all_cuts_are_one_family(scale):
    """22 at the quick scale; clean accuracies are no part of it."""
    experiment = s.experiment(scale)

    def scattered(row, metric):
        return np.random.default_rng(int(row["run"].identity[:8], 16)).random(SMALL_IMAGES) < 0.5

    rows = s.judged(framed(experiment, scattered), experiment)
    lines = s.ledger(rows)
    asked = [f"{name} {s.named(*cut)}" for cut in experiment.cuts for name in s.QUESTIONS]
    assert lines["claim"].tolist() == lines["line"].tolist() == asked and lines["words"].is_unique
    if scale != "paper":
        assert len(lines) == 22
    assert len(rows) == 2 * len(lines) and not lines["claim"].str.contains("clean").any()
    own = rows.set_index("claim").loc[asked]
    assert own["p"].notna().all() and own["p_same"].notna().all()
    p, p_same = claims.adjusted(own["p"].to_numpy(), own["p_same"].to_numpy())
    assert lines["p_holm"].to_numpy() == pytest.approx(np.fmin(p, p_same))
    assert (lines["p_holm"] >= lines["p"]).all() and (lines["p_holm"] > lines["p"]).any()
    assert lines["p_holm"].min() == pytest.approx(min(1, len(lines) * lines["p"].min()))
    said = s.in_words(lines)
    assert list(said.columns) == ["asked of", "what", *(s.named(*cut) for cut in experiment.cuts)]


def test_health_is_measured_on_the_first_seed(quick):
    assert all(("health" in row["also"]) == (row["seed"] == 0) for row in quick.grid)


def test_answers_are_those_of_all_methods_on_the_seeds_they_share(quick):
    """In the shape (seeds, images), methods in the order of the grid."""
    frame = framed(quick)
    cut = (frame["cut"] == s.WEIGHTS) & (frame["metric"] == s.ATTACKED)
    found = s.answers(frame, s.ATTACKED, s.WEIGHTS, 0.9)
    assert list(found) == list(frame[cut]["method"].unique()) and {a.shape for a in found.values()} == {(3, 100)}
    for seed in range(3):
        assert found[s.RSR][seed].tolist() == right({"method": s.RSR, "seed": seed}, s.ATTACKED).tolist()
        assert found[s.MAGNITUDE][seed].sum() == 50
    gone = cut & (frame["method"] == s.LASSO) & (frame["seed"] == 1)
    some = s.answers(frame[~gone], s.ATTACKED, s.WEIGHTS, 0.9)
    assert {a.shape for a in some.values()} == {(2, 100)} and some[s.RSR].sum(1).tolist() == [80, 88]
    kept = frame.assign(each=frame["each"].mask(cut & (frame["method"] == s.LASSO)))
    assert set(found) - set(s.answers(kept, s.ATTACKED, s.WEIGHTS, 0.9)) == {s.LASSO}
    assert estimates.ranking(found).index[0] == s.RSR


def test_a_difference_is_paired_by_image_and_seed(quick):
    """The same images are hard for both; where they are not, the interval is wider."""
    def own(dealt: bool):
        def found(row, metric):
            dice = np.random.default_rng(int(row["run"].identity[:8], 16))
            hard = np.random.default_rng(7).permutation(np.linspace(0, 1, 300))
            if dealt and row["method"] == s.MAGNITUDE:
                hard = np.random.default_rng(1).permutation(hard)
            return hard + 0.1 * dice.random(300) < {s.RSR: 0.6}.get(row["method"], 0.5)
        return framed(quick, found)

    frame = own(False)
    row, apart = (s.judged(f, quick).set_index("claim").loc["RSR 90 % of the weights"] for f in (frame, own(True)))
    value = frame[(frame["metric"] == s.ATTACKED) & (frame["cut"] == s.WEIGHTS)].groupby("method")["value"].mean()
    assert row["ours"] == pytest.approx(100 * (value[s.RSR] - value[s.MAGNITUDE])) and row["low"] < row["ours"]
    assert apart["high"] - apart["low"] > 1.5 * (row["high"] - row["low"])


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


def test_a_class_defined_in_a_notebook_is_told_to_move(tiny_run, refusal):
    class Mine(Magnitude, kind="mine of a notebook"):
        pass

    Mine.__module__ = "__main__"
    job = {"run": tiny_run(sparsifier=Mine(sparsity=0.5)), "measurements": []}
    assert "move it into a file" in refusal(pool._outside, job)
    Magnitude.family.pop("mine of a notebook")


def test_a_method_joins_at_every_level_and_takes_the_same_budget():
    experiment = s.experiment("quick")
    before = len(experiment.grid)
    rows = s.join(experiment, "mine", lambda cut, level: Magnitude(sparsity=level), experiment.seeds, cuts=[s.WEIGHTS])
    assert rows == experiment.grid[before:] and len(rows) == len(experiment.seeds) * len(experiment.settings[s.WEIGHTS])
    assert {s.budget(row["run"]) for row in experiment.grid} == {16.0}


def test_networks_that_answered_other_images_are_not_ranked():
    def row(method, seed, each):
        return {"metric": "pgd", "cut": "weights", "level": 0.9, "method": method, "seed": seed, "each": each}

    drawn, first = imagewise.pack(np.array([True, False])), imagewise.FIRST + "10"
    rows = [row(m, seed, drawn) for m in ("a", "b") for seed in (0, 1)] + [row("old", seed, first) for seed in (0, 1)]
    assert list(s.answers(pandas.DataFrame(rows), "pgd", "weights", 0.9)) == ["a", "b"]
    earlier = [row(m, 0, first) for m in ("a", "b")] + [row("new", 0, drawn)]
    assert list(s.answers(pandas.DataFrame(earlier), "pgd", "weights", 0.9)) == ["a", "b"]
