"""advbook.notebooks: py:percent files as notebooks, and papermill as a user types it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from checkout import CHAPTER, PAGE, finish, last_line
from papermill.iorw import load_notebook_node

from advbook import chapters, notebooks, store
from advbook.experiments.off_manifold import OffManifold

pytest_plugins = ["checkout"]

SOURCE = f"nbs/{CHAPTER}.py"
PAPERMILL = str(Path(sys.executable).with_name("papermill"))
SMALL = {"N": 400, "SEEDS": 1, "EPOCHS": 1, "IMAGES": 10, "STEPS": 3, "RESTARTS": 1, "STARTS": 1, "NEIGHBOURS": 10}


# --- reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", chapters.PAGES)
def test_a_file_is_a_valid_notebook_on_the_kernel_of_this_environment(page):
    notebook = notebooks.read(store.CHECKOUT / "nbs" / f"{page}.py")
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert "jupytext" not in notebook.metadata
    assert {cell.cell_type for cell in notebook.cells} == {"markdown", "code"}
    assert notebook.cells[0].source.startswith("# ")


def test_a_colleagues_kernel_is_not_asked_for(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "# ---\n# jupyter:\n#   kernelspec:\n#     name: ann-37\n#     display_name: Ann\n# ---\n\n# %%\n1\n"
    )
    assert notebooks.read(path).metadata["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("begin", ["nbs/", "./nbs/"])
def test_papermill_reads_the_file_by_its_path_in_the_tree(monkeypatch, begin):
    monkeypatch.chdir(store.CHECKOUT)
    notebook = load_notebook_node(f"{begin}{CHAPTER}.py")
    assert any("parameters" in cell.metadata.tags for cell in notebook.cells)


def test_other_notebooks_are_read_as_ever(tmp_path):
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), path)
    assert json.loads(notebooks.handler.read(str(path)))["cells"][0]["source"] in ("1", ["1"])


@pytest.mark.parametrize("module", ["papermill.iorw", "advbook.notebooks"])
def test_a_module_can_come_first_and_loads_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- papermill as typed ---------------------------------------------------------------------------------------


def typed(tree, home: Path, output: Path, *pairs: str) -> subprocess.Popen:
    """`papermill nbs/... OUT -p NAME VALUE ...` in the root of the tree, all else as small as can be."""
    given = {name: str(value) for name, value in SMALL.items()}
    words = [word for name, value in given.items() for word in ("-p", name, value)]
    return tree.start(PAPERMILL, SOURCE, str(output), *words, *pairs, ADVBOOK_HOME=str(home))


def row_files(home: Path) -> list[Path]:
    return sorted(home.glob("rows/*/*.json"))


def headings(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return [line for cell in cells if cell.cell_type == "markdown" for line in re.findall(r"^#+ .*", cell.source, re.M)]


@pytest.mark.slow
def test_other_parameters_give_other_rows_and_the_same_page(fresh, built, home, tmp_path):
    output = tmp_path / "out.ipynb"
    status, text = finish(typed(fresh, home, output, "-p", "EPS", "0.2"))
    assert status == 0, text[-3000:]
    (path,) = row_files(home)
    document = json.loads(path.read_text())
    assert path.name.startswith("fonts-n400-")
    assert (document["about"]["n"], document["about"]["eps"]) == (400, 0.2)
    assert headings(output) == headings(built.root / PAGE)
    assert "EPS = 0.2" in output.read_text()
    assert not (fresh.root / ".advbook").exists()

    OffManifold.of({**SMALL, "EPS": 0.1}).rows()
    (other,) = set(row_files(home)) - {path}
    assert json.loads(other.read_text())["rows"] != document["rows"]
    assert len(list(home.glob("models/*.safetensors"))) == 1  # the network does not depend on the attack


WRONG = {
    ("NN", "3"): r"ParameterError: Unknown parameter NN: did you mean N\? Known are .*\.",
    ("n", "400"): r"ParameterError: Unknown parameter n: did you mean N\? Known are .*\.",
    ("EPS", "abc"): r"ParameterError: Parameter EPS = 'abc' is not allowed: it should be a valid number.*\.",
    ("EPS", "-1"): r"ParameterError: Parameter EPS = -1 is not allowed: it should be greater .* 0\.",
}


@pytest.fixture(scope="module")
def refused(fresh, tmp_path_factory) -> dict[tuple[str, str], tuple[int, str, Path]]:
    """Exit status, output and home of each wrong call; they run side by side."""
    homes = {pair: tmp_path_factory.mktemp("home") for pair in WRONG}
    started = {pair: typed(fresh, home, home / "out.ipynb", "-p", *pair) for pair, home in homes.items()}
    ended = {pair: finish(process) for pair, process in started.items()}
    for pair, (_, text) in ended.items():
        if "Kernel died before replying" in text:  # of kernels that start side by side, two may have taken one port
            ended[pair] = finish(typed(fresh, homes[pair], homes[pair] / "out.ipynb", "-p", *pair))
    return {pair: (*end, homes[pair]) for pair, end in ended.items()}


@pytest.mark.slow
@pytest.mark.parametrize("pair", WRONG, ids=" ".join)
def test_a_wrong_parameter_writes_no_row(refused, pair):
    status, text, home = refused[pair]
    assert status != 0
    assert re.fullmatch(WRONG[pair], last_line(text)), text[-1500:]
    assert row_files(home) == []
    assert not list(home.glob("models/*.safetensors"))


def test_papermill_is_here():
    assert os.access(PAPERMILL, os.X_OK)
