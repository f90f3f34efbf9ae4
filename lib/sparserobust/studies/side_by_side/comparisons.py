"""What this project asks of the papers, of all alike, at every cut."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas

from sparserobust.reporting import claims
from sparserobust.reporting.claims import Contrast
from sparserobust.reporting.reported import Claim
from sparserobust.running.experiment import Results
from sparserobust.studies.side_by_side import runs

ATTACKED = "pgd"  # the accuracy by which methods are ranked
MARGIN = 1.0  # points within which there is no difference


class Question(NamedTuple):
    """What is asked, and of which method against which other."""

    statement: str
    method: str
    against: str

    @property
    def asked_of(self) -> str:
        """Whose answer it is about."""
        return runs.PAPERS.get(self.method, "all")


QUESTIONS = {
    "FK": Question("a noisy ensemble, split while it is trained, beats a plain network cut as far",
                   runs.FK, runs.MAGNITUDE),
    "ensemble": Question("the noisy ensemble does it, not the splitting", runs.FK, runs.SPLITTING),
    "splitting": Question("splitting while training beats cutting afterwards", runs.SPLITTING,
                          runs.MAGNITUDE),
    "IWI": Question("what has inherited a small network's weights is better to cut", runs.IWI,
                    runs.MAGNITUDE),
    "ticket": Question("a lottery ticket, rewound and trained, beats what is only fine-tuned",
                       runs.TICKET, runs.MAGNITUDE),
    "RSR": Question("noise on weights and a lasso make better networks to cut", runs.RSR,
                    runs.MAGNITUDE),
    "lasso": Question("so does the lasso alone", runs.LASSO, runs.MAGNITUDE),
    "noise": Question("noise adds to what the lasso does", runs.RSR, runs.LASSO),
    "sparsity": Question("cut so far, a network is more robust than it is dense", runs.GRADUAL,
                         runs.DENSE),
    "TSCNC": Question("a network made sparse and well-conditioned before is better once it is "
                      "pruned", runs.CONSTRAINED, runs.SCORES),
    "pruning": Question("a large network, cut, beats one that is small from the start",
                        runs.MAGNITUDE, runs.SMALL),
}


def named(cut: str | None, level: float) -> str:
    """What is removed: `80 % of the weights`."""
    return "nothing" if cut is None else f"{100 * level:g} % of the {cut}"


def judged(results: Results[runs.SideBySideSettings]) -> pandas.DataFrame:
    """All comparisons: every question at every cut, by accuracy under PGD with averaged gradients
    and by clean accuracy, in points, paired by seed and image."""
    return claims.judge(results.frame, contrasts(results.experiment.settings))


def contrasts(own: runs.SideBySideSettings) -> Iterator[Contrast]:
    """Those whose two methods the scale has. Scores are learned of weights only: where channels are
    cut, `MAGNITUDE` stands for `SCORES`."""
    for cut, level in own.cuts:
        here = {"cut": cut, "level": level}
        for name, question in QUESTIONS.items():
            statement, method, against = question
            if cut == runs.CHANNELS and against == runs.SCORES:
                against = runs.MAGNITUDE
            if not own.has(method) or not own.has(against):
                continue
            reference = {"cut": None} if against == runs.DENSE else here
            for metric, what, suffix in ((ATTACKED, "under PGD", ""),
                                         ("clean", "on clean images", ", clean")):
                claim = Claim(id=f"{name} {named(cut, level)}{suffix}",
                              statement=f"{question.asked_of}: {statement}",
                              quantity=f"accuracy {what}: {method} minus {against}",
                              unit="percentage points", direction="increase", value=None,
                              kind="open", grade="derived", source=None, margin=MARGIN,
                              margin_why="about the difference between two seeds")
                yield Contrast(claim, metric, {"method": method} | here,
                               {"method": against} | reference, "06_side_by_side, claims")


def ledger(rows: pandas.DataFrame, looks: Sequence[int] = ()) -> pandas.DataFrame:
    """The comparisons under attack as one family (`claims.together`), each question in words."""
    lines = rows[~rows["claim"].str.endswith(", clean")].reset_index(drop=True)
    words = []
    for line in lines["claim"]:
        name, cut = line.split(maxsplit=1)
        statement = QUESTIONS[name].statement
        words.append(f"{statement[0].upper()}{statement[1:]} ({cut} removed)")
    return claims.together(lines.assign(line=lines["claim"], words=words), looks)


def in_words(ledger: pandas.DataFrame) -> pandas.DataFrame:
    """One line per question: of whom it is asked, what, and the verdict at every cut."""
    parts = ledger["claim"].str.split(n=1, expand=True).set_axis(["question", "cut"], axis=1)
    verdicts = ledger.join(parts).pivot(index="question", columns="cut", values="verdict")
    verdicts = verdicts[parts["cut"].unique()].fillna("")
    verdicts = verdicts.reindex([question for question in QUESTIONS if question in verdicts.index])
    asked = [QUESTIONS[question] for question in verdicts.index]
    verdicts.insert(0, "asked of", [question.asked_of for question in asked])
    verdicts.insert(1, "what", [question.statement for question in asked])
    return verdicts
