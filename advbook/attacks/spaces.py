"""What an attack varies: a space says how u becomes an image and which u are allowed.

Pixels: g(u) = x + u. Latent: g(u) = dec(z + u); a transformation of the image is a latent whose decoder moves the
image. Joint: both at once. A new threat model is a new space here, never a switch in the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from advbook.attacks.norms import LINF, Norm

Decoder = Callable[..., Tensor]  # (z [B, D], *context) -> images [B, C, H, W] in [0, 1]


class Space(Protocol):
    """B rows of a feasible set; the loops pack rows by indexing."""

    def __len__(self) -> int:
        """B."""

    def __getitem__(self, rows: Tensor) -> Self:
        """The given rows of the space."""

    def image(self, u: Tensor) -> Tensor:
        """g(u): [B, ...] -> [B, C, H, W] in [0, 1], differentiable in u."""

    def project(self, u: Tensor) -> Tensor:
        """The feasible point nearest to u: [B, ...] -> [B, ...]."""


@dataclass(frozen=True)
class Pixels:
    """g(delta) = x + delta with |delta| <= eps and x + delta in [0, 1].

    x: [B, C, H, W]. The projection is the exact one onto ball and box together, and the ball is smaller by what
    rounding x + delta to the data type can add: the image itself, not only delta, keeps to eps.
    """

    x: Tensor
    eps: float
    norm: Norm = LINF

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> Self:
        return replace(self, x=self.x[rows])

    def image(self, u: Tensor) -> Tensor:
        """x + delta; the clamp only removes rounding, since u is projected before."""
        return (self.x + u).clamp(0, 1)

    def project(self, u: Tensor) -> Tensor:
        """Into the ball and the image box."""
        return self.norm.nearest(u, self.norm.inside(self.eps, self.x), -self.x, 1 - self.x)


@dataclass(frozen=True)
class Masked:
    """g(delta) = x + delta with delta free where the mask is 1 and zero elsewhere, x + delta in [0, 1].

    x: [B, C, H, W]; mask: [C, H, W] or [H, W] of zeros and ones. The threat model of adversarial frames and patches.
    """

    x: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> Self:
        return replace(self, x=self.x[rows])

    def image(self, u: Tensor) -> Tensor:
        """x + delta."""
        return (self.x + u).clamp(0, 1)

    def project(self, u: Tensor) -> Tensor:
        """Zero outside the mask, then into the image box."""
        return torch.minimum(torch.maximum(u * self.mask, -self.x), 1 - self.x)


@dataclass(frozen=True)
class Latent:
    """g(zeta) = dec(z + zeta) with |zeta| <= eta and z + zeta in [low, high].

    z: [B, D]; decode(z, *context) -> [B, C, H, W]; context: tensors of one row each (font and letter, say); low,
    high: [D]. Source: Stutz et al., CVPR 2019, equation (3).
    """

    z: Tensor
    decode: Decoder
    context: tuple[Tensor, ...]
    low: Tensor
    high: Tensor
    eta: float
    norm: Norm = LINF

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: Tensor) -> Self:
        return replace(self, z=self.z[rows], context=tuple(part[rows] for part in self.context))

    def image(self, u: Tensor) -> Tensor:
        """dec(z + zeta)."""
        return self.decode(self.z + u, *self.context)

    def project(self, u: Tensor) -> Tensor:
        """Into the ball and the box of valid latents; a code that starts outside the box keeps its place in it."""
        low, high = torch.minimum(self.low, self.z), torch.maximum(self.high, self.z)
        return self.norm.nearest(u, self.eta, low - self.z, high - self.z)


@dataclass(frozen=True)
class Joint:
    """g(zeta, delta) = dec(z + zeta) + delta: a move in latent space and a perturbation of what it decodes to.

    latent: its rows and eta; eps and norm: the ball of delta; shape: [C, H, W] of an image. u = [B, D + C H W] holds
    zeta / eta and delta / eps (1 in place of a budget of 0), so that one step rule serves both. The image is clamped
    to [0, 1], which only moves it towards dec(z + zeta). Source: Lau et al., 2021 (joint space).
    """

    latent: Latent
    eps: float
    shape: tuple[int, int, int]
    norm: Norm = LINF

    def __len__(self) -> int:
        return len(self.latent)

    def __getitem__(self, rows: Tensor) -> Self:
        return replace(self, latent=self.latent[rows])

    def split(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """zeta [B, D] and delta [B, C, H, W] of u."""
        size = self.latent.z.shape[1]
        delta = u[:, size:].reshape(len(u), *self.shape)
        return u[:, :size] * (self.latent.eta or 1.0), delta * (self.eps or 1.0)

    def join(self, zeta: Tensor, delta: Tensor) -> Tensor:
        """u of zeta and delta."""
        return torch.cat([zeta / (self.latent.eta or 1.0), delta.flatten(1) / (self.eps or 1.0)], 1)

    def image(self, u: Tensor) -> Tensor:
        """dec(z + zeta) + delta."""
        zeta, delta = self.split(u)
        return (self.latent.image(zeta) + delta).clamp(0, 1)

    def project(self, u: Tensor) -> Tensor:
        """Each part into its own ball, the latent into its box too."""
        zeta, delta = self.split(u)
        one = torch.ones((), dtype=u.dtype, device=u.device)
        delta = self.norm.nearest(delta, self.norm.inside(self.eps, delta), -one, one)
        return self.join(self.latent.project(zeta), delta)
