"""Files that are whole or not there: a reader never sees half of one, whenever the writer is killed."""

import os
from collections.abc import Callable
from pathlib import Path


def write(path: Path, writer: Callable[[Path], None]):
    """Lets `writer` write a file beside `path`, with the same ending, and then renames it."""
    part = path.with_name(f".part-{path.name}")
    writer(part)
    os.replace(part, path)


def write_text(path: Path, text: str):
    """Writes a text file."""
    write(path, lambda part: part.write_text(text))
