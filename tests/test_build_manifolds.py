"""The script that learns the small manifolds which the package ships."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toys import seeded

from advbook import networks
from advbook.experiments import learned
from advbook.experiments.setting import Codes, Setting
from advbook.manifolds import vaegan
from advbook.manifolds.vaegan import BOUND
from advbook.sliders.learned import LearnedSlider, shipped

ROOT = Path(__file__).resolve().parent.parent
CLASSES, LATENTS = 3, 10

spec = importlib.util.spec_from_file_location("build_manifolds", ROOT / "scripts/build_manifolds.py")
build_manifolds = sys.modules["build_manifolds"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_manifolds)


def pairs(count):
    return [vaegan.autoencoder("small", (1, 28, 28), generator=seeded(k)).eval() for k in range(count)]


def classifier(seed=0):
    return networks.cnn(CLASSES, (2, 3), generator=seeded(seed)).eval()


def points(count=20):
    """Codes whose images are squares as bright as the codes say."""

    def decode(z, y):
        return z.sigmoid().mean(1)[:, None, None, None].expand(-1, 1, 28, 28)

    bound = torch.full((LATENTS,), BOUND)
    z = torch.randn(count, LATENTS, generator=seeded()).clamp(-BOUND, BOUND)
    return Codes(z, (torch.zeros(count).long(),), decode, -bound, bound)


class Bright(nn.Module):
    """Reads class 1 in an image brighter than a bound, class 0 in others."""

    def __init__(self, bound):
        super().__init__()
        self.bound = bound

    def forward(self, x):
        over = 20 * (x.flatten(1).mean(1) - self.bound)
        return torch.stack([-over, over], 1)


def test_a_walk_begins_without_a_move_and_keeps_to_budget_and_box():
    codes, f = points(), Bright(0.52)
    path = build_manifolds.walk(codes, f, torch.zeros(20).long())
    assert path.shape == (build_manifolds.STEPS + 1, 20, LATENTS)
    assert not path[0].any()
    assert path.abs().max() <= build_manifolds.ETA + 1e-6
    assert (codes.z + path).abs().max() <= BOUND + 1e-6
    assert (f(codes.decode(codes.z + path[-1], *codes.context))[:, 1] > f(codes.images())[:, 1]).all(), "it climbs"


def test_the_walks_prefer_images_that_are_read_rightly_and_then_fooled(monkeypatch):
    count = 40
    monkeypatch.setattr(build_manifolds, "EXAMPLES", 4)
    monkeypatch.setattr(build_manifolds, "BANK", 2)
    x = torch.rand(count, 1, 28, 28, generator=seeded(1))
    y = torch.arange(count) % 2
    setting = Setting(x, y, x, y, x, y, ("a", "b"), "fashion_mnist")
    monkeypatch.setattr(build_manifolds, "load", lambda *given, **named: setting)
    codes = points(count)
    monkeypatch.setattr(learned, "codes", lambda *given, **named: codes)
    f = Bright(0.52)
    held = build_manifolds.walks("fashion_mnist", pairs(2), f)
    assert {name: tuple(tensor.shape) for name, tensor in held.items()} == {
        "images": (2, 4, 28, 28),
        "codes": (2, 4, LATENTS),
        "paths": (2, 4, build_manifolds.STEPS + 1, LATENTS),
        "bank": (2, 2, 28, 28),
        "eta": (),
    }
    for label in range(2):
        z, path = held["codes"][label], held["paths"][label]
        before, after = (f(codes.decode(own, None)).argmax(1) for own in (z, z + path[:, -1]))
        good = [int(r) + int(r and b) for r, b in zip(before == label, after != label, strict=True)]
        assert good == sorted(good, reverse=True)
        assert any((codes.z == own).all(1).any() for own in z)


def test_what_is_written_is_read_back_with_the_error_that_is_printed(tmp_path, monkeypatch, capsys):
    x = torch.rand(30, 1, 28, 28, generator=seeded(2))
    y = torch.arange(30) % CLASSES
    setting = Setting(x, y, x, y, x, y, ("a", "b", "c"), "mnist")
    monkeypatch.setattr(build_manifolds, "load", lambda *given, **named: setting)
    members = {"class": pairs(CLASSES), "data": pairs(1)}
    monkeypatch.setattr(learned, "trained", lambda dataset, where, size, device: members[where])
    output = tmp_path / "mnist_manifolds.safetensors"
    build_manifolds.main(["mnist", "--output", str(output)])
    tensors = load_file(output)
    printed = capsys.readouterr().out
    for where in ("class", "data"):
        back = learned.unpacked(tensors, where)
        assert len(back) == len(members[where])
        assert f"with 8 bits {build_manifolds.error(back, x, y):.4f}" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name], "walks are Fashion-MNIST's alone"


def test_a_failure_is_one_sentence(monkeypatch, capsys):
    def missing(*given, **named):
        raise OSError("mnist is not there.")

    monkeypatch.setattr(learned, "trained", missing)
    with pytest.raises(SystemExit) as error:
        build_manifolds.main(["mnist"])
    assert error.value.code == 1
    assert capsys.readouterr().err == "build_manifolds: mnist is not there.\n"


def test_the_shipped_manifolds_are_small_and_complete():
    folder = ROOT / "advbook/data"
    files = sorted(folder.glob("*_manifolds.safetensors"))
    assert {path.name.removesuffix("_manifolds.safetensors") for path in files} >= {"fashion_mnist"}
    assert sum(path.stat().st_size for path in [*files, *folder.glob("*_walks.safetensors")]) < 4_500_000
    for path in files:
        dataset = path.name.removesuffix("_manifolds.safetensors")
        assert (len(learned.shipped(dataset, "class")), len(learned.shipped(dataset, "data"))) == (10, 1)


def test_the_shipped_figure_shows_images_that_its_classifier_reads_and_the_attack_fools():
    figure = shipped()
    assert isinstance(figure, LearnedSlider)
    assert len(figure.class_names) == 10
    assert figure.eta == pytest.approx(build_manifolds.ETA)
    held = load_file(ROOT / "advbook/data/fashion_mnist_walks.safetensors")
    assert held["codes"].abs().max() <= BOUND
    fooled = 0
    for label in range(10):
        figure.label = label
        first, last = (figure.image(held["codes"][label] + held["paths"][label][:, t]) for t in (0, -1))
        network = figure._network
        right, wrong = network(first).argmax(1) == label, network(last).argmax(1) != label
        assert right.any(), figure.class_names[label]
        fooled += int((right & wrong).sum())
    assert fooled > 10
