"""From tidy frames to tables, figures, verdicts: what is drawn and written is what was measured."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
from matplotlib.colors import to_rgb
from scipy import stats

from sparserobust import imagewise, paths
from sparserobust.analysis import WeightSparsity
from sparserobust.errors import UserError
from sparserobust.evaluation import Accuracy
from sparserobust.reporting import artifacts, claims, estimates, plots, tables
from sparserobust.reporting.crossed import Estimate
from sparserobust.running import scales, sweep
from sparserobust.running.experiment import Experiment
from sparserobust.running.store import Store


def packed(count: int, total: int = 100) -> str:
    """Answers on single images, of which so many are right, spread evenly."""
    return imagewise.pack(np.arange(total) * count % total < count)


@pytest.fixture
def frame():
    """Measurements of two nets, dense and pruned, two seeds, 100 images."""
    rows = []
    for net, level, base in (("A", None, 80), ("A", 0.1, 70), ("B", None, 60), ("B", 0.1, 66)):
        for seed in (0, 1):
            for metric, count in (("clean", base + 4 * seed), ("channel_sparsity", 0 if level is None else 30)):
                rows.append({"net": net, "ours": f"our {net}", "method": "dense" if level is None else "RGSM",
                             "level": level, "seed": seed, "run": f"{net}{level}{seed}", "metric": metric,
                             "value": count / 100, "count": count, "total": 100, "where": "store", "processor": "P",
                             "chance": 0.1, "sampled": metric == "clean",
                             "each": packed(count) if metric == "clean" else None})
    return pandas.DataFrame(rows)


def test_binomial_interval_is_wilsons():
    n, p, z = 250, 0.4, stats.norm.ppf(0.975)
    middle, reach = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = [(middle + s * reach) / (1 + z**2 / n) for s in (-1, 1)]
    assert estimates.binomial_interval(100, 250) == pytest.approx(expected)
    assert estimates.binomial_interval(99.6, 250) == pytest.approx(expected)  # rounded, not cut off


def test_a_metric_that_counts_nothing_has_no_interval(frame):
    slope = frame.iloc[[0]].assign(metric="slope", value=0.7, count=math.nan, total=math.nan)
    rows = tables.summary(pandas.concat([frame, slope]), ["net", "level"]).set_index(["net", "metric"])
    row = rows.loc[("A", "slope")]
    assert (row["mean"], row["count"], row["total"]) == (70, 0, 0) and math.isnan(row["low"])
    assert tables.cell(row) == "70.0"


def test_summary_and_cells(frame):
    rows = tables.summary(frame, ["net", "level"]).set_index(["net", "level", "metric"])
    row = rows.loc[("A", 0.1, "clean")]
    assert (row["mean"], row["n_seeds"], row["count"], row["total"]) == (72.0, 2, 144, 200)
    assert row["sd"] == pytest.approx(np.std([70, 74], ddof=1))
    assert tables.cell(row) == "72.0 ± 2.8"
    low, high = estimates.binomial_interval(72, 100)  # both seeds answer the same hundred images
    assert (row["low"], row["high"]) == pytest.approx((100 * low, 100 * high))
    single = tables.summary(frame[frame["seed"] == 0], ["net", "level"]).set_index(["net", "level", "metric"])
    exact = tables.summary(frame[frame["seed"] == 0], ["net", "level"], exact=("clean",))
    assert tables.cell(exact.set_index(["net", "level", "metric"]).loc[("A", 0.1, "clean")]) == "70.0"
    low, high = estimates.binomial_interval(70, 100)
    assert tables.cell(single.loc[("A", 0.1, "clean")]) == f"70.0 [{100 * low:.1f}, {100 * high:.1f}]"


def test_rates_are_cells_in_the_order_of_the_frame(frame):
    columns = {"first": "clean", "none": "absent", "second": "channel_sparsity"}
    shown = tables.rates(frame, ["net", "level"], columns)
    assert list(shown.index) == ["A, nan", "A, 0.1", "B, nan", "B, 0.1"] and list(shown.columns) == list(columns)
    assert shown.loc["A, 0.1"].tolist() == ["72.0 ± 2.8", "", "30.0 ± 0.0"]
    one = tables.rates(frame[frame["seed"] == 0], ["net", "level"], columns, exact=("channel_sparsity",))
    low, high = (100 * p for p in estimates.binomial_interval(66, 100))
    assert one.loc["B, 0.1"].tolist() == [f"66.0 [{low:.1f}, {high:.1f}]", "", "30.0"]


def test_means_have_the_digits_of_what_they_are(frame):
    frame = frame[frame["metric"] == "clean"].iloc[::-1]
    columns = {"rate": ("clean", 100), "share": ("clean", 1), "none": ("absent", 1)}
    shown = tables.means(frame, ["net", "level"], columns)
    assert list(shown.index) == ["B, 0.1", "A, 0.1"]
    assert shown.loc["A, 0.1"].tolist() == ["72.0 ± 2.8", "0.720 ± 0.028", ""]
    three = pandas.Series([1.0, 2.0, 6.0])
    assert tables.mean(three, 1) == f"3.000 ± {three.std():.3f}" and tables.mean(three[:1], 100) == "1.0"


def test_beside_puts_each_number_in_its_row(frame):
    printed = pandas.DataFrame({"net": ["A", "B", "C"], "lambda1": [0.1, None, None], "A1": [1.234, 5.0, None]})
    table = tables.beside(printed, tables.summary(frame, ["net", "level", "ours"]), {"net": "net", "lambda1": "level"},
                          {"A1": ("A1", "clean"), "own": (None, "channel_sparsity")}, label="ours")
    assert list(table.index) == ["A lambda1 0.1", "B dense", "C dense"]
    assert list(table["A1", "reported"]) == ["1.23", "5.00", ""]
    assert list(table["A1", "ours"]) == ["72.0 ± 2.8", "62.0 ± 2.8", ""]
    assert list(table["own", "ours"]) == ["30.0 ± 0.0", "0.0 ± 0.0", ""] and ("own", "reported") not in table
    assert list(table["", "ours is"]) == ["our A", "our B", ""]


def test_an_effect_has_an_interval_where_there_is_an_estimate():
    estimate = Estimate(1.5, 2, 0, 0.5)
    low, high = estimate.interval()
    assert tables.effect(estimates.Comparison(estimate, [1.0, 2.0])) == f"+1.5 [{low:+.1f}, {high:+.1f}]"
    assert tables.effect(estimates.Comparison(estimate, [1.0, 2.0]), 3) == f"+1.500 [{low:+.3f}, {high:+.3f}]"
    same = estimates.Comparison(Estimate(2.0, 2, 0, 0.0), [2.0, 2.0])
    assert tables.effect(same) == tables.effect(estimates.Comparison(None, [2.0], "one seed")) == "+2.0"
    assert tables.effect(estimates.Comparison(None, [], "not run")) == ""


def test_effects_are_paired_differences_in_points(frame):
    pairs = {"pruning A": ({"net": "A", "level": 0.1}, {"net": "A", "level": None}),
             "B over A": ({"net": "B", "level": 0.1}, {"net": "A", "level": 0.1}),
             "nothing": ({"net": "C", "level": 0.1}, {"net": "A", "level": 0.1})}
    third = frame[frame["seed"] == 1].assign(seed=2, run=lambda rows: rows["run"] + "2")
    frame = pandas.concat([frame, third], ignore_index=True)
    frame.loc[(frame["run"] == "B0.10") & (frame["metric"] == "clean"), ["value", "each"]] = 0.60, packed(60)
    shown = tables.effects(frame, pairs, {"rate": "clean", "none": "absent"})
    assert list(shown.index) == list(pairs) and list(shown.columns) == ["rate", "none"]
    assert (shown["none"] == "").all() and shown.loc["nothing", "rate"] == ""
    assert shown.loc["pruning A", "rate"] == "-10.0"  # all seeds lost the same
    low, high = estimates.compared(frame, "clean", *pairs["B over A"]).estimate.interval()
    assert shown.loc["B over A", "rate"] == f"-6.0 [{low:+.1f}, {high:+.1f}]"
    of_two = tables.effects(frame[frame["seed"] < 2], pairs, {"rate": "clean"})
    assert of_two["rate"].tolist() == ["-10.0", "-7.0", ""]


# ----------------------------------------------------------------------------------------------- the same images


def sampled(metric: str, right, **more) -> dict:
    """A row as `sweep` makes it, of answers (trials, images) or (images,)."""
    right = np.atleast_2d(np.asarray(right, bool))
    return {"net": "A", "seed": 0, "metric": metric, "value": right.mean(), "count": right.mean(0).sum(),
            "total": right.shape[1], "sampled": True, "each": imagewise.pack(right), "where": "store",
            "processor": "P"} | more


@pytest.fixture
def attacked():
    """Of one net: clean on eight images, a strong attack on four of them; a distance, a size, and a rate of old."""
    return pandas.DataFrame([
        sampled("clean", [1, 1, 0, 1, 1, 1, 1, 1]), sampled("strong", [[0, 1, 0, 1], [0, 0, 0, 1]]),
        sampled("distance", [1], value=0.3, count=None, total=2, each=imagewise.pack([0.2, 0.4])),
        sampled("size", [1], value=0.5, count=50, total=100, sampled=False, each=None),
        sampled("early", [1], value=0.75, count=9, total=12, each=f"{imagewise.FIRST}111011101110"),
        sampled("unkept", [1], value=0.6, count=12, total=20, each=None)])


def test_all_rates_of_a_table_are_taken_of_the_same_images(attacked):
    found = tables.on_common_images(attacked, list(attacked["metric"])).set_index("metric")
    assert found.loc["clean", ["value", "count", "total"]].tolist() == [0.75, 3, 4]
    assert found.loc["strong", ["value", "count", "total"]].tolist() == [0.375, 1.5, 4]
    for metric in ("distance", "size", "early", "unkept"):  # as they were
        before = attacked.set_index("metric").loc[metric]
        assert found.loc[metric].drop("count").equals(before.drop("count"))
        assert found.loc[metric, "count"] == pytest.approx(before["count"], nan_ok=True)
    alone = tables.on_common_images(attacked, ["clean", "distance"]).set_index("metric")
    assert alone.loc["clean", "count"] == 7 and list(alone.index) == ["clean", "distance"]
    assert attacked.loc[0, "total"] == 8, "the frame itself stays as it is"
    assert tables.on_common_images(attacked, ["absent"]).empty


def test_tables_show_rates_on_the_same_images(attacked):
    shown = tables.rates(attacked, ["net"], {"no attack": "clean", "attack": "strong"})
    low, high = (100 * p for p in estimates.binomial_interval(3, 4))
    assert shown.loc["A", "no attack"] == f"75.0 [{low:.1f}, {high:.1f}]"
    assert tables.rates(attacked, ["net"], {"no attack": "clean"}).loc["A", "no attack"].startswith("87.5 [")
    shown = tables.means(attacked, ["net"], {"no attack": ("clean", 100), "attack": ("strong", 100)})
    assert shown.loc["A"].tolist() == ["75.0", "37.5"]
    nothing = tables.rates(attacked, ["net"], {"rate": "absent"})
    assert nothing.empty and list(nothing.columns) == ["rate"] and tables.markdown(nothing)


def test_captions_say_on_how_many_images_the_rates_rest(attacked):
    assert tables.images(attacked, ["clean", "strong", "size"]) == "All on the same 4 test images."
    assert tables.images(attacked, ["clean"]) == "All on the same 8 test images."
    assert tables.images(attacked, ["clean", "strong", "early"]) == "On 4 to 12 test images."
    assert tables.images(attacked, ["size", "distance"]) == ""
    thousands = pandas.DataFrame([sampled("clean", [1] * 2500)])
    assert tables.images(thousands, ["clean"]) == "All on the same 2,500 test images."


def test_one_seed_among_many_is_said_to_be_one():
    row = {"mean": 75.2, "sd": math.nan, "n_seeds": 1, "low": 74.3, "high": 76.0}
    assert tables.cell(row) == "75.2 [74.3, 76.0]"
    assert tables.cell(row, mixed=True) == "75.2 (1 seed)"
    assert tables.cell(row | {"low": math.nan}) == "75.2"
    several = row | {"sd": 0.44, "n_seeds": 3}
    assert tables.cell(several) == tables.cell(several, mixed=True) == "75.2 ± 0.4"


def test_tables_of_one_seed_and_of_several_tell_them_apart(frame):
    some = frame[~((frame["net"] == "B") & (frame["seed"] == 1))]
    shown = tables.rates(some, ["net", "level"], {"rate": "clean"})["rate"]
    assert shown.tolist() == ["82.0 ± 2.8", "72.0 ± 2.8", "60.0 (1 seed)", "66.0 (1 seed)"]
    printed = pandas.DataFrame({"net": ["A", "B"], "lambda1": [0.1, 0.1]})
    table = tables.beside(printed, tables.summary(some, ["net", "level", "ours"]), {"net": "net", "lambda1": "level"},
                          {"A1": (None, "clean")}, label="ours")
    assert table["A1", "ours"].tolist() == ["72.0 ± 2.8", "66.0 (1 seed)"]


def test_lines_that_differ_in_several_columns_only_are_gathered():
    lines = [{"net": net, "level": level, "epochs": epochs, "seeds": seed} for net, level, epochs in
             (("B", None, 3), ("A", "0.1", 3), ("A", "0.2", 3), ("A", "0.1", 5)) for seed in (1, 0)]
    shown = tables.gathered([{k: line[k] for k in ("net", "epochs", "level", "seeds")} for line in lines[2:]], "level",
                            "seeds")
    assert shown.to_dict("list") == {"net": ["A", "A"], "epochs": [3, 5], "level": ["0.1, 0.2", "0.1"],
                                     "seeds": ["1, 0", "1, 0"]}
    assert tables.gathered(lines, "seeds")["level"].isna().tolist() == [True, False, False, False]  # none is a value


def test_bars_are_those_of_the_test_images(frame):
    """Seeds add no images: the bar lies at the mean count, and is that of a hundred images."""
    clean = frame[(frame["metric"] == "clean") & (frame["net"] == "A")].fillna({"level": 0.0})
    (axis,) = plots.bands(clean, ["clean"], "level", ["title"], "rate", bars=True).axes
    bars = axis.collections[1].get_segments()
    for bar, count in zip(bars, (82, 72), strict=True):
        assert bar[:, 1] == pytest.approx([100 * p for p in estimates.binomial_interval(count, 100)])


def test_tradeoff_draws_means_and_seeds(frame):
    (axis,) = plots.tradeoff(frame, "channel_sparsity", ["clean"], "removed", ["clean"]).axes
    lines = [line for line in axis.get_lines() if line.get_linestyle() == "-"]
    means = sorted(tuple(map(tuple, line.get_xydata())) for line in lines)
    assert means == [((0.0, 62.0), (30.0, 68.0)), ((0.0, 82.0), (30.0, 72.0))]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["our A", "our B"]


def lines_of(axis, style: str | None = None) -> dict[str, list[tuple]]:
    """Label to points, of the lines that have a label."""
    return {line.get_label(): [tuple(xy) for xy in line.get_xydata().tolist()] for line in axis.get_lines()
            if not line.get_label().startswith("_") and style in (None, line.get_linestyle())}


def said(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_tradeoff_against_a_count_takes_counts_on_a_logarithmic_axis(frame):
    left = frame["metric"] == "channel_sparsity"
    counts = {("A", None): 9000, ("A", 0.1): 700, ("B", None): 50_000, ("B", 0.1): 8000}
    frame.loc[left, "count"] = [counts[row.net, None if pandas.isna(row.level) else row.level] + row.seed
                                for row in frame[left].itertuples()]
    figure = plots.tradeoff(frame, "channel_sparsity", ["clean"], "left", ["clean"], percent=False)
    (axis,) = figure.axes
    assert axis.get_xscale() == "log" and axis.get_yscale() == "linear" and axis.get_xlabel() == "left"
    means = sorted(tuple(map(tuple, line.get_xydata())) for line in axis.get_lines() if line.get_linestyle() == "-")
    assert means == [((700.5, 72.0), (9000.5, 82.0)), ((8000.5, 68.0), (50_000.5, 62.0))]
    marks = [line for line in axis.get_lines() if line.get_linestyle() == "None" and len(line.get_xdata()) == 4]
    seeds = sorted(tuple(xy) for line in marks for xy in line.get_xydata().tolist())
    assert seeds == sorted([(700, 70), (701, 74), (9000, 80), (9001, 84), (8000, 66), (8001, 70), (50_000, 60),
                            (50_001, 64)])
    assert plots.tradeoff(frame, "channel_sparsity", ["clean"], "removed", ["clean"]).axes[0].get_xscale() == "linear"


@pytest.fixture
def curve():
    """Two nets, three levels, two metrics, three seeds; unpruned rows, which have no level, are in between."""
    rows = [{"ours": f"our {net}", "level": level, "seed": seed, "metric": metric,
             "value": (0.2 if net == "A" else 0.6) + level + 0.01 * seed * (seed + 1) + 0.1 * (metric == "clean")}
            for level in (0.1, 0.02, 0.05) for net in "BA" for seed in range(3) for metric in ("gone", "clean")]
    return pandas.DataFrame([{"ours": "our A", "level": None, "seed": 0, "metric": "gone", "value": 0.0}, *rows])


def test_bands_span_the_seeds_around_their_mean(curve):
    figure = plots.bands(curve, ["gone", "clean"], "penalty", ["first", "second"], "rate [%]")
    assert len(figure.axes) == 2 and [axis.get_title() for axis in figure.axes] == ["first", "second"]
    assert figure.axes[0].get_ylabel() == "rate [%]" and said(figure.axes[0]) == ["our A", "our B"]
    for axis, more in zip(figure.axes, (0, 10), strict=True):
        for band, (label, base) in zip(axis.collections, (("our A", 20), ("our B", 60)), strict=True):
            lowest = [base + more + 100 * level for level in (0.02, 0.05, 0.1)]
            points = lines_of(axis)[label]
            assert [x for x, _ in points] == [0.02, 0.05, 0.1]
            assert [y for _, y in points] == pytest.approx([low + (0 + 2 + 6) / 3 for low in lowest])
            edges = band.get_paths()[0].vertices
            for level, low in zip((0.02, 0.05, 0.1), lowest, strict=True):
                here = edges[np.isclose(edges[:, 0], level), 1]
                assert (here.min(), here.max()) == pytest.approx((low, low + 6))


def test_reported_points_stand_beside_their_own_net(curve):
    reported = pandas.DataFrame({"net": ["P", "Q", "P"], "ours": ["our A", "our B", "our A"],
                                 "level": [0.05, 0.05, 0.1], "clean": [71.0, 72.0, 73.0]})
    figure = plots.bands(curve, ["clean"], "penalty", ["title"], "rate", reported=reported)
    (axis,) = figure.axes
    drawn = {line.get_label(): line for line in axis.get_lines()}
    assert lines_of(axis, ":") == {"P, reported": [(0.05, 71), (0.1, 73)], "Q, reported": [(0.05, 72)]}
    for ours, theirs in (("our A", "P, reported"), ("our B", "Q, reported")):
        assert drawn[ours].get_color() == drawn[theirs].get_color()
        assert drawn[theirs].get_markerfacecolor() == "none"
    assert drawn["our A"].get_color() != drawn["our B"].get_color()


def test_against_cost_draws_means_and_spans_over_what_was_spent_until_then():
    begun, base = {"heir": 5.0, "AT": 0.0}, {"heir": 0.3, "AT": 0.1}
    frame = pandas.DataFrame([{"method": method, "seed": seed, "epoch": epoch, "cost": begun[method] + 2 * epoch + seed,
                               "value": base[method] + 0.1 * epoch + 0.02 * seed * (seed + 1)}
                              for seed in range(3) for method in base for epoch in (1, 2)])
    figure = plots.against_cost(frame, "passes", "rate [%]")
    (axis,), (legend,) = figure.axes, figure.legends
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_xlim()[0]) == ("passes", "rate [%]", 0)
    assert [text.get_text() for text in legend.get_texts()] == ["heir", "AT"]
    for line, band, method in zip(axis.get_lines(), axis.collections, base, strict=True):
        assert line.get_label() == method and to_rgb(line.get_color()) == tuple(band.get_facecolor()[0, :3])
        assert line.get_xdata() == pytest.approx([begun[method] + 3, begun[method] + 5])
        lowest, edges = [100 * base[method] + 10, 100 * base[method] + 20], band.get_paths()[0].vertices
        assert line.get_ydata() == pytest.approx([low + (0 + 4 + 12) / 3 for low in lowest])
        for x, low in zip(line.get_xdata(), lowest, strict=True):
            here = edges[np.isclose(edges[:, 0], x), 1]
            assert (here.min(), here.max()) == pytest.approx((low, low + 12))
    one, two = axis.get_lines()
    assert one.get_linestyle() != two.get_linestyle() and one.get_marker() != two.get_marker()


def test_layers_over_epochs_begin_where_all_layers_begin():
    histories = {name: [{"gates": {"a": 0.9, "b": 0.8}}, {"gates": {"a": 0.7, "b": last}}] for name, last in
                 (("one", 0.5), ("two", 0.1))}
    figure = plots.layers_over_epochs(histories, "gates", 0.92, "open")
    assert [axis.get_title() for axis in figure.axes[:2]] == ["one", "two"]
    assert [list(line.get_ydata()) for line in figure.axes[1].lines] == [[0.92, 0.9, 0.7], [0.92, 0.8, 0.1]]
    assert figure.axes[0].get_ylabel() == "open"


def test_scatter_has_a_mark_for_every_row():
    rows = pandas.DataFrame({"x": [1.0, 2.0, 3.0], "z": [5.0, 4.0, 6.0], "rate": [0.1, 0.2, 0.3], "kind": list("aba")})
    figure = plots.scatter(rows, {"of x": "x", "of z": "z"}, "rate", "accuracy [%]", "kind")
    assert [axis.get_xlabel() for axis in figure.axes] == ["of x", "of z"]
    drawn = {line.get_label(): np.array(line.get_xydata()) for line in figure.axes[1].lines}
    np.testing.assert_allclose(drawn["a"], [[5, 10], [6, 30]])
    np.testing.assert_allclose(drawn["b"], [[4, 20]])
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2
    assert len({line.get_marker() for line in figure.axes[0].lines}) == 2


def test_sorted_norms_show_zeros_on_a_line_of_their_own():
    norms = {"first": np.array([0.5, 0.0, 2.0, 3e-7]), "second": np.array([0.0, 0.0, 1.0, 4.0, 1e-3])}
    linear, logarithmic = plots.sorted_norms(norms).axes
    assert linear.get_yscale() == "linear" and logarithmic.get_yscale() == "log"
    assert lines_of(linear) == {"first": [(25, 2), (50, 0.5), (75, 3e-7), (100, 0)],
                                "second": [(20, 4), (40, 1), (60, 1e-3), (80, 0), (100, 0)]}
    drawn = lines_of(logarithmic)
    floors = {y for label, count in (("first", 1), ("second", 2)) for _, y in drawn[label][-count:]}
    assert len(floors) == 1 and 0 < floors.pop() < 3e-7  # clearly below what is small but not zero
    for label, points in drawn.items():
        kept = [(x, y) for x, y in lines_of(linear)[label] if y > 0]
        assert points[:len(kept)] == kept
    assert said(linear) == ["first", "second"]


def test_layers_share_one_colour_scale_and_one_histogram():
    results = {"one": {"picture": [[0.0, 0.2], [0.1, 0.3]], "histogram": [1, 2, 1], "limit": 0.3},
               "two": {"picture": [[0.5, 0.0], [0.0, 0.1]], "histogram": [0, 10, 0], "limit": 0.3}}
    first, second, histogram, bar = plots.layers(results).axes
    for axis, (label, result) in zip((first, second), results.items(), strict=True):
        (image,) = axis.get_images()
        assert image.get_array().tolist() == result["picture"] and image.get_clim() == (0, 0.5)
        assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == (label, "input channel", "output channel")
    shown = {patch.get_label(): patch.get_data() for patch in histogram.patches}
    assert {label: list(data.values) for label, data in shown.items()} == {"one": [25, 50, 25], "two": [0, 100, 0]}
    assert all(data.edges == pytest.approx([-0.3, -0.1, 0.1, 0.3]) for data in shown.values())
    assert "kernel" in bar.get_ylabel()


def test_stability_figure_averages_over_seeds():
    one = {"levels": [0.0, 0.1, 0.4], "lengths": [0.5, 1.0], "changes": [[0.2, 0.4], [0.1, 0.3], [0.01, 0.02]],
           "largest": [[1.0, 1.4], [0.8, 1.2], [0.1, 0.2]], "slopes": [1.0, 0.8, 0.5], "accuracy": [0.9, 0.8, 0.3]}
    other = one | {"changes": [[0.4, 0.8], [0.3, 0.5], [0.03, 0.04]], "largest": [[1.2, 1.4], [0.6, 1.0], [0.3, 0.2]],
                   "slopes": [1.0, 0.6, 0.7], "accuracy": [0.7, 0.6, 0.5]}
    by_length, by_noise, cost = plots.stability([one, other]).axes
    drawn = lines_of(by_length)
    assert list(drawn) == ["noise 0: slope 1.00", "noise 0.1: slope 0.70", "noise 0.4: slope 0.60"]
    for points, expected in zip(drawn.values(), ([0.3, 0.6], [0.2, 0.4], [0.02, 0.03]), strict=True):
        assert [x for x, _ in points] == [0.5, 1.0] and [y for _, y in points] == pytest.approx(expected)
    assert by_length.get_xscale() == by_length.get_yscale() == by_noise.get_yscale() == "log"
    drawn = lines_of(by_noise)
    assert list(drawn) == ["|d| = 0.5", "|d| = 1"]
    for points, expected in zip(drawn.values(), ([1.1, 0.7, 0.2], [1.4, 1.1, 0.2]), strict=True):
        assert [x for x, _ in points] == one["levels"] and [y for _, y in points] == pytest.approx(expected)
    (line,) = cost.get_lines()
    assert line.get_xdata().tolist() == one["levels"] and line.get_ydata() == pytest.approx([80, 70, 40])


def test_descent_figure_shows_what_was_followed():
    common = {"step": [0, 1, 2], "gradient_norm": [1.0, 2.0, 0.5], "longest_lr": [0.4, 0.3, 0.2]}
    followed = {label: pandas.DataFrame(common | {"lagrangian": [3.0, 2.0, last]})
                for label, last in (("falls", 1.0), ("rises", 5.0))}
    figure = plots.descent(followed, {"falls": 0.1, "rises": 0.6}, pandas.Series([9.0, 8.0, 7.0]))
    lagrangian, gradient, lr = figure.axes
    assert lines_of(lagrangian) == {"falls": [(0, 3), (1, 2), (2, 1)], "rises": [(0, 3), (1, 2), (2, 5)]}
    *smallest, bound = gradient.get_lines()
    for line in smallest:
        assert line.get_xydata().tolist() == [[1, 1], [2, 1], [3, 0.5]]  # so far: it never rises
    assert bound.get_xydata().tolist() == [[1, 9], [2, 8], [3, 7]] and "bound" in bound.get_label()
    allowed = [line for line in lr.get_lines() if line.get_linestyle() != ":" or len(line.get_xdata()) == 3]
    taken = [line for line in lr.get_lines() if len(line.get_xdata()) == 2]
    assert [line.get_ydata().tolist() for line in allowed] == [[0.4, 0.3, 0.2]] * 2
    assert [set(line.get_ydata()) for line in taken] == [{0.1}, {0.6}]
    for one, two in zip(allowed, taken, strict=True):
        assert one.get_color() == two.get_color()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["falls", "rises"]


def test_histograms_draw_shares():
    results = [{"histogram": [1, 2, 1], "limit": 0.3}, {"histogram": [0, 4, 0], "limit": 0.3}]
    figure = plots.weight_histograms(pandas.DataFrame({"t": ["a", "b"]}), results, "t")
    assert [list(patch.get_data().values) for patch in figure.axes[0].patches] == [[25, 50, 25], [0, 100, 0]]


@pytest.fixture
def lines():
    """A ledger: in points one line of each verdict, and a ratio; one was not run."""
    line = {"claim": "C", "unit": "percentage points", "reported": None, "ours": 1.0, "low": 0.5, "high": 1.5,
            "p": 1 / 70, "p_same": 0.5, "p_holm": 0.1, "n_seeds": 3, "images": 500, "why": "", "where": "table 1",
            "said": "", "margin": 1.0, "alone": claims.HOLDS, "statement": "s, and \"t\"", "quantity": "q",
            "source": "nan", "direction": "increase"}
    found = [
        {"verdict": claims.HOLDS, "reported": 2.0},
        {"verdict": claims.FAILS, "ours": -30.0, "low": -35.0, "high": -25.0},
        {"verdict": claims.SAME, "ours": 0.1, "low": -0.2, "high": 0.4},
        {"verdict": claims.HOLDS, "unit": "log10 of the ratio", "ours": 0.3, "low": 0.2, "high": 0.4, "reported": 0.35},
        {"verdict": claims.OPEN, "ours": 3.0, "low": -1.0, "high": 7.0, "why": "about 9 seeds would decide it"},
        {"verdict": claims.UNTESTED, "ours": 4.0, "low": math.nan, "high": math.nan, "n_seeds": 1, "why": "one seed"},
        {"verdict": claims.UNTESTED, "ours": math.nan, "low": math.nan, "high": math.nan, "n_seeds": 0, "images": 0,
         "unit": "", "why": "not run at this scale"}]
    return pandas.DataFrame([{"line": f"L{i}", "words": f"Claim {i}, in a few words", **line, **change}
                             for i, change in enumerate(found)])


def test_the_figure_of_claims_shows_each_line_that_was_run_with_its_interval(lines):
    figure = plots.claims(lines)
    assert [axis.get_xlabel() for axis in figure.axes] == ["effect [percentage points]", "effect [log10 of the ratio]"]
    assert [axis.get_xscale() for axis in figure.axes] == ["symlog", "linear"]
    ran, shown = lines[lines["n_seeds"] > 0], {}
    for axis, unit in zip(figure.axes, ("percentage points", "log10 of the ratio"), strict=True):
        names = [label.get_text().replace("\n", " ") for label in axis.get_yticklabels()]
        assert names == ran[ran["unit"] == unit]["words"].tolist()[::-1]  # the first on top
        for line in axis.get_lines():
            ys = set(line.get_ydata())
            if len(ys) == 1 and (y := ys.pop()) in range(len(names)):
                shown.setdefault(names[int(y)], []).append(line)
        low, high = axis.get_ylim()
        assert low < 0 and high > len(names) - 1
    assert shown.keys() == set(ran["words"])
    for row in ran.to_dict("records"):
        bar, point, *hollow = shown[row["words"]]
        colour, marker = plots.VERDICTS[row["verdict"]]
        np.testing.assert_array_equal(bar.get_xdata(), [row["low"], row["high"]])
        assert list(point.get_xdata()) == [row["ours"]]
        assert (bar.get_color(), point.get_color(), point.get_marker()) == (colour, colour, marker)
        if pandas.isna(row["reported"]):
            assert hollow == []
        else:
            assert list(hollow[0].get_xdata()) == [row["reported"]] and hollow[0].get_markerfacecolor() == "none"
    assert len({marker for _, marker in plots.VERDICTS.values()}) == 5 == len(
        {colour for colour, _ in plots.VERDICTS.values()})
    assert set(plots.VERDICTS) == set(claims.SHORT)


def test_the_legend_of_claims_names_the_verdicts_that_are_there(lines):
    (legend,) = plots.claims(lines).legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == [*claims.SHORT, "reported by the paper"]
    for said, handle in zip(claims.SHORT, legend.legend_handles, strict=False):
        assert (handle.get_color(), handle.get_marker()) == plots.VERDICTS[said]
    (legend,) = plots.claims(lines[2:3]).legends
    assert [text.get_text() for text in legend.get_texts()] == [claims.SAME]


# --- figures along sparsity


def path(series: str, values: dict[float, list[float]]) -> pandas.DataFrame:
    """A line: the share that is left [%] to the values of each seed; the level is the share removed."""
    return pandas.DataFrame([{"series": series, "level": 1 - left / 100, "left": left + 0.01 * seed, "seed": seed,
                              "value": v} for left, found in values.items() for seed, v in enumerate(found)])


@pytest.fixture
def panels():
    """Two by two; the first panel has the first line only."""
    one = path("one", {100: [0.5, 0.7], 10: [0.8, 1.0], 1: [0.1, 0.3]})
    two = path("two", {100: [0.2, 0.2], 5: [0.4, 0.5]})
    return [[{"frame": one, "factor": 100, "title": "first", "ylabel": "rate [%]", "marks": [("one", 0.9, 0.99)],
              "shaded": (5, 1.5)},
             {"frame": pandas.concat([one, two]), "title": "second", "log": True, "marks": [("two", 0.95, None)]}],
            [{"frame": two, "ylabel": "distance"}, {"frame": two}]]


def ticks(axis) -> list[tuple[float, str]]:
    return [(x, text.get_text()) for x, text in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)]


def drawn_lines(axis, marks: bool = False) -> list:
    """The lines of an axis that have points, or its marks."""
    return [line for line in axis.get_lines() if len(line.get_xdata()) and (line.get_marker() in "*X") == marks]


def test_along_sparsity_draws_means_and_spans_over_what_is_left(panels):
    figure = plots.along_sparsity(panels)
    first, second, third, _ = figure.axes
    (line,) = drawn_lines(first)
    assert line.get_xdata() == pytest.approx([100.005, 10.005, 1.005])  # the mean of what is left, dense first
    assert line.get_ydata() == pytest.approx([60, 90, 20])
    (band,) = [c for c in first.collections if len(c.get_paths())]
    edges = band.get_paths()[0].vertices
    for left, low, high in ((100.005, 50, 70), (10.005, 80, 100), (1.005, 10, 30)):
        here = edges[np.isclose(edges[:, 0], left), 1]
        assert (here.min(), here.max()) == pytest.approx((low, high))
    ones, twos = drawn_lines(second)
    assert ones.get_ydata() == pytest.approx([0.6, 0.9, 0.2]) and twos.get_ydata() == pytest.approx([0.2, 0.45])
    assert ones.get_color() == line.get_color() != twos.get_color()
    assert ones.get_linestyle() != twos.get_linestyle() and ones.get_marker() != twos.get_marker()
    assert drawn_lines(third)[0].get_color() == twos.get_color()


def test_along_sparsity_says_what_is_removed(panels):
    figure = plots.along_sparsity(panels, xlabel="gone [%]")
    first, second, third, _ = figure.axes
    assert first.get_xscale() == second.get_xscale() == third.get_xscale() == "log"
    assert [axis.get_yscale() for axis in figure.axes[:3]] == ["linear", "log", "linear"]
    for axis in (first, second, third):
        start, end = axis.get_xlim()
        assert start > 100.01 and 0 < end < 1  # dense on the left, all points within
    assert [left for left, _ in ticks(third)] == [100 - float(removed) for _, removed in ticks(third)]
    assert ticks(third)[0] == (100, "0") and {"50", "90", "98"} <= {removed for _, removed in ticks(third)}
    assert [axis.get_title() for axis in figure.axes[:3]] == ["first", "second", ""]
    assert [axis.get_ylabel() for axis in figure.axes[:3]] == ["rate [%]", "", "distance"]
    assert (first.get_xlabel(), third.get_xlabel()) == ("", "gone [%]")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two"]
    for handle, line in zip(legend.legend_handles, drawn_lines(second), strict=True):
        assert (handle.get_color(), handle.get_marker()) == (line.get_color(), line.get_marker())


def test_along_sparsity_marks_the_best_and_where_it_falls_below_dense(panels):
    first, second, third, _ = plots.along_sparsity(panels).axes
    marks = [(line.get_marker(), *map(float, line.get_xydata()[0])) for line in drawn_lines(first, marks=True)]
    assert marks == [("*", pytest.approx(10.005), pytest.approx(90)), ("X", pytest.approx(1.005), pytest.approx(20))]
    (best,) = drawn_lines(second, marks=True)
    assert best.get_marker() == "*" and best.get_xydata()[0] == pytest.approx([5.005, 0.45])
    assert best.get_color() == drawn_lines(second)[1].get_color()
    assert drawn_lines(third, marks=True) == []


def test_along_sparsity_shades_a_range(panels):
    first, second, *_ = plots.along_sparsity(panels).axes
    (span,) = first.patches
    assert (span.get_window_extent().x0, span.get_window_extent().x1) == pytest.approx(
        first.transData.transform([(5, 0), (1.5, 0)])[:, 0])  # on both sides, whatever is left decreases
    assert not second.patches


def test_a_single_column_lies_down(panels):
    column = [[row[0]] for row in panels]
    figure = plots.along_sparsity(column)
    assert [axis.get_ylabel() for axis in figure.axes] == ["rate [%]", "distance"]
    assert {axis.get_subplotspec().rowspan.start for axis in figure.axes} == {0}
    assert [axis.get_xlabel() for axis in figure.axes] == ["weights removed [%]"] * 2


@pytest.mark.parametrize("left, last", [(0.1, "99.9"), (0.5, "99.5"), (2.5, "98"), (12, "90"), (60, "50")])
def test_ticks_of_what_is_removed_end_where_the_lines_end(left, last):
    (axis,) = plots.along_sparsity([[{"frame": path("a", {100: [1.0], left: [2.0]})}]]).axes
    assert ticks(axis)[-1][1] == last and len(axis.xaxis.get_minorticklocs()) == 0
    assert axis.get_xlim()[1] < left


def test_radii_are_drawn_in_the_order_of_deepfools():
    frame = pandas.DataFrame([{"label": label, "measured": name, "image": image, "radius": radius * factor}
                              for label, factor in (("dense", 1), ("pruned", 10))
                              for name, values in (("bound", [0.1, 0.3, 0.2]), ("DeepFool", [2.0, 1.0, 3.0]))
                              for image, radius in enumerate(values)])
    hole = (frame["label"] == "pruned") & (frame["measured"] == "bound") & (frame["image"] == 0)
    figure = plots.radius_order(frame[~hole])
    dense, pruned = figure.axes
    assert lines_of(dense) == {"bound": [(1, 0.3), (2, 0.1), (3, 0.2)], "DeepFool": [(1, 1), (2, 2), (3, 3)]}
    assert lines_of(pruned)["DeepFool"] == [(1, 10), (2, 20), (3, 30)]
    (_, missing), last = lines_of(pruned)["bound"][1], lines_of(pruned)["bound"][2]
    assert math.isnan(missing) and last == (3, 2)
    assert [axis.get_title() for axis in figure.axes] == ["dense", "pruned"]
    assert dense.get_yscale() == pruned.get_yscale() == "log" and dense.get_ylabel() == "l2 radius"
    assert "DeepFool" in dense.get_xlabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["bound", "DeepFool"]
    for axis in figure.axes:
        assert len({line.get_color() for line in axis.get_lines()}) == 2


def test_without_deepfool_the_last_way_of_measuring_orders():
    frame = pandas.DataFrame([{"label": "a", "measured": name, "image": image, "radius": radius}
                              for name, values in (("bound", [0.1, 0.3]), ("CLEVER", [2.0, 1.0]))
                              for image, radius in enumerate(values)])
    (axis,) = plots.radius_order(frame).axes
    assert lines_of(axis)["bound"] == [(1, 0.3), (2, 0.1)]


@pytest.fixture
def masks():
    """A `RandomMasks` result of two layers, with a bound for one of two norms; the last mean is less than two
    deviations from zero."""
    return {"levels": [0.1, 0.5, 0.98], "joint": {"l2": [0.9, 0.5, 0.02], "linf": [0.8, 0.3, 0.01]},
            "joint_sd": {"l2": [0.01, 0.1, 0.05], "linf": [0.0, 0.0, 0.0]},
            "single": {"1": {"l2": [0.95, 0.7, 0.2], "linf": [0.9, 0.6, 0.1]},
                       "3": {"l2": [0.96, 0.8, 0.3], "linf": [0.95, 0.7, 0.2]}},
            "magnitude": {"l2": [1.0, 0.9, 0.3], "linf": [1.0, 0.8, 0.2]}, "explicit": {"linf": [1.2, 0.6, 0.03]}}


def test_mask_ratios_draw_every_line_of_the_result(masks):
    figure = plots.mask_ratios(masks, {"l2": "spectral", "linf": "row sums"})
    for axis, norm in zip(figure.axes, ("l2", "linf"), strict=True):
        expected = {"at random, all hidden layers": masks["joint"][norm],
                    "at random, layer 1 only": masks["single"]["1"][norm],
                    "at random, layer 3 only": masks["single"]["3"][norm],
                    "the smallest, all hidden layers": masks["magnitude"][norm]}
        if norm == "linf":
            expected["the bound, all hidden layers"] = masks["explicit"][norm]
        drawn = lines_of(axis)
        assert drawn.keys() == expected.keys()
        for label, values in expected.items():
            assert [x for x, _ in drawn[label]] == pytest.approx([90, 50, 2])
            assert [y for _, y in drawn[label]] == values
        assert axis.get_xscale() == axis.get_yscale() == "log" and axis.get_xlabel() == "weights removed [%]"
        assert ticks(axis)[0] == (100, "0") and ticks(axis)[-1] == (2, "98") and axis.get_xlim()[0] > 100
    assert [axis.get_title() for axis in figure.axes] == ["spectral", "row sums"]
    assert figure.axes[0].get_ylabel() == "norm product / dense"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines_of(figure.axes[1]))


def test_the_band_of_mask_ratios_stays_on_a_logarithmic_axis(masks):
    axis = plots.mask_ratios(masks, {"l2": "spectral"}).axes[0]
    edges = axis.collections[0].get_paths()[0].vertices
    for left, low, high in ((90, 0.88, 0.92), (50, 0.3, 0.7), (2, 0.0002, 0.12)):
        here = edges[np.isclose(edges[:, 0], left), 1]
        assert (here.min(), here.max()) == pytest.approx((low, high))


def test_artifacts_know_where_they_come_from(frame, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEROBUST_FIGURES", str(tmp_path))
    out = artifacts.Artifacts("quick", "99_test")
    out.figure(plots.curves([0, 1], {"a": [0, 1]}, "x", "y"), "fig", "A line.", frame)
    shown = out.table(frame.head(2), "table", "Two <rows>.", frame)
    assert "&lt;rows&gt;" in shown._repr_html_() and "Two <rows>." in repr(shown)
    out.measurements(frame)
    out.finish()
    folder = tmp_path / "quick" / "99_test"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {"fig.png", "table.csv", "table.md", "measurements.csv"}
    assert manifest["files"]["fig.png"]["runs"] == sorted(set(frame["run"]))
    assert pandas.read_csv(folder / "measurements.csv")["count"].tolist() == frame["count"].tolist()
    assert "Two <rows>." in (folder / "table.md").read_text()
    first = (folder / "fig.png").read_bytes()
    out.figure(plots.curves([0, 1], {"a": [0, 1]}, "x", "y"), "fig", "A line.", frame)
    assert (folder / "fig.png").read_bytes() == first, "the same figure must give the same file"


# --------------------------------------------------------------------------------------------------- the ledger


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """A folder for what notebooks make."""
    monkeypatch.setenv("SPARSEROBUST_FIGURES", str(tmp_path))
    return tmp_path


def comparisons(lines: pandas.DataFrame) -> pandas.DataFrame:
    return lines.drop(columns=["line", "words", "alone", "p_holm"])


def judge(lines: pandas.DataFrame, frame: pandas.DataFrame, scale: str, notebook: str, caption: str = "Claims."):
    out = artifacts.Artifacts(scale, notebook)
    shown = out.judged(comparisons(lines), lines, frame, caption)
    out.finish()
    return shown


def everything(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_judged_can_be_read_as_it_was(lines, frame, figures):
    shown = judge(lines, frame, "quick", "01_a", "Claims of <a paper>.")
    numbers = {column: [""] for column in lines if lines[column].dtype == float}
    for name, saved in (("ledger.csv", lines), ("claims.csv", comparisons(lines))):
        read = pandas.read_csv(figures / "quick" / "01_a" / name, keep_default_na=False, na_values=numbers)
        pandas.testing.assert_frame_equal(read, saved, check_dtype=False)
    text = (figures / "quick" / "01_a" / "ledger.md").read_text()
    assert text.startswith("Claims of <a paper>.\n\n|") and "nan" not in text.replace("nan ", "")
    for row in lines.to_dict("records"):
        (told,) = [each for each in text.splitlines() if row["words"] in each]
        assert f"| {row['verdict']} " in told and row["why"] in told
        assert claims.effect(row, claims.digits(row["unit"])) in told
        assert row["words"] in repr(shown) and row["words"] in shown._repr_html_()
    assert "&lt;a paper&gt;" in shown._repr_html_()
    manifest = json.loads((figures / "quick" / "01_a" / "manifest.json").read_text())["files"]
    assert manifest.keys() == {"claims.csv", "ledger.csv", "ledger.md"}
    assert all(entry["runs"] == sorted(set(frame["run"])) for entry in manifest.values())


def test_the_ledger_joins_those_of_all_notebooks(lines, frame, figures, refusal):
    judge(lines, frame, "quick", "01_a")
    judge(lines[2:4], frame, "quick", "02_b")
    judge(lines[-1:], frame, "laptop", "02_b")
    artifacts.Artifacts("quick", "00_c").table(frame, "table", "One that judges nothing.")
    whole = artifacts.ledger("quick")
    assert whole["notebook"].tolist() == ["01_a"] * 7 + ["02_b"] * 2 and whole.columns[0] == "notebook"
    assert set(whole["source"]) == {"nan"}  # a text is a text
    assert whole["words"].tolist() == [*lines["words"], *lines["words"][2:4]]
    for row, saved in zip(whole.to_dict("records"), [*lines.to_dict("records"), *lines[2:4].to_dict("records")],
                          strict=True):
        assert claims.sentence(row) == claims.sentence(saved)  # nothing is lost on the way
    for name, columns in (("ledger.csv", whole.columns), ("claims.csv", ["notebook", *comparisons(lines)])):
        written = pandas.read_csv(figures / "quick" / name)
        assert list(written.columns) == list(columns) and written["notebook"].tolist() == whole["notebook"].tolist()
    (only,) = artifacts.ledger("laptop").to_dict("records")
    assert claims.sentence(only) == "Claim 6, in a few words: not run at this scale."
    assert "sparserobust reproduce --scale paper" in refusal(artifacts.ledger, "paper")


def test_the_table_of_the_readme_counts_verdicts_and_writes_nothing(lines, frame, figures):
    judge(lines, frame, "quick", "01_fk_resnet")
    judge(lines[:2], frame, "quick", "03_rsr")
    judge(lines[2:5], frame, "laptop", "03_rsr")
    for scale in ("quick", "laptop"):
        judge(lines, frame, scale, "99_own")  # not one of the project's notebooks
    before = everything(figures)
    text = artifacts.readme_table()
    assert everything(figures) == before
    table, *folded = text.split("<details>")
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines())
    assert head == ["paper", "its answer", "notebook", "quick", "laptop"]
    counts = {notebook: cells for _, _, notebook, *cells in rows}
    assert list(counts) == [f"[{name}](notebooks/{name}.ipynb)" for name in artifacts.ANSWERS]
    told = {name: counts[f"[{name}](notebooks/{name}.ipynb)"] for name in artifacts.ANSWERS}
    assert told.pop("01_fk_resnet") == ["2 hold, 1 does not, 1 no difference, 1 open, 2 not tested", ""]
    assert told.pop("03_rsr") == ["1 holds, 1 does not", "1 holds, 1 no difference, 1 open"]
    assert set(map(tuple, told.values())) == {("", "")}
    (part,) = folded
    assert "<summary>Rakin et al. 2019, on real images: 1 holds, 1 no difference, 1 open</summary>" in part
    for row in lines[2:5].to_dict("records"):
        (line,) = [each for each in part.splitlines() if row["words"] in each]
        assert f"| {row['verdict']} " in line and row["why"] in line
    assert lines["words"][0] not in part and part.rstrip().endswith("</details>")


def test_where_nothing_was_judged_the_table_of_the_readme_has_no_counts(figures):
    head = artifacts.readme_table().splitlines()[0].strip("|").split("|")
    assert [cell.strip() for cell in head] == ["paper", "its answer", "notebook"]


# ------------------------------------------------------------------------------------------ what is known already


@pytest.fixture
def redrawn(tiny_run, tmp_path, monkeypatch):
    """An experiment of three seeds whose scale only redraws. Of the first, all is published; of the second one
    measurement of its row alone; of the third nothing. No run can be trained or measured any more."""
    monkeypatch.setattr(paths, "published_folder", lambda: tmp_path / "published")
    runs, clean, few = [tiny_run(seed=seed) for seed in range(3)], Accuracy(images=100), Accuracy(images=50)
    store = Store(tmp_path / "store", use_published=False)
    for run, measurement in ((runs[0], clean), (runs[0], few), (runs[0], WeightSparsity()), (runs[1], few)):
        store.measure(run, measurement)
    store.publish(runs[:2], "s")

    def refuse(*_):
        raise AssertionError("nothing should be computed")

    monkeypatch.setattr(Store, "train", refuse)
    monkeypatch.setattr(Store, "_take", refuse)
    monkeypatch.setattr(sweep, "compute", refuse)
    grid = [{"net": "a", "seed": seed, "run": run, "also": {"few": few, "more": Accuracy(images=20)}}
            for seed, run in enumerate(runs)] + [{"net": "b", "seed": 0, "run": runs[0]}]
    return Experiment("s", [2, 0, 1], grid, {"clean": clean, "sparsity": WeightSparsity()}, {"redraw": True})


def test_a_scale_that_redraws_shows_what_is_known(redrawn, tmp_path):
    store = Store(tmp_path / "elsewhere")
    known = redrawn.known(store)
    assert [(row["net"], row["seed"], list(row["also"])) for row in known.grid] == [
        ("a", 0, ["few"]), ("a", 1, ["few"]), ("b", 0, [])]
    assert known.seeds == [0, 1] and known.measurements == redrawn.measurements
    expected = [("a", 0, "clean"), ("a", 0, "sparsity"), ("a", 0, "few"), ("a", 1, "few"), ("b", 0, "clean"),
                ("b", 0, "sparsity")]
    for experiment in (redrawn, known):
        frame = experiment.measured(store)
        assert list(zip(frame["net"], frame["seed"], frame["metric"], strict=True)) == expected
        assert set(frame["where"]) == {"published"} and set(frame["chance"]) == {0.1}
    mine = Store(tmp_path / "store")
    for row, found in zip(expected, frame.to_dict("records"), strict=True):
        measurement = {"few": Accuracy(images=50)}.get(row[2]) or redrawn.measurements[row[2]]
        assert found["value"] == mine.find(redrawn.grid[row[1]]["run"], measurement)["value"]
        assert found["run"] == redrawn.grid[row[1]]["run"].identity
    assert frame["sampled"].tolist() == [True, False, True, True, True, False]
    assert frame["each"].map(lambda text: isinstance(text, str)).tolist() == frame["sampled"].tolist()


def test_what_may_not_stand_in_is_computed(redrawn, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("sparserobust.running.experiment.sweep",
                        lambda *arguments: asked.append(arguments) or "computed")
    own = Store(tmp_path / "elsewhere", use_published=False)
    assert redrawn.known(own) is redrawn and redrawn.measured(own, 3) == "computed"
    store = Store(tmp_path / "elsewhere")
    for settings in ({}, {"redraw": False}):
        free = replace(redrawn, settings=settings)
        assert free.known(store) is free and free.measured(store, 3) == "computed"
    assert asked == [(redrawn.grid, redrawn.measurements, s, 3) for s in (own, store, store)]


def test_where_nothing_is_known_nothing_is_shown(redrawn, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "published_folder", lambda: tmp_path / "nowhere")
    store = Store(tmp_path / "elsewhere")
    known = redrawn.known(store)
    assert (known.grid, known.seeds) == ([], []) and redrawn.measured(store).empty


# ------------------------------------------------------------------------------------------------------ scales


def test_user_mistakes_in_scales_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown scale 'labtop': did you mean 'laptop'"):
        scales.load("labtop", "fk_resnet")
    for seeds in ([], [0, 0], [-1], "0", [True]):
        with pytest.raises(UserError, match="seeds should be"):
            scales.checked_seeds(seeds, [0])
    monkeypatch.setattr("sparserobust.running.scales.scales_folder", lambda: tmp_path)
    (tmp_path / "mine.yaml").write_text("fk_resnet: [")
    with pytest.raises(UserError, match=r"mine\.yaml is not valid YAML"):
        scales.load("mine", "fk_resnet")
    for content in ("other: {}", "[]", ""):
        (tmp_path / "mine.yaml").write_text(content)
        with pytest.raises(UserError, match=r"mine\.yaml has no section 'fk_resnet'"):
            scales.load("mine", "fk_resnet")
        assert not scales.has("mine", "fk_resnet")
    (tmp_path / "mine.yaml").write_text("other: {}")
    assert scales.has("mine", "other")
    with pytest.raises(UserError, match="unknown scale"):
        scales.has("none", "other")


def test_a_networks_own_settings_and_seeds_come_before_those_of_all():
    settings = {"seeds": [0, 1], "width": 8, "nets": {"a": {"width": 4}, "b": {"seeds": [2]}}}
    found = [(net, own["width"], seed) for net, own, seed in scales.networks(settings)]
    assert found == [("a", 4, 0), ("a", 4, 1), ("b", 8, 2)]
    assert [(net, seed) for net, _, seed in scales.networks(settings, [5, 3])] == [
        ("a", 5), ("a", 3), ("b", 5), ("b", 3)]


# ------------------------------------------------------------------------------------------- methods side by side


def test_rankings_show_means_intervals_and_ranks():
    right = {"good": np.ones((2, 50)), "bad": np.zeros((2, 50)), "half": np.tile([0, 1], (2, 25))}
    figure = plots.rankings({"cut": estimates.ranking(right)}, "x", {"half": "a paper"}, 70.0, "dense")
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["bad", "half", "good"]  # the best on top
    marks = [line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 1]
    assert marks == [0, 50, 100]
    assert [text.get_text() for text in axis.texts] == ["3 to 3", "2 to 2", "1 to 1", "rank"]
    assert axis.lines[3].get_color() != axis.lines[1].get_color() == axis.lines[5].get_color()
    assert list(axis.lines[6].get_xdata()) == [70, 70]


def test_fronts_join_what_nothing_beats_and_name_it():
    points = pandas.DataFrame({"method": ["a", "b", "c"], "cut": ["weights", "channels", None], "size": [1.0, 2.0, 3.0],
                               "pgd": [0.2, 0.5, 0.4]})
    figure = plots.fronts(points, {"size": ("size", points[:2])}, "pgd", "y", {"a": "a paper"})
    axis = figure.axes[0]
    assert axis.get_title() == "front: a, b"
    assert list(axis.lines[0].get_ydata()) == [20, 50]
    assert [float(line.get_ydata()[0]) for line in axis.lines[1:4]] == [20, 50, 40]
    assert axis.lines[2].get_markerfacecolor() == "white" != axis.lines[1].get_markerfacecolor()


# --------------------------------------------------------------------------------------------------- the first page


def test_answers_are_blue_where_they_are_right():
    picture, sure, unsure = torch.zeros(1, 8, 8), torch.eye(3)[1], torch.tensor([0.6, 0.3, 0.1])
    figure = plots.answers({"net": [(picture, sure), (picture, unsure)]}, ["one", "two"], label=1)
    told = [(axis.get_xlabel(), axis.xaxis.label.get_color()) for axis in figure.axes]
    assert told == [("1, 100 % sure", plots.PALETTE[0]), ("0, 60 % sure", plots.PALETTE[1])]


def test_fooled_shows_the_change_and_every_class():
    image, chances = torch.zeros(1, 4, 4), torch.tensor([0.1, 0.7, 0.2])
    figure = plots.fooled(image, {"net": (image + 0.1, chances)}, label=0)
    change, seen, bars = figure.axes
    assert float(change.images[0].get_array().min()) == pytest.approx(0.1) == float(seen.images[0].get_array().max())
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([10, 70, 20])
    assert bars.texts[0].get_text() == "says 1: fooled"


def test_surfaces_share_their_colours_and_frame_where_no_pixel_moves_further():
    steps = np.linspace(-0.3, 0.3, 5)
    planes = {name: {"steps": steps, "loss": np.add.outer(steps, steps) * factor + 1, "label": 0,
                     "answer": (np.add.outer(steps, steps) > 0.2).astype(int)} for name, factor in (("a", 1), ("b", 3))}
    figure = plots.surfaces(planes, radius=0.1)
    first, second = figure.axes[:2]
    assert first.collections[0].get_clim() == second.collections[0].get_clim()
    corners = np.abs(np.array(first.lines[1].get_data()))  # how far the two directions move a pixel together
    assert np.allclose(corners.sum(0), 0.1) and (corners.max(1) == 0.1).all()


def test_thinned_draws_readers_and_where_we_are():
    rows = [{"net": net, "share": share, "metric": metric, "value": 1 - share}
            for net in ("a", "b") for share in (0, 0.5) for metric in ("clean", "attacked")]
    figure = plots.thinned({"a": np.full((4, 4), 7), "b": np.eye(4)}, pandas.DataFrame(rows), share=0.5, units=9)
    lines = figure.axes[2].lines
    assert [line.get_label() for line in lines[:4]] == ["a, clean", "a, attacked", "b, clean", "b, attacked"]
    assert list(lines[0].get_xdata()) == [0, 50] and list(lines[4].get_xdata()) == [50, 50]
    assert figure.axes[0].images[0].get_array().max() == 7
    assert [axis.images[0].get_clim() for axis in figure.axes[:2]] == [(0, 9), (0, 9)]
