"""What is known about every data set without reading it: the table data/datasets.yml.

A new data set is one more entry of the table; a new format is one more reader here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from advbook import formats
from advbook.datasets import celeba
from advbook.formats import Uint8s


@dataclass(frozen=True)
class File:
    """A published file: its path inside the data folder, its size in bytes, its sha256 in hex."""

    path: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The name without the folder."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Whole:
    """A reader that takes the bytes of all files of a split, and gives all of its images."""

    read: formats.Reader


@dataclass(frozen=True)
class InPlace:
    """A reader of files too large to hold: it takes their paths, in which they stay, and the rows that are wanted."""

    read: Callable[[Sequence[Path], range], tuple[Uint8s, Uint8s]]


@dataclass(frozen=True)
class Split:
    """A part of a data set: how many images it has, and the files that its reader takes, in this order.

    `first`: how many images of other splits stand before these in the same files.
    """

    count: int
    files: tuple[File, ...]
    first: int = 0


@dataclass(frozen=True)
class Dataset:
    """What there is to know about a data set without reading it.

    `reader` turns the verified files of a split into uint8 images [N, C, H, W] and labels [N]. `mirrors` are
    addresses to which a file's name is appended; a data set without one cannot be fetched. Where `archive` is set,
    the mirrors have this zip or tar file instead of the single files; a file's name inside it is its path relative to
    the folder of the archive. `note`: what else a person must know to whom the data set is missing.
    """

    title: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    reader: Whole | InPlace
    mirrors: tuple[str, ...]
    archive: File | None = None
    note: str = ""

    @property
    def files(self) -> tuple[File, ...]:
        """All files of all splits, each once."""
        return tuple(dict.fromkeys(file for part in self.splits.values() for file in part.files))


@dataclass(frozen=True)
class Corrupted:
    """What there is to know about a published set of corruptions of a test set.

    `clean` names the data set whose test images were corrupted, `count` of them at each of `severities` severities, one
    after the other; `shape`: [H, W, C] of one image. `images` and `labels` are the paths of .npy files, in the data
    folder as in the `archive`, with {corruption} for its name. Only the archive has a published `sha256`; its `size` in
    bytes is None where none is published.
    """

    title: str
    clean: str
    count: int
    severities: int
    shape: tuple[int, ...]
    images: str
    labels: str
    archive: str
    size: int | None
    sha256: str
    mirrors: tuple[str, ...]
    corruptions: tuple[str, ...]

    def paths(self, corruption: str) -> tuple[str, str]:
        """The files of the images and of the labels."""
        return self.images.format(corruption=corruption), self.labels.format(corruption=corruption)


READERS: dict[str, Whole | InPlace] = {
    "idx": Whole(formats.read_idx),
    "emnist": Whole(formats.read_emnist),
    "emnist_letters": Whole(formats.read_emnist_letters),
    "cifar10": Whole(formats.read_cifar10),
    "cifar100": Whole(formats.read_cifar100),
    "svhn": Whole(formats.read_svhn),
    "celeba": InPlace(celeba.read),
}
TABLE: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[1] / "data" / "datasets.yml").read_text(encoding="utf-8")
)


def _split(part: dict[str, Any]) -> Split:
    return Split(part["count"], tuple(File(**file) for file in part["files"]), part.get("first", 0))


def _dataset(entry: dict[str, Any]) -> Dataset:
    return Dataset(
        title=entry["title"],
        classes=tuple(entry["classes"]),
        splits={name: _split(part) for name, part in entry["splits"].items()},
        reader=READERS[entry["read"]],
        mirrors=tuple(entry["mirrors"]),
        archive=File(**entry["archive"]) if "archive" in entry else None,
        note=entry.get("note", ""),
    )


def _corrupted(entry: dict[str, Any]) -> Corrupted:
    lists = {key: tuple(entry[key]) for key in ("shape", "mirrors", "corruptions")}
    return Corrupted(**{**entry, **lists})


DATASETS: dict[str, Dataset] = {name: _dataset(entry) for name, entry in TABLE["datasets"].items()}
CORRUPTED: dict[str, Corrupted] = {name: _corrupted(entry) for name, entry in TABLE["corrupted"].items()}
