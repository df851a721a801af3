"""The figures in a real browser, mounted from a page on disk as by anywidget: from a blob, on a model."""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parity import state_of
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from site_checks import chromium
from test_sliders import latent_slider, off_manifold_walk

pytestmark = pytest.mark.browser

QUIET_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# A page that speaks anywidget's protocol and nothing else: get, set, save_changes, on, off.
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>figure</title>
<style>body { margin: 0; padding: 8px } CSS</style><div id="root"></div>
<script type="module">
const state = STATE;
for (const [name, value] of Object.entries(state))
  if (value?.bytes !== undefined)
    state[name] = new DataView(Uint8Array.from(atob(value.bytes), (c) => c.charCodeAt(0)).buffer);
const listeners = {};
window.saved = 0;
window.model = {
  get: (name) => state[name],
  set(name, value) {
    if (state[name] === value) return;
    state[name] = value;
    for (const call of listeners[`change:${name}`] ?? []) call();
  },
  save_changes: () => { window.saved++; },
  on: (event, call) => (listeners[event] ??= new Set()).add(call),
  off: (event, call) => listeners[event].delete(call),
};
window.heard = () => Object.values(listeners).reduce((sum, calls) => sum + calls.size, 0);
const url = URL.createObjectURL(new Blob([state._esm], { type: "text/javascript" }));
const { default: figure } = await import(url);
window.unmount = await figure.render({ model: window.model, el: document.getElementById("root") });
document.body.dataset.ready = "yes";
</script></html>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=list(QUIET_FLAGS))
        yield opened
        opened.close()


@pytest.fixture(params=["latent", "walk"])
def figure(request: pytest.FixtureRequest, browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """Either figure, open."""
    widget = {"latent": latent_slider, "walk": off_manifold_walk}[request.param]()
    yield from _opened(browser, state_of(widget), tmp_path)


@pytest.fixture
def latent(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    yield from _opened(browser, state_of(latent_slider()), tmp_path)


@pytest.fixture
def walk(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    yield from _opened(browser, state_of(off_manifold_walk()), tmp_path)


def _opened(browser: Browser, state: dict[str, Any], folder: Path) -> Iterator[Page]:
    """A page from disk with one figure; ends with a check that it was quiet and stayed within itself."""
    path = folder / "figure.html"
    path.write_text(_html(state), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    outside: list[str] = []
    errors: list[str] = []
    page.on("request", lambda r: None if r.url.startswith(("file:", "blob:")) else outside.append(r.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]", state="attached")
    yield page
    page.close()
    assert outside == []
    assert errors == []


def _html(state: dict[str, Any]) -> str:
    plain = {
        name: {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes | memoryview) else value
        for name, value in state.items()
    }
    text = json.dumps(plain, default=str).replace("<", "\\u003c")
    return PAGE.replace("CSS", state["_css"]).replace("STATE", text)


def _pixels(page: Page, index: int = 0) -> str:
    """A canvas, as text to compare."""
    return str(page.locator("canvas").nth(index).evaluate("canvas => canvas.toDataURL()"))


def _settle(page: Page) -> None:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def _drag(page: Page, slider: Locator, share: float) -> None:
    """Presses the mouse in the middle of a slider and drags to a share of its width."""
    box = slider.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + share * box["width"], middle, steps=5)
    page.mouse.up()
    _settle(page)


def test_mouse_moves_picture_answer_and_trait(latent):
    before, answer = _pixels(latent), latent.locator(".advbook-bars").inner_text()
    _drag(latent, latent.get_by_role("slider", name="rotation"), 0.9)
    assert _pixels(latent) != before
    assert latent.locator(".advbook-bars").inner_text() != answer
    assert latent.evaluate("model.get('rotation')") > 0.5
    assert latent.evaluate("saved") > 0


@pytest.mark.parametrize("name", ["shift x", "shift y", "shear x", "shear y", "scale", "rotation"])
def test_keys_move_every_slider(latent, name):
    before = _pixels(latent)
    slider = latent.get_by_role("slider", name=name)
    slider.focus()
    start = float(slider.input_value())
    for _ in range(3):
        latent.keyboard.press("ArrowRight")
    _settle(latent)
    step = float(slider.get_attribute("step"))
    assert float(slider.input_value()) == pytest.approx(start + 3 * step)
    assert _pixels(latent) != before


def test_the_ends_of_a_slider_stay_within_the_box(latent):
    slider = latent.get_by_role("slider", name="rotation")
    slider.focus()
    latent.keyboard.press("End")
    assert latent.evaluate("model.get('rotation')") == pytest.approx(1.5707963267948966)
    assert slider.get_attribute("aria-valuetext") == "90°"
    latent.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "−90°"


def test_letter_and_font_change_the_picture(latent):
    seen = {_pixels(latent)}
    for label, value in [("letter", "3"), ("font", "1")]:
        latent.get_by_label(label, exact=False).and_(latent.locator("select")).select_option(value)
        _settle(latent)
        seen.add(_pixels(latent))
    assert len(seen) == 3
    assert "D" in latent.locator("canvas").get_attribute("aria-label")


def test_reset_returns_to_the_start(figure):
    before, answer = _pixels(figure), figure.locator(".advbook-card").inner_text()
    _drag(figure, figure.get_by_role("slider").first, 0.1)
    figure.locator("select").first.select_option("1")
    _settle(figure)
    assert _pixels(figure) != before
    figure.get_by_role("button", name="Reset").click()
    _settle(figure)
    assert _pixels(figure) == before
    assert figure.locator(".advbook-card").inner_text() == answer


def test_the_model_moves_the_figure(figure):
    name = "t" if figure.locator("svg").count() else "shear_x"
    before = _pixels(figure)
    figure.evaluate(f"model.set('{name}', 0.4)")
    _settle(figure)
    assert _pixels(figure) != before
    assert float(figure.locator("input[type=range]").nth(0 if name == "t" else 2).input_value()) == pytest.approx(0.4)


def test_walk_shows_live_picture_beside_precomputed_projection(walk):
    live, projection = _pixels(walk, 0), _pixels(walk, 1)
    slider = walk.get_by_role("slider")
    slider.focus()
    walk.keyboard.press("ArrowRight")
    _settle(walk)
    # One small step moves the live picture, but not yet the projection: it was computed for a few t only.
    assert _pixels(walk, 0) != live
    assert _pixels(walk, 1) == projection
    walk.keyboard.press("End")
    _settle(walk)
    assert _pixels(walk, 1) != projection
    captions = walk.locator("figcaption").all_inner_texts()
    assert "live" in captions[0]
    assert "precomputed at t = 1.50" in captions[1]
    assert "precomputed" in walk.locator("svg").get_attribute("aria-label")


def test_walk_marks_t_in_the_plot(walk):
    cursor = walk.locator(".advbook-cursor")
    left = float(cursor.get_attribute("x1"))
    _drag(walk, walk.get_by_role("slider"), 0.75)
    assert float(cursor.get_attribute("x1")) > left
    assert walk.locator("svg circle.advbook-right, svg path.advbook-wrong").count() == 7


def test_everything_has_a_name_and_lab_leaves_the_keys_alone(figure):
    inputs = figure.locator("input, select, button")
    for control in inputs.all():
        assert control.get_attribute("data-lm-suppress-shortcuts") == "true"
        assert control.evaluate("e => e.labels.length === 1 || e.textContent === 'Reset'")
    meters = figure.get_by_role("meter")
    assert meters.count() == 10
    total = sum(float(meter.get_attribute("aria-valuenow")) for meter in meters.all())
    assert total == pytest.approx(100, abs=1)
    for picture in figure.locator("canvas, svg").all():
        assert picture.get_attribute("role") == "img"
        assert picture.get_attribute("aria-label")


def test_screen_reader_hears_once_the_slider_rests(latent):
    spoken = latent.locator("output[aria-live=polite]")
    slider = latent.get_by_role("slider", name="scale")
    slider.focus()
    for _ in range(5):
        latent.keyboard.press("ArrowLeft")
    _settle(latent)
    assert spoken.text_content() == ""
    latent.wait_for_function("document.querySelector('output').textContent.includes('The classifier says')")
    assert spoken.text_content() == latent.locator(".advbook-verdict").text_content()


def test_focus_is_visible(figure):
    figure.keyboard.press("Tab")
    ring = figure.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"


def test_phone_has_no_sideways_scroll(figure, tmp_path):
    figure.set_viewport_size({"width": 390, "height": 800})
    _settle(figure)
    figure.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert figure.evaluate("document.documentElement.scrollWidth") <= 390


def test_card_stays_light_on_a_dark_page(figure):
    figure.emulate_media(color_scheme="dark")
    figure.add_style_tag(content="html { color-scheme: dark; background: #111; color: #eee }")
    style = figure.locator(".advbook-card").evaluate(
        "e => { const s = getComputedStyle(e); return [s.colorScheme, s.backgroundColor, s.color]; }"
    )
    assert style == ["light", "rgb(255, 255, 255)", "rgb(29, 36, 48)"]


def test_unmounting_stops_listening(figure):
    assert figure.evaluate("heard()") > 0
    figure.evaluate("unmount()")
    assert figure.evaluate("heard()") == 0


def test_a_frame_takes_less_than_5_ms(figure, capsys):
    times = figure.evaluate(
        """async () => {
          const card = document.querySelector(".advbook-card");
          const input = document.querySelector("input[type=range]");
          const times = [];
          for (let i = 0; i < 200; i++) {
            const share = (i % 100) / 100;
            input.value = +input.min + share * (input.max - input.min);
            input.dispatchEvent(new Event("input"));
            await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
            times.push(+card.dataset.frameMs);
          }
          return times;
        }"""
    )
    median = statistics.median(times)
    with capsys.disabled():
        print(f"\nframe: median {median:.2f} ms, 95 % below {statistics.quantiles(times, n=20)[-1]:.2f} ms")
    assert median < 5
