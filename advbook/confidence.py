"""Confidence-thresholded evaluation: how often does a classifier err that may reject what it is not sure of?

Plain arrays in, plain numbers out: probabilities p [..., N, K] and labels y [N] of any model. Only NumPy is needed. A
threshold tau accepts an image whose confidence c(x) = max_k p_k(x) is at least tau. tau = 0 accepts everything and
gives the ordinary errors.

The definitions are those of the released evaluation of confidence-calibrated adversarial training (Stutz et al., ICML
2020), unless a docstring says otherwise; where one may well disagree with them, a variant stands beside under a name of
its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
ROUNDING = 1e-3  # by how much probabilities may miss the sum of one: half precision rounds that much


class Answers(NamedTuple):
    """What a classifier says of N images: its confidence in [0, 1] and whether it is right, [N] each.

    `answers` gives [..., N] for [..., N, K]; all else here takes one row of them at a time.
    """

    confidence: Floats
    correct: Bools


class Counts(NamedTuple):
    """A rate before it is divided: which images are errors, and which count, [..., N] each; errors count."""

    errors: Bools
    counted: Bools

    def rate(self) -> Floats:
        """Errors by counted images, over the last axis; NaN where nothing counts (all is rejected, say)."""
        counted = self.counted.sum(-1)
        empty = np.full(counted.shape, np.nan)
        return np.asarray(np.divide(self.errors.sum(-1), counted, out=empty, where=counted > 0))


# --- what the model says --------------------------------------------------------------------------------------------


def answers(p: ArrayLike, y: ArrayLike) -> Answers:
    """Confidences, and whether the likeliest class is the label.

    p: [..., N, K]; y: [N]. Raises ValueError if p is no array of probabilities that sum to one (NaN included), if there
    are no images, or if y does not fit.
    """
    probabilities, labels = _checked(p, y)
    return Answers(probabilities.max(-1), probabilities.argmax(-1) == labels)


def worst_attempts(attempts: Sequence[ArrayLike], y: ArrayLike, *, errors_first: bool = False) -> NDArray[np.int64]:
    """For every image the number of its worst attempt: [N], counted through all restarts of all attacks.

    attempts: one or more arrays [R, N, K] or [N, K], each an attack with its restarts, all on the same N images; y:
    [N]. The worst is the one of largest confidence in a wrong class, max_{k != y} p_k, as released. Below one half such
    an attempt may be no error while another one is. errors_first: among the attempts that are errors the most confident
    one, if there are any: no other choice makes more errors, whatever the threshold. Raises ValueError for no attempts,
    for attempts on different numbers of images or classes, and as `answers` does.
    """
    p, labels = _runs(attempts, y)
    others = np.where(np.arange(p.shape[2]) == labels[:, None], -np.inf, p).max(-1)  # [R, N]
    rank = others + 2 * ((p.argmax(-1) != labels) & errors_first)
    return np.asarray(rank.argmax(0))


def worst_case(attempts: Sequence[ArrayLike], y: ArrayLike, *, errors_first: bool = False) -> Floats:
    """What the classifier says of every image's worst attempt: probabilities [N, K]; arguments as in worst_attempts."""
    p, _ = _runs(attempts, y)
    return np.asarray(p[worst_attempts(attempts, y, errors_first=errors_first), np.arange(p.shape[1])])


def _runs(attempts: Sequence[ArrayLike], y: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    """All restarts of all attacks, [R, N, K], and the labels."""
    if not len(attempts):
        raise ValueError("attempts = []: allowed is one attack or more.")
    each = [_checked(p, y, name=f"attempts[{i}]") for i, p in enumerate(attempts)]
    runs = [p.reshape(-1, *p.shape[-2:]) for p, _ in each]
    if len({run.shape[2] for run in runs}) > 1:
        raise ValueError(f"attempts: their classes are {[run.shape[2] for run in runs]}; allowed is one number.")
    return np.concatenate(runs), each[0][1]


# --- the threshold --------------------------------------------------------------------------------------------------


def threshold(held_out: Answers, tpr: float = 0.99) -> float:
    """The tau that accepts a share `tpr` of the correctly classified held-out images: a true-positive rate.

    held_out: [N], images that are used for nothing else; tpr: in (0, 1]. tau is the smallest confidence of correct
    images but floor(n (1 - tpr)) of them, n their number. The released code rounds 1 - tpr to two digits, so that its
    99.5 % is 99 %; here it is exact. Raises ValueError for a tpr out of range, or if no image is correct.
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr = {tpr}: allowed are rates above 0, up to 1.")
    _single(held_out, "held_out")
    sure = np.sort(held_out.confidence[held_out.correct])
    if not len(sure):
        raise ValueError(f"held_out: none of {held_out.correct.size} examples is correct; allowed is one or more.")
    return float(sure[math.floor(len(sure) * (1 - Fraction(str(tpr))))])


# --- errors among what is accepted ------------------------------------------------------------------------------------


def error_counts(clean: Answers, tau: ArrayLike) -> Counts:
    """Err(tau) before it is divided: wrong and accepted by accepted. tau: [...], the counts [..., N]."""
    accepted = _accepted(clean, tau)
    return Counts(~clean.correct & accepted, accepted)


def robust_error_counts(clean: Answers, attacked: Answers, tau: ArrayLike) -> Counts:
    """RErr(tau) before it is divided: max(1[x wrong, accepted], 1[x~ wrong, accepted]) by max(1[x accepted],
    1[x~ accepted]).

    clean, attacked: [N], the same images and the worst case of the attacks on them.
    """
    _same(clean, attacked)
    one, other = error_counts(clean, tau), error_counts(attacked, tau)
    return Counts(one.errors | other.errors, one.counted | other.counted)


def alternative_robust_error_counts(clean: Answers, attacked: Answers, tau: ArrayLike) -> Counts:
    """A variant of RErr(tau) that lets an attack count on correct images alone.

    Errors: x wrong and accepted, or x correct and x~ wrong and accepted. Counted: x accepted, or x rejected but correct
    and its x~ wrong and accepted. Source: the "alternative" in the released code of Stutz et al., ICML 2020.
    """
    _same(clean, attacked)
    one = error_counts(clean, tau)
    fooled = clean.correct & error_counts(attacked, tau).errors
    return Counts(one.errors | fooled, one.counted | fooled)


def error(clean: Answers, tau: ArrayLike) -> Floats:
    """Err(tau): errors among accepted images, as tau: [...]; NaN where all are rejected."""
    return error_counts(clean, tau).rate()


def robust_error(clean: Answers, attacked: Answers, tau: ArrayLike) -> Floats:
    """RErr(tau), see robust_error_counts; RErr(0) is the ordinary robust error."""
    return robust_error_counts(clean, attacked, tau).rate()


def alternative_robust_error(clean: Answers, attacked: Answers, tau: ArrayLike) -> Floats:
    """The variant of RErr(tau), see alternative_robust_error_counts."""
    return alternative_robust_error_counts(clean, attacked, tau).rate()


# --- accepting and rejecting ------------------------------------------------------------------------------------------


def true_positive_rate(clean: Answers, tau: ArrayLike) -> Floats:
    """The share of correct images that are accepted: NaN without any."""
    accepted = _accepted(clean, tau)
    return Counts(accepted & clean.correct, np.broadcast_to(clean.correct, accepted.shape)).rate()


def acceptance(given: Answers, tau: ArrayLike) -> Floats:
    """The share of all images that are accepted, right or wrong: of clean ones the released true-positive rate of
    attacks' evaluations, of noise (distal examples) their false-positive rate.
    """
    return np.asarray(_accepted(given, tau).mean(-1))


def false_positive_rate(clean: Answers, attacked: Answers, tau: ArrayLike) -> Floats:
    """The share of all attacked images that are correct when clean, and wrong and accepted when attacked."""
    _same(clean, attacked)
    return np.asarray((clean.correct & error_counts(attacked, tau).errors).mean(-1))


def rejection_counts(clean: Answers, attacked: Answers, tau: ArrayLike) -> Counts:
    """Of the correct and accepted images, those that an attack makes the classifier reject.

    attacked: the attempts of least confidence in any class. A small perturbation that is rejected is an error of its
    own kind: nobody is fooled, but the image is lost. Source: the criticism of Chen et al., ICML 2023 (stratified
    rejection).
    """
    _same(clean, attacked)
    kept = _accepted(clean, tau) & clean.correct
    return Counts(kept & ~_accepted(attacked, tau), kept)


def roc_auc(clean: Answers, attacked: Answers, *, correct_only: bool = False) -> float:
    """The area under the curve of true against false positives: the chance that a clean image is more confident than a
    successful adversarial example (one half for ties).

    Negatives: adversarial examples that are wrong where the clean image is correct. Positives: all clean images, as
    released, or with correct_only the correct ones. 1 if there are no negatives, as released; NaN without positives.
    """
    _same(clean, attacked)
    negatives = np.sort(attacked.confidence[clean.correct & ~attacked.correct])
    positives = clean.confidence[clean.correct] if correct_only else clean.confidence
    if not len(positives):
        return math.nan
    if not len(negatives):
        return 1.0
    below, up_to = (np.searchsorted(negatives, positives, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(negatives)))


# --- intervals --------------------------------------------------------------------------------------------------------


def interval(
    counts: Counts, *, level: float = 0.95, resamples: int = 1_000, seed: int = 0
) -> tuple[float, float, float]:
    """A rate with its bootstrap interval over images: (value, low, high); counts of one threshold, [N] each.

    Images are drawn with replacement; draws that count nothing are left out. NaN three times if nothing counts. The
    threshold is taken as given: its own uncertainty is not part of the interval.
    """
    if not counts.counted.any():
        return (math.nan, math.nan, math.nan)
    size = len(counts.counted)
    weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=resamples)
    top, bottom = weights @ counts.errors, weights @ counts.counted
    tail = 50 * (1 - level)
    low, high = np.percentile(top[bottom > 0] / bottom[bottom > 0], [tail, 100 - tail])
    return float(counts.rate()), float(low), float(high)


# --- checks -----------------------------------------------------------------------------------------------------------


def _accepted(given: Answers, tau: ArrayLike) -> Bools:
    """[...] thresholds, [N] confidences -> [..., N]."""
    _single(given, "answers")
    taus = np.asarray(tau, dtype=float)
    if not np.isfinite(taus).all():
        raise ValueError(f"tau = {tau!r}: allowed are finite numbers.")
    return np.asarray(given.confidence >= taus[..., None])


def _single(given: Answers, name: str) -> None:
    if given.confidence.ndim != 1:
        raise ValueError(f"{name}: its shape is {list(given.confidence.shape)}; allowed is [N], one row at a time.")


def _same(clean: Answers, attacked: Answers) -> None:
    if clean.correct.shape != attacked.correct.shape:
        raise ValueError(
            f"attacked: it has {list(attacked.correct.shape)} examples; allowed are as many as clean ones, "
            f"{list(clean.correct.shape)}."
        )


def _checked(p: ArrayLike, y: ArrayLike, *, name: str = "p") -> tuple[Floats, NDArray[np.int64]]:
    try:
        probabilities, labels = np.asarray(p, dtype=float), np.asarray(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: it cannot be read as an array of numbers ({error}).") from None
    if probabilities.ndim < 2 or 0 in probabilities.shape:
        raise ValueError(
            f"{name}: its shape is {list(probabilities.shape)}; allowed is [..., N, K] with N, K at least 1."
        )
    _require(np.isfinite(probabilities), probabilities, name, "finite numbers")
    _require((probabilities >= -ROUNDING) & (probabilities <= 1 + ROUNDING), probabilities, name, "numbers from 0 to 1")
    sums = probabilities.sum(-1)
    _require(abs(sums - 1) <= ROUNDING, sums, f"the sums of {name} over the classes", "1")
    count, classes = probabilities.shape[-2:]
    if labels.shape != (count,):
        raise ValueError(
            f"y: its shape is {list(labels.shape)}; allowed is [{count}], a label for each image of {name}."
        )
    if labels.dtype.kind not in "iu":
        raise ValueError(f"y: its type is {labels.dtype}; allowed are whole numbers.")
    _require((labels >= 0) & (labels < classes), labels, "y", f"labels from 0 to {classes - 1}")
    return probabilities, labels.astype(np.int64)


def _require(right: Bools, values: NDArray[Any], name: str, allowed: str) -> None:
    wrong = values[~right]
    if wrong.size:
        raise ValueError(f"{name}: {wrong.flat[0]:g} stands there ({wrong.size} of {values.size}); allowed: {allowed}.")
