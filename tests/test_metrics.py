"""advbook.metrics: rates counted by hand, intervals with a known truth."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy.stats import bootstrap

from advbook.metrics import (
    BLOCKS,
    block_counts,
    error,
    interval,
    percentiles,
    resampled_rates,
    success_average,
    success_worst,
)

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


# --- rates from counts in blocks ------------------------------------------------------------------------------


@given(st.integers(1, 120), st.integers(1, 30), st.integers(0, 9))
def test_blocks_are_neighbours_of_nearly_one_size_and_lose_nothing(images, blocks, seed):
    values = np.random.default_rng(seed).integers(0, 5, images)
    counts, sizes = block_counts(values, blocks), block_counts(np.ones(images), blocks)
    assert len(counts) == blocks
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == images
    ends = np.cumsum(sizes).astype(int)
    assert counts == [values[int(end - size) : end].sum() for end, size in zip(ends, sizes, strict=True)]


def test_blocks_of_restarts_count_pairs():
    success = np.random.default_rng(0).random((3, 40)) < 0.5
    assert len(block_counts(success)) == BLOCKS == 25
    np.testing.assert_allclose(block_counts(success), np.sum([block_counts(row) for row in success], axis=0))


tables = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.integers(0, 999)).map(
    lambda given: counted_table(*given)
)


def counted_table(points, seeds, blocks, seed):
    """Hits and counts [P, S, K]; some blocks count nothing."""
    random = np.random.default_rng(seed)
    counted = random.integers(0, 6, (points, seeds, blocks)).astype(float)
    return counted * random.random(counted.shape), counted


@settings(max_examples=50)
@given(tables)
@pytest.mark.filterwarnings("error")
def test_the_first_column_is_the_pooled_rate(table):
    hits, counted = table
    (drawn,) = resampled_rates(table, resamples=40)
    assert drawn.shape == (len(hits), 41)
    for own, won, of in zip(drawn, hits, counted, strict=True):
        assert own[0] == pytest.approx(won.sum() / of.sum() if of.any() else np.nan, nan_ok=True)
        shares = (won[of > 0] / of[of > 0]) if of.any() else np.array([0.0])
        finite = own[np.isfinite(own)]
        assert (finite >= shares.min() - 1e-9).all(), "a resample is a mean of what was counted"
        assert (finite <= shares.max() + 1e-9).all()


def test_a_resample_draws_seeds_and_blocks_as_wholes():
    """Every column is one of the rates that so many draws of two seeds and three blocks can give, and all occur."""
    hits, counted = np.array([[[1.0, 0, 4], [2, 1, 0]]]), np.array([[[2.0, 5, 4], [3, 1, 1]]])
    possible = set()
    for seeds in itertools.product(range(2), repeat=2):
        for blocks in itertools.product(range(3), repeat=3):
            chosen = np.ix_(seeds, blocks)
            possible.add(round(hits[0][chosen].sum() / counted[0][chosen].sum(), 9))
    (drawn,) = resampled_rates((hits, counted), resamples=3_000)
    assert {round(value, 9) for value in drawn[0, 1:]} == possible


def test_draws_have_the_variance_of_their_binomials():
    """One seed, blocks of one image: the mean of K draws from a share p has the variance p (1 - p) / K."""
    hits = np.repeat([1.0, 0.0], [30, 70])[None, None]
    (drawn,) = resampled_rates((hits, np.ones_like(hits)), resamples=4_000)
    assert drawn[0, 1:].mean() == pytest.approx(0.3, abs=0.005)
    assert drawn[0, 1:].std() == pytest.approx(math.sqrt(0.3 * 0.7 / 100), rel=0.05)


@given(tables, st.floats(-1, 1))
def test_points_are_drawn_together_so_that_a_fixed_difference_has_no_width(table, shift):
    hits, counted = table
    both = np.concatenate([hits, hits + shift * counted]), np.concatenate([counted, counted])
    (drawn,) = resampled_rates(both, resamples=30)
    one, other = np.split(drawn, 2)
    np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
    difference = other - one
    np.testing.assert_allclose(difference[np.isfinite(difference)], shift, atol=1e-12)


def test_tables_share_their_seeds_and_not_their_blocks():
    ones = np.ones((1, 4, 6))
    by_seed, by_block = np.arange(4.0)[None, :, None] * ones, np.arange(6.0) * ones
    first, second = resampled_rates((by_seed, ones), (by_seed[:, :, :3], ones[:, :, :3]))
    np.testing.assert_allclose(first, second, atol=1e-12)
    assert first.std() > 0.1
    first, second = resampled_rates((by_block, ones), (by_block, ones))
    assert abs(np.corrcoef(first[0, 1:], second[0, 1:])[0, 1]) < 0.15
    assert first.std() == pytest.approx(second.std(), rel=0.1)


def test_it_draws_the_same_for_the_same_seed():
    table = counted_table(2, 3, 25, 0)
    one, again, other = (resampled_rates(table, resamples=20, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(one[:, 0], other[:, 0])


def test_resampled_rates_cover_the_truth_about_as_often_as_they_say():
    """Binomial counts around a rate that wavers with the seed and with the block, in blocks of unequal size."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(100):
        by_seed, by_block = 0.05 * random.normal(size=(6, 1)), 0.08 * random.normal(size=(1, 25))
        counted = random.integers(6, 9, 25) * np.ones((6, 1), dtype=int)
        hits = random.binomial(counted, np.clip(0.3 + by_seed + by_block, 0, 1))
        (drawn,) = resampled_rates((hits[None], counted[None]), resamples=300)
        _, low, high = percentiles(drawn[0])
        covered += low <= 0.3 <= high
    assert covered >= 85


def test_percentiles_of_known_values():
    statistic = np.array([7.0, *range(101)])
    assert percentiles(statistic) == pytest.approx((7.0, 2.5, 97.5))
    assert percentiles(statistic, level=0.5) == pytest.approx((7.0, 25.0, 75.0))


@given(st_numpy.arrays(np.float64, st.integers(1, 9), elements=st.one_of(st.just(np.nan), st.floats(-3, 3))))
def test_percentiles_leave_out_draws_that_are_no_numbers(statistic):
    value, low, high = percentiles(statistic)
    rest = statistic[1:][np.isfinite(statistic[1:])]
    if np.isnan(statistic[0]) or not len(rest):
        assert np.isnan([value, low, high]).all()
        return
    assert value == statistic[0]
    assert [low, high] == pytest.approx(np.quantile(rest, [0.025, 0.975]).tolist())
