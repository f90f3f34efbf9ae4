"""Ways to get from nothing to a network of which a share of the weights, or of the inner channels,
is left: some training, a cut, some training of what is left.

Each way is one function, which is listed in `WAYS` under the name of its method. All take as many
gradients per training image (`budget`), and cut to the same number of remaining weights, or to the
same number of remaining channels in each layer. A study has some of these ways, and may have more
of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sparserobust import data
from sparserobust.config import Data, Dense, Inheritance, Recipe, Run, Sparsifier
from sparserobust.errors import UserError
from sparserobust.models import NoisyWeights, PreActResNet
from sparserobust.running.experiment import Experiment
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


class Way(NamedTuple):
    """How a method gets to a cut network. `run(own, seed, cut, level)` is the run that ends it."""

    run: "Callable[[Any, int, str, float], Run]"  # own: ContestSettings, or a study's own form of it
    paper: str
    cuts: tuple[str, ...]  # what it can cut


WAYS: dict[str, Way] = {}


def way(method: str, paper: str = "", cuts: Sequence[str] = (WEIGHTS, CHANNELS),
        ways: dict[str, Way] = WAYS) -> Callable:
    """List a function among the `ways`, as that of a method."""
    def listed(function: Callable) -> Callable:
        ways[method] = Way(function, paper, tuple(cuts))
        return function
    return listed


# ----------------------------------------------------------------------------------------- settings


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
class ContestSettings(StudySettings):
    """Two kinds of cuts at several levels, the budget, and what each method sets."""

    ways: ClassVar[Mapping[str, Way]] = WAYS

    model: PreActResNet
    only: tuple[str, ...] = ()  # the methods that a scale has, besides dense networks; none: all
    after_cut: Recipe  # how long and how fast after a cut; `recipe` is the whole budget
    weights: tuple[float, ...]  # shares of the weights that are removed
    channels: tuple[float, ...] = ()  # shares of the inner channels of each layer
    methods: MethodSettings

    def check(self):
        for name in self.only:
            if name not in self.ways:
                unknown("method", name, "only", self.ways)
        self.require(not self.channels or self.methods.splitting.channels is not None,
                     "channels are cut: methods, splitting needs settings for channels, too")

    @property
    def cuts(self) -> list[tuple[str, float]]:
        """What is cut, and which share of it."""
        return [*((WEIGHTS, level) for level in self.weights),
                *((CHANNELS, level) for level in self.channels)]

    def has(self, method: str, cut: str = WEIGHTS) -> bool:
        """Whether the scale has a method, and that can cut weights, or channels."""
        if method not in self.ways:
            return True  # a dense network
        return method in (self.only or self.ways) and cut in self.ways[method].cuts

    def paper(self, method: str) -> str:
        """Whose method it is; "" for what is nobody's."""
        return self.ways[method].paper if method in self.ways else ""

    @property
    def before_cut(self) -> int:
        """Epochs."""
        return self.recipe.epochs - self.after_cut.epochs

    def of(self, method: str) -> "ContestSettings":
        """The settings as a method has them."""
        return self

    def trained(self, seed: int, epochs: int, **changes) -> Run:
        """A run of so many epochs, from nothing, with some of its parts changed."""
        return self.run(seed, **({"recipe": replace(self.recipe, epochs=epochs)} | changes))

    def after(self, start: Run, sparsifier: Sparsifier, epochs: int | None = None) -> Run:
        """`start`, trained further under a sparsifier for so many epochs (None: all that follow a
        cut)."""
        epochs = self.after_cut.epochs if epochs is None else epochs
        return start.then(sparsifier=sparsifier, recipe=replace(self.after_cut, epochs=epochs))

    def usual(self, seed: int, **changes) -> Run:
        """The training before a cut."""
        return self.trained(seed, self.before_cut, **changes)

    def cut_rows(self, seed: int) -> Iterator[dict]:
        """A grid row for every method of the scale at every cut."""
        of = {method: self.of(method) for method in self.ways}
        for cut, level in self.cuts:
            for method, found in self.ways.items():
                if self.has(method, cut):
                    run = found.run(of[method], seed, cut, level)
                    yield {"method": method, "cut": cut, "level": level, "run": run}


# -------------------------------------------------------------------------------------------- ways


def pruner(cut: str, level: float, criterion: str = "filters") -> Sparsifier:
    """What removes the share `level` of a network's weights, or of the inner channels of each
    layer."""
    if cut == WEIGHTS:
        return Magnitude(sparsity=level)
    return Channels(share=level, criterion=criterion)


@way(SMALL)
def small(own: ContestSettings, seed: int, cut: str, level: float) -> Run:
    if cut == WEIGHTS:
        return own.run(seed, model=small_model(own.model, level, own.data))
    # the architecture that all are cut to, its channels chosen by their first weights
    return own.run(seed, start=own.trained(seed, 0), sparsifier=pruner(cut, level))


@way(ONE_SHOT)
def one_shot(own: ContestSettings, seed: int, cut: str, level: float) -> Run:
    return own.after(own.run(seed), pruner(cut, level), 0)


@way(MAGNITUDE)
def magnitude(own: ContestSettings, seed: int, cut: str, level: float) -> Run:
    return own.after(own.usual(seed), pruner(cut, level))


@way(SCORES, cuts=[WEIGHTS])
def learned_scores(own: ContestSettings, seed: int, cut: str, level: float) -> Run:
    return scored(own, own.usual(seed), LearnedScores(sparsity=level))


def scored(own: ContestSettings, start: Run, scores: Sparsifier) -> Run:
    """`start`, its weights chosen by scores that are learned, then trained further."""
    chosen = own.after(start, scores, own.methods.score_epochs // scores.passes)
    return own.after(chosen, FixedMask(), own.after_cut.epochs - own.methods.score_epochs)


@way(SPLITTING, "Dinh et al. 2020")
def splitting(own: ContestSettings, seed: int, cut: str, level: float) -> Run:
    split = own.usual(seed, sparsifier=getattr(own.methods.splitting, cut))
    return own.after(split, pruner(cut, level, "readers"))


@way(FK, "Dinh et al. 2020")
def split_ensemble(own: ContestSettings, seed: int, cut: str, level: float,
                   dearer: int = 1) -> Run:
    """An ensemble of noisy networks. Each member costs a gradient of its own, and brings weights of
    its own. With `dearer` it takes so many times the budget."""
    members = own.methods.members
    model = replace(own.model, members=members, noise=own.methods.noise)
    split = own.trained(seed, dearer * own.before_cut // members, model=model,
                        sparsifier=getattr(own.methods.splitting, cut))
    each = pruner(cut, 1 - (1 - level) / members, "readers")
    return own.after(split, each, dearer * own.after_cut.epochs // members)


@way(TICKET, "Wang et al. 2020")
def ticket(own: ContestSettings, seed: int, cut: str, level: float) -> Run:
    epochs = own.methods.ticket_epochs
    mask = own.after(own.trained(seed, epochs), pruner(cut, level), 0)
    return own.trained(seed, own.recipe.epochs - epochs, sparsifier=Ticket(pruned=mask))


@way(IWI, "Wang et al. 2020")
def inherited(own: ContestSettings, seed: int, cut: str, level: float) -> Run:
    epochs = own.methods.narrow_epochs
    narrow = own.trained(seed, epochs, model=replace(own.model, width=own.model.width // 2))
    heir = own.trained(seed, own.before_cut - epochs, start=narrow,
                       inheritance=Inheritance(kappa=own.methods.kappa))
    return own.after(heir, pruner(cut, level))


@way(LASSO, "Rakin et al. 2019")
def lasso(own: ContestSettings, seed: int, cut: str, level: float) -> Run:
    return own.after(own.usual(seed, sparsifier=Lasso(lam=own.methods.lasso)), pruner(cut, level))


@way(RSR, "Rakin et al. 2019")
def noisy_lasso(own: ContestSettings, seed: int, cut: str, level: float) -> Run:
    noisy = own.usual(seed, sparsifier=Lasso(lam=own.methods.lasso),
                      model=NoisyWeights(model=own.model))
    return own.after(noisy, pruner(cut, level))


@way(GRADUAL, "Guo et al. 2018")
def step_by_step(own: ContestSettings, seed: int, cut: str, level: float) -> Run:
    steps = own.methods.steps
    stepped = own.trained(seed, own.before_cut - steps)
    for step in range(1, steps + 1):
        part = 1 - (1 - level) ** (step / (steps + 1))
        stepped = own.after(stepped, pruner(cut, part), 1)
    return own.after(stepped, pruner(cut, level))


@way(CONSTRAINED, "Feng et al. 2025")
def constrained(own: ContestSettings, seed: int, cut: str, level: float) -> Run:
    # weight decay moves from the optimiser into the loss of the constraints
    constraints = replace(own.methods.constraints, weight_decay=own.recipe.weight_decay)
    start = own.usual(seed, model=replace(own.model, gated=True), sparsifier=constraints)
    start = replace(start, recipe=replace(start.recipe, weight_decay=0))
    if cut == WEIGHTS:
        return scored(own, start, LearnedScores(sparsity=level))
    return own.after(start, pruner(cut, level))


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


# -------------------------------------------------------------------------------------- the reader's


def join(experiment: Experiment[ContestSettings], method: str,
         sparsifier: Callable[[str, float], Sparsifier], seeds: Sequence[int] | None = None,
         cuts: Sequence[str] = (WEIGHTS, CHANNELS), before: Sparsifier | None = None) -> list[dict]:
    """Grid rows of a method of the reader's own, at every level of these cuts and with these seeds
    (None: all of the experiment): the usual training, with the sparsifier `before` if it needs one,
    then what `sparsifier(cut, level)` makes of it in the epochs that follow a cut. What is measured
    is what is measured of `MAGNITUDE`. The rows are added to the grid of the experiment."""
    own, rows = experiment.settings, []
    for row in experiment.rows(method=MAGNITUDE):
        if row["cut"] in cuts and row["seed"] in (experiment.seeds if seeds is None else seeds):
            start = own.usual(row["seed"], sparsifier=before or Dense())
            run = own.after(start, sparsifier(row["cut"], row["level"]))
            rows.append(row | {"method": method, "run": run})
    experiment.grid.extend(rows)
    return rows


def budget(run: Run) -> float:
    """Gradients taken per training image, of a run and all it begins with: forward and backward
    passes of the attack and of the step, of each member of an ensemble."""
    return sum(r.recipe.trained_epochs * r.objective.cost * r.sparsifier.passes
               * getattr(r.model, "members", 1) for r in run.lineage)


def named(cut: str | None, level: float) -> str:
    """What is removed: `80 % of the weights`."""
    return "nothing" if cut is None else f"{100 * level:g} % of the {cut}"
