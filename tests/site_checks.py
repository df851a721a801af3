"""Checks of a built site: nothing from outside, every page alive. `check_site(html_dir)` runs them all.

Each check returns its problems as sentences, so that one run shows all of them.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from playwright.sync_api import Browser, BrowserContext, Error, Page, sync_playwright

MAX_SCRIPTS = 26  # the theme has 22, formulas add 2
WIDGET_SCRIPTS = 4  # the state, require.js, its paths, the widget manager; and one for each widget shown
MAX_PAGE_BYTES = 2_500_000  # a page and its images, without the scripts and fonts that all pages share
WAIT_MS = 30_000  # for what a page draws; a busy machine is slow
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

Check = Callable[[Page], Iterator[str]]

# Attributes that make a browser load what they name. <a href> does not.
LOADING = {
    "script": ["src"],
    "link": ["href"],
    "img": ["src", "srcset"],
    "source": ["src", "srcset"],
    "iframe": ["src"],
    "embed": ["src"],
    "object": ["data"],
    "video": ["src", "poster"],
    "audio": ["src"],
    "track": ["src"],
    "input": ["src"],
    "use": ["href", "xlink:href"],
    "image": ["href", "xlink:href"],
    "form": ["action"],
}
CSS_URL = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")
JS_URL = re.compile(r"""(?:\bimport\b|\bfrom\b|\bfetch\b|\bimportScripts\b)[\s(]*\\?["'`]((?:https?:)?//[^"'`\\]+)""")


def check_site(html_dir: Path) -> None:
    """Fail with all problems of the site below `html_dir` unless it stands and works without a network."""
    problems = static_problems(html_dir) or browser_problems(html_dir)
    assert not problems, "\n".join([f"{len(problems)} problems in {html_dir.name}:", *problems])


# --- what the files say -------------------------------------------------------------------------------------


@dataclass
class Markup(HTMLParser):
    """What one HTML page loads and links to."""

    text: str
    loads: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    scripts: int = 0
    css: str = ""
    code: str = ""
    inside: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        named = [values[name] for name in LOADING.get(tag, []) if name in values]
        self.loads += [part.split()[0] for value in named for part in split_srcset(value)]
        self.images += [values["src"]] if tag == "img" and "src" in values else []
        self.links += [values["href"]] if tag == "a" and "href" in values else []
        if tag == "meta" and values.get("http-equiv", "").lower() == "refresh":
            self.loads.append(values["content"].partition("url=")[2])
        self.css += values.get("style", "") + "\n"
        self.scripts += tag == "script"
        self.inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "style":
            self.css += data
        elif self.inside == "script":
            self.code += data

    @property
    def widgets(self) -> int:
        """How many widgets the page shows."""
        return self.text.count('type="application/vnd.jupyter.widget-view+json"')

    @property
    def redirects(self) -> bool:
        """Whether the page only leads to another one."""
        return bool(re.search(r'http-equiv="refresh"', self.text, re.IGNORECASE))


def split_srcset(value: str) -> list[str]:
    """The addresses of an attribute: one, unless it is a srcset. A data: address holds commas of its own."""
    return [value] if value.startswith("data:") else [part for part in value.split(",") if part.strip()]


def is_outside(address: str) -> bool:
    """Whether a browser would leave the site to load this address."""
    scheme, host = urlsplit(address.strip())[:2]
    return bool(host) or scheme not in ("", "data", "blob", "about")


def local_file(address: str, page: Path) -> Path | None:
    """The file that an address on a page names, or None if it names none."""
    parts = urlsplit(urldefrag(address).url)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    return (page.parent / unquote(parts.path)).resolve()


def is_missing(address: str, page: Path) -> bool:
    """Whether an address on a page names a local file that is not there."""
    target = local_file(address, page)
    return target is not None and not target.exists()


def pages(html_dir: Path) -> list[Path]:
    """The HTML pages of a site. What lies in _static are templates of the theme."""
    return sorted(path for path in html_dir.rglob("*.html") if "_static" not in path.relative_to(html_dir).parts)


def static_problems(html_dir: Path) -> list[str]:
    """What is wrong with the files of a site, one sentence a problem."""
    if not (html_dir / "index.html").is_file():
        return [f"{html_dir.name}/index.html is missing: the build failed, whatever its exit status was"]
    return [
        f"{path.relative_to(html_dir)}: {problem}"
        for path in [*pages(html_dir), *sorted(html_dir.rglob("*.css"))]
        for problem in (page_problems(path) if path.suffix == ".html" else css_problems(path.read_text(), path))
    ]


def css_problems(css: str, path: Path) -> Iterator[str]:
    """What is wrong with a style sheet."""
    for match in CSS_URL.finditer(css):
        address = match[1] or match[2]
        if is_outside(address):
            yield f"its style loads {address} from outside"
        elif is_missing(address, path):
            yield f"its style names {address}, which is not there"


def page_problems(path: Path) -> Iterator[str]:
    """What is wrong with one HTML page."""
    page = Markup(path.read_text(encoding="utf-8"))
    yield from (f"loads {address} from outside" for address in page.loads if is_outside(address))
    yield from (f"its code loads {match[1]} from outside" for match in JS_URL.finditer(page.code))
    yield from (f"names {a}, which is not there" for a in page.loads + page.links if is_missing(a, path))
    yield from css_problems(page.css, path)
    limit = MAX_SCRIPTS + (WIDGET_SCRIPTS + page.widgets if page.widgets else 0)
    if page.scripts > limit:
        yield f"carries {page.scripts} script tags; at most {limit} are allowed"
    if not page.widgets and "embed-amd" in page.text:
        yield "carries the scripts of the widgets and has no widget"
    if (weight := page_bytes(page, path)) > MAX_PAGE_BYTES:
        yield f"weighs {weight} bytes with its images; at most {MAX_PAGE_BYTES} are allowed"
    if re.fullmatch(r"\d\d_.*", path.stem):
        yield from download_problems(page)


def page_bytes(page: Markup, path: Path) -> int:
    """The size of a page and of the local images that it shows, in bytes."""
    images = {local_file(address, path) for address in page.images} - {None}
    return len(page.text.encode()) + sum(image.stat().st_size for image in images if image and image.is_file())


def download_problems(page: Markup) -> Iterator[str]:
    """Which of a chapter's two downloads, the executed notebook and its source, is not offered."""
    for suffix in (".ipynb", ".py"):
        if not any(urlsplit(link).path.endswith(suffix) for link in page.links):
            yield f"offers no download of a {suffix} file"


# --- what a browser sees ------------------------------------------------------------------------------------


def chromium() -> str | None:
    """The path of Chromium, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def browser_problems(html_dir: Path) -> list[str]:
    """What is wrong with a site when it is opened from disk with the network cut, one sentence a problem."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        try:
            return list(visit_all(browser, html_dir))
        finally:
            browser.close()


def visit_all(browser: Browser, html_dir: Path) -> Iterator[str]:
    """Open every page, and the search page with a query."""
    for path in pages(html_dir):
        redirects = Markup(path.read_text(encoding="utf-8")).redirects
        checks = [redirect_problems] if redirects else PAGE_CHECKS
        yield from (f"{path.relative_to(html_dir)}: {p}" for p in visit(browser, path.as_uri(), checks))
    title = first_title(html_dir)
    query = f"{(html_dir / 'search.html').as_uri()}?q={max(title.split(), key=len)}"
    found = visit(browser, query, [lambda page: search_problems(page, title)])
    yield from (f"search.html: {problem}" for problem in found if not is_about_excerpts(problem))


def is_about_excerpts(problem: str) -> bool:
    """Whether a problem is only that a browser fetches no excerpts from disk; titles are found without."""
    return problem.startswith("cannot load file:") or problem == "throws Failed to fetch"


def visit(browser: Browser, url: str, checks: list[Check]) -> list[str]:
    """Open one address in a fresh context without a network and run checks on it."""
    context = browser.new_context(viewport=DESKTOP)
    try:
        page = context.new_page()
        problems = cut_network(context, page)
        page.goto(url, wait_until="load")
        for check in checks:
            problems += check(page)
        return problems
    except Error as error:
        return [f"{error.message.splitlines()[0]}"]
    finally:
        context.close()


def cut_network(context: BrowserContext, page: Page) -> list[str]:
    """Refuse every request that is not for a local file; return the list that each problem is added to."""
    problems: list[str] = []

    def refuse(route, request):
        problems.append(f"asks for {request.url} from outside")
        route.abort()

    context.route(re.compile(r"^(?!file:|data:|blob:|about:)"), refuse)
    page.on("requestfailed", lambda request: problems.append(f"cannot load {request.url}"))
    page.on("pageerror", lambda error: problems.append(f"throws {error.message}"))
    return problems


def first_title(html_dir: Path) -> str:
    """The title of the first chapter, without its number."""
    path = sorted((html_dir / "book" / "chapters").glob("[0-9]*.html"))[0]
    heading = re.search(r"<title>(.*?)(?:&#8212;|—|</title>)", path.read_text(encoding="utf-8"), re.DOTALL)
    assert heading, f"{path.name} has no title"
    return re.sub(r"^[\d.\s]+", "", unescape(heading[1])).strip()


def redirect_problems(page: Page) -> Iterator[str]:
    """Whether a page that leads to another one arrives there."""
    page.wait_for_selector("main h1", state="attached", timeout=WAIT_MS)
    if "/book/" not in page.url:
        yield f"leads to {page.url}"


def search_problems(page: Page, title: str) -> Iterator[str]:
    """Whether a search from disk finds a chapter by its title."""
    try:
        page.wait_for_selector(f"#search-results li a:has-text({title!r})", timeout=WAIT_MS)
    except Error:
        yield f"does not find {title!r}"


def math_problems(page: Page) -> Iterator[str]:
    """Whether every formula is drawn, without an error, in MathJax's fonts."""
    formulas = page.locator("span.math, div.math").count()
    if not formulas:
        return
    try:
        page.wait_for_function(
            "n => document.querySelectorAll('mjx-container').length >= n", arg=formulas, timeout=WAIT_MS
        )
    except Error:
        yield f"draws {page.locator('mjx-container').count()} of {formulas} formulas"
    wrong = page.locator("mjx-merror")
    if wrong.count():
        yield f"has a formula that MathJax does not understand: {wrong.first.get_attribute('data-mjx-error')}"
    page.evaluate("document.fonts.ready")
    if not page.evaluate("[...document.fonts].some(f => f.family.startsWith('MJX') && f.status === 'loaded')"):
        yield "draws formulas without MathJax's fonts"


def theme_problems(page: Page) -> Iterator[str]:
    """Whether the button for dark mode darkens the page, and leads back."""
    light = brightness(page)
    button = page.locator("button.theme-switch-button:visible").first
    seen = {page.evaluate("document.documentElement.dataset.theme"): light}
    for _ in range(3):
        button.click()
        seen[page.evaluate("document.documentElement.dataset.theme")] = brightness(page)
    if not (seen.get("dark", 1) < 0.3 and seen.get("light", 0) > 0.7):
        yield f"does not change between dark and light: {seen}"


def brightness(page: Page) -> float:
    """The brightness of the page's background, from 0 (black) to 1 (white)."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / (3 * 255)


def phone_problems(page: Page) -> Iterator[str]:
    """Whether the page fits a phone: nothing makes it scroll sideways."""
    page.set_viewport_size(PHONE)
    width = page.evaluate("document.documentElement.scrollWidth")
    if width > PHONE["width"]:
        yield f"is {width} pixels wide on a screen of {PHONE['width']}"


SHOWN = """area => [area.innerText, ...[...area.querySelectorAll('canvas')].map(c => c.toDataURL())]"""


def widget_problems(page: Page) -> Iterator[str]:
    """Whether every widget is drawn and its first slider changes what is shown, by keys and by mouse."""
    count = page.locator("script[type='application/vnd.jupyter.widget-view+json']").count()
    areas = page.locator(".widget-subarea")
    try:
        for i in range(count):
            areas.nth(i).locator("input[type=range]").first.wait_for(timeout=WAIT_MS)
    except Error:
        drawn = areas.filter(has=page.locator("input[type=range]")).count()
        yield f"draws {drawn} of {count} widgets with a slider"
        return
    for i in range(count):
        for how, move in (("keys", by_keys), ("mouse", by_mouse)):
            if not moves(areas.nth(i), move):
                yield f"its widget {i + 1} does not react to {how}"


def moves(area, move: Callable[..., None]) -> bool:
    """Whether moving the first slider of a widget to one of its ends changes what the widget shows."""
    slider = area.locator("input[type=range]").first
    shown = [area.evaluate(SHOWN)]
    for end in (0, 1):
        move(slider, end)
        area.page.wait_for_timeout(150)
        shown.append(area.evaluate(SHOWN))
    return any(state != shown[0] for state in shown)


def by_keys(slider, end: int) -> None:
    """Move a slider to its lower (0) or upper (1) end with the keyboard."""
    slider.focus()
    slider.press(("Home", "End")[end])


def by_mouse(slider, end: int) -> None:
    """Move a slider near its lower (0) or upper (1) end with the mouse."""
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    slider.page.mouse.click(box["x"] + box["width"] * (0.05, 0.95)[end], box["y"] + box["height"] / 2)


PAGE_CHECKS: list[Check] = [math_problems, theme_problems, widget_problems, phone_problems]
