"""Figures of this study alone: channel norms, one layer, an ensemble's stability, splitting."""

from collections.abc import Sequence

import numpy as np
import pandas
import seaborn
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparserobust.reporting import styles
from sparserobust.reporting.axes import grid, handle, legend, log_ticks, picture, styled
from sparserobust.reporting.plots import lines

SEVERAL = "0.4"  # the colour of what several paths have in common


def sorted_norms(norms: dict[str, np.ndarray]) -> Figure:
    """Channel norms of several networks, each sorted from large to small; on the right with a
    logarithmic axis, where channels that are exactly zero lie on the lowest line."""
    smallest = min(n[n > 0].min() for n in norms.values())
    floor = 10.0 ** (np.floor(np.log10(smallest)) - 1)
    whole, zoomed = "all", "the same, zoomed on small norms"
    parts = []
    for name, values in norms.items():
        ordered = pandas.DataFrame({"share": 100 * np.arange(1, len(values) + 1) / len(values),
                                    "series": name, "value": np.sort(values)[::-1]})
        parts += [ordered.assign(col=whole),
                  ordered.assign(col=zoomed, value=ordered["value"].clip(lower=floor))]
    figure = lines(pandas.concat(parts), "share", col="col", ylog=[zoomed], markers=False,
                   xlabel="channels, largest first [%]", ylabel="l2 norm of a channel",
                   size=(4.8, 3.4), share={"sharey": False})
    axis = figure.axes[1]
    axis.axhline(floor, color="0.3", linewidth=1)
    axis.annotate("exactly zero", (2, floor), xytext=(0, 4), textcoords="offset points")
    return figure


@styled
def layers(results: dict[str, dict]) -> Figure:
    """One layer of several networks, from `LayerWeights` results by label: the l2 norms of its
    kernels as a picture in one colour scale, and the histograms of its weights."""
    figure, (axes,) = grid(1, len(results) + 1, (3.2 * len(results) + 5.6, 4.0),
                           width_ratios=[*(1 for _ in results), 1.3])
    highest = max(max(map(max, r["picture"])) for r in results.values())
    for axis, (label, result) in zip(axes, results.items(), strict=False):
        mesh = picture(axis, result["picture"], vmin=0, vmax=highest)
        axis.set(title=label, xlabel="input channel", ylabel="output channel")
    figure.colorbar(mesh, ax=axes[:-1], location="left", shrink=0.8, label="l2 norm of a kernel")
    look = styles.of(results)
    for label, result in results.items():
        counts, limit = np.array(result["histogram"]), result["limit"]
        edges = np.linspace(-limit, limit, len(counts) + 1)
        seaborn.histplot(x=(edges[:-1] + edges[1:]) / 2, weights=100 * counts / counts.sum(),
                         bins=list(edges), element="step", fill=False, color=look[label].colour,
                         linestyle=look[label].dash, ax=axes[-1])
    axes[-1].set(xlabel="weight", ylabel="share of weights per bin [%]",
                 title="histogram (outer bins: the rest)")
    legend(figure, [handle(label, style, markers=False) for label, style in look.items()])
    return figure


@styled
def stability(results: Sequence[dict]) -> Figure:
    """`Stability` results of several seeds, averaged: the mean change of the output over images
    against the length of the push, a line per noise level; the largest against the noise level, a
    line per length; the noise's cost."""
    figure, ((first, second, third),) = grid(1, 3, (13.2, 4.6))
    levels, lengths = results[0]["levels"], results[0]["lengths"]
    changes, largest = (np.mean([r[key] for r in results], 0) for key in ("changes", "largest"))
    slopes = [[r["slopes"][i] for r in results] for i in range(len(levels))]
    names = [f"noise {level:g}" + (f": slope {np.mean(s):.2f}" if None not in s else "")
             for level, s in zip(levels, slopes, strict=True)]
    _strokes(first, dict(zip(names, changes, strict=True)), lengths)
    _strokes(second, {f"|d| = {length:g}": column
                      for length, column in zip(lengths, largest.T, strict=True)}, levels)
    accuracy = 100 * np.mean([r["accuracy"] for r in results], axis=0)
    seaborn.lineplot(x=levels, y=accuracy, marker="o", color=styles.BLUE, ax=third)
    first.set(xlabel="length of the push, |d| [l2]", ylabel="|u(x + d) - u(x)|",
              title="mean over images")
    second.set(xlabel="noise level", ylabel="|u(x + d) - u(x)|", title="largest over images")
    third.set(xlabel="noise level", ylabel="accuracy of u [%]", title="what the noise costs",
              ylim=(max(0, accuracy.min() - 10), min(101, accuracy.max() + 10)))
    log_ticks(first, "x")
    for axis in (first, second):
        log_ticks(axis, "y")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=9)
    return figure


def _strokes(axis, ys: dict[str, np.ndarray], x: Sequence[float]) -> None:
    """A line with marks for each name."""
    for (name, style), y in zip(styles.of(ys).items(), ys.values(), strict=True):
        seaborn.lineplot(x=x, y=y, color=style.colour, marker=style.marker, linestyle=style.dash,
                         label=name, ax=axis)


@styled
def descent_paths(paths: dict[str, pandas.DataFrame], lrs: dict[str, float],
                  bound: pandas.Series) -> Figure:
    """Paths of `analysis.descent.follow` by label: the Lagrangian; the smallest gradient so far,
    with `bound` for the first path; and the longest step that the theorem allows, with the one that
    was taken as circles, grey where several paths take it."""
    figure, ((fall, speed, step),) = grid(1, 3, (13.8, 4.6))
    look = styles.of([*paths, "our bound, first path"])
    for label, path in paths.items():
        line = {"color": look[label].colour, "linestyle": look[label].dash}
        seaborn.lineplot(path, x="step", y="lagrangian", ax=fall, **line)
        seaborn.lineplot(x=path["step"] + 1, y=path["gradient_norm"].cummin(), ax=speed, **line)
        seaborn.lineplot(path, x="step", y="longest_lr", ax=step, **line)
    for lr in dict.fromkeys(lrs.values()):
        takers = [label for label in paths if lrs[label] == lr]
        steps = paths[takers[0]]["step"]
        seaborn.scatterplot(x=steps.iloc[::max(1, len(steps) // 8)], y=lr, ax=step, s=40,
                            facecolor="none", linewidth=1.5, legend=False,
                            edgecolor=look[takers[0]].colour if len(takers) == 1 else SEVERAL)
    colour, _, dash = look["our bound, first path"]
    seaborn.lineplot(x=np.arange(1, len(bound) + 1), y=bound, color=colour, linestyle=dash,
                     ax=speed)
    for axis, which in ((speed, "xy"), (step, "y")):
        for each in which:
            log_ticks(axis, each)
    fall.set(xlabel="step", ylabel="Lagrangian", title="does it fall?")
    speed.set(xlabel="step", ylabel="smallest gradient norm so far", title="how fast?")
    step.set(xlabel="step", ylabel="learning rate", title="longest allowed, 2 / (beta + L)")
    circles = Line2D([], [], color=SEVERAL, marker="o", markerfacecolor="none", linestyle="none",
                     label="learning rate taken (grey: by several)")
    legend(figure, [*(handle(name, style, markers=False) for name, style in look.items()), circles])
    return figure
