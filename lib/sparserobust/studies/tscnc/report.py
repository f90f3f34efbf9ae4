"""Tables and figures of TSCNC (Feng, Lin, Gao & Wei 2025)."""

import statistics
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas

from sparserobust import analysis, data, provenance
from sparserobust.reporting import estimates, tables
from sparserobust.running.experiment import Experiment, Results
from sparserobust.sparsifiers import TSCNC
from sparserobust.studies.tscnc.runs import (
    ALL_LAYERS,
    BOTH,
    CNC,
    CONTROL,
    DENSE,
    GATES,
    HYDRA,
    LWM,
    PRETRAINED,
    PRUNED,
    SCORES,
    TRADES,
    TSC,
    VARIED,
    TSCNCSettings,
    pretraining,
)

ATTACKS = {"PGD-20": "pgd20", "PGD-50": "pgd50", "CW-inf": "cw"}
PROTOCOL = {"clean": "clean"} | ATTACKS
MEASURED = {"clean": "clean", "PGD-20": "pgd20"}  # of every network
KAPPA, CLASSIFIER = "kappa", "kappa classifier"
NORMS, RELATIVE_NORMS = "kappa log_norms", "kappa log_relative_norms"
Columns = dict[str, tuple[str, float]]  # heading to metric and factor
CONDITIONS: Columns = {
    "classifier": (CLASSIFIER, 1), "convolutions": (KAPPA, 1), "over null": ("kappa over_null", 1),
    "folded": ("kappa folded", 1), "floored": ("kappa folded_floored", 1),
    "deficit": ("kappa folded_deficit", 1)}
SIZES: Columns = {
    "zero singular values [%]": ("kappa zero", 100),
    "zero as they act [%]": ("kappa sparsity", 100), "log10 of norms": (NORMS, 1),
    "the same, scale-free": (RELATIVE_NORMS, 1), "local Lipschitz": ("lipschitz", 1)}
FORMS: Columns = {
    "kappa, classifier": (CLASSIFIER, 1), "kappa, convolutions": (KAPPA, 1),
    "norm of classifier": ("kappa classifier_norm", 1)}
FORM_SIZES: Columns = {
    "log10 of norms": (NORMS, 1), "the same, scale-free": (RELATIVE_NORMS, 1),
    "local Lipschitz": ("lipschitz", 1), "over size of logits": ("lipschitz relative", 1)}
# what is drawn along sparsity: metric, factor, metric of the null curve
CURVES = {"kappa folded, convolutions": ("kappa folded", 1, None),
          "kappa, convolutions (median)": (KAPPA, 1, "kappa null"),
          "kappa, classifier": (CLASSIFIER, 1, "kappa null_classifier"),
          "zero singular values [%]": ("kappa zero", 100, "kappa null_zero"),
          "log10 of the product of norms": (NORMS, 1, "kappa null_log_norms"),
          "log10 of the same, scale-free": (RELATIVE_NORMS, 1, "kappa null_log_relative_norms"),
          "local Lipschitz [l1 / l_inf]": ("lipschitz", 1, None)}
HEAVY = 0.9  # share of weights removed from which on pruning is heavy


def labels(net: str, method: str, level: float = 0.0, part: str = PRUNED) -> dict:
    """The labels that name a kind of row; of a method that is not varied, level 0 is the dense
    network it prunes."""
    if part == PRUNED and not level:
        part, method = DENSE, PRETRAINED.get(method, method)
    return {"net": net, "part": part, "method": method, "level": level}


def removed(level: float) -> str:
    """What a level is called."""
    return f"{100 * level:g} % removed"


# ------------------------------------------------------------------------------------------ tables


def overview(experiment: Experiment) -> pandas.DataFrame:
    """The grid as a table, one line per net, part, method and epochs."""
    return tables.gathered([{
        "net": row["ours"], "part": row["part"], "method": row["method"],
        "gates": row["run"].model.gated,
        "epochs": sum(r.recipe.trained_epochs for r in row["run"].lineage),
        "removed [%]": f"{100 * row['level']:g}", "seeds": row["seed"]}
        for row in experiment.grid], "removed [%]", "seeds")


def networks(experiment: Experiment[TSCNCSettings]) -> str:
    """Which networks, data, lengths and seeds stand behind a table, for its caption."""
    nets = "; ".join(f"{own.stand_in} ({net}), {own.data.name}, {own.recipe.epochs} and "
                     f"{own.fine_tuning.epochs} epochs"
                     for net, own in experiment.settings_by_net.items())
    return f"Scale {experiment.scale}: {nets}; {tables.spread(experiment.seeds)}."


def main(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of dense networks, of the control, and of what is pruned and fine-tuned."""
    return frame[frame["part"].isin([DENSE, CONTROL, PRUNED])]


def _lines(frame: pandas.DataFrame) -> tuple[pandas.DataFrame, list[str]]:
    """The frame by level, and the columns that name a line of a table: the network only where there
    are several."""
    frame = frame.sort_values("level", kind="stable")
    nets = ["ours"] if frame["ours"].nunique() > 1 else []
    return frame.assign(removed=frame["level"].map(removed)), [*nets, "method", "removed"]


def accuracies(frame: pandas.DataFrame, columns: dict[str, str] = PROTOCOL) -> pandas.DataFrame:
    """One line per net, method and share removed, in percent: clean, and under those attacks that
    were used."""
    measured = set(frame["metric"])
    here = {heading: metric for heading, metric in columns.items() if metric in measured}
    return tables.rates(*_lines(frame), here)


def matrices(frame: pandas.DataFrame, columns: Columns) -> pandas.DataFrame:
    """The same lines, of what is said of matrices; a network without a value (one that has
    collapsed has no condition number) does not count."""
    return tables.means(*_lines(frame.dropna(subset="value")), columns)


def attacked_by_all(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of networks that AutoAttack was tried on."""
    return estimates.measured_by(frame, "autoattack")


def at_main_levels(frame: pandas.DataFrame, *parts: str) -> pandas.DataFrame:
    """The rows of these parts at the levels at which the stronger attacks were used."""
    levels = frame.loc[frame["metric"] == "pgd50", "level"]
    return frame[frame["part"].isin(parts) & frame["level"].isin(levels)]


def fine_tuning(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of pruned networks before and after fine-tuning."""
    rows = at_main_levels(frame, SCORES, PRUNED)
    stage = rows["part"].replace({PRUNED: "fine-tuned"})
    return rows.assign(method=rows["method"] + ", " + stage)


def forms(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of the first seed: what is varied, and the methods beside which it stands."""
    rows = at_main_levels(frame[frame["seed"] == frame["seed"].iloc[0]], DENSE, PRUNED, VARIED)
    return rows[(rows["part"] == VARIED) | (rows["method"] != LWM)]


def forms_table(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The forms of the constraints: accuracies and condition numbers."""
    rows = forms(frame)
    return pandas.concat([accuracies(rows, MEASURED), matrices(rows, FORMS)], axis=1)


def network_name(row: dict) -> str:
    """What a grid row is called in a table."""
    return f"{row['ours']}, {row['method']}, {removed(row['level'])}"


def invariants(frame: pandas.DataFrame) -> dict[str, bool]:
    """What must be true on every machine."""
    zeros = estimates.matching(frame, {"metric": "sparsity"})
    acting = estimates.matching(frame, {"metric": "kappa sparsity"}).dropna(subset="value")
    stored = acting["run"].map(zeros.set_index("run")["value"].to_dict())
    kappa = frame[frame["level"] == 0].groupby(["metric", "method"])["value"].mean()
    linear = kappa[CLASSIFIER]
    missed = (zeros["value"] - zeros["level"]).abs()
    return {
        "networks have the target sparsity": bool((missed < 2e-3).all()),
        "gates only add zeros": bool((acting["value"] >= stored).all()),
        "CNC conditions the classifier before pruning":
            bool(linear[[CNC, BOTH]].max() < 1.2 < linear[[TRADES, TSC]].min()),
        "on all layers, the convolutions": bool(kappa[KAPPA, ALL_LAYERS] < 1.2),
        "every rate is its count over its total": estimates.rates_are_counts(frame)}


def step_costs(experiment: Experiment[TSCNCSettings], net: str) -> dict[str, dict]:
    """What a training step of stage 1 costs (`analysis.step_costs`), by method, on one thread; with
    TSCNC on all layers."""
    own, seed = experiment.settings_for(net), experiment.seeds[0]
    steps = {method: pretraining(own, seed, method) for method in (TRADES, GATES, TSC, CNC, BOTH)}
    steps[f"{BOTH}, all layers"] = pretraining(own, seed, BOTH, layers="all")
    channels, height, width = own.step_costs.image_shape
    with provenance.with_threads(1):
        return analysis.step_costs(steps, (channels, height, width), data.classes(own.data),
                                   own.step_costs.repeats)


def costs_table(costs: dict[str, dict]) -> pandas.DataFrame:
    """What a training step takes, and how much more than without constraints."""
    base = costs[TRADES]
    return pandas.DataFrame.from_dict({method: {
        "step [ms]": f"{1000 * cost['seconds']:.1f}",
        "over TRADES": f"{cost['seconds'] / base['seconds']:.2f}",
        "kept for backward [MB]": f"{cost['kept_bytes'] / 1e6:.2f}",
        "over TRADES, memory": f"{cost['kept_bytes'] / base['kept_bytes']:.2f}"}
        for method, cost in costs.items()}, orient="index")


# ----------------------------------------------------------------------------------------- figures


def series(frame: pandas.DataFrame, metric: str, net: str,
           methods: Iterable[str] = ()) -> pandas.DataFrame:
    """Rows of a metric along sparsity, under `series` the method (default: all by which anything
    was pruned); each begins with the dense network that it prunes. `left`: share of weights [%]
    that are not zero."""
    frame = frame.assign(left=estimates.left(frame, "sparsity"))
    chosen = estimates.matching(frame, {"metric": metric, "net": net}).dropna(subset="value")
    methods = methods or chosen.loc[chosen["part"] == PRUNED, "method"].unique()
    return pandas.concat([pandas.concat([
        estimates.matching(chosen, {"part": DENSE, "method": PRETRAINED.get(method, method)}),
        estimates.matching(chosen, {"part": PRUNED, "method": method})]).assign(series=method)
        for method in methods])


def accuracy_curves(frame: pandas.DataFrame, net: str) -> pandas.DataFrame:
    """Figure 2: a `col` for clean accuracy and for that under PGD-20, of all methods."""
    return pandas.concat([series(frame, metric, net).assign(col=name, factor=100)
                          for name, metric in MEASURED.items()])


def matrix_curves(frame: pandas.DataFrame, net: str) -> pandas.DataFrame:
    """Figure 1: a `col` for each of `CURVES`, with what Gaussian layers of the same shapes and
    sizes would have that lose as many weights as those of HYDRA (the others remove as many)."""
    found = []
    for heading, (metric, factor, null) in CURVES.items():
        lines = [series(frame, metric, net)]
        if null:
            lines.append(series(frame, null, net, (HYDRA,)).assign(series="null"))
        found.append(pandas.concat(lines).assign(col=heading, factor=factor))
    return pandas.concat(found)


def layer_conditions(results: Results[TSCNCSettings], net: str) -> pandas.DataFrame:
    """Figure 1, by `layer`: a `col` for the dense network and for the lowest and the highest heavy
    level; the condition number, the median over seeds, of what HYDRA and TSCNC prune (`series`) and
    of Gaussian layers that lose as much as HYDRA's."""
    heavy = [level for level in results.experiment.settings_for(net).levels if level >= HEAVY]
    rows: list[dict] = []
    for level in dict.fromkeys((0.0, heavy[0], heavy[-1])):
        for method, name, of, key in ((HYDRA, HYDRA, "layers", "condition"),
                                      (HYDRA, "null", "null", "condition_median"),
                                      (BOTH, BOTH, "layers", "condition")):
            found = [each[of] for _, each in results.details(KAPPA, **labels(net, method, level))]
            rows += [{"col": removed(level), "series": name, "layer": layer, "value": value}
                     for layer, value in _medians(found, key).items()]
    return pandas.DataFrame(rows)


def _medians(found: list[dict], key: str) -> dict[str, float]:
    """The median over networks of a number of every layer; nan where none has it."""
    values = {layer: [layers[layer][key] for layers in found if layers[layer][key]]
              for layer in (found[0] if found else ())}
    return {layer: statistics.median(some) if some else np.nan for layer, some in values.items()}


def histograms(results: Results, net: str) -> tuple[pandas.DataFrame, list[dict]]:
    """Figure 3, for `plots.weight_histograms`: the dense networks, and the histogram of each."""
    found = results.details("near_zero", net=net, part=DENSE)
    return pandas.DataFrame([{"method": row["method"]} for row, _ in found]), [h for _, h in found]


def gate_histories(results: Results, net: str) -> dict[str, list[dict]]:
    """Figure 4: what was recorded after each epoch of the dense networks with gates, first seed."""
    first = {"net": net, "level": 0.0, "seed": results.experiment.seeds[0]}
    return {method: results.history(method=method, **first) for method in (TSC, BOTH, GATES)
            if results.experiment.rows(method=method, **first)}


def constraints_of(row: dict) -> TSCNC | None:
    """The constraints of the dense network that a grid row begins with, if it had any."""
    first = row["run"].lineage[0].sparsifier
    return first if isinstance(first, TSCNC) else None


def sensitivity(results: Results, net: str, setting: str) -> pandas.DataFrame:
    """From the first seed: TSCNC, dense and pruned (`series`), and what differs from it in one
    setting, at the levels that both have; `level` is the value of that setting."""
    experiment, frame = results.experiment, results.frame
    reference = experiment.row(net=net, method=BOTH)
    usual, model = constraints_of(reference), reference["run"].model
    value = {row["run"].identity: getattr(own, setting)
             for row in experiment.rows(net=net, seed=experiment.seeds[0])
             if row["part"] in (DENSE, PRUNED, VARIED) and (own := constraints_of(row))
             and row["run"].model == model
             and replace(own, **{setting: getattr(usual, setting)}) == usual}
    chosen = frame[frame["run"].isin(list(value))]
    chosen = chosen[chosen["level"].isin(chosen.loc[chosen["part"] == VARIED, "level"])]
    return chosen.assign(series=chosen["level"].map(removed), level=chosen["run"].map(value))
