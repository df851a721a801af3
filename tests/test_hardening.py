"""advbook.experiments.hardening: the search for a budget on functions that are known, and rows of linear networks
beside plain computations.
"""

import math
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import seeded

from advbook import metrics, networks
from advbook.experiments import directions as d
from advbook.experiments import hardening
from advbook.experiments.directions import FIRST, THREATS, principal
from advbook.experiments.hardening import EDGES, PAIRS, TOLERANCE, Hardening, search
from advbook.experiments.setting import Setting, load

# --- the search for a budget ----------------------------------------------------------------------------------------


def logged(rate):
    """The function, and the list of what it was asked."""
    asked = []

    def spy(eps):
        asked.append(eps)
        return rate(eps)

    return spy, asked


def falling(middle, steepness):
    """A rate that falls from 1 to 0, and is one half at the middle."""
    return lambda eps: 1 / (1 + (eps / middle) ** steepness)


@settings(max_examples=200)
@given(
    goal=st.floats(0.1, 0.9), middle=st.floats(0.1, 10), steepness=st.floats(0.5, 5), first=st.floats(0.1, 10)
)  # fmt: skip
def test_the_budget_of_a_falling_rate_is_found(goal, middle, steepness, first):
    rate, asked = logged(falling(middle, steepness))
    found = search(rate, goal, first, rounds=40)
    assert abs(found.rate - goal) <= TOLERANCE
    assert found.rate == falling(middle, steepness)(found.eps)
    assert asked[0] == first
    assert asked[-1] == found.eps, "it stops there"
    exact = middle * (1 / goal - 1) ** (1 / steepness)
    doublings = abs(math.log2(exact / first)) + 2
    assert len(asked) <= doublings + 12


@settings(max_examples=100)
@given(
    values=st.lists(st.floats(0, 1), min_size=12, max_size=12), goal=st.floats(0, 1), rounds=st.integers(1, 12),
    first=st.floats(0.01, 100),
)  # fmt: skip
def test_whatever_the_rates_it_asks_no_more_than_it_may_and_returns_its_best(values, goal, rounds, first):
    """Rates that do not fall, too: those of trained networks have noise."""
    left = iter(values)
    rate, asked = logged(lambda eps: next(left))
    found = search(rate, goal, first, rounds=rounds)
    seen = dict(zip(asked, values, strict=False))
    assert 1 <= len(asked) <= rounds
    assert len(set(asked)) == len(asked), "nothing is asked twice"
    assert all(eps > 0 for eps in asked)
    assert found.rate == seen[found.eps]
    assert abs(found.rate - goal) == min(abs(value - goal) for value in seen.values())
    early = [abs(value - goal) <= TOLERANCE for value in list(seen.values())[:-1]]
    assert not any(early), "it stops at the first that is near enough"


@pytest.mark.parametrize(("level", "factor"), [(1.0, 2.0), (0.0, 0.5)])
def test_while_all_rates_are_on_one_side_the_budget_doubles_or_halves(level, factor):
    rate, asked = logged(lambda eps: level)
    found = search(rate, 0.5, 3.0, rounds=6)
    assert asked == [3.0 * factor**i for i in range(6)]
    assert found.rate == level


def test_between_two_budgets_it_goes_where_a_line_over_the_logarithm_meets_the_goal():
    points = {1.0: 0.9, 2.0: 0.8, 4.0: 0.4}
    rate, asked = logged(lambda eps: points.get(eps, 0.6))
    search(rate, 0.6, 1.0, rounds=10)
    assert asked[:3] == [1.0, 2.0, 4.0]
    assert asked[3] == pytest.approx(2 * 2**0.5)
    assert len(asked) == 4


def test_it_never_goes_closer_than_a_tenth_to_a_known_budget():
    """A cliff: a line between its ends would come no nearer."""
    rate, asked = logged(lambda eps: 1.0 if eps < 1.9 else 0.49)
    search(rate, 0.5, 1.0, rounds=4)
    assert asked == pytest.approx([1.0, 2.0])
    rate, asked = logged(lambda eps: 1.0 if eps < 1.9 else 0.4)
    search(rate, 0.42, 1.0, rounds=4)
    assert asked[:2] == pytest.approx([1.0, 2.0])
    rate, asked = logged(lambda eps: 1.0 if eps < 1.9 else 0.4)
    search(rate, 0.45, 1.0, rounds=5)
    assert asked[2] == pytest.approx(2**0.9), "a line asks for 2^.92"
    assert asked[3] == pytest.approx(asked[2] * (2 / asked[2]) ** 0.9)


# --- rows of linear networks ----------------------------------------------------------------------------------------

SIDE, CLASSES, SEEDS = 4, 3, 2
D = SIDE * SIDE


def images(count, seed):
    """Images far from the box's sides: a pattern of the class, and variation along directions of the class."""
    y = torch.arange(count) % CLASSES
    patterns = torch.randn(CLASSES, D, generator=seeded(98))
    mixing = torch.randn(CLASSES, D, D, generator=seeded(99)) * torch.linspace(1, 0.05, D)
    noise = torch.einsum("bij,bj->bi", mixing[y], torch.randn(count, D, generator=seeded(seed)))
    return (0.5 + 0.06 * patterns[y] + 0.015 * noise).clamp(0, 1).view(count, 1, SIDE, SIDE), y


TOY = Setting(*images(90, 1), *images(50, 2), *images(600, 3), ("a", "b", "c"), "mnist")
TRAININGS = ["normal", *THREATS, *("+".join(pair) for pair in PAIRS)]


def linear(seed, budgets):
    """Scores of the patterns; those of a training lie a little elsewhere."""
    patterns = torch.randn(CLASSES, D, generator=seeded(98))
    shift = torch.randn(CLASSES, D, generator=seeded(int(seed) + 10 * sum(2 ** THREATS.index(one) for one in budgets)))
    layer = torch.nn.Linear(D, CLASSES)
    with torch.no_grad():
        layer.weight.copy_(8 * patterns + 3 * shift)
        layer.bias.copy_(-layer.weight.sum(1) / 2)
    return torch.nn.Sequential(torch.nn.Flatten(), layer).requires_grad_(False)


def toy(**change):
    options = {
        "setting": TOY, "directions": principal(TOY.x, TOY.y, CLASSES),
        "generator": d.generator(TOY.x, TOY.y, CLASSES, 3), "data": ("fonts", "first", 90),
        "network": "mlp", "epochs": 1, "seeds": SEEDS, "train_steps": 1, "steps": 4, "target": 0.7, "success": 0.5,
        "eigen": 4,
    }  # fmt: skip
    return Hardening(**{**options, **change})


def fake(patch):
    """Linear networks in place of trained ones; the list of what was asked for."""
    asked = []

    def members(self, budgets, seeds=None):
        asked.append((dict(budgets), seeds))
        return [linear(seed, budgets) for seed in range(seeds or self.seeds)]

    patch.setattr(Hardening, "networks", members)
    return asked


@pytest.fixture(scope="module")
def toyed():
    """The rows of linear networks, and what was trained for them."""
    with pytest.MonkeyPatch.context() as patch:
        asked = fake(patch)
        return pd.DataFrame(toy().rows()), asked


def test_every_training_is_measured_under_every_threat_once_a_seed(toyed):
    rows, _ = toyed
    robust = rows[rows.what == "robust"]
    every = {(training, threat, seed) for training in TRAININGS for threat in THREATS for seed in range(SEEDS)}
    found = Counter(zip(robust.training, robust.threat, robust.seed, strict=True))
    assert set(found) == every
    assert set(found.values()) == {1}
    errors = rows[rows.what == "error"]
    assert Counter(errors.training) == dict.fromkeys(TRAININGS, SEEDS)


def test_directions_are_measured_for_normal_training_and_for_single_threats(toyed):
    rows, _ = toyed
    single = ["normal", *THREATS]
    measured = {"energy": [*THREATS, "random sign", "data"], "success": ["first directions", "last directions"]}
    for what, threats in measured.items():
        own = rows[rows.what == what]
        found = Counter(zip(own.training, own.threat, own.seed, strict=True))
        assert set(found) == {(a, b, c) for a in single for b in threats for c in range(SEEDS)}
        assert set(found.values()) == {1}
    assert (rows.what == "variances").sum() == 1
    assert list(rows[rows.what == "calibration"].threat) == list(THREATS)


def test_blocks_add_up_to_the_rates(toyed):
    rows, _ = toyed
    counted = rows[rows.counted.notna()]
    assert set(counted.what) == {"robust", "energy", "success", "error"}
    for row in counted.to_dict("records"):
        assert len(row["hits_average"]) == len(row["counted"]) == metrics.BLOCKS
        rate = row["test_error"] if row["what"] == "error" else row["rate"]
        assert sum(row["hits_average"]) / sum(row["counted"]) == pytest.approx(rate, abs=1e-5)


def test_what_counts_are_the_images_that_a_network_has_right(toyed):
    rows, _ = toyed
    for (training, seed), own in rows[rows.counted.notna()].groupby(["training", "seed"]):
        member = linear(int(seed), () if training == "normal" else training.split("+"))
        right = (member(TOY.x_test).argmax(1) == TOY.y_test).double()
        wrong = (member(TOY.x_held_out).argmax(1) != TOY.y_held_out).double()
        for row in own.to_dict("records"):
            if row["what"] == "error":
                assert row["hits_average"] == metrics.block_counts(wrong.numpy())
                assert sum(row["counted"]) == len(wrong)
            elif row["what"] == "robust":
                assert sum(row["counted"]) == len(right)
                assert (np.array(row["hits_average"]) <= metrics.block_counts(right.numpy())).all()
            else:
                assert row["counted"] == metrics.block_counts(right.numpy()), "all of them were moved"


def test_all_networks_are_attacked_within_the_calibrated_budgets(toyed):
    rows, asked = toyed
    eps = rows[rows.what == "calibration"].set_index("threat").eps.to_dict()
    for row in rows[rows.what == "robust"].to_dict("records"):
        assert row["eps"] == eps[row["threat"]]
    trained = [budgets for budgets, seeds in asked if seeds is None]
    expected = [{}, *({one: eps[one]} for one in THREATS), *({one: eps[one] for one in pair} for pair in PAIRS)]
    assert trained == expected
    assert list(PAIRS) == list(combinations(THREATS, 2))


def test_budgets_are_calibrated_on_one_network_and_images_of_their_own(toyed):
    rows, asked = toyed
    for row in rows[rows.what == "calibration"].to_dict("records"):
        tried = [budgets[row["threat"]] for budgets, seeds in asked if seeds == 1 and row["threat"] in budgets]
        assert 1 <= len(tried) <= 6
        assert tried[0] == FIRST[row["threat"]]
        assert row["eps"] in tried
        assert row["goal"] == 0.7
        x, y = TOY.x_held_out[:500], TOY.y_held_out[:500]
        stands = toy().robust([linear(0, [row["threat"]])], row["threat"], row["eps"], x, y)
        assert stands.double().mean().item() == pytest.approx(row["rate"])
        assert len(tried) == 6 or abs(row["rate"] - 0.7) <= TOLERANCE
        more = toy().robust([linear(0, [row["threat"]])], row["threat"], 2 * row["eps"], x, y)
        assert more.double().mean() < stands.double().mean()


def test_a_network_stands_where_it_is_right_and_no_attack_is_found(toyed):
    """A linear network can be fooled within eps in L-inf just if eps |w_k - w_y|_1 bridges the margin to a class k."""
    rows, _ = toyed
    for row in rows[(rows.what == "robust") & (rows.threat == "linf")].to_dict("records"):
        f = linear(row["seed"], () if row["training"] == "normal" else row["training"].split("+"))
        logits, w = f(TOY.x_test), f[1].weight
        slopes = (w[None] - w[TOY.y_test][:, None]).abs().sum(2)
        reached = logits + row["eps"] * slopes
        own = logits.gather(1, TOY.y_test[:, None])
        possible = (reached > own).masked_fill(torch.nn.functional.one_hot(TOY.y_test, 3).bool(), False).any(1)
        right = logits.argmax(1) == TOY.y_test
        exact = (right & ~possible).double().mean().item()
        assert exact - 1e-9 <= row["rate"] <= exact + 0.1
        assert row["rate"] <= right.double().mean().item()


def test_attacks_are_compared_where_each_fools_the_same_share(toyed):
    rows, _ = toyed
    own = rows[(rows.what == "energy") & rows.threat.isin(THREATS)]
    assert (abs(own.fooled - 0.5) <= 0.06).all(), "of 40 and more images, a search comes no nearer"
    budgets = own.groupby(["training", "threat"]).eps.nunique()
    assert (budgets == 1).all(), "one budget for all seeds"
    assert own[own.training == "normal"].eps.nunique() == len(THREATS)


def test_shares_of_energy_sum_to_one_and_those_of_a_generator_lie_in_its_span(toyed):
    rows, _ = toyed
    for row in rows[rows.energies.notna()].to_dict("records"):
        assert len(row["energies"]) == len(EDGES) - 1
        assert sum(row["energies"]) == pytest.approx(1, abs=1e-4)
        if row["threat"] == "generative":
            assert sum(row["energies"][:3]) > 0.999, "three codes lie in the bins 1, 2 and 3 to 5"
        elif row["what"] == "energy":
            assert sum(row["energies"][:3]) < 0.999


def test_energies_are_those_of_the_attack_at_its_whole_budget(toyed):
    """Found again by hand, for normal training under L2."""
    rows, _ = toyed
    own = rows[(rows.what == "energy") & (rows.training == "normal") & (rows.threat == "l2")].set_index("seed")
    members, found = [linear(seed, ()) for seed in range(SEEDS)], toy().directions
    given_ = hardening.Given(TOY.x_test, TOY.y_test, 30_001, "never")
    attack = toy().attacked(members, "l2", own.eps[0], given_)
    for seed in range(SEEDS):
        delta = attack.x[0, seed] - TOY.x_test
        assert delta.flatten(1).norm(dim=1).tolist() == pytest.approx([own.eps[0]] * 50, rel=1e-3)
        values, sums = [], torch.zeros(D)
        for b in torch.nonzero(members[seed](TOY.x_test).argmax(1) == TOY.y_test)[:, 0].tolist():
            k = TOY.y_test[b]
            share = (found.vectors[k] @ delta[b].flatten()).square()
            share = share / share.sum()
            values.append(((share * found.variances[k]).sum() / found.variances[k].mean()).item())
            sums += share
        assert own.rate[seed] == pytest.approx(np.mean(values), rel=1e-4)
        binned = [(sums / len(values))[low:high].sum().item() for low, high in pairwise(EDGES)]
        assert own.energies[seed] == pytest.approx(binned, abs=1e-4)


def test_references_are_random_signs_and_other_images_of_the_class(toyed):
    """Random signs use all directions alike; the way to another image those in which images differ."""
    rows, _ = toyed
    own = rows[(rows.what == "energy") & rows.threat.isin(["random sign", "data"])]
    assert own.eps.isna().all()
    assert own.fooled.isna().all()
    mean = own.groupby("threat").rate.mean()
    variances = toy().directions.variances
    expected = ((variances.square().sum(1) / variances.sum(1)) / variances.mean(1)).mean().item()
    assert mean["random sign"] == pytest.approx(1, abs=0.2)
    assert 0.6 * expected < mean["data"] < 1.2 * expected
    assert expected > 2


def test_eigenspace_attacks_use_the_budget_of_the_l2_attack_and_fool_no_more(toyed):
    rows, _ = toyed
    for (training, seed), own in rows[rows.what == "success"].groupby(["training", "seed"]):
        chosen = (rows.what == "energy") & (rows.training == training) & (rows.seed == seed) & (rows.threat == "l2")
        free = rows[chosen].iloc[0]
        assert set(own.eps) == {free.eps}
        f = linear(int(seed), () if training == "normal" else training.split("+"))
        right = f(TOY.x_test).argmax(1) == TOY.y_test
        given_ = hardening.Given(TOY.x_test, TOY.y_test, 0, "never")
        won = toy(steps=40).attacked([f], "l2", free.eps, given_).success[0, 0] & right
        assert (own.rate <= (won.sum() / right.sum()).item() + 0.03).all()
    found = rows[rows.what == "success"].groupby("threat").rate.mean()
    assert found["first directions"] != found["last directions"]


def test_the_variances_of_the_data_are_averaged_over_classes(toyed):
    rows, _ = toyed
    (found,) = rows[rows.what == "variances"].energies
    own = [TOY.x[torch.eq(TOY.y, k)].flatten(1).double() for k in range(CLASSES)]
    spectra = [torch.linalg.eigvalsh(torch.cov(x.T)).flip(0) for x in own]
    share = torch.stack([one / one.sum() for one in spectra]).mean(0)
    expected = [share[low:high].sum().item() for low, high in pairwise(EDGES)]
    assert found == pytest.approx(expected, abs=1e-5)


def test_bins_cover_every_direction_of_an_image_once():
    assert EDGES[0] == 0
    assert EDGES[-1] == 28 * 28
    assert list(EDGES) == sorted(set(EDGES))
    parts = torch.rand(784, generator=seeded())
    assert sum(hardening._binned(parts)).item() == pytest.approx(parts.sum().item(), rel=1e-5)


@pytest.mark.slow
def test_the_same_point_gives_the_same_rows(toyed, monkeypatch):
    rows, _ = toyed
    fake(monkeypatch)
    pd.testing.assert_frame_equal(pd.DataFrame(toy().rows()), rows)


def test_where_a_network_is_right_of_nothing_no_row_fails(monkeypatch):
    """A network that always says a class that is not there."""
    member = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(D, CLASSES)).requires_grad_(False)
    member[1].weight.zero_()
    member[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    monkeypatch.setattr(Hardening, "networks", lambda self, budgets, seeds=None: [member] * (seeds or self.seeds))
    own = TOY.y_test != 0
    lost = Setting(TOY.x, TOY.y, TOY.x_test[own], TOY.y_test[own], *images(30, 3), TOY.classes, TOY.dataset)
    rows = pd.DataFrame(toy(setting=lost, seeds=1, steps=1).rows())
    assert (rows[rows.what == "robust"].rate == 0).all()
    for row in rows[rows.what.isin(["energy", "success"])].to_dict("records"):
        assert sum(row["counted"]) == sum(row["hits_average"]) == 0


def test_what_is_trained_is_what_the_point_says(monkeypatch):
    seen = {}

    def spy(*given_, **options):
        seen.update(options, given=given_)
        return []

    monkeypatch.setattr(d, "hardened", spy)
    p = toy(epochs=7, train_steps=9, seeds=4, network="cnn")
    p.networks({"l2": 0.5})
    setting, data, budgets, found = seen.pop("given")
    assert (setting, data, budgets, found) == (p.setting, p.data, {"l2": 0.5}, p.generator)
    assert (seen["schedule"].epochs, seen["steps"], seen["seeds"], seen["network"]) == (7, 9, 4, "cnn")
    p.networks({}, seeds=1)
    assert seen["seeds"] == 1


# --- real networks --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_real_run_has_every_row_and_trains_nothing_twice(home, monkeypatch):
    monkeypatch.setattr(d, "bfloat16_is_fast", lambda device: False)
    monkeypatch.setattr(hardening, "bfloat16_is_fast", lambda device: False)
    made = networks.cnn
    monkeypatch.setitem(networks._NETWORKS, "cnn", lambda classes, **options: made(classes, (4, 4), **options))
    setting = load("fonts", 200, "first", 25, torch.device("cpu"), held_out=500)
    found, codes = principal(setting.x, setting.y, 10), d.generator(setting.x, setting.y, 10, 5)
    p = toy(
        setting=setting,
        directions=found,
        generator=codes,
        data=("fonts", "first", 200),
        network="cnn",
        seeds=1,
        steps=2,
    )
    rows = p.rows()
    table = pd.DataFrame(rows)
    counts = table.groupby("what").size().to_dict()
    assert counts == {
        "calibration": 4, "variances": 1, "error": 11, "robust": 11 * 4, "energy": 5 * 6,
        "success": 5 * 2,
    }  # fmt: skip
    monkeypatch.setattr("advbook.training.train", None)
    again = pd.DataFrame(p.rows())
    pd.testing.assert_frame_equal(again, table)
