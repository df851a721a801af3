"""The Snakefile as the Makefile calls it: what is computed, what is kept, what a kill or damage costs."""

import re
import sys
import time

import psutil
import pytest
from checkout import CHAPTER, PAGE, Tree, finish, kill_tree, last_line, wait_for

pytest_plugins = ["checkout"]
pytestmark = pytest.mark.slow


def files(tree: Tree, *patterns: str) -> dict[str, int]:
    """Times of files that must not be touched."""
    found = (path for pattern in patterns for path in tree.root.glob(pattern) if path.is_file())
    return {str(path.relative_to(tree.root)): path.stat().st_mtime_ns for path in found}


def test_the_copy_is_what_runs(built, tmp_path):
    code = "import advbook; from advbook import store; print(advbook.__file__); print(store.home())"
    status, output = built.run("sh", "-c", f'cd "{tmp_path}" && exec "$0" -c "{code}"', sys.executable)
    assert (status, output.split()) == (0, [f"{built.root}/advbook/__init__.py", f"{built.root}/.advbook"])


def test_a_sweep_gives_the_rows_of_every_point(built):
    (row,) = built.rows().values()
    assert (row["about"]["dataset"], row["about"]["n"], row["about"]["experiment"]) == ("fonts", 100, CHAPTER)
    assert {one["what"] for one in row["rows"]} >= {"success", "distance"}
    assert (built.root / ".advbook" / "arrays" / f"{row['arrays']}.safetensors").is_file()
    assert len(built.models()) == row["about"]["seeds"] == 2


def test_a_second_start_has_nothing_to_do(built):
    before = files(built, ".advbook/**/*", "_build/**/*", "book/chapters/*")
    assert before
    began = time.perf_counter()
    output = built.make("pages")
    print(f"nothing to do: {time.perf_counter() - began:.1f} s")
    assert "Nothing to be done" in output
    assert files(built, ".advbook/**/*", "_build/**/*", "book/chapters/*") == before


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

    assert tree.rows() == built.rows()
    assert {path: path.stat().st_mtime_ns for path in tree.models()} == trained
    assert (tree.root / PAGE).is_file()
    assert not list(tree.root.glob(".advbook/**/*.damaged"))


def test_damage_is_set_aside_and_only_that_is_computed_again(built, tmp_path):
    tree = built.clone(tmp_path / "book")
    (row,) = tree.root.glob(".advbook/rows/*/*.json")
    intact, damaged = tree.models()
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
    output = fresh.make("sweep", extra="-n", profile=profile)
    points = (fresh.root / "nbs" / "profiles" / f"{profile}.yml").read_text().count("\n  - {")
    assert points >= 4
    assert int(re.findall(r"^total +(\d+)$", output, re.MULTILINE)[-1]) == points + 1  # and the rule `sweep` itself
    assert len(set(re.findall(rf"point_{CHAPTER}_\d+", output))) == points
