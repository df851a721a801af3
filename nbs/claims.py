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
# the attack than about the network. A dash means that the statistic has no such form.

# %% tags=["parameters"]
ROWS: list = []  # row files of this build, relative to the ledger's folder; none: all that were ever computed here

# %% tags=["remove-input"]
from IPython.display import display

from advbook import chapters, ledger, pages, store

home = store.home()
places = [home / name for name in ROWS] or sorted((home / "rows").rglob("*.json"))
built = [table for table in map(ledger.read, places) if table is not None]
outdated = 0
for title in ("## This build", "## Rows that come with the book"):
    lines = []
    for name, chapter in chapters.CHAPTERS.items():
        if title == "## This build":
            tables = [table for table in built if table.experiment.iloc[0] == name]
            tables = [table for table in tables if table.version.iloc[0] == chapter.version]
        else:
            tables = ledger.published(name, chapter.version)
            outdated += ledger.outdated(name, chapter.version)
        for rows in chapter.grids(tables):
            lines += [(pages.source(rows), name, verdict) for verdict in chapter.verdicts(rows)]
    display(pages.Markdown(title))
    display(pages.verdict_table(lines) if lines else pages.Markdown("None yet."))
if outdated:
    display(pages.Markdown(f"Left out: {outdated} published points that an older version of the code computed."))
