"""The threat models of chapter 05 and the attacks on them: which images they find.

An attack keeps the most confident wrong answer it has seen: nothing stops it, since rejection is decided afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from advbook.attacks import norms
from advbook.attacks.apgd import apgd
from advbook.attacks.corner_search import corner_search
from advbook.attacks.engine import Objective, ascend, outputs
from advbook.attacks.frames import border, frames
from advbook.attacks.geometry import geometry
from advbook.attacks.nes import nes
from advbook.attacks.norms import L0, L1, L2, LINF, Norm, Start
from advbook.attacks.objectives import doubt, log_odds, other_log_confidence
from advbook.attacks.pgd import attack, images, pgd
from advbook.attacks.random_search import random_search
from advbook.attacks.simple import simple
from advbook.attacks.spaces import Masked, Pixels, Space
from advbook.attacks.square import square
from advbook.attacks.steps import StepRule, backtracking
from advbook.fleet import Fleet

Threat = Literal["linf", "linf_larger", "l2", "l1", "l0", "frames"]
TITLES: dict[str, str] = {
    "clean": "clean images",
    "linf": "L-inf, seen",
    "linf_larger": "L-inf, larger",
    "l2": "L2",
    "l1": "L1",
    "l0": "L0",
    "frames": "frames",
    "distal": "distal (noise)",
    "corruptions": "corruptions",
}
UNSEEN: tuple[Threat, ...] = ("linf_larger", "l2", "l1", "l0", "frames")
NORMS: dict[str, Norm] = {"linf": LINF, "linf_larger": LINF, "l2": L2, "l1": L1, "l0": L0}
# How far the steps of an attack lead together, in radii. 10 / 3 is as published for L-inf (1000 steps of .001 for eps
# .3). For L2 and L1 three times the published 10 / 3 and 28 found more in a trial, with few steps.
PATH: dict[str, float] = {"linf": 10 / 3, "l2": 10.0, "l1": 84.0}
FRAME_PATH = 10.0  # values of a frame lie in [0, 1]; published are 1000 steps of .01
L0_RATE = 250.0  # published for any number of steps: a step takes a pixel to the end of its range

Group = Literal["confidence", "error", "black box", "stronger"]


@dataclass(frozen=True)
class Effort:
    """steps, restarts: of gradient attacks; queries: of black-box attacks; longer: how many times as many steps and
    restarts the stronger attacks get.
    """

    steps: int
    restarts: int
    queries: int
    longer: int


class Found(NamedTuple):
    """What an attack of a group found: images [R, M, B, C, H, W], and forward samples an image and member."""

    group: Group
    name: str
    x: Tensor
    forwards: float


class Target(NamedTuple):
    """What is attacked: a fleet (and its fast draft), images [B, C, H, W] and labels [B]."""

    f: Fleet
    draft: Fleet | None
    x: Tensor
    y: Tensor


def attacks(
    target: Target,
    threat: Threat,
    radius: float,
    effort: Effort,
    references: Tensor,
    *,
    only: Collection[Group] = ("confidence", "error", "black box", "stronger"),
    seed: int,
    label: str,
) -> Iterator[Found]:
    """All attacks on a threat model: the published ones, then the stronger ones.

    radius: of the ball; for frames the width of the border. references: [N, C, H, W], other images, for the geometry
    attack; only: the groups to run. The published ones maximize the confidence in a wrong class (from the image itself
    and from random starts), or the cross-entropy, or know no gradient. The stronger ones: the same with `longer` times
    the steps and restarts, the confidence then from small noise, and Auto-PGD on the confidence (L-inf, L2).
    """
    more = Effort(effort.longer * effort.steps, effort.longer * effort.restarts, effort.queries, 1)
    runs: list[tuple[Group, str, Callable[..., Any]]] = [
        ("confidence", "confidence, random starts", _white(threat, radius, effort, other_log_confidence)),
        ("error", "cross-entropy", _white(threat, radius, effort, log_odds)),
        *(("black box", name, run) for name, run in _black(threat, radius, effort, references).items()),
        ("stronger", "confidence, longer", _white(threat, radius, more, other_log_confidence, start=norms.near)),
        ("stronger", "cross-entropy, longer", _white(threat, radius, more, log_odds)),
    ]
    if threat != "frames":  # as published, frames start from random values alone
        from_image = _white(threat, radius, effort, other_log_confidence, norms.zero)
        runs.insert(0, ("confidence", "confidence, from the image", from_image))
    if threat != "frames" and NORMS[threat] in (LINF, L2):
        options: dict[str, Any] = {"eps": radius, "norm": NORMS[threat], "objective": other_log_confidence}
        runs.append(("stronger", "Auto-PGD", partial(apgd, steps=more.steps, restarts=effort.restarts, **options)))
    for number, (group, name, run) in enumerate(runs):
        if group not in only:
            continue
        random = torch.Generator().manual_seed(1000 * seed + number)
        given = {"draft": target.draft, "stop": "never", "generator": random, "label": f"{label}, {name}"}
        found = run(target.f, target.x, target.y, **given)
        yield Found(group, name, found.x, found.forwards)


def refined(target: Target, threat: Threat, radius: float, effort: Effort, x: Tensor, *, label: str) -> Found:
    """The attack on the confidence once more, from images that other attacks found: x [M, B, C, H, W].

    Whatever leads far from the image (a step towards another image, an example of another network) is a start that
    random points of the ball are not.
    """
    if threat == "frames":
        space: Space = Masked(target.x, border(x.shape[3], x.shape[4], int(radius)).to(x))
    else:
        space = Pixels(target.x, radius, NORMS[threat])
    steps = effort.longer * effort.steps
    found = ascend(
        target.f, space, target.y, (x - target.x)[None], objective=other_log_confidence,
        rule=_rule(threat, radius, steps, 1.1), steps=steps, draft=target.draft, label=f"{label}, from the worst",
    )  # fmt: skip
    return Found("stronger", "confidence, from the worst of all", images(space, found.u, 3), found.forwards)


def rejected(target: Target, radius: float, effort: Effort, *, seed: int, label: str) -> Tensor:
    """The images of least confidence in any class within an L-inf radius: [R, M, B, C, H, W]."""
    found = pgd(
        target.f, target.x, target.y, eps=radius, steps=effort.steps, restarts=effort.restarts, objective=doubt,
        rule=linf_rule(radius, effort.steps), stop="never",
        start=norms.shells(LINF, radius), draft=target.draft, generator=torch.Generator().manual_seed(seed),
        label=label,
    )  # fmt: skip
    return found.x


def probabilities(f: Fleet, x: Tensor, *, batch: int = 2_000) -> Tensor:
    """What each member says: of images that all see, [B, C, H, W] -> [M, B, K], or of its own, [R, M, B, C, H, W] ->
    [R, M, B, K].
    """
    shared = x.ndim == 4
    runs = x.expand(1, f.members, *x.shape) if shared else x  # [R, M, B, ...]

    def by_columns(part: Tensor) -> Tensor:  # [b, M, C, H, W], which `outputs` splits along b
        return f(part.transpose(0, 1)).softmax(-1).transpose(0, 1)

    found = torch.stack([outputs(by_columns, run.transpose(0, 1), batch=batch).transpose(0, 1) for run in runs])
    return found[0] if shared else found


def _white(
    threat: Threat,
    radius: float,
    effort: Effort,
    objective: Objective,
    start: Callable[[Norm, float], Start] = norms.shells,
) -> Callable[..., Any]:
    """A gradient attack of a threat model. start: one of attacks.norms; frames always start from random values."""
    options: dict[str, Any] = {"steps": effort.steps, "objective": objective}
    options["restarts"] = 1 if start is norms.zero else effort.restarts
    factor = 1.1 if objective is other_log_confidence else 1.25  # as published
    options["rule"] = _rule(threat, radius, effort.steps, factor)
    if threat == "frames":
        return partial(frames, w=int(radius), **options)
    norm = NORMS[threat]
    return partial(pgd, eps=radius, norm=norm, start=start(norm, radius), **options)


def linf_rule(radius: float, steps: int, factor: float = 1.25) -> StepRule:
    """Sign steps with momentum and backtracking that lead as far in `steps` as the published ones in 1000."""
    return _rule("linf", radius, steps, factor)


def _rule(threat: Threat, radius: float, steps: int, factor: float) -> StepRule:
    if threat == "frames":
        return backtracking(FRAME_PATH / steps, torch.sign, factor=factor)
    norm = NORMS[threat]
    rate = L0_RATE if norm is L0 else PATH[norm.name] * radius / steps
    return backtracking(rate, norm.direction, factor=factor)


def _black(threat: Threat, radius: float, effort: Effort, references: Tensor) -> Mapping[str, Callable[..., Any]]:
    """The attacks of a threat model that see no gradient; none for frames, as published."""
    if threat == "frames":
        return {}
    norm, objective, queries = NORMS[threat], other_log_confidence, effort.queries
    common: dict[str, Any] = {"eps": radius, "objective": objective}
    few = min(queries, 1 + len(references))
    found: dict[str, Callable[..., Any]] = {
        "random points": partial(random_search, norm=norm, queries=queries, restarts=1, **common),
        "geometry": partial(geometry, references=references, norm=norm, queries=few, **common),
    }
    if norm in (LINF, L2):
        found["square"] = partial(square, norm=norm, queries=queries, **common)
    if norm is LINF:
        found["simple"] = partial(simple, queries=queries, restarts=1, **common)
        found["query-limited"] = _estimated(radius, queries)
    if norm is L0:
        found["corner search"] = _corners(int(radius), queries)
    return found


def _estimated(radius: float, queries: int) -> Callable[..., Any]:
    """Sign steps along slopes estimated from 50 samples each: at least one step, so 102 queries or more."""
    steps = max(queries // 51, 1)

    def run(f: Fleet, x: Tensor, y: Tensor, *, generator: torch.Generator, draft: Fleet | None, **given: Any) -> Any:
        return attack(
            f, Pixels(x, radius), y, x, start=norms.zero(LINF, radius), steps=steps, restarts=1,
            rule=linf_rule(radius, steps, 1.1), objective=other_log_confidence,
            slope=nes(generator=generator, members=f.members), generator=generator, **given,
        )  # fmt: skip

    return run


def _corners(k: int, queries: int) -> Callable[..., Any]:
    def run(f: Fleet, x: Tensor, y: Tensor, *, draft: Fleet | None, **given: Any) -> Any:
        tries = max(queries // (10 * max(k - 1, 1)), 1)
        return corner_search(f, x, y, k=k, n_iter=tries, objective=other_log_confidence, **given)

    return run
