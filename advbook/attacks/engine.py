"""The one ascent loop: every gradient attack of the book maximizes objective(f(g(u)), target) over a space of u.

Restarts and images are packed together as pairs. A batch holds only pairs that still stand: a pair that is won, or
has spent its steps, leaves, and the next one takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from advbook.attacks.spaces import Space
from advbook.attacks.steps import StepRule

Objective = Callable[[Tensor, Tensor], Tensor]
Pack = tuple[Tensor, ...]  # pair, clock, u, best u, best value, and the step rule's state: one row a pair


@dataclass(frozen=True)
class Ascent:
    """What the loop found for R restarts of B images.

    u: [R, B, ...] the first winning iterate, or, where nothing was won, the one of largest objective; won: [R, B]
    bool; value: [R, B] objective at u; steps: [R, B] gradient steps taken before the pair left; forwards: samples
    sent through f, divided by B: the cost per input, which does not depend on the machine.
    """

    u: Tensor
    won: Tensor
    value: Tensor
    steps: Tensor
    forwards: float


def ascend(
    f: Callable[[Tensor], Tensor],
    space: Space,
    target: Tensor,
    start: Tensor,
    *,
    objective: Objective,
    rule: StepRule,
    steps: int,
    win: Callable[[Tensor, Tensor], Tensor] | None = None,
    batch: int = 512,
    label: str | None = None,
) -> Ascent:
    """Maximize objective(f(g(u)), target) from every start point.

    f: images to outputs, e.g. logits [b, K]; space: B rows; target: [B, ...] (labels, say); start: [R, B, ...];
    steps: gradient steps a pair may take, so that f sees it steps + 1 times; win(output, target) -> [b] bool: a pair
    stops at its first win (for success rates), and without `win` none stops and the best objective is kept (for
    training, confidence and distances). What is judged is the projected iterate, as it is returned. batch: pairs in
    work at a time; label: text of the progress bar, none without it. Raises ValueError if steps < 0, or if the
    objective is not finite (a network that returns NaN).
    """
    if steps < 0:
        raise ValueError(f"steps = {steps}: an attack takes zero or more gradient steps.")
    restarts, images = start.shape[:2]
    starts = start.flatten(0, 1)  # [P, ...] with P = R B pairs
    waiting = torch.arange(restarts * images, device=start.device)
    found = starts.clone()
    value = torch.full(waiting.shape, -torch.inf, dtype=start.dtype, device=start.device)
    won, spent = torch.zeros_like(waiting, dtype=torch.bool), torch.zeros_like(waiting)
    pack, waiting = _enter(space, starts, waiting[:batch], images, rule), waiting[batch:]
    samples = 0

    with tqdm(total=len(starts), desc=label, disable=label is None, unit="pair", leave=False) as bar:
        while len(pack[0]):
            pair, clock, u, best, best_value, *state = pack
            here, goal = space[pair % images], target[pair % images]
            score, success, gradient = _judge(f, here, u, goal, objective, win)
            samples += len(u)
            better = success | (score > best_value)
            best = torch.where(_rows(better, u), u, best)
            best_value = torch.where(better, score, best_value)

            done = success | (clock >= steps)
            left = pair[done]
            found[left], value[left], won[left] = best[done], best_value[done], success[done]
            spent[left] = clock[done]
            bar.update(len(left))

            moved, step = rule.update(tuple(state), gradient)
            pack = (pair, clock + 1, here.project(u + step), best, best_value, *moved)
            if len(left):
                entering, waiting = waiting[: len(left)], waiting[len(left) :]
                pack = _join(_take(pack, ~done), _enter(space, starts, entering, images, rule))
    shape = (restarts, images)
    forwards = samples / max(images, 1)
    return Ascent(found.view(start.shape), won.view(shape), value.view(shape), spent.view(shape), forwards)


def _judge(
    f: Callable[[Tensor], Tensor],
    space: Space,
    u: Tensor,
    target: Tensor,
    objective: Objective,
    win: Callable[[Tensor, Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Objective, win and gradient at u: [b], [b], [b, ...]."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        output = f(space.image(u))
        score = objective(output, target)
        (gradient,) = torch.autograd.grad(score.sum(), u)
    score = score.detach()
    if not score.isfinite().all():
        raise ValueError("The attack's objective is not finite: the network returned NaN or infinity.")
    success = torch.zeros_like(score, dtype=torch.bool) if win is None else win(output.detach(), target)
    return score, success, gradient


def _enter(space: Space, starts: Tensor, pair: Tensor, images: int, rule: StepRule) -> Pack:
    """Pairs at their start points, clocks at zero."""
    u = space[pair % images].project(starts[pair])
    lowest = torch.full(pair.shape, -torch.inf, dtype=u.dtype, device=u.device)
    return (pair, torch.zeros_like(pair), u, u, lowest, *rule.start(u))


def _take(pack: Pack, rows: Tensor) -> Pack:
    return tuple(part[rows] for part in pack)


def _join(first: Pack, second: Pack) -> Pack:
    return tuple(torch.cat(both) for both in zip(first, second, strict=True))


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    """A mask [b] shaped to broadcast over the rows of `like` [b, ...]."""
    return mask.view(-1, *[1] * (like.ndim - 1))
