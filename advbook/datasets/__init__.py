"""Real images: look a data set up, verify every byte, read it; `python -m advbook.datasets` does so by hand."""

from advbook.datasets.loading import Images, available, load
from advbook.datasets.official import corrupted, corruptions_available
from advbook.datasets.register import CORRUPTED, DATASETS, Corrupted, Dataset, File, InPlace, Split, Whole
from advbook.datasets.sources import DamagedData, MissingData

__all__ = [
    "CORRUPTED",
    "DATASETS",
    "Corrupted",
    "DamagedData",
    "Dataset",
    "File",
    "Images",
    "InPlace",
    "MissingData",
    "Split",
    "Whole",
    "available",
    "corrupted",
    "corruptions_available",
    "load",
]
