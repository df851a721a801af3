"""Judges of what an image shows that know nothing of the attacked networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from advbook import fonts, networks, store, training
from advbook.experiments.setting import Dataset, classes, title, training_images
from advbook.fleet import Stack
from advbook.manifolds.projection import Manifold, levenberg_marquardt, neighbours
from advbook.training import Schedule

# --- on FONTS, where the manifold is known -------------------------------------------------------------------------


@torch.no_grad()
def read_told(x: Tensor, theta: Tensor, font: Tensor, *, batch: int = 500) -> Tensor:
    """The letter that a judge reads who is told the transformation, and knows the fonts but no network: [B].

    x: [B, 1, 28, 28]; theta: [B, 6], which is undone; font: [B], left out. The judge says the letter of the nearest
    prototype (L2) of all other fonts, over the upright pixels that lay inside the canvas.
    """
    letters = fonts.prototypes(x.device).flatten(0, 1).flatten(1)  # [10000, 784], the letter fastest
    squares, read = letters.square(), []
    for rows in torch.arange(len(x), device=x.device).split(batch) if len(x) else ():
        up, inside = (part.flatten(1) for part in fonts.upright(x[rows], theta[rows]))
        seen = inside.to(up)
        distance = seen @ squares.T - 2 * (seen * up) @ letters.T  # less |up|^2, which all letters share
        distance = distance.view(len(rows), fonts.FONTS, len(fonts.LETTERS))
        distance[torch.arange(len(rows), device=x.device), font[rows]] = torch.inf
        read.append(distance.flatten(1).argmin(1) % len(fonts.LETTERS))
    return torch.cat(read) if read else font


def read_untold(
    x: Tensor, font: Tensor, manifold: Manifold, *, pool: int = 100_000, starts: int = 5, steps: int = 6
) -> Tensor:
    """The letter that a judge reads who is told nothing of the transformation: that of the nearest point of all
    letters' manifolds, as far as a search finds it: [B].

    x: [B, 1, 28, 28]; font: [B], left out. Of `pool` random training rows the `starts` nearest of every letter are
    starting points; each takes `steps` damped Gauss-Newton steps in theta.
    """
    rows, nearest = fonts.random_rows("train", pool, device=x.device), []
    for letter in tqdm(range(len(fonts.LETTERS)), "the judge who is told nothing", leave=False):
        own = rows[rows.letter == letter]
        apart = torch.cdist(x.flatten(1), fonts.images(own).flatten(1))
        apart = apart.masked_fill(font[:, None] == own.font, torch.inf)
        near = own[apart.topk(starts, largest=False).indices.flatten()]
        target, parts = x.repeat_interleave(starts, 0), []
        for part in torch.arange(len(near), device=x.device).split(500):
            start, context = near.theta[part][None], (near.font[part], near.letter[part])
            parts.append(levenberg_marquardt(manifold, target[part], start, context, steps=steps).distance[0])
        nearest.append(torch.cat(parts).view(-1, starts).amin(1))
    return torch.stack(nearest, 1).argmin(1)


# --- on real images --------------------------------------------------------------------------------------------------

WIDTHS = (32, 64, 128)  # channels of the judge's network: twice the standard classifier's on small images
EPOCHS = 5
VOTERS = 10  # nearest training images that vote


@dataclass(frozen=True)
class Judge:
    """A network, and a vote of the nearest training images, both learned from images alone.

    x: [N, C, H, W]; y: [N], the images that vote.
    """

    network: nn.Sequential
    x: Tensor
    y: Tensor
    classes: int

    def votes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the network and the neighbours say: probabilities and shares of votes, [B, K] each."""
        chosen = self.y[neighbours(images, self.x, VOTERS)]  # [B, VOTERS]
        shares = nn.functional.one_hot(chosen, self.classes).to(images).mean(1)
        return networks.predict(self.network, images).softmax(1), shares

    def __call__(self, images: Tensor) -> Tensor:
        """The class for which both together are: [B, C, H, W] -> [B]."""
        said, voted = self.votes(images)
        return (said + voted).argmax(1)


def independent(dataset: Dataset, n: int, device: torch.device) -> Judge:
    """The judge of a data set, learned from its first n training images; its network is kept in the store."""
    x, y = training_images(dataset, n, device)
    generator = torch.Generator().manual_seed(1_000_000)  # no attacked network starts from this one
    count, (colours, height, breadth) = len(classes(dataset)), x.shape[1:]
    fresh = networks.cnn(count, WIDTHS, side=(height, breadth), colours=colours, generator=generator).to(device)
    schedule = Schedule(epochs=EPOCHS, decay=0.6)
    key = {
        "version": 1,
        "training": "judge",
        "data": [dataset, n],
        "widths": list(WIDTHS),
        "schedule": schedule.model_dump(),
        "device": device.type,
    }

    def train(_: list[int]) -> list[nn.Module]:
        text = f"training the judge of {title(dataset)}"
        return training.train(Stack([fresh]), x, y, schedule, generators=[generator], label=text).unstack()

    (network,) = store.trained([key], [fresh], train)
    assert isinstance(network, nn.Sequential)
    return Judge(networks.folded(network), x, y, count)
