"""Chapter 04: regular robustness and test error over N and recipes, transfer, and the price in data of adversarial
training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from advbook import metrics
from advbook.attacks.carlini_wagner import carlini_wagner, carlini_wagner_fixed
from advbook.attacks.norms import L2, gaussian
from advbook.attacks.objectives import cross_entropy
from advbook.attacks.pgd import Attack, pgd, pgd_latent
from advbook.attacks.steps import adam
from advbook.attacks.transfer import transfer
from advbook.experiments import Axis, Result
from advbook.experiments.grid import (
    ERROR,
    Grid,
    Quantity,
    blocks,
    correct,
    error_rows,
    of,
    rates,
    size_rows,
    strong,
    success_rows,
)
from advbook.experiments.recipes import DIAL, Recipe
from advbook.experiments.setting import Setting
from advbook.fleet import Fleet, Stack
from advbook.ledger import Verdict
from advbook.networks import Network

PAPER = Quantity("success", "linf", "paper", "average")
STRONG = Quantity("success", "linf", "strong", "worst")
SMALL = Quantity("success", "linf small", "strong", "worst")
SIZE = Quantity("size", "nearest", "strong")
TRANSFER = Quantity("transfer", "linf", "paper")
# Recipes whose training sees regular adversarial examples; the claim is about all others.
REGULAR: tuple[Recipe, ...] = ("adversarial", "adversarial_full", "combined", "combined_full", "dial_25", "dial_75")
ATTACKS: dict[str, Quantity] = {
    "PGD, L-inf": PAPER,
    "Auto-PGD, L-inf": STRONG,
    "Auto-PGD, L-inf, small eps": SMALL,
    "PGD, L2": Quantity("success", "l2", "paper", "average"),
    "latent PGD, L2": Quantity("success", "on-manifold l2", "paper", "average"),
    "CW, L2": Quantity("success", "cw", "paper", "average"),
}

# The verdicts' thresholds, fixed before any run.
RANGE, DATA_FACTOR, LESS_ERROR, LESS_ROBUST = 0.10, 2.0, 0.0, 0.05
FULL = 0.95  # where every rate is above this, or every one below 1 - this, a flat line says nothing


class Independence(Grid):
    """Chapter 04: test error and regular success of every recipe at every N, under several attacks."""

    experiment: ClassVar[str] = "04_independence"
    version: ClassVar[int] = 1

    networks: Axis[Network] = Field(["cnn", "mlp"], description="architectures")
    recipes: Axis[Recipe] = Field(["normal", "adversarial"], description="training recipes")
    eps_small: float = Field(0.02, gt=0, le=1, description="a second, smaller L-inf budget of the strong attack")
    eps_l2: float = Field(1.5, gt=0, le=28, description="budget of regular perturbations, L2")
    eta_l2: float = Field(0.3, gt=0, le=5, description="budget of latent perturbations, L2 on theta or z")
    cw_steps: int = Field(120, ge=1, le=10_000, description="steps of Carlini and Wagner's attack as the paper runs it")
    cw_images: int = Field(50, ge=25, le=8_000, description="images for Carlini and Wagner's attack, which is slow")

    @staticmethod
    def verdicts(rows: pd.DataFrame) -> list[Verdict]:
        """The chapter's claims against their thresholds, from the rows of one grid.

        1. For a fixed recipe and network, regular success does not depend on generalization: over N, the rates of
        normal training lie within .10 of each other, and so do those of every recipe that sees no regular adversarial
        examples. Where all those rates are near 1 (or 0) a range tells nothing, and the verdict is void. With the
        strong attack: the same at the smaller budget; and the mean size of the nearest adversarial example changes by
        at most a tenth. 2. Adversarial training reaches the error of normal training with at most twice the data. 3.
        Combined training has no more error than adversarial training, and is fooled less often than on-manifold
        training, by at least .05.
        """
        found = []
        for network in sorted(set(rows.network)):
            of_network = "" if network == "cnn" else f" ({network})"
            own = rows[rows.network == network]
            found += [_flat(own, network, of_network, ["normal"], quantity) for quantity in (PAPER, STRONG, SMALL)]
            found.append(_same_size(own, network, of_network))
        rows = rows[rows.network == "cnn"]
        others = [recipe for recipe in sorted(set(rows.recipe)) if recipe not in REGULAR]
        if others != ["normal"]:
            found += [_flat(rows, "cnn", "", others, quantity) for quantity in (PAPER, SMALL)]
        found.append(
            Verdict(
                "With at most twice the data, adversarial training has the error of normal training",
                "median over N of the factor of data for equal error",
                *metrics.percentiles(data_factor(rows)),
                DATA_FACTOR,
                at_most=True,
            )
        )
        return found + _trade_off(rows)

    def compute(self) -> Result:
        """Train a point's fleet, measure its error and attack it in every way."""
        setting = self.load()
        members = self.members(setting)
        x, y = setting.x_test, setting.y_test
        right = correct(members, x, y)
        fleet, draft = self.fleet(members)
        rows = error_rows(members, setting)
        rows += self._linf(fleet, draft, setting, right)
        rows += self._l2(fleet, draft, setting, members)
        rows += self._carlini_wagner(members, setting, right)
        rows += self._transfer(fleet, setting, right)
        return Result(rows, {})

    def _linf(self, fleet: Stack, draft: Fleet | None, setting: Setting, right: Tensor) -> list[dict[str, Any]]:
        x, y = setting.x_test, setting.y_test
        paper = self._pgd(fleet, draft, setting)
        rows = success_rows("linf", "paper", paper.success, right, paper.forwards)
        rows += size_rows("linf", "paper", (paper.x - x).flatten(3).abs().amax(3), paper, right)
        for threat, eps in (("linf", self.eps), ("linf small", self.eps_small)):
            won, forwards = strong(
                fleet, x, y, eps=eps, steps=self.strong_steps, draft=draft, label="strong attack", seed=20_001
            )
            rows += success_rows(threat, "strong", won, right, forwards)
        return rows

    def _pgd(self, fleet: Stack, draft: Fleet | None, setting: Setting) -> Attack:
        """The paper's regular attack."""
        generator = torch.Generator().manual_seed(20_000)
        return pgd(
            fleet, setting.x_test, setting.y_test, eps=self.eps, steps=self.steps, restarts=self.restarts,
            draft=draft, generator=generator, label="regular attack",
        )  # fmt: skip

    def _l2(
        self, fleet: Stack, draft: Fleet | None, setting: Setting, members: Sequence[nn.Module]
    ) -> list[dict[str, Any]]:
        """Both attacks under L2, each from one start, as the paper runs them."""
        x, y, codes = setting.x_test, setting.y_test, self.codes(setting)
        budget: dict[str, Any] = {
            "steps": self.steps, "restarts": 1, "rule": adam(0.005), "objective": cross_entropy, "draft": draft,
        }  # fmt: skip
        random = [torch.Generator().manual_seed(20_010 + index) for index in range(2)]
        regular = pgd(
            fleet, x, y, eps=self.eps_l2, norm=L2, start=gaussian(L2, self.eps_l2), generator=random[0],
            label="L2 attack", **budget,
        )  # fmt: skip
        moved = pgd_latent(
            fleet, codes.space(self.eta_l2, L2), y, generator=random[1], label="latent L2 attack", **budget
        )
        rows = success_rows("l2", "paper", regular.success, correct(members, x, y), regular.forwards)
        decoded = correct(members, codes.images(), y)
        return rows + success_rows("on-manifold l2", "paper", moved.success, decoded, moved.forwards)

    def _carlini_wagner(self, members: Sequence[nn.Module], setting: Setting, right: Tensor) -> list[dict[str, Any]]:
        """As the paper runs it, without a bound; and with a search for the nearest example."""
        x, y, right = setting.x_test[: self.cw_images], setting.y_test[: self.cw_images], right[:, : self.cw_images]
        paper = _together([carlini_wagner_fixed(f, x, y, steps=self.cw_steps) for f in members])
        near = _together([carlini_wagner(f, x, y, lr=0.1, steps=60, searches=5, constant=0.1) for f in members])
        rows = success_rows("cw", "paper", paper.success, right, paper.forwards)
        for threat, name, found in (("cw", "paper", paper), ("nearest", "strong", near)):
            rows += size_rows(threat, name, (found.x - x).flatten(3).norm(dim=3), found, right)
        return rows

    def _transfer(self, fleet: Stack, setting: Setting, right: Tensor) -> list[dict[str, Any]]:
        """Do regular examples made on normal networks of the same N fool this fleet? Never a network its own."""
        sources = self.members(setting, "normal")
        source, draft = self.fleet(sources)
        found = self._pgd(source, draft, setting)
        x, y = setting.x_test, setting.y_test
        moved = transfer(fleet, x, y, found, correct(sources, x, y))
        rows = []
        for seed, (fooled, counted) in enumerate(zip(moved.fooled, moved.counted, strict=True)):  # [R, M, B]
            others = [m for m in range(len(sources)) if m != seed or self.recipes != ["normal"]]
            hits, pairs = (part[:, others].double().mean(0).sum(0) for part in (fooled, counted))
            rows.append(
                {
                    "what": "transfer",
                    "seed": seed,
                    "threat": "linf",
                    "attack": "paper",
                    "hits_average": blocks(hits),
                    "counted": blocks(pairs),
                }
            )
        return rows


def _together(found: Sequence[Attack]) -> Attack:
    """Attacks on single networks as one on a fleet."""
    x, success, value, steps = (
        torch.stack([getattr(one, name) for one in found], 1) for name in ("x", "success", "value", "steps")
    )
    return Attack(x, success, value, steps, float(np.mean([one.forwards for one in found])))


def spread(rows: pd.DataFrame, network: str, recipes: Sequence[str], quantity: Quantity) -> np.ndarray:
    """The largest range of a quantity over N among recipes, max over N - min over N: [1 + R]; NaN without two N."""
    found = rates(rows, quantity)
    each = [np.array(list(of(found, 0, network, recipe).values())) for recipe in recipes]
    ranges = [np.ptp(values, axis=0) for values in each if len(values) > 1]
    return np.max(ranges, axis=0) if ranges else np.array([np.nan])


def error_falls(rows: pd.DataFrame, network: str, recipe: str) -> np.ndarray:
    """By which factor the test error falls from the smallest N to the largest: [1 + R]."""
    found = of(rates(rows, ERROR), 0, network, recipe)
    if not found:
        return np.array([np.nan])
    return np.asarray(found[min(found)] / np.maximum(found[max(found)], 1e-6))


def data_factor(rows: pd.DataFrame, recipe: str = "adversarial", network: str = "cnn") -> np.ndarray:
    """How many times the data a recipe needs for the error of normal training, the median over N: [1 + R].

    For each N of which the grid holds four times as much, the error of normal training at N is sought on the recipe's
    curve, interpolated between its points, both axes logarithmic. Where the curve stays above it, the factor is the
    largest that the grid can show, and where it begins below it, the smallest. NaN if the grid has no such N.
    """
    found = rates(rows, ERROR)
    normal, own = of(found, 0, network, "normal"), of(found, 0, network, recipe)
    sizes = np.array(sorted(own))
    starts = [n for n in sorted(normal) if len(sizes) > 1 and 4 * n <= sizes[-1] and n >= sizes[0]]
    if not starts:
        return np.array([np.nan])
    curve = np.array([own[n] for n in sizes])  # [N, 1 + R]
    return np.asarray(np.median([_factors(sizes, curve, n, normal[n]) for n in starts], axis=0))


def _factors(sizes: np.ndarray, curve: np.ndarray, n: int, error: np.ndarray) -> np.ndarray:
    """The factor of data at one N for every resample."""
    log_n, floor = np.log(sizes), 1e-6
    found = []
    for own, goal in zip(np.log(np.maximum(curve.T, floor)), np.log(np.maximum(error, floor)), strict=True):
        falling = np.minimum.accumulate(own)  # what the recipe can do with at most so much data
        place = int(np.searchsorted(-falling, -goal))  # the first N that is enough
        near = slice(max(place - 1, 0), place + 1)  # not the whole curve: on a plateau its last N would be taken
        found.append(float(np.exp(np.interp(-goal, -falling[near], log_n[near]))) / n)
    return np.array(found)


def dial(rows: pd.DataFrame, quantity: Quantity, network: str = "cnn") -> pd.DataFrame:
    """A row for every place of the dial and every N that has it: d, n, value, low, high of a quantity."""
    found = rates(rows, quantity)
    lines = []
    for recipe, d in DIAL.items():
        for n, drawn in of(found, 0, network, recipe).items():
            value, low, high = metrics.percentiles(drawn)
            lines.append({"d": d, "n": n, "value": value, "low": low, "high": high})
    return pd.DataFrame(lines, columns=["d", "n", "value", "low", "high"])


def _flat(rows: pd.DataFrame, network: str, of_network: str, recipes: Sequence[Recipe], quantity: Quantity) -> Verdict:
    alone, found = recipes == ["normal"], rates(rows, quantity)
    level = [drawn[0] for recipe in recipes for drawn in of(found, 0, network, recipe).values()]
    full, empty = min(level, default=0) > FULL, max(level, default=1) < 1 - FULL
    who = "of normal training" if alone else "of every recipe that sees no regular adversarial examples"
    at = " at the smaller budget" if quantity is SMALL else ""
    return Verdict(
        f"Regular success {who} does not depend on generalization{of_network}",
        f"{'range' if alone else 'largest range'} of regular success over N{at}",
        *metrics.percentiles(spread(rows, network, recipes, quantity)),
        RANGE,
        at_most=True,
        attack="paper" if quantity is PAPER else "strong",
        void=f"every rate is {f'above {FULL:g}' if full else f'below {1 - FULL:.2g}'}" if full or empty else "",
    )


def _same_size(rows: pd.DataFrame, network: str, of_network: str) -> Verdict:
    found = of(rates(rows, SIZE), 0, network, "normal")
    values = np.array(list(found.values()))
    change = np.ptp(values, axis=0) / values.mean(0) if len(values) > 1 else np.array([np.nan])
    return Verdict(
        f"The size of the nearest adversarial example does not depend on generalization{of_network}",
        "range over N of its mean L2 size, relative to the mean",
        *metrics.percentiles(change),
        RANGE,
        at_most=True,
        attack="strong",
    )


def mean_difference(rows: pd.DataFrame, quantity: Quantity, first: str, second: str) -> np.ndarray:
    """A quantity of the first recipe less that of the second, averaged over the N that both have: [1 + R]; NaN without
    such N.
    """
    found = rates(rows, quantity)
    one, other = of(found, 0, "cnn", first), of(found, 0, "cnn", second)
    both = [one[n] - other[n] for n in sorted(one.keys() & other.keys())]
    return np.mean(both, axis=0) if both else np.array([np.nan])


def _trade_off(rows: pd.DataFrame) -> list[Verdict]:
    price = Verdict(
        "Combined training has no more error than adversarial training",
        "test error of adversarial less that of combined training, averaged over N",
        *metrics.percentiles(mean_difference(rows, ERROR, "adversarial", "combined")),
        LESS_ERROR,
    )
    quantities: list[tuple[Quantity, Literal["paper", "strong"]]] = [(PAPER, "paper"), (SMALL, "strong")]
    return [price] + [
        Verdict(
            "Combined training is fooled less often than on-manifold training",
            "regular success against on-manifold less that against combined training, averaged over N",
            *metrics.percentiles(mean_difference(rows, quantity, "on_manifold", "combined")),
            LESS_ROBUST,
            attack=name,
        )
        for quantity, name in quantities
    ]
