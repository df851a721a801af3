"""advbook.attacks.engine: against a plain loop, closed forms, packing, fleets, drafts, what is counted and refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbook.attacks.engine import Counter, ascend, climb, gradient
from advbook.attacks.norms import L0, L2, LINF, gaussian
from advbook.attacks.objectives import cross_entropy, fooled, margin
from advbook.attacks.packing import SHRINK
from advbook.attacks.spaces import Pixels
from advbook.attacks.steps import Here, adam, backtracking, halving, sign
from advbook.fleet import Fleet, Stack

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
    start = torch.stack([gaussian(LINF, eps)(x, seeded(seed + 10 + r)) for r in range(restarts)])
    return network, Pixels(x, eps), y, start


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
                slope = torch.autograd.grad(score.sum(), u)[0]
                here = Here(u.detach(), score.detach(), slope, space[row].project)
                state, following = rule.update(state, here)
                u = space[row].project(following)
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
    assert int((spent + 1).sum()) <= sum(network.sizes) <= int((spent + 1).sum()) / SHRINK
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

    shown = int((ascent.steps + 1).sum())  # once a step and once at the start
    assert shown <= sum(network.sizes) <= shown / SHRINK, "few slots are idle"
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

    start = torch.stack([gaussian(LINF, eps)(x, seeded(r)) for r in range(2)])
    ascent = ascend(linear, Pixels(x, eps), torch.zeros(4).long(), start,
                    objective=cross_entropy, rule=sign(0.02), steps=2 * 20)  # fmt: skip
    best = -eps * w.sign().view(SHAPE).expand_as(ascent.u)
    torch.testing.assert_close(ascent.u, best, atol=1e-6, rtol=0)
    margin = x[0].flatten() @ w - eps * w.abs().sum()
    torch.testing.assert_close(ascent.value, (1 + (-margin).exp()).log().expand(2, 4), atol=1e-5, rtol=0)


def test_a_win_counts_even_where_the_objective_was_larger_before():
    """Steps of .08 around the maximum at .55 go .5, .58, .5; the third iterate is declared the win."""
    space, seen = Pixels(torch.full((1, *SHAPE), 0.5), 0.3), []

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


@pytest.mark.parametrize("dtype", [
    torch.bfloat16, torch.float16,
    torch.float64,
])  # fmt: skip
@pytest.mark.parametrize("stop", ["pair", "never"])
def test_a_network_may_answer_in_another_precision_than_its_images_have(dtype, stop):
    network, space, y, start = problem()
    ascent = ascend(lambda x: network(x).to(dtype), space, y, start, objective=cross_entropy, rule=adam(0.02), steps=5,
                    win=fooled, stop=stop)  # fmt: skip
    assert ascent.u.dtype == ascent.value.dtype == torch.float32
    plain = ascend(network, space, y, start, objective=cross_entropy, rule=adam(0.02), steps=5, win=fooled, stop=stop)
    torch.testing.assert_close(ascent.value, plain.value, atol=0.1, rtol=0.1)


def test_float64_stays_float64():
    network, space, y, start = problem()
    space = Pixels(space.x.double(), space.eps)
    ascent = ascend(network, space, y, start.double(), objective=cross_entropy, rule=adam(0.02), steps=5)
    assert ascent.u.dtype == ascent.value.dtype == torch.float64
    single = ascend(network, Pixels(space.x.float(), space.eps), y, start,
                    objective=cross_entropy, rule=adam(0.02), steps=5)  # fmt: skip
    torch.testing.assert_close(ascent.value.float(), single.value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"stop": "first"}, "stop = 'first': allowed are pair, image, never"), ({"batch": 0}, "batch = 0")],
)
def test_what_is_not_allowed_is_said_in_a_sentence(wrong, message):
    network, space, y, start = problem()
    with pytest.raises(ValueError, match=message):
        ascend(network, space, y, start, objective=cross_entropy, rule=adam(0.02), steps=5, **wrong)


@pytest.mark.parametrize("count", [6, 8, 14])
def test_targets_of_another_number_than_the_images_are_refused(count):
    network, space, _, start = problem()
    with pytest.raises(ValueError, match=rf"^target: it has {count} rows; allowed is 7, as the start points say"):
        ascend(network, space, torch.zeros(count).long(), start, objective=cross_entropy, rule=adam(0.02), steps=1)
    with pytest.raises(ValueError, match=f"target: it has {count} rows, the space 7"):
        climb(network, space, torch.zeros(count).long(), start[0], objective=cross_entropy, rule=adam(0.02), steps=1)


# --- when to stop -------------------------------------------------------------------------------------------------

STOPS = ["pair", "image", "never"]


@pytest.mark.parametrize("batch", [1, 5, 512])
def test_stopping_with_the_image_beats_the_images_that_some_restart_alone_beats(batch):
    network, space, y, start = problem(images=9, restarts=4)
    run = {"objective": cross_entropy, "rule": adam(0.02), "steps": 12, "win": fooled, "batch": batch}
    pair, image = (ascend(network, space, y, start, stop=stop, **run) for stop in ("pair", "image"))
    beaten = pair.won.any(0)
    assert 0 < beaten.sum() < 9, "the case must have both"
    assert (pair.won.sum(0) > 1).any()
    assert torch.equal(image.won.any(0), beaten)
    assert image.forwards < pair.forwards
    assert torch.equal(image.u[:, ~beaten], pair.u[:, ~beaten])
    assert torch.equal(image.value[:, ~beaten], pair.value[:, ~beaten])
    assert torch.equal(image.u[image.won], pair.u[image.won]), "a win is the win of that restart alone"
    assert (image.won <= pair.won).all()


def test_side_by_side_the_fastest_restart_ends_the_others():
    network, space, y, start = problem(images=9, restarts=4)
    run = {"objective": cross_entropy, "rule": adam(0.02), "steps": 12, "win": fooled}
    pair, image = (ascend(network, space, y, start, stop=stop, **run) for stop in ("pair", "image"))
    fastest = pair.steps.masked_fill(~pair.won, 12).amin(0).expand(4, 9)
    assert torch.equal(image.steps, fastest)
    assert torch.equal(image.won, pair.won & (pair.steps == fastest))


def test_never_stopping_keeps_the_best_objective_and_says_whether_it_wins():
    network, space, y, start = problem(images=9)
    run = {"objective": cross_entropy, "rule": adam(0.05), "steps": 12}
    best = ascend(network, space, y, start, **run)
    found = ascend(network, space, y, start, win=fooled, stop="never", **run)
    first = ascend(network, space, y, start, win=fooled, **run)
    assert torch.equal(found.u, best.u)
    assert torch.equal(found.value, best.value)
    assert (found.steps == 12).all()
    assert (found.value >= first.value - 1e-6).all()
    assert found.won.any()
    for u, won in zip(found.u, found.won, strict=True):
        assert torch.equal(won, fooled(network(space.image(u)), y))
    assert not best.won.any(), "without a win nothing is won"


def test_a_win_on_the_way_is_none_where_the_best_iterate_does_not_win():
    """Class 1 wins only in a window below the brightest images, which have the largest objective."""

    def window(output, target):
        return (output[:, 0] > 0.6) & (output[:, 0] < 0.7)

    def brightness(x):
        return x.flatten(1).mean(1, keepdim=True)

    space, start = Pixels(torch.full((1, *SHAPE), 0.5), 0.3), torch.zeros(1, 1, *SHAPE)
    run = {"objective": lambda output, target: output[:, 0], "rule": sign(0.05), "steps": 9, "win": window}
    assert ascend(brightness, space, torch.zeros(1), start, stop="pair", **run).won.all()
    assert not ascend(brightness, space, torch.zeros(1), start, stop="never", **run).won.any()


@pytest.mark.parametrize("best_wins", [True, False])
def test_without_a_stop_the_last_iterate_has_no_say(best_wins):
    """Steps of .08 around the maximum at .55 go .5, .58, .5: the best is the second, whatever the last one is."""

    def bright(output, target):
        return (output.flatten(1).mean(1) > 0.55) == best_wins

    space, start = Pixels(torch.full((1, *SHAPE), 0.5), 0.3), torch.zeros(1, 1, *SHAPE)
    ascent = ascend(lambda x: x, space, torch.zeros(1), start, rule=sign(0.08), steps=2, win=bright, stop="never",
                    objective=lambda x, target: -(x - 0.55).square().flatten(1).sum(1))  # fmt: skip
    torch.testing.assert_close(ascent.u, torch.full_like(start, 0.08))
    assert ascent.won.item() is best_wins


# --- climbing -----------------------------------------------------------------------------------------------------

RULES = {"adam": adam(0.02), "sign": sign(0.03), "backtracking": backtracking(0.05, torch.sign),
         "halving": halving(0.4, torch.sign, 12)}  # fmt: skip


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("steps", [0, 1, 12])
def test_climbing_is_the_ascent_of_one_restart_that_never_stops(rule, steps):
    network, space, y, start = problem(restarts=1)
    run = {"objective": cross_entropy, "rule": rule, "steps": steps}
    u, value = climb(network, space, y, start[0], **run)
    ascent = ascend(network, space, y, start, win=fooled, stop="never", **run)
    assert torch.equal(u, ascent.u[0])
    assert torch.equal(value, ascent.value[0])
    assert not u.requires_grad


def test_climbing_projects_its_start():
    network, space, y, _ = problem()
    u, _ = climb(network, space, y, torch.full((7, *SHAPE), 9.0), objective=cross_entropy, rule=sign(0), steps=0)
    torch.testing.assert_close(u, (1 - space.x).clamp_max(0.2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("batch", [1, 4])
def test_every_rule_goes_its_way_whatever_the_packing(rule, batch):
    network, space, y, start = problem(images=6)
    run = {"objective": cross_entropy, "rule": rule, "steps": 12, "win": fooled}
    packed, loose = (ascend(network, space, y, start, batch=size, **run) for size in (batch, 512))
    for name in ("u", "won", "value", "steps"):
        torch.testing.assert_close(getattr(packed, name), getattr(loose, name), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("norm", "eps"), [(L2, 0.5), (L0, 2.0)], ids=["l2", "l0"])
def test_other_balls_are_kept_to_in_double_precision(norm, eps):
    network, space, y, start = problem()
    space = Pixels(space.x, eps, norm)
    ascent = ascend(network, space, y, 9 * start, objective=cross_entropy, rule=sign(0.3), steps=5, win=fooled)
    for u in ascent.u:
        assert (norm.size(space.image(u).double() - space.x.double()) <= eps).all()


# --- other slopes -------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_objective_and_needs_no_outer_graph():
    network, space, y, start = problem()
    with torch.no_grad():
        output, value, slope = gradient(network, space, start[0], y, cross_entropy)
    u = start[0].clone().requires_grad_()
    expected = torch.autograd.grad(cross_entropy(network(space.image(u)), y).sum(), u)[0]
    assert torch.equal(slope, expected)
    assert torch.equal(output, network(space.image(start[0])))
    assert torch.equal(value, cross_entropy(output, y))
    assert not any(part.requires_grad for part in (output, value, slope))


def test_a_slope_of_differences_leads_where_the_gradient_leads():
    network, space, y, start = problem()

    def differences(f, space, u, target, objective, h=1e-3):
        output = f(space.image(u))
        slope = torch.zeros_like(u)
        for c, i, j in torch.cartesian_prod(*map(torch.arange, SHAPE)).tolist():
            step = torch.zeros_like(u)
            step[:, c, i, j] = h
            ahead, back = (objective(f((space.x + u + side * step).double()), target) for side in (1, -1))
            slope[:, c, i, j] = ((ahead - back) / (2 * h)).to(u)
        return output, objective(output, target), slope

    run = {"objective": cross_entropy, "rule": adam(0.02), "steps": 5, "batch": 512}
    by_gradient = ascend(network, space, y, start[:1], **run)
    by_difference = ascend(network, space, y, start[:1], slope=differences, **run)
    torch.testing.assert_close(by_difference.value, by_gradient.value, atol=1e-3, rtol=1e-3)
    assert by_difference.forwards == by_gradient.forwards * 19, "every look at the network is counted"


# --- fleets -------------------------------------------------------------------------------------------------------


def nets(members=3, gain=2.0):
    found = []
    for seed in range(members):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        with torch.no_grad():
            for weight in net.parameters():
                weight.copy_(gain * torch.randn(weight.shape, generator=seeded(seed)) / 2)
        found.append(net.double())
    return found


def fleet_problem(members=3, images=6, restarts=2, eps=0.15, own=False):
    """Networks that mostly agree with the labels, in float64; own: every member has images of its own."""
    modules = nets(members)
    x = torch.rand(members if own else 1, images, *SHAPE, generator=seeded(1)).double().expand(members, -1, -1, -1, -1)
    y = torch.stack([net(images).argmax(1) for net, images in zip(modules, x, strict=True)])
    if not own:
        y = y[:1].expand(members, -1)
    start = torch.stack([gaussian(LINF, eps)(x.flatten(0, 1), seeded(r)).view_as(x) for r in range(restarts)])
    space = Pixels(x.flatten(0, 1) if own else x[0], eps)
    return modules, x, space, y.flatten() if own else y[0], start


@pytest.mark.parametrize("vectorized", [False, True], ids=["one by one", "vectorized"])
@pytest.mark.parametrize("own", [False, True], ids=["shared images", "own images"])
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("batch", [5, 512])
def test_the_members_of_a_fleet_are_attacked_as_if_alone(vectorized, own, stop, batch):
    modules, x, space, y, start = fleet_problem(own=own)
    run = {"objective": cross_entropy, "rule": adam(0.02), "steps": 9, "win": fooled, "stop": stop}
    together = ascend(Stack(modules, vectorized=vectorized), space, y, start, batch=batch, **run)
    assert together.u.shape == start.shape
    assert together.won.shape == together.value.shape == together.steps.shape == (2, 3, 6)
    won = []
    for m, net in enumerate(modules):
        labels = y.view(3, 6)[m] if own else y
        alone = ascend(net, Pixels(x[m], space.eps), labels, start[:, m], **run)
        won.append(alone.won)
        some = alone.won.any(0).expand(2, 6) if stop == "image" else torch.zeros(2, 6, dtype=torch.bool)
        assert torch.equal(together.won[:, m].any(0), alone.won.any(0))
        if stop == "image":  # which restart wins first depends on who is in work
            assert not (together.won[:, m] & ~some).any()
        else:
            assert torch.equal(together.won[:, m], alone.won)
        for name in ("u", "value", "steps"):
            ours, theirs = getattr(together, name)[:, m], getattr(alone, name)
            torch.testing.assert_close(ours[~some], theirs[~some], atol=1e-8, rtol=0)
    won = torch.stack(won)
    assert 0 < won.sum() < won.numel(), "the case must have both"


def test_a_fleets_samples_are_counted_by_image_and_member():
    modules, _, space, y, start = fleet_problem()
    seen = []

    class Watched(Stack):
        def __call__(self, x):
            seen.append(x.shape)
            return super().__call__(x)

    run = {"objective": cross_entropy, "rule": adam(0.02), "steps": 9, "win": fooled}
    ascent = ascend(Watched(modules), space, y, start, batch=9, **run)
    assert all(shape[0] == 3 for shape in seen), "always all members, with as many images each"
    assert max(shape[1] for shape in seen) == 3
    assert ascent.forwards == pytest.approx(sum(shape[1] for shape in seen) * 3 / 18)
    assert ascent.forwards >= float((ascent.steps + 1).sum()) / 18


def test_a_fleet_of_one_is_the_network():
    modules, _, space, y, start = fleet_problem(members=1)
    run = {"objective": cross_entropy, "rule": adam(0.02), "steps": 9, "win": fooled, "batch": 5}
    fleet = ascend(Stack(modules), space, y, start, **run)
    alone = ascend(modules[0], space, y, start[:, 0], **run)
    for name in ("u", "won", "value", "steps"):
        torch.testing.assert_close(getattr(fleet, name)[:, 0], getattr(alone, name), atol=1e-12, rtol=0)
    assert fleet.forwards == alone.forwards


def test_climbing_a_fleet_climbs_its_members():
    modules, x, space, y, start = fleet_problem(own=True)
    run = {"objective": cross_entropy, "rule": adam(0.02), "steps": 9}
    u, value = climb(Stack(modules).by_rows, space, y, start[0].flatten(0, 1), **run)
    for m, net in enumerate(modules):
        alone, best = climb(net, Pixels(x[m], space.eps), y.view(3, 6)[m], start[0, m], **run)
        torch.testing.assert_close(u.view(3, 6, *SHAPE)[m], alone, atol=1e-10, rtol=0)
        torch.testing.assert_close(value.view(3, 6)[m], best, atol=1e-10, rtol=0)


def test_a_fleet_without_images_is_no_work():
    modules, _, space, y, start = fleet_problem()
    empty = ascend(Stack(modules), space[torch.arange(0)], y[:0], start[:, :, :0],
                   objective=cross_entropy, rule=adam(0.1), steps=3, win=fooled)  # fmt: skip
    assert empty.u.shape == (2, 3, 0, *SHAPE)
    assert empty.won.shape == (2, 3, 0)


def test_members_may_share_images_and_have_targets_of_their_own():
    modules, x, space, _, start = fleet_problem()
    y = torch.stack([(net(x[0]).argmax(1) + m) % 3 for m, net in enumerate(modules)])
    run = {"objective": cross_entropy, "rule": adam(0.02), "steps": 5, "win": fooled}
    together = ascend(Stack(modules), space, y.flatten(), start, **run)
    for m, net in enumerate(modules):
        alone = ascend(net, space, y[m], start[:, m], **run)
        assert torch.equal(together.won[:, m], alone.won)
        torch.testing.assert_close(together.value[:, m], alone.value)


# --- drafts -------------------------------------------------------------------------------------------------------


def shaken(network, by, seed=5):
    """Another network, near this one."""
    found = Network()
    found.first = network.first + by * torch.randn(9, 8, generator=seeded(seed), dtype=torch.float64)
    found.second = network.second + by * torch.randn(8, 3, generator=seeded(seed + 1), dtype=torch.float64)
    return found


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("batch", [4, 512])
@pytest.mark.parametrize("by", [0.05, 0.5, 5.0])
def test_what_a_draft_finds_is_judged_by_the_network_itself(stop, batch, by):
    network, space, y, start = problem(images=9)
    draft = shaken(network, by)
    ascent = ascend(network, space, y, start, objective=cross_entropy, rule=adam(0.02), steps=12, win=fooled,
                    draft=draft, stop=stop, batch=batch)  # fmt: skip
    assert ascent.forwards == pytest.approx((sum(network.sizes) + sum(draft.sizes)) / 9), "both are counted"
    assert sum(network.sizes) < 12 * 27, "the network itself is asked about claims and at the end"
    assert max(network.sizes) <= batch
    assert ascent.won.any()
    ended = ascent.won.any(0) if stop == "image" else torch.zeros(9, dtype=torch.bool)
    for u, won, value in zip(ascent.u, ascent.won, ascent.value, strict=True):
        logits = network(space.image(u))
        assert fooled(logits, y)[won].all(), "every win is confirmed"
        assert torch.equal(won[~ended], fooled(logits, y)[~ended]), "and none that the draft missed is left out"
        stopped = ended | (won & (stop != "never"))
        torch.testing.assert_close(value[~stopped], cross_entropy(logits, y)[~stopped])


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("batch", [4, 512])
def test_the_network_as_its_own_draft_changes_nothing_but_the_count(stop, batch):
    network, space, y, start = problem(images=9)
    run = {"objective": cross_entropy, "rule": adam(0.02), "steps": 12, "win": fooled, "stop": stop, "batch": batch}
    plain = ascend(network, space, y, start, **run)
    double = ascend(network, space, y, start, draft=shaken(network, 0), **run)
    for name in ("u", "won", "value", "steps"):
        assert torch.equal(getattr(plain, name), getattr(double, name)), name
    assert double.forwards > plain.forwards


@pytest.mark.parametrize("shift", [-100.0, 100.0], ids=["claims all", "claims nothing"])
def test_a_draft_with_the_right_slope_and_a_wrong_opinion_does_no_harm(shift):
    """With a shifted true logit the margin's iterates are the network's own; only the claims are wrong."""
    network, space, _, start = problem(images=9, eps=0.05)
    y = torch.zeros(9).long()
    opinion = torch.tensor([shift, 0.0, 0.0])

    def draft(x):
        return network(x) + opinion

    run = {"objective": margin, "rule": sign(0.02), "steps": 12, "win": fooled}
    plain = ascend(network, space, y, start, **run)
    led = ascend(network, space, y, start, draft=draft, **run)
    assert 0 < plain.won.sum() < 27
    assert torch.equal(led.won, plain.won)
    torch.testing.assert_close(led.value[~led.won], plain.value[~led.won], atol=1e-6, rtol=0)
    if shift < 0:
        assert torch.equal(led.u, plain.u), "what is claimed and not confirmed goes on"
        assert torch.equal(led.steps, plain.steps)
    else:
        assert (led.steps == 12).all()


def test_a_draft_without_a_win_leads_to_values_of_the_network():
    network, space, y, start = problem()
    ascent = ascend(network, space, y, start, objective=cross_entropy, rule=adam(0.02), steps=5,
                    draft=shaken(network, 0.3))  # fmt: skip
    assert not ascent.won.any()
    assert sum(network.sizes) == ascent.won.numel()
    for u, value in zip(ascent.u, ascent.value, strict=True):
        torch.testing.assert_close(value, cross_entropy(network(space.image(u)), y))


@pytest.mark.parametrize(("members", "batch"), [(1, 4), (3, 7), (3, 512)])
@pytest.mark.parametrize("stop", STOPS)
def test_fleets_have_drafts_too(members, batch, stop):
    modules, _, space, y, start = fleet_problem(members)
    run = {"objective": cross_entropy, "rule": adam(0.02), "steps": 9, "win": fooled, "stop": stop, "batch": batch}
    plain = ascend(Stack(modules), space, y, start, **run)
    same = ascend(Stack(modules), space, y, start, draft=Stack(modules), **run)
    if stop == "image":
        assert torch.equal(same.won.any(0), plain.won.any(0))
    else:
        assert torch.equal(same.won, plain.won)
        torch.testing.assert_close(same.u, plain.u, atol=1e-9, rtol=0)
        torch.testing.assert_close(same.value, plain.value, atol=1e-9, rtol=0)
    fast = Stack(nets(members, gain=1.9))
    led = ascend(Stack(modules), space, y, start, draft=fast, **run)
    for r in range(2):
        for m, net in enumerate(modules):
            assert fooled(net(space.image(led.u[r, m])), y)[led.won[r, m]].all()


def test_a_draft_that_is_an_empty_module_is_a_draft():
    """The draft is the identity, whose outputs claim a win at once; the network never agrees."""
    space, start = Pixels(torch.rand(3, *SHAPE, generator=seeded()), 0.1), torch.zeros(1, 3, *SHAPE)

    def total(x, target):
        return x.flatten(1).sum(1)

    ascent = ascend(lambda x: -1 - x, space, torch.zeros(3), start, objective=total, rule=sign(0.01), steps=3,
                    win=lambda x, target: total(x, target) > 0, draft=torch.nn.Sequential())  # fmt: skip
    assert not ascent.won.any()


def test_the_counter_counts_rows_of_networks_and_of_fleets():
    plain, fleet = Counter(Network()), Counter(Stack(nets(3)))
    plain(torch.rand(5, *SHAPE))
    plain(torch.rand(2, *SHAPE))
    assert fleet(torch.rand(6, *SHAPE).double()).shape == (6, 3)
    assert (plain.samples, fleet.samples) == (7, 6)


# --- no numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize("row", [0, 4])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_nan_in_one_logit_of_one_image_at_one_step_is_an_error(stop, call, row, place):
    network, space, _, start = problem(images=5, eps=0.01)
    y = network(space.x).argmax(1)
    network.sizes.clear()

    def broken(x):
        logits = network(x).clone()
        if len(network.sizes) == call:
            logits[min(row, len(x) - 1), place] = math.nan
        return logits

    with pytest.raises(ValueError, match="not finite"):
        ascend(broken, space, y, start[:1], objective=cross_entropy, rule=adam(0.001), steps=4, win=fooled, stop=stop)


def test_a_member_that_gives_nan_is_an_error():
    modules, _, space, y, start = fleet_problem()
    with torch.no_grad():
        modules[1][3].bias[2] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        ascend(Stack(modules), space, y, start, objective=cross_entropy, rule=adam(0.02), steps=4, win=fooled)


@pytest.mark.parametrize("broken", ["draft", "network"])
def test_nan_is_an_error_whether_the_draft_gives_it_or_the_network(broken):
    network, space, y, start = problem()
    y = y.clamp_min(1)  # class 0 is what argmax makes of a row without numbers

    def nan(x):
        return network(x) * math.nan

    f, draft = (nan, network) if broken == "network" else (network, nan)
    draft = shaken(network, 0) if broken == "network" else draft
    with pytest.raises(ValueError, match="not finite"):
        ascend(f, Pixels(space.x, 1.0), y, start, objective=cross_entropy, rule=sign(0.2), steps=40, win=fooled,
               draft=draft)  # fmt: skip


def test_the_progress_bar_has_the_label_and_counts_the_pairs(capsys):
    network, space, y, start = problem()
    run = {"objective": cross_entropy, "rule": adam(0.02), "steps": 3, "win": fooled}
    ascend(network, space, y, start, **run)
    assert capsys.readouterr().err == ""
    ascend(network, space, y, start, label="at work", **run)
    assert "at work" in capsys.readouterr().err


def test_a_fleet_may_be_any_that_calls_its_members():
    """Two members that see brightness with opposite signs go opposite ways."""

    class Opposite(Fleet):
        members = 2

        def __call__(self, x):
            return x.flatten(2).mean(2, keepdim=True) * torch.tensor([1.0, -1.0])[:, None, None]

    space = Pixels(torch.full((3, *SHAPE), 0.5), 0.1)
    ascent = ascend(Opposite(), space, torch.zeros(3), torch.zeros(1, 2, 3, *SHAPE), rule=sign(0.05), steps=4,
                    objective=lambda output, target: output[:, 0])  # fmt: skip
    torch.testing.assert_close(ascent.u[0, 0], torch.full((3, *SHAPE), 0.1), atol=1e-6, rtol=0)
    torch.testing.assert_close(ascent.u[0, 1], torch.full((3, *SHAPE), -0.1), atol=1e-6, rtol=0)
