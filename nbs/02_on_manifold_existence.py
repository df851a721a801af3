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
# **Why one might doubt it.** Each doubt can be tested.
#
# - *Any move might do.* The attack moves an image along the manifold, by some distance. If most moves of this size fool
#   the classifier, then nothing adversarial was found: the classifier just reads moved images badly.
# - *The label might be gone.* A move on the manifold can be large. The paper's definition asks that the moved image
#   still belongs to its class more than to any other. A letter pushed off the canvas, or a shirt turned into something
#   that looks like a coat, would not count.
# - *The budget has no unit.* One number $\eta$ bounds all entries of the code at once; on FONTS these are shifts, shears,
#   scales and angles. The result may hang on the one for which it is generous.
# - *The manifold might not be the data's.* It is known on FONTS alone. On real images a learned one takes its place, and
#   nobody has looked at all its points.

# %% tags=["parameters"]
DATASET: str = (
    "fonts"  # data set: fonts, emnist, mnist, fashion_mnist, celeba; the true manifold is known for fonts alone
)
MANIFOLD: str = "small"  # real images: size of the learned manifolds, "small" or "paper"
BOX: str = "limits"  # valid codes: "limits", as in the paper, or the range of the "codes", as in the released code
N: int = 2500  # training images
SUBSET: str = "first"  # "first": the first N training rows, as in the paper; "random": random ones
SEEDS: int = 3  # networks, which differ in initialization and batch order
EPOCHS: int = 20  # epochs of training
IMAGES: int = 100  # attacked test images
EPS: float = 0.3  # budget of the regular attack, L-inf
ETA: float = 0.3  # budget of the on-manifold attack, L-inf on theta or z
ETA_RANGE: float = 0.1  # FONTS: the same in range units, a share of each latent's range
STEPS: int = 40  # gradient steps of the paper's attacks
RESTARTS: int = 2  # restarts of an attack
STRONG_STEPS: int = 40  # steps of the strong attack, for each of its two objectives
JUDGED: int = 25  # FONTS: images whose examples the judge reads who is told nothing
JUDGE_N: int = 5000  # real images: training images of the independent judge
DEVICE: str = "auto"  # "auto" takes a GPU if there is one; or cpu, cuda, cuda:1
PROFILE: str = "own"  # a name for this run, printed at the end of the page

# %% [markdown]
# ## Method
#
# An image on the manifold is $x = \mathrm{dec}(z)$ with a code $z$. An **on-manifold adversarial example** changes the
# code and keeps all else that the decoder is told, the class above all:
#
# $$
# \begin{gathered}
# \tilde x = \mathrm{dec}(z + \zeta), \qquad
# \zeta \approx \arg\max_{\zeta} \mathcal L(f(\mathrm{dec}(z + \zeta)), y) \\
# \text{with } \|\zeta\|_\infty \le \eta \text{ and } z + \zeta \text{ valid.}
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
#   cube $\|\zeta\|_\infty = \eta$, then moved to valid codes. The network plays no part in them.
# - **A random search**, the control for the strong attack: {glue:text}`draws` such draws an image, as many as the strong
#   attack may look at, and any one of them counts.
#
# **The rule**, fixed before the run. *Exist*: the success rate is at least .1. *The attack's doing*: it is at least
# twice that of random moves of the same size. *Keep their label*: of the examples whose clean image a judge reads
# rightly, the judge, who knows nothing of the network, still reads 95 %. All this once for the paper's attack and once
# for the strong one. Intervals are bootstrapped over networks and blocks of neighbouring images.

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
from advbook.experiments import learned_manifolds, off_manifold, on_manifold, setting
from advbook.experiments.learned_manifolds import LearnedManifolds
from advbook.experiments.on_manifold import MOVED, OFF, ON, ON_DATA, ON_RANGE
from advbook.experiments.recipes import ETA_DATA
from advbook.manifolds import transform
from advbook.sliders import OnManifoldAttack

known = p.dataset == "fonts"
# What stands beside the first threat: other units on FONTS, the manifold of all classes on real images.
BESIDE = ON_RANGE if known else ON_DATA
PANELS = {ON: "raw units", ON_RANGE: "range units"} if known else {ON: "one a class", ON_DATA: "one for all classes"}
MANIFOLDS = {ON: "one a class", ON_DATA: "one for all", MOVED: "transformation"}
names = {attack: name for attack, (name, _) in figures.MOVES.items()}


def pool(table):
    """The rows of all networks together, with words for what is moved and how."""
    own = table[table.seed == "all"]
    own = own[(own.threat != MOVED) | (own.attack != "clean")].copy()  # a transformation starts from x, which has a row
    own["kind"] = own.attack.map(names).fillna("none").where(own.threat != OFF, "regular attack")
    own["units"] = own.threat.map({ON: "raw", ON_RANGE: "range"}).fillna("-")
    own["manifold"] = own.threat.map(MANIFOLDS).fillna("-")
    return own


def examples_of(own):
    """The pooled rows about examples: (threat, attack) -> row."""
    return {(row["threat"], row["attack"]): row for row in own[own.what == "examples"].to_dict("records")}


pooled = pool(rows)
success = pooled[pooled.what == "success"]
rate = {(row["threat"], row["attack"]): row for row in success.to_dict("records")}
about = examples_of(pooled)
untold = {row["attack"]: row for row in pooled[pooled.what == "untold"].to_dict("records")}
error = rows[rows.test_error.notna()].test_error.astype(float)
arrays = ledger.arrays(rows.arrays.iloc[0])
examples = {name.removeprefix("shown/"): array for name, array in arrays.items() if name.startswith("shown/")}
shown_here = bool(examples) and p.dataset != "celeba"  # its agreement forbids handing faces on
classes = setting.classes(p.dataset)
network = off_manifold.drawn_network(arrays, len(classes))
low, high = np.array(fonts.THETA_LOW), np.array(fonts.THETA_HIGH)
verdicts = p.verdicts(rows)


def percent(row, name="success_average"):
    """A share of a row as text."""
    return pages.shown(row.get(name), ".1%")


def fair(said, threat):
    """Labels kept by the strong attack's successes against those of the random search, in words."""
    strong, search = said[threat, "strong"], said[threat, "random search"]
    if pd.isna(strong["kept"]) or pd.isna(search["kept"]):
        return "there are too few of them to compare"
    text = (
        f"{percent(search, 'kept')} of the random search's examples keep their label, and {percent(strong, 'kept')} of the "
        "strong attack's; "
    )
    if strong["kept_high"] < search["kept_low"]:
        return text + "the intervals do not meet, so the attack costs more labels than blind successes do"
    if strong["kept_low"] > search["kept_high"]:
        return text + "the intervals do not meet, and it is the random search that costs more labels"
    return (
        text + "the intervals meet, so these rows do not show that the attack costs more labels than blind successes do"
    )


def turned(said):
    """What the judge says of random transformations, and what follows, in words."""
    moves = said[MOVED, "random moves"]
    text = (
        "Of random transformations of the image, whether they fool or not, the judge keeps the label of "
        f"{percent(moves, 'kept')}"
    )
    if pd.isna(moves["kept"]) or moves["kept_high"] >= on_manifold.KEPT:
        return f"{text}; of the strong attack's, of {percent(said[MOVED, 'strong'], 'kept')}."
    return (
        f"{text}. They are drawn without any network, so there the judge fails, who has learned from upright images, or the "
        f"box is too wide to keep the label. Then the {percent(said[MOVED, 'strong'], 'kept')} that the strong attack's "
        "transformations keep say little of the attack."
    )


def show(text):
    """Text that holds for this data set alone."""
    display(pages.Markdown(text))


glue("dataset", setting.title(p.dataset), display=False)
glue("n", N, display=False)
glue("seeds", SEEDS, display=False)
glue("images", IMAGES, display=False)
glue("eps", EPS, display=False)
glue("eta", ETA, display=False)
glue("restarts", RESTARTS, display=False)
glue("draws", p.draws, display=False)
glue("error", f"{error.mean():.1%}", display=False)
glue("scope", pages.scope(p, rows), display=False)
glue("paper", pages.paper_values(OnManifold.experiment)["setting"], display=False)
glue("reach", f"{0.005 * STEPS:g}", display=False)
for key, name in (
    ((OFF, "paper"), "regular"),
    ((ON, "paper"), "paper"),
    ((ON, "strong"), "strong"),
    ((ON, "random moves"), "moves"),
    ((ON, "random search"), "search"),
):
    glue(f"average_{name}", percent(rate[key]), display=False)
    glue(f"any_{name}", percent(rate[key], "success_worst"), display=False)
    glue(f"looks_{name}", pages.shown(rate[key]["forwards"], ".1f"), display=False)
    glue(f"change_{name}", pages.shown(about[key]["change"], ".2f"), display=False)

# %% tags=["remove-input"]
FONTS = f"""
**On FONTS** the code is $\\theta$, six numbers that shift, shear, scale and turn a letter of a font, within known limits.
The attack keeps letter and font.

**Units.** As published, $|\\zeta_i| \\le \\eta$ in each latent's own unit, the *raw* one. As a variant we measure in
**range units**: $|\\zeta_i| \\le \\eta_r w_i$, where $w_i$ is the width of the limits of latent $i$. Which $\\eta_r$ is
comparable? The default, $\\eta_r$ = .1, is the share of its range that the published $\\eta$ = .3 leaves to the rotation,
$.3 / \\pi$, rounded. So the rotation keeps its budget, and all other latents lose what they had beyond it. A success in
this variant cannot rest on a latent for which $\\eta$ was generous.

**Two judges** say whether the letter is still itself. Neither sees a network, and both leave the letter's own font out,
so that they must recognize it by its shape.

- *The judge who is told the move* gets $\\theta + \\zeta$, undoes it, and compares the upright letter with those of all
  other fonts, over the pixels that lay inside the canvas. The nearest one (L2) gives the letter. This judge notices what
  is lost: parts off the canvas, strokes too small to see.
- *The judge who is told nothing* looks for the nearest image on the manifolds of all ten letters and all other fonts:
  from many random images the nearest ones of each letter, each then improved in $\\theta$. This judge notices when a
  moved letter looks like another one. The search is costly, so only the examples of {JUDGED} test images are judged this
  way, and it can miss the nearest image, so this judge errs more.

The verdicts are in raw units and of the first judge. Range units and the second judge are reported beside. Blocks of
images are resampled together since neighbours show the same font.
"""
LEARNED = r"""
**On real images the manifold is learned.** For each class $y$ an autoencoder is trained on the class's images, a VAE-GAN
{cite:p}`larsen2016autoencoding`. Its encoder gives the code of an image, $z = \mu(x)$, and its decoder makes the image
$\mathrm{dec}_y(z)$ of a code. All that the decoder makes of codes in $[-2, 2]^D$ is the learned manifold of the class.
What it makes counts as the class's, by construction: whether it shows the class is another question, and [how good
learned manifolds are](learned_manifolds.ipynb) has a page of its own.

- *The attack starts from* $\mathrm{dec}_y(z)$. The decoder does not reproduce an image exactly. So an image counts where
  the network reads $\mathrm{dec}_y(z)$ rightly, not $x$ itself. This is how the released code counts, too. Encoder and
  decoder are told the class, so $\mathrm{dec}_y(z)$ is pulled towards it and can be read more easily than $x$. Success
  counts on these images, test error on images.
- *Valid codes* lie in $[-2, 2]^D$ (BOX = "limits"), as in the paper; codes of images outside are clipped into it first.
  The released code takes the smallest and largest entries among the attacked images' codes in its place (BOX =
  "codes").
- *The control* is a manifold learned of all classes together, attacked with $\eta$ = ETA_DATA, the number of the released
  code. In it a move can lead from one class into another, so that nothing keeps the label. Its codes have units of their
  own, so the two numbers $\eta$ do not say which budget is the larger one.
- *Transformations* need no learned manifold: $\tilde x = T(x; t)$ shifts, shears, scales and turns the image $x$ itself,
  with $\|t - t_0\|_\infty \le \eta$ around the $t_0$ that changes nothing (equation (5) of the paper, where they stand for
  known invariances of the data). The box is the released code's: shifts up to SHIFT, where the image is 2 wide, shears up
  to SHEAR, scales from SCALE_LOW to SCALE_HIGH, rotations up to $\pi$/TURN. Where $\eta$ reaches beyond the box, a move ends
  on its bound. Networks trained on upright images have not learned to read these, and neither has the judge.
- *The judge* knows no attacked network. It is a wide network and a vote of the nearest training images, both learned from
  training images alone; it reads what both together find likeliest. It errs on clean images too, so its errors there, on
  $\mathrm{dec}_y(z)$ and after random moves stand beside those on adversarial examples. All random moves are judged, but of
  an attack only its successes, and these lie near the border of a class. So the fair control for labels is the random
  search, whose successes are judged, too.
"""
BOUNDS = {
    "ETA_DATA": ETA_DATA,
    "SHIFT": transform.REAL_HIGH[0],
    "SHEAR": transform.REAL_HIGH[2],
    "SCALE_LOW": transform.REAL_LOW[4],
    "SCALE_HIGH": transform.REAL_HIGH[4],
    "TURN": np.pi / transform.REAL_HIGH[5],
}
for word, number in BOUNDS.items():
    LEARNED = LEARNED.replace(word, f"{number:g}")
STANDS_IN = "\nThe paper used the digits of EMNIST. MNIST, handwritten digits too, stands in for them here.\n"
show(FONTS if known else LEARNED + STANDS_IN * (p.dataset == "mnist"))

# %% [markdown]
# ## Experiment
#
# This page: {glue:text}`dataset`, {glue:text}`seeds` networks trained on {glue:text}`n` images each (test error
# {glue:text}`error`), in the same way as in the chapter before, {glue:text}`images` test images attacked with
# $\eta$ = {glue:text}`eta`; {glue:text}`scope`. For comparison, the paper: {glue:text}`paper`.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "How often each kind of move fools the networks; bars are 95 % intervals over networks and images. Left as published; right the variant beside it, range units on FONTS and one manifold for all classes on real images. Filled: averaged over restarts or draws; open: any of them. The strong attack and the random search have one number each, so their two dots agree. The dotted line is the threshold of the first verdict. Compare the attacks with the random moves below them.", "name": "fig-success"}, "image": {"alt": "Two panels. In each, four rows: the paper's attack, the strong attack, random moves, random search. Each row has a filled and an open dot with an interval on an axis from 0 to 1, the success rate."}}
by_threat = {title: success[success.threat == threat] for threat, title in PANELS.items()}
figures.success(by_threat, threshold=on_manifold.EXIST)

# %% [markdown]
# The paper's attack succeeds on {glue:text}`average_paper` of all (image, restart) pairs, and on
# {glue:text}`any_paper` of the images if any of {glue:text}`restarts` restarts may succeed. The strong attack fools
# {glue:text}`any_strong` of the images, within the same limits. Where the two differ, the rest of the way is the
# attack's weakness and not the networks' strength.

# %% tags=["remove-input"]
for verdict in verdicts[:2]:
    display(pages.verdict(verdict))

# %% [markdown]
# ## What they look like

# %% tags=["hide-input"] mystnb={"figure": {"caption": "From top to bottom: test images; their regular adversarial examples and the difference; on real images, what the decoder makes of their code; their on-manifold adversarial examples (the paper's attack) and the difference. Red brightens, blue darkens, each picture on its own scale. The title gives the label, then what the network reads in the regular and in the on-manifold example. Compare Figure 2 of the paper.", "name": "fig-on-manifold"}, "image": {"alt": "Rows of small pictures: test images, the same with faint noise, the noise alone in red and blue, the images moved a little on the manifold, and the difference that this makes."}}
if shown_here:
    read_regular, read_on = (off_manifold.answers(network, examples[name]) for name in ("regular", "on"))
    strips = {
        "$x$": examples["x"],
        r"$x + \delta$": examples["regular"],
        r"$\delta$": examples["regular"] - examples["x"],
        **({} if known else {r"$\mathrm{dec}(z)$": examples["clean"]}),
        r"$\mathrm{dec}(z + \zeta)$": examples["on"],
        "difference": examples["on"] - examples["clean"],
    }
    titles = [
        f"{classes[y]}:\n{classes[a]},\n{classes[b]}"
        for y, a, b in zip(examples["y"], read_regular, read_on, strict=True)
    ]
    display(figures.pictures(strips, titles))
else:
    print("There is nothing to show: the attacks fooled the network on no image together, or it must not be shown.")

# %% [markdown]
# The regular attack changes pixels without regard to what they show. Which attack changes the *image* more? The mean
# L2 size of the change is {glue:text}`change_paper` on the manifold, and {glue:text}`change_regular` for the regular
# attack with $\epsilon$ = {glue:text}`eps`, which succeeds on {glue:text}`average_regular` of pairs. Each is a mean
# over the attack's own successes, measured from where the attack started. The paper says that on-manifold examples
# are "significantly harder to obtain", and that regular ones usually need the smaller change of the image, "which
# also explains why" they leave the manifold.

# %% tags=["remove-input"]
FOLLOWS = (
    "The on-manifold attack shifts, shears, scales and turns the letter, so its difference follows what is drawn. "
    if known
    else "The on-manifold attack changes the image as the learned manifold allows. Whether its difference follows what is "
    "drawn hangs on how good this manifold is: look at the pictures. "
)
on_change, regular_change = about[ON, "paper"]["change"], about[OFF, "paper"]["change"]
if pd.isna(on_change) or pd.isna(regular_change):
    SMALLER = "One of the two attacks has no success here, so the sizes cannot be compared."
elif on_change > regular_change:
    SMALLER = (
        "Here, too, the regular examples change the image less. That this is *why* they leave the manifold is the paper's "
        "inference; no row tests it."
    )
else:
    SMALLER = (
        "Here the regular examples do *not* change the image less, so these rows do not agree with the paper's reason."
    )
show(FOLLOWS + SMALLER)

# %% [markdown]
# ## The control: any move of the same size?
#
# Random moves on the surface of the same cube fool the networks on {glue:text}`average_moves` of all draws. That is
# the number to hold against the attack's {glue:text}`average_paper`. It is a hard control: the random moves go as
# far as the budget lets them, and the attack stops as soon as it can.

# %% tags=["remove-input"]
if known:
    moves, paper = (percent(rate[BESIDE, name]) for name in ("random moves", "paper"))
    show(f"In range units it is {moves} against {paper}.")
for verdict in verdicts[2:4]:
    display(pages.verdict(verdict))

# %% [markdown]
# The two verdicts ask different things. The first compares one restart with one random move: does following the
# gradient help? The second compares all that a strong attack finds with all that blind tries find: are the examples
# rare? Both count an image as fooled or not, so the second ratio has a ceiling: where the random search alone fools
# more than half of the images, no attack can be twice as good. If that is why it says *not supported*, then on-manifold
# adversarial examples are so common at this $\eta$ that patience finds them without any gradient. That is bad news for
# the classifier, and it supports the claim that they exist; but it does not need an adversary. How much the gradient
# saves is then seen in the number of looks: the strong attack sent {glue:text}`looks_strong` images an input
# through the network, the random search {glue:text}`looks_search`.

# %% tags=["remove-input"]
strong, search = (percent(rate[BESIDE, name], "success_worst") for name in ("strong", "random search"))
if known:
    show(
        f"In range units, where the moves are smaller, the strong attack fooled {strong} of the images and the random "
        f"search {search}."
    )
else:
    show(
        f"On the manifold of all classes, with a budget of {ETA_DATA:g}, the strong attack fooled {strong} of the images "
        f"and the random search {search}. Transformations of the image itself fooled "
        f"{percent(rate[MOVED, 'strong'], 'success_worst')} with the strong attack and "
        f"{percent(rate[MOVED, 'random search'], 'success_worst')} with the random search."
    )
SUCCESS = {
    "kind": "move",
    "success_average": "success, averaged",
    "success_worst": "success of any",
    "forwards": "forward samples per input",
}
display(pages.table(success, {"units": "units"} | SUCCESS if known else {"manifold": "manifold"} | SUCCESS))

# %% [markdown]
# *Forward samples per input: how many images an input costs the network, over all restarts. The regular attack moves
# pixels.*
#
# ## Is the label still right?

# %% tags=["remove-input"]
if known:
    show(
        "On FONTS the attack holds letter and font fixed. So in one sense the label is kept by construction: every example "
        "is the same letter under a transformation that the data set contains. The judge who is told the move tests little "
        "more than this, namely that the letter is still on the canvas and can be seen. It errs on "
        f"{percent(about['none', 'clean'], 'judge_error')} of the clean images that the network reads rightly."
    )
else:
    show(
        "On a learned manifold the class is held fixed. But that its decoder makes nothing else than images of the class is "
        "hoped, not known. The judge errs on "
        f"{percent(about['none', 'clean'], 'judge_error')} of the test images, on "
        f"{percent(about[ON, 'clean'], 'judge_error')} of what the decoder makes of their codes, and on "
        f"{percent(about[ON, 'random moves'], 'judge_error')} after random moves; each time of those that the network "
        f"reads rightly. On examples of the paper's attack it errs on {percent(about[ON, 'paper'], 'judge_error')}, on those "
        f"of the strong attack on {percent(about[ON, 'strong'], 'judge_error')}.\n\n"
        "Two things come together in these last numbers. All random moves are judged, whether they fool the network or not; "
        "what they lose is the price of the size of the move, or a fault of the manifold. Of an attack only the successes are "
        "judged, and these lie near the border of a class, where a judge errs more often, too, whoever found them. So the fair "
        f"control is the random search: its examples are successes, found without a gradient. Here {fair(about, ON)}. (The "
        f"random search fools {percent(rate[ON, 'random search'], 'success_worst')} of the images, the strong attack "
        f"{percent(rate[ON, 'strong'], 'success_worst')}, so the two are not judged on the same ones.)\n\n{turned(about)}"
    )
for verdict in verdicts[4:]:
    display(pages.verdict(verdict))
EXAMPLES = {"kind": "move", "count": "examples", "judge_error": "judge errs", "kept": "label kept"}
if known:
    EXAMPLES = {"units": "units"} | EXAMPLES | {"change": "mean L2 change of the image"}
else:
    EXAMPLES = {"manifold": "manifold"} | EXAMPLES | {"network_reads": "the judge's network alone is right"}
display(pages.table(pooled[pooled.what == "examples"], EXAMPLES))


# %% [markdown]
# *Examples are the successes of an attack, and all of the random moves. "Label kept" counts those whose clean image the
# judge reads rightly, so it is 1 without a move. On a learned manifold the clean image is the decoded one.
# "Transformation" moves the image itself, with no learned manifold.*

# %% tags=["remove-input"]
if known:
    show(
        "The paper's definition asks for more: seen without its code, the image must belong to its class more than to any "
        "other. That is what the judge who is told nothing looks at. It errs on "
        f"{percent(untold['clean'], 'judge_error')} of the clean images asked (those that the network reads rightly), and of "
        "those that it reads rightly itself it keeps the label of "
        f"{percent(untold['random moves'], 'kept')} after a random move, of "
        f"{percent(untold['paper'], 'kept')} after the paper's attack, and of {percent(untold['strong'], 'kept')} after the "
        "strong one. The first is what the size of a move costs. But it is no fair control for the last two: random moves "
        "are judged whether they fool the network or not, the attacks' examples only if they do, and such images may lie "
        "nearer to another letter, whoever found them. The successes of the random search would be the fair control, and "
        "this slow judge was not asked about them. So these numbers do not say whether the attack *seeks* letters that look like "
        f"others. The judge who is told the move was asked: {fair(about, ON)}. Few images are judged by the one who is told "
        "nothing, so mind the intervals."
    )
    display(
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
    )


def disputed(table, threat):
    """Pictures of a threat's examples that the judge disputes, and of some that it keeps, each with its alt text."""
    own, found = setting.classes(table.dataset.iloc[0]), []
    words = {"disputed": "The judge disputes", "kept": "The judge keeps the label of"}
    for row in table[(table.what == "pictures") & (table.threat == threat)].to_dict("records"):
        x, clean, example = np.moveaxis(ledger.unpacked(row), 1, 0)
        if threat == MOVED:
            strips = {"$x$": x, "$T(x; t)$": example}
        else:
            strips = {"$x$": x, r"$\mathrm{dec}(z)$": clean, r"$\mathrm{dec}(z + \zeta)$": example}
        answers = zip(row["label"], row["said"], row["read"], strict=True)
        titles = [f"{own[y]}\nnetwork: {own[a]}\njudge: {own[b]}" for y, a, b in answers]
        text = (
            f"**{PICTURED[threat]}: {words[row['attack']].lower()} {row['count']:.0f} examples of the strong attack on the "
            "first network.**"
        )
        alt = f"Rows of pictures, {PICTURED[threat].lower()}, {row['attack']} examples: {', '.join(ALT[threat])}."
        found += [pages.Markdown(text), (figures.pictures(strips, titles), alt)]
    return found


PICTURED = {ON: "One manifold a class", ON_DATA: "One manifold for all classes", MOVED: "Transformations"}
DECODED = ("test images", "what the decoder makes of their code", "the adversarial example")
ALT = {ON: DECODED, ON_DATA: DECODED, MOVED: ("test images", "the same, adversarially transformed")}
if pictures := {title: part for threat, title in PICTURED.items() if (part := disputed(rows, threat))}:
    display(figures.tabs(pictures))

# %% [markdown]
# ## Move it yourself

# %% tags=["remove-input"]
if known and shown_here:
    show(
        "Pick a letter that the classifier of this page (its first network) reads rightly. Move each slider by at most "
        f"$\\eta$ = {ETA:g} and make it err by hand: that is an on-manifold adversarial example. Then let the last slider "
        "take you along the paper's attack: step 0 is the image, step 1 the random point within the budget from which the "
        "attack starts, the last step its first success. All is computed in your browser."
    )
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
else:
    show("The figure of the next section moves the code of a learned manifold.")

# %% [markdown]
# ## Real images
#
# The rows below come with the book; the tables say how wide each run was. They are not part of this page's run.

# %% tags=["remove-input"]
if known:
    show(LEARNED)
published = {
    f"{setting.title(t.dataset[0])}, N = {t.n[0]:,}{', random rows' if t.subset[0] == 'random' else ''}"
    f"{', paper-sized manifold' if t.manifold[0] == 'paper' else ''}": t
    for t in sorted(ledger.published(OnManifold.experiment, OnManifold.version), key=lambda t: t.dataset[0] != "fonts")
}
real = {name: t for name, t in published.items() if t.dataset[0] != "fonts"}
pools = {name: pool(t) for name, t in published.items()}
absent = {"fonts", "fashion_mnist", "mnist"} - {t.dataset[0] for t in published.values()}
if absent:
    show(f"*Not published yet, and so left out: {', '.join(sorted(setting.title(name) for name in absent))}.*")

# %% tags=["remove-input"] mystnb={"figure": {"caption": "Published rows: how often each kind of move on the manifold fools the networks, the true manifold on FONTS and those learned of each class on real images, in raw units. Filled: averaged over restarts or draws; open: any of them. Bars are 95 % intervals; the dotted line is the threshold of the first verdict.", "name": "fig-published-success"}, "image": {"alt": "A panel for each data set with four rows: the paper's attack, the strong attack, random moves, random search, each with its success rates and their intervals on an axis from 0 to 1."}}
if published:
    panels = {name: own[(own.what == "success") & (own.threat == ON)] for name, own in pools.items()}
    display(figures.success(panels, threshold=on_manifold.EXIST))


# %% tags=["remove-input"]
def labels(own):
    """For the figure of kept labels: both learned manifolds, by kind of move."""
    found = own[(own.what == "examples") & own.threat.isin([ON, ON_DATA]) & (own.attack != "clean")]
    look = {ON: "generative", ON_DATA: "data"}
    ends = {
        end: found[f"kept{ending}"].astype(float) for end, ending in (("value", ""), ("low", "_low"), ("high", "_high"))
    }
    return pd.DataFrame({"place": found.kind, "name": found.threat.map(look), **ends}).dropna()


def words(table, own):
    """A published table in words: what networks and judge say of images, of decoded ones and of moved ones."""
    said = examples_of(own)
    judge = {key: percent(row, "judge_error") for key, row in said.items()}
    if table.dataset[0] == "fonts":
        return (
            f"The judge who is told the move errs on {judge['none', 'clean']} of the clean images that the networks read "
            f"rightly. Of successes, {fair(said, ON)}."
        )
    return (
        f"Of what the networks read rightly before the move, the judge errs on {judge['none', 'clean']} of the clean images, on "
        f"{judge[ON, 'clean']} of the reproductions $\\mathrm{{dec}}_y(z)$, on {judge[ON, 'random moves']} after random moves, "
        f"whether they fool or not, and, of successes, on {judge[ON, 'random search']} of the random search's, on "
        f"{judge[ON, 'paper']} of the paper's attack's and on {judge[ON, 'strong']} of the strong attack's.\n\n"
        "Now of those whose reproduction the judge reads rightly. After random moves it keeps the label of "
        f"{percent(said[ON, 'random moves'], 'kept')}. Of successes, {fair(said, ON)}. On the manifold of all classes it keeps "
        f"the label of {percent(said[ON_DATA, 'random moves'], 'kept')} after random moves; of successes, "
        f"{fair(said, ON_DATA)}.\n\n{turned(said)}"
    )


def content(name, table):
    """What a tab shows of a published table."""
    own, true = pools[name], table.dataset[0] == "fonts"
    columns = {"units": "units"} if true else {"manifold": "manifold"}
    columns |= {"kind": "move", "count": "examples", "judge_error": "judge errs", "kept": "label kept"}
    columns |= {"change": "mean L2 change"} if true else {"neighbours_reads": "the neighbours alone are right"}
    return [
        pages.Markdown(words(table, own)),
        pages.verdict_table([(pages.source(table), p.experiment, verdict) for verdict in p.verdicts(table)]),
        pages.table(own[own.what == "examples"], columns),
        *[part for threat in PICTURED for part in disputed(table, threat)],
    ]


if published:
    display(figures.tabs({name: content(name, table) for name, table in published.items()}))
else:
    show("*No rows are published yet.*")

# %% [markdown]
# *Examples that the judge disputes come first: look at them and judge for yourself. Some may be images in which the class
# is gone, others the judge's own errors.*
#
# **One manifold for all classes.** In it nothing holds the class. The released code gives it a smaller $\eta$, but in a code
# space with units of its own, so the two numbers cannot be compared; the mean L2 change of the image can. If the label were
# as safe there as on the manifolds of single classes, then these would not be what keeps it.

# %% tags=["remove-input"] mystnb={"figure": {"caption": "Published rows: the share of examples whose label the judge still reads, of those whose reproduction it reads rightly, on the manifolds of single classes and on the one of all classes, each with its budget. Bars are 95 % intervals; the dotted line is the threshold of the third verdict.", "name": "fig-kept"}, "image": {"alt": "A panel for each data set of real images, with a row for each kind of move and a mark with an interval for each kind of manifold: the share of labels kept."}}
if real:
    kept = {name: labels(pools[name]) for name in real}
    text = {"generative": "manifolds of single classes", "data": "one for all classes"}
    display(figures.dots(kept, text, "share of labels kept", level=on_manifold.KEPT))


# %% tags=["remove-input"]
def control(name):
    """Where the label is kept more often, after random moves and by the successes of both searches, in words."""
    said, parts = examples_of(pools[name]), []
    for attack in ("strong", "random search", "random moves"):
        one, all_ = said[ON, attack], said[ON_DATA, attack]
        if pd.isna(one["kept"]) or pd.isna(all_["kept"]):
            parts.append(f"{names[attack]}: too few examples to say")
            continue
        if one["kept_low"] > all_["kept_high"]:
            outcome = "the class manifolds keep more labels"
        elif one["kept_high"] < all_["kept_low"]:
            outcome = "the class manifolds keep *fewer* labels"
        else:
            outcome = "the intervals meet"
        parts.append(f"{names[attack]}: {outcome} (change {one['change']:.2f} and {all_['change']:.2f})")
    return f"- {name}: {'; '.join(parts)}."


if real:
    show(
        "\n".join(
            [
                "What the rows say of it, with the mean L2 change on the manifolds of single classes and on the one of all:\n",
                *map(control, real),
            ]
        )
    )

# %% [markdown]
# **How $\mathrm{dec}_y(z)$ differs from $x$.** The network must read the decoded image before it can be fooled on it,
# and the judge must. Encoder and decoder are told the class, so $\mathrm{dec}_y(z)$ is pulled towards it and can be
# read more easily than $x$: fewer errors on it say nothing good of the manifold, for a decoder that made the class
# mean of every code could have the fewest. The factor by which the class mean reproduces images worse ([its own
# page](learned_manifolds.ipynb)) has no such flaw. All moves count after random moves, and only successes of the
# random search.


# %% tags=["remove-input"]
def quality():
    """A line a table of real images: errors on images and on decoded ones, the factor, and labels kept."""
    lines = []
    for name, table in real.items():
        own = pools[name]
        total = table.images[0] * table.seeds[0]
        right = {
            row["threat"]: row["correct"]
            for row in own[own.attack == "paper"].dropna(subset=["correct"]).to_dict("records")
        }
        said = examples_of(own)
        lines.append(
            {
                "data": name,
                "x": 1 - right[OFF] / total,
                "decoded": 1 - right[ON] / total,
                "factor": factor(table),
                "kept": said[ON, "random moves"]["kept"],
                "found": said[ON, "random search"]["kept"],
            }
        )
    return pd.DataFrame(lines)


def factor(table):
    """By how much the class mean errs more than the manifold of a table, from the published rows of its own page."""
    for other in ledger.published(LearnedManifolds.experiment, LearnedManifolds.version):
        if (other.dataset[0], other.manifold[0]) == (table.dataset[0], table.manifold[0]) and other.epochs[0] == 0:
            return float(learned_manifolds.factors(other).set_index("label").loc["all", "mean"])
    return None


if real:
    QUALITY = {
        "data": "data set",
        "x": "networks err on images",
        "decoded": "on decoded ones",
        "factor": "error of the class mean / of the manifold",
        "kept": "label kept after random moves",
        "found": "by successes of the random search",
    }
    measured = quality()
    display(pages.table(measured, QUALITY))
    if measured.factor.notna().sum() > 1:
        whole = measured.dropna(subset=["factor", "kept"])
        agree = list(whole.sort_values("factor").data) == list(whole.sort_values("kept").data)
        outcome = (
            "the same: where the manifold reproduces images better, it also keeps more labels."
            if agree
            else "not the same: a manifold that reproduces images better does not keep more labels in these rows."
        )
        show(
            f"The order of the data sets by the factor and by the labels kept after random moves is {outcome} With so few "
            "data sets this is a description, not a test."
        )

# %% [markdown]
# **Move it yourself**, on learned manifolds: the figure is on the page
# [How good are the learned manifolds?](learned_manifolds.ipynb), which has room for ten decoders.

# %% [markdown]
# ## Where code and paper disagree, and what was left open
#
# - **Restarts are averaged.** The paper speaks of the "fraction of successful attacks"; its code averages over
#   restarts. A single success is enough for an example to exist, so "any restart" stands beside.
# - **The starts.** The paper says "uniformly sampled" in distance and direction. The code draws a Gaussian direction,
#   so that one latent starts at the drawn distance and the others well inside. The attack here does the same.
# - **The reach.** Adam moves a latent by about .005 a step, here {glue:text}`reach` in all, for a budget of
#   {glue:text}`eta`: a restart cannot cross the cube. That is why the strong attack stands beside it.
# - **The limits.** On learned manifolds the paper takes $[-2, 2]^D$ for valid codes, the code the range of the codes
#   of the attacked images. The code's evaluation then drops successes on test images whose own code, before the attack,
#   lies outside $[-2, 2]^D$, and still divides by all images; where the example's code lies is not asked. BOX chooses.
#   Every example here lies in the chosen box; with BOX = "codes" it may lie outside the paper's. On FONTS the code
#   takes the smallest and largest value of each latent in the data; we take the limits from which the data are
#   drawn. With many images the two agree.

# %% tags=["remove-input"]
if known:
    show(
        f"- **One $\\eta$ for all units.** The table shows which share of a latent's range $\\eta$ = {ETA:g} allows, and which "
        "share the examples use on average. A shift may nearly cross its whole range, a rotation only "
        f"{ETA / np.pi:.3f} of it. In range units, with $\\eta_r$ = {ETA_RANGE:g} for all, the paper's attack succeeds on "
        f"{percent(rate[ON_RANGE, 'paper'])} of pairs."
    )
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
    show(
        f"*The paper's attack on a normally trained network, N = {value['n']}, succeeds on {value['value']:.3f} of pairs "
        f"({value['source']}). Here, with other fonts, N = {N} and {RESTARTS} restarts, it is "
        f"{pages.shown(rate[ON, 'paper']['success_average'], '.3f')}: compare the direction and rough size, not the "
        "digits.*"
    )

# %% [markdown]
# ## Exercises

# %% tags=["remove-input"]
FONTS_FIRST = f"""1. $\\eta_r$ = .1 makes the budget smaller than the published one in all latents but the rotation. Which $\\eta_r$
   gives a box of the same volume as $\\eta$ = {ETA:g}, if the limits are left aside? Compute it, and run the page with it
   (`-p ETA_RANGE ...`).

````{{admonition}} Solution
:class: dropdown
The two volumes are $(2\\eta)^6$ and $\\prod_i 2\\eta_r w_i$, so $\\eta_r = \\eta / (\\prod_i w_i)^{{1/6}}$: this is
{ETA / np.prod(high - low) ** (1 / 6):.2f}. With it the rotation may go several times as far as before, and the shift about
half as far.
````"""
LEARNED_FIRST = """1. Run the page with `-p BOX codes`. Which box leaves the attack more room, and for which images can
   that matter?

````{admonition} Solution
:class: dropdown
The range of the codes is the wider one where some image has an entry beyond 2, and the narrower one where no image comes
near 2. It matters for images whose code lies within the budget of a bound, and for all whose code lies outside
$[-2, 2]^D$: the limits clip these codes before the attack, their own range does not. All others never meet a bound.
````"""
show(FONTS_FIRST if known else LEARNED_FIRST)

also = (
    f"Then do the same in range units, from {percent(rate[BESIDE, 'random moves'])} to "
    f"{percent(rate[BESIDE, 'random search'], 'success_worst')}. "
    if known
    else ""
)
show(f"""2. A single random move fools the network with probability $q$ on an image. What is the chance that one of $k$
   independent moves does? Use the success of random moves, {percent(rate[ON, "random moves"])}, to predict that of the
   random search with {p.draws} moves, and compare with the measured
   {percent(rate[ON, "random search"], "success_worst")}. {also}Why can the prediction be too high, and never too low?

````{{admonition}} Solution
:class: dropdown
$1 - (1 - q)^k$, which is close to 1 for so many moves. But $q$ differs from image to image: some are fooled by every
other move, some by hardly any, and for these no number of tries is enough. The average of $1 - (1 - q_i)^k$ over images
is at most the formula at the average $q$, because the formula is concave in $q$ (Jensen's inequality). Chance aside, it
can only be too high.
````""")

# %% [markdown]
# 3. A network that ignores its input gives the same answer to everything. What is its on-manifold success rate, and what
#    does that say about success rates as a measure of robustness?
#
# ````{admonition} Solution
# :class: dropdown
# Zero: it is right on all images of one class, and no move changes its answer. A success rate counts correctly classified
# images alone, so it must be read together with the test error.
# ````

# %% tags=["remove-input"]
FONTS_LAST = """4. The judge who is told the move leaves the letter's own font out. What would it measure if it did not?

````{admonition} Solution
:class: dropdown
Undoing the move gives back the prototype itself, a little blurred, so the nearest letter would be the letter's own
prototype: the judge would say "yes" to nearly everything, whatever a reader would see.
````"""
LEARNED_LAST = """4. The judge's network, the decoders and the attacked networks learn from the same training images. Which
   errors could they share, and why is there a vote of neighbours beside the judge's network?

````{admonition} Solution
:class: dropdown
Adversarial examples often transfer from one network to another that learned from similar data: the judge's network
might err on an image because the attacked one does, though its class can be seen. Neighbours in pixels have no gradient
in common with a network. Where the two parts disagree, the label is in doubt, and a reader has to look.
````"""
show(FONTS_LAST if known else LEARNED_LAST)

# %% tags=["remove-input"]
pages.provenance(p, rows)

# %% [markdown]
# Download {download}`the source of this page <../../nbs/02_on_manifold_existence.py>`; the executed notebook is under
# the download button at the top.
