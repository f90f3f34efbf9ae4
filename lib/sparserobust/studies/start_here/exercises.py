"""Exercises of 00_start_here."""

from copy import deepcopy

import torch

from sparserobust import data
from sparserobust.running.experiment import Results
from sparserobust.sparsifiers import Magnitude
from sparserobust.studies.checks import Verdict, exercise, not_yet, number
from sparserobust.studies.start_here.report import by_radius, networks, rate
from sparserobust.studies.start_here.runs import ADVERSARIAL, NATURAL, attack


@exercise
def exercise_1(answer) -> Verdict:
    """The smallest radius at which an attack turns a linear classifier with logit difference 0.6
    and sum of |w| 12."""
    why = ("margin over slope, with the slope in the norm that fits the attack: that ratio is what "
           "half of this project is about")
    return number(answer, 0.6 / 12, why, {
        12 / 0.6: "that is slope over margin: the other way round",
        0.6: "that is the margin: how far does one step of every pixel bring it down?",
        0.6 / 12 / 2: "the difference need only fall to zero, in one go: no factor of two"})


@exercise
def exercise_2(answer, results: Results) -> Verdict:
    """The first radius at which the network trained as usual classifies less than half of the test
    images correctly."""
    usual, other = (_accuracies(results, net) for net in (NATURAL, ADVERSARIAL))
    below = [radius for radius, value in usual.items() if value < 0.5]
    if not below:
        return not_yet("here it never falls below a half: train with other settings, or ask for a "
                       "larger radius")
    slips = {radius: f"there it still classifies {100 * value:.0f} % of them correctly"
             for radius, value in usual.items() if value >= 0.5}
    slips |= {usual[below[0]]: "that is the accuracy there: which radius is it?"}
    slips |= {radius: "that is the network that was trained under attack"
              for radius in [radius for radius, value in other.items() if value < 0.5][:1]}
    return number(answer, below[0], f"it classifies {100 * usual[below[0]]:.0f} % correctly there, "
                  "and the network that was trained under attack "
                  f"{100 * other[below[0]]:.0f} %", slips)


def _accuracies(results: Results, net: str) -> dict[float, float]:
    """Accuracy of the first seed by radius, in rising order."""
    rows = by_radius(results)
    rows = rows[(rows["net"] == net) & (rows["level"] > 0) & (rows["seed"] == rows["seed"].iloc[0])]
    return dict(sorted(zip(rows["level"], rows["value"], strict=True)))


@exercise
def exercise_3(answer, results: Results) -> Verdict:
    """By how many points the accuracy under attack of the network trained under attack changes when it is pruned to
    90 % layer by layer instead of all weights together."""
    models, test = networks(results), _test_images(results)
    radius = results.experiment.settings.radius

    def reached(net: str, scope: str) -> tuple[float, float]:
        copy = deepcopy(models[net])
        Magnitude(sparsity=0.9, scope=scope).start(copy)
        changed = attack(radius)(copy, test.images, test.labels)
        return rate(copy, changed, test.labels), rate(copy, test.images, test.labels)

    (each, each_clean), (together, together_clean) = (reached(ADVERSARIAL, scope) for scope in ("layerwise", "global"))
    usual = [reached(NATURAL, scope)[0] for scope in ("layerwise", "global")]
    change = 100 * (each - together)
    why = (f"layer by layer {100 * each:.0f} %, together {100 * together:.0f} %: the small last layer loses nine "
           "tenths of its weights too, though each of them matters more")
    return number(answer, change, why, {
        -change: "the other way round: layer by layer minus together",
        100 * each: "that is layer by layer: minus what?",
        100 * together: "that is all together: what is it layer by layer?",
        100 * (each_clean - together_clean): "those are clean images",
        100 * (usual[0] - usual[1]): "that is the network that was trained as usual"}, within=0.3)


@exercise
def exercise_4(answer, results: Results) -> Verdict:
    """By how many points an attack of radius 0.1 lowers the accuracy of the network trained as
    usual further than moving every pixel by 0.1 up or down at random."""
    net, test = networks(results)[NATURAL], _test_images(results)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(test.images.shape, generator=generator).sign().to(test.images)
    at_random = rate(net, (test.images + 0.1 * signs).clamp(0, 1), test.labels)
    attacked = rate(net, attack(0.1)(net, test.images, test.labels), test.labels)
    points = 100 * (at_random - attacked)
    why = (f"a random direction hardly changes the loss: {100 * at_random:.0f} % against "
           f"{100 * attacked:.0f} % under attack, where every pixel moves as far. An attack is not "
           "noise")
    return number(answer, points, why, {
        points / 100: "points are asked for: 100 times a difference of rates",
        100 * at_random: "that is the accuracy after moving pixels at random",
        100 * attacked: "that is the accuracy under attack",
        -points: "the other way round"}, within=2.5)


def _test_images(results: Results) -> data.Split:
    return data.load(results.experiment.settings.data).test
