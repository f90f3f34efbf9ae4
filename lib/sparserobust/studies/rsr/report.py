"""Tables and rows for figures of Robust Sparse Regularization (Rakin et al. 2019)."""

import pandas

from sparserobust.models import NoisyWeights
from sparserobust.reporting import estimates, reported, tables
from sparserobust.running.experiment import Experiment, Results
from sparserobust.studies.rsr.comparisons import ACCURACIES, EFFECTS, NO_NOISE, PROTOCOL, gains, labels
from sparserobust.studies.rsr.runs import ABLATED, METHODS, RSRSettings

STRONGER = {"PGD, 20 draws": "eot20", "PGD on the margin": "margin", "AutoAttack": "autoattack",
            "noise off: AutoAttack": "autoattack_quiet", "C&W, l2": "cw_l2"}
EXTENDED = PROTOCOL | NO_NOISE | STRONGER
QUERIES = {"Square": "square", "Square, noise off": "square_quiet", "transfer from the other": "transfer"}
EXACT = ("sparsity", "near_zero", "layers")  # properties of a network, not estimated from a sample of images
COMPARED = (("AT", "dense"), ("AT + noise", "dense"), ("RSR", "dense"), ("RSR", "pruned"), ("RSR", "fine-tuned"))
COMPANION = {"AT, dense": "vanilla AT", "AT + noise, dense": "PNI-W channel-wise",
             "AT + noise, dense, granularity layer": "PNI-W layer-wise",
             "AT + noise, dense, granularity element": "PNI-W element-wise"}
COMPANION_COLUMNS = {"clean": "clean", "PGD-7": "pgd", "FGSM": "fgsm"}


def name_of(row) -> str:
    """What a grid row, or a row of the frame, is called in tables."""
    level = "" if row["level"] is None or pandas.isna(row["level"]) else f" {row['level']}"
    return f"{row['method']}, {row['stage']}" + (f", {row['varied']}{level}" if row["varied"] else "")


def network_name(row) -> str:
    """The same, with the network in front."""
    return f"{row['ours']}: {name_of(row)}"


# --------------------------------------------------------------------------------------------------------- tables


def overview(experiment: Experiment) -> pandas.DataFrame:
    """The grid as a table, one line per kind of run."""
    return tables.gathered([{
        "the paper's net": row["net"], "ours": row["ours"], "run": name_of(row), "epochs": row["run"].recipe.epochs,
        "starts from another": "yes" if row["run"].start else "",
        "sparsifier": ", ".join(f"{k} {v}" for k, v in row["run"].sparsifier.plain().items()), "seeds": row["seed"]}
        for row in experiment.grid], "seeds")


def conditions(experiment: Experiment[RSRSettings], columns: dict[str, str] = PROTOCOL) -> str:
    """Under which conditions the numbers of a table came about, for its caption."""
    epochs = ", ".join(f"{net} {experiment.settings_for(net).recipe.epochs}" for net in experiment.nets)
    return (f"Ours, scale {experiment.scale}: {experiment.settings.data.name}, epochs: {epochs}; "
            f"{tables.spread(experiment.seeds)}. Clean, PGD-7 and FGSM are means of five trials with fresh noise. "
            f"{tables.conditions(experiment.measurements, columns)}")


def table(frame: pandas.DataFrame, columns: dict[str, str], nets: bool = False) -> pandas.DataFrame:
    """One line per kind of run, `columns` maps headings to metrics; with `nets` the network leads each line."""
    line = frame.apply(name_of, axis=1)
    if nets:
        line = frame["net"] + " (" + frame["ours"] + "): " + line
    return tables.rates(frame.assign(line=line), ["line"], columns, EXACT)


def ablated(results: Results) -> pandas.DataFrame:
    """The main rows of the network on which the ingredients are taken apart."""
    return estimates.matching(results.frame, {"net": ABLATED, "varied": ""})


def ingredients_table(results: Results) -> pandas.DataFrame:
    """Table 1: all methods and stages, with the companion's numbers beside ours."""
    return with_companion(table(ablated(results), PROTOCOL))


def changed_by_cutting(results: Results, method: str = "RSR") -> float:
    """By how many points accuracy under PGD-7 changes when weights of a method's network are cut in one go, mean over
    seeds."""
    effects = estimates.compared(results.frame, "pgd7", labels(ABLATED, method, "pruned"),
                                 labels(ABLATED, method, "dense")).effects
    return sum(effects) / len(effects)


def networks_table(results: Results) -> pandas.DataFrame:
    """Table 2: RSR against adversarial training on all networks."""
    return table(of_networks(results), PROTOCOL | NO_NOISE, nets=True)


def of_networks(results: Results) -> pandas.DataFrame:
    """The rows of Table 2."""
    frame = results.frame[results.frame["varied"] == ""]
    wanted = (frame["method"] == "RSR") | ((frame["method"] == "AT") & frame["stage"].isin(["dense", "trained on"]))
    return frame[wanted]


def gains_table(results: Results) -> pandas.DataFrame:
    """What RSR adds on each network, with the paper's two differences beside ours."""
    gained = tables.effects(results.frame, gains(results.experiment.nets), EFFECTS)
    headline = reported.load("rsr").reported_table("T0").set_index("network")
    for heading, column in (("clean", "delta_clean"), ("PGD-7", "delta_perturbed")):
        values = [f"{headline[column]['ResNet-18']:+.2f}" if name == "ResNet-18: RSR, pruned - AT" else ""
                  for name in gained.index]
        gained.insert(gained.columns.get_loc(heading) + 1, f"{heading}, reported", values)
    return gained


def choices_table(results: Results) -> pandas.DataFrame:
    """What the paper leaves open: rows in which a choice is varied, and the main rows beside which they stand."""
    frame, main = results.frame[results.frame["net"] == ABLATED], ablated(results)
    noise = main[main["method"].isin(["AT", "AT + noise"]) & (main["stage"] == "dense")]
    varied = frame[frame["varied"].isin(["unmasked", "granularity", "clean_weight"])]
    threshold = estimates.matching(frame, {"varied": "threshold", "level": results.experiment.settings.threshold})
    pruned = main[(main["method"] == "RSR") & main["stage"].isin(["pruned", "fine-tuned"])]
    return with_companion(table(pandas.concat([noise, varied, threshold, pruned]), PROTOCOL))


def extended_table(results: Results) -> pandas.DataFrame:
    """Attacks that the paper does not use, on networks of the first seed; with the mean length of what C&W found."""
    shown = table(extended(results), EXTENDED)
    lengths = {name_of(row): f"{found['mean_l2_of_moved']:.2f}" for row, found in results.details("cw_l2")}
    return shown.assign(**{"C&W, mean l2": [lengths.get(name, "") for name in shown.index]})


def extended(results: Results) -> pandas.DataFrame:
    """Networks of the first seed that these attacks were tried on."""
    first = ablated(results)[lambda rows: rows["seed"] == results.experiment.seeds[0]]
    return estimates.measured_by(first, "eot20")


def black_box_table(results: Results) -> pandas.DataFrame:
    """Table 3: Square, transfer from the other network, and how often ZOO succeeds on what was classified rightly."""
    chosen = estimates.measured_by(results.frame, "transfer")
    shown = table(chosen, {"clean": "clean"} | QUERIES)
    counts = chosen.assign(name=chosen.apply(name_of, axis=1)).groupby(["name", "metric"])["count"].sum()
    if "zoo" in set(chosen["metric"]):
        shown["ZOO success"] = [_success(counts[name, "zoo"], counts[name, "zoo_clean"]) for name in shown.index]
    return shown


def _success(left: float, right: float) -> str:
    """Of `right` images classified rightly before, `left` after; noise may set more right than it did before."""
    if not right:
        return ""
    fooled = max(right - left, 0)
    low, high = estimates.binomial_interval(fooled, right)
    return f"{100 * fooled / right:.0f} [{100 * low:.0f}, {100 * high:.0f}] of {right:.0f}"


def _companion(name: str, column: str) -> tuple[float | None, float | None]:
    """What the companion reports for a row of `ABLATED` called `name`, and its standard deviation over trials."""
    _, printed = reported.load("rsr").other_table("README_resnet20")
    found = printed[printed["method"] == COMPANION.get(name)]
    if found.empty:
        return None, None
    value, sd = found.iloc[0][column], found.iloc[0][f"{column}_sd"]
    return value, None if pandas.isna(sd) else sd


def with_companion(shown: pandas.DataFrame) -> pandas.DataFrame:
    """A table of `ABLATED` with the companion's numbers (ResNet-20, 160 epochs) beside ours where it has that row."""
    result = shown.copy()
    for heading, column in COMPANION_COLUMNS.items():
        values = [_companion(name, column)[0] for name in shown.index]
        result.insert(result.columns.get_loc(heading) + 1, f"{heading}, companion",
                      ["" if v is None else f"{v:.2f}" for v in values])
    return result


def trials_table(results: Results) -> pandas.DataFrame:
    """Mean and standard deviation [%] over the trials of one network (the first seed's), beside the companion's."""
    lines: dict[str, dict[str, str]] = {}
    for method, stage in COMPARED:
        for heading, metric in ACCURACIES.items():
            for row, result in results.details(metric, **labels(ABLATED, method, stage),
                                               seed=results.experiment.seeds[0]):
                values = pandas.Series(result["trial_values"]) * 100
                theirs, sd = _companion(name_of(row), COMPANION_COLUMNS[heading])
                line = lines.setdefault(name_of(row), {})
                line[heading] = f"{values.mean():.1f} ± {values.std():.2f}"
                line[f"{heading}, companion"] = ("" if theirs is None else f"{theirs:.2f}") + (
                    "" if sd is None else f" ± {sd:.2f}")
    return pandas.DataFrame.from_dict(lines, orient="index").fillna("")


# -------------------------------------------------------------------------------------------------------- figures


def curve(results: Results, kind: str) -> pandas.DataFrame:
    """The rows of figure 2, with the `radius` or the number of `steps` as `level`."""
    frame = results.frame
    chosen = frame[frame["metric"].str.startswith(f"{kind} ")]
    return chosen.assign(level=chosen["metric"].str.removeprefix(f"{kind} ").astype(float), metric=kind,
                         network=chosen["method"] + ", " + chosen["stage"])


def tradeoff_rows(results: Results) -> pandas.DataFrame:
    """The rows of figure 1, one-shot pruned networks of the first seed, with the `path` they lie on: AT and RSR cut to
    a sparsity (0 and the main row's among them), RSR cut at thresholds, RSR of several lambdas cut at one threshold."""
    frame, own = results.frame, results.experiment.settings
    cut = frame[frame["stage"] == "pruned"]
    varied = cut[cut["varied"].isin(["sparsity", "threshold", "lambda"])]
    main = ablated(results)
    main = main[main["method"].isin(["AT", "RSR"]) & main["stage"].isin(["dense", "pruned"])
                & main["seed"].isin(varied["seed"].unique())]
    main = main.assign(varied="sparsity", level=main["stage"].map({"dense": 0.0, "pruned": own.sparsity}))
    usual = estimates.matching(varied, {"varied": "threshold", "level": own.threshold})
    rows = pandas.concat([main, varied, usual.assign(varied="lambda", level=own.lam)])
    return rows.assign(level=rows["level"].astype(float), path=rows["method"] + ", by " + rows["varied"])


def histograms(results: Results) -> tuple[pandas.DataFrame, list[dict]]:
    """For `plots.weight_histograms`: the grid rows of AT and RSR before pruning, and their histograms."""
    found = [(row, result) for row, result in results.details("near_zero") if row["method"] in ("AT", "RSR")]
    return pandas.DataFrame([row for row, _ in found]), [result for _, result in found]


def near_zero(results: Results) -> pandas.DataFrame:
    """Share of weights with magnitude below 0.001 [%] before pruning, a line per method, a column per seed."""
    rows = ablated(results)[lambda rows: rows["metric"] == "near_zero"]
    return (100 * rows.pivot(index="method", columns="seed", values="value")).round(2)


def noise_scales(results: Results) -> tuple[dict[str, list[dict]], float]:
    """For `layers.layers_over_epochs`: the history of each noisy network of the first seed, and the scale with which
    all layers begin."""
    first = results.experiment.seeds[0]
    histories = {method: results.history(**labels(ABLATED, method, "dense"), seed=first)
                 for method, (noise, lasso) in METHODS.items() if noise}
    model = results.experiment.row(**labels(ABLATED, "RSR", "dense"))["run"].model
    assert isinstance(model, NoisyWeights)
    return histories, model.initial_scale


def by_layer(results: Results) -> pandas.DataFrame:
    """Figure 3: of each layer of RSR, one seed, how much is removed, the standard deviation of its weights, and the
    threshold as a share of its largest weight. Columns `quantity`, `stage`, `layer`, `value`."""
    rows = []
    for row, found in results.details("layers"):
        for name, layer in found["layers"].items():
            values = {"removed [%]": 100 * layer["zero"] / layer["total"],
                      "standard deviation of weights": layer["std"]}
            if row["stage"] == "pruned":
                values["threshold / largest weight"] = layer["smallest"] / layer["largest"]
            rows += [{"quantity": quantity, "stage": row["stage"], "layer": name, "value": value}
                     for quantity, value in values.items()]
    return pandas.DataFrame(rows)
