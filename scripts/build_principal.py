"""Compute the principal directions of Fashion-MNIST that the package ships, and a small classifier for them.

Probabilistic PCA of the training images of each class: x = mean + sum_i b_i zeta_i v_i with b_i^2 = lambda_i -
sigma^2, where sigma^2 is the mean of the eigenvalues after the first FIRST. Beside these directions stand those of
LATE, of small variance: one unit of their zeta is as many pixels as one unit of direction 1, so that moves of the same
length can be compared. Source: Tipping and Bishop, "Probabilistic principal component analysis".

Writes advbook/data/fashion_mnist_principal.safetensors, whose tensors advbook.sliders.principal.shipped reads. Same
images, libraries, machine and number of threads, same bytes; the shipped file was made with OMP_NUM_THREADS=1.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from advbook import datasets, files
from advbook.fleet import Stack
from advbook.gaussian.model import fit, ppca
from advbook.networks import cnn
from advbook.sliders.principal import SHIPPED_WIDTHS, label_of
from advbook.training import Schedule, train

ROOT = Path(__file__).resolve().parent.parent
NAME = "fashion_mnist"
FIRST = 8  # directions of the probabilistic PCA
LATE = (50, 200)  # directions of small variance, counted from 1
ROWS, EPOCHS, SEED = 20_000, 5, 0


def principal(x: Tensor, first: int, late: Sequence[int]) -> dict[str, Tensor]:
    """Mean [H, W], directions [n, H, W], scales [n] and variances [n] of the images of one class, x: [N, 1, H, W].

    first: how many directions of the probabilistic PCA; late: further ones, counted from 1. n = first + len(late).
    Raises ValueError unless first < late <= H W.
    """
    pixels = x[0].numel()
    if any(not first < number <= pixels for number in late):
        raise ValueError(f"late = {list(late)}; allowed are directions from {first + 1} to {pixels}.")
    gaussian = fit(x.flatten(1))
    chosen = [*range(first), *(number - 1 for number in late)]
    vectors = gaussian.directions.T[chosen]  # [n, D]
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()  # the largest entry becomes positive
    b = ppca(gaussian, first).scales[:first]
    return {
        "means": gaussian.mean.view(x.shape[2:]),
        "directions": (signs * vectors).view(-1, *x.shape[2:]),
        "scales": torch.cat([b, b[:1].expand(len(late))]),
        "variances": gaussian.variances[chosen],
    }


def classifier(x: Tensor, y: Tensor, classes: int, epochs: int) -> nn.Sequential:
    """The papers' network at half its width, trained normally on x: [N, 1, H, W], y: [N]."""
    network = cnn(classes, SHIPPED_WIDTHS, side=x.shape[-1], generator=torch.Generator().manual_seed(SEED))
    fleet = train(
        Stack([network]), x, y, Schedule(epochs=epochs), generators=[torch.Generator().manual_seed(SEED)], label="train"
    )
    state = {name: tensor[0].detach() for name, tensor in (fleet.weights | fleet.buffers).items()}
    network.load_state_dict(state)
    return network.eval()


def tensors(
    x: Tensor, y: Tensor, network: nn.Module, classes: int, first: int, late: Sequence[int]
) -> dict[str, Tensor]:
    """Everything that the file holds: PCA of every class, stacked, and the network's weights, mostly in float16."""
    parts = [principal(x[y == label], first, late) for label in range(classes)]
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    weights = {
        f"classifier.{name}": tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()
    }
    exact = {name: stacked[name].float() for name in ("scales", "variances")}
    return {name: tensor.half() for name, tensor in (stacked | weights).items()} | exact


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images [N, 1, H, W] whose class the network has right."""
    answers = torch.cat([network(batch).argmax(1) for batch in x.split(1000)])
    return (answers == y).double().mean().item()


def build(output: Path, rows: int = ROWS, epochs: int = EPOCHS) -> None:
    """Read, train, decompose and write; everything the script does."""
    data, test = datasets.load(NAME), datasets.load(NAME, "test")
    classes = len(data.classes)
    network = classifier(data.x[:rows], data.y[:rows], classes, epochs)
    held = tensors(data.x, data.y, network, classes, FIRST, LATE)
    words = {
        "classes": data.classes,
        "labels": [label_of(number, FIRST) for number in (*range(1, FIRST + 1), *LATE)],
        "accuracy": accuracy(network, test.x, test.y),
    }
    metadata = {"words": json.dumps(words)}  # one entry: safetensors writes several in any order
    files.write(output, save({name: tensor.contiguous() for name, tensor in held.items()}, metadata))
    print(f"{output}: {output.stat().st_size:,} bytes")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and build; a failure is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    default = ROOT / "advbook/data/fashion_mnist_principal.safetensors"
    parser.add_argument("--output", type=Path, default=default, help="safetensors file to write")
    args = parser.parse_args(argv)
    try:
        build(args.output)
    except (OSError, ValueError) as error:
        parser.exit(1, f"build_principal: {error}\n")


if __name__ == "__main__":
    main()
