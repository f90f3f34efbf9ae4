"""What this project asks of the papers, of all alike, at every cut."""

from collections.abc import Iterator, Sequence

import pandas

from sparserobust.reporting import claims
from sparserobust.reporting.claims import Contrast
from sparserobust.running.experiment import Results
from sparserobust.studies import questions
from sparserobust.studies.methods import (
    CONSTRAINED,
    DENSE,
    FK,
    GRADUAL,
    IWI,
    LASSO,
    MAGNITUDE,
    RSR,
    SCORES,
    SMALL,
    SPLITTING,
    TICKET,
)
from sparserobust.studies.questions import Question
from sparserobust.studies.side_by_side.runs import SideBySideSettings

ASKED = LASSO, TICKET, FK, MAGNITUDE  # which of these is best, the page asks before it runs
QUESTIONS = {
    "FK": Question("a noisy ensemble, split while it is trained, beats a plain network cut as far",
                   FK, MAGNITUDE),
    "ensemble": Question("a noisy ensemble, split, beats one network, split", FK, SPLITTING),
    "splitting": Question("splitting while training beats cutting afterwards", SPLITTING,
                          MAGNITUDE),
    "IWI": Question("a network that has inherited a small one's weights is better to cut", IWI,
                    MAGNITUDE),
    "ticket": Question("a lottery ticket, rewound and trained, beats what is only fine-tuned",
                       TICKET, MAGNITUDE),
    "RSR": Question("noise on weights and a lasso make better networks to cut", RSR,
                    MAGNITUDE),
    "lasso": Question("a lasso alone makes a better network to cut", LASSO, MAGNITUDE),
    "noise": Question("noise adds to what the lasso does", RSR, LASSO),
    "sparsity": Question("cut so far, a network is more robust than it is dense", GRADUAL,
                         DENSE),
    "TSCNC": Question("a network made sparse and well-conditioned before is better once it is "
                      "pruned", CONSTRAINED, SCORES),
    "pruning": Question("a large network, cut, beats one that is small from the start",
                        MAGNITUDE, SMALL),
}


def best_of(rankings: dict[str, pandas.DataFrame], methods: Sequence[str] = ASKED) -> str:
    """Which of these methods has most accuracy under attack at the first cut (`contest.rankings`)."""
    first = next(iter(rankings.values()))
    return first.loc[first.index.isin(methods), "mean"].idxmax()


def judged(results: Results[SideBySideSettings]) -> pandas.DataFrame:
    """All comparisons, paired by seed and image."""
    return claims.judge(results.frame, contrasts(results.experiment.settings))


def contrasts(own: SideBySideSettings) -> Iterator[Contrast]:
    """Every question at every cut (`questions.contrasts`)."""
    return questions.contrasts(own, QUESTIONS, "06_side_by_side")


def ledger(rows: pandas.DataFrame, looks: Sequence[int] = ()) -> pandas.DataFrame:
    """The comparisons under attack as one family (`questions.ledger`)."""
    return questions.ledger(rows, QUESTIONS, looks)


def in_words(lines: pandas.DataFrame, own: SideBySideSettings) -> pandas.DataFrame:
    """One line per question (`questions.in_words`)."""
    return questions.in_words(lines, QUESTIONS, own)
