"""advbook.networks: shapes, sizes, initialization, folding, prediction, and all of them in a fleet and under attack."""

import copy
import math
from functools import partial
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advbook.attacks.norms import LINF, zero
from advbook.attacks.pgd import pgd
from advbook.fleet import Stack
from advbook.networks import Network, build, cnn, folded, initialize, lenet, mlp, predict, resnet, resnet20, vgg

BUILDERS = {"cnn": cnn, "mlp": mlp, "resnet": resnet, "vgg": vgg, "lenet": lenet, "resnet20": resnet20}
TINY = {
    "cnn": partial(cnn, channels=(3, 4)),
    "mlp": partial(mlp, units=(6, 5)),
    "resnet": partial(resnet, channels=(3, 4)),
    "vgg": partial(vgg, channels=(3, 4, 4)),
    "lenet": partial(lenet, channels=(3, 4)),
    "resnet20": partial(resnet20, channels=(3, 4)),
}
NORMS = nn.BatchNorm1d | nn.BatchNorm2d
every_network = pytest.mark.parametrize("name", BUILDERS)
both_ways = pytest.mark.parametrize("vectorized", [False, True], ids=["one by one", "vectorized"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def worn(network, seed=0):
    """The network with batch norms that have statistics and weights of their own, as after training."""
    for module in network.modules():
        if isinstance(module, NORMS):
            module.running_mean.normal_(generator=seeded(seed + 1))
            module.running_var.uniform_(0.3, 3, generator=seeded(seed + 2))
            with torch.no_grad():
                module.weight.uniform_(0.3, 3, generator=seeded(seed + 3))
                module.bias.normal_(generator=seeded(seed + 4))
    return network


def used(seed=0, **options):
    return worn(cnn(generator=seeded(seed), **options), seed)


def tiny(name, seed=0, *, side=12, dtype=torch.float64):
    return worn(TINY[name](4, side=side, generator=seeded(seed)), seed).to(dtype)


def images(*shape, dtype=torch.float64, seed=9):
    return torch.rand(*shape, generator=seeded(seed), dtype=dtype)


def numbers(network):
    return sum(p.numel() for p in network.parameters())


# --- what they are made of ------------------------------------------------------------------------------------------


def test_the_standard_network_is_the_papers():
    network = cnn(generator=seeded())
    names = [type(module).__name__ for module in network]
    assert names == ["Conv2d", "BatchNorm2d", "ReLU"] * 3 + ["Flatten", "Linear", "Linear"]
    convolutions = 16 * 16 + 32 * 16 * 16 + 64 * 32 * 16  # without biases
    norms, linear = 2 * (16 + 32 + 64), 576 * 100 + 100 + 100 * 10 + 10
    assert numbers(network) == convolutions + norms + linear == 100_150


def test_the_multilayer_perceptron_is_the_papers():
    network = mlp(generator=seeded())
    names = [type(module).__name__ for module in network]
    assert names == ["Flatten", *["Linear", "ReLU", "BatchNorm1d"] * 4, "Linear"]
    linear = 784 * 128 + 128 + 3 * (128 * 128 + 128) + 128 * 10 + 10
    assert numbers(network) == linear + 4 * 2 * 128 == 152_330


def test_the_vgg_is_the_papers():
    network = vgg(generator=seeded())
    names = [type(module).__name__ for module in network]
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    head = ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert names == [*block, "MaxPool2d", *block, *block, "MaxPool2d", *block, *block, *head]
    convolutions = 9 * (64 + 64 * 128 + 128 * 128 + 128 * 256 + 256 * 256)
    norms = 2 * (64 + 128 + 128 + 256 + 256)
    linear = (256 * 49 + 1) * 1024 + 1025 * 1024 + 1025 * 10
    assert numbers(network) == convolutions + norms + linear == 15_014_090


def test_the_resnet_is_the_papers():
    network = resnet(generator=seeded())
    kernels = [module.kernel_size for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert kernels.count((3, 3)) == 13
    assert kernels.count((1, 1)) == 2
    assert len(kernels) == 15
    stem, first = 9 * 64, 9 * 4 * 64 * 64
    second = 9 * (64 + 3 * 128) * 128 + 64 * 128  # with the shortcut
    third = 9 * (128 + 3 * 256) * 256 + 128 * 256
    norms = 2 * (5 * 64 + 5 * 128 + 5 * 256)
    assert numbers(network) == stem + first + second + third + norms + 257 * 10 == 2_776_522


def plain_resnet(state, x):
    """The residual network written out once more, for two stages; weights are taken in the order of their making."""
    rest = iter(state)

    def normed(x, stride=1):
        weight, *norm = (next(rest) for _ in range(6))
        scale, bias, mean, var, _ = norm
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * scale[:, None, None] + bias[
            :, None, None
        ]

    x = F.relu(normed(x))
    for stride in (1, 1, 2, 1):
        before = x
        x = normed(F.relu(normed(x, stride)))
        x = F.relu(x + (before if stride == 1 else normed(before, stride)))
    weight, bias = rest
    return x.mean((2, 3)) @ weight.T + bias


@pytest.mark.parametrize("side", [5, 8])
def test_the_resnet_does_what_a_residual_network_written_out_does(side):
    network, x = tiny("resnet").eval(), images(6, 1, side, side)
    assert network(x).std() > 0.01
    torch.testing.assert_close(network(x), plain_resnet(network.state_dict().values(), x), atol=1e-10, rtol=1e-10)


@every_network
def test_every_weight_has_a_gradient_in_training(name):
    """As the bias of a layer right before batch norm has not: nothing but rounding, which Adam would blow up."""
    network = TINY[name](4, side=12, generator=seeded()).double().train()
    F.cross_entropy(network(images(40, 1, 12, 12)), torch.arange(40) % 4).backward()
    slopes = {place: float(p.grad.abs().max()) for place, p in network.named_parameters()}
    assert min(slopes.values()) > 1e-6, slopes


@every_network
@settings(max_examples=20)
@given(
    count=st.integers(1, 3),
    classes=st.integers(2, 12),
    side=st.integers(8, 40),
    colours=st.sampled_from([1, 3]),
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_any_image_size_gives_one_logit_a_class(name, count, classes, side, colours, widths):
    network = BUILDERS[name](classes, tuple(widths), side=side, colours=colours, generator=seeded()).eval()
    assert network(torch.rand(count, colours, side, side)).shape == (count, classes)


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_a_name_gives_the_network_at_the_papers_width(name):
    ours = build(name, 7, side=20, colours=3, generator=seeded(2)).state_dict()
    expected = BUILDERS[name](7, side=20, colours=3, generator=seeded(2)).state_dict()
    assert ours.keys() == expected.keys()
    assert all(map(torch.equal, ours.values(), expected.values()))


def test_every_name_stands_for_a_network_and_no_other_does():
    assert set(get_args(Network)) == set(BUILDERS)
    sizes = {name: numbers(build(name, 10, generator=seeded())) for name in get_args(Network)}
    expected = {"cnn": 100_150, "mlp": 152_330, "resnet": 2_776_522, "vgg": 15_014_090}
    # lenet: convolutions of 25 * 32 and 25 * 32 * 64 with 2 numbers a channel for batch norm, then the linear layers
    lenet_size = 25 * 32 + 2 * 32 + 25 * 32 * 64 + 2 * 64 + (49 * 64 + 1) * 1024 + 1025 * 10
    assert sizes == expected | {"lenet": lenet_size, "resnet20": 4_326_602}
    with pytest.raises(ValueError, match="name = 'alexnet': allowed are cnn, mlp, resnet, vgg, lenet, resnet20"):
        build("alexnet", 10, generator=seeded())


# --- initialization -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [
        cnn(generator=seeded(1)),
        mlp(generator=seeded(1)),
        resnet(3, (12, 16), generator=seeded(1)),
        vgg(3, (8, 12, 12), side=12, generator=seeded(1)),
        lenet(3, (8, 12), side=12, generator=seeded(1)),
        resnet20(3, (12, 16), generator=seeded(1)),
    ],
    ids=BUILDERS,
)
def test_weights_have_the_released_standard_deviation(network):
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            count = module.weight.numel()
            expected = math.sqrt(2 / 3 / module.weight[0].numel())
            deviation = 4 / math.sqrt(2 * count)  # four standard errors
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=deviation)
            assert abs(float(module.weight.detach().mean())) < 4 * expected / math.sqrt(count)
            assert module.bias is None or (module.bias == 0).all()
        if isinstance(module, NORMS):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@every_network
def test_the_generator_alone_decides_the_weights(name):
    made = []
    for noise, seed in ((1, 3), (2, 3), (2, 4)):
        torch.manual_seed(noise)
        made.append(TINY[name](generator=seeded(seed)).state_dict())
    one, again, other = made
    assert all(torch.equal(one[place], again[place]) for place in one)
    drawn = [place for place in one if one[place].ndim > 1]
    assert len(drawn) > 2
    assert not any(torch.equal(one[place], other[place]) for place in drawn)


def test_initialize_works_in_place():
    network = nn.Sequential(nn.Linear(4, 4))
    before = network[0].weight.clone()
    assert initialize(network, seeded()) is network
    assert not torch.equal(network[0].weight, before)


# --- folding --------------------------------------------------------------------------------------------------------


def test_a_folded_network_is_the_same_function_and_has_the_same_gradient():
    network, x = used().eval(), torch.rand(20, 1, 28, 28, generator=seeded(9)).requires_grad_()
    fast = folded(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())
    logits = network(x)
    torch.testing.assert_close(fast(x), logits, atol=1e-5 * float(logits.detach().abs().max()), rtol=1e-5)
    slopes = [torch.autograd.grad(f(x)[:, 3].sum(), x)[0] for f in (fast, network)]
    torch.testing.assert_close(*slopes, atol=1e-5 * float(slopes[1].abs().max()), rtol=1e-4)


@every_network
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_every_network_folds_without_a_batch_norm_left(name, dtype, close):
    network, x = tiny(name, dtype=dtype).eval(), images(8, 1, 12, 12, dtype=dtype).requires_grad_()
    fast = folded(network)
    assert not any(isinstance(module, NORMS) for module in fast.modules())
    assert not any(p.requires_grad or p.dtype != dtype for p in fast.parameters())
    assert not any(module.training for module in fast.modules())
    logits = network(x)
    assert logits.std() > 0.01
    torch.testing.assert_close(fast(x), logits, atol=close * float(logits.detach().abs().max()), rtol=close)
    slopes = [torch.autograd.grad(f(x)[:, 3].sum(), x)[0] for f in (fast, network)]
    torch.testing.assert_close(*slopes, atol=close * float(slopes[1].abs().max()), rtol=close)


def test_folding_reaches_into_nested_sequences_and_linear_layers_without_bias():
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
        nn.Flatten(),
        nn.BatchNorm1d(200),
        nn.Linear(200, 3, bias=False),
    )
    network, x = worn(network.double()).eval(), images(4, 1, 12, 12)
    fast = folded(network)
    assert not any(isinstance(module, NORMS) for module in fast.modules())
    torch.testing.assert_close(fast(x), network(x), atol=1e-10, rtol=1e-10)


@every_network
def test_folding_leaves_the_network_as_it_was(name):
    network = tiny(name).train()
    before = copy.deepcopy(network.state_dict())
    folded(network)
    assert all(module.training for module in network.modules())
    assert all(p.requires_grad for p in network.parameters())
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(before[place], value) for place, value in network.state_dict().items())


# --- in a fleet and under attack ------------------------------------------------------------------------------------


@every_network
@both_ways
def test_a_fleet_takes_an_adam_step_as_each_member_alone_and_counts_its_batches(name, vectorized):
    modules = [tiny(name, seed).train() for seed in range(2)]
    x, y = images(2, 10, 1, 12, 12), torch.arange(10) % 4
    stack = Stack(copy.deepcopy(modules), vectorized=vectorized).train()

    def step(weights, loss):
        optimizer = torch.optim.Adam(weights, lr=0.01, betas=(0.5, 0.9), weight_decay=1e-4)
        loss().backward()
        optimizer.step()

    step(stack.weights.values(), lambda: sum(F.cross_entropy(logits, y) for logits in stack(x)))
    for net, own, trained in zip(modules, x, stack.unstack(), strict=True):
        before = copy.deepcopy(net.state_dict())
        step(net.parameters(), lambda net=net, own=own: F.cross_entropy(net(own), y))
        assert net.state_dict().keys() == trained.state_dict().keys()
        for place, value in net.state_dict().items():
            assert not torch.equal(value, before[place])
            torch.testing.assert_close(trained.state_dict()[place], value, atol=1e-8, rtol=1e-8)
        counts = [value.item() for place, value in trained.named_buffers() if place.endswith("tracked")]
        assert set(counts) == {1}
        torch.testing.assert_close(trained.eval()(own), net.eval()(own), atol=1e-8, rtol=1e-8)


@every_network
@both_ways
def test_an_attack_on_a_fleet_is_the_attack_on_each_member(name, vectorized):
    """Folded or not; and the loss grows, so the gradients by the images are not zero."""
    modules, x, y = [tiny(name, seed).eval() for seed in range(2)], images(5, 1, 12, 12), torch.arange(5) % 4
    attack = partial(pgd, x=x, y=y, eps=0.1, steps=4, restarts=1, start=zero(LINF, 0.1), stop="never")
    found = attack(Stack(modules, vectorized=vectorized).eval(), generator=seeded())
    for m, net in enumerate(modules):
        assert (found.value[0, m] > F.cross_entropy(net(x), y, reduction="none")).all()
        for alone in (net, folded(net)):
            torch.testing.assert_close(found.x[:, m], attack(alone, generator=seeded()).x, atol=1e-8, rtol=0)


# --- prediction -----------------------------------------------------------------------------------------------------


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
