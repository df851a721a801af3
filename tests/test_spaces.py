"""advbook.attacks.spaces: what is feasible, what image a point is, and that rows can be packed."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from advbook.attacks.norms import linf_ball
from advbook.attacks.spaces import Latent, Pixels

eps_values = st.one_of(st.just(0.0), st.floats(0, 0.5))
sizes = st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels(size, seed, eps):
    """Images with black and white pixels among grey ones, and far points to project."""
    x = (torch.rand(size, generator=seeded(seed)) * 1.6 - 0.3).clamp(0, 1)
    return Pixels(x, linf_ball(eps)), 2 * torch.randn(size, generator=seeded(seed + 1))


def latents(seed=0, radius=0.3, count=5):
    """Codes of two numbers in [-1, 1] x [0, 2], some on its border; dec draws one pixel."""
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0])
    z = (low - 0.2 + (high - low + 0.4) * torch.rand(count, 2, generator=seeded(seed))).clamp(low, high)

    def decode(z, gain, shift):
        return (gain * z[:, 0] + shift * z[:, 1])[:, None, None, None]

    context = (torch.arange(count).float(), torch.arange(count).float() ** 2)
    return Latent(z, decode, context, low, high, linf_ball(radius))


@given(sizes, st.integers(0, 99), eps_values)
def test_projected_perturbations_are_the_nearest_that_keep_ball_and_box(size, seed, eps):
    space, u = pixels(size, seed, eps)
    inside = space.project(u)
    exact = u.clamp((-space.x).clamp_min(-eps), (1 - space.x).clamp_max(eps))
    torch.testing.assert_close(inside, exact, atol=1e-6, rtol=0)
    torch.testing.assert_close(space.project(inside), inside, atol=1e-6, rtol=0)
    image = space.image(inside)
    assert image.min() >= 0
    assert image.max() <= 1
    torch.testing.assert_close(image, space.x + inside, atol=1e-6, rtol=0)
    assert (image - space.x).abs().max() <= eps + 1e-6


@given(sizes, st.integers(0, 99), eps_values)
def test_the_gradient_reaches_every_pixel_of_a_projected_point_even_at_the_border(size, seed, eps):
    space, u = pixels(size, seed, eps)
    inside = space.project(u).requires_grad_()
    weight = torch.randn(size, generator=seeded(seed + 2))
    (gradient,) = torch.autograd.grad((space.image(inside) * weight).sum(), inside)
    assert torch.equal(gradient, weight)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.integers(0, 99))
def test_rows_of_a_space_are_the_space_of_the_rows(rows, seed):
    rows = torch.tensor(rows)
    for space, u in ((pixels((5, 1, 2, 2), seed, 0.2)), (latents(seed), torch.randn(5, 2, generator=seeded(seed)))):
        assert torch.equal(space[rows].project(u[rows]), space.project(u)[rows])
        assert torch.equal(space[rows].image(u[rows]), space.image(u)[rows])


@given(st.integers(0, 99), st.floats(0, 3))
def test_projected_latents_keep_ball_and_box(seed, radius):
    space = latents(seed, radius)
    u = 3 * torch.randn(5, 2, generator=seeded(seed + 1))
    inside = space.project(u)
    assert (inside.abs() <= radius + 1e-6).all()
    assert (space.z + inside >= space.low - 1e-6).all()
    assert (space.z + inside <= space.high + 1e-6).all()
    exact = u.clamp((space.low - space.z).clamp_min(-radius), (space.high - space.z).clamp_max(radius))
    torch.testing.assert_close(inside, exact, atol=1e-6, rtol=0)


def test_a_latent_image_is_the_decoder_at_the_moved_code_with_its_own_context():
    space, u = latents(), torch.full((5, 2), 0.1)
    z, row = space.z + u, torch.arange(5)
    torch.testing.assert_close(space.image(u).flatten(), row * z[:, 0] + row**2 * z[:, 1])
