"""advbook.attacks.spaces: what is feasible, what image a point is, and that rows can be packed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advbook.attacks.norms import L0, L1, L2, LINF, NORMS
from advbook.attacks.spaces import Joint, Latent, Masked, Pixels

EVERY = list(NORMS.values())
by_name = {"ids": lambda norm: norm.name}
eps_values = st.one_of(st.just(0.0), st.floats(0, 0.5), st.floats(0.5, 4))
sizes = st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 4), st.integers(1, 4))
IMAGE = (1, 3, 4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(size, seed):
    """Images with black and white pixels among grey ones, and far points to project."""
    x = (torch.rand(size, generator=seeded(seed)) * 1.6 - 0.3).clamp(0, 1)
    return x, 2 * torch.randn(size, generator=seeded(seed + 1))


def latents(seed=0, eta=0.3, count=5, norm=LINF):
    """Codes of two numbers in [-1, 1] x [0, 2], some on its border; dec draws one pixel."""
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0])
    z = (low - 0.2 + (high - low + 0.4) * torch.rand(count, 2, generator=seeded(seed))).clamp(low, high)

    def decode(z, gain, shift):
        return (gain * z[:, 0] + shift * z[:, 1])[:, None, None, None]

    context = (torch.arange(count).float(), torch.arange(count).float() ** 2)
    return Latent(z, decode, context, low, high, eta, norm)


def spread(z):
    """Four codes in [0, 1] draw three rows of themselves."""
    return torch.cat([z, z, z], 1).view(-1, *IMAGE).clamp(0, 1)


def joint(seed=0, eta=0.2, eps=0.1, norm=LINF, latent_norm=LINF, count=5):
    z = torch.rand(count, 4, generator=seeded(seed))
    latent = Latent(z, spread, (), torch.zeros(4), torch.ones(4), eta, latent_norm)
    return Joint(latent, eps, IMAGE, norm), 3 * torch.randn(count, 16, generator=seeded(seed + 1))


# --- pixels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", EVERY, **by_name)
@settings(max_examples=50)
@given(size=sizes, seed=st.integers(0, 99), eps=eps_values)
def test_a_projected_image_keeps_to_eps_in_double_precision_and_to_the_box(norm, size, seed, eps):
    x, u = images(size, seed)
    space = Pixels(x, eps, norm)
    inside = space.project(u)
    image = space.image(inside)
    assert image.min() >= 0
    assert image.max() <= 1
    assert (norm.size(image.double() - x.double()) <= eps).all()
    torch.testing.assert_close(image, x + inside, atol=1e-6, rtol=0)
    torch.testing.assert_close(space.project(inside), inside, atol=3e-6, rtol=0)
    if eps == 0:
        assert torch.equal(image, x)


@given(sizes, st.integers(0, 99), eps_values)
def test_pixels_are_within_eps_in_the_largest_norm_unless_told_otherwise(size, seed, eps):
    x, u = images(size, seed)
    exact = u.clamp((-x).clamp_min(-eps), (1 - x).clamp_max(eps))
    torch.testing.assert_close(Pixels(x, eps).project(u), exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", [LINF, L2, L1], **by_name)
def test_rounding_costs_hardly_any_of_the_budget(norm):
    space = Pixels(torch.full((3, 3, 8, 8), 0.5), 0.4, norm)
    u = space.project(torch.randn(3, 3, 8, 8, generator=seeded()))
    assert (norm.size(u) >= 0.4 * (1 - 1e-4)).all()


@pytest.mark.parametrize("norm", EVERY, **by_name)
def test_the_gradient_reaches_every_pixel_of_a_projected_point_even_at_the_border(norm):
    x, u = images((9, 3, 3, 3), 1)
    space = Pixels(x, 2.0, norm)
    inside = space.project(u).requires_grad_()
    weight = torch.randn(u.shape, generator=seeded(2))
    (gradient,) = torch.autograd.grad((space.image(inside) * weight).sum(), inside)
    assert torch.equal(gradient, weight)


def test_double_precision_stays_double():
    x, u = images((3, 1, 2, 2), 0)
    for space in (Pixels(x.double(), 0.1), Pixels(x.double(), 0.1, L2), Pixels(x.double(), 1.0, L1)):
        assert space.image(space.project(u.double())).dtype == torch.float64


# --- a mask -------------------------------------------------------------------------------------------------------


@given(size=sizes, seed=st.integers(0, 99), channels=st.booleans())
def test_under_a_mask_pixels_are_free_inside_and_fixed_outside(size, seed, channels):
    x, u = images(size, seed)
    mask = (torch.rand(size[1:] if channels else size[2:], generator=seeded(seed + 2)) < 0.5).float()
    space = Masked(x, mask)
    inside, where = space.project(u), mask.expand_as(x) == 1
    assert (inside[~where] == 0).all()
    torch.testing.assert_close(inside[where], u.clamp(-x, 1 - x)[where], atol=0, rtol=0)
    assert torch.equal(space.project(inside), inside)
    image = space.image(inside)
    assert torch.equal(image[~where], x[~where])
    assert image.min() >= 0
    assert image.max() <= 1


def test_a_frame_can_be_painted_black_and_white():
    mask = torch.ones(4, 4)
    mask[1:-1, 1:-1] = 0
    x = torch.rand(2, 3, 4, 4, generator=seeded())
    space = Masked(x, mask)
    for far, colour in ((9.0, 1.0), (-9.0, 0.0)):
        painted = space.image(space.project(torch.full_like(x, far)))
        torch.testing.assert_close(painted, torch.where(mask == 1, colour, x))


# --- latents ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 99), st.floats(0, 3))
def test_projected_latents_are_the_nearest_that_keep_ball_and_box(seed, eta):
    space = latents(seed, eta)
    u = 3 * torch.randn(5, 2, generator=seeded(seed + 1))
    exact = u.clamp((space.low - space.z).clamp_min(-eta), (space.high - space.z).clamp_max(eta))
    torch.testing.assert_close(space.project(u), exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", EVERY, **by_name)
@settings(max_examples=30)
@given(seed=st.integers(0, 99), eta=st.floats(0, 3))
def test_latents_keep_to_any_norm(norm, seed, eta):
    space = latents(seed, eta, norm=norm)
    inside = space.project(3 * torch.randn(5, 2, generator=seeded(seed + 1)))
    assert (norm.size(inside) <= eta * (1 + 1e-6)).all()
    assert (space.z + inside >= space.low - 1e-6).all()
    assert (space.z + inside <= space.high + 1e-6).all()


def test_a_latent_image_is_the_decoder_at_the_moved_code_with_its_own_context():
    space, u = latents(), torch.full((5, 2), 0.1)
    z, row = space.z + u, torch.arange(5)
    torch.testing.assert_close(space.image(u).flatten(), row * z[:, 0] + row**2 * z[:, 1])


@given(seed=st.integers(0, 99), norm=st.sampled_from([LINF, L2]))
def test_a_code_that_starts_outside_the_box_may_stay_or_come_back_but_not_leave_further(seed, norm):
    low, high = torch.zeros(2), torch.ones(2)
    z = torch.tensor([[1.5, 0.5], [-0.4, 0.9], [2.0, -3.0]])
    space = Latent(z, spread, (), low, high, 0.3, norm)
    assert torch.equal(space.project(torch.zeros(3, 2)), torch.zeros(3, 2))
    moved = z + space.project(torch.randn(3, 2, generator=seeded(seed)))
    assert (moved <= torch.maximum(high, z) + 1e-6).all()
    assert (moved >= torch.minimum(low, z) - 1e-6).all()
    out, back = space.project(torch.tensor([[9.0, 0.0]]).expand(3, 2)), space.project(-z)
    assert out[:, 0].tolist() == pytest.approx([0, 0.3, 0])
    assert (back[:, 0] * z[:, 0] < 0).all(), "the way back is open"


# --- both at once -------------------------------------------------------------------------------------------------


@given(st.floats(0, 2), st.floats(0, 2), st.integers(0, 99))
def test_split_and_join_undo_each_other(eta, eps, seed):
    space, u = joint(seed, eta, eps)
    zeta, delta = space.split(u)
    assert zeta.shape == (5, 4)
    assert delta.shape == (5, *IMAGE)
    if min(eta or 1, eps or 1) > 1e-30:
        torch.testing.assert_close(space.join(zeta, delta), u, atol=0, rtol=1e-6)
    torch.testing.assert_close(zeta, u[:, :4] * (eta or 1), atol=0, rtol=1e-6)
    torch.testing.assert_close(delta.flatten(1), u[:, 4:] * (eps or 1), atol=0, rtol=1e-6)


@pytest.mark.parametrize("norm", EVERY, **by_name)
@settings(max_examples=40)
@given(eta=st.just(0.0) | st.floats(0.01, 1), eps=st.just(0.0) | st.floats(0.01, 4), seed=st.integers(0, 99))
def test_a_joint_image_is_within_eps_of_a_decoded_code_that_is_within_eta(norm, eta, eps, seed):
    space, u = joint(seed, eta, eps, norm, count=20)
    inside = space.project(u)
    zeta, delta = space.split(inside)
    assert (zeta.abs() <= eta * (1 + 1e-6)).all()
    assert (space.latent.z + zeta >= -1e-6).all()
    assert (space.latent.z + zeta <= 1 + 1e-6).all()
    image, decoded = space.image(inside), spread(space.latent.z + zeta)
    assert image.min() >= 0
    assert image.max() <= 1
    assert (norm.size(image.double() - decoded.double()) <= eps).all()
    torch.testing.assert_close(image, (decoded + delta).clamp(0, 1))
    torch.testing.assert_close(space.project(inside), inside, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", EVERY, **by_name)
def test_with_no_eta_the_joint_space_is_that_of_pixels(norm):
    """Where no pixel can leave [0, 1], the two sets are the same."""
    z = torch.full((6, 4), 0.5)
    latent = Latent(z, spread, (), torch.zeros(4), torch.ones(4), 0.0)
    space, pixels = Joint(latent, 0.4, IMAGE, norm), Pixels(spread(z), 0.4, norm)
    zeta, delta = torch.randn(6, 4, generator=seeded()), 0.3 * torch.randn(6, *IMAGE, generator=seeded(1))
    found = space.image(space.project(space.join(zeta, delta)))
    torch.testing.assert_close(found, pixels.image(pixels.project(delta)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", [LINF, L2], **by_name)
def test_with_no_eps_the_joint_space_is_the_latent_one(norm):
    space, u = joint(eps=0.0, latent_norm=norm)
    zeta = space.split(u)[0]
    latent = space.latent
    torch.testing.assert_close(space.image(space.project(u)), latent.image(latent.project(zeta)))


def test_a_step_of_a_tenth_is_a_tenth_of_each_budget():
    space, _ = joint(eta=0.2, eps=0.05)
    zeta, delta = space.split(torch.full((5, 16), 0.1))
    torch.testing.assert_close(zeta, torch.full((5, 4), 0.02))
    torch.testing.assert_close(delta, torch.full((5, *IMAGE), 0.005))


# --- packing ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), max_size=9), st.integers(0, 99), st.sampled_from([LINF, L0, L1]))
def test_rows_of_a_space_are_the_space_of_the_rows(rows, seed, norm):
    rows = torch.tensor(rows, dtype=torch.long)
    x, u = images((5, 1, 2, 2), seed)
    cases = [
        (Pixels(x, 1.2, norm), u),
        (Masked(x, torch.eye(2)), u),
        (latents(seed, norm=norm), torch.randn(5, 2, generator=seeded(seed))),
        joint(seed, norm=norm),
    ]
    for space, point in cases:
        part = space[rows]
        assert len(space) == 5
        assert len(part) == len(rows)
        torch.testing.assert_close(part.project(point[rows]), space.project(point)[rows], atol=1e-6, rtol=0)
        assert torch.equal(part.image(point[rows]), space.image(point)[rows])
        if isinstance(space, Pixels):
            assert (part.eps, part.norm) == (space.eps, space.norm)
