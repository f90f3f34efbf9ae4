"""Figures of this study alone: linear classifiers, networks of different sparsities, radii image by
image, norms under masks."""

from itertools import cycle

import numpy as np
import pandas
import seaborn
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sparserobust.reporting import styles
from sparserobust.reporting.axes import (
    facets,
    grid,
    handle,
    legend,
    log_ticks,
    removed_axis,
    styled,
)
from sparserobust.reporting.plots import along_sparsity, lines


def linear_classifiers(data: pandas.DataFrame, empty_bound: tuple[float, float] | None) -> Figure:
    """Both results of `figures.linear_rows`: its panels, shaded in the first where the bound for
    magnitude pruning says nothing."""
    figure = lines(data, "left", col="col", wrap=2, at="level", removed=True, size=(4.4, 2.9),
                   xlabel="weights removed [%]", share={"sharey": False})
    if empty_bound:
        figure.axes[0].axvspan(*empty_bound, color="0.9", zorder=0)
        shade = Patch(color="0.9", label="bound above one for magnitude")
        legend(figure, [*figure.legends[0].legend_handles, shade])
    return figure


def by_network(data: pandas.DataFrame, sharey: bool | str = "row", **kwargs) -> Figure:
    """`plots.along_sparsity`, in which the axis of each network ends where its pruning ends."""
    figure = along_sparsity(data, share={"sharex": "col", "sharey": sharey}, **kwargs)
    for axis, net in zip(figure.axes, cycle(data["col"].cat.categories), strict=False):
        left = data.loc[data["col"] == net, "left"].dropna()
        if len(left):
            removed_axis(axis, left.max(), left.min())
    return figure


@styled
def radius_order(data: pandas.DataFrame) -> Figure:
    """Bounds of the radius from both sides, image by image (`figures.radii`): a panel per `label`,
    a mark per image and way of measuring, images in order of DeepFool's radius, or else of the last
    way's."""
    by = "DeepFool" if "DeepFool" in set(data["measured"]) else data["measured"].iloc[-1]
    ordering = data[data["measured"] == by].set_index(["label", "image"])["radius"]
    places = ordering.groupby("label").rank(method="first").rename("place").reset_index()
    look = styles.of(data["measured"])
    figure, panels = facets(data.merge(places, on=["label", "image"]), col="label",
                            size=(4.4, 3.8))
    for axis, chosen, *_ in panels:
        seaborn.scatterplot(chosen, x="place", y="radius", hue="measured", style="measured", s=20,
                            palette={name: style.colour for name, style in look.items()},
                            markers={name: style.marker for name, style in look.items()},
                            linewidth=0, legend=False, ax=axis)
        axis.set(xlabel=f"images, in order of {by}'s radius",
                 ylabel="l2 radius" if axis is panels[0].axis else "")
        log_ticks(axis, "y")
    legend(figure, [handle(name, style._replace(dash="")) for name, style in look.items()])
    return figure


@styled
def mask_ratios(result: dict, titles: dict[str, str]) -> Figure:
    """A `RandomMasks` result: a panel per norm in `titles`, the ratio of the product of layer norms
    to the dense one against the share of weights removed: masks at random (band: two standard
    deviations), one layer at a time, the explicit bound, and the smallest weights instead. The axis
    shows what is measured: a bound far above leaves it at the top."""
    figure, (axes,) = grid(1, len(titles), (4.4 * len(titles), 4.6))
    left = 100 * (1 - np.array(result["levels"]))
    together, smallest = "at random, all hidden layers", "the smallest, all hidden layers"
    single = {f"at random, layer {layer} only": norms for layer, norms in result["single"].items()}
    look = styles.of([together, smallest, *single])
    for axis, (norm, title) in zip(axes, titles.items(), strict=True):
        mean, sd = np.array(result["joint"][norm]), np.array(result["joint_sd"][norm])
        low = np.maximum(mean - 2 * sd, mean / 100)
        axis.fill_between(left, low, mean + 2 * sd, color=look[together].colour, alpha=0.25)
        shown = {together: mean, smallest: result["magnitude"][norm]}
        shown |= {name: norms[norm] for name, norms in single.items()}
        for name, values in shown.items():
            colour, marker, dash = look[name]
            seaborn.lineplot(x=left, y=values, color=colour, marker=marker, linestyle=dash, ax=axis)
        top = 2 * max(1.0, *(np.max(values) for values in shown.values()), (mean + 2 * sd).max())
        if norm in result["explicit"]:
            bound = np.array(result["explicit"][norm])
            seaborn.lineplot(x=left, y=bound, color="black", linestyle="--", ax=axis)
            if bound.max() > top:
                axis.text(0.02, 0.98, f"the bound begins at {bound.max():,.0f}", va="top",
                          fontsize=10, transform=axis.transAxes)
        axis.set(title=title, xlabel="weights removed [%]",
                 ylabel="norm product / dense" if axis is axes[0] else "")
        removed_axis(axis, 100, left.min())
        axis.set(yscale="log", ylim=(0.5 * low.min(), top))
        log_ticks(axis, "y")
    handles = [handle(name, style) for name, style in look.items()]
    if result["explicit"]:
        handles.append(Line2D([], [], color="black", linestyle="--",
                              label="the bound, all hidden layers"))
    legend(figure, [*handles, Patch(color=look[together].colour, alpha=0.25,
                                    label="two standard deviations over masks")])
    return figure
