"""What the ring asks: does a method beat magnitude with fine-tuning, and what is it that does it?"""

from collections.abc import Iterator, Sequence

import pandas

from sparserobust.reporting import claims
from sparserobust.reporting.claims import Contrast
from sparserobust.running.experiment import Results
from sparserobust.studies import methods as m
from sparserobust.studies import questions
from sparserobust.studies.questions import Question, asked
from sparserobust.studies.ring import report
from sparserobust.studies.ring import runs as r

BEATS = "{}: better than magnitude with fine-tuning"
NAMES = {"small": m.SMALL, "one-shot": m.ONE_SHOT, "scores": m.SCORES, "splitting": m.SPLITTING,
         "FK": m.FK, "ticket": m.TICKET, "IWI": m.IWI, "lasso": m.LASSO, "RSR": m.RSR,
         "gradual": m.GRADUAL, "TSCNC": m.CONSTRAINED, "uniform": r.UNIFORM, "ERK": r.ERK,
         "rates": r.RATES, "sharp": r.SHARP, "dynamic": r.DYNAMIC, "redrawn": r.REDRAWN,
         "N-FGSM": r.NFGSM_TRAINED, "averaged": r.AVERAGED}
QUESTIONS = {name: Question(BEATS.format(method), method, m.MAGNITUDE)
             for name, method in NAMES.items()} | {
    "rates-scores": Question("learning the rates of layers as well beats learning scores alone",
                             r.RATES, m.SCORES),
    "sharp-scores": Question("scores learned under a worst-case perturbation beat plain ones",
                             r.SHARP, m.SCORES),
    "growth": Question("growing where the gradient is large beats growing at random", r.DYNAMIC,
                       r.REDRAWN),
    "norms": Question("recomputed BatchNorm statistics mend a one-shot cut", r.NORMS, m.ONE_SHOT),
    "epochs": Question("a noisy ensemble with equal epochs beats one with equal gradients",
                       r.LONGER_ENSEMBLE, m.FK),
    "cut": Question("cut and fine-tuned, a network is more robust than one trained in two stages and "
                    "not cut", m.MAGNITUDE, r.TWO_STAGES),
}
GAP = "gap"  # the metric: accuracy of the best epoch minus that of the last, image by image
WHERE = "08_ring, claims"


def judged(results: Results[r.RingSettings]) -> pandas.DataFrame:
    """All comparisons: every question at every cut, paired by seed and image, then those of robust
    overfitting and of the stability of masks. `primary` says which of them the ledger holds."""
    own, contest = results.experiment.settings, results.only(part=r.RING).frame
    by_cut = claims.judge(contest, questions.contrasts(own, QUESTIONS, "08_ring"))
    primary = by_cut["claim"].str.endswith(f" {m.named(m.WEIGHTS, own.primary)}")
    others = pandas.concat([
        claims.judge(report.gaps(results), overfitting(own)),
        claims.judge(report.overlaps(results), stability(own))])
    return pandas.concat([by_cut.assign(primary=primary), others.assign(primary=True)],
                         ignore_index=True)


def overfitting(own: r.RingSettings) -> Iterator[Contrast]:
    """Is the gap between the best and the last epoch smaller in a sparse network?"""
    level = own.overfitting.dynamic.sparsity
    for name, method, other, statement in (
            ("overfitting", r.DYNAMIC, m.DENSE,
             "sparse from the start, a network overfits less to its attacks than a dense one"),
            ("fixed", r.FIXED, m.DENSE,
             "sparse with a mask that never changes, a network overfits less than a dense one")):
        claim = asked(f"{name} {m.named(m.WEIGHTS, level)}", statement,
                      f"best minus last epoch, accuracy under PGD: {method} minus {other}",
                      "decrease")
        yield Contrast(claim, GAP, {"method": method}, {"method": other}, WHERE)


def stability(own: r.RingSettings) -> Iterator[Contrast]:
    """Are the masks of sharp scores, and of learned rates, more alike than those of plain ones?"""
    for name, method, metric in (("stable", r.SHARP, "seeds"), ("settled", r.SHARP, "epochs"),
                                 ("stable-rates", r.RATES, "seeds")):
        between = "two seeds" if metric == "seeds" else "the last two epochs"
        claim = asked(f"{name} {m.named(m.WEIGHTS, own.primary)}",
                      f"{method}: the masks of {between} have more weights in common, beyond chance, "
                      "than those of plain scores",
                      f"kept weights in common between {between}, from 0 by chance to 100: "
                      f"{method} minus {m.SCORES}",
                      margin_why="a hundredth of the kept weights")
        yield Contrast(claim, metric, {"method": method}, {"method": m.SCORES}, WHERE)


def ledger(rows: pandas.DataFrame, looks: Sequence[int] = ()) -> pandas.DataFrame:
    """The comparisons at the primary cut, under attack, as one family, each in words."""
    lines = rows[rows["primary"]].drop(columns="primary").reset_index(drop=True)
    words = [statement[0].upper() + statement[1:]
             for statement in lines["statement"].str.removeprefix("all: ")]
    return claims.together(lines.assign(line=lines["claim"], words=words), looks)


def beat_magnitude(lines: pandas.DataFrame) -> int:
    """Of how many methods the ledger says that they are better than magnitude with fine-tuning."""
    asked = lines["words"].str.endswith(BEATS.removeprefix("{}"))
    return int((asked & lines["verdict"].eq(claims.HOLDS)).sum())
