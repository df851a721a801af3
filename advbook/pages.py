"""Text that a page computes: verdicts, tables, and how the page was made. Everything here reads rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import yaml
from IPython.display import Markdown

from advbook import store
from advbook.experiments import Parameters
from advbook.experiments.setting import title
from advbook.ledger import Verdict


def verdict(v: Verdict, number: str = ".4f") -> Markdown:
    """A box with the claim, its statistic with interval and threshold, and the outcome."""
    kind = v.outcome.replace(" ", "-")
    measured = (
        f"The {v.statistic} is {v.value:{number}}, with a 95 % interval from {v.low:{number}} to {v.high:{number}}."
        if math.isfinite(v.value)
        else "No example counts, so there is nothing to measure."
    )
    text = (
        f"{v.claim}: **{v.outcome}**. {measured} Fixed before the run: *supported* if the whole interval is at least "
        f"{v.threshold:g}, *not supported* if all of it is less, else *undecided*."
    )
    return Markdown(f":::{{admonition}} Verdict: {v.outcome}\n:class: verdict {kind}\n{text}\n:::")


def verdict_table(verdicts: Sequence[tuple[str, Verdict]], number: str = ".4f") -> Markdown:
    """Verdicts one under the other: (where from, verdict) pairs."""
    lines = [
        "| claim | verdict | value (95 % interval) | threshold | statistic | runs |",
        "|---|---|---|---|---|---|",
    ]
    for source, v in verdicts:
        value = f"{v.value:{number}} ({v.low:{number}} to {v.high:{number}})"
        cells = [v.claim, f"**{v.outcome}**", value, f"{v.threshold:g}", v.statistic, source]
        lines.append(_line(cells))
    return Markdown("\n".join(lines))


def table(rows: pd.DataFrame, columns: Mapping[str, str], number: str = ".3f") -> Markdown:
    """Some columns of rows as a table; columns: name in the rows -> heading. Counts are whole numbers."""
    lines = [_line(columns.values()), f"|{'---|' * len(columns)}"]
    for row in rows.to_dict("records"):
        cells = (shown(row.get(name), ".0f" if name == "count" else number) for name in columns)
        lines.append(_line(cells))
    return Markdown("\n".join(lines))


def _line(cells: Iterable[str]) -> str:
    """A line of a table; pipes inside its cells do not split them."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def shown(value: object, number: str) -> str:
    """A value as text; a missing one is a dash."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "-"
    return f"{value:{number}}" if isinstance(value, float) else str(value)


def source(rows: pd.DataFrame) -> str:
    """In a few words which point rows belong to, and where they were computed."""
    first = rows.iloc[0]
    return (
        f"{title(first['dataset'])}, N = {first['n']} ({first['subset']} rows), {first['seeds']} networks, "
        f"{first['images']} images; {first['device']}"
    )


def scope(p: Parameters, rows: pd.DataFrame) -> str:
    """In one sentence what a run covered: profile, device, seconds."""
    first = rows.iloc[0]
    return f"profile {p.profile}, computed on {first['device']} in {first['seconds']:.0f} s"


def provenance(p: Parameters, rows: pd.DataFrame) -> Markdown:
    """How this page was computed: parameters, profile, device, time, versions and the command that runs it again."""
    first = rows.iloc[0]
    fields = type(p).model_fields
    lines = ["| parameter | this run | default | meaning |", "|---|---|---|---|"]
    for name, value in p.point().items():
        lines.append(f"| `{name.upper()}` | {value} | {fields[name].default} | {fields[name].description} |")
    larger = p.larger()
    own = {name.upper(): value for name, value in p.point().items() if value != fields[name].default}
    given = {name: value for name, value in own.items() if name not in larger} | larger
    flags = "".join(f" -p {name} {value}" for name, value in given.items())
    command = f"papermill nbs/{p.experiment}.py out.ipynb{flags}"
    text = (
        f"Profile **{p.profile}**. The rows were computed on {first['device']} with torch {first['torch']} in "
        f"{first['seconds']:.0f} seconds, by version {first['version']} of the experiment; drawing takes them as "
        f"they are. A larger run, for instance:\n\n```bash\n{command}\n```\n\n" + "\n".join(lines)
    )
    return Markdown(f"::::{{admonition}} How this page was computed\n:class: dropdown\n{text}\n::::")


def paper_values(chapter: str) -> dict[str, Any]:
    """Numbers that a paper gives, with where they stand in it: book/results/papers.yml."""
    return dict(yaml.safe_load((store.CHECKOUT / "book" / "results" / "papers.yml").read_text())[chapter])
