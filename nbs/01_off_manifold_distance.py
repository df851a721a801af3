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
# # Regular adversarial examples leave the manifold
#
# **The claim** ({cite:t}`stutz2019disentangling`, section 3.2): *regular adversarial examples leave the data
# manifold, and they leave it almost orthogonally: their distance to the manifold is nearly the whole size of the
# perturbation.*
#
# **Why one might doubt it.** Images live in a space of many dimensions, and the manifold has few. In such a space
# *any* direction is almost orthogonal to the manifold, a random one too. So "almost orthogonally" may say nothing
# about adversarial examples: it may only count dimensions. There is a second doubt. In the released code the step
# that should search for the nearest point is switched off, so that it always returns the original image, and the
# paper's remark that projections "are almost always the original test images" would be true by construction. That may
# be a leftover from debugging; nobody can know whether the paper's figure was made with it. Here the search is run
# for real.

# %% tags=["parameters"]
DATASET: str = "fonts"  # data set: fonts, emnist, mnist, fashion_mnist, celeba
MANIFOLD: str = "small"  # real images: size of the learned manifolds, "small" or "paper"
N: int = 2500  # training images
SUBSET: str = "first"  # "first": the first N training rows, as in the paper; "random": random ones
SEEDS: int = 3  # networks, which differ in initialization and batch order
EPOCHS: int = 20  # epochs of training
IMAGES: int = 200  # attacked test images
EPS: float = 0.3  # budget of the regular attack, L-inf
ETA: float = 0.3  # budget of the on-manifold attack, L-inf on theta or z
STEPS: int = 40  # gradient steps of an attack
RESTARTS: int = 2  # restarts of an attack
STARTS: int = 5  # random starts of a projection, besides the original theta
NEIGHBOURS: int = 50  # neighbours that span the approximate manifold
DEVICE: str = "auto"  # "auto" takes a GPU if there is one; or cpu, cuda, cuda:1
PROFILE: str = "own"  # a name for this run, printed at the end of the page

# %% [markdown]
# ## Method
#
# A classifier $f$ gives logits. A **regular adversarial example** of an image $x$ with label $y$ is
#
# $$\tilde x = x + \delta, \qquad \delta \approx \arg\max_{\|\delta\|_\infty \le \epsilon,\ x + \delta \in [0,1]^d}
# \mathcal L(f(x + \delta), y),$$
#
# with the cross-entropy $\mathcal L$. The attack is the paper's: Adam with a small learning rate, several restarts
# from random points, and each (image, restart) pair stops as soon as the classifier errs. Only images that $f$
# classifies correctly count.
#
# Let $\pi(\tilde x)$ be the point of the manifold nearest to $\tilde x$, and
# $\mathrm{dist}(\tilde x) = \|\tilde x - \pi(\tilde x)\|_2$. We look at three quantities: the distance; the **ratio**
# $\mathrm{dist}(\tilde x) / \|\delta\|_2$, which is 1 when nothing of $\delta$ lies along the manifold; and the
# **angle** between $\delta$ and the manifold's tangent space at $x$, which is 90 degrees when $\delta$ is orthogonal
# to it.
#
# **The controls** are perturbations of the same images with the same norm, in which the network plays no part: random
# signs, Gaussian noise, and a move *along* the data, which is called the on-manifold move here.
#
# **The rule**, fixed before the run. *Leaves*: on the true manifold the median ratio is at least 0.9; on an
# approximate one the distance is at least 1.5 times that of the move along the data. *Almost orthogonally, beyond
# counting dimensions*: the distance is at least that of random signs on the same image, in the median. Intervals are
# bootstrapped over networks and images.

# %% tags=["compute"]
from advbook.experiments.off_manifold import OffManifold

p = OffManifold.of_notebook(globals())
rows = p.rows()

# %% tags=["remove-cell"]
import numpy as np
from IPython.display import display
from myst_nb import glue

from advbook import figures, fonts, ledger, pages
from advbook.experiments import off_manifold, setting
from advbook.sliders import LatentSlider, OffManifoldWalk

shown = off_manifold.pooled(rows, "true" if p.known else "neighbours")
pooled = rows[rows.seed == "all"]
near = {row["kind"]: row for row in off_manifold.pooled(rows, "neighbours").to_dict("records")}
by_kind = {row["kind"]: row for row in shown.to_dict("records")}
success = {row["attack"]: row for row in pooled[pooled.what == "success"].to_dict("records")}
error = rows[rows.test_error.notna()].groupby("seed").test_error.first()
arrays = ledger.arrays(rows.arrays.iloc[0])
examples = {name.removeprefix("shown/"): array for name, array in arrays.items() if name.startswith("shown/")}
classes = setting.classes(p.dataset)
shown_here = bool(examples) and p.dataset != "celeba"  # its agreement forbids handing faces on
network = off_manifold.drawn_network(arrays, len(classes))
dimensions = 6 if p.known else NEIGHBOURS
pixels = int(np.prod(arrays["shape"]))
chance = float(np.sqrt(1 - dimensions / pixels))

glue("dataset", setting.title(p.dataset), display=False)
glue("n", N, display=False)
glue("seeds", SEEDS, display=False)
glue("images", IMAGES, display=False)
glue("eps", EPS, display=False)
glue("eta", ETA, display=False)
glue("restarts", RESTARTS, display=False)
glue("error", f"{error.mean():.1%}", display=False)
glue("count", int(by_kind["adversarial"]["count"]), display=False)
for attack in ("adversarial", "sign steps"):
    glue(f"average_{attack}".replace(" ", "_"), pages.shown(success[attack]["success_average"], ".1%"), display=False)
    glue(f"worst_{attack}".replace(" ", "_"), pages.shown(success[attack]["success_worst"], ".1%"), display=False)
glue("ratio", pages.shown(by_kind["adversarial"]["ratio"], ".3f"), display=False)
glue("ratio_random", pages.shown(by_kind["random sign"]["ratio"], ".3f"), display=False)
glue("ratio_move", pages.shown(by_kind["on-manifold move"]["ratio"], ".3f"), display=False)
glue("chance", f"{chance:.3f}", display=False)
glue("dimensions", dimensions, display=False)
glue("pixels", pixels, display=False)
glue("moved_random", pages.shown(by_kind["random sign"]["moved"], ".3f"), display=False)
glue("double", 2 * N, display=False)
glue("reach", f"{0.005 * STEPS:g}", display=False)
glue("paper", pages.paper_values(OffManifold.experiment)["setting"], display=False)
glue("moved", pages.shown(by_kind["adversarial"]["moved"], ".3f"), display=False)
glue("returned", pages.shown(by_kind["adversarial"]["returned"], ".0%"), display=False)
glue("angle", pages.shown(by_kind["adversarial"]["angle"], ".1f"), display=False)
glue("angle_random", pages.shown(by_kind["random sign"]["angle"], ".1f"), display=False)
glue("scope", pages.scope(p, rows), display=False)

# %% tags=["remove-input"]
KNOWN = r"""
**On FONTS the manifold is known.** An image is $x = \mathrm{dec}(\theta)$: a letter of a font, moved by six numbers
$\theta$ (shift, shear, scale, rotation) within known limits. The **projection** of $\tilde x$ is

$$
\begin{aligned}
\tilde\theta &= \arg\min_{\theta\ \text{valid}} \|\mathrm{dec}(\theta) - \tilde x\|_2, \\
\pi(\tilde x) &= \mathrm{dec}(\tilde\theta),
\end{aligned}
$$

with font and letter held fixed. The problem is not convex. So the search starts at the original $\theta$ and, besides,
at the best of many random $\theta$, and takes damped Gauss-Newton steps; the nearest result counts. The on-manifold move
is a move of $\theta$ in a random direction. It must come out at distance zero, else the projection does not work.

Beside the true manifold stands the way for data whose manifold is not known: it is **approximated** by the span of the
training images nearest to $\tilde x$, centred at $x$. The distance is then what least squares leaves of $\delta$. The
angle is that between $\delta$ and the span, so it says the same as the ratio.
"""
APPROXIMATE = r"""
**On real images the manifold is not known**, and there are two stand-ins.

1. *The span of neighbours.* Near $x$ the manifold is approximated by the span of the training images nearest to
   $\tilde x$, centred at $x$. The distance is what least squares leaves of $\delta$. The angle is that between $\delta$ and
   the span, so it says the same as the ratio. Every distance on this page is measured to this span.
2. *A learned manifold.* An autoencoder is trained for each class $y$, a VAE-GAN {cite:p}`larsen2016autoencoding`: an
   encoder gives the code $z = \mu(x)$ of an image, a few numbers in $[-2, 2]$, and a decoder makes the image
   $\mathrm{dec}_y(z)$ of a code. The images that the decoder can make are the learned manifold of the class. [How good it
   is](learned_manifolds.ipynb) is asked on a page of its own. Here it serves the **on-manifold attack**, which moves $z$
   by at most $\eta$ in each entry and never leaves it. The decoder does not reproduce an image exactly. So this attack
   starts from $\mathrm{dec}_y(z)$ and not from $x$: it counts where the network reads $\mathrm{dec}_y(z)$ rightly, and its
   perturbation is measured from there.

Examples of the on-manifold attack lie on the second stand-in by construction. If both stand for the same manifold, they
should lie near the first one too: nearer than regular adversarial examples do.

The control along the data, the on-manifold move, goes straight towards the nearest other image of the same class, which
should at least come out nearer than noise. (Where that image is too close to reach the norm, the example does not count
for this control.)
"""
STANDS_IN = "\nThe paper used the digits of EMNIST. MNIST, handwritten digits too, stands in for them here.\n"
display(pages.Markdown(KNOWN if p.known else APPROXIMATE + STANDS_IN * (p.dataset == "mnist")))

# %% [markdown]
# ## Experiment
#
# This page: {glue:text}`dataset`, {glue:text}`seeds` networks trained on {glue:text}`n` images each (test error
# {glue:text}`error`), {glue:text}`images` test images attacked with $\epsilon$ = {glue:text}`eps`;
# {glue:text}`scope`. For comparison, the paper: {glue:text}`paper`.
#
# The attack succeeds on {glue:text}`average_adversarial` of all (image, restart) pairs, which is how the paper
# counts, and on {glue:text}`worst_adversarial` of the images if any of {glue:text}`restarts` restarts may succeed.
# That leaves {glue:text}`count` adversarial examples, one an image and network: the first restart that succeeds. (The
# paper counted pairs, so that one image could enter five times.)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "From top to bottom: test images, their adversarial examples, the difference (red brightens, blue darkens), and the projection of the adversarial example onto the manifold. The title gives the label and what the network says of the example.", "name": "fig-examples"}, "image": {"alt": "Rows of small pictures: test images, the same with faint noise, the noise alone in red and blue, and the projections."}}
if shown_here:
    at_one = int(np.abs(off_manifold.WALK - 1).argmin())
    adversarial = examples["x"] + examples["delta"]
    answers = off_manifold.answers(network, adversarial)
    strips = {
        "$x$": examples["x"],
        r"$\tilde x = x + \delta$": adversarial,
        r"$\delta$": examples["delta"],
        r"$\pi(\tilde x)$": examples["projection"][:, at_one] / 255,
    }
    titles = [f"{classes[y]}, read {classes[answer]}" for y, answer in zip(examples["y"], answers, strict=True)]
    display(figures.pictures(strips, titles))
else:
    print("There is nothing to show: the attack fooled the network on no image, or the images must not be shown.")

# %% [markdown]
# ## How far from the manifold?

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Distance to the manifold, for adversarial examples and for the controls on the same images with the same norm. On real images on-manifold examples stand there too, with a size of their own. Compare Figure 3 of the paper. Where a kind falls into one bin, its bar is cut.", "name": "fig-distance"}, "image": {"alt": "Histograms of the distance to the manifold. One line for adversarial examples, for steps along the sign, and for each of the three controls."}}
figures.histograms({"": shown}, "distance", off_manifold.EDGES["distance"], "distance to the manifold")

# %% [markdown]
# The median ratio of the adversarial examples is {glue:text}`ratio`: so much of the perturbation's size is distance
# to the manifold. The on-manifold move of the same size has {glue:text}`ratio_move`.
#
# Now the control that matters: random signs of the same size have the ratio {glue:text}`ratio_random`. Compare both
# with what counting dimensions gives. Of a random direction in {glue:text}`pixels` dimensions, a flat manifold of
# {glue:text}`dimensions` leaves $\sqrt{1 - k/d}$ = {glue:text}`chance`. (Images are clipped to $[0, 1]$, so that
# noise is not quite free in its direction; the control has the same clipping, the formula has not.)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The ratio of distance to size, by kind of perturbation; bars are 95 % intervals over networks and images. The dotted line is what counting dimensions predicts for a random direction.", "name": "fig-ratio"}, "image": {"alt": "A dot with an interval for each kind of perturbation. A dotted line marks chance."}}
enlarged = shown[shown.kind != "on-manifold move"]
figures.intervals({"all kinds": shown, "enlarged": enlarged}, "ratio", r"distance / $\|\delta\|_2$", chance=chance)

# %% tags=["remove-input"]
for verdict in p.verdicts(rows):
    display(pages.verdict(verdict))

# %% [markdown]
# The first verdict alone says little: random signs of the same size have the ratio {glue:text}`ratio_random`, so they
# would be judged by the same rule in the same way. The second verdict decides what "almost orthogonally" means.
# Unless it says *supported*, the runs do not show that the adversarial direction is more orthogonal to the manifold
# than random signs are. Then the word describes the space, not the attack: a network need not *choose* to leave the
# manifold, for there is hardly another way to go.
#
# If it does say *supported*, look at the size too. With many examples an interval can clear 1 by a hair. The part of
# the perturbation *along* the manifold is easier to read: the projection moves by {glue:text}`moved` of
# $\|\delta\|_2$ for adversarial examples, and by {glue:text}`moved_random` for random signs.
#
# ## Does the projection return to the image?
#
# The paper says that projections are almost always the original images. Here the projection of an adversarial example
# lies {glue:text}`moved` of $\|\delta\|_2$ away from $x$ in the median, and within a tenth of it for
# {glue:text}`returned` of the examples. The part of $\delta$ that lies along the manifold, however small, shifts the
# nearest point. The angle to the tangent space says the same in another way: its median is {glue:text}`angle` degrees
# for adversarial examples and {glue:text}`angle_random` for random signs.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Angle between the perturbation and the manifold.", "name": "fig-angle"}, "image": {"alt": "Histograms of the angle to the manifold. One line for each kind of perturbation; 90 degrees is orthogonal."}}
figures.histograms({"": shown}, "angle", off_manifold.EDGES["angle"], "angle to the manifold in degrees")

# %% tags=["remove-input"]
pages.table(
    pooled[pooled.what == "distance"],
    {
        "to": "manifold",
        "kind": "perturbation",
        "count": "examples",
        "norm": "size",
        "distance": "distance",
        "ratio": "ratio",
        "angle": "angle",
        "moved": "moved",
        "returned": "returns",
    },
)

# %% [markdown]
# *Medians over all examples: size is $\|\delta\|_2$, moved is $\|\pi(\tilde x) - x\|_2 / \|\delta\|_2$, returns is
# the share of examples for which it is at most a tenth. "Neighbours" is the span of the nearest training images.*

# %% tags=["remove-input"]
CRUDE = """*"True" is the decoder's manifold. Both are measured on the same images, so the table also says how crude the span
of neighbours is: look at the distance of the on-manifold move.*"""
if p.known:
    display(pages.Markdown(CRUDE))

# %% [markdown]
# ## Move it yourself

# %% tags=["remove-input"]
SOME_FONTS = 32
ON = f"""**On the manifold.** The six sliders are $\\theta$. Letter, font and transformation make an image, and the classifier of
this page (its first network) reads it, all in your browser. Start from a letter that it reads rightly, move each slider
by at most $\\eta$ = {ETA:g}, and make it err: that is an adversarial example *on* the manifold, the subject of the next
chapter."""
ELSEWHERE = """**On the manifold.** The [next chapter](02_on_manifold_existence.ipynb) has a figure in which the code of a learned
manifold can be moved."""
display(pages.Markdown(ON if p.known else ELSEWHERE))
if p.known:
    letters = (fonts.prototypes()[:SOME_FONTS] * 255).round().byte().numpy()
    display(LatentSlider(letters, list(fonts.font_names()[:SOME_FONTS]), network.cpu()))

# %% [markdown]
# **Off the manifold.** One slider walks from $x$ along $\delta$ to the adversarial example and beyond. The prediction
# is live; the distance and the projection are computed beforehand.

# %% tags=["remove-input"]
if shown_here:
    display(
        OffManifoldWalk(
            examples["x"][:, 0],
            examples["delta"][:, 0],
            [int(y) for y in examples["y"]],
            list(classes),
            network.cpu(),
            [float(t) for t in off_manifold.WALK],
            examples["distance"],
            examples["projection"][:, :, 0],
            start=1.0,
        )
    )

# %% [markdown]
# ## Real images
#
# The rows below come with the book; the tables say how wide each run was. They are not part of this page's run. On real
# images there is no true manifold to measure the distance to, so all distances here are to the span of neighbours, on
# FONTS too. What is new on real images is the kind *on-manifold*: examples of the attack on
# [manifolds learned of each class](learned_manifolds.ipynb), measured from $\mathrm{dec}(z)$, with a budget
# $\eta$ on the code. They never leave the learned manifold. Do they lie nearer to the span of neighbours than regular
# adversarial examples do? No threshold was fixed for this question, so it has no verdict: what the tabs say of it describes
# whether two intervals meet, and no more.

# %% tags=["remove-input"]
published = {
    f"{setting.title(t.dataset[0])}, N = {t.n[0]:,}{', random rows' if t.subset[0] == 'random' else ''}": t
    for t in sorted(
        ledger.published(OffManifold.experiment, OffManifold.version), key=lambda t: t.dataset[0] != "fonts"
    )
}
near_by = {name: off_manifold.pooled(t, "neighbours") for name, t in published.items()}
absent = {"fonts", "fashion_mnist", "mnist"} - {t.dataset[0] for t in published.values()}
if absent:
    names = ", ".join(sorted(setting.title(name) for name in absent))
    display(pages.Markdown(f"*Not published yet, and so left out: {names}.*"))

# %% tags=["remove-input"] mystnb={"figure": {"caption": "Published rows: the ratio to the span of neighbours on several data sets; bars are 95 % intervals over networks and images. A kind that a data set does not have leaves its place empty. The axes differ.", "name": "fig-published"}, "image": {"alt": "For each data set a panel with a dot and an interval for each kind of perturbation: how much of its size is distance to the span of neighbours."}}
if near_by:
    display(figures.intervals(near_by, "ratio", r"distance / $\|\delta\|_2$"))

# %% tags=["remove-input"] mystnb={"figure": {"caption": "Published rows: the distance to the span of neighbours. All kinds have the size of the regular adversarial example of the same image, but for sign steps and for on-manifold examples, whose sizes are their own.", "name": "fig-published-distance"}, "image": {"alt": "For each data set a panel with histograms of the distance to the span of neighbours, a line for each kind of perturbation."}}
if near_by:
    display(
        figures.histograms(near_by, "distance", off_manifold.EDGES["distance"], "distance to the span of neighbours")
    )


# %% tags=["remove-input"]
def said(table):
    """In words what the kinds of a published table have in common, and where they differ."""
    kinds = {row["kind"]: row for row in table.to_dict("records")}
    regular, learned = kinds["adversarial"], kinds.get("on-manifold")
    text = f"Regular adversarial examples lie {pages.shown(regular['distance'], '.2f')} from the span, in the median. "
    if learned is None or not learned["count"]:
        return text + "Examples on a learned manifold are not in these rows."
    text += (
        f"Of {learned['count']:.0f} examples on the learned manifolds it is {pages.shown(learned['distance'], '.2f')}; they "
        f"are {pages.shown(learned['norm'], '.2f')} from where they started, the regular ones "
        f"{pages.shown(regular['norm'], '.2f')}. "
    )
    if learned["ratio_high"] < regular["ratio_low"]:
        return text + "In proportion to their size they lie nearer to the span, and the intervals do not meet."
    if learned["ratio_low"] > regular["ratio_high"]:
        return text + "In proportion to their size they lie *farther* from the span: the two stand-ins disagree."
    return text + "In proportion to their size, the intervals meet: these rows do not tell them apart."


COLUMNS = {
    "kind": "perturbation",
    "count": "examples",
    "norm": "size",
    "distance": "distance",
    "ratio": "ratio",
    "adversarial_over_this": "adversarial distance / this",
}
if published:
    tabs = {
        name: [
            pages.Markdown(said(near_by[name])),
            pages.verdict_table([(pages.source(t), p.experiment, verdict) for verdict in p.verdicts(t)]),
            pages.table(near_by[name], COLUMNS),
        ]
        for name, t in published.items()
    }
    display(figures.tabs(tabs))
else:
    display(pages.Markdown("*No rows are published yet.*"))

# %% [markdown]
# *Medians over all examples. The last column compares image by image, at the same size but for sign steps and on-manifold
# examples; the verdict on FONTS rests on the true manifold, which is not in this table. The paper's real images
# were the digits of EMNIST; MNIST, handwritten digits too, stands in for them.*

# %% [markdown]
# ## Where code and paper disagree, and a stronger attack
#
# - **The projection.** As published, the code's search takes no step.
# - **The attack.** It is weak by today's standard: Adam moves a pixel by about .005 a step, here {glue:text}`reach`
#   in all, and stops at the first success. Steps along the gradient's sign, of $2.5\,\epsilon/\text{steps}$ each,
#   succeed on {glue:text}`average_sign_steps` of pairs ({glue:text}`worst_sign_steps` of images). They stand in the
#   tables as "sign steps".
# - **On the manifold.** On FONTS $\theta$ itself can be attacked, on real images the code $z$ of a learned manifold: the
#   next chapter's subject.
# - **The learned manifold.** The paper measures on-manifold examples of EMNIST against the span of neighbours, too, but
#   its span is centred at $x$ and its perturbation starts there. Ours start from $\mathrm{dec}(z)$. That leaves the
#   decoder's error, $\mathrm{dec}(z) - x$, out of the distance, so our distances can come out smaller. Our decoders are
#   smaller and shorter trained: see [their page](learned_manifolds.ipynb).

# %% tags=["remove-input"]
display(
    pages.table(
        pooled[pooled.what == "success"],
        {
            "attack": "attack",
            "success_average": "success, averaged over restarts",
            "success_average_low": "from",
            "success_average_high": "to",
            "success_worst": "success of any restart",
            "success_worst_low": "from",
            "success_worst_high": "to",
            "forwards": "forward samples per input",
        },
    )
)
if p.known:
    paper = pages.paper_values(OffManifold.experiment)["on_manifold_success"]
    display(
        pages.Markdown(
            f"*The paper's on-manifold attack on a normally trained network, N = {paper['n']}, succeeds on {paper['value']:.3f} "
            f"of pairs ({paper['source']}). Other fonts and N = {N} here: compare the direction and rough size, not the digits.*"
        )
    )
    display(
        pages.Markdown(
            "The projection, run for real, with the code's own schedule (Adam, 100 steps) and with ours, from the same "
            "starts on the same examples:"
        )
    )
    display(
        pages.table(
            rows[rows.what == "schedule"],
            {
                "seed": "network",
                "count": "examples",
                "adam_further_by": "released schedule ends further by (median)",
                "adam_nearer_share": "released schedule nearer by .001 (share)",
                "original_start_reaches_share": "original theta reaches the nearest point to .001 (share)",
                "random_start_nearer_by": "a random start is nearer by (at most)",
            },
            number=".5f",
        )
    )

# %% [markdown]
# ## Exercises
#
# 1. Double N (`-p N` {glue:text}`double`). Before you run it: what should happen to the ratio of adversarial
#    examples, and what to the success rates?
#
# ````{admonition} Solution
# :class: dropdown
# If the ratio only counts dimensions, more training images cannot change it much. The on-manifold attack should
# succeed less often, if on-manifold robustness is generalization, as a later chapter asks. Nothing of the sort is
# claimed for the regular attack. Run it and see.
# ````

# %% tags=["remove-input"]
KNOWN_EXERCISE = f"""2. On FONTS the on-manifold move has the ratio {pages.shown(by_kind["on-manifold move"]["ratio"], ".3f")} to the true
   manifold, or so it should. To the span of neighbours it has {pages.shown(near["on-manifold move"]["ratio"], ".3f")}. Why
   not zero?

````{{admonition}} Solution
:class: dropdown
The span is a flat piece through $x$, made of other training images. The manifold is curved, and the neighbours are not
close: with few training images they are other letters in other fonts. So the span misses much of the manifold's own
directions.
````"""
LEARNED_EXERCISE = f"""2. Examples of the on-manifold attack lie on a learned manifold. To the span of neighbours they have the ratio
   {pages.shown(near.get("on-manifold", {}).get("ratio"), ".3f")}. Why not zero?

````{{admonition}} Solution
:class: dropdown
The span is a flat piece through the start, made of training images, and the learned manifold is curved. And the two are
not the same manifold: a decoder makes images that no combination of a few neighbours is, smoother ones for instance.
````"""
display(pages.Markdown(KNOWN_EXERCISE if p.known else LEARNED_EXERCISE))

# %% [markdown]
# 3. Take a random direction in $d$ dimensions and a flat manifold of dimension $k$. Show that the mean squared ratio is
#    $1 - k/d$.
#
# ````{admonition} Solution
# :class: dropdown
# Choose axes so that the first $k$ span the manifold. The squared ratio is
# $\sum_{i>k} \delta_i^2 / \sum_i \delta_i^2$. All $d$ terms have the same mean, and they add up to 1, so each is $1/d$, and $d - k$ of them are left.
# ````

# %% tags=["remove-input"]
pages.provenance(p, rows)

# %% [markdown]
# Download {download}`the source of this page <../../nbs/01_off_manifold_distance.py>`; the executed notebook is under
# the download button at the top.
