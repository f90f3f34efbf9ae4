"""Estimates with their uncertainty: intervals over seeds, intervals of rates, effects paired by seed."""

import math

import pandas


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


def matching(frame: pandas.DataFrame, row: dict) -> pandas.DataFrame:
    """The rows of a frame that have these values in these columns; None and nan match an empty cell."""
    for column, value in row.items():
        frame = frame[frame[column].isna() if pandas.isna(value) else frame[column] == value]
    return frame


def paired_effects(frame: pandas.DataFrame, metric: str, treatment: dict, reference: dict, ratio: bool = False,
                   factor: float = 100.0) -> list[float]:
    """Per seed, `metric` of the row `treatment` minus (or over) that of the row `reference`; rows are named by the
    values of some columns. Rates become percentage points by `factor`."""
    def by_seed(row: dict) -> pandas.Series:
        return matching(frame, {"metric": metric, **row}).set_index("seed")["value"]

    one, other = by_seed(treatment), by_seed(reference)
    seeds = sorted(set(one.index) & set(other.index))
    if ratio:
        return [float(one[s] / other[s]) for s in seeds if other[s] > 0]
    return [float(factor * (one[s] - other[s])) for s in seeds]
