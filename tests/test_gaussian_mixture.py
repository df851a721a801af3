"""advbook.experiments.gaussian_mixture: what parameters are refused, and verdicts from rows whose outcome is known."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advbook import metrics
from advbook.experiments import ParameterError, gaussian_mixture, hardening, mixture
from advbook.experiments.directions import THREATS
from advbook.experiments.gaussian_mixture import GaussianMixture, checks, conflicts, drawn, drops, other_gain
from advbook.experiments.hardening import PAIRS
from advbook.experiments.setting import train_size

# --- parameters -----------------------------------------------------------------------------------------------------

REFUSED = [
    ({"Q": 8}, "Parameter Q = 8 is not allowed: SPECTRUM has 8 directions, Q is below that."),
    ({"Q": 3, "SPECTRUM": [2.0, 1.0]}, "Parameter Q = 3 is not allowed: SPECTRUM has 2 directions, Q is below that."),
    ({"Q": 0}, "Parameter Q = 0 is not allowed: it should be greater than or equal to 1."),
    ({"SPECTRUM": [2.0, -1.0], "Q": 1}, "Parameter SPECTRUM = -1.0 is not allowed: it should be greater than 0."),
    ({"SPECTRUM": [2.0, 0.0], "Q": 1}, "Parameter SPECTRUM = 0.0 is not allowed: it should be greater than 0."),
    ({"N": 99}, "Parameter N = 99 is not allowed: it should be greater than or equal to 100."),
    ({"PENALTY": 0.0}, "Parameter PENALTY = 0.0 is not allowed: it should be greater than or equal to 0.01."),
    (
        {"DATASET": "mnist", "N": 60_001},
        "Parameter N = 60001 is not allowed: mnist has 60,000 training images.",
    ),
    (
        {"DATASET": "mnist", "N": 60_000, "IMAGES": 1_000, "TEST_IMAGES": 9_001},
        "Parameter TEST_IMAGES = 9001 is not allowed: with IMAGES = 1000 that is more than the 10,000 images of mnist "
        "beside N = 60000.",
    ),
    ({"TEST_IMAGES": 499}, "Parameter TEST_IMAGES = 499 is not allowed: it should be greater than or equal to 500."),
    ({"TARGET": 1.0}, "Parameter TARGET = 1.0 is not allowed: it should be less than 1."),
]


@pytest.mark.parametrize(("given_", "sentence"), REFUSED, ids=lambda own: str(own)[:40])
def test_a_parameter_that_is_not_allowed_is_refused_in_one_sentence(given_, sentence):
    with pytest.raises(ParameterError) as caught:
        GaussianMixture.of(given_)
    assert str(caught.value) == sentence


def test_what_is_just_allowed_is_accepted():
    GaussianMixture.of({"Q": 7})
    GaussianMixture.of({"Q": 200, "DATASET": "fonts"})
    GaussianMixture.of({"N": 1_000_000})
    GaussianMixture.of({"DATASET": "mnist", "N": 60_000, "IMAGES": 1_000, "TEST_IMAGES": 9_000})
    GaussianMixture.of({"DATASET": "mnist", "N": 59_999, "IMAGES": 1_000, "TEST_IMAGES": 9_001})
    GaussianMixture.of({"DATASET": "fonts", "N": train_size("fonts")})


@pytest.mark.parametrize("spectrum", [[1.0, 1.0, 1.0], [2.0, 2.0]])
def test_a_spectrum_without_a_direction_of_larger_variance_is_refused(spectrum):
    with pytest.raises(ParameterError, match=r"^Parameter SPECTRUM"):
        GaussianMixture.of({"SPECTRUM": spectrum, "Q": 1})


def test_a_mixture_is_one_point_whose_row_file_depends_on_all_that_counts():
    p = GaussianMixture.of({})
    assert p.points() == [p]
    assert p.point()["dataset"] == "mixture"
    for name, value in (("n", 300), ("q", 2), ("mixtures", 3), ("spectrum", [2.0, 1.0, 0.5, 0.1, 0.1, 0.1])):
        assert p.model_copy(update={name: value}).point() != p.point()
    assert p.model_copy(update={"device": "cpu", "profile": "tiny"}).point() == p.point()
    assert GaussianMixture.of(p.injected()) == p


def test_a_larger_run_has_twice_the_images_or_else_twice_the_networks():
    assert GaussianMixture.of({"N": 500}).larger() == {"N": 1_000}
    assert GaussianMixture.of({"DATASET": "mnist", "N": 30_000}).larger() == {"N": 60_000}
    assert GaussianMixture.of({"DATASET": "mnist", "N": 30_001, "SEEDS": 4}).larger() == {"SEEDS": 8}
    most = train_size("fonts")
    assert GaussianMixture.of({"DATASET": "fonts", "N": most // 2 + 1, "SEEDS": 4}).larger() == {"SEEDS": 8}


@settings(max_examples=50)
@given(
    dataset=st.sampled_from(["mixture", "fonts", "mnist", "fashion_mnist"]), n=st.integers(200, 60_000),
    seeds=st.integers(1, 50),
)  # fmt: skip
def test_a_larger_run_is_accepted(dataset, n, seeds):
    p = GaussianMixture.of({"DATASET": dataset, "N": n, "SEEDS": seeds})
    larger = GaussianMixture.of({**p.injected(), **p.larger()})
    assert larger != p


def test_a_larger_run_is_accepted_where_many_images_are_held_out():
    p = GaussianMixture.of({"DATASET": "mnist", "N": 30_000, "TEST_IMAGES": 30_000})
    GaussianMixture.of({**p.injected(), **p.larger()})


def test_the_mixture_and_fonts_need_no_data_and_real_images_do(monkeypatch):
    asked = []
    monkeypatch.setattr("advbook.datasets.load", lambda *given_, **options: asked.append((*given_, options)))
    for dataset in ("mixture", "fonts"):
        GaussianMixture.of({"DATASET": dataset}).check_data()
    assert asked == []
    GaussianMixture.of({"DATASET": "mnist"}).check_data()
    assert asked == [("mnist", "train", {"n": 1}), ("mnist", "test", {"n": 1})]


# --- verdicts from rows by hand -------------------------------------------------------------------------------------

NAMES = ("larger", "random", "up", "down", "gain", "conflict", "exact")
TRAININGS = ["normal", *THREATS, *("+".join(pair) for pair in PAIRS)]
ENERGY = {  # (training, threat) -> variance of the attacked directions: all claims hold
    ("normal", "generative"): 3.2, ("normal", "l2"): 0.8, ("normal", "linf"): 0.8, ("l2", "l2"): 1.6,
    ("linf", "linf"): 1.6, ("generative", "l2"): 0.4, ("l2", "generative"): 3.0, ("generative", "generative"): 2.0,
    ("normal", "l1"): 0.7, ("normal", "data"): 5.0,
}  # fmt: skip


def robust_rate(training, threat):
    """Own training gives .7, normal none; pairs of norms lose .1, those with the generative threat .02."""
    if training == "normal":
        return 0.3
    parts = training.split("+")
    if threat not in parts:
        return 0.3
    return 0.7 if len(parts) == 1 else 0.68 if "generative" in parts else 0.6


def book(dataset, *, energy=None, robust=None, error=0.5, noise=0.0, seeds=3):
    """Rows of a point; energy, robust: {(training, threat): rate} that differ. noise: of the blocks, alternating."""
    blocks = metrics.BLOCKS
    wave = noise * np.where(np.arange(blocks) % 2, 1.0, -1.0)
    rows = []
    rates = {("robust", a, b): robust_rate(a, b) for a in TRAININGS for b in THREATS}
    rates |= {("energy", *key): value for key, value in ENERGY.items()}
    rates |= {("energy", *key): value for key, value in (energy or {}).items()}
    rates |= {("robust", *key): value for key, value in (robust or {}).items()}
    for (what, training, threat), value in rates.items():
        for seed in range(seeds):
            hits = (10 * value * (1 + wave)).tolist()
            rows.append({"what": what, "training": training, "threat": threat, "seed": seed, "rate": value,
                         "hits_average": hits, "counted": [10.0] * blocks})  # fmt: skip
    if dataset == "mixture":
        for name, own in (("one", 1e-6), ("two", 4.0)):
            rows.append({"what": "check", "name": name, "error": error * own, "tolerance": own})
    return pd.DataFrame(rows).assign(dataset=dataset)


def verdicts(rows):
    return dict(zip(NAMES, GaussianMixture.verdicts(rows), strict=False))


def joint(rate, mixed):
    """Rates of joint training, of the pairs with the generative threat or of the others."""
    return {("+".join(pair), one): rate for pair in PAIRS for one in pair if ("generative" in pair) == mixed}


FAILING = {  # verdict -> what the rows hold where the claim fails and all the others hold
    "larger": {"energy": {("normal", "generative"): 1.6}},
    "random": {"energy": {("normal", "l2"): 1.1, ("normal", "linf"): 1.1, ("normal", "generative"): 4.4}},
    "up": {"energy": {("l2", "l2"): 0.9, ("linf", "linf"): 0.9}},
    "down": {"energy": {("generative", "l2"): 0.76}},
    "gain": {"robust": {("l2", "generative"): 0.35}},
    "conflict": {"robust": joint(0.61, mixed=True)},
    "exact": {"error": 1.5},
}


@pytest.mark.parametrize("dataset", ["mixture", "fonts"])
def test_all_claims_are_supported_by_rows_in_which_they_hold(dataset):
    found = verdicts(book(dataset))
    assert len(found) == (7 if dataset == "mixture" else 6)
    assert {verdict.outcome for verdict in found.values()} == {"supported"}
    assert len({verdict.claim for verdict in found.values()}) == len(found)


CASES = [*itertools.product(["mixture", "fonts"], NAMES[:6]), ("mixture", "exact")]


@pytest.mark.parametrize(("dataset", "name"), CASES)
def test_a_claim_that_fails_is_not_supported_and_the_others_are(dataset, name):
    found = verdicts(book(dataset, **FAILING[name]))
    expected = {other: "not supported" if other == name else "supported" for other in found}
    assert {other: verdict.outcome for other, verdict in found.items()} == expected


def test_the_other_direction_of_a_gain_counts_too():
    found = verdicts(book("fonts", robust={("generative", "l2"): 0.35}))
    assert found["gain"].outcome == "not supported"
    assert found["gain"].value == pytest.approx(0.05)
    found = verdicts(book("fonts", robust={("generative", "l2"): 0.1, ("l2", "generative"): 0.305}))
    assert found["gain"].outcome == "supported"
    assert found["gain"].value == pytest.approx(0.005)


def test_statistics_are_those_of_their_names():
    for dataset, own in (("mixture", "l2"), ("fonts", "linf")):
        energy = {("normal", own): 0.5, (own, own): 1.0, ("normal", "generative"): 2.5, ("generative", "l2"): 0.2}
        values = {name: verdict.value for name, verdict in verdicts(book(dataset, energy=energy)).items()}
        assert values["larger"] == pytest.approx(5)
        assert values["random"] == pytest.approx(0.5)
        assert values["up"] == pytest.approx(2)
        assert values["down"] == pytest.approx(0.2 / (0.5 if own == "l2" else 0.8))
        assert values["gain"] == pytest.approx(0)
        assert values["conflict"] == pytest.approx(0.2)


def test_thresholds_are_the_stated_ones():
    found = verdicts(book("mixture"))
    limits = {name: (verdict.threshold, verdict.at_most) for name, verdict in found.items()}
    assert limits == {
        "larger": (3.0, False), "random": (1.0, True), "up": (1.3, False), "down": (0.85, True), "gain": (0.01, True),
        "conflict": (0.5, True), "exact": (1.0, True),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "key", "value"), [("random", ("normal", "l2"), 1.0), ("gain", None, None)])
def test_where_resamples_lie_on_both_sides_a_verdict_is_undecided(name, key, value):
    if name == "gain":
        rows = book("mixture", robust={("l2", "generative"): 0.31})
        altered = (rows.training == "l2") & (rows.threat == "generative") & (rows.what == "robust")
        rows.loc[altered, "hits_average"] = pd.Series(
            [[3.1 + (0.3 if block % 2 else -0.3) for block in range(metrics.BLOCKS)]] * altered.sum(),
            index=rows.index[altered],
        )
    else:
        rows = book("mixture", energy={key: value, ("normal", "generative"): 4.4}, noise=0.5)
    assert verdicts(rows)[name].outcome == "undecided"


@pytest.mark.parametrize("errors", [[0.5, 1.5], [1.5, 0.5]])
def test_one_check_that_fails_is_enough(errors):
    rows = book("mixture")
    rows.loc[rows.what == "check", "error"] = np.array(errors) * rows[rows.what == "check"].tolerance
    found = verdicts(rows)["exact"]
    assert found.outcome == "not supported"
    assert found.value == found.low == found.high == pytest.approx(1.5)


def test_a_check_that_is_not_a_number_is_not_supported():
    rows = book("mixture")
    rows.loc[rows.index[-1], "error"] = np.nan
    assert verdicts(rows)["exact"].outcome != "supported"


def test_a_budget_far_from_its_goal_makes_the_conflict_void():
    rows = book("fonts")
    budget = {"what": "calibration", "dataset": "fonts", "threat": "l1", "rate": 0.66, "goal": 0.7}
    near = pd.concat([rows, pd.DataFrame([budget])], ignore_index=True)
    assert {verdict.outcome for verdict in verdicts(near).values()} == {"supported"}
    far = pd.concat([rows, pd.DataFrame([{**budget, "rate": 0.5}])], ignore_index=True)
    found = verdicts(far)
    assert found["conflict"].outcome == "undecided"
    assert "l1 ended at 50%, not at 70%" in found["conflict"].void
    assert {verdict.outcome for name, verdict in found.items() if name != "conflict"} == {"supported"}


def test_where_norms_do_not_conflict_the_comparison_is_void():
    pairs = {
        (pair, threat): robust_rate(threat, threat) for pair in ("linf+l2", "linf+l1", "l2+l1") for threat in THREATS
    }
    found = verdicts(book("fonts", robust=pairs))
    assert found["conflict"].outcome == "undecided"
    assert "two norms do not clearly conflict: their mean drop is 0.0 points" in found["conflict"].void


def test_images_have_no_verdict_on_closed_forms_and_nothing_was_moved_means_undecided():
    rows = book("fonts")
    chosen = (rows.what == "energy") & (rows.training == "normal") & (rows.threat == "generative")
    zeros = pd.Series([[0.0] * metrics.BLOCKS] * chosen.sum(), index=rows.index[chosen])
    rows.loc[chosen, "hits_average"] = zeros
    rows.loc[chosen, "counted"] = zeros
    found = verdicts(rows)
    assert found["larger"].outcome == "undecided"
    assert {verdict.outcome for name, verdict in found.items() if name != "larger"} == {"supported"}


# --- what they are computed from ------------------------------------------------------------------------------------


def test_checks_are_listed_with_error_and_tolerance():
    found = checks(book("mixture", error=0.25))
    assert list(found.columns) == ["name", "error", "tolerance"]
    assert found.to_dict("list") == {
        "name": ["one", "two"], "error": [pytest.approx(2.5e-7), pytest.approx(1.0)], "tolerance": [1e-6, 4.0],
    }  # fmt: skip


def test_rates_are_hits_over_counts_and_resamples_are_drawn_together():
    rows = book("fonts", noise=0.3)
    found = drawn(rows, "energy")
    assert set(found) == set(ENERGY)
    for key, value in ENERGY.items():
        wave = 0.3 * np.where(np.arange(metrics.BLOCKS) % 2, 1.0, -1.0)
        assert found[key][0] == pytest.approx(value * (1 + wave).mean())
        assert found[key].std() > 0.01
    ratio = found["normal", "generative"] / found["normal", "l2"]
    assert ratio == pytest.approx(np.full_like(ratio, 4.0)), "blocks that are high are high in both"


def test_seeds_are_put_together_in_their_order_whatever_the_order_of_rows():
    rows = book("fonts")
    chosen = rows.what == "energy"
    hits = [[10 * row.rate * (1 + row.seed)] * metrics.BLOCKS for row in rows[chosen].itertuples()]
    rows.loc[chosen, "hits_average"] = pd.Series(hits, index=rows.index[chosen])
    mixed = rows.sample(frac=1, random_state=1)
    one, other = drawn(rows, "energy"), drawn(mixed, "energy")
    for key, values in one.items():
        assert other[key] == pytest.approx(values)
        assert values[0] == pytest.approx(2 * ENERGY[key])
        assert values.std() > 0.05, "seeds are drawn, too"


def plain(**rates):
    """Rates without resamples but one: {"training__threat": rate}."""
    return {tuple(name.replace("_and_", "+").split("__")): np.array([own, own / 2]) for name, own in rates.items()}


def test_a_drop_is_the_mean_over_both_threats_of_what_joint_training_costs():
    robust = plain(linf__linf=0.7, l2__l2=0.6, linf_and_l2__linf=0.5, linf_and_l2__l2=0.58)
    assert drops(robust, ("linf", "l2")) == pytest.approx([(0.2 + 0.02) / 2, (0.2 + 0.02) / 4])
    assert list(conflicts(robust)) == [("linf", "l2")], "pairs that were not trained are left out"
    robust = drawn(book("fonts"), "robust")
    found = {pair: values[0] for pair, values in conflicts(robust).items()}
    assert set(found) == set(PAIRS)
    assert all(own == pytest.approx(0.02 if "generative" in pair else 0.1) for pair, own in found.items())


@pytest.mark.parametrize(
    ("mixed", "norms", "expected"),
    [(0.02, 0.1, 0.2), (0.1, 0.02, 5.0), (0.02, 0.0, 20.0), (0.02, -0.1, 20.0), (0.0004, 0.0005, 0.4), (-0.1, 0.1, -1)],
)
def test_conflicts_are_compared_and_no_conflict_of_the_norms_counts_as_a_thousandth(mixed, norms, expected):
    robust = {**joint(0.7 - mixed, mixed=True), **joint(0.7 - norms, mixed=False)}
    found = gaussian_mixture.relative_conflict(drawn(book("fonts", robust=robust), "robust"))
    assert found[0] == pytest.approx(expected)


def test_conflicts_are_means_over_pairs():
    robust = drawn(book("fonts", robust={("linf+l1", "linf"): 0.0, ("l2+generative", "l2"): 0.38}), "robust")
    norms, others = (0.1 + 0.1 + (0.7 + 0.1) / 2) / 3, (0.02 + 0.02 + (0.32 + 0.02) / 2) / 3
    assert gaussian_mixture.relative_conflict(robust)[0] == pytest.approx(others / norms)


def test_a_gain_is_over_normal_training_and_the_larger_one_in_every_resample():
    robust = {
        ("l2", "generative"): np.array([0.4, 0.2]), ("normal", "generative"): np.array([0.3, 0.3]),
        ("generative", "l2"): np.array([0.2, 0.5]), ("normal", "l2"): np.array([0.25, 0.25]),
    }  # fmt: skip
    assert other_gain(robust) == pytest.approx([0.1, 0.25])


# --- the computation ------------------------------------------------------------------------------------------------


def test_the_mixture_is_computed_from_its_parameters(monkeypatch):
    seen = {}

    def spy(variances, q, **options):
        seen.update(options, variances=variances, q=q)
        return [{"what": "check"}]

    monkeypatch.setattr(mixture, "rows", spy)
    p = GaussianMixture.of({"N": 321, "Q": 2, "SPECTRUM": [3.0, 2.0, 1.0], "PENALTY": 4.0, "MIXTURES": 6})
    assert p.compute().rows == [{"what": "check"}]
    assert seen == {"variances": [3.0, 2.0, 1.0], "q": 2, "n": 321, "penalty": 4.0, "seeds": 6}


def test_images_are_computed_from_their_parameters(monkeypatch):
    seen = {}

    def spy(self):
        seen.update(vars(self))
        return [{"what": "robust"}]

    monkeypatch.setattr(hardening.Hardening, "rows", spy)
    monkeypatch.setattr(gaussian_mixture.directions, "principal", lambda *given_: given_)
    monkeypatch.setattr(gaussian_mixture.directions, "generator", lambda *given_: given_)
    shape = {
        "NETWORK": "mlp", "EPOCHS": 3, "SEEDS": 2, "TRAIN_STEPS": 4, "STEPS": 6, "TARGET": 0.6, "SUCCESS": 0.4,
        "EIGEN": 7,
    }  # fmt: skip
    p = GaussianMixture.of(
        {"DATASET": "fonts", "N": 200, "Q": 3, "IMAGES": 25, "TEST_IMAGES": 500, "POPULATION": 300, **shape}
    )
    assert p.compute().rows == [{"what": "robust"}]
    for name, value in shape.items():
        assert seen[name.lower()] == value
    assert seen["data"] == ("fonts", "first", 200)
    setting = seen["setting"]
    assert (len(setting.x), len(setting.x_test), len(setting.x_held_out)) == (200, 25, 500)
    assert seen["generator"] == (setting.x, setting.y, 10, 3), "the generator is that of the training images"
    x, y, classes = seen["directions"]
    assert (len(x), len(y), classes) == (300, 300, 10)
    assert torch.equal(x[:200], setting.x), "the directions are those of more of them"


@pytest.mark.slow
def test_a_small_mixture_has_every_row_and_verdict_and_is_read_the_second_time(home, monkeypatch):
    p = GaussianMixture.of({"N": 200, "MIXTURES": 2})
    rows = p.rows()
    found = verdicts(rows)
    assert list(found) == list(NAMES)
    assert all(np.isfinite(verdict.value) for verdict in found.values())
    assert found["larger"].outcome == found["exact"].outcome == "supported"
    monkeypatch.setattr(GaussianMixture, "compute", None)
    pd.testing.assert_frame_equal(p.rows(), rows)
