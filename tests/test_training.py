"""advbook.training: the schedule's numbers, the order of the batches, seeds, members alone and together, and that it
learns.
"""

import copy
import math
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import Devices
from torch import nn

from advbook import training
from advbook.attacks.pgd import pgd
from advbook.attacks.steps import sign
from advbook.fleet import Stack
from advbook.networks import cnn, predict
from advbook.training import Adversary, Schedule, adversarial


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(network, x, y, schedule, *, generator):
    """Normal training of one network: a fleet of one."""
    (trained,) = training.normal(Stack([network]), x, y, schedule, generators=[generator]).unstack()
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


def fitted(recipe, seeds, schedule, dtype, vectorized):
    fleet, generators = Stack(members(seeds, dtype), vectorized=vectorized), [seeded(seed) for seed in seeds]
    x, y = small(dtype)
    if recipe == "normal":
        return training.normal(fleet, x, y, schedule, generators=generators)
    adversary = Adversary(eps=0.1, steps=5, lr=0.02)
    return adversarial(fleet, x, y, schedule, adversary, share=recipe, generators=generators)


@pytest.mark.parametrize("vectorized", [False, True], ids=["one by one", "vectorized"])
@pytest.mark.parametrize("recipe", ["normal", 0.5, 1.0])
@pytest.mark.parametrize(
    ("dtype", "epochs", "tolerance"), [(torch.float64, 10, 1e-8), (torch.float32, 1, 1e-5)], ids=["20 steps", "1 step"]
)
def test_a_member_is_the_network_trained_alone(recipe, vectorized, dtype, epochs, tolerance):
    schedule = Schedule(epochs=epochs, batch=10 if epochs > 1 else 20)
    together = fitted(recipe, (1, 2, 3), schedule, dtype, vectorized).unstack()
    for seed, member in zip((1, 2, 3), together, strict=True):
        (alone,) = fitted(recipe, (seed,), schedule, dtype, False).unstack()
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(member.state_dict()[name], value, atol=tolerance, rtol=tolerance)
    assert not torch.equal(together[0][0].weight, together[1][0].weight), "the members differ"


def test_a_generator_for_every_member():
    with pytest.raises(ValueError, match=r"^generators: 1 for a fleet of 2; allowed is one a member\.$"):
        training.normal(Stack(members((1, 2), torch.float32)), *small(torch.float32), Schedule(), generators=[seeded()])


# --- adversarial training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=rf"^share = {share}: allowed is more than 0 and at most 1\.$"):
        adversarial(Stack(members((1,), torch.float32)), *small(torch.float32), Schedule(), Adversary(), share=share,
                    generators=[seeded()])  # fmt: skip


@pytest.mark.parametrize("wrong", [{"eps": -0.1}, {"steps": -1}, {"lr": 0}, {"precision": "float16"}, {"epsilon": 0.3}])
def test_an_adversary_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Adversary(**wrong)


def test_the_papers_adversary_is_the_default():
    assert Adversary().model_dump() == {"eps": 0.3, "steps": 40, "lr": 0.005, "precision": "float32"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_inner_attack_asks_nothing_of_the_host(precision):
    """So that a CUDA graph can record it: on the meta device, a copy from the host shows as one."""
    fleet = Stack([module.to("meta") for module in members((1, 2), torch.float32)]).eval()
    x, y = torch.zeros(2, 3, 1, 8, 8, device="meta"), torch.zeros(2, 3, dtype=torch.long, device="meta")
    with Devices() as seen:
        Adversary(steps=2, precision=precision).attack(fleet, x, y, x)
    assert seen.devices == {"meta"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_inner_attack_stays_in_the_ball_and_raises_the_loss(precision):
    fleet = Stack(members((1, 2), torch.float32)).eval()
    x = torch.rand(2, 6, 1, 8, 8, generator=seeded(3))
    y = torch.arange(12).view(2, 6) % 2
    adversary = Adversary(eps=0.1, steps=20, lr=0.02, precision=precision)
    found = adversary.attack(fleet, x, y, torch.zeros_like(x))
    assert found.shape == x.shape
    assert ((found.double() - x.double()).abs() <= 0.1).all()
    assert (found >= 0).all()
    assert (found <= 1).all()

    def loss(images):
        return nn.functional.cross_entropy(fleet(images).flatten(0, 1), y.flatten(), reduction="none")

    assert (loss(found) > loss(x)).all()


def test_the_last_rows_of_a_batch_are_attacked_and_both_halves_weigh_the_same(monkeypatch):
    """The loss of one batch with a planted attack, against the formula written down."""
    monkeypatch.setattr(Adversary, "attack", lambda self, fleet, x, y, start: 1 - x)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    x, y = small(torch.float64, 10)
    expected = copy.deepcopy(network)
    fleet = Stack([network])
    adversarial(
        fleet, x, y, Schedule(epochs=1, batch=10, weight_decay=0), Adversary(), share=0.3, generators=[seeded(4)]
    )
    order = torch.randperm(10, generator=seeded(4))
    clean, attacked = order[:7], order[7:]
    loss = F.cross_entropy(expected(x[clean]), y[clean]) + F.cross_entropy(expected(1 - x[attacked]), y[attacked])
    slope = torch.autograd.grad(loss / 2, expected[1].weight)[0]
    step = expected[1].weight.detach() - fleet.weights["1.weight"][0].detach()
    torch.testing.assert_close(step, 0.01 * 0.95 * slope / (slope.abs() + 1e-8), atol=1e-9, rtol=1e-6)


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
    adversary = Adversary(eps=0.2, steps=10, lr=0.04)
    (robust,) = adversarial(fleet, x[:200], y[:200], schedule, adversary, share=share, generators=[seeded(1)]).unstack()
    assert fooled(plain) > 0.5
    assert fooled(robust) < fooled(plain) - 0.3
    assert (predict(robust, x[held]).argmax(1) == y[held]).double().mean() > 0.9


def test_a_loss_that_is_not_finite_ends_adversarial_training_too():
    x, y = separable(20)
    x[3, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="epoch 1"):
        adversarial(Stack([cnn(2, (4,), generator=seeded())]), x, y, Schedule(epochs=1, batch=20), Adversary(steps=2),
                    generators=[seeded()])  # fmt: skip
