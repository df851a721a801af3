"""Principal directions of real images: probabilistic PCA of each class, decoded and classified in the browser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open
from torch import Tensor, nn
from traitlets import Bytes, Float, Int, List, validate

from advbook.networks import cnn
from advbook.sliders.base import ClassifierFigure, answers, evaluated, script, selector, slider
from advbook.sliders.pack import pack
from advbook.sliders.still import draw

SHIPPED_WIDTHS = (8, 16, 32)  # channels of the classifier in the package's file
REACH = 3.0  # each zeta goes from -REACH to REACH
_MOST = 10  # directions in one figure: one trait each
_TRAITS = tuple(f"zeta_{i + 1}" for i in range(_MOST))
_LEVELS = 32767  # of int16: with 8 bits, moves along several directions would be off by more than 1/255


class PrincipalSlider(ClassifierFigure):
    """Moves x = clip(mean_y + sum_i scale_i zeta_i v_i) along the directions v_i of class y, with the classifier's
    answer, live.

    Traits: zeta_1 to zeta_n, each in [-3, 3], and label, the class y (counted from 0).
    """

    _esm = script("principal.js")
    image_shape = List(Int()).tag(sync=True)
    means = Bytes().tag(sync=True)
    directions = Bytes().tag(sync=True)
    steps = Bytes().tag(sync=True)
    zeta_1 = Float().tag(sync=True)
    zeta_2 = Float().tag(sync=True)
    zeta_3 = Float().tag(sync=True)
    zeta_4 = Float().tag(sync=True)
    zeta_5 = Float().tag(sync=True)
    zeta_6 = Float().tag(sync=True)
    zeta_7 = Float().tag(sync=True)
    zeta_8 = Float().tag(sync=True)
    zeta_9 = Float().tag(sync=True)
    zeta_10 = Float().tag(sync=True)
    label = Int().tag(sync=True)

    def __init__(
        self,
        means: ArrayLike,
        directions: ArrayLike,
        scales: ArrayLike,
        classifier: nn.Sequential,
        class_names: Sequence[str],
        labels: Sequence[str],
        *,
        note: str = "",
    ) -> None:
        """A figure over K classes and n directions.

        means: [K, H, W], uint8 (255 is 1) or in [0, 1]; directions: [K, n, H, W], each of length 1; scales: [K, n],
        not negative, pixels (L2) to one unit of zeta; classifier: [B, 1, H, W] -> [B, K] logits; class_names: K;
        labels: n names of the directions, of which a remark in parentheses stays out of the still; note: what the
        reader should know of them. Raises ValueError if shapes or values do not fit, TypeError if the browser cannot
        run a layer of the classifier.
        """
        means, directions, scales = (
            np.asarray(means),
            np.asarray(directions, np.float64),
            np.asarray(scales, np.float64),
        )
        mean = means / 255 if means.dtype == np.uint8 else means.astype(np.float64)
        _check(mean, directions, scales, class_names, labels)
        self._network = evaluated(classifier, [1, *mean.shape[1:]], len(class_names))
        layers, weights = pack(classifier)
        moves = directions * scales[..., None, None]  # [K, n, H, W], pixels to one unit of zeta
        steps = np.abs(moves).max((2, 3)).astype(np.float32) / np.float32(_LEVELS)  # [K, n]
        whole = np.rint(moves / np.maximum(steps, np.float32(1e-30))[..., None, None])
        self._mean, self._moves = torch.from_numpy(mean), torch.from_numpy(moves)
        super().__init__(
            image_shape=[1, *mean.shape[1:]],
            means=np.rint(mean * 65535).astype("<u2").tobytes(),
            directions=whole.clip(-_LEVELS, _LEVELS).astype("<i2").tobytes(),
            steps=steps.astype("<f4").tobytes(),
            classifier=layers,
            classifier_weights=weights,
            class_names=list(class_names),
            controls=[
                selector("label", "class", list(class_names)),
                *(slider(*pair, -REACH, REACH, 0) for pair in zip(_TRAITS, labels, strict=False)),
            ],
            note=f"The picture and the answer are computed in your browser. {note}".strip(),
        )

    _in_range = validate(*_TRAITS, "label")(ClassifierFigure._within)

    def image(self, zeta: Tensor) -> Tensor:
        """x = clip(mean_y + sum_i scale_i zeta_i v_i) of the class y shown: [B, n] -> [B, 1, H, W] in [0, 1]."""
        moved = self._mean[self.label] + torch.einsum("bn,nhw->bhw", zeta.double(), self._moves[self.label])
        return moved.clamp(0, 1).float()[:, None]

    def still(self) -> bytes:
        """The image along each of the sliders, the others where they stand."""
        rows = [self._along(i) for i in range(self._moves.shape[1])]  # n times [T, 1, H, W]
        titles = [answers(self._network, row, self.class_names) for row in rows]
        return draw(rows, titles, [control["label"].split(" (")[0] for control in self.controls[1:]])

    def alt(self) -> str:
        """What the still shows."""
        return (
            f"The mean image of the class {self.class_names[self.label]}, moved along each of "
            f"{self._moves.shape[1]} principal directions from -{REACH:g} to {REACH:g}, with the classifier's answer "
            "over every picture."
        )

    def _along(self, axis: int, steps: int = 7) -> Tensor:
        zeta = torch.tensor([[getattr(self, name) for name in _TRAITS[: self._moves.shape[1]]]]).repeat(steps, 1)
        zeta[:, axis] = torch.linspace(-REACH, REACH, steps)
        return self.image(zeta)


def shipped() -> PrincipalSlider:
    """The figure over Fashion-MNIST from the file that the package ships, which scripts/build_principal.py makes."""
    held, words = _read()
    return PrincipalSlider(
        held["means"].numpy(),
        held["directions"].numpy(),
        held["scales"].numpy(),
        shipped_classifier(),
        words["classes"],
        words["labels"],
        note=_note(held["variances"].sqrt(), words["labels"], words["accuracy"]),
    )


def shipped_classifier() -> nn.Sequential:
    """The small classifier of Fashion-MNIST in that file, in evaluation mode."""
    held, words = _read()
    network = cnn(len(words["classes"]), SHIPPED_WIDTHS, generator=torch.Generator().manual_seed(0))
    state = {name.removeprefix("classifier."): tensor for name, tensor in held.items() if "." in name}
    network.load_state_dict(network.state_dict() | state)
    return network.eval()


def _note(deviations: Tensor, labels: list[str], accuracy: float) -> str:
    """What the reader should know of the shipped directions: deviations [K, n]."""
    late = [i for i, label in enumerate(labels) if "(" in label]
    most = (deviations[:, late] / deviations[:, :1]).max().item()
    names = " and ".join(labels[i].split(" (")[0] for i in late)
    return (
        "The first directions come from a probabilistic PCA of the training images of each class; there ζ counts "
        f"standard deviations of the code. In {names}, images of a class differ little, by at most {100 * most:.0f} % "
        "of their standard deviation in direction 1, but one unit of ζ is as long in pixels as in direction 1: as long "
        f"a move, another look. The classifier has {100 * accuracy:.1f} % of the test images right."
    )


def label_of(number: int, first: int) -> str:
    """How the direction of this number, counted from 1, is called in the shipped file: those after `first` are late."""
    return f"direction {number} (small variance)" if number > first else f"direction {number}"


def _read() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors in float32, and the words beside them, of the shipped file."""
    path = files("advbook").joinpath("data/fashion_mnist_principal.safetensors")
    with safe_open(str(path), "pt") as file:
        return {name: file.get_tensor(name).float() for name in file.keys()}, json.loads(file.metadata()["words"])  # noqa: SIM118


def _check(
    means: NDArray[Any], directions: NDArray[Any], scales: NDArray[Any], names: Sequence[str], labels: Sequence[str]
) -> None:
    classes, count = len(names), len(labels)
    if not 1 <= count <= _MOST:
        raise ValueError(f"labels has {count} names; allowed are 1 to {_MOST}, one a direction.")
    if means.ndim != 3 or len(means) != classes:
        raise ValueError(f"means has shape {list(means.shape)}; allowed is [{classes}, H, W], an image a class name.")
    if not ((means >= 0) & (means <= 1)).all():  # written so that NaN is refused, too
        raise ValueError("means has a pixel outside [0, 1]; allowed are uint8, or numbers from 0 to 1.")
    if directions.shape != (classes, count, *means.shape[1:]):
        wanted = [classes, count, *means.shape[1:]]
        raise ValueError(f"directions has shape {list(directions.shape)}; allowed is {wanted}, by means and labels.")
    lengths = np.sqrt((directions**2).sum((2, 3)))
    if not (np.abs(lengths - 1) < 1e-2).all():
        worst = lengths.flat[np.abs(lengths - 1).argmax()]
        raise ValueError(f"directions has one of length {worst:g}; allowed is length 1.")
    if scales.shape != (classes, count):
        raise ValueError(f"scales has shape {list(scales.shape)}; allowed is [{classes}, {count}].")
    if not ((scales >= 0) & np.isfinite(scales)).all():
        raise ValueError("scales has a number that is negative or not finite; allowed are lengths of 0 or more.")
