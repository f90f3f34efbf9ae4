"""The five papers' methods and what anybody would try today, in one ring: the same network and images,
the same budget but for one control (`LONGER_ENSEMBLE`), cut to the same size, and each tuned on a
validation grid of the same size."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, Self

from sparserobust.analysis import MaskOverlap
from sparserobust.config import Data, Dense, Objective, Recipe, Run
from sparserobust.objectives import NFGSM
from sparserobust.running.experiment import Experiment, planned
from sparserobust.running.sweep import Grid
from sparserobust.settings import Settings, settings, unknown
from sparserobust.sparsifiers import (
    DynamicSparse,
    LearnedRates,
    LearnedScores,
    Magnitude,
    OnlyNorms,
    SharpScores,
)
from sparserobust.studies import methods
from sparserobust.studies.methods import (
    DENSE,
    SCORES,
    WAYS,
    WEIGHTS,
    ContestSettings,
    MethodSettings,
    Way,
    pruner,
    scored,
    split_ensemble,
)
from sparserobust.studies.questions import ATTACKED

TWO_STAGES = "dense, in two stages"  # the control: trained as what is cut, and not cut
UNIFORM, ERK = "magnitude, layer by layer", "magnitude, ERK"
RATES, SHARP = "learned rates", "sharp scores"
DYNAMIC, REDRAWN, FIXED = "dynamic", "dynamic, grown at random", "sparse, mask fixed"
NFGSM_TRAINED, AVERAGED = "N-FGSM", "averaged weights"
NORMS, LONGER_ENSEMBLE = "one shot, norms recomputed", "noisy ensemble, equal epochs"
RING, OVERFITTING, STABILITY = "ring", "overfitting", "stability"  # parts of the grid


@settings
class RingMethods(MethodSettings):
    """What the ring's own methods set besides; the `sparsity` of each is that of the cut."""

    rates: LearnedRates
    sharp: SharpScores
    dynamic: DynamicSparse
    noisy_step: NFGSM
    averaging: float


@settings
class Overfitting(Settings):
    """Training so long that the last epoch is worse than the best one, dense and sparse."""

    data: Data
    objective: Objective
    recipe: Recipe
    dynamic: DynamicSparse


@settings
class RingSettings(ContestSettings):
    """The contest, with what each method tries. `candidates` are, for each method, settings to
    change, one after another: the first is that of the ring, as it was the best of them on the
    validation images of the runs with `tuning_seeds` (`benchmarks/tuning.py`)."""

    ways: ClassVar[dict[str, Way]] = dict(WAYS)

    methods: RingMethods
    primary: float  # of `weights`: the level at which claims are judged, and methods tuned
    candidates: dict[str, tuple[dict[str, Any], ...]]  # none: one has been chosen
    tuning_seeds: tuple[int, ...]
    tuned_at: str  # the scale at which they were tried
    stability_epochs: int  # in which scores are learned, twice
    overfitting: Overfitting

    def check(self):
        super().check()
        for method in self.candidates:
            if method not in self.ways:
                unknown("method", method, "candidates", self.ways)
        self.require(self.primary in self.weights, "primary is one of the levels of weights")
        sizes = {len(tried) for tried in self.candidates.values()}
        self.require(len(sizes) < 2, "each method has as many candidates as any other")
        for method in self.ways if self.candidates else ():
            self.require(method in self.candidates, f"candidates of '{method}' are missing")
            self.tried(method)

    def of(self, method: str) -> Self:
        return changed(replace(self, candidates={}), self.candidates[method][0])

    def tried(self, method: str) -> list[Self]:
        """The settings with each of the candidates of a method."""
        chosen = replace(self, candidates={})
        return [changed(chosen, changes) for changes in self.candidates[method]]


def changed(one: Any, changes: Mapping) -> Any:
    """Settings with others for some of their values, or of those within; a `UserError` names a key
    that they do not have."""
    known = {f.name: None for f in fields(one)}
    for key in changes:
        if key not in known:
            unknown("setting", key, type(one).label(), known)
    return replace(one, **{key: changed(getattr(one, key), value) if isinstance(value, Mapping)
                           else value for key, value in changes.items()})


# -------------------------------------------------------------------------------------------- ways


def way(method: str, paper: str = "", cuts: tuple[str, ...] = (WEIGHTS, methods.CHANNELS)):
    """A method that the ring has, and no other contest."""
    return methods.way(method, paper, cuts, RingSettings.ways)


@way(UNIFORM, cuts=(WEIGHTS,))
def uniform(own: RingSettings, seed: int, cut: str, level: float) -> Run:
    return own.after(own.usual(seed), Magnitude(sparsity=level, scope="layerwise"))


@way(ERK, "Evci et al. 2020", cuts=(WEIGHTS,))
def erk(own: RingSettings, seed: int, cut: str, level: float) -> Run:
    return own.after(own.usual(seed), Magnitude(sparsity=level, scope="erk"))


@way(RATES, "Zhao & Wressnegger 2023", cuts=(WEIGHTS,))
def learned_rates(own: RingSettings, seed: int, cut: str, level: float) -> Run:
    return scored(own, own.usual(seed), replace(own.methods.rates, sparsity=level))


@way(SHARP, "Piras et al. 2025", cuts=(WEIGHTS,))
def sharp_scores(own: RingSettings, seed: int, cut: str, level: float) -> Run:
    return scored(own, own.usual(seed), replace(own.methods.sharp, sparsity=level))


@way(DYNAMIC, "Chen et al. 2022", cuts=(WEIGHTS,))
def dynamic(own: RingSettings, seed: int, cut: str, level: float) -> Run:
    return own.run(seed, sparsifier=replace(own.methods.dynamic, sparsity=level))


@way(REDRAWN, "Mocanu et al. 2018", cuts=(WEIGHTS,))
def redrawn(own: RingSettings, seed: int, cut: str, level: float) -> Run:
    grown = replace(own.methods.dynamic, sparsity=level, growth="random")
    return own.run(seed, sparsifier=grown)


@way(NFGSM_TRAINED, "de Jorge et al. 2022")
def noisy_steps(own: RingSettings, seed: int, cut: str, level: float) -> Run:
    start = own.usual(seed, objective=own.methods.noisy_step)
    return own.after(start, pruner(cut, level))


@way(AVERAGED)
def averaged(own: RingSettings, seed: int, cut: str, level: float) -> Run:
    start = own.usual(seed)
    start = replace(start, recipe=replace(start.recipe, averaging=own.methods.averaging))
    return own.after(start, pruner(cut, level))


@way(NORMS)
def norms_recomputed(own: RingSettings, seed: int, cut: str, level: float) -> Run:
    # the last epoch of the budget goes into statistics
    start = own.trained(seed, own.recipe.epochs - 1)
    return own.after(own.after(start, pruner(cut, level), 0), OnlyNorms(), 1)


@way(LONGER_ENSEMBLE, "Dinh et al. 2020")
def longer_ensemble(own: RingSettings, seed: int, cut: str, level: float) -> Run:
    return split_ensemble(own, seed, cut, level, dearer=own.methods.members)


# -------------------------------------------------------------------------------------------- grid


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment[RingSettings]:
    """Everything the notebook runs at a scale, or all of it with these seeds
    (`running.experiment.planned`). Labels: `part`, `method`, `cut` (weights or channels; of dense
    networks None), `level` (share removed, in numbers of the one dense network), `seed`; in the
    part `overfitting`, which epoch is `kept`, best or last."""
    return planned("ring", scale, seeds, RingSettings, _rows)


def tuning(scale: str) -> Grid:
    """Every candidate of every method at the primary cut, with the tuning seeds. Labels: `method`,
    `changes` (`as_text`), `seed`; under `validation` the accuracy under attack is measured, on
    validation images."""
    ring = experiment(scale)
    own, attacked = ring.settings, ring.measurement(ATTACKED)
    measured = {"validation": replace(attacked, split="validation", images=None)}
    return [{"method": method, "changes": as_text(changes), "seed": seed, "measurements": measured,
             "run": found.run(tried, seed, WEIGHTS, own.primary)}
            for seed in own.tuning_seeds for method, found in own.ways.items()
            for changes, tried in zip(own.candidates[method], own.tried(method), strict=True)]


def as_text(changes: Mapping) -> str:
    """A candidate's changes as they are recorded."""
    return json.dumps(changes, sort_keys=True)


def _rows(own: RingSettings, net: str, seed: int, first: bool) -> Iterator[dict]:
    whole = {"part": RING, "cut": None, "level": 0.0}
    yield whole | {"method": DENSE, "run": own.run(seed)}
    tuned = own.of(methods.MAGNITUDE)  # so that it differs from what is cut in nothing else
    yield whole | {"method": TWO_STAGES, "run": tuned.after(tuned.usual(seed), Dense())}
    for row in own.cut_rows(seed):
        yield {"part": RING} | row
    yield from _overfitting(own.overfitting, own, seed)
    yield from _stability(own, seed)


def _overfitting(asked: Overfitting, own: RingSettings, seed: int) -> Iterator[dict]:
    """Each network twice: of the epoch that was best on the validation images, and of the last."""
    fixed = replace(asked.dynamic, share=0.0)
    for method, sparsifier in ((DENSE, Dense()), (DYNAMIC, asked.dynamic), (FIXED, fixed)):
        for kept in ("best", "last"):
            recipe = replace(asked.recipe, select=kept, watched=True)
            run = own.run(seed, data=asked.data, objective=asked.objective, recipe=recipe,
                          sparsifier=sparsifier)
            dense = method == DENSE
            yield {"part": OVERFITTING, "method": method, "cut": None if dense else WEIGHTS,
                   "level": 0.0 if dense else asked.dynamic.sparsity, "kept": kept, "run": run}


def _stability(own: RingSettings, seed: int) -> Iterator[dict]:
    """Scores learned twice of one trained network: how alike are the masks of two seeds, and those
    of the last two epochs?"""
    level, epochs = own.primary, own.stability_epochs
    for method, scores in ((SCORES, LearnedScores(sparsity=level)),
                           (SHARP, replace(own.of(SHARP).methods.sharp, sparsity=level)),
                           (RATES, replace(own.of(RATES).methods.rates, sparsity=level))):
        run = own.after(own.usual(seed), scores, epochs)
        other = replace(run, seed=seed + 1000)
        earlier = replace(run, recipe=replace(run.recipe, stop=epochs - 1))
        yield {"part": STABILITY, "method": method, "cut": WEIGHTS, "level": level, "run": run,
               "measurements": {"seeds": MaskOverlap(other=other),
                                "epochs": MaskOverlap(other=earlier)}}
