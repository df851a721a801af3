"""advbook.datasets.official: published corruptions, from archives and loose files."""

import io

import numpy as np
import publishers
import pytest
import torch
from publishers import COUNT, Family, flipped, one_sentence
from test_formats import npy

from advbook.datasets import CORRUPTED, DamagedData, MissingData, corrupted, corruptions_available, sources
from advbook.datasets.__main__ import main

cache = pytest.fixture(publishers.cache, autouse=True)
mirror = pytest.fixture(publishers.mirror)


@pytest.fixture(params=["mnist_c", "cifar10_c"])
def family(request, monkeypatch):
    return Family(monkeypatch, request.param)


def severities(name):
    return [None] if name == "mnist_c" else [1, 2, 3, 4, 5]


@pytest.mark.parametrize("form", ["write", "pack"])
@pytest.mark.parametrize("place", ["data", "cache"])
def test_corrupted(family, form, place, tmp_path, cache, monkeypatch):
    getattr(family, form)(tmp_path / "data" if place == "data" else cache)
    (tmp_path / "data").mkdir(exist_ok=True)
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path / "data"))
    assert corruptions_available(family.name) == ("fog", "glass_blur")
    for corruption in ("fog", "glass_blur"):
        for step, severity in enumerate(severities(family.name)):
            images = corrupted(family.name, corruption, severity)
            x = family.x[corruption][step * COUNT : (step + 1) * COUNT].transpose(0, 3, 1, 2)  # [N, C, H, W]
            assert torch.equal((images.x * 255).round().byte(), torch.from_numpy(x.copy()))
            assert images.x.is_contiguous()
            assert images.y.tolist() == list(range(COUNT))
            assert (images.x.dtype, images.y.dtype) == (torch.float32, torch.int64)
            assert len(images.classes) == 10
            verified = f"sha256 of {CORRUPTED[family.name].archive} {CORRUPTED[family.name].sha256[:8]}..."
            how = verified if form == "pack" else "loose files, not verified by a hash"
            at = f" at severity {severity}" if severity else ""
            assert images.source == f"{CORRUPTED[family.name].title} {corruption}{at}, all {COUNT} images, {how}"
    first = corrupted(family.name, "fog", severity, n=2, device="meta")
    assert first.x.shape[0] == len(first.y) == 2
    assert first.x.device.type == first.y.device.type == "meta"
    assert f"first 2 of {COUNT} images" in first.source


def test_corrupted_without_files(family, tmp_path, capsys):
    with pytest.raises(MissingData) as caught:
        corrupted(family.name, "fog", severities(family.name)[-1])
    shape = CORRUPTED[family.name]
    assert one_sentence(caught.value)
    assert f"{family.name}: neither {shape.archive} nor {' with '.join(shape.paths('fog'))} is in" in str(caught.value)
    where = "into the folder that ADVBOOK_DATA names, as it is or unpacked"
    by_hand = f"by hand, put {shape.archive} from {shape.mirrors[0]} {where}"
    size = "" if shape.size is None else "2.9 GB, "
    fetch = f"run `python -m advbook.datasets fetch {family.name}` ({size}kept whole in the cache); {by_hand}"
    assert str(caught.value).endswith(fetch)
    assert corruptions_available(family.name) == ()
    assert corruptions_available(family.name, tmp_path / "nowhere") == ()
    family.register(mirrors=("http://127.0.0.1:9/",))
    assert main(["fetch", family.name]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    says = f"{family.name}: {shape.archive} could not be fetched (127.0.0.1:9: no connection); by hand, put"
    assert last.startswith(f"advbook.datasets: {says}")


def test_some_corruptions(family, tmp_path, monkeypatch, capsys):
    family.write(tmp_path)
    (tmp_path / CORRUPTED[family.name].paths("glass_blur")[0]).unlink()
    assert corruptions_available(family.name, tmp_path) == ("fog",)
    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path))
    assert main([]) == 0
    (row,) = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(f"{family.name} "))
    assert row[-4:] == ["1", "of", "2", CORRUPTED[family.name].title]
    corrupted(family.name, "fog", severities(family.name)[0])
    with pytest.raises(MissingData, match="glass_blur"):
        corrupted(family.name, "glass_blur", severities(family.name)[0])


def test_an_unknown_corruption(family):
    with pytest.raises(
        ValueError, match=f"corruption of {family.name} 'glas_blur' is unknown; did you mean 'glass_blur'"
    ):
        corrupted(family.name, "glas_blur", 1)
    for ask in (lambda: corrupted("mnist-c", "fog"), lambda: corruptions_available("mnist-c")):
        with pytest.raises(ValueError, match="set of corruptions 'mnist-c' is unknown; did you mean 'mnist_c'"):
            ask()


@pytest.mark.parametrize("severity", [None, 0, 6, -1])
def test_a_severity_that_is_not_there(severity):
    with pytest.raises(ValueError, match=f"^severity is {severity}; cifar10_c has severities 1 to 5$"):
        corrupted("cifar10_c", "fog", severity)
    if severity is not None:
        with pytest.raises(ValueError, match=f"^severity is {severity}; mnist_c was published at one severity"):
            corrupted("mnist_c", "fog", severity)


@pytest.mark.parametrize("n", [0, 10_001])
def test_more_corrupted_images_than_there_are(n):
    with pytest.raises(ValueError, match=f"^n is {n}; mnist_c fog has 10000 images, so it must be 1 to 10000$"):
        corrupted("mnist_c", "fog", n=n)


def test_an_archive_of_corruptions_is_verified_first(family, tmp_path):
    family.pack(tmp_path)
    path = tmp_path / CORRUPTED[family.name].archive
    path.write_bytes(flipped(path.read_bytes()))
    with pytest.raises(DamagedData, match=r"is truncated or is not the published file \(wrong sha256\)") as caught:
        corrupted(family.name, "fog", severities(family.name)[0], root=tmp_path)
    assert one_sentence(caught.value)
    family.write(tmp_path)
    with pytest.raises(DamagedData):  # loose files beside it do not step in silently
        corrupted(family.name, "fog", severities(family.name)[0], root=tmp_path)


def test_an_archive_is_hashed_once_as_long_as_it_is_the_same(family, tmp_path, monkeypatch):
    family.pack(tmp_path)
    hashed = []
    bar = sources.tqdm
    monkeypatch.setattr(sources, "tqdm", lambda **options: hashed.append(options) or bar(**options))
    for _ in range(3):
        corrupted(family.name, "fog", severities(family.name)[0], root=tmp_path)
    assert len(hashed) == 1
    path = tmp_path / CORRUPTED[family.name].archive
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DamagedData):
        corrupted(family.name, "fog", severities(family.name)[0], root=tmp_path)


def test_the_archive_is_preferred_to_loose_files(family, tmp_path):
    family.pack(tmp_path)
    family.raw = {path: npy(np.zeros_like(np.load(io.BytesIO(raw)))) for path, raw in family.raw.items()}
    family.write(tmp_path)
    assert corrupted(family.name, "fog", severities(family.name)[0], root=tmp_path).x.max() > 0


def wrong_images(family):
    x = family.x["fog"]
    return {
        "as floats": x / 255,
        "as signed": x.astype(np.int8),
        "of another size": x[:, 1:],
        "fewer": x[1:],
        "channels first": np.ascontiguousarray(x.transpose(0, 3, 1, 2)),
        "objects": np.array([None, {}], dtype=object),
    }


@pytest.mark.parametrize("what", ["as floats", "as signed", "of another size", "fewer", "channels first", "objects"])
@pytest.mark.parametrize("form", ["loose", "packed"])
def test_images_of_another_form_are_refused(family, what, form, tmp_path):
    raw = npy(wrong_images(family)[what])
    family.write(tmp_path) if form == "loose" else family.pack(tmp_path, {CORRUPTED[family.name].paths("fog")[0]: raw})
    if form == "loose":
        (tmp_path / CORRUPTED[family.name].paths("fog")[0]).write_bytes(raw)
    with pytest.raises(DamagedData) as caught:
        corrupted(family.name, "fog", severities(family.name)[0], root=tmp_path)
    assert one_sentence(caught.value)


@pytest.mark.parametrize("change", [lambda y: y[1:], lambda y: y + 5, lambda y: y.astype(int) - 1, lambda y: y / 2])
def test_labels_of_another_form_are_refused(family, change, tmp_path):
    family.write(tmp_path)
    (tmp_path / CORRUPTED[family.name].paths("fog")[1]).write_bytes(npy(change(family.y)))
    with pytest.raises(DamagedData) as caught:
        corrupted(family.name, "fog", severities(family.name)[0], root=tmp_path)
    assert one_sentence(caught.value)


def test_an_archive_without_the_corruption(family, tmp_path):
    family.raw = {path: raw for path, raw in family.raw.items() if "fog" not in path}
    family.pack(tmp_path)
    with pytest.raises(DamagedData, match=r"cannot be unpacked: (?i:there is no item named '[^']*fog)"):
        corrupted(family.name, "fog", severities(family.name)[0], root=tmp_path)


def test_images_without_their_labels(family, tmp_path):
    family.write(tmp_path)
    images, labels = CORRUPTED[family.name].paths("fog")
    (tmp_path / labels).unlink()
    with pytest.raises(DamagedData, match=f"{images} in .* or {labels} is not beside it"):
        corrupted(family.name, "fog", severities(family.name)[0], root=tmp_path)


# --- fetching and verifying


def served(family, mirror, tmp_path):
    """Serve the archive; its bytes."""
    shape = CORRUPTED[family.name]
    raw = (family.pack(tmp_path / "made") / shape.archive).read_bytes()
    mirror.answers[f"/{shape.archive}"] = raw
    family.register(mirrors=(mirror.url,))
    return raw


def test_the_archive_is_fetched_once_and_kept_whole(family, mirror, cache, tmp_path, capsys):
    raw = served(family, mirror, tmp_path)
    archive = CORRUPTED[family.name].archive
    for _ in range(2):
        assert main(["fetch", family.name]) == 0
        first, last = capsys.readouterr().out.splitlines()
        assert first == f"{family.name}: {archive} (0.0 GB, kept whole in the cache)"
        assert last.split() == [family.name, "intact", archive]
    assert [path for path, _ in mirror.asked] == [f"/{archive}"]
    assert [p.name for p in cache.iterdir() if p.name != ".lock"] == [archive]
    assert (cache / archive).read_bytes() == raw
    assert len(corrupted(family.name, "fog", severities(family.name)[-1]).x) == COUNT


def test_a_truncated_archive_in_the_cache_is_refused_and_fetched_again(family, mirror, cache, tmp_path, capsys):
    raw = served(family, mirror, tmp_path)
    archive = CORRUPTED[family.name].archive
    cache.mkdir(parents=True)
    (cache / archive).write_bytes(raw[:-1])
    with pytest.raises(DamagedData, match=f"{archive} is truncated or is not the published file"):
        corrupted(family.name, "fog", severities(family.name)[0])
    assert main(["verify", family.name]) == 1
    assert main(["fetch", family.name]) == 0
    assert (cache / archive).read_bytes() == raw


def test_a_mirror_that_breaks_off_leaves_nothing(family, mirror, cache, tmp_path, capsys):
    raw = served(family, mirror, tmp_path)
    mirror.answers = {path: (raw[:-9], len(raw)) for path in mirror.answers}
    assert main(["fetch", family.name]) == 1
    assert "the download broke off" in capsys.readouterr().err
    assert [p.name for p in cache.iterdir() if p.name != ".lock"] == []


def test_what_the_user_has_is_not_fetched(family, mirror, cache, tmp_path, monkeypatch, capsys):
    served(family, mirror, tmp_path)
    for folder in (tmp_path / "made", family.write(tmp_path / "loose")):
        monkeypatch.setenv("ADVBOOK_DATA", str(folder))
        assert main(["fetch", family.name]) == 0
        assert f"{family.name:17}intact" in capsys.readouterr().out
    assert mirror.asked == []


def test_verify_says_what_there_is(family, tmp_path, monkeypatch, capsys):
    def says():
        status = main(["verify", family.name])
        return status, *capsys.readouterr().out.split(maxsplit=2)[1:]

    monkeypatch.setenv("ADVBOOK_DATA", str(tmp_path))
    assert says() == (0, "missing")
    family.write(tmp_path)
    assert says() == (0, "intact", "2 corruptions; no hash: their form was checked\n")
    images = tmp_path / CORRUPTED[family.name].paths("glass_blur")[0]
    images.unlink()
    partly = "1 of 2 corruptions intact, not here: glass_blur; no hash: their form was checked\n"
    assert says() == (0, "missing", partly)
    images.write_bytes(b"short")
    assert says()[:2] == (1, "damaged")
    images.write_bytes(npy(family.x["fog"][:, 1:]))
    assert says()[:2] == (1, "damaged")
    family.pack(tmp_path)  # preferred to what is loose
    assert says() == (0, "intact", f"{CORRUPTED[family.name].archive}\n")
    path = tmp_path / CORRUPTED[family.name].archive
    path.write_bytes(flipped(path.read_bytes()))
    assert says()[:2] == (1, "damaged")
