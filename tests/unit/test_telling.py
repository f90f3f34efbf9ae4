"""From tidy frames to tables, figures, verdicts: what is drawn and written is what was measured."""

import hashlib
import json
import math

import numpy as np
import pandas
import pytest
from matplotlib.colors import to_rgb
from scipy import stats

from sparserobust import imagewise
from sparserobust.reporting import artifacts, claims, estimates, plots, styles, tables
from sparserobust.reporting.crossed import Estimate


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
    assert list(shown.index) == ["B, 0.1", "B, nan", "A, 0.1", "A, nan"]
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
    fewer = estimates.Comparison(estimate, [1.0, 2.5])  # on the images that the two have in common it is less
    assert tables.effect(fewer) == f"+1.5 [{low:+.1f}, {high:+.1f}]"
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


def test_rates_that_cannot_be_on_the_same_images_say_on_how_many_they_are(attacked):
    """Answers that nobody kept cannot be cut to those of others; what is no rate of images does not count."""
    shown = tables.rates(attacked, ["net"], {"strong": "strong", "early": "early", "size": "size"}, exact=("size",))
    assert shown.loc["A", "strong"].endswith("] of 4") and shown.loc["A", "early"].endswith("] of 12")
    assert shown.loc["A", "size"] == "50.0"
    alike = tables.rates(attacked, ["net"], {"clean": "clean", "strong": "strong", "size": "size"}, exact=("size",))
    assert "of" not in "".join(alike.loc["A"])


def test_large_means_are_told_in_powers_of_ten():
    assert tables.mean(pandas.Series([9000.0, 9001.0]), 1) == "9000.500 ± 0.707"
    assert tables.mean(pandas.Series([2e12, 1e12]), 1) == "1.5e+12 ± 7.1e+11"
    assert tables.mean(pandas.Series([12345.0]), 1) == "1.2e+04"


def test_captions_say_on_how_many_images_the_rates_rest(attacked):
    assert tables.images(attacked, ["clean", "strong", "size"]) == (
        "All on the same 4 test images; figures and effects have up to 8.")
    assert tables.images(attacked, ["clean"]) == "All on the same 8 test images."
    assert tables.images(attacked, ["clean", "strong", "early"]) == (
        "On 4 to 12 test images: not all numbers are of the same ones.")
    assert tables.images(attacked, ["size", "distance"]) == ""
    thousands = pandas.DataFrame([sampled("clean", [1] * 2500)])
    assert tables.images(thousands, ["clean"]) == "All on the same 2,500 test images."


def test_one_seed_among_many_is_said_to_be_one():
    row = {"mean": 75.2, "sd": math.nan, "n_seeds": 1, "low": 74.3, "high": 76.0}
    assert tables.cell(row) == "75.2 [74.3, 76.0]"
    assert tables.cell(row, mixed=True) == "75.2 (1 seed)"
    assert tables.cell(row | {"total": 5000}, of=True) == "75.2 [74.3, 76.0] of 5,000"
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


@pytest.fixture
def lines():
    """A ledger: in points one line of each verdict, and a ratio; one was not run."""
    line = {"claim": "C", "unit": "percentage points", "reported": None, "ours": 1.0, "low": 0.5, "high": 1.5,
            "p": 1 / 70, "p_same": 0.5, "p_holm": 0.1, "n_seeds": 3, "images": 500, "why": "", "where": "table 1",
            "said": "", "margin": 1.0, "alone": claims.HOLDS, "statement": "s, and \"t\"", "quantity": "q",
            "source": "nan", "direction": "increase", "threshold": 0.0}
    found = [
        {"verdict": claims.HOLDS, "reported": 2.0},
        {"verdict": claims.FAILS, "ours": -30.0, "low": -35.0, "high": -25.0, "direction": "no worse",
         "threshold": -1.0},
        {"verdict": claims.SAME, "ours": 0.1, "low": -0.2, "high": 0.4, "direction": "decrease"},
        {"verdict": claims.HOLDS, "unit": "log10 of the ratio", "ours": 0.3, "low": 0.2, "high": 0.4, "reported": 0.35},
        {"verdict": claims.OPEN, "ours": 3.0, "low": -1.0, "high": 7.0, "why": "about 9 seeds would decide it"},
        {"verdict": claims.UNTESTED, "ours": 4.0, "low": math.nan, "high": math.nan, "n_seeds": 1, "why": "one seed"},
        {"verdict": claims.UNTESTED, "ours": math.nan, "low": math.nan, "high": math.nan, "n_seeds": 0, "images": 0,
         "unit": "", "why": "not run at this scale"}]
    return pandas.DataFrame([{"line": f"L{i}", "words": f"Claim {i}, in a few words", **line, **change}
                             for i, change in enumerate(found)])


def test_the_figure_of_claims_shows_each_line_that_was_run_with_its_interval(lines):
    figure = plots.claims(lines)
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "effect [percentage points; logarithmic beyond the dotted lines]", "effect [log10 of the ratio]"]
    assert [axis.get_xscale() for axis in figure.axes] == ["symlog", "linear"]
    ran = lines[lines["n_seeds"] > 0]
    for axis, unit in zip(figure.axes, ("percentage points", "log10 of the ratio"), strict=True):
        rows = ran[ran["unit"] == unit]
        names = [label.get_text().replace("\n", " ") for label in axis.get_yticklabels()]
        assert names == rows["words"].tolist() and axis.yaxis_inverted()  # the first on top
        bars, points, hollow, *shaded = axis.collections
        ends = axis.get_xlim()
        for place, (row, area) in enumerate(zip(rows.to_dict("records"), shaded, strict=True)):
            (low, bottom), (high, top) = area.get_paths()[0].get_extents().get_points()
            assert bottom < place < top < bottom + 1
            assert (low, high) == ((ends[0], row["threshold"]) if row["direction"] == "decrease" else
                                   (row["threshold"], ends[1]))
        places = range(len(rows))
        expected = [[[row["low"], place], [row["high"], place]]
                    for place, row in zip(places, rows.to_dict("records"), strict=True) if row["low"] == row["low"]]
        assert [segment.tolist() for segment in bars.get_segments() if len(segment)] == expected
        np.testing.assert_array_equal(points.get_offsets(), list(zip(rows["ours"], places, strict=True)))
        np.testing.assert_array_equal(np.ma.filled(hollow.get_offsets(), np.nan)[:, 0],
                                      rows["reported"].astype(float))
        assert len(hollow.get_facecolors()) == 0
        for of, colours in (("points", points.get_facecolors()), ("bars", bars.get_colors())):
            wanted = [to_rgb(styles.VERDICTS[verdict][0]) for verdict in rows["verdict"]]
            np.testing.assert_allclose([colour[:3] for colour in colours], wanted, err_msg=of)
    for looks in zip(*styles.VERDICTS.values(), strict=True):
        assert len(set(looks)) == 5  # neither colour nor marker twice
    assert set(styles.VERDICTS) == set(claims.SHORT)


def test_the_legend_of_claims_names_the_verdicts_that_are_there(lines):
    (legend,) = plots.claims(lines).legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == [*claims.SHORT, "where the claim holds", "reported by the paper"]
    for said, handle in zip(claims.SHORT, legend.legend_handles, strict=False):
        assert (handle.get_color(), handle.get_marker()) == styles.VERDICTS[said]
    always = lines[:1].assign(direction=claims.ALWAYS, threshold=100.0, ours=100.0, low=100.0, high=100.0)
    for rows, shaded in ((always, 1), (lines[:1].assign(direction=None), 0)):
        figure = plots.claims(rows)
        assert len(figure.axes[0].collections) == 3 + shaded
        assert ("where the claim holds" in [text.get_text() for text in figure.legends[0].get_texts()]) == shaded
    (legend,) = plots.claims(lines[2:3]).legends
    assert [text.get_text() for text in legend.get_texts()] == [claims.SAME, "where the claim holds"]


def test_artifacts_know_where_they_come_from(frame, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEROBUST_FIGURES", str(tmp_path))
    out = artifacts.Artifacts("quick", "99_test")
    out.figure(plots.curves([0, 1], {"a": [0, 1]}, "x", "y"), "fig", "A line.", frame)
    shown = out.table(frame.head(2), "table", "Two <rows>.", frame)
    assert "&lt;rows&gt;" in shown._repr_html_() and "Two <rows>." in repr(shown)
    out.measurements(frame)
    out.finish()
    with_gaps = pandas.DataFrame({"a": ["1", "", ""], "b": ["", "", None]}, index=["known", "one", "other"])
    gaps = "Some. Left out, since nothing is known of it at this scale: one; other."
    assert gaps in (shown := repr(out.table(with_gaps, "gaps", "Some.", frame))) and "known" in shown
    assert "None. Nothing of this is known at this scale." in repr(out.table(with_gaps[1:], "none", "None.", frame))
    assert out.table(with_gaps[:0], "empty", "None.", frame).caption == "None. Nothing of this is known at this scale."
    folder = tmp_path / "quick" / "99_test"
    assert pandas.read_csv(folder / "gaps.csv", index_col=0).index.tolist() == ["known"]
    out = artifacts.Artifacts("quick", "99_test")
    out.figure(plots.curves([0, 1], {"a": [0, 1]}, "x", "y"), "fig", "A line.", frame)
    out.table(frame.head(2), "table", "Two <rows>.", frame)
    out.measurements(frame)
    out.finish()
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


@pytest.mark.parametrize("name", ["ledger.csv", "claims.csv", "manifest.json"])
@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"", lambda b: b.replace(b"1", b"2"),
                                    lambda b: b"\xff" * 9])
def test_a_ledger_that_is_not_as_it_was_drawn_is_named_and_not_told(name, damage, lines, frame, figures, refusal):
    judge(lines, frame, "quick", "01_a")
    path = figures / "quick" / "01_a" / name
    path.write_bytes(damage(path.read_bytes()))
    message = refusal(artifacts.write_ledger, "quick")
    assert "01_a" in message and "sparserobust run 01_a -p scale quick" in message


def test_the_ledger_joins_those_of_all_notebooks(lines, frame, figures, refusal):
    judge(lines, frame, "quick", "01_a")
    judge(lines[2:4], frame, "quick", "02_b")
    judge(lines[-1:], frame, "laptop", "02_b")
    artifacts.Artifacts("quick", "00_c").table(frame, "table", "One that judges nothing.")
    before, whole = everything(figures), artifacts.ledger("quick")
    assert everything(figures) == before, "who only reads writes nothing"
    assert whole["notebook"].tolist() == ["01_a"] * 7 + ["02_b"] * 2 and whole.columns[0] == "notebook"
    assert set(whole["source"]) == {"nan"}  # a text is a text
    assert whole["words"].tolist() == [*lines["words"], *lines["words"][2:4]]
    for row, saved in zip(whole.to_dict("records"), [*lines.to_dict("records"), *lines[2:4].to_dict("records")],
                          strict=True):
        assert claims.sentence(row) == claims.sentence(saved)  # nothing is lost on the way
    artifacts.write_ledger("quick")
    for name, columns in (("ledger.csv", whole.columns), ("claims.csv", ["notebook", *comparisons(lines)])):
        written = pandas.read_csv(figures / "quick" / name)
        assert list(written.columns) == list(columns) and written["notebook"].tolist() == whole["notebook"].tolist()
    (only,) = artifacts.ledger("laptop").to_dict("records")
    assert claims.sentence(only) == "Claim 6, in a few words: not run at this scale."
    assert "sparserobust reproduce --scale paper" in refusal(artifacts.ledger, "paper")


def test_a_ledger_of_an_earlier_version_is_drawn_anew(lines, frame, figures, refusal):
    judge(lines, frame, "quick", "01_a")
    folder = figures / "quick" / "01_a"
    older = pandas.read_csv(folder / "ledger.csv").drop(columns="threshold").to_csv(index=False).encode()
    (folder / "ledger.csv").write_bytes(older)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["ledger.csv"]["sha256"] = hashlib.sha256(older).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "of an earlier version: draw it anew, with sparserobust run 01_a" in refusal(artifacts.ledger, "quick")


def test_the_table_of_the_readme_counts_verdicts_and_writes_nothing(lines, frame, figures):
    judge(lines, frame, "quick", "01_fk_resnet")
    judge(lines[:2], frame, "quick", "03_rsr")
    judge(lines[2:5], frame, "laptop", "03_rsr")
    for scale in ("quick", "laptop"):
        judge(lines, frame, scale, "99_own")  # not one of the project's notebooks
    before = everything(figures)
    told = artifacts.told_elsewhere()
    assert everything(figures) == before
    table, (_, *folded) = told["README.md"]["ledger"], told["docs/results.md"]["ledger"].split("<details>")
    assert told["README.md"]["findings"] == ""  # of none of these lines
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines())
    assert head == ["paper", "its answer", "notebook", "quick", "laptop"]
    counts = {notebook: cells for _, _, notebook, *cells in rows}
    pages = ["01_fk_resnet", "02_iwi", "03_rsr", "04_sparsity_theory", "05_tscnc", "06_side_by_side",
             "08_ring"]
    assert list(counts) == [f"[{name}](notebooks/{name}.ipynb)" for name in pages]
    assert [paper for paper, *_ in rows][::5] == ["Dinh et al. 2020", "the five side by side"]
    told = {name: counts[f"[{name}](notebooks/{name}.ipynb)"] for name in pages}
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
    head = artifacts.told_elsewhere()["README.md"]["ledger"].splitlines()[0].strip("|").split("|")
    assert [cell.strip() for cell in head] == ["paper", "its answer", "notebook"]


# ------------------------------------------------------------------------------------------ what is known already
