"""The runs of Sparse DNNs with Improved Adversarial Robustness (Guo et al. 2018): linear
classifiers and networks, from dense to almost empty.

Of the paper's numbers only one is on record, so all settings are this project's choice.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from sparserobust.config import Recipe, Run, Sparsifier
from sparserobust.models import Winners
from sparserobust.objectives import Natural, SparseActivations
from sparserobust.running.experiment import Experiment, planned
from sparserobust.running.scales import StudySettings
from sparserobust.settings import Settings, settings, unknown
from sparserobust.sparsifiers import Dense, DynamicNetworkSurgery, Magnitude, ProximalLasso

PAPER = "sparsity_theory"
TRAININGS = ("natural", "adversarial")
TWO, TEN = "linear, two digits", "linear, ten digits"
TASKS = (TWO, TEN)  # of linear classifiers
DENSE, MAGNITUDE = "dense", "magnitude"
CONTROL = "trained on"  # as long as the pruned, but nothing pruned
ONE_SHOT = "not retrained"
LASSO, RIDGE = "lasso", "ridge"  # of linear classifiers; ridge, a dense rival, is tuned as well
SURGERY, WINNERS, L1 = "surgery", "k-winners", "L1 on activations"
VARIANTS: dict[str, dict[str, Any]] = {
    "layer by layer": {"scope": "layerwise"}, "global, last kept": {"keep_last": True},
    "layer by layer, last kept": {"scope": "layerwise", "keep_last": True}}


@settings
class Surgery(Settings):
    """Dynamic network surgery: a run for each tuple of `rates` (one rate for each layer, or one for
    all)."""

    recipe: Recipe
    stop: int
    rates: tuple[tuple[float, ...], ...] = ()


@settings
class TheorySettings(StudySettings):
    """`levels` are shares of weights to remove, one after the other. `control`: of which trainings
    there is a network that is trained as long and never pruned. Further ways to make a naturally
    trained network sparse are `one_shot`, `variants` (names in `VARIANTS`), `surgery`, `winners`
    (shares of activations that are kept) and `activation_lasso` (weights of the penalty). For
    linear classifiers: `lasso` (weights of the penalty), `ridge` (weight decay) and
    `judged_radius`, the l-infinity radius of claim C1."""

    trainings: tuple[str, ...]
    control: tuple[str, ...]
    levels: tuple[float, ...]
    fine_tuning: Recipe
    surgery: Surgery
    one_shot: bool = False
    variants: tuple[str, ...] = ()
    winners: tuple[float, ...] = ()
    activation_lasso: tuple[int | float, ...] = ()  # whole numbers stay: labels of published runs
    lasso: tuple[float, ...] = ()
    ridge: tuple[float, ...] = ()
    judged_radius: float | None = None

    def check(self):
        for key, known in (("trainings", TRAININGS), ("control", TRAININGS),
                           ("variants", VARIANTS)):
            for name in getattr(self, key):
                if name not in known:
                    unknown(key, name, self.label(), dict.fromkeys(known))


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment[TheorySettings]:
    """Everything the notebook runs at a scale, or all of it with these seeds
    (`running.experiment.planned`). Labels: `net` (the paper's, or one of `TASKS`), `ours` (what
    stands for it), `training`, `method` (how it became sparse), `level` (how much, in the method's
    own unit), `seed`."""
    return planned(PAPER, scale, seeds, TheorySettings, _rows)


def networks(experiment: Experiment[TheorySettings]) -> list[str]:
    """The networks of the grid, without the linear classifiers."""
    return [net for net in experiment.nets if net not in TASKS]


Cases = Iterator[tuple[str, float, Run]]  # method, level, run


def _rows(own: TheorySettings, net: str, seed: int, first: bool) -> Iterator[dict]:
    """Grid rows of one network and seed. Only the first seed has the variants of pruning."""
    for training in own.trainings:
        natural = training == "natural"
        dense = own.run(seed, objective=Natural() if natural else own.objective)
        cases = [*_pruned(own, training, dense), *(_compared(own, dense, first) if natural else ())]
        for method, level, run in cases:
            yield {"ours": own.stand_in, "training": training, "method": method, "level": level,
                   "run": run}


def _pruned(own: TheorySettings, training: str, dense: Run) -> Cases:
    """The dense network, the pruned ones, and those that are trained as long."""
    yield DENSE, 0.0, dense
    yield from _chain(own, dense, MAGNITUDE, Magnitude)
    if training in own.control:
        yield from _chain(own, dense, CONTROL, lambda sparsity: Dense())


def _compared(own: TheorySettings, dense: Run, first: bool) -> Cases:
    """Other ways to prune, and sparse activations; of linear classifiers the lasso and ridge."""
    if own.one_shot:
        once = replace(own.fine_tuning, epochs=0)
        for level in own.levels:
            yield ONE_SHOT, level, dense.then(recipe=once, sparsifier=Magnitude(sparsity=level))
    for method in own.variants if first else ():
        yield from _chain(own, dense, method, partial(Magnitude, **VARIANTS[method]))
    for number, rates in enumerate(own.surgery.rates, start=1):  # 0 is the dense network
        surgery = DynamicNetworkSurgery(rates=rates, stop=own.surgery.stop)
        yield SURGERY, number, dense.then(recipe=own.surgery.recipe, sparsifier=surgery)
    tuned = dense.then(recipe=own.fine_tuning)
    for share in own.winners:
        yield WINNERS, share, replace(tuned, model=Winners(model=dense.model, share=share))
    for lam in own.activation_lasso:
        penalised = SparseActivations(objective=dense.objective, lam=lam)
        yield L1, lam, replace(tuned, objective=penalised)
    for lam in own.lasso:
        yield LASSO, lam, replace(dense, sparsifier=ProximalLasso(lam=lam))
    for decay in own.ridge:
        yield RIDGE, decay, replace(dense, recipe=replace(dense.recipe, weight_decay=decay))


def _chain(own: TheorySettings, dense: Run, method: str,
           sparsifier: Callable[..., Sparsifier]) -> Cases:
    """Each run starts from the one before, is made sparser, and trained on."""
    last = dense
    for level in own.levels:
        last = last.then(recipe=own.fine_tuning, sparsifier=sparsifier(sparsity=level))
        yield method, level, last
