"""What is compared for each claim of Guo et al. 2018, and at which level of sparsity: one that is
chosen on the validation split, by the other seeds."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product

import pandas

from sparserobust.reporting import claims, estimates, reported
from sparserobust.reporting.claims import Contrast
from sparserobust.reporting.estimates import Comparison, compared, compared_runs, matching
from sparserobust.reporting.reported import Claim
from sparserobust.running.experiment import Experiment, Results
from sparserobust.studies.sparsity_theory.runs import (
    CONTROL,
    DENSE,
    L1,
    LASSO,
    MAGNITUDE,
    PAPER,
    RIDGE,
    TASKS,
    TRAININGS,
    TWO,
    TheorySettings,
    networks,
)

Columns = dict[str, tuple[str, float]]  # heading to metric and factor: 100 for rates, in percent
LINF: Columns = {"FGSM": ("fgsm", 100), "rFGSM": ("rfgsm", 100), "PGD-40": ("pgd40", 100)}
L2: Columns = {"DeepFool": ("deepfool", 1), "C&W": ("cw", 1)}
HEAVY = 0.9  # share of weights that goes without loss of accuracy, according to claim C7
AS_DENSE = {"method": DENSE, "level": 0.0}
WHERE = {"C1": "figure 1", "C2": "figure 1", "C3": "figure 2", "C4": "figure 2",
         "C5": "theorem 3.2", "C6": "figure 3", "C7": "figure 2"}
EXTREME = "r_2 or r_inf: extreme sparsity minus dense"
LIGHTER = "clean accuracy with 90 % of the weights removed, minus dense"


def words(experiment: Experiment) -> dict[str, str]:
    """What fills the holes in the names of primary comparisons."""
    return {"two": TWO}


# ----------------------------------------------------------------------------------------- levels


def by_seed(frame: pandas.DataFrame, metric: str, **labels) -> pandas.DataFrame:
    """Values of a metric, a row per level, a column per seed."""
    chosen = matching(frame, {"metric": metric} | labels)
    values = chosen.pivot(index="level", columns="seed", values="value")
    return values.astype(float).sort_index()


def chosen_levels(frame: pandas.DataFrame, metric: str, **labels) -> dict[int, float]:
    """For each seed the level at which a method is judged: the best one on the validation split, of
    the other seeds (`estimates.chosen_levels`). Under l-infinity attacks PGD-40 chooses, under l2
    attacks DeepFool; of linear classifiers the quantity itself. Empty where nothing was measured on
    the validation split."""
    if metric.startswith("linear"):
        name = metric.replace("linear", "validation", 1)
    else:
        linf = metric in {name for name, _ in LINF.values()}
        name = "validation linf" if linf else "validation l2"
    validation = by_seed(frame, name, **labels)
    return {} if validation.empty else estimates.chosen_levels(validation)


def falls_below(frame: pandas.DataFrame, metric: str, labels: dict) -> float | None:
    """The first level beyond the best one (the dense one, if none is better) at which pruned networks
    lie below the dense ones by more than chance: the 95 % interval of the difference lies below
    zero. None if there is no such level, as with fewer than three seeds."""
    mean, dense = (by_seed(frame, metric, **labels, method=method).mean(axis=1) for method in (MAGNITUDE, DENSE))
    if mean.empty or dense.empty:
        return None
    for level in mean.index[mean.index > mean.idxmax()] if mean.max() >= dense.iloc[0] else mean.index:
        found = compared(frame, metric, labels | {"method": MAGNITUDE, "level": level}, labels | AS_DENSE)
        if found.estimate and found.estimate.interval()[1] < 0:
            return float(level)
    return None


def gain(frame: pandas.DataFrame, metric: str, labels: dict, reference: dict, factor: float,
         method: str = MAGNITUDE) -> Comparison:
    """A method at the level that is chosen for each seed, minus a reference: at a level that it
    names, or, of a rival that is tuned as well, at those chosen for it, or else at the same."""
    levels = chosen_levels(frame, metric, method=method, **labels)
    if not levels:
        return Comparison(None, [], "no level was chosen on the validation split")
    treated, rivals = _runs(frame, labels | {"method": method}, levels), labels | reference
    tuned = reference["method"] == RIDGE
    others = _runs(frame, rivals, chosen_levels(frame, metric, **rivals) if tuned else levels)
    pairs = {seed: (treated[seed], others[seed]) for seed in treated if seed in others}
    return compared_runs(frame, metric, pairs, factor)


def _runs(frame: pandas.DataFrame, labels: dict, levels: dict[int, float]) -> dict[int, str]:
    """Seed to run of the rows with these labels, at the level of each seed unless the labels name
    one."""
    rows = matching(frame, labels).drop_duplicates(["seed", "level"])
    return {row["seed"]: row["run"] for row in rows.to_dict("records")
            if "level" in labels or levels.get(row["seed"]) == row["level"]}


# --------------------------------------------------------------------------------------- verdicts


def judged(results: Results[TheorySettings]) -> pandas.DataFrame:
    """All comparisons: the paper's claims, for each network and attack; where the paper leaves open
    what is compared, rows of this project's own: against a dense network that is trained as long,
    or tuned as well, and for adversarially trained networks. C5.linf has no row: no weight returns,
    so the mean bound falls by construction."""
    fixed = claims.judge(results.frame, contrasts(results.experiment)).to_dict("records")
    ran = [row for row in fixed if row["n_seeds"]]
    rows = pandas.DataFrame([*ran, *_gains(results), *_falling_bounds(results)])
    return rows.sort_values("claim", key=lambda names: names.str.split().str[0], kind="stable",
                            ignore_index=True)


def contrasts(experiment: Experiment[TheorySettings]) -> Iterator[Contrast]:
    """What is compared with the dense network at a level that is known beforehand: the highest (a
    stricter question than C4, which is about the best level), or 90 % (C7)."""
    attacks = LINF | L2
    for net, attack in product(networks(experiment), attacks):
        (metric, factor), own = attacks[attack], {"net": net, "training": "natural"}
        yield Contrast(_said("C4", f"{net}, {attack}, against dense", factor, EXTREME), metric,
                       own | _sparsest(experiment, net), own | AS_DENSE, _where("C4"), factor)
    for net in networks(experiment):
        own = {"net": net, "training": "natural"}
        pruned, longer = ({"method": method, "level": HEAVY} for method in (MAGNITUDE, CONTROL))
        for name, reference in ((net, AS_DENSE), (f"{net}, equal training", longer)):
            yield Contrast(_said("C7", name, 100, LIGHTER), "clean", own | pruned, own | reference,
                           _where("C7"))


def _sparsest(experiment: Experiment[TheorySettings], net: str) -> dict:
    return {"method": MAGNITUDE, "level": max(experiment.settings_for(net).levels)}


def _gains(results: Results[TheorySettings]) -> Iterator[dict]:
    """Rows of what is compared at levels that are chosen on the validation split."""
    frame, experiment = results.frame, results.experiment

    def row(claim: str, name: str, factor: float, metric: str, labels: dict, reference: dict,
            method: str = MAGNITUDE) -> dict:
        found = gain(frame, metric, labels, reference, factor, method)
        return claims.judged(_said(claim, name, factor), found, _where(claim))

    for task, method in product(TASKS, (LASSO, MAGNITUDE)):
        radius, own = experiment.settings_for(task).judged_radius, {"net": task}
        # C2 says that the dense classifier is no worse: what counts is the loss
        for claim, metric, sign in (("C1", f"linear r_inf {radius:g}", 100), ("C2", "linear", -1)):
            name = f"{task}, {method}"
            yield row(claim, name, sign, metric, own, AS_DENSE, method)
            if chosen_levels(frame, metric, method=RIDGE, **own):
                ridge = {"method": RIDGE}
                yield row(claim, f"{name}, against ridge", sign, metric, own, ridge, method)
    attacks = LINF | L2
    for net, training, attack in product(networks(experiment), TRAININGS, attacks):
        (metric, factor), own = attacks[attack], {"net": net, "training": training}
        measured = set(matching(frame, own | {"metric": metric})["method"])
        if MAGNITUDE not in measured:
            continue
        claim, name = "C3.inf" if attack in LINF else "C3.l2", f"{net}, {attack}"
        name += ", adversarial" if training == "adversarial" else ""
        yield row(claim, name, factor, metric, own, AS_DENSE)
        if training == "natural":  # what counts is what the sparsest network loses of the best one's
            yield row("C4", name, -factor, metric, own, _sparsest(experiment, net))
        if CONTROL in measured:
            yield row(claim, f"{name}, equal training", factor, metric, own, {"method": CONTROL})
        if {CONTROL, L1} <= measured:  # k-winners mask their gradients: nothing to judge by
            once = {"method": CONTROL, "level": min(experiment.settings_for(net).levels)}
            yield row("C6", f"{net}, {L1}, {attack}", factor, metric, own, once, L1)


def _falling_bounds(results: Results[TheorySettings]) -> Iterator[dict]:
    """A row for each network with random masks: whether the mean bound falls at every step."""
    claim = reported.load(PAPER).claim("C5.l2")
    for net, found in random_masks(results).items():
        paths = [norms["l2"] for result in found
                 for norms in (result["joint"], *result["single"].values())]
        falls = [after < before for path in paths for before, after in pairwise([1.0, *path])]
        said = replace(claim, id=f"C5.l2 {net}", unit="percent of steps", quantity=(
            "steps to a higher sparsity, of one layer or all, at which the mean bound falls"))
        yield claims.judge_universal(said, sum(falls), len(falls), len(found), _where("C5"))


def random_masks(results: Results) -> dict[str, list[dict]]:
    """`RandomMasks` results of each network, one for each seed."""
    found: dict[str, list[dict]] = {}
    for row, result in results.details("random_masks"):
        found.setdefault(row["net"], []).append(result)
    return found


def _said(claim: str, name: str, factor: float, quantity: str | None = None) -> Claim:
    """A claim about one thing, `name`, whose number the paper does not have; in points or as a
    distance."""
    record = reported.load(PAPER)
    original, like = record.claim(claim), record.claim("C3.inf" if abs(factor) == 100 else "C3.l2")
    return replace(original, id=f"{claim} {name}", value=None, lower_bound=False, unit=like.unit,
                   margin=like.margin, margin_why=like.margin_why,
                   quantity=quantity or original.quantity)


def _where(claim: str) -> str:
    return f"04_sparsity_theory, {WHERE[claim.partition('.')[0]]}"
