"""advbook.experiments.learned: codes, boxes and identities of learned manifolds; how they are trained, kept and
shipped.

Here too: `planted`, a data set of ten classes whose learned manifolds are known exactly, for the tests of experiments.
"""

import pytest
import torch
from safetensors.torch import save
from torch import nn
from toys import seeded

from advbook import datasets, store
from advbook.experiments import learned, setting
from advbook.experiments.learned import autoencoders, codes, identity
from advbook.experiments.setting import load
from advbook.manifolds import vaegan
from advbook.manifolds.vaegan import Autoencoder, autoencoder

CPU = torch.device("cpu")
REAL = ("emnist", "mnist", "fashion_mnist", "celeba")
COUNT = 300  # images of a split of the planted data set
LATENTS = 10


# --- a planted data set and its manifolds -------------------------------------------------------------------------


def drawn_codes(count, seed):
    """Codes of the planted images; a few lie outside [-2, 2]."""
    return torch.randn(count, LATENTS, generator=seeded(seed)).clamp(-3, 3)


def image_of(z, y):
    """A planted image: pixel (0, i) shows z_i, pixels (1..3, 2 k) the class k: [B, 10], [B] -> [B, 1, 28, 28]."""
    x = torch.zeros(len(z), 1, 28, 28)
    x[:, 0, 0, :LATENTS] = 0.5 + z / 8
    x[torch.arange(len(z)), 0, 1:4, 2 * y] = 1
    return x


def planted_images(split, count=COUNT):
    """Images, classes and codes. What a manifold does not know is a pixel (5, 0) of noise."""
    seed = {"train": 1, "test": 2}[split]
    z, y = drawn_codes(COUNT, seed)[:count], (torch.arange(COUNT) % 10)[:count]
    x = image_of(z, y)
    x[:, 0, 5, 0] = torch.rand(COUNT, generator=seeded(seed + 10))[:count]
    return x, y, z


def _linear(weight, bias):
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight, bias
    return layer


def class_pair(label):
    """The manifold of a class: it knows z and nothing else."""
    reads = torch.zeros(2 * LATENTS, 784)
    reads[range(LATENTS), range(LATENTS)] = 8.0
    mean = torch.zeros(2 * LATENTS)
    mean[:LATENTS] = -4.0
    bias = image_of(torch.zeros(1, LATENTS), torch.tensor([label])).flatten()
    encoder = nn.Sequential(nn.Flatten(), _linear(reads, mean))
    decoder = nn.Sequential(_linear(reads[:LATENTS].T / 64, bias), nn.Unflatten(1, (1, 28, 28)))
    return Autoencoder(encoder, decoder).requires_grad_(False).eval()


def data_pair():
    """One manifold for all classes: its codes show the class, 2 for the own one and -2 for all others, and no z."""
    reads, writes = torch.zeros(2 * LATENTS, 28, 28), torch.zeros(28, 28, LATENTS)
    for label in range(10):
        reads[label, 1, 2 * label] = 4.0
        writes[1:4, 2 * label, label] = 0.25
    mean, bias = torch.zeros(2 * LATENTS), torch.zeros(28, 28)
    mean[:LATENTS] = -2.0
    bias[1:4, 0:20:2], bias[0, :LATENTS] = 0.5, 0.5
    encoder = nn.Sequential(nn.Flatten(), _linear(reads.flatten(1), mean))
    decoder = nn.Sequential(_linear(writes.view(784, LATENTS), bias.flatten()), nn.Unflatten(1, (1, 28, 28)))
    return Autoencoder(encoder, decoder).requires_grad_(False).eval()


def plant(patch, *, manifolds=True):
    """Put the planted data set in the place of all real ones (28 x 28), and its manifolds in that of learned ones."""

    def load(name, split, *, n=None, device=CPU):
        x, y, _ = planted_images(split, COUNT if n is None else n)
        return datasets.Images(x=x, y=y, name=name, split=split, classes=tuple("0123456789"), source="planted")

    patch.setattr(datasets, "load", load)
    for module in (setting, learned):
        patch.setattr(module, "train_size", lambda dataset: COUNT)
    if manifolds:

        def known(dataset, where, size, device, *, epochs=0):
            return [class_pair(label) for label in range(10)] if where == "class" else [data_pair()]

        patch.setattr(learned, "autoencoders", known)
        patch.setattr(learned, "identity", lambda dataset, where, size, device: f"planted-{where}-{size}")


@pytest.fixture
def planted(monkeypatch):
    plant(monkeypatch)
    return load("mnist", 100, "first", 50, CPU, held_out=30)


def test_the_planted_manifolds_know_the_planted_images():
    """The tests of experiments stand on this."""
    x, y, z = planted_images("test", 40)
    pairs = [class_pair(label) for label in range(10)]
    torch.testing.assert_close(vaegan.encode(pairs, x, y), z)
    torch.testing.assert_close(vaegan.Decoders(pairs)(z, y), image_of(z, y))
    code = vaegan.encode([data_pair()], x, y)
    assert torch.equal(code.argmax(1), y)
    again = data_pair().decoder(code)
    torch.testing.assert_close(again[:, :, 1:], image_of(z, y)[:, :, 1:])
    assert (again[:, 0, 0, :LATENTS] == 0.5).all()


# --- codes and boxes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["train", "test"])
def test_codes_lie_in_the_box_of_the_paper_and_show_their_class(planted, part):
    found = codes(planted, part, "class")
    x, y, z = planted_images(part, 100 if part == "train" else 50)
    assert (z.abs() > 2).any(), "the case must have codes outside"
    torch.testing.assert_close(found.z, z.clamp(-2, 2))
    assert torch.equal(torch.stack([found.low, found.high]), torch.tensor([[-2.0], [2.0]]).expand(2, LATENTS))
    assert len(found.context) == 1
    assert torch.equal(found.context[0], y)
    for batch in (1_000, 7):
        torch.testing.assert_close(found.images(batch=batch), image_of(z.clamp(-2, 2), y))
    assert not torch.allclose(found.images(), x, atol=0.1), "what a manifold does not know is not there"


def test_the_box_of_the_codes_is_their_range_and_clips_none(planted):
    found = codes(planted, "test", "class", box="codes")
    z = planted_images("test", 50)[2]
    torch.testing.assert_close(found.z, z)
    torch.testing.assert_close(torch.stack([found.low, found.high]), torch.stack([z.amin(0), z.amax(0)]))


def test_a_space_is_that_of_the_codes(planted):
    found = codes(planted, "test", "class")
    space = found.space(0.25)
    far = space.project(torch.full_like(found.z, 9.0))
    torch.testing.assert_close(far, (2 - found.z).clamp_max(0.25))
    torch.testing.assert_close(space.image(far), image_of(found.z + far, planted.y_test))


def test_one_manifold_for_all_has_codes_of_its_own(planted):
    found = codes(planted, "test", "data")
    assert torch.equal(found.z.argmax(1), planted.y_test)
    assert torch.equal(found.images().flatten(1)[:, 28:112].argmax(1) // 2 % 14, planted.y_test)


@pytest.mark.parametrize("part", ["train", "test"])
def test_on_the_true_manifold_the_images_of_the_codes_are_the_images(part):
    fonts = load("fonts", 40, "first", 30, CPU, held_out=10)
    found, x = codes(fonts, part, "true"), fonts.x if part == "train" else fonts.x_test
    torch.testing.assert_close(found.images(), x, atol=1e-6, rtol=0)
    assert len(found.context) == 2
    assert torch.equal(found.low, fonts.known.manifold.low)
    narrow = codes(fonts, part, "true", box="codes")
    assert torch.equal(narrow.low, found.z.amin(0))
    assert torch.equal(narrow.high, found.z.amax(0))


def test_without_a_true_manifold_asking_for_it_is_refused_in_a_sentence(planted):
    with pytest.raises(ValueError, match="where = 'true': the true manifold of MNIST is not known") as caught:
        codes(planted, "test", "true")
    assert str(caught.value).endswith(".")


def test_the_best_manifold_is_the_true_one_where_there_is_one():
    assert [learned.own(name) for name in ("fonts", "fonts_easy", *REAL)] == ["true", "true", *["class"] * 4]


# --- recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dataset", "betas", "epochs"), [
    ("fonts", [3.0] * 10, 10),
    ("emnist", [2.25, 5.0, *[2.25] * 5, 3.0, 2.25, 2.25], 30),
    ("fashion_mnist", [2.75] * 10, 60),
    ("celeba", [3.0] * 2, 30),
])  # fmt: skip
def test_manifolds_of_the_paper_s_size_are_trained_as_published(dataset, betas, epochs):
    members = learned._recipes(dataset, "class", "paper", CPU)
    (whole,) = learned._recipes(dataset, "data", "paper", CPU)
    assert [own.beta for own in members] == betas
    assert whole.beta == 3.0
    for own in (*members, whole):
        assert (own.epochs, own.batch, own.lr, own.decay) == (epochs, 100, 0.005, 0.9)
        assert (own.weight_decay, own.gamma, own.size) == (1e-4, 1.0, "paper")
    assert learned._images(dataset, "paper") == setting.train_size(dataset)


def test_digits_of_mnist_are_trained_as_those_of_emnist():
    own, other = ([one.beta for one in learned._recipes(name, "class", "paper", CPU)] for name in ("mnist", "emnist"))
    assert own == other


@pytest.mark.parametrize("dataset", ["fonts", *REAL])
@pytest.mark.parametrize("where", ["class", "data"])
def test_small_manifolds_see_about_as_many_images_whatever_the_data_set(dataset, where):
    recipes = learned._recipes(dataset, where, "small", CPU)
    shown = recipes[0].epochs * learned._images(dataset, "small")
    assert shown == pytest.approx(learned.SEEN[where], rel=0.5)
    assert {own.size for own in recipes} == {"small"}
    for own in recipes:
        assert own.rate(own.epochs) / own.rate(0) == pytest.approx(learned.LAST, rel=0.01)
    (asked,) = {own.epochs for own in learned._recipes(dataset, where, "small", CPU, 10)}
    assert asked == 10


def test_celeba_has_25_latents_and_all_others_10():
    assert {name: learned.LATENTS.get(name, vaegan.LATENTS) for name in ("fonts", *REAL)} == {
        "fonts": 10, "emnist": 10, "mnist": 10, "fashion_mnist": 10, "celeba": 25
    }  # fmt: skip


# --- training, the store and the package --------------------------------------------------------------------------


def counted(patch):
    """How often vaegan.train was called, and for how many members."""
    asked, train = [], vaegan.train

    def seen(pairs, *given, **options):
        asked.append(len(pairs))
        return train(pairs, *given, **options)

    patch.setattr(vaegan, "train", seen)
    patch.setitem(vaegan.WIDTHS, "small", vaegan.Widths((2, 3), (3, 2), (2, 3)))
    patch.setattr(learned, "_file", lambda dataset: None)
    return asked


def weights(pair):
    return torch.cat([value.flatten().double() for value in pair.state_dict().values()])


def test_manifolds_are_trained_once_and_then_read(home, monkeypatch):
    plant(monkeypatch, manifolds=False)
    asked = counted(monkeypatch)
    first = autoencoders("mnist", "class", "small", CPU, epochs=1)
    again = autoencoders("mnist", "class", "small", CPU, epochs=1)
    assert asked == [10]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(weights(one), weights(other))
        assert not one.training
        assert not other.training
    assert len({float(weights(one).sum()) for one in first}) == 10
    autoencoders("mnist", "data", "small", CPU, epochs=1)
    assert asked == [10, 1]
    autoencoders("mnist", "class", "small", CPU, epochs=2)
    assert asked == [10, 1, 10]


def test_each_class_is_learned_from_its_own_images(home, monkeypatch):
    plant(monkeypatch, manifolds=False)
    seen = []
    counted(monkeypatch)

    def spied(pairs, x, rows, recipes, *, epoch, generators, label):
        seen.append((x, rows, recipes, label))
        assert epoch == max(map(len, rows))
        return pairs

    monkeypatch.setattr(vaegan, "train", spied)
    autoencoders("mnist", "class", "small", CPU, epochs=1)
    autoencoders("mnist", "data", "small", CPU, epochs=1)
    (x, rows, recipes, text), (_, (everything,), (_,), other) = seen
    y = planted_images("train")[1]
    assert len(x) == COUNT
    for label, own in enumerate(rows):
        assert torch.equal(own, (y == label).nonzero()[:, 0])
    assert [own.beta for own in recipes] == [2.25, 5, *[2.25] * 5, 3, 2.25, 2.25]
    assert torch.equal(everything, torch.arange(COUNT))
    assert (text, other) == ("learning class manifolds of MNIST", "learning one manifold of MNIST")


def test_a_member_that_the_store_lost_comes_back_the_same(home, monkeypatch):
    plant(monkeypatch, manifolds=False)
    asked = counted(monkeypatch)
    first = autoencoders("mnist", "class", "small", CPU, epochs=1)
    key = store.fingerprint(learned._keys("mnist", "class", "small", CPU, 1)[3])
    (home / "models" / f"{key}.safetensors").unlink()
    again = autoencoders("mnist", "class", "small", CPU, epochs=1)
    assert asked == [10, 1]
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(weights(one), weights(other), atol=1e-5, rtol=1e-4)


def test_all_that_decides_a_manifold_is_in_its_key():
    keys = [
        key
        for dataset in ("fonts", "mnist", "emnist")
        for where in ("class", "data")
        for size in ("small", "paper")
        for epochs in (0, 5)
        for key in learned._keys(dataset, where, size, CPU, epochs)
    ]
    assert len({store.fingerprint(key) for key in keys}) == len(keys) == 3 * 2 * 2 * 11


def shipped_file(folder, *, seed=0):
    """A file as the package ships it, of two classes and one manifold for all."""
    tensors, pairs = {}, {}
    for where, count in (("class", 2), ("data", 1)):
        for member in range(count):
            pair = autoencoder("small", (1, 28, 28), generator=seeded(seed + member)).eval()
            state = vaegan.quantized(pair)
            pairs[where, member] = vaegan.restored(state, "small", (1, 28, 28))
            tensors |= {f"{where}.{member}.{name}": value for name, value in state.items()}
    place = folder / "advbook" / "data" / "mnist_manifolds.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(save(tensors))
    return pairs


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose data folder is empty."""
    monkeypatch.setattr(learned, "files", lambda name: tmp_path / name)
    return tmp_path


def test_shipped_manifolds_win_and_nothing_is_trained(home, package, monkeypatch):
    pairs = shipped_file(package)
    monkeypatch.setattr(vaegan, "train", lambda *given, **options: pytest.fail("they are shipped"))
    x = torch.rand(3, 1, 28, 28, generator=seeded())
    for where, count in (("class", 2), ("data", 1)):
        found = autoencoders("mnist", where, "small", CPU)
        assert len(found) == count
        for member, pair in enumerate(found):
            expected = pairs[where, member]
            assert torch.equal(pair.encode(x), expected.encode(x))
            assert torch.equal(pair.decoder(pair.encode(x)), expected.decoder(expected.encode(x)))
    assert not home.exists()


def test_only_small_manifolds_of_the_full_training_are_shipped(home, package, monkeypatch):
    plant(monkeypatch, manifolds=False)
    shipped_file(package)
    asked = []
    monkeypatch.setattr(store, "trained", lambda keys, fresh, train: (asked.append(keys[0]["size"]), fresh)[1])
    autoencoders("mnist", "class", "paper", CPU)
    autoencoders("mnist", "class", "small", CPU, epochs=1)
    autoencoders("emnist", "class", "small", CPU)
    assert asked == ["paper", "small", "small"]


def test_the_identity_of_a_manifold_changes_with_all_that_makes_it_another(package):
    assert identity("fonts", "true", "small", CPU) == "true"
    trained = {identity(name, where, size, CPU) for name in ("mnist", "emnist") for where in ("class", "data")
               for size in ("small", "paper")}  # fmt: skip
    assert len(trained) == 8
    shipped_file(package)
    one = [identity("mnist", where, "small", CPU) for where in ("class", "data")]
    assert not set(one) & trained
    assert len(set(one)) == 2
    assert identity("mnist", "class", "paper", CPU) in trained
    assert identity("emnist", "class", "small", CPU) in trained
    shipped_file(package, seed=5)
    other = [identity("mnist", where, "small", CPU) for where in ("class", "data")]
    assert len(set(one + other)) == 4
    shipped_file(package)
    assert [identity("mnist", where, "small", CPU) for where in ("class", "data")] == one
