"""Lipschitz Constant Meets Condition Number (Feng, Lin, Gao & Wei 2025): two constraints in adversarial training, then
pruning by learned scores. The method is known as released code, none of the paper's numbers is on record."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas
import torch
from torch import Tensor

from sparserobust import claims, estimates, reported, scales, sweep, tables
from sparserobust.analysis import WeightSparsity
from sparserobust.analysis.conditioning import condition, null_conditions, spectrum
from sparserobust.config import Data, Measurement, Model, Objective, Recipe, Run
from sparserobust.environment import stream
from sparserobust.reported import Claim
from sparserobust.sparsifiers import TSCNC, Dense, FixedMask, LearnedScores, Magnitude
from sparserobust.sparsifiers.constraints import condition_penalty

PAPER = "tscnc"
TRADES, LONGER = "TRADES", "TRADES, trained on"
LWM, HYDRA, TSC, CNC, BOTH, GATES = "LWM", "HYDRA", "+TSC", "+CNC", "TSCNC", "gates alone"
PRETRAINED = {LWM: TRADES, HYDRA: TRADES}  # the dense network that a method prunes, where it has not its own name
METHODS = (LWM, HYDRA, TSC, CNC, BOTH)
CONSTRAINTS = {TRADES: (False, False), TSC: (True, False), CNC: (False, True), BOTH: (True, True)}  # sparse, condition
DENSE, CONTROL, SCORES, PRUNED, VARIED = "dense", "control", "not fine-tuned", "pruned", "varied"
ATTACKS = {"PGD-20": "pgd20", "PGD-50": "pgd50", "CW-inf": "cw", "AutoAttack": "autoattack"}
PROTOCOL = {"clean": "clean"} | ATTACKS
KAPPA, CLASSIFIER = "kappa", "kappa classifier"
LOGARITHMS = {"log kappa": KAPPA, "log kappa classifier": CLASSIFIER, "log kappa over null": "kappa over_null",
              "log kappa null": "kappa null", "log lipschitz": "lipschitz"}
NORMS, RELATIVE_NORMS = "kappa log_norms", "kappa log_relative_norms"
MATRICES = {"kappa, classifier": (CLASSIFIER, 1), "kappa, convolutions": (KAPPA, 1),
            "over null": ("kappa over_null", 1), "zero singular values [%]": ("kappa zero", 100),
            "log10 of norms": (NORMS, 1), "the same, scale-free": (RELATIVE_NORMS, 1),
            "local Lipschitz": ("lipschitz", 1), "over size of logits": ("lipschitz relative", 1)}
STANDING = 0.5  # of clean images: a network that classifies fewer has collapsed
TAKEN_OFF = 0.3  # log10: the condition number has doubled


class Experiment(sweep.Experiment):
    """Grid rows: `net` and `ours` (what stands for it), `part` (dense; control: dense, trained on; not fine-tuned;
    pruned, which is fine-tuned; varied: a setting is changed), `method`, `level` (share of weights removed), `seed`,
    `run`, `also`."""

    @property
    def nets(self) -> list[str]:
        return list(self.settings["nets"])

    def of(self, net: str) -> dict:
        """The settings of a net."""
        return self.settings | self.settings["nets"][net]


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment:
    """Everything the notebook runs at a scale, or all of it with these seeds. `UserError` for an unknown scale, bad
    seeds or a misspelt setting."""
    settings = scales.load(scale, PAPER)
    chosen = scales.checked_seeds(seeds, settings["seeds"])
    grid = []
    for net, own in settings["nets"].items():
        for seed in chosen if seeds else own.get("seeds", chosen):
            grid += _net_rows(settings | own, net, seed, first=seed == chosen[0])
    return Experiment(scale, chosen, grid, {"sparsity": WeightSparsity()}, settings)


def _net_rows(settings: dict, net: str, seed: int, first: bool) -> list[dict]:
    """Grid rows of one net and seed."""
    found = list(_main_rows(settings, seed))
    if first:
        found += _varied_rows(settings, seed)
    rows = []
    for part, method, level, run in found:
        labels = {"net": net, "ours": settings["label"], "part": part, "method": method, "level": level, "seed": seed}
        rows.append(labels | {"run": run, "also": _also(settings, labels, first)})
    return rows


def _main_rows(settings: dict, seed: int) -> Iterator[tuple[str, str, float, Run]]:
    """(part, method, level, run): dense networks, the control that is trained on, and all that is pruned from them."""
    whole = {method: pretraining(settings, seed, constrained) for method, constrained in CONSTRAINTS.items()}
    for method, run in whole.items():
        yield DENSE, method, 0.0, run
    yield CONTROL, LONGER, 0.0, replace(_after(settings, whole[TRADES]), sparsifier=Dense())
    controls = {GATES: settings["gates_alone"]} if settings.get("gates_alone") else {}
    if controls:  # the network with gates, and no constraint
        whole[GATES] = pretraining(settings, seed, gated=True)
        yield DENSE, GATES, 0.0, whole[GATES]
    for method in (*METHODS, *controls):
        dense = whole[PRETRAINED.get(method, method)]
        for level in controls.get(method, settings["levels"]):
            scored, tuned = pruned(settings, dense, level, by_scores=method != LWM)
            yield SCORES, method, level, scored
            yield PRUNED, method, level, tuned


def pretraining(settings: dict, seed: int, constrained: tuple[bool, bool] = (False, False), gated: bool = False,
                **changes) -> Run:
    """Stage 1: TRADES, `constrained` in sparsity and in condition numbers or not; what is constrained in sparsity has
    gates. `changes` are settings of the sparsifier."""
    sparse, condition = constrained
    model = Model.parse(settings["model"])
    run = Run(data=Data.parse(settings["data"]), model=replace(model, gated=True) if sparse or gated else model,
              objective=Objective.parse(settings["objective"]), recipe=Recipe.parse(settings["recipe"]), seed=seed)
    if not any(constrained):
        return run
    asked = settings["constraints"]
    weights = {"sparse": asked["sparse"] if sparse else 0, "condition": asked["condition"] if condition else 0}
    decay = {"weight_decay": run.recipe.weight_decay}  # in the loss, not in the optimiser
    return replace(run, recipe=replace(run.recipe, weight_decay=0),
                   sparsifier=TSCNC.parse(asked | decay | weights | changes))


def pruned(settings: dict, dense: Run, level: float, by_scores: bool = True) -> tuple[Run, Run]:
    """Stage 2 and 3: without fine-tuning, and with it. Scores get some of the epochs; by least magnitude, layer by
    layer, there is nothing to train before."""
    after = _after(settings, dense)
    epochs = settings["score_epochs"] if by_scores else 0
    if by_scores:
        cut = replace(after, recipe=replace(after.recipe, epochs=epochs, lr=settings["score_lr"]),
                      sparsifier=LearnedScores(sparsity=level))
    else:
        cut = replace(after, recipe=replace(after.recipe, epochs=0),
                      sparsifier=Magnitude(sparsity=level, scope="layerwise"))
    tuned = replace(after, start=cut, recipe=replace(after.recipe, epochs=after.recipe.epochs - epochs),
                    sparsifier=FixedMask())
    return cut, tuned


def _after(settings: dict, dense: Run) -> Run:
    """What follows a dense network: no constraint and no averaging any more, as many epochs as pruning gets in all."""
    return replace(dense, start=dense, recipe=Recipe.parse(settings["fine_tuning"]), sparsifier=Dense())


def _varied_rows(settings: dict, seed: int) -> Iterator[tuple[str, str, float, Run]]:
    """One setting of the constraints changed at a time, dense and pruned; method is what was changed."""
    varied = settings.get("varied", {})
    for name, own in varied.get("settings", {}).items():
        changes = {key: value for key, value in own.items() if key not in ("of", "levels")}
        run = pretraining(settings, seed, CONSTRAINTS[own.get("of", BOTH)], **changes)
        yield VARIED, name, 0.0, run
        for level in own.get("levels", varied["levels"]):
            scored, tuned = pruned(settings, run, level)
            yield SCORES, name, level, scored
            yield VARIED, name, level, tuned


def _also(settings: dict, row: dict, first: bool) -> dict[str, Measurement]:
    """What is measured on a row."""
    part, method, level = row["part"], row["method"], row["level"]
    names = {}
    if part != SCORES or (method in METHODS and level in settings["stronger_levels"]):
        names |= settings["protocol"]
    if part != SCORES:
        null = {"null_draws": settings["null_draws"]} if method in (TRADES, *METHODS) else {}
        names |= settings["why"] | {KAPPA: {"kind": "conditioning"} | null}
    if part in (DENSE, PRUNED) and level in (0, *settings["stronger_levels"]):
        names |= settings["stronger"]
    if part in (DENSE, PRUNED) and first and level in settings["autoattack_methods"].get(method, ()):
        names |= settings["autoattack"]
    if part == DENSE:
        names["near_zero"] = {"kind": "weight_histogram"}
    return {name: Measurement.parse(m) for name, m in names.items()}


def overview(grid: list[dict]) -> pandas.DataFrame:
    """The grid as a table, one line per net, part and method."""
    lines = {}
    for row in grid:
        run = row["run"]
        line = lines.setdefault(tuple(row[k] for k in ("net", "part", "method")), {
            "net": row["ours"], "part": row["part"], "method": row["method"], "gates": run.model.gated,
            "epochs": sum(r.recipe.trained_epochs for r in run.lineage), "removed [%]": [], "seeds": []})
        for column, value in (("removed [%]", f"{100 * row['level']:g}"), ("seeds", row["seed"])):
            if value not in line[column]:
                line[column].append(value)
    return pandas.DataFrame(list(lines.values())).assign(**{"removed [%]": lambda t: t["removed [%]"].map(", ".join)})


def located(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The frame with `left` [%], the share of convolution and linear weights that are stored and not zero, with the
    logarithms to base 10 that effects and slopes are taken of (`LOGARITHMS`), and without what a collapsed network has
    not (a condition number, say)."""
    frame = frame.assign(left=estimates.left(frame, "sparsity"), value=frame["value"].astype(float))
    frame = frame.dropna(subset="value")
    positive = frame[frame["value"] > 0]
    logarithms = [positive[positive["metric"] == metric].assign(metric=name, value=lambda rows: np.log10(rows["value"]))
                  for name, metric in LOGARITHMS.items()]
    return pandas.concat([frame, *logarithms], ignore_index=True)


def labels(net: str, method: str, level: float = 0.0, part: str | None = None) -> dict:
    """The labels that name a kind of row: dense, or pruned and fine-tuned, unless another part is asked for."""
    return {"net": net, "part": part or (PRUNED if level else DENSE), "method": method, "level": level}


def series(frame: pandas.DataFrame, metric: str, net: str, methods: tuple[str, ...] = METHODS) -> pandas.DataFrame:
    """Rows of a metric along sparsity, under `series` the method; each begins with the dense network it prunes."""
    chosen = estimates.matching(frame, {"metric": metric, "net": net})
    return pandas.concat([pandas.concat([
        estimates.matching(chosen, {"part": DENSE, "method": PRETRAINED.get(method, method)}),
        estimates.matching(chosen, {"part": PRUNED, "method": method})]).assign(series=method) for method in methods])


def panels(frame: pandas.DataFrame, rows: list[dict[str, tuple[str, float]]], net: str,
           methods: tuple[str, ...] = METHODS) -> list[list[dict]]:
    """For `plots.along_sparsity`: a panel for each heading, of metric and factor."""
    return [[{"frame": series(frame, metric, net, methods), "factor": factor, "title": heading}
             for heading, (metric, factor) in row.items()] for row in rows]


def null_panels(frame: pandas.DataFrame, net: str) -> list[list[dict]]:
    """For `plots.along_sparsity`: condition number and product of norms of what HYDRA and TSCNC prune, each with its
    null curve, Gaussian layers of the same shapes and sizes pruned alike."""
    shown = {"kappa, convolutions (median)": (KAPPA, "kappa null"), "kappa, classifier": (CLASSIFIER, None),
             "log10 of the product of norms": (NORMS, "kappa null_log_norms")}
    found = []
    for heading, (metric, null) in shown.items():
        lines = [series(frame, metric, net, (HYDRA, BOTH))]
        if null:
            lines += [series(frame, null, net, (method,)).assign(series=f"null of {method}")
                      for method in (HYDRA, BOTH)]
        found.append({"frame": pandas.concat(lines), "title": heading})
    return [found]


def methods_table(frame: pandas.DataFrame, parts: tuple[str, ...] = (DENSE, CONTROL, PRUNED)) -> pandas.DataFrame:
    """Table T1: one line per net, method and share removed: accuracies in percent, then what is said of matrices."""
    chosen = frame[frame["part"].isin(parts)].sort_values(["level"], kind="stable")
    chosen = chosen.assign(removed=(100 * chosen["level"]).map("{:g} % removed".format))
    by = ["ours", "method", "removed"]
    here = {heading: metric for heading, metric in PROTOCOL.items() if metric in set(chosen["metric"])}
    known = {heading: m for heading, m in MATRICES.items() if m[0] in set(chosen["metric"])}
    return pandas.concat([tables.rates(chosen, by, here), tables.means(chosen, by, known)], axis=1)


def compared(experiment: Experiment, net: str, level: float) -> tables.Pairs:
    """(treatment, reference) by name: what pruning does, what each constraint adds to the same pipeline without."""
    at = {method: labels(net, method, level) for method in METHODS}
    pairs = {f"{HYDRA} - {TRADES}": (at[HYDRA], labels(net, TRADES)),
             f"{HYDRA} - {LONGER}": (at[HYDRA], labels(net, LONGER, part=CONTROL)),
             f"{HYDRA} - {LWM}": (at[HYDRA], at[LWM])}
    pairs |= {f"{method} - {HYDRA}": (at[method], at[HYDRA]) for method in (TSC, CNC, BOTH)}
    if experiment.rows(net=net, method=GATES, level=level):
        pairs[f"{BOTH} - {GATES}"] = at[BOTH], labels(net, GATES, level)
    return pairs


def observations(frame: pandas.DataFrame) -> pandas.DataFrame:
    """One row per dense or fine-tuned network, a column per metric, for `estimates.regression`; `log left` is the
    logarithm of the share of weights that are left."""
    chosen = frame[frame["part"].isin([DENSE, CONTROL, PRUNED, VARIED])]
    by = ["net", "method", "level", "seed", "run", "left"]
    wide = chosen.drop_duplicates(["run", "metric"]).pivot(index=by, columns="metric", values="value").reset_index()
    return wide.assign(**{"log left": np.log10(wide["left"])})


def thesis(frame: pandas.DataFrame, net: str) -> dict[str, pandas.DataFrame]:
    """Regressions of accuracy under PGD-20 over all networks of a kind, by name: on condition number and norms, which
    is the paper's thesis; with how much is left beside them; with norms that no rescaling changes; with the effective
    rank in place of the condition number, which looks at singular values that are not zero alone; and of those networks
    that still classify `STANDING` of the clean images. The last one, named `lipschitz`, has the logarithm of the local
    Lipschitz constant for a target."""
    rows = observations(frame[frame["net"] == net])
    asked = {"kappa, norms": ["log kappa", NORMS], "kappa, norms, weights left": ["log kappa", NORMS, "log left"],
             "kappa, scale-free norms": ["log kappa", RELATIVE_NORMS],
             "effective rank, norms": ["kappa effective_rank", NORMS]}
    found = {name: estimates.regression(rows, "pgd20", columns) for name, columns in asked.items()}
    both, standing = asked["kappa, norms"], rows[rows["clean"] >= STANDING]
    return found | {"kappa, norms; standing": estimates.regression(standing, "pgd20", both),
                    "lipschitz": estimates.regression(rows, "log lipschitz", both)}


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
    setting; `level` is the value of that setting, and `removed` says how much is gone."""
    reference = experiment.rows(net=net, method=BOTH)[0]
    main, model = constraints_of(reference), reference["run"].model
    value = {row["run"].identity: getattr(own, setting) for row in experiment.rows(net=net, seed=experiment.seeds[0])
             if row["part"] in (DENSE, PRUNED, VARIED) and (own := constraints_of(row)) and row["run"].model == model
             and replace(own, **{setting: getattr(main, setting)}) == main}
    levels = {0, *experiment.of(net)["varied"]["levels"]}
    chosen = frame[frame["run"].isin(list(value)) & frame["level"].isin(levels)]
    return chosen.assign(removed=(100 * chosen["level"]).map("{:g} % removed".format), level=chosen["run"].map(value))


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
    runs = {method: pretraining(own, seed, constrained) for method, constrained in CONSTRAINTS.items()}
    return runs | {GATES: pretraining(own, seed, gated=True),
                   f"{BOTH}, all layers": pretraining(own, seed, CONSTRAINTS[BOTH], layers="all")}


def costs_table(costs: dict[str, dict]) -> pandas.DataFrame:
    """What a training step takes, and how much more than without constraints."""
    base = costs[TRADES]
    return pandas.DataFrame.from_dict({method: {
        "step [ms]": f"{1000 * cost['seconds']:.1f}", "over TRADES": f"{cost['seconds'] / base['seconds']:.2f}",
        "kept for backward [MB]": f"{cost['kept_bytes'] / 1e6:.2f}",
        "over TRADES, memory": f"{cost['kept_bytes'] / base['kept_bytes']:.2f}"} for method, cost in costs.items()},
        orient="index")


def takes_off(frame: pandas.DataFrame, net: str, method: str = HYDRA) -> tuple[float, float] | None:
    """The first level at which the condition number of what a method prunes, in the geometric mean over seeds, is twice
    that of its dense network, and the level before; None if that never happens."""
    means = series(frame, "log kappa", net, (method,)).groupby("level")["value"].mean().sort_index()
    above = means.index[means > means.iloc[0] + TAKEN_OFF]
    if above.empty:
        return None
    return float(above[0]), float(means.index[means.index.get_loc(above[0]) - 1])


def best_single(frame: pandas.DataFrame, net: str, level: float) -> list[float]:
    """Per seed, what TSCNC adds under PGD-20 to the better of its constraints alone, in points. The better one is that
    of the *other* seeds, so that choosing it takes nothing from TSCNC; with one seed it does."""
    chosen = estimates.matching(frame, {"metric": "pgd20", "net": net, "part": PRUNED, "level": level})
    wide = chosen.pivot(index="seed", columns="method", values="value")
    found = []
    for seed in wide.index:
        others = wide.drop(index=seed) if len(wide) > 1 else wide
        found.append(100 * float(wide.at[seed, BOTH] - wide.at[seed, others[[TSC, CNC]].mean().idxmax()]))
    return found


def judged(frame: pandas.DataFrame, experiment: Experiment) -> pandas.DataFrame:
    """The ledger: every claim for each net and level it speaks of; where the paper leaves open against what, against
    each of what it could mean. Condition numbers are compared by the logarithm of their ratio."""
    record, rows = reported.load(PAPER), []

    def said(claim: str, name: str, **changes) -> Claim:
        return replace(record.claim(claim), id=f"{claim} {name}", **changes)

    def paired(claim: Claim, metric: str, pair: tuple[dict, dict], factor: float = 1) -> None:
        rows.append(claims.judged(claim, estimates.paired_effects(frame, metric, *pair, factor=factor), 0, "05_tscnc"))

    for net in experiment.nets:
        for level in experiment.of(net)["levels"]:
            name, pairs = f"{net}, {100 * level:g} %", compared(experiment, net, level)
            dense = pairs[f"{HYDRA} - {TRADES}"]
            for claim, metric in (("C1.clean", "clean"), ("C1.robust", "pgd20")):
                paired(said(claim, name), metric, dense, 100)
                paired(said(claim, f"{name}, equal training"), metric, pairs[f"{HYDRA} - {LONGER}"], 100)
            for what, metric in (("convolutions", "log kappa"), ("classifier", "log kappa classifier"),
                                 ("convolutions, over null", "log kappa over null")):
                paired(said("C2", f"{name}, {what}", unit="log10 of the ratio"), metric, dense)
                if "null" not in what:
                    paired(said("C5", f"{name}, {what}", unit="log10 of the ratio"), metric,
                           pairs[f"{BOTH} - {HYDRA}"])
            for what, metric in (("", NORMS), (", scale-free", RELATIVE_NORMS)):
                paired(said("C3", f"{name}{what}", unit="log10 of the ratio"), metric, dense)
            for reference in (HYDRA, GATES):
                if f"{BOTH} - {reference}" in pairs:
                    paired(said("C6", f"{name}, against {reference}"), "pgd20", pairs[f"{BOTH} - {reference}"], 100)
            rows.append(claims.judged(said("C7", name), best_single(frame, net, level), 0, "05_tscnc"))
        found = takes_off(frame, net)
        fall = ([] if found is None else
                estimates.paired_effects(frame, "pgd20", *(labels(net, HYDRA, level) for level in found)))
        rows.append(claims.judged(said("C4", f"{net}, where kappa doubles"), fall, 0, "05_tscnc"))
        for name, slopes in thesis(frame, net).items():
            if "kappa" not in name:
                continue
            kappa = slopes.loc["log kappa"]
            rows.append(claims.estimated(
                said("C4", f"{net}, slope: {name}", unit="standard deviations",
                     quantity="standard deviations of accuracy under attack per standard deviation of log kappa"),
                kappa["slope"], kappa["low"], kappa["high"], len(experiment.seeds), "05_tscnc"))
    rows.append(claims.judged(record.claim("C8"), [], 0, "05_tscnc"))  # what the theorem says is not on record
    return pandas.DataFrame(rows).sort_values("claim", key=lambda c: c.str.split().str[0], kind="stable")
