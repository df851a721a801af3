"""advbook.manifolds.distortions: what holds for every distortion, and each against a plain formula."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn
from scipy.interpolate import RegularGridInterpolator
from toys import seeded

from advbook.attacks.pgd import pgd_latent
from advbook.attacks.spaces import Latent
from advbook.attacks.steps import ascent
from advbook.manifolds import transform
from advbook.manifolds.distortions import DISTORTIONS, arguments

MOVED = ("spatial", "elastic")  # pixels change place, sampled bilinearly: the identity rounds
every = pytest.mark.parametrize("name", DISTORTIONS)
shapes = st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(8, 20), st.integers(8, 20))
seeds = st.integers(0, 99)


def images(shape, seed=0, dtype=torch.float32):
    """Images with black and white pixels among grey ones."""
    return (torch.rand(shape, generator=seeded(seed), dtype=dtype) * 1.4 - 0.2).clamp(0, 1)


def latent(name, x, eta=None):
    return Latent(*arguments(name, x, eta))


def corners(space, seed=0):
    """A corner of the ball for every row, as far as the box allows."""
    signs = 2 * torch.randint(2, space.z.shape, generator=seeded(seed)).to(space.z) - 1
    return space.project(space.eta * signs)


def black(name, z, side=28, colours=1):
    """What latents paint on black images."""
    return DISTORTIONS[name].decode(z, z.new_zeros(len(z), colours, side, side))


def grey(name, z, side=28, colours=1):
    """What latents change of grey images."""
    x = z.new_full((len(z), colours, side, side), 0.5)
    return DISTORTIONS[name].decode(z, x) - x


def units(name, side=28):
    """Every latent with one entry 1: [D, D]."""
    return torch.eye(arguments(name, torch.zeros(1, 1, side, side))[0].shape[1], dtype=torch.float64)


# --- all of them --------------------------------------------------------------------------------------------------


@every
@settings(max_examples=15)
@given(shape=shapes, seed=seeds)
def test_the_identity_changes_nothing(name, shape, seed):
    x = images(shape, seed)
    space = latent(name, x)
    same = space.image(torch.zeros_like(space.z))
    torch.testing.assert_close(same, x, atol=1e-5 if name in MOVED else 0, rtol=0)


@every
@settings(max_examples=15)
@given(shape=shapes, seed=seeds, eta=st.floats(0, 20))
def test_images_stay_images_whatever_the_budget(name, shape, seed, eta):
    x = images(shape, seed)
    space = latent(name, x, eta)
    found = space.image(corners(space, seed))
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert found.min() >= 0
    assert found.max() <= 1


@every
@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 32, 32)], ids=["grey", "colours"])
def test_the_default_budget_changes_images_and_is_inside_the_box(name, shape):
    x = images(shape)
    space = latent(name, x)
    assert space.z.shape[1] <= 256 or name == "jpeg"
    assert ((space.low <= space.z) & (space.z <= space.high)).all()
    found = space.image(corners(space))
    assert ((found - x).abs().amax((1, 2, 3)) > 0.05).all()


@every
@pytest.mark.parametrize("colours", [1, 3])
def test_gradients_are_those_of_finite_differences(name, colours):
    x = 0.4 + 0.2 * torch.rand(1, colours, 8, 9, generator=seeded(), dtype=torch.float64)
    space = latent(name, x, DISTORTIONS[name].eta / 4)
    z = space.z + corners(space) * (0.1 + 0.8 * torch.rand(space.z.shape, generator=seeded(1)))
    assert torch.autograd.gradcheck(lambda z: space.decode(z, x), z.requires_grad_())


@every
@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (1, 3, 32, 32)], ids=["grey", "colours"])
def test_every_number_of_a_latent_matters(name, shape):
    x = 0.3 + 0.4 * torch.rand(shape, generator=seeded(), dtype=torch.float64)
    if name == "colour":
        x = torch.rand(shape, generator=seeded(), dtype=torch.float64)
    space = latent(name, x)
    z = (space.z + corners(space) / 100).requires_grad_()
    weight = torch.randn(shape, generator=seeded(1), dtype=torch.float64)
    (slope,) = torch.autograd.grad((space.decode(z, x) * weight).sum(), z)
    assert (slope != 0).all()


@every
@settings(max_examples=10)
@given(seed=seeds, rows=st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_a_row_does_not_depend_on_the_others(name, seed, rows):
    space = latent(name, images((5, 1, 12, 12), seed))
    u, rows = corners(space, seed), torch.tensor(rows)
    torch.testing.assert_close(space[rows].image(u[rows]), space.image(u)[rows], atol=1e-6, rtol=0)


@every
@settings(max_examples=10)
@given(seed=seeds, small=st.floats(0, 1), more=st.floats(0, 2))
def test_a_larger_budget_contains_a_smaller_one(name, seed, small, more):
    x = images((3, 1, 12, 12), seed)
    inner, outer = latent(name, x, small), latent(name, x, small + more)
    u = corners(inner, seed)
    assert torch.equal(outer.project(u), u)
    assert (corners(outer, seed).abs() >= u.abs()).all()


@every
def test_the_result_follows_from_latent_and_image_alone_in_their_own_precision(name):
    x = images((2, 1, 28, 28), dtype=torch.float64)
    space = latent(name, x)
    u = corners(space)
    found = space.image(u)
    torch.rand(3)
    assert torch.equal(space.image(u), found)
    assert found.dtype == torch.float64
    torch.testing.assert_close(space.decode((space.z + u).float(), x.float()).double(), found, atol=1e-4, rtol=0)


@every
@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (1, 3, 32, 32)], ids=["grey", "colours"])
def test_an_attack_finds_the_adversarial_example_that_must_exist(name, shape):
    """A network that errs a quarter of the way to an image of the ball."""
    x = images(shape, 3)
    space = latent(name, x)
    way = space.image(corners(space, 4)) - x

    def network(shown):
        score = ((shown - x) * way).flatten(1).sum(1) - way.square().sum() / 4
        return torch.stack([torch.zeros_like(score), score], 1)

    y = torch.zeros(1, dtype=torch.long)
    rule = ascent(space.eta / 10, torch.sign)
    found = pgd_latent(network, space, y, rule=rule, steps=25, restarts=2, generator=seeded(5))
    assert found.success.any()
    assert (network(found.x.flatten(0, 1)).argmax(1) == 1).view(2, 1)[found.success].all()
    none = latent(name, x, 0.0)
    assert not pgd_latent(network, none, y, rule=rule, steps=3, restarts=2, generator=seeded(5)).success.any()


def test_the_arguments_are_those_of_a_latent_space():
    x = images((2, 1, 28, 28))
    space = latent("fog", x)
    assert (space.eta, space.low.tolist()[0], space.context[0] is x) == (DISTORTIONS["fog"].eta, 0.0, True)
    assert latent("fog", x, 0.2).eta == 0.2
    assert latent("fog", x, 0.0).eta == 0.0
    with pytest.raises(ValueError, match=r"name = 'hail': allowed are spatial, elastic, fog, .*colour"):
        arguments("hail", x)
    for eta in (-0.1, math.nan):
        with pytest.raises(ValueError, match=f"eta = {eta}: allowed is 0 or more"):
            arguments("fog", x, eta)
    for shape in ((1, 28, 28), (2, 2, 28, 28)):
        with pytest.raises(ValueError, match=r"x has the shape .*: allowed is \[B, C, H, W\] with 1 or 3 colours"):
            arguments("fog", torch.zeros(shape))


def test_spatial_is_the_affine_transformation_of_the_real_box():
    x = images((2, 1, 28, 28))
    space = latent("spatial", x)
    t = space.z + corners(space)
    assert torch.equal(space.image(corners(space)), transform.decode(t, x))
    assert all(map(torch.equal, (space.low, space.high), transform.box("real")))


# --- elastic ------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(-3, 3), st.integers(-3, 3), st.sampled_from([(1, 28, 28), (3, 32, 32), (1, 9, 14)]))
def test_a_constant_displacement_is_a_shift(right, down, shape):
    x = images((2, *shape), 1)
    z = torch.tensor([float(right), float(down)]).repeat_interleave(64).expand(2, -1)
    framed = torch.nn.functional.pad(x, (3, 3, 3, 3))
    shifted = framed[:, :, 3 + down : 3 + down + shape[1], 3 + right : 3 + right + shape[2]]
    torch.testing.assert_close(DISTORTIONS["elastic"].decode(z, x), shifted, atol=2e-5, rtol=0)


def displaced(z, side=28):
    """How far every pixel's source lies to the right, read off a picture of its columns; valid away from the border."""
    ramp = torch.linspace(0, 1, side, dtype=z.dtype).expand(len(z), 1, side, side)
    return ((DISTORTIONS["elastic"].decode(z, ramp) - ramp) * (side - 1))[:, 0]


@settings(max_examples=20)
@given(seeds, st.floats(0.1, 3))
def test_no_pixel_moves_further_than_the_budget(seed, eta):
    z = (torch.rand(3, 128, generator=seeded(seed), dtype=torch.float64) * 2 - 1) * eta
    assert displaced(z)[:, 4:-4, 4:-4].abs().max() <= eta


def test_a_lattice_point_moves_its_own_neighbourhood_smoothly():
    field = displaced(torch.eye(128, dtype=torch.float64))
    for row in range(1, 7):
        for column in range(1, 7):
            peak = divmod(int(field[8 * row + column, 4:-4, 4:-4].argmax()), 20)
            exact = np.clip(np.array([row, column]) * 27 / 7 - 4, 0, 19)
            assert abs(np.array(peak) - exact).max() <= 0.75
    inner = field[:64, 4:-4, 4:-4]
    assert inner.diff(dim=1).abs().max() < 0.2, "steps from pixel to pixel are small"
    assert field[64:, 4:-4, 4:-4].abs().max() < 1e-12, "the second half moves along y"


# --- fog ----------------------------------------------------------------------------------------------------------


def diamond_square(numbers, side):
    """The algorithm point by point on a torus; numbers: 8 x 8, added at their points, with half the weight a level."""
    every, field = side // 8, np.zeros((side, side))
    field[0, 0] = numbers[0, 0]

    def put(r, c, near, weight):
        extra = numbers[r // every, c // every] if r % every == c % every == 0 else 0
        field[r, c] = np.mean([field[i % side, j % side] for i, j in near]) + weight * extra

    step, weight = side, 1.0
    while step > 1:
        h = step // 2
        for r in range(h, side, step):
            for c in range(h, side, step):
                put(r, c, [(r - h, c - h), (r - h, c + h), (r + h, c - h), (r + h, c + h)], weight)
        for r in range(0, side, h):
            for c in range((r + h) % step, side, step):
                put(r, c, [(r - h, c), (r + h, c), (r, c - h), (r, c + h)], weight)
        step, weight = h, weight / 2
    return field


@pytest.mark.parametrize(("side", "torus"), [(28, 32), (32, 32), (12, 16)])
def test_fog_is_a_diamond_square_fractal_in_front_of_the_image(side, torus):
    z = torch.rand(2, 64, generator=seeded(), dtype=torch.float64)
    x = images((2, 3, side, side), 1, torch.float64)
    most = diamond_square(np.ones((8, 8)), torus)[:side, :side].max()
    thick = np.stack([diamond_square(row.view(8, 8).numpy(), torus)[:side, :side] for row in z])[:, None] / most
    through = 1 / (1 + torch.from_numpy(thick))
    found = DISTORTIONS["fog"].decode(z, x)
    torch.testing.assert_close(found, through * x + (1 - through), atol=1e-12, rtol=0)


@settings(max_examples=20)
@given(seeds, st.floats(0.01, 4))
def test_fog_only_thickens_and_reaches_the_budget(seed, eta):
    z = eta * torch.rand(2, 64, generator=seeded(seed), dtype=torch.float64)
    full = black("fog", torch.full_like(z, eta))
    assert float(full.max()) == pytest.approx(eta / (1 + eta))
    assert (black("fog", z) >= 0).all()
    assert (black("fog", z + 0.1) > black("fog", z)).all()
    assert torch.equal(DISTORTIONS["fog"].decode(z, torch.ones(2, 1, 28, 28).double()), torch.ones(2, 1, 28, 28))


# --- snow ---------------------------------------------------------------------------------------------------------


def test_flakes_are_streaks_at_their_places():
    flakes = black("snow", units("snow"))[:, 0].numpy()
    places = [(r, c, 45, 1.5) for r in range(1, 28, 6) for c in range(1, 28, 6)]
    places += [(r, c, 63, 2.5) for r in range(4, 28, 6) for c in range(4, 28, 6)]
    assert len(places) == len(flakes)
    rows, columns = np.mgrid[:28, :28]
    for flake, (r, c, degrees, half) in zip(flakes, places, strict=True):
        assert flake[r, c] == pytest.approx(1)
        along = np.linspace(-half, half, 401)[:, None, None]
        angle = math.radians(degrees)
        nearest = np.hypot(rows - r - along * math.sin(angle), columns - c - along * math.cos(angle)).min(0)
        np.testing.assert_allclose(flake, np.exp(-2 * nearest**2), atol=1e-4)


@settings(max_examples=20)
@given(seeds)
def test_snow_adds_up_in_all_colours_and_never_darkens(seed):
    x, z = images((2, 3, 28, 28), seed), torch.rand(2, 41, generator=seeded(seed + 1)) / 20
    found = DISTORTIONS["snow"].decode(z, x)
    added = sum(black("snow", z * kept) for kept in torch.eye(41).view(41, 1, 41))
    torch.testing.assert_close(found, (x + added).clamp(0, 1), atol=1e-5, rtol=0)
    assert (found >= x).all()


# --- Gabor --------------------------------------------------------------------------------------------------------


def test_kernels_are_waves_under_gaussian_windows():
    found = grey("gabor", units("gabor") / 4)[:, 0].numpy()
    rows, columns = np.mgrid[:28, :28]
    plain = np.stack(
        [
            np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / (2 * 2.5**2))
            * np.cos(2 * np.pi / 5 * ((columns - c) * np.cos(angle) + (rows - r) * np.sin(angle)))
            for angle in np.arange(4) * np.pi / 4
            for r in range(2, 28, 4)
            for c in range(2, 28, 4)
        ]
    )
    np.testing.assert_allclose(found, plain * abs(found).max() / abs(plain).max(), atol=1e-9)


def test_the_budget_of_gabor_noise_is_the_largest_change_of_a_pixel():
    kernels = grey("gabor", units("gabor") / 4) * 4
    worst = kernels.abs().sum(0)
    assert float(worst.max()) == pytest.approx(1, abs=1e-6)
    place = int(worst.argmax())
    z = 0.3 * kernels.flatten(1)[:, place].sign()[None]
    assert float(grey("gabor", z).flatten()[place]) == pytest.approx(0.3, abs=1e-6)


# --- JPEG ---------------------------------------------------------------------------------------------------------


def published_steps():
    """The quantization steps of quality 50 as another library writes them: luminance, chrominance, [8, 8] each."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=50)
    tables = Image.open(file).quantization
    return [np.array(tables[i]).reshape(8, 8) for i in (0, 1)]


def spectrum(change):
    """Orthonormal cosine transforms of blocks, where the blocks lie: [16, 16] -> [16, 16]."""
    blocks = change.reshape(2, 8, 2, 8).transpose(0, 2, 1, 3)
    return dctn(blocks, axes=(2, 3), norm="ortho").transpose(0, 2, 1, 3).reshape(16, 16)


@pytest.mark.parametrize("colours", [1, 3])
def test_a_latent_is_the_change_of_coefficients_in_quantization_steps(colours):
    z = 0.05 * torch.randn(2, colours, 16, 16, generator=seeded(), dtype=torch.float64)
    change = grey("jpeg", z.flatten(1), 16, colours).numpy() * 255
    if colours == 3:
        red, green, blue = change[:, 0], change[:, 1], change[:, 2]
        light = 0.299 * red + 0.587 * green + 0.114 * blue
        change = np.stack([light, (blue - light) / 1.772, (red - light) / 1.402], 1)
    luminance, chrominance = published_steps()
    for image, row in zip(change, z.numpy(), strict=True):
        for c, (channel, numbers) in enumerate(zip(image, row, strict=True)):
            steps = np.tile(luminance if c == 0 else chrominance, (2, 2))
            np.testing.assert_allclose(spectrum(channel), numbers * steps, atol=1e-3)


def test_blocks_that_reach_over_the_border_are_cut():
    x = images((2, 1, 32, 32), 1)
    z = torch.randn(2, 1024, generator=seeded())
    whole, cut = DISTORTIONS["jpeg"].decode(z, x), DISTORTIONS["jpeg"].decode(z, x[..., :28, :28])
    torch.testing.assert_close(cut, whole[..., :28, :28], atol=1e-5, rtol=0)


# --- colour -------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(seeds)
def test_a_curve_of_grey_values_interpolates_its_knots(seed):
    x = images((2, 1, 28, 28), seed, torch.float64)
    z = 0.3 * torch.randn(2, 8, generator=seeded(seed), dtype=torch.float64)
    found = DISTORTIONS["colour"].decode(z, x)
    for image, knots, curved in zip(x.numpy(), z.numpy(), found.numpy(), strict=True):
        exact = image + np.interp(image, np.linspace(0, 1, 8), knots)
        np.testing.assert_allclose(curved, exact.clip(0, 1), atol=1e-12)


@settings(max_examples=20)
@given(seeds)
def test_colours_are_interpolated_in_their_cube(seed):
    x = images((2, 3, 9, 11), seed, torch.float64)
    z = 0.3 * torch.randn(2, 192, generator=seeded(seed), dtype=torch.float64)
    found, axis = DISTORTIONS["colour"].decode(z, x), np.linspace(0, 1, 4)
    for image, lattice, mapped in zip(x.numpy(), z.numpy(), found.numpy(), strict=True):
        offset = RegularGridInterpolator((axis, axis, axis), lattice.reshape(4, 4, 4, 3))(image.transpose(1, 2, 0))
        np.testing.assert_allclose(mapped, (image + offset.transpose(2, 0, 1)).clip(0, 1), atol=1e-12)
