"""The flows of the data sets: those that the package ships, else trained ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Literal

import torch
from safetensors.torch import load
from torch import Tensor

from advbook import store
from advbook.experiments.setting import COLOUR, FONTS, Dataset, title, train_size, training_images
from advbook.kernels import bfloat16_is_fast
from advbook.manifolds import flow
from advbook.manifolds.flow import Flow, Recipe

# small: for pages and laptops; grey images have two scales, colour images three. large: for GPUs.
Size = Literal["small", "large"]
GREY, COLOURED = Recipe(), Recipe(depths=(4, 4, 4), width=48, steps=2500, batch=64, lr=0.001)
LARGE: Mapping[str, Any] = {"width": 256, "steps": 100_000, "batch": 128, "lr": 0.001}
LARGE_DEPTH = 16  # steps on each scale
SHAPES: Mapping[str, tuple[int, int, int]] = {"celeba": (3, 56, 48)}
ROWS = 120_000  # of FONTS a flow is trained on, as the small VAE-GANs are


def fitted(dataset: Dataset, device: torch.device, *, size: Size = "small", steps: int = 0) -> Flow:
    """The flow of a data set: the one that ships, else one from the store, else trained now on all training images.

    size: small, or large for GPUs, which never ships; steps: of training; 0: as many as the recipe says.
    """
    raw = _file(dataset) if size == "small" and not steps else None
    if raw is not None:
        return unpacked(load(raw), dataset).to(device)
    return trained(dataset, device, size=size, steps=steps)


def trained(dataset: Dataset, device: torch.device, *, size: Size = "small", steps: int = 0) -> Flow:
    """The same, from the store, or trained now."""
    recipe = _recipe(dataset, device, size, steps)
    generator = torch.Generator().manual_seed(0)
    fresh = recipe.build(_shape(dataset), generator).to(device)

    def train(_: list[int]) -> list[Flow]:
        x, _labels = training_images(dataset, _images(dataset), device)
        return [flow.train(fresh, x, recipe, generator=generator, label=f"learning a flow of {title(dataset)}")]

    (found,) = store.trained([_key(dataset, device, recipe)], [fresh], train)
    assert isinstance(found, Flow)
    return found.requires_grad_(False)


def identity(dataset: Dataset, device: torch.device, *, size: Size = "small", steps: int = 0) -> str:
    """What tells a flow from all others: it decides the results of all that is trained or attacked with it."""
    raw = _file(dataset) if size == "small" and not steps else None
    if raw is not None:
        return hashlib.sha256(raw).hexdigest()[:16]
    return store.fingerprint(_key(dataset, device, _recipe(dataset, device, size, steps)))


def packed(model: Flow) -> dict[str, Tensor]:
    """A flow as the package ships it, with weights of 16 bits; it stays an exact bijection."""
    return {name: tensor.detach().cpu().half().contiguous() for name, tensor in model.state_dict().items()}


def unpacked(tensors: Mapping[str, Tensor], dataset: Dataset) -> Flow:
    """The inverse of `packed`."""
    model = _small(dataset).build(_shape(dataset), torch.Generator())
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.eval().requires_grad_(False)


def _file(dataset: Dataset) -> bytes | None:
    place = files("advbook") / "data" / f"{dataset}_flow.safetensors"
    return place.read_bytes() if place.is_file() else None


def _shape(dataset: Dataset) -> tuple[int, int, int]:
    return SHAPES.get(dataset, (3, 32, 32) if dataset in COLOUR else (1, 28, 28))


def _small(dataset: Dataset) -> Recipe:
    return COLOURED if _shape(dataset)[0] == 3 else GREY


def _images(dataset: Dataset) -> int:
    return ROWS if dataset in FONTS else train_size(dataset)


def _recipe(dataset: Dataset, device: torch.device, size: Size, steps: int) -> Recipe:
    recipe = _small(dataset)
    changes: dict[str, Any] = {"precision": "bfloat16" if bfloat16_is_fast(device) else "float32"}
    if size == "large":
        changes |= {**LARGE, "depths": (LARGE_DEPTH,) * len(recipe.depths)}
    if steps:
        changes["steps"] = steps
    return recipe.model_copy(update=changes)


def _key(dataset: Dataset, device: torch.device, recipe: Recipe) -> dict[str, Any]:
    """What decides the flow, for the store."""
    return {
        "version": 1,  # raise it when training or the flow changes what it computes
        "training": "flow",
        "data": [dataset, _images(dataset)],
        "device": device.type,
        **recipe.model_dump(mode="json"),
    }
