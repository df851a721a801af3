"""FONTS: letters A-J under six affine parameters, a data manifold that is known exactly.

An image is x = dec(theta; font, letter): a prototype letter, sampled through a 2 x 3 affine matrix A(theta). Rows
follow the order of the original data set: font by font, the letter fastest, then the same block again with new
parameters. A row depends on its index and the seed alone, so "the first N rows" never changes with N.

Source: Stutz, Hein and Schiele, CVPR 2019, section 3.1 ("FONTS").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jacfwd, vmap

LETTERS = "ABCDEFGHIJ"
FONTS = 1000
BLOCK = FONTS * len(LETTERS)  # rows until every prototype has appeared once
TRAIN_ROWS = 96 * BLOCK
TEST_ROWS = 16 * BLOCK
SIZE = 28

Formula = Literal["product", "released"]

# Order of the columns: translation x, y (in normalised coordinates; .2 is 2.7 pixels), shear x, y, scale, rotation
# (rad).
THETA_NAMES = ("shift x", "shift y", "shear x", "shear y", "scale", "rotation")
THETA_LOW = (-0.2, -0.2, -0.5, -0.5, 0.75, -torch.pi / 2)
THETA_HIGH = (0.2, 0.2, 0.5, 0.5, 1.15, torch.pi / 2)
# The sets of the released data preparation: "hard" is the papers'; the others move less.
Difficulty = Literal["hard", "moderate", "easy"]
_BOXES: dict[Difficulty, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "hard": (THETA_LOW, THETA_HIGH),
    "moderate": ((-0.2, -0.2, -0.4, -0.4, 0.85, -torch.pi / 3), (0.2, 0.2, 0.4, 0.4, 1.15, torch.pi / 3)),
    "easy": ((-0.1, -0.1, -0.2, -0.2, 0.9, -torch.pi / 6), (0.1, 0.1, 0.2, 0.2, 1.1, torch.pi / 6)),
}
IDENTITY = (0.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Rows:
    """Rows of FONTS: the codes that the decoder turns into images.

    theta: [N, 6] float32; font: [N] in 0..999; letter: [N] in 0..9, which is the class.
    """

    theta: Tensor
    font: Tensor
    letter: Tensor

    def __getitem__(self, index: slice | Tensor) -> Rows:
        return Rows(self.theta[index], self.font[index], self.letter[index])

    def __len__(self) -> int:
        return len(self.letter)


@cache
def prototypes(device: torch.device | str = "cpu") -> Tensor:
    """The upright letters of all fonts: [1000, 10, 28, 28] float32 in [0, 1], ink is 1."""
    with files("advbook").joinpath("data/fonts.npz").open("rb") as file:
        pixels = np.load(file, allow_pickle=False)["prototypes"]
    return torch.from_numpy(pixels).to(device).float().div(255)


@cache
def font_names() -> tuple[str, ...]:
    """Family, weight and style of every font, in the order of the prototypes."""
    with files("advbook").joinpath("data/fonts.npz").open("rb") as file:
        table = np.load(file, allow_pickle=False)
        parts = zip(table["family"], table["weight"], table["style"], strict=True)
        return tuple(f"{family} {weight} {style}" for family, weight, style in parts)


def rows(
    split: Literal["train", "test"],
    n: int,
    *,
    difficulty: Difficulty = "hard",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Rows:
    """The first n rows of a split, theta uniform in its box.

    n: 1 to 960,000 (train) or 160,000 (test). The original draws all rows in one order, train before test, and so do
    we: for n <= 10,000 these are the letters of the first n / 10 fonts, one theta each. Raises ValueError if n is out
    of range. Source: part of the released data preparation.
    """
    size = {"train": TRAIN_ROWS, "test": TEST_ROWS}[split]
    if not 1 <= n <= size:
        raise ValueError(f"n = {n} rows of FONTS {split} were asked for; allowed is 1 to {size:,}.")
    start = TRAIN_ROWS if split == "test" else 0
    return _rows(np.arange(start, start + n), _uniform(start, n, seed), difficulty, device)


def random_rows(
    split: Literal["train", "test"],
    n: int,
    *,
    skip: int = 0,
    difficulty: Difficulty = "hard",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Rows:
    """n distinct rows of a split drawn at random after its first `skip`: the variant that mixes all fonts at every n.

    n: 1 to the split's rows less skip. Raises ValueError if n is out of range.
    """
    start, size = (TRAIN_ROWS, TEST_ROWS) if split == "test" else (0, TRAIN_ROWS)
    if not 1 <= n <= size - skip:
        raise ValueError(f"n = {n} random rows of FONTS {split} were asked for; allowed is 1 to {size - skip:,}.")
    index = skip + np.random.default_rng([seed, 1]).choice(size - skip, size=n, replace=False)
    return _rows(start + index, _uniform(start, size, seed)[index], difficulty, device)


def affine(theta: Tensor, formula: Formula = "product") -> Tensor:
    """The matrix A(theta) = scale * [S R | shift] from output to input coordinates: [..., 6] -> [..., 2, 3].

    With S = [[1, hx], [hy, 1]] and R the rotation by r. "released" has the sign of the published code in the first
    entry (c - n hx instead of c + n hx), kept as a named variant. The shift is not scaled.
    """
    tx, ty, hx, hy, s, r = theta.unbind(-1)
    c, n = r.cos(), r.sin()
    a00 = c + n * hx if formula == "product" else c - n * hx
    top = torch.stack([s * a00, s * (c * hx - n), tx], -1)
    bottom = torch.stack([s * (n + c * hy), s * (c - n * hy), ty], -1)
    return torch.stack([top, bottom], -2)


def transform(images: Tensor, theta: Tensor, formula: Formula = "product") -> Tensor:
    """Sample images through A(theta): [B, 1, H, W], [B, 6] -> [B, 1, H, W], bilinear, zero outside.

    Scale above 1 shrinks the letter, since A maps output to input coordinates. Differentiable in theta.
    """
    grid = F.affine_grid(affine(theta, formula), list(images.shape), align_corners=True)  # [B, H, W, 2]
    return F.grid_sample(images, grid, align_corners=True).clamp(0, 1)


def upright(images: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Undo `transform` where theta is known: sample through the inverse of A(theta), so that the letter stands upright.

    images: [B, 1, H, W]; theta: [B, 6] -> images [B, 1, H, W], and bool masks of that shape: True where the upright
    pixel lay inside the canvas, so that its value is known. Bilinear twice, so edges come out softer.
    """
    matrix = affine(theta)
    inverse = torch.linalg.inv(matrix[:, :, :2])  # det = scale^2 (1 - hx hy) > 0 in the box
    back = torch.cat([inverse, -inverse @ matrix[:, :, 2:]], 2)
    grid = F.affine_grid(back, list(images.shape), align_corners=True)  # [B, H, W, 2]
    return F.grid_sample(images, grid, align_corners=True), (grid.abs() <= 1).all(-1)[:, None]


def decode(theta: Tensor, font: Tensor, letter: Tensor, *, formula: Formula = "product") -> Tensor:
    """The decoder dec(theta; font, letter) of the true manifold: [B, 6], [B], [B] -> [B, 1, 28, 28] in [0, 1]."""
    return transform(prototypes(theta.device)[font, letter][:, None], theta, formula)


def decode_with_jacobian(theta: Tensor, font: Tensor, letter: Tensor) -> tuple[Tensor, Tensor]:
    """dec(theta) and its derivative: [B, 6], [B], [B] -> images [B, 1, 28, 28], Jacobian [B, 784, 6].

    A pixel depends on its own sampling point alone, so one backward pass gives all pixels' derivatives by their
    points; the chain rule through A(theta) does the rest.
    """
    letters = prototypes(theta.device)[font, letter][:, None]
    slope = vmap(jacfwd(affine))(theta)  # [B, 2, 3, 6]
    with torch.enable_grad():
        grid = F.affine_grid(affine(theta), list(letters.shape), align_corners=True).requires_grad_()
        image = F.grid_sample(letters, grid, align_corners=True).clamp(0, 1)
        (by_point,) = torch.autograd.grad(image.sum(), grid)  # [B, H, W, 2]
    axis = torch.linspace(-1, 1, SIZE, device=theta.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    corners = torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)  # [784, 3]
    by_matrix = by_point.flatten(1, 2)[:, :, :, None] * corners[None, :, None]  # [B, 784, 2, 3]
    return image.detach(), by_matrix.flatten(2) @ slope.flatten(1, 2)


def images(codes: Rows, *, formula: Formula = "product", batch: int = 2_000) -> Tensor:
    """The images of rows: [N, 1, 28, 28] float32 in [0, 1], decoded batch by batch."""
    parts = (codes[i : i + batch] for i in range(0, len(codes), batch))
    return torch.cat([decode(part.theta, part.font, part.letter, formula=formula) for part in parts])


def theta_box(device: torch.device | str = "cpu", difficulty: Difficulty = "hard") -> tuple[Tensor, Tensor]:
    """The valid transformations: lower and upper bound, [6] each."""
    low, high = _BOXES[difficulty]
    return torch.tensor(low, device=device), torch.tensor(high, device=device)


def _uniform(start: int, n: int, seed: int) -> np.ndarray:
    # PCG64 spends one draw on one double, so advance() jumps to any row and the rows never depend on n.
    bits = np.random.PCG64(seed).advance(6 * start)
    return np.random.Generator(bits).random((n, 6))


def _rows(index: np.ndarray, unit: np.ndarray, difficulty: Difficulty, device: torch.device | str) -> Rows:
    low, high = (np.array(end) for end in _BOXES[difficulty])
    theta = torch.from_numpy((low + (high - low) * unit).astype(np.float32))
    prototype = torch.from_numpy(index % BLOCK)
    font, letter = prototype // len(LETTERS), prototype % len(LETTERS)
    return Rows(theta.to(device), font.to(device), letter.to(device))
