"""What the interactive figures share: joined JS, controls as traits, and a still image for print."""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Sequence
from importlib.resources import files
from typing import Any, TypedDict

import anywidget
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from traitlets import Bytes, Dict, List, TraitError, Unicode

from advbook.fonts import THETA_NAMES
from advbook.networks import folded


class Control(TypedDict, total=False):
    """One slider or selector, as dom.js draws it: a trait's name, its label and its start value.

    A slider has `min`, `max`, `step`, `digits` and `unit` as the reader sees them, and `per`: how many of the
    reader's units are one unit of the trait; `mark` is where a tick with its value stands. A selector has `options`;
    its trait counts them from 0. A control that is `wide` has a line of its own.
    """

    name: str
    label: str
    start: float
    min: float
    max: float
    step: float
    per: float
    unit: str
    digits: int
    mark: float
    options: list[str]
    wide: bool


def slider(name: str, label: str, low: float, high: float, start: float, *, degrees: bool = False) -> Control:
    """A slider over [low, high] in about a hundred round steps; the trait of one in degrees is in radians."""
    per = 180 / math.pi if degrees else 1.0
    shown_low, shown_high = round(low * per, 6), round(high * per, 6)
    step = _round_step((shown_high - shown_low) / 100)
    digits = max(0 if degrees else 2, -math.floor(math.log10(step)))
    return Control(
        name=name,
        label=label,
        start=start,
        min=shown_low,
        max=shown_high,
        step=step,
        per=per,
        unit="°" if degrees else "",
        digits=digits,
    )


def selector(name: str, label: str, options: list[str]) -> Control:
    """A selector that starts with its first option."""
    return Control(name=name, label=label, start=0, options=options)


def path_steps(last: int) -> Control:
    """A slider over the steps 0 to `last` of an attack's path, on a line of its own."""
    return Control(
        name="step",
        label="step of the attack's path",
        start=0,
        min=0,
        max=last,
        step=1,
        per=1,
        unit=f" of {last}",
        digits=0,
        wide=True,
    )


def script(name: str) -> str:
    """The JS of a figure in one text: it is loaded from a blob, where imports cannot work."""
    return "\n".join(source(part) for part in ("interpreter.js", "dom.js", name))


def source(name: str) -> str:
    """The text of one of the package's JS or CSS files."""
    return files("advbook.sliders").joinpath(name).read_text("utf-8")


class Figure(anywidget.AnyWidget):
    """A figure whose controls are traits: a move sets them, and setting them moves the figure.

    A value outside its control's range raises TraitError.
    """

    _css = source("sliders.css")
    controls = List(Dict()).tag(sync=True)
    note = Unicode().tag(sync=True)
    _by_browser = False

    def still(self) -> bytes:
        """The figure as a PNG for print, LaTeX and viewers without JavaScript."""
        raise NotImplementedError

    def alt(self) -> str:
        """The still image in a sentence."""
        raise NotImplementedError

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Takes what the browser sends as it stands: there a move of one control has moved the rest already."""
        self._by_browser = True
        try:
            super().set_state(sync_data)
        finally:
            self._by_browser = False

    def _within(self, proposal: Any) -> Any:
        """A trait's new value, held to its control's range; rounding at the ends is forgiven."""
        name, value = proposal["trait"].name, proposal["value"]
        control = next((control for control in self.controls if control["name"] == name), None)
        if control is None:
            raise TraitError(f"{name} = {value}: this figure has no such control; it has {self._names()}.")
        low, high = _bounds(control)
        if not low - 1e-6 <= value <= high + 1e-6:
            raise TraitError(f"{name} = {value} is out of range; allowed is {low:g} to {high:g}.")
        return min(max(value, low), high)

    def _names(self) -> str:
        return ", ".join(control["name"] for control in self.controls)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        shown = super()._repr_mimebundle_(**kwargs)
        assert shown is not None  # AnyWidget has a view, always
        data, metadata = shown
        png = base64.b64encode(self.still()).decode("ascii")
        return {**data, "text/plain": self.alt(), "image/png": png}, metadata


class ClassifierFigure(Figure):
    """A figure with one classifier."""

    class_names = List(Unicode()).tag(sync=True)
    classifier = List(Dict()).tag(sync=True)
    classifier_weights = Bytes().tag(sync=True)


def evaluated(network: nn.Sequential, shape: list[int], classes: int, name: str = "classifier") -> nn.Sequential:
    """The network in evaluation mode, known to give `classes` logits for images [1, H, W] of this shape.

    Raises ValueError, which calls it `name`, if it does not.
    """
    fixed = folded(network)
    try:
        given = list(fixed(torch.zeros(1, *shape)).shape)
    except RuntimeError as error:
        raise ValueError(f"{name} does not take images of shape {shape}: {error}") from error
    if given != [1, classes]:
        raise ValueError(f"{name} gives {given} for one image; allowed is [1, {classes}], a logit a class.")
    return fixed


def check_thetas(**vectors: Sequence[float]) -> None:
    """Raises ValueError for an argument, given by its name, that has not one number for each entry of theta."""
    for name, vector in vectors.items():
        if len(vector) != len(THETA_NAMES):
            raise ValueError(f"{name} has {len(vector)} numbers; allowed are {len(THETA_NAMES)}, as theta has.")


def check_labels(labels: Sequence[int], count: int, classes: int) -> None:
    """Raises ValueError unless there are `count` labels, each from 0 to `classes` - 1."""
    if len(labels) != count or not all(0 <= label < classes for label in labels):
        raise ValueError(f"labels = {list(labels)}; allowed: {count} classes from 0 to {classes - 1}.")


def check_names(name: str, given: Collection[str], allowed: Collection[str]) -> None:
    """Raises ValueError if the mapping called `name` has other keys than those allowed, or if there are none."""
    if not allowed or set(given) != set(allowed):
        wanted = f"{list(allowed)}, in any order" if allowed else "at least one name"
        raise ValueError(f"{name} has the names {list(given)}; allowed: {wanted}.")


def check_shares(**arrays: Any) -> None:
    """Raises ValueError for an argument, given by its name, with a number outside [0, 1]."""
    for name, array in arrays.items():
        values = np.asarray(array)
        outside = values[~((values >= 0) & (values <= 1))]  # written so that NaN is refused, too
        if outside.size:
            raise ValueError(f"{name} has {outside.flat[0]:g}; allowed are numbers from 0 to 1.")


def gathered(name: str, given: Any, *levels: Sequence[str]) -> NDArray[Any]:
    """Arrays in nested mappings, stacked in the order of the names of each level: {a: {b: [...]}} -> [A, B, ...].

    Raises ValueError if names or shapes do not fit.
    """
    if not levels:
        return np.asarray(given)
    check_names(name, given, levels[0])
    parts = [gathered(f"{name}[{key!r}]", given[key], *levels[1:]) for key in levels[0]]
    for key, part in zip(levels[0], parts, strict=True):
        if part.shape != parts[0].shape:
            raise ValueError(
                f"{name}[{key!r}] has shape {list(part.shape)}; allowed is {list(parts[0].shape)}, as the first has."
            )
    return np.stack(parts)


def answers(network: nn.Module, images: Tensor, names: list[str]) -> list[str]:
    """What the classifier says of each image, for a still: [B, 1, H, W] -> "B 97 %" and so on."""
    with torch.no_grad():
        confidence, label = network(images).softmax(1).max(1)
    return [f"{names[k]} {100 * p:.0f} %" for p, k in zip(confidence.tolist(), label.tolist(), strict=True)]


def _bounds(control: Control | dict[str, Any]) -> tuple[float, float]:
    if "options" in control:
        return 0, len(control["options"]) - 1
    return control["min"] / control["per"], control["max"] / control["per"]


def _round_step(width: float) -> float:
    """1, 2 or 5 times a power of ten, at least `width`."""
    power = 10.0 ** math.floor(math.log10(width))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= width * (1 - 1e-9))
    return round(step, 9)
