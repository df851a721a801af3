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


BLOCKS = 25


def block_counts(counted: np.ndarray, blocks: int = BLOCKS) -> list[float]:
    """Sums over blocks of neighbouring images: [B] or [R, B] -> `blocks` numbers.

    Neighbouring images of FONTS show the same font, so a bootstrap over blocks respects that they are alike. Blocks
    differ by at most one image. With restarts the sums are over the pairs.
    """
    parts = np.array_split(np.asarray(counted, dtype=float), blocks, axis=-1)
    return [float(part.sum()) for part in parts]


def resampled_rates(
    *tables: tuple[np.ndarray, np.ndarray], resamples: int = 1_000, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Rates sum(hits) / sum(counted) over seeds and blocks, and the same for bootstrap resamples of both.

    tables: each (hits, counted), [P, S, K] for P points, S seeds and K blocks of one set of images; all tables share
    the seeds, each has images of its own. Returns [P, 1 + resamples] for each: the rate itself comes first. Seeds and
    blocks are drawn with replacement, the same ones for all points, since a seed means the same initialization
    everywhere and all points see the same images: a statistic that compares points, computed column by column, is
    compared within one draw. NaN where nothing is counted. Source: the pigeonhole bootstrap (Owen, 2007).
    """
    random = np.random.default_rng(seed)

    def weights(size: int) -> np.ndarray:
        drawn = random.multinomial(size, np.full(size, 1 / size), size=resamples)
        return np.concatenate([np.ones((1, size)), drawn])  # [1 + R, size]

    by_seed = weights(tables[0][0].shape[1])
    rates = []
    for hits, counted in tables:
        by_block = weights(hits.shape[2])
        top, bottom = (np.einsum("rs,psk,rk->pr", by_seed, part, by_block, optimize=True) for part in (hits, counted))
        with np.errstate(invalid="ignore", divide="ignore"):
            rates.append(np.where(bottom > 0, top / bottom, np.nan))
    return tuple(rates)


def percentiles(statistic: np.ndarray, *, level: float = 0.95) -> tuple[float, float, float]:
    """(value, low, high) of a statistic of resampled rates: [1 + R], the value itself first; NaN where it is NaN."""
    drawn = statistic[1:][np.isfinite(statistic[1:])]
    if not np.isfinite(statistic[0]) or not len(drawn):
        return (np.nan, np.nan, np.nan)
    tail = 50 * (1 - level)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(statistic[0]), float(low), float(high)
