"""advbook.experiments.learned_manifolds: verdicts from hand-made rows, and runs on manifolds that are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_learned import class_pair, data_pair, image_of, plant, planted_images

from advbook import ledger
from advbook.experiments import ParameterError, learned, learned_manifolds
from advbook.experiments.learned_manifolds import KINDS, STEPS, LearnedManifolds, factors
from advbook.manifolds.vaegan import BOUND

SMALL = {"dataset": "mnist", "n": 200, "images": 100}


def shows(x):
    """The class that a planted image shows."""
    return x[:, 0, 1, 0:20:2].argmax(1)


def run(patch, judge=shows, **changed):
    plant(patch)
    patch.setattr(learned_manifolds, "independent", lambda dataset, n, device: judge)
    p = LearnedManifolds(**{**SMALL, **changed})
    return p, p.rows()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVBOOK_HOME", str(tmp_path_factory.mktemp("small")))
        return run(patch)


def row(rows, kind, label):
    (found,) = rows[(rows.what == "reconstruction") & (rows.kind == kind) & (rows.label == str(label))].to_dict(
        "records"
    )
    return found


# --- verdicts -----------------------------------------------------------------------------------------------------


def hand_made(mean, linear, spread=0.0, worst=None):
    """Rows of two classes: the errors of class mean and linear manifold, where that of the learned one is 1.

    spread: how far the learned error of odd and even blocks lies from 1; worst: another mean for class 1.
    """
    rows = []
    for label, of_mean in (("all", mean), ("0", mean), ("1", mean if worst is None else worst)):
        sizes = [1 + spread * (1 if block % 2 else -1) for block in range(25)]
        blocks = {"clipped_blocks": sizes, "mean_blocks": [of_mean] * 25, "linear_blocks": [linear] * 25}
        rows.append(
            {"what": "reconstruction", "kind": "class", "dataset": "mnist", "label": label, "count": 25, **blocks}
        )
        rows.append({**rows[-1], "kind": "data", "mean_blocks": [0.1] * 25, "linear_blocks": [0.1] * 25})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("rows", "outcomes"),
    [
        (hand_made(1.5, 1.2), ["supported", "supported"]),
        (hand_made(1.2, 1.2), ["not supported", "supported"]),
        (hand_made(1.5, 0.9), ["supported", "not supported"]),
        (hand_made(1.5, 1.2, worst=1.1), ["not supported", "supported"]),
        (hand_made(1.25, 1.0, spread=0.5), ["undecided", "undecided"]),
        (hand_made(1.25, 1.0), ["supported", "supported"]),
    ],
)
def test_verdicts_follow_the_thresholds_that_were_fixed_before(rows, outcomes):
    found = LearnedManifolds.verdicts(rows)
    assert [verdict.outcome for verdict in found] == outcomes
    assert [verdict.threshold for verdict in found] == [1.25, 1.0]


def test_the_worst_class_and_all_images_decide():
    better, linear = LearnedManifolds.verdicts(hand_made(3.0, 1.7, worst=1.4))
    assert better.value == pytest.approx(1.4)
    assert linear.value == pytest.approx(1.7)
    assert "MNIST" in better.claim
    assert "MNIST" in linear.claim


def test_a_class_without_images_leaves_the_claim_of_every_class_undecided():
    rows = hand_made(1.5, 1.2)
    empty = (rows.label == "0") & (rows.kind == "class")
    for name in ("clipped_blocks", "mean_blocks", "linear_blocks"):
        rows.loc[empty, name] = pd.Series([[0.0] * 25], index=rows.index[empty])
    better, linear = LearnedManifolds.verdicts(rows)
    assert (better.outcome, linear.outcome) == ("undecided", "supported")


def test_factors_are_quotients_of_sums_with_their_intervals():
    rows = hand_made(1.5, 1.2, spread=0.4)
    found = factors(rows).set_index("label")
    assert list(found.index) == ["all", "0", "1"]
    learned_sum = sum(rows.iloc[0]["clipped_blocks"])
    for label in found.index:
        assert found.loc[label, "mean"] == pytest.approx(25 * 1.5 / learned_sum)
        assert found.loc[label, "linear"] == pytest.approx(25 * 1.2 / learned_sum)
        assert found.loc[label, "mean_low"] < found.loc[label, "mean"] < found.loc[label, "mean_high"]
    assert factors(rows, "data")["mean"].max() < 0.2


# --- a run on manifolds that are known ----------------------------------------------------------------------------


def test_errors_are_those_of_the_planted_manifolds(small):
    _, rows = small
    x, y, z = planted_images("test", 100)
    noise = x[:, 0, 5, 0]
    clipped = ((z - z.clamp(-2, 2)).square().sum(1) / 64 + noise**2).sqrt()
    for label in ("all", *range(10)):
        own = torch.ones(100).bool() if label == "all" else y == label
        found = row(rows, "class", label)
        assert found["count"] == own.sum()
        assert found["learned"] == pytest.approx(float(noise[own].mean()), abs=1e-4)
        assert found["clipped"] == pytest.approx(float(clipped[own].mean()), abs=1e-4)
        assert found["outside"] == pytest.approx(float((z.abs() > 2).any(1)[own].double().mean()))
        assert sum(found["clipped_blocks"]) == pytest.approx(float(clipped[own].sum()), abs=1e-3)
        assert (found["judge_clean"], found["judge_decoded"], found["judge_sampled"]) == (0, 0, 0)


def test_what_a_manifold_is_compared_with_is_the_class_mean_and_its_principal_components(small):
    """Plain ones, from a singular value decomposition in float64."""
    _, rows = small
    (x, y, _), (new, labels, _) = planted_images("train", 200), planted_images("test", 100)
    for label in (0, 7):
        own, test = x[y == label].flatten(1).double(), new[labels == label].flatten(1).double()
        mean = own.mean(0)
        directions = torch.linalg.svd(own - mean, full_matrices=False).Vh[:10]
        linear = (mean + (test - mean) @ directions.T @ directions).clamp(0, 1)
        found = row(rows, "class", label)
        assert found["mean"] == pytest.approx(float((test - mean).norm(dim=1).mean()), rel=1e-3)
        assert found["linear"] == pytest.approx(float((test - linear).norm(dim=1).mean()), rel=2e-2)


def test_a_manifold_that_knows_no_more_than_its_class_has_factor_one(home, monkeypatch):
    x, y, _ = planted_images("train", 200)

    def constant(label):
        """Whose every point is the mean of the class."""
        pair = class_pair(label)
        pair.decoder[0].weight.data.zero_()
        pair.decoder[0].bias.data = x[y == label].mean(0).flatten()
        return pair

    plant(monkeypatch)
    monkeypatch.setattr(learned_manifolds, "independent", lambda dataset, n, device: shows)
    pairs = {"class": [constant(label) for label in range(10)], "data": [data_pair()]}
    monkeypatch.setattr(learned, "autoencoders", lambda dataset, where, size, device, *, epochs=0: pairs[where])
    rows = LearnedManifolds(**SMALL).rows()
    found = factors(rows)
    np.testing.assert_allclose(found["mean"], 1, rtol=1e-4)
    np.testing.assert_allclose(found["mean_low"], 1, rtol=1e-4)
    assert LearnedManifolds.verdicts(rows)[0].outcome == "not supported"


def test_a_judge_reads_images_codes_and_random_points_of_each_class(home, monkeypatch):
    """One who reads the next class in images without noise, which are those of the manifold."""
    _, rows = run(monkeypatch, judge=lambda x: (shows(x) + (x[:, 0, 5, 0] == 0)) % 10)
    for label in ("all", 3):
        found = row(rows, "class", label)
        assert (found["judge_clean"], found["judge_decoded"], found["judge_sampled"]) == (0, 1, 1)
    assert row(rows, "data", 3)["judge_decoded"] == 1
    assert pd.isna(row(rows, "data", "all")["judge_sampled"]), "its random points belong to no class"


def test_random_points_are_normal_within_the_box():
    codes = learned_manifolds._random_codes(20_000, 3)
    assert codes.abs().max() <= BOUND
    assert torch.equal(codes, learned_manifolds._random_codes(20_000, 3))
    torch.testing.assert_close(codes.mean(0), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(codes.std(0), torch.full((3,), 0.8796), atol=0.02, rtol=0)


def test_pictures_are_images_beside_their_codes_random_points_and_straight_ways(small):
    _, rows = small
    x, y, z = planted_images("test", 100)
    pictures = rows[rows.what == "pictures"]
    assert len(pictures) == 3 * len(KINDS)
    shown = {(one["kind"], one["name"]): one for one in pictures.to_dict("records")}
    one = shown["class", "reconstructions"]
    found = torch.from_numpy(ledger.unpacked(one))
    assert found.shape == (20, 2, 1, 28, 28)
    assert one["labels"] == sorted([*range(10), *range(10)])
    index = torch.cdist(found[:, 0].flatten(1), x.flatten(1)).argmin(1)
    assert y[index].tolist() == one["labels"]
    torch.testing.assert_close(found[:, 1], image_of(z, y)[index], atol=3e-3, rtol=0)
    ways = torch.from_numpy(ledger.unpacked(shown["class", "interpolations"]))
    assert ways.shape == (10, STEPS, 1, 28, 28)
    torch.testing.assert_close(ways[:, 0], found[::2, 1], atol=3e-3, rtol=0)
    torch.testing.assert_close(ways[:, -1], found[1::2, 1], atol=3e-3, rtol=0)
    torch.testing.assert_close(ways[:, STEPS // 2], (ways[:, 0] + ways[:, -1]) / 2, atol=6e-3, rtol=0)
    points = torch.from_numpy(ledger.unpacked(shown["class", "samples"]))
    assert shows(points).tolist() == shown["class", "samples"]["labels"]


def test_no_faces_lie_in_rows(home, monkeypatch):
    _, rows = run(monkeypatch, dataset="celeba")
    assert set(rows.what) == {"reconstruction"}


def test_every_kind_has_a_row_a_class_and_one_for_all(small):
    p, rows = small
    for kind in KINDS:
        own = rows[(rows.what == "reconstruction") & (rows.kind == kind)]
        assert list(own.label) == ["all", *map(str, range(10))]
    for name, value in p.point().items():
        assert (rows[name] == value).all()
    assert len(LearnedManifolds.verdicts(rows)) == 2
    better, linear = LearnedManifolds.verdicts(rows)
    found = factors(rows).set_index("label")
    assert better.value == pytest.approx(found.drop("all")["mean"].min())
    assert linear.value == pytest.approx(found.loc["all", "linear"])


@pytest.mark.parametrize(("given", "said"), [
    ({"DATASET": "mnist", "N": 60_001}, "N = 60001 is not allowed: mnist has 60,000 training images."),
    ({"DATASET": "svhn"}, "DATASET = 'svhn' is not allowed"),
    ({"IMAGES": 24}, "IMAGES = 24 is not allowed"),
    ({"EPOCHS": -1}, "EPOCHS = -1 is not allowed"),
])  # fmt: skip
def test_a_wrong_value_ends_in_one_sentence(given, said):
    with pytest.raises(ParameterError, match="Parameter") as caught:
        LearnedManifolds.of(given)
    assert said in str(caught.value)


def test_a_larger_run_has_the_paper_s_size_and_then_more_images():
    assert LearnedManifolds().larger() == {"MANIFOLD": "paper"}
    assert LearnedManifolds(manifold="paper").larger() == {"IMAGES": 2_000}
