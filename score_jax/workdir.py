"""A run's folder: the resolved config, what made it, and the checkpoints beside it.

config.json  run.json  checkpoints/  metrics.jsonl  timings.jsonl  tensorboard/  samples/  eval/  lock
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from score_jax.files import naming, write_text

# options that say where the data are and how fast they come, and change no number of a run
FREE = {
    f"data.{option}" for option in ("path", "labels", "folder", "archive", "cache", "workers")
} | {"train.resident_gib", "train.workers"}
PACKAGES = "score_jax", "jax", "jaxlib", "flax", "optax", "diffrax", "orbax-checkpoint", "numpy"


def claim(
    workdir: Path,
    config: dict,
    data: str,
    *,
    allow_change: bool = False,
    complete: Callable[[dict], dict] = lambda config: config,
):
    """Makes the folder, or checks that the run in it is of this config and of these data.

    Args:
      data: the data's `fingerprint`.
      complete: gives the config of an older version the options that it has not.
    Raises:
      ValueError: the folder holds a run of another config, and lists the differences; or of other
        data; or it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
    except OSError as error:
        raise ValueError(
            f"cannot write in {workdir}: {error.strerror}; give another --workdir"
        ) from error
    path = workdir / "config.json"
    if path.exists() and not allow_change:
        old = complete(_tuples(_read(path)))
        old, new = flat(json.loads(json.dumps(old))), flat(json.loads(json.dumps(config)))
        keys = sorted((old.keys() | new.keys()) - FREE)
        say = lambda values, key: repr(values[key]) if key in values else "absent"
        changed = [
            f"config.{key} = {say(old, key)}, not {say(new, key)}"
            for key in keys
            if key not in old or key not in new or old[key] != new[key]
        ]
        if changed:
            raise ValueError(
                f"{workdir} holds a run with {'; '.join(changed)}; give another --workdir, or "
                "--allow_config_change to go on with the new config"
            )
        made = _read(workdir / "run.json") if (workdir / "run.json").exists() else {}
        if made.get("data", data) != data:
            raise ValueError(
                f"{workdir} holds a run on other data: examples were added, removed or changed; "
                "give another --workdir, or --allow_config_change to go on with these data"
            )


def record(workdir: Path, config: dict, data: str):
    """Writes the config, the command, the data's fingerprint and the packages' versions into a claimed folder.

    Call it once the run's checkpoint is known to fit the config: what is here says what the
    checkpoints are.
    """
    run = {
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "data": data,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    write_text(workdir / "run.json", json.dumps(run, indent=2) + "\n")
    write_text(workdir / "config.json", json.dumps(config, indent=2) + "\n")


def lock(workdir: Path) -> TextIO:
    """Takes a claimed folder for this process, until the file returned is closed or the process ends.

    However it ends: the lock is the operating system's (flock). Only who trains needs it; anyone
    may read the run. On a file system without locks, one line on stderr says so.

    Raises:
      ValueError: another process trains in the folder.
    """
    file = (workdir / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ValueError(
            f"{workdir} is in use: {holder} trains in it; wait for it, or give another --workdir"
        ) from error
    except OSError as error:
        print(
            f"{workdir} cannot be locked: {error.strerror}; let no other process train in it",
            file=sys.stderr,
        )
    with naming(workdir / "lock"):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file


def load_config(workdir: Path) -> dict:
    """The resolved config of the run in a folder.

    Raises:
      FileNotFoundError: there is none.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"no run in {workdir}: config.json is missing; train one with scripts/train.py --workdir={workdir}"
        )
    return _tuples(_read(path))


def _read(path: Path) -> dict:
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:  # no UTF-8 or no JSON
        raise ValueError(
            f"{path} is damaged: {error}; restore it or use another --workdir"
        ) from error
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path} is damaged: it holds no object; restore it or use another --workdir"
        )
    return tree


def _tuples(value):
    """JSON has no tuples; configs have no lists."""
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def flat(tree: dict, prefix: str = "") -> dict:
    """The values of a config by SECTION.OPTION."""
    found = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return found
