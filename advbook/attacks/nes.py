"""The query-limited attack: projected ascent along a gradient that is estimated from function values alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advbook.attacks import norms, pgd
from advbook.attacks.engine import Network, Objective, Slope
from advbook.attacks.norms import LINF, Norm, Start, normal, rows
from advbook.attacks.objectives import other_confidence
from advbook.attacks.pgd import Attack, at_least
from advbook.attacks.search import Dice, blind
from advbook.attacks.spaces import Pixels, Space
from advbook.attacks.steps import StepRule, backtracking
from advbook.fleet import Fleet, count_members


def query_limited(
    f: Network | Fleet,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = LINF,
    population: int = 50,
    sigma: float = 0.1,
    steps: int = 100,
    restarts: int = 2,
    rule: StepRule | None = None,
    start: Start | None = None,
    generator: torch.Generator,
    objective: Objective = other_confidence,
    **options: Any,
) -> Attack:
    """Projected ascent in the ball with gradients estimated by natural evolution strategies.

    f: a network or a fleet; x: [B, C, H, W] in [0, 1]; y: [B]. A pair that takes `steps` steps costs (steps + 1)
    (population + 1) queries. rule: by default backtracking with momentum .9, rate eps / 10 and factor 1.1; after a
    step that is taken back it goes on with the estimate it has, and makes no new one. start: by
    default norms.shells. options: those of pgd.attack but for the slope. Raises ValueError if eps < 0, steps < 0,
    restarts < 1, sigma <= 0, or if population is odd or below 2. Source: Ilyas et al., ICML 2018;
    objective, population and sigma: Stutz et al., ICML 2020 (with 1000 steps of .001 and 11 restarts).
    """
    at_least("eps", eps, 0)
    return pgd.attack(
        f, Pixels(x, eps, norm), y, x, start=start or norms.shells(norm, eps),
        rule=rule or backtracking(eps / 10, norm.direction, factor=1.1), steps=steps, restarts=restarts,
        generator=generator, objective=objective,
        slope=nes(population, sigma, generator=generator, members=count_members(f)), **options,
    )  # fmt: skip


def nes(population: int = 50, sigma: float = 0.1, *, generator: torch.Generator, members: int = 1) -> Slope:
    """The slope estimated from antithetic Gaussian samples around u: the mean of (J(u + sigma e) - J(u - sigma e)) e /
    (2 sigma) over population / 2 directions e.

    J(u) = objective(f(g(u)), target). In pixel space g clips each sample to [0, 1]; samples are not projected onto the
    ball. Costs population + 1 forward samples, one of them at u itself, for the outputs and the objective. members: of
    the fleet, all of which see the same e. Raises ValueError if sigma <= 0, or if population is odd or below 2. Source:
    Ilyas et al., ICML 2018, algorithm 1.
    """
    if population < 2 or population % 2:
        raise ValueError(f"population = {population}: allowed are even numbers from 2, as samples come in pairs.")
    if not sigma > 0:
        raise ValueError(f"sigma = {sigma}: allowed is more than 0.")
    draws = Dice(generator, members)

    def slope(
        f: Network, space: Space, u: Tensor, target: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        output, value, ascending = blind(f, space, u, target, objective)
        for _ in range(population // 2):  # one after the other: a batch of pairs is large enough, and memory small
            noise = draws.rows(normal, u)
            up, down = (blind(f, space, u + sign * sigma * noise, target, objective)[1] for sign in (1, -1))
            ascending = ascending + rows(up - down, u) * noise
        return output, value, ascending / (population * sigma)

    return slope
