"""A paper's claims, judged: the measured effect with its interval, and a verdict.

A *row* is one comparison. A *line* of the ledger is one claim in words, with the comparison that was named for it
beforehand (`ledger` in `data/reported/*.yaml`); all other rows are its detail. Five verdicts:

    holds           the 95 % interval lies on the side of the threshold that the claim names
    does not hold   it lies on the other side
    no difference   the 90 % interval lies within the margin that was declared beforehand (two one-sided tests)
    open            none of these: `why` says how many seeds, at the scatter seen, would decide it if it stood alone
    not tested      nothing to judge by: `why` says what is missing

Within a paper and a scale the primary comparisons are one family: their p values are adjusted, and a line's verdict
stands only if it survives that; `alone` is the verdict without. Each comparison enters with both of its p values
(difference, no difference). Holm's method as Shaffer (1986, J. Am. Stat. Assoc. 81:826) modified it takes account of
the fact that at most one of these two null hypotheses is true. So the probability of any wrong verdict in the family is
at most 5 %; where no comparison has a margin, this is Holm's method itself. Holm's method on the smaller of the two
p values would not do: it reaches 17 % where margins are wide, since a comparison that is decided by one of its tests
can still err by the other.

Where seeds are added one by one until a claim is decided, p values first become the probability that any of these looks
would show one as low (`crossed.over_looks`; an approximation for slopes, whose p values come from a bootstrap).
Intervals are shown as they are, without either correction. A family grows as claims become testable, so that a verdict
can return to open.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas

from sparserobust.errors import UserError
from sparserobust.reporting.crossed import Estimate, over_looks
from sparserobust.reporting.estimates import FEWEST, NOT_RUN, Comparison, compared, few, with_interval
from sparserobust.reporting.reported import Claim, Reported
from sparserobust.running.scales import StudySettings

HOLDS, FAILS, SAME, OPEN, UNTESTED = "holds", "does not hold", "no difference", "open", "not tested"
SHORT = {HOLDS: "hold", FAILS: "do not", SAME: "no difference", OPEN: "open", UNTESTED: "not tested"}
OF_ONE = SHORT | {HOLDS: "holds", FAILS: "does not"}
LEVEL = 0.05
ANY_NUMBER = 10**9  # of seeds: what is left of the error is due to images
ALWAYS = "always"  # the direction of a claim that something is so every time


@dataclass(frozen=True)
class Contrast:
    """A comparison as data: what `metric` is of the rows with the labels `treatment`, less what it is of those with
    the labels `reference`, held against a claim; `where` says where on the pages it is shown. `factor` and `log` as
    for `estimates.compared`."""

    claim: Claim
    metric: str
    treatment: dict
    reference: dict
    where: str = ""
    factor: float = 100
    log: bool = False


def judge(frame: pandas.DataFrame, contrasts: Iterable[Contrast]) -> pandas.DataFrame:
    """A row for each comparison, in their order."""
    return pandas.DataFrame([
        judged(c.claim, compared(frame, c.metric, c.treatment, c.reference, c.factor, c.log), c.where)
        for c in contrasts])


def judged(claim: Claim, found: Comparison, where: str = "", row: str = "") -> dict:
    """One row: a comparison, held against its claim. `row` names it (default: the claim's id). A claim that says "at
    least" is held against the number it names, any other against zero; one without a direction cannot be tested."""
    estimate, why = found.estimate, found.why
    if claim.direction is None:
        estimate, why = None, "what the paper claims is not on record"
    ours = sum(found.effects) / len(found.effects) if found.effects else math.nan
    result = _row(claim, ours, len(found.effects), where, row)
    if estimate is None:
        return result | {"why": why, "margin": claim.margin}
    low, high = estimate.interval()
    if math.isnan(low):
        return result | {"images": estimate.images, "why": _without_scatter(ours), "verdict": OPEN,
                         "margin": claim.margin}
    held, margin = result["threshold"], None if claim.direction == "no worse" else claim.margin
    p = estimate.p(held)
    same = estimate.p_within(margin, held) if margin else math.nan
    above = estimate.mean > held
    result |= {"ours": estimate.mean, "low": low, "high": high, "images": estimate.images, "p": p, "p_same": same,
               "said": HOLDS if above != (claim.direction == "decrease") else FAILS, "margin": claim.margin}
    result["verdict"] = _said(result["said"], p, same)
    if result["verdict"] == OPEN:
        result["why"] = _wanted(estimate, held, margin)
    return result


def _without_scatter(effect: float) -> str:
    """Why a mean effect has no interval."""
    if not math.isfinite(effect):
        return "a value is not finite"
    return "the effect is the same in all seeds" if effect else "all networks gave the same"


def _said(said: str, p: float, p_same: float) -> str:
    """The verdict by these p values: what is `said` of a difference comes before that there is none."""
    if p <= LEVEL:
        return said
    return SAME if p_same <= LEVEL else OPEN


def _wanted(estimate: Estimate, threshold: float, margin: float | None) -> str:
    """How many seeds, at the scatter seen, would decide a comparison."""
    seeds = estimate.seeds_needed(threshold, margin)
    if seeds is not None:
        return f"about {seeds} seeds would decide it"
    if estimate.images and not estimate.decided_by(ANY_NUMBER, threshold, margin):
        return "no number of seeds would decide it on so many images"
    return "no number of seeds up to 100 would decide it"


def judge_universal(claim: Claim, count: int, total: int, n_seeds: int, where: str = "", row: str = "") -> dict:
    """One row for a claim that something is so every time: a single exception among `total` refutes it, fewer than
    three seeds bear out nothing; `ours` is the share [%] of times it was so. There is no chance in it, so it enters no
    family."""
    share = 100 * count / total if total else math.nan
    result = _row(claim, share, n_seeds if total else 0, where, row) | {
        "low": share, "high": share, "direction": ALWAYS, "threshold": 100.0}
    if not total:
        return result
    if count < total:
        return result | {"verdict": FAILS}
    why = few(n_seeds)
    return result | ({"why": why} if why else {"verdict": HOLDS})


def estimated(claim: Claim, ours: float, low: float, high: float, p: float, n_seeds: int, where: str = "",
              row: str = "") -> dict:
    """One row for an estimate that comes with its interval and p value, a slope over runs say, held against zero;
    fewer than three seeds test nothing, as elsewhere."""
    result = _row(claim, ours, n_seeds, where, row)
    if why := few(n_seeds):
        return result | {"why": why}
    said = HOLDS if (ours > 0) == (claim.direction == "increase") else FAILS
    verdict = _said(said, p, math.nan)
    return result | {"low": low, "high": high, "p": p, "said": said, "verdict": verdict,
                     "why": "the interval contains zero" if verdict == OPEN else ""}


def threshold(claim: Claim) -> float:
    """What an effect is held against, in the claim's unit: the number of a claim of "at least", the loss that a claim
    of "no worse" allows, or zero."""
    if claim.direction == "no worse" and claim.margin is not None:
        return -claim.margin
    return claim.reported if claim.lower_bound and claim.reported is not None else 0.0


def _row(claim: Claim, ours: float, n_seeds: int, where: str, row: str) -> dict:
    return {"claim": row or claim.id, "statement": claim.statement, "quantity": claim.quantity or "",
            "unit": claim.unit or "", "direction": claim.direction, "threshold": threshold(claim),
            "reported": claim.reported, "source": claim.source,
            "ours": ours, "low": math.nan, "high": math.nan, "n_seeds": n_seeds, "images": 0, "p": math.nan,
            "p_same": math.nan, "margin": None, "said": "", "verdict": UNTESTED,
            "why": "" if n_seeds else NOT_RUN, "where": where}


# ------------------------------------------------------------------------------------------------ the ledger


def ledger(rows: pandas.DataFrame, record: Reported, looks: Sequence[int] = (), **words: str) -> pandas.DataFrame:
    """One line per claim of a paper: what it says in words, and its primary comparison among `rows` (results of the
    functions above), judged `together`, with these `looks`. Names of primary comparisons may have holes, such as
    `{level}`, that `words` fill. A primary comparison that is not among the rows was not run. `UserError` for a hole
    that nothing fills."""
    found = rows.set_index("claim", drop=False)
    lines = []
    for line in record.ledger:
        try:
            name = line.primary.format(**words)
        except (KeyError, IndexError, ValueError):
            raise UserError(f"data/reported/{record.paper}.yaml, line {line.id} of the ledger: primary "
                            f"{line.primary!r} may have the holes {', '.join(words) or '(none)'} only") from None
        if name in found.index:
            row = found.loc[name].to_dict()
        else:
            claim = record.claim(line.claim)
            if name != claim.id:  # the claim's own number is not one of this comparison
                claim = replace(claim, value=None, unit=None)
            row = _row(claim, math.nan, 0, "", name)
        lines.append({"line": line.id, "words": line.words} | row)
    return together(pandas.DataFrame(lines), looks)


def looks(settings: StudySettings) -> tuple[int, ...]:
    """The numbers of seeds after each of which it is judged whether a claim of a study with these settings needs more.
    Where computing takes hours (`redraw: true`), seeds are added one by one, from the fewest that test anything to all
    that the scale names; elsewhere all are there from the beginning, and nothing is looked at twice."""
    return tuple(range(FEWEST, len(settings.seeds) + 1)) if settings.redraw else ()


def together(rows: pandas.DataFrame, looks: Sequence[int] = ()) -> pandas.DataFrame:
    """These rows as one family: `alone` is what was their verdict, `p` the smaller of the two p values, `p_holm` the
    smaller of the adjusted ones, and `verdict` what is left of it. `looks` are the numbers of seeds at which it is
    judged whether more are needed (`crossed.over_looks`); none where their number was fixed beforehand."""
    def over(column: str, two_sided: bool) -> np.ndarray:
        return np.array([over_looks(float(value), tuple(looks), two_sided) for value in rows[column]])

    smaller = rows[["p", "p_same"]].min(axis=1)
    tested = smaller.notna()
    p, p_same = adjusted(over("p", True), over("p_same", False))
    result = rows.assign(alone=rows["verdict"], p=smaller, p_holm=np.fmin(p, p_same))
    for index, *values in zip(rows.index[tested], p[tested], p_same[tested], strict=True):
        alone, verdict = rows.loc[index, "verdict"], _said(rows.loc[index, "said"], *values)
        result.loc[index, "verdict"] = verdict
        if verdict == OPEN != alone:
            often = f" looked at up to {len(looks)} times" if len(looks) > 1 else ""
            result.loc[index, "why"] = f"{alone} by itself, not among {tested.sum()} comparisons{often}"
    return result


def adjusted(p: np.ndarray, p_same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The p values of a family, two for each comparison (nan where there is none), adjusted by Holm's method in
    Shaffer's version: from the smallest to the largest, each is multiplied by the number of comparisons of which this
    hypothesis or one with a larger p value is left, and is at least what the smaller ones became and at most 1."""
    values = np.concatenate([p, p_same])
    order = [place for place in np.argsort(values) if not np.isnan(values[place])]
    last = {place % len(p): place for place in order}  # of each comparison the hypothesis with the larger p value
    result, left, least = np.full(len(values), math.nan), len(last), 0.0
    for place in order:
        least = min(1.0, max(least, left * values[place]))
        result[place] = least
        left -= last[place % len(p)] == place
    return result[:len(p)], result[len(p):]


def effect(row: dict, digits: int = 1) -> str:
    """What was measured, as `estimates.with_interval` writes it; nothing where nothing was run."""
    return with_interval(row["ours"], row["low"], row["high"], digits) if row["n_seeds"] else ""


def holds_if(row: dict) -> str:
    """For which effects a claim holds, in its unit: `> 0`, `< 0`, `> -1` where such a loss is allowed, `= 100` where
    it says always; nothing where it has no direction."""
    sign = {"increase": ">", "no worse": ">", "decrease": "<", ALWAYS: "="}.get(row["direction"])
    value = row["threshold"]
    return f"{sign} {value:.{digits(row['unit']) if value % 1 else 0}f}" if sign else ""


def number(value: float | None, digits: int = 1) -> str:
    """With its sign, nothing for none."""
    return "" if value is None or pandas.isna(value) else f"{value:+.{digits}f}"


def digits(unit: str | None) -> int:
    """Points and percent are shown to one digit, distances and logarithms to three."""
    return 1 if unit and unit.startswith("percent") else 3


def table(lines: pandas.DataFrame) -> pandas.DataFrame:
    """A ledger as a table: one line per claim, in words."""
    shown = [{"claim": row["words"], "unit": row["unit"], "holds if": holds_if(row), **_numbers(row), "p": _p(row["p"]),
              "p, adjusted": _p(row["p_holm"]), **_verdict(row)} for row in lines.to_dict("records")]
    return pandas.DataFrame(shown).set_index("claim")


def short_table(lines: pandas.DataFrame) -> pandas.DataFrame:
    """The same for a page, narrow enough for a window: for which effects each line holds, what the paper reports, what
    was measured in how many seeds, the verdict and its reason."""
    shown = [{"line": row["line"], "claim": row["words"], "holds if": holds_if(row),
              "reported": number(row["reported"], digits(row["unit"])),
              "ours": f"{effect(row, digits(row['unit']))} {_short(row['unit'])}".strip() if row["n_seeds"] else "",
              "seeds": row["n_seeds"] or "", "verdict": row["verdict"], "why": row["why"]}
             for row in lines.to_dict("records")]
    return pandas.DataFrame(shown).set_index("line")


def detail(rows: pandas.DataFrame) -> pandas.DataFrame:
    """All comparisons as a table, those of the ledger among them, each by itself."""
    shown = [{"comparison": row["claim"], "quantity": row["quantity"], "unit": row["unit"], "holds if": holds_if(row),
              **_numbers(row), **_verdict(row)} for row in rows.to_dict("records")]
    return pandas.DataFrame(shown).set_index("comparison")


def _numbers(row: dict) -> dict[str, object]:
    places = digits(row["unit"])
    return {"reported": number(row["reported"], places), "ours": effect(row, places), "seeds": row["n_seeds"] or "",
            "images": row["images"] or ""}


def _verdict(row: dict) -> dict[str, str]:
    return {key: row[key] for key in ("verdict", "why", "where")}


def _short(unit: str) -> str:
    return unit.replace("percentage points", "points")


def _p(value: float) -> str:
    return "" if pandas.isna(value) else "<0.0001" if value < 1e-4 else f"{value:.2g}"


def in_words(lines: pandas.DataFrame) -> str:
    """A ledger as Markdown: the claims under their verdicts, each with its effect. Nothing in it is written by hand."""
    parts = []
    for verdict in SHORT:
        chosen = [row for row in lines.to_dict("records") if row["verdict"] == verdict]
        if chosen:
            parts.append(f"**{verdict[0].upper()}{verdict[1:]}** ({len(chosen)} of {len(lines)})\n")
            parts += [f"- {sentence(row)}" for row in chosen]
            parts.append("")
    return "\n".join(parts)


def sentence(row: dict) -> str:
    """One line of a ledger in one sentence: claim, effect with interval, seeds, images, for which effects it holds
    unless that is any above or below zero, what the paper reports."""
    facts = [f"{effect(row, digits(row['unit']))} {_short(row['unit'])}".strip()] if row["n_seeds"] else []
    if row["n_seeds"]:
        facts.append(f"{row['n_seeds']} seed{'s' if row['n_seeds'] > 1 else ''}"
                     + (f", {row['images']:,} images" if row["images"] else ""))
    if row["threshold"] and row["direction"] != ALWAYS:
        facts.append(f"holds if {holds_if(row)}")
    if number(row["reported"]):
        facts.append(f"the paper: {number(row['reported'], digits(row['unit']))}")
    if row["why"]:
        facts.append(row["why"])
    return f"{row['words']}: {'; '.join(facts)}."


def caption(lines: pandas.DataFrame) -> str:
    """What the figure of a ledger shows, and how many of its lines it cannot show."""
    missing = int((lines["n_seeds"] == 0).sum())
    said = "Effects, with 95 % intervals over seeds and images, where they could be tested."
    return said + (f" Of {missing} of the {len(lines)} claims there is no effect at this scale." if missing else "")


def counted(verdicts: Sequence[str]) -> str:
    """`3 hold, 1 does not`: how many of these verdicts there are of each kind."""
    counts = pandas.Series(list(verdicts), dtype=object).value_counts()
    return ", ".join(f"{counts[said]} {(OF_ONE if counts[said] == 1 else SHORT)[said]}"
                     for said in SHORT if said in counts)


def verdict_counts(ledgers: dict[str, pandas.DataFrame]) -> pandas.DataFrame:
    """Ledgers of all notebooks (`artifacts.ledger`) by scale, in one table: a line per notebook, in each cell how many
    of its claims have which verdict."""
    columns = {scale: lines.groupby("notebook")["verdict"].agg(counted) for scale, lines in ledgers.items()}
    return pandas.DataFrame(columns).fillna("")


def with_part(text: str, part: str, made: str) -> str:
    """A text for people with what was `made` between the two marks of this part, such as `ledger`; `UserError` if it
    has not both of them once."""
    begin, end = f"<!-- {part}: made by `sparserobust ledger --readme` -->", f"<!-- end of the {part} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in after or end in after:
        raise UserError(f"the lines {begin} and {end} should stand in it once each, with the {part} between them")
    return f"{before}{begin}\n{made}{end}{after}"
