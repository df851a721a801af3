"""advbook.gaussian.linear: dual norms, worst moves, accuracies of samples, the best classifier and its certificate."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.stats import norm

from advbook.gaussian import fit, linear
from advbook.gaussian.linear import L1, L2, LINF, generative


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def instance(d=6, seed=0):
    """A mean of clean margin 2.5, mostly in the larger half of the directions, which the decoder reaches."""
    turn = torch.linalg.qr(normal(d, d, seed=seed))[0]
    variances = torch.logspace(1, -1, d, dtype=torch.float64)
    c = torch.nn.functional.normalize(normal(2, d // 2, seed=seed + 100), dim=1)
    c = (c * torch.tensor([[1.0], [0.08]])).flatten()
    mu = turn @ (2.5 * c / c.norm() * variances.sqrt())
    covariance = turn * variances @ turn.T
    return mu, (covariance + covariance.T) / 2, turn[:, : d // 2] * (variances[: d // 2] - 0.2).sqrt()


def margin(w, mu, covariance, threats):
    cost = max((eps * float(threat.dual(w)) for threat, eps in threats), default=0.0)
    return (float(w @ mu) - cost) / float(w @ covariance @ w) ** 0.5


def threats_of(weights):
    return (LINF, L2, L1, generative(weights))


# --- threats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threat", "order"), [(LINF, math.inf), (L2, 2), (L1, 1)])
def test_the_worst_move_has_size_one_and_attains_the_dual_norm(threat, order):
    w = normal(3, 4, 5)
    worst = threat.worst(w)
    assert worst.shape == w.shape
    assert torch.allclose(torch.linalg.vector_norm(worst, order, dim=-1), torch.ones(3, 4).double())
    assert torch.allclose((w * worst).sum(-1), threat.dual(w))
    moves = torch.nn.functional.normalize(normal(1000, 1, 1, 5, seed=1), p=order, dim=-1)
    assert ((moves * w).sum(-1).amax(0) <= threat.dual(w)).all(), "no other move does more"
    assert (threat.worst(torch.zeros(2, 5)) == 0).all()


def test_the_generative_threat_moves_the_code():
    weights, w = normal(5, 2, seed=2), normal(3, 5)
    threat = generative(weights)
    assert torch.allclose((w * threat.worst(w)).sum(-1), threat.dual(w))
    codes = torch.nn.functional.normalize(normal(2000, 2, seed=1), dim=-1)
    best = (codes @ weights.T @ w.T).amax(0)
    assert (best <= threat.dual(w)).all()
    assert torch.allclose(best, threat.dual(w), rtol=1e-3)
    assert torch.allclose(generative(torch.eye(5).double()).worst(w), L2.worst(w))


def test_robust_accuracy_is_that_of_attacked_samples():
    mu, covariance, weights = instance()
    y = torch.ones(20_000).double()
    y[::2] = -1
    x = y[:, None] * mu + normal(20_000, 6) @ torch.linalg.cholesky(covariance).T
    w = torch.stack([torch.linalg.solve(covariance, mu), mu])
    for threats in ([], [(LINF, 0.3)], [(L2, 0.5), (generative(weights), 0.7)]):
        found = linear.robust_accuracy(w, mu, covariance, threats)
        for one, accuracy in zip(w, found.tolist(), strict=True):
            moves = [torch.zeros(6).double(), *(eps * threat.worst(one) for threat, eps in threats)]
            right = torch.stack([y * ((x - y[:, None] * move) @ one) > 0 for move in moves]).all(0)
            error = (accuracy * (1 - accuracy) / 20_000) ** 0.5
            assert float(right.double().mean()) == pytest.approx(accuracy, abs=4 * error)


# --- the best classifier --------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(seed=st.integers(0, 999), d=st.integers(1, 9).map(lambda half: 2 * half), which=st.sets(st.integers(0, 3)))
def test_the_certificate_is_tight_and_no_other_classifier_beats_it(seed, d, which):
    mu, covariance, weights = instance(d, seed)
    kinds = threats_of(weights)
    threats = [(kinds[i], 0.4 * float(mu.norm()) / float(kinds[i].worst(mu).norm() + 1)) for i in sorted(which)]
    if margin(torch.linalg.solve(covariance, mu), mu, covariance, threats) <= 0:
        threats = [(threat, eps / 10) for threat, eps in threats]
    w, gap = linear.hardest(mu, covariance, threats)
    best = margin(w, mu, covariance, threats)
    assert 0 <= gap <= 1e-7
    for scale in (1e-3, 0.1, 1.0):
        for other in w + scale * w.norm() * normal(30, d, seed=seed):
            assert margin(other, mu, covariance, threats) <= best + gap + 1e-12


def test_the_certificate_holds_when_training_is_cut_short():
    mu, covariance, weights = instance(8)
    threats = [(LINF, 0.3), (L2, 0.7), (generative(weights), 0.6)]
    w, tight = linear.hardest(mu, covariance, threats)
    best = margin(w, mu, covariance, threats)
    for steps in range(1, 8):
        w, gap = linear.hardest(mu, covariance, threats, steps=steps)
        assert margin(w, mu, covariance, threats) <= best + tight + 1e-12
        assert margin(w, mu, covariance, threats) + gap >= best - 1e-12
    assert linear.hardest(mu, covariance, threats, steps=1)[1] > 1e-6 > tight, "one step is not enough"


@pytest.mark.parametrize("kind", ["l2", "generative"])
def test_one_quadratic_threat_inflates_the_covariance_as_training_by_gradients_does(kind):
    mu, covariance, weights = instance(8)
    threat, matrix, eps = {"l2": (L2, torch.eye(8).double(), 0.7), "generative": (generative(weights), weights, 0.6)}[
        kind
    ]
    w, gap = linear.hardest(mu, covariance, [(threat, eps)])
    assert gap < 1e-9
    shapes = (matrix @ matrix.T)[None]
    c, residual = fit.recovered(w, mu, covariance, shapes)
    assert residual < 1e-4
    assert 1 - torch.cosine_similarity(w, linear.direction(mu, covariance, shapes, c), dim=0) < 1e-8
    assert 1 - torch.cosine_similarity(w, fit.logistic(mu, covariance, [(matrix, eps)]), dim=0) < 1e-8


@pytest.mark.parametrize("eps", [0.05, 0.3, 0.8])
def test_linf_in_a_round_gaussian_gives_the_soft_threshold(eps):
    mu = torch.tensor([1.0, -0.5, 0.31, 0.1, -0.05], dtype=torch.float64)
    w, gap = linear.hardest(mu, 2 * torch.eye(5).double(), [(LINF, eps)])
    assert gap < 1e-12
    assert torch.allclose(2 * w, mu.sign() * (mu.abs() - eps).clamp_min(0), atol=1e-12)


def test_linf_agrees_with_a_general_solver():
    mu, covariance, _ = instance(6, seed=4)
    w, _ = linear.hardest(mu, covariance, [(LINF, 0.3)])
    precision = torch.linalg.inv(covariance).numpy()
    box = optimize.minimize(
        lambda delta: (mu.numpy() - delta) @ precision @ (mu.numpy() - delta) / 2,
        0 * mu.numpy(), jac=lambda delta: precision @ (delta - mu.numpy()), bounds=[(-0.3, 0.3)] * 6,
        options={"ftol": 1e-16, "gtol": 1e-12},
    )  # fmt: skip
    assert torch.allclose(w, torch.from_numpy(precision @ (mu.numpy() - box.x)), atol=1e-5)


def test_a_second_weaker_threat_of_the_same_kind_changes_nothing():
    mu, covariance, _ = instance()
    alone, _ = linear.hardest(mu, covariance, [(L2, 0.5)])
    both, _ = linear.hardest(mu, covariance, [(L2, 0.2), (L2, 0.5)])
    assert torch.allclose(alone, both, rtol=1e-6)


# --- budgets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", [0.6, 0.9, 0.99])
def test_a_calibrated_budget_leaves_just_that_accuracy(accuracy):
    mu, covariance, weights = instance()
    for threat in threats_of(weights):
        eps = linear.calibrated(mu, covariance, threat, accuracy)
        w, _ = linear.hardest(mu, covariance, [(threat, eps)])
        assert float(linear.robust_accuracy(w, mu, covariance, [(threat, eps)])) == pytest.approx(accuracy, abs=1e-8)


def test_in_a_round_gaussian_the_l2_budget_is_known():
    mu = torch.tensor([3.0, 4.0], dtype=torch.float64)
    eps = linear.calibrated(mu, 4 * torch.eye(2).double(), L2, 0.9)
    assert eps == pytest.approx(5 - 2 * norm.ppf(0.9))


def test_two_threats_that_each_carry_half_of_the_mean_cost_what_geometry_says():
    mu, covariance = torch.tensor([1.0, 1.0]).double(), torch.eye(2).double()
    first, second = (generative(covariance[:, i : i + 1]) for i in range(2))
    eps = linear.calibrated(mu, covariance, first, float(norm.cdf(1.2)))
    assert eps == pytest.approx(1 - (1.2**2 - 1) ** 0.5)  # the point (eps, 0) is at distance 1.2
    both = [(first, eps), (second, eps)]
    w, _ = linear.hardest(mu, covariance, both)
    assert float(linear.robust_accuracy(w, mu, covariance, both)) == pytest.approx(
        norm.cdf((2 - eps) / 2**0.5), abs=1e-8
    )


def test_threats_whose_union_reaches_the_mean_leave_nothing_above_chance():
    # Two long ellipses, a little to the left and to the right of the mean: their hull holds it, neither alone does.
    angle = torch.tensor(math.radians(65)).double()
    axis = torch.stack([angle.cos(), angle.sin()])
    weights = torch.stack([3 * axis, 0.3 * torch.stack([-axis[1], axis[0]])], 1)
    mu, covariance = torch.tensor([1.0, 1.0]).double(), torch.eye(2).double()
    left, right = generative(weights), generative(weights.flip(0))
    eps = linear.calibrated(mu, covariance, left, 0.6)
    with pytest.raises(ValueError, match=r"^threats: budgets .* leave no classifier better than chance"):
        linear.hardest(mu, covariance, [(left, eps), (right, eps)])


# --- bad input ------------------------------------------------------------------------------------------------

MEAN, ROUND = torch.tensor([1.0, 1.0]).double(), torch.eye(2).double()
BAD = {
    "too accurate": (lambda: linear.calibrated(MEAN, ROUND, L2, 0.95), r"accuracy = 0.95: allowed .* up to the 0.92"),
    "chance": (lambda: linear.calibrated(MEAN, ROUND, L2, 0.5), r"accuracy = 0.5: allowed is above 0.5"),
    "nan": (lambda: linear.calibrated(MEAN, ROUND, L2, math.nan), r"accuracy = nan: allowed is above 0.5"),
    "out of reach": (lambda: linear.calibrated(MEAN, ROUND, generative(ROUND[:, :1]), 0.8),
                     r"accuracy = 0.8: no budget of generative is enough; allowed"),
    "covariance": (lambda: linear.hardest(MEAN, torch.diag(torch.tensor([1.0, -2.0]).double()), [(L2, 0.1)]),
                   r"covariance: its smallest eigenvalue is -2; allowed are positive definite ones"),
    "too strong": (lambda: linear.hardest(MEAN, ROUND, [(L2, 2.0)]), r"threats: budgets \[2.0\] leave no classifier"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_sentence_that_names_it(case):
    call, sentence = BAD[case]
    with pytest.raises(ValueError, match=sentence):
        call()


# --- inflation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_inflation_is_that_of_the_best_classifier_and_of_training(seed):
    mu, covariance, weights = instance(seed=seed)
    for threat, matrix, eps in ((L2, torch.eye(6, dtype=torch.float64), 0.3), (generative(weights), weights, 0.5)):
        c = linear.inflation(mu, covariance, matrix, eps)
        w = linear.direction(mu, covariance, (matrix @ matrix.T)[None], torch.tensor([c], dtype=torch.float64))
        best, _ = linear.hardest(mu, covariance, [(threat, eps)])
        own = float(linear.robust_accuracy(w, mu, covariance, [(threat, eps)]))
        assert own == pytest.approx(float(linear.robust_accuracy(best, mu, covariance, [(threat, eps)])), abs=1e-9)
        trained, _ = fit.recovered(
            fit.logistic(mu, covariance, [(matrix, eps)]), mu, covariance, (matrix @ matrix.T)[None]
        )
        assert float(trained[0]) == pytest.approx(c, rel=1e-5)


def test_the_inflation_vanishes_with_the_budget_and_grows_with_it():
    mu, covariance, _ = instance()
    eye = torch.eye(6, dtype=torch.float64)
    found = [linear.inflation(mu, covariance, eye, eps) for eps in (1e-6, 0.1, 0.3, 0.5)]
    assert found[0] < 1e-5
    assert found == sorted(found)


@pytest.mark.parametrize("eps", [0.0, 100.0])
def test_a_budget_without_an_inflation_is_refused(eps):
    mu, covariance, _ = instance()
    with pytest.raises(ValueError, match=rf"eps = {eps}.*allowed"):
        linear.inflation(mu, covariance, torch.eye(6, dtype=torch.float64), eps)
