"""Lets papermill read py:percent notebooks: `papermill nbs/NAME.py out.ipynb -p N 4000` works as typed.

papermill loads this module whenever it starts, so it imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
from papermill.iorw import LocalHandler


def read(path: Path) -> nbformat.NotebookNode:
    """A py:percent file as a notebook that runs on the kernel of this environment, whatever a colleague's is called."""
    notebook: nbformat.NotebookNode = jupytext.read(path, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata.pop("jupytext", None)
    return notebook


class PercentNotebooks(LocalHandler):  # type: ignore[misc]
    """papermill's handler of local files, which also reads .py."""

    def read(self, path: str) -> str:
        """The notebook as JSON text."""
        return str(nbformat.writes(read(Path(path)))) if path.endswith(".py") else str(super().read(path))


handler = PercentNotebooks()
