"""advbook.corruptions: each one against its closed form, a plain loop or another library; shapes, seeds, bad input."""

import io
import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colors
from PIL import Image
from scipy import ndimage, stats
from toys import seeded

from advbook import corruptions, fonts
from advbook.corruptions import NAMES, OFFICIAL_SEVERITY, corrupt

ALL = [(style, name) for style, names in NAMES.items() for name in names]
COLOURS = {"mnist_c": 1, "cifar10_c": 3}
NO_SEVERITY = {"stripe", "dotted_line", "zigzag", "canny_edges"}
NO_CHANCE = {
    "scale", "brightness", "stripe", "canny_edges", "defocus_blur", "zoom_blur", "contrast", "pixelate",
    "jpeg_compression", "gaussian_blur", "saturate",
}  # fmt: skip
# As far as the official parameters go: fog of MNIST-C thickens while its cloud changes too, and 3 and 4 are alike.
NOT_MONOTONE = {("mnist_c", name) for name in (*NO_SEVERITY, "spatter", "fog")} | {
    ("cifar10_c", name) for name in ("glass_blur", "motion_blur", "elastic_transform", "saturate", "spatter")
}


def numbered(values):
    """(severity, value) for each of the five."""
    return list(enumerate(values, 1))


def dice(seed=0):
    return np.random.default_rng(seed)


def images(style, count=20):
    """Letters, or soft coloured blobs."""
    if style == "mnist_c":
        return fonts.prototypes()[: count // 10 + 1].reshape(-1, 1, 28, 28)[:count].clone()
    blobs = ndimage.gaussian_filter(dice(7).normal(size=(count, 3, 32, 32)), 1.5, axes=(2, 3))
    return torch.from_numpy((0.5 + 0.25 * blobs / blobs.std()).clip(0, 1)).float()


def apply(x, name, severity, style, seed=0):
    return corrupt(x, name, severity, style=style, generator=seeded(seed))


def spot(height, width, row, column, colours=1):
    """One white pixel on black."""
    x = np.zeros((1, colours, height, width))
    x[..., row, column] = 1
    return x


class Given:
    """A source of random numbers that gives what it is told, in turn."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def next(self, *_):
        return self.draws.pop(0)

    integers = random = uniform = normal = next


# --- what all have in common ----------------------------------------------------------------------------------


def test_the_names_are_those_of_the_benchmarks():
    assert NAMES["mnist_c"] == (
        "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "shear", "scale", "rotate", "brightness",
        "translate", "stripe", "fog", "spatter", "dotted_line", "zigzag", "canny_edges",
    )  # fmt: skip
    assert NAMES["cifar10_c"] == (
        "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
        "snow", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
        "speckle_noise", "gaussian_blur", "spatter", "saturate",
    )  # fmt: skip
    assert tuple(OFFICIAL_SEVERITY) == NAMES["mnist_c"]
    assert set(OFFICIAL_SEVERITY.values()) <= set(range(1, 6))


@pytest.mark.parametrize(("style", "name"), ALL)
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (33, 10)])
def test_images_of_any_side_keep_shape_type_and_range(style, name, size):
    x = torch.rand(3, COLOURS[style], *size, generator=seeded())
    for severity, dtype in zip(range(1, 6), (torch.float64, torch.float32, torch.bfloat16) * 2, strict=False):
        given_ = x.to(dtype).requires_grad_()
        kept = given_.detach().clone()
        result = apply(given_, name, severity, style)
        assert result.shape == x.shape
        assert result.dtype == dtype
        assert (result >= 0).all()
        assert (result <= 1).all()
        assert torch.equal(given_.detach(), kept), "the images given are left alone"
        assert not result.requires_grad


@pytest.mark.parametrize(("style", "name"), ALL)
def test_the_generator_alone_decides(style, name):
    x = images(style)
    generator = seeded(1)
    first = corrupt(x, name, 5, style=style, generator=generator)
    second = corrupt(x, name, 5, style=style, generator=generator)
    assert torch.equal(first, apply(x, name, 5, style, 1))
    assert not torch.equal(first, x)
    assert torch.equal(first, second) == (name in NO_CHANCE)


@pytest.mark.parametrize(("style", "name"), ALL)
def test_images_of_a_batch_are_corrupted_each_on_its_own(style, name):
    x = images(style, 16)
    if name in NO_CHANCE:
        apart = torch.cat([apply(one, name, 4, style) for one in x.split(3)])
        torch.testing.assert_close(apply(x, name, 4, style), apart)
    else:
        alike = apply(x[:1].expand(16, -1, -1, -1), name, 4, style)
        assert len(alike.flatten(1).unique(dim=0)) > 1, "copies of one image have chances of their own"


@pytest.mark.parametrize(("style", "name"), ALL)
def test_a_stronger_severity_moves_images_further(style, name):
    x = images(style, 40)
    moved = torch.stack([(apply(x, name, s, style) - x).flatten(1).norm(dim=1).mean() for s in range(1, 6)])
    if name in NO_SEVERITY:
        assert (moved == moved[0]).all()
    elif (style, name) not in NOT_MONOTONE:
        assert (moved.diff() > 0).all(), moved
    elif name != "fog":
        assert not (moved.diff() > 1e-3 * moved[1:]).all(), "not even the published parameters rise"
    assert moved[0] > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": "mnist"}, "style = 'mnist': did you mean 'mnist_c'"),
        ({"name": "shot-noice"}, "name = 'shot-noice': did you mean 'shot_noise'"),
        ({"name": "frost"}, "name = 'frost'"),
        ({"severity": 0}, "severity = 0: allowed are 1 to 5"),
        ({"severity": 6}, "severity = 6"),
        ({"x": torch.zeros(2, 3, 28, 28)}, r"shape \[2, 3, 28, 28\].*1 colours"),
        ({"x": torch.zeros(2, 1, 28, 28), "style": "cifar10_c"}, "3 colours"),
        ({"x": torch.zeros(1, 28, 28)}, r"shape \[1, 28, 28\]"),
        ({"x": torch.zeros(0, 1, 28, 28)}, "at least one image"),
        ({"x": torch.zeros(2, 1, 7, 28)}, "sides of at least 8"),
        ({"x": torch.zeros(2, 1, 28, 28, dtype=torch.uint8)}, "x is torch.uint8"),
        ({"x": torch.full((1, 1, 28, 28), 1.01)}, "from 1.01 to 1.01: allowed are 0 to 1"),
        ({"x": torch.full((1, 1, 28, 28), -0.01)}, "-0.01"),
        ({"x": torch.full((1, 1, 28, 28), math.nan)}, "nan"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_sentence(change, message):
    options = {"x": torch.zeros(2, 1, 28, 28), "name": "shot_noise", "severity": 1, "style": "mnist_c"} | change
    with pytest.raises(ValueError, match=message):
        corrupt(**options, generator=seeded())


# --- noise ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "name", "spreads"),
    [
        ("cifar10_c", "gaussian_noise", [0.04, 0.06, 0.08, 0.09, 0.1]),
        ("cifar10_c", "speckle_noise", [0.4 * sd for sd in (0.06, 0.1, 0.12, 0.16, 0.2)]),
        ("cifar10_c", "shot_noise", [(0.4 / rate) ** 0.5 for rate in (500, 250, 100, 75, 50)]),
        ("mnist_c", "shot_noise", [(0.4 / rate) ** 0.5 for rate in (60, 25)]),  # above, some values are clipped
    ],
)
def test_noise_has_the_published_spread_and_no_drift(style, name, spreads):
    x = torch.full((20, COLOURS[style], 50, 60), 0.4, dtype=torch.float64)
    for severity, spread in enumerate(spreads, 1):
        result = apply(x, name, severity, style)
        assert result.mean().item() == pytest.approx(0.4, abs=5 * spread / x.numel() ** 0.5)
        assert result.std().item() == pytest.approx(spread, rel=0.02)


def test_shot_noise_is_poisson():
    counts = corruptions.shot_noise(np.full((1, 1, 100, 200), 0.6), dice(), 3.0) * 3
    observed = np.bincount(counts.ravel().round().astype(int), minlength=9)[:9]
    expected = stats.poisson.pmf(np.arange(8), 1.8) * 20_000
    assert stats.chisquare([*observed[:8]], expected * observed[:8].sum() / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("style", "amounts"),
    [("cifar10_c", (0.01, 0.02, 0.03, 0.05, 0.07)), ("mnist_c", (0.03, 0.06, 0.09, 0.17, 0.27))],
)
def test_impulse_noise_hits_the_published_share_of_values_one_half_white(style, amounts):
    x = torch.full((20, COLOURS[style], 50, 60), 0.4)
    for severity, amount in enumerate(amounts, 1):
        result = apply(x, "impulse_noise", severity, style)
        white, black = (result == 1).sum().item(), (result == 0).sum().item()
        assert (result == 0.4).sum().item() == x.numel() - white - black
        assert stats.binomtest(white + black, x.numel(), amount).pvalue > 1e-3
        assert stats.binomtest(white, white + black, 0.5).pvalue > 1e-3


# --- blur -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["gaussian_blur", "glass_blur", "defocus_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"],
)
def test_a_blur_leaves_an_even_image_even(name):
    x = torch.tensor([0.2, 0.4, 0.6])[:, None, None].expand(2, 3, 17, 20)
    for severity in range(1, 6):
        torch.testing.assert_close(apply(x, name, severity, "cifar10_c"), x)


@pytest.mark.parametrize(("severity", "sigma"), numbered([0.4, 0.6, 0.7, 0.8, 1]))
def test_gaussian_blur_turns_a_spot_into_a_gaussian_of_the_published_width(severity, sigma):
    result = apply(torch.from_numpy(spot(21, 21, 10, 10, 3)), "gaussian_blur", severity, "cifar10_c")
    reach = int(4 * sigma + 0.5)
    bell = np.array([math.exp(-(i**2) / (2 * sigma**2)) * (abs(i) <= reach) for i in range(-10, 11)])
    bell /= bell.sum()
    np.testing.assert_allclose(result[0, 1], np.outer(bell, bell), atol=1e-12)


def test_defocus_blur_is_the_mean_over_a_disk_with_a_soft_edge():
    for radius, alias in [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)]:
        disk = np.zeros((9, 9))
        for row, column in product(range(9), repeat=2):
            disk[row, column] = (row - 4) ** 2 + (column - 4) ** 2 <= radius**2
        tap = math.exp(-1 / (2 * alias**2))
        soft = np.array([tap, 1, tap]) / (1 + 2 * tap)
        disk = ndimage.correlate(disk / disk.sum(), np.outer(soft, soft), mode="constant")
        result = corruptions.defocus_blur(spot(9, 9, 4, 4), dice(), radius, alias)
        np.testing.assert_allclose(result[0, 0], disk, atol=1e-12)


def test_the_edge_is_mirrored_without_repeating_it_in_defocus_blur():
    ramp = np.tile(np.arange(9.0), (9, 1))[None, None]
    result = corruptions.defocus_blur(ramp, dice(), 1.5, 0.1)
    assert result[0, 0, 4, 0] == pytest.approx(2 / 3)  # (1 + 0 + 1) / 3
    assert result[0, 0, 4, 4] == pytest.approx(4)


WAYS = [(0.0, (0, -1)), (90.0, (-1, 0)), (180.0, (0, 1)), (-90.0, (1, 0)), (45.0, (-1, -1))]


@pytest.mark.parametrize(("degrees", "way"), WAYS)
def test_a_trail_is_half_a_gaussian_along_its_direction(degrees, way):
    trail = corruptions._trail(spot(41, 41, 20, 20), np.array([degrees]), 6, 2.0)[0, 0]
    weights = [math.exp(-(i**2) / 8) for i in range(13)]
    wanted = np.zeros((41, 41))
    for i, weight in enumerate(weights):
        step = round(i / math.hypot(*way))
        wanted[20 + way[0] * step, 20 + way[1] * step] += weight / sum(weights)
    np.testing.assert_allclose(trail, wanted, atol=1e-12)


def test_motion_blur_goes_along_the_rows_more_or_less_and_each_image_has_its_own_direction():
    x = torch.from_numpy(spot(61, 61, 30, 45)).expand(60, -1, -1, -1)
    result = apply(x, "motion_blur", 5, "mnist_c")
    assert result.sum((1, 2, 3)) == pytest.approx(torch.ones(60).double())
    rows = (result.sum(3)[:, 0] * torch.arange(61)).sum(1) - 30
    columns = 45 - (result.sum(2)[:, 0] * torch.arange(61)).sum(1)
    slope = torch.rad2deg(torch.atan2(rows, columns))
    assert slope.abs().max() < 47
    assert stats.kstest(slope, stats.uniform(-45, 90).cdf).pvalue > 1e-3
    far = (result[0, 0] > 0).nonzero() - torch.tensor([30, 45])
    assert far.double().norm(dim=1).max() == pytest.approx(40, abs=1)  # twice the radius


@pytest.mark.parametrize("side", [8, 28, 32, 45])
@pytest.mark.parametrize("factor", [1, 1.01, 1.07, 1.25, 1.75, 2.25])
def test_zoom_agrees_with_scipy(side, factor):
    x = dice().random((side, side))
    kept = math.ceil(side / factor)
    first = (side - kept) // 2
    large = ndimage.zoom(x[first : first + kept, first : first + kept], factor, order=1)
    trim = (len(large) - side) // 2
    np.testing.assert_allclose(
        corruptions._zoom(x[None, None], factor)[0, 0], large[trim : trim + side, trim : trim + side], atol=1e-12
    )


def test_zoom_blur_is_the_mean_of_its_zooms_and_the_image_counts_twice():
    x = dice().random((2, 3, 32, 32))
    zooms = [corruptions._zoom(x, 1 + i / 100) for i in range(7)]  # 1, 1.01 ... 1.06: the stop slips in, as published
    np.testing.assert_allclose(corruptions.zoom_blur(x, dice(), 1.06), (x + sum(zooms)) / 8, atol=1e-12)


def test_glass_blur_of_mnist_exchanges_pixels_one_after_the_other():
    height, width, delta, passes = 7, 9, 2, 2
    x = dice(1).random((3, 1, height, width))
    scan = [(r, c) for _ in range(passes) for r in range(5, 2, -1) for c in range(7, 2, -1)]
    steps, coins = dice(2).integers(-delta, delta, (len(scan), 2, 3)), dice(3).random((len(scan), 3))
    draws = [draw for pair in zip(steps, coins, strict=True) for draw in pair]
    wanted = x.copy()
    for image in range(3):
        for (r, c), (down, across), coin in zip(scan, steps[:, :, image], coins[:, image], strict=True):
            if coin < 0.5:
                a, b = wanted[image, 0, r, c], wanted[image, 0, r + down, c + across]
                wanted[image, 0, r, c], wanted[image, 0, r + down, c + across] = b, a
    result = corruptions.glass_blur(x, Given(*draws), 0, delta, passes, axes=(2,), chance=0.5, swap=True)
    np.testing.assert_array_equal(result, wanted)
    np.testing.assert_array_equal(np.sort(result.reshape(3, -1)), np.sort(x.reshape(3, -1)))
    assert not np.array_equal(result, x)


def test_glass_blur_of_cifar_overwrites_each_pixel_by_a_neighbour_above_or_left():
    x = dice().random((40, 3, 10, 11))
    result = corruptions.glass_blur(x, dice(1), 0, 1, 1, axes=(2, 3), chance=1, swap=False)
    moved = np.zeros((2, 2))
    for row, column in product(range(2, 10), range(2, 11)):
        for down, across in product((0, 1), repeat=2):
            same = (result[:, :, row, column] == x[:, :, row - down, column - across]).all(1)
            moved[down, across] += same.sum()
    assert moved.sum() == 40 * 8 * 9
    assert stats.chisquare(moved.ravel()).pvalue > 1e-3
    np.testing.assert_array_equal(result[:, :, :2], x[:, :, :2])
    np.testing.assert_array_equal(result[:, :, :, :2], x[:, :, :, :2])


def test_glass_blur_blurs_twice_and_for_mnist_down_the_columns_only():
    x = spot(15, 15, 7, 7)
    still = {"delta": 8, "passes": 1, "chance": 1, "swap": True}  # no pixel has so much room
    once = np.exp(-(np.arange(-7, 8) ** 2) / 2) * (abs(np.arange(-7, 8)) <= 4)
    once /= once.sum()
    twice = np.convolve(once, once, "same")
    column = corruptions.glass_blur(x, dice(), 1, axes=(2,), **still)[0, 0]
    np.testing.assert_allclose(column[:, 7], twice, atol=1e-4)
    assert np.delete(column, 7, 1).max() == 0
    full = corruptions.glass_blur(x, dice(), 1, axes=(2, 3), **still)[0, 0]
    np.testing.assert_allclose(full, np.outer(twice, twice), atol=1e-4)
    letters = images("mnist_c")
    rows = apply(letters, "glass_blur", 1, "mnist_c").double().diff(dim=2).abs().mean()
    columns = apply(letters, "glass_blur", 1, "mnist_c").double().diff(dim=3).abs().mean()
    assert columns > 1.5 * rows


# --- weather --------------------------------------------------------------------------------------------------


def test_plasma_is_the_diamond_square_algorithm():
    side, decay = 8, 1.7
    cloud, numbers = np.zeros((side, side)), dice(3)
    step, swing = side, 100.0
    while step > 1:
        half = step // 2
        for row_start, column_start, near in (
            (half, half, [(-half, -half), (-half, half), (half, -half), (half, half)]),
            (0, half, [(0, -half), (0, half), (-half, 0), (half, 0)]),
            (half, 0, [(0, -half), (0, half), (-half, 0), (half, 0)]),
        ):
            for row, column in product(range(row_start, side, step), range(column_start, side, step)):
                four = [cloud[(row + r) % side, (column + c) % side] for r, c in near]
                cloud[row, column] = sum(four) / 4 + swing * numbers.uniform(-swing, swing)
        step, swing = half, swing / decay
    cloud = (cloud - cloud.min()) / (cloud.max() - cloud.min())
    np.testing.assert_allclose(corruptions._plasma(dice(3), side, decay), cloud, atol=1e-12)


def test_fog_adds_a_cloud_and_darkens_to_the_old_maximum():
    for severity, thickness in enumerate([0.2, 0.5, 0.75, 1, 1.5], 1):
        x = torch.full((2, 3, 32, 32), 0.6, dtype=torch.float64)
        x[1] = 0
        fog = apply(x, "fog", severity, "cifar10_c")
        assert (fog[1] == 0).all()
        assert fog.max().item() == pytest.approx(0.6)  # where the cloud is 1; all of a map of side 32 is in view
        assert fog[0].min().item() == pytest.approx(0.36 / (0.6 + thickness))
        assert torch.equal(fog[0, 0], fog[0, 2]), "fog is grey"


def test_fog_of_mnist_is_cut_from_a_larger_and_so_smoother_cloud():
    x = torch.zeros(30, 1, 28, 28, dtype=torch.float64)
    x[:, :, 0, 0] = 1
    thickness, cloud = 2.0, apply(x, "fog", 2, "mnist_c")[:, 0, 1:]
    cloud = cloud * (1 + thickness) / thickness  # black stays, so this is the cloud
    assert cloud.min() >= 0
    assert cloud.max() <= 1 + 1e-12
    spread = cloud.amax((1, 2)) - cloud.amin((1, 2))
    whole = np.ptp([corruptions._plasma(dice(i), 32, 2)[1:28, :28] for i in range(30)], axis=(1, 2))
    assert spread.median() < 0.6 * np.median(whole)


def test_snow_fades_to_white_and_falls_alike_from_both_ends():
    keep = [0.95, 0.9, 0.9, 0.85, 0.8]
    x = torch.rand(4, 3, 32, 32, generator=seeded(), dtype=torch.float64)
    grey = (0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]) * 1.5 + 0.5
    for severity in range(1, 6):
        few = keep[severity - 1] * x + (1 - keep[severity - 1]) * x.maximum(grey)
        falling = apply(x, "snow", severity, "cifar10_c") - few.clamp(max=1)
        assert falling.min() > -1e-9
        black = apply(torch.zeros_like(x), "snow", severity, "cifar10_c")
        torch.testing.assert_close(black, black.rot90(2, (2, 3)))
        assert torch.equal(black[:, 0], black[:, 2])
        assert black.min() >= (1 - keep[severity - 1]) / 2 - 1e-9
        assert black.diff(dim=2).abs().mean() < black.diff(dim=3).abs().mean(), "streaks run down"


def test_mud_covers_in_brown_what_it_covers():
    for style, severity in [("cifar10_c", 4), ("cifar10_c", 5), *(("mnist_c", s) for s in range(2, 6))]:
        white, black = (
            apply(torch.full((40, COLOURS[style], 32, 32), value, dtype=torch.float64), "spatter", severity, style)
            for value in (1.0, 0.0)
        )
        cover = 1 - (white - black)  # white (1 - m) + mud m less mud m
        assert ((cover.abs() < 1e-12) | (cover > 0.8 - 1e-12)).all()
        assert 0.01 < (cover > 0.5).double().mean() < 0.5
        brown = torch.tensor([63, 42, 20]).double()[: COLOURS[style], None, None] / 255
        torch.testing.assert_close(black, brown * cover)


def test_water_is_pale_turquoise_and_its_brightest_drop_is_published():
    x = torch.zeros(20, 3, 32, 32, dtype=torch.float64)
    for severity in (1, 2, 3):
        drops = apply(x, "spatter", severity, "cifar10_c")
        torch.testing.assert_close(drops[:, 0] * 238, drops[:, 1] * 175)
        assert torch.equal(drops[:, 1], drops[:, 2])
        most = drops.amax((1, 2, 3))
        assert ((most - 0.5 * 238 / 255).abs() < 1e-9).all() or severity < 3
        assert most.max().item() == pytest.approx(0.5 * 238 / 255)
        assert 0.01 < (drops[:, 0] > 0).double().mean() < 0.5


def test_drops_are_lit_from_below_right():
    row, column = np.indices((31, 31)) - 15
    outline = abs(np.hypot(row, column) - 10) < 0.6
    relief = corruptions._relief(outline)
    inside = np.hypot(row, column) < 8
    assert relief[inside & (row + column < -4)].mean() > 2 * relief[inside & (row + column > 4)].mean()
    np.testing.assert_allclose(relief, relief.T)
    assert 0 <= relief.min() < relief.max() <= 255
    assert (corruptions._relief(np.zeros((9, 9), bool)) == 0).all()


# --- colour and coding ----------------------------------------------------------------------------------------


def pixels():
    """Random colours, greys, black and white: [1, 3, 40, 40]."""
    x = dice().random((3, 40, 40))
    x[:, :10] = x[:1, :10]
    x[:, 10], x[:, 11] = 0, 1
    return x[None]


def hsv(x):
    return colors.rgb_to_hsv(np.moveaxis(x, 1, -1))


def rgb(x):
    return np.moveaxis(colors.hsv_to_rgb(x), -1, 1)


@pytest.mark.parametrize(("severity", "more"), numbered([0.05, 0.1, 0.15, 0.2, 0.3]))
def test_brightness_adds_to_the_value(severity, more):
    x = pixels()
    wanted = hsv(x)
    wanted[..., 2] = np.minimum(wanted[..., 2] + more, 1)
    result = apply(torch.from_numpy(x), "brightness", severity, "cifar10_c")
    np.testing.assert_allclose(result, rgb(wanted), atol=1e-12)


@pytest.mark.parametrize(("severity", "more"), numbered([0.1, 0.2, 0.3, 0.4, 0.5]))
def test_brightness_of_a_grey_image_is_a_sum(severity, more):
    x = torch.rand(2, 1, 9, 9, generator=seeded())
    torch.testing.assert_close(apply(x, "brightness", severity, "mnist_c"), (x + more).clamp(max=1))


@pytest.mark.parametrize(("severity", "law"), numbered([(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)]))
def test_saturate_changes_the_saturation_alone(severity, law):
    x = pixels()
    wanted = hsv(x)
    wanted[..., 1] = np.minimum(wanted[..., 1] * law[0] + law[1], 1)
    result = apply(torch.from_numpy(x), "saturate", severity, "cifar10_c")
    np.testing.assert_allclose(result, rgb(wanted), atol=1e-9)


@pytest.mark.parametrize(("severity", "factor"), numbered([0.75, 0.5, 0.4, 0.3, 0.15]))
def test_contrast_shrinks_about_the_mean_of_each_colour(severity, factor):
    x = torch.rand(2, 3, 9, 9, generator=seeded(), dtype=torch.float64)
    result = apply(x, "contrast", severity, "cifar10_c")
    torch.testing.assert_close(result.mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(result.std((2, 3)), factor * x.std((2, 3)))
    torch.testing.assert_close(result.diff(dim=3), factor * x.diff(dim=3))


def test_pixelate_takes_means_of_boxes():
    x = images("cifar10_c", 3)
    for severity, small in enumerate([30, 28, 27, 24, 20], 1):
        scale = 32 / small
        box = np.zeros((small, 32))
        for i in range(small):
            inside = [j for j in range(32) if i * scale <= j + 0.5 < (i + 1) * scale]
            box[i, inside] = 1 / len(inside)
        back = np.zeros((32, small))
        for j in range(32):
            back[j, int((j + 0.5) / scale)] = 1
        wanted = (back @ box) @ x.double().numpy() @ (back @ box).T
        result = apply(x, "pixelate", severity, "cifar10_c")
        np.testing.assert_allclose(result, wanted, atol=2.5 / 255)
        assert len(result[0, 0].unique(dim=0)) <= small


def test_jpeg_is_near_at_high_quality_and_keeps_grey_grey():
    grey = images("cifar10_c", 4).double().numpy()[:, :1].repeat(3, 1)
    near, far = (abs(corruptions.jpeg_compression(grey, dice(), q) - grey).mean() for q in (98, 40))
    assert near < 0.004 < 0.01 < far
    result = corruptions.jpeg_compression(grey, dice(), 60)
    assert abs(result - result[:, :1]).max() <= 2.5 / 255
    assert abs(corruptions.jpeg_compression(grey, dice(), 100) - grey).max() < 4 / 255


@pytest.mark.parametrize(("severity", "quality"), numbered([80, 65, 58, 50, 40]))
def test_jpeg_has_the_published_quality(severity, quality):
    x = images("cifar10_c", 1)
    file = io.BytesIO()
    Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    wanted = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    torch.testing.assert_close(apply(x, "jpeg_compression", severity, "cifar10_c")[0], wanted)


# --- geometry -------------------------------------------------------------------------------------------------


def by_torch(x, matrix):
    """x read at matrix (p - centre), columns first, by torch: x square, [B, 1, H, H]."""
    theta = torch.tensor([[*row, 0.0] for row in matrix], dtype=x.dtype).expand(len(x), 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, align_corners=True)


@pytest.mark.parametrize("name", ["rotate", "shear", "scale"])
@pytest.mark.parametrize("severity", range(1, 6))
def test_turns_shears_and_scales_agree_with_torch(name, severity):
    x = images("mnist_c", 12).double()
    result = apply(x, name, severity, "mnist_c")
    angle, share = severity / 5, 1 - severity / 10
    ways = []
    for a in (angle, -angle):
        matrix = {
            "rotate": [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]],
            "shear": [[1, -math.sin(a)], [0, math.cos(a)]],
            "scale": [[1 / share, 0], [0, 1 / share]],
        }[name]
        ways.append((result - by_torch(x, matrix)).abs().amax((1, 2, 3)) < 1e-9)
    assert (ways[0] | ways[1]).all()
    assert name == "scale" or (ways[0].any() and ways[1].any()), "to both sides"


def test_a_turn_moves_a_pixel_on_its_circle():
    x = torch.from_numpy(spot(29, 29, 14, 24)).expand(20, -1, -1, -1)  # 10 right of the centre
    moved = apply(x, "rotate", 5, "mnist_c").flatten(1).argmax(1)
    places = {(int(i) // 29 - 14, int(i) % 29 - 14) for i in moved}
    wanted = [(10 * math.sin(a), 10 * math.cos(a)) for a in (1.0, -1.0)]
    assert len(places) == 2
    for place in places:
        assert min(math.dist(place, w) for w in wanted) < 1


@pytest.mark.parametrize("severity", range(1, 6))
def test_translate_moves_by_whole_pixels_to_four_sides(severity):
    x = torch.from_numpy(spot(20, 24, 10, 12)).expand(60, -1, -1, -1)
    result = apply(x, "translate", severity, "mnist_c")
    places = {(int(i) // 24 - 10, int(i) % 24 - 12) for i in result.flatten(1).argmax(1)}
    assert places == set(product((-severity, severity), repeat=2))
    assert (result.amax((1, 2, 3)) == 1).all()
    assert (result.sum((1, 2, 3)) == 1).all()


def warp_of(strength, sigma, jitter, count=30, side=32):
    """Where elastic_transform reads each pixel: [count, 2, side, side]; near the border it may be mirrored."""
    ramps = np.broadcast_to(np.indices((side, side), float), (count, 2, side, side))
    return corruptions.elastic_transform(ramps, dice(), strength, sigma, jitter)


def test_elastic_transform_moves_three_points_by_at_most_the_jitter():
    warp = warp_of(0, 0, 0.08)[:, :, 10:22, 10:22]  # the middle, which no mirror reaches
    pixel = np.concatenate([np.indices((12, 12)).reshape(2, -1) + 10, np.ones((1, 144))]).T
    moves = []
    for image in warp:
        back, error, *_ = np.linalg.lstsq(pixel, image.reshape(2, -1).T)
        assert error.max() < 1e-12, "without noise the map is affine"
        for fixed in ((26, 26), (26, 6), (6, 6)):
            moves.append(np.linalg.solve(back[:2].T, np.array(fixed) - back[2]) - fixed)
    assert np.abs(moves).max() <= 0.08 * 32
    assert np.abs(moves).max() > 0.07 * 32
    assert stats.kstest(np.ravel(moves), stats.uniform(-2.56, 5.12).cdf).pvalue > 1e-3


def test_elastic_transform_shakes_by_smooth_noise():
    place = np.indices((32, 32))
    rough, smooth = (warp_of(0.1, sigma, 0)[:, :, 4:-4, 4:-4] - place[:, 4:-4, 4:-4] for sigma in (0.0, 0.04))
    assert np.abs(rough).max() <= 3.2 + 1e-9
    assert rough.std() == pytest.approx(3.2 / 3**0.5, rel=0.02)
    sigma = 0.04 * 32  # a Gaussian mean divides the spread of independent noise by 2 sqrt(pi) sigma
    assert smooth.std() == pytest.approx(rough.std() / (2 * math.pi**0.5 * sigma), rel=0.05)


# --- lines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "quarter"), [(28, 7), (32, 8), (10, 2)])
def test_stripe_inverts_the_outer_quarters(width, quarter):
    x = torch.rand(2, 1, 9, width, generator=seeded())
    result = apply(x, "stripe", 1, "mnist_c")
    for column in range(width):
        outer = column < quarter or column >= width - quarter
        torch.testing.assert_close(result[..., column], 1 - x[..., column] if outer else x[..., column])


def stroke(height, width, start, end):
    """A line pixel by pixel, from (column, row) to (column, row)."""
    ink = np.zeros((height, width))
    for row, column in product(range(height), range(width)):
        on_line = start[1] + (end[1] - start[1]) * (column - start[0]) / (end[0] - start[0])
        far = abs(row - on_line)
        if far < 2.3 and math.floor(start[0]) <= column < math.ceil(end[0]):
            ink[row, column] = max(0, math.log(1 - far / 2.3) + 1)
    return ink


def test_a_dotted_line_runs_from_side_to_side_in_pairs_of_pixels():
    ends = np.array([[3, 20, 0], [26, 7, 0]]).reshape(2, 3, 1, 1, 1)
    result = corruptions.dotted_line(np.full((3, 1, 28, 28), 0.25), Given(ends)).clip(0, 1)
    for image, (start, end) in zip(result, ends.reshape(2, 3).T, strict=True):
        line = stroke(28, 28, (0, start), (27, end))
        line[:, [c for c in range(28) if c % 4 < 2]] = 0
        np.testing.assert_allclose(image[0], np.minimum(line + 0.25, 1), atol=1e-9)
    assert (result[..., 27] == 0.25).all(), "the last column stays free, as published"


def test_dotted_lines_start_at_every_row_but_the_last():
    x = torch.zeros(600, 1, 12, 16)
    first = apply(x, "dotted_line", 1, "mnist_c")[:, 0, :, 2].argmax(1)
    assert set(first.tolist()) <= set(range(11))
    assert len(first.unique()) >= 10


@given(start=st.integers(0, 26), drop=st.integers(-5, 4))
def test_a_zigzag_has_its_teeth_where_the_formula_puts_them(start, drop):
    angle = math.atan(drop / 23)
    length = 23 / math.cos(angle)
    points = [(0, 0)] + [((2 * i + 1) * 2, (-1) ** i * 2) for i in range(int((length - 2) // 4) + 1)]
    points.append((length, points[-1][1] / (2 * (length - 4 * (length // 4)))))
    cos, sin = math.cos(angle), math.sin(angle)
    turned = [(2 + c * cos - r * sin, start + c * sin + r * cos) for c, r in points]
    wanted = sum(stroke(28, 28, a, b) for a, b in pairwise(turned))
    shape = (1, 1, 1, 1)
    result = corruptions.zigzag(np.zeros((1, 1, 28, 28)), Given(np.full(shape, start), np.full(shape, drop)))
    np.testing.assert_allclose(result[0, 0].clip(0, 1), np.minimum(wanted, 1), atol=1e-9)


@pytest.mark.parametrize("turns", range(4))
def test_the_edge_of_a_step_is_one_line(turns):
    x = torch.zeros(1, 1, 20, 20)
    x[..., 9], x[..., 10:] = 0.5, 1
    wanted = torch.zeros(20, 20)
    wanted[1:-1, 9] = 1
    x, wanted = x.rot90(turns, (2, 3)), wanted.rot90(turns)
    assert torch.equal(apply(x, "canny_edges", 1, "mnist_c")[0, 0], wanted)
    assert (apply(0 * x + 0.7, "canny_edges", 1, "mnist_c") == 0).all()


def test_edges_turn_with_the_image_and_close_around_letters():
    x = images("mnist_c").double()
    edges = apply(x, "canny_edges", 1, "mnist_c")
    assert ((edges == 0) | (edges == 1)).all()
    turned = apply(x.rot90(1, (2, 3)), "canny_edges", 1, "mnist_c")
    assert (turned != edges.rot90(1, (2, 3))).double().mean() < 0.002, "ties aside"
    inner = ndimage.distance_transform_edt(edges[:, 0] == 0, sampling=(1000, 1, 1))
    outline = ndimage.grey_dilation(x[:, 0], (1, 3, 3)) - ndimage.grey_erosion(x[:, 0], (1, 3, 3))
    assert (inner[outline > 0.95] <= 1.5).mean() > 0.95, "an edge is near wherever black meets white"
    assert edges[0].mean() < 0.4


def test_a_weak_edge_survives_where_it_joins_a_strong_one():
    step = np.zeros((24, 24))
    step[:, 9], step[:, 10:] = 0.5, 1
    fading = step * np.linspace(0.7, 0.15, 24)[:, None]  # Sobel weights: the gradient is 4 (1 - 0) in a full step
    both = np.stack([fading, 0.25 * fading, 0.2 * step, step])
    joined, faint, alone, full = corruptions._edges(both, 0.5, 2.4)
    assert joined[1:-1, 9].all()
    assert not joined[:, :9].any()
    assert not faint[4:, 9].any(), "below the lower threshold"
    assert not alone.any(), "nothing strong to join, and no joining across images"
    assert full[1:-1, 9].all()
