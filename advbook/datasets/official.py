"""The official corruptions of test sets, MNIST-C and CIFAR-10-C, as their authors published them.

They are read from the archive, as it was published, or from loose files. `fetch` brings the archive into the cache,
where it is kept whole: there is a published hash of it, and none of the single files.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from advbook import formats
from advbook.datasets import sources
from advbook.datasets.loading import Images, how_many, in_words
from advbook.datasets.register import CORRUPTED, DATASETS, Corrupted
from advbook.datasets.sources import DamagedData, MissingData, Places, known
from advbook.formats import Uint8s


def corruptions_available(name: str, root: Path | None = None) -> tuple[str, ...]:
    """The corruptions of mnist_c or cifar10_c whose files are at hand.

    Judged by whether the archive is there, or by the sizes of the loose files. `root` stands in for ADVBOOK_DATA.
    Raises ValueError if the name is unknown.
    """
    family = known("set of corruptions", name, CORRUPTED)
    try:
        return _at_hand(family, sources.places(root).folders)
    except MissingData:
        return ()


def _at_hand(family: Corrupted, folders: Sequence[Path]) -> tuple[str, ...]:
    if any((folder / family.archive).is_file() for folder in folders):
        return family.corruptions
    return tuple(c for c in family.corruptions if any(_loose(family, c, folder) for folder in folders))


def corrupted(
    name: str,
    corruption: str,
    severity: int | None = None,
    *,
    n: int | None = None,
    root: Path | None = None,
    device: torch.device | str = "cpu",
) -> Images:
    """Load the first `n` images of a published corruption of a test set, in the order of that set, float32 in [0, 1].

    name: "mnist_c" (Mu and Gilmer, 2019; one severity, so leave it out) or "cifar10_c" (Hendrycks and Dietterich, 2019;
    severities 1 to 5). The files are those that the user has put into ADVBOOK_DATA (for which `root` stands in) or the
    cache: the archive, which is verified by its sha256, or loose .npy files, of which no hash is published and only the
    form is checked; `Images.source` says which. Raises ValueError for an unknown name or corruption and for a severity
    or n that is not there, `MissingData` if there are no files, `DamagedData` if they are not what was published.
    """
    family = known("set of corruptions", name, CORRUPTED)
    known(f"corruption of {name}", corruption, dict.fromkeys(family.corruptions))
    first = _severity(name, family, severity) * family.count
    rows = how_many(n, family.count, f"{name} {corruption}")
    x, y, how = _arrays(name, family, corruption, sources.places(root))
    chosen = slice(first, first + rows)
    return Images(
        x=torch.from_numpy(x[chosen].transpose(0, 3, 1, 2).copy()).to(device).float().div_(255),  # [n, C, H, W]
        y=torch.from_numpy(y[chosen].astype(np.int64)).to(device),
        name=name,
        split="test",
        classes=DATASETS[family.clean].classes,
        source=f"{family.title} {corruption}{'' if severity is None else f' at severity {severity}'}, "
        f"{in_words(rows, family.count)}, {how}",
    )


def _severity(name: str, family: Corrupted, severity: int | None) -> int:
    """How many severities come before this one in the files."""
    if family.severities == 1:
        if severity is not None:
            raise ValueError(f"severity is {severity}; {name} was published at one severity, so it must be left out")
        return 0
    if severity is None or not 1 <= severity <= family.severities:
        raise ValueError(f"severity is {severity}; {name} has severities 1 to {family.severities}")
    return severity - 1


def _limits(family: Corrupted) -> tuple[int, int]:
    """How many bytes the files of the images and of the labels may have."""
    total = family.severities * family.count
    return total * math.prod(family.shape) + formats.NPY_HEADER, total * 8 + formats.NPY_HEADER


def _loose(family: Corrupted, corruption: str, folder: Path) -> bool:
    """Whether the loose files of a corruption are in this folder and can be what was published, by their sizes."""
    pairs = zip(family.paths(corruption), _limits(family), strict=True)
    sizes = [(folder / path, limit) for path, limit in pairs]
    if not all(path.is_file() and path.stat().st_size <= limit for path, limit in sizes):
        return False
    images, limit = sizes[0]
    return images.stat().st_size >= limit - formats.NPY_HEADER


def _arrays(name: str, family: Corrupted, corruption: str, at: Places) -> tuple[Uint8s, NDArray[np.integer[Any]], str]:
    """All images [severities * count, H, W, C] and labels of a corruption, and how they were verified."""
    images, labels, how = _bytes(name, family, corruption, at)
    return *_check(name, family, corruption, images, labels), how


def _bytes(name: str, family: Corrupted, corruption: str, at: Places) -> tuple[bytes, bytes, str]:
    """The files of the images and the labels, and how they were verified: the archive is preferred to loose files."""
    paths = family.paths(corruption)
    for folder in at.folders:
        archive = folder / family.archive
        if archive.is_file():
            found = _from_archive(family, archive, paths)
            return found[paths[0]], found[paths[1]], f"sha256 of {family.archive} {family.sha256[:8]}..."
        if _loose(family, corruption, folder):
            images, labels = ((folder / path).read_bytes() for path in paths)
            return images, labels, "loose files, not verified by a hash"
        if (folder / paths[0]).exists():
            raise DamagedData(
                f"{paths[0]} in {folder} is not the published file, or {paths[1]} is not beside it: "
                f"put both there again, or {family.archive}"
            )
    raise MissingData(
        f"{name}: neither {family.archive} nor {' with '.join(paths)} is in {at.label} or in the cache {at.cache}; "
        f"with a network, run `python -m advbook.datasets fetch {name}` ({weight(family)}); {_by_hand(family)}"
    )


def weight(family: Corrupted) -> str:
    """What the archive takes, for people."""
    size = "" if family.size is None else f"{family.size / 1e9:.1f} GB, "
    return f"{size}kept whole in the cache"


def _by_hand(family: Corrupted) -> str:
    where = "into the folder that ADVBOOK_DATA names, as it is or unpacked"
    return f"by hand, put {family.archive} from {family.mirrors[0]} {where}"


def _from_archive(family: Corrupted, archive: Path, paths: Sequence[str]) -> dict[str, bytes]:
    """These members of the archive, which is verified first."""
    _verify(family, archive)
    try:
        return dict(formats.members(archive, dict(zip(paths, _limits(family), strict=True))))
    except ValueError as error:
        raise DamagedData(f"{archive.name} cannot be unpacked: {error}") from error


def _verify(family: Corrupted, archive: Path) -> None:
    """Raise DamagedData unless this is the published archive."""
    if family.size not in (None, archive.stat().st_size) or sources.sha256(archive) != family.sha256:
        raise DamagedData(f"{archive} is truncated or is not the published file (wrong sha256): replace or remove it")


def _check(
    name: str, family: Corrupted, corruption: str, images: bytes, labels: bytes
) -> tuple[Uint8s, NDArray[np.integer[Any]]]:
    """Parse both files and compare them with what was published: images [severities * count, H, W, C] and labels."""
    total, classes = family.severities * family.count, len(DATASETS[family.clean].classes)
    try:
        x, y = formats.parse_npy(images), formats.parse_npy(labels)
    except ValueError as error:
        raise DamagedData(f"{name} {corruption}: {error}") from error
    if x.dtype != np.uint8 or x.shape != (total, *family.shape):
        raise DamagedData(
            f"{name} {corruption} has images {list(x.shape)} of {x.dtype}, not {[total, *family.shape]} bytes"
        )
    if y.shape != (total,) or y.min() < 0 or y.max() >= classes:
        raise DamagedData(
            f"{name} {corruption} must have {total} labels from 0 to {classes - 1}; it has {list(y.shape)}"
        )
    return x.astype(np.uint8, copy=False), y


def fetch(name: str, at: Places) -> None:
    """Bring the archive of a set of corruptions into the cache, unless all of the set is in the user's folder.

    Raises MissingData if no mirror has it, and OSError if the cache cannot be written.
    """
    family = CORRUPTED[name]
    if at.given is not None and _at_hand(family, [at.given]) == family.corruptions:
        return
    with sources.writing(name, at.cache):
        why = sources.from_mirrors(family.mirrors, at.cache / family.archive, family.sha256, family.size)
    if why is not None:
        raise MissingData(f"{name}: {family.archive} could not be fetched ({why}); {_by_hand(family)}")


def check(name: str, at: Places) -> Iterator[tuple[str, str | None]]:
    """Verify the archive or, one after the other, the loose files: their names, and what is wrong (None: nothing).

    Of what is nowhere, nothing is said.
    """
    family = CORRUPTED[name]
    archive = next((path for folder in at.folders if (path := folder / family.archive).is_file()), None)
    if archive is not None:
        yield family.archive, _wrong(partial(_verify, family, archive))
        return
    for corruption in family.corruptions:
        if any((folder / family.paths(corruption)[0]).exists() for folder in at.folders):
            yield corruption, _wrong(partial(_arrays, name, family, corruption, at))


def _wrong(verify: Callable[[], object]) -> str | None:
    try:
        verify()
    except DamagedData as error:
        return str(error)
    return None
