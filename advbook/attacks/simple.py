"""The simple black-box attack: one coordinate after the other, down or up, whatever helps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advbook.attacks import norms, search
from advbook.attacks.engine import Network
from advbook.attacks.norms import LINF, Norm
from advbook.attacks.pgd import Attack, at_least
from advbook.attacks.search import Dice, Proposal, Seen
from advbook.attacks.spaces import Pixels
from advbook.attacks.steps import State
from advbook.fleet import Fleet


def simple(
    f: Network | Fleet,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = LINF,
    step: float | None = None,
    queries: int = 1000,
    restarts: int = 10,
    generator: torch.Generator,
    **options: Any,
) -> Attack:
    """SimBA: take the coordinates (channel values) in random order, move one by -step, then by +step, keep what helps.

    The second sign is tried only where the first did not help, and every try is one query, so that the image itself
    and one sweep cost at most 1 + 2 C H W. After a sweep a new one starts, in a new order. Moves are projected onto
    ball and box; what is returned is a point that was judged.

    f: a network or a fleet; x: [B, C, H, W] in [0, 1]; y: [B]. step: by default eps, right for L-inf; in the L2 ball
    choose a smaller one. options: those of search.attack; the objective is the margin by default. Raises ValueError if
    eps < 0, step < 0, queries < 1 or restarts < 1. Source: Guo et al., ICML 2019, algorithm 1, with the pixel basis
    (it tries +step first); defaults: Stutz et al., ICML 2020.
    """
    at_least("eps", eps, 0)
    step = eps if step is None else step
    at_least("step", step, 0)
    return search.attack(
        f, Pixels(x, eps, norm), y, x, start=norms.zero(norm, eps), proposal=coordinates(step), queries=queries,
        restarts=restarts, generator=generator, **options,
    )  # fmt: skip


def coordinates(step: float) -> Proposal:
    """Single coordinates in random order, first -step, then, if that did not help, +step."""

    def start(u: Tensor) -> State:
        column = torch.zeros(len(u), dtype=torch.long, device=u.device)
        return torch.zeros_like(u.flatten(1), dtype=torch.bool), column, torch.zeros_like(column, dtype=torch.bool)

    def propose(state: State, seen: Seen, dice: Dice) -> tuple[State, Tensor]:
        visited, column, other_left = state  # marks of this sweep, the coordinate tried last, whether +step is left
        again = other_left & ~seen.better
        following, marks = dice.unvisited(visited, seen.u)
        column = torch.where(again, column, following)
        visited = torch.where(again[:, None], visited, marks)
        move = torch.where(again, step, -step).to(seen.u)
        candidate = seen.u.flatten(1).scatter_add(1, column[:, None], move[:, None])
        return (visited, column, ~again), candidate.view_as(seen.u)

    return Proposal(start, propose)
