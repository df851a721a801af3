"""Whether the files of a data set that are here are the published ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tqdm import tqdm

from advbook.datasets import official, sources
from advbook.datasets.register import CORRUPTED, DATASETS, Dataset, File
from advbook.datasets.sources import DamagedData, Places


@dataclass(frozen=True)
class Report:
    """What was found of a data set; `detail`: one line for people, empty where there is no more to say."""

    state: Literal["intact", "missing", "damaged"]
    detail: str = ""


def verify(name: str, at: Places) -> Report:
    """Read all files of a data set, or of a set of corruptions, that are here, and compare them with the published.

    A data set is damaged if any file is, missing if any is not there, and else intact. A file that belongs to another
    data set with the same paths is not there.
    """
    return _corrupted(name, at) if name in CORRUPTED else _files(name, at)


def _files(name: str, at: Places) -> Report:
    dataset = DATASETS[name]
    where = {file: sources.place(dataset, file, at) for file in dataset.files}
    packed = [file for file, path in where.items() if sources.is_packed(path, file)]
    loose = {file: path for file, path in where.items() if path is not None and file not in packed}
    missing = [file for file, path in where.items() if path is None]
    damaged = []
    with tqdm(desc=name, total=sum(f.size for f in where), unit="B", unit_scale=True, leave=False) as bar:
        for file, path in loose.items():
            if not sources.same(path, file):
                if sources.owner(name, file, path) is None:
                    damaged.append(sources.damage(name, file, path, at))
                missing.append(file)
            bar.update(file.size)
        damaged += _packed(dataset, packed, at)
        bar.update(sum(file.size for file in packed))
    return _report(damaged, [file.name for file in missing], len(where), "file")


def _packed(dataset: Dataset, packed: Sequence[File], at: Places) -> list[str]:
    try:
        if packed:
            sources.unpacked(dataset, packed, at)
    except DamagedData as error:
        return [str(error)]
    return []


def _corrupted(name: str, at: Places) -> Report:
    family = CORRUPTED[name]
    found = dict(tqdm(official.check(name, at), desc=name, unit="file", leave=False))
    damaged = [wrong for wrong in found.values() if wrong is not None]
    if family.archive in found:
        return Report("damaged", damaged[0]) if damaged else Report("intact", family.archive)
    missing = [corruption for corruption in family.corruptions if corruption not in found]
    report = _report(damaged, missing, len(family.corruptions), "corruption")
    return report if not found or damaged else Report(report.state, f"{report.detail}; no hash: their form was checked")


def _report(damaged: Sequence[str], missing: Sequence[str], total: int, noun: str) -> Report:
    if damaged:
        return Report("damaged", "; ".join(damaged))
    if len(missing) == total:
        return Report("missing")
    if missing:
        return Report("missing", f"{total - len(missing)} of {total} {noun}s intact, not here: {', '.join(missing)}")
    return Report("intact", f"{total} {noun}{'s' * (total > 1)}")
