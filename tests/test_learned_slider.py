"""Learned manifolds: the decoders with 8-bit weights in JS against torch, the figure's traits, and the page."""

from __future__ import annotations

import base64
import copy
import functools
import re
import statistics
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from parity import largest, net_job, parity, run_js, run_torch, state_of
from playwright.sync_api import Browser, Locator, Page
from sliders_browser import (
    FRAMES,
    drag,
    html,
    launched,
    opened,
    pictures_of,
    pixels_of,
    press,
    run_module,
    settle,
    words_of,
)
from torch import nn
from traitlets import TraitError

from advbook.networks import cnn
from advbook.sliders import LearnedSlider
from advbook.sliders.base import source
from advbook.sliders.pack import pack, pack_together, rounded

CLASSES, EXAMPLES, LATENTS, LAST, BANK, ETA = 3, 2, 4, 6, 5, 0.9
NAMES = ["coat", "boot", "bag"]
ORIGINAL, DECODED, NEAREST = 0, 1, 2  # the canvases; of the nearest training images there are three


def decoder(seed: int = 0, latents: int = LATENTS, widths: tuple[int, int, int] = (8, 6, 4)) -> nn.Sequential:
    """A decoder to [1, 28, 28] as the book's, with lively weights and batch statistics of its own codes."""
    a, b, c = widths
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(latents, a * 9),
        nn.Unflatten(1, (a, 3, 3)),
        nn.ConvTranspose2d(a, b, 6, 2, 2, output_padding=1, bias=False),
        nn.BatchNorm2d(b),
        nn.ReLU(),
        nn.ConvTranspose2d(b, c, 6, 2, 2, bias=False),
        nn.BatchNorm2d(c),
        nn.ReLU(),
        nn.ConvTranspose2d(c, 1, 6, 2, 2),
        nn.Sigmoid(),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
        for _ in range(30):
            network(4 * torch.rand(64, latents, generator=generator) - 2)
    return network.eval()


@functools.cache
def decoders() -> tuple[nn.Sequential, ...]:
    """One a class, similar to one another, so that an attack may cross from class to class."""
    base, generator = decoder(), torch.Generator().manual_seed(1)
    made = [copy.deepcopy(base) for _ in range(CLASSES)]
    with torch.no_grad():
        for network in made:
            network[-2].weight += 0.05 * torch.randn(network[-2].weight.shape, generator=generator)
    return tuple(made)


def made_by(networks: Any, z: np.ndarray) -> np.ndarray:
    """Class by class through its decoder, weights as they are: [K, ..., D] -> [K, ..., 28, 28]."""
    with torch.no_grad():
        parts = [
            networks[k % len(networks)](torch.from_numpy(its.reshape(-1, LATENTS)).float()).numpy()
            for k, its in enumerate(z)
        ]
    return np.stack(parts).reshape(*z.shape[:-1], 28, 28)


@functools.cache
def classifier() -> nn.Sequential:
    """The nearest of the classes' mean images, as a linear network."""
    z = np.random.default_rng(3).uniform(-1.5, 1.5, (CLASSES, 200, LATENTS))
    means = torch.from_numpy(made_by(decoders(), z).mean(1)).flatten(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, CLASSES))
    with torch.no_grad():
        network[1].weight.copy_(means)
        network[1].bias.copy_(-means.square().sum(1) / 2)
    return network.eval()


def said(images: np.ndarray) -> np.ndarray:
    """What the classifier says of images: [..., 28, 28] -> [..., K]."""
    with torch.no_grad():
        logits = classifier()(torch.from_numpy(images.reshape(-1, 1, 28, 28)))
    return logits.softmax(1).numpy().reshape(*images.shape[:-2], CLASSES)


def arguments(**changes: Any) -> dict[str, Any]:
    """Codes with entries at the bounds, test images that are not quite the decoder's, straight paths to bad corners."""
    rng = np.random.default_rng(0)
    codes = rng.uniform(-1.5, 1.5, (CLASSES, EXAMPLES, LATENTS)).astype(np.float32)
    codes[0, 1, 0], codes[1, 0, 1] = 2, -1.95
    corners = ETA * np.sign(rng.normal(size=(CLASSES, EXAMPLES, 64, LATENTS)))
    answers = said(made_by(decoders(), (codes[:, :, None] + corners).clip(-2, 2)))
    worst = np.stack([corners[k, range(EXAMPLES), answers[k, :, :, k].argmin(1)] for k in range(CLASSES)])
    worst[1, 1] = 0  # a path that goes nowhere, from a code that the classifier reads rightly
    noisy = made_by(decoders(), codes) + 0.1 * rng.normal(size=(CLASSES, EXAMPLES, 28, 28))
    bank = made_by(decoders(), rng.uniform(-2, 2, (CLASSES, BANK, LATENTS)))
    given: dict[str, Any] = {
        "decoders": decoders(),
        "classifier": classifier(),
        "class_names": NAMES,
        "images": (255 * noisy.clip(0, 1)).round().astype(np.uint8),
        "codes": codes,
        "eta": ETA,
        "bank": (255 * bank).round().astype(np.uint8),
        "paths": np.linspace(0, 1, LAST + 1)[:, None] * worst[:, :, None],
    }
    return {**given, **changes}


def figure(**changes: Any) -> LearnedSlider:
    return LearnedSlider(**arguments(**changes))


def on_path(label: int, example: int) -> np.ndarray:
    """z at each step: [T + 1, D]."""
    given = arguments()
    return (given["codes"] + given["paths"].transpose(2, 0, 1, 3)).clip(-2, 2)[:, label, example]


def z_of(shown: LearnedSlider) -> list[float]:
    return [getattr(shown, f"z_{i + 1}") for i in range(LATENTS)]


def coarse(z: Any, label: int) -> np.ndarray:
    """The images of a class with weights of 8 bits, as the page has them: [B, D] -> [B, 28, 28]."""
    layers, weights = pack(decoders()[label], bits=8)
    return run_torch(layers, weights, torch.tensor(np.asarray(z), dtype=torch.float32))[:, 0].numpy()


# --- the decoder -----------------------------------------------------------------------------------------------------


@pytest.mark.node
@pytest.mark.parametrize("bits", [8, 32])
def test_a_packed_decoder_in_js_is_the_decoder_in_torch(bits):
    network, z = decoder(5), 4 * torch.rand(20, LATENTS, generator=torch.Generator().manual_seed(0)) - 2
    layers, weights = pack(network, bits=bits)
    assert [layer["op"] for layer in layers] == [
        *("linear", "unflatten"),
        *("conv_transpose2d", "relu") * 2,
        *("conv_transpose2d", "sigmoid"),
    ]
    (shown,) = run_js(source("interpreter.js"), [net_job({"n": layers, "n_weights": weights}, "n", z)])
    with torch.no_grad():
        expected = (rounded(network) if bits == 8 else network)(z)
    assert expected.std() > 0.1
    assert largest(shown, expected) <= 1e-5


def test_images_with_weights_of_8_bits_are_near_those_with_32():
    z = 4 * torch.rand(50, 10, generator=torch.Generator().manual_seed(0)) - 2
    with torch.no_grad():
        for seed in range(2):
            network = decoder(seed, 10, (64, 32, 16))
            fine, near = network(z), rounded(network)(z)
            apart = 255 * (fine - near).abs().flatten()
            # These decoders are livelier than learned ones, where the mean is about a fifth of a grey level.
            assert 0 < apart.mean() < 1.5
            assert apart.quantile(0.99) < 8


@pytest.mark.node
def test_parity_of_the_figure_and_of_one_decoder_for_all_classes():
    for given in ({}, {"decoders": decoders()[:1]}, {"paths": None}):
        differences = parity(state_of(figure(**given)), count=10)
        assert differences.image <= 1e-5
        assert differences.logits <= 5e-4  # of an untrained network, whose logits are large


@pytest.mark.node
def test_parity_notices_other_scales_and_another_decoder():
    state = state_of(figure())
    esm = state["_esm"].replace("Math.floor(i / row)", "0")
    assert esm != state["_esm"]
    assert parity({**state, "_esm": esm}, count=2).image > 0.01
    assert parity({**state, "_esm": state["_esm"].replace("padding[0] + ky", "padding[0] + kx")}, count=2).image > 0.01


def test_ten_decoders_of_the_books_size_keep_a_page_below_its_limit():
    ten, side = [decoder(seed, 10, (64, 32, 16)) for seed in range(2)] * 5, 28
    _, weights = pack_together(ten, bits=8)
    floats = sum(parameter.numel() for network in ten for parameter in network.parameters())
    assert floats < len(weights) < 1.1 * floats
    given = {
        "decoders": ten,
        "classifier": cnn(generator=torch.Generator().manual_seed(0)),
        "class_names": list("ABCDEFGHIJ"),
        "images": np.zeros((10, 4, side, side), np.uint8),
        "codes": np.zeros((10, 4, 10)),
        "eta": 0.3,
        "bank": np.zeros((10, 20, side, side), np.uint8),
        "paths": np.zeros((10, 4, 41, 10)),
    }
    assert len(html(state_of(LearnedSlider(**given)))) < 2_100_000


def _moved(code: np.ndarray, zeta: np.ndarray) -> list[float]:
    expression = "Array.from(m.moved(Float32Array.from(a.code), Float32Array.from(a.zeta), 2))"
    return list(run_module(LearnedSlider._esm, expression, {"code": code.tolist(), "zeta": zeta.tolist()}))


@pytest.mark.node
def test_js_moves_the_code_and_stops_at_the_bounds():
    code, zeta = np.float32([1.9, -1.9, 0.5, 2, 0]), np.float32([0.5, -0.5, -0.25, -1, 0])
    assert _moved(code, zeta) == pytest.approx([2, -2, 0.25, 1, 0], abs=1e-6)


@pytest.mark.node
def test_js_finds_the_nearest_images_of_the_bank():
    rng = np.random.default_rng(0)
    bank, image = rng.integers(0, 256, (40, 30), np.uint8), rng.random(30).astype(np.float32)
    bank[17] = (255 * image).round()
    expression = "m.nearest(Uint8Array.from(a.bank), Float32Array.from(a.image), a.count)"
    found = run_module(
        LearnedSlider._esm, expression, {"bank": bank.ravel().tolist(), "image": image.tolist(), "count": 4}
    )
    distances = np.linalg.norm(bank / 255 - image, axis=1)
    order = distances.argsort()[:4]
    assert order[0] == 17
    assert [one["index"] for one in found] == order.tolist()
    assert [one["distance"] for one in found] == pytest.approx(distances[order], rel=1e-5)


# --- the widget ------------------------------------------------------------------------------------------------------


def test_the_figure_starts_at_a_code_and_a_new_class_or_image_goes_to_its_own():
    shown, codes = figure(), arguments()["codes"]
    assert z_of(shown) == pytest.approx(codes[0, 0])
    assert [control["start"] for control in shown.controls[2 : 2 + LATENTS]] == pytest.approx(codes[0, 0])
    shown.step = 3
    shown.label = 1
    assert (shown.step, z_of(shown)) == (0, pytest.approx(codes[1, 0]))
    shown.z_2 = 0.5
    shown.example = 1
    assert z_of(shown) == pytest.approx(codes[1, 1])


def test_a_step_sets_z_to_the_paths_within_the_bounds():
    shown = figure()
    shown.example = 1
    assert z_of(shown)[0] == 2
    for step in (LAST, 2, 0):
        shown.step = step
        assert z_of(shown) == pytest.approx(on_path(0, 1)[step], abs=1e-6)
        assert max(map(abs, z_of(shown))) <= 2


def test_what_the_browser_sends_stands_as_it_is():
    shown = figure()
    shown.set_state({"label": 2, "step": 4, "z_1": 0.02})
    assert (shown.label, shown.step, shown.z_1) == (2, 4, 0.02)
    shown.step = 3  # from Python again
    assert z_of(shown) == pytest.approx(on_path(2, 0)[3], abs=1e-6)


def test_traits_are_held_to_their_range_and_only_the_given_ones_have_controls():
    shown = figure()
    with pytest.raises(TraitError, match=r"z_4 = 2\.1 is out of range; allowed is -2 to 2"):
        shown.z_4 = 2.1
    with pytest.raises(TraitError, match="this figure has no such control"):
        shown.z_5 = 0.1
    with pytest.raises(TraitError, match="label = 3"):
        shown.label = CLASSES
    with pytest.raises(TraitError, match="no such control"):
        figure(paths=None).step = 1
    assert [control["name"] for control in shown.controls] == ["label", "example", "z_1", "z_2", "z_3", "z_4", "step"]


def test_python_decodes_with_the_weights_that_the_page_gets():
    shown, z = figure(), np.random.default_rng(0).uniform(-2, 2, (5, LATENTS))
    for shown.label in range(CLASSES):
        made = shown.image(torch.from_numpy(z))[:, 0].numpy()
        assert np.abs(made - coarse(z, shown.label)).max() < 1e-6
    assert np.abs(made - made_by(decoders()[2:], z[None])[0]).max() > 1e-4  # with weights of 32 bits


def test_one_decoder_may_serve_all_classes_and_the_note_says_so():
    shown, z = figure(decoders=decoders()[1:2]), torch.zeros(1, LATENTS)
    images = []
    for shown.label in range(CLASSES):
        images.append(shown.image(z))
    assert torch.equal(images[0], images[2])
    assert "a move may change the class itself" in shown.note
    assert "a decoder of its own" in figure().note
    assert "5 of each class" in figure().note


def test_still_and_words_follow_class_image_and_sliders():
    shown = figure()
    seen = {shown.still()}
    shown.label = 1
    seen.add(shown.still())
    shown.example = 1
    seen.add(shown.still())
    shown.z_1 = -2.0
    seen.add(shown.still())
    assert len(seen) == 4
    data, _ = shown._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"].startswith("A test image of the class boot,")
    assert "15 training images" in data["text/plain"]
    assert imread(BytesIO(base64.b64decode(data["image/png"]))).shape[1] > 600
    assert figure(paths=None).still() not in seen


def first_error(label: int, example: int) -> int | None:
    wrong = said(coarse(on_path(label, example), label)).argmax(1) != label
    return int(wrong.argmax()) if wrong.any() else None


def test_words_name_the_first_error_on_the_path():
    shown, found = figure(), set()
    for shown.label in range(CLASSES):
        for shown.example in range(EXAMPLES):
            first = first_error(shown.label, shown.example)
            found.add(first is None)
            expected = "it never errs." if first is None else f"it errs first at step {first}."
            assert shown.alt().endswith(expected)
    assert found == {True, False}
    assert "path" not in figure(paths=None).alt()


def test_the_figure_loads_nothing():
    text = LearnedSlider._esm + LearnedSlider._css
    assert not re.search(r"\bimport\b|\bfetch\b|XMLHttpRequest|WebSocket|\burl\(|@import", text)


def _with(name: str, index: Any, value: float) -> dict[str, Any]:
    changed = arguments()[name].copy()
    changed[index] = value
    return {name: changed}


def _ending_in(*layers: nn.Module) -> dict[str, Any]:
    """The last decoder with other layers in the place of its sigmoid."""
    return {"decoders": [*decoders()[:2], nn.Sequential(*list(decoders()[2])[:-1], *layers)]}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"decoders": decoders()[:2]}, "decoders has 2 networks; allowed are 3, a class each, or 1."),
        ({"decoders": [decoder(0, 5)] * 3}, "decoders[0] does not take 4 numbers"),
        (_ending_in(nn.Flatten()), "decoders[2] gives images of shape [784]; allowed is [1, 28, 28]."),
        (_ending_in(nn.ReLU()), "decoders[2] gives a pixel outside [0, 1]"),
        ({"classifier": nn.Sequential(nn.Flatten(), nn.Linear(784, 4))}, "classifier gives [1, 4]"),
        ({"class_names": ["a", "b"]}, "images are uint8 [3, 2, 28, 28]; allowed: uint8 [2, E, H, W]"),
        ({"images": np.zeros((3, 2, 28, 28))}, "images are float64 [3, 2, 28, 28]"),
        ({"images": np.zeros((3, 0, 28, 28), np.uint8)}, "with E at least 1"),
        ({"bank": np.zeros((3, 5, 28, 27), np.uint8)}, "bank is uint8 [3, 5, 28, 27]; allowed: uint8 [3, N, 28, 28]"),
        ({"bank": np.zeros((3, 5, 28, 28))}, "bank is float64"),
        ({"bank": np.zeros((3, 0, 28, 28), np.uint8)}, "with 3 images or more in all"),
        ({"codes": np.zeros((3, 2, 11))}, "codes has shape [3, 2, 11]; allowed: [3, 2, D] with D from 1 to 10"),
        ({"codes": np.zeros((3, 4))}, "codes has shape [3, 4]"),
        (_with("codes", (1, 1, 0), 2.1), "codes has 2.1; allowed is -2 to 2."),
        (_with("codes", (1, 1, 0), np.nan), "codes has nan; allowed is -2 to 2."),
        (
            {"paths": np.zeros((3, 2, 1, 4))},
            "paths has shape [3, 2, 1, 4]; allowed: [3, 2, T + 1, 4] with T at least 1",
        ),
        (_with("paths", (0, 0, 1, 2), -1.0), "paths has -1; allowed is -0.9 to 0.9."),
        ({"eta": 0.0}, "eta = 0; allowed is a positive finite number."),
        ({"eta": np.inf}, "eta = inf"),
    ],
)
def test_bad_input_is_one_sentence(changes, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        figure(**changes)


def test_layers_that_the_browser_cannot_run_are_refused():
    with pytest.raises(TypeError, match="Hardsigmoid"):
        figure(**_ending_in(nn.Hardsigmoid()))


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from launched()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    yield from opened(browser, state_of(figure()), tmp_path)


def _z(page: Page) -> list[float]:
    return list(page.evaluate(f"Array.from({{ length: {LATENTS} }}, (_, i) => model.get(`z_${{i + 1}}`))"))


def _sliders(page: Page) -> list[Locator]:
    """Those of z, in order."""
    return page.get_by_role("slider").all()[:LATENTS]


def _path(page: Page) -> Locator:
    return page.get_by_label("step of the attack's path")


def _choose(page: Page, label: int, example: int) -> None:
    page.get_by_label("class", exact=True).select_option(str(label))
    page.get_by_label("test image", exact=True).select_option(str(example))
    settle(page)


def _budget(page: Page) -> str:
    return page.locator(".advbook-move").inner_text()


@pytest.mark.browser
def test_keys_and_mouse_move_the_decoded_image_alone_and_reset_takes_it_back(page):
    page.wait_for_function(
        f"document.querySelectorAll('.advbook-plot circle.advbook-right, path.advbook-wrong').length > {LAST}"
    )
    before, words = pictures_of(page), words_of(page)
    assert _z(page) == pytest.approx(arguments()["codes"][0, 0], abs=1e-6)
    for slider in _sliders(page):
        was = pixels_of(page, DECODED)
        press(page, slider, *["ArrowRight"] * 5)
        assert pixels_of(page, DECODED) != was
    drag(page, _sliders(page)[0], 0.05)
    assert page.evaluate("model.get('z_1')") < -1.5
    assert pixels_of(page, ORIGINAL) == before[ORIGINAL]
    page.get_by_role("button", name="Reset").click()
    settle(page)
    assert (pictures_of(page), words_of(page)) == (before, words)


@pytest.mark.browser
@pytest.mark.parametrize("label", range(CLASSES))
def test_the_page_says_what_torch_says_how_far_the_images_are_and_which_are_nearest(page, label):
    given = arguments()
    _choose(page, label, 1)
    z = given["codes"][label, 1].copy()
    assert _z(page) == pytest.approx(z, abs=1e-6)
    page.evaluate("model.set('z_2', 0.75)")
    settle(page)
    at_code, image = coarse([z, [z[0], 0.75, *z[2:]]], label)
    shown = [float(meter.get_attribute("aria-valuenow")) for meter in page.get_by_role("meter").all()]
    assert shown == pytest.approx(100 * said(image), abs=0.051)
    x = given["images"][label, 1] / 255
    words = page.locator(".advbook-move + p").inner_text()
    expected = [np.linalg.norm(x - image), np.linalg.norm(x - at_code)]
    assert [float(v) for v in re.findall(r"\d+\.\d\d", words)] == pytest.approx(expected, abs=0.006)
    far = np.linalg.norm(given["bank"].reshape(-1, 784) / 255 - image.ravel(), axis=1)
    captions = page.locator(".advbook-thumb figcaption").all_inner_texts()
    for i, caption in zip(far.argsort(), captions, strict=False):
        name, distance = caption.split("\n")
        assert name == NAMES[i // BANK]
        assert float(distance) == pytest.approx(far[i], abs=0.006)
    assert len(captions) == 3


@pytest.mark.browser
def test_a_move_beyond_the_budget_is_called_so(page):
    code = arguments()["codes"][0, 0]
    assert _budget(page) == "No move: z is the code of the test image."
    for way, word in [(-ETA + 0.01, "within"), (-ETA, "within"), (-ETA - 0.01, "beyond")]:
        page.evaluate(f"model.set('z_3', {code[2] + way})")
        settle(page)
        assert _budget(page) == f"The largest move from the code, z₃, is {-way:.2f}: {word} the budget η = 0.9."
        marked = page.locator(".advbook-move").evaluate("e => e.classList.contains('advbook-wrong')")
        assert marked == (word == "beyond")


@pytest.mark.browser
def test_the_path_moves_z_by_keys_and_mouse_and_an_image_starts_anew(page):
    _choose(page, 0, 1)
    press(page, _path(page), "ArrowRight", "ArrowRight")
    assert _z(page) == pytest.approx(on_path(0, 1)[2], abs=1e-6)
    assert "within the budget" in _budget(page)
    press(page, _path(page), "End")
    assert _z(page) == pytest.approx(on_path(0, 1)[LAST], abs=1e-6)
    drag(page, _path(page), 0.5)
    assert _z(page) == pytest.approx(on_path(0, 1)[LAST // 2], abs=1e-6)
    press(page, _sliders(page)[1], "ArrowRight")
    assert page.evaluate("model.get('step')") == LAST // 2
    _choose(page, 2, 1)
    assert page.evaluate("model.get('step')") == 0
    assert _z(page) == pytest.approx(arguments()["codes"][2, 1], abs=1e-6)


def _marks(page: Page) -> list[tuple[float, bool]]:
    """Of every point of the curve: its y, and whether it stands for a right answer."""
    page.wait_for_function(f"document.querySelector('polyline').points.length === {LAST + 1}")
    return [
        tuple(pair)
        for pair in page.evaluate(
            """() => [...document.querySelector("polyline").points].map((point, i) => {
              const mark = document.querySelectorAll("circle.advbook-right, path.advbook-wrong")[i];
              return [point.y, mark.tagName === "circle"];
            })"""
        )
    ]


@pytest.mark.browser
def test_the_curve_is_the_confidence_that_torch_finds_and_its_first_error_is_marked(page):
    seen = set()
    for label in range(CLASSES):
        for example in range(EXAMPLES):
            _choose(page, label, example)
            ys, right = zip(*_marks(page), strict=True)
            answers = said(coarse(on_path(label, example), label))
            heights = 26 + (1 - answers[:, label]) * 104  # of the chart: 26 at 100 %, 130 at 0 %
            assert ys == pytest.approx(heights, abs=0.05)
            assert list(right) == (answers.argmax(1) == label).tolist()
            first = first_error(label, example)
            seen.add(first is None)
            flags = page.locator(".advbook-flag text").all_text_contents()
            assert flags == ([] if first is None else [f"first error: step {first}"])
            words = "never errs" if first is None else f"first at step {first}"
            assert words in page.locator("svg.advbook-plot").get_attribute("aria-label")
    assert seen == {True, False}


@pytest.mark.browser
def test_python_and_the_browser_move_alike(page):
    shown = figure()
    for label, example, step in [(1, 1, 4), (2, 0, LAST)]:
        _choose(page, label, example)
        press(page, _path(page), *["ArrowRight"] * step)
        shown.label, shown.example, shown.step = label, example, step
        assert _z(page) == z_of(shown)


@pytest.mark.browser
def test_a_figure_without_an_attack_has_no_path_and_one_decoder_serves_all(browser, tmp_path):
    for page in opened(browser, state_of(figure(paths=None, decoders=decoders()[:1])), tmp_path):
        assert page.get_by_role("slider").count() == LATENTS
        assert page.locator("svg.advbook-plot").count() == 0
        _choose(page, 2, 1)
        z = arguments()["codes"][2, 1]
        assert _z(page) == pytest.approx(z, abs=1e-6)
        shown = [float(meter.get_attribute("aria-valuenow")) for meter in page.get_by_role("meter").all()]
        assert shown == pytest.approx(100 * said(coarse([z], 0)[0]), abs=0.051)


@pytest.mark.browser
def test_a_saved_figure_opens_where_python_left_it(browser, tmp_path):
    left = figure()
    left.label, left.example, left.z_4 = 1, 1, -1.25
    for page in opened(browser, state_of(left), tmp_path):
        assert _z(page) == z_of(left)
        shown = [float(meter.get_attribute("aria-valuenow")) for meter in page.get_by_role("meter").all()]
        assert shown == pytest.approx(100 * said(coarse([z_of(left)], 1)[0]), abs=0.051)


@pytest.mark.browser
def test_screen_reader_hears_the_move_the_answer_and_the_nearest(page):
    assert page.locator("output").text_content() == ""
    press(page, _sliders(page)[0], "End")
    page.wait_for_function("document.querySelector('output').textContent.includes('The classifier says')")
    spoken = page.locator("output").text_content()
    assert all(page.locator(part).text_content() in spoken for part in (".advbook-move", ".advbook-verdict"))
    name, distance = page.locator(".advbook-thumb figcaption").first.inner_text().split("\n")
    assert f"Nearest training images: {name} at {distance}," in spoken


@pytest.mark.browser
def test_everything_has_a_name_and_fits_a_phone_and_stays_light(page):
    for control in page.locator("input, select, button").all():
        assert control.get_attribute("data-lm-suppress-shortcuts") == "true"
        assert control.evaluate("e => e.labels.length === 1 || e.textContent === 'Reset'")
    assert page.locator("canvas").count() == 5
    for canvas in page.locator("canvas").all():
        assert canvas.get_attribute("role") == "img"
        assert canvas.get_attribute("aria-label")
    page.set_viewport_size({"width": 390, "height": 800})
    page.emulate_media(color_scheme="dark")
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for first, last in [(ORIGINAL, DECODED), (NEAREST, NEAREST + 2)]:
        boxes = [page.locator("canvas").nth(i).bounding_box() for i in (first, last)]
        assert boxes[0]["y"] == boxes[1]["y"]  # side by side
    style = page.locator(".advbook-card").evaluate("e => getComputedStyle(e).backgroundColor")
    assert style == "rgb(255, 255, 255)"


@pytest.mark.browser
def test_the_pictures_stay_in_sight_of_every_slider_on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    for slider in page.get_by_role("slider").all():
        slider.evaluate("e => e.scrollIntoView({ block: 'end' })")
        picture, box = page.locator(".advbook-stay").bounding_box(), slider.bounding_box()
        assert picture["y"] >= -1
        assert picture["y"] + picture["height"] < box["y"] < 800


@pytest.mark.browser
def test_unmounting_stops_listening(page):
    assert page.evaluate("heard()") > 0
    page.evaluate("unmount()")
    assert page.evaluate("heard()") == 0


@pytest.mark.browser
def test_a_frame_of_the_books_decoders_takes_less_than_16_ms(browser, tmp_path, capsys):
    rng = np.random.default_rng(0)
    large = LearnedSlider(
        [decoder(0, 10, (64, 32, 16))],
        cnn(generator=torch.Generator().manual_seed(0)),
        list("ABCDEFGHIJ"),
        rng.integers(0, 256, (10, 2, 28, 28), np.uint8),
        rng.uniform(-2, 2, (10, 2, 10)),
        eta=0.3,
        bank=rng.integers(0, 256, (10, 20, 28, 28), np.uint8),
        paths=np.zeros((10, 2, 41, 10)),
    )
    for page in opened(browser, state_of(large), tmp_path):
        times = page.evaluate(FRAMES)
        with capsys.disabled():
            print(f"\nframe: median {statistics.median(times):.2f} ms, at best {min(times):.2f} ms")
        assert statistics.quantiles(times, n=10)[0] < 16  # the slower ones say more of what else the machine does
