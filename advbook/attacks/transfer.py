"""Transfer: do examples made on one network fool others?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advbook.attacks.engine import Network, outputs
from advbook.attacks.objectives import fooled
from advbook.attacks.pgd import Attack
from advbook.fleet import Fleet


@dataclass(frozen=True)
class Transfer:
    """What T targets make of examples made on a source with R restarts of B images ([T, R, M, B] for M sources).

    counted: [T, R, B] bool, the pairs that a rate counts: source and target are right on the clean image; fooled: [T,
    R, B] bool, of these, those where the source errs on the example, and the target errs on it too.
    """

    counted: Tensor
    fooled: Tensor


def transfer(
    targets: Network | Sequence[Network] | Fleet, x: Tensor, y: Tensor, attack: Attack, correct: Tensor
) -> Transfer:
    """Show the examples of an attack to other networks.

    targets: one network (T = 1), a list of T, or a fleet of T; x: [B, C, H, W] the clean images; y: [B]; attack: made
    on the source, or on a fleet of M sources; correct: [B] bool, or [M, B], the clean images that the source is right
    on. Raises ValueError if correct does not fit, or if a target returns NaN or infinity.
    """
    axes = attack.success.shape  # [R, B] or [R, M, B]
    if correct.shape != axes[1:]:
        raise ValueError(f"correct: its shape is {list(correct.shape)}; allowed is {list(axes[1:])}.")
    right = ~_errs(targets, x, y)  # [T, B]
    errs = _errs(targets, attack.x.flatten(0, -4), y.expand(axes).flatten()).unflatten(1, axes)  # [T, R, B]
    right = right.view(len(right), *[1] * (len(axes) - 1), -1)
    counted = (right & correct).expand_as(errs)
    return Transfer(counted, counted & attack.success & errs)


def transfer_rate(found: Transfer) -> Tensor:
    """Share of the source's examples that fool a target too: [T], or [T, M] for M sources.

    Numerator: pairs (restart, image) where source and target are right on the clean image, the source errs on the
    example, and the target errs on it too. Denominator: the pairs where both are right on the clean image; NaN if there
    are none. Where targets are the sources themselves, the rates [T, M] of T = M have the trivial ones on their
    diagonal. Source: Stutz et al., CVPR 2019, released evaluation, which averages over restarts.
    """
    axes = (1, found.counted.ndim - 1)
    return found.fooled.double().sum(axes) / found.counted.double().sum(axes)


def _errs(targets: Network | Sequence[Network] | Fleet, x: Tensor, y: Tensor) -> Tensor:
    """Whether each target's class is not y: [N, C, H, W], [N] -> [T, N] bool."""
    if isinstance(targets, Fleet):
        fleet = targets
        logits = outputs(lambda part: fleet(part.expand(fleet.members, *part.shape)).transpose(0, 1), x)
        return torch.stack([fooled(member, y) for member in logits.unbind(1)])
    each = targets if isinstance(targets, Sequence) else [targets]
    return torch.stack([fooled(outputs(f, x), y) for f in each])
