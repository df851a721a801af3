"""Learn the flow of a data set that the package ships.

Writes advbook/data/NAME_flow.safetensors, which advbook.experiments.flows reads: weights of 16 bits. The trained flow
comes from the store where it is. Prints its bits per dimension on test images, and what the 16 bits cost.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from advbook import files
from advbook.experiments import flows
from advbook.experiments.setting import Dataset, load
from advbook.manifolds.flow import noisy

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 1_000  # test images on which the flow is measured
DEVICE = torch.device("cpu")


def build(dataset: Dataset, output: Path) -> None:
    """Train, or take from the store, and write; everything the script does."""
    model = flows.trained(dataset, DEVICE)
    tensors = flows.packed(model)
    files.write(output, save(tensors))
    x = load(dataset, 1, "first", IMAGES, DEVICE, held_out=1).x_test
    with torch.no_grad():
        seen = noisy(x, torch.Generator().manual_seed(0))
        bits = [float(own.bits_per_dim(seen).mean()) for own in (model, flows.unpacked(tensors, dataset))]
    print(f"{output}: {output.stat().st_size:,} bytes")
    print("bits per dimension on test images {:.4f}, with weights of 16 bits {:.4f}".format(*bits))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and build; a failure is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("dataset", choices=("fonts_easy", "fashion_mnist"), help="data set")
    parser.add_argument("--output", type=Path, help="safetensors file to write (default: the package's)")
    args = parser.parse_args(argv)
    try:
        build(args.dataset, args.output or ROOT / f"advbook/data/{args.dataset}_flow.safetensors")
    except (OSError, ValueError, FloatingPointError) as error:
        parser.exit(1, f"build_flows: {error}\n")


if __name__ == "__main__":
    main()
