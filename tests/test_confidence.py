"""advbook.confidence: seven images counted by hand, a plain loop over the formulas, invariances, bad input."""

import ast
import math
import subprocess
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from advbook import confidence
from advbook.confidence import (
    Answers,
    Counts,
    acceptance,
    alternative_robust_error,
    alternative_robust_error_counts,
    answers,
    error,
    error_counts,
    false_positive_rate,
    interval,
    rejection_counts,
    robust_error,
    robust_error_counts,
    roc_auc,
    threshold,
    true_positive_rate,
    worst_case,
)

# --- seven images, by hand ------------------------------------------------------------------------------------------

LABELS = [0, 1, 2, 0, 1, 2, 0]
CLEAN = [  # confidence, right
    [0.90, 0.06, 0.04],  # .90 yes
    [0.05, 0.80, 0.15],  # .80 yes
    [0.10, 0.20, 0.70],  # .70 yes
    [0.30, 0.60, 0.10],  # .60 no
    [0.25, 0.50, 0.25],  # .50 yes
    [0.55, 0.25, 0.20],  # .55 no
    [0.45, 0.30, 0.25],  # .45 yes
]
ATTACKED = [
    [0.20, 0.75, 0.05],  # .75 no: fooled
    [0.05, 0.80, 0.15],  # .80 yes: the attack found nothing
    [0.50, 0.20, 0.30],  # .50 no: fooled
    [0.05, 0.95, 0.00],  # .95 no: wrong before
    [0.10, 0.85, 0.05],  # .85 yes: more confident than before
    [0.40, 0.35, 0.25],  # .40 no: wrong before
    [0.10, 0.25, 0.65],  # .65 no: fooled, and more confident than before
]
NOTHING = (0, 0)  # counted: no rate
# tau, accepted: clean, attacked                Err     RErr    other   FPR     TPR     clean   attacked  rejected
BY_HAND = {
    0.00: ((0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 4, 5, 6),
           (2, 7), (5, 7), (5, 7), (3, 7), (5, 5), (7, 7), (7, 7), (0, 5)),
    0.55: ((0, 1, 2, 3, 5), (0, 1, 3, 4, 6),  # image 5 has this confidence and is accepted
           (2, 5), (4, 7), (4, 6), (2, 7), (3, 5), (5, 7), (5, 7), (1, 3)),
    0.65: ((0, 1, 2), (0, 1, 3, 4, 6),
           (0, 3), (3, 6), (2, 4), (2, 7), (3, 5), (3, 7), (5, 7), (1, 3)),
    0.72: ((0, 1), (0, 1, 3, 4),
           (0, 2), (2, 4), (1, 2), (1, 7), (2, 5), (2, 7), (4, 7), (0, 2)),
    0.85: ((0,), (3, 4),
           (0, 1), (1, 3), (0, 1), (0, 7), (1, 5), (1, 7), (2, 7), (1, 1)),
    0.92: ((), (3,),
           NOTHING, (1, 1), NOTHING, (0, 7), (0, 5), (0, 7), (1, 7), NOTHING),
    0.96: ((), (), NOTHING, NOTHING, NOTHING, (0, 7), (0, 5), (0, 7), (0, 7), NOTHING),
}  # fmt: skip
RATES = {
    "Err": lambda clean, attacked, tau: error(clean, tau),
    "RErr": robust_error,
    "the alternative": alternative_robust_error,
    "FPR": false_positive_rate,
    "TPR": lambda clean, attacked, tau: true_positive_rate(clean, tau),
    "accepted": lambda clean, attacked, tau: acceptance(clean, tau),
    "accepted of the attacked": lambda clean, attacked, tau: acceptance(attacked, tau),
    "rejected": lambda clean, attacked, tau: rejection_counts(clean, attacked, tau).rate(),
}
COUNTS = {
    "Err": lambda clean, attacked, tau: error_counts(clean, tau),
    "RErr": robust_error_counts,
    "the alternative": alternative_robust_error_counts,
    "rejected": rejection_counts,
}


def seven():
    return answers(CLEAN, LABELS), answers(ATTACKED, LABELS)


def divided(top, bottom):
    return top / bottom if bottom else math.nan


def test_confidences_and_what_is_right_are_read_off():
    clean, attacked = seven()
    assert clean.confidence.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5, 0.55, 0.45]
    assert clean.correct.tolist() == [True, True, True, False, True, False, True]
    assert attacked.confidence.tolist() == [0.75, 0.8, 0.5, 0.95, 0.85, 0.4, 0.65]
    assert attacked.correct.tolist() == [False, True, False, False, True, False, False]


@pytest.mark.parametrize("tau", BY_HAND)
def test_every_rate_of_seven_images_is_the_one_counted_by_hand(tau):
    accepted, accepted_attacked, *counted = BY_HAND[tau]
    clean, attacked = seven()
    assert np.flatnonzero(error_counts(clean, tau).counted).tolist() == list(accepted)
    assert np.flatnonzero(error_counts(attacked, tau).counted).tolist() == list(accepted_attacked)
    for (name, rate), (top, bottom) in zip(RATES.items(), counted, strict=True):
        assert float(rate(clean, attacked, tau)) == pytest.approx(divided(top, bottom), nan_ok=True), name
        if name in COUNTS:
            counts = COUNTS[name](clean, attacked, tau)
            assert (counts.errors.sum(), counts.counted.sum()) == (top, bottom), name


def test_the_counted_images_are_the_ones_of_the_formulas():
    clean, attacked = seven()
    for counts, errors, counted in (
        (robust_error_counts(clean, attacked, 0.65), [0, 3, 6], [0, 1, 2, 3, 4, 6]),
        (alternative_robust_error_counts(clean, attacked, 0.65), [0, 6], [0, 1, 2, 6]),  # 6: rejected, correct, fooled
        (rejection_counts(clean, attacked, 0.65), [2], [0, 1, 2]),
    ):
        assert np.flatnonzero(counts.errors).tolist() == errors
        assert np.flatnonzero(counts.counted).tolist() == counted


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    """Fooled are the images 0, 2 and 6, with confidences .75, .5 and .65: below them lie 2, 5 + 1/2 and 3 of the seven
    clean ones (a tie is one half), and 2, 3 + 1/2 and 3 of the five correct ones.
    """
    clean, attacked = seven()
    assert roc_auc(clean, attacked) == pytest.approx(10.5 / 21)
    assert roc_auc(clean, attacked, correct_only=True) == pytest.approx(8.5 / 15)


def test_the_curve_without_negatives_is_perfect_and_without_positives_there_is_none():
    clean, _ = seven()
    assert roc_auc(clean, clean) == 1
    none = Answers(clean.confidence, np.zeros(7, dtype=bool))
    assert roc_auc(none, none) == 1
    assert math.isnan(roc_auc(none, none, correct_only=True))


# --- the threshold --------------------------------------------------------------------------------------------------


def held(confidences, correct=None):
    confidences = np.asarray(confidences, dtype=float)
    return Answers(confidences, np.ones(len(confidences), dtype=bool) if correct is None else np.asarray(correct))


THRESHOLDS = [  # correct images, rate, how many of them lie below the threshold
    (200, 0.99, 2), (200, 0.995, 1), (200, 0.95, 10), (200, 0.98, 4), (200, 1.0, 0), (200, 1, 0),
    (1000, 0.99, 10), (1000, 0.995, 5), (1000, 0.95, 50), (1000, 0.9, 100), (1000, 1.0, 0),
    (10, 0.99, 0), (10, 0.995, 0), (10, 0.95, 0), (10, 0.9, 1), (10, 0.8, 2), (10, 1.0, 0), (10, 0.1, 9),
    (199, 0.995, 0), (201, 0.995, 1), (1, 0.01, 0), (1, 1.0, 0), (7, 1e-9, 6),
]  # fmt: skip


@pytest.mark.parametrize(("count", "rate", "below"), THRESHOLDS)
def test_the_threshold_leaves_out_exactly_so_many_correct_images(count, rate, below):
    order = np.random.default_rng(0).permutation(count)
    given = held((1.0 + order) / (count + 1))
    tau = threshold(given, rate)
    assert tau == (1.0 + below) / (count + 1)
    assert (given.confidence < tau).sum() == below


def test_these_counts_tell_an_exact_product_from_a_rounded_one():
    """Some of the cases above come out wrong with floor(n (1 - q)) in floating point, and with 1 - q rounded."""
    assert any(math.floor(count * (1 - rate)) != below for count, rate, below in THRESHOLDS)
    assert any(math.floor(count * round(1 - rate, 2)) != below for count, rate, below in THRESHOLDS)


def test_the_threshold_of_99_percent_is_the_default_and_wrong_images_do_not_count():
    sure = np.linspace(0.5, 0.9, 200)
    wrong = np.linspace(0.1, 0.99, 77)
    both = held([*wrong, *sure], [False] * 77 + [True] * 200)
    assert threshold(both) == threshold(held(sure)) == threshold(both, 0.99) == sure[2]
    assert threshold(both, 0.995) == sure[1]


@pytest.mark.parametrize("kind", [float, np.float64, np.float32])
def test_a_rate_means_the_same_as_any_kind_of_number(kind):
    given = held(np.linspace(0.1, 0.9, 10))
    assert threshold(given, kind(0.9)) == given.confidence[1]


@given(st.integers(1, 40), st.integers(1, 1000), st.integers(0, 999))
def test_the_threshold_is_the_largest_one_that_accepts_the_share(count, thousandths, seed):
    random = np.random.default_rng(seed)
    sure, correct = random.integers(1, 13, count) / 12, random.random(count) < 0.7
    assume(correct.any())
    given, rate, share = held(sure, correct), thousandths / 1000, Fraction(thousandths, 1000)
    tau = threshold(given, rate)
    assert Fraction(int((sure[correct] >= tau).sum()), int(correct.sum())) >= share
    assert Fraction(int((sure[correct] > tau).sum()), int(correct.sum())) < share
    assert true_positive_rate(given, tau) >= rate - 1e-12


def test_a_threshold_accepts_the_image_it_was_read_from():
    """In half precision too: the comparison is made in the numbers the threshold was made of."""
    p = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)).softmax(1)
    for one in (answers(p.half(), p.argmax(1)), answers(p, p.argmax(1))):
        assert acceptance(one, threshold(one, 1.0)) == 1
        assert acceptance(one, threshold(one, 0.9)) == 0.9


# --- against a plain loop, and against scikit-learn -----------------------------------------------------------------


def case(images, classes, attempts, seed):
    """Labels, clean probabilities and some attempts; in eighths, so that there are ties and exact sums."""
    random = np.random.default_rng(seed)

    def probabilities():
        cuts = np.sort(random.integers(0, 9, (images, classes - 1)), 1)
        edges = np.concatenate([np.zeros((images, 1)), cuts, np.full((images, 1), 8)], 1)
        return np.diff(edges, axis=1) / 8

    return random.integers(0, classes, images), probabilities(), [probabilities() for _ in range(attempts)]


def cases(least=1, most=8, attempts=1):
    sizes = st.integers(least, most), st.integers(2, 4), st.just(attempts), st.integers(0, 999)
    return st.tuples(*sizes).map(lambda sizes: case(*sizes))


TAUS = [0.0, 0.25, 0.3, 0.375, 0.5, 0.6, 0.625, 0.75, 0.9, 1.0, 1.1]
taus = st.sampled_from(TAUS)


def plainly(y, clean, attacked, tau):
    """Every rate as (numerator, denominator), image by image."""
    sums = {name: [0, 0] for name in RATES}

    def add(name, top, bottom):
        sums[name][0] += int(top)
        sums[name][1] += int(bottom)

    for label, p, q in zip(y.tolist(), clean.tolist(), attacked.tolist(), strict=True):
        right, right_attacked = p.index(max(p)) == label, q.index(max(q)) == label
        taken, taken_attacked = max(p) >= tau, max(q) >= tau
        fooled = right and not right_attacked and taken_attacked
        add("Err", not right and taken, taken)
        add("RErr", max(not right and taken, not right_attacked and taken_attacked), max(taken, taken_attacked))
        add("the alternative", (not right and taken) or fooled, taken or fooled)
        add("FPR", fooled, True)
        add("TPR", right and taken, right)
        add("accepted", taken, True)
        add("accepted of the attacked", taken_attacked, True)
        add("rejected", right and taken and not taken_attacked, right and taken)
    return sums


@settings(max_examples=200)
@given(cases(), taus)
def test_every_rate_is_that_of_a_plain_loop_over_the_images(case, tau):
    y, clean, (attacked,) = case
    one, other = answers(clean, y), answers(attacked, y)
    for name, (top, bottom) in plainly(y, clean, attacked, tau).items():
        assert float(RATES[name](one, other, tau)) == pytest.approx(divided(top, bottom), nan_ok=True), name


@settings(max_examples=150)
@given(cases(least=2, most=12), st.booleans())
def test_the_area_is_that_of_scikit_learn(case, correct_only):
    y, clean, (attacked,) = case
    one, other = answers(clean, y), answers(attacked, y)
    negatives = other.confidence[one.correct & ~other.correct]
    positives = one.confidence[one.correct] if correct_only else one.confidence
    assume(len(negatives))
    truth = [1] * len(positives) + [0] * len(negatives)
    expected = roc_auc_score(truth, np.concatenate([positives, negatives]))
    assert roc_auc(one, other, correct_only=correct_only) == pytest.approx(expected)


def worst_by_hand(y, attempts, errors_first):
    chosen = []
    for index, label in enumerate(y.tolist()):
        rows = [attempt[index].tolist() for attempt in attempts]
        if errors_first:
            rows = [row for row in rows if row.index(max(row)) != label] or rows
        chosen.append(max(rows, key=lambda row: max(p for k, p in enumerate(row) if k != label)))
    return np.array(chosen)


@settings(max_examples=150)
@given(cases(attempts=4), st.booleans())
def test_the_worst_case_is_that_of_a_plain_loop(case, errors_first):
    y, _, attempts = case
    found = worst_case(attempts, y, errors_first=errors_first)
    np.testing.assert_array_equal(found, worst_by_hand(y, attempts, errors_first))  # the first of equals in both


# --- what must not change ---------------------------------------------------------------------------------------------


def all_rates(clean, attacked, tau):
    return {name: np.asarray(rate(clean, attacked, tau)) for name, rate in RATES.items()} | {
        "area": np.asarray(roc_auc(clean, attacked)),
        "area of the correct": np.asarray(roc_auc(clean, attacked, correct_only=True)),
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(other[name], one[name], atol=1e-12, rtol=0, err_msg=name)


def taken(given, rows):
    return Answers(given.confidence[rows], given.correct[rows])


@given(cases(), taus, st.integers(0, 99))
def test_the_order_of_the_images_does_not_matter(case, tau, seed):
    y, clean, (attacked,) = case
    order = np.random.default_rng(seed).permutation(len(y))
    one, other = answers(clean, y), answers(attacked, y)
    moved = answers(clean[order], y[order]), answers(attacked[order], y[order])
    assert_same(all_rates(one, other, tau), all_rates(*moved, tau))
    if one.correct.any():
        assert threshold(moved[0], 0.7) == threshold(one, 0.7)
    np.testing.assert_array_equal(worst_case([attacked, clean], y)[order],
                                  worst_case([attacked[order], clean[order]], y[order]))  # fmt: skip


@given(cases(), taus, st.sampled_from([np.square, np.sqrt, lambda c: 3 * c - 7, lambda c: np.log(c + 1e-3)]))
def test_only_the_order_of_the_confidences_matters(case, tau, rising):
    """Confidences and threshold together may be replaced by any strictly rising function of them."""
    y, clean, (attacked,) = case
    one, other = answers(clean, y), answers(attacked, y)
    risen = [given._replace(confidence=rising(given.confidence)) for given in (one, other)]
    assert_same(all_rates(one, other, tau), all_rates(*risen, rising(np.float64(tau))))
    if one.correct.any():
        assert threshold(risen[0], 0.6) == rising(np.float64(threshold(one, 0.6)))


@given(cases())
def test_a_threshold_of_zero_gives_the_ordinary_errors(case):
    y, clean, (attacked,) = case
    one, other = answers(clean, y), answers(attacked, y)
    wrong, wrong_attacked = clean.argmax(1) != y, attacked.argmax(1) != y
    for tau in (0.0, one.confidence.min(), -3.0):
        if (other.confidence >= tau).all():
            assert error(one, tau) == pytest.approx(wrong.mean())
            assert robust_error(one, other, tau) == pytest.approx((wrong | wrong_attacked).mean())
            assert alternative_robust_error(one, other, tau) == pytest.approx((wrong | wrong_attacked).mean())
            assert true_positive_rate(one, tau) == pytest.approx(math.nan if wrong.all() else 1, nan_ok=True)
    assert roc_auc(one, one) == 1


@given(cases())
def test_many_thresholds_are_as_one_by_one(case):
    y, clean, (attacked,) = case
    one, other = answers(clean, y), answers(attacked, y)
    for name, rate in RATES.items():
        together = rate(one, other, TAUS)
        assert together.shape == (len(TAUS),)
        np.testing.assert_array_equal(together, [float(rate(one, other, tau)) for tau in TAUS], err_msg=name)
        table = rate(one, other, np.array(TAUS[:6]).reshape(2, 3))
        np.testing.assert_array_equal(table, together[:6].reshape(2, 3), err_msg=name)
    for counts in COUNTS.values():
        assert counts(one, other, TAUS).errors.shape == (len(TAUS), len(y))


@settings(max_examples=200)
@given(cases(), taus)
def test_which_error_is_the_larger_one(case, tau):
    """RErr counts every error of Err, but may lie below it, where an image that was rejected is accepted and right
    after the attack; without such images it does not. The alternative never lies below Err. Its errors are among those
    of RErr, though either rate may be the larger one.
    """
    y, clean, (attacked,) = case
    one, other = answers(clean, y), answers(attacked, y)
    plain, robust = error_counts(one, tau), robust_error_counts(one, other, tau)
    third = alternative_robust_error_counts(one, other, tau)
    for small, large in ((plain, third), (third, robust)):
        assert (large.errors | ~small.errors).all()
        assert (large.counted | ~small.counted).all()
    for counts in (plain, third, robust):
        assert (counts.counted | ~counts.errors).all()
    assert not plain.rate() > third.rate() + 1e-12
    saved = ~plain.counted & other.correct & (other.confidence >= tau)
    if not saved.any():
        assert not plain.rate() > robust.rate() + 1e-12


def test_the_robust_error_can_lie_below_the_error_and_below_or_above_the_alternative():
    def rates(clean, attacked, y, tau=0.7):
        one, other = answers(clean, y), answers(attacked, y)
        return [float(rate(one, other, tau)) for rate in list(RATES.values())[:3]]

    sure, wrong, unsure = [0.9, 0.1], [0.1, 0.9], [0.6, 0.4]
    assert rates([wrong, unsure], [wrong, sure], [0, 0]) == [1, 0.5, 1]
    assert rates([sure, [0.4, 0.6]], [sure, wrong], [0, 0]) == [0, 0.5, 0]


@given(cases())
def test_no_threshold_accepts_more_than_a_lower_one(case):
    y, clean, (attacked,) = case
    one, other = answers(clean, y), answers(attacked, y)
    for name in ("FPR", "TPR", "accepted", "accepted of the attacked"):
        rates = RATES[name](one, other, TAUS)
        assert np.isnan(rates).all() or (np.diff(rates) <= 0).all(), name


def test_answers_of_restarts_are_those_of_each():
    both = answers([CLEAN, ATTACKED], LABELS)
    assert both.confidence.shape == (2, 7)
    for row, one in enumerate(seven()):
        np.testing.assert_array_equal(both.confidence[row], one.confidence)
        np.testing.assert_array_equal(both.correct[row], one.correct)


# --- the worst of many attempts -------------------------------------------------------------------------------------


def test_below_one_half_the_most_confident_wrong_class_need_not_be_an_error():
    """Three classes, label 0: .44 in a wrong class beside .46 in the right one, against an error of .40."""
    right, wrong = [0.46, 0.44, 0.10], [0.35, 0.40, 0.25]
    assert worst_case([[right], [wrong]], [0]).tolist() == [right]
    assert worst_case([[right], [wrong]], [0], errors_first=True).tolist() == [wrong]
    clean = answers([[0.9, 0.1, 0.0]], [0])
    for tau, plain, first in ((0.3, 0, 1), (0.4, 0, 1), (0.43, 0, 0)):
        assert robust_error(clean, answers(worst_case([[right], [wrong]], [0]), [0]), tau) == plain
        assert robust_error(clean, answers(worst_case([[right], [wrong]], [0], errors_first=True), [0]), tau) == first


@given(cases(), st.booleans())
def test_the_worst_of_one_attempt_is_that_attempt(case, errors_first):
    y, _, (attempt,) = case
    np.testing.assert_array_equal(worst_case([attempt], y, errors_first=errors_first), attempt)
    np.testing.assert_array_equal(worst_case([attempt, attempt], y, errors_first=errors_first), attempt)


def rank(p, y):
    """Whether an image is an error, and the largest confidence in a wrong class: what the worst case compares."""
    others = np.where(np.arange(p.shape[1]) == y[:, None], -1, p).max(1)
    return p.argmax(1) != y, others


@given(cases(attempts=4), st.permutations(range(4)), st.booleans())
def test_the_order_of_the_attempts_does_not_matter_up_to_ties(case, order, errors_first):
    y, _, attempts = case
    one = worst_case(attempts, y, errors_first=errors_first)
    other = worst_case([attempts[index] for index in order], y, errors_first=errors_first)
    np.testing.assert_array_equal(rank(one, y)[1], rank(other, y)[1])
    if errors_first:
        np.testing.assert_array_equal(rank(one, y)[0], rank(other, y)[0])


@given(cases(attempts=4), st.booleans())
def test_attacks_with_restarts_are_as_many_attempts(case, errors_first):
    y, _, attempts = case
    worst = partial(worst_case, y=y, errors_first=errors_first)
    expected = worst(attempts)
    for grouped in (
        [np.stack(attempts)],
        [np.stack(attempts[:3]), attempts[3]],
        np.stack(attempts),
        [np.stack(attempts).reshape(2, 2, *attempts[0].shape)],
    ):
        np.testing.assert_array_equal(worst(grouped), expected)


@settings(max_examples=200)
@given(cases(attempts=3))
def test_errors_first_makes_the_most_errors_at_every_threshold(case):
    y, clean, attempts = case
    one = answers(clean, y)

    def errors(p):
        return robust_error_counts(one, answers(p, y), TAUS).errors

    most = errors(worst_case(attempts, y, errors_first=True))
    np.testing.assert_array_equal(most, np.any([errors(attempt) for attempt in attempts], axis=0))  # and no more
    assert (most | ~errors(worst_case(attempts, y))).all()
    fewer = errors(worst_case(attempts[:2], y, errors_first=True))
    assert (most | ~fewer).all(), "another attempt takes no error away"


def test_without_errors_first_another_attempt_can_take_an_error_away():
    right, wrong = [[0.46, 0.44, 0.10]], [[0.35, 0.40, 0.25]]
    clean = answers([[0.9, 0.1, 0.0]], [0])
    assert robust_error(clean, answers(worst_case([wrong], [0]), [0]), 0) == 1
    assert robust_error(clean, answers(worst_case([wrong, right], [0]), [0]), 0) == 0


@given(cases(attempts=3))
def test_above_one_half_both_kinds_of_worst_case_count_the_same_errors(case):
    y, clean, attempts = case
    one = answers(clean, y)
    found = [
        robust_error_counts(one, answers(worst_case(attempts, y, errors_first=first), y), [0.51, 0.6, 0.75, 1]).errors
        for first in (False, True)
    ]
    np.testing.assert_array_equal(*found)


# --- intervals ------------------------------------------------------------------------------------------------------


def counts(errors, counted):
    return Counts(np.asarray(errors, dtype=bool), np.asarray(counted, dtype=bool))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """A fifth of the accepted images, themselves two thirds of all, are errors."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(200):
        counted = random.random(150) < 2 / 3
        value, low, high = interval(counts(counted & (random.random(150) < 0.2), counted), resamples=300)
        assert low <= value <= high
        covered += low <= 0.2 <= high
    assert 180 <= covered <= 198


def test_the_interval_is_as_wide_as_the_binomials():
    value, low, high = interval(counts([1] * 60 + [0] * 140, [1] * 200), resamples=4_000)
    assert value == 0.3
    assert [low, high] == pytest.approx([0.3 - 1.96 * 0.0324, 0.3 + 1.96 * 0.0324], abs=0.012)
    _, lower, higher = interval(counts([1] * 60 + [0] * 140, [1] * 200), level=0.5)
    assert low < lower < value < higher < high


def test_images_that_do_not_count_widen_the_interval_only_as_fewer_images_do():
    few = interval(counts([1] * 15 + [0] * 35, [1] * 50), resamples=4_000)
    same = interval(counts([1] * 15 + [0] * 350, [1] * 50 + [0] * 315), resamples=4_000)
    assert few[0] == same[0] == 0.3
    assert same[2] - same[1] == pytest.approx(few[2] - few[1], rel=0.12)


def test_degenerate_intervals():
    assert interval(counts([1, 1, 1], [1, 1, 1])) == (1, 1, 1)
    assert interval(counts([0, 0, 0], [1, 1, 0])) == (0, 0, 0)
    assert interval(counts([1], [1])) == (1, 1, 1)
    assert interval(counts([0], [1])) == (0, 0, 0)
    for nothing in (counts([0], [0]), counts([0, 0], [0, 0])):
        assert np.isnan(interval(nothing)).all()


@pytest.mark.filterwarnings("error")
def test_draws_that_count_nothing_are_left_out():
    value, low, high = interval(counts([1, 0, 0, 0], [1, 0, 0, 0]))
    assert (value, low, high) == (1, 1, 1)


def test_a_seed_fixes_the_interval():
    counted = np.arange(40) % 5 > 0
    given = counts(counted & (np.arange(40) % 3 == 0), counted)
    np.random.seed(1)  # noqa: NPY002  (what the interval must not look at)
    one = interval(given, seed=4, resamples=200)
    np.random.seed(2)  # noqa: NPY002
    assert interval(given, seed=4, resamples=200) == one
    assert len({interval(given, seed=seed, resamples=200) for seed in range(6)}) > 1
    assert {interval(given, seed=seed, resamples=200)[0] for seed in range(6)} == {one[0]}


def test_the_interval_of_a_rate_belongs_to_that_rate():
    clean, attacked = seven()
    for make in COUNTS.values():
        found = make(clean, attacked, 0.55)
        assert interval(found)[0] == found.rate()


# --- one image, nothing accepted ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_one_image_and_no_image_accepted_are_no_warning():
    one = answers([[0.2, 0.8]], [1])
    assert error(one, 0.8) == 0
    assert np.isnan(error(one, 0.81))
    assert np.isnan(robust_error(one, one, [0.9, 0.95])).all()
    assert threshold(one) == 0.8
    assert np.isnan(true_positive_rate(answers([[0.2, 0.8]], [0]), 0.1))
    assert np.isnan(error(one, [0.5, 0.9])).tolist() == [False, True]


# --- what kinds of arrays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, np.float32, np.float16, np.float64, torch.float16, torch.float32, "tuple"])
def test_lists_arrays_and_tensors_give_the_same(kind):
    expected = all_rates(*seven(), TAUS)
    if kind is list:
        made, labels = (lambda p: p), LABELS
    elif kind == "tuple":
        made, labels = (lambda p: tuple(tuple(row) for row in p)), tuple(LABELS)
    elif isinstance(kind, torch.dtype):
        made, labels = (lambda p: torch.tensor(p, dtype=kind)), torch.tensor(LABELS)
    else:
        made, labels = (lambda p: np.array(p, dtype=kind)), np.array(LABELS, dtype=np.uint8)
    given = [answers(made(p), labels) for p in (CLEAN, ATTACKED)]
    assert all(one.confidence.dtype == np.float64 and one.correct.dtype == bool for one in given)
    np.testing.assert_allclose(given[0].confidence, [max(row) for row in CLEAN], atol=3e-4)
    shifted = [tau - 3e-4 for tau in TAUS]  # rounding may lift no image over a threshold, nor let it fall below one
    exact = all_rates(*seven(), shifted)
    assert_same(exact, all_rates(*given, shifted))
    assert_same({"area": expected["area"]}, {"area": np.asarray(roc_auc(*given))})
    np.testing.assert_allclose(worst_case([made(CLEAN), made(ATTACKED)], labels),
                               worst_case([CLEAN, ATTACKED], LABELS), atol=3e-4)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 1000.0])
def test_the_softmax_of_any_precision_passes_as_probabilities(dtype, classes, scale):
    logits = (scale * torch.randn(50, classes, generator=torch.Generator().manual_seed(0))).to(dtype)
    given = answers(logits.softmax(1), torch.zeros(50, dtype=torch.long))
    assert given.confidence.shape == (50,)
    assert (given.confidence <= 1.001).all()
    if classes == 1:
        assert given.correct.all()


# --- bad input ------------------------------------------------------------------------------------------------------

FINE = [[0.5, 0.5], [0.2, 0.8]]
BAD = {
    "a sum above one": (lambda: answers([[0.5, 0.5], [0.6, 0.5]], [0, 1]),
                        "the sums of p over the classes: 1.1 stands there (1 of 2); allowed: 1."),
    "a sum below one": (lambda: answers([[0.5, 0.49], [0.5, 0.5]], [0, 1]),
                        "the sums of p over the classes: 0.99 stands there (1 of 2); allowed: 1."),
    "logits": (lambda: answers([[3.0, -2.0], [0.0, 1.0]], [0, 1]),
               "p: 3 stands there (2 of 4); allowed: numbers from 0 to 1."),
    "NaN": (lambda: answers([[math.nan, 0.5], [0.5, 0.5]], [0, 1]),
            "p: nan stands there (1 of 4); allowed: finite numbers."),
    "infinity": (lambda: answers([[0.5, 0.5], [0.5, math.inf]], [0, 1]),
                 "p: inf stands there (1 of 4); allowed: finite numbers."),
    "a negative one": (lambda: answers([[-0.1, 1.1], [0.5, 0.5]], [0, 1]),
                       "p: -0.1 stands there (2 of 4); allowed: numbers from 0 to 1."),
    "no matrix": (lambda: answers([0.5, 0.5], [0]),
                  "p: its shape is [2]; allowed is [..., N, K] with N, K at least 1."),
    "no images": (lambda: answers(np.zeros((0, 3)), []),
                  "p: its shape is [0, 3]; allowed is [..., N, K] with N, K at least 1."),
    "no classes": (lambda: answers(np.zeros((2, 0)), [0, 0]),
                   "p: its shape is [2, 0]; allowed is [..., N, K] with N, K at least 1."),
    "a label too large": (lambda: answers(FINE, [0, 2]), "y: 2 stands there (1 of 2); allowed: labels from 0 to 1."),
    "a negative label": (lambda: answers(FINE, [-1, 1]), "y: -1 stands there (1 of 2); allowed: labels from 0 to 1."),
    "labels that are floats": (lambda: answers(FINE, [0.0, 1.0]), "y: its type is float64; allowed are whole numbers."),
    "labels that are masks": (lambda: answers(FINE, [True, False]), "y: its type is bool; allowed are whole numbers."),
    "too few labels": (lambda: answers(FINE, [0]), "y: its shape is [1]; allowed is [2], a label for each image of p."),
    "one-hot labels": (lambda: answers(FINE, [[1, 0], [0, 1]]),
                       "y: its shape is [2, 2]; allowed is [2], a label for each image of p."),
    "no attempts": (lambda: worst_case([], [0]), "attempts = []: allowed is one attack or more."),
    "attempts on fewer images": (lambda: worst_case([FINE, FINE[:1]], [0, 1]),
                                 "y: its shape is [2]; allowed is [1], a label for each image of attempts[1]."),
    "attempts with other classes": (lambda: worst_case([FINE, [[0.2, 0.3, 0.5]] * 2], [0, 1]),
                                    "attempts: their classes are [2, 3]; allowed is one number."),
    "an attempt of NaN": (lambda: worst_case([FINE, [[0.5, 0.5], [math.nan, 0.5]]], [0, 1]),
                          "attempts[1]: nan stands there (1 of 4); allowed: finite numbers."),
    "an attempt of no restarts": (lambda: worst_case([np.zeros((0, 2, 2))], [0, 1]),
                                  "attempts[0]: its shape is [0, 2, 2]; allowed is [..., N, K] with N, K at least 1."),
    "an attempt that does not sum to one": (
        lambda: worst_case([[[0.5, 0.6], [0.5, 0.5]]], [0, 1]),
        "the sums of attempts[0] over the classes: 1.1 stands there (1 of 2); allowed: 1."),
    "none correct": (lambda: threshold(answers(FINE, [1, 0])),
                     "held_out: none of 2 examples is correct; allowed is one or more."),
    "no examples": (lambda: threshold(held([])), "held_out: none of 0 examples is correct; allowed is one or more."),
    **{f"a rate of {rate}": (lambda rate=rate: threshold(answers(FINE, [0, 1]), rate),
                             f"tpr = {rate}: allowed are rates above 0, up to 1.")
       for rate in (0, 0.0, -1, 1.5, math.nan, math.inf)},
    "a threshold of NaN": (lambda: error(answers(FINE, [0, 1]), math.nan), "tau = nan: allowed are finite numbers."),
    "a NaN among thresholds": (lambda: acceptance(answers(FINE, [0, 1]), [0.5, math.nan]),
                               "tau = [0.5, nan]: allowed are finite numbers."),
}  # fmt: skip
PAIRS = {
    "robust_error": lambda clean, attacked: robust_error(clean, attacked, 0.5),
    "alternative": lambda clean, attacked: alternative_robust_error(clean, attacked, 0.5),
    "false_positive_rate": lambda clean, attacked: false_positive_rate(clean, attacked, 0.5),
    "rejection_counts": lambda clean, attacked: rejection_counts(clean, attacked, 0.5),
    "roc_auc": roc_auc,
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_sentence_that_names_it(case):
    call, sentence = BAD[case]
    with pytest.raises(ValueError, match="allowed") as caught:
        call()
    assert str(caught.value) == sentence


@pytest.mark.parametrize("rate", [name for name in RATES if name != "area"])
def test_every_rate_refuses_a_threshold_that_is_not_a_number(rate):
    with pytest.raises(ValueError, match=r"^tau = nan: allowed are finite numbers\.$"):
        RATES[rate](*seven(), math.nan)


@pytest.mark.parametrize("name", PAIRS)
def test_attacked_images_must_be_as_many_as_clean_ones(name):
    clean, attacked = seven()
    with pytest.raises(ValueError, match=r"^attacked: it has \[1\] examples; allowed are as many as .*, \[7\]\.$"):
        PAIRS[name](clean, taken(attacked, slice(1)))


# --- what it needs --------------------------------------------------------------------------------------------------


def test_it_imports_numpy_and_the_standard_library_alone():
    tree = ast.parse(Path(confidence.__file__).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "nothing of the package"
            names.add(node.module.split(".")[0])
    assert names - sys.stdlib_module_names == {"numpy"}


def test_its_import_loads_no_torch():
    program = "import sys, advbook.confidence; print([m for m in ('torch', 'scipy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
