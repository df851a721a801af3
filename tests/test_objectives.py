"""advbook.attacks.objectives: each against its formula in plain Python, at ties and where the softmax saturates."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax

from advbook.attacks import objectives
from advbook.attacks.objectives import (
    cross_entropy,
    dlr,
    doubt,
    fooled,
    log_odds,
    margin,
    other_confidence,
    other_log_confidence,
    reached,
    top_confidence,
    towards_confidence,
    towards_cross_entropy,
    towards_dlr,
    towards_margin,
)


def drawn(count, classes, scale, seed, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=random)
    return logits.to(dtype), torch.randint(classes, (count,), generator=random)


def cases(least=2, most=12, scales=(0.0, 1e-3, 1.0, 50.0)):
    return st.tuples(st.integers(1, 6), st.integers(least, most), st.sampled_from(scales), st.integers(0, 99))


def slope(objective, logits, y):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(objective(logits, y).sum(), logits)[0]


def others(row, y):
    return [value for k, value in enumerate(row) if k != y]


def dlr_by_hand(row, y):
    top = sorted(row, reverse=True)
    return -(row[y] - max(others(row, y))) / (top[0] - top[2])


# One row of logits (a list) and the class: the formula as it is printed.
FORMULAS = {
    cross_entropy: lambda row, y: -log_softmax(row)[y],
    log_odds: lambda row, y: logsumexp(others(row, y)) - row[y],
    margin: lambda row, y: max(others(row, y)) - row[y],
    other_confidence: lambda row, y: max(others(softmax(row), y)),
    other_log_confidence: lambda row, y: max(others(log_softmax(row), y)),
    top_confidence: lambda row, y: max(log_softmax(row)),
    doubt: lambda row, y: logsumexp(others(row, row.index(max(row)))) - max(row),
    towards_cross_entropy: lambda row, t: log_softmax(row)[t],
    towards_margin: lambda row, t: row[t] - max(others(row, t)),
    towards_confidence: lambda row, t: softmax(row)[t],
    fooled: lambda row, y: row.index(max(row)) != y,
    reached: lambda row, t: row.index(max(row)) == t,
}
NUMBERS = [objective for objective in FORMULAS if objective not in (fooled, reached)]
by_name = {"ids": lambda value: getattr(value, "__name__", str(value))}


@pytest.mark.parametrize("objective", FORMULAS, **by_name)
@given(cases())
def test_it_is_the_formula(objective, case):
    logits, y = drawn(*case, dtype=torch.float64)
    value = objective(logits, y)
    assert value.shape == y.shape
    expected = [FORMULAS[objective](row, k) for row, k in zip(logits.tolist(), y.tolist(), strict=True)]
    np.testing.assert_allclose(value, expected, atol=1e-12, rtol=1e-9)
    single = objective(logits.float(), y)
    np.testing.assert_allclose(single, expected, atol=1e-5 * (1 + case[2]), rtol=1e-5)


def test_every_objective_of_the_module_is_tested_here():
    public = {f for name, f in vars(objectives).items() if callable(f) and f.__module__ == objectives.__name__
              and not name.startswith("_")}  # fmt: skip
    assert public == {*FORMULAS, dlr, towards_dlr}


# --- the cross-entropy and the log-odds ---------------------------------------------------------------------------


@given(cases())
def test_the_gradient_of_the_cross_entropy_is_softmax_minus_one_hot(case):
    logits, y = drawn(*case)
    expected = logits.softmax(1) - torch.nn.functional.one_hot(y, logits.shape[1])
    torch.testing.assert_close(slope(cross_entropy, logits, y), expected, atol=1e-5, rtol=1e-5)


@given(cases(scales=(0.0, 1.0, 8.0)))
def test_the_cross_entropy_grows_with_the_log_odds_and_points_the_same_way(case):
    logits, y = drawn(*case, dtype=torch.float64)
    odds = log_odds(logits, y)
    torch.testing.assert_close(cross_entropy(logits, y), torch.nn.functional.softplus(odds), atol=1e-12, rtol=1e-9)
    wrong = odds.sigmoid()[:, None]  # 1 - p_y
    torch.testing.assert_close(slope(cross_entropy, logits, y), wrong * slope(log_odds, logits, y), atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e30])
def test_the_log_odds_keep_their_gradient_where_that_of_the_cross_entropy_is_lost(scale):
    logits, y = torch.tensor([[1.0, 0.0, 0.5]]) * scale, torch.tensor([0])
    assert (slope(cross_entropy, logits, y) == 0).all()
    assert slope(log_odds, logits, y).tolist() == [[-1.0, 0.0, 1.0]]
    assert log_odds(logits, y).item() == pytest.approx(-0.5 * scale)
    assert log_odds(logits, torch.tensor([1])).item() == pytest.approx(scale)


def test_saturated_logits_give_finite_numbers():
    logits = torch.tensor([[1e30, 0.0], [0.0, 1e30], [1e4, -1e4]])
    y = torch.zeros(3).long()
    for objective in NUMBERS:
        assert objective(logits, y).isfinite().all(), objective
        assert slope(objective, logits, y).isfinite().all(), objective
    assert cross_entropy(logits, y)[1] > 1e29
    assert fooled(logits, y).tolist() == [False, True, False]


# --- the confidence in a wrong class, and in the likeliest one ------------------------------------------------------


@given(cases(scales=(0.0, 1.0, 8.0)))
def test_the_wrong_confidence_and_its_logarithm_rise_and_fall_together(case):
    """d p = p d(log p): where the softmax does not round, a sign step is the same for both."""
    logits, y = drawn(*case, dtype=torch.float64)
    value, log = other_confidence(logits, y), other_log_confidence(logits, y)
    torch.testing.assert_close(log.exp(), value, atol=1e-12, rtol=1e-9)
    expected = value[:, None] * slope(other_log_confidence, logits, y)
    torch.testing.assert_close(slope(other_confidence, logits, y), expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e30])
def test_the_logarithm_keeps_the_gradient_that_the_wrong_confidence_loses(scale):
    logits, y = torch.tensor([[1.0, 0.0, 0.5]]) * scale, torch.tensor([0])
    assert (slope(other_confidence, logits, y) == 0).all()
    assert slope(other_log_confidence, logits, y).tolist() == [[-1.0, 0.0, 1.0]]
    assert other_log_confidence(logits, y).item() == pytest.approx(-0.5 * scale)


def test_the_wrong_confidence_of_an_error_is_the_confidence():
    logits, y = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([1])
    assert torch.equal(other_log_confidence(logits, y), top_confidence(logits, y))


@given(cases(scales=(0.0, 1.0, 8.0)))
def test_doubt_is_the_log_odds_against_the_confidence_and_falls_as_it_rises(case):
    logits, y = drawn(*case, dtype=torch.float64)
    found = doubt(logits, y)
    torch.testing.assert_close((-found).sigmoid(), top_confidence(logits, y).exp(), atol=1e-12, rtol=1e-9)
    assert torch.equal(found, doubt(logits, (y + 1) % logits.shape[1])), "the label does not matter"
    assert (found <= math.log(logits.shape[1] - 1) + 1e-9).all(), "most doubt is the uniform distribution"
    steps = slope(doubt, logits, y)
    top = logits.argmax(1, keepdim=True)
    torch.testing.assert_close(steps.gather(1, top), -torch.ones(len(y), 1, dtype=torch.float64))
    assert (steps.scatter(1, top, 0) >= 0).all()


def test_doubt_is_largest_for_equal_logits_and_keeps_its_gradient_where_the_network_is_sure():
    y = torch.tensor([0])
    assert doubt(torch.zeros(1, 5), y).item() == pytest.approx(math.log(4))
    sure = torch.tensor([[0.0, 1e6, 5e5]])
    assert doubt(sure, y).item() == pytest.approx(-5e5)
    assert slope(doubt, sure, y).tolist() == [[0.0, -1.0, 1.0]]


# --- the margin ---------------------------------------------------------------------------------------------------


def test_the_true_logit_is_left_out_and_not_set_to_zero():
    """With zero in its place, the best other logit of a network whose logits are all negative would be 0."""
    logits, y = torch.tensor([[-1.0, -5.0, -3.0]]), torch.tensor([0])
    assert margin(logits, y).tolist() == [-2]
    assert towards_margin(logits, y).tolist() == [2]
    assert dlr(logits, y).tolist() == [-0.5]
    assert log_odds(logits, y).item() == pytest.approx(math.log(math.exp(-5) + math.exp(-3)) + 1)
    assert slope(margin, logits, y).tolist() == [[-1, 0, 1]]


@given(cases(scales=(1.0, 50.0)))
def test_margins_are_positive_where_the_network_errs(case):
    logits, y = drawn(*case)
    assert torch.equal(margin(logits, y) > 0, fooled(logits, y))
    assert torch.equal(log_odds(logits, y) >= margin(logits, y), torch.ones_like(y, dtype=torch.bool))
    assert torch.equal(towards_margin(logits, y) > 0, reached(logits, y))
    assert torch.equal(fooled(logits, y), ~reached(logits, y))


def test_at_a_tie_the_first_class_is_predicted():
    logits = torch.zeros(3, 3)
    assert fooled(logits, torch.arange(3)).tolist() == [False, True, True]
    assert (margin(logits, torch.arange(3)) == 0).all()


# --- the difference of logits ratio -------------------------------------------------------------------------------


@given(cases(least=3, scales=(1e-3, 1.0, 50.0)))
def test_the_difference_of_logits_ratio_is_its_formula(case):
    logits, y = drawn(*case, dtype=torch.float64)
    expected = [dlr_by_hand(row, k) for row, k in zip(logits.tolist(), y.tolist(), strict=True)]
    np.testing.assert_allclose(dlr(logits, y), expected, rtol=1e-6)


@given(cases(least=3, scales=(1.0,)), st.floats(-100, 100), st.floats(1e-3, 1e6))
def test_it_is_blind_to_the_shift_and_the_scale_of_the_logits(case, shift, scale):
    logits, y = drawn(*case, dtype=torch.float64)
    torch.testing.assert_close(dlr(scale * logits + shift, y), dlr(logits, y), atol=1e-5, rtol=1e-5)


@given(cases(least=4, scales=(1.0, 50.0)))
def test_the_targeted_ratio_is_its_formula_and_as_blind(case):
    logits, y = drawn(*case, dtype=torch.float64)
    t = (y + 1) % logits.shape[1]
    both = torch.stack([y, t], 1)
    expected = []
    for row, k, target in zip(logits.tolist(), y.tolist(), t.tolist(), strict=True):
        top = sorted(row, reverse=True)
        expected.append(-(row[k] - row[target]) / (top[0] - (top[2] + top[3]) / 2))
    np.testing.assert_allclose(towards_dlr(logits, both), expected, rtol=1e-6)
    torch.testing.assert_close(towards_dlr(1e3 * logits - 7, both), towards_dlr(logits, both), atol=1e-6, rtol=1e-6)


def test_equal_logits_are_no_division_by_zero():
    logits = torch.zeros(2, 5)
    assert dlr(logits, torch.tensor([0, 3])).tolist() == [0, 0]
    assert towards_dlr(logits, torch.tensor([[0, 1], [3, 2]])).tolist() == [0, 0]


def test_with_fewer_than_three_classes_the_margin_stands_in():
    """Of two, the ratio would be 1 or -1 everywhere, and lead an attack nowhere."""
    logits, y = torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1])
    assert dlr(logits, y).tolist() == [-2, 2]
    assert slope(dlr, logits, y).tolist() == [[-1, 1], [1, -1]]


# --- one class ----------------------------------------------------------------------------------------------------

ONE_CLASS = {
    cross_entropy: 0, log_odds: torch.finfo(torch.float32).min, margin: torch.finfo(torch.float32).min,
    other_confidence: 0, top_confidence: 0, towards_cross_entropy: 0, towards_confidence: 1,
    towards_margin: torch.finfo(torch.float32).max, dlr: torch.finfo(torch.float32).min, fooled: False, reached: True,
    other_log_confidence: torch.finfo(torch.float32).min, doubt: torch.finfo(torch.float32).min,
}  # fmt: skip


@pytest.mark.parametrize("objective", ONE_CLASS, **by_name)
def test_one_class_alone_is_no_error(objective):
    for logit in (-3.0, 0.0, 70.0):
        assert objective(torch.tensor([[logit]]), torch.tensor([0])).tolist() == [ONE_CLASS[objective]]


# --- not a number -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [*NUMBERS, dlr], **by_name)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_not_a_number_anywhere_is_seen_in_the_value(objective, place):
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    logits[0, place] = math.nan
    assert objective(logits, torch.tensor([1])).isnan().all()
