"""The formats in which images are published: pure functions from verified bytes to arrays, and members of archives.

Nothing here executes what it reads: pickles are taken apart as plain data, .npy files never hold objects.
"""

import gzip
import io
import math
import pickletools
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

Uint8s = NDArray[np.uint8]
Reader = Callable[[Sequence[bytes]], tuple[Uint8s, Uint8s]]

NPY_HEADER = 1 << 10  # bytes; a header of a few numbers takes 128

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


def read_emnist_letters(files: Sequence[bytes]) -> tuple[Uint8s, Uint8s]:
    """Read the letters of EMNIST as `read_emnist` does; their labels are stored as 1 to 26, and are 0 to 25 here."""
    images, labels = read_emnist(files)
    if labels.min() < 1 or labels.max() > 26:
        raise ValueError(f"letters must have labels from 1 to 26; got {labels.min()} to {labels.max()}")
    return images, labels - np.uint8(1)


# --- pickles of CIFAR ---------------------------------------------------------------------------------------

RECONSTRUCT, NDARRAY, DTYPE = "numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"


@dataclass(frozen=True)
class _Name:
    """A name that a pickle gives: never looked up, only compared."""

    text: str


@dataclass(eq=False)
class _Dtype:
    """Stands for numpy's unsigned byte; `built` once the pickle has said the rest of what makes it one."""

    built: bool = False


@dataclass(eq=False)
class _Array:
    """Stands for a numpy array, whose bytes a pickle gives later than its first mention."""

    value: Uint8s | None = None


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
BLANK_ARRAY = (_Name(NDARRAY), (0,), b"b")  # what numpy calls _reconstruct with
UINT8 = (b"u1", 0, 1)  # what it calls dtype with
UINT8_STATE = (3, b"|", None, None, None, -1, -1, 0)


class _Machine:
    """Pickle's stack machine for plain data of protocol 2; whatever could execute something is a ValueError."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def top(self, *kinds: type) -> Any:
        """The top of the stack, which must be of one of these types, if any are given."""
        if not self.stack:
            raise ValueError("the stack is empty")
        if kinds and type(self.stack[-1]) not in kinds:
            raise ValueError(f"{type(self.stack[-1]).__name__} stands where {kinds[0].__name__} must")
        return self.stack[-1]

    def pop(self, count: int) -> tuple[Any, ...]:
        """The last `count` values, taken off the stack."""
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        taken = tuple(self.stack[-count:])
        del self.stack[-count:]
        return taken

    def pop_mark(self) -> list[Any]:
        """The values since the last mark, taken off the stack with it."""
        if not self.outer:
            raise ValueError("there is no mark")
        taken, self.stack = self.stack, self.outer.pop()
        return taken

    def step(self, code: str, argument: Any) -> None:
        """Execute one opcode."""
        match code:
            case "PROTO" if argument == 2:
                pass
            case "MARK":
                self.outer.append(self.stack)
                self.stack = []
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append(CONSTANTS[code])
            case "BININT" | "BININT1" | "BININT2" | "BINUNICODE":
                self.stack.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING":
                self.stack.append(argument.encode("latin-1"))  # as pickletools decoded it
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_DICT":
                self.stack.append({})
            case "TUPLE":
                values = tuple(self.pop_mark())
                self.stack.append(values)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(self.pop(TUPLES[code]))
            case "APPEND":
                self.extend(list(self.pop(1)))
            case "APPENDS":
                self.extend(self.pop_mark())
            case "SETITEM":
                self.update(list(self.pop(2)))
            case "SETITEMS":
                self.update(self.pop_mark())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top()
            case "BINGET" | "LONG_BINGET" if argument in self.memo:
                self.stack.append(self.memo[argument])
            case "GLOBAL" if argument in (RECONSTRUCT, NDARRAY, DTYPE):
                self.stack.append(_Name(argument))
            case "REDUCE":
                self.call(*self.pop(2))
            case "BUILD":
                self.build(*self.pop(1))
            case _:
                said = "" if argument is None else f" {argument!r:.60}"
                raise ValueError(f"{code}{said} is refused: only plain data and numpy arrays of bytes are read")

    def extend(self, values: list[Any]) -> None:
        """Append values to the list on the stack."""
        self.top(list).extend(values)

    def update(self, values: list[Any]) -> None:
        """Set the items of the dictionary on the stack, given as key, value, key, value, ..."""
        keys = values[::2]
        if len(values) % 2 or not all(type(key) in (bytes, str) for key in keys):
            raise ValueError("a dictionary's keys must be strings, each with a value")
        self.top(dict).update(zip(keys, values[1::2], strict=True))

    def call(self, function: Any, arguments: Any) -> None:
        """Put what stands for a numpy array or type on the stack, if that is what the pickle describes."""
        if function == _Name(RECONSTRUCT) and arguments == BLANK_ARRAY:
            self.stack.append(_Array())
        elif function == _Name(DTYPE) and arguments == UINT8:
            self.stack.append(_Dtype())
        else:
            raise ValueError("a call is refused: only numpy arrays of bytes are read")

    def build(self, state: Any) -> None:
        """Give the array or type on the stack its content."""
        target = self.top(_Array, _Dtype)
        if isinstance(target, _Array):
            target.value = _array(state)
        elif state == UINT8_STATE:
            target.built = True
        else:
            raise ValueError("a type other than numpy's unsigned byte is refused")


def _array(state: Any) -> Uint8s:
    """The array that numpy's state describes: version, shape, type, whether columns come first, bytes."""
    match state:
        case (1, tuple(shape), _Dtype(built=True), bool(columns), bytes(raw)):
            good = all(type(size) is int and size >= 0 for size in shape) and math.prod(shape) == len(raw)
            if good and len(shape) <= 4:
                return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if columns else "C")
    raise ValueError("an array is refused whose shape, type and bytes do not agree")


def parse_pickle(raw: bytes) -> dict[bytes | str, Any]:
    """Read a dictionary of plain data and numpy byte arrays from a pickle of protocol 2, without executing it.

    The values may be None, booleans, integers, strings (bytes where Python 2 wrote them), tuples, lists and
    dictionaries; arrays of unsigned bytes may only stand as values of the outer dictionary. No name is looked up, and
    nothing is called: whatever else a pickle could say is a ValueError.
    """
    machine, place, code = _Machine(), 0, ""
    try:
        for opcode, argument, where in pickletools.genops(raw):
            place, code = where or 0, opcode.name
            if code != "STOP":
                machine.step(code, argument)
        if place != len(raw) - 1 or machine.outer or len(machine.stack) != 1:
            raise ValueError("the end comes too early or too late")
        return {key: _plain(value) for key, value in machine.top(dict).items()}
    except ValueError as error:  # pickletools raises it too, for what is no pickle
        raise ValueError(f"pickle data of {len(raw)} bytes, at byte {place}: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array has no bytes")
        return value.value
    if isinstance(value, _Name | _Dtype):
        raise ValueError("a name is no value")
    return value


def _batch(raw: bytes, key: bytes) -> tuple[Uint8s, Uint8s]:
    """One CIFAR file: images [N, 3, 32, 32] and labels [N]."""
    content = parse_pickle(raw)
    data, labels = content.get(b"data"), content.get(key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
        raise ValueError("a CIFAR file must hold 'data', an array [N, 3072]")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise ValueError(f"a CIFAR file must hold {key.decode()!r}, a list of {len(data)} labels")
    if not all(type(label) is int and 0 <= label <= 255 for label in labels):
        raise ValueError(f"a CIFAR file must hold {key.decode()!r}, integers from 0 to 255")
    return data.reshape(-1, 3, 32, 32), np.array(labels, np.uint8)


def _read_cifar(files: Sequence[bytes], key: bytes) -> tuple[Uint8s, Uint8s]:
    batches = [_batch(raw, key) for raw in files]
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def read_cifar10(files: Sequence[bytes]) -> tuple[Uint8s, Uint8s]:
    """Read batches of CIFAR-10 (Python version): [N, 3, 32, 32] and [N], uint8. Raises ValueError on other data."""
    return _read_cifar(files, b"labels")


def read_cifar100(files: Sequence[bytes]) -> tuple[Uint8s, Uint8s]:
    """Read files of CIFAR-100 (Python version) with the fine labels, as `read_cifar10` does."""
    return _read_cifar(files, b"fine_labels")


# --- MATLAB files of SVHN -----------------------------------------------------------------------------------


def read_svhn(files: Sequence[bytes]) -> tuple[Uint8s, Uint8s]:
    """Read a cropped-digits file of SVHN (MATLAB version 5): [N, 3, 32, 32] and [N], uint8; digit 0 is stored as 10.

    Raises ValueError on other data.
    """
    (raw,) = files
    try:
        stream: Any = io.BytesIO(raw)  # the stubs know paths only
        content = scipy.io.loadmat(stream, variable_names=("X", "y"))
    except Exception as error:  # loadmat meets damage with errors of many kinds
        raise ValueError(f"MATLAB data of {len(raw)} bytes cannot be read: {error}") from error
    x, y = content.get("X"), content.get("y")
    if x is None or y is None or x.dtype != np.uint8 or x.shape[:3] != (32, 32, 3) or y.shape != (*x.shape[3:], 1):
        raise ValueError("an SVHN file must hold 'X', bytes [32, 32, 3, N], and 'y', [N, 1]")
    if y.dtype.kind not in "ui" or y.min(initial=1) < 1 or y.max(initial=1) > 10:
        raise ValueError("an SVHN file must hold 'y', integers from 1 to 10")
    return x.transpose(3, 2, 0, 1), (y[:, 0] % 10).astype(np.uint8)  # [H, W, 3, N] -> [N, 3, H, W]


# --- .npy files ---------------------------------------------------------------------------------------------

NPY_FORM = re.compile(
    rb"\{'descr': '([|<][ui][1248])', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,12}L?, ?)*(?:\d{1,12}L?)?)\), ?\}\s*"
)


def parse_npy(raw: bytes) -> NDArray[np.integer[Any]]:
    """Read an array of integers from a .npy file.

    The header is compared with the one form that numpy writes, and not evaluated, so there is nothing in it that could
    be executed, and no memory is taken for numbers that do not follow. Raises ValueError for anything else.
    """
    version = raw[6:8]
    start = 10 if version == b"\1\0" else 12
    if raw[:6] != b"\x93NUMPY" or version not in (b"\1\0", b"\2\0") or len(raw) < start:
        raise ValueError(f"npy data must begin with numpy's mark and version 1 or 2; got {raw[:8]!r}")
    end = start + int.from_bytes(raw[8:start], "little")
    form = NPY_FORM.fullmatch(raw[start:end]) if end <= NPY_HEADER else None
    if form is None:
        raise ValueError("npy data must be a plain array of integers, and its header says otherwise")
    dtype = np.dtype(form[1].decode())
    shape = tuple(int(size) for size in re.findall(rb"\d+", form[3]))
    if len(shape) > 4 or math.prod(shape) * dtype.itemsize != len(raw) - end:
        raise ValueError(f"npy header says {shape} values of {dtype}; {len(raw) - end} bytes follow")
    values: NDArray[np.integer[Any]] = np.frombuffer(raw, dtype, offset=end)
    return values.reshape(shape, order="F" if form[2] == b"True" else "C")


# --- archives -----------------------------------------------------------------------------------------------

LEADS_OUT = re.compile(r"[A-Za-z]:|[/\\]|(?:.*[/\\])?\.\.(?:[/\\]|$)", re.DOTALL)
BROKEN = (EOFError, NotImplementedError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


def members(archive: Path, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Read the named members of a zip or tar file: pairs of name and bytes; nothing is written anywhere.

    limits: how many bytes a member may have; of a larger one, a byte more than that is given, whatever size the archive
    declares. Raises ValueError where a member is missing, or is a link, or the archive is damaged, and where any name
    in it leads out of it.
    """
    try:
        yield from (_zip_members if archive.suffix == ".zip" else _tar_members)(archive, limits)
    except (KeyError, gzip.BadGzipFile, *BROKEN) as error:
        raise ValueError(error.args[0] if error.args else "it ends too early") from error


def _stay_inside(name: str) -> None:
    """Raise ValueError for a name that a careless program would write elsewhere, on whatever system."""
    if LEADS_OUT.match(name):
        raise ValueError(f"the name {name!r} leads out of it")


def _zip_members(archive: Path, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as packed:
        for name in packed.namelist():
            _stay_inside(name)
        for name, limit in limits.items():
            info = packed.getinfo(name)
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the program that packed it did not say
            if kind not in (0, stat.S_IFREG):
                raise ValueError(f"{name} is not a plain file")
            try:
                with packed.open(info) as stream:
                    raw = stream.read(limit + 1)
            except BROKEN as error:
                raise ValueError(f"{name} is damaged ({error or 'it ends too early'})") from error
            yield name, raw


def _tar_members(archive: Path, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    missing = set(limits)
    with tarfile.open(archive) as packed:
        for info in packed:  # in their order: a compressed file cannot be read backwards
            _stay_inside(info.name)
            path = str(PurePosixPath(info.name))
            if path not in limits:
                continue
            stream = packed.extractfile(info) if info.isreg() else None
            if stream is None:
                raise ValueError(f"{path} is not a plain file")
            missing.discard(path)
            yield path, stream.read(limits[path] + 1)
    if missing:
        raise ValueError(f"there is no item named {min(missing)!r}")
