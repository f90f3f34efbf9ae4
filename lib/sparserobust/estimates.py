"""Estimates with their uncertainty: intervals over seeds, of rates, effects paired by seed, slopes over runs."""

import math
from collections.abc import Sequence

import numpy as np
import pandas

from sparserobust.errors import UserError


def interval(values: list[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean over seeds; (nan, nan) for fewer than two, or where all values are equal:
    rates of few images coincide by chance, and an interval of no width would decide what nothing is known of."""
    from scipy import stats

    n = len(values)
    if n < 2 or math.isclose(min(values), max(values), abs_tol=1e-9):
        return math.nan, math.nan
    mean = sum(values) / n
    error = (sum((v - mean) ** 2 for v in values) / (n - 1) / n) ** 0.5
    reach = float(stats.t.ppf(0.975, n - 1)) * error
    return mean - reach, mean + reach


def binomial_interval(count: float, total: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate, in [0, 1]; counts that are means are rounded."""
    from scipy import stats

    result = stats.binomtest(round(count), round(total)).proportion_ci(0.95, method="wilson")
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


def best_level(values: pandas.DataFrame, without: int | None = None):
    """Of values (levels, seeds) the level with the highest mean over seeds, leaving out one of them (unless it is the
    only one)."""
    others = values.drop(columns=without) if without is not None and values.shape[1] > 1 else values
    return others.mean(axis=1).idxmax()


def gains(values: pandas.DataFrame, reference: pandas.DataFrame) -> list[float]:
    """For each seed the value at the best level minus the reference; both are (levels, seeds). The level is the one
    that is best on the *other* seeds, so that choosing it does not add to the gain; with one seed it does. `reference`
    has one level, or the same ones as `values`."""
    found = []
    for seed in values.columns.intersection(reference.columns):
        level = best_level(values, without=seed)
        against = reference[seed]
        found.append(float(values.at[level, seed] - (against.iloc[0] if len(against) == 1 else against[level])))
    return found


def ranking(right: dict[str, np.ndarray], draws: int = 2000) -> pandas.DataFrame:
    """How methods rank that were tried on the same seeds and the same images. `right` maps each to an array (seeds,
    images) of zeros and ones: whether the network of that seed was right on that image. One line per method, the best
    first: its `mean`, in percent, and its 95 % interval `low` to `high`; its `rank` (1 is best) with the interval
    `rank_low` to `rank_high`; and `best`, how often it comes first [%], ties shared.

    The intervals hold the percentiles of a bootstrap that redraws seeds and images, the same ones for all methods. So
    two methods that are right on the same images are told apart sooner than their own intervals say. With few seeds
    their share of the doubt is understated: of three, one draw in nine holds the same seed three times. `UserError` if
    the arrays are not alike."""
    names, table = list(right), [np.asarray(a, float) for a in right.values()]
    if len({a.shape for a in table}) != 1 or table[0].ndim != 2:
        raise UserError("a ranking needs the same seeds and the same images of all methods")
    values = np.stack(table)
    drawn = _redrawn(values, draws)
    ranks = (drawn[:, None, :] > drawn[:, :, None]).sum(2) + 1  # one more than those above
    first = ranks == 1
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    rank_low, rank_high = np.quantile(ranks, (0.025, 0.975), axis=0, method="nearest")
    means = values.mean((1, 2))
    found = pandas.DataFrame({"mean": 100 * means, "low": 100 * low, "high": 100 * high,
                              "rank": (means[None] > means[:, None]).sum(1) + 1, "rank_low": rank_low,
                              "rank_high": rank_high, "best": 100 * (first / first.sum(1, keepdims=True)).mean(0)},
                             index=pandas.Index(names, name="method"))
    return found.sort_values("mean", ascending=False, kind="stable")


def difference(one: np.ndarray, other: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """One method's accuracy minus another's, in percentage points, with the 95 % interval of the bootstrap of
    `ranking`: both are arrays (seeds, images) of zeros and ones, on the same seeds and images."""
    gaps = np.asarray(one, float) - np.asarray(other, float)
    low, high = np.quantile(_redrawn(gaps[None], draws), (0.025, 0.975))
    return 100 * float(gaps.mean()), 100 * float(low), 100 * float(high)


def _redrawn(values: np.ndarray, draws: int) -> np.ndarray:
    """Means (draws, methods) of values (methods, seeds, images) over redrawn seeds and images, the same for all
    methods."""
    dice, (_, seeds, images) = np.random.default_rng(0), values.shape
    return np.array([values[:, dice.integers(seeds, size=seeds)].mean(1)[:, dice.integers(images, size=images)].mean(1)
                     for _ in range(draws)])


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
