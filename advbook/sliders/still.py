"""The still images of the interactive figures: rows of small pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

_GAP = 3  # white pixels around a picture


def draw(rows: Sequence[Tensor], titles: Sequence[Sequence[str]], names: Sequence[str]) -> bytes:
    """Rows of pictures as a PNG: rows [T, C, H, W] in [0, 1], C of 1 or 3, titles over pictures, names before rows."""
    # A figure of its own, not pyplot's: nothing is left over that a notebook would show a second time.
    # One axes a row: one a picture takes a second longer.
    figure = Figure(figsize=(1.15 * len(rows[0]) + 0.4, 1.35 * len(rows)))
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for ax, images, texts, name in zip(axes, rows, titles, names, strict=True):
        strip = F.pad(images, [_GAP] * 4, value=1)  # [T, C, H + 2 GAP, W + 2 GAP]
        ax.imshow(strip.permute(2, 0, 3, 1).flatten(1, 2).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1)
        for i, text in enumerate(texts):
            ax.text((i + 0.5) * strip.shape[3] - 0.5, 0, text, ha="center", va="bottom", fontsize=8)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_ylabel(name, fontsize=9)
    figure.subplots_adjust(left=0.04, right=1, bottom=0, top=1 - 0.12 / len(rows), hspace=0.06)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
