"""Decoded examples in a file: made once, and mapped into memory by every later run.

The file is numpy's .npy of uint8, so that it can be larger than the memory and be read row by row.
Examples that could not be decoded are left out, and listed in a text file beside it: the rows and
the lines of that list are as many as the examples.
"""

import contextlib
import fcntl
import functools
import glob
import math
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from score_jax.data.stream import in_order

_BLOCK_BYTES = 2**22  # what a worker holds and hands over at a time
_PER_WORKER = 1000  # a worker takes seconds to start: few examples are decoded sooner without one

Block = tuple[np.ndarray, list[tuple[int, str]]]  # the good examples; the bad ones and why


class BadExampleError(ValueError):
    """An example that cannot be used; the message is the one of whoever refused it."""


class Decoded(NamedTuple):
    """Decoded examples.

    Attributes:
      x: a read-only memory map.
      index: which example each row of x is, ascending.
      bad: the examples that are left out, and why, in one line each.
      bad_list: the file that lists the bad ones, if there are any.
    """

    x: UInt8[np.memmap, "n *s"]
    index: Int[np.ndarray, "n"]
    bad: dict[int, str]
    bad_list: Path


def decode(
    fetch: Callable[[int], UInt8[np.ndarray, "*s"]],
    n: int,
    shape: tuple[int, ...],
    path: Path,
    *,
    what: str = "examples",
    workers: int = 0,
    skip: bool = False,
) -> Decoded:
    """The examples fetch(0), .., fetch(n - 1), from the file `path` if it exists.

    Otherwise, or if the list beside it does not fit to it, that file is made, which a line on
    stderr says: beside it under another name, and renamed when it is whole, so that two runs at
    once do not disturb each other, and a run that is killed leaves no half of it under this name.
    What it leaves under the other is deleted by the next run that makes the file. Whoever calls
    gives each (fetch, n, shape) a path of its own.

    Args:
      fetch: gives example i as an array of `shape`, or raises ValueError or OSError with a message
        that names it. It is pickled for the workers.
      what: the examples, for that line, as "images of /data/cats".
      workers: processes that call fetch; 0 calls it in this one, as do few examples.
      skip: leave out the examples that fetch refuses.

    Raises:
      BadExampleError: fetch refused an example and skip is False: the first one. Nothing is written.
      ValueError: fetch refused them all, or the file is damaged.
      OSError: the file cannot be made or read.
    """
    bad_list = path.with_suffix(".bad.txt")
    try:
        found = _find(path, bad_list, n)
        if found is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _new_file(path) as file, _blocks(fetch, n, shape, workers) as blocks:
                print(f"decoding {n} {what} into {path}", file=sys.stderr, flush=True)
                bad = _write(file, bad_list, shape, n, blocks, skip)
            found = _open(path), bad
    except OSError as error:
        raise OSError(
            f"{path} cannot be made or read ({error}); set config.data.cache to another folder"
        ) from error
    x, bad = found
    if bad and not skip:
        raise BadExampleError(next(iter(bad.values())))
    return Decoded(x, np.delete(np.arange(n), list(bad)), bad, bad_list)


def _blocks(fetch: Callable, n: int, shape: tuple[int, ...], workers: int):
    """A context with an iterator over blocks of examples, in order."""
    nbytes = max(1, math.prod(shape))
    size = max(1, min(256, _BLOCK_BYTES // nbytes))
    block = functools.partial(_block, fetch, n, shape, size)
    return in_order(block, 0, -(-n // size), size * nbytes, workers=min(workers, n // _PER_WORKER))


def _block(fetch: Callable, n: int, shape: tuple[int, ...], size: int, i: int) -> Block:
    good, bad = [], []
    for k in range(i * size, min((i + 1) * size, n)):
        try:
            x = fetch(k)
            if (x.dtype, x.shape) != (np.uint8, shape):
                raise ValueError(
                    f"example {k} is {x.dtype} of shape {x.shape}, not uint8 of {shape}"
                )
            good.append(x)
        except (ValueError, OSError) as error:
            bad.append((k, " ".join(str(error).split()) or type(error).__name__))
    return np.stack(good) if good else np.empty((0, *shape), np.uint8), bad


def _write(
    file: IO[bytes],
    bad_list: Path,
    shape: tuple[int, ...],
    n: int,
    blocks: Iterable[Block],
    skip: bool,
) -> dict[int, str]:
    """The bad examples; the good ones are in the file, and the list is written."""
    rows, bad = 0, {}
    _write_header(file, n, shape)
    for good, refused in blocks:
        if refused and not skip:
            raise BadExampleError(refused[0][1])
        bad |= dict(refused)
        rows += len(good)
        file.write(good.data)
    if not rows:
        first = f"; the first: {next(iter(bad.values()))}" if bad else ""
        raise ValueError(f"none of the {n} examples can be used{first}")
    file.seek(0)
    _write_header(file, rows, shape)
    # before the array takes its name: whoever finds it finds its list
    if bad:
        with _new_file(bad_list) as listing:
            lines = "".join(f"{i}\t{why}\n" for i, why in bad.items())
            listing.write(lines.encode("utf-8", "surrogateescape"))
    else:
        bad_list.unlink(missing_ok=True)
    return bad


def _write_header(file: IO[bytes], n: int, shape: tuple[int, ...]):
    # numpy pads the header to the same length for any first axis, so the rows can be written
    # before they are counted
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets the name `path` when it is whole and on the disk, or vanishes.

    It is locked until then. A killed process loses its locks, so what can be locked is stale.
    """
    for stale in path.parent.glob(f".part-*-{glob.escape(path.name)}"):
        with contextlib.suppress(OSError), open(stale, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stale.unlink()
    part = None
    with contextlib.ExitStack() as stack:
        while part is None or not part.exists():  # another run may find it before it is locked
            part = path.with_name(f".part-{uuid.uuid4().hex}-{path.name}")
            file = stack.enter_context(open(part, "xb"))
            with contextlib.suppress(OSError):  # where nothing can be locked, nothing is stale
                fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def _find(path: Path, bad_list: Path, n: int) -> tuple[np.memmap, dict[int, str]] | None:
    """The array and the bad examples, or None if there is no array, or not that list of bad ones."""
    if not path.exists():
        return None
    x = _open(path)
    bad = _read_bad(bad_list) if len(x) < n and bad_list.exists() else {}
    return (x, bad) if len(x) == n - len(bad) and all(0 <= i < n for i in bad) else None


def _open(path: Path) -> np.memmap:
    try:
        return np.load(path, mmap_mode="r")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to decode again") from error


def _read_bad(path: Path) -> dict[int, str]:
    """The examples and why they are bad; none if it is no such list."""
    try:
        lines = path.read_text("utf-8", "surrogateescape").splitlines()
        return {int(i): why for i, why in (line.split("\t", 1) for line in lines)}
    except ValueError:
        return {}
