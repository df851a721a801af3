"""Runs chapters: checks a profile's parameters before a kernel starts, executes, and tidies what is published.

`python -m advbook.chapters --help` lists the commands; the Snakefile calls them.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

import nbformat
import numpy as np
import papermill
import yaml
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from advbook import files, ledger, notebooks, store
from advbook.experiments import ParameterError, Parameters, device_name, did_you_mean
from advbook.experiments.ccat import CCAT
from advbook.experiments.gaussian_mixture import GaussianMixture
from advbook.experiments.generalization import GeneralizationLink
from advbook.experiments.independence import Independence
from advbook.experiments.learned_manifolds import LearnedManifolds
from advbook.experiments.off_manifold import OffManifold
from advbook.experiments.on_manifold import OnManifold

CHAPTERS: dict[str, type[Parameters]] = {
    chapter.experiment: chapter
    for chapter in (OffManifold, OnManifold, GeneralizationLink, Independence, CCAT, GaussianMixture, LearnedManifolds)
}
PAGES = (*CHAPTERS, "claims", "speed")  # the notebooks of nbs/, in the order of the book
PROFILES = store.CHECKOUT / "nbs" / "profiles"
Plan = dict[str, list[Parameters]]


def plan(profile: str, overrides: Mapping[str, Any] | None = None) -> Plan:
    """The entries of every chapter under a profile, each a point or a grid; a chapter's page is drawn from the first.

    overrides: parameters in capitals, for every chapter that has them; a data set for those that can read it. Raises
    ParameterError in one sentence.
    """
    entries = _profile(profile)
    overrides = dict(overrides or {})
    for name in overrides:
        known = {field.upper() for chapter in CHAPTERS.values() for field in chapter.model_fields}
        if name not in known:
            raise ParameterError(f"Unknown parameter {name}: {did_you_mean(name, sorted(known))}")
    made: Plan = {}
    for name, chapter in CHAPTERS.items():
        own = {key: value for key, value in overrides.items() if key.lower() in chapter.model_fields}
        if not _reads(chapter, own.get("DATASET")) and any(_reads(c, own["DATASET"]) for c in CHAPTERS.values()):
            del own["DATASET"]  # another chapter reads it; this one stays with its own
        given = entries.get(name, [{}])
        if "DATASET" in own:  # one data set was named: its own entries, or the first one with it in place of another
            default = chapter.model_fields["dataset"].default
            given = [entry for entry in given if entry.get("DATASET", default) == own["DATASET"]] or given[:1]
        made[name] = [chapter.of({**entry, "PROFILE": profile, **own}) for entry in given]
        if not own and len(points(made[name])) < sum(len(entry.points()) for entry in made[name]):
            raise ParameterError(f"Profile {profile} is not allowed: two entries of {name} name the same point.")
    return made


def _reads(chapter: type[Parameters], dataset: object) -> bool:
    """Whether a chapter knows a data set; None, if none was named, counts as known."""
    return dataset is None or dataset in get_args(chapter.model_fields["dataset"].annotation)


def points(entries: Sequence[Parameters]) -> list[Parameters]:
    """The points of a chapter's entries, each once: a parameter that is overridden can make two of them one."""
    return list({_row_file(point): point for entry in entries for point in entry.points()}.values())


def row_files(entries: Sequence[Parameters]) -> list[Path]:
    """Where the rows of all points of a chapter's entries belong, in the order of the points."""
    return [_row_file(point) for point in points(entries)]


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
    try:
        content = yaml.safe_load((PROFILES / f"{name}.yml").read_text()) or {}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ParameterError(f"Profile {name}.yml is not allowed: it is not valid YAML ({reason}).") from None
    if not isinstance(content, dict):
        raise ParameterError(f"Profile {name}.yml is not allowed: it should name chapters, each with its entries.")
    for chapter, entries in content.items():
        if chapter not in CHAPTERS:
            raise ParameterError(
                f"Unknown chapter {chapter} in {name}.yml: {did_you_mean(str(chapter), list(CHAPTERS))}"
            )
        if not (isinstance(entries, list) and entries and all(map(_is_entry, entries))):
            raise ParameterError(
                f"Chapter {chapter} in {name}.yml is not allowed: it should be a list of one or more entries, "
                "each {PARAMETER: value, ...}."
            )
    return content


def _is_entry(given: Any) -> bool:
    return isinstance(given, dict) and all(isinstance(name, str) for name in given)


def _row_file(point: Parameters) -> Path:
    return ledger.path(point.experiment, point.version, point.point())


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
        ("missing", "say of which points there are no rows yet, and what they will cost"),
        ("rows", "compute the rows of a chapter's page, or of one point, where they are missing"),
        ("page", "execute a chapter and write its page to book/chapters"),
        ("publish", "copy the rows of a profile's points to book/results, without per-image arrays"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--profile", default="quick", help="a file of nbs/profiles (default: %(default)s)")
        command.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
        if name in ("rows", "page"):
            command.add_argument("page", choices=PAGES if name == "page" else list(CHAPTERS))
        if name == "rows":
            command.add_argument("--index", type=int, help="which point of the profile (default: all of the page)")
            command.add_argument("--gpus", default="", help="GPUs, as in 0,1: take the first that is free")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, or 1 after one sentence on standard error."""
    given = _arguments().parse_args(arguments)
    try:
        planned = plan(given.profile, {name: _value(name, value) for name, value in given.p})
        if given.command == "check":
            if any(name == "DATASET" for name, _ in given.p):  # named, so its data must be there
                for entry in (entry for entries in planned.values() for entry in entries):
                    entry.check_data()
        elif given.command == "missing":
            _print_missing(planned)
        elif given.command == "rows":
            wanted = _chosen(planned[given.page], given.index)
            with _free_gpu(given.gpus):
                run(given.page, wanted.injected(), None)
        elif given.command == "page":
            run(
                given.page,
                _page_parameters(given.page, planned),
                store.CHECKOUT / "book" / "chapters" / f"{given.page}.ipynb",
            )
        else:
            if given.profile == "tiny":
                raise ParameterError("Profile tiny is for tests: its numbers mean nothing, and it is never published.")
            return _publish(planned)
    except (PapermillExecutionError, DeadKernelError, OSError, ValueError) as error:
        print(f"advbook: {_sentence(error)}", file=sys.stderr)
        return 1
    return 0


def _value(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ParameterError(f"Parameter {name} = {text!r} is not allowed: it is not valid YAML.") from None


def _chosen(entries: Sequence[Parameters], index: int | None) -> Parameters:
    if index is None:
        return entries[0]
    found = points(entries)
    if not 0 <= index < len(found):
        raise ParameterError(f"--index {index} is not allowed: the profile has points 0 to {len(found) - 1}.")
    return found[index]


def _page_parameters(page: str, planned: Plan) -> dict[str, Any]:
    if page in planned:
        return planned[page][0].injected()
    if page != "claims":  # drawn from published rows alone
        return {}
    shown = [path for entries in planned.values() for path in row_files(entries[:1])]
    return {"ROWS": [str(path.relative_to(store.home())) for path in shown]}


def _publish(planned: Plan) -> int:
    missing = 0
    for name, entries in planned.items():
        for path in row_files(entries):
            if ledger.read(path) is None:
                print(f"advbook: {name} has no rows {path.name} yet; compute them first.", file=sys.stderr)
                missing += 1
            else:
                print(ledger.publish(path, name).relative_to(store.CHECKOUT))
    return min(missing, 1)


@contextmanager
def _free_gpu(names: str) -> Iterator[None]:
    """Hold the first of these GPUs that no other job on this machine holds, and let kernels see it alone.

    Waits until one is free. names: as in CUDA_VISIBLE_DEVICES; none: nothing is held, and kernels see all.
    """
    store.home().mkdir(parents=True, exist_ok=True)
    for name in cycle(names.split(",")) if names else ():
        try:
            with FileLock(store.home() / f"gpu-{name}-{platform.node()}.lock", blocking=False):
                os.environ["CUDA_VISIBLE_DEVICES"] = name
                yield
                return
        except Timeout:
            time.sleep(0.2)
    yield


def _print_missing(planned: Plan) -> None:
    everything: list[float | None] = []
    for name, entries in planned.items():
        known = _known(CHAPTERS[name])
        missing = [point for point in points(entries) if ledger.read(_row_file(point)) is None]
        costs = [_seconds(point, known) for point in missing]
        print(f"{name}: {len(costs)} of {len(points(entries))} points missing{_cost(costs)}.")
        everything += costs
    print(f"All chapters: {len(everything)} points missing{_cost(everything)}.")
    if any(everything):
        print("One job after another, judged by rows of other N on the same kind of device.")


def _cost(costs: Sequence[float | None]) -> str:
    known = [cost for cost in costs if cost is not None]
    parts = [f"about {sum(known) / 60:,.1f} minutes"] if known else []
    if len(known) < len(costs):
        parts.append(f"no estimate for {len(costs) - len(known)} of them" if known else "no estimate")
    return "".join(f", {part}" for part in parts)


def _known(chapter: type[Parameters]) -> list[Mapping[Any, Any]]:
    """What the rows of each point of a chapter share, their seconds among it: rows computed here and published ones."""
    own = map(ledger.read, sorted((store.home() / "rows" / chapter.experiment).glob("*.json")))
    tables = [*own, *ledger.published(chapter.experiment, chapter.version)]
    shared = [table.iloc[0].to_dict() for table in tables if table is not None and len(table)]
    return [one for one in shared if one["version"] == chapter.version]


def _seconds(point: Parameters, known: Sequence[Mapping[Any, Any]]) -> float | None:
    """What a point will cost by the seconds of points that differ from it in N and data alone; None without any.

    A line through their N and seconds, or with one N in proportion to it.
    """
    own, device = point.point(), device_name(point.torch_device()).split(",")[0]
    fixed = own.keys() - {"dataset", "subset", "n"}
    alike = [one for one in known if one["device"].split(",")[0] == device]
    alike = [one for one in alike if all(one.get(name) == own[name] for name in fixed)]
    alike = [one for one in alike if one["dataset"] == own["dataset"]] or alike
    if not alike:
        return None
    n, seconds = (np.array([one[name] for one in alike], dtype=float) for name in ("n", "seconds"))
    if len(set(n)) == 1:
        return float(seconds.mean() * own["n"] / n[0])
    slope, base = np.polyfit(n, seconds, 1)
    return float(max(base + slope * own["n"], seconds.min()))


if __name__ == "__main__":
    sys.exit(main())
