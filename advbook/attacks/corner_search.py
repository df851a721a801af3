"""Corner Search: try every change of one pixel, then combine those that did most."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from advbook.attacks.engine import Counter, Network, Objective, Win, finite
from advbook.attacks.objectives import fooled, margin
from advbook.attacks.pgd import Attack, at_least
from advbook.attacks.search import Dice, Proposal, Seen, search
from advbook.attacks.steps import State
from advbook.fleet import Fleet, count_members


@dataclass(frozen=True)
class Changes:
    """g(u): some one-pixel changes of x at once, out of a ranked table of them.

    A change is numbered a + A (pixel): the pixel takes, channel by channel, the value of `low` or of `high`, as row a
    of `bits` says. x, low, high: [B, C, H, W]; bits: [A, C] bool; table: [B, K, N], changes by K orderings, the best
    first. u = [B, 1 + k]: which ordering, then k ranks in it, or -1 for no change. Of two changes of one pixel the last
    one holds.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    bits: Tensor
    table: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> Self:
        return replace(self, x=self.x[rows], low=self.low[rows], high=self.high[rows], table=self.table[rows])

    def image(self, u: Tensor) -> Tensor:
        """The images with the changes that u names."""
        order, ranks = u[:, :1].long(), u[:, 1:].long()
        change = self.table.gather(1, order[:, :, None].expand(-1, -1, self.table.shape[2]))[:, 0]
        return self.changed(change.gather(1, ranks.clamp_min(0)).where(ranks >= 0, -1))

    def project(self, u: Tensor) -> Tensor:
        """u: there are no others."""
        return u

    def changed(self, change: Tensor) -> Tensor:
        """The images with numbered changes, [S, n], -1 for none."""
        row = torch.arange(len(self), device=self.x.device)
        image, low, high = (part.flatten(2).transpose(1, 2) for part in (self.x.clone(), self.low, self.high))
        for number in change.unbind(1):
            pixel, choice = number.clamp_min(0) // len(self.bits), number % len(self.bits)
            value = torch.where(self.bits[choice], high[row, pixel], low[row, pixel])  # [S, C]
            image[row, pixel] = torch.where(number[:, None] >= 0, value, image[row, pixel])
        return image.transpose(1, 2).reshape(self.x.shape)


def corner_search(
    f: Network | Fleet,
    x: Tensor,
    y: Tensor,
    *,
    k: int,
    n_max: int = 100,
    n_iter: int = 100,
    kappa: float | None = None,
    restarts: int = 1,
    generator: torch.Generator,
    objective: Objective = margin,
    win: Win = fooled,
    batch: int = 512,
    **options: Any,
) -> Attack:
    """Sparse adversarial examples: at most k pixels change, each to a corner of the colour cube {0, 1}^C.

    All A H W one-pixel changes are judged first (A = 2^C) and ranked K times: by f_r - f_y for every other class r, and
    by the objective. Then each restart tries the image itself, the best change of every ordering, and, for 2 to k
    changes and every ordering, n_iter combinations of changes drawn from its n_max best, rank i with chance
    (2 n_max - 2 i + 1) / n_max^2. That is A H W queries an image, and up to 1 + K + (k - 1) K n_iter a restart. With
    stop = "pair" a restart ends with its first success, the one that took the fewest changes. The result's `steps` are
    the tries of a restart after the image itself.

    f: a network or a fleet; x: [B, C, H, W] in [0, 1]; y: [B] classes. kappa: changes by kappa times the local contrast
    instead, which the eye does not see (A = 2): x +- kappa sigma, or x (1 +- kappa sigma) for colour images. options:
    stop and label, as in engine.ascend. Raises ValueError if k, n_max, n_iter or restarts < 1, kappa < 0, or if the
    network returns NaN. Source: Croce and Hein, ICCV 2019, algorithm 1, and the sigma-map;
    defaults: Stutz et al., ICML 2020 (with kappa = .4).
    """
    for name, number in (("k", k), ("n_max", n_max), ("n_iter", n_iter), ("restarts", restarts)):
        at_least(name, number, 1)
    members = count_members(f)
    space, goal = one_pixel_changes(x.repeat(members, 1, 1, 1), kappa), y.repeat(members)  # [M B, ...]
    network = Counter(f)
    table = ranking(network, space, goal, objective, n_max, batch, members)
    space = replace(space, table=table)
    start = x.new_full((restarts, *([members] if isinstance(f, Fleet) else []), len(x), 1 + k), -1)
    start[..., 0] = 0
    found = search(
        f, space, goal, start, proposal=combinations(table.shape[1], table.shape[2], n_iter),
        queries=1 + table.shape[1] * (1 + (k - 1) * n_iter), generator=generator, objective=objective, win=win,
        batch=batch, **options,
    )  # fmt: skip
    images = torch.stack([space.image(u.flatten(0, -2)) for u in found.u]).view(*found.won.shape, *x.shape[1:])
    forwards = found.forwards + network.samples / max(len(space), 1)
    return Attack(images, found.won, found.value, found.steps, forwards)


def one_pixel_changes(x: Tensor, kappa: float | None) -> Changes:
    """The changes to the corners of the colour cube, or by kappa times the local contrast; an empty table."""
    channels, table = x.shape[1], torch.empty(len(x), 0, 0, dtype=torch.long, device=x.device)
    if kappa is None:
        bits = torch.tensor(list(itertools.product((False, True), repeat=channels)), device=x.device)
        return Changes(x, torch.zeros_like(x), torch.ones_like(x), bits, table)
    at_least("kappa", kappa, 0)
    move = kappa * sigma_map(x) * (x if channels > 1 else 1)
    bits = torch.tensor([[False], [True]], device=x.device).expand(-1, channels)
    return Changes(x, (x - move).clamp(0, 1), (x + move).clamp(0, 1), bits, table)


def sigma_map(x: Tensor) -> Tensor:
    """The square root of the smaller of two standard deviations, of a pixel with its two neighbours in its row and in
    its column: zero along edges and on even ground. [B, C, H, W]; a pixel beyond the image repeats the edge.
    """
    wide = F.pad(x, (1, 1, 1, 1), mode="replicate")
    triples = wide[:, :, 1:-1].unfold(3, 3, 1), wide[:, :, :, 1:-1].unfold(2, 3, 1)  # [B, C, H, W, 3]
    across, down = ((three - three.mean(-1, keepdim=True)).square().mean(-1).sqrt() for three in triples)
    return across.minimum(down).sqrt()


@torch.no_grad()
def ranking(
    f: Counter, space: Changes, y: Tensor, objective: Objective, n_max: int, batch: int, members: int
) -> Tensor:
    """The n_max best one-pixel changes of every row by every ordering, the best first: [M B, K, N].

    Ordering y, the true class, is that of the objective, ordering r that of f_r - f_y. At most `batch` images are shown
    to the network at a time, and of those only the best so far are kept.
    """
    images, count = len(space) // members, len(space.bits) * space.x.shape[2:].numel()
    if not images:
        return torch.zeros(0, 1, 1, dtype=torch.long, device=y.device)
    tables = []
    for part in torch.arange(images, device=y.device).split(max(batch // (members * count), 1)):
        row = (torch.arange(members, device=y.device)[:, None] * images + part).flatten()  # [M g]
        best: list[tuple[Tensor, Tensor]] = []  # one entry, once there is one
        for change in torch.arange(count, device=y.device).split(max(batch // len(row), 1)):
            here = row.repeat_interleave(len(change))
            scores = _orderings(f(space[here].changed(change.repeat(len(row))[:, None])), y[here], objective)
            scores = scores.view(len(row), len(change), -1).transpose(1, 2)  # [M g, K, n]
            best = [_best([*best, (scores, change.expand_as(scores))], n_max)]
        tables.append(best[0][1].unflatten(0, (members, -1)))
    return torch.cat(tables, 1).flatten(0, 1)


def combinations(classes: int, n_max: int, n_iter: int) -> Proposal:
    """The best change of every ordering, then, for 2, 3, ... changes and every ordering, n_iter random combinations."""

    def propose(state: State, seen: Seen, dice: Dice) -> tuple[State, Tensor]:
        most = seen.u.shape[1] - 1
        single, turn = seen.clock <= classes, (seen.clock - classes - 1).clamp_min(0)
        order = torch.where(single, seen.clock - 1, turn // n_iter % classes)
        count = torch.where(single, 1, 2 + turn // (n_iter * classes))
        # n_max sqrt(v) rounded down is j with chance (2 j + 1) / n_max^2, and rank i = n_max - j, counted from 1.
        rank = n_max - 1 - (n_max * dice.uniform(seen.u, most).sqrt()).floor().clamp_max(n_max - 1)
        rank = rank.masked_fill(single[:, None], 0)
        used = torch.arange(most, device=seen.u.device) < count[:, None]
        return state, torch.cat([order[:, None].to(rank), rank.where(used, -1)], 1)

    return Proposal(lambda u: (), propose)


def _orderings(logits: Tensor, y: Tensor, objective: Objective) -> Tensor:
    """What the changes are ranked by, larger first: [S, K]."""
    scores = (logits - logits.gather(1, y[:, None])).scatter(1, y[:, None], objective(logits, y)[:, None])
    return finite(scores)


def _best(parts: list[tuple[Tensor, Tensor]], n_max: int) -> tuple[Tensor, Tensor]:
    """The n_max largest of scores [M g, K, n], and the changes that have them; of each, [M g, K, N]."""
    scores, change = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    top = scores.topk(min(n_max, scores.shape[2]), dim=2)
    return top.values, change.gather(2, top.indices)
