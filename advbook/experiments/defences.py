"""The defences that chapter 05 compares, by name, and their trained networks: one engine and one fleet for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from advbook import networks, training
from advbook.experiments.recipes import trained
from advbook.experiments.setting import Setting
from advbook.fleet import Stack
from advbook.kernels import bfloat16_is_fast
from advbook.training import Adversary, Backtracking, Descent, Divergence, Perturbed, Schedule, Transition

Defence = Literal[
    "normal", "at_half", "at_full", "trades", "ccat", "ccat_whole_batch", "ccat_exponential", "ccat_linear"
]
TITLES: dict[Defence, str] = {
    "normal": "normal",
    "at_half": "AT, 50 %",
    "at_full": "AT, 100 %",
    "trades": "TRADES",
    "ccat": "CCAT",
    "ccat_whole_batch": "CCAT, one start a batch",
    "ccat_exponential": "CCAT, exponential",
    "ccat_linear": "CCAT, linear",
}
PUBLISHED_STEPS = 40


class Rates(NamedTuple):
    """Step rates of the attacks inside training, as published for this eps and 40 steps: on the confidence (CCAT), on
    the cross-entropy (AT), on the divergence (TRADES).
    """

    eps: float
    confidence: float
    error: float
    divergence: float


GREY = Rates(0.3, 0.01, 0.05, 0.01)  # MNIST
COLOUR = Rates(0.03, 0.005, 0.005, 0.007 / 4)  # CIFAR-10; TRADES takes 10 steps of .007


class Attacked(NamedTuple):
    """eps: L-inf budget in training; steps: of the attack inside; rho: of CCAT's transition; beta: of TRADES."""

    eps: float
    steps: int = PUBLISHED_STEPS
    rho: float = 10.0
    beta: float = 1.0

    def rates(self, colours: int) -> Rates:
        """The step rates for these steps and this eps: with the published ones, the published rates.

        Fewer steps take longer ones, so that the attack still gets as far; at most eps / 2, half the ball.
        """
        published = GREY if colours == 1 else COLOUR
        longer = (self.eps / published.eps) * (PUBLISHED_STEPS / self.steps)
        return Rates(self.eps, *(min(rate * longer, self.eps / 2) for rate in published[1:]))


def schedule(network: networks.Network, dataset: str, epochs: int) -> Schedule:
    """How a network is trained: LeNet and ResNet-20 as published with CCAT, the papers' standard classifiers as there.

    In trials on FONTS with few epochs, SGD at the published rate left some of the standard classifiers at chance.
    """
    if network == "lenet":
        return Descent(epochs=epochs, decay=0.93)
    if network == "resnet20":
        return Descent(epochs=epochs, lr=0.075 if dataset.startswith("cifar") else 0.1)
    return Schedule(epochs=epochs)


def defended(
    setting: Setting,
    data: tuple[str, str, int],
    defence: Defence,
    attacked: Attacked,
    *,
    network: networks.Network,
    epochs: int,
    seeds: int,
) -> list[nn.Sequential]:
    """The trained networks of seeds 0, 1, ..., batch norm folded; from the store where they are.

    A seed's members of all defences start from the same weights. Source: Stutz et al., ICML 2020, for AT and CCAT;
    Madry et al., 2018, for AT on full batches; Zhang et al., ICML 2019, for TRADES.
    """
    plan = schedule(network, data[0], epochs)
    train, counts = _training(setting, defence, attacked, plan)
    return trained(
        setting, data, defence, network=network, schedule=plan, seeds=seeds, counts=counts, train=train,
        label=f"training {TITLES[defence]}",
    )  # fmt: skip


Train = Callable[[Stack, list[torch.Generator], str], Stack]


def _training(setting: Setting, defence: Defence, a: Attacked, plan: Schedule) -> tuple[Train, dict[str, Any]]:
    """How a defence trains a fleet, and what counts for its result beside data, network and schedule."""
    fast = {"precision": "bfloat16" if bfloat16_is_fast(setting.x.device) else "float32", "steps": a.steps}
    x, y, rates = setting.x, setting.y, a.rates(setting.x.shape[1])

    def on(*perturbed: Perturbed) -> Train:
        def train(fleet: Stack, generators: list[torch.Generator], label: str) -> Stack:
            return training.train(fleet, x, y, plan, perturbed, generators=generators, label=label)

        return train

    if defence == "normal":
        return on(), {}
    if defence in ("at_half", "at_full"):
        adversary: Adversary = Backtracking.model_validate({**fast, "goal": "error", "lr": rates.error})
        share = 0.5 if defence == "at_half" else 1.0
        return on(training.uniform_norm(x, a.eps, adversary, share=share)), {"eps": a.eps, **adversary.model_dump()}
    if defence == "trades":
        adversary = Divergence.model_validate({**fast, "lr": rates.divergence})

        def trades(fleet: Stack, generators: list[torch.Generator], label: str) -> Stack:
            return training.train_trades(
                fleet, x, y, plan, a.eps, adversary, beta=a.beta, generators=generators, label=label
            )

        return trades, {"eps": a.eps, "beta": a.beta, **adversary.model_dump()}
    adversary = Backtracking.model_validate({**fast, "lr": rates.confidence})
    part = training.calibrated(
        x, a.eps, adversary, transition=_transition(defence, a), whole_batch=defence == "ccat_whole_batch"
    )
    return on(part), {"eps": a.eps, "rho": a.rho, **adversary.model_dump()}


def _transition(defence: Defence, a: Attacked) -> Transition:
    """The published transition, or a variant as steep near zero: all three start with the slope -rho / eps."""
    if defence == "ccat_exponential":
        return training.exponential(a.rho / a.eps)
    return training.linear(a.eps, a.rho) if defence == "ccat_linear" else training.power(a.eps, a.rho)
