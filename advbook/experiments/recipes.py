"""The training recipes that the chapters compare, by name, and their trained networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from advbook import networks, store, training
from advbook.experiments.setting import Known, Setting
from advbook.fleet import Stack
from advbook.kernels import bfloat16_is_fast
from advbook.manifolds import transform
from advbook.training import Adversary, Perturbed, Schedule

Recipe = Literal[
    "normal",
    "adversarial",
    "adversarial_full",
    "on_manifold",
    "transformation",
    "random_latent",
    "random_transformation",
    "random_transformation_released",
    "combined",
    "combined_full",
    "dial_25",
    "dial_75",
]
# In figures and tables. Half of every batch is clean, unless the title says otherwise.
TITLES: dict[Recipe, str] = {
    "normal": "normal",
    "adversarial": "adversarial",
    "adversarial_full": "adversarial, 100 %",
    "on_manifold": "on-manifold",
    "transformation": "transformation",
    "random_latent": "random latent",
    "random_transformation": "random transformation",
    "random_transformation_released": "random transf., as released",
    "combined": "combined",
    "combined_full": "combined, 100 %",
    "dial_25": "combined, 1 : 3",
    "dial_75": "combined, 3 : 1",
}
# The share d of the regular part in the adversarial loss, from on-manifold training to adversarial training. The ends
# are these recipes as published: there the adversarial half weighs as much as the clean one, between them twice that.
DIAL: dict[Recipe, float] = {"on_manifold": 0, "dial_25": 0.25, "combined": 0.5, "dial_75": 0.75, "adversarial": 1}


class Budgets(NamedTuple):
    """eps, eta: of the regular and the latent perturbations; steps: of the attack inside training."""

    eps: float = 0.3
    eta: float = 0.3
    steps: int = 40


class Mix(NamedTuple):
    """What a recipe trains on beside clean images; separate: as training.train means it."""

    perturbed: Sequence[Perturbed]
    separate: bool = False


def mix(recipe: Recipe, setting: Setting, budgets: Budgets, adversary: Adversary) -> Mix:
    """A recipe on the training images of a setting. Raises ValueError where it needs a manifold that is not known.

    Source: Stutz et al., CVPR 2019, section 3.4, and its released code: regular adversarial training on half of every
    batch; the same on the manifold, and with transformations; random transformations with a step of the optimizer of
    their own; a quarter on-manifold and a quarter regular, the three mean losses averaged.
    """
    x, (eps, eta, _) = setting.x, budgets
    if recipe == "normal":
        return Mix([])
    if recipe in ("adversarial", "adversarial_full"):
        return Mix([training.pixels(x, eps, adversary, share=0.5 if recipe == "adversarial" else 1.0)])
    if recipe == "transformation":
        return Mix([_transformed(x, eta, adversary)])
    if recipe == "random_transformation":
        return Mix([_transformed(x, eta, None)], separate=True)
    if recipe == "random_transformation_released":
        return Mix([_transformed_about_zero(x, eta)], separate=True)
    if setting.known is None:
        raise ValueError(f"Recipe {recipe!r} moves along the manifold, which is not known for this data set.")
    if recipe == "random_latent":
        return Mix([_moved(setting.known, eta, None)], separate=True)
    if recipe == "on_manifold":
        return Mix([_moved(setting.known, eta, adversary)])
    share, d = 0.5 if recipe == "combined_full" else 0.25, DIAL.get(recipe, 0.5)
    return Mix(
        [
            _moved(setting.known, eta, adversary, share=share, weight=2 * (1 - d)),
            training.pixels(x, eps, adversary, share=share, weight=2 * d),
        ]
    )


def classifiers(
    setting: Setting,
    data: tuple[str, str, int],
    *,
    recipe: Recipe = "normal",
    network: networks.Network = "cnn",
    schedule: Schedule,
    budgets: Budgets | None = None,
    seeds: int,
) -> list[nn.Sequential]:
    """The trained networks of seeds 0, 1, ..., batch norm folded; from the store where they are.

    data: data set, subset and N, which name the setting's training images. A seed's members of all recipes start from
    the same weights.
    """
    budgets = budgets or Budgets()
    fast = network == "cnn" and bfloat16_is_fast(setting.x.device)
    adversary = Adversary(steps=budgets.steps, precision="bfloat16" if fast else "float32")
    perturbed, separate = mix(recipe, setting, budgets, adversary)

    def train(fleet: Stack, generators: list[torch.Generator], label: str) -> Stack:
        return training.train(
            fleet, setting.x, setting.y, schedule, perturbed, separate=separate, generators=generators, label=label
        )

    counts = _what_counts(recipe, budgets, adversary)
    return trained(
        setting, data, recipe, network=network, schedule=schedule, seeds=seeds, counts=counts, train=train,
        label=f"training {TITLES[recipe]}",
    )  # fmt: skip


def trained(
    setting: Setting,
    data: tuple[str, str, int],
    name: str,
    *,
    network: networks.Network,
    schedule: Schedule,
    seeds: int,
    counts: Mapping[str, Any],
    train: Callable[[Stack, list[torch.Generator], str], Stack],
    label: str,
) -> list[nn.Sequential]:
    """The networks of seeds 0, 1, ... that a training gives, batch norm folded; from the store where they are.

    name, counts: what the training is called, and what decides its result beside network, schedule and data. train:
    (fleet, a generator a member, text of the progress bar) -> the fleet, trained.
    """
    device, (colours, side) = setting.x.device, setting.x.shape[1:3]
    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    fresh: list[nn.Module] = [
        networks.build(network, len(setting.classes), side=side, colours=colours, generator=random).to(device)
        for random in generators
    ]
    recipes = [
        {
            "version": 2,  # raise it when training or a network changes what it computes
            "training": name,
            "network": network,
            "schedule": schedule.model_dump(),
            "data": list(data),
            "seed": seed,
            "device": device.type,
            **counts,
        }
        for seed in range(seeds)
    ]

    def train_missing(missing: list[int]) -> list[nn.Module]:
        text = f"{label}, networks {', '.join(map(str, missing))}"
        return train(Stack([fresh[i] for i in missing]), [generators[i] for i in missing], text).unstack()

    return [networks.folded(cast(nn.Sequential, one)) for one in store.trained(recipes, fresh, train_missing)]


def _what_counts(recipe: Recipe, budgets: Budgets, adversary: Adversary) -> dict[str, Any]:
    """The budgets that a recipe uses."""
    if recipe == "normal":
        return {}
    if recipe.startswith("random"):
        return {"eta": budgets.eta}
    used = {"adversarial": ("eps",), "adversarial_full": ("eps",), "on_manifold": ("eta",), "transformation": ("eta",)}
    return {name: getattr(budgets, name) for name in used.get(recipe, ("eps", "eta"))} | adversary.model_dump()


def _moved(
    known: Known, eta: float, adversary: Adversary | None, *, share: float = 0.5, weight: float = 1.0
) -> Perturbed:
    """Images moved on the true manifold."""
    codes, m = known.train, known.manifold
    context, box = (codes.font, codes.letter), (m.low, m.high)
    return training.latent(codes.theta, m.decode, context, box, eta, adversary, share=share, weight=weight)


def _transformed(x: Tensor, eta: float, adversary: Adversary | None) -> Perturbed:
    """Images transformed about the identity."""
    return training.latent(
        transform.identity(x), transform.decode, (x,), transform.box("fonts", x.device), eta, adversary
    )


def _transformed_about_zero(x: Tensor, eta: float) -> Perturbed:
    """Random transformations as the released code draws them: about zero, where the scale of the identity is 1.

    The box then holds the scale at its lower bound, if eta is less than that.
    """
    low, high = transform.box("fonts", x.device)
    free = torch.full_like(low, torch.inf)

    def decode(t: Tensor, images: Tensor) -> Tensor:
        return transform.decode(t.clamp(low, high), images)

    return training.latent(torch.zeros_like(transform.identity(x)), decode, (x,), (-free, free), eta, None)
