"""Chapter 06: directions of the data manifold, on the Gaussian mixture in closed form and on networks and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from advbook import metrics
from advbook.experiments import Parameters, Result, directions, mixture
from advbook.experiments.hardening import PAIRS, Hardening
from advbook.experiments.setting import check_data, load, room, train_size, training_images
from advbook.ledger import Verdict

# The verdicts' thresholds, fixed before any run.
LARGER, RANDOM, UP, DOWN, OTHER_GAIN, LESS_CONFLICT, EXACT = 3.0, 1.0, 1.3, 0.85, 0.01, 0.5, 1.0
CALIBRATED = 0.05  # a budget whose own-trained robust accuracy is further from the goal makes the conflict void
Draws = Mapping[tuple[str, str], np.ndarray]  # (training, threat) -> [1 + R], the value itself first


class GaussianMixture(Parameters):
    """Chapter 06 on one data set: the mixture itself, where everything has a closed form, or images and networks."""

    experiment: ClassVar[str] = "06_gaussian_mixture"
    version: ClassVar[int] = 1

    dataset: Literal["mixture", "fonts", "mnist", "fashion_mnist"] = Field(
        "mixture", description="the Gaussian mixture, or a data set"
    )
    n: int = Field(4000, ge=100, description="samples of the mixture, or training images N")
    q: int = Field(5, ge=1, le=200, description="latent dimension of the generator (class-wise probabilistic PCA)")
    spectrum: list[Annotated[float, Field(gt=0, le=1e6)]] = Field(
        [8.0, 5.0, 3.0, 2.0, 1.2, 0.3, 0.3, 0.3],
        min_length=2,
        max_length=64,
        description="mixture: variances of its principal directions",
    )
    penalty: float = Field(8.0, ge=0.01, le=1e6, description="mixture: price L of a squared perturbation")
    mixtures: int = Field(10, ge=2, le=1_000, description="mixture: random ones, for intervals")
    seeds: int = Field(3, ge=1, le=100, description="images: networks a training, for intervals")
    target: float = Field(0.7, gt=0.2, lt=1, description="images: own-trained robust accuracy that budgets are set to")
    population: int = Field(
        20_000, ge=100, description="images: training images that the principal directions are taken from"
    )
    network: Literal["cnn", "mlp"] = Field("cnn", description="images: architecture")
    epochs: int = Field(8, ge=1, le=1000, description="images: epochs of training")
    train_steps: int = Field(7, ge=1, le=1000, description="images: steps of the attack inside training")
    images: int = Field(200, ge=25, le=8_000, description="images: attacked test images, the first of the test set")
    test_images: int = Field(
        2_000, ge=500, le=100_000, description="images: others, to calibrate and for the test error"
    )
    steps: int = Field(20, ge=1, le=10_000, description="images: gradient steps of the attacks")
    success: float = Field(0.5, gt=0.05, lt=0.95, description="images: success rate at which directions are compared")
    eigen: int = Field(50, ge=1, le=392, description="images: directions of an eigenspace attack")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        size = len(self.spectrum)
        if self.dataset == "mixture":
            if self.q >= size:
                raise ValueError(
                    f"Parameter Q = {self.q} is not allowed: SPECTRUM has {size} directions, Q is below that."
                )
            if min(self.spectrum) == max(self.spectrum):
                raise ValueError(
                    f"Parameter SPECTRUM = {self.spectrum} is not allowed: its variances are all the same, so no "
                    "direction stands out for a generator."
                )
            return self
        most = train_size(self.dataset)
        for name in ("n", "population"):
            if getattr(self, name) > most:
                raise ValueError(
                    f"Parameter {name.upper()} = {getattr(self, name)} is not allowed: {self.dataset} has {most:,} "
                    "training images."
                )
        wanted, there = self.images + self.test_images, room(self.dataset, self.n)
        if wanted > there:
            raise ValueError(
                f"Parameter TEST_IMAGES = {self.test_images} is not allowed: with IMAGES = {self.images} that is more "
                f"than the {there:,} images of {self.dataset} beside N = {self.n}."
            )
        return self

    def check_data(self) -> None:
        """Raise MissingData (or DamagedData) if the data set is not there; the mixture and FONTS always are."""
        if self.dataset != "mixture":
            check_data(self.dataset)

    def larger(self) -> dict[str, Any]:
        """Twice the samples, or twice the training images as far as there are any, else twice the networks."""
        wanted = self.images + self.test_images
        if self.dataset == "mixture" or (
            2 * self.n <= train_size(self.dataset) and wanted <= room(self.dataset, 2 * self.n)
        ):
            return {"N": 2 * self.n}
        return {"SEEDS": 2 * self.seeds}

    @staticmethod
    def verdicts(rows: pd.DataFrame) -> list[Verdict]:
        """The chapter's claims against their thresholds, from the rows of one point.

        1. A generative perturbation lies in directions of at least three times the variance of a regular one; and,
        taken absolutely, a regular one in directions of less variance than a random direction. 2. Adversarial training
        moves its own attack's directions: the regular attack to at least 1.3 times the variance, and generative
        training the regular attack to at most .85. 3. Training against one kind helps against the other by at most
        a point. 4. Joint training over a generative and a regular threat costs at most half of what it costs over two
        regular ones. On the mixture also: closed form and brute force agree within the stated tolerances.
        """
        theory = rows.iloc[0].dataset == "mixture"
        regular = "l2" if theory else "linf"
        energy, robust = drawn(rows, "energy"), drawn(rows, "robust")
        generative, own = energy["normal", "generative"], energy["normal", regular]
        found = [
            _verdict(
                "Generative attacks use directions of larger variance than regular ones",
                "variance of the attacked directions, generative / regular",
                generative / own,
                LARGER,
            ),
            _verdict(
                "Regular attacks use directions of less variance than a random direction",
                "variance of the attacked directions / mean variance",
                own,
                RANDOM,
                at_most=True,
            ),
            _verdict(
                "Regular adversarial training drives the regular attack to larger variance",
                "variance of the attacked directions, after / before",
                energy[regular, regular] / own,
                UP,
            ),
            _verdict(
                "Generative adversarial training drives the regular attack to smaller variance",
                "variance of the L2 attack's directions, after / before",
                energy["generative", "l2"] / energy["normal", "l2"],
                DOWN,
                at_most=True,
            ),
            _verdict(
                "Training against regular attacks does not help against generative ones, nor the other way round",
                "larger gain in robust accuracy against the other kind",
                other_gain(robust),
                OTHER_GAIN,
                at_most=True,
            ),
            _verdict(
                "Regular and generative threats conflict less than two regular ones",
                "drop of joint training, pairs with generative / pairs of norms",
                relative_conflict(robust),
                LESS_CONFLICT,
                at_most=True,
                void=_uncalibrated(rows) or _harmless(robust),
            ),
        ]
        if theory:
            worst = float((checks(rows).error / checks(rows).tolerance).max(skipna=False))
            claim = "The closed forms of the mixture agree with brute force"
            found.append(Verdict(claim, "largest error / tolerance", worst, worst, worst, EXACT, at_most=True))
        return found

    def compute(self) -> Result:
        """The rows of the mixture, or of trained networks and images."""
        if self.dataset == "mixture":
            rows = mixture.rows(self.spectrum, self.q, n=self.n, penalty=self.penalty, seeds=self.mixtures)
            return Result(rows, {})
        device = self.torch_device()
        setting = load(self.dataset, self.n, "first", self.images, device, held_out=self.test_images)
        classes = len(setting.classes)
        known = directions.principal(*training_images(self.dataset, self.population, device), classes)
        hardening = Hardening(
            setting=setting,
            directions=known,
            generator=directions.generator(setting.x, setting.y, classes, self.q),
            data=(self.dataset, "first", self.n),
            network=self.network,
            epochs=self.epochs,
            seeds=self.seeds,
            train_steps=self.train_steps,
            steps=self.steps,
            target=self.target,
            success=self.success,
            eigen=self.eigen,
        )
        return Result(hardening.rows(), {})


def drawn(rows: pd.DataFrame, what: str) -> Draws:
    """Rates of every (training, threat) with their bootstrap resamples, all drawn together: seeds, and blocks of
    samples or images.
    """
    own = rows[rows.what == what]
    tables = {
        key: [np.array(part.sort_values("seed")[name].tolist()) for name in ("hits_average", "counted")]
        for key, part in own.groupby(["training", "threat"])
    }
    hits, counted = (np.stack([table[part] for table in tables.values()]) for part in (0, 1))
    (found,) = metrics.resampled_rates((hits, counted))
    return dict(zip(tables, found, strict=True))  # type: ignore[arg-type]


def checks(rows: pd.DataFrame) -> pd.DataFrame:
    """The comparisons of a closed form with brute force: name, error, tolerance."""
    return rows[rows.what == "check"][["name", "error", "tolerance"]].reset_index(drop=True)


def drops(robust: Draws, pair: Sequence[str]) -> np.ndarray:
    """What joint training costs: robust accuracy of each threat's own training less that of the joint one, the mean
    over the pair: [1 + R].
    """
    return np.asarray(np.mean([robust[threat, threat] - robust["+".join(pair), threat] for threat in pair], axis=0))


def conflicts(robust: Draws) -> dict[tuple[str, str], np.ndarray]:
    """The drop of every pair of threats."""
    return {pair: drops(robust, pair) for pair in PAIRS if ("+".join(pair), pair[0]) in robust}


def relative_conflict(robust: Draws) -> np.ndarray:
    """Mean drop of the pairs with the generative threat over the mean drop of the pairs of norms: [1 + R].

    A mean drop of the norms below .001 counts as .001: the ratio then means nothing, and its verdict is void.
    """
    mixed, norms = mean_drops(robust)
    return np.asarray(mixed / np.maximum(norms, 0.001))


def mean_drops(robust: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Of the pairs with the generative threat, and of the pairs of norms: [1 + R] each."""
    found = conflicts(robust)
    mixed = [one for pair, one in found.items() if "generative" in pair]
    norms = [one for pair, one in found.items() if "generative" not in pair]
    return np.mean(mixed, axis=0), np.mean(norms, axis=0)


def _harmless(robust: Draws) -> str:
    """Why no conflict can be less than that of two norms, if there is no clear one."""
    value, low, high = metrics.percentiles(100 * mean_drops(robust)[1])
    if low > 0:
        return ""
    return f"two norms do not clearly conflict: their mean drop is {value:.1f} points ({low:.1f} to {high:.1f})"


def other_gain(robust: Draws) -> np.ndarray:
    """The larger of two gains over normal training: of L2 training against the generative threat, and of generative
    training against L2: [1 + R].
    """
    pairs = (("l2", "generative"), ("generative", "l2"))
    gains = [robust[training, threat] - robust["normal", threat] for training, threat in pairs]
    return np.asarray(np.max(gains, axis=0))


def _uncalibrated(rows: pd.DataFrame) -> str:
    """Why budgets cannot be compared, if the search for one of them ended far from its goal."""
    own = rows[rows.what == "calibration"]
    far = (
        own[(own.rate - own.goal).abs() > CALIBRATED] if len(own) else own
    )  # the mixture's have no rate: they are exact
    if not len(far):
        return ""
    worst = far.iloc[0]
    return f"the search for the budget of {worst.threat} ended at {worst.rate:.0%}, not at {worst.goal:.0%}"


def _verdict(
    claim: str, statistic: str, values: np.ndarray, threshold: float, *, at_most: bool = False, void: str = ""
) -> Verdict:
    return Verdict(claim, statistic, *metrics.percentiles(values), threshold, at_most=at_most, void=void)
