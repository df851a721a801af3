"""advbook.attacks.pgd: networks that can and that cannot be fooled, the ball, the box, bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbook import fonts
from advbook.attacks.norms import linf_ball
from advbook.attacks.pgd import pgd_latent, pgd_linf
from advbook.attacks.spaces import Latent
from advbook.attacks.steps import sign


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def threshold(pixel, level):
    """Class 1 if one pixel exceeds a level, else class 0."""
    return lambda x: torch.stack([torch.zeros(len(x)), 8 * (x.flatten(1)[:, pixel] - level)], 1)


def smooth(seed=0):
    """A random classifier of 3 x 4 x 4 images, float64 inside, so that batches do not change a bit."""
    first = torch.randn(48, 10, generator=seeded(seed), dtype=torch.float64)
    second = torch.randn(10, 4, generator=seeded(seed + 1), dtype=torch.float64)
    return lambda x: ((x.double().flatten(1) - 0.5) @ first).tanh().matmul(second).float()


# --- what must and what cannot be found -----------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.35, 0.45, 0.49])
def test_what_lies_within_eps_is_found_by_every_restart(level):
    x = torch.full((5, 1, 4, 4), 0.2)
    attack = pgd_linf(threshold(6, level), x, torch.zeros(5).long(), eps=0.3, rule=sign(0.02), generator=seeded())
    assert attack.success.all()
    assert (attack.x.flatten(2)[:, :, 6] > level).all()


def test_the_papers_adam_needs_a_start_within_its_reach():
    """Forty steps of .005 do not cross the ball: a restart wins if and only if it starts near enough."""
    x, y, f = torch.full((50, 1, 2, 2), 0.2), torch.zeros(50).long(), threshold(0, 0.38)
    start = pgd_linf(f, x, y, eps=0.3, steps=0, restarts=4, generator=seeded()).x.flatten(2)[:, :, 0]
    success = pgd_linf(f, x, y, eps=0.3, restarts=4, generator=seeded()).success
    assert success[start > 0.24].all()
    assert not success[start < 0.1].any()
    assert 0 < success.double().mean() < 1


@pytest.mark.parametrize("rule", [None, sign(0.05)], ids=["adam", "sign"])
def test_what_lies_beyond_eps_is_never_found(rule):
    x, y = torch.full((6, 1, 3, 3), 0.2), torch.zeros(6).long()
    attack = pgd_linf(threshold(4, 0.501), x, y, eps=0.3, rule=rule, generator=seeded())
    assert not attack.success.any()
    assert (attack.steps == 40).all()
    assert attack.forwards == 5 * 41


def test_nothing_is_brighter_than_white():
    x, y = torch.full((3, 1, 3, 3), 0.9), torch.zeros(3).long()
    assert not pgd_linf(threshold(0, 1.0), x, y, eps=0.3, rule=sign(0.05), generator=seeded()).success.any()


@pytest.mark.parametrize("gain", [1e3, 1e6, 1e30])
def test_saturated_logits_are_survived(gain):
    f, x = smooth(), torch.rand(4, 3, 4, 4, generator=seeded(2))
    y = f(x).argmax(1)
    attack = pgd_linf(lambda x: gain * f(x), x, y, eps=0.1, steps=5, restarts=2, generator=seeded())
    assert attack.x.isfinite().all()
    assert (attack.x - x).abs().max() <= 0.1 + 1e-6


# --- what always holds ----------------------------------------------------------------------------------------


@given(
    images=st.integers(1, 5),
    restarts=st.integers(1, 3),
    steps=st.integers(0, 5),
    eps=st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1)),
    rule=st.sampled_from([None, sign(0.1)]),
    seed=st.integers(0, 99),
)
def test_examples_lie_in_the_ball_and_in_the_box_and_are_what_was_judged(images, restarts, steps, eps, rule, seed):
    f = smooth(seed)
    x = (torch.rand(images, 3, 4, 4, generator=seeded(seed)) * 1.4 - 0.2).clamp(0, 1)
    y = torch.randint(4, (images,), generator=seeded(seed))
    budget = {"eps": eps, "steps": steps, "restarts": restarts, "rule": rule}
    attack = pgd_linf(f, x, y, **budget, generator=seeded(seed))
    assert attack.x.shape == (restarts, *x.shape)
    assert attack.success.shape == attack.steps.shape == (restarts, images)
    assert attack.x.min() >= 0
    assert attack.x.max() <= 1
    assert (attack.x - x).abs().max() <= eps + 1e-6
    for examples, success in zip(attack.x, attack.success, strict=True):
        assert torch.equal(f(examples).argmax(1) != y, success)
    assert attack.forwards == pytest.approx(float((attack.steps + 1).sum()) / images)
    if eps == 0:
        assert torch.equal(attack.x, x.expand_as(attack.x))
    again = pgd_linf(f, x, y, **budget, generator=seeded(seed))
    assert torch.equal(attack.x, again.x), "the generator alone decides"


def test_restarts_start_at_different_points():
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3).long()
    attack = pgd_linf(threshold(0, 2), x, y, eps=0.3, steps=0, restarts=3, generator=seeded())
    apart = torch.cdist(attack.x.flatten(1), attack.x.flatten(1)) + torch.eye(3)
    assert apart.min() > 0.01


def test_an_example_is_the_first_success_on_its_way():
    """With steps of .01 in one direction the pixel is at most one step beyond the level."""
    x, y = torch.full((20, 1, 2, 2), 0.2), torch.zeros(20).long()
    attack = pgd_linf(threshold(0, 0.4), x, y, eps=0.3, rule=sign(0.01), steps=60, generator=seeded())
    moved = attack.steps > 0
    assert moved.any()
    assert (attack.x.flatten(2)[:, :, 0][moved] <= 0.41 + 1e-5).all()


# --- the latent space -----------------------------------------------------------------------------------------


def letters(count=8, eta=0.3):
    rows = fonts.rows("test", count)
    low, high = fonts.theta_box()
    return rows, Latent(rows.theta, fonts.decode, (rows.font, rows.letter), low, high, linf_ball(eta))


@given(eta=st.one_of(st.just(0.0), st.floats(0, 1)), steps=st.integers(0, 3), seed=st.integers(0, 20))
def test_latent_examples_are_letters_with_parameters_in_ball_and_box(eta, steps, seed):
    rows, space = letters(3, eta)
    seen = []

    def watched(theta, font, letter):
        seen.append((theta.detach(), font, letter))
        return fonts.decode(theta, font, letter)

    spied = Latent(space.z, watched, space.context, space.low, space.high, space.ball)
    f = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    attack = pgd_latent(f, spied, rows.letter, eta=eta, steps=steps, restarts=2, generator=seeded(seed))
    assert attack.x.shape == (2, 3, 1, 28, 28)
    for theta, font, letter in seen:
        assert (theta >= space.low - 1e-6).all()
        assert (theta <= space.high + 1e-6).all()
        assert torch.equal(font, torch.zeros_like(font)), "all three letters are of the first font"
        assert ((theta - space.z[letter]).abs() <= eta + 1e-6).all()
    for examples, (theta, font, letter) in zip(attack.x, seen[-2:], strict=True):
        assert torch.equal(examples, fonts.decode(theta, font, letter))
    if eta == 0:
        torch.testing.assert_close(attack.x, fonts.images(rows).expand_as(attack.x), atol=1e-5, rtol=0)


def test_a_latent_direction_that_fools_is_found_and_one_out_of_the_box_is_not():
    low, high = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.5])
    z = torch.full((4, 2), 0.4)

    def spread(z):
        return z[:, None, :, None]

    space = Latent(z, spread, (), low, high, linf_ball(0.3))
    budget = {"eta": 0.3, "rule": sign(0.02), "generator": seeded()}
    assert pgd_latent(threshold(0, 0.68), space, torch.zeros(4).long(), **budget).success.all()
    assert not pgd_latent(threshold(0, 0.71), space, torch.zeros(4).long(), **budget).success.any()
    assert pgd_latent(threshold(1, 0.48), space, torch.zeros(4).long(), **budget).success.all()
    assert not pgd_latent(threshold(1, 0.51), space, torch.zeros(4).long(), **budget).success.any()


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"eps": -0.1}, r"^eps = -0\.1: .*0 or more"),
        ({"eps": math.nan}, r"^eps = nan: .*0 or more"),
        ({"restarts": 0}, r"^restarts = 0: .*1 or more"),
        ({"steps": -2}, r"^steps = -2: .*zero or more"),
    ],
)
def test_a_budget_out_of_range_is_named(wrong, sentence):
    x, y = torch.rand(2, 3, 4, 4), torch.zeros(2).long()
    with pytest.raises(ValueError, match=sentence):
        pgd_linf(smooth(), x, y, **{"eps": 0.1, "generator": seeded(), **wrong})


def test_a_negative_eta_is_named():
    rows, space = letters(2)
    with pytest.raises(ValueError, match=r"^eta = -1: .*0 or more"):
        pgd_latent(smooth(), space, rows.letter, eta=-1, generator=seeded())


def test_a_network_that_gives_nan_is_an_error():
    with pytest.raises(ValueError, match=r"not finite.*NaN"):
        pgd_linf(lambda x: smooth()(x) * math.nan, torch.rand(2, 3, 4, 4), torch.zeros(2).long(),
                 eps=0.1, generator=seeded())  # fmt: skip
