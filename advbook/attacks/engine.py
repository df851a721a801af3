"""The one ascent loop: every gradient attack of the book maximizes objective(f(g(u)), target) over a space of u.

`climb` takes a fixed batch through all steps, without asking the device anything: for training. `ascend` packs the
pairs of images and restarts, keeps only those in work that still stand, and counts: for success rates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from advbook.attacks.norms import rows
from advbook.attacks.packing import Packing, Turn
from advbook.attacks.spaces import Space
from advbook.attacks.steps import Here, State, StepRule
from advbook.fleet import Fleet, count_members

Network = Callable[[Tensor], Tensor]  # images [B, C, H, W] -> outputs, e.g. logits [B, K]; or a Fleet
Objective = Callable[[Tensor, Tensor], Tensor]  # (outputs, target) -> [B]
Win = Callable[[Tensor, Tensor], Tensor]  # (outputs, target) -> [B] bool
Stop = Literal["pair", "image", "never"]
# (f, space, u, target, objective) -> outputs, objective [B] and its gradient [B, ...] at u
Slope = Callable[[Network, Space, Tensor, Tensor, Objective], tuple[Tensor, Tensor, Tensor]]
# (space, u, outputs, target, which slots are in work) -> [B] bool
Judge = Callable[[Space, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Ascent:
    """What the loop found for R restarts of B images ([R, M, B] for a fleet of M).

    u: [R, B, ...] the first winning iterate, or, where none is or none stops, the one of largest objective; won:
    [R, B] bool, whether u wins; value: [R, B] objective at u; steps: [R, B] gradient steps taken before the pair
    left; where the first win of an image ends its other restarts, those that never began stand at their start, with
    value -inf and 0 steps. forwards: samples sent through the networks, idle slots included, by image and member: the
    cost per input, which does not depend on the machine.
    """

    u: Tensor
    won: Tensor
    value: Tensor
    steps: Tensor
    forwards: float


class Pack(NamedTuple):
    """One row a slot: the point, how often it was judged, the best point so far, its value, whether it wins, and the
    step rule's state.
    """

    u: Tensor
    clock: Tensor
    best: Tensor
    value: Tensor
    won: Tensor
    state: State


def gradient(
    f: Network, space: Space, u: Tensor, target: Tensor, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, objective and its gradient by backpropagation: the slope of white-box attacks."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        output = f(space.image(u))
        value = objective(output, target)
        (slope,) = torch.autograd.grad(value.sum(), u)
    return output.detach(), value.detach(), slope


def climb(
    f: Network, space: Space, target: Tensor, start: Tensor, *, objective: Objective, rule: StepRule, steps: int
) -> tuple[Tensor, Tensor]:
    """The best of steps + 1 iterates from one start point a row: u [B, ...] and its objective [B].

    start: [B, ...], rows in the order of the space. f: rows to outputs; a fleet's rows are its members' one after the
    other (Fleet.by_rows). Nothing is asked of the device on the way, so that CUDA can capture the whole ascent.
    """
    if not len(space) == len(target) == len(start):
        raise ValueError(
            f"target: it has {len(target)} rows, the space {len(space)}, the start {len(start)}; they differ."
        )
    pack = _enter(space.project(start), rule)
    for _ in range(steps + 1):
        pack = _advance(pack, f, space, target, objective, rule, steps, gradient, None, False)
    return pack.best, pack.value


def ascend(
    f: Network | Fleet,
    space: Space,
    target: Tensor,
    start: Tensor,
    *,
    objective: Objective,
    rule: StepRule,
    steps: int,
    win: Win | None = None,
    stop: Stop = "pair",
    slope: Slope = gradient,
    draft: Network | Fleet | None = None,
    batch: int = 512,
    label: str | None = None,
) -> Ascent:
    """Maximize objective(f(g(u)), target) from every start point.

    f: images to outputs, or a fleet of M such networks. space, target: B rows, shared by the members, or M B rows, in
    the members' order. start: [R, B, ...], or [R, M, B, ...] for a fleet. steps: gradient steps a pair may take, so
    that f sees it steps + 1 times. win: what an attack wants to see; nothing, without it. stop: "pair": a pair stops
    at its first win (for success rates over restarts); "image": the first win of an image also ends its other
    restarts (for worst cases); "never": the best objective is kept (for confidence and distances). What is judged is
    the projected iterate, as it is returned. slope: how the gradient is found. draft: a faster approximation of f
    that leads the ascent, while f confirms every win and gives the values of what did not stop. batch: pairs in work
    at a time; label: text of the progress bar, none without it. Raises ValueError if steps < 0, batch < 1, stop is
    none of the three, or if the objective is not finite (a network that returns NaN).
    """
    if steps < 0:
        raise ValueError(f"steps = {steps}: an attack takes zero or more gradient steps.")
    if stop not in get_args(Stop):
        raise ValueError(f"stop = {stop!r}: allowed are {', '.join(get_args(Stop))}.")
    if batch < 1:
        raise ValueError(f"batch = {batch}: allowed is 1 or more.")
    members = count_members(f)
    shape = start.shape[: 3 if isinstance(f, Fleet) else 2]
    restarts, images = shape[0], shape[-1]
    for name, rows_given in (("space", len(space)), ("target", len(target))):
        if rows_given not in (images, members * images):
            allowed = images if members == 1 else f"{images} or {members * images}"
            raise ValueError(f"{name}: it has {rows_given} rows; allowed is {allowed}, as the start points say.")
    starts = start.flatten(0, len(shape) - 1)  # [P, ...] with P = R M B pairs
    starts = torch.cat([_of(space, pair).project(starts[pair]) for pair in _pairs(starts).split(batch)] or [starts])
    exact = Counter(f)
    lead = exact if draft is None else Counter(draft)
    stops = win is not None and stop != "never"
    judge = None if win is None else _confirmed(win, exact, members) if draft is not None and stops else _by_output(win)
    packing = Packing(restarts, members, images, batch=batch, together=stop == "image", device=start.device)
    found, value = starts.clone(), torch.full((len(starts),), -torch.inf, dtype=start.dtype, device=start.device)
    won, spent = torch.zeros_like(value, dtype=torch.bool), torch.zeros_like(value, dtype=torch.long)
    every = 1 if start.device.type == "cpu" else 4  # asking a GPU which pairs are done costs more than a few steps

    pack = _enter(starts[packing.pair], rule)
    here, goal = _of(space, packing.pair), target[packing.pair % len(target)]
    with tqdm(total=len(starts), desc=label, disable=label is None, unit="pair", leave=False) as bar:
        while packing:
            for _ in range(every):
                pack = _advance(pack, lead, here, goal, objective, rule, steps, slope, judge, stops)
            finite(pack.value)
            turn = packing.turn((pack.won & stops) | (pack.clock > steps), pack.won & stops)
            if not len(turn.left):
                continue
            found[turn.pair], value[turn.pair] = pack.best[turn.left], pack.value[turn.left]
            won[turn.pair], spent[turn.pair] = pack.won[turn.left], pack.clock[turn.left] - 1
            bar.update(len(turn.left))
            pack = _turned(pack, turn, starts[packing.pair[turn.entered]], rule)
            here, goal = _of(space, packing.pair), target[packing.pair % len(target)]
    if draft is not None:
        _settle(exact, space, target, found, value, won, objective, win, shape, batch, stop)
    samples = exact.samples + (0 if draft is None else lead.samples)
    forwards = samples / max(members * images, 1)
    return Ascent(found.view(start.shape), won.view(shape), value.view(shape), spent.view(shape), forwards)


@torch.no_grad()
def outputs(f: Network, x: Tensor, *, batch: int = 512) -> Tensor:
    """What a network says of many images, batch by batch: [N, C, H, W] -> [N, ...].

    Raises ValueError if it is not finite.
    """
    found = torch.cat([f(part) for part in x.split(batch)])
    if not bool(found.isfinite().all()):
        raise ValueError("The network's output is not finite: it returned NaN or infinity.")
    return found


class Counter:
    """A network, or a fleet by its rows, that counts the samples it is shown."""

    def __init__(self, f: Network | Fleet) -> None:
        self.samples = 0
        self._f = f.by_rows if isinstance(f, Fleet) else f

    def __call__(self, x: Tensor) -> Tensor:
        """The outputs of the rows x."""
        self.samples += len(x)
        return self._f(x)


def _advance(
    pack: Pack,
    f: Network,
    space: Space,
    target: Tensor,
    objective: Objective,
    rule: StepRule,
    steps: int,
    slope: Slope,
    judge: Judge | None,
    stops: bool,
) -> Pack:
    """Look at every slot's point, keep the best, and move on. Slots that are done no longer change what they found."""
    output, score, ascending = slope(f, space, pack.u, target, objective)
    score = score.to(pack.value)  # a network may answer in another precision than its images have
    live = (pack.clock <= steps) & ~(pack.won & stops)
    success = torch.zeros_like(live) if judge is None else judge(space, pack.u, output, target, live)
    # Written so that a score of NaN is taken over and stays, and so is seen.
    better = live & ((success & stops) | ~(score <= pack.value)) & ~pack.value.isnan()
    best = torch.where(rows(better, pack.u), pack.u, pack.best)
    value = torch.where(better, score, pack.value)
    state, following = rule.update(pack.state, Here(pack.u, score, ascending, space.project))
    return Pack(space.project(following), pack.clock + live, best, value, torch.where(better, success, pack.won), state)


def _enter(u: Tensor, rule: StepRule) -> Pack:
    """Slots at their start points, clocks at zero."""
    clock = torch.zeros(len(u), dtype=torch.long, device=u.device)
    lowest = torch.full((len(u),), -torch.inf, dtype=u.dtype, device=u.device)
    return Pack(u, clock, u, lowest, torch.zeros_like(clock, dtype=torch.bool), rule.start(u))


def _turned(pack: Pack, turn: Turn, fresh: Tensor, rule: StepRule) -> Pack:
    """The pack after some slots were dropped, or refilled with fresh start points (in place)."""
    if turn.keep is not None:
        u, clock, best, value, won = (part[turn.keep] for part in pack[:-1])
        pack = Pack(u, clock, best, value, won, tuple(part[turn.keep] for part in pack.state))
    if len(turn.entered):
        entering = _enter(fresh, rule)
        for part, new in zip([*pack[:-1], *pack.state], [*entering[:-1], *entering.state], strict=True):
            part[turn.entered] = new
    return pack


def _by_output(win: Win) -> Judge:
    return lambda space, u, output, target, live: win(output, target)


def _confirmed(win: Win, f: Counter, members: int) -> Judge:
    """A win that the draft claims counts if the network itself confirms it."""

    @torch.no_grad()
    def judge(space: Space, u: Tensor, output: Tensor, target: Tensor, live: Tensor) -> Tensor:
        claimed = win(output, target) & live
        slots = claimed.nonzero()[:, 0] if members == 1 else _pairs(u)[: len(u) * bool(claimed.any())]
        if len(slots):
            claimed[slots] &= win(finite(f(space[slots].image(u[slots]))), target[slots])
        return claimed

    return judge


@torch.no_grad()
def _settle(
    f: Counter,
    space: Space,
    target: Tensor,
    found: Tensor,
    value: Tensor,
    won: Tensor,
    objective: Objective,
    win: Win | None,
    shape: torch.Size,
    batch: int,
    stop: Stop,
) -> None:
    """What the draft left open is judged by the network itself, in place: values, and wins that the draft missed."""
    members = shape[1] if len(shape) == 3 else 1
    stopped = torch.zeros_like(won) if stop == "never" else won.clone()
    if members == 1:
        beaten = stopped.view(shape).any(0).expand(shape).flatten() if stop == "image" else stopped
        open_pairs = (~beaten).nonzero().T  # [1, n]
    else:
        open_pairs = _pairs(found).view(shape).transpose(0, 1).flatten(1)  # [M, R B]
    for pair in (part.flatten() for part in open_pairs.split(max(batch // members, 1), dim=1) if part.numel()):
        here, goal = _of(space, pair), target[pair % len(target)]
        output = f(here.image(found[pair]))
        score = finite(objective(output, goal)).to(value)
        late = torch.zeros_like(won[pair]) if win is None else win(output, goal)
        value[pair] = torch.where(stopped[pair], value[pair], score)
        won[pair] = stopped[pair] | late


def finite(values: Tensor) -> Tensor:
    """The values themselves; raises ValueError if one is NaN or infinite."""
    if not bool(values.isfinite().all()):
        raise ValueError("The attack's objective is not finite: the network returned NaN or infinity.")
    return values


def _of(space: Space, pair: Tensor) -> Space:
    """The rows of pairs in a space of B rows, or of M B."""
    return space[pair % len(space)]


def _pairs(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), device=rows.device)
