"""Every plot of the book, in one look. Each function draws rows or arrays and returns a figure."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, product
from typing import Any, Literal, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from PIL import Image

from advbook.experiments import defences
from advbook.experiments.defences import Defence
from advbook.experiments.recipes import TITLES, Recipe

# Colours by kind of perturbation (Okabe and Ito's palette, which colour-blind readers can tell apart), with line
# styles.
LOOKS = {
    "adversarial": ("#d55e00", "-"),
    "sign steps": ("#cc79a7", "-"),
    "on-manifold": ("#7b3f61", "-"),
    "random sign": ("#0072b2", "--"),
    "gaussian": ("#56b4e9", "--"),
    "on-manifold move": ("#009e73", "-."),
}
# Names and colours of what moves images on the manifold.
MOVES = {
    "paper": ("paper's attack", "#d55e00"),
    "strong": ("strong attack", "#cc79a7"),
    "random moves": ("random moves", "#009e73"),
    "random search": ("random search", "#0072b2"),
}
STYLE: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@contextmanager
def look() -> Iterator[None]:
    """The book's look, for every plot inside. The figure is closed after, so that a notebook shows it once."""
    with plt.rc_context(STYLE):
        try:
            yield
        finally:
            plt.close("all")


def histograms(panels: Mapping[str, pd.DataFrame], quantity: str, edges: np.ndarray, label: str) -> Figure:
    """Normalized histograms of a quantity, a line a kind, from the bin counts of pooled rows; a panel a table."""
    with look():
        size = (6.4, (2.6 if len(panels) > 1 else 3.0) * len(panels) + 0.2)
        figure, grid = plt.subplots(len(panels), 1, figsize=size, squeeze=False, layout="constrained")
        for axes, (title, rows) in zip(grid[:, 0], panels.items(), strict=True):
            counts = np.array([row for row in rows[f"{quantity}_counts"]])  # [kinds, bins]
            shares = counts / counts.sum(1, keepdims=True).clip(1)
            for kind, share in zip(rows["kind"], shares, strict=True):
                colour, line = LOOKS[kind]
                axes.stairs(share, edges, color=colour, linestyle=line, lw=1.6, label=kind)
            filled = np.flatnonzero(counts.sum(0))
            if len(filled):
                axes.set_xlim(edges[max(filled[0] - 1, 0)], edges[min(filled[-1] + 2, len(edges) - 1)])
            # A kind whose images all fall into one bin would flatten the others: its bar is cut.
            spread = [peak for peak in shares.max(1) if 0 < peak < 0.5]
            axes.set(title=title, ylabel="share of images", ylim=(0, 1.3 * max(spread) if spread else None))
            axes.legend(fontsize=9)
        grid[-1, 0].set_xlabel(label)
    return figure


def intervals(panels: Mapping[str, pd.DataFrame], quantity: str, label: str, *, chance: float | None = None) -> Figure:
    """A quantity of every kind with its interval, a panel a table; a dotted line where chance would be.

    A kind has the same place in all panels; where a table leaves it out, the place is empty.
    """
    with look(), _panels(list(panels), 2.3, label, width=3.4, shared="y") as (figure, grid):
        present = {kind for rows in panels.values() for kind in rows["kind"]}
        places = {kind: place for place, kind in enumerate(kind for kind in LOOKS if kind in present)}
        for title, axes in grid.items():
            for row in panels[title].to_dict("records"):
                _interval(axes, places[row["kind"]], row, quantity)
            if chance is not None:
                axes.axvline(chance, color="0.4", lw=1, ls=":")
            axes.set_yticks(range(len(places)), list(places))
            axes.set_ylim(len(places) - 0.5, -0.5)
    return figure


def success(panels: Mapping[str, pd.DataFrame], *, threshold: float) -> Figure:
    """Success rates of every attack with their intervals, a panel a table of pooled rows; a dotted line at the
    threshold. Filled: averaged over restarts or draws; open: any of them. All tables hold the attacks in one order.
    """
    with look(), _panels(list(panels), 2.1, "success rate", width=3.6, shared="all") as (figure, grid):
        for title, axes in grid.items():
            rows = panels[title]
            for place, row in enumerate(rows.to_dict("records")):
                colour = MOVES[row["attack"]][1]
                for quantity, at, fill in (("success_average", -0.13, colour), ("success_worst", 0.13, "white")):
                    numbers = (row[f"{quantity}{end}"] for end in ("", "_low", "_high"))
                    value, low, high = (np.nan if number is None else number for number in numbers)
                    axes.plot([low, high], [place + at] * 2, color=colour, lw=2.5, solid_capstyle="butt")
                    axes.plot(value, place + at, "o", color=colour, mfc=fill, ms=6, clip_on=False)
            axes.axvline(threshold, color="0.4", lw=1, ls=":")
            axes.set_xlim(0, 1)
            axes.set_yticks(range(len(rows)), [MOVES[attack][0] for attack in rows["attack"]])
            axes.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _interval(axes: Axes, place: int, row: Mapping[Any, Any], quantity: str) -> None:
    value, low, high = row[quantity], row[f"{quantity}_low"], row[f"{quantity}_high"]
    colour = LOOKS[str(row["kind"])][0]
    axes.plot([low, high], [place, place], color=colour, lw=3, solid_capstyle="butt")
    axes.plot(value, place, "o", color=colour, ms=5)


def pictures(columns: Mapping[str, np.ndarray], titles: Sequence[str]) -> Figure:
    """Images in a grid, a row a kind of picture, a column an example; differences (with negative values) in red and
    blue.
    """
    with look():
        count = len(titles)
        figure, grid = plt.subplots(
            len(columns), count, figsize=(1.15 * count + 1.2, 1.2 * len(columns)), squeeze=False, layout="constrained"
        )
        for line, (name, images) in zip(grid, columns.items(), strict=True):
            for axes, image in zip(line, images, strict=True):
                _picture(axes, image.reshape(image.shape[-2:]))
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(title, fontsize=9)
    return figure


def _picture(axes: Axes, image: np.ndarray) -> None:
    if image.min() < 0:
        bound = float(np.abs(image).max())
        axes.imshow(image, cmap="RdBu_r", vmin=-bound, vmax=bound)
    else:
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


class Look(NamedTuple):
    """How a recipe looks: colour, marker, and the marker of the paper's values, which is a cross."""

    colour: str
    marker: str | tuple[int, int, float]
    cross: str | tuple[int, int, float]


# No two recipes share a marker, so that they can be told apart without colours too.
RECIPES: dict[Recipe, Look] = {
    "normal": Look("#000000", "o", "x"),
    "adversarial": Look("#d55e00", "s", "+"),
    "adversarial_full": Look("#8c3b00", "D", (8, 2, 0.0)),
    "on_manifold": Look("#009e73", "^", "2"),
    "transformation": Look("#0072b2", "v", "1"),
    "random_latent": Look("#e69f00", "P", "3"),
    "random_transformation": Look("#56b4e9", "X", "4"),
    "random_transformation_released": Look("#777777", "p", (5, 2, 0.0)),
    "on_class": Look("#005f45", "*", "|"),
    "random_class": Look("#b35900", (4, 1, 0.0), "_"),
    "on_data": Look("#882255", "8", (11, 2, 0.0)),
    "combined": Look("#cc79a7", "d", (6, 2, 0.0)),
    "combined_full": Look("#7b3f61", "h", (7, 2, 0.0)),
    "dial_25": Look("#7a9a01", "<", (9, 2, 0.0)),
    "dial_75": Look("#a6761d", ">", (10, 2, 0.0)),
}
# Where numbers come from: published rows stand out, the paper's own values stay in the background.
SOURCES: dict[str, dict[str, Any]] = {
    "published rows": {"linestyle": "-", "lw": 1.6, "ms": 6},
    "this build": {"linestyle": "--", "lw": 1.1, "ms": 7, "markerfacecolor": "white", "markeredgewidth": 1.4},
    "the paper": {"linestyle": ":", "lw": 1.1, "ms": 7},
}
NARROW = 4.8  # inches: a figure of this width is readable on a phone


def curves(tables: Mapping[str, pd.DataFrame], quantity: str, label: str) -> Figure:
    """A quantity over N, a line a recipe with its 95 % intervals; N has a logarithmic axis.

    tables: where the numbers come from, a key of SOURCES -> a row a point of one network, as `grid.table` gives them:
    columns recipe, n, and of the quantity Q the columns Q, Q_low and Q_high. Q alone for "the paper", which has no
    intervals. Without rows the axes stay empty.
    """
    with look():
        figure, axes = plt.subplots(figsize=(NARROW, 4.4), layout="constrained")
        for (source, table), (recipe, shift) in product(tables.items(), _apart(_recipes(tables))):
            own = table[table.recipe == recipe].sort_values("n")
            if len(own):
                style = _style(recipe, source)
                axes.plot(own.n * shift, own[quantity], **style)
                _bars(axes, own.n * shift, own, quantity, style)
        axes.set(xlabel="training images N", ylabel=label)
        axes.set_ylim(bottom=0)
        _n_axis(axes, tables.values())
        _legend(figure, [*_recipe_handles(tables), *_source_handles(tables)])
    return figure


def against(
    tables: Mapping[str, pd.DataFrame], x: str, y: str, xlabel: str, ylabel: str, *, fitted: bool = False
) -> Figure:
    """One quantity against another, a dot a point with a cross of its two 95 % intervals; larger dots for larger N.

    tables: as in `curves`, with both quantities. A thin line joins the points of a recipe in the order of N. fitted:
    draw the least-squares line through all points of the first table that has any.
    """
    with look():
        figure, axes = plt.subplots(figsize=(NARROW, 4.6), layout="constrained")
        size = _sizes(tables.values())
        for (source, table), recipe in product(tables.items(), _recipes(tables)):
            own, style = table[table.recipe == recipe].sort_values("n"), _style(recipe, source)
            axes.plot(own[x], own[y], color=style["color"], lw=0.6, alpha=0.6)
            _bars(axes, own[x], own, y, style)
            _bars(axes, own[y], own, x, style, sideways=True)
            for n, at, height in zip(own.n, own[x], own[y], strict=True):
                axes.plot(at, height, **style | {"ms": size(n), "linestyle": ""})
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        handles = [
            *_recipe_handles(tables),
            *_source_handles(tables, joined=False),
            *_size_handles(tables.values(), size),
        ]
        whole = [(source, table.dropna(subset=[x, y])) for source, table in tables.items()]
        enough = [(source, table) for source, table in whole if table[x].nunique() > 1]
        if fitted and enough:
            source, table = enough[0]
            slope, base = np.polyfit(table[x].astype(float), table[y].astype(float), 1)
            ends = np.array([table[x].min(), table[x].max()])
            (line,) = axes.plot(ends, base + slope * ends, color="0.4", lw=1, ls="--", zorder=1)
            handles.append((line, f"least squares, {source}"))
        _legend(figure, handles)
    return figure


def gains(table: pd.DataFrame, quantity: str = "gain", label: str = "gain in test error") -> Figure:
    """What a recipe gains over others at every N, dots with 95 % intervals; above the line at zero it is better.

    table: as `generalization.gains` gives it: columns over (the recipe to compare with), n, and of the quantity Q the
    columns Q, Q_low and Q_high.
    """
    with look():
        figure, axes = plt.subplots(figsize=(NARROW, 3.4), layout="constrained")
        axes.axhline(0, color="0.4", lw=1)
        found = [recipe for recipe in RECIPES if len(table) and (table.over == recipe).any()]
        for recipe, shift in _apart(found):
            own, style = table[table.over == recipe].sort_values("n"), _style(recipe, "published rows")
            axes.plot(own.n * shift, own[quantity], **style, label=f"over {TITLES[recipe]} training")
            _bars(axes, own.n * shift, own, quantity, style)
        axes.set(xlabel="training images N", ylabel=label)
        _n_axis(axes, [table])
        _legend(figure, list(zip(*axes.get_legend_handles_labels(), strict=True)))
    return figure


def dial(error: pd.DataFrame, success: pd.DataFrame) -> Figure:
    """The trade-off between on-manifold (d = 0) and regular (d = 1) adversarial training: test error above, regular
    success below, over the share d of the regular part, a line an N with its 95 % intervals.

    error, success: as `independence.dial` gives them: columns d, n, value, low, high.
    """
    with look():
        figure, grid = plt.subplots(2, 1, figsize=(NARROW, 5.2), sharex=True, layout="constrained")
        sizes = sorted({int(n) for table in (error, success) for n in table.n})
        colours = plt.get_cmap("cividis")(np.linspace(0, 0.8, max(len(sizes), 1)))
        for axes, table, label in zip(grid, (error, success), ("test error", "regular success"), strict=True):
            for n, colour, marker in zip(sizes, colours, cycle("os^vDPXd"), strict=False):
                own = table[table.n == n].sort_values("d")
                style = {"color": colour, "marker": marker, "ms": 6, "lw": 1.6}
                axes.plot(own.d, own.value, **style, label=f"N = {n:,}")
                axes.vlines(own.d, own.low, own.high, color=colour, lw=1.2)
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
        places = [0, 0.25, 0.5, 0.75, 1]
        grid[1].set_xticks(places, ["0\non-manifold", "0.25", "0.5\ncombined", "0.75", "1\nadversarial"])
        grid[1].set_xlabel("share d of the regular part")
        figure.align_ylabels(grid)
        _legend(figure, list(zip(*grid[0].get_legend_handles_labels(), strict=True)), columns=3)
    return figure


class Stroke(NamedTuple):
    """How a training of chapter 05 looks: colour, marker and line. Each of the three alone tells it apart."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]


DEFENCES: dict[Defence, Stroke] = {
    "normal": Stroke("#000000", "o", ":"),
    "at_half": Stroke("#d55e00", "s", "--"),
    "at_full": Stroke("#8c3b00", "D", "-."),
    "trades": Stroke("#e69f00", "^", (0, (5, 1, 1, 1, 1, 1))),
    "ccat": Stroke("#0072b2", "P", "-"),
    "ccat_whole_batch": Stroke("#56b4e9", "v", (0, (8, 2))),
    "ccat_exponential": Stroke("#009e73", "X", (0, (3, 1))),
    "ccat_linear": Stroke("#cc79a7", "d", (0, (1, 1))),
}


def targets(sizes: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> Figure:
    """What a target leaves to the true label over the size of the perturbation in eps, a line a transition.

    sizes: [P]; probabilities: name -> [P].
    """
    with look():
        figure, axes = plt.subplots(figsize=(NARROW, 2.9), layout="constrained")
        looks = cycle(zip(("#0072b2", "#56b4e9", "#009e73", "#cc79a7"), ("-", "--", "-.", ":"), strict=True))
        for (name, values), (colour, line) in zip(probabilities.items(), looks, strict=False):
            axes.plot(sizes, values, color=colour, linestyle=line, lw=1.8, label=name)
        axes.set(xlabel=r"size of the perturbation, $\|\delta\|_\infty / \epsilon$", ylabel="target of the label")
        axes.set_ylim(0, 1.02)
        _legend(figure, list(zip(*axes.get_legend_handles_labels(), strict=True)))
    return figure


def along(table: pd.DataFrame, *, chance: float) -> Figure:
    """The mean confidence over the step t along an attack, a line a training with its 95 % band; dotted lines at the
    confidence of a guess and at the attack's end, t = 1.

    table: columns recipe, t, value, low, high.
    """
    with look():
        figure, axes = plt.subplots(figsize=(NARROW, 3.9), layout="constrained")
        axes.axhline(chance, color="0.4", lw=1, ls=":")
        axes.axvline(1, color="0.4", lw=1, ls=":")
        for place, defence in enumerate(_defences(table)):
            own, style = table[table.recipe == defence].sort_values("t"), _stroke(defence)
            axes.plot(own.t, own.value, markevery=(place % 3, 3), **style)
            axes.fill_between(own.t, own.low, own.high, color=style["color"], alpha=0.15, lw=0)
        axes.set(xlabel=r"step $t$ along the attack, $x + t\,\delta$", ylabel="mean confidence", ylim=(0, 1.02))
        _legend(figure, _defence_handles(table))
    return figure


def thresholds(curves: pd.DataFrame, marks: pd.DataFrame, panels: Mapping[str, str], taus: np.ndarray) -> Figure:
    """Errors among what is accepted over the threshold tau: a small panel a threat, a line a training (the mean of its
    networks, in a band from the lowest to the highest), and a mark at the threshold that each network has.

    curves: columns recipe, threat and rates, a list as long as taus, None where a network accepts nothing: there the
    line has a gap. marks: columns recipe, threat, tau, rate. panels: threat -> title.
    """
    with look():
        lines = -(-len(panels) // 2)
        size = (NARROW + 0.4, 2.2 * lines + 0.9)
        figure, grid = plt.subplots(
            lines, 2, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
        for axes, (threat, title) in zip(grid.flat, panels.items(), strict=False):
            for defence in _defences(curves):
                own = curves[(curves.threat == threat) & (curves.recipe == defence)]
                style = _stroke(defence)
                if len(own):
                    rates = np.array(own.rates.tolist(), dtype=float)  # [S, T]
                    axes.plot(taus, rates.mean(0), **style | {"marker": ""})
                    axes.fill_between(taus, rates.min(0), rates.max(0), color=style["color"], alpha=0.12, lw=0)
                chosen = marks[(marks.threat == threat) & (marks.recipe == defence)]
                places = chosen.tau.astype(float), chosen.rate.astype(float)
                axes.plot(*places, **style | {"linestyle": "", "ms": 7, "mec": "white"}, clip_on=False, zorder=4)
            axes.set_title(title, fontsize=10)
            axes.set(xlim=(0, 1), ylim=(0, 1.02))
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel(r"threshold $\tau$")
        figure.supylabel("errors among what is accepted", fontsize=10)
        _legend(figure, _defence_handles(curves))
    return figure


def rejection(table: pd.DataFrame) -> Figure:
    """The share of accepted images that an attack makes rejected, over its radius in eps (a logarithmic axis), a line a
    training with its 95 % intervals.

    table: columns recipe, radius, value, low, high.
    """
    with look():
        figure, axes = plt.subplots(figsize=(NARROW, 3.7), layout="constrained")
        found = _defences(table)
        for defence, shift in zip(found, np.linspace(-0.03, 0.03, len(found)), strict=True):
            own, style = table[table.recipe == defence].sort_values("radius"), _stroke(defence)
            places = own.radius * (1 + shift)
            axes.plot(places, own.value, **style)
            axes.vlines(places, own.low, own.high, color=style["color"], lw=1.2)
        radii = sorted(set(table.radius))
        axes.set(xlabel=r"radius of the attack, in $\epsilon$", ylabel="share made rejected", ylim=(0, 1.02))
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(radii, [f"{radius:g}" for radius in radii])
        _legend(figure, _defence_handles(table))
    return figure


def by_corruption(table: pd.DataFrame) -> Figure:
    """Errors among accepted images, and the share accepted, under every corruption (those of most errors on top), a
    mark a training.

    table: columns recipe, threat (the corruption), rate (None where nothing is accepted), accepted; a row a network.
    """
    with look():
        numbers = table.assign(rate=table.rate.astype(float))
        means = numbers.groupby(["recipe", "threat"])[["rate", "accepted"]].mean().reset_index()
        names = list(means.groupby("threat").rate.mean().sort_values(ascending=False).index)
        size = (NARROW + 0.4, 0.25 * len(names) + 1.4)
        figure, grid = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
        for axes, (column, label) in zip(
            grid, {"rate": r"Err($\tau$)", "accepted": "share accepted"}.items(), strict=True
        ):
            for defence in _defences(table):
                own = means[means.recipe == defence]
                places = [names.index(threat) for threat in own.threat]
                axes.plot(own[column], places, **_stroke(defence) | {"linestyle": "", "ms": 6}, clip_on=False)
            axes.set(xlabel=label, xlim=(0, 1))
            axes.grid(axis="y", color="0.9", lw=0.8)
            axes.set_axisbelow(True)
        grid[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        grid[0].invert_yaxis()
        _legend(figure, _defence_handles(table))
    return figure


def answered(rows: Mapping[str, np.ndarray], said: Mapping[str, Sequence[str]]) -> Figure:
    """Rows of pictures, each with what is said of it.

    rows: name -> [T, C, H, W], grey or in colours, uint8; said: name -> T texts. All rows are as long.
    """
    with look():
        count = len(next(iter(rows.values())))
        size = (1.0 * count + 1.2, 1.2 * len(rows))
        figure, grid = plt.subplots(len(rows), count, figsize=size, squeeze=False, layout="constrained")
        for line, (name, images) in zip(grid, rows.items(), strict=True):
            for axes, image, text in zip(line, images, said[name], strict=True):
                axes.imshow(np.squeeze(image.transpose(1, 2, 0)), cmap="gray", vmin=0, vmax=255)
                axes.set_title(text, fontsize=8, pad=2)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


# Threats, trainings against them, and references of chapter 06. Names that never share a figure may share a look.
THREATS: dict[str, Stroke] = {
    "normal": Stroke("#000000", "o", ":"),
    "linf": Stroke("#d55e00", "s", "--"),
    "l2": Stroke("#0072b2", "D", "-."),
    "l1": Stroke("#e69f00", "^", (0, (5, 1, 1, 1, 1, 1))),
    "generative": Stroke("#009e73", "P", "-"),
    "data": Stroke("#cc79a7", "v", (0, (3, 1))),
}
_BEFORE, _AFTER = "0.35", "#8fc3e0"


def spectra(table: pd.DataFrame) -> Figure:
    """The variances of a Gaussian before and after adversarial training, a small panel an adversary, on a logarithmic
    axis: a dash at the variance of the data, a bar from there to the formula's variance, a dot where brute force ended.

    table: columns adversary, direction, variance, formula, fitted.
    """
    with look():
        names = list(dict.fromkeys(table.adversary))
        with _panels(names, 2.0, "direction, largest variance first") as (figure, panels):
            for name, axes in panels.items():
                own = table[table.adversary == name]
                places, width = own.direction, 0.3
                axes.vlines(places, own.variance, own.formula, color=_AFTER, lw=8, capstyle="butt", zorder=1)
                axes.hlines(own.variance, places - width, places + width, color=_BEFORE, lw=1.6, zorder=2)
                axes.plot(places, own.fitted, "o", color="black", ms=3.5, zorder=3)
                axes.set_yscale("log")
                axes.set_xticks(places)
            figure.supylabel("variance", fontsize=10)
            marks: list[Handle] = [
                (Line2D([], [], color=_BEFORE, lw=1.6), "data"),
                (Line2D([], [], color=_AFTER, lw=8), "added by training, formula"),
                (Line2D([], [], color="black", marker="o", ms=3.5, linestyle=""), "brute force"),
            ]
            _legend(figure, marks, columns=3)
    return figure


def bands(
    panels: Mapping[str, pd.DataFrame], names: Mapping[str, str], xlabel: str, ylabel: str, *, logx: bool = False,
    logy: bool = False, level: float | None = None, mark: tuple[float, str] | None = None,
) -> Figure:  # fmt: skip
    """A quantity over x, a line with a band from low to high for each name; a small panel a table.

    panels: title -> columns name, x, value, low, high. names: name (a key of THREATS) -> its text in the legend, in
    order. x are numbers, or texts that stand in the order of the table. level: a dotted line at this height; mark: a
    dotted line at this x, with its text.
    """
    with look(), _panels(list(panels), 2.7 if len(panels) > 1 else 3.4, xlabel) as (figure, grid):
        for title, axes in grid.items():
            table = panels[title]
            for name in _named(table, names):
                own, style = table[table.name == name], _threat(name)
                axes.plot(own.x, own.value, **style)
                axes.fill_between(own.x, own.low, own.high, color=style["color"], alpha=0.15, lw=0)
            if logx:
                axes.set_xscale("log")
            if logy:
                axes.set_yscale("log")
            if len(table) and isinstance(table.x.iloc[0], str):
                axes.tick_params(axis="x", rotation=60, labelsize=8)
            if level is not None:
                axes.axhline(level, color="0.4", lw=1, ls=":")
            if mark is not None:
                axes.axvline(mark[0], color="0.4", lw=1, ls=":")
                axes.annotate(mark[1], (mark[0], 1), (-4, -2), xycoords=("data", "axes fraction"),
                              textcoords="offset points", ha="right", va="top", fontsize=9)  # fmt: skip
        figure.supylabel(ylabel, fontsize=10)
        _legend(figure, _threat_handles(panels.values(), names))
    return figure


def dots(
    panels: Mapping[str, pd.DataFrame], names: Mapping[str, str], label: str, *, log: bool = False,
    level: float | None = None,
) -> Figure:  # fmt: skip
    """A quantity with its interval, a row a place and a mark a name in it; a small panel a table.

    panels: title -> columns place, name, value, low, high; rows of the figure are in the order of the first table that
    has them. names: name (a key of THREATS) -> its text in the legend, in order. level: a dotted line there.
    """
    with look():
        places = list(dict.fromkeys(place for table in panels.values() for place in table.place))
        there = {pair for table in panels.values() for pair in zip(table.place, table.name, strict=True)}
        heights: dict[tuple[str, str], float] = {}
        for row, place in enumerate(places):
            found = [name for name in names if (place, name) in there]
            shifts = np.linspace(-0.3, 0.3, len(found)) if len(found) > 1 else np.zeros(len(found))
            heights |= {(place, name): row + shift for name, shift in zip(found, shifts, strict=True)}
        with _panels(list(panels), 0.42 * len(places) + 0.5, label) as (figure, grid):
            for title, axes in grid.items():
                table = panels[title]
                for name in _named(table, names):
                    own, style = table[table.name == name], _threat(name)
                    at = [heights[place, name] for place in own.place]
                    axes.hlines(at, own.low, own.high, color=style["color"], lw=1.6)
                    axes.plot(own.value, at, **style | {"linestyle": ""})
                if log:
                    axes.set_xscale("log")
                if level is not None:
                    axes.axvline(level, color="0.4", lw=1, ls=":")
                for line in np.arange(len(places) - 1) + 0.5:
                    axes.axhline(line, color="0.9", lw=0.8, zorder=0)
                axes.set_yticks(range(len(places)), places, fontsize=9)
                axes.set_ylim(len(places) - 0.5, -0.5)
            _legend(figure, _threat_handles(panels.values(), names))
    return figure


@contextmanager
def _panels(
    titles: Sequence[str],
    height: float,
    xlabel: str,
    *,
    width: float | None = None,
    shared: Literal["all", "y", "none"] = "all",
) -> Iterator[tuple[Figure, dict[str, Axes]]]:
    """Small panels, two in a row (a single one fills it), each with its title.

    width: of each, in inches; without one, the figure is as wide as a phone can show. shared: "all" axes, those of y
    alone, or none.
    """
    columns = min(2, len(titles)) or 1
    lines = -(-len(titles) // columns) or 1
    size = (width * columns + 1.4 if width else NARROW + 0.4 * (columns - 1), height * lines + 1.0)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=size,
        sharex=shared == "all",
        sharey=shared != "none",
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat[len(titles) :]:
        axes.set_visible(False)
    for axes in grid.flat[max(len(titles) - columns, 0) : len(titles)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(xlabel, fontsize=9)
    used = dict(zip(titles, grid.flat, strict=False))
    for title, axes in used.items():
        axes.set_title(title, fontsize=10)
    yield figure, used


def _named(table: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """The names of a table, in the order given."""
    present = set(table.name)
    if unknown := present - set(names):
        raise KeyError(f"names without a text: {sorted(unknown)}")
    return [name for name in names if name in present]


def _threat(name: str) -> dict[str, Any]:
    own = THREATS[name]
    return {"color": own.colour, "marker": own.marker, "linestyle": own.line, "lw": 1.6, "ms": 5}


def _threat_handles(tables: Iterable[pd.DataFrame], names: Mapping[str, str]) -> list[Handle]:
    present = {name for table in tables for name in table.name}
    return [(Line2D([], [], **_threat(name)), text) for name, text in names.items() if name in present]


def _defences(table: pd.DataFrame) -> list[Defence]:
    """The trainings of a table, in the order of DEFENCES."""
    present = set(table.recipe)
    if unknown := present - set(DEFENCES):
        raise KeyError(f"trainings without a look: {sorted(unknown)}")
    return [defence for defence in DEFENCES if defence in present]


def _stroke(defence: Defence) -> dict[str, Any]:
    own = DEFENCES[defence]
    return {"color": own.colour, "marker": own.marker, "linestyle": own.line, "lw": 1.6, "ms": 6}


def _defence_handles(table: pd.DataFrame) -> list[Handle]:
    return [(Line2D([], [], **_stroke(defence)), defences.TITLES[defence]) for defence in _defences(table)]


def _recipes(tables: Mapping[str, pd.DataFrame]) -> list[Recipe]:
    """The recipes of all tables, in the order of RECIPES."""
    present = {recipe for table in tables.values() for recipe in table.recipe}
    if unknown := present - set(RECIPES):
        raise KeyError(f"recipes without a look: {sorted(unknown)}")
    return [recipe for recipe in RECIPES if recipe in present]


def _apart(recipes: Sequence[Recipe]) -> list[tuple[Recipe, float]]:
    """A factor of N for each recipe, so that intervals at one N do not hide each other."""
    if len(recipes) < 2:
        return [(recipe, 1.0) for recipe in recipes]
    return list(zip(recipes, np.linspace(0.97, 1.03, len(recipes)).tolist(), strict=True))


def _style(recipe: Recipe, source: str) -> dict[str, Any]:
    own = RECIPES[recipe]
    marker = own.cross if source == "the paper" else own.marker
    return {"color": own.colour, "marker": marker, **SOURCES[source]}


def _bars(
    axes: Axes, at: pd.Series, rows: pd.DataFrame, quantity: str, style: Mapping[str, Any], *, sideways: bool = False
) -> None:
    """Intervals, where the rows have them."""
    if f"{quantity}_low" in rows:
        draw = axes.hlines if sideways else axes.vlines
        draw(at, rows[f"{quantity}_low"], rows[f"{quantity}_high"], color=style["color"], lw=1.2)


def _n_axis(axes: Axes, tables: Iterable[pd.DataFrame]) -> None:
    """A logarithmic axis that names a few of the N that occur."""
    sizes = sorted({int(n) for table in tables if len(table) for n in table.n})
    if not sizes:
        return
    even = np.geomspace(sizes[0], sizes[-1], 5)
    named = sorted({min(sizes, key=lambda n: abs(np.log(n / place))) for place in even})
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(named, [f"{n:,}" for n in named])


def _sizes(tables: Iterable[pd.DataFrame]) -> Callable[[float], float]:
    """Which marker size an N has: from 4 to 9 points, even steps in log N."""
    logs = np.log([n for table in tables for n in table.n] or [1.0])
    low, span = logs.min(), max(float(np.ptp(logs)), 1e-9)
    return lambda n: float(4 + 5 * (np.log(n) - low) / span)


Handle = tuple[Any, str]  # what a legend shows, and its text


def _recipe_handles(tables: Mapping[str, pd.DataFrame]) -> list[Handle]:
    """A recipe's markers: as in rows, as in the paper, or both."""
    found: list[Handle] = []
    for recipe in _recipes(tables):
        sources = [source for source, table in tables.items() if (table.recipe == recipe).any()]
        styles = {_style(recipe, source)["marker"]: source for source in reversed(sources)}
        marks = [_style(recipe, source) | {"linestyle": ""} for source in reversed(styles.values())]
        filled = [mark | {"markerfacecolor": mark["color"]} for mark in marks]
        found.append((tuple(Line2D([], [], **mark) for mark in filled), TITLES[recipe]))
    return found


def _source_handles(tables: Mapping[str, pd.DataFrame], *, joined: bool = True) -> list[Handle]:
    full = [source for source, table in tables.items() if len(table)]
    grey = {"color": "0.35"} if joined else {"color": "0.35", "linestyle": ""}
    marks = {source: "x" if source == "the paper" else "o" for source in full}
    return [(Line2D([], [], **SOURCES[source] | grey, marker=marks[source]), source) for source in full]


def _size_handles(tables: Iterable[pd.DataFrame], size: Callable[[float], float]) -> list[Handle]:
    sizes = sorted({int(n) for table in tables for n in table.n})
    ends = [sizes[0], sizes[-1]] if len(sizes) > 1 else []
    return [(Line2D([], [], color="0.35", marker="o", linestyle="", ms=size(n)), f"N = {n:,}") for n in ends]


def _legend(figure: Figure, handles: Sequence[Handle], columns: int = 2) -> None:
    """A legend below, so that it costs no width."""
    if handles:
        figure.legend(
            [handle for handle, _ in handles],
            [text for _, text in handles],
            loc="outside lower center",
            ncols=columns,
            fontsize=9,
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0.6)},
        )


def tabs(parts: Mapping[str, Sequence[Markdown | tuple[Figure, str]]]) -> Markdown:
    """Texts and figures behind tabs, of which a reader sees one: name of a tab -> what it shows, from top to bottom.

    A figure comes with its alt text, and lies in the page itself. Raises ValueError if a figure has none.
    """
    lines = [":::::{tab-set}"]
    for name, content in parts.items():
        shown = [part.data if isinstance(part, Markdown) else _embedded(*part) for part in content]
        lines += [f"::::{{tab-item}} {name}", "\n\n".join(shown), "::::"]
    return Markdown("\n".join([*lines, ":::::"]))


def _embedded(figure: Figure, alt: str) -> str:
    """A figure as HTML."""
    if not alt.strip():
        raise ValueError(f"alt = {alt!r} is not allowed: a figure needs words for those who do not see it.")
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=80)
    Image.open(drawn).convert("RGB").quantize(64).save(file, format="png", optimize=True)  # a page has a weight
    pixels = base64.b64encode(file.getvalue()).decode()
    return f'<p><img src="data:image/png;base64,{pixels}" alt="{html.escape(alt)}"></p>'


def by_dataset(tables: Mapping[str, pd.DataFrame], quantities: Mapping[str, str]) -> Figure:
    """Quantities over N, a row of small panels a data set and a column a quantity; a line a recipe with its 95 %
    intervals. The panels of a column share their axes, so that data sets can be compared.

    tables: name of a data set -> its rows as in `curves`; quantities: name of a quantity -> its text.
    """
    with look():
        size = (NARROW + 0.4, 1.9 * len(tables) + 1.1)
        figure, grid = plt.subplots(
            len(tables), len(quantities), figsize=size, sharex=True, sharey="col", squeeze=False, layout="constrained"
        )
        for line, (name, table) in zip(grid, tables.items(), strict=True):
            for axes, (quantity, text) in zip(line, quantities.items(), strict=True):
                for recipe, shift in _apart(_recipes({name: table})):
                    own, style = table[table.recipe == recipe].sort_values("n"), _style(recipe, "published rows")
                    axes.plot(own.n * shift, own[quantity], **style | {"ms": 5})
                    _bars(axes, own.n * shift, own, quantity, style)
                axes.set_title(f"{name}: {text}", fontsize=9)
        for axes in grid[0]:  # the others of its column follow
            axes.set_ylim(bottom=0)
        for axes in grid[-1]:
            axes.set_xlabel("training images N", fontsize=9)
            _n_axis(axes, tables.values())
            axes.tick_params(axis="x", labelsize=8)
        _legend(figure, _recipe_handles({"published rows": pd.concat(tables.values())}))
    return figure


def links(tables: Mapping[str, pd.DataFrame], x: str, y: str, xlabel: str, ylabel: str) -> Figure:
    """One quantity against another, a small panel a data set: a dot a point, larger for larger N, with a cross of its
    95 % intervals, and the least-squares line. Every panel has axes of its own.

    tables: as in `by_dataset`, with both quantities; points that lack one are left out.
    """
    with look(), _panels(list(tables), 2.4, xlabel, shared="none") as (figure, grid):
        size = _sizes(tables.values())
        for name, axes in grid.items():
            table = tables[name].dropna(subset=[x, y])
            for recipe in _recipes({name: table}):
                own, style = table[table.recipe == recipe], _style(recipe, "published rows") | {"linestyle": ""}
                _bars(axes, own[x], own, y, style)
                _bars(axes, own[y], own, x, style, sideways=True)
                for n, at, height in zip(own.n, own[x], own[y], strict=True):
                    axes.plot(at, height, **style | {"ms": 0.8 * size(n)})
            if table[x].nunique() > 1:
                slope, base = np.polyfit(table[x].astype(float), table[y].astype(float), 1)
                ends = np.array([table[x].min(), table[x].max()])
                axes.plot(ends, base + slope * ends, color="0.4", lw=1, ls="--", zorder=1)
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
        figure.supylabel(ylabel, fontsize=10)
        handles = _recipe_handles({"published rows": pd.concat(tables.values())})
        _legend(figure, [*handles, *_size_handles(tables.values(), size)])
    return figure
