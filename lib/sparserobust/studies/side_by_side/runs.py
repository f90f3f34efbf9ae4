"""All five papers on one network, one data set and one training budget: not a paper, but the
question that they share.

A method is a way to get from nothing to a network of which a share of the weights, or of the inner
channels, is left: some training, a cut, some training of what is left. All methods take as many
gradients per training image (`budget`), and are cut to the same number of remaining weights, or to
the same number of remaining channels in each layer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from sparserobust import data
from sparserobust.config import Data, Dense, Inheritance, Recipe, Run, Sparsifier
from sparserobust.errors import UserError
from sparserobust.models import NoisyWeights, PreActResNet
from sparserobust.running.experiment import Experiment, planned
from sparserobust.running.scales import StudySettings
from sparserobust.settings import Settings, settings, unknown
from sparserobust.sparsifiers import (
    RGSM,
    RVSM,
    TSCNC,
    Channels,
    FixedMask,
    Lasso,
    LearnedScores,
    Magnitude,
    Ticket,
)

WEIGHTS, CHANNELS = "weights", "channels"  # what is cut
DENSE = "dense"
SMALL, ONE_SHOT, MAGNITUDE = "small from the start", "one shot", "magnitude"
SCORES, SPLITTING, FK = "learned scores", "splitting", "noisy ensemble, split"
TICKET, IWI, LASSO, RSR = "lottery ticket", "IWI", "lasso", "RSR"
GRADUAL, CONSTRAINED = "step by step", "TSCNC"
METHODS = (SMALL, ONE_SHOT, MAGNITUDE, SCORES, SPLITTING, FK, TICKET, IWI, LASSO, RSR, GRADUAL,
           CONSTRAINED)
PAPERS = {FK: "Dinh et al. 2020", SPLITTING: "Dinh et al. 2020", IWI: "Wang et al. 2020",
          TICKET: "Wang et al. 2020", LASSO: "Rakin et al. 2019", RSR: "Rakin et al. 2019",
          GRADUAL: "Guo et al. 2018", CONSTRAINED: "Feng et al. 2025"}


@settings
class Splittings(Settings):
    """Relaxed splitting of single weights and of channels."""

    weights: RVSM
    channels: RGSM | None = None  # only needed where channels are cut


@settings
class MethodSettings(Settings):
    """What the methods set, each for itself."""

    members: int  # networks in the ensemble
    noise: float  # of its activations
    kappa: float  # of `Inheritance`
    score_epochs: int  # of the epochs after a cut: those in which scores are learned
    ticket_epochs: int  # of all epochs: those of the network that gives the ticket's mask
    narrow_epochs: int  # of the epochs before a cut: those of the narrow network
    steps: int  # step by step: cuts before the last one, each followed by one epoch
    lasso: float  # lambda
    splitting: Splittings
    constraints: TSCNC


@settings
class SideBySideSettings(StudySettings):
    """Two kinds of cuts at several levels, the budget, and what each method sets."""

    model: PreActResNet
    only: tuple[str, ...] = METHODS  # the methods that a scale has, besides the dense network
    after_cut: Recipe  # how long and how fast after a cut; `recipe` is the whole budget
    weights: tuple[float, ...]  # shares of the weights that are removed
    channels: tuple[float, ...] = ()  # shares of the inner channels of each layer
    methods: MethodSettings

    def check(self):
        for name in self.only:
            if name not in METHODS:
                unknown("method", name, "only", dict.fromkeys(METHODS))
        self.require(not self.channels or self.methods.splitting.channels is not None,
                     "channels are cut: methods, splitting needs settings for channels, too")

    @property
    def cuts(self) -> list[tuple[str, float]]:
        """What is cut, and which share of it."""
        return [*((WEIGHTS, level) for level in self.weights),
                *((CHANNELS, level) for level in self.channels)]

    def has(self, method: str) -> bool:
        """Whether the scale has a method."""
        return method in (DENSE, *self.only)

    @property
    def before_cut(self) -> int:
        """Epochs."""
        return self.recipe.epochs - self.after_cut.epochs

    def trained(self, seed: int, epochs: int, **changes) -> Run:
        """A run of so many epochs, from nothing, with some of its parts changed."""
        return self.run(seed, **({"recipe": replace(self.recipe, epochs=epochs)} | changes))

    def after(self, start: Run, sparsifier: Sparsifier, epochs: int | None = None) -> Run:
        """`start`, trained further under a sparsifier for so many epochs (None: all that follow a
        cut)."""
        epochs = self.after_cut.epochs if epochs is None else epochs
        return start.then(sparsifier=sparsifier, recipe=replace(self.after_cut, epochs=epochs))


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment[SideBySideSettings]:
    """Everything the notebook runs at a scale, or all of it with these seeds
    (`running.experiment.planned`). Labels: `method`, `cut` (weights or channels; of the dense
    network None), `level` (share removed, in numbers of the one dense network), `seed`."""
    return planned("side_by_side", scale, seeds, SideBySideSettings, _rows)


def _rows(own: SideBySideSettings, net: str, seed: int, first: bool) -> Iterator[dict]:
    yield {"method": DENSE, "cut": None, "level": 0.0, "run": own.run(seed)}
    for cut, level in own.cuts:
        for method, run in _methods(own, seed, cut, level):
            if own.has(method):
                yield {"method": method, "cut": cut, "level": level, "run": run}


def _methods(own: SideBySideSettings, seed: int, cut: str,
             level: float) -> Iterator[tuple[str, Run]]:
    """Every method at one level, and the run that ends it. Each takes the whole budget."""
    whole, before, kept = own.recipe.epochs, own.before_cut, own.after_cut.epochs
    asked, model = own.methods, own.model
    usual = own.trained(seed, before)

    def tuned(start: Run, criterion: str = "filters") -> Run:
        return own.after(start, pruner(cut, level, criterion))

    def scored(start: Run) -> Run:
        chosen = own.after(start, LearnedScores(sparsity=level), asked.score_epochs)
        return own.after(chosen, FixedMask(), kept - asked.score_epochs)

    if cut == WEIGHTS:
        yield SMALL, own.run(seed, model=small_model(model, level, own.data))
    else:  # the architecture that all are cut to, its channels chosen by their first weights
        yield SMALL, own.run(seed, start=own.trained(seed, 0), sparsifier=pruner(cut, level))
    yield ONE_SHOT, own.after(own.run(seed), pruner(cut, level), 0)
    yield MAGNITUDE, tuned(usual)
    if cut == WEIGHTS:
        yield SCORES, scored(usual)

    splitting = getattr(asked.splitting, cut)
    yield SPLITTING, tuned(replace(usual, sparsifier=splitting), "readers")
    members = asked.members  # each costs a gradient of its own, and brings weights of its own
    ensemble = own.trained(seed, before // members, sparsifier=splitting,
                           model=replace(model, members=members, noise=asked.noise))
    each = pruner(cut, 1 - (1 - level) / members, "readers")
    yield FK, own.after(ensemble, each, kept // members)

    mask = own.after(own.trained(seed, asked.ticket_epochs), pruner(cut, level), 0)
    yield TICKET, own.trained(seed, whole - asked.ticket_epochs, sparsifier=Ticket(pruned=mask))
    narrow = own.trained(seed, asked.narrow_epochs, model=replace(model, width=model.width // 2))
    yield IWI, tuned(own.trained(seed, before - asked.narrow_epochs, start=narrow,
                                 inheritance=Inheritance(kappa=asked.kappa)))

    lasso = replace(usual, sparsifier=Lasso(lam=asked.lasso))
    yield LASSO, tuned(lasso)
    yield RSR, tuned(replace(lasso, model=NoisyWeights(model=model)))

    stepped = own.trained(seed, before - asked.steps)
    for step in range(1, asked.steps + 1):
        part = 1 - (1 - level) ** (step / (asked.steps + 1))
        stepped = own.after(stepped, pruner(cut, part), 1)
    yield GRADUAL, tuned(stepped)

    # weight decay moves from the optimiser into the loss of the constraints
    constraints = replace(asked.constraints, weight_decay=own.recipe.weight_decay)
    constrained = replace(usual, model=replace(model, gated=True), sparsifier=constraints,
                          recipe=replace(usual.recipe, weight_decay=0))
    yield CONSTRAINED, scored(constrained) if cut == WEIGHTS else tuned(constrained)


def pruner(cut: str, level: float, criterion: str = "filters") -> Sparsifier:
    """What removes the share `level` of a network's weights, or of the inner channels of each
    layer."""
    if cut == WEIGHTS:
        return Magnitude(sparsity=level)
    return Channels(share=level, criterion=criterion)


def small_model(model: PreActResNet, level: float, images: Data) -> PreActResNet:
    """`model` with narrower stages: as many convolution and linear weights as a cut at `level` (the
    share that is removed) leaves of it. Among all widths whose count is within 1 % of that, the
    ones whose proportions are closest to those of `model`: with the least ratio of the largest to
    the smallest of the three quotients new width / old width.

    `UserError` where no count is within 1 %, or where it is not known what the images are."""
    if images.name not in data.IMAGES:
        raise UserError(f"'{SMALL}' is known for {', '.join(data.IMAGES)}, not for {images.name}: "
                        "choose one of these in the settings file")
    if not 0 <= level < 1:
        raise UserError(f"a level is the share of weights removed, in [0, 1), not {level:g}")
    channels, classes = data.channels(images), data.classes(images)
    dense = model.weights(channels, classes)
    left = dense - round(level * dense)
    about = [int(width * (1 - level) ** 0.5) for width in model.stages]  # counts grow with width^2
    ranges = [np.arange(max(1, w - 4 - w // 8), w + 5 + w // 8) for w in about]
    widths = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3)
    counts = model.weights(channels, classes, widths.T)
    missed = np.abs(counts - left)
    if missed.min() > 0.01 * left:
        raise UserError(f"a cut at level {level:g} leaves {left} weights; no '{SMALL}' network "
                        f"comes within 1 % of that (nearest: {counts[missed.argmin()]}): choose "
                        "another level, or a wider network")
    quotients = widths / model.stages
    distortion = quotients.max(1) / quotients.min(1)
    distortion[missed > 0.01 * left] = np.inf
    best = np.lexsort((missed, distortion))[0]
    return replace(model, width=PreActResNet.width, widths=widths[best].tolist())


def join(experiment: Experiment[SideBySideSettings], method: str,
         sparsifier: Callable[[str, float], Sparsifier], seeds: Sequence[int] | None = None,
         cuts: Sequence[str] = (WEIGHTS, CHANNELS), before: Sparsifier | None = None) -> list[dict]:
    """Grid rows of a method of the reader's own, at every level of these cuts and with these seeds
    (None: all of the experiment): the usual training, with the sparsifier `before` if it needs one,
    then what `sparsifier(cut, level)` makes of it in the epochs that follow a cut. What is measured
    is what is measured of `MAGNITUDE`. The rows are added to the grid of the experiment."""
    own, rows = experiment.settings, []
    for row in experiment.rows(method=MAGNITUDE):
        if row["cut"] in cuts and row["seed"] in (experiment.seeds if seeds is None else seeds):
            start = own.trained(row["seed"], own.before_cut, sparsifier=before or Dense())
            run = own.after(start, sparsifier(row["cut"], row["level"]))
            rows.append(row | {"method": method, "run": run})
    experiment.grid.extend(rows)
    return rows


def budget(run: Run) -> float:
    """Gradients taken per training image, of a run and all it begins with: forward and backward
    passes of the attack and of the step, of each member of an ensemble."""
    return sum(r.recipe.trained_epochs * r.objective.cost * getattr(r.model, "members", 1)
               for r in run.lineage)
