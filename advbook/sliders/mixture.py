"""The Gaussian mixture and what adversarial training makes of it, by the closed form, live."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from numpy.typing import ArrayLike, NDArray
from traitlets import Float, Int, List, Unicode, validate

from advbook.gaussian import spectrum as gaussian
from advbook.sliders.base import Figure, script, selector, slider

ADVERSARIES = ("regular", "generative", "joint", "linear flow")
LOWEST, HIGHEST = 0.05, 2.5  # variance of a direction
STRONGEST = 0.4  # 1 / L
_PLANES = ("1 and 2", "1 and 3", "2 and 3")
_AXES = ((0, 1), (0, 2), (1, 2))
_COLOURS = ("#1662a8", "#7a3b9a")
_ARROW = "#a93404"


def spectrum(
    adversary: str, variances: ArrayLike, strength: float, noise: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reach k and variance s after adversarial training of each direction of variance lambda.

    variances: [d], above 0; strength: 1/L; noise: sigma^2 of the generative decoder, which has a code for every
    direction. -> [d], [d]. Raises ValueError for another adversary. See gaussian.spectrum.
    """
    if adversary not in ADVERSARIES:
        raise ValueError(f"adversary = {adversary!r}: allowed are {', '.join(ADVERSARIES)}.")
    lam = torch.as_tensor(np.asarray(variances, np.float64))
    pixels, decoder = gaussian.pixels(lam).square(), gaussian.decoder(lam, len(lam), noise).square()
    squares = {"regular": pixels, "generative": decoder, "joint": pixels + decoder, "linear flow": lam}
    k = strength * squares[adversary]  # not gaussian.reach: the slider's 1/L may be 0
    return k.numpy(), gaussian.hardened(lam, k).numpy()


class MixtureFigure(Figure):
    """Two Gaussian classes before and after adversarial training, the attack's moves, and the variances, live.

    Traits: lambda_1, lambda_2 and, with three directions, lambda_3, the variances; strength, which is 1/L; noise,
    sigma^2 of the generative decoder; adversary and, with three directions, plane (counted from 0).
    """

    _esm = script("mixture.js")
    adversaries = List(Unicode()).tag(sync=True)
    mean = List(Float()).tag(sync=True)
    lambda_1 = Float(1.0).tag(sync=True)
    lambda_2 = Float(1.0).tag(sync=True)
    lambda_3 = Float(1.0).tag(sync=True)
    strength = Float().tag(sync=True)
    noise = Float().tag(sync=True)
    adversary = Int().tag(sync=True)
    plane = Int().tag(sync=True)

    def __init__(
        self, variances: Sequence[float] = (2.0, 0.15), mean: Sequence[float] = (1.0, 0.6), *, strength: float = 0.2
    ) -> None:
        """A figure over two or three directions.

        variances: lambda, in [0.05, 2.5] each, where the sliders start; mean: mu, one number a direction, the classes
        are at mu and -mu; strength: 1/L, in [0, 0.4]. Raises ValueError for another number of directions, TraitError
        for a start outside its range.
        """
        if len(variances) not in (2, 3) or len(mean) != len(variances):
            raise ValueError(
                f"variances has {len(variances)} numbers and mean {len(mean)}; allowed are 2 or 3, as many in both."
            )
        names = [f"lambda_{i + 1}" for i in range(len(variances))]
        labels = [f"λ{'₁₂₃'[i]}, variance of direction {i + 1}" for i in range(len(variances))]
        planes = [selector("plane", "directions drawn", list(_PLANES))] if len(variances) == 3 else []
        noise = 0.2
        super().__init__(
            adversaries=list(ADVERSARIES),
            mean=list(mean),
            controls=[
                selector("adversary", "adversary", list(ADVERSARIES)),
                *planes,
                *(slider(*its[:2], LOWEST, HIGHEST, its[2]) for its in zip(names, labels, variances, strict=True)),
                slider("strength", "1/L, strength of the attack", 0, STRONGEST, strength),
                slider("noise", "σ², noise of the generative decoder", 0, 1, noise),
            ],
            note="Ellipses reach two standard deviations from the mean: solid those of the data, dashed those of the "
            "model after adversarial training. An arrow is the attack on that model, from a point to where it is "
            "moved: it ends on the dashed ellipse, since the hardened model has the variances of the attacked data. An "
            "attack pays L/2 for every squared unit of its move: of the point itself (regular), of its code "
            "(generative, linear flow), or of both parts (joint). A unit of the code moves the point by "
            "√max(λ − σ², 0) along a direction, with the linear flow by √λ.",
            strength=strength,
            noise=noise,
            **dict(zip(names, variances, strict=True)),
        )

    _in_range = validate("lambda_1", "lambda_2", "lambda_3", "strength", "noise", "adversary", "plane")(Figure._within)

    def variances(self) -> NDArray[np.float64]:
        """Where the sliders of lambda stand: [d]."""
        return np.array([getattr(self, f"lambda_{i + 1}") for i in range(len(self.mean))])

    def hardened(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Reach k and variance s of each direction, as the controls stand: [d], [d]."""
        return spectrum(self.adversaries[self.adversary], self.variances(), self.strength, self.noise)

    def still(self) -> bytes:
        """The two classes with the attack's moves, and beside them the variances before and after."""
        # A figure of its own, not pyplot's: nothing is left over that a notebook would show a second time.
        drawing = Drawing(figsize=(9, 4.2), layout="constrained")
        plane, bars = drawing.subplots(1, 2)
        self._draw_plane(plane)
        self._draw_bars(bars)
        file = io.BytesIO()
        drawing.savefig(file, format="png", dpi=110)
        return file.getvalue()

    def alt(self) -> str:
        """What the still shows."""
        lam, (_, s) = self.variances(), self.hardened()
        grows = "; ".join(
            f"direction {i + 1}, variance {v:.2f}, grows to {its:.2f}, {its / v:.2f} times"
            for i, (v, its) in enumerate(zip(lam, s, strict=True))
        )
        return f"Two Gaussian classes before and after training against the {self._name()} adversary: {grows}."

    def _name(self) -> str:
        return str(self.adversaries[self.adversary])

    def _draw_plane(self, axes: Axes) -> None:
        pair = list(_AXES[self.plane])
        lam, (k, s) = self.variances()[pair], (values[pair] for values in self.hardened())
        angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        u = 2 * np.sqrt(lam) * np.stack([np.cos(angle), np.sin(angle)], 1)  # [16, 2]
        e = k * u / (s - k)
        for sign, colour in zip((1, -1), _COLOURS, strict=True):
            middle = (sign * self.mean[pair[0]], sign * self.mean[pair[1]])
            for variance, line in ((lam, "-"), (s, "--")):
                width, height = 4 * np.sqrt(variance)
                axes.add_patch(
                    Ellipse(middle, width, height, fill=False, edgecolor=colour, linestyle=line, linewidth=1.5)
                )
            start = middle + u
            axes.quiver(*start.T, *e.T, angles="xy", scale_units="xy", scale=1, color=_ARROW, width=0.004)
            axes.text(*middle, "+μ" if sign > 0 else "−μ", color=colour, ha="center", va="center")
        extent = 1.1 * (np.abs(self.mean).max() + 2 * np.sqrt(s.max()))
        axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", title=f"{self._name()} adversary")
        axes.set(xlabel=f"direction {pair[0] + 1}", ylabel=f"direction {pair[1] + 1}")
        looks = [Line2D([], [], color="#4a5362", linestyle=line) for line in ("-", "--")]
        axes.legend(looks, ["before", "hardened"], frameon=False, fontsize=9, loc="upper left")

    def _draw_bars(self, axes: Axes) -> None:
        lam, (_, s) = self.variances(), self.hardened()
        place = np.arange(len(lam))
        axes.barh(place - 0.2, lam, 0.36, color="#8d97a8", label="before")
        axes.barh(place + 0.2, s, 0.36, color=_COLOURS[0], label="hardened")
        for at, before, after in zip(place, lam, s, strict=True):
            axes.text(after, at + 0.2, f" ×{after / before:.2f}", va="center")
        axes.set_yticks(place, [f"direction {i + 1}" for i in place])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(xlabel="variance")
        axes.legend(frameon=False, fontsize=9)
