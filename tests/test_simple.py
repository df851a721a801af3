"""advbook.attacks.simple: the optimum of linear models to the query, the order of tries, ball, box, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Linear, seeded, weights

from advbook.attacks.norms import L0, L1, L2, LINF
from advbook.attacks.objectives import margin
from advbook.attacks.simple import simple
from advbook.fleet import Stack


def test_a_linear_model_is_at_its_optimum_after_exactly_one_query_for_each_minus_and_two_for_each_plus():
    w, x, y = weights(18), torch.full((3, 2, 3, 3), 0.5, dtype=torch.float64), torch.zeros(3).long()
    f, best = Linear(w), x + 0.1 * w.sign().view(2, 3, 3)
    needed = 1 + 18 + int((w > 0).sum())
    budget = {"eps": 0.1, "restarts": 4, "stop": "never"}
    result = simple(f, x, y, **budget, queries=needed, generator=seeded())
    torch.testing.assert_close(result.x, best.expand_as(result.x), atol=1e-9, rtol=0)
    short = simple(f, x, y, **budget, queries=needed - 1, generator=seeded()).x
    assert ((short - best).abs() > 1e-6).flatten(2).sum(2).eq(1).all(), "with one query less, one value is missing"


def test_one_value_moves_at_a_time_down_first_and_up_only_if_down_did_not_help():
    """One image, one sweep: the best point so far, each try, and what came of it."""
    w, x = weights(6, 3), torch.full((1, 1, 2, 3), 0.5, dtype=torch.float64)
    f = Linear(w)
    simple(f, x, torch.zeros(1).long(), eps=0.1, queries=1 + 6 + int((w > 0).sum()), restarts=1, stop="never",
           generator=seeded())  # fmt: skip
    best, *tries = torch.cat(f.shown).flatten(1)
    assert torch.equal(best, x.flatten()), "the image itself is the first query"
    order = []
    while tries:
        image = tries.pop(0)
        (moved,) = (image != best).nonzero()[:, 0].tolist()
        order.append(moved)
        assert image[moved].item() == pytest.approx(0.4)
        if w[moved] > 0:
            image = tries.pop(0)
            assert image[moved].item() == pytest.approx(0.6)
            assert (image != best).sum() == 1
        best = image
    assert sorted(order) == list(range(6)), "every value once"
    assert order != sorted(order)


def test_restarts_and_images_take_orders_of_their_own():
    f, x = Linear(weights(16)), torch.full((2, 1, 4, 4), 0.5)
    simple(f, x, torch.zeros(2).long(), eps=0.1, queries=2, restarts=8, stop="never", generator=seeded())
    moved = (f.shown[1] != 0.5).flatten(1).int().argmax(1)
    assert len(moved.unique()) > 6


def test_in_the_l2_ball_small_steps_go_on_until_nothing_more_fits():
    w, x, y = weights(8), torch.full((2, 2, 2, 2), 0.5, dtype=torch.float64), torch.zeros(2).long()
    f = Linear(w)
    result = simple(f, x, y, eps=0.2, norm=L2, step=0.02, queries=400, restarts=2, stop="never", generator=seeded())
    gain = result.value - margin(f(x), y)
    assert (gain <= 0.2 * w.norm() + 1e-9).all()
    assert (gain >= 0.95 * 0.2 * w.norm()).all()


@settings(max_examples=50)
@given(
    norm=st.sampled_from([LINF, L2, L1, L0]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    images=st.integers(1, 4),
    restarts=st.integers(1, 3),
    queries=st.integers(1, 25),
    eps=st.one_of(st.just(0.0), st.floats(0, 2)),
    step=st.one_of(st.none(), st.floats(0, 1)),
    batch=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_examples_lie_in_ball_and_box_and_were_judged(norm, shape, images, restarts, queries, eps, step, batch, seed):
    x = (torch.rand(images, *shape, generator=seeded(seed)) * 1.4 - 0.2).clamp(0, 1)
    f, y = Linear(weights(math.prod(shape), seed)), torch.randint(2, (images,), generator=seeded(seed))
    options = {"eps": eps, "norm": norm, "step": step, "queries": queries, "restarts": restarts, "batch": batch}
    result = simple(f, x, y, **options, stop="never", generator=seeded(seed))
    judged = torch.cat(f.shown).flatten(1)
    assert len(judged) == images * restarts * queries == result.forwards * images
    assert result.x.min() >= 0
    assert result.x.max() <= 1
    for example, value in zip(result.x, result.value, strict=True):
        assert (norm.size(example.double() - x.double()) <= eps * (1 + 1e-12)).all()
        torch.testing.assert_close(margin(f(example), y), value, atol=1e-5, rtol=1e-5)
        assert (value >= margin(f(x), y)).all(), "never worse than the image"
        assert all((judged == row).all(1).any() for row in example.flatten(1))
    again = simple(f, x, y, **options, stop="never", generator=seeded(seed))
    assert torch.equal(result.x, again.x), "the generator alone decides"
    if eps == 0:
        assert torch.equal(result.x, x.expand_as(result.x))


def test_a_value_at_the_edge_of_the_box_can_only_move_inwards():
    x, y = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.zeros(1).long()
    for sign, expected in ((1, [0.1, 1.0]), (-1, [0.0, 0.9])):
        f = Linear(sign * torch.ones(2))
        result = simple(f, x, y, eps=0.1, queries=5, restarts=1, stop="never", generator=seeded())
        torch.testing.assert_close(result.x.flatten(), torch.tensor(expected), atol=1e-6, rtol=0)


def test_with_more_queries_the_best_value_never_falls():
    x, y, f = torch.rand(4, 1, 3, 3, generator=seeded()), torch.zeros(4).long(), Linear(weights(9))
    last = torch.full((2, 4), -math.inf)
    for queries in range(1, 25):
        value = simple(f, x, y, eps=0.1, queries=queries, restarts=2, stop="never", generator=seeded()).value
        assert (value >= last).all()
        last = value


def test_a_fleet_of_two_equal_members_gives_the_same_as_one():
    torch.manual_seed(0)
    f = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3).double())
    x = torch.rand(5, 1, 3, 3, generator=seeded(), dtype=torch.float64)
    one = simple(f, x, f(x).argmax(1), eps=0.2, queries=14, restarts=2, generator=seeded(), batch=3)
    two = simple(Stack([f, f]), x, f(x).argmax(1), eps=0.2, queries=14, restarts=2, generator=seeded(), batch=6)
    assert 0 < one.success.sum() < 10
    torch.testing.assert_close(two.x, one.x[:, None].expand(-1, 2, -1, -1, -1, -1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"eps": -0.1}, r"^eps = -0\.1: .*0 or more"),
        ({"step": -1.0}, r"^step = -1\.0: .*0 or more"),
        ({"queries": 0}, r"^queries = 0: .*1 or more"),
        ({"restarts": 0}, r"^restarts = 0: .*1 or more"),
    ],
)
def test_a_budget_out_of_range_is_named(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        simple(Linear(weights(4)), torch.rand(2, 1, 2, 2), torch.zeros(2).long(),
               **{"eps": 0.1, "generator": seeded(), **wrong})  # fmt: skip


def test_a_network_that_gives_nan_is_an_error():
    with pytest.raises(ValueError, match=r"not finite.*NaN"):
        simple(Linear(weights(4) * math.nan), torch.rand(2, 1, 2, 2), torch.zeros(2).long(), eps=0.1,
               generator=seeded())  # fmt: skip
