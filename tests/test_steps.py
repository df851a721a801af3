"""advbook.attacks.steps: Adam against torch's own, the sign rule, and state that can be packed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbook.attacks.steps import adam, sign


def gradients(steps, shape, seed=0, dtype=torch.float32):
    """Gradients of very different sizes."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        scale = 10 ** (4 * torch.rand(shape[0], *[1] * (len(shape) - 1), generator=random) - 2)
        yield (scale * torch.randn(shape, generator=random)).to(dtype)


def walk(rule, steps, start):
    """Where a rule's steps of ascent lead."""
    u, state = start.clone(), rule.start(start)
    for gradient in steps:
        state, step = rule.update(state, gradient)
        u = u + step
    return u


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    lr=st.floats(1e-4, 1),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0.5, 0.999)),
    seed=st.integers(0, 99),
)
def test_adam_is_torchs_adam(shape, lr, betas, seed):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([parameter], lr=lr, betas=betas, maximize=True)
    for gradient in gradients(20, shape, seed):
        parameter.grad = gradient
        optimizer.step()
    ours = walk(adam(lr, betas), gradients(20, shape, seed), start)
    torch.testing.assert_close(ours, parameter.detach(), atol=20 * lr * 1e-5, rtol=1e-5)


def test_adams_defaults_are_torchs():
    parameter = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = torch.optim.Adam([parameter], lr=0.005, maximize=True)
    for gradient in gradients(20, (3, 2)):
        parameter.grad = gradient
        optimizer.step()
    torch.testing.assert_close(walk(adam(0.005), gradients(20, (3, 2)), torch.zeros(3, 2)), parameter.detach())


def test_every_row_has_a_clock_of_its_own():
    """Row 1 joins ten steps after row 0: each goes as it would alone."""
    rule, all_gradients = adam(0.1), list(gradients(20, (2, 3)))
    state, moved = rule.start(torch.zeros(1, 3)), torch.zeros(2, 3)
    for clock, gradient in enumerate(all_gradients):
        if clock == 10:
            state = tuple(torch.cat(both) for both in zip(state, rule.start(torch.zeros(1, 3)), strict=True))
        there = min(1 + clock // 10, 2)
        state, step = rule.update(state, gradient[:there])
        moved[:there] += step
    for row, steps in ((0, all_gradients), (1, all_gradients[10:])):
        alone = walk(rule, [gradient[row : row + 1] for gradient in steps], torch.zeros(1, 3))
        torch.testing.assert_close(moved[row : row + 1], alone)


@pytest.mark.parametrize("rule", [adam(0.1), sign(0.1)])
def test_the_state_has_one_row_a_pair_and_is_not_changed_in_place(rule):
    start = torch.zeros(4, 1, 2, 2)
    state = rule.start(start)
    assert all(len(part) == 4 for part in state)
    before = [part.clone() for part in state]
    rule.update(state, torch.ones_like(start))
    assert all(map(torch.equal, state, before))


@pytest.mark.parametrize("rule", [adam(0.1), sign(0.1)])
def test_no_gradient_means_no_step(rule):
    _, step = rule.update(rule.start(torch.zeros(2, 3)), torch.zeros(2, 3))
    assert (step == 0).all()


def test_the_sign_rule_steps_along_the_sign():
    gradient = torch.tensor([[3.0, -1e-9, 0.0, -50.0]])
    _, step = sign(0.2).update((), gradient)
    torch.testing.assert_close(step, torch.tensor([[0.2, -0.2, 0.0, -0.2]]))


def test_adam_in_float64_is_torchs_to_the_last_digits():
    start = torch.zeros(3, 2, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([parameter], lr=0.005, maximize=True)
    for gradient in gradients(20, (3, 2), dtype=torch.float64):
        parameter.grad = gradient
        optimizer.step()
    ours = walk(adam(0.005), gradients(20, (3, 2), dtype=torch.float64), start)
    torch.testing.assert_close(ours, parameter.detach(), atol=1e-13, rtol=1e-12)
