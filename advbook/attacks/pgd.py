"""Projected gradient ascent on the cross-entropy: the regular attack, and the same loop in the latent space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advbook.attacks.engine import ascend
from advbook.attacks.norms import linf_ball, linf_start
from advbook.attacks.objectives import cross_entropy, fooled
from advbook.attacks.spaces import Latent, Pixels, Space
from advbook.attacks.steps import StepRule, adam


@dataclass(frozen=True)
class Attack:
    """Examples found for R restarts of B images.

    x: [R, B, C, H, W] in [0, 1]; success: [R, B] bool, the network errs on x; steps: [R, B] gradient steps spent;
    forwards: forward samples per input.
    """

    x: Tensor
    success: Tensor
    steps: Tensor
    forwards: float


def pgd_linf(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 40,
    restarts: int = 5,
    rule: StepRule | None = None,
    generator: torch.Generator,
    label: str | None = None,
) -> Attack:
    """Regular adversarial examples: max over |delta|_inf <= eps of the cross-entropy, each pair until its first
    success.

    x: [B, C, H, W]; y: [B]. rule: the step rule, Adam with learning rate .005 by default, which travels about .005 a
    step in a pixel. The first restart starts like the others, from a random point (norms.linf_start). Raises
    ValueError if eps < 0, steps < 0 or restarts < 1. Source: Stutz et al., CVPR 2019, equation (1).
    """
    _check("eps", eps, 0)
    return _first_success(f, Pixels(x, linf_ball(eps)), x, y, eps, steps, restarts, rule, generator, label)


def pgd_latent(
    f: Callable[[Tensor], Tensor],
    space: Latent,
    y: Tensor,
    *,
    eta: float,
    steps: int = 40,
    restarts: int = 5,
    rule: StepRule | None = None,
    generator: torch.Generator,
    label: str | None = None,
) -> Attack:
    """On-manifold adversarial examples: max over |zeta|_inf <= eta of the cross-entropy of f(dec(z + zeta)).

    space: the latents, whose ball should have the radius eta; the rest as in pgd_linf. Source: Stutz et al., CVPR
    2019, equation (3).
    """
    _check("eta", eta, 0)
    return _first_success(f, space, space.z, y, eta, steps, restarts, rule, generator, label)


def _first_success(
    f: Callable[[Tensor], Tensor],
    space: Space,
    like: Tensor,
    y: Tensor,
    radius: float,
    steps: int,
    restarts: int,
    rule: StepRule | None,
    generator: torch.Generator,
    label: str | None,
) -> Attack:
    _check("restarts", restarts, 1)
    start = torch.stack([linf_start(like, radius, generator) for _ in range(restarts)])
    rule = rule or adam(lr=0.005)
    found = ascend(f, space, y, start, objective=cross_entropy, rule=rule, steps=steps, win=fooled, label=label)
    examples = torch.stack([space.image(u) for u in found.u])
    return Attack(examples, found.won, found.steps, found.forwards)


def _check(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{name} = {value}: allowed is {least} or more.")
