"""Four norms, row by row: how large, the nearest point of ball and box, and random points of the ball.

A row is one perturbation of shape [C, H, W] (or [D]). L0 counts pixels, not channel values: a pixel counts once
however many of its channels change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Start = Callable[[Tensor, torch.Generator], Tensor]  # (like [B, ...], generator) -> [B, ...]
ROUNDS = 40  # at most, of the search for a projection's multiplier; a few are enough, and 40 halvings exhaust float32


@dataclass(frozen=True)
class Norm:
    """A norm of the rows of u, and what attacks need of its balls.

    size(u): [B, ...] -> [B]. nearest(u, radius, low, high): the Euclidean projection onto {|v| <= radius, low <= v <=
    high}, exact up to rounding; low <= 0 <= high, as tensors that broadcast to u. direction(g): the step direction
    that attacks take along a gradient. volume(like, generator): uniform in the ball of radius 1; shell: uniform on
    its surface (for L0, which has no unit ball, see `pixels`). slack(like): how much rounding an image x + u to its
    data type can add to the norm of u at most.
    """

    name: str
    size: Callable[[Tensor], Tensor]
    nearest: Callable[[Tensor, float, Tensor, Tensor], Tensor]
    direction: Callable[[Tensor], Tensor]
    volume: Start
    shell: Start
    slack: Callable[[Tensor], float]

    def inside(self, radius: float, like: Tensor) -> float:
        """The radius to project to so that x + u, rounded, still lies in the ball: radius less slack, not below 0."""
        return max(radius - self.slack(like), 0.0)


def rows(values: Tensor, like: Tensor) -> Tensor:
    """One value a row, shaped to broadcast over the rows of `like`: [B] -> [B, 1, ...]."""
    return values.view(-1, *[1] * (like.ndim - 1))


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1) in the shape, type and place of `like`."""
    return torch.rand(like.shape, generator=generator, device=generator.device).to(like)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers in the shape, type and place of `like`."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


# --- L-inf ------------------------------------------------------------------------------------------------------


def _linf_size(u: Tensor) -> Tensor:
    largest: Tensor = u.flatten(1).abs().amax(1)
    return largest


def _linf_nearest(u: Tensor, radius: float, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(u.clamp(-radius, radius), low), high)


def _cube(like: Tensor, generator: torch.Generator) -> Tensor:
    return 2 * uniform(like, generator) - 1


# --- L2 and L1: the multiplier of the ball, and the box -----------------------------------------------------------


def _l2_size(u: Tensor) -> Tensor:
    """Scaled by the largest entry, so that neither huge nor tiny rows lose their norm."""
    scale = _linf_size(u).clamp_min(torch.finfo(u.dtype).tiny)
    shape: Tensor = (u / rows(scale, u)).flatten(1).norm(dim=1)
    return shape * scale


def _l2_nearest(u: Tensor, radius: float, low: Tensor, high: Tensor) -> Tensor:
    """clip(t u, low, high) with the largest t <= 1 whose norm is in the ball.

    This is the condition of Karush, Kuhn and Tucker, with the ball's multiplier lambda = 1 / t - 1. t
    rises from radius / |u|: entries at their bound leave the others more room, until no further entry is clipped.
    """
    radius = _within(radius, u)
    size, bound = u.abs().flatten(1), _bound(u, low, high)
    t = u.new_zeros(len(u), 1)
    for _ in range(ROUNDS):
        free = size * t < bound
        held = bound.masked_fill(free, 0).square().sum(1, keepdim=True)
        rest = size.masked_fill(~free, 0).norm(dim=1, keepdim=True)
        further = ((radius**2 - held).clamp_min(0).sqrt() / rest).nan_to_num(1, 1, 1).clamp(t, t.new_ones(()))
        if not _captured() and torch.equal(further, t):
            break
        t = further
    return (u * rows(t, u)).clamp(low, high)


def _l1_nearest(u: Tensor, radius: float, low: Tensor, high: Tensor) -> Tensor:
    """clip(soft(u, lambda), low, high) with the smallest lambda >= 0 whose norm is in the ball, soft(u, lambda) =
    sign(u) max(|u| - lambda, 0).

    The norm is piecewise linear in lambda: Newton's steps, kept in the bracket known so far.
    """
    radius = _within(radius, u)
    bound, top = _bound(u, low, high), _linf_size(u)[:, None]
    gap = u.abs().flatten(1) - top  # mu = top - lambda stays exact however far away u is
    mu, inner, outer = top, torch.zeros_like(top), top
    for _ in range(ROUNDS):
        left = gap + mu
        excess = torch.minimum(left.clamp_min(0), bound).sum(1, keepdim=True) - radius
        slope = ((left > 0) & (left < bound)).sum(1, keepdim=True)
        inner, outer = torch.where(excess > 0, inner, mu), torch.where(excess > 0, mu, outer)
        settled = (excess.abs() <= 1e-5 * radius) | (inner >= outer)
        if not _captured() and bool(settled.all()):
            break
        newton = mu - excess / slope
        following = torch.where((newton > inner) & (newton < outer), newton, (inner + outer) / 2)
        mu = torch.where(settled, mu, following)

    def at(mu: Tensor) -> Tensor:
        return (u.sign() * (gap + mu).clamp_min(0).view_as(u)).clamp(low, high)

    close = at(mu)
    size = _l1_size(close)
    shrink = (radius / size.clamp_min(torch.finfo(u.dtype).tiny)).clamp_max(1)
    found = torch.where(rows(size <= radius * (1 + 1e-5), u), close * rows(shrink, u), at(inner))
    return torch.where(rows(inner >= top, u), u.clamp(low, high), found)  # inside: not touched by rounding


def _captured() -> bool:
    """Whether a CUDA graph is being recorded: then nothing can be asked of the device."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _within(radius: float, u: Tensor) -> float:
    """The radius less what the sums below may round."""
    return radius * (1 - 8 * torch.finfo(u.dtype).eps)


def _bound(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far every entry may go on its own side: [B, D]."""
    return torch.where(u < 0, -low, high).expand_as(u).flatten(1)


def _l1_size(u: Tensor) -> Tensor:
    return u.flatten(1).abs().sum(1)


def _unit(size: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """g / size(g), and 0 where g is 0; scaled first, so that the smallest gradients keep their direction."""

    def direction(g: Tensor) -> Tensor:
        tiny = torch.finfo(g.dtype).tiny
        top = _linf_size(g)
        g = g * rows(
            torch.where(top < 1, torch.full_like(top, 1 / torch.finfo(g.dtype).eps ** 4), 1), g
        )  # out of the denormals
        g = g / rows(_linf_size(g).clamp_min(tiny), g)
        return g / rows(size(g).clamp_min(tiny), g)

    return direction


def _l2_volume(like: Tensor, generator: torch.Generator) -> Tensor:
    length = uniform(like[:, :1].flatten(1)[:, 0], generator) ** (1 / max(like[:1].numel(), 1))
    return _l2_shell(like, generator) * rows(length, like)


def _l2_shell(like: Tensor, generator: torch.Generator) -> Tensor:
    return _unit(_l2_size)(normal(like, generator))


def _laplace(like: Tensor, generator: torch.Generator) -> Tensor:
    draw = _cube(like, generator)
    return -draw.sign() * torch.log1p(-draw.abs().clamp_max(1 - 1e-7))


def _l1_shell(like: Tensor, generator: torch.Generator) -> Tensor:
    return _unit(_l1_size)(_laplace(like, generator))


def _l1_volume(like: Tensor, generator: torch.Generator) -> Tensor:
    """Laplace noise over its norm plus an exponential variable is uniform in the ball (Barthe et al., 2005)."""
    noise = _laplace(like, generator)
    extra = -torch.log1p(-uniform(like[:, :1].flatten(1)[:, 0], generator).clamp_max(1 - 1e-7))
    return noise / rows((_l1_size(noise) + extra).clamp_min(torch.finfo(like.dtype).tiny), like)


# --- L0 ---------------------------------------------------------------------------------------------------------


def _pixels(u: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H W]; rows without channels are taken as one channel."""
    return u.flatten(2) if u.ndim > 2 else u[:, None]


def _l0_size(u: Tensor) -> Tensor:
    count: Tensor = (_pixels(u) != 0).any(1).sum(1)
    return count.to(u.dtype)


def _l0_nearest(u: Tensor, radius: float, low: Tensor, high: Tensor) -> Tensor:
    """The int(radius) pixels kept where that saves most: |u_p|^2 - |u_p - clip(u_p)|^2, of either sign."""
    kept = u.clamp(low, high)
    gain = (_pixels(u).square() - _pixels(u - kept).square()).sum(1)  # [B, H W]
    return _largest(kept, gain, radius)


def _largest(u: Tensor, gain: Tensor, count: float) -> Tensor:
    """u on its int(count) pixels of largest gain, 0 elsewhere."""
    top = gain.topk(min(int(count), gain.shape[1]), dim=1).indices
    mask = torch.zeros_like(gain).scatter_(1, top, 1)
    return (_pixels(u) * mask[:, None]).view_as(u)


def pixels(radius: float, *, every: bool = True) -> Start:
    """Random pixels with uniform values in [-1, 1]: int(radius) of them, or (every=False) a uniform number up to it."""

    def start(like: Tensor, generator: torch.Generator) -> Tensor:
        score = uniform(_pixels(like)[:, 0], generator)
        values = _largest(_cube(like, generator), score, radius)
        if every:
            return values
        share = uniform(like[:, :1].flatten(1)[:, 0], generator)
        fewer = score.argsort(1, descending=True).argsort(1) < (share * (int(radius) + 1)).floor()[:, None]
        return (_pixels(values) * fewer[:, None]).view_as(like)

    return start


# --- the norms --------------------------------------------------------------------------------------------------


def _half_step(power: float) -> Callable[[Tensor], float]:
    """Rounding moves an image's value in [0, 1] by half the distance of two numbers below 1; twice that, to be safe."""
    return lambda like: float(torch.finfo(like.dtype).eps / 2 * like[:1].numel() ** power)


LINF = Norm(
    "linf", _linf_size, _linf_nearest, torch.sign, _cube, lambda u, g: _unit(_linf_size)(_cube(u, g)), _half_step(0)
)
L2 = Norm("l2", _l2_size, _l2_nearest, _unit(_l2_size), _l2_volume, _l2_shell, _half_step(1 / 2))
L1 = Norm("l1", _l1_size, _l1_nearest, _unit(_l1_size), _l1_volume, _l1_shell, _half_step(1))
L0 = Norm("l0", _l0_size, _l0_nearest, _unit(_l1_size), pixels(1), pixels(1), lambda like: 0.0)
NORMS = {norm.name: norm for norm in (LINF, L2, L1, L0)}


# --- start points -----------------------------------------------------------------------------------------------


def zero(norm: Norm, radius: float) -> Start:
    """The image itself."""
    return lambda like, generator: torch.zeros_like(like)


def volume(norm: Norm, radius: float) -> Start:
    """Uniform in the ball; for L0, int(radius) random pixels with uniform values."""
    return pixels(radius) if norm is L0 else lambda like, generator: radius * norm.volume(like, generator)


def shells(norm: Norm, radius: float) -> Start:
    """Uniform norm in [0, radius], uniform direction: most points lie further inside than those of `volume`."""
    if norm is L0:
        return pixels(radius, every=False)
    return lambda like, generator: norm.shell(like, generator) * rows(_length(like, radius, generator), like)


def gaussian(norm: Norm, radius: float) -> Start:
    """Uniform norm in [0, radius] along a Gaussian direction.

    Under L-inf most entries start well inside the cube. Source: released code of Stutz et al., CVPR 2019 ("uniform
    distance and direction" in the paper).
    """

    def start(like: Tensor, generator: torch.Generator) -> Tensor:
        direction = normal(like, generator)
        scale = _length(like, radius, generator) / norm.size(direction).clamp_min(torch.finfo(like.dtype).tiny)
        return direction * rows(scale, like)

    return start


def near(norm: Norm, radius: float) -> Start:
    """Gaussian noise of standard deviation radius / (2 ln D) in all D entries, most of it well inside the ball.

    Source: released code of Stutz et al., ICML 2020.
    """
    return lambda like, generator: normal(like, generator) * (radius / (2 * math.log(max(like[:1].numel(), 2))))


def mixed(starts: Sequence[Start], *, whole_batch: bool = False) -> Start:
    """One of the starts by a fair draw for every row, or with whole_batch by one draw for all rows."""

    def start(like: Tensor, generator: torch.Generator) -> Tensor:
        drawn = [one(like, generator) for one in starts]  # all of them, so that a draw costs the same randomness always
        count = 1 if whole_batch else len(like)
        choice = torch.randint(len(starts), (count,), generator=generator, device=generator.device).to(like.device)
        found = drawn[0]
        for index, other in enumerate(drawn[1:], 1):
            found = torch.where(rows(choice == index, like), other, found)
        return found

    return start


def _length(like: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    return radius * torch.rand(len(like), generator=generator, device=generator.device).to(like)
