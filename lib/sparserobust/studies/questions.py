"""What a contest asks: of which method against which other, at every cut alike."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas

from sparserobust.errors import UserError
from sparserobust.reporting import claims
from sparserobust.reporting.claims import Contrast
from sparserobust.reporting.reported import Claim
from sparserobust.studies.methods import CHANNELS, MAGNITUDE, ContestSettings, named

ATTACKED = "pgd"  # the accuracy by which methods are ranked
MARGIN = 1.0  # points within which there is no difference


class Question(NamedTuple):
    """A statement about a method, and the other it is held against."""

    statement: str
    method: str
    against: str


Questions = Mapping[str, Question]


def asked(name: str, statement: str, quantity: str, direction: str = "increase",
          margin_why: str = "about the difference between two seeds") -> Claim:
    """A comparison in points that this project asks for, of which no paper reports a number."""
    return Claim(id=name, statement=statement, quantity=quantity, unit="percentage points",
                 direction=direction, value=None, kind="open", grade="derived", source=None,
                 margin=MARGIN, margin_why=margin_why)


def contrasts(own: ContestSettings, questions: Questions, where: str) -> Iterator[Contrast]:
    """Every question at every cut, by accuracy under PGD with averaged gradients and by clean
    accuracy, in points, as far as the scale has both methods. Where channels are cut, `MAGNITUDE`
    stands for a method that can only cut weights."""
    for cut, level in own.cuts:
        here = {"cut": cut, "level": level}
        for name, (statement, method, against) in questions.items():
            if not own.has(method, cut) or not own.has(against):
                continue
            if cut == CHANNELS and not own.has(against, cut):
                against = MAGNITUDE
            reference = here if against in own.ways else {"cut": None}  # a dense network
            for metric, what, suffix in ((ATTACKED, "under PGD", ""),
                                         ("clean", "on clean images", ", clean")):
                claim = asked(f"{name} {named(cut, level)}{suffix}",
                              f"{own.paper(method) or 'all'}: {statement}",
                              f"accuracy {what}: {method} minus {against}")
                yield Contrast(claim, metric, {"method": method} | here,
                               {"method": against} | reference, f"{where}, claims")


def ledger(rows: pandas.DataFrame, questions: Questions, looks: Sequence[int] = ()) -> pandas.DataFrame:
    """The comparisons under attack as one family (`claims.together`), each question in words. `UserError` where the
    methods of a scale leave none."""
    if rows.empty:
        raise UserError("none of the questions can be asked of the methods that this scale has: give it more of them")
    lines = rows[~rows["claim"].str.endswith(", clean")].reset_index(drop=True)
    words = []
    for line in lines["claim"]:
        name, cut = line.split(maxsplit=1)
        statement = questions[name].statement
        words.append(f"{statement[0].upper()}{statement[1:]} ({cut} removed)")
    return claims.together(lines.assign(line=lines["claim"], words=words), looks)


def in_words(ledger: pandas.DataFrame, questions: Questions, own: ContestSettings) -> pandas.DataFrame:
    """One line per question: of whom it is asked, what, and the verdict at every cut."""
    parts = ledger["claim"].str.split(n=1, expand=True).set_axis(["question", "cut"], axis=1)
    verdicts = ledger.join(parts).pivot(index="question", columns="cut", values="verdict")
    verdicts = verdicts[parts["cut"].unique()].fillna("")
    held = {name: question for name, question in questions.items() if name in verdicts.index}
    verdicts = verdicts.reindex(list(held))
    verdicts.insert(0, "asked of", [own.paper(question.method) or "all" for question in held.values()])
    verdicts.insert(1, "what", [question.statement for question in held.values()])
    return verdicts
