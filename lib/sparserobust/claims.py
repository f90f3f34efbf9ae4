"""A paper's claims, judged: the measured effect with its interval over seeds, and a verdict."""

import math

import pandas

from sparserobust.estimates import interval
from sparserobust.reported import Claim

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided at this scale"
NOT_RUN, NOT_SAID = "not run at this scale", "not on record"  # the latter: what the paper claims is not known
SHORT = {HOLDS: "hold", FAILS: "do not", UNDECIDED: "undecided", NOT_RUN: "not run", NOT_SAID: "not on record"}


def verdict(direction: str | None, low: float, high: float, threshold: float = 0.0, margin: float = 0.0) -> str:
    """Whether an effect with this interval bears out a claim: `increase` and `decrease` against `threshold`, `no worse`
    against minus `margin`. Without an interval (one seed, or equal ones) nothing is decided."""
    if math.isnan(low) or direction is None:
        return UNDECIDED
    if direction == "decrease":
        low, high = -high, -low
        threshold = -threshold
    bound = -margin if direction == "no worse" else threshold
    return HOLDS if low > bound else FAILS if high < bound else UNDECIDED


def judged(claim: Claim, effects: list[float], margin: float = 0.0, where: str = "") -> dict:
    """One row of a ledger. `effects` holds the paired effect of each seed, in the claim's unit. A claim that says "at
    least" is held against the number it names, any other against zero (for ratios against one). A claim without a
    direction and effects is not on record."""
    low, high = interval(effects)
    neutral = 1.0 if claim.unit == "ratio" else 0.0
    threshold = claim.reported if claim.lower_bound and claim.reported is not None else neutral
    without = NOT_SAID if claim.direction is None else NOT_RUN
    said = verdict(claim.direction, low, high, threshold, margin) if effects else without
    ours = sum(effects) / len(effects) if effects else math.nan
    return _row(claim, ours, low, high, len(effects), said, where)


def always(claim: Claim, count: int, total: int, n_seeds: int, where: str = "") -> dict:
    """One row of a ledger for a claim that something is so every time: a single exception among `total` refutes it, one
    seed bears out nothing; `ours` is the share [%] of times it was so."""
    share = 100 * count / total
    said = FAILS if count < total else HOLDS if n_seeds > 1 else UNDECIDED
    return _row(claim, share, share, share, n_seeds, said, where)


def estimated(claim: Claim, ours: float, low: float, high: float, n_seeds: int, where: str = "") -> dict:
    """One row of a ledger for an estimate that comes with its interval, a slope over runs say, held against zero; one
    seed decides nothing, as elsewhere."""
    said = verdict(claim.direction, low, high) if n_seeds > 1 else UNDECIDED
    return _row(claim, ours, low, high, n_seeds, said, where)


def _row(claim: Claim, ours: float, low: float, high: float, n_seeds: int, said: str, where: str) -> dict:
    return {"claim": claim.id, "statement": claim.statement, "quantity": claim.quantity, "unit": claim.unit,
            "direction": claim.direction, "reported": claim.reported, "source": claim.source,
            "ours": ours, "low": low, "high": high, "n_seeds": n_seeds, "verdict": said, "where": where}


def table(ledger: pandas.DataFrame, digits: int = 2) -> pandas.DataFrame:
    """A ledger, the rows of the functions above, as a table: one line per claim; cells without a number are empty."""
    columns = ["claim", "quantity", "unit", "reported", "ours", "low", "high", "n_seeds", "verdict", "where"]
    return ledger[columns].round(digits).astype(object).fillna("").set_index("claim")


def verdicts(ledger: pandas.DataFrame) -> pandas.DataFrame:
    """How many rows of each claim, whose name is the first word of theirs, hold, do not, cannot be told, and so on."""
    names = ledger["claim"].str.split().str[0]
    found = ledger.assign(claim=names).groupby(["claim", "verdict"], sort=False).size().unstack(fill_value=0)
    return found.reindex(columns=[said for said in SHORT if said in found])


def standing(ledgers: dict[str, pandas.DataFrame]) -> pandas.DataFrame:
    """Ledgers of all notebooks (`artifacts.ledger`) by scale, in one table: a line per notebook, in each cell how many
    of its comparisons hold, do not, cannot be told, or were not made."""
    def told(verdicts: pandas.Series) -> str:
        counts = verdicts.value_counts()
        return ", ".join(f"{counts[said]} {word}" for said, word in SHORT.items() if said in counts)

    columns = {scale: ledger.groupby("notebook")["verdict"].agg(told) for scale, ledger in ledgers.items()}
    return pandas.DataFrame(columns).fillna("")
