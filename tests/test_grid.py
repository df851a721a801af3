"""advbook.experiments.grid: points and their row files, what is refused, and rates with intervals from rows."""

import json
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_kernels import network as small_network
from torch import nn
from toys import seeded

from advbook import fonts, ledger, metrics
from advbook.attacks.objectives import log_odds
from advbook.attacks.pgd import Attack
from advbook.attacks.spaces import Latent
from advbook.experiments import ParameterError, Result, grid
from advbook.experiments.grid import ERROR, Grid, Quantity, agreement, of, rates, table
from advbook.experiments.setting import Setting
from advbook.fleet import Stack
from advbook.kernels import Banded

PAPER = Quantity("success", "linf", "paper")
WORST = Quantity("success", "linf", "paper", "worst")


class Demo(Grid):
    """A chapter that writes down which points it computes."""

    experiment: ClassVar[str] = "demo_grid"
    version: ClassVar[int] = 1
    computed: ClassVar[list[tuple]] = []

    def compute(self):
        (network,), (recipe,), (n,) = self.networks, self.recipes, self.n
        if n == 666:
            raise OSError("this point is broken")
        self.computed.append((network, recipe, n))
        return Result([{"what": "error", "seed": seed, "value": n + seed} for seed in range(self.seeds)], {})


@pytest.fixture(autouse=True)
def uncounted():
    Demo.computed.clear()


SEVERAL = {"NETWORKS": ["mlp", "cnn"], "RECIPES": ["normal", "on_manifold"], "N": [500, 250]}


# --- points ---------------------------------------------------------------------------------------------------


def test_points_are_the_product_of_the_axes_in_their_order():
    p = Demo.of({**SEVERAL, "ETA": 0.2, "PROFILE": "quick"})
    points = p.points()
    assert [(*one.networks, *one.recipes, *one.n) for one in points] == [
        (network, recipe, n) for network in ("mlp", "cnn") for recipe in ("normal", "on_manifold") for n in (500, 250)
    ]
    assert {(one.eta, one.profile) for one in points} == {(0.2, "quick")}
    assert Demo(n=[250]).points() == [Demo(n=[250])], "a point is the only point of itself"


@settings(max_examples=30)
@given(st.lists(st.integers(100, 10_000), min_size=1, max_size=4, unique=True), st.integers(1, 3))
def test_every_point_is_one_and_no_two_are_the_same(sizes, seeds):
    points = Demo(n=sizes, networks=["cnn", "vgg"], seeds=seeds).points()
    files = {ledger.path(one.experiment, one.version, one.point()) for one in points}
    assert len(points) == len(files) == 2 * len(sizes)
    assert sorted(place.name.split("-")[1] for place in files) == sorted(f"n{n}" for n in sizes * 2)


def test_a_point_names_a_single_value_of_each_axis():
    point = Demo.of({"N": 250, "NETWORKS": "mlp", "RECIPES": ["combined"], "DEVICE": "cpu"}).point()
    assert (point["network"], point["recipe"], point["n"]) == ("mlp", "combined", 250)
    fixed = set(Demo.model_fields) - {"networks", "recipes", "device", "profile"}
    assert set(point) == fixed | {"network", "recipe"}
    assert json.loads(json.dumps(point)) == point


def test_a_value_alone_is_a_list_of_one_and_a_grid_is_no_point():
    assert Demo.of({"N": 250}) == Demo.of({"N": [250]})
    with pytest.raises(ValueError, match=r"N = \[250, 500\] is a grid"):
        Demo.of({"N": [250, 500]}).point()


def test_a_larger_run_is_accepted_and_has_twice_the_largest_n():
    for sizes in ([250], [1000, 250], [fonts.TRAIN_ROWS // 2 + 1], [fonts.TRAIN_ROWS]):
        p = Demo.of({"N": sizes})
        larger = Demo.of({**p.injected(), **p.larger()})
        assert larger.n[: len(sizes)] == sizes
        assert larger.n[len(sizes) :] in ([2 * max(sizes)], [])
        assert len(larger.n) == len(sizes) + (2 * max(sizes) <= fonts.TRAIN_ROWS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"N": []}, "N = [] is not allowed: at least one value is needed."),
        ({"RECIPES": []}, "RECIPES = [] is not allowed: at least one value is needed."),
        ({"N": [250, 500, 250]}, "N = [250, 500, 250] is not allowed: a value stands there twice."),
        ({"NETWORKS": ["cnn", "cnn"]}, "NETWORKS = ['cnn', 'cnn'] is not allowed: a value stands there twice."),
        ({"N": 99}, "N = 99 is not allowed: it should be greater than or equal to 100."),
        ({"N": [250, 960_001]}, "N = 960001 is not allowed: it should be less than or equal to 960000."),
        ({"N": 250.0}, "N = 250.0 is not allowed: it should be a valid integer."),
        ({"N": [250, "500"]}, "N = '500' is not allowed: it should be a valid integer."),
        ({"N": True}, "N = True is not allowed: it should be a valid integer."),
        ({"N": None}, "N = None is not allowed: it should be a valid integer."),
        ({"N": [[250]]}, "N = [250] is not allowed: it should be a valid integer."),
        ({"RECIPES": "on-manifold"}, "RECIPES = 'on-manifold' is not allowed: it should be 'normal', 'adversarial', "),
        ({"RECIPES": ["normal", "dial_50"]}, "RECIPES = 'dial_50' is not allowed: it should be 'normal', "),
        ({"NETWORKS": ["cnn", "densenet"]}, "NETWORKS = 'densenet' is not allowed: it should be 'cnn', 'mlp', "),
        ({"ETA": 3.2}, "ETA = 3.2 is not allowed: it should be less than or equal to 3.14"),
        ({"EPS": 0}, "EPS = 0 is not allowed: it should be greater than 0."),
        ({"SEEDS": []}, "SEEDS = [] is not allowed: it should be a valid integer."),
        ({"SEEDS": 0}, "SEEDS = 0 is not allowed: it should be greater than or equal to 1."),
        ({"IMAGES": 24}, "IMAGES = 24 is not allowed: it should be greater than or equal to 25."),
        ({"DATASET": "svhn"}, "DATASET = 'svhn' is not allowed: it should be 'fonts', 'emnist', 'mnist', "),
        ({"MANIFOLD": "large"}, "MANIFOLD = 'large' is not allowed: it should be 'small' or 'paper'."),
        ({"DATASET": "mnist", "N": [60_001]}, "N = [60001] is not allowed: mnist has 60,000 training images."),
        (
            {"DATASET": "mnist", "RECIPES": ["normal", "on_class"]},
            "RECIPES = ['normal', 'on_class'] is not allowed: on_class and random_class are for FONTS, ",
        ),
        (
            {"DATASET": "mnist", "IMAGES": 2_000},
            "TEST_IMAGES = 9000 is not allowed: mnist has 10,000 test images, and IMAGES = 2000 of them are attacked.",
        ),
        ({"MANIFOLD": "paper"}, "MANIFOLD = 'paper' is not allowed: on fonts, none of RECIPES = ['normal'] moves "),
        ({"DATASET": "celeba", "RECIPES": "random_class"}, "RECIPES = ['random_class'] is not allowed: on_class and "),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_value_ends_in_one_sentence(given, said):
    with pytest.raises(ParameterError) as caught:
        Demo.of(given)
    message = str(caught.value)
    assert message.startswith(f"Parameter {said}")
    assert "\n" not in message
    assert message.endswith(".")


# --- row files of several points ------------------------------------------------------------------------------


def test_rows_of_several_points_carry_their_values_and_are_computed_once(home, monkeypatch):
    p = Demo.of({**SEVERAL, "SEEDS": 2})
    first = p.rows()
    assert len(Demo.computed) == len(list(home.glob("rows/demo_grid/*.json"))) == 8
    assert [tuple(row) for row in first[grid.KEYS].drop_duplicates().itertuples(index=False)] == Demo.computed
    assert list(first.index) == list(range(16))
    assert (first.value == first.n + first.seed).all()
    assert first.groupby(grid.KEYS).seed.apply(list).tolist() == [[0, 1]] * 8

    def unwanted(self):
        raise AssertionError("it was computed before")

    monkeypatch.setattr(Demo, "compute", unwanted)
    pd.testing.assert_frame_equal(p.rows(), first)
    part = Demo.of({**SEVERAL, "SEEDS": 2, "N": 250, "NETWORKS": "cnn"}).rows()
    expected = first[(first.n == 250) & (first.network == "cnn")].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, expected)


def test_a_wider_grid_computes_only_what_is_missing_and_a_broken_point_loses_nothing(home):
    Demo(n=[250, 500]).rows()
    with pytest.raises(OSError, match="broken"):
        Demo(n=[1000, 666, 2000]).rows()
    Demo.computed.clear()
    rows = Demo(n=[2000, 1000, 500, 250]).rows()
    assert Demo.computed == [("cnn", "normal", 2000)]
    assert list(dict.fromkeys(rows.n)) == [2000, 1000, 500, 250]
    Demo.computed.clear()
    Demo(n=[250], eta=0.2).rows()
    assert Demo.computed == [("cnn", "normal", 250)], "another budget is another point"


def test_tables_that_differ_in_their_axes_alone_are_one_grid_and_the_largest_comes_first(home):
    wide, other = Demo.of({**SEVERAL, "DEVICE": "cpu"}), Demo(n=[250], eta=0.2)
    alike = Demo(n=[1000], networks=["resnet"], profile="standard")
    tables = [other.point_rows(), *(one.point_rows() for one in wide.points()), alike.point_rows()]
    grids = Demo.grids(tables)
    assert [len(set(found[grid.KEYS].itertuples(index=False))) for found in grids] == [9, 1]
    assert set(grids[0].eta) == {0.3}
    assert set(grids[1].eta) == {0.2}
    assert list(grids[0].index) == list(range(len(grids[0])))
    assert sum(map(len, grids)) == sum(map(len, tables))
    assert Demo.grids([]) == []


def test_a_grid_loads_its_images_and_trains_by_its_budgets(home, monkeypatch):
    asked = []
    monkeypatch.setattr(grid, "classifiers", lambda *given, **options: asked.append((given, options)))
    p = Demo(n=[100], images=30, test_images=120, seeds=2, eps=0.1, eta=0.2, train_steps=7, epochs=3, device="cpu")
    setting = p.load()
    assert [len(part) for part in (setting.x, setting.x_test, setting.x_held_out)] == [100, 30, 120]
    p.members(setting)
    p.members(setting, "combined")
    (given, own), (_, other) = asked
    assert given[1] == ("fonts", "first", 100)
    assert (own["recipe"], other["recipe"], own["network"], own["seeds"]) == ("normal", "combined", "cnn", 2)
    assert tuple(own["budgets"]) == (0.1, 0.2, 7, "small")
    assert own["schedule"].epochs == 3


def test_learned_classes_are_for_fonts_and_one_manifold_of_all_for_every_data_set():
    assert Demo.of({"RECIPES": ["on_class", "random_class", "on_data"]}).recipes[0] == "on_class"
    assert Demo.of({"DATASET": "mnist", "RECIPES": ["on_manifold", "random_latent", "on_data"]}).dataset == "mnist"


def test_a_larger_run_on_real_images_has_more_networks_where_there_are_no_more_images():
    assert Demo.of({"DATASET": "mnist", "N": 30_000}).larger() == {"N": [30_000, 60_000]}
    assert Demo.of({"DATASET": "mnist", "N": 30_001, "SEEDS": 4}).larger() == {"SEEDS": 8}


@pytest.mark.parametrize(("dataset", "where"), [("fonts", "true"), ("mnist", "class")])
def test_attacked_images_are_points_of_the_best_manifold_of_the_size_asked_for(monkeypatch, dataset, where):
    asked = []
    monkeypatch.setattr(grid.learned, "codes", lambda *given, **options: asked.append((*given, options)))
    recipes = ["on_class"] if dataset == "fonts" else ["normal"]  # on FONTS a size must be of use
    Demo(dataset=dataset, manifold="paper", recipes=recipes).codes("the setting")
    assert asked == [("the setting", "test", where, {"size": "paper"})]


@pytest.mark.parametrize("manifold", ["small", "paper"])
def test_networks_train_on_manifolds_of_the_size_asked_for(home, monkeypatch, manifold):
    asked = []
    monkeypatch.setattr(grid, "classifiers", lambda *given, **options: asked.append(options))
    Demo(n=[100], manifold=manifold, recipes=["on_class"]).members(None)
    assert asked[0]["budgets"].size == manifold


@pytest.mark.parametrize(
    ("name", "fast", "drafted"), [("cnn", True, True), ("cnn", False, False), ("mlp", True, False)]
)
def test_a_fleet_has_a_draft_only_where_there_is_a_fast_one(monkeypatch, name, fast, drafted):
    monkeypatch.setattr(grid, "bfloat16_is_fast", lambda device: fast)
    members = [small_network(seed, side=28).float() for seed in (0, 1)]
    fleet, draft = Demo(networks=[name], device="cpu").fleet(members)
    assert fleet.members == 2
    assert not fleet.training
    assert isinstance(draft, Banded) == drafted


# --- rows of a measurement ------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A network that says class 1 where the image's pixel is above a threshold, else class 0."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, x):
        score = x.flatten(1)[:, 0] - self.threshold
        return torch.stack([-score, score], 1)


def test_error_rows_count_every_networks_mistakes_in_blocks_of_neighbours():
    x = torch.linspace(0, 1, 60).view(60, 1, 1, 1)
    y = (x.flatten() > 0.5).long()
    setting = Setting(x, y, x, y, x, y, ("0", "1"), "mnist")
    rows = grid.error_rows([Fixed(0.5), Fixed(0.7)], setting)
    assert [row["test_error"] for row in rows] == [0, pytest.approx(12 / 60)]
    wrong = [(0.5 < value <= 0.7) for value in x.flatten().tolist()]
    sizes = [3] * 10 + [2] * 15
    ends = np.cumsum(sizes)
    assert rows[1]["counted"] == sizes
    assert rows[1]["hits_average"] == [sum(wrong[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    assert [(row["what"], row["seed"]) for row in rows] == [("error", 0), ("error", 1)]


masks = st.integers(0, 999).map(lambda seed: torch.rand(3, 2, 30, generator=seeded(seed)) < 0.4)


@settings(max_examples=25)
@given(masks, st.integers(0, 999))
def test_success_rows_are_the_rates_of_correct_images_and_their_counts(success, seed):
    right = torch.rand(2, 30, generator=seeded(seed)) < 0.7
    rows = grid.success_rows("linf", "paper", success, right, 3.5)
    found = pd.DataFrame(rows)
    for index, row in enumerate(rows):
        assert row["correct"] == right[index].sum() == sum(row["counted"])
        pairs = [bool(success[r, index, b]) for r in range(3) for b in range(30) if right[index, b]]
        assert row["success_average"] == pytest.approx(np.mean(pairs))
        assert sum(row["hits_average"]) == pytest.approx(np.sum(pairs) / 3, abs=1e-4)
        assert sum(row["hits_worst"]) == (success[:, index].any(0) & right[index]).sum()
        assert row["success_worst"] == pytest.approx(sum(row["hits_worst"]) / row["correct"])
        assert (row["threat"], row["attack"], row["forwards"]) == ("linf", "paper", 3.5)
    shared = found.assign(network="cnn", recipe="normal", n=250)
    pooled = table(shared, average=PAPER, worst=WORST).iloc[0]
    weighed = [
        np.average([row[f"success_{name}"] for row in rows], weights=found.correct) for name in ("average", "worst")
    ]
    assert [pooled.average, pooled.worst] == pytest.approx(weighed, abs=1e-5)


def test_a_network_that_is_right_on_nothing_has_no_success():
    rows = grid.success_rows("linf", "paper", torch.ones(2, 1, 30, dtype=torch.bool), torch.zeros(1, 30).bool(), 1.0)
    assert rows[0]["correct"] == sum(rows[0]["counted"]) == sum(rows[0]["hits_average"]) == 0
    assert np.isnan(rows[0]["success_average"])


def test_size_rows_hold_the_mean_size_of_what_succeeded():
    success = torch.rand(2, 1, 30, generator=seeded(1)) < 0.5
    right, size = torch.rand(1, 30, generator=seeded(2)) < 0.8, torch.rand(2, 1, 30, generator=seeded(3))
    found = Attack(torch.zeros(0), success, size, success.long(), 1.0)
    (row,) = grid.size_rows("linf", "paper", size, found, right)
    counted = [float(size[r, 0, b]) for r in range(2) for b in range(30) if success[r, 0, b] and right[0, b]]
    assert sum(row["hits_average"]) / sum(row["counted"]) == pytest.approx(np.mean(counted), abs=1e-5)
    assert sum(row["counted"]) == len(counted)


class Lead(nn.Module):
    """Two classes; class 0 leads by w x + b."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)

    def forward(self, x):
        lead = x.flatten(1) @ self.w + self.b
        return torch.stack([lead, torch.zeros_like(lead)], 1)


@pytest.mark.parametrize("latent", [False, True], ids=["pixels", "latents"])
def test_the_strong_attack_fools_linear_networks_exactly_where_it_can(latent):
    """A lead w x + b falls by eps |w|_1 within the ball and no further."""
    eps, x = 0.05, 0.3 + 0.4 * torch.rand(20, 1, 4, 4, generator=seeded(1))
    directions = torch.randn(2, 16, generator=seeded(2))
    leads = x.flatten(1) @ directions.T
    members = [
        Lead(w, 1.02 * eps * w.abs().sum() - lead.median()) for w, lead in zip(directions, leads.T, strict=True)
    ]  # fmt: skip
    lead = torch.stack([f(x)[:, 0].detach() for f in members])
    least = lead / directions.abs().sum(1, keepdim=True)
    assert ((least / eps - 1).abs() > 1e-3).all(), "rounding decides nothing"
    z, free = x.flatten(1), torch.full((16,), 9.0)
    space = Latent(z, lambda z: z.view(-1, 1, 4, 4), (), -free, free, eps)
    y = torch.zeros(20, dtype=torch.long)
    won, forwards = grid.strong(
        Stack(members).eval(), space if latent else x, y, eps=eps, steps=10, draft=None, label="strong", seed=3
    )  # fmt: skip
    assert won.shape == (1, 2, 20)
    possible = least < eps
    assert 5 < possible.sum() < 35
    assert torch.equal(won[0], possible)
    assert 2 < forwards <= 2 * 11


@pytest.mark.parametrize("latent", [False, True], ids=["pixels", "latents"])
def test_the_strong_attack_wins_where_either_objective_does_and_counts_both(latent, monkeypatch):
    drawn = []

    def planted(f, x, y, *, objective, generator, restarts, **options):
        drawn.append(float(torch.rand(1, generator=generator)))
        first = objective is log_odds
        assert (restarts, options["steps"], options.get("eps", 0.2)) == (1, 7, 0.2)
        return SimpleNamespace(success=torch.tensor([[[first, False, not first]]]), forwards=8.0 if first else 4.0)

    monkeypatch.setattr(grid, "apgd", planted)
    monkeypatch.setattr(grid, "apgd_latent", planted)
    x, free = torch.zeros(3, 4), torch.ones(4)
    space = Latent(x, lambda z: z, (), -free, free, 0.2)
    won, forwards = grid.strong(
        None, space if latent else x, torch.zeros(3), eps=0.2, steps=7, draft=None, label="strong", seed=1
    )
    assert won.tolist() == [[[True, False, True]]]
    assert forwards == 12
    assert len(set(drawn)) == 2, "each objective has starts of its own"


# --- rates from rows ------------------------------------------------------------------------------------------


def fabricated(points, seeds=4, blocks=25, seed=0, size=8):
    """Rows as a run writes them: (network, recipe, n) -> probability of an error; success is half as likely."""
    random, rows = np.random.default_rng(seed), []
    for (network, recipe, n), rate in points.items():
        for member in range(seeds):
            counted = random.integers(size // 2, size + 1, blocks)
            common = {"network": network, "recipe": recipe, "n": n, "seed": member, "counted": counted.tolist()}
            hits = random.binomial(counted, rate).astype(float).tolist()
            rows.append({**common, "what": "error", "hits_average": hits})
            won = random.binomial(counted, rate / 2)
            attack = {"what": "success", "threat": "linf", "attack": "paper"}
            rows.append({**common, **attack, "hits_average": (won / 2).tolist(), "hits_worst": won.tolist()})
            rows.append({**common, **attack, "attack": "strong", "hits_average": hits, "hits_worst": hits})
    return pd.DataFrame(rows)


POINTS = {("cnn", "normal", 250): 0.4, ("cnn", "normal", 1000): 0.2, ("mlp", "normal", 250): 0.5}


def own_rows(rows, key, quantity):
    """Hits and counts [S, K] of a point, picked by hand."""
    network, recipe, n = key
    chosen = [
        row for row in rows.to_dict("records")
        if (row["network"], row["recipe"], row["n"], row["what"]) == (network, recipe, n, quantity.what)
        and (not quantity.attack or row["attack"] == quantity.attack)
    ]  # fmt: skip
    chosen.sort(key=lambda row: row["seed"])
    hits = np.array([row[f"hits_{quantity.definition}"] for row in chosen])
    return hits, np.array([row["counted"] for row in chosen])


@pytest.mark.parametrize("quantity", [ERROR, PAPER, WORST, Quantity("success", "linf", "strong", "worst")])
def test_the_first_column_is_the_pooled_rate_of_the_quantitys_own_rows(quantity):
    rows = fabricated(POINTS).sample(frac=1, random_state=1)
    points, (drawn,) = rates(rows, quantity)
    assert [tuple(point) for point in points.itertuples(index=False)] == sorted(POINTS)
    assert drawn.shape == (3, 1001)
    for key, own in zip(sorted(POINTS), drawn, strict=True):
        hits, counted = own_rows(rows, key, quantity)
        assert own[0] == pytest.approx(hits.sum() / counted.sum())


def test_the_order_of_rows_changes_nothing():
    rows = fabricated(POINTS)
    one, other = rates(rows, ERROR, PAPER), rates(rows.sample(frac=1, random_state=2), ERROR, PAPER)
    pd.testing.assert_frame_equal(one.points, other.points)
    for first, second in zip(one.draws, other.draws, strict=True):
        np.testing.assert_array_equal(first, second)


def test_intervals_are_those_of_a_plain_bootstrap_over_seeds_and_blocks():
    rows = fabricated(POINTS, seeds=5)
    found = table(rows, error=ERROR, worst=WORST)
    assert list(found.columns) == [*grid.KEYS, "error", "error_low", "error_high", "worst", "worst_low", "worst_high"]
    random = np.random.default_rng(7)
    for point in found.to_dict("records"):
        for name, quantity in (("error", ERROR), ("worst", WORST)):
            hits, counted = own_rows(rows, (point["network"], point["recipe"], point["n"]), quantity)
            drawn = []
            for _ in range(2_000):
                seeds, blocks = random.choice(5, 5), random.choice(25, 25)
                drawn.append(hits[seeds][:, blocks].sum() / counted[seeds][:, blocks].sum())
            low, high = np.percentile(drawn, [2.5, 97.5])
            width = high - low
            assert point[f"{name}_low"] == pytest.approx(low, abs=0.15 * width)
            assert point[f"{name}_high"] == pytest.approx(high, abs=0.15 * width)
            assert point[f"{name}_low"] < point[name] < point[f"{name}_high"]


def test_with_one_seed_and_one_image_a_block_the_resamples_are_binomial():
    """Closed form: each of 25 draws hits with the share of blocks that hit."""
    hits = [1.0] * 10 + [0.0] * 15
    rows = pd.DataFrame([{"network": "cnn", "recipe": "normal", "n": 250, "what": "error", "seed": 0,
                          "hits_average": hits, "counted": [1.0] * 25}])  # fmt: skip
    point = table(rows, error=ERROR).iloc[0]
    low, high = stats.binom.ppf([0.025, 0.975], 25, 0.4) / 25
    assert point.error == pytest.approx(0.4)
    assert [point.error_low, point.error_high] == pytest.approx([low, high], abs=1 / 25 + 1e-9)
    drawn = rates(rows, ERROR).draws[0][0, 1:]
    assert drawn.var() == pytest.approx(0.4 * 0.6 / 25, rel=0.15)


def test_only_points_that_have_all_quantities_are_compared():
    rows = fabricated(POINTS)
    missing = rows[(rows.what == "error") | (rows.n == 250)]
    found = rates(missing, ERROR, PAPER)
    assert [tuple(point) for point in found.points.itertuples(index=False)] == [
        ("cnn", "normal", 250), ("mlp", "normal", 250)
    ]  # fmt: skip
    assert len(rates(missing, ERROR).points) == 3
    assert [len(part) for part in found.draws] == [2, 2]


@pytest.mark.filterwarnings("error")
def test_without_rows_of_a_quantity_there_are_no_points_and_no_traceback():
    rows = fabricated(POINTS)
    nothing = Quantity("success", "l2", "paper")
    found = rates(rows, ERROR, nothing)
    assert len(found.points) == 0
    assert [len(part) for part in found.draws] == [0, 0]
    assert list(table(rows, error=ERROR, l2=nothing).columns) == [
        *grid.KEYS, "error", "error_low", "error_high", "l2", "l2_low", "l2_high"
    ]  # fmt: skip
    assert len(table(rows, l2=nothing)) == len(agreement(rows, rows, l2=nothing)) == 0
    assert len(agreement(rows, rows[:0], error=ERROR)) == 0
    assert of(found, 0, "cnn", "normal") == {}


@pytest.mark.filterwarnings("error")
def test_where_nothing_is_counted_a_rate_is_not_a_number_and_others_stay():
    rows = fabricated(POINTS)
    none = (rows.what == "success") & (rows.n == 1000)
    zeros = [[0.0] * 25] * int(none.sum())
    for name in ("hits_average", "hits_worst", "counted"):
        rows.loc[none, name] = pd.Series(zeros, index=rows.index[none])
    found = table(rows, error=ERROR, success=PAPER).set_index("n")
    assert found.success.loc[1000] != found.success.loc[1000]
    assert np.isnan([found.success_low.loc[1000], found.success_high.loc[1000]]).all()
    assert found.error.notna().all()
    assert found.success.loc[250].notna().all()


def test_all_points_are_drawn_together():
    """Two points whose hits differ by a fixed share of what counts differ by that share in every draw."""
    rows = fabricated({("cnn", "normal", 250): 0.4})
    twin = rows.copy()
    twin["n"] = 500
    twin["hits_average"] = [
        [hit + 0.25 * count for hit, count in zip(*pair, strict=True)]
        for pair in zip(twin.hits_average, twin.counted, strict=True)
    ]
    found = rates(pd.concat([rows, twin]), ERROR)
    low, high = (of(found, 0, "cnn", "normal")[n] for n in (250, 500))
    assert low.std() > 0.005
    np.testing.assert_allclose(high - low, 0.25, atol=1e-12)
    assert metrics.percentiles(high - low) == pytest.approx((0.25,) * 3)


def test_of_gives_the_draws_of_one_recipe_and_network_by_n():
    rows = fabricated({**POINTS, ("cnn", "combined", 250): 0.9})
    found = rates(rows, ERROR, PAPER)
    places = [tuple(point) for point in found.points.itertuples(index=False)]
    for index in (0, 1):
        chosen = of(found, index, "cnn", "normal")
        assert set(chosen) == {250, 1000}
        for n, drawn in chosen.items():
            np.testing.assert_array_equal(drawn, found.draws[index][places.index(("cnn", "normal", n))])
    assert of(found, 0, "vgg", "normal") == {}


# --- own rows beside published ones ---------------------------------------------------------------------------


def certain(rates_by_n, blocks=25, size=4):
    """Rows without any spread: the same share in every block of every seed."""
    return pd.DataFrame([
        {"network": "cnn", "recipe": "normal", "n": n, "what": "error", "seed": seed,
         "hits_average": [rate * size] * blocks, "counted": [size] * blocks}
        for n, rate in rates_by_n.items() for seed in range(2)
    ])  # fmt: skip


def test_agreement_asks_whether_intervals_overlap():
    own = certain({250: 0.5, 500: 0.25, 1000: 0.125})
    published = certain({250: 0.5, 500: 0.375, 2000: 0.125})
    found = agreement(own, published, error=ERROR)
    assert found.to_dict("records") == [
        {"network": "cnn", "recipe": "normal", "n": 250, "quantity": "error", "own": 0.5, "published": 0.5,
         "agree": True},
        {"network": "cnn", "recipe": "normal", "n": 500, "quantity": "error", "own": 0.25, "published": 0.375,
         "agree": False},
    ]  # fmt: skip


@settings(max_examples=10)
@given(st.integers(0, 99), st.floats(0.1, 0.9), st.floats(0.1, 0.9))
def test_agreement_is_the_same_from_both_sides_and_follows_the_tables(seed, one, other):
    own, published = (fabricated({("cnn", "normal", 250): rate}, seed=seed + k) for k, rate in enumerate((one, other)))
    there, back = agreement(own, published, error=ERROR, success=PAPER), agreement(
        published, own, error=ERROR, success=PAPER
    )  # fmt: skip
    assert list(there.quantity) == ["error", "success"]
    assert list(there.agree) == list(back.agree)
    assert list(there.own) == list(back.published)
    first, second = (table(rows, error=ERROR).iloc[0] for rows in (own, published))
    apart = first.error_high < second.error_low or second.error_high < first.error_low
    assert there.agree[0] == (not apart)
    assert agreement(own, own, error=ERROR).agree.all()
