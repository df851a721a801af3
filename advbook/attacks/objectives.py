"""What an attack maximizes: (output of the network, target) -> one number a row. And when a row is won.

y is the true class; t a target class, which an attack wants to see. Logits are [B, K], classes [B], results [B].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)_y. F0 of the released code of Stutz et al., CVPR 2019.

    Its gradient underflows to zero where the network is sure: see log_odds.
    """
    return F.cross_entropy(logits, y, reduction="none")


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """log((1 - p_y) / p_y), p the softmax: the cross-entropy is log(1 + exp(.)) of it.

    Both grow together, so their gradients have the same direction; this one does not vanish where p_y rounds to 1.
    """
    return _others(logits, y).logsumexp(1) - _of(logits, y)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} logits_k - logits_y: positive where the network errs.

    Source: Carlini and Wagner, 2017. The true logit is left out; released code of Stutz et al. sets it to 0 instead.
    """
    return _others(logits, y).amax(1) - _of(logits, y)


def other_confidence(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} p_k, the confidence in a wrong class: F7P of confidence-calibrated adversarial training."""
    return logits.softmax(1).masked_fill(_is(logits, y), 0).amax(1)


def other_log_confidence(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} log p_k: it rises and falls with other_confidence, and its gradient does not underflow where the
    network is sure of y.
    """
    return _others(logits.log_softmax(1), y).amax(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """-(z_y - max_{k != y} z_k) / (z_(1) - z_(3)), z_(i) the i-th largest logit: blind to the logits' scale.

    With fewer than three classes the ratio would be constant, and the margin stands in. Source: Croce and Hein, 2020,
    equation (6).
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def top_confidence(logits: Tensor, y: Tensor) -> Tensor:
    """max_k log p_k, whatever the class: what a distal attack raises on noise. y is not used."""
    return logits.log_softmax(1).amax(1)


def doubt(logits: Tensor, y: Tensor) -> Tensor:
    """The log-odds against the likeliest class, log((1 - max_k p_k) / max_k p_k): what makes a network reject. y is not
    used.
    """
    return log_odds(logits, logits.argmax(1))


def towards_cross_entropy(logits: Tensor, t: Tensor) -> Tensor:
    """log p_t: the targeted form of the cross-entropy."""
    return -cross_entropy(logits, t)


def towards_margin(logits: Tensor, t: Tensor) -> Tensor:
    """z_t - max_{k != t} z_k: the targeted form of the margin, positive where the network says t."""
    return -margin(logits, t)


def towards_confidence(logits: Tensor, t: Tensor) -> Tensor:
    """p_t: the targeted form of the confidence."""
    return _of(logits.softmax(1), t)


def towards_dlr(logits: Tensor, both: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), both = [B, 2] holding y and t.

    Raises ValueError for fewer than four classes. Source: Croce and Hein, 2020, equation (7).
    """
    if logits.shape[1] < 4:
        raise ValueError(f"logits of {logits.shape[1]} classes: the targeted DLR needs 4 or more.")
    y, t = both.unbind(1)
    top = logits.topk(4, dim=1).values
    return (_of(logits, t) - _of(logits, y)) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def fooled(logits: Tensor, y: Tensor) -> Tensor:
    """Whether the predicted class is not y: [B] bool."""
    return logits.argmax(1) != y


def reached(logits: Tensor, t: Tensor) -> Tensor:
    """Whether the predicted class is t: [B] bool."""
    return logits.argmax(1) == t


def _of(scores: Tensor, y: Tensor) -> Tensor:
    return scores.gather(1, y[:, None])[:, 0]


def _others(scores: Tensor, y: Tensor) -> Tensor:
    """The scores without the one at y: the lowest number stands in its place, so that one class alone is no error."""
    return scores.masked_fill(_is(scores, y), torch.finfo(scores.dtype).min)


def _is(scores: Tensor, y: Tensor) -> Tensor:
    return F.one_hot(y, scores.shape[1]).bool()
