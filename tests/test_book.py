"""The configuration of the book, its vendored files, and a small real site built with both."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import site_checks
import yaml
from nbclient import NotebookClient
from site_checks import (
    Markup,
    browser_problems,
    check_site,
    css_problems,
    is_outside,
    page_problems,
    static_problems,
)

ROOT = Path(__file__).resolve().parents[1]
VENDOR_SCRIPT = [sys.executable, str(ROOT / "scripts" / "vendor_js.py")]
CHAPTERS = "book/chapters/"

# A tiny slider in the manner of the real ones: a range input, a canvas and a line of text.
WIDGET_CELL = """
import anywidget, traitlets

class Square(anywidget.AnyWidget):
    _esm = '''
    function render({ model, el }) {
      const input = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 255 });
      const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
      const text = document.createElement("output");
      const draw = () => {
        const v = model.get("value");
        canvas.getContext("2d").fillStyle = `rgb(${v}, ${v}, ${v})`;
        canvas.getContext("2d").fillRect(0, 0, 8, 8);
        text.textContent = `value ${v}`;
      };
      input.value = model.get("value");
      input.setAttribute("aria-label", "value");
      input.addEventListener("input", () => model.set("value", input.valueAsNumber));
      model.on("change:value", draw);
      draw();
      el.append(input, canvas, text);
    }
    export default { render };
    '''
    value = traitlets.Int(99).tag(sync=True)

Square()
"""

FIGURE_CELL = """
import matplotlib.pyplot as plt
from myst_nb import glue

glue("share", 0.25, display=False)
fig, ax = plt.subplots(figsize=(4, 2))
ax.plot([0, 1, 2], [0, 1, 4]);
"""

CHAPTER = r"""# A distance that can be measured

{cite:t}`stutz2019disentangling` put $\pi(\tilde x)$ on the manifold, see {eq}`eq-distance`.

$$\max_\delta \mathcal{L}(f(x + \delta), y) \quad \boldsymbol{w} \in \mathbb{R}^K$$ (eq-test)
"""

# A verdict is computed, so its box is the output of a cell; and a table too wide for a phone.
VERDICT_CELL = """
import pandas as pd
from IPython.display import Markdown, display

title, kind, text = "Verdict: undecided", "verdict undecided", "By {cite:t}`stutz2019disentangling`."
display(Markdown(f"```{{admonition}} {title}\\n:class: {kind}\\n{text}\\n```"))
pd.DataFrame({f"column {i}": [0.123456] for i in range(12)})
"""

REST = """The share is {glue:text}`share:.2f`, see {numref}`fig-test` and {eq}`eq-test`.

```{admonition} Solution
:class: dropdown
It is $1 - p$.
```

Download {download}`the source <../../nbs/STEM.py>`.
"""


def toc_files() -> list[str]:
    """All pages that _toc.yml names, the root first."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def config() -> dict:
    return yaml.safe_load((ROOT / "_config.yml").read_text())


def test_every_page_of_the_toc_has_a_source():
    for name in toc_files():
        if name.startswith(CHAPTERS):
            source = ROOT / "nbs" / f"{name.removeprefix(CHAPTERS)}.py"
        else:
            source = ROOT / f"{name}.md"
        assert source.is_file(), f"_toc.yml names {name}, but {source.relative_to(ROOT)} is missing"


def test_config_executes_nothing_and_names_no_host():
    text = (ROOT / "_config.yml").read_text()
    assert config()["execute"]["execute_notebooks"] == "off"
    assert not re.search(r"https?://", text)
    assert not {"repository", "launch_buttons"} & set(config())


def test_config_names_only_files_that_exist():
    settings = config()
    static = ROOT / "book" / "_static"
    sphinx = settings["sphinx"]["config"]
    named = [ROOT / settings["logo"], ROOT / settings["html"]["favicon"], static / sphinx["mathjax_path"]]
    named += [static / name for name in [*sphinx["nb_ipywidgets_js"], *sphinx["html_css_files"]]]
    assert [path for path in named if not path.is_file()] == []


def test_no_static_folder_in_the_source_root():
    # Jupyter Book would put every .js file below it on every page.
    assert not (ROOT / "_static").exists()


def test_citation_file_names_the_book():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["title"] == config()["title"]
    assert [author["name"] for author in citation["authors"]] == [config()["author"]]
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in project


def test_workflows_run_the_two_commands():
    for name, command in (("pages", "make book"), ("test", "make test")):
        workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
        runs = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
        assert any(run.startswith(command) for run in runs)


# --- vendored files -----------------------------------------------------------------------------------------


def check_vendor(folder: Path) -> subprocess.CompletedProcess:
    command = [*VENDOR_SCRIPT, "--check", "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_vendored_files_are_the_published_ones():
    result = check_vendor(ROOT / "book" / "_static" / "vendor")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "require.js").write_text("alert(1)"), "require.js has sha256"),
        (lambda folder: (folder / "anywidget.js").unlink(), "anywidget.js is missing"),
        (lambda folder: (folder / "more.js").write_text(""), "more.js is not known"),
        (lambda folder: (folder / "NOTICE.txt").write_text(""), "NOTICE.txt is not what"),
    ],
)
def test_a_changed_vendor_folder_is_reported(tmp_path, damage, complaint):
    folder = tmp_path / "vendor"
    shutil.copytree(ROOT / "book" / "_static" / "vendor", folder)
    damage(folder)
    result = check_vendor(folder)
    assert result.returncode == 1
    assert complaint in result.stderr


def test_notice_names_each_vendored_package_with_its_licence():
    notice = (ROOT / "book" / "_static" / "vendor" / "NOTICE.txt").read_text()
    for words in ("requirejs 2.3.8", "html-manager 1.0.15", "anywidget 0.11.0", "mathjax 3.2.2"):
        assert words in notice
    for words in (
        "Licence: MIT",
        "Licence: BSD-3-Clause",
        "Licence: Apache-2.0",
        "Trevor Manz",
        "SIL OFL 1.1",
    ):
        assert words in notice


# --- the checks themselves can fail -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html", "complaint"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js from outside"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "loads //cdn.example/x.css from outside"),
        ('<img src="a.png">', "names a.png, which is not there"),
        ('<a href="gone.html#top">gone</a>', "names gone.html#top, which is not there"),
        ('<script>import "https://cdn.example/x.js"</script>', "its code loads https://cdn.example/x.js"),
        (
            r'<script>{"_esm": "import a from \"https://cdn.example/x\""}</script>',
            "its code loads https://cdn.e",
        ),
        ("<script>fetch('//cdn.example/x')</script>", "its code loads //cdn.example/x"),
        (
            "<style>p { background: url(https://cdn.example/x.png) }</style>",
            "its style loads https://cdn.example",
        ),
        ('<style>@import "https://cdn.example/x.css";</style>', "its style loads https://cdn.example/x.css"),
        ("<script></script>" * 99, "carries 99 script tags"),
        ('<script src="data:,embed-amd"></script>', "carries the scripts of the widgets and has no widget"),
        ("<p>" + "x" * 2_500_001, "at most 2500000 are allowed"),
        ("<p>text", "offers no download of a .ipynb file"),
        ('<meta http-equiv="refresh" content="0; url=gone.html">', "names gone.html, which is not there"),
    ],
)
def test_a_bad_page_is_reported(tmp_path, html, complaint):
    path = tmp_path / "01_chapter.html"
    path.write_text(html)
    assert complaint in "\n".join(page_problems(path))


def test_a_good_page_is_not_reported(tmp_path):
    (tmp_path / "a b.ipynb").touch()
    (tmp_path / "a.py").touch()
    path = tmp_path / "01_chapter.html"
    path.write_text(
        '<a href="https://example.org">out</a><a href="#top">top</a><img src="data:image/png;base64,AA==">'
        '<a href="a%20b.ipynb">notebook</a><a href="a.py?v=1">source</a>'
    )
    assert list(page_problems(path)) == []


def test_css_may_name_data_and_local_files(tmp_path):
    (tmp_path / "a.woff").touch()
    css = "@font-face { src: url('a.woff') } p { background: url(data:image/png;base64,AA==) }"
    assert list(css_problems(css, tmp_path / "a.css")) == []


@pytest.mark.parametrize("address", ["http://a/b", "//a/b", "https://a", "ftp://a/b", "file:///etc/x"])
def test_outside_addresses(address):
    assert is_outside(address)


def test_a_build_without_index_is_a_failure(tmp_path):
    # jupyter-book ends with exit status 0 in some failures, so the file is what counts.
    with pytest.raises(AssertionError, match=r"index\.html is missing"):
        check_site(tmp_path)


# --- a small real site --------------------------------------------------------------------------------------


def execute(cells: list[nbformat.NotebookNode], path: Path) -> None:
    """Run cells in a kernel and save the notebook with its outputs and widget states."""
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def chapter_cells(stem: str) -> list[nbformat.NotebookNode]:
    """The cells of a small chapter that has one of everything."""
    figure = {"caption": "A curve.", "name": "fig-test"}
    return [
        nbformat.v4.new_markdown_cell(CHAPTER),
        nbformat.v4.new_code_cell(
            FIGURE_CELL,
            metadata={
                "tags": ["hide-input"],
                "mystnb": {"figure": figure, "image": {"alt": "a rising curve"}},
            },
        ),
        nbformat.v4.new_code_cell(WIDGET_CELL),
        nbformat.v4.new_code_cell(VERDICT_CELL, metadata={"tags": ["remove-input"]}),
        nbformat.v4.new_markdown_cell(REST.replace("STEM", stem)),
    ]


def build(folder: Path) -> subprocess.CompletedProcess:
    """Build the pages as the book's own rule does: warnings are errors."""
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "-W", "--keep-going"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def copy_sources(folder: Path) -> None:
    """Copy what the pages are built from, less the executed chapters."""
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("chapters"))


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The html folder of a small book: the real prose and configuration, small chapters."""
    folder = tmp_path_factory.mktemp("book")
    copy_sources(folder)
    (folder / "nbs").mkdir()
    for name in toc_files():
        stem = name.removeprefix(CHAPTERS)
        if stem == name:
            continue
        (folder / "nbs" / f"{stem}.py").write_text("# %% [markdown]\n# # A chapter\n")
        first = stem.startswith("01_")
        source = f"Download {{download}}`the source <../../nbs/{stem}.py>`." if stem[0].isdigit() else ""
        cells = chapter_cells(stem) if first else [nbformat.v4.new_markdown_cell(f"# A page\n\nText. {source}")]
        execute(cells, folder / f"{name}.ipynb")
    result = build(folder)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return folder / "_build" / "html"


def first_chapter(site: Path) -> Path:
    return sorted((site / "book" / "chapters").glob("01_*.html"))[0]


@pytest.mark.slow
def test_site_files(site):
    assert static_problems(site) == []


@pytest.mark.slow
def test_site_shows_what_the_cells_say(site):
    text = first_chapter(site).read_text()
    assert "The share is 0.25" in re.sub(r"<[^>]*>", "", text)
    assert "Fig. 1.1" in text
    assert 'alt="a rising curve"' in text
    assert "Stutz" in text
    assert 'class="dropdown admonition"' in text
    assert "verdict undecided admonition" in text
    assert "pd.DataFrame" not in text  # remove-input


@pytest.mark.slow
def test_only_the_page_with_a_widget_carries_its_scripts(site):
    with_scripts = [p.name for p in site.rglob("*.html") if "embed-amd.js" in p.read_text()]
    assert with_scripts == [first_chapter(site).name]
    assert Markup(first_chapter(site).read_text()).widgets == 1


@pytest.mark.slow
@pytest.mark.browser
def test_site_in_a_browser_without_a_network(site):
    assert browser_problems(site) == []


@pytest.mark.slow
@pytest.mark.browser
def test_what_a_browser_finds_broken_is_reported(site, tmp_path, monkeypatch):
    monkeypatch.setattr(site_checks, "WAIT_MS", 4_000)
    broken = tmp_path / "html"
    shutil.copytree(
        site, broken, ignore=shutil.ignore_patterns("data.html", "references.html", "claims.html", "speed.html")
    )
    (broken / "_static" / "vendor" / "anywidget.js").write_text("define(() => ({}));")
    (broken / "_static" / "vendor" / "mathjax" / "tex-chtml.js").write_text("")
    page = broken / "book" / "notation.html"
    outside = "<script src='https://cdn.example/x.js'></script><div style='width: 600px'>wide</div></body>"
    page.write_text(page.read_text().replace("</body>", outside))
    problems = "\n".join(browser_problems(broken))
    assert "draws 0 of 1 widgets" in problems
    assert re.search(r"draws 0 of \d+ formulas", problems)
    assert "notation.html: asks for https://cdn.example/x.js from outside" in problems
    assert "notation.html: is 600 pixels wide on a screen of 390" in problems


@pytest.mark.slow
def test_a_warning_fails_the_build(tmp_path):
    copy_sources(tmp_path)
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/index\n")
    (tmp_path / "book" / "index.md").write_text("# Title\n\n{cite}`nobody2000`\n")
    assert build(tmp_path).returncode != 0
