"""Trained networks by the hash of their recipe."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from advbook import files

CHECKOUT = Path(__file__).parents[1]


def home() -> Path:
    """Where networks and rows are kept: ADVBOOK_HOME, else .advbook in the checkout (or in the current folder without
    one).
    """
    default = (CHECKOUT if (CHECKOUT / "_toc.yml").exists() else Path.cwd()) / ".advbook"
    return Path(os.environ.get("ADVBOOK_HOME") or default).expanduser()


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """A hash of everything that determines a result: 16 hexadecimal digits, the same for every order of the keys."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def trained(
    recipes: Sequence[Mapping[str, Any]],
    networks: Sequence[nn.Module],
    train: Callable[[list[int]], Sequence[nn.Module]],
) -> list[nn.Module]:
    """The networks of recipes: each read if it was trained before; the others trained together and kept.

    networks: freshly initialized, on their device; their weights are replaced. train(missing) gives the trained
    networks for the recipes of these numbers. One process trains a recipe, others wait for it.
    """
    paths = [home() / "models" / f"{fingerprint(recipe)}.safetensors" for recipe in recipes]
    found = list(networks)
    with ExitStack() as locks:
        for path in sorted(set(paths)):  # in one order for all processes, or two could wait for each other
            path.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(FileLock(f"{path}.lock"))
        missing = [i for i, path in enumerate(paths) if not (path.exists() and _read(path, found[i]))]
        for i, network in zip(missing, train(missing) if missing else [], strict=True):
            found[i] = network
            state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
            metadata = {"recipe": json.dumps(recipes[i], sort_keys=True), "digest": _digest(state)}
            files.write(paths[i], save(state, metadata))
    return [network.eval() for network in found]


def _read(path: Path, network: nn.Module) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            if (file.metadata() or {}).get("digest") != _digest(state):
                raise SafetensorError("its content does not match its checksum")
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}
        if shapes != {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}:
            raise SafetensorError("it belongs to another architecture")
        network.load_state_dict(state)
    except (SafetensorError, OSError) as error:
        files.set_aside(path, str(error).splitlines()[0])
        return False
    return True


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
