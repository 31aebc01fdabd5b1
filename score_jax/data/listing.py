"""The image files below a folder or inside a .zip, by name."""

import hashlib
import json
import os
import stat
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from score_jax.data.image import EXTENSIONS

_MAX_BYTES = 2**28  # of one file, as stored in a folder or unpacked from a zip


class Listing(NamedTuple):
    """Image files in the order of their names.

    Attributes:
      path: the folder or the zip.
      names: relative to it, with "/" between folders.
      keys: what opens each: its name in the folder or the zip.
      stamps: numbers that change with a file: size and time of modification, or size and CRC-32.
    """

    path: Path
    names: tuple[str, ...]
    keys: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]

    def hash(self) -> str:
        """Changes when a file is added, removed, renamed or changed, or all are moved elsewhere."""
        content = json.dumps([str(self.path), self.keys, self.stamps])
        return hashlib.sha256(content.encode()).hexdigest()


def list_images(path: str) -> Listing:
    """The images of a folder, symbolic links followed, or of a .zip, in which they are refused.

    Files are images by their extension. Others are ignored, and so is what is in or has a name that
    starts with a dot, and __MACOSX.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: it holds no images, or is no zip, or a broken, encrypted or dangerous one.
    """
    if not path:
        raise ValueError("config.data.path is not set; set it to a folder or a .zip of images")
    absolute = Path(path).expanduser().absolute()
    if not absolute.exists():
        raise FileNotFoundError(
            f"there is no {absolute}; set config.data.path to a folder or a .zip of images"
        )
    found = _in_folder(absolute) if absolute.is_dir() else _in_zip(absolute)
    if not found:
        raise ValueError(
            f"{absolute} holds no images ({', '.join(EXTENSIONS)}); set config.data.path to a "
            "folder or a .zip that does"
        )
    names = tuple(sorted(found))
    keys, stamps = zip(*(found[name] for name in names), strict=True)
    return Listing(absolute, names, keys, stamps)


def read(listing: Listing, i: int) -> bytes:
    """The content of file i.

    Raises:
      ValueError: it cannot be read. The message is a predicate, as "is 300 MB large".
    """
    if listing.stamps[i][0] > _MAX_BYTES:
        raise ValueError(f"has {listing.stamps[i][0]} bytes; an image has at most {_MAX_BYTES}")
    try:
        if listing.path.is_dir():
            file = listing.path / listing.keys[i]
            if not file.is_file():  # a pipe would be waited for
                raise ValueError("is no file, or a link to none")
            return file.read_bytes()
        return _zip(listing.path).read(listing.keys[i])
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise ValueError(f"cannot be read ({error})") from error


@lru_cache(maxsize=1)
def _zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


Found = dict[str, tuple[str, tuple[int, int]]]  # name -> key, stamp


def _in_folder(root: Path) -> Found:
    found, seen = {}, set()

    def fail(error):  # os.walk would pass over a folder that it may not read
        raise error

    for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not _ignored(name))
        for file in files:
            key = os.path.relpath(os.path.join(folder, file), root)
            if _is_image(file):
                found[key.replace(os.sep, "/")] = key, _stamp(os.path.join(folder, file))
    return found


def _stamp(file: str) -> tuple[int, int]:
    try:
        status = os.stat(file)
    except OSError:  # a dangling link: `read` says so
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _in_zip(path: Path) -> Found:
    _zip.cache_clear()  # the file may have changed since
    try:
        entries = _zip(path).infolist()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{path} is no folder and no zip, or a broken one ({error}); set config.data.path to "
            "a folder or a .zip of images"
        ) from error
    found = {}
    for entry in entries:
        name = entry.filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or (parts and parts[0].endswith(":")):
            raise ValueError(
                f"{path} has an entry outside of its folder, {name}; make the zip again without it"
            )
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ValueError(
                f"{path} has a symbolic link, {name}; make the zip again with the file itself"
            )
        if entry.is_dir() or not _is_image(name):
            continue
        if entry.flag_bits & 1:
            raise ValueError(
                f"{path} is encrypted ({name}); unpack it and set config.data.path to the folder"
            )
        found["/".join(parts)] = entry.filename, (entry.file_size, entry.CRC)
    return found


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not any(map(_ignored, name.split("/")))


def _ignored(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"
