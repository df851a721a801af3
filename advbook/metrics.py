"""Error, success rates and intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor


def error(logits: Tensor, y: Tensor) -> float:
    """Share of images whose predicted class is not y: [N, K], [N] -> 0 to 1."""
    return float((logits.argmax(1) != y).double().mean())


def success_average(success: Tensor, correct: Tensor) -> float:
    """Successful (restart, image) pairs among those of correctly classified images: [R, B] bool, [B] bool -> 0 to 1.

    This is how the paper's released code counts; NaN if no image is classified correctly. Source: Stutz et al., CVPR
    2019, released evaluation.
    """
    return float(success[:, correct].double().mean())


def success_worst(success: Tensor, correct: Tensor) -> float:
    """Correctly classified images that at least one restart fools: [R, B] bool, [B] bool -> 0 to 1; at least the
    average.
    """
    return float(success[:, correct].any(0).double().mean())


def interval(
    values: np.ndarray,
    statistic: Callable[..., np.ndarray] = np.nanmedian,
    *,
    resamples: int = 1_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A statistic over seeds and images with its bootstrap interval: [S, B] -> (value, low, high).

    Seeds and images are drawn with replacement, each on its own, since every seed sees the same images (the
    pigeonhole bootstrap; Owen, 2007). NaN marks an image that does not count for a seed. statistic: of an array along
    axis=-1, ignoring NaN. NaN three times if nothing counts.
    """
    if not np.isfinite(values).any():
        return (np.nan, np.nan, np.nan)
    random = np.random.default_rng(seed)
    seeds, images = values.shape
    row = random.integers(seeds, size=(resamples, seeds, 1))
    column = random.integers(images, size=(resamples, 1, images))
    found: list[float] = []
    for part in np.array_split(np.arange(resamples), 20):  # in parts, to bound the memory
        drawn = values[row[part], column[part]].reshape(len(part), -1)
        found += statistic(drawn[np.isfinite(drawn).any(1)], axis=-1).tolist()
    tail = 50 * (1 - level)
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(statistic(values.reshape(-1), axis=-1)), float(low), float(high)
