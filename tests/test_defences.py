"""advbook.experiments.defences: each is the training that it should be, bit for bit, and has a place of its own."""

import dataclasses
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import seeded

from advbook import networks, store, training
from advbook.experiments import defences, recipes
from advbook.experiments.defences import TITLES, Attacked, Defence, defended, schedule
from advbook.experiments.setting import load
from advbook.fleet import Stack
from advbook.training import Backtracking, Descent, Divergence, Schedule

NAMES = get_args(Defence)
DATA = ("fonts_easy", "first", 20)
ATTACKED = Attacked(eps=0.24, steps=8, rho=4.0, beta=3.0)
# four times the published rates, for .24 / .3 of the eps and 40 / 8 of the steps; .2 would be more than half the eps
CONFIDENCE, ERROR, DIVERGENCE = 0.04, 0.12, 0.04
SEEDS = 2


@pytest.fixture(scope="module")
def tiny():
    return load("fonts_easy", 20, "first", 5, torch.device("cpu"), held_out=10)


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """The same attack on every machine."""
    monkeypatch.setattr(defences, "bfloat16_is_fast", lambda device: False)


def small(monkeypatch):
    """Smaller networks under the same names."""
    made = networks.cnn

    def cnn(classes, *, side, colours, generator):
        return made(classes, (4, 4), side=side, colours=colours, generator=generator)

    monkeypatch.setitem(networks._NETWORKS, "cnn", cnn)


def trained(setting, defence, attacked=ATTACKED, *, data=DATA, network="cnn", epochs=1, seeds=SEEDS):
    return defended(setting, data, defence, attacked, network=network, epochs=epochs, seeds=seeds)


def weights(members):
    return [member.state_dict() for member in members]


def same(one, other):
    return all(
        torch.equal(a[name], b[name]) for a, b in zip(weights(one), weights(other), strict=True) for name in a | b
    )


# --- what each trains with ------------------------------------------------------------------------------------------


def error(x, share):
    adversary = Backtracking(steps=8, lr=ERROR, goal="error")
    return training.uniform_norm(x, 0.24, adversary, share=share)


def calibrated(x, **options):
    return training.calibrated(x, 0.24, Backtracking(steps=8, lr=CONFIDENCE, goal="confidence"), **options)


PARTS = {
    "normal": lambda x: [],
    "at_half": lambda x: [error(x, 0.5)],
    "at_full": lambda x: [error(x, 1.0)],
    "ccat": lambda x: [calibrated(x, transition=training.power(0.24, 4.0))],
    "ccat_whole_batch": lambda x: [calibrated(x, transition=training.power(0.24, 4.0), whole_batch=True)],
    "ccat_exponential": lambda x: [calibrated(x, transition=lambda n: torch.exp(-4.0 / 0.24 * n))],
    "ccat_linear": lambda x: [calibrated(x, transition=lambda n: 1 - (4.0 * n / 0.24).clamp_max(1))],
}


def directly(setting, defence, epochs=1):
    """The same training, written down once more."""
    generators = [seeded(seed) for seed in range(SEEDS)]
    fleet = Stack([networks.build("cnn", 10, generator=one) for one in generators])
    x, y, plan = setting.x, setting.y, Schedule(epochs=epochs)
    if defence == "trades":
        adversary = Divergence(steps=8, lr=DIVERGENCE)
        training.train_trades(fleet, x, y, plan, 0.24, adversary, beta=3.0, generators=generators)
    else:
        training.train(fleet, x, y, plan, PARTS[defence](x), generators=generators)
    return [networks.folded(one) for one in fleet.unstack()]


def test_every_defence_is_its_training_bit_for_bit_and_none_is_another(tiny, home, monkeypatch):
    small(monkeypatch)
    found = {name: trained(tiny, name) for name in NAMES}
    for name in NAMES:
        assert same(found[name], directly(tiny, name)), name
    kinds = [found[name][0].state_dict() for name in NAMES]
    for i, one in enumerate(kinds):
        for other in kinds[:i]:
            assert not all(torch.equal(one[place], other[place]) for place in one)


def test_the_three_transitions_start_with_one_slope_and_end_elsewhere():
    n = torch.tensor([0.0, 1e-5, 0.03, 0.24])
    shown = {name: defences._transition(name, ATTACKED)(n.double()) for name in NAMES if name.startswith("ccat")}
    assert torch.equal(shown["ccat"], shown["ccat_whole_batch"])
    for values in shown.values():
        assert values[0] == 1
        assert ((values[0] - values[1]) / 1e-5).item() == pytest.approx(ATTACKED.rho / ATTACKED.eps, rel=1e-3)
    middle = [shown[name][2].item() for name in ("ccat", "ccat_exponential", "ccat_linear")]
    assert middle == pytest.approx([(1 - 0.125) ** 4, 2.718281828**-0.5, 0.5])


def test_every_defence_has_a_title_of_its_own():
    assert set(TITLES) == set(NAMES)
    assert len(set(TITLES.values())) == len(NAMES)


# --- rates ----------------------------------------------------------------------------------------------------------

PUBLISHED = {1: (0.3, 40, 0.01, 0.05, 0.01), 3: (0.03, 40, 0.005, 0.005, 0.007 / 4)}


@pytest.mark.parametrize("colours", PUBLISHED)
def test_the_published_eps_and_steps_have_the_published_rates(colours):
    eps, steps, *rates = PUBLISHED[colours]
    found = Attacked(eps, steps).rates(colours)
    assert found == pytest.approx((eps, *rates))
    assert Attacked(eps) == Attacked(eps, steps)


@given(eps=st.floats(0.001, 1), steps=st.integers(1, 1000), colours=st.sampled_from([1, 3]))
def test_an_attack_of_other_length_gets_as_far_but_never_by_more_than_half_the_ball_a_step(eps, steps, colours):
    published_eps, published_steps, *rates = PUBLISHED[colours]
    found = Attacked(eps, steps).rates(colours)
    assert found.eps == eps
    for rate, published in zip(found[1:], rates, strict=True):
        reach = published * published_steps / published_eps  # of all steps together, in eps
        assert rate == pytest.approx(min(reach * eps / steps, eps / 2))


# --- schedules ------------------------------------------------------------------------------------------------------


def test_the_networks_of_ccat_train_as_published_with_it_and_the_others_as_the_papers():
    for name in ("cnn", "mlp", "resnet", "vgg"):
        assert schedule(name, "mnist", 7) == Schedule(epochs=7)
    assert schedule("lenet", "mnist", 7) == Descent(epochs=7, lr=0.1, decay=0.93, momentum=0.9)
    assert schedule("resnet20", "svhn", 7) == Descent(epochs=7, lr=0.1, decay=0.95, momentum=0.9)
    for name in ("cifar10", "cifar10_small", "cifar100"):
        assert schedule("resnet20", name, 7) == Descent(epochs=7, lr=0.075, decay=0.95, momentum=0.9)


def test_the_schedule_of_the_network_is_the_one_that_trains(tiny, home, monkeypatch):
    seen = []

    def spy(fleet, x, y, plan, *rest, **options):
        seen.append(plan)
        return fleet.eval()

    monkeypatch.setattr(training, "train", spy)
    trained(tiny, "normal", network="lenet", epochs=3, seeds=1)
    trained(tiny, "at_half", network="cnn", epochs=3, seeds=1)
    assert seen == [Descent(epochs=3, decay=0.93), Schedule(epochs=3)]


# --- where they are kept --------------------------------------------------------------------------------------------


@pytest.fixture
def keys(monkeypatch):
    """The store keys of a call, without training."""
    kept = []

    def spy(given_, fresh, train):
        kept.append([store.fingerprint(one) for one in given_])
        return fresh

    monkeypatch.setattr(store, "trained", spy)
    small(monkeypatch)

    def of(setting, *args, **options):
        trained(setting, *args, **options)
        return tuple(kept[-1])

    return of


ALIKE = {  # what may change without another result
    "normal": {"eps", "steps", "rho", "beta"},
    "at_half": {"rho", "beta"},
    "at_full": {"rho", "beta"},
    "trades": {"rho"},
    **{name: {"beta"} for name in NAMES if name.startswith("ccat")},
}
OTHERS = {"eps": 0.1, "steps": 10, "rho": 2.0, "beta": 1.0}


@pytest.mark.parametrize("name", NAMES)
def test_a_networks_place_changes_with_all_that_changes_its_result_and_with_nothing_else(name, tiny, keys):
    base = keys(tiny, name)
    assert len(set(base)) == SEEDS
    assert keys(tiny, name, seeds=1) == base[:1], "more seeds keep the first ones"
    changed = {what: keys(tiny, name, ATTACKED._replace(**{what: value})) for what, value in OTHERS.items()}
    assert {what for what, own in changed.items() if own == base} == ALIKE[name]
    others = [own for own in changed.values() if own != base]
    others += [keys(tiny, name, epochs=2), keys(tiny, name, network="mlp")]
    others += [keys(tiny, name, data=other) for other in (("fonts", "first", 20), ("fonts_easy", "random", 20))]
    others += [keys(tiny, name, data=("fonts_easy", "first", 21))]
    every = [key for own in (base, *others) for key in own]
    assert len(set(every)) == len(every)


def test_no_two_defences_share_a_place(tiny, keys):
    every = [key for name in NAMES for key in keys(tiny, name)]
    assert len(set(every)) == len(every) == SEEDS * len(NAMES)


@pytest.mark.parametrize("name", NAMES[1:])
def test_networks_of_an_attack_in_half_precision_have_another_place(name, tiny, keys, monkeypatch):
    base = keys(tiny, name)
    monkeypatch.setattr(defences, "bfloat16_is_fast", lambda device: True)
    assert not set(keys(tiny, name)) & set(base)


def test_normal_training_is_that_of_the_other_chapters(tiny, home, monkeypatch):
    """The same networks, and read where these kept them."""
    small(monkeypatch)
    found = recipes.classifiers(tiny, DATA, schedule=Schedule(epochs=1), seeds=SEEDS)
    monkeypatch.setattr(training, "train", None)
    assert same(trained(tiny, "normal"), found)


@pytest.mark.parametrize("name", ["at_half", "trades", "ccat"])
def test_what_was_trained_is_read_and_not_trained_again(name, tiny, home, monkeypatch):
    small(monkeypatch)
    found = trained(tiny, name, seeds=1)
    monkeypatch.setattr(training, "train", None)
    monkeypatch.setattr(training, "train_trades", None)
    assert same(trained(tiny, name, seeds=1), found)
    with pytest.raises(TypeError):
        trained(tiny, name, ATTACKED._replace(eps=0.1), seeds=1)


# --- seeds ----------------------------------------------------------------------------------------------------------


def test_a_seed_starts_from_the_same_weights_in_every_defence(tiny, home, monkeypatch):
    small(monkeypatch)
    first = trained(tiny, "normal", epochs=0)
    assert not torch.equal(first[0][0].weight, first[1][0].weight)
    for name in NAMES[1:]:
        assert same(trained(tiny, name, epochs=0), first)
    for seed, member in enumerate(first):
        fresh = networks.folded(networks.build("cnn", 10, generator=seeded(seed)))
        assert same([member], [fresh])


def test_members_come_folded_and_without_gradients(tiny, home, monkeypatch):
    small(monkeypatch)
    for member in trained(tiny, "ccat"):
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in member.modules())
        assert not any(p.requires_grad for p in member.parameters())
        assert not member.training


def test_colour_images_take_the_rates_of_colour(tiny, keys):
    """The same numbers of images and steps, another step: so another place."""
    colour = dataclasses.replace(tiny, x=tiny.x.expand(-1, 3, -1, -1).contiguous())
    assert not set(keys(colour, "ccat")) & set(keys(tiny, "ccat"))
    assert keys(colour, "normal") == keys(tiny, "normal"), "there is no attack whose steps could differ"
