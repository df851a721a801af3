"""The geometry attack: go from the image towards other images of the data set, as far as the ball allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from advbook.attacks import search
from advbook.attacks.engine import Network
from advbook.attacks.norms import LINF, Norm
from advbook.attacks.pgd import Attack, at_least
from advbook.attacks.search import Dice, Proposal, Seen
from advbook.attacks.spaces import Pixels
from advbook.attacks.steps import State
from advbook.fleet import Fleet


@dataclass(frozen=True)
class Around:
    """g(v) = v with v in the ball and the box of `ball`: the perturbed image itself is varied.

    A point of any image is then the same v for all rows, and its projection is the nearest image in the ball.
    """

    ball: Pixels

    def __len__(self) -> int:
        return len(self.ball)

    def __getitem__(self, rows: Tensor) -> Self:
        return type(self)(self.ball[rows])

    def image(self, u: Tensor) -> Tensor:
        """v."""
        return u

    def project(self, u: Tensor) -> Tensor:
        """x + the projection of v - x."""
        return self.ball.image(self.ball.project(u - self.ball.x))


def geometry(
    f: Network | Fleet,
    x: Tensor,
    y: Tensor,
    references: Tensor,
    *,
    eps: float,
    norm: Norm = LINF,
    queries: int | None = None,
    restarts: int = 1,
    generator: torch.Generator,
    **options: Any,
) -> Attack:
    """The best of x and x + P(x_j - x) for reference images x_j, P the projection onto ball and box.

    f: a network or a fleet; x: [B, C, H, W] in [0, 1]; y: [B]; references: [N, C, H, W], images of the training data,
    so that no attacked image is among them. queries: by default 1 + N, the image and every reference once; with fewer,
    every restart takes references in a random order of its own. options: those of search.attack; the objective is the
    margin by default. Raises ValueError if eps < 0, queries is not in 1 ... 1 + N, or restarts < 1. Source: Khoury and
    Hadfield-Menell, 2018; Stutz et al., ICML 2020 (with N = 1000).
    """
    at_least("eps", eps, 0)
    references = references.to(x)
    most = 1 + len(references)
    queries = most if queries is None else queries
    if queries > most:
        raise ValueError(f"queries = {queries}: allowed are at most {most}, the image and every reference once.")

    def start(u: Tensor) -> State:
        return (torch.zeros(len(u), len(references), dtype=torch.bool, device=u.device),)

    def propose(state: State, seen: Seen, dice: Dice) -> tuple[State, Tensor]:
        if not len(references):
            return state, seen.u
        reference, visited = dice.unvisited(state[0], seen.u)
        return (visited,), references[reference]

    return search.attack(
        f, Around(Pixels(x, eps, norm)), y, x, start=lambda like, generator: like.clone(),
        proposal=Proposal(start, propose), queries=queries, restarts=restarts, generator=generator, **options,
    )  # fmt: skip
