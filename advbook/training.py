"""Training recipes. Data stays on the device; a recipe and a seed fix the result."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from tqdm import tqdm


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


def normal(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    schedule: Schedule,
    *,
    generator: torch.Generator,
    label: str | None = None,
) -> nn.Module:
    """Normal training: minimize the cross-entropy on clean images; changes the network in place and returns it.

    x: [N, C, H, W]; y: [N]. An epoch is a random order of the rows; its last batch is filled up from the order's
    beginning. generator: draws the orders. Raises FloatingPointError if the loss is not finite.
    """
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.5, 0.9), weight_decay=schedule.weight_decay, fused=True)
    batches = -(-len(x) // schedule.batch)
    network.train()
    loss = torch.zeros((), device=x.device)
    with tqdm(total=schedule.epochs * batches, desc=label, disable=label is None, leave=False) as bar:
        for epoch in range(schedule.epochs):
            order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
            order = order.repeat(-(-batches * schedule.batch // len(x)))
            for index in range(batches):
                rows = order[index * schedule.batch : (index + 1) * schedule.batch]
                optimizer.param_groups[0]["lr"] = schedule.rate(epoch + index / batches)
                loss = F.cross_entropy(network(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            bar.update(batches)
            if not loss.isfinite():
                raise FloatingPointError(f"Training diverged in epoch {epoch + 1}: the loss is not finite.")
    return network.eval()
