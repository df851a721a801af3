"""Fleets in bfloat16, for attacks: the papers' standard classifier as banded matrix products, the fastest form found,
and any other network with its batch norm folded away.

A 4 x 4 convolution of stride 2 takes a pair of image rows to one output row, and the next pair too. With the pixels of
two rows in one vector, it is two products with banded matrices: out[i] = pair[i] A + pair[i + 1] B. That spends a few
times the multiplications of the convolution, but in large products: on the units for bfloat16 they cost less, forward
and back, and those of a whole fleet are one batched product.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from advbook.fleet import Fleet, Stack
from advbook.networks import folded


class Band(NamedTuple):
    """One convolution of M members: first and second [M, 2 W C, (W/2) O], bias [M, 1, (W/2) O]; rows and rows_out, the
    heights before and after.
    """

    first: Tensor
    second: Tensor
    bias: Tensor
    rows: int
    rows_out: int


class Banded(Fleet):
    """A fleet of standard classifiers in evaluation mode as banded products; gradients by the images alone.

    fleet: modules as networks.cnn makes them, or one such module; dtype: of the products (the linear layers, one
    matrix together, stay in float32 or wider); side: of the images. Its weights are those at the time of making.
    Raises ValueError if the modules are not of this form.
    """

    def __init__(self, fleet: Stack | nn.Module, *, dtype: torch.dtype = torch.bfloat16, side: int = 28) -> None:
        fleet = fleet if isinstance(fleet, Stack) else Stack([fleet])
        self.members = fleet.members
        self._bands, self._head = [], (torch.empty(0), torch.empty(0))
        layers = list(fleet.layers())
        if not fleet.sequential:
            raise ValueError("fleet: allowed are sequential modules, whose layers say all that they do.")
        width, linear = side, []
        while layers and isinstance(layers[0][0], nn.Conv2d):
            weight, bias = _folded(layers)
            self._bands.append(_band(weight, bias, width, dtype))
            width //= 2
        if not self._bands or len(layers) < 2 or not isinstance(layers.pop(0)[0], nn.Flatten):
            raise ValueError("fleet: allowed are convolutions with batch norm and ReLU, then linear layers.")
        for module, values in layers:
            if not isinstance(module, nn.Linear):
                raise ValueError(f"fleet: {type(module).__name__} after the first linear layer has no banded form.")
            linear.append((values["weight"], values.get("bias", torch.zeros_like(values["weight"][:, :, 0]))))
        self._head = _head(linear, width)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits: [M, B, C, H, W] -> [M, B, K]."""
        first = self._bands[0]
        if 2 * x.shape[2] * x.shape[4] != first.first.shape[1] or x.shape[3] != first.rows:
            raise ValueError(f"x: its images are {list(x.shape[2:])}; allowed are squares of side {first.rows}.")
        logits: Tensor = _Product.apply(x, self._bands, self._head)  # type: ignore[no-untyped-call]
        return logits


class Half(Fleet):
    """Any fleet in evaluation mode with batch norm folded away and all products in bfloat16; logits as given images.

    fleet: modules as networks.build makes them. Its weights are those at the time of making, and gradients are by the
    images alone.
    """

    def __init__(self, fleet: Stack) -> None:
        self.members = fleet.members
        self._stack = Stack([folded(cast(nn.Sequential, one)).to(torch.bfloat16) for one in fleet.unstack()]).eval()

    def __call__(self, x: Tensor) -> Tensor:
        """Logits: [M, B, C, H, W] -> [M, B, K]."""
        return self._stack(x.to(torch.bfloat16)).to(x.dtype)


def draft(fleet: Stack, *, side: int) -> Fleet:
    """The fastest form of a fleet in bfloat16: banded for the standard classifier, else folded.

    Raises ValueError if its members are not sequential.
    """
    if not fleet.sequential:
        raise ValueError("fleet: allowed are sequential modules, whose layers say all that they do.")
    try:
        return Banded(fleet, side=side)
    except ValueError:
        return Half(fleet)


def bfloat16_is_fast(device: torch.device | str = "cpu") -> bool:
    """Whether the device multiplies matrices of bfloat16 in units of their own: then the banded form pays."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


class _Product(torch.autograd.Function):
    """Forward and backward by hand: the gradient needs the signs of the activations and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bands: list[Band], head: tuple[Tensor, Tensor]) -> Tensor:
        members, images = x.shape[:2]
        rows = x.movedim(2, -1).flatten(3)  # [M, B, H, W C]
        kept = []
        for band in bands:
            pairs = _paired(rows, band)  # [M, B, H/2 + 1, 2 W C]
            kept.append(pairs)
            flat = pairs.flatten(1, 2)
            out = torch.baddbmm(band.bias, flat, band.first)
            out[:, :-1].baddbmm_(flat[:, 1:], band.second)
            # The last row of every image reaches into the next image, and is dropped.
            rows = out.view(members, images, band.rows_out + 1, -1)[:, :, :-1]
        features = rows.clamp_min(0).flatten(2)
        ctx.bands, ctx.head, ctx.kept, ctx.features, ctx.shape = bands, head, kept, features, x.shape
        return torch.baddbmm(head[1], features.to(head[0].dtype), head[0]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        head, dtype = ctx.head[0], slopes[0].dtype
        slope = slopes[0].to(head.dtype) @ head.mT
        slope = torch.ops.aten.threshold_backward(slope.to(ctx.features.dtype), ctx.features, 0)
        members, images = slope.shape[:2]
        for index in reversed(range(len(ctx.bands))):
            band, pairs = ctx.bands[index], ctx.kept[index]
            padded = slope.new_zeros(members, images, band.rows_out + 1, band.first.shape[2])
            padded[:, :, :-1] = slope.view(members, images, band.rows_out, -1)
            flat = padded.flatten(1, 2)
            back = torch.bmm(flat, band.first.mT)
            back[:, 1:].baddbmm_(flat[:, :-1], band.second.mT)
            rows = slice(1, 1 + band.rows)
            slope = back.view(members, images, 2 * band.rows_out + 2, -1)[:, :, rows]
            if index:
                seen = pairs.view(members, images, 2 * band.rows_out + 2, -1)[:, :, rows]
                slope = torch.ops.aten.threshold_backward(slope, seen, 0)
            if slope.shape[2] < band.rows:  # an odd height: no window reaches its last row
                slope = nn.functional.pad(slope, (0, 0, 0, band.rows - slope.shape[2]))
        colours, height, width = ctx.shape[2:]
        return slope.reshape(members, images, height, width, colours).movedim(-1, 2).to(dtype), None, None


def _paired(rows: Tensor, band: Band) -> Tensor:
    """Rows with a zero row above and below, two in one vector, ReLU taken: [M, B, H, W C] -> [M, B, H/2 + 1, 2 W C].

    ReLU changes nothing on images, which are not negative.
    """
    members, images, _, width = rows.shape
    taken = min(band.rows, 2 * band.rows_out + 1)
    padded = band.first.new_zeros(members, images, 2 * band.rows_out + 2, width)
    torch.clamp_min(rows[:, :, :taken].to(padded.dtype), 0, out=padded[:, :, 1 : 1 + taken])
    return padded.view(members, images, band.rows_out + 1, 2 * width)


def _folded(layers: list[tuple[nn.Module, dict[str, Tensor]]]) -> tuple[Tensor, Tensor]:
    """Weight [M, O, C, 4, 4] and bias [M, O] of the next convolution with its batch norm; takes them off the list."""
    conv, values = layers.pop(0)
    assert isinstance(conv, nn.Conv2d)
    form = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    if form != ((4, 4), (2, 2), (1, 1), (1, 1), 1, "zeros"):
        raise ValueError(f"fleet: {conv} has no banded form; allowed is a kernel of 4 with stride 2 and padding 1.")
    weight = values["weight"]
    bias = values.get("bias", torch.zeros_like(weight[:, :, 0, 0, 0]))
    if layers and isinstance(layers[0][0], nn.BatchNorm2d):
        norm, values = layers.pop(0)
        assert isinstance(norm, nn.BatchNorm2d)
        if not (norm.affine and norm.track_running_stats):
            raise ValueError(f"fleet: {norm} has no banded form; allowed is batch norm with weights and statistics.")
        scale = values["weight"] / (values["running_var"] + norm.eps).sqrt()  # [M, O]
        weight = weight * scale[..., None, None, None]
        bias = (bias - values["running_mean"]) * scale + values["bias"]
    if not layers or not isinstance(layers.pop(0)[0], nn.ReLU):
        raise ValueError("fleet: a convolution without ReLU has no banded form.")
    return weight, bias


def _band(weight: Tensor, bias: Tensor, width: int, dtype: torch.dtype) -> Band:
    """The convolution as two matrices: entry (row t, column w, channel c; column v, channel o) is weight[o, c, t, s]
    with w = 2 v - 1 + s, and 0 where no s is in the kernel.
    """
    members, outputs = weight.shape[:2]
    half = width // 2
    count = partial(torch.arange, device=weight.device)  # a copy from the host would end a CUDA graph's capture
    offset = count(width)[:, None] - 2 * count(half) + 1  # s of (w, v)
    choice = (offset == count(4)[:, None, None]).to(weight)  # [s, w, v]
    matrix = torch.einsum("mocts,swv->mtwcvo", weight, choice).to(dtype)  # [M, 4, W, C, W/2, O]
    first, second = matrix.reshape(members, 2, -1, half * outputs).unbind(1)
    return Band(first, second, bias.repeat(1, half)[:, None].to(dtype), width, half)


def _head(linear: Sequence[tuple[Tensor, Tensor]], width: int) -> tuple[Tensor, Tensor]:
    """All linear layers as one, for features in the order (row, column, channel): [M, features, K], [M, 1, K]."""
    (weight, bias), *others = linear
    for next_weight, next_bias in others:
        weight, bias = next_weight @ weight, (next_weight @ bias[..., None])[..., 0] + next_bias
    members, classes = weight.shape[:2]
    weight = weight.view(members, classes, -1, width * width).mT.reshape(members, classes, -1)
    return weight.mT.contiguous(), bias[:, None]
