"""The figures without a browser: packing, parity with torch in node, traits, still images, bad input."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ipywidgets import Widget
from matplotlib.image import imread
from parity import WIDGET_STATE, attacked, largest, net_job, parity, published_states, run_js, run_torch, state_of
from torch import Tensor, nn
from traitlets import TraitError

from advbook import confidence
from advbook.fonts import IDENTITY, THETA_HIGH, THETA_LOW, transform
from advbook.networks import cnn
from advbook.sliders import AttackDirection, LatentSlider, OffManifoldWalk, OnManifoldAttack, ThresholdSlider
from advbook.sliders.base import source
from advbook.sliders.pack import pack, pack_fonts, pack_together, rounded

FONTS, CLASSES, STEPS = 4, 10, 7
EXAMPLES, LAST = 3, 8  # of the attack: examples, and the last step of a path
ETA = (0.1, 0.1, 0.3, 0.3, 0.0667, 0.3)
MOVES = ["zeta_shift_x", "zeta_shift_y", "zeta_shear_x", "zeta_shear_y", "zeta_scale", "zeta_rotation"]


def blobs(seed: int = 0) -> np.ndarray:
    """Letters of nobody's alphabet: three boxes each, [F, K, 28, 28] uint8, with ink at the border, too."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((FONTS, CLASSES, 28, 28), np.uint8)
    for prototype in pixels.reshape(-1, 28, 28):
        for _ in range(3):
            top, left = rng.integers(0, 22, 2)
            height, width = rng.integers(3, 12, 2)
            prototype[top : top + height, left : left + width] = rng.integers(60, 256)
    return pixels


def classifier(seed: int = 0) -> nn.Sequential:
    """The book's network with weights and batch statistics as lively as a trained one's."""
    generator = torch.Generator().manual_seed(seed)
    network = cnn(generator=generator)
    for module in network:
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in [
                (module.running_mean, -1, 1),
                (module.running_var, 0.3, 2),
                (module.weight.data, 0.5, 3),
                (module.bias.data, -1, 1),
            ]:
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)
    return network


def latent_slider(**changes: Any) -> LatentSlider:
    arguments: dict[str, Any] = {"prototypes": blobs(), "font_names": [f"Sans {i}" for i in range(FONTS)]}
    return LatentSlider(**{**arguments, "classifier": classifier(), **changes})


def off_manifold_walk(**changes: Any) -> OffManifoldWalk:
    rng = np.random.default_rng(0)
    letters = blobs()[0, :3]  # [B, 28, 28]
    ts = np.linspace(0, 1.5, STEPS)
    arguments: dict[str, Any] = {
        "x": letters / 255,
        "delta": 0.3 * np.sign(rng.normal(size=letters.shape)),
        "labels": [0, 1, 2],
        "class_names": list("ABCDEFGHIJ"),
        "classifier": classifier(),
        "ts": ts.tolist(),
        "distance": np.outer([1.0, 2.0, 3.0], ts),
        "projection": np.stack([np.roll(letters, i, 1) for i in range(STEPS)], 1),
    }
    return OffManifoldWalk(**{**arguments, **changes})


def confidences(prototypes: np.ndarray, theta: np.ndarray, zeta: np.ndarray) -> np.ndarray:
    """What the classifier says of letters moved by zeta: [E, H, W], [E, 6], [E, M, 6] -> [E, M, K]."""
    code = np.clip(theta[:, None] + zeta, THETA_LOW, THETA_HIGH).astype(np.float32)
    images = torch.from_numpy(prototypes / np.float32(255)).repeat_interleave(zeta.shape[1], 0)[:, None]
    with torch.no_grad():
        probabilities = sharp().eval()(transform(images, torch.from_numpy(code).flatten(0, 1))).softmax(1)
    return probabilities.view(*zeta.shape[:2], -1).numpy()


def sharp(seed: int = 0) -> nn.Sequential:
    """A classifier that is surer of itself."""
    network = classifier(seed)
    with torch.no_grad():
        network[-1].weight.mul_(8)
    return network


def attack_arguments(**changes: Any) -> dict[str, Any]:
    """Letters that the classifier reads rightly, and straight paths to the worst of some corners of the budget."""
    rng = np.random.default_rng(3)
    prototypes = blobs()[1, :EXAMPLES]
    theta = rng.uniform(THETA_LOW, THETA_HIGH, (EXAMPLES, 6)).astype(np.float32)
    labels = confidences(prototypes, theta, np.zeros((EXAMPLES, 1, 6)))[:, 0].argmax(1)
    corners = np.sign(rng.normal(size=(EXAMPLES, 64, 6))) * ETA
    said = confidences(prototypes, theta, corners)
    worst = [corners[i, said[i, :, label].argmin()] for i, label in enumerate(labels)]
    arguments: dict[str, Any] = {
        "prototypes": prototypes,
        "theta": theta,
        "labels": labels.tolist(),
        "class_names": list("ABCDEFGHIJ"),
        "classifier": sharp(),
        "path": np.linspace(0, 1, LAST + 1)[:, None] * np.stack(worst)[:, None],
        "eta": ETA,
    }
    return {**arguments, **changes}


def on_manifold_attack(**changes: Any) -> OnManifoldAttack:
    return OnManifoldAttack(**attack_arguments(**changes))


TAUS = {"adversarial training": 0.6, "CCAT": 0.9, "normal": 0.3}


def direction_arguments(**changes: Any) -> dict[str, Any]:
    """Letters, three networks, and against each its own noise."""
    rng = np.random.default_rng(5)
    letters = blobs()[2, :EXAMPLES, None] / np.float32(255)  # [E, 1, H, W]
    arguments: dict[str, Any] = {
        "images": letters,
        "labels": [3, 1, 2],
        "class_names": list("ABCDEFGHIJ"),
        "networks": {name: sharp(seed) for seed, name in enumerate(TAUS)},
        "deltas": {name: 0.4 * np.sign(rng.normal(size=letters.shape)) for name in TAUS},
        "taus": TAUS,
    }
    return {**arguments, **changes}


def attack_direction(**changes: Any) -> AttackDirection:
    return AttackDirection(**direction_arguments(**changes))


IMAGES, SHOWN = 60, 8  # of the threshold: images in all, and those with a picture
NETWORKS, THREATS = ("normal", "CCAT"), ("Linf, seen", "Linf, larger", "L2")
TAU99 = {"normal": 0.5, "CCAT": 0.25}


def threshold_arguments(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Confidences with ties, of networks that are surer where they are right."""
    rng = np.random.default_rng(seed)
    letters = blobs()[:, :, None].reshape(-1, 1, 28, 28)[:SHOWN]

    def booleans(p: float) -> np.ndarray:
        return rng.random(IMAGES) < p

    def confidence() -> np.ndarray:
        return rng.beta(3, 2, IMAGES).round(2).astype(np.float32)

    def pictures() -> np.ndarray:
        return np.clip(letters + rng.integers(-60, 60, letters.shape), 0, 255).astype(np.uint8)

    def each(make: Any) -> dict[str, dict[str, Any]]:
        return {name: {threat: make() for threat in THREATS} for name in NETWORKS}

    arguments: dict[str, Any] = {
        "clean_confidence": {name: confidence() for name in NETWORKS},
        "clean_correct": {name: booleans(0.9) for name in NETWORKS},
        "attacked_confidence": each(confidence),
        "attacked_wrong": each(lambda: booleans(0.6)),
        "tau99": TAU99,
        "clean_images": letters,
        "attacked_images": each(pictures),
    }
    return {**arguments, **changes}


def threshold_slider(**changes: Any) -> ThresholdSlider:
    return ThresholdSlider(**threshold_arguments(**changes))


def zeta_of(figure: OnManifoldAttack) -> list[float]:
    return [getattr(figure, name) for name in MOVES]


def run_packed(network: nn.Sequential, x: Tensor) -> Tensor:
    """A network, packed, through the interpreter."""
    layers, weights = pack(network)
    return run_js(source("interpreter.js"), [net_job({"n": layers, "n_weights": weights}, "n", x)])[0]


@pytest.mark.node
@pytest.mark.parametrize("seed", range(3))
def test_packed_classifier_equals_the_network(seed):
    network = classifier(seed)
    x = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = network.eval()(x)
    assert expected.abs().max() > 0.5
    assert largest(run_packed(network, x), expected) <= 1e-4


@pytest.mark.node
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_convolutions_of_any_shape(data):
    channels, out, height, width = (data.draw(st.integers(1, n)) for n in (4, 5, 9, 9))
    padding = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    kernel = tuple(data.draw(st.integers(1, min(6, n + 2 * p))) for n, p in zip((height, width), padding, strict=True))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    bias = data.draw(st.booleans())
    torch.manual_seed(data.draw(st.integers(0, 99)))
    layer = nn.Conv2d(channels, out, kernel, stride, padding, bias=bias)
    x = torch.randn(2, channels, height, width)
    expected = F.conv2d(x, layer.weight, layer.bias, stride, padding).detach()
    assert largest(run_packed(nn.Sequential(layer), x), expected) <= 1e-5


@pytest.mark.node
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_transposed_convolutions_of_any_shape(data):
    channels, out, height, width = (data.draw(st.integers(1, n)) for n in (5, 4, 6, 6))
    stride, kernel = (data.draw(st.tuples(st.integers(1, n), st.integers(1, n))) for n in (3, 6))
    more = tuple(data.draw(st.integers(0, its - 1)) for its in stride)  # torch allows less than the stride
    sides = [(n - 1) * s + k + m for n, s, k, m in zip((height, width), stride, kernel, more, strict=True)]
    padding = tuple(data.draw(st.integers(0, min(3, (side - 1) // 2))) for side in sides)
    torch.manual_seed(data.draw(st.integers(0, 99)))
    layer = nn.ConvTranspose2d(channels, out, kernel, stride, padding, more, bias=data.draw(st.booleans()))
    x = torch.randn(2, channels, height, width)
    expected = F.conv_transpose2d(x, layer.weight, layer.bias, stride, padding, more).detach()
    assert largest(run_packed(nn.Sequential(layer), x), expected) <= 1e-5


@pytest.mark.node
def test_batch_norm_is_folded_into_the_transposed_convolution_before_it():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(5, 24), nn.Unflatten(1, (6, 2, 2)), nn.ConvTranspose2d(6, 3, 4, 2, 1), nn.BatchNorm2d(3), nn.Sigmoid()
    )
    norm = network[3]
    for tensor, low, high in [(norm.running_mean, -1, 1), (norm.running_var, 0.3, 2), (norm.weight.data, 0.5, 3)]:
        tensor.uniform_(low, high)
    x = torch.randn(6, 5)
    layers, _ = pack(network)
    assert [layer["op"] for layer in layers] == ["linear", "unflatten", "conv_transpose2d", "sigmoid"]
    with torch.no_grad():
        assert largest(run_packed(network, x), network.eval()(x)) <= 1e-5


def lone(layer: nn.Module) -> tuple[dict[str, Any], bytes]:
    """A single layer, packed with 8 bits, and its bytes."""
    (packed,), weights = pack(nn.Sequential(layer), bits=8)
    return packed, weights


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(30, 7), nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(3, 5, 3, 2)],
    ids=lambda layer: type(layer).__name__,
)
def test_weights_of_8_bits_are_levels_of_each_output_channels_own_scale(layer):
    torch.manual_seed(0)
    by_output = layer.weight.detach().movedim(1 if isinstance(layer, nn.ConvTranspose2d) else 0, 0)  # views
    channels = len(by_output)
    by_output.mul_(10.0 ** torch.arange(channels).view(-1, *[1] * (by_output.ndim - 1)) / 1e3)
    packed, weights = lone(layer)
    reference = packed["tensors"]["weight"]
    count = layer.weight.numel()
    assert reference["dtype"] == "int8"
    assert len(weights) == 4 * channels + -(-count // 4) * 4 + 4 * channels  # scales, levels, biases
    tops = by_output.flatten(1).abs().amax(1)
    scales = np.frombuffer(weights, "<f4", channels, reference["offset"])
    levels = np.frombuffer(weights, "i1", count, reference["offset"] + 4 * channels).reshape(channels, -1)
    assert scales == pytest.approx(tops.numpy() / 127, rel=1e-6)
    assert (abs(levels).max(1) == 127).all()
    near = next(module for module in rounded(nn.Sequential(layer))).weight
    assert largest(near, layer.weight.detach()) > 0
    error = (
        (near - layer.weight).detach().movedim(1 if isinstance(layer, nn.ConvTranspose2d) else 0, 0).flatten(1).abs()
    )
    assert (error.amax(1) <= 0.5001 * tops / 127).all()


def test_a_channel_of_zeros_stays_zero_with_8_bits_and_biases_keep_32():
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight[1] = 0
    near = rounded(nn.Sequential(layer))[0]
    assert (near.weight[1] == 0).all()
    assert torch.equal(near.bias, layer.bias)
    packed, weights = lone(layer)
    assert np.array_equal(np.frombuffer(weights, "<f4", 3, packed["tensors"]["bias"]["offset"]), layer.bias.detach())


def test_a_rounded_network_is_what_its_bytes_of_8_bits_mean_and_does_not_change_if_rounded_again():
    network, x = classifier(), torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    near = rounded(network)
    with torch.no_grad():
        assert largest(run_torch(*pack(network, bits=8), x), near(x)) <= 1e-5
        assert largest(rounded(near)(x), near(x)) <= 1e-5
        assert 1e-3 < largest(network.eval()(x), near(x)) < 0.5


def test_networks_packed_together_with_8_bits_are_what_they_are_alone():
    networks = [classifier(seed) for seed in range(2)]
    layers, weights = pack_together(networks, bits=8)
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for network, its in zip(networks, layers, strict=True):
        assert largest(run_torch(its, weights, x), run_torch(*pack(network, bits=8), x)) == 0


@pytest.mark.parametrize("bits", [4, 16, 0])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match=rf"bits = {bits}; allowed are 8 and 32\."):
        pack(nn.Sequential(nn.Linear(2, 2)), bits=bits)


@pytest.mark.node
def test_linear_relu_softmax_flatten():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(15, 8, bias=False), nn.ReLU(), nn.Linear(8, 5), nn.Softmax(1))
    x = 50 * torch.randn(6, 3, 5)
    with torch.no_grad():
        assert largest(run_packed(network, x), network(x)) <= 1e-5


@pytest.mark.node
@pytest.mark.parametrize("figure", [latent_slider, off_manifold_walk, on_manifold_attack, attack_direction])
def test_figures_agree_with_torch(figure):
    differences = parity(state_of(figure()), count=30)
    assert differences.image <= 1e-4
    assert differences.logits <= 1e-4


@pytest.mark.node
def test_parity_notices_other_weights_and_another_decoder():
    state = state_of(latent_slider())
    esm = state["_esm"]
    decoder = {**state, "_esm": esm.replace("scale * ((c + n * shearX)", "scale * ((c - n * shearX)")}
    network = {**state, "_esm": esm.replace("bias.data[channel] + sum", "sum")}
    assert decoder["_esm"] != esm != network["_esm"]
    assert parity(decoder, count=5).image > 0.01
    assert parity(network, count=5).logits > 0.01


@pytest.mark.node
def test_parity_notices_a_move_beyond_the_box_and_another_example():
    state = state_of(on_manifold_attack())
    esm = state["_esm"]
    for right, wrong in [
        ("Math.min(high[i], Math.max(low[i], v + zeta[i]))", "v + zeta[i]"),
        ("...moved, example, 0", "...moved, 0, 0"),
        ("v + zeta[i]", "v - zeta[i]"),
    ]:
        assert right in esm
        images, shown = attacked({**state, "_esm": esm.replace(right, wrong)}, 1, torch.Generator())
        assert largest(images, shown) > 0.01


@pytest.mark.node
def test_parity_runs_every_step_of_every_path():
    arguments = attack_arguments()
    images, _ = attacked(state_of(on_manifold_attack()), 2, torch.Generator())
    along = images.view(EXAMPLES, LAST + 1 + 2, 1, 28, 28)[:, : LAST + 1]
    theta = np.clip(arguments["theta"][:, None] + arguments["path"], THETA_LOW, THETA_HIGH).astype(np.float32)
    for letter, own, seen in zip(arguments["prototypes"], torch.from_numpy(theta), along, strict=True):
        upright = torch.from_numpy(letter / np.float32(255)).expand(LAST + 1, 1, -1, -1)
        assert largest(transform(upright, own), seen) <= 1e-4


@pytest.mark.node
def test_prototypes_come_back_exactly():
    layers, weights = pack_fonts(blobs())
    z = torch.tensor([[0, 0, 0, 0, 1, 0, font, letter] for font in range(FONTS) for letter in range(CLASSES)])
    (shown,) = run_js(source("interpreter.js"), [net_job({"d": layers, "d_weights": weights}, "d", z.float())])
    assert largest(shown, torch.from_numpy(blobs()).view(-1, 1, 28, 28) / 255) <= 1e-6


@pytest.mark.node
def test_published_states_are_found_in_a_notebook(tmp_path):
    Widget.close_all()
    latent_slider(), off_manifold_walk(), on_manifold_attack(), attack_direction(), threshold_slider()
    saved = Widget.get_manager_state()["state"]
    for model in saved.values():
        split = {k: v for k, v in model["state"].items() if isinstance(v, bytes | memoryview)}
        model["state"] = {k: v for k, v in model["state"].items() if k not in split}
        model["buffers"] = [
            {"path": [k], "encoding": "base64", "data": base64.b64encode(v).decode()} for k, v in split.items()
        ] or model.get("buffers", [])
    notebook = nbformat.v4.new_notebook(metadata={"widgets": {WIDGET_STATE: {"state": saved}}})
    nbformat.write(notebook, tmp_path / "chapter.ipynb")
    states = published_states(tmp_path / "chapter.ipynb")
    assert len(states) == 4
    assert sum("classifiers" in state for state in states) == 1
    assert sum("path" in state for state in states) == 1
    for state in states:
        assert max(parity(state, count=5)) <= 1e-4


def test_packing_folds_batch_norm_and_multiplies_linear_layers():
    network = classifier()
    layers, weights = pack(network)
    assert [layer["op"] for layer in layers] == ["conv2d", "relu"] * 3 + ["flatten", "linear"]
    assert layers[-1]["tensors"]["weight"]["shape"] == [10, 576]
    x = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert largest(run_torch(layers, weights, x), network.eval()(x)) <= 1e-5


def test_linear_layers_stay_apart_where_that_is_smaller():
    layers, _ = pack(nn.Sequential(nn.Linear(50, 2), nn.Linear(2, 50)))
    assert [layer["tensors"]["weight"]["shape"] for layer in layers] == [[2, 50], [50, 2]]


def test_packing_leaves_the_network_as_it_was():
    network = classifier()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    latent_slider(classifier=network)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Tanh(),
        nn.BatchNorm2d(1),
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(1, 1, 3, dilation=2),
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 1, 3, padding="same"),
        nn.ConvTranspose2d(2, 2, 3, groups=2),
        nn.ConvTranspose2d(1, 1, 3, dilation=2),
        nn.Flatten(2),
        nn.Unflatten(2, (1, 1)),
        nn.Unflatten(1, (-1, 1)),
        nn.Softmax(2),
    ],
    ids=str,
)
def test_unknown_layers_are_refused_when_packed(layer):
    with pytest.raises(TypeError, match=re.escape(type(layer).__name__)):
        pack(nn.Sequential(layer))


@pytest.mark.parametrize("figure", [LatentSlider, OffManifoldWalk, OnManifoldAttack, AttackDirection, ThresholdSlider])
def test_figures_load_nothing(figure):
    text = figure._esm + figure._css
    assert not re.search(r"\bimport\b|\bfetch\b|XMLHttpRequest|WebSocket|\burl\(|@import", text)
    assert set(re.findall(r"https?://[^\"'\s)]+", text)) == {"http://www.w3.org/2000/svg"}


def test_traits_are_observed_and_held_to_their_range():
    figure = latent_slider()
    seen: list[float] = []
    figure.observe(lambda change: seen.append(change["new"]), "rotation")
    figure.rotation = 0.5
    assert seen == [0.5]
    with pytest.raises(TraitError, match=r"rotation = 2.*allowed is -1\.5708 to 1\.5708"):
        figure.rotation = 2
    with pytest.raises(TraitError, match=r"font = 4 .*allowed is 0 to 3"):
        figure.font = FONTS
    assert figure.rotation == 0.5


def test_ends_of_a_slider_in_degrees_are_in_range():
    figure = latent_slider()
    control = next(control for control in figure.controls if control["name"] == "rotation")
    figure.rotation = control["max"] / control["per"]
    assert figure.rotation == pytest.approx(np.pi / 2)


def test_controls_say_what_they_are():
    controls = latent_slider(fonts=1000).controls
    names = [
        "shift x",
        "shift y",
        "shear x",
        "shear y",
        "scale",
        "rotation",
        "letter",
        "font (4 of the 1,000 fonts)",
    ]
    assert [control["label"] for control in controls] == names
    assert all(50 <= (c["max"] - c["min"]) / c["step"] <= 101 for c in controls[:6])


def test_start_values_and_examples():
    figure = latent_slider(start=(0.1, 0, 0, 0, 1.1, 0.5))
    assert (figure.shift_x, figure.scale, figure.rotation, figure.letter) == (0.1, 1.1, 0.5, 0)
    walk = off_manifold_walk(start=1.0)
    assert walk.t == 1.0
    assert walk.controls[1]["options"] == ["1: A", "2: B", "3: C"]


@pytest.mark.parametrize(
    "figure", [latent_slider, off_manifold_walk, on_manifold_attack, attack_direction, threshold_slider]
)
def test_mime_bundle_has_widget_still_and_words(figure):
    data, _ = figure()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"].endswith(".")
    picture = imread(BytesIO(base64.b64decode(data["image/png"])))
    assert picture.shape[1] > 600
    assert picture[..., :3].std() > 0.1


def test_still_follows_the_sliders():
    figure = latent_slider()
    before = figure.still()
    figure.letter = 3
    assert figure.still() != before
    assert "The letter D" in figure.alt()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prototypes": blobs() / 255}, "prototypes"),
        ({"prototypes": blobs()[:, :9]}, r"prototypes have shape \[4, 9, 28, 28\]"),
        ({"font_names": ["one"]}, "1 font names"),
        ({"classifier": nn.Sequential(nn.Flatten(), nn.Linear(784, 3))}, r"classifier gives \[1, 3\]"),
        ({"classifier": nn.Sequential(nn.Flatten(), nn.Linear(100, 10))}, "classifier does not take"),
        ({"start": (0, 0, 0, 0, 1)}, "start has 5 numbers"),
    ],
)
def test_latent_slider_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        latent_slider(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((28, 28))}, r"x has shape \[28, 28\]"),
        ({"delta": np.zeros((2, 28, 28))}, "delta has shape"),
        ({"delta": np.full((3, 28, 28), np.nan)}, "delta"),
        ({"labels": [0, 1, 10]}, "labels"),
        ({"ts": [0.0] * STEPS}, "ts"),
        ({"distance": np.zeros((3, STEPS + 1))}, "distance has shape"),
        ({"projection": np.zeros((3, STEPS, 28, 28))}, "projection has type float64"),
    ],
)
def test_walk_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        off_manifold_walk(**changes)


def test_start_outside_the_box_is_refused():
    with pytest.raises(TraitError, match="scale = 2"):
        latent_slider(start=(0, 0, 0, 0, 2, 0))


def test_a_step_sets_the_move_to_the_paths():
    figure, path = on_manifold_attack(), attack_arguments()["path"]
    for example in range(EXAMPLES):
        figure.example = example
        for step in (LAST, 3, 0):
            figure.step = step
            assert zeta_of(figure) == pytest.approx(path[example, step], abs=1e-6)


def test_arrays_and_tensors_serve_as_well_as_lists():
    plain, arguments = on_manifold_attack(), attack_arguments()
    tensors = {name: torch.as_tensor(arguments[name]) for name in ("prototypes", "theta", "labels", "path")}
    figure = on_manifold_attack(**tensors, eta=torch.tensor(ETA), low=np.float32(THETA_LOW))
    assert figure.path == plain.path
    assert figure.labels == plain.labels
    json.dumps([figure.controls, figure.low, figure.high, figure.eta])


def test_a_hand_goes_on_from_any_step():
    figure = on_manifold_attack()
    figure.step = 5
    before = zeta_of(figure)
    figure.zeta_rotation = 0.01
    assert figure.step == 5
    assert zeta_of(figure) == [*before[:5], 0.01]


def test_another_example_starts_without_a_move():
    # A path need not begin at zero: an attack may start at a random place.
    figure = on_manifold_attack(path=attack_arguments()["path"][:, 2:])
    figure.step = 4
    figure.example = 1
    assert (figure.step, zeta_of(figure)) == (0, [0.0] * 6)
    figure.zeta_scale = 0.01
    figure.example = 2
    assert (figure.step, zeta_of(figure)) == (0, [0.0] * 6)


def test_what_the_browser_sends_stands_as_it_is():
    figure = on_manifold_attack()
    figure.set_state({"step": 4, "zeta_rotation": 0.02})
    assert (figure.step, zeta_of(figure)) == (4, [0.0] * 5 + [0.02])
    figure.set_state({"example": 1, "step": 2, "zeta_scale": 0.03})
    assert (figure.example, figure.step, figure.zeta_scale) == (1, 2, 0.03)
    figure.step = 3  # from Python again
    assert zeta_of(figure) == pytest.approx(attack_arguments()["path"][1, 3], abs=1e-6)


def test_moves_and_steps_are_held_to_their_range():
    figure = on_manifold_attack()
    with pytest.raises(TraitError, match=r"zeta_scale = 0\.07 .*allowed is -0\.0667 to 0\.0667"):
        figure.zeta_scale = 0.07
    with pytest.raises(TraitError, match=rf"step = {LAST + 1} .*allowed is 0 to {LAST}"):
        figure.step = LAST + 1
    with pytest.raises(TraitError, match=rf"example = {EXAMPLES} .*allowed is 0 to {EXAMPLES - 1}"):
        figure.example = EXAMPLES


@pytest.mark.parametrize(
    "eta", [ETA, (0.3,) * 6, (0.04, 0.04, 0.1, 0.1, 0.04, 0.31416), (1e-3, 7, 0.5, 1 / 3, 0.12, 1.5)]
)
def test_the_stops_of_a_move_meet_zero_and_both_ends(eta):
    figure = on_manifold_attack(eta=eta, path=np.zeros((EXAMPLES, 2, 6)))
    sliders = [control for control in figure.controls if control["name"] in MOVES]
    for control, bound in zip(sliders, eta, strict=True):
        stops = np.arange(control["min"], control["max"] + 1e-12, control["step"]) / control["per"]
        assert abs(stops).min() <= 1e-6 * bound
        assert stops[-1] == pytest.approx(bound, rel=1e-4)
        assert 40 <= len(stops) <= 101


def test_the_path_weighs_four_bytes_a_number():
    state = state_of(on_manifold_attack())
    sent = {name: len(value) for name, value in state.items() if isinstance(value, bytes)}
    network = sent.pop("classifier_weights")
    assert sent == {"decoder_weights": EXAMPLES * 28 * 28, "theta": 24 * EXAMPLES, "path": 24 * EXAMPLES * (LAST + 1)}
    assert network == len(pack(sharp())[1])


def test_still_of_an_attack_follows_the_example():
    figure = on_manifold_attack()
    before, words = figure.still(), figure.alt()
    figure.example = 2
    assert figure.still() != before
    assert figure.alt() != words


def test_the_words_for_an_attack_name_its_first_error():
    figure = on_manifold_attack()
    assert f"errs first at step {first_error(0)}" in figure.alt()
    assert "The classifier never errs." in on_manifold_attack(path=np.zeros((EXAMPLES, 2, 6))).alt()


def first_error(example: int) -> int:
    """The first step of the path at which the classifier errs, by torch."""
    arguments = attack_arguments()
    said = confidences(arguments["prototypes"], arguments["theta"], arguments["path"])[example].argmax(1)
    return int((said != arguments["labels"][example]).argmax())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prototypes": blobs()[1, :EXAMPLES] / 255}, r"prototypes are float64 \[3, 28, 28\]; allowed: uint8"),
        ({"prototypes": blobs()[1:2, :EXAMPLES]}, r"prototypes are uint8 \[1, 3, 28, 28\]"),
        ({"prototypes": blobs()[1, :0]}, "at least 1"),
        ({"theta": np.zeros((2, 6))}, r"theta has shape \[2, 6\]; allowed: \[3, 6\]"),
        ({"theta": np.zeros((3, 6))}, r"theta has 0 for scale; allowed is 0\.75 to 1\.15"),
        ({"theta": np.full((3, 6), np.nan)}, "theta has nan for shift x"),
        ({"labels": [0, 1]}, r"labels = \[0, 1\]; allowed: 3 classes from 0 to 9"),
        ({"labels": [0, 1, 10]}, "labels"),
        ({"class_names": list("ABC")}, r"classifier gives \[1, 10\]"),
        ({"classifier": nn.Sequential(nn.Flatten(), nn.Linear(100, 10))}, "classifier does not take"),
        ({"path": np.zeros((3, 1, 6))}, r"path has shape \[3, 1, 6\]; allowed: \[3, T \+ 1, 6\]"),
        ({"path": np.zeros((2, 4, 6))}, "since there are 3 prototypes"),
        ({"path": np.full((3, 4, 6), 0.1)}, r"path has 0\.1 for scale; allowed is -0\.0667 to 0\.0667"),
        ({"path": np.full((3, 4, 6), np.nan)}, "path has nan"),
        ({"eta": (0.3,) * 5}, "eta has 5 numbers; allowed are 6"),
        ({"eta": (0.3,) * 5 + (0,)}, r"eta = .*allowed are positive finite numbers"),
        ({"low": IDENTITY, "high": IDENTITY}, "each low below its high"),
        ({"high": THETA_HIGH[:5]}, "high has 5 numbers"),
    ],
)
def test_attack_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        on_manifold_attack(**changes)


def test_attack_refuses_layers_that_the_browser_cannot_run():
    with pytest.raises(TypeError, match="Tanh"):
        on_manifold_attack(classifier=nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Tanh()))


@pytest.mark.node
@pytest.mark.parametrize("network", range(len(TAUS)))
def test_parity_notices_each_of_several_networks(network):
    state = state_of(attack_direction())
    # Only JS skips the layer of a kind that torch knows as well.
    layers = [list(one) for one in state["classifiers"]]
    layers[network] = [*layers[network], {"op": "relu", "tensors": {}}]
    esm = state["_esm"].replace("(v > 0 ? v : 0)", "(v > 0 || data.length === 10 ? v : 0)")
    assert esm != state["_esm"]
    assert parity({**state, "classifiers": layers}, count=2).logits <= 1e-4
    assert parity({**state, "classifiers": layers, "_esm": esm}, count=2).logits > 0.01


def test_networks_packed_together_are_what_they_are_alone():
    networks = [sharp(seed) for seed in range(3)]
    layers, weights = pack_together(networks)
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for network, its in zip(networks, layers, strict=True):
        alone, bytes_alone = pack(network)
        assert largest(run_torch(its, weights, x), run_torch(alone, bytes_alone, x)) == 0
    assert len(weights) == sum(len(pack(network)[1]) for network in networks)


def test_a_step_is_held_to_its_range_and_starts_at_the_attacks_end():
    figure = attack_direction(t_max=1.5)
    assert (figure.t, figure.example) == (1, 0)
    figure.t = 1.5
    with pytest.raises(TraitError, match=r"t = 1\.6 .*allowed is 0 to 1\.5"):
        figure.t = 1.6
    with pytest.raises(TraitError, match="example = 3"):
        figure.example = EXAMPLES


def test_networks_keep_the_order_in_which_they_are_given_and_their_own_deltas():
    arguments = direction_arguments()
    turned = attack_direction(
        deltas=dict(reversed(arguments["deltas"].items())), taus=dict(reversed(arguments["taus"].items()))
    )
    plain = attack_direction()
    assert turned.networks == plain.networks == list(TAUS)
    assert (turned.deltas, turned.taus) == (plain.deltas, plain.taus)
    deltas = np.frombuffer(plain.deltas, "<f4").reshape(len(TAUS), EXAMPLES, 1, 28, 28)
    for delta, name in zip(deltas, TAUS, strict=True):
        assert np.array_equal(delta, arguments["deltas"][name].astype(np.float32))


def test_still_of_a_direction_says_rejected_below_tau():
    arguments = direction_arguments()
    none, all_ = (attack_direction(taus=dict.fromkeys(TAUS, tau)) for tau in (0.0, 1.0))
    assert none.still() != all_.still()
    figure = attack_direction()
    before = figure.still()
    figure.example = 1
    assert figure.still() != before
    assert arguments["class_names"][1] in figure.alt()


NOT_FINITE = {name: np.full((EXAMPLES, 1, 28, 28), np.nan) for name in TAUS}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((3, 28, 28))}, r"images have shape \[3, 28, 28\]; allowed is \[E, 1, H, W\]"),
        ({"images": np.zeros((0, 1, 28, 28))}, "E at least 1"),
        ({"images": np.zeros((3, 3, 28, 28))}, "images have shape"),
        ({"images": np.full((3, 1, 28, 28), 1.5)}, r"images has 1\.5; allowed are numbers from 0 to 1"),
        ({"images": np.full((3, 1, 28, 28), np.nan)}, "images has nan"),
        ({"labels": [0, 1, 10]}, r"labels = \[0, 1, 10\]; allowed: 3 classes from 0 to 9"),
        ({"labels": [0, 1]}, "labels"),
        ({"class_names": list("ABCD")}, r"networks\['adv.* gives \[1, 10\]"),
        ({"networks": {}}, "allowed are 2 to 4 networks"),
        ({"networks": {"normal": sharp()}}, r"networks has the names \['normal'\]; allowed are 2 to 4"),
        ({"networks": {n: nn.Sequential(nn.Flatten(), nn.Linear(9, 10)) for n in TAUS}}, r"networks\['adv.* does not"),
        ({"deltas": {"CCAT": 0}}, r"deltas has the names \['CCAT'\]; allowed"),
        ({"deltas": NOT_FINITE}, "deltas .*all finite"),
        ({"deltas": {**NOT_FINITE, "CCAT": np.zeros(3)}}, r"deltas\['CCAT'\] has shape \[3\]"),
        ({"deltas": {name: np.zeros((3, 1, 28, 27)) for name in TAUS}}, r"deltas have shape \[3, 1, 28, 27\]"),
        ({"taus": {**TAUS, "other": 0.5}}, "taus has the names"),
        ({"taus": {**TAUS, "CCAT": 1.2}}, r"taus has 1\.2"),
        ({"taus": {**TAUS, "CCAT": np.nan}}, "taus has nan"),
        ({"t_max": 0.5}, r"t_max = 0\.5"),
        ({"t_max": np.inf}, "t_max = inf"),
    ],
)
def test_direction_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        attack_direction(**changes)


def test_direction_refuses_layers_that_the_browser_cannot_run():
    last = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Tanh())
    with pytest.raises(TypeError, match="Tanh"):
        attack_direction(networks={**direction_arguments()["networks"], "CCAT": last})


RATES = ["accuracy", "cleanRejected", "error", "robustError", "adversarialRejected"]  # in the order of JS


def numpy_rates(c: np.ndarray, correct: np.ndarray, attacked: np.ndarray, wrong: np.ndarray, tau: float) -> list[float]:
    """The rates by their formulas, image by image; 0/0 is -1."""
    limit = np.float32(tau)
    clean_in, attacked_in = c >= limit, attacked >= limit
    errors = [max(not ok and a, w and b) for ok, a, w, b in zip(correct, clean_in, wrong, attacked_in, strict=True)]
    either = [max(a, b) for a, b in zip(clean_in, attacked_in, strict=True)]
    found = correct & wrong
    return [
        correct[clean_in].mean() if clean_in.any() else -1,
        1 - clean_in.mean(),
        (~correct)[clean_in].mean() if clean_in.any() else -1,
        sum(errors) / sum(either) if any(either) else -1,
        (~attacked_in)[found].mean() if found.any() else -1,
    ]


def js_rates(esm: str, arrays: list[np.ndarray], taus: list[float]) -> np.ndarray:
    names = ["cleanConfidence", "cleanCorrect", "attackedConfidence", "attackedWrong"]
    job = {"confidences": {k: a.tolist() for k, a in zip(names, arrays, strict=True)}, "taus": taus}
    return run_js(esm, [job])[0].numpy()


def random_answers(seed: int) -> tuple[list[np.ndarray], list[float]]:
    """Confidences with many ties, 0 and 1 among them, and thresholds that meet them."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 40))
    c, attacked = (rng.integers(0, 11, count).astype(np.float32) / np.float32(10) for _ in range(2))
    correct, wrong = (rng.random(count) < p for p in rng.random(2))
    return [c, correct, attacked, wrong], [0.0, *np.linspace(0.05, 0.95, 19).tolist(), 1.0, *c.tolist()]


@pytest.mark.node
@pytest.mark.parametrize("seed", range(6))
def test_rates_in_js_are_those_of_numpy(seed):
    arrays, taus = random_answers(seed)
    expected = [numpy_rates(*arrays, tau) for tau in taus]
    assert js_rates(ThresholdSlider._esm, arrays, taus) == pytest.approx(np.array(expected), abs=1e-6)


@pytest.mark.node
def test_rates_in_js_are_the_books_errors():
    for seed in range(4):
        arrays, taus = random_answers(seed)
        taus = np.float32(taus).tolist()
        clean = confidence.Answers(arrays[0].astype(float), arrays[1])
        attacked = confidence.Answers(arrays[2].astype(float), ~arrays[3])
        shown = js_rates(ThresholdSlider._esm, arrays, taus)
        known = [confidence.error(clean, taus), confidence.robust_error(clean, attacked, taus)]
        for name, values in zip(["error", "robustError"], known, strict=True):
            assert shown[:, RATES.index(name)] == pytest.approx(np.nan_to_num(values, nan=-1), abs=1e-6)
        assert 1 - shown[:, RATES.index("cleanRejected")] == pytest.approx(confidence.acceptance(clean, taus), abs=1e-6)


@pytest.mark.node
def test_a_threshold_of_one_accepts_a_confidence_of_one_and_else_nothing_is_accepted():
    sure, unsure = np.float32([1, 0.5]), np.float32([0.999, 0.5])
    yes, no = np.array([True, True]), np.array([False, False])
    assert js_rates(ThresholdSlider._esm, [sure, yes, sure, no], [1.0])[0].tolist() == [1, 0.5, 0, 0, -1]
    assert js_rates(ThresholdSlider._esm, [unsure, yes, unsure, ~no], [1.0])[0].tolist() == [-1, 1, -1, -1, 1]


@pytest.mark.node
def test_another_formula_gives_other_rates():
    esm = ThresholdSlider._esm
    arrays, taus = random_answers(1)
    for right, wrong in [
        ("confidence >= Math", "confidence > Math"),
        ("clean || attacked", "clean"),
        ("Math.fround(tau)", "tau"),
        ("errs || (", "("),
    ]:
        assert right in esm
        other = js_rates(esm.replace(right, wrong), arrays, taus)
        assert abs(other - js_rates(esm, arrays, taus)).max() > 0.01, right


def test_a_new_network_sets_tau_to_its_own_threshold():
    figure = threshold_slider()
    assert figure.tau == TAU99["normal"]
    figure.tau = 0.9
    figure.threat = 1
    assert figure.tau == 0.9
    figure.network = 1
    assert figure.tau == TAU99["CCAT"]
    figure.set_state({"network": 0, "tau": 0.7})
    assert (figure.network, figure.tau) == (0, 0.7)


def test_threshold_is_held_to_its_range():
    figure = threshold_slider()
    with pytest.raises(TraitError, match=r"tau = 1\.1 .*allowed is 0 to 1"):
        figure.tau = 1.1
    with pytest.raises(TraitError, match="threat = 3"):
        figure.threat = 3
    with pytest.raises(TraitError, match="network = 2"):
        figure.network = 2


def test_still_and_words_of_a_threshold_follow_tau_and_threat():
    figure, arguments = threshold_slider(), threshold_arguments()
    before = figure.still()
    figure.threat, figure.tau = 2, float(arguments["attacked_confidence"]["normal"]["L2"][3])
    clean = arguments["clean_confidence"]["normal"][:SHOWN] < figure.tau
    attacked = arguments["attacked_confidence"]["normal"]["L2"][:SHOWN] < np.float32(figure.tau)
    assert not attacked[3]
    assert f"rejects {clean.sum()} of the clean and {attacked.sum()} of the attacked" in figure.alt()
    assert "(L2)" in figure.alt()
    assert figure.still() != before


def test_the_threshold_weighs_five_bytes_an_answer():
    sent = {name: len(value) for name, value in state_of(threshold_slider()).items() if isinstance(value, bytes)}
    answers, pairs = IMAGES * len(NETWORKS), len(NETWORKS) * len(THREATS)
    assert sent == {
        "clean_confidence": 4 * answers,
        "clean_correct": answers,
        "attacked_confidence": 4 * IMAGES * pairs,
        "attacked_wrong": IMAGES * pairs,
        "clean_images": SHOWN * 784,
        "attacked_images": pairs * SHOWN * 784,
    }


def changed(name: str, network: str, value: Any, threat: str | None = None) -> dict[str, Any]:
    """Arguments of the threshold with one entry of a mapping replaced."""
    given = threshold_arguments()[name]
    return {name: {**given, network: value if threat is None else {**given[network], threat: value}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            changed("clean_confidence", "CCAT", np.full(IMAGES, 1.01)),
            r"clean_confidence has 1\.01; allowed are numbers",
        ),
        (changed("clean_confidence", "CCAT", np.full(IMAGES, np.nan)), "clean_confidence has nan"),
        (changed("clean_confidence", "CCAT", np.zeros(3)), r"clean_confidence\['CCAT'\] has shape \[3\]; .*\[60\]"),
        (changed("clean_confidence", "other", np.zeros(3)), "clean_confidence has the names .*'other'"),
        ({"clean_confidence": {}}, r"clean_confidence has the names \[\]"),
        ({"clean_confidence": {name: [] for name in NETWORKS}}, "B at least 1"),
        (changed("clean_correct", "CCAT", np.ones(IMAGES, int)), "clean_correct has arrays of int64"),
        ({"clean_correct": {name: [True] for name in NETWORKS}}, r"clean_correct.*\[2, 1\].*allowed: bool \[2, 60\]"),
        ({"attacked_confidence": {}}, "at least one name"),
        ({"attacked_confidence": {name: {} for name in NETWORKS}}, "at least one name"),
        (changed("attacked_confidence", "CCAT", {}), r"attacked_confidence\['CCAT'\] has the names \[\]"),
        (changed("attacked_confidence", "CCAT", np.full(IMAGES, -0.1), "L2"), r"attacked_confidence has -0\.1"),
        (
            changed("attacked_wrong", "CCAT", np.ones(3, bool), "L2"),
            r"attacked_wrong\['CCAT'\]\['L2'\] has shape \[3\]",
        ),
        (changed("attacked_wrong", "CCAT", np.ones(3, bool), "L1"), r"attacked_wrong\['CCAT'\] has the names"),
        ({"tau99": {"normal": 0.5}}, r"tau99 has the names \['normal'\]"),
        ({"tau99": {**TAU99, "CCAT": 2}}, "tau99 has 2"),
        ({"clean_images": np.zeros((SHOWN, 1, 28, 28))}, "clean_images are float64"),
        ({"clean_images": np.zeros((SHOWN, 28, 28), np.uint8)}, r"clean_images are uint8 \[8, 28, 28\]"),
        ({"clean_images": np.zeros((IMAGES + 1, 1, 28, 28), np.uint8)}, "with T from 1 to 60"),
        ({"clean_images": np.zeros((3, 1, 28, 28), np.uint8)}, r"attacked_images are uint8 \[8, 1, 28, 28\]; .*\[3, 1"),
        (changed("attacked_images", "CCAT", np.zeros((SHOWN, 1, 28, 28)), "L2"), "attacked_images are float64"),
    ],
)
def test_threshold_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        threshold_slider(**changes)
