"""advbook.experiments.off_manifold: a small real run, its controls, and checks that a shortcut would not pass."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_learned import image_of, plant, planted_images
from torch import nn

from advbook import datasets, fonts, ledger
from advbook.attacks.pgd import Attack
from advbook.experiments import controls, off_manifold, setting
from advbook.experiments.off_manifold import EDGES, OffManifold
from advbook.figures import LOOKS
from advbook.manifolds.projection import Projection, l2

KINDS = tuple(kind for kind in LOOKS if kind != "on-manifold")  # two attacks, then the controls
REPOSITORY = Path(__file__).parents[1]
REAL = Path(os.environ.get("ADVBOOK_DATA") or REPOSITORY.parent / "shared" / "data")

# The smallest run: its networks read next to nothing, so that hardly an image counts.
TINY = {"n": 100, "epochs": 1, "images": 10, "seeds": 2, "steps": 2, "restarts": 1, "starts": 1, "neighbours": 5}
# Still small, but its networks read letters, and its attacks succeed.
SMALL = {"n": 500, "epochs": 8, "images": 30, "seeds": 2, "steps": 4, "restarts": 2, "starts": 1, "neighbours": 20}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def measured(rows, manifold, kind, seed="all"):
    """The one distance row of a kind of perturbation."""
    (row,) = rows[
        (rows.what == "distance") & (rows.to == manifold) & (rows.kind == kind) & (rows.seed == seed)
    ].to_dict("records")
    return row


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small run: its rows and its arrays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVBOOK_HOME", str(tmp_path_factory.mktemp("small")))
        rows = OffManifold(**SMALL).rows()
        return rows, ledger.arrays(rows.arrays[0])


# --- a small real run -----------------------------------------------------------------------------------------


def test_every_seed_and_all_together_have_every_row(small):
    rows, _ = small
    for seed in (0, 1, "all"):
        of_seed = rows[rows.seed == seed]
        assert set(of_seed[of_seed.what == "success"].attack) == {"adversarial", "sign steps", "on-manifold"}
        pairs = of_seed[of_seed.what == "distance"][["to", "kind"]].itertuples(index=False)
        assert sorted(map(tuple, pairs)) == sorted((m, k) for m in ("true", "neighbours") for k in KINDS)
    assert set(rows[rows.what == "schedule"].seed) == {0, 1}
    for name, value in OffManifold(**SMALL).point().items():
        assert (rows[name] == value).all()


def test_success_rates_are_shares_and_the_pooled_ones_lie_in_their_intervals(small):
    rows, _ = small
    success = rows[rows.what == "success"]
    assert success.success_average.between(0, 1).all()
    assert (success.success_worst >= success.success_average).all()
    for row in success[success.seed == "all"].to_dict("records"):
        for name in ("success_average", "success_worst"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
            single = success[(success.attack == row["attack"]) & (success.seed != "all")]
            pooled = np.average(single[name], weights=single.correct)
            assert row[name] == pytest.approx(pooled), "pooled over seeds, each image once a seed"
    assert (success[success.seed != "all"].test_error < 0.8).all(), "the networks read letters"
    assert (success[success.seed != "all"].forwards <= 2 * 5).all()


def test_rows_are_what_their_arrays_say(small):
    rows, arrays = small
    for manifold in ("true", "neighbours"):
        for kind in KINDS:
            row = measured(rows, manifold, kind)
            values = {name: arrays[f"{manifold}/{kind}/{name}"] for name in EDGES}
            assert all(part.shape == (2, 30) for part in values.values())
            counted = np.isfinite(values["ratio"])
            assert row["count"] == counted.sum() > 0
            for name, part in values.items():
                assert np.isfinite(part[counted]).all()
                assert np.isnan(part[~counted]).all()
                assert row[name] == pytest.approx(np.median(part[counted]), rel=1e-5)
                assert sum(row[f"{name}_counts"]) == counted.sum()
            np.testing.assert_allclose(values["ratio"], values["distance"] / values["norm"], rtol=1e-5)
            assert row["returned"] == pytest.approx((values["moved"][counted] <= 0.1).mean())
            assert (values["ratio"][counted] <= 1 + 1e-3).all(), "x itself is at hand, at the distance |delta|"


def test_an_attacks_own_successes_count_and_for_controls_those_of_the_regular_attack(small):
    rows, _ = small
    differ = False
    for seed in (0, 1):
        success = rows[(rows.what == "success") & (rows.seed == seed)].set_index("attack")
        fooled = (success.success_worst * success.correct).round().astype(int)
        differ |= fooled["adversarial"] != fooled["sign steps"]
        for kind in KINDS:
            expected = fooled.get(kind, fooled["adversarial"])
            assert measured(rows, "true", kind, seed)["count"] == expected
            assert measured(rows, "neighbours", kind, seed)["count"] == expected
    assert differ, "the case must tell them apart"


def test_the_second_call_reads_the_rows(home, monkeypatch):
    first = OffManifold(**TINY).rows()

    def unwanted(*arguments, **options):
        raise AssertionError("it was computed before")

    monkeypatch.setattr(OffManifold, "compute", unwanted)
    assert OffManifold(**TINY).rows().equals(first)


@pytest.mark.slow
def test_a_run_from_scratch_and_one_on_stored_networks_give_the_same_file_but_for_its_seconds(tmp_path, monkeypatch):
    files = []
    for name in ("one", "two", "two"):  # the third finds the networks of the second
        monkeypatch.setenv("ADVBOOK_HOME", str(tmp_path / name))
        OffManifold(**{**SMALL, "images": 10, "epochs": 4, "steps": 5, "starts": 1}).rows()
        (path,) = (tmp_path / name / "rows").rglob("*.json")
        document = json.loads(path.read_bytes())
        path.unlink()
        assert document.pop("checksum")
        assert document["about"].pop("seconds") > 0
        files.append(json.dumps(document))
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("change", [{"eps": 0.0}, {}], ids=["eps = 0", "networks that read nothing"])
def test_where_no_image_counts_the_run_ends_with_an_undecided_verdict(home, change):
    p = OffManifold(**{**TINY, **change})
    rows = p.rows()
    adversarial = measured(rows, "true", "adversarial")
    assert adversarial["count"] == 0
    assert pd.isna(adversarial["ratio"])
    assert [verdict.outcome for verdict in p.verdicts(rows)] == ["undecided", "undecided"]
    assert set(rows[rows.what == "success"].attack) == {"adversarial", "sign steps", "on-manifold"}


# --- what a shortcut would not pass -----------------------------------------------------------------------------


def test_a_move_on_the_manifold_is_recognized_as_one(small):
    """The released code's projection, which returns x, would measure a ratio of 1."""
    rows, _ = small
    row = measured(rows, "true", "on-manifold move")
    assert row["ratio"] < 0.05
    assert row["moved"] > 0.9
    assert row["returned"] < 0.1


def test_the_shortcut_itself_fails_that_check(monkeypatch):
    def stay(manifold, target, start, context):
        distance = torch.stack([l2(manifold.decode(z, *context) - target) for z in start[:1]])
        return Projection(start[:1], distance)

    monkeypatch.setattr(off_manifold, "levenberg_marquardt", stay)
    p, data = OffManifold(**SMALL), setting.load("fonts", 500, "first", 30, torch.device("cpu"))
    delta = controls.controls(data, torch.full_like(data.x_test, 0.1), seeded())["on-manifold move"]
    every = torch.ones(30, dtype=torch.bool)
    values = dict(off_manifold._distances(p, data, delta, every, seeded(), "shortcut"))["true"]
    assert np.median(values["ratio"]) == pytest.approx(1, abs=1e-3)


def test_noise_is_nearly_orthogonal_and_a_move_along_the_data_is_not(small):
    rows, _ = small
    for kind in ("random sign", "gaussian"):
        assert measured(rows, "true", kind)["ratio"] > 0.9
        assert measured(rows, "true", kind)["angle"] > 75
    along, noise = (measured(rows, "neighbours", kind)["ratio"] for kind in ("on-manifold move", "random sign"))
    assert along < 0.95 * noise


def test_a_perturbation_is_measured_against_its_own_image(small):
    """The control's norm is that of delta on the same image."""
    _, arrays = small
    norm = arrays["true/adversarial/norm"]
    counted = np.isfinite(norm)
    for kind in ("random sign", "gaussian"):
        np.testing.assert_allclose(arrays[f"true/{kind}/norm"][counted], norm[counted], atol=1e-3)


# --- controls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.0, 0.02, 0.1, 0.3])
def test_controls_have_the_norm_of_delta_and_stay_images(size):
    data = setting.load("fonts", 100, "first", 30, torch.device("cpu"))
    sign = torch.randn(data.x_test.shape, generator=seeded(1)).sign()
    delta = (data.x_test + size * sign).clamp(0, 1) - data.x_test
    found = controls.controls(data, delta, seeded(2))
    assert set(found) == set(KINDS[2:])
    for kind, control in found.items():
        image = data.x_test + control
        assert image.min() >= -1e-6
        assert image.max() <= 1 + 1e-6
        gap = l2(control) - l2(delta)
        if kind == "on-manifold move":  # its path may end before
            assert (gap <= 1e-3).all()
            assert size > 0.1 or (gap.abs() <= 1e-3).double().mean() > 0.8
        else:
            assert gap.abs().max() <= 1e-3


def test_the_on_manifold_path_goes_from_x_to_another_letter_of_the_same_font():
    data = setting.load("fonts", 100, "first", 30, torch.device("cpu"))
    path = controls._on_manifold_path(data, seeded())
    torch.testing.assert_close(path(torch.zeros(30, 1, 1, 1)), data.x_test, atol=1e-6, rtol=0)
    assert l2(path(torch.ones(30, 1, 1, 1)) - data.x_test).median() > 2


def test_the_first_success_of_every_image_is_taken():
    x = torch.arange(6.0).view(3, 2, 1, 1, 1)
    success = torch.tensor([[False, False], [True, False], [True, False]])
    taken = off_manifold._first_success(Attack(x, success, success.float(), success.long(), 0.0))
    assert taken.flatten().tolist() == [2.0, 1.0], "restart 1 of image 0; restart 0 of image 1, which none fooled"


# --- data -----------------------------------------------------------------------------------------------------


def test_training_attacked_and_held_out_images_are_apart():
    data = setting.load("fonts", 300, "first", 25, torch.device("cpu"))
    assert (len(data.x), len(data.x_test), len(data.x_held_out)) == (300, 25, setting.HELD_OUT)
    rows = fonts.rows("test", 25)
    assert torch.equal(data.y_test, rows.letter)
    assert torch.equal(data.known.theta, rows.theta)
    assert torch.equal(data.known.train.letter, data.y)
    held_out = fonts.random_rows("test", setting.HELD_OUT, skip=25)
    assert torch.equal(data.y_held_out, held_out.letter)
    assert len(held_out.font.unique()) > 800, "the test error is one over all fonts"
    decoded = data.known.manifold.decode(data.known.theta, *data.known.context)
    torch.testing.assert_close(decoded, data.x_test, atol=1e-6, rtol=0)
    torch.testing.assert_close(fonts.images(data.known.train), data.x, atol=1e-6, rtol=0)
    assert torch.cdist(data.x_test.flatten(1), data.x.flatten(1)).min() > 1e-3


def test_a_random_subset_has_more_fonts_than_the_first_rows():
    first, random = (setting.load("fonts", 300, kind, 10, torch.device("cpu")) for kind in ("first", "random"))
    assert torch.equal(first.x_test, random.x_test)
    assert not torch.equal(first.y, random.y)


def test_networks_of_a_point_are_trained_once_and_differ_by_seed(home):
    p = OffManifold(**TINY)
    data = p.load()
    one, other = p.networks(data)
    again, _ = p.networks(data)
    assert torch.equal(one[0].weight, again[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert len(list(home.glob("models/*.safetensors"))) == 2


# --- verdicts -------------------------------------------------------------------------------------------------


def hand_made(ratio, over_sign, over_move, manifold="true"):
    """The rows that verdicts read, each number a triple (value, low, high)."""
    shared = {"what": "distance", "seed": "all", "to": manifold}
    rows = []
    for kind, over in (("adversarial", (1, 1, 1)), ("random sign", over_sign), ("on-manifold move", over_move)):
        numbers = {"ratio": ratio, "adversarial_over_this": over}
        row = {**shared, "kind": kind}
        for name, triple in numbers.items():
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), triple, strict=True))
        rows.append(row)
    return pd.DataFrame([*rows, {"what": "success", "seed": 0}])


def test_verdicts_follow_the_thresholds_that_were_fixed_before():
    near, far = (0.5, 0.4, 0.6), (0.97, 0.95, 0.98)
    below, above, across = (0.9, 0.8, 0.99), (1.2, 1.1, 1.3), (1.0, 0.9, 1.1)
    cases = [
        (hand_made(far, below, above), ["supported", "not supported"]),
        (hand_made(near, above, above), ["not supported", "supported"]),
        (hand_made((0.9, 0.8, 0.95), across, above), ["undecided", "undecided"]),
        (hand_made(near, above, (2.0, 1.6, 2.2), "neighbours"), ["supported", "supported"]),
        (hand_made(far, below, above, "neighbours"), ["not supported", "not supported"]),
    ]
    for rows, outcomes in cases:
        assert [verdict.outcome for verdict in OffManifold.verdicts(rows)] == outcomes


def test_the_verdicts_of_a_real_run_name_their_numbers(small):
    rows, _ = small
    leaves, beyond = OffManifold.verdicts(rows)
    assert (leaves.threshold, beyond.threshold) == (0.9, 1.0)
    assert leaves.value == measured(rows, "true", "adversarial")["ratio"]
    assert beyond.value == measured(rows, "true", "random sign")["adversarial_over_this"]
    for verdict in (leaves, beyond):
        assert verdict.low <= verdict.value <= verdict.high
        assert verdict.outcome in {"supported", "not supported", "undecided"}


# --- real images ----------------------------------------------------------------------------------------------


class FirstLatent(nn.Module):
    """Reads the class that a planted image shows, and the next one where the first latent lies above 1."""

    def __init__(self):
        super().__init__()
        self.bound = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        shown = x[:, 0, 1, 0:20:2]
        return 10 * shown + shown.roll(1, 1) * (10 + 50 * (8 * (x[:, 0, 0, :1] - 0.5) - self.bound))


@pytest.fixture
def planted(home, monkeypatch):
    """A run on a planted data set whose learned manifolds are known: its parameters and rows."""
    plant(monkeypatch)
    monkeypatch.setattr(OffManifold, "networks", lambda self, data: [nn.Sequential(FirstLatent())] * self.seeds)
    p = OffManifold(**{**TINY, "dataset": "mnist", "images": 60, "steps": 60, "neighbours": 20, "eta": 0.25})
    return p, p.rows()


def test_on_learned_manifolds_the_attack_starts_from_the_image_of_the_code(planted):
    """The paper's attack, from one start of 60 steps of .005, reaches all of eta; what it moves is one pixel."""
    p, rows = planted
    _, _, z = planted_images("test", 60)
    right = z[:, 0] <= 1
    reachable = right & (z[:, 0] + p.eta > 1)
    assert 0 < reachable.sum() < right.sum()
    for seed in (0, 1):
        (own,) = rows[(rows.attack == "on-manifold") & (rows.seed == seed)].to_dict("records")
        assert own["correct"] == right.sum()
        assert own["success_worst"] == pytest.approx(float(reachable.sum() / right.sum()))
        moved = measured(rows, "neighbours", "on-manifold", seed)
        assert moved["count"] == reachable.sum()
        assert 0 < moved["norm"] <= p.eta / 8 * 10**0.5 + 1e-6, "ten pixels, each an eighth of its latent"
        assert moved["distance"] <= moved["norm"] + 1e-6
    assert set(rows.to.dropna()) == {"neighbours"}


def test_the_distance_of_moves_on_learned_manifolds_is_measured_from_the_image_of_the_code(planted, monkeypatch):
    """And that of all others from the image itself."""
    p, _ = planted
    asked = []
    span = off_manifold.off_neighbours

    def seen(query, x, train, *, k):
        asked.append((query, x))
        return span(query, x, train, k=k)

    monkeypatch.setattr(off_manifold, "off_neighbours", seen)
    one = p.model_copy(update={"seeds": 1})
    rows = one.compute().rows
    _, y, z = planted_images("test", 60)
    decoded, images = image_of(z.clamp(-2, 2), y), planted_images("test", 60)[0]
    kinds = [row["kind"] for row in rows if row["what"] == "distance" and row["seed"] == 0 and row["count"]]
    for kind, (query, x) in zip(kinds, asked, strict=False):
        near, far = (decoded, images) if kind == "on-manifold" else (images, decoded)
        assert torch.cdist(x.flatten(1), near.flatten(1)).amin(1).max() < 0.01
        assert torch.cdist(x.flatten(1), far.flatten(1)).amin(1).max() > 0.05
        assert len(query) == len(x)
    assert "on-manifold" in kinds


def test_every_row_of_real_images_carries_the_parameters(planted):
    p, rows = planted
    for name, value in p.point().items():
        assert (rows[name] == value).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "subset"), [("fashion_mnist", "first"), ("mnist", "random")])
def test_on_real_images_only_the_neighbours_are_measured(home, monkeypatch, name, subset):
    if not datasets.available(name, REAL):
        pytest.skip(f"{name} is not in {REAL}")
    monkeypatch.setenv("ADVBOOK_DATA", str(REAL))
    p = OffManifold(**{**SMALL, "dataset": name, "subset": subset, "epochs": 15, "seeds": 1})
    p.check_data()
    rows = p.rows()
    assert set(rows.to.dropna()) == {"neighbours"}
    assert set(rows[rows.what == "success"].attack) == {"adversarial", "sign steps", "on-manifold"}
    assert measured(rows, "neighbours", "adversarial")["count"] > 0
    assert measured(rows, "neighbours", "on-manifold move")["ratio"] < measured(rows, "neighbours", "gaussian")["ratio"]
    assert len(p.verdicts(rows)) == 2


def test_a_data_set_that_is_not_there_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(datasets.MissingData, match="nowhere is not a folder"):
        OffManifold(dataset="mnist").check_data()
    OffManifold(dataset="fonts").check_data()
