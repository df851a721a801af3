"""How fast the engine is on this machine, beside the attack libraries that people use, and what a grid would take.

Everything is measured side by side in one run. `make bench` installs the libraries (scripts/benchmark-requirements.txt)
and runs it. The rows are kept: those of `--sizes full` in book/results, from which the page "How fast is it" is drawn.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from advbook import fonts, ledger, networks, store, training
from advbook.attacks.engine import Network
from advbook.attacks.norms import LINF, volume
from advbook.attacks.objectives import cross_entropy
from advbook.attacks.pgd import pgd, pgd_latent
from advbook.attacks.spaces import Latent
from advbook.attacks.steps import sign
from advbook.experiments import device_name, setting
from advbook.fleet import Stack
from advbook.kernels import Banded, bfloat16_is_fast

EXPERIMENT, VERSION = "speed", 1  # raise the version when the script measures something else
BALL = 1e-6  # what float32 may add to an image's distance
EPS, ETA = 0.3, 0.3  # the papers' budgets, in the image and on the manifold
SIDES = ((1_024, 2_048), (4_096, 8_192))  # of the matrices whose products say what a CPU, and a GPU, can do
Row = dict[str, Any]


class Size(NamedTuple):
    """How much is measured: training rows and epochs of the attacked networks; attacked images at most, steps and
    restarts of the attacks; repeats of every timed run, at least so many seconds each; halvings of the search for
    eps; networks in a fleet and batches each is trained on.
    """

    n: int
    epochs: int
    images: int
    steps: int
    restarts: int
    batch: int
    repeats: int
    least_seconds: float
    halvings: int
    members: int
    batches: int


SIZES = {
    "small": Size(250, 2, 100, 10, 2, 512, 3, 0.1, 4, 2, 3),
    "full": Size(2_500, 20, 1_000, 40, 5, 512, 3, 0.5, 8, 5, 10),
}


def say(text: str) -> None:
    """Progress, beside what the script prints."""
    print(text, file=sys.stderr, flush=True)


# --- counting and timing ----------------------------------------------------------------------------------------


class Counted(nn.Module):
    """A network in evaluation mode that counts the samples it is shown; `beside` adds another one to the same count."""

    def __init__(self, network: Network, tally: list[int] | None = None) -> None:
        super().__init__()
        self.inside = network
        self.tally = [0] if tally is None else tally
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """The network's output."""
        self.tally[0] += len(x)
        return self.inside(x)

    def beside(self, network: Network) -> Counted:
        """Another network, counted together with this one."""
        return Counted(network, self.tally)


def now(device: torch.device) -> float:
    """Seconds, once the device has done all that it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def rates(
    parts: Mapping[Any, tuple[Callable[[], object], float]], device: torch.device, size: Size
) -> dict[Any, float]:
    """Amount a second in the best of some rounds, all parts in turn; parts: name -> (work, its amount)."""
    best = dict.fromkeys(parts, 0.0)
    for work, _ in parts.values():
        work()
    for _ in range(size.repeats):
        for name, (work, amount) in parts.items():
            done, began = 0.0, now(device)
            while True:
                work()
                done += amount
                if time.perf_counter() - began >= size.least_seconds:
                    break
            best[name] = max(best[name], done / (now(device) - began))
    return best


# --- the networks -----------------------------------------------------------------------------------------------


def data(size: Size, device: torch.device) -> setting.Setting:
    """FONTS: the first N training rows, the first test rows to attack."""
    return setting.load("fonts", size.n, "first", size.images, device)


def trained(recipe: str, size: Size, s: setting.Setting) -> nn.Sequential:
    """A classifier trained normally or adversarially, as every library gets it; from the store where it is."""
    schedule, generator = training.Schedule(epochs=size.epochs), torch.Generator().manual_seed(0)
    adversary = training.Adversary(steps=size.steps)
    key = {
        "benchmark": VERSION,
        "training": recipe,
        "schedule": schedule.model_dump(),
        "adversary": {"eps": EPS, **adversary.model_dump()},
        "data": ["fonts", "first", size.n],
        "device": s.x.device.type,
    }
    fresh = networks.cnn(generator=generator).to(s.x.device)

    def train(missing: list[int]) -> list[nn.Module]:
        perturbed = [] if recipe == "normal" else [training.pixels(s.x, EPS, adversary)]
        return training.train(
            Stack([fresh]), s.x, s.y, schedule, perturbed, generators=[generator], label=f"{recipe} training"
        ).unstack()

    (network,) = store.trained([key], [fresh], train)
    assert isinstance(network, nn.Sequential)
    return network.requires_grad_(False)  # else some libraries would also compute gradients of the weights


class Kernel(NamedTuple):
    """A form of the network: how it is made, and whether it only leads the attack while the network confirms."""

    make: Callable[[nn.Sequential], Network]
    drafts: bool = False


def kernels(device: torch.device) -> dict[str, Kernel]:
    """The forms of a network that the engine can attack; the first is what all libraries get."""
    found = {"plain": Kernel(lambda network: network), "batch norm folded": Kernel(networks.folded)}
    if bfloat16_is_fast(device):
        found["banded bfloat16"] = Kernel(lambda network: Banded(network).by_rows, drafts=True)
    else:
        say("This device has no unit for products of bfloat16: the banded form is left out.")
    return found


def led(network: nn.Sequential, kernel: Kernel, counted: Counted) -> dict[str, Any]:
    """The network and the draft that the engine gets, both counted."""
    made = counted.beside(kernel.make(network))
    return {"f": counted, "draft": made} if kernel.drafts else {"f": made}


# --- the attacks ------------------------------------------------------------------------------------------------


class Budget(NamedTuple):
    """What every attack may spend: radius, steps of 2.5 eps / steps along the gradient's sign, restarts, images at a
    time.
    """

    eps: float
    steps: int
    restarts: int
    batch: int

    @property
    def step(self) -> float:
        """The step size."""
        return 2.5 * self.eps / self.steps


Attack = Callable[[Counted, Tensor, Tensor, Budget], Tensor]  # -> one example an image: the best of its restarts


def engine(kernel: Kernel) -> Attack:
    """advbook's own attack: the first win of an image ends its restarts, and others take their places."""

    def attack(network: Counted, x: Tensor, y: Tensor, b: Budget) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        found = pgd(
            **led(network.inside, kernel, network), x=x, y=y, eps=b.eps, steps=b.steps, restarts=b.restarts,
            rule=sign(b.step), start=volume(LINF, b.eps), stop="image", batch=b.batch, generator=generator,
        )  # fmt: skip
        first = found.success.long().argmax(0)
        return found.x[first, torch.arange(len(x), device=x.device)]

    return attack


def textbook(network: Counted, x: Tensor, y: Tensor, b: Budget) -> Tensor:
    """What a tutorial shows: all images of a batch through all steps of all restarts."""
    best = x.clone()
    for _ in range(b.restarts):
        u = (x + b.eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(b.steps):
            u.requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(network(u), y, reduction="sum"), u)
            u = u.detach() + b.step * slope.sign()
            u = torch.minimum(torch.maximum(u, x - b.eps), x + b.eps).clamp(0, 1)
        won = network(u).argmax(1) != y
        best[won] = u[won]
    return best


def in_batches(attack: Attack) -> Attack:
    """The attack on one batch after the other."""

    def whole(network: Counted, x: Tensor, y: Tensor, b: Budget) -> Tensor:
        parts = zip(x.split(b.batch), y.split(b.batch), strict=True)
        return torch.cat([attack(network, images, labels, b) for images, labels in parts])

    return whole


def foolbox_pgd() -> Attack:
    """Foolbox: LinfPGD, repeated."""
    import foolbox

    def attack(network: Counted, x: Tensor, y: Tensor, b: Budget) -> Tensor:
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device=x.device)
        one = foolbox.attacks.LinfPGD(abs_stepsize=b.step, steps=b.steps, random_start=True)
        _, clipped, _ = one.repeat(b.restarts)(model, x, foolbox.criteria.Misclassification(y), epsilons=b.eps)
        return clipped

    return in_batches(attack)


def torchattacks_pgd() -> Attack:
    """torchattacks: one PGD a restart in a MultiAttack, which hands on the images not yet fooled."""
    import torchattacks

    def attack(network: Counted, x: Tensor, y: Tensor, b: Budget) -> Tensor:
        one = partial(torchattacks.PGD, network, eps=b.eps, alpha=b.step, steps=b.steps, random_start=True)
        return torchattacks.MultiAttack([one() for _ in range(b.restarts)])(x, y)

    return in_batches(attack)


def art_pgd() -> Attack:
    """Adversarial Robustness Toolbox: its PyTorch form of projected gradient descent, which takes and gives NumPy."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    def attack(network: Counted, x: Tensor, y: Tensor, b: Budget) -> Tensor:
        model = PyTorchClassifier(
            network, nn.CrossEntropyLoss(), tuple(x.shape[1:]), len(fonts.LETTERS), clip_values=(0, 1),
            device_type="gpu" if x.is_cuda else "cpu",
        )  # fmt: skip
        found = ProjectedGradientDescentPyTorch(
            model, norm=np.inf, eps=b.eps, eps_step=b.step, max_iter=b.steps, num_random_init=b.restarts,
            batch_size=b.batch, verbose=False,
        )  # fmt: skip
        return torch.from_numpy(found.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)

    return attack


def adv_lib_pgd() -> Attack:
    """adv-lib: pgd_linf, whose restarts take the images not yet fooled."""
    with stand_ins("torchvision", "visdom"):  # for other attacks and for plots; without them adv-lib does not import
        from adv_lib.attacks.projected_gradient_descent import pgd_linf

    def attack(network: Counted, x: Tensor, y: Tensor, b: Budget) -> Tensor:
        return pgd_linf(network, x, y, b.eps, steps=b.steps, restarts=b.restarts, absolute_step_size=b.step)

    return in_batches(attack)


@contextmanager
def stand_ins(*names: str) -> Iterator[None]:
    """Empty modules under these names while something is imported, unless the real ones are there."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    sys.modules.update({name: types.SimpleNamespace(models=None) for name in missing})
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


class Peer(NamedTuple):
    """A library: its package, and what makes its attack (an ImportError where it is not installed)."""

    package: str
    load: Callable[[], Attack]


PEERS = {
    "Foolbox": Peer("foolbox", foolbox_pgd),
    "torchattacks": Peer("torchattacks", torchattacks_pgd),
    "ART": Peer("adversarial-robustness-toolbox", art_pgd),
    "adv-lib": Peer("adv-lib", adv_lib_pgd),
}


def peers() -> dict[str, Attack]:
    """The attacks of the libraries that are installed; of the others, a line."""
    found = {}
    for name, peer in PEERS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = peer.load()
        except ImportError as error:
            say(f"{peer.package} is not installed: make bench installs it. ({error})")
    return found


# --- 1. attacks, side by side -----------------------------------------------------------------------------------


def fooled(network: Network, x: Tensor, y: Tensor, found: Tensor, eps: float) -> Tensor:
    """Which of the returned images the network gets wrong, among those in the ball and in [0, 1]: [B] bool."""
    apart = (found.double() - x.double()).abs().flatten(1).amax(1)
    flat = found.flatten(1)
    valid = (apart <= eps + BALL) & (flat.amin(1) >= -BALL) & (flat.amax(1) <= 1 + BALL)
    with torch.no_grad():
        return valid & (network(found).argmax(1) != y)


def attack_rows(
    attacks: Mapping[str, Attack], network: nn.Sequential, x: Tensor, y: Tensor, b: Budget, repeats: int
) -> list[Row]:
    """Success, samples through the network by image, best seconds, and their ratio to the first attack's."""
    rows: dict[str, Row] = {}
    for repeat in range(repeats):
        for name, attack in attacks.items():
            say(f"  {name}, run {repeat + 1} of {repeats}")
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002 - ART draws from numpy's global generator
            counted, began = Counted(network), now(x.device)
            found = attack(counted, x, y, b)
            seconds = now(x.device) - began
            row = rows.setdefault(name, {"what": "attack", "attack": name, "count": len(x), "best_seconds": seconds})
            row["best_seconds"] = min(row["best_seconds"], seconds)
            row["success"] = float(fooled(network, x, y, found, b.eps).double().mean())
            row["forwards"] = counted.tally[0] / len(x)
    first = next(iter(rows.values()))["best_seconds"]
    return [{**row, "ratio": row["best_seconds"] / first} for row in rows.values()]


def half(success: Callable[[float], float], high: float, halvings: int) -> tuple[float, list[tuple[float, float]]]:
    """The eps in (0, high) whose success is nearest to a half, by bisection, and all (eps, success) that were tried."""
    low, tried = 0.0, []
    for _ in range(halvings):
        eps = round((low + high) / 2, 4)
        tried.append((eps, success(eps)))
        low, high = (eps, high) if tried[-1][1] < 0.5 else (low, eps)
    return min(tried, key=lambda pair: abs(pair[1] - 0.5))[0], tried


def measure_attacks(size: Size, s: setting.Setting) -> list[Row]:
    """Our attacks, a textbook loop and the peers', on a normally and an adversarially trained network."""
    forms = kernels(s.x.device)
    ours = {("advbook" if name == "plain" else f"advbook, {name}"): engine(kernel) for name, kernel in forms.items()}
    attacks = {**ours, "textbook loop": in_batches(textbook), **peers()}
    rows = []
    for recipe in ("normal", "adversarial"):
        network = trained(recipe, size, s)
        correct = networks.predict(network, s.x_test).argmax(1) == s.y_test
        if not bool(correct.any()):
            raise ValueError(f"The {recipe} network is right on none of {size.images} images: nothing to attack.")
        x, y = s.x_test[correct], s.y_test[correct]
        budget = Budget(EPS, size.steps, size.restarts, size.batch)
        if recipe == "adversarial":

            def success(eps: float, network: nn.Sequential = network, x: Tensor = x, y: Tensor = y) -> float:
                b = Budget(eps, size.steps, size.restarts, size.batch)
                share = float(fooled(network, x, y, ours["advbook"](Counted(network), x, y, b), eps).double().mean())
                say(f"  eps = {eps}: success {share:.3f}")
                return share

            say(f"Looking for the eps at which the attack on the {recipe} network succeeds on half of the images")
            eps, tried = half(success, EPS, size.halvings)
            rows += [{"what": "search", "network": recipe, "eps": e, "success": share} for e, share in tried]
            budget = budget._replace(eps=eps)
        say(f"Attacks on the {recipe} network, eps = {budget.eps}, {len(x)} images")
        found = attack_rows(attacks, network, x, y, budget, size.repeats)
        rows += [{**row, "network": recipe, "eps": budget.eps, "library": library(row["attack"])} for row in found]
    return rows


def library(attack: str) -> str | None:
    """The version of a peer."""
    return importlib.metadata.version(PEERS[attack].package) if attack in PEERS else None


# --- 2. steps ---------------------------------------------------------------------------------------------------


def gradient_flops(network: nn.Sequential, x: Tensor) -> float:
    """Floating-point operations of the network and of its gradient by the input, an image."""
    with FlopCounterMode(display=False) as counter:
        network(x[:1].clone().requires_grad_()).sum().backward()
    return float(counter.get_total_flops())


def matrix_rates(device: torch.device, size: Size) -> dict[torch.dtype, float]:
    """Floating-point operations a second in products of square matrices, the better of two sides."""
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, tuple[Callable[[], object], float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for side in SIDES[device.type == "cuda"]:
            a = torch.randn(side, side, generator=generator).to(device, dtype)
            parts[f"{dtype} {side}"] = (partial(torch.matmul, a, a), 2.0 * side**3)
    found = rates(parts, device, size)
    return {
        d: max(rate for name, rate in found.items() if name.startswith(str(d))) for d in (torch.float32, torch.bfloat16)
    }


def measure_steps(size: Size, s: setting.Setting) -> list[Row]:
    """Images a second: bare gradients, whole attacks with their bookkeeping, and the parts of the decoder."""
    device, network = s.x.device, trained("normal", size, s)
    codes = fonts.rows("test", size.batch, device=device)
    x, y = fonts.images(codes), codes.letter
    gradients, attacks, latent_attacks = {}, {}, {}
    for name, kernel in kernels(device).items():
        gradients[name] = (partial(gradient, kernel.make(network), x, y), float(size.batch))
        forms = led(network, kernel, Counted(network))
        common = {**forms, "y": y, "steps": size.steps, "restarts": 1, "stop": "never", "batch": size.batch}
        looks = float(size.batch * (size.steps + 1))
        attacks[name] = (partial(unstopped, pgd, x=x, eps=EPS, **common), looks)
        low, high = fonts.theta_box(device)
        space = Latent(codes.theta, fonts.decode, (codes.font, codes.letter), low, high, ETA)
        latent_attacks[name] = (partial(unstopped, pgd_latent, space=space, **common), looks)
    matrix, flops = matrix_rates(device, size), gradient_flops(network, x)
    rows = [
        {"what": "matrix", "dtype": str(dtype).removeprefix("torch."), "gflops": rate / 1e9}
        for dtype, rate in matrix.items()
    ]
    say("Rates: gradients and attacks")
    groups = {"forward and input gradient": gradients, "attack": attacks, "on-manifold attack": latent_attacks}
    works = {(part, form): work for part, group in groups.items() for form, work in group.items()}
    for (part, form), rate in rates(works, device, size).items():
        row = {"what": "rate", "part": part, "form": form, "rate": rate}
        if part == "forward and input gradient":
            shares = {f"share_{str(d).removeprefix('torch.')}": flops * rate / full for d, full in matrix.items()}
            row |= {"gflops": flops * rate / 1e9, **shares}
        rows.append(row)
    say("Rates: the decoder")
    decoder = rates(decoder_parts(codes, device), device, size)
    return rows + [{"what": "rate", "part": name, "form": None, "rate": rate} for name, rate in decoder.items()]


def gradient(network: Network, x: Tensor, y: Tensor) -> Tensor:
    """One forward and the gradient by the input."""
    u = x.clone().requires_grad_()
    return torch.autograd.grad(cross_entropy(network(u), y).sum(), u)[0]


def unstopped(attack: Callable[..., object], **options: Any) -> None:
    """An attack of the papers, every restart to its end."""
    attack(**options, generator=torch.Generator().manual_seed(0))


def decoder_parts(codes: fonts.Rows, device: torch.device) -> dict[str, tuple[Callable[[], object], float]]:
    """The FONTS decoder beside torch's own sampling, which it cannot beat, and its Jacobian."""
    letters = fonts.prototypes(device)[codes.font, codes.letter][:, None]
    grid = F.affine_grid(fonts.affine(codes.theta), list(letters.shape), align_corners=True)
    works: dict[str, Callable[[], object]] = {
        "torch's grid_sample alone": lambda: F.grid_sample(letters, grid, align_corners=True),
        "decoder": lambda: fonts.decode(codes.theta, codes.font, codes.letter),
        "decoder with Jacobian": lambda: fonts.decode_with_jacobian(codes.theta, codes.font, codes.letter),
    }
    return {name: (work, float(len(codes))) for name, work in works.items()}


# --- 3. training ------------------------------------------------------------------------------------------------


def measure_training(size: Size, s: setting.Setting) -> list[Row]:
    """Batches a second of networks trained as a fleet, and of the same ones trained one after the other.

    A long run sets up once, so the rate is that of a second epoch: the time of two less the time of one.
    """
    recipes = {"normal": None, "adversarial, float32": "float32"}
    if bfloat16_is_fast(s.x.device):
        recipes["adversarial, bfloat16"] = "bfloat16"
    schedule = training.Schedule()
    rows = min(size.batches * schedule.batch, len(s.x))
    batches = -(-rows // schedule.batch) * size.members
    best: dict[tuple[str, str, int], float] = {}
    for repeat in range(size.repeats):
        for recipe, precision in recipes.items():
            say(f"Training: {recipe}, run {repeat + 1} of {size.repeats}")
            for how, groups in (
                ("one after the other", [[m] for m in range(size.members)]),
                ("fleet", [list(range(size.members))]),
            ):
                for epochs in (1, 2):
                    began = now(s.x.device)
                    for seeds in groups:
                        fit(s.x[:rows], s.y[:rows], schedule, epochs, precision, size.steps, seeds)
                    key = recipe, how, epochs
                    best[key] = min(best.get(key, float("inf")), now(s.x.device) - began)
    return [
        {
            "what": "training", "recipe": recipe, "how": how,
            "rate": batches / max(best[recipe, how, 2] - best[recipe, how, 1], 1e-9),
        }
        for recipe in recipes for how in ("one after the other", "fleet")
    ]  # fmt: skip


def fit(
    x: Tensor, y: Tensor, schedule: training.Schedule, epochs: int, precision: str | None, steps: int,
    seeds: Sequence[int],
) -> Stack:  # fmt: skip
    """A fleet of fresh networks, one a seed, trained for some epochs; normally without a precision for the attack."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    fleet = Stack([networks.cnn(generator=generator).to(x.device) for generator in generators])
    schedule = schedule.model_copy(update={"epochs": epochs})
    perturbed: list[training.Perturbed] = []
    if precision is not None:
        adversary = training.Adversary.model_validate({"steps": steps, "precision": precision})
        perturbed = [training.pixels(x, EPS, adversary)]
    return training.train(fleet, x, y, schedule, perturbed, generators=generators)


# --- 4. the papers' grid ----------------------------------------------------------------------------------------


class Grid(NamedTuple):
    """The grid of Stutz et al., CVPR 2019, on FONTS: training sizes, seeds, recipes without and with an attack inside,
    schedule, and the attacks on every network.
    """

    sizes: tuple[int, ...] = (250, 500, 1000, 1500, 2000, 2500, 5000, 7500, 10000, 15000, 20000, 30000, 40000)
    seeds: int = 5
    normal: int = 1
    adversarial: int = 4
    epochs: int = 20
    batch: int = 100
    steps: int = 40
    restarts: int = 5
    images: int = 1_000
    on_manifold_images: int = 2_500


def work(grid: Grid) -> dict[str, int]:
    """How much the grid asks for: batches of training; images that attacks show the networks, none stopped early."""
    batches = sum(-(-n // grid.batch) for n in grid.sizes) * grid.epochs * grid.seeds
    models = len(grid.sizes) * grid.seeds * (grid.normal + grid.adversarial)
    looks = models * (grid.steps + 1) * grid.restarts
    return {
        "normal training": batches * grid.normal,
        "adversarial training": batches * grid.adversarial,
        "attack": looks * grid.images,
        "on-manifold attack": looks * grid.on_manifold_images,
    }


def extrapolate(amounts: Mapping[str, float], measured: Mapping[str, float], how: str) -> list[Row]:
    """Hours of every part and of all, at the measured rates: amount / rate / 3,600."""
    hours = {part: amount / measured[part] / 3_600 for part, amount in amounts.items()}
    rows = [
        {"what": "extrapolation", "how": how, "part": part, "amount": amounts[part], "rate": measured[part], "hours": h}
        for part, h in hours.items()
    ]
    return [*rows, {"what": "extrapolation", "how": how, "part": "all", "hours": sum(hours.values())}]


def grid_rows(rows: Iterable[Row]) -> list[Row]:
    """The papers' grid with plain networks one at a time, and with the fastest of what was measured."""
    plain: dict[str, float] = {}
    best: dict[str, float] = {}
    for row in rows:
        if row["what"] == "training":
            part = f"{row['recipe'].split(',')[0]} training"
            common = row["how"] == "one after the other" and not row["recipe"].endswith("bfloat16")
        elif row["what"] == "rate" and row["part"] in ("attack", "on-manifold attack"):
            part, common = row["part"], row["form"] == "plain"
        else:
            continue
        best[part] = max(best.get(part, 0.0), row["rate"])
        if common:
            plain[part] = row["rate"]
    amounts = work(Grid())
    return extrapolate(amounts, plain, "plain networks, one at a time") + extrapolate(amounts, best, "fastest")


# --- the tables and the rows ------------------------------------------------------------------------------------


def table(rows: Iterable[Row], columns: Mapping[str, str]) -> str:
    """Rows as aligned text; columns: name in the row -> format of its values. A missing value is a dash."""
    lines = [list(columns)]
    for row in rows:
        values = [(row.get(name), form) for name, form in columns.items()]
        lines.append(["-" if value is None else format(value, form) for value, form in values])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = [form == "" for form in columns.values()]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if first else cell.rjust(width)
            for cell, width, first in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )


TABLES = {
    "attack": ("Attacks on the images that the network gets right", {
        "network": "", "attack": "", "library": "", "eps": "g", "count": "d", "success": ".3f", "forwards": ".1f",
        "best_seconds": ".2f", "ratio": ".2f",
    }),
    "matrix": ("Products of matrices", {"dtype": "", "gflops": ",.0f"}),
    "rate": ("Images a second", {
        "part": "", "form": "", "rate": ",.0f", "gflops": ",.1f", "share_float32": ".1%", "share_bfloat16": ".1%",
    }),
    "training": ("Batches a second", {"recipe": "", "how": "", "rate": ",.2f"}),
    "extrapolation": ("The papers' grid on FONTS, extrapolated", {
        "how": "", "part": "", "amount": ",d", "rate": ",.1f", "hours": ",.2f",
    }),
}  # fmt: skip


def processor() -> str:
    """The processor's name, where the system tells it."""
    place = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", place.read_text(), re.MULTILINE) if place.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def about(sizes: str, size: Size, device: torch.device, seconds: float) -> Row:
    """What all rows share: what was measured, and on what."""
    return {
        "experiment": EXPERIMENT,
        "version": VERSION,
        "sizes": sizes,
        "dataset": "fonts",
        **size._asdict(),
        "device": device_name(device),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
    }


def place(sizes: str, device: torch.device) -> Path:
    """Where the rows go by default: those of the full sizes come with the book, a file a kind of machine."""
    folder = ledger.PUBLISHED / EXPERIMENT if sizes == "full" else store.home() / EXPERIMENT
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', device_name(device).lower()).strip('-')}.json"


def measure(size: Size, device: torch.device) -> list[Row]:
    """All rows."""
    s = data(size, device)
    rows = measure_attacks(size, s) + measure_steps(size, s) + measure_training(size, s)
    return rows + grid_rows(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--sizes", choices=SIZES, default="full", help="how much to measure (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the file of the rows (default: for full, in book/results)")
    given = parser.parse_args(arguments)
    device, size, began = torch.device(given.device), SIZES[given.sizes], time.perf_counter()
    rows = measure(size, device)
    shared = about(given.sizes, size, device, time.perf_counter() - began)
    target = given.out or place(given.sizes, device)
    ledger.write(target, shared, rows)
    print("{device}; {processor}, {cores} cores; torch {torch}; {sizes} sizes; {seconds:.0f} s".format(**shared))
    for what, (title, columns) in TABLES.items():
        print(f"\n{title}\n{table((row for row in rows if row['what'] == what), columns)}")
    say(f"The rows are in {target}.")


if __name__ == "__main__":
    main()
