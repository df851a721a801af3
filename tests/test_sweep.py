"""The Snakefile as the Makefile calls it: what is computed, what is kept, what a kill or damage costs."""

import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from checkout import CHAPTER, PAGE, TOY, Tree, finish, kill_tree, last_line, toy_book, wait_for
from safetensors import safe_open

from advbook import chapters

pytest_plugins = ["checkout"]
pytestmark = pytest.mark.slow


def files(tree: Tree, *patterns: str) -> dict[str, int]:
    """Times of files that must not be touched."""
    found = (path for pattern in patterns for path in tree.root.glob(pattern) if path.is_file())
    return {str(path.relative_to(tree.root)): path.stat().st_mtime_ns for path in found}


def of_chapter(tree: Tree) -> dict[str, dict[str, Any]]:
    """The row files of the first chapter."""
    return {name: row for name, row in tree.rows().items() if row["about"]["experiment"] == CHAPTER}


def recipe(network: Path) -> dict[str, Any]:
    """What a network's file says of its training."""
    with safe_open(network, framework="pt") as file:
        return dict(json.loads(file.metadata()["recipe"]))


def test_the_copy_is_what_runs(built, tmp_path):
    code = "import advbook; from advbook import store; print(advbook.__file__); print(store.home())"
    status, output = built.run("sh", "-c", f'cd "{tmp_path}" && exec "$0" -c "{code}"', sys.executable)
    assert (status, output.split()) == (0, [f"{built.root}/advbook/__init__.py", f"{built.root}/.advbook"])


def test_a_book_has_the_rows_of_every_point(built):
    planned = chapters.plan("tiny").values()
    assert set(built.rows()) == {path.name for entries in planned for path in chapters.row_files(entries)}
    (row,) = of_chapter(built).values()
    assert (row["about"]["dataset"], row["about"]["n"], row["about"]["experiment"]) == ("fonts", 100, CHAPTER)
    assert {one["what"] for one in row["rows"]} >= {"success", "distance"}
    assert (built.root / ".advbook" / "arrays" / f"{row['arrays']}.safetensors").is_file()


def test_a_second_start_has_nothing_to_do(built):
    before = files(built, ".advbook/**/*", "_build/**/*", "book/chapters/*")
    assert before
    began = time.perf_counter()
    output = built.make("pages")
    print(f"nothing to do: {time.perf_counter() - began:.1f} s")
    assert "Nothing to be done" in output
    assert files(built, ".advbook/**/*", "_build/**/*", "book/chapters/*") == before


def test_a_row_that_is_gone_is_computed_again_and_its_pages_drawn(built):
    (row,) = built.root.glob(f".advbook/rows/{CHAPTER}/*.json")
    aside = row.rename(row.with_suffix(".aside"))
    try:
        output = built.make("pages", extra="-n")
    finally:
        aside.rename(row)
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE))
    assert jobs == {f"rows_{CHAPTER}": "1", "chapter": "2", "site": "1", "pages": "1", "total": "5"}


def test_killed_twice_it_ends_with_the_same_rows(fresh, built, tmp_path):
    tree = fresh.clone(tmp_path / "book")
    command = tree.snakemake(PAGE)

    # Driver, papermill and kernel, once the networks are in training.
    first = tree.start(*command)
    wait_for(lambda: bool(list(tree.root.glob(".advbook/models/*.lock"))), first)
    kill_tree(first)
    assert tree.rows() == {}
    assert not (tree.root / PAGE).exists()

    # The driver alone, once the networks are there, so that what it started goes on beside the next run.
    second = tree.start(*command)
    wait_for(lambda: len(tree.models()) == 2, second)
    trained = {path: path.stat().st_mtime_ns for path in tree.models()}
    orphans = psutil.Process(second.pid).children(recursive=True)
    assert orphans
    second.kill()
    try:
        assert tree.rows() == {}
        assert finish(tree.start(*command))[0] == 0
        psutil.wait_procs(orphans, timeout=60)
    finally:
        for orphan in orphans:
            if orphan.is_running():
                orphan.kill()
        second.communicate()

    assert tree.rows() == of_chapter(built)
    assert {path: path.stat().st_mtime_ns for path in tree.models()} == trained
    assert (tree.root / PAGE).is_file()
    assert not list(tree.root.glob(".advbook/**/*.damaged"))


def test_damage_is_set_aside_and_only_that_is_computed_again(built, tmp_path):
    tree = built.clone(tmp_path / "book")
    (row,) = tree.root.glob(f".advbook/rows/{CHAPTER}/*.json")
    about = of_chapter(tree)[row.name]["about"]
    asked = ("normal", about["epochs"], about["n"])
    own = [(path, recipe(path)) for path in tree.models()]
    intact, damaged = (path for path, r in own if (r["training"], r["schedule"]["epochs"], r["data"][-1]) == asked)
    kept = intact.stat().st_mtime_ns
    for path in (row, damaged):
        path.write_bytes(path.read_bytes()[:-100])

    # The page of claims only reads rows. It must wait until the damaged ones are there again.
    output = tree.make("book/chapters/claims.ipynb")
    assert f"{row.name} is damaged (it is not whole); it was set aside as {row.name}.damaged." in output
    assert f"{damaged.name} is damaged" in output
    assert {path.name for path in tree.root.rglob("*.damaged")} == {f"{row.name}.damaged", f"{damaged.name}.damaged"}
    assert tree.rows() == built.rows()
    assert intact.stat().st_mtime_ns == kept
    assert damaged.stat().st_size == (built.root / damaged.relative_to(tree.root)).stat().st_size
    assert "N = 100" in (tree.root / "book/chapters/claims.ipynb").read_text()


# --- parameters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("EPZ=1", r"advbook: Unknown parameter EPZ: did you mean EPS\? Known are .*\bSTEPS\b.*\."),
        ("EPS=abc", r"advbook: Parameter EPS = 'abc' is not allowed: it should be a valid number.*\."),
    ],
)
def test_a_wrong_setting_ends_in_one_sentence_before_anything_runs(fresh, setting, sentence):
    command = [*fresh.snakemake("sweep"), setting]
    status, output = fresh.run(*command)
    assert status != 0
    assert re.fullmatch(sentence, last_line(output)), output
    assert "Traceback" not in output
    assert not (fresh.root / ".advbook").exists()


def test_what_make_is_told_reaches_the_points(fresh):
    output = fresh.make("sweep", "N=120", "DATASET=mnist", extra="--summary")
    assert "/mnist-n120-" in output


@pytest.mark.parametrize("profile", ["standard", "paper"])
def test_a_dry_run_counts_the_points(fresh, profile):
    output = fresh.make("sweep", "GPUS=0,1", extra="-n", profile=profile)
    points = {name: len(chapters.row_files(entries)) for name, entries in chapters.plan(profile).items()}
    assert points[CHAPTER] >= 4
    for name, number in points.items():
        assert len(set(re.findall(rf"point_{name}_\d+", output))) == number
    total = int(re.findall(r"^total +(\d+)$", output, re.MULTILINE)[-1])
    assert total == sum(points.values()) + 1  # and the rule `sweep` itself


def test_make_sweep_first_says_what_is_missing(fresh):
    said = subprocess.run(["make", "-n", "sweep"], cwd=fresh.root, env=fresh.env(), capture_output=True, text=True)
    first, second = (line for line in said.stdout.splitlines() if line.startswith(".venv/bin/") and "pip" not in line)
    assert first.startswith(".venv/bin/python -m advbook.chapters missing --profile quick")
    assert second.startswith(".venv/bin/snakemake ")


# --- grids ----------------------------------------------------------------------------------------------------

GRID = "[{RECIPES: [normal, other], N: [1, 2]}, {N: 7}]"  # four points of the page, and one more
TOY_PAGE = f"book/chapters/{TOY}.ipynb"


def computed(tree: Tree) -> list[tuple[str, int]]:
    """(recipe, N) of every computation of a toy, in their order."""
    lines = (tree.root / "computed").read_text().splitlines() if (tree.root / "computed").exists() else []
    return [(recipe, int(n)) for recipe, n, _ in map(str.split, lines)]


def test_a_page_gets_its_grid_from_one_kernel_and_only_what_is_missing(fresh, tmp_path):
    tree = toy_book(fresh, tmp_path / "book", GRID)
    (tree.root / "broken-2").touch()
    command = tree.snakemake(TOY_PAGE, profile="toy")
    status, output = tree.run(*command)
    assert status != 0
    assert "advbook: point 2 is broken\n" in output
    assert computed(tree) == [("normal", 1)]
    assert not (tree.root / TOY_PAGE).exists()
    assert len(tree.rows()) == 1

    (tree.root / "broken-2").unlink()
    kept = files(tree, ".advbook/rows/*/*.json")
    tree.make(TOY_PAGE, profile="toy")
    assert computed(tree) == [("normal", 1), ("normal", 2), ("other", 1), ("other", 2)]
    assert len({line.split()[2] for line in (tree.root / "computed").read_text().splitlines()[1:]}) == 1
    assert kept.items() <= files(tree, ".advbook/rows/*/*.json").items()
    assert (tree.root / TOY_PAGE).is_file()

    # One row is gone, and only that is computed; a sweep takes the one point that is on no page.
    (name,) = (name for name, row in tree.rows().items() if (row["about"]["recipe"], row["about"]["n"]) == ("other", 2))
    gone = tree.root / ".advbook" / "rows" / TOY / name
    gone.unlink()
    tree.make(str(gone), profile="toy", cores=2)
    tree.make("sweep", "THREADS=1", profile="toy", cores=2)
    assert computed(tree)[4:] == [("other", 2), ("normal", 7)]
    devices = {(row["about"]["recipe"], row["about"]["n"]): row["about"]["device"] for row in tree.rows().values()}
    assert devices["other", 2] == "CPU, 2 threads"
    assert devices["normal", 7] == "CPU, 1 threads"


def test_a_page_that_could_not_be_drawn_stays_as_it_was_and_is_drawn_next_time(fresh, tmp_path):
    tree = toy_book(fresh, tmp_path / "book", "[{N: 1}]")
    tree.make(TOY_PAGE, profile="toy")
    before = files(tree, TOY_PAGE)
    with (tree.root / "nbs" / f"{TOY}.py").open("a") as notebook:
        notebook.write("# changed\n")
    (tree.root / "broken-page").touch()
    for _ in range(2):  # it must not pass for new because an attempt was made
        status, output = tree.run(*tree.snakemake(TOY_PAGE, profile="toy"))
        assert status != 0
        assert "advbook: the page is broken\n" in output
        assert files(tree, TOY_PAGE) == before
    (tree.root / "broken-page").unlink()
    tree.make(TOY_PAGE, profile="toy")
    assert files(tree, TOY_PAGE) != before
    assert computed(tree) == [("normal", 1)]


def test_two_sweeps_at_once_compute_nothing_twice(fresh, tmp_path):
    tree = toy_book(fresh, tmp_path / "book", GRID)
    sweeps = [
        tree.start(*tree.snakemake("sweep", profile="toy", cores=1)),
        tree.start(*tree.snakemake("sweep", "THREADS=1", profile="toy", cores=2)),
    ]
    ends = [finish(sweep) for sweep in sweeps]
    assert [status for status, _ in ends] == [0, 0], ends
    assert sorted(computed(tree)) == [("normal", 1), ("normal", 2), ("normal", 7), ("other", 1), ("other", 2)]
    assert len(tree.rows()) == 5
    assert not list(tree.root.glob(".advbook/**/*.damaged"))


def test_a_full_disk_leaves_rows_whole_or_absent_and_the_others_go_on(fresh, tmp_path):
    tree = toy_book(fresh, tmp_path / "book", "[{N: [1, 2, 3]}]")
    (tree.root / "full-2").touch()
    status, output = tree.run(*tree.snakemake("sweep", "RETRIES=0", profile="toy"))
    assert status != 0
    (sentence,) = (line for line in output.splitlines() if line.startswith("advbook: "))
    assert re.fullmatch(r"advbook: \w+\.safetensors could not be written to .* \(File too large\); .*kept\.", sentence)
    assert {row["about"]["n"] for row in tree.rows().values()} == {1, 3}
    assert not [path for path in tree.root.glob(".advbook/**/*") if path.suffix in {".part", ".damaged"}]

    (tree.root / "full-2").unlink()
    tree.make("sweep", profile="toy")
    assert sorted(computed(tree)) == [("normal", 1), ("normal", 2), ("normal", 2), ("normal", 3)]


# --- a sweep is killed ----------------------------------------------------------------------------------------


def more_points(tree: Tree, *counts: int) -> Tree:
    """The tree with a profile "more": tiny, and points of the first chapter with other N."""
    profiles = tree.root / "nbs" / "profiles"
    content = yaml.safe_load((profiles / "tiny.yml").read_text())
    (entry,) = content[CHAPTER]
    content[CHAPTER] = [{**entry, "N": n} for n in (entry["N"], *counts)]
    (profiles / "more.yml").write_text(yaml.safe_dump(content))
    return tree


def kernels(driver: psutil.Popen) -> set[psutil.Process]:
    """The kernels that a driver's jobs run."""
    found = set()
    for one in psutil.Process(driver.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ends meanwhile
            if "ipykernel_launcher" in one.cmdline():
                found.add(one)
    return found


def test_killed_workers_and_a_killed_driver_change_no_row(built, tmp_path):
    undisturbed = more_points(built.clone(tmp_path / "undisturbed"), 110, 120)
    undisturbed.make("sweep", "THREADS=1", profile="more", cores=2)
    tree = more_points(built.clone(tmp_path / "book"), 110, 120)
    command = tree.snakemake("sweep", "THREADS=1", profile="more", cores=2)

    def begun() -> bool:
        return all(list(tree.root.glob(f".advbook/rows/*/*-n{n}-*.lock")) for n in (110, 120))

    first = tree.start(*command)
    wait_for(begun, first)
    killed = kernels(first)
    orphans = []
    try:
        assert killed
        for kernel in killed:
            kernel.kill()
        wait_for(lambda: bool(kernels(first) - killed), first)  # it starts the points again by itself
        orphans = psutil.Process(first.pid).children(recursive=True)
        first.kill()  # the driver alone, so that what it started goes on beside the next run
        status, output = finish(tree.start(*command))
        assert status == 0, output
        psutil.wait_procs(orphans, timeout=60)
    finally:
        for orphan in orphans:
            if orphan.is_running():
                orphan.kill()
        first.kill()
        said, _ = first.communicate()
    assert "The kernel died" in said
    assert len(undisturbed.rows()) == len(built.rows()) + 2
    assert tree.rows() == undisturbed.rows()
    assert len(tree.models()) == len(undisturbed.models()) == len(built.models()) + 4
    assert not list(tree.root.glob(".advbook/**/*.damaged"))
