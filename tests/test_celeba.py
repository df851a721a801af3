"""advbook.datasets.celeba: an archive of the official form, made of colours; there is no face in this repository."""

import hashlib
import io
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import publishers
import pytest
import torch
from PIL import Image
from publishers import one_sentence

from advbook.datasets import DATASETS, DamagedData, File, MissingData, available, celeba, load
from advbook.datasets.__main__ import main

cache = pytest.fixture(publishers.cache, autouse=True)

COUNT, TRAIN = 10, 9
NAMES = [f"{k + 1:06}.jpg" for k in range(COUNT)]
MALE = [1, -1, -1, 1, 1, -1, 1, -1, -1, 1]


def jpeg(pixels, form="JPEG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, quality=95)
    return stream.getvalue()


def picture(k):
    """Smooth colours, of which JPEG keeps nearly all: red goes from left to right, green from top to bottom."""
    rows, columns = np.mgrid[0:218, 0:178]
    return np.stack([columns, rows, np.full_like(rows, 20 * k)], -1).astype(np.uint8)  # [H, W, 3]


def attributes(names=NAMES, male=MALE, header=None, count=None):
    names_ = [f"Attribute_{k}" for k in range(40)]
    names_[20] = "Male"
    lines = [str(len(names) if count is None else count), " ".join(names_ if header is None else header) + " "]
    for k, (name, label) in enumerate(zip(names, male, strict=True)):
        values = [1 if (k + j) % 3 else -1 for j in range(40)]
        values[20] = label
        lines.append(f"{name} " + " ".join(f"{value:2d}" for value in values))
    return ("\r\n".join(lines) + "\r\n").encode()


class Faces:
    """A small data set in the form of CelebA, registered in its place."""

    def __init__(self, monkeypatch, folder):
        self.monkeypatch, self.folder = monkeypatch, folder
        self.images = {f"img_align_celeba/{name}": jpeg(picture(k)) for k, name in enumerate(NAMES)}
        self.attributes = attributes()
        (folder / "CelebA").mkdir(parents=True)
        self.write()

    def write(self):
        archive = self.folder / "CelebA/img_align_celeba.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for name, raw in self.images.items():
                packed.writestr(name, raw)
        (self.folder / "CelebA/list_attr_celeba.txt").write_bytes(self.attributes)
        raws = {"img_align_celeba.zip": archive.read_bytes(), "list_attr_celeba.txt": self.attributes}
        files = tuple(File(f"CelebA/{n}", len(r), hashlib.sha256(r).hexdigest()) for n, r in raws.items())
        train, test = DATASETS["celeba"].splits.values()
        splits = {"train": replace(train, count=TRAIN, files=files)}
        splits["test"] = replace(test, count=COUNT - TRAIN, files=files, first=TRAIN)
        self.monkeypatch.setitem(DATASETS, "celeba", replace(DATASETS["celeba"], splits=splits))

    def refuses(self, says, split="train"):
        self.write()
        with pytest.raises(DamagedData, match=says) as caught:
            load("celeba", split)
        assert one_sentence(caught.value)


@pytest.fixture
def faces(monkeypatch, tmp_path):
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path / "data"))
    return Faces(monkeypatch, tmp_path / "data")


def test_the_first_images_are_for_training_and_the_last_for_testing(faces):
    train, test = load("celeba"), load("celeba", "test")
    assert train.x.shape == (9, 3, 56, 48)
    assert test.x.shape == (1, 3, 56, 48)
    assert train.x.is_contiguous()
    assert (train.x.dtype, train.y.dtype) == (torch.float32, torch.int64)
    assert train.classes == ("not male", "male")
    assert train.y.tolist() + test.y.tolist() == [int(label == 1) for label in MALE]
    blue = torch.cat([train.x, test.x])[:, 2].mean((1, 2)) * 255
    assert (blue - 20 * torch.arange(10)).abs().max() < 2  # each image where it belongs
    assert train.source.startswith("CelebA train, all 9 images, sha256 ")


def test_the_published_split_is_the_one_of_the_paper():
    train, test = DATASETS["celeba"].splits.values()
    assert (train.count, test.count, train.first, test.first) == (182_339, 20_260, 0, 182_339)
    assert train.count == int(0.9 * (train.count + test.count))
    assert train.files == test.files


def test_images_are_resized_and_cropped(faces):
    x = load("celeba", n=1).x[0] * 255  # [3, 56, 48]
    # Pixel k of 54 covers the columns around (k + 1/2) 178 / 54, and the same for rows; 3 columns and 5 rows are cut.
    columns = (torch.arange(48) + 3 + 0.5) * 178 / 54 - 0.5
    rows = (torch.arange(56) + 5 + 0.5) * 218 / 66 - 0.5
    assert (x[0] - columns).abs().max() < 3
    assert (x[1] - rows[:, None]).abs().max() < 3


def test_only_the_images_asked_for_are_read(faces):
    faces.images["img_align_celeba/000003.jpg"] = b"damaged"
    faces.write()
    assert len(load("celeba", n=2).x) == 2
    assert len(load("celeba", "test").x) == 1
    with pytest.raises(DamagedData, match=r"celeba train: img_align_celeba/000003.jpg is damaged or is no JPEG image"):
        load("celeba", n=3)


def test_a_long_reading_shows_a_progress_bar(faces, monkeypatch, capsys):
    bar = celeba.tqdm
    monkeypatch.setattr(celeba, "tqdm", lambda *a, **options: bar(*a, **{**options, "delay": 0, "mininterval": 0}))
    load("celeba")
    assert "CelebA" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(218, 178), (178, 217), (1, 1), (178, 2180)])
def test_an_image_of_another_size_is_refused(faces, size):
    faces.images["img_align_celeba/000002.jpg"] = jpeg(np.zeros((size[1], size[0], 3), np.uint8))
    faces.refuses(f"img_align_celeba/000002.jpg has {size[0]} x {size[1]} pixels; 178 x 218 were published")


def test_an_image_that_would_fill_the_memory_is_not_decoded(faces):
    raw = bytearray(jpeg(picture(0)))
    frame = raw.index(b"\xff\xc0")  # the header in which a JPEG file says its height and width
    raw[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    faces.images["img_align_celeba/000002.jpg"] = bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        faces.refuses("img_align_celeba/000002.jpg is damaged .*DecompressionBomb")
    faces.images["img_align_celeba/000002.jpg"] = bytes(10**7)
    faces.refuses("img_align_celeba/000002.jpg has more than 1048576 bytes")


@pytest.mark.parametrize(
    "raw",
    [b"", b"<html>", jpeg(picture(0))[:2000], jpeg(picture(0), "PNG"), jpeg(picture(0), "GIF")],
    ids=["empty", "text", "truncated", "PNG", "GIF"],
)
def test_a_damaged_image_is_named(faces, raw):
    faces.images["img_align_celeba/000002.jpg"] = raw
    faces.refuses("celeba train: img_align_celeba/000002.jpg is damaged or is no JPEG image")


def test_a_missing_image_is_named(faces):
    del faces.images["img_align_celeba/000002.jpg"]
    faces.refuses("There is no item named 'img_align_celeba/000002.jpg'")


def test_an_archive_that_climbs_out_is_refused(faces, tmp_path):
    faces.images["../../escaped"] = b"x"
    faces.refuses("the name '../../escaped' leads out of it")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (attributes(count=11), "says '11' images and has 10"),
        (attributes(count="many"), "says 'many'"),
        (b"", "says '' images"),
        (attributes(NAMES[:5], MALE[:5]), "has 5; images 1 to 9 are wanted"),
        (attributes(header=["Male"] * 39), "must have 40 of them"),
        (attributes(header=["Young"] * 40), "must have 40 of them, and 'Male' at 20"),
        (attributes(["../secret.jpg", *NAMES[1:]]), "has '../secret.jpg "),
        (attributes([NAMES[1], *NAMES[1:]]), "has an image twice"),
        (attributes(male=[0, *MALE[1:]]), "not an image's name and 40 times 1 or -1"),
        (attributes().replace(b"000002.jpg", b"\xff00002.jpg"), "not an image's name"),
    ],
)
def test_a_list_of_another_form_is_refused(faces, raw, says):
    faces.attributes = raw
    faces.refuses(says)


def test_files_are_verified_before_they_are_read(faces, monkeypatch, capsys):
    path = faces.folder / "CelebA/img_align_celeba.zip"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    with pytest.raises(DamagedData, match=r"CelebA/img_align_celeba.zip in ADVBOOK_DATA=.* is damaged"):
        load("celeba", n=1)
    assert not available("celeba")
    path.write_bytes(raw[:500] + bytes([raw[500] ^ 1]) + raw[501:])
    with pytest.raises(DamagedData, match=r"CelebA/img_align_celeba.zip in ADVBOOK_DATA=.* is damaged"):
        load("celeba", n=1)
    assert main(["verify", "celeba"]) == 1
    path.write_bytes(raw)
    assert main(["verify", "celeba"]) == 0
    assert available("celeba")
    assert "celeba           intact   2 files" in capsys.readouterr().out
    assert len(load("celeba").x) == 9


def test_what_to_do_where_it_is_missing(capsys):
    with pytest.raises(MissingData) as caught:
        load("celeba")
    assert one_sentence(caught.value)
    assert "celeba cannot be fetched: its agreement does not let anybody hand it on" in str(caught.value)
    assert str(caught.value).endswith("put both, as they are, into CelebA in the folder that ADVBOOK_DATA names")
    assert main(["fetch", "celeba"]) == 1
    assert "cannot be fetched" in capsys.readouterr().err
