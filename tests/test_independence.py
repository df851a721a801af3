"""advbook.experiments.independence: statistics against closed forms, verdicts that can fail, and a small real run."""

import itertools
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learned import plant, planted_images
from torch import nn

from advbook import fonts, metrics
from advbook.experiments import independence
from advbook.experiments.grid import ERROR, Quantity, rates
from advbook.experiments.independence import (
    ATTACKS,
    PAPER,
    REGULAR,
    SIZE,
    SMALL,
    STRONG,
    TRANSFER,
    Independence,
    data_factor,
    dial,
    error_falls,
    spread,
)
from advbook.experiments.recipes import DIAL, TITLES

SEEDS, RESAMPLES = 2, 100
SIZES = (100, 200, 400, 800, 1600)
RECIPES = ("normal", "adversarial", "on_manifold", "combined")


@pytest.fixture(autouse=True, scope="module")
def few_resamples():
    """Enough for an interval, and a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "resampled_rates", partial(metrics.resampled_rates, resamples=RESAMPLES))
        yield


# --- fabricated rows --------------------------------------------------------------------------------------------


def even(quantity, key, rate):
    """A point's rows with the same rate in every network and block, so that all resamples agree."""
    return uneven(quantity, key, np.full((SEEDS, metrics.BLOCKS), rate))


def uneven(quantity, key, shares):
    """A point's rows with a rate of its own for every network and block: shares [S, K]."""
    network, recipe, n = key
    return [
        {
            "what": quantity.what,
            "threat": quantity.threat or None,
            "attack": quantity.attack or None,
            "seed": seed,
            "network": network,
            "recipe": recipe,
            "n": n,
            # what nobody asks for is wrong, so that a statistic that reads it goes wrong too
            "hits_average": [0.123] * metrics.BLOCKS,
            "hits_worst": [0.123] * metrics.BLOCKS,
            f"hits_{quantity.definition}": (40 * own).tolist(),
            "counted": [40.0] * metrics.BLOCKS,
        }
        for seed, own in enumerate(shares)
    ]


def line(quantity, rate, *, recipe="normal", network="cnn", sizes=SIZES):
    """Rows of one recipe: rate(N) for every N."""
    return [row for n in sizes for row in even(quantity, (network, recipe, n), rate(n))]


def table(*lines):
    return pd.DataFrame([row for own in lines for row in own])


def listed(quantity, values, **where):
    """Rows of one recipe with the given rates, one an N."""
    by_size = dict(zip(SIZES, values, strict=False))
    return line(quantity, by_size.__getitem__, sizes=tuple(by_size), **where)


ERRORS = {"normal": 0.2, "adversarial": 0.25, "on_manifold": 0.1, "combined": 0.15}
SUCCESS = {"normal": 0.9, "adversarial": 0.3, "on_manifold": 0.85, "combined": 0.4}


def book(change=None, *, recipes=RECIPES, nets=("cnn", "mlp"), sizes=SIZES[::2]):
    """The rows of a grid on which every claim holds; change(quantity, network, recipe, n) gives another rate, or None.

    Errors fall as 1 / sqrt(N), and adversarial training needs (.25 / .2)^2 = 1.5625 times the data of normal training.
    """
    rows = []
    for network, recipe, n in itertools.product(nets, recipes, sizes):
        standard = {ERROR: 10 * ERRORS[recipe] / n**0.5, SIZE: 1.5, PAPER: SUCCESS[recipe], STRONG: 0.94}
        standard |= {SMALL: 0.8 * SUCCESS[recipe]}
        for quantity, rate in standard.items():
            other = change(quantity, network, recipe, n) if change else None
            rows += even(quantity, (network, recipe, n), rate if other is None else other)
    return pd.DataFrame(rows)


# --- the range over N -------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_the_spread_is_the_largest_rate_less_the_smallest(values):
    found = spread(table(listed(PAPER, values)), "cnn", ["normal"], PAPER)
    assert found == pytest.approx(np.full(1 + RESAMPLES, max(values) - min(values)), abs=1e-9)


@settings(max_examples=20)
@given(st.lists(st.floats(0, 0.5), min_size=2, max_size=5), st.floats(0, 0.5))
def test_the_spread_looks_at_differences_alone(values, shift):
    moved = [shift + value for value in values]
    one, other = (spread(table(listed(SMALL, v)), "cnn", ["normal"], SMALL) for v in (values, moved))
    assert one == pytest.approx(other, abs=1e-9)


def test_of_several_recipes_the_one_that_changes_most_counts_and_each_is_compared_with_itself():
    rows = table(
        listed(PAPER, [0.9, 0.8]),
        listed(PAPER, [0.1, 0.4], recipe="on_manifold"),
        listed(PAPER, [0.0, 1.0], recipe="adversarial"),
        listed(PAPER, [0.0, 1.0], network="mlp"),
        listed(STRONG, [0.0, 1.0]),
    )
    assert spread(rows, "cnn", ["normal"], PAPER)[0] == pytest.approx(0.1)
    assert spread(rows, "cnn", ["normal", "on_manifold"], PAPER)[0] == pytest.approx(0.3)
    assert spread(rows, "mlp", ["normal"], PAPER)[0] == pytest.approx(1)


def test_what_all_n_share_does_not_widen_the_interval_of_the_spread():
    """Hard images are hard at every N: a bootstrap that drew images anew for every N would see a range."""
    shares = np.linspace(0, 1, SEEDS * metrics.BLOCKS).reshape(SEEDS, metrics.BLOCKS)
    alike = [row for n in SIZES for row in uneven(PAPER, ("cnn", "normal", n), shares)]
    assert spread(table(alike), "cnn", ["normal"], PAPER) == pytest.approx(np.zeros(1 + RESAMPLES))
    other = [row for n in SIZES for row in uneven(PAPER, ("cnn", "normal", n), shares if n > 100 else shares[:, ::-1])]
    found = spread(table(other), "cnn", ["normal"], PAPER)
    assert found[0] == pytest.approx(0)
    assert np.quantile(found, 0.9) > 0.05


def test_one_n_has_no_spread_and_a_recipe_with_one_n_does_not_count():
    single = listed(PAPER, [0.9])
    assert np.isnan(spread(table(single), "cnn", ["normal"], PAPER)).all()
    assert np.isnan(spread(table(single), "cnn", [], PAPER)).all()
    rows = table(single, listed(PAPER, [0.2, 0.3], recipe="on_manifold"))
    assert spread(rows, "cnn", ["normal", "on_manifold", "transformation"], PAPER)[0] == pytest.approx(0.1)


# --- how much the error falls -----------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.floats(0.05, 1.5), st.lists(st.sampled_from(SIZES), min_size=1, unique=True))
def test_an_error_that_falls_as_a_power_of_n_falls_by_that_power_of_the_ratio(power, sizes):
    rows = table(line(ERROR, lambda n: 40 * n**-power / 100, sizes=sizes))
    found = error_falls(rows, "cnn", "normal")
    assert found == pytest.approx(np.full(1 + RESAMPLES, (max(sizes) / min(sizes)) ** power))


def test_an_error_that_rises_falls_by_less_than_one_and_one_that_is_not_there_by_nothing():
    rows = table(listed(ERROR, [0.1, 0.9, 0.2]))
    assert error_falls(rows, "cnn", "normal")[0] == pytest.approx(0.5)
    assert np.isnan(error_falls(rows, "cnn", "adversarial")).all()
    assert np.isnan(error_falls(rows, "mlp", "normal")).all()


# --- the factor of data -----------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.floats(0.2, 1.5), st.floats(1, 4))
def test_the_factor_of_two_power_laws_is_the_factor_between_their_n(power, factor):
    """With error c N^-a and c (N / F)^-a, the second needs F times the data; lines in logarithmic axes are exact."""
    law = lambda n: 0.5 * (100 / n) ** power  # noqa: E731
    rows = table(line(ERROR, law), line(ERROR, lambda n: law(n / factor), recipe="adversarial"))
    assert data_factor(rows) == pytest.approx(np.full(1 + RESAMPLES, factor))
    assert data_factor(rows, "normal") == pytest.approx(np.ones(1 + RESAMPLES))


@pytest.mark.parametrize(
    ("goal", "factor"),
    [(0.4, 1), (0.2, 2), (0.1, 4), (0.08**0.5, 2**0.5), (0.7, 1), (0.09, 4), (0.001, 4)],
    ids=["a point", "the next", "the last", "halfway, in logs", "above: the least", "below: the most", "far below"],
)
def test_the_error_is_sought_on_the_recipes_curve_and_a_factor_off_its_ends_is_that_of_the_end(goal, factor):
    rows = table(listed(ERROR, [goal]), listed(ERROR, [0.4, 0.2, 0.1], recipe="adversarial"))
    assert data_factor(rows) == pytest.approx(np.full(1 + RESAMPLES, factor))


def test_of_several_n_the_median_counts_and_only_those_of_which_there_is_four_times_as_much():
    # at N = 100, 200, 400 the factors are 1, 2 and 4; 800 and 1600 have no fourfold, and would be at the end
    normal = listed(ERROR, [0.5, 0.3, 0.2, 0.001, 0.001])
    adversarial = listed(ERROR, [0.5, 0.4, 0.3, 0.25, 0.2], recipe="adversarial")
    assert data_factor(table(normal, adversarial))[0] == pytest.approx(2)
    first = [row for row in normal if row["n"] == 100]
    assert data_factor(table(first, adversarial))[0] == pytest.approx(1)
    assert data_factor(table(normal, adversarial[: -2 * SEEDS]))[0] == pytest.approx(1), "a grid up to 400"


def test_a_bump_in_the_recipes_curve_does_not_count_and_on_a_plateau_the_least_n_does():
    bump = listed(ERROR, [0.4, 0.6, 0.2], recipe="adversarial")
    assert data_factor(table(listed(ERROR, [0.2]), bump))[0] == pytest.approx(4)
    assert data_factor(table(listed(ERROR, [0.4]), bump))[0] == pytest.approx(1), "reached at N = 100, not at 200"
    plateau = [0.4, 0.4, 0.4, 0.1, 0.1]
    rows = table(listed(ERROR, plateau), listed(ERROR, plateau, recipe="adversarial"))
    assert data_factor(rows)[0] == pytest.approx(0.5), "1, 1/2 and 1/4: N = 100 would have been enough"


def test_the_factor_has_an_interval_where_images_differ():
    shares = np.linspace(0.1, 0.9, metrics.BLOCKS) * np.array([[1.0], [0.5]])
    points = {100: shares, 200: 0.8 * shares[:, ::-1], 400: 0.2 * shares}
    own = [row for n, value in points.items() for row in uneven(ERROR, ("cnn", "adversarial", n), value)]
    normal = uneven(ERROR, ("cnn", "normal", 100), 0.7 * shares)
    value, low, high = metrics.percentiles(data_factor(table(own, normal)))
    assert 1 < low < value < high < 4


def test_without_four_times_the_data_or_without_a_recipe_there_is_no_factor():
    normal, own = listed(ERROR, [0.4, 0.2]), listed(ERROR, [0.4, 0.2], recipe="adversarial")
    three = listed(ERROR, [0.4, 0.2, 0.1], recipe="adversarial")
    for rows in (table(normal, own), table(three), table(normal), table(normal, three[-SEEDS:])):
        assert np.isnan(data_factor(rows)).all()
    assert np.isfinite(data_factor(table(normal, three))).all()
    assert np.isnan(data_factor(table(normal, three), network="mlp")).all()


# --- the dial ---------------------------------------------------------------------------------------------------


def test_the_dial_has_the_places_and_n_that_are_there_in_their_order():
    lines = [
        line(PAPER, lambda n, d=d: 0.9 - 0.4 * d + n / 10_000, recipe=recipe, sizes=(100, 400))
        for recipe, d in DIAL.items()
    ]
    found = dial(table(*lines, listed(PAPER, [0.5])), PAPER)
    assert list(found.columns) == ["d", "n", "value", "low", "high"]
    assert found.d.tolist() == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1]
    assert found.value.to_numpy() == pytest.approx(0.9 - 0.4 * found.d + found.n / 10_000)
    assert found.low.to_numpy() == pytest.approx(found.value) == found.high.to_numpy()
    fewer = dial(table(lines[0], lines[4][:SEEDS]), PAPER)
    assert fewer[["d", "n"]].to_numpy().tolist() == [[0, 100], [0, 400], [1, 100]]
    assert list(dial(table(lines[0]), SMALL).columns) == list(found.columns)


# --- verdicts ---------------------------------------------------------------------------------------------------


def labelled(verdicts, nets=("cnn", "mlp")):
    """A short name -> verdict, in their order."""
    names = [
        *(f"flat {kind} {network}" for network in nets for kind in ("paper", "strong", "small", "size")),
        # not beside normal training alone, of which they would say the same again
        *(("all flat paper", "all flat small") if any("every recipe" in v.claim for v in verdicts) else ()),
        "data",
        "price",
        "fooled paper",
        "fooled small",
    ]
    return dict(zip(names, verdicts, strict=True))


def outcomes(rows, nets=("cnn", "mlp")):
    return {name: verdict.outcome for name, verdict in labelled(Independence.verdicts(rows), nets).items()}


def needed(name):
    """The networks to fabricate rows for: fewer rows, less time."""
    return ("cnn", "mlp") if "mlp" in name else ("cnn",)


def where(quantity, recipe, network="cnn"):
    """A change that touches one quantity of one recipe and network."""

    def chosen(rate):
        return lambda q, net, r, n: rate(n) if (q, net, r) == (quantity, network, recipe) else None

    return chosen


RISING = lambda n: 0.2 + n / 4000  # noqa: E731  # by .375 over N
ALTERED = {
    "flat paper cnn": (where(PAPER, "normal"), RISING, {"all flat paper"}),
    "flat strong cnn": (where(STRONG, "normal"), RISING, set()),
    "flat small cnn": (where(SMALL, "normal"), RISING, {"all flat small"}),
    "flat size cnn": (where(SIZE, "normal"), lambda n: 1.5 + RISING(n), set()),
    "flat paper mlp": (where(PAPER, "normal", "mlp"), RISING, set()),
    "flat strong mlp": (where(STRONG, "normal", "mlp"), RISING, set()),
    "flat small mlp": (where(SMALL, "normal", "mlp"), RISING, set()),
    "flat size mlp": (where(SIZE, "normal", "mlp"), lambda n: 1.5 + RISING(n), set()),
    "all flat paper": (where(PAPER, "on_manifold"), lambda n: 0.5 + RISING(n) / 2, set()),
    "all flat small": (where(SMALL, "on_manifold"), lambda n: 0.5 + RISING(n) / 2, set()),
    "data": (where(ERROR, "adversarial"), lambda n: 4.5 / n**0.5, set()),
    "price": (where(ERROR, "combined"), lambda n: 3 / n**0.5, set()),
    "fooled paper": (where(PAPER, "combined"), lambda n: 0.84, set()),
    "fooled small": (where(SMALL, "combined"), lambda n: 0.84, set()),
}


def test_a_grid_on_which_every_claim_holds_supports_them_all():
    found = labelled(Independence.verdicts(book()))
    assert {name: verdict.outcome for name, verdict in found.items()} == dict.fromkeys(ALTERED, "supported")
    values = {name: verdict.value for name, verdict in found.items()}
    assert values["data"] == pytest.approx((0.25 / 0.2) ** 2)
    assert values["price"] == pytest.approx(np.mean([10 * (0.25 - 0.15) / n**0.5 for n in SIZES[::2]]))
    assert values["fooled paper"] == pytest.approx(0.85 - 0.4)
    assert values["fooled small"] == pytest.approx(0.8 * (0.85 - 0.4))
    for name in found.keys() - {"data", "price", "fooled paper", "fooled small"}:
        assert values[name] == pytest.approx(0)


@pytest.mark.parametrize("name", ALTERED)
def test_every_verdict_turns_when_its_own_rows_are_altered_and_no_other_does(name):
    chosen, rate, too = ALTERED[name]
    found = outcomes(book(chosen(rate), nets=needed(name)), needed(name))
    assert {other for other, outcome in found.items() if outcome != "supported"} == {name} | too
    assert found[name] == "not supported"


@pytest.mark.parametrize("name", ALTERED)
def test_every_verdict_is_undecided_where_resamples_lie_on_both_sides_of_its_threshold(name):
    chosen, rate, _ = ALTERED[name]
    nets = needed(name)
    rows, bad = book(nets=nets), book(chosen(rate), nets=nets)
    good_verdict, bad_verdict = (labelled(Independence.verdicts(own), nets)[name] for own in (rows, bad))
    share = (good_verdict.threshold - good_verdict.value) / (bad_verdict.value - good_verdict.value)
    altered = np.arange(metrics.BLOCKS) < share * metrics.BLOCKS  # the blocks that are taken from the altered rows
    for column in ("hits_average", "hits_worst"):
        rows[column] = np.where(altered, np.stack(bad[column]), np.stack(rows[column])).tolist()
    assert outcomes(rows, nets)[name] == "undecided"


def test_verdicts_say_which_attack_they_rest_on_and_keep_their_thresholds():
    found = labelled(Independence.verdicts(book()))
    for name, verdict in found.items():
        rests = "" if name in ("data", "price") else "paper" if "paper" in name else "strong"
        limits = {"data": (2.0, True), "price": (0.0, False), "fooled": (0.05, False)}
        assert verdict.attack == rests
        assert (verdict.threshold, verdict.at_most) == limits.get(name.split()[0], (0.1, True))
    shown = [(verdict.claim, verdict.statistic, verdict.attack) for verdict in found.values()]
    assert len(set(shown)) == len(shown), "a reader can tell them apart"


@pytest.mark.parametrize(("rate", "void"), [(0.96, "above 0.95"), (0.04, "below 0.05"), (0.94, ""), (0.06, "")])
def test_a_range_of_rates_that_are_all_near_one_or_zero_decides_nothing(rate, void):
    found = labelled(Independence.verdicts(book(where(STRONG, "normal")(lambda n: rate), nets=("cnn",))), ("cnn",))
    verdict = found["flat strong cnn"]
    assert void in verdict.void
    assert verdict.outcome == ("undecided" if void else "supported")


def test_one_rate_that_is_not_near_one_is_enough_to_decide():
    change = where(STRONG, "normal")(lambda n: 0.8 if n == 100 else 1.0)
    found = labelled(Independence.verdicts(book(change, nets=("cnn",))), ("cnn",))
    assert found["flat strong cnn"].outcome == "not supported"


def test_recipes_that_see_regular_examples_are_no_part_of_the_claim():
    """Adversarial training may depend on N as it likes; every recipe either sees regular examples or must be flat."""
    assert outcomes(book(where(PAPER, "adversarial")(RISING)))["all flat paper"] == "supported"
    assert set(REGULAR) == {r for r in TITLES if "adversarial" in r or "combined" in r or "dial" in r}


def expected(recipes, nets, sizes):
    """The verdicts that can be decided on a part of the grid."""
    found, two = set(), len(sizes) > 1
    for network in nets:
        if "normal" in recipes and two:
            found |= {f"flat {kind} {network}" for kind in ("paper", "strong", "small", "size")}
    if "cnn" in nets:
        if two and "on_manifold" in recipes:
            found |= {"all flat paper", "all flat small"}
        if {"normal", "adversarial"} <= set(recipes) and max(sizes) >= 4 * min(sizes):
            found.add("data")
        if {"adversarial", "combined"} <= set(recipes):
            found.add("price")
        if {"on_manifold", "combined"} <= set(recipes):
            found |= {"fooled paper", "fooled small"}
    return found


PARTS = [part for count in (1, 2, 3) for part in itertools.combinations(RECIPES, count)]


@pytest.mark.parametrize("recipes", PARTS, ids="-".join)
def test_where_recipes_or_n_are_missing_verdicts_are_undecided_and_never_an_error(recipes):
    whole = book(recipes=recipes, sizes=(100, 200, 400))
    for sizes, nets in (((100,), ("cnn",)), ((100, 400), ("cnn",)), ((100, 200), ("mlp",))):
        rows = whole[whole.n.isin(sizes) & whole.network.isin(nets)]
        found = labelled(Independence.verdicts(rows), nets)
        decided = {name for name, verdict in found.items() if verdict.outcome != "undecided"}
        assert decided == expected(recipes, nets, sizes)


def test_without_the_rows_of_a_quantity_its_verdicts_are_undecided():
    rows = book()
    keys = rows[["what", "threat", "attack"]].fillna("").apply(tuple, axis=1)
    for quantity, names in {
        SIZE: {"flat size cnn", "flat size mlp"},
        ERROR: {"data", "price"},
        STRONG: {"flat strong cnn", "flat strong mlp"},
    }.items():
        found = outcomes(rows[keys != tuple(quantity[:3])])
        assert {name for name, outcome in found.items() if outcome == "undecided"} == names


def test_where_nothing_was_fooled_there_is_no_size_and_the_verdict_is_undecided():
    rows = book()
    nothing = pd.Series([[0.0] * metrics.BLOCKS] * len(rows))
    for column in ("hits_average", "counted"):
        rows[column] = rows[column].where(rows.what != "size", nothing)
    assert outcomes(rows)["flat size cnn"] == "undecided"


def test_only_n_that_both_recipes_have_are_compared():
    rows = table(
        listed(ERROR, [0.9, 0.3], recipe="adversarial"),
        listed(ERROR, [0.2], recipe="combined"),
        listed(ERROR, [0.1, 0.1, 0.1]),
    )
    price, *_ = independence._trade_off(rows)
    assert (price.value, price.outcome) == (pytest.approx(0.7), "supported")
    apart = table(
        listed(ERROR, [0.9], recipe="adversarial"), line(ERROR, lambda n: 0.1, recipe="combined", sizes=(200,))
    )
    assert independence._trade_off(apart)[0].outcome == "undecided"


# --- the computation --------------------------------------------------------------------------------------------


SHAPE = {"n": [100], "seeds": 2, "images": 40, "test_images": 200, "cw_images": 25, "restarts": 2, "cw_steps": 20}
FEW = {"epochs": 10, "train_steps": 2, "steps": 10, "strong_steps": 10}
EVERY = {(q.what, q.threat, q.attack) for q in (ERROR, *ATTACKS.values(), SIZE, TRANSFER)} | {
    ("size", "linf", "paper"),
    ("size", "cw", "paper"),
}


@pytest.fixture
def linear(monkeypatch):
    """Linear classifiers, least squares on 2,000 images, in place of trained networks: what fools them is known."""

    def members(p, setting, recipe=None):
        found = []
        for seed in range(p.seeds):
            shift = seed + (10 if (recipe or p.recipes[0]) != "normal" else 0)
            rows = fonts.random_rows("train", 2_000, skip=2_000 * shift)
            x = fonts.images(rows).flatten(1)
            right = nn.functional.one_hot(rows.letter, 10).float() - 0.1
            layer = nn.Linear(28 * 28, 10)
            w = torch.linalg.solve(x.T @ x + 100 * torch.eye(28 * 28), x.T @ right)
            layer.weight.data = 50 * w.T.contiguous()
            layer.bias.data.zero_()
            found.append(nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False))
        return found

    monkeypatch.setattr(Independence, "members", members)


def computed(**change):
    """The rows of a small point, which no row file keeps."""
    p = Independence(**{**SHAPE, **FEW, "networks": ["mlp"], "recipes": ["normal"], **change})
    network, recipe, n = p.networks[0], p.recipes[0], p.n[0]
    return p, pd.DataFrame(p.compute().rows).assign(network=network, recipe=recipe, n=n)


def pooled(rows, quantity):
    """A quantity over all networks and images."""
    return rates(rows, quantity).draws[0][0, 0]


def check(p, rows):
    """What must hold of any point's rows."""
    keys = rows[["what", "threat", "attack"]].fillna("").apply(tuple, axis=1)
    assert set(keys) == EVERY
    assert all(sorted(own.seed) == list(range(p.seeds)) for _, own in rows.groupby(keys))
    for row in rows[rows.what == "error"].to_dict("records"):
        assert sum(row["counted"]) == p.test_images
        assert sum(row["hits_average"]) / p.test_images == pytest.approx(row["test_error"])
    right = rows[(rows.threat == "linf") & (rows.attack == "strong")].set_index("seed").correct
    for row in rows[rows.what == "success"].to_dict("records"):
        assert sum(row["counted"]) == row["correct"] > 0
        assert row["correct"] <= right[row["seed"]] if row["threat"] == "cw" else row["correct"] == right[row["seed"]]
        for name in ("average", "worst"):
            assert sum(row[f"hits_{name}"]) / row["correct"] == pytest.approx(row[f"success_{name}"], abs=1e-5)
        assert row["success_worst"] >= row["success_average"]
    assert 0 < pooled(rows, Quantity("size", "linf", "paper")) <= p.eps + 1e-6
    assert pooled(rows, SIZE) > 0


def what_fools(f, x, y, budgets):
    """Of a linear classifier, exactly: whether each image can be fooled within each L-inf budget, [B] bool each, and
    the L2 size of its nearest adversarial example, [B].
    """
    z, w, x = f(x), f[1].weight, x.flatten(1)
    slopes = w[None] - w[y][:, None]  # [B, K, D]: of z_k - z_y
    gaps = (z - z.gather(1, y[:, None])).masked_fill(nn.functional.one_hot(y, 10).bool(), -torch.inf)
    found = []
    for eps in budgets:  # every pixel goes as far as budget and image allow
        room = torch.where(slopes > 0, (1 - x).clamp(max=eps)[:, None], x.clamp(max=eps)[:, None])
        found.append(((gaps + (slopes.abs() * room).sum(2)).amax(1) > 0).tolist())

    def step(t):  # the nearest point that gains so much goes along the slope, clipped to the image's box
        return torch.minimum(torch.maximum(t[..., None] * slopes, -x[:, None]), (1 - x)[:, None])

    low, high = torch.zeros_like(gaps), torch.full_like(gaps, 100.0)
    for _ in range(40):
        middle = (low + high) / 2
        enough = (slopes * step(middle)).sum(2) >= -gaps
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    size = step(high).norm(dim=2).masked_fill(gaps.isinf(), torch.inf)
    return found, size.amin(1)


def test_rows_of_linear_classifiers_agree_with_what_fools_them(linear):
    p, rows = computed(eps=0.02, eps_small=0.005, eps_l2=0.3, cw_steps=120)
    check(p, rows)
    setting = p.load()
    x, y = setting.x_test, setting.y_test
    wide, small, sizes, first = [], [], [], []  # first: the sizes on the images of Carlini and Wagner's attack
    for f in p.members(setting):
        right = (f(x).argmax(1) == y).numpy()
        (reached, reached_small), size = what_fools(f, x, y, (p.eps, p.eps_small))
        wide, small = [*wide, *np.array(reached)[right]], [*small, *np.array(reached_small)[right]]
        sizes += size.numpy()[right].tolist()
        first += size.numpy()[: p.cw_images][right[: p.cw_images]].tolist()
    for quantity, possible in ((STRONG, np.mean(wide)), (SMALL, np.mean(small))):
        assert 0.9 * possible <= pooled(rows, quantity) <= possible + 1e-6
    assert np.mean(small) < np.mean(wide), "the budgets can be told apart"
    possible = np.mean(np.array(sizes) < p.eps_l2)
    assert 0.6 * possible < pooled(rows, ATTACKS["PGD, L2"]) <= possible < 0.9
    assert pooled(rows, ATTACKS["CW, L2"]) > np.mean(np.array(first) < p.eps_l2), "there is no bound"
    assert pooled(rows, SIZE) >= 0.999 * np.mean(first)


def test_the_nearest_example_of_a_linear_classifier_is_found_to_a_fifth(linear):
    p, rows = computed(seeds=1, cw_steps=1)
    setting = p.load()
    x, y = setting.x_test[: p.cw_images], setting.y_test[: p.cw_images]
    (f,) = p.members(setting)
    right = (f(x).argmax(1) == y).numpy()
    sizes = what_fools(f, x, y, ())[1].numpy()[right]
    assert pooled(rows, SIZE) <= 1.2 * np.mean(sizes)


def test_every_attack_keeps_to_its_own_budget(linear, monkeypatch):
    monkeypatch.setattr(Independence, "_carlini_wagner", lambda *_: [])  # it has no budget, and takes long
    _, wide = computed()
    _, narrow = computed(eps_small=1e-6, eps_l2=1e-6, eta_l2=1e-6)
    for name in ("Auto-PGD, L-inf, small eps", "PGD, L2", "latent PGD, L2"):
        assert pooled(wide, ATTACKS[name]) > 0.02
        assert pooled(narrow, ATTACKS[name]) < 0.02
    for quantity in (PAPER, STRONG, TRANSFER):
        assert pooled(wide, quantity) == pooled(narrow, quantity)


@pytest.mark.parametrize("recipe", ["normal", "adversarial"])
def test_transfer_leaves_out_the_network_itself(linear, monkeypatch, recipe):
    monkeypatch.setattr(Independence, "_carlini_wagner", lambda *_: [])
    p, rows = computed(recipes=[recipe], seeds=3)
    setting = p.load()
    x, y = setting.x_test, setting.y_test
    sources, targets = p.members(setting, "normal"), p.members(setting)
    found = p._pgd(p.fleet(sources)[0], None, setting)
    own_rate = []
    for t, target in enumerate(targets):
        hits = counted = own = 0.0
        for m, source in enumerate(sources):
            both = (source(x).argmax(1) == y) & (target(x).argmax(1) == y)
            shown = torch.stack([both & (f(run).argmax(1) != y) for run in found.x[:, m] for f in (source, target)])
            fooled = float((shown[0::2] & shown[1::2]).double().mean(0).sum())
            if recipe == "normal" and m == t:
                own = fooled / float(both.sum())
                continue
            hits, counted = hits + fooled, counted + float(both.sum())
        (row,) = rows[(rows.what == "transfer") & (rows.seed == t)].to_dict("records")
        assert sum(row["counted"]) == pytest.approx(counted)
        assert sum(row["hits_average"]) == pytest.approx(hits, abs=1e-3)
        own_rate.append(own - hits / counted)
    assert recipe == "adversarial" or min(own_rate) > 0.02, "with itself, the rate would be another"


def test_a_single_normal_network_has_none_to_transfer_from(linear, monkeypatch):
    monkeypatch.setattr(Independence, "_carlini_wagner", lambda *_: [])
    _, rows = computed(seeds=1)
    assert np.isnan(pooled(rows, TRANSFER))
    _, rows = computed(seeds=1, recipes=["adversarial"])
    assert np.isfinite(pooled(rows, TRANSFER))


@pytest.mark.slow
def test_a_small_real_grid_has_every_row_and_is_read_the_second_time(home, monkeypatch):
    p = Independence(**{**SHAPE, **FEW, "networks": ["cnn"], "recipes": ["normal", "adversarial"], "n": [300]})
    rows = p.rows()
    for _, own in rows.groupby("recipe"):
        check(p, own)
    assert len(Independence.verdicts(rows)) == 8
    assert rates(rows, ERROR).draws[0][:, 0].max() < 0.85, "the networks read letters"
    monkeypatch.setattr(Independence, "compute", None)
    assert p.rows().equals(rows)


def test_on_learned_manifolds_latent_attacks_start_from_the_image_of_the_code(home, monkeypatch):
    """A network that errs on codes beyond 2 alone, which are clipped: right on x and on dec(z) differ."""
    plant(monkeypatch)
    network = nn.Sequential(FirstLatent()).requires_grad_(False)
    monkeypatch.setattr(Independence, "members", lambda self, setting, recipe=None: [network] * self.seeds)
    monkeypatch.setattr(Independence, "_carlini_wagner", lambda *_: [])
    p = Independence(
        **{**SHAPE, **FEW, "dataset": "mnist", "networks": ["mlp"], "recipes": ["normal"], "images": 200, "steps": 20}
    )
    rows = pd.DataFrame(p.compute().rows)
    _, _, z = planted_images("test", 200)
    wrong = int((z[:, 0] > 2.1).sum())
    assert wrong > 0
    rows = rows[rows.what == "success"]
    moved = rows[rows.threat == "on-manifold l2"]
    assert set(moved.correct) == {200}
    assert (moved.success_worst == 0).all(), "the box ends at 2"
    for threat in ("l2", "linf"):
        assert set(rows[rows.threat == threat].correct) == {200 - wrong}


class FirstLatent(nn.Module):
    """Reads the class that a planted image shows, and the next one where the first latent lies above 2.1."""

    def __init__(self):
        super().__init__()
        self.bound = nn.Parameter(torch.tensor(2.1))

    def forward(self, x):
        shown = x[:, 0, 1, 0:20:2]
        return 10 * shown + shown.roll(1, 1) * (10 + 50 * (8 * (x[:, 0, 0, :1] - 0.5) - self.bound))
