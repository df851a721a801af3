"""Real images: look a data set up, verify every byte, read it.

A file is looked for in the folder that the environment variable ADVBOOK_DATA names, then in the cache, and is
then downloaded into the cache, from several mirrors in turn. Its sha256 is checked each time, before anything
parses it.

A new data set is one more entry of data/datasets.yml; a new format is one more function of `advbook.formats`.
"""

import argparse
import difflib
import hashlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import pooch
import torch
import yaml
from filelock import FileLock
from numpy.typing import NDArray
from requests import ConnectionError as NoConnection
from requests import HTTPError, RequestException, Response, Timeout
from torch import Tensor
from tqdm import tqdm

from advbook import files, formats
from advbook.formats import Reader, Uint8s

TIMEOUT = 15.0  # seconds without an answer until the next mirror is tried
CHUNK = 1 << 16  # bytes

T = TypeVar("T")


class MissingData(FileNotFoundError):
    """A data set is neither in the data folder nor in the cache, and no mirror gave it."""


class DamagedData(OSError):
    """A file of a data set does not hold the bytes that were published."""


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
class Split:
    """A part of a data set: how many images it has, and the files that its reader takes, in this order."""

    count: int
    files: tuple[File, ...]


@dataclass(frozen=True)
class Dataset:
    """What there is to know about a data set without reading it.

    `read` turns the verified files of a split into uint8 images [N, C, H, W] and labels [N]. `mirrors` are
    addresses to which a file's name is appended; a data set without one cannot be fetched. Where `archive` is set,
    the mirrors have this zip or tar file instead of the single files; a file's name inside it is its path relative to
    the folder of the archive. `note`: what else a person must know to whom the data set is missing.
    """

    title: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    read: Reader
    mirrors: tuple[str, ...]
    archive: File | None = None
    note: str = ""

    @property
    def files(self) -> tuple[File, ...]:
        """All files of all splits."""
        return tuple(file for part in self.splits.values() for file in part.files)


@dataclass(frozen=True)
class Corrupted:
    """What there is to know about a published set of corruptions of a test set.

    `clean` names the data set whose test images were corrupted, `count` of them at each of `severities` severities, one
    after the other; `shape`: [H, W, C] of one image. `images` and `labels` are the paths of .npy files, in the data
    folder as in the `archive`, with {corruption} for its name. Only the archive has a published `sha256`.
    """

    title: str
    clean: str
    count: int
    severities: int
    shape: tuple[int, ...]
    images: str
    labels: str
    archive: str
    sha256: str
    mirror: str
    corruptions: tuple[str, ...]

    def paths(self, corruption: str) -> tuple[str, str]:
        """The files of the images and of the labels."""
        return self.images.format(corruption=corruption), self.labels.format(corruption=corruption)


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


# --- the data sets ------------------------------------------------------------------------------------------

READERS: dict[str, Reader] = {
    "idx": formats.read_idx,
    "emnist": formats.read_emnist,
    "cifar10": formats.read_cifar10,
    "cifar100": formats.read_cifar100,
    "svhn": formats.read_svhn,
}
TABLE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "data" / "datasets.yml").read_text(encoding="utf-8"))


def _dataset(entry: dict[str, Any]) -> Dataset:
    splits = {
        name: Split(part["count"], tuple(File(**file) for file in part["files"]))
        for name, part in entry["splits"].items()
    }
    return Dataset(
        title=entry["title"],
        classes=tuple(entry["classes"]),
        splits=splits,
        read=READERS[entry["read"]],
        mirrors=tuple(entry["mirrors"]),
        archive=File(**entry["archive"]) if "archive" in entry else None,
        note=entry.get("note", ""),
    )


def _corrupted(entry: dict[str, Any]) -> Corrupted:
    lists = {key: tuple(entry[key]) for key in ("shape", "corruptions")}
    return Corrupted(**{**entry, **lists})


DATASETS: dict[str, Dataset] = {name: _dataset(entry) for name, entry in TABLE["datasets"].items()}
CORRUPTED: dict[str, Corrupted] = {name: _corrupted(entry) for name, entry in TABLE["corrupted"].items()}


# --- looking up, verifying, fetching ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Places:
    """Where files are looked for: the user's folder, if there is one, and the cache."""

    given: Path | None
    label: str  # how an error names the user's folder
    cache: Path

    @property
    def folders(self) -> tuple[Path, ...]:
        """Both, in the order in which they are searched."""
        return (self.cache,) if self.given is None else (self.given, self.cache)


def _places(root: Path | None) -> _Places:
    text = os.environ.get("ADVBOOK_DATA", "") if root is None else str(root)
    label = f"{'ADVBOOK_DATA' if root is None else 'root'}={text}" if text else "ADVBOOK_DATA (unset)"
    given = Path(text).expanduser() if text else None
    if given is not None and not given.is_dir():
        raise MissingData(f"{label} is not a folder; it must be the folder that holds the data sets")
    return _Places(given, label, pooch.os_cache("advbook").expanduser())


def _known(what: str, name: str, allowed: Mapping[str, T]) -> T:
    """The entry called `name`; if there is none, ValueError with the known names and the nearest one."""
    if name in allowed:
        return allowed[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), allowed, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} {name!r} is unknown;{hint} known: {', '.join(allowed)}")


def _intact(folder: Path, file: File) -> bytes | None:
    """The bytes of a file in this folder, or None unless they are the published ones."""
    path = folder / file.path
    if not path.is_file() or path.stat().st_size != file.size:
        return None
    raw = path.read_bytes()
    return raw if hashlib.sha256(raw).hexdigest() == file.sha256 else None


def _bytes(name: str, file: File, places: _Places, download: bool) -> bytes:
    """The verified bytes of a file: from the user's folder, the cache or, if allowed, a mirror."""
    if places.given is not None and (places.given / file.path).exists():
        raw = _intact(places.given, file)
        if raw is None:  # what the user put there is never replaced behind their back
            raise _not_ours(name, file, places.given, places.label)
        return raw
    raw = _intact(places.cache, file)
    if raw is not None:
        return raw
    if not DATASETS[name].mirrors:
        raise _missing(name, file, places, "")
    if not download:
        raise _missing(name, file, places, "downloading was not allowed")
    return _fetch(name, file, places)


def _not_ours(name: str, file: File, folder: Path, label: str) -> DamagedData:
    """What to say of a file that is not the published one: it may be that of another data set with the same paths."""
    for owner, dataset in DATASETS.items():
        for other in dataset.files:
            if other.path == file.path and other != file and _intact(folder, other) is not None:
                return DamagedData(
                    f"{file.path} in {label} belongs to {owner} ({dataset.title}), not to {name}: "
                    f"use DATASET={owner}, or put all files of {name} in place of those, or remove those"
                )
    return DamagedData(
        f"{file.path} in {label} is damaged or is not the published file ({file.size} bytes, "
        f"sha256 {file.sha256[:8]}...): replace it, or remove it to use the cache or a download"
    )


def _read(name: str, split: str, places: _Places, download: bool) -> tuple[Uint8s, Uint8s]:
    """A whole split as bytes: images [N, C, H, W] and labels [N]."""
    dataset = DATASETS[name]
    part = dataset.splits[split]
    x, y = dataset.read([_bytes(name, file, places, download) for file in part.files])
    if len(x) != part.count:
        raise DamagedData(f"{name} {split} has {len(x)} images; {part.count} were published")
    return x, y


def _missing(name: str, file: File, places: _Places, why: str) -> MissingData:
    dataset = DATASETS[name]
    nowhere = f"{name}: {file.path} is neither in {places.label} nor intact in the cache {places.cache}"
    if not dataset.mirrors:
        return MissingData(f"{nowhere}, and {name} cannot be fetched: {dataset.note}")
    wanted = dataset.archive or file
    folder = PurePosixPath(wanted.path).parent
    names = wanted.name if dataset.archive else ", ".join(file.name for file in dataset.files)
    verb = "put" if dataset.archive is None else "unzip" if wanted.name.endswith(".zip") else "unpack"
    return MissingData(
        f"{nowhere} ({why}); "
        f"with a network, run `python -m advbook.datasets fetch {name}`; "
        f"by hand, set ADVBOOK_DATA to a folder and, into {folder} there, {verb} {names} "
        f"from {dataset.mirrors[0]}"
    )


def _fetch(name: str, file: File, places: _Places) -> bytes:
    """Bring a file into the cache and return its verified bytes."""
    reasons: list[str] = []
    try:
        places.cache.mkdir(parents=True, exist_ok=True)
        with FileLock(places.cache / ".lock"):
            raw = _intact(places.cache, file)  # another process may have fetched it while this one waited
            if raw is None:
                reasons = _download(DATASETS[name], file, places.cache)
                raw = _intact(places.cache, file)
    except OSError as error:
        if error.errno is None:  # not from the file system: already one of our sentences
            raise
        raise OSError(
            f"{name}: the cache {places.cache} cannot be written ({error.strerror}); "
            "make that possible, or put the files into a folder of your own and set ADVBOOK_DATA to it"
        ) from error
    if raw is None:
        raise _missing(name, file, places, "; ".join(reasons))
    return raw


def _download(dataset: Dataset, file: File, cache: Path) -> list[str]:
    """Try the mirrors in turn until one gives the file, or its archive; return why those before it did not."""
    wanted = dataset.archive or file
    target = cache / wanted.path
    for stray in target.parent.rglob("tmp*"):  # left by a killed download; under the lock nobody else writes
        stray.unlink()
    reasons = []
    for mirror in dataset.mirrors:
        try:
            _retrieve(mirror + wanted.name, wanted, target)
        except (RequestException, ValueError) as error:
            reasons.append(f"{urlsplit(mirror).netloc}: {_reason(error)}")
            continue
        if dataset.archive is not None:
            _unpack(target, _members(dataset.archive), target.parent)
            target.unlink()  # half a gigabyte, most of it other splits
        break
    return reasons


def _retrieve(url: str, file: File, target: Path) -> None:
    """Download one file to `target`, where it appears only when it is whole and its sha256 is right."""
    pooch.get_logger().setLevel("WARNING")  # the progress bar says it already
    with tqdm(desc=file.name, total=file.size, unit="B", unit_scale=True, leave=False) as bar:
        downloader = pooch.HTTPDownloader(
            progressbar=bar,
            chunk_size=CHUNK,
            timeout=TIMEOUT,
            headers={"Accept-Encoding": "identity"},  # the sha256 is that of the gzip file itself
        )
        pooch.retrieve(url, f"sha256:{file.sha256}", target.name, target.parent, downloader=downloader)


def _reason(error: Exception) -> str:
    """Why a mirror failed, in a few words."""
    match error:
        case HTTPError(response=Response() as answer):
            return f"HTTP status {answer.status_code}"
        case Timeout():
            return "no answer in time"
        case NoConnection():
            return "no connection"
        case RequestException():
            return "the download broke off"
        case _:
            return "the file is damaged (wrong sha256)"


def _members(archive: File) -> dict[str, File]:
    """The files of all data sets that lie in this archive, by the name they have in it."""
    folder = PurePosixPath(archive.path).parent
    return {
        str(PurePosixPath(file.path).relative_to(folder)): file
        for dataset in DATASETS.values()
        if dataset.archive == archive
        for file in dataset.files
    }


def _unpack(archive: Path, members: Mapping[str, File], folder: Path) -> None:
    """Write the named members of a zip or tar file, and no others, below `folder`, each verified and in one step."""
    try:
        for member, raw in formats.members(archive, {name: file.size for name, file in members.items()}):
            if hashlib.sha256(raw).hexdigest() != members[member].sha256:
                raise DamagedData(f"{member} in {archive.name} is not the published file (wrong sha256)")
            files.write(folder / member, raw)
    except ValueError as error:
        raise DamagedData(f"{archive.name} cannot be unpacked: {error}") from error


# --- for the rest of the book -------------------------------------------------------------------------------


def _ready(part: Split, places: _Places) -> bool:
    """Whether all files of a split are where `load` finds them, judged by their sizes alone."""

    def size(file: File) -> int:
        given = places.given / file.path if places.given is not None else None
        path = given if given is not None and given.exists() else places.cache / file.path
        return path.stat().st_size if path.is_file() else -1

    return all(size(file) == file.size for file in part.files)


def available(name: str, root: Path | None = None) -> bool:
    """Whether both splits can be loaded without a network, judged by the sizes of the files.

    `root` stands in for ADVBOOK_DATA. Raises ValueError if the name is unknown.
    """
    dataset = _known("data set", name, DATASETS)
    try:
        places = _places(root)
    except MissingData:
        return False
    return all(_ready(part, places) for part in dataset.splits.values())


def _rows(n: int | None, count: int, what: str) -> int:
    """How many images were asked for."""
    rows = count if n is None else n
    if not 1 <= rows <= count:
        raise ValueError(f"n is {n}; {what} has {count} images, so it must be 1 to {count}")
    return rows


def _how_many(rows: int, count: int) -> str:
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
    dataset = _known("data set", name, DATASETS)
    part = _known(f"split of {name}", split, dataset.splits)
    rows = _rows(n, part.count, f"{name} {split}")
    x, y = _read(name, split, _places(root), download)
    return Images(
        x=torch.from_numpy(x[:rows].copy()).to(device).float().div_(255),  # [n, C, H, W]
        y=torch.from_numpy(y[:rows].copy()).to(device).long(),
        name=name,
        split=split,
        classes=dataset.classes,
        source=f"{dataset.title} {split}, {_how_many(rows, part.count)}, sha256 {part.files[0].sha256[:8]}...",
    )


# --- published corruptions ----------------------------------------------------------------------------------


def corruptions_available(name: str, root: Path | None = None) -> tuple[str, ...]:
    """The corruptions of mnist_c or cifar10_c whose files are at hand.

    Judged by whether the archive is there, or by the sizes of the loose files. `root` stands in for ADVBOOK_DATA.
    Raises ValueError if the name is unknown.
    """
    family = _known("set of corruptions", name, CORRUPTED)
    try:
        folders = _places(root).folders
    except MissingData:
        return ()
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
    family = _known("set of corruptions", name, CORRUPTED)
    _known(f"corruption of {name}", corruption, dict.fromkeys(family.corruptions))
    first = _severity(name, family, severity) * family.count
    rows = _rows(n, family.count, f"{name} {corruption}")
    images, labels, how = _corrupted_bytes(name, family, corruption, _places(root))
    x, y = _check_corrupted(name, family, corruption, images, labels)
    chosen = slice(first, first + rows)
    return Images(
        x=torch.from_numpy(x[chosen].transpose(0, 3, 1, 2).copy()).to(device).float().div_(255),  # [n, C, H, W]
        y=torch.from_numpy(y[chosen].astype(np.int64)).to(device),
        name=name,
        split="test",
        classes=DATASETS[family.clean].classes,
        source=f"{family.title} {corruption}{'' if severity is None else f' at severity {severity}'}, "
        f"{_how_many(rows, family.count)}, {how}",
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


def _corrupted_bytes(name: str, family: Corrupted, corruption: str, places: _Places) -> tuple[bytes, bytes, str]:
    """The files of the images and the labels, and how they were verified: the archive is preferred to loose files."""
    paths = family.paths(corruption)
    for folder in places.folders:
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
        f"{name}: neither {family.archive} nor {' with '.join(paths)} is in {places.label} or in the cache "
        f"{places.cache}; {_by_hand(family)}"
    )


def _by_hand(family: Corrupted) -> str:
    return f"put {family.archive} from {family.mirror} into the folder that ADVBOOK_DATA names, as it is or unpacked"


def _from_archive(family: Corrupted, archive: Path, paths: Sequence[str]) -> dict[str, bytes]:
    """These members of the archive, which is verified first."""
    status = archive.stat()
    if _sha256(archive, status.st_size, status.st_mtime_ns) != family.sha256:
        raise DamagedData(f"{archive} is damaged or is not the published file (wrong sha256): replace or remove it")
    try:
        return dict(formats.members(archive, dict(zip(paths, _limits(family), strict=True))))
    except ValueError as error:
        raise DamagedData(f"{archive.name} cannot be unpacked: {error}") from error


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, changed: int) -> str:
    """The sha256 of a large file, computed once as long as its size and time of change stay the same."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_corrupted(
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


# --- python -m advbook.datasets -----------------------------------------------------------------------------


def _list() -> None:
    places = _places(None)
    print(f"data folder: {places.label}\ncache: {places.cache}\n\n{'name':14}{'images':18}{'here':13}title")
    for name, dataset in DATASETS.items():
        counts = " + ".join(str(part.count) for part in dataset.splits.values())
        here = ", ".join(split for split, part in dataset.splits.items() if _ready(part, places)) or "-"
        print(f"{name:14}{counts:18}{here:13}{dataset.title}")
    for name, family in CORRUPTED.items():
        counts = (
            f"{len(family.corruptions)} x " + f"{family.severities} x " * (family.severities > 1) + str(family.count)
        )
        found = len(corruptions_available(name))
        here = f"{found} of {len(family.corruptions)}" if found else "-"
        print(f"{name:14}{counts:18}{here:13}{family.title}")
    print(
        "\nTo get one: python -m advbook.datasets fetch NAME, or put its files into a folder that ADVBOOK_DATA names."
    )


def _fetch_all(names: Sequence[str]) -> None:
    places = _places(None)
    for name in names:
        if name in CORRUPTED:
            raise ValueError(f"{name} is not fetched: {_by_hand(CORRUPTED[name])}")
        _known("data set", name, DATASETS)
    for name in names:
        for split in DATASETS[name].splits:
            x, _ = _read(name, split, places, download=True)
            print(f"{name} {split}: {len(x)} images, every file verified")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m advbook.datasets",
        description="List the data sets of real images, or fetch and verify them.",
    )
    parser.set_defaults(names=[])
    commands = parser.add_subparsers(metavar="COMMAND")
    commands.add_parser("list", help="say which data sets there are and which are here (the default)")
    fetch = commands.add_parser("fetch", help="download what is missing and verify all of it")
    fetch.add_argument("names", nargs="+", metavar="NAME", help=f"one of {', '.join(DATASETS)}")
    names = parser.parse_args(arguments).names
    try:
        if names:
            _fetch_all(names)
        else:
            _list()
    except (OSError, ValueError) as error:
        print(f"advbook.datasets: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
