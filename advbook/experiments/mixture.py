"""Chapter 06 on the mixture: every closed form of advbook.gaussian beside a search or a sample that does not use it.

Rows: `check` (a closed form against brute force: error and tolerance), `spectrum` (variances before and after
adversarial training, by formula and by brute force), `energy` (which directions attacks use), `excess` (the risk as the
smallest variance falls), `latent` (a generator with too few or too many codes), `linear` and `cost` (linear
classifiers, and what hardened covariances bring them), `robust` and `calibration` (joint training of such classifiers).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advbook.experiments.grid import blocks
from advbook.gaussian import fit, linear, model, spectrum

FITTED = 500  # samples for brute force: it is compared with the formula at their own variances
RISE = 2.0  # nats of excess risk at which attacks are compared, in place of a success rate
# A class's mean is 3 standard deviations from the boundary, which gives a clean accuracy of .9987. It has .8 of them
# beyond the generator's codes: were it more than 1.28, no generative budget could bring the accuracy down to TARGET.
SEPARATION, BEYOND = 3.0, 0.8
TARGET = 0.9  # own-trained robust accuracy that budgets of linear classifiers are set to
SIGMAS = 4.0  # standard errors that a sample may be off
PENALTIES = tuple(float(2.0**power) for power in range(-2, 9))
SMALLEST = (0.1, 0.03, 0.01, 0.003, 0.001)
Rows = list[dict[str, Any]]


def rows(variances: Sequence[float], q: int, *, n: int, penalty: float, seeds: int) -> Rows:
    """All rows of a mixture with these variances: q codes of its generator, n samples, price L of a squared
    perturbation, and so many random mixtures for intervals.
    """
    lam = torch.tensor(sorted(variances, reverse=True), dtype=torch.float64)
    found = _brute_force(lam, q, penalty)
    found += _samples(lam, q, n, penalty)
    found += _balls(lam, q)
    found += [row for seed in range(seeds) for row in _energies(lam, q, n, penalty, seed)]
    found += _excess(lam, q, n)
    found += [row for seed in range(seeds) for row in _latent(lam, n, seed)]
    found += _classifiers(lam, q, n)
    found += [row for seed in range(seeds) for row in _costs(lam, q, seed)]
    return found + [row for seed in range(seeds) for row in _conflict(lam, q, seed)]


def adversaries(lam: Tensor, q: int, penalty: float) -> dict[str, Tensor]:
    """The reach k of every adversary along the principal directions: [d] each."""
    d = len(lam)
    scales = {
        "regular": spectrum.pixels(lam),
        "generative": spectrum.decoder(lam, q),
        "first directions": spectrum.eigenspace(lam, first=q),
        "last directions": spectrum.eigenspace(lam, last=d - q),
        "linear flow": spectrum.flow(lam),
    }
    found = {name: spectrum.reach(own, penalty) for name, own in scales.items()}
    return found | {"joint": found["regular"] + found["generative"]}


def signals(lam: Tensor) -> int:
    """How many directions carry signal: those before the ones that share the smallest variance."""
    return int((lam > lam[-1] * (1 + 1e-9)).sum())


def _brute_force(lam: Tensor, q: int, penalty: float) -> Rows:
    """Adversarial training of a mean and a full covariance by gradients, against s* at the sample's variances."""
    d, random = len(lam), torch.Generator().manual_seed(0)
    basis, mean = _basis(d, random), torch.randn(d, generator=random, dtype=torch.float64)
    x = mean + (_normal(FITTED, d, random) * lam.sqrt()) @ basis.T
    own = model.fit(x)
    reached = adversaries(own.variances, q, penalty)
    eye = torch.eye(d, dtype=torch.float64)
    maps = []
    for name, k in reached.items():
        if name == "joint":  # two ways to move, at their own price: nothing here knows that reaches add up
            generator = model.ppca(own, q).weights
            wide = torch.cat([eye, generator, torch.zeros(d, d - q, dtype=torch.float64)], 1) / math.sqrt(penalty)
        else:
            wide = torch.cat([own.directions * k.sqrt(), torch.zeros_like(eye)], 1)
        maps.append(wide)
    means, covariances = fit.harden(x, torch.stack(maps), label="adversarial training of a covariance")
    found: Rows = []
    for (name, k), shifted, covariance in zip(reached.items(), means, covariances, strict=True):
        in_basis = own.directions.T @ covariance @ own.directions
        fitted, formula = in_basis.diagonal(), spectrum.hardened(own.variances, k)
        rest = in_basis - torch.diag(fitted)
        found += [
            _check(f"hardened variances, {name}", ((fitted - formula).abs() / formula).max(), 1e-6),
            _check(f"eigenvectors stay, {name}", rest.abs().max() / formula.min(), 1e-5),
            _check(f"the mean stays, {name}", ((shifted - own.mean).abs() / formula.min().sqrt()).max(), 1e-5),
        ]
        columns = {"variance": own.variances, "reach": k, "formula": formula, "fitted": fitted}
        found += [
            {
                "what": "spectrum",
                "adversary": name,
                "direction": i + 1,
                **{key: float(v[i]) for key, v in columns.items()},
            }
            for i in range(d)
        ]
    return found


def _samples(lam: Tensor, q: int, n: int, penalty: float) -> Rows:
    """Energies and budgets at the saddle, and on the model as fitted, over samples; in standard errors."""
    u = _normal(n, len(lam), torch.Generator().manual_seed(1)) * lam.sqrt()
    scales = {
        "regular": spectrum.pixels(lam),
        "generative": spectrum.decoder(lam, q),
        "linear flow": spectrum.flow(lam),
    }
    found = []
    for name, own in scales.items():
        reach = spectrum.reach(own, penalty)
        hard = spectrum.hardened(lam, reach)
        moves = spectrum.attack(u, hard, reach)
        found.append(
            _check(f"energy at the saddle, {name}", _off(moves.square(), spectrum.saddle_energies(lam, reach)), SIGMAS)
        )
        eps = spectrum.budget(lam, own, penalty)
        zeta = torch.where(own > 0, moves / own.clamp_min(1e-300), 0)
        found.append(
            _check(f"budget of a price, {name}", _off(zeta.square().sum(1, keepdim=True), eps.square()[None]), SIGMAS)
        )
        back = spectrum.penalty_of(lam, own, float(eps))
        found.append(_check(f"price of a budget, {name}", abs(back / penalty - 1), 1e-9))
        gentle = spectrum.reach(
            own, 4 * float((own.square() / lam).max())
        )  # a quarter of the largest reach that exists
        energy = spectrum.attack(u, lam, gentle).square()
        found.append(
            _check(f"energy on the fitted model, {name}", _off(energy, spectrum.energies(lam, gentle)), SIGMAS)
        )
    return found


def _off(values: Tensor, expected: Tensor) -> Tensor:
    """How many standard errors the means over samples are off, at most: [n, d], [d]."""
    error = values.std(0) / math.sqrt(len(values))
    gap = (values.mean(0) - expected).abs()
    return torch.where(gap == 0, 0, gap / error).max()  # no spread and a gap: infinitely many


def _balls(lam: Tensor, q: int, *, count: int = 50) -> Rows:
    """The secular equation against projected gradient ascent from many random starts."""
    random = torch.Generator().manual_seed(2)
    u, found = _normal(count, len(lam), random) * lam.sqrt(), []
    for name, scales in (("regular", spectrum.pixels(lam)), ("generative", spectrum.decoder(lam, q))):
        for eps in (0.1, 1.0):
            best = _value(u, lam, scales, spectrum.hard_ball(u, lam, scales, eps))
            tried = _climbed(u, lam, scales, eps, random)
            found.append(_check(f"attack in a ball of {eps:g}, {name}", ((tried - best).abs() / best).max(), 1e-6))
    return found


def _climbed(
    u: Tensor, lam: Tensor, scales: Tensor, eps: float, random: torch.Generator, *, starts: int = 20
) -> Tensor:
    """The largest value that projected gradient ascent finds: [n]."""
    zeta = _normal(starts * len(u), len(lam), random).view(starts, *u.shape)
    step = 0.5 * float((lam / scales.square())[scales > 0].min())
    for _ in range(3_000):
        zeta = zeta * (eps / zeta.norm(dim=-1, keepdim=True)).clamp_max(1)
        zeta = zeta + max(step, 0.05 * eps) * scales * (u + scales * zeta) / lam
    zeta = zeta * (eps / zeta.norm(dim=-1, keepdim=True)).clamp_max(1)
    return _value(u, lam, scales, zeta).amax(0)


def _value(u: Tensor, variances: Tensor, scales: Tensor, zeta: Tensor) -> Tensor:
    """The quadratic part of the loss, 1/2 sum (u + a zeta)^2 / s: [..., d] -> [...]."""
    return ((u + scales * zeta).square() / variances).sum(-1) / 2


def _energies(lam: Tensor, q: int, n: int, penalty: float, seed: int) -> Iterator[dict[str, Any]]:
    """Directions of attacks in balls whose mean gain is RISE, on the fitted model and on hardened ones."""
    u = _normal(n, len(lam), torch.Generator().manual_seed(100 + seed)) * lam.sqrt()
    scales = {"l2": spectrum.pixels(lam), "generative": spectrum.decoder(lam, q)}
    models = {"normal": lam}
    models |= {name: spectrum.hardened(lam, spectrum.reach(own, penalty)) for name, own in scales.items()}
    for training, variances in models.items():
        for threat, own in scales.items():
            eps = _eps_of_rise(u[:1000], variances, own)
            energy = (own * spectrum.hard_ball(u, variances, own, eps)).square()
            energy = energy / energy.sum(1, keepdim=True)
            variance = (energy * lam).sum(1) / lam.mean()
            yield {
                "what": "energy",
                "training": training,
                "threat": threat,
                "seed": seed,
                "eps": eps,
                "rate": float(variance.mean()),
                "energies": [round(float(part), 6) for part in energy.mean(0)],
                "hits_average": blocks(variance),
                "counted": blocks(torch.ones_like(variance)),
            }


def _eps_of_rise(u: Tensor, variances: Tensor, scales: Tensor) -> float:
    """The radius of the ball in which the loss rises by RISE on average, by bisection."""
    clean = _value(u, variances, scales, torch.zeros_like(u)).mean()
    ends = (variances.sqrt() / scales)[scales > 0]
    low, high = 1e-5 * float(ends.min()), 1e5 * float(ends.max())
    for _ in range(80):
        middle = math.sqrt(low * high)
        rise = _value(u, variances, scales, spectrum.hard_ball(u, variances, scales, middle)).mean() - clean
        low, high = (middle, high) if rise < RISE else (low, middle)
    return math.sqrt(low * high)


def _excess(lam: Tensor, q: int, n: int, *, eps: float = 0.3) -> Rows:
    """The excess risk in balls of .3 as the smallest variance falls, and its bounds."""
    found, normal = [], _normal(n, len(lam), torch.Generator().manual_seed(3))
    for smallest in SMALLEST:
        own = torch.where(lam == lam[-1], smallest, lam.clamp_min(smallest))
        u = normal * own.sqrt()
        for threat, scales in (("regular", spectrum.pixels(own)), ("generative", spectrum.decoder(own, q))):
            gained = _value(u, own, scales, spectrum.hard_ball(u, own, scales, eps)) - _value(u, own, scales, 0 * u)
            low, high = (float(end) for end in spectrum.excess_bounds(own, scales, eps))
            mean, error = float(gained.mean()), float(gained.std()) / math.sqrt(n)
            row = {"what": "excess", "threat": threat, "smallest": smallest, "value": mean, "low": low, "high": high}
            outside = float(np.max([low - mean, mean - high, 0.0])) / error  # unlike max, it keeps NaN
            found += [row, _check(f"excess risk in its bounds, {threat}, {smallest:g}", outside, SIGMAS)]
    return found


def _latent(lam: Tensor, n: int, seed: int) -> Iterator[dict[str, Any]]:
    """The generative attack's energy beyond the true rank, over the codes of a generator fitted to samples."""
    d, rank = len(lam), signals(lam)
    u = _normal(n, d, torch.Generator().manual_seed(200 + seed)) * lam.sqrt()
    own = model.fit(u)
    signal = own.directions[:rank].square().sum(0)  # of each fitted direction, the share that lies in the true signal
    for decoder, noise in (("fitted", None), ("fixed", float(lam[-1]) / 2)):
        for q in range(1, d + 1):
            scales = spectrum.decoder(own.variances, q, noise)
            largest = float((scales.square() / own.variances).max())
            energy = spectrum.energies(own.variances, spectrum.reach(scales, 4 * largest))
            share = float((energy * (1 - signal)).sum() / energy.sum())
            yield {
                "what": "latent",
                "decoder": decoder,
                "codes": q,
                "rank": rank,
                "seed": seed,
                "rate": share,
                "hits_average": [share],
                "counted": [1.0],
            }


def _world(lam: Tensor, q: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A random two-class problem x ~ N(y mu, Sigma): mu, Sigma, the generator W and the eigenvectors."""
    d, random = len(lam), torch.Generator().manual_seed(300 + seed)
    basis = _basis(d, random)
    inside, outside = (torch.randn(size, generator=random, dtype=torch.float64) for size in (q, d - q))
    sizes = (math.sqrt(SEPARATION**2 - BEYOND**2), BEYOND)
    white = torch.cat([size * part / part.norm() for size, part in zip(sizes, (inside, outside), strict=True)])
    mu = basis @ (lam.sqrt() * white)
    covariance = (basis * lam) @ basis.T
    return mu, covariance, basis[:, :q] * spectrum.decoder(lam, q)[:q], basis


def _classifiers(lam: Tensor, q: int, n: int) -> Rows:
    """Adversarial training of a linear classifier by the logistic loss, against the closed form's inflation c."""
    mu, covariance, weights, basis = _world(lam, q, 0)
    eye, shape = torch.eye(len(mu), dtype=torch.float64), weights @ weights.T
    threats = {"L2": (linear.L2, eye, eye), "generative": (linear.generative(weights), weights, shape)}
    found: Rows = []
    for name, (threat, matrix, own) in threats.items():
        eps = linear.calibrated(mu, covariance, threat, TARGET)
        w = fit.logistic(mu, covariance, [(matrix, eps)])
        formula = linear.inflation(mu, covariance, matrix, eps)
        trained = float(fit.recovered(w, mu, covariance, own[None])[0][0])
        found.append(_check(f"inflation c of a linear classifier, {name}", abs(trained / formula - 1), 1e-4))
        y = torch.ones(n, dtype=torch.float64)
        x = mu + (_normal(n, len(mu), torch.Generator().manual_seed(4)) * lam.sqrt()) @ basis.T
        sampled = fit.logistic_samples(x, y, [(matrix, eps)])
        cosine = float(sampled @ w / sampled.norm() / w.norm())
        c = float(fit.recovered(sampled, mu, covariance, own[None])[0][0])
        found.append({"what": "linear", "threat": name, "eps": eps, "c": formula, "c_samples": c, "cosine": cosine})
    return found


def _costs(lam: Tensor, q: int, seed: int) -> Iterator[dict[str, Any]]:
    """Robust accuracy of Fisher's classifier with the covariance that each adversarial training of the model gives."""
    mu, covariance, weights, basis = _world(lam, q, seed)
    threats = {"l2": linear.L2, "generative": linear.generative(weights)}
    scales = {"l2": spectrum.pixels(lam), "generative": spectrum.decoder(lam, q)}
    for threat, own in threats.items():
        eps = linear.calibrated(mu, covariance, own, TARGET)
        plain = float(linear.robust_accuracy(torch.linalg.solve(covariance, mu), mu, covariance, [(own, eps)]))
        for training, reach in scales.items():
            for penalty in PENALTIES:
                hard = spectrum.hardened(lam, spectrum.reach(reach, penalty))
                w = basis @ ((basis.T @ mu) / hard)
                rate = float(linear.robust_accuracy(w, mu, covariance, [(own, eps)]))
                yield {
                    "what": "cost",
                    "training": training,
                    "threat": threat,
                    "price": penalty,
                    "seed": seed,
                    "rate": rate - plain,
                    "hits_average": [rate - plain],
                    "counted": [1.0],
                }


def _conflict(lam: Tensor, q: int, seed: int) -> Iterator[dict[str, Any]]:
    """Linear classifiers trained against each threat and each pair, under each threat at its calibrated budget."""
    mu, covariance, weights, _ = _world(lam, q, seed)
    threats = {"linf": linear.LINF, "l2": linear.L2, "l1": linear.L1, "generative": linear.generative(weights)}
    budgets = {name: (own, linear.calibrated(mu, covariance, own, TARGET)) for name, own in threats.items()}
    for name, (_, eps) in budgets.items():
        yield {"what": "calibration", "threat": name, "seed": seed, "eps": eps, "goal": TARGET}
    trained: dict[str, Tensor | None] = {"normal": torch.linalg.solve(covariance, mu)}
    for group in [*((name,) for name in threats), *combinations(threats, 2)]:
        trained["+".join(group)] = _best(mu, covariance, [budgets[name] for name in group])
    for training, w in trained.items():
        for threat, budget in budgets.items():
            rate = 0.5 if w is None else float(linear.robust_accuracy(w, mu, covariance, [budget]))
            yield {
                "what": "robust",
                "training": training,
                "threat": threat,
                "seed": seed,
                "eps": budget[1],
                "rate": rate,
                "hits_average": [rate],
                "counted": [1.0],
            }


def _best(mu: Tensor, covariance: Tensor, threats: linear.Threats) -> Tensor | None:
    """The best classifier against the union of threats; None where they leave none better than chance."""
    try:
        return linear.hardest(mu, covariance, threats)[0]
    except ValueError:
        return None


def _check(name: str, error: Tensor | float, tolerance: float) -> dict[str, Any]:
    return {"what": "check", "name": name, "error": float(error), "tolerance": tolerance}


def _normal(n: int, d: int, generator: torch.Generator) -> Tensor:
    return torch.randn((n, d), generator=generator, dtype=torch.float64)


def _basis(d: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix: its columns are eigenvectors in pixel space."""
    basis: Tensor = torch.linalg.qr(_normal(d, d, generator))[0]
    return basis
