"""Random points of the ball: the attack that every other attack has to beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from advbook.attacks import norms, search
from advbook.attacks.engine import Network
from advbook.attacks.norms import LINF, Norm, Start
from advbook.attacks.pgd import Attack, at_least
from advbook.attacks.search import Dice, Proposal, Seen
from advbook.attacks.spaces import Pixels
from advbook.attacks.steps import State
from advbook.fleet import Fleet


def random_search(
    f: Network | Fleet,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = LINF,
    points: Callable[[Norm, float], Start] = norms.volume,
    queries: int = 1000,
    restarts: int = 5,
    generator: torch.Generator,
    **options: Any,
) -> Attack:
    """The best of `queries` independent random points of the ball, projected onto the image box.

    f: a network or a fleet; x: [B, C, H, W] in [0, 1]; y: [B]. points: norms.volume, uniform in the ball, or
    norms.shells, uniform in norm. queries: per restart. options: those of search.attack; the objective is the margin by
    default. Raises ValueError if eps < 0, queries < 1 or restarts < 1. Defaults: those of Stutz et al., ICML 2020.
    """
    at_least("eps", eps, 0)
    draw = points(norm, eps)

    def propose(state: State, seen: Seen, dice: Dice) -> tuple[State, Tensor]:
        return state, dice.rows(draw, seen.u)

    return search.attack(
        f, Pixels(x, eps, norm), y, x, start=draw, proposal=Proposal(lambda u: (), propose), queries=queries,
        restarts=restarts, generator=generator, **options,
    )  # fmt: skip
