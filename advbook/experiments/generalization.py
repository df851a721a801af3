"""Chapter 03: on-manifold success and test error over N and recipes, and what on-manifold training gains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from advbook import metrics
from advbook.attacks.pgd import pgd_latent
from advbook.experiments import Axis, Result
from advbook.experiments.grid import (
    ERROR,
    Grid,
    Quantity,
    Rates,
    blocks,
    correct,
    error_rows,
    of,
    rates,
    strong,
    success_rows,
)
from advbook.experiments.recipes import TITLES, Recipe
from advbook.ledger import Verdict

THREAT = "on-manifold"
PAPER = Quantity("success", THREAT, "paper", "average")
STRONG = Quantity("success", THREAT, "strong", "worst")
SMALL = Quantity("success", "on-manifold small", "strong", "worst")

# The verdicts' thresholds, fixed before any run.
CORRELATION, CUT, BEYOND_RANDOM = 0.8, 0.2, 0.0


class GeneralizationLink(Grid):
    """Chapter 03: test error and on-manifold success of every recipe at every N."""

    experiment: ClassVar[str] = "03_generalization_link"
    version: ClassVar[int] = 1

    recipes: Axis[Recipe] = Field(["normal", "on_manifold", "random_latent"], description="training recipes")
    eta_small: float = Field(
        0.1, gt=0, le=float(np.pi), description="a second, smaller latent budget of the strong attack"
    )

    @staticmethod
    def verdicts(rows: pd.DataFrame) -> list[Verdict]:
        """The chapter's claims against their thresholds, from the rows of one grid, standard network.

        1. On-manifold robustness is generalization: over all recipes and N, on-manifold success and test error have a
        correlation of at least .8. The strong attack is judged at the smaller budget too, since at the paper's it may
        fool nearly every image of every network, and then nothing is left to correlate. 2. On-manifold adversarial
        training lowers the test error by at least a fifth, averaged over N. 3. It lowers it more than random moves on
        the manifold do.
        """
        rows = rows[rows.network == "cnn"]
        found = [
            Verdict(
                "On-manifold robustness is generalization",
                f"correlation of on-manifold success{at} with test error, over recipes and N",
                *metrics.percentiles(correlation(rates(rows, ERROR, quantity))),
                CORRELATION,
                attack="paper" if quantity is PAPER else "strong",
            )
            for quantity, at in ((PAPER, ""), (STRONG, ""), (SMALL, " at the smaller budget"))
        ]
        compared: list[tuple[Recipe, str, float]] = [
            ("normal", "On-manifold adversarial training lowers the test error", CUT),
            ("random_latent", "It lowers the error more than random moves on the manifold do", BEYOND_RANDOM),
        ]
        for over, claim, threshold in compared:
            statistic = f"relative cut of the test error against {TITLES[over]} training, averaged over N"
            found.append(Verdict(claim, statistic, *metrics.percentiles(mean_cut(rows, over)), threshold))
        return found

    def compute(self) -> Result:
        """Train a point's fleet, measure its error and attack it on the manifold."""
        setting = self.load()
        members, codes, y = self.members(setting), self.codes(setting), setting.y_test
        rows = error_rows(members, setting)
        # On a learned manifold dec(z) is not quite x, and the attack is counted where dec(z) is classified correctly.
        right = correct(members, codes.images(), y)
        if setting.known is None:
            rows += _decoded_rows(right)
        fleet, draft = self.fleet(members)
        space = codes.space(self.eta)
        paper = pgd_latent(
            fleet, space, y, steps=self.steps, restarts=self.restarts, draft=draft, label="on-manifold attack",
            generator=torch.Generator().manual_seed(10_000),
        )  # fmt: skip
        rows += success_rows(THREAT, "paper", paper.success, right, paper.forwards)
        for threat, eta in ((THREAT, self.eta), (SMALL.threat, self.eta_small)):
            near = replace(space, eta=eta)
            won, forwards = strong(
                fleet, near, y, eps=eta, steps=self.strong_steps, draft=draft, label="strong attack", seed=10_001
            )
            rows += success_rows(threat, "strong", won, right, forwards)
        return Result(rows, {})


def _decoded_rows(right: Tensor) -> list[dict[str, Any]]:
    """Each network's error on dec(z), what the learned manifold makes of the attacked images: right [M, B]."""
    everything = blocks(torch.ones_like(right[0]))
    return [
        {"what": "decoded", "seed": seed, "hits_average": blocks(~own), "counted": everything}
        for seed, own in enumerate(right)
    ]


def correlation(found: Rates) -> np.ndarray:
    """Pearson's correlation of the second quantity with the first over points: [1 + R].

    NaN for fewer than 3 points, and where either does not vary.
    """
    error, success = found.draws
    if len(error) < 3:
        return np.array([np.nan])
    a, b = error - error.mean(0), success - success.mean(0)
    varies = (np.abs(a).max(0) > 1e-9) & (np.abs(b).max(0) > 1e-9)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(varies, (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0)), np.nan)


def slope(found: Rates) -> np.ndarray:
    """The least-squares slope of the second quantity over the first: [1 + R]; NaN for fewer than 2 points."""
    error, success = found.draws
    if len(error) < 2:
        return np.array([np.nan])
    a = error - error.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * success).sum(0) / (a**2).sum(0))


def cuts(rows: pd.DataFrame, over: str, recipe: str = "on_manifold") -> Mapping[int, np.ndarray]:
    """N -> relative cut of the test error, 1 - error(recipe) / error(over): [1 + R] each."""
    found = rates(rows, ERROR)
    own, other = of(found, 0, "cnn", recipe), of(found, 0, "cnn", over)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {n: 1 - own[n] / other[n] for n in sorted(own.keys() & other.keys())}


def mean_cut(rows: pd.DataFrame, over: str, recipe: str = "on_manifold") -> np.ndarray:
    """The relative cut averaged over N: [1 + R]; NaN where no N has both recipes."""
    found = list(cuts(rows, over, recipe).values())
    return np.mean(found, axis=0) if found else np.array([np.nan])


def gains(rows: pd.DataFrame, recipe: str = "on_manifold") -> pd.DataFrame:
    """A row for every N and recipe to compare with: over, n, gain (error of `over` less error of the recipe), gain_low,
    gain_high, and cut, cut_low, cut_high, the same relative to the error of `over`.
    """
    found = rates(rows, ERROR)
    own, lines = of(found, 0, "cnn", recipe), []
    for over in ("normal", "random_latent"):
        other, relative = of(found, 0, "cnn", over), cuts(rows, over, recipe)
        for n, cut in relative.items():
            both = {"gain": metrics.percentiles(other[n] - own[n]), "cut": metrics.percentiles(cut)}
            ends = {
                f"{name}{end}": v
                for name, three in both.items()
                for end, v in zip(("", "_low", "_high"), three, strict=True)
            }
            lines.append({"over": over, "n": n, **ends})
    names = [f"{name}{end}" for name in ("gain", "cut") for end in ("", "_low", "_high")]
    return pd.DataFrame(lines, columns=["over", "n", *names])
