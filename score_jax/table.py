"""Tables that grow row by row on disk, and are the same file whether or not their writer was killed.

A table is a CSV file, written in whole lines as its rows are computed, and beside it a JSON file of
what it was made for. A computation that was killed goes on after the last whole row; the file is
then the one of an uninterrupted computation, byte for byte.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_jax import files


class Table(NamedTuple):
    """A CSV file, its columns, and the indices of its rows; the first column is the index."""

    path: Path
    columns: tuple[str, ...]
    index: np.ndarray


def begin(table: Table, made_for: dict[str, Any]) -> int:
    """Opens a table for rows to be appended; the number of whole rows that it has.

    A line that was cut short, and whatever follows a damaged one, is dropped. A table that was made
    for something else is not continued: it is kept as NAME.old.csv, a new one begun, and one line
    on the terminal says so.
    """
    path = table.path
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.json")
    made_for = json.loads(json.dumps(made_for))
    if path.exists():
        before = _made_for(beside)
        if before == made_for:
            whole = _whole(table)
            if whole:
                os.truncate(path, sum(map(len, whole)))
                return len(whole) - 1
        else:
            old = path.with_suffix(f".old{path.suffix}")
            os.replace(path, old)
            print(
                f"{path}: made {_difference(before, made_for)}; kept as {old.name}, a new one begins"
            )
    files.write_text(beside, json.dumps(made_for, indent=2) + "\n")
    files.write_text(path, ",".join(table.columns) + "\n")
    return 0


def append(table: Table, rows: dict[str, np.ndarray]):
    """Writes rows of all columns, each in a whole line, and returns when they are on disk."""
    columns = [rows[name] for name in table.columns]
    lines = [",".join(map(_text, row)) + "\n" for row in zip(*columns, strict=True)]
    with table.path.open("a", newline="") as file:
        file.write("".join(lines))
        file.flush()
        os.fsync(file.fileno())


def read(table: Table) -> dict[str, np.ndarray]:
    """The columns [n] of a complete table, in float64.

    Raises:
      ValueError: rows are missing or damaged, or there is no such file.
    """
    lines = _whole(table)[1:]
    if len(lines) < len(table.index):
        raise ValueError(
            f"{table.path} has {len(lines)} of {len(table.index)} rows in order; does another "
            "process write to it? Evaluate again"
        )
    values = np.array([line.decode().split(",") for line in lines], np.float64)
    # also of no rows
    columns = values.reshape(len(lines), len(table.columns)).T
    return dict(zip(table.columns, columns, strict=True))


def kept(path: Path, made_for: dict[str, Any], make: Callable[[], Sequence[float]]) -> list[float]:
    """The numbers that make() found for this once, read from a JSON file, or made and written to it."""
    made_for = json.loads(json.dumps(made_for))
    found = _made_for(path)
    if found is None or found.get("made_for") != made_for or not _are_numbers(found.get("values")):
        found = {"values": [float(value) for value in make()], "made_for": made_for}
        files.write_text(path, json.dumps(found, indent=2) + "\n")
    return found["values"]


def _are_numbers(values: Any) -> bool:
    is_number = lambda value: isinstance(value, float) and math.isfinite(value)
    return isinstance(values, list) and len(values) > 1 and all(map(is_number, values))


def _whole(table: Table) -> list[bytes]:
    """The lines of a table up to the first that is damaged, the header included; none without a header."""
    try:
        lines = table.path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:  # another process has put it away as made for something else
        return []
    if not lines or lines[0] != (",".join(table.columns) + "\n").encode():
        return []
    good = 1
    for line, index in zip(lines[1:], table.index, strict=False):
        try:
            values = [float(word) for word in line.decode().split(",")]
        except ValueError:
            break
        if not line.endswith(b"\n") or len(values) != len(table.columns) or values[0] != index:
            break
        good += 1
    return lines[:good]


def _text(value: Any) -> str:
    # nine digits tell all float32 numbers apart
    return str(int(value)) if np.issubdtype(type(value), np.integer) else f"{value:.9g}"


def _made_for(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _difference(old: dict | None, new: dict) -> str:
    if old is None:
        return "and nothing says for what"
    key = next(key for key in (*new, *old) if old.get(key) != new.get(key))
    a, b = old.get(key), new.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
        return _difference(a, b).replace("with ", f"with {key}.", 1)
    return f"with {key} = {a!r}, not {b!r}"
