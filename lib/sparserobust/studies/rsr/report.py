"""Robust Sparse Regularization (Rakin et al. 2019): noise on weights, lasso and adversarial training, then pruning.

Of the paper itself only the abstract is on record. What stands beside our numbers comes from its companion (He, Rakin &
Fan 2019, "PNI"), and is marked so.
"""

from dataclasses import replace
from typing import Any

import pandas

from sparserobust.analysis import LayerSparsity, WeightHistogram, WeightSparsity
from sparserobust.config import Attack, Data, Measurement, Model, Objective, Recipe, Run, Sparsifier
from sparserobust.evaluation import Accuracy
from sparserobust.models import NoisyWeights
from sparserobust.reporting import claims, estimates, reported, tables
from sparserobust.running import scales
from sparserobust.running.experiment import Experiment as _Experiment
from sparserobust.running.store import Store
from sparserobust.sparsifiers import Dense, Lasso, Magnitude, RelativeThreshold

PAPER = "rsr"
METHODS = {"AT": (False, False), "AT + lasso": (False, True), "AT + noise": (True, False), "RSR": (True, True)}
STAGES = ("dense", "pruned", "fine-tuned", "trained on")  # the last: as long as fine-tuned, but nothing pruned
ABLATED = "ResNet-20"  # the net on which the ingredients are taken apart
ON_ABLATED_ONLY = {("AT", "pruned"), ("AT", "fine-tuned"), ("RSR", "trained on")}
COMPARED = (("AT", "dense"), ("AT + noise", "dense"), ("RSR", "dense"), ("RSR", "pruned"), ("RSR", "fine-tuned"))
BLACK_BOX = (("AT", "dense"), ("RSR", "pruned"))  # A and B: each is attacked by way of the other
CURVES = ("radius", "steps")
ACCURACIES = {"clean": "clean", "PGD-7": "pgd7", "FGSM": "fgsm"}
PROTOCOL = {"removed": "sparsity"} | ACCURACIES
HONEST = {"PGD-7, averaged": "pgd7_eot", "noise off: clean": "clean_quiet", "noise off: PGD-7": "pgd7_quiet"}
STRONGER = {"PGD, 20 draws": "eot20", "PGD on the margin": "margin", "AutoAttack": "autoattack",
            "noise off: AutoAttack": "autoattack_quiet", "C&W, l2": "cw_l2"}
QUERIES = {"Square": "square", "Square, noise off": "square_quiet", "transfer from the other": "transfer"}
COMPANION = {"AT, dense": "vanilla AT", "AT + noise, dense": "PNI-W channel-wise",
             "AT + noise, dense, granularity layer": "PNI-W layer-wise",
             "AT + noise, dense, granularity element": "PNI-W element-wise"}
COMPANION_COLUMNS = {"clean": "clean", "PGD-7": "pgd", "FGSM": "fgsm"}
EXACT = ("sparsity", "near_zero", "layers")  # properties of a network, not estimated from a sample of images


class Experiment(_Experiment):
    """Grid rows: `net` (the paper's), `ours` (what stands for it), `method`, `stage`, `varied` and `level` (what
    differs from the main row, and its value), `seed`, `run`, `also`."""

    def rows(self, **labels) -> list[dict]:
        """The main grid rows with these labels; rows in which something is varied only if `varied` is given."""
        return super().rows(**({"varied": ""} | labels))


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment:
    """Everything the notebook runs at a scale, or all of it with these seeds. `UserError` for an unknown scale, bad
    seeds, or a misspelt setting of a run or measurement (other words of a scale file are not checked)."""
    settings = scales.load(scale, PAPER)
    chosen = scales.checked_seeds(seeds, settings["seeds"])
    grid = [row for seed in chosen for net in settings["nets"]
            for row in _rows(settings, net, seed, first=seed == chosen[0])]
    measurements = {name: Measurement.parse(m) for name, m in settings["measurements"].items()}
    return Experiment(scale, chosen, grid, measurements | {"sparsity": WeightSparsity()}, settings)


def _rows(settings: dict, net: str, seed: int, first: bool) -> list[dict]:
    """Grid rows of one net and seed. Only the first seed has those in which something is varied for a figure."""
    wanted = METHODS if net == ABLATED else ("AT", "RSR")
    cases: list[tuple[str, str, str, Any]] = [(method, stage, "", None) for method in wanted for stage in STAGES
             if net == ABLATED or (method, stage) not in ON_ABLATED_ONLY]
    if net == ABLATED:
        cases += [("RSR", stage, "unmasked", None) for stage in ("pruned", "fine-tuned")]
    if net == ABLATED and first:
        cases += [(method, "pruned", "sparsity", level) for method in ("AT", "RSR") for level in settings["sparsities"]]
        cases += [("RSR", "pruned", varied, level) for varied in ("threshold", "lambda")
                  for level in settings[f"{varied}s"]]
        cases += [("RSR", "fine-tuned", "threshold", settings["threshold"])]
        cases += [("AT + noise", "dense", "granularity", level) for level in ("layer", "element")]
        cases += [("AT", "dense", "clean_weight", 0.0)]
    rows = []
    for case in cases:
        row = dict(zip(("method", "stage", "varied", "level"), case, strict=True))
        row = {"net": net, "ours": settings["nets"][net]["label"]} | row | {"seed": seed}
        rows.append(row | {"run": _run(settings, net, *case, seed), "also": _also(settings, row, first)})
    return rows


def _run(settings: dict, net: str, method: str, stage: str, varied: str, level, seed: int) -> Run:
    noise, lasso = METHODS[method]
    change = {varied: level}
    settings = settings | settings["nets"][net]  # its own come before those of all
    model = Model.parse(settings["model"])
    if noise:
        model = NoisyWeights(model=model, granularity=change.get("granularity", "channel"))
    objective: Any = Objective.parse(settings["objective"])  # one with a `clean_weight`
    objective = replace(objective, clean_weight=change.get("clean_weight", objective.clean_weight))
    sparsifier = Lasso(lam=change.get("lambda", settings["lambda"])) if lasso else Dense()
    dense = Run(data=Data.parse(settings["data"]), model=model, objective=objective, sparsifier=sparsifier,
                recipe=Recipe.parse(settings["recipe"]), seed=seed)
    if stage == "dense":
        return dense
    recipe = Recipe.parse(settings["fine_tuning"])
    if stage == "pruned":
        recipe = replace(recipe, epochs=0)
    if varied in ("threshold", "lambda"):  # how much goes is found, by the threshold or by what the lasso made small
        pruner: Sparsifier = RelativeThreshold(threshold=change.get("threshold", settings["threshold"]))
    else:
        pruner = Magnitude(sparsity=change.get("sparsity", settings["sparsity"]))
    if varied == "unmasked":
        model = replace(model, masked=False)
    return replace(dense, model=model, objective=replace(objective, clean_epochs=0), recipe=recipe, start=dense,
                   sparsifier=Dense() if stage == "trained on" else pruner)


def _also(settings: dict, row: dict, first: bool) -> dict[str, Measurement]:
    """What figures and the sections beyond the paper need of a row; the costly ones of the first seed."""
    net, method, stage, varied = row["net"], row["method"], row["stage"], row["varied"]
    also = {}

    def take(section: dict) -> None:
        also.update({name: Measurement.parse(m) for name, m in section.items()})

    if first and not varied and "health" in settings:
        also["health"] = Measurement.parse(settings["health"])
    if varied in ("", "unmasked") and (stage != "pruned" or (method, stage) in COMPARED or varied):
        take(settings["honest"])
    if net == ABLATED and varied == "" and stage == "dense":
        also["near_zero"] = WeightHistogram()
    if net == ABLATED and varied == "" and first:
        if method == "RSR" and stage != "trained on":
            also["layers"] = LayerSparsity()
        if (method, stage) in COMPARED:
            take({name: m for name, m in settings["stronger"].items()
                  if not name.startswith("autoattack") or [method, stage] in settings["autoattack_rows"]})
            also |= {f"{kind} {level:g}": m for kind in CURVES
                     for level, m in curve(settings, kind).items()}
    if net == settings["black_box"]["net"] and varied == "":
        black_box = settings["black_box"]
        for one, other in (BLACK_BOX, BLACK_BOX[::-1]):
            if (method, stage) == one:
                source = _run(settings, net, *other, "", None, row["seed"])
                also["transfer"] = Accuracy(attack=Attack.parse(black_box["transfer"]), images=black_box["images"],
                                            source=source)
                take({name: m for name, m in black_box["queries"].items() if first or name in black_box["all_seeds"]})
    return also


def curve(settings: dict, kind: str) -> dict[float, Accuracy]:
    """Accuracy under PGD as its `radius` (with the step in proportion) or its number of `steps` grows, by that."""
    some = Accuracy.parse(settings["curves"]["accuracy"])
    attack: Any = some.attack  # one with a radius and steps
    changes = {"radius": lambda e: {"epsilon": e, "step_size": attack.step_size * e / attack.epsilon},
               "steps": lambda n: {"steps": n}}[kind]
    return {level: replace(some, attack=replace(attack, **changes(level))) for level in settings["curves"][kind]}


def curve_frame(frame: pandas.DataFrame, kind: str) -> pandas.DataFrame:
    """The rows of `frame` that `curve` measured, with the radius or the number of steps as `level`."""
    chosen = frame[frame["metric"].str.startswith(f"{kind} ")]
    return chosen.assign(level=chosen["metric"].str.removeprefix(f"{kind} ").astype(float), metric=kind,
                         network=chosen["method"] + ", " + chosen["stage"])


def traded(frame: pandas.DataFrame, settings: dict) -> pandas.DataFrame:
    """The rows of figure 1, one-shot pruned nets of the first seed, with the `path` they lie on: AT and RSR cut to a
    sparsity (not at all, and the main row's, among them), RSR cut at thresholds, RSR of several lambdas cut at one."""
    cut = frame[frame["stage"] == "pruned"]
    varied = cut[cut["varied"].isin(["sparsity", "threshold", "lambda"])]
    main = frame[(frame["net"] == ABLATED) & (frame["varied"] == "") & frame["method"].isin(["AT", "RSR"])
                 & frame["stage"].isin(["dense", "pruned"]) & frame["seed"].isin(varied["seed"].unique())]
    main = main.assign(varied="sparsity", level=main["stage"].map({"dense": 0.0, "pruned": settings["sparsity"]}))
    usual = varied[(varied["varied"] == "threshold") & (varied["level"] == settings["threshold"])]
    rows = pandas.concat([main, varied, usual.assign(varied="lambda", level=settings["lambda"])])
    return rows.assign(level=rows["level"].astype(float), path=rows["method"] + ", by " + rows["varied"])


def overview(grid: list[dict]) -> pandas.DataFrame:
    """The grid as a table, one line per kind of run."""
    return tables.gathered([{
        "the paper's net": row["net"], "ours": row["ours"], "run": name_of(row), "epochs": row["run"].recipe.epochs,
        "starts from another": "yes" if row["run"].start else "",
        "sparsifier": ", ".join(f"{k} {v}" for k, v in row["run"].sparsifier.plain().items()), "seeds": row["seed"]}
        for row in grid], "seeds")


def name_of(row) -> str:
    """What a grid row, or a row of the frame, is called in tables."""
    level = "" if row["level"] is None or pandas.isna(row["level"]) else f" {row['level']}"
    return f"{row['method']}, {row['stage']}" + (f", {row['varied']}{level}" if row["varied"] else "")


def table(frame: pandas.DataFrame, columns: dict[str, str], nets: bool = False) -> pandas.DataFrame:
    """One line per kind of run, `columns` maps headings to metrics; with `nets` the network leads each line."""
    line = frame.apply(name_of, axis=1)
    if nets:
        line = frame["net"] + " (" + frame["ours"] + "): " + line
    return tables.rates(frame.assign(line=line), ["line"], columns, EXACT)


def _companion(name: str, column: str) -> tuple[float | None, float | None]:
    """What the companion reports for a row of `ABLATED` called `name`, and its standard deviation over trials."""
    _, printed = reported.load(PAPER).other_table("README_resnet20")
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


def trials(experiment: Experiment, store: Store) -> pandas.DataFrame:
    """Mean and standard deviation [%] over the trials of one network (the first seed's), beside the companion's."""
    lines: dict[str, dict[str, str]] = {}
    for method, stage in COMPARED:
        for row in experiment.rows(net=ABLATED, method=method, stage=stage, seed=experiment.seeds[0]):
            line = lines.setdefault(name_of(row), {})
            for heading, metric in ACCURACIES.items():
                result = experiment.shown(store, row["run"], experiment.measurements[metric])
                if result is None:
                    continue
                values = pandas.Series(result["trial_values"]) * 100
                theirs, sd = _companion(name_of(row), COMPANION_COLUMNS[heading])
                line[heading] = f"{values.mean():.1f} ± {values.std():.2f}"
                line[f"{heading}, companion"] = ("" if theirs is None else f"{theirs:.2f}") + (
                    "" if sd is None else f" ± {sd:.2f}")
    return pandas.DataFrame.from_dict(lines, orient="index").fillna("")


def black_box(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Table T3: Square, transfer from the other network, and how often ZOO succeeds on what was classified rightly."""
    chosen = frame[frame["run"].isin(frame[frame["metric"] == "transfer"]["run"])]
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


def labels(net: str, method: str, stage: str, varied: str = "") -> dict:
    """The labels that name a row in which at most a switch is varied."""
    return {"net": net, "method": method, "stage": stage, "varied": varied}


def gains(nets: list[str]) -> dict[str, tuple[dict, dict]]:
    """Pairs for `tables.effects`: RSR against its baseline, as the abstract compares, and after equal training."""
    pairs = {}
    for net in nets:
        pairs[f"{net}: RSR, pruned - AT"] = labels(net, "RSR", "pruned"), labels(net, "AT", "dense")
        equal = labels(net, "RSR", "fine-tuned"), labels(net, "AT", "trained on")
        pairs[f"{net}: RSR, fine-tuned - AT, trained on"] = equal
    return pairs


def ingredients() -> dict[str, tuple[dict, dict]]:
    """Pairs for `tables.effects`: what each ingredient adds to the dense net, and what both add."""
    return {f"{one} - {other}": (labels(ABLATED, one, "dense"), labels(ABLATED, other, "dense")) for one, other in [
        ("AT + lasso", "AT"), ("AT + noise", "AT"), ("RSR", "AT + noise"), ("RSR", "AT + lasso"), ("RSR", "AT")]}


def controls() -> dict[str, tuple[dict, dict]]:
    """Pairs for `tables.effects` that differ in nothing but pruning: same seed, same start, same epochs. Where there is
    noise, each net keeps its own, and (unless unmasked) none on what was pruned."""
    return {f"{method}{', noise on zeros too' if varied else ''}: pruned and fine-tuned - trained on": (
        labels(ABLATED, method, "fine-tuned", varied), labels(ABLATED, method, "trained on"))
        for method, varied in [("AT", ""), ("AT + lasso", ""), ("AT + noise", ""), ("RSR", ""), ("RSR", "unmasked")]}


def judged(frame: pandas.DataFrame, black_box_net: str) -> pandas.DataFrame:
    """All comparisons: every claim with its verdict, but for C6.PGD, which asks what C2 and C5 ask. Where the paper
    leaves open what is compared, or compares more than one thing, rows of this project's own are added, with a suffix:
    after equal training, under averaged gradients, without the noise, by accuracy."""
    rows = []
    for claim in reported.load(PAPER).claims.values():
        for suffix, metric, treatment, reference, where in _compared(claim.id, black_box_net):
            found = estimates.compared(frame, metric, treatment, reference)
            said = claim if not suffix else replace(
                claim, id=f"{claim.id} {suffix}", value=None, derived=False, operands={}, unit="percentage points",
                quantity=f"{claim.quantity} ({suffix})", source="this project's question")
            rows.append(claims.judged(said, found, f"03_rsr, {where}"))
    return pandas.DataFrame(rows)


def current_ledger(experiment: Experiment, store: Store) -> pandas.DataFrame:
    """The lines of the ledger by what the store can show of the experiment now."""
    rows = judged(experiment.measured(store), experiment.settings["black_box"]["net"])
    return claims.ledger(rows, reported.load(PAPER), claims.looks(experiment.settings))


def _compared(claim: str, black_box_net: str) -> list[tuple[str, str, dict, dict, str]]:
    """(what is different from the claim itself, metric, treatment, reference, where) of a claim, by its id."""
    name, _, part = claim.partition(".")
    if claim == "C6.PGD":
        return []
    if name == "C4":
        pair, quiet = ((labels(ABLATED, method, "fine-tuned"), labels(ABLATED, method, "trained on"))
                       for method in ("RSR", "AT + lasso"))
        return [("", "pgd7", *pair, "control"), *_fairer(pair, "control"),
                ("never any noise", "pgd7", *quiet, "control")]
    if name == "C7":
        metric = {"PGD": "pgd7", "FGSM": "fgsm", "clean": "clean"}[part]
        dense, longer = ((labels(ABLATED, "AT + noise", stage), labels(ABLATED, "AT", stage))
                         for stage in ("dense", "trained on"))
        return [("", metric, *dense, "table 1"), ("equal training", metric, *longer, "table 1"),
                *(_fairer(dense, "beyond") if part == "PGD" else [])]
    net = {"C5": "VGG-16" if part == "VGG" else ABLATED, "C6": black_box_net}.get(name, "ResNet-18")
    one, equal = gains([net]).values()
    if name == "C3":  # no worse in either
        return [("clean", "clean", *one, "table 2"), ("PGD-7", "pgd7", *one, "table 2")]
    if name == "C6":
        metric = {"FGSM": "fgsm", "BB": "square"}[part]
        silent = [("noise off", "square_quiet", *one, "table 3")] if part == "BB" else []
        return [("", metric, *one, "table 3" if part == "BB" else "table 2"), *silent]
    if name == "C1":
        return [("", "clean", *one, "table 2"), ("equal training", "clean", *equal, "table 2")]
    rows = [("", "pgd7", *one, "table 2"), ("equal training", "pgd7", *equal, "table 2"), *_fairer(one, "beyond")]
    return rows + ([("clean", "clean", *one, "table 2")] if name == "C5" else [])


def _fairer(pair: tuple[dict, dict], where: str) -> list[tuple[str, str, dict, dict, str]]:
    """The same comparison under PGD-7 with averaged gradients, and without the noise."""
    return [("averaged", "pgd7_eot", *pair, where), ("noise off", "pgd7_quiet", *pair, where)]
