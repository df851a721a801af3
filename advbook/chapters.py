"""Runs chapters: checks a profile's parameters before a kernel starts, executes, and tidies what is published.

`python -m advbook.chapters --help` lists the commands; the Snakefile calls them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from advbook import files, ledger, notebooks, store
from advbook.experiments import ParameterError, Parameters, did_you_mean
from advbook.experiments.off_manifold import OffManifold

CHAPTERS: dict[str, type[Parameters]] = {chapter.experiment: chapter for chapter in (OffManifold,)}
PAGES = (*CHAPTERS, "claims", "speed")  # the notebooks of nbs/, in the order of the book
PROFILES = store.CHECKOUT / "nbs" / "profiles"
Plan = dict[str, list[Parameters]]


def plan(profile: str, overrides: Mapping[str, Any] | None = None) -> Plan:
    """The points of every chapter under a profile; a chapter's page is drawn from the first.

    overrides: parameters in capitals, for every chapter that has them. Raises ParameterError in one sentence.
    """
    points = _profile(profile)
    overrides = dict(overrides or {})
    for name in overrides:
        known = {field.upper() for chapter in CHAPTERS.values() for field in chapter.model_fields}
        if name not in known:
            raise ParameterError(f"Unknown parameter {name}: {did_you_mean(name, sorted(known))}")
    made: Plan = {}
    for name, chapter in CHAPTERS.items():
        own = {key: value for key, value in overrides.items() if key.lower() in chapter.model_fields}
        made[name] = [chapter.of({**point, "PROFILE": profile, **own}) for point in points.get(name, [{}])]
        if "DATASET" in own:
            made[name] = made[name][:1]  # one data set was named: the profile's others are not asked for
    return made


def row_files(points: Sequence[Parameters]) -> list[Path]:
    """Where the rows of points belong."""
    return [ledger.path(p.experiment, p.version, p.point()) for p in points]


def run(page: str, parameters: Mapping[str, Any], output: Path | None) -> None:
    """Execute a notebook of nbs/ and, if it is complete, put it in its place; without output, its compute cells
    alone.

    Raises PapermillExecutionError if a cell fails and DeadKernelError if the kernel dies; nothing is published then.
    """
    notebook = notebooks.read(store.CHECKOUT / "nbs" / f"{page}.py")
    if output is None:
        notebook.cells = [
            cell for cell in notebook.cells if {"parameters", "compute"} & set(cell.metadata.get("tags", []))
        ]
    bar = sys.stderr.isatty()
    done = papermill.execute_notebook(
        notebook,
        None,
        dict(parameters),
        kernel_name="python3",
        progress_bar=bar,
        stderr_file=sys.stderr,
        cwd=str(store.CHECKOUT),
    )
    if output is not None:
        files.write(output, nbformat.writes(tidy(done)).encode())


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook without what a reader does not need: papermill's stamps, progress bars, the injected
    cell's input.
    """
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            tags.append("remove-cell")
        if "parameters" in tags:
            tags.append("hide-input")
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def _profile(name: str) -> dict[str, list[dict[str, Any]]]:
    known = sorted(path.stem for path in PROFILES.glob("*.yml"))
    if name not in known:
        raise ParameterError(f"Unknown profile {name}: {did_you_mean(name, known)}")
    content = yaml.safe_load((PROFILES / f"{name}.yml").read_text()) or {}
    for chapter in content:
        if chapter not in CHAPTERS:
            raise ParameterError(f"Unknown chapter {chapter} in {name}.yml: {did_you_mean(chapter, list(CHAPTERS))}")
    return dict(content)


def _sentence(error: Exception) -> str:
    if isinstance(error, PapermillExecutionError):
        expected = error.ename in {"ParameterError", "MissingData", "DamagedData", "OSError"}
        return str(error.evalue) if expected else f"{error.ename}: {error.evalue}"
    if isinstance(error, DeadKernelError):
        return (
            "The kernel died (out of memory, or killed). Run the command again: all that was finished before is kept."
        )
    return str(error)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m advbook.chapters", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("check", "check a profile and parameters, and that named data are there; computes nothing"),
        ("point", "compute the rows of one point of a chapter"),
        ("page", "execute a chapter and write its page to book/chapters"),
        ("publish", "copy the rows of a profile's points to book/results, without per-image arrays"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--profile", default="quick", help="a file of nbs/profiles (default: %(default)s)")
        command.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
        if name in ("point", "page"):
            command.add_argument("page", choices=PAGES if name == "page" else list(CHAPTERS))
        if name == "point":
            command.add_argument("--index", type=int, default=0, help="which point of the profile (default: the first)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, or 1 after one sentence on standard error."""
    given = _arguments().parse_args(arguments)
    try:
        points = plan(given.profile, {name: _value(name, value) for name, value in given.p})
        if given.command == "check":
            if any(name == "DATASET" for name, _ in given.p):  # named, so its data must be there
                for p in (p for chapter in points.values() for p in chapter):
                    p.check_data()
        elif given.command == "point":
            run(given.page, _point(points[given.page], given.index).injected(), None)
        elif given.command == "page":
            run(
                given.page,
                _page_parameters(given.page, points),
                store.CHECKOUT / "book" / "chapters" / f"{given.page}.ipynb",
            )
        else:
            if given.profile == "tiny":
                raise ParameterError("Profile tiny is for tests: its numbers mean nothing, and it is never published.")
            return _publish(points)
    except (PapermillExecutionError, DeadKernelError, OSError, ValueError) as error:
        print(f"advbook: {_sentence(error)}", file=sys.stderr)
        return 1
    return 0


def _value(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ParameterError(f"Parameter {name} = {text!r} is not allowed: it is not valid YAML.") from None


def _point(points: Sequence[Parameters], index: int) -> Parameters:
    if not 0 <= index < len(points):
        raise ParameterError(f"--index {index} is not allowed: the profile has points 0 to {len(points) - 1}.")
    return points[index]


def _page_parameters(page: str, points: Plan) -> dict[str, Any]:
    if page in points:
        return points[page][0].injected()
    if page != "claims":  # drawn from published rows alone
        return {}
    return {
        "ROWS": [str(path.relative_to(store.home())) for chapter in points.values() for path in row_files(chapter[:1])]
    }


def _publish(points: Plan) -> int:
    missing = 0
    for name, chapter in points.items():
        for path in row_files(chapter):
            if ledger.read(path) is None:
                print(f"advbook: {name} has no rows {path.name} yet; compute them first.", file=sys.stderr)
                missing += 1
            else:
                print(ledger.publish(path, name).relative_to(store.CHECKOUT))
    return min(missing, 1)


if __name__ == "__main__":
    sys.exit(main())
