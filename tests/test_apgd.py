"""advbook.attacks.apgd: closed forms, the paper's algorithm written plainly, masked gradients, the series."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advbook.attacks import norms
from advbook.attacks.apgd import _stages, apgd, apgd_latent, strongest, strongest_latent
from advbook.attacks.engine import Counter
from advbook.attacks.norms import L1, L2, LINF
from advbook.attacks.objectives import cross_entropy, dlr, margin
from advbook.attacks.pgd import pgd
from advbook.attacks.spaces import Latent
from advbook.attacks.steps import sign
from advbook.fleet import Stack

SHAPE = (1, 3, 3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def curved(seed=0, classes=4, gain=4.0):
    """A small smooth classifier; float64 inside, so that batches hardly change a bit."""
    random = seeded(seed)
    first = gain * torch.randn(9, 8, generator=random, dtype=torch.float64) / 3
    second = gain * torch.randn(8, classes, generator=random, dtype=torch.float64) / 3
    return lambda x: ((x.double().flatten(1) - 0.5) @ first).tanh().matmul(second).to(x.dtype)


def problem(images=6, seed=0, classes=4, dtype=torch.float64):
    f, x = curved(seed, classes), torch.rand(images, *SHAPE, generator=seeded(seed + 1), dtype=dtype)
    return f, x, f(x).argmax(1)


def halfspace(w, b=0.0):
    """Class 1 where w x + b > 0, else class 0: the margin of y = 0 is w x + b, and so are the log-odds."""
    return lambda x: torch.stack([torch.zeros_like(x[:, 0, 0, 0]), x.flatten(1) @ w + b], 1)


def nearest(u, x, eps, norm):
    """The projection of one perturbation onto ball and box: clip(t u), with t by bisection."""
    if norm is LINF:
        return np.clip(np.clip(u, -eps, eps), -x, 1 - x)
    low, high = 0.0, 1.0
    if np.linalg.norm(np.clip(u, -x, 1 - x)) <= eps:
        return np.clip(u, -x, 1 - x)
    for _ in range(60):
        t = (low + high) / 2
        low, high = (t, high) if np.linalg.norm(np.clip(t * u, -x, 1 - x)) <= eps else (low, t)
    return np.clip(low * u, -x, 1 - x)


def keeps_to_the_budget(examples, x, eps, norm):
    """In float64: in the box to the bit, and in the ball but for float64's own rounding."""
    delta = (examples.double() - x.double()).flatten(0, examples.ndim - 4).flatten(1)
    size = delta.abs().amax(1) if norm is LINF else delta.norm(dim=1)
    return bool((size <= eps + 1e-12).all()) and examples.min() >= 0 and examples.max() <= 1


# --- closed forms ---------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(eps=st.one_of(st.just(0.0), st.floats(1e-3, 1)), images=st.integers(1, 4), seed=st.integers(0, 99))
def test_on_a_linear_network_it_reaches_the_corner_of_the_cube(eps, images, seed):
    w = torch.randn(9, generator=seeded(seed), dtype=torch.float64)
    x = torch.rand(images, *SHAPE, generator=seeded(seed + 1), dtype=torch.float64)
    attack = apgd(halfspace(w), x, torch.zeros(images).long(), eps=eps, steps=15, stop="never", generator=seeded(seed))
    optimum = (x.flatten(1) + eps * w.sign()).clamp(0, 1) @ w
    torch.testing.assert_close(attack.value[0], optimum, atol=1e-9, rtol=0)
    assert keeps_to_the_budget(attack.x, x, eps, LINF)
    if eps == 0:
        assert torch.equal(attack.x[0], x)


@settings(max_examples=25)
@given(eps=st.one_of(st.just(0.0), st.floats(1e-3, 2.5)), images=st.integers(1, 4), seed=st.integers(0, 99))
def test_on_a_linear_network_it_reaches_the_best_point_of_ball_and_box(eps, images, seed):
    """The best point of the ball alone is eps w / |w|; with the box it is the projection of t w for large t."""
    w = torch.randn(9, generator=seeded(seed), dtype=torch.float64)
    x = torch.rand(images, *SHAPE, generator=seeded(seed + 1), dtype=torch.float64)
    attack = apgd(
        halfspace(w), x, torch.zeros(images).long(), eps=eps, norm=L2, steps=60, stop="never", generator=seeded(seed)
    )
    far = 1e6 * w.numpy()
    rows = x.flatten(1).numpy()
    optimum = [(row + nearest(far, row, eps, L2)) @ w.numpy() for row in rows]
    np.testing.assert_allclose(attack.value[0], optimum, atol=1e-3 * eps * float(w.norm()) + 1e-9)
    assert keeps_to_the_budget(attack.x, x, eps, L2)


@pytest.mark.parametrize("norm", [LINF, L2], ids=["linf", "l2"])
def test_restarts_start_apart_and_on_the_surface_of_the_ball(norm):
    f, _, y = problem(images=3)
    x = torch.full((3, *SHAPE), 0.5, dtype=torch.float64)
    attack = apgd(f, x, y, eps=0.25, norm=norm, steps=0, restarts=4, generator=seeded())
    apart = (attack.x - x).flatten(0, 1)
    torch.testing.assert_close(norm.size(apart), torch.full((12,), 0.25, dtype=torch.float64))
    assert (torch.pdist(apart.flatten(1)) > 0.01).all()


# --- the paper's algorithm, one image at a time -----------------------------------------------------------------


def checkpoints(steps):
    """p_0 = 0, p_1 = .22, p_(j+1) = p_j + max(p_j - p_(j-1) - .03, .06); w_j = ceil(p_j steps)."""
    shares = [Fraction(0), Fraction(22, 100)]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - Fraction(3, 100), Fraction(6, 100)))
    return sorted({math.ceil(share * steps) for share in shares if share <= 1})


def plain_auto_pgd(judge, x, delta, eps, norm, steps):
    """Algorithm 1 of Croce and Hein for one image; judge(point) -> objective, gradient.

    Gives the best perturbation, its objective and the last step size. The test at a checkpoint w stands before the
    point w + 1 is computed: as printed, that point would be thrown away.
    """
    marks, eta, halved, before = checkpoints(steps), 2 * eps, False, delta
    points, slopes, values = [], [], []
    for k in range(steps + 1):
        value, slope = judge(x + delta)
        points, slopes, values = [*points, delta], [*slopes, slope], [*values, value]
        here = delta
        if k in marks[1:]:
            since = marks[marks.index(k) - 1]
            rises = sum(values[i + 1] > values[i] for i in range(since, k))
            stuck = not halved and max(values) == max(values[: since + 1])
            halved = rises < 0.75 * (k - since) or stuck
            if halved:
                best = int(np.argmax(values))
                eta, here, slope = eta / 2, points[best], slopes[best]
        direction = np.sign(slope) if norm is LINF else slope / np.linalg.norm(slope)
        z = nearest(here + eta * direction, x, eps, norm)
        following = nearest(here + 0.75 * (z - here) + 0.25 * (here - before), x, eps, norm) if k else z
        before, delta = here, following  # a return replaces the point itself
    best = int(np.argmax(values))
    return points[best], values[best], eta


@pytest.mark.parametrize("norm", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("steps", [0, 1, 7, 40, 100])
def test_it_is_the_papers_algorithm(norm, steps):
    eps, halvings = {LINF: 0.3, L2: 0.9}[norm], 0
    for seed in range(4):
        f, x, y = problem(images=4, seed=10 * seed)
        start = apgd(f, x, y, eps=eps, norm=norm, steps=0, stop="never", generator=seeded(seed)).x[0]
        attack = apgd(f, x, y, eps=eps, norm=norm, steps=steps, stop="never", objective=margin, generator=seeded(seed))
        for b in range(len(x)):

            def judge(point, b=b, f=f, y=y):
                image = torch.tensor(point).view(1, *SHAPE).requires_grad_()
                value = margin(f(image), y[b : b + 1])[0]
                return value.item(), torch.autograd.grad(value, image)[0].flatten().numpy()

            row = x[b].flatten().numpy()
            delta, value, eta = plain_auto_pgd(judge, row, start[b].flatten().numpy() - row, eps, norm, steps)
            np.testing.assert_allclose(attack.value[0, b], value, atol=1e-6)
            np.testing.assert_allclose((attack.x[0, b] - x[b]).flatten(), delta, atol=1e-6)
            halvings += eta < 2 * eps
    assert halvings == 0 if steps < 7 else halvings > 8, "most images test a halving"


# --- beside other attacks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [margin, dlr], ids=["margin", "dlr"])
def test_it_is_not_weaker_than_sign_steps_of_the_same_budget(objective):
    f, x, y = problem(images=30, seed=3)
    budget = {"eps": 0.25, "steps": 40, "restarts": 2, "stop": "never", "objective": objective}
    ours = apgd(f, x, y, **budget, generator=seeded()).value.amax(0)
    signs = pgd(f, x, y, **budget, rule=sign(0.25 / 10), start=norms.volume(LINF, 0.25), generator=seeded()).value.amax(
        0
    )
    assert ours.mean() >= signs.mean() - 1e-3
    assert ours.quantile(0.1) >= signs.quantile(0.1) - 1e-2


def test_the_log_odds_lead_as_the_cross_entropy_does():
    f, x, y = problem(seed=5)
    odds, entropy = (
        apgd(f, x, y, eps=0.2, steps=30, stop="never", objective=objective, generator=seeded())
        for objective in (apgd.__kwdefaults__["objective"], cross_entropy)
    )
    torch.testing.assert_close(odds.x, entropy.x, atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.nn.functional.softplus(odds.value), entropy.value)


def sure(x):
    """Three classes and logits so large that the softmax of the true one rounds to 1, and its gradient to 0."""
    level = x.flatten(1).mean(1)
    return 1e4 * torch.stack([torch.zeros_like(level), level - 0.55, level - 2.0], 1)


def test_a_saturated_network_stops_the_cross_entropy_but_not_the_reference():
    x, y = torch.full((4, *SHAPE), 0.5), torch.zeros(4).long()
    start = norms.volume(LINF, 0.1)
    masked = pgd(sure, x, y, eps=0.1, rule=sign(0.02), start=start, objective=cross_entropy, generator=seeded())
    assert not masked.success.any()
    assert not apgd(sure, x, y, eps=0.1, objective=cross_entropy, generator=seeded()).success.any()
    assert apgd(sure, x, y, eps=0.1, generator=seeded()).success.all()
    assert apgd(sure, x, y, eps=0.1, objective=dlr, generator=seeded()).success.all()
    assert strongest(sure, x, y, eps=0.1, generator=seeded()).success.all()


def lure(x):
    """Class 1 rises with the light and never reaches class 0; class 2 is far below and wins in the dark."""
    level = x.flatten(1).mean(1) - 0.5
    return 20 * torch.stack([0 * level, 2 * level - 0.4, -10 * level - 0.4, 0 * level - 9], 1)


def test_the_targeted_form_finds_what_the_others_are_lured_away_from():
    x, y = torch.full((3, *SHAPE), 0.55), torch.zeros(3).long()
    untargeted = strongest(lure, x, y, eps=0.1, targets=0, generator=seeded())
    towards_one = strongest(lure, x, y, eps=0.1, targets=1, generator=seeded())
    towards_two = strongest(lure, x, y, eps=0.1, targets=2, generator=seeded())
    assert not untargeted.success.any()
    assert (untargeted.value < 0).all()
    assert not towards_one.success.any(), "the likeliest wrong class is the bait"
    assert towards_two.success.all()
    assert (lure(towards_two.x[0]).argmax(1) == 2).all()


# --- the series -----------------------------------------------------------------------------------------------


@given(
    images=st.integers(1, 5),
    classes=st.sampled_from([1, 2, 3, 4, 11]),
    eps=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    steps=st.integers(0, 6),
    restarts=st.integers(1, 2),
    norm=st.sampled_from([LINF, L2]),
    seed=st.integers(0, 99),
)
def test_what_it_returns_is_true_of_the_examples(images, classes, eps, steps, restarts, norm, seed):
    f, x, y = problem(images, seed, classes, torch.float32)
    y[::3] = (y[::3] + 1) % classes
    seen = Counter(f)
    attack = strongest(seen, x, y, eps=eps, norm=norm, steps=steps, restarts=restarts, generator=seeded(seed))
    assert attack.x.shape == (1, *x.shape)
    assert attack.success.shape == attack.value.shape == attack.steps.shape == (1, images)
    assert torch.equal(f(attack.x[0]).argmax(1) != y, attack.success[0])
    torch.testing.assert_close(margin(f(attack.x[0]), y), attack.value[0])
    assert keeps_to_the_budget(attack.x, x, eps, norm)
    assert attack.forwards == pytest.approx(seen.samples / images)
    wrong = f(x).argmax(1) != y
    assert torch.equal(attack.x[0][wrong], x[wrong])
    assert not attack.steps[0][wrong].any()
    still = steps * restarts * (2 + min(9, classes - 1))
    assert (attack.steps[0][~attack.success[0]] == still).all()
    assert (attack.value[0] >= margin(f(x), y)).all()


def test_each_image_leaves_when_it_falls():
    """One image is wrong, one falls to the first attack's start or step, one to nothing: what each costs."""
    w = torch.ones(9, dtype=torch.float64) / 9
    x = torch.stack([torch.full(SHAPE, level, dtype=torch.float64) for level in (0.9, 0.65, 0.2)])
    attack = strongest(halfspace(w, -0.7), x, torch.zeros(3).long(), eps=0.1, steps=10, generator=seeded())
    assert attack.success.tolist() == [[True, True, False]]
    assert attack.steps.tolist() == [[0, 1, 30]]
    # clean: 3; the second: 2 looks and one at the result; the third: three attacks of 11 looks and one at the result
    assert attack.forwards == pytest.approx((3 + 3 + 3 * 12) / 3)
    torch.testing.assert_close(attack.value[0, 2], torch.tensor(-0.4, dtype=torch.float64))


def test_the_first_win_of_an_image_ends_its_other_restarts():
    w, x = torch.ones(9, dtype=torch.float64) / 9, torch.full((1, *SHAPE), 0.65, dtype=torch.float64)
    attack = strongest(
        halfspace(w, -0.7), x, torch.zeros(1).long(), eps=0.1, steps=10, restarts=5, batch=1, generator=seeded()
    )
    assert attack.steps.tolist() == [[1]]


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 12])
def test_every_stage_has_a_slope_whatever_the_number_of_classes(classes):
    """DLR is constant for two classes, its targeted form needs four; and the targets are the likeliest, in order."""
    y = torch.arange(6) % classes
    logits = torch.randn(6, classes, generator=seeded(), dtype=torch.float64)
    logits = logits.scatter_add(1, y[:, None], torch.full((6, 1), 6.0).double()).requires_grad_()  # right and sure
    stages = list(_stages(logits.detach(), y, 9))
    assert len(stages) == 2 + min(9, classes - 1)
    for stage in stages if classes > 1 else ():
        (slope,) = torch.autograd.grad(stage.objective(logits, stage.goal).sum(), logits)
        if stage.goal.ndim == 1:
            assert (slope.gather(1, y[:, None]) < -1e-6).all(), "it lowers the true class"
        else:
            assert (slope.gather(1, stage.goal[:, 1:]) > 1e-6).all(), "it raises the target"
    names = [stage.objective.__name__ for stage in stages]
    assert names[0] == "log_odds"
    assert names[1:2] == ["dlr"]
    assert set(names[2:]) <= {"towards_dlr" if classes >= 4 else "_gap"}
    ranks = logits.argsort(1, descending=True).tolist()
    for row, label in enumerate(y.tolist()):
        wrong = [k for k in ranks[row] if k != label][:9]
        assert [stage.goal[row, 1].item() for stage in stages[2:]] == wrong


def test_more_attacks_never_find_less():
    f, x, y = problem(images=20, seed=8)
    runs = [strongest(f, x, y, eps=0.12, steps=10, targets=targets, generator=seeded()) for targets in range(4)]
    for fewer, more in pairwise(runs):
        assert (more.success | ~fewer.success).all()
        assert (more.value >= fewer.value).all()


def test_the_generator_alone_decides():
    f, x, y = problem(images=5, seed=2)
    first, again = (strongest(f, x, y, eps=0.1, steps=5, generator=seeded(7)) for _ in range(2))
    assert torch.equal(first.x, again.x)


def test_a_member_of_a_fleet_is_attacked_as_it_would_be_alone():
    torch.manual_seed(0)
    modules = [
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
        for _ in range(3)
    ]
    _, x, y = problem(images=4, classes=3)
    budget = {"eps": 0.3, "steps": 20, "restarts": 2, "stop": "never"}
    together = apgd(Stack(modules), x, y, **budget, generator=seeded())
    assert together.x.shape == (2, 3, 4, *SHAPE)
    for m, module in enumerate(modules):
        alone = apgd(module, x, y, **budget, generator=seeded())
        torch.testing.assert_close(together.x[:, m], alone.x, atol=1e-8, rtol=0)


# --- in latent space --------------------------------------------------------------------------------------------


def pixels_as_latents(x, eta, norm, gain=1.0):
    """A decoder that gives the image itself from a code `gain` times as large."""
    zeros, ones = (torch.full((9,), value, dtype=x.dtype) for value in (0.0, gain))
    return Latent(gain * x.flatten(1), lambda z: z.view(-1, *SHAPE) / gain, (), zeros, ones, gain * eta, norm)


@pytest.mark.parametrize("norm", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_where_the_code_is_the_image_it_finds_the_same(norm, gain):
    f, x, y = problem(images=12, seed=2)
    eps = {LINF: 0.08, L2: 0.15}[norm]
    space = pixels_as_latents(x, eps, norm, gain)
    budget = {"steps": 12, "restarts": 2}
    pairs = [
        (
            apgd(f, x, y, eps=eps, norm=norm, generator=seeded(), **budget),
            apgd_latent(f, space, y, generator=seeded(), **budget),
        ),
        (
            strongest(f, x, y, eps=eps, norm=norm, targets=2, generator=seeded(), **budget),
            strongest_latent(f, space, y, targets=2, generator=seeded(), **budget),
        ),
    ]
    for plain, latent in pairs:
        assert torch.equal(plain.success, latent.success)
        torch.testing.assert_close(plain.x, latent.x, atol=1e-7, rtol=0)
        torch.testing.assert_close(plain.value, latent.value, atol=1e-6, rtol=0)
        assert plain.forwards == latent.forwards
    assert 0 < plain.success.sum() < 12, "the case must have both"


def test_a_move_off_the_codes_box_is_not_made():
    w = torch.ones(9, dtype=torch.float64)
    x = torch.full((1, *SHAPE), 0.95, dtype=torch.float64)
    space = pixels_as_latents(x, 0.3, LINF)
    found = strongest_latent(halfspace(w, -9.5), space, torch.tensor([0]), steps=8, generator=seeded())
    torch.testing.assert_close(found.x, torch.ones_like(found.x))
    torch.testing.assert_close(found.value, torch.full_like(found.value, -0.5))


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [apgd, strongest])
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"eps": -0.1}, r"^eps = -0\.1: .*0 or more"),
        ({"eps": math.nan}, r"^eps = nan: .*0 or more"),
        ({"steps": -1}, r"^steps = -1: .*0 or more"),
        ({"restarts": 0}, r"^restarts = 0: .*1 or more"),
        ({"norm": L1}, r"^norm = l1: allowed are linf and l2"),
    ],
)
def test_a_parameter_out_of_range_is_named(attack, wrong, sentence):
    f, x, y = problem()
    with pytest.raises(ValueError, match=sentence):
        attack(f, x, y, **{"eps": 0.1, "generator": seeded(), **wrong})


@pytest.mark.parametrize("attack", [apgd_latent, strongest_latent])
def test_a_parameter_out_of_range_is_named_in_latent_space(attack):
    f, x, y = problem()
    for wrong, sentence in (
        ((-0.1, LINF), r"^eta = -0\.1: .*0 or more"),
        ((math.nan, LINF), r"^eta = nan: .*0 or more"),
        ((0.1, L1), r"^norm = l1: allowed are linf and l2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            attack(f, pixels_as_latents(x, *wrong), y, generator=seeded())
    fleet = Stack([torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 4))] * 2)
    with pytest.raises(ValueError, match=r"^f is a fleet of 2: .*one network"):
        strongest_latent(fleet, pixels_as_latents(x, 0.1, LINF), y, generator=seeded())


def test_a_negative_number_of_targets_is_named():
    f, x, y = problem()
    with pytest.raises(ValueError, match=r"^targets = -1: .*0 or more"):
        strongest(f, x, y, eps=0.1, targets=-1, generator=seeded())


def test_a_fleet_is_refused_by_the_series():
    _, x, y = problem()
    fleet = Stack([torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 4))] * 2)
    with pytest.raises(ValueError, match=r"^f is a fleet of 2: .*one network"):
        strongest(fleet, x, y, eps=0.1, generator=seeded())


@pytest.mark.parametrize("attack", [apgd, strongest])
def test_a_network_that_gives_nan_is_an_error(attack):
    f, x, y = problem()
    with pytest.raises(ValueError, match=r"not finite.*NaN"):
        attack(lambda x: f(x) * math.nan, x, y, eps=0.1, generator=seeded())
