"""Tables and figures of Achieving Adversarial Robustness via Sparsity (Wang et al. 2020). Those of
one network are of the first that is listed."""

from dataclasses import replace
from statistics import fmean
from typing import Any

import pandas

from sparserobust.reporting import estimates, tables
from sparserobust.running.experiment import Experiment, Results
from sparserobust.studies.iwi import comparisons
from sparserobust.studies.iwi.runs import (
    GLOBAL,
    IWI,
    LONGER,
    MATCHED,
    SMALL,
    STARTS,
    TRAININGS,
    IWISettings,
)

ATTACKS = {"FGSM": "fgsm", "PGD-20": "pgd20", "C&W": "cw"}
EFFECTS = {"clean": "clean"} | ATTACKS
ZOO = {"removed": "sparsity", "clean": "clean", "FGSM": "fgsm", "PGD-20": "pgd20"}  # columns of Table 1
AUTOATTACK = {"clean": "clean", "PGD-20": "pgd20", "AutoAttack": "autoattack"}
EXACT = ("sparsity", "near_zero")  # properties of a network, not estimated from a sample of images
THEORY = {"margin [logits]": ("margins", 1.0), "slope [logits / l2 length]": ("margins slope", 1.0),
          "margin / slope [l2 length]": ("margins ratio", 1.0),
          "margin / slope [l-inf length]": ("margins_linf ratio", 1.0),
          "bound [logits / l2 length]": ("margins bound", 1.0),
          "best - last epoch [points]": ("overfitting", 100.0)}  # metric and factor


def method_name(row) -> str:
    """What Table 3 calls the method of a grid row, or of a row of the frame."""
    return {"dense": "AT", "tickets": "ticket"}.get(row["part"], row["method"])


def network_name(row) -> str:
    """What tables of several networks call a grid row."""
    return f"{row['ours']}, {method_name(row)}"


def of_inheritance(row, experiment: Experiment[IWISettings]) -> bool:
    """Whether Table 3 compares this grid row, or row of the frame: adversarial training (AT), what
    inherits at the `kappa` of the settings, what it inherits from, and its controls."""
    own = experiment.settings_for(row["net"]).inheritance
    if row["part"] == "tickets":
        return {**row}.items() >= comparisons.ticket(row["net"], own.ticket).items()
    if row["part"] == "dense":
        return row["retraining"] == "adversarial"
    return row["part"] == "inheritance" and (pandas.isna(row["level"]) or row["level"] == own.kappa)


def first_network(results: Results) -> pandas.DataFrame:
    """The rows of the first network."""
    return results.frame[results.frame["net"] == results.experiment.nets[0]]


# ----------------------------------------------------------------------------------------- tables


def overview(experiment: Experiment) -> pandas.DataFrame:
    """The grid as a table, one line per network, part, trainings, method and epochs."""
    return tables.gathered([{
        "network": row["ours"], "part": row["part"], "pruning": row["pruning"],
        "retraining": row["retraining"], "method": row["method"],
        "epochs": row["run"].recipe.trained_epochs,
        "levels": "" if row["level"] is None else f"{row['level']:g}", "seeds": row["seed"]}
        for row in experiment.grid], "levels", "seeds")


def conditions(experiment: Experiment, columns: dict[str, str]) -> str:
    """Under which conditions the numbers of a table came about, for its caption."""
    return (f"Percent; {tables.spread(experiment.seeds)}. "
            f"{tables.conditions(experiment.measurements, columns)}")


def zoo_table(results: Results) -> pandas.DataFrame:
    """Table 1: pruning methods, the network that they prune, and the control."""
    rows = zoo_rows(results)
    rows = rows.assign(removed=(100 * rows["level"]).map("{:g} %".format))
    return tables.rates(rows, ["method", "removed"], ZOO, EXACT)


def zoo_rows(results: Results) -> pandas.DataFrame:
    """Of the first network, those of Table 1."""
    rows = first_network(results)
    dense = (rows["part"] == "dense") & (rows["retraining"] == "adversarial")
    return rows[dense | (rows["part"] == "zoo")]


def tickets_table(results: Results) -> pandas.DataFrame:
    """Table 2: a line per pruning, retraining and start, columns per sparsity and metric."""
    rows, parts = estimates.matching(first_network(results), {"part": "tickets"}), []
    for level, chosen in rows.groupby("level"):
        columns = {f"{100 * level:g} % removed: {heading}": metric
                   for heading, metric in (("clean", "clean"), ("PGD-20", "pgd20"))}
        parts.append(tables.rates(chosen, ["pruning", "retraining", "method"], columns))
    return pandas.concat(parts, axis=1).fillna("")


def deepest(experiment: Experiment) -> float:
    """The highest sparsity of tickets."""
    return comparisons.levels(experiment, experiment.nets[0])[-1]


def tickets_effects(results: Results) -> pandas.DataFrame:
    """Of tickets of the sparsity that the claims are judged at: what their start changes, and what
    adversarial training does."""
    experiment = results.experiment
    net, level = experiment.nets[0], experiment.settings.primary_levels.tickets
    pairs = (comparisons.starts(experiment, net, level)
             | comparisons.trainings(experiment, net, level))
    return tables.effects(results.frame, pairs, {"clean": "clean", "PGD-20": "pgd20"})


def inheritance_rows(results: Results) -> pandas.DataFrame:
    """The rows of Table 3, under `method` what it calls them."""
    rows = results.frame[results.frame.apply(of_inheritance, axis=1, experiment=results.experiment)]
    return rows.assign(method=rows.apply(method_name, axis=1))


def inheritance_table(results: Results) -> pandas.DataFrame:
    """Table 3: what inherits and its controls."""
    return tables.rates(inheritance_rows(results), ["ours", "method"],
                        EFFECTS | {"weights below 0.001": "near_zero"}, EXACT)


def autoattacked(results: Results) -> pandas.DataFrame:
    """Those rows of Table 3 that AutoAttack was tried on."""
    rows = inheritance_rows(results)
    return rows[rows["run"].isin(rows[rows["metric"] == "autoattack"]["run"])]


def autoattack_table(results: Results) -> pandas.DataFrame:
    """AutoAttack beside the other attack, of the rows `autoattacked`."""
    return tables.rates(autoattacked(results), ["ours", "method"], AUTOATTACK)


def first_attack(experiment: Experiment) -> str:
    """What a caption says of the images that AutoAttack gets: those that another attack leaves, or
    all."""
    attack: Any = experiment.measurements.get("autoattack")
    return ", on the images that PGD-20 leaves" if attack and attack.after else ""


def inheritance_pairs(experiment: Experiment) -> tables.Pairs:
    """What Table 3 compares, on all networks."""
    return {f"{net}: {name}": pair for net in experiment.nets
            for name, pair in comparisons.inheritance(experiment, net).items()}


def mean_effect(results: Results, pair: str, metric: str = "pgd20") -> float:
    """What a pair of Table 3 differs by on the first network, such as `IWI, from narrow - AT`: points, mean over the
    seeds."""
    treatment, reference = comparisons.inheritance(results.experiment, results.experiment.nets[0])[pair]
    return fmean(estimates.compared(results.frame, metric, treatment, reference).effects)


def kappas_table(results: Results) -> pandas.DataFrame:
    """What inherits at every `kappa` that is tried with the first seed."""
    rows = estimates.matching(results.frame, {"seed": results.experiment.seeds[0]})
    rows = rows[rows["method"].isin(IWI.values())]
    columns = {"clean": "clean", "PGD-20": "pgd20", "weights below 0.001": "near_zero",
               "zero weights": "sparsity"}
    return tables.rates(rows.assign(kappa=rows["level"].map("kappa {:g}".format)),
                        ["ours", "method", "kappa"], columns, EXACT)


def near_zero_effects(results: Results) -> pandas.DataFrame:
    """How many more weights end near zero than after AT, in points."""
    pairs = {name: pair for name, pair in inheritance_pairs(results.experiment).items()
             if name.endswith(" - AT")}
    return tables.effects(results.frame, pairs, {"weights below 0.001": "near_zero"})


def theory_table(results: Results) -> pandas.DataFrame:
    """What Figure 4 draws, of the rows of Table 3."""
    rows = inheritance_rows(with_overfitting(results))
    rows = rows[rows["run"].isin(rows[rows["metric"] == "margins"]["run"])]
    return tables.means(rows, ["ours", "method"], THEORY)


# ---------------------------------------------------------------------------------------- figures


def along_sparsity(results: Results) -> pandas.DataFrame:
    """Figure 1: accuracies (`row`) of tickets by their start and of pruning methods (`col`),
    all pruned and retrained adversarially, against what is `left` [%]."""
    rows = with_left(first_network(results))
    adversarial = {"pruning": "adversarial", "retraining": "adversarial"}
    zoo = rows[(rows["part"] == "zoo") & (rows["method"] != LONGER)]["method"].unique()
    lines = {"lottery tickets": {f"weights: {start}": {"part": "tickets", "method": start}
                                 for start in STARTS},
             "zoo": {"mask: random" if method == "random" else method: {"part": "zoo", "method": method}
                     for method in zoo}}
    return pandas.concat([
        _line(rows, metric, labels | adversarial).assign(row=heading, col=title, series=name,
                                                         factor=100)
        for heading, metric in (("PGD-20 [%]", "pgd20"), ("clean [%]", "clean"))
        for title, named in lines.items() for name, labels in named.items()])


def theory_along_sparsity(results: Results) -> pandas.DataFrame:
    """Figure 4: quantities of `THEORY` (`col`) of tickets rewound to their initial weights, trained
    in either way, and of global magnitude pruning. One that is zero throughout is left out."""
    rows = with_left(first_network(with_overfitting(results)))
    lines = {f"tickets, {training}": {"part": "tickets", "method": "initial", "pruning": training,
                                      "retraining": training} for training in TRAININGS[::-1]}
    lines["zoo, magnitude, global"] = {"part": "zoo", "method": GLOBAL, "retraining": "adversarial"}
    found = [pandas.concat([_line(rows, metric, labels).assign(series=name)
                            for name, labels in lines.items()]).assign(col=heading, factor=factor)
             for heading, (metric, factor) in THEORY.items()]
    return pandas.concat([part for part in found if part["value"].any()])


def with_left(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The frame with `left` [%], the share of convolution and linear weights that are not zero."""
    return frame.assign(left=estimates.left(frame, "sparsity"), value=frame["value"].astype(float))


def _line(rows: pandas.DataFrame, metric: str, labels: dict) -> pandas.DataFrame:
    """Rows of a metric along sparsity. What has no dense network of its own begins with the one
    that was trained as it was retrained."""
    chosen = estimates.matching(rows, {"metric": metric})
    found = estimates.matching(chosen, labels)
    dense = {"part": "dense", "retraining": labels["retraining"]}
    if found.empty or (found["level"] == 0).any():
        return found
    return pandas.concat([estimates.matching(chosen, dense), found])


def with_overfitting(results: Results) -> Results:
    """The results with one metric more, `overfitting`: by how much accuracy under attack on the
    validation split was higher after its best epoch than after the last one, of runs that were
    watched after every epoch."""
    gaps = {run: max(each.values()) - each[max(each)] for run, each in watched(results).items()}
    rows = results.frame.drop_duplicates(["run", "part", "method", "level"])
    rows = rows[rows["run"].isin(list(gaps))]
    rows = rows.assign(metric="overfitting", value=rows["run"].map(gaps), count=None, total=None,
                       each=None, sampled=False)
    return replace(results, frame=pandas.concat([results.frame, rows], ignore_index=True))


def watched(results: Results) -> dict[str, dict[int, float]]:
    """Accuracy under attack on the validation split after each epoch (from 1), of the runs that
    were watched after every epoch, by identity."""
    found = {}
    for row in results.experiment.grid:
        if row["run"].recipe.watched:
            history = results.store.record(row["run"])["history"]
            found[row["run"].identity] = {epoch["epoch"]: epoch["validation_robust"]
                                          for epoch in history if "validation_robust" in epoch}
    return {run: each for run, each in found.items() if len(each) > 1}


def histograms(results: Results) -> tuple[pandas.DataFrame, list[dict]]:
    """For `plots.weight_histograms`: what is shown, under `network`, and the histogram of each."""
    order, experiment = ("AT", SMALL, *IWI.values()), results.experiment
    found = [(method_name(row), result)
             for row, result in results.details("near_zero", net=experiment.nets[0])
             if of_inheritance(row, experiment) and method_name(row) in order]
    found.sort(key=lambda each: order.index(each[0]))
    names, each = zip(*found, strict=True)
    return pandas.DataFrame({"network": names}), list(each)


def histograms_match(results: Results) -> bool:
    """Whether AT with a histogram has the same share of weights near zero as the IWI network whose
    histogram it is."""
    rows = estimates.matching(inheritance_rows(results), {"metric": "near_zero"})
    shares = rows.pivot(index=["net", "seed"], columns="method", values="value")
    return all(shares[IWI[source]].equals(shares[MATCHED[source]])
               for source in results.experiment.settings.inheritance.sources)
