"""advbook.attacks.square: schedule, starts and windows as published, optima of linear models, ball, box, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from toys import Linear, seeded, weights

from advbook.attacks.norms import L1, L2, LINF
from advbook.attacks.objectives import margin
from advbook.attacks.search import Dice, Seen
from advbook.attacks.square import bump, bump_windows, bumps, signed_windows, square, stripes, tiles, window_sides
from advbook.fleet import Stack


def seen(u, clock=1):
    return Seen(u, u.new_zeros(len(u)), torch.ones(len(u), dtype=torch.bool), torch.full((len(u),), clock))


# --- the schedule ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "queries", "least"), [(0.8, 10_000, 1), (0.05, 1000, 1), (0.1, 777, 3), (1.0, 1, 1)])
def test_windows_shrink_at_the_published_points_rescaled_to_the_budget(p, queries, least):
    sides = window_sides(p, 28, 30, least, queries).tolist()
    for window in range(queries + 1):
        passed = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
        passed = sum(window >= point * queries / 10_000 - 1e-9 for point in passed)
        assert sides[window] == min(max(round((p / 2**passed * 28 * 30) ** 0.5), least), 28), window
    if queries == 10_000:
        assert sides[9] == round((0.8 * 840) ** 0.5)
        assert sides[10] == round((0.4 * 840) ** 0.5)


@given(height=st.integers(1, 9), width=st.integers(1, 9), p=st.floats(0.001, 1), least=st.sampled_from([1, 3]))
def test_windows_fit_the_image(height, width, p, least):
    sides = window_sides(p, height, width, least, 100)
    assert sides.max() <= min(height, width)
    assert sides.min() >= min(least, height, width)
    assert (sides.diff() <= 0).all()


# --- L-inf ----------------------------------------------------------------------------------------------------


def test_stripes_are_vertical_and_one_pixel_wide_with_a_sign_for_each_channel():
    start = stripes(0.1)(torch.zeros(400, 3, 5, 4), seeded())
    assert (start.abs() == 0.1).all()
    assert torch.equal(start, start[:, :, :1].expand_as(start)), "the same all the way down"
    signs = start[:, :, 0].sign().flatten(1)  # 12 independent coins
    assert signs.mean(0).abs().max() < 0.2
    assert (torch.corrcoef(signs.T) - torch.eye(12)).abs().max() < 0.2


def test_a_window_has_a_place_of_its_own_and_a_sign_for_each_channel():
    u, sides = torch.zeros(6000, 2, 5, 6), torch.tensor([3, 3])
    _, candidate = signed_windows(0.1, sides).propose((), seen(u), Dice(seeded(), 1))
    inside = candidate != 0
    assert torch.equal(inside[:, 0], inside[:, 1]), "one window for all channels"
    assert torch.equal(candidate.abs().amax((2, 3)), torch.full((6000, 2), 0.2)), (
        "from one end of the ball to the other"
    )
    places = torch.zeros(3, 4)
    for top in range(3):
        for left in range(4):
            mask = torch.zeros(5, 6, dtype=torch.bool)
            mask[top : top + 3, left : left + 3] = True
            places[top, left] = (inside[:, 0] == mask).all((1, 2)).sum()
    assert places.sum() == 6000, "every window is a square of side 3"
    assert stats.chisquare(places.flatten()).pvalue > 1e-3, "all places, the last ones too"
    signs = candidate.sum((2, 3)).sign()
    pattern = (signs[:, 0] > 0).int() * 2 + (signs[:, 1] > 0)
    assert stats.chisquare(pattern.bincount(minlength=4)).pvalue > 1e-3
    assert (candidate[inside].view(6000, 2, 9).std(2) == 0).all(), "the same all over the window"


@pytest.mark.parametrize("side", [1, 4])
def test_the_smallest_and_the_largest_windows_are_allowed(side):
    u = torch.zeros(300, 1, 4, 4)
    _, candidate = signed_windows(0.1, torch.tensor([side, side])).propose((), seen(u), Dice(seeded(), 1))
    assert ((candidate != 0).sum((1, 2, 3)) == side**2).all()
    assert (candidate != 0).any(0).all(), "every pixel is reached"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_linear_model_is_led_to_its_optimum(channels):
    w, x = weights(16 * channels), torch.full((3, channels, 4, 4), 0.5, dtype=torch.float64)
    f, y = Linear(w), torch.zeros(3).long()
    result = square(f, x, y, eps=0.1, p=0.3, queries=600, restarts=2, stop="never", generator=seeded())
    gain = result.value - margin(f(x), y)
    assert (gain <= 0.1 * w.abs().sum() + 1e-9).all()
    assert (gain >= 0.95 * 0.1 * w.abs().sum()).all()
    assert ((result.x - x).abs() - 0.1).abs().max() < 1e-9, "a corner of the cube"


def test_the_given_objective_is_what_is_raised():
    x = torch.full((2, 1, 4, 4), 0.5)
    result = square(lambda x: x.flatten(1), x, torch.zeros(2), eps=0.1, queries=300, win=lambda x, _: x[:, 0] > 2,
                    objective=lambda x, _: -(x - 0.55).abs().sum(1), generator=seeded())  # fmt: skip
    torch.testing.assert_close(result.x[0], x + 0.1, atol=1e-6, rtol=0)  # .6 is as far from .55 as .5, .4 is further


# --- L2 -------------------------------------------------------------------------------------------------------


def test_the_first_bumps_by_hand():
    torch.testing.assert_close(bump(1, 1), torch.ones(1, 1).double())
    torch.testing.assert_close(bump(3, 1), torch.tensor([[0.25], [1.25], [0.25]]).double())
    torch.testing.assert_close(bump(3, 2), torch.tensor([[0.25, 0.25], [0.25, 1.25], [0.25, 0.25]]).double())
    assert bump(1, 0).shape == (1, 0)


@given(side=st.integers(1, 12))
def test_bumps_are_those_of_the_formula(side):
    def eta(h1, h2):
        n = h1 // 2
        value = torch.zeros(h1, h2).double()
        for r in range(1, h1 + 1):
            for s in range(1, h2 + 1):
                top = n - max(abs(r - h1 // 2 - 1), abs(s - h2 // 2 - 1))
                value[r - 1, s - 1] = sum(1 / (n + 1 - k) ** 2 for k in range(top + 1))
        return value

    k = side // 2
    expected = torch.cat([eta(side, k), -eta(side, side - k)], 1)
    torch.testing.assert_close(bumps(side), expected / expected.norm())


def test_the_start_is_a_grid_of_five_by_five_tiles_of_norm_eps():
    start = tiles(0.7)(torch.zeros(50, 2, 17, 16, dtype=torch.float64), seeded())
    torch.testing.assert_close(L2.size(start), torch.full((50,), 0.7).double())
    grid = start[:, :, 1:16, :15]
    assert start.abs().sum() == grid.abs().sum(), "the rest is empty"
    height = start.abs().max() / bumps(3).abs().max()
    turns = set()
    for tile in grid.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).flatten(0, 2) / height:
        ways = [(turn, sign) for turn in (0, 1) for sign in (1, -1)]
        found = [
            next(way for way in ways if torch.allclose(part, way[1] * (bumps(3).T if way[0] else bumps(3)), atol=1e-9))
            for part in tile
        ]
        assert found[0][0] == found[1][0], "channels differ in sign alone"
        turns.add(tuple(found))
    assert len(turns) == 2 * 2 * 2


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4, 4), (5, 9), (28, 28)])
def test_the_start_fits_images_of_any_size(shape):
    start = tiles(0.5)(torch.zeros(3, 1, *shape), seeded())
    assert start.shape == (3, 1, *shape)
    torch.testing.assert_close(L2.size(start), torch.full((3,), 0.5))


class Loaded:
    """Dice that give what they were told."""

    def __init__(self, numbers):
        self.numbers = numbers

    def uniform(self, u, count):
        assert self.numbers.shape == (len(u), count)
        return self.numbers


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(3, 6), st.integers(3, 6)), side=st.integers(1, 3),
    scale=st.just(0.0) | st.floats(1e-6, 1), seed=st.integers(0, 99),  # squares of less vanish in the plain norm below
)  # fmt: skip
def test_two_windows_are_changed_as_published(shape, side, scale, seed):
    """Algorithm 3 for one pair and one channel after the other, with the same random numbers."""
    channels, height, width = shape
    u = torch.randn(4, *shape, generator=seeded(seed), dtype=torch.float64)
    u = u * (scale / L2.size(u))[:, None, None, None]
    numbers = torch.rand(4, 5 + channels, generator=seeded(seed + 1), dtype=torch.float64)
    eps, proposal = 1.0, bump_windows(1.0, torch.tensor([side, side]))
    _, candidate = proposal.propose((), seen(u), Loaded(numbers))
    for pair in range(4):
        nu, (r1, s1, r2, s2, turn, *signs) = u[pair].clone(), numbers[pair].tolist()
        r1, s1 = int(r1 * (height - side + 1)), int(s1 * (width - side + 1))
        r2, s2 = int(r2 * (height - side + 1)), int(s2 * (width - side + 1))
        eta = bumps(side).T if turn < 0.5 else bumps(side)
        unused = eps**2 - nu.norm() ** 2
        for i in range(channels):
            both = torch.zeros(height, width, dtype=torch.bool)
            both[r1 : r1 + side, s1 : s1 + side] = both[r2 : r2 + side, s2 : s2 + side] = True
            old = nu[i, r1 : r1 + side, s1 : s1 + side]
            new = (1 if signs[i] >= 0.5 else -1) * eta + (old / old.norm() if old.norm() else old)
            available = (nu[i][both].norm() ** 2 + unused / channels).sqrt()
            nu[i, r2 : r2 + side, s2 : s2 + side] = 0
            nu[i, r1 : r1 + side, s1 : s1 + side] = new / new.norm() * available
        if side > 1:  # with a side of 1 the bump may cancel what is there
            torch.testing.assert_close(candidate[pair], nu, atol=1e-9, rtol=0)
            assert candidate[pair].norm().item() == pytest.approx(eps)
    assert candidate.isfinite().all()


def test_both_windows_reach_every_place():
    u = torch.ones(4000, 1, 9, 8, dtype=torch.float64)
    _, candidate = bump_windows(9.0, torch.tensor([3, 3])).propose((), seen(u), Dice(seeded(), 1))
    emptied, filled = (candidate == 0)[:, 0], (candidate != 1)[:, 0] & (candidate != 0)[:, 0]
    assert (filled.sum((1, 2)) == 9).all()
    for window in (filled, emptied[emptied.sum((1, 2)) == 9]):  # those that do not overlap the first
        corners = [window[:, top : top + 3, left : left + 3].all((1, 2)).sum() for top in range(7) for left in range(6)]
        assert sum(corners) == len(window)
        assert min(corners) > 0, "all places, the last ones too"
        assert window is not filled or stats.chisquare(corners).pvalue > 1e-3


def test_in_the_l2_ball_a_linear_model_is_led_most_of_the_way():
    """A weight vector with the shape of the windows, so that the published moves can make it."""
    w = torch.zeros(9, 9, dtype=torch.float64)
    w[2:7, 3:8] = bumps(5)
    f, x, y = Linear(w.flatten()), torch.full((3, 1, 9, 9), 0.5, dtype=torch.float64), torch.zeros(3).long()
    result = square(f, x, y, eps=0.4, norm=L2, p=0.3, queries=800, restarts=2, stop="never", generator=seeded())
    gain = result.value - margin(f(x), y)
    assert (gain <= 0.4 * w.norm() + 1e-9).all()
    assert (gain >= 0.8 * 0.4 * w.norm()).all()


# --- both -----------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    norm=st.sampled_from([LINF, L2]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    images=st.integers(1, 4),
    restarts=st.integers(1, 3),
    queries=st.integers(1, 12),
    eps=st.one_of(st.just(0.0), st.floats(0, 2)),
    p=st.floats(0.01, 1),
    batch=st.integers(1, 20),
    double=st.booleans(),
    seed=st.integers(0, 99),
)
def test_examples_lie_in_ball_and_box_and_are_the_best_that_was_judged(
    norm, shape, images, restarts, queries, eps, p, batch, double, seed
):
    x = (torch.rand(images, *shape, generator=seeded(seed)) * 1.4 - 0.2).clamp(0, 1)
    x = x.double() if double else x
    f, y = Linear(weights(math.prod(shape), seed)), torch.randint(2, (images,), generator=seeded(seed))
    options = {"eps": eps, "norm": norm, "p": p, "queries": queries, "restarts": restarts, "batch": batch}
    result = square(f, x, y, **options, stop="never", generator=seeded(seed))
    assert sum(map(len, f.shown)) == images * restarts * queries == result.forwards * images
    judged = torch.cat(f.shown).flatten(1)
    assert result.x.min() >= 0
    assert result.x.max() <= 1
    for example, value in zip(result.x, result.value, strict=True):
        assert (norm.size(example.double() - x.double()) <= eps * (1 + 1e-12)).all()
        torch.testing.assert_close(margin(f(example), y), value, atol=1e-5, rtol=1e-5)
        assert all((judged == row).all(1).any() for row in example.flatten(1))
    again = square(f, x, y, **options, stop="never", generator=seeded(seed))
    assert torch.equal(result.x, again.x), "the generator alone decides"
    if eps == 0:
        assert torch.equal(result.x, x.expand_as(result.x))


@pytest.mark.parametrize("norm", [LINF, L2])
def test_what_is_returned_is_the_largest_of_all_that_was_seen_and_restarts_differ(norm):
    f, x, y = Linear(weights(25)), torch.rand(3, 1, 5, 5, generator=seeded()), torch.zeros(3).long()
    result = square(f, x, y, eps=0.1, norm=norm, queries=40, restarts=2, stop="never", generator=seeded())
    values = torch.stack([margin(f(batch), y.repeat(2)) for batch in list(f.shown)])  # [queries, R B]
    assert len(values) == 40
    torch.testing.assert_close(result.value.flatten(), values.amax(0))
    assert (torch.pdist(result.x[:, 0].flatten(1)) > 1e-3).all()


@pytest.mark.parametrize("norm", [LINF, L2])
def test_a_fleet_of_two_equal_members_gives_the_same_as_one(norm):
    torch.manual_seed(0)
    f = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3).double())
    x = torch.rand(5, 1, 5, 5, generator=seeded(), dtype=torch.float64)
    options = {"eps": 0.2 if norm is LINF else 1.0, "norm": norm, "queries": 8, "restarts": 2}
    one = square(f, x, f(x).argmax(1), **options, generator=seeded(), batch=3)
    two = square(Stack([f, f]), x, f(x).argmax(1), **options, generator=seeded(), batch=6)
    assert 0 < one.success.sum() < 10
    torch.testing.assert_close(two.x, one.x[:, None].expand(-1, 2, -1, -1, -1, -1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"eps": -0.1}, r"^eps = -0\.1: .*0 or more"),
        ({"p": 0.0}, r"^p = 0\.0: .*above 0, up to 1"),
        ({"p": math.nan}, r"^p = nan: "),
        ({"p": 1.5}, r"^p = 1\.5: "),
        ({"norm": L1}, r"^norm = l1: allowed are linf and l2"),
        ({"queries": 0}, r"^queries = 0: .*1 or more"),
        ({"restarts": 0}, r"^restarts = 0: .*1 or more"),
    ],
)
def test_a_budget_out_of_range_is_named(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        square(Linear(weights(4)), torch.rand(2, 1, 2, 2), torch.zeros(2).long(),
               **{"eps": 0.1, "generator": seeded(), **wrong})  # fmt: skip


def test_a_network_that_gives_nan_is_an_error():
    with pytest.raises(ValueError, match=r"not finite.*NaN"):
        square(Linear(weights(4) * math.nan), torch.rand(2, 1, 2, 2), torch.zeros(2).long(), eps=0.1,
               generator=seeded())  # fmt: skip
