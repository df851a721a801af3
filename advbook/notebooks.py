"""Lets papermill read py:percent notebooks: `papermill nbs/NAME.py out.ipynb -p N 4000` works as typed.

papermill loads this module whenever it starts, so it imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat


def read(path: Path) -> nbformat.NotebookNode:
    """A py:percent file as a notebook that runs on the kernel of this environment, whatever a colleague's is called."""
    notebook: nbformat.NotebookNode = jupytext.read(path, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata.pop("jupytext", None)
    return notebook


class PercentNotebooks:
    """What papermill asks of a handler of files; no subclass of its own, since it loads this module while it loads."""

    def read(self, path: str) -> str:
        """The notebook as JSON text."""
        return str(nbformat.writes(read(Path(path)))) if path.endswith(".py") else Path(path).read_text("utf-8")

    def write(self, text: str, path: str) -> None:
        """Write a notebook's JSON text."""
        Path(path).write_text(text, "utf-8")

    def pretty_path(self, path: str) -> str:
        """The path, for messages."""
        return path


handler = PercentNotebooks()
