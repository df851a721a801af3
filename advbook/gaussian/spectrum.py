"""Directions of a Gaussian under attack: all in its eigenbasis, where every direction is a problem of its own.

A class has variances lambda [..., d] along its d eigenvectors; the last axis of every tensor here counts directions,
tensors are float64, and u are the coordinates of points, E u_i^2 = lambda_i. The model is a Gaussian with the same
eigenvectors and variances s. An adversary moves a point by a_i zeta_i along direction i and pays (L / 2) |zeta|^2: its
`scales` a and its `penalty` L fix its reach k_i = a_i^2 / L, how far it gets along direction i at unit cost. It wants
the negative log-likelihood large,

    max over e of  sum_i [ (u_i + e_i)^2 / (2 s_i) - e_i^2 / (2 k_i) ]  +  1/2 sum_i log s_i,

and training wants the mean of that small over s. All formulas are derived from this sentence; the tests check each of
them against a search that uses none. The setting is that of "Disentangling Adversarial Robustness in Directions of the
Data Manifold" (Xiao et al.), whose abstract states what the formulas below show.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from torch import Tensor

NEWTON = 100  # steps for the multiplier of a ball; about ten are taken
SMALLEST, LARGEST = 1e-100, 1e100  # budgets whose squares are ordinary numbers

# --- adversaries ----------------------------------------------------------------------------------------------------


def pixels(variances: Tensor) -> Tensor:
    """Scales of the regular adversary, x + delta: one in every direction, [..., d]."""
    return torch.ones_like(variances)


def discarded(variances: Tensor, q: int) -> Tensor:
    """Maximum-likelihood noise variance of a decoder with q codes: the mean of the d - q last variances, 0 for q = d.

    variances: [..., d], descending. Returns [...]. Raises ValueError unless 1 <= q <= d. Source: Tipping and Bishop,
    1999.
    """
    d = variances.shape[-1]
    if not 1 <= q <= d:
        raise ValueError(f"q = {q}: allowed are 1 to {d} codes, one for each direction.")
    return variances[..., q:].sum(-1) / max(d - q, 1)


def decoder(variances: Tensor, q: int, noise: float | None = None) -> Tensor:
    """Scales of the generative adversary, x + W zeta: sqrt(lambda_i - sigma^2) for i <= q, 0 beyond, [..., d].

    W is the linear decoder with q codes and noise variance sigma^2. noise: sigma^2 if fixed by hand, as usual for a
    VAE; else the maximum-likelihood one (`discarded`). Where it exceeds lambda_i the scale is 0. variances: [..., d],
    descending. Raises ValueError unless 1 <= q <= d and noise >= 0. Source: Tipping and Bishop, 1999.
    """
    fitted = discarded(variances, q)
    if noise is not None and not 0 <= noise < math.inf:
        raise ValueError(f"noise = {noise}: allowed are variances, finite and at least 0.")
    sigma2 = fitted if noise is None else torch.full_like(fitted, noise)
    gaps = (variances - sigma2[..., None]).clamp_min(0)
    return torch.cat([gaps[..., :q].sqrt(), torch.zeros_like(gaps[..., q:])], -1)


def eigenspace(variances: Tensor, *, first: int = 0, last: int = 0) -> Tensor:
    """Scales of an adversary kept to the `first` and the `last` directions: one there, zero elsewhere, [..., d].

    Raises ValueError for counts below 0, or for none or more than d directions in all.
    """
    d = variances.shape[-1]
    if min(first, last) < 0 or not 1 <= first + last <= d:
        raise ValueError(f"first = {first}, last = {last}: allowed are 1 to {d} directions in all, none counted twice.")
    place = torch.arange(d, device=variances.device)
    return ((place < first) | (place >= d - last)).to(variances).expand_as(variances)


def flow(variances: Tensor) -> Tensor:
    """Scales of an adversary on the codes of the exact linear flow x = Sigma^(1/2) z: sqrt(lambda), [..., d]."""
    return variances.sqrt()


def reach(scales: Tensor, penalty: float) -> Tensor:
    """k_i = a_i^2 / L: how far a unit of cost reaches along each direction, squared, [..., d].

    The adversary in joint space, x + delta + W zeta at the cost (L_x / 2) |delta|^2 + (L_z / 2) |zeta|^2, splits each
    move at least cost between its two ways (infimal convolution), so its reach is the sum of theirs:
    reach(pixels, L_x) + reach(decoder, L_z). Raises ValueError unless penalty > 0.
    """
    _above_zero("penalty", penalty)
    return scales.square() / penalty


# --- the penalised adversary ------------------------------------------------------------------------------------------


def inflation(ratio: Tensor) -> Tensor:
    """g(r) = (1 + 2 r + sqrt(1 + 4 r)) / 2: by which factor training against reach r = k / lambda inflates a variance.

    g(0) = 1, and g grows with r. Any shape. Raises ValueError for ratios below 0. Derived: see `hardened`.
    """
    _not_negative("ratio", ratio)
    return (1 + 2 * ratio + (1 + 4 * ratio).sqrt()) / 2


def hardened(variances: Tensor, reach: Tensor) -> Tensor:
    """s*, the variances that adversarial training gives the model: lambda g(k / lambda), [..., d].

    The inner maximum is u^2 / (2 (s - k)); the outer minimum then is where (s - k)^2 = lambda s, with s > k:

        s* = (lambda + 2 k + sqrt(lambda^2 + 4 k lambda)) / 2;

    the mean and the eigenvectors stay. For lambda = 0 it is the limit, k. Raises ValueError for variances or reach
    below 0. Derived.
    """
    _not_negative("variances", variances)
    _not_negative("reach", reach)
    return (variances + 2 * reach + (variances * (variances + 4 * reach)).sqrt()) / 2


def attack(u: Tensor, model: Tensor, reach: Tensor) -> Tensor:
    """The best move along each direction, e_i = k_i u_i / (s_i - k_i): [..., d]; 0 where nothing is in reach.

    u: coordinates [..., d]; model: its variances s [d]. Raises ValueError where k >= s: the adversary then gains
    without end. Derived.
    """
    return _gaps(model, reach, reach * u)


def gain(u: Tensor, model: Tensor, reach: Tensor) -> Tensor:
    """What the penalised adversary attains, sum_i u_i^2 / (2 (s_i - k_i)), without the term log s: [...].

    u, model, errors: as in `attack`; with reach 0 it is the plain sum u^2 / (2 s). Also raises ValueError for variances
    of the model that are not above 0. Derived.
    """
    if not (model > 0).all():
        raise ValueError(f"model: its smallest variance is {float(model.min()):.6g}; allowed are variances above 0.")
    return _gaps(model, reach, u.square()).sum(-1) / 2


def energies(variances: Tensor, reach: Tensor) -> Tensor:
    """E e_i^2 = lambda k^2 / (lambda - k)^2 of the attack on the model as fitted (s = lambda): [..., d].

    For small reach: in proportion to 1 / lambda (pixels), (lambda - sigma^2)^2 / lambda (decoder), lambda (flow).
    Raises ValueError where k >= lambda, unless k = 0. Derived.
    """
    return variances * _gaps(variances, reach, reach).square()


def saddle_energies(variances: Tensor, reach: Tensor) -> Tensor:
    """E e_i^2 = k^2 / s* of the attack on the hardened model: [..., d]; 0 where nothing is in reach. Derived."""
    return reach * _ratio(reach, hardened(variances, reach))  # so that k^2 cannot overflow


def budget(variances: Tensor, scales: Tensor, penalty: float) -> Tensor:
    """eps, the hard budget that matches a penalty: [...].

    eps^2 = E |zeta|^2 = sum_i a_i^2 / (L^2 s_i*), the mean square of the codes moved at the saddle. It falls as the
    penalty rises, from infinity to 0. Raises ValueError as `reach` and `hardened` do. Derived.
    """
    model = hardened(variances, reach(scales, penalty))
    return _ratio(scales.square(), model).sum(-1).sqrt() / penalty


def penalty_of(variances: Tensor, scales: Tensor, eps: float) -> float:
    """The penalty L whose budget is eps, to 1e-12 relative.

    variances, scales: [d]. Raises ValueError unless eps is within 1e-100 to 1e100, and for scales that are all zero.
    """
    _moves(scales)
    if not SMALLEST <= eps <= LARGEST:
        raise ValueError(f"eps = {eps}: allowed are budgets from {SMALLEST:g} to {LARGEST:g}.")
    # max(lambda, k) <= s* <= lambda + 2 k bounds the budget on both sides, and so the penalty.
    inverse, count = eps**-2, int((scales != 0).sum())
    ease = float((variances / scales.square())[scales != 0].min())
    low, high = inverse / (1 + math.sqrt(1 + ease * inverse)), count * inverse

    def excess(logarithm: float) -> float:
        return math.log(float(budget(variances, scales, math.exp(logarithm))) / eps)

    return math.exp(brentq(excess, math.log(low / 2), math.log(high * 2), xtol=1e-13))


# --- the adversary in a ball ------------------------------------------------------------------------------------------


def hard_ball(u: Tensor, model: Tensor, scales: Tensor, eps: float) -> Tensor:
    """The best zeta with |zeta| <= eps: it maximizes 1/2 sum_i (u_i + a_i zeta_i)^2 / s_i, exactly: [N, d].

    With c_i = a_i^2 / s_i and g_i = a_i u_i / s_i it is zeta_i = g_i / (m - c_i), at the multiplier m >= max c for
    which |zeta| = eps. The hard case: if g is 0 in all directions of largest c, then m = max c may leave |zeta| < eps,
    and what is missing goes along the first such direction (its sign and, among equals, the direction are arbitrary).
    u: [N, d]; model: s [d], above 0; scales: a [d]. Raises ValueError for other s, scales all zero, or eps not above 0.
    Source: the trust-region subproblem; More and Sorensen, 1983.
    """
    _moves(scales)
    _above_zero("eps", eps)
    if not (model > 0).all():
        raise ValueError(f"model: its smallest variance is {float(model.min()):.6g}; allowed are variances above 0.")
    curvature, slope = scales.square() / model, u * scales / model
    top = int(curvature.argmax())
    below = curvature[top] - curvature
    excess = _multiplier(slope, below, eps)
    zeta = _ratio(slope, excess + below)
    spare = (eps**2 - zeta.square().sum(-1)).clamp_min(0).sqrt()
    # No excess: the hard case. Otherwise the length is eps up to rounding.
    filled = zeta.index_add(-1, torch.tensor([top], device=u.device), spare[:, None])
    return torch.where(
        excess == 0, filled, zeta * _ratio(torch.full_like(excess, eps), zeta.norm(dim=-1, keepdim=True))
    )


def excess_bounds(variances: Tensor, scales: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Bounds on the excess risk, adversarial minus clean negative log-likelihood, in a ball of radius eps: [...] each.

    With c_i = a_i^2 / lambda_i and c the largest of them

        eps^2 c / 2 + eps sqrt(2 c / pi)  <=  excess  <=  eps^2 c / 2 + eps sqrt(sum_i c_i).

    Below: a step of length eps along the direction of largest c, towards the slope g; E |g| = sqrt(2 c / pi). Above:
    the square and the slope are bounded apart, E |g| <= sqrt(E |g|^2). For pixels c = 1 / lambda_min, so the risk has
    no bound as lambda_min falls to 0 (at 0 the bounds are infinite); for a decoder c_i <= 1, so it is at most
    eps^2 / 2 + eps sqrt(q), whatever lambda_min is. variances, scales: [..., d]. Raises ValueError for variances or eps
    below 0. Derived.
    """
    _not_negative("variances", variances)
    if not eps >= 0:
        raise ValueError(f"eps = {eps}: allowed are budgets of at least 0.")
    curvature = _ratio(scales.square(), variances)
    largest = curvature.amax(-1)
    square = eps**2 * largest / 2
    return square + eps * (2 * largest / math.pi).sqrt(), square + eps * curvature.sum(-1).sqrt()


# --- what they share ------------------------------------------------------------------------------------------------


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """top / bottom, and 0 where top is 0, whatever bottom is."""
    zero = top == 0
    return torch.where(zero, 0, top) / torch.where(zero, 1, bottom)


def _gaps(model: Tensor, reach: Tensor, top: Tensor) -> Tensor:
    """top / (s - k), and 0 where top is 0; ValueError where an adversary's k is not below s."""
    _not_negative("reach", reach)
    _not_negative("model", model)
    share = _ratio(reach, model)
    if not (share < 1).all():
        worst = int(share.argmax())
        k, s = (part.expand_as(share).flatten()[worst] for part in (reach, model))
        raise ValueError(
            f"reach: in direction {worst % share.shape[-1]} it is k = {float(k):.6g} where the model's variance is "
            f"s = {float(s):.6g}; allowed is k < s, which takes a penalty more than {float(k / s):.6g} times as large."
        )
    return _ratio(top, model - reach)


def _multiplier(slope: Tensor, below: Tensor, eps: float) -> Tensor:
    """t >= 0 with sum_i slope_i^2 / (t + below_i)^2 = eps^2, [N, 1]; 0 where the sum is smaller than that for all t.

    t is counted from the largest curvature, so that it keeps its digits near the hard case. 1 / |zeta(t)| is concave
    and grows with t: Newton steps from the left stay on the left and need no guard.
    """
    t = (slope.abs() / eps - below).amax(-1, keepdim=True).clamp_min(0)  # one term alone exceeds eps^2 before that
    for _ in range(NEWTON):
        zeta = _ratio(slope, t + below)
        length = zeta.norm(dim=-1, keepdim=True)
        fall = _ratio(zeta.square(), t + below).sum(-1, keepdim=True)
        step = _ratio((length / eps - 1) * length.square(), fall)
        t, before = (t + step).clamp_min(0), t
        if torch.equal(t, before) or float((step.abs() - 1e-15 * t).max()) <= 0:
            break
    return t


def _above_zero(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} = {value}: allowed are finite numbers above 0.")


def _not_negative(name: str, values: Tensor) -> None:
    if not (values >= 0).all():
        raise ValueError(f"{name}: the smallest entry is {float(values.min()):.6g}; allowed are numbers of at least 0.")


def _moves(scales: Tensor) -> None:
    if not (scales != 0).any():
        raise ValueError("scales: all are 0; allowed are adversaries that can move along some direction.")
