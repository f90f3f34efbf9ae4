"""The runs of TSCNC (Feng, Lin, Gao & Wei 2025): two constraints in adversarial training, then
pruning by learned scores. The method is known as released code; none of the paper's numbers is on
record."""

from collections.abc import Iterator
from dataclasses import field, replace
from typing import Any

from sparserobust.config import Recipe, Run
from sparserobust.running.experiment import Experiment, planned
from sparserobust.running.scales import StudySettings
from sparserobust.settings import Settings, settings
from sparserobust.sparsifiers import TSCNC, FixedMask, LearnedScores, Magnitude

TRADES, LONGER = "TRADES", "TRADES, trained on"
LWM, HYDRA, TSC, CNC, BOTH, GATES = "LWM", "HYDRA", "+TSC", "+CNC", "TSCNC", "gates alone"
METHODS = (LWM, HYDRA, TSC, CNC, BOTH)
CONTROLS = ALL_LAYERS, RELEASED, DECAY = "CNC, all layers", "TSCNC, as released", "TSC, decay alone"
PRETRAINED = {LWM: TRADES, HYDRA: TRADES}  # the dense network that a method prunes, of another name
DENSE, CONTROL, PRUNED, VARIED = "dense", "control", "pruned", "varied"
SCORES = "not fine-tuned"


@settings
class Variation(Settings):
    """A method, `of` which some settings of the constraints are changed, and the shares of weights
    that are removed from that network; of every seed, or of the first one."""

    of: str
    changes: dict[str, Any] = field(default_factory=dict)
    levels: tuple[float, ...]
    every_seed: bool = False

    def check(self):
        self.choice("of", TSC, CNC, BOTH, GATES)
        self.require(self.of != GATES or not self.changes, f"{GATES} has no constraints to change")
        TSCNC.parse(self.changes)


@settings
class StepCosts(Settings):
    """How the cost of a training step is measured: image shape (c, h, w), and how many times."""

    image_shape: tuple[int, ...]
    repeats: int


@settings
class TSCNCSettings(StudySettings):
    """`fine_tuning` includes the epochs in which scores are learned (`scores`). `levels` are shares
    of weights removed, `primary_level` is that of the ledger. `varied` is by name."""

    scores: Recipe
    fine_tuning: Recipe
    constraints: TSCNC
    levels: tuple[float, ...]
    primary_level: float
    varied: dict[str, Variation]
    step_costs: StepCosts

    def check(self):
        self.require(self.primary_level in self.levels, "primary_level is one of the levels")


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment[TSCNCSettings]:
    """Everything the notebook runs at a scale, or all of it with these seeds
    (`running.experiment.planned`). Labels: `net` (the paper's), `ours` (what stands for it), `part`
    (dense; control: dense, trained on; not fine-tuned; pruned, which is fine-tuned; varied: a
    setting of a method is changed, dense or fine-tuned), `method`, `level` (share of weights
    removed), `seed`."""
    return planned("tscnc", scale, seeds, TSCNCSettings, _rows)


def _rows(own: TSCNCSettings, net: str, seed: int, first: bool) -> Iterator[dict]:
    """Grid rows of one network and seed."""
    for part, method, level, run in (*_main(own, seed), *_varied(own, seed, first)):
        yield {"ours": own.stand_in, "part": part, "method": method, "level": level, "run": run}


def _main(own: TSCNCSettings, seed: int) -> Iterator[tuple[str, str, float, Run]]:
    """(part, method, level, run): dense networks, the control that is trained on, and all that is
    pruned from them."""
    dense = {method: pretraining(own, seed, method) for method in (TRADES, TSC, CNC, BOTH)}
    for method, run in dense.items():
        yield DENSE, method, 0.0, run
    yield CONTROL, LONGER, 0.0, dense[TRADES].then(recipe=own.fine_tuning)
    for method in METHODS:
        start = dense[PRETRAINED.get(method, method)]
        for level in own.levels:
            cut, tuned = pruned(own, start, level, by_scores=method != LWM)
            yield SCORES, method, level, cut
            yield PRUNED, method, level, tuned


def _varied(own: TSCNCSettings, seed: int, first: bool) -> Iterator[tuple[str, str, float, Run]]:
    """The same for what is varied; method is the name of the variation."""
    for name, variation in own.varied.items():
        if first or variation.every_seed:
            dense = pretraining(own, seed, variation.of, **variation.changes)
            yield VARIED, name, 0.0, dense
            for level in variation.levels:
                cut, tuned = pruned(own, dense, level)
                yield SCORES, name, level, cut
                yield VARIED, name, level, tuned


def pretraining(own: TSCNCSettings, seed: int, method: str, **changes) -> Run:
    """Stage 1: adversarial training (TRADES) with the constraints of a method, of which some
    settings may be changed. Where sparsity is constrained the network has gates; `GATES` has them
    and no constraint. Weight decay moves from the optimiser into the loss of the constraints."""
    sparse, condition = method in (TSC, BOTH), method in (CNC, BOTH)
    model: Any = own.model  # one that can have gates
    run = own.run(seed, model=replace(model, gated=sparse or method == GATES))
    if not sparse and not condition:
        return run
    without = ({} if sparse else {"sparse": 0}) | ({} if condition else {"condition": 0})
    decay = {"weight_decay": run.recipe.weight_decay}
    return replace(run, recipe=replace(run.recipe, weight_decay=0),
                   sparsifier=replace(own.constraints, **(decay | without | changes)))


def pruned(own: TSCNCSettings, dense: Run, level: float, by_scores: bool = True) -> tuple[Run, Run]:
    """Stages 2 and 3: without fine-tuning, and with it. Scores get some of the epochs; by least
    magnitude, layer by layer, there is nothing to train before."""
    if by_scores:
        cut = dense.then(recipe=own.scores, sparsifier=LearnedScores(sparsity=level))
    else:
        cut = dense.then(recipe=replace(own.fine_tuning, epochs=0),
                         sparsifier=Magnitude(sparsity=level, scope="layerwise"))
    rest = replace(own.fine_tuning, epochs=own.fine_tuning.epochs - cut.recipe.epochs)
    return cut, cut.then(recipe=rest, sparsifier=FixedMask())
