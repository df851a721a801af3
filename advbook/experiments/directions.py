"""Principal directions of the classes of real images, the threats that chapter 06 compares, and where they lead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from advbook import training
from advbook.attacks import norms
from advbook.attacks.engine import Stop
from advbook.attacks.norms import L1, L2, LINF, Norm
from advbook.attacks.objectives import log_odds
from advbook.attacks.pgd import Attack, attack
from advbook.attacks.spaces import Decoder, Latent, Pixels, Space
from advbook.experiments.recipes import trained
from advbook.experiments.setting import Setting
from advbook.fleet import Fleet, Stack
from advbook.gaussian.model import fit, ppca
from advbook.kernels import bfloat16_is_fast
from advbook.networks import Network
from advbook.training import Ascent, Perturbed, Schedule

Precision = Literal["bfloat16", "float32"]
Threat = Literal["linf", "l2", "l1", "generative"]
THREATS: tuple[Threat, ...] = ("linf", "l2", "l1", "generative")
TITLES: dict[str, str] = {"linf": "L-inf", "l2": "L2", "l1": "L1", "generative": "generative"}
NORMS: dict[str, Norm] = {"linf": LINF, "l2": L2, "l1": L1}
# Budgets where the search for a robust accuracy, or a success rate, begins: images have 28 x 28 pixels in [0, 1].
FIRST: dict[Threat, float] = {"linf": 0.1, "l2": 1.0, "l1": 6.0, "generative": 2.0}


@dataclass(frozen=True)
class Directions:
    """Class-wise principal directions of images as vectors of D values.

    variances: [K, D], descending; vectors: [K, D, D], row i is v_i.
    """

    variances: Tensor
    vectors: Tensor

    def eigenspace(self, count: int, *, last: bool = False) -> Tensor:
        """The `count` directions of largest variance, or of smallest, of every class: [K, count, D]."""
        return self.vectors[:, -count:] if last else self.vectors[:, :count]


def principal(x: Tensor, y: Tensor, classes: int) -> Directions:
    """Principal directions of every class of images x: [N, C, H, W], y: [N].

    With fewer images than pixels in a class the last variances are 0, and their directions are arbitrary. Raises
    ValueError if a class has no image.
    """
    parts = [fit(x[y == k].flatten(1)) for k in range(classes)]
    return Directions(
        torch.stack([part.variances for part in parts]).to(x), torch.stack([part.directions.T for part in parts]).to(x)
    )


def generator(x: Tensor, y: Tensor, classes: int, q: int) -> Tensor:
    """The generator of every class, fitted to images x: probabilistic PCA with q codes, [K, q, D]; row i is b_i v_i.

    x: [N, C, H, W]; y: [N]. Raises ValueError if a class has fewer than q + 1 images.
    """
    parts = []
    for k in range(classes):
        own = x[y == k].flatten(1)
        if len(own) <= q:
            raise ValueError(f"Q = {q}: class {k} has {len(own)} training images; allowed is less than that.")
        parts.append(ppca(fit(own), q).weights.T)
    return torch.stack(parts).to(x)


def energies(delta: Tensor, y: Tensor, directions: Directions) -> Tensor:
    """The share of a perturbation's energy in each principal direction of its class, (v_i delta)^2 / |delta|^2.

    delta: [B, C, H, W]; y: [B] -> [B, D]; rows sum to 1, those of no perturbation are 0.
    """
    flat = delta.flatten(1)
    parts = torch.empty_like(flat)
    for k in y.unique():
        parts[y == k] = flat[y == k] @ directions.vectors[k].T
    total = flat.square().sum(1, keepdim=True)
    return parts.square() / total.clamp_min(torch.finfo(flat.dtype).tiny)


def attacked_variance(energy: Tensor, y: Tensor, directions: Directions) -> Tensor:
    """The mean variance of the attacked directions, sum_i c_i lambda_i, in multiples of a random direction's: [B, D],
    [B] -> [B].

    A direction drawn uniformly from the sphere has the mean of all lambda_i on average.
    """
    own = directions.variances[y]
    return (energy * own).sum(1) / own.mean(1)


def along(weights: Tensor) -> Decoder:
    """x + sum_i zeta_i w_i with the vectors of the image's class, in [0, 1]: a decoder whose context is image and
    class.

    weights: [K, q, D]; the decoder takes zeta [B, q], x [B, C, H, W] and y [B]. The residual that the generator cannot
    explain stays, so that zeta = 0 gives x back.
    """
    flat = weights.flatten(0, 1)  # [K q, D]: one product for all classes

    def decode(zeta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        chosen = torch.nn.functional.one_hot(y, len(weights)).to(zeta)
        spread = (chosen[:, :, None] * zeta[:, None]).flatten(1)  # [B, K q]
        return (x + (spread @ flat).view_as(x)).clamp(0, 1)

    return decode


def space(threat: Threat, x: Tensor, y: Tensor, eps: float, weights: Tensor) -> Space:
    """What a threat may do to images x of classes y within the budget eps; for the generative one, of zeta in L2.

    weights: of the generator, [K, q, D].
    """
    if threat == "generative":
        return moved_along(weights, x, y, eps)
    return Pixels(x, eps, NORMS[threat])


def moved_along(weights: Tensor, x: Tensor, y: Tensor, eta: float) -> Latent:
    """Images moved along given vectors of their class, |zeta|_2 <= eta: weights [K, q, D]."""
    zeros = x.new_zeros(len(x), weights.shape[1])
    free = x.new_full((weights.shape[1],), torch.inf)
    return Latent(zeros, along(weights), (x, y), -free, free, eta, L2)


def ascend(
    f: Fleet, where: Space, y: Tensor, threat: Threat, eps: float, *, steps: int, seed: int, draft: Fleet | None,
    stop: Stop = "pair", label: str | None = None,
) -> Attack:  # fmt: skip
    """A threat's attack, one restart: steps of 2.5 eps / steps from a start of uniform norm that maximize the
    log-odds.
    """
    like = where.z if isinstance(where, Latent) else where.x  # type: ignore[attr-defined]
    adversary = _adversary(threat, eps, steps)
    return attack(
        f, where, y, like, start=norms.shells(NORMS.get(threat, L2), eps), rule=adversary.rule, steps=steps, restarts=1,
        generator=torch.Generator().manual_seed(seed), objective=log_odds, draft=draft, stop=stop, label=label,
    )  # fmt: skip


def perturbed(threat: Threat, setting: Setting, eps: float, weights: Tensor, *, steps: int, share: float) -> Perturbed:
    """What adversarial training against a threat puts in the place of a share of every batch."""
    adversary, x, y = _adversary(threat, eps, steps, _precision(setting)), setting.x, setting.y
    if threat != "generative":
        return training.uniform_norm(x, eps, adversary, norm=NORMS[threat], share=share)
    whole = moved_along(weights, x, y, eps)
    box = (whole.low, whole.high)
    return training.latent(whole.z, whole.decode, whole.context, box, eps, adversary, norm=L2, share=share)


def _precision(setting: Setting) -> Precision:
    """Of the attack inside training."""
    return "bfloat16" if bfloat16_is_fast(setting.x.device) else "float32"


def _adversary(threat: Threat, eps: float, steps: int, precision: Precision = "float32") -> Ascent:
    """Steps of 2.5 eps / steps. Under L1 the whole gradient found more examples than its largest entries, in trials."""
    along: Literal["signs", "gradient"] = "signs" if threat == "linf" else "gradient"
    return Ascent(steps=steps, lr=2.5 * eps / steps, along=along, precision=precision)


def hardened(
    setting: Setting,
    data: tuple[str, str, int],
    budgets: Mapping[Threat, float],
    weights: Tensor,
    *,
    network: Network,
    schedule: Schedule,
    steps: int,
    seeds: int,
) -> list[nn.Sequential]:
    """The networks of seeds 0, 1, ... trained against some threats, batch norm folded; from the store where they are.

    budgets: of each threat; every batch is divided among them. None: normal training. weights: of the generator, [K, q,
    D], which data and q decide. A seed's networks of all trainings start from the same weights. Source: Madry et al.,
    2018; for several threats Tramer and Boneh, 2019 (the average over threats).
    """

    def train(fleet: Stack, generators: list[torch.Generator], label: str) -> Stack:
        parts = [
            perturbed(threat, setting, eps, weights, steps=steps, share=1 / len(budgets))
            for threat, eps in budgets.items()
        ]
        return training.train(fleet, setting.x, setting.y, schedule, parts, generators=generators, label=label)

    name = "+".join(budgets) or "normal"
    q = {"q": weights.shape[1]} if "generative" in budgets else {}
    counts = {"budgets": dict(budgets), "steps": steps, "precision": _precision(setting), **q} if budgets else {}
    return trained(
        setting, data, name, network=network, schedule=schedule, seeds=seeds, counts=counts, train=train,
        label=f"training {title(name)}",
    )  # fmt: skip


def title(training_name: str) -> str:
    """A training's name as a text gives it: "L-inf + L2"."""
    return " + ".join(TITLES.get(part, part) for part in training_name.split("+"))
