"""All five papers on one network, one data set and one training budget: not a paper, but the question that they share.

A method is a way to get from nothing to a network of which a share of the weights, or of the inner channels, is left:
some training, a cut, some training of what is left. All methods take as many gradients per training image (`budget`),
and are cut to the same number of remaining weights, or to the same number of remaining channels in each layer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas

from sparserobust import data, imagewise
from sparserobust.analysis import ChannelSparsity, WeightSparsity
from sparserobust.config import Data, Dense, Inheritance, Measurement, Model, Objective, Recipe, Run, Sparsifier
from sparserobust.errors import UserError
from sparserobust.models import NoisyWeights, PreActResNet
from sparserobust.reporting import claims, estimates, tables
from sparserobust.reporting.reported import Claim
from sparserobust.running import scales
from sparserobust.running.experiment import Experiment as _Experiment
from sparserobust.running.store import Store
from sparserobust.sparsifiers import RGSM, RVSM, Channels, FixedMask, Lasso, LearnedScores, Magnitude, Ticket
from sparserobust.studies.tscnc import report as tscnc

PAPER = "side_by_side"
WEIGHTS, CHANNELS = "weights", "channels"  # what is cut
DENSE, SMALL, ONE_SHOT, MAGNITUDE, SCORES = "dense", "small from the start", "one shot", "magnitude", "learned scores"
SPLITTING, FK, TICKET, IWI = "splitting", "noisy ensemble, split", "lottery ticket", "IWI"
LASSO, RSR, GRADUAL, TSCNC = "lasso", "RSR", "step by step", "TSCNC"
NOISY = (FK, RSR)
PAPERS = {FK: "Dinh et al. 2020", SPLITTING: "Dinh et al. 2020", IWI: "Wang et al. 2020", TICKET: "Wang et al. 2020",
          LASSO: "Rakin et al. 2019", RSR: "Rakin et al. 2019", GRADUAL: "Guo et al. 2018", TSCNC: "Feng et al. 2025"}
ATTACKED = "pgd"  # the accuracy by which methods are ranked
MARGIN = 1.0  # points within which there is no difference
QUIET = {"clean": "clean_quiet", ATTACKED: "pgd_quiet"}  # the same with the noise off
ACCURACIES = {"clean [%]": "clean", "PGD, averaged [%]": ATTACKED}
# what this project asks of the papers, of all alike: about whose answer, what, of which method, against which other
QUESTIONS = {
    "FK": (PAPERS[FK], "a noisy ensemble, split while it is trained, beats a plain network cut as far", FK, MAGNITUDE),
    "ensemble": (PAPERS[FK], "the noisy ensemble does it, not the splitting", FK, SPLITTING),
    "splitting": (PAPERS[FK], "splitting while training beats cutting afterwards", SPLITTING, MAGNITUDE),
    "IWI": (PAPERS[IWI], "what has inherited a small network's weights is better to cut", IWI, MAGNITUDE),
    "ticket": (PAPERS[IWI], "a lottery ticket, rewound and trained, beats what is only fine-tuned", TICKET, MAGNITUDE),
    "RSR": (PAPERS[RSR], "noise on weights and a lasso make better networks to cut", RSR, MAGNITUDE),
    "lasso": (PAPERS[RSR], "so does the lasso alone", LASSO, MAGNITUDE),
    "noise": (PAPERS[RSR], "noise adds to what the lasso does", RSR, LASSO),
    "sparsity": (PAPERS[GRADUAL], "cut so far, a network is more robust than it is dense", GRADUAL, DENSE),
    "TSCNC": (PAPERS[TSCNC], "a network made sparse and well-conditioned before is better once it is pruned", TSCNC,
              SCORES),
    "pruning": ("all", "a large network, cut, beats one that is small from the start", MAGNITUDE, SMALL),
}


class Experiment(_Experiment):
    """Grid rows: `method`, `cut` (weights or channels; of the dense network None), `level` (share removed, in numbers
    of the one dense network), `seed`, `run`, `also`."""

    @property
    def cuts(self) -> list[tuple[str, float]]:
        """What is cut, and which share of it."""
        return [(cut, level) for cut in (WEIGHTS, CHANNELS) for level in self.settings[cut]]

    def has(self, method: str) -> bool:
        """Whether the scale has a method: all, unless it names those that it has (`only`); the dense network always."""
        return method in (DENSE, *self.settings.get("only", [method]))


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment:
    """Everything the notebook runs at a scale, or all of it with these seeds. `UserError` for an unknown scale, bad
    seeds, or a misspelt setting of a run or measurement."""
    settings = scales.load(scale, PAPER)
    chosen = scales.checked_seeds(seeds, settings["seeds"])
    measurements = {"sparsity": WeightSparsity(), "channel_sparsity": ChannelSparsity()}
    measurements |= {name: Measurement.parse(m) for name, m in settings["measurements"].items()}
    found = Experiment(scale, chosen, [], measurements, settings)
    for seed in chosen:
        found.grid.append(_row(found, DENSE, None, 0.0, seed, trained(settings, seed)))
        for cut, level in found.cuts:
            found.grid.extend(_row(found, method, cut, level, seed, run)
                              for method, run in _methods(settings, seed, cut, level) if found.has(method))
    return found


def _row(experiment: Experiment, method: str, cut: str | None, level: float, seed: int, run: Run) -> dict:
    """A grid row with what is measured on it besides."""
    names, settings = {}, experiment.settings
    if seed == experiment.seeds[0] and "health" in settings:
        names["health"] = settings["health"]
    if method in NOISY:
        names |= settings["quiet"]
    if seed == experiment.seeds[0] and method in settings["autoattack_methods"]:
        names |= settings["autoattack"]
    return {"method": method, "cut": cut, "level": level, "seed": seed, "run": run,
            "also": {name: Measurement.parse(m) for name, m in names.items()}}


# ---------------------------------------------------------------------------------------------------- the methods


def trained(settings: dict, seed: int, epochs: int | None = None, **changes) -> Run:
    """A run from nothing, of so many epochs (None: the whole budget), with some of its parts changed."""
    recipe = Recipe.parse(settings["recipe"])
    run = Run(data=Data.parse(settings["data"]), model=Model.parse(settings["model"]), seed=seed,
              objective=Objective.parse(settings["objective"]),
              recipe=recipe if epochs is None else replace(recipe, epochs=epochs))
    return replace(run, **changes)


def after(settings: dict, start: Run, sparsifier: Sparsifier, epochs: int | None = None) -> Run:
    """`start`, trained on under a sparsifier for so many epochs (None: all that follow a cut)."""
    recipe = Recipe.parse(settings["after_cut"])
    return replace(start, start=start, inheritance=None, sparsifier=sparsifier,
                   recipe=recipe if epochs is None else replace(recipe, epochs=epochs))


def pruner(cut: str, level: float, criterion: str = "filters") -> Sparsifier:
    """What cuts a network so that the share `level` of its weights, or of the inner channels of each layer, goes."""
    return Magnitude(sparsity=level) if cut == WEIGHTS else Channels(share=level, criterion=criterion)


def small_model(model: Model, level: float, settings: Data) -> PreActResNet:
    """`model` with narrower stages: as many convolution and linear weights as a cut at `level` (the
    share that is removed) leaves of it. Among all widths whose count is within 1 % of that, the ones
    whose proportions are closest to those of `model`: with the least ratio of the largest to the
    smallest of the three quotients new width / old width.

    `UserError` where no count is within 1 %, or where `model` is of a kind not known here."""
    if not isinstance(model, PreActResNet) or settings.name not in data.IMAGES:
        raise UserError(f"'{SMALL}' is known for preact_resnet on {', '.join(data.IMAGES)}, not for {model.kind} on "
                        f"{settings.name}: choose one of these in the scale file")
    if not 0 <= level < 1:
        raise UserError(f"a level is the share of weights removed, in [0, 1), not {level:g}")
    channels, classes = data.channels(settings), data.classes(settings)
    dense = model.weights(channels, classes)
    left = dense - round(level * dense)
    about = [int(width * (1 - level) ** 0.5) for width in model.stages]  # counts grow with width^2
    ranges = [np.arange(max(1, w - 4 - w // 8), w + 5 + w // 8) for w in about]
    widths = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3)
    counts = model.weights(channels, classes, widths.T)
    missed = np.abs(counts - left)
    if missed.min() > 0.01 * left:
        raise UserError(f"a cut at level {level:g} leaves {left} weights; no '{SMALL}' network comes "
                        f"within 1 % of that (nearest: {counts[missed.argmin()]}): choose another "
                        "level, or a wider network")
    quotients = widths / model.stages
    distortion = quotients.max(1) / quotients.min(1)
    distortion[missed > 0.01 * left] = np.inf
    best = np.lexsort((missed, distortion))[0]
    return replace(model, width=PreActResNet.width, widths=widths[best].tolist())


def _methods(settings: dict, seed: int, cut: str, level: float) -> Iterator[tuple[str, Run]]:
    """Every method at one level, and the run that ends it. Each takes the whole budget."""
    whole, kept = settings["recipe"]["epochs"], settings["after_cut"]["epochs"]
    before = whole - kept  # epochs before the cut
    own = settings["methods"]
    model: Any = Model.parse(settings["model"])  # one that has a width
    usual = trained(settings, seed, before)

    def tuned(start: Run, criterion: str = "filters", at: float = level, epochs: int | None = None) -> Run:
        return after(settings, start, pruner(cut, at, criterion), epochs)

    def scored(start: Run) -> Run:
        chosen = after(settings, start, LearnedScores(sparsity=level), own["score_epochs"])
        return after(settings, chosen, FixedMask(), kept - own["score_epochs"])

    if cut == WEIGHTS:
        yield SMALL, trained(settings, seed, model=small_model(model, level, usual.data))
    else:  # the same architecture as all that are cut, channels chosen by the weights they begin with
        yield SMALL, replace(trained(settings, seed), start=trained(settings, seed, 0), sparsifier=pruner(cut, level))
    yield ONE_SHOT, tuned(trained(settings, seed), epochs=0)
    yield MAGNITUDE, tuned(usual)
    if cut == WEIGHTS:
        yield SCORES, scored(usual)

    splitting = (RVSM if cut == WEIGHTS else RGSM).parse(own["splitting"][cut])
    yield SPLITTING, tuned(replace(usual, sparsifier=splitting), "readers")
    members = own["members"]  # each costs a gradient of its own, and brings weights of its own
    ensemble = trained(settings, seed, before // members, sparsifier=splitting,
                       model=replace(model, members=members, noise=own["noise"]))
    yield FK, tuned(ensemble, "readers", 1 - (1 - level) / members, kept // members)

    mask = after(settings, trained(settings, seed, own["ticket_epochs"]), pruner(cut, level), 0)
    yield TICKET, trained(settings, seed, whole - own["ticket_epochs"], sparsifier=Ticket(pruned=mask))
    narrow = trained(settings, seed, own["narrow_epochs"], model=replace(model, width=model.width // 2))
    yield IWI, tuned(trained(settings, seed, before - own["narrow_epochs"], start=narrow,
                             inheritance=Inheritance(kappa=own["kappa"])))

    lasso = replace(usual, sparsifier=Lasso(lam=own["lasso"]))
    yield LASSO, tuned(lasso)
    yield RSR, tuned(replace(lasso, model=NoisyWeights(model=model)))

    steps = own["steps"]
    stepped = trained(settings, seed, before - steps)
    for step in range(steps):
        stepped = tuned(stepped, at=1 - (1 - level) ** ((step + 1) / (steps + 1)), epochs=1)
    yield GRADUAL, tuned(stepped)

    constrained = tscnc.pretraining(settings | {"recipe": settings["recipe"] | {"epochs": before},
                                                "constraints": own["constraints"]}, seed, tscnc.BOTH)
    yield TSCNC, scored(constrained) if cut == WEIGHTS else tuned(constrained)


def join(experiment: Experiment, method: str, sparsifier: Callable[[str, float], Sparsifier], seeds: list[int],
         cuts: Sequence[str] = (WEIGHTS, CHANNELS), before: Sparsifier | None = None) -> list[dict]:
    """Grid rows of a method of the reader's own, at every level of these cuts: the usual training, with the sparsifier
    `before` if it needs one, then what `sparsifier(cut, level)` makes of it in the epochs that follow a cut. The rows
    are added to the grid of the experiment."""
    settings, rows = experiment.settings, []
    epochs = settings["recipe"]["epochs"] - settings["after_cut"]["epochs"]
    for seed in seeds:
        start = trained(settings, seed, epochs, sparsifier=before or Dense())
        rows += [_row(experiment, method, cut, level, seed, after(settings, start, sparsifier(cut, level)))
                 for cut, level in experiment.cuts if cut in cuts]
    experiment.grid.extend(rows)
    return rows


def budget(run: Run) -> float:
    """Gradients taken per training image, of a run and all it begins with: forward and backward passes of the attack
    and of the step, of each member of an ensemble."""
    return sum(r.recipe.trained_epochs * r.objective.cost * getattr(r.model, "members", 1) for r in run.lineage)


def overview(experiment: Experiment) -> pandas.DataFrame:
    """One line per method and cut, of the first seed: what is trained, epoch by epoch, and what that takes."""
    lines = []
    for row in experiment.rows(seed=experiment.seeds[0]):
        stages = [f"{r.recipe.trained_epochs} {r.sparsifier.kind if r.sparsifier != Dense() else 'dense'}"
                  + (", inherits" if r.inheritance else "") for r in row["run"].lineage]
        lines.append({"method": row["method"], "said by": PAPERS.get(row["method"], ""),
                      "what is cut": row["cut"] or "", "removed [%]": f"{100 * row['level']:g}",
                      "epochs": " > ".join(stages), "gradients per image": f"{budget(row['run']):g}"})
    return pandas.DataFrame(lines)


# ------------------------------------------------------------------------------------------------- what came out


def named(cut: str | None, level: float) -> str:
    """What a cut is called: `80 % of the weights`."""
    return "uncut" if cut is None else f"{100 * level:g} % of the {cut}"


def summary(frame: pandas.DataFrame, experiment: Experiment, store: Store) -> pandas.DataFrame:
    """One row per grid row that `frame` holds: `method`, `cut`, `level`, `seed`, `removed` (its name), `run`; a column
    per metric; and what it takes, in numbers and as shares of the one dense network: `weights_left`, `channels_left`
    [%], `file_kb`, `macs_left` [%], `latency_ms`, `seconds` of training, with all it begins with, where
    it was trained."""
    labels = ["method", "cut", "level", "seed", "run"]
    values = frame.pivot(index="run", columns="metric", values="value")
    wide = frame[labels].drop_duplicates().join(values, on="run").reset_index(drop=True)
    runs = {row["run"].identity: row["run"] for row in experiment.grid}
    size = store.measure(experiment.rows(method=DENSE)[0]["run"], experiment.measurements["deployable"])
    for name, metric in (("weights_left", "sparsity"), ("channels_left", "channel_sparsity")):
        counted = frame[frame["metric"] == metric].set_index("run")
        dense = counted[counted["method"] == DENSE]["total"].iloc[0]
        wide[name] = wide["run"].map(100 * (counted["total"] - counted["count"]) / dense)
    sizes = [store.measure(runs[run], experiment.measurements["deployable"]) for run in wide["run"]]
    wide["macs_left"] = [100 * s["macs_left"] / size["macs"] for s in sizes]
    wide["latency_ms"] = [s["latency_ms_left"] for s in sizes]
    wide["file_kb"] = wide["file"] / 1000
    wide["seconds"] = [sum(store.seconds(r) for r in runs[run].lineage) for run in wide["run"]]
    return wide.assign(removed=_removed(wide))


def table(frame: pandas.DataFrame, networks: pandas.DataFrame) -> pandas.DataFrame:
    """One line per cut and method, mean ± standard deviation over seeds: what is left, accuracies, and why."""
    rates = {heading: metric for heading, metric in ACCURACIES.items() if metric in set(frame["metric"])}
    rates |= {"clean, noise off [%]": QUIET["clean"], "PGD, noise off [%]": QUIET[ATTACKED]}
    frame = frame.assign(removed=_removed(frame))
    shown = tables.rates(frame, ["removed", "method"], rates)
    facts = _means(networks, {"weights left [%]": ("weights_left", 1), "channels left [%]": ("channels_left", 1),
                              "margin / slope": ("margins ratio", 4), "kappa": ("kappa", 1)})
    return pandas.concat([facts[["weights left [%]", "channels left [%]"]], shown.reindex(facts.index),
                          facts[["margin / slope", "kappa"]]], axis=1)


def costs(networks: pandas.DataFrame) -> pandas.DataFrame:
    """One line per cut and method, mean over seeds: what deploying and training take."""
    return _means(networks, {"file, packed [KB]": ("file_kb", 1), "MACs left [%]": ("macs_left", 1),
                             "latency [ms]": ("latency_ms", 2), "training [s]": ("seconds", 1)}, spread=False)


def _means(networks: pandas.DataFrame, columns: dict[str, tuple[str, int]], spread: bool = True) -> pandas.DataFrame:
    """One line per cut and method; `columns` maps headings to columns and the digits that are shown."""
    lines = {}
    for (removed, method), rows in networks.groupby(["removed", "method"], sort=False):
        lines[f"{removed}, {method}"] = {
            heading: f"{rows[column].mean():.{digits}f}" + (
                f" ± {rows[column].std():.{digits}f}" if spread and rows[column].nunique() > 1 else "")
            for heading, (column, digits) in columns.items()}
    return pandas.DataFrame.from_dict(lines, orient="index").replace("nan", "")


def _removed(frame: pandas.DataFrame) -> list[str]:
    """What the cut of each row is called."""
    return [named(None if pandas.isna(cut) else cut, level)
            for cut, level in zip(frame["cut"], frame["level"], strict=True)]


def answers(frame: pandas.DataFrame, metric: str, cut: str, level: float) -> dict[str, np.ndarray]:
    """For `estimates.ranking`: of every method at a cut which test images (seeds, images) were classified correctly,
    on the seeds that all methods have. Networks of which no answers were kept are left out, and so are those that
    answered other images than most."""
    rows = estimates.matching(frame, {"metric": metric, "cut": cut, "level": level}).dropna(subset="each")
    drawn = rows["each"].map(imagewise.is_sample)
    rows = rows[drawn == drawn.mode().max()]
    packed = rows.pivot(index="seed", columns="method", values="each")[rows["method"].unique()].dropna()
    values = estimates.common(packed.to_numpy().T.ravel().tolist())
    return dict(zip(packed.columns, values.reshape(packed.shape[1], len(packed), -1), strict=True))


def ranks(ranking: pandas.DataFrame) -> pandas.DataFrame:
    """An `estimates.ranking` as a table."""
    return pandas.DataFrame({
        "PGD, averaged [%]": [f"{r['mean']:.1f} [{r['low']:.1f}, {r['high']:.1f}]" for _, r in ranking.iterrows()],
        "rank": [f"{r['rank']:g} [{r['rank_low']:g}, {r['rank_high']:g}]" for _, r in ranking.iterrows()],
        "comes first [%]": [f"{r['best']:.0f}" for _, r in ranking.iterrows()]}, index=ranking.index)


def front(points: pandas.DataFrame, x: str, y: str) -> pandas.DataFrame:
    """The rows that no other beats: none has as little of `x`, to one digit after the point, and more of `y`. In order
    of `x`."""
    ordered = points.assign(rounded=points[x].round(1)).sort_values(["rounded", y], ascending=[True, False])
    return ordered[ordered[y] > ordered[y].cummax().shift(fill_value=-np.inf)].drop(columns="rounded")


def judged(frame: pandas.DataFrame, experiment: Experiment) -> pandas.DataFrame:
    """All comparisons: every question at every cut, by accuracy under PGD with averaged gradients and by clean
    accuracy, in points, paired by seed and image. Of channels no scores are learned: there `MAGNITUDE` stands for
    `SCORES`."""
    rows, dense = [], {"method": DENSE, "cut": None}
    for cut, level in experiment.cuts:
        for name, (asked_of, statement, method, against) in QUESTIONS.items():
            against = MAGNITUDE if cut == CHANNELS and against == SCORES else against
            if not experiment.has(method) or not experiment.has(against):
                continue
            here = {"cut": cut, "level": level}
            reference = dense if against == DENSE else {"method": against} | here
            for metric, what in ((ATTACKED, "under PGD"), ("clean", "on clean images")):
                claim = Claim(id=f"{name} {named(cut, level)}" + (", clean" if metric == "clean" else ""),
                              statement=f"{asked_of}: {statement}",
                              quantity=f"accuracy {what}: {method} minus {against}",
                              unit="percentage points", direction="increase", value=None, kind="open",
                              grade="derived", source=None, margin=MARGIN,
                              margin_why="about the difference between two seeds")
                found = estimates.compared(frame, metric, {"method": method} | here, reference)
                rows.append(claims.judged(claim, found, "06_side_by_side, claims"))
    return pandas.DataFrame(rows)


def ledger(rows: pandas.DataFrame, looks: Sequence[int] = ()) -> pandas.DataFrame:
    """The comparisons under attack as one family (`claims.together`), each question in words."""
    attacked = rows[~rows["claim"].str.endswith(", clean")].reset_index(drop=True)
    name, cut = attacked["claim"].str.split(n=1).str[0], attacked["claim"].str.split(n=1).str[1]
    words = [f"{QUESTIONS[n][1][0].upper()}{QUESTIONS[n][1][1:]} ({c} removed)" for n, c in zip(name, cut, strict=True)]
    return claims.together(attacked.assign(line=attacked["claim"], words=words), looks)


def current_ledger(experiment: Experiment, store: Store) -> pandas.DataFrame:
    """The lines of the ledger by what the store can show of the experiment now."""
    return ledger(judged(experiment.measured(store), experiment), claims.looks(experiment.settings))


def in_words(ledger: pandas.DataFrame) -> pandas.DataFrame:
    """One line per question: of whom it is asked, what, and for every cut whether it holds, does not, or cannot be
    told."""
    cuts = ledger.assign(question=ledger["claim"].str.split(n=1).str[0], cut=ledger["claim"].str.split(n=1).str[1])
    said = cuts.pivot(index="question", columns="cut", values="verdict")[cuts["cut"].unique()]
    said = said.reindex([question for question in QUESTIONS if question in said.index])
    said = said.apply(lambda column: column.str.removesuffix(" at this scale")).fillna("")
    return said.assign(**{"asked of": [QUESTIONS[question][0] for question in said.index],
                          "what": [QUESTIONS[question][1] for question in said.index]})[
                              ["asked of", "what", *said.columns]]
