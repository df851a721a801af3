"""advbook.datasets: verification, mirrors, archives, the command line, real files if there are any."""

import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import publishers
import pytest
import torch
from publishers import Toy, flipped, one_sentence, published, zipped
from test_formats import batch, mat, pixels, plain_file, special, tarred

from advbook import formats
from advbook.datasets import (
    CORRUPTED,
    DATASETS,
    DamagedData,
    Dataset,
    MissingData,
    Split,
    Whole,
    available,
    load,
    sources,
)
from advbook.datasets.__main__ import main
from advbook.formats import read_emnist

cache = pytest.fixture(publishers.cache, autouse=True)
mirror = pytest.fixture(publishers.mirror)
REPOSITORY = Path(__file__).parents[1]
REAL = Path(os.environ.get("ADVBOOK_DATA") or REPOSITORY.parent / "shared" / "data")


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
    monkeypatch.setattr(sources, "TIMEOUT", 0.1)
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


@pytest.fixture
def packed(monkeypatch, tmp_path):
    """Two data sets in one zip, among other files; the zip's bytes."""
    pair = [Toy(monkeypatch, name, "Toys/gzip", read_emnist, seed=seed) for seed, name in enumerate(("one", "two"))]
    inside = [(str(PurePosixPath(path).relative_to("Toys")), raw) for toy in pair for path, raw in toy.raw.items()]
    strays = [("gzip/other.gz", b"stray"), ("__MACOSX/._x", b"stray")]
    raw = zipped(tmp_path / "made.zip", [*strays, *inside])
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
    with pytest.raises(
        MissingData, match=rf"wrong sha256.*into Toys there, put gzip.zip, as it is or unpacked, from {mirror.url}"
    ):
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
    path = tmp_path / "gzip.zip"
    path.write_bytes(b"<html>")
    with pytest.raises(DamagedData, match=r"gzip.zip cannot be unpacked"):
        sources._unpack(path, published("Toys/gzip.zip", b""), cache)


def test_a_zip_in_the_users_folder_is_read_where_it_lies(packed, cache, tmp_path, monkeypatch):
    (one, two), raw = packed
    path = tmp_path / "data/Toys/gzip.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(raw)
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path / "data"))
    for toy in (one, two):
        assert available(toy.name)
        for split in ("train", "test"):
            images = load(toy.name, split, download=False)
            assert torch.equal((images.x * 255).round().byte(), torch.tensor(toy.x[split])[:, None].mT)
    assert [p for p in (tmp_path / "data").rglob("*") if p.is_file()] == [path]  # nothing is unpacked
    assert not cache.exists()


def test_a_loose_file_is_preferred_to_the_zip_beside_it(packed, tmp_path, monkeypatch):
    (one, _), raw = packed
    one.write(tmp_path / "data")
    (tmp_path / "data/Toys/gzip.zip").write_bytes(raw)
    (tmp_path / "data" / one.first).write_bytes(b"damaged")
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path / "data"))
    with pytest.raises(DamagedData, match=f"{one.first} in ADVBOOK_DATA=.* is damaged"):
        load("one", download=False)
    (tmp_path / "data" / one.first).unlink()
    assert len(load("one", download=False).x) == 300


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda raw: raw[:-1], r"Toys/gzip.zip in ADVBOOK_DATA=.* is truncated or is not the published file"),
        (lambda raw: raw[: len(raw) // 2], "is truncated"),
        (lambda raw: bytes(len(raw)), "gzip.zip cannot be unpacked: File is not a zip file"),
        (lambda raw: raw[:5000] + bytes(9) + raw[5009:], "cannot be unpacked: gzip/one-.* is damaged|wrong sha256"),
    ],
)
def test_a_damaged_zip_in_the_users_folder(packed, mirror, cache, tmp_path, monkeypatch, damage, says):
    (one, _), raw = packed
    mirror.answers["/gzip.zip"] = raw
    one.register(mirrors=(mirror.url,))
    (tmp_path / "data/Toys").mkdir(parents=True)
    (tmp_path / "data/Toys/gzip.zip").write_bytes(damage(raw))
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path / "data"))
    with pytest.raises(DamagedData, match=says) as caught:
        load("one")
    assert one_sentence(caught.value)
    assert mirror.asked == []  # what the user put there is never replaced behind their back


# --- tar files, and two data sets with the same paths -----------------------------------------------------------


class Pictures:
    """A data set in the form of CIFAR-10, registered under a name, its files nowhere yet."""

    def __init__(self, monkeypatch, name, count, seed=0, **changes):
        self.name, self.monkeypatch = name, monkeypatch
        self.x = {"train": pixels(2 * count, seed), "test": pixels(count, seed + 1)}
        parts = {"data_batch_1": self.x["train"][:count], "data_batch_2": self.x["train"][count:]}
        parts["test_batch"] = self.x["test"]
        self.raw = {f"P/py/{part}": batch(x, [k % 10 for k in range(count)]) for part, x in parts.items()}
        files = [published(path, raw) for path, raw in self.raw.items()]
        splits = {"train": Split(2 * count, tuple(files[:2])), "test": Split(count, tuple(files[2:]))}
        mirrors = ("http://127.0.0.1:9/",)
        self.dataset = Dataset(f"Title of {name}", tuple("0123456789"), splits, Whole(formats.read_cifar10), mirrors)
        self.register(**changes)

    register = Toy.register
    write = Toy.write

    def packed(self, tmp_path, more=(), name="p.tar.gz"):
        """Register an archive of this data set with some more entries, and give its bytes."""
        entries = [plain_file(path.removeprefix("P/"), raw) for path, raw in reversed(self.raw.items())]
        raw = tarred(tmp_path / name, [*entries, *more]).read_bytes()
        self.register(archive=published(f"P/{name}", raw))
        return raw


def is_picture(images, pictures, split):
    return torch.equal((images.x * 255).round().byte().flatten(1), torch.tensor(pictures.x[split]))


def test_tar_gives_the_known_members(monkeypatch, mirror, cache, tmp_path):
    pictures = Pictures(monkeypatch, "pictures", 3)
    more = [special("py/link", b"2", "/etc/passwd"), plain_file("py/readme.html", b"left alone")]
    mirror.answers["/p.tar.gz"] = pictures.packed(tmp_path, more)
    before = set(tmp_path.iterdir())
    pictures.register(mirrors=(mirror.url,))
    assert main(["fetch", "pictures"]) == 0
    for split in ("train", "test"):
        images = load("pictures", split, download=False)
        assert images.x.shape == (len(pictures.x[split]), 3, 32, 32)
        assert is_picture(images, pictures, split)
    assert load("pictures").y.tolist() == [0, 1, 2, 0, 1, 2]
    assert [path for path, _ in mirror.asked] == ["/p.tar.gz"]
    assert {str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file()} - {".lock"} == set(pictures.raw)
    assert set(tmp_path.iterdir()) - before <= {cache.parent}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            [special("py/test_batch", b"2", "/etc/passwd")],
            "p.tar cannot be unpacked: py/test_batch is not a plain file",
        ),
        ([plain_file("../escaped", b"x")], "cannot be unpacked: the name '../escaped' leads out of it"),
        ([plain_file("py/test_batch", b"a second one")], "py/test_batch in p.tar is not the published file"),
        ([plain_file("py/test_batch", bytes(10**6))], "py/test_batch in p.tar is not the published file"),
    ],
)
def test_tar_with_a_wrong_member(more, says, monkeypatch, mirror, cache, tmp_path):
    pictures = Pictures(monkeypatch, "pictures", 1)
    mirror.answers["/p.tar"] = pictures.packed(tmp_path, more, "p.tar")
    pictures.register(mirrors=(mirror.url,))
    with pytest.raises(DamagedData, match=re.escape(says)) as caught:
        load("pictures")
    assert one_sentence(caught.value)
    assert not (tmp_path / "escaped").exists()


def test_a_tar_file_in_the_users_folder_is_read_where_it_lies(monkeypatch, cache, tmp_path):
    pictures = Pictures(monkeypatch, "pictures", 3)
    (tmp_path / "data/P").mkdir(parents=True)
    (tmp_path / "data/P/p.tar.gz").write_bytes(pictures.packed(tmp_path))
    for split in ("train", "test"):
        assert is_picture(load("pictures", split, root=tmp_path / "data", download=False), pictures, split)
    assert not cache.exists()


def test_tar_with_a_wrong_hash(monkeypatch, mirror, tmp_path, cache):
    pictures = Pictures(monkeypatch, "pictures", 1)
    mirror.answers["/p.tar.gz"] = flipped(pictures.packed(tmp_path))
    pictures.register(mirrors=(mirror.url,))
    with pytest.raises(
        MissingData, match=rf"wrong sha256.*into P there, put p.tar.gz, as it is or unpacked, from {mirror.url}"
    ):
        load("pictures")
    assert not list(cache.rglob("*batch*"))


@pytest.fixture
def twins(monkeypatch):
    """A whole data set and a part of it, with the same paths; the part has no mirror."""
    part = {"mirrors": (), "note": "it is a part of whole, made here"}
    return Pictures(monkeypatch, "whole", 4), Pictures(monkeypatch, "part", 2, seed=5, **part)


@pytest.mark.parametrize("there", [0, 1])
def test_twins_are_told_apart(twins, there, tmp_path, monkeypatch):
    mine, other = twins[there], twins[1 - there]
    monkeypatch.setenv("ADVBOOK_DATA", str(mine.write(tmp_path / "data")))
    assert is_picture(load(mine.name, "test"), mine, "test")
    assert available(mine.name)
    assert not available(other.name)
    with pytest.raises(DamagedData) as caught:
        load(other.name)
    says = (
        f"belongs to {mine.name} (Title of {mine.name}), not to {other.name}: use DATASET={mine.name}, or put all files"
    )
    assert str(caught.value).startswith(f"P/py/data_batch_1 in ADVBOOK_DATA={tmp_path}/data {says}")
    assert one_sentence(caught.value)
    (tmp_path / "data/P/py/data_batch_1").write_bytes(b"nobody's")
    with pytest.raises(DamagedData, match="is damaged or is not the published file"):
        load(other.name)


def test_what_has_no_mirror_cannot_be_fetched(twins, cache, capsys):
    for ask in (lambda: load("part"), lambda: load("part", download=False)):
        with pytest.raises(MissingData) as caught:
            ask()
        assert one_sentence(caught.value)
        assert str(caught.value).endswith("and part cannot be fetched: it is a part of whole, made here")
        assert "P/py/data_batch_1 is neither in ADVBOOK_DATA (unset) nor intact in the cache" in str(caught.value)
    assert main(["fetch", "part"]) == 1
    assert "part cannot be fetched" in capsys.readouterr().err
    assert not cache.exists()


def test_the_small_cifar_says_what_it_is():
    with pytest.raises(MissingData, match=r"first 1,000 images of every batch of CIFAR-10.*cifar10 is the whole set"):
        load("cifar10_small")


def test_houses(monkeypatch, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), np.uint8)
    raw = mat(x, np.array([[10], [1], [2], [9], [10]], np.uint8))
    (tmp_path / "SVHN").mkdir()
    for name in ("train", "test"):
        (tmp_path / f"SVHN/{name}_32x32.mat").write_bytes(raw)
    splits = {name: Split(5, (published(f"SVHN/{name}_32x32.mat", raw),)) for name in ("train", "test")}
    monkeypatch.setitem(DATASETS, "svhn", replace(DATASETS["svhn"], splits=splits))
    images = load("svhn", "test", n=4, root=tmp_path)
    assert images.x.shape == (4, 3, 32, 32)
    assert images.x.is_contiguous()
    assert images.x[3, 2, 1, 0] == np.float32(x[1, 0, 2, 3]) / np.float32(255)
    assert images.y.tolist() == [0, 1, 2, 9]


def evil(marker):
    return b"\x80\x02cos\nsystem\nU" + bytes([len(marker)]) + marker + b"\x85R."


@pytest.mark.parametrize("content", ["no labels", "other labels", "a pickle that calls", "no pickle", "fewer images"])
def test_content_of_another_form_ends_the_command_in_a_sentence(content, monkeypatch, tmp_path, capsys):
    x, one = np.zeros((32, 32, 3, 5), np.uint8), np.ones((5, 1), np.uint8)
    marker = tmp_path / "executed"
    name, path, raw = {
        "no labels": ("svhn", "SVHN/test_32x32.mat", mat(x, None)),
        "other labels": ("svhn", "SVHN/test_32x32.mat", mat(x, 20 * one)),
        "fewer images": ("svhn", "SVHN/test_32x32.mat", mat(x, one)),
        "a pickle that calls": ("cifar100", "C/test", evil(f"touch {marker}".encode())),
        "no pickle": ("cifar100", "C/test", b"<html>"),
    }[content]
    (tmp_path / path).parent.mkdir()
    (tmp_path / path).write_bytes(raw)
    part = Split(4, (published(path, raw),))
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], splits={"train": part, "test": part}, archive=None))
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path))
    with pytest.raises(DamagedData, match=f"^{name} test: "):
        load(name, "test")
    assert main(["fetch", name]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"advbook.datasets: {name} train: ")
    assert one_sentence(error)
    assert not marker.exists()


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
    assert rows["celeba"].split() == ["celeba", "182339", "+", "20260", "-", "CelebA"]
    assert list(rows) == [*DATASETS, *CORRUPTED]
    assert rows["toy"].split() == ["toy", "300", "+", "20", "train,", "test", "Toy"]
    assert rows["emnist"].split() == ["emnist", "240000", "+", "40000", "-", "EMNIST", "digits"]
    assert rows["mnist_c"].split() == ["mnist_c", "15", "x", "10000", "-", "MNIST-C"]
    assert rows["cifar10_c"].split() == ["cifar10_c", "19", "x", "5", "x", "10000", "-", "CIFAR-10-C"]


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


def verified(capsys, *names):
    """The exit status of verify, and what it says of each data set."""
    status = main(["verify", *names])
    lines = capsys.readouterr().out.splitlines()
    return status, {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


def test_command_verify(toy, data, cache, capsys):
    assert verified(capsys, "toy") == (0, {"toy": "intact   4 files"})
    status, found = verified(capsys)
    assert status == 0
    assert list(found) == [*DATASETS, *CORRUPTED]
    assert {name for name, state in found.items() if state != "missing"} == {"toy"}
    (data / toy.first).unlink()
    name = PurePosixPath(toy.first).name
    assert verified(capsys, "toy") == (0, {"toy": f"missing  3 of 4 files intact, not here: {name}"})
    (cache / toy.first).parent.mkdir(parents=True)
    (cache / toy.first).write_bytes(toy.raw[toy.first])
    assert verified(capsys, "toy", "mnist") == (0, {"toy": "intact   4 files", "mnist": "missing"})
    (cache / toy.first).write_bytes(flipped(toy.raw[toy.first]))
    status, found = verified(capsys, "mnist", "toy")
    assert status == 1
    assert re.match(rf"damaged  {toy.first} in the cache .* is damaged or is not the published file", found["toy"])


def test_command_verify_reads_archives(packed, tmp_path, monkeypatch, capsys):
    _, raw = packed
    path = tmp_path / "data/Toys/gzip.zip"
    path.parent.mkdir(parents=True)
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path / "data"))
    path.write_bytes(raw)
    assert verified(capsys, "one", "two") == (0, {"one": "intact   4 files", "two": "intact   4 files"})
    path.write_bytes(raw[:5000] + bytes(9) + raw[5009:])  # in a file of one of them
    status, found = verified(capsys, "one", "two")
    assert status == 1
    assert found["one"].startswith("damaged  ")
    assert found["two"] == "intact   4 files"


@pytest.mark.parametrize("there", [0, 1])
def test_command_verify_tells_twins_apart(twins, there, tmp_path, monkeypatch, capsys):
    mine, other = twins[there], twins[1 - there]
    monkeypatch.setenv("ADVBOOK_DATA", str(mine.write(tmp_path / "data")))
    assert verified(capsys)[0] == 0
    assert verified(capsys, "whole", "part")[1] == {mine.name: "intact   3 files", other.name: "missing"}


def test_command_verify_of_an_unknown_name(capsys):
    assert main(["verify", "mnsit"]) == 1
    assert capsys.readouterr().err.startswith("advbook.datasets: data set 'mnsit' is unknown; did you mean 'mnist'?")


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
    assert all(re.fullmatch("[0-9a-f]{64}", sha) for sha in (f.sha256 for f in (*files, *CORRUPTED.values())))
    assert all(type(file.size) is int and file.size > 100 for file in files)
    small = set(DATASETS["cifar10_small"].files)
    whole = {file for file in files if file not in small}
    emnist = 6 * 4 + 1  # six data sets and one archive
    assert len({file.sha256 for file in files}) == 8 + emnist + 7 + 3 + 2 + 2 + len(small) == 53
    assert len({file.path for file in whole}) == 8 + emnist + 7 + 3 + 2 + 2
    assert {file.path for file in small} == {file.path for file in DATASETS["cifar10"].files}
    assert all(url.endswith("/") for dataset in DATASETS.values() for url in dataset.mirrors)
    assert all(len(DATASETS[name].mirrors) >= 2 for name in ("mnist", "fashion_mnist", "emnist", "emnist_mnist"))
    assert [name for name, dataset in DATASETS.items() if not dataset.mirrors] == ["cifar10_small", "celeba"]
    assert all(len(set(dataset.classes)) == len(dataset.classes) for dataset in DATASETS.values())
    letters = {"emnist_letters": 26, "emnist_balanced": 47, "emnist_byclass": 62, "emnist_bymerge": 47}
    others = {name: len(dataset.classes) for name, dataset in DATASETS.items() if len(dataset.classes) != 10}
    assert others == {**letters, "cifar100": 100, "celeba": 2}
    assert [len(set(family.corruptions)) for family in CORRUPTED.values()] == [15, 19]
    assert all(family.clean in DATASETS for family in CORRUPTED.values())
    assert all("{corruption}" in family.images for family in CORRUPTED.values())


def test_the_sizes_of_cifar_are_those_of_its_images_and_little_more():
    for name, per_file, least, most in (("cifar10", 10_000, 25, 40), ("cifar10_small", 1_000, 0, 1)):
        for file in DATASETS[name].files:
            assert least < file.size / per_file - (3072 + 2) < most, file  # a label and, in the whole set, a file name
    for split, part in DATASETS["cifar100"].splits.items():
        assert 25 < part.files[0].size / part.count - (3072 + 4) < 40, split  # two labels and a name an image


def test_register_of_emnist_against_the_published_list():
    path = REAL / "EMNIST" / "official_sha256.txt"
    if not path.is_file():
        pytest.skip("no list of EMNIST's hashes here")
    rows = [line.split() for line in path.read_text().splitlines()]
    official = {f"EMNIST/{name}": (int(size), sha.removeprefix("sha256:")) for name, sha, size in rows}
    ours = [file for name, dataset in DATASETS.items() if name.startswith("emnist") for file in dataset.files]
    assert len(ours) == 24
    for file in ours:
        assert (file.size, file.sha256) == official[file.path]


def test_emnist_has_as_many_images_as_its_files_have_room_for():
    sizes = {name: d.splits for name, d in DATASETS.items() if name.startswith("emnist")}
    for name, splits in sizes.items():
        for split, part in splits.items():  # all are compressed alike, some 250 bytes an image
            assert 235 < part.files[0].size / part.count < 260, (name, split)


def test_the_classes_of_emnist():
    upper, lower = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
    merged = set("cijklmopsuvwxyz")  # looks the same in both cases
    apart = "".join(letter for letter in lower if letter not in merged)
    assert "".join(DATASETS["emnist_letters"].classes) == upper
    assert "".join(DATASETS["emnist_byclass"].classes) == "0123456789" + upper + lower
    for name in ("emnist_balanced", "emnist_bymerge"):
        assert "".join(DATASETS[name].classes) == "0123456789" + upper + apart
    for name in ("letters", "balanced"):  # as many of each class
        dataset = DATASETS[f"emnist_{name}"]
        assert all(part.count % len(dataset.classes) == 0 for part in dataset.splits.values())


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
    ("cifar10_small", "train"): [508, 515, 478, 484, 527, 469, 497, 512, 518, 492],
    ("cifar10_small", "test"): [103, 89, 100, 103, 90, 86, 112, 102, 106, 109],
}


@pytest.mark.parametrize(("name", "split"), COUNTS)
def test_real_files(name, split):
    images = real(name, split)
    size = DATASETS[name].splits[split].count
    assert images.x.shape == (size, 3, 32, 32) if "cifar" in name else (size, 1, 28, 28)
    assert images.x.is_contiguous()
    assert (images.x.min(), images.x.max()) == (0, 1)
    assert torch.bincount(images.y).tolist() == COUNTS[name, split]
    assert str(REAL) not in images.source


def test_real_first_rows():
    real("mnist", "test")
    assert load("mnist", n=10, root=REAL).y.tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert load("fashion_mnist", "test", n=3, root=REAL).y.tolist() == [9, 2, 1]


def test_real_cifar():
    images = real("cifar10_small", "train")
    assert images.y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    blue = {c: (images.x[images.y == k, 2] - images.x[images.y == k, 0]).mean() for k, c in enumerate(images.classes)}
    assert min(blue["airplane"], blue["ship"]) > 0.02 > max(blue["deer"], blue["frog"], blue["horse"])  # sky and sea
    top = images.x[images.y == 0][:, :, :8].mean() - images.x[images.y == 0][:, :, 24:].mean()
    assert top > 0  # the sky is above
    meta = formats.parse_pickle((REAL / "CIFAR10/cifar-10-batches-py/batches.meta").read_bytes())
    assert tuple(name.decode() for name in meta[b"label_names"]) == images.classes == DATASETS["cifar10"].classes


def test_real_cifar_is_told_apart(monkeypatch, capsys):
    real("cifar10_small", "test")
    monkeypatch.setenv("ADVBOOK_DATA", str(REAL))
    if available("cifar10_small"):
        assert not available("cifar10")
        assert main(["fetch", "cifar10"]) == 1
        assert "data_batch_1 in ADVBOOK_DATA" in (error := capsys.readouterr().err)
        assert "belongs to cifar10_small (CIFAR-10 (the first 1,000 images of each batch)), not to cifar10" in error
        assert "use DATASET=cifar10_small" in error


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
