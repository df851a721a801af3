"""advbook.training: the schedule's numbers, the order of the batches, seeds, and that it learns."""

import copy
import math
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advbook.networks import cnn, predict
from advbook.training import Schedule, normal


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Spy(nn.Module):
    """A network that keeps what it was shown; an image's first pixel is its row."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 2)
        self.seen = []

    def forward(self, x):
        self.seen.append(x.flatten().long().tolist())
        return self.linear(x.flatten(1))


def shown(n, batch, epochs, seed=0):
    """The rows in every batch of a training run on n rows."""
    spy = Spy()
    normal(spy, torch.arange(n).float().view(n, 1, 1, 1), torch.zeros(n).long(),
           Schedule(batch=batch, epochs=epochs), generator=seeded(seed))  # fmt: skip
    return spy.seen


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
    normal(network, x.double(), y, schedule, generator=seeded(2))

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
    assert trained is network
    assert not trained.training
    assert (predict(trained, x[150:]).argmax(1) == y[150:]).all()


def test_zero_epochs_change_nothing():
    network = cnn(2, (4,), generator=seeded())
    before = copy.deepcopy(network.state_dict())
    normal(network, *separable(10), Schedule(epochs=0), generator=seeded())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_loss_that_is_not_finite_ends_the_training_in_one_sentence():
    x, y = separable(20)
    x[3, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"^Training diverged in epoch 1: the loss is not finite\.$"):
        normal(cnn(2, (4,), generator=seeded()), x, y, Schedule(epochs=2, batch=20), generator=seeded())
