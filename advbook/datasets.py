"""Real images: look a data set up, verify every byte, read it.

A file is looked for in the folder that the environment variable ADVBOOK_DATA names, then in the cache, and is
then downloaded into the cache, from several mirrors in turn. Its sha256 is checked each time, before anything
parses it.

A new data set is one more entry of `DATASETS`; a new format is one more function from verified bytes to
arrays.
"""

import argparse
import difflib
import gzip
import hashlib
import math
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import urlsplit

import numpy as np
import pooch
import torch
from filelock import FileLock
from numpy.typing import NDArray
from requests import ConnectionError as NoConnection
from requests import HTTPError, RequestException, Response, Timeout
from torch import Tensor
from tqdm import tqdm

from advbook import files

TIMEOUT = 15.0  # seconds without an answer until the next mirror is tried
CHUNK = 1 << 16  # bytes

Uint8s = NDArray[np.uint8]
T = TypeVar("T")
Reader = Callable[[Sequence[bytes]], tuple[Uint8s, Uint8s]]


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
    addresses to which a file's name is appended. Where `archive` is set, the mirrors have this zip instead of
    the single files; a file's name inside it is its path relative to the folder of the zip.
    """

    title: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    read: Reader
    mirrors: tuple[str, ...]
    archive: File | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """All files of all splits."""
        return tuple(file for part in self.splits.values() for file in part.files)


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


# --- the idx format -----------------------------------------------------------------------------------------


def parse_idx(raw: bytes) -> Uint8s:
    """Read an array of unsigned bytes in idx format, as MNIST is published.

    The format: two zero bytes, the code of the type (8: unsigned byte), the number of dimensions, each
    dimension as a big-endian 32-bit integer, then the values. Raises ValueError for anything else.
    """
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise ValueError(f"idx data must begin with two zero bytes, a type and a rank; got {raw[:4]!r}")
    code, rank = raw[2], raw[3]
    if code != 8:
        raise ValueError(f"idx type code is {code:#04x}; only 0x08 (unsigned byte) is read here")
    if not 1 <= rank <= 4:
        raise ValueError(f"idx data has {rank} dimensions; allowed are 1 to 4")
    start = 4 + 4 * rank
    if len(raw) < start:
        raise ValueError(f"idx header ends after {len(raw)} bytes; {rank} dimensions need {start}")
    shape = struct.unpack(f">{rank}I", raw[4:start])
    if 0 in shape or math.prod(shape) != len(raw) - start:
        raise ValueError(f"idx header says {shape}; {len(raw) - start} values follow")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def gunzip(raw: bytes) -> bytes:
    """Unpack gzip data. Raises ValueError where it is truncated or damaged."""
    try:
        return gzip.decompress(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"gzip data of {len(raw)} bytes is truncated or damaged: {error}") from error


def read_idx(files: Sequence[bytes]) -> tuple[Uint8s, Uint8s]:
    """Read an image file and a label file: [N, 1, H, W] and [N], uint8. Raises ValueError on other data."""
    images, labels = (parse_idx(gunzip(raw)) for raw in files)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(
            f"idx images must be [N, H, W] and labels [N]; got {list(images.shape)} and {list(labels.shape)}"
        )
    return images[:, None], labels


def read_emnist(files: Sequence[bytes]) -> tuple[Uint8s, Uint8s]:
    """Read idx files of EMNIST, which stores x before y: the images are transposed to stand upright."""
    images, labels = read_idx(files)
    return images.swapaxes(2, 3), labels  # [N, 1, W, H] -> [N, 1, H, W]


# --- the data sets ------------------------------------------------------------------------------------------

DIGITS = tuple("0123456789")

EMNIST_MIRRORS = (
    "https://biometrics.nist.gov/cs_links/EMNIST/",
    "http://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/",
)
EMNIST_ZIP = File(
    "EMNIST/gzip.zip",
    561_753_746,
    "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
)

DATASETS: dict[str, Dataset] = {
    "mnist": Dataset(
        title="MNIST",
        classes=DIGITS,
        splits={
            "train": Split(
                60_000,
                (
                    File(
                        "MNIST/raw/train-images-idx3-ubyte.gz",
                        9_912_422,
                        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                    ),
                    File(
                        "MNIST/raw/train-labels-idx1-ubyte.gz",
                        28_881,
                        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                    ),
                ),
            ),
            "test": Split(
                10_000,
                (
                    File(
                        "MNIST/raw/t10k-images-idx3-ubyte.gz",
                        1_648_877,
                        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                    ),
                    File(
                        "MNIST/raw/t10k-labels-idx1-ubyte.gz",
                        4_542,
                        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                    ),
                ),
            ),
        },
        read=read_idx,
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
    ),
    "fashion_mnist": Dataset(
        title="Fashion-MNIST",
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        splits={
            "train": Split(
                60_000,
                (
                    File(
                        "FashionMNIST/raw/train-images-idx3-ubyte.gz",
                        26_421_880,
                        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                    ),
                    File(
                        "FashionMNIST/raw/train-labels-idx1-ubyte.gz",
                        29_515,
                        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                    ),
                ),
            ),
            "test": Split(
                10_000,
                (
                    File(
                        "FashionMNIST/raw/t10k-images-idx3-ubyte.gz",
                        4_422_102,
                        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                    ),
                    File(
                        "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz",
                        5_148,
                        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                    ),
                ),
            ),
        },
        read=read_idx,
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
    ),
    "emnist": Dataset(
        title="EMNIST digits",
        classes=DIGITS,
        splits={
            "train": Split(
                240_000,
                (
                    File(
                        "EMNIST/gzip/emnist-digits-train-images-idx3-ubyte.gz",
                        59_515_779,
                        "f7c95004d14d81af89522e67d8f0c781dfb3bd544181c81bfe1eb6b41c35b726",
                    ),
                    File(
                        "EMNIST/gzip/emnist-digits-train-labels-idx1-ubyte.gz",
                        113_859,
                        "6638a6ff5fe2eefd9cca2471995b46c82986b8e4b2a70d2f5ce8e05d7edb319e",
                    ),
                ),
            ),
            "test": Split(
                40_000,
                (
                    File(
                        "EMNIST/gzip/emnist-digits-test-images-idx3-ubyte.gz",
                        9_908_519,
                        "20ebe43509264f7639d37c835a3f0b009e90b29e00a099a03101abe1644a3f63",
                    ),
                    File(
                        "EMNIST/gzip/emnist-digits-test-labels-idx1-ubyte.gz",
                        19_960,
                        "bad1834c45d5988e270b99d43b13edc3fd898f658ffbc2caf2846ef27f7b05b0",
                    ),
                ),
            ),
        },
        read=read_emnist,
        mirrors=EMNIST_MIRRORS,
        archive=EMNIST_ZIP,
    ),
    "emnist_mnist": Dataset(
        title="EMNIST mnist split",
        classes=DIGITS,
        splits={
            "train": Split(
                60_000,
                (
                    File(
                        "EMNIST/gzip/emnist-mnist-train-images-idx3-ubyte.gz",
                        14_873_795,
                        "5f9942f441031c0f1f2e4d162059fd6e19ea808b34c328b6d16cab0ed24c78f2",
                    ),
                    File(
                        "EMNIST/gzip/emnist-mnist-train-labels-idx1-ubyte.gz",
                        29_480,
                        "00c6d3c2342fdffb1711e0b5656cac4ce5862d2826399d383a9bac07d612e9f8",
                    ),
                ),
            ),
            "test": Split(
                10_000,
                (
                    File(
                        "EMNIST/gzip/emnist-mnist-test-images-idx3-ubyte.gz",
                        2_484_884,
                        "b25640fa9e356c618132f5df347c95ef5bae6d9c2596be1de40f7e0ae1c3eac6",
                    ),
                    File(
                        "EMNIST/gzip/emnist-mnist-test-labels-idx1-ubyte.gz",
                        5_144,
                        "bcc5385d38f083dba046f5f756e99b32f5ea7fad122c6243c71c2239873065ca",
                    ),
                ),
            ),
        },
        read=read_emnist,
        mirrors=EMNIST_MIRRORS,
        archive=EMNIST_ZIP,
    ),
}


# --- looking up, verifying, fetching ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Places:
    """Where files are looked for: the user's folder, if there is one, and the cache."""

    given: Path | None
    label: str  # how an error names the user's folder
    cache: Path


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
            raise DamagedData(
                f"{file.path} in {places.label} is damaged or is not the published file ({file.size} bytes, "
                f"sha256 {file.sha256[:8]}...): replace it, or remove it to use the cache or a download"
            )
        return raw
    raw = _intact(places.cache, file)
    if raw is not None:
        return raw
    if not download:
        raise _missing(name, file, places, "downloading was not allowed")
    return _fetch(name, file, places)


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
    wanted = dataset.archive or file
    folder = PurePosixPath(wanted.path).parent
    names = wanted.name if dataset.archive else ", ".join(file.name for file in dataset.files)
    verb = "unzip" if dataset.archive else "put"
    return MissingData(
        f"{name}: {file.path} is neither in {places.label} nor intact in the cache {places.cache} ({why}); "
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
    """Try the mirrors in turn until one gives the file, or its zip; return why those before it did not."""
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
    """The files of all data sets that lie in this zip, by the name they have in it."""
    folder = PurePosixPath(archive.path).parent
    return {
        str(PurePosixPath(file.path).relative_to(folder)): file
        for dataset in DATASETS.values()
        if dataset.archive == archive
        for file in dataset.files
    }


def _unpack(archive: Path, members: Mapping[str, File], folder: Path) -> None:
    """Write the named members of a zip, and no others, below `folder`, each verified and in one step."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member, file in members.items():
                with zipped.open(member) as stream:
                    raw = stream.read(file.size + 1)  # no more, whatever size the zip declares
                if hashlib.sha256(raw).hexdigest() != file.sha256:
                    raise DamagedData(f"{member} in {archive.name} is not the published file (wrong sha256)")
                files.write(folder / member, raw)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DamagedData(f"{archive.name} cannot be unpacked: {error.args[0]}") from error


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
    rows = part.count if n is None else n
    if not 1 <= rows <= part.count:
        raise ValueError(f"n is {n}; {name} {split} has {part.count} images, so it must be 1 to {part.count}")
    x, y = _read(name, split, _places(root), download)
    return Images(
        x=torch.from_numpy(x[:rows].copy()).to(device).float().div_(255),  # [n, C, H, W]
        y=torch.from_numpy(y[:rows].copy()).to(device).long(),
        name=name,
        split=split,
        classes=dataset.classes,
        source=f"{dataset.title} {split}, {'all' if rows == part.count else f'first {rows} of'} {part.count} "
        f"images, sha256 {part.files[0].sha256[:8]}...",
    )


# --- python -m advbook.datasets -----------------------------------------------------------------------------


def _list() -> None:
    places = _places(None)
    print(f"data folder: {places.label}\ncache: {places.cache}\n\n{'name':14}{'images':18}{'here':13}title")
    for name, dataset in DATASETS.items():
        counts = " + ".join(str(part.count) for part in dataset.splits.values())
        here = ", ".join(split for split, part in dataset.splits.items() if _ready(part, places)) or "-"
        print(f"{name:14}{counts:18}{here:13}{dataset.title}")
    print(
        "\nTo get one: python -m advbook.datasets fetch NAME, or put its files into a folder that ADVBOOK_DATA names."
    )


def _fetch_all(names: Sequence[str]) -> None:
    places = _places(None)
    for name in names:
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
