"""Perturbations that know nothing of the network: what an attack is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advbook.experiments.setting import Setting
from advbook.manifolds.projection import l2


def controls(setting: Setting, delta: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Perturbations of the same images with the same norm as delta, that know nothing of the network: [B, C, H, W]
    each.

    Random signs and Gaussian noise are clipped to [0, 1] like an attack. The on-manifold move changes theta along a
    random direction; on real data it goes towards the nearest held-out image of the class.
    """
    x = setting.x_test

    def draw(distribution: Callable[..., Tensor]) -> Tensor:
        return distribution(x.shape, generator=generator).to(x.device)

    signs = draw(torch.rand).sub(0.5).sign()
    gauss = draw(torch.randn)
    norm = l2(delta)
    return {
        "random sign": _of_norm(lambda t: (x + 2 * t * signs).clamp(0, 1), x, norm),
        "gaussian": _of_norm(lambda t: (x + 2 * t * gauss).clamp(0, 1), x, norm),
        "on-manifold move": _of_norm(_on_manifold_path(setting, generator), x, norm),
    }


def _on_manifold_path(setting: Setting, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """t in [0, 1] -> images: t = 0 is x; t = 1 a random theta of the box, or the nearest held-out image of the
    class."""
    x, known = setting.x_test, setting.known
    if known is not None:
        m, theta, context = known.manifold, known.theta, known.context
        unit = torch.rand(theta.shape, generator=generator).to(x.device)
        goal = m.low + (m.high - m.low) * unit
        return lambda t: m.decode(torch.lerp(theta, goal, t[:, 0, 0]), *context)
    apart = torch.cdist(x.flatten(1), setting.x_held_out.flatten(1))
    apart = apart.masked_fill(setting.y_test[:, None] != setting.y_held_out, torch.inf)
    nearest = setting.x_held_out[apart.argmin(1)]
    return lambda t: torch.lerp(x, nearest, t)


def _of_norm(path: Callable[[Tensor], Tensor], x: Tensor, norm: Tensor) -> Tensor:
    """path(t) - x at the t in [0, 1] where its norm is the given one, by bisection; at t = 1 if the path ends
    before."""
    low, high = torch.zeros_like(norm), torch.ones_like(norm)
    for _ in range(25):
        middle = (low + high) / 2
        short = l2(path(middle[:, None, None, None]) - x) < norm
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return path(high[:, None, None, None]) - x
