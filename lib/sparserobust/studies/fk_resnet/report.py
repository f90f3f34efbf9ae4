"""Tables and figures of Sparsity Meets Robustness (Dinh et al. 2020)."""

import numpy as np
import pandas

from sparserobust.analysis import Deployable
from sparserobust.errors import UserError
from sparserobust.reporting import estimates, reported, tables
from sparserobust.running.experiment import Experiment, Results
from sparserobust.studies.fk_resnet.comparisons import ACCURACIES as PRINTED
from sparserobust.studies.fk_resnet.comparisons import row as labels_of
from sparserobust.studies.fk_resnet.runs import (
    CURVE_NETS,
    FINE_TUNED,
    LEVELS,
    PAPER,
    SINGLE,
    TABLE4,
    TABLE4_LEVELS,
    TABLES,
    FKSettings,
    cases,
)

ACCURACIES = {"A1 clean": "clean", "A2 FGSM": "fgsm", "A3 I-FGSM20": "ifgsm20", "A4 C&W": "cw"}
FEW_DRAWS = {"PGD-20, few draws": "pgd20_eot"}  # in tables 1 to 4, though not in the paper's
SHOWN = {*ACCURACIES.values(), *FEW_DRAWS.values(), "sparsity", "channel_sparsity"}  # in tables 1 to 4
TRADEOFF = {"clean": "clean", "I-FGSM20": "ifgsm20"} | FEW_DRAWS
SPARSITIES = {"RVSM": ("sparsity", "sparsity"), "RGSM": ("channel sparsity", "channel_sparsity")}
GRANULARITIES = {"unstructured": "sparsity", "channel": "channel_sparsity"}
SIZES = {"parameters left": "remaining_parameters", "MACs left": "deployable"}  # counts
STRONGER = {"A1 clean": "clean", "A3 I-FGSM20": "ifgsm20", "A4 C&W of the release": "cw",
            "the same, rescaled": "cw_rescaled", "C&W, l2": "cw_l2", "C&W in the ball": "cw_linf",
            "PGD-20, 20 draws": "pgd20_eot20", "AutoAttack": "autoattack", "noise off: clean": "clean_quiet",
            "noise off: PGD-20": "pgd20_quiet"}
# properties of a network, not estimated from a sample of images
EXACT = ("sparsity", "channel_sparsity", "remaining_parameters", "deployable")


def name_of(row) -> str:
    """What a grid row, or a row of the frame, is called: `ResNet8, RGSM, lambda1 0.1`."""
    return f"{row['ours']}, {row['method']}" + ("" if pandas.isna(row["level"]) else f", {penalty(row)}")


def penalty(row) -> str:
    """The paper's penalty of a row: `lambda1 0.1`; empty where it has none."""
    if row["level"] is None or pandas.isna(row["level"]):
        return ""
    return f"{LEVELS.get(row['method'].removesuffix(FINE_TUNED), 'level')} {row['level']:g}"


# --------------------------------------------------------------------------------------------------- the grid


def overview(experiment: Experiment) -> pandas.DataFrame:
    """The grid as a table: one line per net and penalty, with our settings beside the paper's."""
    def ours(row: dict) -> str:
        plain = {key: value for key, value in row["run"].sparsifier.plain().items() if key != "kind"}
        return ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                         for key, value in plain.items())

    return tables.gathered([{
        "the paper's net": row["net"], "ours": row["ours"], "method": row["method"],
        "the paper's penalty": penalty(row), "our penalty": ours(row), "epochs": row["run"].recipe.epochs,
        "seeds": row["seed"]} for row in experiment.grid], "seeds")


def added(results: Results[FKSettings]) -> pandas.DataFrame:
    """The rows of the frame that a reader appended to the grid: those that no table or figure of the paper has."""
    experiment, frame = results.experiment, results.frame
    known = {(net, *case) for net in experiment.nets for case in cases(experiment.settings_for(net), net)}
    return frame[[(net, method, None if pandas.isna(level) else level) not in known
                  for net, method, level in zip(frame["net"], frame["method"], frame["level"], strict=True)]]


# ------------------------------------------------------------------------------------------------ tables 1 to 4


def of_table(results: Results[FKSettings], table_id: str) -> pandas.DataFrame:
    """The rows of the frame that a table, and the figure beside it, is made from; Table 2 has those of all networks."""
    frame, mine = results.frame, added(results)
    if table_id == "T4":
        printed = (frame["net"] == SINGLE) & frame["method"].isin([method for _, method in TABLE4])
        return pandas.concat([frame[printed], mine[~mine["method"].isin(["natural", "dense", *LEVELS])]])
    method = TABLES[table_id]
    rows = frame[frame["method"].isin(["dense", method])]
    nets = {*reported.load(PAPER).reported_table(table_id)["net"], *mine[mine["method"] == method]["net"]}
    return {"T1": rows[rows["net"].isin(nets)], "T2": rows, "T3": rows[rows["net"].isin(CURVE_NETS)]}[table_id]


def table(results: Results[FKSettings], table_id: str) -> pandas.DataFrame:
    """Table T1 to T4, reported beside ours, with a column that the paper does not have, and below the paper's rows
    those that a reader appended."""
    if table_id == "T4":
        return _table4(results)
    if table_id not in TABLES:
        raise UserError(f"no table '{table_id}' here: there are {', '.join(TABLES)}, T4")
    method, rows = TABLES[table_id], _on_common_images(results, table_id)
    level, (heading, metric) = LEVELS[method], SPARSITIES[method]
    mine = rows[rows["run"].isin(added(results)["run"])][["net", "level"]].drop_duplicates()
    printed = pandas.concat([reported.load(PAPER).reported_table(table_id), mine.rename(columns={"level": level})])
    return _beside(printed, rows, {"net": "net", level: "level"}, heading, metric, metric)


def _on_common_images(results: Results[FKSettings], table_id: str) -> pandas.DataFrame:
    return tables.on_common_images(of_table(results, table_id), SHOWN)


def _beside(printed: pandas.DataFrame, rows: pandas.DataFrame, keys: dict[str, str], heading: str, column: str,
            metric: str) -> pandas.DataFrame:
    """The paper's rows beside ours: accuracies, the share `metric` (the paper's `column`) under a heading, and PGD."""
    columns: dict[str, tuple[str | None, str]] = {each: (each.split()[0], m) for each, m in ACCURACIES.items()}
    columns |= {heading: (column, metric)}
    columns |= {each: (None, attack) for each, attack in FEW_DRAWS.items()}
    ours = tables.summary(rows, [*keys.values(), "ours"], EXACT)
    return tables.beside(printed, ours, keys, columns, label="ours")


def _table4(results: Results[FKSettings]) -> pandas.DataFrame:
    """Table 4, with rows that the paper does not have: ADMM corrected, both methods after fine-tuning, and what a
    reader appended, of which the weights removed are shown."""
    rows = _on_common_images(results, "T4")
    lines = [{"granularity": granularity, "method": ours, "printed": theirs}
             for (granularity, ours), theirs in TABLE4.items()]
    lines += [{"granularity": "added", "method": method, "printed": None} for method in rows["method"].unique()
              if method not in {ours for _, ours in TABLE4}]
    printed = reported.load(PAPER).reported_table("T4").rename(columns={"method": "printed"})
    wanted = pandas.DataFrame(lines).merge(printed, how="left", on=["granularity", "printed"])
    wanted["level"] = wanted["method"].str.removesuffix(FINE_TUNED).map(TABLE4_LEVELS)
    parts = []
    for granularity, its in wanted.groupby("granularity", sort=False):
        ours = rows[rows["method"].isin(its["method"])]
        keys = {"method": "method"} if granularity == "added" else {"method": "method", "level": "level"}
        part = _beside(its, ours, keys, "removed", "sparsity", GRANULARITIES.get(granularity, "sparsity"))
        parts.append(part.set_axis([f"{granularity}: {method}" for method in its["method"]]))
    return pandas.concat(parts).rename_axis("granularity: method")


def caption(results: Results[FKSettings], table_id: str) -> str:
    """What a table shows, under which conditions, and the paper's own inconsistencies about it."""
    experiment, printed = results.experiment, reported.load(PAPER).tables[table_id]
    own, method = experiment.settings, TABLES.get(table_id, "RVSM, RGSM and ADMM on ResNet20")
    rows = of_table(results, table_id)
    counts = sorted(set(rows.groupby(["net", "method", "level"], dropna=False)["seed"].nunique()))
    spread = tables.spread([0])
    if counts and counts[-1] > 1:
        spread = f"{' or '.join(map(str, counts))} seeds: mean ± standard deviation"
    notes = "".join(f" Note: {note}." for note in printed.notes)
    conditions = tables.conditions(experiment.measurements, ACCURACIES | FEW_DRAWS)
    return (f"{printed.source} of Dinh et al. 2020 ({method}), all in percent. Ours, scale {experiment.scale}: "
            f"{own.data.name}, {own.recipe.epochs} epochs, {spread}; empty: not on record, or not run at this scale. "
            f"{tables.images(rows, SHOWN)} {conditions}{notes}")


# ------------------------------------------------------------------------------------------- other tables, sentences


def left(results: Results, metric: str, *sides: dict) -> list[tuple[float, float]]:
    """What is left of each of some kinds of networks, which are named by their labels, and how much there was: sums
    over the seeds that all of them have. `metric`: channel_sparsity or remaining_parameters."""
    found = [estimates.matching(results.frame, {"metric": metric, **side}).set_index("seed")[["count", "total"]]
             for side in sides]
    seeds = sorted(set.intersection(*(set(rows.index) for rows in found)))
    sums = [tuple(rows.loc[seeds].sum()) for rows in found]
    return [(count if metric == "remaining_parameters" else total - count, total) for count, total in sums]


def channels_left(results: Results) -> float:
    """How many channels the ensemble of two has left for each one that the single network has left, both pruned with
    the strongest penalty of Table 2."""
    (ensemble, _), (single, _) = left(results, "channel_sparsity", *(
        labels_of(net, "RGSM", TABLE4_LEVELS["RGSM"]) for net in (CURVE_NETS[0], SINGLE)))
    return ensemble / single


def channels_left_reported() -> float:
    """The same from the paper's Table 2: shares, where an ensemble of two has twice as many channels."""
    printed = reported.load(PAPER).reported_table("T2").set_index(["net", "lambda1"])["channel_sparsity"]
    ensemble, single = (100 - printed[net, TABLE4_LEVELS["RGSM"]] for net in (CURVE_NETS[0], SINGLE))
    return 2 * ensemble / single


def near_zero_table(results: Results) -> pandas.DataFrame:
    """Share of weights with magnitude below 0.001 [%]: a column per seed, then the paper's."""
    rows = results.frame[results.frame["metric"] == "near_zero"]
    shown = (100 * rows.pivot(index="training", columns="seed", values="value")).round(2)
    record = reported.load(PAPER)
    theirs = [record.reported_row("F1", training=training) or {} for training in shown.index]
    return shown.assign(reported=[row.get("share_below_1e-3") for row in theirs])


def of_stronger(results: Results) -> pandas.DataFrame:
    """The rows of the frame of networks, first seed, on which attacks are measured that the paper does not use."""
    first = results.frame[results.frame["seed"] == results.experiment.seeds[0]]
    return estimates.measured_by(first, "pgd20_eot20")


def stronger_table(results: Results) -> pandas.DataFrame:
    """Attacks that the paper does not use, the noise switched off, and what is left: a column per network."""
    rows = of_stronger(results)
    rows = rows.assign(name=rows.apply(name_of, axis=1))
    shown = tables.rates(rows, ["name"], STRONGER, EXACT).T
    for heading, metric in SIZES.items():
        counts = rows[rows["metric"] == metric].set_index("name")["count"]
        shown.loc[heading] = [f"{counts[name]:,.0f}" if name in counts else "" for name in shown]
    return shown


def averaging_gap(results: Results) -> pandas.DataFrame:
    """I-FGSM20 accuracy minus accuracy under PGD-20 with averaged gradients [points], over all rows of a net."""
    frame = tables.on_common_images(results.frame, ("ifgsm20", "pgd20_eot"))
    both = frame.pivot(index=["ours", "run"], columns="metric", values="value").dropna()
    gaps = (100 * (both["ifgsm20"] - both["pgd20_eot"])).groupby("ours")
    return gaps.agg(["mean", "std", "count"]).round(1)


def deployable(results: Results) -> list[tuple[dict, dict]]:
    """Grid rows of pruned networks with what really removing their zero channels gives (`analysis.Deployable`)."""
    found = [(row, result) for row, result in results.details("deployable") if row["method"] != "dense"]
    return sorted(found, key=lambda each: (each[0]["ours"], each[0]["method"], each[0]["level"] or 0))


def deployable_table(results: Results) -> pandas.DataFrame:
    """What really removing the zero channels saves, before and after, one line per pruned network."""
    def change(result: dict, key: str, unit: float, digits: int) -> str:
        before, after = result[key], result[f"{key}_left"]
        return f"{before / unit:,.{digits}f} → {after / unit:,.{digits}f}"

    many: Deployable = results.experiment.measurement("deployable_batch")  # type: ignore[assignment]
    batches = {row["run"]: result for row, result in results.details("deployable_batch")}
    lines = {name_of(row): {
        "parameters [thousand]": change(one, "parameters", 1e3, 1), "file [KB]": change(one, "bytes", 1e3, 0),
        "MACs [thousand]": change(one, "macs", 1e3, 0), "latency, 1 image [ms]": change(one, "latency_ms", 1, 2),
        f"latency, {many.images} images [ms]": change(batches[row["run"]], "latency_ms", 1, 1),
        "largest change of a logit": f"{one['largest_difference']:.0e}"} for row, one in deployable(results)}
    return pandas.DataFrame.from_dict(lines, orient="index")


def admm_zeros(results: Results) -> str:
    """How much each ADMM sets to zero, in words."""
    frame, parts = results.frame, []
    for what, metric in (("weights", "sparsity"), ("channels", "channel_sparsity")):
        for method in (f"released ADMM {what}", f"ADMM {what}"):
            zero = estimates.matching(frame, {"net": SINGLE, "method": method, "metric": metric})["value"]
            parts += [f"{method} {100 * zero.mean():.1f} %"] if len(zero) else []
    return f"Set to zero here, mean over seeds: {'; '.join(parts)}."


# -------------------------------------------------------------------------------------------------------- figures


def histograms(results: Results) -> tuple[pandas.DataFrame, list[dict]]:
    """Figure 1: grid rows with histograms of all weights, and these, for `plots.weight_histograms`."""
    found = results.details("near_zero")
    return pandas.DataFrame([row for row, _ in found]), [result for _, result in found]


def layer(results: Results) -> dict[str, dict]:
    """Figure 2: one layer of each network on which it is measured."""
    return {row["ours"]: result for row, result in results.details("layer")}


def curve(results: Results) -> pandas.DataFrame:
    """The rows of figures 3 and 4."""
    frame = results.frame
    return _placed(frame[(frame["method"] == "RGSM") & frame["net"].isin(CURVE_NETS)])


def _placed(rows: pandas.DataFrame) -> pandas.DataFrame:
    """With a `place` on the x axis: the level, moved aside by net, so that no mark hides another."""
    return rows.assign(place=rows["level"] + rows["net"].map({CURVE_NETS[0]: -4e-4, CURVE_NETS[1]: 4e-4}))


def curve_reported(experiment: Experiment) -> pandas.DataFrame:
    """The points of figures 3 and 4 that are on record, those of table 3, as tidy as our measurements."""
    printed = reported.load(PAPER).reported_table("T3").dropna(subset="lambda1")
    ours = {row["net"]: row["ours"] for row in experiment.grid}
    named = printed[printed["net"].isin(list(ours))].rename(columns={"lambda1": "level"} | PRINTED)
    tidy = named.melt(["net", "level"], [*PRINTED.values(), "channel_sparsity"], "metric")
    return _placed(tidy.assign(ours=tidy["net"].map(ours), value=tidy["value"] / 100))


def norms(results: Results) -> dict[str, np.ndarray]:
    """Figure 5: the l2 norms of all channels by method, of the first seed."""
    return {method: np.concatenate(list(result["norms"].values()))
            for method, result in _channel_norms(results).items()}


def small_channels(results: Results) -> str:
    """How many channels are small but not removed, by method, in words."""
    return ", ".join(f"{method} {result['count']} of {result['total']}"
                     for method, result in _channel_norms(results).items())


def _channel_norms(results: Results) -> dict[str, dict]:
    found = results.details("channel_norms", seed=results.experiment.seeds[0])
    return {row["method"]: result for row, result in found}


def exponents(results: Results) -> str:
    """Of 1 / noise in the change of an ensemble's output, per seed; a dash where there is none."""
    slopes = [result["level_slope"] for _, result in results.details("stability")]
    return ", ".join("-" if slope is None else f"{slope:.2f}" for slope in slopes)


def clean_is_best(results: Results) -> bool:
    """Whether every network is at least as accurate on clean images as under I-FGSM20."""
    rates = results.frame.pivot_table(index="run", columns="metric", values="value")[["clean", "ifgsm20"]].dropna()
    return bool((rates["clean"] >= rates["ifgsm20"]).all())
