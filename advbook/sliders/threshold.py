"""The threshold tau on the confidence: what several trained networks accept, and the errors that are left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from traitlets import Bytes, Float, Int, List, Unicode, observe, validate

from advbook.sliders.base import Control, Figure, check_names, check_shares, gathered, script, selector
from advbook.sliders.still import draw

_SHOWN = 8  # examples in the still image, at most


class ThresholdSlider(Figure):
    """Moves tau, the confidence below which an image is rejected: Err(tau), RErr(tau) and who crosses, live.

    Traits: network and threat (counted from 0), and tau. A new network sets tau to its own threshold at 99 % true
    positive rate.
    """

    _esm = script("threshold.js")
    networks = List(Unicode()).tag(sync=True)
    threats = List(Unicode()).tag(sync=True)
    clean_confidence = Bytes().tag(sync=True)
    clean_correct = Bytes().tag(sync=True)
    attacked_confidence = Bytes().tag(sync=True)
    attacked_wrong = Bytes().tag(sync=True)
    tau99 = List(Float()).tag(sync=True)
    image_shape = List(Int()).tag(sync=True)
    clean_images = Bytes().tag(sync=True)
    attacked_images = Bytes().tag(sync=True)
    network = Int().tag(sync=True)
    threat = Int().tag(sync=True)
    tau = Float().tag(sync=True)

    def __init__(
        self,
        clean_confidence: Mapping[str, ArrayLike],
        clean_correct: Mapping[str, ArrayLike],
        attacked_confidence: Mapping[str, Mapping[str, ArrayLike]],
        attacked_wrong: Mapping[str, Mapping[str, ArrayLike]],
        tau99: Mapping[str, float],
        clean_images: ArrayLike,
        attacked_images: Mapping[str, Mapping[str, ArrayLike]],
    ) -> None:
        """A figure over some networks and threats, by name and in the order of `attacked_confidence`.

        clean_confidence: {network: [B]}, in [0, 1]; clean_correct: {network: bool [B]}, whether the class is right;
        attacked_confidence: {network: {threat: [B]}}, of the same images attacked; attacked_wrong: {network: {threat:
        bool [B]}}; tau99: {network: threshold in [0, 1]}, where tau starts; clean_images: uint8 [T, 1, H, W], the first
        T of the B images, 255 is 1; attacked_images: {network: {threat: uint8 [T, 1, H, W]}}. Raises ValueError if
        names, shapes or values do not fit.
        """
        networks = list(attacked_confidence)
        threats = list(next(iter(attacked_confidence.values()), {}))
        confidence = gathered("clean_confidence", clean_confidence, networks)  # [M, B]
        attacked = gathered("attacked_confidence", attacked_confidence, networks, threats)  # [M, S, B], S threats
        correct = gathered("clean_correct", clean_correct, networks)
        wrong = gathered("attacked_wrong", attacked_wrong, networks, threats)
        _check_confidences(confidence, attacked)
        _check_booleans(clean_correct=(correct, confidence.shape), attacked_wrong=(wrong, attacked.shape))
        check_names("tau99", tau99, networks)
        taus = [float(tau99[name]) for name in networks]
        check_shares(tau99=taus)
        images = np.asarray(clean_images)
        moved = gathered("attacked_images", attacked_images, networks, threats)  # [M, S, T, 1, H, W]
        _check_images(images, moved, confidence.shape[1])
        self._images = (images, moved)
        self._confidence = (confidence.astype("<f4"), attacked.astype("<f4"))
        self._right = (correct, ~wrong)
        super().__init__(
            networks=networks,
            threats=threats,
            clean_confidence=self._confidence[0].tobytes(),
            clean_correct=correct.astype("u1").tobytes(),
            attacked_confidence=self._confidence[1].tobytes(),
            attacked_wrong=wrong.astype("u1").tobytes(),
            tau99=taus,
            image_shape=list(images.shape[1:]),
            clean_images=images.tobytes(),
            attacked_images=moved.tobytes(),
            controls=[
                selector("network", "network", networks),
                selector("threat", "threat", threats),
                _tau_slider(taus[0]),
            ],
            note=_note(confidence.shape[1]),
            tau=taus[0],
        )

    _in_range = validate("network", "threat", "tau")(Figure._within)

    @observe("network")
    def _follow(self, change: dict[str, Any]) -> None:
        if not self._by_browser:
            self.tau = self.tau99[change["new"]]

    def still(self) -> bytes:
        """The first images, clean and attacked, each with right or wrong and confidence, or "rejected" below tau."""
        shown = min(_SHOWN, len(self._images[0]))
        clean, attacked = self._images[0][:shown], self._images[1][self.network, self.threat, :shown]
        rows = [torch.from_numpy(images / np.float32(255)) for images in (clean, attacked)]
        titles = [[self._verdict(which, i) for i in range(shown)] for which in (0, 1)]
        return draw(rows, titles, ["clean", "attacked"])

    def alt(self) -> str:
        """What the still shows."""
        shown = min(_SHOWN, len(self._images[0]))
        clean, attacked = (sum(not self._accepts(which, i) for i in range(shown)) for which in (0, 1))
        return (
            f"{shown} images, clean and attacked ({self.threats[self.threat]}), each with whether the class of "
            f"{self.networks[self.network]} is right and its confidence. At the threshold {self.tau:.3f} it rejects "
            f"{clean} of the clean and {attacked} of the attacked ones."
        )

    def _place(self, which: int, i: int) -> tuple[int, ...]:
        """Where image i stands among the clean (which = 0) or attacked ones (1)."""
        return (self.network, self.threat, i) if which else (self.network, i)

    def _accepts(self, which: int, i: int) -> bool:
        # In float32, as in the browser: there a threshold that is some image's confidence accepts that image.
        return bool(self._confidence[which][self._place(which, i)] >= np.float32(self.tau))

    def _verdict(self, which: int, i: int) -> str:
        place = self._place(which, i)
        if not self._accepts(which, i):
            return "rejected"
        return f"{'right' if self._right[which][place] else 'wrong'}, {100 * self._confidence[which][place]:.0f} %"


def _note(count: int) -> str:
    return (
        f"A network rejects where its confidence is below τ. Err and RErr count what is accepted, of {count:,} images; "
        "RErr counts an image as wrong where it, or its attacked one, is accepted with a wrong class. An adversarial "
        "example is an attacked image whose class was right before the attack and is wrong after it. A new network "
        "sets τ to its own threshold at 99 % true positive rate (TPR): it accepts 99 % of the held-out clean images "
        "whose class it has right."
    )


def _tau_slider(start: float) -> Control:
    return Control(
        name="tau",
        label="τ, the confidence from which an image is accepted",
        start=start,
        min=0,
        max=1,
        step=0.001,
        per=1,
        unit="",
        digits=3,
        wide=True,
    )


def _check_confidences(clean: NDArray[Any], attacked: NDArray[Any]) -> None:
    if clean.ndim != 2 or clean.shape[1] == 0:
        raise ValueError(f"clean_confidence has arrays of shape {list(clean.shape[1:])}; allowed is [B], B at least 1.")
    if attacked.shape[2:] != clean.shape[1:]:
        raise ValueError(
            f"attacked_confidence has arrays of shape {list(attacked.shape[2:])}; allowed is {list(clean.shape[1:])}, "
            "as in clean_confidence."
        )
    check_shares(clean_confidence=clean, attacked_confidence=attacked)


def _check_booleans(**arrays: tuple[NDArray[Any], tuple[int, ...]]) -> None:
    for name, (array, shape) in arrays.items():
        if array.dtype != np.bool_ or array.shape != shape:
            raise ValueError(
                f"{name} has arrays of {array.dtype} {list(array.shape)}, stacked; allowed: bool {list(shape)}, as the "
                "confidences have."
            )


def _check_images(clean: NDArray[Any], attacked: NDArray[Any], count: int) -> None:
    if clean.dtype != np.uint8 or clean.ndim != 4 or clean.shape[1] != 1 or not 1 <= len(clean) <= count:
        raise ValueError(
            f"clean_images are {clean.dtype} {list(clean.shape)}; allowed: uint8 [T, 1, H, W] with T from 1 to {count}."
        )
    if attacked.dtype != np.uint8 or attacked.shape[2:] != clean.shape:
        raise ValueError(
            f"attacked_images are {attacked.dtype} {list(attacked.shape[2:])}; allowed: uint8 {list(clean.shape)}, as "
            "clean_images."
        )
