"""The training recipes that the chapters compare, by name, and their trained networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from advbook import networks, store, training
from advbook.experiments import learned
from advbook.experiments.learned import Where
from advbook.experiments.setting import FONTS, Codes, Setting
from advbook.fleet import Stack
from advbook.kernels import bfloat16_is_fast
from advbook.manifolds import transform
from advbook.manifolds.vaegan import Size
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
    "on_class",
    "random_class",
    "on_data",
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
    "on_class": "on-manifold, learned classes",
    "random_class": "random latent, learned classes",
    "on_data": "on-manifold, one for all classes",
    "combined": "combined",
    "combined_full": "combined, 100 %",
    "dial_25": "combined, 1 : 3",
    "dial_75": "combined, 3 : 1",
}
# The share d of the regular part in the adversarial loss, from on-manifold training to adversarial training. The ends
# are these recipes as published: there the adversarial half weighs as much as the clean one, between them twice that.
DIAL: dict[Recipe, float] = {"on_manifold": 0, "dial_25": 0.25, "combined": 0.5, "dial_75": 0.75, "adversarial": 1}


# The manifold on which a recipe moves; those that are not named take the best that there is of the data set.
WHERE: dict[Recipe, Where] = {"on_class": "class", "random_class": "class", "on_data": "data"}
# The published budget on the manifold of all classes together, where a larger one leads into other classes.
ETA_DATA = 0.1


class Budgets(NamedTuple):
    """eps, eta: of the regular and the latent perturbations; steps: of the attack inside training; size: of learned
    manifolds.
    """

    eps: float = 0.3
    eta: float = 0.3
    steps: int = 40
    size: Size = "small"


class Mix(NamedTuple):
    """What a recipe trains on beside clean images; separate: as training.train means it."""

    perturbed: Sequence[Perturbed]
    separate: bool = False


def mix(recipe: Recipe, setting: Setting, budgets: Budgets, adversary: Adversary) -> Mix:
    """A recipe on the training images of a setting.

    Source: Stutz et al., CVPR 2019, section 3.4, and its released code: regular adversarial training on half of every
    batch; the same on the manifold, and with transformations; random transformations with a step of the optimizer of
    their own; a quarter on-manifold and a quarter regular, the three mean losses averaged; the manifold is the true
    one, that learned of every class, or one learned of all classes.
    """
    x, eps, eta = setting.x, budgets.eps, budgets.eta
    if recipe == "normal":
        return Mix([])
    if recipe in ("adversarial", "adversarial_full"):
        return Mix([training.pixels(x, eps, adversary, share=0.5 if recipe == "adversarial" else 1.0)])
    if recipe == "transformation":
        return Mix([_transformed(setting, eta, adversary)])
    if recipe == "random_transformation":
        return Mix([_transformed(setting, eta, None)], separate=True)
    if recipe == "random_transformation_released":
        return Mix([_transformed_about_zero(setting, eta)], separate=True)
    codes = learned.codes(setting, "train", _where(recipe, setting), size=budgets.size)
    if recipe in ("random_latent", "random_class"):
        return Mix([_moved(codes, eta, None)], separate=True)
    if recipe in ("on_manifold", "on_class", "on_data"):
        return Mix([_moved(codes, ETA_DATA if recipe == "on_data" else eta, adversary)])
    share, d = 0.5 if recipe == "combined_full" else 0.25, DIAL.get(recipe, 0.5)
    return Mix(
        [
            _moved(codes, eta, adversary, share=share, weight=2 * (1 - d)),
            training.pixels(x, eps, adversary, share=share, weight=2 * d),
        ]
    )


def _where(recipe: Recipe, setting: Setting) -> Where:
    return WHERE.get(recipe, learned.own(setting.dataset))


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
    square = setting.x.shape[2] == setting.x.shape[3]  # the fast form knows squares alone
    fast = network == "cnn" and square and bfloat16_is_fast(setting.x.device)
    adversary = Adversary(steps=budgets.steps, precision="bfloat16" if fast else "float32")
    perturbed, separate = mix(recipe, setting, budgets, adversary)

    def train(fleet: Stack, generators: list[torch.Generator], label: str) -> Stack:
        return training.train(
            fleet, setting.x, setting.y, schedule, perturbed, separate=separate, generators=generators, label=label
        )

    counts = _what_counts(recipe, budgets, adversary, setting)
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
    keep: bool = True,
) -> list[nn.Sequential]:
    """The networks of seeds 0, 1, ... that a training gives, batch norm folded; from the store where they are.

    name, counts: what the training is called, and what decides its result beside network, schedule and data. train:
    (fleet, a generator a member, text of the progress bar) -> the fleet, trained. keep=False: the store is left alone,
    and all are trained, for who wants to watch.
    """
    device, (colours, *sides) = setting.x.device, setting.x.shape[1:]
    side = sides[0] if sides[0] == sides[1] else (sides[0], sides[1])
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

    found = store.trained(recipes, fresh, train_missing) if keep else train_missing(list(range(seeds)))
    return [networks.folded(cast(nn.Sequential, one.eval())) for one in found]


def _what_counts(recipe: Recipe, budgets: Budgets, adversary: Adversary, setting: Setting) -> dict[str, Any]:
    """The budgets that a recipe uses, and the learned manifold on which it moves."""
    if recipe == "normal":
        return {}
    if recipe in ("adversarial", "adversarial_full"):
        return {"eps": budgets.eps} | adversary.model_dump()
    used: dict[str, Any] = {"eta": budgets.eta}
    if "transformation" not in recipe and (where := _where(recipe, setting)) != "true":
        used["manifold"] = learned.identity(setting.dataset, where, budgets.size, setting.x.device)
    if recipe.startswith("random"):
        return used
    if recipe == "on_data":
        used["eta"] = ETA_DATA
    elif recipe not in ("on_manifold", "on_class", "transformation"):
        used["eps"] = budgets.eps
    return used | adversary.model_dump()


def _moved(
    codes: Codes, eta: float, adversary: Adversary | None, *, share: float = 0.5, weight: float = 1.0
) -> Perturbed:
    """Images moved on a manifold."""
    box = (codes.low, codes.high)
    return training.latent(codes.z, codes.decode, codes.context, box, eta, adversary, share=share, weight=weight)


def _box(setting: Setting) -> tuple[Tensor, Tensor]:
    return transform.box("fonts" if setting.dataset in FONTS else "real", setting.x.device)


def _transformed(setting: Setting, eta: float, adversary: Adversary | None) -> Perturbed:
    """Images transformed about the identity."""
    x = setting.x
    return training.latent(transform.identity(x), transform.decode, (x,), _box(setting), eta, adversary)


def _transformed_about_zero(setting: Setting, eta: float) -> Perturbed:
    """Random transformations as the released code draws them: about zero, where the scale of the identity is 1.

    The box then holds the scale at its lower bound, if eta is less than that.
    """
    x, (low, high) = setting.x, _box(setting)
    free = torch.full_like(low, torch.inf)

    def decode(t: Tensor, images: Tensor) -> Tensor:
        return transform.decode(t.clamp(low, high), images)

    return training.latent(torch.zeros_like(transform.identity(x)), decode, (x,), (-free, free), eta, None)
