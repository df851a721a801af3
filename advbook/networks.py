"""Classifiers f: images to logits. Every network takes [B, C, H, W] in [0, 1] and gives [B, K]."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Network = Literal["cnn", "mlp", "resnet", "vgg", "lenet", "resnet20"]
Side = int | tuple[int, int]  # of a square, or height and width


def build(
    name: Network, classes: int, *, side: Side = 28, colours: int = 1, generator: torch.Generator
) -> nn.Sequential:
    """The network of this name at the papers' width, freshly initialized.

    Raises ValueError for another name.
    """
    if name not in _NETWORKS:
        raise ValueError(f"name = {name!r}: allowed are {', '.join(_NETWORKS)}.")
    return _NETWORKS[name](classes, side=side, colours=colours, generator=generator)


def cnn(
    classes: int = 10,
    channels: tuple[int, ...] | None = None,
    *,
    side: Side = 28,
    colours: int = 1,
    generator: torch.Generator,
) -> nn.Sequential:
    """The papers' standard classifier: 4 x 4 convolutions of stride 2 with batch norm and ReLU, then two linear
    layers.

    There is no non-linearity between the two linear layers, as in the released code, and batch norm stands before
    ReLU, as there (the paper's text names them the other way round). The convolutions have no bias: batch norm takes
    it away again, so its gradient is nothing but rounding, which Adam would blow up to full steps. channels: 16, 32, 64
    by default, and 128 for images as large as those of CelebA. Source: Stutz et al., CVPR 2019, section 3.1, and its
    released code.
    """
    layers: list[nn.Module] = []
    width, (height, breadth) = colours, _sides(side)
    for channel in channels or ((16, 32, 64) if max(height, breadth) <= 32 else (16, 32, 64, 128)):
        layers += [*_convolution(width, channel, 4, stride=2), nn.ReLU()]
        width, height, breadth = channel, height // 2, breadth // 2
    features = width * height * breadth
    layers += [nn.Flatten(), nn.Linear(features, 10 * classes), nn.Linear(10 * classes, classes)]
    return initialize(nn.Sequential(*layers), generator)


def mlp(
    classes: int = 10,
    units: tuple[int, ...] = (128, 128, 128, 128),
    *,
    side: Side = 28,
    colours: int = 1,
    generator: torch.Generator,
) -> nn.Sequential:
    """Linear layers of 128 units, each followed by ReLU and then batch norm, and a last linear layer.

    The linear layers keep their biases: ReLU stands between them and batch norm. Source: the released code of Stutz
    et al., CVPR 2019.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    width = colours * math.prod(_sides(side))
    for unit in units:
        layers += [nn.Linear(width, unit), nn.ReLU(), nn.BatchNorm1d(unit)]
        width = unit
    return initialize(nn.Sequential(*layers, nn.Linear(width, classes)), generator)


def resnet(
    classes: int = 10,
    channels: tuple[int, ...] = (64, 128, 256),
    *,
    blocks: int = 2,
    side: Side = 28,
    colours: int = 1,
    generator: torch.Generator,
) -> nn.Sequential:
    """ResNet-13: a 3 x 3 convolution, two residual blocks a stage, the average over the image, a linear layer.

    channels: of the stages; each but the first halves the side. blocks: residual blocks a stage. The name counts the
    3 x 3 convolutions, 1 + 3 x 2 x 2.
    Where a block changes the shape, its shortcut is a 1 x 1 convolution with batch norm: two more, not counted. side
    decides nothing: images of any side fit. Source: Stutz et al., CVPR 2019, figure 7, and its released code.
    """
    width = channels[0]
    layers: list[nn.Module] = [*_convolution(colours, width, 3), nn.ReLU()]
    for stage, channel in enumerate(channels):
        layers += [_block(width, channel, stride=2 if stage else 1)]
        layers += [_block(channel, channel) for _ in range(blocks - 1)]
        width = channel
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    return initialize(nn.Sequential(*layers), generator)


def resnet20(
    classes: int = 10,
    channels: tuple[int, ...] = (64, 128, 256),
    *,
    side: Side = 28,
    colours: int = 1,
    generator: torch.Generator,
) -> nn.Sequential:
    """ResNet-20: the same with three residual blocks a stage, the network of confidence-calibrated training on colour.

    The name counts 1 + 3 x 3 x 2 convolutions of 3 x 3 and the linear layer. About 4.3 million weights. Source:
    released code of Stutz et al., ICML 2020, whose first layer clamps to [0, 1]; images here are in [0, 1] always.
    """
    return resnet(classes, channels, blocks=3, side=side, colours=colours, generator=generator)


def lenet(
    classes: int = 10,
    channels: tuple[int, ...] = (32, 64),
    *,
    side: Side = 28,
    colours: int = 1,
    generator: torch.Generator,
) -> nn.Sequential:
    """LeNet: 5 x 5 convolutions with batch norm, ReLU and a 2 x 2 max-pool each, then two linear layers with ReLU
    between them.

    The hidden layer has 1024 units. The channels are those of Madry et al., 2018, and of the "fixed" LeNet in the
    released code of Stutz et al., ICML 2020; batch norm stands in its general LeNet, which starts with 64 channels.
    """
    layers: list[nn.Module] = []
    width, (height, breadth) = colours, _sides(side)
    for channel in channels:
        layers += [*_convolution(width, channel, 5), nn.ReLU(), nn.MaxPool2d(2)]
        width, height, breadth = channel, height // 2, breadth // 2
    layers += [nn.Flatten(), nn.Linear(width * height * breadth, 1024), nn.ReLU(), nn.Linear(1024, classes)]
    return initialize(nn.Sequential(*layers), generator)


def vgg(
    classes: int = 10,
    channels: tuple[int, ...] = (64, 128, 128, 256, 256),
    *,
    side: Side = 28,
    colours: int = 1,
    generator: torch.Generator,
) -> nn.Sequential:
    """3 x 3 convolutions with batch norm and ReLU, then three linear layers with ReLU between them, no dropout.

    A 2 x 2 max-pool stands before each convolution that changes the number of channels, the first one aside; none
    stands after the last one. So at the paper's width the features are 256 x 7 x 7 for images of side 28. The hidden
    layers have four times the last channels: 1024. Source: the released code of Stutz et al., CVPR 2019, with the
    channels that its experiments pass (the default there is shorter: 64, 128, 256, 256).
    """
    layers: list[nn.Module] = []
    width, (height, breadth) = colours, _sides(side)
    for channel in channels:
        if layers and channel != width:
            layers.append(nn.MaxPool2d(2))
            height, breadth = height // 2, breadth // 2
        layers += [*_convolution(width, channel, 3), nn.ReLU()]
        width = channel
    features, hidden = width * height * breadth, 4 * width
    layers += [nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    return initialize(nn.Sequential(*layers, nn.Linear(hidden, classes)), generator)


_NETWORKS: dict[Network, Callable[..., nn.Sequential]] = {
    "cnn": cnn,
    "mlp": mlp,
    "resnet": resnet,
    "vgg": vgg,
    "lenet": lenet,
    "resnet20": resnet20,
}


class Residual(nn.Module):
    """A residual block: relu(body(x) + shortcut(x)), where an empty shortcut is x itself."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        return torch.relu(self.body(x) + self.shortcut(x))


def _sides(side: Side) -> tuple[int, int]:
    """Height and width."""
    return (side, side) if isinstance(side, int) else side


def _block(width: int, channels: int, *, stride: int = 1) -> Residual:
    body = (*_convolution(width, channels, 3, stride=stride), nn.ReLU(), *_convolution(channels, channels, 3))
    same = stride == 1 and width == channels
    shortcut = () if same else _convolution(width, channels, 1, stride=stride)
    return Residual(nn.Sequential(*body), nn.Sequential(*shortcut))


def _convolution(width: int, channels: int, kernel: int, *, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution and its batch norm; padded so that it gives the side divided by the stride (28 -> 28, 14)."""
    padding = (kernel - 1) // 2
    conv = nn.Conv2d(width, channels, kernel, stride=stride, padding=padding, bias=False)  # why none: see cnn
    return conv, nn.BatchNorm2d(channels)


def initialize(network: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    """Normal weights with standard deviation sqrt(2 / (3 fan_in)), zero biases; in place.

    This is the released code's initialization of cnn and mlp: Kaiming's rule with the ReLU gain in the place of the
    leaky slope. Its resnet and vgg start from other scales (Kaiming's fan-out rule for their convolutions); here all
    networks follow one rule. Before batch norm the scale of a weight sets only how far an optimizer's step turns it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            fan_in: float = module.weight[0].numel()
            if isinstance(module, nn.ConvTranspose2d):  # [in, out, kernel]; a stride spreads the kernel over outputs
                fan_in = module.weight[:, 0].numel() / math.prod(module.stride)
            with torch.no_grad():
                module.weight.normal_(0, math.sqrt(2 / (3 * fan_in)), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def folded(network: nn.Sequential) -> nn.Sequential:
    """The same function in evaluation mode with every batch norm folded away.

    Batch norm goes into the convolution (transposed or not) before it or into the linear layer after it, in residual
    blocks too. Returns
    a new network without gradients on its weights: attacks differentiate by the input alone. The weights lie channels
    last, which is faster on a CPU.
    """
    layers = _folded(copy.deepcopy(network).eval())
    return layers.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _folded(layers: nn.Sequential) -> nn.Sequential:
    found: list[nn.Module] = []
    for layer in layers:
        last = found[-1] if found else None
        if isinstance(layer, nn.BatchNorm2d) and isinstance(last, nn.Conv2d | nn.ConvTranspose2d):
            found[-1] = fuse_conv_bn_eval(last, layer, transpose=isinstance(last, nn.ConvTranspose2d))
        elif isinstance(layer, nn.Linear) and isinstance(last, nn.BatchNorm1d):
            found[-1] = _scaled(last, layer)
        elif isinstance(layer, Residual):
            found.append(Residual(_folded(layer.body), _folded(layer.shortcut)))
        else:
            found.append(_folded(layer) if isinstance(layer, nn.Sequential) else layer)
    return nn.Sequential(*found)


def _scaled(norm: nn.BatchNorm1d, linear: nn.Linear) -> nn.Linear:
    """Both as one layer: W (scale x + shift) + b."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    both = copy.deepcopy(linear)
    both.weight = nn.Parameter(linear.weight * scale)
    both.bias = nn.Parameter(linear(shift))
    return both


@torch.no_grad()
def predict(network: nn.Module, x: Tensor, *, batch: int = 1_000) -> Tensor:
    """Logits of many images: [N, C, H, W] -> [N, K], batch by batch, in evaluation mode.

    Raises ValueError if the network gives something that is not finite.
    """
    training = network.training
    network.eval()
    logits = torch.cat([network(part) for part in x.split(batch)])
    network.train(training)
    if not logits.isfinite().all():
        raise ValueError("The network returned logits that are not finite; its weights or its input are damaged.")
    return logits
