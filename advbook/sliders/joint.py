"""A joint adversarial example growing, x' = clip(G(F(x) + a zeta*) + b delta*), and principal directions of codes.

The flow itself runs in the browser: G for the pictures, F for the likelihood of what they show. Measured with the flow
of FONTS, six images and two classifiers: a page of 0.36 MB, and a frame of 19 to 33 ms in Chromium on a busy machine
(the quicker quarter of frames), so that the likelihood follows every move. With weights of 8 bits, G would be off by up
to 22 grey levels; with 16 it is the flow that ships. Codes have 32: with 16, images of that flow are off by less than
half a level, but those of one that was hardly trained by ten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from traitlets import Bytes, Dict, Float, Int, List, Unicode, validate

from advbook.attacks.engine import ascend
from advbook.attacks.objectives import log_odds
from advbook.attacks.spaces import Joint, Latent
from advbook.attacks.steps import sign
from advbook.manifolds.flow import Flow
from advbook.sliders.base import (
    Control,
    Figure,
    answers,
    check_labels,
    check_shares,
    evaluated,
    script,
    selector,
    slider,
)
from advbook.sliders.pack import halved, pack_flow, pack_together, rounded
from advbook.sliders.still import draw

DIRECTIONS = 8
MOST = 2.0  # budgets that a slider reaches to, so that a reader sees what lies beyond 1
REACH = 3.0  # standard deviations along a direction, both ways
_STEPS = 20  # of the attack, each an eighth of both budgets
_LEVELS = 127  # of int8, on either side of zero
_NEAR = 1 / 255  # how far G(F(x)) may be from x
_COLUMNS = 5  # pictures in a row of the still
_RED, _BLUE = (0.7, 0.09, 0.17), (0.13, 0.4, 0.67)  # of differences, as in joint.js


class JointSlider(Figure):
    """Grows the joint adversarial example of an image, x' = clip(G(F(x) + a zeta*) + b delta*), and moves along
    principal directions of the codes, each with a classifier's answer and the flow's likelihood, live.

    Traits: example and network (counted from 0); a and b, each in [0, 2], where 1 is the attack's whole budget;
    direction (from 0), and t in [-3, 3], standard deviations along it.
    """

    _esm = script("joint.js")
    class_names = List(Unicode()).tag(sync=True)
    networks = List(Unicode()).tag(sync=True)
    classifiers = List(List(Dict())).tag(sync=True)
    classifiers_weights = Bytes().tag(sync=True)
    encoder = List(Dict()).tag(sync=True)
    decoder = List(Dict()).tag(sync=True)
    flow_weights = Bytes().tag(sync=True)
    image_shape = List(Int()).tag(sync=True)
    labels = List(Int()).tag(sync=True)
    codes = Bytes().tag(sync=True)
    zetas = Bytes().tag(sync=True)
    deltas = Bytes().tag(sync=True)
    eta = Float().tag(sync=True)
    eps = Float().tag(sync=True)
    mean = Bytes().tag(sync=True)
    directions = Bytes().tag(sync=True)
    quantiles = List(Float()).tag(sync=True)
    limits = List(Float()).tag(sync=True)
    gain = Int().tag(sync=True)
    directions_note = Unicode().tag(sync=True)
    example = Int().tag(sync=True)
    network = Int().tag(sync=True)
    a = Float().tag(sync=True)
    b = Float().tag(sync=True)
    direction = Int().tag(sync=True)
    t = Float().tag(sync=True)

    def __init__(
        self,
        flow: Flow,
        networks: Mapping[str, nn.Sequential],
        images: Tensor,
        labels: Sequence[int],
        class_names: Sequence[str],
        train: Tensor,
        *,
        eta: float,
        eps: float,
        quantiles: Sequence[float],
    ) -> None:
        """A figure over E test images; attacks every network on every image, which takes seconds.

        flow: for images [C, H, W] with C of 1 or 3; networks: by name, each [B, C, H, W] -> [B, K] logits, shipped,
        attacked and drawn with weights of 8 bits, the flow's couplings with 16; images: [E, C, H, W] in [0, 1]; labels:
        E true classes; class_names: K names; train: [N, C, H, W], training images, of whose codes the directions are;
        eta, eps: the budgets of zeta and delta, L-infinity; quantiles: bits per dimension that 5, 50 and 95 % of test
        images keep below. Raises ValueError if shapes or values do not fit or G(F(x)) is not x, TypeError if the
        browser cannot run a layer of a network.
        """
        x, shape = images.detach().cpu().float(), list(flow.shape)
        _check_images(x, train, shape, networks)
        check_labels(labels, len(x), len(class_names))
        _check_budgets(eta, eps, quantiles)
        self._flow = halved(flow)
        self._networks = [
            rounded(evaluated(network, shape, len(class_names), f"networks[{name!r}]"))
            for name, network in networks.items()
        ]
        with torch.no_grad():
            self._codes = self._flow.encode(x)
            _check_inverse(self._flow, self._codes, x)
            mean, moves, shares = _principal(self._flow.encode(train.detach().cpu().float()))
        self._mean, self._moves = mean.half().float(), moves.half().float()
        target = torch.tensor([int(label) for label in labels])
        levels = torch.stack([_attacked(net, self._flow, self._codes, target, eta, eps) for net in self._networks])
        self._zetas, self._deltas = levels[:, :, 0] * eta / _LEVELS, levels[:, :, 1] * eps / _LEVELS  # [N, E, D] each
        encoder, decoder, flow_weights = pack_flow(self._flow)
        layers, weights = pack_together(networks.values(), bits=8)
        names = [f"{i + 1}: {class_names[label]}" for i, label in enumerate(labels)]
        super().__init__(
            class_names=list(class_names),
            networks=list(networks),
            classifiers=layers,
            classifiers_weights=weights,
            encoder=encoder,
            decoder=decoder,
            flow_weights=flow_weights,
            image_shape=shape,
            labels=target.tolist(),
            codes=_bytes(self._codes, "<f4"),
            zetas=_bytes(levels[:, :, 0], "i1"),
            deltas=_bytes(levels[:, :, 1], "i1"),
            eta=float(eta),
            eps=float(eps),
            mean=_bytes(self._mean, "<f2"),
            directions=_bytes(self._moves, "<f2"),
            quantiles=[float(bits) for bits in quantiles],
            limits=self._limits(quantiles),
            gain=self._gain(),
            controls=_controls(names, list(networks), eta, eps, shares),
            note=_NOTE,
            directions_note=_DIRECTIONS_NOTE.format(count=len(train)),
            a=1.0,
            b=1.0,
            t=2.0,
        )

    _in_range = validate("example", "network", "a", "b", "direction", "t")(Figure._within)

    def images(self, a: float, b: float) -> Tensor:
        """x, its latent part G(F(x) + a zeta*), and x', of the image and the network shown: [3, C, H, W] in [0, 1]."""
        return self._grown(self.network, self.example, a, b)

    def along(self, t: Tensor) -> Tensor:
        """G(m + t s v) for the direction shown, m the mean code: [B] -> [B, C, H, W] in [0, 1]."""
        with torch.no_grad():
            return self._flow.decode(self._mean + t[:, None] * self._moves[self.direction])

    def still(self) -> bytes:
        """x, the parts of x' and their difference at a and b, and below, images along the direction shown."""
        network = self._networks[self.network]
        seen = self.images(self.a, self.b)
        pixels = self.images(0, self.b)[2:]
        x, latent, joint, alone = answers(network, torch.cat([seen, pixels]), self.class_names)
        bits = self._bits(seen)
        titles = [
            f"x: {x}",
            f"latent part: {latent}",
            f"pixel part: {alone}",
            f"x′: {joint}",
            f"x′ − x, × {self.gain}",
        ]
        row = torch.cat([_coloured(torch.cat([seen[:2], pixels, seen[2:]])), self._difference(seen)])
        ts = torch.linspace(-REACH, REACH, _COLUMNS)
        moved = self.along(ts)
        said = answers(network, moved, self.class_names)
        along = [f"t = {t:g}: {answer}" for t, answer in zip(ts.tolist(), said, strict=True)]
        names = [f"{bits[0]:.2f} → {bits[2]:.2f} bits", f"direction {self.direction + 1}"]
        return draw([row, moved], [titles, along], names)

    def alt(self) -> str:
        """What the still shows."""
        seen = self.images(self.a, self.b)
        (said,) = answers(self._networks[self.network], seen[2:], self.class_names)
        bits = self._bits(seen)
        return (
            f"A test image of the class {self.class_names[self.labels[self.example]]} and its joint adversarial "
            f"example for {self.networks[self.network]}, with {self.a:g} of the latent and {self.b:g} of the pixel "
            f"budget: the classifier says {said}, and bits per dimension go from {bits[0]:.2f} to {bits[2]:.2f}. "
            f"Below, images along principal direction {self.direction + 1} of the codes, with the classifier's answers."
        )

    @torch.no_grad()
    def _grown(self, network: int, example: int, a: float, b: float) -> Tensor:
        z = self._codes[example] + torch.tensor([[0.0], [a]]) * self._zetas[network, example]
        made = self._flow.decode(z)
        delta = self._deltas[network, example].view(self._flow.shape)
        return torch.cat([made, (made[1:] + b * delta).clamp(0, 1)])

    @torch.no_grad()
    def _bits(self, images: Tensor) -> list[float]:
        found: list[float] = self._flow.bits_per_dim(images).tolist()
        return found

    def _difference(self, seen: Tensor) -> Tensor:
        """x' - x in red and blue, the mean over channels: [3, C, H, W] -> [1, 3, H, W]."""
        v = (self.gain * (seen[2] - seen[0]).mean(0)).clamp(-1, 1)
        red, blue = (1 - torch.tensor(end)[:, None, None] for end in (_RED, _BLUE))
        return (1 - v.clamp_min(0) * red + v.clamp_max(0) * blue)[None]

    def _limits(self, quantiles: Sequence[float]) -> list[float]:
        """The ends of the scale of bits per dimension, so that it holds all that the sliders reach, or nearly."""
        steps = (0.0, 1.0, MOST)
        pairs = [(n, e) for n in range(len(self._networks)) for e in range(len(self._codes))]
        reached = [self._grown(n, e, a, b)[2:] for n, e in pairs for a in steps for b in steps]
        ends = self._mean + torch.tensor([-REACH, 0, REACH])[:, None, None] * self._moves  # [3, K, D]
        with torch.no_grad():
            bits = self._flow.bits_per_dim(torch.cat([*reached, self._flow.decode(ends.flatten(0, 1))]))
        found = [*bits[bits.isfinite()].tolist(), *quantiles]
        return [float(np.floor(2 * min(found)) / 2), float(np.ceil(2 * max(found)) / 2)]

    def _gain(self) -> int:
        """How many times differences are amplified: so that few are cut off where both budgets are spent."""
        pairs = [(n, e) for n in range(len(self._networks)) for e in range(len(self._codes))]
        seen = torch.stack([self._grown(n, e, 1, 1) for n, e in pairs])
        usual = torch.quantile((seen[:, 2] - seen[:, 0]).abs().flatten()[:1_000_000], 0.99)
        return max(1, int(1 / max(float(usual), 0.01)))


_NOTE = (
    "x′ = clip(G(F(x) + a ζ*) + b δ*), with ζ* and δ* found together by one attack on the chosen classifier. b = 0 "
    "shows the latent part alone, a = 0 the pixel part of the joint optimum, which a regular attack need not find. "
    "Beyond 1, the attack's budget is exceeded. Flow and classifiers run in your browser, the classifiers with weights "
    "of 8 bits."
)
_DIRECTIONS_NOTE = (
    "G(m + t s v): m is the mean code of {count:,} training images, v a principal direction of their codes, s their "
    "standard deviation along it."
)


def _attacked(network: nn.Module, flow: Flow, z: Tensor, y: Tensor, eta: float, eps: float) -> Tensor:
    """The joint attack from a zero start, its best iterate as whole levels of both budgets: [E, 2, D]."""
    unbounded = torch.full_like(z[0], torch.inf)
    space = Joint(Latent(z, flow.decode, (), -unbounded, unbounded, eta), eps, flow.shape)
    start = z.new_zeros(1, len(z), 2 * z.shape[1])
    found = ascend(network, space, y, start, objective=log_odds, rule=sign(2.5 / _STEPS), steps=_STEPS, stop="never")
    levels: Tensor = (found.u[0] * _LEVELS).round().clamp(-_LEVELS, _LEVELS)
    return levels.view(len(z), 2, -1)


def _principal(z: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """Of codes [N, D]: their mean, principal directions times the deviations along them [K, D], shares of variance."""
    mean = z.mean(0)
    _, values, v = torch.linalg.svd(z - mean, full_matrices=False)
    v = v[:DIRECTIONS] * v[:DIRECTIONS].gather(1, v[:DIRECTIONS].abs().argmax(1, keepdim=True)).sign()
    deviations = values[:DIRECTIONS] / len(z) ** 0.5
    return mean, v * deviations[:, None], (values.square() / values.square().sum())[:DIRECTIONS].tolist()


def _coloured(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)


def _bytes(tensor: Tensor, dtype: str) -> bytes:
    return tensor.numpy().astype(dtype).tobytes()


def _controls(
    names: Sequence[str], networks: Sequence[str], eta: float, eps: float, shares: Sequence[float]
) -> list[Control]:
    directions = [f"{i + 1} ({100 * share:.1f} % of the variance)" for i, share in enumerate(shares)]
    return [
        selector("example", "test image", list(names)),
        selector("network", "classifier", list(networks)),
        _budget("a", "a, share of the latent budget", eta, "η"),
        _budget("b", "b, share of the pixel budget", eps, "ε"),
        selector("direction", "direction v", directions),
        slider("t", "t, standard deviations along it", -REACH, REACH, 2),
    ]


def _budget(name: str, label: str, budget: float, symbol: str) -> Control:
    return {**slider(name, f"{label} {symbol} = {budget:g}", 0, MOST, 1), "unit": f" {symbol}", "mark": 1}


def _check_images(x: Tensor, train: Tensor, shape: list[int], networks: Mapping[str, nn.Sequential]) -> None:
    if shape[0] not in (1, 3):
        raise ValueError(f"flow is for images of {shape[0]} channels; allowed are 1 and 3.")
    if list(x.shape[1:]) != shape or not len(x):
        raise ValueError(
            f"images have shape {list(x.shape)}; allowed is [E, {', '.join(map(str, shape))}], E at least 1."
        )
    if list(train.shape[1:]) != shape or len(train) <= DIRECTIONS:
        raise ValueError(
            f"train has shape {list(train.shape)}; allowed is [N, {', '.join(map(str, shape))}], N above {DIRECTIONS}."
        )
    check_shares(images=x)
    if not networks:
        raise ValueError("networks is empty; allowed is at least one network, by name.")


def _check_budgets(eta: float, eps: float, quantiles: Sequence[float]) -> None:
    for name, budget in {"eta": eta, "eps": eps}.items():
        if not 0 < budget < np.inf:
            raise ValueError(f"{name} = {budget:g}; allowed is a positive finite number.")
    if len(quantiles) != 3 or not -np.inf < quantiles[0] < quantiles[1] < quantiles[2] < np.inf:
        raise ValueError(f"quantiles = {list(quantiles)}; allowed are three finite numbers, each above the one before.")


def _check_inverse(flow: Flow, z: Tensor, x: Tensor) -> None:
    off = (flow.decode(z) - x).abs().max()
    if not off <= _NEAR:  # written so that NaN is refused, too
        raise ValueError(f"flow gives back images that are off by {off:.3g}; allowed is {_NEAR:.3g}, a grey level.")
