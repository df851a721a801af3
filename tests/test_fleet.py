"""advbook.fleet: a stack of networks gives what the networks give, one by one, in every mode."""

import copy

import pytest
import torch
from torch import nn

from advbook.fleet import Fleet, Stack

SHAPE = (2, 4, 4)
both_ways = pytest.mark.parametrize("vectorized", [False, True], ids=["one by one", "vectorized"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed, dtype=torch.float64, *, norm=True):
    """A convolution, a batch norm whose statistics are not the first ones, a linear layer."""
    middle = [nn.BatchNorm2d(3)] if norm else []
    net = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(3, 5)).to(dtype)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=seeded(seed), dtype=dtype).abs() * 0.5 + 0.1)
        net[0].weight.sub_(0.35)
    return net


def networks(count=3, **options):
    return [network(seed, **options) for seed in range(count)]


def inputs(members=3, count=6, dtype=torch.float64):
    return torch.rand(members, count, *SHAPE, generator=seeded(9)).to(dtype)


# --- called -------------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_stack_gives_what_its_modules_give(vectorized, members, training):
    modules, x = [net.train(training) for net in networks(members)], inputs(members)
    stack = Stack(copy.deepcopy(modules), vectorized=vectorized)
    expected = torch.stack([net(images) for net, images in zip(modules, x, strict=True)])
    assert stack.members == members
    assert stack.training is training
    assert expected.std() > 0.01
    torch.testing.assert_close(stack(x), expected, atol=1e-12, rtol=1e-12)


@both_ways
def test_by_rows_the_members_images_stand_one_after_the_other(vectorized):
    stack, x = Stack(networks(), vectorized=vectorized).eval(), inputs()
    outputs = stack.by_rows(x.flatten(0, 1))
    assert outputs.shape == (18, 5)
    torch.testing.assert_close(outputs, stack(x).flatten(0, 1), atol=0, rtol=0)


class Counted(nn.Linear):
    """A layer that counts how often any of its copies is called."""

    calls = 0

    def forward(self, x):
        Counted.calls += 1
        return super().forward(x)


@pytest.mark.parametrize(("vectorized", "calls"), [(None, 3), (False, 3), (True, 1)])
def test_on_a_cpu_the_members_run_one_by_one_unless_told_otherwise(vectorized, calls):
    Counted.calls = 0
    Stack([Counted(2, 2) for _ in range(3)], vectorized=vectorized)(torch.rand(3, 4, 2))
    assert Counted.calls == calls


@both_ways
def test_single_precision_stays_single(vectorized):
    stack = Stack(networks(dtype=torch.float32), vectorized=vectorized).eval()
    alone = torch.stack([net.eval()(x) for net, x in zip(stack.unstack(), inputs(dtype=torch.float32), strict=True)])
    found = stack(inputs(dtype=torch.float32))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


# --- training -----------------------------------------------------------------------------------------------------


@both_ways
def test_running_statistics_follow_every_members_own_batches(vectorized):
    modules = [net.train() for net in networks()]
    stack = Stack(copy.deepcopy(modules), vectorized=vectorized).train()
    for batch in range(3):
        x = inputs() * (batch + 1)
        stack(x)
        for net, images in zip(modules, x, strict=True):
            net(images)
    for m, net in enumerate(modules):
        for name, value in net.named_buffers():
            torch.testing.assert_close(stack.buffers[name][m], value, atol=1e-12, rtol=1e-12)
    assert stack.buffers["1.num_batches_tracked"].tolist() == [3, 3, 3]
    assert not torch.equal(stack.buffers["1.running_mean"][0], stack.buffers["1.running_mean"][1])


@both_ways
def test_evaluation_leaves_the_running_statistics_alone(vectorized):
    stack = Stack(networks(), vectorized=vectorized).eval()
    before = {name: value.clone() for name, value in stack.buffers.items()}
    stack(inputs())
    assert all(torch.equal(stack.buffers[name], value) for name, value in before.items())


@both_ways
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradients_by_weights_and_by_images_are_those_of_the_members_alone(vectorized, training):
    modules, x = [net.train(training) for net in networks()], inputs()
    stack = Stack(copy.deepcopy(modules), vectorized=vectorized).train(training)
    ours = x.clone().requires_grad_()
    stack(ours).square().sum().backward()
    for m, net in enumerate(modules):
        images = x[m].clone().requires_grad_()
        net(images).square().sum().backward()
        torch.testing.assert_close(ours.grad[m], images.grad, atol=1e-10, rtol=1e-10)
        for name, weight in net.named_parameters():
            torch.testing.assert_close(stack.weights[name].grad[m], weight.grad, atol=1e-10, rtol=1e-10)


@both_ways
def test_an_optimizer_of_the_weights_trains_every_member_as_alone(vectorized):
    """SGD in float64 over ten steps, to 1e-10."""
    modules, x = [net.train() for net in networks()], inputs()
    stack = Stack(copy.deepcopy(modules), vectorized=vectorized).train()
    assert all(weight.is_leaf and weight.requires_grad for weight in stack.weights.values())
    optimizer = torch.optim.SGD(stack.weights.values(), lr=0.05, momentum=0.9)
    for _ in range(10):
        optimizer.zero_grad()
        stack(x).square().mean((1, 2)).sum().backward()
        optimizer.step()
    for m, net in enumerate(modules):
        alone = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(10):
            alone.zero_grad()
            net(x[m]).square().mean().backward()
            alone.step()
        for name, value in net.state_dict().items():
            torch.testing.assert_close((stack.weights | stack.buffers)[name][m], value, atol=1e-10, rtol=1e-10)


def test_modes_are_switched_for_all_and_said():
    stack = Stack(networks())
    assert stack.train() is stack
    assert stack.training
    assert stack.eval() is stack
    assert not stack.training
    assert not any(part.training for net in stack.unstack() for part in net.modules())


def test_weights_without_gradients_stay_so():
    stack = Stack([net.requires_grad_(False) for net in networks()])
    assert not any(weight.requires_grad for weight in stack.weights.values())
    assert not stack(inputs()).requires_grad


# --- layer by layer -----------------------------------------------------------------------------------------------


def test_the_layers_are_the_modules_in_order_with_all_their_weights_and_buffers():
    stack = Stack(networks())
    layers = list(stack.layers())
    assert [type(module).__name__ for module, _ in layers] == ["Conv2d", "BatchNorm2d", "ReLU", "Flatten", "Linear"]
    for place, (module, state) in enumerate(layers):
        assert state.keys() == module.state_dict().keys()
        for name, value in state.items():
            assert value is (stack.weights | stack.buffers)[f"{place}.{name}"]


def test_layer_ten_is_not_taken_for_layer_one():
    deep = [nn.Sequential(*[nn.Linear(1, 1) for _ in range(11)]) for _ in range(2)]
    for place, (_, state) in enumerate(Stack(deep).layers()):
        assert torch.equal(state["bias"][1], deep[1][place].bias)


def test_a_layer_that_is_used_twice_is_there_twice():
    relu = nn.ReLU()
    stack = Stack([nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)])
    assert [type(module).__name__ for module, _ in stack.layers()] == ["Linear", "ReLU", "Linear", "ReLU"]


# --- and apart again ----------------------------------------------------------------------------------------------


def test_unstacked_modules_are_the_ones_that_were_stacked():
    modules = networks()
    found = Stack(modules).unstack()
    assert len(found) == 3
    for net, back in zip(modules, found, strict=True):
        assert type(back) is type(net)
        assert net.state_dict().keys() == back.state_dict().keys()
        assert all(map(torch.equal, net.state_dict().values(), back.state_dict().values()))


def test_stacks_and_unstacked_modules_share_no_memory():
    modules = networks()
    stack = Stack(modules).eval()
    before, found = stack(inputs()).detach(), stack.unstack()
    with torch.no_grad():
        for net in [*modules, *found]:
            for value in net.state_dict().values():
                value.zero_()
    assert torch.equal(stack(inputs()), before)


def test_what_was_trained_is_what_is_unstacked():
    stack = Stack(networks()).train()
    stack(inputs())
    with torch.no_grad():
        stack.weights["0.weight"] += 1
    found = stack.eval().unstack()
    expected = torch.stack([net(x) for net, x in zip(found, inputs(), strict=True)])
    torch.testing.assert_close(stack(inputs()), expected, atol=1e-12, rtol=1e-12)


def test_a_stack_of_the_unstacked_is_the_same_stack():
    stack = Stack(networks()).eval()
    again = Stack(stack.unstack()).eval()
    assert torch.equal(again(inputs()), stack(inputs()))


def test_buffers_that_are_not_saved_come_along():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor(0.5), persistent=False)
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            return self.linear(x - self.mean)

    stack, x = Stack([Centred(), Centred()]), torch.rand(2, 3, 2)
    expected = torch.stack([net(part) for net, part in zip(stack.unstack(), x, strict=True)])
    torch.testing.assert_close(stack(x), expected)


# --- errors -------------------------------------------------------------------------------------------------------


def test_a_fleet_has_a_member():
    with pytest.raises(ValueError, match=r"^modules = \[\]: .*at least one"):
        Stack([])


@pytest.mark.parametrize(
    "other",
    [
        nn.Linear(3, 2),
        nn.Linear(2, 2, bias=False),
        nn.Sequential(nn.Linear(2, 2)),
        pytest.param(nn.Bilinear(2, 1, 2), id="another kind"),
    ],
    ids=str,
)
def test_members_of_other_weights_are_refused(other):
    with pytest.raises(ValueError, match=r"^modules: .*one architecture"):
        Stack([nn.Linear(2, 2), other])


@pytest.mark.parametrize("other", [nn.Tanh(), nn.ReLU6()], ids=str)
def test_members_of_the_same_weights_but_other_layers_are_refused(other):
    with pytest.raises(ValueError, match=r"^modules: .*one architecture"):
        Stack([nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), other)])


def test_members_of_the_same_weights_but_other_strides_are_refused():
    with pytest.raises(ValueError, match=r"^modules: .*one architecture"):
        Stack([nn.Conv2d(1, 1, 3, stride=1), nn.Conv2d(1, 1, 3, stride=2)])


def test_rows_that_are_no_multiple_of_the_members_are_an_error():
    with pytest.raises(RuntimeError):
        Stack(networks()).eval().by_rows(inputs().flatten(0, 1)[:-1])


def test_a_fleet_is_anything_that_calls_its_members():
    class Twice(Fleet):
        members = 2

        def __call__(self, x):
            return x.flatten(2).sum(2, keepdim=True) * torch.tensor([1.0, -1.0])[:, None, None]

    assert Twice().by_rows(torch.ones(6, 1, 2, 2))[:, 0].tolist() == [4, 4, 4, -4, -4, -4]
