"""advbook.attacks.norms: exact projections against scipy and brute force, directions, random points, rounding."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy.optimize import minimize
from scipy.stats import binom, chisquare, kstest

from advbook.attacks.norms import (
    L0,
    L1,
    L2,
    LINF,
    NORMS,
    gaussian,
    mixed,
    near,
    normal,
    shells,
    uniform,
    volume,
    zero,
)

EVERY = list(NORMS.values())
CONVEX = [LINF, L2, L1]
by_name = {"ids": lambda value: getattr(value, "name", str(value))}

radii = st.one_of(st.just(0.0), st.floats(0.01, 4))
shapes = st.one_of(
    st.tuples(st.integers(1, 3), st.integers(1, 6)),
    st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3]), st.integers(1, 3), st.integers(1, 3)),
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@st.composite
def boxed(draw, dtype=np.float64, shape=shapes):
    """u, and a box around 0 that leaves some entries no room on one side."""
    size = draw(shape)
    numbers = st.floats(-3, 3, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)
    u = draw(st_numpy.arrays(dtype, size, elements=numbers))
    x = draw(st_numpy.arrays(dtype, size, elements=st.sampled_from([0.0, 1.0, 0.5]) | st.floats(0, 1, width=32)))
    u, x = torch.from_numpy(u), torch.from_numpy(x)
    return u, -x, 1 - x


def images(count=64, shape=(3, 4, 4), seed=0, dtype=torch.float32):
    """Images with black and white among grey, and far points to project."""
    x = (torch.rand(count, *shape, generator=seeded(seed)) * 1.6 - 0.3).clamp(0, 1).to(dtype)
    return x, 2 * torch.randn(count, *shape, generator=seeded(seed + 1)).to(dtype)


# --- how large ----------------------------------------------------------------------------------------------------


@given(boxed())
def test_the_sizes_are_the_norms_of_torch(case):
    u = case[0]
    for norm, order in ((LINF, torch.inf), (L2, 2), (L1, 1)):
        expected = torch.linalg.vector_norm(u.flatten(1), order, dim=1)
        torch.testing.assert_close(norm.size(u), expected, atol=1e-12, rtol=1e-12)


def test_a_pixel_counts_once_however_many_of_its_channels_change():
    u = torch.zeros(3, 3, 2, 2)
    u[0, :, 0, 1] = torch.tensor([1.0, -1.0, 0.5])
    u[1, 0, 0, 0], u[1, 2, 1, 1] = -1e-30, 1e-30
    assert L0.size(u).tolist() == [1, 2, 0]
    assert L0.size(torch.tensor([[0.0, -2.0, 3.0]])).tolist() == [2]


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30])
def test_neither_huge_nor_tiny_rows_lose_their_euclidean_norm(scale):
    u = torch.tensor([[3.0, -4.0], [0.0, 0.0]]) * scale
    torch.testing.assert_close(L2.size(u) / scale, torch.tensor([5.0, 0.0]), atol=0, rtol=2e-3)


# --- the nearest point ----------------------------------------------------------------------------------------------


@given(boxed(), radii)
def test_the_linf_projection_is_the_closed_form(case, radius):
    u, low, high = case
    expected = np.clip(np.clip(u.numpy(), -radius, radius), low.numpy(), high.numpy())
    np.testing.assert_array_equal(LINF.nearest(u, radius, low, high).numpy(), expected)


def nearest_by_scipy(norm, u, low, high, radius):
    """min |v - u|^2 over v = p - q with 0 <= p <= high, 0 <= q <= -low and p, q in the ball: a smooth problem."""
    size = len(u)
    ball = {
        "l2": {"fun": lambda w: radius**2 - w @ w, "jac": lambda w: -2 * w},
        "l1": {"fun": lambda w: radius - w.sum(), "jac": lambda w: -np.ones(2 * size)},
    }[norm.name]
    bounds = [(0, b) for b in high] + [(0, -a) for a in low]

    def distance(w):
        rest = w[:size] - w[size:] - u
        return rest @ rest, np.concatenate([2 * rest, -2 * rest])

    start = np.full(2 * size, 1e-3)
    found = minimize(
        distance, start, jac=True, bounds=bounds, constraints={"type": "ineq", **ball}, method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    return (found.x[:size] - found.x[size:]) if found.success else None


@pytest.mark.parametrize("norm", [L2, L1], **by_name)
@settings(max_examples=60)
@given(case=boxed(shape=st.tuples(st.just(1), st.integers(1, 6))), radius=st.floats(0.05, 4))
def test_the_l2_and_l1_projections_are_those_of_a_general_solver(norm, case, radius):
    found = norm.nearest(case[0], radius, *case[1:])[0].numpy()
    expected = nearest_by_scipy(norm, *(part[0].numpy() for part in case), radius)
    assume(expected is not None)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def farthest(norm, g, radius, low, high):
    """max g . w over ball and box, rows of numpy: greedy for L1; for L2 clip(s g) with s found by bisection."""
    room = np.where(g > 0, high, -low)
    value = np.zeros(len(g))
    for row, (slope, bound) in enumerate(zip(np.abs(g), room, strict=True)):
        if norm is L1:
            order = np.argsort(-slope)
            filled = np.clip(radius - (np.cumsum(bound[order]) - bound[order]), 0, bound[order])
            value[row] = slope[order] @ filled
            continue
        least, most = 0.0, 1e9
        for _ in range(200):
            middle = (least + most) / 2
            inside = np.linalg.norm(np.minimum(middle * slope, bound)) <= radius
            least, most = (middle, most) if inside else (least, middle)
        value[row] = slope @ np.minimum(least * slope, bound)
    return value


@pytest.mark.parametrize("norm", [L2, L1], **by_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [0.05, 0.7, 3.0, 20.0])
def test_no_feasible_point_lies_further_along_from_the_projection_to_the_point(norm, dtype, radius):
    """v is the projection of u if and only if (u - v) . (w - v) <= 0 for all w of the set: 3 x 8 x 8 images."""
    x, u = images(20, (3, 8, 8), seed=3, dtype=dtype)
    v = norm.nearest(u, radius, -x, 1 - x)
    u, v, x = (part.flatten(1).double().numpy() for part in (u, v, x))
    assert (norm.size(torch.from_numpy(v)) <= radius).all(), "in double precision, whatever the projection's own"
    gap = farthest(norm, u - v, radius, -x, 1 - x) - ((u - v) * v).sum(1)
    assert (gap >= -1e-5 * radius * 20).all(), "the maximum is one"
    assert (gap <= 2e-5 * radius * np.linalg.norm(u - v, axis=1)).all()


@settings(max_examples=60)
@given(
    case=boxed(shape=st.tuples(st.just(1), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))),
    radius=st.floats(0, 7),
)
def test_the_l0_projection_is_the_best_of_all_subsets_of_pixels(case, radius):
    u, low, high = case
    spots = u.shape[2] * u.shape[3]
    kept = u.clamp(low, high)

    def distance(subset):
        mask = torch.zeros(spots, dtype=u.dtype)
        mask[list(subset)] = 1
        return float((u - kept * mask.view(1, 1, *u.shape[2:])).square().sum())

    subsets = combinations(range(spots), min(int(radius), spots))
    found = L0.nearest(u, radius, low, high)
    assert L0.size(found) <= radius
    assert (found >= low).all()
    assert (found <= high).all()
    assert float((u - found).square().sum()) == pytest.approx(min(map(distance, subsets)), abs=1e-9)


def test_l0_keeps_changes_of_both_signs():
    u = torch.tensor([[[[3.0, -4.0], [0.5, -0.6]]]])
    one = torch.ones(())
    assert L0.nearest(u, 2, -one, one).tolist() == [[[[1.0, -1.0], [0.0, 0.0]]]]
    assert L0.nearest(-u, 3, -one, one).tolist() == [[[[-1.0, 1.0], [0.0, 0.6000000238418579]]]]


def test_l0_prefers_the_pixel_whose_box_leaves_it_room():
    """The larger entry may move by .1 only: keeping the smaller one saves more."""
    u, low, high = torch.tensor([[2.0, 1.0]]), -torch.ones(2), torch.tensor([0.1, 1.0])
    assert L0.nearest(u, 1, low, high).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("norm", EVERY, **by_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=40)
@given(case=boxed(np.float32), radius=radii)
def test_a_projected_point_is_feasible_and_stays_where_it_is(norm, dtype, case, radius):
    u, low, high = (part.to(dtype) for part in case)
    inside = norm.nearest(u, radius, low, high)
    assert inside.dtype == dtype
    assert inside.shape == u.shape
    assert (inside >= low).all()
    assert (inside <= high).all()
    assert (norm.size(inside) <= radius * (1 + 1e-6)).all()
    again = norm.nearest(inside, radius, low, high)
    torch.testing.assert_close(again, inside, atol=3e-6 * radius, rtol=0)


@pytest.mark.parametrize("norm", EVERY, **by_name)
def test_no_radius_leaves_zero_and_a_huge_one_only_the_box(norm):
    x, u = images()
    assert (norm.nearest(u, 0.0, -x, 1 - x) == 0).all()
    for radius in (1e3, 1e30):
        assert torch.equal(norm.nearest(u, radius, -x, 1 - x), u.clamp(-x, 1 - x))


@pytest.mark.parametrize("norm", EVERY, **by_name)
def test_rows_are_projected_as_if_alone_and_zero_rows_stay_zero(norm):
    x, u = images(12)
    u[3], u[5] = 0, 1e-3 * u[5]
    radius = 2.5
    inside = norm.nearest(u, radius, -x, 1 - x)
    assert (inside[3] == 0).all()
    for row in range(12):
        alone = norm.nearest(u[row, None], radius, -x[row, None], 1 - x[row, None])
        torch.testing.assert_close(inside[row, None], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", EVERY, **by_name)
def test_a_row_that_is_not_a_number_stays_one_and_harms_no_other(norm):
    x, u = images(4)
    clean = norm.nearest(u, 2.0, -x, 1 - x)
    u[1, 0, 0, 0] = math.nan
    inside = norm.nearest(u, 2.0, -x, 1 - x)
    assert inside[1].isnan().any()
    torch.testing.assert_close(inside[[0, 2, 3]], clean[[0, 2, 3]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", CONVEX, **by_name)
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e2])
def test_projections_work_at_every_scale_of_steps(norm, scale):
    """What is far away lands on the ball, what is near stays: gradients and rates come in all sizes."""
    x, u = torch.full((8, 1, 5, 5), 0.5), scale * torch.randn(8, 1, 5, 5, generator=seeded())
    inside = norm.nearest(u, 0.3, -x, 1 - x)
    expected = norm.size(u).clamp_max(0.3)
    torch.testing.assert_close(norm.size(inside), expected, atol=1e-20, rtol=1e-4)
    assert (inside * u >= 0).all()


@pytest.mark.parametrize("norm", [L2, L1], **by_name)
def test_huge_points_are_projected_onto_the_ball_and_not_to_its_centre(norm):
    u, one = torch.tensor([[3e4, -4e5]]), torch.ones(())
    assert norm.size(norm.nearest(u, 0.5, -one, one)) == pytest.approx(0.5, rel=1e-4)


# --- rounding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", EVERY, **by_name)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 4), (1, 28, 28)], ids=str)
@pytest.mark.parametrize("radius", [1e-6, 0.03, 0.1, 0.3, 0.7, 0.95, 1.5, 3.0, 12.0])
def test_a_rounded_image_keeps_to_the_radius_in_double_precision(norm, shape, radius):
    for seed, scale in ((0, 0.3), (10, 5.0)):
        x, u = images(200, shape, seed)
        inside = norm.nearest(scale * u, norm.inside(radius, x), -x, 1 - x)
        image = (x + inside).clamp(0, 1)
        exact = image.double() - x.double()
        assert (norm.size(exact) <= radius).all()


def test_the_radius_that_is_projected_to_is_hardly_smaller_and_never_negative():
    for norm in EVERY:
        like = torch.zeros(2, 3, 4, 4)
        assert norm.inside(0.0, like) == 0
        assert 0.3 * (1 - 1e-4) <= norm.inside(0.3, like) <= 0.3
        assert norm.inside(0.3, like) <= norm.inside(0.3, like.double()) <= 0.3
        assert norm.inside(0.3, like[:0]) <= 0.3, "no images are no error"
    assert L0.inside(3.0, torch.zeros(2, 3, 4, 4)) == 3.0, "rounding changes no further pixel"


# --- directions -----------------------------------------------------------------------------------------------------

lengths = {"linf": LINF.size, "l2": L2.size, "l1": L1.size, "l0": L1.size}


@pytest.mark.parametrize("norm", EVERY, **by_name)
@settings(max_examples=40)
@given(case=boxed(np.float32))
def test_directions_have_length_one_and_lie_along_the_gradient(norm, case):
    g = case[0]
    direction = norm.direction(g)
    there = (g != 0).flatten(1).any(1)
    torch.testing.assert_close(lengths[norm.name](direction), there.to(g.dtype), atol=1e-6, rtol=0)
    assert (direction[~there] == 0).all()
    if norm is LINF:
        assert torch.equal(direction, g.sign())
    else:
        along = (direction * g).flatten(1).sum(1)
        torch.testing.assert_close(along, L2.size(direction) * L2.size(g), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("norm", EVERY, **by_name)
@pytest.mark.parametrize("scale", [1e-40, 1e-38, 1e-30, 1e-10, 1e10, 1e35])
def test_the_size_of_a_gradient_does_not_change_its_direction(norm, scale):
    """1e-40 is below the normal numbers of float32, and keeps five digits."""
    g = torch.tensor([[[[1.0, -2.0], [0.0, 0.25]]]])
    torch.testing.assert_close(norm.direction(g * scale), norm.direction(g), atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", [L2, L1, L0], **by_name)
def test_the_smallest_gradients_of_double_precision_keep_their_direction(norm):
    g = torch.tensor([[1.0, -2.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(norm.direction(g * 1e-315), norm.direction(g), atol=1e-6, rtol=0)


# --- start points ---------------------------------------------------------------------------------------------------

KINDS = [(kind, norm) for kind in (zero, volume, shells) for norm in EVERY] + [(gaussian, norm) for norm in CONVEX]


@pytest.mark.parametrize(("kind", "norm"), KINDS, ids=[f"{kind.__name__} {norm.name}" for kind, norm in KINDS])
@settings(max_examples=25)
@given(shape=shapes, radius=radii, seed=st.integers(0, 99))
def test_starts_lie_in_the_ball_and_come_from_the_generator_alone(kind, norm, shape, radius, seed):
    like, start = torch.ones(shape), kind(norm, radius)
    u = start(like, seeded(seed))
    assert u.shape == like.shape
    assert u.dtype == like.dtype
    assert u.isfinite().all()
    assert (norm.size(u) <= radius * (1 + 1e-6)).all()
    assert radius or (u == 0).all()
    torch.manual_seed(seed + 1)
    assert torch.equal(u, start(torch.zeros_like(like), seeded(seed)))


def test_starts_in_double_precision_are_those_in_single():
    for kind, norm in KINDS:
        single = kind(norm, 0.3)(torch.zeros(5, 3, 2, 2), seeded())
        double = kind(norm, 0.3)(torch.zeros(5, 3, 2, 2, dtype=torch.float64), seeded())
        assert double.dtype == torch.float64
        torch.testing.assert_close(double.float(), single, atol=1e-5, rtol=1e-3)


def like(size, count=20_000):
    return torch.zeros(count, size)


@pytest.mark.parametrize(("draw", "law"), [(uniform, "uniform"), (normal, "norm")], ids=["uniform", "normal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_drawn_from_the_generator_in_the_shape_and_type_of_a_tensor(draw, law, dtype):
    numbers = draw(torch.ones(40, 5, 10, dtype=dtype), seeded())
    assert numbers.shape == (40, 5, 10)
    assert numbers.dtype == dtype
    assert kstest(numbers.flatten(), law).pvalue > 1e-3
    torch.manual_seed(3)
    assert torch.equal(numbers, draw(torch.zeros(40, 5, 10, dtype=dtype), seeded()))


@pytest.mark.parametrize("norm", CONVEX, **by_name)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_volume_is_uniform_in_the_ball(norm, size):
    """The share of the ball inside radius s r is s^D; so is that of every box of half the size at a corner of it."""
    u = volume(norm, 0.4)(like(size), seeded(size)).double()
    assert kstest((norm.size(u) / 0.4) ** size, "uniform").pvalue > 1e-3
    half = (norm.size(u) <= 0.2).double().mean().item()
    assert half == pytest.approx(2.0**-size, abs=4 * math.sqrt(2.0**-size / 20_000))
    assert kstest(u[:, 0], -u[:, -1]).pvalue > 1e-3, "no side and no coordinate is preferred"


def test_in_the_plane_the_l1_ball_is_a_square_on_its_tip():
    """Its sides are u_1 + u_2 and u_1 - u_2, independent and uniform."""
    u = volume(L1, 2.0)(like(2), seeded()).double()
    plus, minus = u[:, 0] + u[:, 1], u[:, 0] - u[:, 1]
    for side in (plus, minus):
        assert kstest(side, "uniform", (-2, 4)).pvalue > 1e-3
    assert abs(np.corrcoef(plus, minus)[0, 1]) < 0.03
    assert abs(np.corrcoef(plus.abs(), minus.abs())[0, 1]) < 0.03


@pytest.mark.parametrize("norm", CONVEX, **by_name)
@pytest.mark.parametrize("size", [1, 4, 48])
def test_the_norm_of_shells_is_uniform_up_to_the_radius(norm, size):
    u = shells(norm, 0.4)(like(size, 5_000), seeded(size)).double()
    assert kstest(norm.size(u) / 0.4, "uniform").pvalue > 1e-3


def test_the_directions_of_shells_are_uniform_on_the_surface():
    u = {norm.name: shells(norm, 1.0)(like(3), seeded()).double() for norm in CONVEX}
    unit = {name: value / NORMS[name].size(value)[:, None] for name, value in u.items()}
    assert kstest(unit["l2"][:, 1], "uniform", (-1, 2)).pvalue > 1e-3, "a sphere's slices are of one size (Archimedes)"
    inner = unit["linf"][unit["linf"][:, 0].abs() == 1]
    assert len(inner) == pytest.approx(20_000 / 3, rel=0.05)
    assert kstest(inner[:, 1], "uniform", (-1, 2)).pvalue > 1e-3, "a cube's faces"
    assert kstest(unit["l1"][:, 2].abs(), lambda t: 1 - (1 - t) ** 2).pvalue > 1e-3, "a simplex of three corners"
    assert kstest(unit["l1"][:, 2], -unit["l1"][:, 0]).pvalue > 1e-3


def test_gaussian_starts_have_uniform_distances_and_gaussian_directions():
    start = gaussian(LINF, 0.3)(like(100, 3_000), seeded())
    norm = LINF.size(start)
    assert kstest(norm.numpy() / 0.3, "uniform").pvalue > 1e-3
    entries = (start / start.norm(dim=1, keepdim=True)).flatten()[::7].numpy() * 10
    assert kstest(entries, "norm").pvalue > 1e-3
    assert (start.abs() < 0.5 * norm[:, None]).double().mean() > 0.7, "most entries start well inside"


def test_l0_starts_change_random_pixels_in_all_channels_to_uniform_values():
    count, wide = 4_000, torch.zeros(4_000, 3, 2, 3)
    u = volume(L0, 2.9)(wide, seeded())
    assert (L0.size(u) == 2).all()
    changed = (u != 0).any(1).flatten(1)  # [B, H W]
    assert torch.equal(changed, (u != 0).all(1).flatten(1))
    assert chisquare(changed.sum(0).numpy()).pvalue > 1e-3
    assert kstest(u[u != 0].numpy(), "uniform", (-1, 2)).pvalue > 1e-3
    fewer = L0.size(shells(L0, 3)(wide, seeded())).long()
    assert chisquare(np.bincount(fewer, minlength=4), [count / 4] * 4).pvalue > 1e-3, "zero to three pixels"
    assert (L0.size(volume(L0, 100)(wide, seeded())) == 6).all(), "not more than there are"


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 4, 4), (7,), (2,)], ids=str)
@pytest.mark.parametrize("norm", EVERY, **by_name)
def test_near_starts_are_gaussian_with_the_published_standard_deviation(norm, shape):
    """eps / (2 ln D), the same under every norm: at 28 x 28 pixels .3 / (2 ln 784) = .0225."""
    u = near(norm, 0.3)(torch.ones(20_000 // math.prod(shape) + 1, *shape), seeded()).flatten().double()
    expected = 0.3 / (2 * math.log(math.prod(shape)))
    if shape == (1, 28, 28):
        assert expected == pytest.approx(0.0225, abs=5e-5)
    assert u.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * len(u)))  # five standard errors
    assert abs(u.mean().item()) < 5 * expected / math.sqrt(len(u))
    assert kstest(u / expected, "norm").pvalue > 1e-3


def test_near_starts_come_from_the_generator_alone_and_keep_shape_and_type():
    single, double = torch.ones(5, 3, 2, 2), torch.zeros(5, 3, 2, 2, dtype=torch.float64)
    u = near(LINF, 0.3)(single, seeded(1))
    assert (u.shape, u.dtype) == (single.shape, single.dtype)
    torch.manual_seed(3)
    assert torch.equal(u, near(LINF, 0.3)(0 * single, seeded(1)))
    assert not torch.equal(u, near(LINF, 0.3)(single, seeded(2)))
    torch.testing.assert_close(near(LINF, 0.3)(double, seeded(1)).float(), u)
    assert (near(LINF, 0.0)(single, seeded(1)) == 0).all()
    assert near(LINF, 0.3)(torch.zeros(4, 1), seeded()).isfinite().all(), "one entry has ln D = 0"


def constant(value):
    return lambda like, generator: torch.full_like(like, value)


@pytest.mark.parametrize("count", [2, 3])
def test_every_row_draws_its_own_start_and_all_are_as_likely(count):
    """A share outside the bounds has a chance of 1e-6."""
    rows = 3_000
    u = mixed([constant(float(value)) for value in range(count)])(torch.zeros(rows, 2, 3), seeded())
    chosen = u[:, 0, 0]
    assert torch.equal(u, chosen.view(-1, 1, 1).expand_as(u)), "a row has one start"
    low, high = binom.interval(1 - 1e-6, rows, 1 / count)
    for value in range(count):
        assert low <= (chosen == value).sum() <= high
    same = (chosen[1:] == chosen[:-1]).sum()
    low, high = binom.interval(1 - 1e-6, rows - 1, 1 / count)
    assert low <= same <= high, "neighbours are independent"


def test_a_whole_batch_has_one_start_and_all_are_as_likely_among_batches():
    start, random, chosen = mixed([constant(0.0), constant(1.0), constant(2.0)], whole_batch=True), seeded(), []
    for _ in range(600):
        u = start(torch.zeros(4, 2), random)
        assert (u == u[0, 0]).all()
        chosen.append(int(u[0, 0]))
    low, high = binom.interval(1 - 1e-6, 600, 1 / 3)
    assert all(low <= count <= high for count in np.bincount(chosen, minlength=3))


@pytest.mark.parametrize("whole_batch", [False, True])
def test_a_mixture_is_made_of_rows_of_its_starts(whole_batch):
    """Row for row one of what the starts give when they draw one after the other."""
    starts, like = [near(LINF, 0.3), shells(LINF, 0.3), zero(LINF, 0.3)], torch.zeros(60, 1, 3, 3)
    random = seeded(5)
    candidates = torch.stack([start(like, random) for start in starts])
    u = mixed(starts, whole_batch=whole_batch)(like, seeded(5))
    same = (candidates == u).flatten(2).all(2)  # [starts, B]
    assert (same.sum(0) == 1).all()
    assert same.any(1).sum() == (1 if whole_batch else 3)
    assert torch.equal(u, mixed(starts, whole_batch=whole_batch)(like, seeded(5)))


def test_a_mixture_costs_the_same_randomness_whatever_it_draws():
    after = set()
    for whole_batch in (False, True):
        starts = [near(LINF, 0.3), zero(LINF, 0.3)]
        ends = []
        for order in (starts, starts[::-1]):
            random = seeded(2)
            mixed(order, whole_batch=whole_batch)(torch.zeros(1, 4), random)
            ends.append(torch.rand(1, generator=random).item())
        assert ends[0] == ends[1]
        after.add(ends[0])
    assert len(after) == 1, "one row: one draw either way"


def test_the_norms_are_known_by_their_names():
    assert list(NORMS) == ["linf", "l2", "l1", "l0"]
    assert all(norm.name == name for name, norm in NORMS.items())
