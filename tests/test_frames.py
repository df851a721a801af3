"""advbook.attacks.frames: the border alone changes, to any value; optima of linear models, bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from advbook.attacks.frames import border, frames
from advbook.attacks.objectives import margin
from advbook.attacks.steps import ascent
from advbook.fleet import Stack


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(w):
    """Two classes, the second with logit w x."""

    def f(x):
        score = x.flatten(1).to(w) @ w
        return torch.stack([torch.zeros_like(score), score], 1).to(x.dtype)

    return f


def weights(count, seed=0):
    return torch.randn(count, generator=seeded(seed), dtype=torch.float64)


@given(height=st.integers(1, 7), width=st.integers(1, 7), w=st.integers(0, 8))
def test_the_border_is_what_is_near_an_edge(height, width, w):
    mask = border(height, width, w)
    for i in range(height):
        for j in range(width):
            assert mask[i, j] == (min(i, j, height - 1 - i, width - 1 - j) < w)


def test_on_a_linear_model_the_border_becomes_black_and_white():
    w, x, y = weights(2 * 25), torch.rand(3, 2, 5, 5, generator=seeded(1)).double(), torch.zeros(3).long()
    result = frames(linear(w), x, y, w=1, restarts=2, stop="never", generator=seeded(), objective=margin)
    inside = border(5, 5, 1) == 0
    assert torch.equal(result.x[..., inside], x[..., inside].expand(2, -1, -1, -1)), "the inside is untouched"
    best = torch.where(inside, x, (w > 0).double().view(2, 5, 5))
    torch.testing.assert_close(result.x, best.expand_as(result.x), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.value, margin(linear(w)(best), y).expand(2, 3))
    assert (result.x - x).min() < -0.5, "it darkens"
    assert (result.x - x).max() > 0.5, "and it brightens"


@pytest.mark.parametrize(("height", "expected"), [(28, 2), (32, 3), (6, 1)])
def test_the_default_width_is_a_tenth_of_the_height_and_at_least_one(height, expected):
    x = torch.full((1, 1, height, height), 0.5)
    result = frames(linear(weights(height**2)), x, torch.zeros(1).long(), steps=0, restarts=1, stop="never",
                    generator=seeded())  # fmt: skip
    assert torch.equal(result.x[0, 0, 0] != 0.5, border(height, height, expected) == 1)


def test_it_starts_from_uniform_values_whatever_the_image_is():
    x = torch.tensor([0.0, 0.3, 1.0]).repeat_interleave(100).view(300, 1, 1, 1).expand(-1, 1, 4, 4)
    result = frames(linear(weights(16)), x, torch.zeros(300).long(), w=1, steps=0, restarts=2, stop="never",
                    generator=seeded())  # fmt: skip
    values = result.x[..., border(4, 4, 1) == 1]
    assert stats.kstest(values.flatten()[::7], "uniform").pvalue > 1e-3
    assert not torch.equal(values[0], values[1])


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    images=st.integers(1, 4),
    restarts=st.integers(1, 3),
    steps=st.integers(0, 4),
    w=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_the_inside_stays_and_all_stays_in_the_box(shape, images, restarts, steps, w, seed):
    x = (torch.rand(images, *shape, generator=seeded(seed)) * 1.4 - 0.2).clamp(0, 1)
    f, y = linear(weights(math.prod(shape), seed)), torch.randint(2, (images,), generator=seeded(seed))
    options = {"w": w, "steps": steps, "restarts": restarts, "stop": "never", "objective": margin}
    result = frames(f, x, y, **options, generator=seeded(seed))
    assert result.x.min() >= 0
    assert result.x.max() <= 1
    inside = border(*shape[1:], w) == 0
    assert torch.equal(result.x[..., inside], x[..., inside].expand(restarts, -1, -1, -1))
    for example, value, success in zip(result.x, result.value, result.success, strict=True):
        torch.testing.assert_close(margin(f(example), y), value, atol=1e-5, rtol=1e-5)
        assert torch.equal(f(example).argmax(1) != y, success)
    assert result.forwards == restarts * (steps + 1)
    assert torch.equal(result.x, frames(f, x, y, **options, generator=seeded(seed)).x), "the generator alone decides"


def test_more_steps_never_give_a_worse_objective():
    f, x, y = linear(weights(25)), torch.rand(4, 1, 5, 5, generator=seeded()), torch.zeros(4).long()
    last = torch.full((2, 4), -math.inf)
    for steps in range(6):
        value = frames(f, x, y, steps=steps, restarts=2, stop="never", generator=seeded()).value
        assert (value >= last).all()
        last = value


def test_the_first_success_ends_a_restart_and_the_rule_may_be_chosen():
    f, x = linear(weights(25)), torch.full((4, 1, 5, 5), 0.5)
    y = f(x).argmax(1)
    result = frames(f, x, y, restarts=3, rule=ascent(0.3, torch.sign), generator=seeded())
    assert result.success.all()
    assert result.steps.max() < 20


def test_a_fleet_of_two_equal_members_gives_the_same_as_one():
    torch.manual_seed(0)
    f = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3).double())
    x = torch.rand(6, 1, 5, 5, generator=seeded(), dtype=torch.float64)
    one = frames(f, x, f(x).argmax(1), steps=2, restarts=2, generator=seeded(), batch=3)
    two = frames(Stack([f, f]), x, f(x).argmax(1), steps=2, restarts=2, generator=seeded(), batch=6)
    torch.testing.assert_close(two.x, one.x[:, None].expand(-1, 2, -1, -1, -1, -1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"w": -1}, r"^w = -1: .*0 or more"),
        ({"restarts": 0}, r"^restarts = 0: .*1 or more"),
        ({"steps": -1}, r"^steps = -1: "),
    ],
)
def test_a_budget_out_of_range_is_named(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        frames(linear(weights(9)), torch.rand(2, 1, 3, 3), torch.zeros(2).long(), **{"generator": seeded(), **wrong})


def test_a_network_that_gives_nan_is_an_error():
    with pytest.raises(ValueError, match=r"not finite.*NaN"):
        frames(linear(weights(9) * math.nan), torch.rand(2, 1, 3, 3), torch.zeros(2).long(), generator=seeded())
