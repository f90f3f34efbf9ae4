"""Comparisons over seeds and images: least squares, Student, brute force, simulated errors."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from sparserobust.reporting.crossed import Estimate, crossed, log_ratio, over_looks, over_seeds, tail


def effects(seeds=3, images=40, of_seeds=0.1, of_images=0.3, residual=0.3, mean=0.0, stream=0):
    """Gaussian effects (seeds, images) with these standard deviations."""
    dice = np.random.default_rng(stream)
    return (mean + of_seeds * dice.standard_normal((seeds, 1)) + residual
            * dice.standard_normal((seeds, images)) + of_images * dice.standard_normal(images))


# ------------------------------------------------------------------------------ the estimate


def test_mean_squares_are_those_of_least_squares():
    values = effects(seeds=4, images=7, mean=0.2)
    seed, image = (index.ravel() for index in np.indices(values.shape))
    one, by_seed, by_image = np.ones((28, 1)), np.eye(4)[seed], np.eye(7)[image]

    def left_over(*columns):
        """Sum of squares that a regression on these columns leaves."""
        x = np.hstack(columns)
        return float(((values.ravel() - x @ np.linalg.lstsq(x, values.ravel())[0]) ** 2).sum())

    found, both = crossed(values), left_over(by_seed, by_image)
    assert (found.mean, found.seeds, found.images) == (pytest.approx(values.mean()), 4, 7)
    assert found.ms_seeds == pytest.approx((left_over(one, by_image) - both) / 3)
    assert found.ms_images == pytest.approx((left_over(one, by_seed) - both) / 6)
    assert found.ms_residual == pytest.approx(both / 18)
    total = found.ms_seeds + found.ms_images - found.ms_residual
    assert found.error == pytest.approx((total / 28) ** 0.5)


def test_mean_squares_estimate_the_variance_of_the_mean():
    many = [crossed(effects(images=20, stream=stream)) for stream in range(1000)]
    expected = 0.1**2 / 3 + 0.3**2 / 20 + 0.3**2 / 60
    assert np.mean([found.error**2 for found in many]) == pytest.approx(expected, rel=0.05)
    assert np.var([found.mean for found in many]) == pytest.approx(expected, rel=0.1)


def test_images_that_vary_no_more_than_the_residual_leave_student_over_seeds():
    values = effects(of_images=0)
    values -= values.mean(0) - values.mean()  # all images alike
    found, student = crossed(values), over_seeds(values.mean(1))
    assert found.ms_images < found.ms_residual
    assert found.interval(0.9) == pytest.approx(student.interval(0.9))
    assert found.p(0.05) == pytest.approx(student.p(0.05))
    assert found.p_within(0.3) == pytest.approx(student.p_within(0.3))


def test_seeds_that_hardly_vary_leave_student_over_images():
    image = np.random.default_rng(0).normal(0.1, 0.3, 30)
    found = crossed(image + 1e-4 * np.array([[-1], [0], [1]]))
    expected = stats.t.interval(0.95, 29, image.mean(), stats.sem(image))
    assert found.interval() == pytest.approx(expected, abs=1e-4)
    assert found.p() == pytest.approx(stats.ttest_1samp(image, 0).pvalue, rel=1e-3)


def test_the_tail_is_an_average_weighted_by_variance():
    expected = (1 * stats.t.sf(1.5, 2) + 3 * stats.t.sf(1.5, 99)) / 4
    assert tail(3.0, 1.0, 3.0, 3, 100) == pytest.approx(expected)
    assert tail(-3.0, 1.0, 3.0, 3, 100) == pytest.approx(1 - expected)


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.0], [-0.5, 0.3, 0.1, 0.4, 0.2]])
def test_without_images_it_is_student_over_seeds(values):
    found = over_seeds(values)
    assert (found.seeds, found.images) == (len(values), 0)
    for level in (0.9, 0.95):
        expected = stats.t.interval(level, len(values) - 1, np.mean(values), stats.sem(values))
        assert found.interval(level) == pytest.approx(expected)
    assert found.p(0.7) == pytest.approx(stats.ttest_1samp(values, 0.7).pvalue)
    one_sided = [stats.ttest_1samp(values, limit, alternative=side).pvalue
                 for limit, side in ((1 - 2, "greater"), (1 + 2, "less"))]
    assert found.p_within(2, centre=1) == pytest.approx(max(one_sided))


@settings(max_examples=30)
@given(st.integers(2, 8), st.integers(2, 60), st.floats(0, 0.5), st.floats(0, 0.5),
       st.floats(-1, 1), st.integers(0, 99))
def test_interval_and_p_values_agree(seeds, images, of_seeds, of_images, threshold, stream):
    found = crossed(effects(seeds, images, of_seeds, of_images, stream=stream))
    p = found.p(threshold)
    assume(1e-6 < p < 0.999)  # of smaller ones 1 - p keeps too few digits
    low, high = found.interval(1 - p)
    assert (low if threshold < found.mean else high) == pytest.approx(threshold, rel=1e-5, abs=1e-9)
    assert found.mean - low == pytest.approx(high - found.mean)
    margin = 1.2 * abs(found.mean - threshold) + found.error / 9
    low, high = found.interval(1 - 2 * found.p_within(margin, threshold))
    assert max(high - threshold, threshold - low) == pytest.approx(margin, rel=1e-5)


@settings(max_examples=30)
@given(st.floats(0.01, 200), st.sampled_from([-1, 1]), st.floats(-1, 1))
def test_units_and_shifts(size, sign, shift):
    values, factor = effects(seeds=4), sign * size
    found, moved, direct = crossed(values), crossed(values + shift), crossed(factor * values)
    assert [direct.mean, direct.ms_seeds, direct.ms_images, direct.ms_residual] == pytest.approx(
        [factor * found.mean, *(factor**2 * ms for ms in (found.ms_seeds, found.ms_images, found.ms_residual))])
    assert direct.interval() == pytest.approx(sorted(factor * end for end in found.interval()))
    assert direct.p(factor * 0.1) == pytest.approx(found.p(0.1))
    assert moved.interval() == pytest.approx([shift + end for end in found.interval()])


def test_more_images_narrow_the_interval():
    few, many = (crossed(effects(5, n, of_seeds=0.001, residual=0.02)) for n in (50, 5000))
    assert many.error < few.error / 5


def test_images_without_a_value_are_left_out_for_all_seeds():
    values = effects()
    holed = values.copy()
    holed[0, 3] = holed[2, 7] = holed[1, 7] = math.nan
    assert crossed(holed) == crossed(np.delete(values, [3, 7], axis=1))
    assert crossed(holed).images == 38


@pytest.mark.parametrize("found", [
    crossed(effects(seeds=1)), over_seeds([0.3]), over_seeds([]),  # too few seeds
    crossed(effects(images=1)), crossed(np.full((3, 5), math.nan)),  # too few images
    crossed(np.full((3, 50), 0.1)), crossed(np.zeros((3, 50))),  # all equal
    over_seeds([0.1 + 0.2, 0.3, 0.3]),  # equal but for rounding
    crossed(np.array([[1.0, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]])),  # equal means by chance
])
def test_where_the_spread_is_unknown_nothing_is_decided(found):
    numbers = [*found.interval(), found.error, found.p(), found.p(9.0), found.p_within(9.0)]
    assert all(math.isnan(number) for number in numbers)
    assert found.seeds_needed() is None and found.seeds_needed(margin=9.0) is None


def test_one_seed_still_has_a_mean():
    assert crossed(np.array([[0.0, 1, 1, 0, 1]])).mean == pytest.approx(0.6)
    assert over_seeds([0.25]).mean == 0.25


def test_effects_need_two_axes(refusal):
    assert "(seeds, images)" in refusal(crossed, np.zeros(5))


# ------------------------------------------------------------------------------ seeds needed


def decided(mean, of_seeds, of_images, residual, seeds, images, threshold=0.0, margin=None):
    """Whether an experiment decides whose mean squares are equal to their expectations."""
    found = Estimate(mean, seeds, images, residual**2 + images * of_seeds**2,
                     residual**2 + seeds * of_images**2, residual**2)
    low, high = found.interval(0.95)
    if margin is not None:
        inner_low, inner_high = found.interval(0.9)
        if threshold - margin < inner_low and inner_high < threshold + margin:
            return True
    return not low <= threshold <= high


@pytest.mark.parametrize(("mean", "threshold", "margin"),
                         [(1.0, 0, None), (0.6, 0, None), (-0.3, -1, 1.5), (0.1, 0, 1)])
def test_seeds_needed_are_the_fewest_that_decide(mean, threshold, margin):
    components, images = (1.0, 5.0, 30.0), 2000  # percentage points
    seen = Estimate(mean, 3, images, 900 + images, 900 + 3 * 25, 900)
    needed = seen.seeds_needed(threshold, margin)
    assert needed > 3
    assert [seeds for seeds in range(2, needed + 1)
            if decided(mean, *components, seeds, images, threshold, margin)] == [needed]


def test_seeds_needed_without_images():
    values = np.array([0.1, 1.2, 2.6, -0.4])
    error = values.std(ddof=1)
    expected = next(n for n in range(2, 101)
                    if stats.t.ppf(0.975, n - 1) * error / n**0.5 < values.mean())
    assert over_seeds(values).seeds_needed() == expected > 4
    assert over_seeds([9.9, 10.0, 10.1]).seeds_needed() == 2


def test_no_number_of_seeds_replaces_images():
    short = Estimate(0.5, 3, 500, 900, 900 + 3 * 900, 900)  # error due to images: 1.3 points
    assert short.seeds_needed() is None and short.seeds_needed(margin=1.0) is None
    assert short.seeds_needed(margin=4.0) is not None
    assert not short.decided_by(10**9) and not short.decided_by(10**9, margin=1.0)
    varied = Estimate(1.0, 3, 500, 900 + 500 * 9, 900, 900)
    assert varied.seeds_needed() > 20 and varied.seeds_needed(most=20) is None and varied.decided_by(10**9)


def test_components_below_zero_count_as_zero():
    lucky = Estimate(1.0, 3, 500, 5, 800, 900)  # both mean squares are below the residual one
    assert lucky.p() < 0.05
    assert lucky.seeds_needed() == Estimate(1.0, 3, 500, 900, 900, 900).seeds_needed() > 3


# ------------------------------------------------------------------------------ simulated errors

OF_SEEDS, OF_IMAGES, RESIDUAL = (0.0, 0.005, 0.010, 0.018), (0.05, 0.1, 0.2, 0.3), 0.3
SIZES = [*product((3, 5), (500, 1000, 2000, 10000)), (4, 500), (6, 500), (8, 500)]


@pytest.mark.parametrize(("seeds", "images"), SIZES)
def test_error_is_near_its_nominal_value_in_every_cell(seeds, images, draws=20000):
    """Mean squares of Gaussian effects are multiples of chi-square, independent of the mean."""
    dice = np.random.default_rng(1)
    degrees = seeds - 1, images - 1, (seeds - 1) * (images - 1)
    units, normal = [dice.chisquare(df, draws) / df for df in degrees], dice.standard_normal(draws)
    for cell in product(OF_SEEDS, OF_IMAGES):
        of_seeds, of_images = images * cell[0] ** 2, seeds * cell[1] ** 2
        expected = np.array([of_seeds, of_images, 0.0]) + RESIDUAL**2
        squares = [square * unit for square, unit in zip(expected, units, strict=True)]
        missed = normal * ((of_seeds + of_images + RESIDUAL**2) / (seeds * images)) ** 0.5
        above = tail(missed, squares[0] / (seeds * images),
                     np.maximum(squares[1] - squares[2], 0) / (seeds * images), seeds, images)
        p = 2 * np.minimum(above, 1 - above)
        assert 3 < 100 * (p < 0.05).mean() < 6, cell
        assert 0.2 < 100 * (p < 0.01).mean() < 1.4, cell
        assert 100 * (p < 0.003).mean() < 0.5, cell
        # Of two one-sided tests, where the effect is at one margin and the other one is far away.
        assert 3 < 100 * (above < 0.05).mean() < 6, cell


def answers(dice, seeds, images, of_seeds, of_images):
    """Whether networks of two equally good kinds are right (kind, seed, image): a probit model of
    difficulties of an image, to all networks, to one kind and to one network, and of seeds."""
    def normal(*shape):
        return dice.standard_normal(shape, dtype=np.float32)

    latent = (3 + 3 * normal(images) + of_seeds * normal(2, seeds, 1)
              + of_images * normal(2, 1, images) + normal(2, seeds, images))
    return (latent > 0).astype(float)


@pytest.mark.parametrize(("seeds", "images", "latent", "of_seeds", "of_images", "student"), [
    (3, 500, (0.05, 2.0), 0.0055, 0.33, 15),
    (5, 500, (0.1, 2.0), 0.011, 0.33, 20),
    (3, 1000, (0.1, 0.5), 0.0115, 0.1, 5),
])
def test_error_of_right_and_wrong_answers(seeds, images, latent, of_seeds, of_images, student,
                                          trials=1200):
    """Whole matrices of answers; `of_seeds` and `of_images` are the standard deviations that their
    differences have, `student` what the error [%] of a test over seeds alone exceeds."""
    dice = np.random.default_rng(2)
    found, alone = [], []
    for _ in range(trials):
        treatment, reference = answers(dice, seeds, images, *latent)
        found.append(crossed(treatment - reference))
        alone.append(over_seeds((treatment - reference).mean(1)).p())
    squares = np.mean([(f.ms_seeds, f.ms_images, f.ms_residual) for f in found], axis=0)
    assert squares[2] ** 0.5 == pytest.approx(0.3, abs=0.01)
    assert ((squares[0] - squares[2]) / images) ** 0.5 == pytest.approx(of_seeds, abs=0.001)
    assert ((squares[1] - squares[2]) / seeds) ** 0.5 == pytest.approx(of_images, abs=0.01)
    assert 2.5 < 100 * np.mean([f.p() < 0.05 for f in found]) < 6.5  # standard error 0.6
    assert 100 * np.mean(np.array(alone) < 0.05) > student


# ------------------------------------------------------------------------------ log ratios


def distances(stream=0, seeds=3, images=30):
    dice = np.random.default_rng(stream)
    image = dice.normal(0, 0.5, images)
    return [np.exp(image + dice.normal(0, 0.02, (seeds, 1)) + dice.normal(0, 0.3, images)
                   + dice.normal(0, 0.3, (seeds, images))) for _ in range(2)]


def test_rows_of_a_log_ratio_have_that_ratio_as_their_mean():
    treatment, reference = distances()
    ratio = np.log10(treatment.mean(1) / (7 * reference).mean(1))
    assert log_ratio(treatment, 7 * reference).mean(1) == pytest.approx(ratio)


def test_an_image_enters_a_log_ratio_by_its_influence():
    treatment, reference = distances()
    ratio = np.log10(treatment.mean(1) / reference.mean(1))
    for image in range(5):
        weights = np.full(30, 1.0)
        weights[image] += 1e-5
        moved = np.log10(treatment @ weights / (reference @ weights)) - ratio
        influence = (log_ratio(treatment, reference)[:, image] - ratio) / 30
        assert moved / 1e-5 == pytest.approx(influence, rel=1e-3)


def test_images_without_a_distance_do_not_enter_a_log_ratio():
    treatment, reference = distances()
    holed, also = treatment.copy(), reference.copy()
    holed[1, 4] = also[0, 9] = math.nan
    rest = [np.delete(values, [4, 9], axis=1) for values in (treatment, reference)]
    found, expected = crossed(log_ratio(holed, also)), crossed(log_ratio(*rest))
    assert found.images == 28 and found.mean == pytest.approx(expected.mean)
    assert found.interval() == pytest.approx(expected.interval())
    assert np.isnan(log_ratio(np.full((2, 3), math.nan), np.ones((2, 3)))).all()


def test_a_log_ratio_needs_means_above_zero(refusal):
    ones, zeros = np.ones((2, 3)), np.zeros((2, 3))
    assert "above zero" in refusal(log_ratio, ones, zeros)
    assert "above zero" in refusal(log_ratio, zeros, ones)


def test_error_of_a_log_ratio(trials=1200):
    drawn = [log_ratio(*distances(stream, images=300)) for stream in range(trials)]
    assert 2.5 < 100 * np.mean([crossed(values).p() < 0.05 for values in drawn]) < 6.5
    assert np.mean([over_seeds(values.mean(1)).p() < 0.05 for values in drawn]) > 0.07


# ------------------------------------------------------------------------------ looks


LOOKS = (3, 4, 5, 6, 7, 8)


@pytest.mark.parametrize(("p", "looks", "two_sided"), [
    (0.02, LOOKS, True), (0.02, LOOKS, False), (0.2, (3, 5), True), (0.004, (3, 4, 8), False)])
def test_the_lowest_p_value_of_several_looks_is_as_frequent_as_in_a_simulation(p, looks, two_sided):
    values = np.random.default_rng(0).normal(size=(400_000, looks[-1]))
    lowest = np.ones(len(values))
    for seeds in looks:
        some = values[:, :seeds]
        t = some.mean(1) / (some.std(1, ddof=1) / seeds**0.5)
        here = 2 * stats.t.sf(abs(t), seeds - 1) if two_sided else stats.t.sf(t, seeds - 1)
        lowest = np.minimum(lowest, here)
    assert over_looks(p, looks, two_sided) == pytest.approx((lowest <= p).mean(), rel=0.03)


def test_two_looks_are_an_integral_over_the_angle_of_the_next_seed():
    """From three seeds, where u is uniform, to four: by brute force."""
    p = 0.02
    bounds = [t / math.hypot(t, df**0.5) for df in (2, 3) for t in [stats.t.isf(p / 2, df)]]
    u, a = np.meshgrid((np.arange(2000) + 0.5) / 1000 - 1, ((np.arange(2000) + 0.5) / 2000 - 0.5) * np.pi)
    density = np.cos(a) ** 2 / (np.cos(a) ** 2).sum(0)[0] / 2000
    after = (3**0.5 * u * np.cos(a) + np.sin(a)) / 2
    expected = (density * ((abs(u) > bounds[0]) | (abs(after) > bounds[1]))).sum()
    assert over_looks(p, (3, 4)) == pytest.approx(expected, rel=2e-3)


@given(p=st.floats(1e-300, 1), looks=st.sampled_from([LOOKS, (3, 8), (3, 4, 5), (5,), ()]), two_sided=st.booleans())
def test_more_looks_never_make_a_p_value_smaller_nor_larger_than_their_number_allows(p, looks, two_sided):
    found = over_looks(p, looks, two_sided)
    assert p <= found <= max(len(looks), 1) * p and found < 1.001
    assert len(looks) > 1 or found == p
    assert over_looks(p / 2, looks, two_sided) <= found * 1.01
    assert math.isnan(over_looks(math.nan, looks, two_sided))


@pytest.mark.parametrize(("of_seeds", "of_images"), [(0.0, 0.05), (0.018, 0.1), (0.01, 0.3)])
def test_stopping_as_soon_as_it_is_decided_errs_no_more_often_than_is_said(of_seeds, of_images):
    """Seeds are added one by one until p, over all looks, is below 0.05, where there is no effect."""
    nominal = optimize.brentq(lambda p: over_looks(p, LOOKS) - 0.05, 1e-4, 0.05)
    wrong = 0
    for stream in range(1500):
        values = effects(8, 100, of_seeds, of_images, stream=stream)
        wrong += any(crossed(values[:seeds]).p() < nominal for seeds in LOOKS)
    assert 0.01 < wrong / 1500 < 0.06  # five in a hundred, fewer where images vary; with plain p values up to 0.14
