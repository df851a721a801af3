"""Chapter 02: adversarial examples on the manifold, what random moves of the same size do, and what a judge says.

On FONTS the attacks move theta on the true manifold; font and letter stay. On real images they move the code z on the
manifold learned of the image's class, as a control on one learned of all classes together, and the parameters of a
transformation of the image itself. To learn which code an attack found, codes take the place of images: the decoder is
the first layer of what is attacked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from advbook import fonts, ledger, metrics, networks
from advbook.attacks import norms
from advbook.attacks.apgd import strongest_latent
from advbook.attacks.engine import Network, Stop, climb
from advbook.attacks.objectives import cross_entropy
from advbook.attacks.pgd import Attack, attack, pgd, pgd_latent
from advbook.attacks.search import blind
from advbook.attacks.spaces import Latent
from advbook.attacks.steps import adam, sign
from advbook.experiments import Parameters, Result, learned
from advbook.experiments.grid import blocks
from advbook.experiments.judges import independent, read_told, read_untold
from advbook.experiments.learned import Box
from advbook.experiments.off_manifold import weights
from advbook.experiments.recipes import ETA_DATA, classifiers
from advbook.experiments.setting import Codes, Known, Setting, Subset, check_data, load, train_size
from advbook.ledger import Verdict
from advbook.manifolds import transform
from advbook.manifolds.projection import l2
from advbook.manifolds.vaegan import Size
from advbook.training import Schedule

Units = Literal["raw", "range"]
# Who may move, and by how much: the code by eta in its own units, by a share of each latent's range, on a manifold of
# all classes together; a transformation of the image by eta; pixels by eps.
ON, ON_RANGE, ON_DATA = "on-manifold", "on-manifold, range units", "one for all classes"
MOVED, OFF, NOBODY = "transformation", "regular", "none"
ATTACKS: tuple[Literal["paper", "strong"], ...] = ("paper", "strong")
SHOWN = 6  # examples on the page

# The verdicts' thresholds, fixed before any run.
EXIST, BEYOND_RANDOM, KEPT = 0.10, 2.0, 0.95


class OnManifold(Parameters):
    """One point of chapter 02: a data set and N, its seeds inside."""

    experiment: ClassVar[str] = "02_on_manifold_existence"
    version: ClassVar[int] = 1

    dataset: Literal["fonts", "emnist", "mnist", "fashion_mnist", "celeba"] = Field(
        "fonts", description="data set; the true manifold is known for FONTS alone, the others' are learned"
    )
    manifold: Size = Field("small", description="size of the learned manifolds; FONTS does not need them")
    box: Box = Field("limits", description='valid codes: "limits", as in the paper, or the range of the "codes"')
    n: int = Field(2500, ge=100, le=fonts.TRAIN_ROWS, description="training images N")
    subset: Subset = Field("first", description="the first N training rows, or random ones")
    seeds: int = Field(3, ge=1, le=100, description="networks; they differ in initialization and batch order")
    epochs: int = Field(20, ge=1, le=1000, description="epochs of training")
    images: int = Field(100, ge=10, le=8_000, description="attacked test images, the first of the test set")
    eps: float = Field(0.3, ge=0, le=1, description="budget of the regular attack, L-inf")
    eta: float = Field(0.3, ge=0, le=float(np.pi), description="budget of the on-manifold attack, L-inf on theta or z")
    eta_range: float = Field(
        0.1, ge=0, le=1, description="FONTS: the same in range units, a share of each latent's range"
    )
    steps: int = Field(40, ge=1, le=10_000, description="gradient steps of the paper's attacks")
    restarts: int = Field(2, ge=1, le=100, description="restarts of an attack")
    strong_steps: int = Field(40, ge=1, le=10_000, description="steps of Auto-PGD, for each of its two objectives")
    judged: int = Field(
        25, ge=1, le=1_000, description="FONTS: images whose examples the judge reads who is told nothing"
    )
    judge_n: int = Field(5_000, ge=100, description="real images: training images of the independent judge")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        size = train_size(self.dataset)
        if self.dataset == "fonts" and self.manifold != "small":
            raise ValueError(
                f"Parameter MANIFOLD = {self.manifold!r} is not allowed: the manifold of fonts is known, not learned."
            )
        for name in ("n", "judge_n"):
            if getattr(self, name) > size and (name == "n" or self.dataset != "fonts"):
                raise ValueError(
                    f"Parameter {name.upper()} = {getattr(self, name)} is not allowed: {self.dataset} has {size:,} "
                    "training images."
                )
        return self

    def load(self) -> Setting:
        """The images of this point, on its device."""
        return load(self.dataset, self.n, self.subset, self.images, self.torch_device())

    def networks(self, setting: Setting) -> list[nn.Sequential]:
        """The trained network of every seed: those of chapter 01 where N is the same."""
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
                dict.fromkeys(ATTACKS, "share of its examples whose label the judge still reads"),
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
        targets, judges = _targets(self, setting), _judges(self, setting)
        chosen = torch.linspace(0, self.images - 1, min(self.judged, self.images), device=setting.x.device).long()
        rows: list[dict[str, Any]] = []
        asked: list[Asked] = []
        shown: dict[str, np.ndarray] = {}
        for seed, f in enumerate(self.networks(setting)):
            found = _attacks(self, setting, targets, f, seed)
            right = {key: networks.predict(f, one.clean).argmax(1) == setting.y_test for key, one in found.items()}
            rows += _rows(setting, judges, f, found, right, seed)
            if setting.known is not None:
                asked += _asked(setting, found, right[ON, "paper"], chosen, seed)
            if seed == 0:
                shown = _examples(self, setting, targets[ON], f, found, right)
                shown |= weights(f, setting.x_test)
                rows += _pictures(setting, judges, f, found, right)
        if setting.known is not None:
            rows += _untold(setting, setting.known, asked, chosen)
        return Result(rows + _pooled(pd.DataFrame(rows)), shown)


# --- the attacks ------------------------------------------------------------------------------------------------


def code(z: Tensor, *context: Tensor) -> Tensor:
    """The codes of images and what no attack changes, as rows: [B, D], C of [B] -> [B, D + C]."""
    return torch.cat([z, *(part[:, None].to(z) for part in context)], 1)


@dataclass(frozen=True)
class Target:
    """What a threat moves: the test images as points of a manifold, by eta in the given units.

    raw: |zeta_i| <= eta, as published, whatever the unit of z_i. range: |zeta_i| <= eta times the width of the box in
    direction i, so that eta means the same for a shift as for a rotation.
    """

    codes: Codes
    eta: float
    units: Units = "raw"

    def image(self, rows: Tensor) -> Tensor:
        """The images of codes: [B, D + C] -> [B, C, H, W] float32."""
        width = self.codes.z.shape[1]
        return self.codes.decode(rows[:, :width].float(), *rows[:, width:].long().unbind(1))

    def space(self) -> Latent:
        """The moves that the threat allows, with codes for images."""
        codes = self.codes
        low, high = codes.low, codes.high
        if self.units == "raw":
            return Latent(codes.z, code, codes.context, low, high, self.eta)

        def scaled(z: Tensor, *context: Tensor) -> Tensor:
            return code(low + (high - low) * z, *context)

        unit = (codes.z - low) / (high - low)
        return Latent(unit, scaled, codes.context, torch.zeros_like(low), torch.ones_like(low), self.eta)


def _targets(p: OnManifold, setting: Setting) -> dict[str, Target]:
    """Threat -> what it moves."""
    if setting.known is not None:
        codes = learned.codes(setting, "test", "true", box=p.box)
        return {ON: Target(codes, p.eta), ON_RANGE: Target(codes, p.eta_range, "range")}
    of_class, of_all = (
        learned.codes(setting, "test", where, size=p.manifold, box=p.box) for where in ("class", "data")
    )
    return {
        ON: Target(of_class, p.eta),
        ON_DATA: Target(of_all, ETA_DATA),
        MOVED: Target(_transformations(setting.x_test), p.eta),
    }


def _transformations(x: Tensor) -> Codes:
    """Images as points T(x; t) of their own transformations, at the identity; the context is their number.

    Source: Stutz et al., CVPR 2019, equation (5); the bounds are the released code's.
    """

    def decode(t: Tensor, number: Tensor) -> Tensor:
        return transform.decode(t, x[number])

    low, high = transform.box("real", x.device)
    return Codes(transform.identity(x).clone(), (torch.arange(len(x), device=x.device),), decode, low, high)


@dataclass(frozen=True)
class Found:
    """What an attack found: x [R, B, C, H, W]; z [R, B, D], the codes in it; success [R, B]; example [R, B], which of x
    to look at further: the successes, and all random moves; forwards: forward samples an image; clean [B, C, H, W] and
    start [B, D]: image and code before the attack. On a learned manifold clean is dec(z), not x.
    """

    x: Tensor
    z: Tensor
    success: Tensor
    example: Tensor
    forwards: float
    clean: Tensor
    start: Tensor


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


def _attacks(
    p: OnManifold, setting: Setting, targets: Mapping[str, Target], f: nn.Module, seed: int
) -> dict[tuple[str, str], Found]:
    """(threat, attack) -> what it found on all test images, the random controls among them."""
    x, y = setting.x_test, setting.y_test
    random, label = torch.Generator().manual_seed(30_000 + seed), f"network {seed}: "
    budget: dict[str, Any] = {"steps": p.steps, "restarts": p.restarts}
    regular = pgd(f, x, y, eps=p.eps, label=label + "regular attack", generator=random, **budget)
    apart = torch.Generator().manual_seed(35_000 + seed)  # what is drawn for it changes no other threat
    still = targets[ON].codes.z
    found = {
        (OFF, "paper"): Found(
            regular.x, still.expand(p.restarts, -1, -1), regular.success, regular.success, regular.forwards, x, still
        )
    }
    for threat, target in targets.items():
        draws = apart if threat == MOVED else random
        by_name = _on_target(p, f, target, y, seed=seed, generator=draws, label=f"{label}{threat}, ")
        found |= {(threat, name): one for name, one in by_name.items()}
    return found


def _on_target(
    p: OnManifold, f: nn.Module, target: Target, y: Tensor, *, seed: int, generator: torch.Generator, label: str
) -> dict[str, Found]:
    """What the attacks that move codes, and the random controls, find."""
    where, width = target.space(), target.codes.z.shape[1]

    def reads(codes: Tensor) -> Tensor:
        return torch.as_tensor(f(target.image(codes)))

    tried = {
        "paper": pgd_latent(
            reads, where, y, steps=p.steps, restarts=p.restarts, generator=_starts(seed), label=label + "paper's attack"
        ),
        "strong": strongest_latent(
            reads, where, y, steps=p.strong_steps, restarts=p.restarts, targets=0, label=label + "strong attack",
            generator=generator,
        ),
        "random moves": random_moves(reads, where, y, p.restarts, generator=generator),
        "random search": random_moves(reads, where, y, p.draws, stop="image", generator=generator),
    }  # fmt: skip
    clean, found = target.codes.images(), {}
    for name, one in tried.items():
        codes, success = (one.x, one.success) if name != "random search" else _first(one)
        images = torch.stack([target.image(run) for run in codes])
        example = torch.ones_like(success) if name == "random moves" else success
        found[name] = Found(images, codes[..., :width], success, example, one.forwards, clean, target.codes.z)
    return found


def _starts(seed: int) -> torch.Generator:
    """The randomness of the paper's attack: given again, it starts from the same points."""
    return torch.Generator().manual_seed(20_000 + seed)


def _first(found: Attack) -> tuple[Tensor, Tensor]:
    """Each image's first draw that fools (the first of all where none does), as one restart: [1, B, D + C], [1, B]."""
    draw = found.success.long().argmax(0)
    return found.x[draw, torch.arange(len(draw), device=draw.device)][None], found.success.any(0)[None]


# --- rows -------------------------------------------------------------------------------------------------------

# (images [K, C, H, W], their codes [K, D], which test images they are [K]) -> what each judge reads, [K]; the first of
# them decides.
Judges = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


def _judges(p: OnManifold, setting: Setting) -> Judges:
    """On FONTS the judge who is told the transformation; on real images one who has learned from images alone, whose
    two parts have a say of their own beside.
    """
    known = setting.known
    if known is not None:
        return lambda x, z, row: {"judge": read_told(x, z, known.test.font[row])}
    judge = independent(p.dataset, p.judge_n, setting.x.device)

    def read(x: Tensor, z: Tensor, row: Tensor) -> dict[str, Tensor]:
        said, voted = judge.votes(x)
        return {"judge": (said + voted).argmax(1), "network": said.argmax(1), "neighbours": voted.argmax(1)}

    return read


def _rows(
    setting: Setting,
    judges: Judges,
    f: nn.Module,
    found: Mapping[tuple[str, str], Found],
    right: Mapping[tuple[str, str], Tensor],
    seed: int,
) -> list[dict[str, Any]]:
    """A network's rows: its test error, an attack's success, and what the judge says of the examples."""
    y = setting.y_test
    error = metrics.error(networks.predict(f, setting.x_held_out), setting.y_held_out)
    rows: list[dict[str, Any]] = [{"what": "error", "seed": seed, "test_error": error}]
    for (threat, name), one in found.items():
        about = {"seed": seed, "threat": threat, "attack": name}
        rows.append({"what": "success", **about, **_success(one, right[threat, name])})
    clear = {}
    everything = torch.ones_like(y, dtype=torch.bool)[None]
    for (threat, name), one in found.items():
        if name == "paper":  # what a threat starts from, once; the images themselves are nobody's
            own = NOBODY if threat == OFF else threat
            still = Found(one.clean[None], one.start[None], everything, everything, 0.0, one.clean, one.start)
            clear[threat] = _read(judges, still, y)["judge"] == y
            if own == NOBODY or setting.known is None:
                about = {"seed": seed, "threat": own, "attack": "clean"}
                answers = _judged(setting, judges, still, right[threat, name][None], clear[threat])
                rows.append({"what": "examples", **about, **answers})
        about = {"seed": seed, "threat": threat, "attack": name}
        answers = _judged(setting, judges, one, right[threat, name] & one.example, clear[threat])
        rows.append({"what": "examples", **about, **answers})
    return rows


def _read(judges: Judges, found: Found, y: Tensor) -> dict[str, Tensor]:
    """What the judges read in single examples, one of each test image: x is [1, B, C, H, W]."""
    return judges(found.x[0], found.z[0], torch.arange(len(y), device=y.device))


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


def _judged(setting: Setting, judges: Judges, found: Found, counted: Tensor, clear: Tensor) -> dict[str, Any]:
    """What the judges say of the counted examples [R, B], and their sizes."""
    restart, row = counted.nonzero().unbind(1)
    x, z, y = found.x[restart, row], found.z[restart, row], setting.y_test[row]
    said = judges(x, z, row)
    read = torch.zeros_like(counted)
    read[restart, row] = said.pop("judge") == y
    zeta = (z - found.start[row]).abs()
    return {
        **_answers(read, counted, clear),
        **{f"{name}_reads": _mean(answer == y) for name, answer in said.items()},
        "zeta": _mean(zeta.amax(1)),
        "zeta_by_latent": [_mean(part) for part in zeta.T],
        "change": _mean(l2(x - found.clean[row])),
    }


def _pictures(
    setting: Setting,
    judges: Judges,
    f: nn.Module,
    found: Mapping[tuple[str, str], Found],
    right: Mapping[tuple[str, str], Tensor],
) -> list[dict[str, Any]]:
    """Some examples of the strong attack on real images, those that the judge disputes first: pictures in rows,
    so that they are published with them. No faces.
    """
    rows: list[dict[str, Any]] = []
    for threat in (ON, ON_DATA, MOVED):
        if setting.known is not None or setting.dataset == "celeba" or (threat, "strong") not in found:
            continue
        one, y = found[threat, "strong"], setting.y_test
        first = one.success.long().argmax(0)
        every = torch.arange(len(y), device=y.device)
        example, z = one.x[first, every], one.z[first, every]
        read = judges(example, z, every)["judge"]
        clear = judges(one.clean, one.start, every)["judge"] == y
        won = right[threat, "strong"] & one.success.any(0) & clear
        for kind, chosen in (("disputed", won & (read != y)), ("kept", won & (read == y))):
            index = chosen.nonzero()[:SHOWN, 0]
            if len(index):
                images = torch.stack([setting.x_test[index], one.clean[index], example[index]], 1)
                answers = networks.predict(f, example[index]).argmax(1)
                about = {"what": "pictures", "seed": 0, "threat": threat, "attack": kind, "count": int(chosen.sum())}
                labels = {"label": y[index], "said": answers, "read": read[index]}
                rows.append(
                    about
                    | {name: part.tolist() for name, part in labels.items()}
                    | ledger.pictures(images.cpu().numpy())
                )
    return rows


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
        if what not in set(rows.what):  # real images have no judge who is told nothing of a transformation
            continue
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
    for name in ("judge_error", "network_reads", "neighbours_reads", "zeta", "zeta_by_latent", "change"):
        if name in some:
            row[name] = np.average(np.array(some[name].tolist()), axis=0, weights=some["count"]).tolist()
    return row


def _interval(name: str, drawn: np.ndarray) -> dict[str, float | None]:
    ends = zip((name, f"{name}_low", f"{name}_high"), metrics.percentiles(drawn), strict=True)
    return {key: number if np.isfinite(number) else None for key, number in ends}


# --- for figures ------------------------------------------------------------------------------------------------


def _examples(
    p: OnManifold,
    setting: Setting,
    target: Target,
    f: nn.Module,
    found: Mapping[tuple[str, str], Found],
    right: Mapping[tuple[str, str], Tensor],
) -> dict[str, np.ndarray]:
    """A few images that both of the paper's attacks fool, the examples, and the on-manifold attack's path."""
    regular, paper = found[OFF, "paper"], found[ON, "paper"]
    fooled = right[OFF, "paper"] & regular.success.any(0) & right[ON, "paper"] & paper.success.any(0)
    rows = fooled.nonzero()[:SHOWN, 0]
    if not len(rows):
        return {}
    path = _path(p, target, f, setting.y_test, rows, paper.success.long().argmax(0)[rows])
    codes = target.codes
    z, context = codes.z[rows], tuple(part[rows] for part in codes.context)
    shown = {
        "x": setting.x_test[rows],
        "regular": regular.x[regular.success.long().argmax(0)[rows], rows],
        "on": codes.decode(z + path[:, -1], *context),
        "clean": paper.clean[rows],
        "theta": z,
        "font": context[0],
        "y": setting.y_test[rows],
        "path": path,
    }
    return {f"shown/{name}": value.cpu().numpy() for name, value in shown.items()}


def _path(p: OnManifold, target: Target, f: nn.Module, y: Tensor, rows: Tensor, restart: Tensor) -> Tensor:
    """zeta along the paper's attack on the first network: [E, steps + 1, D]; after the first win it stays.

    rows, restart: [E], which images, from which of the attack's starts.
    """
    where, random, seen = target.space(), _starts(0), []
    draw = norms.gaussian(where.norm, where.eta)
    start = torch.stack([draw(where.z, random) for _ in range(p.restarts)])[restart, rows]

    def recording(codes: Tensor) -> Tensor:
        seen.append(codes.detach())
        return torch.as_tensor(f(target.image(codes)))

    climb(recording, where[rows], y[rows], start, objective=cross_entropy, rule=adam(lr=0.005), steps=p.steps)
    codes, width = torch.stack(seen, 1), target.codes.z.shape[1]  # [E, T + 1, D + C]
    wrong = networks.predict(f, target.image(codes.flatten(0, 1))).argmax(1).view(codes.shape[:2]) != y[rows, None]
    step = torch.arange(codes.shape[1], device=y.device).minimum(wrong.int().argmax(1)[:, None])  # [E, T + 1]
    z = codes[:, :, :width].gather(1, step[:, :, None].expand(-1, -1, width))
    return z - target.codes.z[rows, None]
