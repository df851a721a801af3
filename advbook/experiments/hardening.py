"""Chapter 06 on real images: adversarial training against each threat and each pair of them, all budgets calibrated.

Rows: `calibration` (the budgets), `robust` (every training under every threat at its calibrated budget), `energy`
(where perturbations lead, at budgets where every attack fools the same share), `success` (of attacks kept to an
eigenspace), `error`, and `variances` (of the data along the directions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from advbook.attacks.engine import Stop
from advbook.attacks.pgd import Attack
from advbook.attacks.spaces import Space
from advbook.experiments import directions as d
from advbook.experiments.directions import THREATS, Directions, Threat
from advbook.experiments.grid import blocks, correct, error_rows
from advbook.experiments.judged import number
from advbook.experiments.setting import Setting
from advbook.fleet import Stack
from advbook.kernels import Banded, bfloat16_is_fast
from advbook.networks import Network
from advbook.training import Schedule

PAIRS: tuple[tuple[Threat, Threat], ...] = tuple(combinations(THREATS, 2))
TOLERANCE = 0.02  # of a search for a rate
# Directions are put together in bins for rows and figures: the first, the second, the next three, and so on.
EDGES = (0, 1, 2, 5, 10, 20, 50, 100, 200, 400, 784)


class Given(NamedTuple):
    """Images to attack, the seed of the attack's start points, and when it stops."""

    x: Tensor
    y: Tensor
    seed: int
    stop: Stop = "pair"


class Found(NamedTuple):
    """The end of a search for a rate: the budget whose rate came nearest, and that rate."""

    eps: float
    rate: float


def search(rate: Callable[[float], float], goal: float, first: float, *, rounds: int) -> Found:
    """The budget at which a rate that falls with it is nearest to a goal, by at most `rounds` evaluations.

    Doubles or halves until the goal lies between two budgets, then goes where a line between their rates, over the
    logarithm of the budget, meets it. Stops within TOLERANCE.
    """
    known: dict[float, float] = {}
    eps = first
    for _ in range(rounds):
        known[eps] = rate(eps)
        if abs(known[eps] - goal) <= TOLERANCE:
            break
        enough = [one for one, value in known.items() if value >= goal]
        short = [one for one, value in known.items() if value < goal]
        if not (enough and short):
            eps = eps / 2 if short else eps * 2
            continue
        low, high = max(enough), min(short)
        way = (known[low] - goal) / (known[low] - known[high])
        eps = float(low * (high / low) ** np.clip(way, 0.1, 0.9))
    best = min(known, key=lambda one: abs(known[one] - goal))
    return Found(best, known[best])


@dataclass(frozen=True)
class Hardening:
    """What the measurements of a point share.

    directions: where perturbations are measured; generator: of the generative threat, [K, q, D].
    """

    setting: Setting
    directions: Directions
    generator: Tensor
    data: tuple[str, str, int]
    network: Network
    epochs: int
    seeds: int
    train_steps: int
    steps: int
    target: float
    success: float
    eigen: int

    def networks(self, budgets: dict[Threat, float], seeds: int | None = None) -> list[nn.Sequential]:
        """The networks trained against some threats."""
        return d.hardened(
            self.setting, self.data, budgets, self.generator, network=self.network,
            schedule=Schedule(epochs=self.epochs), steps=self.train_steps, seeds=seeds or self.seeds,
        )  # fmt: skip

    def attacked(self, members: Sequence[nn.Module], threat: Threat, eps: float, given: Given) -> Attack:
        """A threat's attack on all networks."""
        where = d.space(threat, given.x, given.y, eps, self.generator)
        return self.ascended(members, where, threat, eps, given)

    def ascended(self, members: Sequence[nn.Module], where: Space, threat: Threat, eps: float, given: Given) -> Attack:
        """The ascent in any space of the given images."""
        fleet = Stack(members).eval()
        draft = Banded(fleet) if self.network == "cnn" and bfloat16_is_fast(given.x.device) else None
        return d.ascend(
            fleet, where, given.y, threat, eps, steps=self.steps, seed=given.seed, draft=draft, stop=given.stop,
            label=f"{d.title(threat)} attack",
        )  # fmt: skip

    def robust(self, members: Sequence[nn.Module], threat: Threat, eps: float, x: Tensor, y: Tensor) -> Tensor:
        """Which images each network gets right under a threat: [M, B] bool."""
        found = self.attacked(members, threat, eps, Given(x, y, 30_000))
        return correct(members, x, y) & ~found.success.any(0)

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the point."""
        budgets = {threat: self._calibrated(threat) for threat in THREATS}
        rows: list[dict[str, Any]] = [
            {"what": "calibration", "threat": threat, "eps": found.eps, "rate": found.rate, "goal": self.target}
            for threat, found in budgets.items()
        ]
        rows += self._variance_rows()
        eps = {threat: found.eps for threat, found in budgets.items()}
        trainings: list[tuple[Threat, ...]] = [(), *((threat,) for threat in THREATS), *PAIRS]
        for training in tqdm(trainings, desc="trainings", leave=False):
            members = self.networks({threat: eps[threat] for threat in training})
            name = "+".join(training) or "normal"
            rows += [{"training": name, **row} for row in self._robust_rows(members, eps)]
            if len(training) < 2:
                rows += [{"training": name, **row} for row in self._direction_rows(members, eps)]
        return rows

    def _calibrated(self, threat: Threat) -> Found:
        """The budget at which training against a threat leaves it the wanted robust accuracy: by one network, on
        images that no other measurement attacks.
        """
        x, y = self.setting.x_held_out[:500], self.setting.y_held_out[:500]

        def accuracy(eps: float) -> float:
            return float(self.robust(self.networks({threat: eps}, seeds=1), threat, eps, x, y).double().mean())

        return search(accuracy, self.target, d.FIRST[threat], rounds=6)

    def _robust_rows(self, members: Sequence[nn.Module], eps: dict[Threat, float]) -> Iterator[dict[str, Any]]:
        x, y = self.setting.x_test, self.setting.y_test
        yield from error_rows(members, self.setting)
        for threat, budget in eps.items():
            for seed, stands in enumerate(self.robust(members, threat, budget, x, y)):
                yield {
                    "what": "robust",
                    "seed": seed,
                    "threat": threat,
                    "eps": budget,
                    "rate": float(stands.double().mean()),
                    "hits_average": blocks(stands),
                    "counted": blocks(torch.ones_like(stands)),
                }

    def _direction_rows(self, members: Sequence[nn.Module], eps: dict[Threat, float]) -> Iterator[dict[str, Any]]:
        """Where the attacks lead at budgets of the same success, the references, and attacks in eigenspaces."""
        x, y = self.setting.x_test, self.setting.y_test
        right, given = correct(members, x, y), Given(x, y, 30_001)
        equal = {threat: self._equalized(members, threat, eps[threat], right, given) for threat in THREATS}
        for threat, found in equal.items():
            # The full budget, also where less was enough.
            whole = self.attacked(members, threat, found.eps, given._replace(stop="never"))
            yield from self._energy_rows(threat, whole.x[0] - x, right, found)
        yield from self._reference_rows(right, equal["linf"].eps)
        yield from self._eigenspace_rows(members, right, equal["l2"].eps)

    def _equalized(
        self, members: Sequence[nn.Module], threat: Threat, first: float, right: Tensor, given: Given
    ) -> Found:
        """The budget at which an attack fools the wanted share of the images that the networks, right [M, B], have
        right. The rate found is that of images that stand.
        """

        def standing(eps: float) -> float:
            return 1 - float(self.attacked(members, threat, eps, given).success[0][right].double().mean())

        return search(standing, 1 - self.success, first, rounds=10)

    def _energy_rows(self, attack: str, delta: Tensor, right: Tensor, found: Found) -> Iterator[dict[str, Any]]:
        """delta: [M, B, C, H, W], or [1, B, ...] for all networks; right: [M, B], the images that count."""
        y = self.setting.y_test
        for seed, own in enumerate(right):
            energy = d.energies(delta[seed % len(delta)], y, self.directions)
            moved = own & (energy.sum(1) > 0.5)  # a perturbation of zero has no direction
            variance = d.attacked_variance(energy, y, self.directions)
            yield {
                "what": "energy",
                "seed": seed,
                "threat": attack,
                "eps": found.eps,
                "fooled": 1 - found.rate,
                "rate": number(float(variance[moved].mean())),
                "energies": [number(float(part)) for part in _binned(energy[moved].mean(0))],
                "hits_average": blocks(variance * moved),
                "counted": blocks(moved),
            }

    def _reference_rows(self, right: Tensor, eps: float) -> Iterator[dict[str, Any]]:
        """Random signs of the size of the L-inf attack, and the way to another image of the class."""
        x, y, random = self.setting.x_test, self.setting.y_test, torch.Generator().manual_seed(30_002)
        signs = torch.randint(2, x.shape, generator=random).to(x) * 2 - 1
        others = torch.empty_like(x)
        for k in y.unique():
            pool = self.setting.x[self.setting.y == k]
            others[y == k] = pool[torch.randint(len(pool), (int((y == k).sum()),), generator=random).to(x.device)]
        nothing = Found(float("nan"), float("nan"))
        for name, moved in (("random sign", (x + eps * signs).clamp(0, 1)), ("data", others)):
            for row in self._energy_rows(name, (moved - x)[None], right, nothing):
                yield {**row, "eps": None, "fooled": None}

    def _eigenspace_rows(self, members: Sequence[nn.Module], right: Tensor, eps: float) -> Iterator[dict[str, Any]]:
        """L2 attacks kept to the directions of largest, and of smallest, variance, at the budget of the free attack."""
        x, y = self.setting.x_test, self.setting.y_test
        for name, last in (("first", False), ("last", True)):
            where = d.moved_along(self.directions.eigenspace(self.eigen, last=last), x, y, eps)
            found = self.ascended(members, where, "generative", eps, Given(x, y, 30_003))
            for seed, own in enumerate(right):
                won = found.success[0, seed] & own
                yield {
                    "what": "success",
                    "seed": seed,
                    "threat": f"{name} directions",
                    "eps": eps,
                    "rate": number(float(won.sum() / own.sum())),
                    "hits_average": blocks(won),
                    "counted": blocks(own),
                }

    def _variance_rows(self) -> list[dict[str, Any]]:
        """The share of the data's variance in every bin of directions, averaged over classes."""
        own = self.directions.variances
        share = (own / own.sum(1, keepdim=True)).mean(0)
        return [{"what": "variances", "energies": [round(float(part), 6) for part in _binned(share)]}]


def _binned(parts: Tensor) -> list[Tensor]:
    """Sums over the bins of directions: [D] -> one a bin."""
    return [parts[low:high].sum() for low, high in pairwise(EDGES)]
