"""The experiments: one module a chapter, each with the parameters a reader may set and one function a grid point."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from advbook import ledger


class ParameterError(ValueError):
    """A parameter that is unknown, of a wrong type or out of range: one sentence that says what is allowed."""


class Result(NamedTuple):
    """What computing a point gives: its rows, and per-image arrays."""

    rows: Sequence[Mapping[str, Any]]
    arrays: Mapping[str, np.ndarray]


class Parameters(BaseModel):
    """A chapter's parameters: fields in small letters here, the same names in capitals in the notebook.

    Two are common to all chapters and no part of a point: `device` and `profile` say where and how it ran.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    experiment: ClassVar[str]
    version: ClassVar[int]
    training: ClassVar[str]

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

    def point(self) -> dict[str, Any]:
        """What decides the rows: every parameter but where and under which name it runs."""
        return self.model_dump(exclude={"device", "profile"})

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

    @staticmethod
    def verdicts(rows: pd.DataFrame) -> list[ledger.Verdict]:
        """The chapter's claims against their thresholds, from the rows of a point."""
        raise NotImplementedError

    def compute(self) -> Result:
        """Compute the rows of this point."""
        raise NotImplementedError

    def rows(self) -> pd.DataFrame:
        """The point's rows: read if they were computed before, else computed and kept. Others wait meanwhile."""
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
                    "training": self.training,
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
