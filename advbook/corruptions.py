"""MNIST-C and CIFAR-10-C style corruptions: what may happen to an image without an adversary, in five severities.

The parameters and the order of operations are those of the functions that made the two benchmarks
(google-research/mnist-c, corruptions.py; hendrycks/robustness, make_cifar_c.py); the code is our own, on float images.
So the images are not bit-identical to the published files: the random numbers differ, rounding to 8 bits is repeated
only where an operation needs it (JPEG, pixelate, the water of spatter), and what the originals take from ImageMagick,
OpenCV or scikit-image (motion blur, Canny's edges, distances, elastic warps) is written from its definition. Known
quirks of the originals are kept: see glass_blur and shear. Lengths are in pixels, as there; only where the original
speaks of its image side (28 or 32) is it the side of x.

Left out of CIFAR-10-C is `frost`, which pastes photographs of frost; so 18 of its 19 names are here (15 of the
benchmark's main list, less frost, and its 4 extra ones). Of MNIST-C, all 15 are here.

Sources: Mu and Gilmer, "MNIST-C", 2019; Hendrycks and Dietterich, "Benchmarking neural network robustness to common
corruptions and perturbations", ICLR 2019.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO
from itertools import pairwise, product
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

Style = Literal["mnist_c", "cifar10_c"]
Array = NDArray[np.float64]  # images: [B, C, H, W] in [0, 1]
Rng = np.random.Generator
T = TypeVar("T")
Corruption = Callable[..., Array]  # (images, random numbers, the parameters of a severity) -> images, not yet clipped

SMALLEST = 8  # pixels: below this, lines and blurs have no room
MUD = np.array([63, 42, 20])[:, None, None] / 255  # brown; its first number is the grey of MNIST-C
WATER = np.array([175, 238, 238])[:, None, None] / 255  # pale turquoise
LUMA = np.array([0.299, 0.587, 0.114])[:, None, None]  # the grey of an RGB colour
ROUNDING = 1e-9  # what is nearer than this is equal, so that ties do not depend on the machine
RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])  # light from the lower right


def corrupt(x: Tensor, name: str, severity: int, *, style: Style, generator: torch.Generator) -> Tensor:
    """Corrupt images in the manner of MNIST-C or CIFAR-10-C.

    x: [B, C, H, W] float in [0, 1], C = 1 for mnist_c and 3 for cifar10_c; name: one of NAMES[style]; severity: 1 to 5
    (for stripe, dotted_line, zigzag and canny_edges all five are the same). Returns the same shape, dtype and device,
    in [0, 1]; no gradient passes. One number is drawn from the generator, and all else follows from it. Raises
    ValueError for an unknown style or name, another severity, colours, size or type of x, or values outside [0, 1].
    """
    corruption, parameters = _known("name", name, _known("style", style, _TABLE))
    if severity not in range(1, 6):
        raise ValueError(f"severity = {severity}: allowed are 1 to 5.")
    _check(x, {"mnist_c": 1, "cifar10_c": 3}[style])
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    images = x.detach().cpu().double().numpy()
    result = corruption(images, np.random.default_rng(seed), *parameters[severity - 1])
    return torch.from_numpy(result.clip(0, 1)).to(x)


def _known(what: str, name: str, allowed: Mapping[str, T]) -> T:
    """The entry called `name`; if there is none, ValueError with the nearest one."""
    if name in allowed:
        return allowed[name]
    (near,) = difflib.get_close_matches(name.lower().replace("-", "_"), allowed, n=1, cutoff=0)
    raise ValueError(f"{what} = {name!r}: did you mean {near!r}? Allowed are {', '.join(allowed)}.")


def _check(x: Tensor, colours: int) -> None:
    """Raise ValueError unless x is a batch of images with so many colours."""
    if x.ndim != 4 or x.shape[1] != colours or min(x.shape[2:]) < SMALLEST or not len(x):
        wanted = f"at least one image with {colours} colours and sides of at least {SMALLEST}"
        raise ValueError(f"x has the shape {list(x.shape)}: allowed is [B, C, H, W], {wanted}.")
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}: allowed are float types.")
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError(f"x has values from {x.min():.3g} to {x.max():.3g}: allowed are 0 to 1, and no NaN.")


# --- noise --------------------------------------------------------------------------------------------------------


def gaussian_noise(x: Array, rng: Rng, sd: float) -> Array:
    """Add normal noise."""
    return x + rng.normal(0, sd, x.shape)


def shot_noise(x: Array, rng: Rng, rate: float) -> Array:
    """Count photons, `rate` of them in a white pixel: mean x, variance x / rate."""
    return rng.poisson(x * rate) / rate


def impulse_noise(x: Array, rng: Rng, amount: float) -> Array:
    """Set a share `amount` of all values to 0 or to 1."""
    return np.where(rng.random(x.shape) < amount, rng.random(x.shape) < 0.5, x)


def speckle_noise(x: Array, rng: Rng, sd: float) -> Array:
    """Add normal noise that grows with the value."""
    return x * (1 + rng.normal(0, sd, x.shape))


# --- blur ---------------------------------------------------------------------------------------------------------


def _blur(x: Array, sigma: float, axes: tuple[int, ...] = (2, 3)) -> Array:
    """A Gaussian mean over four standard deviations, the border repeated."""
    return ndimage.gaussian_filter(x, sigma, mode="nearest", axes=axes)


def gaussian_blur(x: Array, rng: Rng, sigma: float) -> Array:
    """Blur by a Gaussian."""
    return _blur(x, sigma)


def glass_blur(
    x: Array, rng: Rng, sigma: float, delta: int, passes: int, *, axes: tuple[int, ...], chance: float, swap: bool
) -> Array:
    """Blur, let pixels change places with others up to `delta` away, blur again.

    Two quirks of the originals: MNIST-C blurs down the columns only (axes), since the width is taken for colours; in
    CIFAR-10-C a pixel is overwritten, not exchanged (swap), since the exchange goes through views of one array.
    """
    height, width = x.shape[2:]
    every, source = np.arange(len(x)), np.tile(np.arange(height * width), (len(x), 1))
    rows, columns = (range(side - delta, delta, -1) for side in (height, width))
    # One pixel after the other, since a pixel may travel on; but all images at once.
    for _, row, column in product(range(passes), rows, columns):
        down, across = rng.integers(-delta, delta, (2, len(x))) * (rng.random(len(x)) < chance)
        here, there = row * width + column, (row + down) * width + column + across
        other = source[every, there]
        if swap:
            source[every, there] = source[:, here]
        source[:, here] = other
    soft = _blur(x, sigma, axes).reshape(*x.shape[:2], -1)
    return _blur(np.take_along_axis(soft, source[:, None], 2).reshape(x.shape), sigma, axes)


def _disk(radius: float, alias: float) -> Array:
    """A disk whose weights add up to 1, its edge softened by 3 x 3 Gaussian weights."""
    reach = np.arange(-np.ceil(radius) - 1, np.ceil(radius) + 2)
    disk = (reach**2 + reach[:, None] ** 2 <= radius**2).astype(float)
    return ndimage.gaussian_filter(disk / disk.sum(), alias, radius=1, mode="constant")


def defocus_blur(x: Array, rng: Rng, radius: float, alias: float) -> Array:
    """The mean over a disk."""
    return ndimage.convolve(x, _disk(radius, alias)[None, None], mode="mirror")


def _trail(x: Array, degrees: Array, radius: int, sigma: float) -> Array:
    """Smear each image along its own direction, to one side, as ImageMagick does: [B, C, H, W], [B] -> [B, C, H, W].

    The pixels i = 0 ... 2 radius along the ray, to the nearest pixel, with weights exp(-i^2 / (2 sigma^2)) / sum.
    """
    i = np.arange(2 * radius + 1)
    weights = np.exp(-(i**2) / (2 * sigma**2))
    angle = np.deg2rad(degrees)[:, None, None, None]
    image, colour, row, column = np.ix_(*map(np.arange, x.shape))
    smeared = np.zeros_like(x)
    for step, weight in zip(i, weights / weights.sum(), strict=True):
        down, across = (np.ceil(step * part - 0.5).astype(int) for part in (np.sin(angle), np.cos(angle)))
        rows, columns = (row + down).clip(0, x.shape[2] - 1), (column + across).clip(0, x.shape[3] - 1)
        smeared += weight * x[image, colour, rows, columns]
    return smeared


def motion_blur(x: Array, rng: Rng, radius: int, sigma: float) -> Array:
    """Smear along a direction within 45 degrees of the horizontal."""
    return _trail(x, rng.uniform(-45, 45, len(x)), radius, sigma)


def _zoom(x: Array, factor: float) -> Array:
    """Magnify the middle of the images, linearly."""

    def weights(side: int) -> Array:  # [H, H]: which pixels an enlarged pixel is made of
        kept = int(np.ceil(side / factor))
        size = round(kept * factor)
        place = (side - kept) // 2 + np.linspace(0, kept - 1, size)[(size - side) // 2 :][:side]
        nearness: Array = 1 - np.abs(place[:, None] - np.arange(side))
        return nearness.clip(min=0)

    return weights(x.shape[2]) @ x @ weights(x.shape[3]).T


def zoom_blur(x: Array, rng: Rng, stop: float) -> Array:
    """The mean of the image and its magnifications by 1, 1.01, ... up to `stop`."""
    factors = np.arange(1, stop, 0.01)
    total: Array = sum((_zoom(x, factor) for factor in factors), start=x)
    return total / (1 + len(factors))


# --- weather ------------------------------------------------------------------------------------------------------


def _plasma(rng: Rng, side: int, decay: float) -> Array:
    """A cloud by the diamond-square algorithm on a torus, its swing divided by `decay` at each halving: [side, side] in
    [0, 1]; side is a power of two.
    """
    height, step, swing = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half = step // 2

        def around(four: Array, swing: float = swing) -> Array:
            return four / 4 + swing * rng.uniform(-swing, swing, four.shape)

        corner = height[::step, ::step]
        pair = corner + np.roll(corner, -1, 0)
        centre = around(pair + np.roll(pair, -1, 1))
        height[half::step, half::step] = centre
        height[::step, half::step] = around(corner + np.roll(corner, -1, 1) + centre + np.roll(centre, 1, 0))
        height[half::step, ::step] = around(pair + centre + np.roll(centre, 1, 1))
        step, swing = half, swing / decay
    cloud: Array = (height - height.min()) / np.ptp(height)
    return cloud


def fog(x: Array, rng: Rng, thickness: float, decay: float, *, least: int) -> Array:
    """Add a cloud, cut from a map of side `least` or more, and darken to the old maximum."""
    height, width = x.shape[2:]
    side = max(least, 1 << (max(height, width) - 1).bit_length())
    cloud = np.stack([_plasma(rng, side, decay)[None, :height, :width] for _ in x])
    brightest: Array = x.max((1, 2, 3), keepdims=True)
    return (x + thickness * cloud) * brightest / (brightest + thickness)


def snow(
    x: Array, rng: Rng, mean: float, sd: float, zoom: float, threshold: float, radius: int, sigma: float, keep: float
) -> Array:
    """Fade towards white, add falling flakes (magnified normal noise above a threshold, smeared) and the same upside
    down.
    """
    flakes = _zoom(rng.normal(mean, sd, (len(x), 1, *x.shape[2:])), zoom)
    flakes = np.where(flakes < threshold, 0, flakes.clip(0, 1))
    falling = _trail(flakes, rng.uniform(-135, -45, len(x)), radius, sigma)
    grey: Array = (LUMA * x).sum(1, keepdims=True)
    faded = keep * x + (1 - keep) * np.maximum(x, 1.5 * grey + 0.5)
    return faded + falling + falling[:, :, ::-1, ::-1]


def spatter(
    x: Array, rng: Rng, mean: float, sd: float, sigma: float, threshold: float, strength: float, mud: bool
) -> Array:
    """Splash mud over the image (strength: the blur of its edge) or drops of water (strength: their brightness)."""
    liquid = _blur(rng.normal(mean, sd, (len(x), 1, *x.shape[2:])), sigma)
    if mud:
        cover = _blur((liquid > threshold).astype(float), strength)
        cover[cover < 0.8] = 0
        return x * (1 - cover) + MUD[: x.shape[1]] * cover
    drops = np.where(liquid < threshold, 0, np.floor(255 * liquid.clip(0, 1)))
    drops *= np.stack([_relief(edge)[None] for edge in _edges(drops[:, 0], 50, 150)])
    most = drops.max((2, 3), keepdims=True)
    return x + strength * WATER * drops / np.where(most > 0, most, 1)


def _relief(edges: NDArray[np.bool_]) -> Array:
    """How brightly light from the lower right falls on drops with these outlines: [H, W] -> [H, W], 0 to 255.

    It is the distance to the outline, up to 20 pixels, smoothed, equalized (each value is replaced by the share of
    pixels that have at most that value), then differentiated towards the light.
    """
    far = ndimage.distance_transform_edt(~edges) if edges.any() else np.full(edges.shape, 20.0)
    level = np.floor(ndimage.uniform_filter(np.minimum(far, 20), 3, mode="mirror") + ROUNDING)
    rank = np.searchsorted(np.sort(level, None), level, "right")
    equal = np.rint(255 * (rank - rank.min()) / max(rank.size - rank.min(), 1))
    lit = ndimage.correlate(equal, RELIEF, mode="mirror").clip(0, 255)
    return np.rint(ndimage.uniform_filter(lit, 3, mode="mirror"))


# --- colour and coding --------------------------------------------------------------------------------------------


def contrast(x: Array, rng: Rng, factor: float) -> Array:
    """Shrink each colour towards its mean over the image."""
    mean: Array = x.mean((2, 3), keepdims=True)
    return mean + factor * (x - mean)


def brightness(x: Array, rng: Rng, more: float) -> Array:
    """Add to the value of HSV, which is the largest colour; hue and saturation stay. Grey pixels: x + more."""
    value: Array = x.max(1, keepdims=True)
    brighter = np.minimum(value + more, 1)
    return np.where(value > 0, x / np.where(value > 0, value, 1), 1) * brighter


def saturate(x: Array, rng: Rng, factor: float, more: float) -> Array:
    """Replace the saturation s of HSV by factor s + more; hue and value stay. Grey counts as red."""
    value: Array = x.max(1, keepdims=True)
    chroma = value - x.min(1, keepdims=True)
    red = np.array([0, 1, 1])[:, None, None]
    hue = np.where(chroma > 0, (value - x) / np.where(chroma > 0, chroma, 1), red)  # of the largest colour 0, ...
    saturation = factor * chroma / np.where(value > 0, value, 1) + more
    missing: Array = saturation.clip(0, 1) * hue  # ... of the smallest 1
    return value * (1 - missing)


def _by_pillow(x: Array, change: Callable[[Image.Image], Image.Image]) -> Array:
    """Change images of 8 bits one by one."""
    pixels = np.rint(255 * x).astype(np.uint8).transpose(0, 2, 3, 1)
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels]).transpose(0, 3, 1, 2) / 255


def jpeg_compression(x: Array, rng: Rng, quality: int) -> Array:
    """Write and read a JPEG file, in memory."""

    def through_jpeg(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(x, through_jpeg)


def pixelate(x: Array, rng: Rng, share: float) -> Array:
    """Shrink both sides to a share of their pixels and enlarge again, by box means."""
    full = x.shape[3], x.shape[2]
    small = int(full[0] * share), int(full[1] * share)
    box = Image.Resampling.BOX
    return _by_pillow(x, lambda image: image.resize(small, box).resize(full, box))


# --- geometry -----------------------------------------------------------------------------------------------------


def _sample(x: Array, places: Array, mode: str) -> Array:
    """Read images between their pixels, linearly, at rows and columns [B, 2, H, W]; mode: what lies outside."""
    read = partial(ndimage.map_coordinates, order=1, mode=mode)
    return np.stack([[read(plane, place) for plane in image] for image, place in zip(x, places, strict=True)])


def _affine(x: Array, matrix: Array, shift: Array | float = 0.0) -> Array:
    """Read pixel p at matrix (p - centre) + centre + shift, rows first, black outside: [B, 2, 2], [B, 2]."""
    centre = (np.array(x.shape[2:]) - 1) / 2
    offset = np.indices(x.shape[2:]) - centre[:, None, None]
    moved = np.einsum("bij,jhw->bihw", matrix, offset)
    places = moved + np.broadcast_to(centre + shift, (len(x), 2))[:, :, None, None]
    return _sample(x, places, "grid-constant")


def _either(rng: Rng, shape: int | tuple[int, int]) -> Array:
    """-1 or 1 with equal chance."""
    return rng.choice([-1.0, 1.0], shape)


def _matrices(rows: Iterable[Iterable[Array]]) -> Array:
    """2 x 2 matrices from their entries [B]: [B, 2, 2]."""
    return np.moveaxis(np.array(rows), 2, 0)


def shear(x: Array, rng: Rng, angle: float) -> Array:
    """Shear by an angle (rad) to either side; rows are read at cos(angle) of their height, as scikit-image did then."""
    a = angle * _either(rng, len(x))
    return _affine(x, _matrices([[np.cos(a), 0 * a], [-np.sin(a), 0 * a + 1]]))


def rotate(x: Array, rng: Rng, angle: float) -> Array:
    """Turn by an angle (rad) to either side."""
    a = angle * _either(rng, len(x))
    return _affine(x, _matrices([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]))


def scale(x: Array, rng: Rng, share: float) -> Array:
    """Shrink to a share of the size."""
    return _affine(x, np.tile(np.eye(2) / share, (len(x), 1, 1)))


def translate(x: Array, rng: Rng, pixels: int) -> Array:
    """Move by so many pixels along both sides, each to either side."""
    return _affine(x, np.tile(np.eye(2), (len(x), 1, 1)), pixels * _either(rng, (len(x), 2)))


def elastic_transform(x: Array, rng: Rng, strength: float, sigma: float, jitter: float) -> Array:
    """Warp by the affine map that moves three points by up to `jitter`, then by a field of smooth noise.

    strength, sigma and jitter are in sides of the image. The noise is uniform in [-strength, strength] before a
    Gaussian of width sigma smooths it.
    """
    side, grid = min(x.shape[2:]), np.indices(x.shape[2:], float)
    fixed = np.array(x.shape[2:]) // 2 + side // 3 * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = fixed + rng.uniform(-jitter * side, jitter * side, (len(x), 3, 2))
    back = np.linalg.solve(np.pad(moved, ((0, 0), (0, 0), (0, 1)), constant_values=1), fixed)  # [B, 3, 2]
    places = np.einsum("jhw,bji->bihw", grid, back[:, :2]) + back[:, 2, :, None, None]
    noise = rng.uniform(-strength * side, strength * side, places.shape)
    field = ndimage.gaussian_filter(noise, sigma * side, mode="reflect", truncate=3, axes=(2, 3))
    return _sample(_sample(x, places, "mirror"), grid + field, "reflect")


# --- lines --------------------------------------------------------------------------------------------------------


def stripe(x: Array, rng: Rng) -> Array:
    """Invert the outer quarters, left and right."""
    quarter = x.shape[3] // 4
    striped = 1 - x
    striped[..., quarter:-quarter] = x[..., quarter:-quarter]
    return striped


def _stroke(x: Array, column: Array, row: Array, to_column: Array, to_row: Array) -> Array:
    """A line from point to point, 1 in its middle, 0 from 1.5 pixels above and below it: coordinates [B, 1, 1, 1]."""
    columns = np.arange(x.shape[3])
    run = to_column - column  # a stroke that turns back, on a tiny image, is left out
    line = row + (to_row - row) / np.where(run > 0, run, np.inf) * (columns - column)
    far = np.abs(np.arange(x.shape[2])[:, None] - line)
    ink = 1 + np.log(1 - np.minimum(far / 2.3, 1 - 1e-10))
    return np.where((columns >= np.floor(column)) & (columns < np.ceil(to_column)), ink.clip(0, 1), 0)


def dotted_line(x: Array, rng: Rng) -> Array:
    """Draw a line from the left to the right border, two pixels in four."""
    start, end = rng.integers(0, x.shape[2] - 1, (2, len(x), 1, 1, 1)).astype(float)
    left = np.zeros_like(start)
    return x + _stroke(x, left, start, left + x.shape[3] - 1, end) * (np.arange(x.shape[3]) // 2 % 2)


def zigzag(x: Array, rng: Rng) -> Array:
    """Draw a zigzag about a line from column 2 to the third last one; its teeth are 2 pixels high and 2 apart."""
    reach = x.shape[3] - 5
    start = rng.integers(0, x.shape[2] - 1, (len(x), 1, 1, 1))
    drop = rng.integers(-5, 5, start.shape)
    length = np.hypot(reach, drop)
    teeth = np.arange(2, reach, 4)
    along = [0 * length, *(0 * length + tooth for tooth in teeth), length]
    height = 2.0 * (-1) ** np.arange(len(teeth))
    # The published rule for the last point; 1 keeps it finite for sides that are not published.
    last = height[-1] / (2 * np.maximum(length - 4 * (reach // 4), 1))
    aside = [0 * length, *(0 * length + h for h in height), last]
    points = [
        (2 + (a * reach - b * drop) / length, start + (a * drop + b * reach) / length)
        for a, b in zip(along, aside, strict=True)
    ]
    return x + sum(_stroke(x, *one, *next_) for one, next_ in pairwise(points))


def _edges(smooth: Array, low: float, high: float) -> NDArray[np.bool_]:
    """Canny's edges: [B, H, W] -> [B, H, W], none in the outermost pixels.

    Where the gradient (Sobel) is at least as large as at its two neighbours along its direction, and at least `low`,
    and connected to such a pixel with at least `high`.
    """
    gradient = np.stack([[ndimage.sobel(image, axis) for axis in (0, 1)] for image in smooth])  # [B, 2, H, W]
    size = np.hypot(gradient[:, 0], gradient[:, 1])
    longest = np.abs(gradient).max(1, keepdims=True)
    step = gradient / np.where(longest > 0, longest, 1)
    grid = np.indices(size.shape[1:])
    ahead, behind = (_sample(size[:, None], grid + way * step, "nearest")[:, 0] for way in (1, -1))
    weak = (size >= np.maximum(ahead, behind) - ROUNDING) & (size >= low)
    weak &= np.pad(np.ones(np.subtract(size.shape[1:], 2), bool), 1)
    touching = np.zeros((3, 3, 3), bool)
    touching[1] = True  # eight neighbours in the same image
    labels, count = ndimage.label(weak, touching)
    strong = np.zeros(count + 1, bool)
    strong[labels[weak & (size >= high)]] = True
    return strong[labels]


def canny_edges(x: Array, rng: Rng) -> Array:
    """Replace the image by its edges, found after a Gaussian of width 1 with the thresholds .1 and .2."""
    share = partial(ndimage.gaussian_filter, sigma=1, mode="constant", axes=(2, 3))
    return _edges((share(x) / share(np.ones_like(x)))[:, 0], 0.1, 0.2)[:, None].astype(float)


# --- the official severities --------------------------------------------------------------------------------------


def _each(*values: float) -> tuple[tuple[float], ...]:
    """Severities with one parameter."""
    return tuple((value,) for value in values)


_NO_SEVERITY = ((),) * 5
_TABLE: dict[str, dict[str, tuple[Corruption, Sequence[Sequence[float]]]]] = {
    "mnist_c": {
        "shot_noise": (shot_noise, _each(60, 25, 12, 5, 3)),
        "impulse_noise": (impulse_noise, _each(0.03, 0.06, 0.09, 0.17, 0.27)),
        "glass_blur": (
            partial(glass_blur, axes=(2,), chance=0.5, swap=True),
            ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ),
        "motion_blur": (motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
        "shear": (shear, _each(0.2, 0.4, 0.6, 0.8, 1)),
        "scale": (scale, _each(0.9, 0.8, 0.7, 0.6, 0.5)),
        "rotate": (rotate, _each(0.2, 0.4, 0.6, 0.8, 1)),
        "brightness": (brightness, _each(0.1, 0.2, 0.3, 0.4, 0.5)),
        "translate": (translate, _each(1, 2, 3, 4, 5)),
        "stripe": (stripe, _NO_SEVERITY),
        "fog": (partial(fog, least=256), ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
        "spatter": (
            spatter,
            (
                (0.65, 0.3, 4, 0.69, 0.6, True), (0.65, 0.3, 3, 0.68, 0.6, True), (0.65, 0.3, 2, 0.68, 0.5, True),
                (0.65, 0.3, 1, 0.65, 1.5, True), (0.67, 0.4, 1, 0.65, 1.5, True),
            ),
        ),
        "dotted_line": (dotted_line, _NO_SEVERITY),
        "zigzag": (zigzag, _NO_SEVERITY),
        "canny_edges": (canny_edges, _NO_SEVERITY),
    },
    "cifar10_c": {
        "gaussian_noise": (gaussian_noise, _each(0.04, 0.06, 0.08, 0.09, 0.1)),
        "shot_noise": (shot_noise, _each(500, 250, 100, 75, 50)),
        "impulse_noise": (impulse_noise, _each(0.01, 0.02, 0.03, 0.05, 0.07)),
        "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
        "glass_blur": (
            partial(glass_blur, axes=(2, 3), chance=1, swap=False),
            ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ),
        "motion_blur": (motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
        "zoom_blur": (zoom_blur, _each(1.06, 1.11, 1.16, 1.21, 1.26)),
        "snow": (
            snow,
            (
                (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
            ),
        ),
        "fog": (partial(fog, least=32), ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
        "brightness": (brightness, _each(0.05, 0.1, 0.15, 0.2, 0.3)),
        "contrast": (contrast, _each(0.75, 0.5, 0.4, 0.3, 0.15)),
        "elastic_transform": (
            elastic_transform,
            ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        ),
        "pixelate": (pixelate, _each(0.95, 0.9, 0.85, 0.75, 0.65)),
        "jpeg_compression": (jpeg_compression, _each(80, 65, 58, 50, 40)),
        "speckle_noise": (speckle_noise, _each(0.06, 0.1, 0.12, 0.16, 0.2)),
        "gaussian_blur": (gaussian_blur, _each(0.4, 0.6, 0.7, 0.8, 1)),
        "spatter": (
            spatter,
            (
                (0.62, 0.1, 0.7, 0.7, 0.5, False), (0.65, 0.1, 0.8, 0.7, 0.5, False), (0.65, 0.3, 1, 0.69, 0.5, False),
                (0.65, 0.1, 0.7, 0.69, 0.6, True), (0.65, 0.1, 0.5, 0.68, 0.6, True),
            ),
        ),
        "saturate": (saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
    },
}  # fmt: skip

NAMES: Mapping[Style, tuple[str, ...]] = {"mnist_c": tuple(_TABLE["mnist_c"]), "cifar10_c": tuple(_TABLE["cifar10_c"])}

# The severity of each corruption in the published MNIST-C, which has one file a corruption. This is an inference: the
# published repository has no script that writes the files and the functions' default arguments differ from one to the
# next, as if each had been set to what was used; its notebook, too, calls the functions without a severity. The four
# with no severity stand with 1.
OFFICIAL_SEVERITY: Mapping[str, int] = {
    "shot_noise": 5, "impulse_noise": 4, "glass_blur": 1, "motion_blur": 1, "shear": 2, "scale": 3, "rotate": 2,
    "brightness": 5, "translate": 3, "stripe": 1, "fog": 5, "spatter": 4, "dotted_line": 1, "zigzag": 1,
    "canny_edges": 1,
}  # fmt: skip
