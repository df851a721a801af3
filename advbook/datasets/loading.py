"""Images of a data set as tensors, read from verified files only."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advbook.datasets import sources
from advbook.datasets.register import DATASETS, InPlace, Whole
from advbook.datasets.sources import DamagedData, MissingData, Places, known
from advbook.formats import Uint8s


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images and where they come from.

    x: [N, C, H, W] float32 in [0, 1]; y: [N] int64, an index into `classes`; `source`: one line for people.
    """

    x: Tensor
    y: Tensor
    name: str
    split: str
    classes: tuple[str, ...]
    source: str


def available(name: str, root: Path | None = None) -> bool:
    """Whether both splits can be loaded without a network, judged by the sizes of the files.

    `root` stands in for ADVBOOK_DATA. Raises ValueError if the name is unknown.
    """
    dataset = known("data set", name, DATASETS)
    try:
        return sources.ready(dataset, dataset.files, sources.places(root))
    except MissingData:
        return False


def how_many(n: int | None, count: int, what: str) -> int:
    """How many images were asked for: all `count` where n is None. Raises ValueError for n outside 1..count."""
    rows = count if n is None else n
    if not 1 <= rows <= count:
        raise ValueError(f"n is {n}; {what} has {count} images, so it must be 1 to {count}")
    return rows


def in_words(rows: int, count: int) -> str:
    """How many images these are, as a source says it."""
    return f"{'all' if rows == count else f'first {rows} of'} {count} images"


def load(
    name: str,
    split: str = "train",
    *,
    n: int | None = None,
    root: Path | None = None,
    device: torch.device | str = "cpu",
    download: bool = True,
) -> Images:
    """Load the first `n` images of a split (all of them by default), verified, as float32 in [0, 1].

    `root` stands in for ADVBOOK_DATA. Raises ValueError for an unknown name or split and for n outside
    1..size, `MissingData` if the files are nowhere to be had, `DamagedData` if a file in the user's folder is
    not the published one, and OSError if the cache cannot be written.
    """
    dataset = known("data set", name, DATASETS)
    part = known(f"split of {name}", split, dataset.splits)
    rows = how_many(n, part.count, f"{name} {split}")
    x, y = read(name, split, rows, sources.places(root), download)
    return Images(
        x=_tensor(x).to(device).float().div_(255),  # [n, C, H, W]
        y=_tensor(y).to(device).long(),
        name=name,
        split=split,
        classes=dataset.classes,
        source=f"{dataset.title} {split}, {in_words(rows, part.count)}, sha256 {part.files[0].sha256[:8]}...",
    )


def _tensor(values: Uint8s) -> Tensor:
    """The same bytes as a tensor: copied only where they are strided or may not be written, since they can be many."""
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def read(name: str, split: str, rows: int, at: Places, download: bool) -> tuple[Uint8s, Uint8s]:
    """The first rows of a split as bytes: images [rows, C, H, W] and labels [rows]. Raises as `load` does."""
    dataset = DATASETS[name]
    part = dataset.splits[split]
    try:
        match dataset.reader:
            case Whole():
                x, y = dataset.reader.read(sources.contents(name, part.files, at, download))
                if len(x) != part.count:
                    raise ValueError(f"there are {len(x)} images; {part.count} were published")
            case InPlace():
                wanted = range(part.first, part.first + rows)
                x, y = dataset.reader.read(sources.paths(name, part.files, at), wanted)
    except ValueError as error:
        raise DamagedData(f"{name} {split}: {error}") from error
    return x[:rows], y[:rows]
