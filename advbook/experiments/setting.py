"""What the chapters on the papers' classifiers share: the data of a point, and its trained networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from advbook import datasets, fonts, networks, store, training
from advbook.fleet import Stack
from advbook.manifolds.projection import Manifold

Dataset = Literal["fonts", "mnist", "fashion_mnist", "emnist"]
Subset = Literal["first", "random"]
HELD_OUT = 2_000  # test images that no attack touches: for the test error, and as the data's own directions


@dataclass(frozen=True)
class Setting:
    """Training images, attacked test images, held-out test images, and the true manifold where it is known.

    x: [N, C, H, W]; x_test: [B, C, H, W]; theta and context (font and letter) are the codes of x_test, None on real
    data.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    x_held_out: Tensor
    y_held_out: Tensor
    classes: tuple[str, ...]
    manifold: Manifold | None = None
    theta: Tensor | None = None
    context: tuple[Tensor, ...] = ()


def title(dataset: Dataset) -> str:
    """A data set's name as a text gives it."""
    return "FONTS" if dataset == "fonts" else datasets.DATASETS[dataset].title


def classes(dataset: Dataset) -> tuple[str, ...]:
    """The names of a data set's classes."""
    return tuple(fonts.LETTERS) if dataset == "fonts" else datasets.DATASETS[dataset].classes


def train_size(dataset: Dataset) -> int:
    """How many training images a data set has."""
    return fonts.TRAIN_ROWS if dataset == "fonts" else datasets.DATASETS[dataset].splits["train"].count


def load(dataset: Dataset, n: int, subset: Subset, images: int, device: torch.device) -> Setting:
    """The first (or random) n training images, the first `images` of the test set to attack, and others held out.

    Held out are HELD_OUT random rows of all fonts on FONTS, and the next test images elsewhere.
    """
    return (_fonts if dataset == "fonts" else _real)(dataset, n, subset, images, device)


def _fonts(dataset: Dataset, n: int, subset: Subset, images: int, device: torch.device) -> Setting:
    train = (
        fonts.random_rows("train", n, device=device) if subset == "random" else fonts.rows("train", n, device=device)
    )
    test = fonts.rows("test", images, device=device)
    # The next rows would show a few fonts only, most of which the first N training rows hold too.
    held_out = fonts.random_rows("test", HELD_OUT, skip=images, device=device)
    return Setting(
        x=fonts.images(train),
        y=train.letter,
        x_test=fonts.images(test),
        y_test=test.letter,
        x_held_out=fonts.images(held_out),
        y_held_out=held_out.letter,
        classes=classes(dataset),
        manifold=Manifold(fonts.decode, fonts.decode_with_jacobian, *fonts.theta_box(device)),
        theta=test.theta,
        context=(test.font, test.letter),
    )


def _real(dataset: Dataset, n: int, subset: Subset, images: int, device: torch.device) -> Setting:
    test = datasets.load(dataset, "test", device=device)
    train = datasets.load(dataset, "train", n=None if subset == "random" else n, device=device)
    order = np.random.default_rng([0, 1]).permutation(len(train.y)) if subset == "random" else np.arange(n)
    rows = torch.from_numpy(order[:n]).to(device)
    end = images + HELD_OUT
    return Setting(
        x=train.x[rows],
        y=train.y[rows],
        x_test=test.x[:images],
        y_test=test.y[:images],
        x_held_out=test.x[images:end],
        y_held_out=test.y[images:end],
        classes=train.classes,
    )


def classifiers(
    setting: Setting, dataset: Dataset, n: int, subset: Subset, *, epochs: int, seeds: int
) -> list[nn.Sequential]:
    """The normally trained standard networks of seeds 0, 1, ..., batch norm folded; from the store where they are."""
    device = setting.x.device
    schedule = training.Schedule(epochs=epochs)
    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    fresh = [networks.cnn(len(setting.classes), generator=generator).to(device) for generator in generators]
    recipes = [
        {
            "version": 2,  # raise it when training or the network changes what it computes
            "training": "normal",
            "network": "cnn",
            "schedule": schedule.model_dump(),
            "data": [dataset, subset, n],
            "seed": seed,
            "device": device.type,
        }
        for seed in range(seeds)
    ]

    def train(missing: list[int]) -> list[nn.Module]:
        fleet = Stack([fresh[i] for i in missing])
        chosen = [generators[i] for i in missing]
        label = "training networks " + ", ".join(map(str, missing))
        return training.normal(fleet, setting.x, setting.y, schedule, generators=chosen, label=label).unstack()

    return [networks.folded(cast(nn.Sequential, network)) for network in store.trained(recipes, fresh, train)]
