"""Files that are whole or not there: a reader never sees half of one, whenever the writer is killed."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

PART = ".part-"  # how the names of files begin that are being written
# what a file system answers that cannot flush a folder
_NO_SYNC = errno.EINVAL, errno.ENOTSUP, errno.EBADF


class WriteError(OSError):
    """A file that could not be written: one line that names it and says why."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Around what writes a file: the operating system's error becomes a `WriteError` with the file's name."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error


def write(path: Path, writer: Callable[[Path], None]):
    """Lets `writer` write a file beside `path`, with the same ending, and then renames it.

    Raises:
      WriteError: the disk is full, or refuses.
    """
    # of this process alone: another may be writing the same file
    part = path.with_name(f"{PART}{os.getpid()}-{path.name}")
    with naming(path):
        try:
            writer(part)
            sync(part)
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):  # on a full disk its room is needed
                part.unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_text(path: Path, text: str):
    """Writes a text file."""
    write(path, lambda part: part.write_text(text))


def append(path: Path, data: bytes):
    """Appends to a file, past this process in one call: a kill leaves all of it or a beginning."""
    with naming(path), path.open("ab", buffering=0) as file:
        while data:  # a disk that fills up takes a part first, and then says so
            data = data[file.write(data) :]


def sync(path: Path):
    """Returns when a file, or the names in a folder, are on the disk and survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_SYNC):
            raise
    finally:
        os.close(descriptor)
