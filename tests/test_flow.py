"""advbook.manifolds.flow: exact inverses and log-determinants, densities against integrals and closed forms, another
library's Glow, and the joint attack through a linear flow against the Gaussian formulas.
"""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.autograd.functional import jacobian
from toys import seeded

from advbook.attacks.engine import climb
from advbook.attacks.objectives import log_odds
from advbook.attacks.spaces import Joint, Latent, Pixels
from advbook.attacks.steps import sign
from advbook.gaussian import spectrum
from advbook.manifolds.flow import (
    LEVELS,
    MARGIN,
    Coupling,
    Flow,
    Logit,
    Mix,
    Recipe,
    initialize,
    log_normal,
    noisy,
    train,
)

SHAPES = [((1, 4, 4), (1,)), ((1, 4, 4), (2, 1)), ((3, 4, 4), (1,)), ((3, 4, 4), (2, 1))]
shapes = pytest.mark.parametrize(("shape", "depths"), SHAPES, ids=str)
seeds = st.integers(0, 10_000)
few = settings(max_examples=5)


@torch.no_grad()
def shaken(model, seed=0, size=0.1):
    """The same layers with all weights moved a little, so that no step is the identity and no rotation is exact."""
    random = seeded(seed + 1)
    for value in model.parameters():
        value += size * torch.randn(value.shape, generator=random, dtype=value.dtype)
    return model


def flow_of(shape=(1, 4, 4), depths=(2, 1), *, width=6, seed=0, dtype=torch.float64):
    return shaken(Flow(shape, depths=depths, width=width, generator=seeded(seed)), seed).to(dtype)


def wide(shape, depths, seed=0):
    """A flow of the width of shipped ones. ActNorm's start comes after the shaking, else codes grow with every step;
    so do those of no trained flow.
    """
    model = shaken(Flow(shape, depths=depths, width=32, generator=seeded(seed)), seed, 0.01)
    initialize(model, images(8, shape, seed + 5, torch.float32))
    return model


def images(count, shape=(1, 4, 4), seed=0, dtype=torch.float64):
    return torch.rand(count, *shape, generator=seeded(seed), dtype=dtype)


def smooth(count, shape=(1, 8, 8), seed=0):
    """Grey slopes of any direction within [.2, .8]: images of a manifold of two dimensions, and a little noise."""
    _, height, width = shape
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    a, b = torch.randn(2, count, 1, 1, 1, generator=seeded(seed)).clamp(-1, 1) * 0.12
    noise = 0.02 * torch.randn(count, *shape, generator=seeded(seed + 1))
    return (0.5 + a * rows + b * columns + noise).clamp(0.2, 0.8)


def log_dets(layer, x):
    """log |det| of the Jacobian at every point, by backpropagation through every output."""
    size = x[0].numel()
    found = [jacobian(lambda own: layer(own[None])[0].flatten(), point).reshape(size, size) for point in x]
    return torch.linalg.slogdet(torch.stack(found))[1]


# --- the layers -----------------------------------------------------------------------------------------------------


@few
@given(seeds)
def test_every_layer_s_log_determinant_is_that_of_its_jacobian(seed):
    h = torch.randn(2, 4, 2, 3, generator=seeded(seed), dtype=torch.float64)
    mix = shaken(Mix(4, seeded(seed)), seed, 0.3).double()
    coupling = shaken(Coupling(4, 5, seeded(seed)), seed, 0.3).double()
    for layer, x in ((mix, h), (coupling, h), (Logit(), h.sigmoid())):
        torch.testing.assert_close(layer(x)[1], log_dets(layer, x), atol=1e-10, rtol=0)


@few
@given(seeds)
def test_every_layer_is_undone_to_the_last_digits(seed):
    h = torch.randn(3, 5, 2, 3, generator=seeded(seed), dtype=torch.float64)
    mix = shaken(Mix(5, seeded(seed)), seed, 0.2).double()
    coupling = shaken(Coupling(5, 4, seeded(seed)), seed, 0.3).double()
    for layer, x in ((mix, h), (coupling, h), (Logit(), h.sigmoid())):
        out = layer(x)[0]
        assert not torch.allclose(out, x, atol=1e-2)
        torch.testing.assert_close(layer.inverse(out), x, atol=1e-12, rtol=0)


def test_logits_are_those_of_grey_values_squeezed_away_from_the_box():
    x = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64).view(1, 1, 1, 3)
    s = [0.05 + 0.9 * (255 * value + 0.5) / 256 for value in (0.0, 0.25, 1.0)]
    assert (MARGIN, LEVELS) == (0.05, 256)
    expected = torch.tensor([math.log(own / (1 - own)) for own in s], dtype=torch.float64)
    torch.testing.assert_close(Logit()(x)[0].flatten(), expected, atol=1e-12, rtol=0)


def test_a_mix_scales_and_shifts_channels_and_then_mixes_them_alike_in_every_pixel():
    mix = shaken(Mix(3, seeded()), 0, 0.3).double()
    h = torch.randn(2, 3, 4, 5, generator=seeded(1), dtype=torch.float64)
    scaled = mix.log_scale.exp()[:, None, None] * (h + mix.shift[:, None, None])
    expected = torch.einsum("ij,bjhw->bihw", mix.rotation, scaled)
    torch.testing.assert_close(mix(h)[0], expected, atol=1e-12, rtol=0)


def test_a_mix_begins_as_a_rotation():
    mix = Mix(6, seeded())
    torch.testing.assert_close(mix.rotation @ mix.rotation.T, torch.eye(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(mix(torch.ones(1, 6, 3, 3))[1], torch.zeros(1), atol=1e-5, rtol=0)
    assert not torch.equal(mix.rotation, Mix(6, seeded(1)).rotation)


def test_a_coupling_begins_as_the_identity_and_reads_only_the_half_it_keeps():
    h = torch.randn(2, 6, 3, 3, generator=seeded(1), dtype=torch.float64)
    fresh = Coupling(6, 4, seeded()).double()
    assert torch.equal(fresh(h)[0], h)
    assert not fresh(h)[1].any()
    used = shaken(fresh, 0, 0.3)
    out = used(h)[0]
    assert torch.equal(out[:, :3], h[:, :3])
    twice = h.clone()
    twice[:, 3:] *= 2
    torch.testing.assert_close(used(twice)[1], used(h)[1], atol=0, rtol=0)
    slope = (used(twice)[0] - out)[:, 3:] / h[:, 3:]  # the moved half goes through a scale of its own, and no further
    torch.testing.assert_close(slope.log().flatten(1).sum(1), used(h)[1], atol=1e-9, rtol=0)


def test_a_coupling_s_scale_has_a_limit_however_large_its_weights_are():
    used = shaken(Coupling(4, 4, seeded()), 0, 100.0).double()
    h = torch.randn(3, 4, 2, 2, generator=seeded(1), dtype=torch.float64)
    moved = (used(torch.cat([h[:, :2], h[:, 2:] + 1], 1))[0] - used(h)[0])[:, 2:]
    assert moved.max() <= math.exp(1.5) + 1e-6
    assert moved.min() >= math.exp(-1.5) - 1e-6
    assert moved.max() / moved.min() > 10


# --- the flow -------------------------------------------------------------------------------------------------------


@shapes
@few
@given(seed=seeds)
def test_the_log_determinant_is_that_of_the_jacobian(shape, depths, seed):
    model, x = flow_of(shape, depths, seed=seed), images(2, shape, seed)
    torch.testing.assert_close(model(x)[1], log_dets(model, x), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize(
    ("shape", "depths"), [*SHAPES, ((1, 28, 28), (4, 4)), ((3, 32, 32), (4, 4, 4)), ((3, 56, 48), (4, 4, 4))], ids=str
)
def test_an_image_comes_back_from_its_code(shape, depths, dtype, bound):
    model, x = wide(shape, depths).to(dtype), images(4, shape, dtype=dtype).round(decimals=1)
    with torch.no_grad():
        z, _ = model(x)
        back = model.inverse(z)
    assert z.shape == (4, math.prod(shape))
    assert back.shape == x.shape
    assert back.dtype == dtype
    assert (back - x).abs().max() <= bound


@shapes
@few
@given(seed=seeds)
def test_a_code_comes_back_from_what_it_decodes_to(shape, depths, seed):
    model = flow_of(shape, depths, seed=seed)
    z = torch.randn(3, math.prod(shape), generator=seeded(seed), dtype=torch.float64)
    torch.testing.assert_close(model(model.inverse(z))[0], z, atol=1e-10, rtol=0)


def test_a_trained_flow_is_exactly_invertible_too():
    x = images(40, (1, 16, 16), dtype=torch.float32).square()
    recipe = Recipe(steps=3, batch=8, width=8)
    model = train(recipe.build((1, 16, 16), seeded()), x, recipe, generator=seeded(1))
    with torch.no_grad():
        assert (model.inverse(model(x[:8])[0]) - x[:8]).abs().max() <= 1e-5
        model, x = model.double(), x[:8].double()
        assert (model.inverse(model(x)[0]) - x).abs().max() <= 1e-10


def test_the_inverse_has_the_gradient_of_an_inverse():
    model, x = flow_of(), images(1)
    forth = jacobian(lambda own: model(own)[0][0], x).view(16, 16)
    back = jacobian(lambda z: model.inverse(z).flatten(), model(x)[0].detach()).view(16, 16)
    torch.testing.assert_close(back @ forth, torch.eye(16, dtype=torch.float64), atol=1e-9, rtol=0)


def test_what_leaves_on_the_first_scale_stands_first_in_the_code():
    model = Flow((1, 4, 4), depths=(0, 0), generator=seeded()).double()
    x = images(2)
    logits = Logit()(x)[0][:, 0]
    upper, left, right = logits[:, ::2], logits[:, 1::2, ::2], logits[:, 1::2, 1::2]  # rows 0, 2; pixels of rows 1, 3
    stayed = torch.stack([left, right], 1)  # two channels of 2 x 2, folded once more: channel first, then pixel
    expected = torch.cat([upper[:, :, ::2].flatten(1), upper[:, :, 1::2].flatten(1), stayed.flatten(1)], 1)
    torch.testing.assert_close(model(x)[0], expected, atol=0, rtol=0)


def test_every_pixel_and_every_weight_counts():
    model, x = flow_of((3, 8, 8), (2, 1)), images(1, (3, 8, 8)).requires_grad_()
    model.log_likelihood(x).sum().backward()
    assert (x.grad != 0).all()
    assert all((value.grad != 0).any() for value in model.parameters())


def test_images_of_one_batch_do_not_see_each_other():
    model, x = flow_of(), images(5)
    z, change = model(x)
    one, alone = model(x[3:4])
    torch.testing.assert_close(z[3:4], one, atol=1e-12, rtol=0)
    torch.testing.assert_close(change[3:4], alone, atol=1e-12, rtol=0)


def test_encoding_adds_no_noise_and_decoding_cuts_to_images():
    model, x = flow_of().requires_grad_(False), images(4)
    assert torch.equal(model.encode(x), model(x)[0])
    z = 6 * torch.randn(50, 16, generator=seeded(), dtype=torch.float64)
    raw = model.inverse(z)
    assert raw.min() < 0
    assert raw.max() > 1
    torch.testing.assert_close(model.decode(z), raw.clamp(0, 1), atol=0, rtol=0)
    width = MARGIN / (1 - 2 * MARGIN) * LEVELS / (LEVELS - 1) + 0.5 / (LEVELS - 1)
    assert raw.min() >= -width - 1e-12, "no code leaves the box by more than the margin"
    assert raw.max() <= 1 + width + 1e-12


def test_the_same_seed_gives_the_same_weights_and_another_one_others():
    one, same, other = (Recipe(width=4).build((1, 8, 8), seeded(seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["scales.0.0.rotation"], other["scales.0.0.rotation"])


@pytest.mark.parametrize(("shape", "depths"), [((1, 28, 28), (1, 1, 1)), ((1, 4, 6), (1, 1)), ((1, 4, 4), ())])
def test_sides_that_cannot_be_folded_are_refused(shape, depths):
    with pytest.raises(ValueError, match=r"^depths = \(.*\): two to the power of their number should divide \d+ x \d+"):
        Flow(shape, depths=depths, generator=seeded())


# --- densities ------------------------------------------------------------------------------------------------------


def test_the_likelihood_is_the_normal_density_of_the_code_times_the_jacobian():
    model, x = flow_of(), images(3)
    z = model(x)[0]
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(log_normal(z), normal, atol=1e-10, rtol=0)
    torch.testing.assert_close(model.log_likelihood(x), normal + log_dets(model, x), atol=1e-9, rtol=0)


def test_the_density_integrates_to_one():
    """Over all images of 2 x 2: the sum over a grid in the logits, which is spaced finely for a smooth density."""
    model = flow_of((1, 2, 2), (2,), width=4)
    side = torch.linspace(-6.5, 6.5, 20, dtype=torch.float64)
    s = side.sigmoid()
    x = ((s - MARGIN) / (1 - 2 * MARGIN) * LEVELS - 0.5) / (LEVELS - 1)
    slope = s * (1 - s) / (1 - 2 * MARGIN) * LEVELS / (LEVELS - 1)  # dx / d logit
    volume = torch.cartesian_prod(*[slope] * 4).prod(1) * (side[1] - side[0]) ** 4
    grid = torch.cartesian_prod(*[x] * 4).view(-1, 1, 2, 2)
    with torch.no_grad():
        density = torch.cat([model.log_likelihood(part) for part in grid.split(50_000)]).exp()
    assert float((density * volume).sum()) == pytest.approx(1, abs=5e-3)


@shapes
def test_a_fresh_flow_has_normal_logits_whatever_its_rotations(shape, depths):
    """Rotations leave the standard normal density as it is, and couplings begin as identities."""
    model, x = Flow(shape, depths=depths, generator=seeded(3)), images(5, shape)
    s = MARGIN + (1 - 2 * MARGIN) * (x * 255 + 0.5) / 256
    slope = (1 - 2 * MARGIN) * 255 / 256 / (s * (1 - s))
    each = torch.distributions.Normal(0.0, 1.0).log_prob((s / (1 - s)).log()) + slope.log()
    torch.testing.assert_close(model.double().log_likelihood(x), each.flatten(1).sum(1), atol=1e-4, rtol=0)


def test_bits_per_dimension_are_those_of_intervals_as_wide_as_noise():
    model, x = flow_of(), images(3)
    model.requires_grad_(False)
    for row in range(3):
        density = math.exp(float(model.log_likelihood(x)[row]))
        expected = -math.log2(density * (1 / 255) ** 16) / 16
        assert float(model.bits_per_dim(x)[row]) == pytest.approx(expected, abs=1e-9)


def test_images_of_which_all_are_equally_likely_take_eight_bits(monkeypatch):
    """All values from -1 / 510 to 1 + 1 / 510, where noise can bring them, which is 256 / 255 wide."""
    model = flow_of()
    monkeypatch.setattr(model, "log_likelihood", lambda x: x.new_full((len(x),), 16 * math.log(255 / 256)))
    torch.testing.assert_close(model.bits_per_dim(images(2)), torch.full((2,), 8.0, dtype=torch.float64))


# --- another library ------------------------------------------------------------------------------------------------


class Told(nn.Module):
    """Our coupling's network as normflows wants it.

    Theirs moves h_2 to (h_2 - shift) exp(-scale) on the way to the code, with the two interleaved; ours to h_2 exp(r)
    + t, with t before r. So scale = -r and shift = -t exp(-r). Their maps of the raw scale (exp and sigmoid) cannot
    give r = REACH tanh(raw); it is applied here, and the convolutions are theirs, with our weights.
    """

    def __init__(self, theirs, coupling):
        super().__init__()
        self.theirs = theirs
        pairs = zip(list(theirs.net)[::2], list(coupling.net)[::2], strict=True)
        for own, layer in pairs:
            own.load_state_dict(layer.state_dict())

    def forward(self, kept):
        t, raw = self.theirs(kept).chunk(2, 1)
        r = 1.5 * raw.tanh()
        return torch.stack([-t * (-r).exp(), -r], 2).flatten(1, 2)


def block(normflows, mix, coupling):
    """A Glow block of normflows, which runs from code to image, with our weights."""
    channels = len(mix.shift)
    widths = (coupling.kept, coupling.net[0].out_channels, coupling.net[0].out_channels, coupling.net[4].out_channels)
    theirs = normflows.flows.GlowBlock(channels, widths[1], scale_map="exp", use_lu=False)
    told = Told(normflows.nets.ConvNet2d(widths, (3, 1, 3)), coupling)
    theirs.flows[0] = normflows.flows.AffineCouplingBlock(told, scale_map="exp", split_mode="channel")
    theirs.flows[1].W.data = mix.rotation.data.clone()
    # ActNorm undoes h exp(s) + t; ours is exp(log_scale) (h + shift). The flag keeps it from fitting s and t to data.
    for theirs_own, ours in ((theirs.flows[2].s, mix.log_scale), (theirs.flows[2].t, mix.shift)):
        theirs_own.data = -ours.data.view(1, -1, 1, 1)
    theirs.flows[2].data_dep_init_done = torch.tensor(1.0)
    return theirs.double()


@few
@given(seeds)
def test_a_step_is_a_glow_block_of_normflows(seed):
    import normflows

    mix, coupling = Mix(8, seeded(seed)), Coupling(8, 5, seeded(seed))
    theirs = block(normflows, shaken(mix, seed, 0.2).double(), shaken(coupling, seed, 0.2).double())
    h = torch.randn(3, 8, 4, 2, generator=seeded(seed), dtype=torch.float64)
    mixed, first = mix(h)
    for theirs_alone, ours, change in ((theirs.flows[1:], mixed, first), (theirs.flows[:1], *coupling(mixed))):
        out, total = (h if ours is mixed else mixed), 0
        for layer in reversed(theirs_alone):
            out, own = layer.inverse(out)
            total = total + own
        torch.testing.assert_close(out, ours, atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.as_tensor(total).expand(3), change, atol=1e-6, rtol=0)
    out, second = coupling(mixed)
    back, total = theirs.forward(out)
    torch.testing.assert_close(back, h, atol=1e-6, rtol=0)
    torch.testing.assert_close(-total, first + second, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("shape", "depths"), [((1, 8, 8), (2, 1)), ((3, 8, 8), (1, 2, 1))], ids=str)
def test_the_whole_flow_is_a_multi_scale_flow_of_normflows(shape, depths):
    """Only where the squeezed values begin cannot be told to their logits: ours are of (255 x + 1/2) / 256."""
    import normflows

    model, x = flow_of(shape, depths), images(4, shape)
    levels = []
    for scale in model.scales:
        steps = [block(normflows, mix, coupling) for mix, coupling in zip(scale[::2], scale[1::2], strict=True)]
        levels.append([*reversed(steps), normflows.flows.Squeeze()])
    theirs = normflows.MultiscaleFlow(
        [normflows.distributions.DiagGaussian(part, trainable=False) for part in reversed(model.parts)],
        list(reversed(levels)),
        [normflows.flows.Merge("channel_inv") for _ in depths[1:]],  # the first half leaves
        transform=normflows.transforms.Logit(alpha=MARGIN),
        class_cond=False,
    ).double()
    squeezed = (255 * x + 0.5) / 256
    codes, change = theirs.inverse_and_log_det(squeezed)
    z, ours = model(x)
    shifted = math.prod(shape) * math.log(255 / 256)
    torch.testing.assert_close(torch.cat([code.flatten(1) for code in reversed(codes)], 1), z, atol=1e-6, rtol=0)
    torch.testing.assert_close(change + shifted, ours, atol=1e-6, rtol=0)
    torch.testing.assert_close(theirs.log_prob(squeezed, None) + shifted, model.log_likelihood(x), atol=1e-6, rtol=0)
    back = theirs.forward_and_log_det(codes)[0]
    torch.testing.assert_close((256 * back - 0.5) / 255, model.inverse(z), atol=1e-6, rtol=0)


# --- training -------------------------------------------------------------------------------------------------------

TINY = Recipe(depths=(1, 1), width=4, steps=120, batch=32, lr=0.01)


def test_actnorm_begins_with_channels_of_mean_zero_and_variance_one():
    model, x, seen = flow_of((1, 8, 8), (2, 2)), smooth(200).double(), []
    steps = [layer for scale in model.scales for layer in scale if isinstance(layer, Mix)]
    for layer in steps:
        layer.register_forward_hook(lambda layer, given, out: seen.append((layer, out[0])))
    initialize(model, x)
    seen.clear()
    with torch.no_grad():
        model(x)
        assert [layer for layer, _ in seen] == steps
        for layer, out in seen:
            scaled = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(layer.rotation), out)
            mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3))
            torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-9, rtol=0)
            torch.testing.assert_close(std, torch.ones_like(std), atol=1e-9, rtol=0)


def test_channels_that_never_change_get_a_scale_that_is_finite():
    model = flow_of((1, 8, 8), (1, 1), dtype=torch.float32)
    initialize(model, torch.full((8, 1, 8, 8), 0.5))
    assert all(value.isfinite().all() for value in model.parameters())
    assert float(model.scales[0][0].log_scale.detach().max()) == pytest.approx(math.log(1000), abs=1e-4)


@pytest.fixture(scope="module")
def learned():
    """A small flow of smooth images, trained for a moment."""
    recipe = Recipe(depths=(2, 1), width=8, steps=120, batch=32, lr=0.01)
    return train(recipe.build((1, 8, 8), seeded()), smooth(500), recipe, generator=seeded(1))


def test_training_makes_unseen_images_likelier_than_its_start_does_and_noise_unlikelier(learned):
    unseen, start = smooth(100, seed=9), Recipe(depths=(2, 1), width=8).build((1, 8, 8), seeded())
    initialize(start, smooth(500))
    with torch.no_grad():
        bits = [float(model.bits_per_dim(unseen).mean()) for model in (learned, start)]
        noise = float(learned.bits_per_dim(images(100, (1, 8, 8), dtype=torch.float32)).mean())
    assert bits[0] < bits[1] - 0.3
    assert noise > bits[0] + 2
    assert not learned.training


def test_training_is_decided_by_its_seed():
    recipe, x = TINY.model_copy(update={"steps": 5}), smooth(50)

    def run(seed):
        model = recipe.build((1, 8, 8), seeded())
        assert train(model, x, recipe, generator=seeded(seed)) is model
        return torch.cat([value.flatten() for value in model.parameters()]).detach()

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_training_does_not_change_its_images():
    x = smooth(40)
    before = x.clone()
    train(TINY.build((1, 8, 8), seeded()), x, TINY.model_copy(update={"steps": 2}), generator=seeded())
    assert torch.equal(x, before)


def test_training_without_images_is_refused():
    with pytest.raises(ValueError, match=r"^x: no images to train on\.$"):
        train(TINY.build((1, 8, 8), seeded()), torch.zeros(0, 1, 8, 8), TINY, generator=seeded())


@pytest.mark.parametrize(("steps", "lr"), [(101, 1e12), (5, 1e12), (2, 1e30)])
def test_training_that_diverges_says_so_however_short_it_is(steps, lr):
    recipe = TINY.model_copy(update={"steps": steps, "lr": lr, "clip": 1e12, "batch": 4})
    with pytest.raises(
        FloatingPointError, match=r"^Training diverged by step \d+: its loss or a weight is not finite\.$"
    ):
        train(recipe.build((1, 4, 4), seeded()), smooth(40, (1, 4, 4)), recipe, generator=seeded())


def test_images_that_are_no_numbers_are_found_at_once():
    with pytest.raises(FloatingPointError, match="by step 1:"):
        train(TINY.build((1, 8, 8), seeded()), smooth(40) * math.nan, TINY, generator=seeded())


def test_the_rate_falls_along_half_a_cosine():
    recipe = Recipe(lr=0.004)
    assert [recipe.rate(done) for done in (0, 0.25, 0.5, 1)] == pytest.approx(
        [0.004, 0.002 * (1 + math.sqrt(0.5)), 0.002, 0], abs=1e-12
    )


@pytest.mark.parametrize("wrong", [{"depths": ()}, {"steps": 0}, {"batch": 1}, {"lr": 0}, {"rate": 1}], ids=str)
def test_recipes_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValidationError):
        Recipe(**wrong)


def test_noise_fills_the_interval_of_a_grey_value_and_no_more():
    x = torch.full((1000, 1, 4, 4), 0.5)
    moved = (noisy(x, seeded()) - x) * 255
    assert moved.abs().max() <= 0.5 + 1e-4
    assert float(moved.std()) == pytest.approx(math.sqrt(1 / 12), rel=0.02)
    assert float(moved.mean()) == pytest.approx(0, abs=0.01)
    assert torch.equal(noisy(x, seeded(3)), noisy(x, seeded(3)))
    assert noisy(x.double(), seeded()).dtype == torch.float64


def test_in_bfloat16_only_the_couplings_products_are_rounded():
    model, x = flow_of((1, 8, 8), (2, 1), dtype=torch.float32), smooth(4)
    h = torch.randn(2, 4, 3, 3, generator=seeded())
    mix = model.scales[0][0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed, (z, change), inner = mix(h)[0], model(x), model.scales[0][1].net(h[:, :2])
    assert inner.dtype == torch.bfloat16
    assert mixed.dtype == z.dtype == change.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(mixed, mix(h)[0])
        torch.testing.assert_close(z, model(x)[0], atol=0.05, rtol=0)


def test_training_in_bfloat16_ends_near_where_float32_does():
    x, bits = smooth(200), []
    for precision in ("float32", "bfloat16"):
        recipe = TINY.model_copy(update={"precision": precision, "steps": 15})
        model = train(recipe.build((1, 8, 8), seeded()), x, recipe, generator=seeded(1))
        assert all(value.dtype == torch.float32 for value in model.parameters())
        with torch.no_grad():
            bits.append(float(model.bits_per_dim(x).mean()))
    assert bits[1] == pytest.approx(bits[0], abs=0.1)


# --- the linear flow of a Gaussian ----------------------------------------------------------------------------------


class Plain(nn.Module):
    """In the place of logits: the values themselves."""

    def forward(self, x):
        return x, x.new_zeros(len(x))

    def inverse(self, x):
        return x


SHAPE, D = (2, 2, 2), 8  # of images that fold to one pixel, so that a mix is any linear map


def linear():
    """A flow of one mix."""
    model = Flow(SHAPE, depths=(0,), generator=seeded())
    model.logit, model.scales = Plain(), nn.ModuleList([nn.ModuleList([Mix(D, seeded(5))])])
    return model.double()


def gaussian(count, seed=0):
    """Points whose mean and covariance are exactly mu and V diag(lambda) V^T, and these: x [N, d], mu, V, lambda."""
    random = seeded(seed)
    raw = torch.randn(count, D, generator=random, dtype=torch.float64)
    raw = raw - raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(raw.T @ raw / count).T)
    variances = torch.tensor([4.0, 2.5, 1.5, 1.0, 0.7, 0.5, 0.35, 0.25], dtype=torch.float64)
    directions = torch.linalg.qr(torch.randn(D, D, generator=random, dtype=torch.float64))[0]
    mean = torch.randn(D, generator=random, dtype=torch.float64)
    return mean + white * variances.sqrt() @ directions.T, mean, directions, variances


def exact(mean, directions, variances):
    """The flow z = Sigma^(-1/2) (x - mu), part of it in the scales."""
    model = linear()
    mix = model.scales[0][0]
    mix.log_scale.data = torch.linspace(-0.5, 0.5, D, dtype=torch.float64)
    root = directions / variances.sqrt() @ directions.T
    mix.rotation.data, mix.shift.data = root / mix.log_scale.data.exp(), -mean
    return model.requires_grad_(False)


def test_the_exact_linear_flow_has_the_likelihood_of_its_gaussian():
    x, mean, directions, variances = gaussian(50)
    covariance = directions * variances @ directions.T
    expected = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
    found = exact(mean, directions, variances).log_likelihood(x.view(-1, *SHAPE))
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_a_trained_linear_flow_finds_the_mean_and_the_covariance_of_its_points():
    x, mean, directions, variances = gaussian(2000)
    recipe = Recipe(depths=(1,), steps=250, batch=256, lr=0.03)
    model = train(linear(), x.view(-1, *SHAPE), recipe, generator=seeded(1)).requires_grad_(False)
    backward = jacobian(lambda z: model.inverse(z[None]).flatten(), torch.zeros(D, dtype=torch.float64))
    covariance = directions * variances @ directions.T
    relative = torch.linalg.solve(covariance, backward @ backward.T)  # the identity where both are the same
    torch.testing.assert_close(relative, torch.eye(D, dtype=torch.float64), atol=0.1, rtol=0)
    found = model.inverse(torch.zeros(1, D, dtype=torch.float64)).flatten()
    torch.testing.assert_close(found, mean, atol=0.05, rtol=0)


def test_the_likeliest_linear_flow_has_exactly_the_covariance_of_its_points():
    x, mean, directions, variances = gaussian(200)
    model = linear()
    search = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def loss():
        search.zero_grad()
        value = -model.log_likelihood(x.view(-1, *SHAPE)).mean()
        value.backward()
        for own in model.parameters():
            own.grad = own.grad.contiguous()  # as this search needs it
        return value

    search.step(loss)
    backward = jacobian(lambda z: model.inverse(z[None]).flatten(), torch.zeros(D, dtype=torch.float64))
    torch.testing.assert_close(backward @ backward.T, directions * variances @ directions.T, atol=1e-6, rtol=0)
    torch.testing.assert_close(-model.scales[0][0].shift.detach(), mean, atol=1e-6, rtol=0)


def penalised(model, x, precision, image, code):
    """The joint adversary by gradient ascent through the flow: e = G(F(x) + zeta) + delta - x and its objective.

    It maximizes 1/2 (u + e)^T S^-1 (u + e) - L_x / 2 |delta|^2 - L_z / 2 |zeta|^2 over both; x: [N, d]; precision: what
    gives (u + e)^T S^-1 (u + e) of moved points; image, code: L_x, L_z.
    """
    zeta, delta = torch.zeros_like(x).requires_grad_(), torch.zeros_like(x).requires_grad_()
    search = torch.optim.LBFGS(
        [zeta, delta],
        max_iter=300,
        history_size=50,
        tolerance_grad=1e-13,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )
    with torch.no_grad():
        z = model(x.view(-1, *SHAPE))[0]

    def attacked():
        moved = model.inverse(z + zeta).flatten(1) + delta
        cost = image * delta.square().sum(1) + code * zeta.square().sum(1)
        return moved, (precision(moved) - cost) / 2

    def loss():
        search.zero_grad()
        value = -attacked()[1].sum()
        value.backward()
        return value

    search.step(loss)
    moved, value = attacked()
    return (moved - x).detach(), value.detach()


def quadratic(mean, directions, spread):
    """(u + e)^T S^-1 (u + e) for S with these eigenvectors."""
    return lambda moved: (((moved - mean) @ directions).square() / spread).sum(1)


@pytest.mark.parametrize(("image", "code"), [(8.0, 5.0), (40.0, 4.0), (5.0, 60.0)])
def test_the_joint_attack_through_a_linear_flow_is_the_closed_form(image, code):
    x, mean, directions, variances = gaussian(20)
    reach = spectrum.reach(spectrum.pixels(variances), image) + spectrum.reach(spectrum.flow(variances), code)
    torch.testing.assert_close(reach, 1 / image + variances / code, atol=1e-12, rtol=0)
    model, u = spectrum.hardened(variances, reach), (x - mean) @ directions
    flow = exact(mean, directions, variances)
    e, value = penalised(flow, x, quadratic(mean, directions, model), image, code)
    torch.testing.assert_close(e @ directions, spectrum.attack(u, model, reach), atol=1e-6, rtol=0)
    torch.testing.assert_close(value, spectrum.gain(u, model, reach), atol=1e-6, rtol=0)
    # The points have the variances exactly, so means over them are the expectations.
    energies = (e @ directions).square().mean(0)
    torch.testing.assert_close(energies, spectrum.saddle_energies(variances, reach), atol=1e-6, rtol=0)


def test_another_flow_gives_another_attack():
    x, mean, directions, variances = gaussian(20)
    reach = 1 / 8.0 + variances / 5.0
    spread = spectrum.hardened(variances, reach)
    wrong = exact(mean, directions, variances.flip(0))
    e, _ = penalised(wrong, x, quadratic(mean, directions, spread), 8.0, 5.0 * 16)
    expected = spectrum.attack((x - mean) @ directions, spread, reach)
    assert (e @ directions - expected).abs().max() > 0.1


def test_training_against_the_joint_attack_through_the_flow_gives_the_hardened_spectrum():
    """Each step moves s to where the outer objective's slope is zero for the attack found; its fixed point is s*."""
    image, code = 30.0, 12.0
    x, mean, directions, variances = gaussian(16)
    flow, spread = exact(mean, directions, variances), 1.5 * variances
    for _ in range(25):
        e, _ = penalised(flow, x, quadratic(mean, directions, spread), image, code)
        moved = ((x + e - mean) @ directions).square().mean(0)
        if (moved - spread).abs().max() < 1e-9:
            break
        spread = (spread + moved) / 2
    expected = spectrum.hardened(variances, 1 / image + variances / code)
    torch.testing.assert_close(spread, expected, atol=1e-6, rtol=0)


# --- the joint space ------------------------------------------------------------------------------------------------


def joint(model, x, *, eta, eps, cut=True):
    """The joint space of a flow; cut: whether decoding is cut to images."""
    with torch.no_grad():
        z = model.encode(x)
    free = torch.full(z.shape[1:], torch.inf)
    decode = model.decode if cut else model.inverse
    return Joint(Latent(z, decode, (), -free, free, eta), eps, tuple(x.shape[1:]))


def points(space, seed=0):
    """Feasible points at the border and inside: [B, D + C H W]."""
    size = space.latent.z.shape[1] + math.prod(space.shape)
    return space.project(3 * torch.randn(len(space), size, generator=seeded(seed)))


@pytest.mark.parametrize("eta", [0.01, 0.1, 0.5])
def test_without_delta_the_budget_in_the_code_is_met_exactly(learned, eta):
    """What makes the flow's threat model need no relaxation: the code of the image found is z + zeta."""
    x = smooth(64, seed=4)
    space = joint(learned, x, eta=eta, eps=0.0)
    with torch.no_grad():
        found = learned.inverse(space.latent.z + space.split(points(space))[0])
        inside = ((found >= 0) & (found <= 1)).flatten(1).all(1)
        assert inside.float().mean() > 0.9
        moved = (learned.encode(space.image(points(space))) - space.latent.z).abs().amax(1)[inside]
    assert (moved - eta).max() <= 1e-4
    assert moved.min() >= eta * (1 - 1e-3), "and all of it was used"


def test_cutting_to_images_is_what_breaks_the_budget_and_only_where_it_cuts(learned):
    """Decoded values of images with black pixels fall below 0, and cutting them there changes the code by more than
    eta; the uncut ones keep to it, since a flow has a code for them too. So chapters count what was cut.
    """
    x, eta, flow = (smooth(64, seed=4).double() - 0.35).clamp(0, 1), 0.3, copy.deepcopy(learned).double()
    space, raw = joint(flow, x, eta=eta, eps=0.0), joint(flow, x, eta=eta, eps=0.0, cut=False)
    zeta = space.split(points(space))[0]
    with torch.no_grad():
        whole, cut = raw.latent.image(zeta), space.latent.image(zeta)
        moved = [(flow.encode(found) - space.latent.z).abs().amax(1) for found in (whole, cut)]
    outside = (whole != cut).flatten(1).any(1)
    assert outside.float().mean() > 0.3
    assert (moved[0] - eta).max() <= 1e-6
    assert (moved[1] - eta)[~outside].max() <= 1e-4
    assert (moved[1] - eta)[outside].max() > 1e-2


def test_without_zeta_the_joint_space_is_that_of_pixels(learned):
    x = smooth(20, seed=5)
    space, plain = joint(learned, x, eta=0.0, eps=0.1), Pixels(x, 0.1)
    u = points(space)
    _, delta = space.split(u)
    with torch.no_grad():
        torch.testing.assert_close(space.image(u), plain.image(plain.project(delta)), atol=1e-5, rtol=0)
        assert (space.image(u) - x).abs().max() > 0.09


def test_without_delta_the_joint_space_is_that_of_codes(learned):
    x = smooth(20, seed=5)
    space = joint(learned, x, eta=0.2, eps=0.0)
    u = points(space)
    with torch.no_grad():
        assert torch.equal(space.image(u), space.latent.image(space.split(u)[0]))
        assert (space.image(u) - x).abs().max() > 0.01
        torch.testing.assert_close(space.image(torch.zeros_like(u)), x, atol=1e-5, rtol=0)


def test_the_joint_attack_is_at_least_as_strong_as_either_of_its_parts(learned):
    x = smooth(64, seed=6)
    random = seeded(7)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 4),
    )
    for value in network.parameters():
        value.data = torch.randn(value.shape, generator=random) / max(value[0].numel(), 1) ** 0.5
    y = network(x).argmax(1)
    value = {}
    for name, eta, eps in (("both", 0.1, 0.05), ("code", 0.1, 0.0), ("image", 0.0, 0.05)):
        space = joint(learned, x, eta=eta, eps=eps)
        start = torch.zeros(len(x), 128)
        u, value[name] = climb(network, space, y, start, objective=log_odds, rule=sign(0.2), steps=20)
        assert torch.equal(space.project(u), u)
        assert (value[name] >= log_odds(network(x), y) - 1e-3).all()
    either = torch.maximum(value["code"], value["image"])
    assert (value["both"] >= either).float().mean() >= 0.99
    assert float((value["both"] - either).mean()) > 0.01, "the other part adds something"
