"""Auto-PGD and what AutoAttack builds of it: the strong reference, so that no verdict rests on a weak attack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advbook.attacks.engine import Counter, Network, Objective, Win, outputs
from advbook.attacks.norms import L2, LINF, Norm, Start
from advbook.attacks.objectives import dlr, fooled, log_odds, margin, towards_dlr
from advbook.attacks.pgd import Attack, at_least, attack, images
from advbook.attacks.spaces import Latent, Pixels, Space
from advbook.attacks.steps import halving
from advbook.fleet import Fleet


def apgd(
    f: Network | Fleet,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = LINF,
    steps: int = 100,
    restarts: int = 1,
    objective: Objective = log_odds,
    generator: torch.Generator,
    **options: Any,
) -> Attack:
    """Auto-PGD: projected gradient ascent with momentum, whose step is 2 eps at first and halved where it stalls.

    f: a network or a fleet; x: [B, C, H, W]; y: [B]. norm: linf or l2. objective: by default the log-odds of the
    softmax. They lead exactly as the cross-entropy does, since they rise and fall with it and steps follow the sign,
    or the direction, of the gradient alone; but they do not vanish where the network is sure. objectives.dlr is the
    paper's other one. The targeted form: y = [B, 2] with the true and the target class, objectives.towards_dlr, and a
    win for such pairs. Every restart starts on the surface of the ball. options: those of `pgd.attack`. Raises
    ValueError if eps < 0, steps < 0 or restarts < 1, or for another norm. Source: Croce and Hein, 2020, algorithm 1.
    """
    return _apgd(
        f, Pixels(x, eps, norm), y, x, radius=eps, norm=norm, steps=steps, restarts=restarts, objective=objective,
        generator=generator, **options,
    )  # fmt: skip


def apgd_latent(
    f: Network | Fleet,
    space: Latent,
    y: Tensor,
    *,
    steps: int = 100,
    restarts: int = 1,
    objective: Objective = log_odds,
    generator: torch.Generator,
    **options: Any,
) -> Attack:
    """Auto-PGD on zeta, |zeta| <= eta: on-manifold examples, and transformations, by more than the paper's attack.

    space: the latents, with their eta and norm, which stand for eps and norm; the rest as in apgd.
    """
    return _apgd(
        f, space, y, space.z, radius=space.eta, norm=space.norm, steps=steps, restarts=restarts, objective=objective,
        generator=generator, **options,
    )  # fmt: skip


def strongest(
    f: Network,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = LINF,
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    generator: torch.Generator,
    batch: int = 512,
    label: str | None = None,
) -> Attack:
    """The image itself, then Auto-PGD with three objectives, each on the images that still stand: one row [1, B].

    The objectives: log-odds (for the cross-entropy, see apgd); DLR; targeted DLR towards each of the min(targets,
    K - 1) likeliest wrong classes of the clean image, for K classes. DLR needs three classes and its targeted form
    four: with fewer, the margin max_{k != y} z_k - z_y and the gap z_t - z_y stand in.

    In the result, x is the example that fools f, or the one of largest margin among all that were tried; value: its
    margin; steps: gradient steps spent on the image by all attacks and restarts together. forwards counts everything:
    steps + 2 a restart, and one for the clean image. Raises ValueError as apgd, if targets < 0, or for a fleet, whose
    members have different images left: attack them one by one. Source: Croce and Hein, 2020, section 5 (AutoAttack,
    less its FAB and Square parts).
    """
    return _series(
        f, Pixels(x, eps, norm), y, x, radius=eps, norm=norm, steps=steps, restarts=restarts, targets=targets,
        generator=generator, batch=batch, label=label,
    )  # fmt: skip


def strongest_latent(
    f: Network,
    space: Latent,
    y: Tensor,
    *,
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    generator: torch.Generator,
    batch: int = 512,
    label: str | None = None,
) -> Attack:
    """The same series in latent space: dec(z) itself, then apgd_latent with three objectives, one row [1, B].

    space: the latents, with their eta and norm, which stand for eps and norm; the rest as in strongest.
    """
    return _series(
        f, space, y, space.z, radius=space.eta, norm=space.norm, steps=steps, restarts=restarts, targets=targets,
        generator=generator, batch=batch, label=label,
    )  # fmt: skip


def _apgd(
    f: Network | Fleet,
    space: Space,
    y: Tensor,
    like: Tensor,
    *,
    radius: float,
    norm: Norm,
    steps: int,
    restarts: int,
    objective: Objective,
    generator: torch.Generator,
    **options: Any,
) -> Attack:
    """Auto-PGD in a space whose u lie in a ball; like: [B, ...], shaped as u."""
    at_least("eps" if isinstance(space, Pixels) else "eta", radius, 0)
    at_least("steps", steps, 0)
    if norm not in (LINF, L2):
        raise ValueError(f"norm = {norm.name}: allowed are linf and l2, for which Auto-PGD is published.")
    return attack(
        f, space, y, like, start=_surface(norm, radius), rule=halving(2 * radius, norm.direction, steps), steps=steps,
        restarts=restarts, generator=generator, objective=objective, **options,
    )  # fmt: skip


def _series(f: Network, space: Space, y: Tensor, like: Tensor, *, targets: int, batch: int, **options: Any) -> Attack:
    """The unmoved images, then stage after stage on those that still stand. options: the rest of _apgd's."""
    at_least("targets", targets, 0)
    if isinstance(f, Fleet):
        raise ValueError(f"f is a fleet of {f.members}: allowed is one network, for instance one of its unstack().")
    counted = Counter(f)
    found = images(space, torch.zeros_like(like)[None], 2)[0]  # [B, C, H, W]
    clean = outputs(counted, found, batch=batch)  # [B, K]
    value, won, spent = margin(clean, y), fooled(clean, y), torch.zeros_like(y)
    for stage in _stages(clean, y, targets):
        left = (~won).nonzero()[:, 0]
        if not len(left):
            break
        tried = _apgd(
            counted, space[left], stage.goal[left], like[left], objective=stage.objective, win=stage.win, stop="image",
            batch=batch, **options,
        )  # fmt: skip
        scores = [margin(outputs(counted, examples, batch=batch), y[left]) for examples in tried.x]
        example, best, success = _pick(tried, torch.stack(scores))
        better = success | (best > value[left])
        found[left[better]], value[left[better]] = example[better], best[better]
        won[left], spent[left] = success, spent[left] + tried.steps.sum(0)
    return Attack(found[None], won[None], value[None], spent[None], counted.samples / max(len(y), 1))


class Stage(NamedTuple):
    """One attack of a series: what it maximizes, towards what ([B], or [B, 2] with the target class), and its win."""

    objective: Objective
    goal: Tensor
    win: Win


def _stages(clean: Tensor, y: Tensor, targets: int) -> Iterator[Stage]:
    classes = clean.shape[1]
    yield Stage(log_odds, y, fooled)
    yield Stage(dlr, y, fooled)
    others = clean.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, : min(targets, classes - 1)]
    for t in others.unbind(1):
        yield Stage(towards_dlr if classes >= 4 else _gap, torch.stack([y, t], 1), _fooled_pair)


def _gap(logits: Tensor, both: Tensor) -> Tensor:
    """z_t - z_y, both = [B, 2] holding y and t."""
    y, t = logits.gather(1, both).unbind(1)
    return t - y


def _fooled_pair(logits: Tensor, both: Tensor) -> Tensor:
    """Any error counts, whether or not it is the target class."""
    return fooled(logits, both[:, 0])


def _pick(tried: Attack, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The restart that won, or else the one of the largest score: examples [B, C, H, W], scores [B], success [B]."""
    success = tried.success.any(0)
    restart = torch.where(success, tried.success.int().argmax(0), score.argmax(0))
    image = torch.arange(len(restart), device=restart.device)
    return tried.x[restart, image], score[restart, image], success


def _surface(norm: Norm, eps: float) -> Start:
    return lambda like, generator: eps * norm.shell(like, generator)
