"""advbook.attacks.objectives: against scipy, at ties and where the softmax saturates."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from advbook.attacks.objectives import cross_entropy, fooled


def drawn(count, classes, scale, seed):
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=random)
    return logits, torch.randint(classes, (count,), generator=random)


cases = st.tuples(st.integers(1, 6), st.integers(2, 12), st.sampled_from([0.0, 1e-3, 1.0, 50.0]), st.integers(0, 99))


@given(cases)
def test_the_cross_entropy_is_scipys(case):
    logits, y = drawn(*case)
    value = cross_entropy(logits, y)
    assert value.shape == y.shape
    expected = -log_softmax(logits.double().numpy(), axis=1)[np.arange(len(y)), y.numpy()]
    np.testing.assert_allclose(value, expected, atol=1e-5, rtol=1e-5)


@given(cases)
def test_its_gradient_is_softmax_minus_one_hot(case):
    logits, y = drawn(*case)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(logits, y).sum(), logits)
    expected = logits.detach().softmax(1) - torch.nn.functional.one_hot(y, logits.shape[1])
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


@given(cases)
def test_fooled_is_a_predicted_class_that_is_not_y(case):
    logits, y = drawn(*case)
    assert fooled(logits, y).tolist() == (np.argmax(logits.numpy(), axis=1) != y.numpy()).tolist()


def test_saturated_logits_give_finite_numbers():
    logits = torch.tensor([[1e30, 0.0], [0.0, 1e30], [1e4, -1e4]], requires_grad=True)
    value = cross_entropy(logits, torch.zeros(3).long())
    assert value.isfinite().all()
    assert value[1] > 1e29
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.isfinite().all()
    assert fooled(logits, torch.zeros(3).long()).tolist() == [False, True, False]
