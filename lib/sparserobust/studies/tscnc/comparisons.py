"""What is compared in TSCNC (Feng, Lin, Gao & Wei 2025), and the claims that are judged by it."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import replace

import pandas

from sparserobust.reporting import claims, estimates, reported, tables
from sparserobust.reporting.claims import Contrast
from sparserobust.reporting.reported import Claim
from sparserobust.running.experiment import Experiment, Results
from sparserobust.studies.tscnc.report import HEAVY, KAPPA, NORMS, RELATIVE_NORMS, labels, removed
from sparserobust.studies.tscnc.runs import (
    ALL_LAYERS,
    BOTH,
    CNC,
    CONTROL,
    CONTROLS,
    DECAY,
    GATES,
    HYDRA,
    LONGER,
    LWM,
    METHODS,
    PRUNED,
    RELEASED,
    TRADES,
    TSC,
    VARIED,
    TSCNCSettings,
)
from sparserobust.studies.tscnc.slopes import KAPPA_SLOPE, OF_LIPSCHITZ, regressions, whole_seeds

OVER_NULL = "kappa log_relative_norms_over"
# of layers as they act, BatchNorm folded in and rows normalised: what it is called, metric, and
# whether its logarithm is compared
FOLDED = {"convolutions": ("kappa folded", True),
          "convolutions, floored": ("kappa folded_floored", True),
          "convolutions, deficit": ("kappa folded_deficit", False),
          "classifier": ("kappa classifier_folded", True),
          "classifier, floored": ("kappa classifier_folded_floored", True),
          "classifier, deficit": ("kappa classifier_folded_deficit", False)}
RATIO, DIFFERENCE = "log10 of the ratio", "log10"  # units
WHERE = {"C1": "table 1", "C2": "figure 1", "C3": "figure 1", "C4": "figure 6", "C5": "table 1",
         "C6": "effects", "C7": "effects", "C8": "what is not on record"}


def pairs(experiment: Experiment, net: str, level: float) -> tables.Pairs:
    """(treatment, reference) by name: what pruning does, what each constraint adds to the same
    pipeline without it."""
    at = {method: labels(net, method, level) for method in METHODS}
    at |= {TRADES: labels(net, TRADES), LONGER: labels(net, LONGER, part=CONTROL)}
    at |= {name: labels(net, name, level, VARIED) for name in (GATES, *CONTROLS)
           if experiment.rows(**labels(net, name, level, VARIED))}
    compared = [(HYDRA, TRADES), (HYDRA, LONGER), (HYDRA, LWM), (TSC, HYDRA), (CNC, HYDRA),
                (BOTH, HYDRA), (BOTH, GATES), (BOTH, DECAY), (ALL_LAYERS, HYDRA), (RELEASED, HYDRA)]
    return {f"{one} - {other}": (at[one], at[other]) for one, other in compared
            if one in at and other in at}


def effects(results: Results[TSCNCSettings], net: str) -> pandas.DataFrame:
    """The effects of all pairs in points, clean and under attack, at every level."""
    experiment = results.experiment
    at = {f"{100 * level:g} %: {name}": pair for level in experiment.settings_for(net).levels
          for name, pair in pairs(experiment, net, level).items()}
    return tables.effects(results.frame, at, {"clean": "clean", "PGD-20": "pgd20", "CW-inf": "cw"})


def growth(results: Results[TSCNCSettings], net: str) -> dict[str, float]:
    """By which factor the condition number of convolutions grows when HYDRA prunes, at the level of
    the claims, in the geometric mean over seeds: `folded`, by which claim C2 is judged; as the
    layers act; and that of the null. nan where a network has none."""
    own = results.experiment.settings_for(net)
    pair = pairs(results.experiment, net, own.primary_level)[f"{HYDRA} - {TRADES}"]
    metrics = {"folded": FOLDED["convolutions"][0], "as they act": KAPPA, "null": f"{KAPPA} null"}
    effects = {name: estimates.compared(results.frame, metric, *pair, log=True).effects
               for name, metric in metrics.items()}
    return {name: 10 ** statistics.fmean(found or [math.nan]) for name, found in effects.items()}


def growth_in_words(results: Results[TSCNCSettings], net: str) -> str:
    """The same as a sentence."""
    own, factors = results.experiment.settings_for(net), growth(results, net)
    told = ", ".join(f"{factor:.2f} times {name}" for name, factor in factors.items())
    return f"The condition number of convolutions, HYDRA, {removed(own.primary_level)}: {told}."


def judged(results: Results[TSCNCSettings]) -> pandas.DataFrame:
    """All comparisons: every claim for each net and level it speaks of; where the paper leaves open
    against what, against each of what it could mean. C4 is judged by slopes, C7 by the better of
    two constraints."""
    frame, experiment = results.frame, results.experiment
    rows = claims.judge(frame, contrasts(experiment)).to_dict("records")
    for net in experiment.nets:
        own = experiment.settings_for(net)
        for level in own.levels:
            if level >= HEAVY:
                claim = _claim("C7", f"{own.stand_in}, {100 * level:g} %")
                rows.append(claims.judged(claim, best_single(results, net, level), _where("C7")))
        seeds = len(whole_seeds(frame, net))
        for name, found in regressions(frame, net).items():
            if KAPPA_SLOPE in found.index and name != OF_LIPSCHITZ:
                slope, low, high, p = found.loc[KAPPA_SLOPE, ["slope", "low", "high", "p"]]
                claim = _slope(f"{own.stand_in}, slope: {name}")
                rows.append(claims.estimated(claim, slope, low, high, p, seeds, _where("C4")))
    return pandas.DataFrame(rows).sort_values(
        "claim", key=lambda names: names.str.split().str[0], kind="stable")


def words(experiment: Experiment[TSCNCSettings]) -> dict[str, str]:
    """What the names of the ledger's primary comparisons leave open: the network, and the level
    that this scale names for them beforehand."""
    own = experiment.settings
    return {"net": own.stand_in, "level": f"{100 * own.primary_level:g} %"}


def contrasts(experiment: Experiment[TSCNCSettings]) -> Iterator[Contrast]:
    """Comparisons of two networks: at every level what pruning does to matrices, at heavy ones what
    it does to accuracy, and what the constraints add. Condition numbers and norms are compared by
    the logarithm of their ratio, the log-determinant deficit by its difference."""
    for net in experiment.nets:
        own = experiment.settings_for(net)
        for level in own.levels:
            at, name = pairs(experiment, net, level), f"{own.stand_in}, {100 * level:g} %"
            yield from _of_matrices(name, at)
            if level >= HEAVY:
                yield from _of_pruning(name, at)
                yield from _of_constraints(name, at)
    theorem = reported.load("tscnc").claim("C8")  # what it says is not on record
    yield Contrast(theorem, "", {}, {}, _where("C8"))


def _of_matrices(name: str, at: tables.Pairs) -> Iterator[Contrast]:
    dense = at[f"{HYDRA} - {TRADES}"]
    for what, (metric, log) in FOLDED.items():
        unit = RATIO if log else DIFFERENCE
        yield _contrast("C2", f"{name}, {what}", metric, dense, unit, log)
        yield _contrast("C2", f"{name}, {what}, over null", f"{metric}_over_null", dense, unit, log)
    for what, metric in (("", NORMS), (", scale-free", RELATIVE_NORMS),
                         (", scale-free, over null", OVER_NULL)):
        yield _contrast("C3", f"{name}{what}", metric, dense, RATIO)  # they are logarithms


def _of_pruning(name: str, at: tables.Pairs) -> Iterator[Contrast]:
    for claim, metric in (("C1.clean", "clean"), ("C1.robust", "pgd20")):
        yield _contrast(claim, name, metric, at[f"{HYDRA} - {TRADES}"])
        yield _contrast(claim, f"{name}, equal training", metric, at[f"{HYDRA} - {LONGER}"])


def _of_constraints(name: str, at: tables.Pairs) -> Iterator[Contrast]:
    for what, (metric, log) in FOLDED.items():
        yield _contrast("C5", f"{name}, {what}", metric, at[f"{BOTH} - {HYDRA}"],
                        RATIO if log else DIFFERENCE, log)
    for one, other in ((BOTH, HYDRA), (BOTH, GATES), (BOTH, DECAY), (RELEASED, HYDRA),
                       (ALL_LAYERS, HYDRA)):
        if pair := at.get(f"{one} - {other}"):
            yield _contrast("C6", f"{name}, {one} against {other}", "pgd20", pair)


def _contrast(claim: str, name: str, metric: str, pair: tuple[dict, dict], unit: str = "",
              log: bool = False) -> Contrast:
    """A comparison in points, or, of what is no rate, in a unit of its own."""
    named = _claim(claim, name)
    return Contrast(replace(named, unit=unit) if unit else named, metric, *pair, _where(claim),
                    factor=1 if unit else 100, log=log)


def _claim(claim: str, name: str) -> Claim:
    """A claim under the name of a comparison."""
    return replace(reported.load("tscnc").claim(claim), id=f"{claim} {name}")


def _slope(name: str) -> Claim:
    return replace(
        _claim("C4", name), unit="standard deviations", margin=None, margin_why=None,
        quantity="standard deviations of accuracy under attack per standard deviation of log kappa")


def _where(claim: str) -> str:
    return f"05_tscnc, {WHERE[claim[:2]]}"


def best_single(results: Results, net: str, level: float) -> estimates.Comparison:
    """What TSCNC adds under PGD-20 to the better of its constraints alone, in points: the better
    one on the validation split, of the *other* seeds (`estimates.chosen_levels`), so that choosing
    it takes nothing from TSCNC."""
    at = {"net": net, "part": PRUNED, "level": level}
    values = validation(results, at)
    better = {} if values.empty else estimates.chosen_levels(values)
    rows = estimates.matching(results.frame, {"metric": "pgd20"} | at)
    run = rows.set_index(["method", "seed"])["run"].to_dict()
    return estimates.compared_runs(results.frame, "pgd20", {
        seed: (run[BOTH, seed], run[method, seed]) for seed, method in better.items()
        if {(BOTH, seed), (method, seed)} <= set(run)})


def validation(results: Results, at: dict) -> pandas.DataFrame:
    """Accuracy under attack on the validation split after the last epoch, of networks with these
    labels that had one constraint: a line per method, a column per seed."""
    found: dict[str, dict[int, float]] = {}
    for row in results.experiment.rows(**at):
        if (method := row["method"]) in (TSC, CNC):
            history = results.history(**at, method=method, seed=row["seed"])
            found.setdefault(method, {})[row["seed"]] = history[-1]["validation_robust"]
    return pandas.DataFrame.from_dict(found, orient="index").sort_index()
