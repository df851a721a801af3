"""The chapters on a real data set and its learned manifolds: papermill runs at a tiny size."""

import os
from pathlib import Path

import nbformat
import pytest

from advbook import chapters, datasets
from advbook.experiments import learned

pytestmark = pytest.mark.slow

REAL = Path(os.environ.get("ADVBOOK_DATA") or Path(__file__).parents[2] / "shared" / "data")
DATASET = "fashion_mnist"
PAGES = [name for name, chapter in chapters.CHAPTERS.items() if hasattr(chapter(), "manifold")]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    if not datasets.available(DATASET, REAL):
        pytest.skip(f"no real {DATASET} here")
    monkeypatch.setenv("ADVBOOK_DATA", str(REAL))
    monkeypatch.setenv("ADVBOOK_HOME", str(tmp_path / "home"))


def test_every_chapter_on_manifolds_reads_real_images():
    assert [name[:2] for name in PAGES] == ["01", "02", "03", "04", "le"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_on_real_images_is_drawn_whole_and_names_them(page, tmp_path):
    (entry,) = chapters.plan("tiny", {"DATASET": DATASET})[page]
    output = tmp_path / "page.ipynb"
    chapters.run(page, entry.injected(), output)
    cells = nbformat.read(output, 4).cells
    said = [str(output.get("data", output)) for cell in cells for output in cell.get("outputs", [])]
    assert not [output for cell in cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert any("Fashion-MNIST" in text for text in said)
    assert any("How this page was computed" in text for text in said)
    models = list(Path(os.environ["ADVBOOK_HOME"], "models").glob("*.safetensors"))
    assert len(models) < 20, "its manifolds are shipped, so no VAE-GAN was trained"
    assert learned.shipped(DATASET, "class")
