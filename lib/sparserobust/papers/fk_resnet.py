"""Sparsity Meets Robustness (Dinh et al. 2020): Feynman-Kac ResNet ensembles, pruned by RVSM and RGSM."""

import math
from dataclasses import dataclass

import pandas

from sparserobust import claims, estimates, reported, scales, tables
from sparserobust.analysis import ChannelSparsity, WeightHistogram, WeightSparsity
from sparserobust.config import Data, Measurement, Model, Objective, Recipe, Run
from sparserobust.errors import UserError
from sparserobust.objectives import Natural
from sparserobust.sparsifiers import RGSM, RVSM, Dense

PAPER = "fk_resnet"
METHODS = {"RVSM": RVSM, "RGSM": RGSM}
LEVELS = {"RVSM": "beta", "RGSM": "lambda1"}  # the penalty that the paper varies, and the column of its tables
TABLES = {"T1": "RVSM", "T2": "RGSM", "T3": "RGSM"}
ACCURACIES = {"A1": "clean", "A2": "fgsm", "A3": "ifgsm20", "A4": "cw"}
SPARSITIES = {"RVSM": ("sparsity", "sparsity"), "RGSM": ("channel sparsity", "channel_sparsity")}
HEADINGS = {"A1": "A1 clean", "A2": "A2 FGSM", "A3": "A3 I-FGSM20", "A4": "A4 C&W"}
HONEST = {"PGD-20, EOT": "pgd20_eot", "AutoAttack": "autoattack"}  # not in the paper


@dataclass(frozen=True)
class Experiment:
    """The runs of tables 1 to 3 and figure 1 at one scale, and what is measured on them. Grid rows: `net` (the
    paper's), `ours` (what stands for it), `training`, `method`, `level` (the paper's penalty), `seed` and `run`."""

    scale: str
    seeds: list[int]
    grid: list[dict]
    measurements: dict[str, Measurement]


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment:
    """Everything the notebook runs at a scale. `UserError` for an unknown scale, bad seeds or a misspelt setting."""
    settings = scales.load(scale, PAPER)
    seeds = scales.checked_seeds(seeds, settings["seeds"])
    grid = [_grid_row(settings, *row, seed) for row in _rows(settings) for seed in seeds]
    measurements = {name: Measurement.parse(m) for name, m in settings["measurements"].items()}
    return Experiment(scale, seeds, grid, measurements | {
        "sparsity": WeightSparsity(), "channel_sparsity": ChannelSparsity(), "near_zero": WeightHistogram()})


def _rows(settings: dict) -> list[tuple[str, str, float | None]]:
    """(net, method, level) of figure 1, and of every row of tables 1 to 3 that the scale has settings for."""
    rows = {("ResNet20", "natural", None): None}
    for table, method in TABLES.items():
        for row in reported.load(PAPER).reported_table(table).to_dict("records"):
            level = row[LEVELS[method]]
            dense = pandas.isna(level)
            if row["net"] in settings["nets"] and (dense or level in settings[method]):
                rows[row["net"], "dense" if dense else method, None if dense else level] = None
    return list(rows)


def _grid_row(settings: dict, net: str, method: str, level: float | None, seed: int) -> dict:
    chosen = settings["nets"][net]
    training = "natural" if method == "natural" else "adversarial"
    run = Run(data=Data.parse(settings["data"]), model=Model.parse(chosen["model"]),
              objective=Natural() if training == "natural" else Objective.parse(settings["objective"]),
              recipe=Recipe.parse(settings["recipe"]),
              sparsifier=Dense() if level is None else METHODS[method].parse(settings[method][level]), seed=seed)
    return {"net": net, "ours": chosen["label"], "training": training, "method": method, "level": level, "seed": seed,
            "run": run}


def overview(grid: list[dict]) -> pandas.DataFrame:
    """The grid as a table: one row per net and penalty, with our settings beside the paper's."""
    rows = {}
    for row in grid:
        key = row["net"], row["method"], row["level"]
        settings = {k: v for k, v in row["run"].sparsifier.plain().items() if k != "kind"}
        rows.setdefault(key, {
            "the paper's net": row["net"], "ours": row["ours"], "method": row["method"],
            "the paper's penalty": "" if row["level"] is None else f"{LEVELS[row['method']]} {row['level']:g}",
            "our penalty": ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in settings.items()),
            "epochs": row["run"].recipe.epochs, "seeds": []})["seeds"].append(row["seed"])
    return pandas.DataFrame(list(rows.values()))


def table(frame: pandas.DataFrame, table_id: str) -> pandas.DataFrame:
    """Table T1, T2 or T3, reported beside ours, with columns the paper does not have. `frame` comes from `sweep`."""
    if table_id not in TABLES:
        raise UserError(f"no table '{table_id}' here: there are {', '.join(TABLES)}")
    method = TABLES[table_id]
    ours = tables.summary(frame[frame["method"].isin(["dense", method])], ["net", "level", "ours"],
                          exact=("sparsity", "channel_sparsity"))
    heading, metric = SPARSITIES[method]
    metrics = {HEADINGS[a]: (a, m) for a, m in ACCURACIES.items()} | {heading: (metric, metric)}
    metrics |= {h: (None, m) for h, m in HONEST.items() if m in set(frame["metric"])}
    return tables.beside(reported.load(PAPER).reported_table(table_id), ours, {"net": "net", LEVELS[method]: "level"},
                         metrics, label="ours")


def caption(experiment: Experiment, table_id: str) -> str:
    """What a table shows, under which conditions, and the paper's own inconsistencies about it."""
    printed = reported.load(PAPER).tables[table_id]
    some = experiment.grid[0]["run"]
    n = len(experiment.seeds)
    spread = (f"mean ± standard deviation over {n} seeds" if n > 1
              else "one seed, with the 95 % binomial interval of the test images")
    notes = "".join(f" Note: {note}." for note in printed.notes)
    return (f"{printed.source} of Dinh et al. 2020 ({TABLES[table_id]}), all in percent. Ours, scale "
            f"{experiment.scale}: {some.data.name}, {some.recipe.epochs} epochs, {spread}; empty: not run at this "
            f"scale.{notes}")


def judged(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The ledger: every claim of the paper that tables 1 to 3 and figure 1 bear on, with its verdict."""
    notebook = {"C1": "figure 1", "C2a": "table 1", "C2b": "table 2", "C3": "table 2", "C4": "table 3",
                "C6": "table 2", "C10": "table 2"}
    rows = []
    for claim in reported.load(PAPER).claims.values():
        name = claim.id.split(".")[0]
        if name not in notebook:
            continue
        effects = estimates.paired_effects(frame, *_compared(claim.id), ratio=claim.unit == "ratio")
        rows.append(claims.judged(claim, effects, margin=SCATTER, where=f"01_fk_resnet, {notebook[name]}"))
    return pandas.DataFrame(rows)


SCATTER = 1.2  # points: the paper's own run-to-run differences, and so the margin of "costs little" (claim C6)


def _compared(claim: str) -> tuple[str, dict, dict]:
    """(metric, treatment row, reference row) of a claim, by its id."""
    name, *rest = claim.split(".")
    metric = ACCURACIES.get(rest[-1] if rest else "", "channel_sparsity")

    def row(net: str, method: str = "dense", level: float = math.nan) -> dict:
        return {"net": net, "method": method, "level": None if math.isnan(level) else level}

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
    if name == "C6":
        net, lambda1 = {"1": ("En5ResNet20", 0.01), "2": ("ResNet20", 0.05)}[rest[0]]
        return metric, row(net, "RGSM", lambda1), row(net)
    return metric, row({"2": "En2ResNet20", "5": "En5ResNet20"}[rest[0]]), row("ResNet20")  # C10
