"""advbook.experiments.generalization: correlation, cuts and gains from rows, verdicts that altered rows turn, and a
small real run.
"""

import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy import stats
from test_learned import image_of, plant, planted_images
from torch import nn

from advbook import metrics, networks
from advbook.experiments import generalization
from advbook.experiments.generalization import (
    PAPER,
    SMALL,
    STRONG,
    GeneralizationLink,
    correlation,
    cuts,
    gains,
    mean_cut,
    slope,
)
from advbook.experiments.grid import ERROR, Rates, rates
from advbook.ledger import Verdict

TINY = {"n": [100], "recipes": ["normal", "random_latent"], "seeds": 2, "epochs": 1, "train_steps": 1, "images": 25,
        "test_images": 100, "steps": 2, "restarts": 2, "strong_steps": 2, "device": "cpu"}  # fmt: skip
NAMES = ["paper", "strong", "small", "cut", "beyond"]  # the verdicts in their order
ATTACKS = {"paper": PAPER, "strong": STRONG, "small": SMALL}


def grid_rows(errors, success=None, spread=0.0, seeds=3, blocks=25, size=40):
    """Rows as a run writes them: errors[recipe][n]; success[name][recipe][n], by default the error itself.

    spread: how far blocks lie from the rate, every other one above and below it.
    """
    rows = []

    def row(recipe, n, rate, **own):
        hits = [size * rate * (1 + spread * (1 if block % 2 else -1)) for block in range(blocks)]
        for seed in range(seeds):
            counts = {"hits_average": hits, "hits_worst": hits, "counted": [size] * blocks}
            rows.append({"network": "cnn", "recipe": recipe, "n": n, "seed": seed, **own, **counts})

    for recipe, by_n in errors.items():
        for n, rate in by_n.items():
            row(recipe, n, rate, what="error")
            for name, quantity in ATTACKS.items():
                won = ((success or {}).get(name) or errors)[recipe][n]
                row(recipe, n, won, what="success", threat=quantity.threat, attack=quantity.attack)
    return pd.DataFrame(rows)


GOOD = {
    "normal": {250: 0.4, 1000: 0.2, 4000: 0.1},
    "on_manifold": {250: 0.2, 1000: 0.1, 4000: 0.04},
    "random_latent": {250: 0.3, 1000: 0.15, 4000: 0.06},
}


def turned(errors):
    """Success that falls where the error rises."""
    return {recipe: {n: 0.9 - rate for n, rate in by_n.items()} for recipe, by_n in errors.items()}


def replaced(recipe, factor):
    """The same errors, one recipe's times a factor."""
    return {**GOOD, recipe: {n: rate * factor for n, rate in GOOD[recipe].items()}}


def verdicts(rows):
    """Outcomes by name; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = GeneralizationLink.verdicts(rows)
    return {name: verdict.outcome for name, verdict in zip(NAMES, found, strict=True)}


# --- verdicts -------------------------------------------------------------------------------------------------


def test_the_verdicts_are_five_with_the_thresholds_that_were_fixed_before():
    found = GeneralizationLink.verdicts(grid_rows(GOOD))
    assert [verdict.threshold for verdict in found] == [0.8, 0.8, 0.8, 0.2, 0.0]
    assert [verdict.attack for verdict in found] == ["paper", "strong", "strong", "", ""]
    assert len({(verdict.statistic, verdict.attack) for verdict in found}) == 5
    assert not any(verdict.at_most for verdict in found)
    assert verdicts(grid_rows(GOOD)) == dict.fromkeys(NAMES, "supported")


@pytest.mark.parametrize("name", ATTACKS)
def test_each_attacks_correlation_is_judged_by_its_own_rows(name):
    altered = verdicts(grid_rows(GOOD, {name: turned(GOOD)}))
    assert altered == {**dict.fromkeys(NAMES, "supported"), name: "not supported"}


@pytest.mark.parametrize(
    ("recipe", "factor", "outcomes"),
    [
        ("on_manifold", 1.8, {"cut": "not supported", "beyond": "not supported"}),
        ("on_manifold", 1.45, {"cut": "supported", "beyond": "supported"}),
        ("normal", 0.55, {"cut": "not supported", "beyond": "supported"}),
        ("random_latent", 0.6, {"cut": "supported", "beyond": "not supported"}),
    ],
)
def test_a_changed_error_of_a_recipe_turns_the_verdicts_that_compare_it(recipe, factor, outcomes):
    altered = verdicts(grid_rows(replaced(recipe, factor)))
    assert {name: altered[name] for name in outcomes} == outcomes
    assert altered["paper"] == "supported", "success follows the error in these rows"


def test_rows_that_spread_leave_what_is_near_its_threshold_undecided():
    near = {**GOOD, "on_manifold": {n: 0.78 * rate for n, rate in GOOD["normal"].items()}}
    noisy, rows = np.random.default_rng(0), grid_rows(near)
    assert verdicts(rows)["cut"] == "supported"
    rows["hits_average"] = [
        (np.array(hits) * noisy.uniform(0.2, 1.8, len(hits))).tolist() for hits in rows.hits_average
    ]
    assert verdicts(rows)["cut"] == "undecided"


def test_the_average_counts_for_the_papers_attack_and_the_worst_case_for_the_strong_one():
    rows = grid_rows(GOOD)
    rows["hits_worst"] = grid_rows(GOOD, dict.fromkeys(ATTACKS, turned(GOOD))).hits_worst
    assert verdicts(rows) == {
        "paper": "supported", "strong": "not supported", "small": "not supported", "cut": "supported",
        "beyond": "supported",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("missing", "undecided"),
    [
        ("on_manifold", {"cut", "beyond"}),
        ("normal", {"cut"}),
        ("random_latent", {"beyond"}),
    ],
)
def test_without_a_recipe_what_needs_it_is_undecided(missing, undecided):
    rows = grid_rows({recipe: by_n for recipe, by_n in GOOD.items() if recipe != missing})
    found = verdicts(rows)
    assert {name for name, outcome in found.items() if outcome == "undecided"} == undecided
    assert found["paper"] == "supported"


@pytest.mark.parametrize(
    "rows",
    [
        grid_rows({"normal": {250: 0.4}}),
        grid_rows({"normal": {250: 0.4}, "on_manifold": {1000: 0.2}}),
        grid_rows(GOOD).assign(network="mlp"),
        grid_rows(GOOD).query("what == 'nothing'"),
        grid_rows({recipe: dict.fromkeys(by_n, 0.0) for recipe, by_n in GOOD.items()}),
    ],
    ids=["one point", "no N in common", "another network", "no rows", "no errors at all"],
)
def test_too_few_rows_leave_all_undecided_without_a_warning(rows):
    assert set(verdicts(rows).values()) == {"undecided"}


def test_without_an_attacks_rows_its_correlation_alone_is_undecided():
    rows = grid_rows(GOOD)
    found = verdicts(rows[rows.threat != SMALL.threat])
    assert found == {**dict.fromkeys(NAMES, "supported"), "small": "undecided"}


def test_an_attack_that_always_succeeds_leaves_nothing_to_correlate():
    ones = {recipe: dict.fromkeys(by_n, 1.0) for recipe, by_n in GOOD.items()}
    found = verdicts(grid_rows(GOOD, {"strong": ones}))
    assert found == {**dict.fromkeys(NAMES, "supported"), "strong": "undecided"}


def test_other_networks_do_not_count():
    other = grid_rows(replaced("on_manifold", 3.0), dict.fromkeys(ATTACKS, turned(GOOD))).assign(network="mlp")
    both = pd.concat([other, grid_rows(GOOD)], ignore_index=True)
    assert verdicts(both) == dict.fromkeys(NAMES, "supported")


# --- statistics -----------------------------------------------------------------------------------------------

drawn = st.tuples(st.integers(3, 6), st.integers(2, 4)).flatmap(
    lambda shape: st.tuples(*[st_numpy.arrays(np.float64, shape, elements=st.floats(0, 1), unique=True)] * 2)
)


def spread_out(*parts):
    """Whether no column is nearly constant, where rounding would decide."""
    return all(part.std(0).min() > 1e-3 for part in parts)


@settings(max_examples=40)
@given(drawn)
def test_correlation_and_slope_are_numpys_column_by_column(both):
    error, success = both
    if not spread_out(error, success):
        return
    found = Rates(pd.DataFrame(), [error, success])
    expected = [np.corrcoef(*pair)[0, 1] for pair in zip(error.T, success.T, strict=True)]
    np.testing.assert_allclose(correlation(found), expected, atol=1e-9)
    np.testing.assert_allclose(
        slope(found), [stats.linregress(*pair).slope for pair in zip(error.T, success.T, strict=True)], atol=1e-7
    )


def test_two_points_have_a_slope_but_no_correlation_and_one_has_neither():
    error, success = np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([[0.5, 0.5], [0.6, 0.4]])
    assert np.isnan(correlation(Rates(pd.DataFrame(), [error, success]))).all()
    np.testing.assert_allclose(slope(Rates(pd.DataFrame(), [error, success])), [0.5, -0.5])
    assert np.isnan(slope(Rates(pd.DataFrame(), [error[:1], success[:1]]))).all()


def test_the_correlation_of_rows_is_that_of_their_pooled_rates_over_recipes_and_n():
    random = np.random.default_rng(1)
    success = {
        name: {recipe: {n: random.uniform(0.1, 0.9) for n in by_n} for recipe, by_n in GOOD.items()} for name in ATTACKS
    }
    rows = grid_rows(GOOD, success, spread=0.3)
    for name, quantity in ATTACKS.items():
        pairs = [(rate, success[name][recipe][n]) for recipe, by_n in GOOD.items() for n, rate in by_n.items()]
        a, b = np.array(pairs).T
        found = rates(rows, ERROR, quantity)
        # blocks at odd places lie above: 12 of 25, so that the pooled rate is a little below the rate, equally for all
        assert correlation(found)[0] == pytest.approx(np.corrcoef(a, b)[0, 1])
        assert slope(found)[0] == pytest.approx(np.polyfit(a, b, 1)[0])


def test_cuts_are_relative_and_compared_within_a_draw():
    rows = grid_rows(GOOD, spread=0.8)
    for over, shares in (("normal", {250: 0.5, 1000: 0.5, 4000: 0.6}), ("random_latent", {250: 1 / 3, 1000: 1 / 3})):
        found = cuts(rows, over)
        assert list(found) == [250, 1000, 4000]
        for n, share in shares.items():
            np.testing.assert_allclose(found[n], share, atol=1e-9, err_msg="equal ratios in every block: no spread")
    np.testing.assert_allclose(mean_cut(rows, "normal"), (0.5 + 0.5 + 0.6) / 3, atol=1e-9)
    np.testing.assert_allclose(mean_cut(rows, "on_manifold", "normal"), 1 - (2 + 2 + 2.5) / 3, atol=1e-9)


def test_only_n_that_both_recipes_have_are_compared():
    part = {**GOOD, "on_manifold": {1000: 0.1, 8000: 0.02}}
    assert list(cuts(grid_rows(part), "normal")) == [1000]
    assert mean_cut(grid_rows(part), "normal")[0] == pytest.approx(0.5)
    assert np.isnan(mean_cut(grid_rows(part), "adversarial")).all()


def test_gains_are_differences_of_errors_with_their_intervals():
    random = np.random.default_rng(3)
    rows = grid_rows(GOOD)
    rows["hits_average"] = [
        random.binomial(40, np.mean(hits) / 40, 25).astype(float).tolist() for hits in rows.hits_average
    ]
    found, drawn_errors = gains(rows), rates(rows, ERROR)
    assert list(found.over) == ["normal"] * 3 + ["random_latent"] * 3
    assert list(found.n) == [250, 1000, 4000] * 2
    places = {tuple(point)[1:]: row for row, point in enumerate(drawn_errors.points.itertuples(index=False))}
    for line in found.to_dict("records"):
        other, own = (drawn_errors.draws[0][places[recipe, line["n"]]] for recipe in (line["over"], "on_manifold"))
        low, high = np.percentile((other - own)[1:], [2.5, 97.5])
        assert [line["gain"], line["gain_low"], line["gain_high"]] == pytest.approx([other[0] - own[0], low, high])
        low, high = np.percentile((1 - own / other)[1:], [2.5, 97.5])
        assert [line["cut"], line["cut_low"], line["cut_high"]] == pytest.approx([1 - own[0] / other[0], low, high])
        assert line["gain_low"] < line["gain"] < line["gain_high"]


@settings(max_examples=5)
@given(st.floats(0.1, 0.9), st.integers(0, 9))
def test_verdicts_and_tables_give_the_same_numbers(factor, seed):
    """The mean of the cuts in the table is the verdict's value."""
    errors = {**GOOD, "on_manifold": {n: rate * factor for n, rate in GOOD["normal"].items()}}
    rows = grid_rows(errors, spread=seed / 10)
    found, table = GeneralizationLink.verdicts(rows), gains(rows)
    assert found[3].value == pytest.approx(table[table.over == "normal"].cut.mean())
    assert found[3].value == pytest.approx(1 - factor)
    assert found[4].value == pytest.approx(table[table.over == "random_latent"].cut.mean())


# --- a small real run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Parameters, rows and networks of a small run, and of one with another small budget."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVBOOK_HOME", str(tmp_path_factory.mktemp("small")))
        p = GeneralizationLink(**TINY)
        rows = p.rows()
        other = GeneralizationLink(**{**TINY, "eta_small": 0.29}).rows()
        setting = p.load()
        members = {recipe: p.points()[0].members(setting, recipe) for recipe in TINY["recipes"]}
        patch.setattr(GeneralizationLink, "compute", None)
        pd.testing.assert_frame_equal(GeneralizationLink(**TINY).rows(), rows)
    return rows, other, setting, members


def test_every_point_and_seed_has_its_error_and_three_attacks(small):
    rows, *_ = small
    for recipe in TINY["recipes"]:
        for seed in range(2):
            own = rows[(rows.recipe == recipe) & (rows.seed == seed)]
            assert list(own.what) == ["error", "success", "success", "success"]
            assert [(row.threat, row.attack) for row in own[own.what == "success"].itertuples()] == [
                ("on-manifold", "paper"), ("on-manifold", "strong"), ("on-manifold small", "strong")
            ]  # fmt: skip
    assert set(rows.n) == {100}
    assert set(rows.network) == {"cnn"}
    assert (rows[rows.what == "success"].forwards > 0).all()


def test_errors_are_those_of_the_stored_networks_on_the_images_held_out(small):
    rows, _, setting, members = small
    for recipe, own in members.items():
        for seed, network in enumerate(own):
            logits = networks.predict(network, setting.x_held_out)
            (row,) = rows[(rows.what == "error") & (rows.recipe == recipe) & (rows.seed == seed)].to_dict("records")
            assert row["test_error"] == metrics.error(logits, setting.y_held_out)
            assert sum(row["hits_average"]) == pytest.approx(100 * row["test_error"])
            right = int((networks.predict(network, setting.x_test).argmax(1) == setting.y_test).sum())
            attacked = rows[(rows.what == "success") & (rows.recipe == recipe) & (rows.seed == seed)]
            assert set(attacked.correct) == {right}
            assert attacked.success_average.dropna().between(0, 1).all()


def test_the_small_budget_is_the_small_rows_alone(small):
    rows, other, *_ = small
    own = [name for name in rows if name not in ("eta_small", "seconds")]
    changed = rows.threat == SMALL.threat
    pd.testing.assert_frame_equal(rows[~changed][own], other[~changed][own])
    one, two = (sum(map(sum, table[changed].hits_worst)) for table in (rows, other))
    assert one < two, "a larger budget fools more"


def test_the_verdicts_of_a_real_run_are_complete(small):
    rows, *_ = small
    found = GeneralizationLink.verdicts(rows)
    assert all(isinstance(verdict, Verdict) for verdict in found)
    assert len(found) == 5
    assert gains(rows).empty, "the run has no on-manifold training"
    assert found[3].outcome == found[4].outcome == "undecided"


def test_the_papers_attack_and_the_strong_one_have_the_chapters_budgets(home, monkeypatch):
    """What the attacks are asked for."""
    asked = []

    def paper(fleet, space, y, **options):
        asked.append((space.eta, options["steps"], options["restarts"], len(space)))
        return SimpleNamespace(success=torch.zeros(1, fleet.members, len(y), dtype=torch.bool), forwards=1.0)

    def strong(fleet, space, y, *, eps, steps, **options):
        asked.append((space.eta, eps, steps, len(space)))
        return torch.zeros(1, fleet.members, len(y), dtype=torch.bool), 1.0

    monkeypatch.setattr(generalization, "pgd_latent", paper)
    monkeypatch.setattr(generalization, "strong", strong)
    p = GeneralizationLink(**{**TINY, "recipes": ["normal"], "eta": 0.25, "eta_small": 0.05, "strong_steps": 3})
    p.rows()
    assert asked == [(0.25, 2, 2, 25), (0.25, 0.25, 3, 25), (0.05, 0.05, 3, 25)]


# --- real images: planted manifolds and networks --------------------------------------------------------------


class FirstLatent(nn.Module):
    """Reads the class that a planted image shows, and the next one where the first latent lies above a bound."""

    def __init__(self, bound):
        super().__init__()
        self.bound = nn.Parameter(torch.tensor(bound))

    def forward(self, x):
        shown = x[:, 0, 1, 0:20:2]
        return 10 * shown + shown.roll(1, 1) * (10 + 50 * (8 * (x[:, 0, 0, :1] - 0.5) - self.bound))


def test_on_learned_manifolds_success_is_counted_where_the_image_of_the_code_is_read_rightly(home, monkeypatch):
    """Two networks with known answers: one errs on codes beyond 2, which are clipped, the other on many."""
    plant(monkeypatch)
    bounds = (2.1, 0.5)
    monkeypatch.setattr(
        GeneralizationLink,
        "members",
        lambda self, setting, recipe=None: [nn.Sequential(FirstLatent(b)) for b in bounds],
    )
    p = GeneralizationLink(  # no fast draft of these networks is made
        **{**TINY, "dataset": "mnist", "networks": ["mlp"], "recipes": ["normal"], "images": 200, "strong_steps": 5}
    )
    rows = p.rows()
    _, y, z = planted_images("test", 200)
    for seed, bound in enumerate(bounds):
        own = rows[rows.seed == seed]
        (decoded,) = own[own.what == "decoded"].to_dict("records")
        wrong = image_of(z.clamp(-2, 2), y)[:, 0, 0, 0] > 0.5 + bound / 8
        assert sum(decoded["hits_average"]) == wrong.sum()
        assert sum(decoded["counted"]) == 200
        assert (z[:, 0] > bound).sum() > (0 if bound < 2 else wrong.sum()), "x and dec(z) must differ"
        (strong,) = own[(own.attack == "strong") & (own.threat == "on-manifold")].to_dict("records")
        reachable = ~wrong & ((z[:, 0].clamp(-2, 2) + p.eta).clamp_max(2) > bound)
        assert set(own[own.what == "success"].correct) == {int((~wrong).sum())}
        assert strong["success_worst"] == pytest.approx(float(reachable.sum() / (~wrong).sum()))
    assert list(rows[rows.seed == 0].what) == ["error", "decoded", "success", "success", "success"]
