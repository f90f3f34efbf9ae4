"""Exercises of 03_rsr."""

import math
from dataclasses import replace

import torch

from sparserobust.config import Run
from sparserobust.models import NoisyWeights
from sparserobust.reporting import estimates
from sparserobust.running.experiment import Results
from sparserobust.sparsifiers import Magnitude
from sparserobust.studies.checks import Verdict, choice, chosen_run, exercise, number, rates
from sparserobust.studies.rsr.runs import ABLATED, BLACK_BOX


@exercise
def exercise_1(answer, results: Results) -> Verdict:
    """Which layer of RSR (dense, first seed) keeps the most noise? Its name in `noise_scales` of the last epoch."""
    dense = _run(results, "RSR", "dense")
    assert isinstance(dense.model, NoisyWeights)
    history = results.store.record(dense)["history"]
    no_lasso = results.store.record(_run(results, "AT + noise", "dense"))["history"]
    begun, scales, other = (epoch["noise_scales"] for epoch in (history[0], history[-1], no_lasso[-1]))
    loudest, quietest = (pick(scales, key=scales.get) for pick in (max, min))
    why = (f"it ends at {scales[loudest]:.3f}, where all began at {dense.model.initial_scale:g}, and the quietest, "
           f"{quietest}, at {scales[quietest]:.3f}: each layer learns how much noise it can bear")
    slips = {layer: f"that layer ends at {scale:.3f}, another one at {scales[loudest]:.3f}"
             for layer, scale in scales.items()}
    slips |= {max(begun, key=begun.get): "that layer leads after the first epoch: look at the last",
              max(other, key=other.get): "that is the loudest of AT + noise: RSR has a panel of its own",
              quietest: "that layer keeps the least"}
    return choice(answer, loudest, why, {layer: said for layer, said in slips.items() if layer != loudest})


@exercise
def exercise_2(answer, results: Results) -> Verdict:
    """By how many points is RSR (pruned) ahead of AT (dense) under Square when its noise is off?"""
    net = results.experiment.settings.black_box.net
    at, rsr = ({"net": net, "method": method, "stage": stage, "varied": ""} for method, stage in BLACK_BOX)

    def points(metric: str) -> float:
        effects = estimates.compared(results.frame, metric, rsr, at).effects
        return sum(effects) / len(effects)

    noisy, quiet = points("square"), points("square_quiet")
    why = (f"with the noise on it was {noisy:+.1f} points: Square stops at the first wrong answer, and fresh noise "
           "sets many of those right again")
    return number(answer, quiet, why, {
        noisy: "that is with the noise on", noisy - quiet: "that is what silence takes away: what is left?",
        -quiet: "that is AT minus RSR: the other way round",
        quiet / 100: "points are asked for: 100 times a difference of rates",
        points("clean"): "those are clean images"}, within=0.11)  # Table 3 is rounded to a tenth


@exercise
def exercise_3(answer) -> Verdict:
    """By what factor does the standard deviation of a Gaussian layer's entries change when its smallest 85 % are set to
    zero? They stay entries."""
    left = 0.15
    variance = variance_left(1 - left)
    why = (f"the largest weights hold {100 * variance:.0f} % of the variance, so noise that is scaled by its root "
           "shrinks by a quarter only, and after a lasso hardly at all (Figure 3)")
    return number(answer, math.sqrt(variance), why, {
        math.sqrt(left): "that would be so if all weights were of one size: the largest hold more of the variance",
        left: "that is the share of weights that are left",
        variance: "that is the factor of the variance: a square root is missing",
        math.sqrt(variance / left): "that is of the weights that are left: the zeros count as entries, too",
        1 / math.sqrt(variance): "that is upside down: after over before"}, tolerance=0.02)


def variance_left(removed: float) -> float:
    """Mean square of a standard Gaussian whose smallest values, this share of all, were set to zero."""
    gaussian = torch.distributions.Normal(0.0, 1.0)
    threshold = gaussian.icdf(torch.tensor((1 + removed) / 2, dtype=torch.float64))
    return float(2 * threshold * gaussian.log_prob(threshold).exp()) + 1 - removed


@exercise
def exercise_4(answer, results: Results) -> Verdict:
    """Where does the lasso's head start end? RSR cut to 97 %, fine-tuned like the row `RSR`, fine-tuned, first seed."""
    dense, pruned, tuned = (_run(results, "RSR", stage) for stage in ("dense", "pruned", "fine-tuned"))
    further = Magnitude(sparsity=0.97)
    cut, most = replace(pruned, sparsifier=further), replace(tuned, sparsifier=further)

    def why() -> str:
        usual = f"{100 * results.experiment.settings.sparsity:g} % cut, fine-tuned"
        compared = {"dense": dense, usual: tuned, "97 % cut": cut, "97 % cut, fine-tuned": most}
        return (f"{_kept(compared, results)}. Beyond what the lasso has made small, cutting costs, and "
                "fine-tuning has to bring it back")

    return chosen_run(answer, most, why, {
        cut: "that is cut, but not fine-tuned", tuned: "that is the row as it is, at its usual sparsity",
        replace(dense, sparsifier=further): "that cuts an untrained network: keep the run the row starts from",
        replace(most, start=replace(dense, sparsifier=further)): "what it starts from has no lasso",
        replace(most, sparsifier=replace(further, scope="layerwise")):
            "that cuts each layer for itself; the row cuts all together"})


@exercise
def exercise_5(answer, results: Results) -> Verdict:
    """Would weight decay do what the lasso does? AT + noise with ten times the weight decay, then cut like the row
    `AT + noise`, pruned, of the first seed."""
    dense, cut = (_run(results, "AT + noise", stage) for stage in ("dense", "pruned"))
    lasso, decay = _run(results, "RSR", "pruned"), 10 * dense.recipe.weight_decay
    more = replace(dense, recipe=replace(dense.recipe, weight_decay=decay))
    decayed = replace(cut, start=more)

    def why() -> str:
        kept = _kept({"no lasso": cut, "ten times the decay": decayed, "lasso": lasso}, results)
        return (f"{kept}. Decay shrinks all weights by the same factor; a lasso takes the same from all, so that small "
                "ones are gone before they are cut")

    return chosen_run(answer, decayed, why, {
        more: "that is the dense network with more decay: it is not cut yet", cut: "that has the usual decay",
        dense: "that is the dense network, with the usual decay", lasso: "that is RSR, which has its lasso",
        replace(cut, recipe=replace(cut.recipe, weight_decay=decay)):
            "cutting has no epochs, so its decay does nothing: change the run it starts from"})


def _run(results: Results, method: str, stage: str) -> Run:
    """Of the first seed, of the network whose ingredients are taken apart. `UserError` if the scale has none."""
    return results.experiment.row(net=ABLATED, method=method, varied="", stage=stage,
                                  seed=results.experiment.seeds[0])["run"]


def _kept(runs: dict[str, Run], results: Results) -> str:
    measured = results.experiment.measurements
    return rates(runs, {"clean": measured["clean"], "PGD-7": measured["pgd7"]}, results.store)
