"""Unseen threat models as decoders of a latent: what else may happen to an image, as x' = decode(z, x).

Elastic warps, fog, snow, Gabor noise, JPEG, colours and affine transformations. A defence that was trained against one
ball of pixels meets them for the first time at test time. Each has z = identity(x) that changes nothing, and each ball
is one of L-inf around it, so that the one ascent loop attacks them all as latents: Latent(*arguments("fog", x)). Steps
of a tenth of eta suit all of them; the published Adam step of .005 is made for latents of size one.

Everything random in the sources (kernels, places, directions) is fixed here: x' follows from z and x alone, row by
row. decode is differentiable almost everywhere, x' lies in [0, 1], and x' = x at the identity (up to the rounding of
bilinear sampling where pixels move). Images: [B, C, H, W] in [0, 1] with C = 1 or 3.

Sources: Kang et al., "Testing robustness against unforeseen adversaries", 2019, and its released code (UAR); Laidlaw
and Feizi, "Functional adversarial attacks", 2019 (ReColorAdv). The code is our own. Budgets do not compare with theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from advbook.manifolds import transform

Array = NDArray[np.float64]
Decoder = Callable[[Tensor, Tensor], Tensor]  # (z [B, D], x [B, C, H, W]) -> [B, C, H, W]

NODES = 8  # elastic and fog: points of the lattice along either side
FLAKES, KERNELS = 6, 4  # pixels from a flake, or a Gabor kernel, to the next of its kind
STREAKS = ((1, 0.25 * math.pi, 1.5), (4, 0.35 * math.pi, 2.5))  # snow: first place, direction, half a length in pixels
THIN = 0.5  # pixels: standard deviation across a streak
ANGLES = 4  # orientations of Gabor kernels
SPREAD, WAVE = 2.5, 5.0  # pixels: standard deviation and wavelength of a Gabor kernel
FAINT = 1e-9  # parts of a pattern below this are none: numbers near the smallest would slow down every product
KNOTS = {1: 8, 3: 4}  # colours -> points along an axis of colour space
BLOCK = 8  # pixels: side of a JPEG block
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # quantization steps of quality 50, of 255 grey values: ITU-T T.81, annex K
CHROMINANCE = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))  # and 99 elsewhere
TO_RGB = ((1, 0, 1.402), (1, -0.344136, -0.714136), (1, 1.772, 0))  # of Y, Cb, Cr: JFIF


@dataclass(frozen=True)
class Distortion:
    """A threat model: x' = decode(z, x) with |z - identity(x)| <= eta in every entry, and low <= z <= high.

    identity: images [B, C, H, W] to the latents [B, D] that change nothing; box: latents [B, D] to low and high, [D]
    each; eta: the budget by default, at which a person still reads letters and clothes of 28 pixels.
    """

    identity: Callable[[Tensor], Tensor]
    decode: Decoder
    box: Callable[[Tensor], tuple[Tensor, Tensor]]
    eta: float


def arguments(
    name: str, x: Tensor, eta: float | None = None
) -> tuple[Tensor, Decoder, tuple[Tensor, ...], Tensor, Tensor, float]:
    """What attacks.spaces.Latent is made of, in its order: z, decode, context, low, high, eta.

    name: one of DISTORTIONS; x: [B, C, H, W] in [0, 1]; eta: in the units of that distortion, its default without.
    Raises ValueError for another name, for a shape that is none of images in 1 or 3 colours, or if eta < 0.
    """
    if name not in DISTORTIONS:
        raise ValueError(f"name = {name!r}: allowed are {', '.join(DISTORTIONS)}.")
    if x.ndim != 4 or x.shape[1] not in KNOTS:
        raise ValueError(f"x has the shape {list(x.shape)}: allowed is [B, C, H, W] with 1 or 3 colours.")
    kind = DISTORTIONS[name]
    eta = kind.eta if eta is None else eta
    if not eta >= 0:
        raise ValueError(f"eta = {eta}: allowed is 0 or more.")
    z = kind.identity(x)
    return z, kind.decode, (x,), *kind.box(z), eta


# --- the distortions ----------------------------------------------------------------------------------------------


def elastic(z: Tensor, x: Tensor) -> Tensor:
    """Every pixel is fetched from a place nearby, x'(p) = x(p + d(p)), with a smooth field d; zero outside.

    z: [B, 128], displacements in pixels along x, then along y, on a lattice of 8 x 8 points. d is a mean of them with
    Gaussian weights, so that no pixel moves by more than eta along an axis. Source: UAR. Changed: there one
    displacement a pixel, smoothed by a Gaussian of 3 pixels, so that the bound holds before the smoothing, not after.
    """
    height, width = x.shape[2:]
    moved = z.reshape(2 * len(z), NODES**2) @ _basis(_smooth, x)
    dx, dy = moved.view(len(z), 2, height, width).unbind(1)
    across = torch.linspace(-1, 1, width, dtype=x.dtype, device=x.device)
    down = torch.linspace(-1, 1, height, dtype=x.dtype, device=x.device)[:, None]
    place = torch.stack([across + dx * (2 / (width - 1)), down + dy * (2 / (height - 1))], -1)  # [B, H, W, 2]
    return F.grid_sample(x, place, align_corners=True).clamp(0, 1)


def fog(z: Tensor, x: Tensor) -> Tensor:
    """White fog of thickness h in front of the image: x' = (x + h) / (1 + h), with h >= 0 from a fractal.

    z: [B, 64], the numbers that the diamond-square algorithm adds at the 8 x 8 points of its three coarsest levels (a
    half of the weight on each finer level); finer points are means of their neighbours. Thickness 1 takes half of the
    contrast; h reaches eta at most. Source: UAR. Changed: there every level is free, and so about as many numbers as
    pixels; numbers of both signs, then h stretched to fill [0, eps] over the whole batch, and the division by the
    image's maximum plus eps everywhere. Here thickness starts at none and rows are independent. In the released code a
    point's neighbours are partly those two cells away; here they are the adjacent ones.
    """
    thickness = _painted(z, x, _fractal)
    return ((x + thickness) / (1 + thickness)).clamp(0, 1)


def snow(z: Tensor, x: Tensor) -> Tensor:
    """Flakes, blurred by their fall, are added to the image in white.

    z: [B, D] in [0, 1], the brightness of flakes of two kinds, 6 pixels apart each (D = 41 at side 28, 61 at 32); a
    flake is a streak with Gaussian flanks. Source: UAR. Changed: there seven kinds with random streaks, the fourth
    power of z (whose gradient is zero at none), a bound on the mean of z in every region, and an image that is
    whitened besides even without snow.
    """
    return (x + _painted(z, x, _flakes)).clamp(0, 1)


def gabor(z: Tensor, x: Tensor) -> Tensor:
    """Gabor noise is added: waves under Gaussian windows, exp(-r^2 / (2 s^2)) cos(2 pi r_a / w), r_a along a direction.

    z: [B, D], the weights of kernels in four directions, 4 pixels apart (D = 196 at side 28, 256 at 32), s = 2.5 and w
    = 5 pixels. They are scaled so that the largest change of a pixel that any z of size eta can make is eta. Source:
    UAR. Changed: there one random kernel for an image, at random pixels, and the sum stretched to [0, eps] and made of
    equal variance everywhere, so that there is always noise.
    """
    return (x + _painted(z, x, _waves)).clamp(0, 1)


def jpeg(z: Tensor, x: Tensor) -> Tensor:
    """The coefficients of JPEG change: those of the cosine transform of blocks of 8 x 8 pixels, in Y, Cb, Cr.

    z: [B, D], in quantization steps of quality 50, of which rounding alone moves a half at most; D = C times the
    pixels of the image made up to full blocks (1024 for [1, 28, 28]), each block's numbers where its pixels lie. What
    lies beyond the image is cut off. Since the transform is linear the image itself need not pass it: x' = x +
    inverse(steps z). Source: UAR (JPEG in L-inf). Changed: there z of size 1 is half a step, and the two colour
    channels have half the resolution, so that the image changes even at z = 0.
    """
    channels, height, width = x.shape[1:]
    down, across = _cosines(height, x.dtype, x.device), _cosines(width, x.dtype, x.device)
    steps = _steps(channels, down.shape[1], across.shape[1], x.dtype, x.device)
    coefficients = z.reshape(len(z), *steps.shape) * steps
    change = down @ (coefficients @ across.T)  # [B, C, H, W]
    if channels == 3:
        rgb = _to_rgb(x.dtype, x.device)
        change = (rgb @ change.flatten(2)).view_as(x)
    return (x + change).clamp(0, 1)


def colour(z: Tensor, x: Tensor) -> Tensor:
    """All pixels of one colour become one other colour: x' = x + o(x), o piecewise linear.

    z: [B, D], the change o on a lattice of colour space, in colour values of [0, 1]: 8 grey values (D = 8), or 4 x 4 x
    4 colours with three numbers each (D = 192); in between by linear interpolation along each axis. Source: ReColorAdv.
    Changed: RGB instead of CIELUV, a coarser lattice, no penalty that makes o smoother; and its form for grey images.
    """
    channels = x.shape[1]
    knots = KNOTS[channels]
    nodes = torch.arange(knots, dtype=x.dtype, device=x.device)
    hats = (1 - (x.flatten(2)[..., None] * (knots - 1) - nodes).abs()).clamp_min(0)  # [B, C, pixels, knots]
    weight = hats[:, 0]
    for hat in hats.unbind(1)[1:]:
        weight = (weight[..., None] * hat[:, :, None]).flatten(2)  # [B, pixels, knots^C]
    offset = weight @ z.reshape(len(z), knots**channels, channels)  # [B, pixels, C]
    return (x + offset.mT.view_as(x)).clamp(0, 1)


# --- latents and their boxes --------------------------------------------------------------------------------------


def _zeros(count: Callable[[int, int, int], int]) -> Callable[[Tensor], Tensor]:
    """The latents of a distortion that is none at zero, by how many numbers an image of C, H, W needs."""
    return lambda x: x.new_zeros(len(x), count(*x.shape[1:]))


def _within(low: float, high: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda z: (torch.full_like(z[0], low), torch.full_like(z[0], high))


def _snowed(height: int, width: int) -> int:
    """How many flakes there are."""
    return sum(len(range(first, height, FLAKES)) * len(range(first, width, FLAKES)) for first, _, _ in STREAKS)


def _waving(height: int, width: int) -> int:
    """How many Gabor kernels there are."""
    return ANGLES * len(range(KERNELS // 2, height, KERNELS)) * len(range(KERNELS // 2, width, KERNELS))


def _whole(side: int) -> int:
    """The side made up to full JPEG blocks."""
    return -(-side // BLOCK) * BLOCK


# --- patterns: what one number paints -----------------------------------------------------------------------------


def _painted(z: Tensor, x: Tensor, pattern: Callable[[int, int], Array]) -> Tensor:
    """The sum of patterns by their weights: [B, D] -> [B, 1, H, W]."""
    return (z @ _basis(pattern, x)).view(len(z), 1, *x.shape[2:])


def _basis(pattern: Callable[[int, int], Array], x: Tensor) -> Tensor:
    return _stored(pattern, x.shape[2], x.shape[3], x.dtype, x.device)


@cache
def _stored(
    pattern: Callable[[int, int], Array], height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Patterns [D, H W] where the images are: moved there once, since moving waits for the device."""
    values = pattern(height, width)
    values[abs(values) < FAINT] = 0
    return torch.from_numpy(values).flatten(1).to(device, dtype)


def _smooth(height: int, width: int) -> Array:
    """Gaussian weights of the NODES x NODES lattice points, which sum to one at every pixel: [64, H, W]."""
    nodes = np.linspace(0, 1, NODES)[:, None]
    sides = [np.exp(-0.5 * ((np.linspace(0, 1, n) - nodes) * (NODES - 1) / 0.75) ** 2) for n in (height, width)]
    down, across = (weight / weight.sum(0) for weight in sides)
    return np.asarray(np.einsum("ih,jw->ijhw", down, across).reshape(-1, height, width))


def _fractal(height: int, width: int) -> Array:
    """What diamond-square makes of a unit at each of the NODES x NODES points, on a torus, cut: [64, H, W]."""
    side = 1 << (max(height, width, NODES) - 1).bit_length()
    added, field = np.zeros((2, NODES**2, side, side))
    added[:, :: side // NODES, :: side // NODES] = np.eye(NODES**2).reshape(-1, NODES, NODES)
    field[:, 0, 0] = added[:, 0, 0]
    step, weight = side, 1.0
    while step > 1:
        near, half = slice(None, None, step), slice(step // 2, None, step)
        corners = field[:, near, near]
        pairs = corners + np.roll(corners, -1, 1)
        field[:, half, half] = (pairs + np.roll(pairs, -1, 2)) / 4 + weight * added[:, half, half]
        centres = field[:, half, half]
        level = (corners + np.roll(corners, -1, 2) + centres + np.roll(centres, 1, 1)) / 4
        upright = (pairs + centres + np.roll(centres, 1, 2)) / 4
        field[:, near, half] = level + weight * added[:, near, half]
        field[:, half, near] = upright + weight * added[:, half, near]
        step, weight = step // 2, weight / 2
    thickness = field[:, :height, :width]
    return np.asarray(thickness / thickness.sum(0).max())


def _flakes(height: int, width: int) -> Array:
    """Streaks of brightness 1: [D, H, W]."""
    kinds = []
    for first, angle, half in STREAKS:
        down, across = _around(height, width, first, FLAKES)
        along = across * math.cos(angle) + down * math.sin(angle)
        beside = across * math.sin(angle) - down * math.cos(angle)
        beyond = np.maximum(abs(along) - half, 0)
        kinds.append(np.exp(-(beside**2 + beyond**2) / (2 * THIN**2)))
    return np.concatenate(kinds)


def _waves(height: int, width: int) -> Array:
    """Gabor kernels, scaled so that their absolute values sum to 1 at most: [D, H, W]."""
    down, across = _around(height, width, KERNELS // 2, KERNELS)
    window = np.exp(-(down**2 + across**2) / (2 * SPREAD**2))
    angles = np.arange(ANGLES) * math.pi / ANGLES
    along = [across * math.cos(angle) + down * math.sin(angle) for angle in angles]
    kernels = np.concatenate([window * np.cos(2 * math.pi / WAVE * distance) for distance in along])
    return np.asarray(kernels / abs(kernels).sum(0).max())


def _around(height: int, width: int, first: int, spacing: int) -> tuple[Array, Array]:
    """How far every pixel lies below, and to the right, of points of a lattice: [points, H, W] each."""
    down, across = (np.arange(n) - np.arange(first, n, spacing)[:, None] for n in (height, width))
    shape = (len(down), len(across), height, width)
    below = np.broadcast_to(down[:, None, :, None], shape).reshape(-1, height, width)
    right = np.broadcast_to(across[None, :, None, :], shape).reshape(-1, height, width)
    return below.astype(float), right.astype(float)


# --- JPEG ---------------------------------------------------------------------------------------------------------


@cache
def _cosines(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The inverse cosine transform, orthonormal, of all blocks along a side: [side, coefficients]."""
    place, wave = np.arange(BLOCK)[:, None], np.arange(BLOCK)
    block = np.cos((2 * place + 1) * wave * math.pi / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    block[:, 0] /= math.sqrt(2)
    return torch.from_numpy(np.kron(np.eye(_whole(side) // BLOCK), block)[:side]).to(device, dtype)


@cache
def _steps(channels: int, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Quantization steps, of images in [0, 1], where their coefficients lie: [C, height, width]."""
    chrominance = np.full((BLOCK, BLOCK), 99)
    chrominance[:4, :4] = CHROMINANCE
    tables = np.stack([np.array(LUMINANCE), chrominance, chrominance])[:channels] / 255
    return torch.from_numpy(np.tile(tables, (1, height // BLOCK, width // BLOCK))).to(device, dtype)


@cache
def _to_rgb(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(TO_RGB, dtype=dtype, device=device)


# --- all of them --------------------------------------------------------------------------------------------------

DISTORTIONS = {
    "spatial": Distortion(transform.identity, transform.decode, lambda t: transform.box("real", t.device), eta=0.1),
    "elastic": Distortion(_zeros(lambda c, h, w: 2 * NODES**2), elastic, _within(-8, 8), eta=1.0),
    "fog": Distortion(_zeros(lambda c, h, w: NODES**2), fog, _within(0, 8), eta=1.0),
    "snow": Distortion(_zeros(lambda c, h, w: _snowed(h, w)), snow, _within(0, 1), eta=0.5),
    "gabor": Distortion(_zeros(lambda c, h, w: _waving(h, w)), gabor, _within(-1, 1), eta=0.4),
    "jpeg": Distortion(_zeros(lambda c, h, w: c * _whole(h) * _whole(w)), jpeg, _within(-8, 8), eta=0.25),
    "colour": Distortion(_zeros(lambda c, h, w: c * KNOTS[c] ** c), colour, _within(-1, 1), eta=0.15),
}
