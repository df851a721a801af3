"""How fast the parts are on this machine: images a second, best of several timed rounds, side by side in one run.

The FONTS decoder beside torch's own sampling (what it cannot beat), its Jacobian, and an attack step on the classifier.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from advbook import fonts, networks
from advbook.attacks.objectives import cross_entropy
from advbook.experiments import device_name


def rate(
    work: Callable[[], object], images: int, device: torch.device, *, rounds: int = 5, seconds: float = 0.5
) -> float:
    """Images a second in the best of some rounds."""
    best = 0.0
    work()
    for _ in range(rounds):
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            work()
            done += images
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, done / (time.perf_counter() - began))
    return best


def measure(device: torch.device, batch: int) -> dict[str, float]:
    """Images a second of every part."""
    rows = fonts.rows("train", batch, device=device)
    codes = (rows.theta, rows.font, rows.letter)
    letters = fonts.prototypes(device)[rows.font, rows.letter][:, None]
    grid = F.affine_grid(fonts.affine(rows.theta), list(letters.shape), align_corners=True)
    x = fonts.images(rows)
    generator = torch.Generator().manual_seed(0)
    plain = networks.cnn(generator=generator).to(device).eval().requires_grad_(False)
    folded = networks.folded(plain)

    def step(network: torch.nn.Module) -> torch.Tensor:
        u = x.clone().requires_grad_()
        return torch.autograd.grad(cross_entropy(network(u), rows.letter).sum(), u)[0]

    parts: dict[str, Callable[[], object]] = {
        "torch's grid_sample alone": lambda: F.grid_sample(letters, grid, align_corners=True),
        "decoder": lambda: fonts.decode(*codes),
        "decoder with Jacobian": lambda: fonts.decode_with_jacobian(*codes),
        "attack step, plain network": lambda: step(plain),
        "attack step, batch norm folded": lambda: step(folded),
    }
    return {name: rate(work, batch, device) for name, work in parts.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=1_000, help="images at a time (default: %(default)s)")
    given = parser.parse_args()
    device = torch.device(given.device)
    print(f"{device_name(device)}, {platform.machine()}, torch {torch.__version__}, batches of {given.batch}")
    for name, value in measure(device, given.batch).items():
        print(f"{name:32}{value:12,.0f} images a second")


if __name__ == "__main__":
    main()
