"""advbook.attacks.carlini_wagner: closed forms, scipy, torch's own Adam, the search, what is refused."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from advbook.attacks.carlini_wagner import carlini_wagner, carlini_wagner_fixed
from advbook.attacks.engine import Counter
from advbook.attacks.objectives import margin
from advbook.fleet import Stack

SHAPE = (1, 3, 3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(classes, seed=0):
    w = torch.randn(9, classes, generator=seeded(seed), dtype=torch.float64)
    return w, lambda x: (x.flatten(1) - 0.5) @ w.to(x.dtype)


def curved(seed=0, classes=4, gain=4.0):
    """A small smooth classifier; float64 inside, so that batches hardly change a bit."""
    random = seeded(seed)
    first = gain * torch.randn(9, 8, generator=random, dtype=torch.float64) / 3
    second = gain * torch.randn(8, classes, generator=random, dtype=torch.float64) / 3
    return lambda x: ((x.double().flatten(1) - 0.5) @ first).tanh().matmul(second).to(x.dtype)


def uniform(images, seed=0, dtype=torch.float64):
    return torch.rand(images, *SHAPE, generator=seeded(seed), dtype=dtype)


def lengths(attack, x):
    return (attack.x[0].double() - x.double()).flatten(1).norm(dim=1)


# --- the smallest perturbation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
def test_on_a_linear_network_it_finds_the_distance_to_a_border(classes):
    """Near grey no pixel meets its bound: to class k it is (z_y - z_k) / |w_y - w_k| far. Wrong is a union of half
    spaces, so that with more than two classes the descent may end at the border of a class that is not the nearest.
    """
    w, f = linear(classes)
    x = 0.5 + 0.2 * (uniform(8) - 0.5)
    logits = f(x)
    y = logits.argmax(1)
    apart = (w[:, y][:, :, None] - w[:, None]).norm(dim=0)  # [B, K]
    border = ((logits.amax(1, keepdim=True) - logits) / apart).nan_to_num(torch.inf)
    attack = carlini_wagner(f, x, y, lr=0.005, steps=150)
    assert attack.success.all()
    assert (lengths(attack, x) >= border.amin(1) * (1 - 1e-9)).all()
    reached = f(attack.x[0]).argmax(1, keepdim=True)
    assert (lengths(attack, x) <= 1.01 * border.gather(1, reached)[:, 0]).all()
    assert (lengths(attack, x) <= 1.1 * border.amin(1)).all()


def test_a_border_nearer_than_adams_first_step_is_found_too():
    """That step crosses the border whatever c is: were this a win, the search would lower c for ever."""
    w, f = linear(2)
    x = torch.full((3, *SHAPE), 0.5, dtype=torch.float64)
    way = (w[:, 1] - w[:, 0]).view(SHAPE) / (w[:, 1] - w[:, 0]).norm()
    far = torch.tensor([0.003, 0.006, 0.009], dtype=torch.float64)
    x = x - far[:, None, None, None] * way
    attack = carlini_wagner(f, x, torch.zeros(3).long(), steps=100, searches=12)
    assert far.max() < 0.01 / 2 * 3, "lr times the slope of the tanh, in nine pixels"
    assert (lengths(attack, x) <= 1.05 * far).all()


def test_where_pixels_meet_their_bounds_it_finds_what_scipy_finds():
    w, f = linear(2, seed=1)
    x, gap = uniform(12, seed=2), (w[:, 1] - w[:, 0]).numpy()
    x[:, 0, 0, 0] = 0  # some at a bound from the start
    least, at_bound = [], 0
    for row in x.flatten(1).numpy():
        toward = gap if (row - 0.5) @ gap < 0 else -gap
        found = minimize(
            lambda v, row=row: ((v - row) ** 2).sum(), row, jac=lambda v, row=row: 2 * (v - row),
            bounds=[(0, 1)] * 9, method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
            constraints={"type": "ineq", "fun": lambda v, t=toward: (v - 0.5) @ t, "jac": lambda v, t=toward: t},
        )  # fmt: skip
        assert found.success
        least.append(math.sqrt(found.fun))
        at_bound += ((np.minimum(found.x, 1 - found.x) < 1e-9) & (found.x != row)).any()
    assert at_bound >= 4, "the box acts"
    attack = carlini_wagner(f, x, f(x).argmax(1), steps=200)
    assert attack.success.all()
    ratio = lengths(attack, x).numpy() / least
    assert (ratio >= 1 - 1e-6).all()
    assert (ratio <= 1.01).all()


def test_a_larger_kappa_gives_a_larger_margin_for_a_longer_way():
    f, x = curved(), uniform(6, seed=3)
    runs = [carlini_wagner(f, x, f(x).argmax(1), kappa=kappa, steps=100, searches=6) for kappa in (0.0, 0.3, 1.0)]
    for kappa, run in zip((0.0, 0.3, 1.0), runs, strict=True):
        assert run.success.all()
        assert (run.value >= kappa).all()
        assert (run.value <= kappa + 0.2).all()
    for small, large in pairwise(runs):
        assert (lengths(large, x) > lengths(small, x)).all()


def test_a_kappa_that_covers_the_rounding_of_all_pixels_survives_it():
    w, f = linear(2, seed=3)
    x = uniform(10, seed=12)
    y = f(x).argmax(1)
    kappa = (w[:, 1] - w[:, 0]).abs().sum().item() / 510
    bare, safe = (carlini_wagner(f, x, y, kappa=k, steps=100, searches=7).x[0] for k in (0.0, kappa))
    assert (f((255 * safe).round() / 255).argmax(1) != y).all()
    assert (f((255 * bare).round() / 255).argmax(1) == y).any(), "without it, rounding undoes some"


def test_more_searches_never_find_less():
    f, x = curved(1), uniform(8, seed=4)
    runs = [carlini_wagner(f, x, f(x).argmax(1), steps=60, searches=searches) for searches in range(1, 8)]
    distances = [torch.where(run.success[0], lengths(run, x), torch.inf) for run in runs]
    for fewer, more in pairwise(distances):
        assert (more <= fewer).all()
    assert not runs[0].success.any(), "the first constant is too small"
    assert runs[-1].success.all()


def test_an_image_leaves_when_its_constant_is_known():
    """Each search moves the bracket up tenfold or halves it: known to a tenth, an image takes no more steps."""
    _, f = linear(2)
    x = uniform(6, seed=5)
    few, many = (carlini_wagner(f, x, f(x).argmax(1), steps=40, searches=n, lr=0.05) for n in (14, 40))
    assert torch.equal(few.x, many.x)
    assert (many.steps < 40 * 14).all()
    assert (many.steps >= 40 * 5).all()
    assert many.forwards == pytest.approx(1 + 41 / 40 * many.steps.double().mean().item())


# --- what is done, written plainly ------------------------------------------------------------------------------


def plain_search(f, x, y, lr, steps, searches, constant):
    """Carlini and Wagner's attack on one image, with torch's own Adam."""
    low, high, c, nearest = 0.0, math.inf, constant, (math.inf, x)
    for _ in range(searches):
        w = torch.nn.Parameter(((2 * x - 1) * (1 - 1e-6)).atanh())
        optimizer, late = torch.optim.Adam([w], lr=lr), False
        for step in range(steps + 1):
            image = (w.tanh() + 1) / 2
            logits = f(image)[0]
            gap = logits[y] - logits[torch.arange(len(logits)) != y].max()
            distance = (image - x).square().sum()
            if gap < 0:
                late = late or step >= steps / 2
                nearest = min(nearest, (distance.item(), image.detach()), key=lambda pair: pair[0])
            optimizer.zero_grad()
            (distance + c * gap.clamp_min(0)).backward()
            optimizer.step()
        low, high = (low, c) if late else (c, high)
        c = 10 * c if high == math.inf else (low + high) / 2
    return nearest[1]


def test_it_is_the_plain_search():
    f, x = curved(3), uniform(4, seed=6)
    y = f(x).argmax(1)
    attack = carlini_wagner(f, x, y, lr=0.02, steps=40, searches=6, constant=0.01)
    assert attack.success.all()
    for b in range(4):
        alone = plain_search(f, x[b : b + 1], y[b], 0.02, 40, 6, 0.01)
        torch.testing.assert_close(attack.x[0, b : b + 1], alone, atol=1e-9, rtol=0)


def plain_fixed(f, x, y):
    """The form of Stutz et al. on one image, with torch's own Adam: the first example and the nearest of all."""
    w = torch.nn.Parameter(((2 * x - 1) * (1 - 1e-5)).atanh())
    optimizer, found = torch.optim.Adam([w], lr=0.005), []
    for _ in range(121):
        image = (w.tanh() + 1) / 2
        logits = f(image)[0]
        gap = logits[y] - logits[torch.arange(len(logits)) != y].max()
        length = (image - x).square().sum().sqrt()
        if gap < 0:
            found.append((length.item(), image.detach()))
        optimizer.zero_grad()
        (length + gap.clamp_min(-3)).backward()
        optimizer.step()
    return (found[0], min(found, key=lambda pair: pair[0])) if found else ((math.inf, x), (math.inf, x))


def test_the_fixed_form_is_the_plain_loop():
    f, x = curved(4, gain=1.0), uniform(8, seed=7)
    y = f(x).argmax(1)
    attack = carlini_wagner_fixed(f, x, y)
    assert 0 < attack.success.double().mean() < 1
    assert (attack.steps == 120).all()
    for b in range(8):
        (first, _), (_, nearest) = plain_fixed(f, x[b : b + 1], y[b])
        torch.testing.assert_close(attack.x[0, b : b + 1], nearest, atol=1e-9, rtol=0)
        assert lengths(attack, x)[b] <= first + 1e-9


@pytest.mark.parametrize("attack", [carlini_wagner, carlini_wagner_fixed])
def test_a_constant_added_to_all_logits_changes_nothing(attack):
    """With 0 in the place of the true logit, as in the released code, logits that are all negative would."""
    f, x = curved(6), uniform(4, seed=9)
    plain, shifted = (attack(g, x, f(x).argmax(1), steps=60) for g in (f, lambda x: f(x) - 64))
    assert plain.success.any()
    assert torch.equal(plain.success, shifted.success)
    torch.testing.assert_close(plain.x, shifted.x, atol=1e-7, rtol=0)


# --- what always holds ------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    attack=st.sampled_from([carlini_wagner, carlini_wagner_fixed]),
    images=st.integers(1, 4),
    classes=st.sampled_from([1, 2, 5]),
    steps=st.integers(0, 12),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_what_it_returns_is_true_of_the_examples(attack, images, classes, steps, dtype, seed):
    f = curved(seed, classes)
    x = (uniform(images, seed + 1, dtype) * 1.4 - 0.2).clamp(0, 1)
    y = f(x).argmax(1)
    y[::3] = (y[::3] + 1) % classes
    seen = Counter(f)
    found = attack(seen, x, y, steps=steps, lr=0.1)
    assert found.x.shape == (1, *x.shape)
    assert found.x.dtype == dtype
    assert found.success.shape == found.value.shape == found.steps.shape == (1, images)
    assert found.x.min() >= 0
    assert found.x.max() <= 1
    torch.testing.assert_close(found.value[0], margin(f(found.x[0]), y))
    for example, clean, won, label in zip(found.x[0], x, found.success[0], y, strict=True):
        assert won == (f(example[None])[0].argmax() != label)
        assert won or torch.equal(example, clean)
    wrong = f(x).argmax(1) != y
    assert torch.equal(found.x[0][wrong], x[wrong])
    assert found.success[0][wrong].all()
    assert not found.steps[0][wrong].any()
    assert found.forwards == pytest.approx(seen.samples / images)


@pytest.mark.parametrize("attack", [carlini_wagner, carlini_wagner_fixed])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_from_black_grey_and_white_there_is_a_way(attack, level):
    """At 0 and 1 the tanh has no finite w, but for the guard; in the middle delta is 0, where |delta| has no slope."""
    x, y, way = torch.full((2, *SHAPE), level), torch.zeros(2).long(), -1 if level == 1 else 1

    def f(x):
        return 40 * torch.stack([torch.zeros(len(x)), way * (x - level).flatten(1).mean(1) - 1e-4], 1)

    assert attack(f, x, y, lr=0.1, steps=60).success.all()
    assert not attack(f, x, y, steps=0).success.any()


def test_kappa_asks_for_more_than_an_error():
    """A network that errs, but not by kappa: the image is searched, and counts only when it has the margin."""
    _, f = linear(2)
    x = uniform(3, seed=11)
    y = 1 - f(x).argmax(1)
    kappa = margin(f(x), y).max().item() + 0.5
    assert torch.equal(carlini_wagner(f, x, y).x[0], x)
    found = carlini_wagner(f, x, y, kappa=kappa, steps=100, lr=0.05)
    assert (found.steps > 0).all()
    assert (found.value[found.success] >= kappa).all()
    assert found.success.any()


def test_what_cannot_be_fooled_stays_as_it_is():
    x = uniform(3)
    found = carlini_wagner(lambda x: torch.stack([x.sum((1, 2, 3)) + 1, -x.sum((1, 2, 3))], 1), x,
                           torch.zeros(3).long(), steps=10, searches=4)  # fmt: skip
    assert not found.success.any()
    assert torch.equal(found.x[0], x)
    assert (found.steps == 40).all()
    assert found.forwards == 1 + 4 * 11


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "wrong", "sentence"),
    [
        (carlini_wagner, {"kappa": -1.0}, r"^kappa = -1\.0: .*0 or more"),
        (carlini_wagner, {"searches": 0}, r"^searches = 0: .*1 or more"),
        (carlini_wagner, {"constant": 0.0}, r"^constant = 0\.0: .*more than 0"),
        (carlini_wagner, {"constant": math.nan}, r"^constant = nan: .*more than 0"),
        (carlini_wagner, {"lr": -0.1}, r"^lr = -0\.1: .*0 or more"),
        (carlini_wagner_fixed, {"lr": math.nan}, r"^lr = nan: .*0 or more"),
        (carlini_wagner_fixed, {"steps": -2}, r"^steps = -2: .*0 or more"),
    ],
)
def test_a_parameter_out_of_range_is_named(attack, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        attack(curved(), uniform(2), torch.zeros(2).long(), **wrong)


@pytest.mark.parametrize("attack", [carlini_wagner, carlini_wagner_fixed])
def test_a_network_that_gives_nan_is_an_error(attack):
    f, x = curved(), uniform(3)
    y, calls = f(x).argmax(1), []

    def late(x):
        calls.append(1)
        return f(x) * (math.nan if len(calls) > 5 else 1)

    for broken in (lambda x: f(x) * math.nan, late):
        with pytest.raises(ValueError, match=r"not finite.*NaN"):
            attack(broken, x, y)


@pytest.mark.parametrize("attack", [carlini_wagner, carlini_wagner_fixed])
def test_a_fleet_is_refused(attack):
    fleet = Stack([torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 4))] * 2)
    with pytest.raises(ValueError, match=r"^f is a fleet of 2: .*one network"):
        attack(fleet, uniform(2), torch.zeros(2).long())
