"""Rows of what networks accept: thresholds from held-out images, then errors among what lies above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from advbook import confidence, metrics
from advbook.confidence import Answers, Counts
from advbook.experiments.setting import Setting
from advbook.experiments.threats import Group, Target, probabilities

TPR = 0.99  # the headline's true-positive rate; OTHERS stand beside it
OTHERS = (0.95, 0.98, 0.995)
TAUS = np.linspace(0, 1, 51)  # of the curves
SHOWN, WALKED = 12, 6  # images of the threshold's slider, and of the walk's


class Attempt(NamedTuple):
    """What an attack found: p [R, M, B, K], the images x [R, M, B, C, H, W], forward samples an image and member."""

    group: Group
    name: str
    p: Tensor
    x: Tensor
    forwards: float


@dataclass(frozen=True)
class Judge:
    """The thresholds of a fleet's members, and what they say of clean images.

    taus: at TPR; others: at OTHERS; clean: of images that nothing else uses; attacked_clean: of the attacked images
    before the attack; y: their labels [B].
    """

    taus: list[float]
    others: list[list[float]]
    clean: list[Answers]
    attacked_clean: list[Answers]
    y: np.ndarray
    classes: int

    @classmethod
    def of(cls, target: Target, setting: Setting, count: int) -> Self:
        """Thresholds from the first `count` held-out images; the others give the clean error."""
        p, y = to_numpy(probabilities(target.f, setting.x_held_out)), to_numpy(setting.y_held_out)
        held = [confidence.answers(own[:count], y[:count]) for own in p]
        attacked = to_numpy(probabilities(target.f, target.x))
        return cls(
            [confidence.threshold(one, TPR) for one in held],
            [[confidence.threshold(one, tpr) for tpr in OTHERS] for one in held],
            [confidence.answers(own[count:], y[count:]) for own in p],
            [confidence.answers(own, to_numpy(target.y)) for own in attacked],
            to_numpy(target.y),
            p.shape[2],
        )

    def clean_rows(self) -> list[dict[str, Any]]:
        """Every member's threshold, its error with and without rejection, and its curve over tau."""
        rows: list[dict[str, Any]] = []
        for seed, (clean, tau) in enumerate(zip(self.clean, self.taus, strict=True)):
            about = {"seed": seed, "threat": "clean"}
            accepted = number(confidence.true_positive_rate(clean, tau))
            rows.append({"what": "threshold", **about, "tpr": TPR, "tau": tau, "rate": accepted})
            rows.append({"what": "curve", **about, "attack": "", "rates": _rounded(confidence.error(clean, TAUS))})
            for tpr, at in ((0.0, 0.0), (TPR, tau)):
                rows.append({"what": "error", **about, "tpr": tpr, **counted(confidence.error_counts(clean, at))})
        return rows

    def attack_rows(self, threat: str, found: Sequence[Attempt]) -> list[dict[str, Any]]:
        """Robust errors of every member: under groups of attacks with blocks, under single attacks without."""
        rows = []
        for seed in range(len(self.taus)):
            for attack in ("confidence", "error", "paper", "strong"):
                rows += self._group_rows(seed, threat, attack, self.worst(seed, _chosen(found, attack), attack))
            for one in found:
                said = self.worst(seed, [one], "strong")
                rate = number(confidence.robust_error(self.attacked_clean[seed], said, self.taus[seed]))
                about = {"seed": seed, "threat": threat, "attack": one.name, "group": one.group}
                rows.append({"what": "attack", **about, "rate": rate, "forwards": one.forwards})
        return rows

    def _group_rows(self, seed: int, threat: str, attack: str, said: Answers) -> list[dict[str, Any]]:
        clean, tau = self.attacked_clean[seed], self.taus[seed]
        about = {"seed": seed, "threat": threat, "attack": attack}
        extra = {
            "fpr": float(confidence.false_positive_rate(clean, said, tau)),
            "auc": confidence.roc_auc(clean, said),
            "alternative": number(confidence.alternative_robust_error(clean, said, tau)),
            "at_others": _rounded(confidence.robust_error(clean, said, self.others[seed])),
        }
        rows = [
            {"what": "robust", **about, "tpr": tpr, **counted(confidence.robust_error_counts(clean, said, at)), **more}
            for tpr, at, more in ((0.0, 0.0, {}), (TPR, tau, extra))
        ]
        if attack in ("paper", "strong"):
            rates = _rounded(confidence.robust_error(clean, said, TAUS))
            rows.append({"what": "curve", **about, "rates": rates})
        return rows

    def worst(self, seed: int, found: Sequence[Attempt], attack: str) -> Answers:
        """The worst case over attempts: by released definition, or, for the strong group, errors first."""
        p = confidence.worst_case(self._attempts(seed, found), self.y, errors_first=attack == "strong")
        return confidence.answers(p, self.y)

    def worst_images(self, seed: int, found: Sequence[Attempt]) -> Tensor:
        """The images of the worst attempts on a member, errors first: [B, C, H, W]."""
        index = confidence.worst_attempts(self._attempts(seed, found), self.y, errors_first=True)
        runs = torch.cat([one.x[:, seed] for one in found])  # [R, B, C, H, W]
        return runs[torch.from_numpy(index).to(runs.device), torch.arange(len(index), device=runs.device)]

    def _attempts(self, seed: int, found: Sequence[Attempt]) -> list[np.ndarray]:
        return [to_numpy(one.p[:, seed]) for one in found]

    def pooled_rows(self, threat: str, given: Sequence[Answers]) -> list[dict[str, Any]]:
        """Errors with and without rejection over many versions of the same B images: Answers [M, V, B] each.

        All versions of an image lie in one block, so that a bootstrap over blocks draws images.
        """
        rows = []
        for seed, tau in enumerate(self.taus):
            sure, right = (np.concatenate([one[part][seed] for one in given]) for part in (0, 1))  # [V, B]
            for tpr, at in ((0.0, 0.0), (TPR, tau)):
                counts = confidence.error_counts(Answers(sure.ravel(), right.ravel()), at)
                versions = (part.reshape(sure.shape).sum(0) for part in counts)  # of an image, together
                hits, of = map(block_list, versions)
                rate = number(counts.rate())
                about = {"what": "error", "seed": seed, "threat": threat, "tpr": tpr, "rate": rate}
                rows.append({**about, "hits_average": hits, "counted": of})
        return rows

    def clean_arrays(self, x: Tensor, network: nn.Module) -> dict[str, np.ndarray]:
        """What the figures need of the first member: its weights, and its answers to the attacked images."""
        weights = {f"network/{name}": to_numpy(value) for name, value in network.state_dict().items()}
        clean = self.attacked_clean[0]
        return weights | {
            "tau": np.array(self.taus[:1]),
            "y": self.y,
            "x": to_numpy(x[:WALKED]),
            "clean/shown": _bytes(x[:SHOWN]),
            "clean/confidence": clean.confidence,
            "clean/correct": clean.correct,
        }

    def attack_arrays(self, threat: str, found: Sequence[Attempt]) -> dict[str, np.ndarray]:
        """What the figures need of the first member's worst attempts; of L-inf also some perturbed images in full."""
        strong, shown = self.worst(0, found, "strong"), self.worst_images(0, found)
        arrays = {
            f"{threat}/shown": _bytes(shown[:SHOWN]),
            f"{threat}/confidence": strong.confidence,
            f"{threat}/wrong": ~strong.correct,
        }
        if threat == "linf":
            published = [one for one in found if one.group == "confidence"]
            arrays["walk"] = to_numpy(self.worst_images(0, published)[:WALKED])
        return arrays


def counted(counts: Counts) -> dict[str, Any]:
    """A rate of one member, and its counts in blocks of neighbouring images."""
    return {
        "rate": number(counts.rate()),
        "hits_average": block_list(counts.errors),
        "counted": block_list(counts.counted),
    }


def block_list(values: np.ndarray) -> list[float]:
    """Sums over blocks of neighbouring images: [B] -> metrics.BLOCKS numbers."""
    return [round(value, 6) for value in metrics.block_counts(values)]


def number(rate: Any) -> float | None:
    """A rate for a row; None where nothing counts."""
    return float(rate) if np.isfinite(rate) else None


def to_numpy(values: Tensor) -> np.ndarray:
    """A tensor's values."""
    return np.asarray(values.detach().cpu().numpy())


def _rounded(rates: np.ndarray) -> list[float | None]:
    return [None if not np.isfinite(rate) else round(float(rate), 4) for rate in rates]


def _bytes(x: Tensor) -> np.ndarray:
    return to_numpy(x.mul(255).round().byte())


def _chosen(found: Sequence[Attempt], attack: str) -> list[Attempt]:
    """The attempts of a group; "paper": all but the stronger ones; "strong": all."""
    if attack == "strong":
        return list(found)
    return [one for one in found if (one.group != "stronger" if attack == "paper" else one.group == attack)]
