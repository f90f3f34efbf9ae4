"""Achieving Adversarial Robustness via Sparsity (Wang et al. 2020; Liao et al. 2022): lottery tickets under adversarial
training, and inverse weights inheritance (IWI). Of the paper only its claims are on record: the algorithm is this
project's reading, and every number is ours."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, zip_longest

import pandas

from sparserobust import claims, estimates, reported, scales, sweep, tables
from sparserobust.analysis import WeightSparsity
from sparserobust.config import Data, Inheritance, Measurement, Model, Objective, Recipe, Run
from sparserobust.objectives import Natural
from sparserobust.sparsifiers import (
    Channels,
    FixedMask,
    LearnedScores,
    Magnitude,
    MatchedHistogram,
    RandomMask,
    ScaleLasso,
    Ticket,
)

PAPER = "iwi"
TRAININGS = ("natural", "adversarial")
STARTS = ("initial", "early", "trained", "random")  # of a ticket's weights
REDRAWN = 1000  # added to a run's seed where weights are drawn anew
GLOBAL, LAYERWISE, FILTERS = "magnitude, global", "magnitude, layer by layer", "filters, L1 norm"
SLIMMING, SCORES, RANDOM = "network slimming", "learned scores", "random"
ZOO = (GLOBAL, LAYERWISE, FILTERS, SLIMMING, SCORES, RANDOM)
LONGER = "trained on"  # the zoo's control: as long as what was pruned
NARROW, TICKET = "narrow", "ticket"  # what is inherited from
IWI = {NARROW: "IWI, from narrow", TICKET: "IWI, from ticket"}
EQUAL = {NARROW: "AT, cost of IWI from narrow", TICKET: "AT, cost of IWI from ticket"}
SMALL, NATURAL_SMALL = "AT, narrow", "inherits from natural narrow"
MATCHED = {NARROW: "AT, histogram of IWI from narrow", TICKET: "AT, histogram of IWI from ticket"}
ATTACKS = {"FGSM": "fgsm", "PGD-20": "pgd20", "C&W": "cw", "AutoAttack": "autoattack"}
PROTOCOL = {"clean": "clean"} | ATTACKS
SCATTER = 1.0  # points: what "no worse" allows


# what is measured to say why, on the way from natural to adversarial and from dense to sparse to inherited
EXPLAINED = (("dense", "dense"), ("tickets", "initial"), ("zoo", GLOBAL), ("inheritance", SMALL),
             *(("inheritance", method) for group in (IWI, EQUAL, MATCHED) for method in group.values()))


class Experiment(sweep.Experiment):
    """Grid rows: `net` and `ours` (what it is here), `part` (dense, tickets, zoo, inheritance, or on the way: trained
    for others), `pruning` and `retraining` (natural or adversarial, or empty), `method` (for tickets: where their
    weights start), `level` (sparsity; for what inherits kappa, for its controls None), `seed`, `run`, `also`."""

    @property
    def nets(self) -> list[str]:
        return list(self.settings["nets"])


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment:
    """Everything the notebook runs at a scale, or all of it with these seeds. `UserError` for an unknown scale, bad
    seeds or a misspelt setting."""
    settings = scales.load(scale, PAPER)
    chosen = scales.checked_seeds(seeds, settings["seeds"])
    grid = []
    for net, own in settings["nets"].items():
        rows = [_net_rows(settings | own, net, seed, first=seed == chosen[0])
                for seed in (chosen if seeds else own.get("seeds", chosen))]
        # one seed after the other, row by row: what a row waits for has then been begun some rows before
        grid += [row for row in chain.from_iterable(zip_longest(*rows)) if row]
    return Experiment(scale, chosen, grid, {"sparsity": WeightSparsity()}, settings)


def _net_rows(settings: dict, net: str, seed: int, first: bool) -> list[dict]:
    """Grid rows of one net and seed."""
    at = Run(data=Data.parse(settings["data"]), model=Model.parse(settings["model"]),
             objective=Objective.parse(settings["objective"]), recipe=Recipe.parse(settings["recipe"]), seed=seed)
    dense = {"natural": replace(at, objective=Natural()), "adversarial": at}
    found = [("dense", "", training, "dense", 0.0, run) for training, run in dense.items()]
    tickets = list(_tickets(settings, dense))
    found += tickets
    if "zoo" in settings:
        found += _zoo(settings, at)
    found += _inheritance(settings, at, tickets, first)
    rows = []
    for row in found:
        labels = dict(zip(("part", "pruning", "retraining", "method", "level"), row, strict=False))
        labels = {"net": net, "ours": settings["label"]} | labels | {"seed": seed}
        rows.append(labels | {"run": row[-1], "also": _also(settings, labels, first)})
    return rows


def _tickets(settings: dict, dense: dict[str, Run]) -> Iterator[tuple]:
    """Iterative magnitude pruning, global, from level to level, rewound to the initial weights after each; every mask
    so found is then trained in the cells that are asked for."""
    own = settings["tickets"]
    for pruning, whole in dense.items():
        last = whole
        cells = [cell for cell in own["cells"] if cell["pruning"] == pruning]
        for level in own["levels"] if cells else ():
            pruned = replace(whole, start=last, recipe=replace(whole.recipe, epochs=0),
                             sparsifier=Magnitude(sparsity=level))
            starts = {"initial": None, "early": replace(whole, recipe=replace(whole.recipe, stop=own["early"])),
                      "trained": last, "random": replace(dense["natural"], seed=whole.seed + REDRAWN,
                                                         recipe=replace(whole.recipe, stop=0))}

            def trained(retraining: str, start: str, pruned=pruned, starts=starts) -> Run:
                run = replace(dense[retraining], start=starts[start], sparsifier=Ticket(pruned=pruned))
                return run if start == "initial" else replace(run, recipe=replace(run.recipe, watched=False))

            last = trained(pruning, "initial")
            yield "on the way", pruning, "", "pruned", level, pruned
            wanted = [(cell["retraining"], start) for cell in cells for start in cell["starts"]
                      if level in cell.get("levels", own["levels"])]
            if (pruning, "initial") not in wanted:  # the next level needs it
                yield "on the way", pruning, pruning, "initial", level, last
            for retraining, start in wanted:
                yield "tickets", pruning, retraining, start, level, trained(retraining, start)


def _zoo(settings: dict, at: Run) -> Iterator[tuple]:
    """Ways to prune the same dense net, each with the same epochs of training afterwards (learned scores spend some of
    them on the scores); network slimming has a dense net of its own, trained with a penalty on scales."""
    own = settings["zoo"]
    recipe = Recipe.parse(own["fine_tuning"])
    after = replace(at, start=at, recipe=recipe)
    slim = replace(at, sparsifier=ScaleLasso(lam=own["slimming"]))
    yield "zoo", "", "adversarial", LONGER, 0.0, after
    yield "on the way", "", "adversarial", SLIMMING, 0.0, slim
    for level in own["levels"]:
        scored = replace(after, recipe=replace(recipe, epochs=own["score_epochs"], lr=own["score_lr"]),
                         sparsifier=LearnedScores(sparsity=level))
        yield "on the way", "adversarial", "", SCORES, level, scored
        for method, pruner in ((GLOBAL, Magnitude(sparsity=level)),
                               (LAYERWISE, Magnitude(sparsity=level, scope="layerwise")),
                               (FILTERS, Channels(sparsity=level)), (RANDOM, RandomMask(sparsity=level))):
            yield "zoo", "adversarial", "adversarial", method, level, replace(after, sparsifier=pruner)
        yield ("zoo", "adversarial", "adversarial", SLIMMING, level,
               replace(after, start=slim, sparsifier=Channels(sparsity=level, criterion="scales")))
        rest = replace(recipe, epochs=recipe.epochs - own["score_epochs"])
        yield ("zoo", "adversarial", "adversarial", SCORES, level,
               replace(after, start=scored, recipe=rest, sparsifier=FixedMask()))


def _inheritance(settings: dict, at: Run, tickets: list[tuple], first: bool) -> Iterator[tuple]:
    """IWI from a narrow net and from the first ticket, and its controls."""
    own = settings["inheritance"]
    small = replace(at, model=replace(at.model, width=settings["narrow_width"]))
    ticket = next(row[-1] for row in tickets if row[1:4] == ("adversarial", "adversarial", "initial"))
    natural = replace(small, objective=Natural())

    def row(method: str, run: Run, kappa: float | None = None) -> tuple:
        return "inheritance", "", "adversarial", method, kappa, run

    yield row(SMALL, small)
    yield "on the way", "", "natural", "natural narrow", None, natural
    for source, run in ((NARROW, small), (TICKET, ticket)):
        yield row(EQUAL[source], replace(at, recipe=replace(at.recipe, epochs=settings["equal_epochs"][source])))
        for kappa in own["kappas"] if first or own["kappas_all_seeds"] else [own["kappa"]]:
            yield row(IWI[source], replace(at, start=run, inheritance=Inheritance(kappa=kappa)), kappa)
        inherited = replace(at, start=run, inheritance=Inheritance(kappa=own["kappa"]))
        yield row(MATCHED[source], replace(at, sparsifier=MatchedHistogram(target=inherited, beta=own["beta"])))
    yield row(NATURAL_SMALL, replace(at, start=natural, inheritance=Inheritance(kappa=own["kappa"])), own["kappa"])


def _also(settings: dict, row: dict, first: bool) -> dict[str, Measurement]:
    """What is measured on a row."""
    part, method = row["part"], row["method"]
    if part == "on the way":
        return {}
    names = dict(settings["protocol"])
    inherits = part == "inheritance"
    main = part == "dense" or (inherits and row["level"] in (None, settings["inheritance"]["kappa"]))
    if part == "dense" or inherits:
        names |= {"near_zero": {"kind": "weight_histogram"}, "macs": {"kind": "macs"}}
    if main:
        names |= settings["stronger"]
    if main and first and row["retraining"] == "adversarial" and method in settings["attacked"]:
        names |= settings["autoattack"]
    if (part, method) in EXPLAINED and row["pruning"] in ("", row["retraining"]) and (main or not inherits):
        names |= settings["why"]
    return {name: Measurement.parse(m) for name, m in names.items()}


def cost(run: Run, macs: dict[str, float], wide: str) -> float:
    """What training took, of this run and all it begins with: passes forward and backward over the training images,
    each counted by the multiply-accumulates of its network in units of those of the network `wide`. `macs` maps
    identities of models to theirs; zeros count in full, since no processor here skips them."""
    return sum(r.recipe.trained_epochs * r.objective.cost * macs[r.model.identity] / macs[wide] for r in run.lineage)


def overview(grid: list[dict]) -> pandas.DataFrame:
    """The grid as a table, one line per net, part, trainings and method."""
    lines = {}
    for row in grid:
        key = tuple(row[k] for k in ("net", "part", "pruning", "retraining", "method"))
        line = lines.setdefault(key, {"net": row["ours"], "part": row["part"], "pruning": row["pruning"],
                                      "retraining": row["retraining"], "method": row["method"],
                                      "epochs": row["run"].recipe.trained_epochs, "levels": [], "seeds": []})
        for column, value in (("levels", "" if row["level"] is None else f"{row['level']:g}"), ("seeds", row["seed"])):
            if value not in line[column]:
                line[column].append(value)
    return pandas.DataFrame(list(lines.values())).assign(levels=lambda t: t["levels"].map(", ".join))


def located(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The frame with `left` [%], the share of convolution and linear weights that are not zero."""
    zero = frame[frame["metric"] == "sparsity"].drop_duplicates("run").set_index("run")["value"]
    return frame.assign(left=100 * (1 - frame["run"].map(zero)), value=frame["value"].astype(float))


def with_overfitting(frame: pandas.DataFrame, histories: dict[str, list[dict]]) -> pandas.DataFrame:
    """The frame and a metric `overfitting` more: by how much accuracy under attack on the validation split was higher
    after its best epoch than after the last one. `histories` are those of `watched` runs, by identity."""
    attacked = {run: [epoch["validation_robust"] for epoch in history if "validation_robust" in epoch]
                for run, history in histories.items()}
    first = frame.drop_duplicates(["run", "part", "method", "level"])
    rows = first[first["run"].map(lambda run: len(attacked.get(run, ())) > 1)]
    gaps = rows["run"].map(lambda run: max(attacked[run]) - attacked[run][-1])
    added = rows.assign(metric="overfitting", value=gaps, count=None, total=None)
    return pandas.concat([frame, added], ignore_index=True)


def series(frame: pandas.DataFrame, metric: str, lines: dict[str, dict]) -> pandas.DataFrame:
    """Rows of a metric along sparsity, under `series` the name of the line; `lines` maps names to labels. Every line
    begins with the net that was trained as it was retrained, but dense."""
    chosen, found = estimates.matching(frame, {"metric": metric}), []
    for name, wanted in lines.items():
        rows = estimates.matching(chosen, wanted)
        dense = estimates.matching(chosen, {"part": "dense", "retraining": wanted["retraining"]})
        if len(rows):
            found.append(pandas.concat([dense, rows]).assign(series=name))
    return pandas.concat(found)


def panels(frame: pandas.DataFrame, rows: dict[str, tuple[str, float]], net: str) -> list[list[dict]]:
    """For `plots.along_sparsity`: a row for each heading (of metric and factor), tickets left, the zoo right."""
    mine, adversarial = frame[frame["net"] == net], {"pruning": "adversarial", "retraining": "adversarial"}
    columns = {"lottery tickets": {f"weights: {start}": adversarial | {"part": "tickets", "method": start}
                                   for start in STARTS},
               "zoo": {method: adversarial | {"part": "zoo", "method": method} for method in ZOO}}
    return [[{"frame": series(mine, metric, lines), "factor": factor, "title": title if number == 0 else "",
              "ylabel": heading if title == "lottery tickets" else ""} for title, lines in columns.items()]
            for number, (heading, (metric, factor)) in enumerate(rows.items())]


def why_panels(frame: pandas.DataFrame, rows: list[dict[str, tuple[str, float]]], net: str) -> list[list[dict]]:
    """For `plots.along_sparsity`: a panel for each heading, of tickets rewound to their initial weights, trained in
    either way, and of global magnitude pruning."""
    lines = {f"tickets, {training}": {"part": "tickets", "method": "initial", "pruning": training,
                                      "retraining": training} for training in TRAININGS[::-1]}
    lines["zoo, magnitude, global"] = {"part": "zoo", "method": GLOBAL, "retraining": "adversarial"}
    mine = frame[frame["net"] == net]
    return [[{"frame": series(mine, metric, lines), "factor": factor, "title": heading, "log": "bound" in metric}
             for heading, (metric, factor) in row.items()] for row in rows]


def factorial(frame: pandas.DataFrame, net: str, columns: dict[str, str]) -> pandas.DataFrame:
    """Table T2: one line per pruning, retraining and start, a column per sparsity and metric."""
    chosen = frame[(frame["net"] == net) & (frame["part"] == "tickets")]
    by = ["pruning", "retraining", "method"]
    parts = [tables.rates(rows, by, columns).add_prefix(f"{100 * level:g} % removed: ")
             for level, rows in chosen.groupby("level")]
    return pandas.concat(parts, axis=1).fillna("")


def training_curves(experiment: Experiment, histories: dict[str, list[dict]], macs: dict[str, float], net: str,
                    methods: tuple[str, ...]) -> pandas.DataFrame:
    """Accuracy under attack on the validation split after every epoch against what training took until then (`cost`),
    what came before it included: a row per method (as `inherited` calls them), seed and epoch."""
    wide = experiment.rows(net=net, part="dense")[0]["run"].model.identity
    rows = []
    for row in experiment.rows(net=net):
        run, history = row["run"], histories.get(row["run"].identity, ())
        main = row["part"] == "dense" or row["level"] in (None, experiment.settings["inheritance"]["kappa"])
        method = row["method"].replace("dense", "AT")
        if row["part"] in ("dense", "inheritance") and method in methods and main:
            whole = cost(run, macs, wide)
            each = run.objective.cost * macs[run.model.identity] / macs[wide]
            for epoch in (e for e in history if "validation_robust" in e):
                rows.append({"method": method, "seed": row["seed"], "epoch": epoch["epoch"],
                             "value": epoch["validation_robust"],
                             "cost": whole - each * (run.recipe.trained_epochs - epoch["epoch"])})
    return pandas.DataFrame(rows)


def inherited(frame: pandas.DataFrame, kappa: float) -> pandas.DataFrame:
    """What table T3 compares, under `method` as it is called there: adversarial training (AT), what inherits at this
    kappa, and its controls."""
    heirs = (frame["part"] == "inheritance") & (frame["level"].isna() | (frame["level"] == kappa))
    dense = (frame["part"] == "dense") & (frame["retraining"] == "adversarial")
    return frame[heirs | dense].assign(method=frame["method"].replace("dense", "AT"))


def labels(net: str, part: str, method: str, level: float | None = None, pruning: str = "",
           retraining: str = "adversarial") -> dict:
    """The labels that name a kind of row."""
    return {"net": net, "part": part, "pruning": pruning, "retraining": retraining, "method": method, "level": level}


def judged(frame: pandas.DataFrame, experiment: Experiment) -> pandas.DataFrame:
    """The ledger: every claim for each net, method and level it speaks of; where the paper leaves open against what,
    against each of what it could mean."""
    record, rows = reported.load(PAPER), []
    for claim, name, metric, treatment, reference in _compared(experiment):
        values = estimates.paired_effects(frame, metric, treatment, reference, ratio=claim == "C6")
        said = replace(record.claim(claim), id=f"{claim} {name}")
        if claim == "C6":  # ratios of bounds are skewed: their logarithm is what a mean and an interval suit
            values, said = [math.log10(v) for v in values], replace(said, unit="log10 of the ratio to dense")
        rows.append(claims.judged(said, values, SCATTER, "02_iwi"))
    return pandas.DataFrame(rows).sort_values("claim", key=lambda c: c.str.split().str[0], kind="stable")


def _compared(experiment: Experiment) -> Iterator[tuple[str, str, str, dict, dict]]:
    """(claim, of what, metric, treatment, reference) of every row of the ledger."""
    kappa = experiment.settings["inheritance"]["kappa"]
    for net in experiment.nets:
        dense = labels(net, "dense", "dense", 0.0)
        pruned = {(row["method"], row["level"]) for row in experiment.rows(net=net, part="zoo")
                  if row["method"] not in (LONGER, RANDOM)}
        for method, level in sorted(pruned, key=lambda p: (ZOO.index(p[0]), p[1])):
            name, sparse = f"{net}, {method}, {100 * level:g} %", labels(net, "zoo", method, level, "adversarial")
            yield "C1", name, "pgd20", sparse, dense
            yield "C1", f"{name}, equal training", "pgd20", sparse, labels(net, "zoo", LONGER, 0.0)
        yield from _ticket_claims(experiment, net)
        for source in (NARROW, TICKET):
            inherited = labels(net, "inheritance", IWI[source], kappa)
            references = {"AT": dense, "equal cost": labels(net, "inheritance", EQUAL[source]),
                          "same histogram": labels(net, "inheritance", MATCHED[source])}
            if source == NARROW:
                references["inheriting from natural"] = labels(net, "inheritance", NATURAL_SMALL, kappa)
            for name, reference in references.items():
                yield "C4", f"{net}, from {source} - {name}", "pgd20", inherited, reference
            yield "C5", f"{net}, from {source}", "near_zero", inherited, dense
            yield "C7", f"{net}, from {source}", "pgd20", inherited, dense


def _ticket_claims(experiment: Experiment, net: str) -> Iterator[tuple[str, str, str, dict, dict]]:
    rows = experiment.rows(net=net, part="tickets")
    cells = {(row["level"], row["pruning"], row["retraining"], row["method"]) for row in rows}

    def cell(level: float, pruning: str, retraining: str, start: str) -> dict:
        return labels(net, "tickets", start, level, pruning, retraining)

    for level in sorted({row["level"] for row in rows}):
        name, both = f"{net}, {100 * level:g} %", (level, "adversarial", "adversarial")
        for start in STARTS[:-1]:
            if {(*both, start), (*both, "random")} <= cells:
                yield "C2", f"{name}, {start} - random", "pgd20", cell(*both, start), cell(*both, "random")
        for what, other in (("retraining", ("adversarial", "natural")), ("pruning", ("natural", "adversarial"))):
            if {(*both, "initial"), (level, *other, "initial")} <= cells:
                yield "C3", f"{name}, {what}", "pgd20", cell(*both, "initial"), cell(level, *other, "initial")
        for metric, what in (("margins bound", "bound"), ("margins slope", "slope")):
            if (*both, "initial") in cells:
                dense = labels(net, "dense", "dense", 0.0)
                yield "C6", f"{name}, {what}, tickets", metric, cell(*both, "initial"), dense
