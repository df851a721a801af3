"""advbook.experiments.setting: which images a point trains on, attacks and holds out."""

import numpy as np
import pytest
import torch

from advbook import datasets, fonts
from advbook.experiments import setting
from advbook.experiments.setting import FONTS, load

CPU = torch.device("cpu")
SPLITS = {"train": 20, "test": 9}


@pytest.fixture
def numbered(monkeypatch):
    """A data set whose images are filled with their number, those of the training set from 100 on."""

    def given(name, split, *, n=None, device=CPU):
        count = SPLITS[split] if n is None else n
        assert count <= SPLITS[split]
        numbers = torch.arange(count) + (100 if split == "train" else 0)
        x = numbers.float()[:, None, None, None].expand(-1, 1, 2, 2)
        return datasets.Images(x=x, y=numbers % 10, name=name, split=split, classes=tuple("0123456789"), source="")

    monkeypatch.setattr(datasets, "load", given)
    monkeypatch.setattr(setting, "train_size", lambda dataset: SPLITS["train"])
    monkeypatch.setattr(setting, "held_size", lambda dataset: SPLITS["test"])


def numbers(x):
    return x[:, 0, 0, 0].int().tolist()


def test_real_data_is_attacked_first_and_held_out_next(numbered):
    found = load("mnist", 5, "first", 3, CPU, held_out=4)
    assert numbers(found.x) == [100, 101, 102, 103, 104]
    assert numbers(found.x_test) == [0, 1, 2]
    assert numbers(found.x_held_out) == [3, 4, 5, 6]
    for x, y in ((found.x, found.y), (found.x_test, found.y_test), (found.x_held_out, found.y_held_out)):
        assert y.tolist() == [number % 10 for number in numbers(x)]
    assert found.known is None


@pytest.mark.parametrize(("held_out", "spare"), [(6, []), (9, [105, 106, 107]), (100, list(range(105, 120)))])
def test_training_images_that_are_not_trained_on_fill_up_a_small_test_set(numbered, held_out, spare):
    found = load("mnist", 5, "first", 3, CPU, held_out=held_out)
    assert numbers(found.x) == [100, 101, 102, 103, 104]
    assert numbers(found.x_held_out) == [3, 4, 5, 6, 7, 8, *spare]
    assert found.y_held_out.tolist() == [number % 10 for number in numbers(found.x_held_out)]


def test_random_training_images_are_never_held_out_too(numbered):
    found = load("mnist", 8, "random", 3, CPU, held_out=15)
    trained, held = numbers(found.x), numbers(found.x_held_out)
    assert len(set(trained)) == 8
    assert trained != sorted(trained)
    assert held[:6] == [3, 4, 5, 6, 7, 8]
    assert len(held) == 15
    assert not set(held) & set(trained)


def test_easy_fonts_are_the_same_letters_moved_less():
    hard, easy = (load(name, 30, "first", 20, CPU, held_out=50) for name in FONTS)
    assert torch.equal(hard.y, easy.y)
    assert torch.equal(hard.y_held_out, easy.y_held_out)
    low, high = easy.known.manifold.low, easy.known.manifold.high
    assert torch.equal(torch.stack([low, high]), torch.stack(fonts.theta_box(difficulty="easy")))
    boxes = [(own.known.manifold.low, own.known.manifold.high) for own in (hard, easy)]
    unit = [(own.known.theta - low) / (high - low) for own, (low, high) in zip((hard, easy), boxes, strict=True)]
    torch.testing.assert_close(*unit, atol=1e-5, rtol=0)
    assert not torch.equal(hard.x, easy.x)
    assert (np.diff([float(own.known.theta.abs().mean()) for own in (easy, hard)]) > 0).all()


@pytest.mark.parametrize("name", FONTS)
def test_fonts_have_titles_classes_and_sizes(name):
    assert setting.title(name).startswith("FONTS")
    assert setting.classes(name) == tuple("ABCDEFGHIJ")
    assert setting.train_size(name) == fonts.TRAIN_ROWS
