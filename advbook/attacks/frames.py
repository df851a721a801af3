"""Adversarial frames: the border of the image is replaced, the inside is untouched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advbook.attacks import pgd
from advbook.attacks.engine import Network, Objective
from advbook.attacks.norms import uniform
from advbook.attacks.objectives import log_odds
from advbook.attacks.pgd import Attack, at_least
from advbook.attacks.spaces import Masked
from advbook.attacks.steps import StepRule, backtracking
from advbook.fleet import Fleet


def frames(
    f: Network | Fleet,
    x: Tensor,
    y: Tensor,
    *,
    w: int | None = None,
    steps: int = 100,
    restarts: int = 5,
    rule: StepRule | None = None,
    generator: torch.Generator,
    objective: Objective = log_odds,
    **options: Any,
) -> Attack:
    """Adversarial frames: every pixel of a border w wide takes any value in [0, 1], from random values on.

    f: a network or a fleet; x: [B, C, H, W] in [0, 1]; y: [B]. w: pixels, by default H // 10, at least 1. rule: by
    default sign steps of .05 with momentum .9 and backtracking by 1.25. options: those of pgd.attack. Raises ValueError
    if w < 0, steps < 0 or restarts < 1. Source: Zajac et al., AAAI 2019; defaults after Stutz et al., ICML 2020 (with
    200 steps and 50 restarts on the cross-entropy, 1000 steps of .01 and 5 restarts on the confidence).
    """
    height, width = x.shape[2:]
    mask = border(height, width, max(height // 10, 1) if w is None else w).to(x)

    def start(like: Tensor, random: torch.Generator) -> Tensor:
        values = uniform(like, random)
        return mask * (values - like)

    rule = rule or backtracking(0.05, torch.sign, factor=1.25)
    return pgd.attack(
        f, Masked(x, mask), y, x, start=start, rule=rule, steps=steps, restarts=restarts, generator=generator,
        objective=objective, **options,
    )  # fmt: skip


def border(height: int, width: int, w: int) -> Tensor:
    """1 on the pixels less than w from the edge, 0 inside: [height, width]. Raises ValueError if w < 0."""
    at_least("w", w, 0)
    mask = torch.ones(height, width)
    mask[w : height - w, w : width - w] = 0
    return mask
