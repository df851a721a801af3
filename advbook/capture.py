"""CUDA graphs: a computation of many small kernels recorded once and replayed, so that launching costs nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 3  # runs before recording, as torch asks for: libraries choose their kernels and work space in them


def captured(function: Callable[..., Tensor], *example: Tensor) -> Callable[..., Tensor]:
    """The function as a CUDA graph for inputs of the example's shapes; on any other device, the function itself.

    The function asks the device nothing and draws nothing; what it reads beside its inputs (weights) is read anew at
    every call, from where it lay at the recording. The result is overwritten by the next call.
    """
    if example[0].device.type != "cuda":
        return function
    with torch.cuda.device(example[0].device):
        return _recorded(function, *example)


def _recorded(function: Callable[..., Tensor], *example: Tensor) -> Callable[..., Tensor]:
    inputs = [tensor.clone() for tensor in example]
    aside = torch.cuda.Stream(example[0].device)
    aside.wait_stream(torch.cuda.current_stream(example[0].device))
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            function(*inputs)
    torch.cuda.current_stream(example[0].device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(*inputs)

    def replay(*tensors: Tensor) -> Tensor:
        for kept, given in zip(inputs, tensors, strict=True):
            kept.copy_(given)
        graph.replay()
        return output

    return replay
