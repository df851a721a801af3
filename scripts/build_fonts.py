"""Draw the FONTS prototypes that the package ships: the letters A to J of 1,000 Google fonts.

The fonts are the npm packages `@fontsource/<family>` that scripts/fonts/package.json pins. Each face (family,
weight, style) is drawn large and box-averaged to 28 x 28; faces that look alike or are illegible are dropped.
Writes advbook/data/fonts.npz and the fonts part of NOTICE. Same packages and libraries, same bytes.

Placement: one size for all ten letters of a face, such that their median height is CAP_HEIGHT pixels and no
side is longer than MAX_SIDE. Every letter is centred by its own bounding box. (Stutz et al., CVPR 2019, drew
at 21 pt, about 15 pixels, and placed all letters by the box of the 'A', which leaves the others a few pixels
off the centre.) Under their transformations (rotation +-pi/2, shear +-0.5, scale 0.75 to 1.15, shift +-0.2)
an image then loses 1.2 % of its ink at the border on average; drawn 2 pixels larger it would lose 2.3 %,
2 pixels smaller 0.6 %.
"""

import argparse
import io
import json
import shutil
import subprocess
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from fontTools.ttLib import TTFont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
LETTERS = "ABCDEFGHIJ"
SIDE = 28
OVERSAMPLING = 8  # letters are drawn 8 times as large, then box-averaged
CAP_HEIGHT = 16.0  # pixels
MAX_SIDE = 23.0  # pixels: bounds wide faces and swashed letters
COUNT = 1000
SEED = 0
FACES_PER_FAMILY = 6
PREFERRED = [
    (400, "normal"),
    (700, "normal"),
    (400, "italic"),
    (900, "normal"),
    (300, "normal"),
    (700, "italic"),
]
LICENCES = {"OFL-1.1", "Apache-2.0", "UFL-1.0"}  # their texts are in advbook/data/licences
COLOUR_TABLES = {"COLR", "SVG ", "CBDT", "sbix"}
NEIGHBOURS = 5
MIN_READ = 5  # of the ten letters
MIN_GAP = 0.02  # relative squared distance below which two faces count as the same
NOTICE_BEGIN, NOTICE_END = "== Fonts ==\n", "== End of fonts ==\n"

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Face:
    """What is kept of one font beside its letters; the field names are keys of the npz."""

    family: str
    package: str  # name@version
    weight: int
    style: str
    licence: str  # SPDX identifier
    copyright: str


def font_file(package: Path, weight: int, style: str) -> Path:
    """Path of the Latin subset of one face inside a @fontsource package."""
    return package / "files" / f"{package.name}-latin-{weight}-{style}.woff2"


def preferred_faces(package: Path) -> list[tuple[int, str]]:
    """The (weight, style) pairs of a package, those of PREFERRED first, at most FACES_PER_FAMILY."""
    metadata = json.loads((package / "metadata.json").read_text("utf-8"))
    pairs = [(w, s) for w in sorted(metadata["weights"]) for s in sorted(metadata["styles"], reverse=True)]
    present = [pair for pair in pairs if font_file(package, *pair).is_file()]
    rank = {pair: i for i, pair in enumerate(PREFERRED)}
    nearest = sorted(present, key=lambda pair: abs(pair[0] - 400))
    return sorted(nearest, key=lambda pair: rank.get(pair, len(rank)))[:FACES_PER_FAMILY]


def describe(package: Path, font: TTFont, weight: int, style: str) -> Face:
    """Family, version, licence and copyright of one face, from its package and its name table."""
    metadata = json.loads((package / "metadata.json").read_text("utf-8"))
    manifest = json.loads((package / "package.json").read_text("utf-8"))
    version = f"{manifest['name']}@{manifest['version']}"
    licence = metadata["license"]["type"]
    if licence not in LICENCES:
        raise ValueError(f"{version} has the licence {licence!r}; allowed are {sorted(LICENCES)}")
    owner = font["name"].getDebugName(0) or metadata["license"]["attribution"]
    return Face(metadata["family"], version, weight, style, licence, " ".join(owner.split()))


def has_letters(font: TTFont) -> bool:
    """Whether a font maps A to J to glyphs and is not a colour font."""
    return set(map(ord, LETTERS)) <= font.getBestCmap().keys() and not COLOUR_TABLES & set(font.keys())


def draw_ink(font: ImageFont.FreeTypeFont, letter: str) -> Image.Image | None:
    """One letter, white on black, cropped to its bounding box; None where the glyph is blank."""
    left, top, right, bottom = font.getbbox(letter)
    margin = int(font.size)  # getbbox follows the advance width, which the ink may overshoot
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    image = Image.new("L", size)
    ImageDraw.Draw(image).text((margin - left, margin - top), letter, fill=255, font=font)
    box = image.getbbox()
    return image.crop(box) if box else None


def fitting_size(sizes: NDArray[np.float64], cap_height: float, max_side: float) -> float:
    """Factor that brings the median height of `sizes` [10, 2] (width, height) to `cap_height`.

    It is smaller where a side would otherwise exceed `max_side`.
    """
    return float(min(cap_height / np.median(sizes[:, 1]), max_side / sizes.max()))


def centre(ink: Image.Image) -> Images:
    """Place a large drawn letter in the middle of the frame and box-average it to [28, 28]."""
    frame = Image.new("L", (SIDE * OVERSAMPLING, SIDE * OVERSAMPLING))
    frame.paste(ink, ((frame.width - ink.width) // 2, (frame.height - ink.height) // 2))
    blocks = np.asarray(frame, np.float64).reshape(SIDE, OVERSAMPLING, SIDE, OVERSAMPLING)  # [28, 8, 28, 8]
    pixels: Images = np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
    return pixels


def draw_letters(ttf: bytes, cap_height: float = CAP_HEIGHT, max_side: float = MAX_SIDE) -> Images | None:
    """Draw A to J of one face, uint8 [10, 28, 28], ink 255; None where a letter is blank."""
    probe = float(SIDE * OVERSAMPLING)
    inks = [draw_ink(ImageFont.truetype(io.BytesIO(ttf), probe), letter) for letter in LETTERS]
    if any(ink is None for ink in inks):
        return None
    sizes = np.array([ink.size for ink in inks if ink], np.float64)  # [10, 2]
    size = probe * OVERSAMPLING * fitting_size(sizes, cap_height, max_side)
    font = ImageFont.truetype(io.BytesIO(ttf), size)
    return np.stack([centre(ink) for letter in LETTERS if (ink := draw_ink(font, letter))])


def load_face(package: Path, weight: int, style: str) -> tuple[Face, Images] | None:
    """Description and letters of one face; None where it is a colour font or lacks letters."""
    font = TTFont(font_file(package, weight, style))
    if not has_letters(font):
        return None
    font.flavor = None  # woff2 to plain TrueType or CFF, which FreeType reads without brotli
    ttf = io.BytesIO()
    font.save(ttf)
    letters = draw_letters(ttf.getvalue())
    return None if letters is None else (describe(package, font, weight, style), letters)


def distinct(letters: Images, min_gap: float = MIN_GAP) -> list[int]:
    """Indices of the faces [F, 10, 28, 28] that differ from every face kept before them.

    The gap of two faces a, b is |a - b|^2 / ((|a|^2 + |b|^2) / 2) over all ten letters.
    """
    flat = letters.reshape(len(letters), -1).astype(np.float64)  # [F, 7840]
    norm = (flat**2).sum(1)
    mean = (norm[:, None] + norm[None, :]) / 2  # [F, F]
    gap = (2 * mean - 2 * flat @ flat.T) / mean
    kept: list[int] = []
    for i in range(len(letters)):
        if not kept or gap[i, kept].min() >= min_gap:
            kept.append(i)
    return kept


def letters_read(letters: Images, family: Sequence[str]) -> NDArray[np.int64]:
    """How many letters of each face [F, 10, 28, 28] a k-NN on all other families reads, [F] in 0..10."""
    flat = letters.reshape(-1, SIDE * SIDE).astype(np.float32)  # [10 F, 784]
    truth = np.tile(np.arange(len(LETTERS)), len(letters))
    reader = KNeighborsClassifier(NEIGHBOURS, algorithm="brute")
    groups = np.repeat(family, len(LETTERS))
    read = cross_val_predict(reader, flat, truth, groups=groups, cv=LeaveOneGroupOut())
    counts: NDArray[np.int64] = (read == truth).reshape(-1, len(LETTERS)).sum(1)
    return counts


def choose(faces: Sequence[Face], rank: Sequence[int], letters: Images, count: int = COUNT) -> list[int]:
    """Indices of `count` distinct, legible faces, shuffled, so that the first n are a varied sample.

    The first faces of all families are tried before the second ones (`rank` says which is which).
    Raises ValueError when too few faces remain.
    """
    place = np.random.default_rng(SEED).permutation(len(faces))
    order = sorted(range(len(faces)), key=lambda i: (rank[i], place[i]))
    order = [order[i] for i in distinct(letters[order])]
    print(f"{len(order)} faces are distinct")
    read = letters_read(letters[order], [faces[i].family for i in order])
    order = [i for i, n in zip(order, read, strict=True) if n >= MIN_READ]
    print(f"{len(order)} of them are legible")
    if len(order) < count:
        raise ValueError(f"{len(order)} faces remain, {count} are wanted; name more packages in package.json")
    return sorted(order[:count], key=lambda i: int(place[i]))


def install(folder: Path) -> list[Path]:
    """Install the packages pinned in folder/package.json with npm and return their folders, sorted."""
    manifest = folder / "package.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest} does not exist; it must pin the @fontsource packages")
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not on the PATH; install Node.js, which brings it")
    flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    code = subprocess.run([npm, "install", *flags], cwd=folder, check=False).returncode
    if code:
        raise OSError(f"npm install failed in {folder} (exit code {code}); its own message stands above")
    names = json.loads(manifest.read_text("utf-8"))["dependencies"]
    packages = [folder / "node_modules" / name for name in sorted(names)]
    for package in packages:
        if not (package / "metadata.json").is_file():
            raise FileNotFoundError(f"{package} is not a @fontsource package, though {manifest} names it")
    return packages


def notice(faces: Sequence[Face]) -> str:
    """The fonts part of NOTICE: every family with its package, licence and copyright lines."""
    intro = (
        "advbook/data/fonts.npz holds images of the letters A to J (28 x 28 pixels), rasterised from the "
        "fonts below. No font file is part of this package. "
        "The licences' full texts are in advbook/data/licences/."
    )
    lines = [textwrap.fill(intro, 110), ""]
    by_package = attrgetter("package")
    for package, group in groupby(sorted(faces, key=by_package), key=by_package):
        members = list(group)
        lines.append(f"{members[0].family} ({package}), {members[0].licence}")
        lines += [f"    {line}" for line in sorted({face.copyright for face in members})]
    return NOTICE_BEGIN + "\n".join(lines) + "\n" + NOTICE_END


def replace_part(text: str, part: str) -> str:
    """Put the fonts part into NOTICE in place of an older one, or in front; other parts stay as they are."""
    if NOTICE_BEGIN not in text:
        return part + ("\n" + text if text else "")
    before, rest = text.split(NOTICE_BEGIN, 1)
    return before + part + rest.split(NOTICE_END, 1)[1]


def summary(faces: Sequence[Face]) -> str:
    """Families, licences, weights and styles of the chosen faces, one line each."""
    lines = [f"{len(faces)} fonts of {len({face.family for face in faces})} families"]
    for name in ("licence", "weight", "style"):
        counts = Counter(getattr(face, name) for face in faces)
        lines.append(f"  {name}: " + ", ".join(f"{value} {n}" for value, n in sorted(counts.items())))
    return "\n".join(lines)


def build(folder: Path, output: Path, notice_path: Path) -> None:
    """Install, draw, choose and write; everything the script does."""
    packages = install(folder)
    faces, rank, letters = [], [], []
    for package in tqdm(packages, desc="drawing", unit="family"):
        for i, (weight, style) in enumerate(preferred_faces(package)):
            if (loaded := load_face(package, weight, style)) is not None:
                faces.append(loaded[0])
                letters.append(loaded[1])
                rank.append(i)
    print(f"{len(faces)} faces of {len(packages)} families drawn")
    images = np.stack(letters)  # [F, 10, 28, 28]
    chosen = choose(faces, rank, images)
    kept = [faces[i] for i in chosen]
    columns: dict[str, Any] = {
        field.name: np.array([getattr(face, field.name) for face in kept]) for field in fields(Face)
    }
    np.savez_compressed(output, prototypes=images[chosen], **columns)  # members carry a fixed date
    old = notice_path.read_text("utf-8") if notice_path.exists() else ""
    notice_path.write_text(replace_part(old, notice(kept)), "utf-8")
    print(summary(kept))
    print(f"{output}: {output.stat().st_size:,} bytes")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and build; a failure is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    paths = {
        "--packages": (ROOT / "scripts/fonts", "folder of the package.json"),
        "--output": (ROOT / "advbook/data/fonts.npz", "npz file to write"),
        "--notice": (ROOT / "NOTICE", "text file whose fonts part is replaced"),
    }
    for name, (default, text) in paths.items():
        parser.add_argument(name, type=Path, default=default, help=text)
    args = parser.parse_args(argv)
    try:
        build(args.packages, args.output, args.notice)
    except (OSError, ValueError) as error:
        parser.exit(1, f"build_fonts: {error}\n")


if __name__ == "__main__":
    main()
