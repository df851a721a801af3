"""What an attack maximizes: (output of the network, target) -> one number a row. And when a row is won."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)_y: [B, K], [B] -> [B]. F0 of the released code."""
    return F.cross_entropy(logits, y, reduction="none")


def fooled(logits: Tensor, y: Tensor) -> Tensor:
    """Whether the predicted class is not y: [B, K], [B] -> [B] bool."""
    return logits.argmax(1) != y
