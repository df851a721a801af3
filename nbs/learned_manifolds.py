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
# # Learned manifolds: how good are they?
#
# **The question.** On FONTS the data manifold is known. On real images nobody knows it, so the first four chapters
# take a *learned* manifold in its place: the images that a decoder can make, one decoder a class
# ({cite:t}`stutz2019disentangling`, section 3.1). Is it good enough for that? This page is nobody's claim. It is a
# control for [chapter 02](02_on_manifold_existence.ipynb), [03](03_generalization_link.ipynb) and
# [04](04_independence.ipynb): what those say of real images, they say of these decoders.
#
# **Why one might doubt it.**
#
# - *The decoder may know only the class.* One that makes the mean image of its class, whatever the code, would keep
#   every label. But moving its code would say nothing about images.
# - *It may be no better than a flat manifold.* Images near a mean can be reproduced well by the mean and a few fixed
#   directions, the principal components. A network is needed only if the manifold is curved.
# - *Its images may not show the class.* An on-manifold attack counts as one because the label stays. That holds for the
#   true manifold. A learned one has it by name only: its points were never looked at.
# - *It may leave images out.* Valid codes lie in $[-2, 2]^D$. Images whose code lies outside are not on the manifold as
#   the chapters use it.

# %% tags=["parameters"]
DATASET: str = "fonts"  # data set: fonts, emnist, mnist, fashion_mnist, celeba
MANIFOLD: str = "small"  # size of the learned manifolds, "small" or "paper"
EPOCHS: int = 0  # epochs of the VAE-GANs; 0: as many as their size asks for
N: int = 10000  # training images of what they are compared with, and of the judge
IMAGES: int = 1000  # test images that are reproduced
DEVICE: str = "auto"  # "auto" takes a GPU if there is one; or cpu, cuda, cuda:1
PROFILE: str = "own"  # a name for this run, printed at the end of the page

# %% [markdown]
# ## Method
#
# A **VAE-GAN** {cite:p}`larsen2016autoencoding` consists of three networks. The *encoder* turns an image $x$ into a mean
# $\mu(x)$ and a variance $\sigma^2(x)$ for each of $D$ numbers, the code. The *decoder* turns a code $z$ into an image,
# $\mathrm{dec}(z)$. The *discriminator* $\mathrm{disc}(x)$ is the probability that $x$ is an image of the data and not one that a
# decoder made. In training the code is $z = \mu(x) + \sigma(x)\,\xi$ with normal noise $\xi$, and
# $\hat x = \mathrm{dec}(z)$. Each network has a loss of its own:
#
# $$
# \begin{aligned}
# \text{encoder:} \quad & \mathrm{KL}(\mathcal N(\mu, \sigma^2) \,|\, \mathcal N(0, 1)) \\
# & + \beta\,\|x - \hat x\|_1 - \gamma \log \mathrm{disc}(\hat x), \\
# \text{decoder:} \quad & \beta\,\|x - \hat x\|_1 - \gamma \log \mathrm{disc}(\hat x), \\
# \text{discriminator:} \quad & - \gamma\,(\log \mathrm{disc}(x) + \log(1 - \mathrm{disc}(\hat x))).
# \end{aligned}
# $$
#
# The first term keeps codes near a standard normal distribution, so that random codes make images. The second asks that
# the image comes back, the third that it looks like one of the data: without it, images are blurred. $\beta$ and
# $\gamma$ weigh them.
#
# Afterwards there is no noise: an image has the code $z = \mu(x)$. A code is **valid** if it lies in $[-2, 2]^D$. There
# are two kinds of learned manifold. *One a class*: each class $y$ has its own encoder and decoder $\mathrm{dec}_y$,
# trained on its images alone; an attack that moves $z$ keeps $y$. *One for all classes*: a single decoder, in which a
# move can lead from one class into another. It is the control.
#
# **What is measured**, on test images.
#
# - *Reproduction*: $\|x - \mathrm{dec}_y(z)\|_2$, where $z$ is $\mu(x)$, clipped into $[-2, 2]^D$ as in the chapters,
#   beside the same of two stand-ins that need no network: the mean training image of the class, and a linear manifold of
#   the same dimension, that mean plus the best combination of the first $D$ principal components of the class.
# - *Label*: a judge reads images $x$, reproductions $\mathrm{dec}_y(\mu(x))$, codes not clipped, and random points
#   $\mathrm{dec}_y(z)$, where $z$ is normal and truncated to $[-2, 2]^D$. The judge is a wide network and the vote of the
#   nearest training images, both learned from training images alone.
# - *Room*: the share of images whose code has an entry outside $[-2, 2]$.
#
# **The rule**, fixed before the run. *Better than the class mean*: in the class where it is least, the mean's error is at
# least {glue:text}`better_than_mean` times that of the reproduction. *Better than a linear manifold*: over all images, its
# error is at least {glue:text}`better_than_linear` times that of the reproduction. Intervals are bootstrapped over blocks
# of neighbouring test images. They rest on one training of the manifolds: how much another one would differ, they do not
# say.

# %% tags=["compute"]
from advbook.experiments.learned_manifolds import LearnedManifolds

p = LearnedManifolds.of_notebook(globals())
rows = p.rows()

# %% tags=["remove-cell"]
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from myst_nb import glue

from advbook import figures, ledger, pages
from advbook.experiments import learned, setting
from advbook.experiments.learned_manifolds import BETTER_THAN_LINEAR, BETTER_THAN_MEAN, SAMPLES, STEPS, TITLES, factors
from advbook.manifolds import vaegan
from advbook.sliders import learned as learned_slider

# One row for all images of a kind of manifold, by kind.
whole = {row["kind"]: row for row in rows[(rows.what == "reconstruction") & (rows.label == "all")].to_dict("records")}


def weights(size):
    """Weights of one decoder for grey images of 28 by 28 pixels."""
    pair = vaegan.autoencoder(size, (1, 28, 28), generator=torch.Generator())
    return sum(weight.numel() for weight in pair.decoder.parameters())


def training(table):
    """How long the manifolds of a table were trained, in words."""
    dataset, size, epochs = (table[name].iloc[0] for name in ("dataset", "manifold", "epochs"))
    each, together = (
        learned._recipes(dataset, kind, size, torch.device("cpu"), int(epochs))[0].epochs for kind in ("class", "data")
    )
    return f"epochs of training: {each}" + (f" (one for all classes: {together})" if together != each else "")


def named(table):
    """A table's data set and size."""
    return f"{setting.title(table.dataset.iloc[0])}, {table.manifold.iloc[0]}"


def between(row, name):
    """A value of a row with its interval."""
    return " ".join([f"{row[name]:.2f}", f"({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"])


def by_class(table, kind="class"):
    """A table a class, the last line for all: factors with intervals, and what the judge says."""
    own = table[(table.what == "reconstruction") & (table.kind == kind)].set_index("label")
    names = {str(label): name for label, name in enumerate(setting.classes(table.dataset.iloc[0]))} | {"all": "all"}
    lines = factors(table, kind)
    lines = pd.concat([lines[lines.label != "all"], lines[lines.label == "all"]])
    return pd.DataFrame(
        [
            {
                "class": names[row["label"]],
                "count": row["count"],
                "mean": between(row, "mean"),
                "linear": between(row, "linear"),
                "decoded": own.judge_decoded[row["label"]],
                "sampled": own.judge_sampled[row["label"]] if kind == "class" else None,
            }
            for row in lines[lines["count"] > 0].to_dict("records")
        ]
    )


PER_CLASS = {
    "class": "class",
    "count": "images",
    "mean": "error of the class mean / of this",
    "linear": "error of linear / of this",
    "decoded": "judge errs on reproductions",
    "sampled": "on random points",
}


def mosaic(table, kind, part):
    """Pictures of a table, a column a class; none where its rows have none. part: "points" or "ways"."""
    own = table[(table.what == "pictures") & (table.kind == kind)]
    if not len(own):
        return None
    drawn = {row["name"]: ledger.unpacked(row) for row in own.to_dict("records")}
    labels = own.iloc[0]["labels"][::2]
    if part == "ways":
        ways = np.moveaxis(drawn["interpolations"], 1, 0)  # [steps, classes, C, H, W]
        strips = {f"$t = {step}/{STEPS - 1}$": image for step, image in enumerate(ways)}
    else:
        pairs = drawn["reconstructions"]
        strips = {"$x$": pairs[::2, 0], r"$\mathrm{dec}(\mu(x))$": pairs[::2, 1]}
        strips |= {"another $x$": pairs[1::2, 0], r"its $\mathrm{dec}(\mu(x))$": pairs[1::2, 1]}
        strips |= {"random point": drawn["samples"][::2], "another": drawn["samples"][1::2]}
    classes = setting.classes(table.dataset.iloc[0])
    return figures.pictures(strips, [classes[label] for label in labels])


glue("dataset", setting.title(p.dataset), display=False)
glue("size", MANIFOLD, display=False)
glue("n", f"{N:,}", display=False)
glue("images", f"{IMAGES:,}", display=False)
glue("training", training(rows), display=False)
glue("scope", pages.scope(p, rows), display=False)
glue("latents_paper", vaegan.LATENTS, display=False)
glue("latents", learned.LATENTS.get(DATASET, vaegan.LATENTS), display=False)
glue("better_than_mean", f"{BETTER_THAN_MEAN:g}", display=False)
glue("better_than_linear", f"{BETTER_THAN_LINEAR:g}", display=False)
glue("samples", SAMPLES, display=False)
within = float(torch.special.erf(torch.tensor(vaegan.BOUND / 2**0.5)))  # of a normal entry, exercise 2
glue("within", f"{within:.3f}", display=False)
glue("expected_outside", f"{1 - within ** learned.LATENTS.get(DATASET, vaegan.LATENTS):.0%}", display=False)
glue("learned_from", f"{learned._images(DATASET, MANIFOLD):,}", display=False)
for kind, count in learned.SEEN.items():
    glue(f"seen_{kind}", f"{count:,}", display=False)
glue("weights_small", f"{weights('small'):,}", display=False)
glue("weights_paper", f"{weights('paper'):,}", display=False)
glue("fonts_rows", f"{learned.FONTS_ROWS:,}", display=False)
glue("last", f"{learned.LAST:.0%}", display=False)
glue("judge_clean", f"{whole['class']['judge_clean']:.1%}", display=False)
for kind, row in whole.items():
    glue(f"judge_decoded_{kind}", f"{row['judge_decoded']:.1%}", display=False)
    glue(f"outside_{kind}", f"{row['outside']:.1%}", display=False)
    glue(f"learned_{kind}", f"{row['learned']:.2f}", display=False)
    glue(f"clipped_{kind}", f"{row['clipped']:.2f}", display=False)
glue("mean", f"{whole['class']['mean']:.2f}", display=False)
glue("linear", f"{whole['class']['linear']:.2f}", display=False)
glue("judge_sampled", f"{whole['class']['judge_sampled']:.1%}", display=False)

# %% [markdown]
# ## Experiment
#
# This page: {glue:text}`dataset`, VAE-GANs of the size "{glue:text}`size`" with $D$ = {glue:text}`latents`,
# {glue:text}`training`; {glue:text}`images` test images, compared with what {glue:text}`n` training images give;
# {glue:text}`scope`.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "One manifold a class. From top to bottom: two test images of each class, each with its reproduction below (the code is not clipped), and two random points of the class's manifold.", "name": "fig-points"}, "image": {"alt": "Rows of small pictures, a column a class: test images, below each its reproduction by the decoder, and images that the decoder makes of random codes."}}
if (figure := mosaic(rows, "class", "points")) is not None:
    display(figure)
else:
    print("There is nothing to show: of this data set no images are kept.")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The straight way between the codes of two test images of a class, from the first (t = 0) to the second. Every picture is made by the class's decoder. The two codes are not clipped, so an end may lie outside of the valid codes.", "name": "fig-ways"}, "image": {"alt": "Rows of small pictures, a column a class: images that change by small steps from the reproduction of one test image to that of another."}}
if (figure := mosaic(rows, "class", "ways")) is not None:
    display(figure)

# %% [markdown]
# In the mean over test images, $\|x - \mathrm{dec}_y(\mu(x))\|_2$ is {glue:text}`learned_class`. The class mean has
# {glue:text}`mean`, and the linear manifold {glue:text}`linear`. Of all images, {glue:text}`outside_class` have a code
# outside $[-2, 2]^D$; clipped into it, the mean error becomes {glue:text}`clipped_class`.

# %% tags=["remove-input"]
for verdict in p.verdicts(rows):
    display(pages.verdict(verdict))

# %% tags=["remove-input"]
pages.table(by_class(rows), PER_CLASS)

# %% [markdown]
# *Factors above 1 say that the learned manifold comes nearer to the images; codes are clipped. Intervals are 95 %, for one
# training of the manifolds. The judge's errors on random points have no interval here: the points are few,
# {glue:text}`samples` a class.*
#
# The comparison with the linear manifold has an advantage on either side. The linear one projects, that is, it finds its
# nearest point to $x$, while the encoder guesses a code in one pass, and nobody asked it for the nearest. But the principal
# components are fitted on {glue:text}`n` images, while the VAE-GANs were learned from {glue:text}`learned_from`.
#
# ## Does a point show its class?
#
# The judge errs on {glue:text}`judge_clean` of the test images, on {glue:text}`judge_decoded_class` of their
# reproductions, and on {glue:text}`judge_sampled` of random points. The first number is the judge's own. What the
# reproductions add to it, or take away, is the decoder's: encoder and decoder are told the class, so a reproduction
# is pulled towards it, and a smaller error on reproductions says nothing good of the manifold. An error on a random
# point means that the label of a manifold's point can be in doubt even where no attack has been at work. Chapter 02
# therefore asks the judge about random moves beside the attack's.
#
# ## One a class, or one for all?

# %% tags=["remove-input"]
KINDS = {
    "manifold": "manifold",
    "learned": "error",
    "clipped": "error, code clipped",
    "outside": "share of codes outside",
    "judge_clean": "judge errs on images",
    "judge_decoded": "on reproductions",
}


def kinds(table):
    """A line a kind of manifold of a table."""
    own = table[(table.what == "reconstruction") & (table.label == "all")]
    return pages.table(own.assign(manifold=own.kind.map(TITLES)), KINDS)


display(kinds(rows))

# %% [markdown]
# *Errors are mean L2 distances. The encoder of one manifold for all classes must find the class in the image itself; that
# of a class is told. So the judge's errors on reproductions can be compared only with this in mind.*

# %% tags=["hide-input"] mystnb={"figure": {"caption": "One manifold for all classes, the control: two test images of each class with their reproductions, and random points, which have no class. (They stand in columns only to save room.)", "name": "fig-data"}, "image": {"alt": "Rows of small pictures: test images of each class, their reproductions, and images of random codes, some of which look like nothing in the data."}}
if (figure := mosaic(rows, "data", "points")) is not None:
    display(figure)

# %% [markdown]
# ## Published manifolds
#
# The rows below come with the book. They are not part of this page's run.

# %% tags=["remove-input"]
published = ledger.published(LearnedManifolds.experiment, LearnedManifolds.version)


def content(table):
    """What a tab shows of a published table."""
    name = setting.title(table.dataset.iloc[0])
    about = f"{training(table).capitalize()}; {table.images.iloc[0]:,} test images; {table.device.iloc[0]}."
    parts = [pages.Markdown(about), *map(pages.verdict, p.verdicts(table))]
    parts += [pages.table(by_class(table), PER_CLASS), kinds(table)]
    for part, alt in (
        (
            "points",
            f"Test images of {name}, a column a class, their reproductions, and random points of each manifold.",
        ),
        ("ways", f"Ways between two test images of each class of {name}, along the learned manifold of the class."),
    ):
        if (figure := mosaic(table, "class", part)) is not None:
            parts.append((figure, alt))
    return parts


tabs = {}
for table in published:
    again = f", EPOCHS = {table.epochs.iloc[0]}" if table.epochs.iloc[0] else ""
    tabs[f"{named(table)}{again}"] = content(table)
display(figures.tabs(tabs) if tabs else pages.Markdown("*No rows are published yet.*"))

# %% [markdown]
# ## Two sizes
#
# The decoder of the released code, called "paper" here, has {glue:text}`weights_paper` weights, the small one, which all
# pages use unless they say otherwise, {glue:text}`weights_small`. Does the size matter, or the time in training?

# %% tags=["remove-input"]
SIZES = {
    "manifold": "manifolds, one a class",
    "training": "training",
    "mean": "error of the class mean / of this",
    "linear": "error of linear / of this",
    "judge_decoded": "judge errs on reproductions",
    "judge_sampled": "on random points",
}
lines = []
for table in published:
    (row,) = table[(table.what == "reconstruction") & (table.kind == "class") & (table.label == "all")].to_dict(
        "records"
    )
    own = factors(table).set_index("label").loc["all"]
    lines.append(
        {"manifold": named(table), "training": training(table)}
        | {name: between(own, name) for name in ("mean", "linear")}
        | {name: row[name] for name in ("judge_decoded", "judge_sampled")}
    )
both = {table.dataset.iloc[0] for table in published if table.manifold.iloc[0] == "paper"}
if lines:
    display(pages.table(pd.DataFrame(lines).sort_values("manifold"), SIZES))
if not both:
    display(pages.Markdown('*No rows of the size "paper" are published yet, so the sizes cannot be compared.*'))

# %% [markdown]
# *Compare two sizes only where they were trained for as many epochs. Where they were not, the difference is that of time
# as well. Either size is trained once, so the chance of a training is in the difference too.*

# %% [markdown]
# ## Move it yourself

# %% tags=["remove-input"]
walk = learned_slider.shipped()
text = (
    "Each class of Fashion-MNIST has a decoder of its own here, and the sliders are its code $z$. Start from a test image, "
    "and see what the decoder makes of its code: the difference is what the manifold loses. Then move the code by at most "
    f"$\\eta$ = {walk.eta:g} in each entry and make the classifier err, or let the last slider take you along an attack's "
    "path. Does the picture still show its class? The nearest training images stand beside it. (Decoders and classifier "
    "come with the package; they are not those of this page's run.)"
)
display(pages.Markdown(text))
display(walk)

# %% [markdown]
# ## Where we differ from the paper
#
# Of the paper itself are the manifolds one a class, $D$ = {glue:text}`latents_paper` and $[-2, 2]^D$. Channels, epochs,
# learning rates and the weights $\beta$ stand in its released code; "paper" is only our name for that size.
#
# - **Smaller.** A small decoder has fewer channels than that of the released code; the layers are the same. MANIFOLD =
#   "paper" takes the released code's channels.
# - **Shorter.** Small manifolds are trained for whole epochs, so many that about {glue:text}`seen_class` images pass in
#   all (one for all classes: {glue:text}`seen_data`), and the learning rate falls to {glue:text}`last` of its start in that
#   time. Those of FONTS see {glue:text}`fonts_rows` different images. With MANIFOLD = "paper" and EPOCHS = 0 the numbers of
#   epochs and the rate are the released code's, and all training images count.
# - **The start.** The released code draws weights with a standard deviation of .001. Here all weights are normal with a
#   deviation that depends on the layer's width, as in the released code's classifiers.
# - **The step.** The released code takes the steps of the three networks one after the other with gradients of one
#   pass, which today's libraries refuse. Here all three gradients are taken at the same point, then all three steps.
# - **Eight bits.** The manifolds that come with the package have weights of 8 bits. Where they are used,
#   numbers are of these.
# - **MNIST instead of EMNIST.** The paper used EMNIST's digits. Where they are not at hand, MNIST stands in, with the
#   weights $\beta$ that the released code has for them.
# - **The weak ones.** The paper says that its decoders of Fashion-MNIST and CelebA are weaker than those of the others.
#   No faces are shown here: the agreement of that data set forbids handing them on.
#
# ## Exercises
#
# 1. A decoder ignores its code and makes the mean image of its class. What are the two factors of the verdicts, and what
#    does the judge say of random points? Which numbers of this page does that make worthless on their own?
#
# ````{admonition} Solution
# :class: dropdown
# The first factor is 1, the second is below 1: the linear manifold contains the mean, and more. The judge reads a mean
# image of most classes rightly, so it would keep every label, on reproductions and on random points. So the judge's
# errors say nothing alone; they count only together with the factors.
# ````
#
# 2. Where an image has a code outside $[-2, 2]^D$, chapter 02 clips the code. How many of the images would have such a
#    code if codes were standard normal in $D$ = {glue:text}`latents` dimensions? Compare with {glue:text}`outside_class`.
#
# ````{admonition} Solution
# :class: dropdown
# An entry lies within 2 with probability $p = \Phi(2) - \Phi(-2) \approx$ {glue:text}`within`, so all $D$ do with $p^D$,
# and $1 - p^D$ of the images, {glue:text}`expected_outside`, have one outside.
#
# *Fewer* is what one should expect: $\mu(x)$ is only the mean, and $\mu(x) + \sigma(x)\,\xi$ is what should be standard
# normal. Since the noise adds to the spread, $\mu(x)$ alone must be less spread.
#
# If *more* have one outside, then even $\mu(x)$ does not fit into that distribution. Nothing forces it to: the first term
# of the encoder's loss pulls each code towards it, and the second, reproduction, gains by moving codes apart. Where the
# second is strong, codes spread, or a few lie far out. Then random points, drawn from the normal distribution, leave out
# some images, and clipping moves many.
# ````
#
# 3. Why is the loss of the reproduction $\|x - \hat x\|_1$, and the comparison in $\|\cdot\|_2$? Which of the two would
#    favour the linear manifold?
#
# ````{admonition} Solution
# :class: dropdown
# Principal components minimize the squared L2 error: among linear manifolds of the dimension none is better, on the
# training images. So the comparison is made on the opponent's ground. In L1 the learned manifold, which was trained for
# it, should gain.
# ````

# %% tags=["remove-input"]
pages.provenance(p, rows)

# %% [markdown]
# Download {download}`the source of this page <../../nbs/learned_manifolds.py>`; the executed notebook is under the
# download button at the top.
