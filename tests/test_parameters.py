"""advbook.experiments: parameters as a notebook or papermill gives them, and the rows of a point."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from papermill.translators import PythonTranslator
from pydantic import Field

from advbook import experiments
from advbook.experiments import Axis, ParameterError, Parameters, Result
from advbook.experiments.off_manifold import OffManifold


class Demo(Parameters):
    """A chapter that counts how often it is computed."""

    experiment: ClassVar[str] = "demo"
    version: ClassVar[int] = 1
    computed: ClassVar[list[int]] = []

    dataset: str = "fonts"
    n: int = Field(10, ge=1)

    def compute(self):
        self.computed.append(self.n)
        return Result([{"value": self.n / 3}], {"square": np.arange(self.n) ** 2})


class Wide(Demo):
    """The same over a grid."""

    experiment: ClassVar[str] = "wide"
    axes: ClassVar[dict[str, str]] = {"colours": "colour", "n": "n"}

    colours: Axis[Literal["red", "blue"]] = Field(["red"])
    n: Axis[Annotated[int, Field(ge=1)]] = Field([10, 20])

    def compute(self):
        (n,), (colour,) = self.n, self.colours
        self.computed.append((colour, n))
        return Result([{"value": n / 3}], {"square": np.arange(n) ** 2})


@pytest.fixture(autouse=True)
def uncounted():
    Demo.computed.clear()


def defaults():
    """A chapter's globals before anything is set."""
    return {name.upper(): field.default for name, field in OffManifold.model_fields.items()}


def refused(**values):
    with pytest.raises(ParameterError) as caught:
        OffManifold.of(values)
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("EPZ", "EPS"), ("NEIGBOURS", "NEIGHBOURS"), ("STEP", "STEPS"), ("Eps", "EPS"), ("epochs_", "EPOCHS")],
)
def test_a_misspelt_parameter_is_named_with_the_one_that_was_meant(typed, meant):
    message = refused(**{typed: 1})
    assert re.match(rf"Unknown parameter {typed}: did you mean {meant}\? Known are ", message, re.IGNORECASE)
    for name in OffManifold.model_fields:
        assert name.upper() in message


def test_a_parameter_like_no_other_is_named_without_a_guess():
    message = refused(QWXYZ=1)
    assert "QWXYZ" in message.upper()
    assert "did you mean" not in message


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("N", 1000.0, "valid integer"),
        ("N", "1000", "valid integer"),
        ("N", True, "valid integer"),
        ("N", None, "valid integer"),
        ("N", [1000], "valid integer"),
        ("EPS", "0.3", "valid number"),
        ("EPS", True, "valid number"),
        ("DEVICE", 0, "valid string"),
        ("N", 99, "100"),
        ("EPS", -0.1, "0"),
        ("EPS", 1.5, "1"),
        ("EPS", float("nan"), "1"),
        ("EPS", float("inf"), "1"),
        ("ETA", -1e-9, "0"),
        ("STEPS", 0, "1"),
        ("RESTARTS", 0, "1"),
        ("SEEDS", 0, "1"),
        ("IMAGES", 10**6, "8000"),
        ("DATASET", "font", "'fonts', 'emnist', 'mnist', 'fashion_mnist' or 'celeba'"),
        ("DATASET", "FONTS", "'fonts'"),
        ("SUBSET", "last", "'first' or 'random'"),
        ("N", 960_001, "fonts has 960,000 training images"),
        ("MANIFOLD", "paper", "the manifold of fonts is known, not learned"),
        ("NEIGHBOURS", 501, "500"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(name, value, allowed):
    message = refused(**{name: value})
    assert message.startswith(f"Parameter {name} = {value!r} is not allowed: ")
    assert allowed in message


def test_more_images_than_a_data_set_has_are_refused():
    assert refused(DATASET="mnist", N=60_001) == (
        "Parameter N = 60001 is not allowed: mnist has 60,000 training images."
    )
    assert OffManifold.of({"DATASET": "mnist", "N": 60_000}).n == 60_000
    assert OffManifold.of({"DATASET": "emnist", "N": 240_000}).n == 240_000


def test_more_neighbours_than_images_are_refused():
    assert refused(N=100, NEIGHBOURS=101).startswith("Parameter NEIGHBOURS = 101 is not allowed: N = 100")
    assert OffManifold.of({"N": 100, "NEIGHBOURS": 100}).neighbours == 100


def test_several_wrong_values_are_all_named():
    message = refused(N="many", EPS=-1)
    assert "N = 'many'" in message
    assert "EPS = -1" in message


def test_whole_numbers_pass_where_fractions_do_and_give_the_same_rows():
    assert OffManifold.of({"EPS": 0}).point() == OffManifold.of({"EPS": 0.0}).point()
    assert OffManifold.of({"EPS": 1}).point() == OffManifold.of({"EPS": 1.0}).point()
    assert isinstance(OffManifold.of({"EPS": 0}).point()["eps"], float)


@given(st.sampled_from(sorted(OffManifold.model_fields)), st.none() | st.text() | st.floats() | st.lists(st.integers()))
def test_whatever_is_given_it_is_taken_or_refused_in_one_sentence(name, value):
    try:
        p = OffManifold.of({name.upper(): value})
    except ParameterError as error:
        message = str(error)
    else:
        message = None
        assert p.model_dump()[name] == value
    assert message is None or message.startswith(f"Parameter {name.upper()} = {value!r} is not allowed: ")


# --- from a notebook ------------------------------------------------------------------------------------------


def injected(**values):
    """The cell that papermill itself writes for these parameters."""
    return PythonTranslator.codify(values, "Parameters")


def notebook(cells, **assigned):
    """A notebook's globals after these cells: defaults, what was assigned, and IPython's history."""
    return {**defaults(), "np": np, "helper": len, "In": ["", *cells], **assigned}


def test_in_jupyterlab_a_notebook_has_no_injected_cell():
    names = notebook(['N: int = 2500\nDATASET: str = "fonts"', "p = 1"], N=400)
    assert OffManifold.of_notebook(names).n == 400


def test_a_plain_script_has_no_history():
    assert OffManifold.of_notebook(defaults()) == OffManifold.of(defaults())


def test_papermills_parameters_are_seen():
    given = {"N": 4000, "EPS": 0.2, "DATASET": "mnist"}
    p = OffManifold.of_notebook(notebook(["import numpy as np", injected(**given), "x = 1"], **given))
    assert (p.n, p.eps, p.dataset) == (4000, 0.2, "mnist")


@pytest.mark.parametrize(
    "value", [1, 0.5, "text", "two\nlines", True, None, [1, 2], {"a": 1}], ids=lambda value: type(value).__name__
)
def test_a_misspelt_parameter_from_papermill_is_not_overlooked(value):
    given = {"N": 4000, "NN": value, "SEEDS": 2}
    with pytest.raises(ParameterError, match="Unknown parameter NN: did you mean N"):
        OffManifold.of_notebook(notebook([injected(**given)], **given))


def test_an_ill_typed_parameter_from_papermill_is_refused():
    with pytest.raises(ParameterError, match="N = 'many'"):
        OffManifold.of_notebook(notebook([injected(N="many")], N="many"))


def test_other_names_of_the_notebook_are_no_parameters():
    names = notebook(["EDGES = 3\nROWS = 4"], EDGES=3, ROWS=4)
    assert OffManifold.of_notebook(names) == OffManifold.of(defaults())


def test_what_is_injected_again_gives_the_same_parameters():
    p = OffManifold.of({"N": 400, "EPS": 0.1})
    assert OffManifold.of(p.injected()) == p


# --- points and devices ---------------------------------------------------------------------------------------


def test_a_point_is_every_parameter_but_device_and_profile():
    p = OffManifold(profile="quick", device="cpu")
    assert p.point() == OffManifold().point()
    assert set(p.point()) == set(OffManifold.model_fields) - {"device", "profile"}


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "gpu", ""])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ParameterError, match=rf"^Parameter DEVICE = '{name}' is not a device of this machine\.$"):
        OffManifold(device=name).torch_device()


def test_the_automatic_device_is_a_gpu_where_there_is_one():
    assert OffManifold().torch_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert OffManifold(device="cpu").torch_device() == torch.device("cpu")


# --- grids ----------------------------------------------------------------------------------------------------


def test_without_axes_parameters_are_a_point_of_their_own():
    p = OffManifold(n=400, profile="quick")
    assert p.points() == [p]


@given(
    st.lists(st.sampled_from(["red", "blue"]), min_size=1, unique=True),
    st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True),
)
def test_points_are_every_combination_once_in_the_order_given(colours, sizes):
    points = Wide.of({"COLOURS": colours, "N": sizes, "PROFILE": "quick"}).points()
    assert [(one.colours, one.n) for one in points] == [([colour], [n]) for colour in colours for n in sizes]
    assert [(one.point()["colour"], one.point()["n"]) for one in points] == [(c, n) for c in colours for n in sizes]
    assert {one.profile for one in points} == {"quick"}
    assert all(one.points() == [one] for one in points)


def test_a_value_alone_is_the_axis_with_that_value():
    assert Wide.of({"N": 7, "COLOURS": "blue"}) == Wide.of({"N": [7], "COLOURS": ["blue"]})
    assert Wide.of({"N": 7}).point() == {"dataset": "fonts", "colour": "red", "n": 7}
    assert Wide.of(Wide.of({"N": [7, 8]}).injected()) == Wide.of({"N": [7, 8]})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"N": []}, "N = [] is not allowed: at least one value is needed."),
        ({"N": [3, 4, 3]}, "N = [3, 4, 3] is not allowed: a value stands there twice."),
        ({"N": [3, 0]}, "N = 0 is not allowed: it should be greater than or equal to 1."),
        ({"N": [3, 4.0]}, "N = 4.0 is not allowed: it should be a valid integer."),
        ({"N": [3, True]}, "N = True is not allowed: it should be a valid integer."),
        ({"N": None}, "N = None is not allowed: it should be a valid integer."),
        ({"COLOURS": "green"}, "COLOURS = 'green' is not allowed: it should be 'red' or 'blue'."),
        ({"COLOURS": ["red", ["blue"]]}, "COLOURS = ['blue'] is not allowed: it should be 'red' or 'blue'."),
        ({"COLOUR": "red"}, "COLOUR: did you mean COLOURS?"),
    ],
    ids=str,
)
def test_a_wrong_value_of_an_axis_is_named_with_what_is_allowed(given, said):
    with pytest.raises(ParameterError) as caught:
        Wide.of(given)
    assert str(caught.value).removeprefix("Unknown parameter ").removeprefix("Parameter ").startswith(said)
    assert "\n" not in str(caught.value)


@given(st.none() | st.text() | st.floats() | st.lists(st.integers(-2, 5) | st.floats() | st.text(), max_size=4))
def test_whatever_an_axis_is_given_it_is_taken_or_refused_in_sentences(value):
    try:
        p = Wide.of({"N": value})
    except ParameterError as error:
        message = str(error)
    else:
        message = None
        assert p.n == (value if isinstance(value, list) else [value])
        assert len(p.points()) == len(set(p.n)) >= 1
    assert message is None or (message.startswith("Parameter N = ") and message.endswith("."))


def test_the_rows_of_a_grid_are_those_of_its_points_and_each_is_computed_once(home):
    rows = Wide.of({"COLOURS": ["red", "blue"], "N": [6, 3]}).rows()
    assert Demo.computed == [("red", 6), ("red", 3), ("blue", 6), ("blue", 3)]
    assert list(zip(rows.colour, rows.n, rows.value, strict=True)) == [
        ("red", 6, 2.0), ("red", 3, 1.0), ("blue", 6, 2.0), ("blue", 3, 1.0)
    ]  # fmt: skip
    assert list(rows.index) == [0, 1, 2, 3]
    assert rows.arrays.nunique() == 2, "named by what they hold"
    more = Wide.of({"COLOURS": ["blue"], "N": [3, 9, 6]}).rows()
    assert Demo.computed[4:] == [("blue", 9)]
    assert list(more.n) == [3, 9, 6]
    point = Wide.of({"COLOURS": "blue", "N": 6})
    pd.testing.assert_frame_equal(point.point_rows(), point.rows())


def test_only_the_damaged_point_of_a_grid_is_computed_again(home, capsys):
    p = Wide.of({"N": [6, 3]})
    first = p.rows()
    path = min(home.glob("rows/wide/*n3-*.json"))
    path.write_bytes(path.read_bytes()[:-20])
    again = p.rows()
    assert Demo.computed == [("red", 6), ("red", 3), ("red", 3)]
    assert first.drop(columns="seconds").equals(again.drop(columns="seconds"))
    assert "is damaged" in capsys.readouterr().err


def test_tables_of_points_that_differ_in_axes_alone_are_one_grid(home):
    tables = [Wide.of({"N": n, "COLOURS": colour}).point_rows() for n, colour in ((3, "red"), (6, "blue"))]
    other = Wide.of({"N": 3, "DATASET": "mnist"}).point_rows()
    grids = Wide.grids([other, *tables])
    assert [list(found.n) for found in grids] == [[3, 6], [3]]
    assert [set(found.dataset) for found in grids] == [{"fonts"}, {"mnist"}]
    pd.testing.assert_frame_equal(grids[0], pd.concat(tables, ignore_index=True))
    alone = [Demo(n=n).point_rows() for n in (3, 6)]
    assert [len(found) for found in Demo.grids(alone)] == [1, 1], "without axes every table stays alone"
    assert Wide.grids([]) == []


# --- rows -----------------------------------------------------------------------------------------------------


def test_rows_are_computed_once(home):
    first, again = Demo(n=6).rows(), Demo(n=6, profile="quick").rows()
    assert Demo.computed == [6]
    assert first.equals(again)
    row = first.iloc[0]
    assert row.value == 2
    assert (row.experiment, row.version, row.dataset, row.n) == ("demo", 1, "fonts", 6)
    assert row.torch == torch.__version__
    assert row.device == f"CPU, {torch.get_num_threads()} threads"
    assert row.seconds >= 0
    Demo(n=7).rows()
    assert Demo.computed == [6, 7]


def test_damaged_rows_are_computed_again_and_are_the_same(home, capsys):
    first = Demo(n=6).rows()
    (path,) = home.glob("rows/demo/*.json")
    path.write_bytes(path.read_bytes()[:-20])
    again = Demo(n=6).rows()
    assert Demo.computed == [6, 6]
    assert first.drop(columns="seconds").equals(again.drop(columns="seconds"))
    assert "is damaged" in capsys.readouterr().err


def test_a_device_that_is_not_there_computes_and_writes_nothing(home):
    with pytest.raises(ParameterError):
        Demo(device="nonsense").rows()
    assert Demo.computed == []
    assert not list(home.rglob("*.json"))


def test_a_failed_computation_writes_nothing(home, monkeypatch):
    def fail(self):
        raise FloatingPointError("no")

    monkeypatch.setattr(Demo, "compute", fail)
    with pytest.raises(FloatingPointError):
        Demo().rows()
    assert not list(home.rglob("*.json"))


def test_a_new_version_is_computed_anew(home, monkeypatch):
    Demo(n=6).rows()
    monkeypatch.setattr(Demo, "version", 2)
    assert set(Demo(n=6).rows().version) == {2}
    assert Demo.computed == [6, 6]


@pytest.mark.slow
def test_two_processes_compute_a_point_once(home, tmp_path):
    log = tmp_path / "log"
    text = f"""
        import time
        from pathlib import Path
        from typing import ClassVar
        from advbook.experiments import Parameters, Result

        class Slow(Parameters):
            experiment: ClassVar[str] = "slow"
            version: ClassVar[int] = 1
            dataset: str = "fonts"
            n: int = 9

            def compute(self):
                with Path({str(log)!r}).open("a") as file:
                    file.write("computed\\n")
                time.sleep(2)
                return Result([{{"value": 1.5}}], {{}})

        print(Slow().rows().to_json())
    """
    command = [sys.executable, "-c", textwrap.dedent(text)]
    runs = [
        subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    outputs = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert log.read_text() == "computed\n"
    assert outputs[0] == outputs[1] != ""


def test_a_gpu_is_called_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU at {device}")
    assert experiments.device_name(torch.device("cuda:1")) == "a GPU at cuda:1"
