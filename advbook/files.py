"""The one way in which this package writes files: beside their place, then renamed, so that they are whole or not.

A damaged file is set aside, never deleted.
"""

from __future__ import annotations

import os
import sys
import tempfile
from itertools import count
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises OSError with one sentence, and leaves what was there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as file:
            part = Path(file.name)
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                part.chmod(0o644)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        reason = f"{path.name} could not be written to {path.parent} ({error.strerror})"
        raise OSError(f"{reason}; mend that and run again: all that was finished before is kept.") from None


def set_aside(path: Path, reason: str) -> None:
    """Rename a damaged file to *.damaged and say so: it will be made again."""
    names = (path.with_name(f"{path.name}.damaged{number or ''}") for number in count())
    aside = next(name for name in names if not name.exists())
    path.replace(aside)
    print(f"{path.name} is damaged ({reason}); it was set aside as {aside.name}.", file=sys.stderr)
