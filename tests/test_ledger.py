"""advbook.ledger: round trips, damage, kills between two writes, publishing, verdicts, bins."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from advbook import files, ledger, store
from advbook.ledger import Verdict, counts

POINT = {"dataset": "fonts", "n": 250, "eps": 0.3}
ABOUT = {"experiment": "demo", "version": 1, **POINT, "device": "CPU", "seconds": 1.5}
ROWS = [
    {"what": "success", "seed": 0, "rate": 0.1 + 0.2, "bins": [1, 2]},
    {"what": "success", "seed": "all", "rate": None, "only_here": 7},
]
ARRAYS = {"ratio": np.array([[0.5, np.nan], [1e-30, 2]], dtype=np.float32), "row": np.arange(3)}


def place(point=None):
    return ledger.path("demo", 1, point or POINT)


def written(rows=ROWS, arrays=ARRAYS, about=ABOUT):
    ledger.write(place(), about, rows, arrays)
    return place()


def array_file(home):
    (path,) = home.glob("arrays/*.safetensors")
    return path


# --- writing and reading --------------------------------------------------------------------------------------


def test_a_round_trip_keeps_rows_what_they_share_and_arrays(home):
    table = ledger.read(written())
    assert list(table.seed) == [0, "all"]
    assert table.rate[0] == 0.1 + 0.2
    assert pd.isna(table.rate[1])
    assert pd.isna(table.only_here[0])
    assert table.bins[0] == [1, 2]
    for name, value in ABOUT.items():
        assert (table[name] == value).all()
    kept = ledger.arrays(table.arrays[0])
    assert kept.keys() == ARRAYS.keys()
    for name in ARRAYS:
        np.testing.assert_array_equal(kept[name], ARRAYS[name])
        assert kept[name].dtype == ARRAYS[name].dtype


numbers = st.fixed_dictionaries({"a": st.floats(), "b": st.text(), "c": st.integers(-(2**50), 2**50)})


@given(st.lists(numbers, min_size=1))
def test_every_number_comes_back_to_the_last_digit(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "row.json"
    ledger.write(path, {}, rows)
    table = ledger.read(path)
    for name in ("a", "b", "c"):
        for kept, value in zip(table[name], [row[name] for row in rows], strict=True):
            assert kept == value or (value != value and kept != kept)


def test_what_is_not_there_is_none(home):
    assert ledger.read(place()) is None


def test_rows_without_arrays_are_whole(home):
    table = ledger.read(written(arrays=None))
    assert len(table) == 2
    assert table.arrays.isna().all()
    assert not (home / "arrays").exists()


def test_the_path_depends_on_every_parameter_and_on_the_version_alone(home):
    assert place() == place(dict(reversed(POINT.items())))
    others = [place({**POINT, "eps": 0.2}), place({**POINT, "more": 1}), ledger.path("demo", 2, POINT)]
    others += [ledger.path("other", 1, POINT), place({**POINT, "n": 500})]
    assert len({place(), *others}) == 6
    assert place().parent == home / "rows" / "demo"
    assert place().name.startswith("fonts-n250-")


def test_two_runs_differ_in_their_seconds_and_checksum_alone(home):
    arrays_again = {name: ARRAYS[name].copy() for name in reversed(ARRAYS)}
    first = written().read_bytes()
    assert written(arrays=arrays_again).read_bytes() == first
    later = written(about={**ABOUT, "seconds": 99.0}).read_text()
    one, other = json.loads(first), json.loads(later)
    assert one.pop("checksum") != other.pop("checksum")
    assert one["about"].pop("seconds") != other["about"].pop("seconds")
    assert json.dumps(one) == json.dumps(other)
    assert len(list(home.glob("arrays/*"))) == 1


# --- damage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b"[]", b"[1]", b"null", b"12", b'"text"', b"\xff\xfe", b"\0" * 50, b"<html>"]
)
def test_a_row_file_that_is_none_is_set_aside(home, capsys, content):
    path = written()
    path.write_bytes(content)
    assert ledger.read(path) is None
    assert path.with_name(path.name + ".damaged").read_bytes() == content
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert path.name in said
    assert ledger.read(written()) is not None


@given(st.data())
def test_no_changed_byte_of_a_row_file_goes_unnoticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("rows") / "row.json"
    ledger.write(path, ABOUT, ROWS)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    whole = ledger.read(path)
    path.write_bytes(content)
    table = ledger.read(path)
    if table is not None:
        pd.testing.assert_frame_equal(table, whole)


@given(st.integers(0, 10_000))
def test_a_cut_row_file_is_no_row_file(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("rows") / "row.json"
    ledger.write(path, ABOUT, ROWS)
    content = path.read_bytes()
    path.write_bytes(content[: length % len(content)])
    assert ledger.read(path) is None


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "empty"])
def test_rows_whose_arrays_are_damaged_are_set_aside_and_come_back_when_computed_again(home, capsys, damage):
    path = written()
    array = array_file(home)
    content = array.read_bytes()
    if damage == "missing":
        array.unlink()
    else:
        changed = {"cut": content[:-3], "flipped": content[:-1] + bytes([content[-1] ^ 1]), "empty": b""}
        array.write_bytes(changed[damage])
    assert ledger.read(path) is None
    assert array.name in capsys.readouterr().err
    assert path.with_name(path.name + ".damaged").exists()
    table = ledger.read(written())
    np.testing.assert_array_equal(ledger.arrays(table.arrays[0])["row"], ARRAYS["row"])


def test_killed_between_arrays_and_row_nothing_is_there_and_nothing_is_lost(home, monkeypatch):
    written_files, write = [], files.write

    def kill_at_the_row(path, content):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, content)
        written_files.append(path)

    monkeypatch.setattr(files, "write", kill_at_the_row)
    with pytest.raises(KeyboardInterrupt):
        written()
    assert [path.suffix for path in written_files] == [".safetensors"], "the arrays come first"
    assert ledger.read(place()) is None
    monkeypatch.setattr(files, "write", write)
    assert len(ledger.read(written())) == 2
    assert array_file(home) == written_files[0]


def test_arrays_with_no_such_name_are_named(home):
    with pytest.raises(ValueError, match=r"abc\.safetensors is missing"):
        ledger.arrays("abc")


# --- what comes with the book ---------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty book/results."""
    monkeypatch.setattr(store, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr(ledger, "PUBLISHED", tmp_path / "checkout" / "book" / "results")
    return ledger.PUBLISHED


def test_published_rows_are_a_table_a_point_and_carry_no_arrays(home, results):
    assert ledger.published("demo", 1) == []
    for n in (250, 500):
        ledger.write(place({**POINT, "n": n}), {**ABOUT, "n": n}, ROWS, ARRAYS)
        copy = ledger.publish(place({**POINT, "n": n}), "demo")
        assert copy.parent == results / "demo"
        assert json.loads(copy.read_bytes())["arrays"] is None
    tables = ledger.published("demo", 1)
    assert sorted(set(table.n).pop() for table in tables) == [250, 500]
    for table in tables:
        assert list(table.seed) == [0, "all"]
        assert table.rate[0] == 0.1 + 0.2
        assert table.arrays.isna().all()
    assert ledger.published("other", 1) == []
    assert ledger.published("demo", 2) == [], "rows of another version say nothing"


def test_a_damaged_published_file_is_named_and_not_touched(home, results):
    copy = ledger.publish(written(), "demo")
    copy.write_bytes(copy.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"^book/results/demo/fonts-n250-.*\.json is damaged .*restore it"):
        ledger.published("demo", 1)
    assert copy.exists()


def test_a_damaged_row_file_is_not_published(home, results):
    path = written()
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="not whole"):
        ledger.publish(path, "demo")
    assert not results.exists()


# --- verdicts and bins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (1.1, 1.3, "supported"),
        (1.0, 1.3, "supported"),
        (0.9, 1.3, "undecided"),
        (0.9, 1.0, "undecided"),
        (0.7, 0.99, "not supported"),
        (math.nan, 1.3, "undecided"),
        (1.1, math.inf, "undecided"),
    ],
)
def test_a_verdict_asks_the_whole_interval(low, high, outcome):
    assert Verdict("claim", "statistic", 1.15, low, high, threshold=1.0).outcome == outcome


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.7, 0.9, "supported"),
        (0.7, 1.0, "supported"),
        (0.7, math.nextafter(1.0, 2), "undecided"),
        (1.0, 1.0, "supported"),
        (1.0, 1.3, "undecided"),
        (math.nextafter(1.0, 2), 1.3, "not supported"),
        (-math.inf, 0.9, "undecided"),
        (0.7, math.nan, "undecided"),
    ],
)
def test_a_claim_of_at_most_asks_the_other_side(low, high, outcome):
    assert Verdict("claim", "statistic", 0.8, low, high, threshold=1.0, at_most=True).outcome == outcome


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(-5, 5), st.sampled_from(["", "paper", "strong"]))
def test_at_most_is_at_least_of_everything_negated(low, width, threshold, attack):
    high = low + width
    most = Verdict("claim", "statistic", low, low, high, threshold, at_most=True, attack=attack)
    least = Verdict("claim", "statistic", -low, -high, -low, -threshold, attack=attack)
    assert most.outcome == least.outcome
    if not low <= threshold <= high:
        assert most.outcome == ("supported" if high < threshold else "not supported")


@pytest.mark.parametrize("at_most", [False, True])
def test_without_a_value_nothing_is_decided(at_most):
    assert Verdict("claim", "statistic", math.nan, 2, 3, threshold=1.0, at_most=at_most).outcome == "undecided"


@pytest.mark.parametrize(("low", "high"), [(1.1, 1.3), (0.7, 0.9), (0.9, 1.1)])
@pytest.mark.parametrize("at_most", [False, True])
def test_where_the_statistic_can_tell_nothing_the_verdict_is_undecided(low, high, at_most):
    verdict = Verdict("claim", "statistic", 1.0, low, high, 1.0, at_most=at_most, void="every rate is 1")
    assert verdict.outcome == "undecided"


def test_counts_of_known_values():
    edges = np.array([0.0, 1, 2, 3])
    assert counts(np.array([0, 0.5, 1, 2.5, 3, np.nan, -7, 99]), edges) == [3, 1, 3]
    assert counts(np.array([np.nan]), edges) == [0, 0, 0]


@given(st_numpy.arrays(np.float32, st.integers(0, 30), elements=st.floats(width=32)))
def test_every_finite_value_is_counted_once(values):
    edges = np.linspace(0, 10, 101)
    bins = counts(values, edges)
    assert len(bins) == 100
    assert sum(bins) == np.isfinite(values).sum()
    assert json.loads(json.dumps(bins)) == bins


# --- pictures in rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 1, 28, 28), (0, 3, 1, 28, 28), (5, 3, 7, 9)], ids=str)
def test_pictures_come_back_from_a_row_rounded_to_eight_bits(home, shape):
    images = np.random.default_rng(0).random(shape).astype(np.float32)
    place = ledger.path("demo", 1, {"dataset": "fonts", "n": 1})
    ledger.write(place, {"experiment": "demo"}, [{"what": "pictures", **ledger.pictures(images)}])
    (row,) = ledger.read(place).to_dict("records")
    found = ledger.unpacked(row)
    assert (found.shape, found.dtype) == (shape, np.float32)
    np.testing.assert_allclose(found, images, atol=0.5 / 255 + 1e-6)
    again = ledger.unpacked(ledger.pictures(found))
    np.testing.assert_array_equal(again, found)


def test_pictures_outside_their_range_are_cut_off():
    found = ledger.unpacked(ledger.pictures(np.array([[-0.5, 0.0, 1.0, 1.7]])))
    assert found.tolist() == [[0, 0, 1, 1]]
