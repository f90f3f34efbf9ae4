"""Figures of the first page: what an attack changes, what networks answer, the loss around an
image, what pruning leaves."""

from collections.abc import Sequence

import numpy as np
import pandas
import seaborn
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sparserobust.reporting import styles
from sparserobust.reporting.axes import grid, handle, legend, picture, styled

RIGHT, WRONG = styles.BLUE, styles.ORANGE


@styled
def attacked_image(image: torch.Tensor, attacked: dict[str, tuple[torch.Tensor, torch.Tensor]],
                   label: int, classes: Sequence[str], reach: float) -> Figure:
    """A row per network in `attacked`, which maps it to an attacked image (1 or 3, h, w) and how
    likely the network finds each of the `classes`, (classes,): the picture, its change, the
    classes, with the true `label` in blue and the answer, where it is wrong, in orange. A change by
    `reach` has the strongest colour."""
    figure, axes = grid(len(attacked), 3, (9.0, 3.0 * len(attacked) + 0.3),
                        width_ratios=(1, 1 if len(image) == 3 else 1.25, 1.1))
    for row, (name, (changed, chances)) in zip(axes, attacked.items(), strict=True):
        _shown(row[0], changed)
        row[0].set_ylabel(name, fontsize=11)
        _change(row[1], changed - image, reach)
        answer = int(chances.argmax())
        colours = [RIGHT if c == label else WRONG if c == answer else "0.7"
                   for c in range(len(classes))]
        bars = row[2].barh(list(classes), 100 * chances.numpy(), color=colours)
        row[2].bar_label(bars, ["" if c != answer else f"{100 * float(chances[c]):.0f} %"
                                for c in range(len(classes))], padding=2, fontsize=10)
        row[2].set(xlim=(0, 135), xticks=(0, 50, 100), xlabel="probability [%]")
        row[2].invert_yaxis()
        row[2].grid(False)
        row[2].set_title(f"{classes[answer]}: " + ("right" if answer == label else "fooled"),
                         fontsize=11, weight="bold", color=RIGHT if answer == label else WRONG)
    axes[0, 0].set_title("what the network sees")
    axes[0, 1].set_title("change of each pixel" if len(image) == 1
                         else f"change, {0.5 / reach:.0f} times enlarged")
    key = [Patch(color=RIGHT, label="the true class"),
           Patch(color=WRONG, label="the answer, where it is wrong")]
    if len(image) == 1:
        key = [Patch(color="#b2182b", label="pixel raised (darker ink)"),
               Patch(color="#2166ac", label="pixel lowered"), *key]
    legend(figure, key)
    return figure


@styled
def answers(seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]], titles: Sequence[str],
            label: int, classes: Sequence[str]) -> Figure:
    """A row per network in `seen`, a column per title: the picture (1 or 3, h, w) that it is shown
    and, underneath, which of the `classes` it answers and how sure it is, from how likely it finds
    each, (classes,); blue where that is the true `label`, else orange and marked as wrong."""
    figure, axes = grid(len(seen), len(titles), (2.15 * len(titles), 2.5 * len(seen)))
    for row, (name, pictures) in zip(axes, seen.items(), strict=True):
        for axis, (changed, chances) in zip(row, pictures, strict=True):
            _shown(axis, changed)
            answer = int(chances.argmax())
            wrong = "" if answer == label else "wrong: "
            axis.set_xlabel(f"{wrong}{classes[answer]}, {100 * float(chances.max()):.0f} %",
                            fontsize=11, weight="bold", color=WRONG if wrong else RIGHT)
        row[0].set_ylabel(name, fontsize=11)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    return figure


def _shown(axis: Axes, image: torch.Tensor) -> None:
    """An image (1 or 3, h, w) in [0, 1]: digits as ink on paper, photographs as they are."""
    if len(image) == 1:
        picture(axis, image[0], "gray_r", vmin=0, vmax=1)
    else:
        axis.imshow(image.permute(1, 2, 0).numpy())
        _without_ticks(axis)


def _change(axis: Axes, change: torch.Tensor, reach: float) -> None:
    """By how much each pixel was changed, (1 or 3, h, w): with a bar, or around a middle grey."""
    if len(change) == 1:
        mesh = picture(axis, change[0], "RdBu_r", vmin=-reach, vmax=reach)
        axis.figure.colorbar(mesh, ax=axis, shrink=0.8, ticks=(-reach, 0, reach))
    else:
        axis.imshow((0.5 + change / (2 * reach)).clamp(0, 1).permute(1, 2, 0).numpy())
        _without_ticks(axis)


def _without_ticks(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.grid(False)


@styled
def surfaces(planes: dict[str, dict], radius: float) -> Figure:
    """The loss around one image, a panel per network (`report.plane`), in one scale of colours:
    darker is higher; hatched is where the answer is wrong. The diamond is where an attack of this
    radius may go: along both directions together no pixel moves further."""
    figure, (axes,) = grid(1, len(planes), (4.7 * len(planes), 4.4), sharey=True)
    for axis, (name, plane) in zip(axes, planes.items(), strict=True):
        steps = plane["steps"]
        shown = axis.contourf(steps, steps, plane["loss"], levels=np.linspace(0, 6, 13),
                              cmap="Blues", extend="max")
        wrong = (plane["answer"] != plane["label"]).astype(float)
        axis.contourf(steps, steps, wrong, levels=[0.5, 1.5], colors="none", hatches=["///"])
        axis.contour(steps, steps, wrong, levels=[0.5], colors=[WRONG], linewidths=2.5)
        axis.plot(0, 0, "o", color="black", markersize=7)
        axis.plot([-radius, 0, radius, 0, -radius], [0, -radius, 0, radius, 0], color="black",
                  linewidth=1.5, linestyle="--")
        axis.set(title=name, xlabel="each pixel, in the attack's direction")
        axis.grid(False)
    axes[0].set_ylabel("each pixel, in a random direction")
    figure.colorbar(shown, ax=axes, label="loss")
    legend(figure, [Line2D([], [], color="black", marker="o", linestyle="none", label="the image"),
                    Line2D([], [], color="black", linestyle="--", label=f"radius {radius:g}"),
                    Patch(facecolor="white", edgecolor=WRONG, hatch="///",
                          label="the answer is wrong")])
    return figure


@styled
def weights_left(pictures: dict[str, np.ndarray], curves: pandas.DataFrame, share: float,
                 units: int) -> Figure:
    """What is left when weights are zeroed: how many of `units` weights at each pixel are not zero,
    a picture (h, w) per network in `pictures`; and the accuracies in `curves`
    (`report.accuracies`), clean solid and attacked dashed, with a line at `share`."""
    figure, (axes,) = grid(1, len(pictures) + 1, (3.4 * len(pictures) + 5.4, 3.8),
                           width_ratios=[*[1] * len(pictures), 1.6])
    *maps, axis = axes
    for one, (name, readers) in zip(maps, pictures.items(), strict=True):
        mesh = picture(one, readers, vmin=0, vmax=units)
        one.set_title(name)
        figure.colorbar(mesh, ax=one, shrink=0.75, label=f"weights of {units} left")
    dashes = {"clean": "-", "attacked": "--"}
    look = styles.of(curves["net"])
    for (net, metric), rows in curves.groupby(["net", "metric"], sort=False):
        seaborn.lineplot(x=100 * rows["share"], y=100 * rows["value"], linestyle=dashes[metric],
                         color=look[net].colour, marker=look[net].marker, markersize=5, ax=axis)
    axis.axvline(100 * share, color="0.3", linewidth=1)
    axis.set(xlabel="weights zeroed [%]", ylabel="correct answers [%]", ylim=(0, 103))
    legend(figure, [handle(f"{net}, {metric}", look[net]._replace(dash=dash))
                    for net in look for metric, dash in dashes.items()])
    return figure
