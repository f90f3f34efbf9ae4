"""Exercises of 07_your_network."""

import torch

from sparserobust import data
from sparserobust.answers import predicted
from sparserobust.reporting.audits import Report
from sparserobust.running.experiment import Results
from sparserobust.studies.checks import Verdict, choice, exercise, not_yet, number, right
from sparserobust.studies.your_network.report import masked, network
from sparserobust.studies.your_network.runs import NATURAL

LOST = 0.05  # of the accuracy, that a mask may cost


@exercise
def exercise_1(answer, hidden_report: Report) -> Verdict:
    """The largest share [%] of images that may be called robust, of the network with masked
    gradients."""
    attacks = hidden_report.result["attacks"]
    slips = {100 * attacks[name]["value"]: f"that is what {name} leaves: does no other attack leave "
             "less?" for name in ("clean", "one step", "PGD-20", "PGD-100")}
    return number(answer, 100 * hidden_report.result["value"], "an image is robust if no attack fools it, "
                  "and one that is found is enough; even this is an upper bound", slips)


@exercise
def exercise_2(answer) -> Verdict:
    """Which flag a network raises that adds fresh noise to every image."""
    return choice(answer, "random", "each answer is one draw: attack with gradients that are "
                  "averaged over many draws, and answer many times", {
                      "saturated": "that is what logits too large for float32 do",
                      "rounded input": "noise blurs steps rather than makes them",
                      "batch": "noise is drawn for each image, whatever stands beside it"})


@exercise
def exercise_3(answer, results: Results) -> Verdict:
    """A function of images (n, 1, 8, 8) that hides the gradient and leaves the answers nearly as
    they are: an audit of the network behind it should flag it."""
    if not callable(answer):
        return not_yet("a function is expected: images (n, 1, 8, 8) in, images out")
    net, test = network(results, NATURAL), data.load(results.experiment.settings.data).test
    changed = answer(test.images)
    if not isinstance(changed, torch.Tensor) or changed.shape != test.images.shape:
        return not_yet("it should give images of the shape that it gets")
    before, after = (float((predicted(net, images) == test.labels).double().mean())
                     for images in (test.images, changed))
    if after < before - LOST:
        return not_yet(f"clean accuracy falls from {before:.1%} to {after:.1%}: change less")
    report = masked(results, answer)
    if not report.unreliable:
        return not_yet(f"the audit sees nothing wrong with it: {report.verdict()}")
    kinds = ", ".join(flag["kind"] for flag in report.flags)
    return right(f"flags raised: {kinds}. PGD leaves {report.result['attacks']['PGD-20']['count']} "
                 f"images, all attacks together {report.result['count']}: the network is no better "
                 "than before, the attack is worse")
