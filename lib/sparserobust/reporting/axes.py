"""What all figures share: size and style, facets, legends beneath, logarithmic axes, pictures."""

from collections.abc import Callable, Iterable, Sequence
from textwrap import fill
from typing import Any, NamedTuple, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    EngFormatter,
    LogFormatterSciNotation,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from sparserobust.reporting.styles import Style

STYLE: dict[Any, Any] = {
    "font.size": 12, "axes.titlesize": 11, "xtick.labelsize": 10, "ytick.labelsize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "0.9",
    "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 2, "figure.dpi": 100,
    "figure.constrained_layout.use": True, "svg.hashsalt": "sparserobust"}
Draw = TypeVar("Draw", bound=Callable)


def styled(draw: Draw) -> Draw:
    """Decorates a function that draws: in the style of all figures."""
    return plt.rc_context(STYLE)(draw)  # type: ignore[operator]


@styled
def grid(rows: int, columns: int, size: tuple[float, float], **kwargs) -> tuple[Figure, np.ndarray]:
    """A figure of this size with rows of axes, closed to pyplot: a notebook shows it only where it
    is returned."""
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **kwargs)
    plt.close(figure)
    return figure, axes


class Facet(NamedTuple):
    """A panel: its rows of the data, its names by row and column, and where it stands."""

    axis: Axes
    data: pandas.DataFrame
    names: list
    first: bool  # in its line
    lowest: bool  # in its column


def facets(data: pandas.DataFrame, row: str | None = None, col: str | None = None,
           wrap: int | None = None, size: tuple[float, float] = (3.4, 2.7),
           **kwargs) -> tuple[Figure, list[Facet]]:
    """A figure with seaborn's facets of these columns, each of this size, `wrap` in a line; closed
    to pyplot. Names of columns stand above."""
    many = data[col].nunique() if col else 1
    wrap = None if row or not wrap or wrap >= many else wrap
    with plt.rc_context({"figure.constrained_layout.use": False}):  # seaborn lays out by itself
        found = seaborn.FacetGrid(data, row=row, col=col, col_wrap=wrap, height=size[1],
                                  aspect=size[0] / size[1], **kwargs)
    found.figure.set_layout_engine("constrained")
    plt.close(found.figure)
    panels = []
    for (i, j, _), chosen in found.facet_data():
        axis = found.facet_axis(i, j, modify_state=False)
        names = [*([found.row_names[i]] if row else []), *([found.col_names[j]] if col else [])]
        lowest = j + wrap >= many if wrap else not row or i == len(found.row_names) - 1
        above = str(names[-1]) if col and (not row or i == 0) else ""
        axis.set_title(fill(above, int(11 * size[0])))
        panels.append(Facet(axis, chosen, names, j % (wrap or many) == 0, lowest))
    return found.figure, panels


def from_image_to_answer(layers: Iterable[str]) -> list[str]:
    """Names of layers in the order in which a network applies them: what is stored has lost it."""
    def place(name: str) -> tuple:
        parts = name.split(".")
        numbers = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]
        return "stem" not in parts, parts[-1] == "linear", numbers

    return sorted(dict.fromkeys(layers), key=place)


def handle(name: str, style: Style, markers: bool = True) -> Line2D:
    """What stands in a legend for a line."""
    return Line2D([], [], color=style.colour, linestyle=style.dash or "none", label=name,
                  linewidth=2, markersize=11 if style.marker == "*" else 8, markeredgewidth=0.5,
                  marker=style.marker if markers and style.marker else "none")


@styled
def legend(figure: Figure, handles: Sequence, **kwargs) -> None:
    """A legend beneath the figure, which grows by it, with as many columns as fit; it takes the
    place of one that is there."""
    widths = [0.08 * len(str(each.get_label())) + 0.75 for each in handles]  # inches, about
    columns = len(handles)
    while columns > 1 and figure.get_figwidth() < sum(
            max(column) for column in np.array_split(widths, columns)):
        columns -= 1
    if not figure.legends:
        rows = -(-len(handles) // max(1, columns))
        figure.set_figheight(figure.get_figheight() + 0.1 + 0.21 * rows)
    for old in list(figure.legends):
        old.remove()
    figure.legend(handles=handles, loc="outside lower center", fontsize=10, handlelength=2.6,
                  ncols=columns, **kwargs)


def log_ticks(axis: Axes, which: str, values: Sequence[float] = ()) -> None:
    """Make the axis "x" or "y" logarithmic, with ticks in plain numbers, k and M for thousands and
    millions: at these values, if they are few, or at 1, 2, 5, 10, ... (over a wide range at 1, 10,
    100, ...)."""
    axis.set(**{f"{which}scale": "log"})
    one = getattr(axis, f"{which}axis")
    low, high = one.get_view_interval()
    if 0 < len(values) < 9:
        one.set_ticks(sorted(values))
    else:
        one.set_major_locator(LogLocator(subs=(1,) if high > 200 * low else (1, 2, 5)))
    plain = EngFormatter(sep="") if low >= 1 else "{x:g}"
    one.set_major_formatter(plain if high < 1e9 else LogFormatterSciNotation())
    one.set_minor_locator(NullLocator())
    one.set_minor_formatter(NullFormatter())


def removed_axis(axis: Axes, highest: float, lowest: float) -> None:
    """An x axis of what is left [%], from `highest` down to `lowest`, labelled with what is
    removed, so that 90, 99 and 99.9 % are equally far apart."""
    removed = [r for r in (0, 50, 80, 90, 95, 98, 99.5, 99.9)
               if 0.8 * lowest <= 100 - r <= 1.15 * highest]
    axis.set(xscale="log", xlim=(1.15 * highest, 0.8 * lowest))
    axis.set_xticks([100 - r for r in removed], [f"{r:g}" for r in removed])
    axis.xaxis.set_minor_locator(NullLocator())


def picture(axis: Axes, values, cmap: str = "viridis", **kwargs):
    """A picture (h, w) as seaborn's heat map, without ticks; returns what a colour bar needs."""
    seaborn.heatmap(np.asarray(values), ax=axis, cmap=cmap, cbar=False, square=True,
                    xticklabels=False, yticklabels=False, **kwargs)
    axis.set(xlabel="", ylabel="")
    return axis.collections[0]
