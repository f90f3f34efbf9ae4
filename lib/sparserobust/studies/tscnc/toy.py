"""Small examples for TSCNC (Feng, Lin, Gao & Wei 2025): Gaussian matrices that are pruned or
conditioned, and what the constraints cost a fresh network."""

import math
from collections.abc import Sequence
from itertools import product

import pandas
import torch
from torch import Tensor

from sparserobust.analysis.conditioning import condition, null_conditions, spectrum
from sparserobust.models.gates import gated
from sparserobust.reporting import reported
from sparserobust.running.experiment import Experiment
from sparserobust.seeding import global_seed, stream
from sparserobust.sparsifiers.constraints import FORMS, condition_penalty, filter_costs
from sparserobust.studies.tscnc.report import constraints_of
from sparserobust.studies.tscnc.runs import BOTH, TSCNCSettings


def gaussian(classes: int, inputs: int = 640) -> Tensor:
    """A Gaussian classifier (classes, inputs) of Kaiming standard deviation."""
    with global_seed(0, "toy"):
        return torch.randn(classes, inputs) * math.sqrt(2 / inputs)


def pruned_matrix(levels: Sequence[float], draws: int = 5) -> pandas.DataFrame:
    """A Gaussian 64 x 576 matrix that loses its smallest entries, these shares of them: norm and
    condition number (`series`), each over that of the first level, means over `draws`, under `left`
    the share that is left [%]."""
    found = null_conditions((64, 576), levels, "magnitude", draws, stream(0, "pruned matrix"))
    names = {"condition": "condition number", "norm": "norm (largest singular value)"}
    return pandas.DataFrame([
        {"left": 100 * (1 - each["level"]), "series": name, "value": each[key] / found[0][key]}
        for key, name in names.items() for each in found])


def null_table(draws: int) -> pandas.DataFrame:
    """Condition numbers of pruned Gaussian matrices: those computed for this project's notes on the
    paper, and drawn here."""
    _, noted = reported.load("tscnc").other_table("T4")
    lines, chance = {}, stream(0, "null table")
    for (matrix, how), rows in noted.groupby(["matrix", "pruning"], sort=False):
        sides = sorted(map(int, matrix.split("x")))
        here = null_conditions(tuple(sides), rows["rate"].tolist(), how, draws, chance)
        for (_, row), drawn in zip(rows.iterrows(), here, strict=True):
            lines[f"{matrix}, {how}, {100 * row['rate']:g} % removed"] = {
                "norm, notes": f"{row['sigma_max']:g}", "norm, here": f"{drawn['norm']:.2f}",
                "kappa, notes": f"{row['kappa']:g}", "kappa, here": f"{drawn['condition']:.3g}",
                "singular values that are zero": f"{drawn['zero']:g}"}
    return pandas.DataFrame.from_dict(lines, orient="index")


def initial_costs(experiment: Experiment[TSCNCSettings]) -> tuple[float, float]:
    """The least and the largest expected cost p c of a filter of TSCNC before training."""
    row = experiment.row(method=BOTH)
    own, shape = constraints_of(row), experiment.settings.step_costs.image_shape
    assert own is not None
    with global_seed(0, "toy"):
        network = row["run"].model.build(shape, 10)
    decay = own.images * own.weight_decay / (1 - own.drop_rate)
    costs = torch.cat([gate.open_probability() * filter_costs(gate.weight, decay, own.l0)
                       for gate in gated(network).values()])
    return float(costs.detach().min()), float(costs.detach().max())


def descent(weight: Tensor, form: str, weight_of_form: float, lr: float = 0.1,
            steps: int = 30) -> pandas.DataFrame:
    """What the condition number constraint alone makes of a weight (out, in) by plain gradient
    descent, with weight decay 5e-4: a row per step with `condition` and spectral `norm`."""
    weight, rows = weight.clone(), []
    for step in range(steps + 1):
        values = spectrum(weight)
        rows.append({"step": step, "condition": condition(values), "norm": float(values[0])})
        weight.requires_grad_(True)
        penalty = weight_of_form * condition_penalty(weight, form)
        (gradient,) = torch.autograd.grad(penalty, weight)
        weight = (weight - lr * (gradient + 5e-4 * weight)).detach()
    return pandas.DataFrame(rows)


def descents(weight: Tensor, weights_of_forms: dict[str, float]) -> pandas.DataFrame:
    """The same for several forms (`series`), for `plots.lines`: `value` by `step`, a `col` for the
    condition number and one for the norm."""
    paths = pandas.concat([descent(weight, form, times).assign(series=form)
                           for form, times in weights_of_forms.items()])
    names = {"condition": "condition number", "norm": "norm (largest singular value)"}
    return paths.rename(columns=names).melt(["step", "series"], list(names.values()), "col")


def last_over_first(paths: pandas.DataFrame) -> pandas.DataFrame:
    """How often as large as at first each quantity of `descents` is at last, a line per form."""
    values = paths.groupby(["series", "col"])["value"]
    return (values.last() / values.first()).unstack()


def gradients(classes: Sequence[int]) -> pandas.DataFrame:
    """The condition number constraint on Gaussian classifiers of so many classes: its value and the
    length of its gradient, a line per form and number of classes."""
    lines = {}
    for form, count in product(FORMS[:3], classes):
        weight = gaussian(count).requires_grad_()
        penalty = condition_penalty(weight, form)
        (gradient,) = torch.autograd.grad(penalty, weight)
        lines[f"{form}, {count} classes"] = {
            "penalty": float(penalty.detach()), "length of its gradient": float(gradient.norm())}
    return pandas.DataFrame.from_dict(lines, orient="index")
