"""Classifiers f: images to logits. Every network takes [B, C, H, W] in [0, 1] and gives [B, K]."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def cnn(
    classes: int = 10,
    channels: tuple[int, ...] = (16, 32, 64),
    *,
    side: int = 28,
    colours: int = 1,
    generator: torch.Generator,
) -> nn.Sequential:
    """The papers' standard classifier: 4 x 4 convolutions of stride 2 with batch norm and ReLU, then two linear
    layers.

    There is no non-linearity between the two linear layers, as in the released code, and batch norm stands before
    ReLU, as there (the paper's text names them the other way round). The convolutions have no bias: batch norm takes
    it away again, so its gradient is nothing but rounding, which Adam would blow up to full steps. Source: Stutz et
    al., CVPR 2019, section 3.1, and its released code.
    """
    layers: list[nn.Module] = []
    width = colours
    for channel in channels:
        layers += [nn.Conv2d(width, channel, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(channel), nn.ReLU()]
        width, side = channel, side // 2
    layers += [nn.Flatten(), nn.Linear(width * side**2, 10 * classes), nn.Linear(10 * classes, classes)]
    return initialize(nn.Sequential(*layers), generator)


def initialize(network: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    """Normal weights with standard deviation sqrt(2 / (3 fan_in)), zero biases; in place.

    This is the released code's initialization: Kaiming's rule with the ReLU gain in the place of the leaky slope.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            with torch.no_grad():
                module.weight.normal_(0, math.sqrt(2 / (3 * fan_in)), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def folded(network: nn.Sequential) -> nn.Sequential:
    """The same function in evaluation mode with every batch norm folded into the convolution before it.

    Returns a new network without gradients on its weights: attacks differentiate by the input alone. The weights lie
    channels last, which is faster on a CPU.
    """
    layers: list[nn.Module] = []
    for module in copy.deepcopy(network).eval():
        if isinstance(module, nn.BatchNorm2d) and layers and isinstance(layers[-1], nn.Conv2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], module)
        else:
            layers.append(module)
    return nn.Sequential(*layers).eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


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
