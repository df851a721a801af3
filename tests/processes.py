"""Python processes of their own, for tests that kill them or fill their disk."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

# A file of more than 8 KiB cannot be written: the disk is full, as far as this process can tell.
FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
"""


def script(text, **environment):
    """A Python process that runs a text."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, **environment},
    )
