"""What stands in for those who publish data: a mirror, an empty cache, data sets of random images.

`cache` and `mirror` are what test files make fixtures of.
"""

import gzip
import hashlib
import socket
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath

import numpy as np
from test_formats import idx, npy, plain_file, tarred

from advbook.datasets import CORRUPTED, DATASETS, Dataset, File, Split, Whole
from advbook.formats import read_idx


def cache(tmp_path, monkeypatch):
    """An empty cache, no data folder, and no way to any host but this one."""
    resolve = socket.getaddrinfo

    def local_only(host, *rest, **options):
        assert host == "127.0.0.1", f"a test asked for {host}"
        return resolve(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", local_only)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
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


def mirror():
    """A server for a test, closed after it."""
    server = Mirror()
    yield server
    server.close()


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
        self.dataset = Dataset(name.title(), digits, splits, Whole(read), ("http://127.0.0.1:9/",), archive)
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


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in members:
            archive.writestr(name, raw)
    return path.read_bytes()


def flipped(raw):
    return raw[:-1] + bytes([raw[-1] ^ 1])


def one_sentence(error):
    return "\n" not in str(error) and len(str(error)) > 20


COUNT = 6


class Family:
    """A small set of corruptions in the official form; images of every corruption and severity differ."""

    def __init__(self, monkeypatch, name):
        self.name, self.monkeypatch = name, monkeypatch
        self.register(count=COUNT, corruptions=("fog", "glass_blur"))
        family = CORRUPTED[name]
        total = COUNT * family.severities
        random = np.random.default_rng(0)
        self.x = {c: random.integers(0, 256, (total, *family.shape), np.uint8) for c in family.corruptions}
        self.y = np.arange(total) % COUNT
        self.raw = {}
        for corruption, x in self.x.items():
            images, labels = family.paths(corruption)
            self.raw[images] = npy(x)
            self.raw[labels] = npy(self.y if name == "mnist_c" else self.y.astype(np.uint8))

    def write(self, folder):
        for path, raw in self.raw.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(raw)
        return folder

    def register(self, **changes):
        self.monkeypatch.setitem(CORRUPTED, self.name, replace(CORRUPTED[self.name], **changes))

    def pack(self, folder, changes=(), more=()):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CORRUPTED[self.name].archive
        members = {**self.raw, **dict(changes)}
        if path.suffix == ".zip":
            zipped(path, members.items())
        else:
            tarred(path, [*(plain_file(*item) for item in members.items()), *more])
        raw = path.read_bytes()
        self.register(sha256=hashlib.sha256(raw).hexdigest(), size=len(raw))
        return folder
