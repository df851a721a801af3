"""A normalizing flow, z = F(x) with x = G(z) = F^-1(z) exactly: a multi-scale Glow on images.

Image -> logits of its values, then on each scale: fold blocks of 2 x 2 pixels into channels, a few steps of (ActNorm
and invertible 1 x 1 convolution, affine coupling), and half of the channels leave for z. What a flow has and a decoder
has not: every image has a code, and log p(x) = log N(F(x); 0, I) + log |det dF/dx|. Source: Kingma and Dhariwal, 2018
(Glow); Dinh et al., 2017 (multi-scale, logits). How IJSAT's flow is built is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import conv2d, logsigmoid, pixel_shuffle, pixel_unshuffle
from tqdm import tqdm

LEVELS = 256  # grey values of an image, which count as intervals of width 1 / 255
MARGIN = 0.05  # values are squeezed into (MARGIN, 1 - MARGIN) before their logit
REACH = 1.5  # a coupling scales by at most e^REACH

Pair = tuple[Tensor, Tensor]  # what a layer gives, and log |det| of its Jacobian, [B]


class Logit(nn.Module):
    """Image values [0, 1] as logits, element by element, so that steps need not know of the box."""

    def forward(self, x: Tensor) -> Pair:
        """l = logit(s), s = MARGIN + (1 - 2 MARGIN) (255 x + 1/2) / 256."""
        width = (1 - 2 * MARGIN) * (LEVELS - 1) / LEVELS
        s = MARGIN + (1 - 2 * MARGIN) * (x * (LEVELS - 1) + 0.5) / LEVELS
        logits = s.log() - (-s).log1p()
        log_det = math.log(width) - logsigmoid(logits) - logsigmoid(-logits)
        return logits, log_det.flatten(1).sum(1)

    def inverse(self, logits: Tensor) -> Tensor:
        """x, which may lie a little outside of [0, 1]."""
        return (((logits.sigmoid() - MARGIN) / (1 - 2 * MARGIN)) * LEVELS - 0.5) / (LEVELS - 1)


class Mix(nn.Module):
    """ActNorm and an invertible 1 x 1 convolution: h -> W exp(s) (h + b) in the channels of every pixel."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, generator=generator))[0]
        self.rotation = nn.Parameter(rotation)
        self.log_scale, self.shift = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, h: Tensor) -> Pair:
        """[B, C, H, W] -> the same."""
        log_det = torch.linalg.slogdet(self.rotation)[1] + self.log_scale.sum()
        with _precise(h):
            matrix = self.rotation * self.log_scale.exp()
            mixed = conv2d(h, matrix[:, :, None, None], matrix @ self.shift)
        return mixed, (h.shape[2] * h.shape[3] * log_det).expand(len(h))

    def inverse(self, h: Tensor) -> Tensor:
        """The inverse matrix is found without asking the device whether there is one, as a CUDA graph needs it."""
        with _precise(h):
            matrix = torch.linalg.inv_ex(self.rotation * self.log_scale.exp())[0]
            return conv2d(h, matrix[:, :, None, None], -self.shift)

    @torch.no_grad()
    def fit(self, h: Tensor) -> None:
        """ActNorm's start: every channel of these h gets mean 0 and variance 1."""
        self.shift.copy_(-h.mean((0, 2, 3)))
        self.log_scale.copy_(-h.std((0, 2, 3)).clamp_min(1e-3).log())


def _precise(h: Tensor) -> torch.autocast:
    """No 16 bits in here, whatever stands around it: the noise of dark pixels is smaller than their steps."""
    return torch.autocast(h.device.type, enabled=False)


class Coupling(nn.Module):
    """One half of the channels decides how the other half is scaled and shifted: h_2 -> h_2 exp(r(h_1)) + t(h_1)."""

    def __init__(self, channels: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.kept = channels // 2
        moved = channels - self.kept
        layers = [
            nn.Conv2d(self.kept, width, 3, padding=1),
            nn.Conv2d(width, width, 1),
            nn.Conv2d(width, 2 * moved, 3, padding=1),
        ]
        for layer in layers[:2]:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
        for tensor in (layers[0].bias, layers[1].bias, *layers[2].parameters()):
            nn.init.zeros_(cast(Tensor, tensor))  # the step begins as the identity
        self.net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def _told(self, kept: Tensor) -> Pair:
        shift, raw = cast(Tensor, self.net(kept)).chunk(2, 1)
        return shift, REACH * raw.tanh()

    def forward(self, h: Tensor) -> Pair:
        """[B, C, H, W] -> the same."""
        kept, moved = h.split([self.kept, h.shape[1] - self.kept], 1)
        shift, log_scale = self._told(kept)
        return torch.cat([kept, moved * log_scale.exp() + shift], 1), log_scale.flatten(1).sum(1)

    def inverse(self, h: Tensor) -> Tensor:
        """Undo it, from the half that was kept."""
        kept, moved = h.split([self.kept, h.shape[1] - self.kept], 1)
        shift, log_scale = self._told(kept)
        return torch.cat([kept, (moved - shift) * (-log_scale).exp()], 1)


class Flow(nn.Module):
    """A multi-scale Glow for images [C, H, W] whose sides two divides once for every scale.

    z is flat, [B, D] with D = C H W: what left first stands first. depths: steps on each scale; width: of the
    hidden layers of the couplings.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        depths: Sequence[int] = (4, 4),
        width: int = 32,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        channels, height, breadth = shape
        if not depths or height % 2 ** len(depths) or breadth % 2 ** len(depths):
            raise ValueError(
                f"depths = {tuple(depths)}: two to the power of their number should divide {height} x {breadth}."
            )
        self.shape, self.depths, self.width = shape, tuple(depths), width
        self.logit = Logit()
        self.scales, self.parts = nn.ModuleList(), []
        for level, depth in enumerate(depths, 1):
            channels, height, breadth = 4 * channels, height // 2, breadth // 2
            steps = [(Mix(channels, generator), Coupling(channels, width, generator)) for _ in range(depth)]
            self.scales.append(nn.ModuleList(layer for step in steps for layer in step))
            leaving = channels if level == len(depths) else channels // 2
            self.parts.append((leaving, height, breadth))
            channels -= leaving

    def forward(self, x: Tensor) -> Pair:
        """z = F(x) and log |det dF/dx|: [B, C, H, W] -> [B, D], [B]."""
        h, log_det = self.logit(x)
        codes = []
        for scale, (leaving, _, _) in zip(self.scales, self.parts, strict=True):
            h = pixel_unshuffle(h, 2)
            for layer in cast(Sequence[nn.Module], scale):
                h, change = layer(h)
                log_det = log_det + change
            left, h = h.split([leaving, h.shape[1] - leaving], 1)
            codes.append(left.flatten(1))
        return torch.cat(codes, 1), log_det

    def inverse(self, z: Tensor) -> Tensor:
        """G(z): [B, D] -> [B, C, H, W], exactly; of codes that no image has, values a little outside of [0, 1]."""
        codes = z.split([math.prod(part) for part in self.parts], 1)
        h = z[:, :0]
        for scale, part, code in zip(reversed(self.scales), reversed(self.parts), reversed(codes), strict=True):
            left = code.unflatten(1, part)
            h = torch.cat([left, h], 1) if h.numel() else left
            for layer in reversed(cast(nn.ModuleList, scale)):
                h = cast(Mix | Coupling, layer).inverse(h)
            h = pixel_shuffle(h, 2)
        return self.logit.inverse(h)

    def encode(self, x: Tensor) -> Tensor:
        """F(x) of images as they are, in the middle of their grey values' intervals: [B, C, H, W] -> [B, D]."""
        return cast(Tensor, self(x)[0])

    def decode(self, z: Tensor) -> Tensor:
        """G(z) cut to images: [B, D] -> [B, C, H, W] in [0, 1]."""
        return self.inverse(z).clamp(0, 1)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x) in nats: [B, C, H, W] -> [B]."""
        z, log_det = self(x)
        return cast(Tensor, log_normal(z) + log_det)

    def bits_per_dim(self, x: Tensor) -> Tensor:
        """-log_2 of the probability of the interval 1 / 255 wide around every value, per value: [B, C, H, W] -> [B].

        It is the usual measure for images that noise of this width was added to.
        """
        count = math.prod(self.shape)
        return (math.log(LEVELS - 1) - self.log_likelihood(x) / count) / math.log(2)


def log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I): [B, D] -> [B]."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


class Recipe(BaseModel):
    """How a flow is trained: Adam on -log p(x + noise), the noise uniform over the interval of each grey value.

    The rate falls along a half cosine. precision: of the couplings' products; bfloat16 pays where the device is fast at
    it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    depths: tuple[int, ...] = Field((4, 4), min_length=1)
    width: int = Field(32, ge=1)
    steps: int = Field(4000, ge=1)
    batch: int = Field(128, ge=2)
    lr: float = Field(0.002, gt=0)
    clip: float = Field(50.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"

    def rate(self, done: float) -> float:
        """Learning rate after this share of the training."""
        return float(self.lr * (1 + math.cos(math.pi * done)) / 2)

    def build(self, shape: tuple[int, int, int], generator: torch.Generator) -> Flow:
        """A freshly initialized flow."""
        return Flow(shape, depths=self.depths, width=self.width, generator=generator)


def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images with noise that is uniform over the interval of each grey value, 1 / 255 wide."""
    noise = torch.rand(x.shape, generator=generator, device=generator.device).to(x)
    return x + (noise - 0.5) / (LEVELS - 1)


@torch.no_grad()
def initialize(flow: Flow, x: Tensor) -> None:
    """ActNorm's start from images x, layer after layer: [B, C, H, W]."""
    h = flow.logit(x)[0]
    for scale, (leaving, _, _) in zip(flow.scales, flow.parts, strict=True):
        h = pixel_unshuffle(h, 2)
        for layer in cast(Sequence[nn.Module], scale):
            if isinstance(layer, Mix):
                layer.fit(h)
            h = layer(h)[0]
        h = h[:, leaving:]


def train(flow: Flow, x: Tensor, recipe: Recipe, *, generator: torch.Generator, label: str | None = None) -> Flow:
    """Maximize the likelihood of images x [N, C, H, W]; changes the flow in place and returns it in evaluation mode.

    Raises ValueError without images, FloatingPointError if the loss or a weight is not finite.
    """
    if not len(x):
        raise ValueError("x: no images to train on.")
    count = math.prod(flow.shape)
    drawn = torch.randint(len(x), (max(recipe.batch, 512),), generator=generator)
    initialize(flow, noisy(x[drawn.to(x.device)], generator))
    optimizer = torch.optim.Adam(flow.parameters(), lr=recipe.lr, fused=True)
    with tqdm(total=recipe.steps, desc=label, disable=label is None, leave=False) as bar:
        for step in range(recipe.steps):
            drawn = torch.randint(len(x), (recipe.batch,), generator=generator).to(x.device)
            optimizer.param_groups[0]["lr"] = recipe.rate(step / recipe.steps)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                loss = -flow.log_likelihood(noisy(x[drawn], generator)).float().mean() / count
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), recipe.clip)
            optimizer.step()
            bar.update()
            if step % 100 == 0 or step + 1 == recipe.steps:
                if not all(bool(found.isfinite().all()) for found in (loss, *flow.parameters())):
                    raise FloatingPointError(
                        f"Training diverged by step {step + 1}: its loss or a weight is not finite."
                    )
                bar.set_postfix(bits=float((loss.detach() + math.log(LEVELS - 1)) / math.log(2)))
    return flow.eval()
