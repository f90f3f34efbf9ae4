"""Lipschitz Constant Meets Condition Number (Feng, Lin, Gao & Wei 2025): two constraints in adversarial training, then
pruning by learned scores. The method is known as released code, none of the paper's numbers is on record."""

import statistics
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas
import torch
from torch import Tensor

from sparserobust.analysis import WeightSparsity
from sparserobust.analysis.conditioning import condition, null_conditions, spectrum
from sparserobust.config import Data, Measurement, Model, Objective, Recipe, Run, Sparsifier
from sparserobust.reporting import claims, estimates, reported, tables
from sparserobust.reporting.reported import Claim
from sparserobust.running import scales
from sparserobust.running.experiment import Experiment as _Experiment
from sparserobust.running.store import Store
from sparserobust.seeding import stream
from sparserobust.sparsifiers import TSCNC, Dense, FixedMask, LearnedScores, Magnitude
from sparserobust.sparsifiers.constraints import condition_penalty

PAPER = "tscnc"
TRADES, LONGER = "TRADES", "TRADES, trained on"
LWM, HYDRA, TSC, CNC, BOTH, GATES = "LWM", "HYDRA", "+TSC", "+CNC", "TSCNC", "gates alone"
ALL_LAYERS, RELEASED, DECAY = "CNC, all layers", "TSCNC, as released", "TSC, decay alone"
METHODS = (LWM, HYDRA, TSC, CNC, BOTH)
PRETRAINED = {LWM: TRADES, HYDRA: TRADES}  # the dense network that a method prunes, where it has not its own name
DENSE, CONTROL, SCORES, PRUNED, VARIED = "dense", "control", "not fine-tuned", "pruned", "varied"
ATTACKS = {"PGD-20": "pgd20", "PGD-50": "pgd50", "CW-inf": "cw"}
PROTOCOL = {"clean": "clean"} | ATTACKS
KAPPA, CLASSIFIER = "kappa", "kappa classifier"
KAPPA_SLOPE = "log kappa folded"
LOGARITHMS = {KAPPA_SLOPE: "kappa folded", "log kappa": KAPPA, "log kappa classifier": CLASSIFIER,
              "log kappa over null": "kappa over_null", "log lipschitz": "lipschitz",
              "log kappa classifier over null": "kappa classifier_over_null"}
NORMS, RELATIVE_NORMS, OVER_NULL = "kappa log_norms", "kappa log_relative_norms", "kappa log_relative_norms_over"
MATRICES: dict[str, tuple[str, float]] = {
            "kappa, classifier": (CLASSIFIER, 1), "kappa, convolutions": (KAPPA, 1),
            "over null": ("kappa over_null", 1), "convolutions, folded": ("kappa folded", 1),
            "floored": ("kappa folded_floored", 1), "deficit": ("kappa folded_deficit", 1),
            "zero singular values [%]": ("kappa zero", 100),
            "zero as they act [%]": ("kappa sparsity", 100), "log10 of norms": (NORMS, 1),
            "the same, scale-free": (RELATIVE_NORMS, 1), "local Lipschitz": ("lipschitz", 1)}
# what is drawn along sparsity: metric, factor, metric of the null curve
CURVES = {"kappa, convolutions (median)": (KAPPA, 1, "kappa null"),
          "kappa, classifier": (CLASSIFIER, 1, "kappa null_classifier"),
          "zero singular values [%]": ("kappa zero", 100, "kappa null_zero"),
          "log10 of the product of norms": (NORMS, 1, "kappa null_log_norms"),
          "the same, scale-free": (RELATIVE_NORMS, 1, "kappa null_log_relative_norms"),
          "local Lipschitz": ("lipschitz", 1, None)}
LINE = ["ours", "method", "removed"]  # what names a line of a table
WHERE = {"C1": "table 1", "C2": "figure 1", "C3": "figure 1", "C4": "figure 6", "C5": "table 1", "C6": "effects",
         "C7": "effects", "C8": "what is not on record"}
HEAVY = 0.9  # share of weights removed from which on pruning is heavy
STANDING = 0.5  # of what the best network classifies of the clean images: one below has collapsed
DOUBLED = 0.3  # log10


class Experiment(_Experiment):
    """Grid rows: `net` (the paper's) and `ours` (what stands for it), `part` (dense; control: dense, trained on; not
    fine-tuned; pruned, which is fine-tuned; varied: a setting of a method is changed, dense or fine-tuned), `method`,
    `level` (share of weights removed), `seed`, `run`, `also`."""


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment:
    """Everything the notebook runs at a scale, or all of it with these seeds. `UserError` for an unknown scale, bad
    seeds, or a misspelt setting of a run or measurement (other words of a scale file are not checked)."""
    settings = scales.load(scale, PAPER)
    chosen = scales.checked_seeds(seeds, settings["seeds"])
    grid = [row for net, own, seed in scales.networks(settings, seeds)
            for row in _net_rows(own, net, seed, first=seed == chosen[0])]
    return Experiment(scale, chosen, grid, {"sparsity": WeightSparsity()}, settings)


def _net_rows(settings: dict, net: str, seed: int, first: bool) -> list[dict]:
    """Grid rows of one net and seed."""
    rows = []
    for part, method, level, run in (*_main_rows(settings, seed), *_varied_rows(settings, seed, first)):
        labels = {"net": net, "ours": settings["label"], "part": part, "method": method, "level": level, "seed": seed}
        rows.append(labels | {"run": run, "also": _also(settings, labels, first)})
    return rows


def _main_rows(settings: dict, seed: int) -> Iterator[tuple[str, str, float, Run]]:
    """(part, method, level, run): dense networks, the control that is trained on, and all that is pruned from them."""
    whole = {method: pretraining(settings, seed, method) for method in (TRADES, TSC, CNC, BOTH)}
    for method, run in whole.items():
        yield DENSE, method, 0.0, run
    yield CONTROL, LONGER, 0.0, _after(whole[TRADES], Recipe.parse(settings["fine_tuning"]), Dense())
    for method in METHODS:
        for level in settings["levels"]:
            scored, tuned = pruned(settings, whole[PRETRAINED.get(method, method)], level, by_scores=method != LWM)
            yield SCORES, method, level, scored
            yield PRUNED, method, level, tuned


def _varied_rows(settings: dict, seed: int, first: bool) -> Iterator[tuple[str, str, float, Run]]:
    """The same for what is varied: a setting of a method is changed, and method is the name of the change."""
    for name, own in settings["varied"].items():
        if first or own.get("every_seed"):
            changes = {key: value for key, value in own.items() if key not in ("of", "levels", "every_seed")}
            dense = pretraining(settings, seed, own["of"], **changes)
            yield VARIED, name, 0.0, dense
            for level in own["levels"]:
                scored, tuned = pruned(settings, dense, level)
                yield SCORES, name, level, scored
                yield VARIED, name, level, tuned


def pretraining(settings: dict, seed: int, method: str, **changes) -> Run:
    """Stage 1: TRADES, with the constraints of a method, of which some settings may be changed; what is constrained in
    sparsity has gates, and so has `GATES`, which has no constraint."""
    sparse, condition, gated = method in (TSC, BOTH), method in (CNC, BOTH), method in (TSC, BOTH, GATES)
    run = Run(data=Data.parse(settings["data"]), model=Model.parse(settings["model"]),
              objective=Objective.parse(settings["objective"]), recipe=Recipe.parse(settings["recipe"]), seed=seed)
    if gated:
        run = replace(run, model=replace(run.model, gated=True))
    if not sparse and not condition:
        return run
    asked = settings["constraints"]
    weights = {"sparse": asked["sparse"] if sparse else 0, "condition": asked["condition"] if condition else 0}
    decay = {"weight_decay": run.recipe.weight_decay}  # in the loss, not in the optimiser
    return replace(run, recipe=replace(run.recipe, weight_decay=0),
                   sparsifier=TSCNC.parse(asked | decay | weights | changes))


def pruned(settings: dict, dense: Run, level: float, by_scores: bool = True) -> tuple[Run, Run]:
    """Stages 2 and 3: without fine-tuning, and with it. Scores get some of the epochs; by least magnitude, layer by
    layer, there is nothing to train before."""
    scores, whole = (Recipe.parse(settings[stage]) for stage in ("scores", "fine_tuning"))
    if by_scores:
        cut = _after(dense, scores, LearnedScores(sparsity=level))
    else:
        cut = _after(dense, replace(whole, epochs=0), Magnitude(sparsity=level, scope="layerwise"))
    return cut, _after(cut, replace(whole, epochs=whole.epochs - cut.recipe.epochs), FixedMask())


def _after(start: Run, recipe: Recipe, sparsifier: Sparsifier) -> Run:
    return replace(start, start=start, recipe=recipe, sparsifier=sparsifier)


def _also(settings: dict, row: dict, first: bool) -> dict[str, Measurement]:
    """What is measured on a row."""
    part, method, level = row["part"], row["method"], row["level"]
    names: dict[str, dict] = {}
    if part != SCORES or (method in METHODS and level in settings["stronger_levels"]):
        names |= settings["protocol"]
    if part != SCORES:
        names |= settings["why"] | {KAPPA: {"kind": "conditioning", "null_draws": settings["null_draws"]}}
    if part in (DENSE, PRUNED) and level in (0, *settings["stronger_levels"]):
        names |= settings["stronger"]
    if part in (DENSE, PRUNED) and first and level in settings["autoattack_levels"].get(method, ()):
        names |= settings["autoattack"]
    if first and "health" in settings and part in (DENSE, PRUNED) and level in (0, settings["primary_level"]):
        names["health"] = settings["health"]
    if part == DENSE:
        names["near_zero"] = {"kind": "weight_histogram"}
    return {name: Measurement.parse(m) for name, m in names.items()}


def overview(grid: list[dict]) -> pandas.DataFrame:
    """The grid as a table, one line per net, part, method and epochs."""
    return tables.gathered([{
        "net": row["ours"], "part": row["part"], "method": row["method"], "gates": row["run"].model.gated,
        "epochs": sum(r.recipe.trained_epochs for r in row["run"].lineage), "removed [%]": f"{100 * row['level']:g}",
        "seeds": row["seed"]} for row in grid], "removed [%]", "seeds")


def located(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The frame with `left` [%], the share of convolution and linear weights that are stored and not zero, and
    `removed`, what the level is called; with the logarithms to base 10 that effects and slopes are taken of
    (`LOGARITHMS`); and without what a collapsed network has not (a condition number, say)."""
    frame = frame.assign(left=estimates.left(frame, "sparsity"), value=frame["value"].astype(float),
                         removed=(100 * frame["level"]).map("{:g} % removed".format))
    frame = frame.dropna(subset="value")
    positive = frame[frame["value"] > 0]
    logarithms = [positive[positive["metric"] == metric].assign(metric=name, value=lambda rows: np.log10(rows["value"]))
                  for name, metric in LOGARITHMS.items()]
    return pandas.concat([frame, *logarithms], ignore_index=True)


def labels(net: str, method: str, level: float = 0.0, part: str = PRUNED) -> dict:
    """The labels that name a kind of row; of a method that is not varied, level 0 is the dense network it prunes."""
    if part == PRUNED and not level:
        part, method = DENSE, PRETRAINED.get(method, method)
    return {"net": net, "part": part, "method": method, "level": level}


def series(frame: pandas.DataFrame, metric: str, net: str, methods: tuple[str, ...] = METHODS) -> pandas.DataFrame:
    """Rows of a metric along sparsity, under `series` the method; each begins with the dense network it prunes."""
    chosen = estimates.matching(frame, {"metric": metric, "net": net})
    return pandas.concat([pandas.concat([
        estimates.matching(chosen, {"part": DENSE, "method": PRETRAINED.get(method, method)}),
        estimates.matching(chosen, {"part": PRUNED, "method": method})]).assign(series=method) for method in methods])


def panels(frame: pandas.DataFrame, rows: list[dict[str, tuple[str, float]]], net: str) -> list[list[dict]]:
    """For `plots.along_sparsity`: a panel for each heading, of metric and factor."""
    return [[{"frame": series(frame, metric, net), "factor": factor, "title": heading}
             for heading, (metric, factor) in row.items()] for row in rows]


def null_panels(frame: pandas.DataFrame, net: str) -> list[list[dict]]:
    """For `plots.along_sparsity`: two rows of `CURVES`, each with what Gaussian layers of the same shapes and sizes
    would have that lose as many weights as those of HYDRA (the other methods remove as many)."""
    found = []
    for heading, (metric, factor, null) in CURVES.items():
        lines = [series(frame, metric, net)]
        if null:
            lines.append(series(frame, null, net, (HYDRA,)).assign(series="null"))
        found.append({"frame": pandas.concat(lines), "factor": factor, "title": heading})
    return [found[:3], found[3:]]


def layer_conditions(experiment: Experiment, store: Store, net: str) -> dict[str, dict[str, dict[str, float]]]:
    """For `plots.layerwise`: a panel for the dense network and for the lowest and the highest heavy level, the
    condition number of every layer, the median over seeds, of what HYDRA and TSCNC prune and of Gaussian layers that
    lose as much as HYDRA's."""
    heavy = [level for level in experiment.of(net)["levels"] if level >= HEAVY]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for level in dict.fromkeys((0.0, heavy[0], heavy[-1])):
        for method in (HYDRA, BOTH):
            rows = experiment.rows(**labels(net, method, level))
            results = [store.measure(row["run"], row["also"][KAPPA]) for row in rows if KAPPA in row["also"]]
            if not results:
                continue
            panel = found.setdefault(f"{100 * level:g} % removed", {})
            panel[method] = _over_seeds(results, "layers", "condition")
            if method == HYDRA:
                panel["null"] = _over_seeds(results, "null", "condition_median")
    return found


def _over_seeds(results: list[dict], of: str, key: str) -> dict[str, float]:
    """The median of a number of every layer, from image to answer; nan where no network has it."""
    layers = sorted(results[0][of], key=lambda name: (name != "stem", name == "linear"))
    values = {name: [r[of][name][key] for r in results if r[of][name][key]] for name in layers}
    return {name: statistics.median(found) if found else np.nan for name, found in values.items()}


def accuracies(frame: pandas.DataFrame) -> pandas.DataFrame:
    """One line per net, method and share removed, in percent: clean, and under the attacks that were measured."""
    here = {heading: metric for heading, metric in PROTOCOL.items() if metric in set(frame["metric"])}
    return tables.rates(frame.sort_values("level", kind="stable"), LINE, here)


def matrices(frame: pandas.DataFrame, columns: dict[str, tuple[str, float]] = MATRICES) -> pandas.DataFrame:
    """The same lines, of what is said of matrices: `columns` maps headings to metrics and factors."""
    return tables.means(frame.sort_values("level", kind="stable"), LINE, columns)


def compared(experiment: Experiment, net: str, level: float) -> tables.Pairs:
    """(treatment, reference) by name: what pruning does, what each constraint adds to the same pipeline without."""
    at = {method: labels(net, method, level) for method in METHODS}
    pairs = {f"{HYDRA} - {TRADES}": (at[HYDRA], labels(net, TRADES)),
             f"{HYDRA} - {LONGER}": (at[HYDRA], labels(net, LONGER, part=CONTROL)),
             f"{HYDRA} - {LWM}": (at[HYDRA], at[LWM])}
    pairs |= {f"{method} - {HYDRA}": (at[method], at[HYDRA]) for method in (TSC, CNC, BOTH)}
    varied = {name: labels(net, name, level, VARIED) for name in (GATES, DECAY, ALL_LAYERS, RELEASED)
              if experiment.rows(net=net, part=VARIED, method=name, level=level)}
    pairs |= {f"{BOTH} - {name}": (at[BOTH], varied[name]) for name in (GATES, DECAY) if name in varied}
    return pairs | {f"{name} - {HYDRA}": (varied[name], at[HYDRA]) for name in (ALL_LAYERS, RELEASED) if name in varied}


def observations(frame: pandas.DataFrame, net: str) -> pandas.DataFrame:
    """One row per dense or fine-tuned network of a net, a column per metric, for `estimates.regression`; `log left` is
    the logarithm of the share of weights that are left."""
    chosen = frame[(frame["net"] == net) & (frame["part"] != SCORES)]
    by = ["method", "level", "removed", "seed", "run", "left"]
    wide = chosen.drop_duplicates(["run", "metric"]).pivot(index=by, columns="metric", values="value").reset_index()
    missing = {name: np.nan for name in LOGARITHMS if name not in wide}  # measured before there was such a metric
    return wide.assign(**{"log left": np.log10(wide["left"])}, **missing)


def whole_seeds(frame: pandas.DataFrame, net: str) -> list[int]:
    """The seeds of which all networks of a net are known that are known of any seed; those in which something is varied
    may be missing."""
    chosen = frame[(frame["net"] == net) & frame["part"].isin([DENSE, CONTROL, PRUNED]) & (frame["metric"] == "pgd20")]
    counts = chosen.groupby("seed")["run"].nunique()
    return counts.index[counts == counts.max()].tolist()


def thesis(frame: pandas.DataFrame, net: str) -> dict[str, pandas.DataFrame]:
    """Regressions over all networks of a net, of its `whole_seeds`, by name; where there are fewer than four conditions
    (a method at a level) for each column, a regression is left out. Of accuracy under PGD-20 on condition number and
    norms, which is the paper's thesis, with all the networks; without those whose every layer was constrained, which
    lie far out; with those alone that still stand (`STANDING`); and with each column and the target centred within the
    levels, so that nothing but what differs at the same sparsity counts. On the condition number with norms that no
    rescaling changes, and with how much is left; on the effective rank with how much is left. `lipschitz`: of the
    logarithm of the local Lipschitz constant."""
    rows = observations(frame[frame["seed"].isin(whole_seeds(frame, net))], net)
    both = [KAPPA_SLOPE, NORMS]
    centred = rows.assign(**{column: rows[column] - rows.groupby("level")[column].transform("mean")
                             for column in ("pgd20", *both)})
    asked = {"kappa, norms": (rows, both),
             "kappa, norms; without all layers": (rows[~rows["method"].str.contains("all layers")], both),
             "kappa, norms; standing": (rows[rows["clean"] >= STANDING * rows["clean"].max()], both),
             "kappa, norms; within levels": (centred, both),
             "kappa, scale-free norms": (rows, [KAPPA_SLOPE, RELATIVE_NORMS]),
             "kappa, norms, weights left": (rows, [*both, "log left"]),
             "effective rank, weights left": (rows, ["kappa effective_rank", "log left"]),
             "lipschitz": (rows, both)}
    found = {}
    for name, (data, columns) in asked.items():
        target = "log lipschitz" if name == "lipschitz" else "pgd20"
        known = data.dropna(subset=[target, *columns])
        if len(known[["method", "level"]].drop_duplicates()) >= 4 * len(columns):
            found[name] = estimates.regression(known, target, columns)
    return found


def slopes_table(found: dict[str, pandas.DataFrame]) -> pandas.DataFrame:
    """One line per column of each regression: its slope with its interval, and what the line explains with it and
    without."""
    lines = {}
    for name, slopes in found.items():
        for column, row in slopes.iterrows():
            lines[f"{name}: {column.removeprefix('kappa ')}"] = {
                "slope [sd per sd]": f"{row['slope']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]",
                "R2 of all": f"{row['r2']:.2f}", "without it": f"{row['r2_without']:.2f}", "networks": int(row["runs"])}
    return pandas.DataFrame.from_dict(lines, orient="index")


def constraints_of(row: dict) -> TSCNC | None:
    """The constraints of the dense network that a grid row begins with, if it had any."""
    first = row["run"].lineage[0].sparsifier
    return first if isinstance(first, TSCNC) else None


def sensitivity(frame: pandas.DataFrame, experiment: Experiment, net: str, setting: str) -> pandas.DataFrame:
    """For `plots.bands`, from the first seed: rows of TSCNC, dense and pruned, and of what differs from it in one
    setting, at the levels that both have; `level` is the value of that setting."""
    reference = experiment.rows(net=net, method=BOTH)[0]
    main, model = constraints_of(reference), reference["run"].model
    value = {row["run"].identity: getattr(own, setting) for row in experiment.rows(net=net, seed=experiment.seeds[0])
             if row["part"] in (DENSE, PRUNED, VARIED) and (own := constraints_of(row)) and row["run"].model == model
             and replace(own, **{setting: getattr(main, setting)}) == main}
    chosen = frame[frame["run"].isin(list(value))]
    chosen = chosen[chosen["level"].isin(chosen.loc[chosen["part"] == VARIED, "level"])]
    return chosen.assign(level=chosen["run"].map(value))


def takes_off(frame: pandas.DataFrame, net: str, metric: str = "log kappa") -> float | None:
    """The first level at which the condition number of what HYDRA prunes, in the geometric mean over seeds, is twice
    that of its dense network; None if that never happens."""
    means = series(frame, metric, net, (HYDRA,)).groupby("level")["value"].mean().sort_index()
    above = means.index[means > means.iloc[0] + DOUBLED]
    return None if above.empty else float(above[0])


def descent(weight: Tensor, form: str, weight_of_form: float, lr: float = 0.1, steps: int = 30) -> pandas.DataFrame:
    """What the condition number constraint alone makes of a weight (out, in) by plain gradient descent, with weight
    decay 5e-4: a row per step with `condition` and spectral `norm`."""
    weight, rows = weight.clone(), []
    for step in range(steps + 1):
        values = spectrum(weight)
        rows.append({"step": step, "condition": condition(values), "norm": float(values[0])})
        weight.requires_grad_(True)
        (gradient,) = torch.autograd.grad(weight_of_form * condition_penalty(weight, form), weight)
        weight = (weight - lr * (gradient + 5e-4 * weight)).detach()
    return pandas.DataFrame(rows)


def null_table(draws: int) -> pandas.DataFrame:
    """Condition numbers of pruned Gaussian matrices: those computed for this project's notes on the paper, and drawn
    here."""
    _, noted = reported.load(PAPER).other_table("T4")
    lines, chance = {}, stream(0, "null table")
    for (matrix, how), rows in noted.groupby(["matrix", "pruning"], sort=False):
        sides = sorted(map(int, matrix.split("x")))
        here = null_conditions(tuple(sides), rows["rate"].tolist(), how, draws, chance)
        for (_, row), drawn in zip(rows.iterrows(), here, strict=True):
            lines[f"{matrix}, {how}, {100 * row['rate']:g} % removed"] = {
                "largest singular value": f"{row['sigma_max']:g}", "drawn here": f"{drawn['norm']:.2f}",
                "kappa": f"{row['kappa']:g}", "kappa, drawn here": f"{drawn['condition']:.3g}",
                "singular values that are zero": f"{drawn['zero']:g}"}
    return pandas.DataFrame.from_dict(lines, orient="index")


def step_runs(experiment: Experiment, net: str) -> dict[str, Run]:
    """The dense networks of a net by method, and TSCNC on all layers, for `analysis.step_costs`."""
    own, seed = experiment.of(net), experiment.seeds[0]
    runs = {method: pretraining(own, seed, method) for method in (TRADES, GATES, TSC, CNC, BOTH)}
    return runs | {f"{BOTH}, all layers": pretraining(own, seed, BOTH, layers="all")}


def costs_table(costs: dict[str, dict]) -> pandas.DataFrame:
    """What a training step takes, and how much more than without constraints."""
    base = costs[TRADES]
    return pandas.DataFrame.from_dict({method: {
        "step [ms]": f"{1000 * cost['seconds']:.1f}", "over TRADES": f"{cost['seconds'] / base['seconds']:.2f}",
        "kept for backward [MB]": f"{cost['kept_bytes'] / 1e6:.2f}",
        "over TRADES, memory": f"{cost['kept_bytes'] / base['kept_bytes']:.2f}"} for method, cost in costs.items()},
        orient="index")


def validated(experiment: Experiment, store: Store) -> pandas.DataFrame:
    """Accuracy under attack on the validation split after the last epoch, of every pruned and fine-tuned network: a row
    per network, with its labels. It is what chooses between the two constraints."""
    names = ["net", "method", "level", "seed"]
    return pandas.DataFrame([{key: row[key] for key in names}
                             | {"value": store.record(row["run"])["history"][-1]["validation_robust"]}
                             for row in experiment.rows(part=PRUNED)], columns=[*names, "value"])


def best_single(frame: pandas.DataFrame, validation: pandas.DataFrame, net: str, level: float) -> estimates.Comparison:
    """What TSCNC adds under PGD-20 to the better of its constraints alone, in points: the better one on the validation
    split, of the *other* seeds (`estimates.chosen_levels`), so that choosing it takes nothing from TSCNC."""
    asked = estimates.matching(validation, {"net": net, "level": level})
    values = asked[asked["method"].isin([TSC, CNC])].pivot(index="method", columns="seed", values="value")
    rows = estimates.matching(frame, {"metric": "pgd20", "net": net, "part": PRUNED, "level": level})
    run = rows.set_index(["method", "seed"])["run"].to_dict()
    better = {} if values.empty else estimates.chosen_levels(values)
    return estimates.compared_runs(frame, "pgd20", {seed: (run[BOTH, seed], run[method, seed])
                                                    for seed, method in better.items()
                                                    if {(BOTH, seed), (method, seed)} <= set(run)})


# of layers as they act, BatchNorm folded in and rows normalised: what it is called, metric, whether by its logarithm
FOLDED = {"convolutions": ("kappa folded", True), "convolutions, floored": ("kappa folded_floored", True),
          "convolutions, deficit": ("kappa folded_deficit", False),
          "classifier": ("kappa classifier_folded", True),
          "classifier, floored": ("kappa classifier_folded_floored", True),
          "classifier, deficit": ("kappa classifier_folded_deficit", False)}


def judged(frame: pandas.DataFrame, experiment: Experiment, slopes: dict[str, dict[str, pandas.DataFrame]],
           validation: pandas.DataFrame) -> pandas.DataFrame:
    """All comparisons: every claim for each net and level it speaks of; where the paper leaves open against what,
    against each of what it could mean. Condition numbers and norms are compared by the logarithm of their ratio, the
    log-determinant deficit by its difference. `slopes` are those of `thesis` by net, `validation` comes from
    `validated`."""
    record, rows = reported.load(PAPER), []

    def said(claim: str, name: str, **changes) -> Claim:
        return replace(record.claim(claim), id=f"{claim} {name}", **changes)

    def judge(claim: Claim, found: estimates.Comparison) -> None:
        rows.append(claims.judged(claim, found, f"05_tscnc, {WHERE[claim.id[:2]]}"))

    def paired(claim: Claim, metric: str, pair: tuple[dict, dict], factor: float = 1, log: bool = False) -> None:
        judge(claim, estimates.compared(frame, metric, *pair, factor=factor, log=log))

    ratio, difference = {"unit": "log10 of the ratio"}, {"unit": "log10"}
    slope = {"unit": "standard deviations", "margin": None, "margin_why": None,
             "quantity": "standard deviations of accuracy under attack per standard deviation of log kappa"}
    for net in experiment.nets:
        own = experiment.of(net)
        for level in own["levels"]:
            name, pairs = f"{own['label']}, {100 * level:g} %", compared(experiment, net, level)
            dense = pairs[f"{HYDRA} - {TRADES}"]
            for what, (metric, log) in FOLDED.items():
                unit = ratio if log else difference
                paired(said("C2", f"{name}, {what}", **unit), metric, dense, log=log)
                paired(said("C2", f"{name}, {what}, over null", **unit), f"{metric}_over_null", dense, log=log)
            for what, metric in (("", NORMS), (", scale-free", RELATIVE_NORMS), (", scale-free, over null", OVER_NULL)):
                paired(said("C3", f"{name}{what}", **ratio), metric, dense)
            if level < HEAVY:
                continue
            for claim, metric in (("C1.clean", "clean"), ("C1.robust", "pgd20")):
                paired(said(claim, name), metric, dense, 100)
                paired(said(claim, f"{name}, equal training"), metric, pairs[f"{HYDRA} - {LONGER}"], 100)
            for what, (metric, log) in FOLDED.items():
                paired(said("C5", f"{name}, {what}", **(ratio if log else difference)), metric,
                       pairs[f"{BOTH} - {HYDRA}"], log=log)
            for treatment, reference in ((BOTH, HYDRA), (BOTH, GATES), (BOTH, DECAY), (RELEASED, HYDRA),
                                         (ALL_LAYERS, HYDRA)):
                if pair := pairs.get(f"{treatment} - {reference}"):
                    paired(said("C6", f"{name}, {treatment} against {reference}"), "pgd20", pair, 100)
            judge(said("C7", name), best_single(frame, validation, net, level))
        for name, found in slopes[net].items():
            if KAPPA_SLOPE in found.index and name != "lipschitz":
                sloping = said("C4", f"{own['label']}, slope: {name}", **slope)
                ours, low, high, p = found.loc[KAPPA_SLOPE, ["slope", "low", "high", "p"]]
                rows.append(claims.estimated(sloping, ours, low, high, p, len(whole_seeds(frame, net)),
                                             f"05_tscnc, {WHERE['C4']}"))
    judge(record.claim("C8"), estimates.Comparison(None, []))  # what the theorem says is not on record
    return pandas.DataFrame(rows).sort_values("claim", key=lambda c: c.str.split().str[0], kind="stable")


def holes(experiment: Experiment) -> dict[str, str]:
    """What the names of the ledger's primary comparisons leave open: the network, and the level that this scale names
    for them beforehand."""
    own = experiment.of(experiment.nets[0])
    return {"net": own["label"], "level": f"{100 * own['primary_level']:g} %"}


def current_ledger(experiment: Experiment, store: Store) -> pandas.DataFrame:
    """The lines of the ledger by what the store can show of the experiment now."""
    frame = located(experiment.measured(store))
    slopes = {net: thesis(frame, net) for net in experiment.nets}
    rows = judged(frame, experiment, slopes, validated(experiment, store))
    return claims.ledger(rows, reported.load(PAPER), claims.looks(experiment.settings), **holes(experiment))
