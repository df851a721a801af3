"""advbook.experiments.flows: what is shipped, packed, told apart, trained and kept."""

import pytest
import torch
from safetensors.torch import save
from toys import seeded

from advbook.experiments import flows
from advbook.experiments.flows import fitted, identity, packed, trained, unpacked
from advbook.experiments.setting import load
from advbook.manifolds import flow
from advbook.manifolds.flow import Flow, Recipe, initialize

CPU = torch.device("cpu")
SHIPPED = ("fonts_easy", "fashion_mnist")
EVERY = ("fonts", "fonts_easy", "mnist", "emnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "celeba")
MANY = 40  # images of a planted data set


@pytest.fixture
def tiny(monkeypatch):
    """Recipes of two and three scales that take no time."""
    monkeypatch.setattr(flows, "GREY", Recipe(depths=(1, 1), width=4, steps=3, batch=8))
    monkeypatch.setattr(flows, "COLOURED", Recipe(depths=(1, 1, 1), width=4, steps=3, batch=8))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose data folder is empty."""
    (tmp_path / "advbook" / "data").mkdir(parents=True)
    monkeypatch.setattr(flows, "files", lambda name: tmp_path / name)
    return tmp_path / "advbook" / "data"


@pytest.fixture
def planted(monkeypatch):
    """Noise in the place of training images; gives what was asked for."""
    asked = []

    def drawn(dataset, n, device):
        asked.append((dataset, n))
        return torch.rand(MANY, *flows._shape(dataset), generator=seeded(1)), torch.zeros(MANY).long()

    monkeypatch.setattr(flows, "training_images", drawn)
    return asked


def used(dataset="mnist", seed=0):
    """A flow of a data set whose steps are not the identity."""
    recipe, shape, random = flows._recipe(dataset, CPU, "small", 0), flows._shape(dataset), seeded(seed)
    model = recipe.build(shape, random)
    for value in model.parameters():
        value.data += 0.02 * torch.randn(value.shape, generator=random)
    initialize(model, torch.rand(16, *shape, generator=random))
    return model.eval()


def weights(model: Flow):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


# --- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", EVERY)
def test_there_is_a_flow_for_the_images_of_every_data_set(dataset):
    recipe, shape = flows._recipe(dataset, CPU, "small", 0), flows._shape(dataset)
    model = recipe.build(shape, seeded())
    assert model.shape == shape
    x = torch.rand(2, *shape, generator=seeded(1))
    with torch.no_grad():
        assert (model.inverse(model(x)[0]) - x).abs().max() <= 1e-5
    assert flows._images(dataset) <= flows.train_size(dataset)


def test_only_the_steps_asked_for_and_the_precision_differ_from_the_recipe(monkeypatch):
    for dataset, recipe in (("mnist", flows.GREY), ("cifar10", flows.COLOURED)):
        for fast, precision in ((True, "bfloat16"), (False, "float32")):
            monkeypatch.setattr(flows, "bfloat16_is_fast", lambda device, fast=fast: fast)
            assert flows._recipe(dataset, CPU, "small", 0) == recipe.model_copy(update={"precision": precision})
            assert flows._recipe(dataset, CPU, "small", 7).steps == 7


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_a_large_flow_is_deeper_and_wider_and_never_the_file_that_ships(dataset):
    small, large = (flows._recipe(dataset, CPU, size, 0) for size in ("small", "large"))
    assert len(large.depths) == len(small.depths)
    assert min(large.depths) > max(small.depths)
    assert large.width > small.width
    assert identity("fashion_mnist", CPU, size="large") != identity("fashion_mnist", CPU)
    assert identity("fashion_mnist", CPU, size="large") == flows.store.fingerprint(
        flows._key("fashion_mnist", CPU, flows._recipe("fashion_mnist", CPU, "large", 0))
    )


# --- packing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "celeba"])
def test_a_packed_flow_is_still_an_exact_bijection(dataset, tiny):
    """Rounding the weights gives another bijection, and that is exact: of all maps only rotations lose what they are,
    and a mix needs no rotation.
    """
    model = used(dataset)
    tensors = packed(model)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    back = unpacked(tensors, dataset)
    assert not back.training
    assert not any(value.requires_grad for value in back.parameters())
    torch.testing.assert_close(weights(back), weights(model).half().float(), atol=0, rtol=0)
    assert all(torch.equal(again, tensors[name]) for name, again in packed(back).items())
    x = torch.rand(4, *flows._shape(dataset), generator=seeded(2))
    z, change = back(x)
    assert (back.inverse(z) - x).abs().max() <= 1e-5
    torch.testing.assert_close(z, model(x)[0].detach(), atol=0.1, rtol=0)
    assert not torch.equal(z, model(x)[0])
    double = back.double()
    torch.testing.assert_close(double.inverse(double(x.double())[0]), x.double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(double(x.double())[1].float(), change, atol=0.05, rtol=0)


def test_packing_leaves_the_flow_as_it_is(tiny):
    model = used()
    before = weights(model)
    packed(model)["scales.0.0.shift"].zero_()
    assert torch.equal(weights(model), before)


# --- the store ------------------------------------------------------------------------------------------------------


def test_a_flow_is_trained_once_and_then_read(home, tiny, planted, monkeypatch):
    first = trained("mnist", CPU)
    assert planted == [("mnist", 60_000)]
    monkeypatch.setattr(flow, "train", lambda *given, **options: pytest.fail("it is in the store"))
    again = trained("mnist", CPU)
    assert torch.equal(weights(first), weights(again))
    for model in (first, again):
        assert not model.training
        assert not any(value.requires_grad for value in model.parameters())
    (kept,) = (home / "models").glob("*.safetensors")
    assert kept.stem == flows.store.fingerprint(flows._key("mnist", CPU, flows._recipe("mnist", CPU, "small", 0)))


def test_what_is_trained_is_the_recipe_on_the_images_of_the_data_set(home, tiny, planted):
    found = trained("fonts", CPU)
    assert planted == [("fonts", flows.ROWS)]
    recipe, generator = flows._recipe("fonts", CPU, "small", 0), seeded(0)
    fresh = recipe.build((1, 28, 28), generator)
    x = torch.rand(MANY, 1, 28, 28, generator=seeded(1))
    expected = flow.train(fresh, x, recipe, generator=generator)
    torch.testing.assert_close(weights(found), weights(expected), atol=0, rtol=0)


def test_other_steps_and_other_data_are_trained_anew(home, tiny, planted):
    found = [trained("mnist", CPU), trained("mnist", CPU, steps=2), trained("emnist", CPU)]
    assert [name for name, _ in planted] == ["mnist", "mnist", "emnist"]
    assert len(list((home / "models").glob("*.safetensors"))) == 3
    assert not torch.equal(weights(found[0]), weights(found[1]))


def test_a_flow_that_the_store_lost_comes_back_the_same(home, tiny, planted):
    first = trained("mnist", CPU)
    (kept,) = (home / "models").glob("*.safetensors")
    kept.unlink()
    assert torch.equal(weights(trained("mnist", CPU)), weights(first))
    assert len(planted) == 2


def test_all_that_decides_a_flow_is_in_its_key():
    keys = [
        flows._key(dataset, device, recipe)
        for dataset in ("fonts", "mnist", "emnist", "cifar10")
        for device in (CPU, torch.device("cuda"))
        for recipe in (flows.GREY, *(flows.GREY.model_copy(update=change) for change in (
            {"depths": (4, 3)}, {"width": 16}, {"steps": 5}, {"batch": 64}, {"lr": 0.1}, {"clip": 1.0},
            {"precision": "bfloat16"},
        )))
    ]  # fmt: skip
    assert len({flows.store.fingerprint(key) for key in keys}) == len(keys) == 4 * 2 * 8


# --- the package ----------------------------------------------------------------------------------------------------


def test_a_shipped_flow_wins_and_nothing_is_trained(home, tiny, package, monkeypatch):
    model = used()
    (package / "mnist_flow.safetensors").write_bytes(save(packed(model)))
    monkeypatch.setattr(flow, "train", lambda *given, **options: pytest.fail("it is shipped"))
    found = fitted("mnist", CPU)
    assert torch.equal(weights(found), weights(model).half().float())
    assert not any(value.requires_grad for value in found.parameters())
    assert not found.training
    assert not home.exists()


def test_a_flow_that_is_not_shipped_or_of_other_steps_is_trained(home, tiny, package, planted):
    (package / "mnist_flow.safetensors").write_bytes(save(packed(used())))
    assert torch.equal(weights(fitted("emnist", CPU)), weights(trained("emnist", CPU)))
    assert torch.equal(weights(fitted("mnist", CPU, steps=2)), weights(trained("mnist", CPU, steps=2)))
    assert [name for name, _ in planted] == ["emnist", "mnist"]


def test_the_identity_of_a_flow_changes_with_all_that_makes_it_another(package, tiny, monkeypatch):
    alone = [identity(name, CPU, steps=steps) for name in ("fonts", "mnist", "cifar10") for steps in (0, 1, 2)]
    assert len(set(alone)) == 9
    place = package / "mnist_flow.safetensors"
    place.write_bytes(save(packed(used(seed=0))))
    one = identity("mnist", CPU)
    place.write_bytes(save(packed(used(seed=1))))
    other = identity("mnist", CPU)
    assert len({one, other, *alone}) == 11
    assert [identity("mnist", CPU, steps=1), identity("fonts", CPU)] == [alone[4], alone[0]]
    assert identity("mnist", torch.device("cuda:0")) == other, "a file is the same everywhere"
    place.unlink()
    assert identity("mnist", CPU) == alone[3]
    monkeypatch.setattr(flows, "GREY", flows.GREY.model_copy(update={"lr": 0.5}))
    assert identity("mnist", CPU) != alone[3]
    assert identity("cifar10", CPU) == alone[6]


@pytest.mark.parametrize("dataset", SHIPPED)
def test_the_shipped_flows_are_small_exact_and_of_the_recipe(dataset):
    assert flows._file(dataset) is not None
    assert len(flows._file(dataset)) < 100_000
    model = fitted(dataset, CPU)
    x = load("fonts_easy", 1, "first", 50, CPU, held_out=1).x_test
    with torch.no_grad():
        z, _ = model(x)
        assert (model.inverse(z) - x).abs().max() <= 1e-5
        double = model.double()
        assert (double.inverse(double(x.double())[0]) - x).abs().max() <= 1e-10


@pytest.mark.parametrize("eta", [0.02, 0.3])
def test_the_shipped_flow_meets_a_budget_in_the_code_without_a_search_until_images_are_cut(eta):
    """Letters have a black ground, so decoded values fall below 0 in all of them, and cutting these breaks the budget
    by more than the budget itself.
    """
    x, model = load("fonts_easy", 1, "first", 30, CPU, held_out=1).x_test, fitted("fonts_easy", CPU)
    z = model.encode(x)
    moved = z + eta * (2 * torch.rand(z.shape, generator=seeded()) - 1).sign()
    whole, cut = (model.encode(decode(moved)) - z for decode in (model.inverse, model.decode))
    assert (whole.abs().amax(1) - eta).abs().max() <= 1e-4
    assert (cut.abs().amax(1) > 2 * eta).all()


def test_the_shipped_flow_of_letters_knows_letters_from_noise_and_from_other_images():
    x = load("fonts_easy", 1, "first", 50, CPU, held_out=1).x_test
    seen = flow.noisy(x, seeded())
    with torch.no_grad():
        letters, clothes = (fitted(dataset, CPU) for dataset in SHIPPED)
        bits = letters.bits_per_dim(seen)
        assert float(bits.mean()) < 4
        assert (letters.bits_per_dim(torch.rand(x.shape, generator=seeded())) > bits.max()).all()
        mixed_up = seen.flatten(1)[:, torch.randperm(784, generator=seeded())].view_as(seen)
        assert (letters.bits_per_dim(mixed_up) > bits).all()
        assert (clothes.bits_per_dim(seen) > bits).float().mean() > 0.9
        assert float(letters.encode(seen).std()) == pytest.approx(1, abs=0.2)
