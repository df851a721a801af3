"""The figure of the Gaussian mixture: its closed form in numpy, in JS and by brute force; the page in a browser."""

from __future__ import annotations

import base64
import re
import statistics
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from parity import state_of
from playwright.sync_api import Browser, Page
from scipy.optimize import minimize_scalar
from sliders_browser import FRAMES, drag, launched, opened, press, run_module, settle, words_of
from traitlets import TraitError

from advbook.sliders import MixtureFigure
from advbook.sliders.base import script
from advbook.sliders.mixture import ADVERSARIES, HIGHEST, LOWEST, STRONGEST, spectrum

THREE = {"variances": (2.0, 0.8, 0.1), "mean": (1.0, 0.6, 0.4)}
VARIANCES = st.lists(st.floats(LOWEST, HIGHEST), min_size=2, max_size=3)
STRENGTHS, NOISES = st.floats(0.01, STRONGEST), st.floats(0, 1)


def reach(adversary: str, variance: float, strength: float, noise: float) -> float:
    """k of one direction, as the table of adversaries has it, written out a second time."""
    b2 = variance - noise if variance > noise else 0.0
    return {
        "regular": strength,
        "generative": b2 * strength,
        "joint": strength + b2 * strength,
        "linear flow": variance * strength,
    }[adversary]


# --- the closed form -------------------------------------------------------------------------------------------------


@given(adversary=st.sampled_from(ADVERSARIES), variances=VARIANCES, strength=STRENGTHS, noise=NOISES)
def test_the_hardened_variance_is_the_minimum_over_models_of_the_maximum_over_attacks(
    adversary, variances, strength, noise
):
    k, s = spectrum(adversary, variances, strength, noise)
    for lam, its_k, its_s in zip(variances, k, s, strict=True):
        assert its_k == pytest.approx(reach(adversary, lam, strength, noise))

        def excess(log_gap: float, lam: float = lam, k: float = its_k) -> float:
            gap = np.exp(log_gap)  # s - k; the inner maximum for E u^2 = lambda is lambda / 2 (s - k)
            return lam / gap / 2 + np.log(k + gap) / 2

        best = minimize_scalar(excess, bounds=(np.log(LOWEST / 2), np.log(10 * HIGHEST)), method="bounded")
        assert its_s == pytest.approx(its_k + np.exp(best.x), rel=1e-3)


@given(adversary=st.sampled_from(ADVERSARIES), variances=VARIANCES, strength=STRENGTHS, noise=NOISES)
def test_the_hardened_model_has_the_variances_of_the_attacked_data(adversary, variances, strength, noise):
    k, s = spectrum(adversary, variances, strength, noise)
    assert (s > k).all()
    assert np.array(variances) * (s / (s - k)) ** 2 == pytest.approx(s)


@given(variances=VARIANCES, strength=STRENGTHS, noise=NOISES)
def test_each_adversary_inflates_its_own_directions(variances, strength, noise):
    lam = np.sort(variances)
    factor = {name: spectrum(name, lam, strength, noise)[1] / lam for name in ADVERSARIES}
    assert (np.diff(factor["regular"]) <= 1e-9).all()
    assert (np.diff(factor["generative"]) >= -1e-9).all()
    assert factor["generative"][lam <= noise] == pytest.approx(1)
    assert factor["linear flow"] == pytest.approx(factor["linear flow"][0])
    assert (factor["joint"] >= np.maximum(factor["regular"], factor["generative"]) - 1e-9).all()


def test_a_stated_example_comes_out():
    lam = [8, 5, 3, 2, 1.2, 0.3, 0.3, 0.3]
    regular, generative = (spectrum(name, lam, 1 / 8, 0.3)[1] / lam for name in ("regular", "generative"))
    assert regular == pytest.approx([1.03, 1.05, 1.08, 1.12, 1.20, 1.73, 1.73, 1.73], abs=0.006)
    assert generative == pytest.approx([1.23, 1.22, 1.21, 1.20, 1.18, 1, 1, 1], abs=0.006)


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_without_strength_nothing_changes(adversary):
    k, s = spectrum(adversary, [0.3, 2.0], 0.0, 0.1)
    assert k.tolist() == [0, 0]
    assert s == pytest.approx([0.3, 2.0])


def test_another_adversary_is_refused():
    with pytest.raises(ValueError, match=r"adversary = 'latent': allowed are regular, generative, joint, linear flow"):
        spectrum("latent", [1.0], 0.1, 0.1)


@pytest.mark.node
def test_js_computes_what_numpy_computes():
    rng = np.random.default_rng(0)
    cases = [
        [name, rng.uniform(LOWEST, HIGHEST, size).tolist(), rng.uniform(0, STRONGEST), rng.uniform(0, 1)]
        for name in ADVERSARIES
        for size in (2, 3)
        for _ in range(25)
    ]
    made = run_module(script("mixture.js"), "a.map((its) => m.spectrum(...its))", cases)
    for case, its in zip(cases, made, strict=True):
        k, s = spectrum(*case)
        assert its["reach"] == pytest.approx(k, rel=1e-12)
        assert its["hardened"] == pytest.approx(s, rel=1e-12)


@pytest.mark.node
def test_the_attack_of_js_is_the_worst_move_of_many():
    cases = [(u, k, k + gap) for u in (-1.5, 0.7) for k in (0.1, 1.2) for gap in (0.05, 0.4)]
    moves = run_module(script("mixture.js"), "a.map((its) => m.attack(...its))", cases)
    for (u, k, s), move in zip(cases, moves, strict=True):
        tried = np.linspace(-2, 2, 4001) * max(1.0, abs(move))
        gain = (u + tried) ** 2 / s / 2 - tried**2 / k / 2
        assert move == pytest.approx(tried[gain.argmax()], abs=2e-3 * max(1.0, abs(move)))


@pytest.mark.node
def test_the_words_say_which_direction_grows():
    def told(adversary: str, variances: list[float], strength: float = 0.2, noise: float = 0.2) -> str:
        given = [adversary, variances, strength, noise]
        return run_module(script("mixture.js"), "m.describe(a[0], a[1], m.spectrum(...a))", given)

    small, large = spectrum("regular", [0.15, 2.0], 0.2, 0)[1] / [0.15, 2.0]
    words = f"the small direction (0.15) grows {small:.2f} times and the large one (2.00) grows {large:.2f} times."
    assert words in told("regular", [2.0, 0.15])
    assert words in told("regular", [0.15, 2.0])
    assert "the small direction (0.15) does not grow and the large one (2.00) grows" in told("generative", [2.0, 0.15])
    assert "every direction grows by the same factor" in told("linear flow", [2.0, 0.15])
    assert "nothing changes" in told("regular", [2.0, 0.15], strength=0.0)
    assert "nothing changes" in told("generative", [0.2, 0.15])
    three = told("joint", [0.8, 2.0, 0.1])
    assert (
        three.index("smallest direction (0.10)") < three.index("middle one (0.80)") < three.index("largest one (2.00)")
    )
    k, s = spectrum("joint", [0.8, 2.0, 0.1], 0.2, 0.2)
    assert f"by {np.sqrt((k**2 / s).sum()):.2f} (root" in three


# --- the widget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"variances": (1.0,), "mean": (1.0,)}, "variances has 1 numbers and mean 1; allowed are 2 or 3"),
        ({"variances": (1.0, 1.0, 1.0)}, "variances has 3 numbers and mean 2"),
    ],
)
def test_bad_input_is_one_sentence(changes, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        MixtureFigure(**changes)


def test_traits_are_held_to_their_range():
    figure = MixtureFigure()
    for name, value in (("lambda_1", 0.0), ("strength", 1.0), ("noise", -0.1), ("adversary", 4)):
        with pytest.raises(TraitError, match=f"{name} = {value}"):
            setattr(figure, name, value)
    with pytest.raises(TraitError, match="lambda_2 = 9"):
        MixtureFigure(variances=(1.0, 9.0))


def test_a_trait_without_a_slider_is_refused_in_a_sentence():
    with pytest.raises(
        TraitError, match=r"lambda_3 = 1\.5: this figure has no such control; it has adversary, lambda_1"
    ):
        MixtureFigure().lambda_3 = 1.5


def test_three_directions_have_a_slider_more_and_a_selector_of_the_plane():
    two, three = ([c["name"] for c in MixtureFigure(**its).controls] for its in ({}, THREE))
    assert set(three) - set(two) == {"lambda_3", "plane"}
    assert set(two) < set(three)


@pytest.mark.parametrize("arguments", [{}, THREE], ids=["two", "three"])
def test_mime_bundle_has_widget_still_and_words(arguments):
    figure = MixtureFigure(**arguments)
    data, _ = figure._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    _, s = figure.hardened()
    assert all(f"grows to {v:.2f}" in data["text/plain"] for v in s)
    picture = imread(BytesIO(base64.b64decode(data["image/png"])))
    assert picture.shape[1] > 600
    assert picture[..., :3].std() > 0.1


@pytest.mark.parametrize(
    ("name", "value"),
    [("lambda_3", 1.0), ("strength", 0.1), ("adversary", 1), ("plane", 2)],
)
def test_still_follows_the_controls(name, value):
    figure = MixtureFigure(**THREE)
    before = figure.still()
    setattr(figure, name, value)
    assert figure.still() != before


def test_the_figure_loads_nothing():
    text = MixtureFigure._esm + MixtureFigure._css
    assert not re.search(r"\bimport\b|\bfetch\b|XMLHttpRequest|WebSocket|\burl\(|@import", text)


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from launched()


@pytest.fixture
def two(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    yield from opened(browser, state_of(MixtureFigure()), tmp_path)


@pytest.fixture
def three(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    yield from opened(browser, state_of(MixtureFigure(**THREE)), tmp_path)


def _radii(page: Page, kind: str) -> list[list[float]]:
    return page.locator(f"ellipse.advbook-{kind}").evaluate_all(
        "all => all.map((e) => [e.rx, e.ry].map((r) => r.baseVal.value))"
    )


def _ratio(page: Page) -> np.ndarray:
    """Drawn radius of each class after adversarial training over that before: [2, 2]."""
    return np.array(_radii(page, "hardened")) / np.array(_radii(page, "before"))


@pytest.mark.browser
def test_the_dashed_ellipses_are_the_closed_form_for_every_adversary(two):
    lam = np.array([2.0, 0.15])
    before = np.array(_radii(two, "before"))
    assert before[0] / np.sqrt(lam) == pytest.approx(before[0, 0] / np.sqrt(lam[0]), rel=1e-4)
    for i, name in enumerate(ADVERSARIES):
        two.get_by_label("adversary", exact=True).select_option(str(i))
        settle(two)
        _, s = spectrum(name, lam, 0.2, 0.2)
        assert _ratio(two) == pytest.approx(np.tile(np.sqrt(s / lam), (2, 1)), rel=1e-4)
        assert two.locator(".advbook-spectrum .advbook-head .advbook-value").all_inner_texts() == [
            f"× {v:.2f}" for v in s / lam
        ]
        assert name in two.locator(".advbook-move").inner_text()


@pytest.mark.browser
def test_every_arrow_goes_from_the_solid_ellipse_to_the_dashed_one(three):
    three.get_by_label("adversary", exact=True).select_option("2")
    three.get_by_label("directions drawn").select_option("1")
    settle(three)
    for side, path in enumerate(three.locator(".advbook-arrows").all()):
        ellipse = three.locator(f"ellipse.advbook-class-{side}").first
        middle = np.array([float(ellipse.get_attribute(name)) for name in ("cx", "cy")])
        shafts = re.findall(r"M([-\d.]+) ([-\d.]+)L([-\d.]+) ([-\d.]+)(?=M|$)", path.get_attribute("d"))
        points = np.array(shafts, float).reshape(-1, 2, 2) - middle  # [arrows, (start, end), (x, y)]
        assert len(points) == 16
        for at, kind in enumerate(("before", "hardened")):
            radius = ((points[:, at] / _radii(three, kind)[side]) ** 2).sum(1)
            assert radius == pytest.approx(1, abs=0.01)


@pytest.mark.browser
def test_the_planes_of_three_directions_are_drawn_by_the_selector(three):
    lam = np.array(THREE["variances"])
    for i, pair in enumerate([(0, 1), (0, 2), (1, 2)]):
        three.get_by_label("directions drawn").select_option(str(i))
        settle(three)
        rx, ry = _radii(three, "before")[0]
        assert rx / ry == pytest.approx(np.sqrt(lam[pair[0]] / lam[pair[1]]), rel=1e-4)
        text = three.locator("svg").first.text_content()
        assert {f"direction {n}" for n in (1, 2, 3) if f"direction {n}" in text} == {f"direction {n + 1}" for n in pair}


@pytest.mark.browser
def test_keys_and_mouse_move_the_figure_and_reset_takes_it_back(three):
    before, words = _radii(three, "hardened"), words_of(three)
    sliders = three.get_by_role("slider")
    assert sliders.count() == 5
    for slider in sliders.all():
        was, at = words_of(three), float(slider.input_value())
        press(three, slider, "ArrowRight")
        assert float(slider.input_value()) == pytest.approx(at + float(slider.get_attribute("step")))
        assert words_of(three) != was
    drag(three, three.get_by_role("slider", name="strength"), 0.9)
    assert three.evaluate("model.get('strength')") > 0.3
    assert _radii(three, "hardened") != before
    three.get_by_role("button", name="Reset").click()
    settle(three)
    assert _radii(three, "hardened") == before
    assert words_of(three) == words


@pytest.mark.browser
def test_every_end_of_every_slider_is_drawn_within_the_picture(three):
    side = 340
    for adversary in range(len(ADVERSARIES)):
        three.get_by_label("adversary", exact=True).select_option(str(adversary))
        for key in ("Home", "End"):
            for slider in three.get_by_role("slider").all():
                press(three, slider, key)
            boxes = three.locator("ellipse, .advbook-arrows").evaluate_all(
                "all => all.map((e) => { const b = e.getBBox(); return [b.x, b.y, b.x + b.width, b.y + b.height]; })"
            )
            assert np.isfinite(boxes).all()
            assert np.min(boxes) >= 0
            assert np.max(boxes) <= side
            three.get_by_role("button", name="Reset").click()
            three.get_by_label("adversary", exact=True).select_option(str(adversary))


@pytest.mark.browser
def test_screen_reader_hears_what_grew(two):
    assert two.locator("output").text_content() == ""
    press(two, two.get_by_role("slider", name="strength"), "End")
    two.wait_for_function("document.querySelector('output').textContent.includes('grows')")
    words = two.locator(".advbook-move").inner_text()
    assert two.locator("output").text_content() == words
    assert two.locator("svg").first.get_attribute("aria-label").endswith(words)


@pytest.mark.browser
def test_everything_has_a_name_and_fits_a_phone_and_stays_light(three, tmp_path):
    for control in three.locator("input, select, button").all():
        assert control.get_attribute("data-lm-suppress-shortcuts") == "true"
        assert control.evaluate("e => e.labels.length === 1 || e.textContent === 'Reset'")
    assert three.locator("svg").first.get_attribute("role") == "img"
    three.set_viewport_size({"width": 390, "height": 800})
    three.emulate_media(color_scheme="dark")
    tops = set()
    for i in range(len(ADVERSARIES)):
        three.get_by_label("adversary", exact=True).select_option(str(i))
        settle(three)
        assert three.evaluate("document.documentElement.scrollWidth") <= 390
        tops.add(three.get_by_label("adversary", exact=True).evaluate("e => e.getBoundingClientRect().top + scrollY"))
    assert len(tops) == 1  # the sentence above keeps its room, whatever it says
    style = three.locator(".advbook-card").evaluate("e => getComputedStyle(e).backgroundColor")
    assert style == "rgb(255, 255, 255)"


@pytest.mark.browser
def test_unmounting_stops_listening(two):
    assert two.evaluate("heard()") > 0
    two.evaluate("unmount()")
    assert two.evaluate("heard()") == 0


@pytest.mark.browser
def test_a_frame_takes_less_than_5_ms(three):
    assert statistics.quantiles(three.evaluate(FRAMES), n=4)[0] < 5


@pytest.mark.browser
def test_the_picture_stays_in_sight_of_every_slider_on_a_phone(three):
    three.set_viewport_size({"width": 390, "height": 800})
    for slider in three.get_by_role("slider").all():
        slider.evaluate("e => e.scrollIntoView({ block: 'end' })")
        picture, box = three.locator(".advbook-stay").bounding_box(), slider.bounding_box()
        assert picture["y"] >= -1
        assert picture["y"] + picture["height"] < box["y"] < 800
