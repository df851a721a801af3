"""advbook.chapters: plans, the command line, and the executed notebook that becomes a page."""

import ast
import os
import platform
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import jupytext
import nbformat
import pytest
from checkout import CHAPTER, PAGE, last_line
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from parity import published_states
from pydantic import Field
from requests import ConnectionError as NoConnection

from advbook import chapters, datasets, ledger, store
from advbook.experiments import Axis, ParameterError, Parameters

pytest_plugins = ["checkout"]

KERNEL = {"name": "python3", "display_name": "Python 3"}


def tagged(notebook, tag: str) -> list:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


# --- the parameters cell --------------------------------------------------------------------------------------


def assignments(chapter: str) -> dict[str, ast.AnnAssign]:
    """The parameters cell of a chapter: name -> annotated assignment; anything else in it is a failure."""
    (cell,) = tagged(jupytext.read(store.CHECKOUT / "nbs" / f"{chapter}.py"), "parameters")
    found = {}
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.AnnAssign), f"not an annotated assignment: {ast.unparse(node)}"
        assert isinstance(node.target, ast.Name)
        found[node.target.id] = node
    return found


@pytest.mark.parametrize("chapter", chapters.CHAPTERS)
def test_the_parameters_cell_has_every_parameter_as_a_typed_literal(chapter):
    fields = chapters.CHAPTERS[chapter].model_fields
    given = assignments(chapter)
    assert set(given) == {name.upper() for name in fields}
    for name, node in given.items():
        value = ast.literal_eval(node.value)
        assert type(value).__name__ == ast.unparse(node.annotation)
        assert type(value) is type(fields[name.lower()].default)


@pytest.mark.parametrize("chapter", chapters.CHAPTERS)
def test_the_parameters_cell_and_the_model_have_the_same_defaults(chapter):
    fields = chapters.CHAPTERS[chapter].model_fields
    given = {name: ast.literal_eval(node.value) for name, node in assignments(chapter).items()}
    assert given == {name.upper(): field.default for name, field in fields.items()}


def test_the_notebook_runs_by_default_what_the_quick_profile_runs():
    (point,) = chapters.plan("quick")[CHAPTER]
    assert {name: ast.literal_eval(node.value) for name, node in assignments(CHAPTER).items()} == {
        **point.injected(),
        "PROFILE": "own",
    }


@pytest.mark.parametrize("page", chapters.PAGES)
def test_a_notebook_has_one_cell_of_parameters_before_all_code(page):
    notebook = jupytext.read(store.CHECKOUT / "nbs" / f"{page}.py")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert tagged(notebook, "parameters") == code[:1]
    if page in chapters.CHAPTERS:
        (compute,) = tagged(notebook, "compute")
        text = code[1 : code.index(compute)]  # text that depends on the data set may stand before it
        assert all(cell.metadata.tags == ["remove-input"] for cell in text)


def test_every_parameter_says_what_it_means():
    for chapter in chapters.CHAPTERS.values():
        for name, field in chapter.model_fields.items():
            assert field.description or name in ("device", "profile")


# --- plans ----------------------------------------------------------------------------------------------------


def refused(profile: str, **overrides) -> str:
    with pytest.raises(ParameterError) as caught:
        chapters.plan(profile, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_overrides_replace_what_the_profile_says():
    plain, (changed,) = chapters.plan("tiny")[CHAPTER][0], chapters.plan("tiny", {"N": 400, "EPS": 0.1})[CHAPTER]
    assert (changed.n, changed.eps) == (400, 0.1)
    assert {**changed.point(), "n": plain.n, "eps": plain.eps} == plain.point()
    assert chapters.row_files([changed]) != chapters.row_files([plain])


def test_a_profile_is_no_part_of_where_rows_belong(home):
    (point,) = chapters.plan("tiny")[CHAPTER]
    (path,) = chapters.row_files([point])
    assert path.is_relative_to(home / "rows" / CHAPTER)
    assert chapters.row_files([point.model_copy(update={"profile": "own", "device": "cpu"})]) == [path]


def test_a_named_data_set_is_the_only_one():
    whole = chapters.plan("standard")
    assert len(whole[CHAPTER]) > 1
    for name, entries in chapters.plan("standard", {"DATASET": "mnist"}).items():
        assert {entry.dataset for entry in entries} == {"mnist"}
        assert entries == [entry for entry in whole[name] if entry.dataset == "mnist"], "the profile has its own for it"
    (point,) = chapters.plan("tiny", {"DATASET": "mnist"})[CHAPTER]
    assert point == chapters.plan("tiny")[CHAPTER][0].model_copy(update={"dataset": "mnist"}), "else the first one's"


def test_an_unknown_profile_is_refused():
    assert refused("quik") == "Unknown profile quik: did you mean quick? Known are paper, quick, standard, tiny."
    assert refused("../tiny").startswith("Unknown profile ../tiny: ")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"EPZ": 1}, "Unknown parameter EPZ: did you mean EPS? Known are "),
        ({"NEIGBOURS": 10}, "Unknown parameter NEIGBOURS: did you mean NEIGHBOURS?"),
        ({"n": 400}, "Unknown parameter n: did you mean N?"),
        ({"EPS": "abc"}, "Parameter EPS = 'abc' is not allowed: it should be a valid number"),
        ({"N": 400.5}, "Parameter N = 400.5 is not allowed: it should be a valid integer"),
        ({"EPS": -1}, "Parameter EPS = -1 is not allowed: it should be greater than or equal to 0"),
        ({"N": 10**7}, "Parameter N = 10000000 is not allowed: fonts has 960,000 training images."),
        ({"DATASET": "mnist", "N": 60_001}, "Parameter N = 60001 is not allowed: mnist has 60,000 training images."),
        ({"DATASET": "minst"}, "Parameter DATASET = 'minst' is not allowed: it should be 'fonts', 'emnist'"),
    ],
)
def test_a_wrong_override_is_refused_in_one_sentence(overrides, words):
    assert refused("tiny", **overrides).startswith(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("02_nothing: [{N: 100}]", "Unknown chapter 02_nothing in mine.yml: "),
        (f"{CHAPTER}: [{{NN: 100}}]", "Unknown parameter NN: did you mean N?"),
        (f"{CHAPTER}: [{{N: many}}]", "Parameter N = 'many' is not allowed: "),
        (f"{CHAPTER}: {{N: 100}}", f"Chapter {CHAPTER} in mine.yml is not allowed: it should be a list"),
        (f"{CHAPTER}: []", f"Chapter {CHAPTER} in mine.yml is not allowed: it should be a list of one or more"),
        (f"{CHAPTER}:", f"Chapter {CHAPTER} in mine.yml is not allowed: it should be a list"),
        (f"{CHAPTER}: [N, 100]", f"Chapter {CHAPTER} in mine.yml is not allowed: it should be a list"),
        (f"{CHAPTER}: [{{1: 100}}]", f"Chapter {CHAPTER} in mine.yml is not allowed: it should be a list"),
        (f"- {CHAPTER}", "Profile mine.yml is not allowed: it should name chapters"),
        (f"{CHAPTER}: [{{N: 100", "Profile mine.yml is not allowed: it is not valid YAML ("),
        (f"{CHAPTER}: [{{N: 100}}, {{N: 200}}, {{N: 100}}]", f"Profile mine is not allowed: two entries of {CHAPTER}"),
    ],
)
def test_a_wrong_profile_is_refused_in_one_sentence(tmp_path, monkeypatch, text, words):
    monkeypatch.setattr(chapters, "PROFILES", tmp_path)
    (tmp_path / "mine.yml").write_text(text)
    assert refused("mine").startswith(words)


def test_an_empty_profile_runs_the_defaults(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "PROFILES", tmp_path)
    (tmp_path / "mine.yml").write_text("# nothing yet\n")
    (point,) = chapters.plan("mine")[CHAPTER]
    assert point.point() == chapters.CHAPTERS[CHAPTER]().point()


# --- grids ----------------------------------------------------------------------------------------------------


class Grid(Parameters):
    """A chapter over a grid, which nobody computes."""

    experiment: ClassVar[str] = "98_grid"
    version: ClassVar[int] = 2
    axes: ClassVar[dict[str, str]] = {"recipes": "recipe", "n": "n"}

    dataset: Literal["fonts", "mnist"] = "fonts"
    recipes: Axis[Literal["normal", "other"]] = Field(["normal"])
    n: Axis[Annotated[int, Field(ge=1)]] = Field([10, 20])


GRID = "98_grid: [{RECIPES: [normal, other], N: [10, 20]}, {N: [30]}]"


@pytest.fixture
def grid(tmp_path, monkeypatch, home):
    """The grid as the only chapter, with two entries in the profile "mine"; nothing is computed or published yet."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mine.yml").write_text(GRID)
    monkeypatch.setattr(chapters, "PROFILES", tmp_path / "profiles")
    monkeypatch.setattr(chapters, "CHAPTERS", {"98_grid": Grid})
    monkeypatch.setattr(chapters, "PAGES", ("98_grid", "claims"))
    monkeypatch.setattr(ledger, "PUBLISHED", store.CHECKOUT / "_build" / "none")
    return chapters.plan("mine")["98_grid"]


def single(**values) -> Parameters:
    return Grid.of({"N": 10, **values})


def put(point: Parameters, seconds: float = 1, device: str = "CPU, 64 threads", version: int = 2) -> Path:
    """Rows of a point, as if they had been computed."""
    path = ledger.path(point.experiment, version, point.point())
    about = {"experiment": "98_grid", "version": version, **point.point(), "device": device, "seconds": seconds}
    ledger.write(path, about, [{"value": 1.0}])
    return path


def test_a_grids_row_files_are_those_of_all_points_of_all_entries(grid):
    own = [(p.recipes, p.n) for p in chapters.points(grid)]
    grid_of_the_page = [(["normal"], [10]), (["normal"], [20]), (["other"], [10]), (["other"], [20])]
    assert own == [*grid_of_the_page, (["normal"], [30])]
    paths = chapters.row_files(grid)
    assert paths == [put(p) for p in chapters.points(grid)]
    assert len(set(paths)) == 5
    assert chapters.row_files(grid[:1]) == paths[:4]


def test_points_that_an_override_makes_one_are_one(grid):
    (one, two) = chapters.plan("mine", {"N": 7, "RECIPES": "other"})["98_grid"]
    assert chapters.row_files([one, two]) == chapters.row_files([one]) == [put(single(N=7, RECIPES="other"))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "98_grid: [{N: [10, 20]}, {N: [20, 30]}]",
            "Profile mine is not allowed: two entries of 98_grid name",
        ),
        ("98_grid: [{RECIPES: [normal, othr]}]", "Parameter RECIPES = 'othr' is not allowed: it should be 'normal' or"),
        ("98_grid: [{N: [10, 0]}]", "Parameter N = 0 is not allowed: it should be greater than or equal to 1"),
        ("98_grid: [{N: [10, 10]}]", "Parameter N = [10, 10] is not allowed: a value stands there twice."),
        ("98_grid: [{N: []}]", "Parameter N = [] is not allowed: at least one value is needed."),
    ],
)
def test_a_wrong_grid_is_refused_in_one_sentence(grid, text, words):
    (chapters.PROFILES / "mine.yml").write_text(text)
    assert refused("mine").startswith(words)


@pytest.fixture
def asked(monkeypatch):
    """Which notebooks are run, with which parameters, instead of running them."""
    calls = []
    monkeypatch.setattr(chapters, "run", lambda page, parameters, output: calls.append((page, parameters, output)))
    return calls


def test_rows_are_those_of_the_page_or_of_any_point(grid, asked, capsys):
    assert chapters.main(["rows", "98_grid", "--profile", "mine"]) == 0
    assert chapters.main(["rows", "98_grid", "--profile", "mine", "--index", "2"]) == 0
    assert chapters.main(["rows", "98_grid", "--profile", "mine", "--index", "4"]) == 0
    assert [(given["RECIPES"], given["N"]) for _, given, _ in asked] == [
        (["normal", "other"], [10, 20]),
        (["other"], [10]),
        (["normal"], [30]),
    ]
    assert [output for _, _, output in asked] == [None] * 3
    assert chapters.main(["rows", "98_grid", "--profile", "mine", "--index", "5"]) == 1
    assert capsys.readouterr().err == "advbook: --index 5 is not allowed: the profile has points 0 to 4.\n"


def test_pages_get_the_first_entry_and_the_claims_its_row_files(grid, asked, home):
    assert chapters.main(["page", "98_grid", "--profile", "mine"]) == 0
    assert chapters.main(["page", "claims", "--profile", "mine"]) == 0
    (_, own, _), (_, claims, _) = asked
    assert own == grid[0].injected()
    assert [home / name for name in claims["ROWS"]] == chapters.row_files(grid)[:4]


def test_publish_takes_every_point(grid, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(store, "CHECKOUT", tmp_path)
    monkeypatch.setattr(ledger, "PUBLISHED", tmp_path / "results")
    paths = [put(point) for point in chapters.points(grid)]
    paths[3].unlink()
    assert chapters.main(["publish", "--profile", "mine"]) == 1
    out, err = capsys.readouterr()
    assert out.split() == [f"results/98_grid/{path.name}" for path in paths if path.exists()]
    assert err == f"advbook: 98_grid has no rows {paths[3].name} yet; compute them first.\n"
    assert len(ledger.published("98_grid", 2)) == 4


# --- what a sweep will cost -----------------------------------------------------------------------------------


def said(capsys) -> list[str]:
    assert chapters.main(["missing", "--profile", "mine", "-p", "DEVICE", "cpu"]) == 0
    return capsys.readouterr().out.splitlines()


def test_missing_counts_points_and_says_where_it_knows_no_cost(grid, capsys):
    assert said(capsys) == [
        "98_grid: 5 of 5 points missing, no estimate.",
        "All chapters: 5 points missing, no estimate.",
    ]
    for point in chapters.points(grid):
        put(point)
    assert said(capsys) == ["98_grid: 0 of 5 points missing.", "All chapters: 0 points missing."]


def test_one_known_n_is_scaled_and_two_give_a_line(grid, capsys):
    put(single(N=10), 60)  # of N = 20 and 30: 2 and 3 minutes
    own, everything, _ = said(capsys)
    assert own == "98_grid: 4 of 5 points missing, about 5.0 minutes, no estimate for 2 of them."
    assert everything == "All chapters: 4 points missing, about 5.0 minutes, no estimate for 2 of them."
    put(single(N=20), 70)  # of N = 30: 80 seconds
    put(single(N=20, RECIPES="other"), 120)  # of N = 10: half
    own, *_ = said(capsys)
    assert own == "98_grid: 2 of 5 points missing, about 2.3 minutes."


def test_a_line_that_falls_never_promises_less_than_was_ever_needed(grid):
    known = [{**single(N=n).point(), "device": "CPU", "seconds": s} for n, s in ((10, 50), (20, 20))]
    assert chapters._seconds(single(N=40), known) == 20


@pytest.mark.parametrize("unlike", [{"device": "NVIDIA H100"}, {"version": 1}])
def test_rows_of_another_device_or_version_promise_nothing(grid, capsys, unlike):
    path = put(single(N=40), 60, **unlike)
    content = path.read_bytes()
    assert said(capsys)[0] == "98_grid: 5 of 5 points missing, no estimate."
    assert path.read_bytes() == content


def test_rows_of_an_older_version_are_no_rows_of_a_point(grid, capsys):
    old = put(single(), 60, version=1)
    assert old not in chapters.row_files(grid)
    assert said(capsys)[0].startswith("98_grid: 5 of 5 points missing")


def test_rows_of_other_data_stand_in_until_there_are_own_and_published_ones_count(grid, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(ledger, "PUBLISHED", tmp_path / "results")
    ledger.publish(put(single(N=10, DATASET="mnist"), 600), "98_grid")
    put(single(N=10, DATASET="mnist"), 600).unlink()
    assert "about 60.0 minutes" in said(capsys)[0]  # N = 10, 20 and 30
    put(single(N=10), 60)
    assert "about 5.0 minutes" in said(capsys)[0]


def test_a_damaged_row_is_set_aside_and_missing(grid, capsys):
    for point in chapters.points(grid):
        path = put(point)
    path.write_bytes(path.read_bytes()[:-9])
    assert said(capsys)[0] == "98_grid: 1 of 5 points missing, about 0.0 minutes."
    assert not path.exists()


# --- one process a GPU ----------------------------------------------------------------------------------------


def test_a_job_gets_the_first_gpu_that_is_free_for_itself(grid, monkeypatch, home):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    seen = []
    monkeypatch.setattr(chapters, "run", lambda *given: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    job = ["rows", "98_grid", "--profile", "mine"]
    assert chapters.main(job) == 0
    assert chapters.main([*job, "--gpus", "2,5"]) == 0
    home.mkdir(exist_ok=True)
    with FileLock(home / f"gpu-2-{platform.node()}.lock"):
        assert chapters.main([*job, "--gpus", "2,5"]) == 0
    assert chapters.main([*job, "--gpus", "2,5"]) == 0
    assert seen == ["all", "2", "5", "2"]


# --- the command line -----------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No data, no cache and no network: every mirror fails at once, and is written down."""
    asked = []

    def fail(url, *rest):
        asked.append(url)
        raise NoConnection(url)

    monkeypatch.setattr("advbook.datasets.sources.retrieve", fail)
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return asked


@pytest.mark.parametrize("profile", ["tiny", "quick", "standard", "paper"])
def test_check_is_silent_where_all_is_well(profile, offline, capsys):
    assert chapters.main(["check", "--profile", profile]) == 0
    assert chapters.main(["check", "--profile", profile, "-p", "DATASET", "fonts", "-p", "N", "300"]) == 0
    assert capsys.readouterr() == ("", "")
    assert offline == []  # data that nobody named are not asked for


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", "EPZ", "1"], r"advbook: Unknown parameter EPZ: did you mean EPS\? Known are .*\."),
        (["-p", "N", "many"], r"advbook: Parameter N = 'many' is not allowed: .*\."),
        (["-p", "EPS", "-1"], r"advbook: Parameter EPS = -1 is not allowed: .*\."),
        (["--profile", "huge"], r"advbook: Unknown profile huge: .*\."),
        (["-p", "DATASET", "imagenet"], r"advbook: Parameter DATASET = 'imagenet' is not allowed: .*\."),
    ],
)
def test_check_ends_with_one_sentence(arguments, sentence, capsys):
    assert chapters.main(["check", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(sentence, err.rstrip("\n"))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "emnist"])
def test_a_data_set_that_is_not_there_ends_with_one_sentence(name, offline, capsys):
    assert chapters.main(["check", "-p", "DATASET", name]) == 1
    _, err = capsys.readouterr()
    assert re.fullmatch(rf"advbook: {name}: .* by hand, set ADVBOOK_DATA .*", err.rstrip("\n"))
    assert len(offline) == len(datasets.DATASETS[name].mirrors)


def test_a_data_folder_that_is_not_there_is_named(offline, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path / "nowhere"))
    assert chapters.main(["check", "-p", "DATASET", "mnist"]) == 1
    _, err = capsys.readouterr()
    assert "nowhere" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("value", ["[1, 2", "{", "a: b: c"])
def test_a_value_that_is_no_yaml_ends_with_one_sentence(value, capsys):
    assert chapters.main(["check", "-p", "EPS", value]) == 1
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert "EPS" in err


def test_a_point_that_the_profile_has_not_ends_with_one_sentence(capsys):
    assert chapters.main(["rows", CHAPTER, "--profile", "tiny", "--index", "7"]) == 1
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 1


def test_publish_says_what_is_missing(home, capsys):
    assert chapters.main(["publish", "--profile", "quick"]) == 1
    _, err = capsys.readouterr()
    name = r"(?:fonts|fonts_easy|mixture)-n\d+-\w+\.json"
    assert re.fullmatch(rf"(advbook: \w+ has no rows {name} yet; compute them first\.\n)+", err)
    assert all(f"advbook: {chapter} has no rows" in err for chapter in chapters.CHAPTERS)


def test_the_profile_for_tests_is_never_published(home, capsys):
    assert chapters.main(["publish", "--profile", "tiny"]) == 1
    assert "tiny is for tests" in capsys.readouterr().err


# --- tidying --------------------------------------------------------------------------------------------------


def executed() -> nbformat.NotebookNode:
    """A notebook as papermill leaves it."""
    stamps = {"papermill": {"duration": 1.5}, "execution": {"iopub.execute_input": "2024-01-01"}}
    outputs = [
        new_output("stream", name="stderr", text="50%|#####"),
        new_output("stream", name="stdout", text="kept"),
        new_output("display_data", {"text/plain": "kept too"}),
    ]
    cells = [
        new_markdown_cell("# Title", metadata=dict(stamps)),
        new_code_cell("N: int = 1", metadata={**stamps, "tags": ["parameters"]}),
        new_code_cell("# Parameters\nN = 2\n", metadata={**stamps, "tags": ["injected-parameters"]}),
        new_code_cell("print()", metadata=dict(stamps), outputs=outputs),
    ]
    return new_notebook(cells=cells, metadata={"papermill": {"input_path": "x"}, "kernelspec": KERNEL})


def test_tidy_leaves_no_stamps():
    tidied = chapters.tidy(executed())
    assert dict(tidied.metadata) == {"kernelspec": KERNEL}
    assert not any({"papermill", "execution"} & set(cell.metadata) for cell in tidied.cells)
    nbformat.validate(tidied)


def test_tidy_drops_progress_bars_and_nothing_else():
    outputs = chapters.tidy(executed()).cells[-1].outputs
    assert [output.output_type for output in outputs] == ["stream", "display_data"]
    assert outputs[0].text == "kept"


def test_tidy_hides_what_papermill_injected():
    _, parameters, injected, _ = chapters.tidy(executed()).cells
    assert "hide-input" in parameters.metadata.tags
    assert "remove-cell" in injected.metadata.tags
    assert injected.source == "# Parameters\nN = 2\n"


# --- a page ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(built) -> nbformat.NotebookNode:
    """The executed notebook of the first chapter, as the command `page` leaves it."""
    return nbformat.read(built.root / PAGE, as_version=4)


@pytest.mark.slow
def test_a_page_is_a_valid_notebook_without_errors(page):
    nbformat.validate(page)
    code = [cell for cell in page.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert all(cell.execution_count for cell in code)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) >= 6


@pytest.mark.slow
def test_a_page_names_no_place_on_this_machine(built):
    text = (built.root / PAGE).read_text()
    for place in (str(built.root), str(store.CHECKOUT), str(Path.home()), str(Path(datasets.__file__).parents[2])):
        assert place not in text
    assert not re.search(r'[\s"\'(=]/(?:tmp|home|root|usr|var|private)/', text)


@pytest.mark.slow
def test_a_page_has_both_interactive_figures_with_their_state(built, page):
    states = published_states(built.root / PAGE)
    assert sorted("decoder" if "decoder" in state else "walk" for state in states) == ["decoder", "walk"]
    shown = [output for cell in page.cells for output in cell.get("outputs", []) if "data" in output]
    views = [output.data for output in shown if "application/vnd.jupyter.widget-view+json" in output.data]
    assert len(views) == 2
    assert all("image/png" in view for view in views)


@pytest.mark.slow
def test_every_number_in_the_text_is_glued_and_finite(page):
    text = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    used = set(re.findall(r"\{glue:text\}`([\w-]+)", text))
    outputs = [output for cell in page.cells for output in cell.get("outputs", [])]
    glued = {o.metadata.scrapbook.name: o.data for o in outputs if "scrapbook" in o.get("metadata", {})}
    assert len(used) > 10
    assert used - set(glued) == set()
    for name in used:
        (value,) = glued[name].values()
        assert not re.search(r"\b(nan|inf|None)\b", value), f"{name} is {value}"


@pytest.mark.slow
def test_a_page_ends_with_how_it_was_computed(page):
    boxes = [
        output.data["text/markdown"]
        for cell in page.cells
        for output in cell.get("outputs", [])
        if "text/markdown" in output.get("data", {})
    ]
    assert "How this page was computed" in boxes[-1]
    assert "Profile **tiny**" in boxes[-1]
    assert "| `N` | 100 | 1000 |" in boxes[-1] or "| `N` | 100 | 2500 |" in boxes[-1]
    assert sum("Verdict: " in box for box in boxes) == 2


@pytest.mark.slow
def test_a_cell_that_fails_leaves_the_earlier_page(built, tmp_path):
    tree = built.clone(tmp_path / "book")
    before = (tree.root / PAGE).read_bytes()
    kept = {path: path.stat().st_mtime_ns for path in tree.root.rglob(".advbook/*/**/*.*[!k]") if path.is_file()}
    assert {path.parts[-2] for path in kept} == {*chapters.CHAPTERS, "arrays", "models"}
    notebook = tree.root / "nbs" / f"{CHAPTER}.py"
    failing = '# %% tags=["remove-cell"]\nraise OSError("the disk is gone")\n\n# %% tags=["remove-cell"]\nimport numpy'
    text = notebook.read_text()
    assert text.count('# %% tags=["remove-cell"]\nimport numpy') == 1
    notebook.write_text(text.replace('# %% tags=["remove-cell"]\nimport numpy', failing))

    status, output = tree.python("-m", "advbook.chapters", "page", CHAPTER, "--profile", "tiny")
    assert (status, last_line(output)) == (1, "advbook: the disk is gone")
    assert (tree.root / PAGE).read_bytes() == before

    status, output = tree.run(*tree.snakemake("pages"))
    assert status != 0
    assert "advbook: the disk is gone" in output
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for name in ("_build/html/index.html", "_build/advbook-site.zip"):
        assert (tree.root / name).read_bytes() == (built.root / name).read_bytes()
