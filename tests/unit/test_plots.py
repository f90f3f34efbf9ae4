"""Figures show what is in the frames: read from the artists, not from pixels."""

import math

import numpy as np
import pandas
import pytest
import torch
from matplotlib.colors import to_rgb

from sparserobust import imagewise
from sparserobust.reporting import axes, estimates, plots, styles
from sparserobust.reporting import layers as of_layers
from sparserobust.studies import contest_plots
from sparserobust.studies.fk_resnet import plots as of_fk
from sparserobust.studies.sparsity_theory import plots as of_theory
from sparserobust.studies.start_here import plots as of_start


def tidy(base: dict[str, float], levels=(1, 2, 3), seeds: int = 3, **more) -> pandas.DataFrame:
    """Rows of lines: the value is the base plus a tenth of the level, and 0, 0.02, 0.06 of seed 0, 1, 2."""
    return pandas.DataFrame([{"series": name, "level": level, "seed": seed, **more,
                              "value": start + 0.1 * level + 0.01 * seed * (seed + 1)}
                             for name, start in base.items() for level in levels for seed in range(seeds)])




def drawn(axis, *names: str) -> dict[str, list[tuple]]:
    """Name to points of the lines of these names, found by their colour and marker, or line style."""
    look = styles.of(names)
    found: dict[str, list[tuple]] = {}
    for name, (colour, marker, _) in look.items():
        for line in axis.get_lines():
            if to_rgb(line.get_color()) == to_rgb(colour) and line.get_marker() in (marker, "None", None):
                found.setdefault(name, [tuple(xy) for xy in line.get_xydata().tolist()])
    return found


def said(figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def spans(axis, kind: str, x: float) -> list[tuple[float, float]]:
    """(low, high) at x of all collections of this kind: bands (FillBetween...) or bars (LineCollection)."""
    found = []
    for collection in axis.collections:
        if type(collection).__name__.startswith(kind):
            points = np.concatenate([np.empty((0, 2)), *(path.vertices for path in collection.get_paths())])
            here = points[np.isclose(points[:, 0], x), 1]
            found += [(here.min(), here.max())] if len(here) else []
    return found


# ------------------------------------------------------------------------------------------------------- styles


def test_each_method_has_one_look_and_no_two_share_it():
    names = [name for group in styles.METHODS.values() for name in group]
    assert len(names) == len(set(names)) and not set(names) & set(styles.LINES)
    assert {colour for colour, _ in styles.METHODS} <= set(styles.COLOURS)
    assert {marker for _, marker in styles.METHODS} <= set(styles.MARKERS)
    one, other = styles.of(["+TSC", "HYDRA"]), styles.of(["HYDRA", "TRADES", "unheard of", "+TSC"])
    assert all(one[name] == other[name] for name in one)
    assert styles.of(["surgery"])["surgery"].dash == "" != styles.of(["magnitude"])["magnitude"].dash


@pytest.mark.parametrize("names", [
    "dense; small from the start; magnitude; learned scores", "TRADES; LWM; HYDRA; +TSC; +CNC; TSCNC; null",
    "weights: initial; weights: early; weights: trained; weights: random",
    "AT; AT, narrow; IWI, from narrow; IWI, from ticket",
    "magnitude, global; magnitude, layer by layer; filters, L1 norm; network slimming; learned scores; random",
    "AT; AT, cost of IWI from narrow; AT, cost of IWI from ticket; IWI, from narrow; IWI, from ticket",
    "AT, by sparsity; RSR, by sparsity; RSR, by threshold; RSR, by lambda", "AT; AT + lasso; AT + noise; RSR",
    "AT, dense; AT + noise, dense; RSR, dense; RSR, pruned; RSR, fine-tuned", "dense; pruned; fine-tuned",
    "natural, pruned; natural, trained on; natural, pruned, not retrained; adversarial, pruned",
    "adversarial, pruned; adversarial, trained on; adversarial, pruned, not retrained; natural, pruned",
    "magnitude; surgery; global, last kept; layer by layer; layer by layer, last kept", "RVSM; RGSM; ADMM channels",
    "ResNet20; En2ResNet20; En5ResNet20; ResNet38", "k-winners; L1 on activations", "natural; adversarial"])
def test_methods_of_one_figure_differ_in_colour_and_in_marker(names):
    found = styles.of(names.split("; ")).values()
    assert len({style.colour for style in found}) == len(found) == len({style.marker for style in found})
    assert all(name in styles.KNOWN for name in names.split("; "))


def test_new_names_get_looks_of_their_own():
    found = styles.of(["AT", *(f"new {i}" for i in range(40))])
    assert len({(style.colour, style.marker) for style in found.values()}) == 41
    first = [found[f"new {i}"] for i in range(8)]
    assert len({style.colour for style in first} | {found["AT"].colour}) == 9
    assert found["new 0"] == styles.of(["AT", "new 0"])["new 0"]


# -------------------------------------------------------------------------------------------------------- lines


def test_lines_are_means_and_bands_span_the_seeds():
    figure = plots.lines(tidy({"A": 0.2, "B": 0.6}), factor=100, xlabel="penalty", ylabel="rate [%]")
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("penalty", "rate [%]")
    for name, base in (("A", 20), ("B", 60)):
        points = drawn(axis, "A", "B")[name]
        assert [x for x, _ in points] == [1, 2, 3]
        assert [y for _, y in points] == pytest.approx([base + 10 * level + 8 / 3 for level in (1, 2, 3)])
    for level in (1, 2, 3):
        assert spans(axis, "FillBetween", level) == [pytest.approx((low + 10 * level, low + 10 * level + 6))
                                                     for low in (20, 60)]
    assert said(figure) == ["A", "B", plots.BAND]
    for handle, line in zip(figure.legends[0].legend_handles, axis.get_lines(), strict=False):
        assert (handle.get_color(), handle.get_marker()) == (line.get_color(), line.get_marker())
    one, two = axis.get_lines()
    assert one.get_marker() != two.get_marker() and one.get_linestyle() != two.get_linestyle()


def test_seeds_can_be_small_marks():
    (axis,) = plots.lines(tidy({"A": 0.2}), spread="seeds").axes
    (marks,) = axis.collections
    assert marks.get_offsets().tolist() == tidy({"A": 0.2})[["level", "value"]].to_numpy().tolist()


def test_a_point_of_one_seed_has_the_interval_of_its_images():
    rows = tidy({"A": 0.0}, seeds=1, count=40, total=100, sampled=True)
    figure = plots.lines(rows, factor=100)
    expected = [100 * p for p in estimates.binomial_interval(40, 100)]
    assert spans(figure.axes[0], "LineCollection", 2) == [pytest.approx(expected)]
    assert said(figure) == ["A", plots.INTERVAL]
    several = pandas.concat([rows, tidy({"A": 0.0}, levels=(1, 2), count=40, total=100, sampled=True)[1:]])
    axis = plots.lines(several, factor=100).axes[0]
    ranges = several[several["level"] == 2].groupby("level")["value"].agg(["min", "max"]).iloc[0]
    assert spans(axis, "LineCollection", 2) == [pytest.approx(tuple(100 * ranges))]  # not of images
    assert spans(axis, "LineCollection", 3) == [pytest.approx(expected)] and not spans(axis, "FillBetween", 2)
    assert said(axis.figure) == ["A", plots.BAND, plots.INTERVAL]
    for without in (rows.assign(sampled=False), rows.assign(count=math.nan)):
        assert said(plots.lines(without)) == ["A"]
    assert said(plots.lines(rows, spread="none")) == ["A"]


def test_marks_of_one_level_can_stand_side_by_side():
    rows = pandas.DataFrame({"series": ["A", "B", "A", "C"], "left": [50.0, 50.0, 10.0, 50.0], "col": [1, 1, 1, 2]})
    beside = plots.side_by_side(rows)["left"]
    assert beside[0] < 50 < beside[1] and beside[0] * beside[1] == pytest.approx(50 ** 2)
    assert beside[2] / 10 == pytest.approx(beside[0] / 50) and beside[3] == 50  # alone in its panel


def test_values_of_images_have_an_interval_too():
    values = np.array([0.5, 1.0, 1.5, np.nan])
    low, high = plots.interval({"sampled": True, "each": imagewise.pack(values), "count": None, "factor": 2})
    assert (low + high) / 2 == pytest.approx(2, rel=1e-3)
    assert (high - low) / 2 == pytest.approx(2 * 1.96 * 0.5 / 3**0.5, rel=1e-3)
    assert math.isnan(plots.interval({"sampled": True, "each": None, "count": None, "factor": 1})[0])


def test_two_points_are_not_a_line():
    (axis,) = plots.lines(tidy({"A": 0.2, "B": 0.6}, levels=(1, 2))).axes
    assert {line.get_linestyle() for line in axis.get_lines()} == {"None"}
    assert spans(axis, "LineCollection", 1) == [pytest.approx((low + 0.1, low + 0.16)) for low in (0.2, 0.6)]
    (axis,) = plots.lines(tidy({"surgery": 0.2})).axes  # points that are not steps of a path
    assert drawn(axis, "surgery")["surgery"] and {line.get_linestyle() for line in axis.get_lines()} == {"None"}


def test_panels_stand_by_row_and_column():
    rows = pandas.concat([tidy({"A": 0.1}).assign(row="rate [%]", col="net 1", factor=100),
                          tidy({"A": 0.1, "B": 0.3}).assign(row="rate [%]", col="net 2", factor=100),
                          tidy({"B": 3.0}).assign(row="distance", col="net 1", factor=2)])
    figure = plots.lines(rows, row="row", col="col", xlabel="level", ylog=["distance"])
    first, second, third, empty = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["net 1", "net 2", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["rate [%]", "", "distance", ""]
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "", "level", "level"]
    assert [axis.get_yscale() for axis in figure.axes] == ["linear", "linear", "log", "log"]
    assert list(drawn(first, "A", "B")) == ["A"] and list(drawn(second, "A", "B")) == ["A", "B"]
    assert drawn(third, "A", "B")["B"][0] == (1, pytest.approx(2 * (3.1 + 0.08 / 3)))
    assert not empty.get_lines() and [text.get_text() for text in empty.texts] == ["not measured"]
    assert said(figure) == ["A", "B", plots.BAND]


def test_x_is_the_mean_over_what_is_one_point():
    rows = tidy({"heir": 0.3, "AT": 0.1}).rename(columns={"level": "epoch"})
    rows = rows.assign(cost=2.0 * rows["epoch"] + rows["seed"] + 5 * (rows["series"] == "heir"))
    (axis,) = plots.lines(rows, "cost", at="epoch").axes
    for name, begun in (("heir", 5), ("AT", 0)):
        assert [x for x, _ in drawn(axis, "heir", "AT")[name]] == pytest.approx([begun + 2 * e + 1 for e in (1, 2, 3)])
    assert len(spans(axis, "FillBetween", 3)) == 1  # AT, at the mean cost of its first epoch


def test_reported_points_are_hollow_and_in_the_colour_of_their_net():
    reported = pandas.DataFrame({"series": ["A", "B", "A"], "level": [1, 2, 3], "value": [0.71, 0.72, 0.73]})
    figure = plots.lines(tidy({"A": 0.2, "B": 0.6}), factor=100, reported=reported)
    hollow = [line for line in figure.axes[0].get_lines() if line.get_markerfacecolor() == "none"]
    look = styles.of(["A", "B"])
    assert [(line.get_color(), line.get_xydata().tolist()) for line in hollow] == [
        (look["A"].colour, [[1, 71], [3, 73]]), (look["B"].colour, [[2, 72]])]
    assert said(figure)[-2:] == ["reported by the paper", plots.BAND]


def test_metrics_become_panels_in_the_order_asked_for():
    rows = pandas.concat([tidy({"A": 0.1}).assign(metric="pgd"), tidy({"A": 0.5}).assign(metric="clean")])
    shown = plots.by_metric(rows, {"Clean": "clean", "PGD": "pgd"})
    figure = plots.lines(shown, col="col")
    assert [axis.get_title() for axis in figure.axes] == ["Clean", "PGD"]
    assert drawn(figure.axes[1], "A")["A"][0][1] == pytest.approx(0.2 + 0.08 / 3)


def test_tradeoff_takes_both_axes_from_the_same_runs():
    rows = pandas.DataFrame([
        {"ours": net, "level": level, "seed": seed, "run": f"{net}{level}{seed}", "metric": metric,
         "value": clean + 0.04 * seed if metric == "clean" else gone, "count": left + seed}
        for net, level, clean, gone, left in (("A", None, 0.8, 0.0, 9000), ("A", 0.1, 0.7, 0.3, 700),
                                              ("A", 0.2, 0.6, 0.4, 600))
        for seed in (0, 1) for metric in ("clean", "gone")])
    (axis,) = plots.tradeoff(rows, "gone", {"clean": "clean"}, "removed [%]").axes
    assert axis.get_xscale() == "linear" and axis.get_ylabel() == "accuracy [%]"
    np.testing.assert_allclose(drawn(axis, "A")["A"], [(0, 82), (30, 72), (40, 62)])
    (axis,) = plots.tradeoff(rows, "gone", {"clean": "clean"}, "left", count=True).axes
    assert axis.get_xscale() == "log"
    np.testing.assert_allclose(drawn(axis, "A")["A"], [(600.5, 62), (700.5, 72), (9000.5, 82)])
    (seeds,) = axis.collections
    np.testing.assert_allclose(seeds.get_offsets(), [(9000, 80), (9001, 84), (700, 70), (701, 74), (600, 60),
                                                     (601, 64)])


def test_scatter_has_a_mark_for_every_row():
    rows = pandas.DataFrame({"x": [1.0, 2.0, 3.0], "z": [5.0, 4.0, 6.0], "rate": [0.1, 0.2, 0.3],
                             "kind": ["LWM", "HYDRA", "LWM"]})
    figure = plots.scatter(rows, "rate", "kind", {"of x": "x", "of z": "z"}, "accuracy [%]")
    assert [axis.get_xlabel() for axis in figure.axes] == ["of x", "of z"]
    (marks,) = figure.axes[1].collections
    np.testing.assert_allclose(marks.get_offsets(), [(5, 10), (4, 20), (6, 30)])
    assert [tuple(colour[:3]) for colour in marks.get_facecolors()] == [
        to_rgb(styles.of([kind])[kind].colour) for kind in rows["kind"]]
    assert said(figure) == ["LWM", "HYDRA"] and rows["rate"].tolist() == [0.1, 0.2, 0.3]


def test_histograms_draw_shares():
    results = [{"histogram": [1, 2, 4, 2, 1], "limit": 0.5}, {"histogram": [0, 0, 4, 0, 0], "limit": 0.5}]
    figure = plots.weight_histograms(pandas.DataFrame({"t": ["a", "b"]}), results, "t")
    whole, near = figure.axes
    for name, shares in (("a", [10, 20, 40, 20, 10]), ("b", [0, 0, 100, 0, 0])):
        np.testing.assert_allclose(drawn(whole, "a", "b")[name],
                                   list(zip([-0.4, -0.2, 0, 0.2, 0.4], shares, strict=True)), atol=1e-12)
        np.testing.assert_allclose(drawn(near, "a", "b")[name], [(0, shares[2])], atol=1e-12)


def test_curves_are_drawn_as_they_are():
    figure = plots.curves(range(3), {"up": torch.tensor([0.0, 1.0, 2.0]), "down": [2, 1, 0]}, "x", "y", "title")
    (axis,) = figure.axes
    assert drawn(axis, "up", "down") == {"up": [(0, 0), (1, 1), (2, 2)], "down": [(0, 2), (1, 1), (2, 0)]}
    assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == ("title", "x", "y")


def test_layers_stand_in_their_order_under_their_names():
    rows = pandas.DataFrame([{"layer": layer, "series": name, "value": value} for name, values in
                             (("HYDRA", {"block": 1.0, "linear": 4.0, "stem": 2.0}), ("null", {"block": 3.0}))
                             for layer, value in values.items()])
    (axis,) = plots.layerwise(rows).axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["stem", "block", "linear"]
    assert drawn(axis, "HYDRA")["HYDRA"] == [(0, 2), (1, 1), (2, 4)]


def test_stored_layers_return_to_their_order():
    order = ["stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.shortcut", "blocks.10.conv1",
             "linear"]
    assert axes.from_image_to_answer(sorted(order)) == order
    assert axes.from_image_to_answer(["linear2", "conv1", "linear1"]) == ["conv1", "linear1", "linear2"]


def test_pictures_share_one_scale():
    one, two = torch.tensor([[0.0, -0.2]]), torch.tensor([[0.5, 0.1]])
    first, second, bar = plots.images([one, two], ["one", "two"]).axes
    for axis, values in ((first, one), (second, two)):
        (mesh,) = axis.collections
        np.testing.assert_allclose(mesh.get_array(), values)
        assert mesh.get_clim() == (-0.5, 0.5)
    assert bar.get_ylabel() == "value"


# ----------------------------------------------------------------------------------------------- along sparsity


def path(series: str, values: dict[float, list[float]]) -> pandas.DataFrame:
    """A line: the share that is left [%] to the values of each seed; the level is the share removed."""
    return pandas.DataFrame([{"series": series, "level": 1 - left / 100, "left": left + 0.01 * seed, "seed": seed,
                              "value": v} for left, found in values.items() for seed, v in enumerate(found)])


def ticks(axis) -> list[tuple[float, str]]:
    return [(x, text.get_text()) for x, text in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)]


def test_along_sparsity_draws_means_over_what_is_left():
    rows = path("one", {100: [0.5, 0.7], 10: [0.8, 1.0], 1: [0.1, 0.3]}).assign(col="rate [%]", factor=100)
    figure = plots.along_sparsity(rows)
    (axis,) = figure.axes
    np.testing.assert_allclose(drawn(axis, "one")["one"], [(1.005, 20), (10.005, 90), (100.005, 60)])
    assert spans(axis, "FillBetween", 10.005) == [pytest.approx((80, 100))]
    assert axis.get_xscale() == "log" and axis.get_xlabel() == "weights removed [%]"
    start, end = axis.get_xlim()
    assert start > 100.01 and 0 < end < 1  # dense on the left, all points within
    assert [left for left, _ in ticks(axis)] == [100 - float(removed) for _, removed in ticks(axis)]
    assert ticks(axis)[0] == (100, "0") and {"50", "90", "98"} <= {removed for _, removed in ticks(axis)}


@pytest.mark.parametrize("highest, left, first, last", [
    (100, 0.1, "0", "99.9"), (100, 0.5, "0", "99.5"), (60, 2.5, "50", "98"), (100, 12, "0", "90"),
    (50, 60, "50", "50")])
def test_the_axis_of_what_is_removed_ends_where_the_lines_end(highest, left, first, last):
    (axis,) = plots.along_sparsity(path("a", {highest: [1.0], left: [2.0]}).assign(col="x")).axes
    assert (ticks(axis)[0][1], ticks(axis)[-1][1]) == (first, last) and len(axis.xaxis.get_minorticklocs()) == 0
    assert axis.get_xlim()[1] < min(left, highest) and axis.get_xlim()[0] > max(left, highest)


def test_marked_rows_have_their_symbol_and_the_legend_names_it():
    rows = path("one", {100: [0.5, 0.7], 10: [0.8, 1.0], 1: [0.1, 0.3]}).assign(col="x")
    rows["mark"] = rows["level"].map({0.9: "best", 0.99: "below dense"})
    figure = plots.along_sparsity(rows)
    marks = [mark.get_offsets().tolist()[0] for mark in figure.axes[0].collections[1:]]
    np.testing.assert_allclose(marks, [(10.005, 0.9), (1.005, 0.2)])
    assert said(figure) == ["one", "best", "below dense", plots.BAND]


def test_a_logarithmic_axis_has_plain_numbers():
    figure = plots.lines(tidy({"A": 1.0}).assign(value=[6.0, 7, 8, 20, 21, 22, 60, 61, 62]), ylog=True)
    (axis,) = figure.axes
    assert axis.get_yscale() == "log" and {5.0, 10.0, 20.0, 50.0} <= set(axis.get_yticks())
    assert "10" in [axis.yaxis.get_major_formatter()(tick) for tick in axis.get_yticks()]
    axis = plots.lines(tidy({"A": 1.0}, levels=(1, 5, 20)), xlog=True).axes[0]
    assert list(axis.get_xticks()) == [1, 5, 20]


def test_a_legend_stands_beneath_and_is_replaced():
    figure, _ = axes.grid(1, 1, (4, 3))
    entries = [axes.handle(name, style) for name, style in styles.of(["LWM", "HYDRA"]).items()]
    axes.legend(figure, entries)
    height = figure.get_figheight()
    axes.legend(figure, entries[:1])
    assert said(figure) == ["LWM"] and figure.get_figheight() == height > 3
    figure, _ = axes.grid(1, 1, (6, 3))
    many = styles.of([f"a rather long name, number {i}" for i in range(13)])
    axes.legend(figure, [axes.handle(name, style) for name, style in many.items()])
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().width < figure.bbox.width


# --------------------------------------------------------------------------------------- figures of single studies


def test_layers_over_epochs_begin_where_all_layers_begin():
    histories = {name: [{"gates": {"b": 0.8, "stem": 0.9}}, {"gates": {"b": last, "stem": 0.7}}] for name, last in
                 (("one", 0.5), ("two", 0.1))}  # stored in alphabetical order; the stem comes first
    figure = of_layers.layers_over_epochs(histories, "gates", 0.92, "open")
    assert [axis.get_title() for axis in figure.axes[:2]] == ["one", "two"]
    assert [list(line.get_ydata()) for line in figure.axes[1].lines] == [[0.92, 0.9, 0.7], [0.92, 0.8, 0.1]]
    assert figure.axes[0].get_ylabel() == "open" and figure.axes[0].get_ylim()[0] > 0.05


def test_sorted_norms_show_zeros_on_a_line_of_their_own():
    norms = {"RGSM": np.array([0.5, 0.0, 2.0, 3e-7]), "RVSM": np.array([0.0, 0.0, 1.0, 4.0, 1e-3])}
    figure = of_fk.sorted_norms(norms)
    linear, logarithmic = figure.axes
    assert linear.get_yscale() == "linear" and logarithmic.get_yscale() == "log"
    for name, points in (("RGSM", [(25, 2), (50, 0.5), (75, 3e-7), (100, 0)]),
                         ("RVSM", [(20, 4), (40, 1), (60, 1e-3), (80, 0), (100, 0)])):
        np.testing.assert_allclose(drawn(linear, *norms)[name], points)
    found = drawn(logarithmic, *norms)
    floors = {y for name, count in (("RGSM", 1), ("RVSM", 2)) for _, y in found[name][-count:]}
    assert len(floors) == 1 and 0 < floors.pop() < 3e-7  # clearly below what is small but not zero
    for name, points in found.items():
        kept = [(x, y) for x, y in drawn(linear, *norms)[name] if y > 0]
        np.testing.assert_allclose(points[:len(kept)], kept)
    assert said(figure) == ["RGSM", "RVSM"]


def test_layers_share_one_colour_scale_and_one_histogram():
    results = {"one": {"picture": [[0.0, 0.2], [0.1, 0.3]], "histogram": [1, 2, 1], "limit": 0.3},
               "two": {"picture": [[0.5, 0.0], [0.0, 0.1]], "histogram": [0, 10, 0], "limit": 0.3}}
    figure = of_fk.layers(results)
    first, second, histogram, bar = figure.axes
    for axis, (label, result) in zip((first, second), results.items(), strict=True):
        (mesh,) = axis.collections
        assert mesh.get_array().tolist() == result["picture"] and mesh.get_clim() == (0, 0.5)
        assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == (label, "input channel", "output channel")
    for name, line, shares in zip(results, histogram.get_lines(), ([25, 50, 25], [0, 100, 0]), strict=True):
        assert to_rgb(line.get_color()) == to_rgb(styles.of(results)[name].colour)
        edges = np.linspace(-0.3, 0.3, 4)
        corners = [(x, share) for i, share in enumerate(shares) for x in edges[i:i + 2]]
        assert {tuple(np.round(xy, 6)) for xy in line.get_xydata()} <= {
            *((round(x, 6), y) for x, y in corners), (-0.3, 0.0), (0.3, 0.0)}
        assert line.get_ydata().max() == max(shares)
    assert said(figure) == ["one", "two"] and "kernel" in bar.get_ylabel()


def test_stability_figure_averages_over_seeds():
    one = {"levels": [0.0, 0.1, 0.4], "lengths": [0.5, 1.0], "changes": [[0.2, 0.4], [0.1, 0.3], [0.01, 0.02]],
           "largest": [[1.0, 1.4], [0.8, 1.2], [0.1, 0.2]], "slopes": [1.0, 0.8, 0.5], "accuracy": [0.9, 0.8, 0.3]}
    other = one | {"changes": [[0.4, 0.8], [0.3, 0.5], [0.03, 0.04]], "largest": [[1.2, 1.4], [0.6, 1.0], [0.3, 0.2]],
                   "slopes": [1.0, 0.6, 0.7], "accuracy": [0.7, 0.6, 0.5]}
    by_length, by_noise, cost = of_fk.stability([one, other]).axes
    for axis, x, expected in (
            (by_length, [0.5, 1.0], {"noise 0: slope 1.00": [0.3, 0.6], "noise 0.1: slope 0.70": [0.2, 0.4],
                                     "noise 0.4: slope 0.60": [0.02, 0.03]}),
            (by_noise, one["levels"], {"|d| = 0.5": [1.1, 0.7, 0.2], "|d| = 1": [1.4, 1.1, 0.2]})):
        shown = {line.get_label(): line for line in axis.get_lines()}
        assert list(shown) == list(expected) == [text.get_text() for text in axis.get_legend().get_texts()]
        for name, values in expected.items():
            assert shown[name].get_xdata() == pytest.approx(x) and shown[name].get_ydata() == pytest.approx(values)
        assert axis.get_yscale() == "log" and axis.get_ylabel()
    (line,) = cost.get_lines()
    assert line.get_ydata() == pytest.approx([80, 70, 40]) and by_length.get_xscale() == "log"


def test_descent_figure_shows_what_was_followed():
    common = {"step": [0, 1, 2], "gradient_norm": [1.0, 2.0, 0.5], "longest_lr": [0.4, 0.3, 0.2]}
    followed = {label: pandas.DataFrame(common | {"lagrangian": [3.0, 2.0, last]})
                for label, last in (("falls", 1.0), ("rises", 5.0))}
    figure = of_fk.descent_paths(followed, {"falls": 0.1, "rises": 0.6}, pandas.Series([9.0, 8.0, 7.0]))
    lagrangian, gradient, lr = figure.axes
    assert [line.get_ydata().tolist() for line in lagrangian.get_lines()] == [[3, 2, 1], [3, 2, 5]]
    *smallest, bound = gradient.get_lines()
    assert [line.get_xydata().tolist() for line in smallest] == [[[1, 1], [2, 1], [3, 0.5]]] * 2  # it never rises
    assert bound.get_xydata().tolist() == [[1, 9], [2, 8], [3, 7]]
    assert [line.get_ydata().tolist() for line in lr.get_lines()] == [[0.4, 0.3, 0.2]] * 2
    circles = [marks for marks in lr.collections if len(marks.get_offsets()) == 3]
    assert [marks.get_offsets().tolist() for marks in circles] == [
        [[step, taken] for step in range(3)] for taken in (0.1, 0.6)]
    for line, marks in zip(lr.get_lines(), circles, strict=True):
        assert to_rgb(line.get_color()) == tuple(marks.get_edgecolors()[0][:3])
    assert said(figure)[:3] == ["falls", "rises", "our bound, first path"]
    alike = of_fk.descent_paths(followed, {"falls": 0.1, "rises": 0.1}, pandas.Series([9.0, 8.0, 7.0])).axes[2]
    (circles,) = [marks for marks in alike.collections if len(marks.get_offsets()) == 3]
    assert tuple(circles.get_edgecolors()[0][:3]) == to_rgb(of_fk.SEVERAL)


def test_the_bound_that_says_nothing_is_shaded():
    rows = path("magnitude", {100: [0.5], 10: [0.8], 1: [0.3]}).assign(col="two digits", factor=100)
    figure = of_theory.linear_classifiers(rows, (30.0, 5.0))
    (span,) = figure.axes[0].patches
    low, high = sorted((span.get_x(), span.get_x() + span.get_width()))
    assert (low, high) == (5, 30) and "bound" in said(figure)[-1]
    assert not of_theory.linear_classifiers(rows, None).axes[0].patches


def test_radii_are_drawn_in_the_order_of_deepfools():
    frame = pandas.DataFrame([{"label": label, "measured": name, "image": image, "radius": radius * factor}
                              for label, factor in (("dense", 1), ("pruned", 10))
                              for name, values in (("bound", [0.1, 0.3, 0.2]), ("DeepFool", [2.0, 1.0, 3.0]))
                              for image, radius in enumerate(values)])
    figure = of_theory.radius_order(frame)
    for axis, factor in zip(figure.axes, (1, 10), strict=True):
        points = sorted(map(tuple, np.round(axis.collections[0].get_offsets().tolist(), 6)))
        assert points == [(1, pytest.approx(0.3 * factor)), (1, pytest.approx(factor)),
                          (2, pytest.approx(0.1 * factor)), (2, pytest.approx(2 * factor)),
                          (3, pytest.approx(0.2 * factor)), (3, pytest.approx(3 * factor))]
        assert axis.get_yscale() == "log"
    assert figure.axes[0].get_ylabel() == "l2 radius" and "DeepFool" in figure.axes[0].get_xlabel()
    assert said(figure) == ["bound", "DeepFool"]
    without = frame[(frame["measured"] == "bound") & (frame["label"] == "dense")]
    points = of_theory.radius_order(without).axes[0].collections[0].get_offsets()
    assert sorted(points.tolist()) == [[1, 0.1], [2, 0.2], [3, 0.3]]  # the last way of measuring orders


@pytest.fixture
def masks():
    """A `RandomMasks` result of two layers, with a bound for one of two norms; the last mean is less than two
    deviations from zero."""
    return {"levels": [0.1, 0.5, 0.98], "joint": {"l2": [0.9, 0.5, 0.02], "linf": [0.8, 0.3, 0.01]},
            "joint_sd": {"l2": [0.01, 0.1, 0.05], "linf": [0.0, 0.0, 0.0]},
            "single": {"1": {"l2": [0.95, 0.7, 0.2], "linf": [0.9, 0.6, 0.1]},
                       "3": {"l2": [0.96, 0.8, 0.3], "linf": [0.95, 0.7, 0.2]}},
            "magnitude": {"l2": [1.0, 0.9, 0.3], "linf": [1.0, 0.8, 0.2]}, "explicit": {"linf": [1e4, 0.6, 0.03]}}


def test_mask_ratios_draw_every_line_of_the_result(masks):
    figure = of_theory.mask_ratios(masks, {"l2": "spectral", "linf": "row sums"})
    *names, bound, band = said(figure)
    assert len(names) == 4 and "bound" in bound and "deviations" in band
    for axis, norm in zip(figure.axes, ("l2", "linf"), strict=True):
        expected = [masks["joint"][norm], masks["magnitude"][norm], masks["single"]["1"][norm],
                    masks["single"]["3"][norm]]
        found = drawn(axis, *names)
        for name, values in zip(names, expected, strict=True):
            np.testing.assert_allclose(found[name], list(zip([2, 50, 90], values[::-1], strict=True)))
        assert axis.get_xscale() == axis.get_yscale() == "log" and axis.get_xlabel() == "weights removed [%]"
    limits = figure.axes[1].get_ylim()
    assert limits[1] < 100 and limits[0] < 0.01  # the bound leaves the axis; what is measured does not
    assert figure.axes[1].texts[0].get_text() == "the bound begins at 10,000"
    assert len({line.get_marker() for line in figure.axes[0].get_lines()}) == 4


def test_the_band_of_mask_ratios_stays_on_a_logarithmic_axis(masks):
    axis = of_theory.mask_ratios(masks, {"l2": "spectral"}).axes[0]
    for left, low, high in ((90, 0.88, 0.92), (50, 0.3, 0.7), (2, 0.0002, 0.12)):
        assert spans(axis, "FillBetween", left) == [pytest.approx((low, high))]


def test_rankings_show_means_intervals_and_ranks():
    right = {"RSR": np.ones((2, 50)), "IWI": np.zeros((2, 50)), "lasso": np.tile([0, 1], (2, 25))}
    table = estimates.ranking(right)
    dense = {"cut": pandas.Series({"mean": 70.0, "low": 65.0, "high": 72.0})}
    figure = contest_plots.rankings({"cut": table, "other": table}, dense, "x [%]")
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["RSR", "lasso", "IWI"]
    assert axis.yaxis_inverted()  # the best on top
    marks = [c for c in axis.collections if type(c).__name__ == "PathCollection"]
    assert [mark.get_offsets().tolist()[0] for mark in marks] == [[100, 0], [50, 1], [0, 2]]
    assert [tuple(mark.get_facecolors()[0][:3]) for mark in marks] == [
        to_rgb(styles.of([name])[name].colour) for name in table.index]
    bars = [c.get_segments()[0].tolist() for c in axis.collections if type(c).__name__ == "LineCollection"]
    assert bars == [[[row["low"], place], [row["high"], place]] for place, (_, row) in enumerate(table.iterrows())]
    assert [text.get_text() for text in axis.texts] == ["1 to 1", "2 to 2", "3 to 3", "rank"]
    assert list(axis.lines[0].get_xdata()) == [70, 70] and said(figure) == ["dense network, with its 95 % interval"]
    (span,) = axis.patches
    assert (span.get_x(), span.get_width()) == (65, 7)
    assert not figure.axes[1].lines and not figure.axes[1].patches  # where it answered other images


def test_fronts_join_what_nothing_beats_and_name_it():
    points = pandas.DataFrame({"method": ["IWI", "RSR", "lasso", "one shot"],
                               "cut": ["weights", "channels", None, "weights"], "size": [1.0, 2.0, 3.0, 3.0],
                               "pgd": [0.52, 0.5, 0.55, 0.1]})
    figure = contest_plots.fronts(points, {"size": ("size", points[:2])}, "pgd", "y")
    axis = figure.axes[0]
    assert axis.get_title() == "front: IWI, RSR" and list(axis.lines[0].get_ydata()) == [52, 50]
    lines, *scatter = axis.collections
    marks = [mark.get_offsets().tolist()[0] for mark in scatter]
    for (place, _), ((left, _), (right, _)), size in zip(marks, lines.get_segments(), points["size"], strict=True):
        assert {round(left, 6), round(right, 6)} == {round(size, 6), round(place, 6)}  # leads to where it belongs
    assert [y for _, y in marks][:3] == pytest.approx([52, 50, 55])
    assert [x for x, _ in marks[:2]] == pytest.approx([1, 2])  # the front stays where it is
    assert marks[3][1] == axis.get_ylim()[0] + 3 > 10 and axis.texts[0].get_text() == "10"
    assert marks[3][1] < axis.lines[1].get_ydata()[0] < 50  # a dotted line stands between
    assert min(axis.get_yticks()) > axis.lines[1].get_ydata()[0]
    faces = [mark.get_facecolors()[0].tolist() for mark in scatter]
    assert faces[1] == [1, 1, 1, 1] != faces[0]
    assert said(figure)[-2:] == ["hollow: channels cut", "below: not to scale, value beneath"]


def test_of_many_marks_a_tenth_at_most_stands_at_the_edge():
    """Five levels of twenty methods: at the deepest most lie below the second lowest of all."""
    rows = [{"method": f"m{i:02}", "cut": "weights", "size": 1.0 + level, "pgd": (10 + 15 * level + i / 2) / 100}
            for level in range(5) for i in range(20)]
    points = pandas.DataFrame(rows)
    figure = contest_plots.fronts(points, {"size": ("size", points[-1:])}, "pgd", "y")
    assert 1 <= len(figure.axes[0].texts) <= 10 and figure.get_size_inches()[1] > 10


def test_marks_that_would_cover_each_other_stand_side_by_side():
    x, y = pandas.Series([10.0, 10.0, 10.0, 100.0]), pandas.Series([50.0, 50.1, 90.0, 50.0])
    places = contest_plots.apart(x, y, first=np.array([True, False, False, False]))
    assert places[0] == pytest.approx(10) and 10.5 < places[1] < 20  # the second makes room for the first
    assert places[2:] == pytest.approx([10, 100])
    *known, unknown = contest_plots.apart(pandas.Series([1.0, 2, np.nan]), pandas.Series([50.0, 50, 60]),
                                          np.array([True, False, False]))
    assert known == pytest.approx([1, 2]) and math.isnan(unknown)


def test_answers_are_blue_where_they_are_right():
    picture, sure, unsure = torch.zeros(1, 8, 8), torch.eye(3)[1], torch.tensor([0.6, 0.3, 0.1])
    figure = of_start.answers({"net": [(picture, sure), (picture, unsure)]}, ["one", "two"], 1, "abc")
    told = [(axis.get_xlabel(), axis.xaxis.label.get_color()) for axis in figure.axes]
    assert told == [("b, 100 %", styles.BLUE), ("wrong: a, 60 %", styles.ORANGE)]


def test_an_attacked_image_shows_the_change_and_every_class():
    image, chances = torch.full((1, 4, 4), 0.5), torch.tensor([0.1, 0.7, 0.2])
    figure = of_start.attacked_image(image, {"net": (image + 0.1, chances)}, 0, "abc", reach=0.4)
    seen, change, bars = figure.axes[:3]
    assert float(change.collections[0].get_array().min()) == pytest.approx(0.1)
    assert float(seen.collections[0].get_array().max()) == pytest.approx(0.6)
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([10, 70, 20])
    assert bars.get_title() == "b: fooled" and [t.get_text() for t in bars.texts] == ["", "70 %", ""]
    assert "pixel lowered" in said(figure)


def test_a_bar_of_one_hundred_percent_does_not_reach_its_label():
    image = torch.full((1, 4, 4), 0.5)
    figure = of_start.attacked_image(image, {"net": (image, torch.eye(3)[0])}, 0, "abc", reach=0.4)
    figure.canvas.draw()
    bars = figure.axes[2]
    label, bar = bars.texts[0].get_window_extent(), bars.patches[0].get_window_extent()
    assert bar.x1 < label.x0 and label.x1 < bars.get_window_extent().x1


def test_the_change_of_a_photograph_is_enlarged_around_grey():
    image, chances = torch.full((3, 4, 4), 0.5), torch.tensor([0.1, 0.7, 0.2])
    changed = image.clone()
    changed[0, 0, 0] += 0.05
    figure = of_start.attacked_image(image, {"net": (changed, chances)}, 1, "abc", reach=0.1)
    seen, change = (axis.images[0].get_array() for axis in figure.axes[:2])
    assert np.allclose(seen[0, 0], [0.55, 0.5, 0.5])
    assert np.allclose(change[0, 0], [0.75, 0.5, 0.5]) and (change[1:] == 0.5).all()
    assert figure.axes[1].get_title() == "change, 5 times enlarged" and "pixel lowered" not in said(figure)


def test_surfaces_share_their_colours_and_frame_where_no_pixel_moves_further():
    steps = np.linspace(-0.3, 0.3, 5)
    planes = {name: {"steps": steps, "loss": np.add.outer(steps, steps) * factor + 1, "label": 0,
                     "answer": (np.add.outer(steps, steps) > 0.2).astype(int)} for name, factor in (("a", 1), ("b", 3))}
    figure = of_start.surfaces(planes, radius=0.1)
    first, second = figure.axes[:2]
    assert first.collections[0].get_clim() == second.collections[0].get_clim()
    corners = np.abs(np.array(first.lines[1].get_data()))  # how far the two directions move a pixel together
    assert np.allclose(corners.sum(0), 0.1) and (corners.max(1) == 0.1).all()
    assert said(figure) == ["the image", "radius 0.1", "the answer is wrong"]


def test_weights_left_draws_pixels_and_where_we_are():
    rows = [{"net": net, "share": share, "metric": metric, "value": 1 - share - 0.1 * (metric == "attacked")}
            for net in ("a", "b") for share in (0, 0.5) for metric in ("clean", "attacked")]
    figure = of_start.weights_left({"a": np.full((4, 4), 7), "b": np.eye(4)}, pandas.DataFrame(rows), share=0.5,
                                   units=9)
    *curves, line = figure.axes[2].lines
    assert said(figure) == ["a, clean", "a, attacked", "b, clean", "b, attacked"]
    assert [list(curve.get_ydata()) for curve in curves] == [[100, 50], pytest.approx([90, 40])] * 2
    assert list(curves[0].get_xdata()) == [0, 50] and list(line.get_xdata()) == [50, 50]
    assert [axis.collections[0].get_clim() for axis in figure.axes[:2]] == [(0, 9), (0, 9)]
    assert figure.axes[0].collections[0].get_array().max() == 7
