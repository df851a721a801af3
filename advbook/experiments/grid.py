"""What chapters 03 and 04 share: a grid over networks, recipes and N, and rates with intervals from its rows.

A row of a rate carries its counts in blocks of neighbouring images, so that intervals and comparisons of points can be
computed from rows alone, published ones too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from advbook import fonts, metrics, networks
from advbook.attacks.apgd import apgd, apgd_latent
from advbook.attacks.objectives import dlr, log_odds
from advbook.attacks.pgd import Attack
from advbook.attacks.spaces import Latent
from advbook.experiments import Axis, Parameters, learned
from advbook.experiments.recipes import Budgets, Recipe, classifiers
from advbook.experiments.setting import Codes, Setting, Subset, check_data, held_size, load, train_size
from advbook.fleet import Fleet, Stack
from advbook.kernels import Banded, bfloat16_is_fast
from advbook.manifolds.vaegan import Size
from advbook.networks import Network
from advbook.training import Schedule

KEYS = ["network", "recipe", "n"]
LEARNED: set[Recipe] = {"on_class", "random_class", "on_data"}  # recipes on learned manifolds, on FONTS too
Definition = Literal["average", "worst"]


class Grid(Parameters):
    """A grid on a data set: its points are (network, recipe, N), the seeds of a point one fleet."""

    axes: ClassVar[Mapping[str, str]] = {"networks": "network", "recipes": "recipe", "n": "n"}

    dataset: Literal["fonts", "emnist", "mnist", "fashion_mnist", "celeba"] = Field(
        "fonts", description="data set; the true manifold is known for FONTS alone, the others' are learned"
    )
    manifold: Size = Field("small", description="size of the learned manifolds")
    networks: Axis[Network] = Field(["cnn"], description="architectures")
    recipes: Axis[Recipe] = Field(["normal"], description="training recipes")
    n: Axis[Annotated[int, Field(ge=100, le=fonts.TRAIN_ROWS)]] = Field([250, 500], description="training images N")
    subset: Subset = Field("first", description="the first N training rows, or random ones")
    seeds: int = Field(2, ge=1, le=100, description="networks a point; they differ in initialization and batch order")
    epochs: int = Field(20, ge=1, le=1000, description="epochs of training")
    train_steps: int = Field(10, ge=1, le=1000, description="steps of the attack inside training (the paper: 40)")
    images: int = Field(75, ge=25, le=8_000, description="attacked test images, the first of the test set")
    test_images: int = Field(9_000, ge=100, le=100_000, description="other test images, for the test error")
    eps: float = Field(0.3, gt=0, le=1, description="budget of regular perturbations, L-inf")
    eta: float = Field(0.3, gt=0, le=float(np.pi), description="budget of latent perturbations, L-inf on theta or z")
    steps: int = Field(40, ge=1, le=10_000, description="gradient steps of the paper's attacks")
    restarts: int = Field(2, ge=1, le=100, description="restarts of the paper's attacks")
    strong_steps: int = Field(50, ge=1, le=10_000, description="steps of Auto-PGD, for each of its two objectives")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        size = train_size(self.dataset)
        tested = held_size(self.dataset)
        if self.images + self.test_images > tested:  # training images cannot stand in: learned manifolds know them
            raise ValueError(
                f"Parameter TEST_IMAGES = {self.test_images} is not allowed: {self.dataset} has {tested:,} test "
                f"images, and IMAGES = {self.images} of them are attacked."
            )
        if self.dataset == "fonts" and self.manifold != "small" and not LEARNED & set(self.recipes):
            raise ValueError(
                f"Parameter MANIFOLD = {self.manifold!r} is not allowed: on fonts, none of RECIPES = {self.recipes} "
                "moves on a learned manifold."
            )
        if max(self.n) > size:
            raise ValueError(f"Parameter N = {self.n} is not allowed: {self.dataset} has {size:,} training images.")
        if self.dataset != "fonts" and {"on_class", "random_class"} & set(self.recipes):
            raise ValueError(
                f"Parameter RECIPES = {self.recipes} is not allowed: on_class and random_class are for FONTS, whose "
                f"true manifold is known; on {self.dataset} on_manifold and random_latent take the learned classes."
            )
        return self

    def check_data(self) -> None:
        """Raise MissingData or DamagedData, in one sentence, if the data set is not there."""
        check_data(self.dataset)

    def larger(self) -> dict[str, Any]:
        """Twice the largest N as a point more, or, if there are not so many images, twice the networks."""
        if 2 * max(self.n) <= train_size(self.dataset):
            return {"N": [*self.n, 2 * max(self.n)]}
        return {"SEEDS": 2 * self.seeds}

    def load(self) -> Setting:
        """The images of a point, on its device."""
        (n,) = self.n
        return load(self.dataset, n, self.subset, self.images, self.torch_device(), held_out=self.test_images)

    def members(self, setting: Setting, recipe: Recipe | None = None) -> list[nn.Sequential]:
        """The trained networks of a point, or those of another recipe on the same images."""
        (n,), (network,), (own,) = self.n, self.networks, self.recipes
        # At the papers' rate the full VGG did not leave chance in a trial on FONTS; a tenth of it learns.
        lr = 0.001 if network == "vgg" else 0.01
        return classifiers(
            setting,
            (self.dataset, self.subset, n),
            recipe=recipe or own,
            network=network,
            schedule=Schedule(epochs=self.epochs, lr=lr),
            budgets=Budgets(self.eps, self.eta, self.train_steps, self.manifold),
            seeds=self.seeds,
        )

    def codes(self, setting: Setting) -> Codes:
        """The attacked test images as points of the best manifold that there is."""
        return learned.codes(setting, "test", learned.own(self.dataset), size=self.manifold)

    def fleet(self, members: Sequence[nn.Module]) -> tuple[Stack, Fleet | None]:
        """The networks as a fleet, and its fast draft where there is one."""
        fleet = Stack(members).eval()
        fast = self.networks == ["cnn"] and self.dataset != "celeba" and bfloat16_is_fast(self.torch_device())
        return fleet, Banded(fleet) if fast else None


def strong(
    f: Fleet, x: Tensor | Latent, y: Tensor, *, eps: float, steps: int, draft: Fleet | None, label: str, seed: int
) -> tuple[Tensor, float]:
    """Auto-PGD from random starts with two objectives, log-odds and DLR: whether either fools, [1, M, B], and forward
    samples an image and member.

    x: images, for |delta|_inf <= eps; or a latent space, whose eta is the budget.
    """
    options: dict[str, Any] = {"restarts": 1, "steps": steps, "draft": draft, "label": label}
    won, forwards = [], 0.0
    for index, objective in enumerate((log_odds, dlr)):
        generator = torch.Generator().manual_seed(2 * seed + index)
        if isinstance(x, Latent):
            found = apgd_latent(f, x, y, objective=objective, generator=generator, **options)
        else:
            found = apgd(f, x, y, eps=eps, objective=objective, generator=generator, **options)
        won.append(found.success)
        forwards += found.forwards
    return won[0] | won[1], forwards


def correct(members: Sequence[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """Which images each network gets right: [M, B] bool."""
    return torch.stack([networks.predict(f, x).argmax(1) == y for f in members])


def error_rows(members: Sequence[nn.Module], setting: Setting) -> list[dict[str, Any]]:
    """Each network's test error on the images held out."""
    wrong = ~correct(members, setting.x_held_out, setting.y_held_out)
    everything = torch.ones_like(wrong[0])
    return [
        {
            "what": "error",
            "seed": seed,
            "test_error": float(own.double().mean()),
            "hits_average": blocks(own),
            "counted": blocks(everything),
        }
        for seed, own in enumerate(wrong)
    ]


def success_rows(threat: str, name: str, success: Tensor, right: Tensor, forwards: float) -> list[dict[str, Any]]:
    """An attack's success on each network's correctly classified images: success [R, M, B], right [M, B]."""
    rows = []
    for seed, own in enumerate(right):
        won = success[:, seed] & own
        rows.append(
            {
                "what": "success",
                "seed": seed,
                "threat": threat,
                "attack": name,
                "correct": int(own.sum()),
                "success_average": metrics.success_average(won, own),
                "success_worst": metrics.success_worst(won, own),
                "forwards": forwards,
                "hits_average": blocks(won.double().mean(0)),
                "hits_worst": blocks(won.any(0)),
                "counted": blocks(own),
            }
        )
    return rows


def size_rows(threat: str, name: str, size: Tensor, found: Attack, right: Tensor) -> list[dict[str, Any]]:
    """The mean size of the perturbations that succeed: size, found.success [R, M, B], right [M, B]."""
    rows = []
    for seed, own in enumerate(right):
        won = (found.success[:, seed] & own).double()
        rows.append(
            {
                "what": "size",
                "seed": seed,
                "threat": threat,
                "attack": name,
                "hits_average": blocks((size[:, seed] * won).sum(0)),
                "counted": blocks(won.sum(0)),
            }
        )
    return rows


def blocks(values: Tensor) -> list[float]:
    """Counts of a row: sums over blocks of neighbouring images, [B] -> metrics.BLOCKS numbers."""
    return [round(value, 6) for value in metrics.block_counts(values.cpu().numpy())]


class Quantity(NamedTuple):
    """Which rows a rate is made of: what is measured, under which threat and attack, in which definition."""

    what: Literal["error", "decoded", "success", "size", "transfer"]
    threat: str = ""
    attack: str = ""
    definition: Definition = "average"


ERROR = Quantity("error")


class Rates(NamedTuple):
    """points: a row a point (network, recipe, n); draws: [P, 1 + R] a quantity, the rate itself first, then its
    bootstrap resamples, drawn together for all points.
    """

    points: pd.DataFrame
    draws: list[np.ndarray]


def rates(rows: pd.DataFrame, *quantities: Quantity) -> Rates:
    """Quantities of the points that have them all. Rows of one set of parameters, whose points have the same seeds."""
    tables = [_table(rows, quantity) for quantity in quantities]
    keys = sorted(set.intersection(*(set(table) for table in tables)))
    points = pd.DataFrame(keys, columns=KEYS)
    if not keys:
        return Rates(points, [np.empty((0, 1)) for _ in tables])
    stacked = [tuple(np.stack([table[key][part] for key in keys]) for part in (0, 1)) for table in tables]
    return Rates(points, list(metrics.resampled_rates(*((hits, counted) for hits, counted in stacked))))


def _table(rows: pd.DataFrame, quantity: Quantity) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    """(network, recipe, n) -> (hits, counted), [S, K] each, of a quantity."""
    chosen = rows[rows.what == quantity.what]
    if quantity.threat:
        chosen = chosen[chosen.threat == quantity.threat]
    if quantity.attack:
        chosen = chosen[chosen.attack == quantity.attack]
    found = {}
    for key, own in chosen.groupby(KEYS):
        own = own.sort_values("seed")
        hits, counted = (np.array(own[name].tolist()) for name in (f"hits_{quantity.definition}", "counted"))
        found[key] = (hits, counted)
    return found


def table(rows: pd.DataFrame, **quantities: Quantity) -> pd.DataFrame:
    """A row a point: network, recipe, n, and of every quantity its rate with the ends of its 95 % interval.

    Columns NAME, NAME_low and NAME_high for each quantity given as NAME=...
    """
    points, draws = rates(rows, *quantities.values())
    for name, drawn in zip(quantities, draws, strict=True):
        intervals = np.array([metrics.percentiles(point) for point in drawn]).reshape(-1, 3)
        points[[name, f"{name}_low", f"{name}_high"]] = intervals
    return points


def agreement(own: pd.DataFrame, published: pd.DataFrame, **quantities: Quantity) -> pd.DataFrame:
    """The points that both rows have: network, recipe, n, quantity, own, published, agree (do the intervals overlap?).

    Intervals are those of `table`. Both may rest on the same networks, or on networks trained with other budgets.
    """
    first, second = table(own, **quantities), table(published, **quantities)
    both = first.merge(second, on=KEYS, suffixes=("", "_published"))
    lines = []
    for point in both.to_dict("records"):
        for name in quantities:
            meet = (
                point[f"{name}_low"] <= point[f"{name}_high_published"]
                and point[f"{name}_low_published"] <= point[f"{name}_high"]
            )
            keys = {key: point[key] for key in KEYS}
            values = {"own": point[name], "published": point[f"{name}_published"]}
            lines.append({**keys, "quantity": name, **values, "agree": bool(meet)})
    return pd.DataFrame(lines, columns=[*KEYS, "quantity", "own", "published", "agree"])


def of(rates: Rates, index: int, network: str, recipe: str) -> dict[int, np.ndarray]:
    """N -> [1 + R] of one recipe's quantity."""
    points = rates.points
    chosen = points[(points.network == network) & (points.recipe == recipe)]
    return {int(n): rates.draws[index][place] for place, n in zip(chosen.index, chosen.n, strict=True)}


def drawn(rows: pd.DataFrame, *wanted: Mapping[str, Any]) -> list[np.ndarray]:
    """Rates over seeds and images with their bootstrap resamples, [1 + R] each, all drawn together.

    wanted: for each rate the columns and values that its rows have (recipe, what, threat, ...). NaN throughout for a
    rate whose rows are not there.
    """
    tables: list[tuple[np.ndarray, np.ndarray] | None] = []
    for conditions in wanted:
        own = rows
        for name, value in conditions.items():
            own = own[own[name] == value] if name in own else own[:0]
        own = own.sort_values("seed") if len(own) else own
        names = ("hits_average", "counted") if len(own) else ()
        parts = [np.array(own[name].tolist(), dtype=float) for name in names]
        tables.append((parts[0], parts[1]) if parts else None)
    there = [table for table in tables if table is not None]
    if not there:
        return [np.full(1001, np.nan) for _ in tables]
    hits, counts = (np.stack([table[part] for table in there]) for part in (0, 1))
    (found,) = metrics.resampled_rates((hits, counts))
    left = iter(found)
    return [np.full(found.shape[1], np.nan) if table is None else next(left) for table in tables]
