"""advbook.formats: every reader against an independent one, and what it refuses."""

import gzip
import io
import os
import pickle
import re
import stat
import struct
import sys
import tarfile
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from advbook import formats
from advbook.formats import (
    gunzip,
    parse_idx,
    parse_npy,
    parse_pickle,
    read_cifar10,
    read_cifar100,
    read_emnist,
    read_idx,
    read_svhn,
)

REAL = Path(os.environ.get("ADVBOOK_DATA") or Path(__file__).parents[2] / "shared" / "data")


# --- files in the official forms, as other test files need them too ---------------------------------------------


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def string(raw):
    return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw


def number(value):
    if 0 <= value < 256:
        return b"K" + bytes([value])
    return b"M" + struct.pack("<H", value) if 0 <= value < 65536 else b"J" + struct.pack("<i", value)


BLANK = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
UINT8 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def array(values):
    """A byte array as numpy pickled it under Python 2."""
    columns = values.ndim > 1 and values.flags.f_contiguous and not values.flags.c_contiguous
    shape = b"(" + b"".join(map(number, values.shape)) + b"t"
    return BLANK + b"(K\x01" + shape + UINT8 + (b"\x88" if columns else b"\x89") + string(values.tobytes("A")) + b"tb"


def batch(data, labels, key=b"labels", **more):
    """A CIFAR file in the official form: Python 2's protocol 2, with file names that fill the memo beyond 256."""
    names = [f"{k}_s_{k:06}.png".encode() for k in range(len(data) * 20)]
    memo = [b"q" + bytes([k]) if k < 256 else b"r" + struct.pack("<I", k) for k in range(len(names))]
    listed = b"".join(string(name) + put for name, put in zip(names, memo, strict=True))
    items = [(b"batch_label", string(b"testing batch 1 of 1")), (b"filenames", b"](" + listed + b"e")]
    items += [(name.encode(), b"](" + b"".join(map(number, values)) + b"e") for name, values in more.items()]
    items += [(key, b"](" + b"".join(map(number, labels)) + b"e"), (b"data", array(data))]
    return b"\x80\x02}(" + b"".join(string(name) + value for name, value in items) + b"u."


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


# --- the idx format -------------------------------------------------------------------------------------------


arrays = st_numpy.arrays(np.uint8, st_numpy.array_shapes(min_dims=1, max_dims=4, max_side=6))


@given(arrays)
def test_idx_round_trip(array):
    parsed = parse_idx(idx(array))
    assert parsed.dtype == np.uint8
    assert parsed.shape == array.shape
    assert np.array_equal(parsed, array)


@given(arrays, st.data())
def test_idx_cut_or_extended(array, data):
    raw = idx(array)
    wrong = data.draw(st.one_of(st.integers(0, len(raw) - 1).map(lambda k: raw[:k]), st.just(raw + b"\0")))
    with pytest.raises(ValueError, match=r"^idx "):
        parse_idx(wrong)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"\0\0\x08" + tail))
def test_idx_any_bytes(raw):
    try:
        parsed = parse_idx(raw)
    except ValueError:  # what it accepts is what it can write back; no other error escapes
        return
    assert idx(parsed) == raw


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "two zero bytes"),
        (b"\x1f\x8b\x08\x03", "two zero bytes"),
        (b"\0\0\x0d\x01\0\0\0\x01\0", "type code is 0x0d"),
        (b"\0\0\x08\x00\x07", "0 dimensions"),
        (b"\0\0\x08\xff" + bytes(8), "255 dimensions"),
        (b"\0\0\x08\x03" + bytes(8), "header ends after 12 bytes"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 0, 2**32 - 1, 2**32 - 1), "0 values follow"),
        (struct.pack(">BBBB4I", 0, 0, 8, 4, *[2**32 - 1] * 4) + b"\1", "1 values follow"),
    ],
)
def test_idx_bad_headers(raw, says):
    with pytest.raises(ValueError, match=says):
        parse_idx(raw)


def test_gzip_truncated_or_damaged():
    packed = gzip.compress(os.urandom(1000))
    wrong_crc = packed[:-8] + bytes(4) + packed[-4:]
    for raw in (
        packed[:-20],
        packed[:5],
        b"<html>not found</html>",
        b"\x1f\x8b\x08\0" + b"\xff" * 60,
        wrong_crc,
    ):
        with pytest.raises(ValueError, match=f"gzip data of {len(raw)} bytes is truncated or damaged"):
            gunzip(raw)


@pytest.mark.parametrize(("images", "labels"), [((3, 4, 5), (2,)), ((3, 20), (3,)), ((3, 4, 5), (3, 1)), ((3,), (3,))])
def test_images_and_labels_must_agree(images, labels):
    files = [gzip.compress(idx(np.ones(shape, np.uint8))) for shape in (images, labels)]
    with pytest.raises(ValueError, match=re.escape(f"got {list(images)} and {list(labels)}")):
        read_idx(files)


def test_letters_of_emnist_are_counted_from_0():
    images = gzip.compress(idx(np.zeros((26, 2, 3), np.uint8)))
    labels = np.arange(1, 27, dtype=np.uint8)
    x, y = formats.read_emnist_letters([images, gzip.compress(idx(labels))])
    assert x.shape == (26, 1, 3, 2)
    assert y.tolist() == list(range(26))
    for wrong in (labels - 1, labels + 1):
        with pytest.raises(ValueError, match="letters must have labels from 1 to 26; got"):
            formats.read_emnist_letters([images, gzip.compress(idx(wrong))])


def test_emnist_is_transposed():
    x, y = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([7, 1], np.uint8)
    files = [gzip.compress(idx(array)) for array in (x, y)]
    assert read_idx(files)[0].shape == (2, 1, 3, 4)
    turned, labels = read_emnist(files)
    assert turned.shape == (2, 1, 4, 3)
    assert turned[1, 0, 3, 2] == x[1, 2, 3]
    assert labels.tolist() == [7, 1]


# --- pickles ----------------------------------------------------------------------------------------------------

EXECUTED = {"exec", "compile", "import", "os.system", "os.exec", "subprocess.Popen", "pickle.find_class", "open"}
seen = []
watching = False


def watch(event, arguments):
    if watching and event in EXECUTED:
        seen.append((event, arguments))


sys.addaudithook(watch)  # Python has no way to take it off again: it is silent outside `inert`


@contextmanager
def inert():
    """Nothing is imported, compiled, executed, looked up or opened in here, and little memory is taken."""
    global watching
    seen.clear()
    tracemalloc.start()
    watching = True
    try:
        yield
    finally:
        watching = False
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert seen == []
    assert peak < 5_000_000


def refused(raw, says=""):
    with (
        inert(),
        pytest.raises(ValueError, match=rf"^pickle data of {len(raw)} bytes, at byte \d+: .*{says}") as caught,
    ):
        parse_pickle(raw)
    assert "\n" not in str(caught.value)


def test_what_executes_would_be_seen():
    with pytest.raises(AssertionError), inert():
        pickle.loads(pickle.dumps(np.ones(2)))
    assert {event for event, _ in seen} >= {"pickle.find_class"}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, np.ndarray):
            assert ours[key].dtype == value.dtype == np.uint8
            assert np.array_equal(ours[key], value)
        else:
            assert ours[key] == value
            assert type(ours[key]) is type(value)


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_official_form_is_read_as_pickle_reads_it(count, order):
    raw = batch(np.array(pixels(count), order=order), list(range(count)), coarse_labels=[300] * count, odd=[-7, 70_000])
    with inert():
        ours = parse_pickle(raw)
    same(ours, pickle.loads(raw, encoding="bytes"))
    assert np.array_equal(ours[b"data"], pixels(count))
    assert len(ours[b"filenames"]) == 20 * count


@pytest.mark.parametrize("name", [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"])
def test_real_files_are_read_as_pickle_reads_them(name):
    path = REAL / "CIFAR10" / "cifar-10-batches-py" / name
    if not path.is_file():
        pytest.skip("no CIFAR-10 here")
    raw = path.read_bytes()
    same(parse_pickle(raw), pickle.loads(raw, encoding="bytes"))


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, min_size=1, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), plain, max_size=4))
def test_plain_data_are_read_as_pickle_wrote_them(value):
    assert repr(parse_pickle(pickle.dumps(value, protocol=2))) == repr(value)


def test_shared_lists_stay_shared():
    part = [1]
    found = parse_pickle(pickle.dumps({"a": part, "b": [part, part]}, protocol=2))
    assert found["a"] is found["b"][0] is found["b"][1]


class Attack:
    """Its pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"data": [(evil,)]}])
def test_a_pickle_that_calls_something_is_refused(protocol, wrap, tmp_path):
    for evil in (
        Attack(os.system, f"touch {tmp_path}/executed"),
        Attack(eval, f"open('{tmp_path}/executed', 'w')"),
        Attack(exec, "raise SystemExit"),
        Attack(getattr, Attack(__import__, "os"), "system"),
    ):
        refused(pickle.dumps(wrap(evil), protocol=protocol))
    assert list(tmp_path.iterdir()) == []


EMPTY = b"\x80\x02}U\x04data"  # a dictionary and a key: a value and "s." would make it whole


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"cos\nsystem\n", "GLOBAL 'os system' is refused"),
        (b"cbuiltins\neval\nU\x011\x85R", "GLOBAL 'builtins eval' is refused"),
        (b"cnumpy\nload\n", "GLOBAL 'numpy load' is refused"),
        (b"cnumpy.core.multiarray\nscalar\n", "is refused"),
        (b"c_codecs\nencode\n", "is refused"),
        (b"cnumpy\nndarray\n", "a name is no value"),
        (b"cnumpy\nndarray\n)R", "EMPTY_TUPLE is refused"),
        (b"cnumpy\nndarray\nK\x02\x85R", "a call is refused"),
        (BLANK[:-1] + b"R" + b"K\x01\x85R", "a call is refused"),  # an array is called
        (BLANK.replace(b"ndarray", b"dtype"), "a call is refused"),
        (BLANK, "an array has no bytes"),
        (UINT8, "a name is no value"),
        (UINT8.replace(b"u1", b"O8"), "a call is refused"),
        (UINT8.replace(b"|NNN", b"|N]N"), "a type other than numpy's unsigned byte"),
        (array(np.ones((2, 3), np.uint8)).replace(b"U\x06", b"U\x05"), "."),
        (BLANK + b"(K\x01(K\x03t" + UINT8 + b"\x89]tb", "shape, type and bytes do not agree"),
        (BLANK + b"(K\x01(K\x03t" + UINT8 + b"\x89U\x02abtb", "shape, type and bytes do not agree"),
        (BLANK + b"(K\x01(J\xff\xff\xff\xffJ\xff\xff\xff\xfft" + UINT8 + b"\x89U\x01atb", "do not agree"),
        (BLANK + b"(K\x01(" + b"J\xff\xff\xff\x7f" * 4 + b"t" + UINT8 + b"\x89U\x01atb", "do not agree"),
        (BLANK + b"(K\x01(K\x01t" + UINT8.partition(b"(")[0] + b"\x89U\x01atb", "do not agree"),
        (b"K\x01K\x02b", "int stands where _Array must"),
        (b"]}b", "list stands where _Array must"),
        (b"h\x05", "BINGET 5 is refused"),
        (b"j\xff\xff\xff\xff", "LONG_BINGET 4294967295 is refused"),
        (b"(q\x01", "the stack is empty"),
        (b"(\x85", "the stack is empty"),  # what lies below the mark is out of reach
        (b"t", "there is no mark"),
        (b"e", "there is no mark"),
        (b"K\x01K\x02a", "int stands where list must"),
        (b"}(K\x01u", "keys must be strings"),
        (b"}]K\x01s", "keys must be strings"),
        (b"}(U\x01au", "keys must be strings, each with a value"),
        (b"G" + bytes(8), "BINFLOAT 0.0 is refused"),
        (b"U\x01x0", "POP is refused"),
        (b"U\x01x2", "DUP is refused"),
        (b"P7\n", "PERSID"),
        (b"U\x01xQ", "BINPERSID"),
        (b"(U\x01xios\nsystem\n", "INST"),
        (b"(cos\nsystem\no", "GLOBAL"),
        (b"\x82\x01", "EXT1"),
        (b"\x93", "STACK_GLOBAL"),
        (b"\x81", "NEWOBJ"),
        (b"\x80\x04", "PROTO 4 is refused"),
        (b"\xff", "opcode"),
        (b"T\xff\xff\xff\x7fshort", "."),
        (b"T\xff\xff\xff\xff", "."),
        (b"X\xff\xff\xff\xffshort", "."),
        (b"X\x02\0\0\0\xff\xff", "."),
        (b"\x8b\xff\xff\xff\x7f", "."),
    ],
)
def test_what_is_not_plain_data_is_refused(value, says):
    refused(EMPTY + value + b"s.", says)


def test_only_a_dictionary_is_read():
    for raw in (b"].", b"\x80\x02K\x01.", b"\x80\x02}}.", b"(}.", b".", b""):
        refused(raw)


def test_a_dictionary_within_itself_ends_nowhere():
    raw = b"\x80\x02}q\x01U\x04datah\x01s."
    with inert():
        assert parse_pickle(raw)[b"data"][b"data"]
    with pytest.raises(ValueError, match="must hold 'data'"):
        read_cifar10([raw])


def test_lists_within_lists_are_no_recursion():
    with inert():
        found = parse_pickle(b"\x80\x02}U\x01x" + b"]" * 20_000 + b"a" * 19_999 + b"s.")
    assert len(found[b"x"]) == 1


def test_a_pickle_cut_or_extended_is_refused():
    raw = batch(pixels(1)[:, :4], [3])
    for cut in range(len(raw)):
        with pytest.raises(ValueError, match=r"^pickle data"):
            parse_pickle(raw[:cut])
    refused(raw + b"\0", "too early or too late")


SMALL = batch(pixels(1)[:, :9], [3])[-400:]
SMALL = b"\x80\x02}(" + SMALL[SMALL.index(b"U\x06labels") :]


@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.binary(max_size=4), st.integers(0, 4)), max_size=4))
def test_changed_bytes_execute_nothing(changes):
    raw = SMALL
    for place, inserted, removed in changes:
        raw = raw[:place] + inserted + raw[place + removed :]
    with inert():
        try:
            found = parse_pickle(raw)
        except ValueError:  # no other error escapes
            return
    assert isinstance(found, dict)


@given(st.lists(st.sampled_from(b"(.)]}aehjqrstub\x85\x86\x87NR\x88\x89"), max_size=30), st.binary(max_size=5))
def test_any_opcodes_execute_nothing(codes, tail):
    with inert():
        try:
            parse_pickle(EMPTY + bytes(codes) + tail + b"s.")
        except ValueError:
            return


# --- CIFAR ------------------------------------------------------------------------------------------------------


def test_cifar_batches_follow_one_another():
    first, second = pixels(3), pixels(2, seed=1)
    x, y = read_cifar10([batch(first, [5, 0, 9]), batch(second, [1, 255])])
    assert (x.shape, x.dtype) == ((5, 3, 32, 32), np.uint8)
    assert y.dtype == np.uint8
    assert y.tolist() == [5, 0, 9, 1, 255]
    for n, c, h, w in ((0, 0, 0, 0), (1, 2, 3, 4), (2, 1, 31, 0)):
        assert x[n, c, h, w] == first[n, 1024 * c + 32 * h + w]  # a red, a green and a blue image, row by row
    assert np.array_equal(x[3:].reshape(2, -1), second)


def test_cifar100_gives_the_fine_labels():
    raw = batch(pixels(2), [99, 3], key=b"fine_labels", coarse_labels=[1, 2])
    assert read_cifar100([raw])[1].tolist() == [99, 3]
    with pytest.raises(ValueError, match="must hold 'labels', a list of 2"):
        read_cifar10([raw])


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"\x80\x02}.", "must hold 'data'"),
        (batch(pixels(2)[:, :3000], [1, 2]), "array \\[N, 3072\\]"),
        (batch(pixels(2).reshape(2, 3, 1024), [1, 2]), "array \\[N, 3072\\]"),
        (batch(pixels(2), [1]), "a list of 2 labels"),
        (batch(pixels(1), [256]), "integers from 0 to 255"),
        (batch(pixels(1), [-1]), "integers from 0 to 255"),
        (batch(pixels(1), [7]).replace(b"](K\x07e", b"](\x88e"), "integers from 0 to 255"),
        (batch(pixels(1), [7]).replace(b"](K\x07e", b"U\x017"), "a list of 1 labels"),
    ],
)
def test_other_content_is_no_cifar(raw, says):
    with pytest.raises(ValueError, match=says):
        read_cifar10([raw])


# --- SVHN -------------------------------------------------------------------------------------------------------


def mat(x, y, packed=True, **more):
    stream = io.BytesIO()
    content = {key: value for key, value in {"X": x, "y": y, **more}.items() if value is not None}
    scipy.io.savemat(stream, content, do_compression=packed)
    return stream.getvalue()


DIGITS = np.array([[1], [10], [9], [10]], np.uint8)
HOUSES = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), np.uint8)


@pytest.mark.parametrize("packed", [True, False])
def test_svhn(packed):
    x, y = read_svhn([mat(HOUSES, DIGITS, packed, other="left alone")])
    assert (x.shape, x.dtype, y.dtype) == ((4, 3, 32, 32), np.uint8, np.uint8)
    assert y.tolist() == [1, 0, 9, 0]
    assert x[2, 1, 5, 31] == HOUSES[5, 31, 1, 2]
    assert np.array_equal(np.stack([HOUSES[..., n].transpose(2, 0, 1) for n in range(4)]), x)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (HOUSES, None, "must hold 'X', bytes .*, and 'y'"),
        (None, DIGITS, "must hold 'X', bytes"),
        (HOUSES, DIGITS[:3], "bytes \\[32, 32, 3, N\\]"),
        (HOUSES[:30], DIGITS, "bytes \\[32, 32, 3, N\\]"),
        (HOUSES[..., 0], DIGITS[:1], "bytes \\[32, 32, 3, N\\]"),
        (HOUSES / 255, DIGITS, "bytes \\[32, 32, 3, N\\]"),
        (HOUSES, DIGITS - 1, "integers from 1 to 10"),
        (HOUSES, DIGITS + 1, "integers from 1 to 10"),
        (HOUSES, DIGITS + 0.5, "integers from 1 to 10"),
    ],
)
def test_other_content_is_no_svhn(x, y, says):
    with pytest.raises(ValueError, match=says):
        read_svhn([mat(x, y)])


def test_svhn_damaged():
    raw = mat(HOUSES, DIGITS)
    for damaged in (b"", b"<html>", raw[:3000], raw[:200] + bytes(99) + raw[299:], raw[:124] + b"\0\2IM" + raw[128:]):
        with pytest.raises(ValueError, match=r"^MATLAB data of \d+ bytes cannot be read|an SVHN file must hold"):
            read_svhn([damaged])


def test_real_svhn():
    path = REAL / "SVHN" / "test_32x32_subset50.mat"
    if not path.is_file():
        pytest.skip("no SVHN here")
    x, y = read_svhn([path.read_bytes()])
    content = scipy.io.loadmat(path)
    assert x.shape == (50, 3, 32, 32)
    assert ((y == 0) == (content["y"][:, 0] == 10)).all()
    assert (y[y > 0] == content["y"][:, 0][y > 0]).all()
    assert np.array_equal(x[7, 2], content["X"][:, :, 2, 7])
    change = [np.abs(np.diff(x.astype(int), axis=axis)).mean() for axis in (1, 2, 3)]
    assert max(change[1:]) < 20  # neighbouring pixels are alike, whether below or beside


# --- .npy -------------------------------------------------------------------------------------------------------

integers = st.sampled_from([np.uint8, np.int8, np.int32, np.int64, np.uint16]).flatmap(
    lambda kind: st_numpy.arrays(kind, st_numpy.array_shapes(min_dims=0, max_dims=4, max_side=4))
)


@given(integers, st.sampled_from("CF"))
def test_npy_round_trip(values, order):
    raw = npy(np.asarray(values, order=order))
    with inert():
        found = parse_npy(raw)
    assert found.dtype == values.dtype
    assert found.shape == values.shape
    assert np.array_equal(found, values)


@given(integers, st.data())
def test_npy_cut_or_extended(values, data):
    raw = npy(values)
    wrong = data.draw(st.integers(0, len(raw) - 1).map(lambda k: raw[:k]) | st.just(raw + b"\0"))
    with pytest.raises(ValueError, match=r"^npy "):
        parse_npy(wrong)


@given(st.integers(0, 140), st.binary(min_size=1, max_size=6))
def test_npy_any_header(place, inserted):
    raw = npy(np.arange(6, dtype=np.uint8).reshape(2, 3))
    with inert():
        try:
            found = parse_npy(raw[:place] + inserted + raw[place + len(inserted) :])
        except ValueError:  # no other error escapes
            return
    assert found.size * found.itemsize <= 6


def npy_header(text):
    padded = text.encode() + b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(padded)) + padded


def test_npy_of_anything_but_integers_is_refused(tmp_path):
    evil = np.array([Attack(os.system, f"touch {tmp_path}/executed")], dtype=object)
    plain = "{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }"
    assert parse_npy(npy_header(plain) + b"ab").tolist() == [97, 98]
    for raw in (
        npy(evil),
        npy(np.ones(3)),
        npy(np.array(["text"])),
        npy(np.zeros(2, [("a", "u1")])),
        pickle.dumps(evil),
        npy_header(plain.replace("(2,)", f"(__import__('os').system('touch {tmp_path}/executed'),)")) + b"ab",
        npy_header(plain.replace("(2,)", "(99999999999, 99999999999)")) + b"ab",
        npy_header(plain.replace("(2,)", "(-1,)")) + b"ab",
        npy_header(plain + " " * 5000) + b"ab",
        npy_header(plain.replace("(2,)", "(2, 1, 1, 1, 1)")) + b"ab",
        b"\x93NUMPY\2\0\xff\xff\xff\xff" + b"x" * 50,
        b"",
    ):
        with inert(), pytest.raises(ValueError, match=r"^npy "):
            parse_npy(raw)
    assert list(tmp_path.iterdir()) == []


# --- archives ---------------------------------------------------------------------------------------------------


def plain_file(name, raw):
    info = tarfile.TarInfo(name)
    info.size = len(raw)
    return info, raw


def special(name, kind, target="a/one"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def tarred(path, entries):
    """A tar file, compressed or not by its name; entries: pairs of TarInfo and content."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as packed:
        for info, raw in entries:
            packed.addfile(info, io.BytesIO(raw))
    return path


def zipped(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, raw in entries:
            packed.writestr(name, raw)
    return path


INSIDE = [("./a/one", b"1" * 50), ("a/two", b"2" * 70), ("b", b"3")]


@pytest.fixture(params=["x.tar", "x.tar.gz", "x.zip"])
def archive(request, tmp_path):
    path = tmp_path / request.param
    if path.suffix == ".zip":
        return zipped(path, [(name.removeprefix("./"), raw) for name, raw in INSIDE])
    return tarred(path, [plain_file(*entry) for entry in INSIDE])


def test_members_are_read_by_name_and_written_nowhere(archive, tmp_path):
    found = dict(formats.members(archive, {"b": 1, "a/one": 50}))
    assert found == {"b": b"3", "a/one": b"1" * 50}
    assert list(tmp_path.iterdir()) == [archive]


def test_a_member_is_read_to_its_limit_only(archive):
    assert dict(formats.members(archive, {"a/two": 10})) == {"a/two": b"2" * 11}


def test_a_member_that_is_not_there(archive):
    with pytest.raises(ValueError, match=r"(?i)there is no item named 'a/three'"):
        dict(formats.members(archive, {"b": 1, "a/three": 50}))


def test_an_archive_cut_short(archive):
    raw = archive.read_bytes()
    for size in (0, 1, 10, len(raw) // 2):
        archive.write_bytes(raw[:size] if archive.suffix != ".tar" else raw[: min(size, 600)])
        with pytest.raises(ValueError, match=r"."):
            dict(formats.members(archive, {"a/one": 50, "b": 1}))


def test_a_gzip_bomb_is_not_unfolded(tmp_path):
    path = tarred(tmp_path / "bomb.tar.gz", [plain_file("a", bytes(20_000_000))])
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    assert dict(formats.members(path, {"a": 10})) == {"a": bytes(11)}
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_in_a_members_place_is_refused(kind, tmp_path):
    path = tarred(tmp_path / "x.tar", [plain_file("a/one", b"1"), special("b", kind)])
    with pytest.raises(ValueError, match="b is not a plain file"):
        dict(formats.members(path, {"b": 1}))
    assert dict(formats.members(path, {"a/one": 1})) == {"a/one": b"1"}


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_in_a_members_place_is_refused_in_a_zip_file_too(mode, tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name, kind in (("a", stat.S_IFREG), ("b", mode), ("c", 0)):
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o777) << 16 if kind else 0
            packed.writestr(info, b"1")
    with pytest.raises(ValueError, match=r"^b is not a plain file"):
        dict(formats.members(path, {"b": 1}))
    assert dict(formats.members(path, {"a": 1, "c": 1})) == {"a": b"1", "c": b"1"}


def test_a_damaged_member_of_a_zip_file_is_named(tmp_path):
    content = np.random.default_rng(0).bytes(2000)
    path = zipped(tmp_path / "x.zip", [("a", content), ("b", b"1")])
    raw = path.read_bytes()
    path.write_bytes(raw[:1000] + bytes([raw[1000] ^ 1]) + raw[1001:])
    with pytest.raises(ValueError, match=r"^a is damaged"):
        dict(formats.members(path, {"a": 2000}))
    assert dict(formats.members(path, {"b": 1})) == {"b": b"1"}


@pytest.mark.parametrize("form", ["x.tar", "x.tar.gz", "x.zip"])
@pytest.mark.parametrize(
    "name", ["/etc/x", "../x", "a/../../x", "a/../b", "..", "C:\\x", "C:/x", "\\\\host\\x", "..\\x", "a\\..\\x"]
)
def test_a_name_that_leads_out_of_an_archive_is_refused(name, form, tmp_path):
    pack = zipped if form.endswith("zip") else tarred
    entries = [(name, b"1"), ("b", b"1")]
    path = pack(tmp_path / form, entries if pack is zipped else [plain_file(*entry) for entry in entries])
    with pytest.raises(ValueError, match=r"the name '.*' leads out of it"):
        dict(formats.members(path, {"b": 1}))
    assert list(tmp_path.iterdir()) == [path]
