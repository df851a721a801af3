"""Rows: every number of the book comes from one. A grid point's rows are one file, written once.

A row file is JSON: the point's parameters, the experiment's version, device and seconds, and its rows with a
checksum. Per-image values lie in array files named by their hash, which a row file may name. Rows that are published
with the book lie in book/results.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load, save

from advbook import files, store

PUBLISHED = store.CHECKOUT / "book" / "results"
Outcome = Literal["supported", "not supported", "undecided"]


def path(experiment: str, version: int, point: Mapping[str, Any]) -> Path:
    """Where a point's rows belong: its parameters and the experiment's version decide, and nothing else."""
    key = store.fingerprint({"experiment": experiment, "version": version, **point})
    return store.home() / "rows" / experiment / f"{point['dataset']}-n{point['n']}-{key}.json"


def write(
    place: Path,
    about: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a point's rows, its arrays first. about: what all rows share (parameters, version, device, seconds)."""
    document = {"about": dict(about), "arrays": _put(arrays) if arrays else None, "rows": list(rows)}
    document["checksum"] = _checksum(document)
    files.write(place, json.dumps(document).encode())


def read(place: Path) -> pd.DataFrame | None:
    """A point's rows as a table, with what they share as columns; None if they are not there.

    A damaged row file, or one whose arrays are missing or damaged, is set aside, so that the point is computed again.
    """
    if not place.exists():
        return None
    try:
        document = _parse(place)
        if document["arrays"]:
            arrays(document["arrays"])
    except ValueError as error:
        files.set_aside(place, str(error))
        return None
    return _table(document)


def pictures(images: np.ndarray) -> dict[str, Any]:
    """Pictures as part of a row, in 8 bits: [..., H, W] in [0, 1] -> what `unpacked` takes."""
    pixels = (images * 255).round().clip(0, 255).astype(np.uint8)
    return {"pixels": base64.b64encode(zlib.compress(pixels.tobytes(), 9)).decode(), "shape": list(pixels.shape)}


def unpacked(row: Mapping[str, Any]) -> np.ndarray:
    """The pictures of a row, in [0, 1]: as `pictures` took them, rounded to 8 bits."""
    pixels = np.frombuffer(zlib.decompress(base64.b64decode(row["pixels"])), np.uint8)
    return (pixels.reshape(row["shape"]) / 255).astype(np.float32)


def published(experiment: str, version: int) -> list[pd.DataFrame]:
    """The rows that come with the book, a table a point; those of another version of the experiment are left out.

    Raises ValueError, naming the file, if one is damaged: it is restored from the repository, not computed.
    """
    return [_table(document) for document in _published(experiment) if document["about"]["version"] == version]


def outdated(experiment: str, version: int) -> int:
    """How many published points belong to another version of the experiment, and count for nothing."""
    return sum(document["about"]["version"] != version for document in _published(experiment))


def _published(experiment: str) -> list[dict[str, Any]]:
    documents = []
    for place in sorted((PUBLISHED / experiment).glob("*.json")):
        try:
            documents.append(_parse(place))
        except ValueError as error:
            relative = place.relative_to(store.CHECKOUT)
            raise ValueError(f"{relative} is damaged ({error}); restore it from the repository.") from None
    return documents


def publish(place: Path, experiment: str) -> Path:
    """Copy a point's row file to book/results, without its arrays: its rows carry bin counts. Returns the copy."""
    document = _parse(place)
    document = {"about": document["about"], "arrays": None, "rows": document["rows"]}
    document["checksum"] = _checksum(document)
    target = PUBLISHED / experiment / place.name
    files.write(target, json.dumps(document).encode())
    return target


def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of a hash. Raises ValueError if they are missing or do not match it."""
    place = store.home() / "arrays" / f"{name}.safetensors"
    if not place.exists():
        raise ValueError(f"its array file {place.name} is missing")
    content = place.read_bytes()
    if hashlib.sha256(content).hexdigest() != name:
        raise ValueError(f"its array file {place.name} does not match its hash")
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise ValueError(f"its array file {place.name} cannot be read: {error}") from None


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim: a statistic with its 95 % interval against a threshold fixed before the run.

    The claim holds where the statistic is at least the threshold, or with at_most=True where it is at most that.
    attack: which attack the statistic rests on ("paper" or "strong"), if it rests on one. void: why the statistic can
    tell nothing here, if so (a rate that is 1 everywhere, say): then the outcome is undecided, whatever its value.
    """

    claim: str
    statistic: str
    value: float
    low: float
    high: float
    threshold: float
    at_most: bool = False
    attack: Literal["", "paper", "strong"] = ""
    void: str = ""

    @property
    def outcome(self) -> Outcome:
        """Supported if the whole interval is on the claim's side of the threshold, not supported if none of it is,
        else undecided.
        """
        if self.void or not np.isfinite([self.value, self.low, self.high]).all():
            return "undecided"
        if self.at_most:
            return "supported" if self.high <= self.threshold else _unless(self.low > self.threshold)
        return "supported" if self.low >= self.threshold else _unless(self.high < self.threshold)


def _unless(failed: bool) -> Outcome:
    return "not supported" if failed else "undecided"


def counts(values: np.ndarray, edges: np.ndarray) -> list[int]:
    """Fixed-bin counts of finite values; those outside the edges count in the first or last bin."""
    inside = np.clip(values[np.isfinite(values)], edges[0], edges[-1])
    return [int(count) for count in np.histogram(inside, edges)[0]]


def _put(values: Mapping[str, np.ndarray]) -> str:
    content = save({name: np.ascontiguousarray(value) for name, value in values.items()})
    name = hashlib.sha256(content).hexdigest()
    files.write(store.home() / "arrays" / f"{name}.safetensors", content)
    return name


def _parse(place: Path) -> dict[str, Any]:
    try:
        document = json.loads(place.read_bytes())
        checksum = document.pop("checksum")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("it is not whole") from None
    if checksum != _checksum(document):
        raise ValueError("its content does not match its checksum")
    return dict(document)


def _checksum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _table(document: Mapping[str, Any]) -> pd.DataFrame:
    shared: Iterable[tuple[str, Any]] = {**document["about"], "arrays": document["arrays"]}.items()
    table = pd.DataFrame(document["rows"])
    for name, value in shared:
        if name not in table:
            table[name] = [value] * len(table)
    return table
