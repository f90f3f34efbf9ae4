"""All methods on one network with one budget: that they really have one, what they end with, how they are ranked."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparserobust import Store, estimates, scales, sparsity, sweep, training
from sparserobust.analysis import WeightSparsity
from sparserobust.papers import side_by_side as s
from sparserobust.sparsifiers import Channels, Magnitude

every_scale = pytest.mark.parametrize("scale", scales.names())


@every_scale
def test_every_method_takes_the_same_budget(scale):
    experiment = s.experiment(scale)
    settings = experiment.settings
    steps = settings["objective"]["attack"]["steps"]
    assert {s.budget(row["run"]) for row in experiment.grid} == {settings["recipe"]["epochs"] * (steps + 1)}


@every_scale
def test_every_cut_has_every_method_once_a_seed(scale):
    experiment = s.experiment(scale)
    for cut, level in experiment.cuts:
        for seed in experiment.seeds:
            methods = [row["method"] for row in experiment.rows(cut=cut, level=level, seed=seed)]
            assert len(methods) == len(set(methods)) == (12 if cut == s.WEIGHTS else 11)
            assert set(s.PAPERS) <= set(methods)
    asked = {method for _, _, *pair in s.QUESTIONS.values() for method in pair}
    assert asked <= {row["method"] for row in experiment.grid}


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


def test_questions_are_paired_as_they_say():
    """Every network is right on the same images whatever the seed, but for RSR's, which gain with each seed."""
    experiment, rates = s.experiment("quick", [0, 1, 2]), {s.RSR: 0.8, s.MAGNITUDE: 0.5, s.DENSE: 0.6}
    rate_of = {row["run"]: rates.get(row["method"], 0.4) + 0.04 * row["seed"] * (row["method"] == s.RSR)
               for row in experiment.grid}
    store = SimpleNamespace(measure=lambda run, measurement: {
        "right": "".join("01"[image < round(100 * rate_of[run])] for image in range(100))})
    ledger = s.judged(experiment, store).set_index("claim")
    rsr = ledger.loc["RSR 90 % of the weights"]
    assert rsr["ours"] == pytest.approx(34) and rsr["verdict"] == "holds"
    low, high = estimates.interval([30.0, 34.0, 38.0])
    assert rsr["low"] <= low + 1e-9 and high - 1e-9 <= rsr["high"]
    assert ledger.loc["sparsity 90 % of the weights", "ours"] == pytest.approx(-20)
    assert ledger["reported"].isna().all() and (ledger["n_seeds"] == 3).all()
    words = s.in_words(ledger.reset_index())
    assert list(words.index) == list(s.QUESTIONS) and words.loc["RSR", "90 % of the weights"] == "holds"


def test_a_difference_is_paired_by_image_and_seed():
    right = answers([0.4, 0.5], images=300)
    ours, low, high = estimates.difference(right["m1"], right["m0"])
    assert ours == pytest.approx(100 * (right["m1"].mean() - right["m0"].mean())) and low < ours < high
    shuffled = right["m0"][:, np.random.default_rng(1).permutation(300)]
    _, wide_low, wide_high = estimates.difference(right["m1"], shuffled)
    assert wide_high - wide_low > 1.5 * (high - low)  # the same images are hard for both
    assert estimates.difference(right["m0"], right["m0"]) == (0, 0, 0)


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
    assert "move it into a file" in refusal(sweep._outside, job)
    Magnitude.family.pop("mine of a notebook")


def test_a_method_joins_at_every_level_and_takes_the_same_budget():
    experiment = s.experiment("quick")
    before = len(experiment.grid)
    rows = s.join(experiment, "mine", lambda cut, level: Magnitude(sparsity=level), experiment.seeds, cuts=[s.WEIGHTS])
    assert rows == experiment.grid[before:] and len(rows) == len(experiment.seeds) * len(experiment.settings[s.WEIGHTS])
    assert {s.budget(row["run"]) for row in experiment.grid} == {16.0}
