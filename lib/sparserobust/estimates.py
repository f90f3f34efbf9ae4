"""Estimates with their uncertainty: intervals over seeds, of rates, effects paired by seed, slopes over runs."""

import math
from collections.abc import Sequence

import numpy as np
import pandas

from sparserobust.errors import UserError


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


def left(frame: pandas.DataFrame, metric: str) -> pandas.Series:
    """For each row what is left [%] of its run, where `metric` is the share that is zero; nan where it is unknown."""
    measured = frame[frame["metric"] == metric].drop_duplicates("run").set_index("run")["value"]
    return 100 * (1 - frame["run"].map(measured))


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


def regression(frame: pandas.DataFrame, target: str, columns: Sequence[str],
               clusters: Sequence[str] = ("method", "level"), draws: int = 2000) -> pandas.DataFrame:
    """Ordinary least squares of the column `target` on `columns`, all standardised, over runs (rows; those where one is
    missing are left out). A line per column: its `slope`, in standard deviations of the target per standard deviation
    of the column; the 95 % interval `low` to `high`; `r2` of all, and `r2_without` this column. Columns that tell the
    same lose little when one of them goes, and then their slopes mean little.

    The interval holds the percentiles of a bootstrap that redraws as a whole the rows that are equal in `clusters`: by
    default a condition with all its seeds. These share what the line does not explain, so that runs drawn one by one
    would pass for more evidence than there is; and the seeds of an experiment, three or so, are too few to be redrawn
    themselves. Standard deviations stay those of all runs, since levels are chosen and not drawn. `UserError` where the
    runs do not determine the slopes."""
    columns = list(columns)
    rows = frame.dropna(subset=[target, *columns])
    groups = list(rows.groupby(list(clusters), dropna=False).indices.values())
    values = rows[[target, *columns]].to_numpy(float)
    if not np.isfinite(values).all():
        raise UserError(f"not all of {target}, {', '.join(columns)} are finite: was a logarithm of zero taken?")
    undetermined = UserError(f"{len(rows)} runs of {len(groups)} clusters do not determine how {target} depends on "
                             f"{', '.join(columns)}")
    if min(len(groups), len(rows) - 1) <= len(columns) or not np.ptp(values, axis=0).all():
        raise undetermined
    standard = (values - values.mean(0)) / values.std(0)
    slopes, r2 = _least_squares(standard)
    if np.isnan(slopes).any():
        raise undetermined
    dice, drawn = np.random.default_rng(0), []
    for _ in range(draws):
        chosen = np.concatenate([groups[g] for g in dice.integers(len(groups), size=len(groups))])
        drawn.append(_least_squares(standard[chosen])[0])
    low, high = np.nanquantile(drawn, (0.025, 0.975), axis=0)
    without = [_least_squares(np.delete(standard, 1 + i, axis=1))[1] for i in range(len(columns))]
    return pandas.DataFrame({"slope": slopes, "low": low, "high": high, "r2": r2, "r2_without": without,
                             "runs": len(rows)}, index=pandas.Index(columns, name="column"))


def _least_squares(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Slopes of the first column on the others, nan where these do not determine them; and R^2, if the first column is
    standardised."""
    y, x = np.split(values - values.mean(0), [1], axis=1)
    slopes, _, rank, _ = np.linalg.lstsq(x, y[:, 0])
    slopes = slopes if rank == x.shape[1] else np.full(x.shape[1], np.nan)
    return slopes, float((x @ slopes) @ y[:, 0]) / len(y)
