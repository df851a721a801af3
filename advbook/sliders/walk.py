"""The walk off the manifold: x + t delta with the answer live, distance and projection precomputed over t."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from traitlets import Bytes, Float, Int, List, validate

from advbook.sliders.base import ClassifierFigure, answers, check_labels, evaluated, script, selector, slider
from advbook.sliders.pack import pack
from advbook.sliders.still import draw


class OffManifoldWalk(ClassifierFigure):
    """Moves t in x + t delta: picture and answer live, the way back to the manifold precomputed.

    Traits: t, and example (counted from 0).
    """

    _esm = script("walk.js")
    image_shape = List(Int()).tag(sync=True)
    images = Bytes().tag(sync=True)
    deltas = Bytes().tag(sync=True)
    projections = Bytes().tag(sync=True)
    labels = List(Int()).tag(sync=True)
    ts = List(Float()).tag(sync=True)
    distances = List(List(Float())).tag(sync=True)
    t = Float().tag(sync=True)
    example = Int().tag(sync=True)

    def __init__(
        self,
        x: ArrayLike,
        delta: ArrayLike,
        labels: Sequence[int],
        class_names: Sequence[str],
        classifier: nn.Sequential,
        ts: Sequence[float],
        distance: ArrayLike,
        projection: ArrayLike,
        *,
        start: float = 0.0,
    ) -> None:
        """A figure over some examples.

        x, delta: [B, H, W], images in [0, 1] and their perturbations; labels: B true classes; class_names: K
        names; classifier: [B, 1, H, W] -> [B, K] logits; ts: T growing values; distance: [B, T], of x + t
        delta to the manifold; projection: uint8 [B, T, H, W], the nearest points, 255 is 1; start: the first
        t. Raises ValueError if shapes or types do not fit, TraitError if start is not within ts, TypeError if
        the browser cannot run a layer of the classifier.
        """
        images, deltas = np.asarray(x, "<f4"), np.asarray(delta, "<f4")
        distances, projections = np.asarray(distance, np.float64), np.asarray(projection)
        _check(images, deltas, labels, len(class_names), ts, distances, projections)
        shape = [1, *images.shape[1:]]
        self._network = evaluated(classifier, shape, len(class_names))
        layers, weights = pack(classifier)
        super().__init__(
            classifier=layers,
            classifier_weights=weights,
            class_names=list(class_names),
            image_shape=shape,
            images=images.tobytes(),
            deltas=deltas.tobytes(),
            projections=projections.tobytes(),
            labels=[int(label) for label in labels],
            ts=[float(t) for t in ts],
            distances=distances.round(4).tolist(),
            controls=[
                slider("t", "t, the step along the perturbation δ", ts[0], ts[-1], start),
                selector("example", "example", [f"{i + 1}: {class_names[k]}" for i, k in enumerate(labels)]),
            ],
            note="t = 0 is the image, t = 1 the adversarial example. Left picture and answer are "
            "computed in your browser; projection and distance were computed before, at the marked t.",
            t=start,
        )

    _in_range = validate("t", "example")(ClassifierFigure._within)

    def still(self) -> bytes:
        """x + t delta for some t with the classifier's answers, below each its projection and distance."""
        shown = np.linspace(0, len(self.ts) - 1, min(7, len(self.ts))).round().astype(int)
        x, delta = (torch.from_numpy(self._of(raw, "<f4", 1)) for raw in (self.images, self.deltas))
        t = torch.tensor([self.ts[i] for i in shown], dtype=torch.float32)
        moved = (x + t[:, None, None, None] * delta).clamp(0, 1)  # [T, 1, H, W]
        back = torch.from_numpy(self._of(self.projections, "u1", len(self.ts))[shown] / np.float32(255))
        said = answers(self._network, moved, self.class_names)
        titles = [
            [f"t = {self.ts[i]:.2f}: {answer}" for i, answer in zip(shown, said, strict=True)],
            [f"distance {self.distances[self.example][i]:.2f}" for i in shown],
        ]
        return draw([moved, back], titles, ["x + t δ", "projection"])

    def alt(self) -> str:
        """What the still shows."""
        name = self.class_names[self.labels[self.example]]
        return (
            f"An image of class {name} moved along its adversarial perturbation, x + t delta for t from "
            f"{self.ts[0]:g} to {self.ts[-1]:g}, with the classifier's answers; below, the projections onto "
            "the manifold and the distances."
        )

    def _of(self, raw: bytes, dtype: str, count: int) -> NDArray[Any]:
        """The current example's share of packed pixels: [count, 1, H, W]."""
        pixels = np.frombuffer(raw, dtype).reshape(-1, count, *self.image_shape)
        return np.array(pixels[self.example])


def _check(
    images: np.ndarray,
    deltas: np.ndarray,
    labels: Sequence[int],
    classes: int,
    ts: Sequence[float],
    distances: np.ndarray,
    projections: np.ndarray,
) -> None:
    if images.ndim != 3 or len(images) == 0:
        raise ValueError(f"x has shape {list(images.shape)}; allowed is [B, H, W] with B at least 1.")
    check_labels(labels, len(images), classes)
    if len(ts) < 2 or any(b <= a for a, b in pairwise(ts)):
        raise ValueError(f"ts = {list(ts)}; allowed are at least 2 values, each above the one before.")
    if projections.dtype != np.uint8:
        raise ValueError(f"projection has type {projections.dtype}; allowed is uint8, where 255 is 1.")
    count, height, width = images.shape
    steps = (count, len(ts))
    wanted = {"delta": (deltas, images.shape), "distance": (distances, steps)}
    for name, (array, shape) in {**wanted, "projection": (projections, (*steps, height, width))}.items():
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"{name} has shape {list(array.shape)}; allowed: {list(shape)}, all finite.")
