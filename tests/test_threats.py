"""advbook.experiments.threats: linear networks whose worst case is known, traps for one start or another, and sets."""

from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import seeded

from advbook.attacks.norms import L0, L1, L2, LINF, shells
from advbook.attacks.objectives import other_confidence, other_log_confidence
from advbook.experiments import threats
from advbook.experiments.threats import NORMS, TITLES, UNSEEN, Effort, Target, Threat, attacks, probabilities, refined
from advbook.experiments.threats import rejected as least_sure
from advbook.fleet import Fleet, Stack
from advbook.networks import cnn

THREATS = get_args(Threat)
RADII = {"linf": 0.1, "linf_larger": 0.25, "l2": 0.8, "l1": 2.5, "l0": 3.0, "frames": 1.0}
SIDE, IMAGES = 6, 4
FEW = Effort(steps=3, restarts=2, queries=8, longer=2)
WHITE = ("confidence", "error", "stronger")
every_threat = pytest.mark.parametrize("threat", THREATS)


def images(count=IMAGES, colours=1, seed=5, dtype=torch.float32):
    """Some of their pixels are 0 or 1, so that the image box binds."""
    x = torch.rand(count, colours, SIDE, SIDE, generator=seeded(seed), dtype=dtype)
    return (1.2 * x - 0.1).clamp(0, 1)


def curved(colours=1, classes=3, members=2):
    """Small networks that are not linear."""

    def one(seed):
        made = cnn(classes, (4, 4), side=SIDE, colours=colours, generator=seeded(seed)).eval()
        for p in made.parameters():
            p.data.mul_(2)
        return made

    return Stack([one(seed) for seed in range(members)]).eval()


def target(f, x, y=None, draft=None):
    return Target(f, draft, x, torch.arange(len(x)) % 2 if y is None else y)


def run(where, threat, effort=FEW, *, radius=None, seed=3, **options):
    references = images(20, where.x.shape[1], seed=77).to(where.x)
    radius = RADII[threat] if radius is None else radius
    return list(attacks(where, threat, radius, effort, references, seed=seed, label="", **options))


@cache
def found_by_all(threat, seed=3):
    """What all attacks find on three images, once for all tests."""
    return run(target(curved(), images(3)), threat, seed=seed)


def check_set(x, clean, threat, radius):
    """Every image [..., B, C, H, W] lies in the box, and in the ball around the clean one or on its frame."""
    assert x.isfinite().all()
    assert x.min() >= 0
    assert x.max() <= 1
    moved = (x.double() - clean.double()).flatten(0, -4)
    if threat == "frames":
        w = int(radius)
        assert (moved[:, :, w:-w, w:-w] == 0).all()
    else:
        assert NORMS[threat].size(moved).max() <= radius * (1 + 1e-5)


# --- where the images lie -------------------------------------------------------------------------------------------


@every_threat
@pytest.mark.parametrize("colours", [1, 3])
def test_every_attack_stays_in_its_set_and_gives_images_of_every_restart_and_member(threat, colours):
    x = images(3, colours)
    found = found_by_all(threat) if colours == 1 else run(target(curved(3), x), threat)
    for one in found:
        assert one.x.shape[1:] == (2, *x.shape)
        check_set(one.x, x, threat, RADII[threat])
        assert one.forwards > 0
    far = max(float((one.x - x).abs().amax()) for one in found)
    assert far > 0.05, "and it uses the set"


def test_a_frame_is_as_wide_as_it_should_be():
    where = target(curved(), images())
    for width in (1.0, 2.0):
        for one in run(where, "frames", radius=width, only=("confidence",)):
            moved = (one.x != where.x).flatten(0, 3).any(0)
            ring = torch.ones(SIDE, SIDE, dtype=torch.bool)
            ring[int(width) : -int(width), int(width) : -int(width)] = False
            assert torch.equal(moved, ring)


# --- the groups -----------------------------------------------------------------------------------------------------

GRADIENT = [
    ("confidence", "confidence, from the image"),
    ("confidence", "confidence, random starts"),
    ("error", "cross-entropy"),
]
LONGER = [("stronger", "confidence, longer"), ("stronger", "cross-entropy, longer")]
BLACK = {
    "linf": ["random points", "geometry", "square", "simple", "query-limited"],
    "l2": ["random points", "geometry", "square"],
    "l1": ["random points", "geometry"],
    "l0": ["random points", "geometry", "corner search"],
    "frames": [],
}


@every_threat
def test_the_groups_hold_the_attacks_of_the_threat_model(threat):
    kind = "linf" if threat == "linf_larger" else threat
    expected = [one for one in GRADIENT if kind != "frames" or "image" not in one[1]]
    expected += [("black box", name) for name in BLACK[kind]] + LONGER
    expected += [("stronger", "Auto-PGD")] if kind in ("linf", "l2") else []
    assert [(one.group, one.name) for one in found_by_all(threat)] == expected


@every_threat
def test_restarts_and_forwards_are_those_of_the_effort(threat):
    steps, restarts, longer = 3, 2, 4
    found = {one.name: one for one in run(target(curved(), images(2)), threat, Effort(steps, restarts, 8, longer))}
    expected = {
        "confidence, from the image": (1, steps + 1),
        "confidence, random starts": (restarts, restarts * (steps + 1)),
        "cross-entropy": (restarts, restarts * (steps + 1)),
        "confidence, longer": (longer * restarts, longer * restarts * (longer * steps + 1)),
        "cross-entropy, longer": (longer * restarts, longer * restarts * (longer * steps + 1)),
        "random points": (1, 8),
        "geometry": (1, 8),
        "square": (1, 8),
        "simple": (1, 8),
    }
    for name, (runs, forwards) in expected.items():
        if name in found:
            assert (len(found[name].x), found[name].forwards) == (runs, forwards), name


def test_the_geometry_attack_takes_no_more_queries_than_there_are_images():
    where = target(linear(dtype=torch.float32), images(2))
    (found,) = [one for one in run(where, "l1", Effort(1, 1, 500, 1), only=("black box",)) if one.name == "geometry"]
    assert found.forwards == 1 + 20


@every_threat
def test_a_group_alone_finds_what_it_finds_among_all(threat):
    where, everything = target(curved(), images(3)), found_by_all(threat)
    for only in (("confidence", "error"), ("black box",), ()):
        some = run(where, threat, only=only)
        expected = [one for one in everything if one.group in only]
        assert [one.name for one in some] == [one.name for one in expected]
        assert all(torch.equal(one.x, other.x) for one, other in zip(some, expected, strict=True))


@every_threat
def test_a_seed_decides_the_images_and_another_one_changes_them(threat):
    one, other = found_by_all(threat), found_by_all(threat, 4)
    torch.manual_seed(99)
    again = found_by_all.__wrapped__(threat)
    assert all(torch.equal(a.x, b.x) for a, b in zip(one, again, strict=True))
    changed = {a.name for a, b in zip(one, other, strict=True) if not torch.equal(a.x, b.x)}
    never = {"confidence, from the image"}  # nothing is drawn there
    often = {a.name for a in one if a.group != "black box"} - never  # a few queries may all fail
    assert often <= changed
    assert not changed & never


def test_every_threat_model_has_a_title_and_all_but_one_are_unseen():
    assert set(TITLES) == {*THREATS, "clean", "distal", "corruptions"}
    assert set(UNSEEN) == {*THREATS} - {"linf"}
    assert NORMS == {"linf": LINF, "linf_larger": LINF, "l2": L2, "l1": L1, "l0": L0}


# --- linear networks ------------------------------------------------------------------------------------------------


def linear(members=2, *, heavy=6, dtype=torch.float64):
    """Two classes, class 1 with logit w x + b: a few weights are large, in other pixels for every member."""
    made = []
    for seed in range(members):
        w = 0.02 * torch.randn(SIDE * SIDE, generator=seeded(seed), dtype=torch.float64)
        order = torch.randperm(SIDE * SIDE, generator=seeded(seed + 50))
        w[order[:heavy]] = torch.linspace(1, 2, heavy, dtype=torch.float64)
        w[order[:heavy:2]] *= -1
        module = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)).to(dtype)
        with torch.no_grad():
            module[1].weight.copy_(torch.stack([torch.zeros_like(w), w]))
            module[1].bias.copy_(torch.tensor([0.0, 0.1 * seed]))
        made.append(module)
    return Stack(made).eval()


def gain(w, x, threat, radius):
    """The most that w x grows within the set, written out in numpy: w, x [D] -> a number."""
    room = np.where(w > 0, 1 - x, x)
    size = np.abs(w)
    if threat in ("linf", "linf_larger"):
        return (size * np.minimum(room, radius)).sum()
    if threat == "frames":
        inside = np.zeros((SIDE, SIDE), bool)
        w_in = int(radius)
        inside[w_in:-w_in, w_in:-w_in] = True
        return (size * room)[~inside.ravel()].sum()
    if threat == "l0":
        return np.sort(size * room)[-int(radius) :].sum()
    if threat == "l1":  # the best pixel as far as it goes, then the next one
        left, total = radius, 0.0
        for pixel in np.argsort(-size):
            step = min(room[pixel], left)
            left, total = left - step, total + step * size[pixel]
        return total
    low, high = 0.0, 1e3  # L2: a step along w, clipped to the box
    for _ in range(60):
        t = (low + high) / 2
        low, high = (t, high) if np.linalg.norm(np.minimum(t * size, room)) < radius else (low, t)
    return (size * np.minimum(low * size, room)).sum()


def scores(f, x):
    """The logit of class 1 of every member's images: [R, M, B, C, H, W] -> [R, M, B]."""
    return torch.stack([f(run)[..., 1] - f(run)[..., 0] for run in x])


def worst_scores(f, x, y, threat, radius):
    """Towards the wrong class, the most that the logit of every member can be: [M, B]."""
    clean = scores(f, x.expand(1, f.members, *x.shape))[0]
    rows = []
    for m, module in enumerate(f.unstack()):
        w = module[1].weight[1].detach().double().numpy()
        sides = [1 if label == 0 else -1 for label in y.tolist()]
        gains = [
            gain(side * w, row.flatten().numpy(), threat, radius) for side, row in zip(sides, x.double(), strict=True)
        ]
        rows.append(clean[m].double() * torch.tensor(sides) + torch.tensor(gains))
    return torch.stack(rows), torch.tensor(sides)


@every_threat
def test_on_linear_networks_gradient_attacks_find_the_worst_case_and_no_attack_more(threat):
    x = images(dtype=torch.float64)
    where = target(linear(), x)
    radius = RADII[threat]
    best, sides = worst_scores(where.f, x, where.y, threat, radius)
    clean = scores(where.f, x.expand(1, 2, *x.shape))[0] * sides
    for one in run(where, threat, Effort(steps=25, restarts=1, queries=60, longer=2)):
        reached = (scores(where.f, one.x) * sides - clean) / (best - clean)  # share of the possible gain
        assert reached.max() <= 1 + 1e-6, one.name
        if one.group == "black box":
            assert reached.mean() > 0.05, one.name
            if one.name in ("geometry", "simple", "query-limited", "corner search"):  # these see the image itself
                assert reached.min() > -1e-9, one.name
        else:
            assert reached.min() > (0.95 if threat in ("l1", "l2") else 0.999), one.name


def test_nothing_stops_an_attack_that_has_won():
    """Images that are wrong from the start, and surely: they end at the worst case of all the same."""
    x = images(dtype=torch.float64)
    f = linear()
    right = (scores(f, x.expand(1, 2, *x.shape))[0] > 0).long()
    y = 1 - right[0]
    where = target(f, x, y)
    best, _ = worst_scores(f, x, y, "linf", 0.1)
    for one in run(where, "linf", Effort(steps=20, restarts=1, queries=2, longer=1), only=WHITE):
        assert probabilities(f, one.x)[0, 0, torch.arange(len(x)), right[0]].min() > 0.5
        reached = torch.sigmoid(best)
        found = probabilities(f, one.x)[-1].gather(-1, (1 - y).expand(2, -1)[..., None])[..., 0]
        torch.testing.assert_close(found, reached, atol=1e-3, rtol=0)


def test_one_step_from_the_image_is_a_tenth_of_the_path_in_every_pixel():
    """Momentum lets the first of n steps be a tenth of the path's n-th part: for L-inf 10 / 3 of the radius."""
    x = images(dtype=torch.float64) * 0.2 + 0.4  # away from the box
    for threat in ("linf", "linf_larger"):
        found = run(target(linear(), x), threat, Effort(1, 1, 2, 1), only=("confidence",))[0]
        torch.testing.assert_close((found.x - x).abs(), torch.full_like(found.x, RADII[threat] / 3))
        found = run(target(linear(), x), threat, Effort(2, 1, 2, 1), only=("confidence",))[0]
        half, second = RADII[threat] / 6, RADII[threat] / 6 * 1.9
        torch.testing.assert_close((found.x - x).abs(), torch.full_like(found.x, half + second))


# --- traps ----------------------------------------------------------------------------------------------------------


class Cone(Fleet):
    """Sure of class 1 in a narrow cone that begins at the image and goes along a direction of signs; flat elsewhere."""

    members = 1

    def __init__(self, x):
        self.x = x
        self.signs = torch.where(torch.rand(x.shape[1:], generator=seeded(8)) < 0.5, -1.0, 1.0).to(x)

    def __call__(self, x):
        u = x - self.x[: x.shape[1]]
        along = (u * self.signs).flatten(2).mean(2)
        aside = (u - along[..., None, None, None] * self.signs).abs().flatten(2).amax(2)
        height = torch.relu(0.1 + along - 200 * torch.relu(aside - 1e-6))
        return torch.stack([torch.zeros_like(height), 40 * height - 8], -1)


class Crater(Cone):
    """Flat at the image and around it: class 1 grows with the distance from there."""

    def __call__(self, x):
        far = torch.relu((x - self.x[: x.shape[1]]).abs().flatten(2).mean(2) - 0.01)
        return torch.stack([torch.zeros_like(far), 200 * far - 8], -1)


def trapped(kind):
    """The largest confidence that every attack finds on one image."""
    x = torch.full((1, 1, SIDE, SIDE), 0.5, dtype=torch.float64)
    where = target(kind(x), x, torch.zeros(1, dtype=torch.long))
    found = run(where, "linf", Effort(30, 3, 20, 2), only=WHITE, radius=0.3)
    return where, {one.name: float(probabilities(where.f, one.x)[..., 1].max()) for one in found}, found


def test_only_a_start_at_the_image_finds_a_narrow_cone():
    where, sure, found = trapped(Cone)
    assert sure["confidence, from the image"] > 0.99
    assert max(sure["confidence, random starts"], sure["cross-entropy"], sure["Auto-PGD"]) < 0.05
    worst = refined(where, "linf", 0.3, FEW, found[0].x[0], label="")
    assert probabilities(where.f, worst.x)[..., 1].min() > 0.99


def test_only_a_start_elsewhere_leaves_a_flat_place():
    _, sure, _ = trapped(Crater)
    assert sure["confidence, from the image"] < 0.01
    assert min(sure["confidence, random starts"], sure["cross-entropy"], sure["Auto-PGD"]) > 0.99


class Blind(Fleet):
    """A fleet that takes no images of which somebody wants a gradient."""

    def __init__(self, f):
        self.f, self.members = f, f.members

    def __call__(self, x):
        assert not x.requires_grad, "a gradient is wanted"
        return self.f(x)


@every_threat
def test_black_box_attacks_take_no_gradient(threat):
    where = target(Blind(curved()), images(2))
    assert len(run(where, threat, only=("black box",))) == len(BLACK["linf" if "linf" in threat else threat])
    for only in WHITE:
        with pytest.raises(AssertionError, match="a gradient is wanted"):
            run(where, threat, only=(only,))


def test_a_draft_leads_and_the_fleet_judges():
    """A draft that is the fleet changes nothing; one that points elsewhere spoils the attack."""
    f, x = linear(dtype=torch.float32), images()
    plain, same, wrong = (
        run(target(f, x, draft=draft), "linf", only=("confidence",)) for draft in (None, f, Opposite(f))
    )
    for one, other, spoilt in zip(plain, same, wrong, strict=True):
        assert torch.equal(one.x, other.x)
        assert other_mean(f, spoilt.x, x) < other_mean(f, one.x, x)


class Opposite(Blind):
    def __call__(self, x):
        return -self.f(x)


def other_mean(f, x, like):
    y = torch.arange(len(like)) % 2
    return float(torch.stack([other_confidence(own, y) for run in x for own in f(run)]).detach().mean())


# --- from the worst -------------------------------------------------------------------------------------------------


def wrong_confidence(f, x, y):
    """log of the largest wrong confidence: [M, B, C, H, W] -> [M, B]."""
    return torch.stack([other_log_confidence(own, y) for own in f(x)]).detach()


@every_threat
@settings(max_examples=4)
@given(seed=st.integers(0, 1000), colours=st.sampled_from([1, 3]))
def test_what_is_refined_is_never_worse_and_stays_in_the_set(threat, seed, colours):
    x, f, radius = images(3, colours, seed=seed), curved(colours), RADII[threat]
    where = target(f, x)
    if threat == "frames":
        start = images(2 * len(x), colours, seed=seed + 1).view(2, *x.shape).clone()
        start[..., 1:-1, 1:-1] = x[..., 1:-1, 1:-1]
    else:
        drawn = [shells(NORMS[threat], 0.99 * radius)(x, seeded(seed + m)) for m in range(2)]
        start = (x + torch.stack(drawn)).clamp(0, 1)
    found = refined(where, threat, radius, Effort(2, 5, 1, 2), start, label="")
    assert found.group == "stronger"
    assert found.x.shape == (1, 2, *x.shape)
    assert found.forwards == 2 * 2 + 1
    check_set(found.x, x, threat, radius)
    before, after = (wrong_confidence(f, own, where.y) for own in (start, found.x[0]))
    assert (after >= before - 1e-4).all()
    assert (after > before + 1e-4).any()


@every_threat
def test_refined_goes_on_from_every_members_own_images(threat):
    """With a path that leads nowhere it gives back what it was given."""
    where = target(curved(), images(3))
    given_ = run(where, threat, only=("confidence",))[-1].x[0]
    flat = where._replace(f=Flat(where.f))
    found = refined(flat, threat, RADII[threat], FEW, given_, label="")
    torch.testing.assert_close(found.x[0], given_, atol=1e-5, rtol=0)
    assert not torch.allclose(given_[0], given_[1])


class Flat(Blind):
    """The same answer everywhere, with gradients of zero."""

    def __call__(self, x):
        return 0 * self.f(x)


# --- made to reject -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.05, 0.2])
def test_rejected_images_of_linear_networks_are_as_unsure_as_possible(radius):
    """The score comes as near to zero as the ball lets it."""
    x, f = images(12, dtype=torch.float64), linear()
    where = target(f, x)
    found = least_sure(where, radius, Effort(60, 2, 1, 1), seed=1, label="")
    assert found.shape == (2, 2, *x.shape)
    check_set(found, x, "linf", radius)
    clean = scores(f, x.expand(1, 2, *x.shape))[0]
    toward = [worst_scores(f, x, torch.full((12,), label), "linf", radius)[0] for label in (0, 1)]
    away = torch.where(clean > 0, toward[1], toward[0])  # how far it can go against its own sign
    lowest = torch.where(away > 0, 0.5, torch.sigmoid(-away))
    sure = probabilities(f, found).amax(-1)
    assert (sure.amin(0) >= lowest - 1e-6).all()
    torch.testing.assert_close(sure.amin(0), lowest, atol=0.03, rtol=0)
    assert (lowest < torch.sigmoid(clean.abs()) - 0.05).any()


def test_rejected_lowers_the_largest_confidence_whatever_the_class_and_the_label():
    x, f = images(8), curved()
    clean = probabilities(f, x).amax(-1)
    one, again, other = (least_sure(target(f, x), 0.2, FEW, seed=seed, label="") for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    lowest = probabilities(f, one).amax(-1).amin(0)
    able = clean > 0.5  # below, a network may be as unsure as it can be
    assert able.double().mean() > 0.5
    assert (lowest < clean)[able].all()
    labels = [target(f, x, torch.full((8,), label)) for label in (0, 1)]
    assert torch.equal(*(least_sure(where, 0.2, FEW, seed=1, label="") for where in labels))


# --- probabilities --------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(count=st.integers(1, 7), runs=st.integers(1, 3), batch=st.integers(1, 9))
def test_probabilities_are_those_of_plain_calls_for_shared_and_own_images(count, runs, batch):
    f, members = curved(members=3), curved(members=3).unstack()
    shared, own = images(count), images(runs * 3 * count).view(runs, 3, count, 1, SIDE, SIDE)
    expected = torch.stack([member.eval()(shared).softmax(1) for member in members]).detach()
    found = probabilities(f, shared, batch=batch)
    assert found.shape == (3, count, 3)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    found = probabilities(f, own, batch=batch)
    assert not found.requires_grad
    for r in range(runs):
        for m, member in enumerate(members):
            torch.testing.assert_close(found[r, m], member.eval()(own[r, m]).softmax(1).detach(), atol=1e-6, rtol=0)


def test_probabilities_show_no_more_than_a_batch_at_once():
    seen = []

    class Spy(Blind):
        def __call__(self, x):
            seen.append(x.shape[1])
            return self.f(x)

    probabilities(Spy(curved()), images(10), batch=4)
    assert seen == [4, 4, 2]


def test_probabilities_that_are_not_finite_are_an_error():
    x = images(3)
    x[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        probabilities(curved(), x)


def test_the_length_of_a_path_does_not_depend_on_the_number_of_steps():
    """As published, 1000 steps of .001 for an L-inf radius of .3; L0 takes its published rate at any number."""
    u = torch.zeros(1, 4)
    for threat, rates in (("linf", (10 / 3, 0.3)), ("l2", (10.0, 2.0)), ("l1", (84.0, 12.0)), ("frames", (10.0, 1))):
        path, radius = rates
        for steps in (10, 1000):
            assert threats._rule(threat, radius, steps, 1.1).start(u)[-1].item() == pytest.approx(path * radius / steps)
    assert threats._rule("l0", 10, 7, 1.1).start(u)[-1].item() == 250
