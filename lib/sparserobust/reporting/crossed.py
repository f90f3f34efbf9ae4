"""Comparisons in which seeds and images are both samples: effect, interval, tests, seeds needed.

S networks (seeds) of each of two kinds answer the same N images. Their differences are taken as

    D[s, i] = mu + a[s] + b[i] + e[s, i]

with random effects of the seed, of the image, and of both together. The mean squares of this
two-way layout give the variance of the mean of all D,

    Var = x + c,   x = MS_seeds / (S N),   c = max(MS_images - MS_residual, 0) / (S N)

(Clark 1973, J. Verbal Learn. Verbal Behav. 12:335; Westfall, Kenny & Judd 2014, J. Exp. Psychol.
Gen. 143:2020). The part x, due to the sample of seeds, has S - 1 degrees of freedom; the part c,
due to the sample of images, is taken to have N - 1. As in the Behrens-Fisher problem, no test is
exact for every x / c. In the test used here the error of the mean, in units of sqrt(x + c),
exceeds t with probability

    (x T[S-1](t) + c T[N-1](t)) / (x + c),   T[df] the upper tail of Student's distribution.

The weights are those of Cochran & Cox (Experimental Designs, 1950), who average critical values;
the average of tails is a step of this library. It gives one distribution for all levels, so that
interval, p value and test of equivalence agree; an error nearer to a nominal 5 %; and at smaller
nominal errors none above 1.05 times that. Where only seeds or only images vary, it is Student's
test.

Why not a textbook method: the least and the greatest error [%] of two-sided tests over all x / c,
if c is known, as it nearly is for 500 images or more.

    seeds, nominal error    3, 5 %       3, 1 %       3, 0.3 %     5, 5 %       8, 5 %
    average of tails        3.6 to 5.2   0.4 to 1.0   0.1 to 0.3   3.9 to 5.0   4.2 to 5.0
    Cochran & Cox           2.9 to 5.0   0.3 to 1.2   0.1 to 0.5   3.6 to 5.0   4.1 to 5.0
    Banerjee (1960)         2.3 to 5.0   0.2 to 1.0   0.0 to 0.3   3.4 to 5.0   4.1 to 5.0
    Weerahandi's p value    2.4 to 5.0   0.2 to 1.0   0.0 to 0.3   3.5 to 5.0   4.2 to 5.0
    Satterthwaite's df      5.0 to 7.9   1.0 to 3.5   0.3 to 2.3   5.0 to 5.9   5.0 to 5.3

With two seeds the error reaches 8 % at a nominal 5 %. Student's test over the seeds alone, which
leaves out c, reaches 17 % with three seeds and 46 % with eight (`benchmarks/coverage.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from sparserobust.errors import UserError

ROUNDING = 1e-9  # means of seeds that differ by less are equal


@dataclass(frozen=True)
class Estimate:
    """A mean effect, and the mean squares its uncertainty follows from.

    `images` is 0 where no image enters; `ms_seeds` is then the variance over seeds. Interval and p
    values are nan with one seed, and where all seeds have the same mean (`ms_seeds` is 0): rates of
    few images coincide by chance, and a variance of zero would decide what is not known."""

    mean: float
    seeds: int
    images: int
    ms_seeds: float
    ms_images: float = 0.0
    ms_residual: float = 0.0

    @property
    def variances(self) -> tuple[float, float]:
        """The parts of the variance of the mean due to the samples of seeds and of images."""
        if self.seeds < 2 or not self.ms_seeds > 0:
            return math.nan, math.nan
        values = self.seeds * max(self.images, 1)
        return self.ms_seeds / values, max(self.ms_images - self.ms_residual, 0.0) / values

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return math.sqrt(sum(self.variances))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The values that the two-sided test does not reject at 1 - `level`; symmetric about the
        mean."""
        from scipy import optimize, special

        error = self.error
        if math.isnan(error):
            return math.nan, math.nan
        fewest = min(self.seeds, self.images or self.seeds)
        widest = special.stdtrit(fewest - 1, (1 + level) / 2)  # Student's reach with this few
        reach = error * optimize.brentq(lambda t: self._tail(t * error) - (1 - level) / 2,
                                        0, 2 * widest, xtol=1e-12)
        return self.mean - reach, self.mean + reach

    def p(self, threshold: float = 0.0) -> float:
        """Two-sided p value of the hypothesis that the effect is `threshold`."""
        return 2 * self._tail(abs(self.mean - threshold))

    def p_within(self, margin: float, centre: float = 0.0) -> float:
        """p value of the hypothesis that the effect is `margin` or more away from `centre`, by two
        one-sided tests; below 0.05 exactly where the 90 % interval lies inside the margin."""
        return self._tail(margin - abs(self.mean - centre))

    def seeds_needed(self, threshold: float = 0.0, margin: float | None = None,
                     most: int = 100) -> int | None:
        """The least number of seeds with which, at this mean and these variance components, the
        95 % interval excludes `threshold`, or the 90 % interval lies within `margin` of it.

        None if no number up to `most` does or if there is no interval. A new experiment of that size
        decides in about half of all cases, since its mean varies too."""
        return next((seeds for seeds in range(2, most + 1)
                     if self.decided_by(seeds, threshold, margin)), None)

    def decided_by(self, seeds: int, threshold: float = 0.0, margin: float | None = None) -> bool:
        """Whether so many seeds would do that. Components of the variance below zero count as
        zero."""
        if math.isnan(self.error):
            return False
        by_image = (self.ms_images - self.ms_residual) / self.seeds  # variance of b
        planned = replace(self, seeds=seeds, ms_seeds=max(self.ms_seeds, self.ms_residual),
                          ms_images=self.ms_residual + seeds * by_image)
        return planned.p(threshold) < 0.05 or (margin is not None
                                               and planned.p_within(margin, threshold) < 0.05)

    def _tail(self, gap: float) -> float:
        return float(tail(gap, *self.variances, self.seeds, self.images))


def tail(gap, by_seeds, by_images, seeds: int, images: int):
    """Probability that the error of a mean exceeds `gap` (the formula above); `by_seeds` and
    `by_images` are x and c, the parts of its variance. These three may be arrays."""
    from scipy import special

    variance = by_seeds + by_images
    t = gap / np.sqrt(variance)
    return (by_seeds * special.stdtr(seeds - 1, -t)
            + by_images * special.stdtr(max(images - 1, 1), -t)) / variance


@lru_cache(maxsize=1000)
def over_looks(p: float, looks: tuple[int, ...], two_sided: bool = True) -> float:
    """The probability, where the hypothesis is true, that the p value is as low as `p` at one or
    more of these looks: numbers of seeds, from the fewest to the most, after each of which the
    experiment may end. So what is below 0.05 is below it however often it was looked at. With one
    look, `p` itself. Right to two percent of its value where `p` is above 1e-5; at most, and in any
    case below 1e-9, `p` times the number of looks.

    It is exact for Student's tests over the seeds. Let u = sum / sqrt(n sum of squares) after n
    seeds, so that t = u sqrt(n - 1) / sqrt(1 - u^2). It is independent of the sum of squares, and
    the next one is

        u' = (sqrt(n) u cos(a) + sin(a)) / sqrt(n + 1)

    with an angle a whose density is proportional to cos(a)^(n - 1) on (-pi/2, pi/2): the sequence
    of t values is a Markov chain (Hall, Wijsman & Ghosh 1965, Ann. Math. Stat. 36:575), and is
    followed backwards from the last look. The part of the error that is due to images does not
    shrink as seeds are added; that makes means more alike, and the probability smaller than what
    is returned (simulated: `benchmarks/coverage.py --looks`)."""
    from scipy import special

    if len(looks) < 2 or not 0 < p < 1:
        return p
    if p < 1e-9:
        return len(looks) * p
    nodes, weights = np.polynomial.legendre.leggauss(30)
    quarter = math.pi / 2

    def bounds(n: int) -> tuple[float, float]:
        """Between which u goes on; everywhere at a number of seeds that is not looked at."""
        if n not in looks:
            return -1.0, 1.0
        t = -special.stdtrit(n - 1, p / 2 if two_sided else p)
        u = float(t / math.hypot(t, math.sqrt(n - 1)))
        return -u if two_sided else -1.0, u

    def mean(value, edges: np.ndarray, power: int) -> np.ndarray:
        """Of a function of angles whose density is cos^power, over intervals between `edges`."""
        low, high = edges[..., :-1, None], edges[..., 1:, None]
        angle = (low + high + (high - low) * nodes) / 2
        share = (high - low) / 2 * weights * np.cos(angle) ** power
        return (value(angle) * share).sum((-1, -2)) / special.beta(0.5, (power + 1) / 2)

    at, later = np.array([-1.0, 1.0]), np.zeros(2)  # probability, by u, to be beyond a later bound
    for n in range(looks[-1] - 1, looks[0] - 1, -1):
        least, most = (math.asin(u) for u in bounds(n))
        dense_at_both_ends = np.sin(np.linspace(-quarter, quarter, 200))
        u = np.sin((least + most + (most - least) * dense_at_both_ends) / 2)
        turn, reach = np.arctan(math.sqrt(n) * u), np.sqrt((1 + n * u**2) / (n + 1))
        low, high = bounds(n + 1)
        edges = [np.full_like(u, -quarter), np.full_like(u, quarter)]
        for bound in (low, high):  # where u' is at the bound
            angle = np.arcsin(np.clip(bound / reach, -1, 1))
            edges += [angle - turn, math.pi - angle - turn, -math.pi - angle - turn]

        def beyond(angle, turn=turn[:, None, None], reach=reach[:, None, None], low=low, high=high,
                   at=at, later=later):
            after = reach * np.sin(angle + turn)
            return np.where((after > low) & (after < high), np.interp(after, at, later), 1.0)

        inside = np.sort(np.clip(np.stack(edges, axis=-1), -quarter, quarter), axis=-1)
        at, later = u, mean(beyond, inside, n - 1)
    low, high = bounds(looks[0])
    first = np.linspace(math.asin(low), math.asin(high), 9)
    after_first = mean(lambda angle: np.interp(np.sin(angle), at, later), first, looks[0] - 2)
    return min(p + float(after_first), len(looks) * p)


def crossed(values: np.ndarray) -> Estimate:
    """The mean of effects (seeds, images), both of which are samples. An image that is nan in one
    seed is left out for all. `UserError` unless there are two axes."""
    values = np.asarray(values, float)
    if values.ndim != 2:
        raise UserError(f"effects should be an array (seeds, images), not of shape {values.shape}")
    values = values[:, ~np.isnan(values).any(axis=0)]
    seeds, images = values.shape
    if seeds < 2 or images < 2:
        mean = float(values.mean()) if values.size else math.nan
        return Estimate(mean, seeds, images, math.nan, math.nan, math.nan)
    mean, by_seed, by_image = values.mean(), values.mean(axis=1), values.mean(axis=0)
    residual = values - by_seed[:, None] - by_image + mean
    return Estimate(float(mean), seeds, images, ms_seeds=images * _variance(by_seed),
                    ms_images=seeds * float(by_image.var(ddof=1)),
                    ms_residual=float((residual**2).sum()) / ((seeds - 1) * (images - 1)))


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of effects (seeds,) on what no image enters (a sparsity, a norm, a condition
    number), with Student's test over the seeds."""
    by_seed = np.asarray(values, float)
    if len(by_seed) < 2:
        return Estimate(float(by_seed.mean()) if len(by_seed) else math.nan, len(by_seed), 0, math.nan)
    return Estimate(float(by_seed.mean()), len(by_seed), 0, _variance(by_seed))


def _variance(by_seed: np.ndarray) -> float:
    """Variance over seeds; exactly 0 where they differ by rounding only."""
    equal = np.ptp(by_seed) <= ROUNDING * max(1.0, np.abs(by_seed).max())
    return 0.0 if equal else float(by_seed.var(ddof=1))


def log_ratio(treatment: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Effects (seeds, images) on the logarithm, to base 10, of the ratio of two means over images:

        L[s, i] = log10(T_s / R_s) + (treatment[s, i] / T_s - reference[s, i] / R_s) / ln 10

    with means T_s and R_s. The mean of a row is the log ratio of that seed. An image enters by its
    influence on it, the derivative of the log ratio by the weight of the image (delta method).
    Images that are nan in one seed, of either (seeds, images), are left out of the means; `crossed`
    leaves them out too. `UserError` where a mean is not above zero."""
    treatment, reference = np.asarray(treatment, float), np.asarray(reference, float)
    whole = ~np.isnan(treatment + reference).any(axis=0)
    if not whole.any():
        return np.full(treatment.shape, math.nan)
    above, below = (v[:, whole].mean(axis=1, keepdims=True) for v in (treatment, reference))
    if min(above.min(), below.min()) <= 0:
        raise UserError("a log ratio needs means above zero; compare by the difference instead")
    return np.log10(above / below) + (treatment / above - reference / below) / math.log(10)
