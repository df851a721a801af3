"""What an attack varies: a space says how u becomes an image and which u are allowed.

Pixels: g(u) = x + u. Latent: g(u) = dec(z + u). A new threat model is a new space here, never a switch in the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor

from advbook.attacks.norms import Projection


class Space(Protocol):
    """B rows of a feasible set; the engine packs rows by indexing."""

    def __getitem__(self, rows: Tensor) -> Self:
        """The given rows of the space."""

    def image(self, u: Tensor) -> Tensor:
        """g(u): [B, ...] -> [B, C, H, W] in [0, 1], differentiable in u."""

    def project(self, u: Tensor) -> Tensor:
        """The feasible point for u: [B, ...] -> [B, ...]."""


@dataclass(frozen=True)
class Pixels:
    """g(delta) = x + delta with delta in a ball and x + delta in [0, 1].

    x: [B, C, H, W]; ball: projection onto the norm's ball. For L-inf one pass of ball and box is the exact
    projection.
    """

    x: Tensor
    ball: Projection

    def __getitem__(self, rows: Tensor) -> Pixels:
        return Pixels(self.x[rows], self.ball)

    def image(self, u: Tensor) -> Tensor:
        """x + delta; the clamp only removes rounding, since u is projected before."""
        return (self.x + u).clamp(0, 1)

    def project(self, u: Tensor) -> Tensor:
        """Into the ball, then into the image box."""
        return (self.x + self.ball(u)).clamp(0, 1) - self.x


@dataclass(frozen=True)
class Latent:
    """g(zeta) = dec(z + zeta) with zeta in a ball and z + zeta in [low, high].

    z: [B, D]; decode(z, *context) -> [B, C, H, W]; context: tensors of one row each (font and letter, say); low,
    high: [D]. Source: Stutz et al., CVPR 2019, equation (3).
    """

    z: Tensor
    decode: Callable[..., Tensor]
    context: tuple[Tensor, ...]
    low: Tensor
    high: Tensor
    ball: Projection

    def __getitem__(self, rows: Tensor) -> Latent:
        context = tuple(part[rows] for part in self.context)
        return Latent(self.z[rows], self.decode, context, self.low, self.high, self.ball)

    def image(self, u: Tensor) -> Tensor:
        """dec(z + zeta)."""
        return self.decode(self.z + u, *self.context)

    def project(self, u: Tensor) -> Tensor:
        """Into the ball, then into the box of valid latents."""
        return (self.z + self.ball(u)).clamp(self.low, self.high) - self.z
