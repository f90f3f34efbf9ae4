"""Exercises of 04_sparsity_theory."""

import math
from dataclasses import replace

import torch
from torch import nn

from sparserobust import data
from sparserobust.analysis import Margins
from sparserobust.analysis.linear import Binary
from sparserobust.reporting.estimates import matching
from sparserobust.running.experiment import Results
from sparserobust.sparsifiers import Magnitude, RandomMask
from sparserobust.studies.checks import (
    Verdict,
    choice,
    chosen_run,
    exercise,
    not_yet,
    number,
    rates,
    right,
    tensors,
)
from sparserobust.studies.sparsity_theory.runs import DENSE, MAGNITUDE, WINNERS, networks

REMOVED = 0.9  # share of weights, in exercises 5 and 6


@exercise
def exercise_1(answer, results: Results) -> Verdict:
    """By which factor does adversarial training change the mean of margin over slope, in l2, of the first network?"""
    dense = matching(results.frame, {"net": networks(results.experiment)[0], "method": DENSE})
    means = dense.groupby(["metric", "training"])["value"].mean()
    ratio, margin, slope, in_l1 = (float(means[metric, "adversarial"] / means[metric, "natural"]) for metric in
                                   ("margins ratio", "margins", "margins slope", "margins_linf ratio"))
    why = (f"the margin changes by a factor of {margin:.2f}, the slope by {slope:.2f}: distance is a matter of both, "
           "and a theorem on one alone is half of one on robustness")
    return number(answer, ratio, why, {
        margin: "that is the margin alone", slope: "that is the slope alone",
        1 / ratio: "that is upside down: adversarial over natural",
        margin / slope: "that is a ratio of means: `margins ratio` is the mean over images of their ratio",
        in_l1: "that is the ratio with slopes in l1, against l-infinity"}, within=0.006)


@exercise
def exercise_2(answer, results: Results) -> Verdict:
    """k-winners look far from the boundary to one attack and near to the other: which is nearer to the truth?"""
    rows = matching(results.frame, {"net": networks(results.experiment)[0], "method": WINNERS, "level": 0.1})
    found = rows.groupby("metric")["value"].mean()[["deepfool", "cw"]].set_axis(["DeepFool", "C&W"])
    near, far = found.idxmin(), found.idxmax()
    why = (f"{near} needs {found[near]:.2f} and {far} {found[far]:.2f}: whatever an attack reaches is an upper bound, "
           "so the smaller one counts; and a gradient knows nothing of the jumps where other units win")
    return choice(answer, near, why, {
        far: f"{near} gets there within {found[near]:.2f}: can an attack succeed nearer than the boundary?",
        "both": "a mean of two upper bounds is a worse bound than the smaller one",
        "neither": "each did reach a wrong answer there, so the boundary is no further"})


@exercise
def exercise_3(answer) -> Verdict:
    """Of 100 weights of equal size 75 go, the others grow until |w|_2 is as before: the factor of |w|_1?"""
    before = torch.ones(100, dtype=torch.float64)
    after = torch.where(torch.arange(100) < 75, 0.0, before)
    after *= before.norm() / after.norm()
    factor, left = float(after.abs().sum() / before.abs().sum()), float((after != 0).double().mean())
    why = ("an l-infinity attacker feeds on |w|_1 and loses half of it, an l2 attacker on |w|_2 and loses nothing: "
           "that is all of theorem 3.1 but the data")
    return number(answer, factor, why, {
        left: "that is the share of weights that are left; those have grown", 1 - left: "that is the share that goes",
        1 / factor: "that is what each weight grows by; there are fewer of them", 1.0: "that is the factor of |w|_2",
        math.sqrt(1 - left): "25 weights are left, not 75"})


@exercise
def exercise_4(answer, toy: Binary) -> Verdict:
    """All weights and the bias of a linear classifier times ten: by which factor does r_2 change?"""
    factor = Binary(10 * toy.weight, 10 * toy.margins, 10 * toy.gap).r2 / toy.r2
    why = ("nor does r_inf change; but logits grow tenfold, softmax saturates, and the gradient of the cross entropy "
           "gets so small that its sign may be rounding: accuracy under FGSM can rise where robustness does not")
    return number(answer, factor, why, {
        10.0: "the numerator grows tenfold, and so does the norm below it",
        0.1: "the norm below grows tenfold, and so does the numerator",
        100.0: "numerator and norm both grow, but one stands below the other"})


@exercise
def exercise_5(answer, results: Results) -> Verdict:
    """What becomes of margin and slope when 90 % of the weights of the hidden layers go at random? The first network,
    natural, first seed, so masked, is the answer."""
    run = results.experiment.row(**_labels(results), method=DENSE)["run"]
    whole = results.store.model(run)
    *hidden, head = [f"{name}.weight" for name, layer in whole.named_modules() if isinstance(layer, nn.Linear)]
    trained = whole.state_dict()
    if (masked := tensors(answer, like=trained)) is None:
        return not_yet("a network is expected, such as store.model(dense['run'])")
    if not torch.equal(masked[head], trained[head]):
        return not_yet("the last layer has other values: the theorem leaves it alone")
    if not all(torch.equal(masked[name], trained[name]) for name in trained.keys() - {*hidden}):
        return not_yet("biases are no weights: they stay")
    for was, now in ((trained[name], masked[name]) for name in hidden):
        gone = now == 0
        share = float(gone.float().mean())
        if not torch.equal(now, was.masked_fill(gone, 0)):
            return not_yet("what is not removed should keep its value")
        if abs(share - (1 - REMOVED)) < 0.03:
            return not_yet("that keeps 90 %: they should go")
        if abs(share - REMOVED) > 0.03:
            return not_yet(f"{100 * share:.0f} % of a hidden layer is zero, not 90 %")
        if was[gone].abs().max() <= was[~gone].abs().min():
            return not_yet("those are the smallest weights: the theorem speaks of random ones")
    splits = data.load(run.data)
    before = Margins(images=50)(whole, splits)
    whole.load_state_dict(masked)  # the answer may be in training mode
    after = Margins(images=50)(whole, splits)
    said = ", ".join(f"{name} from {before['parts'].get(name, before['value']):.2f} to "
                     f"{after['parts'].get(name, after['value']) or 0:.2f}" for name in ("slope", "margin", "ratio"))
    return right(f"{said}: the theorem promises the fall of the slope, and does not speak of the margin")


@exercise
def exercise_6(answer, results: Results) -> Verdict:
    """Is it which weights go, or how many? 90 % of the dense network's weights removed at random, then trained on like
    the row `magnitude` of that level; natural training, first seed."""
    labels = _labels(results)
    row = results.experiment.row(method=MAGNITUDE, level=REMOVED, **labels)
    dense = results.experiment.row(method=DENSE, **labels)["run"]
    pruned = row["run"]
    drawn = replace(pruned, start=dense, sparsifier=RandomMask(sparsity=REMOVED))

    def why() -> str:
        runs = {"dense": dense, "the smallest gone": pruned, "gone at random": drawn}
        watched = {heading: row["measurements"][metric]
                   for heading, metric in (("clean", "clean"), ("FGSM", "fgsm"), ("PGD-40", "pgd40"))}
        return (f"{rates(runs, watched, results.store)}. The theorem is about random masks without retraining; what is "
                "done is neither, and goes step by step, so for more epochs")

    return chosen_run(answer, drawn, why, {
        pruned: "that is the row `magnitude`: its smallest weights went", dense: "that is dense",
        replace(drawn, start=pruned.start): "it starts from a network that is pruned already, to the level before",
        replace(drawn, sparsifier=Magnitude(sparsity=REMOVED)): "that removes the smallest weights",
        replace(drawn, recipe=replace(drawn.recipe, epochs=0)): "that is not trained on",
        replace(drawn, start=None): "that masks an untrained network: it has to start from the dense run"})


def _labels(results: Results) -> dict:
    """Those of the first network, trained naturally, with the first seed."""
    return {"net": networks(results.experiment)[0], "training": "natural", "seed": results.experiment.seeds[0]}
