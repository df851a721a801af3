"""advbook.experiments.on_manifold: planted networks with known answers, small runs on the true manifold and on
planted ones that stand for learned ones.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learned import LATENTS, image_of, plant, planted_images
from torch import nn
from toys import seeded

from advbook import figures, fonts, ledger, networks
from advbook.attacks.apgd import strongest_latent
from advbook.attacks.pgd import pgd_latent
from advbook.experiments import off_manifold, on_manifold, setting
from advbook.experiments.on_manifold import (
    ATTACKS,
    MOVED,
    OFF,
    ON,
    ON_DATA,
    ON_RANGE,
    OnManifold,
    Target,
    random_moves,
    read_untold,
)
from advbook.experiments.setting import Known
from advbook.manifolds.projection import Manifold

LOW, HIGH = (np.array(bound) for bound in (fonts.THETA_LOW, fonts.THETA_HIGH))
MOVES = ("paper", "strong", "random moves", "random search")
SMALL = {
    "n": 500,
    "epochs": 8,
    "images": 30,
    "seeds": 2,
    "steps": 6,
    "restarts": 2,
    "strong_steps": 4,
    "judged": 6,
    "eta": 0.2,
}
quick_untold = partial(read_untold, pool=1_000, starts=1, steps=1)


def row(rows, what, threat, attack, seed="all"):
    """The one row of an attack."""
    (found,) = rows[
        (rows.what == what) & (rows.threat == threat) & (rows.attack == attack) & (rows.seed == seed)
    ].to_dict("records")
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small real run: its parameters, rows and arrays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVBOOK_HOME", str(tmp_path_factory.mktemp("small")))
        patch.setattr(on_manifold, "read_untold", quick_untold)
        p = OnManifold(**SMALL)
        rows = p.rows()
        return p, rows, ledger.arrays(rows.arrays[0])


def planted(monkeypatch, home, network, **changed):
    """The rows of a run whose two networks are a given one."""
    monkeypatch.setattr(OnManifold, "networks", lambda self, data: [network] * self.seeds)
    monkeypatch.setattr(on_manifold, "read_untold", quick_untold)
    return OnManifold(**{**SMALL, "n": 100, "steps": 2, "strong_steps": 2, "judged": 3, **changed}).rows()


# --- networks with known answers: on codes ----------------------------------------------------------------------


def known(count=20, seed=0, dtype=torch.float64):
    """Codes all over the box, in float64, so that budgets can be checked to the last digits."""
    codes = fonts.random_rows("test", count, seed=seed)
    codes = fonts.Rows(codes.theta.to(dtype), codes.font, codes.letter)
    low, high = (torch.tensor(bound, dtype=dtype) for bound in (fonts.THETA_LOW, fonts.THETA_HIGH))
    return Known(Manifold(fonts.decode, fonts.decode_with_jacobian, low, high), codes, codes)


def target(p, own, units="raw"):
    """What a threat on the true manifold moves."""
    return Target(own.codes("test"), p.eta if units == "raw" else p.eta_range, units)


def space(p, own, units):
    return target(p, own, units).space()


def reads_latent(column, bound):
    """Codes to logits: class 0 unless the latent lies above the bound; every other latent is ignored."""

    def f(codes):
        over = codes[:, column] - bound
        return torch.stack([torch.zeros_like(over), 50 * over], 1)

    return f


@pytest.mark.parametrize("units", ["raw", "range"])
@pytest.mark.parametrize("column", range(6), ids=fonts.THETA_NAMES)
def test_a_network_that_reads_one_latent_falls_exactly_where_the_budget_reaches(units, column):
    p, codes = OnManifold(eta=0.1, eta_range=0.07), known(60)
    where, width = space(p, codes, units), float(HIGH[column] - LOW[column])
    bound = LOW[column] + 0.6 * width
    reach = p.eta if units == "raw" else p.eta_range * width
    y, theta = torch.zeros(60).long(), codes.theta[:, column]
    reachable = (theta + reach).clamp_max(HIGH[column]) > bound
    assert reachable.any()
    assert not reachable.all()
    found = strongest_latent(reads_latent(column, bound), where, y, steps=10, targets=0, generator=seeded())
    assert torch.equal(found.success[0], reachable)
    moves = random_moves(reads_latent(column, bound), where, y, 300, stop="image", generator=seeded())
    assert not (moves.success.any(0) & ~reachable).any()
    assert ((theta <= bound) & moves.success.any(0)).any(), "some moves carry over the bound"


@settings(max_examples=8)
@given(eta=st.floats(0, 0.5), eta_range=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_every_move_stays_in_the_box_and_in_the_budget_in_float64(eta, eta_range, seed):
    p, codes = OnManifold(eta=eta, eta_range=eta_range), known(8, seed)
    f, y = reads_latent(5, 0.0), torch.zeros(8).long()
    for units, budget in (("raw", eta), ("range", eta_range * (HIGH - LOW))):
        where = space(p, codes, units)
        for found in (
            pgd_latent(f, where, y, steps=5, restarts=2, generator=seeded(seed)),
            strongest_latent(f, where, y, steps=5, targets=0, generator=seeded(seed)),
            random_moves(f, where, y, 3, generator=seeded(seed)),
        ):
            theta = found.x[..., :6].numpy()
            assert (np.abs(theta - codes.theta.numpy()) <= budget + 1e-12).all()
            assert (theta >= LOW - 1e-12).all()
            assert (theta <= HIGH + 1e-12).all()
            assert torch.equal(found.x[..., 6:], torch.stack(codes.context, 1).expand(len(theta), -1, -1).double())


def test_random_moves_are_uniform_on_the_surface_of_the_cube():
    """One of six latents goes to its bound, up or down; each other is uniform: a closed form for any of them."""
    codes = known(5_000)
    codes.theta[:] = torch.tensor(fonts.IDENTITY)  # far from every limit
    p, y = OnManifold(eta=0.1), torch.zeros(5_000).long()
    found = random_moves(reads_latent(2, 0.04), space(p, codes, "raw"), y, 4, generator=seeded())
    assert found.success.double().mean() == pytest.approx(1 / 12 + 5 / 6 * (0.1 - 0.04) / 0.2, abs=0.01)
    size = (found.x[..., :6] - codes.theta).abs().amax(-1)
    torch.testing.assert_close(size, torch.full_like(size, 0.1))


def test_the_random_search_ends_at_the_first_move_that_fools():
    p, codes = OnManifold(eta=0.2), known(40)
    y = torch.zeros(40).long()
    f, where = reads_latent(5, 0.0), space(p, codes, "raw")
    search = random_moves(f, where, y, 50, stop="image", generator=seeded())
    assert 0 < search.success.any(0).sum() < 40, "the case must have both"
    assert search.forwards < 50
    codes_found, won = on_manifold._first(search)
    assert codes_found.shape == (1, 40, 8)
    assert torch.equal(won[0], search.success.any(0))
    assert torch.equal(codes_found[0, won[0], 5] > 0, torch.ones(int(won.sum()), dtype=torch.bool))


def test_codes_give_the_images_of_the_data():
    rows = fonts.rows("test", 25)
    own = Known(Manifold(fonts.decode, fonts.decode_with_jacobian, *fonts.theta_box()), rows, rows)
    codes = on_manifold.code(rows.theta, rows.font, rows.letter)
    for units in ("raw", "range"):
        assert torch.equal(target(OnManifold(), own, units).image(codes), fonts.images(rows))
        still = target(OnManifold(), own, units).space().image(torch.zeros(25, 6))
        torch.testing.assert_close(still, codes, atol=1e-5, rtol=0)


# --- networks with known answers: a whole run -------------------------------------------------------------------


def constant():
    """Says A to everything."""
    linear = nn.Linear(784, 10)
    nn.init.zeros_(linear.weight)
    linear.bias.data = torch.eye(10)[0]
    return nn.Sequential(nn.Flatten(), linear).requires_grad_(False)


def test_a_network_that_ignores_its_input_is_never_fooled(home, monkeypatch):
    rows = planted(monkeypatch, home, constant())
    success = rows[rows.what == "success"]
    assert (success.success_average == 0).all()
    assert (success.success_worst == 0).all()
    assert (success[success.seed != "all"].correct == 3).all(), "3 of the 30 letters are an A"
    p = OnManifold(restarts=2, strong_steps=2)  # an A costs all that the strong attack may spend, the others one look
    assert row(rows, "success", ON, "strong")["forwards"] == pytest.approx((27 + 3 * p.draws) / 30)
    exist, doing, label = (OnManifold.verdicts(rows)[i : i + 2] for i in (0, 2, 4))
    assert {verdict.outcome for verdict in exist + doing} == {"not supported"}
    assert {verdict.outcome for verdict in label} == {"undecided"}
    assert not [name for name in ledger.arrays(rows.arrays[0]) if name.startswith("shown/")]


class Memory(nn.Module):
    """Knows the given images by heart; whatever else it sees it calls by an eleventh name."""

    def __init__(self, x, y):
        super().__init__()
        self.register_buffer("x", x.flatten(1))
        self.register_buffer("y", y)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        distance, nearest = torch.cdist(x.flatten(1), self.x).min(1)
        said = torch.where(distance < 1e-2, self.y[nearest], 10)
        slope = 1e-3 * x.flatten(1).sum(1, keepdim=True)  # a gradient for the attack to follow
        return self.scale * 10 * torch.nn.functional.one_hot(said, 11) + slope


def test_where_any_move_fools_the_attack_gets_no_credit(home, monkeypatch):
    data = setting.load("fonts", 100, "first", 30, torch.device("cpu"))
    rows = planted(monkeypatch, home, nn.Sequential(Memory(data.x_test, data.y_test)))
    for threat in (ON, ON_RANGE):
        for attack in MOVES:
            assert row(rows, "success", threat, attack)["success_average"] == 1
    outcomes = [verdict.outcome for verdict in OnManifold.verdicts(rows)]
    assert outcomes[:2] == ["supported", "supported"], "they exist"
    assert outcomes[2:4] == ["not supported", "not supported"], "any move does"
    assert [verdict.value for verdict in OnManifold.verdicts(rows)[2:4]] == [1, 1]


# --- what the judges say ----------------------------------------------------------------------------------------------


def test_answers_count_what_the_judge_read_rightly_before():
    read = torch.tensor([[True, False, True, True], [True, True, False, False]])
    counted = torch.tensor([[True, True, False, True], [True, False, False, True]])
    clear = torch.tensor([True, True, True, False])
    said = on_manifold._answers(read, counted, clear)
    assert said["count"] == 5
    assert said["judge_error"] == pytest.approx(2 / 5)
    assert said["kept"] == pytest.approx(2 / 3)
    assert sum(said["hits_average"]) == 2
    assert sum(said["counted"]) == 3


def test_each_answer_of_the_judge_who_is_told_nothing_goes_to_its_example(monkeypatch):
    """A planted judge, who reads the letter that the first pixel names."""
    data = setting.load("fonts", 100, "first", 12, torch.device("cpu"))
    x = data.x_test.clone()
    x[:, 0, 0, 0] = data.y_test.float()
    x[0, 0, 0, 0] = 9  # the one clean image that it reads wrongly
    chosen = torch.tensor([0, 3, 5, 11])
    moved, counted = x[chosen].clone(), torch.tensor([True, True, False, True])
    moved[3, 0, 0, 0] += 1
    monkeypatch.setattr(on_manifold, "read_untold", lambda x, font, manifold: x[:, 0, 0, 0].round().long())
    asked = [
        on_manifold.Asked(0, "clean", x[chosen], torch.ones(4, dtype=torch.bool)),
        on_manifold.Asked(0, "paper", moved, counted),
    ]
    clean, paper = on_manifold._untold(replace(data, x_test=x), data.known, asked, chosen)
    assert (clean["threat"], clean["attack"], clean["count"]) == ("none", "clean", 4)
    assert (clean["judge_error"], clean["kept"]) == (0.25, 1)
    assert (paper["threat"], paper["attack"], paper["count"]) == (ON, "paper", 3)
    assert paper["judge_error"] == pytest.approx(2 / 3), "the first one, as before, and the last one"
    assert paper["kept"] == 0.5


def test_means_over_networks_count_every_example_once():
    rows = pd.DataFrame(
        [
            {"count": 1, "judge_error": 1.0, "zeta": 0.2, "zeta_by_latent": [0.2, 0.0], "change": 4.0},
            {"count": 3, "judge_error": 0.0, "zeta": 0.1, "zeta_by_latent": [0.0, 0.1], "change": 2.0},
            {"count": 0, "judge_error": None, "zeta": None, "zeta_by_latent": [None, None], "change": None},
        ]
    )
    pooled = on_manifold._pooled_examples(rows)
    assert pooled["count"] == 4
    assert pooled["judge_error"] == 0.25
    assert pooled["change"] == 2.5
    assert pooled["zeta_by_latent"] == pytest.approx([0.05, 0.075])
    assert on_manifold._pooled_examples(rows[2:]) == {"count": 0}


# --- a small real run -------------------------------------------------------------------------------------------


def test_every_network_and_all_together_have_every_row(small):
    p, rows, _ = small
    keys = {(OFF, "paper"), *((threat, attack) for threat in (ON, ON_RANGE) for attack in MOVES)}
    for seed in (0, 1, "all"):
        own = rows[rows.seed == seed]
        for what, more in (("success", set()), ("examples", {("none", "clean")})):
            pairs = own[own.what == what][["threat", "attack"]].itertuples(index=False)
            assert sorted(map(tuple, pairs)) == sorted(keys | more)
        assert set(own[own.what == "untold"].attack) == {"clean", "random moves", *ATTACKS}
    assert set(rows[rows.what == "error"].seed) == {0, 1}
    assert (rows[rows.what == "error"].test_error < 0.8).all(), "the networks read letters"
    for name, value in p.point().items():
        assert (rows[name] == value).all()


def test_rates_are_what_their_counts_say_and_lie_in_their_intervals(small):
    p, rows, _ = small
    success = rows[rows.what == "success"]
    for one in success[success.seed != "all"].to_dict("records"):
        for name in ("average", "worst"):
            assert one[f"success_{name}"] == pytest.approx(sum(one[f"hits_{name}"]) / sum(one["counted"]))
        assert one["correct"] == sum(one["counted"])
        assert len(one["counted"]) == 25
        assert one["success_worst"] >= one["success_average"]
    for one in success[success.seed == "all"].to_dict("records"):
        single = success[
            (success.threat == one["threat"]) & (success.attack == one["attack"]) & (success.seed != "all")
        ]
        for name in ("success_average", "success_worst"):
            assert one[name] == pytest.approx(np.average(single[name], weights=single.correct))
            assert one[f"{name}_low"] <= one[name] <= one[f"{name}_high"]
        assert one["correct"] == single.correct.sum()
    assert row(rows, "success", ON, "random search")["forwards"] <= p.draws
    assert row(rows, "success", ON, "random moves")["forwards"] == p.restarts
    assert row(rows, "success", ON, "paper")["forwards"] <= p.restarts * (p.steps + 1)


def test_the_random_search_may_look_as_often_as_the_strong_attack(monkeypatch):
    """On a network that cannot be fooled both spend all that they may."""
    p = OnManifold(restarts=2, strong_steps=3)
    codes, y = known(4, dtype=torch.float32), torch.zeros(4).long()

    def f(given):
        return torch.stack([1 - 1e-3 * given[:, 0], 0 * given[:, 0], 0 * given[:, 1]], 1)

    strong = strongest_latent(f, space(p, codes, "raw"), y, steps=3, restarts=2, targets=0, generator=seeded())
    search = random_moves(f, space(p, codes, "raw"), y, p.draws, stop="image", generator=seeded())
    assert strong.forwards == search.forwards == p.draws


def test_attacks_find_more_than_random_moves_of_the_same_budget(small):
    _, rows, _ = small
    for threat in (ON, ON_RANGE):
        found = {attack: row(rows, "success", threat, attack)["success_worst"] for attack in MOVES}
        assert found["strong"] > found["random moves"]
        assert found["random search"] >= found["random moves"]


def test_sizes_are_measured_on_the_examples(small):
    p, rows, _ = small
    width = HIGH - LOW
    for threat, budget in ((ON, np.full(6, p.eta)), (ON_RANGE, p.eta_range * width)):
        for attack in MOVES:
            one = row(rows, "examples", threat, attack)
            assert one["count"] > 0
            assert (np.array(one["zeta_by_latent"]) <= budget + 1e-6).all()
            assert 0 < one["zeta"] <= budget.max() + 1e-6
            assert one["zeta"] >= max(one["zeta_by_latent"]) - 1e-6
            assert one["change"] > 0
    moves, wins = (row(rows, "examples", ON, "random moves", 0), row(rows, "success", ON, "random moves", 0))
    assert moves["count"] == p.restarts * wins["correct"], "all random moves are looked at"
    paper, wins = (row(rows, "examples", ON, "paper", 0), row(rows, "success", ON, "paper", 0))
    assert paper["count"] == round(p.restarts * wins["success_average"] * wins["correct"])
    clean, regular = row(rows, "examples", "none", "clean"), row(rows, "examples", OFF, "paper")
    assert clean["change"] == clean["zeta"] == regular["zeta"] == 0
    assert 0 < regular["change"] < row(rows, "examples", ON, "random moves")["change"]


def test_a_judge_sees_no_difference_where_nothing_moved(small):
    _, rows, _ = small
    assert row(rows, "untold", "none", "clean")["kept"] == 1
    assert row(rows, "examples", "none", "clean")["kept"] == 1
    assert row(rows, "examples", "none", "clean")["judge_error"] < 0.1
    told = rows[(rows.what == "examples") & (rows.seed == "all")]
    assert (told.kept > 0.8).all()


def test_the_path_is_that_of_the_papers_attack_up_to_its_first_win(small, monkeypatch):
    p, _, arrays = small
    path, theta, y = (torch.from_numpy(arrays[f"shown/{name}"]) for name in ("path", "theta", "y"))
    network = off_manifold.drawn_network(arrays, 10)
    data = p.load()
    where = space(p, data.known, "raw")

    def f(codes):
        return network(target(p, data.known).image(codes))

    attack = pgd_latent(f, where, data.y_test, steps=p.steps, restarts=p.restarts, generator=on_manifold._starts(0))
    index = torch.cdist(theta, data.known.theta).argmin(1)
    first = attack.success.long().argmax(0)[index]
    assert path.shape == (len(theta), p.steps + 1, 6)
    torch.testing.assert_close(theta + path[:, -1], attack.x[first, index, :6], atol=1e-5, rtol=0)
    moved = theta[:, None] + path
    said = network(fonts.decode(moved.flatten(0, 1), *(arrays_of(arrays, name, p.steps + 1) for name in ("font", "y"))))
    wrong = said.argmax(1).view(len(theta), -1) != y[:, None]
    for example, (errs, spent) in enumerate(zip(wrong, attack.steps[first, index], strict=True)):
        assert errs.int().argmax() == spent
        assert errs[spent:].all()
        assert (path[example, spent:] == path[example, -1]).all()
    assert path.abs().max() <= p.eta + 1e-6


def arrays_of(arrays, name, times):
    return torch.from_numpy(arrays[f"shown/{name}"]).repeat_interleave(times)


def test_the_examples_shown_fool_the_network_that_is_drawn(small):
    _, _, arrays = small
    network, y = off_manifold.drawn_network(arrays, 10), arrays["shown/y"]
    assert 0 < len(y) <= on_manifold.SHOWN
    assert (off_manifold.answers(network, arrays["shown/x"]) == y).all()
    for name in ("regular", "on"):
        assert (off_manifold.answers(network, arrays[f"shown/{name}"]) != y).all()
    assert np.abs(arrays["shown/regular"] - arrays["shown/x"]).max() <= 0.3 + 1e-6


def test_the_second_call_reads_the_rows(home, monkeypatch):
    first = planted(monkeypatch, home, constant(), images=10, judged=2)
    monkeypatch.setattr(OnManifold, "compute", lambda self: pytest.fail("it was computed before"))
    assert planted(monkeypatch, home, constant(), images=10, judged=2).equals(first)


def test_networks_are_those_of_the_first_chapter(home):
    tiny = {"n": 100, "epochs": 1, "seeds": 1, "images": 10}
    (own,) = OnManifold(**tiny).networks(OnManifold(**tiny).load())
    (other,) = off_manifold.OffManifold(**tiny, neighbours=10).networks(
        off_manifold.OffManifold(**tiny, neighbours=10).load()
    )
    x = torch.rand(3, 1, 28, 28, generator=seeded())
    assert torch.equal(networks.predict(own, x), networks.predict(other, x))
    assert len(list(home.glob("models/*.safetensors"))) == 1


# --- real images: planted manifolds, networks and judges ----------------------------------------------------------


class Reads(nn.Module):
    """Reads the class that a planted image shows, and the next one where the first latent lies above a bound."""

    def __init__(self, bound):
        super().__init__()
        self.bound = nn.Parameter(torch.tensor(bound))

    def forward(self, x):
        shown = x[:, 0, 1, 0:20:2]
        over = 8 * (x[:, 0, 0, :1] - 0.5) - self.bound
        return 10 * shown + shown.roll(1, 1) * (10 + 50 * over)


def shows(x):
    """The class that a planted image shows, as votes."""
    return x[:, 0, 1, 0:20:2] / x[:, 0, 1, 0:20:2].sum(1, keepdim=True)


class Reader:
    """A judge made of two ways of reading images."""

    def __init__(self, network, neighbours=None):
        self.parts = (network, neighbours or network)

    def votes(self, x):
        return tuple(part(x) for part in self.parts)


def turned(bound):
    """Reads the next class where the first latent lies above the bound, as the network does."""
    return lambda x: torch.where(8 * (x[:, 0, 0, :1] - 0.5) > bound, shows(x).roll(1, 1), shows(x))


BOUND = 0.5
REAL = {"dataset": "mnist", "n": 100, "epochs": 1, "images": 60, "seeds": 2, "steps": 4, "strong_steps": 5, "eta": 0.25}


def learned_run(monkeypatch, *, judge=shows, neighbours=None, bound=BOUND, **changed):
    """A run on the planted data set, whose two networks are a given one: rows, and codes and classes attacked."""
    plant(monkeypatch)
    monkeypatch.setattr(OnManifold, "networks", lambda self, data: [nn.Sequential(Reads(bound))] * self.seeds)
    monkeypatch.setattr(on_manifold, "independent", lambda dataset, n, device: Reader(judge, neighbours))
    p = OnManifold(**{**REAL, **changed})
    _, y, z = planted_images("test", p.images)
    return p.rows(), z, y


def test_on_learned_manifolds_a_network_falls_exactly_where_the_budget_reaches(home, monkeypatch):
    rows, z, _ = learned_run(monkeypatch)
    right = z[:, 0] <= BOUND
    reachable = right & (z[:, 0] + 0.25 > BOUND)
    assert 0 < reachable.sum() < right.sum()
    strong = row(rows, "success", ON, "strong")
    assert strong["correct"] == 2 * right.sum()
    assert strong["success_worst"] == pytest.approx(float(reachable.sum() / right.sum()))
    for attack in MOVES:
        assert row(rows, "success", ON, attack)["success_worst"] <= strong["success_worst"]
        assert row(rows, "success", ON_DATA, attack)["success_worst"] == 0, "the manifold of all shows no such latent"
    found = row(rows, "examples", ON, "strong", 0)
    assert found["count"] == sum(row(rows, "success", ON, "strong", 0)["hits_worst"])
    assert 0 < found["zeta"] <= 0.25 + 1e-6
    assert len(found["zeta_by_latent"]) == LATENTS
    assert found["change"] > 0


def test_the_box_of_the_paper_holds_codes_back_and_that_of_the_codes_does_not(home, monkeypatch):
    """Beyond 2 there are codes of images, but no valid ones."""
    many = {"images": 200, "eta": 0.4, "seeds": 1, "bound": 2.2}
    rows, z, _ = learned_run(monkeypatch, **many)
    assert row(rows, "success", ON, "strong")["success_worst"] == 0
    free, _, _ = learned_run(monkeypatch, **many, box="codes")
    right = z[:, 0] <= 2.2
    reach = right & ((z[:, 0] + 0.4).clamp_max(float(z[:, 0].max())) > 2.2)
    assert reach.any()
    assert row(free, "success", ON, "strong")["success_worst"] == pytest.approx(float(reach.sum() / right.sum()))


def test_a_network_is_asked_about_the_image_of_the_code_and_not_about_the_image(home, monkeypatch):
    """Codes beyond 2 are clipped, and with them what the network errs on."""
    rows, z, _ = learned_run(monkeypatch, images=200, seeds=1, bound=2.1)
    wrong = int((z[:, 0] > 2.1).sum())
    assert wrong > 0
    assert row(rows, "success", OFF, "paper")["correct"] == 200 - wrong
    for threat in (ON, ON_DATA):
        for attack in MOVES:
            assert row(rows, "success", threat, attack)["correct"] == 200


def test_a_judge_who_always_reads_the_class_keeps_every_example_and_one_who_is_fooled_keeps_none(home, monkeypatch):
    rows, _, _ = learned_run(monkeypatch)
    fooled, _, _ = learned_run(monkeypatch, judge=turned(BOUND), eps=0.29)
    for own, kept in ((rows, 1), (fooled, 0)):
        found = row(own, "examples", ON, "strong")
        assert found["count"] > 0
        assert found["kept"] == kept
        assert found["judge_error"] == 1 - kept
        labels = OnManifold.verdicts(own)[4:]
        assert labels[1].outcome == ("supported" if kept else "not supported")
    for own in (rows, fooled):
        for threat in (ON, ON_DATA):
            still = row(own, "examples", threat, "clean")
            assert (still["zeta"], still["change"], still["kept"]) == (0, 0, 1)


def test_a_judge_who_never_reads_the_class_is_asked_about_nothing(home, monkeypatch):
    rows, _, _ = learned_run(monkeypatch, judge=lambda x: shows(x).roll(1, 1))
    found = row(rows, "examples", ON, "strong")
    assert found["count"] > 0
    assert found["judge_error"] == 1
    assert found["kept"] is None or np.isnan(found["kept"])
    assert {verdict.outcome for verdict in OnManifold.verdicts(rows)[4:]} == {"undecided"}


def test_both_parts_of_the_judge_have_a_say_of_their_own(home, monkeypatch):
    rows, _, _ = learned_run(monkeypatch, neighbours=lambda x: 0.5 * shows(x).roll(1, 1))
    swapped, _, _ = learned_run(
        monkeypatch, judge=lambda x: 0.5 * shows(x).roll(1, 1), neighbours=shows, eps=0.29
    )  # fmt: skip
    for own, shares in ((rows, (1, 0)), (swapped, (0, 1))):
        for seed in (0, 1, "all"):
            found = row(own, "examples", ON, "strong", seed)
            assert (found["network_reads"], found["neighbours_reads"]) == shares
            assert found["judge_error"] == 0, "together they go by the larger"


def test_real_images_have_their_own_rows(home, monkeypatch):
    rows, _, _ = learned_run(monkeypatch)
    keys = {(OFF, "paper"), *((threat, attack) for threat in (ON, ON_DATA, MOVED) for attack in MOVES)}
    clean = {("none", "clean"), (ON, "clean"), (ON_DATA, "clean"), (MOVED, "clean")}
    for seed in (0, 1, "all"):
        own = rows[rows.seed == seed]
        for what, more in (("success", set()), ("examples", clean)):
            pairs = own[own.what == what][["threat", "attack"]].itertuples(index=False)
            assert sorted(map(tuple, pairs)) == sorted(keys | more)
    assert not (rows.what == "untold").any(), "that judge needs the true manifold"
    for name, value in OnManifold(**REAL).point().items():
        assert (rows[name] == value).all()


def test_pictures_show_image_code_and_example(home, monkeypatch):
    x, y, z = planted_images("test", REAL["images"])
    for judge, kind, changed in ((shows, "kept", 0.3), (turned(BOUND), "disputed", 0.29)):
        rows, _, _ = learned_run(monkeypatch, judge=judge, eps=changed)
        (found,) = rows[(rows.what == "pictures") & (rows.threat == ON)].to_dict("records")
        assert (found["seed"], found["threat"], found["attack"]) == (0, ON, kind)
        won = row(rows, "success", ON, "strong", 0)
        assert found["count"] == sum(won["hits_worst"])
        shown = ledger.unpacked(found)
        count = min(int(found["count"]), on_manifold.SHOWN)
        assert shown.shape == (count, 3, 1, 28, 28)
        images, decoded, examples = torch.from_numpy(shown).unbind(1)
        index = torch.cdist(images.flatten(1), x.flatten(1)).argmin(1)
        torch.testing.assert_close(images, x[index], atol=0.5 / 255 + 1e-6, rtol=0)
        torch.testing.assert_close(decoded, image_of(z.clamp(-2, 2), y)[index], atol=0.5 / 255 + 1e-6, rtol=0)
        assert found["label"] == y[index].tolist()
        assert found["said"] == [(label + 1) % 10 for label in found["label"]]
        assert found["read"] == (found["label"] if kind == "kept" else found["said"])
        moved = 8 * (examples - decoded)[:, 0, 0, :LATENTS]
        assert (moved.abs() <= 0.25 + 8 / 255).all()
        assert (moved[:, 0] > 0).all()


def test_a_transformation_is_of_the_image_itself_within_its_bounds_and_the_budget(home, monkeypatch):
    x, _, _ = planted_images("test", REAL["images"])
    codes = on_manifold._transformations(x)
    torch.testing.assert_close(codes.images(), x, atol=1e-5, rtol=0)
    target = Target(codes, 0.1)
    for u in (torch.full_like(codes.z, 9.0), torch.full_like(codes.z, -9.0)):
        t = codes.z + target.space().project(u)
        assert ((t - codes.z).abs() <= 0.1 + 1e-6).all()
        assert (t >= codes.low - 1e-6).all()
        assert (t <= codes.high + 1e-6).all()
    rows = torch.arange(len(x)).flip(0)
    shifted = target.space()[rows].image(torch.zeros_like(codes.z))
    torch.testing.assert_close(target.image(shifted), x[rows], atol=1e-5, rtol=0, msg="each row knows its image")
    found, _, _ = learned_run(monkeypatch)
    moves = row(found, "examples", MOVED, "random moves")
    assert max(moves["zeta_by_latent"]) <= OnManifold(**REAL).eta + 1e-6
    assert moves["change"] > 0


def test_no_faces_lie_in_rows(home, monkeypatch):
    rows, _, _ = learned_run(monkeypatch, dataset="celeba")
    assert row(rows, "success", ON, "strong")["success_worst"] > 0
    assert not (rows.what == "pictures").any()


def test_pictures_are_for_learned_manifolds_alone(small):
    _, rows, _ = small
    assert not (rows.what == "pictures").any()


def test_the_examples_of_learned_manifolds_are_drawn_with_their_path(home, monkeypatch):
    """A large eps, so that the regular attack fools too."""
    rows, z, y = learned_run(monkeypatch, eps=1.0, steps=40)
    arrays = ledger.arrays(rows.arrays[0])
    path, codes, label = (torch.from_numpy(arrays[f"shown/{name}"]) for name in ("path", "theta", "font"))
    assert 0 < len(path) <= on_manifold.SHOWN
    assert path.shape[1:] == (41, LATENTS)
    assert torch.equal(label, torch.from_numpy(arrays["shown/y"]))
    index = torch.cdist(codes, z.clamp(-2, 2)).argmin(1)
    assert torch.equal(label, y[index])
    assert path.abs().max() <= 0.25 + 1e-6
    end = codes + path[:, -1]
    assert (end[:, 0] > BOUND).all()
    torch.testing.assert_close(torch.from_numpy(arrays["shown/on"]), image_of(end, label), atol=1e-5, rtol=0)


def test_more_training_images_than_there_are_are_refused_for_the_judge_too():
    with pytest.raises(ValueError, match="N = 60001 is not allowed: mnist has 60,000 training images"):
        OnManifold(dataset="mnist", n=60_001)
    with pytest.raises(ValueError, match="JUDGE_N = 60001 is not allowed: mnist has 60,000 training images"):
        OnManifold(dataset="mnist", judge_n=60_001)
    assert OnManifold(dataset="fonts", judge_n=10**7).judge_n == 10**7, "FONTS has a judge of its own"


# --- verdicts ---------------------------------------------------------------------------------------------------


def hand_made(seeds=3, blocks=25, **rates):
    """The rows that verdicts read: the success rates of all moves, and the share kept of both attacks."""
    given = {"paper": 0.6, "strong": 0.9, "moves": 0.2, "search": 0.4, "kept_paper": 1.0, "kept_strong": 1.0, **rates}
    names = {"paper": "paper", "strong": "strong", "moves": "random moves", "search": "random search"}
    rows = []
    for seed in range(seeds):
        for name, attack in names.items():
            counts = {"hits_average": [100 * given[name]] * blocks, "hits_worst": [100 * given[name]] * blocks}
            about = {"what": "success", "seed": seed, "threat": ON, "attack": attack, "correct": 100 * blocks}
            rows.append({**about, **counts, "counted": [100.0] * blocks})
        for attack in ATTACKS:
            about = {"what": "examples", "seed": seed, "threat": ON, "attack": attack}
            rows.append({**about, "hits_average": [10 * given[f"kept_{attack}"]] * blocks, "counted": [10.0] * blocks})
    for attack in names.values():
        rows.append({"what": "success", "seed": "all", "threat": ON, "attack": attack, "correct": 100 * blocks * seeds})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changed", "outcomes"),
    [
        ({}, ["+", "+", "+", "+", "+", "+"]),
        ({"paper": 0.05}, ["-", "+", "-", "+", "+", "+"]),
        ({"strong": 0.05}, ["+", "-", "+", "-", "+", "+"]),
        ({"moves": 0.35}, ["+", "+", "-", "+", "+", "+"]),
        ({"search": 0.5}, ["+", "+", "+", "-", "+", "+"]),
        ({"kept_paper": 0.9}, ["+", "+", "+", "+", "-", "+"]),
        ({"kept_strong": 0.94}, ["+", "+", "+", "+", "+", "-"]),
        ({"moves": 0.0, "search": 0.0}, ["+", "+", "+", "+", "+", "+"]),
    ],
)
def test_verdicts_follow_the_thresholds_that_were_fixed_before(changed, outcomes):
    verdicts = OnManifold.verdicts(hand_made(**changed))
    assert [{"supported": "+", "not supported": "-"}.get(v.outcome, "?") for v in verdicts] == outcomes
    assert [v.attack for v in verdicts] == ["paper", "strong"] * 3
    assert [v.threshold for v in verdicts] == [0.1, 0.1, 2.0, 2.0, 0.95, 0.95]


def test_a_verdict_is_undecided_where_the_networks_disagree():
    rows = pd.concat([hand_made(seeds=1, paper=rate).assign(network=rate) for rate in (0.02, 0.1, 0.3)])
    rows["seed"] = rows.seed.where(rows.seed == "all", rows.network.map({0.02: 0, 0.1: 1, 0.3: 2}))
    exist = OnManifold.verdicts(rows)[0]
    assert exist.value == pytest.approx(0.14)
    assert exist.low < 0.1 < exist.high
    assert exist.outcome == "undecided"


def test_moves_that_never_fool_count_as_one_that_does():
    """So that the ratio stays finite: 2 seeds, 25 blocks of 100 images."""
    ratio = OnManifold.verdicts(hand_made(seeds=2, moves=0.0))[2]
    assert ratio.value == pytest.approx(0.6 * 5_000)


def test_the_verdicts_of_a_real_run_name_their_numbers(small):
    _, rows, _ = small
    verdicts = OnManifold.verdicts(rows)
    assert verdicts[0].value == pytest.approx(row(rows, "success", ON, "paper")["success_average"])
    assert verdicts[1].value == pytest.approx(row(rows, "success", ON, "strong")["success_worst"])
    assert verdicts[4].value == pytest.approx(row(rows, "examples", ON, "paper")["kept"])
    over = row(rows, "success", ON, "random moves")["success_average"]
    assert verdicts[2].value == pytest.approx(verdicts[0].value / over)
    for verdict in verdicts:
        assert verdict.low <= verdict.value <= verdict.high


def test_published_rows_give_the_same_verdicts(small, tmp_path, monkeypatch):
    p, rows, _ = small
    monkeypatch.setattr(ledger, "PUBLISHED", tmp_path)
    place = tmp_path / "one.json"
    about = {"experiment": p.experiment, "version": p.version, **p.point()}
    names = [name for name in rows if name not in about and name not in {"device", "torch", "seconds", "arrays"}]
    records = [
        {k: v for k, v in one.items() if isinstance(v, list) or not pd.isna(v)}
        for one in rows[names].to_dict("records")
    ]
    ledger.write(place, about, records)
    ledger.publish(place, p.experiment)
    (table,) = ledger.published(p.experiment, p.version)
    assert OnManifold.verdicts(table) == OnManifold.verdicts(rows)


# --- the figure -------------------------------------------------------------------------------------------------


def test_the_figure_shows_every_rate_where_it_is(small):
    _, rows, _ = small
    success = rows[(rows.what == "success") & (rows.seed == "all")]
    panels = {threat: success[success.threat == threat] for threat in (ON, ON_RANGE)}
    figure = figures.success(panels, threshold=0.1)
    for axes, table in zip(figure.axes, panels.values(), strict=True):
        dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
        assert dots == table[["success_average", "success_worst"]].to_numpy().flatten().tolist()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["paper's attack", "strong attack", "random moves", "random search"]


def test_the_figure_has_room_for_a_rate_that_does_not_exist():
    names = [f"success_{name}{end}" for name in ("average", "worst") for end in ("", "_low", "_high")]
    rows = pd.DataFrame([{"attack": "paper", **dict.fromkeys(names)}])
    (axes,) = figures.success({"no image is read rightly": rows}, threshold=0.1).axes
    assert all(np.isnan(line.get_xdata()).all() for line in axes.lines if line.get_marker() == "o")
