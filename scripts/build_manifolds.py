"""Learn the small manifolds of a data set that the package ships: one VAE-GAN a class, and one for all classes.

Writes advbook/data/NAME_manifolds.safetensors, which advbook.experiments.learned reads: encoders and decoders with
weights of 8 bits. The trained networks come from the store where they are. Prints how much the 8 bits cost. For
Fashion-MNIST it also writes advbook/data/fashion_mnist_walks.safetensors for advbook.sliders.learned: test images of
every class, their codes, the path of an on-manifold attack from each, and some training images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save
from torch import Tensor, nn

from advbook import files, networks
from advbook.attacks.objectives import log_odds
from advbook.experiments import learned
from advbook.experiments.learned import Learned
from advbook.experiments.setting import Codes, Dataset, load
from advbook.manifolds import vaegan
from advbook.manifolds.projection import l2
from advbook.manifolds.vaegan import Autoencoder, Decoders
from advbook.sliders import principal

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 1_000  # test images on which the cost of 8 bits is measured, and from which those of the walks are taken
EXAMPLES, BANK = 3, 12  # test images and training images of every class in the walks
ETA, STEPS = 0.3, 20  # of the attack in the walks
DEVICE = torch.device("cpu")


@torch.no_grad()
def error(pairs: Sequence[Autoencoder], x: Tensor, y: Tensor) -> float:
    """Mean L2 distance of dec(mu(x)) from x: [N, C, H, W], [N]."""
    return float(l2(Decoders(pairs)(vaegan.encode(pairs, x, y), y) - x).mean())


def build(dataset: Dataset, output: Path) -> None:
    """Train, or take from the store, and write; everything the script does."""
    members: dict[Learned, list[Autoencoder]] = {
        where: learned.trained(dataset, where, "small", DEVICE) for where in get_args(Learned)
    }
    tensors = learned.packed(members)
    files.write(output, save(tensors))
    print(f"{output}: {output.stat().st_size:,} bytes")
    setting = load(dataset, 1, "first", IMAGES, DEVICE, held_out=1)
    for where, pairs in members.items():
        short = learned.unpacked(tensors, where)
        errors = (error(own, setting.x_test, setting.y_test) for own in (pairs, short))
        print("{}: mean L2 error {:.4f}, with 8 bits {:.4f}".format(where, *errors))
    if dataset == "fashion_mnist":
        place = output.with_name("fashion_mnist_walks.safetensors")
        held = walks(dataset, learned.unpacked(tensors, "class"), principal.shipped_classifier())
        files.write(place, save({name: tensor.contiguous() for name, tensor in held.items()}))
        print(f"{place}: {place.stat().st_size:,} bytes")


def walks(dataset: Dataset, pairs: Sequence[Autoencoder], classifier: nn.Sequential) -> dict[str, Tensor]:
    """Test images x [K, E, H, W] whose decoded code the classifier reads rightly, those that the attack fools first;
    their codes z [K, E, D]; the attack's moves zeta after each step [K, E, T + 1, D], the first being none; training
    images [K, N, H, W]. Images are uint8.
    """
    setting = load(dataset, 10 * BANK * len(pairs), "first", IMAGES, DEVICE, held_out=1)
    codes = learned.codes(setting, "test", "class")
    right = networks.predict(classifier, codes.images()).argmax(1) == setting.y_test
    path = walk(codes, classifier, setting.y_test)  # [T + 1, B, D]
    fooled = networks.predict(classifier, codes.decode(codes.z + path[-1], *codes.context)).argmax(1) != setting.y_test
    order = (right.int() + (right & fooled).int()).argsort(descending=True, stable=True)
    chosen = torch.stack([order[setting.y_test[order] == label][:EXAMPLES] for label in range(len(pairs))])  # [K, E]
    bank = torch.stack([setting.x[setting.y == label][:BANK, 0] for label in range(len(pairs))])
    return {
        "images": (255 * setting.x_test[chosen, 0]).round().byte(),
        "codes": codes.z[chosen],
        "paths": path.movedim(0, 1)[chosen],
        "bank": (255 * bank).round().byte(),
        "eta": torch.tensor(ETA),
    }


def walk(codes: Codes, classifier: nn.Sequential, y: Tensor) -> Tensor:
    """zeta along an ascent of the log-odds by sign steps within ETA, from no move: [T + 1, B, D]."""
    space, moves = codes.space(ETA), [torch.zeros_like(codes.z)]
    for _ in range(STEPS):
        zeta = moves[-1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(log_odds(classifier(space.image(zeta)), y).sum(), zeta)
        moves.append(space.project(moves[-1] + 2.5 * ETA / STEPS * slope.sign()).detach())
    return torch.stack(moves)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and build; a failure is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("dataset", choices=("fonts", "mnist", "fashion_mnist"), help="data set")
    parser.add_argument("--output", type=Path, help="safetensors file to write (default: the package's)")
    args = parser.parse_args(argv)
    try:
        build(args.dataset, args.output or ROOT / f"advbook/data/{args.dataset}_manifolds.safetensors")
    except (OSError, ValueError) as error:
        parser.exit(1, f"build_manifolds: {error}\n")


if __name__ == "__main__":
    main()
