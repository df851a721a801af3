"""Where the files of a data set are, and whether they are what was published.

A file is looked for in the folder that the environment variable ADVBOOK_DATA names, loose or in its archive, then in
the cache, and is then downloaded into the cache, from several mirrors in turn. Its sha256 is checked each time, before
anything parses it.
"""

import difflib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import urlsplit

import pooch
from filelock import FileLock
from requests import ConnectionError as NoConnection
from requests import HTTPError, RequestException, Response, Timeout
from tqdm import tqdm

from advbook import files, formats
from advbook.datasets.register import DATASETS, Dataset, File

TIMEOUT = 15.0  # seconds without an answer until the next mirror is tried
CHUNK = 1 << 16  # bytes

T = TypeVar("T")


class MissingData(FileNotFoundError):
    """A data set is neither in the data folder nor in the cache, and no mirror gave it."""


class DamagedData(OSError):
    """A file of a data set does not hold the bytes that were published."""


@dataclass(frozen=True)
class Places:
    """Where files are looked for: the user's folder, if there is one, and the cache."""

    given: Path | None
    label: str  # how an error names the user's folder
    cache: Path

    @property
    def folders(self) -> tuple[Path, ...]:
        """Both, in the order in which they are searched."""
        return (self.cache,) if self.given is None else (self.given, self.cache)


def places(root: Path | None) -> Places:
    """The folder that `root` or else ADVBOOK_DATA names, and the cache. Raises MissingData if it is not a folder."""
    text = os.environ.get("ADVBOOK_DATA", "") if root is None else str(root)
    label = f"{'ADVBOOK_DATA' if root is None else 'root'}={text}" if text else "ADVBOOK_DATA (unset)"
    given = Path(text).expanduser() if text else None
    if given is not None and not given.is_dir():
        raise MissingData(f"{label} is not a folder; it must be the folder that holds the data sets")
    return Places(given, label, pooch.os_cache("advbook").expanduser())


def known(what: str, name: str, allowed: Mapping[str, T]) -> T:
    """The entry called `name`; if there is none, ValueError with the known names and the nearest one."""
    if name in allowed:
        return allowed[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), allowed, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} {name!r} is unknown;{hint} known: {', '.join(allowed)}")


# --- what is here -------------------------------------------------------------------------------------------


def place(dataset: Dataset, file: File, at: Places) -> Path | None:
    """Where a file would be read: loose or in its archive in the user's folder, else in the cache; None: nowhere."""
    here = [] if at.given is None else [at.given / f.path for f in (file, dataset.archive) if f is not None]
    return next((path for path in (*here, at.cache / file.path) if path.exists()), None)


def is_packed(path: Path | None, file: File) -> bool:
    """Whether the place of a file is its archive."""
    return path is not None and path.name != file.name


def ready(dataset: Dataset, parts: Sequence[File], at: Places) -> bool:
    """Whether files are where they would be read, judged by their sizes, or that of their archive, alone."""

    def whole(file: File) -> bool:
        path = place(dataset, file, at)
        wanted = dataset.archive if dataset.archive and is_packed(path, file) else file
        return path is not None and path.is_file() and path.stat().st_size == wanted.size

    return all(whole(file) for file in parts)


def intact(path: Path, file: File) -> bytes | None:
    """The bytes of a file, or None unless they are the published ones."""
    if not path.is_file() or path.stat().st_size != file.size:
        return None
    raw = path.read_bytes()
    return raw if hashlib.sha256(raw).hexdigest() == file.sha256 else None


def sha256(path: Path) -> str:
    """The sha256 of a large file in hex, computed once as long as its size and time of change stay the same."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    bar = tqdm(desc=f"checking {path.name}", total=size, unit="B", unit_scale=True, leave=False, delay=2)
    with path.open("rb") as stream, bar:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def same(path: Path, file: File) -> bool:
    """Whether a file, which may be large, is the published one."""
    return path.is_file() and path.stat().st_size == file.size and sha256(path) == file.sha256


def contents(name: str, parts: Sequence[File], at: Places, download: bool) -> list[bytes]:
    """The verified bytes of files: from the user's folder, the cache or, if allowed, a mirror.

    Raises MissingData and DamagedData.
    """
    dataset = DATASETS[name]
    where = {file: place(dataset, file, at) for file in parts}
    packed = [file for file, path in where.items() if is_packed(path, file)]
    found = unpacked(dataset, packed, at) if packed else {}
    return [found[file] if file in found else _bytes(name, file, at, download) for file in parts]


def paths(name: str, parts: Sequence[File], at: Places) -> list[Path]:
    """Where large files lie, each verified there. Raises MissingData and DamagedData."""

    def verified(file: File) -> Path:
        path = place(DATASETS[name], file, at)
        if path is None:
            raise missing(name, file, at, "")
        if not same(path, file):
            raise DamagedData(damage(name, file, path, at))
        return path

    return [verified(file) for file in parts]


def _bytes(name: str, file: File, at: Places, download: bool) -> bytes:
    if at.given is not None and (at.given / file.path).exists():
        raw = intact(at.given / file.path, file)
        if raw is None:  # what the user put there is never replaced behind their back
            raise DamagedData(damage(name, file, at.given / file.path, at))
        return raw
    raw = intact(at.cache / file.path, file)
    if raw is not None:
        return raw
    if not DATASETS[name].mirrors:
        raise missing(name, file, at, "")
    if not download:
        raise missing(name, file, at, "downloading was not allowed")
    return _fetch(name, file, at)


def owner(name: str, file: File, path: Path) -> str | None:
    """Which other data set, with the same paths, this file belongs to."""
    for other, dataset in DATASETS.items():
        twins = (twin for twin in dataset.files if twin.path == file.path and twin != file)
        if other != name and any(intact(path, twin) is not None for twin in twins):
            return other
    return None


def damage(name: str, file: File, path: Path, at: Places) -> str:
    """What to say of a file that is not the published one: it may be that of another data set with the same paths."""
    label = f"the cache {at.cache}" if path.is_relative_to(at.cache) else at.label
    other = owner(name, file, path)
    if other is not None:
        return (
            f"{file.path} in {label} belongs to {other} ({DATASETS[other].title}), not to {name}: "
            f"use DATASET={other}, or put all files of {name} in place of those, or remove those"
        )
    return (
        f"{file.path} in {label} is damaged or is not the published file ({file.size} bytes, "
        f"sha256 {file.sha256[:8]}...): replace it, or remove it to use the cache or a download"
    )


def missing(name: str, file: File, at: Places, why: str) -> MissingData:
    """What to say where a file is nowhere, and how to get it."""
    dataset = DATASETS[name]
    nowhere = f"{name}: {file.path} is neither in {at.label} nor intact in the cache {at.cache}"
    if not dataset.mirrors:
        return MissingData(f"{nowhere}, and {name} cannot be fetched: {dataset.note}")
    wanted = dataset.archive or file
    folder = PurePosixPath(wanted.path).parent
    names = wanted.name if dataset.archive else ", ".join(file.name for file in dataset.files)
    return MissingData(
        f"{nowhere} ({why}); "
        f"with a network, run `python -m advbook.datasets fetch {name}`; "
        f"by hand, set ADVBOOK_DATA to a folder and, into {folder} there, put {names}"
        f"{', as it is or unpacked,' if dataset.archive else ''} from {dataset.mirrors[0]}"
    )


# --- archives -----------------------------------------------------------------------------------------------


def unpacked(dataset: Dataset, parts: Sequence[File], at: Places) -> dict[File, bytes]:
    """The verified bytes of files that lie in the archive in the user's folder; nothing is written anywhere."""
    assert dataset.archive is not None
    assert at.given is not None
    path, size = at.given / dataset.archive.path, dataset.archive.size
    if not path.is_file() or path.stat().st_size != size:
        raise DamagedData(
            f"{dataset.archive.path} in {at.label} is truncated or is not the published file ({size} bytes): "
            "replace it, or remove it to use the cache or a download"
        )
    return dict(_members(path, {_inside(dataset.archive, file): file for file in parts}))


def _inside(archive: File, file: File) -> str:
    """The name that a file has in an archive."""
    return str(PurePosixPath(file.path).relative_to(PurePosixPath(archive.path).parent))


def _members(archive: Path, members: Mapping[str, File]) -> Iterator[tuple[File, bytes]]:
    """The named members of a zip or tar file, and no others, each verified."""
    try:
        for member, raw in formats.members(archive, {name: file.size for name, file in members.items()}):
            if hashlib.sha256(raw).hexdigest() != members[member].sha256:
                raise DamagedData(f"{member} in {archive.name} is not the published file (wrong sha256)")
            yield members[member], raw
    except ValueError as error:
        raise DamagedData(f"{archive.name} cannot be unpacked: {error}") from error


def _unpack(archive: Path, published: File, cache: Path) -> None:
    """Write the files of all data sets that lie in this archive into the cache, each verified and in one step."""
    sharing = [dataset for dataset in DATASETS.values() if dataset.archive == published]
    members = {_inside(published, file): file for dataset in sharing for file in dataset.files}
    for file, raw in _members(archive, members):
        files.write(cache / file.path, raw)


# --- the network --------------------------------------------------------------------------------------------


@contextmanager
def writing(name: str, cache: Path) -> Iterator[None]:
    """Hold the lock of the cache, and say in one sentence if it cannot be written."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".lock"):
            yield
    except OSError as error:
        if error.errno is None:  # not from the file system: already one of our sentences
            raise
        raise OSError(
            f"{name}: the cache {cache} cannot be written ({error.strerror}); "
            "make that possible, or put the files into a folder of your own and set ADVBOOK_DATA to it"
        ) from error


def _fetch(name: str, file: File, at: Places) -> bytes:
    """Bring a file into the cache and return its verified bytes."""
    why: str | None = None
    with writing(name, at.cache):
        raw = intact(at.cache / file.path, file)  # another process may have fetched it while this one waited
        if raw is None:
            why = _download(DATASETS[name], file, at.cache)
            raw = intact(at.cache / file.path, file)
    if raw is None:
        raise missing(name, file, at, why or "")
    return raw


def _download(dataset: Dataset, file: File, cache: Path) -> str | None:
    """Bring a file, or its archive, from a mirror into the cache; None, or why no mirror gave it."""
    wanted = dataset.archive or file
    target = cache / wanted.path
    why = from_mirrors(dataset.mirrors, target, wanted.sha256, wanted.size)
    if why is None and dataset.archive is not None:
        _unpack(target, dataset.archive, cache)
        target.unlink()  # its members are in the cache now
    return why


def from_mirrors(mirrors: Sequence[str], target: Path, digest: str, size: int | None) -> str | None:
    """Download a file from the first mirror that has it with the right sha256; None, or why none of them did.

    The lock of the cache must be held.
    """
    for stray in target.parent.rglob("tmp*"):  # left by a killed download; under the lock nobody else writes
        if stray.is_file():
            stray.unlink()
    reasons = []
    for mirror in mirrors:
        try:
            retrieve(mirror + target.name, target, digest, size)
        except (RequestException, ValueError) as error:
            reasons.append(f"{urlsplit(mirror).netloc}: {_reason(error)}")
            continue
        return None
    return "; ".join(reasons)


def retrieve(url: str, target: Path, digest: str, size: int | None) -> None:
    """Download one file to `target`, where it appears only when it is whole and its sha256 is right."""
    pooch.get_logger().setLevel("WARNING")  # the progress bar says it already
    with tqdm(desc=target.name, total=size, unit="B", unit_scale=True, leave=False) as bar:
        downloader = pooch.HTTPDownloader(
            progressbar=bar,
            chunk_size=CHUNK,
            timeout=TIMEOUT,
            headers={"Accept-Encoding": "identity"},  # the sha256 is that of the gzip file itself
        )
        pooch.retrieve(url, f"sha256:{digest}", target.name, target.parent, downloader=downloader)


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
