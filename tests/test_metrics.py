"""advbook.metrics: rates counted by hand, intervals with a known truth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy.stats import bootstrap

from advbook.metrics import error, interval, success_average, success_worst

rates = st_numpy.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 6))).map(torch.from_numpy)


def test_the_error_counts_wrong_classes():
    logits = torch.tensor([[2.0, 1.0], [0.0, 5.0], [1.0, 0.0], [-1.0, 0.0]])
    assert error(logits, torch.tensor([0, 0, 0, 1])) == 0.25


def test_both_success_rates_count_clean_correct_images_only():
    success = torch.tensor([[True, False, False, True], [False, False, True, True]])
    correct = torch.tensor([True, True, True, False])
    assert success_average(success, correct) == pytest.approx(2 / 6)
    assert success_worst(success, correct) == pytest.approx(2 / 3)


@given(rates)
def test_the_worst_case_is_at_least_the_average(success):
    correct = torch.ones(success.shape[1], dtype=torch.bool)
    assert 0 <= success_average(success, correct) <= success_worst(success, correct) <= 1
    if len(success) == 1:
        assert success_average(success, correct) == success_worst(success, correct)


def test_with_no_correct_image_there_is_no_rate():
    success, correct = torch.ones(2, 3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    assert math.isnan(success_average(success, correct))
    assert math.isnan(success_worst(success, correct))


def test_the_interval_of_one_seed_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(1).exponential(size=(1, 60))
    value, low, high = interval(values, np.nanmean, resamples=4_000)
    theirs = bootstrap((values[0],), np.mean, method="percentile", n_resamples=4_000, rng=2).confidence_interval
    assert value == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_it_covers_the_truth_as_often_as_it_says():
    """Two-way data, seed effect plus image effect plus noise, whose mean is zero: at most a few in a hundred miss."""
    random, hits = np.random.default_rng(0), 0
    for _ in range(100):
        values = 0.5 * random.normal(size=(10, 1)) + random.normal(size=(1, 30)) + random.normal(size=(10, 30))
        _, low, high = interval(values, np.nanmean, resamples=300)
        hits += low <= 0 <= high
    assert hits >= 90


def test_seeds_are_drawn_too():
    """Where seeds disagree and images do not, an interval over images alone would have no width."""
    values = np.repeat(np.arange(5.0)[:, None], 50, axis=1)
    _, low, high = interval(values, np.nanmean)
    half = 1.96 * math.sqrt(2 / 5)  # of the mean of five draws from 0..4, whose variance is 2
    assert (low, high) == pytest.approx((2 - half, 2 + half), abs=0.25)


def test_images_are_drawn_as_wholes():
    """Every seed sees the same images: five seeds that agree are no five times as many images."""
    image = np.random.default_rng(3).normal(size=(1, 40))
    _, low, high = interval(np.repeat(image, 5, axis=0), np.nanmean)
    _, low_one, high_one = interval(image, np.nanmean)
    assert high - low == pytest.approx(high_one - low_one, rel=0.15)


@given(
    values=st_numpy.arrays(
        np.float64,
        st.tuples(st.integers(1, 4), st.integers(1, 8)),
        elements=st.one_of(st.just(np.nan), st.floats(-5, 5)),
    ),
    statistic=st.sampled_from([np.nanmedian, np.nanmean]),
)
def test_images_that_do_not_count_are_left_out(values, statistic):
    value, low, high = interval(values, statistic, resamples=50)
    counted = values[np.isfinite(values)]
    if not len(counted):
        assert np.isnan([value, low, high]).all()
        return
    assert value == pytest.approx(statistic(counted))
    assert counted.min() - 1e-9 <= low <= high <= counted.max() + 1e-9


def test_a_constant_has_no_width_and_a_seed_fixes_the_draws():
    assert interval(np.full((3, 7), 0.25)) == (0.25, 0.25, 0.25)
    values = np.random.default_rng(4).normal(size=(2, 9))
    one, again, other = (interval(values, np.nanmean, seed=seed) for seed in (5, 5, 6))
    assert one == again != other


def test_a_higher_level_is_wider():
    values = np.random.default_rng(4).normal(size=(2, 30))
    _, low, high = interval(values, np.nanmean, level=0.5)
    _, lower, higher = interval(values, np.nanmean, level=0.99)
    assert lower < low < high < higher
