"""advbook.manifolds.vaegan: losses and gradients against plain ones, fleets against members alone, decoders and 8-bit
weights against the originals.
"""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import seeded

from advbook.fleet import Stack
from advbook.manifolds import vaegan
from advbook.manifolds.vaegan import Autoencoder, Decoders, Recipe, Widths, autoencoder, discriminator, train
from advbook.networks import folded

SHAPE = (1, 8, 8)
THIN = Widths((2, 3), (3, 2), (2, 3))  # two levels of a few channels
SHAPES = [(1, 28, 28), (3, 56, 48), (1, 9, 13), (2, 8, 11)]


@pytest.fixture
def thin(monkeypatch):
    """Networks of a few channels and two levels, so that tests are quick."""
    monkeypatch.setitem(vaegan.WIDTHS, "small", THIN)


def pair_of(seed=0, shape=SHAPE, latents=3, dtype=torch.float64):
    return autoencoder("small", shape, latents=latents, generator=seeded(seed)).to(dtype)


def images(count, shape=SHAPE, seed=0, dtype=torch.float64):
    return torch.rand(count, *shape, generator=seeded(seed), dtype=dtype)


def used(pair, shape=SHAPE, seed=7):
    """The same autoencoder with batch norms that have seen images and have weights of their own, in evaluation mode."""
    random = seeded(seed)
    for layer in pair.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value in (layer.weight, layer.running_var):
                value.data.copy_(0.5 + torch.rand(value.shape, generator=random))
            for value in (layer.bias, layer.running_mean):
                value.data.copy_(0.3 * torch.randn(value.shape, generator=random))
    return pair.eval()


# --- shapes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["small", "paper"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_of_any_shape_come_out_as_they_came_in(size, shape):
    latents = 25 if shape[0] == 3 else 10
    pair = autoencoder(size, shape, latents=latents, generator=seeded()).eval()
    x = images(2, shape, dtype=torch.float32)
    assert pair.encode(x).shape == (2, latents)
    assert pair.encoder(x).shape == (2, 2 * latents)
    out = pair.decoder(pair.encode(x))
    assert out.shape == x.shape
    assert ((out > 0) & (out < 1)).all()
    assert discriminator(size, shape, generator=seeded()).eval()(x).shape == (2, 1)


def test_the_paper_s_size_has_the_layers_of_the_released_code():
    pair = autoencoder("paper", (1, 28, 28), generator=seeded())
    sides = [layer.weight.shape[:2] for layer in pair.encoder if isinstance(layer, nn.Conv2d)]
    assert [tuple(side) for side in sides] == [(64, 1), (128, 64), (256, 128)]
    assert pair.encoder[-1].in_features == 256 * 3 * 3
    ups = [layer for layer in pair.decoder if isinstance(layer, nn.ConvTranspose2d)]
    assert [tuple(layer.weight.shape) for layer in ups] == [(256, 128, 6, 6), (128, 64, 6, 6), (64, 1, 6, 6)]
    assert [layer.output_padding for layer in ups] == [(1, 1), (0, 0), (0, 0)]
    assert {(layer.stride, layer.padding) for layer in ups} == {((2, 2), (2, 2))}
    assert pair.decoder[0].out_features == 256 * 3 * 3
    critic = discriminator("paper", (1, 28, 28), generator=seeded())
    assert {layer.kernel_size for layer in critic if isinstance(layer, nn.Conv2d)} == {(6, 6)}
    assert {layer.kernel_size for layer in pair.encoder if isinstance(layer, nn.Conv2d)} == {(4, 4)}
    assert (pair.latents, vaegan.LATENTS) == (10, 10)


def test_the_same_seed_gives_the_same_weights_and_another_one_others():
    one, same, other = (pair_of(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["decoder.0.weight"], other["decoder.0.weight"])


@pytest.mark.parametrize("given", [{"epochs": -1}, {"batch": 1}, {"lr": 0}, {"decay": 1.1}, {"beta": 0}, {"size": "b"}])
def test_a_recipe_out_of_range_is_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        Recipe(**given)


def test_the_rate_falls_continuously_by_the_decay_of_every_epoch():
    assert [Recipe().rate(epoch) for epoch in (0, 1, 2.5)] == pytest.approx([0.005, 0.0045, 0.005 * 0.9**2.5])


# --- gradients and steps -------------------------------------------------------------------------------------------


def stacked(pairs, critics):
    parts = ([pair.encoder for pair in pairs], [pair.decoder for pair in pairs], critics)
    return [Stack(copy.deepcopy(list(models))).train() for models in parts]


class Recorded:
    """In an optimizer's place: takes no step, and keeps what it was given."""

    def __init__(self, part):
        self.weights, self.param_groups, self.steps = part.weights, [{}], 0

    def step(self):
        self.steps += 1
        self.slopes = {name: weight.grad.clone() for name, weight in self.weights.items()}


def plain_losses(pair, critic, x, noise, beta, gamma):
    """The three losses of the paper as it writes them, one network after the other: encoder, decoder, discriminator."""
    code = pair.encoder(x)
    width = code.shape[1] // 2
    mean, variance = code[:, :width], code[:, width:].exp()
    fake = pair.decoder(mean + variance.sqrt() * noise)
    real_normal = torch.distributions.Normal(mean, variance.sqrt())
    kl = torch.distributions.kl_divergence(real_normal, torch.distributions.Normal(0.0 * mean, 1.0 + 0.0 * mean)).sum()
    of_fake, of_real = critic(fake).sigmoid(), critic(x).sigmoid()
    reconstruction = beta * (x - fake).abs().sum()
    generated = -gamma * of_fake.log().sum()
    told = -gamma * (of_real.log().sum() + (1 - of_fake).log().sum())
    return kl + reconstruction + generated, reconstruction + generated, told


@settings(max_examples=10)
@given(seed=st.integers(0, 99), beta=st.floats(0.5, 6), gamma=st.floats(0, 3), latents=st.integers(1, 4))
def test_one_gradient_serves_the_three_losses_of_the_paper(seed, beta, gamma, latents):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vaegan.WIDTHS, "small", THIN)
        pairs = [pair_of(seed + member, latents=latents, dtype=torch.float32) for member in range(2)]
        critics = [discriminator("small", SHAPE, generator=seeded(seed + 50 + member)) for member in range(2)]
    x = torch.stack([images(5, seed=seed + member, dtype=torch.float32) for member in range(2)])
    noise = torch.randn(2, 5, latents, generator=seeded(seed))
    betas = torch.tensor([beta, 2 * beta])
    parts = stacked(pairs, critics)
    steps = [Recorded(part) for part in parts]
    vaegan._descend(parts, steps, x, noise, Recipe(gamma=gamma), betas, 0.125)
    assert [step.steps for step in steps] == [1, 1, 1]
    assert [step.param_groups for step in steps] == [[{"lr": 0.125}]] * 3
    for member, (pair, critic) in enumerate(zip(pairs, critics, strict=True)):
        networks = (pair.encoder, pair.decoder, critic)
        losses = plain_losses(pair, critic, x[member], noise[member], betas[member], gamma)
        for network, loss, step in zip(networks, losses, steps, strict=True):
            names = dict(network.named_parameters())
            expected = torch.autograd.grad(loss, list(names.values()), retain_graph=True)
            for name, slope in zip(names, expected, strict=True):
                size = float(slope.abs().max())
                torch.testing.assert_close(step.slopes[name][member], slope, atol=1e-3 * size + 1e-5, rtol=1e-3)


def test_all_three_steps_are_taken_from_the_same_point(thin):
    """A step of training is what three Adams make of gradients that were all taken before any step."""
    pair, x = pair_of(3), images(6)
    recipe = Recipe(epochs=1, batch=6, beta=2.0)
    random = seeded(4)
    critic = discriminator("small", SHAPE, generator=random)  # as train draws it, in float32
    (trained,) = train([copy.deepcopy(pair).float()], x.float(), [torch.arange(6)], [recipe], generators=[seeded(4)])
    order = torch.randperm(6, generator=random)
    noise = torch.randn(6, 3, generator=random)
    own = copy.deepcopy(pair).float().train()
    losses = plain_losses(own, critic, x.float()[order], noise, 2.0, 1.0)
    groups = [list(own.encoder.parameters()), list(own.decoder.parameters()), list(critic.parameters())]
    slopes = [torch.autograd.grad(loss, group, retain_graph=True) for loss, group in zip(losses, groups, strict=True)]
    for group, found in zip(groups[:2], slopes[:2], strict=True):
        for weight, slope in zip(group, found, strict=True):
            weight.grad = slope
        torch.optim.Adam(group, lr=0.005, betas=(0.5, 0.9), weight_decay=1e-4).step()
    for (name, value), expected in zip(trained.named_parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(value, expected, atol=2e-5, rtol=1e-4, msg=name)


# --- training ------------------------------------------------------------------------------------------------------


def trained_states(members, x, rows, recipe):
    """States of members trained together; members: their numbers, which name weights, beta and randomness."""
    pairs = [pair_of(10 + member, dtype=torch.float32) for member in members]
    recipes = [recipe.model_copy(update={"beta": 2.0 + member}) for member in members]
    found = train(pairs, x, [rows[member] for member in members], recipes, generators=[seeded(m) for m in members])
    return [pair.state_dict() for pair in found]


def test_a_member_of_a_fleet_is_the_one_trained_alone_in_any_order(thin):
    x, recipe = images(30, dtype=torch.float32), Recipe(epochs=2, batch=5, lr=0.001)
    rows = [torch.arange(member, 30, 3) for member in range(3)]
    alone = [trained_states([member], x, rows, recipe)[0] for member in range(3)]
    for members in ([0, 1, 2], [2, 0, 1]):
        for member, state in zip(members, trained_states(members, x, rows, recipe), strict=True):
            for name, value in alone[member].items():
                torch.testing.assert_close(state[name], value, atol=1e-6, rtol=1e-5, msg=name)
    assert not torch.equal(alone[0]["decoder.0.weight"], alone[1]["decoder.0.weight"])


def test_a_member_sees_its_own_images_alone(thin):
    x, recipe = images(20, dtype=torch.float32), Recipe(epochs=1, batch=5)
    rows = [torch.arange(10), torch.arange(10, 20)]
    changed = x.clone()
    changed[10:] = 1 - changed[10:]
    first, second = trained_states([0, 1], x, rows, recipe), trained_states([0, 1], changed, rows, recipe)
    for name, value in first[0].items():
        torch.testing.assert_close(value, second[0][name], atol=0, rtol=0)
    assert not torch.allclose(first[1]["decoder.0.weight"], second[1]["decoder.0.weight"])


def test_members_with_fewer_images_go_through_them_again():
    orders = [vaegan._order(rows, 12, seeded(1)) for rows in (5, 12)]
    assert orders[0][:5].sort().values.tolist() == list(range(5))
    assert torch.equal(orders[0][5:10], orders[0][:5])
    assert torch.equal(orders[0][10:], orders[0][:2])
    assert orders[1].sort().values.tolist() == list(range(12))


def test_the_seed_decides_all(thin):
    def state(seed, epochs=1):
        (found,) = train(
            [pair_of(1, dtype=torch.float32)],
            images(10, dtype=torch.float32),
            [torch.arange(10)],
            [Recipe(epochs=epochs, batch=5)],
            generators=[seeded(seed)],
        )
        return found.state_dict()["decoder.0.weight"]

    assert torch.equal(state(1), state(1))
    assert not torch.equal(state(1), state(2))
    assert torch.equal(state(1, epochs=0), pair_of(1, dtype=torch.float32).decoder[0].weight)


def test_training_gives_evaluation_mode_and_leaves_what_it_was_given(thin):
    pair, x = pair_of(1, dtype=torch.float32), images(10, dtype=torch.float32)
    before = copy.deepcopy(pair.state_dict())
    (found,) = train([pair], x, [torch.arange(10)], [Recipe(epochs=1, batch=5)], generators=[seeded()])
    assert not any(module.training for module in found.modules())
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())
    assert not torch.equal(found.state_dict()["encoder.1.running_mean"], before["encoder.1.running_mean"])


@pytest.fixture
def narrow(monkeypatch):
    """Wide enough to learn bars."""
    monkeypatch.setitem(vaegan.WIDTHS, "small", Widths((4, 8), (8, 4), (4, 8)))


def bars(count, seed=0):
    """Two families of images of one latent: a bright bar across or along, at a place that varies."""
    place = 2 + 4 * torch.rand(count, generator=seeded(seed))
    y = torch.arange(count) % 2
    line = torch.exp(-((torch.arange(8) - place[:, None]) ** 2))
    across = line[:, None, :, None].expand(-1, 1, 8, 8)
    return torch.where(y[:, None, None, None] == 0, across, across.mT).contiguous(), y


def test_learned_manifolds_reproduce_unseen_images_better_than_the_class_mean(narrow):
    x, y = bars(400)
    rows = [(y == label).nonzero()[:, 0] for label in (0, 1)]
    pairs = [pair_of(seed, latents=2, dtype=torch.float32) for seed in (1, 2)]
    recipe = Recipe(epochs=12, batch=20, decay=0.85)
    pairs = train(pairs, x, rows, [recipe, recipe], generators=[seeded(1), seeded(2)])
    new, labels = bars(60, seed=9)
    with torch.no_grad():
        again = Decoders(pairs)(vaegan.encode(pairs, new, labels), labels)
        means = torch.stack([x[own].mean(0) for own in rows])[labels]
        wrong = Decoders(pairs)(vaegan.encode(pairs, new, labels), 1 - labels)
    error = (again - new).flatten(1).norm(dim=1).mean()
    assert error < 0.6 * (means - new).flatten(1).norm(dim=1).mean()
    assert error < 0.5 * (wrong - new).flatten(1).norm(dim=1).mean(), "each class has a decoder of its own"


def test_a_stronger_weight_of_the_reconstruction_keeps_more_of_the_image_in_the_code(narrow):
    """The larger beta, the less the divergence draws codes together."""
    x, y = bars(200)
    own = (y == 0).nonzero()[:, 0]
    recipes = [Recipe(epochs=6, batch=20, beta=beta, gamma=0) for beta in (0.01, 3.0)]
    pairs = train(
        [pair_of(1, latents=2, dtype=torch.float32) for _ in recipes], x, [own, own], recipes,
        generators=[seeded(1), seeded(1)],
    )  # fmt: skip
    spread = [float(pair.encode(x[own]).detach().std(0).max()) for pair in pairs]
    assert spread[0] < 0.2
    assert spread[1] > 0.5


def test_members_that_do_not_fit_together_are_refused(thin):
    x, own = images(4, dtype=torch.float32), torch.arange(4)
    pairs = [pair_of(seed, dtype=torch.float32) for seed in (1, 2)]
    short = Recipe(epochs=0)
    with pytest.raises(ValueError, match=r"rows: \[4, 0\] images for 2 members, 2 recipes and 2 generators"):
        train(pairs, x, [own, own[:0]], [short, short], generators=[seeded(), seeded()])
    for rows, recipes, count in (([own], [short] * 2, 2), ([own] * 2, [short], 2), ([own] * 2, [short] * 2, 1)):
        with pytest.raises(ValueError, match="allowed is one of each"):
            train(pairs, x, rows, recipes, generators=[seeded()] * count)
    with pytest.raises(ValueError, match="may differ in beta alone"):
        train(pairs, x, [own, own], [short, Recipe(epochs=0, lr=0.1)], generators=[seeded(), seeded()])


def test_weights_that_are_not_finite_end_training(thin):
    x = torch.full((4, *SHAPE), torch.nan)
    with pytest.raises(FloatingPointError, match="diverged in epoch 1"):
        train(
            [pair_of(1, dtype=torch.float32)], x, [torch.arange(4)], [Recipe(epochs=2, batch=4)], generators=[seeded()]
        )


# --- decoders of all classes as one -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classes():
    """Four autoencoders whose batch norms have seen images, in float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vaegan.WIDTHS, "small", THIN)
        return [used(pair_of(seed), seed=seed) for seed in range(4)]


labels = st.lists(st.integers(0, 3), min_size=1, max_size=9)


@settings(max_examples=25)
@given(labels, st.integers(0, 99))
def test_every_code_is_decoded_by_the_decoder_of_its_class(classes, y, seed):
    y = torch.tensor(y)
    z = torch.randn(len(y), 3, generator=seeded(seed), dtype=torch.float64)
    decoders = Decoders(classes)
    expected = torch.stack([classes[label].decoder(code[None])[0] for code, label in zip(z, y.tolist(), strict=True)])
    for decode in (decoders, decoders._by_class, decoders._all_classes):
        torch.testing.assert_close(decode(z, y), expected, atol=1e-9, rtol=1e-9)


@settings(max_examples=10)
@given(labels, st.integers(0, 99))
def test_both_ways_give_the_codes_the_same_gradient(classes, y, seed):
    y = torch.tensor(y)
    z = torch.randn(len(y), 3, generator=seeded(seed), dtype=torch.float64)
    weight = torch.randn(len(y), *SHAPE, generator=seeded(seed + 1), dtype=torch.float64)
    decoders, slopes = Decoders(classes), []
    for decode in (decoders._by_class, decoders._all_classes):
        own = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad((decode(own, y) * weight).sum(), own)
        slopes.append(slope)
    torch.testing.assert_close(*slopes, atol=1e-9, rtol=1e-9)
    expected = []
    for code, label, own in zip(z, y.tolist(), weight, strict=True):

        def value(given, label=label, own=own):
            return (classes[label].decoder(given[None])[0] * own).sum()

        expected.append(torch.autograd.functional.jacobian(value, code))
    torch.testing.assert_close(slopes[0], torch.stack(expected), atol=1e-9, rtol=1e-9)


def test_a_single_decoder_looks_at_no_class(classes):
    z = torch.randn(5, 3, generator=seeded(), dtype=torch.float64)
    one = Decoders(classes[:1])
    expected = classes[0].decoder(z)
    for y in (torch.zeros(5).long(), torch.tensor([3, 1, 9, 0, 2])):
        torch.testing.assert_close(one(z, y), expected, atol=1e-9, rtol=1e-9)


def test_weights_of_decoders_ask_for_no_gradient_and_the_pairs_stay_as_they_were(classes):
    before = [copy.deepcopy(pair.state_dict()) for pair in classes]
    decoders = Decoders(classes)
    assert not any(weight.requires_grad for decoder in decoders.decoders for weight in decoder.parameters())
    for pair, state in zip(classes, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in pair.state_dict().items())


def test_every_image_is_encoded_by_the_encoder_of_its_class(classes):
    x, y = images(11), torch.tensor([3, 0, 0, 2, 3, 2, 0, 3, 0, 2, 2])  # no image of class 1
    expected = torch.stack([classes[label].encode(one[None])[0] for one, label in zip(x, y.tolist(), strict=True)])
    for batch in (1_000, 2, 1):
        torch.testing.assert_close(vaegan.encode(classes, x, y, batch=batch), expected, atol=1e-9, rtol=1e-9)
    single = vaegan.encode(classes[1:2], x, y, batch=3)
    torch.testing.assert_close(single, classes[1].encode(x).detach(), atol=1e-9, rtol=1e-9)
    assert not single.requires_grad


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_folding_batch_norm_away_changes_no_image(shape):
    pair = used(autoencoder("small", shape, generator=seeded(2)).double())
    z = torch.randn(3, 10, generator=seeded(), dtype=torch.float64)
    plain = folded(pair.decoder)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in plain)
    torch.testing.assert_close(plain(z), pair.decoder(z), atol=1e-10, rtol=1e-10)
    x = images(3, shape)
    torch.testing.assert_close(folded(pair.encoder)(x), pair.encoder(x), atol=1e-10, rtol=1e-10)


# --- weights of 8 bits ---------------------------------------------------------------------------------------------


def folded_layers(pair):
    """(layer name, weight, bias) of what is written, from the folded networks; of the encoder's head mu alone."""
    found = []
    for part, network in (("encoder", folded(pair.encoder)), ("decoder", folded(pair.decoder))):
        for place, layer in enumerate(network):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                head = part == "encoder" and isinstance(layer, nn.Linear)
                rows = slice(pair.latents) if head else slice(None)
                found.append((f"{part}.{place}", layer, layer.weight[rows].detach(), layer.bias[rows].detach()))
    return found


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 56, 48)], ids=str)
def test_quantized_weights_lie_within_a_step_of_the_originals(shape):
    pair = used(autoencoder("small", shape, generator=seeded(3)))
    state = vaegan.quantized(pair)
    layers = folded_layers(pair)
    assert {name.rsplit(".", 1)[0] for name in state} == {name for name, *_ in layers}
    for name, layer, weight, bias in layers:
        values, scale = state[f"{name}.values"], state[f"{name}.scale"]
        assert (values.dtype, scale.dtype) == (torch.int8, torch.float16)
        again = values.float() * scale.float()
        axis = {nn.Conv2d: 0, nn.ConvTranspose2d: 1}.get(type(layer))
        over = [a for a in range(weight.ndim) if a != axis]
        largest = weight.abs().amax(over, keepdim=True)
        assert scale.shape == largest.shape, "a scale an output channel"
        assert ((again - weight).abs() <= largest / 127).all()
        assert (values.abs().amax(over) == 127).all(), "every channel uses all its bits"
        torch.testing.assert_close(state[f"{name}.bias"].float(), bias, atol=1e-4, rtol=1e-3)


def test_restored_autoencoders_do_what_the_originals_did():
    pair = used(autoencoder("small", (1, 28, 28), generator=seeded(3)))
    again = vaegan.restored(vaegan.quantized(pair), "small", (1, 28, 28))
    x = images(6, (1, 28, 28), dtype=torch.float32)
    assert again.latents == 10
    code, expected = again.encode(x), pair.encode(x)
    assert code.shape == expected.shape == (6, 10)
    assert (code - expected).abs().max() < 0.05 * expected.abs().max()
    assert (again.decoder(expected) - pair.decoder(expected)).abs().max() < 0.05
    assert not again.training


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 56, 48)], ids=str)
def test_quantizing_twice_changes_nothing(shape):
    latents = 10 if shape[0] == 1 else 25
    once = vaegan.quantized(used(autoencoder("small", shape, latents=latents, generator=seeded(4))))
    twice = vaegan.quantized(vaegan.restored(once, "small", shape, latents=latents))
    assert once.keys() == twice.keys()
    for name, value in once.items():
        assert torch.equal(value, twice[name]), name


@given(st.integers(0, 99), st.floats(1e-6, 1e3))
def test_a_linear_layer_of_any_size_of_weights_fits_into_eight_bits(seed, size):
    layer = nn.Linear(7, 5)
    layer.weight.data = size * torch.randn(5, 7, generator=seeded(seed))
    weight = layer.weight.detach()
    values, scale = vaegan._to_int8(layer)
    step = max(float(weight.abs().max()) / 127, torch.finfo(torch.float16).tiny)
    assert ((values.float() * scale.float() - weight).abs() <= 0.6 * step).all()


def test_a_layer_of_zeros_stays_zero():
    layer = nn.Conv2d(2, 3, 2)
    layer.weight.data.zero_()
    values, scale = vaegan._to_int8(layer)
    assert (values == 0).all()
    assert scale.isfinite().all()
    assert (scale > 0).all()


def test_weights_of_another_architecture_are_refused():
    state = vaegan.quantized(used(autoencoder("small", (1, 28, 28), generator=seeded())))
    with pytest.raises(KeyError):
        vaegan.restored({name: value for name, value in state.items() if "decoder" not in name}, "small", (1, 28, 28))
    with pytest.raises(RuntimeError):
        vaegan.restored(state, "small", (3, 28, 28))


def test_a_pair_is_small_enough_for_a_page():
    small, paper = (autoencoder(size, (1, 28, 28), generator=seeded()) for size in ("small", "paper"))
    count = {size: sum(w.numel() for w in pair.parameters()) for size, pair in (("small", small), ("paper", paper))}
    assert count["small"] < 150_000
    assert count["paper"] > 10 * count["small"]
    assert math.prod(small.decoder(torch.zeros(1, 10)).shape) == 784
    assert isinstance(small, Autoencoder)
