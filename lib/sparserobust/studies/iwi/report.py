"""Achieving Adversarial Robustness via Sparsity (Wang et al. 2020; Liao et al. 2022): lottery tickets under adversarial
training, and inverse weights inheritance (IWI). Of the paper only its claims are on record: the algorithm is this
project's reading, and every number is ours."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, groupby, zip_longest
from operator import itemgetter

import pandas

from sparserobust.analysis import WeightSparsity
from sparserobust.config import Data, Inheritance, Measurement, Model, Objective, Recipe, Run
from sparserobust.errors import UserError
from sparserobust.objectives import Natural
from sparserobust.reporting import claims, estimates, reported, tables
from sparserobust.running import scales
from sparserobust.running.experiment import Experiment as _Experiment
from sparserobust.running.store import Store
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
SMALL, NATURAL, NATURAL_HEIR = "AT, narrow", "natural, narrow", "inherits from natural narrow"
MATCHED = {NARROW: "AT, histogram of IWI from narrow", TICKET: "AT, histogram of IWI from ticket"}
ATTACKS = {"FGSM": "fgsm", "PGD-20": "pgd20", "C&W": "cw", "AutoAttack": "autoattack"}
PROTOCOL = {"clean": "clean"} | ATTACKS
TIED = {"bound of the slope": "margins bound", "slope in l2": "margins slope", "margin / slope in l2": "margins ratio",
        "margin / slope in l1": "margins_linf ratio"}  # what theory ties to sparsity
WHERE = {"C1": "table 1", "C2": "table 2", "C3": "table 2", "C4": "table 3", "C5": "figure 2", "C6": "figure 4",
         "C7": "table 3"}


# what is measured to say why, on the way from natural to adversarial and from dense to sparse to inherited
EXPLAINED = (("dense", "dense"), ("tickets", "initial"), ("zoo", GLOBAL), ("inheritance", SMALL),
             ("inheritance", NATURAL_HEIR),
             *(("inheritance", method) for group in (IWI, EQUAL, MATCHED) for method in group.values()))


class Experiment(_Experiment):
    """Grid rows: `net` and `ours` (what it is here), `part` (dense, tickets, zoo, inheritance, or on the way: trained
    for others), `pruning` and `retraining` (natural or adversarial, or empty), `method` (for tickets: where their
    weights start), `level` (sparsity; for what inherits kappa, for its controls None), `seed`, `run`, `also`."""


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment:
    """Everything the notebook runs at a scale, or all of it with these seeds. `UserError` for an unknown scale, bad
    seeds, or a misspelt setting of a run or measurement (other words of a scale file are not checked)."""
    settings = scales.load(scale, PAPER)
    chosen = scales.checked_seeds(seeds, settings["seeds"])
    grid = []
    for _, of_net in groupby(scales.networks(settings, seeds), key=itemgetter(0)):
        rows = [_net_rows(own, net, seed, first=seed == chosen[0]) for net, own, seed in of_net]
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
        deepest = max((max(cell.get("levels", own["levels"])) for cell in cells), default=0)
        for level in (level for level in own["levels"] if level <= deepest):
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
            if (pruning, "initial") not in wanted and level < deepest:  # the next level needs it
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
    yield "zoo", "adversarial", "adversarial", SLIMMING, 0.0, slim
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
    """IWI from a narrow net and from a ticket, and its controls."""
    own = settings["inheritance"]
    small = replace(at, model=replace(at.model, width=settings["narrow_width"]))
    both = ("adversarial", "adversarial", "initial", own["ticket"])
    ticket = next((row[-1] for row in tickets if row[1:5] == both), None)
    if ticket is None:
        raise UserError(f"{PAPER}: the ticket that is inherited, {own['ticket']}, is not among those that are trained "
                        "adversarially from their initial weights")
    natural = replace(small, objective=Natural())

    def row(method: str, run: Run, kappa: float | None = None) -> tuple:
        return "inheritance", "", "adversarial", method, kappa, run

    yield row(SMALL, small)
    yield "inheritance", "", "natural", NATURAL, None, natural
    for source, run in ((NARROW, small), (TICKET, ticket)):
        yield row(EQUAL[source], replace(at, recipe=replace(at.recipe, epochs=settings["equal_epochs"][source])))
        for kappa in own["kappas"] if first or own["kappas_all_seeds"] else [own["kappa"]]:
            yield row(IWI[source], replace(at, start=run, inheritance=Inheritance(kappa=kappa)), kappa)
        inherited = replace(at, start=run, inheritance=Inheritance(kappa=own["kappa"]))
        yield row(MATCHED[source], replace(at, sparsifier=MatchedHistogram(target=inherited, beta=own["beta"])))
    yield row(NATURAL_HEIR, replace(at, start=natural, inheritance=Inheritance(kappa=own["kappa"])), own["kappa"])


def _also(settings: dict, row: dict, first: bool) -> dict[str, Measurement]:
    """What is measured on a row."""
    part, method = row["part"], row["method"]
    if part == "on the way":
        return {}
    names = dict(settings["protocol"])
    inherits, own = part == "inheritance", settings["inheritance"]
    main = part == "dense" or (inherits and row["level"] in (None, own["kappa"])) or _inherited_ticket(row, own)
    if inherits or main:
        names |= {"near_zero": {"kind": "weight_histogram"}, "macs": {"kind": "macs"}}
    if main:
        names |= settings["stronger"]
    if main and first and "health" in settings and row["retraining"] == "adversarial":
        names["health"] = settings["health"]
    if main and first and row["retraining"] == "adversarial" and method in settings["autoattack_methods"]:
        names |= settings["autoattack"]
    if (part, method) in EXPLAINED and row["pruning"] in ("", row["retraining"]) and (main or not inherits):
        names |= settings["why"]
    return {name: Measurement.parse(m) for name, m in names.items()}


def _inherited_ticket(row: dict, own: dict) -> bool:
    """Whether it is the ticket from which the dense net inherits."""
    return (row["part"], row["pruning"], row["retraining"], row["method"], row["level"]) == (
        "tickets", "adversarial", "adversarial", "initial", own["ticket"])


def cost(run: Run, macs: dict[str, float], wide: str) -> float:
    """What training took, of this run and all it begins with: passes forward and backward over the training images,
    each counted by the multiply-accumulates of its network in units of those of the network `wide`. `macs` maps
    identities of models to theirs; zeros count in full, since no processor here skips them."""
    return sum(r.recipe.trained_epochs * r.objective.cost * macs[r.model.identity] / macs[wide] for r in run.lineage)


def macs_of(frame: pandas.DataFrame, experiment: Experiment) -> dict[str, float]:
    """Multiply-accumulates of every model, by its identity."""
    measured = frame[frame["metric"] == "macs"].set_index("run")["value"]
    runs = {row["run"].identity: row["run"] for row in experiment.grid}
    return {runs[run].model.identity: float(value) for run, value in measured.items()}


def costs(rows: list[dict], macs: dict[str, float], seconds: Callable[[Run], float]) -> pandas.DataFrame:
    """What training took, one line per net and method, mean over seeds: `passes` (its `cost`), and `seconds`, with
    all it began with."""
    wide = {row["net"]: row["run"].model.identity for row in rows if row["part"] == "dense"}
    spent = pandas.DataFrame([{"line": f"{row['ours']}, {called(row)}",
                               "passes": cost(row["run"], macs, wide[row["net"]]),
                               "seconds": sum(seconds(run) for run in row["run"].lineage)} for row in rows])
    means = spent.groupby("line", sort=False).mean()
    return means.assign(passes=means["passes"].map("{:.1f}".format), seconds=means["seconds"].map("{:.0f}".format))


def overview(grid: list[dict]) -> pandas.DataFrame:
    """The grid as a table, one line per net, part, trainings, method and epochs."""
    return tables.gathered([{
        "net": row["ours"], "part": row["part"], "pruning": row["pruning"], "retraining": row["retraining"],
        "method": row["method"], "epochs": row["run"].recipe.trained_epochs,
        "levels": "" if row["level"] is None else f"{row['level']:g}", "seeds": row["seed"]} for row in grid],
        "levels", "seeds")


def located(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The frame with `left` [%], the share of convolution and linear weights that are not zero."""
    return frame.assign(left=estimates.left(frame, "sparsity"), value=frame["value"].astype(float))


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
    """Rows of a metric along sparsity, under `series` the name of the line; `lines` maps names to labels. A line that
    has no dense net of its own begins with the one that was trained as it was retrained."""
    chosen, found = estimates.matching(frame, {"metric": metric}), []
    for name, wanted in lines.items():
        rows = estimates.matching(chosen, wanted)
        dense = estimates.matching(chosen, {"part": "dense", "retraining": wanted["retraining"]})
        if len(rows):
            own = (rows["level"] == 0).any()
            found.append(pandas.concat([*([] if own else [dense]), rows]).assign(series=name))
    return pandas.concat(found)


def panels(frame: pandas.DataFrame, rows: dict[str, tuple[str, float]], net: str) -> list[list[dict]]:
    """For `plots.along_sparsity`: a row for each heading (of metric and factor), tickets left, the zoo right (where a
    scale has one)."""
    mine, adversarial = frame[frame["net"] == net], {"pruning": "adversarial", "retraining": "adversarial"}
    columns = {"lottery tickets": {f"weights: {start}": adversarial | {"part": "tickets", "method": start}
                                   for start in STARTS}}
    if "zoo" in set(mine["part"]):
        columns["zoo"] = {method: adversarial | {"part": "zoo", "method": method} for method in ZOO}
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
        attacked = row["part"] in ("dense", "inheritance") and row["retraining"] == "adversarial"
        if attacked and main and called(row) in methods:
            whole = cost(run, macs, wide)
            each = run.objective.cost * macs[run.model.identity] / macs[wide]
            for epoch in (e for e in history if "validation_robust" in e):
                rows.append({"method": called(row), "seed": row["seed"], "epoch": epoch["epoch"],
                             "value": epoch["validation_robust"],
                             "cost": whole - each * (run.recipe.trained_epochs - epoch["epoch"])})
    return pandas.DataFrame(rows)


def inherited(frame: pandas.DataFrame, settings: dict) -> pandas.DataFrame:
    """What table T3 compares, under `method` as it is called there: adversarial training (AT), what inherits at the
    `kappa` of these settings of inheritance, what it inherits from, and its controls."""
    heirs = (frame["part"] == "inheritance") & (frame["level"].isna() | (frame["level"] == settings["kappa"]))
    dense = (frame["part"] == "dense") & (frame["retraining"] == "adversarial")
    ticket = frame.apply(_inherited_ticket, axis=1, own=settings)
    return frame.assign(method=frame.apply(called, axis=1))[heirs | dense | ticket]


def called(row) -> str:
    """What table T3 calls the method of a grid row, or of a row of the frame."""
    return {"dense": "AT", "tickets": "ticket"}.get(row["part"], row["method"])


def labels(net: str, part: str, method: str, level: float | None = None, pruning: str = "",
           retraining: str = "adversarial") -> dict:
    """The labels that name a kind of row."""
    return {"net": net, "part": part, "pruning": pruning, "retraining": retraining, "method": method, "level": level}


def starts_compared(experiment: Experiment, net: str, level: float) -> tables.Pairs:
    """Where the weights of tickets come from: against weights drawn anew, and trained ones against the initial ones;
    all else is adversarial."""
    cells = _cells(experiment, net, level)
    pairs = [*((start, "random") for start in STARTS[:-1]), ("trained", "initial")]
    return {f"{one} - {other} weights": (cells["adversarial", "adversarial", one],
                                         cells["adversarial", "adversarial", other]) for one, other in pairs
            if {("adversarial", "adversarial", start) for start in (one, other)} <= set(cells)}


def trainings_compared(experiment: Experiment, net: str, level: float) -> tables.Pairs:
    """Adversarial against natural training, in retraining and in pruning; weights rewound to the initial ones."""
    cells = _cells(experiment, net, level)
    both = cells.get(("adversarial", "adversarial", "initial"))
    others = {"retraining": ("adversarial", "natural", "initial"), "pruning": ("natural", "adversarial", "initial")}
    return {f"adversarial - natural {what}": (both, cells[other]) for what, other in others.items()
            if both and other in cells}


def _cells(experiment: Experiment, net: str, level: float) -> dict[tuple[str, str, str], dict]:
    """Labels of the tickets of one level, by pruning, retraining and start."""
    return {(row["pruning"], row["retraining"], row["method"]):
            labels(net, "tickets", row["method"], level, row["pruning"], row["retraining"])
            for row in experiment.rows(net=net, part="tickets", level=level)}


def heirs_compared(net: str, kappa: float) -> tables.Pairs:
    """What inherits, against what would explain it away; and what a histogram does alone."""
    pairs: tables.Pairs = {}
    at = labels(net, "dense", "dense", 0.0)
    for source in (NARROW, TICKET):
        heir, matched = labels(net, "inheritance", IWI[source], kappa), labels(net, "inheritance", MATCHED[source])
        pairs |= {f"{IWI[source]} - AT": (heir, at),
                  f"{IWI[source]} - AT at equal cost": (heir, labels(net, "inheritance", EQUAL[source])),
                  f"{IWI[source]} - AT with its histogram": (heir, matched),
                  f"AT with the histogram of {IWI[source]} - AT": (matched, at)}
    natural = labels(net, "inheritance", NATURAL_HEIR, kappa)
    return pairs | {f"{IWI[NARROW]} - {NATURAL_HEIR}": (labels(net, "inheritance", IWI[NARROW], kappa), natural)}


def judged(frame: pandas.DataFrame, experiment: Experiment) -> pandas.DataFrame:
    """All comparisons: every claim for each net, method and level it speaks of; where the paper leaves open against
    what, against each of what it could mean. C1 to C6 are asked of the first network, C7 of any other."""
    record, rows = reported.load(PAPER), []
    for claim, name, metric, (treatment, reference) in _claims(experiment):
        found = estimates.compared(frame, metric, treatment, reference, log=claim == "C6")
        said = replace(record.claim(claim), id=f"{claim} {name}")
        if claim == "C6":  # ratios of bounds are skewed: their logarithm is what a mean and an interval suit
            said = replace(said, unit="log10 of the ratio", quantity=name.split(", ")[-1],
                           direction="increase" if "ratio" in metric else "decrease")
        if claim == "C7" and "AT" in name:
            said = replace(said, direction="increase", quantity="accuracy under attack: IWI minus AT")
        elif claim == "C7":
            said = replace(said, quantity="accuracy under attack: sparse minus dense")
        rows.append(claims.judged(said, found, f"02_iwi, {WHERE[claim]}"))
    return pandas.DataFrame(rows).sort_values("claim", key=lambda c: c.str.split().str[0], kind="stable")


def holes(experiment: Experiment) -> dict[str, str]:
    """What the names of the ledger's primary comparisons leave open: the networks, and the levels that this scale names
    for them beforehand, of tickets and of the zoo."""
    (first, *others), levels = experiment.nets, experiment.settings["primary_levels"]
    return {"net": first, "second": others[0] if others else "a second network",
            "level": f"{100 * levels['tickets']:g} %", "pruned": f"{100 * levels['zoo']:g} %"}


def current_ledger(experiment: Experiment, store: Store) -> pandas.DataFrame:
    """The lines of the ledger by what the store can show of the experiment now."""
    rows = judged(located(experiment.measured(store)), experiment)
    return claims.ledger(rows, reported.load(PAPER), claims.looks(experiment.settings), **holes(experiment))


def _claims(experiment: Experiment) -> Iterator[tuple[str, str, str, tuple[dict, dict]]]:
    """(claim, of what, metric, (treatment, reference)) of every row of the ledger."""
    own = experiment.settings["inheritance"]
    for net in experiment.nets[1:]:
        for level in sorted({row["level"] for row in experiment.rows(net=net, part="tickets")}):
            if ticket := _cells(experiment, net, level).get(("adversarial", "adversarial", "initial")):
                yield "C7", f"{net}, ticket, {100 * level:g} %", "pgd20", (ticket, labels(net, "dense", "dense", 0.0))
        for what, pair in heirs_compared(net, own["kappa"]).items():
            if what.startswith("IWI"):
                yield "C7", f"{net}, {what}", "pgd20", pair
    for net in experiment.nets[:1]:
        dense, longer = labels(net, "dense", "dense", 0.0), labels(net, "zoo", LONGER, 0.0)
        pruned = {(row["method"], row["level"]) for row in experiment.rows(net=net, part="zoo")
                  if row["method"] not in (LONGER, RANDOM) and row["level"]}
        for method, level in sorted(pruned, key=lambda p: (ZOO.index(p[0]), p[1])):
            name, sparse = f"{net}, {method}, {100 * level:g} %", labels(net, "zoo", method, level, "adversarial")
            yield "C1", name, "pgd20", (sparse, dense)
            yield "C1", f"{name}, equal training", "pgd20", (sparse, longer)
        for level in sorted({row["level"] for row in experiment.rows(net=net, part="tickets")}):
            name = f"{net}, {100 * level:g} %"
            for claim, compared in (("C2", starts_compared), ("C3", trainings_compared)):
                for what, pair in compared(experiment, net, level).items():
                    if claim == "C3" or what.endswith("random weights"):
                        yield claim, f"{name}, {what}", "pgd20", pair
            ticket = _cells(experiment, net, level).get(("adversarial", "adversarial", "initial"))
            if ticket:
                yield "C1", f"{net}, ticket, {100 * level:g} %", "pgd20", (ticket, dense)
                for what, metric in TIED.items():
                    yield "C6", f"{name}, {what}", metric, (ticket, dense)
        for what, pair in heirs_compared(net, own["kappa"]).items():
            if what.startswith("IWI"):
                yield "C4", f"{net}, {what}", "pgd20", pair
            if what in (f"{method} - AT" for method in IWI.values()):
                yield "C5", f"{net}, {what}", "near_zero", pair
