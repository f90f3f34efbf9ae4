"""Estimates with their uncertainty: comparisons paired by seed and image, rates, ranks, slopes over runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas

from sparserobust import imagewise
from sparserobust.errors import UserError
from sparserobust.reporting.crossed import Estimate, crossed, log_ratio, over_seeds
from sparserobust.settings import unknown


def binomial_interval(count: float, total: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate, in [0, 1]; counts that are means are rounded."""
    from scipy import stats

    result = stats.binomtest(round(count), round(total)).proportion_ci(0.95, method="wilson")
    return float(result.low), float(result.high)


def matching(frame: pandas.DataFrame, row: dict) -> pandas.DataFrame:
    """The rows of a frame that have these values in these columns; None and nan match an empty cell. `UserError` for a
    column that is not there."""
    for column, value in row.items():
        if column not in frame:
            unknown("column", column, "the frame", dict.fromkeys(map(str, frame.columns)))
        frame = frame[frame[column].isna() if pandas.isna(value) else frame[column] == value]
    return frame


def measured_by(frame: pandas.DataFrame, metric: str) -> pandas.DataFrame:
    """All rows of the runs of which a metric was measured."""
    return frame[frame["run"].isin(frame.loc[frame["metric"] == metric, "run"])]


def rates_are_counts(frame: pandas.DataFrame) -> bool:
    """Whether every value that was counted is its count over its total."""
    counted = frame.dropna(subset=["count", "total"])
    return bool(((counted["value"] - counted["count"] / counted["total"]).abs() < 1e-9).all())


def left(frame: pandas.DataFrame, metric: str) -> pandas.Series:
    """For each row what is left [%] of its run, where `metric` is the share that is zero; nan where it is unknown."""
    measured = frame[frame["metric"] == metric].drop_duplicates("run").set_index("run")["value"]
    return 100 * (1 - frame["run"].map(measured))


@dataclass(frozen=True)
class Comparison:
    """What a comparison of two kinds of networks gave: an `Estimate` of the effect, or in `why` the reason for which
    there is none; `effects` are those of the single seeds (also of one), in the same unit."""

    estimate: Estimate | None
    effects: list[float]
    why: str = ""


FEWEST = 3  # seeds: with two of them the error of a test can reach 8 % where it should be 5 (`crossed`)
NOT_RUN, ONE_SEED, NO_ANSWERS = "not run at this scale", "one seed", "no answers kept"
NO_LOGARITHM = "a value is zero, of which there is no logarithm"
OTHER_IMAGES, FEW_IMAGES = "the two answered different images", "fewer than two images have a value in all networks"


def compared(frame: pandas.DataFrame, metric: str, treatment: dict, reference: dict, factor: float = 100.0,
             log: bool = False, against: str = "") -> Comparison:
    """`metric` of the row `treatment` minus that of the row `reference` (or the metric `against`), seed by seed and,
    where images enter, image by image; rows are named by the values of some columns. Rates become percentage points by
    `factor`; with `log` the effect is the logarithm to base 10 of the ratio of the two means."""
    one, other = (_by_seed(matching(frame, {"metric": name, **row}), row)
                  for name, row in ((metric, treatment), (against or metric, reference)))
    pairs = {seed: (one[seed], other[seed]) for seed in sorted(set(one.index) & set(other.index))}
    return compared_runs(frame, metric, pairs, factor, log, against)


def _by_seed(rows: pandas.DataFrame, labels: dict) -> pandas.Series:
    """The run of each seed among some rows. `UserError` if a seed has several."""
    runs = rows.groupby("seed")["run"].unique()
    for seed, several in runs.items():
        if len(several) > 1:
            raise UserError(f"{len(several)} runs of seed {seed} are {labels}: give more labels, which tell them apart")
    return runs.map(lambda each: each[0])


def compared_runs(frame: pandas.DataFrame, metric: str, pairs: dict[int, tuple[str, str]], factor: float = 100.0,
                  log: bool = False, against: str = "") -> Comparison:
    """The same for the runs (treatment, reference) of each seed. A comparison is not made where a network has
    collapsed: what a constant answer resists says nothing of a method."""
    known = frame[frame["value"].notna()]
    found = [known[known["metric"] == name].drop_duplicates("run").set_index("run")
             for name in (metric, against or metric)]
    pairs = {seed: pair for seed, pair in pairs.items()
             if all(run in side.index for run, side in zip(pair, found, strict=True))}
    if not pairs:
        return Comparison(None, [], NOT_RUN)
    pairs = _on_the_same_images(pairs, *found)
    ones, others = (side.loc[[pair[i] for pair in pairs.values()]] for i, side in enumerate(found))
    values = ones["value"].to_numpy(float), others["value"].to_numpy(float)
    runs = [run for pair in pairs.values() for run in pair]
    if log and not (values[0] > 0).all() & (values[1] > 0).all():
        return Comparison(None, [], collapse(frame, runs) or NO_LOGARITHM)
    effects = np.log10(values[0] / values[1]) if log else factor * (values[0] - values[1])

    def untested(why: str) -> Comparison:
        return Comparison(None, effects.tolist(), why)

    if why := collapse(frame, runs):
        return untested(why)
    if why := few(len(pairs)):
        return untested(why)
    if not ones["sampled"].iloc[0]:
        return Comparison(over_seeds(effects), effects.tolist())
    packed = [*ones["each"], *others["each"]]
    if any(pandas.isna(text) for text in packed):
        return untested(NO_ANSWERS)
    if len({imagewise.is_sample(text) for text in packed}) > 1:
        return untested(OTHER_IMAGES)
    one, other = np.split(common(packed), 2)
    try:
        estimate = crossed(log_ratio(one, other) if log else factor * (one - other))
    except UserError:  # on the images that both have
        return untested(NO_LOGARITHM)
    return Comparison(estimate, effects.tolist()) if estimate.images > 1 else untested(FEW_IMAGES)


def _on_the_same_images(pairs: dict[int, tuple[str, str]], one: pandas.DataFrame,
                        other: pandas.DataFrame) -> dict[int, tuple[str, str]]:
    """Those seeds whose two networks answered images chosen alike, drawn or the first of the test set, where these are
    enough to test anything: whichever are more, drawn ones if as many. Otherwise all seeds."""
    alike: dict[bool, dict] = {True: {}, False: {}}
    for seed, (treated, reference) in pairs.items():
        texts = one.at[treated, "each"], other.at[reference, "each"]
        drawn = {imagewise.is_sample(text) for text in texts if not pandas.isna(text)}
        if len(drawn) == 1 and not any(map(pandas.isna, texts)):
            alike[drawn.pop()][seed] = pairs[seed]
    most = max(alike.values(), key=len)
    return pairs if few(len(most)) else most


def few(seeds: int) -> str:
    """Why so many seeds test nothing, if they do not."""
    return "" if seeds >= FEWEST else (NOT_RUN, ONE_SEED, "two seeds")[seeds]


def common(packed: Sequence[str]) -> np.ndarray:
    """Values (networks, images) of the images that all of these packed values have in common: the sample of fewer
    images is the beginning of that of more."""
    values = [imagewise.unpack(text) for text in packed]
    images = min(map(len, values))
    return np.array([v[:images] for v in values])


def with_interval(effect: float, low: float, high: float, digits: int) -> str:
    """`+2.0 [+1.1, +2.9]`; `+2.0` where there is no interval (nan), or one of no width."""
    spread = "" if math.isnan(low) or low == high else f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{effect:+.{digits}f}{spread}"


DIGITS = 9  # of means in a ranking: beyond them is the order in which they were added
COLLAPSED = 1 / 9  # of the way from guessing to perfection: 20 % where there are ten classes


def collapse(frame: pandas.DataFrame, runs: Sequence[str]) -> str:
    """Which of these runs have collapsed, if one has: its clean accuracy is next to that of guessing. Or that this is
    not known of one, where it is of others."""
    known = frame[(frame["metric"] == "clean") & frame["value"].notna()]
    clean = known[known["run"].isin(runs)].drop_duplicates("run")
    if len(known) and not set(runs) <= set(clean["run"]):
        return "clean accuracy is not known of a network, so it may have collapsed"
    fallen = clean[collapsed(clean["value"], clean["chance"])]
    if fallen.empty:
        return ""
    return f"a network has collapsed (clean {100 * fallen['value'].min():.0f} %)"


def collapsed(clean: pandas.Series, chance: pandas.Series) -> pandas.Series:
    """Whether clean accuracies (rates) are next to that of guessing (`chance`)."""
    return clean.astype(float) < chance + COLLAPSED * (1 - chance)


def best_level(values: pandas.DataFrame, without: int | None = None):
    """Of values (levels, seeds) the level with the highest mean over seeds, leaving out one of them (unless it is the
    only one), and those that lack a level (unless all do): means are of the same seeds."""
    others = values.drop(columns=without) if without is not None and values.shape[1] > 1 else values
    whole = others.dropna(axis=1)
    return (others if whole.empty else whole).mean(axis=1).idxmax()


def chosen_levels(validation: pandas.DataFrame) -> dict:
    """For each seed the level at which the *other* seeds are best, by what was measured on the validation split
    (levels, seeds). So neither the test images nor the networks that are judged have a say in the choice; with one
    seed its own validation decides."""
    return {seed: best_level(validation, without=seed) for seed in validation.columns}


def ranking(right: dict[str, np.ndarray], draws: int = 2000) -> pandas.DataFrame:
    """How methods rank that were tried on the same seeds and the same images. `right` maps each to an array (seeds,
    images) of zeros and ones: whether the network of that seed was right on that image. One line per method, the best
    first: its `mean`, in percent, and its 95 % interval `low` to `high`; its `rank` (1 is best) with the interval
    `rank_low` to `rank_high`; and `best`, how often it comes first [%], ties shared.

    The intervals hold the percentiles of a bootstrap that redraws seeds and images, the same ones for all methods. So
    two methods that are right on the same images are told apart sooner than their own intervals say. With few seeds
    their share of the doubt is understated: of three, one draw in nine holds the same seed three times. `UserError` if
    the arrays are not alike, or a number in them is not finite."""
    names, table = list(right), [np.asarray(a, float) for a in right.values()]
    if len({a.shape for a in table}) != 1 or table[0].ndim != 2:
        raise UserError("a ranking needs the same seeds and the same images of all methods")
    values = np.stack(table)
    if not np.isfinite(values).all():
        raise UserError("a ranking needs an answer of each method to each image: some are not finite")
    drawn = _redrawn(values, draws)
    ranks = (drawn[:, None, :] > drawn[:, :, None]).sum(2) + 1  # one more than those above
    first = ranks == 1
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    rank_low, rank_high = np.quantile(ranks, (0.025, 0.975), axis=0, method="nearest")
    means = np.round(values.mean((1, 2)), DIGITS)
    found = pandas.DataFrame({"mean": 100 * means, "low": 100 * low, "high": 100 * high,
                              "rank": (means[None] > means[:, None]).sum(1) + 1, "rank_low": rank_low,
                              "rank_high": rank_high, "best": 100 * (first / first.sum(1, keepdims=True)).mean(0)},
                             index=pandas.Index(names, name="method"))
    return found.sort_values("mean", ascending=False, kind="stable")


# By hand: scipy.stats.bootstrap redraws one axis, and here seeds and images are redrawn, the same for all methods.
def _redrawn(values: np.ndarray, draws: int) -> np.ndarray:
    """Means (draws, methods) of values (methods, seeds, images) over redrawn seeds and images, the same for all
    methods."""
    dice, (_, seeds, images) = np.random.default_rng(0), values.shape
    drawn = [values[:, dice.integers(seeds, size=seeds)].mean(1)[:, dice.integers(images, size=images)].mean(1)
             for _ in range(draws)]
    return np.round(drawn, DIGITS)


def regression(frame: pandas.DataFrame, target: str, columns: Sequence[str],
               clusters: Sequence[str] = ("method", "level"), draws: int = 2000) -> pandas.DataFrame:
    """Ordinary least squares of the column `target` on `columns`, all standardised, over runs (rows; those where one is
    missing are left out). A line per column: its `slope`, in standard deviations of the target per standard deviation
    of the column; the 95 % interval `low` to `high`; the two-sided `p` against zero; `r2` of all, and `r2_without` this
    column. Columns that tell the same lose little when one of them goes, and then their slopes mean little.

    The interval holds the percentiles of a bootstrap that redraws as a whole the rows that are equal in `clusters`: by
    default a condition with all its seeds. These share what the line does not explain, so that runs drawn one by one
    would pass for more evidence than there is; and the seeds of an experiment, three or so, are too few to be redrawn
    themselves. Draws that do not determine the slopes are left out. Standard deviations stay those of all runs, since
    levels are chosen and not drawn. `UserError` where the runs, or most draws, do not determine the slopes."""
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
    determined = np.array([slope for slope in drawn if not np.isnan(slope).any()])
    if len(determined) < draws / 2:
        raise undetermined
    low, high = np.quantile(determined, (0.025, 0.975), axis=0)
    beyond = np.minimum((determined <= 0).mean(0), (determined >= 0).mean(0))
    without = [_least_squares(np.delete(standard, 1 + i, axis=1))[1] for i in range(len(columns))]
    return pandas.DataFrame({"slope": slopes, "low": low, "high": high, "p": np.clip(2 * beyond, 1 / draws, 1),
                             "r2": r2, "r2_without": without,
                             "runs": len(rows)}, index=pandas.Index(columns, name="column"))


def _least_squares(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Slopes of the first column on the others, nan where these do not determine them; and R^2, if the first column is
    standardised."""
    y, x = np.split(values - values.mean(0), [1], axis=1)
    slopes, _, rank, _ = np.linalg.lstsq(x, y[:, 0])
    if rank < x.shape[1] or not (np.ptp(x, axis=0) > 1e-9).all():
        slopes = np.full(x.shape[1], np.nan)
    return slopes, float((x @ slopes) @ y[:, 0]) / len(y)
