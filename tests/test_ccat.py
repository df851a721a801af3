"""advbook.experiments.ccat: verdicts on planted rows, parameters, and a small real run."""

import itertools
import re
from functools import partial
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advbook import corruptions, datasets, ledger, metrics
from advbook.attacks.distal import distal
from advbook.confidence import Answers
from advbook.experiments import ParameterError, ccat, threats
from advbook.experiments.ccat import ADAPTIVE, ALONG, CCAT, COST, DECAYED, GAP, LASTING, RADII, REJECTED, STAYED, drawn
from advbook.experiments.judged import TPR, Judge
from advbook.experiments.setting import Dataset, Setting
from advbook.experiments.threats import Found, Threat

SEEDS, RESAMPLES = 2, 200
RECIPES = ("normal", "at_half", "ccat")
THREATS = get_args(Threat)
KEY = ("recipe", "what", "threat", "attack", "tpr", "t", "radius")


@pytest.fixture(autouse=True, scope="module")
def few_resamples():
    """Enough for an interval, and a fifth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "resampled_rates", partial(metrics.resampled_rates, resamples=RESAMPLES))
        yield


# --- planted rows ---------------------------------------------------------------------------------------------------


def key(recipe, what, threat="", attack="", tpr=None, t=None, radius=None):
    return recipe, what, threat, attack, tpr, t, radius


def robust(recipe, threat, attack):
    return key(recipe, "robust", threat, attack, tpr=TPR)


def holds():
    """Rates with which every claim holds, and wrong ones where nobody should look."""
    rates = {key(recipe, "error", "clean", tpr=tpr): 0.3 for recipe in RECIPES for tpr in (0.0, TPR)}
    rates |= {key("ccat", "error", "clean", tpr=tpr): 0.1 for tpr in (0.0, TPR)}
    rates[key("normal", "error", "clean", tpr=0.0)] = 0.05
    for recipe, sure, error in (("at_half", 0.9, 0.8), ("ccat", 0.1, 0.2), ("normal", 0.95, 1.0)):
        rates |= {key(recipe, "along", t=float(t)): sure if t >= 0.5 else 0.9 for t in ALONG}
        rates |= {
            robust(recipe, threat, attack): error
            for threat in THREATS
            for attack in ("confidence", "error", "paper", "strong")
        }
        rates |= {key(recipe, "robust", threat, "strong", tpr=0.0): 0.5 for threat in THREATS}
        rates[key(recipe, "distal", "distal", tpr=TPR)] = error
        rates |= {key(recipe, "error", "corruptions", tpr=tpr): error if tpr else 0.5 for tpr in (0.0, TPR)}
        rates |= {key(recipe, "rejection", radius=radius): 0.5 for radius in RADII}
        rates[key(recipe, "rejection", radius=0.1)] = {"ccat": 0.6}.get(recipe, 0.2)
    return rates


def table(rates, *, uneven=0.0, recipes=RECIPES):
    """Rows of the given rates, the same in every seed and block, or with every second block that much above and below.

    uneven: of the recipe CCAT's blocks alone, so that a difference is uneven too; or of another's, {recipe: number}.
    """
    swing = uneven if isinstance(uneven, dict) else {"ccat": uneven}
    rows = []
    for at, rate in rates.items():
        if at[0] not in recipes:
            continue
        change = swing.get(at[0], 0.0) * (-1.0) ** np.arange(metrics.BLOCKS)
        change[-1] = 0  # an odd number of blocks; this keeps the mean
        for seed in range(SEEDS):
            row = dict(zip(KEY, at, strict=True)) | {"seed": seed, "classes": 10 if at[1] == "along" else None}
            row |= {"hits_average": (40 * (rate + change)).tolist(), "counted": [40.0] * metrics.BLOCKS}
            rows.append(row | {"rate": 0.123})  # nobody should read it
    return pd.DataFrame(rows)


def verdicts(rates, **options):
    return CCAT.verdicts(table(rates, **options))


# The parts of CCAT.verdicts, and how many each gives.
PARTS = ((ccat._decay, 2), (ccat._accuracy, 2), (ccat._unseen, 8), (ccat._dispute, 3))


def verdict(number, rows):
    """One of the verdicts, without waiting for the others; rows: a table, or rates."""
    rows = rows if isinstance(rows, pd.DataFrame) else table(rows)
    for part, count in PARTS:
        if number < count:
            return part(rows)[number]
        number -= count
    raise AssertionError


def shifted(changed):
    return lambda value: holds() | changed(value)


BOTH = ("paper", "strong")
AT = 0.5  # a rate of adversarial training that leaves room on both sides


def gaps(threat, attack):
    return shifted(lambda value: {robust("at_half", threat, attack): AT, robust("ccat", threat, attack): AT - value})


def pair(at, mine):
    return shifted(lambda value: {at: AT, mine: AT - value})


CLEAN = {tpr: [key(recipe, "error", "clean", tpr=tpr) for recipe in ("at_half", "ccat")] for tpr in (0.0, TPR)}
# In the order of the verdicts: what of rates gives the statistic this value, its threshold, whether it is an upper one.
CASES = [
    (shifted(lambda value: {key("ccat", "along", t=2.0): value}), 0.15, True),
    (shifted(lambda value: {key("at_half", "along", t=1.25): value}), 0.5, False),
    (pair(*CLEAN[0.0]), 0.0, False),
    (pair(*CLEAN[TPR]), 0.0, False),
    (gaps("linf_larger", "paper"), 0.15, False),
    (gaps("linf_larger", "strong"), 0.15, False),
    (gaps("l1", "paper"), 0.15, False),
    (gaps("l0", "strong"), 0.15, False),
    (gaps("frames", "paper"), 0.15, False),
    (gaps("frames", "strong"), 0.15, False),
    (pair(*(key(recipe, "distal", "distal", tpr=TPR) for recipe in ("at_half", "ccat"))), 0.15, False),
    (pair(*(key(recipe, "error", "corruptions", tpr=TPR) for recipe in ("at_half", "ccat"))), 0.0, False),
    (
        shifted(lambda v: {robust("ccat", "linf", "confidence"): AT + v, robust("ccat", "linf", "error"): AT}),
        -0.05,
        False,
    ),
    (shifted(lambda v: {robust("ccat", "l2", "strong"): AT + v, robust("ccat", "l2", "paper"): AT}), 0.05, True),
    (pair(*(key(recipe, "rejection", radius=0.1) for recipe in ("ccat", "at_half"))), 0.1, False),
]
every_case = pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: f"verdict {number}")


# --- verdicts -------------------------------------------------------------------------------------------------------


def test_every_claim_holds_on_the_rows_that_the_cases_start_from():
    found = verdicts(holds())
    assert [one.outcome for one in found] == ["supported"] * len(CASES)
    assert len({(one.claim, one.attack) for one in found}) == len(found)


def test_the_thresholds_are_those_that_were_fixed():
    assert (DECAYED, STAYED, GAP, ADAPTIVE, LASTING, REJECTED, COST) == (1.5, 0.5, 0.15, -0.05, 0.05, 0.1, 0.01)
    found = [(one.threshold, one.at_most) for one in verdicts(holds())]
    assert found == [(pytest.approx(threshold), at_most) for _, threshold, at_most in CASES]
    assert [one.attack for one in verdicts(holds())] == [
        "paper", "paper", "", "", *BOTH, *BOTH, *BOTH, "", "", "", "strong", "strong",
    ]  # fmt: skip


@every_case
def test_a_claim_is_supported_on_one_side_of_its_threshold_and_not_supported_on_the_other(number):
    change, threshold, at_most = CASES[number]
    for step in (-0.001, 0.001):
        found = verdict(number, change(threshold + step))
        assert (found.value, found.low, found.high) == pytest.approx((threshold + step,) * 3)
        assert found.outcome == ("supported" if (step < 0) is at_most else "not supported")


@every_case
def test_a_claim_is_undecided_where_images_differ_much(number):
    """Blocks far above and far below: the interval has the threshold inside."""
    change, threshold, _ = CASES[number]
    swing = {"at_half": 0.4} if number == 1 else {"ccat": 0.4}
    if number in (12, 13):  # within one network: only one of its two rates is uneven
        rows = pd.concat([table(change(threshold)), table(change(threshold), uneven=0.4)])
        uneven = (rows.attack == ("confidence" if number == 12 else "strong")) & (rows.recipe == "ccat")
        half = len(rows) // 2
        first = np.arange(len(rows)) < half
        rows = rows[np.where(uneven, ~first, first)]
    else:
        rows = table(change(threshold), uneven=swing)
    found = verdict(number, rows)
    assert found.low < threshold < found.high
    assert found.outcome == "undecided"


@every_case
def test_a_claim_reads_its_own_rows_alone(number):
    """What the case changes is all that the verdict rests on: it stays when everything else goes wrong."""
    change, threshold, _ = CASES[number]
    one, other = change(threshold + 0.02), change(threshold - 0.02)
    moved = {at for at in one if one[at] != other[at]}
    assert moved
    wrong = {at: 0.77 for at in one if at[1] in ("curve", "attack", "corruption", "threshold")}
    wrong |= {at: 0.77 for at in one if at[0] == "normal" and at[4] != 0}
    wrong |= {at: 0.01 for at in one if at[1] == "rejection" and at[6] != 0.1}
    wrong |= {at: 0.99 for at in one if at[1] == "robust" and at[4] == 0}
    wrong[key("ccat", "error", "corruptions", tpr=0.0)] = 0.99
    assert wrong.keys() & moved == set()
    assert verdict(number, one | wrong).value == pytest.approx(threshold + 0.02)


@pytest.mark.parametrize("worst", ["l2", "l1", "l0"])
@pytest.mark.parametrize("attack", BOTH)
def test_other_norms_count_by_the_smallest_gap(worst, attack):
    rates = holds() | {robust("ccat", worst, attack): 0.8 - 0.17, robust("ccat", "linf", attack): 0.8}
    found = verdict(6 if attack == "paper" else 7, rates)
    assert found.value == pytest.approx(0.17)
    assert found.attack == attack


@pytest.mark.parametrize("threat", THREATS)
def test_stronger_attacks_count_by_the_largest_rise(threat):
    assert verdict(13, holds() | {robust("ccat", threat, "strong"): 0.9}).value == pytest.approx(0.7)


@pytest.mark.parametrize("t", [0.0, 0.125, 0.375, 0.5, 1.0, 1.375, 2.0])
def test_the_walk_counts_from_half_the_way_for_ccat_and_everywhere_for_adversarial_training(t):
    assert t in ALONG
    rows = table(holds() | {key("ccat", "along", t=t): 0.95, key("at_half", "along", t=t): 0.05})
    falls, stays = ccat._decay(rows)
    assert falls.value == pytest.approx(0.95 if t >= 0.5 else 0.1)
    assert stays.value == pytest.approx(0.05)


@pytest.mark.parametrize(("classes", "threshold"), [(10, 0.15), (100, 0.015)])
def test_a_guess_depends_on_the_number_of_classes(classes, threshold):
    rows = table(holds())
    rows.loc[rows.what == "along", "classes"] = classes
    assert verdict(0, rows).threshold == pytest.approx(threshold)


@pytest.mark.parametrize(("cost", "void"), [(0.02, False), (0.012, False), (0.008, True), (0.0, True), (-0.1, True)])
def test_where_adversarial_training_costs_nothing_there_is_nothing_to_keep(cost, void):
    found = ccat._accuracy(table(holds() | {key("normal", "error", "clean", tpr=0.0): 0.3 - cost}))
    accuracy, accepted = found
    assert bool(accuracy.void) is void
    assert accuracy.outcome == ("undecided" if void else "supported")
    assert not accepted.void
    assert not void or re.fullmatch(r"adversarial training costs less than 1 point here, .*", accuracy.void)


def test_without_normal_training_the_claim_on_accuracy_stands_for_itself():
    found = verdicts(holds(), recipes=("at_half", "ccat"))
    assert not found[2].void
    assert [one.outcome for one in found] == ["supported"] * len(CASES)


NEEDS = [{"ccat"}, {"at_half"}, *[{"at_half", "ccat"}] * 10, {"ccat"}, {"ccat"}, {"at_half", "ccat"}]


@pytest.mark.parametrize(
    "recipes", [(), ("normal",), ("at_half",), ("ccat",), ("normal", "ccat"), ("trades", "at_half")], ids=" ".join
)
@pytest.mark.filterwarnings("error")
def test_a_claim_whose_trainings_are_not_there_is_undecided(recipes):
    rates = holds()
    rates |= {("trades", *at[1:]): rate for at, rate in rates.items() if at[0] == "normal"}
    found = verdicts(rates, recipes=recipes)
    assert len(found) == len(NEEDS) == len(CASES)
    for number, one in enumerate(found):
        there = NEEDS[number] <= set(recipes)
        assert (one.outcome != "undecided") is there
        assert np.isfinite([one.value, one.low, one.high]).all() == there


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("what", ["along", "error", "robust", "distal", "rejection"])
def test_rows_of_a_kind_that_are_missing_leave_their_claims_undecided(what):
    rows = table(holds())
    found = CCAT.verdicts(rows[rows.what != what])
    assert "undecided" in {one.outcome for one in found}
    assert len(found) == len(CASES)


def test_rows_in_any_order_give_the_same_verdicts():
    rows = table(holds(), uneven=0.2)
    assert CCAT.verdicts(rows.sample(frac=1, random_state=3)) == CCAT.verdicts(rows)


# --- draws ----------------------------------------------------------------------------------------------------------


def uneven_rows(recipe, rates, seed):
    """Rows [S, K] of counted images and hits that differ from block to block."""
    random = np.random.default_rng(seed)
    counted = random.integers(5, 40, (SEEDS, metrics.BLOCKS))
    hits = random.binomial(counted, rates)
    return [
        {"recipe": recipe, "seed": s, "hits_average": hits[s].tolist(), "counted": counted[s].tolist()}
        for s in range(SEEDS)
    ]


@settings(max_examples=8)
@given(seed=st.integers(0, 1000), rate=st.floats(0.1, 0.9))
def test_rates_are_drawn_together(seed, rate):
    one, other = uneven_rows("ccat", rate, seed), uneven_rows("at_half", rate, seed + 1)
    rows = pd.DataFrame([*one, *other])
    first, again, second = drawn(rows, {"recipe": "ccat"}, {"recipe": "ccat"}, {"recipe": "at_half"})
    assert first.shape == (1 + RESAMPLES,)
    for draws, own in ((first, one), (second, other)):
        assert draws[0] == pytest.approx(
            sum(sum(row["hits_average"]) for row in own) / sum(sum(row["counted"]) for row in own)
        )
        assert draws[1:].std() > 0
    assert metrics.percentiles(first - again) == (0, 0, 0)
    moved = [row | {"recipe": "moved", "hits_average": [h + c / 10 for h, c in pairs(row)]} for row in one]
    shifted_, same = drawn(pd.DataFrame([*one, *moved]), {"recipe": "moved"}, {"recipe": "ccat"})
    assert metrics.percentiles(shifted_ - same) == pytest.approx((0.1, 0.1, 0.1))
    assert np.diff(metrics.percentiles(same)[1:]) > 0.01


def pairs(row):
    return zip(row["hits_average"], row["counted"], strict=True)


def test_draws_are_those_of_a_bootstrap_over_seeds_and_blocks():
    rows = uneven_rows("ccat", 0.4, 3)
    (found,) = drawn(pd.DataFrame(rows), {"recipe": "ccat"})
    random = np.random.default_rng(11)
    hits, counted = (np.array([row[name] for row in rows]) for name in ("hits_average", "counted"))
    rates = []
    for _ in range(2000):
        seeds, blocks = random.integers(SEEDS, size=SEEDS), random.integers(metrics.BLOCKS, size=metrics.BLOCKS)
        rates.append(hits[seeds][:, blocks].sum() / counted[seeds][:, blocks].sum())
    assert found[1:].std() == pytest.approx(np.std(rates), rel=0.2)
    assert found[1:].mean() == pytest.approx(np.mean(rates), abs=0.01)


def test_rates_whose_rows_are_missing_are_nan_beside_others():
    rows = pd.DataFrame(uneven_rows("ccat", 0.4, 3))
    missing, there, unknown = drawn(rows, {"recipe": "trades"}, {"recipe": "ccat"}, {"no such column": 1})
    assert np.isnan(missing).all()
    assert np.isnan(unknown).all()
    assert np.isfinite(there).all()
    assert missing.shape == there.shape
    for empty in (drawn(rows, {"recipe": "trades"}), drawn(pd.DataFrame(), {"recipe": "ccat"})):
        assert np.isnan(empty[0]).all()


def test_a_rate_of_which_nothing_counts_is_nan():
    rows = [row | {"hits_average": [0.0] * metrics.BLOCKS, "counted": [0.0] * metrics.BLOCKS} for row in
            uneven_rows("ccat", 0.4, 3)]  # fmt: skip
    (found,) = drawn(pd.DataFrame(rows), {"recipe": "ccat"})
    assert np.isnan(found).all()


# --- parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("N", 99), ("N", 10**9), ("N", "many"), ("SEEDS", 0), ("EPOCHS", 0), ("IMAGES", 24), ("HELD_OUT", 999),
        ("TEST_IMAGES", 99), ("RECIPES", []), ("RECIPES", ["ccat", "ccat"]), ("RECIPES", "adversarial"),
        ("NETWORK", "alexnet"), ("DATASET", "imagenet"), ("SUBSET", "last"), ("EPS", 0.0), ("EPS", 1.5),
        ("EPS_LARGER", 0.0), ("EPS_L2", 0.0), ("EPS_L1", -1.0), ("EPS_L0", 0), ("EPS_L0", 1.5), ("RHO", 0.0),
        ("BETA", -1.0), ("STEPS", 0), ("RESTARTS", 0), ("QUERIES", 1), ("LONGER", 0), ("CORRUPTED", -1),
        ("TRAIN_STEPS", 0), ("CORRUPTION_FILES", "mine"), ("CORRUPTION_FILES", "official"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_in_one_sentence_that_names_it(name, value):
    with pytest.raises(ParameterError) as caught:
        CCAT.of({name: value})
    sentence = str(caught.value)
    assert re.match(rf"Parameter {name} = {re.escape(repr(value))} is not allowed", sentence)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert sentence.count(". ") == 0


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"DATASET": "cifar10_small"},
            r"TEST_IMAGES = 2,050 .* cifar10_small has 1,000 images beside",
        ),
        (
            {"DATASET": "mnist", "N": 60_000, "TEST_IMAGES": 9_000},
            r"= 10,050 .* 10,000 images beside N = 60,000\.",
        ),
        ({"TEST_IMAGES": 100_000, "HELD_OUT": 10_000, "IMAGES": 10_000}, None),
        ({"DATASET": "cifar10_small", "N": 4000, "TEST_IMAGES": 400}, None),
        ({"CORRUPTED": 51}, r"CORRUPTED = 51 is not allowed: it should be at most IMAGES = 50\."),
        ({"CORRUPTED": 50}, None),
    ],
)
def test_more_images_than_there_are_are_refused_before_anything_is_trained(values, sentence):
    if sentence is None:
        CCAT.of(values)
        return
    with pytest.raises(ParameterError, match=sentence):
        CCAT.of(values)


def test_official_corruptions_go_with_the_images_that_they_show():
    for name in ("mnist", "cifar10"):
        CCAT.of({"DATASET": name, "CORRUPTION_FILES": "official"})
    for name in set(get_args(Dataset)) - {"mnist", "cifar10"}:
        with pytest.raises(ParameterError, match="official"):
            CCAT.of({"DATASET": name, "CORRUPTION_FILES": "official", "N": 100})


@pytest.mark.parametrize("name", get_args(Dataset))
def test_every_data_set_has_a_budget_for_every_threat_model(name):
    p = CCAT.of({"DATASET": name, "N": 100, "EPS": 0.03, "EPS_LARGER": 0.06, "EPS_L2": 0.5, "EPS_L1": 7.0, "EPS_L0": 9})
    side = 32 if name in ("svhn", "cifar10", "cifar10_small", "cifar100") else 28
    assert list(p.budgets.items()) == list(zip(THREATS, (0.03, 0.06, 0.5, 7.0, 9.0, side // 10), strict=True))
    assert all(isinstance(radius, float) for radius in p.budgets.values())


def test_the_effort_is_that_of_the_parameters():
    p = CCAT.of({"STEPS": 3, "RESTARTS": 4, "QUERIES": 5, "LONGER": 6})
    assert p.effort == threats.Effort(steps=3, restarts=4, queries=5, longer=6)


def test_a_larger_run_has_all_trainings_then_more_images_up_to_all():
    assert CCAT.of({}).larger() == {"RECIPES": ["normal", "at_half", "at_full", "trades", "ccat"]}
    every = CCAT.of({}).larger()
    assert CCAT.of({**every, "N": 700}).larger() == {"N": 1400}
    most = CCAT.of({**every, "DATASET": "mnist", "N": 40_000}).larger()
    assert most == {"N": 60_000}
    CCAT.of({**every, "DATASET": "mnist", **most})


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No data, no cache and no network."""
    monkeypatch.setattr("advbook.datasets.sources.retrieve", lambda url, *rest: pytest.fail(f"asked for {url}"))
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", get_args(Dataset))
def test_data_that_are_not_there_are_missed_before_anything_is_computed(name, offline):
    p = CCAT.of({"DATASET": name, "N": 100})
    if name.startswith("fonts"):
        p.check_data()
        return
    with pytest.raises(datasets.MissingData, match="ADVBOOK_DATA"):
        p.check_data()


@pytest.mark.parametrize(("name", "style"), [("mnist", "mnist_c"), ("cifar10", "cifar10_c")])
def test_official_corruptions_are_looked_for_too(name, style, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load", lambda dataset, split, **_: asked.append(split))
    monkeypatch.setattr(datasets, "corrupted", lambda *given_, **_: asked.append(given_))
    CCAT.of({"DATASET": name, "N": 100}).check_data()
    assert asked == ["train", "test"]
    CCAT.of({"DATASET": name, "N": 100, "CORRUPTION_FILES": "official"}).check_data()
    level = None if name == "mnist" else 1
    assert asked[4:] == [(style, kind, level) for kind in corruptions.NAMES[style]]


def test_held_out_and_test_images_are_two_parts_of_what_is_not_attacked():
    p = CCAT.of({"N": 100, "IMAGES": 30, "HELD_OUT": 1000, "TEST_IMAGES": 150})
    setting = p.load()
    assert (len(setting.x), len(setting.x_test), len(setting.x_held_out)) == (100, 30, 1150)


# --- single rows of toys --------------------------------------------------------------------------------------------


def constant(bias):
    """A network that always says the same, whatever it sees."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        module[1].weight.zero_()
        module[1].bias.copy_(torch.tensor([0.0, bias]))
    return module


@pytest.mark.parametrize("recipe", ["at_half", "ccat", "normal"])
def test_examples_are_transferred_from_adversarial_training_and_there_from_other_seeds(recipe, monkeypatch):
    asked = []

    def members(self, setting, name):
        asked.append(name)
        return [constant(bias) for bias in (1.0, 2.0, 3.0)]

    monkeypatch.setattr(CCAT, "members", members)
    empty = torch.zeros(1, 1, 2, 2)
    y = torch.zeros(1, dtype=torch.long)
    source = CCAT.of({"SEEDS": 3})._transfer_source(Setting(empty, y, empty, y, empty, y, ("a", "b"), "fonts"), recipe)
    assert asked == ["at_half"]
    biases = [member[1].bias[1].item() for member in source.f.unstack()]
    assert biases == ([2, 3, 1] if recipe == "at_half" else [1, 2, 3])


class Ramp(threats.Fleet):
    """Class 1 with logit 8 (mean - .5), for each of two members; the second is half as sure."""

    members = 2

    def __call__(self, x):
        score = 8 * (x.flatten(2).mean(2) - 0.5) * torch.tensor([[1.0], [0.5]])
        return torch.stack([torch.zeros_like(score), score], -1)


def ramp(count=50):
    """Grey images of which the ramp is right, but for the first two."""
    level = torch.linspace(0.1, 0.4, count)
    x = level[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    y = torch.zeros(count, dtype=torch.long)
    y[:2] = 1
    target = threats.Target(Ramp(), None, x, y)
    own = Setting(x, y, x, y, x.repeat(3, 1, 1, 1), y.repeat(3), ("a", "b"), "fonts")
    return target, Judge.of(target, own, 100)


def test_the_walk_is_the_mean_confidence_of_correct_images_between_the_image_and_twice_the_attack():
    target, judge = ramp()
    x = target.x
    moves = torch.tensor([0.02, 0.3])  # the larger one is the worse
    own = torch.stack([(x + move).expand(2, *x.shape) for move in moves])
    found = [Found("confidence", "one", own, 1.0)]
    found.append(Found("stronger", "unused", found[0].x + 0.2, 1.0))
    tried = [ccat.Attempt(g, n, threats.probabilities(target.f, own), own, c) for g, n, own, c in found]
    rows = CCAT.of({})._along_rows(judge, target, tried)
    assert [(row["seed"], row["t"]) for row in rows] == [(seed, float(t)) for t in ALONG for seed in range(2)]
    for row in rows:
        level = (x[2:].mean((1, 2, 3)).double() + row["t"] * 0.3).clamp(0, 1)
        sure = torch.sigmoid((8 * (level - 0.5) * (1, 0.5)[row["seed"]]).abs())
        assert row["rate"] == pytest.approx(sure.mean().item(), abs=1e-5)
        assert row["classes"] == 2
        assert sum(row["hits_average"]) / sum(row["counted"]) == pytest.approx(row["rate"], abs=1e-5)
        assert sum(row["counted"]) == 48, "those that were right"
        assert row["counted"][0] == 0


def test_noise_counts_as_accepted_where_its_confidence_reaches_the_threshold(monkeypatch):
    target, judge = ramp()
    level = torch.linspace(0, 1, 50)
    asked = {}

    def planted(f, x, **options):
        asked.update(options, noise=x)
        found = (level + torch.tensor([[0.0], [0.1]]))[:, :, None, None, None].expand(2, 50, 1, 4, 4).clamp(0, 1)
        return SimpleNamespace(x=torch.stack([torch.full_like(found, 0.5), found]))  # the first restart is not sure

    monkeypatch.setattr(ccat, "distal", planted)
    rows = CCAT.of({"EPS": 0.25, "STEPS": 9, "RESTARTS": 3})._distal_rows(judge, target)
    assert (asked["eps"], asked["steps"], asked["restarts"]) == (0.25, 9, 3)
    noise = asked["noise"]
    assert noise.shape == target.x.shape
    assert (noise.min() >= 0) & (noise.max() <= 1) & ((noise.mean() - 0.5).abs() < 0.05)
    assert noise.std().item() == pytest.approx(12**-0.5, abs=0.02)
    assert [row["seed"] for row in rows] == [0, 1]
    for row, slope, shift in zip(rows, (8, 4), (0, 0.1), strict=True):
        sure = torch.sigmoid(slope * ((level + shift).clamp(0, 1) - 0.5).abs())
        accepted = sure >= judge.taus[row["seed"]]
        assert (row["what"], row["threat"], row["tpr"]) == ("distal", "distal", TPR)
        assert row["rate"] == pytest.approx(accepted.double().mean().item())
        assert 0.2 < row["rate"] < 1
        assert sum(row["counted"]) == 50


@pytest.mark.parametrize("steps", [10, 25])
def test_the_attack_on_noise_reaches_the_end_of_its_budget_with_few_steps(steps, monkeypatch):
    """As the other attacks do, whose path does not depend on the number of steps."""
    target, judge = ramp()
    seen = []

    def spy(f, x, **options):
        found = distal(f, x, **options)
        seen.extend([x, found.x[0, 0]])
        return found

    monkeypatch.setattr(ccat, "distal", spy)
    CCAT.of({"EPS": 0.2, "STEPS": steps})._distal_rows(judge, target)
    before, after = ((own.mean((1, 2, 3)) - 0.5).abs() for own in seen)
    assert (after - before).mean() > 0.12, "of .18: pixels have an eps of .2, less what the box takes"


def test_forced_rejection_counts_correct_images_whose_confidence_falls_below_the_threshold():
    target, judge = ramp()
    p = CCAT.of({"EPS": 0.3, "STEPS": 30})
    rows = p._rejection_rows(judge, target)
    assert [(row["radius"], row["seed"]) for row in rows] == [(radius, seed) for radius in RADII for seed in range(2)]
    level = target.x.mean((1, 2, 3)).double()
    for row in rows:
        slope, tau = (8.0, 4.0)[row["seed"]], judge.taus[row["seed"]]
        kept = torch.sigmoid(slope * (0.5 - level)) >= tau - 1e-6  # tau is the confidence of one of them
        kept[:2] = False  # not correct
        lost = torch.sigmoid(slope * (0.5 - level - row["radius"] * 0.3).abs()) < tau
        lost |= level + row["radius"] * 0.3 > 0.5  # it can stop half way
        assert row["rate"] == pytest.approx((lost & kept).sum().item() / kept.sum().item(), abs=0.05)
        assert sum(row["counted"]) == kept.sum()


def test_corruptions_are_shown_at_every_severity_and_pooled(monkeypatch):
    target, judge = ramp()
    steps = {"one": 0.05, "other": 0.12}

    def corrupt(x, name, level, *, style, generator):
        assert style == "mnist_c"
        return (x + level * steps[name]).clamp(0, 1)

    monkeypatch.setattr(corruptions, "NAMES", {"mnist_c": tuple(steps)})
    monkeypatch.setattr(corruptions, "corrupt", corrupt)
    rows = CCAT.of({"CORRUPTED": 25})._corruption_rows(judge, target)
    x, y = target.x[:25], target.y[:25].numpy()
    pooled = []
    for name, seed in itertools.product(steps, range(2)):
        p = torch.stack([threats.probabilities(target.f, (x + k * steps[name]).clamp(0, 1))[seed] for k in range(1, 6)])
        sure, right = p.amax(-1).numpy(), p.argmax(-1).numpy() == y
        kept = sure >= judge.taus[seed]
        (row,) = [row for row in rows if row["what"] == "corruption" and (row["threat"], row["seed"]) == (name, seed)]
        assert row["accepted"] == pytest.approx(kept.mean())
        assert row["rate"] == (pytest.approx((kept & ~right).sum() / kept.sum()) if kept.any() else None)
        pooled.append((seed, Answers(sure, right)))
    for row in rows:
        if row["what"] == "error":
            tau = judge.taus[row["seed"]] if row["tpr"] else 0.0
            own = [one for seed, one in pooled if seed == row["seed"]]
            kept = sum((one.confidence >= tau).sum(0) for one in own)
            wrong = sum(((one.confidence >= tau) & ~one.correct).sum(0) for one in own)
            assert (row["counted"], row["hits_average"]) == (kept.tolist(), wrong.tolist())
            assert row["threat"] == "corruptions"
    assert len(rows) == 4 + 4
    assert CCAT.of({"CORRUPTED": 0})._corruption_rows(judge, target) == []


# --- a small real run -----------------------------------------------------------------------------------------------

SMALL = {
    "N": 100, "SEEDS": SEEDS, "EPOCHS": 1, "TRAIN_STEPS": 2, "IMAGES": 25, "TEST_IMAGES": 100, "HELD_OUT": 1000,
    "STEPS": 2, "QUERIES": 4, "CORRUPTED": 2, "EPS_L0": 2,
}  # fmt: skip
KINDS = {"threshold", "curve", "error", "robust", "attack", "along", "rejection", "distal", "corruption"}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Rows of both trainings, computed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVBOOK_HOME", str(tmp_path_factory.mktemp("home")))
        p = CCAT.of(SMALL)
        rows = p.rows()
        arrays = {own.recipe.iloc[0]: ledger.arrays(own.arrays.iloc[0]) for _, own in rows.groupby("recipe")}
    return p, rows, arrays


def test_a_real_run_has_rows_of_all_kinds_with_finite_rates(real):
    _, rows, _ = real
    assert set(rows.recipe) == {"at_half", "ccat"}
    for _, own in rows.groupby("recipe"):
        assert set(own.what) == KINDS
        counts = own.groupby("what").size()
        assert counts["robust"] == SEEDS * len(THREATS) * 4 * 2
        assert counts["along"] == SEEDS * len(ALONG)
        assert counts["rejection"] == SEEDS * len(RADII)
        assert counts["distal"] == counts["threshold"] == SEEDS
        assert counts["corruption"] == SEEDS * len(corruptions.NAMES["mnist_c"])
        assert counts["curve"] == SEEDS * (1 + 2 * len(THREATS))
        assert counts["error"] == SEEDS * (2 + 2)
    rated = rows[rows.what != "curve"]
    assert rated.rate.between(0, 1).all()
    assert len(CCAT.verdicts(rows)) == len(CASES)


def test_blocks_of_a_real_run_add_up_to_its_rates(real):
    _, rows, _ = real
    blocks = rows[rows.counted.notna()]
    assert set(blocks.what) == KINDS - {"threshold", "curve", "attack", "corruption"}
    for row in blocks.to_dict("records"):
        assert len(row["counted"]) == len(row["hits_average"]) == metrics.BLOCKS
        assert sum(row["hits_average"]) / sum(row["counted"]) == pytest.approx(row["rate"], abs=1e-5)


def test_all_attacks_of_a_real_run_are_there_and_more_of_them_find_no_less(real):
    _, rows, _ = real
    for (_, threat), own in rows[rows.what == "attack"].groupby(["recipe", "threat"]):
        names = list(own[own.seed == 0].attack)
        assert names == list(own[own.seed == 1].attack)
        moved = ["confidence, from the image"] if threat != "frames" else []
        transferred = [f"transfer, {name}" for name in (*moved, "confidence, random starts", "cross-entropy")]
        assert [name for name in names if name.startswith("transfer")] == transferred
        assert names[-1] == "confidence, from the worst of all"
        assert (own.forwards > 0).all()
        stronger = own[own.group == "stronger"]
        assert set(transferred) | {names[-1]} <= set(stronger.attack)
    at_zero = rows[(rows.what == "robust") & (rows.tpr == 0)].set_index(["recipe", "seed", "threat", "attack"]).rate
    for (recipe, seed, threat, attack), rate in at_zero.items():
        assert rate <= at_zero[recipe, seed, threat, "strong"] + 1e-9
        assert attack != "strong" or rate <= 1


def test_the_walk_of_a_real_run_begins_at_the_clean_images(real):
    _, rows, arrays = real
    for recipe, own in arrays.items():
        begin = rows[(rows.recipe == recipe) & (rows.what == "along") & (rows.seed == 0) & (rows.t == 0)].rate.item()
        assert begin == pytest.approx(own["clean/confidence"][own["clean/correct"]].mean(), abs=1e-5)
        assert own["walk"].shape == own["x"].shape == (6, 1, 28, 28)
        assert np.abs(own["walk"] - own["x"]).max() <= 0.2 + 1e-6
        assert {name.split("/")[0] for name in own} == {"network", "tau", "y", "x", "clean", "walk", *THREATS}


def test_thresholds_of_a_real_run_accept_nearly_all_that_is_correct(real):
    _, rows, _ = real
    assert rows[rows.what == "threshold"].rate.min() > 0.8
    assert (rows[rows.what == "threshold"].tau < 1).all()


@pytest.mark.slow
def test_a_real_run_gives_the_same_rows_again(real, home):
    """From scratch: networks are trained anew, too."""
    p, rows, _ = real
    own = rows[rows.recipe == "ccat"].reset_index(drop=True)
    again = p.model_copy(update={"recipes": ["ccat"]}).rows()
    without = ["seconds"]
    pd.testing.assert_frame_equal(again.drop(columns=without), own.drop(columns=without), check_like=True)


def test_rows_that_are_there_are_not_computed_again(real, monkeypatch, tmp_path):
    p, rows, _ = real
    monkeypatch.setattr(CCAT, "compute", None)
    monkeypatch.setenv("ADVBOOK_HOME", str(tmp_path))
    with pytest.raises(TypeError):
        p.rows()
    assert len(rows.arrays.unique()) == 2
