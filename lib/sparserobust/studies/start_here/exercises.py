"""Exercises of 00_start_here."""

from copy import deepcopy

import torch
from pandas import DataFrame
from torch import nn

from sparserobust.data import Splits
from sparserobust.sparsifiers import Magnitude
from sparserobust.studies.checks import Verdict, choice, exercise, not_yet, number
from sparserobust.studies.start_here.report import ADVERSARIAL, NATURAL, Experiment, attack, rate


@exercise
def exercise_1(answer) -> Verdict:
    """The smallest radius at which an attack turns a linear classifier with logit difference 0.6 and sum of |w| 12."""
    return number(answer, 0.6 / 12, "margin over slope, with the slope in the norm that fits the attack: that ratio is "
                  "what half of this project is about", {
                      12 / 0.6: "that is slope over margin: the other way round",
                      0.6: "that is the margin: how far does one step of every pixel bring it down?",
                      0.6 / 12 / 2: "the difference need only fall to zero, in one go: no factor of two"})


@exercise
def exercise_2(answer, frame: DataFrame) -> Verdict:
    """The first radius at which the network trained as usual is right on less than half of the test images."""
    reached = _accuracies(frame, NATURAL)
    below = [radius for radius, value in reached.items() if value < 0.5]
    other = [radius for radius, value in _accuracies(frame, ADVERSARIAL).items() if value < 0.5]
    if not below:
        return not_yet("here it never falls below a half: train with other settings, or ask for a larger radius")
    slips = {radius: f"there it still knows {100 * value:.0f} % of them" for radius, value in reached.items()
             if value >= 0.5}
    slips |= {other[0]: "that is the network that was trained under attack"} if other else {}
    held = _accuracies(frame, ADVERSARIAL)[below[0]]
    return number(answer, below[0], f"it knows {100 * reached[below[0]]:.0f} % there, and the network that was trained "
                  f"under attack {100 * held:.0f} %", slips)


def _accuracies(frame: DataFrame, net: str) -> dict[float, float]:
    """Accuracy of the first seed by radius, in rising order."""
    rows = frame[(frame["net"] == net) & (frame["metric"] != "clean") & (frame["seed"] == frame["seed"].iloc[0])]
    return dict(sorted(zip(rows["metric"].astype(float), rows["value"], strict=True)))


@exercise
def exercise_3(answer, networks: dict[str, nn.Module], splits: Splits) -> Verdict:
    """By how many points an attack of radius 0.1 lowers the accuracy of the network trained as usual further than
    moving every pixel by 0.1 up or down at random."""
    images, labels = splits.test.images, splits.test.labels
    signs = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).sign().to(images)
    net = networks[NATURAL]
    at_random = rate(net, (images + 0.1 * signs).clamp(0, 1), labels)
    attacked = rate(net, attack(0.1)(net, images, labels), labels)
    points = 100 * (at_random - attacked)
    why = (f"a random direction is nearly level: {100 * at_random:.0f} % against {100 * attacked:.0f} % under attack, "
           "where every pixel moves as far. An attack is not noise")
    return number(answer, points, why, {
        points / 100: "points are asked for: 100 times a difference of rates",
        100 * at_random: "that is the accuracy after moving pixels at random",
        100 * attacked: "that is the accuracy under attack", -points: "the other way round"}, within=2.5)


@exercise
def exercise_4(answer, networks: dict[str, nn.Module], splits: Splits, experiment: Experiment) -> Verdict:
    """Whether pruning to 90 % layer by layer leaves more accuracy under attack than ranking all weights together."""
    found, radius = {}, experiment.settings["radius"]
    for scope in ("layerwise", "global"):
        copy = deepcopy(networks[ADVERSARIAL])
        Magnitude(sparsity=0.9, scope=scope).start(copy)
        attacked = attack(radius)(copy, splits.test.images, splits.test.labels)
        found[scope] = rate(copy, attacked, splits.test.labels)
    told = f"layer by layer {100 * found['layerwise']:.0f} %, together {100 * found['global']:.0f} %"
    correct, other = ("higher", "lower") if found["layerwise"] > found["global"] else ("lower", "higher")
    return choice(answer, correct, told, {other: f"it is the other way round: {told}"})
