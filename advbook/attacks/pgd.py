"""Projected gradient ascent: the regular attack in four norms, its one-step form, and the same in latent space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advbook.attacks import norms
from advbook.attacks.engine import Network, Objective, Slope, Stop, Win, ascend, gradient
from advbook.attacks.norms import L0, L2, LINF, Norm, Start
from advbook.attacks.objectives import cross_entropy, fooled, log_odds
from advbook.attacks.spaces import Joint, Latent, Pixels, Space
from advbook.attacks.steps import StepRule, adam, ascent
from advbook.fleet import Fleet


@dataclass(frozen=True)
class Attack:
    """Examples found for R restarts of B images; for a fleet of M, the axis M stands after R.

    x: [R, B, C, H, W] in [0, 1]; success: [R, B] bool, the network errs on x; value: [R, B] the objective there;
    steps: [R, B] steps spent; forwards: forward samples per input and model.
    """

    x: Tensor
    success: Tensor
    value: Tensor
    steps: Tensor
    forwards: float


def pgd(
    f: Network | Fleet,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = LINF,
    steps: int = 40,
    restarts: int = 5,
    rule: StepRule | None = None,
    start: Start | None = None,
    generator: torch.Generator,
    **options: Any,
) -> Attack:
    """Regular adversarial examples: max over |delta| <= eps of the cross-entropy, or of another objective.

    f: a network or a fleet; x: [B, C, H, W]; y: [B]. rule: by default Adam with learning rate .005 for L-inf, as in
    the paper, and for the other norms steps of eps / 10 along the normalized gradient (for L0: of 250, as published
    by Stutz et al., ICML 2020). objective: with the paper's rule the cross-entropy itself, else its log-odds
    (objectives.log_odds). start: by default norms.gaussian for L-inf, as in the paper, and norms.shells
    elsewhere. options: those of `attack`. Raises ValueError if eps < 0, steps < 0 or restarts < 1. Source: Stutz et
    al., CVPR 2019, equation (1).
    """
    at_least("eps", eps, 0)
    # Along signs and normalized gradients the log-odds lead the same way as the cross-entropy, and never underflow.
    options.setdefault("objective", cross_entropy if rule is None and norm is LINF else log_odds)
    if rule is None:
        lr = 250.0 if norm is L0 else eps / 10
        direction = norm.direction if norm is L0 else L2.direction
        rule = adam(lr=0.005) if norm is LINF else ascent(lr, direction)
    start = start or (norms.gaussian if norm is LINF else norms.shells)(norm, eps)
    space = Pixels(x, eps, norm)
    return attack(
        f, space, y, x, start=start, rule=rule, steps=steps, restarts=restarts, generator=generator, **options
    )


def fgsm(f: Network | Fleet, x: Tensor, y: Tensor, *, eps: float, label: str | None = None) -> Attack:
    """The fast gradient sign method: one step of eps along the gradient's sign, the image itself kept where it wins.

    Source: Goodfellow et al., 2015.
    """
    at_least("eps", eps, 0)
    return attack(
        f, Pixels(x, eps), y, x, start=norms.zero(LINF, eps), rule=ascent(eps, torch.sign), steps=1, restarts=1,
        generator=torch.Generator(), objective=log_odds, label=label,
    )  # fmt: skip


def pgd_latent(
    f: Network | Fleet,
    space: Latent,
    y: Tensor,
    *,
    steps: int = 40,
    restarts: int = 5,
    rule: StepRule | None = None,
    generator: torch.Generator,
    **options: Any,
) -> Attack:
    """On-manifold adversarial examples, and adversarial transformations: max over |zeta| <= eta of the cross-entropy
    of f(dec(z + zeta)).

    space: the latents, with their eta; rule and objective: the paper's for L-inf, as in pgd; start: norms.gaussian;
    the rest as in pgd. Source: Stutz et al., CVPR 2019,
    equation (3).
    """
    at_least("eta", space.eta, 0)
    start = norms.gaussian(space.norm, space.eta)
    papers = rule is None and space.norm is LINF
    options.setdefault("objective", cross_entropy if papers else log_odds)
    rule = rule or (adam(lr=0.005) if papers else ascent(space.eta / 10, L2.direction))
    return attack(
        f, space, y, space.z, start=start, rule=rule, steps=steps, restarts=restarts, generator=generator, **options
    )  # fmt: skip


def pgd_joint(
    f: Network | Fleet,
    space: Joint,
    y: Tensor,
    *,
    steps: int = 40,
    restarts: int = 5,
    rule: StepRule | None = None,
    generator: torch.Generator,
    **options: Any,
) -> Attack:
    """Joint adversarial examples: max over |zeta| <= eta and |delta| <= eps of the cross-entropy of
    f(dec(z + zeta) + delta).

    rule: by default steps of a tenth of each budget, along signs under L-inf, else along the normalized gradient.
    start: uniform in each ball. The rest as in pgd.
    """
    at_least("eta", space.latent.eta, 0)
    at_least("eps", space.eps, 0)
    latent, image = space.latent, space.latent.z.new_zeros(len(space), *space.shape)

    def start(like: Tensor, random: torch.Generator) -> Tensor:
        zeta = norms.volume(latent.norm, latent.eta)(latent.z, random)
        return space.join(zeta, norms.volume(space.norm, space.eps)(image, random))

    like = space.join(latent.z, image)
    options.setdefault("objective", log_odds)
    rule = rule or ascent(0.1, torch.sign if space.norm is latent.norm is LINF else L2.direction)
    return attack(
        f, space, y, like, start=start, rule=rule, steps=steps, restarts=restarts, generator=generator, **options
    )


def attack(
    f: Network | Fleet,
    space: Space,
    y: Tensor,
    like: Tensor,
    *,
    start: Start,
    rule: StepRule,
    steps: int,
    restarts: int,
    generator: torch.Generator,
    objective: Objective = cross_entropy,
    win: Win = fooled,
    stop: Stop = "pair",
    slope: Slope = gradient,
    draft: Network | Fleet | None = None,
    batch: int = 512,
    label: str | None = None,
) -> Attack:
    """Any gradient attack: ascend in a space from random start points, and give images.

    space, y: B rows; like: [B, ...], shaped as the space's u; start: draws R start points a row, the same ones for
    every member of a fleet. The rest as in engine.ascend. Raises ValueError if steps < 0 or restarts < 1.
    """
    at_least("restarts", restarts, 1)
    points = torch.stack([start(like, generator) for _ in range(restarts)])  # [R, B, ...]
    if isinstance(f, Fleet):
        points = points[:, None].expand(-1, f.members, *[-1] * like.ndim)  # [R, M, B, ...]
    found = ascend(
        f, space, y, points, objective=objective, rule=rule, steps=steps, win=win, stop=stop, slope=slope,
        draft=draft, batch=batch, label=label,
    )  # fmt: skip
    return Attack(images(space, found.u, found.won.ndim), found.won, found.value, found.steps, found.forwards)


def images(space: Space, u: Tensor, lead: int) -> Tensor:
    """g(u) of a space of B rows for u with the leading axes [R, B] or [R, M, B] (lead = 2 or 3)."""
    runs = u.flatten(0, lead - 2)  # [R, B, ...] or [R M, B, ...]
    with torch.no_grad():
        found = torch.stack([space.image(run) for run in runs])
    return found.view(*u.shape[:lead], *found.shape[2:])


def at_least(name: str, value: float, least: float) -> None:
    """Raises ValueError if a parameter is below what is allowed (or NaN)."""
    if not value >= least:
        raise ValueError(f"{name} = {value}: allowed is {least} or more.")
