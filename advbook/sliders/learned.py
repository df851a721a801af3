"""Learned manifolds: a code z through a class's decoder, beside a test image and the nearest training images, live."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import load
from torch import Tensor, nn
from traitlets import Bytes, Dict, Float, Int, List, observe, validate

from advbook.experiments import learned
from advbook.experiments.setting import classes
from advbook.sliders import principal
from advbook.sliders.base import ClassifierFigure, Control, answers, evaluated, path_steps, script, selector, slider
from advbook.sliders.pack import pack, pack_together, rounded
from advbook.sliders.still import draw

REACH = 2.0  # each entry of z goes from -REACH to REACH
_MOST = 10  # entries of z in one figure: one trait each
_TRAITS = tuple(f"z_{i + 1}" for i in range(_MOST))
_LABELS = ("z₁", "z₂", "z₃", "z₄", "z₅", "z₆", "z₇", "z₈", "z₉", "z₁₀")
_NEAREST = 3  # training images shown
_SHOWN = 6  # steps of the path in the still image, at most
_ROUNDING = 1e-6  # how far float32 may lie outside a bound


class LearnedSlider(ClassifierFigure):
    """Moves the code z of a test image, by hand or along an attack's path, and shows dec_y(z) with the answer, live.

    Traits: label, the class y, and example, its test image (both counted from 0), step of the path, and z_1 to z_D,
    each in [-2, 2]. A new class or example sets z to the image's code and step to 0; a new step sets z to the path's.
    """

    _esm = script("learned.js")
    image_shape = List(Int()).tag(sync=True)
    decoders = List(List(Dict())).tag(sync=True)
    decoders_weights = Bytes().tag(sync=True)
    images = Bytes().tag(sync=True)
    codes = Bytes().tag(sync=True)
    paths = Bytes().tag(sync=True)
    bank = Bytes().tag(sync=True)
    eta = Float().tag(sync=True)
    label = Int().tag(sync=True)
    example = Int().tag(sync=True)
    step = Int().tag(sync=True)
    z_1 = Float().tag(sync=True)
    z_2 = Float().tag(sync=True)
    z_3 = Float().tag(sync=True)
    z_4 = Float().tag(sync=True)
    z_5 = Float().tag(sync=True)
    z_6 = Float().tag(sync=True)
    z_7 = Float().tag(sync=True)
    z_8 = Float().tag(sync=True)
    z_9 = Float().tag(sync=True)
    z_10 = Float().tag(sync=True)

    def __init__(
        self,
        decoders: Sequence[nn.Sequential],
        classifier: nn.Sequential,
        class_names: Sequence[str],
        images: ArrayLike,
        codes: ArrayLike,
        *,
        eta: float,
        bank: ArrayLike,
        paths: ArrayLike | None = None,
    ) -> None:
        """A figure over K classes with E test images each.

        decoders: [B, D] -> [B, 1, H, W] in [0, 1], one a class or one for all; classifier: [B, 1, H, W] -> [B, K]
        logits; class_names: K; images: uint8 [K, E, H, W], 255 is 1; codes: [K, E, D] in [-2, 2], D from 1 to 10; eta:
        the attack's budget, how far each entry of z may go from the code; bank: uint8 [K, N, H, W], training images;
        paths: [K, E, T + 1, D], the move zeta after each of T steps, within eta, or None; z = code + zeta is clipped
        to [-2, 2]. Decoders are shipped, and drawn, with weights of 8 bits. Raises ValueError if shapes or values do
        not fit, TypeError if the browser cannot run a layer.
        """
        pixels, training, z = np.asarray(images), np.asarray(bank), np.asarray(codes, "<f4")
        moves = None if paths is None else np.asarray(paths, "<f4")
        _check_images(pixels, training, len(class_names))
        _check_codes(z, moves, pixels.shape[:2], eta)
        if len(decoders) not in (1, len(class_names)):
            raise ValueError(
                f"decoders has {len(decoders)} networks; allowed are {len(class_names)}, a class each, or 1."
            )
        self._network = evaluated(classifier, [1, *pixels.shape[2:]], len(class_names))
        self._decoders = _rounded(decoders, torch.from_numpy(z), list(pixels.shape[2:]))
        self._images, self._bank = pixels, training
        self._codes, self._paths = z, moves
        packed, decoders_weights = pack_together(decoders, bits=8)
        layers, weights = pack(classifier)
        super().__init__(
            image_shape=[1, *pixels.shape[2:]],
            decoders=packed,
            decoders_weights=decoders_weights,
            classifier=layers,
            classifier_weights=weights,
            class_names=list(class_names),
            images=pixels.tobytes(),
            codes=z.tobytes(),
            paths=b"" if moves is None else moves.tobytes(),
            bank=training.tobytes(),
            eta=float(eta),
            controls=_controls(class_names, z, moves),
            note=_note(len(decoders) == 1 < len(class_names), training.shape[1], moves is not None),
            **dict(zip(_TRAITS, z[0, 0].tolist(), strict=False)),
        )

    _in_range = validate(*_TRAITS, "label", "example", "step")(ClassifierFigure._within)

    @observe("label", "example", "step")
    def _follow(self, change: dict[str, Any]) -> None:
        if self._by_browser:
            return
        with self.hold_sync():
            z = self._codes[self.label, self.example]
            if change["name"] == "step":
                z = self._on_path()[self.step]
            elif self._paths is not None:
                self.step = 0
            for name, value in zip(_TRAITS, z.tolist(), strict=False):
                setattr(self, name, value)

    def image(self, z: Tensor) -> Tensor:
        """dec_y(z) for the class y shown: [B, D] -> [B, 1, H, W] in [0, 1]."""
        with torch.no_grad():
            images: Tensor = self._decoders[self.label % len(self._decoders)](z.float())
        return images

    def still(self) -> bytes:
        """The test image, decoded at its code and at z, the nearest training images, and some steps of the path."""
        z = torch.tensor([self._codes[self.label, self.example].tolist(), self._z()])
        x = _unit(self._images[self.label, self.example])[None]
        near, distances = self._nearest()
        shown = torch.cat([x, self.image(z)])
        said = answers(self._network, shown, self.class_names)
        titles = [f"{a}: {b}" for a, b in zip(("x", "code", "z"), said, strict=True)]
        rows = [torch.cat([shown, _unit(self._bank.reshape(-1, *x.shape[2:])[near])])]
        names = [self.class_names[i // self._bank.shape[1]] for i in near]
        titles += [f"{name}: {d:.2f}" for name, d in zip(names, distances, strict=True)]
        if self._paths is None:
            return draw(rows, [titles], ["decoded"])
        along = self.image(torch.from_numpy(self._on_path()[self._shown()]))
        path = answers(self._network, along, self.class_names)
        steps = [f"step {step}: {text}" for step, text in zip(self._shown(), path, strict=True)]
        return draw([*rows, along], [titles, steps], ["decoded", "the attack"])

    def alt(self) -> str:
        """What the still shows."""
        name = self.class_names[self.label]
        (said,) = answers(self._network, self.image(torch.tensor([self._z()])), self.class_names)
        seen = (
            f"A test image of the class {name}, the images that a learned decoder makes of its code and of z, and the "
            f"{_NEAREST} nearest of {self._bank.shape[0] * self._bank.shape[1]:,} training images; the classifier says "
            f"{said} of the image at z."
        )
        if self._paths is None:
            return seen
        with torch.no_grad():
            found = self._network(self.image(torch.from_numpy(self._on_path()))).argmax(1)
        errs = (found != self.label).nonzero().flatten().tolist()
        return f"{seen} Along the attack's path it {f'errs first at step {errs[0]}' if errs else 'never errs'}."

    def _z(self) -> list[float]:
        return [getattr(self, name) for name in _TRAITS[: self._codes.shape[2]]]

    def _on_path(self) -> NDArray[np.float32]:
        """z at each step of the example's path: [T + 1, D]."""
        assert self._paths is not None
        moved = self._codes[self.label, self.example] + self._paths[self.label, self.example]
        clipped: NDArray[np.float32] = moved.clip(-REACH, REACH)
        return clipped

    def _shown(self) -> list[int]:
        assert self._paths is not None
        last = self._paths.shape[2] - 1
        return [int(step) for step in np.linspace(0, last, min(_SHOWN, last + 1)).round()]

    def _nearest(self) -> tuple[list[int], list[float]]:
        """Where in the bank, all classes behind one another, the images nearest to dec(z) are, and how far (L2)."""
        made = self.image(torch.tensor([self._z()]))
        every = _unit(self._bank.reshape(-1, *self._bank.shape[2:]))
        found = (every - made).flatten(1).norm(dim=1).topk(_NEAREST, largest=False)
        return found.indices.tolist(), found.values.tolist()


def _unit(pixels: NDArray[Any]) -> Tensor:
    """uint8 [..., H, W] -> [..., 1, H, W] in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).unsqueeze(-3)


def shipped() -> LearnedSlider:
    """The figure over Fashion-MNIST from the files that the package ships, which scripts/build_manifolds.py makes."""
    content = (files("advbook") / "data" / "fashion_mnist_walks.safetensors").read_bytes()
    held = load(content)
    return LearnedSlider(
        [pair.decoder for pair in learned.shipped("fashion_mnist", "class")],
        principal.shipped_classifier(),
        classes("fashion_mnist"),
        held["images"].numpy(),
        held["codes"].numpy(),
        eta=float(held["eta"]),
        bank=held["bank"].numpy(),
        paths=held["paths"].numpy(),
    )


def _rounded(decoders: Sequence[nn.Sequential], codes: Tensor, shape: list[int]) -> list[nn.Sequential]:
    """The decoders with weights of 8 bits, known to give images of this shape, [H, W], for codes [K, E, D]."""
    fixed = [rounded(decoder) for decoder in decoders]
    for i, decoder in enumerate(fixed):
        try:
            with torch.no_grad():
                made = decoder(codes[i])
        except RuntimeError as error:
            raise ValueError(f"decoders[{i}] does not take {codes.shape[2]} numbers: {error}") from error
        if list(made.shape[1:]) != [1, *shape]:
            raise ValueError(f"decoders[{i}] gives images of shape {list(made.shape[1:])}; allowed is {[1, *shape]}.")
        if not ((made >= 0) & (made <= 1)).all():
            raise ValueError(f"decoders[{i}] gives a pixel outside [0, 1]; allowed are decoders that keep to it.")
    return fixed


def _controls(names: Sequence[str], codes: NDArray[Any], paths: NDArray[Any] | None) -> list[Control]:
    start = zip(_TRAITS, _LABELS, codes[0, 0].tolist(), strict=False)
    controls = [
        selector("label", "class", list(names)),
        selector("example", "test image", [f"{i + 1} of {codes.shape[1]}" for i in range(codes.shape[1])]),
        *(slider(name, label, -REACH, REACH, value) for name, label, value in start),
    ]
    return controls if paths is None else [*controls, path_steps(paths.shape[2] - 1)]


def _note(shared: bool, count: int, attacked: bool) -> str:
    """What the reader should know: of one decoder for all classes, of the bank, of the budget, of the weights."""
    parts = [
        "One decoder, learned from the training images of all classes, serves every class: a move may change the class "
        "itself, and “wrong” means another class than that of the test image."
        if shared
        else "Each class has a decoder of its own, learned from its training images, and what it makes counts as such.",
        "The sliders start at the code of the test image.",
        "The last slider takes you along the attack's path; go on by hand from any step." if attacked else "",
        f"The nearest training images are searched in a sample, {count:,} of each class; in all of them, a nearer one "
        "may be found. Decoders have weights of 8 bits here. All is computed in your browser.",
    ]
    return " ".join(part for part in parts if part)


def _check_images(images: NDArray[Any], bank: NDArray[Any], classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != classes or images.shape[1] < 1:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; allowed: uint8 [{classes}, E, H, W] with E at least 1, "
            "test images of each class."
        )
    wanted = [classes, "N", *images.shape[2:]]
    fits = bank.dtype == np.uint8 and bank.ndim == 4 and (len(bank), *bank.shape[2:]) == (classes, *images.shape[2:])
    if not fits or bank.shape[0] * bank.shape[1] < _NEAREST:
        shape = ", ".join(map(str, wanted))
        raise ValueError(
            f"bank is {bank.dtype} {list(bank.shape)}; allowed: uint8 [{shape}] with {_NEAREST} images or more in all."
        )


def _check_codes(codes: NDArray[Any], paths: NDArray[Any] | None, counts: tuple[int, ...], eta: float) -> None:
    if not 0 < eta < np.inf:
        raise ValueError(f"eta = {eta:g}; allowed is a positive finite number.")
    if codes.ndim != 3 or codes.shape[:2] != counts or not 1 <= codes.shape[2] <= _MOST:
        raise ValueError(
            f"codes has shape {list(codes.shape)}; allowed: [{counts[0]}, {counts[1]}, D] with D from 1 to {_MOST}, a "
            "code a test image."
        )
    _check_within("codes", codes, REACH)
    if paths is None:
        return
    if paths.ndim != 4 or (*paths.shape[:2], paths.shape[3]) != codes.shape or paths.shape[2] < 2:
        raise ValueError(
            f"paths has shape {list(paths.shape)}; allowed: [{counts[0]}, {counts[1]}, T + 1, {codes.shape[2]}] with "
            "T at least 1, by codes."
        )
    _check_within("paths", paths, eta)


def _check_within(name: str, values: NDArray[Any], bound: float) -> None:
    outside = values[~(np.abs(values) <= bound + _ROUNDING)]  # written so that NaN is refused, too
    if outside.size:
        raise ValueError(f"{name} has {outside.flat[0]:g}; allowed is {-bound:g} to {bound:g}.")
