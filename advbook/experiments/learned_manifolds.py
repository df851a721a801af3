"""How good the learned manifolds are: do they reproduce test images, and do their points show their class?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor

from advbook import ledger, metrics
from advbook.experiments import Parameters, Result, learned
from advbook.experiments.grid import blocks
from advbook.experiments.judges import Judge, independent
from advbook.experiments.learned import Learned
from advbook.experiments.setting import Setting, check_data, load, title, train_size
from advbook.gaussian.model import fit
from advbook.ledger import Verdict
from advbook.manifolds import vaegan
from advbook.manifolds.projection import l2
from advbook.manifolds.vaegan import BOUND, Autoencoder, Decoders, Size

KINDS: tuple[Learned, ...] = ("class", "data")
TITLES: Mapping[str, str] = {"class": "one a class", "data": "one for all classes"}
SAMPLES = 100  # random points of each class, or in all where there is one manifold, that the judge reads
STEPS = 7  # of an interpolation

# The verdicts' thresholds, fixed before the published runs.
BETTER_THAN_MEAN, BETTER_THAN_LINEAR = 1.25, 1.0


class LearnedManifolds(Parameters):
    """One data set and one size of its learned manifolds."""

    experiment: ClassVar[str] = "learned_manifolds"
    version: ClassVar[int] = 1

    dataset: Literal["fonts", "emnist", "mnist", "fashion_mnist", "celeba"] = Field("fonts", description="data set")
    manifold: Size = Field("small", description="size of the VAE-GANs")
    epochs: int = Field(0, ge=0, description="epochs of the VAE-GANs; 0: as many as their size asks for")
    n: int = Field(10_000, ge=100, description="training images of what they are compared with, and of the judge")
    images: int = Field(1_000, ge=25, le=8_000, description="test images that are reproduced")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        size = train_size(self.dataset)
        if self.n > size:
            raise ValueError(f"Parameter N = {self.n} is not allowed: {self.dataset} has {size:,} training images.")
        return self

    def check_data(self) -> None:
        """Raise MissingData or DamagedData, in one sentence, if the data set is not there."""
        check_data(self.dataset)

    def larger(self) -> dict[str, Any]:
        """The paper's size, and after that more test images."""
        return {"MANIFOLD": "paper"} if self.manifold == "small" else {"IMAGES": min(2 * self.images, 8_000)}

    def load(self) -> Setting:
        """The images of this point, on its device."""
        return load(self.dataset, self.n, "first", self.images, self.torch_device(), held_out=1)

    @staticmethod
    def verdicts(rows: pd.DataFrame) -> list[Verdict]:
        """The chapter's claims against their thresholds, from the rows of one data set and size.

        1. A learned manifold knows more of an image than its class: the error of the class mean is at least 1.25 times
        that of dec(z), in the class where this is least; z is mu(x) clipped into [-2, 2]^D, as the chapters use it. 2.
        It knows more than a linear manifold of the same dimension, the class's first principal components: that error
        is at least as large, over all images.
        """
        name = title(rows.iloc[0]["dataset"])
        own = rows[(rows.what == "reconstruction") & (rows.kind == "class")]
        drawn = {row["label"]: _resampled(row) for row in own.to_dict("records")}
        single = [ratio["mean"] for label, ratio in drawn.items() if label != "all"]
        # The class whose interval ends lowest, so that none of the others can be below the threshold unseen.
        nothing = np.array([np.nan])
        seen = len(single) > 0 and all(np.isfinite(ratio[0]) for ratio in single)
        worst = min(single, key=lambda ratio: metrics.percentiles(ratio)[1]) if seen else nothing
        return [
            Verdict(
                f"Learned class manifolds of {name} reproduce test images better than the class mean, in every class",
                "least over classes of error of the class mean / error of dec(z)",
                *metrics.percentiles(worst),
                BETTER_THAN_MEAN,
            ),
            Verdict(
                f"They reproduce test images of {name} better than linear manifolds of the same dimension",
                "error of principal components / error of dec(z)",
                *metrics.percentiles(drawn["all"]["linear"]),
                BETTER_THAN_LINEAR,
            ),
        ]

    def compute(self) -> Result:
        """Learn the manifolds, if they are not there, reproduce test images, and let the judge read them."""
        setting = self.load()
        device = setting.x.device
        judge = independent(self.dataset, self.n, device)
        rows: list[dict[str, Any]] = []
        for kind in KINDS:
            pairs = learned.autoencoders(self.dataset, kind, self.manifold, device, epochs=self.epochs)
            rows += _measured(setting, kind, _Learned(pairs, setting, kind == "class"), judge)
            if self.dataset != "celeba":  # no faces in rows that can be published
                rows += _pictures(setting, kind, pairs)
        return Result(rows, {})


@dataclass(frozen=True, eq=False)
class _Learned:
    """A learned manifold and the test images: their codes mu(x) [B, D], and the images of codes."""

    pairs: list[Autoencoder]
    setting: Setting
    by_class: bool

    @property
    def latents(self) -> int:
        """D."""
        return self.pairs[0].latents

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """dec(z)."""
        with torch.no_grad():
            return Decoders(self.pairs)(z, y)

    def codes(self) -> Tensor:
        """mu(x): [B, D]."""
        return vaegan.encode(self.pairs, self.setting.x_test, self.setting.y_test)


def _measured(setting: Setting, kind: Learned, manifold: _Learned, judge: Judge) -> list[dict[str, Any]]:
    """Errors of each class and of all together: of the manifold, of the class mean and of a linear manifold."""
    x, y, z = setting.x_test, setting.y_test, manifold.codes()
    decoded, clipped = manifold.decode(z, y), manifold.decode(z.clamp(-BOUND, BOUND), y)
    mean, linear = _compared(setting, manifold.latents)
    sizes = {
        "learned": l2(decoded - x),
        "clipped": l2(clipped - x),
        "mean": l2(mean - x),
        "linear": l2(linear - x),
        "outside": (z.abs() > BOUND).any(1).to(x),
        "judge_clean": (judge(x) != y).to(x),
        "judge_decoded": (judge(decoded) != y).to(x),
    }
    samples = _sampled(manifold, judge, len(setting.classes))
    rows = []
    for label in ("all", *range(len(setting.classes))):
        chosen = torch.ones_like(y, dtype=torch.bool) if label == "all" else y == label
        row: dict[str, Any] = {"what": "reconstruction", "kind": kind, "label": str(label), "count": int(chosen.sum())}
        row |= {name: _mean(size[chosen]) for name, size in sizes.items()}
        row |= {f"{name}_blocks": blocks(sizes[name] * chosen) for name in ("clipped", "mean", "linear")}
        if kind == "class":
            own = samples if label == "all" else samples[int(label)]
            row["judge_sampled"] = float((~own).double().mean())
        rows.append(row)
    return rows


def _compared(setting: Setting, latents: int) -> tuple[Tensor, Tensor]:
    """What the class mean, and the class's first principal components about it, make of the test images."""
    means, linear = torch.empty_like(setting.x_test), torch.empty_like(setting.x_test)
    for label in setting.y_test.unique():
        own, gaussian = setting.y_test == label, fit(setting.x[setting.y == label].flatten(1))
        mean, directions = gaussian.mean.to(setting.x), gaussian.directions[:, :latents].to(setting.x)
        flat = setting.x_test[own].flatten(1) - mean
        means[own] = mean.view(setting.x.shape[1:])
        linear[own] = (mean + flat @ directions @ directions.T).clamp(0, 1).view(-1, *setting.x.shape[1:])
    return means, linear


def _sampled(manifold: _Learned, judge: Judge, classes: int) -> Tensor:
    """Whether the judge reads the class in random points of its manifold: [K, SAMPLES]; codes are truncated normal."""
    if not manifold.by_class:
        return torch.ones(classes, 1, dtype=torch.bool)
    device = manifold.setting.x.device
    z, y = _random_codes(classes * SAMPLES, manifold.latents).to(device), torch.arange(classes, device=device)
    label = y.repeat_interleave(SAMPLES)
    return (judge(manifold.decode(z, label)) == label).view(classes, SAMPLES)


def _random_codes(count: int, latents: int) -> Tensor:
    """Normal codes truncated to [-2, 2]^D, as the paper draws them: [count, D]."""
    z, random = torch.empty(count, latents), torch.Generator().manual_seed(40_000)
    return torch.nn.init.trunc_normal_(z, a=-BOUND, b=BOUND, generator=random)


def _pictures(setting: Setting, kind: Learned, pairs: list[Autoencoder]) -> list[dict[str, Any]]:
    """Test images beside dec(mu(x)), random points, and straight ways between two codes: pictures in rows."""
    manifold = _Learned(pairs, setting, kind == "class")
    x, y, z = setting.x_test, setting.y_test, manifold.codes()
    each = [(y == label).nonzero()[:2, 0] for label in range(len(setting.classes))]
    index = torch.cat([own for own in each if len(own) == 2])
    first, second = index[::2], index[1::2]
    share = torch.linspace(0, 1, STEPS, device=x.device)
    between = torch.stack([manifold.decode(torch.lerp(z[first], z[second], t), y[first]) for t in share], 1)
    random = _random_codes(len(index), pairs[0].latents).to(x.device)
    shown = {
        "reconstructions": torch.stack([x[index], manifold.decode(z[index], y[index])], 1),
        "samples": manifold.decode(random, y[index]),
        "interpolations": between,
    }
    return [
        {
            "what": "pictures",
            "kind": kind,
            "name": name,
            "labels": y[index].tolist(),
            **ledger.pictures(part.cpu().numpy()),
        }
        for name, part in shown.items()
    ]


def _resampled(row: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Errors of the class mean and of the linear manifold over that of the learned one: [1 + R] each."""
    counted = np.ones((1, 1, metrics.BLOCKS))
    tables = [(np.array(row[f"{name}_blocks"]).reshape(1, 1, -1), counted) for name in ("clipped", "mean", "linear")]
    # Stacked as points, so that all three are drawn together.
    (drawn,) = metrics.resampled_rates((np.concatenate([t[0] for t in tables]), np.concatenate([t[1] for t in tables])))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"mean": drawn[1] / drawn[0], "linear": drawn[2] / drawn[0]}


def factors(rows: pd.DataFrame, kind: Learned = "class") -> pd.DataFrame:
    """A row a class, and one for all: label, and the factors by which class mean and linear manifold err more, with the
    ends of their 95 % intervals (mean, mean_low, mean_high, linear, linear_low, linear_high).
    """
    lines = []
    for row in rows[(rows.what == "reconstruction") & (rows.kind == kind)].to_dict("records"):
        line: dict[str, Any] = {"label": row["label"], "count": row["count"]}
        for name, drawn in _resampled(row).items():
            ends = zip((name, f"{name}_low", f"{name}_high"), metrics.percentiles(drawn), strict=True)
            line |= dict(ends)
        lines.append(line)
    return pd.DataFrame(lines)


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None
