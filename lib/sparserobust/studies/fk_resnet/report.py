"""Sparsity Meets Robustness (Dinh et al. 2020): Feynman-Kac ResNet ensembles, pruned by RVSM, RGSM and ADMM."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas

from sparserobust.analysis import (
    ChannelNorms,
    ChannelSparsity,
    Deployable,
    LayerWeights,
    RemainingParameters,
    Stability,
    WeightHistogram,
    WeightSparsity,
)
from sparserobust.config import Data, Measurement, Model, Objective, Recipe, Run, Sparsifier
from sparserobust.errors import UserError
from sparserobust.objectives import Natural
from sparserobust.reporting import claims, estimates, reported, tables
from sparserobust.running import scales
from sparserobust.running.experiment import Experiment as _Experiment
from sparserobust.running.store import Store
from sparserobust.sparsifiers import RGSM, RVSM, Dense, FixedMask

PAPER = "fk_resnet"
METHODS: dict[str, type[Sparsifier]] = {"RVSM": RVSM, "RGSM": RGSM}
LEVELS = {"RVSM": "beta", "RGSM": "lambda1"}  # the penalty that the paper varies, and the column of its tables
TABLES = {"T1": "RVSM", "T2": "RGSM", "T3": "RGSM"}
ACCURACIES = {"A1": "clean", "A2": "fgsm", "A3": "ifgsm20", "A4": "cw"}
SPARSITIES = {"RVSM": ("sparsity", "sparsity"), "RGSM": ("channel sparsity", "channel_sparsity")}
HEADINGS = {"A1": "A1 clean", "A2": "A2 FGSM", "A3": "A3 I-FGSM20", "A4": "A4 C&W"}
STRONGER = {"parameters left": "remaining_parameters", "MACs left": "deployable", "A1 clean": "clean",
            "A3 I-FGSM20": "ifgsm20", "A4 C&W of the release": "cw", "the same, rescaled": "cw_rescaled",
            "C&W, l2": "cw_l2", "C&W in the ball": "cw_linf", "PGD-20, 20 draws": "pgd20_eot20",
            "AutoAttack": "autoattack", "noise off: clean": "clean_quiet", "noise off: PGD-20": "pgd20_quiet"}
FEW_DRAWS = {"PGD-20, few draws": "pgd20_eot"}  # in tables 1 to 4, though not in the paper's
# properties of a network, not estimated from a sample of images
EXACT = ("sparsity", "channel_sparsity", "remaining_parameters", "deployable")
# Table 4: granularity and our method, and the method of the paper's row beside which it stands
TABLE4 = {("unstructured", "RVSM"): "RVSM", ("unstructured", "released ADMM weights"): "ADMM",
          ("unstructured", "ADMM weights"): None, ("unstructured", "RVSM, fine-tuned"): None,
          ("unstructured", "ADMM weights, fine-tuned"): None,
          ("channel", "RGSM"): "RGSM", ("channel", "released ADMM channels"): "ADMM",
          ("channel", "ADMM channels"): None, ("channel", "RGSM, fine-tuned"): None,
          ("channel", "ADMM channels, fine-tuned"): None}
TABLE4_LEVELS = {"RVSM": 0.01, "RGSM": 0.1}  # the rows of tables 1 and 2 that table 4 repeats
FINE_TUNED = ", fine-tuned"
TRAINING_NOISE = 0.1  # of the ensembles, as a share of the activations' standard deviation
BATCH = 128  # images, for the second latency of the table of deployable sizes
FIGURE5 = TABLE4_LEVELS | {"released ADMM channels": None, "ADMM channels": None}


class Experiment(_Experiment):
    """Grid rows: `net` (the paper's), `ours` (what stands for it), `training`, `method`, `level` (the paper's penalty),
    `seed`, `run`, `also`."""


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment:
    """Everything the notebook runs at a scale, or all of it with these seeds. `UserError` for an unknown scale, bad
    seeds, or a misspelt setting of a run or measurement (other words of a scale file are not checked)."""
    settings = scales.load(scale, PAPER)
    chosen = scales.checked_seeds(seeds, settings["seeds"])
    grid = [_grid_row(settings, *row, seed) for row, keys in _rows(settings).items()
            for seed in (chosen if seeds else sorted({s for key in keys for s in settings.get(key, chosen)}))]
    for row in grid:
        row["also"] = _also(settings, row, first=row["seed"] == chosen[0])
    measurements = {name: Measurement.parse(m) for name, m in settings["measurements"].items()}
    exact = {"sparsity": WeightSparsity(), "channel_sparsity": ChannelSparsity(),
             "remaining_parameters": RemainingParameters()}
    return Experiment(scale, chosen, grid, measurements | exact, settings)


def _rows(settings: dict) -> dict[tuple[str, str, float | None], list[str]]:
    """(net, method, level) of every run, and the keys of the scale file under which its seeds may stand (it gets those
    of all); rows for which the scale has no settings are missing."""
    wanted: list[tuple[str, str, str, Any]] = [("figure1_seeds", "ResNet20", m, None) for m in ("natural", "dense")]
    for table, method in TABLES.items():
        for row in reported.load(PAPER).reported_table(table).to_dict("records"):
            level = row[LEVELS[method]]
            wanted.append(("seeds", row["net"], *(("dense", None) if pandas.isna(level) else (method, level))))
    for level in settings["curve"]:
        wanted += [("curve_seeds", net, "RGSM", level) for net in ("En2ResNet20", "ResNet38")]
    wanted += [("seeds", "ResNet20", method, TABLE4_LEVELS.get(method.removesuffix(FINE_TUNED)))
               for _, method in TABLE4 if method not in METHODS]
    rows: dict[tuple[str, str, float | None], list[str]] = {}
    for key, *row in wanted:
        method, level = row[1].removesuffix(FINE_TUNED), row[2]
        known = level in settings[method] if method in METHODS else "ADMM" not in method or method in settings["ADMM"]
        if row[0] in settings["nets"] and known:
            rows.setdefault(tuple(row), []).append(key)
    return rows


def _grid_row(settings: dict, net: str, method: str, level: float | None, seed: int) -> dict:
    chosen = settings["nets"][net]
    training = "natural" if method == "natural" else "adversarial"
    run = Run(data=Data.parse(settings["data"]), model=Model.parse(chosen["model"]),
              objective=Natural() if training == "natural" else Objective.parse(settings["objective"]),
              recipe=Recipe.parse(settings["recipe"]),
              sparsifier=_sparsifier(settings, method.removesuffix(FINE_TUNED), level), seed=seed)
    if method.endswith(FINE_TUNED):
        run = replace(run, recipe=Recipe.parse(settings["fine_tuning"]), sparsifier=FixedMask(), start=run)
    return {"net": net, "ours": chosen["label"], "training": training, "method": method, "level": level, "seed": seed,
            "run": run}


def _sparsifier(settings: dict, method: str, level: float | None) -> Sparsifier:
    if method in METHODS:
        return METHODS[method].parse(settings[method][level])
    return Sparsifier.parse(settings["ADMM"][method]) if "ADMM" in method else Dense()


def _also(settings: dict, row: dict, first: bool) -> dict[str, Measurement]:
    """What figures 1, 2 and 5 and the sections beyond the paper need of a row; the costly ones of the first seed."""
    net, method, level = row["net"], row["method"], row["level"]
    also = {}
    if first and "health" in settings and method != "natural":
        also["health"] = Measurement.parse(settings["health"])
    if net == "ResNet20" and method in ("natural", "dense"):
        also["near_zero"] = WeightHistogram()
    ensemble = "En5ResNet20" if "En5ResNet20" in settings["nets"] else "En2ResNet20"  # figure 2 has the former
    if first and method == "dense" and net in ("ResNet20", ensemble):
        also["layer"] = LayerWeights()
    if net == "ResNet20" and FIGURE5.get(method, math.nan) == level:
        also["channel_norms"] = ChannelNorms()
    if net == "En2ResNet20" and method == "dense":
        also["stability"] = Stability.parse(settings["stability"])
    if first and method in ("dense", "RGSM", "ADMM channels"):
        also |= {"deployable": Deployable(), "deployable_batch": Deployable(images=BATCH, repeats=10)}
    strongest = method == "dense" or (method == "RGSM" and level == max(_levels(net)))
    if first and strongest and net in settings.get("stronger_nets", settings["nets"]):
        also |= {name: Measurement.parse(m) for name, m in settings["stronger"].items()
                 if name != "autoattack" or method in settings["autoattack_rows"].get(net, [])}
    return also


def _levels(net: str) -> list[float]:
    """The paper's lambda1 of a net in tables 2 and 3."""
    printed = pandas.concat([reported.load(PAPER).reported_table(t) for t in ("T2", "T3")])
    return sorted(set(printed[printed["net"] == net]["lambda1"].dropna()))


def overview(grid: list[dict]) -> pandas.DataFrame:
    """The grid as a table: one row per net and penalty, with our settings beside the paper's."""
    lines = []
    for row in grid:
        settings = {k: v for k, v in row["run"].sparsifier.plain().items() if k != "kind"}
        paper = LEVELS.get(row["method"].removesuffix(FINE_TUNED))
        lines.append({
            "the paper's net": row["net"], "ours": row["ours"], "method": row["method"],
            "the paper's penalty": f"{paper} {row['level']:g}" if paper else "",
            "our penalty": ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in settings.items()),
            "epochs": row["run"].recipe.epochs, "seeds": row["seed"]})
    return tables.gathered(lines, "seeds")


def table(frame: pandas.DataFrame, table_id: str) -> pandas.DataFrame:
    """Table T1 to T4, reported beside ours, with a column the paper does not have. `frame` comes from `sweep`."""
    if table_id == "T4":
        return _table4(frame)
    if table_id not in TABLES:
        raise UserError(f"no table '{table_id}' here: there are {', '.join(TABLES)}, T4")
    method = TABLES[table_id]
    heading, metric = SPARSITIES[method]
    columns = _metrics(heading, metric, metric)
    ours = _summary(frame[frame["method"].isin(["dense", method])], columns, ["net", "level", "ours"])
    return tables.beside(reported.load(PAPER).reported_table(table_id), ours, {"net": "net", LEVELS[method]: "level"},
                         columns, label="ours")


def _summary(frame: pandas.DataFrame, columns: dict[str, tuple[str | None, str]], by: list[str]) -> pandas.DataFrame:
    """A `tables.summary` of the metrics of these columns (heading to reported column and metric), on common images."""
    return tables.summary(tables.on_common_images(frame, {metric for _, metric in columns.values()}), by, exact=EXACT)


def _metrics(heading: str, column: str, metric: str) -> dict[str, tuple[str | None, str]]:
    return ({HEADINGS[a]: (a, m) for a, m in ACCURACIES.items()} | {heading: (column, metric)}
            | {heading: (None, metric) for heading, metric in FEW_DRAWS.items()})


def _table4(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Table 4, with the rows the paper does not have: ADMM done as it is meant, and both after fine-tuning."""
    printed = reported.load(PAPER).reported_table("T4").set_index(["granularity", "method"])
    parts = []
    for granularity, metric in (("unstructured", "sparsity"), ("channel", "channel_sparsity")):
        rows = {ours: theirs for (g, ours), theirs in TABLE4.items() if g == granularity}
        empty = dict.fromkeys(printed.columns, math.nan)
        beside = pandas.DataFrame([
            {"method": ours, "level": TABLE4_LEVELS.get(ours.removesuffix(FINE_TUNED))}
            | (printed.loc[(granularity, theirs)].to_dict() if theirs else empty) for ours, theirs in rows.items()])
        chosen = frame[(frame["net"] == "ResNet20") & frame["method"].isin(list(rows))]
        columns = _metrics("removed", "sparsity", metric)
        ours = _summary(chosen, columns, ["method", "level", "ours"])
        part = tables.beside(beside, ours, {"method": "method", "level": "level"}, columns, label="ours")
        part.index = pandas.Index([f"{granularity}: {method}" for method in rows], name="granularity: method")
        parts.append(part)
    return pandas.concat(parts)


def stronger(frame: pandas.DataFrame, seed: int) -> pandas.DataFrame:
    """The honest table: the unpruned nets and the most pruned ones, one seed, under attacks the paper does not use."""
    chosen = frame[(frame["seed"] == seed) & frame["run"].isin(frame[frame["metric"] == "pgd20_eot20"]["run"])]
    ours = _summary(chosen, {h: (None, m) for h, m in STRONGER.items()}, ["net", "method", "level", "ours"])
    rows = {}
    for (label, level), group in ours.groupby(["ours", "level"], dropna=False, sort=False):
        found = group.set_index("metric")
        rows[label if pandas.isna(level) else f"{label}, lambda1 {level:g}"] = {
            heading: f"{found.loc[metric, 'count']:,}" if heading.endswith("left") else tables.cell(found.loc[metric])
            for heading, metric in STRONGER.items() if metric in found.index}
    return pandas.DataFrame.from_dict(rows, orient="index").fillna("")


def curve_reported(experiment: Experiment) -> pandas.DataFrame:
    """The points of figures 3 and 4 that are on record, those of table 3, named as our measurements are."""
    printed = reported.load(PAPER).reported_table("T3").dropna(subset="lambda1")
    ours = {row["net"]: row["ours"] for row in experiment.grid}
    return printed[printed["net"].isin(list(ours))].rename(columns={"lambda1": "level"} | ACCURACIES).assign(
        ours=lambda rows: rows["net"].map(ours))


def deployable(rows: list[dict], store: Store) -> pandas.DataFrame:
    """What really removing the zero channels saves, one line per grid row that has `deployable` under `also`."""
    def change(result: dict, key: str, unit: float, digits: int) -> str:
        before, after = result[key], result[f"{key}_left"]
        return f"{before / unit:,.{digits}f} → {after / unit:,.{digits}f}"

    lines = []
    for row in sorted(rows, key=lambda row: (row["ours"], row["method"], row["level"] or 0)):
        one, many = (store.measure(row["run"], row["also"][name]) for name in ("deployable", "deployable_batch"))
        lines.append({
            "net": row["ours"], "method": row["method"] + (f", lambda1 {row['level']:g}" if row["level"] else ""),
            "parameters [thousand]": change(one, "parameters", 1e3, 1), "file [KB]": change(one, "bytes", 1e3, 0),
            "MACs [thousand]": change(one, "macs", 1e3, 0), "latency, 1 image [ms]": change(one, "latency_ms", 1, 2),
            f"latency, {BATCH} images [ms]": change(many, "latency_ms", 1, 1),
            "largest change of a logit": f"{one['largest_difference']:.0e}"})
    return pandas.DataFrame(lines)


def caption(experiment: Experiment, table_id: str) -> str:
    """What a table shows, under which conditions, and the paper's own inconsistencies about it."""
    printed = reported.load(PAPER).tables[table_id]
    some = experiment.grid[0]["run"]
    method = TABLES.get(table_id, "RVSM, RGSM and ADMM on ResNet20")
    nets, methods = set(printed.frame().get("net", [])), ["dense", method]
    if table_id not in TABLES:
        nets, methods = {"ResNet20"}, [m for _, m in TABLE4]
    here = [row for row in experiment.grid if row["net"] in nets and row["method"] in methods]
    counts = sorted(set(Counter((row["net"], row["method"], row["level"]) for row in here).values()))
    spread = "one seed: with the 95 % interval of the test images"
    if counts and counts[-1] > 1:
        spread = f"{' or '.join(map(str, counts))} seeds: mean ± standard deviation"
    notes = "".join(f" Note: {note}." for note in printed.notes)
    shown = {HEADINGS[a]: m for a, m in ACCURACIES.items()} | FEW_DRAWS
    return (f"{printed.source} of Dinh et al. 2020 ({method}), all in percent. Ours, scale {experiment.scale}: "
            f"{some.data.name}, {some.recipe.epochs} epochs, {spread}; empty: not on record, or not run at this "
            f"scale. {tables.conditions(experiment.measurements, shown)}{notes}")


WHERE = {"C1": "figure 1", "C2a": "table 1", "C2b": "table 2", "C3": "table 2", "C4": "table 3", "C5a": "table 4",
         "C5b": "table 4", "C6": "table 2", "C7": "figure 5", "C9": "stability", "C10": "table 2"}
FAIR_AFTER = ("C5a", "C5b.A4")  # the claims after which the fair comparison stands
FAIR_STATEMENT = "At about the same sparsity, relaxed splitting keeps a higher accuracy than corrected ADMM"


def judged(frame: pandas.DataFrame, falls: tuple[int, int, int]) -> pandas.DataFrame:
    """All comparisons: every claim of the paper with its verdict. `falls` says on how many of how many steps of
    splitting the Lagrangian fell, over how many seeds.

    Where a claim compares with ADMM, rows marked `fair` are added: accuracies against corrected ADMM, which takes about
    as much sparsity as its target. They are this project's question, so nothing is reported."""
    rows = []
    for claim in reported.load(PAPER).claims.values():
        name = claim.id.split(".")[0]
        where = f"01_fk_resnet, {WHERE.get(name, 'theorem 1')}"
        if name == "C8":
            rows.append(claims.always(claim, *falls, where=where))
            continue
        if name == "C9":
            said = replace(claim, unit="log10 of the ratio", quantity="change of the averaged output under a push, at "
                           "the noise of training over no noise")
            rows.append(claims.judged(said, stabilised(frame), where))
            continue
        metric, treatment, reference = _compared(claim.id)
        if claim.unit == "ratio":  # of shares, held against the number that the paper names, as logarithms
            said = replace(claim, unit="log10 of the ratio",
                           value=None if claim.value is None else math.log10(claim.value))
            rows.append(claims.judged(said, estimates.compared(frame, metric, treatment, reference, log=True), where))
            continue
        rows.append(claims.judged(claim, estimates.compared(frame, metric, treatment, reference), where))
        if claim.id in FAIR_AFTER:
            _, treatment, reference = _compared("C5b.A1" if name == "C5b" else claim.id)
            reference = reference | {"method": reference["method"].removeprefix("released ")}
            margin = reported.load(PAPER).claim("C5b.A3")
            for accuracy, metric in ACCURACIES.items():
                found = estimates.compared(frame, metric, treatment, reference)
                fair = replace(claim, id=f"{name} fair.{accuracy}", value=None, derived=False, operands={},
                               unit="percentage points", statement=FAIR_STATEMENT, source="this project's question",
                               margin=margin.margin, margin_why=margin.margin_why,
                               quantity=f"{accuracy}, {_with_sparsity(frame, treatment, reference)}")
                rows.append(claims.judged(fair, found, where))
    return pandas.DataFrame(rows)


def current_ledger(experiment: Experiment, store: Store) -> pandas.DataFrame:
    """The lines of the ledger by what the store can show of the experiment now; but for C8, of which no run is kept."""
    rows = judged(experiment.measured(store), (0, 0, 0))
    return claims.ledger(rows, reported.load(PAPER), claims.looks(experiment.settings))


def stabilised(frame: pandas.DataFrame) -> estimates.Comparison:
    """What the noise of training does to the change of an ensemble's output under a push along the gradient, seed by
    seed and image by image, as the logarithm of the ratio to the same network without noise."""
    level, still = (frame[frame["metric"] == f"stability level {level:g}"].set_index("seed")
                    for level in (TRAINING_NOISE, 0))
    if level.empty:
        return estimates.Comparison(None, [], estimates.NO_ANSWERS if "stability" in set(frame["metric"])
                                    else estimates.NOT_RUN)
    if not (level["value"] > 0).all() or not (still["value"] > 0).all():  # a constant answer, for one
        why = estimates.NO_LOGARITHM
        return estimates.Comparison(None, [], estimates.collapse(frame, [*level["run"]]) or why)
    effects = [math.log10(level["value"][seed] / still["value"][seed]) for seed in level.index]
    why = estimates.collapse(frame, [*level["run"]]) or estimates.few(len(effects))
    if why:
        return estimates.Comparison(None, effects, why)
    values = estimates.common([*level["each"], *still["each"].loc[level.index]])
    return estimates.Comparison(estimates.crossed(estimates.log_ratio(*np.split(values, 2))), effects)


def _with_sparsity(frame: pandas.DataFrame, treatment: dict, reference: dict) -> str:
    """`RGSM (61 % removed) minus ADMM channels (60 % removed)`, in the mean over the seeds that both have."""
    metric = "channel_sparsity" if treatment["method"] == "RGSM" else "sparsity"
    removed = [estimates.matching(frame, {"metric": metric, **row}).set_index("seed")["value"]
               for row in (treatment, reference)]
    seeds = removed[0].index.intersection(removed[1].index)
    return " minus ".join(f"{row['method']} ({100 * values[seeds].mean():.0f} % removed)" if len(seeds)
                          else row["method"] for row, values in zip((treatment, reference), removed, strict=True))


def _compared(claim: str) -> tuple[str, dict, dict]:
    """(metric, treatment row, reference row) of a claim, by its id."""
    name, *rest = claim.split(".")
    metric = ACCURACIES.get(rest[-1] if rest else "", "channel_sparsity")

    def row(net: str, method: str = "dense", level: float | None = None) -> dict:
        return {"net": net, "method": method, "level": level}

    if name == "C1":
        return "near_zero", row("ResNet20"), row("ResNet20", "natural")
    if name == "C2a":
        beta = {"1": 0.01, "2": 0.1, "3": 0.5}[rest[0]]
        return "sparsity", row("En2ResNet20", "RVSM", beta), row("ResNet20", "RVSM", beta)
    if name == "C2b":
        lambda1 = {"1": 0.05, "2": 0.1}[rest[0]]
        return "channel_sparsity", row("En2ResNet20", "RGSM", lambda1), row("ResNet20", "RGSM", lambda1)
    if name == "C3":
        return metric, row("En5ResNet20", "RGSM", 0.02), row("ResNet20", "RGSM", 0.1)
    if name == "C4":
        lambda1 = {"1": 0.05, "2": 0.1}[rest[0]]
        return metric, row("En2ResNet20", "RGSM", lambda1), row("ResNet38", "RGSM", lambda1)
    if name == "C5a":
        return "sparsity", row("ResNet20", "RVSM", 0.01), row("ResNet20", "released ADMM weights")
    if name == "C7":
        return "channel_norms", row("ResNet20", "released ADMM channels"), row("ResNet20", "RGSM", 0.1)
    if name == "C5b":
        return metric, row("ResNet20", "RGSM", 0.1), row("ResNet20", "released ADMM channels")
    if name == "C6":
        net, lambda1 = {"1": ("En5ResNet20", 0.01), "2": ("ResNet20", 0.05)}[rest[0]]
        return metric, row(net, "RGSM", lambda1), row(net)
    return metric, row({"2": "En2ResNet20", "5": "En5ResNet20"}[rest[0]]), row("ResNet20")  # C10
