"""What the chapters on the papers' classifiers share: the data of a point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from advbook import datasets, fonts
from advbook.attacks.norms import LINF, Norm
from advbook.attacks.spaces import Decoder, Latent
from advbook.manifolds.projection import Manifold

Dataset = Literal[
    "fonts",
    "fonts_easy",
    "emnist",
    "mnist",
    "fashion_mnist",
    "celeba",
    "svhn",
    "cifar10",
    "cifar10_small",
    "cifar100",
]
# FONTS comes in the papers' set and in an easier one; both ship with the package.
FONTS: Mapping[str, fonts.Difficulty] = {"fonts": "hard", "fonts_easy": "easy"}
COLOUR: tuple[Dataset, ...] = ("svhn", "cifar10", "cifar10_small", "cifar100")
Subset = Literal["first", "random"]
HELD_OUT = 2_000  # test images that no attack touches: for the test error, and as the data's own directions


@dataclass(frozen=True)
class Codes:
    """Images as points dec(z, *context) of a manifold, and which points count as valid.

    z: [N, D]; context: what no attack changes (font and letter, or the class), [N] each; low, high: bounds of z, [D].
    """

    z: Tensor
    context: tuple[Tensor, ...]
    decode: Decoder
    low: Tensor
    high: Tensor

    def space(self, eta: float, norm: Norm = LINF) -> Latent:
        """The moves zeta with |zeta| <= eta that lead to valid points."""
        return Latent(self.z, self.decode, self.context, self.low, self.high, eta, norm)

    @torch.no_grad()
    def images(self, *, batch: int = 1_000) -> Tensor:
        """dec(z): [N, C, H, W]."""
        parts = (self.z, *self.context)
        return torch.cat([self.decode(*own) for own in zip(*(part.split(batch) for part in parts), strict=True)])


@dataclass(frozen=True)
class Known:
    """A manifold that is known exactly, and the codes of the training and the attacked test images on it."""

    manifold: Manifold
    train: fonts.Rows
    test: fonts.Rows

    def codes(self, part: Literal["train", "test"]) -> Codes:
        """The training or the attacked test images as points of it."""
        rows, m = self.train if part == "train" else self.test, self.manifold
        return Codes(rows.theta, (rows.font, rows.letter), m.decode, m.low, m.high)

    @property
    def theta(self) -> Tensor:
        """theta of the attacked test images: [B, 6]."""
        return self.test.theta

    @property
    def context(self) -> tuple[Tensor, ...]:
        """Their font and letter, which no attack changes: [B] each."""
        return (self.test.font, self.test.letter)


@dataclass(frozen=True)
class Setting:
    """Training images, attacked test images and held-out test images; known: the true manifold, None on real data.

    x: [N, C, H, W]; x_test: [B, C, H, W]; x_held_out: [H, C, H, W].
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    x_held_out: Tensor
    y_held_out: Tensor
    classes: tuple[str, ...]
    dataset: Dataset
    known: Known | None = None


def title(dataset: Dataset | Literal["mixture"]) -> str:
    """A data set's name as a text gives it."""
    if dataset == "mixture":
        return "Gaussian mixture"
    if dataset in FONTS:
        return "FONTS" if dataset == "fonts" else "FONTS, easy"
    return datasets.DATASETS[dataset].title


def classes(dataset: Dataset) -> tuple[str, ...]:
    """The names of a data set's classes."""
    return tuple(fonts.LETTERS) if dataset in FONTS else datasets.DATASETS[dataset].classes


def train_size(dataset: Dataset) -> int:
    """How many training images a data set has."""
    return fonts.TRAIN_ROWS if dataset in FONTS else datasets.DATASETS[dataset].splits["train"].count


def held_size(dataset: Dataset) -> int:
    """How many test images a data set has."""
    return fonts.TEST_ROWS if dataset in FONTS else datasets.DATASETS[dataset].splits["test"].count


def check_data(dataset: Dataset) -> None:
    """Raise MissingData or DamagedData, in one sentence, if a data set is not there; FONTS ships with the package."""
    if dataset not in FONTS:
        for split in ("train", "test"):
            datasets.load(dataset, split, n=1)


def room(dataset: Dataset, n: int) -> int:
    """How many images there are to attack and to hold out, beside n training images: see load."""
    return held_size(dataset) + (0 if dataset in FONTS else train_size(dataset) - n)


def load(
    dataset: Dataset, n: int, subset: Subset, images: int, device: torch.device, *, held_out: int = HELD_OUT
) -> Setting:
    """The first (or random) n training images, the first `images` of the test set to attack, and others held out.

    Held out are random rows of all fonts on FONTS, and the next test images elsewhere; where these are too few,
    training images after the first n too, as far as there are any.
    """
    return (_fonts if dataset in FONTS else _real)(dataset, n, subset, images, held_out, device)


def training_images(dataset: Dataset, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first n training images and their classes: [n, C, H, W], [n]."""
    if dataset in FONTS:
        rows = fonts.rows("train", n, difficulty=FONTS[dataset], device=device)
        return fonts.images(rows), rows.letter
    train = datasets.load(dataset, "train", n=n, device=device)
    return train.x, train.y


def _fonts(dataset: Dataset, n: int, subset: Subset, images: int, count: int, device: torch.device) -> Setting:
    difficulty = FONTS[dataset]
    draw = fonts.random_rows if subset == "random" else fonts.rows
    train = draw("train", n, difficulty=difficulty, device=device)
    test = fonts.rows("test", images, difficulty=difficulty, device=device)
    # The next rows would show a few fonts only, most of which the first N training rows hold too.
    held_out = fonts.random_rows("test", count, skip=images, difficulty=difficulty, device=device)
    manifold = Manifold(fonts.decode, fonts.decode_with_jacobian, *fonts.theta_box(device, difficulty))
    return Setting(
        x=fonts.images(train),
        y=train.letter,
        x_test=fonts.images(test),
        y_test=test.letter,
        x_held_out=fonts.images(held_out),
        y_held_out=held_out.letter,
        classes=classes(dataset),
        dataset=dataset,
        known=Known(manifold, train, test),
    )


def _real(dataset: Dataset, n: int, subset: Subset, images: int, count: int, device: torch.device) -> Setting:
    end, size = images + count, held_size(dataset)
    test = datasets.load(dataset, "test", n=min(end, size), device=device)
    # Where the test set is too small, training images that are not trained on stand in.
    rest = min(max(end - size, 0), train_size(dataset) - n)
    train = datasets.load(dataset, "train", n=None if subset == "random" else n + rest, device=device)
    found = len(train.y)
    order = np.random.default_rng([0, 1]).permutation(found) if subset == "random" else np.arange(found)
    rows, spare = torch.from_numpy(order[: n + rest]).to(device).split([n, rest])
    return Setting(
        x=train.x[rows],
        y=train.y[rows],
        x_test=test.x[:images],
        y_test=test.y[:images],
        x_held_out=torch.cat([test.x[images:end], train.x[spare]]),
        y_held_out=torch.cat([test.y[images:end], train.y[spare]]),
        classes=train.classes,
        dataset=dataset,
    )
