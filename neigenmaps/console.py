"""Where commands print: in a file or pipe, which has no width of its own, tables keep all their numbers."""

import os
import sys

from rich.console import Console

WIDTH_OF_FILES = 160


def make_console() -> Console:
    """The terminal at its width; `COLUMNS` wins, as everywhere."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH_OF_FILES)
