"""Principal directions of real images: the decoder in JS against its formula, the shipped file, and the page."""

from __future__ import annotations

import base64
import re
import statistics
from collections.abc import Iterator
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from parity import largest, net_job, run_js, run_torch, state_of
from playwright.sync_api import Browser, Page
from sliders_browser import FRAMES, drag, launched, opened, pictures_of, pixels_of, press, run_module, settle, words_of
from torch import nn
from traitlets import TraitError

from advbook.networks import cnn
from advbook.sliders import PrincipalSlider
from advbook.sliders.principal import shipped

CLASSES, COUNT, SIDE = 3, 4, 12
NAMES = ["coat", "boot", "bag"]
MEAN, MOVED = 0, 1  # the canvases


def classifier() -> nn.Sequential:
    return cnn(CLASSES, (4, 8), side=SIDE, generator=torch.Generator().manual_seed(0)).eval()


def arguments(**changes: Any) -> dict[str, Any]:
    """Means with pixels near both ends of the range, and orthonormal directions."""
    rng = np.random.default_rng(0)
    frames = np.linalg.qr(rng.normal(size=(CLASSES, SIDE**2, COUNT)))[0].swapaxes(1, 2)  # [K, n, D]
    return {
        "means": rng.beta(0.6, 0.6, (CLASSES, SIDE, SIDE)),
        "directions": frames.reshape(CLASSES, COUNT, SIDE, SIDE),
        "scales": rng.uniform(0.2, 2, (CLASSES, COUNT)),
        "classifier": classifier(),
        "class_names": NAMES,
        "labels": [*(f"direction {i + 1}" for i in range(COUNT - 1)), "direction 90 (small variance)"],
        "note": "A note.",
        **changes,
    }


def decoded(given: dict[str, Any], label: int, zeta: np.ndarray) -> np.ndarray:
    """clip(mean + sum_i scale_i zeta_i v_i), written out a second time: [B, n] -> [B, H, W]."""
    move = sum(
        z[:, None, None] * b * v
        for z, b, v in zip(zeta.T, given["scales"][label], given["directions"][label], strict=True)
    )
    return np.clip(given["means"][label] + move, 0, 1)


def js(state: dict[str, Any], label: int, zetas: np.ndarray) -> list[dict[str, Any]]:
    """What the figure's own JS makes of its own bytes for a class and some zeta [B, n]."""
    packed = {name: base64.b64encode(bytes(state[name])).decode() for name in ("means", "directions", "steps")}
    expression = """(() => {
      const bytes = (name) => new Uint8Array(Buffer.from(a[name], "base64"));
      const classes = m.reader(a.shape, bytes("means"), bytes("directions"), bytes("steps"));
      return a.zetas.map((zeta) => {
        const made = m.principal(classes(a.label), zeta);
        return { ...made, image: Array.from(made.image.data), middle: Array.from(made.middle.data) };
      });
    })()"""
    given = {**packed, "shape": state["image_shape"], "label": label, "zetas": zetas.tolist()}
    return run_module(state["_esm"], expression, given)


# --- the decoder -----------------------------------------------------------------------------------------------------


@pytest.mark.node
def test_js_decodes_by_the_formula_at_random_places_and_in_the_corners():
    given, rng = arguments(), np.random.default_rng(1)
    state = state_of(PrincipalSlider(**given))
    zetas = np.concatenate([rng.uniform(-3, 3, (10, COUNT)), 3 * np.sign(rng.normal(size=(10, COUNT)))])
    for label in range(CLASSES):
        expected = decoded(given, label, zetas)
        for its, zeta, image in zip(js(state, label, zetas), zetas, expected, strict=True):
            assert np.abs(np.array(its["image"]) - image.ravel()).max() < 1e-4
            assert np.abs(np.array(its["middle"]) - given["means"][label].ravel()).max() < 1e-4
            # The directions are orthonormal: before clipping the length is that of the code.
            assert its["length"] == pytest.approx(np.linalg.norm(zeta * given["scales"][label]), rel=1e-3)
            assert its["clipped"] == pytest.approx(np.linalg.norm(image - given["means"][label]), rel=1e-3)
            assert its["clipped"] < its["length"]


@pytest.mark.node
def test_a_direction_of_scale_zero_does_not_move_the_image():
    given = arguments()
    given["scales"][:, 1] = 0
    (its,) = js(state_of(PrincipalSlider(**given)), 0, np.array([[0, 3.0, 0, 0]]))
    assert its["image"] == its["middle"]
    assert its["length"] == 0


@pytest.mark.node
def test_the_classifier_in_js_answers_as_torch_does():
    state = state_of(PrincipalSlider(**arguments()))
    x = torch.rand(10, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    (shown,) = run_js(state["_esm"], [net_job(state, "classifier", x)])
    with torch.no_grad():
        expected = classifier()(x)
    assert largest(shown, expected) <= 1e-4
    assert largest(run_torch(state["classifier"], state["classifier_weights"], x), expected) <= 1e-5


def test_python_decodes_by_the_formula_too():
    given = arguments()
    figure = PrincipalSlider(**given)
    zeta = np.random.default_rng(2).uniform(-3, 3, (5, COUNT))
    for figure.label in range(CLASSES):
        made = figure.image(torch.from_numpy(zeta))[:, 0].numpy()
        assert np.abs(made - decoded(given, figure.label, zeta)).max() < 1e-6


def test_means_may_be_bytes():
    means = np.random.default_rng(0).integers(0, 256, (CLASSES, SIDE, SIDE), np.uint8)
    figures = [PrincipalSlider(**arguments(means=its)) for its in (means, means / 255)]
    assert figures[0].means == figures[1].means


# --- the widget ------------------------------------------------------------------------------------------------------


def _without(name: str, index: Any, value: float) -> dict[str, Any]:
    changed = arguments()[name].copy()
    changed[index] = value
    return {name: changed}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"labels": []}, "labels has 0 names; allowed are 1 to 10"),
        ({"labels": [f"d{i}" for i in range(11)]}, "labels has 11 names"),
        ({"labels": ["one"]}, "directions has shape [3, 4, 12, 12]; allowed is [3, 1, 12, 12]"),
        ({"means": np.zeros((2, SIDE, SIDE))}, "means has shape [2, 12, 12]; allowed is [3, H, W]"),
        (_without("means", (0, 0, 0), 1.5), "means has a pixel outside [0, 1]"),
        (_without("means", (0, 0, 0), float("nan")), "means has a pixel outside [0, 1]"),
        (_without("directions", (1, 2), 0.0), "directions has one of length 0; allowed is length 1."),
        ({"scales": np.ones((CLASSES, COUNT + 1))}, "scales has shape [3, 5]; allowed is [3, 4]."),
        (_without("scales", (0, 0), -1.0), "scales has a number that is negative"),
        (_without("scales", (0, 0), float("inf")), "scales has a number that is negative or not finite"),
        ({"classifier": cnn(5, (4, 8), side=SIDE, generator=torch.Generator())}, "classifier gives [1, 5]"),
    ],
)
def test_bad_input_is_one_sentence(changes, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        PrincipalSlider(**arguments(**changes))


def test_traits_are_held_to_their_range():
    figure = PrincipalSlider(**arguments())
    figure.zeta_2 = 3.0
    with pytest.raises(TraitError, match=r"zeta_2 = 3\.5 is out of range; allowed is -3 to 3"):
        figure.zeta_2 = 3.5
    with pytest.raises(TraitError, match="label = 3"):
        figure.label = CLASSES
    assert len(figure.controls) == 1 + COUNT


def test_still_follows_class_and_sliders_and_the_mime_bundle_has_it():
    figure = PrincipalSlider(**arguments())
    seen = {figure.still()}
    figure.label = 1
    seen.add(figure.still())
    figure.zeta_1 = 2.0
    seen.add(figure.still())
    assert len(seen) == 3
    data, _ = figure._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"].startswith("The mean image of the class boot, moved along each of 4")
    assert imread(BytesIO(base64.b64decode(data["image/png"]))).shape[1] > 600


def test_the_figure_loads_nothing():
    text = PrincipalSlider._esm + PrincipalSlider._css
    assert not re.search(r"\bimport\b|\bfetch\b|XMLHttpRequest|WebSocket|\burl\(|@import", text)


# --- the shipped file ------------------------------------------------------------------------------------------------


def _shipped_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Means [K, H, W] and moves to one unit of zeta [K, n, H, W] of the shipped figure."""
    figure = shipped()
    return figure._mean.numpy(), figure._moves.numpy()


def test_the_shipped_file_is_light_and_its_figure_names_what_it_shows():
    assert len(files("advbook").joinpath("data/fashion_mnist_principal.safetensors").read_bytes()) < 400_000
    figure = shipped()
    assert figure.class_names[0] == "T-shirt/top"
    assert len(figure.class_names) == 10
    labels = [control["label"] for control in figure.controls]
    assert labels[0] == "class"
    assert labels[1:9] == [f"direction {i}" for i in range(1, 9)]
    assert all("small variance" in label for label in labels[9:])
    assert len(labels) in (10, 11)


def test_shipped_directions_are_orthonormal_and_late_ones_as_long_as_the_first():
    _, moves = _shipped_arrays()
    flat = moves.reshape(*moves.shape[:2], -1)  # [K, n, D]
    lengths = np.linalg.norm(flat, axis=2)
    cosines = np.einsum("kid,kjd->kij", flat, flat) / lengths[:, :, None] / lengths[:, None]
    assert np.abs(cosines - np.eye(flat.shape[1])).max() < 2e-3
    assert (np.diff(lengths[:, :8], axis=1) <= 1e-6).all()
    assert lengths[:, 8:] == pytest.approx(np.tile(lengths[:, :1], lengths.shape[1] - 8), rel=1e-3)


def test_the_shipped_classifier_reads_the_means_and_moves_along_direction_1():
    figure = shipped()
    zeta = torch.zeros(3, figure._moves.shape[1])
    zeta[:, 0] = torch.tensor([-0.5, 0, 0.5])
    right = []
    for figure.label in range(10):
        with torch.no_grad():
            right += (figure._network(figure.image(zeta)).argmax(1) == figure.label).tolist()
    assert np.mean(right) >= 0.8


@pytest.mark.node
def test_the_shipped_images_in_js_are_exact_to_a_grey_level_and_8_bits_would_not_be():
    figure, rng = shipped(), np.random.default_rng(0)
    count = figure._moves.shape[1]
    zetas = np.concatenate([rng.uniform(-3, 3, (5, count)), 3 * np.sign(rng.normal(size=(5, count)))])
    state = state_of(figure)
    worst = 0.0
    for figure.label in (0, 7):
        expected = figure.image(torch.from_numpy(zetas)).flatten(1).numpy()
        made = np.array([its["image"] for its in js(state, figure.label, zetas)])
        worst = max(worst, float(np.abs(made - expected).max()))
    assert worst < 0.1 / 255
    mean, moves = (its[0] for its in _shipped_arrays())
    step = np.abs(moves).max((1, 2), keepdims=True) / 127
    coarse = np.rint(moves / step) * step
    images = [np.clip(mean + np.einsum("bn,nhw->bhw", zetas, its), 0, 1) for its in (moves, coarse)]
    assert np.abs(images[0] - images[1]).max() > 1 / 255


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from launched()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    yield from opened(browser, state_of(PrincipalSlider(**arguments())), tmp_path)


@pytest.fixture
def fashion(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    yield from opened(browser, state_of(shipped()), tmp_path)


@pytest.mark.browser
def test_keys_and_mouse_move_the_image_and_reset_takes_it_back(page):
    before, words = pictures_of(page), words_of(page)
    assert before[MEAN] == before[MOVED]
    assert page.locator(".advbook-move").inner_text() == "No move: the mean of the class."
    assert page.get_by_role("slider").count() == COUNT
    for slider in page.get_by_role("slider").all():
        was = pixels_of(page, MOVED)
        press(page, slider, *["ArrowRight"] * 5)
        assert pixels_of(page, MOVED) != was
    drag(page, page.get_by_role("slider").first, 0.05)
    assert page.evaluate("model.get('zeta_1')") < -2
    assert pixels_of(page, MEAN) == before[MEAN]
    page.get_by_label("class", exact=True).select_option("2")
    settle(page)
    assert pixels_of(page, MEAN) != before[MEAN]
    page.get_by_role("button", name="Reset").click()
    settle(page)
    assert (pictures_of(page), words_of(page)) == (before, words)


@pytest.mark.browser
def test_the_page_says_what_torch_says_and_how_long_the_move_is(page):
    given = arguments()
    page.get_by_label("class", exact=True).select_option("1")
    page.evaluate("model.set('zeta_1', -2); model.set('zeta_4', 2.5)")
    settle(page)
    image = decoded(given, 1, np.array([[-2, 0, 0, 2.5]]))
    with torch.no_grad():
        said = classifier()(torch.from_numpy(image).float()[:, None]).softmax(1)[0]
    shown = [float(meter.get_attribute("aria-valuenow")) for meter in page.get_by_role("meter").all()]
    assert shown == pytest.approx((100 * said).tolist(), abs=0.051)
    length = np.hypot(2 * given["scales"][1, 0], 2.5 * given["scales"][1, 3])
    clipped = np.linalg.norm(image[0] - given["means"][1])
    words = page.locator(".advbook-move").inner_text()
    assert [float(v) for v in re.findall(r"\d+\.\d\d", words)] == pytest.approx([length, clipped], abs=0.006)


@pytest.mark.browser
def test_screen_reader_hears_the_move_and_the_answer(page):
    assert page.locator("output").text_content() == ""
    press(page, page.get_by_role("slider").first, "End")
    page.wait_for_function("document.querySelector('output').textContent.includes('The classifier says')")
    spoken = page.locator("output").text_content()
    assert all(page.locator(part).text_content() in spoken for part in (".advbook-move", ".advbook-verdict"))


@pytest.mark.browser
def test_everything_has_a_name_and_fits_a_phone_and_stays_light(fashion):
    for control in fashion.locator("input, select, button").all():
        assert control.get_attribute("data-lm-suppress-shortcuts") == "true"
        assert control.evaluate("e => e.labels.length === 1 || e.textContent === 'Reset'")
    for canvas in fashion.locator("canvas").all():
        assert canvas.get_attribute("role") == "img"
        assert canvas.get_attribute("aria-label")
    fashion.set_viewport_size({"width": 390, "height": 800})
    fashion.emulate_media(color_scheme="dark")
    settle(fashion)
    assert fashion.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = [fashion.locator("canvas").nth(i).bounding_box() for i in (MEAN, MOVED)]
    assert boxes[0]["y"] == boxes[1]["y"]  # side by side
    style = fashion.locator(".advbook-card").evaluate("e => getComputedStyle(e).backgroundColor")
    assert style == "rgb(255, 255, 255)"


@pytest.mark.browser
def test_unmounting_stops_listening(page):
    assert page.evaluate("heard()") > 0
    page.evaluate("unmount()")
    assert page.evaluate("heard()") == 0


@pytest.mark.browser
def test_a_frame_of_real_images_takes_less_than_5_ms(fashion):
    assert statistics.quantiles(fashion.evaluate(FRAMES), n=4)[0] < 5


@pytest.mark.browser
def test_the_picture_stays_in_sight_of_every_slider_on_a_phone(fashion):
    fashion.set_viewport_size({"width": 390, "height": 800})
    for slider in fashion.get_by_role("slider").all():
        slider.evaluate("e => e.scrollIntoView({ block: 'end' })")
        picture, box = fashion.locator(".advbook-stay").bounding_box(), slider.bounding_box()
        assert picture["y"] >= -1
        assert picture["y"] + picture["height"] < box["y"] < 800
