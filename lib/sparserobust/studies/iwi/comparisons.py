"""The comparisons of Achieving Adversarial Robustness via Sparsity (Wang et al. 2020): each against
the control that would explain an effect away.

Where the paper leaves open against what, against each of what it could mean. C1 to C6 are asked of
the first network, C7 of any other.
"""

from collections.abc import Iterator
from dataclasses import replace

import pandas

from sparserobust.reporting import claims, reported
from sparserobust.reporting.claims import Contrast
from sparserobust.reporting.tables import Pairs
from sparserobust.running.experiment import Experiment, Results
from sparserobust.studies.iwi.runs import (
    EQUAL,
    FROM_NATURAL,
    IWI,
    LONGER,
    MATCHED,
    NARROW,
    RANDOM,
    STARTS,
    IWISettings,
    labels,
)

TIED = {"bound of the slope": "margins bound", "slope in l2": "margins slope",
        "margin / slope in l2": "margins ratio",
        "margin / slope in l1": "margins_linf ratio"}  # what theory ties to sparsity
WHERE = {"C1": "table 1", "C2": "table 2", "C3": "table 2", "C4": "table 3", "C5": "figure 2",
         "C6": "figure 4", "C7": "table 3"}


def dense(net: str) -> dict:
    """Labels of the network that is trained adversarially and not pruned."""
    return {"net": net} | labels("dense", "dense", 0.0)


def ticket(net: str, level: float, start: str = "initial", pruning: str = "adversarial",
           retraining: str = "adversarial") -> dict:
    """Labels of a ticket."""
    return {"net": net} | labels("tickets", start, level, pruning, retraining)


def levels(experiment: Experiment, net: str) -> list[float]:
    """Sparsities at which tickets are trained."""
    return sorted({row["level"] for row in experiment.rows(net=net, part="tickets")})


def _of_grid(experiment: Experiment, pairs: Pairs) -> Pairs:
    """Those pairs of which the grid has both sides."""
    return {name: pair for name, pair in pairs.items()
            if all(experiment.rows(**side) for side in pair)}


def pruning_methods(experiment: Experiment, net: str) -> Pairs:
    """What is pruned, but for random masks, against the dense network, and against one that was
    trained for as long."""
    longer = {"net": net} | labels("zoo", LONGER, 0.0)
    found: dict[str, set[float]] = {}
    for row in experiment.rows(net=net, part="zoo"):
        if row["level"] and row["method"] != RANDOM:
            found.setdefault(row["method"], set()).add(row["level"])
    pairs: Pairs = {}
    for method, its_levels in found.items():
        for level in sorted(its_levels):
            pruned = {"net": net} | labels("zoo", method, level, "adversarial")
            name = f"{method}, {100 * level:g} %"
            pairs |= {name: (pruned, dense(net)), f"{name}, equal training": (pruned, longer)}
    return pairs


def tickets(experiment: Experiment, net: str) -> Pairs:
    """Tickets with their initial weights against the dense network."""
    return _of_grid(experiment, {f"ticket, {100 * level:g} %": (ticket(net, level), dense(net))
                                 for level in levels(experiment, net)})


def starts(experiment: Experiment, net: str, level: float) -> Pairs:
    """Where the weights of tickets come from: against weights drawn anew, and trained ones against
    the initial ones; all else is adversarial."""
    pairs = [*((start, "random") for start in STARTS[:-1]), ("trained", "initial")]
    return _of_grid(experiment, {f"{one} - {other} weights": (ticket(net, level, one),
                                                              ticket(net, level, other))
                                 for one, other in pairs})


def trainings(experiment: Experiment, net: str, level: float) -> Pairs:
    """Adversarial against natural training, in retraining and in pruning; weights rewound to the
    initial ones."""
    both = ticket(net, level)
    return _of_grid(experiment, {
        "adversarial - natural retraining": (both, both | {"retraining": "natural"}),
        "adversarial - natural pruning": (both, both | {"pruning": "natural"})})


def inheritance(experiment: Experiment[IWISettings], net: str) -> Pairs:
    """What inherits, against what would explain it away; and what a histogram does alone."""
    own = experiment.settings_for(net).inheritance
    kappa = own.kappa

    def of(method: str, level: float | None = None) -> dict:
        return {"net": net} | labels("inheritance", method, level)

    pairs: Pairs = {}
    for source in own.sources:
        name = IWI[source]
        inherited, matched = of(name, kappa), of(MATCHED[source])
        pairs |= {f"{name} - AT": (inherited, dense(net)),
                  f"{name} - AT at equal cost": (inherited, of(EQUAL[source])),
                  f"{name} - AT with its histogram": (inherited, matched),
                  f"AT with the histogram of {name} - AT": (matched, dense(net))}
    natural = of(IWI[NARROW], kappa), of(FROM_NATURAL, kappa)
    return pairs | {f"{IWI[NARROW]} - {FROM_NATURAL}": natural}


def judged(results: Results[IWISettings]) -> pandas.DataFrame:
    """All comparisons, claim after claim."""
    return claims.judge(results.frame, contrasts(results.experiment))


def contrasts(experiment: Experiment[IWISettings]) -> Iterator[Contrast]:
    """What is compared. Bounds, slopes and ratios are skewed: of them, the logarithms are."""
    record = reported.load("iwi")
    for claim, name, metric, pair, changes in _compared(experiment):
        named = replace(record.claim(claim), id=f"{claim} {name}", **changes)
        yield Contrast(named, metric, *pair, f"02_iwi, {WHERE[claim]}", log=claim == "C6")


def _compared(experiment: Experiment[IWISettings]
              ) -> Iterator[tuple[str, str, str, tuple[dict, dict], dict]]:
    """(claim, what of it, metric, (treatment, reference), what is different from the claim)."""
    net, *others = experiment.settings_by_net  # also those of which nothing is known yet
    for name, pair in (pruning_methods(experiment, net) | tickets(experiment, net)).items():
        yield "C1", f"{net}, {name}", "pgd20", pair, {}
    for claim, compared in (("C2", starts), ("C3", trainings)):
        for level in levels(experiment, net):
            for name, pair in compared(experiment, net, level).items():
                if not name.endswith("initial weights"):
                    yield claim, f"{net}, {100 * level:g} %, {name}", "pgd20", pair, {}
    inherited = {name: pair for name, pair in inheritance(experiment, net).items()
                 if name.startswith("IWI")}
    for name, pair in inherited.items():
        yield "C4", f"{net}, {name}", "pgd20", pair, {}
    for source in experiment.settings_for(net).inheritance.sources:
        name = f"{IWI[source]} - AT"
        yield "C5", f"{net}, {name}", "near_zero", inherited[name], {}
    for name, pair in tickets(experiment, net).items():
        for what, metric in TIED.items():
            direction = "increase" if "ratio" in metric else "decrease"
            yield ("C6", f"{net}, {name.removeprefix('ticket, ')}, {what}", metric, pair,
                   {"unit": "log10 of the ratio", "quantity": what, "direction": direction})
    sparse = {"quantity": "accuracy under attack: sparse minus dense"}
    for other in others:
        for name, pair in (tickets(experiment, other) | inheritance(experiment, other)).items():
            if name.startswith(("ticket", "IWI")):
                more = {"quantity": f"accuracy under attack: {name.replace(' - ', ' minus ')}",
                        "direction": "increase"}
                changes = sparse if name.startswith("ticket") else more
                yield "C7", f"{other}, {name}", "pgd20", pair, changes


def words(experiment: Experiment[IWISettings]) -> dict[str, str]:
    """What the names of the ledger's primary comparisons leave open: the networks, and the levels
    named beforehand, of tickets and of the zoo."""
    (first, *others), primary = list(experiment.settings_by_net), experiment.settings.primary_levels
    return {"net": first, "second": others[0] if others else "a second network",
            "level": f"{100 * primary.tickets:g} %", "pruned": f"{100 * primary.zoo:g} %"}
