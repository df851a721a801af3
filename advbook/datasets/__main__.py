"""`python -m advbook.datasets`: list the data sets, fetch them, verify what is here."""

import argparse
import sys
from collections.abc import Sequence

from advbook.datasets import loading, official, sources
from advbook.datasets.register import CORRUPTED, DATASETS
from advbook.datasets.verification import verify


def _list(_: Sequence[str]) -> int:
    places = sources.places(None)
    print(f"data folder: {places.label}\ncache: {places.cache}\n\n{'name':17}{'images':18}{'here':13}title")
    for name, dataset in DATASETS.items():
        counts = " + ".join(str(part.count) for part in dataset.splits.values())
        splits = [split for split, part in dataset.splits.items() if sources.ready(dataset, part.files, places)]
        print(f"{name:17}{counts:18}{', '.join(splits) or '-':13}{dataset.title}")
    for name, family in CORRUPTED.items():
        times = [len(family.corruptions), *([family.severities] if family.severities > 1 else []), family.count]
        found = len(official.corruptions_available(name))
        here = f"{found} of {len(family.corruptions)}" if found else "-"
        print(f"{name:17}{' x '.join(map(str, times)):18}{here:13}{family.title}")
    print(
        "\nTo get one: python -m advbook.datasets fetch NAME, or put its files into a folder that ADVBOOK_DATA names."
    )
    return 0


def _every() -> tuple[str, ...]:
    return (*DATASETS, *CORRUPTED)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        sources.known("data set", name, dict.fromkeys(_every()))


def _fetch(names: Sequence[str]) -> int:
    places = sources.places(None)
    _check_names(names)
    for name in names:
        if name in CORRUPTED:
            print(f"{name}: {CORRUPTED[name].archive} ({official.weight(CORRUPTED[name])})")
            official.fetch(name, places)
            if _verify([name]) != 0:
                return 1
        else:
            for split, part in DATASETS[name].splits.items():
                loading.read(name, split, 1, places, download=True)
                print(f"{name} {split}: {part.count} images, every file verified")
    return 0


def _verify(names: Sequence[str]) -> int:
    places = sources.places(None)
    _check_names(names)
    reports = {}
    for name in names or _every():
        reports[name] = verify(name, places)
        print(f"{name:17}{reports[name].state:9}{reports[name].detail}".rstrip())
    return 1 if any(report.state == "damaged" for report in reports.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m advbook.datasets",
        description="List the data sets of real images, fetch them, or verify those that are here.",
    )
    parser.set_defaults(run=_list, names=[])
    commands = parser.add_subparsers(metavar="COMMAND")
    commands.add_parser("list", help="say which data sets there are and which are here (the default)")
    names = f"one of {', '.join(_every())}"
    fetch = commands.add_parser(
        "fetch",
        help="download what is missing and verify all of it",
        description="Download what is missing and verify all of it. "
        "The archives of corruptions are kept whole in the cache: that of cifar10_c has "
        f"{official.weight(CORRUPTED['cifar10_c']).split(',')[0]}.",
    )
    fetch.add_argument("names", nargs="+", metavar="NAME", help=names)
    fetch.set_defaults(run=_fetch)
    check = commands.add_parser(
        "verify",
        help="read every file that is here and compare it with the published one",
        description="Read every file that is here and say of each data set whether it is intact, missing or damaged. "
        "The exit status is 1 if any is damaged.",
    )
    check.add_argument("names", nargs="*", metavar="NAME", help=f"{names}; all of them by default")
    check.set_defaults(run=_verify)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options.names)
    except (OSError, ValueError) as error:
        print(f"advbook.datasets: {error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
