"""Brute force: Gaussians and linear classifiers trained against adversaries by gradients alone.

Nothing here knows a formula of `spectrum` or `linear`: these functions are what those formulas are checked against. An
adversary is a matrix A, its moves are x + A zeta. Tensors are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

INNER = 20  # gradient steps of the attack in each step of training; zeta starts where the step before left it
SETTLED = 1e-9  # training ends when no entry of the gradient is larger
NODES = 64  # of the Gauss-Hermite rule


def harden(x: Tensor, maps: Tensor, *, steps: int = 2000, label: str | None = None) -> tuple[Tensor, Tensor]:
    """Adversarial training of one Gaussian against T adversaries, each on its own, side by side.

    For every adversary it finds the mean and the full covariance, [T, d] and [T, d, d], that minimize the mean over
    samples of max over zeta of  -log N(x + A zeta) - |zeta|^2 / 2. Both players follow their gradients; the attack
    starts where it last was. x: [N, d]; maps: A [T, d, m]. An adversary with scales a and penalty L has columns
    a_i v_i / sqrt(L); columns of several adversaries side by side make one that uses them jointly, as the joint-space
    adversary [I / sqrt(L_x), W / sqrt(L_z)] does. steps: the most it takes; label: names a progress bar, which is
    hidden without one. Raises ValueError if the covariance of x is not positive definite, RuntimeError if the gradient
    has not vanished after `steps`.
    """
    x, maps = x.double(), maps.double()
    mean, factors, points, maps = _whitened(x, maps)
    shift = torch.zeros_like(points[:, :1]).requires_grad_()
    root = torch.eye(x.shape[1]).to(maps).repeat(len(maps), 1, 1).requires_grad_()  # of the precision, lower triangle
    zeta = torch.zeros(*points.shape[:2], maps.shape[2]).to(maps)
    # The objective curves most where the adversary dwarfs the data, by about the root of their ratio: smaller steps.
    share = (1 - 2 * torch.linalg.matrix_norm(maps, 2).square()).clamp_min(torch.finfo(maps.dtype).eps)
    rate = share.sqrt()[:, None, None] / 2
    largest = torch.inf
    with tqdm(total=steps, desc=label, disable=label is None, leave=False) as bar:
        for _ in range(steps):
            zeta = _ascend((points - shift).detach(), root.detach().tril(), maps, zeta)
            gradients = torch.autograd.grad(_loss(points - shift + zeta @ maps.mT, root.tril()), (shift, root))
            largest = max(float(gradient.abs().max()) for gradient in gradients)
            if not largest > SETTLED:
                break
            with torch.no_grad():
                shift -= rate * gradients[0]
                root -= rate * gradients[1]
            bar.update()
    if not largest <= SETTLED:
        raise RuntimeError(f"steps = {steps}: the gradient is still {largest:.2g}; allowed is {SETTLED:g} at the end.")
    covariance = factors @ torch.cholesky_inverse(root.detach().tril()) @ factors.mT
    return mean + (factors @ shift.detach().mT)[..., 0], covariance


def _whitened(x: Tensor, maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean, and for every adversary coordinates in which S + 2 A A^T is the identity: factor, points, maps.

    S is the covariance of x. The likelihood only shifts by a constant. In them training starts from the identity, where
    the attack is sure to have a maximum: A A^T is at most half of it.
    """
    mean = x.mean(0)
    centred = x - mean
    covariance = centred.T @ centred / len(x)
    smallest, largest = torch.linalg.eigvalsh(covariance)[[0, -1]].tolist()
    if not smallest > 1e-13 * largest:
        raise ValueError(f"x: the smallest eigenvalue of its covariance is {smallest:.6g}; allowed are those above 0.")
    factors = torch.linalg.cholesky(covariance + 2 * maps @ maps.mT)
    points = torch.linalg.solve_triangular(factors, centred.T.expand(len(maps), -1, -1), upper=False).mT
    return mean, factors, points, torch.linalg.solve_triangular(factors, maps, upper=False)


def _ascend(points: Tensor, root: Tensor, maps: Tensor, zeta: Tensor) -> Tensor:
    """Gradient steps of length one on (x + A zeta)^T P (x + A zeta) / 2 - |zeta|^2 / 2, P = root root^T: [T, N, m]."""
    pull = root.mT @ maps  # [T, d, m]
    slope, curvature = points @ root @ pull, pull.mT @ pull
    for _ in range(INNER):
        zeta = torch.baddbmm(slope, zeta, curvature)
    return zeta


def _loss(points: Tensor, root: Tensor) -> Tensor:
    """-log N(point; 0, (root root^T)^-1) without its constant, mean over points, summed over adversaries: []."""
    square = (points @ root).square().sum(-1).mean(-1) / 2
    return (square - root.diagonal(dim1=1, dim2=2).abs().log().sum(-1)).sum()


# --- linear classifiers -----------------------------------------------------------------------------------------------


def logistic(mu: Tensor, covariance: Tensor, threats: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Adversarial training of sign(w x) on x ~ N(y mu, Sigma), y = +-1, with the whole population as training set: w
    [d].

    Minimizes E softplus(-(w mu - sum_j eps_j |M_j^T w| + sqrt(w Sigma w) t)), t standard normal, by a Gauss-Hermite
    rule: the logistic loss under the worst x + sum_j M_j zeta_j, |zeta_j| <= eps_j. threats: pairs (M_j [d, m_j],
    eps_j); M = I is the L2 ball of pixels, a decoder's W the generative one, both at once the joint one. Raises
    ValueError if no classifier is better than chance under them.
    """
    nodes, chances = (torch.from_numpy(part).to(mu) for part in np.polynomial.hermite_e.hermegauss(NODES))
    chances = chances / chances.sum()

    def loss(w: Tensor) -> Tensor:
        margins = w @ (mu + _worst(w, threats)) + (w @ covariance @ w).sqrt() * nodes
        return chances @ F.softplus(-margins)

    w = _minimum(loss, torch.linalg.solve(covariance, mu))
    margin = float(w @ (mu + _worst(w, threats)))
    if not margin > 1e-6 * float((w @ covariance @ w).sqrt()):
        raise ValueError(f"threats: budgets {[eps for _, eps in threats]} leave no classifier better than chance.")
    return w


def logistic_samples(x: Tensor, y: Tensor, threats: Sequence[tuple[Tensor, float]]) -> Tensor:
    """The same on samples: every point is attacked, and w [d] is trained on what comes out.

    x: [N, d]; y: [N], -1 or 1; threats: as in `logistic`. Raises ValueError for other labels. On points that a plane
    separates under attack w has no end.
    """
    if not (y.abs() == 1).all():
        raise ValueError(f"y: it holds {sorted(set(y.tolist()))[:3]}; allowed are labels -1 and 1.")

    def loss(w: Tensor) -> Tensor:
        attacked = x + y[:, None] * _worst(w, threats)
        return F.softplus(-y * (attacked @ w)).mean()

    return _minimum(loss, (y[:, None] * x).mean(0))


def recovered(w: Tensor, mu: Tensor, covariance: Tensor, shapes: Tensor) -> tuple[Tensor, float]:
    """c [J], read back from trained weights: the regression of mu on Sigma w and D_1 w ... D_J w.

    If w is in proportion to (Sigma + sum_j c_j D_j)^-1 mu, then mu = kappa (Sigma w + sum_j c_j D_j w) for some kappa.
    shapes: D [J, d, d], M M^T for a threat M. Returns c and the residual by the norm of mu, 0 if w has that form.
    Raises ValueError if the regressors depend on each other: c is then not determined.
    """
    regressors = torch.stack([covariance @ w, *(shape @ w for shape in shapes)], 1)  # [d, 1 + J]
    sizes = regressors.norm(dim=0)
    rank = int(torch.linalg.matrix_rank(regressors / sizes, rtol=1e-10)) if bool((sizes > 0).all()) else 0
    if rank < regressors.shape[1]:  # as where Sigma = W W^T + sigma^2 I exactly, and both I and W W^T are asked for
        raise ValueError("shapes: D w and Sigma w depend on each other; allowed are those for which they do not.")
    found = torch.linalg.lstsq(regressors / sizes, mu[:, None]).solution[:, 0] / sizes
    return found[1:] / found[0], float((regressors @ found - mu).norm() / mu.norm())


def _worst(w: Tensor, threats: Sequence[tuple[Tensor, float]]) -> Tensor:
    """The move that lowers w x most: [d]. No gradient goes through it: the derivative of a maximum needs none."""
    moves = torch.zeros_like(w).detach()
    for matrix, eps in threats:
        moves -= eps * matrix @ F.normalize(w.detach() @ matrix, dim=0, eps=1e-300)
    return moves


def _minimum(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The w of smallest loss, by L-BFGS."""
    w = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [w], max_iter=1000, max_eval=5000, tolerance_grad=1e-13, tolerance_change=0, history_size=50,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(w)
        value.backward()
        return value

    optimizer.step(closure)
    return w.detach()
