"""A paper's claims, judged: the measured effect with its interval over seeds, and a verdict."""

import math

import pandas

from sparserobust.reported import Claim

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided at this scale", "not run at this scale"


def interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean over seeds; (nan, nan) for fewer than two."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean = sum(values) / n
    error = (sum((v - mean) ** 2 for v in values) / (n - 1) / n) ** 0.5
    reach = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return mean - reach, mean + reach


def binomial_interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a rate, in [0, 1]."""
    from scipy import stats

    result = stats.binomtest(int(count), int(total)).proportion_ci(level, method="wilson")
    return float(result.low), float(result.high)


def verdict(direction: str | None, low: float, high: float, threshold: float = 0.0, margin: float = 0.0) -> str:
    """Whether an effect with this interval bears out a claim: `increase` and `decrease` against `threshold`, `no worse`
    against minus `margin`. Without an interval (one seed) nothing is decided."""
    if math.isnan(low) or direction is None:
        return UNDECIDED
    if direction == "decrease":
        low, high = -high, -low
        threshold = -threshold
    bound = -margin if direction == "no worse" else threshold
    return HOLDS if low > bound else FAILS if high < bound else UNDECIDED


def judged(claim: Claim, effects: list[float], margin: float = 0.0, where: str = "") -> dict:
    """One row of a ledger. `effects` holds the paired effect of each seed, in the claim's unit. A claim that says "at
    least" is held against the number it names, any other against zero (for ratios against one)."""
    low, high = interval(effects)
    neutral = 1.0 if claim.unit == "ratio" else 0.0
    threshold = claim.reported if claim.lower_bound and claim.reported is not None else neutral
    said = verdict(claim.direction, low, high, threshold, margin) if effects else NOT_RUN
    return {"claim": claim.id, "statement": claim.statement, "quantity": claim.quantity, "unit": claim.unit,
            "direction": claim.direction, "reported": claim.reported, "source": claim.source,
            "ours": sum(effects) / len(effects) if effects else math.nan, "low": low, "high": high,
            "n_seeds": len(effects), "verdict": said, "where": where}


def paired_effects(frame: pandas.DataFrame, metric: str, treatment: dict, reference: dict, ratio: bool = False,
                   factor: float = 100.0) -> list[float]:
    """Per seed, `metric` of the row `treatment` minus (or over) that of the row `reference`; rows are named by the
    values of some columns. Rates become percentage points by `factor`."""
    def by_seed(row: dict) -> pandas.Series:
        chosen = frame[frame["metric"] == metric]
        for column, value in row.items():
            chosen = chosen[chosen[column].isna() if value is None else chosen[column] == value]
        return chosen.set_index("seed")["value"]

    one, other = by_seed(treatment), by_seed(reference)
    seeds = sorted(set(one.index) & set(other.index))
    if ratio:
        return [float(one[s] / other[s]) for s in seeds if other[s] > 0]
    return [float(factor * (one[s] - other[s])) for s in seeds]
