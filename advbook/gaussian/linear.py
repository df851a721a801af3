"""Linear classifiers under attack: x ~ N(y mu, Sigma), y = +-1 with equal chance, and the prediction sign(w x).

A threat moves x within eps times a convex ball; to w it costs eps times its dual norm |w|_* = max over the ball of
w delta. So the robust accuracy is Phi((w mu - eps |w|_*) / sqrt(w Sigma w)), and all below follows from it. Tensors
are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq, nnls
from scipy.special import ndtr, ndtri
from torch import Tensor

STEPS = 500  # corrections of the best classifier; some twenty are taken
TIGHT = 1e-10  # it ends where the certificate is below this share of the clean margin
NEWTON = 50  # steps for a budget; about five are taken
FAR = 1e3  # a budget so many times what the mean allows is taken for one without end


@dataclass(frozen=True)
class Threat:
    """A ball of moves, by two functions of w [..., d].

    dual: |w|_* [...]; worst: the delta [..., d] in the unit ball of largest w delta, 0 for w = 0.
    """

    name: str
    dual: Callable[[Tensor], Tensor]
    worst: Callable[[Tensor], Tensor]


Threats = Sequence[tuple[Threat, float]]  # each with its budget eps


def _steepest(w: Tensor) -> Tensor:
    """One entry of size one, where |w| is largest, with its sign."""
    return F.one_hot(w.abs().argmax(-1), w.shape[-1]) * w.sign()


def _unit(w: Tensor) -> Tensor:
    size = w.norm(dim=-1, keepdim=True)
    return w / torch.where(size > 0, size, 1)


LINF = Threat("linf", lambda w: w.abs().sum(-1), torch.sign)
L2 = Threat("l2", lambda w: w.norm(dim=-1), _unit)
L1 = Threat("l1", lambda w: w.abs().amax(-1), _steepest)


def generative(weights: Tensor) -> Threat:
    """The threat x + W zeta, |zeta| <= eps, of a linear decoder W [d, q]: |w|_* = |W^T w|."""
    return Threat("generative", lambda w: (w @ weights).norm(dim=-1), lambda w: _unit(w @ weights) @ weights.T)


def direction(mu: Tensor, covariance: Tensor, shapes: Tensor, c: Tensor) -> Tensor:
    """w = (Sigma + sum_j c_j D_j)^-1 mu, what adversarial training gives, up to a factor: [d].

    Training against sum_j eps_j |M_j^T w| with any decreasing margin loss inflates the covariance of the plain
    classifier, with D_j = M_j M_j^T: the identity for L2, W W^T for a decoder. c_j = eps_j w Sigma w / (m |M_j^T w|)
    with the robust margin m = w mu - sum_j eps_j |M_j^T w|. mu: [d]; shapes: [J, d, d]; c: [J]. Derived.
    """
    w: Tensor = torch.linalg.solve(covariance + torch.einsum("j,jab->ab", c, shapes), mu)
    return w


def inflation(mu: Tensor, covariance: Tensor, matrix: Tensor, eps: float) -> float:
    """c of `direction` for the one threat x + M zeta, |zeta| <= eps: the root of c m |M^T w| = eps w Sigma w.

    mu: [d]; matrix: M [d, m]. Raises ValueError if there is no root between 1e-9 and 1e9 times what makes both parts of
    the covariance alike: the budget is too large, or the threat moves nothing.
    """
    shape = matrix @ matrix.T

    def gap(logarithm: float) -> float:
        c = math.exp(logarithm)
        w = direction(mu, covariance, shape[None], torch.tensor([c]).to(mu))
        cost = float((w @ matrix).norm())
        return c * (float(w @ mu) - eps * cost) * cost - eps * float(w @ covariance @ w)

    alike = math.log(float(covariance.trace()) / max(float(shape.trace()), 1e-300))
    low, high = alike - math.log(1e9), alike + math.log(1e9)
    if not gap(low) < 0 < gap(high):
        raise ValueError(f"eps = {eps}: no classifier answers it by an inflation; allowed is a smaller budget above 0.")
    return math.exp(brentq(gap, low, high, xtol=1e-13))


def robust_accuracy(w: Tensor, mu: Tensor, covariance: Tensor, threats: Threats) -> Tensor:
    """Phi((w mu - max_j eps_j |w|_*j) / sqrt(w Sigma w)): accuracy where the worst threat attacks each point, [...].

    w: [..., d], not 0. No threats: the clean accuracy. Derived.
    """
    costs = torch.stack([torch.zeros_like(w[..., 0]), *(eps * threat.dual(w) for threat, eps in threats)])
    spread = torch.einsum("...a,ab,...b->...", w, covariance, w).sqrt()
    accuracy: Tensor = torch.special.ndtr((w @ mu - costs.amax(0)) / spread)
    return accuracy


def hardest(mu: Tensor, covariance: Tensor, threats: Threats, *, steps: int = STEPS) -> tuple[Tensor, float]:
    """The linear classifier of largest robust accuracy against the union of threats: w [d], and a certificate.

    w = Sigma^-1 (mu - delta), where delta is the point of the convex hull of the balls that is nearest to mu in the
    norm of Sigma^-1; that distance is the robust margin by sqrt(w Sigma w). Frank and Wolfe's method finds it: the
    attack on the present w gives the next corner, and all corners are weighed anew. The certificate is the duality gap:
    no classifier has a margin, in units of sqrt(w Sigma w), that is larger by more. mu: [d]. Raises ValueError unless
    Sigma is positive definite, and if no classifier better than chance is found. Derived; the method: Jaggi, 2013.
    """
    w, distance, gap = _nearest(mu, covariance, threats, steps)
    if not distance > gap:
        raise ValueError(f"threats: budgets {[eps for _, eps in threats]} leave no classifier better than chance.")
    return w, gap


def calibrated(mu: Tensor, covariance: Tensor, threat: Threat, accuracy: float) -> float:
    """The budget at which the best classifier against this threat alone has that robust accuracy.

    Raises ValueError unless the accuracy is above 1/2 and at most the best clean one, and if the threat cannot bring it
    down so far with any budget, as one that moves in few directions.
    """
    w, clean, _ = _nearest(mu, covariance, [], STEPS)
    target = float(ndtri(accuracy))
    if not 0 < target <= clean:
        best = float(ndtr(clean))
        raise ValueError(f"accuracy = {accuracy}: allowed is above 0.5, up to the {best:.6g} without an attack.")
    # The distance falls with the budget and is convex, with slope -|w|_* / distance: Newton steps from 0 never
    # overshoot.
    eps, distance = 0.0, clean
    far = FAR * clean**2 / max(float(threat.dual(w)), 1e-300)
    for _ in range(NEWTON):
        if distance - target <= TIGHT * clean:
            return eps
        eps += (distance - target) * distance / max(float(threat.dual(w)), 1e-300)
        if not eps < far:
            break
        w, distance, _ = _nearest(mu, covariance, [(threat, eps)], STEPS)
    raise ValueError(f"accuracy = {accuracy}: no budget of {threat.name} is enough; allowed is a larger accuracy.")


def _nearest(mu: Tensor, covariance: Tensor, threats: Threats, steps: int) -> tuple[Tensor, float, float]:
    """w = Sigma^-1 (mu - delta) for the nearest delta, its distance from mu, and the duality gap."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        smallest = float(torch.linalg.eigvalsh(covariance)[0])
        raise ValueError(f"covariance: its smallest eigenvalue is {smallest:.6g}; allowed are positive definite ones.")
    white = torch.linalg.solve_triangular(factor, mu[:, None], upper=False)[:, 0]
    corners, clean = white[:, None], float(white.norm())  # mu - delta for every corner delta, the first of them 0
    rest, shares = white, np.ones(1)
    for step in range(steps + 1):
        w = torch.linalg.solve_triangular(factor.T, rest[:, None], upper=True)[:, 0]
        distance = float(rest.norm())
        costs = [eps * float(threat.dual(w)) for threat, eps in threats]
        gap = (max(costs, default=0.0) - float((white - rest) @ rest)) / max(distance, 1e-300)
        if gap <= TIGHT * clean or distance <= TIGHT * clean or step == steps:
            break
        threat, eps = threats[int(np.argmax(costs))]
        corner = torch.linalg.solve_triangular(factor, (mu - eps * threat.worst(w))[:, None], upper=False)
        corners = torch.cat([corners[:, torch.from_numpy(shares > 0)], corner], 1)
        shares = _weights(corners.numpy(), clean)
        rest = corners @ torch.from_numpy(shares)
    return w, distance, max(gap, 0.0)


def _weights(corners: np.ndarray, scale: float) -> np.ndarray:
    """Weights, at least 0, of sum one, whose mean of the corners [d, k] is nearest to the origin: [k].

    Non-negative least squares with one row more, which asks for sum one: for given proportions the best factor leaves
    r^2 / (r^2 + scale^2) of it, r their distance, so the proportions are those of the smallest distance.
    """
    asked = np.append(np.zeros(len(corners)), scale)
    found, _ = nnls(np.vstack([corners, np.full(corners.shape[1], scale)]), asked, maxiter=100 * corners.shape[1])
    return np.asarray(found / found.sum())
