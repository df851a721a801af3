"""advbook.networks: shapes, sizes, initialization, folding, prediction."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advbook.networks import cnn, folded, initialize, predict


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def used(seed=0, **options):
    """A network whose batch norms have statistics and weights of their own, as after training."""
    network = cnn(generator=seeded(seed), **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=seeded(seed + 1))
            module.running_var.uniform_(0.3, 3, generator=seeded(seed + 2))
            with torch.no_grad():
                module.weight.uniform_(0.3, 3, generator=seeded(seed + 3))
                module.bias.normal_(generator=seeded(seed + 4))
    return network


def test_the_standard_network_is_the_papers():
    network = cnn(generator=seeded())
    names = [type(module).__name__ for module in network]
    assert names == ["Conv2d", "BatchNorm2d", "ReLU"] * 3 + ["Flatten", "Linear", "Linear"]
    convolutions = 16 * 16 + 32 * 16 * 16 + 64 * 32 * 16  # without biases
    norms, linear = 2 * (16 + 32 + 64), 576 * 100 + 100 + 100 * 10 + 10
    assert sum(p.numel() for p in network.parameters()) == convolutions + norms + linear == 100_150


@given(
    count=st.integers(1, 3),
    classes=st.integers(2, 12),
    side=st.integers(8, 40),
    colours=st.sampled_from([1, 3]),
    channels=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_any_image_size_gives_one_logit_a_class(count, classes, side, colours, channels):
    network = cnn(classes, tuple(channels), side=side, colours=colours, generator=seeded()).eval()
    assert network(torch.rand(count, colours, side, side)).shape == (count, classes)


def test_weights_have_the_released_standard_deviation():
    for module in cnn(generator=seeded(1)):
        if isinstance(module, nn.Conv2d | nn.Linear):
            count = module.weight.numel()
            expected = math.sqrt(2 / 3 / module.weight[0].numel())
            deviation = 4 / math.sqrt(2 * count)  # four standard errors
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=deviation)
            assert abs(float(module.weight.detach().mean())) < 4 * expected / math.sqrt(count)
            assert module.bias is None or (module.bias == 0).all()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_the_generator_alone_decides_the_weights():
    torch.manual_seed(1)
    one = cnn(generator=seeded(3)).state_dict()
    torch.manual_seed(2)
    again, other = cnn(generator=seeded(3)).state_dict(), cnn(generator=seeded(4)).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])


def test_initialize_works_in_place():
    network = nn.Sequential(nn.Linear(4, 4))
    before = network[0].weight.clone()
    assert initialize(network, seeded()) is network
    assert not torch.equal(network[0].weight, before)


def test_a_folded_network_is_the_same_function_and_has_the_same_gradient():
    network, x = used().eval(), torch.rand(20, 1, 28, 28, generator=seeded(9)).requires_grad_()
    fast = folded(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())
    logits = network(x)
    torch.testing.assert_close(fast(x), logits, atol=1e-5 * float(logits.detach().abs().max()), rtol=1e-5)
    slopes = [torch.autograd.grad(f(x)[:, 3].sum(), x)[0] for f in (fast, network)]
    torch.testing.assert_close(*slopes, atol=1e-5 * float(slopes[1].abs().max()), rtol=1e-4)


def test_folding_leaves_the_network_as_it_was():
    network = used().train()
    before = copy.deepcopy(network.state_dict())
    folded(network)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@given(count=st.integers(1, 9), batch=st.integers(1, 10))
def test_predictions_do_not_depend_on_the_batch(count, batch):
    network, x = used(), torch.rand(count, 1, 28, 28, generator=seeded(5))
    whole = predict(network, x)
    assert whole.shape == (count, 10)
    assert not whole.requires_grad
    torch.testing.assert_close(predict(network, x, batch=batch), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_predicting_uses_evaluation_mode_and_changes_nothing(training):
    network, x = used().train(training), torch.rand(6, 1, 28, 28, generator=seeded(5))
    before = copy.deepcopy(network.state_dict())
    logits = predict(network, x)
    assert network.training is training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    torch.testing.assert_close(logits, network.eval()(x).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(value):
    network, x = used(), torch.rand(3, 1, 28, 28)
    x[1, 0, 5, 5] = value
    with pytest.raises(ValueError, match="not finite"):
        predict(network, x)
    with torch.no_grad():
        network[-1].bias[0] = value
    with pytest.raises(ValueError, match="not finite"):
        predict(network, torch.rand(3, 1, 28, 28))
