"""How often tests of a comparison reject what is true, simulated over seeds and images.

    python benchmarks/coverage.py [--draws 20000] [--seeds 3 5] [--nominal 5] [--extremes]
    python benchmarks/coverage.py --draws 1000 --looks 3 4 5 6 7 8

The differences are D = a + b + e, with Gaussian effects of the seed, of the image and of both, and
mean zero. Their mean squares are then independent multiples of chi-square variables, independent of
the mean of D, and are drawn as such. A 95 % interval misses the truth as often as its test, at a
nominal 5 %, rejects it.

With `--looks` seeds are added one by one, and the experiment ends as soon as p is below the nominal
error: p as it is, and p over all looks. Here all of D is drawn.
"""

import argparse
from itertools import product

import numpy as np
import pandas
from scipy import special

from sparserobust.reporting.crossed import crossed, over_looks, tail

IMAGES = (500, 1000, 2000, 10000)
OF_SEEDS = (0.0, 0.5, 1.0, 1.8)  # standard deviation of a, in percentage points
OF_IMAGES = (0.05, 0.1, 0.2, 0.3)  # standard deviation of b
RESIDUAL = 0.3  # standard deviation of e
METHODS = ("average of tails", "Cochran & Cox", "Satterthwaite", "Student over seeds")


def p_values(gap, ms_seeds, ms_images, ms_residual, seeds: int, images: int,
             nominal: float) -> dict[str, np.ndarray]:
    """p values of the methods; of Cochran & Cox, which has one for each nominal error, 0 or 1."""
    values = seeds * images
    by_seeds, by_images = ms_seeds / values, np.maximum(ms_images - ms_residual, 0) / values
    variance = by_seeds + by_images
    critical = (by_seeds * special.stdtrit(seeds - 1, 1 - nominal / 2)
                + by_images * special.stdtrit(images - 1, 1 - nominal / 2)) / variance
    freedom = (values * variance) ** 2 / (
        ms_seeds**2 / (seeds - 1) + (by_images > 0) * (
            ms_images**2 / (images - 1) + ms_residual**2 / ((seeds - 1) * (images - 1))))
    t = gap / np.sqrt(variance)
    return {"average of tails": 2 * tail(gap, by_seeds, by_images, seeds, images),
            "Cochran & Cox": np.where(t > critical, 0.0, 1.0),
            "Satterthwaite": 2 * special.stdtr(freedom, -t),
            "Student over seeds": 2 * special.stdtr(seeds - 1, -gap / np.sqrt(by_seeds))}


def coverage(seeds: int, images: int, of_seeds: float, of_images: float, nominal: float = 0.05,
             draws: int = 20000, residual: float = RESIDUAL) -> dict[str, float]:
    """Error [%] of each method where a, b and e have these standard deviations (those of a and of b
    as in the lists above)."""
    dice = np.random.default_rng(0)

    def mean_square(expected: float, freedom: int) -> np.ndarray:
        return expected * dice.chisquare(freedom, draws) / freedom

    expected_seeds = residual**2 + images * (of_seeds / 100) ** 2
    expected_images = residual**2 + seeds * of_images**2
    variance = (expected_seeds + expected_images - residual**2) / (seeds * images)
    p = p_values(np.abs(dice.normal(0, variance**0.5, draws)),
                 mean_square(expected_seeds, seeds - 1), mean_square(expected_images, images - 1),
                 mean_square(residual**2, (seeds - 1) * (images - 1)), seeds, images, nominal)
    return {method: 100 * float((p[method] < nominal).mean()) for method in METHODS}


def table(seeds: list[int], nominal: float = 0.05, draws: int = 20000) -> pandas.DataFrame:
    """One line per cell: seeds, images, standard deviations, error [%] of each method."""
    return pandas.DataFrame([
        {"seeds": s, "images": n, "sd of seeds [points]": a, "sd of images": b}
        | coverage(s, n, a, b, nominal, draws)
        for s, n, a, b in product(seeds, IMAGES, OF_SEEDS, OF_IMAGES)])


def stopped(looks: list[int], images: int, of_seeds: float, of_images: float,
            nominal: float = 0.05, draws: int = 1000) -> dict[str, float]:
    """Error [%] of stopping at the first of these numbers of seeds at which p is below the nominal
    error, by p as it is and by p over all looks."""
    dice, lowest = np.random.default_rng(0), np.ones(draws)
    for draw in range(draws):
        values = (dice.normal(0, of_seeds / 100, (looks[-1], 1)) + dice.normal(0, of_images, images)
                  + dice.normal(0, RESIDUAL, (looks[-1], images)))
        lowest[draw] = min(crossed(values[:seeds]).p() for seeds in looks)
    over = np.array([over_looks(p, tuple(looks)) for p in lowest])
    return {"p as it is": 100 * float((lowest < nominal).mean()),
            "p over all looks": 100 * float((over < nominal).mean())}


def table_of_looks(looks: list[int], nominal: float = 0.05, draws: int = 1000) -> pandas.DataFrame:
    """One line per cell: images, standard deviations, error [%] with and without the correction."""
    return pandas.DataFrame([
        {"images": n, "sd of seeds [points]": a, "sd of images": b}
        | stopped(looks, n, a, b, nominal, draws)
        for n, a, b in product(IMAGES[::2], OF_SEEDS, OF_IMAGES)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20000, help="experiments per cell")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5], help="two or more each")
    parser.add_argument("--nominal", type=float, default=5, help="nominal error, in percent")
    parser.add_argument("--looks", type=int, nargs="+", help="numbers of seeds, from fewest to most")
    parser.add_argument("--extremes", action="store_true",
                        help="least and greatest error over the standard deviations only")
    chosen = parser.parse_args()
    if chosen.looks:
        found = table_of_looks(chosen.looks, chosen.nominal / 100, chosen.draws)
        print(f"Error [%] at a nominal {chosen.nominal:g} %, {chosen.draws} experiments per cell:\n")
        print(found.to_markdown(index=False, floatfmt=("g", "g", "g", ".1f", ".1f")))
        return
    found = table(chosen.seeds, chosen.nominal / 100, chosen.draws)
    if chosen.extremes:
        groups = found.groupby(["seeds", "images"])[list(METHODS)]
        found = groups.min().map("{:.2f}".format) + " to " + groups.max().map("{:.2f}".format)
        found = found.reset_index()
    print(f"Error [%] at a nominal {chosen.nominal:g} %, {chosen.draws} experiments per cell:\n")
    print(found.to_markdown(index=False, floatfmt=(*"gggg", *[".2f"] * len(METHODS))))


if __name__ == "__main__":
    main()
