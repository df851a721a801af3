"""advbook.figures: every plot from synthetic rows."""

import base64
import io
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.display import Markdown
from matplotlib.colors import to_rgb

from advbook import figures
from advbook.experiments import defences
from advbook.experiments.off_manifold import EDGES
from advbook.experiments.recipes import TITLES

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
        return figures.histograms({"": table}, "distance", EDGES["distance"], "distance")
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
        figures.histograms({"": rows()}, "nothing", EDGES["distance"], "distance")
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


def test_a_kind_has_its_place_in_every_panel_and_leaves_it_empty_where_it_is_not():
    whole, gaps = rows(), rows(kinds=KINDS[::-2])
    left, right = figures.intervals({"whole": whole, "gaps": gaps}, "ratio", "ratio").axes
    heights = [
        {axes.lines[i].get_color(): axes.lines[i].get_ydata()[0] for i in range(len(axes.lines))}
        for axes in (left, right)
    ]
    assert len(heights[0]) == len(KINDS)
    assert len(heights[1]) == len(KINDS[::-2])
    assert heights[1].items() <= heights[0].items()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_wide_panels_stand_two_in_a_row(count):
    names = [str(i) for i in range(count)]
    figure = figures.intervals({name: rows() for name in names}, "ratio", "ratio")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == names
    assert [i for i, axes in enumerate(shown) if axes.get_xlabel()] == list(range(count))[-2:]
    assert figure.get_figwidth() <= 8.5


def test_panels_of_intervals_have_axes_of_their_own():
    small, large = rows(), rows()
    for name in ("ratio", "ratio_low", "ratio_high"):
        large[name] = 100 * large[name] + 100
    left, right = figures.intervals({"small": small, "large": large}, "ratio", "ratio").axes
    assert left.get_xlim()[1] < right.get_xlim()[0]


def test_histograms_of_several_tables_stand_under_each_other():
    one, other = figures.histograms({"one": rows(), "two": rows(1)}, "angle", EDGES["angle"], "angle").axes
    assert (one.get_title(), other.get_title()) == ("one", "two")
    assert (one.get_xlabel(), other.get_xlabel()) == ("", "angle")
    assert one.get_position().y0 > other.get_position().y0


# --- tabs -----------------------------------------------------------------------------------------------------


def test_tabs_hold_texts_and_figures_in_order():
    figure = figures.pictures({"x": noise(1, 1, 28, 28)}, ["A"])
    text = figures.tabs({"one": [Markdown("before"), (figure, 'a "noise" & more'), Markdown("after")], "two": []}).data
    lines = text.split("\n")
    assert (lines[0], lines[-1]) == (":::::{tab-set}", ":::::")
    assert [line for line in lines if "{tab-item}" in line] == ["::::{tab-item} one", "::::{tab-item} two"]
    assert lines.count("::::") == 2
    assert text.index("before") < text.index("<img") < text.index("after") < text.index("two")
    assert 'alt="a &quot;noise&quot; &amp; more"' in text
    pixels = base64.b64decode(re.search(r"base64,([^\"]+)", text)[1])
    assert pixels.startswith(b"\x89PNG")


@pytest.mark.parametrize("alt", ["", " "])
def test_a_figure_without_words_is_refused(alt):
    with pytest.raises(ValueError, match=r"alt = '.*' is not allowed: a figure needs words"):
        figures.tabs({"one": [(figures.pictures({"x": noise(1, 1, 28, 28)}, ["A"]), alt)]})


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


# --- curves over N, gains and the dial ------------------------------------------------------------------------


def points(recipes=("normal", "on_manifold"), sizes=(250, 1000, 40_000), seed: int = 0) -> pd.DataFrame:
    """A row a point as grid.table gives them, with two quantities."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame([{"recipe": recipe, "n": n} for recipe in recipes for n in sizes], columns=["recipe", "n"])
    for name in ("error", "success"):
        value = rng.uniform(0.2, 0.8, len(table))
        table[name], table[f"{name}_low"], table[f"{name}_high"] = value, value - 0.1, value + 0.15
    return table


def compared(over=("normal", "random_latent"), sizes=(250, 1000, 40_000)) -> pd.DataFrame:
    """What generalization.gains gives."""
    table = points(over, sizes)
    return pd.DataFrame({"over": table.recipe, "n": table.n, "gain": table.error - 0.3}).assign(
        gain_low=lambda t: t.gain - 0.1, gain_high=lambda t: t.gain + 0.2
    )


def places(sizes=(250, 1000), seed: int = 0) -> pd.DataFrame:
    """What independence.dial gives."""
    table = points(("normal",) * 5, sizes, seed)
    table["d"] = np.repeat([1.0, 0.75, 0.5, 0.25, 0.0], len(sizes))
    return table.rename(columns={"error": "value", "error_low": "low", "error_high": "high"})[
        ["d", "n", "value", "low", "high"]
    ]


def nothing(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[:0]


PLOTS = {
    "curves": lambda rows, *_: figures.curves({"this build": rows}, "error", "test error"),
    "against": lambda rows, *_: figures.against({"this build": rows}, "error", "success", "x", "y", fitted=True),
    "gains": lambda _, gained, __: figures.gains(gained),
    "dial": lambda _, __, placed: figures.dial(placed, placed),
}


def legend(figure) -> list[str]:
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def intervals_of(axes) -> list[np.ndarray]:
    """The lines of intervals, [2, 2] each: two points."""
    return [np.asarray(one) for lines in axes.collections for one in lines.get_segments()]


def has(found: list[np.ndarray], *, x=None, y=None) -> bool:
    """Is there an interval with these ends?"""
    column, ends = (0, x) if x is not None else (1, y)
    return any(np.allclose(one[:, column], ends) for one in found)


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize(
    "tables",
    [
        (points(), compared(), places()),
        (points(sizes=[250]), compared(sizes=[250]), places([250])),
        (points(["normal"], [250]), compared(["normal"], [250]), places([250]).iloc[:1]),
        (nothing(points()), nothing(compared()), nothing(places())),
    ],
    ids=["grid", "one N", "one point", "nothing"],
)
def test_a_figure_over_n_draws_whatever_rows_there_are(name, tables):
    figure = PLOTS[name](*tables)
    assert plt.get_fignums() == []
    assert png(figure)
    assert bool(legend(figure)) == bool(len(tables[0]))


def test_curves_have_a_line_a_recipe_with_its_intervals():
    table = points().sample(frac=1, random_state=0)  # in any order
    (axes,) = figures.curves({"published rows": table}, "error", "test error").axes
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "training images N", "test error")
    assert axes.get_ylim()[0] == 0
    for recipe, line in zip(("normal", "on_manifold"), axes.lines, strict=True):
        own = table[table.recipe == recipe].sort_values("n")
        np.testing.assert_allclose(line.get_ydata(), own.error)
        np.testing.assert_allclose(line.get_xdata(), own.n, rtol=0.04)  # moved a little apart
        assert line.get_color() == figures.RECIPES[recipe].colour
    found = intervals_of(axes)
    assert len(found) == len(table)
    for row in table.itertuples():
        assert has(found, y=[row.error_low, row.error_high])


def test_curves_mark_where_numbers_come_from():
    paper = points(sizes=(500,))[["recipe", "n", "success"]]
    tables = {"published rows": points(), "this build": points(sizes=(250,), seed=1), "the paper": paper}
    figure = figures.curves(tables, "success", "success")
    published, build, printed = (figure.axes[0].lines[2 * i] for i in range(3))
    assert published.get_markerfacecolor() == published.get_color()
    assert build.get_markerfacecolor() == "white"
    assert printed.get_marker() == figures.RECIPES["normal"].cross != published.get_marker() == build.get_marker()
    assert len({line.get_linestyle() for line in (published, build, printed)}) == 3
    assert legend(figure) == ["normal", "on-manifold", "published rows", "this build", "the paper"]
    assert len(intervals_of(figure.axes[0])) == 8  # the paper prints none


def test_every_recipe_has_a_look_of_its_own():
    assert set(figures.RECIPES) == set(TITLES)
    for part in zip(*figures.RECIPES.values(), strict=True):
        assert len(set(part)) == len(TITLES)


def test_data_sets_stand_in_rows_and_quantities_in_columns_that_share_an_axis():
    tables = {"one": points(), "two": points(["random_latent"], [500, 1000], 1)}
    figure = figures.by_dataset(tables, {"error": "test error", "success": "rate"})
    grid = np.array(figure.axes).reshape(2, 2)
    titles = [[axes.get_title() for axes in line] for line in grid]
    assert titles == [["one: test error", "one: rate"], ["two: test error", "two: rate"]]
    for column, quantity in zip(grid.T, ("error", "success"), strict=True):
        assert column[0].get_ylim() == column[1].get_ylim()
        assert column[0].get_ylim()[0] == 0
        np.testing.assert_allclose(column[1].lines[0].get_ydata(), tables["two"][quantity])
        row = tables["one"].iloc[0]
        assert has(intervals_of(column[0]), y=[row[f"{quantity}_low"], row[f"{quantity}_high"]])
    assert legend(figure) == ["normal", "on-manifold", "random latent"]
    assert png(figure)


def test_links_have_a_panel_a_data_set_with_its_own_axes_and_line():
    small = points(seed=1)
    numbers = [name for name in small if name not in ("recipe", "n")]
    small[numbers] /= 10
    figure = figures.links({"one": points(), "two": small}, "error", "success", "x", "y")
    for axes, table in zip(figure.axes, (points(), small), strict=True):
        *dots, fit = axes.lines
        found = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in dots}
        assert found == set(zip(table.error, table.success, strict=True))
        slope, base = np.polyfit(table.error, table.success, 1)
        np.testing.assert_allclose(fit.get_ydata(), base + slope * fit.get_xdata())
    assert figure.axes[0].get_ylim()[1] > 5 * figure.axes[1].get_ylim()[1]
    assert {"N = 250", "N = 40,000"} < set(legend(figure))


def test_links_of_a_single_point_have_no_line():
    figure = figures.links({"one": points(["normal"], [250])}, "error", "success", "x", "y")
    (dot,) = figure.axes[0].lines
    assert len(dot.get_xdata()) == 1


def test_the_legend_names_what_is_drawn_and_nothing_else():
    tables = {"published rows": nothing(points()), "this build": points(["random_latent"])}
    assert legend(figures.curves(tables, "error", "test error")) == ["random latent", "this build"]


def test_the_axis_of_n_names_a_few_sizes_its_ends_among_them():
    sizes = [250, 500, 1000, 1500, 2000, 2500, 5000, 7500, 10_000, 15_000, 20_000, 30_000, 40_000]
    (axes,) = figures.curves({"this build": points(sizes=sizes)}, "error", "test error").axes
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert (names[0], names[-1]) == ("250", "40,000")
    assert len(names) <= 5
    np.testing.assert_array_equal(axes.get_xticks(), [int(name.replace(",", "")) for name in names])


def test_a_recipe_without_a_look_is_named():
    with pytest.raises(KeyError, match="by magic"):
        figures.curves({"this build": points(["by magic"])}, "error", "test error")


def test_against_has_a_dot_a_point_with_both_intervals_and_larger_dots_for_larger_n():
    table = points()
    figure = figures.against({"published rows": table}, "error", "success", "test error", "success")
    (axes,) = figure.axes
    found = intervals_of(axes)
    assert len(found) == 2 * len(table)
    dots = {line.get_xdata()[0]: line for line in axes.lines if len(line.get_xdata()) == 1}
    for row in table.itertuples():
        assert has(found, x=[row.error_low, row.error_high])
        assert has(found, y=[row.success_low, row.success_high])
        assert dots[row.error].get_ydata() == [row.success]
        assert dots[row.error].get_marker() == figures.RECIPES[row.recipe].marker
    sizes = [dots[error].get_markersize() for error in table[table.recipe == "normal"].error]
    assert sizes == sorted(set(sizes))
    assert {"N = 250", "N = 40,000"} <= set(legend(figure))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("test error", "success")


def test_the_fitted_line_goes_through_points_that_lie_on_one():
    table = points().assign(success=lambda t: 0.1 + 0.7 * t.error)
    tables = {"published rows": nothing(table), "this build": table}
    plain, fitted = (figures.against(tables, "error", "success", "x", "y", fitted=on) for on in (False, True))
    line = fitted.axes[0].lines[-1]
    np.testing.assert_allclose(line.get_ydata(), 0.1 + 0.7 * line.get_xdata())
    np.testing.assert_allclose(line.get_xdata(), [table.error.min(), table.error.max()])
    assert len(fitted.axes[0].lines) == len(plain.axes[0].lines) + 1
    assert set(legend(fitted)) - set(legend(plain)) == {"least squares, this build"}
    holed = pd.concat([table, table.iloc[:1].assign(success=np.nan)])
    again = figures.against({"this build": holed}, "error", "success", "x", "y", fitted=True)
    np.testing.assert_allclose(again.axes[0].lines[-1].get_ydata(), line.get_ydata())


def test_gains_are_shown_over_each_recipe_with_a_line_at_zero():
    table = compared()
    figure = figures.gains(table)
    (axes,) = figure.axes
    zero, *lines = axes.lines
    assert zero.get_ydata() == [0, 0]
    assert legend(figure) == ["over normal training", "over random latent training"]
    for over, line in zip(("normal", "random_latent"), lines, strict=True):
        np.testing.assert_allclose(line.get_ydata(), table[table.over == over].gain)
    for row in table.itertuples():
        assert has(intervals_of(axes), y=[row.gain_low, row.gain_high])


def test_gains_can_show_another_quantity():
    table = compared().rename(columns=lambda name: name.replace("gain", "cut"))
    (axes,) = figures.gains(table, "cut", "relative cut").axes
    assert axes.get_ylabel() == "relative cut"
    np.testing.assert_allclose(axes.lines[1].get_ydata(), table[table.over == "normal"].cut)


def test_the_dial_shows_error_above_and_success_below_a_line_an_n():
    error, success = places(), places(seed=1)
    figure = figures.dial(error, success)
    assert legend(figure) == ["N = 250", "N = 1,000"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["test error", "regular success"]
    for axes, table in zip(figure.axes, (error, success), strict=True):
        for n, line in zip((250, 1000), axes.lines, strict=True):
            own = table[table.n == n].sort_values("d")
            np.testing.assert_array_equal(line.get_xdata(), [0, 0.25, 0.5, 0.75, 1])
            np.testing.assert_allclose(line.get_ydata(), own.value)
        for row in table.itertuples():
            assert has(intervals_of(axes), y=[row.low, row.high])


@pytest.mark.parametrize("name", PLOTS)
def test_a_figure_over_n_fits_a_phone(name):
    """Drawn 360 pixels wide, the smallest letters are still 7 pixels high."""
    figure = PLOTS[name](points(list(figures.RECIPES)), compared(), places())
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    texts = [text for text in figure.findobj(mpl.text.Text) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) / 72 * 360 / box.width >= 7
    assert box.width <= figure.get_figwidth() + 0.3  # nothing sticks out


# --- looks ----------------------------------------------------------------------------------------------------


def test_every_kind_has_a_look_and_none_has_two():
    assert set(figures.LOOKS) == {*KINDS, "on-manifold"}


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


def test_every_recipe_has_a_look_with_a_marker_and_a_cross_of_its_own():
    """In print two recipes differ by marker; in colour, those of one family may be close, but not the same."""
    assert set(figures.RECIPES) == set(TITLES)
    markers = [str(own.marker) for own in figures.RECIPES.values()]
    crosses = [str(own.cross) for own in figures.RECIPES.values()]
    assert len(set(markers + crosses)) == 2 * len(TITLES)
    colours = np.array([to_rgb(own.colour) for own in figures.RECIPES.values()])
    distance = np.abs(colours[:, None] - colours[None]).max(-1)
    assert (distance + np.eye(len(colours)) > 0.1).all()


# --- chapter 05 -----------------------------------------------------------------------------------------------

QUICK = ("at_half", "ccat")
ALL = tuple(figures.DEFENCES)
TAUS = np.linspace(0, 1, 11)


def over(x: str, places, recipes=QUICK) -> pd.DataFrame:
    """A rate with its interval for each training at each place."""
    rng = np.random.default_rng(0)
    found = []
    for recipe in reversed(recipes):
        for place in places:
            value = rng.uniform(0.2, 0.8)
            found.append({"recipe": recipe, x: place, "value": value, "low": value - 0.1, "high": value + 0.1})
    return pd.DataFrame(found)


def curve_rows(recipes=QUICK, seeds=2) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Curves over tau, and marks, of two threats; the last network accepts nothing from .8 on."""
    rng = np.random.default_rng(0)
    curves, marks = [], []
    for recipe in recipes:
        for seed in range(seeds):
            for threat in ("clean", "linf"):
                rates = rng.uniform(0, 1, len(TAUS)).tolist()
                if seed == seeds - 1:
                    rates[8:] = [None] * 3
                about = {"recipe": recipe, "seed": seed, "threat": threat}
                curves.append({**about, "rates": rates})
                marks.append({**about, "tau": rng.uniform(), "rate": None if seed else rng.uniform()})
    return pd.DataFrame(curves), pd.DataFrame(marks)


def corruption_rows(recipes=QUICK) -> pd.DataFrame:
    """fog is accepted by nobody; blur is worse than noise."""
    rates = {"noise": 0.1, "blur": 0.5, "fog": None}
    return pd.DataFrame(
        [
            {"recipe": recipe, "seed": seed, "threat": threat, "rate": rate, "accepted": 0.0 if rate is None else 0.75}
            for recipe in recipes
            for seed in (0, 1)
            for threat, rate in rates.items()
        ]
    )


DRAWN = {
    "along": lambda recipes: figures.along(over("t", (0, 0.5, 1, 2), recipes), chance=0.1),
    "thresholds": lambda recipes: figures.thresholds(*curve_rows(recipes), {"clean": "clean", "linf": "L-inf"}, TAUS),
    "rejection": lambda recipes: figures.rejection(over("radius", (0.05, 0.1, 1), recipes)),
    "by_corruption": lambda recipes: figures.by_corruption(corruption_rows(recipes)),
}


def test_no_two_trainings_share_a_colour_a_marker_or_a_line():
    for part in zip(*figures.DEFENCES.values(), strict=True):
        assert len(set(map(str, part))) == len(figures.DEFENCES)
    assert set(figures.DEFENCES) == set(defences.TITLES)


@pytest.mark.parametrize("recipes", [("normal",), QUICK, ALL[:5], ALL], ids=len)
@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_of_any_trainings_draws_and_names_them_in_one_order(name, recipes):
    figure = DRAWN[name](recipes)
    assert plt.get_fignums() == []
    assert legend(figure) == [defences.TITLES[recipe] for recipe in recipes]
    assert len(png(figure)) > 5_000


@pytest.mark.parametrize("name", DRAWN)
def test_a_training_without_a_look_is_an_error(name):
    with pytest.raises(KeyError, match="without a look"):
        DRAWN[name](("unheard_of",))


def test_the_walk_shows_every_value_in_order_and_its_band():
    table = over("t", (1.0, 0.0, 2.0))
    (axes,) = figures.along(table, chance=0.1).axes
    for recipe, band in zip(QUICK, axes.collections, strict=True):
        own = table[table.recipe == recipe].sort_values("t")
        (line,) = (one for one in axes.lines if to_rgb(one.get_color()) == to_rgb(figures.DEFENCES[recipe].colour))
        np.testing.assert_allclose(line.get_xydata(), own[["t", "value"]])
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((own.low.min(), own.high.max()))
    straight = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in straight[:1]] == [0.1]
    assert [line.get_xdata()[0] for line in straight[1:2]] == [1]


def test_a_walk_without_numbers_draws():
    table = over("t", (0, 1)).assign(value=np.nan, low=np.nan, high=np.nan)
    assert png(figures.along(table, chance=0.1))


def test_a_threshold_curve_is_the_mean_of_its_networks_and_ends_where_one_accepts_nothing():
    curves, marks = curve_rows(("ccat",))
    clean, linf = figures.thresholds(curves, marks, {"clean": "clean images", "linf": "L-inf"}, TAUS).axes
    assert (clean.get_title(), linf.get_title()) == ("clean images", "L-inf")
    for threat, axes in (("clean", clean), ("linf", linf)):
        rates = np.array(curves[curves.threat == threat].rates.tolist(), dtype=float)
        line, dots = axes.lines
        np.testing.assert_allclose(line.get_xdata(), TAUS)
        np.testing.assert_allclose(line.get_ydata(), rates.mean(0))
        assert np.isnan(line.get_ydata()[8:]).all()
        own = marks[marks.threat == threat]
        np.testing.assert_allclose(dots.get_xdata(), own.tau)
        np.testing.assert_allclose(dots.get_ydata(), own.rate.astype(float))
        assert (line.get_marker(), dots.get_linestyle()) == ("", "None")


def test_an_odd_number_of_panels_leaves_one_place_empty():
    curves, marks = curve_rows()
    places = figures.thresholds(curves, marks, {"clean": "a", "linf": "b", "l2": "without rows"}, TAUS).axes
    assert [axes.get_visible() for axes in places] == [True, True, True, False]
    assert all(not len(line.get_xdata()) for line in places[2].lines)


def test_forced_rejection_shows_every_radius_with_its_interval():
    table = over("radius", (0.05, 0.1, 1.0))
    (axes,) = figures.rejection(table).axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.05", "0.1", "1"]
    for recipe, line, bars in zip(QUICK, axes.lines, axes.collections, strict=True):
        own = table[table.recipe == recipe]
        np.testing.assert_allclose(line.get_xdata(), own.radius, rtol=0.04)
        np.testing.assert_allclose(line.get_ydata(), own.value)
        np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], own[["low", "high"]])


def test_corruptions_are_sorted_by_error_and_one_that_nobody_accepts_has_no_mark():
    errors, accepted = figures.by_corruption(corruption_rows()).axes
    assert [text.get_text() for text in errors.get_yticklabels()] == ["blur", "noise", "fog"]
    for line, shares in zip(errors.lines, accepted.lines, strict=True):
        found = dict(zip(line.get_ydata(), line.get_xdata(), strict=True))
        assert (found[0], found[1]) == pytest.approx((0.5, 0.1))
        assert np.isnan(found[2])
        assert dict(zip(shares.get_ydata(), shares.get_xdata(), strict=True)) == {0: 0.75, 1: 0.75, 2: 0.0}


def test_targets_have_a_line_each():
    sizes = np.linspace(0, 1, 5)
    lines = {"steep": (1 - sizes) ** 10, "flat": 1 - sizes}
    figure = figures.targets(sizes, lines)
    (axes,) = figure.axes
    assert legend(figure) == ["steep", "flat"]
    for line, values in zip(axes.lines, lines.values(), strict=True):
        np.testing.assert_allclose(line.get_xydata(), np.stack([sizes, values], 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_answers_stand_over_their_pictures_grey_or_in_colours(channels):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, channels, 8, 8), dtype=np.uint8)
    rows = {"clean": images[0], "L2": images[1]}
    said = {"clean": ["right 99 %", "wrong 5 %", "rejected"], "L2": ["rejected", "wrong 7 %", "wrong 8 %"]}
    figure = figures.answered(rows, said)
    grid = np.array(figure.axes).reshape(2, 3)
    assert [axes.get_title() for axes in grid[0]] == ["right 99 %", "wrong 5 %", "rejected"]
    assert [line[0].get_ylabel() for line in grid] == ["clean", "L2"]
    assert grid[1][2].get_title() == "wrong 8 %"
    shown = grid[1][1].images[0].get_array()
    np.testing.assert_array_equal(shown, np.squeeze(images[1, 1].transpose(1, 2, 0)))
    assert png(figure)


# --- chapter 06 -----------------------------------------------------------------------------------------------

NAMES = {name: f"the {name} one" for name in figures.THREATS}


def spectrum_rows(adversaries=("regular", "generative"), d: int = 4) -> pd.DataFrame:
    """Variances before and after training, by the formula and, a little off, by brute force."""
    rng = np.random.default_rng(0)
    found = []
    for adversary in adversaries:
        for i, variance in enumerate(np.sort(rng.uniform(0.1, 5, d))[::-1]):
            factor = rng.uniform(1, 2)
            own = {"variance": variance, "formula": variance * factor, "fitted": 1.01 * variance * factor}
            found.append({"adversary": adversary, "direction": i + 1, **own})
    return pd.DataFrame(found)


def named(column: str, places, names=("normal", "l2")) -> pd.DataFrame:
    """A value with its interval for each name at each place."""
    return over(column, places, names).rename(columns={"recipe": "name"})


def test_no_two_threats_share_a_colour_a_marker_or_a_line():
    for part in zip(*figures.THREATS.values(), strict=True):
        assert len(set(map(str, part))) == len(figures.THREATS)


def test_a_spectrum_shows_data_formula_and_brute_force_of_every_adversary():
    table = spectrum_rows()
    figure = figures.spectra(table)
    assert [axes.get_title() for axes in figure.axes] == ["regular", "generative"]
    for axes in figure.axes:
        own = table[table.adversary == axes.get_title()]
        bars, dashes = axes.collections
        np.testing.assert_allclose([part[:, 1] for part in bars.get_segments()], own[["variance", "formula"]])
        np.testing.assert_allclose([part[:, 1] for part in dashes.get_segments()], own[["variance", "variance"]])
        np.testing.assert_allclose(axes.lines[0].get_xydata(), own[["direction", "fitted"]])
        assert axes.get_yscale() == "log"
    assert legend(figure) == ["data", "added by training, formula", "brute force"]
    assert png(figure)


@pytest.mark.parametrize("logs", [(False, False), (True, False), (False, True)])
def test_bands_have_a_line_a_name_with_its_band_in_every_panel(logs):
    panels = {"one": named("x", (1.0, 2.0, 4.0)), "two": named("x", (1.0, 3.0), ["generative"])}
    figure = figures.bands(panels, NAMES, "across", "up", logx=logs[0], logy=logs[1], level=0.5, mark=(2, "here"))
    for axes, (title, table) in zip(figure.axes, panels.items(), strict=True):
        assert (axes.get_title(), axes.get_xlabel()) == (title, "across")
        assert (axes.get_xscale(), axes.get_yscale()) == tuple("log" if log else "linear" for log in logs)
        names = [name for name in NAMES if name in set(table.name)]
        for name, line, band in zip(names, axes.lines, axes.collections, strict=False):
            own = table[table.name == name]
            np.testing.assert_allclose(line.get_xydata(), own[["x", "value"]])
            assert line.get_color() == figures.THREATS[name].colour
            heights = band.get_paths()[0].vertices[:, 1]
            assert (heights.min(), heights.max()) == pytest.approx((own.low.min(), own.high.max()))
        level, mark = axes.lines[len(names) :]
        assert level.get_ydata()[0] == 0.5
        assert mark.get_xdata()[0] == 2
        assert [text.get_text() for text in axes.texts] == ["here"]
    assert legend(figure) == [NAMES[name] for name in ("normal", "l2", "generative")]
    assert png(figure)


def test_bands_over_texts_keep_their_order():
    figure = figures.bands({"": named("x", ("1", "20", "3"))}, NAMES, "", "")
    figure.canvas.draw()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "20", "3"]


def test_dots_stand_in_the_row_of_their_place_and_none_hides_another():
    first, second = named("place", ("a", "b")), named("place", ("b", "c"), ["generative"])
    figure = figures.dots({"one": first, "two": second}, NAMES, "rate", level=0)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
    for axes, table in zip(figure.axes, (first, second), strict=True):
        marks = {line.get_color(): line.get_xydata() for line in axes.lines if line.get_marker() not in ("", "None")}
        bars = {to_rgb(one.get_color()[0][:3]): one.get_segments() for one in axes.collections}
        for name in set(table.name):
            own, colour = table[table.name == name], figures.THREATS[name].colour
            np.testing.assert_allclose(marks[colour][:, 0], own.value)
            assert [round(height) for height in marks[colour][:, 1]] == ["abc".index(place) for place in own.place]
            np.testing.assert_allclose([part[:, 0] for part in bars[to_rgb(colour)]], own[["low", "high"]])
        low, high = axes.get_ylim()
        assert low > high  # the first row is on top
    heights = [
        height
        for axes in figure.axes
        for line in axes.lines
        for height in line.get_ydata()
        if line.get_marker() not in ("", "None")
    ]
    assert len(set(np.round(heights, 6))) == len(heights)
    assert heights[-1] == 2  # alone in its row, so in the middle of it
    assert legend(figure) == [NAMES[name] for name in ("normal", "l2", "generative")]
    assert png(figure)


def test_dots_may_have_a_logarithmic_axis():
    assert figures.dots({"": named("place", ("a",))}, NAMES, "", log=True).axes[0].get_xscale() == "log"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_panels_stand_two_in_a_row_and_the_lowest_of_each_column_names_the_axis(count):
    figure = figures.bands({str(i): named("x", (1.0, 2.0)) for i in range(count)}, NAMES, "across", "")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [str(i) for i in range(count)]
    named_axes = [i for i, axes in enumerate(shown) if axes.get_xlabel()]
    assert named_axes == list(range(count))[-2:]
    assert figure.get_size_inches()[0] <= 5.2


@pytest.mark.parametrize(
    "draw_it", [lambda t: figures.bands({"": t}, {}, "", ""), lambda t: figures.dots({"": t}, {}, "")]
)
def test_a_name_without_a_text_is_an_error(draw_it):
    with pytest.raises(KeyError, match="without a text"):
        draw_it(named("x", (1.0,)).assign(place="a"))


def test_a_name_without_a_look_is_an_error():
    with pytest.raises(KeyError, match="unheard_of"):
        figures.bands({"": named("x", (1.0,), ["unheard_of"])}, {"unheard_of": ""}, "", "")
