"""Exercises of 05_tscnc."""

import math
from dataclasses import replace

import torch

from sparserobust import data, sparsity, training
from sparserobust.analysis.conditioning import rank, spectrum
from sparserobust.config import Run
from sparserobust.reporting.estimates import matching
from sparserobust.running.experiment import Results
from sparserobust.sparsifiers import TSCNC
from sparserobust.sparsifiers.constraints import filter_costs
from sparserobust.studies.checks import Verdict, choice, chosen_run, exercise, number, rates
from sparserobust.studies.tscnc.report import CLASSIFIER, KAPPA, MEASURED, labels, removed
from sparserobust.studies.tscnc.runs import (
    BOTH,
    CNC,
    DECAY,
    DENSE,
    GATES,
    HYDRA,
    METHODS,
    PRUNED,
    VARIED,
)

LINEAR = 1e12  # an a so large that the transform is x


@exercise
def exercise_1(answer, results: Results) -> Verdict:
    """Which method loses the largest share of singular values, on average over seeds, at the
    highest sparsity?"""
    net, level = _where(results)
    rows = matching(results.frame, {"net": net, "part": PRUNED, "level": level})
    rows = rows[rows["method"].isin(METHODS)]
    means = rows.groupby(["metric", "method"])["value"].mean()
    zero, kappa = means["kappa zero"], means[KAPPA]
    most = zero.idxmax()
    why = (f"{100 * zero[most]:.0f} % of them are zero, and kappa, which looks at the others, is "
           f"{kappa[most]:.1f}, where it goes from {kappa.min():.1f} to {kappa.max():.1f}: it does "
           "not see rank")
    return choice(answer, most, why, {
        method: f"it loses {100 * share:.1f} %, another one {100 * zero[most]:.1f} %"
        for method, share in zero.items() if method != most})


@exercise
def exercise_2(answer, results: Results) -> Verdict:
    """By which factor has kappa of TSCNC's classifier grown at the level of the claims, on average
    over seeds?"""
    level = results.experiment.settings.primary_level
    rows = matching(results.frame, {"net": results.experiment.nets[0]})
    rows = rows[(rows["part"].eq(DENSE) & rows["level"].eq(0))
                | (rows["part"].eq(PRUNED) & rows["level"].eq(level))]
    means = rows.groupby(["metric", "method", "part"])["value"].mean()

    def grown(method: str, metric: str = CLASSIFIER) -> float:
        return float(means[metric, method, PRUNED] / means[metric, method, DENSE])

    before, after = (float(means[CLASSIFIER, BOTH, part]) for part in (DENSE, PRUNED))
    why = (f"from {before:.2f} to {after:.2f}, where HYDRA, without any constraint, has "
           f"{means[CLASSIFIER, HYDRA, PRUNED]:.2f}: scores ignore it, and fine-tuning has no "
           "constraint")
    return number(answer, grown(BOTH), why, {
        before / after: "that is upside down: after over before",
        after: "that is kappa itself, after pruning",
        after - before: "that is a difference: after over before",
        grown(CNC): "that is +CNC",
        grown(BOTH, KAPPA): "that is of the convolutions"}, within=0.006)


@exercise
def exercise_3(answer) -> Verdict:
    """At which squared norm of a 3x3 filter with 64 inputs is the pole of the released transform,
    with released settings and a gate that is open with probability 0.92?"""
    released, opened = TSCNC(sign="released"), 0.92
    begins = 2.0  # Kaiming: 576 weights of variance 2 / 576
    decay = released.images * released.weight_decay / (1 - released.drop_rate)
    filters = torch.zeros(2, 64, 3, 3)
    filters[1, 0, 0, 0] = 1.0  # of squared norm 1
    empty, unit = filter_costs(filters, decay, released.l0).tolist()

    def norm_at(cost: float) -> float:
        return (cost - empty) / (unit - empty)

    pole = norm_at(released.a / opened)
    why = (f"filters begin at a squared norm of {begins:g}; one {pole / begins:.1f} times as large "
           "is beyond the pole, where the penalty is negative: a reward for being large")
    return number(answer, pole, why, {
        pole / (1 - released.drop_rate): "that is without the factor 1 - 0.3",
        pole * (1 - released.drop_rate):
            "1 - 0.3 divides the decay, so it multiplies the pole once, not twice",
        norm_at(released.a): "x = p c, and p is 0.92: c has to be larger than a",
        norm_at(released.a * opened): "x = p c, so c = a / p",
        pole / 2: "the 1/2 before the decay is missing",
        math.sqrt(pole): "that is the norm: its square is asked for"})


@exercise
def exercise_4(answer, results: Results) -> Verdict:
    """How many singular values of HYDRA's network at the highest sparsity are zero, all layers
    together? First seed."""
    net, level = _where(results)
    row = results.experiment.row(**labels(net, HYDRA, level), seed=results.experiment.seeds[0])
    weights = sparsity.prunable(results.store.model(row["run"])).values()
    spectra = [spectrum(weight) for weight in weights]
    total, kept = sum(map(len, spectra)), sum(map(rank, spectra))
    layers = sum(rank(values) < len(values) for values in spectra)
    exact = sum(int((values == 0).sum()) for values in spectra)
    why = (f"{layers} of {len(spectra)} layers have lost rank, and their true condition number is "
           "infinite: 'ill-conditioned' then means of lower rank, which is what removing whole "
           "rows and columns does")
    return number(answer, total - kept, why, {
        exact: "rounding leaves 1e-10 and the like for zeros: count what is below a millionth of "
               "the largest",
        kept: "that many are *not* zero", total: "that is how many there are",
        layers: "that is how many layers have lost some",
        (total - kept) / total: "that is a share: how many are they?"}, tolerance=0)


@exercise
def exercise_5(answer, results: Results) -> Verdict:
    """A classifier, weight and bias, is multiplied by 2.3: by which factor does the local Lipschitz
    constant change?"""
    row, scale = results.experiment.row(part=DENSE, seed=results.experiment.seeds[0]), 2.3
    splits, measurement = data.load(row["run"].data), row["measurements"]["lipschitz"]
    model = training.build(row["run"], splits).eval()
    before = measurement(model, splits)["value"]
    with torch.no_grad():
        for part in model.get_submodule("linear").parameters():
            part.mul_(scale)
    factor = measurement(model, splits)["value"] / before
    why = ("all logits grow alike, so the largest stays the largest and accuracy what it was: a "
           "Lipschitz constant says nothing of robustness unless margins stand beside it")
    linear = "the last layer is linear: what is multiplied there is multiplied at the end"
    return number(answer, factor, why, {
        1.0: "accuracy stays what it was, the constant does not: it is change of logits over "
             "change of image",
        scale**2: linear, math.sqrt(scale): linear,
        1 / scale: "the logits grow, and so do their changes"}, tolerance=0.02)


@exercise
def exercise_6(answer, results: Results) -> Verdict:
    """What if both constraints look at every layer? TSCNC, dense, first seed, with `layers` all and
    `condition` 0.1."""
    store, first = results.store, {"part": DENSE, "seed": results.experiment.seeds[0]}
    row, single = (results.experiment.row(method=method, **first) for method in (BOTH, CNC))

    def changed(run, **changes):
        return replace(run, sparsifier=replace(run.sparsifier, **changes))

    usual, measured = row["run"], row["measurements"]
    everywhere = changed(usual, layers="all", condition=0.1)

    def why() -> str:
        runs = {"classifier constrained": usual, "all layers": everywhere}
        reached = rates(runs, {"clean": measured["clean"], "PGD-20": measured["pgd20"]}, store)
        short = replace(measured[KAPPA], null_draws=0)  # without the null, which takes time
        kappas = [f"{store.measure(run, short)['value']:.2f} ({name})"
                  for name, run in runs.items()]
        return (f"kappa of convolutions {', '.join(kappas)}; {reached}. That a network can be made "
                "well-conditioned does not say that it is robust")

    return chosen_run(answer, everywhere, why, {
        usual: "that constrains the classifier alone",
        changed(usual, layers="all"):
            "its condition is the usual one, and too strong for every layer: 0.1",
        changed(usual, condition=0.1):
            "it still constrains the classifier alone: its layers should be all",
        changed(single["run"], layers="all", condition=0.1):
            "that is +CNC, which has no constraint on sparsity"})


@exercise
def exercise_7(answer, results: Results) -> Verdict:
    """The control of TSCNC, dense, first seed: gates that decay, with neither transform nor cost of
    an open gate nor constraint on the condition number."""
    experiment, seed = results.experiment, results.experiment.seeds[0]
    row = experiment.row(part=DENSE, method=BOTH, seed=seed)
    usual, alone = row["run"], experiment.row(method=GATES, level=0.0, seed=seed)["run"]

    def changed(**changes) -> Run:
        return replace(usual, sparsifier=replace(usual.sparsifier, **changes))

    control = changed(a=LINEAR, l0=0.0, condition=0.0)

    def why() -> str:
        net, level = experiment.nets[0], experiment.settings.primary_level
        rows = {BOTH: labels(net, BOTH, level), "control": labels(net, DECAY, level, VARIED),
                HYDRA: labels(net, HYDRA, level)}
        runs = {name: experiment.row(**at, seed=seed)["run"] for name, at in rows.items()}
        reached = rates(runs, {name: row["measurements"][metric] for name, metric in MEASURED.items()},
                        results.store)
        return (f"with {removed(level)}, {reached}. What the control gains over {HYDRA} is not the "
                "constraints'")

    return chosen_run(answer, control, why, {
        usual: "that has both constraints",
        changed(condition=0.0): "that is +TSC: transform and cost of an open gate are still there",
        changed(a=LINEAR, l0=0.0): "it still constrains the condition number",
        changed(a=LINEAR, condition=0.0): "an open gate still costs: l0",
        changed(l0=0.0, condition=0.0): "its transform still bends: a",
        changed(sparse=0.0, condition=0.0):
            "with sparse 0 gated filters decay like all other weights, not as TSCNC's do",
        alone: "its gates have no decay of their own"})


def _where(results: Results) -> tuple[str, float]:
    """The first network, and the highest share of weights that is removed from it."""
    experiment = results.experiment
    return experiment.nets[0], experiment.settings.levels[-1]
