"""From tidy frames to tables, figures, verdicts: what is drawn and written is what was measured."""

import json
import math

import numpy as np
import pandas
import pytest
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


def test_binomial_interval_is_wilsons():
    n, p, z = 250, 0.4, stats.norm.ppf(0.975)
    middle, reach = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = [(middle + s * reach) / (1 + z**2 / n) for s in (-1, 1)]
    assert estimates.binomial_interval(100, 250) == pytest.approx(expected)


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


def test_judged_rows():
    row = claims.judged(claim(), [2.0, 3.0, 4.0])
    assert (row["ours"], row["n_seeds"], row["reported"], row["verdict"]) == (3.0, 3, 1.0, claims.HOLDS)
    assert claims.judged(claim(), [2.0])["verdict"] == claims.UNDECIDED
    assert claims.judged(claim(), [])["verdict"] == claims.NOT_RUN
    ratio = claim(unit="ratio", value=2.0)
    assert claims.judged(ratio, [1.4, 1.5, 1.6])["verdict"] == claims.HOLDS, "a ratio is held against one"
    at_least = claim(unit="ratio", value=2.0, lower_bound=True)
    assert claims.judged(at_least, [1.4, 1.5, 1.6])["verdict"] == claims.FAILS, "at least two is held against two"


def test_a_claim_that_something_is_always_so_falls_with_one_exception():
    assert claims.always(claim(), 300, 300, n_seeds=2)["verdict"] == claims.HOLDS
    row = claims.always(claim(value=None), 299, 300, n_seeds=2, where="a figure")
    assert row["verdict"] == claims.FAILS
    assert row["ours"] == row["low"] == row["high"] == pytest.approx(100 * 299 / 300)  # counted, not estimated
    assert (row["n_seeds"], row["where"], row["reported"]) == (2, "a figure", None)
    assert row.keys() == claims.judged(claim(), [1.0, 2.0]).keys()  # one ledger holds both


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
    single = tables.summary(frame[frame["seed"] == 0], ["net", "level"]).set_index(["net", "level", "metric"])
    exact = tables.summary(frame[frame["seed"] == 0], ["net", "level"], exact=("clean",))
    assert tables.cell(exact.set_index(["net", "level", "metric"]).loc[("A", 0.1, "clean")]) == "70.0"
    low, high = estimates.binomial_interval(70, 100)
    assert tables.cell(single.loc[("A", 0.1, "clean")]) == f"70.0 [{100 * low:.1f}, {100 * high:.1f}]"


def test_beside_puts_each_number_in_its_row(frame):
    printed = pandas.DataFrame({"net": ["A", "B", "C"], "lambda1": [0.1, None, None], "A1": [1.234, 5.0, None]})
    table = tables.beside(printed, tables.summary(frame, ["net", "level", "ours"]), {"net": "net", "lambda1": "level"},
                          {"A1": ("A1", "clean"), "own": (None, "channel_sparsity")}, label="ours")
    assert list(table.index) == ["A lambda1 0.1", "B dense", "C dense"]
    assert list(table["A1", "reported"]) == ["1.23", "5.00", ""]
    assert list(table["A1", "ours"]) == ["72.0 ± 2.8", "62.0 ± 2.8", ""]
    assert list(table["own", "ours"]) == ["30.0 ± 0.0", "0.0 ± 0.0", ""] and ("own", "reported") not in table
    assert list(table["", "ours is"]) == ["our A", "our B", ""]


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
    (tmp_path / "mine.yaml").write_text("other: {}")
    with pytest.raises(UserError, match="has no section 'fk_resnet'"):
        scales.load("mine", "fk_resnet")
