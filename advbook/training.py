"""Training recipes for fleets. Data stays on the device; a recipe and a seed fix each member's result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm import tqdm

from advbook.attacks.engine import climb
from advbook.attacks.norms import LINF, Start, gaussian
from advbook.attacks.objectives import cross_entropy
from advbook.attacks.spaces import Pixels
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
    """The attack inside adversarial training: max over |delta|_inf <= eps of the cross-entropy, the best iterate kept.

    Adam with learning rate lr from a random start (norms.gaussian), in evaluation mode. precision: of the attack's
    products; bfloat16 where the device is fast at it and the architecture has a banded form (kernels), else float32.
    Source: Stutz et al., CVPR 2019, section 3.4; its released code keeps the last iterate until the first success, and
    the best one only from then on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    eps: float = Field(0.3, ge=0)
    steps: int = Field(40, ge=0)
    lr: float = Field(0.005, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"

    def attack(self, fleet: Stack, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        """Adversarial examples for every member's own rows: x, start [M, B, C, H, W], y [M, B] -> [M, B, C, H, W]."""
        fast = self.precision == "bfloat16"
        f = (Banded(fleet, side=x.shape[-1]) if fast else fleet).by_rows
        space = Pixels(x.flatten(0, 1), self.eps)
        delta, _ = climb(
            f, space, y.flatten(), start.flatten(0, 1), objective=cross_entropy, rule=adam(self.lr), steps=self.steps
        )
        return space.image(delta).view_as(x)


def normal(
    fleet: Stack,
    x: Tensor,
    y: Tensor,
    schedule: Schedule,
    *,
    generators: Sequence[torch.Generator],
    label: str | None = None,
) -> Stack:
    """Normal training: minimize the cross-entropy on clean images; changes the fleet in place and returns it.

    x: [N, C, H, W]; y: [N], the same for all members. An epoch is a random order of the rows; its last batch is
    filled up from the order's beginning. generators: one a member, draws its orders. Raises FloatingPointError if a
    loss is not finite.
    """

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return _cross_entropy(fleet(images), labels).mean(1)

    return _fit(fleet, x, y, schedule, loss, generators, label)


def adversarial(
    fleet: Stack,
    x: Tensor,
    y: Tensor,
    schedule: Schedule,
    adversary: Adversary,
    *,
    share: float = 0.5,
    generators: Sequence[torch.Generator],
    label: str | None = None,
) -> Stack:
    """Adversarial training: a share of every batch is replaced by adversarial examples against the fleet as it is.

    share: of the batch, its last rows; the loss is the mean of the clean and the adversarial rows' mean losses (1: the
    adversarial ones' alone). The attack runs in evaluation mode, then one forward takes both halves in training mode.
    The rest as in `normal`; generators also draw the attacks' starts. Raises ValueError if share is not in (0, 1].
    Source: Stutz et al., CVPR 2019, section 3.4 (50 %), and its released code (100 %).
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}: allowed is more than 0 and at most 1.")
    start = gaussian(LINF, adversary.eps)
    attack: Callable[..., Tensor] | None = None

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        nonlocal attack
        clean = images.shape[1] - max(round(share * images.shape[1]), 1)
        given = images[:, clean:], labels[:, clean:], _starts(start, images[:, clean:], generators)
        fleet.eval()
        attack = attack or captured(lambda *tensors: adversary.attack(fleet, *tensors), *given)
        examples = attack(*given)
        fleet.train()
        losses = _cross_entropy(fleet(torch.cat([images[:, :clean], examples], 1)), labels)
        halves = [part.mean(1) for part in (losses[:, :clean], losses[:, clean:]) if part.shape[1]]
        return torch.stack(halves).mean(0)

    return _fit(fleet, x, y, schedule, loss, generators, label)


def _fit(
    fleet: Stack,
    x: Tensor,
    y: Tensor,
    schedule: Schedule,
    loss: Callable[[Tensor, Tensor], Tensor],
    generators: Sequence[torch.Generator],
    label: str | None,
) -> Stack:
    """Minimize every member's loss(images [M, B, C, H, W], labels [M, B]) -> [M] on its own order of the data."""
    if not len(x):
        raise ValueError("x: no images to train on.")
    if len(generators) != fleet.members:
        raise ValueError(f"generators: {len(generators)} for a fleet of {fleet.members}; allowed is one a member.")
    # Adam works entry by entry, so a stack of members is optimized as each of them alone.
    optimizer = torch.optim.Adam(
        fleet.weights.values(), betas=(0.5, 0.9), weight_decay=schedule.weight_decay, fused=True
    )
    batches = -(-len(x) // schedule.batch)
    fleet.train()
    losses = torch.zeros(fleet.members, device=x.device)
    with tqdm(total=schedule.epochs * batches, desc=label, disable=label is None, leave=False) as bar:
        for epoch in range(schedule.epochs):
            orders = torch.stack([_order(len(x), batches * schedule.batch, random) for random in generators]).to(
                x.device
            )
            for index in range(batches):
                rows = orders[:, index * schedule.batch : (index + 1) * schedule.batch]  # [M, B]
                optimizer.param_groups[0]["lr"] = schedule.rate(epoch + index / batches)
                losses = loss(x[rows], y[rows])
                optimizer.zero_grad()
                losses.sum().backward()
                optimizer.step()
                bar.update()
            if not losses.isfinite().all():
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
