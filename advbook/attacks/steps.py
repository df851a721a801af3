"""Step rules: (state, what is known here) -> (state, next point). One row a pair, so that pairs can be packed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from advbook.attacks.norms import rows

State = tuple[Tensor, ...]
RISES = 0.75  # share of the steps between two checkpoints of Auto-PGD that must raise the objective
Direction = Callable[[Tensor], Tensor]  # a gradient [B, ...] -> a step direction [B, ...]: Norm.direction


class Here(NamedTuple):
    """What the loop knows: the point u [B, ...], the objective there [B], its gradient [B, ...], and the projection
    onto the feasible set.
    """

    u: Tensor
    value: Tensor
    gradient: Tensor
    project: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StepRule:
    """start(u) gives the first state; update(state, here) gives the next state and the next point, which the loop
    projects.
    """

    start: Callable[[Tensor], State]
    update: Callable[[State, Here], tuple[State, Tensor]]


def adam(lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> StepRule:
    """Adam with a constant learning rate (Kingma and Ba, 2015), every pair with a clock of its own."""
    beta1, beta2 = betas

    def start(u: Tensor) -> State:
        return torch.zeros_like(u), torch.zeros_like(u), _column(u, 0)

    def update(state: State, here: Here) -> tuple[State, Tensor]:
        mean, square, clock = state
        clock = clock + 1
        mean = torch.lerp(mean, here.gradient, 1 - beta1)
        square = torch.lerp(square, here.gradient.square(), 1 - beta2)
        scale = lr / (1 - beta1**clock)
        root = (square / (1 - beta2**clock)).sqrt() + eps
        return (mean, square, clock), here.u + scale * mean / root

    return StepRule(start, update)


def ascent(lr: float, direction: Direction, *, momentum: float = 0.0) -> StepRule:
    """A step of length lr along the direction of the gradient, or along its moving average.

    Signs (Madry et al., 2018) with torch.sign, the normalized gradient with another norm's direction. With momentum
    m: g <- m g + (1 - m) direction, step lr g.
    """
    if not momentum:
        return StepRule(lambda u: (), lambda state, here: (state, here.u + lr * direction(here.gradient)))

    def update(state: State, here: Here) -> tuple[State, Tensor]:
        mean = momentum * state[0] + (1 - momentum) * direction(here.gradient)
        return (mean,), here.u + lr * mean

    return StepRule(lambda u: (torch.zeros_like(u),), update)


def sign(lr: float) -> StepRule:
    """A step of lr in every coordinate along the gradient's sign (Madry et al., 2018)."""
    return ascent(lr, torch.sign)


def backtracking(lr: float, direction: Direction, *, momentum: float = 0.9, factor: float = 1.5) -> StepRule:
    """Momentum whose step is taken back where the objective fell, and whose rate, each pair's own, is then divided.

    The point the loop stands at is a candidate: not worse than the last accepted point, it is accepted; worse, the
    search goes on from the last accepted point with the rate divided by `factor`. The moving average takes in the
    accepted point's gradient either way. Source: released code of Stutz et al., ICML 2020.
    """

    def start(u: Tensor) -> State:
        lowest = torch.full((len(u),), -torch.inf, dtype=u.dtype, device=u.device)
        return u, lowest, torch.zeros_like(u), torch.zeros_like(u), _column(u, lr)

    def update(state: State, here: Here) -> tuple[State, Tensor]:
        at, value, gradient, mean, rate = state
        accept = here.value >= value
        wide = rows(accept, here.u)
        at, gradient = torch.where(wide, here.u, at), torch.where(wide, here.gradient, gradient)
        value, rate = torch.where(accept, here.value, value), torch.where(wide, rate, rate / factor)
        mean = momentum * mean + (1 - momentum) * direction(gradient)
        return (at, value, gradient, mean, rate), at + rate * mean

    return StepRule(start, update)


def halving(lr: float, direction: Direction, steps: int, *, keep: float = 0.75) -> StepRule:
    """The step rule of Auto-PGD: momentum on the points, and a rate that is halved at checkpoints.

    At a checkpoint a pair's rate is halved, and it goes back to its best point, if fewer than RISES of the steps
    since the last checkpoint raised the objective, or if neither the rate nor the best value changed since. The next
    point is u + keep (z - u) + (1 - keep) (u - last), where z is the projected plain step. lr: first rate, twice the
    radius as published; steps: the budget, which fixes the checkpoints. Source: Croce and Hein, 2020, section 3.
    """
    since = cache(lambda device: _since_checkpoint(steps).to(device))  # copied to a device once

    def start(u: Tensor) -> State:
        lowest = torch.full((len(u),), -torch.inf, dtype=u.dtype, device=u.device)
        zeros = torch.zeros(len(u), dtype=u.dtype, device=u.device)
        # last point, its value; best point, gradient, value; the value at the last checkpoint; rises; halved; clock
        return u, lowest, u, torch.zeros_like(u), lowest, lowest, zeros, zeros + 1, zeros, _column(u, lr)

    def update(state: State, here: Here) -> tuple[State, Tensor]:
        last, before, best, best_gradient, best_value, mark, rises, halved, clock, rate = state
        rises = rises + ((here.value > before) & (clock > 0))
        better = here.value > best_value
        wide = rows(better, here.u)
        best, best_gradient = torch.where(wide, here.u, best), torch.where(wide, here.gradient, best_gradient)
        best_value = torch.where(better, here.value, best_value)

        span = since(here.u.device)[clock.long().clamp_max(steps)]  # steps since the last checkpoint, 0 if this is none
        stuck = (halved == 0) & (best_value <= mark)
        halve = (span > 0) & ((rises < RISES * span) | stuck)
        mark = torch.where(span > 0, best_value, mark)
        rises, halved = torch.where(span > 0, 0, rises), torch.where(span > 0, halve.to(halved), halved)
        wide = rows(halve, here.u)
        rate = torch.where(wide, rate / 2, rate)
        u, gradient = torch.where(wide, best, here.u), torch.where(wide, best_gradient, here.gradient)

        plain = here.project(u + rate * direction(gradient))
        moved = u + keep * (plain - u) + (1 - keep) * (u - last)
        following = torch.where(rows(clock > 0, u), moved, plain)
        state = (u, here.value, best, best_gradient, best_value, mark, rises, halved, clock + 1, rate)
        return state, following

    return StepRule(start, update)


def _since_checkpoint(steps: int) -> Tensor:
    """How many steps a checkpoint looks back on, by the clock; 0 where there is none: [steps + 1].

    Checkpoints stand at the shares p_0 = 0, p_1 = .22, p_(j+1) = p_j + max(p_j - p_(j-1) - .03, .06) of the steps.
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    points = sorted({min(math.ceil(round(share * steps, 6)), steps) for share in shares})
    since = torch.zeros(steps + 1)
    for earlier, later in pairwise(points):
        since[later] = later - earlier
    return since


def _column(u: Tensor, value: float) -> Tensor:
    """One number a row, shaped to broadcast over the row."""
    return torch.full((len(u), *[1] * (u.ndim - 1)), value, dtype=u.dtype, device=u.device)
