"""The pictures of the glossary: `python docs/glossary_pictures.py` draws them into `docs/glossary/`, each from what the
library computes."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn
import torch
from matplotlib.figure import Figure
from torch import nn

from sparserobust import data, inheritance, networks, sparsity
from sparserobust.analysis import conditioning
from sparserobust.attacks import PGD, into_ball
from sparserobust.config import Inheritance
from sparserobust.models.gates import GatedConv2d
from sparserobust.models.noise import WeightNoise
from sparserobust.reporting import artifacts
from sparserobust.reporting.axes import grid, handle, legend, picture, styled
from sparserobust.reporting.estimates import binomial_interval
from sparserobust.reporting.styles import BLACK, BLUE, GREY, ORANGE, RED, Style
from sparserobust.sparsifiers import proximal

FOLDER = Path(__file__).with_name("glossary")
HORSE = 86  # its place in the sample of photographs
DRAWN: dict[str, Callable[[], Figure]] = {}


def drawn(draw: Callable[[], Figure]) -> Callable[[], Figure]:
    """Decorates the function that draws the picture of a term: its name is the term's."""
    DRAWN[draw.__name__.replace("_", "-")] = styled(draw)
    return draw


# ------------------------------------------------------------------------------------------------------- attacks


@drawn
def adversarial_attack():
    sample, model, radius = data.sample(), networks.load("natural"), 8 / 255
    attack = PGD(epsilon=radius, step_size=radius / 4, steps=20, random_start=False)
    image, label = sample.images[HORSE:HORSE + 1], sample.labels[HORSE:HORSE + 1]
    attacked = attack(model, image, label)
    change = 0.5 + (attacked - image) / radius / 2
    figure, axes = grid(1, 3, (5.4, 2.1))
    names = [f"{sample.classes[model(x).argmax()]}" for x in (image, attacked)]
    for axis, x, title in zip(axes[0], (image, change, attacked), (
            f"answer: {names[0]}", f"change, {0.5 / radius:.0f} times as large", f"answer: {names[1]}"), strict=True):
        axis.imshow(x[0].clamp(0, 1).permute(1, 2, 0))
        axis.set_axis_off()
        axis.set_title(title)
    return figure


@drawn
def radius():
    figure, axes = grid(1, 2, (4.4, 2.5))
    moves = torch.rand(1500, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    for axis, norm, name in zip(axes[0], ("linf", "l2"), ("l-infinity", "l2"), strict=True):
        image = torch.full_like(moves, 0.5)
        reached = into_ball(moves, image, 0.3, norm).flatten(1)
        seaborn.scatterplot(x=reached[:, 0], y=reached[:, 1], s=4, linewidth=0, color=BLUE, ax=axis)
        axis.plot(0.5, 0.5, "o", color=BLACK, markersize=8)
        axis.set(title=f"{name}, radius 0.3", xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1],
                 xlabel="first pixel", ylabel="second pixel" if norm == "linf" else "", aspect="equal")
    return figure


class Hill(nn.Module):
    """Two logits from the two pixels of an image, equal on a curve."""

    def forward(self, images):
        x, y = images.flatten(1).T
        gap = 2 - 5 * x ** 2 - 2.5 * y + 1.2 * (3 * x).sin() * y
        return torch.stack([gap, torch.zeros_like(gap)], 1)


@drawn
def projected_gradient_descent():
    model, image, label = Hill(), torch.tensor([[[[0.3, 0.4]]]]), torch.tensor([0])
    path = [image, *(PGD(epsilon=0.25, step_size=0.09, steps=n, norm="l2", random_start=False)(model, image, label)
                     for n in range(1, 7))]
    x, y = torch.cat(path).flatten(1).T
    values = torch.linspace(0, 0.8, 200)
    images = torch.cartesian_prod(values, values)[:, None, None]
    loss = nn.functional.cross_entropy(model(images), torch.zeros(len(images), dtype=int), reduction="none")
    figure, axes = grid(1, 1, (3.9, 3))
    axis = axes[0, 0]
    shades = axis.contourf(values, values, loss.view(len(values), -1).T, levels=12, cmap="Greys")
    figure.colorbar(shades, label="loss", ticks=[0, 1, 2])
    angle = np.linspace(0, 2 * np.pi, 200)
    axis.plot(0.3 + 0.25 * np.cos(angle), 0.4 + 0.25 * np.sin(angle), "--", color=BLUE)
    axis.plot(x, y, "o-", color=ORANGE, markersize=6)
    axis.plot(x[0], y[0], "o", color=BLUE, markersize=10)
    axis.set(xlabel="first pixel", ylabel="second pixel", xlim=(0, 0.8), ylim=(0, 0.8), aspect="equal",
             xticks=[0, 0.4, 0.8], yticks=[0, 0.4, 0.8])
    return figure


@drawn
def gradient_masking():
    change = torch.linspace(0, 1, 2000)
    figure, axes = grid(1, 1, (3.8, 2.4))
    axis = axes[0, 0]
    for x, colour, dash in ((change, BLUE, "--"), ((8 * change).round() / 8, ORANGE, "-")):
        axis.plot(change, 2 - 2.5 * x - 0.7 * x ** 2, dash, color=colour)
    axis.axhline(0, color=BLACK, linewidth=1)
    axis.set(xlabel="change of the image", ylabel="margin", xticks=[0, 0.5, 1])
    legend(figure, [handle("network", Style(BLUE, "", "--")),
                    handle("the same, pixels rounded", Style(ORANGE, "", "-"))])
    return figure


@drawn
def expectation_over_transformation():
    torch.manual_seed(1)
    weight = torch.tensor([[1.0, 0.6]])
    noise = WeightNoise(weight, "layer", 3.0, masked=False)
    draws = torch.cat([noise(weight) for _ in range(200)]).detach()
    figure, axes = grid(1, 1, (3.8, 2.8))
    axis = axes[0, 0]
    start, how = np.zeros(25), {"angles": "xy", "scale_units": "xy", "scale": 1}
    axis.quiver(start, start, *draws[:25].T, color="0.65", width=0.008, **how)
    axis.quiver(0, 0, *draws.mean(0), color=BLUE, width=0.03, **how)
    axis.set(xlim=(-1.5, 3.5), ylim=(-2, 3), xlabel="slope along the first pixel", ylabel="along the second",
             aspect="equal", xticks=[0], yticks=[0])
    legend(figure, [handle("single draws", Style("0.65", "", "-")), handle("mean of 200", Style(BLUE, "", "-"))])
    return figure


# ---------------------------------------------------------------------------------------------------- robustness


@drawn
def lipschitz_constant():
    t = torch.linspace(-1, 1, 2001)
    y = 1 + 0.15 * (7 * t).sin() - 1.1 * t ** 2
    steepest = float((y.diff() / t.diff()).abs().max())
    figure, axes = grid(1, 1, (4, 2.5))
    axis = axes[0, 0]
    safe = 1 / steepest
    axis.axvspan(-safe, safe, color=BLUE, alpha=0.15, linewidth=0)
    axis.plot(t, y, color=BLUE)
    axis.plot(t, 1 - steepest * t.abs(), "--", color=ORANGE)
    legend(figure, [handle("margin", Style(BLUE, "", "-")), handle("its steepest fall", Style(ORANGE, "", "--")),
                    plt.Rectangle((0, 0), 1, 1, color=BLUE, alpha=0.15, label="certainly right")])
    axis.plot(0, 1, "o", color=BLACK, markersize=8)
    axis.axhline(0, color=BLACK, linewidth=1)
    axis.set(xlabel="change of the image", ylabel="margin", ylim=(-0.6, 1.6), xticks=[-1, 0, 1])
    return figure


@drawn
def condition_number():
    angle = torch.linspace(0, 2 * torch.pi, 200)
    circle = torch.stack([angle.cos(), angle.sin()])
    figure, axes = grid(1, 2, (4.4, 2.5))
    for axis, smallest in zip(axes[0], (1.2, 0.2), strict=True):
        turn = torch.tensor([[0.9, -0.436], [0.436, 0.9]])
        matrix = turn @ torch.diag(torch.tensor([1.6, smallest]))
        kappa = conditioning.condition(conditioning.spectrum(matrix))
        axis.plot(*circle, "--", color=GREY)
        axis.plot(*matrix @ circle, color=BLUE)
        axis.set(title=f"condition number {kappa:.1f}", aspect="equal", xlim=(-1.9, 1.9), ylim=(-1.9, 1.9),
                 xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    legend(figure, [handle("all vectors of length 1", Style(GREY, "", "--")),
                    handle("what the matrix makes of them", Style(BLUE, "", "-"))])
    return figure


# ------------------------------------------------------------------------------------------------------ training


@drawn
def gate():
    torch.manual_seed(0)
    layer = GatedConv2d(1, 20_000, 1).train()
    figure, axes = grid(1, 2, (4.4, 2.3), sharey=True)
    for axis, openness in zip(axes[0], (-1.5, 1.5), strict=True):
        layer.log_alpha.data.fill_(openness)
        seaborn.histplot(x=layer.gates().detach().numpy(), stat="percent", bins=20, color=BLUE, ax=axis)
        axis.set(title="mostly closed" if openness < 0 else "mostly open", xlabel="gate", ylabel="draws [%]",
                 xticks=[0, 1])
    return figure


# ------------------------------------------------------------------------------------------------------- pruning


@drawn
def pruning():
    weights = torch.cat([w.detach().flatten() for w in sparsity.prunable(networks.load("dense")).values()])
    kept = sparsity.all_but_smallest(weights.abs(), int(0.9 * len(weights))).bool()
    threshold = 0.999 * float(weights[kept].abs().min())
    figure, axes = grid(1, 1, (4, 2.5))
    axis = axes[0, 0]
    bins = threshold * np.linspace(-4, 4, 81)
    parts = (~kept, "0.7", "///", "removed: 90 %"), (kept, BLUE, "", "kept: 10 %")
    bars = [axis.hist(weights[chosen].numpy(), bins, color=colour, hatch=hatch, edgecolor="white", linewidth=0,
                      label=name) for chosen, colour, hatch, name in parts]
    axis.set(xlabel="weight", ylabel="number of weights", yscale="log")
    legend(figure, [patches[0] for *_, patches in bars])
    return figure


@drawn
def channel_pruning():
    weight = torch.randn(12, 12, generator=torch.Generator().manual_seed(3))
    level = float(sparsity.channel_norms(weight).median()) ** 2 / 2
    single = weight * sparsity.all_but_smallest(weight.abs().flatten(), 72).view_as(weight)
    figure, axes = grid(1, 2, (4.4, 2.5))
    left = {"scattered zeros": single, "whole channels": proximal.group_l0(weight, level)}
    for axis, (title, w) in zip(axes[0], left.items(), strict=True):
        picture(axis, w.abs(), mask=(w == 0).numpy(), cmap="Blues", vmin=-1, vmax=2.5, linewidths=0.5, linecolor="0.85")
        axis.set(title=title, xlabel="channel that is read", ylabel="channel that is made" if w is single else "")
    return figure


def threshold(prox: Callable) -> Figure:
    """What a proximal map makes of a weight."""
    before = torch.linspace(-1, 1, 2001)
    figure, axes = grid(1, 1, (3.8, 2.8))
    axis = axes[0, 0]
    after = prox(before)
    after[1:][after.diff().abs() > 0.1] = torch.nan  # a jump is no line
    axis.plot(before, before, "--", color=GREY)
    axis.plot(before, after, color=BLUE, linewidth=3)
    axis.set(xlabel="weight before", ylabel="weight after", aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    legend(figure, [handle("unchanged", Style(GREY, "", "--")), handle("threshold 0.4", Style(BLUE, "", "-"))])
    return figure


@drawn
def lasso():
    return threshold(lambda y: proximal.l1(y, 0.4))


@drawn
def relaxed_splitting():
    return threshold(lambda y: proximal.l0(y, 0.4 ** 2 / 2))


@drawn
def weight_inheritance():
    torch.manual_seed(0)
    small, large = (nn.Sequential(nn.Linear(1, n), nn.Linear(n, n), nn.Linear(n, 1)) for n in (8, 16))
    nn.init.normal_(small[1].weight, std=0.4)
    inheritance.inherit(large, small.state_dict(), Inheritance(kappa=0.0))
    figure, axes = grid(1, 2, (4.4, 2.5), width_ratios=[1, 2])
    shown = {"small network": small, "large network, at the start": large}
    for axis, (title, model) in zip(axes[0], shown.items(), strict=True):
        weight = model[1].weight.detach()
        picture(axis, weight, cmap="vlag", center=0, mask=(weight == 0).numpy(), linewidths=0.5,
                linecolor="0.9")
        axis.set(title=title)
        axis.add_patch(plt.Rectangle((0, 0), 8, 8, fill=False, edgecolor=ORANGE, linewidth=4, clip_on=False))
    return figure


# ---------------------------------------------------------------------------------------------------- statistics


@drawn
def confidence_interval():
    true, images = 0.6, 100
    figure, axes = grid(1, 1, (4.4, 2.5))
    axis = axes[0, 0]
    for n, count in enumerate(np.random.default_rng(0).binomial(images, true, 40)):
        low, high = binomial_interval(count, images)
        colour, marker = (BLUE, "o") if low <= true <= high else (RED, "X")
        axis.vlines(n, 100 * low, 100 * high, color=colour)
        axis.plot(n, 100 * count / images, marker, color=colour, markersize=5 if marker == "o" else 10)
    axis.axhline(100 * true, color=BLACK, linewidth=1)
    axis.set(xlabel="repetition", ylabel="accuracy [%]", xticks=[])
    legend(figure, [handle("contains the truth", Style(BLUE, "o", "-")), handle("misses it", Style(RED, "X", "-")),
                    handle("truth", Style(BLACK, "", "-"))])
    return figure


if __name__ == "__main__":
    for name, draw in DRAWN.items():
        (FOLDER / f"{name}.png").write_bytes(artifacts.png(draw(), dpi=140))
