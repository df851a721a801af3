"""advbook.gaussian.model: eigenvectors, fits and likelihoods against plain ones, the decoder, the Bayes rule."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from advbook.gaussian import model


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_gaussian(variances, seed=0):
    variances = torch.tensor(variances, dtype=torch.float64)
    turn = torch.linalg.qr(normal(len(variances), len(variances), seed=seed))[0]
    covariance = turn * variances @ turn.T
    return model.of_covariance(normal(len(variances), seed=seed + 1), (covariance + covariance.T) / 2)


def two():
    return model.Mixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        (random_gaussian([4.0, 1.0, 0.2]), random_gaussian([2.0, 2.0, 0.5], seed=7)),
    )


# --- one Gaussian ---------------------------------------------------------------------------------------------


@given(
    variances=st.lists(st.sampled_from([0.01, 0.3, 0.3, 1.0, 1.0, 7.0]), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_a_covariance_is_taken_apart_and_put_together_again(variances, seed):
    gaussian = random_gaussian(variances, seed)
    asked = torch.tensor(variances, dtype=torch.float64)
    assert torch.allclose(gaussian.variances, asked.sort(descending=True).values, rtol=1e-9)
    turned = torch.linalg.qr(normal(len(variances), len(variances), seed=seed))[0]
    assert torch.allclose(gaussian.covariance, turned * asked @ turned.T, atol=1e-12)
    assert torch.allclose(gaussian.directions.T @ gaussian.directions, torch.eye(len(variances)).double(), atol=1e-12)
    x = normal(5, len(variances), seed=seed + 2)
    expected = stats.multivariate_normal(gaussian.mean, gaussian.covariance).logpdf(x)
    assert np.allclose(gaussian.log_likelihood(x).numpy(), expected, rtol=1e-9)


def test_coordinates_are_projections_on_the_eigenvectors():
    gaussian = random_gaussian([4.0, 1.0, 0.2])
    x = gaussian.mean + 2 * gaussian.directions[:, 0] - 3 * gaussian.directions[:, 2]
    assert torch.allclose(gaussian.coordinates(x), torch.tensor([2.0, 0, -3]).double(), atol=1e-12)
    assert gaussian.coordinates(normal(4, 5, 3)).shape == (4, 5, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_a_fit_is_the_mean_and_the_covariance_divided_by_n(dtype):
    x = (50 * normal(40, 5) + 120).clamp(0, 255).to(dtype)
    gaussian = model.fit(x)
    assert gaussian.mean.dtype == torch.float64
    assert np.allclose(gaussian.mean, x.double().numpy().mean(0))
    assert np.allclose(gaussian.covariance, np.cov(x.double().numpy().T, bias=True))
    assert (gaussian.variances.diff() <= 0).all()


def test_its_variances_are_those_of_the_coordinates_which_are_not_correlated():
    x = normal(200, 6) @ normal(6, 6, seed=1)
    gaussian = model.fit(x)
    u = gaussian.coordinates(x)
    assert torch.allclose(u.T @ u / 200, torch.diag(gaussian.variances), atol=1e-11)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_fewer_points_than_directions_leave_variances_of_exactly_zero(count):
    gaussian = model.fit(normal(count, 4))
    assert int((gaussian.variances > 0).sum()) == count - 1
    assert (gaussian.variances[count - 1 :] == 0).all()
    with pytest.raises(ValueError, match="smallest is 0; a likelihood is allowed only above 0"):
        gaussian.log_likelihood(normal(1, 4))


def test_a_constant_pixel_has_variance_zero():
    x = normal(50, 4)
    x[:, 2] = 0.7
    assert model.fit(x).variances[-1] == 0


# --- the decoder ----------------------------------------------------------------------------------------------


def test_the_decoder_is_the_best_of_its_kind():
    gaussian = random_gaussian([5.0, 3.0, 1.0, 0.4, 0.2])
    best = model.ppca(gaussian, 2)

    def likelihood(weights, noise):  # mean log-likelihood of data whose covariance is the Gaussian's
        explained = weights @ weights.T + noise * torch.eye(5).double()
        return -(torch.logdet(explained) + torch.trace(torch.linalg.solve(explained, gaussian.covariance))) / 2

    top = likelihood(best.weights, best.noise)
    for seed in range(50):
        other = best.weights + 0.05 * normal(5, 2, seed=seed)
        assert likelihood(other, best.noise) < top
    assert likelihood(best.weights, best.noise * 1.05) < top
    assert likelihood(best.weights, best.noise * 0.95) < top


def test_its_columns_are_scaled_eigenvectors():
    gaussian = random_gaussian([5.0, 3.0, 1.0, 0.4])
    for q, noise in ((1, None), (3, None), (4, None), (3, 0.1), (4, 2.0)):
        decoder = model.ppca(gaussian, q, noise=noise)
        assert decoder.weights.shape == (4, q)
        assert torch.allclose(decoder.weights, gaussian.directions[:, :q] * decoder.scales[:q])
        assert (decoder.scales[q:] == 0).all()
    assert model.ppca(gaussian, 2).noise == pytest.approx(0.7)
    assert model.ppca(gaussian, 2, noise=0.1).noise == 0.1


def test_a_decoder_of_all_directions_has_no_noise_and_gives_the_covariance():
    gaussian = random_gaussian([5.0, 3.0, 1.0, 0.4])
    decoder = model.ppca(gaussian, 4)
    assert decoder.noise == 0
    assert torch.allclose(decoder.weights @ decoder.weights.T, gaussian.covariance)


# --- mixtures -------------------------------------------------------------------------------------------------


def test_samples_come_from_the_mixture_and_a_fit_finds_it_again():
    mixture = two()
    x, y = mixture.sample(20_000, torch.Generator().manual_seed(0))
    found = model.fit_mixture(x, y, 2)
    # Errors of n samples: sqrt(p (1 - p) / n) of a share, sqrt(lambda / n) of a mean, at most sqrt(2 / n) lambda_1 of a
    # covariance's entry, here .003, .026 (n = 6,000) and .07; four of them are allowed.
    assert torch.allclose(found.prior, mixture.prior, atol=0.013)
    for part, real in zip(found.parts, mixture.parts, strict=True):
        assert torch.allclose(part.mean, real.mean, atol=0.1)
        assert torch.allclose(part.covariance, real.covariance, atol=0.3)
    again = mixture.sample(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(x, again[0])
    assert not torch.equal(x, mixture.sample(20_000, torch.Generator().manual_seed(1))[0])


def test_the_rule_is_that_of_bayes():
    mixture = two()
    x, y = mixture.sample(500, torch.Generator().manual_seed(0))
    plain = np.stack(
        [math.log(p) + stats.multivariate_normal(part.mean, part.covariance).logpdf(x)
         for p, part in zip(mixture.prior.tolist(), mixture.parts, strict=True)], 1,
    )  # fmt: skip
    assert np.allclose(mixture.log_joint(x), plain)
    assert np.array_equal(mixture.classify(x), plain.argmax(1))
    assert np.allclose(mixture.nll(x, y), -plain[np.arange(500), y])


def test_equal_covariances_give_the_linear_rule():
    part = random_gaussian([4.0, 1.0, 0.2])
    mean = part.mean + torch.tensor([1.0, -0.5, 0.3]).double()
    other = model.of_covariance(mean, part.covariance)
    mixture = model.Mixture(torch.tensor([0.5, 0.5]), (part, other))
    x = 2 * normal(300, 3)
    w = torch.linalg.solve(part.covariance, mean - part.mean)
    assert torch.equal(mixture.classify(x), ((x - (mean + part.mean) / 2) @ w > 0).long())


# --- bad input ------------------------------------------------------------------------------------------------

FLAT = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
BAD = {
    "indefinite": (lambda: model.of_covariance(torch.zeros(2), torch.diag(torch.tensor([1.0, -0.5]))),
                   r"covariance: its smallest eigenvalue is -0.5; allowed"),
    "singular": (lambda: model.of_covariance(torch.zeros(2), FLAT), r"its smallest eigenvalue is .*; allowed"),
    "crooked": (lambda: model.of_covariance(torch.zeros(2), torch.tensor([[1.0, 0.1], [0.0, 1.0]])),
                r"covariance: it differs from its transpose by 0\.1; allowed"),
    "nan": (lambda: model.of_covariance(torch.zeros(2), FLAT * math.nan), r"covariance: it differs .* nan; allowed"),
    "shape": (lambda: model.of_covariance(torch.zeros(3), FLAT), r"covariance: its shape is \[2, 2\]; allowed"),
    "images": (lambda: model.fit(torch.zeros(2, 1, 3, 3)), r"x: its shape is \[2, 1, 3, 3\]; allowed"),
    "nothing": (lambda: model.fit(torch.zeros(0, 3)), r"x: its shape is \[0, 3\]; allowed"),
    "infinite": (lambda: model.fit(torch.full((2, 2), math.inf)), r"x: it holds entries that are not finite; allowed"),
    "q": (lambda: model.ppca(random_gaussian([2.0, 1.0]), 3), r"q = 3: allowed are 1 to 2"),
    "no q": (lambda: model.ppca(random_gaussian([2.0, 1.0]), 0), r"q = 0: allowed are 1 to 2"),
    "noise": (lambda: model.ppca(random_gaussian([2.0, 1.0]), 1, noise=-1.0), r"noise = -1.0: allowed"),
    "label": (lambda: model.fit_mixture(torch.zeros(2, 2), torch.tensor([0, 2]), 2), r"y: allowed are labels"),
    "empty class": (lambda: model.fit_mixture(torch.zeros(2, 2), torch.tensor([0, 2]), 3), r"class 1; allowed"),
    "prior": (lambda: model.Mixture(torch.tensor([0.5, 0.6]), two().parts), r"prior = .*: allowed"),
    "no prior": (lambda: model.Mixture(torch.tensor([0.0, 1.0]), two().parts), r"prior = .*: allowed"),
    "parts": (lambda: model.Mixture(torch.tensor([1.0]), two().parts), r"parts: 2 of dimensions \[3\] .*allowed"),
    "dimensions": (lambda: model.Mixture(torch.tensor([0.5, 0.5]), (random_gaussian([1.0]), two().parts[0])),
                   r"parts: 2 of dimensions \[1, 3\] .*allowed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_sentence_that_names_it(case):
    call, sentence = BAD[case]
    with pytest.raises(ValueError, match=sentence):
        call()
