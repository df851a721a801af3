"""advbook.attacks.random_search: the points it tries, what must be found, the ball, the box, bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from toys import Linear, seeded, weights

from advbook.attacks import norms
from advbook.attacks.norms import L0, L1, L2, LINF
from advbook.attacks.objectives import margin
from advbook.attacks.random_search import random_search
from advbook.fleet import Stack


@pytest.mark.parametrize(("norm", "share"), [(LINF, 0.85), (L2, 0.85), (L1, 0.8)])
def test_in_few_dimensions_many_points_come_near_the_optimum(norm, share):
    """The largest w d in the ball is eps times the dual norm of w."""
    w, x = weights(3), torch.full((4, 1, 1, 3), 0.5, dtype=torch.float64)
    f, y = Linear(w), torch.zeros(4).long()
    result = random_search(f, x, y, eps=0.2, norm=norm, queries=800, restarts=1, stop="never", generator=seeded())
    dual = {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm.name]
    gain = result.value - margin(f(x), y)
    assert (gain <= 0.2 * dual + 1e-9).all()
    assert (gain >= share * 0.2 * dual).all()


@pytest.mark.parametrize(("points", "power"), [(norms.volume, 4), (norms.shells, 1)])
@pytest.mark.parametrize("norm", [LINF, L2, L1])
def test_points_are_uniform_in_volume_or_in_norm(norm, points, power):
    """A uniform point of the ball of radius 1 in 4 dimensions has a norm whose fourth power is uniform."""
    x, f = torch.full((10, 1, 2, 2), 0.5, dtype=torch.float64), Linear(weights(4))
    random_search(f, x, torch.zeros(10).long(), eps=0.25, norm=norm, points=points, queries=60, restarts=1,
                  stop="never", generator=seeded())  # fmt: skip
    moves = torch.cat(f.shown) - 0.5
    assert len(moves) == 600
    assert stats.kstest((norm.size(moves) / 0.25) ** power, "uniform").pvalue > 1e-3
    for dimension in moves.flatten(1).T:
        assert abs(dimension.sign().mean()) < 0.15, "both sides"
    assert len(moves.flatten(1).unique(dim=0)) == 600, "no point twice"


def test_without_a_norm_of_their_own_pixels_are_drawn_one_by_one():
    x, f = torch.full((5, 2, 3, 3), 0.5), Linear(weights(18))
    random_search(f, x, torch.zeros(5).long(), eps=2, norm=L0, queries=200, restarts=1, stop="never",
                  generator=seeded())  # fmt: skip
    changed = (torch.cat(f.shown) != 0.5).any(1).flatten(1)
    assert (changed.sum(1) == 2).all()
    assert stats.chisquare(changed.sum(0)).pvalue > 1e-3, "all pixels alike"


@given(
    norm=st.sampled_from([LINF, L2, L1, L0]),
    points=st.sampled_from([norms.volume, norms.shells]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    images=st.integers(1, 4),
    restarts=st.integers(1, 3),
    queries=st.integers(1, 6),
    eps=st.one_of(st.just(0.0), st.floats(0, 3)),
    batch=st.integers(1, 20),
    double=st.booleans(),
    seed=st.integers(0, 99),
)
def test_examples_lie_in_ball_and_box_and_are_the_best_that_was_judged(
    norm, points, shape, images, restarts, queries, eps, batch, double, seed
):
    x = (torch.rand(images, *shape, generator=seeded(seed)) * 1.4 - 0.2).clamp(0, 1)
    x = x.double() if double else x
    f, y = Linear(weights(math.prod(shape), seed)), torch.randint(2, (images,), generator=seeded(seed))
    options = {"eps": eps, "norm": norm, "points": points, "queries": queries, "restarts": restarts, "batch": batch}
    result = random_search(f, x, y, **options, stop="never", generator=seeded(seed))
    assert result.x.shape == (restarts, *x.shape)
    assert result.x.dtype == x.dtype
    assert result.x.min() >= 0
    assert result.x.max() <= 1
    for example, value in zip(result.x, result.value, strict=True):
        assert (norm.size(example.double() - x.double()) <= eps * (1 + 1e-12)).all()
        torch.testing.assert_close(margin(f(example), y), value, atol=1e-5, rtol=1e-5)
    assert sum(map(len, f.shown[:-restarts])) == images * restarts * queries
    assert result.forwards == restarts * queries
    again = random_search(f, x, y, **options, stop="never", generator=seeded(seed))
    assert torch.equal(result.x, again.x), "the generator alone decides"
    if eps == 0:
        assert torch.equal(result.x, x.expand_as(result.x))


def test_with_more_queries_the_best_value_never_falls_and_restarts_differ():
    x, y, f = torch.rand(5, 1, 3, 3, generator=seeded()), torch.zeros(5).long(), Linear(weights(9))
    last = torch.full((3, 5), -math.inf)
    for queries in (1, 4, 40):
        result = random_search(f, x, y, eps=0.1, queries=queries, restarts=3, stop="never", generator=seeded())
        assert (result.value >= last).all()
        last = result.value
    assert (torch.pdist(result.x[:, 0].flatten(1)) > 1e-3).all()


def test_the_first_success_ends_a_restart():
    """The clean image lies on the boundary, so that half of all points cross it."""
    x, y, f = torch.full((60, 1, 1, 2), 0.5), torch.zeros(60).long(), Linear(weights(2))
    result = random_search(lambda x: f(x - 0.5), x, y, eps=0.1, queries=50, restarts=4, generator=seeded())
    assert result.success.all()
    assert result.steps.max() < 49
    assert 0.4 < (result.steps == 0).float().mean() < 0.6


def test_a_fleet_of_two_equal_members_gives_the_same_as_one():
    torch.manual_seed(0)
    f = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3).double())
    x = torch.rand(5, 1, 3, 3, generator=seeded(), dtype=torch.float64)
    options = {"eps": 0.8, "queries": 8, "restarts": 2}
    one = random_search(f, x, f(x).argmax(1), **options, generator=seeded(), batch=3)
    two = random_search(Stack([f, f]), x, f(x).argmax(1), **options, generator=seeded(), batch=6)
    assert 0 < one.success.sum() < 10
    torch.testing.assert_close(two.x, one.x[:, None].expand(-1, 2, -1, -1, -1, -1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"eps": -0.1}, r"^eps = -0\.1: .*0 or more"),
        ({"eps": math.nan}, r"^eps = nan: .*0 or more"),
        ({"queries": 0}, r"^queries = 0: .*1 or more"),
        ({"restarts": 0}, r"^restarts = 0: .*1 or more"),
    ],
)
def test_a_budget_out_of_range_is_named(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        random_search(Linear(weights(4)), torch.rand(2, 1, 2, 2), torch.zeros(2).long(),
                      **{"eps": 0.1, "generator": seeded(), **wrong})  # fmt: skip


def test_a_network_that_gives_nan_is_an_error():
    with pytest.raises(ValueError, match=r"not finite.*NaN"):
        random_search(Linear(weights(4) * math.nan), torch.rand(2, 1, 2, 2), torch.zeros(2).long(), eps=0.1,
                      generator=seeded())  # fmt: skip
