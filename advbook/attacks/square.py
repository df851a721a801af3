"""The Square Attack: random search with square windows, which convolutional networks react to most."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advbook.attacks import search
from advbook.attacks.engine import Network
from advbook.attacks.norms import L2, LINF, Norm, Start, rows
from advbook.attacks.pgd import Attack, at_least
from advbook.attacks.search import Dice, Proposal, Seen
from advbook.attacks.spaces import Pixels
from advbook.attacks.steps import State
from advbook.fleet import Fleet

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # windows after which p is halved, if there are 10,000
TILES = 5  # the L2 attack starts from a grid of so many tiles on a side


def square(
    f: Network | Fleet,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = LINF,
    p: float = 0.05,
    queries: int = 5000,
    restarts: int = 1,
    generator: torch.Generator,
    **options: Any,
) -> Attack:
    """Random search over square windows, each pair with windows and signs of its own, larger ones first.

    The side of a window is the integer nearest to sqrt(p H W), at least 1 (L2: 3), at most the shorter side of the
    image; p is halved at windows 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000 of 10,000, rescaled to the number of
    queries. f: a network or a fleet; x: [B, C, H, W] in [0, 1]; y: [B]; norm: LINF or L2. p: the first share of pixels;
    published are .05 (L-inf) and .1 (L2), and more, up to .8, for robust networks. options: those of search.attack; the
    objective is the margin by default. Raises ValueError for another norm, eps < 0, p not in (0, 1], queries < 1 or
    restarts < 1. Source: Andriushchenko et al., ECCV 2020, algorithms 1 to 3; defaults: Stutz et al., ICML 2020.
    """
    at_least("eps", eps, 0)
    if not 0 < p <= 1:
        raise ValueError(f"p = {p}: allowed are shares above 0, up to 1.")
    if norm not in (LINF, L2):
        raise ValueError(f"norm = {norm.name}: allowed are linf and l2.")
    start, windows, least = (stripes, signed_windows, 1) if norm is LINF else (tiles, bump_windows, 3)
    at_least("queries", queries, 1)
    sides = window_sides(p, x.shape[2], x.shape[3], least, queries).to(x.device)
    return search.attack(
        f, Pixels(x, eps, norm), y, x, start=start(eps), proposal=windows(eps, sides), queries=queries,
        restarts=restarts, generator=generator, **options,
    )  # fmt: skip


def window_sides(p: float, height: int, width: int, least: int, queries: int) -> Tensor:
    """The side of a pair's window number i, for i = 0 ... queries; the first window is number 1: [queries + 1]."""
    nearest = (round(math.sqrt(p / 2**times * height * width)) for times in range(len(HALVINGS) + 1))
    sides = torch.tensor([min(max(side, least), height, width) for side in nearest])
    halved = 10_000 * torch.arange(queries + 1)[:, None] >= queries * torch.tensor(HALVINGS)
    return sides[halved.sum(1)]


# --- L-inf --------------------------------------------------------------------------------------------------------


def stripes(eps: float) -> Start:
    """Vertical stripes one pixel wide, each channel of each stripe at -eps or eps."""

    def start(like: Tensor, generator: torch.Generator) -> Tensor:
        draw = torch.rand(like[:, :, :1].shape, generator=generator, device=generator.device)
        return eps * _sign(draw.to(like)).expand_as(like)

    return start


def signed_windows(eps: float, sides: Tensor) -> Proposal:
    """One window: all its pixels go to eps or to -eps, by a sign for each channel (algorithm 2)."""

    def propose(state: State, seen: Seen, dice: Dice) -> tuple[State, Tensor]:
        channels, height, width = seen.u.shape[1:]
        side = sides[seen.clock.clamp_max(len(sides) - 1)]
        draw = dice.uniform(seen.u, 2 + channels)
        top, left = _place(draw[:, 0], height, side), _place(draw[:, 1], width, side)
        sign = _sign(draw[:, 2:])[:, :, None, None]
        return state, seen.u + 2 * eps * sign * _window(seen.u, top, left, side)  # 2 eps: to the ball's other end

    return Proposal(lambda u: (), propose)


# --- L2 -----------------------------------------------------------------------------------------------------------


def bump(height: int, width: int) -> Tensor:
    """A pyramid of centred squares, 1 / (d + 1)^2 + ... + 1 / (n + 1)^2 at distance d from the centre, n = height // 2.

    width <= height. Returns [height, width]. Source: Andriushchenko et al., ECCV 2020, eta.
    """
    far = (torch.arange(height) - height // 2).abs()[:, None].maximum((torch.arange(width) - width // 2).abs())
    sums: Tensor = (1 / torch.arange(height // 2 + 1, 0, -1, dtype=torch.float64) ** 2).cumsum(0).flip(0)
    return sums[far]


def bumps(side: int) -> Tensor:
    """A bump up beside a bump down, of norm 1: [side, side]."""
    pair = torch.cat([bump(side, side // 2), -bump(side, side - side // 2)], 1)
    unit: Tensor = pair / pair.norm()
    return unit


def tiles(eps: float) -> Start:
    """A centred grid of tiles, each a pair of bumps, turned at random, a sign for each channel; norm eps in all."""

    def start(like: Tensor, generator: torch.Generator) -> Tensor:
        count, channels, height, width = like.shape
        side = max(min(height, width) // TILES, 1)
        down, across = height // side, width // side
        draw = torch.rand((count, channels + 1, down, across), generator=generator, device=generator.device).to(like)
        shape, sign = bumps(side).to(like), _sign(draw)[..., None, None]
        turned = torch.where(sign[:, :1] > 0, shape, shape.T)  # [B, 1, down, across, side, side]
        grid = (sign[:, 1:] * turned).transpose(3, 4).flatten(4, 5).flatten(2, 3)  # [B, C, down side, across side]
        spare, rest = height - down * side, width - across * side
        grid = F.pad(grid, (rest // 2, rest - rest // 2, spare // 2, spare - spare // 2))
        return eps * grid / rows(L2.size(grid), grid)

    return start


def bump_windows(eps: float, sides: Tensor) -> Proposal:
    """Two windows: what the second holds, and what the ball has to spare, goes into the first, where a pair of bumps
    is added to the shape that is there (algorithm 3).
    """
    most = int(sides.max())
    kinds, kind = sides.unique(return_inverse=True)
    shapes = torch.stack([F.pad(bumps(side), (0, most - side, 0, most - side)) for side in kinds.tolist()])
    shapes = torch.stack([shapes, shapes.mT], 1).to(sides.device)  # [kinds, 2, most, most], in the upper left corner

    def propose(state: State, seen: Seen, dice: Dice) -> tuple[State, Tensor]:
        u = seen.u
        channels, height, width = u.shape[1:]
        number = seen.clock.clamp_max(len(sides) - 1)
        side = sides[number]
        draw = dice.uniform(u, 5 + channels)
        top, left = _place(draw[:, 0], height, side), _place(draw[:, 1], width, side)
        first = _window(u, top, left, side)
        second = _window(u, _place(draw[:, 2], height, side), _place(draw[:, 3], width, side), side)

        shape = _placed(shapes[kind[number], (draw[:, 4] < 0.5).long()].to(u), top, left, height, width)
        old = u * first
        shape = _sign(draw[:, 5:])[:, :, None, None] * shape + old / _size(old)
        spare = rows((eps**2 - L2.size(u).square()).clamp_min(0), u)
        length = (_size(u * first.maximum(second)).square() + spare / channels).sqrt()
        return state, torch.where(first > 0, shape / _size(shape) * length, u * (1 - second))

    return Proposal(lambda u: (), propose)


def _placed(shape: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Every slot's shape, zero on the image but for its place there: [S, h, h] -> [S, 1, H, W]."""
    shape = F.pad(shape, (0, width - shape.shape[2], 0, height - shape.shape[1]))
    # A shift in a circle: a window that starts at H - h at most does not reach over the edge.
    down = (torch.arange(height, device=top.device) - top[:, None]) % height
    across = (torch.arange(width, device=top.device) - left[:, None]) % width
    shape = shape.gather(1, down[:, :, None].expand_as(shape)).gather(2, across[:, None].expand_as(shape))
    return shape[:, None]


def _size(u: Tensor) -> Tensor:
    """The L2 norm of every channel: [S, C, 1, 1]; 0 is replaced by the smallest number, to divide by."""
    size: Tensor = u.flatten(2).norm(dim=2).clamp_min(torch.finfo(u.dtype).tiny)
    return size[:, :, None, None]


# --- both ---------------------------------------------------------------------------------------------------------


def _sign(draw: Tensor) -> Tensor:
    """-1 or 1 with equal chance, from uniform numbers."""
    return 1 - 2 * (draw < 0.5).to(draw)


def _place(draw: Tensor, length: int, side: Tensor) -> Tensor:
    """Where a window starts: uniform in 0 ... length - side, both included, from uniform numbers: [S]."""
    free = length - side
    return (draw * (free + 1)).long().minimum(free)


def _window(u: Tensor, top: Tensor, left: Tensor, side: Tensor) -> Tensor:
    """1 in every slot's window and 0 elsewhere: [S, 1, H, W]."""
    inside = []
    for first, length in ((top, u.shape[2]), (left, u.shape[3])):
        place = torch.arange(length, device=u.device)
        inside.append((place >= first[:, None]) & (place < (first + side)[:, None]))
    return (inside[0][:, :, None] & inside[1][:, None])[:, None].to(u)
