"""Affine transformations as a manifold around an image: T(x; t), t = (shift x, y, shear x, y, scale, angle)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advbook import fonts

IDENTITY = (0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
# What the released code of Stutz et al., CVPR 2019, allows on EMNIST, Fashion-MNIST and CelebA.
REAL_HIGH = (0.15, 0.15, 0.2, 0.2, 1.15, torch.pi / 10)
REAL_LOW = (-0.15, -0.15, -0.2, -0.2, 0.85, -torch.pi / 10)


def decode(t: Tensor, images: Tensor) -> Tensor:
    """T(x; t) by bilinear sampling, zero outside: [B, 6], [B, C, H, W] -> [B, C, H, W] in [0, 1].

    Differentiable in t. Scale above 1 shrinks, as in fonts.affine.
    """
    return fonts.transform(images, t)


def identity(images: Tensor) -> Tensor:
    """The t that changes nothing, for every image: [B, 6]."""
    return torch.tensor(IDENTITY, dtype=images.dtype, device=images.device).expand(len(images), -1)


def box(kind: Literal["fonts", "real"], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The transformations that keep the label: lower and upper bound of t, [6] each.

    fonts: what FONTS is drawn with. real: a smaller box for data that holds transformed objects already.
    """
    if kind == "fonts":
        return fonts.theta_box(device)
    return torch.tensor(REAL_LOW, device=device), torch.tensor(REAL_HIGH, device=device)
