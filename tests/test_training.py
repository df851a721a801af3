"""advbook.training: the schedules' numbers, the order of the batches, seeds, members alone and together, perturbed
parts of a batch, confidence-calibrated training and TRADES against plain loops, and that it learns.
"""

import copy
import math
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_kernels import Devices
from torch import nn

from advbook import fonts, training
from advbook.attacks.norms import L1, L2, LINF, gaussian, near, shells
from advbook.attacks.pgd import pgd
from advbook.attacks.steps import sign
from advbook.fleet import Stack
from advbook.manifolds import transform
from advbook.networks import cnn, predict
from advbook.training import (
    Adversary,
    Ascent,
    Backtracking,
    Descent,
    Divergence,
    Perturbed,
    Schedule,
    calibrated,
    divergence,
    exponential,
    linear,
    power,
    train,
    train_trades,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(network, x, y, schedule, *, generator):
    """Normal training of one network: a fleet of one."""
    (trained,) = train(Stack([network]), x, y, schedule, generators=[generator]).unstack()
    return trained


class Kept(list):
    """A list that a copy of its owner shares."""

    def __deepcopy__(self, memo):
        return self


SEEN = Kept()


class Spy(nn.Module):
    """A network that keeps what it was shown; an image's first pixel is its row."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 2)
        self.seen = SEEN

    def forward(self, x):
        self.seen.append(x.flatten().long().tolist())
        return self.linear(x.flatten(1))


def shown(n, batch, epochs, seed=0):
    """The rows in every batch of a training run on n rows."""
    SEEN.clear()
    normal(Spy(), torch.arange(n).float().view(n, 1, 1, 1), torch.zeros(n).long(),
           Schedule(batch=batch, epochs=epochs), generator=seeded(seed))  # fmt: skip
    return list(SEEN)


def separable(n=200):
    """Two classes of images: a bright left half, a bright right half, under noise."""
    x, y = 0.5 * torch.rand(n, 1, 28, 28, generator=seeded(8)), torch.arange(n) % 2
    x[y == 0, :, :, :14] += 0.3
    x[y == 1, :, :, 14:] += 0.3
    return x, y


# --- the schedule ---------------------------------------------------------------------------------------------


def test_the_rate_is_the_papers():
    schedule = Schedule()
    assert schedule.rate(0) == pytest.approx(0.01 * 0.95)
    assert schedule.rate(2.5) == pytest.approx(0.01 * 0.95**3.5)
    assert schedule.rate(19.99) == pytest.approx(0.01 * 0.95**20.99)
    assert schedule.rate(1e6) == 1e-7, "the floor"


def test_the_schedule_of_the_papers_is_the_default():
    assert Schedule().model_dump() == {"epochs": 20, "batch": 100, "lr": 0.01, "decay": 0.95, "weight_decay": 1e-4}


@pytest.mark.parametrize(
    "wrong", [{"epochs": -1}, {"batch": 1}, {"lr": 0}, {"decay": 1.5}, {"weight_decay": -1}, {"epoch": 3}]
)
def test_a_schedule_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Schedule(**wrong)


def test_the_schedule_of_calibrated_training_is_the_published_one():
    assert Descent().model_dump() == {
        "epochs": 20, "batch": 100, "lr": 0.1, "decay": 0.95, "weight_decay": 0.0, "momentum": 0.9,
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"momentum": -0.1}, {"lr": 0}, {"weight_decay": -1}, {"beta": 3}])
def test_a_descent_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Descent(**wrong)


@pytest.mark.parametrize(("lr", "decay"), [(0.1, 0.93), (0.1, 0.95), (0.075, 0.95)])
def test_the_rate_of_an_epoch_is_that_of_torchs_exponential_schedule(lr, decay):
    """Stepped once an epoch: the first epoch has the full rate, and all batches of an epoch have the same."""
    schedule = Descent(lr=lr, decay=decay)
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    theirs = torch.optim.lr_scheduler.ExponentialLR(sgd, decay)
    for epoch in range(200):
        rates = [schedule.rate(epoch + part) for part in (0, 1 / 3, 2 / 3, 599 / 600)]
        assert rates == pytest.approx([sgd.param_groups[0]["lr"]] * 4, rel=1e-9)
        sgd.step()
        theirs.step()


# --- batches --------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(n=st.integers(1, 23), batch=st.integers(2, 9), epochs=st.integers(1, 3))
def test_an_epoch_shows_every_row_and_fills_its_last_batch_from_its_beginning(n, batch, epochs):
    seen, batches = shown(n, batch, epochs), math.ceil(n / batch)
    assert len(seen) == epochs * batches
    for epoch in range(epochs):
        order = list(chain.from_iterable(seen[epoch * batches : (epoch + 1) * batches]))
        assert len(order) == batches * batch
        assert sorted(order[:n]) == list(range(n))
        assert all(row == order[index % n] for index, row in enumerate(order))


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = shown(50, 50, 2)
    assert first != second
    assert shown(50, 50, 1, seed=1) != [first]
    assert shown(50, 50, 1, seed=0) == [first]


# --- the result -----------------------------------------------------------------------------------------------


def test_it_is_adam_with_the_papers_betas_decay_and_rate_of_every_batch():
    """The same run once more, written down step by step with the formulas of Adam."""
    x, y = torch.rand(25, 1, 4, 4, generator=seeded(1)), torch.arange(25) % 3
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    expected = copy.deepcopy(network)
    schedule = Schedule(epochs=3, batch=10)
    network = normal(network, x.double(), y, schedule, generator=seeded(2))

    random, weights = seeded(2), list(expected.parameters())
    means, squares = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    clock = 0
    for epoch in range(3):
        order = torch.randperm(25, generator=random)
        order = torch.cat([order, order[:5]])
        for index, rows in enumerate(order.split(10)):
            clock += 1
            slopes = torch.autograd.grad(F.cross_entropy(expected(x[rows].double()), y[rows]), weights)
            with torch.no_grad():
                for weight, slope, mean, square in zip(weights, slopes, means, squares, strict=True):
                    slope = slope + 1e-4 * weight
                    mean.mul_(0.5).add_(0.5 * slope)
                    square.mul_(0.9).add_(0.1 * slope**2)
                    step = mean / (1 - 0.5**clock) / ((square / (1 - 0.9**clock)).sqrt() + 1e-8)
                    weight -= 0.01 * 0.95 ** (epoch + index / 3 + 1) * step
    for weight, wanted in zip(network.parameters(), weights, strict=True):
        torch.testing.assert_close(weight, wanted, atol=1e-9, rtol=1e-9)


class Momentum:
    """SGD with momentum as its formula reads: v <- m v + g, w <- w - lr v."""

    def __init__(self, weights, momentum=0.9, weight_decay=0.0):
        self.weights, self.momentum, self.weight_decay = list(weights), momentum, weight_decay
        self.speeds = [torch.zeros_like(w) for w in self.weights]

    def step(self, loss, lr):
        slopes = torch.autograd.grad(loss, self.weights)
        with torch.no_grad():
            for weight, slope, speed in zip(self.weights, slopes, self.speeds, strict=True):
                speed.mul_(self.momentum).add_(slope + self.weight_decay * weight)
                weight -= lr * speed


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 0.0), (0.5, 0.01), (0.0, 0.0)])
def test_descent_is_momentum_with_one_rate_an_epoch(momentum, weight_decay):
    x, y = torch.rand(25, 1, 4, 4, generator=seeded(1), dtype=torch.float64), torch.arange(25) % 3
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    expected = copy.deepcopy(network)
    schedule = Descent(epochs=3, batch=10, lr=0.3, decay=0.7, momentum=momentum, weight_decay=weight_decay)
    network = normal(network, x, y, schedule, generator=seeded(2))
    random, sgd = seeded(2), Momentum(expected.parameters(), momentum, weight_decay)
    for epoch in range(3):
        order = torch.randperm(25, generator=random)
        for rows in torch.cat([order, order[:5]]).split(10):
            sgd.step(F.cross_entropy(expected(x[rows]), y[rows]), 0.3 * 0.7**epoch)
    for weight, wanted in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(weight, wanted, atol=1e-12, rtol=1e-9)


def run(seed, order=0):
    x, y = separable(60)
    network = cnn(2, (4, 4), generator=seeded(seed))
    return normal(network, x, y, Schedule(epochs=2, batch=20), generator=seeded(order)).state_dict()


def test_a_seed_fixes_every_weight_and_another_seed_changes_them():
    one, again, other_start, other_order = run(1), run(1), run(2), run(1, order=3)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["0.weight"], other_start["0.weight"])
    assert not torch.equal(one["0.weight"], other_order["0.weight"])


def test_it_learns_what_can_be_separated():
    x, y = separable()
    network = cnn(2, generator=seeded())
    assert (predict(network, x).argmax(1) == y).double().mean() < 0.8
    trained = normal(network, x[:150], y[:150], Schedule(epochs=4, batch=50), generator=seeded())
    assert not trained.training
    assert (predict(trained, x[150:]).argmax(1) == y[150:]).all()


def test_zero_epochs_change_nothing():
    network = cnn(2, (4,), generator=seeded())
    before = copy.deepcopy(network.state_dict())
    network = normal(network, *separable(10), Schedule(epochs=0), generator=seeded())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_loss_that_is_not_finite_ends_the_training_in_one_sentence():
    x, y = separable(20)
    x[3, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"^Training diverged in epoch 1: its loss or a weight is not f"):
        normal(cnn(2, (4,), generator=seeded()), x, y, Schedule(epochs=2, batch=20), generator=seeded())


# --- a fleet ----------------------------------------------------------------------------------------------------


def members(seeds, dtype):
    return [cnn(2, (3, 4), side=8, generator=seeded(seed)).to(dtype) for seed in seeds]


def small(dtype, n=20):
    x = torch.rand(n, 1, 8, 8, generator=seeded(8), dtype=dtype)
    return x, (x.flatten(1).mean(1) > x.mean()).long()


PATTERNS = torch.randn(3, 1, 8, 8, generator=seeded(9), dtype=torch.float64)


def bend(z, base):
    """A smooth toy decoder: a base image, changed along three patterns."""
    moved = (z[:, :, None, None, None] * PATTERNS.to(z)).sum(1)
    return torch.sigmoid(torch.logit(base, 0.05) + moved)


def codes(dtype, n=20):
    """Latents in a box, some of them at its bounds."""
    return (2.4 * torch.rand(n, 3, generator=seeded(7), dtype=dtype) - 1.2).clamp(-1, 1)


def box(dtype):
    one = torch.ones(3, dtype=dtype)
    return -one, one


ATTACK = Adversary(steps=3, lr=0.03)


def on_codes(x, adversary, eta=0.4, **options):
    return training.latent(codes(x.dtype, len(x)), bend, (x,), box(x.dtype), eta, adversary, **options)


RECIPES = {
    "normal": lambda x: [],
    "half": lambda x: [training.pixels(x, 0.1, ATTACK)],
    "full": lambda x: [training.pixels(x, 0.1, ATTACK, share=1.0)],
    "combined": lambda x: [on_codes(x, ATTACK, share=0.25), training.pixels(x, 0.1, ATTACK, share=0.25)],
    "random": lambda x: [on_codes(x, None)],
}


def fitted(recipe, seeds, schedule, dtype, vectorized):
    fleet, generators = Stack(members(seeds, dtype), vectorized=vectorized), [seeded(seed) for seed in seeds]
    x, y = small(dtype)
    return train(fleet, x, y, schedule, RECIPES[recipe](x), separate=recipe == "random", generators=generators)


@cache
def alone(recipe, seed, schedule, dtype):
    (network,) = fitted(recipe, (seed,), schedule, dtype, False).unstack()
    return network.state_dict()


@pytest.mark.parametrize("vectorized", [False, True], ids=["one by one", "vectorized"])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("dtype", "epochs", "tolerance"), [(torch.float64, 10, 1e-8), (torch.float32, 1, 1e-5)], ids=["20 steps", "1 step"]
)
def test_a_member_is_the_network_trained_alone(recipe, vectorized, dtype, epochs, tolerance):
    schedule = Schedule(epochs=epochs, batch=10 if epochs > 1 else 20)
    together = fitted(recipe, (1, 2, 3), schedule, dtype, vectorized).unstack()
    for seed, member in zip((1, 2, 3), together, strict=True):
        for name, value in alone(recipe, seed, schedule, dtype).items():
            torch.testing.assert_close(member.state_dict()[name], value, atol=tolerance, rtol=tolerance)
    assert not torch.equal(together[0][0].weight, together[1][0].weight), "the members differ"


def test_a_generator_for_every_member():
    with pytest.raises(ValueError, match=r"^generators: 1 for a fleet of 2; allowed is one a member\.$"):
        train(Stack(members((1, 2), torch.float32)), *small(torch.float32), Schedule(), generators=[seeded()])


def test_no_images_are_refused():
    x, y = small(torch.float32)
    with pytest.raises(ValueError, match=r"^x: no images to train on\.$"):
        train(Stack(members((1,), torch.float32)), x[:0], y[:0], Schedule(), generators=[seeded()])


# --- perturbed parts, against a plain loop ----------------------------------------------------------------------


@dataclass
class Plain:
    """A part of a batch in plain terms: how many rows, image(u, rows), bounds of u, what u is drawn around."""

    count: int
    image: Any
    low: torch.Tensor
    high: torch.Tensor
    around: torch.Tensor
    radius: float
    attacked: bool
    weight: float = 1.0


def plain_pixels(x, count, eps, **options):
    return Plain(count, lambda u, rows: x[rows] + u, -x, 1 - x, x, eps, True, **options)


def plain_codes(x, count, eta, attacked=True, **options):
    z = codes(x.dtype, len(x))
    low, high = box(x.dtype)
    return Plain(count, lambda u, rows: bend(z[rows] + u, x[rows]), low - z, high - z, z, eta, attacked, **options)


def plain_examples(network, part, rows, labels, random):
    """The start drawn around the rows, or the iterate of largest loss that torch's Adam finds from there."""

    def project(u):
        low, high = part.low[rows].clamp(min=-part.radius), part.high[rows].clamp(max=part.radius)
        return torch.minimum(torch.maximum(u, low), high)

    u = project(gaussian(LINF, part.radius)(part.around[rows], random))
    if not part.attacked:
        return part.image(u, rows)
    best, top = u.clone(), torch.full((len(u),), -torch.inf, dtype=u.dtype)
    u.requires_grad_()
    adam = torch.optim.Adam([u], lr=ATTACK.lr, maximize=True)
    network.eval()
    for _ in range(ATTACK.steps + 1):
        loss = F.cross_entropy(network(part.image(u, rows)), labels, reduction="none")
        (u.grad,) = torch.autograd.grad(loss.sum(), u)
        higher = loss > top
        best[higher], top[higher] = u.detach()[higher], loss.detach()[higher]
        adam.step()
        with torch.no_grad():
            u.copy_(project(u))
    network.train()
    return part.image(best, rows)


def plainly(network, x, y, schedule, clean, parts, *, separate, random):
    """One network trained with a loop that a reader would write; all batches are full."""
    network = copy.deepcopy(network).train()
    adam = torch.optim.Adam(network.parameters(), betas=(0.5, 0.9), weight_decay=schedule.weight_decay)
    batches = len(x) // schedule.batch
    for epoch in range(schedule.epochs):
        for index, rows in enumerate(torch.randperm(len(x), generator=random).split(schedule.batch)):
            adam.param_groups[0]["lr"] = schedule.lr * schedule.decay ** (epoch + index / batches + 1)
            own, *others = rows.split([clean, *(part.count for part in parts)])
            given = list(zip(parts, others, strict=True))
            if separate:
                steps = [[(1.0, own, lambda own=own: x[own])]] if clean else []
                steps += [
                    [(1.0, of, lambda p=p, of=of: plain_examples(network, p, of, y[of], random))] for p, of in given
                ]
            else:
                steps = [[(1.0, own, lambda own=own: x[own])] if clean else []]
                steps[0] += [
                    (p.weight, of, lambda p=p, of=of: plain_examples(network, p, of, y[of], random)) for p, of in given
                ]
            for step in steps:
                logits = network(torch.cat([make() for _, _, make in step])).split([len(of) for _, of, _ in step])
                losses = [w * F.cross_entropy(out, y[of]) for (w, of, _), out in zip(step, logits, strict=True)]
                adam.zero_grad()
                (sum(losses) / sum(w for w, _, _ in step)).backward()
                adam.step()
    return network.eval()


MIXES = {
    "a quarter on-manifold, a quarter regular": (
        10, [lambda x: plain_codes(x, 5, 0.4), lambda x: plain_pixels(x, 5, 0.1)],
        lambda x: [on_codes(x, ATTACK, share=0.25), training.pixels(x, 0.1, ATTACK, share=0.25)],
    ),
    "the same with weights": (
        10, [lambda x: plain_codes(x, 5, 0.4, weight=2.0), lambda x: plain_pixels(x, 5, 0.1, weight=0.5)],
        lambda x: [
            on_codes(x, ATTACK, share=0.25, weight=2.0), training.pixels(x, 0.1, ATTACK, share=0.25, weight=0.5),
        ],
    ),
    "no clean images": (
        0, [lambda x: plain_codes(x, 8, 0.4), lambda x: plain_pixels(x, 12, 0.1)],
        lambda x: [on_codes(x, ATTACK, share=0.4), training.pixels(x, 0.1, ATTACK, share=0.6)],
    ),
    "random ones among a few": (
        17, [lambda x: plain_codes(x, 3, 0.4, attacked=False)], lambda x: [on_codes(x, None, share=0.15)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("separate", [False, True], ids=["together", "a step each"])
@pytest.mark.parametrize("kind", MIXES)
def test_a_batch_is_its_clean_images_and_then_its_parts_as_in_a_plain_loop(kind, separate):
    clean, plain, ours = MIXES[kind]
    x, y = small(torch.float64, 40)
    (network,) = members((1,), torch.float64)
    schedule = Schedule(epochs=2, batch=20)
    expected = plainly(
        network, x, y, schedule, clean, [make(x) for make in plain], separate=separate, random=seeded(3)
    ).state_dict()
    fleet = train(Stack([network]), x, y, schedule, ours(x), separate=separate, generators=[seeded(3)])
    assert not fleet.training
    (trained,) = fleet.unstack()
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-9, rtol=1e-7)


def test_together_is_not_a_step_each_and_weights_count():
    x, y = small(torch.float64)

    def weight(separate, **options):
        fleet = Stack(members((1,), torch.float64))
        parts = [on_codes(x, None, **options)]
        return train(fleet, x, y, Schedule(epochs=1, batch=10), parts, separate=separate,
                     generators=[seeded()]).weights["0.weight"]  # fmt: skip

    together = weight(False)
    assert not torch.allclose(together, weight(True), atol=1e-4)
    assert not torch.allclose(together, weight(False, weight=0.2), atol=1e-4)
    assert not torch.allclose(together, weight(False, share=0.2), atol=1e-4)


@dataclass
class Negatives:
    """A space whose images are negatives, whatever u is."""

    x: torch.Tensor

    def image(self, u):
        return 1 - self.x

    def project(self, u):
        return u


def negatives(x, share, weight=1.0):
    return Perturbed(share, x[:, :1, 0, 0], lambda like, random: torch.zeros_like(like),
                     lambda rows: Negatives(x[rows]), weight=weight)  # fmt: skip


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_the_mean_losses_of_the_parts_are_averaged_with_their_weights(weight):
    """The step of one batch with planted examples, against the formula written down."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    x, y = small(torch.float64, 10)
    expected = copy.deepcopy(network)
    fleet, schedule = Stack([network]), Schedule(epochs=1, batch=10, weight_decay=0)
    train(fleet, x, y, schedule, [negatives(x, 0.3, weight)], generators=[seeded(4)])
    order = torch.randperm(10, generator=seeded(4))
    clean, changed = order[:7], order[7:]
    loss = F.cross_entropy(expected(x[clean]), y[clean])
    loss = loss + weight * F.cross_entropy(expected(1 - x[changed]), y[changed])
    slope = torch.autograd.grad(loss / (1 + weight), expected[1].weight)[0]
    step = expected[1].weight.detach() - fleet.weights["1.weight"][0].detach()
    torch.testing.assert_close(step, 0.01 * 0.95 * slope / (slope.abs() + 1e-8), atol=1e-9, rtol=1e-6)


def rows_shown(separate, shares, batch=10, n=20):
    """The rows in every forward of one epoch; those of perturbed parts are shown as negatives."""
    SEEN.clear()
    x = torch.arange(n).float().view(n, 1, 1, 1)
    parts = [negatives(x, share) for share in shares]
    train(Stack([Spy()]), x, torch.zeros(n).long(), Schedule(batch=batch, epochs=1), parts, separate=separate,
          generators=[seeded()])  # fmt: skip
    return list(SEEN)


def test_every_part_has_a_forward_of_its_own_or_all_have_one():
    order = torch.randperm(20, generator=seeded()).tolist()
    expected = []
    for batch in (order[:10], order[10:]):
        expected += [batch[:6], [1 - row for row in batch[6:8]], [1 - row for row in batch[8:]]]
    assert rows_shown(True, [0.2, 0.2]) == expected
    assert rows_shown(False, [0.2, 0.2]) == [[*chain(*expected[:3])], [*chain(*expected[3:])]]


@settings(max_examples=30)
@given(
    batch=st.integers(2, 30),
    shares=st.lists(st.integers(1, 10), min_size=1, max_size=3).map(lambda parts: [part / 30 for part in parts]),
)
def test_a_share_is_so_many_rows_of_a_batch_to_the_nearest_one_and_at_least_one(batch, shares):
    asked = [max(share * batch, 1) for share in shares]
    assume(sum(asked) + len(asked) / 2 <= batch)  # rounding cannot make them too many
    sizes = [len(part) for part in rows_shown(True, shares, batch, batch)]
    assert sum(sizes) == batch
    assert all(abs(size - rows) <= 0.5 for size, rows in zip(sizes[-len(shares) :], asked, strict=True))


@pytest.mark.parametrize("shares", [[0.0], [-0.5], [1.5], [math.nan], [0.5, 0.6], [0.5, -0.1]], ids=str)
def test_shares_out_of_range_are_refused(shares):
    x, y = small(torch.float32)
    with pytest.raises(ValueError, match="share = ") as caught:
        train(Stack(members((1,), torch.float32)), x, y, Schedule(), [negatives(x, share) for share in shares],
              generators=[seeded()])  # fmt: skip
    assert str(caught.value) == f"share = {shares}: allowed are shares above 0 that add up to at most 1."


def test_a_batch_too_small_for_its_parts_is_refused():
    with pytest.raises(ValueError, match=r"^share = \[0\.3, 0\.3, 0\.3\]: a batch of 2 has no 3 rows to perturb\.$"):
        rows_shown(False, [0.3, 0.3, 0.3], batch=2)


def recorded(function, *example):
    """A stand-in for CUDA graphs: warm-up runs, inputs and output that stay where they are."""
    inputs = [tensor.clone() for tensor in example]
    for _ in range(3):
        output = function(*inputs).clone()

    def replay(*tensors):
        for kept, own in zip(inputs, tensors, strict=True):
            kept.copy_(own)
        return output.copy_(function(*inputs))

    return replay


@pytest.mark.parametrize("kind", ["together", "a step each", "calibrated", "TRADES"])
def test_what_a_recorded_graph_overwrites_is_no_longer_needed(kind, monkeypatch):
    """The result with recorded graphs is the same."""

    def weights():
        x, y = small(torch.float64)
        fleet, schedule = Stack(members((1, 2), torch.float64)), Schedule(epochs=2, batch=10)
        random = [seeded(1), seeded(2)]
        if kind == "TRADES":
            return train_trades(fleet, x, y, schedule, 0.1, Divergence(steps=3), generators=random).weights
        parts = [calibrated(x, 0.1, Backtracking(steps=3))] if kind == "calibrated" else RECIPES["combined"](x)
        return train(fleet, x, y, schedule, parts, separate=kind == "a step each", generators=random).weights

    expected = weights()
    monkeypatch.setattr(training, "captured", recorded)
    for name, value in weights().items():
        assert torch.equal(value, expected[name])


# --- what the parts are -----------------------------------------------------------------------------------------


class Seen:
    """A decoder that keeps the codes and the context it is shown."""

    def __init__(self):
        self.codes, self.context = [], []

    def __call__(self, z, base):
        self.codes.append(z.detach().clone())
        self.context.append(base)
        return bend(z, base)


def test_random_augmentation_draws_the_papers_starts_from_each_members_own_generator():
    x, y = small(torch.float64, 12)
    z, far, decode = codes(torch.float64, 12), torch.full((3,), 9.0, dtype=torch.float64), Seen()
    part = training.latent(z, decode, (x,), (-far, far), 0.4, None)
    fleet = Stack(members((1, 2), torch.float64))
    train(fleet, x, y, Schedule(epochs=2, batch=6), [part], separate=True, generators=[seeded(1), seeded(2)])
    expected = [[], []]
    for own, random in zip(expected, (seeded(1), seeded(2)), strict=True):
        for _ in range(2):
            for rows in torch.randperm(12, generator=random).split(6):
                own.append(z[rows[3:]] + gaussian(LINF, 0.4)(z[rows[3:]], random))
    assert len(decode.codes) == 4
    for shown, first, second in zip(decode.codes, *expected, strict=True):
        torch.testing.assert_close(shown, torch.cat([first, second]), atol=1e-12, rtol=0)


@settings(max_examples=30)
@given(
    eta=st.floats(0.01, 1.5),
    share=st.sampled_from([0.25, 0.5, 1.0]),
    adversary=st.sampled_from([None, Adversary(steps=3, lr=0.5)]),
    seed=st.integers(0, 99),
)
def test_perturbed_latents_lie_in_the_ball_and_in_the_box(eta, share, adversary, seed):
    x, y = small(torch.float64, 8)
    z, decode, (low, high) = codes(torch.float64, 8), Seen(), box(torch.float64)
    part = training.latent(z, decode, (x,), (low, high), eta, adversary, share=share)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    train(Stack([network]), x, y, Schedule(epochs=1, batch=4), [part], generators=[seeded(seed)])
    for code, base in zip(torch.cat(decode.codes), torch.cat(decode.context), strict=True):
        (row,) = [row for row in range(8) if torch.equal(x[row], base)]
        assert (code - z[row]).abs().max() <= eta + 1e-12
        assert (code >= low - 1e-12).all()
        assert (code <= high + 1e-12).all()


KINDS = ("pixels", "latent", "transformation")


def on_letters(kind, adversary, device="cpu"):
    """A kind of perturbation of the first six images of FONTS, with the true decoder for latents; and their labels."""
    own = fonts.rows("train", 6, device=device)
    images = fonts.images(own)
    if kind == "pixels":
        return training.pixels(images, 0.1, adversary), own.letter
    if kind == "latent":
        context, bounds = (own.font, own.letter), fonts.theta_box(device)
        return training.latent(own.theta, fonts.decode, context, bounds, 0.3, adversary), own.letter
    t, bounds = transform.identity(images), transform.box("fonts", device)
    return training.latent(t, transform.decode, (images,), bounds, 0.3, adversary), own.letter


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_attack_inside_training_raises_every_loss_within_its_set(kind, precision):
    adversary = Adversary(steps=20, lr=0.02, precision=precision)
    part, y = on_letters(kind, adversary)
    fleet = Stack([cnn(10, (3, 4), generator=seeded(seed)) for seed in (1, 2)]).eval()
    rows, labels = torch.arange(6).repeat(2), y.repeat(2)
    space = part.space(rows)
    start = space.project(part.start(part.around[rows], seeded(3)))
    found = adversary.ascend(fleet, space, labels, start, side=28)
    assert found.shape == start.shape
    assert torch.equal(space.project(found), found), "it lies in the set"

    def loss(u):
        return F.cross_entropy(fleet.by_rows(space.image(u)), labels, reduction="none")

    assert (loss(found) > loss(start)).all()


@settings(max_examples=30)
@given(eps=st.floats(0.001, 0.5), seed=st.integers(0, 99))
def test_perturbed_images_keep_to_eps_and_to_the_box_to_the_last_bit(eps, seed):
    x = torch.rand(6, 1, 8, 8, generator=seeded(seed)).round(decimals=1)  # some pixels at the bounds
    part = training.pixels(x, eps, ATTACK)
    space = part.space(torch.arange(6))
    start = part.start(part.around, seeded(seed))
    fleet = Stack([nn.Sequential(nn.Flatten(), nn.Linear(64, 2))])
    found = space.image(Adversary(steps=4, lr=eps).ascend(fleet, space, torch.arange(6) % 2, start, side=8))
    assert ((found.double() - x.double()).abs() <= eps).all()
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert not torch.equal(found, x)


def test_the_batch_is_made_of_what_the_attack_found(monkeypatch):
    """A planted attack's u is projected, decoded and shown to the network, member by member."""
    asked = []

    def planted(self, fleet, space, y, start, *, side):
        asked.append((fleet.training, y.tolist(), side, len(space)))
        return torch.full_like(start, 5.0)

    monkeypatch.setattr(Adversary, "ascend", planted)
    SEEN.clear()
    x = torch.arange(8).float().view(8, 1, 1, 1) / 100
    y = torch.arange(8) % 2
    train(Stack([Scaled(), Scaled()]), x, y, Schedule(epochs=1, batch=8), [training.pixels(x, 0.3, ATTACK, share=0.25)],
          generators=[seeded(1), seeded(2)])  # fmt: skip
    orders = [torch.randperm(8, generator=seeded(seed)).tolist() for seed in (1, 2)]
    assert list(SEEN) == [[*order[:6], *(row + 30 for row in order[6:])] for order in orders]
    assert asked == [(False, [row % 2 for order in orders for row in order[6:]], 1, 4)]


class Scaled(Spy):
    """A spy on images whose pixel is a hundredth of their row."""

    def forward(self, x):
        return super().forward((100 * x).round())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_perturbing_images_asks_nothing_of_the_host(kind, precision):
    """So that a CUDA graph can record it: on the meta device, a copy from the host shows as one."""
    fonts.prototypes(torch.device("meta"))  # kept from its first use on, which comes before any recording
    part, _ = on_letters(kind, Adversary(steps=2, precision=precision), "meta")
    fleet = Stack([cnn(10, (3, 4), generator=seeded(seed)).to("meta") for seed in (1, 2)]).eval()
    rows, labels = torch.zeros(2, 2, 3, dtype=torch.long, device="meta")
    start = part.around[rows]
    with Devices() as seen:
        u = training._moves(part, fleet, 28, rows, labels, start)
        images = part.space(rows.flatten()).image(u)
    assert images.shape == (6, 1, 28, 28)
    assert seen.devices == {"meta"}


# --- adversarial training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"lr": 0}, {"precision": "float16"}, {"eps": 0.3}])
def test_an_adversary_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Adversary(**wrong)


def test_the_papers_adversary_is_the_default():
    assert Adversary().model_dump() == {"steps": 40, "lr": 0.005, "precision": "float32"}


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_adversarial_training_makes_a_network_harder_to_fool(share):
    x, y = separable(300)
    schedule, held = Schedule(epochs=4, batch=50), slice(200, 300)

    def fooled(network):
        found = pgd(network, x[held], y[held], eps=0.2, rule=sign(0.02), steps=20, restarts=1, generator=seeded(2))
        return found.success.double().mean().item()

    plain = normal(cnn(2, (4, 8), generator=seeded(1)), x[:200], y[:200], schedule, generator=seeded(1))
    fleet = Stack([cnn(2, (4, 8), generator=seeded(1))])
    parts = [training.pixels(x[:200], 0.2, Adversary(steps=10, lr=0.04), share=share)]
    (robust,) = train(fleet, x[:200], y[:200], schedule, parts, generators=[seeded(1)]).unstack()
    assert fooled(plain) > 0.5
    assert fooled(robust) < fooled(plain) - 0.3
    assert (predict(robust, x[held]).argmax(1) == y[held]).double().mean() > 0.9


@pytest.mark.parametrize("separate", [False, True])
def test_a_loss_that_is_not_finite_ends_adversarial_training_too(separate):
    x, y = separable(20)
    x[3, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="epoch 1"):
        train(Stack([cnn(2, (4,), generator=seeded())]), x, y, Schedule(epochs=1, batch=20),
              [training.pixels(x, 0.3, Adversary(steps=2))], separate=separate, generators=[seeded()])  # fmt: skip


# --- target transitions -----------------------------------------------------------------------------------------


def test_the_transitions_have_the_values_of_their_formulas():
    n = torch.tensor([0.0, 0.03, 0.09, 0.15, 0.3, 0.7], dtype=torch.float64)

    def values(transition):
        return pytest.approx(transition(n).tolist(), rel=1e-9, abs=1e-12)

    assert values(power(0.3)) == [1, 0.9**10, 0.7**10, 0.5**10, 0, 0]
    assert power(0.3)(n)[2] == pytest.approx(0.028, abs=3e-4), "nearly uniform from .3 eps on"
    assert values(power(0.3, 1)) == [1, 0.9, 0.7, 0.5, 0, 0]
    assert values(linear(0.3)) == [1, 0.9, 0.7, 0.5, 0, 0]
    assert values(linear(0.3, 2)) == [1, 0.8, 0.4, 0, 0, 0]
    assert values(exponential(12)) == [math.exp(-12 * size) for size in n.tolist()]


sizes = st.lists(st.floats(0, 2), min_size=1, max_size=6).map(lambda n: torch.tensor(sorted(n), dtype=torch.float64))


@given(sizes, st.floats(0.01, 1), st.floats(0.1, 20))
def test_a_transition_falls_from_one_to_zero(n, eps, rho):
    for transition in (power(eps, rho), linear(eps, rho), exponential(rho)):
        found = transition(n)
        assert found.shape == n.shape
        assert ((found >= 0) & (found <= 1)).all()
        assert (found.diff() <= 0).all()
        assert transition(0 * n).tolist() == [1.0] * len(n)
    assert (power(eps, rho)(n[n >= eps]) == 0).all()
    assert torch.equal(power(eps, rho)(n), power(eps, 1.0)(n) ** rho)


# --- soft targets -------------------------------------------------------------------------------------------------


def towards(logits, target):
    """-sum_k t_k log p_k for a target distribution that is spelled out."""
    return -(target * logits.log_softmax(-1)).sum(-1)


def spelled_out(labels, trust, classes):
    return trust[..., None] * F.one_hot(labels, classes) + (1 - trust[..., None]) / classes


@given(st.integers(2, 6), st.integers(0, 99), st.sampled_from([0.1, 1.0, 30.0]))
def test_the_loss_is_the_cross_entropy_to_the_target_distribution_and_so_is_its_gradient(classes, seed, scale):
    random = seeded(seed)
    logits = (scale * torch.randn(2, 5, classes, generator=random, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(classes, (2, 5), generator=random)
    trust = torch.rand(2, 5, generator=random, dtype=torch.float64)
    trust[0, 0], trust[1, 1] = 0, 1
    found, expected = (
        training._cross_entropy(logits, labels, trust),
        towards(logits, spelled_out(labels, trust, classes)),
    )
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    (slope,), (wanted,) = (torch.autograd.grad(loss.square().sum(), logits) for loss in (found, expected))
    torch.testing.assert_close(slope, wanted, atol=1e-10, rtol=1e-9)
    plain = training._cross_entropy(logits, labels)
    torch.testing.assert_close(plain, training._cross_entropy(logits, labels, torch.ones_like(trust)))


def doubted(x, share, trust, weight=1.0):
    """Negatives whose u says which image they are of: the top left pixel."""
    return Perturbed(share, x[:, :1, 0, 0], lambda like, random: like.clone(), lambda rows: Negatives(x[rows]),
                     weight=weight, trust=trust)  # fmt: skip


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("separate", [False, True])
def test_every_image_goes_to_the_distribution_that_its_own_u_asks_for(separate, weight):
    """A batch, written down: seven clean images, and three others with targets that depend on the image."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    x, y = small(torch.float64, 10)
    expected = copy.deepcopy(network)
    part = doubted(x, 0.3, lambda u: u[:, 0] ** 2, weight)
    schedule = Descent(epochs=1, batch=10, lr=0.2)
    fleet = train(Stack([network]), x, y, schedule, [part], separate=separate, generators=[seeded(4)])
    clean, changed = torch.randperm(10, generator=seeded(4)).split([7, 3])
    target = spelled_out(y[changed], x[changed, 0, 0, 0] ** 2, 3)
    sgd = Momentum(expected.parameters())
    if separate:
        sgd.step(F.cross_entropy(expected(x[clean]), y[clean]), 0.2)
        sgd.step(towards(expected(1 - x[changed]), target).mean(), 0.2)
    else:
        loss = F.cross_entropy(expected(x[clean]), y[clean])
        loss = loss + weight * towards(expected(1 - x[changed]), target).mean()
        sgd.step(loss / (1 + weight), 0.2)
    torch.testing.assert_close(fleet.weights["1.weight"][0], expected[1].weight, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(fleet.weights["1.bias"][0], expected[1].bias, atol=1e-12, rtol=1e-9)


def test_full_trust_is_training_with_the_labels_and_without_any_trust_labels_do_not_matter():
    x, y = small(torch.float64)

    def weights(labels, trust):
        fleet, parts = Stack(members((1,), torch.float64)), [doubted(x, 1.0, trust)]
        return train(fleet, x, labels, Schedule(epochs=2, batch=10), parts, generators=[seeded()]).weights["0.weight"]

    all_of_it, nothing = (lambda u: torch.ones_like(u[:, 0])), (lambda u: torch.zeros_like(u[:, 0]))
    torch.testing.assert_close(weights(y, all_of_it), weights(y, None), atol=1e-12, rtol=0)
    assert torch.equal(weights(y, nothing), weights(1 - y, nothing))
    assert not torch.allclose(weights(y, all_of_it), weights(1 - y, all_of_it), atol=1e-4)
    assert not torch.allclose(weights(y, all_of_it), weights(y, nothing), atol=1e-4)


# --- confidence-calibrated adversarial training, against a plain loop ---------------------------------------------


def smooth(seed, classes=3):
    """A network without kinks, with batch norm, in double precision."""
    made = nn.Sequential(
        nn.Conv2d(1, 3, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(),
        nn.Linear(48, classes),
    ).double()  # fmt: skip
    with torch.no_grad():
        for weight in (made[0].weight, made[4].weight, made[4].bias):
            weight.copy_(0.5 * torch.randn(weight.shape, generator=seeded(seed), dtype=torch.float64))
    return made


def thirds(n=20):
    """Small images of three classes."""
    x, _ = small(torch.float64, n)
    return x, torch.arange(n) % 3


EPS, BACKTRACKING = 0.1, Backtracking(steps=5, lr=0.05)
CALIBRATED = Descent(epochs=2, batch=10, lr=0.2, decay=0.5)


def boxed(u, x, eps=EPS):
    return torch.minimum(torch.maximum(u.clamp(-eps, eps), -x), 1 - x)


def published_attack(network, x, y, u, adversary):
    """Sign steps with momentum, each example with a rate of its own that a step that brought less divides."""

    def height(u):
        logits = network(x + u)
        if adversary.goal == "error":
            return F.cross_entropy(logits, y, reduction="none")
        return logits.softmax(1).masked_fill(F.one_hot(y, logits.shape[1]).bool(), 0).amax(1)

    u = boxed(u, x)
    rate, mean = torch.full((len(x), 1, 1, 1), adversary.lr, dtype=x.dtype), torch.zeros_like(x)
    for _ in range(adversary.steps):
        u.requires_grad_()
        value = height(u)
        (slope,) = torch.autograd.grad(value.sum(), u)
        with torch.no_grad():
            mean = adversary.momentum * mean + (1 - adversary.momentum) * slope.sign()
            candidate = boxed(u + rate * mean, x)
            accept = (height(candidate) >= value).view(-1, 1, 1, 1)
            u, rate = torch.where(accept, candidate, u), torch.where(accept, rate, rate / adversary.factor)
    return u.detach()


def published_start(x, random, whole_batch):
    starts = [near(LINF, EPS)(x, random), shells(LINF, EPS)(x, random), torch.zeros_like(x)]
    choice = torch.randint(3, (1 if whole_batch else len(x),), generator=random).expand(len(x))
    return torch.stack([starts[kind][row] for row, kind in enumerate(choice.tolist())])


def calibrated_plainly(network, x, y, schedule, adversary, *, random, rho=10, whole_batch=False, clean=0.5):
    """One network trained as the paper's text reads; all batches are full."""
    network = copy.deepcopy(network)
    sgd, sizes = Momentum(network.parameters()), []
    for epoch in range(schedule.epochs):
        for rows in torch.randperm(len(x), generator=random).split(schedule.batch):
            first, second = rows.split([round(clean * schedule.batch), round((1 - clean) * schedule.batch)])
            network.eval()
            u = published_attack(
                network, x[second], y[second], published_start(x[second], random, whole_batch), adversary
            )
            network.train()
            size = u.flatten(1).abs().amax(1)
            trust = (1 - (size / EPS).clamp(max=1)) ** rho
            logits = network(torch.cat([x[first], x[second] + u]))
            loss = towards(logits[len(first) :], spelled_out(y[second], trust, logits.shape[1])).mean()
            loss = (F.cross_entropy(logits[: len(first)], y[first]) + loss) / 2 if len(first) else loss
            sgd.step(loss, schedule.lr * schedule.decay**epoch)
            sizes += size.tolist()
    return network.state_dict(), sizes


VARIANTS = {
    "as published": ({}, {}, BACKTRACKING),
    "small steps": ({}, {}, Backtracking(steps=5, lr=0.01)),
    "large steps, some of them taken back": ({}, {}, Backtracking(steps=8, lr=0.2)),
    "large steps, cut further": ({}, {}, Backtracking(steps=8, lr=0.2, factor=4.0)),
    "one start a batch": ({"whole_batch": True}, {"whole_batch": True}, BACKTRACKING),
    "the cross-entropy": ({}, {}, Backtracking(steps=5, lr=0.02, goal="error", momentum=0.5, factor=2.0)),
    "a gentler transition": ({"transition": power(EPS, 2)}, {"rho": 2}, BACKTRACKING),
    "all of the batch": ({"share": 1.0}, {"clean": 0.0}, BACKTRACKING),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_calibrated_training_is_the_plain_loop_of_the_paper(variant):
    ours, plain, adversary = VARIANTS[variant]
    x, y = thirds(40)
    expected, sizes = calibrated_plainly(smooth(1), x, y, CALIBRATED, adversary, random=seeded(3), **plain)
    fleet = train(Stack([smooth(1)]), x, y, CALIBRATED, [calibrated(x, EPS, adversary, **ours)],
                  generators=[seeded(3)])  # fmt: skip
    (trained,) = fleet.unstack()
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-9, rtol=1e-7)
    assert min(sizes) < 0.2 * EPS or variant != "small steps", "some targets are far from uniform"


def test_the_plain_loop_can_tell_its_variants_apart():
    x, y = thirds(40)
    found = [
        calibrated_plainly(smooth(1), x, y, CALIBRATED, adversary, random=seeded(3), **plain)[0]["0.weight"]
        for _, plain, adversary in VARIANTS.values()
    ]
    for index, one in enumerate(found):
        assert all(not torch.allclose(one, other, atol=1e-5) for other in found[:index])


def norm_of(norm, u):
    return torch.linalg.vector_norm(u.double().flatten(1), {"linf": torch.inf, "l2": 2, "l1": 1}[norm.name], dim=1)


@pytest.mark.parametrize(("norm", "most"), [(LINF, 0.5), (L2, 3.0), (L1, 20.0)], ids=["linf", "l2", "l1"])
@settings(max_examples=15)
@given(share=st.floats(0.01, 1), seed=st.integers(0, 99), goal=st.sampled_from(["confidence", "error"]))
def test_calibrated_images_keep_to_eps_and_to_the_box(norm, most, share, seed, goal):
    x = torch.rand(6, 1, 8, 8, generator=seeded(seed)).round(decimals=1)
    eps, y = share * most, torch.arange(6) % 2
    part = calibrated(x, eps, Backtracking(steps=4, lr=eps / 3, goal=goal), norm=norm)
    space = part.space(torch.arange(6))
    fleet = Stack([nn.Sequential(nn.Flatten(), nn.Linear(64, 2))])
    u = part.adversary.ascend(fleet, space, y, part.start(part.around, seeded(seed)), side=8)
    found = space.image(u)
    assert (norm_of(norm, found.double() - x.double()) <= eps * (1 + 1e-7)).all()
    assert ((found >= 0) & (found <= 1)).all()
    assert not torch.equal(found, x)
    expected = (1 - (norm_of(norm, u) / eps).clamp(max=1)) ** 10
    torch.testing.assert_close(part.trust(u).double(), expected, atol=1e-5, rtol=1e-4)


def test_another_transition_takes_the_size_of_the_perturbation():
    x, asked = thirds()[0], []

    def transition(n):
        asked.append(n)
        return n / 2

    part = calibrated(x, 0.3, BACKTRACKING, transition=transition, norm=L2)
    u = torch.full((4, 1, 8, 8), 0.01, dtype=torch.float64)
    torch.testing.assert_close(part.trust(u), torch.full((4,), 0.04, dtype=torch.float64))
    torch.testing.assert_close(asked[0], torch.full((4,), 0.08, dtype=torch.float64))


def start_kinds(part, like, generator):
    """By what the entries of a row look like: z(ero), n(ormal) or s(hell: uniform numbers)."""
    u = part.start(like, generator).flatten(1)
    return ["z" if not row.any() else "n" if kurtosis(row) > 2.2 else "s" for row in u]


def kurtosis(row):
    centred = row - row.mean()
    return (centred**4).mean() / (centred**2).mean() ** 2  # 3 for normal numbers, 1.8 for uniform ones


@pytest.mark.parametrize("whole_batch", [False, True])
def test_starts_are_gaussian_noise_a_uniform_norm_or_the_image_in_equal_shares(whole_batch):
    """A binomial share of one third among 900 draws has a standard deviation of .016; five of them are allowed."""
    x = torch.zeros(30, 1, 28, 28)
    part, random, kinds = calibrated(x, 0.3, BACKTRACKING, whole_batch=whole_batch), seeded(), []
    for _ in range(900 if whole_batch else 30):
        found = start_kinds(part, x[:2] if whole_batch else x, random)
        assert not whole_batch or len(set(found)) == 1
        kinds += found[:1] if whole_batch else found
    assert all(kinds.count(kind) / 900 == pytest.approx(1 / 3, abs=5 * 0.016) for kind in "zsn")


TOGETHER = {
    "calibrated": lambda fleet, x, y, random: train(
        fleet, x, y, Descent(epochs=10, batch=10), [calibrated(x, EPS, BACKTRACKING)], generators=random
    ),
    "calibrated, one start a batch": lambda fleet, x, y, random: train(
        fleet, x, y, Descent(epochs=10, batch=10), [calibrated(x, EPS, BACKTRACKING, whole_batch=True)],
        generators=random,
    ),
    "TRADES": lambda fleet, x, y, random: train_trades(
        fleet, x, y, Descent(epochs=10, batch=10), EPS, Divergence(steps=3, lr=0.05), beta=6.0, generators=random
    ),
}  # fmt: skip


@pytest.mark.parametrize("vectorized", [False, True], ids=["one by one", "vectorized"])
@pytest.mark.parametrize("kind", TOGETHER)
def test_a_member_of_a_calibrated_fleet_is_the_network_trained_alone(kind, vectorized):
    """Twenty steps, to 1e-8."""
    x, y = thirds()
    fleet = Stack([smooth(seed) for seed in (1, 2, 3)], vectorized=vectorized)
    together = TOGETHER[kind](fleet, x, y, [seeded(seed) for seed in (1, 2, 3)]).unstack()
    for seed, member in zip((1, 2, 3), together, strict=True):
        (single,) = TOGETHER[kind](Stack([smooth(seed)], vectorized=False), x, y, [seeded(seed)]).unstack()
        for name, value in single.state_dict().items():
            torch.testing.assert_close(member.state_dict()[name], value, atol=1e-8, rtol=1e-8)
    assert not torch.equal(together[0][0].weight, together[1][0].weight), "the members differ"


# --- TRADES -------------------------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(0, 99), st.sampled_from([0.1, 1.0, 30.0]))
def test_the_divergence_is_that_of_torchs_distributions_and_so_are_both_gradients(classes, seed, scale):
    one, other = (
        (scale * torch.randn(2, 3, classes, generator=seeded(seed + add), dtype=torch.float64)).requires_grad_()
        for add in (0, 100)
    )
    found = divergence(other, one)
    expected = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=z) for z in (one, other)))
    assert found.shape == (2, 3)
    assert (found >= -1e-12).all()
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)
    slopes, wanted = (torch.autograd.grad(loss.sum(), (one, other)) for loss in (found, expected))
    torch.testing.assert_close(slopes, wanted, atol=1e-9, rtol=1e-7)


def test_the_divergence_of_a_distribution_from_itself_is_zero_and_classes_without_mass_do_not_count():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    assert divergence(logits, logits).abs() < 1e-6
    sure = torch.tensor([[500.0, 0.0, 0.0]])
    torch.testing.assert_close(divergence(logits, sure), -logits.log_softmax(-1)[:, 0])


def test_the_divergence_has_a_gradient_where_the_network_is_sure_of_a_clean_image():
    """Logits 110 apart: in single precision the softmax of the smaller one is 0."""
    clean, moved = torch.tensor([[0.0, 110.0]], requires_grad=True), torch.tensor([[1.0, 110.0]])
    (slope,) = torch.autograd.grad(divergence(moved, clean).sum(), clean)
    assert slope.isfinite().all()


DIVERGENCE = Divergence(steps=4, lr=0.04)


def trades_plainly(network, x, y, schedule, *, beta, random, towards_clean=True):
    """TRADES as the paper's equation reads: CE(f(x), y) + beta KL(f(x) || f(x + delta)); all batches are full."""
    network = copy.deepcopy(network)
    sgd = Momentum(network.parameters())

    def apart(one, other):
        parts = (torch.distributions.Categorical(logits=logits) for logits in (one, other))
        return torch.distributions.kl_divergence(*parts)

    for epoch in range(schedule.epochs):
        for rows in torch.randperm(len(x), generator=random).split(schedule.batch):
            own = x[rows]
            network.eval()
            clean = network(own).detach()
            u = boxed(0.001 * torch.randn(own.shape, generator=random).to(own), own)
            best, top = u, torch.full((len(own),), -torch.inf, dtype=own.dtype)
            for _ in range(DIVERGENCE.steps + 1):
                u.requires_grad_()
                value = apart(clean, network(own + u))
                (slope,) = torch.autograd.grad(value.sum(), u)
                higher = value > top
                best, top = torch.where(higher[:, None, None, None], u, best).detach(), torch.where(higher, value, top)
                u = boxed(u.detach() + DIVERGENCE.lr * slope.sign(), own)
            network.train()
            clean, moved = network(torch.cat([own, own + best])).chunk(2)
            kept = clean if towards_clean else clean.detach()
            loss = F.cross_entropy(clean, y[rows]) + beta * apart(kept, moved).mean()
            sgd.step(loss, schedule.lr * schedule.decay**epoch)
    return network.state_dict()


def trades(x, y, schedule=CALIBRATED, network=None, **options):
    fleet = Stack([network or smooth(1)])
    return train_trades(fleet, x, y, schedule, EPS, DIVERGENCE, generators=[seeded(3)], **options)


@pytest.mark.parametrize("beta", [1.0, 6.0])
def test_trades_is_the_plain_loop_of_the_paper(beta):
    x, y = thirds(40)
    expected = trades_plainly(smooth(1), x, y, CALIBRATED, beta=beta, random=seeded(3))
    fleet = trades(x, y, beta=beta)
    assert not fleet.training
    (trained,) = fleet.unstack()
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-9, rtol=1e-7)
    for other in ({"beta": 2 * beta}, {"beta": beta, "towards_clean": False}):
        changed = trades_plainly(smooth(1), x, y, CALIBRATED, random=seeded(3), **other)
        assert not torch.allclose(changed["0.weight"], expected["0.weight"], atol=1e-4), "the clean side has a gradient"


def test_beta_is_one_by_default_and_without_it_trades_is_normal_training():
    """Without batch norm, and for one epoch: the noise comes from the generator that draws the orders."""
    x, y = thirds()
    assert torch.equal(trades(x, y).weights["0.weight"], trades(x, y, beta=1.0).weights["0.weight"])
    schedule = Descent(epochs=1, batch=10, lr=0.2)

    def plain():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()

    (without,) = trades(x, y, schedule, plain(), beta=0.0).unstack()
    expected = normal(plain(), x, y, schedule, generator=seeded(3))
    torch.testing.assert_close(without[1].weight, expected[1].weight, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("beta", [-0.1, -math.inf, math.nan])
def test_a_negative_beta_is_refused(beta):
    with pytest.raises(ValueError, match="beta = ") as caught:
        trades(*thirds(), beta=beta)
    assert str(caught.value) == f"beta = {beta}: allowed is 0 or more."


def test_trades_refuses_what_train_refuses():
    x, y = thirds()
    with pytest.raises(ValueError, match=r"^x: no images to train on\.$"):
        trades(x[:0], y[:0])
    with pytest.raises(ValueError, match=r"^generators: 1 for a fleet of 2; allowed is one a member\.$"):
        train_trades(Stack([smooth(1), smooth(2)]), x, y, CALIBRATED, EPS, DIVERGENCE, generators=[seeded()])
    x[3, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="epoch 1"):
        trades(x, y)


# --- their attacks ------------------------------------------------------------------------------------------------


def test_the_published_attacks_are_the_defaults():
    assert Backtracking().model_dump() == {
        "steps": 40, "lr": 0.01, "precision": "float32", "momentum": 0.9, "factor": 1.5, "goal": "confidence",
    }  # fmt: skip
    assert Divergence().model_dump() == {"steps": 40, "lr": 0.01, "precision": "float32"}


@pytest.mark.parametrize("wrong", [{"momentum": 1}, {"momentum": -0.1}, {"factor": 1}, {"goal": "doubt"}, {"lr": 0}])
def test_backtracking_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Backtracking(**wrong)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"lr": 0}, {"momentum": 0.9}])
def test_a_divergence_attack_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Divergence(**wrong)


ATTACKS = {
    "confidence": Backtracking(steps=8),
    "error": Backtracking(steps=8, goal="error"),
    "divergence": Divergence(steps=8),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ATTACKS)
def test_each_attack_raises_what_it_says_within_its_set(kind, precision):
    adversary = ATTACKS[kind].model_copy(update={"precision": precision})
    own = fonts.rows("train", 6)
    x, fleet = fonts.images(own), Stack([cnn(10, (3, 4), generator=seeded(seed)) for seed in (1, 2)]).eval()
    space, y = calibrated(x, 0.1, adversary).space(torch.arange(6).repeat(2)), own.letter.repeat(2)
    clean = fleet.by_rows(space.x).detach()
    p = clean.softmax(1)
    start = space.project(near(LINF, 0.1)(space.x, seeded(3)))
    found = adversary.ascend(fleet, space, clean if kind == "divergence" else y, start, side=28)
    assert torch.equal(space.project(found), found), "it lies in the set"

    def height(u):
        q = fleet.by_rows(space.image(u)).softmax(1)
        if kind == "divergence":
            return (p * (p / q).log()).sum(1)
        others = q.masked_fill(F.one_hot(y, 10).bool(), 0).amax(1)
        return others if kind == "confidence" else -q.gather(1, y[:, None])[:, 0]

    assert (height(found) > height(start)).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ATTACKS)
def test_these_attacks_ask_nothing_of_the_host_either(kind, precision):
    x = torch.rand(6, 1, 28, 28, device="meta")
    part = calibrated(x, 0.1, ATTACKS[kind].model_copy(update={"precision": precision}))
    fleet = Stack([cnn(10, (3, 4), generator=seeded(seed)).to("meta") for seed in (1, 2)]).eval()
    rows, labels = torch.zeros(2, 2, 3, dtype=torch.long, device="meta")
    target = torch.empty(2, 3, 10, device="meta") if kind == "divergence" else labels
    with Devices() as seen:
        u = training._moves(part, fleet, 28, rows, target, part.around[rows])
        trust = part.trust(u)
    assert u.shape == (6, 1, 28, 28)
    assert trust.shape == (6,)
    assert seen.devices == {"meta"}


# --- plain steps, and parts in other norms --------------------------------------------------------------------------


def test_plain_steps_follow_signs_by_default():
    assert Ascent().model_dump() == {"steps": 40, "lr": 0.005, "precision": "float32", "along": "signs"}


@pytest.mark.parametrize("wrong", [{"along": "sign"}, {"steps": -1}, {"lr": 0}, {"momentum": 0.9}])
def test_plain_steps_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Ascent(**wrong)


def ascended(network, image, labels, u, adversary, project):
    """The best of all iterates of plain steps, written down: u [B, D] around images [B, D]."""
    best, top = u.clone(), torch.full((len(u),), -torch.inf, dtype=u.dtype)
    for step in range(adversary.steps + 1):
        u = u.detach().requires_grad_()
        p = network(image(u)).softmax(1).gather(1, labels[:, None])[:, 0]
        height = (1 - p).log() - p.log()
        (slope,) = torch.autograd.grad(height.sum(), u)
        higher = height > top
        best[higher], top[higher] = u.detach()[higher], height.detach()[higher]
        if step < adversary.steps:
            flat = slope.flatten(1)
            away = flat.sign() if adversary.along == "signs" else flat / flat.norm(dim=1, keepdim=True)
            u = project(u + adversary.lr * away.view_as(u))
    return best


@pytest.mark.parametrize("along", ["signs", "gradient"])
def test_plain_steps_are_the_plain_loop_and_keep_the_best_iterate(along):
    x, y = thirds(8)
    network, adversary = smooth(1), Ascent(steps=6, lr=0.04 if along == "signs" else 0.2, along=along)
    network.eval()
    space = training.uniform_norm(x, EPS, adversary).space(torch.arange(8))
    start = boxed(shells(LINF, EPS)(x, seeded(3)), x)
    found = adversary.ascend(Stack([network]).eval(), space, y, start, side=8)
    expected = ascended(network, lambda u: x + u, y, start, adversary, lambda u: boxed(u, x))
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    other = adversary.model_copy(update={"along": "gradient" if along == "signs" else "signs"})
    assert not torch.allclose(other.ascend(Stack([network]).eval(), space, y, start, side=8), found, atol=1e-3)


def test_plain_steps_lead_on_where_the_network_is_so_sure_that_the_cross_entropy_is_flat():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1000.0, 0, 0, 0], [0, 0, 0, 0]]))
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.long)
    for adversary, moves in ((Ascent(steps=1, lr=0.1), True), (Adversary(steps=1, lr=0.1), False)):
        space = training.uniform_norm(x, 0.2, adversary).space(torch.arange(1))
        u = adversary.ascend(Stack([network]).eval(), space, y, torch.zeros_like(x), side=2)
        assert (u[0, 0, 0, 0] < -0.05) == moves


NORMED = pytest.mark.parametrize(("norm", "most"), [(LINF, 0.5), (L2, 3.0), (L1, 20.0)], ids=["linf", "l2", "l1"])


@NORMED
@settings(max_examples=10)
@given(share=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_regular_examples_keep_to_their_norms_ball_and_to_the_box(norm, most, share, seed):
    x = torch.rand(6, 1, 8, 8, generator=seeded(seed)).round(decimals=1)
    eps, y = share * most, torch.arange(6) % 2
    part = training.uniform_norm(x, eps, Ascent(steps=4, lr=eps, along="gradient"), norm=norm, share=0.4)
    space = part.space(torch.arange(6))
    fleet = Stack([nn.Sequential(nn.Flatten(), nn.Linear(64, 2))])
    start = part.start(part.around, seeded(seed))
    assert torch.equal(start, shells(norm, eps)(x, seeded(seed)))
    u = part.adversary.ascend(fleet, space, y, start, side=8)
    found = space.image(u)
    size = norm_of(norm, found.double() - x.double())
    assert (size <= eps * (1 + 1e-7)).all()
    assert (size > 0.1 * eps).all()
    assert ((found >= 0) & (found <= 1)).all()
    assert (part.share, part.weight, part.trust) == (0.4, 1.0, None)


@NORMED
def test_starts_of_regular_examples_have_a_uniform_norm(norm, most):
    """Of 2,000 draws: the mean is half the radius, to five standard errors, and a tenth is below a tenth."""
    x = torch.zeros(2000, 1, 8, 8)
    size = norm_of(norm, training.uniform_norm(x, most, ATTACK, norm=norm).start(x, seeded(1))) / most
    assert size.mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / 2000) ** 0.5)
    assert (size < 0.1).double().mean().item() == pytest.approx(0.1, abs=5 * (0.09 / 2000) ** 0.5)
    assert size.max() <= 1 + 1e-5


def test_regular_examples_are_l_inf_unless_another_norm_is_asked_for():
    x, _ = small(torch.float32, 6)
    assert training.uniform_norm(x, 0.1, ATTACK).space(torch.arange(6)).norm is LINF
    assert on_codes(x, ATTACK).space(torch.arange(6)).norm is LINF


@settings(max_examples=10)
@given(eta=st.floats(0.01, 1), seed=st.integers(0, 99), attacked=st.booleans())
def test_perturbed_latents_keep_to_an_l2_ball_and_to_the_box(eta, seed, attacked):
    x, y = small(torch.float32, 6)
    adversary = Ascent(steps=4, lr=eta, along="gradient") if attacked else None
    part = on_codes(x, adversary, eta=eta, norm=L2)
    space, z = part.space(torch.arange(6)), codes(torch.float32, 6)
    start = part.start(part.around, seeded(seed))
    assert (norm_of(L2, start) <= eta * (1 + 1e-5)).all()
    u = space.project(start)
    if attacked:
        u = adversary.ascend(Stack(members((1,), torch.float32)).eval(), space, y, start, side=8)
    assert (norm_of(L2, u) <= eta * (1 + 1e-6)).all()
    assert ((z + u).abs() <= 1 + 1e-6).all()
    torch.testing.assert_close(space.image(u), bend(z + u, x))


def test_an_l2_ball_of_latents_is_not_the_cube():
    """In a cube each of three entries may be eta; in the ball all of them together."""
    x, _ = small(torch.float32, 6)
    far = torch.full((6, 3), 10.0)
    sizes = []
    for norm in (LINF, L2):
        part = training.latent(torch.zeros(6, 3), bend, (x,), (-far[0], far[0]), 0.4, ATTACK, norm=norm)
        sizes.append(part.space(torch.arange(6)).project(far))
    torch.testing.assert_close(sizes[0], torch.full((6, 3), 0.4))
    torch.testing.assert_close(sizes[1], torch.full((6, 3), 0.4 / 3**0.5))


@pytest.mark.parametrize(
    ("norm", "along"), [(L2, "gradient"), (L1, "gradient"), (LINF, "signs")], ids=["l2", "l1", "linf"]
)
def test_a_member_trained_in_another_norm_is_the_network_trained_alone(norm, along):
    x, y = small(torch.float64)
    adversary = Ascent(steps=3, lr=0.1, along=along)

    def trained(seeds):
        parts = [
            training.uniform_norm(x, 0.3, adversary, norm=norm, share=0.5), on_codes(x, adversary, norm=norm, share=0.5)
        ]  # fmt: skip
        fleet, random = Stack(members(seeds, torch.float64)), [seeded(seed) for seed in seeds]
        return train(fleet, x, y, Schedule(epochs=3, batch=10), parts, generators=random).unstack()

    together = trained((1, 2))
    for seed, member in zip((1, 2), together, strict=True):
        for name, value in trained((seed,))[0].state_dict().items():
            torch.testing.assert_close(member.state_dict()[name], value, atol=1e-8, rtol=1e-8)
    assert not torch.equal(together[0][0].weight, together[1][0].weight)


# --- what calibrated training does --------------------------------------------------------------------------------


class Centred(nn.Module):
    """Images of [0, 1] around zero, and larger."""

    def forward(self, x):
        return 5 * (x - 0.5)


def blobs(n=40):
    """Dark and bright images, so far apart that no perturbation up to .3 takes one to the other."""
    y = torch.arange(n) % 2
    return 0.1 + 0.8 * y.view(-1, 1, 1, 1) + 0.005 * torch.randn(n, 1, 4, 4, generator=seeded(1)), y


@cache
def under_attack(kind):
    """The least confidence of clean images, all under an attack, the sizes of its steps, the shares that are right."""
    layers = [Centred(), nn.Flatten()]
    for size, width in ((16, 32), (32, 32)):
        layers += [nn.Linear(size, width), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(32, 3))
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=seeded(weight.numel())) / weight.shape[-1] ** 0.5)
    x, y = blobs()
    parts = {
        "calibrated": calibrated(x, 0.3, Backtracking(steps=8, lr=0.08)),
        "adversarial": training.pixels(x, 0.3, Backtracking(steps=8, lr=0.08, goal="error")),
    }
    fleet = train(
        Stack([network]), x, y, Schedule(epochs=200, batch=40, decay=0.99), [parts[kind]], generators=[seeded(1)]
    )
    space = parts["calibrated"].space(torch.arange(40))
    start = space.project(0.3 * (2 * torch.rand(x.shape, generator=seeded(9)) - 1))
    u = Backtracking(steps=40, lr=0.03).ascend(fleet, space, y, start, side=4)
    with torch.no_grad():
        clean, attacked = (fleet(images[None])[0].softmax(1) for images in (x, space.image(u)))
    right = [(p.argmax(1) == y).double().mean().item() for p in (clean, attacked)]
    return clean.amax(1).min().item(), attacked.amax(1), u.abs().amax((1, 2, 3)), right


def test_calibrated_training_is_sure_of_clean_images_and_of_none_at_full_eps():
    """Three classes, of which one never occurs: not sure means one third."""
    sure, attacked, size, (right, _) = under_attack("calibrated")
    assert right == 1
    assert sure > 0.9
    assert (size > 0.25).all(), "the attack goes far"
    assert attacked.mean().item() == pytest.approx(1 / 3, abs=0.12)


def test_adversarial_training_stays_sure_there():
    sure, attacked, _, right = under_attack("adversarial")
    assert right == [1, 1]
    assert sure > 0.9
    assert attacked.min() > 0.9
