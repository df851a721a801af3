"""Carlini and Wagner's L2 attack: the smallest perturbation that fools, instead of the most fooling in a ball.

A loop of its own, since what is kept is not what is followed: the nearest example, not the least loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from advbook.attacks.engine import Counter, Network, outputs
from advbook.attacks.norms import rows
from advbook.attacks.objectives import fooled, margin
from advbook.attacks.pgd import Attack, at_least
from advbook.attacks.steps import Here, adam
from advbook.fleet import Fleet

CLOSED = 1.1  # an image's search is over when the least constant that won is within this factor of one that did not


def carlini_wagner(
    f: Network,
    x: Tensor,
    y: Tensor,
    *,
    kappa: float = 0.0,
    lr: float = 0.01,
    steps: int = 1_000,
    searches: int = 9,
    constant: float = 1e-3,
    batch: int = 512,
) -> Attack:
    """Small perturbations: min over w of |g(w) - x|_2^2 + c max(z_y - max_{k != y} z_k + kappa, 0) with
    g(w) = (tanh(w) + 1) / 2.

    f: a network, z its logits; x: [B, C, H, W]; y: [B]. Every image has its own c: `constant` at first, ten times that
    until one wins, then halfway between the least that won and the greatest that did not. For each of at most
    `searches` values Adam takes `steps` steps from the clean image. A c has won if an example is among the later half
    of the iterates: Adam's first steps have the same length for every c, and may cross a near border for any. kappa:
    the margin that an example must have; above 0, it can bear some rounding. Images that f gets wrong by kappa need no
    search, and an image whose c is known to a tenth leaves it.

    One row [1, B]: x the nearest example of all iterates, or the clean image; value: the margin of x; steps: over all
    searches. There is no eps: the distance is the result. Raises ValueError if a parameter is out of range, for a
    fleet, or if f returns NaN. Source: Carlini and Wagner, 2017, sections V and VI.A. The paper takes 20 searches of
    10,000 steps; the released code 9, these constants, and any example for a c that won.
    """
    at_least("kappa", kappa, 0)
    at_least("searches", searches, 1)
    if not constant > 0:
        raise ValueError(f"constant = {constant}: allowed is more than 0.")
    form = Form(lambda delta: delta.square().sum(1), hinge=kappa, kappa=kappa, guard=1e-6, lr=lr, steps=steps)
    return _search(f, x, y, form, searches, constant, batch)


def carlini_wagner_fixed(
    f: Network, x: Tensor, y: Tensor, *, lr: float = 0.005, steps: int = 120, batch: int = 512
) -> Attack:
    """The form without a search: min over w of |g(w) - x|_2 + max(z_y - max_{k != y} z_k, -3).

    The rest as in carlini_wagner. The released code stops at the first example; this keeps the nearest, which comes
    close to it. It also puts 0 in the place of the true logit before it takes the maximum: where all other logits are
    negative it lowers z_y without regard to them. Here the true logit is left out. Source: Stutz et al., CVPR 2019,
    released code.
    """
    form = Form(lambda delta: delta.norm(dim=1), hinge=3.0, kappa=0.0, guard=1e-5, lr=lr, steps=steps)
    return _search(f, x, y, form, 1, 1.0, batch)


class Form(NamedTuple):
    """size(delta) + c max(hinge - margin, 0), size: [B, D] -> [B]; an example errs by kappa; guard: how far images are
    drawn towards grey before the tanh is inverted, since 0 and 1 have no finite w; lr, steps: of Adam.
    """

    size: Callable[[Tensor], Tensor]
    hinge: float
    kappa: float
    guard: float
    lr: float
    steps: int

    def wins(self, logits: Tensor, y: Tensor) -> Tensor:
        """Whether f errs, and by kappa: [B] bool."""
        return fooled(logits, y) & (margin(logits, y) >= self.kappa)


class Descent(NamedTuple):
    """For one c an image: the nearest example [B, C, H, W], its |delta|_2^2 (infinite without one) and margin [B], and
    whether c has won.
    """

    x: Tensor
    distance: Tensor
    margin: Tensor
    won: Tensor


def _search(f: Network, x: Tensor, y: Tensor, form: Form, searches: int, constant: float, batch: int) -> Attack:
    """The nearest example of all constants."""
    at_least("lr", form.lr, 0)
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError("x: allowed are values from 0 to 1.")
    at_least("steps", form.steps, 0)
    if isinstance(f, Fleet):
        raise ValueError(f"f is a fleet of {f.members}: allowed is one network, for instance one of its unstack().")
    counted = Counter(f)
    logits = outputs(counted, x, batch=batch)
    found, value = x.clone(), margin(logits, y)
    nearest = torch.where(form.wins(logits, y), 0.0, torch.inf).to(x)
    low, high, c = torch.zeros_like(nearest), torch.full_like(nearest, torch.inf), torch.full_like(nearest, constant)
    spent = torch.zeros_like(y)
    for _ in range(searches):
        left = ((nearest > 0) & (high > CLOSED * low)).nonzero()[:, 0]
        for part in left.split(batch) if len(left) else ():
            best = _descend(counted, x[part], y[part], c[part], form)
            closer = best.distance < nearest[part]
            at = part[closer]
            found[at], nearest[at], value[at] = best.x[closer], best.distance[closer], best.margin[closer]
            low[part] = torch.where(best.won, low[part], c[part])
            high[part] = torch.where(best.won, c[part], high[part])
        spent[left] += form.steps
        c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
    won = nearest.isfinite()
    return Attack(found[None], won[None], value[None], spent[None], counted.samples / max(len(x), 1))


def _descend(f: Network, x: Tensor, y: Tensor, c: Tensor, form: Form) -> Descent:
    """Adam from the clean images; the iterates are judged as they are."""
    rule, w = adam(form.lr), ((2 * x - 1) * (1 - form.guard)).atanh()
    state = rule.start(w)
    best = Descent(x, torch.full_like(c, torch.inf), torch.zeros_like(c), torch.zeros_like(y, dtype=torch.bool))
    sound = torch.ones_like(best.won)
    for step in range(form.steps + 1):
        with torch.enable_grad():
            w = w.detach().requires_grad_()
            image = (w.tanh() + 1) / 2
            logits = f(image)
            delta, score = (image - x).flatten(1), margin(logits, y)
            loss = form.size(delta) + c * (form.hinge - score).clamp_min(0)
            (slope,) = torch.autograd.grad(loss.sum(), w)
        hit, distance = form.wins(logits, y), delta.square().sum(1)
        best = _nearer(best, Descent(image, distance, score, hit & (2 * step >= form.steps)), hit)
        sound &= score.isfinite()
        state, w = rule.update(state, Here(w, -loss, -slope, lambda u: u))
    if not bool(sound.all()):
        raise ValueError("The attack's objective is not finite: the network returned NaN or infinity.")
    return Descent(*(part.detach() for part in best))


def _nearer(best: Descent, here: Descent, hit: Tensor) -> Descent:
    """The nearer of two examples; c has won if it ever did."""
    closer = hit & (here.distance < best.distance)
    x = torch.where(rows(closer, best.x), here.x, best.x)
    distance = torch.where(closer, here.distance, best.distance)
    return Descent(x, distance, torch.where(closer, here.margin, best.margin), best.won | here.won)
