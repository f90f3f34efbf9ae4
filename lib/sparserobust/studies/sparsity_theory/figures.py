"""Rows of the figures of Guo et al. 2018: `series` is a line, `row` and `col` a panel, `left` [%]
the share of weights (or activations) that are not zero."""

from collections.abc import Sequence
from itertools import product

import pandas

from sparserobust.reporting import estimates
from sparserobust.reporting.estimates import matching
from sparserobust.running.experiment import Experiment, Results
from sparserobust.studies.sparsity_theory.comparisons import (
    LINF,
    Columns,
    chosen_levels,
    falls_below,
)
from sparserobust.studies.sparsity_theory.runs import (
    CONTROL,
    DENSE,
    L1,
    LASSO,
    MAGNITUDE,
    ONE_SHOT,
    SURGERY,
    TASKS,
    TRAININGS,
    TWO,
    VARIANTS,
    WINNERS,
    TheorySettings,
    networks,
)

CLEAN: Columns = {"clean [%]": ("clean", 100)}
PGD: Columns = {"PGD-40 [%]": ("pgd40", 100)}
DEEPFOOL: Columns = {"DeepFool [l2 distance]": ("deepfool", 1)}
CW: Columns = {"C&W [l2 distance]": ("cw", 1)}
UNDER_LINF: Columns = {f"{heading} [%]": column for heading, column in LINF.items()} | CLEAN
UNDER_L2 = DEEPFOOL | CW | CLEAN
BOUND = "bound of slope [logits / l2]"
SLOPES: Columns = {"margin [logits]": ("margins", 1), "slope [logits / l2]": ("margins slope", 1),
                   BOUND: ("margins bound", 1)}
RATIOS = {"margin / slope [l2 distance]": ("margins ratio", 1.0)} | DEEPFOOL | {
    "margin / l1 slope [l-inf]": ("margins_linf ratio", 1.0)} | PGD
UNITS: Columns = {"zero activations [%]": ("activations", 100),
                  "dead units [%]": ("activations dead", 100)}
PRUNERS = (MAGNITUDE, SURGERY, *VARIANTS)
SPARSE_ACTIVATIONS = (L1, WINNERS)
# name in results to name in figures, from below upwards
LADDER = {"guaranteed (frobenius)": "guaranteed, Frobenius norms",
          "guaranteed (l2)": "guaranteed, spectral norms", "CLEVER": "CLEVER", "C&W": "C&W",
          "DeepFool": "DeepFool"}
BEST, BELOW = "best on the validation split", "first worse than dense"  # marks


def with_sparsity(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The frame with `left`: measured, but for runs whose weights are dense it is that of the
    pruned run with which they are compared."""
    measured = estimates.left(frame, "sparsity")
    twin = frame["method"] == CONTROL
    return frame.assign(left=measured.where(~twin, 100 * (1 - frame["level"])))


def series(frame: pandas.DataFrame, metric: str, methods: dict[str, str],
           **labels) -> pandas.DataFrame:
    """The rows of a metric with these labels, under `series` what the method is called in a figure
    (`methods`); every series begins with the dense network."""
    chosen = matching(frame, {"metric": metric} | labels)
    lines = [chosen[chosen["method"].isin([DENSE, method])].assign(series=name)
             for method, name in methods.items() if method in set(chosen["method"])]
    return pandas.concat([chosen.iloc[:0].assign(series=""), *lines])


def linear_rows(results: Results[TheorySettings]
                ) -> tuple[pandas.DataFrame, tuple[float, float] | None]:
    """Figure 1: two digits, then ten; accuracy under the worst l-infinity perturbation, then mean
    l2 distance. For two digits with theorem 3.1: min(1, bound), and the formula. Beside the rows:
    where magnitude pruning has a bound that says nothing, (from, to) in `left`, if anywhere."""
    frame, methods = with_sparsity(results.frame), {LASSO: "lasso", MAGNITUDE: "magnitude"}
    parts, empty_bound = [], None
    for task in TASKS:
        radius = results.experiment.settings_for(task).judged_radius
        worst, distance = (series(frame, metric, methods, net=task)
                           for metric in (f"linear r_inf {radius:g}", "linear"))
        if task == TWO:
            said = {method: f"{name}, theorem 3.1" for method, name in methods.items()}
            bound = series(frame, f"linear bound {radius:g}", said, net=task)
            pruned = bound[bound["method"] == MAGNITUDE].groupby("level")[["value", "left"]].mean()
            empty = pruned.loc[pruned["value"] >= 1, "left"]
            empty_bound = None if empty.empty else (float(empty.max()), float(empty.min()))
            worst = pandas.concat([worst, bound.assign(value=bound["value"].clip(upper=1))])
            distance = pandas.concat([distance, series(frame, "linear formula", said, net=task)])
        digits = task.removeprefix("linear, ")
        parts += [worst.assign(col=f"{digits}: r_inf at {radius:g} [%]", factor=100),
                  distance.assign(col=f"{digits}: r_2 [l2 distance]", factor=1)]
    return pandas.concat(parts), empty_bound


def theorem_rows(results: Results) -> pandas.DataFrame:
    """Two digits: what theorem 3.1 multiplies and divides, and the ratio of the two norms."""
    frame, methods = with_sparsity(results.frame), {LASSO: "lasso", MAGNITUDE: "magnitude"}
    l1, l2 = (matching(frame, {"net": TWO, "metric": f"linear {norm}"}).set_index("run")
              for norm in ("l1", "l2"))
    ratio = l1.assign(metric="ratio", value=l1["value"] / l2["value"]).reset_index()
    parts = {"w (mu+ - mu-)": "linear numerator", "|w|_1": "linear l1", "|w|_2": "linear l2",
             "|w|_1 / |w|_2": "ratio"}
    return pandas.concat([
        series(pandas.concat([frame, ratio]), metric, methods, net=TWO).assign(col=heading)
        for heading, metric in parts.items()])


def radii(results: Results) -> pandas.DataFrame:
    """`RadiusOrder` results of dense networks by `label` (the training), a row per image and way of
    measuring (`measured`)."""
    return pandas.DataFrame([
        {"label": row["training"], "measured": name, "image": image, "radius": radius}
        for row, found in results.details("order") for key, name in LADDER.items()
        for image, radius in enumerate(found["radii"][key]) if radius is not None])


def lenets(experiment: Experiment) -> list[str]:
    """The two small networks."""
    return [net for net in networks(experiment) if net.startswith("LeNet")]


def network_rows(results: Results, rows: Columns, nets: Sequence[str] = (), one_shot: bool = False,
                 marks: bool = False) -> pandas.DataFrame:
    """A `row` for each metric in `rows`, a `col` for each network (default: all), a line for each
    training, pruned, and trained on as long; with `one_shot` also for those that are not retrained.
    With `marks` the best level, and the first below dense, of pruned networks have a `mark`."""
    frame, nets = with_sparsity(results.frame), nets or networks(results.experiment)
    parts = []
    for heading, net, training in product(rows, nets, TRAININGS):
        (metric, factor), own = rows[heading], {"net": net, "training": training}
        methods = {MAGNITUDE: f"{training}, pruned", CONTROL: f"{training}, trained on"}
        methods |= {ONE_SHOT: f"{training}, pruned, not retrained"} if one_shot else {}
        line = series(frame, metric, methods, **own)
        line = line.assign(row=heading, col=net, factor=factor, mark=None)
        found = _marked(frame, metric, own) if marks and metric != "clean" else {}
        for mark, level in found.items():
            line.loc[(line["method"] == MAGNITUDE) & (line["level"] == level), "mark"] = mark
        parts.append(line)
    return _in_order(pandas.concat(parts), rows, nets)


def _marked(frame: pandas.DataFrame, metric: str, labels: dict) -> dict[str, float | None]:
    """The level at which most seeds are judged, and the first at which pruned networks are worse than
    the dense one."""
    chosen = list(chosen_levels(frame, metric, method=MAGNITUDE, **labels).values())
    return {BELOW: falls_below(frame, metric, labels),  # first: where both fall together, the other is shown
            BEST: max(chosen, key=chosen.count) if chosen else None}


def method_rows(results: Results, rows: Columns, methods: Sequence[str]) -> pandas.DataFrame:
    """As `network_rows`, for naturally trained networks and several ways to make them sparse: those
    of which more than pruning by magnitude was done. Of `SPARSE_ACTIVATIONS` `left` is the share of
    activations that are not zero."""
    frame = with_sparsity(results.frame)
    if methods == SPARSE_ACTIVATIONS:
        frame = frame.assign(left=estimates.left(frame, "activations")).dropna(subset="left")
    tried = set(frame.loc[frame["method"].isin(set(methods) - {MAGNITUDE}), "net"])
    nets = [net for net in networks(results.experiment) if net in tried]
    named = {method: method for method in methods}
    parts = [series(frame, rows[heading][0], named, net=net, training="natural").assign(
        row=heading, col=net, factor=rows[heading][1]) for heading, net in product(rows, nets)]
    return _in_order(pandas.concat(parts), rows, nets)


def _in_order(data: pandas.DataFrame, rows: Columns, nets: Sequence[str]) -> pandas.DataFrame:
    """With panels in the order of `rows` and `nets`, those without data among them."""
    return data.assign(row=pandas.Categorical(data["row"], list(rows)),
                       col=pandas.Categorical(data["col"], list(nets)))
