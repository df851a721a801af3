"""advbook.figures: every plot from synthetic rows."""

import io

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from advbook import figures
from advbook.experiments.off_manifold import EDGES

mpl.use("Agg")


KINDS = ("adversarial", "sign steps", "random sign", "gaussian", "on-manifold move")


def rows(count: int = 40, kinds=KINDS) -> pd.DataFrame:
    """Pooled rows as the experiment makes them; without examples there are no numbers."""
    rng = np.random.default_rng(0)
    found = []
    for place, kind in enumerate(kinds):
        row = {"kind": kind, "count": count}
        for name, edges in EDGES.items():
            values = rng.normal(edges[-1] * (0.2 + 0.15 * place), edges[-1] / 20, count)
            row |= {f"{name}_counts": np.histogram(values, edges)[0].tolist(), name: values.mean() if count else np.nan}
            row |= {f"{name}_low": row[name] - 0.1, f"{name}_high": row[name] + 0.1}
        found.append(row)
    return pd.DataFrame(found)


def png(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def draw(name: str, table: pd.DataFrame):
    if name == "histograms":
        return figures.histograms(table, "distance", EDGES["distance"], "distance")
    return figures.intervals({"one": table, "two": table}, "ratio", "ratio", chance=0.99)


@pytest.fixture(autouse=True)
def nothing_open():
    plt.close("all")
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert left == []


@pytest.mark.parametrize("name", ["histograms", "intervals"])
def test_a_figure_draws_and_closes_itself(name):
    before = mpl.rcParams["axes.spines.top"]
    figure = draw(name, rows())
    assert plt.get_fignums() == []
    assert mpl.rcParams["axes.spines.top"] == before
    assert len(png(figure)) > 5_000


@pytest.mark.parametrize("name", ["histograms", "intervals"])
def test_a_figure_of_no_examples_draws_too(name):
    assert png(draw(name, rows(0)))


@pytest.mark.parametrize("name", ["histograms", "intervals"])
def test_a_figure_of_one_example_draws_too(name):
    assert png(draw(name, rows(1, KINDS[:1])))


def test_a_figure_that_fails_leaves_nothing_open():
    with pytest.raises(KeyError):
        figures.histograms(rows(), "nothing", EDGES["distance"], "distance")
    with pytest.raises(KeyError):
        draw("intervals", rows().assign(kind="of another kind"))


def test_histograms_have_a_line_a_kind_that_add_up_to_one():
    table = rows()
    (axes,) = draw("histograms", table).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(table.kind)
    for patch in axes.patches:
        values = patch.get_data().values
        assert values.sum() == pytest.approx(1)
    assert axes.get_xlabel() == "distance"


def test_the_histogram_shows_all_that_was_counted():
    table = rows()
    (axes,) = draw("histograms", table).axes
    filled = np.flatnonzero(np.sum(list(table.distance_counts), 0))
    low, high = axes.get_xlim()
    assert low <= EDGES["distance"][filled[0]]
    assert high >= EDGES["distance"][filled[-1] + 1]


def test_intervals_show_value_and_ends_of_every_kind():
    table = rows()
    left, right = draw("intervals", table).axes
    assert (left.get_title(), right.get_title()) == ("one", "two")
    assert [text.get_text() for text in left.get_yticklabels()] == list(table.kind)
    drawn = [line.get_xdata() for line in left.lines]
    for _, row in table.iterrows():
        assert any(np.allclose(x, [row.ratio_low, row.ratio_high]) for x in drawn if len(x) == 2)
        assert any(np.allclose(x, row.ratio) for x in drawn if len(x) == 1)
    assert any(np.allclose(x, 0.99) for x in drawn)


# --- pictures -------------------------------------------------------------------------------------------------


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_pictures_have_a_row_a_kind_and_a_column_an_example():
    figure = figures.pictures({"x": noise(3, 1, 28, 28), "delta": noise(3, 1, 28, 28) - 0.5}, ["A", "B", "C"])
    grid = np.array(figure.axes).reshape(2, 3)
    assert [axes.get_title() for axes in grid[0]] == ["A", "B", "C"]
    assert [line[0].get_ylabel() for line in grid] == ["x", "delta"]
    assert png(figure)


def test_an_image_is_grey_and_a_difference_red_and_blue():
    figure = figures.pictures({"x": noise(1, 1, 28, 28) / 2, "delta": -noise(1, 1, 28, 28) / 4}, ["A"])
    grey, signed = (axes.images[0] for axes in figure.axes)
    assert (grey.get_cmap().name, grey.get_clim()) == ("gray", (0, 1))
    low, high = signed.get_clim()
    assert signed.get_cmap().name == "RdBu_r"
    assert -low == high == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("shape", [(2, 28, 28), (2, 1, 28, 28)])
def test_pictures_with_and_without_a_channel(shape):
    assert png(figures.pictures({"x": noise(*shape)}, ["A", "B"]))


def test_empty_images_draw():
    assert png(figures.pictures({"black": np.zeros((1, 1, 28, 28)), "white": np.ones((1, 1, 28, 28))}, ["A"]))


def test_a_title_too_few_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        figures.pictures({"x": noise(2, 1, 28, 28)}, ["A"])


# --- looks ----------------------------------------------------------------------------------------------------


def test_every_kind_has_a_look_and_none_has_two():
    assert set(figures.LOOKS) == set(KINDS)


def test_colours_differ_for_the_eye_and_as_grey_or_by_line():
    """Red-blind, green-blind or in print: two kinds differ in colour, and in lightness or line style."""
    looks = list(figures.LOOKS.values())
    colours = np.array([to_rgb(colour) for colour, _ in looks])
    distance = np.abs(colours[:, None] - colours[None]).max(-1)
    assert (distance + np.eye(len(looks)) > 0.2).all()
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    for i, (_, line) in enumerate(looks):
        for j in range(i):
            assert line != looks[j][1] or abs(lightness[i] - lightness[j]) > 0.03
