"""Bootstrap intervals of medians, against drawing the samples."""

import math

import numpy as np
import pytest

from tracetool.stats import FEWEST, Ratio, _at, _drawn, ratio_of_medians


def plain_bootstrap(before, after, random, resamples=4000):
    """The textbook way: draw with replacement, take medians, take quantiles of their ratio."""
    before, after = np.asarray(before, float), np.asarray(after, float)
    below = np.median(random.choice(before, (resamples, len(before))), axis=1)
    above = np.median(random.choice(after, (resamples, len(after))), axis=1)
    return np.quantile(above / below, [0.025, 0.975])


@pytest.mark.parametrize("n", [6, 7, 8, 25, 100, 101])
def test_medians_are_distributed_as_those_of_drawn_samples(n):
    random = np.random.default_rng(n)
    samples = np.sort(random.lognormal(3, 0.5, n))
    drawn = np.median(random.choice(samples, (40_000, n)), axis=1)
    made = np.concatenate([_at(samples, _drawn(n, random)) for _ in range(10)])
    # Kolmogorov's distance: two true samples of 40,000 are farther apart than this once in 10 million
    values = np.unique(drawn)
    of_drawn, of_made = (np.searchsorted(np.sort(found), values, "right") / 40_000 for found in (drawn, made))
    assert np.abs(of_drawn - of_made).max() < 0.0205


@pytest.mark.parametrize(("n", "m"), [(6, 6), (9, 14), (40, 41), (200, 150)])
def test_intervals_are_those_of_a_plain_bootstrap(n, m):
    random = np.random.default_rng(n * m)
    before, after = random.lognormal(3, 0.3, n), random.lognormal(3.2, 0.3, m)
    low, high = plain_bootstrap(before, after, random)
    found = ratio_of_medians(before, after)
    assert found.value == pytest.approx(np.median(after) / np.median(before))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 30, 101])
def test_about_95_of_100_intervals_hold_the_truth(n):
    random = np.random.default_rng(n)
    held = false = 0
    trials = 1500
    for _ in range(trials):
        found = ratio_of_medians(random.lognormal(3, 0.4, n), random.lognormal(3, 0.4, n))
        held += found.low <= 1 <= found.high
        false += found.faster or found.slower
    assert 0.92 <= held / trials <= 0.995
    assert false == trials - held


def test_equal_programs_are_seldom_called_different():
    random = np.random.default_rng(5)
    calls = [ratio_of_medians(random.normal(100, 5, 20), random.normal(100, 5, 20)) for _ in range(200)]
    assert sum(one.faster or one.slower for one in calls) <= 20


def test_the_same_samples_give_the_same_interval_in_any_order():
    random = np.random.default_rng(1)
    before, after = random.normal(100, 5, 20), random.normal(90, 5, 20)
    assert ratio_of_medians(before, after) == ratio_of_medians(before[::-1], random.permutation(after))


def test_a_unit_changes_nothing():
    before, after = np.arange(10, 30), np.arange(20, 40)
    one, other = ratio_of_medians(before, after), ratio_of_medians(before * 1000, after * 1000)
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


@pytest.mark.parametrize(("n", "m"), [(0, 10), (FEWEST - 1, 10), (10, FEWEST - 1), (0, 0)])
def test_too_few_samples_give_no_interval(n, m):
    assert ratio_of_medians(np.ones(n), np.ones(m)) is None


def test_the_fewest_samples_hold_the_median_with_95_percent():
    assert 1 - 2 / 2**FEWEST >= 0.95 > 1 - 2 / 2 ** (FEWEST - 1)
    assert ratio_of_medians(np.ones(FEWEST), np.ones(FEWEST)) == Ratio(1.0, 1.0, 1.0)


def test_nothing_over_nothing_is_noise_and_something_over_nothing_is_slower():
    nothing, something = np.zeros(8), np.full(8, 5)
    assert ratio_of_medians(nothing, nothing) == Ratio(1.0, 1.0, 1.0)
    grown = ratio_of_medians(nothing, something)
    assert (math.isinf(grown.value), grown.slower, grown.faster) == (True, True, False)
    shrunk = ratio_of_medians(something, nothing)
    assert (shrunk.value, shrunk.faster, shrunk.slower) == (0.0, True, False)


def test_an_interval_that_touches_1_is_noise():
    assert not Ratio(0.9, 0.8, 1.0).faster
    assert not Ratio(1.1, 1.0, 1.2).slower
    assert Ratio(0.9, 0.8, 0.99).faster
    assert Ratio(1.1, 1.01, 1.2).slower
