"""advbook.training: the schedule's numbers, the order of the batches, seeds, members alone and together, perturbed
parts of a batch against a plain loop, and that it learns.
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
from advbook.attacks.norms import LINF, gaussian
from advbook.attacks.pgd import pgd
from advbook.attacks.steps import sign
from advbook.fleet import Stack
from advbook.manifolds import transform
from advbook.networks import cnn, predict
from advbook.training import Adversary, Perturbed, Schedule, train


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
    with pytest.raises(FloatingPointError, match=r"^Training diverged in epoch 1: the loss is not finite\.$"):
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


@pytest.mark.parametrize("separate", [False, True])
def test_what_a_recorded_graph_overwrites_is_no_longer_needed(separate, monkeypatch):
    """A stand-in for CUDA graphs: warm-up runs, inputs and output that stay where they are; the result is the same."""

    def recorded(function, *example):
        inputs = [tensor.clone() for tensor in example]
        for _ in range(3):
            output = function(*inputs).clone()

        def replay(*tensors):
            for kept, own in zip(inputs, tensors, strict=True):
                kept.copy_(own)
            return output.copy_(function(*inputs))

        return replay

    def weights():
        x, y = small(torch.float64)
        fleet = Stack(members((1, 2), torch.float64))
        parts = RECIPES["combined"](x)
        schedule = Schedule(epochs=2, batch=10)
        return train(fleet, x, y, schedule, parts, separate=separate, generators=[seeded(1), seeded(2)]).weights

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
        images = training._perturbed_images(part, fleet, 28, rows, labels, start)
    assert images.shape == (2, 3, 1, 28, 28)
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
