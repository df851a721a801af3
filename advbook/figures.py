"""Every plot of the book, in one look. Each function draws rows or arrays and returns a figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours by kind of perturbation (Okabe and Ito's palette, which colour-blind readers can tell apart), with line
# styles.
LOOKS = {
    "adversarial": ("#d55e00", "-"),
    "sign steps": ("#cc79a7", "-"),
    "random sign": ("#0072b2", "--"),
    "gaussian": ("#56b4e9", "--"),
    "on-manifold move": ("#009e73", "-."),
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


def histograms(rows: pd.DataFrame, quantity: str, edges: np.ndarray, label: str) -> Figure:
    """Normalized histograms of a quantity, a line a kind, from the bin counts of pooled rows."""
    with look():
        figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
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
        axes.set(xlabel=label, ylabel="share of images", ylim=(0, 1.3 * max(spread) if spread else None))
        axes.legend(fontsize=9)
    return figure


def intervals(panels: Mapping[str, pd.DataFrame], quantity: str, label: str, *, chance: float | None = None) -> Figure:
    """A quantity of every kind with its interval, a panel a table; a dotted line where chance would be.

    All tables hold the kinds in the same order; one that leaves some out leaves out the last ones.
    """
    with look():
        figure, grid = plt.subplots(
            1, len(panels), figsize=(3.4 * len(panels) + 1.6, 2.8), sharey=True, squeeze=False, layout="constrained"
        )
        for axes, (title, rows) in zip(grid[0], panels.items(), strict=True):
            for place, row in enumerate(rows.to_dict("records")):
                _interval(axes, place, row, quantity)
            axes.set(title=title, xlabel=label)
            if chance is not None:
                axes.axvline(chance, color="0.4", lw=1, ls=":")
        kinds = max((list(rows["kind"]) for rows in panels.values()), key=len)
        grid[0][0].set_yticks(range(len(kinds)), kinds)
        grid[0][0].invert_yaxis()
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
