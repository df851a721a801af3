"""advbook.datasets: the idx format, verification, mirrors, the zip of EMNIST, real files if there are any."""

import gzip
import hashlib
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from advbook import datasets
from advbook.datasets import (
    DATASETS,
    DamagedData,
    Dataset,
    File,
    MissingData,
    Split,
    available,
    gunzip,
    load,
    main,
    parse_idx,
    read_emnist,
    read_idx,
)

REPOSITORY = Path(__file__).parents[1]
REAL = Path(os.environ.get("ADVBOOK_DATA") or REPOSITORY.parent / "shared" / "data")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no data folder, and no way to any host but this one."""
    resolve = socket.getaddrinfo

    def local_only(host, *rest, **options):
        assert host == "127.0.0.1", f"a test asked for {host}"
        return resolve(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", local_only)
    monkeypatch.setattr(datasets.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.delenv("ADVBOOK_DATA", raising=False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    return tmp_path / "cache" / "advbook"


class Mirror:
    """An HTTP server on this machine: what it answers by path (bytes, or a status), and what it was asked."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                mirror.asked.append((self.path, self.headers["Accept-Encoding"]))
                answer = mirror.answers.get(self.path, 404)
                if isinstance(answer, int):
                    return self.send_error(answer)
                body, promised = answer if isinstance(answer, tuple) else (answer, len(answer))
                self.send_response(200)
                self.send_header("Content-Length", str(promised))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def mirror():
    server = Mirror()
    yield server
    server.close()


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def published(path, raw):
    return File(path, len(raw), hashlib.sha256(raw).hexdigest())


class Toy:
    """A data set of random images in the official form, registered under a name, its files nowhere yet."""

    def __init__(self, monkeypatch, name, folder, read=read_idx, archive=None, seed=0):
        random = np.random.default_rng(seed)
        self.name = name
        self.x = {"train": random.integers(0, 256, (300, 28, 28), np.uint8)}
        self.x["test"] = random.integers(0, 256, (20, 28, 28), np.uint8)
        self.y = {split: np.arange(len(x), dtype=np.uint8) % 10 for split, x in self.x.items()}
        self.raw = {}
        splits = {}
        for split in ("train", "test"):
            for part, array in (("images-idx3", self.x[split]), ("labels-idx1", self.y[split])):
                self.raw[f"{folder}/{name}-{split}-{part}-ubyte.gz"] = gzip.compress(idx(array), mtime=0)
            paths = list(self.raw)[-2:]
            splits[split] = Split(len(self.x[split]), tuple(published(p, self.raw[p]) for p in paths))
        self.first = next(iter(self.raw))
        digits = tuple("0123456789")
        self.monkeypatch = monkeypatch
        self.dataset = Dataset(name.title(), digits, splits, read, ("http://127.0.0.1:9/",), archive)
        self.register()

    def register(self, **changes):
        self.dataset = replace(self.dataset, **changes)
        self.monkeypatch.setitem(DATASETS, self.name, self.dataset)

    def write(self, folder):
        for path, raw in self.raw.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(raw)
        return folder

    def serve(self, mirror, prefix=""):
        for path, raw in self.raw.items():
            mirror.answers[f"/{prefix}{PurePosixPath(path).name}"] = raw


@pytest.fixture
def toy(monkeypatch):
    return Toy(monkeypatch, "toy", "Toy/raw")


@pytest.fixture
def data(toy, tmp_path, monkeypatch):
    """ADVBOOK_DATA with the toy data set in it."""
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path / "data"))
    return toy.write(tmp_path / "data")


def is_toy(images, toy, split="train"):
    x, y = toy.x[split], toy.y[split]
    return torch.equal((images.x * 255).round().byte(), torch.tensor(x)[:, None]) and images.y.tolist() == y.tolist()


def one_sentence(error):
    return "\n" not in str(error) and len(str(error)) > 20


# --- the idx format


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


def test_emnist_is_transposed():
    x, y = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([7, 1], np.uint8)
    files = [gzip.compress(idx(array)) for array in (x, y)]
    assert read_idx(files)[0].shape == (2, 1, 3, 4)
    turned, labels = read_emnist(files)
    assert turned.shape == (2, 1, 4, 3)
    assert turned[1, 0, 3, 2] == x[1, 2, 3]
    assert labels.tolist() == [7, 1]


# --- load


def test_load(toy, data):
    images = load("toy")
    assert images.x.shape == (300, 1, 28, 28)
    assert images.x.dtype == torch.float32
    assert (images.x.min(), images.x.max()) == (0, 1)
    assert images.y.dtype == torch.int64
    assert is_toy(images, toy)
    assert is_toy(load("toy", "test"), toy, "test")
    assert (images.name, images.split, len(images.classes)) == ("toy", "train", 10)
    sha = toy.dataset.splits["train"].files[0].sha256[:8]
    assert images.source == f"Toy train, all 300 images, sha256 {sha}..."


def test_first_rows(toy, data):
    images = load("toy", n=7)
    assert torch.equal(images.x, load("toy").x[:7])
    assert images.y.tolist() == list(range(7))
    assert "first 7 of 300 images" in images.source
    assert len(load("toy", n=300).x) == 300


@pytest.mark.parametrize("n", [0, -1, 301])
def test_n_outside_the_data(toy, n):
    with pytest.raises(ValueError, match=f"^n is {n}; toy train has 300 images, so it must be 1 to 300$"):
        load("toy", n=n)  # before any file is looked for: there is none


def test_device(toy, data):
    images = load("toy", n=2, device="meta")
    assert images.x.device.type == images.y.device.type == "meta"


@pytest.mark.parametrize("typed", ["minst", "MNIST", "mnist "])
def test_unknown_name(typed):
    for ask in (load, available):
        with pytest.raises(ValueError, match=f"data set '{typed}' is unknown; did you mean 'mnist'") as caught:
            ask(typed)
        assert all(name in str(caught.value) for name in DATASETS)


def test_unknown_name_without_a_near_one():
    with pytest.raises(
        ValueError, match="data set 'xyz' is unknown; known: mnist, fashion_mnist, emnist, emnist_mnist"
    ):
        load("xyz")


def test_unknown_split():
    with pytest.raises(ValueError, match="split of mnist 'tests' is unknown; did you mean 'test'"):
        load("mnist", "tests")


# --- the folder of the user


def test_root_stands_in_for_the_variable(toy, data, tmp_path, monkeypatch):
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path / "nowhere"))
    assert is_toy(load("toy", root=data), toy)
    assert available("toy", root=data)
    assert not available("toy")


def test_home_in_the_variable(toy, data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ADVBOOK_DATA", "~/data")
    assert is_toy(load("toy"), toy)


def test_variable_names_no_folder(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(MissingData, match=r"^ADVBOOK_DATA=.*nowhere is not a folder"):
        load("toy")


def flipped(raw):
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize("damage", [lambda raw: raw[:-100], flipped, lambda raw: b""])
def test_damaged_file_of_the_user(toy, data, mirror, cache, damage):
    toy.write(cache)
    toy.serve(mirror)
    toy.register(mirrors=(mirror.url,))
    labels = "Toy/raw/toy-train-labels-idx1-ubyte.gz"
    (data / labels).write_bytes(damage(toy.raw[labels]))
    with pytest.raises(DamagedData, match=f"^{labels} in ADVBOOK_DATA=.* is damaged .*replace it") as caught:
        load("toy")
    assert one_sentence(caught.value)
    assert mirror.asked == []  # neither the cache nor a mirror steps in silently


def test_files_may_be_spread(toy, data, cache):
    toy.write(cache)
    (data / toy.first).unlink()
    assert is_toy(load("toy", download=False), toy)
    assert available("toy")


# --- the cache and the mirrors


def test_mirrors_in_turn(toy, mirror, cache):
    toy.serve(mirror, "good/")
    path = "/damaged/toy-train-images-idx3-ubyte.gz"
    mirror.answers[path] = flipped(toy.raw[toy.first])
    mirror.answers["/cut" + path[8:]] = (toy.raw[toy.first][:1000], len(toy.raw[toy.first]))
    toy.register(mirrors=tuple(mirror.url + folder for folder in ("damaged/", "absent/", "cut/", "good/")))
    assert is_toy(load("toy"), toy)
    asked = [path.split("/")[1] for path, _ in mirror.asked]
    assert asked == ["damaged", "absent", "cut", "good"] * 2
    assert {encoding for _, encoding in mirror.asked} == {"identity"}
    assert (cache / toy.first).read_bytes() == toy.raw[toy.first]
    assert sorted(p.name for p in (cache / "Toy/raw").iterdir()) == [
        "toy-train-images-idx3-ubyte.gz",
        "toy-train-labels-idx1-ubyte.gz",
    ]
    toy.register(mirrors=())
    assert is_toy(load("toy"), toy)  # the second time, from the cache


def test_all_mirrors_fail(toy, mirror, cache):
    name = PurePosixPath(toy.first).name
    mirror.answers = {f"/damaged/{name}": b"<html>log in first</html>", f"/forbidden/{name}": 403}
    urls = [mirror.url + "damaged/", mirror.url + "forbidden/", "http://127.0.0.1:9/"]
    toy.register(mirrors=tuple(urls))
    with pytest.raises(MissingData) as caught:
        load("toy")
    text = str(caught.value)
    assert one_sentence(text)
    host = mirror.url.split("/")[2]
    assert f"({host}: the file is damaged (wrong sha256); {host}: HTTP status 403; 127.0.0.1:9: no connection)" in text
    assert "ADVBOOK_DATA (unset)" in text
    assert f"into Toy/raw there, put {', '.join(PurePosixPath(p).name for p in toy.raw)} from {urls[0]}" in text
    assert not list(cache.rglob("*ubyte.gz"))


def test_silent_mirror(toy, mirror, monkeypatch):
    monkeypatch.setattr(datasets, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        toy.register(mirrors=(f"http://127.0.0.1:{silent.getsockname()[1]}/",))
        start = time.monotonic()
        with pytest.raises(MissingData, match="no answer in time"):
            load("toy")
        assert time.monotonic() - start < 5


def test_without_download(toy, mirror):
    toy.register(mirrors=(mirror.url,))
    toy.serve(mirror)
    with pytest.raises(FileNotFoundError, match="downloading was not allowed"):
        load("toy", download=False)
    assert mirror.asked == []


def test_damaged_cache_is_fetched_again(toy, mirror, cache):
    toy.write(cache)
    for damaged in (flipped(toy.raw[toy.first]), toy.raw[toy.first][:99]):
        (cache / toy.first).write_bytes(damaged)
        toy.register(mirrors=(mirror.url,))
        with pytest.raises(MissingData, match="nor intact in the cache"):
            load("toy", download=False)
        toy.serve(mirror)
        assert is_toy(load("toy"), toy)
    assert [path for path, _ in mirror.asked] == ["/toy-train-images-idx3-ubyte.gz"] * 2


def test_leftovers_of_a_killed_download_go(toy, mirror, cache):
    toy.serve(mirror)
    toy.register(mirrors=(mirror.url,))
    stray = cache / "Toy/raw/tmpabcdefgh"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"half a file")
    load("toy")
    assert not stray.exists()


def test_many_at_once_fetch_once(toy, mirror):
    toy.serve(mirror)
    toy.register(mirrors=(mirror.url,))
    with ThreadPoolExecutor(4) as pool:
        assert all(is_toy(images, toy) for images in pool.map(load, ["toy"] * 4))
    assert len(mirror.asked) == 2


def test_no_room_for_the_cache(toy, mirror, cache):
    toy.serve(mirror)
    toy.register(mirrors=(mirror.url,))
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the images take 235 kB
    try:
        with pytest.raises(OSError, match=r"^toy: the cache .* cannot be written \(.+\); make that possible") as caught:
            load("toy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert one_sentence(caught.value)
    assert [p.name for p in cache.rglob("*") if p.is_file() and p.name != ".lock"] == []


def test_cache_is_not_a_folder(toy, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    with pytest.raises(OSError, match="cannot be written"):
        load("toy")


# --- the zip of EMNIST


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in members:
            archive.writestr(name, raw)
    return path.read_bytes()


@pytest.fixture
def packed(monkeypatch, tmp_path):
    """Two data sets in one zip, among names that would be dangerous if believed; the zip's bytes."""
    pair = [Toy(monkeypatch, name, "Toys/gzip", read_emnist, seed=seed) for seed, name in enumerate(("one", "two"))]
    inside = [(str(PurePosixPath(path).relative_to("Toys")), raw) for toy in pair for path, raw in toy.raw.items()]
    hostile = [
        "../../escaped",
        str(tmp_path / "absolute"),
        "gzip/../../../escaped",
        "gzip/other.gz",
        "C:\\escaped",
    ]
    raw = zipped(tmp_path / "made.zip", [*((name, b"hostile") for name in hostile), *inside])
    for toy in pair:
        toy.register(archive=published("Toys/gzip.zip", raw))
    return pair, raw


def test_zip_gives_only_the_known_members(packed, mirror, cache, tmp_path):
    (one, two), raw = packed
    mirror.answers["/gzip.zip"] = raw
    (cache / "Toys/gzip").mkdir(parents=True)
    (cache / "Toys/gzip/tmpabcdefgh").write_bytes(b"left by a killed run")
    before = set(tmp_path.iterdir())
    one.register(mirrors=(mirror.url,))
    images = load("one")
    assert torch.equal((images.x * 255).round().byte(), torch.tensor(one.x["train"])[:, None].mT)
    assert [path for path, _ in mirror.asked] == ["/gzip.zip"]
    files = {str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file()} - {".lock"}
    assert files == set(one.raw) | set(two.raw)  # not the zip, and nothing else of it
    assert set(tmp_path.iterdir()) == before
    assert available("one")
    assert torch.equal(load("two", download=False).y, images.y)


def test_zip_with_a_wrong_hash(packed, mirror, cache):
    (one, _), raw = packed
    mirror.answers["/gzip.zip"] = flipped(raw)
    one.register(mirrors=(mirror.url,))
    with pytest.raises(MissingData, match=rf"wrong sha256.*into Toys there, unzip gzip.zip from {mirror.url}"):
        load("one")
    assert not list(cache.rglob("*.gz"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda members: members[1:], "cannot be unpacked: There is no item named 'gzip/one-train-images"),
        (
            lambda members: [(members[0][0], flipped(members[0][1])), *members[1:]],
            "is not the published file",
        ),
        (lambda members: [(members[0][0], bytes(10**7)), *members[1:]], "is not the published file"),
        (lambda members: [*members, (members[0][0], b"a second one")], "is not the published file"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_a_wrong_member(packed, mirror, cache, tmp_path, damage, says):
    (one, two), _ = packed
    members = [(str(PurePosixPath(p).relative_to("Toys")), raw) for toy in (one, two) for p, raw in toy.raw.items()]
    raw = zipped(tmp_path / "wrong.zip", damage(members))
    mirror.answers["/gzip.zip"] = raw
    for toy in (one, two):
        toy.register(archive=published("Toys/gzip.zip", raw), mirrors=(mirror.url,))
    with pytest.raises(DamagedData, match=says) as caught:
        load("one")
    assert one_sentence(caught.value)
    assert not (cache / one.first).exists()


def test_no_zip_at_all(tmp_path, cache):
    (tmp_path / "gzip.zip").write_bytes(b"<html>")
    with pytest.raises(DamagedData, match=r"gzip.zip cannot be unpacked"):
        datasets._unpack(tmp_path / "gzip.zip", {}, cache)


# --- available, and the command line


def test_available(toy, data, cache):
    assert available("toy")
    (data / toy.first).write_bytes(b"short")
    toy.write(cache)
    assert not available("toy")  # as load, which would complain about the user's file
    (data / toy.first).unlink()
    assert available("toy")
    (cache / toy.first).unlink()
    assert not available("toy")


def test_command_list(toy, data, capsys):
    assert main([]) == 0
    default = capsys.readouterr().out
    assert main(["list"]) == 0
    assert capsys.readouterr().out == default
    assert "python -m advbook.datasets fetch NAME" in default
    rows = {line.split()[0]: line for line in default.splitlines()[4:-2]}
    assert list(rows) == list(DATASETS)
    assert rows["toy"].split() == ["toy", "300", "+", "20", "train,", "test", "Toy"]
    assert rows["emnist"].split() == ["emnist", "240000", "+", "40000", "-", "EMNIST", "digits"]


def test_command_fetch(toy, mirror, capsys):
    toy.serve(mirror)
    toy.register(mirrors=(mirror.url,))
    assert main(["fetch", "toy"]) == 0
    output = capsys.readouterr()
    assert output.out == "toy train: 300 images, every file verified\ntoy test: 20 images, every file verified\n"
    assert "toy-train-images-idx3-ubyte.gz" in output.err  # the progress bar
    assert available("toy")


def test_command_fails_in_one_sentence(toy, capsys):
    assert main(["fetch", "toy", "tou"]) == 1  # a name is checked before anything is fetched
    assert capsys.readouterr().err.startswith("advbook.datasets: data set 'tou' is unknown; did you mean 'toy'?")
    assert main(["fetch", "toy"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "advbook.datasets: toy: Toy/raw/toy-train-images-idx3-ubyte.gz is neither in" in last


def test_command_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fetch", "--help"])
    assert caught.value.code == 0
    assert "mnist, fashion_mnist, emnist, emnist_mnist" in " ".join(capsys.readouterr().out.split())


def test_module_runs(tmp_path):
    command = [sys.executable, "-m", "advbook.datasets", "list"]
    env = {**os.environ, "ADVBOOK_DATA": str(tmp_path / "nowhere")}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is not a folder" in done.stderr


# --- the register and the real files


def test_register():
    files = [file for dataset in DATASETS.values() for file in (*dataset.files, dataset.archive) if file]
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in files)
    assert len({file.sha256 for file in files}) == len({file.path for file in files}) == 17
    assert all(url.endswith("/") for dataset in DATASETS.values() for url in dataset.mirrors)
    assert all(len(dataset.mirrors) >= 2 for dataset in DATASETS.values())


def test_register_of_emnist_against_the_published_list():
    path = REAL / "EMNIST" / "official_sha256.txt"
    if not path.is_file():
        pytest.skip("no list of EMNIST's hashes here")
    rows = [line.split() for line in path.read_text().splitlines()]
    official = {f"EMNIST/{name}": (int(size), sha.removeprefix("sha256:")) for name, sha, size in rows}
    for file in (*DATASETS["emnist"].files, *DATASETS["emnist_mnist"].files):
        assert (file.size, file.sha256) == official[file.path]


def real(name, split):
    if not all((REAL / file.path).is_file() for file in DATASETS[name].splits[split].files):
        pytest.skip(f"no real {name} {split} here")
    return load(name, split, root=REAL, download=False)


# How many images each class has, as published (MNIST) or by design.
COUNTS = {
    ("mnist", "train"): [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    ("mnist", "test"): [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ("fashion_mnist", "train"): [6000] * 10,
    ("fashion_mnist", "test"): [1000] * 10,
    ("emnist_mnist", "test"): [1000] * 10,
}


@pytest.mark.parametrize(("name", "split"), COUNTS)
def test_real_files(name, split):
    images = real(name, split)
    size = DATASETS[name].splits[split].count
    assert images.x.shape == (size, 1, 28, 28)
    assert images.x.is_contiguous()
    assert (images.x.min(), images.x.max()) == (0, 1)
    assert torch.bincount(images.y).tolist() == COUNTS[name, split]
    assert str(REAL) not in images.source


def test_real_first_rows():
    real("mnist", "test")
    assert load("mnist", n=10, root=REAL).y.tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert load("fashion_mnist", "test", n=3, root=REAL).y.tolist() == [9, 2, 1]


def test_real_fashion_is_what_the_names_say():
    images = real("fashion_mnist", "test")
    width = {c: (images.x[images.y == k].mean(0)[0] > 0.2).any(0).sum() for k, c in enumerate(images.classes)}
    assert width["Trouser"] < min(width[c] for c in ("T-shirt/top", "Coat", "Sneaker", "Bag"))


def test_real_emnist_stands_upright():
    mnist, emnist = real("mnist", "train"), real("emnist_mnist", "test")
    centroids = torch.stack([mnist.x[mnist.y == k].mean(0).flatten() for k in range(10)])  # [10, 784]

    def accuracy(x):
        return (torch.cdist(x.flatten(1), centroids).argmin(1) == emnist.y).float().mean().item()

    assert accuracy(emnist.x) > 0.5  # 0.545: centred otherwise than MNIST, but legible
    assert accuracy(emnist.x.mT) < 0.25  # 0.185: as it is stored
