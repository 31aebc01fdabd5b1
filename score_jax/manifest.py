"""A folder's manifest: the size and the SHA-256 of every file in it, so that damage is found, and named.

It is written when all else in the folder is on the disk; a folder without one is not whole.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from score_jax import files

NAME = "manifest.json"


class DamageError(ValueError):
    """What is wrong with a folder's files: the file's name first."""


def write(folder: Path, facts: dict[str, Any]):
    """Writes the manifest of the files in a folder, with facts about them; returns when all are on the disk."""
    found = _files(folder)
    for name in found:
        files.sync(folder / name)
    rewrite(folder, {"files": {name: _digest(folder / name) for name in found}, **facts})
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            files.sync(path)


def rewrite(folder: Path, body: dict[str, Any]):
    """Writes a manifest whose files did not change, with other facts in it."""
    text = json.dumps(body | {"sha256": _own(body)}, indent=1) + "\n"
    files.write_text(folder / NAME, text)


def check(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files are all as they were written; reads each once.

    Facts are in it under their names.

    Raises:
      DamageError: a file is missing, additional, cut short or changed, or the manifest is.
      OSError: a file cannot be read, which does not say that it is damaged.
    """
    try:
        body = _read(folder / NAME)
        names = _files(folder)
        for name in sorted(names - body["files"].keys()):
            raise DamageError(f"{name} is not in {NAME}")
        for name, digest in body["files"].items():
            if name not in names:
                raise DamageError(f"{name} is missing")
            size = (folder / name).stat().st_size
            if size != digest["size"]:
                raise DamageError(f"{name} has {size} bytes instead of {digest['size']}")
            if _digest(folder / name) != digest:
                raise DamageError(f"{name} has other bytes than were written")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamageError(f"{Path(error.filename or folder).name} is missing") from error
    except (
        OSError
    ) as error:  # it may be whole: a run that went on from an older one would delete it
        raise OSError(
            f"{error.filename or folder} cannot be read: {error.strerror}; try again, or move {folder} away"
        ) from error
    return body


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise DamageError(f"{NAME} is missing")
    try:
        body = json.loads(path.read_bytes())
        if body.pop("sha256") == _own(body):
            return body
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise DamageError(f"{NAME} is not as it was written")


def _files(folder: Path) -> set[str]:
    """Their paths from the folder, without the manifest, and what a kill left of one being written."""
    found = (path for path in folder.rglob("*") if not path.is_dir())
    names = {path.relative_to(folder).as_posix() for path in found} - {NAME}
    return {name for name in names if not name.startswith(files.PART)}


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": sha256}


def _own(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
