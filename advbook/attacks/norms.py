"""Balls of a norm around zero, row by row: how to project into one and how to start in one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Projection = Callable[[Tensor], Tensor]


def linf_ball(radius: float) -> Projection:
    """Projection onto {u: |u_i| <= radius}."""
    return lambda u: u.clamp(-radius, radius)


def linf_norm(u: Tensor) -> Tensor:
    """Largest absolute entry of every row: [B, ...] -> [B]."""
    return u.flatten(1).abs().amax(1)


def linf_start(like: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """Start points with uniform L-inf norm in [0, radius] along a Gaussian direction, shaped as `like`: [B, ...].

    Most entries start well inside the cube. Source: released code of Stutz et al., CVPR 2019 ("uniform distance and
    direction" in the paper).
    """
    direction = torch.randn(like.shape, generator=generator, device=generator.device).to(like)
    length = torch.rand(len(like), generator=generator, device=generator.device).to(like)
    scale = radius * length / linf_norm(direction).clamp_min(torch.finfo(like.dtype).tiny)
    return direction * scale.view(-1, *[1] * (like.ndim - 1))
