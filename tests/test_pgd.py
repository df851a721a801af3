"""advbook.attacks.pgd: linear networks with known optima, planted examples, the ball, the box, bad input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from advbook import fonts
from advbook.attacks.norms import L0, L1, L2, LINF, NORMS, shells, volume
from advbook.attacks.objectives import fooled, log_odds, margin, reached, towards_cross_entropy
from advbook.attacks.pgd import attack, fgsm, images, pgd, pgd_joint, pgd_latent
from advbook.attacks.spaces import Joint, Latent, Masked, Pixels
from advbook.attacks.steps import ascent, backtracking, halving, sign
from advbook.fleet import Stack

EVERY = list(NORMS.values())
by_name = {"ids": lambda norm: norm.name}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def threshold(pixel, level):
    """Class 1 if one pixel exceeds a level, else class 0."""
    return lambda x: torch.stack([torch.zeros(len(x)), 8 * (x.flatten(1)[:, pixel] - level)], 1)


def smooth(seed=0, size=48, classes=4):
    """A random classifier of 3 x 4 x 4 images, float64 inside, so that batches do not change a bit."""
    first = torch.randn(size, 10, generator=seeded(seed), dtype=torch.float64)
    second = torch.randn(10, classes, generator=seeded(seed + 1), dtype=torch.float64)
    return lambda x: ((x.double().flatten(1) - 0.5) @ first).tanh().matmul(second).to(x.dtype)


# --- linear networks: the least budget is known ----------------------------------------------------------------------
#
# Two classes with logits (w x + b, 0): an example of class 0 is adversarial if w x + b < 0. Float64 inside.


def linear(w, b):
    w = w.flatten()

    def f(x):
        score = x.flatten(1).to(w) @ w + b
        return torch.stack([score, torch.zeros_like(score)], 1).to(x.dtype)

    return f


def fall(norm, w, room, budget):
    """How far w u can fall in the ball, where every entry may move by its room against the sign of w: [C, H, W]."""
    slope, bound = np.abs(w), room
    if norm is L0:
        return np.sort((slope * bound).sum(0).ravel())[::-1][: int(budget)].sum()
    slope, bound = slope.ravel(), bound.ravel()
    if norm is LINF:
        return slope @ np.minimum(bound, budget)
    if norm is L1:  # the steepest entries first
        order = np.argsort(-slope)
        spent = np.cumsum(bound[order]) - bound[order]
        return slope[order] @ np.clip(budget - spent, 0, bound[order])
    return slope @ np.minimum(bound, _multiple(slope, bound, budget) * slope)


def _multiple(slope, bound, budget):
    """The s with |min(s slope, bound)|_2 = budget."""
    return halved(lambda s: np.linalg.norm(np.minimum(s * slope, bound)) - budget, 1e6)


def halved(f, most):
    """The root of a rising function on [0, most], or `most`."""
    least = 0.0
    for _ in range(100):
        middle = (least + most) / 2
        least, most = (middle, most) if f(middle) < 0 else (least, middle)
    return most


def room(w, x, low=0.0, high=1.0):
    return np.where(w > 0, x - low, high - x)


def least(norm, w, room, score):
    """The least budget that makes up for a score."""
    if norm is L0:
        return next(k for k in range(1, room[0].size + 1) if fall(norm, w, room, k) > score)
    return halved(lambda budget: fall(norm, w, room, budget) - score, 1e3)


def linear_problem(seed, shape=(3, 3, 3), share=0.3):
    """A network, an image with black and white pixels, and the score that stands for `share` of what can be undone."""
    w = torch.randn(shape, generator=seeded(seed), dtype=torch.float64)
    x = (torch.rand(1, *shape, generator=seeded(seed + 1)) * 1.6 - 0.3).clamp(0, 1)
    exact = x[0].double().numpy()
    free = room(w.numpy(), exact)
    score = share * fall(LINF, w.numpy(), free, 1.0)
    return linear(w, score - float((w.numpy() * exact).sum())), x, w.numpy(), free, score


# A step rule that gets to the very end: long steps for L1, whose optimum is a corner.
STEADY = {
    "linf": lambda eps: sign(eps / 5),
    "l2": lambda eps: ascent(eps / 2, L2.direction),
    "l1": lambda eps: ascent(20 * eps, L1.direction),
    "l0": lambda eps: ascent(1e3, L0.direction),
}


@pytest.mark.parametrize("norm", [LINF, L2, L1], **by_name)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_on_linear_networks_one_percent_above_the_least_budget_wins_and_one_below_never(norm, share):
    for seed in range(3):
        f, x, w, free, score = linear_problem(seed, share=share)
        eps = least(norm, w, free, score)
        for factor, wins in ((1.01, True), (0.999, False)):
            found = pgd(f, x, torch.tensor([0]), eps=factor * eps, norm=norm, rule=STEADY[norm.name](eps),
                        restarts=2, steps=50, generator=seeded())  # fmt: skip
            assert found.success.all() == found.success.any() == wins


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_on_linear_networks_the_least_number_of_pixels_wins_and_one_less_never(share):
    for seed in range(3):
        f, x, w, free, score = linear_problem(seed, share=share)
        count = least(L0, w, free, score)
        for eps, wins in ((count, True), (count - 1, False)):
            found = pgd(f, x, torch.tensor([0]), eps=eps, norm=L0, rule=STEADY["l0"](eps), generator=seeded())
            assert found.success.all() == found.success.any() == wins
            assert (L0.size(found.x[:, 0] - x) <= eps).all()


@pytest.mark.parametrize(("norm", "factor"), [(LINF, 1.01), (L2, 1.01), (L1, 1.1), (L0, 1.0)],
                         ids=["linf", "l2", "l1", "l0"])  # fmt: skip
def test_the_default_attack_wins_near_the_least_budget(norm, factor):
    """Small networks, so that the paper's Adam can cross the distance and the softmax does not saturate."""
    for seed in range(4):
        f, x, w, free, score = linear_problem(seed, share=0.15)
        eps = factor * least(norm, w, free, score)
        assert pgd(f, x, torch.tensor([0]), eps=eps, norm=norm, generator=seeded()).success.any()


@pytest.mark.parametrize("norm", EVERY, **by_name)
def test_the_best_objective_on_a_linear_network_is_the_closed_form(norm):
    for seed in range(2):
        f, x, w, free, score = linear_problem(seed)
        for eps in (0.0, 2.0, 4.0) if norm is L0 else (0.0, 0.1, 2.0):
            found = pgd(f, x, torch.tensor([0]), eps=eps, norm=norm, rule=STEADY[norm.name](max(eps, 0.1)), steps=50,
                        restarts=2, objective=margin, stop="never", generator=seeded())  # fmt: skip
            best = fall(norm, w, free, eps) - score
            assert found.value.max().item() == pytest.approx(best, rel=1e-3, abs=1e-4)
            assert (found.value <= best + 1e-4).all()


def test_the_closed_forms_above_are_linear_programs():
    for seed in range(5):
        _, _, w, free, _ = linear_problem(seed)
        slope, bound = np.abs(w).ravel(), free.ravel()
        for eps in (0.05, 0.5, 3.0):
            cube = linprog(-slope, bounds=[(0, min(b, eps)) for b in bound])
            assert fall(LINF, w, free, eps) == pytest.approx(-cube.fun)
            tip = linprog(-slope, A_ub=np.ones((1, 27)), b_ub=[eps], bounds=[(0, b) for b in bound])
            assert fall(L1, w, free, eps) == pytest.approx(-tip.fun)


@pytest.mark.parametrize("rule", [
    ascent(0.05, L2.direction, momentum=0.5), backtracking(0.3, L2.direction), halving(1.0, L2.direction, 60),
], ids=["momentum", "backtracking", "halving"])  # fmt: skip
def test_every_rule_reaches_the_best_objective_of_a_ball(rule):
    for seed in range(3):
        f, x, w, free, score = linear_problem(seed)
        found = pgd(f, x, torch.tensor([0]), eps=0.5, norm=L2, rule=rule, steps=60, objective=margin, stop="never",
                    generator=seeded())  # fmt: skip
        assert found.value.max().item() == pytest.approx(fall(L2, w, free, 0.5) - score, rel=1e-2)


# --- networks that are sure -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [L2, L1, L0], **by_name)
@pytest.mark.parametrize("gain", [1.0, 1e3, 1e4, 1e30])
def test_a_saturated_softmax_stops_no_attack_along_normalized_gradients(norm, gain):
    for seed in range(3):
        f, x, w, free, score = linear_problem(seed)
        eps = math.ceil(least(L0, w, free, score)) if norm is L0 else 1.05 * least(norm, w, free, score)
        found = pgd(lambda x, f=f: gain * f(x), x, torch.tensor([0]), eps=eps, norm=norm,
                    rule=STEADY[norm.name](eps), generator=seeded())  # fmt: skip
        assert found.success.all()


@pytest.mark.parametrize("gain", [1e3, 1e4])
def test_a_saturated_softmax_stops_no_sign_steps(gain):
    f, x, w, free, score = linear_problem(0)
    eps = 1.05 * least(LINF, w, free, score)
    run = {"eps": eps, "rule": sign(eps / 5), "generator": seeded()}
    assert pgd(lambda x: gain * f(x), x, torch.tensor([0]), **run).success.all()


@pytest.mark.parametrize("gain", [1e-30, 1e-38])
def test_tiny_gradients_stop_no_attack_along_normalized_gradients(gain):
    f, x, w, free, score = linear_problem(0)
    eps = 1.05 * least(L2, w, free, score)
    found = pgd(lambda x: gain * f(x), x, torch.tensor([0]), eps=eps, norm=L2, generator=seeded())
    assert found.success.any()


@pytest.mark.parametrize("norm", EVERY, **by_name)
@pytest.mark.parametrize("gain", [1e3, 1e6, 1e30])
def test_saturated_logits_are_survived(norm, gain):
    f, x = smooth(), torch.rand(4, 3, 4, 4, generator=seeded(2))
    y, eps = f(x).argmax(1), {"linf": 0.1, "l2": 0.5, "l1": 2.0, "l0": 3}[norm.name]
    found = pgd(lambda x: gain * f(x), x, y, eps=eps, norm=norm, steps=5, restarts=2, generator=seeded())
    assert found.x.isfinite().all()
    for part in found.x:
        assert (norm.size(part.double() - x.double()) <= eps).all()


# --- networks in which an example was planted ------------------------------------------------------------------------


def planted(norm, eps, x, seed):
    """A network that must have an adversarial example: features of a random network, and a line between one point
    on the ball's surface and many inside (Zimmermann et al., NeurIPS 2022).
    """
    size = x[0].numel()
    first = torch.randn(size, 64, generator=seeded(seed), dtype=torch.float64) * 1.5
    shift = torch.randn(64, generator=seeded(seed + 1), dtype=torch.float64)

    def features(x):
        return ((x.double().flatten(1) - 0.5) @ first / size**0.5 + shift).tanh()

    space, many = Pixels(x.expand(300, *x.shape[1:]), eps, norm), x.expand(300, *x.shape[1:])
    inner = features(space.project(volume(norm, eps)(many, seeded(seed + 2)) * (1 if norm is L0 else 0.9)) + x)
    if norm is L0:
        edge = torch.zeros_like(x)
        edge.flatten(2)[:, :, : int(eps)] = torch.where(x.flatten(2)[:, :, : int(eps)] < 0.5, 1.0, -1.0)
    else:
        edge = 2 * eps * norm.shell(x, seeded(seed + 3))
    there = features(x + space[torch.tensor([0])].project(edge))
    scatter = torch.cov(inner.T) + 1e-3 * torch.eye(64, dtype=torch.float64)
    line = torch.linalg.solve(scatter, (there - inner.mean(0))[0])
    inside, outside = (inner @ line).max(), (there @ line).item()
    assert outside > inside, "the case must be separable"
    level = 0.3 * inside + 0.7 * outside
    return lambda x: torch.stack(
        [torch.zeros(len(x)), (5 * (features(x) @ line - level) / (outside - inside)).float()], 1
    )


@pytest.mark.parametrize(("norm", "eps"), [(LINF, 0.1), (L2, 0.4), (L1, 1.5), (L0, 2)], ids=["linf", "l2", "l1", "l0"])
def test_a_planted_example_is_found_where_chance_finds_none(norm, eps):
    y = torch.tensor([0])
    for seed in range(6):
        x = torch.rand(1, 3, 3, 3, generator=seeded(seed)) * 0.8 + 0.1
        f = planted(norm, eps, x, seed)
        rule = ascent(eps, L1.direction) if norm is L1 else None
        assert not fooled(f(x), y).any()
        by_chance = pgd(f, x, y, eps=eps, norm=norm, steps=0, restarts=20, generator=seeded(7)).success
        assert by_chance.double().mean() < 0.1
        assert pgd(f, x, y, eps=eps, norm=norm, rule=rule, steps=100, restarts=5, generator=seeded()).success.any()


# --- what must and what cannot be found ------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.35, 0.45, 0.49])
def test_what_lies_within_eps_is_found_by_every_restart(level):
    x = torch.full((5, 1, 4, 4), 0.2)
    found = pgd(threshold(6, level), x, torch.zeros(5).long(), eps=0.3, rule=sign(0.02), generator=seeded())
    assert found.success.all()
    assert (found.x.flatten(2)[:, :, 6] > level).all()


def test_the_papers_adam_needs_a_start_within_its_reach():
    """Forty steps of .005 do not cross the ball: a restart wins if and only if it starts near enough."""
    x, y, f = torch.full((50, 1, 2, 2), 0.2), torch.zeros(50).long(), threshold(0, 0.38)
    start = pgd(f, x, y, eps=0.3, steps=0, restarts=4, generator=seeded()).x.flatten(2)[:, :, 0]
    success = pgd(f, x, y, eps=0.3, restarts=4, generator=seeded()).success
    assert success[start > 0.24].all()
    assert not success[start < 0.1].any()
    assert 0 < success.double().mean() < 1


@pytest.mark.parametrize("rule", [None, sign(0.05)], ids=["adam", "sign"])
def test_what_lies_beyond_eps_is_never_found(rule):
    x, y = torch.full((6, 1, 3, 3), 0.2), torch.zeros(6).long()
    found = pgd(threshold(4, 0.501), x, y, eps=0.3, rule=rule, generator=seeded())
    assert not found.success.any()
    assert (found.steps == 40).all()
    assert found.forwards == 5 * 41


@pytest.mark.parametrize("norm", EVERY, **by_name)
def test_nothing_is_brighter_than_white(norm):
    x, y = torch.full((3, 1, 3, 3), 0.9), torch.zeros(3).long()
    found = pgd(threshold(0, 1.0), x, y, eps=2.0, norm=norm, rule=sign(0.05), generator=seeded())
    assert not found.success.any()
    assert found.x.max() == 1


def test_an_example_is_the_first_success_on_its_way():
    """With steps of .01 in one direction the pixel is at most one step beyond the level."""
    x, y = torch.full((20, 1, 2, 2), 0.2), torch.zeros(20).long()
    found = pgd(threshold(0, 0.4), x, y, eps=0.3, rule=sign(0.01), steps=60, generator=seeded())
    moved = found.steps > 0
    assert moved.any()
    assert (found.x.flatten(2)[:, :, 0][moved] <= 0.41 + 1e-5).all()


def test_an_attack_may_have_a_target():
    f, x = smooth(classes=4), torch.rand(5, 3, 4, 4, generator=seeded(2))
    t = (f(x).argmax(1) + 2) % 4
    found = pgd(f, x, t, eps=0.4, rule=sign(0.05), objective=towards_cross_entropy, win=reached, generator=seeded())
    assert found.success.any()
    for part, success in zip(found.x, found.success, strict=True):
        assert torch.equal(f(part).argmax(1) == t, success)


# --- what always holds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", EVERY, **by_name)
@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 4), st.integers(1, 4)),
    classes=st.integers(1, 4),
    restarts=st.integers(1, 3),
    steps=st.integers(0, 5),
    eps=st.sampled_from([0.0, 1.0, 3.0, 100.0]) | st.floats(0, 1),
    ruled=st.booleans(),
    shade=st.sampled_from([None, 0.0, 0.5, 1.0]),
    stop=st.sampled_from(["pair", "image", "never"]),
    seed=st.integers(0, 99),
)
def test_examples_lie_in_the_ball_and_in_the_box_and_are_what_was_judged(
    norm, shape, classes, restarts, steps, eps, ruled, shade, stop, seed
):
    f = smooth(seed, math.prod(shape[1:]), classes)
    x = (torch.rand(shape, generator=seeded(seed)) * 1.4 - 0.2).clamp(0, 1)
    x = x if shade is None else torch.full_like(x, shade)
    y = torch.randint(classes, shape[:1], generator=seeded(seed))
    budget = {"eps": eps, "norm": norm, "steps": steps, "restarts": restarts, "stop": stop}
    budget["rule"] = sign(0.1) if ruled else None
    found = pgd(f, x, y, **budget, generator=seeded(seed))
    assert found.x.shape == (restarts, *shape)
    assert found.x.dtype == x.dtype
    assert found.success.shape == found.steps.shape == found.value.shape == (restarts, shape[0])
    assert found.x.min() >= 0
    assert found.x.max() <= 1
    for part, success in zip(found.x, found.success, strict=True):
        assert (norm.size(part.double() - x.double()) <= eps).all()
        if stop == "image":
            assert (f(part).argmax(1) != y)[success].all()
        else:
            assert torch.equal(f(part).argmax(1) != y, success)
    if eps == 0:
        assert torch.equal(found.x, x.expand_as(found.x))
    again = pgd(f, x, y, **budget, generator=seeded(seed))
    assert torch.equal(found.x, again.x), "the generator alone decides"


@pytest.mark.parametrize("norm", EVERY, **by_name)
def test_restarts_start_at_different_points(norm):
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3).long()
    found = pgd(threshold(0, 2), x, y, eps=3.0, norm=norm, steps=0, restarts=3, generator=seeded())
    apart = torch.cdist(found.x.flatten(1), found.x.flatten(1)) + torch.eye(3)
    assert apart.min() > 0.01


def test_a_start_of_ones_own_is_taken():
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3).long()
    run = {"eps": 0.2, "steps": 0, "restarts": 2}
    found = pgd(threshold(0, 2), x, y, start=shells(LINF, 0.1), generator=seeded(4), **run)
    drawn = seeded(4)
    expected = torch.stack([x + shells(LINF, 0.1)(x, drawn) for _ in range(2)])
    torch.testing.assert_close(found.x, expected)


@pytest.mark.parametrize("norm", EVERY, **by_name)
def test_double_precision_gives_what_single_precision_gives(norm):
    f, x = smooth(), torch.rand(4, 3, 4, 4, generator=seeded(2))
    y, eps = f(x).argmax(1), {"linf": 0.1, "l2": 0.5, "l1": 2.0, "l0": 3}[norm.name]
    run = {"eps": eps, "norm": norm, "steps": 10, "stop": "never"}
    single = pgd(f, x, y, generator=seeded(), **run)
    double = pgd(f, x.double(), y, generator=seeded(), **run)
    assert double.x.dtype == double.value.dtype == torch.float64
    torch.testing.assert_close(double.value.float(), single.value, atol=1e-2, rtol=1e-2)


# --- fleets ----------------------------------------------------------------------------------------------------------


def nets(count=3):
    found = []
    for seed in range(count):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        with torch.no_grad():
            for weight in net.parameters():
                weight.copy_(torch.randn(weight.shape, generator=seeded(seed)))
        found.append(net.double())
    return found


def test_a_fleet_is_attacked_from_the_starts_that_each_network_alone_would_have():
    modules, x = nets(), torch.rand(5, 3, 2, 2, generator=seeded(2)).double()
    y = modules[0](x).argmax(1)
    run = {"eps": 0.1, "steps": 6, "restarts": 2}
    together = pgd(Stack(modules), x, y, generator=seeded(), **run)
    assert together.x.shape == (2, 3, *x.shape)
    assert together.success.shape == (2, 3, 5)
    assert not together.success.all()
    for m, net in enumerate(modules):
        alone = pgd(net, x, y, generator=seeded(), **run)
        torch.testing.assert_close(together.x[:, m], alone.x, atol=1e-10, rtol=0)
        torch.testing.assert_close(together.value[:, m], alone.value, atol=1e-10, rtol=0)
        assert torch.equal(together.success[:, m], alone.success)
        assert torch.equal(together.steps[:, m], alone.steps)


def test_images_of_fleets_are_those_of_the_space_member_by_member():
    space, u = Pixels(torch.rand(4, 1, 2, 2, generator=seeded()), 0.3), torch.rand(2, 3, 4, 1, 2, 2, generator=seeded())
    found = images(space, u, 3)
    assert found.shape == u.shape
    for r in range(2):
        for m in range(3):
            assert torch.equal(found[r, m], space.image(u[r, m]))


# --- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("gain", [1.0, 1e4])
def test_the_fast_attack_takes_one_step_of_eps_along_the_sign_of_the_gradient(eps, gain):
    f, x = smooth(), (torch.rand(20, 3, 4, 4, generator=seeded(2)) * 1.4 - 0.2).clamp(0, 1)
    y = f(x).argmax(1)
    y[:4] = (y[:4] + 1) % 4
    found = fgsm(lambda x: gain * f(x), x, y, eps=eps)
    point = x.clone().requires_grad_()
    slope = torch.autograd.grad(log_odds(gain * f(point), y).sum(), point)[0]
    stepped = (x + eps * slope.sign()).clamp(0, 1)
    assert found.x.shape == (1, *x.shape)
    assert torch.equal(found.x[0, :4], x[:4]), "the image itself, where it wins"
    better = log_odds(f(stepped), y) > log_odds(f(x), y)
    better[:4] = False
    torch.testing.assert_close(found.x[0][better], stepped[better], atol=1e-6, rtol=0)
    assert torch.equal(found.success[0], fooled(f(found.x[0]), y))
    assert ((found.x[0].double() - x.double()).abs() <= eps).all()
    assert found.steps[0, :4].sum() == 0
    if eps:
        assert better.double().mean() > 0.5


def test_on_a_linear_network_one_step_is_as_good_as_many():
    for seed in range(4):
        f, x, w, free, score = linear_problem(seed)
        eps = least(LINF, w, free, score)
        assert fgsm(f, x, torch.tensor([0]), eps=1.001 * eps).success.all()
        assert not fgsm(f, x, torch.tensor([0]), eps=0.999 * eps).success.any()


# --- the latent space ------------------------------------------------------------------------------------------------


def letters(count=8, eta=0.3):
    rows = fonts.rows("test", count)
    low, high = fonts.theta_box()
    return rows, Latent(rows.theta, fonts.decode, (rows.font, rows.letter), low, high, eta)


@settings(max_examples=40)
@given(eta=st.one_of(st.just(0.0), st.floats(0, 1)), steps=st.integers(0, 3), seed=st.integers(0, 20))
def test_latent_examples_are_letters_with_parameters_in_ball_and_box(eta, steps, seed):
    rows, space = letters(3, eta)
    seen = []

    def watched(theta, font, letter):
        seen.append((theta.detach(), font, letter))
        return fonts.decode(theta, font, letter)

    spied = Latent(space.z, watched, space.context, space.low, space.high, eta)
    f = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    found = pgd_latent(f, spied, rows.letter, steps=steps, restarts=2, generator=seeded(seed))
    assert found.x.shape == (2, 3, 1, 28, 28)
    for theta, font, letter in seen:
        assert (theta >= space.low - 1e-6).all()
        assert (theta <= space.high + 1e-6).all()
        assert torch.equal(font, torch.zeros_like(font)), "all three letters are of the first font"
        assert ((theta - space.z[letter]).abs() <= eta + 1e-6).all()
    for examples, (theta, font, letter) in zip(found.x, seen[-2:], strict=True):
        assert torch.equal(examples, fonts.decode(theta, font, letter))
    if eta == 0:
        torch.testing.assert_close(found.x, fonts.images(rows).expand_as(found.x), atol=1e-5, rtol=0)


def test_a_latent_direction_that_fools_is_found_and_one_out_of_the_box_is_not():
    low, high = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.5])
    z = torch.full((4, 2), 0.4)

    def spread(z):
        return z[:, None, :, None]

    space = Latent(z, spread, (), low, high, 0.3)
    budget = {"rule": sign(0.02), "generator": seeded()}
    assert pgd_latent(threshold(0, 0.68), space, torch.zeros(4).long(), **budget).success.all()
    assert not pgd_latent(threshold(0, 0.71), space, torch.zeros(4).long(), **budget).success.any()
    assert pgd_latent(threshold(1, 0.48), space, torch.zeros(4).long(), **budget).success.all()
    assert not pgd_latent(threshold(1, 0.51), space, torch.zeros(4).long(), **budget).success.any()


def drawn_linearly(seed, norm=LINF, codes=5, share=0.3):
    """A linear decoder whose images stay within [.25, .75], a linear network, and both as one linear function of z."""
    shape = (1, 3, 3)
    matrix = torch.randn(codes, 9, generator=seeded(seed), dtype=torch.float64)
    matrix = 0.25 * matrix / matrix.abs().sum(0)
    w = torch.randn(shape, generator=seeded(seed + 1), dtype=torch.float64)
    z = torch.rand(1, codes, generator=seeded(seed + 2)) * 2 - 1

    def decode(z):
        return (0.5 + z.double() @ matrix).view(-1, *shape).to(z.dtype)

    one = torch.ones(codes)
    slope = (matrix @ w.flatten()).numpy()
    free = room(slope, z[0].double().numpy(), -1.0, 1.0)
    score = share * fall(LINF, slope, free, 2.0)
    b = score - float((w * decode(z.double())).sum())
    return linear(w, b), Latent(z, decode, (), -one, one, 0.0, norm), w.numpy(), slope, free, score


def resized(space, eta):
    return Latent(space.z, space.decode, (), space.low, space.high, eta, space.norm)


@pytest.mark.parametrize("norm", [LINF, L2, L1], **by_name)
def test_with_a_linear_decoder_the_least_latent_budget_wins(norm):
    for seed in range(4):
        f, space, _, slope, free, score = drawn_linearly(seed, norm)
        eta = least(norm, slope, free, score)
        for factor, wins in ((1.01, True), (0.99, False)):
            found = pgd_latent(f, resized(space, factor * eta), torch.tensor([0]), rule=STEADY[norm.name](eta),
                               steps=50, restarts=2, generator=seeded())  # fmt: skip
            assert found.success.all() == found.success.any() == wins


# --- both at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.5, math.inf], ids=["latent only", "little", "much", "pixels only"])
def test_with_a_linear_decoder_the_least_joint_budget_wins(ratio):
    """eps = ratio eta: the falls of both parts add up, and no image comes near 0 or 1."""
    eta_share, eps_share = (0.0, 1.0) if ratio == math.inf else (1.0, ratio)
    for seed in range(4):
        f, latent, w, slope, free, score = drawn_linearly(seed, share=0.1)
        wide = np.full_like(w, 0.25)

        def falls(size, w=w, slope=slope, free=free, wide=wide):
            return fall(LINF, slope, free, size * eta_share) + fall(LINF, w, wide, size * eps_share)

        size = halved(lambda size, score=score, falls=falls: falls(size) - score, 2.0)
        assert size * eps_share < 0.25
        for factor, wins in ((1.01, True), (0.99, False)):
            space = Joint(resized(latent, factor * size * eta_share), factor * size * eps_share, (1, 3, 3))
            found = pgd_joint(f, space, torch.tensor([0]), generator=seeded())
            assert found.success.all() == found.success.any() == wins


def test_joint_examples_in_euclidean_balls_reach_the_best_of_each():
    for seed in range(3):
        f, latent, w, slope, free, score = drawn_linearly(seed, L2)
        space = Joint(resized(latent, 0.4), 0.2, (1, 3, 3), L2)
        found = pgd_joint(f, space, torch.tensor([0]), rule=ascent(0.5, L2.direction), steps=60, restarts=2,
                          objective=margin, stop="never", generator=seeded())  # fmt: skip
        best = fall(L2, slope, free, 0.4) + 0.2 * np.linalg.norm(w) - score
        assert found.value.max().item() == pytest.approx(best, rel=1e-2, abs=1e-3)


@given(eta=st.sampled_from([0.0, 0.3, 2.0]), eps=st.sampled_from([0.0, 0.1, 2.0]), norm=st.sampled_from(EVERY),
       steps=st.integers(0, 4), seed=st.integers(0, 50))  # fmt: skip
@settings(max_examples=60)
def test_joint_examples_are_images_near_a_decoded_code(eta, eps, norm, steps, seed):
    linear_latent, seen = drawn_linearly(seed)[1], []

    def watched(z):
        seen.append(z.detach())
        return linear_latent.decode(z)

    latent = Latent(linear_latent.z.expand(3, -1), watched, (), linear_latent.low, linear_latent.high, eta)
    f = smooth(seed, 9, 3)
    y = torch.tensor([0, 1, 2])
    found = pgd_joint(f, Joint(latent, eps, (1, 3, 3), norm), y, steps=steps, restarts=2, generator=seeded(seed))
    assert found.x.shape == (2, 3, 1, 3, 3)
    assert found.x.min() >= 0
    assert found.x.max() <= 1
    for part, success, z in zip(found.x, found.success, seen[-2:], strict=True):
        assert ((z - latent.z).abs() <= eta + 1e-6).all()
        assert (z.abs() <= 1 + 1e-6).all()
        assert (norm.size(part.double() - linear_latent.decode(z).double()) <= eps).all()
        assert torch.equal(f(part).argmax(1) != y, success)


# --- any space -------------------------------------------------------------------------------------------------------


def test_a_frame_changes_the_frame_alone():
    mask = torch.ones(4, 4)
    mask[1:-1, 1:-1] = 0
    f, x = smooth(), torch.rand(5, 3, 4, 4, generator=seeded(2))
    y = f(x).argmax(1)
    found = attack(f, Masked(x, mask), y, x, start=volume(LINF, 1.0), rule=sign(0.1), steps=20, restarts=2,
                   generator=seeded())  # fmt: skip
    assert found.success.any()
    assert torch.equal(found.x[..., 1:-1, 1:-1], x[..., 1:-1, 1:-1].expand(2, -1, -1, -1, -1))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"eps": -0.1}, r"^eps = -0\.1: .*0 or more"),
        ({"eps": math.nan}, r"^eps = nan: .*0 or more"),
        ({"restarts": 0}, r"^restarts = 0: .*1 or more"),
        ({"steps": -2}, r"^steps = -2: .*zero or more"),
    ],
)
@pytest.mark.parametrize("norm", EVERY, **by_name)
def test_a_budget_out_of_range_is_named(norm, wrong, sentence):
    x, y = torch.rand(2, 3, 4, 4), torch.zeros(2).long()
    with pytest.raises(ValueError, match=sentence):
        pgd(smooth(), x, y, **{"eps": 0.1, "norm": norm, "generator": seeded(), **wrong})


def test_a_negative_eps_or_eta_is_named_by_every_attack():
    _, space = letters(2, -1.0)
    y = torch.zeros(2).long()
    with pytest.raises(ValueError, match=r"^eta = -1\.0: .*0 or more"):
        pgd_latent(smooth(), space, y, generator=seeded())
    with pytest.raises(ValueError, match=r"^eta = -1\.0: .*0 or more"):
        pgd_joint(smooth(), Joint(space, 0.1, (1, 28, 28)), y, generator=seeded())
    with pytest.raises(ValueError, match=r"^eps = -0\.1: .*0 or more"):
        pgd_joint(smooth(), Joint(letters(2)[1], -0.1, (1, 28, 28)), y, generator=seeded())
    with pytest.raises(ValueError, match=r"^eps = -2: .*0 or more"):
        fgsm(smooth(), torch.rand(2, 3, 4, 4), y, eps=-2)


@pytest.mark.parametrize("norm", EVERY, **by_name)
def test_a_network_that_gives_nan_is_an_error(norm):
    with pytest.raises(ValueError, match=r"not finite.*NaN"):
        pgd(lambda x: smooth()(x) * math.nan, torch.rand(2, 3, 4, 4), torch.zeros(2).long(), eps=0.1, norm=norm,
            generator=seeded())  # fmt: skip


@pytest.mark.parametrize("norm", EVERY, **by_name)
def test_a_slope_that_is_not_a_number_is_an_error(norm):
    """The root of zero has no slope: the next point is no number, and neither are its logits."""
    x, y = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2).long()

    def f(x):
        return smooth()(x) + (0 * x).flatten(1).square().sum(1, keepdim=True).sqrt()

    with pytest.raises(ValueError, match="not finite"):
        pgd(f, x, y, eps=2.0, norm=norm, stop="never", generator=seeded())
