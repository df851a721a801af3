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

from advbook.fonts import IDENTITY, THETA_HIGH, THETA_LOW, transform
from advbook.networks import cnn
from advbook.sliders import LatentSlider, OffManifoldWalk, OnManifoldAttack
from advbook.sliders.base import source
from advbook.sliders.pack import pack, pack_fonts

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


def sharp() -> nn.Sequential:
    """A classifier that is surer of itself."""
    network = classifier()
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
def test_linear_relu_softmax_flatten():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(15, 8, bias=False), nn.ReLU(), nn.Linear(8, 5), nn.Softmax(1))
    x = 50 * torch.randn(6, 3, 5)
    with torch.no_grad():
        assert largest(run_packed(network, x), network(x)) <= 1e-5


@pytest.mark.node
@pytest.mark.parametrize("figure", [latent_slider, off_manifold_walk, on_manifold_attack])
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
    latent_slider(), off_manifold_walk(), on_manifold_attack()
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
    assert len(states) == 3
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
        nn.Flatten(2),
        nn.Softmax(2),
    ],
    ids=str,
)
def test_unknown_layers_are_refused_when_packed(layer):
    with pytest.raises(TypeError, match=re.escape(type(layer).__name__)):
        pack(nn.Sequential(layer))


@pytest.mark.parametrize("figure", [LatentSlider, OffManifoldWalk, OnManifoldAttack])
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


@pytest.mark.parametrize("figure", [latent_slider, off_manifold_walk, on_manifold_attack])
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
