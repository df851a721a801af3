"""The latent slider: transformation, letter and font of FONTS, decoded and classified in the browser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from traitlets import Bytes, Dict, Float, Int, List, validate

from advbook.fonts import FONTS, IDENTITY, LETTERS, THETA_HIGH, THETA_LOW, THETA_NAMES, transform
from advbook.sliders.base import ClassifierFigure, Control, answers, check_thetas, evaluated, script, selector, slider
from advbook.sliders.pack import pack, pack_fonts
from advbook.sliders.still import draw

_TRAITS = tuple(name.replace(" ", "_") for name in THETA_NAMES)


class LatentSlider(ClassifierFigure):
    """Moves z = (theta, font, letter) of FONTS and shows x = dec(z) with the classifier's answer, live.

    Traits: shift_x, shift_y, shear_x, shear_y, scale, rotation (theta in its own units, rotation in radians),
    font and letter (counted from 0).
    """

    _esm = script("latent.js")
    decoder = List(Dict()).tag(sync=True)
    decoder_weights = Bytes().tag(sync=True)
    shift_x = Float().tag(sync=True)
    shift_y = Float().tag(sync=True)
    shear_x = Float().tag(sync=True)
    shear_y = Float().tag(sync=True)
    scale = Float().tag(sync=True)
    rotation = Float().tag(sync=True)
    font = Int().tag(sync=True)
    letter = Int().tag(sync=True)

    def __init__(
        self,
        prototypes: ArrayLike,
        font_names: Sequence[str],
        classifier: nn.Sequential,
        *,
        low: Sequence[float] = THETA_LOW,
        high: Sequence[float] = THETA_HIGH,
        start: Sequence[float] = IDENTITY,
        letters: str = LETTERS,
        fonts: int = FONTS,
    ) -> None:
        """A figure over some fonts.

        prototypes: uint8 [F, K, H, W], the shown fonts; font_names: F names; classifier: [B, 1, H, W] -> [B,
        K] logits; low, high, start: theta's box and where it starts, 6 numbers each; letters: K of them;
        fonts: how many there are in all, said beside the selector. Raises ValueError if shapes do not fit,
        TraitError if start is outside the box, TypeError if the browser cannot run a layer of the classifier.
        """
        decoder, decoder_weights = pack_fonts(prototypes)
        pixels = np.asarray(prototypes)
        _check(pixels, font_names, letters)
        check_thetas(low=low, high=high, start=start)
        self._letters = torch.from_numpy(pixels.astype(np.float32) / 255)
        self._network = evaluated(classifier, [1, *pixels.shape[2:]], len(letters))
        layers, weights = pack(classifier)
        super().__init__(
            decoder=decoder,
            decoder_weights=decoder_weights,
            classifier=layers,
            classifier_weights=weights,
            class_names=list(letters),
            controls=_controls(low, high, start, list(letters), list(font_names), fonts),
            note="The picture and the answer are computed in your browser. The transformation says where in "
            "the upright letter a pixel looks: a larger scale draws a smaller letter, a positive shift "
            "moves it left or up.",
            **dict(zip(_TRAITS, start, strict=True)),
        )

    _in_range = validate(*_TRAITS, "font", "letter")(ClassifierFigure._within)

    def still(self) -> bytes:
        """The letter along each of the six sliders, the others where they stand."""
        rows = [self._along(i) for i in range(len(_TRAITS))]  # 6 times [T, 1, H, W]
        titles = [answers(self._network, row, self.class_names) for row in rows]
        return draw(rows, titles, list(THETA_NAMES))

    def alt(self) -> str:
        """What the still shows."""
        letter, font = self.class_names[self.letter], self.controls[-1]["options"][self.font]
        return (
            f"The letter {letter} in {font}, moved along each of six sliders ({', '.join(THETA_NAMES)}) from "
            "end to end, with the classifier's answer over every picture."
        )

    def _along(self, axis: int, steps: int = 7) -> Tensor:
        control = self.controls[axis]
        theta = torch.tensor([[getattr(self, name) for name in _TRAITS]]).repeat(steps, 1)  # [T, 6]
        theta[:, axis] = torch.linspace(control["min"], control["max"], steps) / control["per"]
        return transform(self._letters[self.font, self.letter].expand(steps, 1, -1, -1), theta)


def _controls(
    low: Sequence[float],
    high: Sequence[float],
    start: Sequence[float],
    letters: list[str],
    names: list[str],
    fonts: int,
) -> list[Control]:
    sliders = [
        slider(*row, degrees=row[0] == "rotation") for row in zip(_TRAITS, THETA_NAMES, low, high, start, strict=True)
    ]
    shown = f"font ({len(names):,} of the {fonts:,} fonts)"
    return [*sliders, selector("letter", "letter", letters), selector("font", shown, names)]


def _check(pixels: np.ndarray, names: Sequence[str], letters: str) -> None:
    if pixels.shape[:2] != (len(names), len(letters)):
        raise ValueError(
            f"prototypes have shape {list(pixels.shape)}; allowed is [{len(names)}, {len(letters)}, H, W], "
            f"since there are {len(names)} font names and {len(letters)} letters."
        )
