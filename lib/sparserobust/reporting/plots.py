"""Tidy frame in, figure out, drawn with seaborn. A method looks alike in all figures
(`reporting.styles`)."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from textwrap import fill
from typing import Any

import numpy as np
import pandas
import seaborn
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from sparserobust import imagewise
from sparserobust.reporting import styles
from sparserobust.reporting.axes import (
    facets,
    from_image_to_answer,
    grid,
    handle,
    legend,
    log_ticks,
    picture,
    removed_axis,
    styled,
)
from sparserobust.reporting.estimates import binomial_interval

MARKED = "*X"  # symbols of what is marked on lines, in this order
BAND, SEEDS = "range over seeds", "single seeds"
INTERVAL = "one seed: 95 % interval of its images"
mark = partial(Line2D, [], [], linestyle="none")  # in a legend
KEYS = {BAND: Patch(color="0.8", label=BAND),
        INTERVAL: mark(color="0.4", marker="|", markersize=12, label=INTERVAL),
        SEEDS: mark(color="0.6", marker="o", markersize=4, label=SEEDS)}


@styled
def lines(data: pandas.DataFrame, x: str = "level", y: str = "value", hue: str = "series",
          row: str | None = None, col: str | None = None, *, at: str | None = None,
          factor: float = 1, xlabel: str = "", ylabel: str = "", removed: bool = False,
          xlog: bool = False, ylog: Sequence[str] | bool = False, spread: str = "band",
          markers: bool = True, reported: pandas.DataFrame | None = None, wrap: int | None = None,
          size: tuple[float, float] = (3.4, 2.7), share: Mapping[str, Any] | None = None,
          **kwargs) -> Figure:
    """`y` against `x`, a line per `hue`, a panel per `row` and `col`: means over the rows that are
    equal in `at` (`x`, if it is not given), which differ in their seed.

    `spread` shows the seeds: "band" spans them, "seeds" are small marks, "none". A point of one
    seed has the interval of its images instead, from `count` and `total` or from `each`. A line
    needs three points: fewer are not joined. `y` is multiplied by the column `factor`, or else by
    the argument. Rows with a name in the column `mark` are marked; `reported` rows (with the same
    columns) are hollow. `removed`: `x` is what is left [%], on a logarithmic axis labelled with
    what is removed. `ylog`: the y axis is logarithmic, of all panels or of these rows or columns.
    `share` are seaborn's `sharex` and `sharey`; further arguments go to its lines."""
    at, look, keys = at or x, styles.of(data[hue]), set()
    data = data.assign(**{name: value for name, value in (("factor", factor), ("seed", 0))
                          if name not in data})
    data = data.assign(**{y: data[y].astype(float) * data["factor"]})
    marks = data["mark"].dropna().unique() if "mark" in data else ()
    symbols = dict(zip(marks, MARKED, strict=False))
    shared = {"sharex": True, "sharey": "row" if row else True} | dict(share or {})
    figure, panels = facets(data, row, col, wrap, size, **shared)
    for axis, chosen, names, first, lowest in panels:
        for name, rows in chosen.dropna(subset=[x, y]).groupby(hue, sort=False):
            keys |= _line(axis, rows, (x, y, at), look[name], spread, markers, kwargs)
            for meaning, symbol in symbols.items():
                point = rows.loc[rows["mark"] == meaning, [x, y]].mean().to_frame().T.dropna()
                seaborn.scatterplot(point, x=x, y=y, marker=symbol, color=look[name].colour,
                                    edgecolor="black", s=170, zorder=5, ax=axis)
        if reported is not None:
            _hollow(axis, _of_panel(reported, row, col, names), x, y, hue, look, factor)
        if chosen.empty:  # scales come last: seaborn's means on a logarithmic one are geometric
            axis.text(0.5, 0.5, "not measured", color="0.5", ha="center", transform=axis.transAxes)
        axis.set(xlabel=xlabel if lowest else "",
                 ylabel=fill(names[0] if row else ylabel, 28) if first else "")
    for axis, _, names, *_ in panels:
        if xlog:
            log_ticks(axis, "x", data[x].unique())
        elif removed:
            removed_axis(axis, data[x].max(), data[x].min())
        if ylog is True or (ylog and set(ylog) & set(names)):
            log_ticks(axis, "y")
    handles = [handle(name, style, markers) for name, style in look.items()]
    handles += [mark(color="0.5", marker=symbol, markeredgecolor="black", markersize=12,
                     label=meaning) for meaning, symbol in symbols.items()]
    if reported is not None:
        handles.append(mark(color="0.4", marker="o", markerfacecolor="none", markersize=8,
                            label="reported by the paper"))
    legend(figure, [*handles, *(KEYS[key] for key in KEYS if key in keys)])
    return figure


def _line(axis: Axes, rows: pandas.DataFrame, columns: tuple[str, str, str], style: styles.Style,
          spread: str, markers: bool, kwargs: dict) -> set[str]:
    """Draw one line; returns which of `KEYS` it has."""
    (x, y, at), (colour, marker, dash) = columns, style
    seeds = rows.groupby(at)["seed"].nunique()
    several = bool((seeds > 1).any())
    band, points = several and spread == "band", several and spread == "seeds"
    joined = dash != "" and (len(seeds) > 2 or not markers)
    filled = joined and bool((seeds > 1).all())  # beside a point of one seed a band has no width
    seaborn.lineplot(
        rows.assign(**{x: rows.groupby(at)[x].transform("mean")}), x=x, y=y, color=colour, ax=axis,
        marker=marker if markers and marker else None, linestyle=dash if joined else "none",
        legend=False, errorbar=("pi", 100) if band and filled else None,
        err_kws={"alpha": 0.2, "linewidth": 0},
        **({"markersize": 11 if marker == "*" else 7, "zorder": 2 if marker else 3} | kwargs))
    if band and not filled:
        ranges = rows[rows[at].map(seeds) > 1].groupby(at).agg({x: "mean", y: ["min", "max"]})
        axis.vlines(ranges[x, "mean"], ranges[y, "min"], ranges[y, "max"], color=colour, alpha=0.35,
                    linewidth=8)
    if points:
        seaborn.scatterplot(rows, x=x, y=y, color=colour, marker=marker, s=18, alpha=0.45,
                            linewidth=0, ax=axis, legend=False)
    alone = rows[rows[at].map(seeds) == 1].drop_duplicates(at)
    bounds = np.array([interval(each) for each in alone.to_dict("records")]).reshape(-1, 2)
    bars = spread != "none" and bool(np.isfinite(bounds).any())
    if bars:
        axis.vlines(alone[x], *bounds.T, color=colour, alpha=0.6, linewidth=2)
    return {key for key, there in ((BAND, band), (SEEDS, points), (INTERVAL, bars)) if there}


def interval(row: dict) -> tuple[float, float]:
    """The 95 % interval of a measurement over its sample of images, times `factor`; nan where there
    is none: that of a rate from its counts, or else that of the mean of its values (`each`)."""
    none = np.nan, np.nan
    if not row.get("sampled", "count" in row):
        return none
    if not pandas.isna(row.get("count")) and row.get("total"):
        low, high = binomial_interval(row["count"], row["total"])
    elif not pandas.isna(row.get("each")):
        values = imagewise.unpack(row["each"])
        values = values[np.isfinite(values)]
        reach = 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
        low, high = values.mean() - reach, values.mean() + reach
    else:
        return none
    return row["factor"] * low, row["factor"] * high


def _of_panel(data: pandas.DataFrame, row: str | None, col: str | None, names: list):
    """The rows of a panel."""
    kept = [column for column in (row, col) if column]
    return data[(data[kept] == names).all(axis=1)] if kept else data


def _hollow(axis: Axes, data: pandas.DataFrame, x: str, y: str, hue: str,
            look: dict[str, styles.Style], factor: float) -> None:
    """Draw what is reported, hollow, in the colours of ours."""
    for name, rows in data.dropna(subset=y).groupby(hue, sort=False):
        colour, marker, _ = look[name]
        seaborn.lineplot(rows.assign(**{y: factor * rows[y]}), x=x, y=y, color=colour, ax=axis,
                         marker=marker, markersize=9, linestyle="none", errorbar=None, legend=False,
                         markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.5)


def along_sparsity(data: pandas.DataFrame, xlabel: str = "weights removed [%]", **kwargs) -> Figure:
    """`lines` against what is `left` [%] at each `level`; panels by the columns `row`, if there is
    one, and `col`, with units of their own. What would be a single column is laid out as a row."""
    row = "row" if "row" in data else None
    if row and data["col"].nunique() == 1:
        row, data = None, data.assign(col=data["row"])
    return lines(data, "left", row=row, col="col", at="level", removed=True, xlabel=xlabel,
                 **({} if row else {"share": {"sharey": False}}) | kwargs)


def side_by_side(data: pandas.DataFrame) -> pandas.DataFrame:
    """Rows for `along_sparsity`, moved along what is `left` so that the marks of the `series` of one `col` stand side
    by side where these have lost as much."""
    def place(series: pandas.Series) -> np.ndarray:
        codes, names = pandas.factorize(series)
        return codes - (len(names) - 1) / 2

    return data.assign(left=data["left"] * 1.04 ** data.groupby("col")["series"].transform(place))


def by_metric(data: pandas.DataFrame, columns: Mapping[str, str]) -> pandas.DataFrame:
    """The rows of some metrics, for panels: `columns` maps the heading in `col` to the metric."""
    rows = pandas.concat([data[data["metric"] == metric].assign(col=heading)
                          for heading, metric in columns.items()])
    return rows.assign(col=pandas.Categorical(rows["col"], list(columns)))


def tradeoff(data: pandas.DataFrame, x: str, columns: Mapping[str, str], xlabel: str, *,
             hue: str = "ours", count: bool = False) -> Figure:
    """Accuracies in percent (`columns` as in `by_metric`) against the metric `x` of the same runs,
    in percent too, or, if `count`, against its count on a logarithmic axis; small marks are seeds,
    large ones means over the seeds of a `level`."""
    measured = data[data["metric"] == x].drop_duplicates("run").set_index("run")
    against = measured["count"] if count else 100 * measured["value"]
    placed = data.assign(x=data["run"].map(against), level=data["level"].fillna(0))
    return lines(by_metric(placed, columns), "x", hue=hue, col="col", at="level", factor=100,
                 xlabel=xlabel, xlog=count, ylabel="accuracy [%]", spread="seeds", size=(3.9, 3.4))


def curves(x, ys: Mapping[str, Any], xlabel: str, ylabel: str, title: str = "") -> Figure:
    """Functions of one variable: `ys` maps names to values over `x`."""
    data = pandas.concat([pandas.DataFrame({"x": np.asarray(x), "y": np.asarray(y), "series": name,
                                            "panel": title}) for name, y in ys.items()])
    return lines(data, "x", "y", col="panel", xlabel=xlabel, ylabel=ylabel, markers=False,
                 size=(6, 3.4))


def layerwise(data: pandas.DataFrame, x: str = "layer", hue: str = "series",
              col: str | None = None, **kwargs) -> Figure:
    """Values against the name of a layer, `x`, from image to answer."""
    order = from_image_to_answer(data[x])
    figure = lines(data.assign(number=data[x].map(order.index)), "number", hue=hue, col=col,
                   xlabel="layer, from image to answer", **kwargs)
    for axis in figure.axes:
        axis.set_xticks(range(len(order)), order, rotation=90, fontsize=8)
    return figure


def weight_histograms(data: pandas.DataFrame, results: Sequence[dict], hue: str) -> Figure:
    """Share of weights per bin, mean over seeds, a line for each value of `hue`: all, and near
    zero. `results` are `WeightHistogram` results, one for each row of `data`."""
    limit, parts = results[0]["limit"], []
    edges = np.linspace(-limit, limit, len(results[0]["histogram"]) + 1)
    for name, result in zip(data[hue], results, strict=True):
        counts = np.array(result["histogram"])
        bins = pandas.DataFrame({"weight": (edges[:-1] + edges[1:]) / 2, "series": name,
                                 "value": 100 * counts / counts.sum()})
        near = bins[bins["weight"].abs() <= limit / 5]
        parts += [bins.assign(part="all (outer bins hold the rest)"), near.assign(part="near zero")]
    figure = lines(pandas.concat(parts), "weight", col="part", xlabel="weight", spread="none",
                   ylabel="share of weights per bin [%]", markers=False, drawstyle="steps-mid",
                   size=(4.8, 3.2), share={"sharex": False, "sharey": False})
    for axis in figure.axes:
        axis.locator_params(axis="x", nbins=5)
    return figure


@styled
def scatter(data: pandas.DataFrame, y: str, hue: str, columns: Mapping[str, str],
            ylabel: str, log: Collection[str] = ()) -> Figure:
    """A mark for each row, `y` in percent: a panel per heading in `columns`, which maps it to a
    column of `data`; the axes of columns in `log` are logarithmic."""
    look = styles.of(data[hue])
    figure, (axes,) = grid(1, len(columns), (3.9 * len(columns), 4.4), sharey=True)
    for axis, (heading, column) in zip(axes, columns.items(), strict=True):
        seaborn.scatterplot(data.assign(**{y: 100 * data[y]}), x=column, y=y, hue=hue, style=hue,
                            palette={name: style.colour for name, style in look.items()},
                            markers={name: style.marker for name, style in look.items()},
                            s=55, alpha=0.8, legend=False, ax=axis)
        axis.set(xlabel=heading, ylabel=ylabel)
        if column in log:
            log_ticks(axis, "x")
    legend(figure, [handle(name, style._replace(dash="")) for name, style in look.items()])
    return figure


@styled
def images(pictures: Sequence[torch.Tensor], titles: Sequence[str], label: str = "value") -> Figure:
    """Single-channel pictures (h, w) side by side, in one scale with its bar, which has the `label`:
    grey, or red and blue where values are negative."""
    limit = max(float(p.detach().abs().max()) for p in pictures)
    signed = any(float(p.detach().min()) < 0 for p in pictures)
    figure, (axes,) = grid(1, len(pictures), (2.6 * len(pictures) + 0.8, 2.9))
    for axis, shown, title in zip(axes, pictures, titles, strict=True):
        mesh = picture(axis, shown.detach(), "RdBu_r" if signed else "gray",
                       vmin=-limit if signed else 0, vmax=limit)
        axis.set_title(title)
    figure.colorbar(mesh, ax=axes, shrink=0.7, label=label)
    return figure


END = {"decrease": 0, "increase": 1, "no worse": 1, "always": 1}  # of an axis, at which a claim holds


@styled
def claims(ledger: pandas.DataFrame) -> Figure:
    """The lines of a ledger that were run, in words, by unit: measured with its 95 % interval,
    reported (hollow), and shaded where the claim holds. Colour and marker tell the verdict. Points
    lie on an axis that is linear up to ten and logarithmic beyond (dotted lines), so that one large
    effect does not hide the others."""
    ran = ledger[ledger["n_seeds"] > 0]
    if ran.empty:
        figure, ((axis,),) = grid(1, 1, (6, 1))
        axis.text(0.5, 0.5, "no claim was run at this scale", ha="center", va="center")
        axis.set_axis_off()
        return figure
    parts = dict(list(ran.groupby("unit", sort=False)))
    figure, axes = grid(len(parts), 1, (10, 0.42 * len(ran) + 0.9 * len(parts) + 0.8),
                        height_ratios=[len(rows) + 0.5 for rows in parts.values()])
    palette, markers = ({v: look[i] for v, look in styles.VERDICTS.items()} for i in (0, 1))
    for (axis,), (unit, rows) in zip(axes, parts.items(), strict=True):
        places = np.arange(len(rows))
        axis.axvline(0, color="0.3", linewidth=1)
        axis.hlines(places, rows["low"], rows["high"], colors=rows["verdict"].map(palette),
                    linewidth=3)
        seaborn.scatterplot(rows, x="ours", y=places, hue="verdict", style="verdict", ax=axis,
                            palette=palette, markers=markers, s=75, legend=False, zorder=3)
        axis.scatter(rows["reported"], places, s=75, facecolors="none", edgecolors="black",
                     zorder=4)
        if unit == "percentage points":
            for bend in (-10, 10):
                axis.axvline(bend, color="0.3", linewidth=1.5, linestyle=":", zorder=1)
            ticks = [-50, -10, -5, 0, 5, 10, 50]
            axis.set_xscale("symlog", linthresh=10, linscale=1.5)
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.xaxis.set_minor_locator(NullLocator())
        ends = axis.get_xlim()
        for place, said, threshold in zip(places, rows["direction"], rows["threshold"], strict=True):
            if said in END:
                axis.fill_betweenx([place - 0.42, place + 0.42], threshold, ends[END[said]],
                                   color="0.93", linewidth=0, zorder=0)
        axis.set_xlim(ends)
        beyond = "; logarithmic beyond the dotted lines" if unit == "percentage points" else ""
        axis.set(xlabel=f"effect [{unit}{beyond}]", ylabel="", ylim=(len(rows) - 0.4, -0.6))
        axis.set_yticks(places, [fill(words, 62) for words in rows["words"]], fontsize=10)
    shown: list[Artist] = [mark(color=palette[verdict], marker=markers[verdict], markersize=8, label=verdict)
             for verdict in palette if verdict in set(ran["verdict"])]
    if ran["direction"].isin(END).any():
        shown.append(Patch(color="0.93", label="where the claim holds"))
    if ran["reported"].notna().any():
        shown.append(mark(color="black", marker="o", markerfacecolor="none", markersize=8,
                          label="reported by the paper"))
    legend(figure, shown)
    return figure
