"""Networks and decoders as layers and bytes that interpreter.js runs.

A layer is a dict: its `op`, its settings, and under `tensors` where each of its tensors lies in the bytes
(dtype, offset in bytes, shape). Numbers are little-endian float32, pixels uint8, weights in 8 bits int8: a float32
scale for each output channel, then the levels, which count it. For a new layer, register one function here and add
one to OPS in interpreter.js. A flow is packed once for both ways; its couplings' weights are float16.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import singledispatch
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from advbook.manifolds.flow import LEVELS, MARGIN, REACH, Coupling, Flow, Mix
from advbook.networks import folded

Layer = dict[str, Any]
Array = NDArray[np.generic]
_LEVELS = 127  # of int8, on either side of zero


def pack(network: nn.Sequential, *, bits: int = 32) -> tuple[list[Layer], bytes]:
    """A network in evaluation mode as layers and bytes: batch norm folded, adjacent linear layers multiplied.

    bits: of a weight, 32 or 8. With 8 bits, a weight is one of 255 levels of equal distance around zero, as far apart
    as the largest weight of its output channel asks for; biases keep 32. Raises TypeError for a layer, or a setting
    of a layer, that the interpreter does not know, ValueError for other bits.
    """
    if bits not in (8, 32):
        raise ValueError(f"bits = {bits}; allowed are 8 and 32.")
    modules = _multiplied(list(folded(network)))
    return _assemble([_described(module) for module in modules], bits)


def pack_together(networks: Iterable[nn.Sequential], *, bits: int = 32) -> tuple[list[list[Layer]], bytes]:
    """Several networks, each as `pack` gives it, in the same bytes. Raises TypeError and ValueError as `pack` does."""
    packed: list[list[Layer]] = []
    buffer = b""
    for network in networks:
        layers, weights = pack(network, bits=bits)
        packed.append([_shifted(layer, len(buffer)) for layer in layers])
        buffer += weights
    return packed, buffer


@torch.no_grad()
def rounded(network: nn.Sequential) -> nn.Sequential:
    """The network that `pack` with 8 bits describes, for torch: its weights rounded, else the same."""
    modules = _multiplied(list(folded(network)))
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            scales, levels = _levels(_weight_and_bias(module)["weight"])
            near = torch.from_numpy(levels.astype("<f4") * scales)
            module.weight.copy_(near.permute(3, 0, 1, 2) if isinstance(module, nn.ConvTranspose2d) else near)
    return nn.Sequential(*modules).float().eval()


def pack_fonts(prototypes: ArrayLike) -> tuple[list[Layer], bytes]:
    """The decoder of FONTS over these prototypes: uint8 [F, K, H, W], where 255 is 1.

    Raises ValueError if the prototypes have another type or shape.
    """
    pixels = np.asarray(prototypes)
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise ValueError(f"prototypes are {pixels.dtype} {list(pixels.shape)}; allowed: uint8 [F, K, H, W].")
    return _assemble([({"op": "fonts"}, {"prototypes": pixels})])


def pack_flow(flow: Flow) -> tuple[list[Layer], list[Layer], bytes]:
    """A flow as layers image -> [bits per dimension], layers z -> G(z) cut to [0, 1], and the bytes of both.

    The couplings' weights have 16 bits, as in `halved`; all else has 32.
    """
    logit = {"op": "logit", "margin": MARGIN, "levels": LEVELS, "tensors": {}}
    encoder: list[Layer] = [{**logit, "inverse": False}]
    decoder: list[Layer] = [{"op": "unflatten", "shape": list(flow.shape), "tensors": {}}, {**logit, "inverse": True}]
    buffer = b""
    channels, height, width = flow.shape
    for scale, (leaving, *_) in zip(flow.scales, flow.parts, strict=True):
        fold: Layer = {"op": "squeeze", "shape": [channels, height, width], "tensors": {}}
        encoder.append({**fold, "inverse": False})
        decoder.append({**fold, "inverse": True})
        channels, height, width = 4 * channels, height // 2, width // 2
        for module in cast(Sequence[Mix | Coupling], scale):
            layers, numbers = _packed_mix(module) if isinstance(module, Mix) else _packed_coupling(module)
            forth, back = ({**_shifted(layer, len(buffer)), "shape": [channels, height, width]} for layer in layers)
            encoder.append(forth)
            decoder.append(back)
            buffer += numbers
        channels -= leaving  # what leaves stands first: the next scale works on the numbers behind it
    return [*encoder, {"op": "bits_per_dim", "levels": LEVELS, "tensors": {}}], decoder[::-1], buffer


@torch.no_grad()
def halved(flow: Flow) -> Flow:
    """The flow that `pack_flow` describes, for torch on a CPU: its couplings' weights have 16 bits."""
    near = copy.deepcopy(flow).cpu().float().eval().requires_grad_(False)
    for module in near.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(module.weight.half())
    return near


def _packed_mix(module: Mix) -> tuple[list[Layer], bytes]:
    """Mix and its inverse, as ready matrices: W exp(s) (h + b) and its solution for h."""
    matrix = module.rotation.detach().double().cpu() * module.log_scale.detach().double().cpu().exp()
    shift = module.shift.detach().double().cpu()
    log_det = float(torch.linalg.slogdet(matrix)[1])
    both = [(matrix, matrix @ shift, log_det), (torch.linalg.inv(matrix), -shift, -log_det)]
    return _assemble(
        [
            ({"op": "mix", "log_det": its}, {"weight": _float32(weight[:, :, None, None]), "bias": _float32(bias)})
            for weight, bias, its in both
        ]
    )


def _packed_coupling(module: Coupling) -> tuple[list[Layer], bytes]:
    """A coupling and its inverse, over the same weights."""
    tensors: dict[str, Array] = {}
    for i, part in enumerate((part for part in module.net if isinstance(part, nn.Conv2d)), 1):
        tensors |= {f"{name}_{i}": array for name, array in _weight_and_bias(part).items()}
    (layer,), numbers = _assemble([({"op": "coupling", "kept": module.kept, "reach": REACH}, tensors)], 16)
    return [{**layer, "inverse": inverse} for inverse in (False, True)], numbers


@singledispatch
def _described(module: nn.Module) -> tuple[Layer, dict[str, Array]]:
    """The op and settings of a module, and its tensors by name."""
    raise TypeError(f"The layer {module} cannot be packed: interpreter.js has no op for it.")


@_described.register
def _(module: nn.Conv2d) -> tuple[Layer, dict[str, Array]]:
    plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    if not plain or isinstance(module.padding, str):
        raise TypeError(f"The layer {module} cannot be packed: groups, dilation and named padding are not known.")
    settings = {"op": "conv2d", "stride": list(module.stride), "padding": list(module.padding)}
    return settings, _weight_and_bias(module)


@_described.register
def _(module: nn.ConvTranspose2d) -> tuple[Layer, dict[str, Array]]:
    if module.groups != 1 or module.dilation != (1, 1):
        raise TypeError(f"The layer {module} cannot be packed: groups and dilation are not known.")
    settings = {
        "op": "conv_transpose2d",
        "stride": list(module.stride),
        "padding": list(module.padding),
        "output_padding": list(module.output_padding),
    }
    return settings, _weight_and_bias(module)


@_described.register
def _(module: nn.Linear) -> tuple[Layer, dict[str, Array]]:
    return {"op": "linear"}, _weight_and_bias(module)


@_described.register
def _(module: nn.ReLU) -> tuple[Layer, dict[str, Array]]:
    return {"op": "relu"}, {}


@_described.register
def _(module: nn.Sigmoid) -> tuple[Layer, dict[str, Array]]:
    return {"op": "sigmoid"}, {}


@_described.register
def _(module: nn.Softmax) -> tuple[Layer, dict[str, Array]]:
    if module.dim not in (1, -1):
        raise TypeError(f"The layer {module} cannot be packed: allowed is dim=1, the classes.")
    return {"op": "softmax"}, {}


@_described.register
def _(module: nn.Flatten) -> tuple[Layer, dict[str, Array]]:
    if (module.start_dim, module.end_dim) != (1, -1):
        raise TypeError(f"The layer {module} cannot be packed: allowed is to flatten all but the batch.")
    return {"op": "flatten"}, {}


@_described.register
def _(module: nn.Unflatten) -> tuple[Layer, dict[str, Array]]:
    sizes = module.unflattened_size
    if module.dim != 1 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise TypeError(f"The layer {module} cannot be packed: allowed are dim=1 and sizes that are all given.")
    return {"op": "unflatten", "shape": list(sizes)}, {}


def _weight_and_bias(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> dict[str, Array]:
    """The tensors of a layer, output channels first; of a transposed convolution [O, h, w, I], as JS sums over I."""
    weight = module.weight.detach()
    weight = weight.permute(1, 2, 3, 0) if isinstance(module, nn.ConvTranspose2d) else weight
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach()
    return {"weight": _float32(weight), "bias": _float32(bias)}


def _float32(tensor: Tensor) -> Array:
    return tensor.cpu().numpy().astype("<f4")


def _multiplied(modules: list[nn.Module]) -> list[nn.Module]:
    """The same function with adjacent linear layers multiplied into one, where that saves bytes."""
    short: list[nn.Module] = []
    for module in modules:
        last = short[-1] if short else None
        if isinstance(last, nn.Linear) and isinstance(module, nn.Linear) and _smaller(last, module):
            short[-1] = _product(last, module)
        else:
            short.append(module)
    return short


def _smaller(first: nn.Linear, second: nn.Linear) -> bool:
    return first.in_features * second.out_features < first.weight.numel() + second.weight.numel()


@torch.no_grad()
def _product(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """W2 (W1 x + b1) + b2 as one layer, multiplied in float64 so that only the last rounding is left."""
    both = nn.Linear(first.in_features, second.out_features, dtype=torch.float64)
    weight = second.weight.double()
    bias = weight.new_zeros(len(weight)) if second.bias is None else second.bias.double()
    both.weight.copy_(weight @ first.weight.double())
    both.bias.copy_(bias if first.bias is None else bias + weight @ first.bias.double())
    return both


def _shifted(layer: Layer, start: int) -> Layer:
    """The layer with its tensors `start` bytes further on."""
    tensors = {name: {**tensor, "offset": tensor["offset"] + start} for name, tensor in layer["tensors"].items()}
    return {**layer, "tensors": tensors}


def _assemble(described: list[tuple[Layer, dict[str, Array]]], bits: int = 32) -> tuple[list[Layer], bytes]:
    """Tensors behind one another, each from a multiple of 4 bytes, since JS reads float32 from there only."""
    buffer = bytearray()
    layers = []
    for layer, arrays in described:
        tensors = {}
        for name, array in arrays.items():
            dtype, data = _encoded(array, bits if name.startswith("weight") else 32)
            tensors[name] = {"dtype": dtype, "offset": len(buffer), "shape": list(array.shape)}
            buffer += data + bytes(-len(data) % 4)
        layers.append({**layer, "tensors": tensors})
    return layers, bytes(buffer)


def _encoded(array: Array, bits: int) -> tuple[str, bytes]:
    """A tensor's dtype, as JS calls it, and its bytes."""
    if bits == 32:
        return "uint8" if array.dtype == np.uint8 else "float32", array.tobytes()
    if bits == 16:
        return "float16", array.astype("<f2").tobytes()
    scales, levels = _levels(array)
    return "int8", scales.tobytes() + levels.tobytes()


def _levels(weight: Array) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Scales [O, 1, ...] and levels [O, ...], whose product is near the weight."""
    top = np.abs(weight.astype(np.float64)).max(tuple(range(1, weight.ndim)), keepdims=True)
    scales = (top / _LEVELS).astype("<f4")
    levels = np.rint(weight / np.maximum(scales.astype(np.float64), np.finfo("<f4").tiny))
    return scales, levels.clip(-_LEVELS, _LEVELS).astype("i1")
