"""From tidy frames to tables, figures, verdicts: what is drawn and written is what was measured."""

import json
import math

import numpy as np
import pandas
import pytest
import torch
from matplotlib.colors import to_rgb
from scipy import stats

from sparserobust import artifacts, claims, estimates, plots, scales, tables
from sparserobust.errors import UserError
from sparserobust.reported import Claim


def claim(direction="increase", unit="percentage points", **more):
    return Claim(id="X", statement="s", unit=unit, direction=direction, kind="reported", grade="paper",
                 source="somewhere", **{"quantity": "q", "value": 1.0} | more)


@pytest.fixture
def frame():
    """Measurements of two nets, dense and pruned, two seeds, 100 images."""
    rows = []
    for net, level, base in (("A", None, 80), ("A", 0.1, 70), ("B", None, 60), ("B", 0.1, 66)):
        for seed in (0, 1):
            for metric, count in (("clean", base + 4 * seed), ("channel_sparsity", 0 if level is None else 30)):
                rows.append({"net": net, "ours": f"our {net}", "method": "dense" if level is None else "RGSM",
                             "level": level, "seed": seed, "run": f"{net}{level}{seed}", "metric": metric,
                             "value": count / 100, "count": count, "total": 100, "where": "store", "processor": "P"})
    return pandas.DataFrame(rows)


def test_interval_is_students():
    values = [1.0, 2.0, 4.0]
    assert estimates.interval(values) == pytest.approx(stats.t.interval(0.95, 2, np.mean(values), stats.sem(values)))
    assert all(math.isnan(v) for v in estimates.interval([3.0]))
    same = [100 * (0.83 - 0.81), 100 * (0.52 - 0.5), 2.0]  # but for rounding
    assert all(math.isnan(v) for v in estimates.interval(same))


def test_binomial_interval_is_wilsons():
    n, p, z = 250, 0.4, stats.norm.ppf(0.975)
    middle, reach = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = [(middle + s * reach) / (1 + z**2 / n) for s in (-1, 1)]
    assert estimates.binomial_interval(100, 250) == pytest.approx(expected)
    assert estimates.binomial_interval(99.6, 250) == pytest.approx(expected)  # rounded, not cut off


def test_paired_effects(frame):
    a, b = {"net": "A", "level": 0.1}, {"net": "A", "level": None}
    assert estimates.paired_effects(frame, "clean", a, b) == pytest.approx([-10, -10])
    assert estimates.paired_effects(frame, "clean", a, b, ratio=True) == pytest.approx([70 / 80, 74 / 84])
    one_seed_less = frame.drop(frame[(frame["seed"] == 0) & (frame["level"] == 0.1)].index)
    assert estimates.paired_effects(one_seed_less, "clean", a, b) == pytest.approx([-10])
    assert estimates.paired_effects(frame, "channel_sparsity", a, b, ratio=True) == []


@pytest.mark.parametrize("direction, low, high, more, expected", [
    ("increase", 0.1, 2, {}, claims.HOLDS), ("increase", -2, -0.1, {}, claims.FAILS),
    ("increase", -1, 1, {}, claims.UNDECIDED), ("decrease", -2, -0.1, {}, claims.HOLDS),
    ("decrease", 0.1, 2, {}, claims.FAILS), ("decrease", -1, 1, {}, claims.UNDECIDED),
    ("increase", 1.5, 1.9, {"threshold": 2.0}, claims.FAILS), ("increase", 2.1, 3, {"threshold": 2.0}, claims.HOLDS),
    ("decrease", -3, -2.1, {"threshold": -2.0}, claims.HOLDS),
    ("no worse", -1.0, 2, {"margin": 1.2}, claims.HOLDS), ("no worse", -1.5, 2, {"margin": 1.2}, claims.UNDECIDED),
    ("no worse", -3, -1.5, {"margin": 1.2}, claims.FAILS), ("increase", math.nan, math.nan, {}, claims.UNDECIDED),
])
def test_verdict(direction, low, high, more, expected):
    assert claims.verdict(direction, low, high, **more) == expected


def test_a_claim_holds_where_all_of_the_interval_is_on_its_side_and_fails_where_all_is_on_the_other():
    marks = (-3.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0)
    for low, high, threshold in ((a, b, t) for a in marks for b in marks for t in (-1.5, 0.0, 1.5) if a < b):
        below, above = (claims.verdict(d, low, high, threshold) for d in ("decrease", "increase"))
        sides = (claims.HOLDS, claims.FAILS) if high < threshold else (claims.FAILS, claims.HOLDS)
        assert (below, above) == ((claims.UNDECIDED,) * 2 if low < threshold < high else sides)


def test_a_ratio_that_should_fall_is_held_against_one():
    ratio = claim("decrease", unit="ratio", value=0.5)
    said = [claims.judged(ratio, [r - 0.01, r, r + 0.01])["verdict"] for r in (0.5, 0.9, 1.0, 1.1)]
    assert said == [claims.HOLDS, claims.HOLDS, claims.UNDECIDED, claims.FAILS]


def test_judged_rows():
    row = claims.judged(claim(), [2.0, 3.0, 4.0])
    assert (row["ours"], row["n_seeds"], row["reported"], row["verdict"]) == (3.0, 3, 1.0, claims.HOLDS)
    assert claims.judged(claim(), [2.0])["verdict"] == claims.UNDECIDED
    assert claims.judged(claim(), [2.0, 2.0, 2.0])["verdict"] == claims.UNDECIDED, "equal seeds have no interval"
    assert claims.judged(claim(), [])["verdict"] == claims.NOT_RUN
    assert claims.judged(claim(direction=None), [])["verdict"] == claims.NOT_SAID
    assert claims.judged(claim(direction=None), [1.0, 2.0])["verdict"] == claims.UNDECIDED
    ratio = claim(unit="ratio", value=2.0)
    assert claims.judged(ratio, [1.4, 1.5, 1.6])["verdict"] == claims.HOLDS, "a ratio is held against one"
    at_least = claim(unit="ratio", value=2.0, lower_bound=True)
    assert claims.judged(at_least, [1.4, 1.5, 1.6])["verdict"] == claims.FAILS, "at least two is held against two"


def test_a_claim_that_something_is_always_so_falls_with_one_exception():
    assert claims.always(claim(), 300, 300, n_seeds=2)["verdict"] == claims.HOLDS
    assert claims.always(claim(), 300, 300, n_seeds=1)["verdict"] == claims.UNDECIDED
    assert claims.always(claim(), 299, 300, n_seeds=1)["verdict"] == claims.FAILS
    row = claims.always(claim(value=None), 299, 300, n_seeds=2, where="a figure")
    assert row["verdict"] == claims.FAILS
    assert row["ours"] == row["low"] == row["high"] == pytest.approx(100 * 299 / 300)  # counted, not estimated
    assert (row["n_seeds"], row["where"], row["reported"]) == (2, "a figure", None)
    assert row.keys() == claims.judged(claim(), [1.0, 2.0]).keys()  # one ledger holds both


def test_an_estimate_with_its_own_interval_is_judged_by_it():
    row = claims.estimated(claim("decrease"), -0.5, -0.9, -0.1, 3, "here")
    assert (row["ours"], row["low"], row["high"], row["n_seeds"], row["where"]) == (-0.5, -0.9, -0.1, 3, "here")
    assert row["verdict"] == claims.HOLDS
    assert claims.estimated(claim("decrease"), -0.5, -0.9, 0.1, 3)["verdict"] == claims.UNDECIDED
    assert claims.estimated(claim("decrease"), -0.5, -0.9, -0.1, 1)["verdict"] == claims.UNDECIDED


def test_a_row_of_the_ledger_says_what_was_claimed_and_where_to_look():
    row = claims.judged(claim(direction="decrease", quantity="a minus b"), [-1.0, -2.0, -1.5], where="a table")
    said = {"claim": "X", "statement": "s", "quantity": "a minus b", "unit": "percentage points",
            "direction": "decrease", "source": "somewhere", "where": "a table", "verdict": claims.HOLDS}
    assert {key: row[key] for key in said} == said
    assert (row["low"], row["high"]) == pytest.approx(estimates.interval([-1.0, -2.0, -1.5]))
    never = claims.judged(claim(), [], where="a table")
    assert (never["n_seeds"], never["verdict"]) == (0, claims.NOT_RUN) and math.isnan(never["ours"])


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


def test_an_effect_has_an_interval_where_seeds_differ():
    low, high = estimates.interval([1.0, 2.0])
    assert tables.effect([1.0, 2.0]) == f"+1.5 [{low:+.1f}, {high:+.1f}]"
    assert tables.effect([2.0]) == tables.effect([2.0, 2.0]) == "+2.0" and tables.effect([]) == ""


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
    paths = {label: pandas.DataFrame(common | {"lagrangian": [3.0, 2.0, last]})
             for label, last in (("falls", 1.0), ("rises", 5.0))}
    figure = plots.descent(paths, {"falls": 0.1, "rises": 0.6}, pandas.Series([9.0, 8.0, 7.0]))
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


def test_claims_figure_shows_reported_and_measured():
    ledger = pandas.DataFrame([claims.judged(claim(), [2.0, 3.0, 4.0]), claims.judged(claim(), [])])
    (axis,) = plots.claims(ledger).axes
    points = {tuple(xy) for line in axis.get_lines() for xy in line.get_xydata()}
    assert (3.0, 0.0) in points and (1.0, 0.0) in points and axis.get_yticks().tolist() == [0]


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


# ------------------------------------------------------------------------------------------------------ scales


def test_user_mistakes_in_scales_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown scale 'labtop': did you mean 'laptop'"):
        scales.load("labtop", "fk_resnet")
    for seeds in ([], [0, 0], [-1], "0", [True]):
        with pytest.raises(UserError, match="seeds should be"):
            scales.checked_seeds(seeds, [0])
    monkeypatch.setattr("sparserobust.scales.scales_folder", lambda: tmp_path)
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


def test_where_the_ledger_stands_is_counted_by_notebook():
    one = pandas.DataFrame({"notebook": ["a", "a", "b"], "verdict": [claims.HOLDS, claims.FAILS, claims.NOT_RUN]})
    other = pandas.DataFrame({"notebook": ["a"], "verdict": [claims.UNDECIDED]})
    found = claims.standing({"quick": one, "laptop": other})
    assert found.loc["a"].tolist() == ["1 hold, 1 do not", "1 undecided"]
    assert found.loc["b"].tolist() == ["1 not run", ""]


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
