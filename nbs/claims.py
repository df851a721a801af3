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
# # The claims and their verdicts
#
# Every line is computed from rows of the ledger: a statistic with its 95 % interval, against a threshold that was
# fixed before the run. *Supported* means that the whole interval is on the claim's side of the threshold, *not
# supported* that none of it is, *undecided* that it lies across. A claim that fails here fails in our runs: other
# fonts, smaller budgets, one machine.
#
# Many claims were first tested with an attack that is weak by today's standard. Their verdicts stand twice: with the
# attack as the paper runs it, and with a strong one. A verdict that does not survive the strong attack says more about
# the attack than about the network. A dash means that the statistic has no such form, or that there are no rows.
#
# Each table has a line a claim and a column a data set. Where several runs or statistics belong to one place, all their
# outcomes stand there; *not measured* means that the rows do not hold what the statistic needs. The numbers, and what
# was run, are in the box below each table.

# %% tags=["parameters"]
ROWS: list = []  # row files of this build, relative to the ledger's folder; none: all that were ever computed here

# %% tags=["remove-input"]
from IPython.display import display

from advbook import chapters, ledger, pages, store
from advbook.experiments import setting

LEARNED = "learned_manifolds"  # no claim of a paper, but what those on real images rest on: a part of its own
home = store.home()
places = [home / name for name in ROWS] or sorted((home / "rows").rglob("*.json"))
built = [table for table in map(ledger.read, places) if table is not None]


def tables(name: str, published: bool) -> list:
    """Rows of a chapter, of the version of the code that there is."""
    version = chapters.CHAPTERS[name].version
    if published:
        return ledger.published(name, version)
    own = [table for table in built if table.experiment.iloc[0] == name]
    return [table for table in own if table.version.iloc[0] == version]


def shown(names: list, published: bool) -> None:
    """A table of outcomes a chapter, and the numbers in a box below it."""
    found = False
    for name in names:
        grids = chapters.CHAPTERS[name].grids(tables(name, published))
        grids = [
            own for title in pages.by_dataset(grids) for own in grids if setting.title(own.dataset.iloc[0]) == title
        ]
        lines = [(rows, verdict) for rows in grids for verdict in chapters.CHAPTERS[name].verdicts(rows)]
        if lines:
            found = True
            of_data = [(setting.title(rows.dataset.iloc[0]), name, verdict) for rows, verdict in lines]
            of_runs = [(pages.source(rows), name, verdict) for rows, verdict in lines]
            claims = list(dict.fromkeys(verdict.claim for _, verdict in lines))
            numbers = pages.verdict_table(sorted(of_runs, key=lambda line: claims.index(line[2].claim))).data
            box = f"::::{{admonition}} The numbers\n:class: dropdown\n{numbers}\n::::"
            display(pages.Markdown(f"{{doc}}`{name}`\n\n{pages.outcomes(of_data).data}\n\n{box}"))
    if not found:
        display(pages.Markdown("None yet."))


PAPERS = [name for name in chapters.CHAPTERS if name != LEARNED]

# %% [markdown]
# ## This build

# %% tags=["remove-input"]
shown(PAPERS, published=False)

# %% [markdown]
# ## Rows that come with the book

# %% tags=["remove-input"]
shown(PAPERS, published=True)
outdated = sum(ledger.outdated(name, chapter.version) for name, chapter in chapters.CHAPTERS.items())
if outdated:
    display(pages.Markdown(f"Left out: {outdated} published points that an older version of the code computed."))

# %% [markdown]
# ## Learned manifolds
#
# On real images, verdicts on the manifold rest on a learned one. These verdicts are on the learned manifolds themselves,
# from rows of this build and those that come with the book. They rest on no attack.

# %% tags=["remove-input"]
for published in (False, True):
    display(pages.Markdown("*Rows that come with the book:*" if published else "*This build:*"))
    shown([LEARNED], published)
