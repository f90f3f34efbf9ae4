"""The runs of Achieving Adversarial Robustness via Sparsity (Wang et al. 2020; Liao et al. 2022):
lottery tickets under adversarial training, and inverse weights inheritance (IWI).

Of the paper only its claims are on record: the algorithm is this project's reading, and every
number is ours.
"""

from collections.abc import Iterator
from dataclasses import replace

from sparserobust.config import Inheritance, Recipe, Run
from sparserobust.objectives import Natural
from sparserobust.running.experiment import Experiment, planned
from sparserobust.running.scales import StudySettings
from sparserobust.settings import Settings, settings, unknown
from sparserobust.sparsifiers import (
    Channels,
    FixedMask,
    LearnedScores,
    Magnitude,
    MatchedHistogram,
    RandomMask,
    ScaleLasso,
    Ticket,
)

TRAININGS = ("natural", "adversarial")
STARTS = ("initial", "early", "trained", "random")  # of a ticket's weights
REDRAWN = 1000  # added to a run's seed where weights are drawn anew
INTERMEDIATE = "on the way"  # runs that are trained for others
GLOBAL, LAYERWISE, FILTERS = "magnitude, global", "magnitude, layer by layer", "filters, L1 norm"
SLIMMING, SCORES, RANDOM = "network slimming", "learned scores", "random"
LONGER = "trained on"  # the zoo's control: trained as long as what was pruned
NARROW, TICKET = "narrow", "ticket"  # what is inherited from
IWI = {NARROW: "IWI, from narrow", TICKET: "IWI, from ticket"}
EQUAL = {NARROW: "AT, cost of IWI from narrow", TICKET: "AT, cost of IWI from ticket"}
MATCHED = {NARROW: "AT, histogram of IWI from narrow", TICKET: "AT, histogram of IWI from ticket"}
SMALL, NATURAL = "AT, narrow", "natural, narrow"
FROM_NATURAL = "inherits from natural narrow"


@settings
class Cell(Settings):
    """Tickets to train: how the mask is found (`pruning`), how it is trained then (`retraining`),
    from which weights (`STARTS`), and at which of the levels (none given: at all)."""

    pruning: str
    retraining: str
    starts: tuple[str, ...]
    levels: tuple[float, ...] = ()

    def check(self):
        self.choice("pruning", *TRAININGS)
        self.choice("retraining", *TRAININGS)
        for start in self.starts:
            if start not in STARTS:
                unknown("start", start, self.label(), dict.fromkeys(STARTS))


@settings
class Tickets(Settings):
    """The levels of the chain of prunings, and what is trained; `early`: epochs after which weights
    are taken that are neither initial nor trained."""

    levels: tuple[float, ...]
    early: int
    cells: tuple[Cell, ...]

    def check(self):
        for level in (each for cell in self.cells for each in cell.levels):
            self.require(level in self.levels, f"level {level:g} of a cell is not among the levels")

    def asked(self, pruning: str, level: float) -> list[tuple[str, str]]:
        """(retraining, start) of every ticket that is trained with the mask of this level."""
        return [(cell.retraining, start) for cell in self.cells for start in cell.starts
                if cell.pruning == pruning and level in (cell.levels or self.levels)]


@settings
class Zoo(Settings):
    """Pruning methods. `score_epochs` of the epochs of `fine_tuning` go into learned scores, at
    `score_lr`; `slimming` is the weight of the penalty on BatchNorm's scales."""

    levels: tuple[float, ...]
    fine_tuning: Recipe
    score_epochs: int
    score_lr: float
    slimming: float


@settings
class PerSource(Settings):
    """A number of epochs for what inherits from either."""

    narrow: int
    ticket: int


@settings
class Inheriting(Settings):
    """`kappas` are tried, with the first seed or with all; everything is compared at `kappa`, and
    inherits from a network of `narrow_width` or from the ticket of sparsity `ticket` (`sources`).
    `equal_epochs` of adversarial training cost at least as much as IWI with all it begins with, and
    less than one epoch more. `beta`: pull towards a histogram (`MatchedHistogram`)."""

    kappas: tuple[int | float, ...]
    kappa: float
    kappas_all_seeds: bool
    ticket: float
    narrow_width: int
    equal_epochs: PerSource
    beta: float
    sources: tuple[str, ...] = (NARROW, TICKET)

    def check(self):
        for source in self.sources:
            if source not in IWI:
                unknown("source", source, self.label(), dict.fromkeys(IWI))
        self.require(self.kappa in self.kappas, "kappa is one of kappas")


@settings
class PrimaryLevels(Settings):
    """Sparsities of the ledger's comparisons, named beforehand."""

    tickets: float
    zoo: float


@settings
class IWISettings(StudySettings):
    """A network without a `zoo` has no pruning methods but tickets."""

    tickets: Tickets
    inheritance: Inheriting
    primary_levels: PrimaryLevels
    zoo: Zoo | None = None

    def check(self):
        level = self.inheritance.ticket
        self.require(TICKET not in self.inheritance.sources
                     or ("adversarial", "initial") in self.tickets.asked("adversarial", level),
                     f"the ticket that is inherited, of sparsity {level:g}, is not among those "
                     "that are trained adversarially from their initial weights")


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment[IWISettings]:
    """Everything the notebook runs at a scale, or all of it with these seeds
    (`running.experiment.planned`). Labels: `net`, `ours` (what stands for it), those of `labels`,
    `seed`."""
    return planned("iwi", scale, seeds, IWISettings, _rows)


def labels(part: str, method: str, level: float | None = None, pruning: str = "",
           retraining: str = "adversarial") -> dict:
    """The labels of a kind of run: `part` (dense, tickets, zoo, inheritance or `INTERMEDIATE`),
    `pruning` and `retraining` (natural, adversarial or empty), `method` (of tickets: where their
    weights start) and `level` (a sparsity; of what inherits its kappa, of its controls None)."""
    return {"part": part, "pruning": pruning, "retraining": retraining, "method": method,
            "level": level}


def _rows(own: IWISettings, net: str, seed: int, first: bool) -> Iterator[dict]:
    """Grid rows of one network and seed."""
    at = own.run(seed)
    dense = {"natural": replace(at, objective=Natural()), "adversarial": at}
    tickets = list(_tickets(own.tickets, dense))
    found = [labels("dense", "dense", 0.0, retraining=t) | {"run": dense[t]} for t in TRAININGS]
    found += tickets
    if own.zoo:
        found += _zoo(own.zoo, at)
    inherited = labels("tickets", "initial", own.inheritance.ticket, "adversarial")
    ticket = next((row["run"] for row in tickets if row.items() >= inherited.items()), None)
    found += _inheritance(own.inheritance, at, ticket, first)
    for row in found:
        yield {"ours": own.stand_in} | row


def _tickets(own: Tickets, dense: dict[str, Run]) -> Iterator[dict]:
    """Iterative magnitude pruning, global, from level to level, rewound to the initial weights
    after each; every mask so found is then trained as is asked for."""
    for pruning, whole in dense.items():
        last, levels = whole, [level for level in own.levels if own.asked(pruning, level)]
        for level in (level for level in own.levels if level <= max(levels, default=0)):
            pruned = last.then(recipe=replace(whole.recipe, epochs=0),
                               sparsifier=Magnitude(sparsity=level))
            yield labels(INTERMEDIATE, "pruned", level, pruning, "") | {"run": pruned}
            starts = {
                "early": replace(whole, recipe=replace(whole.recipe, stop=own.early)),
                "trained": last,
                "random": replace(dense["natural"], seed=whole.seed + REDRAWN,
                                  recipe=replace(whole.recipe, stop=0))}
            last = replace(whole, sparsifier=Ticket(pruned=pruned))
            asked = own.asked(pruning, level)
            if (pruning, "initial") not in asked and level < max(levels):  # the next level needs it
                yield labels(INTERMEDIATE, "initial", level, pruning, pruning) | {"run": last}
            for retraining, start in asked:
                run = replace(dense[retraining], sparsifier=last.sparsifier)
                if start != "initial":
                    recipe = replace(run.recipe, watched=False)
                    run = replace(run, start=starts[start], recipe=recipe)
                yield labels("tickets", start, level, pruning, retraining) | {"run": run}


def _zoo(own: Zoo, at: Run) -> Iterator[dict]:
    """Ways to prune the same dense network, each with the same epochs of training afterwards
    (learned scores spend some of them on the scores); network slimming has a dense network of its
    own, trained with a penalty on scales."""
    longer = at.then(recipe=own.fine_tuning)
    slim = replace(at, sparsifier=ScaleLasso(lam=own.slimming))
    yield labels("zoo", LONGER, 0.0) | {"run": longer}
    yield labels("zoo", SLIMMING, 0.0, "adversarial") | {"run": slim}
    scoring = replace(own.fine_tuning, epochs=own.score_epochs, lr=own.score_lr)
    rest = replace(own.fine_tuning, epochs=own.fine_tuning.epochs - own.score_epochs)
    for level in own.levels:
        scored = at.then(recipe=scoring, sparsifier=LearnedScores(sparsity=level))
        yield labels(INTERMEDIATE, SCORES, level, "adversarial", "") | {"run": scored}
        channels = Channels(sparsity=level, criterion="scales")
        for method, run in {
                GLOBAL: replace(longer, sparsifier=Magnitude(sparsity=level)),
                LAYERWISE: replace(longer, sparsifier=Magnitude(sparsity=level, scope="layerwise")),
                FILTERS: replace(longer, sparsifier=Channels(sparsity=level)),
                RANDOM: replace(longer, sparsifier=RandomMask(sparsity=level)),
                SLIMMING: slim.then(recipe=own.fine_tuning, sparsifier=channels),
                SCORES: scored.then(recipe=rest, sparsifier=FixedMask())}.items():
            yield labels("zoo", method, level, "adversarial") | {"run": run}


def _inheritance(own: Inheriting, at: Run, ticket: Run | None, first: bool) -> Iterator[dict]:
    """IWI from a narrow network and from a ticket, if there is one, and its controls."""
    small = replace(at, model=replace(at.model, width=own.narrow_width))
    natural = replace(small, objective=Natural())

    def inheriting(source: Run | None, kappa: float) -> Run:
        return replace(at, start=source, inheritance=Inheritance(kappa=kappa))

    yield labels("inheritance", SMALL) | {"run": small}
    yield labels("inheritance", NATURAL, retraining="natural") | {"run": natural}
    sources = {NARROW: small, TICKET: ticket}
    for name in own.sources:
        longer = replace(at.recipe, epochs=getattr(own.equal_epochs, name))
        yield labels("inheritance", EQUAL[name]) | {"run": replace(at, recipe=longer)}
        for kappa in own.kappas if first or own.kappas_all_seeds else [own.kappa]:
            yield labels("inheritance", IWI[name], kappa) | {"run": inheriting(sources[name], kappa)}
        matched = MatchedHistogram(target=inheriting(sources[name], own.kappa), beta=own.beta)
        yield labels("inheritance", MATCHED[name]) | {"run": replace(at, sparsifier=matched)}
    yield labels("inheritance", FROM_NATURAL, own.kappa) | {"run": inheriting(natural, own.kappa)}
