"""The on-manifold attack: the reader's own move of theta, and the attack's path, decoded and classified live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from traitlets import Bytes, Dict, Float, Int, List, observe, validate

from advbook.fonts import THETA_HIGH, THETA_LOW, THETA_NAMES, transform
from advbook.sliders.base import (
    ClassifierFigure,
    Control,
    answers,
    check_labels,
    check_thetas,
    evaluated,
    path_steps,
    script,
    selector,
    slider,
)
from advbook.sliders.pack import pack, pack_fonts
from advbook.sliders.still import draw

_MOVES = tuple(f"zeta_{name.replace(' ', '_')}" for name in THETA_NAMES)
_ROUNDING = 1e-6  # how far float32 may lie outside a bound
_SHOWN = 6  # steps of the path in the still image, at most


class OnManifoldAttack(ClassifierFigure):
    """Moves theta by zeta, by hand or along an attack's path, and shows dec(theta + zeta) with the answer, live.

    Traits: example (counted from 0), step of the path, and zeta_shift_x, zeta_shift_y, zeta_shear_x, zeta_shear_y,
    zeta_scale, zeta_rotation (in theta's own units, rotation in radians). A new step sets zeta to the path's; a new
    example sets step and zeta to 0.
    """

    _esm = script("path.js")
    decoder = List(Dict()).tag(sync=True)
    decoder_weights = Bytes().tag(sync=True)
    theta = Bytes().tag(sync=True)
    path = Bytes().tag(sync=True)
    labels = List(Int()).tag(sync=True)
    low = List(Float()).tag(sync=True)
    high = List(Float()).tag(sync=True)
    eta = List(Float()).tag(sync=True)
    example = Int().tag(sync=True)
    step = Int().tag(sync=True)
    zeta_shift_x = Float().tag(sync=True)
    zeta_shift_y = Float().tag(sync=True)
    zeta_shear_x = Float().tag(sync=True)
    zeta_shear_y = Float().tag(sync=True)
    zeta_scale = Float().tag(sync=True)
    zeta_rotation = Float().tag(sync=True)

    def __init__(
        self,
        prototypes: ArrayLike,
        theta: ArrayLike,
        labels: Sequence[int],
        class_names: Sequence[str],
        classifier: nn.Sequential,
        path: ArrayLike,
        *,
        eta: Sequence[float],
        low: Sequence[float] = THETA_LOW,
        high: Sequence[float] = THETA_HIGH,
    ) -> None:
        """A figure over some examples.

        prototypes: uint8 [E, H, W], each example's upright letter, 255 is 1; theta: [E, 6], within the box; labels: E
        true classes; class_names: K names; classifier: [B, 1, H, W] -> [B, K] logits; path: [E, T + 1, 6], the move
        zeta after each of T steps; eta: 6 numbers, how far each entry of zeta may go; low, high: theta's box, 6
        numbers each, to which theta + zeta is clipped. Raises ValueError if shapes or values do not fit, TypeError if
        the browser cannot run a layer of the classifier.
        """
        eta, low, high = ([float(v) for v in vector] for vector in (eta, low, high))
        pixels, thetas, zetas = np.asarray(prototypes), np.asarray(theta, "<f4"), np.asarray(path, "<f4")
        _check_box(eta, low, high)
        _check_shapes(pixels, thetas, zetas)
        check_labels(labels, len(pixels), len(class_names))
        _check_values(thetas, zetas, eta, low, high)
        self._letters = torch.from_numpy(pixels.astype(np.float32) / 255)[:, None]  # [E, 1, H, W]
        self._path = np.clip(zetas, -np.asarray(eta, "<f4"), np.asarray(eta, "<f4"))
        self._network = evaluated(classifier, [1, *pixels.shape[1:]], len(class_names))
        decoder, decoder_weights = pack_fonts(pixels[:, None])
        layers, weights = pack(classifier)
        super().__init__(
            decoder=decoder,
            decoder_weights=decoder_weights,
            classifier=layers,
            classifier_weights=weights,
            class_names=list(class_names),
            labels=[int(label) for label in labels],
            theta=thetas.tobytes(),
            path=self._path.tobytes(),
            low=low,
            high=high,
            eta=eta,
            controls=_controls([class_names[label] for label in labels], eta, zetas.shape[1] - 1),
            note="Try it by hand first: move the six sliders until the classifier errs. Then let the last slider take "
            "you along the attack's path; go on by hand from any step. θ + ζ stays within the limits of the data, so "
            "near a limit a slider may move nothing. All is computed in your browser.",
        )

    _in_range = validate(*_MOVES, "example", "step")(ClassifierFigure._within)

    @observe("example", "step")
    def _follow(self, change: dict[str, Any]) -> None:
        if self._by_browser:
            return
        with self.hold_sync():
            if change["name"] == "example":
                self.step = 0
            zeta = self._path[self.example, self.step] if change["name"] == "step" else np.zeros(len(_MOVES))
            for name, value in zip(_MOVES, zeta.tolist(), strict=True):
                setattr(self, name, value)

    def still(self) -> bytes:
        """The current example before the attack and at some steps of its path, with the classifier's answers."""
        shown = self._shown()
        zeta = np.concatenate([np.zeros((1, len(_MOVES)), np.float32), self._path[self.example, shown]])
        images = self._moved(torch.from_numpy(zeta))
        names = ["original", *(f"step {step}" for step in shown)]
        said = answers(self._network, images, self.class_names)
        return draw([images], [[f"{a}: {b}" for a, b in zip(names, said, strict=True)]], ["on the manifold"])

    def alt(self) -> str:
        """What the still shows."""
        with torch.no_grad():
            found = self._network(self._moved(torch.from_numpy(self._path[self.example]))).argmax(1)
        label = self.labels[self.example]
        errs = (found != label).nonzero().flatten().tolist()
        outcome = f"errs first at step {errs[0]}" if errs else "never errs"
        return (
            f"A letter {self.class_names[label]}, original and moved along the path of an on-manifold attack (steps "
            f"{', '.join(map(str, self._shown()))}), with the classifier's answers. The classifier {outcome}."
        )

    def _shown(self) -> list[int]:
        last = self._path.shape[1] - 1
        return [int(step) for step in np.linspace(0, last, min(_SHOWN, last + 1)).round()]

    def _moved(self, zeta: Tensor) -> Tensor:
        """The current example moved: [T, 6] -> [T, 1, H, W]."""
        theta = torch.from_numpy(np.frombuffer(self.theta, "<f4").reshape(-1, len(_MOVES))[self.example].copy())
        code = (theta + zeta).clamp(torch.tensor(self.low), torch.tensor(self.high))
        return transform(self._letters[self.example].expand(len(zeta), -1, -1, -1), code)


def _controls(names: Sequence[str], eta: Sequence[float], last: int) -> list[Control]:
    example = selector("example", "example", [f"{i + 1}: {name}" for i, name in enumerate(names)])
    moves = [_move(*row) for row in zip(_MOVES, THETA_NAMES, eta, strict=True)]
    return [Control(**example, wide=True), *moves, path_steps(last)]


def _move(name: str, latent: str, eta: float) -> Control:
    """A slider over [-eta, eta] whose stops are no farther apart than round ones, and meet 0 and both ends."""
    control = slider(name, f"ζ of {latent}", -eta, eta, 0, degrees=latent == "rotation")
    half = control["max"] / np.ceil(control["max"] / control["step"] - 1e-9)
    return {**control, "step": float(np.floor(half * 1e9) / 1e9)}  # rounded up, the last stop would be lost


def _check_box(eta: Sequence[float], low: Sequence[float], high: Sequence[float]) -> None:
    check_thetas(eta=eta, low=low, high=high)
    if not all(0 < v < np.inf for v in eta):
        raise ValueError(f"eta = {list(eta)}; allowed are positive finite numbers.")
    if not all(-np.inf < a < b < np.inf for a, b in zip(low, high, strict=True)):
        raise ValueError(f"low = {list(low)}, high = {list(high)}; allowed is each low below its high, all finite.")


def _check_shapes(pixels: np.ndarray, theta: np.ndarray, path: np.ndarray) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or len(pixels) == 0:
        raise ValueError(
            f"prototypes are {pixels.dtype} {list(pixels.shape)}; allowed: uint8 [E, H, W] with E at least 1."
        )
    count, latents = len(pixels), len(_MOVES)
    if theta.shape != (count, latents):
        raise ValueError(f"theta has shape {list(theta.shape)}; allowed: {[count, latents]}, a row a prototype.")
    if path.ndim != 3 or path.shape[::2] != (count, latents) or path.shape[1] < 2:
        raise ValueError(
            f"path has shape {list(path.shape)}; allowed: [{count}, T + 1, {latents}] with T at least 1, since there "
            f"are {count} prototypes."
        )


def _check_values(
    theta: NDArray[Any], path: NDArray[Any], eta: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> None:
    bounds = {"theta": (theta, np.asarray(low), np.asarray(high)), "path": (path, -np.asarray(eta), np.asarray(eta))}
    for name, (values, lowest, highest) in bounds.items():
        # Written so that NaN is refused, too.
        outside = np.argwhere(~((values >= lowest - _ROUNDING) & (values <= highest + _ROUNDING)))
        if len(outside):
            *_, i = place = tuple(outside[0])
            raise ValueError(
                f"{name} has {values[place]:g} for {THETA_NAMES[i]}; allowed is {lowest[i]:g} to {highest[i]:g}."
            )
