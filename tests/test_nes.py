"""advbook.attacks.nes: the estimate against its formula and true gradients, what is counted, ball, box, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Linear, seeded, weights

from advbook.attacks.nes import nes, query_limited
from advbook.attacks.norms import L1, L2, LINF, zero
from advbook.attacks.objectives import margin, other_confidence
from advbook.attacks.pgd import attack
from advbook.attacks.spaces import Latent, Pixels
from advbook.attacks.steps import ascent
from advbook.fleet import Stack


def same(output, target):
    return output


class Open:
    """A space without walls, where the estimate has closed forms: g(u) = u."""

    def image(self, u):
        return u


# --- the slope ------------------------------------------------------------------------------------------------


def test_it_is_the_published_mean_over_antithetic_pairs():
    a, u = weights(12).view(1, 12), weights(36, 1).view(3, 12)
    f = lambda x: (x - a).square().sum(1).sin()  # noqa: E731
    output, value, slope = nes(8, 0.2, generator=seeded(5))(f, Open(), u, torch.zeros(3), same)
    random, expected = seeded(5), torch.zeros_like(u)
    for _ in range(4):
        e = torch.randn(3, 12, generator=random).double()
        expected += (f(u + 0.2 * e) - f(u - 0.2 * e))[:, None] * e / (2 * 0.2)
    torch.testing.assert_close(slope, expected / 4)
    torch.testing.assert_close(value, f(u))
    assert torch.equal(output, value)


@pytest.mark.parametrize("sigma", [0.01, 1.0])
def test_samples_lie_around_the_current_point(sigma):
    """A parabola's gradient at u is 2 (a - u), and antithetic differences see it without error."""
    a, u = weights(6).view(1, 6), 3 * weights(12, 1).view(2, 6)
    f = lambda x: -(x - a).square().sum(1)  # noqa: E731
    slope = nes(20_000, sigma, generator=seeded())(f, Open(), u, torch.zeros(2), same)[2]
    torch.testing.assert_close(slope, 2 * (a - u), atol=0.4, rtol=0.03)


def test_each_sample_is_clipped_to_the_image_range_and_none_to_the_ball():
    f, x = Linear(weights(8)), torch.tensor([0.0, 0.5, 1.0]).repeat(3)[:8].view(1, 2, 2, 2)
    nes(40, 0.3, generator=seeded())(f, Pixels(x, 0.01), torch.zeros_like(x), torch.zeros(1).long(), margin)
    shown = torch.cat(f.shown)
    assert shown.min() == 0
    assert shown.max() == 1
    assert (shown - x).abs().max() > 0.3


def test_rows_and_pairs_have_noise_of_their_own_and_members_share_it():
    seen = []
    f = lambda x: seen.append(x) or x.sum(1)  # noqa: E731
    nes(4, 1.0, generator=seeded(), members=2)(f, Open(), torch.zeros(6, 5), torch.zeros(6), same)
    _, up, down, other, _ = seen
    assert torch.equal(up, -down)
    assert torch.equal(up[:3], up[3:])
    assert not torch.equal(up, other)
    assert torch.pdist(up[:3]).min() > 0.1


def test_a_latent_space_can_be_climbed_too():
    w = weights(5)
    space = Latent(torch.full((3, 5), 0.5).double(), lambda z: z[:, None, :, None], (), torch.zeros(5).double(),
                   torch.ones(5).double(), 0.2)  # fmt: skip
    result = attack(Linear(w), space, torch.zeros(3).long(), space.z, start=zero(LINF, 0.2), steps=12, restarts=1,
                    rule=ascent(0.05, torch.sign), generator=seeded(), objective=margin, stop="never",
                    slope=nes(400, 0.01, generator=seeded()))  # fmt: skip
    torch.testing.assert_close(result.value, (w.sum() / 2 + 0.2 * w.abs().sum()).expand(1, 3), atol=0.1, rtol=0)


# --- the attack -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "share"), [(LINF, 0.95), (L2, 0.9)])
def test_a_linear_model_is_led_near_its_optimum(norm, share):
    w, x = weights(16), torch.full((3, 1, 4, 4), 0.5, dtype=torch.float64)
    f, y = Linear(w), torch.zeros(3).long()
    result = query_limited(f, x, y, eps=0.1, norm=norm, steps=40, restarts=2, objective=margin, stop="never",
                           generator=seeded())  # fmt: skip
    gain, most = result.value - margin(f(x), y), 0.1 * (w.abs().sum() if norm is LINF else w.norm())
    assert (gain <= most + 1e-9).all()
    assert (gain >= share * most).all()


@settings(max_examples=50)
@given(
    norm=st.sampled_from([LINF, L2, L1]),
    images=st.integers(1, 4),
    restarts=st.integers(1, 2),
    steps=st.integers(0, 3),
    population=st.sampled_from([2, 4]),
    eps=st.one_of(st.just(0.0), st.floats(0, 2)),
    batch=st.integers(1, 10),
    seed=st.integers(0, 99),
)
def test_examples_lie_in_ball_and_box_and_every_sample_is_counted(
    norm, images, restarts, steps, population, eps, batch, seed
):
    x = (torch.rand(images, 1, 2, 3, generator=seeded(seed)) * 1.4 - 0.2).clamp(0, 1)
    f, y = Linear(weights(6, seed)), torch.randint(2, (images,), generator=seeded(seed))
    options = {"eps": eps, "norm": norm, "steps": steps, "restarts": restarts, "population": population, "batch": batch}
    result = query_limited(f, x, y, **options, stop="never", generator=seeded(seed))
    assert result.forwards == restarts * (steps + 1) * (population + 1)
    assert sum(map(len, f.shown)) == result.forwards * images
    assert max(map(len, f.shown)) <= batch
    assert result.x.min() >= 0
    assert result.x.max() <= 1
    for example, value in zip(result.x, result.value, strict=True):
        assert (norm.size(example.double() - x.double()) <= eps * (1 + 1e-12)).all()
        torch.testing.assert_close(other_confidence(f(example), y), value, atol=1e-5, rtol=1e-5)
    again = query_limited(f, x, y, **options, stop="never", generator=seeded(seed))
    assert torch.equal(result.x, again.x), "the generator alone decides"
    if eps == 0:
        assert torch.equal(result.x, x.expand_as(result.x))


def test_restarts_start_at_different_points():
    f, x, y = Linear(weights(9)), torch.rand(2, 1, 3, 3, generator=seeded()), torch.zeros(2).long()
    result = query_limited(f, x, y, eps=0.2, steps=0, restarts=4, stop="never", generator=seeded())
    assert torch.pdist(result.x[:, 0].flatten(1)).min() > 1e-3


def test_a_fleet_of_two_equal_members_gives_the_same_as_one():
    torch.manual_seed(0)
    f = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3).double())
    x = torch.rand(6, 1, 3, 3, generator=seeded(), dtype=torch.float64)
    options = {"eps": 0.8, "steps": 3, "population": 6, "restarts": 2}
    one = query_limited(f, x, f(x).argmax(1), **options, generator=seeded(), batch=3)
    two = query_limited(Stack([f, f]), x, f(x).argmax(1), **options, generator=seeded(), batch=6)
    assert 0 < one.success.sum() < 12
    torch.testing.assert_close(two.x, one.x[:, None].expand(-1, 2, -1, -1, -1, -1), atol=1e-12, rtol=0)
    assert two.forwards == one.forwards


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"eps": -0.1}, r"^eps = -0\.1: .*0 or more"),
        ({"population": 5}, r"^population = 5: allowed are even numbers from 2"),
        ({"population": 0}, r"^population = 0: allowed are even numbers from 2"),
        ({"sigma": 0.0}, r"^sigma = 0\.0: allowed is more than 0"),
        ({"sigma": math.nan}, r"^sigma = nan: "),
        ({"restarts": 0}, r"^restarts = 0: .*1 or more"),
        ({"steps": -1}, r"^steps = -1: "),
    ],
)
def test_a_budget_out_of_range_is_named(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        query_limited(Linear(weights(4)), torch.rand(2, 1, 2, 2), torch.zeros(2).long(),
                      **{"eps": 0.1, "generator": seeded(), **wrong})  # fmt: skip


def test_a_network_that_gives_nan_is_an_error():
    with pytest.raises(ValueError, match=r"not finite.*NaN"):
        query_limited(Linear(weights(4) * math.nan), torch.rand(2, 1, 2, 2), torch.zeros(2).long(), eps=0.1,
                      generator=seeded())  # fmt: skip
