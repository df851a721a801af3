"""Random search: try a point, keep it if the objective is larger. What black-box attacks share.

A search is an ascent that sees no gradient: the engine's loop packs, judges, stops and counts, and a proposal takes
the place of the step rule. So every option of the engine holds here too, and a pair's first point is its first query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advbook.attacks import pgd
from advbook.attacks.engine import Ascent, Network, Objective, ascend
from advbook.attacks.norms import Start, rows, uniform
from advbook.attacks.objectives import margin
from advbook.attacks.pgd import Attack, at_least
from advbook.attacks.spaces import Space
from advbook.attacks.steps import Here, State, StepRule
from advbook.fleet import Fleet, count_members


class Seen(NamedTuple):
    """What a proposal knows, a row a slot: the best point so far [S, ...], its objective [S], whether the point judged
    last is that best one [S] bool, and how many points were judged, the start among them [S].
    """

    u: Tensor
    value: Tensor
    better: Tensor
    clock: Tensor


@dataclass(frozen=True)
class Dice:
    """Random numbers for all slots, the same for every member of a fleet: equal members find the same."""

    generator: torch.Generator
    members: int

    def rows(self, draw: Start, like: Tensor) -> Tensor:
        """Random rows in the shape of `like`: [S, ...]."""
        own = draw(like[: len(like) // self.members], self.generator)
        return own.repeat(self.members, *[1] * (like.ndim - 1))

    def uniform(self, u: Tensor, count: int) -> Tensor:
        """Uniform numbers in [0, 1), with the type and device of u: [S, count]."""
        return self.rows(uniform, u.new_empty(len(u), count))

    def unvisited(self, visited: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """A random column that is not marked in its row of `visited` [S, N], and the marks with it: [S] and [S, N].

        Where all are marked, all are free again.
        """
        visited = visited & ~visited.all(1, keepdim=True)
        column = self.uniform(u, visited.shape[1]).masked_fill(visited, -1).argmax(1)
        return column, visited.scatter(1, column[:, None], True)


@dataclass(frozen=True)
class Proposal:
    """start(u) gives the first state; propose(state, seen, dice) gives the next state and the next candidate, which the
    loop projects. All randomness comes from the dice.
    """

    start: Callable[[Tensor], State]
    propose: Callable[[State, Seen, Dice], tuple[State, Tensor]]


def search(
    f: Network | Fleet,
    space: Space,
    target: Tensor,
    start: Tensor,
    *,
    proposal: Proposal,
    queries: int,
    generator: torch.Generator,
    **options: Any,
) -> Ascent:
    """Maximize objective(f(g(u)), target) by trying `queries` points from every start point, the start among them.

    A candidate replaces the best point if its objective is strictly larger: with a tie the older point stays. options:
    objective, win, stop, draft, batch and label, as in engine.ascend, as are all shapes. The result's `steps` are the
    candidates tried after the start, so that a pair costs steps + 1 queries. Raises ValueError if queries < 1, or if
    the objective is not finite.
    """
    at_least("queries", queries, 1)
    rule = walk(proposal, dice(f, generator))
    return ascend(f, space, target, start, rule=rule, steps=queries - 1, slope=blind, **options)


def attack(
    f: Network | Fleet,
    space: Space,
    y: Tensor,
    like: Tensor,
    *,
    start: Start,
    proposal: Proposal,
    queries: int,
    restarts: int,
    generator: torch.Generator,
    objective: Objective = margin,
    **options: Any,
) -> Attack:
    """Any random-search attack: search in a space from R start points a row, and give images.

    like: [B, ...], shaped as the space's u. options: win, stop, draft, batch and label, as in pgd.attack. The result's
    `steps` are the candidates tried after the start. Raises ValueError if queries < 1 or restarts < 1.
    """
    at_least("queries", queries, 1)
    return pgd.attack(
        f, space, y, like, start=start, rule=walk(proposal, dice(f, generator)), steps=queries - 1, restarts=restarts,
        generator=generator, slope=blind, objective=objective, **options,
    )  # fmt: skip


def dice(f: Network | Fleet, generator: torch.Generator) -> Dice:
    """The dice for a network or a fleet."""
    return Dice(generator, count_members(f))


@torch.no_grad()
def blind(f: Network, space: Space, u: Tensor, target: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and objective from one forward pass, and zeros for the gradient: the slope of a search."""
    output = f(space.image(u))
    return output, objective(output, target), u.new_zeros(()).expand_as(u)


def walk(proposal: Proposal, dice: Dice) -> StepRule:
    """The step rule that keeps each pair's best point and moves to the candidate proposed from it."""

    def start(u: Tensor) -> State:
        lowest = torch.full((len(u),), -torch.inf, dtype=u.dtype, device=u.device)
        return u, lowest, torch.zeros_like(lowest, dtype=torch.long), *proposal.start(u)

    def update(state: State, here: Here) -> tuple[State, Tensor]:
        best, value, clock, *own = state
        better = here.value > value
        best, value = torch.where(rows(better, best), here.u, best), torch.where(better, here.value, value)
        following, candidate = proposal.propose(tuple(own), Seen(best, value, better, clock + 1), dice)
        return (best, value, clock + 1, *following), candidate

    return StepRule(start, update)
