"""CelebA: faces, read from the archive of aligned images that a user has put in the data folder.

The images are resized and cropped to the 56 rows and 48 columns of Stutz et al., CVPR 2019. How they interpolated is
not known here; we do so bilinearly, over all pixels that fall into one.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from advbook import formats
from advbook.formats import Uint8s

FOLDER = "img_align_celeba"  # inside the archive
PUBLISHED = (178, 218)  # columns, rows
RESIZED = (54, 66)  # columns, rows
CROP = (3, 5, 51, 61)  # left, top, right, bottom: 48 columns and 56 rows stay
LARGEST = 1 << 20  # bytes of one image; the published ones take some thousand
MALE = 20  # which attribute is the class, counted from 0
LINE = re.compile(r"(\d{6}\.jpg)((?:\s+-?1){40})\s*")


def read(paths: Sequence[Path], rows: range) -> tuple[Uint8s, Uint8s]:
    """Read some rows of CelebA: images [N, 3, 56, 48] and labels [N], uint8; label 1 has the attribute "Male".

    paths: those of img_align_celeba.zip and of list_attr_celeba.txt. Raises ValueError, with the name of the image, for
    one that is missing or damaged or is not of 178 x 218 pixels, and for a list of another form.
    """
    archive, attributes = paths
    names, labels = parse_attributes(attributes.read_bytes(), rows)
    x = np.empty((len(rows), 3, CROP[3] - CROP[1], CROP[2] - CROP[0]), np.uint8)
    members = formats.members(archive, {f"{FOLDER}/{name}": LARGEST for name in names})
    for k, (name, raw) in enumerate(tqdm(members, desc="CelebA", total=len(rows), leave=False, delay=2)):
        x[k] = parse_image(name, raw)
    return x, labels


def parse_attributes(raw: bytes, rows: range) -> tuple[list[str], Uint8s]:
    """Read the names of some images, and whether each has the attribute "Male", from list_attr_celeba.txt.

    The form: how many images there are; the 40 names of the attributes; a line an image, with its name and 1 or -1 for
    each attribute. Raises ValueError for anything else and for rows that are not there.
    """
    count, header, *lines = [*raw.decode("ascii", errors="replace").splitlines(), "", ""]
    lines = [line for line in lines if line]
    if not count.strip().isdigit() or int(count) != len(lines) or rows.stop > len(lines):
        wanted = f"images {rows.start + 1} to {rows.stop} are wanted"
        raise ValueError(f"the list of attributes says {count[:20]!r} images and has {len(lines)}; {wanted}")
    if len(header.split()) != 40 or header.split()[MALE] != "Male":
        raise ValueError(f"the list of attributes must have 40 of them, and 'Male' at {MALE}; it has {header[:60]!r}")
    found = [_attribute(lines[k]) for k in rows]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise ValueError("the list of attributes has an image twice")
    return names, np.array([label for _, label in found], np.uint8)


def _attribute(line: str) -> tuple[str, bool]:
    match = LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"the list of attributes has {line[:40]!r}..., not an image's name and 40 times 1 or -1")
    return match[1], match[2].split()[MALE] == "1"


def parse_image(name: str, raw: bytes) -> Uint8s:
    """Read a JPEG of CelebA's size, resized and cropped: [3, 56, 48], uint8. Raises ValueError with its name otherwise.

    Its size is looked at before it is decoded, so that a small file cannot fill the memory.
    """
    if len(raw) > LARGEST:
        raise ValueError(f"{name} has more than {LARGEST} bytes, too many for an image of this data set")
    try:
        with Image.open(io.BytesIO(raw), formats=["JPEG"]) as image:
            size = image.size
            if size == PUBLISHED:
                small = image.convert("RGB").resize(RESIZED, Image.Resampling.BILINEAR).crop(CROP)
                return np.asarray(small).transpose(2, 0, 1)  # [H, W, C] -> [C, H, W]
    except Exception as error:  # Pillow meets damage with errors of many kinds
        raise ValueError(f"{name} is damaged or is no JPEG image ({type(error).__name__})") from error
    raise ValueError(f"{name} has {size[0]} x {size[1]} pixels; {PUBLISHED[0]} x {PUBLISHED[1]} were published")
