"""The learned manifolds of the data sets, and images as points of the true or of a learned manifold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any, Literal

import torch
from safetensors.torch import load
from torch import Tensor, nn

from advbook import store
from advbook.experiments.setting import FONTS, Codes, Dataset, Setting, classes, title, train_size, training_images
from advbook.kernels import bfloat16_is_fast
from advbook.manifolds import vaegan
from advbook.manifolds.vaegan import BOUND, Autoencoder, Decoders, Recipe, Size

# Which manifold: the true one (FONTS alone), one learned for every class, or one learned for all classes together.
Learned = Literal["class", "data"]
Where = Literal["true", "class", "data"]
Box = Literal["limits", "codes"]

# The released code's weight of the reconstruction. MNIST has the digits' values, which are those of EMNIST.
BETA: Mapping[str, float] = {"emnist": 2.25, "mnist": 2.25, "fashion_mnist": 2.75}
BETA_OTHER, BETA_DIGITS = 3.0, {1: 5.0, 7: 3.0}
EPOCHS: Mapping[str, int] = {"fonts": 10, "fonts_easy": 10, "emnist": 30, "mnist": 30, "fashion_mnist": 60}
EPOCHS_OTHER = 30
LATENTS: Mapping[str, int] = {"celeba": 25}
# Small manifolds are trained for as many whole epochs as come nearest to so many images; the rate falls to LAST of its
# start.
SEEN: Mapping[Learned, int] = {"class": 720_000, "data": 240_000}
LAST = 0.07
FONTS_ROWS = 120_000  # of FONTS a small manifold is trained on; the paper takes all 960,000


def own(dataset: Dataset) -> Where:
    """The best manifold that there is of a data set: the true one, or those learned of its classes."""
    return "true" if dataset in FONTS else "class"


def codes(
    setting: Setting, part: Literal["train", "test"], where: Where, *, size: Size = "small", box: Box = "limits"
) -> Codes:
    """The training or the attacked test images as points of a manifold; on a learned one z = mu(x).

    box: "limits" are those of theta on FONTS and [-2, 2]^D on learned manifolds, as in the paper, to which codes are
    clipped; "codes" are the smallest and largest code of these images, as in the released code. Raises ValueError
    where a manifold is not known. Source: Stutz et al., CVPR 2019, sections 3.1 and 3.3.
    """
    if where == "true":
        if setting.known is None:
            raise ValueError(f"where = 'true': the true manifold of {title(setting.dataset)} is not known.")
        found = setting.known.codes(part)
    else:
        x, y = (setting.x, setting.y) if part == "train" else (setting.x_test, setting.y_test)
        pairs = autoencoders(setting.dataset, where, size, x.device)
        z = vaegan.encode(pairs, x, y)
        bound = torch.full_like(z[0], BOUND)
        found = Codes(z.clamp(-bound, bound) if box == "limits" else z, (y,), Decoders(pairs), -bound, bound)
    return found if box == "limits" else replace(found, low=found.z.amin(0), high=found.z.amax(0))


def autoencoders(
    dataset: Dataset, where: Learned, size: Size, device: torch.device, *, epochs: int = 0
) -> list[Autoencoder]:
    """The VAE-GANs of a data set, one a class or a single one: those that the package ships, else trained ones.

    epochs: of training; 0: as many as the size asks for.
    """
    if size == "small" and not epochs and (found := shipped(dataset, where)):
        return [pair.to(device) for pair in found]
    return trained(dataset, where, size, device, epochs=epochs)


def trained(
    dataset: Dataset, where: Learned, size: Size, device: torch.device, *, epochs: int = 0
) -> list[Autoencoder]:
    """The same, from the store, or trained now."""
    count = _images(dataset, size)
    recipes = _recipes(dataset, where, size, device, epochs)
    shape = training_images(dataset, 1, device)[0].shape
    generators = [torch.Generator().manual_seed(member) for member in range(len(recipes))]
    fresh: list[nn.Module] = [
        vaegan.autoencoder(
            size, (shape[1], shape[2], shape[3]), latents=LATENTS.get(dataset, vaegan.LATENTS), generator=random
        ).to(device)
        for random in generators
    ]

    def train(missing: list[int]) -> list[nn.Module]:
        x, y = training_images(dataset, count, device)
        everything = torch.arange(len(y), device=device)
        rows = [everything[y == k] for k in missing] if where == "class" else [everything]
        largest = int(y.bincount().max()) if where == "class" else len(y)
        text = f"learning {'class manifolds' if where == 'class' else 'one manifold'} of {title(dataset)}"
        return list(
            vaegan.train(
                [_autoencoder(fresh[k]) for k in missing], x, rows, [recipes[k] for k in missing],
                epoch=largest,  # whether the largest class is trained now or was before
                generators=[generators[k] for k in missing], label=text,
            )
        )  # fmt: skip

    found = store.trained(_keys(dataset, where, size, device, epochs), fresh, train)
    return [_autoencoder(pair) for pair in found]


def identity(dataset: Dataset, where: Where, size: Size, device: torch.device) -> str:
    """What tells a manifold from all others: it decides the results of everything that is trained or attacked on it."""
    if where == "true":
        return "true"
    if size == "small" and (raw := _file(dataset)):
        return f"{where}-{hashlib.sha256(raw).hexdigest()[:16]}"
    return f"{where}-{store.fingerprint({'members': _keys(dataset, where, size, device)})}"


def shipped(dataset: Dataset, where: Learned) -> list[Autoencoder]:
    """The small VAE-GANs that come with the package, or none."""
    raw = _file(dataset)
    if raw is None:
        return []
    return unpacked(load(raw), where)


def packed(members: Mapping[Learned, Sequence[Autoencoder]]) -> dict[str, Tensor]:
    """VAE-GANs as the package ships them, with weights of 8 bits."""
    return {
        f"{where}.{index}.{name}": tensor.cpu()
        for where, pairs in members.items()
        for index, pair in enumerate(pairs)
        for name, tensor in vaegan.quantized(pair).items()
    }


def unpacked(tensors: Mapping[str, Tensor], where: Learned) -> list[Autoencoder]:
    """The inverse of `packed`."""
    members: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, member, rest = name.split(".", 2)
        if kind == where:
            members.setdefault(member, {})[rest] = tensor
    return [vaegan.restored(members[str(index)], "small", (1, 28, 28)) for index in range(len(members))]


def _file(dataset: Dataset) -> bytes | None:
    place = files("advbook") / "data" / f"{dataset}_manifolds.safetensors"
    return place.read_bytes() if place.is_file() else None


def _autoencoder(module: nn.Module) -> Autoencoder:
    assert isinstance(module, Autoencoder)
    return module


def _images(dataset: Dataset, size: Size) -> int:
    """How many training images a manifold is learned from."""
    return FONTS_ROWS if dataset in FONTS and size == "small" else train_size(dataset)


def _recipes(dataset: Dataset, where: Learned, size: Size, device: torch.device, epochs: int = 0) -> list[Recipe]:
    """How each member is trained: as in the released code, or for fewer epochs, with a rate that falls as far."""
    if size == "paper" and not epochs:
        schedule: dict[str, Any] = {"epochs": EPOCHS.get(dataset, EPOCHS_OTHER)}
    else:
        count = epochs or max(round(SEEN[where] / _images(dataset, size)), 1)
        schedule = {"epochs": count, "decay": round(LAST ** (1 / count), 4)}
    precision = "bfloat16" if bfloat16_is_fast(device) else "float32"
    whole = Recipe(size=size, precision=precision, beta=BETA_OTHER, **schedule)
    if where == "data":
        return [whole]
    betas = [BETA.get(dataset, BETA_OTHER)] * len(classes(dataset))
    if dataset in ("emnist", "mnist"):
        betas = [BETA_DIGITS.get(digit, beta) for digit, beta in enumerate(betas)]
    return [whole.model_copy(update={"beta": beta}) for beta in betas]


def _keys(dataset: Dataset, where: Learned, size: Size, device: torch.device, epochs: int = 0) -> list[dict[str, Any]]:
    """What decides each member, for the store."""
    return [
        {
            "version": 1,  # raise it when training or a network changes what it computes
            "training": "vaegan",
            "data": [dataset, _images(dataset, size)],
            "members": where,
            "member": member,
            "device": device.type,
            **recipe.model_dump(),
        }
        for member, recipe in enumerate(_recipes(dataset, where, size, device, epochs))
    ]
