"""advbook.attacks.engine: against a plain loop, closed forms, packing, what is counted and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbook.attacks.engine import ascend
from advbook.attacks.norms import linf_ball, linf_start
from advbook.attacks.objectives import cross_entropy, fooled
from advbook.attacks.spaces import Pixels
from advbook.attacks.steps import adam, sign

SHAPE = (1, 3, 3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Network:
    """A small smooth classifier that counts what it is shown; float64 inside, so that batches do not change a bit."""

    def __init__(self, seed=0, gain=4.0):
        random = seeded(seed)
        self.first = gain * torch.randn(9, 8, generator=random, dtype=torch.float64) / 3
        self.second = gain * torch.randn(8, 3, generator=random, dtype=torch.float64) / 3
        self.sizes = []

    def __call__(self, x):
        self.sizes.append(len(x))
        return ((x.double().flatten(1) - 0.5) @ self.first).tanh().matmul(self.second).to(x.dtype)


def problem(images=7, restarts=3, eps=0.2, seed=0):
    """Images whose labels are mostly the network's own, and start points."""
    x = torch.rand(images, *SHAPE, generator=seeded(seed + 1))
    network = Network(seed)
    y = network(x).argmax(1)
    y[::5] = (y[::5] + 1) % 3
    network.sizes.clear()
    start = torch.stack([linf_start(x, eps, seeded(seed + 10 + r)) for r in range(restarts)])
    return network, Pixels(x, linf_ball(eps)), y, start


def one_by_one(network, space, y, start, rule, steps, win):
    """The ascent of every pair on its own, as one would write it down first."""
    found = torch.empty_like(start)
    won, spent = torch.zeros(start.shape[:2], dtype=torch.bool), torch.full(start.shape[:2], steps)
    value = torch.full(start.shape[:2], -math.inf)
    for r in range(start.shape[0]):
        for b in range(start.shape[1]):
            row = torch.tensor([b])
            u = space[row].project(start[r, row])
            state = rule.start(u)
            for step in range(steps + 1):
                u = u.detach().requires_grad_()
                logits = network(space[row].image(u))
                score = cross_entropy(logits, y[row])
                if win and fooled(logits, y[row]):
                    found[r, b], value[r, b], won[r, b], spent[r, b] = u[0].detach(), score.item(), True, step
                    break
                if score > value[r, b]:
                    found[r, b], value[r, b] = u[0].detach(), score.item()
                state, change = rule.update(state, torch.autograd.grad(score.sum(), u)[0])
                u = space[row].project(u + change)
    return found, won, value, spent


@pytest.mark.parametrize("rule", [adam(0.02), sign(0.03)], ids=["adam", "sign"])
@pytest.mark.parametrize("win", [True, False], ids=["first success", "best objective"])
@pytest.mark.parametrize("batch", [1, 4, 512])
def test_it_is_the_plain_loop_whatever_the_packing(rule, win, batch):
    network, space, y, start = problem(images=9)
    found, won, value, spent = one_by_one(network, space, y, start, rule, 12, win)
    assert not win or 0 < won.sum() < won.numel(), "the case must have both"
    network.sizes.clear()
    ascent = ascend(network, space, y, start, objective=cross_entropy, rule=rule, steps=12,
                    win=fooled if win else None, batch=batch)  # fmt: skip
    assert torch.equal(ascent.won, won)
    assert torch.equal(ascent.steps, spent)
    torch.testing.assert_close(ascent.value, value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ascent.u, found, atol=1e-5, rtol=0)
    assert sum(network.sizes) == int((spent + 1).sum())
    assert ascent.forwards == pytest.approx(sum(network.sizes) / 9)


@given(
    images=st.integers(1, 6),
    restarts=st.integers(1, 3),
    steps=st.integers(0, 6),
    batch=st.integers(1, 20),
    eps=st.one_of(st.just(0.0), st.floats(0, 0.5)),
    first=st.booleans(),
    seed=st.integers(0, 20),
)
def test_what_holds_for_every_run(images, restarts, steps, batch, eps, first, seed):
    network, space, y, start = problem(images, restarts, eps, seed)
    win = fooled if first else None
    ascent = ascend(network, space, y, start, objective=cross_entropy, rule=adam(0.05), steps=steps,
                    win=win, batch=batch)  # fmt: skip
    assert ascent.u.shape == start.shape
    assert ascent.won.shape == ascent.value.shape == ascent.steps.shape == (restarts, images)
    assert not ascent.u.requires_grad
    assert ascent.u.abs().max() <= eps + 1e-6

    assert sum(network.sizes) == int((ascent.steps + 1).sum()), "a pair is shown once a step and once at the start"
    assert ascent.forwards == pytest.approx(sum(network.sizes) / images)
    assert max(network.sizes) <= batch
    assert network.sizes == sorted(network.sizes, reverse=True), "batches are full while pairs wait"
    assert (ascent.steps[~ascent.won] == steps).all()

    for u, won, value in zip(ascent.u, ascent.won, ascent.value, strict=True):
        logits = network(space.image(u))
        torch.testing.assert_close(value, cross_entropy(logits, y), atol=1e-5, rtol=1e-5)
        assert torch.equal(won, fooled(logits, y) & first), "what was judged is what is returned"


@pytest.mark.parametrize("rule", [adam(0.02), sign(0.03)], ids=["adam", "sign"])
def test_more_steps_never_give_a_worse_objective(rule):
    network, space, y, start = problem()
    last = torch.full((3, 7), -math.inf)
    for steps in range(8):
        value = ascend(network, space, y, start, objective=cross_entropy, rule=rule, steps=steps).value
        assert (value >= last - 1e-6).all()
        last = value


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.2])
def test_on_a_linear_model_the_best_objective_is_the_closed_form(eps):
    """log(1 + exp(-m)) rises with -m, and the margin m = w x + b is least at delta = -eps sign(w)."""
    w, x = torch.randn(9, generator=seeded(3)), torch.full((4, *SHAPE), 0.5)

    def linear(x):
        margin = x.flatten(1) @ w
        return torch.stack([margin, torch.zeros_like(margin)], 1)

    start = torch.stack([linf_start(x, eps, seeded(r)) for r in range(2)])
    ascent = ascend(linear, Pixels(x, linf_ball(eps)), torch.zeros(4).long(), start,
                    objective=cross_entropy, rule=sign(0.02), steps=2 * 20)  # fmt: skip
    best = -eps * w.sign().view(SHAPE).expand_as(ascent.u)
    torch.testing.assert_close(ascent.u, best, atol=1e-6, rtol=0)
    margin = x[0].flatten() @ w - eps * w.abs().sum()
    torch.testing.assert_close(ascent.value, (1 + (-margin).exp()).log().expand(2, 4), atol=1e-5, rtol=0)


def test_a_win_counts_even_where_the_objective_was_larger_before():
    """Steps of .08 around the maximum at .55 go .5, .58, .5; the third iterate is declared the win."""
    space, seen = Pixels(torch.full((1, *SHAPE), 0.5), linf_ball(0.3)), []

    def third(output, target):
        seen.append(output)
        return torch.full((1,), len(seen) == 3)

    ascent = ascend(lambda x: x, space, torch.zeros(1), torch.zeros(1, 1, *SHAPE), rule=sign(0.08), steps=9, win=third,
                    objective=lambda x, target: -(x - 0.55).square().flatten(1).sum(1))  # fmt: skip
    assert ascent.won.all()
    assert ascent.steps.item() == 2
    torch.testing.assert_close(ascent.u, torch.zeros(1, 1, *SHAPE), atol=1e-6, rtol=0)
    assert ascent.value.item() == pytest.approx(-9 * 0.05**2, rel=1e-4)


def test_targets_may_be_anything_with_a_row_an_image():
    network, space, _, start = problem()
    target = torch.rand(7, 3, generator=seeded(4)).softmax(1)

    def likeness(logits, target):
        return (logits.log_softmax(1) * target).sum(1)

    ascent = ascend(network, space, target, start, objective=likeness, rule=adam(0.05), steps=20)
    for u, value in zip(ascent.u, ascent.value, strict=True):
        torch.testing.assert_close(value, likeness(network(space.image(u)), target), atol=1e-5, rtol=1e-5)
        assert (value > likeness(network(space.x), target)).all()


def test_the_networks_weights_get_no_gradient_and_the_inputs_are_not_touched():
    _, space, y, start = problem()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3))
    before = [space.x.clone(), y.clone(), start.clone()]
    with torch.no_grad():  # as a caller may
        ascend(network, space, y, start, objective=cross_entropy, rule=adam(0.1), steps=3, win=fooled)
    assert all(p.grad is None for p in network.parameters())
    assert all(map(torch.equal, before, [space.x, y, start]))


def test_no_images_are_no_work():
    network, space, y, start = problem()
    empty = ascend(network, space[torch.arange(0)], y[:0], start[:, :0],
                   objective=cross_entropy, rule=adam(0.1), steps=3, win=fooled)  # fmt: skip
    assert empty.u.shape == (3, 0, *SHAPE)
    assert empty.won.shape == (3, 0)
    assert empty.forwards == 0


def test_steps_below_zero_are_refused():
    network, space, y, start = problem()
    with pytest.raises(ValueError, match=r"^steps = -1: .*zero or more"):
        ascend(network, space, y, start, objective=cross_entropy, rule=adam(0.1), steps=-1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("call", [0, 2], ids=["at once", "later"])
def test_a_network_that_gives_no_numbers_is_an_error(value, call):
    network, space, y, start = problem()

    def broken(x):
        logits = network(x)
        return logits.where(torch.tensor(len(network.sizes) <= call), value)

    with pytest.raises(ValueError, match="not finite"):
        ascend(broken, space, y, start, objective=cross_entropy, rule=adam(0.1), steps=4)


def test_float64_stays_float64():
    network, space, y, start = problem()
    space = Pixels(space.x.double(), space.ball)
    ascent = ascend(network, space, y, start.double(), objective=cross_entropy, rule=adam(0.02), steps=5)
    assert ascent.u.dtype == ascent.value.dtype == torch.float64
    single = ascend(network, Pixels(space.x.float(), space.ball), y, start,
                    objective=cross_entropy, rule=adam(0.02), steps=5)  # fmt: skip
    torch.testing.assert_close(ascent.value.float(), single.value, atol=1e-4, rtol=1e-4)
