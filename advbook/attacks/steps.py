"""Step rules: (state, gradient) -> (state, step). The state's tensors have one row per pair, so that pairs can be
packed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class StepRule:
    """start(u) gives the first state; update(state, gradient) gives the next state and the step of ascent."""

    start: Callable[[Tensor], State]
    update: Callable[[State, Tensor], tuple[State, Tensor]]


def adam(lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> StepRule:
    """Adam with a constant learning rate (Kingma and Ba, 2015), every pair with a clock of its own."""
    beta1, beta2 = betas

    def start(u: Tensor) -> State:
        clock = torch.zeros(len(u), *[1] * (u.ndim - 1), dtype=u.dtype, device=u.device)
        return torch.zeros_like(u), torch.zeros_like(u), clock

    def update(state: State, gradient: Tensor) -> tuple[State, Tensor]:
        mean, square, clock = state
        clock = clock + 1
        mean = torch.lerp(mean, gradient, 1 - beta1)
        square = torch.lerp(square, gradient.square(), 1 - beta2)
        scale = lr / (1 - beta1**clock)
        root = (square / (1 - beta2**clock)).sqrt() + eps
        return (mean, square, clock), scale * mean / root

    return StepRule(start, update)


def sign(lr: float) -> StepRule:
    """A step of lr in every coordinate along the gradient's sign (Madry et al., 2018)."""
    return StepRule(lambda u: (), lambda state, gradient: (state, lr * gradient.sign()))
