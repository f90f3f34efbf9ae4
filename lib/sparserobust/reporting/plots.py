"""Tidy frame in, figure out. Colours are told apart by colour-blind readers; everything is legible at half size."""

from collections.abc import Sequence
from itertools import cycle
from textwrap import wrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from sparserobust.reporting.estimates import binomial_interval

# the palette that seaborn calls "colorblind"; importing seaborn for it takes a second of every notebook
PALETTE = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"]
MARKERS = "osD^vP"
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
STYLE: dict[Any, Any] = {
    "font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "0.9", "axes.axisbelow": True, "legend.frameon": False, "figure.dpi": 100,
    "lines.linewidth": 2, "svg.hashsalt": "sparserobust"}


def subplots(columns: int = 1, width: float = 5.0, height: float = 3.8, **kwargs) -> tuple[Figure, np.ndarray]:
    """A figure with one row of axes of this width and height."""
    figure, axes = grid(1, columns, (width * columns, height), **kwargs)
    return figure, axes[0]


def grid(rows: int, columns: int, size: tuple[float, float], **kwargs) -> tuple[Figure, np.ndarray]:
    """A figure of this size with rows of axes, closed to pyplot, so that a notebook shows it once: where it is
    returned."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **kwargs)
    plt.close(figure)
    return figure, axes


def _bare(axis) -> None:
    """An axis for a picture: no ticks, no grid."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)


def _log_ticks(axis) -> None:
    """Ticks of a logarithmic axis of counts: 1, 2, 5, 10, ... with k and M for thousands and millions."""
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(NullFormatter())


def curves(x, ys: dict, xlabel: str, ylabel: str, title: str = "") -> Figure:
    """Functions of one variable on one axis: `ys` maps a legend label to values over `x`."""
    figure, (axis,) = subplots(width=6)
    for (label, y), colour, style in zip(ys.items(), PALETTE, LINES, strict=False):
        axis.plot(x, y, style, color=colour, label=label)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axis.legend()
    return figure


def images(pictures: Sequence[torch.Tensor], titles: Sequence[str]) -> Figure:
    """Single-channel pictures (h, w) side by side, in one grey scale with its bar."""
    limit = max(float(p.detach().abs().max()) for p in pictures)
    low = -limit if any(float(p.detach().min()) < 0 for p in pictures) else 0
    figure, axes = subplots(len(pictures), width=2.6, height=2.9)
    for axis, picture, title in zip(axes, pictures, titles, strict=True):
        shown = axis.imshow(picture.detach(), cmap="gray" if low == 0 else "RdBu_r", vmin=low, vmax=limit)
        axis.set_title(title, fontsize=11)
        _bare(axis)
    figure.colorbar(shown, ax=axes, shrink=0.7, label="value")
    return figure


def weight_histograms(frame: pandas.DataFrame, results: Sequence[dict], hue: str) -> Figure:
    """Share of weights per bin, mean over seeds, one line for each value of `hue`; the second axis zooms on zero.
    `results` are `WeightHistogram` results, one per row of `frame`."""
    figure, axes = subplots(2, width=5.2)
    limit = results[0]["limit"]
    shares = np.array([np.array(r["histogram"]) / sum(r["histogram"]) * 100 for r in results])
    edges = np.linspace(-limit, limit, shares.shape[1] + 1)
    for axis, zoom in zip(axes, (limit, limit / 5), strict=True):
        for value, colour, style in zip(frame[hue].unique(), PALETTE, LINES, strict=False):
            mean = shares[(frame[hue] == value).to_numpy()].mean(0)
            axis.stairs(mean, edges, color=colour, linestyle=style, linewidth=2, label=value)
        axis.set(xlim=(-zoom, zoom), xlabel="weight", ylabel="share of weights per bin [%]")
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axes[0].set_title("all (outer bins hold the rest)")
    axes[1].set_title("near zero")
    axes[0].legend(title=hue)
    return figure


def tradeoff(frame: pandas.DataFrame, x: str, y: Sequence[str], xlabel: str, titles: Sequence[str],
             hue: str = "ours", percent: bool = True) -> Figure:
    """Accuracy in percent against sparsity in percent (or, not `percent`, against a count on a logarithmic axis), one
    panel per accuracy in `y`: small marks are seeds, large ones means joined in order of sparsity. Bars: 95 % binomial
    interval of the test images, at the mean count."""
    figure, axes = subplots(len(y), width=4.4, height=4.0, sharex=True)
    frame = frame.assign(level=frame["level"].fillna(0))
    wide = frame.pivot(index=[hue, "level", "seed"], columns="metric", values="value").reset_index()
    if percent:
        wide[x] *= 100
    else:
        counts = frame[frame["metric"] == x].set_index([hue, "level", "seed"])["count"]
        wide[x] = counts.loc[pandas.MultiIndex.from_frame(wide[[hue, "level", "seed"]])].to_numpy()
    order = list(frame[hue].unique())
    for axis, metric, title in zip(axes, y, titles, strict=True):
        for group, colour, marker in zip(order, PALETTE, MARKERS, strict=False):
            chosen = wide[wide[hue] == group]
            axis.plot(chosen[x], 100 * chosen[metric], marker, color=colour, alpha=0.35, markersize=4)
            means = chosen.groupby("level")[[x, metric]].mean().sort_values(x)
            bounds = _bounds(frame[(frame[hue] == group) & (frame["metric"] == metric)], means.index)
            bars = np.abs(bounds - means[metric].to_numpy()) * 100
            axis.errorbar(means[x], 100 * means[metric], bars, marker=marker, color=colour, markersize=8,
                          capsize=3, label=group)
        axis.set(xlabel=xlabel, title=title)
        if not percent:
            axis.set_xscale("log")
            _log_ticks(axis)
    axes[0].set_ylabel("accuracy [%]")
    axes[0].legend()
    return figure


def _bounds(frame: pandas.DataFrame, levels: pandas.Index) -> np.ndarray:
    """95 % binomial intervals (2, levels) of the test images, at the mean count over seeds, at each level. Seeds add no
    images: all answer the same ones."""
    means = frame.groupby("level")[["count", "total"]].mean().loc[levels]
    return np.array([binomial_interval(c, t) for c, t in means.itertuples(index=False)]).T


def bands(frame: pandas.DataFrame, metrics: Sequence[str], xlabel: str, titles: Sequence[str], ylabel: str,
          hue: str = "ours", reported: pandas.DataFrame | None = None, log: bool = False, bars: bool = False) -> Figure:
    """Rates in percent against `level` (`log`: on a logarithmic axis), one panel per metric: means over seeds, the band
    spans the seeds; `bars`: with 95 % binomial intervals of the test images, at the mean count. `reported` has `level`,
    `hue`, what it is called in print (`net`), and percentages in columns named like the metrics; they are drawn
    hollow."""
    figure, axes = subplots(len(metrics), width=max(3.7, 9 / (len(metrics) + 1)), height=3.9, sharex=True)
    for axis, metric, title in zip(axes, metrics, titles, strict=True):
        for group, colour, marker in zip(frame[hue].unique(), PALETTE, MARKERS, strict=False):
            by_level = frame[(frame["metric"] == metric) & (frame[hue] == group)].groupby("level")["value"]
            mean, low, high = (100 * getattr(by_level, f)() for f in ("mean", "min", "max"))
            axis.fill_between(mean.index, low, high, color=colour, alpha=0.2, linewidth=0)
            axis.plot(mean.index, mean, marker=marker, color=colour, label=group)
            if bars:
                bounds = _bounds(frame[(frame["metric"] == metric) & (frame[hue] == group)], mean.index)
                axis.vlines(mean.index, *(100 * bounds), color=colour, alpha=0.5, linewidth=1)
            printed = frame[:0] if reported is None else reported[reported[hue] == group]
            if len(printed):
                axis.plot(printed["level"], printed[metric], marker=marker, color=colour, markerfacecolor="none",
                          linestyle=":", markersize=9, label=f"{printed['net'].iloc[0]}, reported")
        axis.set(xlabel=xlabel, title=title)
        if log:
            axis.set_xscale("log")
            axis.set_xticks(sorted(frame["level"].unique()))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel(ylabel)
    axes[0].legend()
    return figure


def sorted_norms(norms: dict[str, np.ndarray]) -> Figure:
    """Channel norms of several networks, each sorted from large to small; on the right with a logarithmic axis, where
    channels that are exactly zero lie on the lowest line."""
    figure, axes = subplots(2, width=5.2)
    smallest = min(n[n > 0].min() for n in norms.values())
    floor = 10.0 ** (np.floor(np.log10(smallest)) - 1)
    for (label, n), colour, style in zip(norms.items(), PALETTE, LINES, strict=False):
        ordered = np.sort(n)[::-1]
        share = 100 * np.arange(1, len(n) + 1) / len(n)
        axes[0].plot(share, ordered, style, color=colour, label=label)
        axes[1].plot(share, np.maximum(ordered, floor), style, color=colour, label=label)
    axes[0].set(xlabel="channels, largest first [%]", ylabel="l2 norm of a channel", title="all")
    axes[1].set(xlabel="channels, largest first [%]", title="the same, zoomed on small norms", yscale="log")
    axes[1].axhline(floor, color="0.3", linewidth=1)
    axes[1].annotate("exactly zero", (2, floor), xytext=(0, 4), textcoords="offset points")
    axes[0].legend()
    return figure


def layers(results: dict[str, dict]) -> Figure:
    """One layer of several networks, from `LayerWeights` results by label: the l2 norms of its kernels as a picture in
    one colour scale, and the histograms of its weights."""
    figure, axes = subplots(len(results) + 1, width=4.2, height=3.9)
    highest = max(max(map(max, r["picture"])) for r in results.values())
    for axis, (label, result) in zip(axes, results.items(), strict=False):
        shown = axis.imshow(result["picture"], vmin=0, vmax=highest, cmap="viridis")
        axis.set(title=label, xlabel="input channel", ylabel="output channel")
        axis.grid(False)
    figure.colorbar(shown, ax=axes[:-1], shrink=0.75, label="l2 norm of a kernel")
    for (label, result), colour, style in zip(results.items(), PALETTE, LINES, strict=False):
        counts, limit = np.array(result["histogram"]), result["limit"]
        edges = np.linspace(-limit, limit, len(counts) + 1)
        axes[-1].stairs(100 * counts / counts.sum(), edges, color=colour, linestyle=style, linewidth=2, label=label)
    axes[-1].set(xlabel="weight", ylabel="share of weights per bin [%]", title="histogram (outer bins: the rest)")
    axes[-1].legend()
    return figure


def layers_over_epochs(histories: dict[str, list[dict]], key: str, initial: float, ylabel: str) -> Figure:
    """What `history` of records holds for each layer under `key` against epochs, a panel per label, from the value with
    which all layers begin: dark lines are layers near the image, light ones near the answer."""
    figure, axes = subplots(len(histories), width=4.6, height=4.0, sharey=True)
    for axis, (label, history) in zip(axes, histories.items(), strict=True):
        layers = list(history[0][key])
        for number, layer in enumerate(layers):
            values = [initial, *(epoch[key][layer] for epoch in history)]
            axis.plot(range(len(values)), values, color=plt.get_cmap("viridis")(0.95 * number / (len(layers) - 1)))
        axis.set(title=label, xlabel="epochs", ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel(ylabel)
    bar = plt.cm.ScalarMappable(plt.Normalize(1, len(layers)), "viridis")
    figure.colorbar(bar, ax=axes, label="layer, from image to answer", ticks=MaxNLocator(6, integer=True))
    return figure


def scatter(frame: pandas.DataFrame, columns: dict[str, str], y: str, ylabel: str, hue: str) -> Figure:
    """A panel per heading in `columns`, which maps it to a column of `frame`: one mark per row, `y` in percent against
    that column, colour and shape by `hue`."""
    figure, axes = subplots(len(columns), width=4.0, height=4.0, sharey=True)
    for axis, (heading, column) in zip(axes, columns.items(), strict=True):
        for value, colour, marker in zip(frame[hue].unique(), PALETTE, MARKERS, strict=False):
            rows = frame[frame[hue] == value]
            axis.plot(rows[column], 100 * rows[y], marker, color=colour, alpha=0.7, markersize=6, label=value)
        axis.set(xlabel=heading)
    axes[0].set_ylabel(ylabel)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def layerwise(panels: dict[str, dict[str, dict[str, float]]], log: bool = False) -> Figure:
    """One panel per quantity, one line per network: values by layer, in the order of the layers; `log`: on logarithmic
    axes that panels share."""
    figure, axes = subplots(len(panels), width=4.6, height=4.4, sharey=log)
    for axis, (title, networks) in zip(axes, panels.items(), strict=True):
        for (label, values), colour, style, marker in zip(networks.items(), PALETTE, LINES, MARKERS, strict=False):
            axis.plot(range(1, len(values) + 1), list(values.values()), linestyle=style, color=colour, marker=marker,
                      markersize=5, label=label)
        axis.set(title=title, xlabel="layer, from image to answer")
        axis.set(yscale="log") if log else axis.set(ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend()
    return figure


def stability(results: Sequence[dict]) -> Figure:
    """`Stability` results of several seeds, averaged: the mean change of the output over images against the length of
    the push, a line per noise level; the largest against the noise level, a line per length; the noise's cost."""
    figure, axes = subplots(3, width=4.4, height=4.0)
    levels, lengths = results[0]["levels"], results[0]["lengths"]
    changes, largest = (np.mean([r[key] for r in results], axis=0) for key in ("changes", "largest"))
    styles = list(zip(PALETTE, MARKERS, strict=False))
    for level, row, (colour, marker) in zip(levels, changes, styles, strict=False):
        slopes = [r["slopes"][levels.index(level)] for r in results]
        slope = f": slope {np.mean(slopes):.2f}" if None not in slopes else ""
        axes[0].loglog(lengths, row, marker=marker, color=colour, label=f"noise {level:g}{slope}")
    for length, column, (colour, marker) in zip(lengths, largest.T, styles, strict=False):
        axes[1].plot(levels, column, marker=marker, color=colour, label=f"|d| = {length:g}")
    axes[2].plot(levels, 100 * np.mean([r["accuracy"] for r in results], axis=0), "o-", color=PALETTE[0])
    axes[0].set(xlabel="length of the push, |d|", ylabel="|u(x + d) - u(x)|", title="mean over images")
    axes[1].set(xlabel="noise level", yscale="log", title="largest over images")
    axes[2].set(xlabel="noise level", ylabel="accuracy of u [%]", title="what the noise costs", ylim=(0, 102))
    axes[0].legend(fontsize=9)
    axes[1].legend(fontsize=9)
    return figure


def descent(paths: dict[str, pandas.DataFrame], lrs: dict[str, float], bound: pandas.Series) -> Figure:
    """Paths of `analysis.descent.follow` by label: the Lagrangian; the smallest gradient so far, with `bound` for the
    first path; and the step that the theorem allows beside the one that was taken (dotted)."""
    figure, axes = subplots(3, width=4.6, height=4.2)
    for (label, path), colour, style in zip(paths.items(), PALETTE, LINES, strict=False):
        axes[0].plot(path["step"], path["lagrangian"], linestyle=style, color=colour, label=label)
        axes[1].loglog(path["step"] + 1, path["gradient_norm"].cummin(), linestyle=style, color=colour)
        axes[2].semilogy(path["step"], path["longest_lr"], linestyle=style, color=colour)
        axes[2].axhline(lrs[label], color=colour, linestyle=":", linewidth=1)
    axes[1].loglog(range(1, len(bound) + 1), bound, color="0.3", linewidth=1, label="our bound, first path")
    axes[0].set(xlabel="step", ylabel="Lagrangian", title="does it fall?")
    axes[1].set(xlabel="step", ylabel="smallest gradient norm so far", title="how fast?")
    axes[2].set(xlabel="step", ylabel="learning rate", title="longest allowed, 2 / (beta + L)")
    axes[1].legend(fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


VERDICTS = {"holds": ("#029e73", "o"), "does not hold": ("#d55e00", "X"), "no difference": ("#0173b2", "s"),
            "open": ("0.35", "D"), "not tested": ("0.65", "v")}  # colour and marker


def claims(lines: pandas.DataFrame) -> Figure:
    """The lines of a ledger that were run, in words, by unit: measured with its 95 % interval, reported (hollow).
    Colour and marker tell the verdict. Points lie on an axis that is linear up to ten and logarithmic beyond, so that
    one large effect does not hide the others."""
    ran = lines[lines["n_seeds"] > 0]
    if ran.empty:
        figure, (axis,) = subplots(width=6, height=1)
        axis.text(0.5, 0.5, "no claim was run at this scale", ha="center", va="center")
        axis.set_axis_off()
        return figure
    units = list(ran["unit"].unique())
    sizes = [len(ran[ran["unit"] == unit]) for unit in units]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(units), 1, figsize=(10, 0.42 * len(ran) + 0.9 * len(units) + 0.5),
                                    squeeze=False, layout="constrained", height_ratios=[n + 0.5 for n in sizes])
    plt.close(figure)
    for (axis,), unit in zip(axes, units, strict=True):
        rows = ran[ran["unit"] == unit].iloc[::-1].reset_index(drop=True)
        for i, row in rows.iterrows():
            colour, marker = VERDICTS[row["verdict"]]
            axis.plot([row["low"], row["high"]], [i, i], color=colour, linewidth=3, solid_capstyle="butt")
            axis.plot(row["ours"], i, marker, color=colour, markersize=8)
            if not pandas.isna(row["reported"]):
                axis.plot(row["reported"], i, "o", color="black", markerfacecolor="none", markersize=9)
        axis.axvline(0, color="0.3", linewidth=1)
        if unit == "percentage points":
            ticks = [-50, -10, -5, 0, 5, 10, 50]
            axis.set_xscale("symlog", linthresh=10, linscale=1.5)
            axis.set_xticks(ticks, ticks, minor=False)
            axis.xaxis.set_minor_locator(NullLocator())
        axis.set(yticks=range(len(rows)), ylim=(-0.6, len(rows) - 0.4), xlabel=f"effect [{unit}]")
        axis.set_yticklabels(["\n".join(wrap(words, 62)) for words in rows["words"]], fontsize=10)
    shown = [said for said in VERDICTS if said in set(ran["verdict"])]
    handles = [axes[0][0].plot([], [], VERDICTS[said][1], color=VERDICTS[said][0], markersize=8)[0] for said in shown]
    if ran["reported"].notna().any():
        handles.append(axes[0][0].plot([], [], "o", color="black", markerfacecolor="none", markersize=9)[0])
        shown.append("reported by the paper")
    figure.legend(handles, shown, loc="outside lower center", ncols=len(shown), fontsize=10)
    return figure


def against_cost(frame: pandas.DataFrame, xlabel: str, ylabel: str) -> Figure:
    """Rates in percent after every epoch against what training has taken until then: a line for each `method`, mean
    over seeds, the band spans them; `frame` has `method`, `seed`, `epoch`, `cost`, `value`."""
    figure, (axis,) = subplots(width=7.5, height=4.6)
    styles = zip(PALETTE, cycle(MARKERS), cycle(LINES), strict=False)
    for method, (colour, marker, style) in zip(frame["method"].unique(), styles, strict=False):
        by_epoch = frame[frame["method"] == method].groupby("epoch")
        cost, values = by_epoch["cost"].mean(), by_epoch["value"].agg(["mean", "min", "max"]) * 100
        axis.fill_between(cost, values["min"], values["max"], color=colour, alpha=0.15, linewidth=0)
        axis.plot(cost, values["mean"], linestyle=style, marker=marker, markersize=5, color=colour, label=method)
    axis.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, None))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=10)
    return figure


def along_sparsity(panels: Sequence[Sequence[dict]], xlabel: str = "weights removed [%]") -> Figure:
    """A grid of panels that share the axis of sparsity, logarithmic in what is left, so that 90, 99 and 99.9 % are
    equally far apart; a single column is laid out as a row. A panel is a dictionary:

        frame   one row per run: `series` (the line), `level`, `left` [%] (what is not removed), `seed`, `value`
        title, ylabel, factor (of the values; 1 if missing), log (whether their axis is logarithmic)
        marks   (series, level of the best or None, level from which it lies below dense or None), if any
        shaded  (from, to) in `left`, if any

    Lines are means over seeds, bands span them; a panel whose frame has no rows stays empty."""
    if len(panels[0]) == 1:
        panels = [[panel for row in panels for panel in row]]
    rows, columns = len(panels), len(panels[0])
    figure, axes = grid(rows, columns, (3.1 * columns + 1, 2.5 * rows + 0.9), sharex=True)
    names = list(dict.fromkeys(s for row in panels for panel in row for s in panel["frame"]["series"]))
    styles = {n: (PALETTE[i % 10], LINES[i % 6], MARKERS[i % 6]) for i, n in enumerate(names)}
    for panel, axis in zip((panel for row in panels for panel in row), axes.flat, strict=True):
        frame, factor = panel["frame"], panel.get("factor", 1)
        for name in frame["series"].unique():
            colour, style, marker = styles[name]
            by_level = frame[frame["series"] == name].groupby("level")
            values = by_level["value"].agg(["mean", "min", "max"]).mul(factor).assign(left=by_level["left"].mean())
            values = values.sort_values("left", ascending=False)
            axis.fill_between(values["left"], values["min"], values["max"], color=colour, alpha=0.2, linewidth=0)
            axis.plot(values["left"], values["mean"], linestyle=style, marker=marker, markersize=4, color=colour)
            for series, best, below in panel.get("marks", ()):
                for level, symbol in ((best, "*"), (below, "X")):
                    if series == name and level is not None:
                        axis.plot(*values.loc[level, ["left", "mean"]], symbol, color=colour, markersize=13,
                                  markeredgecolor="black")
        if "shaded" in panel:
            axis.axvspan(*panel["shaded"], color="0.92", linewidth=0)
        axis.set(title=panel.get("title", ""), ylabel=panel.get("ylabel", ""),
                 yscale="log" if panel.get("log") else "linear")
        axis.title.set_fontsize(11)
        axis.tick_params(labelsize=9)
    lowest = float(np.nanmin([panel["frame"]["left"].min() for row in panels for panel in row]))
    _removed_axis(axes[0, 0], lowest)
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    handles = [axes[0, 0].plot([], [], color=c, linestyle=s, marker=m, label=n)[0] for n, (c, s, m) in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(names)))
    return figure


def _removed_axis(axis, lowest: float) -> None:
    """The axis of what is left [%], down to `lowest`, labelled with what is removed."""
    removed = [r for r in (0, 50, 80, 90, 95, 98, 99.5, 99.9) if 100 - r >= 0.8 * lowest]
    axis.set_xscale("log")
    axis.set_xlim(115, 0.8 * lowest)
    axis.set_xticks([100 - r for r in removed], [f"{r:g}" for r in removed], fontsize=9)
    axis.xaxis.set_minor_locator(NullLocator())


def radius_order(frame: pandas.DataFrame) -> Figure:
    """Bounds of the radius from both sides, image by image (`studies.sparsity_theory`): a panel per `label`,
    a line per way of measuring, images in order of DeepFool's, or else of the last."""
    labels = list(frame["label"].unique())
    figure, axes = subplots(len(labels), width=4.6, height=4.2, sharey=True)
    for axis, label in zip(axes, labels, strict=True):
        wide = frame[frame["label"] == label].pivot(index="image", columns="measured", values="radius")
        wide = wide.sort_values(frame["measured"].iloc[-1] if "DeepFool" not in wide else "DeepFool")
        for name, colour, style in zip(frame["measured"].unique(), PALETTE, LINES, strict=False):
            axis.plot(range(1, len(wide) + 1), wide[name], linestyle=style, color=colour, label=name)
        axis.set(title=label, xlabel="images, in order of DeepFool's radius", yscale="log")
    axes[0].set_ylabel("l2 radius")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def mask_ratios(result: dict, titles: dict[str, str]) -> Figure:
    """A `RandomMasks` result: a panel per norm in `titles`, the ratio of the product of layer norms to the dense one
    against the share of weights removed, both axes logarithmic in what is left: masks at random (band: two standard
    deviations), one layer at a time, the explicit bound, and the smallest weights instead."""
    figure, axes = subplots(len(titles), width=4.4, height=4.4, sharex=True)
    left = 100 * (1 - np.array(result["levels"]))
    for axis, (norm, title) in zip(axes, titles.items(), strict=True):
        mean, sd = np.array(result["joint"][norm]), np.array(result["joint_sd"][norm])
        axis.fill_between(left, np.maximum(mean - 2 * sd, mean / 100), mean + 2 * sd, color=PALETTE[0], alpha=0.25)
        axis.plot(left, mean, "o-", color=PALETTE[0], label="at random, all hidden layers")
        for (layer, norms), style in zip(result["single"].items(), (":", "-.", (0, (1, 1))), strict=False):
            axis.plot(left, norms[norm], linestyle=style, color=PALETTE[1], label=f"at random, layer {layer} only")
        if norm in result["explicit"]:
            axis.plot(left, result["explicit"][norm], "--", color="black", label="the bound, all hidden layers")
        axis.plot(left, result["magnitude"][norm], "s-", color=PALETTE[2], label="the smallest, all hidden layers")
        axis.set(title=title, xlabel="weights removed [%]", yscale="log")
        _removed_axis(axis, left.min())
    axes[0].set_ylabel("norm product / dense")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def rankings(found: dict[str, pandas.DataFrame], xlabel: str, marked: dict[str, str], line: float,
             called: str) -> Figure:
    """`estimates.ranking` tables, a panel each under its title, the best on top: means with their intervals, and at the
    right the interval of the rank. `marked` maps names of methods to a group; each group has a colour and a marker, all
    others are grey circles. `line`, on the same axis, is what the legend calls `called`."""
    longest = max(len(table) for table in found.values())
    figure, axes = subplots(len(found), width=5.2, height=0.36 * longest + 1.5, sharex=True)
    looks = _looks(marked)
    for axis, (title, table) in zip(axes, found.items(), strict=True):
        for place, (method, row) in enumerate(table[::-1].iterrows()):
            colour, marker = looks[marked.get(method, PLAIN)]
            axis.plot([row["low"], row["high"]], [place] * 2, color=colour, linewidth=2)
            axis.plot(row["mean"], place, marker, color=colour, markersize=8)
            axis.text(1.01, place, f"{row['rank_low']:g} to {row['rank_high']:g}", fontsize=10, va="center",
                      transform=axis.get_yaxis_transform())
        axis.set(title=title, xlabel=xlabel, yticks=range(len(table)), ylim=(-0.6, longest - 0.4))
        axis.set_yticklabels(table.index[::-1], fontsize=11)
        axis.text(1.01, longest - 0.4, "rank", fontsize=10, transform=axis.get_yaxis_transform())
        axis.axvline(line, color="black", linestyle="--", linewidth=1.5, zorder=0)
    handles = [axes[0].plot([], [], m, color=c, label=group)[0] for group, (c, m) in looks.items()]
    handles.append(axes[0].plot([], [], "--", color="black", linewidth=1.5, label=called)[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


PLAIN = "none of them"  # the group of methods that belong to none


def _looks(marked: dict[str, str]) -> dict[str, tuple]:
    """Colour and marker of every group, and of those that belong to none."""
    return dict(zip(dict.fromkeys(marked.values()), zip(PALETTE, "sD^vP", strict=False), strict=False)) | {
        PLAIN: ("0.4", "o")}


def fronts(points: pandas.DataFrame, panels: dict[str, tuple[str, pandas.DataFrame]], y: str, ylabel: str,
           marked: dict[str, str]) -> Figure:
    """A panel per heading: every row of `points` as a mark, `y` in percent against a column, on a logarithmic axis;
    rows of the front that is given with the column are joined, and named above from left to right. Colours and markers
    as in `rankings`; hollow marks are rows whose `cut` is channels."""
    figure, axes = subplots(len(panels), width=4.4, height=4.6, sharey=True)
    looks = _looks(marked)
    for axis, (heading, (column, front)) in zip(axes, panels.items(), strict=True):
        axis.step(front[column], 100 * front[y], where="post", color="0.7", linewidth=1.5, zorder=1)
        for _, row in points.iterrows():
            colour, marker = looks[marked.get(row["method"], PLAIN)]
            face = "white" if row["cut"] == "channels" else colour
            axis.plot(row[column], 100 * row[y], marker, color=colour, markerfacecolor=face, markersize=7)
        axis.set(xlabel=heading, xscale="log")
        axis.set_title("\n".join(wrap("front: " + ", ".join(dict.fromkeys(front["method"])), 40)), fontsize=10)
        _log_ticks(axis)
    axes[0].set_ylabel(ylabel)
    handles = [axes[0].plot([], [], m, color=c, label=group)[0] for group, (c, m) in looks.items()]
    handles.append(axes[0].plot([], [], "o", color="0.4", markerfacecolor="white", label="channels cut")[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def fooled(image: torch.Tensor, attacked: dict[str, tuple[torch.Tensor, torch.Tensor]], label: int) -> Figure:
    """A row per network in `attacked`, which maps it to an attacked image (1, h, w) and how likely the network finds
    each class, (classes,): the change, the picture, the classes, with the true `label` in blue and the answer, where it
    is wrong, in orange."""
    figure, axes = grid(len(attacked), 3, (8.4, 2.5 * len(attacked) + 0.3))
    for row, (name, (picture, chances)) in zip(axes, attacked.items(), strict=True):
        row[0].imshow((picture - image)[0].numpy(), cmap="RdBu_r", vmin=-0.4, vmax=0.4)
        row[1].imshow(picture[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        answer = int(chances.argmax())
        colours = [PALETTE[0] if c == label else PALETTE[1] if c == answer else "0.7" for c in range(len(chances))]
        row[2].bar(range(len(chances)), 100 * chances.numpy(), color=colours)
        row[2].set(xticks=range(len(chances)), ylim=(0, 105), ylabel="how sure [%]")
        row[2].text(0.02, 0.9, f"says {answer}: " + ("right" if answer == label else "fooled"), fontsize=11,
                    transform=row[2].transAxes, color=PALETTE[0] if answer == label else PALETTE[1], weight="bold",
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85})
        row[0].set_ylabel(name, fontsize=11)
        for axis in row[:2]:
            _bare(axis)
    for axis, title in zip(axes[0], ("what was changed", "what the network sees", "what it answers"), strict=True):
        axis.set_title(title, fontsize=11)
    return figure


def answers(seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]], titles: Sequence[str], label: int) -> Figure:
    """A row per network in `seen`, a column per title: the picture (1, h, w) that it is shown and, underneath, what it
    answers and how sure it is, from how likely it finds each class (classes,); blue where that is the true `label`."""
    figure, axes = grid(len(seen), len(titles), (1.8 * len(titles), 2.3 * len(seen)))
    for row, (name, pictures) in zip(axes, seen.items(), strict=True):
        for axis, (picture, chances) in zip(row, pictures, strict=True):
            axis.imshow(picture[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
            answer = int(chances.argmax())
            axis.set_xlabel(f"{answer}, {100 * float(chances.max()):.0f} % sure", fontsize=11, weight="bold",
                            color=PALETTE[0] if answer == label else PALETTE[1])
            _bare(axis)
        row[0].set_ylabel(name, fontsize=11)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=11)
    return figure


def surfaces(planes: dict[str, dict], radius: float) -> Figure:
    """The loss around one image, a panel per network (`studies.start_here`), in one scale of colours: darker is
    higher; hatched is where the answer is wrong. The diamond is where an attack of this radius may go: along both
    directions together no pixel moves further."""
    figure, axes = subplots(len(planes), width=4.6, height=4.0, sharey=True)
    for axis, (name, plane) in zip(axes, planes.items(), strict=True):
        steps = plane["steps"]
        shown = axis.contourf(steps, steps, plane["loss"], levels=np.linspace(0, 6, 13), cmap="Blues", extend="max")
        wrong = (plane["answer"] != plane["label"]).astype(float)
        axis.contourf(steps, steps, wrong, levels=[0.5, 1.5], colors="none", hatches=["///"])
        axis.contour(steps, steps, wrong, levels=[0.5], colors=[PALETTE[1]], linewidths=2.5)
        axis.plot(0, 0, "o", color="black", markersize=7)
        axis.plot([-radius, 0, radius, 0, -radius], [0, -radius, 0, radius, 0], color="black", linewidth=1.5,
                  linestyle="--")
        axis.set(title=name, xlabel="each pixel, in the attack's direction")
        axis.grid(False)
    axes[0].set_ylabel("each pixel, in a direction at random")
    figure.colorbar(shown, ax=axes, label="loss")
    return figure


def thinned(pictures: dict[str, np.ndarray], curves: pandas.DataFrame, share: float, units: int) -> Figure:
    """What is left when weights are zeroed: how many of `units` weights read each pixel, a picture (h, w) per network
    in `pictures`; and the accuracies in `curves` (`studies.start_here`) with a line at `share`."""
    figure, axes = subplots(len(pictures) + 1, width=3.4, height=3.3, width_ratios=[*[1] * len(pictures), 1.7])
    for axis, (name, readers) in zip(axes, pictures.items(), strict=False):
        shown = axis.imshow(readers, cmap="viridis", vmin=0, vmax=units)
        axis.set_title(name, fontsize=11)
        _bare(axis)
        figure.colorbar(shown, ax=axis, shrink=0.75, label="weights that read it")
    for (net, rows), colour, marker in zip(curves.groupby("net", sort=False), PALETTE, MARKERS, strict=False):
        for metric, style in (("clean", "-"), ("attacked", "--")):
            chosen = rows[rows["metric"] == metric]
            axes[-1].plot(100 * chosen["share"], 100 * chosen["value"], style, color=colour, marker=marker,
                          markersize=4, label=f"{net}, {metric}")
    axes[-1].axvline(100 * share, color="0.3", linewidth=1)
    axes[-1].set(xlabel="weights zeroed [%]", ylabel="right answers [%]", ylim=(0, 103))
    axes[-1].legend(fontsize=9)
    return figure
