"""Sparse DNNs with Improved Adversarial Robustness (Guo et al. 2018): linear classifiers, bounds, and nets from dense
to almost empty. Of the paper's numbers only one is on record, so everything here is ours."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import pandas

from sparserobust.analysis import WeightSparsity
from sparserobust.config import Data, Dense, Measurement, Model, Objective, Recipe, Run, Sparsifier
from sparserobust.models import Winners
from sparserobust.objectives import Natural, SparseActivations
from sparserobust.reporting import claims, estimates, reported, tables
from sparserobust.running import scales
from sparserobust.running.experiment import Experiment as _Experiment
from sparserobust.running.store import Store
from sparserobust.sparsifiers import Magnitude, ProximalLasso

PAPER = "sparsity_theory"
TRAININGS = ("natural", "adversarial")
TWO, TEN = "linear, two digits", "linear, ten digits"
MAGNITUDE, CONTROL, ONE_SHOT = "magnitude", "trained on", "not retrained"
LASSO, RIDGE = "lasso", "ridge"  # of linear classifiers
SURGERY, WINNERS, L1 = "surgery", "k-winners", "L1 on activations"
VARIANTS: dict[str, dict[str, Any]] = {
            "layer by layer": {"scope": "layerwise"}, "global, last kept": {"keep_last": True},
            "layer by layer, last kept": {"scope": "layerwise", "keep_last": True}}
# heading: metric, and what it is multiplied by to be shown: rates in percent, distances as they are
LINF = {"FGSM": ("fgsm", 100), "rFGSM": ("rfgsm", 100), "PGD-40": ("pgd40", 100)}
L2 = {"DeepFool": ("deepfool", 1), "C&W": ("cw", 1)}
CLEAN = {"clean": ("clean", 100)}
RELATIVE = {"DeepFool, relative": ("deepfool relative", 1), "C&W, relative": ("cw relative", 1)}
LADDER = ("guaranteed (frobenius)", "guaranteed (l2)", "CLEVER", "C&W", "DeepFool")  # from below upwards
HEAVY = 0.9  # share of weights that goes without loss of accuracy, according to claim C7
LOST = 0.02  # of clean accuracy: nets below the dense one's by more have collapsed
WHERE = {"C1": "figure 1", "C2": "figure 1", "C3": "figure 2", "C4": "table 2", "C5": "theorem 3.2", "C6": "figure 3",
         "C7": "figure 2"}


class Experiment(_Experiment):
    """Grid rows: `net` (the paper's), `ours` (what stands for it), `training`, `method` (how it became sparse), `level`
    (how much, in the method's own unit), `seed`, `run`, `also`."""

    def protocol(self, net: str) -> dict[str, Measurement]:
        """The attacks on a network, by metric."""
        return {name: Measurement.parse(m) for name, m in self.of(net)["protocol"].items()}

    def dense(self, **labels) -> dict:
        """The dense row, of the first seed, with these labels."""
        return self.rows(method="dense", **labels)[0]


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment:
    """Everything the notebook runs at a scale, or all of it with these seeds. `UserError` for an unknown scale, bad
    seeds, or a misspelt setting of a run or measurement (other words of a scale file are not checked)."""
    settings = scales.load(scale, PAPER)
    chosen = scales.checked_seeds(seeds, settings["seeds"])
    grid = [row for task in (TWO, TEN) for seed in chosen for row in _linear_rows(settings["linear"], task, seed)]
    grid += [row for net, own, seed in scales.networks(settings, seeds)
             for row in _net_rows(own, net, seed, first=seed == chosen[0])]
    return Experiment(scale, chosen, grid, {"sparsity": WeightSparsity()}, settings)


def _linear_rows(settings: dict, task: str, seed: int) -> list[dict]:
    """Grid rows of a linear classifier: dense, pruned step by step and trained on, trained with a lasso; and with
    weight decay (ridge), a dense rival that is tuned as well."""
    data = Data.parse(settings["data"])
    if task == TWO:
        data = replace(data, classes=tuple(settings["digits"]))
    dense = Run(data=data, model=Model.parse({"kind": "linear"}), objective=Natural(), seed=seed,
                recipe=Recipe.parse(settings["recipe"]))
    chain = _chain(dense, settings["levels"], Recipe.parse(settings["fine_tuning"]), Magnitude)
    runs = [("dense", 0.0, dense), *((MAGNITUDE, level, run) for level, run in chain.items())]
    runs += [(LASSO, lam, replace(dense, sparsifier=ProximalLasso(lam=lam))) for lam in settings["lasso"]]
    runs += [(RIDGE, decay, replace(dense, recipe=replace(dense.recipe, weight_decay=decay)))
             for decay in settings["ridge"]]
    kind = "theorem_31" if task == TWO else "linear_radii"
    also = {"clean": Measurement.parse({"kind": "accuracy"}),
            "linear": Measurement.parse({"kind": kind, "radii": settings["radii"]})}
    chosen = {"validation": Measurement.parse({"kind": kind, "radii": settings["radii"], "split": "validation"})}
    return [{"net": task, "ours": task, "training": "natural", "method": method, "level": level, "seed": seed,
             "run": run, "also": also | (chosen if level else {})} for method, level, run in runs]


def _chain(dense: Run, levels: list[float], recipe: Recipe, sparsifier) -> dict[float, Run]:
    """Level to run: each starts from the one before, is made sparser, and trained on."""
    runs, last = {}, dense
    for level in levels:
        last = replace(last, start=last, recipe=recipe, sparsifier=sparsifier(sparsity=level))
        runs[level] = last
    return runs


def _net_rows(settings: dict, net: str, seed: int, first: bool) -> list[dict]:
    """Grid rows of one net and seed."""
    rows = []
    for training in settings.get("trainings", TRAININGS):
        objective = Natural() if training == "natural" else Objective.parse(settings["objective"])
        dense = Run(data=Data.parse(settings["data"]), model=Model.parse(settings["model"]), objective=objective,
                    recipe=Recipe.parse(settings["recipe"]), seed=seed)
        for method, level, run in _runs(settings, training, dense, first):
            row = {"net": net, "ours": settings["label"], "training": training, "method": method, "level": level,
                   "seed": seed, "run": run}
            rows.append(row | {"also": _also(settings, row, first)})
    return rows


def _runs(settings: dict, training: str, dense: Run, first: bool) -> list[tuple[str, float, Run]]:
    """(method, level, run) of one net, training and seed; those to compare pruners and activations with are natural."""
    recipe, levels = Recipe.parse(settings["fine_tuning"]), settings["levels"]
    pruned = _chain(dense, levels, recipe, Magnitude)
    runs = [("dense", 0.0, dense), *((MAGNITUDE, level, run) for level, run in pruned.items())]
    if training in settings.get("control", TRAININGS):
        longer = _chain(dense, levels, recipe, lambda sparsity: Dense())
        runs += [(CONTROL, level, run) for level, run in longer.items()]
    if training != "natural":
        return runs
    if settings.get("one_shot"):
        cut = replace(recipe, epochs=0)
        runs += [(ONE_SHOT, level, replace(pruned[level], start=dense, recipe=cut)) for level in levels]
    for method in settings.get("variants", ()) if first else ():
        chain = _chain(dense, levels, recipe, partial(Magnitude, **VARIANTS[method]))
        runs += [(method, level, run) for level, run in chain.items()]
    for number, surgery in enumerate(settings.get("surgery", ()), start=1):  # 0 is the dense net
        run = replace(dense, start=dense, recipe=Recipe.parse(settings["surgery_recipe"]),
                      sparsifier=Sparsifier.parse({"kind": "surgery"} | surgery))
        runs.append((SURGERY, number, run))
    once = replace(dense, start=dense, recipe=recipe)
    runs += [(WINNERS, share, replace(once, model=Winners(model=dense.model, share=share)))
             for share in settings.get("winners", ())]
    runs += [(L1, lam, replace(once, objective=SparseActivations(objective=dense.objective, lam=lam)))
             for lam in settings.get("activation_lasso", ())]
    return runs


def _also(settings: dict, row: dict, first: bool) -> dict[str, Measurement]:
    """What is measured on a row."""
    names = dict(settings["protocol"])
    method = row["method"]
    if method in (MAGNITUDE, L1):  # at which level to compare is not chosen on test images
        names |= {f"validation {norm}": m for norm, m in settings["choice"].items()}
    if method in (CONTROL, ONE_SHOT, *VARIANTS):
        names = {name: m for name, m in names.items() if name in settings["control_protocol"]}
    if method in ("dense", MAGNITUDE, CONTROL, ONE_SHOT):
        names |= settings["why"]
    if method in ("dense", MAGNITUDE, SURGERY, WINNERS, L1):
        names["activations"] = {"kind": "activations"}
    if first and method in ("dense", WINNERS, L1) and row["training"] == "natural":
        names |= settings.get("square", {})
    if first and method in ("dense", MAGNITUDE, SURGERY) and row["training"] == "natural":
        names |= settings.get("layers", {})
    if first and "health" in settings and (method == "dense" or row["level"] in settings.get("health_levels", {}).get(
            method, ())):
        names["health"] = settings["health"]
    if first and method == "dense":
        names |= settings.get("order", {})
    if method == "dense" and row["training"] == "natural":
        names |= settings.get("random_masks", {})
    if method in ("dense", MAGNITUDE):
        names |= settings.get("blank", {})
    if first and row["level"] in settings.get("autoattack_levels", {}).get(method, ()):
        names |= settings["autoattack"]
    return {name: Measurement.parse(m) for name, m in names.items()}


def located(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The frame with `left` [%], the share of weights that are not zero, by which figures are drawn: measured, but for
    runs whose weights are dense it is that of the pruned run with which they are compared."""
    twin = frame["method"] == CONTROL
    left = estimates.left(frame, "sparsity").where(~twin, 100 * (1 - frame["level"]))
    return frame.assign(left=left, value=frame["value"].astype(float))


def series(frame: pandas.DataFrame, metric: str, methods: dict[str, str], **labels) -> pandas.DataFrame:
    """The rows of a metric with these labels, under `series` what the method is called in a figure (`methods`); every
    series begins with the dense net."""
    chosen = estimates.matching(frame, {"metric": metric} | labels)
    lines = [chosen[chosen["method"].isin(["dense", method])].assign(series=name)
             for method, name in methods.items() if method in set(chosen["method"])]
    return pandas.concat([chosen.iloc[:0].assign(series=""), *lines])


def by_seed(frame: pandas.DataFrame, metric: str, **labels) -> pandas.DataFrame:
    """Values of a metric, a row per level, a column per seed."""
    chosen = estimates.matching(frame, {"metric": metric} | labels)
    return chosen.pivot(index="level", columns="seed", values="value").sort_index()


def falls_below(values: pandas.DataFrame, dense: pandas.DataFrame) -> float | None:
    """The first level beyond the best one (the dense one, if none is better) at which the mean lies below the dense
    one, or None."""
    mean, start = values.mean(axis=1), float(dense.mean(axis=1).iloc[0])
    beyond = mean[mean.index > mean.idxmax()] if mean.max() >= start else mean
    below = beyond[beyond < start]
    return None if below.empty else float(below.index[0])


def linear_panels(frame: pandas.DataFrame, experiment: Experiment) -> list[list[dict]]:
    """Panels of figure 1: two digits above, ten below; accuracy under the worst l-infinity perturbation on the left,
    mean l2 distance on the right. For two digits with theorem 3.1: min(1, bound), shaded where magnitude pruning has a
    bound that says nothing, and the formula."""
    methods, panels = {LASSO: "lasso", MAGNITUDE: "magnitude"}, []
    for task, radius in zip((TWO, TEN), experiment.settings["linear"]["judged_radii"], strict=True):
        worst, distance = (series(frame, m, methods, net=task) for m in (f"linear r_inf {radius:g}", "linear"))
        panel = {"ylabel": "r_inf [%]", "factor": 100, "title": f"{task}: l-infinity, radius {radius:g}"}
        if task == TWO:
            said = {method: f"{name}, theorem 3.1" for method, name in methods.items()}
            bound = series(frame, f"linear bound {radius:g}", said, net=task)
            empty = by_seed(frame, f"linear bound {radius:g}", net=task, method=MAGNITUDE).mean(axis=1) >= 1
            if empty.any():
                sparse = worst[(worst["method"] == MAGNITUDE) & worst["level"].isin(empty[empty].index)]["left"]
                panel["shaded"] = float(sparse.max()), float(sparse.min())
            worst = pandas.concat([worst, bound.assign(value=bound["value"].clip(upper=1))])
            distance = pandas.concat([distance, series(frame, "linear formula", said, net=task)])
        other = {"frame": distance, "ylabel": "r_2", "title": f"{task}: l2"}
        panels.append([panel | {"frame": worst}, other])
    return panels


def net_panels(frame: pandas.DataFrame, experiment: Experiment, rows: dict[str, tuple[str, float]],
               marks: bool = True, nets: list[str] | None = None, one_shot: bool = False,
               log: tuple[str, ...] = ()) -> list[list[dict]]:
    """A row of panels for each metric in `rows` (heading to metric and factor), a column for each net; the best level
    and the first below dense are marked on pruned nets. `log` names metrics on a logarithmic axis."""
    def panel(metric: str, net: str) -> dict:
        lines, marked = [], []
        for training in TRAININGS:
            methods = {MAGNITUDE: f"{training}, pruned", CONTROL: f"{training}, trained on"}
            methods |= {ONE_SHOT: f"{training}, pruned, not retrained"} if one_shot else {}
            own = {"net": net, "training": training}
            pruned, dense = (by_seed(frame, metric, method=m, **own) for m in (MAGNITUDE, "dense"))
            if pruned.empty:
                continue
            lines.append(series(frame, metric, methods, **own))
            if marks and metric != "clean":
                chosen = levels(frame, metric, method=MAGNITUDE, **own)
                best = max(chosen.values(), key=list(chosen.values()).count) if chosen else None
                marked.append((methods[MAGNITUDE], best, falls_below(pruned, dense)))
        whole = pandas.concat([frame.iloc[:0].assign(series=""), *lines])
        return {"frame": whole, "marks": marked, "log": metric in log}

    return _panels(rows, nets or experiment.nets, panel)


def method_panels(frame: pandas.DataFrame, rows: dict[str, tuple[str, float]], methods: tuple[str, ...],
                  nets: list[str]) -> list[list[dict]]:
    """As `net_panels`, for naturally trained nets and several ways to make them sparse."""
    return _panels(rows, nets, lambda metric, net: {
        "frame": series(frame, metric, {m: m for m in methods}, net=net, training="natural")})


def _panels(rows: dict[str, tuple[str, float]], nets: list[str], panel: Callable[[str, str], dict]) -> list[list[dict]]:
    """A row of panels for each heading, a column for each net, which are told at the left and on top."""
    return [[panel(metric, net) | {"factor": factor, "title": net if number == 0 else "",
                                   "ylabel": heading if net == nets[0] else ""} for net in nets]
            for number, (heading, (metric, factor)) in enumerate(rows.items())]


def by_activations(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The frame with `left` [%] the share of activations that are not zero, rows without that measurement dropped."""
    return frame.assign(left=estimates.left(frame, "activations")).dropna(subset="left")


def followed(frame: pandas.DataFrame, columns: dict[str, str], of: str = "deepfool") -> pandas.DataFrame:
    """Spearman's rank correlation of a robustness with each of `columns` (heading to metric) over all nets of a kind,
    pruned or not, of all seeds: what it follows. Nets that lost more than `LOST` of clean accuracy are left out: there
    everything falls together."""
    lines = {}
    chosen = frame[frame["method"].isin(["dense", MAGNITUDE, CONTROL, ONE_SHOT])]
    for (net, training), group in chosen.groupby(["net", "training"], sort=False):
        wide = group.pivot_table(index=["method", "run"], columns="metric", values="value")
        if set(columns.values()) <= set(wide):
            dense = wide.loc["dense", "clean"].mean()
            ranks = wide.loc[wide["clean"] >= dense - LOST, [of, *columns.values()]].dropna()
            lines[f"{net}, {training}"] = {h: f"{ranks[of].corr(ranks[m], method='spearman'):+.2f}"
                                           for h, m in columns.items()} | {"networks": len(ranks)}
    return pandas.DataFrame.from_dict(lines, orient="index")


def overview(grid: list[dict]) -> pandas.DataFrame:
    """The grid as a table, one line per net, training, method and epochs."""
    return tables.gathered([{
        "the paper's net": row["net"], "ours": row["ours"], "training": row["training"], "method": row["method"],
        "epochs": row["run"].recipe.epochs, "levels": f"{row['level']:g}", "seeds": row["seed"]} for row in grid],
        "levels", "seeds")


def peaks(frame: pandas.DataFrame, net: str, training: str, columns: dict[str, tuple[str, float]]) -> pandas.DataFrame:
    """One line per attack: the dense value; the sparsity at which magnitude pruning is best on the validation split and
    what it gains there on the test split over the dense net and over one trained as long; the sparsity at which it
    falls below the dense one, and what clean accuracy has lost there. 95 % intervals over seeds and images."""
    labels = {"net": net, "training": training}
    clean = by_seed(frame, "clean", method=MAGNITUDE, **labels), by_seed(frame, "clean", method="dense", **labels)
    lines = {}
    for attack, (metric, factor) in columns.items():
        pruned, dense = (by_seed(frame, metric, method=m, **labels) for m in (MAGNITUDE, "dense"))
        if pruned.empty or dense.empty:
            continue
        below = falls_below(pruned, dense)
        lost = 100 * (clean[0].loc[below] - clean[1].iloc[0]).mean() if below is not None else None
        best = levels(frame, metric, method=MAGNITUDE, **labels)
        lines[attack] = {
            "dense": tables.mean(factor * dense.iloc[0], factor),
            "best at": ", ".join(dict.fromkeys(_percent(level) for level in best.values())),
            "gain over dense": _gain(frame, metric, labels, best, {"method": "dense", "level": 0.0}, factor),
            "gain over equal training": _gain(frame, metric, labels, best, {"method": CONTROL}, factor),
            "below dense from": "" if below is None else _percent(below),
            "clean accuracy lost there": "" if lost is None else f"{lost:+.1f}"}
    return pandas.DataFrame.from_dict(lines, orient="index")


def levels(frame: pandas.DataFrame, metric: str, **labels) -> dict[int, float]:
    """For each seed the level at which a method is judged: the best one on the validation split, of the other seeds
    (`estimates.chosen_levels`). Under l-infinity attacks PGD-40 chooses, under l2 attacks DeepFool; of linear networks
    the quantity itself. Empty where nothing was measured on the validation split."""
    if metric.startswith("linear"):
        name = metric.replace("linear", "validation", 1)
    else:
        name = "validation linf" if metric in {m for m, _ in LINF.values()} else "validation l2"
    validation = by_seed(frame, name, **labels)
    return {} if validation.empty else estimates.chosen_levels(validation)


def _runs_at(frame: pandas.DataFrame, chosen: dict[int, float] | None = None, **labels) -> dict[int, str]:
    """Seed to run of the rows with these labels, at a level that may differ from seed to seed."""
    rows = estimates.matching(frame, labels).drop_duplicates(["seed", "level"])
    return {row["seed"]: row["run"] for row in rows.to_dict("records")
            if chosen is None or chosen.get(row["seed"]) == row["level"]}


def _at_chosen(frame: pandas.DataFrame, metric: str, labels: dict, best: dict[int, float], reference: dict,
               factor: float, method: str = MAGNITUDE, at: dict[int, float] | None = None) -> estimates.Comparison:
    """A method at the level of each seed, against a reference: at a level that it names, at those of each seed `at`, or
    else at the same."""
    if not best:
        return estimates.Comparison(None, [], "no level was chosen on the validation split")
    treated = _runs_at(frame, best, method=method, **labels)
    against = _runs_at(frame, None if "level" in reference else at or best, **labels, **reference)
    return estimates.compared_runs(frame, metric, {seed: (treated[seed], against[seed]) for seed in treated
                                                   if seed in against}, factor)


def _gain(frame: pandas.DataFrame, metric: str, labels: dict, best: dict[int, float], reference: dict,
          factor: float) -> str:
    return tables.effect(_at_chosen(frame, metric, labels, best, reference, factor), tables.digits(factor))


def _percent(level: float) -> str:
    return f"{100 * level:g} %"


def _where(claim: str) -> str:
    return f"04_sparsity_theory, {WHERE[claim.split('.')[0]]}"


def judged(frame: pandas.DataFrame, experiment: Experiment, masks: dict[str, list[dict]]) -> pandas.DataFrame:
    """All comparisons: the paper's claims, for each net and attack; where the paper leaves open what is compared, rows
    of this project's own: against a dense net trained as long, and for adversarially trained nets. `masks` are those of
    `masked`; C5.linf has no row: no weight returns, so the mean bound falls by construction."""
    record, rows = reported.load(PAPER), []
    points, distance = record.claim("C3.inf"), record.claim("C3.l2")
    for claim, name, factor, found in _comparisons(frame, experiment):
        like = points if factor == 100 else distance
        said = replace(record.claim(claim), id=f"{claim} {name}", value=None, lower_bound=False, margin=like.margin,
                       margin_why=like.margin_why, unit="percentage points" if factor == 100 else "l2 distance")
        if claim == "C7":
            said = replace(said, quantity="clean accuracy with 90 % of the weights removed, minus dense")
        elif claim == "C4":
            said = replace(said, quantity="r_2 or r_inf: extreme sparsity minus dense")
        rows.append(claims.judged(said, found, _where(claim)))
    for net, results in masks.items():
        paths = [norms["l2"] for result in results for norms in (result["joint"], *result["single"].values())]
        falls = [after < before for path in paths for before, after in pairwise([1.0, *path])]
        said = replace(record.claim("C5.l2"), id=f"C5.l2 {net}", unit="percent of steps",
                       quantity="steps to a higher sparsity, of one layer or all, at which the mean bound falls")
        rows.append(claims.always(said, sum(falls), len(falls), len(results), _where("C5.l2")))
    return pandas.DataFrame(sorted(rows, key=lambda row: row["claim"].split()[0]))


def masked(experiment: Experiment, store: Store) -> dict[str, list[dict]]:
    """`RandomMasks` results of every net, one of each seed."""
    results: dict[str, list[dict]] = {}
    for row in experiment.grid:
        if "random_masks" in row["also"]:
            results.setdefault(row["net"], []).append(store.measure(row["run"], row["also"]["random_masks"]))
    return results


def current_ledger(experiment: Experiment, store: Store) -> pandas.DataFrame:
    """The lines of the ledger by what the store can show of the experiment now."""
    rows = judged(located(experiment.measured(store)), experiment, masked(experiment, store))
    return claims.ledger(rows, reported.load(PAPER), claims.looks(experiment.settings), two=TWO)


def _comparisons(frame: pandas.DataFrame,
                 experiment: Experiment) -> Iterator[tuple[str, str, float, estimates.Comparison]]:
    """(claim, of what, factor, what came out)."""
    radii = dict(zip((TWO, TEN), experiment.settings["linear"]["judged_radii"], strict=True))
    dense = {"method": "dense", "level": 0.0}
    for task, method in product(radii, (LASSO, MAGNITUDE)):
        own = {"net": task}
        for claim, metric, factor in (("C1", f"linear r_inf {radii[task]:g}", 100), ("C2", "linear", 1)):
            best, ridge = (levels(frame, metric, method=m, **own) for m in (method, RIDGE))
            sign = -factor if claim == "C2" else factor  # C2 says that dense is no worse: then the loss counts
            yield claim, f"{task}, {method}", factor, _at_chosen(frame, metric, own, best, dense, sign, method)
            if ridge:
                found = _at_chosen(frame, metric, own, best, {"method": RIDGE}, sign, method, ridge)
                yield claim, f"{task}, {method}, against ridge", factor, found
    for net, training, (attack, (metric, factor)) in product(experiment.nets, TRAININGS, (LINF | L2).items()):
        own = {"net": net, "training": training}
        if by_seed(frame, metric, method=MAGNITUDE, **own).empty:
            continue
        best = levels(frame, metric, method=MAGNITUDE, **own)
        claim, name = "C3.inf" if attack in LINF else "C3.l2", f"{net}, {attack}"
        name += ", adversarial" if training == "adversarial" else ""
        yield claim, name, factor, _at_chosen(frame, metric, own, best, dense, factor)
        controlled = CONTROL in set(estimates.matching(frame, own | {"metric": metric})["method"])
        if controlled:
            yield claim, f"{name}, equal training", factor, _at_chosen(frame, metric, own, best, {"method": CONTROL},
                                                                       factor)
        if training == "adversarial":
            continue
        furthest = {"method": MAGNITUDE, "level": max(experiment.of(net)["levels"])}
        yield "C4", name, factor, estimates.compared(frame, metric, own | furthest, own | dense, factor)
        # k-winners mask their gradients: nothing to judge by
        if controlled and L1 in set(frame[frame["net"] == net]["method"]):
            one_step = {"method": CONTROL, "level": min(experiment.of(net)["levels"])}
            yield "C6", f"{net}, {L1}, {attack}", factor, _at_chosen(
                frame, metric, own, levels(frame, metric, method=L1, **own), one_step, factor, L1)
    for net in experiment.nets:
        own = {"net": net, "training": "natural"}
        for name, reference in ((net, dense), (f"{net}, equal training", {"method": CONTROL, "level": HEAVY})):
            found = estimates.compared(frame, "clean", own | {"method": MAGNITUDE, "level": HEAVY}, own | reference)
            if found.effects:
                yield "C7", name, 100, found


def tidy_radii(results: dict[str, dict]) -> pandas.DataFrame:
    """`RadiusOrder` results by label, a row per image and way of measuring."""
    return pandas.DataFrame([{"label": label, "measured": name, "image": image, "radius": radius}
                             for label, result in results.items() for name in LADDER
                             for image, radius in enumerate(result["radii"][name]) if radius is not None])
