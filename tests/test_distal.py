"""advbook.attacks.distal: confidence on noise, in closed form and with a bound; what success says; bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from advbook.attacks.distal import distal, noise
from advbook.attacks.steps import ascent
from advbook.fleet import Stack


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(w, b=0.0):
    """Two classes, the second with logit w x + b."""

    def f(x):
        score = x.flatten(1).to(w) @ w + b
        return torch.stack([torch.zeros_like(score), score], 1).to(x.dtype)

    return f


def weights(count, seed=0):
    return torch.randn(count, generator=seeded(seed), dtype=torch.float64)


def test_noise_is_uniform_and_the_generators():
    x = noise(20, (3, 4, 5), seeded())
    assert x.shape == (20, 3, 4, 5)
    assert stats.kstest(x.flatten(), "uniform").pvalue > 1e-3
    assert torch.equal(x, noise(20, (3, 4, 5), seeded()))
    assert not torch.equal(x, noise(20, (3, 4, 5), seeded(1)))


@pytest.mark.parametrize("side", [1, -1])
def test_on_a_linear_model_the_confidence_reaches_the_closed_form_on_either_side(side):
    """With a logit m of one sign all over the ball, the most is log sigmoid(|m| + eps |w|_1)."""
    w = weights(12)
    b = side * (1 + w.abs().sum())
    x = 0.2 + 0.6 * noise(5, (3, 2, 2), seeded()).double()
    result = distal(linear(w, b), x, eps=0.1, rule=ascent(0.02, torch.sign), restarts=2, steps=12, generator=seeded())
    m = (x.flatten(1) @ w + b).abs() + 0.1 * w.abs().sum()
    torch.testing.assert_close(result.value, torch.nn.functional.logsigmoid(m).expand(2, 5))
    torch.testing.assert_close(result.x, (x + side * 0.1 * w.sign().view(3, 2, 2)).expand_as(result.x))


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    images=st.integers(1, 4),
    restarts=st.integers(1, 3),
    steps=st.integers(0, 4),
    eps=st.one_of(st.just(0.0), st.floats(0, 1)),
    tau=st.floats(0, 1),
    batch=st.integers(1, 10),
    seed=st.integers(0, 99),
)
def test_examples_lie_in_ball_and_box_and_success_is_confidence_of_at_least_tau(
    shape, images, restarts, steps, eps, tau, batch, seed
):
    x, f = noise(images, shape, seeded(seed)), linear(weights(math.prod(shape), seed))
    options = {"eps": eps, "tau": tau, "steps": steps, "restarts": restarts, "batch": batch}
    result = distal(f, x, **options, generator=seeded(seed))
    assert result.x.shape == (restarts, *x.shape)
    assert result.x.min() >= 0
    assert result.x.max() <= 1
    assert (result.x.double() - x.double()).abs().max() <= eps
    for example, value, success in zip(result.x, result.value, result.success, strict=True):
        confidence = f(example).softmax(1).amax(1)
        torch.testing.assert_close(confidence.log(), value, atol=1e-5, rtol=1e-4)
        assert torch.equal(
            success[(confidence - tau).abs() > 1e-6], (confidence >= tau)[(confidence - tau).abs() > 1e-6]
        )
    assert (result.steps == steps).all(), "nothing stops it"
    assert result.forwards == restarts * (steps + 1)
    assert torch.equal(result.x, distal(f, x, **options, generator=seeded(seed)).x), "the generator alone decides"


def test_more_steps_never_give_a_lower_confidence_and_restarts_differ():
    x, f = noise(4, (1, 3, 3), seeded()), linear(4 * weights(9))
    last = torch.full((3, 4), -math.inf)
    for steps in (0, 1, 5, 40):
        result = distal(f, x, eps=0.3, steps=steps, restarts=3, generator=seeded())
        assert (result.value >= last).all()
        last = result.value
    assert (last > distal(f, x, eps=0.3, steps=0, restarts=3, generator=seeded()).value).all()
    assert torch.pdist(result.x[:, 0].flatten(1)).min() > 1e-3


def test_a_fleet_of_two_equal_members_gives_the_same_as_one():
    torch.manual_seed(0)
    f = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3).double())
    x = noise(5, (1, 3, 3), seeded()).double()
    one = distal(f, x, eps=0.2, steps=4, restarts=2, generator=seeded(), batch=3)
    two = distal(Stack([f, f]), x, eps=0.2, steps=4, restarts=2, generator=seeded(), batch=6)
    torch.testing.assert_close(two.x, one.x[:, None].expand(-1, 2, -1, -1, -1, -1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"eps": -0.1}, r"^eps = -0\.1: .*0 or more"),
        ({"tau": 1.1}, r"^tau = 1\.1: allowed are confidences from 0 to 1"),
        ({"tau": math.nan}, r"^tau = nan: "),
        ({"restarts": 0}, r"^restarts = 0: .*1 or more"),
        ({"steps": -1}, r"^steps = -1: "),
    ],
)
def test_a_budget_out_of_range_is_named(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        distal(linear(weights(4)), torch.rand(2, 1, 2, 2), **{"eps": 0.1, "generator": seeded(), **wrong})


def test_a_network_that_gives_nan_is_an_error():
    with pytest.raises(ValueError, match=r"not finite.*NaN"):
        distal(linear(weights(4) * math.nan), torch.rand(2, 1, 2, 2), eps=0.1, generator=seeded())
