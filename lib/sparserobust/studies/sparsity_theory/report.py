"""Tables of Sparse DNNs with Improved Adversarial Robustness (Guo et al. 2018). Of the paper's
numbers only one is on record, so nothing here stands beside a number of the paper's."""

from typing import Any

import pandas

from sparserobust.reporting import tables
from sparserobust.reporting.estimates import matching, measured_by
from sparserobust.running.experiment import Experiment, Results
from sparserobust.studies.sparsity_theory.comparisons import (
    AS_DENSE,
    L2,
    LINF,
    Columns,
    by_seed,
    chosen_levels,
    falls_below,
    gain,
)
from sparserobust.studies.sparsity_theory.figures import LADDER, radii
from sparserobust.studies.sparsity_theory.runs import (
    CONTROL,
    DENSE,
    MAGNITUDE,
    ONE_SHOT,
    SURGERY,
    TASKS,
    TWO,
    TheorySettings,
    networks,
)

CLEAN: Columns = {"clean": ("clean", 100)}
PGD: Columns = {"PGD-40": ("pgd40", 100)}
RELATIVE: Columns = {"DeepFool, relative": ("deepfool relative", 1),
                     "C&W, relative": ("cw relative", 1)}
AUTOATTACK: Columns = {"AutoAttack": ("autoattack", 100)}
# heading to metric: what DeepFool's distance and accuracy under PGD-40 may follow
FOLLOWED = {"margin": "margins", "slope": "margins slope", "bound": "margins bound",
            "guaranteed": "margins guaranteed", "margin / slope": "margins ratio",
            "clean accuracy": "clean"}
FOLLOWED_LINF = {
    "margin": "margins", "slope, l1": "margins_linf slope", "guaranteed": "margins_linf guaranteed",
    "margin / slope, l1": "margins_linf ratio", "clean accuracy": "clean"}
LOST = 0.02  # of clean accuracy: networks below the dense one's by more have collapsed


def overview(experiment: Experiment) -> pandas.DataFrame:
    """The grid as a table, one line per network, training, method and epochs."""
    return tables.gathered([{
        "the paper's network": row["net"], "ours": row["ours"], "training": row["training"],
        "method": row["method"], "epochs": row["run"].recipe.epochs, "levels": f"{row['level']:g}",
        "seeds": row["seed"]} for row in experiment.grid], "levels", "seeds")


def conditions(experiment: Experiment[TheorySettings]) -> str:
    """Under which conditions the numbers of networks came about, for captions."""
    nets: dict[str, list[str]] = {}
    for net in networks(experiment):
        groups = experiment.settings_for(net).groups
        asked: dict[str, Any] = groups["attacks"].measurements | groups["cw"].measurements
        images = ", ".join(f"{heading} {asked[metric].images or 'all'}"
                           for heading, (metric, _) in (LINF | L2).items())
        alike = f"radius {asked['fgsm'].attack.epsilon:.3g}; test images: {images}"
        nets.setdefault(alike, []).append(net)
    alike = ". ".join(f"{', '.join(same)}: {what}" for what, same in nets.items())
    return (f"Scale {experiment.scale}. l-infinity attacks, {alike}. Rates in percent, distances "
            "in units of the pixel range, zero for misclassified images.")


def of_networks(results: Results[TheorySettings], *methods: str) -> pandas.DataFrame:
    """The rows of the networks, without the linear classifiers; of these methods, if any are
    given."""
    frame = results.frame[results.frame["net"].isin(networks(results.experiment))]
    return frame[frame["method"].isin(methods)] if methods else frame


def trained(results: Results) -> list[tuple[str, str]]:
    """(network, training) of all networks."""
    return list(dict.fromkeys((row["net"], row["training"]) for row in results.experiment.grid
                              if row["net"] not in TASKS))


def seeds(results: Results, net: str) -> str:
    """What stands behind the numbers of a net, for a caption."""
    return tables.spread(results.experiment.seeds, tables.seed_counts(results.only(net=net).frame))


def linear_table(results: Results, task: str, linf: bool = False) -> pandas.DataFrame:
    """Linear classifiers, against l2 or l-infinity attacks: beside what is measured theorem 3.1 for
    two digits, FGSM for ten."""
    if linf:
        chosen = results.experiment.row(net=task)["measurements"]["linear"].radii
        metrics = {"r_inf": "r_inf", "bound": "bound"} if task == TWO else {
            "exact": "r_inf", "FGSM": "fgsm"}
        columns: Columns = {f"{heading} at {radius:g}": (f"linear {metric} {radius:g}", 100)
                            for radius in chosen for heading, metric in metrics.items()}
    else:
        columns = CLEAN | {"removed": ("sparsity", 100), "r_2": ("linear", 1)}
        columns |= {"r_2, formula": ("linear formula", 1)} if task == TWO else {
            "r_2 relative": ("linear relative", 1)}
    return tables.means(matching(results.frame, {"net": task}), ["method", "level"], columns)


def linear_gain(results: Results[TheorySettings]) -> float:
    """By how many points pruning by magnitude, to the level that is chosen on the validation split,
    changes accuracy under the worst l-infinity perturbation: two digits, mean over seeds."""
    radius = results.experiment.settings_for(TWO).judged_radius
    effects = gain(results.frame, f"linear r_inf {radius:g}", {"net": TWO}, AS_DENSE, 100).effects
    return sum(effects) / len(effects)


def dense_table(results: Results[TheorySettings]) -> pandas.DataFrame:
    """Table 1: the dense networks under all attacks."""
    dense = of_networks(results, DENSE)
    dense = dense.assign(name=dense["net"] + " (" + dense["ours"] + ")")
    return tables.means(dense, ["name", "training"], CLEAN | LINF | L2 | RELATIVE)


def failures_table(results: Results) -> pandas.DataFrame:
    """Where an attack that looks for the nearest wrong answer did not find any."""
    missed = results.frame[results.frame["metric"].isin(["deepfool not_fooled", "cw not_fooled"])
                           & (results.frame["value"] > 0)]
    attack = missed["metric"].str.removesuffix(" not_fooled")
    name = missed["net"] + ", " + missed["training"] + ", " + missed["method"] + ", " + attack
    shares = 100 * missed["value"].astype(float)
    found = shares.groupby(name, sort=False).agg(["max", "count"]).round(1)
    return found.rename(columns={"max": "largest share of images [%]", "count": "networks"})


def peaks(results: Results, net: str, training: str) -> pandas.DataFrame:
    """Table 2, one line per attack: the dense value; the sparsity at which magnitude pruning is
    best on the validation split, and what it gains there on the test split over the dense network
    and over one trained as long; the sparsity from which it is worse than the dense one by more than
    chance, and what clean accuracy has lost there. 95 % intervals over seeds and images."""
    frame, own = results.frame, {"net": net, "training": training}

    def values(metric: str, method: str) -> pandas.DataFrame:
        return by_seed(frame, metric, method=method, **own)

    lost = 100 * (values("clean", MAGNITUDE) - values("clean", DENSE).iloc[0]).mean(axis=1)
    lines = {}
    for attack, (metric, factor) in (LINF | L2).items():
        pruned, dense = values(metric, MAGNITUDE), values(metric, DENSE)
        if pruned.empty or dense.empty:
            continue
        below = falls_below(frame, metric, own)
        best = chosen_levels(frame, metric, method=MAGNITUDE, **own).values()
        gained = [tables.effect(gain(frame, metric, own, reference, factor), tables.digits(factor))
                  for reference in (AS_DENSE, {"method": CONTROL})]
        lines[attack] = {
            "dense": tables.mean(factor * dense.iloc[0], factor),
            "best at": ", ".join(dict.fromkeys(_percent(level) for level in best)),
            "gain over dense": gained[0], "gain over equal training": gained[1],
            "below dense from": "" if below is None else _percent(below),
            "change of clean accuracy there": "" if below is None else f"{lost[below]:+.1f}"}
    return pandas.DataFrame.from_dict(lines, orient="index")


def rank_correlations(results: Results, columns: dict[str, str],
                      of: str = "deepfool") -> pandas.DataFrame:
    """Spearman's rank correlation of a robustness with each of `columns` (heading to metric) over
    all networks of a kind, pruned or not, of all seeds. Networks that lost more than `LOST` of
    clean accuracy are left out: there everything falls together."""
    frame = of_networks(results, DENSE, MAGNITUDE, CONTROL, ONE_SHOT).astype({"value": float})
    lines = {}
    for (net, training), group in frame.groupby(["net", "training"], sort=False):
        wide = group.pivot_table(index=["method", "run"], columns="metric", values="value")
        if set(columns.values()) <= set(wide):
            dense = wide.loc[DENSE, "clean"].mean()
            ranks = wide.loc[wide["clean"] >= dense - LOST, [of, *columns.values()]].dropna()
            found = ranks.corr(method="spearman")[of]
            lines[f"{net}, {training}"] = {
                heading: f"{found[metric]:+.2f}" for heading, metric in columns.items()
                } | {"networks": len(ranks)}
    return pandas.DataFrame.from_dict(lines, orient="index")


def layer_norms_table(results: Results) -> pandas.DataFrame:
    """Norms, rank and condition number of layers: natural, first seed, pruned step by step."""
    return pandas.DataFrame.from_dict({f"{_percent(row['level'])} removed, layer {layer}": {
        "spectral norm": f"{norms['l2']:.2f}", "largest row sum": f"{norms['linf']:.1f}",
        "rank [% of the fullest]": f"{100 * norms['rank']:.0f}",
        "condition number": f"{norms['condition']:.3g}"}
        for row, found in results.details("layer_norms") if row["method"] in (DENSE, MAGNITUDE)
        for layer, norms in found["layers"].items()}, orient="index")


def blank_pixels_table(results: Results) -> pandas.DataFrame:
    """Accuracy under PGD-40 as pruned by magnitude, and with what reads blank pixels removed as
    well."""
    chosen = measured_by(results.frame, "pgd40_blank")
    return _removed_table(chosen, PGD | {"PGD-40, blank pixels not read": ("pgd40_blank", 100)})


def autoattack_table(results: Results) -> tuple[pandas.DataFrame, str]:
    """AutoAttack on dense and pruned networks, beside the paper's attacks; and on how many
    images."""
    frame, columns = measured_by(results.frame, "autoattack"), CLEAN | LINF | AUTOATTACK
    chosen = frame[frame["method"].isin([DENSE, MAGNITUDE])]
    return _removed_table(chosen, columns), _images(chosen, columns)


def activations_table(results: Results) -> tuple[pandas.DataFrame, str]:
    """Networks with sparse activations, of the first seed, under attacks with and without
    gradients; and on how many images."""
    asked = measured_by(results.frame, "square")
    rates = CLEAN | PGD | AUTOATTACK | {"Square": ("square", 100)}
    shown = tables.means(asked.assign(level=asked["level"].map("{:g}".format)),
                         ["net", "method", "level"],
                         {"zero activations": ("activations", 100)} | rates | L2)
    return shown, _images(asked, rates)


def _removed_table(frame: pandas.DataFrame, columns: Columns) -> pandas.DataFrame:
    named = frame.assign(removed=frame["level"].map(_percent))
    return tables.means(named, ["net", "training", "removed"], columns)


def _images(frame: pandas.DataFrame, columns: Columns) -> str:
    return tables.images(frame, [metric for metric, _ in columns.values()])


def surgery_table(results: Results) -> pandas.DataFrame:
    """What dynamic network surgery leaves of each layer: the sparsest network, first seed."""
    first = results.details("activations", method=SURGERY, seed=results.experiment.seeds[0])
    sparsest = {row["net"]: found["weights"] for row, found in first}
    return pandas.DataFrame.from_dict({f"{net}, layer {layer}": {
        "left": f"{counts['nonzero']} of {counts['total']}",
        "dead outputs": f"{counts['dead_outputs']} of {counts['outputs']}",
        "unused inputs": f"{counts['unused_inputs']} of {counts['inputs']}"}
        for net, layers in sparsest.items() for layer, counts in layers.items()}, orient="index")


def ladder_table(results: Results) -> pandas.DataFrame:
    """Median, smallest and largest radius over images, by training and way of measuring."""
    by_rung = radii(results).groupby(["label", "measured"], sort=False)["radius"]
    found = by_rung.agg(["median", "min", "max"]).round(4)
    return found.unstack("label").swaplevel(axis=1).reindex(list(LADDER.values()))


def ladder_kept(results: Results) -> str:
    """On how many images the radii are in the order that the proof demands, and how often CLEVER
    was wrong."""
    return "\n".join(
        f"{row['training']}: order kept on {found['count']} of {found['total']} images; an attack "
        f"gets below CLEVER on {100 * found['parts']['clever_above']:.0f} %"
        for row, found in results.details("order"))


def run_name(row: dict) -> str:
    """What a grid row is called in a table."""
    return f"{row['ours']}, {row['training']}, {row['method']} {row['level']:g}"


def _percent(level: float) -> str:
    return f"{100 * level:g} %"
