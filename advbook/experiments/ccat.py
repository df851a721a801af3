"""Chapter 05: confidence-calibrated adversarial training, and what it rejects, under every threat model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from advbook import confidence, corruptions, datasets, metrics
from advbook.attacks.distal import distal, noise
from advbook.confidence import Answers, Counts
from advbook.experiments import Axis, Parameters, Result
from advbook.experiments.defences import Attacked, Defence, defended
from advbook.experiments.grid import drawn
from advbook.experiments.judged import TPR, Attempt, Judge, block_list, counted, number, to_numpy
from advbook.experiments.setting import COLOUR, Dataset, Setting, Subset, check_data, load, room, train_size
from advbook.experiments.threats import (
    Effort,
    Group,
    Target,
    Threat,
    attacks,
    linf_rule,
    probabilities,
    refined,
    rejected,
)
from advbook.fleet import Stack
from advbook.kernels import bfloat16_is_fast, draft
from advbook.ledger import Verdict
from advbook.networks import Network

RADII = (0.05, 0.1, 0.2, 0.5, 1.0)  # of forced rejection, in eps
ALONG = np.linspace(0, 2, 17)  # of the walk along the attack's direction, whose end is 1

# The verdicts' thresholds, fixed before any run.
DECAYED, STAYED, GAP, ADAPTIVE, LASTING, REJECTED, COST = 1.5, 0.5, 0.15, -0.05, 0.05, 0.1, 0.01


class CCAT(Parameters):
    """Chapter 05 on one data set: its points are the defences, the seeds of a point one fleet."""

    experiment: ClassVar[str] = "05_ccat"
    version: ClassVar[int] = 1
    axes: ClassVar[Mapping[str, str]] = {"recipes": "recipe"}

    dataset: Dataset = Field("fonts_easy", description="data set")
    n: int = Field(5000, ge=100, description="training images N")
    subset: Subset = Field("first", description="the first N training rows, or random ones")
    recipes: Axis[Defence] = Field(["at_half", "ccat"], description="trainings")
    network: Network = Field("cnn", description="architecture")
    seeds: int = Field(2, ge=1, le=100, description="networks a training; they differ in initialization and order")
    epochs: int = Field(5, ge=1, le=1000, description="epochs of training")
    train_steps: int = Field(10, ge=1, le=1000, description="steps of the attack inside training (the paper: 40)")
    rho: float = Field(10.0, gt=0, description="rho of CCAT's transition")
    beta: float = Field(1.0, ge=0, description="beta of TRADES")
    images: int = Field(50, ge=25, le=10_000, description="attacked test images, the first of the test set")
    held_out: int = Field(1000, ge=1000, le=10_000, description="images that fix the threshold, used for nothing else")
    test_images: int = Field(1000, ge=100, le=100_000, description="other clean images, for the error of accepted ones")
    eps: float = Field(0.2, gt=0, le=1, description="L-inf budget, in training and attacks")
    eps_larger: float = Field(0.3, gt=0, le=1, description="larger L-inf budget, not seen in training")
    eps_l2: float = Field(2.0, gt=0, description="L2 budget")
    eps_l1: float = Field(12.0, gt=0, description="L1 budget")
    eps_l0: int = Field(10, ge=1, description="L0 budget, pixels")
    steps: int = Field(20, ge=1, le=10_000, description="gradient steps of the published attacks")
    restarts: int = Field(1, ge=1, le=100, description="random restarts of the published attacks")
    queries: int = Field(50, ge=2, le=100_000, description="queries of the black-box attacks")
    longer: int = Field(2, ge=1, le=100, description="times as many steps and restarts for the stronger attacks")
    corrupted: int = Field(25, ge=0, le=10_000, description="test images shown under every corruption; 0: none")
    corruption_files: Literal["generated", "official"] = Field(
        "generated", description="corruptions by the book's own functions, or the official files"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        size = train_size(self.dataset)
        if self.n > size:
            raise ValueError(f"Parameter N = {self.n} is not allowed: {self.dataset} has {size:,} training images.")
        if self.corruption_files == "official" and self.dataset not in ("mnist", "cifar10"):
            raise ValueError(
                f"Parameter CORRUPTION_FILES = 'official' is not allowed with DATASET = {self.dataset!r}: the official "
                "files show the test images of mnist and cifar10."
            )
        needed, left = self.images + self.held_out + self.test_images, room(self.dataset, self.n)
        if needed > left:
            raise ValueError(
                f"Parameters IMAGES + HELD_OUT + TEST_IMAGES = {needed:,} are not allowed: {self.dataset} has {left:,} "
                f"images beside N = {self.n:,}."
            )
        if self.corrupted > self.images:
            raise ValueError(
                f"Parameter CORRUPTED = {self.corrupted} is not allowed: it should be at most IMAGES = {self.images}."
            )
        return self

    def check_data(self) -> None:
        """Raise MissingData (or DamagedData) if the data set, or an official file, cannot be read or fetched."""
        check_data(self.dataset)
        if self.corruption_files == "official":
            style: corruptions.Style = "cifar10_c" if self.dataset in COLOUR else "mnist_c"
            for name in corruptions.NAMES[style]:
                datasets.corrupted(style, name, 1 if style == "cifar10_c" else None, n=1)

    def larger(self) -> dict[str, Any]:
        """All trainings, or, where these are there, twice the training images, as far as there are so many."""
        if len(self.recipes) < 5:
            return {"RECIPES": ["normal", "at_half", "at_full", "trades", "ccat"]}
        return {"N": min(2 * self.n, train_size(self.dataset))}

    @property
    def budgets(self) -> dict[Threat, float]:
        """The radius of every threat model; for frames the width of the border, a tenth of the image's side."""
        width = 3.0 if self.dataset in COLOUR else 2.0
        sizes = (self.eps, self.eps_larger, self.eps_l2, self.eps_l1, float(self.eps_l0), width)
        return dict(zip(get_args(Threat), sizes, strict=True))

    @property
    def effort(self) -> Effort:
        """What the attacks may spend."""
        return Effort(self.steps, self.restarts, self.queries, self.longer)

    def load(self) -> Setting:
        """The images of a point, on its device: those held out fix the threshold first, then give the clean error."""
        total = self.held_out + self.test_images
        return load(self.dataset, self.n, self.subset, self.images, self.torch_device(), held_out=total)

    def members(self, setting: Setting, recipe: Defence) -> list[nn.Sequential]:
        """The trained networks of a training."""
        return defended(
            setting,
            (self.dataset, self.subset, self.n),
            recipe,
            Attacked(self.eps, self.train_steps, self.rho, self.beta),
            network=self.network,
            epochs=self.epochs,
            seeds=self.seeds,
        )

    def fleet(self, members: Sequence[nn.Module], setting: Setting) -> Target:
        """The networks as a fleet with its fast draft, and the attacked images."""
        fleet = Stack(members).eval()
        fast = draft(fleet, side=setting.x.shape[-1]) if bfloat16_is_fast(setting.x.device) else None
        return Target(fleet, fast, setting.x_test, setting.y_test)

    @staticmethod
    def verdicts(rows: pd.DataFrame) -> list[Verdict]:
        """The chapter's claims against their thresholds, as far as the rows hold the trainings that they need."""
        return [*_decay(rows), *_accuracy(rows), *_unseen(rows), *_dispute(rows)]

    def compute(self) -> Result:
        """Train, fix the thresholds, attack under every threat model, and count what is accepted."""
        setting, (recipe,) = self.load(), self.recipes
        members = self.members(setting, recipe)
        target = self.fleet(members, setting)
        judge = Judge.of(target, setting, self.held_out)
        rows, arrays = judge.clean_rows(), judge.clean_arrays(setting.x_test, members[0])
        source = self._transfer_source(setting, recipe)
        for threat, radius in self.budgets.items():
            found = self._attempts(judge, target, threat, radius, setting, source)
            rows += judge.attack_rows(threat, found)
            arrays |= judge.attack_arrays(threat, found)
            if threat == "linf":
                rows += self._along_rows(judge, target, found)
        rows += self._rejection_rows(judge, target) + self._distal_rows(judge, target)
        return Result([*rows, *self._corruption_rows(judge, target)], arrays)

    def _transfer_source(self, setting: Setting, recipe: Defence) -> Target:
        """Where examples are transferred from: networks of AT; where AT itself is attacked, those of other seeds (with
        one seed there is no other, and the examples are its own).
        """
        members = self.members(setting, "at_half")
        return self.fleet([*members[1:], members[0]] if recipe == "at_half" else members, setting)

    def _attempts(
        self, judge: Judge, target: Target, threat: Threat, radius: float, setting: Setting, source: Target
    ) -> list[Attempt]:
        """What all attacks find, then examples made on AT networks, then an attack that goes on from the worst."""
        label = f"{self.recipes[0]}: {threat}"
        given: dict[str, Any] = {"references": setting.x[:1000], "seed": list(self.budgets).index(threat)}
        found = [
            Attempt(one.group, one.name, probabilities(target.f, one.x), one.x, one.forwards)
            for one in attacks(target, threat, radius, self.effort, label=label, **given)
        ]
        kinds: tuple[Group, ...] = ("confidence", "error")
        for one in attacks(source, threat, radius, self.effort, only=kinds, label=f"{label}, transfer", **given):
            p = probabilities(target.f, one.x)
            found.append(Attempt("stronger", f"transfer, {one.name}", p, one.x, one.forwards))
        worst = torch.stack([judge.worst_images(seed, found) for seed in range(target.f.members)])
        last = refined(target, threat, radius, self.effort, worst, label=label)
        return [*found, Attempt(last.group, last.name, probabilities(target.f, last.x), last.x, last.forwards)]

    def _along_rows(self, judge: Judge, target: Target, found: Sequence[Attempt]) -> list[dict[str, Any]]:
        """The mean confidence over t in x + t delta, for correct images and the published attack on the confidence."""
        chosen = [one for one in found if one.group == "confidence"]
        delta = torch.stack([judge.worst_images(seed, chosen) for seed in range(target.f.members)]) - target.x
        rows = []
        for t in ALONG:
            moved = (target.x + float(t) * delta).clamp(0, 1)[None]  # [1, M, B, C, H, W]
            sure = to_numpy(probabilities(target.f, moved)[0].max(-1).values)  # [M, B]
            for seed, clean in enumerate(judge.attacked_clean):
                about = {"seed": seed, "t": float(t), "classes": judge.classes}
                sums = {"hits_average": block_list(sure[seed] * clean.correct), "counted": block_list(clean.correct)}
                rate = float(sure[seed][clean.correct].mean())
                rows.append({"what": "along", **about, "rate": rate, **sums})
        return rows

    def _rejection_rows(self, judge: Judge, target: Target) -> list[dict[str, Any]]:
        """Of the correct and accepted images, the share that an attack within a small radius makes rejected."""
        rows = []
        for share in RADII:
            x = rejected(target, share * self.eps, self.effort, seed=7, label=f"{self.recipes[0]}: forced rejection")
            unsure = probabilities(target.f, x).max(-1).values.amin(0)  # [M, B]
            for seed, clean in enumerate(judge.attacked_clean):
                doubted = Answers(to_numpy(unsure[seed]), clean.correct)
                counts = confidence.rejection_counts(clean, doubted, judge.taus[seed])
                rows.append({"what": "rejection", "seed": seed, "radius": share, **counted(counts)})
        return rows

    def _distal_rows(self, judge: Judge, target: Target) -> list[dict[str, Any]]:
        """The share of noise images that are accepted after an attack on their confidence."""
        random = torch.Generator().manual_seed(8)
        channels, height, width = target.x.shape[1:]
        x = noise(len(target.x), (channels, height, width), random).to(target.x)
        rule = linf_rule(self.eps, self.steps)  # the published .001 is for 1000 steps
        found = distal(
            target.f, x, eps=self.eps, steps=self.steps, restarts=self.restarts, rule=rule, draft=target.draft,
            generator=random, label=f"{self.recipes[0]}: distal",
        )  # fmt: skip
        sure = probabilities(target.f, found.x).max(-1).values.amax(0)  # [M, B]
        rows = []
        for seed, tau in enumerate(judge.taus):
            accepted = to_numpy(sure[seed]) >= tau
            counts = Counts(accepted, np.ones_like(accepted))
            rows.append({"what": "distal", "seed": seed, "threat": "distal", "tpr": TPR, **counted(counts)})
        return rows

    def _corruption_rows(self, judge: Judge, target: Target) -> list[dict[str, Any]]:
        """Err(tau) under every corruption, all severities together, and pooled over the corruptions."""
        if not self.corrupted:
            return []
        style: corruptions.Style = "mnist_c" if target.x.shape[1] == 1 else "cifar10_c"
        x, y = target.x[: self.corrupted], to_numpy(target.y[: self.corrupted])
        rows, everything = [], []
        for name in corruptions.NAMES[style]:
            shown = self._shown(name, style, x)
            said = confidence.answers(to_numpy(probabilities(target.f, torch.cat(shown))), np.tile(y, len(shown)))
            shape = len(judge.taus), len(shown), len(y)
            everything.append(Answers(said.confidence.reshape(shape), said.correct.reshape(shape)))
            for seed, tau in enumerate(judge.taus):
                own = Answers(said.confidence[seed], said.correct[seed])
                about = {"seed": seed, "threat": name, "accepted": float(confidence.acceptance(own, tau))}
                rows.append({"what": "corruption", **about, "rate": number(confidence.error(own, tau))})
        return rows + judge.pooled_rows("corruptions", everything)

    def _shown(self, name: str, style: corruptions.Style, x: Tensor) -> list[Tensor]:
        """Images under one corruption, at each of its severities."""
        if self.corruption_files == "official":
            levels = (None,) if style == "mnist_c" else (1, 2, 3, 4, 5)
            return [datasets.corrupted(style, name, level, n=len(x), device=x.device).x for level in levels]
        random = torch.Generator().manual_seed(9)
        return [corruptions.corrupt(x, name, level, style=style, generator=random) for level in (1, 2, 3, 4, 5)]


# --- verdicts -------------------------------------------------------------------------------------------------------


def _robust(recipe: str, threat: str, attack: str = "strong") -> dict[str, Any]:
    return {"recipe": recipe, "what": "robust", "threat": threat, "attack": attack, "tpr": TPR}


def _decay(rows: pd.DataFrame) -> list[Verdict]:
    """1. CCAT's confidence falls to that of a guess along the attack. 2. That of AT does not."""
    ts = [float(t) for t in ALONG]
    own, other = (
        drawn(rows, *({"recipe": recipe, "what": "along", "t": t} for t in ts)) for recipe in ("ccat", "at_half")
    )
    far = np.max([draws for t, draws in zip(ts, own, strict=True) if t >= 0.5], axis=0)
    classes = int(rows.classes.max()) if "classes" in rows and rows.classes.notna().any() else 10
    return [
        Verdict(
            "CCAT's confidence falls to a guess along the attack, and beyond it",
            "largest mean confidence from half the way to twice the way",
            *metrics.percentiles(far),
            DECAYED / classes,
            at_most=True,
            attack="paper",
        ),
        Verdict(
            "The confidence of adversarial training does not fall",
            "smallest mean confidence from the image to twice the way",
            *metrics.percentiles(np.min(other, axis=0)),
            STAYED,
            attack="paper",
        ),
    ]


def _accuracy(rows: pd.DataFrame) -> list[Verdict]:
    """3. CCAT errs less on clean images than AT, accepting all, and accepting what is above tau."""
    found = []
    for tpr, text in ((0.0, "all are accepted"), (TPR, "accepted at 99 % true positives")):
        clean = {"what": "error", "threat": "clean", "tpr": tpr}
        at, ccat, normal = drawn(rows, *({"recipe": recipe, **clean} for recipe in ("at_half", "ccat", "normal")))
        void = ""
        if tpr == 0 and np.isfinite(normal[0]) and at[0] - normal[0] < COST:
            void = f"adversarial training costs less than {100 * COST:g} point here, so there is nothing to keep"
        found.append(
            Verdict(
                f"CCAT is more accurate than adversarial training, {text}",
                "error of AT less error of CCAT",
                *metrics.percentiles(at - ccat),
                0.0,
                void=void,
            )
        )
    return found


# What a claim calls unseen -> the threats over which the smallest gap counts.
CLAIMS: Mapping[str, tuple[str, ...]] = {
    "to larger perturbations": ("linf_larger",),
    "to other norms (the smallest gap of L2, L1, L0)": ("l2", "l1", "l0"),
    "to adversarial frames": ("frames",),
}


def _unseen(rows: pd.DataFrame) -> list[Verdict]:
    """4. The robustness of CCAT generalizes to what it has not seen; that of AT does not."""
    found = []
    for text, threats in CLAIMS.items():
        for attack in ("paper", "strong"):
            wanted = [_robust(recipe, threat, attack) for recipe in ("at_half", "ccat") for threat in threats]
            both = drawn(rows, *wanted)
            gap = np.min(np.subtract(both[: len(threats)], both[len(threats) :]), axis=0)
            found.append(
                Verdict(
                    f"The robustness of CCAT generalizes {text}",
                    "robust error of AT less that of CCAT",
                    *metrics.percentiles(gap),
                    GAP,
                    attack=attack,
                )
            )
    at, ccat = drawn(rows, *({"recipe": recipe, "what": "distal"} for recipe in ("at_half", "ccat")))
    claim, statistic = "CCAT rejects noise that an attack makes confident", "share that AT accepts less CCAT's"
    found.append(Verdict(claim, statistic, *metrics.percentiles(at - ccat), GAP))
    shown = {"what": "error", "threat": "corruptions", "tpr": TPR}
    at, ccat = drawn(rows, *({"recipe": recipe, **shown} for recipe in ("at_half", "ccat")))
    claim, statistic = "CCAT errs less on corrupted images", "error among accepted of AT less CCAT's"
    return [*found, Verdict(claim, statistic, *metrics.percentiles(at - ccat), 0.0)]


def _dispute(rows: pd.DataFrame) -> list[Verdict]:
    """5. The adaptive attack is the stronger one. 6. Stronger attacks change little. 7. Small moves get rejected."""
    adaptive, plain = drawn(rows, *(_robust("ccat", "linf", name) for name in ("confidence", "error")))
    threats = ("linf", *dict.fromkeys(threat for each in CLAIMS.values() for threat in each))
    both = drawn(rows, *(_robust("ccat", threat, name) for name in ("strong", "paper") for threat in threats))
    more = np.max(np.subtract(both[: len(threats)], both[len(threats) :]), axis=0)
    small = {"what": "rejection", "radius": 0.1}
    ccat, at = drawn(rows, *({"recipe": recipe, **small} for recipe in ("ccat", "at_half")))
    return [
        Verdict(
            "Attacking CCAT's confidence is no weaker than attacking its error",
            "robust error under the one less that under the other",
            *metrics.percentiles(adaptive - plain),
            ADAPTIVE,
        ),
        Verdict(
            "CCAT's robust error stands under stronger attacks than the paper's",
            "largest rise over all threat models",
            *metrics.percentiles(more),
            LASTING,
            at_most=True,
            attack="strong",
        ),
        Verdict(
            "The criticism: CCAT, more than AT, can be made to reject images that are hardly perturbed",
            "share made rejected within a tenth of eps, CCAT's less AT's",
            *metrics.percentiles(ccat - at),
            REJECTED,
            attack="strong",
        ),
    ]
