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
# # Adversarial examples exist on the manifold
#
# **The claim** ({cite:t}`stutz2019disentangling`, section 3.3): *adversarial examples that stay on the data manifold
# exist, and an attack on the latent code finds them.* They are new, valid images of the same class on which the
# classifier errs.
#
# **Why one might doubt it.** Three doubts, and each can be tested.
#
# - *Any move might do.* The attack may shift, shear, scale and rotate a letter. If most such moves fool the
#   classifier, then nothing adversarial was found: the classifier just reads transformed letters badly.
# - *The label might be gone.* A move on the manifold can be large. The paper's definition asks that the moved image
#   still belongs to its class more than to any other. A letter pushed off the canvas, or turned into something that
#   looks like another letter, would not count.
# - *The budget has no unit.* One number $\eta$ bounds shifts, shears, scales and angles at once. The result may hang
#   on the one latent for which it is generous.

# %% tags=["parameters"]
DATASET: str = "fonts"  # the true manifold is known for FONTS alone
N: int = 2500  # training images
SUBSET: str = "first"  # "first": the first N training rows, as in the paper; "random": random ones
SEEDS: int = 3  # networks, which differ in initialization and batch order
EPOCHS: int = 20  # epochs of training
IMAGES: int = 200  # attacked test images
EPS: float = 0.3  # budget of the regular attack, L-inf
ETA: float = 0.3  # budget of the on-manifold attack, L-inf on theta
ETA_RANGE: float = 0.1  # the same in range units: a share of each latent's range
STEPS: int = 40  # gradient steps of the paper's attacks
RESTARTS: int = 2  # restarts of an attack
STRONG_STEPS: int = 40  # steps of the strong attack, for each of its two objectives
JUDGED: int = 25  # images whose examples the judge reads who is told nothing
DEVICE: str = "auto"  # "auto" takes a GPU if there is one; or cpu, cuda, cuda:1
PROFILE: str = "own"  # a name for this run, printed at the end of the page

# %% [markdown]
# ## Method
#
# On FONTS an image is $x = \mathrm{dec}(\theta)$: a letter of a font, transformed by six numbers $\theta$ (shift,
# shear, scale, rotation) within known limits. An **on-manifold adversarial example** changes $\theta$ and keeps letter
# and font:
#
# $$
# \begin{gathered}
# \tilde x = \mathrm{dec}(\theta + \zeta), \qquad
# \zeta \approx \arg\max_{\zeta} \mathcal L(f(\mathrm{dec}(\theta + \zeta)), y) \\
# \text{with } \|\zeta\|_\infty \le \eta \text{ and } \theta + \zeta \text{ within the limits.}
# \end{gathered}
# $$
#
# Only images that $f$ classifies correctly count. We make four kinds of moves, all within the same set.
#
# - **The paper's attack**: Adam with a small learning rate from random starts, stopped as soon as the classifier errs.
#   Success is averaged over all (image, restart) pairs, as the paper counts.
# - **A strong attack**: Auto-PGD (Croce and Hein, 2020), whose steps are as wide as the set at first and halved where
#   they bring nothing. It climbs the log-odds of an error; on the images that still stand it climbs the difference of
#   logits ratio, which does not depend on how sure the network is. Here any restart counts.
# - **Random moves**, the control: as many draws as the paper's attack has restarts, uniform on the surface of the
#   cube $\|\zeta\|_\infty = \eta$, then moved into the limits. The network plays no part in them.
# - **A random search**, the control for the strong attack: {glue:text}`draws` such draws an image, as many as the strong
#   attack may look at, and any one of them counts.
#
# **Units.** As published, $|\zeta_i| \le \eta$ in each latent's own unit. As a variant we measure in **range units**:
# $|\zeta_i| \le \eta_r w_i$, where $w_i$ is the width of the limits of latent $i$. Which $\eta_r$ is comparable? The
# default, $\eta_r$ = .1, is the share of its range that the published $\eta$ = .3 leaves to the rotation, $.3 / \pi$,
# rounded. So the rotation keeps its budget, and all other latents lose what they had beyond it. A success in this
# variant cannot rest on a latent for which $\eta$ was generous.
#
# **Two judges** say whether the letter is still itself. Neither sees a network, and both leave the letter's own font
# out, so that they must recognize it by its shape.
#
# - *The judge who is told the move* gets $\theta + \zeta$, undoes it, and compares the upright letter with those of
#   all other fonts, over the pixels that lay inside the canvas. The nearest one (L2) gives the letter. This judge
#   notices what is lost: parts off the canvas, strokes too small to see.
# - *The judge who is told nothing* looks for the nearest image on the manifolds of all ten letters and all other
#   fonts: from many random images the nearest ones of each letter, each then improved in $\theta$. This judge notices
#   when a moved letter looks like another one. The search is costly, so only the examples of {glue:text}`judged` test
#   images are judged this way, and it can miss the nearest image, so this judge errs more.
#
# **The rule**, fixed before the run. *Exist*: the success rate is at least .1. *The attack's doing*: it is at least
# twice that of random moves of the same size. *Keep their label*: of the examples whose clean image the first judge
# reads rightly, it still reads 95 %. All this in raw units, once for the paper's attack and once for the strong one.
# Range units and the second judge are reported beside. Intervals are bootstrapped over networks and blocks of
# neighbouring images, since neighbours show the same font.

# %% tags=["compute"]
from advbook.experiments.on_manifold import OnManifold

p = OnManifold.of_notebook(globals())
rows = p.rows()

# %% tags=["remove-cell"]
import numpy as np
import pandas as pd
from IPython.display import display
from myst_nb import glue

from advbook import figures, fonts, ledger, pages
from advbook.experiments import off_manifold, on_manifold, setting
from advbook.experiments.on_manifold import OFF, ON, ON_RANGE
from advbook.sliders import OnManifoldAttack

pooled = rows[rows.seed == "all"].copy()
names = {attack: name for attack, (name, _) in figures.MOVES.items()}
pooled["kind"] = pooled.attack.map(names).fillna("none").where(pooled.threat != OFF, "regular attack")
pooled["units"] = pooled.threat.map({ON: "raw", ON_RANGE: "range"}).fillna("-")
success = pooled[pooled.what == "success"]
by_threat = {threat: success[success.threat == threat] for threat in (ON, ON_RANGE)}
rate = {(row["threat"], row["attack"]): row for row in success.to_dict("records")}
about = {(row["threat"], row["attack"]): row for row in pooled[pooled.what == "examples"].to_dict("records")}
untold = {row["attack"]: row for row in pooled[pooled.what == "untold"].to_dict("records")}
error = rows[rows.test_error.notna()].test_error.astype(float)
arrays = ledger.arrays(rows.arrays.iloc[0])
examples = {name.removeprefix("shown/"): array for name, array in arrays.items() if name.startswith("shown/")}
classes = setting.classes(p.dataset)
network = off_manifold.drawn_network(arrays, len(classes))
low, high = np.array(fonts.THETA_LOW), np.array(fonts.THETA_HIGH)
verdicts = p.verdicts(rows)

glue("n", N, display=False)
glue("seeds", SEEDS, display=False)
glue("images", IMAGES, display=False)
glue("eps", EPS, display=False)
glue("eta", ETA, display=False)
glue("eta_range", ETA_RANGE, display=False)
glue("restarts", RESTARTS, display=False)
glue("draws", p.draws, display=False)
glue("judged", JUDGED, display=False)
glue("double", 2 * N, display=False)
glue("error", f"{error.mean():.1%}", display=False)
glue("scope", pages.scope(p, rows), display=False)
glue("paper", pages.paper_values(OnManifold.experiment)["setting"], display=False)
glue("reach", f"{0.005 * STEPS:g}", display=False)
glue("equal_volume", f"{ETA / np.prod(high - low) ** (1 / 6):.2f}", display=False)
glue("rotation_share", f"{ETA / np.pi:.3f}", display=False)
for key, name in (
    ((OFF, "paper"), "regular"),
    ((ON, "paper"), "paper_raw"),
    ((ON, "strong"), "strong_raw"),
    ((ON, "random moves"), "moves_raw"),
    ((ON, "random search"), "search_raw"),
    ((ON_RANGE, "paper"), "paper_range"),
    ((ON_RANGE, "strong"), "strong_range"),
    ((ON_RANGE, "random moves"), "moves_range"),
    ((ON_RANGE, "random search"), "search_range"),
):
    glue(f"average_{name}", pages.shown(rate[key]["success_average"], ".1%"), display=False)
    glue(f"any_{name}", pages.shown(rate[key]["success_worst"], ".1%"), display=False)
    glue(f"looks_{name}", pages.shown(rate[key]["forwards"], ".1f"), display=False)
    glue(f"change_{name}", pages.shown(about[key]["change"], ".2f"), display=False)
glue("judge_clean", pages.shown(about["none", "clean"]["judge_error"], ".1%"), display=False)
glue("untold_clean", pages.shown(untold["clean"]["judge_error"], ".1%"), display=False)
glue("untold_moves", pages.shown(untold["random moves"]["kept"], ".1%"), display=False)
glue("untold_paper", pages.shown(untold["paper"]["kept"], ".1%"), display=False)
glue("untold_strong", pages.shown(untold["strong"]["kept"], ".1%"), display=False)

# %% [markdown]
# ## Experiment
#
# This page: FONTS, {glue:text}`seeds` networks trained on {glue:text}`n` images each (test error {glue:text}`error`),
# the same networks as in the chapter before, {glue:text}`images` test images attacked with $\eta$ = {glue:text}`eta`,
# or $\eta_r$ = {glue:text}`eta_range` in range units; {glue:text}`scope`. For comparison, the paper:
# {glue:text}`paper`.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "How often each kind of move fools the networks, in both units; bars are 95 % intervals over networks and images. Filled: averaged over restarts or draws; open: any of them. The strong attack and the random search have one number each, so their two dots agree. The dotted line is the threshold of the first verdict. Compare the attacks with the random moves below them.", "name": "fig-success"}, "image": {"alt": "Two panels, raw units and range units. In each, four rows: the paper's attack, the strong attack, random moves, random search. Each row has a filled and an open dot with an interval on an axis from 0 to 1, the success rate."}}
figures.success({"raw units": by_threat[ON], "range units": by_threat[ON_RANGE]}, threshold=on_manifold.EXIST)

# %% [markdown]
# The paper's attack succeeds on {glue:text}`average_paper_raw` of all (image, restart) pairs, and on
# {glue:text}`any_paper_raw` of the images if any of {glue:text}`restarts` restarts may succeed. The strong attack fools
# {glue:text}`any_strong_raw` of the images, within the same limits. Where the two differ, the rest of the way is the
# attack's weakness and not the networks' strength.

# %% tags=["remove-input"]
for verdict in verdicts[:2]:
    display(pages.verdict(verdict))

# %% [markdown]
# ## What they look like

# %% tags=["hide-input"] mystnb={"figure": {"caption": "From top to bottom: test images; their regular adversarial examples and the difference; their on-manifold adversarial examples (the paper's attack) and the difference. Red brightens, blue darkens, each picture on its own scale. The title gives the label, then what the network reads in the regular and in the on-manifold example. Compare Figure 2 of the paper.", "name": "fig-on-manifold"}, "image": {"alt": "Rows of small pictures: test images, the same with faint noise, the noise alone in red and blue, the letters moved, sheared or turned a little, and the difference that this makes, which follows the strokes."}}
if examples:
    read_regular, read_on = (off_manifold.answers(network, examples[name]) for name in ("regular", "on"))
    strips = {
        "$x$": examples["x"],
        r"$x + \delta$": examples["regular"],
        r"$\delta$": examples["regular"] - examples["x"],
        r"$\mathrm{dec}(\theta + \zeta)$": examples["on"],
        "difference": examples["on"] - examples["x"],
    }
    titles = [
        f"{classes[y]}: {classes[a]}, {classes[b]}"
        for y, a, b in zip(examples["y"], read_regular, read_on, strict=True)
    ]
    display(figures.pictures(strips, titles))
else:
    print("The attacks fooled the first network on no image together, so there is nothing to show.")

# %% [markdown]
# The regular attack changes pixels without regard to the letter. The on-manifold attack changes the letter as the data
# themselves vary, so its difference follows the strokes. Which of them changes the *image* more? The mean L2 size of the
# change is {glue:text}`change_paper_raw` on the manifold, and {glue:text}`change_regular` for the regular attack with
# $\epsilon$ = {glue:text}`eps`, which succeeds on {glue:text}`average_regular` of pairs. The paper says that on-manifold
# examples are "significantly harder to obtain", and that regular ones need the smaller change of the image: then
# leaving the manifold is the shorter way to an error, and that is why regular attacks leave it.
#
# ## The control: any move of the same size?
#
# Random moves on the surface of the same cube fool the networks on {glue:text}`average_moves_raw` of all draws. That is
# the number to hold against the attack's {glue:text}`average_paper_raw`. It is a hard control: the random moves go as
# far as the budget lets them, and the attack stops as soon as it can. In range units it is
# {glue:text}`average_moves_range` against {glue:text}`average_paper_range`.

# %% tags=["remove-input"]
for verdict in verdicts[2:4]:
    display(pages.verdict(verdict))

# %% [markdown]
# The two verdicts ask different things. The first compares one restart with one random move: does following the
# gradient help? The second compares all that a strong attack finds with all that blind tries find: are the examples
# rare? Both count an image as fooled or not, so the second ratio has a ceiling: where the random search alone fools
# more than half of the images, no attack can be twice as good. If that is why it says *not supported*, then on-manifold
# adversarial examples are so common at this $\eta$ that patience finds them without any gradient. That is bad news for
# the classifier, and it supports the claim that they exist; but it does not need an adversary. How much the gradient
# saves is then seen in the number of looks: the strong attack sent {glue:text}`looks_strong_raw` images an input
# through the network, the random search {glue:text}`looks_search_raw`. In range units, where the moves are smaller, it
# fooled {glue:text}`any_strong_range` of the images and the random search {glue:text}`any_search_range`.

# %% tags=["remove-input"]
pages.table(
    success,
    {
        "units": "units",
        "kind": "move",
        "success_average": "success, averaged",
        "success_worst": "success of any",
        "forwards": "forward samples per input",
    },
)

# %% [markdown]
# *Forward samples per input: how many images an input costs the network, over all restarts. The regular attack moves
# pixels, so it has no unit here.*
#
# ## Is the letter still the letter?
#
# On FONTS the attack holds letter and font fixed. So in one sense the label is kept by construction: every example is
# the same letter under a transformation that the data set contains. The judge who is told the move tests little more
# than this, namely that the letter is still on the canvas and can be seen. On clean images it errs on
# {glue:text}`judge_clean`.

# %% tags=["remove-input"]
for verdict in verdicts[4:]:
    display(pages.verdict(verdict))
display(
    pages.table(
        pooled[pooled.what == "examples"],
        {
            "units": "units",
            "kind": "move",
            "count": "examples",
            "judge_error": "judge errs",
            "kept": "label kept",
            "change": "mean L2 change of the image",
        },
    )
)

# %% [markdown]
# *Examples are the successes of an attack, and all of the random moves. "Label kept" counts those whose clean image the
# judge reads rightly, so it is 1 without a move.*
#
# The paper's definition asks for more: seen without its code, the image must belong to its class more than to any
# other. That is what the judge who is told nothing looks at. It errs on {glue:text}`untold_clean` of the clean images
# asked, and of those that it reads rightly it keeps the label of {glue:text}`untold_moves` after a random move, of
# {glue:text}`untold_paper` after the paper's attack, and of {glue:text}`untold_strong` after the strong one. Hold the
# last two against the first: what random moves of the same size lose as well is the price of the size, and only what
# the attack loses beyond that would say that it *seeks* letters that look like others. Few images are judged this way,
# so mind the intervals.

# %% tags=["remove-input"]
pages.table(
    pooled[pooled.what == "untold"],
    {
        "kind": "move (raw units)",
        "count": "examples",
        "judge_error": "the judge who is told nothing errs",
        "kept": "label kept",
        "kept_low": "from",
        "kept_high": "to",
    },
)

# %% [markdown]
# ## Move it yourself
#
# Pick a letter that the classifier of this page (its first network) reads rightly. Move each slider by at most
# $\eta$ = {glue:text}`eta` and make it err by hand: that is an on-manifold adversarial example. Then let the last
# slider take you along the paper's attack: step 0 is the image, step 1 the random point within the budget from which
# the attack starts, the last step its first success. All is computed in your browser.

# %% tags=["remove-input"]
if examples:
    letters = fonts.prototypes()[examples["font"], examples["y"]].mul(255).round().byte().numpy()
    display(
        OnManifoldAttack(
            letters,
            examples["theta"],
            [int(y) for y in examples["y"]],
            list(classes),
            network.cpu(),
            np.pad(examples["path"], ((0, 0), (1, 0), (0, 0))),  # the image itself, then the path
            eta=[ETA] * len(low),
            low=low.tolist(),
            high=high.tolist(),
        )
    )

# %% [markdown]
# ## Other N
#
# The rows below come with the book; the table says how wide each run was. They are not part of this page's run.

# %% tags=["remove-input"]
published = ledger.published(OnManifold.experiment, OnManifold.version)
lines = [(pages.source(table), p.experiment, verdict) for table in published for verdict in p.verdicts(table)]
display(pages.verdict_table(lines) if lines else pages.Markdown("*No rows are published yet.*"))

# %% [markdown]
# ## Where code and paper disagree, and what was left open
#
# - **One $\eta$ for all units.** The table shows which share of a latent's range $\eta$ = {glue:text}`eta` allows, and
#   which share the examples use on average. A shift may nearly cross its whole range, a rotation only
#   {glue:text}`rotation_share` of it. In range units, with $\eta_r$ = {glue:text}`eta_range` for all, the paper's attack
#   succeeds on {glue:text}`average_paper_range` of pairs.
# - **Restarts are averaged.** The paper speaks of the "fraction of successful attacks"; its code averages over
#   restarts. A single success is enough for an example to exist, so "any restart" stands beside.
# - **The starts.** The paper says "uniformly sampled" in distance and direction. The code draws a Gaussian direction,
#   so that one latent starts at the drawn distance and the others well inside. The attack here does the same.
# - **The reach.** Adam moves a latent by about .005 a step, here {glue:text}`reach` in all, for a budget of
#   {glue:text}`eta`: a restart cannot cross the cube. That is why the strong attack stands beside it.
# - **The limits.** The code takes the smallest and largest value of each latent in the data; we take the limits from
#   which the data are drawn. With many images the two agree.

# %% tags=["remove-input"]
shares = pd.DataFrame({"latent": fonts.THETA_NAMES, "allowed": ETA / (high - low)})
for (threat, attack), row in about.items():
    used = row.get("zeta_by_latent")
    shares[f"{threat}/{attack}"] = np.array(used) / (high - low) if isinstance(used, list) else np.nan
display(
    pages.table(
        shares,
        {
            "latent": "latent",
            "allowed": "raw units: share of the range allowed",
            f"{ON}/paper": "used by the paper's attack",
            f"{ON}/strong": "used by the strong attack",
            f"{ON_RANGE}/paper": "range units: used by the paper's attack",
            f"{ON_RANGE}/strong": "used by the strong attack",
        },
    )
)
value = pages.paper_values(OnManifold.experiment)["on_manifold_success"]
display(
    pages.Markdown(
        f"*The paper's attack on a normally trained network, N = {value['n']}, succeeds on {value['value']:.3f} of pairs "
        f"({value['source']}). Here, with other fonts, N = {N} and {RESTARTS} restarts, it is "
        f"{pages.shown(rate[ON, 'paper']['success_average'], '.3f')}: compare the direction and rough size, not the "
        "digits.*"
    )
)

# %% [markdown]
# ## Exercises
#
# 1. $\eta_r$ = .1 makes the budget smaller than the published one in all latents but the rotation. Which $\eta_r$ gives
#    a box of the same volume as $\eta$ = {glue:text}`eta`, if the limits are left aside? Compute it, and run the page
#    with it (`-p ETA_RANGE ...`).
#
# ````{admonition} Solution
# :class: dropdown
# The two volumes are $(2\eta)^6$ and $\prod_i 2\eta_r w_i$, so $\eta_r = \eta / (\prod_i w_i)^{1/6}$: this is
# {glue:text}`equal_volume`. With it the rotation may go several times as far as before, and the shift about half as
# far.
# ````
#
# 2. A single random move fools the network with probability $q$ on an image. What is the chance that one of $k$
#    independent moves does? Use the success of random moves, {glue:text}`average_moves_raw`, to predict that of the
#    random search with {glue:text}`draws` moves, and compare with the measured {glue:text}`any_search_raw`; then do the
#    same in range units, from {glue:text}`average_moves_range` to {glue:text}`any_search_range`. Why can the prediction
#    be too high, and never too low?
#
# ````{admonition} Solution
# :class: dropdown
# $1 - (1 - q)^k$, which is close to 1 for so many moves. But $q$ differs from image to image: some are fooled by every
# other move, some by hardly any, and for these no number of tries is enough. The average of $1 - (1 - q_i)^k$ over
# images is at most the formula at the average $q$, because the formula is concave in $q$ (Jensen's inequality). Chance
# aside, it can only be too high.
# ````
#
# 3. A network that ignores its input answers "A" to everything. What is its on-manifold success rate, and what does
#    that say about success rates as a measure of robustness?
#
# ````{admonition} Solution
# :class: dropdown
# Zero: it is right on all images of A, and no move changes its answer. A success rate counts correctly classified
# images alone, so it must be read together with the test error.
# ````
#
# 4. The judge who is told the move leaves the letter's own font out. What would it measure if it did not?
#
# ````{admonition} Solution
# :class: dropdown
# Undoing the move gives back the prototype itself, a little blurred, so the nearest letter would be the letter's own
# prototype: the judge would say "yes" to nearly everything, whatever a reader would see.
# ````

# %% tags=["remove-input"]
pages.provenance(p, rows)

# %% [markdown]
# Download {download}`the source of this page <../../nbs/02_on_manifold_existence.py>`; the executed notebook is under
# the download button at the top.
