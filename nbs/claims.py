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
# fixed before the run. *Supported* means that the whole interval reaches the threshold, *not supported* that none of
# it does, *undecided* that it lies across. A claim that fails here fails in our runs: other fonts, smaller budgets,
# one machine.

# %% tags=["parameters"]
ROWS: list = []  # row files of this build, relative to the ledger's folder; none: all that were ever computed here

# %% tags=["remove-input"]
from IPython.display import display

from advbook import chapters, ledger, pages, store

home = store.home()
places = [home / name for name in ROWS] or sorted((home / "rows").rglob("*.json"))
for title, tables in (
    ("## This build", [table for table in map(ledger.read, places) if table is not None]),
    (
        "## Rows that come with the book",
        [table for name, chapter in chapters.CHAPTERS.items() for table in ledger.published(name, chapter.version)],
    ),
):
    lines = []
    for table in tables:
        chapter = chapters.CHAPTERS[table.experiment.iloc[0]]
        lines += [(pages.source(table), verdict) for verdict in chapter.verdicts(table)]
    display(pages.Markdown(title))
    display(pages.verdict_table(lines) if lines else pages.Markdown("None yet."))
