"""advbook.experiments.mixture: every check passes as it is and fails with a formula that is slightly wrong, and rows
beside plain computations.
"""

import math
from itertools import combinations

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import seeded

from advbook import metrics
from advbook.experiments import mixture
from advbook.gaussian import fit, linear, model, spectrum

SPECTRUM, Q, N, PENALTY, SEEDS = [4.0, 2.0, 1.0, 0.5, 0.5], 3, 200, 8.0, 2
LAM = torch.tensor(SPECTRUM, dtype=torch.float64)
THREATS = ("linf", "l2", "l1", "generative")


@pytest.fixture(scope="module")
def table():
    return pd.DataFrame(mixture.rows(SPECTRUM, Q, n=N, penalty=PENALTY, seeds=SEEDS))


def of(table, what):
    return table[table.what == what].dropna(axis=1, how="all")


# --- checks ---------------------------------------------------------------------------------------------------------


def test_every_closed_form_agrees_with_brute_force(table):
    checks = of(table, "check")
    assert (checks.error <= checks.tolerance).all()
    assert checks.name.is_unique
    assert len(checks) == 3 * 6 + 4 * 3 + 4 + 2 * len(mixture.SMALLEST) + 2


PARTS = {
    "brute force": lambda: mixture._brute_force(LAM, Q, PENALTY),
    "samples": lambda: mixture._samples(LAM, Q, N, PENALTY),
    "balls": lambda: mixture._balls(LAM, Q, count=5),
    "excess": lambda: mixture._excess(LAM, Q, N),
    "classifiers": lambda: mixture._classifiers(LAM, Q, N),
}


def failed(part):
    """Names of the checks that exceed their tolerance; one that is not a number exceeds it."""
    return {row["name"] for row in PARTS[part]() if row["what"] == "check" and not row["error"] <= row["tolerance"]}


def larger(factor):
    """The formula with a result that is too large, or too small."""
    return lambda right: lambda *given_, **options: factor * right(*given_, **options)


def wider(right):
    def wrong(*given_):
        low, high = right(*given_)
        return low, high * 0.7

    return wrong


def higher(right):
    def wrong(*given_):
        low, high = right(*given_)
        return low * 1.4, high

    return wrong


def shorter(right):
    """As for a budget that is one percent less."""
    return lambda u, model_, scales, eps: right(u, model_, scales, 0.99 * eps)


def elsewhere(right):
    """The classifier that is best at a budget one percent larger."""
    return lambda mu, covariance, threats: right(mu, covariance, [(own, 1.01 * eps) for own, eps in threats])


def only_pixels(right):
    """An adversary in joint space that moves pixels alone."""

    def wrong(*given_):
        found = right(*given_)
        return found | {"joint": found["regular"]}

    return wrong


WRONG = [  # part, module, formula, what is wrong with it, a check that must fail
    ("brute force", spectrum, "hardened", larger(1 + 1e-5), "hardened variances, regular"),
    ("brute force", spectrum, "hardened", larger(1 - 1e-5), "hardened variances, joint"),
    ("brute force", mixture, "adversaries", only_pixels, "hardened variances, joint"),
    ("samples", spectrum, "saddle_energies", larger(1.5), "energy at the saddle, regular"),
    ("samples", spectrum, "saddle_energies", larger(0.5), "energy at the saddle, generative"),
    ("samples", spectrum, "energies", larger(1.5), "energy on the fitted model, generative"),
    ("samples", spectrum, "energies", larger(0.5), "energy on the fitted model, linear flow"),
    ("samples", spectrum, "attack", larger(1.3), "energy at the saddle, linear flow"),
    ("samples", spectrum, "attack", larger(0.7), "energy on the fitted model, regular"),
    ("samples", spectrum, "budget", larger(1.3), "budget of a price, regular"),
    ("samples", spectrum, "budget", larger(0.7), "budget of a price, linear flow"),
    ("samples", spectrum, "penalty_of", larger(1 + 1e-6), "price of a budget, generative"),
    ("balls", spectrum, "hard_ball", shorter, "attack in a ball of 1, regular"),
    ("balls", spectrum, "hard_ball", shorter, "attack in a ball of 0.1, generative"),
    ("excess", spectrum, "excess_bounds", wider, "excess risk in its bounds, generative, 0.001"),
    ("excess", spectrum, "excess_bounds", higher, "excess risk in its bounds, regular, 0.001"),
    ("classifiers", linear, "inflation", larger(1.001), "inflation c of a linear classifier, L2"),
    ("classifiers", linear, "inflation", larger(1.001), "inflation c of a linear classifier, generative"),
]


@pytest.mark.parametrize(
    ("part", "module", "name", "wrong", "check"), WRONG, ids=[f"{row[2]}-{row[4]}" for row in WRONG]
)
def test_a_formula_that_is_slightly_wrong_fails_its_check(part, module, name, wrong, check, monkeypatch):
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    assert check in failed(part)


def test_the_checks_of_a_trained_covariance_fail_where_its_mean_or_directions_are_off(monkeypatch):
    right = fit.harden
    turned = torch.linalg.matrix_exp(1e-4 * torch.triu(torch.ones(5, 5, dtype=torch.float64), 1).sub(
        torch.tril(torch.ones(5, 5, dtype=torch.float64), -1)))  # fmt: skip

    def wrong(*given_, **options):
        means, covariances = right(*given_, **options)
        return means + 1e-4, turned @ covariances @ turned.T

    monkeypatch.setattr(fit, "harden", wrong)
    found = failed("brute force")
    for name in ("regular", "generative", "first directions", "last directions", "linear flow", "joint"):
        assert {f"eigenvectors stay, {name}", f"the mean stays, {name}"} <= found


def test_energy_where_no_sample_has_any_fails_the_check(monkeypatch):
    right = spectrum.saddle_energies
    lost = torch.tensor([0, 0, 0, 0, 0.5], dtype=torch.float64)
    monkeypatch.setattr(spectrum, "saddle_energies", lambda *given_: right(*given_) + lost)
    assert "energy at the saddle, generative" in failed("samples")


@pytest.mark.parametrize(("variances", "q"), [([100.0, 1.0, 0.01], 1), ([5.0, 4.9, 4.8], 2), ([2.0, 1.0], 1)], ids=str)
def test_closed_forms_of_classifiers_agree_with_training_on_other_spectra_too(variances, q):
    found = mixture._classifiers(torch.tensor(variances, dtype=torch.float64), q, 200)
    assert all(row["error"] <= row["tolerance"] for row in found if row["what"] == "check")


def test_what_is_off_is_told_in_standard_errors():
    values = torch.tensor([[1.0, 0.0, 5.0], [3.0, 0.0, 5.0], [2.0, 3.0, 5.0]], dtype=torch.float64)
    expected = torch.tensor([2.5, 1.0, 5.0], dtype=torch.float64)
    off = mixture._off(values, expected)
    assert off.item() == pytest.approx(max(0.5 / (1 / 3**0.5), 0))


# --- spectra --------------------------------------------------------------------------------------------------------


def test_every_adversary_has_a_spectrum_and_what_it_reaches_is_inflated(table):
    rows = of(table, "spectrum")
    names = ["first directions", "generative", "joint", "last directions", "linear flow", "regular"]
    assert sorted(set(rows.adversary)) == names
    for name, own in rows.groupby("adversary"):
        assert list(own.direction) == [1, 2, 3, 4, 5]
        ratio = (own.fitted / own.variance).to_numpy()
        inflated = [i for i in range(5) if ratio[i] > 1 + 1e-4]
        every, first, last = [0, 1, 2, 3, 4], [0, 1, 2], [3, 4]
        expected = {"generative": first, "first directions": first, "last directions": last}.get(name, every)
        assert inflated == expected
        r = (own.reach / own.variance).to_numpy()
        assert ratio == pytest.approx((1 + 2 * r + (1 + 4 * r) ** 0.5) / 2, rel=1e-6)
    ratios = {name: (own.fitted / own.variance).to_numpy() for name, own in rows.groupby("adversary")}
    assert (sorted(ratios["regular"]) == ratios["regular"]).all(), "the smaller a variance, the more"
    signal = list(ratios["generative"][:Q])
    assert sorted(signal, reverse=True) == signal, "the larger a variance, the more"
    assert ratios["linear flow"] == pytest.approx([ratios["linear flow"][0]] * 5, rel=1e-6)


def test_spectra_belong_to_the_variances_of_the_sample(table):
    own = of(table, "spectrum").groupby("direction").variance.first().to_numpy()
    assert own == pytest.approx(SPECTRUM, rel=0.3)
    assert own != pytest.approx(SPECTRUM, rel=1e-3)


def test_reaches_are_those_of_the_table():
    """Regular 1 / L; generator (lambda - sigma^2) / L; eigenspaces; linear flow lambda / L; joint: the sum."""
    found = {name: (PENALTY * k).tolist() for name, k in mixture.adversaries(LAM, Q, PENALTY).items()}
    assert found == {
        "regular": [1, 1, 1, 1, 1],
        "generative": pytest.approx([3.5, 1.5, 0.5, 0, 0]),
        "first directions": [1, 1, 1, 0, 0],
        "last directions": [0, 0, 0, 1, 1],
        "linear flow": pytest.approx(SPECTRUM),
        "joint": pytest.approx([4.5, 2.5, 1.5, 1, 1]),
    }


@pytest.mark.parametrize(
    ("variances", "count"), [(SPECTRUM, 3), ([3.0, 2.0, 1.0], 2), ([2.0, 1.0, 1.0, 1.0 + 1e-12], 1)]
)
def test_directions_before_the_smallest_variance_carry_signal(variances, count):
    assert mixture.signals(torch.tensor(sorted(variances, reverse=True), dtype=torch.float64)) == count


def test_the_order_of_the_variances_does_not_matter(monkeypatch):
    """Only the first part is computed."""
    for name in ("_balls", "_excess", "_classifiers", "_energies", "_latent", "_costs", "_conflict"):
        monkeypatch.setattr(mixture, name, lambda *given_: [])
    one, other = (mixture.rows(own, 1, n=200, penalty=8.0, seeds=1) for own in ([2.0, 1.0, 0.5], [0.5, 2.0, 1.0]))
    assert [row.get("variance") for row in one] == [row.get("variance") for row in other]
    assert len(one) > 30


# --- energies -------------------------------------------------------------------------------------------------------


def test_energies_are_measured_for_every_training_and_threat_once_a_seed(table):
    rows = of(table, "energy")
    every = [(a, b, c) for a in ("normal", "l2", "generative") for b in ("l2", "generative") for c in range(SEEDS)]
    assert sorted(zip(rows.training, rows.threat, rows.seed, strict=True)) == sorted(every)
    for row in rows.to_dict("records"):
        assert sum(row["energies"]) == pytest.approx(1, abs=1e-5)
        assert min(row["energies"]) >= 0
        assert len(row["hits_average"]) == len(row["counted"]) == metrics.BLOCKS
        assert sum(row["counted"]) == N
        assert sum(row["hits_average"]) / N == pytest.approx(row["rate"], abs=1e-5)
        weighted = sum(share * own for share, own in zip(row["energies"], SPECTRUM, strict=True))
        assert row["rate"] == pytest.approx(weighted / LAM.mean().item(), abs=1e-4)
        if row["threat"] == "generative":
            assert row["energies"][Q:] == [0, 0]
    mean = rows.groupby(["training", "threat"]).rate.mean()
    assert mean["normal", "generative"] > mean["normal", "l2"]
    assert mean["l2", "l2"] > mean["normal", "l2"], "small variances became large ones"
    assert mean["generative", "generative"] < mean["normal", "generative"]


def test_attacks_are_compared_at_budgets_of_the_same_gain(table):
    """Spelled out for one row, with the attack that the gradient finds."""
    rows = of(table, "energy").set_index(["training", "threat", "seed"])
    row = rows.loc[("normal", "l2", 1)]
    u = torch.randn(N, 5, generator=seeded(101), dtype=torch.float64) * LAM.sqrt()
    e = torch.zeros_like(u) + 0.01 * u.sign()
    for _ in range(2000):
        e = e + 0.1 * (u + e) / LAM
        e = e * (row["eps"] / e.norm(dim=1, keepdim=True)).clamp_max(1)
    gain = (((u + e).square() - u.square()) / LAM).sum(1) / 2
    assert gain.mean().item() == pytest.approx(mixture.RISE, rel=1e-3)
    share = e.square() / e.square().sum(1, keepdim=True)
    assert share.mean(0).tolist() == pytest.approx(row["energies"], abs=5e-3)


def test_seeds_are_mixtures_of_their_own_and_give_the_same_rows_again(table):
    for what in ("energy", "robust", "cost", "latent", "calibration"):
        rows = of(table, what)
        column = "eps" if what == "calibration" else "rate"
        first, second = (rows[rows.seed == seed][column].to_numpy() for seed in range(2))
        assert len(first) == len(second)
        assert not (first == second).all()
    again, own = list(mixture._conflict(LAM, Q, 1)), of(table, "robust")
    rates = [row["rate"] for row in again if row["what"] == "robust"]
    assert rates == pytest.approx(own[own.seed == 1].rate.tolist(), abs=1e-9)


# --- the excess risk, and the latent dimension ----------------------------------------------------------------------


def test_the_excess_risk_of_regular_attacks_has_no_bound_and_that_of_generative_ones_has(table):
    rows = of(table, "excess")
    regular, generative = (rows[rows.threat == name].sort_values("smallest") for name in ("regular", "generative"))
    for own in (regular, generative):
        assert sorted(own.smallest) == sorted(mixture.SMALLEST)
        assert (own.low <= own.value + 0.2 * own.value).all()
        assert (own.value <= 1.2 * own.high).all()
    values = regular.value.to_numpy()
    assert list(values) == sorted(values, reverse=True)
    assert values[0] / values[-1] > 20
    assert generative.value.max() < 1.2 * (0.3**2 / 2 + 0.3 * Q**0.5)
    assert generative.value.max() / generative.value.min() < 1.5
    assert regular.low.to_numpy() == pytest.approx(
        [0.045 / s + 0.3 * math.sqrt(2 / (math.pi * s)) for s in sorted(mixture.SMALLEST)]
    )


def test_too_many_codes_leak_and_a_fixed_noise_that_is_too_small_leaks_more(table):
    rows = of(table, "latent")
    assert (rows["rank"] == 3).all()
    assert rows.rate.between(0, 1).all()
    mean = rows.groupby(["decoder", "codes"]).rate.mean()
    assert sorted(set(rows.codes)) == [1, 2, 3, 4, 5]
    for q in (1, 2, 3):
        assert mean["fitted", q] < 0.05
    assert mean["fixed", 5] > 3 * mean["fitted", 3]
    assert mean["fixed", 4] > mean["fixed", 3]


# --- linear classifiers ---------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    variances=st.lists(st.floats(0.1, 10), min_size=3, max_size=6, unique=True), q=st.integers(1, 2),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_a_world_is_as_separable_as_it_says_and_its_generator_has_the_q_first_directions(variances, q, seed):
    lam = torch.tensor(sorted(variances, reverse=True), dtype=torch.float64)
    mu, covariance, weights, basis = mixture._world(lam, q, seed)
    torch.testing.assert_close(basis.T @ basis, torch.eye(len(lam), dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.eigvalsh(covariance).flip(0), lam)
    assert (mu @ torch.linalg.solve(covariance, mu)).sqrt().item() == pytest.approx(mixture.SEPARATION)
    expected = model.ppca(model.of_covariance(mu, covariance), q).weights
    torch.testing.assert_close(weights @ weights.T, expected @ expected.T, atol=1e-8, rtol=1e-8)
    other = mixture._world(lam, q, seed + 1)[0]
    assert not torch.allclose(mu, other)


@settings(max_examples=30)
@given(d=st.integers(2, 64), seed=st.integers(0, 1000), data=st.data())
def test_in_every_world_some_generative_budget_reaches_the_target(d, seed, data):
    """With no end to the budget only what lies beyond the codes tells the classes apart."""
    q = data.draw(st.integers(1, d - 1))
    lam = torch.linspace(5, 1, d, dtype=torch.float64)
    mu, _, _, basis = mixture._world(lam, q, seed)
    beyond = ((basis.T @ mu) / lam.sqrt())[q:].norm()
    assert torch.special.ndtr(beyond) < mixture.TARGET - 0.01
    assert beyond > 0.1, "nor does the generator explain all"


def test_the_trained_classifier_is_that_of_the_samples_too(table):
    rows = of(table, "linear")
    assert list(rows.threat) == ["L2", "generative"]
    assert (rows.cosine > 0.9).all()
    assert (rows.eps > 0).all()
    assert (rows.c > 0).all()


def test_every_budget_brings_its_own_training_to_the_target(table):
    robust, calibration = of(table, "robust"), of(table, "calibration")
    assert (calibration.goal == mixture.TARGET).all()
    trainings = ["normal", *THREATS, *("+".join(pair) for pair in combinations(THREATS, 2))]
    every = [(a, b, c) for a in trainings for b in THREATS for c in range(SEEDS)]
    assert sorted(zip(robust.training, robust.threat, robust.seed, strict=True)) == sorted(every)
    rate = robust.set_index(["training", "threat", "seed"]).rate
    for threat in THREATS:
        for seed in range(SEEDS):
            own = rate[threat, threat, seed]
            assert own == pytest.approx(mixture.TARGET, abs=1e-6)
            assert all(rate[training, threat, seed] <= own + 1e-6 for training in trainings), "no other is better"
            assert rate["normal", threat, seed] < own - 1e-4
    for pair in combinations(THREATS, 2):
        for seed in range(SEEDS):
            joint = min(rate["+".join(pair), one, seed] for one in pair)
            assert all(joint >= min(rate[other, one, seed] for one in pair) - 1e-6 for other in trainings)
    eps = calibration.set_index(["threat", "seed"]).eps
    assert all(eps[row.threat, row.seed] == row.eps for row in robust.itertuples())


def test_rows_of_one_classifier_are_counted_once(table):
    for what in ("robust", "cost", "latent"):
        for row in of(table, what).to_dict("records"):
            assert row["counted"] == [1.0]
            assert row["hits_average"] == [row["rate"]]


def test_only_the_covariance_of_the_same_threat_brings_robust_accuracy(table):
    rows = of(table, "cost")
    assert set(rows.price) == set(mixture.PENALTIES)
    assert len(rows) == 2 * 2 * len(mixture.PENALTIES) * SEEDS
    best = rows.groupby(["training", "threat", "seed"]).rate.max().unstack("seed").min(axis=1)
    assert best["l2", "l2"] > 1e-4
    assert best["generative", "generative"] > 1e-4
    other = rows[rows.training != rows.threat].groupby(["training", "threat", "seed"]).rate.max()
    assert (other < 1e-3).all()
    gentle = rows[rows.price == max(mixture.PENALTIES)].rate.abs().max()
    assert gentle < 0.01, "at a high price nothing changes"


def test_costs_are_those_of_samples():
    """Robust accuracy of one row, counted on points that are attacked."""
    rows = pd.DataFrame(mixture._costs(LAM, Q, 0)).set_index(["training", "threat", "price"])
    mu, covariance, weights, basis = mixture._world(LAM, Q, 0)
    eps = linear.calibrated(mu, covariance, linear.generative(weights), mixture.TARGET)
    hard = torch.tensor([(v + 2 + math.sqrt(v * v + 4 * v)) / 2 for v in SPECTRUM], dtype=torch.float64)
    u = torch.randn(200_000, 5, generator=seeded(), dtype=torch.float64) * LAM.sqrt()
    x = mu + u @ basis.T
    rates = []
    for w in (basis @ ((basis.T @ mu) / hard), torch.linalg.solve(covariance, mu)):
        zeta = -eps * (weights.T @ w) / (weights.T @ w).norm()
        rates.append((((x + weights @ zeta) @ w) > 0).double().mean().item())
    assert rows.rate["l2", "generative", 1.0] == pytest.approx(rates[0] - rates[1], abs=0.004)


def test_threats_that_leave_no_classifier_above_chance_count_as_chance(monkeypatch):
    right = linear.hardest

    def refuse(mu, covariance, threats):
        if len(threats) > 1:
            raise ValueError("threats: nothing is left")
        return right(mu, covariance, threats)

    monkeypatch.setattr(linear, "hardest", refuse)
    rows = pd.DataFrame(mixture._conflict(LAM, Q, 0))
    robust = rows[rows.what == "robust"]
    joint = robust.training.str.contains("+", regex=False)
    assert set(robust[joint].rate) == {0.5}
    assert (robust[~joint & (robust.training == robust.threat)].rate > 0.89).all()
