"""Training recipes for fleets. Data stays on the device; a recipe and a seed fix each member's result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm import tqdm

from advbook.attacks.engine import climb
from advbook.attacks.norms import LINF, Start, gaussian
from advbook.attacks.objectives import cross_entropy
from advbook.attacks.spaces import Decoder, Latent, Pixels, Space
from advbook.attacks.steps import adam
from advbook.capture import captured
from advbook.fleet import Stack
from advbook.kernels import Banded


class Schedule(BaseModel):
    """The papers' schedule: Adam, learning rate lr * decay^(epochs done), batches of 100, 20 epochs.

    The rate falls with every batch, and the exponent starts at one, as in the released code. Source: Stutz et al.,
    CVPR 2019, section 3.1, and its released code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(20, ge=0)
    batch: int = Field(100, ge=2)
    lr: float = Field(0.01, gt=0)
    decay: float = Field(0.95, gt=0, le=1)
    weight_decay: float = Field(1e-4, ge=0)

    def rate(self, epoch: float) -> float:
        """Learning rate after `epoch` epochs (fractions count)."""
        return float(max(self.lr * self.decay ** (epoch + 1), 1e-7))


class Adversary(BaseModel):
    """The attack inside adversarial training: Adam maximizes the cross-entropy from a random start; the best iterate
    counts.

    precision: of the attack's products; bfloat16 where the device is fast at it and the architecture has a banded form
    (kernels), else float32. Source: Stutz et al., CVPR 2019, section 3.4; its released code keeps the last iterate
    until the first success, and the best one only from then on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(40, ge=0)
    lr: float = Field(0.005, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"

    def ascend(self, fleet: Stack, space: Space, y: Tensor, start: Tensor, *, side: int) -> Tensor:
        """The u of largest cross-entropy in a space of M b rows of the fleet's members.

        y: [M b]; start: [M b, ...]; side: of the images.
        """
        f = (Banded(fleet, side=side) if self.precision == "bfloat16" else fleet).by_rows
        u, _ = climb(f, space, y, start, objective=cross_entropy, rule=adam(self.lr), steps=self.steps)
        return u


@dataclass(frozen=True)
class Perturbed:
    """A share of every batch, and what takes the place of its images: g(u) in a space around each of them.

    share: of the batch; around: [N, ...], shaped as u for every training image; start: draws u; space: rows [P] of the
    training set -> the space of these images; adversary: looks for the worst u from there; without one, the start
    point is a random augmentation. weight: of its mean loss beside the others'.
    """

    share: float
    around: Tensor
    start: Start
    space: Callable[[Tensor], Space]
    adversary: Adversary | None = None
    weight: float = 1.0


def pixels(x: Tensor, eps: float, adversary: Adversary, *, share: float = 0.5, weight: float = 1.0) -> Perturbed:
    """Regular adversarial examples x + delta with |delta|_inf <= eps of training images x: [N, C, H, W].

    Source: Stutz et al., CVPR 2019, equation (1).
    """
    return Perturbed(share, x, gaussian(LINF, eps), lambda rows: Pixels(x[rows], eps), adversary, weight)


def latent(
    z: Tensor,
    decode: Decoder,
    context: tuple[Tensor, ...],
    box: tuple[Tensor, Tensor],
    eta: float,
    adversary: Adversary | None,
    *,
    share: float = 0.5,
    weight: float = 1.0,
) -> Perturbed:
    """On-manifold adversarial examples dec(z + zeta) with |zeta|_inf <= eta, or, without an adversary, random ones.

    z: [N, D]; decode(z, *context), context: [N, ...] each; box: bounds of z + zeta, [D] each. Transformations T(x; t)
    of an image are the same: z is the identity, the context the image. Source: Stutz et al., CVPR 2019, equation (3).
    """

    def space(rows: Tensor) -> Latent:
        return Latent(z[rows], decode, tuple(part[rows] for part in context), *box, eta)

    return Perturbed(share, z, gaussian(LINF, eta), space, adversary, weight)


def train(
    fleet: Stack,
    x: Tensor,
    y: Tensor,
    schedule: Schedule,
    perturbed: Sequence[Perturbed] = (),
    *,
    separate: bool = False,
    generators: Sequence[torch.Generator],
    label: str | None = None,
) -> Stack:
    """Train every member: minimize the cross-entropy on clean images, and on perturbed ones in the place of others.

    Changes the fleet in place and returns it. x: [N, C, H, W]; y: [N], the same for all members. An epoch is a random
    order of the rows; its last batch is filled up from the order's beginning. Without `perturbed` this is normal
    training. Else the last rows of every batch are perturbed, with the fleet in evaluation mode; then one forward takes
    the whole batch in training mode, and the loss is the weighted mean of the parts' mean losses (the clean part, if
    the shares leave one, weighs 1). separate: each part has a forward and a step of the optimizer of its own, the clean
    one first, as the released code does for random augmentation. generators: one a member, draws its orders and start
    points.

    Raises ValueError if a share is not positive, if they add up to more than 1, if there are no images or not one
    generator a member; FloatingPointError if a loss is not finite. Source: Stutz et al., CVPR 2019, section 3.4, and
    its released code.
    """
    sizes = _sizes([part.share for part in perturbed], schedule.batch)
    weights = [1.0, *(part.weight for part in perturbed)]
    makers: list[Callable[..., Tensor]] = []

    def images(index: int, rows: Tensor) -> Tensor:
        own = perturbed[index]
        given = rows, y[rows], _starts(own.start, own.around[rows], generators)
        fleet.eval()
        if index == len(makers):  # the first time: only now are the shapes known
            makers.append(captured(partial(_perturbed_images, own, fleet, x.shape[-1]), *given))
        made = makers[index](*given)
        fleet.train()
        return made

    def part(index: int, rows: Tensor) -> Tensor:
        return images(index - 1, rows) if index else x[rows]

    def losses(rows: Tensor) -> Iterator[Tensor]:
        own = rows.split(sizes, 1)
        chosen = [index for index, size in enumerate(sizes) if size]
        if separate:
            for index in chosen:
                yield _cross_entropy(fleet(part(index, own[index])), y[own[index]]).mean(1)
            return
        logits = fleet(torch.cat([part(index, own[index]) for index in chosen], 1))
        each = _cross_entropy(logits, y[rows]).split([sizes[index] for index in chosen], 1)
        means = [weights[index] * loss.mean(1) for index, loss in zip(chosen, each, strict=True)]
        yield torch.stack(means).sum(0) / sum(weights[index] for index in chosen)

    return _fit(fleet, len(x), schedule, losses, generators, x.device, label)


def _sizes(shares: Sequence[float], batch: int) -> list[int]:
    """How many rows of a batch are clean, and how many belong to each share."""
    if any(not share > 0 for share in shares) or sum(shares) > 1 + 1e-9:
        raise ValueError(f"share = {list(shares)}: allowed are shares above 0 that add up to at most 1.")
    sizes = [max(round(share * batch), 1) for share in shares]
    clean = batch - sum(sizes)
    if clean < 0:  # rounding of small batches
        raise ValueError(f"share = {list(shares)}: a batch of {batch} has no {sum(sizes)} rows to perturb.")
    return [clean, *sizes]


def _perturbed_images(part: Perturbed, fleet: Stack, side: int, rows: Tensor, labels: Tensor, start: Tensor) -> Tensor:
    """What takes the place of the rows' images: rows, labels [M, b], start [M, b, ...] -> [M, b, C, H, W]."""
    space, u = part.space(rows.flatten()), start.flatten(0, 1)
    if part.adversary is not None:
        u = part.adversary.ascend(fleet, space, labels.flatten(), u, side=side)
    images: Tensor = space.image(space.project(u)).unflatten(0, rows.shape)
    return images


def _fit(
    fleet: Stack,
    count: int,
    schedule: Schedule,
    losses: Callable[[Tensor], Iterator[Tensor]],
    generators: Sequence[torch.Generator],
    device: torch.device,
    label: str | None,
) -> Stack:
    """Minimize every member's losses(rows [M, B]), each [M], one step each, on its own order of `count` images."""
    if not count:
        raise ValueError("x: no images to train on.")
    if len(generators) != fleet.members:
        raise ValueError(f"generators: {len(generators)} for a fleet of {fleet.members}; allowed is one a member.")
    # Adam works entry by entry, so a stack of members is optimized as each of them alone.
    optimizer = torch.optim.Adam(
        fleet.weights.values(), betas=(0.5, 0.9), weight_decay=schedule.weight_decay, fused=True
    )
    batches = -(-count // schedule.batch)
    fleet.train()
    loss = torch.zeros(fleet.members, device=device)
    with tqdm(total=schedule.epochs * batches, desc=label, disable=label is None, leave=False) as bar:
        for epoch in range(schedule.epochs):
            orders = torch.stack([_order(count, batches * schedule.batch, random) for random in generators]).to(device)
            for index in range(batches):
                rows = orders[:, index * schedule.batch : (index + 1) * schedule.batch]  # [M, B]
                optimizer.param_groups[0]["lr"] = schedule.rate(epoch + index / batches)
                for loss in losses(rows):
                    optimizer.zero_grad()
                    loss.sum().backward()
                    optimizer.step()
                bar.update()
            if not loss.isfinite().all():
                raise FloatingPointError(f"Training diverged in epoch {epoch + 1}: the loss is not finite.")
    return fleet.eval()


def _order(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """A random order of the rows, `count` entries long: filled up from its beginning."""
    order = torch.randperm(rows, generator=generator, device=generator.device)
    return order.repeat(-(-count // rows))[:count]


def _starts(start: Start, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Start points of every member from its own generator: [M, B, ...]."""
    return torch.stack([start(own, random) for own, random in zip(images, generators, strict=True)])


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[M, B, K], [M, B] -> [M, B]."""
    return cross_entropy(logits.flatten(0, 1), labels.flatten()).view_as(labels)
