"""advbook.attacks.geometry: the best reference, every one of them once, ball, box, bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import Linear, seeded, weights

from advbook.attacks.geometry import geometry
from advbook.attacks.norms import L0, L1, L2, LINF
from advbook.attacks.objectives import margin
from advbook.fleet import Stack


def problem(images=4, references=9, seed=0):
    x, others = torch.rand(images + references, 2, 3, 3, generator=seeded(seed), dtype=torch.float64).split(
        [images, references]
    )
    return Linear(weights(18, seed)), x, torch.zeros(images).long(), others


def shrunk(move, eps, norm):
    """The projection of one move: between images of the box, the ball alone binds."""
    if norm is LINF:
        return move.clamp(-eps, eps)
    return move * min(1.0, eps / move.norm().item())


@pytest.mark.parametrize("norm", [LINF, L2])
@pytest.mark.parametrize("eps", [0.1, 0.6, 5.0])
def test_the_best_reference_is_found_and_the_image_with_its_move_is_what_is_judged(norm, eps):
    f, x, y, others = problem()
    result = geometry(f, x, y, others, eps=eps, norm=norm, stop="never", generator=seeded())
    judged = torch.cat(f.shown)
    for b in range(len(x)):
        tries = torch.stack([x[b], *(x[b] + shrunk(other - x[b], eps, norm) for other in others)])
        assert all(((judged - row).abs().amax((1, 2, 3)) < 1e-9).any() for row in tries), "every one of them is judged"
        values = margin(f(tries), y[:1].expand(len(tries)))
        torch.testing.assert_close(result.value[0, b], values.max())
        torch.testing.assert_close(result.x[0, b], tries[values.argmax()], atol=1e-9, rtol=0)
    assert len(judged) == 4 * 10, "the image and every reference once"
    assert result.forwards == 10


def test_a_known_reference_leads_across_the_boundary():
    """Of three references only the second has the pixel that matters."""
    x, y = torch.full((1, 1, 2, 2), 0.2), torch.zeros(1).long()
    others = torch.full((3, 1, 2, 2), 0.1)
    others[1, 0, 0, 1] = 1.0
    f = Linear(torch.tensor([0.0, 1.0, 0.0, 0.0]).double())
    result = geometry(lambda x: f(x - 0.45), x, y, others, eps=0.3, generator=seeded())
    assert result.success.all()
    torch.testing.assert_close(result.x[0, 0, 0], torch.tensor([[0.1, 0.5], [0.1, 0.1]]), atol=1e-5, rtol=0)
    assert not geometry(lambda x: f(x - 0.45), x, y, others[::2], eps=0.3, generator=seeded()).success.any()


def test_with_fewer_queries_every_restart_takes_references_in_an_order_of_its_own():
    f, x, y, others = problem(images=1, references=8)
    result = geometry(f, x, y, others, eps=9, queries=4, restarts=30, stop="never", generator=seeded())
    taken = torch.stack(f.shown).flatten(2)  # [queries, R, D]
    assert taken.shape[:2] == (4, 30)
    which = torch.cdist(taken[1:], others.flatten(1)).argmin(-1).T  # [R, 3]
    assert all(len(row.unique()) == 3 for row in which), "none twice"
    assert len(which.unique(dim=0)) > 20
    assert len(which.unique()) == 8
    assert len(result.value.unique()) > 1


@given(
    norm=st.sampled_from([LINF, L2, L1, L0]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    images=st.integers(1, 4),
    references=st.integers(0, 5),
    restarts=st.integers(1, 3),
    eps=st.one_of(st.just(0.0), st.floats(0, 3)),
    batch=st.integers(1, 20),
    double=st.booleans(),
    seed=st.integers(0, 99),
)
def test_examples_lie_in_ball_and_box_and_are_the_best_that_was_judged(
    norm, shape, images, references, restarts, eps, batch, double, seed
):
    x = (torch.rand(images + references, *shape, generator=seeded(seed)) * 1.4 - 0.2).clamp(0, 1)
    x, others = (x.double() if double else x).split([images, references])
    f, y = Linear(weights(math.prod(shape), seed)), torch.randint(2, (images,), generator=seeded(seed))
    options = {"eps": eps, "norm": norm, "restarts": restarts, "batch": batch}
    result = geometry(f, x, y, others, **options, stop="never", generator=seeded(seed))
    assert sum(map(len, f.shown)) == images * restarts * (1 + references) == result.forwards * images
    assert result.x.min() >= 0
    assert result.x.max() <= 1
    for example, value in zip(result.x, result.value, strict=True):
        assert (norm.size(example.double() - x.double()) <= eps * (1 + 1e-12)).all()
        torch.testing.assert_close(margin(f(example), y), value, atol=1e-5, rtol=1e-5)
        assert (value >= margin(f(x), y) - 1e-6).all()
    torch.testing.assert_close(result.value, result.value[:1].expand(restarts, -1))  # all have seen the same
    if eps == 0 or not references:
        assert torch.equal(result.x, x.expand_as(result.x))


def test_with_more_queries_the_best_value_never_falls():
    f, x, y, others = problem()
    last = torch.full((2, 4), -math.inf)
    for queries in range(1, 11):
        value = geometry(f, x, y, others, eps=0.2, queries=queries, restarts=2, stop="never", generator=seeded()).value
        assert (value >= last).all()
        last = value


def test_a_fleet_of_two_equal_members_gives_the_same_as_one():
    torch.manual_seed(0)
    f = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(18, 3).double())
    _, x, _, others = problem(images=6)
    one = geometry(f, x, f(x).argmax(1), others, eps=0.4, restarts=2, queries=5, generator=seeded(), batch=3)
    two = geometry(
        Stack([f, f]), x, f(x).argmax(1), others, eps=0.4, restarts=2, queries=5, generator=seeded(), batch=6
    )
    assert 0 < one.success.sum() < 12
    torch.testing.assert_close(two.x, one.x[:, None].expand(-1, 2, -1, -1, -1, -1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"eps": -0.1}, r"^eps = -0\.1: .*0 or more"),
        ({"queries": 0}, r"^queries = 0: .*1 or more"),
        ({"queries": 11}, r"^queries = 11: allowed are at most 10"),
        ({"restarts": 0}, r"^restarts = 0: .*1 or more"),
    ],
)
def test_a_budget_out_of_range_is_named(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        geometry(*problem(), **{"eps": 0.1, "generator": seeded(), **wrong})


def test_a_network_that_gives_nan_is_an_error():
    _, x, y, others = problem()
    with pytest.raises(ValueError, match=r"not finite.*NaN"):
        geometry(Linear(weights(18) * math.nan), x, y, others, eps=0.1, generator=seeded())
