"""advbook.experiments: parameters as a notebook or papermill gives them, and the rows of a point."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from papermill.translators import PythonTranslator
from pydantic import Field

from advbook import experiments
from advbook.experiments import ParameterError, Parameters, Result
from advbook.experiments.off_manifold import OffManifold


class Demo(Parameters):
    """A chapter that counts how often it is computed."""

    experiment: ClassVar[str] = "demo"
    version: ClassVar[int] = 1
    training: ClassVar[str] = "none"
    computed: ClassVar[list[int]] = []

    dataset: str = "fonts"
    n: int = Field(10, ge=1)

    def compute(self):
        self.computed.append(self.n)
        return Result([{"value": self.n / 3}], {"square": np.arange(self.n) ** 2})


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
        ("DATASET", "font", "'fonts', 'mnist', 'fashion_mnist'"),
        ("DATASET", "FONTS", "'fonts'"),
        ("SUBSET", "last", "'first' or 'random'"),
        ("N", 960_001, "fonts has 960,000 training images"),
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
            training: ClassVar[str] = "none"
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
