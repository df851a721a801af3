"""Many models of one architecture as one: stacked, called, unstacked, and nothing else."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap


class Fleet(ABC):
    """M models, called together: [M, B, C, H, W] -> [M, B, K]."""

    members: int

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Every member's output on its own images."""

    def by_rows(self, x: Tensor) -> Tensor:
        """The same with the members' rows one after the other: [M B, C, H, W] -> [M B, K]."""
        return self(x.unflatten(0, (self.members, -1))).flatten(0, 1)


def count_members(f: object) -> int:
    """How many models f is: those of a fleet, one for a network."""
    return f.members if isinstance(f, Fleet) else 1


class Stack(Fleet):
    """Modules of one architecture with their weights stacked along a leading axis, to be trained and attacked as one.

    weights: name -> [M, ...], leaves that an optimizer takes; buffers: name -> [M, ...]. On a GPU one call runs all
    members (torch.func.vmap, grouped kernels); on a CPU, where nothing starves, the members run one after the other.
    Raises ValueError for no modules, or for modules of different architectures.
    """

    def __init__(self, modules: Sequence[nn.Module], *, vectorized: bool | None = None) -> None:
        if not modules:
            raise ValueError("modules = []: a fleet has at least one member.")
        kinds = [(str(module), [value.shape for value in module.state_dict().values()]) for module in modules]
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError("modules: the members of a fleet have one architecture; these differ.")
        self.members = len(modules)
        self.weights, self.buffers = stack_module_state(list(modules))
        self._one = copy.deepcopy(modules[0])
        device = next((value.device for value in (self.weights | self.buffers).values()), torch.device("cpu"))
        self._vectorized = device.type != "cpu" if vectorized is None else vectorized

    def __call__(self, x: Tensor) -> Tensor:
        """Every member's output on its own images: [M, B, C, H, W] -> [M, B, K]."""
        if self._vectorized:
            outputs: Tensor = vmap(self._call, randomness="different")(self.weights, self.buffers, x)
            return outputs
        # unbind, not indexing: its gradient is one stack, not a stack of zeros for every member
        weights = {name: value.unbind() for name, value in self.weights.items()}
        return torch.stack(
            [
                self._call(
                    {name: value[m] for name, value in weights.items()},
                    {name: value[m] for name, value in self.buffers.items()},
                    x[m],
                )
                for m in range(self.members)
            ]
        )

    def _call(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(self._one, (weights, buffers), (x,))
        return output

    @property
    def sequential(self) -> bool:
        """Whether a member is one layer after the other."""
        return type(self._one) is nn.Sequential

    def layers(self) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
        """The layers of a sequential architecture: a member's module, and the weights and buffers [M, ...] by name."""
        # not named_children(), which passes over a layer that is used twice
        for place, module in self._one._modules.items():
            assert module is not None
            state = (self.weights | self.buffers).items()
            yield module, {name.removeprefix(f"{place}."): v for name, v in state if name.startswith(f"{place}.")}

    def train(self, mode: bool = True) -> Stack:
        """Training mode (batch norm by the batch), or evaluation mode with mode=False."""
        self._one.train(mode)
        return self

    def eval(self) -> Stack:
        """Evaluation mode."""
        return self.train(False)

    @property
    def training(self) -> bool:
        """Whether the fleet is in training mode."""
        return self._one.training

    def unstack(self) -> list[nn.Module]:
        """The members as modules of their own, with copies of the weights, in the fleet's mode."""
        found = []
        for m in range(self.members):
            module = copy.deepcopy(self._one)
            with torch.no_grad():
                for name, own in (*module.named_parameters(), *module.named_buffers()):
                    own.copy_((self.weights | self.buffers)[name][m])
            found.append(module)
        return found
