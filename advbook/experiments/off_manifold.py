"""Chapter 01: how far regular adversarial examples lie from the manifold, and in which direction they leave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from advbook import metrics, networks
from advbook.attacks.pgd import Attack, pgd, pgd_latent
from advbook.attacks.steps import sign
from advbook.experiments import Parameters, Result, learned
from advbook.experiments.controls import controls
from advbook.experiments.recipes import classifiers
from advbook.experiments.setting import Codes, Setting, Subset, check_data, load, train_size
from advbook.ledger import Verdict, counts
from advbook.manifolds.projection import (
    adam_schedule,
    l2,
    levenberg_marquardt,
    off_neighbours,
    project,
    tangent_angle,
)
from advbook.manifolds.vaegan import Size
from advbook.training import Schedule

# What is measured image by image, with the fixed bins in which a row counts it.
EDGES = {
    "distance": np.linspace(0, 10, 101),
    "norm": np.linspace(0, 10, 101),
    "ratio": np.linspace(0, 1.25, 126),
    "angle": np.linspace(0, 90, 91),
    "moved": np.linspace(0, 1.25, 126),
}
RETURNED = 0.1  # a projection "returns to x" if it lies within this share of |delta| of x
WALK = np.linspace(0, 2, 21).astype(np.float32)  # t of the figure x + t delta
SHOWN = 6  # examples on the page

# The verdicts' thresholds, fixed before any run.
LEAVES_TRUE, LEAVES_APPROXIMATE, BEYOND_CHANCE = 0.9, 1.5, 1.0

Values = Mapping[str, np.ndarray]  # quantity -> [images], NaN where an image does not count


class OffManifold(Parameters):
    """One point of chapter 01: a data set and N, its seeds inside."""

    experiment: ClassVar[str] = "01_off_manifold_distance"
    version: ClassVar[int] = 4

    dataset: Literal["fonts", "emnist", "mnist", "fashion_mnist", "celeba"] = Field("fonts", description="data set")
    manifold: Size = Field("small", description="real images: size of the learned manifolds of the on-manifold attack")
    n: int = Field(2500, ge=100, description="training images N")
    subset: Subset = Field("first", description="the first N training rows, or random ones")
    seeds: int = Field(3, ge=1, le=100, description="networks; they differ in initialization and batch order")
    epochs: int = Field(20, ge=1, le=1000, description="epochs of training")
    images: int = Field(200, ge=10, le=8_000, description="attacked test images, the first of the test set")
    eps: float = Field(0.3, ge=0, le=1, description="budget of the regular attack, L-inf")
    eta: float = Field(0.3, ge=0, le=1, description="budget of the on-manifold attack, L-inf on theta or z")
    steps: int = Field(40, ge=1, le=10_000, description="gradient steps of an attack")
    restarts: int = Field(2, ge=1, le=100, description="restarts of an attack")
    starts: int = Field(5, ge=1, le=100, description="random starts of a projection, besides the original theta")
    neighbours: int = Field(50, ge=1, le=500, description="neighbours that span the approximate manifold")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        size = train_size(self.dataset)
        if self.dataset == "fonts" and self.manifold != "small":
            raise ValueError(
                f"Parameter MANIFOLD = {self.manifold!r} is not allowed: the manifold of fonts is known, not learned."
            )
        if self.n > size:
            raise ValueError(f"Parameter N = {self.n} is not allowed: {self.dataset} has {size:,} training images.")
        if self.neighbours > self.n:
            raise ValueError(f"Parameter NEIGHBOURS = {self.neighbours} is not allowed: N = {self.n} is smaller.")
        return self

    @property
    def known(self) -> bool:
        """Whether the manifold of the data set is known."""
        return self.dataset == "fonts"

    def load(self) -> Setting:
        """The images of this point, on its device."""
        return load(self.dataset, self.n, self.subset, self.images, self.torch_device())

    def networks(self, setting: Setting) -> list[nn.Sequential]:
        """The trained network of every seed."""
        data = (self.dataset, self.subset, self.n)
        return classifiers(setting, data, schedule=Schedule(epochs=self.epochs), seeds=self.seeds)

    def larger(self) -> dict[str, Any]:
        """Twice the training images, or, if there are not so many, twice the networks."""
        if 2 * self.n <= train_size(self.dataset):
            return {"N": 2 * self.n}
        return {"SEEDS": 2 * self.seeds}

    def check_data(self) -> None:
        """Raise MissingData or DamagedData, in one sentence, if the data set is not there."""
        check_data(self.dataset)

    @staticmethod
    def verdicts(rows: pd.DataFrame) -> list[Verdict]:
        """The chapter's two claims against their thresholds, from the rows of one data set.

        1. Regular adversarial examples leave the manifold: on the true one, the median distance is at least .9
        |delta|; on the approximate one, at least 1.5 times that of a move along the data. 2. They leave it more
        orthogonally than chance: the distance is at least that of random signs of the same norm on the same image.
        """
        known = bool((rows.to == "true").any())
        by_kind = {row["kind"]: row for row in pooled(rows, "true" if known else "neighbours").to_dict("records")}
        quantity, threshold = ("ratio", LEAVES_TRUE) if known else ("adversarial_over_this", LEAVES_APPROXIMATE)
        leaves = by_kind["adversarial" if known else "on-manifold move"]
        statistic = "median distance / |delta|" if known else "median of distance / distance of a move along the data"
        chance = by_kind["random sign"]
        return [
            _verdict("Regular adversarial examples leave the manifold", statistic, leaves, quantity, threshold),
            _verdict(
                "They leave it more orthogonally than random signs of the same norm",
                "median of distance / distance of random signs",
                chance,
                "adversarial_over_this",
                BEYOND_CHANCE,
            ),
        ]

    def compute(self) -> Result:
        """Train, attack and measure, seed by seed."""
        setting = self.load()
        measured = [_measure(self, setting, f, seed) for seed, f in enumerate(self.networks(setting))]
        rows = [row for one in measured for row in one.rows]
        rows += _pooled_successes(measured) + _pooled_distances(measured)
        arrays = {
            "/".join([*key, name]): np.stack([one.values[key][name] for one in measured])
            for key in measured[0].values
            for name in EDGES
        }
        return Result(rows, {**arrays, **measured[0].shown})


@dataclass(frozen=True)
class _Measured:
    """One seed: values[manifold, kind][quantity]; success[attack]: [R, B]; forwards[attack]: samples per input;
    correct[attack]: [B]; shown: arrays for figures.
    """

    rows: list[dict[str, Any]]
    values: Mapping[tuple[str, str], Values]
    success: Mapping[str, Tensor]
    forwards: Mapping[str, float]
    correct: Mapping[str, Tensor]
    shown: Mapping[str, np.ndarray]


def _measure(p: OffManifold, setting: Setting, f: nn.Sequential, seed: int) -> _Measured:
    generator, label = torch.Generator().manual_seed(10_000 + seed), f"network {seed}: "
    x, y, codes = setting.x_test, setting.y_test, _codes(p, setting)
    error = metrics.error(networks.predict(f, setting.x_held_out), setting.y_held_out)
    attacks = _attacks(p, f, setting, codes, generator, label)
    # On a learned manifold dec(z) is not quite x: the on-manifold attack starts from it, and counts where it is right.
    decoded = replace(setting, x_test=codes.images()) if setting.known is None else setting
    starts = {name: decoded if name == "on-manifold" else setting for name in attacks}
    correct = {name: networks.predict(f, own.x_test).argmax(1) == y for name, own in starts.items()}
    rows = [{"seed": seed, "test_error": error, **_success_row(n, a, correct[n])} for n, a in attacks.items()]

    fooled = {name: correct[name] & attack.success.any(0) for name, attack in attacks.items()}
    if setting.known is not None:
        del fooled["on-manifold"]  # on the true manifold its distance is zero
    deltas = {kind: _first_success(attacks[kind]) - starts[kind].x_test for kind in fooled}
    deltas |= controls(setting, deltas["adversarial"], generator)
    values = {}
    for kind, delta in deltas.items():
        mask = fooled.get(kind, fooled["adversarial"])
        if kind not in fooled:  # a path that ended before it reached the size of delta does not count
            mask = mask & (l2(delta) > 0.99 * l2(deltas["adversarial"]))
        own = starts.get(kind, setting)
        for manifold, measured in _distances(p, own, delta, mask, generator, label + kind):
            values[manifold, kind] = measured
            rows.append({"seed": seed, **_distance_row(manifold, kind, measured)})
    index = fooled["adversarial"].nonzero()[:, 0]
    if setting.known is not None and len(index):
        rows.append({"seed": seed, **_schedule_row(p, setting, deltas["adversarial"], index, generator)})
    shown = {}
    if seed == 0:
        shown = _examples(p, setting, deltas["adversarial"], index[:SHOWN], generator) | weights(f, x)
    success = {name: attack.success for name, attack in attacks.items()}
    forwards = {name: attack.forwards for name, attack in attacks.items()}
    return _Measured(rows, values, success, forwards, correct, shown)


def _codes(p: OffManifold, setting: Setting) -> Codes:
    """The attacked images as points of the best manifold that there is."""
    return learned.codes(setting, "test", learned.own(p.dataset), size=p.manifold)


def _attacks(
    p: OffManifold, f: nn.Module, setting: Setting, codes: Codes, generator: torch.Generator, label: str
) -> dict[str, Attack]:
    """The paper's regular attack, a stronger one by today's standard, and the on-manifold attack."""
    x, y = setting.x_test, setting.y_test
    budget: dict[str, Any] = {"steps": p.steps, "restarts": p.restarts, "generator": generator}
    return {
        "adversarial": pgd(f, x, y, eps=p.eps, label=label + "regular attack", **budget),
        "sign steps": pgd(f, x, y, eps=p.eps, rule=sign(2.5 * p.eps / p.steps), label=label + "sign steps", **budget),
        "on-manifold": pgd_latent(f, codes.space(p.eta), y, label=label + "on-manifold attack", **budget),
    }


def _first_success(attack: Attack) -> Tensor:
    """The example of each image's first successful restart (of the first restart where none is): [B, C, H, W]."""
    first = attack.success.long().argmax(0)
    return attack.x[first, torch.arange(len(first), device=first.device)]


def _distances(
    p: OffManifold, setting: Setting, delta: Tensor, mask: Tensor, generator: torch.Generator, label: str
) -> list[tuple[str, Values]]:
    """Distance to the true manifold (where known) and to the span of neighbours, on the images of the mask."""
    rows = mask.nonzero()[:, 0]
    if not len(rows):
        nothing = {name: np.full(len(mask), np.nan, dtype=np.float32) for name in EDGES}
        return [(name, nothing) for name in (["true"] if setting.known else []) + ["neighbours"]]
    move = delta[rows]
    found = []
    for name, (nearest, distance) in _projections(p, setting, move, rows, generator, label).items():
        angle = (distance / l2(move)).clamp(0, 1).asin().rad2deg()
        if name == "true" and (known := setting.known) is not None:
            context = tuple(part[rows] for part in known.context)
            angle = tangent_angle(move, known.manifold.linearize(known.theta[rows], *context)[1])
        found.append((name, _values(mask, move, distance, nearest - setting.x_test[rows], angle)))
    return found


def _projections(
    p: OffManifold,
    setting: Setting,
    delta: Tensor,
    rows: Tensor,
    generator: torch.Generator,
    label: str | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """pi(x + delta) [P, C, H, W] and its distance [P], on the true manifold, where known, and on the neighbours' span.

    delta: [P, C, H, W]; rows: [P], the test image x of each.
    """
    x, found = setting.x_test[rows], {}
    query = x + delta
    if (known := setting.known) is not None:
        theta, context = known.theta[rows], tuple(part[rows] for part in known.context)
        search = partial(project, method=levenberg_marquardt, starts=p.starts, generator=generator, label=label)
        z, distance = search(known.manifold, query, theta, context).best()
        found["true"] = (known.manifold.decode(z, *context), distance)
    residual, distance = off_neighbours(query, x, setting.x, k=p.neighbours)
    found["neighbours"] = (query - residual, distance)
    return found


def _values(mask: Tensor, delta: Tensor, distance: Tensor, move: Tensor, angle: Tensor) -> Values:
    """All quantities on all images; move is pi(x + delta) - x."""
    norm = l2(delta)
    parts = {
        "distance": distance,
        "norm": norm,
        "ratio": distance / norm,
        "angle": angle,
        "moved": l2(move) / norm,
    }
    values = {}
    for name, part in parts.items():
        values[name] = np.full(len(mask), np.nan, dtype=np.float32)
        values[name][mask.cpu().numpy()] = part.cpu().numpy()
    return values


def _schedule_row(
    p: OffManifold, setting: Setting, delta: Tensor, rows: Tensor, generator: torch.Generator
) -> dict[str, Any]:
    """The projection's two schedules on the same images: the released one (Adam) and damped Gauss-Newton."""
    assert setting.known is not None
    m, theta = setting.known.manifold, setting.known.theta
    rows = rows[:50]
    query, context = setting.x_test[rows] + delta[rows], tuple(part[rows] for part in setting.known.context)
    near, state = {}, generator.get_state()
    for name, method in (("adam", adam_schedule), ("gauss_newton", levenberg_marquardt)):
        generator.set_state(state)  # the same random starts for both
        near[name] = project(
            m, query, theta[rows], context, method=method, starts=p.starts, generator=generator, label=name
        ).distance
    gap = near["adam"].amin(0) - near["gauss_newton"].amin(0)
    reached = near["gauss_newton"][0] <= near["gauss_newton"].amin(0) + 1e-3
    return {
        "what": "schedule",
        "count": len(rows),
        "adam_further_by": float(gap.median()),
        "adam_nearer_share": float((gap < -1e-3).double().mean()),
        "original_start_reaches_share": float(reached.double().mean()),
        "random_start_nearer_by": float((near["gauss_newton"][0] - near["gauss_newton"].amin(0)).max()),
    }


def _examples(
    p: OffManifold, setting: Setting, delta: Tensor, rows: Tensor, generator: torch.Generator
) -> dict[str, np.ndarray]:
    """A few examples for figures: x, delta, and along x + t delta the distance to the manifold and the projection."""
    if not len(rows):
        return {}
    x, d = setting.x_test[rows], delta[rows]
    t = torch.from_numpy(WALK).to(x.device)
    walk = (x[:, None] + t[:, None, None, None] * d[:, None]).clamp(0, 1) - x[:, None]  # [E, T, C, H, W]
    projections = _projections(p, setting, walk.flatten(0, 1), rows.repeat_interleave(len(t)), generator)
    nearest, distance = projections["true" if p.known else "neighbours"]
    shape = (len(rows), len(t))
    shown = {
        "shown/x": x,
        "shown/delta": d,
        "shown/y": setting.y_test[rows],
        "shown/distance": distance.view(shape),
        "shown/projection": nearest.view(*shape, *x.shape[1:]).clamp(0, 1).mul(255).round().byte(),
    }
    return {name: value.cpu().numpy() for name, value in shown.items()}


def _success_row(name: str, attack: Attack, correct: Tensor) -> dict[str, Any]:
    return {
        "what": "success",
        "attack": name,
        "correct": int(correct.sum()),
        "success_average": metrics.success_average(attack.success, correct),
        "success_worst": metrics.success_worst(attack.success, correct),
        "forwards": attack.forwards,
    }


def _distance_row(manifold: str, kind: str, values: Values) -> dict[str, Any]:
    counted = np.isfinite(values["ratio"])
    medians = {name: float(np.median(part[counted])) if counted.any() else None for name, part in values.items()}
    returned = float((values["moved"][counted] <= RETURNED).mean()) if counted.any() else None
    bins = {f"{name}_counts": counts(part, EDGES[name]) for name, part in values.items()}
    return {
        "what": "distance",
        "to": manifold,
        "kind": kind,
        "count": int(counted.sum()),
        "returned": returned,
        **medians,
        **bins,
    }


def _pooled_successes(measured: list[_Measured]) -> list[dict[str, Any]]:
    """Success rates over all seeds, in both definitions, with intervals."""
    rows = []
    for name in measured[0].success:
        forwards = float(np.mean([one.forwards[name] for one in measured]))
        row: dict[str, Any] = {"what": "success", "seed": "all", "attack": name, "forwards": forwards}
        for definition in ("average", "worst"):
            values = np.stack([_rate(one, name, definition) for one in measured])
            row |= _interval(f"success_{definition}", values, np.nanmean)
        rows.append(row)
    return rows


def _rate(one: _Measured, name: str, definition: str) -> np.ndarray:
    """Success by image, averaged over restarts or of any restart; NaN where the clean image is misclassified: [B]."""
    success = one.success[name].double()
    rate = success.mean(0) if definition == "average" else success.amax(0)
    return rate.masked_fill(~one.correct[name], torch.nan).cpu().numpy()


def _pooled_distances(measured: list[_Measured]) -> list[dict[str, Any]]:
    """Distances over all seeds with intervals, and the adversarial distance against each kind's, image by image."""
    rows = []
    for manifold, kind in measured[0].values:
        values = {name: np.stack([one.values[manifold, kind][name] for one in measured]) for name in EDGES}
        adversarial = np.stack([one.values[manifold, "adversarial"]["distance"] for one in measured])
        row = {"seed": "all", **_distance_row(manifold, kind, {k: v.reshape(-1) for k, v in values.items()})}
        for name in ("ratio", "angle", "moved"):
            row |= _interval(name, values[name], np.nanmedian)
        # A move on the true manifold has distance zero up to rounding; the floor keeps the quotient finite.
        over = adversarial / np.maximum(values["distance"], 1e-3)
        row |= _interval("adversarial_over_this", over, np.nanmedian)
        rows.append(row)
    return rows


def _interval(name: str, values: np.ndarray, statistic: Callable[..., np.ndarray]) -> dict[str, float | None]:
    numbers = (float(number) for number in metrics.interval(values, statistic))
    return {
        key: number if np.isfinite(number) else None
        for key, number in zip((name, f"{name}_low", f"{name}_high"), numbers, strict=True)
    }


def pooled(rows: pd.DataFrame, manifold: str) -> pd.DataFrame:
    """The rows of all kinds of perturbation over all seeds, against the "true" manifold or the "neighbours"."""
    return rows[(rows.what == "distance") & (rows.seed == "all") & (rows.to == manifold)]


def drawn_network(arrays: Mapping[str, np.ndarray], classes: int) -> nn.Sequential:
    """The first network of a point as its rows hold it, so that figures show the one for which delta was made."""
    colours, height, width = arrays["shape"].tolist()
    fresh = networks.cnn(classes, side=(height, width), colours=colours, generator=torch.Generator())
    network = networks.folded(fresh)
    held = {name.removeprefix("network/"): torch.from_numpy(array) for name, array in arrays.items()}
    network.load_state_dict({name: held[name] for name in network.state_dict()})
    return network


def weights(network: nn.Module, x: Tensor) -> dict[str, np.ndarray]:
    """What drawn_network takes: the weights of a network for images x [B, C, H, W]."""
    held = {f"network/{name}": tensor.cpu().numpy() for name, tensor in network.state_dict().items()}
    return held | {"shape": np.array(x.shape[1:])}


def answers(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """The classes a network reads in images: [B, C, H, W] -> [B]."""
    device = next(network.parameters()).device
    return networks.predict(network, torch.from_numpy(images).to(device)).argmax(1).cpu().numpy()


def _verdict(claim: str, statistic: str, row: Mapping[Any, Any], quantity: str, threshold: float) -> Verdict:
    names = (quantity, f"{quantity}_low", f"{quantity}_high")
    value, low, high = (np.nan if row[name] is None else float(row[name]) for name in names)
    return Verdict(claim, statistic, value, low, high, threshold)
