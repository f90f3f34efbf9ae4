"""What is said of a comparison: an estimate, paired by seed and image; five verdicts; a ledger, judged as one."""

import math
import re
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from scaffolding import results_of
from sparserobust import imagewise
from sparserobust.reporting import claims, estimates, reported
from sparserobust.reporting.claims import FAILS, HOLDS, OPEN, SAME, UNTESTED
from sparserobust.reporting.crossed import Estimate, crossed, log_ratio, over_looks, over_seeds, tail
from sparserobust.reporting.estimates import Comparison, compared, compared_runs
from sparserobust.reporting.reported import Citation, Claim, Line, Reported
from sparserobust.running import sweep
from sparserobust.running.experiment import Experiment
from sparserobust.studies import iwi, rsr, sparsity_theory, tscnc
from sparserobust.studies.fk_resnet import comparisons, theorem
from sparserobust.studies.fk_resnet import runs as fk_resnet
from sparserobust.studies.iwi.comparisons import TIED


def claim(direction="increase", **more) -> Claim:
    usual: dict[str, Any] = {
        "id": "X", "statement": "s", "quantity": "q", "value": 1.0, "kind": "reported", "grade": "paper",
        "source": "somewhere", "unit": "percentage points"}
    return Claim(**usual | more, direction=direction)


# ---------------------------------------------------------------------------- comparisons, by seed and by image

NEW, OLD = {"net": "new"}, {"net": "old"}
RIGHT = {("new", 0): "1101110101", ("new", 1): "1111010111", ("new", 2): "0111001101",
         ("old", 0): "1001010101", ("old", 1): "1011010000", ("old", 2): "1010101001"}


def answers(text: str) -> np.ndarray:
    return np.array(list(text), float)


def row(net: str, seed: int, right: str, metric: str = "pgd", **more) -> dict:
    """A row as `sweep` makes it, of the answers on single images."""
    values = answers(right)
    return {"net": net, "seed": seed, "run": f"{net} {seed}", "metric": metric, "value": values.mean(),
            "count": values.sum(), "total": len(values), "sampled": True, "each": imagewise.pack(values == 1),
            "chance": 0.1} | more


def framed(right: dict = RIGHT, clean: float = 0.9, **more) -> pandas.DataFrame:
    """Networks of two kinds, none of them collapsed, with answers under attack; the rows in no particular order."""
    rows = [row(net, seed, text, **more) for (net, seed), text in right.items()]
    rows += [row(net, seed, "1", "clean", value=clean) for net, seed in right]
    return pandas.DataFrame(rows).sample(frac=1, random_state=0, ignore_index=True)


def effects_of(right: dict, seeds=(0, 1, 2), images: int = 10, factor: float = 100) -> np.ndarray:
    return factor * np.array([answers(right["new", s])[:images] - answers(right["old", s])[:images] for s in seeds])


def test_a_comparison_is_paired_on_seed_and_image():
    found = compared(framed(), "pgd", NEW, OLD)
    assert found.effects == pytest.approx([20, 40, 10]) and found.why == ""
    assert found.estimate == crossed(effects_of(RIGHT)) and found.estimate.mean == pytest.approx(70 / 3)
    swapped = RIGHT | {("new", 0): RIGHT["new", 1], ("new", 1): RIGHT["new", 0]}
    assert compared(framed(swapped), "pgd", NEW, OLD).estimate.ms_seeds != pytest.approx(found.estimate.ms_seeds)
    moved = RIGHT | {("old", 0): RIGHT["old", 0][::-1]}
    assert compared(framed(moved), "pgd", NEW, OLD).estimate.ms_images != pytest.approx(found.estimate.ms_images)


def test_labels_that_several_runs_of_a_seed_have_are_refused(refusal):
    """Which of them was compared would depend on the order of rows; the same run in two rows is one."""
    frame = framed()
    twice = pandas.concat([frame, frame])
    assert compared(twice, "pgd", NEW, OLD).effects == compared(frame, "pgd", NEW, OLD).effects
    more = pandas.concat([frame, frame[frame["net"] == "new"].assign(run="another")])
    assert "2 runs of seed 0 are {'net': 'new'}" in refusal(compared, more, "pgd", NEW, OLD)
    assert "unknown column 'nett'; did you mean 'net'?" in refusal(compared, frame, "pgd", {"nett": "new"}, OLD)


def test_what_was_tried_on_fewer_images_is_compared_on_those():
    fewer = RIGHT | {("old", 1): RIGHT["old", 1][:6]}
    found = compared(framed(fewer), "pgd", NEW, OLD)
    assert found.estimate == crossed(effects_of(RIGHT, images=6)) and found.estimate.images == 6
    assert found.effects == pytest.approx([20, 100 * (8 / 10 - 4 / 6), 10])  # of the single seeds: all that is known


def test_the_effect_has_the_unit_of_its_factor():
    found = compared(framed(), "pgd", NEW, OLD, factor=1)
    assert found.effects == pytest.approx([0.2, 0.4, 0.1])
    assert found.estimate == crossed(effects_of(RIGHT, factor=1))


def test_seeds_that_both_have_are_compared():
    more = RIGHT | {("new", 3): "1111111111", ("old", 5): "0000000000"}
    assert compared(framed(more), "pgd", NEW, OLD) == compared(framed(), "pgd", NEW, OLD)
    fourth = framed(RIGHT | {("new", 3): "1111111111", ("old", 3): "0000000000"})
    fourth.loc[(fourth["run"] == "old 3") & (fourth["metric"] == "pgd"), "value"] = math.nan  # not measurable
    assert compared(fourth, "pgd", NEW, OLD) == compared(framed(), "pgd", NEW, OLD)


def test_of_each_seed_its_own_pair_of_runs_is_compared():
    own = {seed: (f"new {seed}", f"old {seed}") for seed in range(3)}
    assert compared_runs(framed(), "pgd", own) == compared(framed(), "pgd", NEW, OLD)
    across = compared_runs(framed(), "pgd", {seed: (f"new {seed}", "old 1") for seed in range(3)})
    expected = [answers(RIGHT["new", seed]) - answers(RIGHT["old", 1]) for seed in range(3)]
    assert across.estimate == crossed(100 * np.array(expected)) and across.effects == pytest.approx([30, 40, 20])


@pytest.mark.parametrize("frame, effects, why", [
    (framed().query("net == 'new'"), [], estimates.NOT_RUN),
    (framed().query("metric == 'clean'"), [], estimates.NOT_RUN),
    (framed().query("seed == 1"), [40], "one seed"),
    (framed().query("seed < 2"), [20, 40], "two seeds"),
    (framed(each=None), [20, 40, 10], estimates.NO_ANSWERS),
    (framed().assign(each=lambda rows: rows["each"].where(rows["run"] != "old 1")), [20, 40, 10],
     estimates.NO_ANSWERS),
], ids=["no reference", "no metric", "one seed", "two seeds", "no answers", "answers of one missing"])
def test_what_cannot_be_compared_says_why(frame, effects, why):
    found = compared(frame, "pgd", NEW, OLD)
    assert (found.estimate, found.why) == (None, why) and found.effects == pytest.approx(effects)


def test_the_first_images_are_not_compared_with_a_sample():
    frame, of_old = framed(), framed()["net"] == "old"
    first = pandas.Series({index: imagewise.FIRST + RIGHT[r["net"], r["seed"]] for index, r in frame.iterrows()})
    assert compared(frame.assign(each=first), "pgd", NEW, OLD) == compared(frame, "pgd", NEW, OLD)
    mixed = compared(frame.assign(each=frame["each"].where(~of_old, first)), "pgd", NEW, OLD)
    assert (mixed.estimate, mixed.why) == (None, estimates.OTHER_IMAGES)
    assert mixed.effects == pytest.approx([20, 40, 10])


@pytest.mark.parametrize("odd, spoilt", [
    ("old 3", imagewise.FIRST + "0000000000"),  # the two of one seed answered other images
    ("old 3", None), ("new 3", None),  # one kept no answers
])
def test_seeds_that_cannot_be_paired_image_by_image_do_not_hide_those_that_can(odd, spoilt):
    frame = framed(RIGHT | {("new", 3): "1111111111", ("old", 3): "0000000000"})
    frame["each"] = frame["each"].astype(object).mask((frame["run"] == odd) & (frame["metric"] == "pgd"), spoilt)
    assert compared(frame, "pgd", NEW, OLD) == compared(framed(), "pgd", NEW, OLD)


def test_of_seeds_on_the_first_images_and_seeds_on_a_sample_the_more_are_compared():
    more = RIGHT | {(net, seed + 3): text for (net, seed), text in RIGHT.items()}

    def found(first: range):
        frame = framed(more)
        for index, one in frame[frame["seed"].isin(first)].iterrows():
            frame.loc[index, "each"] = imagewise.FIRST + more[one["net"], one["seed"]]
        return compared(frame, "pgd", NEW, OLD)

    assert found(range(3)) == compared(framed(more).query("seed >= 3"), "pgd", NEW, OLD)  # as many: those drawn
    assert found(range(4)).effects == pytest.approx([20, 40, 10, 20])  # seeds 4 and 5 alone would test nothing
    assert found(range(6)) == compared(framed(more), "pgd", NEW, OLD)


def test_images_without_a_value_in_one_network_count_for_none():
    distances = {("new", 0): [1.0, 2, 3, 4], ("new", 1): [2.0, np.nan, 3, 1], ("new", 2): [1.0, 1, 1, 2],
                 ("old", 0): [0.5, 1, 1, 1], ("old", 1): [1.0, 1, 2, np.nan], ("old", 2): [0.5, 0.5, 0.5, 0.5]}

    def found(values):
        rows = [row(*key, "1", value=np.nanmean(v), each=imagewise.pack(v)) for key, v in values.items()]
        return compared(pandas.DataFrame(rows), "pgd", NEW, OLD, factor=1)

    estimate = found(distances).estimate
    assert estimate.images == 2 and estimate.mean == pytest.approx(np.mean([0.5, 2, 1, 1, 0.5, 0.5]), rel=2e-3)
    short = found(distances | {("old", 0): [np.nan, 1, 1, 1]})
    assert (short.estimate, short.why) == (None, estimates.FEW_IMAGES)


def test_what_no_image_enters_has_seeds_alone():
    values = {("new", 0): 0.5, ("new", 1): 0.7, ("new", 2): 0.6, ("old", 0): 0.4, ("old", 1): 0.3, ("old", 2): 0.4}
    frame = pandas.DataFrame([row(*key, "1", "size", value=v, sampled=False, each=None) for key, v in values.items()])
    found = compared(frame, "size", NEW, OLD)
    assert found.estimate == over_seeds(found.effects) and found.effects == pytest.approx([10, 40, 20])
    assert found.estimate.images == 0
    ratio = compared(frame, "size", NEW, OLD, log=True)
    assert ratio.effects == pytest.approx([math.log10(5 / 4), math.log10(7 / 3), math.log10(6 / 4)])
    assert ratio.estimate == over_seeds(ratio.effects)


def test_a_ratio_of_means_over_images_is_one_of_logarithms():
    found = compared(framed(), "pgd", NEW, OLD, log=True)
    assert found.effects == pytest.approx([math.log10(7 / 5), math.log10(8 / 4), math.log10(6 / 5)])
    new, old = (np.array([answers(RIGHT[net, s]) for s in range(3)]) for net in ("new", "old"))
    assert found.estimate == crossed(log_ratio(new, old))
    assert found.estimate.mean == pytest.approx(np.mean(found.effects))
    zero = compared(framed(RIGHT | {("old", 1): "0000000000"}), "pgd", NEW, OLD, log=True)
    assert zero.estimate is None and zero.effects == [] and "logarithm" in zero.why
    fewer = {("old", seed): "10101" for seed in range(3)} | {("new", 1): "0000011111"}
    zero = compared(framed(RIGHT | fewer), "pgd", NEW, OLD, log=True)  # on the images that both have
    assert zero.estimate is None and len(zero.effects) == 3 and "logarithm" in zero.why


# ---------------------------------------------------------------------------------------------------- collapse


@pytest.mark.parametrize("run", ["new 0", "new 1", "old 0", "old 2"])
@pytest.mark.parametrize("classes, least", [(10, 0.2), (2, 0.5 + 0.5 / 9), (100, 0.01 + 0.99 / 9)])
def test_a_network_next_to_guessing_is_not_compared(classes, least, run):
    def found(clean):
        frame = framed().assign(chance=1 / classes)
        frame.loc[(frame["metric"] == "clean") & (frame["run"] == run), "value"] = clean
        return compared(frame, "pgd", NEW, OLD)

    assert found(least + 1e-6) == compared(framed(), "pgd", NEW, OLD)
    fallen = found(least - 1e-6)
    assert fallen.estimate is None and fallen.effects == pytest.approx([20, 40, 10])
    assert fallen.why == f"a network has collapsed (clean {100 * least:.0f} %)"


def test_a_collapse_elsewhere_hinders_nothing():
    frame = pandas.concat([framed(), pandas.DataFrame([row("other", 0, "0", "clean"), row("new", 7, "0", "clean")])])
    assert compared(frame, "pgd", NEW, OLD) == compared(framed(), "pgd", NEW, OLD)
    assert estimates.collapse(frame, ["other 0", "new 1"]) == "a network has collapsed (clean 0 %)"
    assert compared(framed().query("metric == 'pgd'"), "pgd", NEW, OLD).estimate  # clean accuracy is not known


@pytest.mark.parametrize("lost", [lambda frame, at: frame[~at], lambda frame, at: frame.assign(
    value=frame["value"].mask(at))], ids=["no row", "not a number"])
def test_a_network_that_may_have_collapsed_is_not_compared(lost):
    """Of which clean accuracy is not known, where it is of others."""
    frame = framed()
    some = lost(frame, (frame["metric"] == "clean") & (frame["run"] == "new 1"))
    found = compared(some, "pgd", NEW, OLD)
    assert found.estimate is None and "may have collapsed" in found.why


def test_clean_accuracy_itself_is_not_compared_where_a_network_has_collapsed():
    fallen = framed({("new", 0): "1000000000", ("new", 1): "1111111110", ("old", 0): "1111111100",
                     ("old", 1): "1111110110"}, metric="clean")
    assert "collapsed (clean 10 %)" in compared(fallen.query("total > 1"), "clean", NEW, OLD).why


# ------------------------------------------------------------------------------------------------ chosen levels


def test_the_level_of_a_seed_is_chosen_by_the_others():
    validation = pandas.DataFrame({0: {0.5: 0.9, 0.8: 0.5, 0.9: 0.1}, 1: {0.5: 0.2, 0.8: 0.6, 0.9: 0.3},
                                   2: {0.5: 0.3, 0.8: 0.5, 0.9: 0.6}})
    assert estimates.chosen_levels(validation) == {0: 0.8, 1: 0.5, 2: 0.5}
    assert estimates.chosen_levels(validation[[1, 2]]) == {1: 0.9, 2: 0.8}
    assert estimates.chosen_levels(validation[[2]]) == {2: 0.9}


def test_levels_are_compared_on_the_same_seeds():
    """A seed that lacks a level, and is a good one, is no argument for the others."""
    validation = pandas.DataFrame({0: {0.5: 0.5, 0.9: 0.6}, 1: {0.5: 0.5, 0.9: 0.6}, 2: {0.5: 0.9, 0.9: math.nan}})
    assert estimates.chosen_levels(validation) == {0: 0.9, 1: 0.9, 2: 0.9}
    assert estimates.chosen_levels(validation[[2]]) == {2: 0.5}


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=2, max_size=5), st.data())
def test_what_a_seed_measured_has_no_say_in_its_own_level(values, data):
    validation = pandas.DataFrame(np.transpose(values))
    seed = data.draw(st.sampled_from(list(validation.columns)))
    other = validation.copy()
    other[seed] = data.draw(st.lists(st.floats(0, 1), min_size=3, max_size=3))
    assert estimates.chosen_levels(other)[seed] == estimates.chosen_levels(validation)[seed]


# ----------------------------------------------------------------------------------------------------- verdicts


def estimated(mean: float, deviation: float = 0.5, seeds: int = 5) -> Comparison:
    """Without images, so that half the 95 % interval is `deviation` times 1.24 (five seeds)."""
    return Comparison(Estimate(mean, seeds, 0, deviation**2), [mean] * seeds)


@pytest.mark.parametrize("direction, mean, expected", [
    ("increase", 1.0, HOLDS), ("increase", -1.0, FAILS), ("increase", 0.3, OPEN), ("increase", -0.3, OPEN),
    ("decrease", -1.0, HOLDS), ("decrease", 1.0, FAILS), ("decrease", 0.3, OPEN), ("decrease", -0.3, OPEN),
])
def test_a_claim_holds_on_its_side_of_zero(direction, mean, expected):
    assert claims.judged(claim(direction), estimated(mean))["verdict"] == expected
    wide = claims.judged(claim(direction, margin=10.0), estimated(mean))["verdict"]  # a difference comes first
    assert wide == (SAME if expected == OPEN else expected)


@pytest.mark.parametrize("mean, margin, expected", [
    (-0.3, 1.2, HOLDS), (1.0, 1.2, HOLDS), (-1.0, 1.2, OPEN), (-1.4, 1.2, OPEN), (-2.0, 1.2, FAILS),
    (-2.0, 3.0, HOLDS), (0.1, 0.3, OPEN),
])
def test_no_worse_allows_a_loss_of_the_margin(mean, margin, expected):
    assert claims.judged(claim("no worse", margin=margin), estimated(mean))["verdict"] == expected


@pytest.mark.parametrize("direction, value, mean, expected", [
    ("increase", 2.0, 3.0, HOLDS), ("increase", 2.0, 1.0, FAILS), ("increase", 2.0, 2.3, OPEN),
    ("decrease", -2.0, -3.0, HOLDS), ("decrease", -2.0, -1.0, FAILS),
])
def test_at_least_is_held_against_the_number_it_names(direction, value, mean, expected):
    named = claim(direction, value=value, lower_bound=True)
    assert claims.judged(named, estimated(mean))["verdict"] == expected
    assert claims.judged(replace(named, lower_bound=False), estimated(mean))["verdict"] == HOLDS
    near = claims.judged(replace(named, margin=10.0), estimated(value + 0.3))
    assert near["verdict"] == SAME  # no different from the number that is named
    own = replace(named, kind="open", grade="derived", value=None)
    assert claims.judged(own, estimated(mean))["verdict"] == HOLDS  # no number is named: zero


ESTIMATES = st.builds(Estimate, mean=st.floats(-5, 5), seeds=st.integers(2, 12), images=st.integers(50, 2000),
                      ms_seeds=st.floats(1e-2, 1e4), ms_images=st.floats(0, 1e4), ms_residual=st.floats(0, 1e3)
                      ) | st.builds(Estimate, mean=st.floats(-5, 5), seeds=st.integers(2, 12), images=st.just(0),
                                    ms_seeds=st.floats(1e-3, 10))


@given(ESTIMATES, st.sampled_from(["increase", "decrease", "no worse"]), st.floats(0.1, 6), st.floats(-3, 3),
       st.booleans(), st.booleans())
def test_verdicts_agree_with_the_intervals(estimate, direction, margin, value, at_least, has_margin):
    has_margin |= direction == "no worse"
    said = claim(direction, value=value, lower_bound=at_least, margin=margin if has_margin else None,
                 margin_why="w" if has_margin else None)
    found = claims.judged(said, Comparison(estimate, [estimate.mean] * estimate.seeds))
    held = -margin if direction == "no worse" else value if at_least else 0.0
    (low, high), (inner_low, inner_high) = estimate.interval(), estimate.interval(0.9)
    edges = [low - held, high - held, inner_low - held + margin, held + margin - inner_high]
    assume(min(map(abs, edges)) > 1e-6)
    beyond, within = low > held or high < held, inner_low > held - margin and inner_high < held + margin
    if beyond:
        expected = HOLDS if (low > held) == (direction != "decrease") else FAILS
    else:
        expected = SAME if within and has_margin and direction != "no worse" else OPEN
    assert found["verdict"] == expected
    assert (found["low"], found["high"], found["ours"]) == (low, high, estimate.mean)
    assert (found["p"] <= 0.05) == beyond and bool(found["why"]) == (expected == OPEN)


@given(ESTIMATES, st.floats(0.1, 6) | st.none())
@example(Estimate(0.5, 3, 0, 1.0), None)
@example(Estimate(0.5, 3, 500, 1.0, 1e4, 1.0), None)
@example(Estimate(0.0, 3, 0, 1.0), None)
def test_open_says_how_many_seeds_would_decide_it(estimate, margin):
    row = claims.judged(claim(margin=margin), Comparison(estimate, [estimate.mean] * estimate.seeds))
    assume(row["verdict"] == OPEN)
    seeds = estimate.seeds_needed(margin=margin)
    if seeds is not None:
        assert row["why"] == f"about {seeds} seeds would decide it" and seeds > estimate.seeds
    else:
        limit = estimate.images and not estimate.decided_by(10**9, margin=margin)
        assert row["why"] == ("no number of seeds would decide it on so many images" if limit
                              else "no number of seeds up to 100 would decide it")


def test_seeds_that_do_not_differ_decide_nothing():
    found = claims.judged(claim(margin=5.0), Comparison(over_seeds([2.0, 2.0, 2.0]), [2.0, 2.0, 2.0]))
    assert (found["verdict"], found["why"], found["ours"]) == (OPEN, "the effect is the same in all seeds", 2.0)
    assert found["margin"] == 5.0
    assert math.isnan(found["low"]) and math.isnan(found["p"]) and "nan" not in claims.effect(found)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("effect, why", [(0.0, "all networks gave the same"), (math.inf, "a value is not finite")])
def test_why_an_effect_has_no_interval(effect, why):
    found = claims.judged(claim(margin=5.0), Comparison(over_seeds([effect] * 3), [effect] * 3))
    assert (found["verdict"], found["why"]) == (OPEN, why)


@pytest.mark.parametrize("found, why", [
    (Comparison(None, [], estimates.NOT_RUN), estimates.NOT_RUN),
    (Comparison(None, [2.0], estimates.ONE_SEED), estimates.ONE_SEED),
    (Comparison(None, [2.0, 4.0], estimates.NO_ANSWERS), estimates.NO_ANSWERS),
])
def test_what_is_not_tested_says_why(found, why):
    result = claims.judged(claim(), found)
    assert (result["verdict"], result["why"], result["n_seeds"]) == (UNTESTED, why, len(found.effects))
    assert result["ours"] == pytest.approx(np.mean(found.effects) if found.effects else math.nan, nan_ok=True)
    unsaid = claims.judged(claim(direction=None), found)
    assert (unsaid["verdict"], unsaid["why"]) == (UNTESTED, "what the paper claims is not on record")


def test_a_claim_without_a_direction_cannot_be_tested():
    found = claims.judged(claim(direction=None), estimated(3.0))
    assert (found["verdict"], found["why"]) == (UNTESTED, "what the paper claims is not on record")
    assert found["ours"] == 3.0 and math.isnan(found["p"])  # shown all the same


def test_a_claim_that_something_is_always_so_falls_with_one_exception():
    assert claims.judge_universal(claim(), 300, 300, n_seeds=3)["verdict"] == HOLDS
    for seeds, why in ((1, "one seed"), (2, "two seeds")):
        few = claims.judge_universal(claim(), 300, 300, seeds)
        assert (few["verdict"], few["why"], few["ours"]) == (UNTESTED, why, 100)
    assert claims.judge_universal(claim(), 299, 300, n_seeds=1)["verdict"] == FAILS
    never = claims.judge_universal(claim(), 0, 0, n_seeds=3)
    assert (never["verdict"], never["why"], never["n_seeds"]) == (UNTESTED, estimates.NOT_RUN, 0)
    found = claims.judge_universal(claim(value=None), 299, 300, n_seeds=2, where="a figure")
    assert found["verdict"] == FAILS and math.isnan(found["p"])  # there is no chance in it
    assert found["ours"] == found["low"] == found["high"] == pytest.approx(100 * 299 / 300)  # counted, not estimated
    assert (found["n_seeds"], found["where"], found["reported"]) == (2, "a figure", None)


def test_an_estimate_with_its_own_interval_is_judged_by_its_p_value():
    found = claims.estimated(claim("decrease"), -0.5, -0.9, -0.1, 0.02, 3, "here")
    assert (found["ours"], found["low"], found["high"], found["p"]) == (-0.5, -0.9, -0.1, 0.02)
    assert (found["n_seeds"], found["where"], found["verdict"]) == (3, "here", HOLDS)
    assert claims.estimated(claim("increase"), -0.5, -0.9, -0.1, 0.02, 3)["verdict"] == FAILS
    unclear = claims.estimated(claim("decrease"), -0.5, -0.9, 0.1, 0.12, 3)
    assert (unclear["verdict"], unclear["why"]) == (OPEN, "the interval contains zero")
    for seeds, why in ((0, "not run at this scale"), (1, "one seed"), (2, "two seeds")):
        few = claims.estimated(claim("decrease"), -0.5, -0.9, -0.1, 0.02, seeds)
        assert (few["verdict"], few["why"]) == (UNTESTED, why) and math.isnan(few["low"])


def test_a_row_says_what_was_claimed_and_where_to_look():
    found = claims.judged(claim("decrease", quantity="a minus b", margin=2.0), estimated(-1.5), "a table", "X more")
    said = {"claim": "X more", "statement": "s", "quantity": "a minus b", "unit": "percentage points", "margin": 2.0,
            "direction": "decrease", "threshold": 0.0, "source": "somewhere",
            "where": "a table", "reported": 1.0, "n_seeds": 5,
            "images": 0, "verdict": HOLDS, "said": HOLDS, "why": ""}
    assert {key: found[key] for key in said} == said
    estimate = estimated(-1.5).estimate
    assert (found["low"], found["high"]) == estimate.interval() and found["p"] == estimate.p()
    assert found["p_same"] == estimate.p_within(2.0)
    images = Estimate(1.0, 3, 400, 1.0, 1.0, 1.0)
    assert claims.judged(claim(), Comparison(images, [1.0] * 3))["images"] == 400
    others = (claims.judge_universal(claim(), 1, 2, 2), claims.estimated(claim(), 1.0, 0.5, 2.0, 0.01, 2),
              claims.judged(claim(), Comparison(None, [], "why")))
    assert all(other.keys() == found.keys() for other in others)  # one table holds all
    assert {type(other["unit"]) for other in others} == {str} == {type(claims.judged(
        claim(unit=None, quantity=None), estimated(1.0))[key]) for key in ("unit", "quantity")}


# ---------------------------------------------------------------------------------------------- many comparisons


def closed_test(p: list[float], p_same: list[float]) -> list[list[float]]:
    """The same by brute force: a hypothesis falls where all falls that could be true together with it. Of each
    comparison at most one hypothesis is true; a set of n falls at n times its smallest p value (Bonferroni)."""
    values, m = np.array([p, p_same]), len(p)
    result = np.where(np.isnan(values), math.nan, 0.0)
    for chosen in product((0, 1, None), repeat=m):
        true = [(kind, i) for i, kind in enumerate(chosen) if kind is not None and not np.isnan(values[kind, i])]
        for place in true:
            result[place] = max(result[place], min(1.0, len(true) * min(values[t] for t in true)))
    return result.tolist()


P_VALUES = st.floats(0, 1) | st.sampled_from([0.0, 1e-300, 1e-4, 0.01, 0.0125, 0.02, 0.05, math.nan])


@given(st.lists(st.tuples(P_VALUES, P_VALUES), min_size=1, max_size=5))
@example([(0.01, 0.9), (0.02, math.nan), (0.011, 1e-9)])
def test_adjusted_p_values_are_those_of_a_closed_test(pairs):
    p, p_same = zip(*pairs, strict=True)
    found = claims.adjusted(np.array(p), np.array(p_same))
    np.testing.assert_allclose(found, closed_test(p, p_same), rtol=1e-12)


@given(st.lists(P_VALUES, min_size=1, max_size=30))
def test_where_there_are_no_margins_the_adjustment_is_holms(p):
    known = [v for v in p if not math.isnan(v)]
    found = claims.adjusted(np.array(p), np.full(len(p), math.nan))
    assert np.isnan(found[1]).all() and np.isnan(found[0])[np.isnan(p)].all()
    by_hand, least = {}, 0.0
    for k, v in enumerate(sorted(known)):
        least = by_hand[v] = max(least, min(1.0, (len(known) - k) * v))
    assert [by_hand[v] for v in known] == pytest.approx([v for v in found[0] if not math.isnan(v)])


def family(*pairs, said=HOLDS, **more) -> pandas.DataFrame:
    """Rows with these p values of a difference and of no difference."""
    rows = [claims.judged(claim(margin=1.0), estimated(1.0), row=f"X {i}") | {
        "p": p, "p_same": same, "said": said, "verdict": claims._said(said, p, same), "why": ""} | more
        for i, (p, same) in enumerate(pairs)]
    return pandas.DataFrame(rows)


def test_a_verdict_stands_if_it_survives_the_family():
    lines = claims.together(family((0.001, 0.9), (0.03, 0.9), (0.3, 0.0001), (0.6, 0.04), (0.2, 0.5)))
    assert lines["verdict"].tolist() == [HOLDS, OPEN, SAME, OPEN, OPEN]
    assert lines["alone"].tolist() == [HOLDS, HOLDS, SAME, SAME, OPEN]
    assert lines["p"].tolist() == [0.001, 0.03, 0.0001, 0.04, 0.2]
    assert lines["p_holm"].tolist() == pytest.approx([0.005, 0.15, 0.0005, 0.2, 1.0])
    assert lines["why"].tolist() == ["", "holds by itself, not among 5 comparisons", "",
                                     "no difference by itself, not among 5 comparisons", ""]
    assert claims.together(family((0.03, 0.9)))["verdict"].tolist() == [HOLDS]  # alone it is a family of one
    assert claims.together(family((0.0, 0.9), (0.0, 0.0)))["verdict"].tolist() == [HOLDS] * 2  # smaller than any float


def test_a_difference_comes_before_that_there_is_none():
    lines = claims.together(family((0.02, 0.001), (0.4, 0.9), said=FAILS))
    assert lines.loc[0, ["alone", "verdict"]].tolist() == [FAILS, FAILS]
    lines = claims.together(family((0.04, 0.001), (0.4, 0.9), said=FAILS))  # small, and of two: too small to tell
    assert lines.loc[0, ["alone", "verdict"]].tolist() == [FAILS, SAME]


def test_what_was_not_tested_makes_the_family_no_larger():
    tested = family((0.02, 0.9), (0.021, 0.9))
    untested = [claims.judged(claim(), Comparison(None, [1.0], estimates.ONE_SEED)),
                claims.judge_universal(claim(), 3, 3, 3),
                claims.judged(claim(), Comparison(over_seeds([1.0, 1.0]), [1.0, 1.0]))]
    lines = claims.together(pandas.concat([pandas.DataFrame(untested), tested], ignore_index=True))
    assert lines["verdict"].tolist() == [UNTESTED, HOLDS, OPEN, HOLDS, HOLDS]
    pandas.testing.assert_frame_equal(lines[3:].reset_index(drop=True), claims.together(tested), check_dtype=False)
    assert lines["p_holm"][:3].isna().all() and lines["why"][0] == estimates.ONE_SEED


def drawn_families(effects: np.ndarray, margin: float, seeds: int, images: int, families: int):
    """Means and p values (families, comparisons) of effects [points], drawn by the mean squares of `crossed`: of seeds,
    images and rest the standard deviations are 0.5, 10 and 30 points, so that the mean of 8 seeds and 2000 images has
    an error of 0.37."""
    dice, size = np.random.default_rng(0), (families, len(effects))
    expected = np.array([30.0**2 + images * 0.5**2, 30.0**2 + seeds * 10.0**2, 30.0**2])
    freedom = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    of_seeds, of_images, residual = (e * dice.chisquare(f, size) / f for e, f in zip(expected, freedom, strict=True))
    x, c = of_seeds / (seeds * images), np.maximum(of_images - residual, 0) / (seeds * images)
    means = dice.normal(effects, math.sqrt(expected @ [1, 1, -1] / (seeds * images)), size)
    p, p_same = (tail(gap, x, c, seeds, images) for gap in (np.abs(means), margin - np.abs(means)))
    some = Estimate(means[0, 0], seeds, images, of_seeds[0, 0], of_images[0, 0], residual[0, 0])
    assert (2 * p[0, 0], p_same[0, 0]) == pytest.approx((some.p(), some.p_within(margin)))  # those of the library
    return means, 2 * p, p_same


@pytest.mark.parametrize("margin", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("shares", [(0,), (1,), (0, 1), (0, 0.5, 1, 5)], ids=["none", "at the margin", "both", "all"])
def test_one_family_in_twenty_has_a_wrong_verdict(margin, shares):
    """Whatever the true effects are, in units of the margin: that there is one where there is none or another, or that
    there is none where it is as large as the margin. With wide margins, Holm's method on the smaller p value of each
    comparison would reach 17 %."""
    families, comparisons = 1000, 12
    effects = margin * np.resize(shares, comparisons)
    wrong = 0
    for means, *p in zip(*drawn_families(effects, margin, 8, 2000, families), strict=True):
        verdicts = [claims._said(HOLDS, *values) for values in zip(*claims.adjusted(*p), strict=True)]
        wrong += any((said == HOLDS and mean * effect <= 0) or (said == SAME and effect >= margin)
                     for said, mean, effect in zip(verdicts, means, effects, strict=True))
    assert wrong <= families * 0.05 + 3 * math.sqrt(families * 0.05 * 0.95)


def test_claims_one_by_one_would_be_wrong_far_more_often():
    """So that the test above can fail: without an adjustment, half of all families have a wrong verdict."""
    _, p, _ = drawn_families(np.zeros(12), 1.0, 8, 2000, 700)
    assert (p <= 0.05).any(1).mean() > 0.3


# ---------------------------------------------------------------------------------------------------- the ledger


def on_record(*lines: Line, **more) -> Reported:
    known = {name: claim(id=name, margin=1.0, **more) for name in ("A", "B")}
    return Reported("x", Citation(title="x", authors=("A. Toy",), year=2026), {}, known, {}, {}, lines)


def line(name: str, primary: str, of: str = "A") -> Line:
    return Line(id=name, claim=of, words=f"{name} in words", primary=primary)


def test_a_ledger_has_its_primary_comparisons_alone_judged_together():
    rows = family((0.02, 0.9), (0.001, 0.9), (0.03, 0.9), (0.9, 0.9))
    lines = claims.ledger(rows, on_record(line("one", "X 2"), line("two", "X 0", "B")))
    assert lines[["line", "words", "claim"]].to_numpy().tolist() == [
        ["one", "one in words", "X 2"], ["two", "two in words", "X 0"]]
    expected = claims.together(rows.loc[[2, 0]].reset_index(drop=True))
    pandas.testing.assert_frame_equal(lines[expected.columns], expected)
    assert lines["p_holm"].tolist() == pytest.approx([0.06, 0.04])  # of two, not of four


def test_holes_in_the_names_of_primary_comparisons_are_filled(refusal):
    rows, record = family((0.02, 0.9)).assign(claim="A ResNet, 90 %"), on_record(line("one", "A {net}, {level}"))
    assert claims.ledger(rows, record, net="ResNet", level="90 %", more="unused")["verdict"].tolist() == [HOLDS]
    for primary in ("A {net}, {levl}", "A {", "A {}", "A {0}"):
        message = refusal(claims.ledger, rows, on_record(line("one", primary)), net="ResNet", level="90 %")
        assert all(word in message for word in ("x.yaml", "line one", primary, "net, level"))


def test_a_primary_comparison_that_is_missing_was_not_run():
    (found,) = claims.ledger(family((0.02, 0.9)), on_record(line("one", "B elsewhere", "B"))).to_dict("records")
    assert (found["verdict"], found["why"], found["n_seeds"]) == (UNTESTED, "not run at this scale", 0)
    assert (found["words"], found["claim"], found["statement"]) == ("one in words", "B elsewhere", "s")
    assert found["reported"] is None or math.isnan(found["reported"])  # the claim's own number is of another comparison
    assert claims.sentence(found) == "one in words: not run at this scale."
    (found,) = claims.ledger(family((0.02, 0.9)), on_record(line("one", "B", "B"))).to_dict("records")
    assert found["reported"] == 1.0 and claims.sentence(found).endswith(": the paper: +1.0; not run at this scale.")


# ------------------------------------------------------------------------------------- the ledgers of five papers


class Measured:
    """A store in which every measurement of every run has some value, and all the parts that a paper may ask for."""

    def __init__(self, parts):
        self.parts = parts

    def measure(self, run, measurement):
        dice = np.random.default_rng(int(run.identity[:8], 16) ^ int(measurement.identity[:8], 16))
        values = {part: dice.uniform(0.5, 0.9, 9) for part in ("", *self.parts)}
        means = {part: found.mean() for part, found in values.items()}
        return {"value": means.pop(""), "parts": means, "where": "", "processor": "",
                "each": {part: imagewise.pack(found) for part, found in values.items()}}


def measured_at_quick(paper, parts=()) -> tuple[Experiment, pandas.DataFrame]:
    experiment = paper.experiment("quick", [0, 1])
    return experiment, sweep.frame_of(experiment.grid, {},
                                    Measured(list(parts)))  # type: ignore[arg-type]  # as much of a store as is needed


def of_fk_resnet():
    experiment, frame = measured_at_quick(fk_resnet, ["level 0", "level 0.1"])
    with patch.object(theorem, "falls", lambda: (3, 3, 2)):
        return comparisons.judged(results_of(experiment, None, frame)), {}


def of_iwi():
    experiment, frame = measured_at_quick(iwi, [m.partition(" ")[2] for m in TIED.values() if " " in m])
    return iwi.judged(results_of(experiment, None, frame)), iwi.words(experiment)


def of_rsr():
    experiment, frame = measured_at_quick(rsr)
    return rsr.judged(results_of(experiment, None, frame)), {}


def of_sparsity_theory():
    experiment, frame = measured_at_quick(sparsity_theory, ["r_inf 0.1", "r_inf 0.2"])
    masks = {"joint": {"l2": [0.9, 0.5]}, "single": {"1": {"l2": [0.95, 0.6]}}}
    store = SimpleNamespace(use_published=False, measure=lambda run, measurement: masks)
    rows = sparsity_theory.judged(results_of(experiment, store, frame))
    return rows, sparsity_theory.words(experiment)


def of_tscnc():
    parts = {"log_norms", "log_relative_norms", "log_relative_norms_over", "effective_rank"}
    parts |= {f"{of}{kind}{over}" for of in ("folded", "classifier_folded")
              for kind in ("", "_floored", "_deficit") for over in ("", "_over_null")}
    experiment, frame = measured_at_quick(tscnc, parts)
    store = SimpleNamespace(record=lambda run: {"history": [{"validation_robust": 0.5}]})
    return tscnc.judged(results_of(experiment, store, frame)), tscnc.words(experiment)


PAPERS = {"fk_resnet": of_fk_resnet, "iwi": of_iwi, "rsr": of_rsr, "sparsity_theory": of_sparsity_theory,
          "tscnc": of_tscnc}


@pytest.mark.parametrize("paper", PAPERS)
def test_every_primary_comparison_is_one_that_the_paper_makes(paper):
    rows, holes = PAPERS[paper]()
    record = reported.load(paper)
    assert rows["claim"].is_unique
    names = [each.primary.format(**holes) for each in record.ledger]
    assert set(names) <= set(rows["claim"]) and len(set(names)) == len(names)
    lines = claims.ledger(rows, record, **holes)
    assert lines["claim"].tolist() == names and (lines["n_seeds"] > 0).all()
    for each, name in zip(record.ledger, names, strict=True):  # a comparison of the claim that it is said to be of
        assert name.split()[0].split(".")[0] == each.claim.split(".")[0]
        assert rows.set_index("claim").loc[name, "statement"]


def test_the_ledgers_are_short_and_in_words():
    lines = [each for paper in reported.papers() for each in reported.load(paper).ledger]
    assert 0 < len(lines) <= 45 and all(reported.load(paper).ledger for paper in reported.papers())
    words = [each.words for each in lines]
    assert len(set(words)) == len(words)
    for text in words:
        assert not re.search(r"\bC\d|\|", text) and text[0].isupper() and text[-1] != "." and len(text) < 130, text
    for paper in reported.papers():
        record = reported.load(paper)
        asked = {each.claim.split(".")[0] for each in record.ledger}
        testable = {name.split(".")[0] for name, known in record.claims.items() if known.direction}
        assert asked == testable, paper  # nothing that could be tested goes without a line


# ------------------------------------------------------------------------------------------------------- in words


LINE = claims.judged(claim(unit="percentage points"), Comparison(Estimate(2.0, 3, 500, 30.0, 0.5, 0.3), [2.0] * 3)
                     ) | {"words": "A beats B", "line": "one", "p_holm": 0.5}


@pytest.mark.parametrize("change, expected", [
    ({"low": 1.1, "high": 2.9, "why": ""},
     "A beats B: +2.0 [+1.1, +2.9] points; 3 seeds, 500 images; the paper: +1.0."),
    ({"reported": None, "low": math.nan, "high": math.nan, "images": 0, "n_seeds": 1, "why": "one seed"},
     "A beats B: +2.0 points; 1 seed; one seed."),
    ({"ours": -0.04567, "low": -0.05, "high": 0.0123, "unit": "l2 distance", "images": 1200, "reported": math.nan,
      "why": "about 9 seeds would decide it"},
     "A beats B: -0.046 [-0.050, +0.012] l2 distance; 3 seeds, 1,200 images; about 9 seeds would decide it."),
    ({"ours": math.nan, "n_seeds": 0, "reported": 85.0, "unit": "percent", "why": "not run at this scale"},
     "A beats B: the paper: +85.0; not run at this scale."),
    ({"ours": math.nan, "n_seeds": 0, "reported": None, "unit": "", "why": "not run at this scale"},
     "A beats B: not run at this scale."),
    ({"ours": 99.5, "low": 99.5, "high": 99.5, "unit": "percent of steps downhill", "images": 0, "reported": None,
      "why": ""}, "A beats B: +99.5 percent of steps downhill; 3 seeds."),
    ({"ours": 0.5, "low": 0.1, "high": 0.9, "unit": "", "images": 0, "reported": None, "why": ""},
     "A beats B: +0.500 [+0.100, +0.900]; 3 seeds."),
])
def test_a_line_is_said_in_one_sentence(change, expected):
    assert claims.sentence(LINE | change) == expected


CLAIMS = st.builds(claim, st.sampled_from(["increase", "decrease", None]), value=st.floats(-9, 9) | st.none(),
                   unit=st.sampled_from(["percentage points", "log10", None, "percent"]))
ANY_ROW = st.one_of(
    st.builds(lambda c, e: claims.judged(c, Comparison(e, [e.mean] * e.seeds)), CLAIMS, ESTIMATES),
    st.builds(lambda c, effects, why: claims.judged(c, Comparison(None, effects, why)), CLAIMS,
              st.lists(st.floats(-9, 9), max_size=3), st.sampled_from([estimates.ONE_SEED, estimates.NOT_RUN])),
    st.builds(lambda c, count, total, seeds: claims.judge_universal(c, min(count, total), total, seeds), CLAIMS,
              st.integers(0, 9), st.sampled_from([0, 9]), st.integers(1, 4)))


@settings(max_examples=40)
@given(st.lists(ANY_ROW, min_size=1, max_size=6))
def test_nothing_missing_is_printed(found):
    rows = pandas.DataFrame([r | {"claim": f"X {i}", "words": f"Line {i}", "line": i} for i, r in enumerate(found)])
    lines = claims.together(rows)
    for line in lines.to_dict("records"):
        said = claims.sentence(line)
        assert said.startswith(line["words"] + ": ") and said.endswith(".") and "\n" not in said
        assert not re.search(r"nan|None|\[\]|\(\)|: ;|;\s*[;.]|  ", said), said
        assert line["verdict"] not in (OPEN, UNTESTED) or line["why"]
    for table in (claims.table(lines), claims.short_table(lines), claims.detail(rows)):
        assert len(table) == len(found) and not table.isna().to_numpy().any()
        assert not table.astype(str).isin(["nan", "None"]).to_numpy().any()
    text = claims.in_words(lines)
    assert text.count("\n- ") == len(lines)
    counts = re.findall(r"\*\*(.+?)\*\* \((\d+) of (\d+)\)", text)
    assert {said.lower(): int(n) for said, n, _ in counts} == lines["verdict"].value_counts().to_dict()
    assert {int(total) for *_, total in counts} == {len(lines)}


@pytest.mark.parametrize("changed, expected", [
    ({}, "> 0"), ({"direction": "decrease"}, "< 0"), ({"direction": "no worse", "margin": 1.2}, "> -1.2"),
    ({"direction": "no worse", "margin": 0.01, "unit": "l2 distance"}, "> -0.010"),
    ({"lower_bound": True, "value": 30.0}, "> 30"), ({"direction": None}, "")])
def test_for_which_effects_a_claim_holds_is_what_it_is_judged_by(changed, expected):
    asked = claim(**changed)
    row = claims.judged(asked, estimated(0.0))
    assert claims.holds_if(row) == expected
    for shift in (-50.0, 50.0) if expected else ():
        found = claims.judged(asked, estimated(row["threshold"] + shift))
        assert (found["verdict"] == HOLDS) == ((shift > 0) == expected.startswith(">")) and found["verdict"] != OPEN
    every = claims.judge_universal(asked, 3, 3, 3)
    assert claims.holds_if(every) == "= 100" and every["verdict"] == HOLDS and every["ours"] == 100


def test_the_caption_counts_what_the_figure_cannot_show():
    lines = pandas.DataFrame([LINE, LINE | {"n_seeds": 0}])
    assert claims.caption(lines).endswith("Of 1 of the 2 claims there is no effect at this scale.")
    assert "no effect" not in claims.caption(lines[:1])


def test_lines_stand_under_their_verdicts_in_one_order():
    rows = [LINE | {"verdict": said, "words": f"{said} {i}"} for i, said in
            enumerate((OPEN, HOLDS, UNTESTED, HOLDS, SAME, FAILS))]
    told = claims.in_words(pandas.DataFrame(rows)).splitlines()
    assert [text for text in told if text.startswith("**")] == [
        "**Holds** (2 of 6)", "**Does not hold** (1 of 6)", "**No difference** (1 of 6)", "**Open** (1 of 6)",
        "**Not tested** (1 of 6)"]
    assert [text.split(":")[0][2:] for text in told if text.startswith("- ")] == [
        "holds 1", "holds 3", "does not hold 5", "no difference 4", "open 0", "not tested 2"]


def test_tables_have_a_line_per_claim_and_per_comparison():
    lines = pandas.DataFrame([LINE | {"low": 1.1, "high": 2.9, "p": 0.00001, "p_holm": 0.0234, "where": "table 1"},
                              LINE | {"n_seeds": 0, "images": 0, "p": math.nan, "p_holm": math.nan, "reported": None,
                                      "verdict": UNTESTED, "why": "not run", "words": "C beats D"}])
    first, second = claims.table(lines).reset_index().to_dict("records")
    assert first == {"claim": "A beats B", "unit": "percentage points", "holds if": "> 0", "reported": "+1.0",
                     "ours": "+2.0 [+1.1, +2.9]", "seeds": 3, "images": 500, "p": "<0.0001", "p, adjusted": "0.023",
                     "verdict": LINE["verdict"], "why": LINE["why"], "where": "table 1"}
    assert [second[key] for key in ("claim", "reported", "ours", "seeds", "images", "p", "p, adjusted", "why")] == [
        "C beats D", "", "", "", "", "", "", "not run"]
    first, second = claims.short_table(lines).reset_index().to_dict("records")
    assert first == {"line": "one", "claim": "A beats B", "holds if": "> 0", "reported": "+1.0",
                     "ours": "+2.0 [+1.1, +2.9] points", "seeds": 3,
                     "verdict": LINE["verdict"], "why": LINE["why"]}
    assert second["ours"] == second["reported"] == second["seeds"] == ""
    detail = claims.detail(lines)
    assert detail.index.tolist() == ["X", "X"] and detail["quantity"].tolist() == ["q", "q"]
    assert detail["ours"].tolist() == ["+2.0 [+1.1, +2.9]", ""]


def test_where_the_ledger_stands_is_counted_by_notebook():
    one = pandas.DataFrame({"notebook": ["a", "a", "b", "a"], "verdict": [FAILS, HOLDS, UNTESTED, HOLDS]})
    other = pandas.DataFrame({"notebook": ["a", "a"], "verdict": [OPEN, SAME]})
    found = claims.verdict_counts({"quick": one, "laptop": other})
    assert found.loc["a"].tolist() == ["2 hold, 1 does not", "1 no difference, 1 open"]
    assert found.loc["b"].tolist() == ["1 not tested", ""]
    assert claims.counted([]) == ""


def test_what_the_ledger_makes_stands_between_its_marks(refusal):
    begin, end = "<!-- part: made by `sparserobust ledger --readme` -->", "<!-- end of the part -->"
    text = f"before\n{begin}\nold\n{end}\nafter\n"
    once = claims.with_part(text, "part", "| new |\n")
    assert once == f"before\n{begin}\n| new |\n{end}\nafter\n"
    assert claims.with_part(once, "part", "| new |\n") == once
    for wrong in ("", text.replace(end, ""), text.replace(begin, ""), text + begin, text + text, f"{end}\n{begin}"):
        assert begin in refusal(claims.with_part, wrong, "part", "new")


def test_only_where_seeds_are_added_one_by_one_is_a_claim_looked_at_more_than_once():
    def looks(seeds, redraw):
        return claims.looks(SimpleNamespace(seeds=range(seeds), redraw=redraw))  # type: ignore[arg-type]

    assert looks(5, True) == (3, 4, 5)
    assert looks(5, False) == looks(1, True) == ()


LOOKS = (3, 4, 5, 6, 7, 8)


def test_a_claim_that_is_looked_at_several_times_needs_a_smaller_p_value():
    rows = pandas.DataFrame([claims.judged(claim(margin=5.0), estimated(mean), row=name)
                             for name, mean in (("near", 0.8), ("far", 30.0))])
    once, often = claims.together(rows), claims.together(rows, LOOKS)
    assert (once["p"] == often["p"]).all() and (often["p_holm"] > once["p_holm"]).all()
    for index, row in rows.iterrows():
        pair = [over_looks(row["p"], LOOKS), over_looks(row["p_same"], LOOKS, two_sided=False)]
        assert often.loc[index, "p_holm"] <= 2 * min(pair) and often.loc[index, "p_holm"] >= min(pair)
