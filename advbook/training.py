"""Training recipes for fleets. Data stays on the device; a recipe and a seed fix each member's result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm import tqdm

from advbook.attacks.engine import Objective, climb
from advbook.attacks.norms import L2, LINF, Norm, Start, gaussian, mixed, near, normal, shells, zero
from advbook.attacks.objectives import cross_entropy, log_odds, other_log_confidence
from advbook.attacks.spaces import Decoder, Latent, Pixels, Space
from advbook.attacks.steps import StepRule, adam, ascent, backtracking, sign
from advbook.capture import captured
from advbook.fleet import Stack
from advbook.kernels import draft


class Schedule(BaseModel):
    """The papers' schedule: Adam, learning rate lr * decay^(epochs done), batches of 100, 20 epochs.

    The rate falls with every batch, and the exponent starts at one, as in the released code. Source: Stutz et al.,
    CVPR 2019, section 3.1, and its released code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(20, ge=0)
    batch: int = Field(100, ge=2)
    lr: float = Field(0.01, gt=0)
    decay: float = Field(0.95, gt=0, le=1)
    weight_decay: float = Field(1e-4, ge=0)

    def rate(self, epoch: float) -> float:
        """Learning rate after `epoch` epochs (fractions count)."""
        return float(max(self.lr * self.decay ** (epoch + 1), 1e-7))

    def optimizer(self, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Adam, which works entry by entry: a stack of members is optimized as each of them alone."""
        return torch.optim.Adam(weights, betas=(0.5, 0.9), weight_decay=self.weight_decay, fused=True)


class Descent(Schedule):
    """The schedule of confidence-calibrated adversarial training: SGD with momentum, rate lr * decay^(whole epochs).

    The published values: lr .1 (CIFAR-10: .075), decay .95 (MNIST: .93), 200 epochs (MNIST: 100), and no weight decay,
    since the released code never passes on what its configuration names. Source: released code of Stutz et al., ICML
    2020.
    """

    lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)

    def rate(self, epoch: float) -> float:
        """Learning rate in the epoch that follows `epoch` ones."""
        return float(self.lr * self.decay ** int(epoch + 1e-9))

    def optimizer(self, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
        """SGD with momentum, entry by entry too."""
        return torch.optim.SGD(weights, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, fused=True)


class Adversary(BaseModel):
    """The attack inside adversarial training: Adam maximizes the cross-entropy from a random start; the best iterate
    counts.

    precision: of the attack's products; bfloat16 (kernels.draft) pays where the device is fast at it. Source: Stutz et
    al., CVPR 2019, section 3.4; its released code keeps the last iterate until the first success, and the best one only
    from then on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(40, ge=0)
    lr: float = Field(0.005, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"

    @property
    def rule(self) -> StepRule:
        """How the attack steps."""
        return adam(self.lr)

    @property
    def objective(self) -> Objective:
        """What the attack maximizes."""
        return cross_entropy

    def ascend(self, fleet: Stack, space: Space, target: Tensor, start: Tensor, *, side: int) -> Tensor:
        """The u of largest objective in a space of M b rows of the fleet's members.

        target: [M b, ...], for most objectives the labels; start: [M b, ...]; side: of the images.
        """
        f = (draft(fleet, side=side) if self.precision == "bfloat16" else fleet).by_rows
        u, _ = climb(f, space, target, start, objective=self.objective, rule=self.rule, steps=self.steps)
        return u


class Backtracking(Adversary):
    """The attack of confidence-calibrated adversarial training and its baseline: sign steps with momentum, each pair's
    rate divided by `factor` where a step brought less.

    goal: "confidence", the largest in a wrong class, for CCAT (in logarithms: the same steps, and no underflow), or
    "error", the cross-entropy, for adversarial training. Published rates: for the confidence .01 on MNIST and .005 on
    SVHN and CIFAR-10; for the cross-entropy .05, .01 and .005. Source: released code of Stutz et al., ICML 2020.
    """

    lr: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    factor: float = Field(1.5, gt=1)
    goal: Literal["confidence", "error"] = "confidence"

    @property
    def rule(self) -> StepRule:
        """Steps of lr along the moving average of signs."""
        return backtracking(self.lr, torch.sign, momentum=self.momentum, factor=self.factor)

    @property
    def objective(self) -> Objective:
        """The log of the largest wrong confidence, or the cross-entropy."""
        return other_log_confidence if self.goal == "confidence" else cross_entropy


class Divergence(Adversary):
    """The attack of TRADES: sign steps that maximize the divergence of f(x + delta) from f(x). The target is f(x), as
    logits.

    Source: Zhang et al., ICML 2019.
    """

    lr: float = Field(0.01, gt=0)

    @property
    def rule(self) -> StepRule:
        """Plain sign steps of lr."""
        return sign(self.lr)

    @property
    def objective(self) -> Objective:
        """KL(softmax(f(x)) || softmax(f(x + delta)))."""
        return divergence


class Ascent(Adversary):
    """Plain steps of lr that maximize the log-odds of another class, along the gradient's signs, as L-inf asks for, or
    along the normalized gradient.

    Source: Madry et al., 2018.
    """

    along: Literal["signs", "gradient"] = "signs"

    @property
    def rule(self) -> StepRule:
        """Steps of lr along the direction."""
        return ascent(self.lr, torch.sign if self.along == "signs" else L2.direction)

    @property
    def objective(self) -> Objective:
        """The log-odds: they lead as the cross-entropy does, and never underflow."""
        return log_odds


def divergence(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(p || q) for p = softmax(clean) and q = softmax(logits), sum_k p_k (log p_k - log q_k): [..., K], [..., K] ->
    [...].
    """
    log_p = clean.log_softmax(-1)
    return (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1)


# --- target transitions of CCAT -----------------------------------------------------------------------------------

Transition = Callable[[Tensor], Tensor]  # size of a perturbation [P] -> weight lambda of its label [P], in [0, 1]


def power(eps: float, rho: float = 10.0) -> Transition:
    """lambda = (1 - min(1, n / eps))^rho, the published transition; rho = 10 in the released models.

    n: size of the perturbation found. Raises ValueError unless eps > 0 and rho >= 0, as the other transitions do.
    Source: Stutz et al., ICML 2020.
    """
    _check_transition(eps, rho)
    return lambda n: (1 - (n / eps).clamp_max(1)) ** rho


def exponential(rho: float) -> Transition:
    """lambda = exp(-rho n). Source: released code of Stutz et al., ICML 2020."""
    _check_transition(1.0, rho)
    return lambda n: torch.exp(-rho * n)


def linear(eps: float, rho: float = 1.0) -> Transition:
    """lambda = 1 - min(1, rho n / eps). Source: released code of Stutz et al., ICML 2020."""
    _check_transition(eps, rho)
    return lambda n: 1 - (rho * n / eps).clamp_max(1)


def _check_transition(eps: float, rho: float) -> None:
    if not eps > 0:
        raise ValueError(f"eps = {eps}: allowed is a budget above 0, since targets depend on its share that is used.")
    if not rho >= 0:
        raise ValueError(f"rho = {rho}: allowed is 0 or more.")


# --- what takes the place of images ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Perturbed:
    """A share of every batch, and what takes the place of its images: g(u) in a space around each of them.

    share: of the batch; around: [N, ...], shaped as u for every training image; start: draws u; space: rows [P] of the
    training set -> the space of these images; adversary: looks for the worst u from there; without one, the start
    point is a random augmentation. weight: of its mean loss beside the others'. trust: u [P, ...] -> lambda [P]:
    the network should give g(u) the distribution lambda onehot(y) + (1 - lambda) / K. Without it, all goes to the
    label.
    """

    share: float
    around: Tensor
    start: Start
    space: Callable[[Tensor], Space]
    adversary: Adversary | None = None
    weight: float = 1.0
    trust: Callable[[Tensor], Tensor] | None = None


def pixels(x: Tensor, eps: float, adversary: Adversary, *, share: float = 0.5, weight: float = 1.0) -> Perturbed:
    """Regular adversarial examples x + delta with |delta|_inf <= eps of training images x: [N, C, H, W].

    Source: Stutz et al., CVPR 2019, equation (1).
    """
    return Perturbed(share, x, gaussian(LINF, eps), lambda rows: Pixels(x[rows], eps), adversary, weight)


def uniform_norm(x: Tensor, eps: float, adversary: Adversary, *, norm: Norm = LINF, share: float = 0.5) -> Perturbed:
    """Regular adversarial examples as the baseline of CCAT makes them: from starts of uniform norm in the ball.

    adversary: Backtracking(goal="error"), as published for L-inf. Source: released code of Stutz et al., ICML 2020.
    """
    return Perturbed(share, x, shells(norm, eps), lambda rows: Pixels(x[rows], eps, norm), adversary)


def latent(
    z: Tensor,
    decode: Decoder,
    context: tuple[Tensor, ...],
    box: tuple[Tensor, Tensor],
    eta: float,
    adversary: Adversary | None,
    *,
    norm: Norm = LINF,
    share: float = 0.5,
    weight: float = 1.0,
) -> Perturbed:
    """On-manifold adversarial examples dec(z + zeta) with |zeta| <= eta, or, without an adversary, random ones.

    z: [N, D]; decode(z, *context), context: [N, ...] each; box: bounds of z + zeta, [D] each. Transformations T(x; t)
    of an image are the same: z is the identity, the context the image. Source: Stutz et al., CVPR 2019, equation (3).
    """

    def space(rows: Tensor) -> Latent:
        return Latent(z[rows], decode, tuple(part[rows] for part in context), *box, eta, norm)

    return Perturbed(share, z, gaussian(norm, eta), space, adversary, weight)


def calibrated(
    x: Tensor,
    eps: float,
    adversary: Adversary,
    *,
    transition: Transition | None = None,
    norm: Norm = LINF,
    share: float = 0.5,
    whole_batch: bool = False,
) -> Perturbed:
    """Confidence-calibrated adversarial training on images x: [N, C, H, W]: the larger the perturbation, the closer
    its target to the uniform distribution.

    adversary: Backtracking(), as published, maximizes the confidence in a wrong class. It starts from Gaussian noise of
    standard deviation eps / (2 ln D), from a uniform norm, or from the image itself, by a draw for every example; with
    whole_batch by one draw for the whole batch, as the released code does. transition: power(eps) by default. Without a
    start at the image itself hardly any perturbation would be small, and the network would not learn where its
    confidence should stay. Source: Stutz et al., ICML 2020, and its released code.
    """
    found = transition or power(eps)
    start = mixed([near(norm, eps), shells(norm, eps), zero(norm, eps)], whole_batch=whole_batch)

    def trust(u: Tensor) -> Tensor:
        return found(norm.size(u))

    return Perturbed(share, x, start, lambda rows: Pixels(x[rows], eps, norm), adversary, trust=trust)


def train(
    fleet: Stack,
    x: Tensor,
    y: Tensor,
    schedule: Schedule,
    perturbed: Sequence[Perturbed] = (),
    *,
    separate: bool = False,
    generators: Sequence[torch.Generator],
    label: str | None = None,
) -> Stack:
    """Train every member: minimize the cross-entropy on clean images, and on perturbed ones in the place of others.

    Changes the fleet in place and returns it. x: [N, C, H, W]; y: [N], the same for all members. An epoch is a random
    order of the rows; its last batch is filled up from the order's beginning. Without `perturbed` this is normal
    training. Else the last rows of every batch are perturbed, with the fleet in evaluation mode; then one forward takes
    the whole batch in training mode, and the loss is the weighted mean of the parts' mean losses (the clean part, if
    the shares leave one, weighs 1). separate: each part has a forward and a step of the optimizer of its own, the clean
    one first, as the released code does for random augmentation. generators: one a member, draws its orders and start
    points.

    Raises ValueError if a share is not positive, if they add up to more than 1, if there are no images or not one
    generator a member; FloatingPointError if a loss is not finite. Source: Stutz et al., CVPR 2019, section 3.4, and
    its released code.
    """
    sizes = _sizes([part.share for part in perturbed], schedule.batch)
    weights = [1.0, *(part.weight for part in perturbed)]
    movers = [_mover(part, fleet, x.shape[-1], generators) for part in perturbed]

    def part(index: int, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images of a part, [M, b, C, H, W], and the weight of their labels, [M, b], if it is not 1."""
        if not index:
            return x[rows], None
        u, images = movers[index - 1](rows, y[rows])
        trust = perturbed[index - 1].trust
        return images, None if trust is None else trust(u).view_as(rows)

    def losses(rows: Tensor) -> Iterator[Tensor]:
        own = rows.split(sizes, 1)
        chosen = [index for index, size in enumerate(sizes) if size]
        if separate:
            for index in chosen:
                images, trust = part(index, own[index])
                yield _cross_entropy(fleet(images), y[own[index]], trust).mean(1)
            return
        parts = [part(index, own[index]) for index in chosen]
        logits = fleet(torch.cat([images for images, _ in parts], 1)).split([sizes[index] for index in chosen], 1)
        means = [
            weights[index] * _cross_entropy(out, y[own[index]], trust).mean(1)
            for index, out, (_, trust) in zip(chosen, logits, parts, strict=True)
        ]
        yield torch.stack(means).sum(0) / sum(weights[index] for index in chosen)

    return _fit(fleet, len(x), schedule, losses, generators, x.device, label)


def train_trades(
    fleet: Stack,
    x: Tensor,
    y: Tensor,
    schedule: Schedule,
    eps: float,
    adversary: Adversary,
    *,
    beta: float = 1.0,
    generators: Sequence[torch.Generator],
    label: str | None = None,
) -> Stack:
    """TRADES: minimize the cross-entropy on clean images plus beta times KL(f(x) || f(x + delta)), for every image.

    adversary: Divergence(), as published; it starts from Gaussian noise of standard deviation .001. beta: published are
    1 on MNIST and 6 on CIFAR-10. One forward takes clean and perturbed images together. The rest as in train. Raises
    ValueError if beta < 0, and as train does. Source: Zhang et al., ICML 2019.
    """
    if not beta >= 0:
        raise ValueError(f"beta = {beta}: allowed is 0 or more.")
    around = Perturbed(
        1.0, x, lambda like, random: 0.001 * normal(like, random), lambda rows: Pixels(x[rows], eps), adversary
    )
    mover = _mover(around, fleet, x.shape[-1], generators)

    def losses(rows: Tensor) -> Iterator[Tensor]:
        fleet.eval()
        with torch.no_grad():
            before = fleet(x[rows])
        _, moved = mover(rows, before)
        clean, logits = fleet(torch.cat([x[rows], moved], 1)).chunk(2, 1)
        yield (_cross_entropy(clean, y[rows]) + beta * divergence(logits, clean)).mean(1)

    return _fit(fleet, len(x), schedule, losses, generators, x.device, label)


def _sizes(shares: Sequence[float], batch: int) -> list[int]:
    """How many rows of a batch are clean, and how many belong to each share."""
    if any(not share > 0 for share in shares) or sum(shares) > 1 + 1e-9:
        raise ValueError(f"share = {list(shares)}: allowed are shares above 0 that add up to at most 1.")
    sizes = [max(round(share * batch), 1) for share in shares]
    clean = batch - sum(sizes)
    if clean < 0:  # rounding of small batches
        raise ValueError(f"share = {list(shares)}: a batch of {batch} has no {sum(sizes)} rows to perturb.")
    return [clean, *sizes]


def _mover(
    part: Perturbed, fleet: Stack, side: int, generators: Sequence[torch.Generator]
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(rows [M, b], target [M, b, ...]) -> the u of the rows, [M b, ...], and their images, [M, b, C, H, W].

    The attack sees the fleet in evaluation mode, which is in training mode afterwards.
    """
    made: list[Callable[..., Tensor]] = []

    def move(rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        given = rows, target, _starts(part.start, part.around[rows], generators)
        fleet.eval()
        if not made:  # the first time: only now are the shapes known
            made.append(captured(partial(_moves, part, fleet, side), *given))
        u = made[0](*given)
        fleet.train()
        return u, part.space(rows.flatten()).image(u).unflatten(0, rows.shape)

    return move


def _moves(part: Perturbed, fleet: Stack, side: int, rows: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """The u that takes the place of the rows: rows [M, b], target [M, b, ...], start [M, b, ...] -> [M b, ...]."""
    space, u = part.space(rows.flatten()), start.flatten(0, 1)
    if part.adversary is not None:
        u = part.adversary.ascend(fleet, space, target.flatten(0, 1), u, side=side)
    return space.project(u)


def _fit(
    fleet: Stack,
    count: int,
    schedule: Schedule,
    losses: Callable[[Tensor], Iterator[Tensor]],
    generators: Sequence[torch.Generator],
    device: torch.device,
    label: str | None,
) -> Stack:
    """Minimize every member's losses(rows [M, B]), each [M], one step each, on its own order of `count` images."""
    if not count:
        raise ValueError("x: no images to train on.")
    if len(generators) != fleet.members:
        raise ValueError(f"generators: {len(generators)} for a fleet of {fleet.members}; allowed is one a member.")
    optimizer = schedule.optimizer(fleet.weights.values())
    batches = -(-count // schedule.batch)
    fleet.train()
    loss = torch.zeros(fleet.members, device=device)
    with tqdm(total=schedule.epochs * batches, desc=label, disable=label is None, leave=False) as bar:
        for epoch in range(schedule.epochs):
            orders = torch.stack([_order(count, batches * schedule.batch, random) for random in generators]).to(device)
            for index in range(batches):
                rows = orders[:, index * schedule.batch : (index + 1) * schedule.batch]  # [M, B]
                optimizer.param_groups[0]["lr"] = schedule.rate(epoch + index / batches)
                for loss in losses(rows):
                    optimizer.zero_grad()
                    loss.sum().backward()
                    optimizer.step()
                bar.update()
            if not (loss.isfinite().all() and all(bool(w.isfinite().all()) for w in fleet.weights.values())):
                raise FloatingPointError(f"Training diverged in epoch {epoch + 1}: its loss or a weight is not finite.")
    return fleet.eval()


def _order(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """A random order of the rows, `count` entries long: filled up from its beginning."""
    order = torch.randperm(rows, generator=generator, device=generator.device)
    return order.repeat(-(-count // rows))[:count]


def _starts(start: Start, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Start points of every member from its own generator: [M, B, ...]."""
    return torch.stack([start(own, random) for own, random in zip(images, generators, strict=True)])


def _cross_entropy(logits: Tensor, labels: Tensor, trust: Tensor | None = None) -> Tensor:
    """-sum_k t_k log p_k for t = trust onehot(y) + (1 - trust) / K: [M, B, K], [M, B], [M, B] -> [M, B]."""
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten()).view_as(labels)
    if trust is None:
        return loss
    return trust * loss - (1 - trust) * logits.log_softmax(-1).mean(-1)
