"""Exercises of 01_fk_resnet."""

import math
from dataclasses import replace

from sparserobust.config import Run
from sparserobust.objectives import Natural
from sparserobust.reporting import reported
from sparserobust.running.experiment import Results
from sparserobust.sparsifiers import Magnitude
from sparserobust.studies.checks import Verdict, chosen_run, exercise, number, rates
from sparserobust.studies.fk_resnet import report
from sparserobust.studies.fk_resnet.comparisons import PAIRS
from sparserobust.studies.fk_resnet.runs import PAPER, SINGLE


@exercise
def exercise_1(answer, results: Results) -> Verdict:
    """How many parameters has the ensemble of the paper's headline left for each one that its ResNet20 has left?"""
    pair = PAIRS["C3"][:2]
    (many, of), (few, of_one) = report.left(results, "remaining_parameters", *pair)
    (channels, of_channels), (channels_one, of_channels_one) = report.left(results, "channel_sparsity", *pair)
    gone, gone_one = 1 - channels / of_channels, 1 - channels_one / of_channels_one
    why = (f"{100 * gone:.0f} % of the ensemble's channels are gone and {100 * gone_one:.0f} % of ResNet20's, "
           f"{gone / gone_one:.2f} times the share, and it is {many / few:.2f} times as large: sparser and smaller are "
           "two questions")
    return number(answer, many / few, why, {
        few / many: "that is upside down: the ensemble's over the single network's",
        of / of_one: "that is before pruning: what is left?",
        (many / of) / (few / of_one): "that compares shares: the ensemble began with more parameters",
        (of - many) / (of_one - few): "those are the parameters removed: how many are left?",
        channels / channels_one: "those are channels: the figure counts parameters",
        gone / gone_one: "those are the shares of channels removed, which the paper compares"}, tolerance=0.03)


@exercise
def exercise_2(answer) -> Verdict:
    """Which beta zeroes all weights below 0.01, where lambda is 1e-6? The threshold of l0 is sqrt(2 lambda / beta)."""
    lam, smallest = 1e-6, 0.01
    beta = 2 * lam / smallest**2
    betas = reported.load(PAPER).reported_table("T1")["beta"].dropna().unique()
    thresholds = ", ".join(f"{math.sqrt(2 * lam / b):.4f} (beta {b:g})" for b in betas)
    why = f"the weaker the pull, the higher the threshold, and the more weights go; the paper's own are {thresholds}"
    return number(answer, beta, why, {
        beta / 2: "that is without the factor 2 under the root",
        2 * lam / smallest: "the root is missing: the threshold squared is 2 lambda / beta",
        lam / smallest: "that is the soft threshold of l1, lambda / beta; the hard one of l0 has a root and a 2",
        1 / beta: "that is upside down: it is 1 / beta",
        math.sqrt(beta): "that is the root of beta: square both sides"})


@exercise
def exercise_3(answer, results: Results) -> Verdict:
    """When u replaces w at the end of RGSM's first run, which share of |w|^2, over all convolutions, stays?"""
    history = results.history(net=SINGLE, method="RGSM")
    first, gap = history[0]["gap"], history[-1]["gap"]
    why = ("a hard threshold leaves what it keeps as it is, so u and w - u are orthogonal; had the gap been large, "
           "weights would be torn out that had not come near zero, and accuracy would fall")
    return number(answer, 1 - gap**2, why, {
        1 - gap: "lengths do not add up, squares do: |w|^2 = |u|^2 + |w - u|^2",
        gap: "that is |w - u| / |w|, of what goes, and not squared",
        1 - first**2: "that is after the first epoch: w is replaced after the last",
        gap**2: "that is the share that goes: which one stays?",
        math.sqrt(1 - gap**2): "that is |u| / |w|: its square is asked for"}, tolerance=1e-3)


@exercise
def exercise_4(answer, results: Results) -> Verdict:
    """Is it noise or averaging that helps? The dense ensemble of the first seed, trained without noise."""
    noisy, usual = (results.experiment.row(net=net, method="dense")["run"] for net in ("En2ResNet20", SINGLE))
    quiet = replace(noisy, model=replace(noisy.model, noise=0.0))
    one = replace(quiet, model=replace(quiet.model, members=1))

    def why() -> str:
        runs = {"with noise": noisy, "without": quiet, "one member without": one}
        return (f"{_kept(runs, results)}. What the ensemble has without noise is averaging's, and a "
                "difference of a few points is chance")

    averaging_too = "that is one network: averaging is gone together with the noise"
    return chosen_run(answer, quiet, why, {
        noisy: "that is the ensemble with its noise: its model has a setting `noise`",
        replace(quiet, objective=Natural()): "that is not trained under attack: two things differ",
        one: averaging_too, usual: averaging_too})


@exercise
def exercise_5(answer, results: Results) -> Verdict:
    """Is the missing projection the whole difference? Released ADMM's weights, pruned to the share of corrected ADMM,
    layer by layer, not trained on."""
    released, corrected = (results.experiment.row(net=SINGLE, method=f"{which}ADMM weights")["run"]
                           for which in ("released ", ""))
    pruner = Magnitude(sparsity=corrected.sparsifier.sparsity, scope="layerwise")
    cut = released.then(recipe=replace(released.recipe, epochs=0), sparsifier=pruner)

    def why() -> str:
        runs = {"released": released, "cut": cut, "corrected": corrected}
        return (f"{_kept(runs, results)}. Cutting weights off costs little only where something has pulled "
                "them towards zero before")

    return chosen_run(answer, cut, why, {
        replace(cut, recipe=released.recipe): "that trains on: 0 epochs are projection and nothing else",
        replace(cut, start=None): "that cuts an untrained network: it has to start from the released ADMM's run",
        replace(cut, start=corrected): "that starts from corrected ADMM, whose weights are projected already",
        replace(cut, sparsifier=replace(pruner, scope="global")):
            "that ranks the weights of all layers together: ADMM projects each to the share, scope layerwise",
        replace(cut, sparsifier=replace(pruner, sparsity=released.sparsifier.sparsity)):
            "that is the released ADMM's percentile: take the share of corrected ADMM",
        released: "that is the released ADMM, not projected", corrected: "that is corrected ADMM"})


def _kept(runs: dict[str, Run], results: Results) -> str:
    names = {"clean": "clean", "I-FGSM20": "ifgsm20", "PGD-20, averaged": "pgd20_eot"}
    measurements = {heading: results.experiment.measurements[name] for heading, name in names.items()}
    return rates(runs, measurements, results.store)
