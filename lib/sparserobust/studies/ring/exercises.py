"""Exercises of 08_ring."""

from dataclasses import replace
from typing import Any

from sparserobust.attacks import PGD
from sparserobust.config import Run
from sparserobust.objectives import Adversarial
from sparserobust.running.experiment import Results
from sparserobust.studies.checks import Verdict, choice, chosen_run, exercise, number, rates
from sparserobust.studies.methods import DENSE, MAGNITUDE, WEIGHTS
from sparserobust.studies.questions import ATTACKED
from sparserobust.studies.ring.runs import DYNAMIC, OVERFITTING, RING, TWO_STAGES


def erk_density(n_out: int, n_in: int, side: int) -> float:
    """What ERK makes the share of a layer's weights that stay proportional to."""
    return (n_out + n_in + 2 * side) / (n_out * n_in * side**2)


@exercise
def exercise_1(answer, results: Results) -> Verdict:
    """The method whose mean accuracy falls least from clean to attacked images at the primary
    cut."""
    frame = results.frame
    cut = frame[(frame["part"] == RING) & (frame["cut"] == WEIGHTS)
                & (frame["level"] == results.experiment.settings.primary)]
    means = cut.pivot_table(index="method", columns="metric", values="value")
    falls = 100 * (means["clean"] - means[ATTACKED]).dropna()
    least = falls.idxmin()
    slips = {method: f"it falls by {fall:.1f} points, the least by {falls[least]:.1f}"
             for method, fall in falls.items() if method != least}
    slips |= dict.fromkeys((DENSE, TWO_STAGES), "nothing is removed from it: compare at one cut")
    slips |= dict.fromkeys(set(frame["method"]) - set(falls.index) - set(slips),
                           "it has no network at this cut")
    for which, metric in (("on clean images", "clean"), ("under attack", ATTACKED)):
        best = means[metric].idxmax()
        if best != least:
            slips[best] = (f"that one is the best {which}, and falls by {falls[best]:.1f} points: "
                           "subtract, then take the smallest")
    why = (f"it falls by {falls[least]:.1f} points, {MAGNITUDE} by {falls[MAGNITUDE]:.1f}: what "
           "falls least need not be what is best")
    return choice(answer, least, why, slips)


@exercise
def exercise_2(answer) -> Verdict:
    """Gradients per image of an epoch of sharp scores with FGSM-RS."""
    step = Adversarial(attack=PGD(epsilon=0.1, step_size=0.125, steps=1)).cost
    why = "so at one budget it learns its scores for half as many epochs"
    return number(answer, 2 * step, why, {
        step: "that is an epoch of plain scores: here the loss is taken twice",
        step + 1: "the second loss is attacked anew: its attack takes a gradient, too",
        1: "attack and step take a gradient each, and the loss is taken twice"}, tolerance=0.001)


@exercise
def exercise_3(answer) -> Verdict:
    """How many times as dense ERK keeps 16 -> 16 as 64 -> 64 channels, both 3x3."""
    ratio = erk_density(16, 16, 3) / erk_density(64, 64, 3)
    why = "wide layers are cut deepest: weights grow as a product of the widths, what ERK keeps as a sum"
    return number(answer, ratio, why, {
        1 / ratio: "the other way round: the narrow layer is the denser one",
        (16 + 16) / (16 * 16) / ((64 + 64) / (64 * 64)): "the sides of the kernel count as well, "
        "3 + 3 above the line",
        16.0: "that is how many times as many *weights* the wide layer has",
        (16 + 16 + 6) / (64 + 64 + 6): "the sums are to be divided by the numbers of weights"})


@exercise
def exercise_4(answer, results: Results) -> Verdict:
    """The control of dynamic training at the primary cut: the same first mask, never changed."""
    experiment = results.experiment
    row = experiment.row(part=RING, method=DYNAMIC, level=experiment.settings.primary,
                         seed=experiment.seeds[0])
    run = row["run"]

    def with_mask(**changes: Any) -> Run:
        return replace(run, sparsifier=replace(run.sparsifier, **changes))

    correct = with_mask(share=0.0)

    def why() -> str:
        measured = {name: row["measurements"][name] for name in ("clean", ATTACKED)}
        return rates({"dynamic": run, "fixed": correct}, measured, results.store)

    slips = {run: "that is `dynamic` itself",
             with_mask(growth="random"): "that one still changes its mask, it only grows elsewhere",
             with_mask(share=1.0): "`share` is what is dropped, not what stays",
             with_mask(stop=0): "its mask never changes either: say so with `share`",
             with_mask(share=0.0, growth="random"): "nothing grows, so leave `growth` as it is: a "
             "control differs in one thing"}
    slips |= {other["run"]: "that one has other images and more epochs: a control differs in one "
              "thing" for other in experiment.rows(part=OVERFITTING)}
    slips |= {other["run"]: f"that is `{other['method']}`, which differs in more than the mask"
              for other in experiment.rows(part=RING) if other["run"] not in slips}
    return chosen_run(answer, correct, why, slips)
