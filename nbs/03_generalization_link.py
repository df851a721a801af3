# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # On-manifold robustness is generalization
#
# **The claim** ({cite:t}`stutz2019disentangling`, section 3.4 and Figure 5): *adversarial examples on the manifold are
# errors of generalization. As the test error of a classifier falls, so does the success rate of on-manifold attacks;
# and adversarial training on the manifold lowers the test error.*
#
# The idea behind it is short. An adversarial example on the manifold is an image that the data could have shown.
# If the classifier gets it wrong, it has found a piece of its own test error. A classifier without test error has no
# on-manifold adversarial examples at all.
#
# **Why one might doubt it.**
#
# - *Two falling curves.* Test error falls with the number $N$ of training images, and so does the success rate. Any two
#   quantities that fall with $N$ have a high correlation over $N$, linked or not.
# - *More data in disguise.* On-manifold adversarial training sees moved copies of its images. That is data
#   augmentation. Perhaps random moves would do as well, and the adversary adds nothing.
# - *A weak attack.* The paper's attack takes small steps and stops early. Perhaps its success measures how hard it
#   tries, not what the classifier has learned.
# - *A strong attack.* The opposite: an attack that tries hard may fool nearly every image of every classifier at
#   the paper's budget. Then nothing is left to correlate.

# %% tags=["parameters"]
DATASET: str = "fonts"  # data set: fonts, emnist, mnist, fashion_mnist, celeba
MANIFOLD: str = "small"  # size of the learned manifolds, "small" or "paper"
NETWORKS: list = ["cnn"]  # architectures; figures and verdicts show cnn
RECIPES: list = ["normal", "on_manifold", "random_latent"]  # training recipes
N: list = [250, 500]  # training images
SUBSET: str = "first"  # "first": the first N training rows, as in the paper; "random": random ones
SEEDS: int = 2  # networks a point, which differ in initialization and batch order
EPOCHS: int = 20  # epochs of training
TRAIN_STEPS: int = 10  # steps of the attack inside training
IMAGES: int = 75  # attacked test images
TEST_IMAGES: int = 9000  # other test images, for the test error
EPS: float = 0.3  # budget of regular perturbations, L-inf
ETA: float = 0.3  # budget of latent perturbations, L-inf on theta or z
ETA_SMALL: float = 0.1  # a second, smaller latent budget of the strong attack
STEPS: int = 40  # gradient steps of the paper's attack
RESTARTS: int = 2  # restarts of the paper's attack
STRONG_STEPS: int = 50  # steps of the strong attack, for each of its two objectives
DEVICE: str = "auto"  # "auto" takes a GPU if there is one; or cpu, cuda, cuda:1
PROFILE: str = "own"  # a name for this run, printed at the end of the page

# %% [markdown]
# ## Method
#
# A manifold is given by a decoder: its images are $\mathrm{dec}(z)$, with a code $z$ of a few numbers.

# %% tags=["remove-input"]
from IPython.display import Markdown, display

from advbook.experiments import learned

KNOWN = r"""
On FONTS it is known: an image is $x = \mathrm{dec}(z)$, a letter of a font, moved by six numbers $\theta$ within known
limits. An attack moves $\theta$ alone; letter and font stay.
"""
LEARNED = rf"""
On real images it is not known. It is **learned** from the training images, for each class $y$ on its own: the decoder
$\mathrm{{dec}}_y$ is that of a VAE-GAN {{cite:p}}`larsen2016autoencoding`, whose encoder gives the code $z = \mu(x)$ of an
image. Codes are clipped into $[-2, 2]$ in each entry, and attacks stay in there. [How good these manifolds
are](learned_manifolds.ipynb) is asked on a page of its own. Four things follow for this page.

- *$\mathrm{{dec}}_y(z)$ is not quite $x$.* The attack starts from $\mathrm{{dec}}_y(z)$, so it counts where the classifier
  reads $\mathrm{{dec}}_y(z)$ rightly, not where it reads $x$ rightly, as in the released code. Training sees $x$ and moved
  $\mathrm{{dec}}_y(z + \zeta)$.
- *$\mathrm{{dec}}_y(z)$ is easier than $x$.* Encoder and decoder are told the class, so $\mathrm{{dec}}_y(z)$ is pulled
  towards it and is, as a rule, read more easily than $x$. Success counts on these easier images, test error on images.
- *The manifolds know more images than the classifier.* They are learned from all {learned._images(DATASET, MANIFOLD):,}
  training images with their labels, however small $N$ is. So a gain of on-manifold training over normal training can be
  that of these images. Only the comparison with random moves on the same manifold is free of it.
- *An example on a learned manifold need not show its class.* The chapter before asks an independent judge about that.
  Here the class is taken for granted, as in the paper.
"""
display(Markdown(KNOWN if DATASET == "fonts" else LEARNED))

# %% [markdown]
# An **on-manifold adversarial example** of the code $z$ of an image is
#
# $$
# \begin{aligned}
# \tilde x &= \mathrm{dec}(z + \zeta), \\
# \zeta &\approx \arg\max_{\|\zeta\|_\infty \le \eta,\ z + \zeta\ \text{valid}}
# \mathcal L(f(\mathrm{dec}(z + \zeta)), y),
# \end{aligned}
# $$
#
# with the cross-entropy $\mathcal L$ of the classifier $f$. **On-manifold adversarial training** does the same to
# training images, and fits the weights $w$ to what it finds:
#
# $$\min_w \sum_{n=1}^N \max_{\|\zeta\|_\infty \le \eta} \mathcal L(f(\mathrm{dec}(z_n + \zeta); w), y_n).$$
#
# **Adversarial transformation training** needs no manifold, only a known invariance: a transformation $T(x; t)$ of the
# image itself, with the same six parameters, about the $t_0$ that changes nothing:
#
# $$\min_w \sum_{n=1}^N \max_{\|t - t_0\|_\infty \le \eta} \mathcal L(f(T(x_n; t); w), y_n).$$
#
# On FONTS the paper calls the two equivalent. They are close: $T$ moves an image that has been moved once already, so
# it reaches other images, and what was pushed off the canvas is lost. On real images, $t$ has tighter limits.
#
# **Random moves**, the control, put chance in the place of the adversary:
#
# $$
# \begin{aligned}
# \zeta &= \eta\, u\, v / \|v\|_\infty, \\
# v &\sim \mathcal N(0, I),\quad u \sim \mathcal U(0, 1).
# \end{aligned}
# $$
#
# | training | every batch | what it is for |
# | --- | --- | --- |
# | normal | clean images | the baseline |
# | adversarial | half clean, half regular adversarial examples, $\Vert\delta\Vert_\infty \le \epsilon$ | does just any adversary help? |
# | on-manifold | half clean, half $\mathrm{dec}(z + \zeta)$, $\zeta$ adversarial | the claim |
# | random latent | half clean, half $\mathrm{dec}(z + \zeta)$, $\zeta$ random | control of on-manifold |
# | transformation | half clean, half $T(x; t)$, $t$ adversarial | the claim without a manifold |
# | random transformation | half clean, half $T(x; t)$, $t$ random | control of transformation |
# | on-manifold, learned classes | as on-manifold, on FONTS, but $\mathrm{dec}$ is learned from images, one for each class | what does a learned manifold lose? |
# | random latent, learned classes | the same, $\zeta$ random | its control |
# | on-manifold, one for all classes | $\mathrm{dec}$ is learned of all classes together, $\Vert\zeta\Vert_\infty \le$ {glue:text}`eta_data` | what if a move may change the class? |
#
# The budget of the last line, {glue:text}`eta_data`, is that of the released code. It is in units of another code
# space, so it cannot be compared with $\eta$ of the other lines.
#
# Here $\epsilon$ = {glue:text}`eps`. Which of these recipes this page has rows of is seen in its figures. As in the
# released code, the two random recipes take one step of the optimizer for each half of a batch, the others one for the
# whole batch.
#
# **Three attacks** measure on-manifold success, always on images that $f$ classifies correctly. *The paper's*: Adam
# with a small learning rate, $\eta$ = {glue:text}`eta`, stopped at the first success; success is averaged over
# {glue:text}`restarts` restarts.
# *The strong one*: Auto-PGD (Croce and Hein, 2020) with two objectives, and any success counts. And *the strong one at
# a smaller budget*, {glue:text}`eta_small`, where it should not fool everything. The test error comes from other test
# images, which no attack touches.
#
# **Two statistics.** With the test error $e_i$ and the on-manifold success $s_i$ of point $i$, a recipe at an $N$, the
# first is their correlation
#
# $$r = \frac{\sum_i (e_i - \bar e)(s_i - \bar s)}{\sqrt{\sum_i (e_i - \bar e)^2 \sum_i (s_i - \bar s)^2}}.$$
#
# Since it is bound to be high where only $N$ varies, it stands beside the correlation *at equal $N$*, after each $N$'s
# mean over the recipes has been taken off both: do recipes with less error have less success too? The second statistic
# is the relative cut of the test error, averaged over $N$:
#
# $$c = \operatorname*{mean}_N \left(1 - \frac{e_N(\text{on-manifold})}{e_N(\text{other})}\right).$$
#
# **The rule**, fixed before the run. *Robustness is generalization*: $r$ over recipes and $N$ is at least
# {glue:text}`least_correlation`, for each of the three attacks. *On-manifold training lowers the error*: $c$ against
# normal training is at least {glue:text}`least_cut`. *The adversary does it*: $c$ against random moves is at least
# {glue:text}`least_beyond`. Intervals are bootstrapped over networks and blocks of neighbouring images, since
# neighbours may be alike (on FONTS they show the same font); all points are drawn together, so that comparisons are
# within one draw.

# %% tags=["compute"]
from advbook.experiments.generalization import GeneralizationLink

p = GeneralizationLink.of_notebook(globals())
rows = p.rows()

# %% tags=["remove-cell"]
from itertools import combinations
from typing import get_args

import numpy as np
import pandas as pd
from myst_nb import glue

from advbook import figures, fonts, ledger, metrics, pages
from advbook.experiments import generalization, grid, setting
from advbook.experiments.generalization import PAPER, SMALL, STRONG
from advbook.experiments.learned_manifolds import LearnedManifolds
from advbook.experiments.recipes import ETA_DATA, TITLES

QUANTITIES = {"error": grid.ERROR, "paper": PAPER, "strong": STRONG, "small": SMALL}
ATTACKS = {"paper": "the paper's", "strong": "strong", "small": f"strong, $\\eta$ = {p.eta_small:g}"}
TRAINED_AGAINST = ["on_manifold", "on_class", "on_data", "transformation", "combined", "combined_full"]
TRAINED_AGAINST += ["dial_25", "dial_75"]
NEARLY_ALL = 0.95  # where every point's success is above this, a correlation means little
everything = p.grids(ledger.published(p.experiment, p.version))  # of all data sets, the largest first
published = [own for own in everything if own.dataset.iloc[0] == p.dataset]
sources = ({"published rows": published[0]} if published else {}) | {"this build": rows}
standard = {source: own[own.network == "cnn"] for source, own in sources.items()}
tables = {source: grid.table(own, **QUANTITIES) for source, own in standard.items()}
widest = next(iter(standard))
paper = pages.paper_values(p.experiment)
printed = pd.DataFrame(
    [
        {"recipe": recipe, "n": n, "paper": value}
        for recipe, values in paper["on_manifold_success"]["rates"].items()
        for n, value in zip(paper["on_manifold_success"]["n"], values, strict=True)
    ]
)
if p.dataset != "fonts":
    printed = printed[:0]  # they are of FONTS


def said(sentence) -> None:
    """What the rows of each source say, a paragraph each."""
    found = {source: sentence(source) for source in tables if len(tables[source])}
    display(pages.Markdown("\n\n".join(f"*{source.capitalize()}.* {text}" for source, text in found.items())))


def cell(three: tuple[float, float, float], number: str = ".3f") -> str:
    """A value with its interval, for a table or a sentence."""
    value, low, high = three
    return f"{value:{number}} ({low:{number}} to {high:{number}})" if np.isfinite(value) else "-"


glue("networks", ", ".join(p.networks), display=False)
glue("recipes", ", ".join(TITLES[recipe] for recipe in p.recipes), display=False)
glue("sizes", ", ".join(f"{n:,}" for n in p.n), display=False)
glue("seeds", SEEDS, display=False)
glue("images", IMAGES, display=False)
glue("test_images", f"{TEST_IMAGES:,}", display=False)
glue("eps", EPS, display=False)
glue("eta", ETA, display=False)
glue("eta_small", ETA_SMALL, display=False)
glue("eta_data", ETA_DATA, display=False)
glue("title", setting.title(p.dataset), display=False)
glue("restarts", RESTARTS, display=False)
glue("least_correlation", generalization.CORRELATION, display=False)
glue("least_cut", generalization.CUT, display=False)
glue("least_beyond", f"{generalization.BEYOND_RANDOM:g}", display=False)
falling = np.corrcoef(np.power(p.n, -1 / 3), 1 / np.log(p.n))[0, 1] if len(p.n) > 1 else np.nan  # exercise 1
glue("falling", pages.shown(falling, ".3f"), display=False)
glue("scope", pages.scope(p, rows), display=False)
glue("paper", paper["setting"], display=False)

# %% [markdown]
# ## Experiment
#
# This page: {glue:text}`title`, {glue:text}`seeds` networks ({glue:text}`networks`) for each of the recipes {glue:text}`recipes` at each
# $N$ of {glue:text}`sizes`; {glue:text}`images` test images are attacked, and {glue:text}`test_images` others give the
# test error; {glue:text}`scope`. For comparison, the paper: {glue:text}`paper`.


# %% tags=["remove-input"]
def inner(own: pd.DataFrame) -> str:
    """How hard the adversary in training tries, in words."""
    steps = sorted(set(own.train_steps))
    short = "shortened, so these networks are trained less hard than the paper's"
    how = short if steps[0] < paper["train_steps"] else "as long as the paper's"
    return f"The attack *inside* adversarial training takes {' or '.join(map(str, steps))} steps: {how}."


lines = [f"*This build.* {inner(rows)}"]
lines += [f"*Published.* {pages.source(own)}. {inner(own)}" for own in published]
if len(published) > 1:
    lines.append("Of the published rows, the first kind is drawn below; the verdicts below are of all.")
if not published:
    name = setting.title(p.dataset)
    lines.append(f"No rows of {name} are published yet for this version of the code: the page shows its own run.")
lines.append(
    f"The paper's inner attack takes {paper['train_steps']} steps. Normal and random training have no attack inside."
)
if p.networks != ["cnn"]:
    lines.append("Figures and verdicts show the standard network, cnn.")
display(pages.Markdown("\n\n".join(lines)))

# %% [markdown]
# ## Test error and success over N

# %% tags=["remove-input"] mystnb={"figure": {"caption": "Test error over the number of training images, a line a recipe, with 95 % intervals over networks and images. What it shows is said in words below. Compare Figure 5 (top left) of the paper.", "name": "fig-error"}, "image": {"alt": "Test error over N on a logarithmic axis. One line with markers for each training recipe; full markers are published rows, hollow ones this build."}}
figures.curves(tables, "error", "test error")


# %% tags=["remove-input"]
def course(table: pd.DataFrame, quantity: str, name: str) -> str:
    """How a quantity goes from the smallest N to the largest, in words."""
    ends = {
        recipe: own.sort_values("n").iloc[[0, -1]].to_dict("records")
        for recipe, own in table.groupby("recipe")
        if own.n.nunique() > 1
    }
    if not ends:
        return f"There is one $N$ only, so nothing can be said of the course of the {name}."
    fallen = sum(last[quantity] < first[quantity] for first, last in ends.values())
    text = f"From the smallest $N$ to the largest, the {name} falls for {fallen} of {len(ends)} recipes."
    for recipe in ("normal", "on_manifold"):
        if recipe in ends:
            (n, value), (m, other) = ((one["n"], one[quantity]) for one in ends[recipe])
            text += f" With {TITLES[recipe]} training it goes from {value:.1%} (N = {n:,}) to {other:.1%} (N = {m:,})."
    return text


said(lambda source: course(tables[source], "error", "test error"))

# %% tags=["remove-input"] mystnb={"figure": {"caption": "On-manifold success of the paper's attack, averaged over restarts as the paper counts. On FONTS the paper's own values stand beside, as crosses: other fonts, other networks and, for the learned manifold, another one. So compare direction and order, not level.", "name": "fig-on-manifold-success"}, "image": {"alt": "On-manifold success rate over N on a logarithmic axis. One line with markers for each training recipe; crosses on dotted lines are the values of the paper, on FONTS alone."}}
beside = printed[printed.recipe.isin({recipe for table in tables.values() for recipe in table.recipe})]
figures.curves(tables | ({"the paper": beside} if len(beside) else {}), "paper", "on-manifold success")


# %% tags=["remove-input"]
def order(table: pd.DataFrame) -> str:
    """Do recipes stand in the paper's order? Pairs that the plot cannot tell apart do not count."""
    both = table.merge(printed, on=["recipe", "n"], suffixes=("", "_printed"))
    if not len(printed):
        return "The paper's values on this data set are not at hand."
    if not len(both):
        return "The paper's plot has been read at other $N$ or recipes, so the order cannot be compared."
    far = 2 * paper["on_manifold_success"]["accuracy"]
    pairs = [
        (one.paper - other.paper) * (one.paper_printed - other.paper_printed) > 0
        for _, own in both.groupby("n")
        for one, other in combinations(own.itertuples(), 2)
        if abs(one.paper_printed - other.paper_printed) > far
    ]
    sizes = ", ".join(f"{n:,}" for n in sorted(set(both.n)))
    return (
        f"At the $N$ of the paper's plot ({sizes}), {sum(pairs)} of {len(pairs)} pairs of recipes stand in the paper's "
        f"order. On average over the {len(both)} points, success here differs from the paper's by "
        f"{100 * (both.paper - both.paper_printed).mean():+.1f} percentage points."
    )


said(lambda source: f"{course(tables[source], 'paper', 'success rate')} {order(tables[source])}")

# %% tags=["remove-input"]
sizes = paper["on_manifold_success"]["n"]
display(
    pages.table(
        pd.DataFrame(
            [
                {"training": TITLES[recipe], **dict(zip(map(str, sizes), values, strict=True))}
                for recipe, values in paper["on_manifold_success"]["rates"].items()
            ]
        ),
        {"training": "the paper's values", **{str(n): f"N = {n:,}" for n in sizes}},
    )
)
note = "Its random transformations were presumably made as the released code makes them, see below."
display(pages.Markdown(f"*On-manifold success on FONTS, {paper['on_manifold_success']['source']}. {note}*"))

# %% [markdown]
# ## Success against error
#
# Now without $N$: each point is a recipe at an $N$. If on-manifold robustness is generalization, all points lie near
# one rising line, whatever the recipe.

# %% tags=["remove-input"] mystnb={"figure": {"caption": "On-manifold success of the paper's attack against test error; crosses are 95 % intervals, larger dots are larger N. Compare Figure 5 (bottom left) of the paper.", "name": "fig-link"}, "image": {"alt": "Scatter plot of on-manifold success against test error. One marker shape for each recipe, larger for larger N, and a dashed least-squares line."}}
figures.against(tables, "error", "paper", "test error", "on-manifold success", fitted=True)

# %% tags=["remove-input"] mystnb={"figure": {"caption": "The same with the strong attack at the smaller budget, where a hard attack still leaves something to tell recipes apart.", "name": "fig-link-small"}, "image": {"alt": "Scatter plot of the strong attack's on-manifold success at the smaller budget against test error, drawn as the figure before."}}
figures.against(tables, "error", "small", "test error", "success, strong attack, smaller budget", fitted=True)


# %% tags=["remove-input"]
def at_equal_n(found: grid.Rates) -> grid.Rates:
    """Both quantities less their mean over the recipes of the same N."""
    n = found.points.n.to_numpy()
    return found._replace(
        draws=[
            np.array([own - drawn[n == m].mean(0) for own, m in zip(drawn, n, strict=True)]) for drawn in found.draws
        ]
    )


def statistics(own: pd.DataFrame, quantity: grid.Quantity) -> dict[str, tuple[float, float, float]]:
    """What ties an attack's success to test error, each statistic with its interval."""
    parts = own, own[own.recipe == "normal"], own[~own.recipe.isin(TRAINED_AGAINST)]
    everything, normal, others = (grid.rates(part, grid.ERROR, quantity) for part in parts)
    found = {
        "correlation over recipes and N": generalization.correlation(everything),
        "correlation, normal training alone": generalization.correlation(normal),
        "correlation at equal N": generalization.correlation(at_equal_n(everything)),
        "correlation at equal N, without these": generalization.correlation(at_equal_n(others)),
        "slope over recipes and N": generalization.slope(everything),
        "slope, normal training alone": generalization.slope(normal),
    }
    return {name: metrics.percentiles(values) for name, values in found.items()}


links = {source: {a: statistics(own, QUANTITIES[a]) for a in ATTACKS} for source, own in standard.items()}
for source, own in tables.items():
    lines = [
        {"name": name} | {attack: cell(found[name]) for attack, found in links[source].items()}
        for name in links[source]["paper"]
    ]
    ends = {attack: f"{own[attack].min():.1%} to {own[attack].max():.1%}" if len(own) else "-" for attack in ATTACKS}
    display(pages.Markdown(f"*{source.capitalize()}:*"))
    display(pages.table(pd.DataFrame([*lines, {"name": "lowest to highest success"} | ends]), {"name": ""} | ATTACKS))

# %% [markdown]
# *Correlation and least-squares slope of on-manifold success with test error, a column an attack, with 95 % intervals.
# Without these: without the recipes that are trained against moves on the manifold, whose success would fall even if
# their error did not. A dash: too few points. Resampling adds noise to both quantities, and noise lowers a correlation
# near 1. So an interval can lie below its value; it errs on the side of caution.*


# %% tags=["remove-input"]
def linked(source: str) -> str:
    """The correlations of one source in words."""
    everything, normal, equal, others, slope, _ = links[source]["paper"].values()
    if not np.isfinite(everything[0]):
        return "There are fewer than three points, so no correlation."
    text = f"With the paper's attack the correlation over all {len(tables[source])} points is {cell(everything)}; one "
    text += f"point of test error more goes with {slope[0]:.2f} points of success more. "
    if np.isfinite(normal[0]):
        text += (
            f"In normal training alone, where only $N$ varies and a high value is no surprise, it is {cell(normal)}. "
        )
    if np.isfinite(equal[0]):
        ends = "so the link is not a matter of $N$ alone" if equal[1] > 0 else "so beyond $N$ there is no sure link"
        text += f"At equal $N$, where only the recipe varies, it is {cell(equal)}, {ends}. "
    if np.isfinite(others[0]):
        ends = "so even there the link is seen" if others[1] > 0 else "so there the link is not seen for sure"
        text += f"Without the recipes that train against moves on the manifold it is {cell(others)}, {ends}. "
    strong = tables[source].strong
    full = "next to nothing is left to correlate" if strong.min() > NEARLY_ALL else "there is room to correlate"
    text += f"The strong attack at $\\eta$ = {sources[source].eta.iloc[0]:g} fools "
    return text + f"{strong.min():.1%} to {strong.max():.1%}: {full}."


said(linked)

# %% [markdown]
# A line that fits is no law. Error is how much of the manifold is read wrongly; success is how much lies *within
# reach* of that. The two go together as long as the wrong parts have similar shapes (exercise 2).
#
# ## What on-manifold adversarial training gains

# %% tags=["remove-input"] mystnb={"figure": {"caption": "By which share on-manifold adversarial training cuts the test error of normal training, and that of its control, random moves on the manifold. Above zero it is better. The rows with the widest grid: published ones where there are any.", "name": "fig-gains"}, "image": {"alt": "Relative cut of the test error over N, with intervals: one line against normal training, one against training with random moves, and a line at zero."}}
figures.gains(generalization.gains(standard[widest]), "cut", "relative cut of the test error")


# %% tags=["remove-input"]
def gained(source: str) -> str:
    """Where on-manifold training gains most, in words."""
    table, parts = generalization.gains(standard[source]), []
    for over, own in table.groupby("over", sort=False) if len(table) else ():
        best, least = own.loc[own.gain.idxmax()], own.loc[own.gain.idxmin()]
        sure = int((own.gain_low > 0).sum())
        parts.append(
            f"Against {TITLES[over]} training, the error is lower by the whole interval at {sure} of {len(own)} $N$. "
            f"The difference is largest at N = {best.n:,}, {best.gain:+.1%} of all images, and smallest at N = {least.n:,}, "
            f"{least.gain:+.1%}."
        )
    return " ".join(parts) or "The rows have no $N$ with both on-manifold training and one to compare it with."


said(gained)

# %% tags=["remove-input"]
CONTROLS = {"on_manifold": "random_latent", "transformation": "random_transformation", "on_class": "random_class"}
columns = {"training": "training", "normal": "cut against normal", "control": "cut against its control"}
for source, own in standard.items():
    lines = []
    for recipe in TITLES:
        if recipe != "normal" and recipe in set(own.recipe):
            over = {"normal": "normal", "control": CONTROLS.get(recipe, "none")}
            cuts = {name: generalization.mean_cut(own, other, recipe) for name, other in over.items()}
            lines.append(
                {"training": TITLES[recipe]} | {name: cell(metrics.percentiles(cut)) for name, cut in cuts.items()}
            )
    if lines:
        display(pages.Markdown(f"*{source.capitalize()}:*"), pages.table(pd.DataFrame(lines), columns))

# %% [markdown]
# *Relative cut of the test error, averaged over N; a negative one is a loss. The control of on-manifold training is
# random latent training, that of transformation training random transformations, that of on-manifold training on
# learned classes random moves on these.*

# %% tags=["remove-input"]
LEARNED_ON = {"on_class", "random_class", "on_data"}  # on FONTS; on real images every recipe's manifold is learned


def seen_by_manifolds(own: pd.DataFrame) -> list[str]:
    """How many training images the learned manifolds of these rows were learned from, in words."""
    dataset = own.dataset.iloc[0]
    used = own[own.recipe.isin(LEARNED_ON)] if dataset == "fonts" else own
    counts = sorted({learned._images(dataset, size) for size in used.manifold})
    return [f"{count:,} of {setting.title(dataset)}" for count in counts]


def more_images(seen: list[str]) -> str:
    """What a gain on learned manifolds may come from, in words."""
    return (
        f"The learned manifolds have seen training images with their labels, however small $N$ is: {', '.join(seen)}. "
        "So a gain over normal training can be that of these images. Only the comparison with random moves on the same "
        "manifold is free of it."
    )


seen = {source: seen_by_manifolds(own) for source, own in standard.items() if len(own)}
lines = [f"*{source.capitalize()}.* {more_images(found)}" for source, found in seen.items() if found]
display(pages.Markdown("\n\n".join(lines) or "*No manifold of these rows is learned.*"))

# %% [markdown]
# ## Verdicts
#
# From the rows of this build:

# %% tags=["remove-input"]
for verdict in p.verdicts(rows):
    display(pages.verdict(verdict))

# %% [markdown]
# From the published rows of this data set:

# %% tags=["remove-input"]
lines = [(pages.source(table), p.experiment, verdict) for table in published for verdict in p.verdicts(table)]
display(pages.verdict_table(lines) if lines else pages.Markdown("*No rows are published yet.*"))

# %% [markdown]
# The verdicts on the correlation, taken alone, are easy to reach: a grid over $N$ gives a high correlation to any two
# quantities that fall. Read them with the correlations at equal $N$ above. The last verdict decides whether the
# adversary matters: unless it says *supported*, the runs do not show that on-manifold adversarial training is more than
# data augmentation.
#
# ## Do the runs agree?

# %% tags=["remove-input"]
if published:
    fixed = [name for name in type(p).model_fields if name not in {*p.axes, "device", "profile"}]
    own, other = (sources[source].iloc[0] for source in ("this build", "published rows"))
    changes = [f"`{name.upper()}` ({own[name]}, published {other[name]})" for name in fixed if own[name] != other[name]]
    agreed = grid.agreement(standard["this build"], standard["published rows"], **QUANTITIES)
    apart = agreed[~agreed.agree.astype(bool)].assign(
        training=lambda t: t.recipe.map(TITLES), quantity=lambda t: t.quantity.map({"error": "test error"} | ATTACKS)
    )
    text = f"Points that both have: {len(agreed) // len(QUANTITIES)}. "
    if len(agreed):
        text += f"The intervals of {int(agreed.agree.sum())} of {len(agreed)} rates overlap. "
    if len(agreed) and (agreed.own == agreed.published).all():
        text += "They are the very same numbers, since both come from the same parameters. "
    text += f"The runs differ in {', '.join(changes)}." if changes else "Beyond their points, no parameter differs."
    display(pages.Markdown(text))
    if len(apart):
        display(pages.Markdown("These do not overlap:"))
        names = {"training": "training", "n": "N", "quantity": "test error, or success of attack"}
        display(pages.table(apart, names | {"own": "this build", "published": "published"}))
else:
    display(pages.Markdown("*No rows are published yet, so there is nothing to compare this build with.*"))

# %% [markdown]
# ## Where code and paper disagree, and a stronger attack
#
# - **Half of every batch.** The paper's formula trains on adversarial examples alone. The released code leaves half of
#   every batch clean, and so do all recipes here.
# - **Restarts are averaged.** The code counts (image, restart) pairs, so a restart that fails hides one that succeeds.
#   The table below has both countings.
# - **Random transformations about zero.** The released code draws them about $t = 0$. But the identity has scale 1,
#   so every such image gets the smallest scale that is allowed. The paper's values for random transformations were
#   presumably made so; here they stand as "random transf., as released".
# - **The attack.** The paper's attack is weak by today's standard. The strong one stands in all tables.

# %% tags=["remove-input"]
seen = min(min(p.n) // len(fonts.LETTERS), fonts.FONTS)
measured = [
    row
    for table in ledger.published(LearnedManifolds.experiment, LearnedManifolds.version)
    for row in table[(table.what == "reconstruction") & (table.label == "all")].to_dict("records")
    if (row["dataset"], row["manifold"], row["epochs"], row["kind"]) == ("fonts", p.manifold, 0, "class")
]
# Several tables differ in the number of test images: the largest counts.
measured = sorted(measured, key=lambda row: row["count"])[-1:]
CLIPPED = "".join(
    f" On FONTS that concerns {row['outside']:.0%} of {int(row['count']):,} test images." for row in measured
)
OF_FONTS = f"""
- **The first N rows.** The released code trains on the first $N$ rows of FONTS. Rows go through the {fonts.FONTS:,}
  fonts one after the other, each letter once, so that below $N$ = {fonts.BLOCK:,} a larger $N$ means more *fonts*, not
  more views of a letter. At $N$ = {min(p.n):,} a network has seen {seen:,} fonts. Much of what falls with $N$ is the
  error on unknown fonts, and a move in $\\theta$ cannot show a new font. `SUBSET` = "random" draws the rows at random
  instead.
- **Units.** $\\eta$ = {ETA:g} is the budget of shifts, shears, scale and angle alike, though their ranges differ much.
  The chapter before looks at this.
- **Learned manifolds.** The paper trains on a learned manifold of FONTS too. Unless `MANIFOLD` is "paper", ours has fewer
  weights than that of the released code and has seen fewer images: {learned.FONTS_ROWS:,} rows of
  {setting.train_size("fonts"):,}. But these are still many more than $N$: a gain of on-manifold training on learned
  classes over normal training can be that of these images, and only the comparison with random moves on them is free of
  it.
- **Clipped codes.** On learned classes, codes outside of $[-2, 2]$ in some entry are clipped into it, as on real
  images.{CLIPPED}
"""
OF_REAL = """
- **The box of the codes.** The paper's text keeps $z + \\zeta$ in $[-2, 2]$ in each entry, and so do we; the released
  code takes the smallest and the largest code of the images in its place.
- **Which examples count.** The released code leaves a success out if a code of the test image was outside of
  $[-2, 2]$, but leaves the image in the number it divides by. Here codes are clipped, and every image counts whose
  $\\mathrm{dec}_y(z)$ is read rightly.
- **The learned manifolds** of this page have fewer weights than those of the released code, and were trained for fewer
  epochs, unless `MANIFOLD` is "paper".
"""
display(pages.Markdown(OF_FONTS if p.dataset == "fonts" else OF_REAL))

# %% tags=["remove-input"]
lines = []
worst = PAPER._replace(definition="worst")
for source, own in standard.items():
    normal = grid.table(own[own.recipe == "normal"], average=PAPER, worst=worst, strong=STRONG, small=SMALL)
    lines += [{"rows": source, **row._asdict()} for row in normal.itertuples()]
names = {"rows": "rows", "n": "N", "average": "the paper's attack", "worst": "any restart"}
names |= {"strong": "strong", "small": f"strong, $\\eta$ = {p.eta_small:g}"}
display(pages.table(pd.DataFrame(lines), names))
display(pages.Markdown("*On-manifold success against normal training, standard network.*"))

# %% tags=["remove-input"]
centred, released = "random_transformation", "random_transformation_released"
lines = []
for source, own in standard.items():
    drop = metrics.percentiles(generalization.mean_cut(own, released, centred))
    if np.isfinite(drop[0]):
        lines.append(
            f"*{source.capitalize()}.* Centring the random transformations on the identity cuts the test error by "
            f"{cell(drop, '.1%')} of what it is as released, averaged over $N$."
        )
    other = [own for own in published if set(own.subset).isdisjoint(sources[source].subset)]
    if other:
        first, second = (grid.table(own[own.network == "cnn"], error=grid.ERROR) for own in (sources[source], other[0]))
        both = first.merge(second, on=grid.KEYS, suffixes=("", "_other"))
        both = both[both.recipe == "normal"].sort_values("n")
        pairs = "; ".join(f"N = {row.n:,}: {row.error:.1%} and {row.error_other:.1%}" for row in both.itertuples())
        kinds = f"{sources[source].subset.iloc[0]} and with {other[0].subset.iloc[0]}"
        if pairs:
            lines.append(f"*{source.capitalize()}.* Test error of normal training with {kinds} rows: {pairs}.")
missing = "The rows of this page have no pair of recipes or subsets that shows what the last two points change."
display(pages.Markdown("\n\n".join(lines) or missing))

# %% [markdown]
# ## All points

# %% tags=["remove-input"]
names = {"recipe": "training", "n": "N", "error": "test error", "paper": "success, the paper's attack"}
names |= {"strong": "strong", "small": f"strong, $\\eta$ = {p.eta_small:g}"}
for source, own in sources.items():
    for network, part in own.groupby("network"):
        table = grid.table(part, **QUANTITIES)
        table = table.iloc[np.lexsort([table.recipe.map(list(TITLES).index), table.n])]
        shown = {
            name: [
                cell(three, ".3f" if name == "error" else ".2f")
                for three in table[[name, f"{name}_low", f"{name}_high"]].values
            ]
            for name in QUANTITIES
        }
        text = pages.table(table.assign(recipe=table.recipe.map(TITLES), **shown), names).data
        title = f"{source.capitalize()}, network {network}: {len(table)} points with 95 % intervals"
        display(pages.Markdown(f"::::{{admonition}} {title}\n:class: dropdown\n{text}\n::::"))

# %% [markdown]
# ## Real images
#
# The rows below come with the book and are no part of this page's run. On FONTS the manifold is known; on real images it
# is *learned*, by a VAE-GAN for each class, and codes $z$ are kept in $[-2, 2]$ in each entry. [A page of its
# own](learned_manifolds.ipynb) asks how good these manifolds are. The paper says of its own that they are good enough on
# FONTS to preserve the benefit of on-manifold training; that on EMNIST the benefit is smaller, but significant; that on
# Fashion-MNIST it diminishes; and that it depends on how well the manifold is approximated.
#
# One thing is counted differently on real images. An attack there starts from $\mathrm{dec}_y(z)$, which is not quite the
# image. So it counts where the classifier reads $\mathrm{dec}_y(z)$ rightly, and not where it reads $x$ rightly. Encoder
# and decoder are told the class, so $\mathrm{dec}_y(z)$ is pulled towards it and is, as a rule, read more easily than
# $x$: success counts on these easier images, test error on images.

# %% tags=["remove-input"]
wide = {name: own[own.network == "cnn"] for name, own in pages.by_dataset(everything).items()}
trained_on_real = {recipe for name, own in wide.items() if own.dataset.iloc[0] != "fonts" for recipe in own.recipe}
compared = {*trained_on_real, "on_class", "random_class", "on_data"} if trained_on_real else set()
wide = {name: own[own.recipe.isin(compared)] for name, own in wide.items()}
wide = {name: own for name, own in wide.items() if len(own)}
real = [name for name, own in wide.items() if own.dataset.iloc[0] != "fonts"]
drawn = {name: grid.table(own, **QUANTITIES) for name, own in wide.items()}
known = get_args(type(p).model_fields["dataset"].annotation)
absent = [setting.title(name) for name in known if setting.title(name) not in [*wide, "FONTS"]]
lines = [f"- {pages.source(own)}. {inner(own)}" for own in wide.values()]
if absent:
    lines.append(f"- Not published, and so left out: {', '.join(absent)}.")
display(pages.Markdown("\n".join(lines)))

# %% tags=["remove-input"] mystnb={"figure": {"caption": "Published rows: test error and on-manifold success of the paper's attack over N, a row a data set, with 95 % intervals. Columns share their axis. On FONTS the attack moves on the true manifold, on real images on the learned manifold of the class.", "name": "fig-real-curves"}, "image": {"alt": "Small panels, a row for each data set: on the left test error over N, on the right on-manifold success over N, a line with markers for each training recipe."}}
if real:
    display(figures.by_dataset(drawn, {"error": "test error", "paper": "success"}))


# %% tags=["remove-input"]
def linked_here(name: str) -> dict[str, str]:
    """A line of the table of correlations."""
    found = {attack: statistics(wide[name], QUANTITIES[attack]) for attack in ATTACKS}
    line = {attack: cell(of["correlation over recipes and N"]) for attack, of in found.items()}
    return {
        "data": name,
        "points": str(len(drawn[name])),
        **line,
        "equal": cell(found["paper"]["correlation at equal N"]),
    }


if real:
    names = {"data": "data", "points": "points"} | {attack: f"r, {text}" for attack, text in ATTACKS.items()}
    names["equal"] = "r at equal N, the paper's"
    display(pages.table(pd.DataFrame(map(linked_here, wide)), names))
    display(
        pages.Markdown(
            "*Correlation r of on-manifold success with test error over recipes and N, a column an attack; the last at "
            "equal N. For FONTS over the recipes in the figure alone, so it differs from the one above.*"
        )
    )

# %% tags=["remove-input"] mystnb={"figure": {"caption": "Published rows: on-manifold success of the paper's attack against test error. Compare Figure 5 (bottom) of the paper, which finds the link less pronounced on Fashion-MNIST. The horizontal axes differ.", "name": "fig-real-link"}, "image": {"alt": "A small scatter plot for each data set of on-manifold success against test error, one marker shape for each recipe, with a dashed least-squares line."}}
if real:
    display(figures.links(drawn, "error", "paper", "test error", "on-manifold success"))

# %% [markdown]
# **What does a learned manifold change?** First, what it makes of the images themselves. A classifier that errs *less* on
# $\mathrm{dec}_y(z)$ than on images says nothing good of the manifold: the class has been told, and a decoder of class
# means would score best. One that errs *more* says that something is lost that matters. The two errors are measured on
# different test images.


# %% tags=["remove-input"]
def reproduced(own: pd.DataFrame) -> list[dict[str, str]]:
    """Error on images and on dec(z) of two recipes at the largest N that has both."""
    name, lines = setting.title(own.dataset.iloc[0]), []
    for recipe in ("normal", "on_manifold"):
        points = grid.table(own[own.recipe == recipe], error=grid.ERROR, decoded=grid.Quantity("decoded"))
        if len(points):
            last = points.sort_values("n").iloc[-1]
            error, decoded = (
                cell((last[what], last[f"{what}_low"], last[f"{what}_high"]), ".1%") for what in ("error", "decoded")
            )
            line = {"data": name, "training": TITLES[recipe], "n": f"{last.n:,}", "error": error, "decoded": decoded}
            sure = {"harder": last.decoded_low > last.error_high, "easier": last.decoded_high < last.error_low}
            lines.append(line | sure)
    return lines


lines = [line for name in real for line in reproduced(wide[name])]
if lines:
    names = {"data": "data", "training": "training", "n": "N", "error": "test error"}
    names["decoded"] = "error on $\\mathrm{dec}_y(z)$"
    display(pages.table(pd.DataFrame(lines), names))
    easier, harder = (sum(bool(line[name]) for line in lines) for name in ("easier", "harder"))
    text = f"With intervals that do not meet, $\\mathrm{{dec}}_y(z)$ is read more easily than images in {easier} of "
    text += f"{len(lines)} lines, and with more errors in {harder}. "
    text += "On the true manifold of FONTS, $\\mathrm{dec}(z) = x$."
    display(pages.Markdown(text))
else:
    display(pages.Markdown("*No error on dec(z) is published yet.*"))

# %% [markdown]
# Second, what training on it gains.


# %% tags=["remove-input"]
def common(own: pd.DataFrame, *recipes: str) -> pd.DataFrame:
    """The rows of those N that have all of these recipes."""
    sizes = [set(own[own.recipe == recipe].n) for recipe in recipes]
    return own[own.n.isin(set.intersection(*sizes))]


def gain(own: pd.DataFrame, recipe: str, control: str) -> dict[str, str]:
    """The cuts of a recipe against normal training and against its control."""
    both = {"normal": generalization.mean_cut(own, "normal", recipe)}
    both["control"] = generalization.mean_cut(own, control, recipe)
    return {name: cell(metrics.percentiles(cut)) for name, cut in both.items()}


# What a recipe moves on, and the same with random moves.
LEARNED_CLASS, FOR_ALL = "learned, one a class", f"learned, one for all, $\\eta$ = {ETA_DATA:g}"
lines = []
for name, own in wide.items():
    kinds = {"on_manifold": (LEARNED_CLASS, "random_latent"), "on_data": (FOR_ALL, "none")}
    if name not in real:
        kinds |= {"on_manifold": ("true", "random_latent"), "on_class": (LEARNED_CLASS, "random_class")}
    for recipe in ("on_manifold", "on_class", "on_data"):
        if recipe in kinds and recipe in set(own.recipe):
            manifold, control = kinds[recipe]
            shared = common(own, "normal", "on_manifold", recipe)
            sizes = ", ".join(f"{n:,}" for n in sorted(set(shared.n)))
            lines.append({"data": name, "manifold": manifold, "n": sizes, **gain(shared, recipe, control)})
if real:
    names = {"data": "data", "manifold": "manifold", "n": "N", "normal": "cut against normal"}
    display(pages.table(pd.DataFrame(lines), names | {"control": "cut against random moves"}))
    text = "*Relative cut of the test error by on-manifold adversarial training, averaged over the N named. A negative one "
    text += (
        "is a loss. The budget on the manifold for all classes is that of the released code, in units of its own code "
    )
    display(pages.Markdown(text + "space: it cannot be compared with the others.*"))
    display(pages.Markdown(more_images([count for own in wide.values() for count in seen_by_manifolds(own)])))


# %% tags=["remove-input"]
def difference(own: pd.DataFrame, recipe: str, first: str = "on_manifold") -> tuple[tuple[float, float, float], ...]:
    """The cuts of on-manifold training (or `first`) and of another recipe at the same N, and the first less the second."""
    shared = common(own, "normal", first, recipe)
    one, other = (generalization.mean_cut(shared, "normal", name) for name in (first, recipe))
    return tuple(metrics.percentiles(values) for values in (one, other, one - other))


def changed(cut: tuple[float, float, float]) -> str:
    """A relative cut of the test error in words."""
    if cut[0] >= 0:
        return f"lowers the test error by {cell(cut, '.1%')}{'' if cut[1] > 0 else ', perhaps by nothing,'}"
    value, low, high = cut
    return f"raises the test error by {cell((-value, -high, -low), '.1%')}{'' if high < 0 else ', perhaps by nothing,'}"


def compared_with(three: tuple[float, float, float], other: str) -> str:
    """What a difference, the first less the other, says with its interval."""
    sure = "is larger than" if three[1] > 0 else "is smaller than" if three[2] < 0 else "cannot be told apart from"
    return f"{sure} {other} (difference {cell(three, '+.1%')})"


def gained_by_learning(name: str, own: pd.DataFrame) -> str:
    """What training on the manifolds of a data set gains, in words."""
    text, recipes = "", set(own.recipe)
    if name in real:
        cut = metrics.percentiles(generalization.mean_cut(own, "normal"))
        if np.isfinite(cut[0]):
            text += f"On-manifold training {changed(cut)} of what it is with normal training. "
    elif "on_class" in recipes:
        true, learned, apart = difference(own, "on_class")
        if np.isfinite(apart[0]):
            text += f"Training on the true manifold {changed(true)} of what it is with normal training, and training on the "
            text += f"learned ones {changed(learned)}, at the same $N$. The first cut {compared_with(apart, 'the second')}. "
    else:
        text += "No training on learned manifolds of the classes is published yet. "
    if "on_data" in recipes:
        _, data, apart = difference(own, "on_data")
        if np.isfinite(apart[0]):
            text += f"Training on one manifold for all classes, where a move may change the class, {changed(data)}. The cut by "
            text += f"manifolds that keep the class {compared_with(apart, 'this one')}. "
    if name in real and {"transformation", "random_transformation"} <= recipes:
        turned, chance, apart = difference(own, "random_transformation", "transformation")
        if np.isfinite(apart[0]):
            text += f"Adversarial transformation training, which needs no manifold, {changed(turned)}, and training "
            text += f"with random transformations {changed(chance)} of what it is with normal training. "
            text += f"The first cut {compared_with(apart, 'the second')}. "
    return text or "What it takes to say more is not published. "


text = "\n\n".join(f"*{name}.* {gained_by_learning(name, own)}" for name, own in wide.items() if real)
if any({"transformation", "random_transformation"} <= set(wide[name].recipe) for name in real):
    text += "\n\nThe paper says that on EMNIST and Fashion-MNIST adversarial transformation training recovers the "
    text += "gain, in contrast to random augmentation."
display(pages.Markdown(text or "*No rows of real images are published yet.*"))

# %% [markdown]
# The verdicts, by data set:

# %% tags=["remove-input"]
verdicts = {
    name: [
        (pages.source(own), p.experiment, verdict)
        for own in everything
        if setting.title(own.dataset.iloc[0]) == name
        for verdict in p.verdicts(own)
    ]
    for name in pages.by_dataset(everything)
}
tabbed = {name: [pages.verdict_table(lines)] for name, lines in verdicts.items()}
display(figures.tabs(tabbed) if tabbed else pages.Markdown("*No rows are published yet.*"))

# %% [markdown]
# ## Exercises
#
# 1. Take two quantities that have nothing to do with one another, but both fall with $N$: $a = N^{-1/3}$ and
#    $b = 1 / \log N$. What is their correlation over the $N$ of this page? What would tell them from a link?
#
# ````{admonition} Solution
# :class: dropdown
# Over this page's $N$ it is {glue:text}`falling`: both fall, and over such a range one is nearly a straight line of the
# other. So a correlation over $N$ proves little. A link must show where $N$ is held fixed and something else varies,
# here the recipe: a recipe that lowers $a$ must lower $b$. That is the correlation at equal $N$ in the table above.
# ````
#
# 2. Let $E$ be the set of latent codes that the classifier reads wrongly. Test error is the probability of $E$.
#    A perfect attack with budget $\eta$ succeeds on a code outside of $E$ if $E$ is within reach. Draw two sets $E$ with
#    the same probability in a square, one for which nearly every attack succeeds and one for which few do.
#
# ````{admonition} Solution
# :class: dropdown
# Many thin stripes, less than $2 \eta$ apart, are within reach from everywhere. One compact blob of the same area is
# within reach from a margin around it only. So the error does not determine the success rate: the shape of $E$ matters.
# The claim is an empirical one: that training moves the size of $E$ much more than its shape. Only in one case do the
# two go together for certain: where $E$ is empty, both are zero.
# ````
#
# 3. Is it the adversary, or only the moved copies? Add both transformation recipes, and find the cut of the adversarial
#    one against its random control: `-y '{RECIPES: [normal, transformation, random_transformation]}'`.
#
# ````{admonition} Solution
# :class: dropdown
# The two recipes see moved copies of the same images, with the same budget; only one lets an adversary choose. If the
# cut against the control is above zero by its whole interval, the choice helps. Look at how it depends on $N$ too: with
# many images, random moves have little left to add, and the interval may cover zero.
# ````

# %% tags=["remove-input"]
pages.provenance(p, rows)

# %% [markdown]
# Download {download}`the source of this page <../../nbs/03_generalization_link.py>`; the executed notebook is under the
# download button at the top.
