"""advbook.manifolds.projection: planted points, bounded least squares by scipy, spans, angles, neighbours."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from sklearn.neighbors import NearestNeighbors

from advbook import fonts
from advbook.manifolds.projection import (
    Manifold,
    Projection,
    adam_schedule,
    l2,
    levenberg_marquardt,
    neighbours,
    off_neighbours,
    off_span,
    project,
    tangent_angle,
)

METHODS = pytest.mark.parametrize("method", [levenberg_marquardt, adam_schedule])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def letters(count=40, seed=3):
    """The manifold of FONTS, and codes on it."""
    rows = fonts.rows("test", count, seed=seed)
    return Manifold(fonts.decode, fonts.decode_with_jacobian, *fonts.theta_box()), rows.theta, (rows.font, rows.letter)


def planted(count=40, seed=0, reach=0.3):
    """Targets dec(theta*) with theta* a random move of at most `reach` from theta, inside the box."""
    manifold, theta, context = letters(count)
    zeta = reach * (2 * torch.rand(theta.shape, generator=seeded(seed)) - 1)
    there = (theta + zeta).clamp(manifold.low, manifold.high)
    return manifold, theta, context, fonts.decode(there, *context)


def linear(seed=0, pixels=12, size=3):
    """dec(z; gain) = gain A z + b on the box [-1, 1]^3, whose projections are bounded least squares."""
    slope = torch.randn(pixels, size, generator=seeded(seed))
    shift = torch.randn(pixels, generator=seeded(seed + 1))

    def decode(z, gain):
        return (gain[:, None] * (z @ slope.T) + shift).view(len(z), 1, 3, 4)

    def linearize(z, gain):
        return decode(z, gain), gain[:, None, None] * slope

    return Manifold(decode, linearize, -torch.ones(size), torch.ones(size)), slope, shift


# --- projection onto the true manifold ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_a_planted_point_of_the_manifold_is_recovered(seed):
    manifold, theta, context, target = planted(seed=seed)
    found = project(manifold, target, theta, context, method=levenberg_marquardt, starts=5, generator=seeded(seed))
    assert found.z.shape == (6, 40, 6)
    z, distance = found.best()
    assert (distance < 1e-3).double().mean() >= 0.95
    assert l2(target - fonts.decode(theta, *context)).median() > 1, "the shortcut would leave this distance"
    torch.testing.assert_close(l2(fonts.decode(z, *context) - target), distance, atol=1e-3, rtol=1e-3)


def test_the_released_schedule_comes_near_a_planted_point():
    manifold, theta, context, target = planted()
    found = project(manifold, target, theta, context, method=adam_schedule, starts=5, generator=seeded())
    assert (found.best()[1] < 0.1).double().mean() >= 0.9


@pytest.mark.parametrize("seed", range(5))
def test_on_a_linear_manifold_it_is_scipys_bounded_least_squares(seed):
    manifold, slope, shift = linear(seed)
    gain, target = torch.tensor([1.0, 0.5, -2.0, 3.0]), 3 * torch.randn(4, 1, 3, 4, generator=seeded(seed + 2))
    start = 2 * torch.rand(2, 4, 3, generator=seeded(seed + 3)) - 1
    found = levenberg_marquardt(manifold, target, start, (gain,))
    for image in range(4):
        matrix = (gain[image] * slope).double().numpy()
        right = (target[image].flatten() - shift).double().numpy()
        exact = lsq_linear(matrix, right, bounds=(-1, 1), method="bvls")
        distance = np.linalg.norm(matrix @ exact.x - right)
        np.testing.assert_allclose(found.distance[:, image], distance, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.z[:, image], np.tile(exact.x, (2, 1)), atol=0.02)


@METHODS
@pytest.mark.parametrize("seed", range(3))
def test_no_start_ends_further_away_and_all_stay_in_the_box(method, seed):
    manifold, theta, context = letters(10, seed=seed)
    target = (fonts.decode(theta, *context) + 0.2 * torch.randn(10, 1, 28, 28, generator=seeded(seed))).clamp(0, 1)
    unit = torch.rand(3, 10, 6, generator=seeded(seed + 1))
    start = torch.cat([manifold.low + (manifold.high - manifold.low) * unit, manifold.low.expand(1, 10, 6)])
    found = method(manifold, target, start, context)
    before = torch.stack([l2(fonts.decode(z, *context) - target) for z in start])
    assert found.distance.shape == (4, 10)
    assert (found.distance <= before + 1e-5).all()
    assert (found.distance < before - 0.1).double().mean() > 0.8
    assert (found.z >= manifold.low).all()
    assert (found.z <= manifold.high).all()
    assert not found.z.requires_grad
    for z, distance in zip(found.z, found.distance, strict=True):
        torch.testing.assert_close(l2(fonts.decode(z, *context) - target), distance, atol=1e-4, rtol=1e-4)


@METHODS
def test_more_steps_never_end_further_away(method):
    """Adam's large first steps overshoot: the best iterate counts, not the last."""
    manifold, theta, context, target = planted(10)
    last = torch.full((1, 10), math.inf)
    for steps in range(12):
        distance = method(manifold, target, theta[None], context, steps=steps).distance
        assert (distance <= last + 1e-5).all()
        last = distance


@METHODS
def test_a_start_outside_the_box_is_moved_into_it(method):
    manifold, theta, context, target = planted(4)
    found = method(manifold, target, theta[None] + 9, context, steps=2)
    assert (found.z <= manifold.high).all()


def test_an_image_of_the_manifold_stays_where_it_is():
    manifold, theta, context = letters(10)
    found = levenberg_marquardt(manifold, fonts.decode(theta, *context), theta[None], context)
    torch.testing.assert_close(found.z[0], theta)
    assert found.distance.max() < 1e-5


def test_noise_of_the_manifolds_complement_is_left_over():
    """On a linear manifold with room in its box, what is orthogonal to it is the distance, whatever the start."""
    manifold, slope, _ = linear(4)
    z = torch.full((5, 3), 0.2)
    noise = off_span(torch.randn(5, 12, generator=seeded(6)), slope.expand(5, 12, 3))
    target = manifold.decode(z, torch.ones(5)) + noise.view(5, 1, 3, 4)
    found = project(manifold, target, z + 0.3, (torch.ones(5),), method=levenberg_marquardt, starts=2, candidates=4,
                    generator=seeded())  # fmt: skip
    torch.testing.assert_close(found.distance, l2(noise).expand(3, 5), atol=1e-4, rtol=1e-4)


@given(batch=st.integers(1, 8))
def test_the_first_start_is_the_given_code_whatever_the_batch(batch):
    manifold, _, _ = linear(1)
    z, gain = torch.rand(7, 3, generator=seeded(2)), torch.rand(7, generator=seeded(3)) + 0.5
    target = torch.randn(7, 1, 3, 4, generator=seeded(4))

    def stay(manifold, target, start, context):
        return Projection(start, torch.stack([l2(manifold.decode(part, *context) - target) for part in start]))

    found = project(manifold, target, z, (gain,), method=stay, starts=2, candidates=50, batch=batch, generator=seeded())
    assert found.z.shape == (3, 7, 3)
    assert torch.equal(found.z[0], z)
    assert (found.z.abs() <= 1).all()
    expected = torch.stack([l2(manifold.decode(part, gain) - target) for part in found.z])
    torch.testing.assert_close(found.distance, expected)
    assert (found.distance[1] <= found.distance[2]).all(), "random starts come nearest first"


def test_random_starts_are_the_nearest_of_many():
    manifold, theta, context, target = planted(10)

    def stay(manifold, target, start, context):
        return Projection(start, torch.stack([l2(manifold.decode(part, *context) - target) for part in start]))

    few, many = (
        project(manifold, target, theta, context, method=stay, starts=2, candidates=c, generator=seeded())
        for c in (2, 256)
    )
    assert (many.distance[1:].mean(0) < few.distance[1:].mean(0)).double().mean() > 0.8


def test_the_best_is_the_nearest_start_of_every_image():
    z = torch.arange(12.0).view(3, 2, 2)
    best, distance = Projection(z, torch.tensor([[3.0, 1.0], [2.0, 5.0], [4.0, 0.5]])).best()
    assert best.tolist() == [z[1, 0].tolist(), z[2, 1].tolist()]
    assert distance.tolist() == [2.0, 0.5]


# --- spans and angles -----------------------------------------------------------------------------------------


@given(
    pixels=st.integers(1, 12),
    columns=st.integers(1, 14),
    kind=st.sampled_from(["full", "repeated", "zero", "all zero", "tiny"]),
    seed=st.integers(0, 99),
)
def test_what_lies_outside_a_span_is_the_residual_of_least_squares(pixels, columns, kind, seed):
    basis = torch.randn(3, pixels, columns, generator=seeded(seed))
    if kind == "repeated":
        basis = basis[:, :, torch.arange(columns) // 2]
    elif kind == "zero":
        basis[:, :, columns // 2] = 0
    elif kind == "all zero":
        basis = torch.zeros_like(basis)
    elif kind == "tiny":
        basis = 1e-3 * basis
    v = torch.randn(3, pixels, generator=seeded(seed + 1))
    rest = off_span(v, basis)
    for one, of, matrix in zip(rest, v.double().numpy(), basis.double().numpy(), strict=True):
        singular = np.linalg.svd(matrix, compute_uv=False)
        if ((singular > 1e-6 * singular[0]) & (singular < 1e-3 * singular[0])).any():
            continue  # nearly dependent by chance: which rank it has is a matter of taste
        solution = np.linalg.lstsq(matrix, of, rcond=1e-5)[0]
        np.testing.assert_allclose(one, of - matrix @ solution, atol=2e-3)


@given(st.integers(0, 99))
def test_the_rest_is_orthogonal_to_the_span_and_projecting_again_changes_nothing(seed):
    basis, v = torch.randn(2, 30, 5, generator=seeded(seed)), torch.randn(2, 30, generator=seeded(seed + 1))
    rest = off_span(v, basis)
    assert (basis.mT @ rest[:, :, None]).abs().max() < 1e-4
    torch.testing.assert_close(off_span(rest, basis), rest, atol=1e-5, rtol=0)


def test_angles_of_known_directions():
    jacobian = torch.zeros(3, 16, 2)
    jacobian[:, 0, 0], jacobian[:, 1, 1] = 5, 0.1
    delta = torch.zeros(3, 1, 4, 4)
    delta[0, 0, 0, 1] = -2  # in the tangent space
    delta[1, 0, 3, 3] = 0.01  # orthogonal to it
    delta[2, 0, 0, 0], delta[2, 0, 2, 2] = 1, -math.sqrt(3)  # 60 degrees off
    torch.testing.assert_close(tangent_angle(delta, jacobian), torch.tensor([0.0, 90.0, 60.0]), atol=1e-3, rtol=0)


def test_a_random_direction_has_the_angle_of_counted_dimensions():
    manifold, theta, context = letters(40)
    delta = torch.randn(40, 1, 28, 28, generator=seeded(1))
    angle = tangent_angle(delta, manifold.linearize(theta, *context)[1])
    assert float(angle.mean()) == pytest.approx(math.degrees(math.acos(math.sqrt(6 / 784))), abs=0.5)


def test_a_small_move_on_the_manifold_is_tangent():
    manifold, theta, context = letters(20)
    move = 1e-3 * torch.randn(theta.shape, generator=seeded(2))
    delta = fonts.decode(theta + move, *context) - fonts.decode(theta, *context)
    assert tangent_angle(delta, manifold.linearize(theta, *context)[1]).median() < 10


# --- neighbours -----------------------------------------------------------------------------------------------


@given(count=st.integers(1, 30), k=st.integers(1, 30), batch=st.integers(1, 9), seed=st.integers(0, 9))
def test_neighbours_are_scikit_learns(count, k, batch, seed):
    train = torch.rand(30, 1, 4, 4, generator=seeded(seed))
    query = torch.rand(count, 1, 4, 4, generator=seeded(seed + 1))
    ours = neighbours(query, train, k, batch=batch)
    theirs = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(train.flatten(1)).kneighbors(query.flatten(1))[1]
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("k", [0, 6])
def test_a_number_of_neighbours_out_of_range_is_named(k):
    with pytest.raises(ValueError, match=rf"^k = {k} .*5 training images"):
        neighbours(torch.rand(2, 1, 2, 2), torch.rand(5, 1, 2, 2), k)


@pytest.mark.parametrize("inside", [True, False], ids=["x is a training image", "x is a new image"])
def test_the_distance_to_the_neighbours_span_is_that_of_numpy(inside):
    train = fonts.images(fonts.rows("train", 200))
    x = train[:6] if inside else fonts.images(fonts.rows("test", 6))
    query = (x + 0.05 * torch.randn(x.shape, generator=seeded())).clamp(0, 1)
    residual, distance = off_neighbours(query, x, train, k=10, batch=4)
    assert residual.shape == x.shape
    torch.testing.assert_close(distance, l2(residual))
    _, nearest = NearestNeighbors(n_neighbors=10).fit(train.flatten(1)).kneighbors(query.flatten(1))
    for row in range(6):
        assert not inside or row in nearest[row], "the case has a column of zeros"
        centre = x[row].flatten().double().numpy()
        basis = (train[nearest[row]].flatten(1).double().numpy() - centre).T
        delta = query[row].flatten().double().numpy() - centre
        solution = np.linalg.lstsq(basis, delta, rcond=1e-5)[0]
        assert float(distance[row]) == pytest.approx(np.linalg.norm(delta - basis @ solution), rel=1e-4)


def test_a_step_towards_a_neighbour_has_no_distance():
    train = fonts.images(fonts.rows("train", 100))
    x = fonts.images(fonts.rows("test", 5))
    nearest = train[neighbours(x, train, 1)[:, 0]]
    query = x + 0.9 * (nearest - x)
    assert off_neighbours(query, x, train, k=3)[1].max() < 1e-4
