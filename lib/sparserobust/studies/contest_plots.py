"""Figures of a contest alone: how methods rank, and what nothing else beats."""

from collections.abc import Mapping
from itertools import count
from textwrap import wrap

import numpy as np
import pandas
import seaborn
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparserobust.reporting import styles
from sparserobust.reporting.axes import grid, handle, legend, log_ticks, styled


@styled
def rankings(found: dict[str, pandas.DataFrame], dense: Mapping[str, pandas.Series],
             xlabel: str) -> Figure:
    """`estimates.ranking` tables, a panel each, named by what is removed, the best on top: means
    with their intervals, and at the right the interval of the rank. `dense` has `mean`, `low` and
    `high` of the dense network for panels in which it is a dashed line with a band."""
    longest = max(len(table) for table in found.values())
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    letters = max(len(str(method)) for table in found.values() for method in table.index)
    width = 5.4 + 0.11 * max(0, letters - 21)
    figure, axes = grid(rows, columns, (width * columns, rows * (0.36 * longest + 1.6)), sharex=True)
    for axis in axes.flat[len(found):]:
        axis.set_axis_off()
    figure.set_layout_engine("constrained", w_pad=0.16)
    look = styles.of([name for table in found.values() for name in table.index])
    for axis, (removed, table) in zip(axes.flat, found.items(), strict=False):
        places = np.arange(len(table))
        if removed in dense:
            axis.axvspan(dense[removed]["low"], dense[removed]["high"], color="0.9", zorder=0)
            axis.axvline(dense[removed]["mean"], color="black", linestyle="--", linewidth=1.5, zorder=1)
        for place, (method, row) in zip(places, table.iterrows(), strict=True):
            colour, marker, _ = look[method]
            axis.hlines(place, row["low"], row["high"], color=colour, linewidth=2)
            seaborn.scatterplot(x=[row["mean"]], y=[place], color=colour, marker=marker, s=95,
                                edgecolor=colour, ax=axis, zorder=3)
            axis.text(1.02, place, f"{row['rank_low']:g} to {row['rank_high']:g}", fontsize=10,
                      va="center", transform=axis.get_yaxis_transform())
        axis.text(1.02, -1, "rank", fontsize=10, va="center", transform=axis.get_yaxis_transform())
        axis.set(title=f"{removed} removed", xlabel=xlabel, ylabel="", ylim=(longest - 0.4, -0.6))
        axis.set_yticks(places, table.index, fontsize=11)
        axis.tick_params(labelbottom=True)
    if dense:
        legend(figure, [Line2D([], [], color="black", linestyle="--", linewidth=1.5,
                               label="dense network, with its 95 % interval")])
    return figure


LOWEST = 6.0  # points below the second lowest method, beyond which a mark is not drawn to scale,
FEW = 0.1  # unless that were a larger share of all marks, and more than two
BELOW: dict = {"color": "0.6", "linewidth": 1, "linestyle": ":"}  # the line above marks that are not to scale
STEP = 3.0  # points between the lowest mark that is drawn to scale and those that are not


@styled
def fronts(points: pandas.DataFrame, panels: dict[str, tuple[str, pandas.DataFrame]], y: str,
           ylabel: str) -> Figure:
    """A panel per heading: every row of `points` as a mark, `y` in percent against a column, on a
    logarithmic axis; rows of the front that is given with the column are joined, and named above
    from left to right. Hollow marks are rows whose `cut` is channels. Of marks that would cover
    each other those that are not on the front move aside, and a thin line leads to their place; one
    far below all others stands below a dotted line, with its value."""
    tall = max(5.4, 0.13 * len(points))  # inches
    figure, (axes,) = grid(1, len(panels), (max(4.6 * len(panels), 7), tall), sharey=True)
    look = styles.of(points["method"])
    lowest = 100 * points.groupby("method")[y].max().nsmallest(2).iloc[-1] - LOWEST
    few = max(2, int(FEW * len(points)))  # that may lie below
    lowest = min(lowest, 100 * points[y].nsmallest(few + 1).iloc[-1])
    edge = max(lowest, 100 * points[y].min() - 1)
    far = 100 * points[y] < edge
    for axis, (heading, (column, front)) in zip(axes, panels.items(), strict=True):
        values = (100 * points[y]).mask(far, edge - STEP)
        axis.step(front[column], values[front.index], where="post", color="0.45", linewidth=1.5, zorder=1)
        if far.any():
            axis.axhline(edge - STEP / 2, **BELOW)
        places = apart(points[column], values, points.index.isin(front.index), 0.216 / tall)
        axis.hlines(values, points[column], places, color="0.75", linewidth=1, zorder=1)
        for row, place, shown in zip(points.to_dict("records"), places, values, strict=True):
            colour, marker, _ = look[row["method"]]
            axis.scatter(place, shown, marker=marker, s=70, linewidth=1.5, zorder=3,
                         facecolor="white" if row["cut"] == "channels" else colour,
                         edgecolor=colour)
            if shown < edge:
                axis.annotate(f"{100 * row[y]:.0f}", (place, shown), (0, -12), ha="center",
                              fontsize=8, textcoords="offset points")
        axis.set(xlabel=heading, ylabel=ylabel if axis is axes[0] else "")
        axis.set_ylim(edge - 3 - STEP * far.any(), None)
        axis.set_yticks([tick for tick in axis.get_yticks() if edge <= tick <= axis.get_ylim()[1]])
        names = "front: " + ", ".join(dict.fromkeys(front["method"]))
        axis.set_title("\n".join(wrap(names, 44)), fontsize=10)
        log_ticks(axis, "x")
    hollow = Line2D([], [], color="0.4", marker="o", markerfacecolor="white", linestyle="none",
                    label="hollow: channels cut")
    below = [Line2D([], [], label="below: not to scale, value beneath", **BELOW)] if far.any() else []
    legend(figure, [*(handle(name, style._replace(dash="")) for name, style in look.items()),
                    hollow, *below])
    return figure


def apart(x: pandas.Series, y: pandas.Series, first: np.ndarray, mark: float = 0.04) -> list[float]:
    """Places on a logarithmic x axis for marks at `x` and `y`, so that no two cover each other:
    those in `first` keep theirs, others move aside as little as there is room, to the right or to
    the left; where x is not known, neither is the place. A mark takes the share `mark` of the
    height."""
    width, height = 0.045 * np.log(x.max() / x.min()), mark * np.ptp(y)
    placed: dict[int, float] = {}
    for one in np.lexsort((-y, ~first)):
        own = np.log(x.iloc[one])
        near = [placed[of] for of in placed if abs(y.iloc[one] - y.iloc[of]) < height]
        places = (own + side * step * width / 4 for step in count() for side in (1, -1))
        placed[one] = own if first[one] else next(
            place for place in places if not any(abs(place - other) < width for other in near))
    return [float(np.exp(placed[one])) for one in range(len(x))]
