"""A copy of the tree to run the book's commands in, so that rows, pages and damage stay out of the working tree.

A test file says `pytest_plugins = ["checkout"]` and gets the fixtures; they are made once for all files.

PYTEST_DONT_REWRITE: the files import this module before pytest does.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = "01_off_manifold_distance"
PAGE = f"book/chapters/{CHAPTER}.ipynb"
IGNORED = (
    ".git",
    ".venv",
    ".advbook",
    ".snakemake",
    "_build",
    "chapters",
    "__pycache__",
    "*.egg-info",
    ".*_cache",
    ".hypothesis",
)
TOY = "99_toy"
OURS = ("ADVBOOK_HOME", "ADVBOOK_DATA", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # what a caller's shell must not add
PATIENCE = 400  # seconds for one command on a busy machine


def tracked(root: Path = ROOT) -> list[str] | None:
    """The files of the tree that git tracks or would track, as they lie there; None if git cannot tell."""
    command = ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return [name for name in listing.split("\0") if name and (root / name).is_file()]


def copy_tree(target: Path) -> None:
    """Copy what a clone would hold, with what is not committed yet."""
    names = tracked()
    if names is None:
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*IGNORED))
        return
    for name in names:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place)


def last_line(text: str) -> str:
    """The last line that is not blank."""
    return [line for line in text.splitlines() if line.strip()][-1]


@dataclass(frozen=True)
class Tree:
    """A copy of the tree, in which `advbook` is the copy's."""

    root: Path

    def env(self, **more: str) -> dict[str, str]:
        """The caller's environment, less what points elsewhere; one thread, so that all runs give the same bits."""
        kept = {name: value for name, value in os.environ.items() if name not in OURS}
        return {**kept, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1", **more}

    def start(self, *command: str, **more: str) -> subprocess.Popen[str]:
        """Start a command in the root; its output is one stream."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.env(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, **more: str) -> tuple[int, str]:
        """Run a command to its end: exit status and output."""
        return finish(self.start(*command, **more))

    def python(self, *arguments: str, **more: str) -> tuple[int, str]:
        """Run Python on the copy."""
        return self.run(sys.executable, *arguments, **more)

    def snakemake(self, goal: str, *settings: str, extra: str = "", profile: str = "tiny", cores: int = 1) -> list[str]:
        """Snakemake's command line as the Makefile gives it; goal: a rule, or a file. settings: PARAMETER=value."""
        rule, target = ("sweep", "sweep") if goal == "sweep" else ("book", "pages")
        asked = ["make", "-n", rule, f"PROFILE={profile}", f"CORES={cores}", f"SNAKEMAKE={extra}", *settings]
        lines = subprocess.run(asked, cwd=self.root, env=self.env(), capture_output=True, text=True, check=True).stdout
        (line,) = (line for line in lines.splitlines() if line.startswith(".venv/bin/snakemake "))
        words = [goal if word == target else word for word in shlex.split(line)]
        return [sys.executable, "-m", "snakemake", *words[1:]]

    def make(self, goal: str, *settings: str, **options: Any) -> str:
        """Run Snakemake to a good end and give its output."""
        status, output = self.run(*self.snakemake(goal, *settings, **options))
        assert status == 0, output[-4000:]
        return output

    def rows(self) -> dict[str, dict]:
        """All row files by name, less what differs between two runs: seconds, and the checksum over them."""
        found = {}
        for path in sorted(self.root.glob(".advbook/rows/*/*.json")):
            document = json.loads(path.read_text())
            del document["checksum"], document["about"]["seconds"]
            found[path.name] = document
        return found

    def models(self) -> list[Path]:
        """The files of trained networks, in the order in which they were written."""
        found = self.root.glob(".advbook/models/*.safetensors")
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def clone(self, target: Path) -> "Tree":
        """A copy of this tree with all that was computed in it, times included."""
        return Tree(Path(shutil.copytree(self.root, target, symlinks=True)))


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a command: exit status and output. One that takes too long is killed with all that it started."""
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        raise
    return process.returncode, output


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL a process and all below it: kernels lie in groups of their own, so a killed group is not enough."""
    try:
        parent = psutil.Process(process.pid)
        victims = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    process.communicate()
    psutil.wait_procs(victims[1:], timeout=10)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until a condition holds; a process that ends before is a failure."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"it ended before: {process.communicate()[0][-4000:]}"
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.02)


TOY_MODULE = '''"""A chapter over a grid that takes no time, and writes down what it computes and where."""

import os
import resource
import time
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from advbook.experiments import Axis, Parameters, Result


class Toy(Parameters):
    experiment: ClassVar[str] = "99_toy"
    version: ClassVar[int] = 1
    axes: ClassVar[dict[str, str]] = {"recipes": "recipe", "n": "n"}
    dataset: Literal["fonts"] = "fonts"
    recipes: Axis[Literal["normal", "other"]] = ["normal"]
    n: Axis[Annotated[int, Field(ge=1)]] = [1, 2]

    def compute(self):
        (n,), (recipe,) = self.n, self.recipes
        if Path(f"broken-{n}").exists():
            raise OSError(f"point {n} is broken")
        with Path("computed").open("a") as log:
            log.write(f"{recipe} {n} {os.getpid()}\\n")
        if Path(f"full-{n}").exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, -1))
        time.sleep(0.3)
        return Result([{"value": n / 3}], {"squares": np.arange(n) ** 2})
'''
TOY_NOTEBOOK = """# %% tags=["parameters"]
DATASET: str = "fonts"
RECIPES: list = ["normal"]
N: list = [1, 2]
DEVICE: str = "auto"
PROFILE: str = "own"

# %% tags=["compute"]
from advbook.experiments.toy import Toy

rows = Toy.of_notebook(globals()).rows()

# %%
from pathlib import Path

if Path("broken-page").exists():
    raise OSError("the page is broken")
len(rows)
"""


def toy_book(fresh: Tree, target: Path, profile: str) -> Tree:
    """A copy of the tree whose only chapter is a toy: what Snakemake does with a grid, without the time of one.

    profile: the entries of the profile "toy", as YAML. The file `computed` gets a line (recipe, N, process) for each
    point that is computed. In the root, files `broken-N` and `broken-page` make a point or the page fail, and with
    `full-N` no file of more than 64 bytes can be written after that point.
    """
    tree = fresh.clone(target)
    chapters = tree.root / "advbook" / "chapters.py"
    text = chapters.read_text()
    assert text.count("\nPAGES = (") == 1
    only = "from advbook.experiments.toy import Toy\n\nCHAPTERS = {Toy.experiment: Toy}\nPAGES = ("
    chapters.write_text(text.replace("\nPAGES = (", f"\n{only}"))
    (tree.root / "advbook" / "experiments" / "toy.py").write_text(TOY_MODULE)
    (tree.root / "nbs" / f"{TOY}.py").write_text(TOY_NOTEBOOK)
    (tree.root / "nbs" / "profiles" / "toy.yml").write_text(f"{TOY}: {profile}\n")
    return tree


@pytest.fixture(scope="session")
def fresh(tmp_path_factory) -> Tree:
    """A copy of the tree in which nothing was computed."""
    tree = Tree(tmp_path_factory.mktemp("fresh") / "book")
    copy_tree(tree.root)
    return tree


@pytest.fixture(scope="session")
def built(fresh, tmp_path_factory) -> Tree:
    """A copy of the tree with the whole book of the tiny profile, computed without a disturbance. Do not change it."""
    tree = fresh.clone(tmp_path_factory.mktemp("built") / "book")
    tree.make("pages", "THREADS=1", cores=2)
    return tree
