"""advbook.attacks.norms: the L-inf ball, its norm, its start points."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy.stats import kstest

from advbook.attacks.norms import linf_ball, linf_norm, linf_start

vectors = st_numpy.arrays(
    np.float32,
    st_numpy.array_shapes(min_dims=2, max_dims=4, max_side=5),
    elements=st.floats(-10, 10, width=32),
).map(torch.from_numpy)
radii = st.one_of(st.just(0.0), st.floats(0, 2))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(vectors, radii)
def test_the_projection_is_the_nearest_point_of_the_ball(u, radius):
    inside = linf_ball(radius)(u)
    np.testing.assert_array_equal(inside.numpy(), np.clip(u.numpy(), np.float32(-radius), np.float32(radius)))
    assert torch.equal(linf_ball(radius)(inside), inside)


@given(vectors)
def test_the_norm_is_that_of_torch(u):
    expected = torch.linalg.vector_norm(u.flatten(1), torch.inf, dim=1)
    assert torch.equal(linf_norm(u), expected)


@given(vectors, radii, st.integers(0, 99))
def test_starts_lie_in_the_ball_and_come_from_the_generator_alone(like, radius, seed):
    start = linf_start(like, radius, seeded(seed))
    assert start.shape == like.shape
    assert start.dtype == like.dtype
    assert (linf_norm(start) <= radius * (1 + 1e-6)).all()
    torch.manual_seed(seed + 1)
    assert torch.equal(start, linf_start(torch.zeros_like(like), radius, seeded(seed)))


def test_no_radius_means_the_centre():
    assert (linf_start(torch.ones(4, 1, 3, 3), 0, seeded()) == 0).all()


def test_distances_are_uniform_and_directions_gaussian():
    start = linf_start(torch.zeros(3_000, 100), 0.3, seeded())
    norm = linf_norm(start)
    assert kstest(norm.numpy() / 0.3, "uniform").pvalue > 1e-3
    entries = (start / start.norm(dim=1, keepdim=True)).flatten()[::7].numpy() * 10
    assert kstest(entries, "norm").pvalue > 1e-3
    assert (start.abs() < 0.5 * norm[:, None]).double().mean() > 0.7, "most entries start well inside"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float64_stays_float64(dtype):
    like = torch.zeros(3, 5, dtype=dtype)
    start = linf_start(like, 0.3, seeded())
    assert linf_ball(0.1)(start).dtype == linf_norm(start).dtype == dtype
