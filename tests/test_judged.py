"""advbook.experiments.judged: rows from planted probabilities, against counts made image by image."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import seeded

from advbook import confidence, metrics
from advbook.confidence import Answers
from advbook.experiments import judged
from advbook.experiments.judged import OTHERS, SHOWN, TAUS, TPR, WALKED, Attempt, Judge
from advbook.experiments.setting import Setting
from advbook.experiments.threats import Target
from advbook.fleet import Fleet

CLASSES, MEMBERS, COUNT = 4, 2, 150


class Reader(Fleet):
    """Its images are the probabilities it gives; member m is surer of them than member m - 1."""

    members = MEMBERS

    def __call__(self, x):
        powers = torch.arange(1, 1 + self.members, dtype=x.dtype)[:, None, None]
        return powers * x.flatten(2).log()


def planted(*shape, seed=0, sharp=3.0):
    """Probabilities [..., CLASSES] from nearly even to nearly sure."""
    return (sharp * torch.randn(*shape, CLASSES, generator=seeded(seed), dtype=torch.float64)).softmax(-1)


def as_images(p):
    return p[..., None, None, :]


def labels(p, seed=0, right=0.8):
    """The likeliest class for most images, any class for the others."""
    other = torch.randint(CLASSES, p.shape[:-1], generator=seeded(seed))
    keep = torch.rand(p.shape[:-1], generator=seeded(seed + 1)) < right
    return torch.where(keep, p.argmax(-1), other)


def setting(held_out, x_test):
    """A setting of planted probabilities; labels belong to their place, not to the values."""
    y, y_test = (labels(planted(len(p), seed=seed), seed) for p, seed in ((held_out, 1), (x_test, 2)))
    empty = torch.empty(0)
    return Setting(empty, empty, as_images(x_test), y_test, as_images(held_out), y, tuple("abcd"), "fonts")


def judge(held_out=None, x_test=None, count=COUNT):
    held_out = planted(COUNT + 110, seed=1) if held_out is None else held_out
    data = setting(held_out, planted(60, seed=2) if x_test is None else x_test)
    return Judge.of(Target(Reader(), None, data.x_test, data.y_test), data, count), data


def said(p, member):
    """What a member of the fleet says of planted probabilities."""
    powered = p ** (member + 1)
    return (powered / powered.sum(-1, keepdims=True)).numpy()


def rate(pairs):
    """errors / counted of pairs (error, counted), or None."""
    counted = sum(bool(one) for _, one in pairs)
    return sum(bool(error) for error, _ in pairs) / counted if counted else None


def near(found, expected, tolerance=1e-9):
    assert found == (None if expected is None else pytest.approx(expected, abs=tolerance))


def plain(value):
    """As JSON gives it back; NaN is not allowed."""
    return json.loads(json.dumps(value, allow_nan=False))


# --- thresholds -----------------------------------------------------------------------------------------------------


def test_thresholds_come_from_the_held_out_images_alone():
    held_out, x_test = planted(COUNT + 110, seed=1), planted(60, seed=2)
    one, _ = judge(held_out, x_test)
    changed = held_out.clone()
    changed[COUNT:] = planted(110, seed=9)
    other, _ = judge(changed, planted(60, seed=8))
    assert (other.taus, other.others) == (one.taus, one.others)
    assert other.clean[0].confidence.tolist() != one.clean[0].confidence.tolist()
    changed = held_out.clone()
    changed[:COUNT] = planted(COUNT, seed=9)
    other, _ = judge(changed, x_test)
    assert all(a != b for a, b in zip(other.taus, one.taus, strict=True))
    for a, b in zip(other.clean + other.attacked_clean, one.clean + one.attacked_clean, strict=True):
        assert a.confidence.tolist() == b.confidence.tolist()
        assert a.correct.tolist() == b.correct.tolist()


def test_a_threshold_accepts_its_share_of_correct_held_out_images_and_is_the_largest_that_does():
    made, data = judge()
    y = data.y_held_out[:COUNT].numpy()
    for member in range(MEMBERS):
        p = said(data.x_held_out.flatten(1), member)[:COUNT]
        sure = sorted(p.max(1)[p.argmax(1) == y])
        for tpr, tau in zip((TPR, *OTHERS), (made.taus[member], *made.others[member]), strict=True):
            assert sum(one >= tau - 1e-12 for one in sure) / len(sure) >= tpr
            assert sum(one > tau + 1e-12 for one in sure) / len(sure) < tpr
    assert made.taus[0] != made.taus[1], "every member has its own"
    assert made.classes == CLASSES
    assert made.y.tolist() == data.y_test.tolist()


# --- clean rows -----------------------------------------------------------------------------------------------------


def test_clean_rows_are_counted_on_the_other_held_out_images():
    made, data = judge()
    rows = plain(made.clean_rows())
    assert [(row["what"], row["seed"], row.get("tpr")) for row in rows] == [
        (what, seed, tpr)
        for seed in range(MEMBERS)
        for what, tpr in (("threshold", TPR), ("curve", None), ("error", 0), ("error", TPR))
    ]
    assert {row["threat"] for row in rows} == {"clean"}
    y = data.y_held_out[COUNT:].numpy()
    for row in rows:
        tau = made.taus[row["seed"]]
        p = said(data.x_held_out.flatten(1), row["seed"])[COUNT:]
        sure, right = p.max(1), p.argmax(1) == y
        if row["what"] == "threshold":
            assert row["tau"] == tau
            near(row["rate"], (sure >= tau)[right].mean())
        elif row["what"] == "curve":
            assert len(row["rates"]) == len(TAUS) == 51
            for at, found in zip(TAUS, row["rates"], strict=True):
                near(found, rate([(not r and s >= at, s >= at) for s, r in zip(sure, right, strict=True)]), 5.1e-5)
        else:
            at = tau if row["tpr"] else 0.0
            near(row["rate"], rate([(not r and s >= at, s >= at) for s, r in zip(sure, right, strict=True)]))
            check_blocks(row, ~right & (sure >= at), sure >= at)


def check_blocks(row, errors, counted):
    """A row's blocks hold neighbouring images, and add up to its rate."""
    for name, values in (("hits_average", errors), ("counted", counted)):
        expected = [int(part.sum()) for part in np.array_split(values, metrics.BLOCKS)]
        assert row[name] == expected
    if sum(row["counted"]):
        assert sum(row["hits_average"]) / sum(row["counted"]) == pytest.approx(row["rate"])


# --- attacks --------------------------------------------------------------------------------------------------------

GROUPS = (("confidence", 2), ("confidence", 1), ("error", 2), ("black box", 1), ("stronger", 3))


def attempts(count=60, seed=20, sharp=3.0):
    """An attack of every group, two of one; image and probabilities are one and the same."""
    found = []
    for number, (group, runs) in enumerate(GROUPS):
        x = planted(runs, MEMBERS, count, seed=seed + number, sharp=sharp)
        p = torch.stack([torch.from_numpy(said(x[:, m], m)) for m in range(MEMBERS)], 1)
        found.append(Attempt(group, f"attack {number}", p, as_images(x), 10.0 * number))
    return found


def chosen(found, attack):
    kinds = {"paper": ("confidence", "error", "black box"), "strong": ("confidence", "error", "black box", "stronger")}
    return [one for one in found if one.group in kinds.get(attack, (attack,))]


def worst_by_hand(found, member, y, errors_first):
    """Image by image, the attempt of the largest wrong confidence, (probabilities, image) each."""
    result = []
    for b, label in enumerate(y):
        every = [(run[member, b].numpy(), x[member, b]) for one in found for run, x in zip(one.p, one.x, strict=True)]
        wrong = [(p, x) for p, x in every if p.argmax() != label]
        every = wrong if errors_first and wrong else every
        result.append(max(every, key=lambda one: np.delete(one[0], label).max()))
    return result


def robust_by_hand(clean, worst, y, tau):
    """(error, counted) of every image."""
    pairs = []
    for p, (q, _), label in zip(clean, worst, y, strict=True):
        accepted, wrong = (p.max() >= tau, q.max() >= tau), (p.argmax() != label, q.argmax() != label)
        pairs.append((any(a and w for a, w in zip(accepted, wrong, strict=True)), any(accepted)))
    return pairs


def test_rows_of_groups_of_attacks_are_counted_image_by_image():
    made, data = judge()
    found, y = attempts(), data.y_test.numpy()
    rows = plain(made.attack_rows("l2", found))
    assert {row["threat"] for row in rows} == {"l2"}
    keys = [(row["seed"], row["attack"], row["tpr"]) for row in rows if row["what"] == "robust"]
    kinds = ("confidence", "error", "paper", "strong")
    assert sorted(keys) == sorted((seed, kind, tpr) for seed in range(MEMBERS) for kind in kinds for tpr in (0.0, TPR))
    for row in rows:
        member, attack = row["seed"], row["attack"]
        clean, tau = said(data.x_test.flatten(1), member), made.taus[member]
        if row["what"] == "attack":
            continue
        worst = worst_by_hand(chosen(found, attack), member, y, attack == "strong")
        if row["what"] == "curve":
            assert attack in ("paper", "strong")
            for at, one in zip(TAUS, row["rates"], strict=True):
                near(one, rate(robust_by_hand(clean, worst, y, at)), 5.1e-5)
            continue
        pairs = robust_by_hand(clean, worst, y, tau if row["tpr"] else 0.0)
        near(row["rate"], rate(pairs))
        check_blocks(row, *np.array(pairs).T)
        if row["tpr"]:
            check_extra(row, made, clean, worst, y)
        else:
            assert "fpr" not in row
    assert sum(row["what"] == "curve" for row in rows) == 2 * MEMBERS


def check_extra(row, made, clean, worst, y):
    """What stands beside the headline's rate."""
    tau = made.taus[row["seed"]]
    right = clean.argmax(1) == y
    q = np.array([one for one, _ in worst])
    fooled = right & (q.argmax(1) != y)
    near(row["fpr"], np.mean(fooled & (q.max(1) >= tau)))
    pairs = [(a, b) for a in clean.max(1) for b in q.max(1)[fooled]]
    near(row["auc"], np.mean([(a > b) + (a == b) / 2 for a, b in pairs]))
    kept, hit = clean.max(1) >= tau, fooled & (q.max(1) >= tau)
    near(row["alternative"], ((~right & kept) | hit).sum() / (kept | hit).sum())
    for at, found in zip(made.others[row["seed"]], row["at_others"], strict=True):
        near(found, rate(robust_by_hand(clean, worst, y, at)), 5.1e-5)


def test_rows_of_single_attacks_take_the_errors_of_all_restarts_first():
    made, data = judge()
    found, y = attempts(), data.y_test.numpy()
    rows = [row for row in made.attack_rows("l1", found) if row["what"] == "attack"]
    assert len(rows) == MEMBERS * len(found)
    for row, (member, one) in zip(rows, ((m, one) for m in range(MEMBERS) for one in found), strict=True):
        about = (row["seed"], row["attack"], row["group"], row["forwards"])
        assert about == (member, one.name, one.group, one.forwards)
        clean = said(data.x_test.flatten(1), member)
        near(row["rate"], rate(robust_by_hand(clean, worst_by_hand([one], member, y, True), y, made.taus[member])))
    assert len({row["rate"] for row in rows}) > 3


def test_the_published_group_does_not_see_the_stronger_attacks_and_the_strong_one_sees_all():
    made, _ = judge()
    weak, found = attempts()[:-1], attempts()
    without, with_them = made.attack_rows("l2", weak), made.attack_rows("l2", found)

    def of(rows, attack):
        return [row for row in rows if row["attack"] == attack and row["what"] in ("robust", "curve")]

    for attack in ("confidence", "error", "paper"):
        assert of(without, attack) == of(with_them, attack)
    assert of(without, "strong") != of(with_them, "strong")
    for weaker, stronger in zip(of(with_them, "paper"), of(with_them, "strong"), strict=True):
        if weaker["what"] == "robust":
            assert (np.array(weaker["hits_average"]) <= np.array(stronger["hits_average"])).all()


def test_a_rate_of_which_nothing_counts_is_none_and_rows_are_json():
    made, _ = judge()
    nothing = Judge([2.0] * MEMBERS, [[2.0] * 3] * MEMBERS, made.clean, made.attacked_clean, made.y, CLASSES)
    rows = plain(nothing.clean_rows() + nothing.attack_rows("linf", attempts()))
    for row in rows:
        if row["what"] in ("robust", "error") and row["tpr"]:
            assert row["rate"] is None
            assert sum(row["counted"]) == sum(row["hits_average"]) == 0
        if row["what"] == "robust" and row["tpr"]:
            assert row["alternative"] is None
            assert row["at_others"] == [None] * 3
    assert {row["rate"] for row in rows if row["what"] == "attack"} == {None}


# --- the worst images -----------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), member=st.integers(0, MEMBERS - 1))
def test_the_worst_images_are_those_whose_probabilities_are_the_worst_case(seed, member):
    """An image is its own probabilities here, as the first member sees it."""
    made, data = judge(x_test=planted(30, seed=seed))
    found = attempts(30, seed=seed)
    images = made.worst_images(member, found)
    y = data.y_test.numpy()
    expected = confidence.worst_case([one.p[:, member].numpy() for one in found], y, errors_first=True)
    assert images.shape == (30, 1, 1, CLASSES)
    np.testing.assert_allclose(said(images.flatten(1), member), expected, atol=1e-12)
    by_hand = worst_by_hand(found, member, y, True)
    assert torch.equal(images, torch.stack([x for _, x in by_hand]))


# --- many versions of an image --------------------------------------------------------------------------------------


def versions(shapes, seed=0):
    """Answers [M, V, B] for every number of versions."""
    random = np.random.default_rng(seed)
    return [Answers(random.random((MEMBERS, v, b)), random.random((MEMBERS, v, b)) < 0.7) for v, b in shapes]


def pooled_by_hand(given_, member, tau):
    """Errors and accepted ones of every image, over all its versions: [B] each."""
    errors, accepted = 0, 0
    for one in given_:
        kept = one.confidence[member] >= tau
        errors, accepted = errors + (kept & ~one.correct[member]).sum(0), accepted + kept.sum(0)
    return errors, accepted


@pytest.mark.parametrize("images", [25, 50, 75])
def test_versions_of_an_image_count_in_its_block(images):
    made, _ = judge()
    given_ = versions([(1, images), (5, images), (3, images)])
    rows = plain(made.pooled_rows("corruptions", given_))
    assert [(row["seed"], row["tpr"]) for row in rows] == [(m, tpr) for m in range(MEMBERS) for tpr in (0.0, TPR)]
    for row in rows:
        assert (row["what"], row["threat"]) == ("error", "corruptions")
        errors, accepted = pooled_by_hand(given_, row["seed"], made.taus[row["seed"]] if row["tpr"] else 0.0)
        near(row["rate"], errors.sum() / accepted.sum())
        check_blocks(row, errors, accepted)


@pytest.mark.parametrize("images", [30, 7, 2])
def test_no_image_lies_in_two_blocks(images):
    """Whatever the number of images: blocks end where images end."""
    made, _ = judge()
    given_ = versions([(1, images), (5, images), (3, images)])
    for row in made.pooled_rows("corruptions", given_):
        _, accepted = pooled_by_hand(given_, row["seed"], made.taus[row["seed"]] if row["tpr"] else 0.0)
        ends = {0, *np.cumsum(accepted).tolist()}
        assert set(np.cumsum(row["counted"]).tolist()) <= ends


# --- arrays ---------------------------------------------------------------------------------------------------------


def test_arrays_of_clean_images_hold_the_first_members_answers_and_weights():
    made, data = judge()
    network = nn.Sequential(nn.Linear(2, 3))
    x = torch.rand(60, 3, 5, 5, generator=seeded(4))
    arrays = made.clean_arrays(x, network)
    expected = {"tau", "y", "x", "clean/shown", "clean/confidence", "clean/correct"}
    assert set(arrays) == expected | {"network/0.weight", "network/0.bias"}
    assert np.array_equal(arrays["network/0.weight"], network[0].weight.detach().numpy())
    assert arrays["tau"].tolist() == made.taus[:1]
    assert np.array_equal(arrays["y"], data.y_test.numpy())
    assert arrays["x"].dtype == np.float32
    assert np.array_equal(arrays["x"], x[:WALKED].numpy())
    check_shown(arrays["clean/shown"], x)
    p = said(data.x_test.flatten(1), 0)
    np.testing.assert_allclose(arrays["clean/confidence"], p.max(1))
    assert arrays["clean/correct"].dtype == bool
    assert np.array_equal(arrays["clean/correct"], p.argmax(1) == data.y_test.numpy())


def check_shown(shown, x):
    """The first images, in bytes."""
    assert shown.dtype == np.uint8
    assert shown.shape == (SHOWN, *x.shape[1:])
    assert np.abs(shown / 255.0 - x[:SHOWN].numpy()).max() <= 0.5 / 255 + 1e-6


def test_arrays_of_attacks_hold_the_first_members_worst_attempts_and_of_linf_the_walk():
    made, data = judge()
    found, y = attempts(), data.y_test.numpy()
    worst = worst_by_hand(found, 0, y, True)
    for threat in ("linf", "l2"):
        arrays = made.attack_arrays(threat, found)
        names = {f"{threat}/{name}" for name in ("shown", "confidence", "wrong")}
        assert set(arrays) == names | ({"walk"} if threat == "linf" else set())
        np.testing.assert_allclose(arrays[f"{threat}/confidence"], [p.max() for p, _ in worst])
        assert arrays[f"{threat}/wrong"].dtype == bool
        wrong = [p.argmax() != label for (p, _), label in zip(worst, y, strict=True)]
        assert arrays[f"{threat}/wrong"].tolist() == wrong
        check_shown(arrays[f"{threat}/shown"], torch.stack([x for _, x in worst]))
    walk = made.attack_arrays("linf", found)["walk"]
    published = worst_by_hand([one for one in found if one.group == "confidence"], 0, y, True)
    assert np.array_equal(walk, torch.stack([x for _, x in published[:WALKED]]).numpy())


def test_fewer_images_than_are_shown_are_all_shown():
    made, _ = judge(x_test=planted(4, seed=2))
    assert len(made.attack_arrays("linf", attempts(4))["linf/shown"]) == 4
    assert len(made.attack_arrays("linf", attempts(4))["walk"]) == 4


# --- small ones -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_counts_become_a_rate_and_blocks(pairs):
    errors, counted = np.array([(e and c, c) for e, c in pairs]).T
    row = plain(judged.counted(confidence.Counts(errors, counted)))
    near(row["rate"], rate(list(zip(errors, counted, strict=True))))
    check_blocks(row, errors, counted)
    assert len(row["counted"]) == metrics.BLOCKS


def test_blocks_of_numbers_are_rounded_sums():
    assert judged.block_list(np.full(50, 0.1)) == [0.2] * 25
    assert judged.number(np.float64(0.5)) == 0.5
    assert judged.number(np.nan) is None
    assert judged.to_numpy(torch.ones(2, requires_grad=True)).tolist() == [1, 1]
