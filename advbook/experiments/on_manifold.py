"""Chapter 02: adversarial examples on the true manifold, what random moves of the same size do, and what a judge says.

The attacks move theta; font and letter stay. To learn which theta an attack found, codes (theta, font, letter) take
the place of images: the decoder is the first layer of what is attacked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from advbook import fonts, metrics, networks
from advbook.attacks import norms
from advbook.attacks.apgd import strongest_latent
from advbook.attacks.engine import Network, Stop, climb
from advbook.attacks.objectives import cross_entropy
from advbook.attacks.pgd import Attack, attack, pgd, pgd_latent
from advbook.attacks.search import blind
from advbook.attacks.spaces import Latent
from advbook.attacks.steps import adam, sign
from advbook.experiments import Parameters, Result
from advbook.experiments.grid import blocks
from advbook.experiments.recipes import classifiers
from advbook.experiments.setting import Known, Setting, Subset, load
from advbook.ledger import Verdict
from advbook.manifolds.projection import Manifold, l2, levenberg_marquardt
from advbook.training import Schedule

Units = Literal["raw", "range"]
# Who may move, and by how much: theta by eta in its own units, theta by a share of each latent's range, pixels by eps.
ON, ON_RANGE, OFF, NOBODY = "on-manifold", "on-manifold, range units", "regular", "none"
THREATS: Mapping[str, Units] = {ON: "raw", ON_RANGE: "range"}
ATTACKS: tuple[Literal["paper", "strong"], ...] = ("paper", "strong")
SHOWN = 6  # examples on the page

# The verdicts' thresholds, fixed before any run.
EXIST, BEYOND_RANDOM, KEPT = 0.10, 2.0, 0.95


class OnManifold(Parameters):
    """One point of chapter 02: N images of FONTS, its seeds inside."""

    experiment: ClassVar[str] = "02_on_manifold_existence"
    version: ClassVar[int] = 1

    dataset: Literal["fonts"] = Field("fonts", description="data set; the true manifold is known for FONTS alone")
    n: int = Field(2500, ge=100, le=fonts.TRAIN_ROWS, description="training images N")
    subset: Subset = Field("first", description="the first N training rows, or random ones")
    seeds: int = Field(3, ge=1, le=100, description="networks; they differ in initialization and batch order")
    epochs: int = Field(20, ge=1, le=1000, description="epochs of training")
    images: int = Field(200, ge=10, le=8_000, description="attacked test images, the first of the test set")
    eps: float = Field(0.3, ge=0, le=1, description="budget of the regular attack, L-inf")
    eta: float = Field(0.3, ge=0, le=float(np.pi), description="budget of the on-manifold attack, L-inf on theta")
    eta_range: float = Field(0.1, ge=0, le=1, description="the same in range units: a share of each latent's range")
    steps: int = Field(40, ge=1, le=10_000, description="gradient steps of the paper's attacks")
    restarts: int = Field(2, ge=1, le=100, description="restarts of an attack")
    strong_steps: int = Field(40, ge=1, le=10_000, description="steps of Auto-PGD, for each of its two objectives")
    judged: int = Field(25, ge=1, le=1_000, description="images whose examples the judge reads who is told nothing")

    def load(self) -> Setting:
        """The images of this point, on its device."""
        return load(self.dataset, self.n, self.subset, self.images, self.torch_device())

    def networks(self, setting: Setting) -> list[nn.Sequential]:
        """The trained network of every seed: those of chapter 01."""
        data = (self.dataset, self.subset, self.n)
        return classifiers(setting, data, schedule=Schedule(epochs=self.epochs), seeds=self.seeds)

    def larger(self) -> dict[str, Any]:
        """Twice the training images, as far as there are so many."""
        return {"N": min(2 * self.n, fonts.TRAIN_ROWS)}

    def check_data(self) -> None:
        """FONTS ships with the package."""

    @property
    def draws(self) -> int:
        """Random moves an image in the random search: as often as the strong attack may look at an image."""
        return 1 + 2 * self.restarts * (self.strong_steps + 2)

    @staticmethod
    def verdicts(rows: pd.DataFrame) -> list[Verdict]:
        """The chapter's claims against their thresholds, from the rows of a point.

        1. They exist: the success rate is at least .1. 2. They are the attack's doing: it is at least twice that of
        random moves of the same size. 3. They keep their label: of those whose image the judge read rightly before,
        it still reads 95 %. Each once with the paper's attack, averaged over restarts beside as many random moves, and
        once with the strong one, whose restarts count together, beside a random search with as many tries.
        """
        average, worst = (_resampled(rows, "success", definition) for definition in ("average", "worst"))
        kept = _resampled(rows, "examples", "average")
        paper, strong = average[ON, "paper"], worst[ON, "strong"]
        over = {
            "paper": paper / _above_zero(rows, average[ON, "random moves"]),
            "strong": strong / _above_zero(rows, worst[ON, "random search"]),
        }
        claims: list[tuple[str, Mapping[str, str], Mapping[str, np.ndarray], float]] = [
            (
                "Adversarial examples exist on the manifold",
                {"paper": "success rate averaged over restarts", "strong": "success rate over all restarts"},
                {"paper": paper, "strong": strong},
                EXIST,
            ),
            (
                "They are the attack's doing, not any move's",
                {
                    "paper": "success rate / that of random moves",
                    "strong": "success rate / that of a random search with as many tries",
                },
                over,
                BEYOND_RANDOM,
            ),
            (
                "They keep their label",
                dict.fromkeys(ATTACKS, "share of its examples whose letter the judge still reads"),
                {name: kept[ON, name] for name in ATTACKS},
                KEPT,
            ),
        ]
        return [
            Verdict(claim, statistic[name], *metrics.percentiles(drawn[name]), threshold, attack=name)
            for claim, statistic, drawn, threshold in claims
            for name in ATTACKS
        ]

    def compute(self) -> Result:
        """Train, attack and judge, seed by seed."""
        setting = self.load()
        assert setting.known is not None
        chosen = torch.linspace(0, self.images - 1, min(self.judged, self.images), device=setting.x.device).long()
        rows: list[dict[str, Any]] = []
        asked: list[Asked] = []
        shown: dict[str, np.ndarray] = {}
        for seed, f in enumerate(self.networks(setting)):
            right = networks.predict(f, setting.x_test).argmax(1) == setting.y_test
            found = _attacks(self, setting, setting.known, f, seed)
            rows += _rows(setting, setting.known, f, found, right, seed)
            asked += _asked(setting, found, right, chosen, seed)
            if seed == 0:
                shown = _examples(self, setting, setting.known, f, found, right)
                shown |= {f"network/{name}": tensor.cpu().numpy() for name, tensor in f.state_dict().items()}
        rows += _untold(setting, setting.known, asked, chosen)
        return Result(rows + _pooled(pd.DataFrame(rows)), shown)


# --- the attacks ------------------------------------------------------------------------------------------------


def code(theta: Tensor, font: Tensor, letter: Tensor) -> Tensor:
    """theta, font and letter of images as rows: [B, 6], [B], [B] -> [B, 8]."""
    return torch.cat([theta, font[:, None].to(theta), letter[:, None].to(theta)], 1)


def image(codes: Tensor) -> Tensor:
    """The images of codes: [B, 8] -> [B, 1, 28, 28] float32."""
    return fonts.decode(codes[:, :6].float(), codes[:, 6].long(), codes[:, 7].long())


def space(p: OnManifold, known: Known, units: Units) -> Latent:
    """The moves of theta that a threat allows, with codes for images.

    raw: |zeta_i| <= eta, as published, whatever the unit of theta_i. range: |zeta_i| <= eta_range times the width of
    the box in direction i, so that eta means the same for a shift as for a rotation.
    """
    low, high = known.manifold.low, known.manifold.high
    if units == "raw":
        return Latent(known.theta, code, known.context, low, high, p.eta)

    def scaled(z: Tensor, *context: Tensor) -> Tensor:
        return code(low + (high - low) * z, *context)

    unit = (known.theta - low) / (high - low)
    return Latent(unit, scaled, known.context, torch.zeros_like(low), torch.ones_like(low), p.eta_range)


@dataclass(frozen=True)
class Found:
    """What an attack found: x [R, B, 1, 28, 28]; theta [R, B, 6], the transformation in it; success [R, B]; example
    [R, B], which of x to look at further: the successes, and all random moves; forwards: forward samples an image.
    """

    x: Tensor
    theta: Tensor
    success: Tensor
    example: Tensor
    forwards: float


def random_moves(
    f: Network, where: Latent, y: Tensor, draws: int, *, stop: Stop = "pair", generator: torch.Generator
) -> Attack:
    """Random moves of largest size: `draws` points an image on the surface of the ball, boxed.

    f: codes to logits. stop: "image" ends an image's search at the first that fools f.
    """

    def surface(like: Tensor, random: torch.Generator) -> Tensor:
        return where.eta * where.norm.shell(like, random)

    return attack(
        f, where, y, where.z, start=surface, rule=sign(0), steps=0, restarts=draws, slope=blind, stop=stop,
        generator=generator,
    )  # fmt: skip


def _attacks(p: OnManifold, setting: Setting, known: Known, f: nn.Module, seed: int) -> dict[tuple[str, str], Found]:
    """(threat, attack) -> what it found on all test images, the random controls among them."""
    x, y = setting.x_test, setting.y_test
    random, label = torch.Generator().manual_seed(30_000 + seed), f"network {seed}: "
    budget: dict[str, Any] = {"steps": p.steps, "restarts": p.restarts}
    regular = pgd(f, x, y, eps=p.eps, label=label + "regular attack", generator=random, **budget)
    theta = known.theta.expand(p.restarts, -1, -1)
    found = {(OFF, "paper"): Found(regular.x, theta, regular.success, regular.success, regular.forwards)}

    def reads(codes: Tensor) -> Tensor:
        return torch.as_tensor(f(image(codes)))

    for threat, units in THREATS.items():
        where, text = space(p, known, units), f"{label}{threat}, "
        paper = pgd_latent(reads, where, y, generator=_starts(seed), label=text + "paper's attack", **budget)
        strong = strongest_latent(
            reads, where, y, steps=p.strong_steps, restarts=p.restarts, targets=0, label=text + "strong attack",
            generator=random,
        )  # fmt: skip
        moves = random_moves(reads, where, y, p.restarts, generator=random)
        search = random_moves(reads, where, y, p.draws, stop="image", generator=random)
        for name, one in (("paper", paper), ("strong", strong), ("random moves", moves), ("random search", search)):
            codes, success = (one.x, one.success) if name != "random search" else _first(one)
            images = torch.stack([image(run) for run in codes])
            example = torch.ones_like(success) if name == "random moves" else success
            found[threat, name] = Found(images, codes[..., :6], success, example, one.forwards)
    return found


def _starts(seed: int) -> torch.Generator:
    """The randomness of the paper's attack: given again, it starts from the same points."""
    return torch.Generator().manual_seed(20_000 + seed)


def _first(found: Attack) -> tuple[Tensor, Tensor]:
    """Each image's first draw that fools (the first of all where none does), as one restart: [1, B, 8], [1, B]."""
    draw = found.success.long().argmax(0)
    return found.x[draw, torch.arange(len(draw), device=draw.device)][None], found.success.any(0)[None]


# --- the judges -------------------------------------------------------------------------------------------------


@torch.no_grad()
def read_told(x: Tensor, theta: Tensor, font: Tensor, *, batch: int = 500) -> Tensor:
    """The letter that a judge reads who is told the transformation, and knows the fonts but no network: [B].

    x: [B, 1, 28, 28]; theta: [B, 6], which is undone; font: [B], left out. The judge says the letter of the nearest
    prototype (L2) of all other fonts, over the upright pixels that lay inside the canvas.
    """
    letters = fonts.prototypes(x.device).flatten(0, 1).flatten(1)  # [10000, 784], the letter fastest
    squares, read = letters.square(), []
    for rows in torch.arange(len(x), device=x.device).split(batch) if len(x) else ():
        up, inside = (part.flatten(1) for part in fonts.upright(x[rows], theta[rows]))
        seen = inside.to(up)
        distance = seen @ squares.T - 2 * (seen * up) @ letters.T  # less |up|^2, which all letters share
        distance = distance.view(len(rows), fonts.FONTS, len(fonts.LETTERS))
        distance[torch.arange(len(rows), device=x.device), font[rows]] = torch.inf
        read.append(distance.flatten(1).argmin(1) % len(fonts.LETTERS))
    return torch.cat(read) if read else font


def read_untold(
    x: Tensor, font: Tensor, manifold: Manifold, *, pool: int = 100_000, starts: int = 5, steps: int = 6
) -> Tensor:
    """The letter that a judge reads who is told nothing of the transformation: that of the nearest point of all
    letters' manifolds, as far as a search finds it: [B].

    x: [B, 1, 28, 28]; font: [B], left out. Of `pool` random training rows the `starts` nearest of every letter are
    starting points; each takes `steps` damped Gauss-Newton steps in theta.
    """
    rows, nearest = fonts.random_rows("train", pool, device=x.device), []
    for letter in tqdm(range(len(fonts.LETTERS)), "the judge who is told nothing", leave=False):
        own = rows[rows.letter == letter]
        apart = torch.cdist(x.flatten(1), fonts.images(own).flatten(1))
        apart = apart.masked_fill(font[:, None] == own.font, torch.inf)
        near = own[apart.topk(starts, largest=False).indices.flatten()]
        target, parts = x.repeat_interleave(starts, 0), []
        for part in torch.arange(len(near), device=x.device).split(500):
            start, context = near.theta[part][None], (near.font[part], near.letter[part])
            parts.append(levenberg_marquardt(manifold, target[part], start, context, steps=steps).distance[0])
        nearest.append(torch.cat(parts).view(-1, starts).amin(1))
    return torch.stack(nearest, 1).argmin(1)


# --- rows -------------------------------------------------------------------------------------------------------


def _rows(
    setting: Setting,
    known: Known,
    f: nn.Module,
    found: Mapping[tuple[str, str], Found],
    right: Tensor,
    seed: int,
) -> list[dict[str, Any]]:
    """A network's rows: its test error, an attack's success, and what the judge says of the examples."""
    x, y = setting.x_test, setting.y_test
    clear = read_told(x, known.theta, known.test.font) == y
    error = metrics.error(networks.predict(f, setting.x_held_out), setting.y_held_out)
    everything = torch.ones_like(right[None])
    unmoved = Found(x[None], known.theta[None], everything, everything, 0.0)
    rows: list[dict[str, Any]] = [{"what": "error", "seed": seed, "test_error": error}]
    for (threat, name), one in found.items():
        about = {"seed": seed, "threat": threat, "attack": name}
        rows.append({"what": "success", **about, **_success(one, right)})
    for (threat, name), one in {(NOBODY, "clean"): unmoved, **found}.items():
        about = {"seed": seed, "threat": threat, "attack": name}
        rows.append({"what": "examples", **about, **_judged(setting, known, one, right & one.example, clear)})
    return rows


def _success(found: Found, right: Tensor) -> dict[str, Any]:
    won = found.success & right
    return {
        "correct": int(right.sum()),
        "success_average": metrics.success_average(won, right),
        "success_worst": metrics.success_worst(won, right),
        "forwards": found.forwards,
        "hits_average": blocks(won.double().mean(0)),
        "hits_worst": blocks(won.any(0)),
        "counted": blocks(right),
    }


def _judged(setting: Setting, known: Known, found: Found, counted: Tensor, clear: Tensor) -> dict[str, Any]:
    """What the judge who is told the transformation says of the counted examples [R, B], and their sizes."""
    restart, row = counted.nonzero().unbind(1)
    x, theta = found.x[restart, row], found.theta[restart, row]
    read = torch.zeros_like(counted)
    read[restart, row] = read_told(x, theta, known.test.font[row]) == setting.y_test[row]
    zeta = (theta - known.theta[row]).abs()
    return {
        **_answers(read, counted, clear),
        "zeta": _mean(zeta.amax(1)),
        "zeta_by_latent": [_mean(part) for part in zeta.T],
        "change": _mean(l2(x - setting.x_test[row])),
    }


@dataclass(frozen=True)
class Asked:
    """What the judge who is told nothing is asked of a network: one example x [K, 1, 28, 28] of each chosen image, and
    which of them count [K].
    """

    seed: int
    attack: str
    x: Tensor
    counted: Tensor


def _asked(
    setting: Setting, found: Mapping[tuple[str, str], Found], right: Tensor, chosen: Tensor, seed: int
) -> list[Asked]:
    """The first random move, and the first success of the attacks, of each chosen image that the network gets right."""
    asked = [Asked(seed, "clean", setting.x_test[chosen], right[chosen])]
    for name in ("random moves", *ATTACKS):
        example = found[ON, name].example
        first = example.long().argmax(0)[chosen]
        asked.append(Asked(seed, name, found[ON, name].x[first, chosen], (right & example.any(0))[chosen]))
    return asked


def _untold(setting: Setting, known: Known, asked: Sequence[Asked], chosen: Tensor) -> list[dict[str, Any]]:
    """What the judge says who is told nothing, a row a network and kind of example."""
    font, y = known.test.font[chosen], setting.y_test[chosen]
    moved = [one.counted & (one.attack != "clean") for one in asked]
    x = torch.cat([setting.x_test[chosen], *(one.x[which] for one, which in zip(asked, moved, strict=True))])
    read = read_untold(x, torch.cat([font, *(font[which] for which in moved)]), known.manifold)
    clean, *answers = read.split([len(chosen), *(int(which.sum()) for which in moved)])
    rows = []
    for one, which, answer in zip(asked, moved, answers, strict=True):
        said = clean.clone()
        said[which] = answer
        about = {"seed": one.seed, "threat": NOBODY if one.attack == "clean" else ON, "attack": one.attack}
        rows.append({"what": "untold", **about, **_answers(said == y, one.counted, clean == y)})
    return rows


def _answers(read: Tensor, counted: Tensor, clear: Tensor) -> dict[str, Any]:
    """A judge's answers: read, counted [R, B] or [B], which examples it reads rightly, and which count; clear: [B],
    which clean images it reads rightly: kept is the share among these.
    """
    asked = counted & clear
    hits = asked & read
    return {
        "count": int(counted.sum()),
        "judge_error": _mean(~read[counted]),
        "kept": _mean(hits[asked]),
        "hits_average": blocks(hits.double().view(-1, len(clear)).sum(0)),
        "counted": blocks(asked.double().view(-1, len(clear)).sum(0)),
    }


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None


def _resampled(rows: pd.DataFrame, what: str, definition: str) -> dict[tuple[str, str], np.ndarray]:
    """(threat, attack) -> a rate over all seeds, and its bootstrap resamples, drawn together: [1 + R]."""
    single = rows[(rows.what == what) & (rows.seed != "all")]
    groups = single.groupby(["threat", "attack"], sort=False)
    by_key = {(str(threat), str(name)): own.sort_values("seed") for (threat, name), own in groups}
    hits, counted = (
        np.array([own[name].tolist() for own in by_key.values()]) for name in (f"hits_{definition}", "counted")
    )
    (rates,) = metrics.resampled_rates((hits, counted))
    return dict(zip(by_key, rates, strict=True))


def _above_zero(rows: pd.DataFrame, rate: np.ndarray) -> np.ndarray:
    """A rate to divide by: at least that of one success, where random moves never succeed."""
    one = rows[(rows.what == "success") & (rows.seed == "all")].correct.max()
    return np.asarray(np.maximum(rate, 1 / max(one, 1)))


def _pooled(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of all seeds together, with intervals."""
    found = []
    for what, quantities in (
        ("success", {"success_average": "average", "success_worst": "worst"}),
        ("examples", {"kept": "average"}),
        ("untold", {"kept": "average"}),
    ):
        drawn = {name: _resampled(rows, what, definition) for name, definition in quantities.items()}
        for (threat, name), own in rows[rows.what == what].groupby(["threat", "attack"], sort=False):
            row: dict[str, Any] = {"what": what, "seed": "all", "threat": threat, "attack": name}
            for quantity, rates in drawn.items():
                row |= _interval(quantity, rates[str(threat), str(name)])
            found.append(row | (_pooled_success(own) if what == "success" else _pooled_examples(own)))
    return found


def _pooled_success(own: pd.DataFrame) -> dict[str, Any]:
    return {"correct": int(own.correct.sum()), "forwards": float(own.forwards.mean())}


def _pooled_examples(own: pd.DataFrame) -> dict[str, Any]:
    """Means over all seeds' examples; the judge who is told nothing has no sizes."""
    some = own[own["count"] > 0].dropna(axis=1, how="all")
    row: dict[str, Any] = {"count": int(own["count"].sum())}
    for name in ("judge_error", "zeta", "zeta_by_latent", "change"):
        if name in some:
            row[name] = np.average(np.array(some[name].tolist()), axis=0, weights=some["count"]).tolist()
    return row


def _interval(name: str, drawn: np.ndarray) -> dict[str, float | None]:
    ends = zip((name, f"{name}_low", f"{name}_high"), metrics.percentiles(drawn), strict=True)
    return {key: number if np.isfinite(number) else None for key, number in ends}


# --- for figures ------------------------------------------------------------------------------------------------


def _examples(
    p: OnManifold, setting: Setting, known: Known, f: nn.Module, found: Mapping[tuple[str, str], Found], right: Tensor
) -> dict[str, np.ndarray]:
    """A few images that both of the paper's attacks fool, the examples, and the on-manifold attack's path."""
    regular, paper = found[OFF, "paper"], found[ON, "paper"]
    rows = (right & regular.success.any(0) & paper.success.any(0)).nonzero()[:SHOWN, 0]
    if not len(rows):
        return {}
    path = _path(p, known, f, setting.y_test, rows, paper.success.long().argmax(0)[rows])
    theta, font, letter = known.theta[rows], known.test.font[rows], known.test.letter[rows]
    shown = {
        "x": setting.x_test[rows],
        "regular": regular.x[regular.success.long().argmax(0)[rows], rows],
        "on": fonts.decode(theta + path[:, -1], font, letter),
        "theta": theta,
        "font": font,
        "y": letter,
        "path": path,
    }
    return {f"shown/{name}": value.cpu().numpy() for name, value in shown.items()}


def _path(p: OnManifold, known: Known, f: nn.Module, y: Tensor, rows: Tensor, restart: Tensor) -> Tensor:
    """zeta along the paper's attack on the first network: [E, steps + 1, 6]; after the first win it stays.

    rows, restart: [E], which images, from which of the attack's starts.
    """
    where, random, seen = space(p, known, "raw"), _starts(0), []
    draw = norms.gaussian(where.norm, where.eta)
    start = torch.stack([draw(where.z, random) for _ in range(p.restarts)])[restart, rows]

    def recording(codes: Tensor) -> Tensor:
        seen.append(codes.detach())
        return torch.as_tensor(f(image(codes)))

    climb(recording, where[rows], y[rows], start, objective=cross_entropy, rule=adam(lr=0.005), steps=p.steps)
    codes = torch.stack(seen, 1)  # [E, T + 1, 8]
    wrong = networks.predict(f, image(codes.flatten(0, 1))).argmax(1).view(codes.shape[:2]) != y[rows, None]
    step = torch.arange(codes.shape[1], device=y.device).minimum(wrong.int().argmax(1)[:, None])  # [E, T + 1]
    theta = codes[:, :, :6].gather(1, step[:, :, None].expand(-1, -1, 6))
    return theta - known.theta[rows, None]
