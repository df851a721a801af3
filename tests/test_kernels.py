"""advbook.kernels: the banded form is the network itself, whatever its size, fleet and data type."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advbook.fleet import Stack
from advbook.kernels import Banded, Half, bfloat16_is_fast, draft
from advbook.networks import cnn, folded, lenet, mlp, resnet


class Devices(TorchDispatchMode):
    """The devices of all tensors that operations take."""

    def __init__(self):
        super().__init__()
        self.devices = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor)]
        self.devices |= {tensor.device.type for tensor in tensors}
        return function(*args, **(kwargs or {}))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0, classes=3, channels=(3, 4), side=12, colours=1):
    """Weights with batch norm statistics of their own, in evaluation mode."""
    made = cnn(classes, channels, side=side, colours=colours, generator=seeded(seed)).double()
    made.train()
    with torch.no_grad():
        made(2 * torch.rand(16, colours, side, side, generator=seeded(seed + 1), dtype=torch.float64) + seed)
        for module in made:
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2, generator=seeded(seed + 2))
                module.bias.uniform_(-1, 1, generator=seeded(seed + 3))
            if isinstance(module, nn.Linear):
                module.bias.uniform_(-1, 1, generator=seeded(seed + 4))
    return made.eval()


def both(f, x):
    """Outputs, and the gradient of a fixed combination of them by the images."""
    x = x.clone().requires_grad_()
    output = f(x)
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view(output.shape)
    (slope,) = torch.autograd.grad((output.double() * weights).sum(), x)
    return output.detach(), slope


@given(
    side=st.integers(4, 15),
    colours=st.sampled_from([1, 3]),
    channels=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    members=st.integers(1, 3),
    images=st.integers(1, 4),
)
def test_it_is_the_network_and_its_gradient(side, colours, channels, members, images):
    modules = [network(seed, 3, tuple(channels), side, colours) for seed in range(members)]
    banded = Banded(Stack(modules), dtype=torch.float64, side=side)
    x = torch.rand(members, images, colours, side, side, generator=seeded(9), dtype=torch.float64)
    output, slope = both(banded, x)
    expected, gradient = both(lambda x: torch.stack([f(own) for f, own in zip(modules, x, strict=True)]), x)
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(slope, gradient, atol=1e-10, rtol=1e-10)


def test_one_network_is_a_fleet_of_one_and_batch_norm_may_be_folded_already():
    single = network()
    x = torch.rand(5, 1, 12, 12, generator=seeded(1), dtype=torch.float64)
    for made in (single, folded(single)):
        banded = Banded(made, dtype=torch.float64, side=12)
        assert banded.members == 1
        torch.testing.assert_close(banded.by_rows(x), single(x), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_coarser_products_give_nearly_the_same(dtype, tolerance):
    single = network(channels=(8, 8)).float()
    x = torch.rand(50, 1, 12, 12, generator=seeded(1))
    output, slope = both(Banded(single, dtype=dtype, side=12).by_rows, x)
    expected, gradient = both(single, x)
    assert output.dtype == slope.dtype == torch.float32
    assert ((output - expected).norm() / expected.norm()).item() < tolerance
    likeness = torch.nn.functional.cosine_similarity(slope.flatten(1), gradient.flatten(1))
    assert likeness.median() > 1 - tolerance


def test_the_weights_are_those_at_the_time_of_making():
    single = network()
    x = torch.rand(2, 1, 12, 12, generator=seeded(1), dtype=torch.float64)
    banded = Banded(single, dtype=torch.float64, side=12)
    before = banded.by_rows(x)
    with torch.no_grad():
        single[0].weight.mul_(2)
    assert torch.equal(banded.by_rows(x), before)
    assert not torch.allclose(Banded(single, dtype=torch.float64, side=12).by_rows(x), before)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Flatten(), nn.Linear(144, 2)], "allowed are convolutions"),
        ([nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()], "kernel of 4 with stride 2"),
        ([nn.Conv2d(1, 2, 4, stride=2, padding=1, padding_mode="circular"), nn.ReLU()], "kernel of 4 with stride 2"),
        ([nn.Conv2d(1, 2, 4, stride=2, padding=1), nn.BatchNorm2d(2, affine=False)], "weights and statistics"),
        ([nn.Conv2d(1, 2, 4, stride=2, padding=1), nn.ReLU()], "allowed are convolutions"),
        ([nn.Conv2d(1, 2, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten()], "allowed are convolutions"),
        ([nn.Conv2d(1, 2, 4, stride=2, padding=1), nn.Flatten(), nn.Linear(72, 2)], "without ReLU"),
        ([nn.Conv2d(1, 2, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5), nn.ReLU()], "ReLU after"),
    ],
)
def test_another_architecture_is_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        Banded(nn.Sequential(*layers), side=12)


def test_a_module_with_a_forward_of_its_own_is_refused():
    class Other(nn.Sequential):
        def forward(self, x):
            return -super().forward(x)

    with pytest.raises(ValueError, match="sequential modules"):
        Banded(Other(*network().float()), side=12)


@pytest.mark.parametrize("shape", [(1, 2, 1, 10, 10), (1, 2, 3, 12, 12), (1, 2, 1, 12, 10)])
def test_images_of_another_size_are_refused(shape):
    with pytest.raises(ValueError, match=r"^x: its images are .* allowed are squares of side 12"):
        Banded(network(), dtype=torch.float64, side=12)(torch.zeros(shape))


def test_making_and_calling_it_reads_nothing_from_the_host():
    """On the meta device a copy from the host shows as one; in the capture of a CUDA graph it would be an error."""
    fleet = Stack([network().to("meta"), network().to("meta")])
    with Devices() as seen:
        x = torch.zeros(2, 3, 1, 12, 12, device="meta", requires_grad=True)
        Banded(fleet, side=12)(x).sum().backward()
    assert seen.devices == {"meta"}


# --- any network in bfloat16 ----------------------------------------------------------------------------------------

SMALL = {"lenet": (lenet, (4, 6)), "mlp": (mlp, (12, 12)), "resnet": (resnet, (4, 6)), "cnn": (cnn, (4, 6))}


def worn(name, members=2):
    """Small networks with batch norms that have statistics and weights of their own, in evaluation mode."""
    made, widths = SMALL[name]
    modules = [made(3, widths, side=12, generator=seeded(seed)) for seed in range(members)]
    for seed, module in enumerate(modules):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.running_mean.normal_(generator=seeded(seed + 1)).mul_(0.3)
                part.running_var.uniform_(0.3, 3, generator=seeded(seed + 2))
                nn.init.uniform_(part.weight, 0.5, 2, generator=seeded(seed + 3))
                nn.init.uniform_(part.bias, 0, 1, generator=seeded(seed + 4))
    return [module.eval() for module in modules]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_half_is_nearly_the_network_with_its_gradient_in_the_type_of_the_images(name, dtype):
    modules = worn(name)
    half = Half(Stack(modules))
    assert half.members == 2
    x = torch.rand(2, 40, 1, 12, 12, generator=seeded(9), dtype=dtype)
    output, slope = both(half, x)
    assert output.dtype == slope.dtype == dtype
    doubles = [module.double() for module in modules]
    expected, gradient = both(lambda x: torch.stack([f(own) for f, own in zip(doubles, x, strict=True)]), x.double())
    assert ((output - expected).norm() / expected.norm()).item() < 0.03
    assert not torch.allclose(output.double(), expected, atol=1e-6, rtol=0), "it is not the network itself"
    likeness = torch.nn.functional.cosine_similarity(slope.double().flatten(2), gradient.flatten(2), dim=2)
    assert likeness.median() > 0.95
    assert not torch.allclose(output[0], output[1], atol=0.1), "every member has its own weights"


def test_half_folds_batch_norm_away_and_multiplies_in_bfloat16():
    """It is the folded network with weights and images rounded, bit for bit."""
    (module,) = worn("lenet", 1)
    x = torch.rand(5, 1, 12, 12, generator=seeded(9))
    expected = folded(module).to(torch.bfloat16)(x.to(torch.bfloat16))
    found = Half(Stack([module])).by_rows(x)
    assert torch.equal(found, expected.float())


def test_the_weights_of_half_are_those_at_the_time_of_making_and_the_fleet_keeps_its_own():
    fleet = Stack(worn("lenet"))
    x = torch.rand(2, 3, 1, 12, 12, generator=seeded(1))
    kept = {name: value.clone() for name, value in (fleet.weights | fleet.buffers).items()}
    half = Half(fleet)
    before = half(x)
    assert all(torch.equal(kept[name], value) for name, value in (fleet.weights | fleet.buffers).items())
    with torch.no_grad():
        fleet.weights["0.weight"].mul_(2)
    assert torch.equal(half(x), before)
    assert not torch.allclose(Half(fleet)(x), before)


def test_gradients_of_half_are_by_the_images_alone():
    fleet = Stack(worn("mlp"))
    x = torch.rand(2, 3, 1, 12, 12, generator=seeded(1), requires_grad=True)
    Half(fleet)(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(value.grad is None for value in fleet.weights.values())


def test_a_fleet_in_training_mode_is_taken_in_evaluation_mode():
    x = torch.rand(2, 3, 1, 12, 12, generator=seeded(1))
    fleet = Stack(worn("lenet"))
    assert torch.equal(Half(fleet.train())(x), Half(fleet.eval())(x))


@pytest.mark.parametrize("name", SMALL)
def test_a_draft_is_banded_for_the_standard_classifier_and_half_for_all_others(name):
    fleet = Stack(worn(name))
    made = draft(fleet, side=12)
    assert type(made) is (Banded if name == "cnn" else Half)
    x = torch.rand(2, 5, 1, 12, 12, generator=seeded(1))
    expected = Banded(fleet, side=12)(x) if name == "cnn" else Half(fleet)(x)
    assert torch.equal(made(x), expected)


def test_a_draft_of_what_is_not_sequential_is_refused_in_a_sentence():
    class Plain(nn.Module):
        def forward(self, x):
            return x.flatten(1)

    with pytest.raises(
        ValueError, match=r"^fleet: allowed are sequential modules, whose layers say all that they do\.$"
    ):
        draft(Stack([Plain()]), side=12)


@pytest.mark.parametrize("name", SMALL)
def test_making_and_calling_a_draft_reads_nothing_from_the_host(name):
    """It is made anew for every batch of training, inside a CUDA graph."""
    fleet = Stack([module.to("meta") for module in worn(name)], vectorized=True)
    with Devices() as seen:
        x = torch.zeros(2, 3, 1, 12, 12, device="meta", requires_grad=True)
        draft(fleet, side=12)(x).sum().backward()
    assert seen.devices == {"meta"}


def test_a_cpu_without_units_for_bfloat16_says_so(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert bfloat16_is_fast("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert not bfloat16_is_fast("cpu")
