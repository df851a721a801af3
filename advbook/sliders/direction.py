"""The step along an attack: x + t delta for several networks, each with its own delta, classified live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from traitlets import Bytes, Dict, Float, Int, List, Unicode, validate

from advbook.sliders.base import (
    Figure,
    check_labels,
    check_names,
    check_shares,
    evaluated,
    gathered,
    script,
    selector,
    slider,
)
from advbook.sliders.pack import pack_together
from advbook.sliders.still import draw

_NETWORKS = (2, 4)  # how many there may be
_SHOWN = 6  # pictures of each network in the still image


class AttackDirection(Figure):
    """Moves t in clip(x + t delta), with each network's own delta: pictures, answers and confidence over t, live.

    Traits: t (1 is the attack's end), and example (counted from 0).
    """

    _esm = script("direction.js")
    class_names = List(Unicode()).tag(sync=True)
    networks = List(Unicode()).tag(sync=True)
    classifiers = List(List(Dict())).tag(sync=True)
    classifiers_weights = Bytes().tag(sync=True)
    image_shape = List(Int()).tag(sync=True)
    images = Bytes().tag(sync=True)
    deltas = Bytes().tag(sync=True)
    labels = List(Int()).tag(sync=True)
    taus = List(Float()).tag(sync=True)
    t = Float().tag(sync=True)
    example = Int().tag(sync=True)

    def __init__(
        self,
        images: ArrayLike,
        labels: Sequence[int],
        class_names: Sequence[str],
        networks: Mapping[str, nn.Sequential],
        deltas: Mapping[str, ArrayLike],
        taus: Mapping[str, float],
        *,
        t_max: float = 2.0,
    ) -> None:
        """A figure over some examples and 2 to 4 networks, by name and in the order of `networks`.

        images: [E, 1, H, W] in [0, 1]; labels: E true classes; class_names: K names; networks: each [B, 1, H, W] ->
        [B, K] logits; deltas: each network's own perturbations [E, 1, H, W]; taus: each network's threshold in [0, 1],
        below which it rejects; t_max: the slider's end, at least 1. Raises ValueError if names, shapes or values do not
        fit, TypeError if the browser cannot run a layer of a network.
        """
        names = list(networks)
        x = np.asarray(images, "<f4")
        _check(x, names, taus, t_max)
        check_labels(labels, len(x), len(class_names))
        moves = gathered("deltas", deltas, names).astype("<f4")  # [N, E, 1, H, W]
        if moves.shape[1:] != x.shape or not np.isfinite(moves).all():
            raise ValueError(f"deltas have shape {list(moves.shape[1:])}; allowed: {list(x.shape)}, all finite.")
        shape = list(x.shape[1:])
        self._networks = [
            evaluated(network, shape, len(class_names), f"networks[{name!r}]") for name, network in networks.items()
        ]
        layers, weights = pack_together(networks.values())
        super().__init__(
            class_names=list(class_names),
            networks=names,
            classifiers=layers,
            classifiers_weights=weights,
            image_shape=shape,
            images=x.tobytes(),
            deltas=moves.tobytes(),
            labels=[int(label) for label in labels],
            taus=[float(taus[name]) for name in names],
            controls=[
                {**slider("t", "t, the step along each network's own δ", 0, float(t_max), 1), "wide": True},
                selector("example", "example", [f"{i + 1}: {class_names[k]}" for i, k in enumerate(labels)]),
            ],
            note="t = 0 is the image, t = 1 the end of the attack, which was run against each network by itself. A "
            "network rejects where its confidence is below its threshold τ. Pictures, answers and curves are computed "
            "in your browser.",
            t=1.0,
        )

    _in_range = validate("t", "example")(Figure._within)

    def still(self) -> bytes:
        """A row of x + t delta for each network, for some t, with its answer, or "rejected"."""
        ts = self._ts()
        rows, titles = [], []
        for n, (network, tau) in enumerate(zip(self._networks, self.taus, strict=True)):
            moved = self._moved(n, ts)
            said = _decided(network, moved, tau, self.class_names)
            rows.append(moved)
            titles.append([f"t = {t:.2f}: {answer}" for t, answer in zip(ts, said, strict=True)])
        return draw(rows, titles, self.networks)

    def alt(self) -> str:
        """What the still shows."""
        name = self.class_names[self.labels[self.example]]
        return (
            f"An image of class {name} moved along its adversarial perturbation, x + t delta for t from 0 to "
            f"{self._ts()[-1]:g}, in a row for each network ({', '.join(self.networks)}) and its own perturbation, "
            "with the network's answers; where the confidence is below the network's threshold, the word rejected."
        )

    def _ts(self) -> list[float]:
        return [float(t) for t in np.linspace(0, self.controls[0]["max"], _SHOWN)]

    def _moved(self, n: int, ts: Sequence[float]) -> Tensor:
        """The current example moved along network n's delta: [T, 1, H, W]."""
        x, deltas = (np.frombuffer(raw, "<f4").reshape(-1, *self.image_shape) for raw in (self.images, self.deltas))
        delta = torch.from_numpy(deltas[n * len(x) + self.example].copy())
        t = torch.tensor(ts)[:, None, None, None]
        return (torch.from_numpy(x[self.example].copy()) + t * delta).clamp(0, 1)


def _decided(network: nn.Module, images: Tensor, tau: float, names: Sequence[str]) -> list[str]:
    """ "B 97 %", or "rejected", for each image."""
    with torch.no_grad():
        confidence, label = network(images).softmax(1).max(1)
    return [
        f"{names[k]} {100 * p:.0f} %" if p >= tau else "rejected"
        for p, k in zip(confidence.tolist(), label.tolist(), strict=True)
    ]


def _check(x: NDArray[Any], names: Sequence[str], taus: Mapping[str, float], t_max: float) -> None:
    if x.ndim != 4 or x.shape[1] != 1 or len(x) == 0:
        raise ValueError(f"images have shape {list(x.shape)}; allowed is [E, 1, H, W] with E at least 1.")
    check_shares(images=x)
    fewest, most = _NETWORKS
    if not fewest <= len(names) <= most:
        raise ValueError(f"networks has the names {list(names)}; allowed are {fewest} to {most} networks.")
    check_names("taus", taus, names)
    check_shares(taus=[float(taus[name]) for name in names])
    if not 1 <= t_max < np.inf:
        raise ValueError(f"t_max = {t_max}; allowed is a finite number of at least 1, where the attack ends.")
