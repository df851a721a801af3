"""Work only where work is left: which (restart, image) pairs are in work, and who follows when one leaves.

A batch has M members (models of a fleet; one without a fleet) of w slots each. A pair that is done frees its slot,
and the member's next waiting pair takes it; when none waits, the batch shrinks to the widest member's pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SHRINK = 7 / 8  # a batch is copied to a smaller one when no more than this share of it is in work


class Turn(NamedTuple):
    """Who left and who came: the slots that left and their pairs; the slots to keep (None: all); the slots refilled,
    numbered after the keeping.

    The caller records the slots that left, then drops the slots not kept, then starts the refilled ones anew.
    """

    left: Tensor
    pair: Tensor
    keep: Tensor | None
    entered: Tensor


class Packing:
    """The pairs of R restarts, M members and B images, numbered r M B + m B + b.

    pair: [M w] the pair in each slot; live: [M w] whether it is in work. together: once a pair of an image is won, the
    image's other restarts leave as well. batch: slots in all.
    """

    def __init__(
        self, restarts: int, members: int, images: int, *, batch: int, together: bool, device: torch.device
    ) -> None:
        pairs = torch.arange(restarts * members * images, device=device).view(restarts, members, images)
        self._members, self._images, self._together = members, images, together
        self._waiting = [pairs[:, member].reshape(-1) for member in range(members)]
        self._beaten = torch.zeros(members * images, dtype=torch.bool, device=device)
        width = min(max(batch // members, 1), restarts * images)
        self.pair = torch.cat([queue[:width] for queue in self._waiting])
        self.live = torch.ones_like(self.pair, dtype=torch.bool)
        self._waiting = [queue[width:] for queue in self._waiting]

    def __bool__(self) -> bool:
        """Whether any pair is in work."""
        return bool(self.live.any())

    def turn(self, done: Tensor, won: Tensor) -> Turn:
        """Let the done pairs leave and others enter; `pair` and `live` change accordingly. done, won: [M w] bool."""
        left = self.live & done
        if self._together:
            self._beaten[self._image(self.pair[left & won])] = True
            left |= self.live & self._beaten[self._image(self.pair)]
        slots = left.nonzero()[:, 0]
        pair = self.pair[slots]
        if not len(slots):
            return Turn(slots, pair, None, slots)
        self.live = self.live & ~left
        entered = self._refill()
        keep = self._shrink()
        if keep is not None:
            entered = torch.isin(keep, entered).nonzero()[:, 0]
        return Turn(slots, pair, keep, entered)

    def _image(self, pair: Tensor) -> Tensor:
        return pair % (self._members * self._images)

    def _refill(self) -> Tensor:
        """Give every free slot of a member its next waiting pair; the slots that got one."""
        entered, free = [], (~self.live).view(self._members, -1)
        for member, queue in enumerate(self._waiting):
            if self._together and len(queue):
                queue = queue[~self._beaten[self._image(queue)]]
            slots = free[member].nonzero()[:, 0][: len(queue)] + member * free.shape[1]
            self.pair[slots] = queue[: len(slots)]
            self._waiting[member] = queue[len(slots) :]
            entered.append(slots)
        found = torch.cat(entered)
        self.live[found] = True
        return found

    def _shrink(self) -> Tensor | None:
        """Keep as many slots a member as the widest one has in work, if that saves enough to be worth the copy."""
        live = self.live.view(self._members, -1)
        widest = int(live.sum(1).max())
        if widest > SHRINK * live.shape[1]:
            return None
        order = live.int().argsort(stable=True, dim=1, descending=True)[:, :widest]
        keep: Tensor = (order + live.shape[1] * torch.arange(self._members, device=live.device)[:, None]).flatten()
        self.pair, self.live = self.pair[keep], self.live[keep]
        return keep
