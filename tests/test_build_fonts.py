"""The script that draws the FONTS prototypes, and the file that it has drawn."""

import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools import subset
from fontTools.ttLib import TTFont

ROOT = Path(__file__).resolve().parent.parent
NPZ = ROOT / "advbook/data/fonts.npz"
DEJAVU = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"

spec = importlib.util.spec_from_file_location("build_fonts", ROOT / "scripts/build_fonts.py")
build_fonts = sys.modules["build_fonts"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_fonts)


@pytest.fixture(scope="module")
def shipped():
    with np.load(NPZ, allow_pickle=False) as file:
        return dict(file)


def bounding_boxes(letters):
    """First and last inked row and column of images [..., 28, 28], each [...]."""
    ink = letters > 0
    rows, columns = ink.any(-1), ink.any(-2)
    return [(axis.argmax(-1), 27 - axis[..., ::-1].argmax(-1)) for axis in (rows, columns)]


def faces(*families, licence="OFL-1.1"):
    return [
        build_fonts.Face(name, f"@fontsource/{name}@5.0.0", 400, "normal", licence, f"(c) {name}") for name in families
    ]


def fake_package(folder, licence="OFL-1.1"):
    """DejaVu Sans as a @fontsource package with two weights, one of them without a file."""
    package = folder / "dejavu"
    (package / "files").mkdir(parents=True)
    metadata = {"family": "DejaVu", "weights": [400, 700], "styles": ["normal"], "license": {"type": licence}}
    (package / "metadata.json").write_text(json.dumps(metadata))
    (package / "package.json").write_text('{"name": "@fontsource/dejavu", "version": "5.0.0"}')
    font = TTFont(DEJAVU)
    subsetter = subset.Subsetter()
    subsetter.populate(text=build_fonts.LETTERS)
    subsetter.subset(font)
    font.flavor = "woff2"
    font.save(build_fonts.font_file(package, 400, "normal"))
    return package


def test_shipped_shapes_and_types(shipped):
    assert shipped["prototypes"].shape == (1000, 10, 28, 28)
    assert shipped["prototypes"].dtype == np.uint8
    for name in ("family", "package", "style", "licence", "copyright"):
        assert shipped[name].shape == (1000,)
        assert shipped[name].dtype.kind == "U"
        assert (np.char.str_len(shipped[name]) > 0).all()
    assert set(shipped["weight"]) <= set(range(100, 1000, 100))
    assert set(shipped["style"]) == {"normal", "italic"}
    assert len(set(shipped["family"])) > 400
    assert NPZ.stat().st_size < 2_000_000


def test_shipped_letters_are_bright_centred_and_clear_of_the_border(shipped):
    letters = shipped["prototypes"]
    assert letters.max((2, 3)).min() > 64
    assert (letters.max((1, 2, 3)) >= 128).all()
    for first, last in bounding_boxes(letters):
        assert np.abs(first + last - 27).max() <= 1
        assert first.min() >= 1


def test_shipped_letters_are_upright(shipped):
    mean = shipped["prototypes"].mean(0)  # [10, 28, 28]
    upper, lower = mean[:, :14].sum((1, 2)), mean[:, 14:].sum((1, 2))
    left, right = mean[:, :, :14].sum((1, 2)), mean[:, :, 14:].sum((1, 2))
    for letter, heavy, light in [
        ("A", lower, upper),
        ("F", upper, lower),
        ("E", left, right),
        ("J", right, left),
    ]:
        index = "ABCDEFGHIJ".index(letter)
        assert heavy[index] > 1.1 * light[index], letter


def test_shipped_fonts_are_distinct_and_legible(shipped):
    assert build_fonts.distinct(shipped["prototypes"]) == list(range(1000))
    read = build_fonts.letters_read(shipped["prototypes"][:100], shipped["family"][:100])
    assert read.mean() > 9
    assert (read >= build_fonts.MIN_READ).mean() > 0.9  # only a tenth of the fonts to learn from here


def test_first_fonts_are_a_varied_sample(shipped):
    assert len(set(shipped["family"][:25])) >= 23
    initials = {family[0] for family in shipped["family"][:25]}
    assert len(initials) >= 8


def test_shipped_packages_are_the_pinned_ones(shipped):
    pinned = json.loads((ROOT / "scripts/fonts/package.json").read_text())["dependencies"]
    assert set(shipped["package"]) <= {f"{name}@{version}" for name, version in pinned.items()}


def test_notice_and_licences_cover_every_font(shipped):
    listed = (ROOT / "NOTICE").read_text("utf-8")
    keys = ("family", "package", "licence", "copyright")
    for family, package, licence, owner in zip(*(shipped[key] for key in keys), strict=True):
        assert f"{family} ({package}), {licence}\n" in listed
        assert f"    {owner}\n" in listed
    for licence in set(shipped["licence"]):
        assert len((ROOT / f"advbook/data/licences/{licence}.txt").read_text("utf-8")) > 4000


def test_npz_members_carry_a_fixed_date():
    with zipfile.ZipFile(NPZ) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_draw_letters_has_the_wanted_height_and_is_centred():
    letters = build_fonts.draw_letters(DEJAVU.read_bytes())
    assert letters.shape == (10, 28, 28)
    (top, bottom), (left, right) = bounding_boxes(letters)
    assert abs(np.median(bottom - top + 1) - build_fonts.CAP_HEIGHT) <= 1
    assert np.abs(left + right - 27).max() <= 1
    assert letters[7].max() == 255  # a stem of the H covers whole pixels


def test_draw_letters_keeps_ink_when_averaging():
    small = build_fonts.draw_letters(DEJAVU.read_bytes(), cap_height=10.0)
    large = build_fonts.draw_letters(DEJAVU.read_bytes(), cap_height=15.0)
    assert large.sum() / small.sum() == pytest.approx(2.25, rel=0.02)


def test_fitting_size_obeys_both_bounds():
    sizes = np.array([[10.0, 20.0]] * 10)
    assert build_fonts.fitting_size(sizes, 16.0, 23.0) == pytest.approx(0.8)
    sizes[0, 0] = 46.0
    assert build_fonts.fitting_size(sizes, 16.0, 23.0) == pytest.approx(0.5)


def test_has_letters_rejects_colour_fonts():
    font = TTFont(DEJAVU)
    assert build_fonts.has_letters(font)
    font["SVG "] = font["gasp"]
    assert not build_fonts.has_letters(font)


def test_distinct_keeps_the_first_of_near_duplicates():
    letters = np.random.default_rng(0).integers(0, 256, (3, 10, 28, 28)).astype(np.uint8)
    almost = letters[:1] ^ 1
    assert build_fonts.distinct(np.concatenate([letters, almost])) == [0, 1, 2]
    assert build_fonts.distinct(np.concatenate([almost, letters])) == [0, 2, 3]


def test_letters_read_ignores_the_own_family(shipped):
    letters = shipped["prototypes"][:30].copy()
    names = [f"f{i}" for i in range(30)]
    assert build_fonts.letters_read(letters, names).mean() > 8
    letters[:6] = letters[0, ::-1]  # the same wrong labels six times: only each other could read them
    names[:6] = ["one"] * 6
    assert (build_fonts.letters_read(letters, names)[:6] == 0).all()


def test_choose_spreads_over_families_and_repeats(shipped):
    letters = shipped["prototypes"][:40]
    listed = faces(*(f"f{i // 2}" for i in range(40)))
    chosen = build_fonts.choose(listed, [i % 2 for i in range(40)], letters, count=20)
    assert len({listed[i].family for i in chosen}) >= 19  # one family may have lost its first face to a filter
    assert chosen == build_fonts.choose(listed, [i % 2 for i in range(40)], letters, count=20)
    assert chosen != sorted(chosen)
    with pytest.raises(ValueError, match="41 are wanted"):
        build_fonts.choose(listed, [0] * 40, letters, count=41)


def test_load_face_reads_a_package(tmp_path):
    pytest.importorskip("brotli")
    package = fake_package(tmp_path)
    assert build_fonts.preferred_faces(package) == [(400, "normal")]
    face, letters = build_fonts.load_face(package, 400, "normal")
    assert (face.family, face.package, face.weight) == ("DejaVu", "@fontsource/dejavu@5.0.0", 400)
    assert "Bitstream" in face.copyright
    np.testing.assert_array_equal(letters, build_fonts.draw_letters(DEJAVU.read_bytes()))


def test_load_face_refuses_an_unknown_licence(tmp_path):
    pytest.importorskip("brotli")
    with pytest.raises(ValueError, match="licence 'GPL'; allowed are"):
        build_fonts.load_face(fake_package(tmp_path, "GPL"), 400, "normal")


def test_notice_part_replaces_only_itself():
    old = build_fonts.notice(faces("Old"))
    new = build_fonts.notice(faces("New", "New"))
    assert new.count("New (@fontsource/New@5.0.0), OFL-1.1\n    (c) New\n") == 1
    assert build_fonts.replace_part("", new) == new
    assert build_fonts.replace_part(f"before\n{old}after\n", new) == f"before\n{new}after\n"
    assert build_fonts.replace_part("after\n", new) == f"{new}\nafter\n"


def test_missing_manifest_and_missing_npm_are_one_sentence(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        build_fonts.main(["--packages", str(tmp_path)])
    assert stop.value.code == 1
    assert "package.json does not exist" in capsys.readouterr().err
    (tmp_path / "package.json").write_text('{"dependencies": {}}')
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="npm is not on the PATH"):
        build_fonts.install(tmp_path)


@pytest.mark.node
def test_a_package_that_is_no_font_is_named(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/package.json").write_text('{"name": "plain", "version": "1.0.0"}')
    (tmp_path / "package.json").write_text('{"dependencies": {"plain": "file:plain"}}')
    with pytest.raises(FileNotFoundError, match="plain is not a @fontsource package"):
        build_fonts.install(tmp_path)
