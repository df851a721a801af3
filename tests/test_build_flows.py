"""The script that learns the flows which the package ships."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import seeded

from advbook.experiments import flows
from advbook.experiments.setting import Setting
from advbook.manifolds.flow import Recipe, noisy

ROOT = Path(__file__).resolve().parent.parent

spec = importlib.util.spec_from_file_location("build_flows", ROOT / "scripts/build_flows.py")
build_flows = sys.modules["build_flows"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_flows)


@pytest.fixture
def tiny(monkeypatch):
    """A flow that takes no time, in the place of the trained one, and images to measure it on."""
    monkeypatch.setattr(flows, "GREY", Recipe(depths=(1, 1), width=4))
    model = flows.GREY.build((1, 28, 28), seeded())
    for value in model.parameters():
        value.data += 0.05 * torch.randn(value.shape, generator=seeded(value.numel()))
    asked, x = [], torch.rand(20, 1, 28, 28, generator=seeded(1))
    setting = Setting(x[:5], None, x, None, x[:5], None, (), "fashion_mnist")
    monkeypatch.setattr(flows, "trained", lambda dataset, device: (asked.append(dataset), model)[1])
    monkeypatch.setattr(build_flows, "load", lambda *given, **named: (asked.append(given[3]), setting)[1])
    return model, x, asked


def test_what_is_written_is_read_back_with_the_bits_that_are_printed(tmp_path, tiny, capsys):
    model, x, asked = tiny
    output = tmp_path / "some_flow.safetensors"
    build_flows.main(["fashion_mnist", "--output", str(output)])
    assert asked == ["fashion_mnist", build_flows.IMAGES]
    back = flows.unpacked(load_file(output), "fashion_mnist")
    for name, value in back.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half().float())
    with torch.no_grad():
        seen = noisy(x, seeded())
        whole, rounded = (float(own.bits_per_dim(seen).mean()) for own in (model, back))
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{output}: {output.stat().st_size:,} bytes"
    found = [float(number) for number in re.findall(r"\d+\.\d{4}", second)]
    assert found == pytest.approx([whole, rounded], abs=1e-4)
    assert re.sub(r"\d+\.\d{4}", "N", second) == "bits per dimension on test images N, with weights of 16 bits N"
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_the_file_goes_where_the_package_reads_it(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(build_flows, "ROOT", tmp_path)
    (tmp_path / "advbook/data").mkdir(parents=True)
    build_flows.main(["fonts_easy"])
    assert [path.name for path in (tmp_path / "advbook/data").iterdir()] == ["fonts_easy_flow.safetensors"]
    monkeypatch.setattr(flows, "files", lambda name: tmp_path / name)
    assert torch.equal(
        flows.fitted("fonts_easy", build_flows.DEVICE).scales[0][0].shift, tiny[0].scales[0][0].shift.half()
    )


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_a_failure_is_one_sentence(error, monkeypatch, capsys):
    def missing(*given, **named):
        raise error("fonts is not there.")

    monkeypatch.setattr(flows, "trained", missing)
    with pytest.raises(SystemExit) as stopped:
        build_flows.main(["fonts_easy"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "build_flows: fonts is not there.\n"


def test_only_data_sets_of_which_the_package_ships_a_flow_can_be_named(capsys):
    with pytest.raises(SystemExit) as error:
        build_flows.main(["cifar10"])
    assert error.value.code == 2
    assert "choose from" in capsys.readouterr().err
