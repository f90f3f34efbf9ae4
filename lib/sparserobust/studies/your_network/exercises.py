"""Exercises of 07_your_network."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparserobust import data
from sparserobust.analysis.masking import PGD20
from sparserobust.answers import predicted
from sparserobust.errors import UserError, quoted
from sparserobust.reporting.audits import Report
from sparserobust.running.experiment import Results
from sparserobust.studies.checks import Verdict, choice, exercise, not_yet, number, right
from sparserobust.studies.your_network.report import LEVELS, Masked, masked, network
from sparserobust.studies.your_network.runs import NATURAL

LOST = 0.05  # of the accuracy, that a mask may cost
CUT_OFF = "it is cut off, as by `detach` of everything: detach only what rounding adds"
NOISE = "noise hides nothing: attacks average it away. Take something with steps"


def unchanged(logits: Tensor) -> Tensor:
    """The same logits."""
    return logits


def _named(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__} {quoted(str(error))}"


def _tried(answer: Callable[[Tensor], Tensor], images: Tensor) -> Tensor | str:
    """What a function makes of images, or why that is of no use."""
    if not callable(answer):
        return "a function is expected: images (n, 1, 8, 8) in, images out"
    try:
        changed = answer(images.clone())
    except Exception as error:  # whatever somebody writes
        return f"your function fails, with {_named(error)}"
    if not isinstance(changed, Tensor) or changed.shape != images.shape:
        return "it should give images of the shape that it gets, as a tensor"
    if changed.dtype != images.dtype:
        return f"it should give numbers like those it gets, {images.dtype}, not {changed.dtype}"
    if not changed.isfinite().all():
        return "it gives numbers that are not finite"
    return changed


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
    test = data.load(results.experiment.settings.data).test
    changed = _tried(answer, test.images)
    if isinstance(changed, str):
        return not_yet(changed)
    if torch.equal(changed, test.images):
        return not_yet("it changes nothing, so that it hides nothing: the audit sees nothing wrong")
    if float(changed.detach().max()) > 2:
        return not_yet("its pixels are not between 0 and 1: divide again by what you multiply by")
    net = network(results, NATURAL)
    before, after = (float((predicted(net, images) == test.labels).double().mean())
                     for images in (test.images, changed.detach()))
    if after < before - LOST:
        return not_yet(f"clean accuracy falls from {before:.1%} to {after:.1%}: change less")
    try:
        report = masked(results, answer)
    except UserError as error:  # as of a function that takes just so many images
        return not_yet(quoted(str(error)))
    if not report.unreliable:
        return not_yet(NOISE if report.result["random"] else
                       f"the audit sees nothing wrong with it: {report.verdict()}")
    kinds = ", ".join(flag["kind"] for flag in report.flags)
    return right(f"flags raised: {kinds}. PGD leaves {report.result['attacks'][PGD20]['count']} "
                 f"images, all attacks together {report.result['count']}: the network is no better "
                 "than before, the attack is worse")


def rounded(images: Tensor, levels: int = LEVELS) -> Tensor:
    """Images whose pixels are rounded to this many steps."""
    return (levels * images).round() / levels


@exercise
def exercise_4(answer, results: Results) -> Verdict:
    """The control of rounding: a function that makes the same images, and lets the gradient pass."""
    splits = data.load(results.experiment.settings.data)
    images = splits.test.images.clone().requires_grad_()
    changed = _tried(answer, images)
    if isinstance(changed, str):
        return not_yet(changed)

    def gives(wanted: Tensor) -> bool:
        return torch.allclose(changed, wanted, atol=1e-5)

    if gives(images):
        return not_yet("these are the images as they were: a control rounds them, too")
    for levels in range(1, 257):
        if levels != LEVELS and gives(rounded(images, levels)):
            return not_yet(f"it rounds to {levels + 1} grey values, the network's to {LEVELS + 1}: "
                           "a control differs in one thing only")
    if not gives(rounded(images)):
        far = float((changed - rounded(images)).abs().max().detach())
        return not_yet(f"its pixels differ by up to {far:.2g} from the rounded ones: a control "
                       "differs in one thing only, the gradient")
    if not changed.requires_grad:
        return not_yet(CUT_OFF)
    try:
        (slope,) = torch.autograd.grad(changed.sum(), images, allow_unused=True)
    except Exception as error:  # of an own autograd function, say
        return not_yet(f"its gradient fails, with {_named(error)}")
    if slope is None:
        return not_yet(CUT_OFF)
    if not slope.any():
        return not_yet("that rounds, and its gradient is still zero: nothing is controlled")
    if slope.mean() < 0:
        return not_yet("its gradient points the other way: the sign should be the other one")
    net, pgd = network(results, NATURAL), results.experiment.settings.audit.accuracies(False)[PGD20]
    try:
        passed, hidden = (pgd(Masked(net, before, unchanged).eval(), splits)
                          for before in (answer, rounded))
    except UserError as error:
        return not_yet(quoted(str(error)))
    return right(f"the same images: PGD leaves {hidden['count']} of {hidden['total']} without a "
                 f"gradient, and {passed['count']} where it passes")
