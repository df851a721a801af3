"""The tree as a whole: pins, licences, what ships, and which module may import which."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from checkout import ROOT, tracked
from packaging.requirements import Requirement

from advbook import chapters

# A module imports from its own layer and from those above it in this list.
LAYERS = (
    ("files", "formats"),
    ("fonts", "datasets", "corruptions"),
    ("networks",),
    ("fleet", "capture"),
    ("manifolds",),  # after fleets, since learned ones are trained as one
    ("kernels",),
    ("attacks",),
    ("training",),
    ("metrics", "confidence", "gaussian"),
    ("store",),
    ("ledger",),
    ("experiments",),
    ("figures", "pages", "sliders"),
    ("notebooks",),
    ("chapters",),
)
MACHINE = re.compile(r"(?<![\w.-])/(?:work|root)/[\w.]|/home/\w|/Users/\w|[A-Z]:\\Users")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def environment() -> list:
    return yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


# --- pins -----------------------------------------------------------------------------------------------------


def pins(lines: list[str]) -> dict[str, str]:
    """Name -> versions, as both files write them."""
    requirements = [Requirement(line) for line in lines]
    return {r.name: str(r.specifier) for r in requirements}


def test_conda_and_pip_have_the_same_pins():
    (pip,) = (entry["pip"] for entry in environment() if isinstance(entry, dict))
    assert pip[-1] == "--editable ."
    assert pins(pip[:-1]) == pins(project()["project"]["dependencies"])
    assert len(pip) - 1 == len(set(pins(pip[:-1])))


def test_conda_and_pip_have_the_same_python():
    (python,) = (entry for entry in environment() if isinstance(entry, str) and entry.startswith("python"))
    assert str(Requirement(python).specifier) == str(
        Requirement(f"x{project()['project']['requires-python']}").specifier
    )


def test_the_versions_that_were_promised():
    given = pins(project()["project"]["dependencies"])
    assert given["torch"] == "==2.13.0"
    assert given["jupyter-book"] == str(Requirement("x>=1.0.4,<2").specifier)
    assert "torchvision" not in given
    assert re.findall(r"torch==[\d.]+", (ROOT / "Makefile").read_text()) == ["torch==2.13.0"]


def test_every_package_has_a_bound():
    extras = project()["project"]["optional-dependencies"]
    for line in [*project()["project"]["dependencies"], *(line for lines in extras.values() for line in lines)]:
        assert re.search(r"~=|==|<", line), f"{line} has no upper bound"


# --- licences -------------------------------------------------------------------------------------------------


def test_the_licence_is_mit():
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License\n")
    assert "WITHOUT WARRANTY OF ANY KIND" in text
    assert project()["project"]["license"] == yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "MIT"


def test_notice_names_the_fonts_and_leads_to_the_vendored_notice():
    text = (ROOT / "NOTICE").read_text()
    assert len(re.findall(r"^\S.* \(@fontsource/\S+@[\d.]+\), (?:OFL-1\.1|Apache-2\.0|UFL-1\.0)$", text, re.M)) >= 290
    (where,) = set(re.findall(r"book/_static/\S*NOTICE\.txt", text))
    assert (ROOT / where).is_file()


def test_the_licences_of_fonts_and_data_ship_with_them():
    named = set(re.findall(r"\), (OFL-1\.1|Apache-2\.0|UFL-1\.0)$", (ROOT / "NOTICE").read_text(), re.M))
    folder = ROOT / "advbook" / "data" / "licences"
    assert {path.stem for path in folder.iterdir()} == named | {"MIT-Fashion-MNIST"}
    assert all(path.stat().st_size > 1_000 for path in folder.iterdir())
    assert {"data/*", "data/licences/*"} <= set(project()["tool"]["setuptools"]["package-data"]["advbook"])


# --- what is in the tree --------------------------------------------------------------------------------------


def test_the_fonts_are_small():
    assert (ROOT / "advbook" / "data" / "fonts.npz").stat().st_size <= 3_000_000


def files() -> list[str]:
    names = tracked()
    if names is None:
        pytest.skip("git does not know this tree")
    return names


def test_no_file_names_a_place_on_a_machine():
    found = []
    for name in files():
        content = (ROOT / name).read_bytes()
        if b"\0" not in content:
            found += [f"{name}: {match[0]}" for match in MACHINE.finditer(content.decode())]
    assert found == []


def test_a_place_on_a_machine_would_be_found():
    for text in ("see /work" + "/main/x", "'/root" + "/.cache'", "/home" + "/ann/book", "C:" + "\\Users\\ann"):
        assert MACHINE.search(text), text
    for text in ("https://a.example/work/x", "network/root/x", "~/book"):
        assert not MACHINE.search(text), text


def test_nothing_that_is_made_is_tracked():
    made = re.compile(r"^(_build|book/chapters|\.advbook|\.snakemake|\.venv)/|\.ipynb$|\.pyc$|\.egg-info/")
    assert [name for name in files() if made.search(name)] == []


# --- the README -------------------------------------------------------------------------------------------------


def test_the_readmes_code_runs_as_written_fools_the_network_and_rates_what_is_accepted():
    attacks, accepted = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(attacks, names)
    for name in ("found", "strong", "unseen"):
        assert names[name].success.any(0).all(), name
    names = {}
    exec(accepted, names)
    evaluation, tau = names["confidence"], names["tau"]
    assert evaluation.acceptance(names["clean"], tau) > 0.9
    assert (
        0
        <= evaluation.error(names["clean"], tau)
        <= evaluation.robust_error(names["clean"], names["attacked"], tau)
        < 1
    )


# --- layers ---------------------------------------------------------------------------------------------------


def modules() -> list[Path]:
    return sorted((ROOT / "advbook").rglob("*.py"))


def unit(module: str) -> str:
    """The part of the package that a module belongs to: advbook.attacks.engine -> attacks."""
    return module.split(".")[1]


def imported(source: str) -> set[str]:
    """The parts of the package that a source imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {unit(alias.name) for alias in node.names if alias.name.startswith("advbook.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            if node.module == "advbook":
                found |= {alias.name for alias in node.names}
            elif node.module and node.module.startswith("advbook."):
                found.add(unit(node.module))
    return found


def test_imports_are_seen():
    source = (
        "import advbook.store\ndef f():\n    from advbook import fonts, pages\n    from advbook.attacks.pgd import x"
    )
    assert imported(source) == {"store", "fonts", "pages", "attacks"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT / "advbook")))
def test_a_module_imports_only_from_above(path):
    height = {name: place for place, names in enumerate(LAYERS) for name in names}
    own = path.relative_to(ROOT / "advbook").parts[0].removesuffix(".py")
    if own == "__init__":
        assert imported(path.read_text()) == set()
        return
    assert own in height, f"advbook/{own} has no place in the order of layers"
    below = {name for name in imported(path.read_text()) if height[name] > height[own]}
    assert not below, f"advbook/{own} imports {sorted(below)}, which stand on it"


# --- profiles -------------------------------------------------------------------------------------------------


def test_there_are_four_profiles():
    assert {path.stem for path in chapters.PROFILES.glob("*.yml")} == {"tiny", "quick", "standard", "paper"}


@pytest.mark.parametrize("profile", ["tiny", "quick", "standard", "paper"])
def test_a_profile_is_valid_and_has_each_point_once(profile):
    plan = chapters.plan(profile)
    assert set(plan) == set(chapters.CHAPTERS)
    for points in plan.values():
        paths = chapters.row_files(points)
        assert len(paths) == len(set(paths)) > 0
        assert {p.profile for p in points} == {profile}


def test_the_default_book_needs_no_download():
    for profile in ("quick", "tiny"):
        named = {p.dataset for points in chapters.plan(profile).values() for p in points}
        assert named == {"fonts", "fonts_easy", "mixture"}
