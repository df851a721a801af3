"""advbook.gaussian.fit: what gradients alone find, beside the closed forms."""

import math

import pytest
import torch
from scipy import optimize

from advbook.gaussian import fit, linear, model, spectrum

EXAMPLE = (8.0, 5.0, 3.0, 2.0, 1.2, 0.3, 0.3, 0.3)


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(variances, seed=0):
    turn = torch.linalg.qr(normal(len(variances), len(variances), seed=seed))[0]
    covariance = turn * variances @ turn.T
    return turn, (covariance + covariance.T) / 2


def plane(seed=3):
    """A mean, a covariance and a decoder of eight dimensions."""
    variances = vector([8.0, 5.0, 3.0, 2.0, 1.2, 0.5, 0.3, 0.2])  # with even noise Sigma = W W^T + sigma^2 I exactly
    turn, covariance = turned(variances, seed)
    mu = turn @ (vector([1.0, 1, -1, 1, 1, 0.2, -0.3, 0.1]) * variances.sqrt())
    return mu, covariance, turn[:, :5] * spectrum.decoder(variances, 5)[:5]


# --- min-max training of a Gaussian ---------------------------------------------------------------------------


def test_training_finds_the_hardened_variances_of_every_adversary():
    """The theorem of the chapter: eigenvalues to 1e-6, the mean and the eigenvectors as they were."""
    turn, _ = turned(vector(EXAMPLE))
    x = (normal(500, 8, seed=1) * vector(EXAMPLE).sqrt()) @ turn.T + 1
    gaussian = model.fit(x)
    v, lam = gaussian.directions, gaussian.variances
    code = spectrum.decoder(lam, 5)
    adversaries = [
        (spectrum.pixels(lam), 8.0),
        (spectrum.pixels(lam), 0.5),  # stronger than the variance of most directions
        (code, 8.0),
        (code, 0.3),
        (spectrum.eigenspace(lam, last=2), 2.0),
        (spectrum.flow(lam), 1.0),
    ]
    maps = torch.stack([v * scales / penalty**0.5 for scales, penalty in adversaries])
    mean, covariance = fit.harden(x, maps)
    for (scales, penalty), m, found in zip(adversaries, mean, covariance, strict=True):
        s = spectrum.hardened(lam, spectrum.reach(scales, penalty))
        inside = v.T @ found @ v
        assert torch.allclose(inside.diagonal(), s, rtol=1e-6, atol=0)
        assert torch.allclose(inside, torch.diag(s), atol=1e-6)
        assert torch.allclose(m, gaussian.mean, atol=1e-8)


def test_two_adversaries_at_once_reach_the_sum_of_their_reaches():
    x = normal(300, 4, seed=1) * vector([3.0, 1.0, 1.0, 0.2]).sqrt()
    gaussian = model.fit(x)
    decoder = model.ppca(gaussian, 2)
    _, covariance = fit.harden(x, torch.cat([torch.eye(4).double() / 2, decoder.weights / 0.8], 1)[None])
    k = spectrum.reach(spectrum.pixels(gaussian.variances), 4.0) + spectrum.reach(decoder.scales, 0.64)
    found = torch.linalg.eigvalsh(covariance[0]).flip(0)
    assert torch.allclose(found, spectrum.hardened(gaussian.variances, k), rtol=1e-6)


def test_without_reach_it_is_the_fit_itself_whatever_the_dtype():
    x = normal(100, 3).float() + 2
    mean, covariance = fit.harden(x, torch.zeros(1, 3, 2))
    gaussian = model.fit(x)
    assert torch.allclose(mean[0], gaussian.mean)
    assert torch.allclose(covariance[0], gaussian.covariance)


def test_adversaries_side_by_side_do_not_disturb_each_other():
    x = normal(100, 3) * vector([2.0, 1.0, 0.5])
    maps = torch.stack([torch.eye(3).double() / 2, 3 * torch.eye(3).double()])
    both = fit.harden(x, maps)[1]
    for index in range(2):
        assert torch.allclose(fit.harden(x, maps[index : index + 1])[1][0], both[index], rtol=1e-7)


def test_training_that_does_not_settle_and_flat_data_are_refused():
    x = normal(50, 3)
    with pytest.raises(RuntimeError, match="steps = 3: the gradient is still"):
        fit.harden(x, torch.eye(3)[None], steps=3)
    x[:, 1] = 0
    with pytest.raises(ValueError, match=r"x: the smallest eigenvalue of its covariance is 0; allowed"):
        fit.harden(x, torch.eye(3)[None])


# --- linear classifiers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["l2", "generative", "joint"])
def test_population_training_inflates_the_covariance_and_the_factors_are_read_back(kind):
    mu, covariance, weights = plane()
    image, code = (torch.eye(8).double(), 0.15), (weights, 0.4)
    threats = {"l2": [image], "generative": [code], "joint": [image, code]}[kind]
    w = fit.logistic(mu, covariance, threats)
    shapes = torch.stack([matrix @ matrix.T for matrix, _ in threats])
    c, residual = fit.recovered(w, mu, covariance, shapes)
    assert residual < 1e-7
    spread = w @ covariance @ w
    costs = [eps * (w @ matrix).norm() for matrix, eps in threats]
    margin = w @ mu - sum(costs)
    law = [float(eps**2 * spread / (margin * cost)) for (_, eps), cost in zip(threats, costs, strict=True)]
    assert c.tolist() == pytest.approx(law, rel=1e-4)
    closed = linear.direction(mu, covariance, shapes, c)
    assert 1 - torch.cosine_similarity(w, closed, dim=0) < 1e-12

    def robust(logarithms):  # the margin, searched over c alone
        w = linear.direction(mu, covariance, shapes, vector(logarithms).exp())
        cost = sum(eps * (w @ matrix).norm() for matrix, eps in threats)
        return -float((w @ mu - cost) / (w @ covariance @ w).sqrt())

    best = optimize.minimize(
        robust, [math.log(0.1)] * len(threats), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-15}
    )
    assert c.tolist() == pytest.approx([math.exp(log) for log in best.x], rel=1e-4)


def test_without_threats_it_is_the_plain_classifier():
    mu, covariance, _ = plane()
    w = fit.logistic(mu, covariance, [])
    # The logistic model of two Gaussians of one covariance is exact: w = 2 Sigma^-1 mu, its length too.
    assert torch.allclose(w, 2 * torch.linalg.solve(covariance, mu), rtol=2e-3)
    assert 1 - torch.cosine_similarity(w, torch.linalg.solve(covariance, mu), dim=0) < 1e-12


def test_training_on_samples_comes_near_the_population():
    mu, covariance, _ = plane()
    threats = [(torch.eye(8).double(), 0.15)]
    w = fit.logistic(mu, covariance, threats)
    y = 2.0 * torch.randint(2, (20_000,), generator=torch.Generator().manual_seed(0)).double() - 1
    x = y[:, None] * mu + normal(20_000, 8) @ torch.linalg.cholesky(covariance).T
    trained = fit.logistic_samples(x, y, threats)
    assert torch.cosine_similarity(w, trained, dim=0) > 0.995  # d / N = .0004, an angle of a few hundredths
    plain = torch.cosine_similarity(w, fit.logistic_samples(x, y, []), dim=0)
    assert plain < torch.cosine_similarity(w, trained, dim=0), "the attack changes what is learned"


def test_the_inner_attack_on_samples_is_the_worst_move():
    mu, covariance, weights = plane()
    y = vector([1.0, -1.0]).repeat(100)
    x = y[:, None] * mu + normal(200, 8) @ torch.linalg.cholesky(covariance).T
    threats = [(torch.eye(8).double(), 0.3), (weights, 0.3)]
    w = fit.logistic_samples(x, y, threats)

    def loss(w):
        cost = sum(eps * (w @ matrix).norm() for matrix, eps in threats)
        return torch.nn.functional.softplus(-(y * (x @ w) - cost)).mean()

    for seed in range(20):
        assert loss(w) <= loss(w + 0.01 * w.norm() * normal(8, seed=seed))


def test_budgets_no_classifier_withstands_are_refused():
    mu, covariance, _ = plane()
    with pytest.raises(ValueError, match=r"threats: budgets \[.*\] leave no classifier better than chance"):
        fit.logistic(mu, covariance, [(torch.eye(8).double(), 1.01 * float(mu.norm()))])
    with pytest.raises(ValueError, match=r"y: it holds \[0.0, 1.0\]; allowed are labels -1 and 1"):
        fit.logistic_samples(normal(2, 8), vector([0.0, 1.0]), [])


def test_recovery_gives_back_any_factors_and_tells_of_a_bad_fit():
    mu, covariance, weights = plane()
    shapes = torch.stack([torch.eye(8).double(), weights @ weights.T])
    w = 3 * linear.direction(mu, covariance, shapes, vector([0.2, 1.7]))
    c, residual = fit.recovered(w, mu, covariance, shapes)
    assert torch.allclose(c, vector([0.2, 1.7]), rtol=1e-9)
    assert residual < 1e-12
    assert fit.recovered(normal(8), mu, covariance, shapes)[1] > 0.1
    exact = torch.stack([torch.eye(8).double(), covariance - 0.1 * torch.eye(8)])
    for dependent in (2 * covariance[None], exact):
        with pytest.raises(ValueError, match=r"^shapes: .* allowed are"):
            fit.recovered(w, mu, covariance, dependent)
