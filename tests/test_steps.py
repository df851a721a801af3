"""advbook.attacks.steps: against torch's Adam, plain loops and the published conditions, with state that packs."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advbook.attacks.norms import L1, L2, LINF
from advbook.attacks.steps import Here, adam, ascent, backtracking, halving, sign


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gradients(steps, shape, seed=0, dtype=torch.float32):
    """Gradients of very different sizes."""
    random = seeded(seed)
    for _ in range(steps):
        scale = 10 ** (4 * torch.rand(shape[0], *[1] * (len(shape) - 1), generator=random) - 2)
        yield (scale * torch.randn(shape, generator=random)).to(dtype)


def free(u):
    return u


def unit(g):
    return g / g.flatten(1).norm(dim=1).view(-1, *[1] * (g.ndim - 1)).clamp_min(1e-30)


def told(u, gradient, value=0.0, project=free):
    """What a rule is told at u."""
    return Here(u, torch.full((len(u),), value, dtype=u.dtype), gradient, project)


def walk(rule, steps, start):
    """Where a rule's steps of ascent lead."""
    u, state = start.clone(), rule.start(start)
    for gradient in steps:
        state, u = rule.update(state, told(u, gradient))
    return u


def climbed(rule, f, start, steps, project=free):
    """The points a rule visits on a differentiable objective [B, ...] -> [B]."""
    u, state, visited = project(start), rule.start(start), []
    for _ in range(steps + 1):
        value, gradient = with_slope(f, u)
        visited.append(u)
        state, following = rule.update(state, Here(u, value, gradient, project))
        u = project(following)
    return torch.stack(visited)


def with_slope(f, u):
    u = u.detach().requires_grad_()
    value = f(u)
    return value.detach(), torch.autograd.grad(value.sum(), u)[0]


class Hills:
    """A random smooth objective with many maxima, in float64."""

    def __init__(self, size=4, seed=0):
        self.waves = 3 * torch.randn(size, 12, generator=seeded(seed), dtype=torch.float64)
        self.phase = 6 * torch.rand(12, generator=seeded(seed + 1), dtype=torch.float64)

    def __call__(self, u):
        return (u @ self.waves + self.phase).sin().sum(1)


def cube(u):
    return u.clamp(-1, 1)


RULES = {
    "adam": adam(0.1),
    "sign": sign(0.1),
    "L2": ascent(0.1, L2.direction),
    "momentum": ascent(0.1, L1.direction, momentum=0.9),
    "backtracking": backtracking(0.1, torch.sign),
    "halving": halving(0.1, L2.direction, 20),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


# --- Adam ---------------------------------------------------------------------------------------------------------


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    lr=st.floats(1e-4, 1),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0.5, 0.999)),
    seed=st.integers(0, 99),
)
def test_adam_is_torchs_adam(shape, lr, betas, seed):
    start = torch.randn(shape, generator=seeded(seed))
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([parameter], lr=lr, betas=betas, maximize=True)
    for gradient in gradients(20, shape, seed):
        parameter.grad = gradient
        optimizer.step()
    ours = walk(adam(lr, betas), gradients(20, shape, seed), start)
    torch.testing.assert_close(ours, parameter.detach(), atol=20 * lr * 1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adams_defaults_are_torchs_to_the_last_digits(dtype):
    parameter = torch.nn.Parameter(torch.zeros(3, 2, dtype=dtype))
    optimizer = torch.optim.Adam([parameter], lr=0.005, maximize=True)
    for gradient in gradients(20, (3, 2), dtype=dtype):
        parameter.grad = gradient
        optimizer.step()
    ours = walk(adam(0.005), gradients(20, (3, 2), dtype=dtype), torch.zeros(3, 2, dtype=dtype))
    tight = {torch.float32: 1e-6, torch.float64: 1e-13}[dtype]
    torch.testing.assert_close(ours, parameter.detach(), atol=tight, rtol=tight)


# --- plain steps and momentum -------------------------------------------------------------------------------------


def test_the_sign_rule_steps_along_the_sign():
    gradient = torch.tensor([[3.0, -1e-9, 0.0, -50.0]])
    _, following = sign(0.2).update((), told(torch.ones(1, 4), gradient))
    torch.testing.assert_close(following, torch.tensor([[1.2, 0.8, 1.0, 0.8]]))


@pytest.mark.parametrize("norm", [LINF, L2, L1], ids=lambda norm: norm.name)
def test_every_step_of_plain_ascent_has_the_length_of_its_rate(norm):
    steps = list(gradients(3, (5, 1, 2, 2)))
    for gradient in steps:
        _, following = ascent(0.3, norm.direction).update((), told(torch.zeros_like(gradient), gradient))
        torch.testing.assert_close(norm.size(following), torch.full((5,), 0.3))
        torch.testing.assert_close(following, 0.3 * norm.direction(gradient))


def test_momentum_steps_along_the_moving_average_of_the_directions():
    """Directions 1, 1, -1 with m = .9: averages .1, .19, .071."""
    rule, u = ascent(2.0, torch.sign, momentum=0.9), torch.zeros(1, 1)
    state = rule.start(u)
    for gradient, mean in ((5.0, 0.1), (0.1, 0.19), (-3.0, 0.071)):
        state, following = rule.update(state, told(u, torch.tensor([[gradient]])))
        assert (following - u).item() == pytest.approx(2 * mean, rel=1e-5)
        u = following


# --- steps that are taken back ------------------------------------------------------------------------------------


def two_evaluations(f, start, steps, lr, direction, project, momentum, factor):
    """The published loop: look at a candidate, and take the step only if it is not worse. Returns what it accepted."""
    u, rate, mean, accepted = project(start), lr, torch.zeros_like(start), []
    for _ in range(steps):
        value, gradient = with_slope(f, u)
        mean = momentum * mean + (1 - momentum) * direction(gradient)
        candidate = project(u + rate * mean)
        if f(candidate) >= value:
            u = candidate
            accepted.append(u)
        else:
            rate /= factor
    return accepted


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("factor", [1.1, 1.5])
@settings(max_examples=10)
@given(seed=st.integers(0, 999), lr=st.floats(0.05, 2), direction=st.sampled_from([torch.sign, unit]))
def test_backtracking_accepts_the_points_of_the_published_loop(momentum, factor, seed, lr, direction):
    f, start = Hills(seed=seed), 0.5 * torch.randn(1, 4, generator=seeded(seed)).double()
    expected = two_evaluations(f, start, 40, lr, direction, cube, momentum, factor)
    rule = backtracking(lr, direction, momentum=momentum, factor=factor)
    visited = climbed(rule, f, start, 40, cube)
    best, accepted = f(visited[0]), []
    for u in visited[1:]:
        if f(u) >= best:
            best = f(u)
            accepted.append(u)
    assert len(accepted) == len(expected)
    torch.testing.assert_close(accepted, expected, atol=1e-9, rtol=0)


def test_backtracking_takes_steps_back_and_every_pair_has_a_rate_of_its_own():
    """On -|u| from .25 with steps of 1: -.75 is worse, -.4167 too, -.1944 is better, and from there .25 is worse."""

    def peak(u):
        return -u.abs()[:, 0]

    start = torch.tensor([[0.25], [9.0]], dtype=torch.float64)
    visited = climbed(backtracking(1.0, torch.sign, momentum=0.0), peak, start, 5)[..., 0]
    low = 0.25 - 1 / 2.25
    assert visited[:, 0].tolist() == pytest.approx(
        [0.25, 0.25 - 1, 0.25 - 1 / 1.5, low, low + 1 / 2.25, low + 1 / 1.5**3]
    )
    assert visited[:, 1].tolist() == pytest.approx([9, 8, 7, 6, 5, 4])


def test_a_tie_is_accepted_and_costs_no_rate():
    flat = climbed(backtracking(0.5, torch.sign, momentum=0.0), lambda u: 0 * u[:, 0], torch.zeros(1, 1), 3)
    assert (flat == 0).all()
    rule, u = backtracking(0.5, torch.sign, momentum=0.0), torch.zeros(1, 1)
    state = rule.start(u)
    for expected in (0.5, 1.0, 1.5):
        state, u = rule.update(state, told(u, torch.ones(1, 1), value=7.0))
        assert u.item() == expected


# --- Auto-PGD -----------------------------------------------------------------------------------------------------


def checkpoints(steps):
    """w_j = ceil(p_j steps) with p_1 = .22, p_(j+1) = p_j + max(p_j - p_(j-1) - .03, .06), in exact numbers."""
    shares = [Fraction(0), Fraction(22, 100)]
    while shares[-1] <= 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - Fraction(3, 100), Fraction(6, 100)))
    return sorted({math.ceil(share * steps) for share in shares if 0 < share < 1})


def rates(values, steps):
    """The rate a rule steps with after each value it is told, on a line without bounds."""
    rule, u = halving(1.0, torch.sign, steps, keep=1.0), torch.zeros(1, 1)
    state, found = rule.start(u), []
    for value in values:
        state, _ = rule.update(state, told(u, torch.ones(1, 1), value=float(value)))
        found.append(state[-1].item())
    return found


def drops(found):
    """The clocks at which the rate was halved."""
    return [clock for clock in range(1, len(found)) if found[clock] == found[clock - 1] / 2]


def test_the_published_checkpoints_of_a_hundred_steps():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("steps", [7, 30, 50, 100, 1000])
def test_a_falling_objective_halves_the_rate_at_every_published_checkpoint(steps):
    assert drops(rates(-torch.arange(steps + 1), steps))[: len(checkpoints(steps))] == checkpoints(steps)


def test_a_rising_objective_keeps_the_rate():
    assert set(rates(torch.arange(101), 100)) == {1.0}


def zigzag(rises, span):
    """Values of `span` steps of which `rises` go up, each by less than the falls before took."""
    moves = [-100.0] * (span - rises) + [1.0] * rises
    return [0.0, *torch.tensor(moves).cumsum(0).tolist()]


@pytest.mark.parametrize(("rises", "halved"), [(17, False), (16, True), (15, True)])
def test_the_rate_is_halved_where_fewer_than_three_quarters_of_the_first_steps_rise(rises, halved):
    """Of 22 steps to the first checkpoint 16.5 must rise."""
    assert (drops(rates(zigzag(rises, 22), 100)) == [22]) == halved


def test_later_spans_count_their_own_rises():
    """All of 22 rise; of the next 19, 14.25 must."""
    for rises, halved in ((15, []), (14, [41])):
        later = [100 + value for value in zigzag(rises, 19)[1:]]
        values = [*range(22), 100.0, *later]
        best_changes = [*values[:-1], 1e6] if rises == 15 else values  # the other condition is not what is asked
        assert drops(rates(best_changes, 100)) == halved


def test_the_rate_is_halved_where_neither_it_nor_the_best_value_changed():
    """Rising to 21, one fall to 0, then slowly up for 18 of 19 steps without a new best."""
    values = [*range(22), 22.0, 0.0, *[0.5 * k for k in range(1, 19)]]
    assert len(values) == 42
    assert drops(rates(values, 100)) == [41]
    assert drops(rates([*values[:-1], 23.0], 100)) == [], "a new best at the last moment"


def test_after_a_halving_an_unchanged_best_value_alone_halves_nothing():
    """Falling for 22 steps, then rising for 19 below the best: the rate has just changed, so it may stay."""
    values = [0.0, *range(-100, -122, -1), *range(-119, -100)]
    assert len(values) == 42
    assert drops(rates(values, 100)) == [22]


def test_it_goes_back_to_the_best_point_and_on_along_the_gradient_there():
    """Walking up a line whose objective peaks at 3: at the checkpoint it returns there with half the rate."""
    rule, steps = halving(1.0, torch.sign, 100, keep=1.0), 22
    u = torch.zeros(1, 1)
    state = rule.start(u)
    for clock in range(steps + 1):
        assert u.item() == clock
        gradient = torch.tensor([[-7.0 if clock == 3 else 1.0]])
        state, u = rule.update(state, told(u, gradient, value=-abs(clock - 3.0)))
        if clock == 3:
            u = torch.tensor([[4.0]])  # carried on upwards all the same
    assert u.item() == 3 - 0.5, "back at 3, half a step down"


def test_the_next_point_mixes_the_projected_step_with_the_last_one():
    """u + keep (z - u) + (1 - keep) (u - last), with z inside the cube; the first step is the plain one."""
    rule = halving(0.8, torch.sign, 100, keep=0.75)
    start, one = torch.tensor([[0.5, -0.5]]), torch.tensor([[1.0, 1.0]])
    state, first = rule.update(rule.start(start), told(start, one, 0.0, cube))
    torch.testing.assert_close(first, torch.tensor([[1.0, 0.3]]))
    _, second = rule.update(state, told(first, -one, 1.0, cube))
    plain = torch.tensor([[0.2, -0.5]])
    torch.testing.assert_close(second, first + 0.75 * (plain - first) + 0.25 * (first - start))


def test_after_a_return_the_momentum_is_counted_from_the_best_point():
    """x_(k+1) = x_max, so that the next but one moves along x_(k+2) - x_max. Of ten steps the third is a checkpoint."""
    rule, u = halving(1.0, torch.sign, 10, keep=0.75), torch.zeros(1, 1)
    state, points = rule.start(u), [u.item()]
    for clock in range(5):
        state, u = rule.update(state, told(u, torch.ones(1, 1), value=-float(clock)))
        points.append(u.item())
    assert checkpoints(10)[:2] == [3, 5]
    after = 0 + 0.75 * 0.5 + 0.25 * (0 - points[2])  # half a step from the best point, which is the first, 0
    assert points[4] == pytest.approx(after)
    assert points[5] == pytest.approx(after + 0.75 * 0.5 + 0.25 * (after - 0))


def auto_pgd(f, start, steps, lr, direction, project):
    """Algorithm 1 of Croce and Hein, with the second condition from the second checkpoint on; the visited points."""
    keep, needed, marks = 0.75, 0.75, {0, *checkpoints(steps)}
    value, gradient = with_slope(f, start)
    best = (value, start, gradient)
    last, u, rate, values, visited = start, start, lr, [], []
    since, halved, mark = 0, True, -math.inf
    for clock in range(steps + 1):
        value, gradient = with_slope(f, u)
        values.append(value.item())
        visited.append(u)
        if value > best[0]:
            best = (value, u, gradient)
        if clock in marks and clock:
            rises = sum(later > earlier for earlier, later in zip(values[since:], values[since + 1 :], strict=False))
            halved = rises < needed * (clock - since) or (not halved and best[0].item() <= mark)
            since, mark = clock, best[0].item()
            if halved:
                rate, u, gradient = rate / 2, best[1], best[2]
        plain = project(u + rate * direction(gradient))
        following = plain if clock == 0 else project(u + keep * (plain - u) + (1 - keep) * (u - last))
        last, u = u, following
    return torch.stack(visited)


def test_halving_visits_the_points_of_auto_pgd():
    for seed in range(20):
        f, start = Hills(seed=seed), cube(0.5 * torch.randn(1, 4, generator=seeded(seed)).double())
        visited = climbed(halving(2.0, torch.sign, 50), f, start, 50, cube)
        torch.testing.assert_close(visited, auto_pgd(f, start, 50, 2.0, torch.sign, cube), atol=1e-9, rtol=0)


@pytest.mark.parametrize("direction", [torch.sign, unit])
def test_halving_ends_near_a_maximum_where_a_constant_rate_goes_round_it(direction):
    def peak(u):
        return -(u - 0.123).square().sum(1)

    start = torch.full((1, 6), -0.9, dtype=torch.float64)
    constant = climbed(ascent(2.0, direction), peak, start, 100, cube)
    halved = climbed(halving(2.0, direction, 100), peak, start, 100, cube)
    assert max(map(peak, halved)) > -1e-3 > max(map(peak, constant))


# --- what holds for all rules -------------------------------------------------------------------------------------


@every_rule
def test_every_row_has_a_clock_of_its_own(rule):
    """Row 1 joins ten steps after row 0: each goes as it would alone."""
    steps = list(gradients(24, (2, 3)))
    values = torch.rand(24, 2, generator=seeded(5))
    u = torch.zeros(1, 3)
    state = rule.start(u)
    for clock, (gradient, value) in enumerate(zip(steps, values, strict=True)):
        if clock == 10:
            u = torch.cat([u, torch.zeros(1, 3)])
            state = tuple(torch.cat(both) for both in zip(state, rule.start(torch.zeros(1, 3)), strict=True))
        here = Here(u, value[: len(u)], gradient[: len(u)], cube)
        state, u = rule.update(state, here)
    for row, first in ((0, 0), (1, 10)):
        alone, state = torch.zeros(1, 3), rule.start(torch.zeros(1, 3))
        for gradient, value in zip(steps[first:], values[first:], strict=True):
            state, alone = rule.update(state, Here(alone, value[row, None], gradient[row, None], cube))
        torch.testing.assert_close(u[row, None], alone)


@every_rule
def test_the_state_has_one_row_a_pair_and_nothing_is_changed_in_place(rule):
    start, gradient = torch.zeros(4, 1, 2, 2), torch.ones(4, 1, 2, 2)
    state = rule.start(start)
    assert all(len(part) == 4 for part in state)
    for _ in range(6):
        before = [part.clone() for part in (*state, start, gradient)]
        after, following = rule.update(state, told(start, gradient))
        assert all(map(torch.equal, (*state, start, gradient), before))
        assert [part.shape for part in after] == [part.shape for part in state]
        assert [part.dtype for part in after] == [part.dtype for part in state]
        assert following.shape == start.shape
        state = after


@every_rule
def test_no_gradient_means_no_step(rule):
    u, state = torch.full((2, 3), 0.3), rule.start(torch.full((2, 3), 0.3))
    for _ in range(8):
        state, u = rule.update(state, told(u, torch.zeros(2, 3)))
    torch.testing.assert_close(u, torch.full((2, 3), 0.3))


@every_rule
def test_double_precision_stays_double(rule):
    u = torch.zeros(2, 3, dtype=torch.float64)
    state = rule.start(u)
    for gradient in gradients(5, (2, 3), dtype=torch.float64):
        state, u = rule.update(state, told(u, gradient))
        assert u.dtype == torch.float64
        assert all(part.dtype == torch.float64 for part in state)
