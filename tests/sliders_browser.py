"""What the tests of figures in a real browser share: a page on disk with one figure, and moves of its controls."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, sync_playwright
from site_checks import chromium

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

FRAMES = """async () => {
  const [card, input] = [".advbook-card", "input[type=range]"].map((name) => document.querySelector(name));
  const times = [];
  for (let i = 0; i < 100; i++) {
    input.value = +input.min + (i / 100) * (input.max - input.min);
    input.dispatchEvent(new Event("input"));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    times.push(+card.dataset.frameMs);
  }
  return times;
}"""


def launched() -> Iterator[Browser]:
    """A quiet Chromium, for a fixture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(QUIET_FLAGS))
        yield browser
        browser.close()


def opened(browser: Browser, state: dict[str, Any], folder: Path) -> Iterator[Page]:
    """A page from disk with one figure; ends with a check that it was quiet and stayed within itself."""
    path = folder / "figure.html"
    path.write_text(html(state), encoding="utf-8")
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


def html(state: dict[str, Any]) -> str:
    plain = {
        name: {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes | memoryview) else value
        for name, value in state.items()
    }
    text = json.dumps(plain, default=str).replace("<", "\\u003c")
    return PAGE.replace("CSS", state["_css"]).replace("STATE", text)


def pixels_of(page: Page, index: int = 0) -> str:
    """A canvas, as text to compare."""
    return str(page.locator("canvas").nth(index).evaluate("canvas => canvas.toDataURL()"))


def pictures_of(page: Page) -> list[str]:
    return [pixels_of(page, i) for i in range(page.locator("canvas").count())]


def words_of(page: Page) -> list[str]:
    """What the card says to the eye: the sentence for the ear comes later, when the figure rests."""
    return list(page.locator(".advbook-card > :not(output)").all_inner_texts())


def settle(page: Page) -> None:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def drag(page: Page, slider: Locator, share: float) -> None:
    """Presses the mouse in the middle of a slider and drags to a share of its width."""
    box = slider.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + share * box["width"], middle, steps=5)
    page.mouse.up()
    settle(page)


def press(page: Page, slider: Locator, *keys: str) -> None:
    slider.focus()
    for key in keys:
        page.keyboard.press(key)
    settle(page)


def run_module(module: str, expression: str, arguments: Any) -> Any:
    """What an expression in m, the exports of a figure's JS, and a, the arguments, gives in node."""
    code = f"""import {{ readFileSync }} from "node:fs";
        const {{ module, a }} = JSON.parse(readFileSync(0, "utf8"));
        const m = await import("data:text/javascript;base64," + Buffer.from(module).toString("base64"));
        process.stdout.write(JSON.stringify({expression}));"""
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code],
        input=json.dumps({"module": module, "a": arguments}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
