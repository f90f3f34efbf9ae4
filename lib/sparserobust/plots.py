"""Tidy frame in, figure out. Colours are told apart by colour-blind readers; everything is legible at half size."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas
import seaborn
import torch
from matplotlib.figure import Figure

from sparserobust.estimates import binomial_interval

PALETTE = seaborn.color_palette("colorblind")
MARKERS = "osD^vP"
STYLE = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.color": "0.9", "axes.axisbelow": True, "legend.frameon": False, "figure.dpi": 100,
         "lines.linewidth": 2, "svg.hashsalt": "sparserobust"}


def subplots(columns: int = 1, width: float = 5.0, height: float = 3.8, **kwargs) -> tuple[Figure, np.ndarray]:
    """A figure with one row of axes, closed to pyplot, so that a notebook shows it once: where it is returned."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, columns, figsize=(width * columns, height), layout="constrained",
                                    squeeze=False, **kwargs)
    plt.close(figure)
    return figure, axes[0]


def curves(x, ys: dict, xlabel: str, ylabel: str, title: str = "", log: bool = False) -> Figure:
    """Functions of one variable on one axis: `ys` maps a legend label to values over `x`."""
    figure, (axis,) = subplots(width=6)
    for (label, y), colour, style in zip(ys.items(), PALETTE, ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1))),
                                         strict=False):
        axis.plot(x, y, style, color=colour, label=label)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if log:
        axis.set_yscale("log")
    axis.legend()
    return figure


def images(pictures: Sequence[torch.Tensor], titles: Sequence[str], limit: float | None = None) -> Figure:
    """Single-channel pictures (h, w) side by side, in one grey scale with its bar; `limit` is the largest magnitude."""
    limit = limit or max(float(p.abs().max()) for p in pictures)
    low = -limit if any(float(p.min()) < 0 for p in pictures) else 0
    figure, axes = subplots(len(pictures), width=2.6, height=2.9)
    for axis, picture, title in zip(axes, pictures, titles, strict=True):
        shown = axis.imshow(picture.detach(), cmap="gray" if low == 0 else "RdBu_r", vmin=low, vmax=limit)
        axis.set_title(title, fontsize=11)
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
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
        for value, colour, style in zip(frame[hue].unique(), PALETTE, ("-", "--"), strict=False):
            mean = shares[(frame[hue] == value).to_numpy()].mean(0)
            axis.stairs(mean, edges, color=colour, linestyle=style, linewidth=2, label=value)
        axis.set(xlim=(-zoom, zoom), xlabel="weight", ylabel="share of weights per bin [%]")
    axes[0].set_title("all (outer bins hold the rest)")
    axes[1].set_title("near zero")
    axes[0].legend(title=hue)
    return figure


def tradeoff(frame: pandas.DataFrame, x: str, y: Sequence[str], xlabel: str, titles: Sequence[str],
             hue: str = "ours") -> Figure:
    """Accuracy against sparsity, both in percent, one panel per accuracy in `y`: small marks are seeds, large ones
    means joined in order of sparsity. Bars: 95 % binomial interval of the count pooled over seeds."""
    figure, axes = subplots(len(y), width=4.4, height=4.0, sharex=True)
    frame = frame.assign(level=frame["level"].fillna(0))
    wide = frame.pivot(index=[hue, "level", "seed"], columns="metric", values="value").reset_index()
    order = list(frame[hue].unique())
    for axis, metric, title in zip(axes, y, titles, strict=True):
        for group, colour, marker in zip(order, PALETTE, MARKERS, strict=False):
            chosen = wide[wide[hue] == group]
            axis.plot(100 * chosen[x], 100 * chosen[metric], marker, color=colour, alpha=0.35, markersize=4)
            means = chosen.groupby("level")[[x, metric]].mean().sort_values(x)
            pooled = frame[(frame[hue] == group) & (frame["metric"] == metric)].groupby("level")[
                ["count", "total"]].sum().loc[means.index]
            bounds = [binomial_interval(c, t) for c, t in pooled.itertuples(index=False)]
            bars = np.abs(np.array(bounds).T - means[metric].to_numpy()) * 100
            axis.errorbar(100 * means[x], 100 * means[metric], bars, marker=marker, color=colour, markersize=8,
                          capsize=3, label=group)
        axis.set(xlabel=xlabel, title=title)
    axes[0].set_ylabel("accuracy [%]")
    axes[0].legend()
    return figure


def claims(ledger: pandas.DataFrame) -> Figure:
    """Each judged claim as reported (hollow) and measured (filled, with its interval), in the claim's unit."""
    ran = ledger[ledger["n_seeds"] > 0].iloc[::-1].reset_index(drop=True)
    colours = {"holds": PALETTE[2], "does not hold": PALETTE[3]}
    figure, (axis,) = subplots(width=7.5, height=0.32 * len(ran) + 1.2)
    for i, row in ran.iterrows():
        colour = colours.get(row["verdict"], "0.5")
        axis.plot([row["low"], row["high"]], [i, i], color=colour, linewidth=3, solid_capstyle="butt")
        axis.plot(row["ours"], i, "o", color=colour)
        if not pandas.isna(row["reported"]):
            axis.plot(row["reported"], i, "D", color="black", markerfacecolor="none")
    axis.axvline(0, color="0.3", linewidth=1)
    axis.set(yticks=range(len(ran)), xlabel="effect [percentage points; C3.ratio: ratio]", ylim=(-0.7, len(ran) - 0.3))
    axis.set_yticklabels(ran["claim"])
    handles = [axis.plot([], [], "o", color=c)[0] for c in (*colours.values(), "0.5")]
    handles.append(axis.plot([], [], "D", color="black", markerfacecolor="none")[0])
    axis.legend(handles, [*colours, "undecided", "reported"], loc="best")
    return figure
