"""advbook.manifolds.transform: the identity, the boxes, and adversarial transformations by the ascent loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbook import fonts
from advbook.attacks.pgd import pgd_latent
from advbook.attacks.spaces import Latent
from advbook.attacks.steps import sign
from advbook.manifolds import transform


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(images=st.integers(1, 3), colours=st.sampled_from([1, 3]), side=st.integers(2, 9))
def test_the_identity_changes_nothing(images, colours, side):
    x = torch.rand(images, colours, side, side, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(transform.decode(transform.identity(x), x), x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["fonts", "real"])
def test_the_identity_lies_inside_the_box(kind):
    low, high = transform.box(kind)
    identity = torch.tensor(transform.IDENTITY)
    assert (low < identity).all()
    assert (identity < high).all()


def test_fonts_are_moved_as_far_as_they_are_drawn():
    assert all(map(torch.equal, transform.box("fonts"), fonts.theta_box()))


def brightness(x):
    """A network that looks at the left half only: class 1 where less than a threshold of it is bright."""
    left = x[..., : x.shape[-1] // 2].flatten(1).sum(1)
    return torch.stack([left, torch.full_like(left, 45.0)], 1)


def test_an_adversarial_transformation_moves_the_letter_out_of_sight():
    rows = fonts.rows("test", 8)
    theta = transform.identity(rows.theta[:, None])
    x = fonts.decode(theta, rows.font, rows.letter)  # upright letters
    y = brightness(x).argmax(1)
    assert (y == 0).all(), "all letters reach into the left half"
    low, high = transform.box("fonts")
    space = Latent(transform.identity(x), transform.decode, (x,), low, high, eta=0.3)
    found = pgd_latent(brightness, space, y, rule=sign(0.02), restarts=2, generator=seeded(1), stop="never")
    left = brightness(found.x.flatten(0, 1))[:, 0].view(2, 8)
    random = transform.identity(x) + 0.3 * (2 * torch.rand(8, 6, generator=seeded(2)) - 1)
    by_chance = brightness(transform.decode(random.clamp(low, high), x))[:, 0]
    assert (left.amin(0) < by_chance).all(), "an attack takes away more than chance does"
    assert found.success.any()
    assert ((found.x >= 0) & (found.x <= 1)).all()
