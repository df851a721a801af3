"""The interactive figures: one class serves the page without a kernel and JupyterLab with one.

pack.py turns networks into bytes, interpreter.js runs them in the reader's browser, and a figure joins the
two with its controls. JS and torch agree to 1e-4; tests/parity.py holds every figure to that.
"""

from advbook.sliders.direction import AttackDirection
from advbook.sliders.joint import JointSlider
from advbook.sliders.latent import LatentSlider
from advbook.sliders.learned import LearnedSlider
from advbook.sliders.mixture import MixtureFigure
from advbook.sliders.path import OnManifoldAttack
from advbook.sliders.principal import PrincipalSlider
from advbook.sliders.threshold import ThresholdSlider
from advbook.sliders.walk import OffManifoldWalk

__all__ = [
    "AttackDirection",
    "JointSlider",
    "LatentSlider",
    "LearnedSlider",
    "MixtureFigure",
    "OffManifoldWalk",
    "OnManifoldAttack",
    "PrincipalSlider",
    "ThresholdSlider",
]
