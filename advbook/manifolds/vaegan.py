"""Learned manifolds: VAE-GANs, one a class or one for all, trained as a fleet; their decoders are g(z).

An encoder gives mean mu(x) and log variance of the code of an image, a decoder gives the image of a code, and a
discriminator learns to tell images from reconstructions. Source: Stutz et al., CVPR 2019, section 3.1; Larsen et al.,
ICML 2016. What the paper leaves open is as in the authors' released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import softplus
from tqdm import tqdm

from advbook.fleet import Stack
from advbook.networks import folded, initialize

LATENTS = 10
BOUND = 2.0  # codes that count as on the manifold lie in [-BOUND, BOUND]^D


class Widths(NamedTuple):
    """Channels of the three networks, from the image inwards (the decoder's from the code outwards)."""

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    discriminator: tuple[int, ...]


Size = Literal["small", "paper"]
# paper: the released code's, 1.5 million parameters a decoder. small: a hundred thousand, for pages, laptops and tests.
WIDTHS: dict[Size, Widths] = {
    "small": Widths((8, 16, 32), (64, 32, 16), (16, 32, 64)),
    "paper": Widths((64, 128, 256), (256, 128, 64), (64, 128, 256)),
}


class Recipe(BaseModel):
    """How a VAE-GAN is trained; the defaults are the released code's for Fashion-MNIST, except for the epochs.

    Three Adams with rate lr * decay^(epochs done) each; beta and gamma weigh the reconstruction and the discriminator.
    precision: of the networks' products; bfloat16 takes two thirds of the time where the device is fast at it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Size = "small"
    epochs: int = Field(20, ge=0)
    batch: int = Field(100, ge=2)
    lr: float = Field(0.005, gt=0)
    decay: float = Field(0.9, gt=0, le=1)
    weight_decay: float = Field(1e-4, ge=0)
    beta: float = Field(2.75, gt=0)
    gamma: float = Field(1.0, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"

    def rate(self, epoch: float) -> float:
        """Learning rate after `epoch` epochs (fractions count)."""
        return float(self.lr * self.decay**epoch)


class Autoencoder(nn.Module):
    """Encoder and decoder of one VAE-GAN. encoder: [B, C, H, W] -> mu and, in training, log sigma^2, [B, 2 D]; decoder:
    [B, D] -> [B, C, H, W] in [0, 1].
    """

    def __init__(self, encoder: nn.Sequential, decoder: nn.Sequential) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    @property
    def latents(self) -> int:
        """D."""
        return cast(nn.Linear, self.decoder[0]).in_features

    def encode(self, x: Tensor) -> Tensor:
        """The code of an image, z = mu(x): [B, C, H, W] -> [B, D]."""
        codes: Tensor = self.encoder(x)[:, : self.latents]
        return codes


def autoencoder(
    size: Size, shape: tuple[int, int, int], *, latents: int = LATENTS, generator: torch.Generator
) -> Autoencoder:
    """A freshly initialized encoder and decoder for images of this shape, [C, H, W]."""
    widths = WIDTHS[size]
    return Autoencoder(
        initialize(_encoder(shape, widths.encoder, 4, 2 * latents), generator),
        initialize(_decoder(shape, widths.decoder, latents), generator),
    )


def discriminator(size: Size, shape: tuple[int, int, int], *, generator: torch.Generator) -> nn.Sequential:
    """A freshly initialized discriminator, [B, C, H, W] -> [B, 1], a logit: large for images, small for fakes.

    With kernels of 4 pixels the released code got thin digits; it takes 6.
    """
    return initialize(_encoder(shape, WIDTHS[size].discriminator, 6, 1), generator)


def _encoder(shape: tuple[int, int, int], channels: Sequence[int], kernel: int, outputs: int) -> nn.Sequential:
    """Convolutions of stride 2 that halve the sides, batch norm and ReLU after each, and a linear layer."""
    layers: list[nn.Module] = []
    width, height, breadth = shape
    for channel in channels:
        padding = kernel // 2 - 1
        layers += [nn.Conv2d(width, channel, kernel, 2, padding, bias=False), nn.BatchNorm2d(channel), nn.ReLU()]
        width, height, breadth = channel, height // 2, breadth // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * height * breadth, outputs))


def _decoder(shape: tuple[int, int, int], channels: Sequence[int], latents: int) -> nn.Sequential:
    """A linear layer, then transposed convolutions of kernel 6 that double the sides back; a sigmoid at the end."""
    sides = [shape[1:]]
    for _ in channels:
        sides.append((sides[-1][0] // 2, sides[-1][1] // 2))
    height, breadth = sides[-1]
    layers: list[nn.Module] = [
        nn.Linear(latents, channels[0] * height * breadth),
        nn.Unflatten(1, (channels[0], height, breadth)),
    ]
    outputs = [*channels[1:], shape[0]]
    for level, (width, channel) in enumerate(zip(channels, outputs, strict=True)):
        small, large = sides[-1 - level], sides[-2 - level]
        odd = (large[0] - 2 * small[0], large[1] - 2 * small[1])
        last = level == len(outputs) - 1
        layers.append(nn.ConvTranspose2d(width, channel, 6, 2, 2, output_padding=odd, bias=last))
        layers += [nn.Sigmoid()] if last else [nn.BatchNorm2d(channel), nn.ReLU()]
    return nn.Sequential(*layers)


# --- training ---------------------------------------------------------------------------------------------------------


def train(
    pairs: Sequence[Autoencoder],
    x: Tensor,
    rows: Sequence[Tensor],
    recipes: Sequence[Recipe],
    *,
    epoch: int | None = None,
    generators: Sequence[torch.Generator],
    label: str | None = None,
) -> list[Autoencoder]:
    """Train VAE-GANs together, each on its own images: encoder and decoder of each, in evaluation mode.

    x: [N, C, H, W]; rows: for every member the numbers of its images (those of a class, say). The code z = mu + sigma
    xi of every image of a batch, xi normal, is decoded to x^. With D the discriminator and sums over the batch,

        encoder:        KL(N(mu, sigma^2) | N(0, 1)) + beta |x - x^|_1 - gamma log D(x^)
        decoder:        beta |x - x^|_1 - gamma log D(x^)
        discriminator:  - gamma (log D(x) + log(1 - D(x^)))

    All three gradients are taken at the same point, then all three take their steps. epoch: how many images each member
    sees in an epoch, some of them twice if it has fewer; by default as many as the largest has. recipes, generators:
    one a member; recipes may differ in beta alone. Raises ValueError if they differ in more, if a member has no images,
    no recipe or no generator, and FloatingPointError if a weight is not finite.
    """
    if not (len(pairs) == len(rows) == len(recipes) == len(generators)) or not all(map(len, rows)):
        raise ValueError(
            f"rows: {[len(own) for own in rows]} images for {len(pairs)} members, {len(recipes)} recipes and "
            f"{len(generators)} generators; allowed is one of each, and at least one image, a member."
        )
    recipe = recipes[0]
    if any(other.model_copy(update={"beta": recipe.beta}) != recipe for other in recipes):
        raise ValueError("recipes: those of one fleet may differ in beta alone.")
    beta = torch.tensor([own.beta for own in recipes], device=x.device)
    shape = (x.shape[1], x.shape[2], x.shape[3])
    critics = [discriminator(recipe.size, shape, generator=random).to(x.device) for random in generators]
    parts = [
        Stack(list(models)).train()
        for models in ([pair.encoder for pair in pairs], [pair.decoder for pair in pairs], critics)
    ]
    steps = [_adam(part, recipe) for part in parts]
    batches, latents = -(-(epoch or max(map(len, rows))) // recipe.batch), pairs[0].latents
    with tqdm(total=recipe.epochs * batches, desc=label, disable=label is None, leave=False) as bar:
        for done in range(recipe.epochs):
            orders = torch.stack(
                [
                    own[_order(len(own), batches * recipe.batch, random).to(own.device)]
                    for own, random in zip(rows, generators, strict=True)
                ]
            )
            for index, chosen in enumerate(orders.split(recipe.batch, 1)):  # [M, B]
                noise = torch.stack([torch.randn(chosen.shape[1], latents, generator=random) for random in generators])
                rate = recipe.rate(done + index / batches)
                _descend(parts, steps, x[chosen], noise.to(x.device), recipe, beta, rate)
                bar.update()
            if not all(bool(weight.isfinite().all()) for part in parts for weight in part.weights.values()):
                raise FloatingPointError(f"Training diverged in epoch {done + 1}: a weight is not finite.")
    members = zip(*(part.eval().unstack() for part in parts[:2]), strict=True)
    return [Autoencoder(cast(nn.Sequential, e), cast(nn.Sequential, d)).eval() for e, d in members]


def _adam(fleet: Stack, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        fleet.weights.values(), lr=recipe.lr, betas=(0.5, 0.9), weight_decay=recipe.weight_decay, fused=True
    )


def _order(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """A random order of the rows, `count` entries long: filled up from its beginning."""
    order = torch.randperm(rows, generator=generator)
    return order.repeat(-(-count // rows))[:count]


def _descend(
    parts: Sequence[Stack],
    steps: Sequence[torch.optim.Optimizer],
    x: Tensor,
    noise: Tensor,
    recipe: Recipe,
    beta: Tensor,
    lr: float,
) -> None:
    """One step of all three networks of every member on images x [M, B, C, H, W]; noise: xi [M, B, D]; beta: [M]."""
    encoders, decoders, critics = parts
    with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        mean, log_variance = encoders(x).to(x.dtype).chunk(2, 2)  # [M, B, D]
        fake = decoders(mean + (log_variance / 2).exp() * noise).to(x.dtype)
        on_fake, on_real = critics(fake).to(x.dtype), critics(x).to(x.dtype)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
    made = (beta * (x - fake).abs().flatten(1).sum(1)).sum() + recipe.gamma * softplus(-on_fake).sum()
    told = recipe.gamma * (softplus(-on_real) + softplus(on_fake)).sum()
    pair = [*encoders.weights.values(), *decoders.weights.values()]
    critic = list(critics.weights.values())
    # The decoder has no part in the divergence, so one gradient serves encoder and decoder.
    slopes = torch.autograd.grad(kl + made, pair, retain_graph=True)
    slopes += torch.autograd.grad(told, critic)
    for weight, slope in zip([*pair, *critic], slopes, strict=True):
        weight.grad = slope
    for step in steps:
        step.param_groups[0]["lr"] = lr
        step.step()


# --- decoders of all classes as one -----------------------------------------------------------------------------------


class Decoders:
    """Decoders of K classes as one: codes [B, D] and classes [B] -> images [B, C, H, W], differentiable in the codes.

    pairs: one a class, or a single one for all classes, which looks at no class. Batch norm is folded away.
    """

    def __init__(self, pairs: Sequence[Autoencoder]) -> None:
        self.decoders = [folded(pair.decoder) for pair in pairs]
        self._state: tuple[dict[str, Any], dict[str, Any]] | None = None

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """dec_y(z): each code by the decoder of its class."""
        if len(self.decoders) == 1 or not len(z):
            return cast(Tensor, self.decoders[0](z))
        return self._by_class(z, y) if z.device.type == "cpu" else self._all_classes(z, y)

    def _by_class(self, z: Tensor, y: Tensor) -> Tensor:
        """Class after class: each code is decoded once."""
        order = y.argsort(stable=True)
        counts = y.bincount(minlength=len(self.decoders)).tolist()
        parts = [own(part) for own, part in zip(self.decoders, z[order].split(counts), strict=True) if len(part)]
        return torch.cat(parts)[order.argsort()]

    def _all_classes(self, z: Tensor, y: Tensor) -> Tensor:
        """Every code by all decoders at once, then the right one: nothing waits for the host, as a CUDA graph asks."""
        self._state = self._state or stack_module_state(list(self.decoders))

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            image: Tensor = functional_call(self.decoders[0], (weights, buffers), (z,))
            return image

        images: Tensor = vmap(one)(*self._state)  # [K, B, C, H, W]
        return images[y, torch.arange(len(y), device=y.device)]


@torch.no_grad()
def encode(pairs: Sequence[Autoencoder], x: Tensor, y: Tensor, *, batch: int = 1_000) -> Tensor:
    """The code mu(x) of every image by the encoder of its class, or by the only one: [N, C, H, W], [N] -> [N, D]."""
    if len(pairs) == 1:
        return torch.cat([pairs[0].eval().encode(part) for part in x.split(batch)])
    z: Tensor | None = None
    for label, pair in enumerate(pairs):
        own = (y == label).nonzero()[:, 0]
        for rows in own.split(batch) if len(own) else ():
            codes = pair.eval().encode(x[rows])
            z = x.new_zeros(len(x), codes.shape[1]) if z is None else z
            z[rows] = codes
    return x.new_zeros(0, LATENTS) if z is None else z


# --- weights of 8 bits ------------------------------------------------------------------------------------------------

State = dict[str, Tensor]


def quantized(pair: Autoencoder) -> State:
    """Encoder (mu alone) and decoder, batch norm folded, with weights as int8 times a scale of 16 bits; biases in 16
    bits.

    A convolution has a scale for every output channel, a linear layer one. Names are those of `restored`.
    """
    encoder = folded(pair.encoder)
    head = cast(nn.Linear, encoder[-1])
    mean = nn.Linear(head.in_features, pair.latents)
    mean.weight.data, mean.bias.data = head.weight[: pair.latents].clone(), head.bias[: pair.latents].clone()
    encoder[-1] = mean
    state: State = {}
    for part, network in (("encoder", encoder), ("decoder", folded(pair.decoder))):
        for place, layer in enumerate(network):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                assert layer.bias is not None
                values, scale = _to_int8(layer)
                state[f"{part}.{place}.values"], state[f"{part}.{place}.scale"] = values, scale
                state[f"{part}.{place}.bias"] = layer.bias.detach().half()
    return state


def _to_int8(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> tuple[Tensor, Tensor]:
    """A layer's weight as int8 and the scale to multiply it with, which has as many axes."""
    weight = layer.weight.detach()
    kept = {nn.Conv2d: 0, nn.ConvTranspose2d: 1}.get(type(layer))
    over = [axis for axis in range(weight.ndim) if axis != kept]
    scale = (weight.abs().amax(over, keepdim=True) / 127).clamp_min(torch.finfo(torch.float16).tiny).half()
    return (weight / scale).round().clamp(-127, 127).to(torch.int8).contiguous(), scale


def restored(state: State, size: Size, shape: tuple[int, int, int], *, latents: int = LATENTS) -> Autoencoder:
    """The autoencoder of quantized weights, in evaluation mode. Raises KeyError or RuntimeError if they do not fit."""
    pair = autoencoder(size, shape, latents=latents, generator=torch.Generator()).eval()
    encoder, decoder = folded(pair.encoder), folded(pair.decoder)
    head = cast(nn.Linear, encoder[-1])
    encoder[-1] = nn.Linear(head.in_features, latents)
    for part, network in (("encoder", encoder), ("decoder", decoder)):
        for place, layer in enumerate(network):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                name = f"{part}.{place}"
                weight = state[f"{name}.values"].float() * state[f"{name}.scale"].float()
                layer.load_state_dict({"weight": weight, "bias": state[f"{name}.bias"].float()})
    return Autoencoder(encoder.requires_grad_(False), decoder).eval()
