"""Text that a page computes: verdicts, tables, and how the page was made. Everything here reads rows."""

from __future__ import annotations

import json
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

ATTACK = {"": "", "paper": " with the paper's attack", "strong": " with the strong attack"}


def verdict(v: Verdict, number: str = ".4f") -> Markdown:
    """A box with the claim, its statistic with interval and threshold, and the outcome."""
    kind = v.outcome.replace(" ", "-")
    measured = (
        f"The {v.statistic} is {v.value:{number}}, with a 95 % interval from {v.low:{number}} to {v.high:{number}}."
        if math.isfinite(v.value)
        else "The rows do not hold what it needs, so there is nothing to measure."
    )
    inside, outside = ("at most", "more") if v.at_most else ("at least", "less")
    text = (
        f"{v.claim}: **{v.outcome}**. {measured} Fixed before the run: *supported* if the whole interval is {inside} "
        f"{v.threshold:g}, *not supported* if all of it is {outside}, else *undecided*."
        + (f" Here it is undecided because {v.void}." if v.void else "")
    )
    title = f"Verdict{ATTACK[v.attack]}: {v.outcome}"
    return Markdown(f":::{{admonition}} {title}\n:class: verdict {kind}\n{text}\n:::")


def verdict_table(verdicts: Sequence[tuple[str, str, Verdict]], number: str = ".3f") -> Markdown:
    """A line a claim: what the runs say of it with the paper's attack and with the strong one.

    verdicts: (runs, chapter, verdict) each; those of one claim from the same runs share a line. The claim links to its
    chapter. A statistic that rests on no attack stands in the first column of verdicts.
    """
    lines: dict[tuple[str, str, str], tuple[list[str], list[str]]] = {}
    for runs, chapter, v in verdicts:
        paper, strong = lines.setdefault((v.claim, chapter, runs), ([], []))
        (strong if v.attack == "strong" else paper).append(_cell(v, number))
    head = ["| claim | as in the paper | with the strong attack | runs |", "|---|---|---|---|"]
    body = [
        _line([f"[{claim}]({chapter}.ipynb)", "<br>".join(paper) or "-", "<br>".join(strong) or "-", runs])
        for (claim, chapter, runs), (paper, strong) in lines.items()
    ]
    return Markdown("\n".join([*head, *body]))


def outcomes(verdicts: Sequence[tuple[str, str, Verdict]]) -> Markdown:
    """What came out, at a glance: a line a claim, a column a data set; numbers are for `verdict_table`.

    verdicts: (data set, chapter, verdict) each. Outcomes of several runs or statistics stand side by side, each once;
    those with the strong attack on a line of their own. "Not measured": the rows do not hold what it needs. The claim
    links to its chapter.
    """
    names = list(dict.fromkeys(name for name, _, _ in verdicts))
    lines: dict[tuple[str, str], dict[str, tuple[dict[str, None], dict[str, None]]]] = {}
    for name, chapter, v in verdicts:
        paper, strong = lines.setdefault((v.claim, chapter), {}).setdefault(name, ({}, {}))
        (strong if v.attack == "strong" else paper)[v.outcome if math.isfinite(v.value) else "not measured"] = None
    head = [_line(["claim", *names]), f"|{'---|' * (len(names) + 1)}"]
    body = [
        _line([f"[{claim}]({chapter}.ipynb)", *(_outcomes(*found.get(name, ({}, {}))) for name in names)])
        for (claim, chapter), found in lines.items()
    ]
    return Markdown("\n".join([*head, *body]))


def _outcomes(paper: Iterable[str], strong: Iterable[str]) -> str:
    parts = [", ".join(paper), f"strong: {', '.join(strong)}" if strong else ""]
    return "<br>".join(filter(None, parts)) or "-"


def _cell(v: Verdict, number: str) -> str:
    side = "at most" if v.at_most else "at least"
    value = f"{v.value:{number}} ({v.low:{number}} to {v.high:{number}})" if math.isfinite(v.value) else "no value"
    void = f"; {v.void}" if v.void else ""
    return f"**{v.outcome}**: {v.statistic} {value}; threshold: {side} {v.threshold:g}{void}"


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
    """In a few words which points rows belong to, and where they were computed."""
    first, sizes = rows.iloc[0], sorted(set(rows["n"]))
    n = f"N = {sizes[0]:,}" if len(sizes) == 1 else f"N = {sizes[0]:,} to {sizes[-1]:,}"
    if first["dataset"] == "mixture":
        return f"{title('mixture')}, {n} samples, {first['mixtures']} random mixtures; {_devices(rows)}"
    if "seeds" not in rows:  # learned manifolds, and no networks that are attacked
        return f"{title(first['dataset'])}, {first['manifold']} manifolds, {first['images']} images; {_devices(rows)}"
    subset = first["subset"] if "subset" in rows else "first"
    size = ", manifolds of the paper's size" if "manifold" in rows and first["manifold"] == "paper" else ""
    return (
        f"{title(first['dataset'])}, {n} ({subset} rows), {first['seeds']} networks a point, "
        f"{first['images']} images{size}; {_devices(rows)}"
    )


def by_dataset(tables: Sequence[pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The first table of every data set, by the data set's name: FONTS first, the others by name."""
    first: dict[str, pd.DataFrame] = {}
    for own in tables:
        first.setdefault(title(own["dataset"].iloc[0]), own)
    return dict(sorted(first.items(), key=lambda item: (not item[0].startswith("FONTS"), item[0])))


def scope(p: Parameters, rows: pd.DataFrame) -> str:
    """In one sentence what a run covered: profile, device, seconds."""
    return f"profile {p.profile}, computed on {_devices(rows)} in {_seconds(rows):.0f} s"


def _devices(rows: pd.DataFrame) -> str:
    return " and ".join(sorted(set(rows["device"])))


def _seconds(rows: pd.DataFrame) -> float:
    """Of all points together; every row of a point names the point's seconds."""
    single = [name for name in ("network", "recipe", "n") if name in rows]
    return float(rows.groupby(single).seconds.first().sum())


def provenance(p: Parameters, rows: pd.DataFrame) -> Markdown:
    """How this page was computed: parameters, profile, device, time, versions and the command that runs it again."""
    first, fields = rows.iloc[0], type(p).model_fields
    values = p.model_dump(exclude={"device", "profile"})
    defaults = {name: fields[name].default for name in values}
    lines = ["| parameter | this run | default | meaning |", "|---|---|---|---|"]
    for name, value in values.items():
        lines.append(_line([f"`{name.upper()}`", str(value), str(defaults[name]), str(fields[name].description)]))
    larger = p.larger()
    own = {name.upper(): value for name, value in values.items() if value != defaults[name]}
    given = {name: value for name, value in own.items() if name not in larger} | larger
    plain = "".join(f" -p {name} {value}" for name, value in given.items() if not isinstance(value, list))
    lists = {name: value for name, value in given.items() if isinstance(value, list)}
    command = f"papermill nbs/{p.experiment}.py out.ipynb{plain}" + (f" -y '{json.dumps(lists)}'" if lists else "")
    text = (
        f"Profile **{p.profile}**. The rows were computed on {_devices(rows)} with torch {first['torch']} in "
        f"{_seconds(rows):.0f} seconds, by version {first['version']} of the experiment; drawing takes them as "
        f"they are. A larger run, for instance:\n\n```bash\n{command}\n```\n\n" + "\n".join(lines)
    )
    return Markdown(f"::::{{admonition}} How this page was computed\n:class: dropdown\n{text}\n::::")


def paper_values(chapter: str) -> dict[str, Any]:
    """Numbers that a paper gives, with where they stand in it: book/results/papers.yml."""
    return dict(yaml.safe_load((store.CHECKOUT / "book" / "results" / "papers.yml").read_text())[chapter])
