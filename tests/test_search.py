"""advbook.attacks.search: against a plain loop, what a proposal is told, the dice, the count, what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbook.attacks.norms import LINF, zero
from advbook.attacks.objectives import fooled, log_odds, margin
from advbook.attacks.search import Dice, Proposal, attack, search
from advbook.attacks.spaces import Pixels
from advbook.fleet import Stack

SHAPE = (1, 3, 3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Network:
    """A small smooth classifier that counts what it is shown; float64 inside, so that batches do not change a bit."""

    def __init__(self, seed=0):
        self.first = 1.3 * torch.randn(9, 8, generator=seeded(seed), dtype=torch.float64)
        self.second = torch.randn(8, 3, generator=seeded(seed + 1), dtype=torch.float64)
        self.sizes, self.gradients = [], []

    def __call__(self, x):
        self.sizes.append(len(x))
        self.gradients.append(torch.is_grad_enabled())
        return ((x.double().flatten(1) - 0.5) @ self.first).tanh().matmul(self.second).to(x.dtype)


def problem(images=7, restarts=3, eps=0.2, seed=0):
    """Images whose labels are mostly the network's own, and start points."""
    x = torch.rand(images, *SHAPE, generator=seeded(seed + 1))
    network = Network(seed)
    y = network(x).argmax(1)
    y[::5] = (y[::5] + 1) % 3
    network.sizes.clear()
    network.gradients.clear()
    start = eps * (2 * torch.rand(restarts, images, *SHAPE, generator=seeded(seed + 2)) - 1)
    return network, Pixels(x, eps), y, start


def waves(eps):
    """A proposal without chance: the best point and a wave whose phase a state of its own carries on."""

    def propose(state, seen, dice):
        (phase,) = state
        phase = phase + 1.7 + 0.3 * seen.better
        wave = torch.sin(phase[:, None] * (1 + torch.arange(9))).view(-1, *SHAPE)
        return (phase,), seen.u + 2 * eps * wave / seen.clock[:, None, None, None]

    return Proposal(lambda u: (u.new_zeros(len(u)),), propose)


def still():
    return Proposal(lambda u: (), lambda state, seen, dice: (state, seen.u))


def noise(eps):
    """A proposal of chance alone: the best point, shaken."""

    def propose(state, seen, dice):
        return state, seen.u + eps * (dice.uniform(seen.u, 9).view_as(seen.u) - 0.5)

    return Proposal(lambda u: (), propose)


# --- the loop -------------------------------------------------------------------------------------------------


def one_by_one(network, space, y, start, eps, queries, stops):
    """The search of every pair on its own, as one would write it down first."""
    found, value = start.clone(), torch.empty(start.shape[:2])
    won, tried = torch.zeros(start.shape[:2], dtype=torch.bool), torch.full(start.shape[:2], queries - 1)
    for r in range(start.shape[0]):
        for b in range(start.shape[1]):
            row = torch.tensor([b])
            best, top, phase = None, -math.inf, 0.0
            candidate = space[row].project(start[r, row])
            for query in range(1, queries + 1):
                logits = network(space[row].image(candidate))
                score, win = margin(logits, y[row]).item(), fooled(logits, y[row]).item()
                better = score > top
                if better or (win and stops):
                    best, top, won[r, b] = candidate, score, win
                if win and stops:
                    tried[r, b] = query - 1
                    break
                phase = phase + 1.7 + 0.3 * better
                wave = torch.sin(torch.tensor(phase) * (1 + torch.arange(9))).view(1, *SHAPE)
                candidate = space[row].project(best + 2 * eps * wave / query)
            found[r, b], value[r, b] = best[0], top
    return found, won, value, tried


@pytest.mark.parametrize("stop", ["pair", "never"])
@pytest.mark.parametrize("batch", [1, 4, 512])
def test_it_is_the_plain_loop_whatever_the_packing(stop, batch):
    network, space, y, start = problem(images=9)
    found, won, value, tried = one_by_one(network, space, y, start, 0.2, 15, stop == "pair")
    assert 0 < won.sum() < won.numel(), "the case must have both"
    network.sizes.clear()
    result = search(network, space, y, start, objective=margin, proposal=waves(0.2), queries=15, win=fooled, stop=stop,
                    generator=seeded(), batch=batch)  # fmt: skip
    assert torch.equal(result.won, won)
    assert torch.equal(result.steps, tried)
    torch.testing.assert_close(result.value, value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.u, found, atol=1e-5, rtol=0)
    assert result.forwards == pytest.approx(sum(network.sizes) / 9)
    assert int((tried + 1).sum()) <= sum(network.sizes) <= int((tried + 1).sum()) * 8 / 7, "few slots are idle"


@given(
    images=st.integers(1, 5),
    restarts=st.integers(1, 3),
    queries=st.integers(1, 9),
    batch=st.integers(1, 20),
    eps=st.one_of(st.just(0.0), st.floats(0, 0.5)),
    stop=st.sampled_from(["pair", "image", "never"]),
    seed=st.integers(0, 20),
)
def test_what_holds_for_every_run(images, restarts, queries, batch, eps, stop, seed):
    network, space, y, start = problem(images, restarts, eps, seed)
    result = search(network, space, y, start, objective=log_odds, proposal=noise(eps), queries=queries, win=fooled,
                    stop=stop, generator=seeded(seed), batch=batch)  # fmt: skip
    assert not any(network.gradients), "a search needs no gradients"
    assert result.u.shape == start.shape
    assert result.u.abs().max() <= eps
    assert (result.steps < queries).all()
    assert max(network.sizes) <= batch
    assert sum(network.sizes) <= restarts * images * queries
    if stop == "never":
        assert result.forwards == restarts * queries
    if stop == "pair":
        assert (result.steps[~result.won] == queries - 1).all()
    tried = result.value > -math.inf  # an image that was won before has restarts that never began
    assert tried.all() or stop == "image"
    for u, won, value, shown in zip(result.u, result.won, result.value, tried, strict=True):
        logits = network(space.image(u))
        torch.testing.assert_close(value[shown], log_odds(logits, y)[shown], atol=1e-5, rtol=1e-5)
        assert torch.equal(won[shown], fooled(logits, y)[shown]), "what was judged is what is returned"


def test_with_more_queries_the_best_value_never_falls():
    network, space, y, start = problem()
    last = torch.full((3, 7), -math.inf)
    for queries in (1, 2, 5, 20, 40):
        value = search(network, space, y, start, objective=margin, proposal=noise(0.2), queries=queries, win=fooled,
                       stop="never", generator=seeded()).value  # fmt: skip
        assert (value >= last).all()
        last = value
    first = search(network, space, y, start, objective=margin, proposal=still(), queries=1, generator=seeded()).value
    assert (last > first).float().mean() > 0.9, "and it rises"


def test_at_a_tie_the_older_point_stays_and_the_search_goes_on_from_there():
    x, shown = torch.full((2, *SHAPE), 0.5), []
    away = Proposal(lambda u: (), lambda state, seen, dice: (state, seen.u + 0.1))
    f, start = lambda x: shown.append(x) or x.new_zeros(len(x), 2), torch.zeros(1, 2, *SHAPE)
    result = search(f, Pixels(x, 0.3), torch.zeros(2).long(), start, objective=margin, proposal=away, queries=5,
                    generator=seeded())  # fmt: skip
    assert (result.u == 0).all()
    assert all(torch.equal(image, x + 0.1) for image in shown[1:])


def test_a_proposal_is_told_the_best_point_whether_it_is_new_and_how_many_were_judged():
    """One pixel runs through .1, .3, .2, .4 and the objective is its value."""
    path, told = torch.tensor([0.3, 0.2, 0.4, 0.1]), []

    def propose(state, seen, dice):
        told.append((round(seen.u.item(), 6), round(seen.value.item(), 6), seen.better.item(), seen.clock.item()))
        return state, path[seen.clock - 1].view(1, 1, 1, 1)

    x = torch.zeros(1, 1, 1, 1)
    search(lambda x: x.flatten(1), Pixels(x, 1.0), torch.zeros(1), torch.full((1, 1, 1, 1, 1), 0.1), queries=4,
           objective=lambda x, _: x[:, 0], proposal=Proposal(lambda u: (), propose), generator=seeded())  # fmt: skip
    assert told == [(0.1, 0.1, True, 1), (0.3, 0.3, True, 2), (0.3, 0.3, False, 3), (0.4, 0.4, True, 4)]


def test_a_won_image_ends_its_other_restarts_if_asked_to():
    network, space, y, start = problem(restarts=4)
    cost = {}
    for stop in ("pair", "image"):
        result = search(network, space, y, start, objective=margin, proposal=noise(0.2), queries=30, win=fooled,
                        stop=stop, generator=seeded(), batch=7)  # fmt: skip
        cost[stop] = result.forwards
        assert result.won.any(0).sum() >= 2
    assert cost["image"] < cost["pair"]


def test_a_draft_leads_and_the_network_itself_judges():
    network, space, y, start = problem()
    draft = Network(5)
    result = search(network, space, y, start, objective=margin, proposal=noise(0.2), queries=20, win=fooled,
                    draft=draft, generator=seeded())  # fmt: skip
    assert sum(draft.sizes) >= sum(network.sizes) > 0
    for u, won in zip(result.u, result.won, strict=True):
        assert torch.equal(fooled(network(space.image(u)), y), won)


# --- chance ---------------------------------------------------------------------------------------------------


def test_the_generator_alone_decides():
    network, space, y, start = problem()
    one, again, other = (
        search(
            network, space, y, start, objective=margin, proposal=noise(0.2), queries=9, generator=seeded(seed), batch=5
        )
        for seed in (3, 3, 4)
    )
    assert torch.equal(one.u, again.u)
    assert not torch.equal(one.u, other.u)


def test_the_dice_give_every_member_the_same_and_every_slot_its_own():
    dice, u = Dice(seeded(), 3), torch.zeros(12, 2, 2, dtype=torch.float64)
    draw = dice.uniform(u, 5)
    assert draw.shape == (12, 5)
    assert draw.dtype == torch.float64
    assert draw.min() >= 0
    assert draw.max() < 1
    assert torch.equal(draw[:4], draw[4:8])
    assert torch.equal(draw[:4], draw[8:])
    assert (torch.cdist(draw[:4], draw[:4]) + torch.eye(4)).min() > 1e-3
    assert not torch.equal(draw, dice.uniform(u, 5))


@given(slots=st.integers(1, 4), columns=st.integers(1, 6), seed=st.integers(0, 20))
def test_every_column_is_visited_once_before_any_is_visited_again(slots, columns, seed):
    dice, u = Dice(seeded(seed), 1), torch.zeros(slots, 1)
    visited, order = torch.zeros(slots, columns, dtype=torch.bool), []
    for _ in range(3 * columns):
        column, visited = dice.unvisited(visited, u)
        order.append(column)
    for sweep in torch.stack(order, 1).split(columns, 1):
        assert torch.equal(sweep.sort(1).values, torch.arange(columns).expand(slots, -1))


def test_columns_come_in_every_order():
    dice, u = Dice(seeded(), 1), torch.zeros(600, 1)
    visited, order = torch.zeros(600, 3, dtype=torch.bool), []
    for _ in range(3):
        column, visited = dice.unvisited(visited, u)
        order.append(column)
    count = torch.stack(order, 1).unique(dim=0, return_counts=True)[1]
    assert len(count) == 6
    assert count.min() > 60, "100 of each are expected"


# --- fleets ---------------------------------------------------------------------------------------------------


def affine(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3).double())


@pytest.mark.parametrize("stop", ["pair", "image", "never"])
@pytest.mark.parametrize("batch", [4, 100])
def test_a_fleet_of_two_equal_members_gives_the_same_as_one(stop, batch):
    _, space, y, start = problem()
    space, start = Pixels(space.x.double(), 0.2), start.double()
    options = {"objective": margin, "proposal": noise(0.2), "queries": 12, "win": fooled, "stop": stop}
    one = search(affine(0), space, y, start, **options, generator=seeded(), batch=batch)
    assert stop == "never" or 0 < one.won.sum() < one.won.numel(), "the case must have both"
    two = search(Stack([affine(0), affine(0)]), space, y, start[:, None].expand(-1, 2, -1, -1, -1, -1), **options,
                 generator=seeded(), batch=2 * batch)  # fmt: skip
    for m in range(2):
        torch.testing.assert_close(two.u[:, m], one.u, atol=1e-12, rtol=0)
        assert torch.equal(two.won[:, m], one.won)
        assert torch.equal(two.steps[:, m], one.steps)
    assert two.forwards == one.forwards


def test_members_that_differ_find_what_fools_each_of_them():
    _, space, y, start = problem()
    space, start = Pixels(space.x.double(), 0.2), start.double()[:, None].expand(-1, 2, -1, -1, -1, -1)
    members = [affine(0), affine(1)]
    result = search(Stack(members), space, y, start, objective=margin, proposal=noise(0.2), queries=20, win=fooled,
                    generator=seeded(), batch=6)  # fmt: skip
    assert result.won.shape == (3, 2, 7)
    assert not torch.equal(result.steps[:, 0], result.steps[:, 1])
    for m, member in enumerate(members):
        for u, won in zip(result.u[:, m], result.won[:, m], strict=True):
            assert torch.equal(fooled(member(space.image(u)), y), won)


# --- edges ----------------------------------------------------------------------------------------------------


def test_an_attack_gives_images_and_by_default_raises_the_margin():
    network, space, y, _ = problem()
    result = attack(network, space, y, space.x, start=zero(LINF, 0.2), proposal=noise(0.2), queries=30, restarts=2,
                    stop="never", generator=seeded())  # fmt: skip
    assert result.x.shape == (2, 7, *SHAPE)
    for x, value, success in zip(result.x, result.value, result.success, strict=True):
        torch.testing.assert_close(margin(network(x), y), value, atol=1e-5, rtol=0)
        assert torch.equal(fooled(network(x), y), success)
        assert (value >= margin(network(space.x), y)).all()
    assert result.forwards == 2 * 30


def test_no_images_are_no_work():
    network, space, y, start = problem()
    result = search(network, space[torch.arange(0)], y[:0], start[:, :0], objective=margin, proposal=noise(0.2),
                    queries=3, win=fooled, generator=seeded())  # fmt: skip
    assert result.u.shape == (3, 0, *SHAPE)
    assert result.forwards == 0


def test_float64_stays_float64():
    network, space, y, start = problem()
    result = search(network, Pixels(space.x.double(), 0.2), y, start.double(), objective=margin, proposal=noise(0.2),
                    queries=3, generator=seeded())  # fmt: skip
    assert result.u.dtype == result.value.dtype == torch.float64


@pytest.mark.parametrize("queries", [0, -3])
def test_a_search_without_queries_is_refused(queries):
    network, space, y, start = problem()
    with pytest.raises(ValueError, match=rf"^queries = {queries}: .*1 or more"):
        search(network, space, y, start, objective=margin, proposal=still(), queries=queries, generator=seeded())
    with pytest.raises(ValueError, match=rf"^queries = {queries}: .*1 or more"):
        attack(network, space, y, space.x, start=zero(LINF, 0.2), proposal=still(), queries=queries, restarts=1,
               generator=seeded())  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("call", [0, 2], ids=["at once", "later"])
def test_a_network_that_gives_no_numbers_is_an_error(value, call):
    network, space, y, start = problem()

    def broken(x):
        logits = network(x)
        return logits.where(torch.tensor(len(network.sizes) <= call), value)

    with pytest.raises(ValueError, match="not finite"):
        search(broken, space, y, start, objective=margin, proposal=noise(0.2), queries=5, generator=seeded())
