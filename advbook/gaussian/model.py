"""Gaussians fitted to data: one a class, their eigenvectors, the linear decoder of each, and the Bayes rule of all.

Everything is float64, whatever comes in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from advbook.gaussian import spectrum


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution N(mean, V diag(variances) V^T) of d dimensions.

    mean: [d]; variances: lambda [d], descending, at least 0; directions: V [d, d], its column i the eigenvector v_i.
    """

    mean: Tensor
    variances: Tensor
    directions: Tensor

    @property
    def covariance(self) -> Tensor:
        """Sigma = V diag(lambda) V^T: [d, d]."""
        return (self.directions * self.variances) @ self.directions.T

    def coordinates(self, x: Tensor) -> Tensor:
        """u = V^T (x - mean), the coordinates along the eigenvectors: [..., d] -> [..., d]."""
        return (x.to(self.mean) - self.mean) @ self.directions

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log N(x; mean, Sigma) in nats: [..., d] -> [...]. Raises ValueError if a variance is not above 0."""
        smallest = float(self.variances.min())
        if not smallest > 0:
            raise ValueError(f"variances: the smallest is {smallest:.6g}; a likelihood is allowed only above 0.")
        square = (self.coordinates(x).square() / self.variances).sum(-1)
        return -(square + (2 * math.pi * self.variances).log().sum()) / 2


@dataclass(frozen=True, eq=False)
class Generator:
    """A linear decoder x = W z + mean + sigma epsilon with q codes z ~ N(0, I), the best linear VAE.

    weights: W [d, q]; noise: sigma^2; scales: b [d], how far a unit of each code moves x along its eigenvector,
    zero beyond q: column i of W is b_i v_i.
    """

    weights: Tensor
    noise: float
    scales: Tensor


def of_covariance(mean: Tensor, covariance: Tensor) -> Gaussian:
    """The Gaussian of a given mean [d] and covariance [d, d].

    Raises ValueError unless the covariance is symmetric (to 1e-10 of its largest entry) and positive definite: its
    smallest eigenvalue above d times the rounding of the largest.
    """
    mean, covariance = mean.double(), covariance.double()
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"covariance: its shape is {list(covariance.shape)}; allowed is [d, d] beside a mean of [d].")
    uneven = float((covariance - covariance.T).abs().max())
    if not uneven <= 1e-10 * float(covariance.abs().max()):
        raise ValueError(f"covariance: it differs from its transpose by {uneven:.6g}; allowed are symmetric matrices.")
    variances, directions = _descending(covariance)
    smallest = float(variances[-1])
    if not smallest > _rounding(variances):
        raise ValueError(f"covariance: its smallest eigenvalue is {smallest:.6g}; allowed are positive definite ones.")
    return Gaussian(mean, variances, directions)


def fit(x: Tensor) -> Gaussian:
    """The Gaussian of maximum likelihood: the mean of x and its covariance, divided by N, not N - 1.

    x: [N, d] of any dtype. Variances within the rounding of the largest are set to 0; with N <= d there are such.
    Raises ValueError for another shape, no rows, or entries that are not finite.
    """
    x = x.double()
    if x.ndim != 2 or not x.numel():
        raise ValueError(f"x: its shape is {list(x.shape)}; allowed is [N, d] with at least one row and one column.")
    mean = x.mean(0)
    if not mean.isfinite().all():
        raise ValueError("x: it holds entries that are not finite; allowed are finite numbers.")
    centred = x - mean
    variances, directions = _descending(centred.T @ centred / len(x))
    return Gaussian(mean, torch.where(variances > _rounding(variances), variances, 0), directions)


def ppca(gaussian: Gaussian, q: int, *, noise: float | None = None) -> Generator:
    """Probabilistic PCA: the decoder of q codes that best explains a Gaussian, W = V_q (Lambda_q - sigma^2 I)^(1/2).

    noise: sigma^2 where it is fixed by hand, as usual for a VAE (gaps below 0 count as 0); else that of maximum
    likelihood, the mean of the d - q discarded variances. Raises ValueError unless 1 <= q <= d and noise >= 0. Source:
    Tipping and Bishop, 1999; that a linear VAE has the same optimum: Lucas et al., 2019.
    """
    scales = spectrum.decoder(gaussian.variances, q, noise)
    sigma2 = float(spectrum.discarded(gaussian.variances, q)) if noise is None else noise
    return Generator(gaussian.directions[:, :q] * scales[:q], sigma2, scales)


@dataclass(frozen=True, eq=False)
class Mixture:
    """K Gaussians, one a class, with the chances of the classes: p(x, y) = prior_y N(x; part y).

    prior: [K], above 0, sums to one; parts: K of one dimension d. Raises ValueError otherwise.
    """

    prior: Tensor
    parts: tuple[Gaussian, ...]

    def __post_init__(self) -> None:
        dimensions = sorted({len(part.mean) for part in self.parts})
        if self.prior.shape != (len(self.parts),) or len(dimensions) != 1:
            raise ValueError(
                f"parts: {len(self.parts)} of dimensions {dimensions} beside a prior of {list(self.prior.shape)}; "
                "allowed is one part for each entry of the prior, all of one dimension."
            )
        if not (self.prior > 0).all() or abs(float(self.prior.sum()) - 1) > 1e-6:
            raise ValueError(f"prior = {self.prior.tolist()}: allowed are chances above 0 that sum to one.")

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n points and their classes: x [n, d], y [n]."""
        mean = self.parts[0].mean
        prior = self.prior.to(generator.device, torch.float64)
        y = torch.multinomial(prior, n, replacement=True, generator=generator)
        draw = torch.randn((n, len(mean)), generator=generator, device=generator.device, dtype=torch.float64)
        x, y = draw.to(mean), y.to(mean.device)
        for k, part in enumerate(self.parts):
            own = y == k
            x[own] = part.mean + (x[own] * part.variances.sqrt()) @ part.directions.T
        return x, y

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, y = k) in nats for every class: [N, d] -> [N, K]. Raises ValueError if a variance is 0."""
        logs = torch.stack([part.log_likelihood(x) for part in self.parts], -1)
        return logs + self.prior.to(logs).log()

    def classify(self, x: Tensor) -> Tensor:
        """The likeliest class (Bayes' rule): [N, d] -> [N]."""
        return self.log_joint(x).argmax(-1)

    def nll(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss, -log p(x, y) in nats: [N, d], [N] -> [N]."""
        return -self.log_joint(x).gather(-1, y[:, None])[:, 0]


def fit_mixture(x: Tensor, y: Tensor, classes: int) -> Mixture:
    """The mixture of maximum likelihood: shares of the classes, and `fit` for each.

    x: [N, d]; y: [N], labels 0 to classes - 1. Raises ValueError for other labels, and for a class without points.
    """
    if y.shape != x.shape[:1] or not len(y) or not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(f"y: allowed are labels from 0 to {classes - 1}, one for each of the {len(x)} rows of x.")
    counts = torch.bincount(y, minlength=classes)
    if not counts.all():
        raise ValueError(f"y: there is no point of class {int(counts.argmin())}; allowed are at least one a class.")
    return Mixture(counts.double() / len(y), tuple(fit(x[y == k]) for k in range(classes)))


def _descending(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first, and eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0), vectors.flip(1)


def _rounding(variances: Tensor) -> float:
    """The size below which an eigenvalue cannot be told from 0."""
    return len(variances) * torch.finfo(variances.dtype).eps * float(variances[0])
