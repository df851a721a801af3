"""advbook.pages: verdicts, tables and provenance as Markdown, from synthetic rows."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt

from advbook import chapters, pages, store
from advbook.experiments.generalization import GeneralizationLink
from advbook.experiments.off_manifold import OffManifold
from advbook.ledger import Verdict

CLAIM = "Adversarial examples leave the manifold"


def verdict(value: float, low: float, high: float) -> Verdict:
    return Verdict(CLAIM, "median ratio", value, low, high, 0.9)


VERDICTS = {
    "supported": verdict(0.95, 0.9, 0.99),
    "not supported": verdict(0.5, 0.4, 0.8999),
    "undecided": verdict(0.9, 0.85, 0.95),
}
NAN = float("nan")


def table_of(text: str) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of a Markdown table, as a Markdown parser reads them."""
    tokens = MarkdownIt().enable("table").parse(text)
    cells = [(tokens[i - 1].type, token.content) for i, token in enumerate(tokens) if token.type == "inline"]
    head = [content for kind, content in cells if kind == "th_open"]
    body = [content for kind, content in cells if kind == "td_open"]
    assert len(head) + len(body) == len(cells), "something stands outside of the table"
    return head, [body[i : i + len(head)] for i in range(0, len(body), len(head))]


# --- verdicts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", VERDICTS)
def test_a_verdict_is_a_box_with_its_numbers(outcome):
    v = VERDICTS[outcome]
    text = pages.verdict(v).data
    lines = text.splitlines()
    assert lines[0] == f":::{{admonition}} Verdict: {outcome}"
    assert lines[1] == f":class: verdict {outcome.replace(' ', '-')}"
    assert lines[-1] == ":::"
    assert f"{CLAIM}: **{outcome}**" in text
    for number in (f"{v.value:.4f}", f"from {v.low:.4f}", f"to {v.high:.4f}", "at least 0.9"):
        assert number in text


def test_the_colours_of_all_outcomes_are_in_the_style_sheet():
    css = (store.CHECKOUT / "book" / "_static" / "book.css").read_text()
    for outcome in VERDICTS:
        assert f".{outcome.replace(' ', '-')}" in css


@pytest.mark.parametrize("numbers", [(NAN, NAN, NAN), (0.95, NAN, NAN), (0.95, 0.92, NAN), (np.inf, 0.95, np.inf)])
def test_a_verdict_without_numbers_is_undecided(numbers):
    text = pages.verdict(verdict(*numbers)).data
    assert text.startswith(":::{admonition} Verdict: undecided\n")
    assert "supported**" not in text


@pytest.mark.parametrize(("attack", "words"), [("paper", "the paper's attack"), ("strong", "the strong attack")])
def test_a_verdict_names_its_attack(attack, words):
    text = pages.verdict(Verdict(CLAIM, "rate", 0.95, 0.9, 0.99, 0.9, attack=attack)).data
    assert text.startswith(f":::{{admonition}} Verdict with {words}: supported\n")


def test_a_verdict_of_at_most_says_so():
    text = pages.verdict(Verdict(CLAIM, "range", 0.05, 0.01, 0.09, 0.1, at_most=True)).data
    assert "**supported**" in text
    assert "is at most 0.1, *not supported* if all of it is more" in text


def test_a_void_verdict_is_undecided_and_says_why():
    v = Verdict(CLAIM, "range", 0.0, 0.0, 0.0, 0.1, at_most=True, void="every rate is above 0.95")
    assert v.outcome == "undecided"
    assert "Here it is undecided because every rate is above 0.95." in pages.verdict(v).data
    ((_, cell, _, _),) = table_of(pages.verdict_table([("run", "04", v)]).data)[1]
    assert cell.endswith("threshold: at most 0.1; every rate is above 0.95")


def test_a_table_of_verdicts_has_a_line_a_claim_and_run():
    lines = [(f"run {i}", "01_chapter", v) for i, v in enumerate(VERDICTS.values())]
    head, body = table_of(pages.verdict_table(lines).data)
    assert head == ["claim", "as in the paper", "with the strong attack", "runs"]
    assert [row[0] for row in body] == [f"[{CLAIM}](01_chapter.ipynb)"] * 3
    assert [row[3] for row in body] == ["run 0", "run 1", "run 2"]
    assert [row[2] for row in body] == ["-"] * 3
    for row, outcome in zip(body, VERDICTS, strict=True):
        assert row[1].startswith(f"**{outcome}**: median ratio ")
    assert body[0][1].endswith("0.950 (0.900 to 0.990); threshold: at least 0.9")


def test_both_attacks_of_a_claim_share_a_line():
    verdicts = [
        Verdict(CLAIM, "average rate", 0.95, 0.9, 0.99, 0.9, attack="paper"),
        Verdict(CLAIM, "worst rate", 0.2, 0.1, 0.3, 0.9, attack="strong"),
        Verdict(CLAIM, "worst rate, small", NAN, NAN, NAN, 0.9, at_most=True, attack="strong"),
    ]
    _, body = table_of(pages.verdict_table([("run", "02", v) for v in verdicts]).data)
    ((_, paper, strong, _),) = body
    assert paper.startswith("**supported**: average rate")
    first, second = strong.split("<br>")
    assert first.startswith("**not supported**: worst rate")
    assert second == "**undecided**: worst rate, small no value; threshold: at most 0.9"


def test_outcomes_have_a_line_a_claim_and_a_column_a_data_set():
    strong = Verdict(CLAIM, "worst rate", 0.2, 0.1, 0.3, 0.9, attack="strong")
    other = Verdict("Another claim", "rate", NAN, NAN, NAN, 0.9)
    verdicts = [("A", "01", VERDICTS["supported"]), ("A", "01", strong), ("B", "01", VERDICTS["undecided"])]
    verdicts += [("B", "01", VERDICTS["undecided"]), ("B", "01", VERDICTS["not supported"]), ("B", "02", other)]
    head, body = table_of(pages.outcomes(verdicts).data)
    assert head == ["claim", "A", "B"]
    assert body == [
        [f"[{CLAIM}](01.ipynb)", "supported<br>strong: not supported", "undecided, not supported"],
        ["[Another claim](02.ipynb)", "-", "not measured"],
    ]


def test_an_outcome_of_the_strong_attack_alone_has_no_empty_line():
    strong = Verdict(CLAIM, "rate", 0.95, 0.9, 0.99, 0.9, attack="strong")
    assert table_of(pages.outcomes([("A", "01", strong)]).data)[1] == [[f"[{CLAIM}](01.ipynb)", "strong: supported"]]


def test_pipes_in_a_table_of_verdicts_do_not_split_cells():
    v = Verdict("a | b", "dist / |delta|", 1, 1, 1, 1)
    _, (row,) = table_of(pages.verdict_table([("N | 100", "01", v)]).data)
    assert row[0] == "[a | b](01.ipynb)"
    assert "dist / |delta|" in row[1]
    assert row[3] == "N | 100"


# --- tables ---------------------------------------------------------------------------------------------------


def test_a_table_has_the_columns_asked_for_in_their_order():
    rows = pd.DataFrame({"b": [0.12345, 2.0], "a": ["x", "y"], "hidden": [1, 2]})
    head, body = table_of(pages.table(rows, {"a": "name", "b": "value"}).data)
    assert head == ["name", "value"]
    assert body == [["x", "0.123"], ["y", "2.000"]]


def test_missing_values_are_dashes():
    rows = pd.DataFrame({"a": [1.5, None, NAN], "b": ["x", None, NAN], "count": [3.0, NAN, NAN]})
    _, body = table_of(pages.table(rows, {"a": "a", "b": "b", "count": "examples", "gone": "gone"}).data)
    assert body == [["1.500", "x", "3", "-"], ["-", "-", "-", "-"], ["-", "-", "-", "-"]]


def test_counts_are_whole_numbers():
    rows = pd.DataFrame({"count": [1200.0, 7.0], "seed": [0, 1]})
    _, body = table_of(pages.table(rows, {"seed": "network", "count": "examples"}, number=".5f").data)
    assert body == [["0", "1200"], ["1", "7"]]


def test_pipes_in_a_table_do_not_split_cells():
    rows = pd.DataFrame({"kind": ["a|b"], "value": [1.0]})
    head, body = table_of(pages.table(rows, {"kind": "kind | sort", "value": "v"}).data)
    assert head == ["kind | sort", "v"]
    assert body == [["a|b", "1.000"]]


def test_an_empty_table_is_its_heading():
    head, body = table_of(pages.table(pd.DataFrame({"a": []}), {"a": "name"}).data)
    assert (head, body) == (["name"], [])


@pytest.mark.parametrize("value", [None, NAN, np.float64("nan")])
def test_every_kind_of_nothing_is_a_dash(value):
    assert pages.shown(value, ".3f") == "-"


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.500"), (np.float64(0.5), "0.500"), (3, "3"), ("a", "a")])
def test_a_value_as_text(value, text):
    assert pages.shown(value, ".3f") == text


# --- where numbers come from ----------------------------------------------------------------------------------


P = OffManifold.of({"N": 400, "EPS": 0.2, "PROFILE": "tiny"})
ROWS = pd.DataFrame([{**P.point(), "device": "CPU, 1 threads", "torch": "2.13.0", "seconds": 12.4, "version": 1}])


def test_provenance_names_every_parameter_with_value_and_default():
    text = pages.provenance(P, ROWS).data
    _, body = table_of("\n".join(line for line in text.splitlines() if line.startswith("|")))
    told = {row[0].strip("`"): row[1:] for row in body}
    assert set(told) == {name.upper() for name in P.point()}
    for name, value in P.point().items():
        field = OffManifold.model_fields[name]
        assert told[name.upper()] == [str(value), str(field.default), field.description]


def test_provenance_names_profile_device_time_version_and_a_command_that_is_valid():
    text = pages.provenance(P, ROWS).data
    for words in (
        "How this page was computed",
        "**tiny**",
        "CPU, 1 threads",
        "torch 2.13.0",
        "12 seconds",
        "version 1",
    ):
        assert words in text
    command = re.search(r"^papermill (\S+) out\.ipynb (?:-p \w+ \S+ )*-p N (\d+)$", text, re.M)
    assert command
    assert (store.CHECKOUT / command[1]).is_file()
    assert OffManifold.of({"N": int(command[2])}).n > P.n


@pytest.mark.parametrize("dataset", ["fonts", "mnist", "fashion_mnist", "emnist"])
def test_the_command_of_the_largest_run_is_valid_too(dataset):
    p = OffManifold.of({"DATASET": dataset, "N": 40_000})
    text = pages.provenance(p, pd.DataFrame([{**ROWS.iloc[0], **p.point()}])).data
    n = int(re.search(r"-p N (\d+)", text)[1])
    chosen = re.search(r"-p DATASET (\w+)", text)
    assert (chosen[1] if chosen else "fonts") == dataset
    OffManifold.of({"DATASET": dataset, "N": n})


def test_source_and_scope():
    assert pages.source(ROWS) == "FONTS, N = 400 (first rows), 3 networks a point, 200 images; CPU, 1 threads"
    assert pages.scope(P, ROWS) == "profile tiny, computed on CPU, 1 threads in 12 s"


def test_a_source_tells_manifolds_of_another_size_apart():
    real = ROWS.assign(dataset="mnist")
    assert pages.source(real.assign(manifold="small")) == pages.source(real)
    assert pages.source(real.assign(manifold="paper")) == pages.source(real).replace(
        "200 images", "200 images, manifolds of the paper's size"
    )


def test_a_source_without_networks_is_that_of_manifolds():
    rows = pd.DataFrame([{"dataset": "fonts", "manifold": "small", "n": 100, "images": 50, "device": "CPU, 1 threads"}])
    assert pages.source(rows) == "FONTS, small manifolds, 50 images; CPU, 1 threads"


def test_the_first_table_of_every_data_set_counts_fonts_before_all():
    tables = [
        pd.DataFrame({"dataset": [name], "n": [n]}) for n, name in enumerate(["mnist", "fonts", "mnist", "celeba"])
    ]
    found = pages.by_dataset(tables)
    assert list(found) == ["FONTS", "CelebA", "MNIST"]
    assert found["MNIST"] is tables[0]


def test_a_grid_says_its_range_and_the_seconds_of_all_points():
    shared = {**ROWS.iloc[0], "network": "cnn"}
    points = [("normal", 250, 10.0), ("normal", 1000, 20.0), ("adversarial", 1000, 30.0)]
    rows = [{**shared, "recipe": recipe, "n": n, "seconds": seconds} for recipe, n, seconds in points for _ in range(3)]
    table = pd.DataFrame(rows)
    assert pages.source(table).startswith("FONTS, N = 250 to 1,000 (first rows)")
    assert pages.scope(P, table).endswith("in 60 s")


def test_the_command_of_a_grid_gives_its_lists():
    p = GeneralizationLink.of({"N": [250, 500], "RECIPES": ["normal", "on_manifold"]})
    rows = pd.DataFrame(
        [{**point.point(), "device": "CPU", "torch": "2", "seconds": 1.0, "version": 1} for point in p.points()]
    )
    command = re.search(r"^papermill .*? -y '(.*)'$", pages.provenance(p, rows).data, re.M)
    larger = GeneralizationLink.of(yaml.safe_load(command[1]))
    assert larger.n == [250, 500, 1000]
    assert larger.recipes == p.recipes


@pytest.mark.parametrize(
    "chapter", [name for name in chapters.CHAPTERS if name != "learned_manifolds"]
)  # nobody's claim
def test_a_papers_values_say_where_they_stand(chapter):
    for name, entry in pages.paper_values(chapter).items():
        if not isinstance(entry, dict):  # from the paper's own text: words, or a setting
            continue
        rates = entry.get("rates", {key: [entry[key]] for key in ("value", "least", "most") if key in entry})
        assert rates, name
        assert all(isinstance(value, int | float) for values in rates.values() for value in values), name
        assert len({len(values) for values in rates.values()}) == 1, name
        assert len(entry["source"].split()) >= 3, name


def test_every_paper_value_belongs_to_a_chapter():
    text = (store.CHECKOUT / "book" / "results" / "papers.yml").read_text()
    assert set(yaml.safe_load(text)) <= set(chapters.CHAPTERS)
