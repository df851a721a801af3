"""The experiments: one module a chapter, each with the parameters a reader may set and one function a grid point."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import product
from typing import Annotated, Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from tqdm import tqdm

from advbook import ledger


class ParameterError(ValueError):
    """A parameter that is unknown, of a wrong type or out of range: one sentence that says what is allowed."""


Value = TypeVar("Value")


def _each_once(values: list[Value]) -> list[Value]:
    if not values:
        raise ValueError("at least one value is needed")
    if len(set(values)) < len(values):
        raise ValueError("a value stands there twice")
    return values


# An axis of a grid: one or more values, each once; a value alone is a list of one.
Axis = Annotated[
    list[Value],
    BeforeValidator(lambda given: given if isinstance(given, list) else [given]),
    AfterValidator(_each_once),
]


class Result(NamedTuple):
    """What computing a point gives: its rows, and per-image arrays."""

    rows: Sequence[Mapping[str, Any]]
    arrays: Mapping[str, np.ndarray]


class Parameters(BaseModel):
    """A chapter's parameters: fields in small letters here, the same names in capitals in the notebook.

    Two are common to all chapters and no part of a point: `device` and `profile` say where and how it ran. A chapter
    over a grid names its axes; its points have one value of each, and each point has a row file of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    experiment: ClassVar[str]
    version: ClassVar[int]
    axes: ClassVar[Mapping[str, str]] = {}  # field that holds a list -> name of one of its values in a row

    device: str = "auto"
    profile: str = "own"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From names in capitals, as a notebook or a profile gives them. Raises ParameterError."""
        known = [field.upper() for field in cls.model_fields]
        for name in values:
            if name not in known:
                raise ParameterError(f"Unknown parameter {name}: {did_you_mean(name, known)}")
        try:
            return cls(**{name.lower(): value for name, value in values.items()})
        except ValidationError as error:
            raise ParameterError(" ".join(map(_sentence, error.errors()))) from None

    @classmethod
    def of_notebook(cls, names: Mapping[str, Any]) -> Self:
        """From a notebook's globals(): its parameters, and every name that papermill injected, so that none goes
        unseen.
        """
        injected = [cell for cell in names.get("In", []) if cell.startswith("# Parameters\n")]
        assigned = re.findall(r"^(\w+) = ", injected[-1], re.MULTILINE) if injected else []
        known = [field.upper() for field in cls.model_fields if field.upper() in names]
        return cls.of({name: names[name] for name in dict.fromkeys([*known, *assigned])})

    def points(self) -> list[Self]:
        """The points of the grid, one value of each axis in each; without axes, the parameters themselves."""
        values = product(*(getattr(self, name) for name in self.axes))
        return [
            self.model_copy(update={name: [one] for name, one in zip(self.axes, own, strict=True)}) for own in values
        ]

    def point(self) -> dict[str, Any]:
        """What decides the rows of one point: every parameter but where and under which name it runs.

        Raises ValueError for a grid of several points.
        """
        given = self.model_dump(exclude={"device", "profile"})
        for name, single in self.axes.items():
            if len(given[name]) != 1:
                raise ValueError(f"Parameter {name.upper()} = {given[name]!r} is a grid; a point has one value.")
            (given[single],) = given.pop(name)
        return given

    def injected(self) -> dict[str, Any]:
        """The parameters as papermill gives them to the notebook: names in capitals."""
        return {name.upper(): value for name, value in self.model_dump().items()}

    def larger(self) -> dict[str, Any]:
        """Parameters of a larger run, in capitals: what a page proposes to try next."""
        raise NotImplementedError

    def torch_device(self) -> torch.device:
        """The device to compute on; "auto" takes a GPU if there is one. Raises ParameterError for one that is not
        there.
        """
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            torch.zeros(1, device=name).item()
        except (RuntimeError, AssertionError):
            raise ParameterError(f"Parameter DEVICE = {name!r} is not a device of this machine.") from None
        return torch.device(name)

    def check_data(self) -> None:
        """Raise MissingData (or DamagedData) if the point's data set cannot be read or fetched."""
        raise NotImplementedError

    @classmethod
    def grids(cls, tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
        """Tables of single points, those that differ in their axes alone put together: the largest grid first."""
        fixed = [name for name in cls.model_fields if name not in {*cls.axes, "device", "profile"}]
        together: dict[str, list[pd.DataFrame]] = {}
        for number, table in enumerate(tables):
            key = str(table.iloc[0][fixed].to_dict()) if cls.axes else str(number)
            together.setdefault(key, []).append(table)
        found = sorted(together.values(), key=len, reverse=True)
        return [pd.concat(own, ignore_index=True) for own in found]

    @staticmethod
    def verdicts(rows: pd.DataFrame) -> list[ledger.Verdict]:
        """The chapter's claims against their thresholds, from the rows of a point."""
        raise NotImplementedError

    def compute(self) -> Result:
        """Compute the rows of this point."""
        raise NotImplementedError

    def rows(self) -> pd.DataFrame:
        """The rows of all points: read where they were computed before, else computed and kept."""
        points = self.points()
        bar = tqdm(points, desc=self.experiment, unit="point", leave=False, disable=len(points) == 1)
        return pd.concat([one.point_rows() for one in bar], ignore_index=True)

    def point_rows(self) -> pd.DataFrame:
        """The rows of a single point. Others that want the same wait meanwhile."""
        place = ledger.path(self.experiment, self.version, self.point())
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            table = ledger.read(place)
            if table is None:
                device, began = self.torch_device(), time.perf_counter()
                result = self.compute()
                about = {
                    "experiment": self.experiment,
                    "version": self.version,
                    **self.point(),
                    "device": device_name(device),
                    "torch": torch.__version__,
                    "seconds": round(time.perf_counter() - began, 1),
                }
                ledger.write(place, about, result.rows, result.arrays)
                table = ledger.read(place)
        assert table is not None
        return table


def _sentence(detail: ErrorDetails) -> str:
    reason = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:  # a rule about several parameters, which is a whole sentence
        return reason
    name = str(detail["loc"][0]).upper()
    return (
        f"Parameter {name} = {detail['input']!r} is not allowed: {reason.replace('Input should be', 'it should be')}."
    )


def did_you_mean(given: str, known: Sequence[str]) -> str:
    """What to say of an unknown name: the known one that is closest, if any is, and all of them."""
    folded = {name.lower(): name for name in known}
    close = get_close_matches(given.lower(), folded, 1)
    hint = f"did you mean {folded[close[0]]}? K" if close else "k"
    return f"{hint}nown are {', '.join(known)}."


def device_name(device: torch.device) -> str:
    """What ran it, for the row: the GPU's name, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
