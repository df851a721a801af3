"""Distal adversarial examples: noise that a network is sure about, whatever class it names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advbook.attacks import norms, pgd
from advbook.attacks.engine import Network
from advbook.attacks.norms import LINF
from advbook.attacks.objectives import top_confidence
from advbook.attacks.pgd import Attack, at_least
from advbook.attacks.spaces import Pixels
from advbook.attacks.steps import StepRule, backtracking
from advbook.fleet import Fleet


def distal(
    f: Network | Fleet,
    x: Tensor,
    *,
    eps: float,
    tau: float = 0.5,
    steps: int = 100,
    restarts: int = 1,
    rule: StepRule | None = None,
    generator: torch.Generator,
    **options: Any,
) -> Attack:
    """Distal adversarial examples: max over |delta| <= eps of max_k log p_k(x + delta), around noise x.

    f: a network or a fleet; x: [B, C, H, W], see `noise`. Noise has no class, so nothing stops the ascent: the best
    point of every restart is kept, `value` is the log of its confidence, and `success` says that this confidence is at
    least tau. rule: by default sign steps of .001 with momentum .9 and backtracking by 1.3. options: batch, label,
    slope and draft, as in pgd.attack. Raises ValueError if eps < 0, tau is not in [0, 1], steps < 0 or restarts < 1.
    Source: Hein et al., CVPR 2019; defaults: Stutz et al., ICML 2020 (and 1000 steps with 10 restarts).
    """
    at_least("eps", eps, 0)
    if not 0 <= tau <= 1:
        raise ValueError(f"tau = {tau}: allowed are confidences from 0 to 1.")
    unused = torch.zeros(len(x), dtype=torch.long, device=x.device)  # a label, which the objective does not look at
    return pgd.attack(
        f, Pixels(x, eps), unused, x, start=norms.shells(LINF, eps),
        rule=rule or backtracking(0.001, torch.sign, factor=1.3), steps=steps, restarts=restarts, generator=generator,
        objective=top_confidence, win=lambda logits, _: logits.softmax(1).amax(1) >= tau, stop="never", **options,
    )  # fmt: skip


def noise(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Images of independent uniform values: [count, *shape] in [0, 1), on the generator's device."""
    return torch.rand((count, *shape), generator=generator, device=generator.device)
