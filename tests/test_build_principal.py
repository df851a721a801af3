"""The script that computes the principal directions of Fashion-MNIST which the package ships."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from advbook.datasets import Images
from advbook.sliders import principal

ROOT = Path(__file__).resolve().parent.parent
SIDE = 28

spec = importlib.util.spec_from_file_location("build_principal", ROOT / "scripts/build_principal.py")
build_principal = sys.modules["build_principal"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_principal)


def images(rows: int = 400, side: int = 6, classes: int = 2, seed: int = 0) -> Images:
    """Noise whose pixels differ in variance, brighter in class 1."""
    random = torch.Generator().manual_seed(seed)
    y = torch.arange(rows) % classes
    x = torch.rand(rows, 1, side, side, generator=random) * torch.linspace(0.2, 0.6, side) + 0.2 * (y == 1).view(
        -1, 1, 1, 1
    )
    return Images(x, y, "toy", "train", tuple(f"c{k}" for k in range(classes)), "made up")


def test_directions_are_those_of_numpys_singular_values():
    x = images().x.flatten(1)
    part = build_principal.principal(images().x, 3, tuple(range(4, 37)))  # all of them
    vectors = part["directions"].flatten(1)
    centred = x.double().numpy() - x.double().numpy().mean(0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    assert part["means"].flatten().numpy() == pytest.approx(x.double().mean(0).numpy())
    assert part["variances"].numpy() == pytest.approx(singular**2 / len(x))
    assert np.abs((vectors.numpy() * right).sum(1)) == pytest.approx(1)
    assert (vectors.gather(1, vectors.abs().argmax(1, keepdim=True)) > 0).all()


def test_scales_are_those_of_probabilistic_pca_and_late_ones_that_of_the_first():
    part = build_principal.principal(images().x, 3, (10, 36))
    every = build_principal.principal(images().x, 3, tuple(range(4, 37)))
    values, vectors = every["variances"], every["directions"].flatten(1)
    noise = values[3:].mean()
    assert part["scales"][:3].square() + noise == pytest.approx(values[:3])
    assert part["scales"][3:].tolist() == [part["scales"][0].item()] * 2
    assert torch.equal(part["directions"].flatten(1), vectors[[0, 1, 2, 9, 35]])
    assert torch.equal(part["variances"], values[[0, 1, 2, 9, 35]])


def test_the_model_of_the_first_directions_has_their_variances():
    """W W^T + sigma^2 I, the covariance of probabilistic PCA, has the first eigenvalues of the data."""
    part = build_principal.principal(images().x, 3, ())
    values = build_principal.principal(images().x, 3, tuple(range(4, 37)))["variances"]
    w = part["directions"].flatten(1).T * part["scales"]
    covariance = w @ w.T + values[3:].mean() * torch.eye(36)
    assert torch.linalg.eigvalsh(covariance).flip(0)[:3] == pytest.approx(values[:3])
    assert covariance.trace().item() == pytest.approx(values.sum().item())


@pytest.mark.parametrize("late", [(3,), (37,)])
def test_late_directions_that_are_none_are_refused(late):
    with pytest.raises(ValueError, match=r"late = .*allowed are directions from 4 to 36"):
        build_principal.principal(images().x, 3, late)


def test_accuracy_is_the_share_of_right_classes():
    data = images(2500)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2))
    right = (network(data.x).argmax(1) == data.y).sum().item()
    assert build_principal.accuracy(network, data.x, data.y) == pytest.approx(right / 2500)


def test_a_build_is_repeatable_and_the_package_reads_what_it_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build_principal.datasets, "load", lambda name, split="train": images(300, SIDE, 3, len(split)))
    for name in ("a", "b"):
        build_principal.build(tmp_path / name, rows=200, epochs=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "bytes" in capsys.readouterr().out
    held = load_file(tmp_path / "a")
    assert held["directions"].shape == (3, 10, SIDE, SIDE)
    assert held["directions"].dtype == held["classifier.0.weight"].dtype == torch.float16
    (tmp_path / "data").mkdir()
    (tmp_path / "a").rename(tmp_path / "data/fashion_mnist_principal.safetensors")
    monkeypatch.setattr(principal, "files", lambda package: tmp_path)
    figure = principal.shipped()
    assert figure.class_names == ["c0", "c1", "c2"]
    assert re.search(r"The classifier has \d+\.\d % of the test images right\.$", figure.note)
    own = images(300, SIDE, 3, len("train"))
    assert figure._mean[1].numpy() == pytest.approx(own.x[own.y == 1].mean((0, 1)).numpy(), abs=1e-3)
    network = build_principal.classifier(own.x[:200], own.y[:200], 3, 1)
    with torch.no_grad():
        assert figure._network(own.x[:20]).numpy() == pytest.approx(network(own.x[:20]).numpy(), abs=2e-2)


def test_missing_images_are_one_sentence(tmp_path, monkeypatch, capsys):
    def gone(name: str, split: str = "train") -> Images:
        raise build_principal.datasets.MissingData("Fashion-MNIST is nowhere.")

    monkeypatch.setattr(build_principal.datasets, "load", gone)
    with pytest.raises(SystemExit) as stop:
        build_principal.main(["--output", str(tmp_path / "x")])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "build_principal: Fashion-MNIST is nowhere.\n"
