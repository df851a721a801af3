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
# # How fast is it
#
# The grids of the papers are thousands of small networks, trained and attacked again and again. So speed decides what
# can be re-run at all. This page compares the book's attack with the libraries that people use, says how much of the
# machine it uses, and works out what a whole grid would take.
#
# **What is compared.** Projected gradient ascent under the $L_\infty$ norm, on FONTS: random starts in the ball, steps
# along the sign of the gradient of $2.5\,\epsilon/\text{steps}$, several restarts. All attacks get the same network, the
# same images (those that the network gets right), and the same budget. The network's weights ask for no gradient, since
# some libraries would compute it too. The *textbook loop* takes all images through all steps of all restarts. One
# network was trained normally. The other was trained against the papers' attack (Adam, on half of every batch), and is
# attacked with the $\epsilon$ at which the attack succeeds on about half of the images: there, stopping at the first
# success saves less. The libraries climb the cross-entropy, the book's attack its log-odds: both have the same signs,
# but those of the log-odds do not vanish where the network is sure.
#
# **How it is counted.** Success is judged here and not by the library: the returned image must lie in the ball and in
# $[0, 1]$, and the network must err on it. *Samples per image* are images sent through the network, over images
# attacked; this number does not depend on the machine. *Seconds* are the best of several runs, all attacks in turn.
# "Batch norm folded" and "banded" are other forms of the same network, which the book's attack can use. A banded form
# in bfloat16 only leads the attack: the network itself confirms every success, and both are counted.

# %% tags=["parameters"]
VERSION: int = 1  # of the measurement: rows of other versions are left out

# %% tags=["remove-cell"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

from advbook import figures, ledger, pages

machines = ledger.published("speed", VERSION)


def of(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    return rows[rows.what == what]


def machine(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return f"{first.device} ({first.processor}, {first.cores} cores)"


def told(rows: pd.DataFrame) -> str:
    """What the attacks' rows say, in sentences."""
    first, attacks = rows.iloc[0], of(rows, "attack")
    lines = [
        f"**{machine(rows)}**, torch {first.torch}. The networks were trained on N = {first.n} images for {first.epochs} "
        f"epochs; the attacks take {first.steps} steps and {first.restarts} restarts. The whole measurement took "
        f"{first.seconds:.0f} seconds."
    ]
    for network, group in attacks.groupby("network", sort=False):
        own = group[group.attack == "advbook"].iloc[0]
        line = (
            f"On the network with {network} training ($\\epsilon$ = {own.eps:g}, {own['count']:.0f} images), the book's "
            f"attack succeeds on {own.success:.1%} and needs {own.forwards:.1f} samples per image."
        )
        libraries = group[group.library.notna()]
        if len(libraries):
            fewest, fastest = libraries.loc[libraries.forwards.idxmin()], libraries.loc[libraries.ratio.idxmin()]
            best = group[group.attack.str.startswith("advbook")].sort_values("best_seconds").iloc[0]
            line += (
                f" Of the libraries, {fewest.attack} needs the fewest samples, {fewest.forwards:.1f}; the fastest is "
                f"{fastest.attack}, which takes {fastest.ratio:.2f} times the seconds of the book's attack with the same "
                f"network. The fastest form of the book's attack ({best.attack.removeprefix('advbook, ')}) takes "
                f"{best.best_seconds / fastest.best_seconds:.2f} times the seconds of {fastest.attack}."
            )
        lines.append(line)
    return "\n\n".join(lines)


if not machines:
    text = "*No rows are published yet: `make bench` makes them, and this page draws them.*"
elif all(rows.device.iloc[0].startswith("CPU") for rows in machines):
    text = (
        "**What was not measured.** No run on a GPU is among the rows. There the same command measures the same things."
    )
else:
    text = ""

# %% tags=["remove-input"]
for rows in machines:
    display(pages.Markdown(told(rows)))
display(pages.Markdown(text))

# %% tags=["remove-input"] mystnb={"figure": {"caption": "Samples per image and seconds of every attack, on both networks; shorter is better. A panel a machine.", "name": "fig-speed"}, "image": {"alt": "Horizontal bars, two for each attack: one for the normally trained and one for the adversarially trained network. On the left samples per image, on the right seconds."}}
if machines:
    with figures.look():
        figure, grid = plt.subplots(
            len(machines), 2, figsize=(8, 3.6 * len(machines)), sharey="row", squeeze=False, layout="constrained"
        )
        for line, rows in zip(grid, machines, strict=True):
            for axes, (quantity, label) in zip(
                line, {"forwards": "samples per image", "best_seconds": "seconds"}.items(), strict=True
            ):
                groups = of(rows, "attack").groupby("network", sort=False)
                for place, ((network, group), colour) in enumerate(zip(groups, ("#56b4e9", "#d55e00"), strict=True)):
                    y = np.arange(len(group)) + 0.4 * place - 0.2
                    axes.barh(y, group[quantity], height=0.4, color=colour, label=f"{network} training")
                axes.set(xlabel=label)
            line[0].set_yticks(range(len(group)), group.attack)
            line[0].invert_yaxis()
            line[0].set_title(rows.device.iloc[0], loc="left", fontsize=10)
        figure.legend(*line[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    display(figure)

# %% tags=["remove-input"]
for rows in machines:
    for network, group in of(rows, "attack").groupby("network", sort=False):
        attacks = group.assign(
            attack=group.attack + group.library.map(" {}".format, na_action="ignore").fillna(""),
            success=group.success.map("{:.1%}".format),
            forwards=group.forwards.map("{:.1f}".format),
        )
        columns = {
            "attack": "attack",
            "success": "success",
            "forwards": "samples per image",
            "best_seconds": "seconds",
            "ratio": "ratio to the book's",
        }
        display(pages.Markdown(f"**{network.capitalize()} training**, {rows.device.iloc[0]}:"))
        display(pages.table(attacks, columns, number=".2f"))

# %% [markdown]
# ## Steps
#
# The unit of all attacks is one forward pass with the gradient by the input. The table gives images a second, for that
# alone and inside the papers' attacks (Adam, every restart to its end, all bookkeeping included; the on-manifold attack
# also goes through the decoder). The shares compare the useful floating-point operations of the network with what this
# machine reaches in products of large matrices, measured in the same run. What a banded form computes beyond that does
# not count as useful. A machine that others use too is not equally fast at all times: a bare gradient that is no faster
# than the attack around it shows how much that can be.

# %% tags=["remove-input"]
for rows in machines:
    matrix = of(rows, "matrix").set_index("dtype").gflops
    reached = ", ".join(f"{rate:,.0f} GFLOP/s in {dtype}" for dtype, rate in matrix.items())
    steps = of(rows, "rate").assign(
        rate=lambda t: t.rate.map("{:,.0f}".format),
        **{
            name: of(rows, "rate")[name].map("{:.1%}".format, na_action="ignore")
            for name in ("share_float32", "share_bfloat16")
        },
    )
    columns = {
        "part": "part",
        "form": "network",
        "rate": "images a second",
        "gflops": "useful GFLOP/s",
        "share_float32": "of float32 products",
        "share_bfloat16": "of bfloat16 products",
    }
    display(pages.Markdown(f"**{machine(rows)}**: products of matrices reach {reached}."))
    display(pages.table(steps, columns, number=",.1f"))

# %% [markdown]
# ## Training
#
# Batches a second, counted over all networks, when the networks of several seeds are trained one after the other and
# when they are trained as one fleet. Adversarial training has the papers' attack inside, on half of every batch. The
# rate is that of a second epoch: a long run sets up only once.

# %% tags=["remove-input"]
for rows in machines:
    display(pages.Markdown(f"**{machine(rows)}**, {rows.members.iloc[0]} networks."))
    columns = {"recipe": "training", "how": "networks", "rate": "batches a second"}
    display(pages.table(of(rows, "training"), columns, number=",.1f"))

# %% [markdown]
# ## A whole grid, extrapolated
#
# The grid of {cite:t}`stutz2019disentangling` on FONTS has all its training sizes and seeds and five recipes, four of
# them with an attack inside, and attacks every network off and on the manifold. All four are counted at the rate of the
# attack in pixels; through a decoder or a transformation it is a little lower. Nobody ran the grid here: the hours are the number of batches, and of images shown by the
# attacks, over the rates measured above. Every attack runs to its end, so attacks that stop at the first success need
# less. "Fastest" takes the fastest form and the faster way of training; the other line takes plain networks, one at a
# time.

# %% tags=["remove-input"]
for rows in machines:
    hours = of(rows, "extrapolation")
    hours = hours.assign(amount=hours.amount.map("{:,.0f}".format, na_action="ignore"))
    columns = {"how": "how", "part": "part", "amount": "batches or images", "rate": "a second", "hours": "hours"}
    display(pages.Markdown(f"**{machine(rows)}**, extrapolated."))
    display(pages.table(hours, columns, number=",.1f"))

# %% [markdown]
# To measure another machine, run `make bench` there. It installs the libraries beside the book, measures, prints these
# tables, and keeps the rows in `book/results/speed`. Download
# {download}`the source of this page <../../nbs/speed.py>`.
