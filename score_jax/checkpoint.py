"""Checkpoints of a run's state: written by orbax in the background, verified when they are read.

    STEP/state/         the arrays, by orbax
    STEP/manifest.json  sizes and checksums of its files, shapes and dtypes of the arrays, and notes:
                        what else a resumed run needs

All of it is written, and flushed to the disk, under another name, and then renamed: a folder with a
step's name was whole once. What has happened to it since, its manifest tells. Nothing is pickled.
"""

import errno
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from score_jax import files, manifest
from score_jax.files import WriteError
from score_jax.manifest import DamageError

_PART, _OLD = ".part", ".old-"  # what is being written, and what is being deleted
_CODES = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO


# a save that fails is a WriteError; orbax logs it too, in a hundred lines
logging.getLogger("absl").addFilter(
    lambda record: not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)
)


def _without_late(show: Callable[[Any], None]) -> Callable[[Any], None]:
    """The hook for exceptions that nobody can catch, but for those of orbax's writes that end after a failed save."""

    def hook(raised):
        late = raised.exc_type is RuntimeError and str(raised.exc_value) == "Event loop is closed"
        if not late:
            show(raised)

    return hook


# when a save fails, orbax closes its event loop while writes of other arrays are under way
sys.unraisablehook = _without_late(sys.unraisablehook)


class _Job(NamedTuple):
    """A checkpoint to be written: the state's arrays are on the host."""

    step: int
    state: Any
    notes: dict[str, Any]
    first: Callable[[], None]


class Checkpoints:
    """The checkpoints in a folder.

    Any number of processes may read; one at a time may save (`workdir.lock`).

    Args:
      folder: WORKDIR/checkpoints; created when the first checkpoint is saved.
      keep: how many of the newest to keep. An old one is deleted when a newer one is on the disk.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = Path(folder).resolve()
        self._keep = keep
        self._manifests = {}  # of verified checkpoints, by step
        self._good = None  # the newest step that is known to be whole
        self._told = False  # that the disk is slow
        self._turn = threading.Condition()  # guards the three below
        self._thread = self._waiting = self._error = None

    def steps(self) -> list[int]:
        """The steps of the checkpoints that were saved, increasing; whether they still are whole, `latest` tells."""
        # one that is being written or deleted has another name
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdecimal())

    def latest(self) -> int | None:
        """The newest step whose checkpoint is whole, or None if none was saved.

        One line on stderr for each newer one that is not names the file and what is wrong.

        Raises:
          ValueError: none of those that were saved is whole.
        """
        damaged = {}
        for step in reversed(self.steps()):
            try:
                self._verify(step)
            except DamageError as error:
                if not self._path(
                    step
                ).exists():  # deleted by the run that saves here, for a newer one
                    return self.latest()
                damaged[step] = error
                continue
            for other, error in damaged.items():
                text = f"checkpoint {self._path(other)} is damaged: {error}; step {step} is used"
                print(text, file=sys.stderr, flush=True)
            self._good = step
            return step
        if damaged:
            each = ", ".join(f"in that of step {step} {error}" for step, error in damaged.items())
            raise ValueError(
                f"no good checkpoint in {self.folder}: {each}; bring one back from a copy, or give "
                "another --workdir"
            )
        return None

    def save(
        self,
        step: int,
        state: Any,
        unlogged: list[dict[str, float]],
        *,
        first: Callable[[], None] = lambda: None,
        **notes: Any,
    ):
        """Saves in the background; returns when the state has left the device, however slow the disk is.

        If the disk is so slow that the save before the last has not ended, the last, which then has
        not begun, is left out, and one line on stderr says so, the first time.

        Args:
          unlogged: metrics of the steps since the last logged row, so that a resumed run logs the
            same means.
          first: called in the background before the checkpoint counts, to bring to the disk what
            goes with it.
          notes: what else a resumed run needs, as JSON; `notes` gives it back.
        Raises:
          WriteError: an earlier save failed.
        """
        self.check()
        if jax.process_index():  # every process has the same state; one writes it
            return
        # as they are now: the caller's lists grow while the disk is waited for
        notes = json.loads(json.dumps({"unlogged": unlogged, **notes}))
        job = _Job(step, jax.device_get(state), notes, first)
        with self._turn:
            left_out, self._waiting = self._waiting, job
            if self._thread is None:
                # a daemon: a second signal ends the program without waiting for a slow disk
                self._thread = threading.Thread(target=self._write_all, daemon=True)
                self._thread.start()
        if left_out is not None and not self._told:
            self._told = True
            print(
                f"no checkpoint of step {left_out.step}, nor of others to come: the disk of {self.folder} "
                "is slower than the steps between two; set config.train.save_every higher",
                file=sys.stderr,
                flush=True,
            )

    def restore(self, step: int, template: Any) -> Any:
        """The state saved at a step, verified.

        Args:
          template: a state of the same structure, shapes and dtypes.
        Raises:
          ValueError: the checkpoint is damaged, or holds something else.
        """
        try:
            leaves = self._verify(step)["leaves"]
        except DamageError as error:
            raise ValueError(
                f"checkpoint {self._path(step)} is damaged: {error}; choose another step"
            ) from error
        _check(_leaves(template), leaves, self._path(step))
        args = ocp.args.StandardRestore(_abstract(template))
        try:
            with _orbax() as orbax:
                return orbax.restore(self._path(step) / "state", args=args)
        except ValueError as error:  # the same arrays in other containers, as another version's
            raise ValueError(
                f"checkpoint {self._path(step)} has not this version's structure; use the version in "
                f"run.json: {error}"
            ) from error

    def notes(self, step: int) -> dict[str, Any]:
        """What was saved with a step's state beside it; nothing before the first step."""
        if step == 0:
            return {}
        return self._verify(step)["notes"]

    def change_notes(self, step: int, **notes: Any):
        """Puts these in the place of the notes of the same names of a step that is on the disk.

        A kill leaves the notes as they were or as they are to be.

        Raises:
          WriteError: they cannot be written.
        """
        if jax.process_index():
            return
        body = self._verify(step)
        body["notes"] |= notes
        manifest.rewrite(self._path(step), body)

    def kept(self) -> str:
        """What a run that fails says: which checkpoint it can go on from."""
        if self._good is None:
            return f"no checkpoint was saved yet in {self.folder}"
        return f"the last good checkpoint is of step {self._good} in {self.folder}"

    def check(self):
        """Raises the WriteError of a save that failed; each failure once."""
        with self._turn:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self):
        """Returns when all saves are on disk.

        Raises:
          WriteError: one failed.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._thread is None)
        self.check()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            self.wait()
        except WriteError:
            if error is None:  # else a save's failure would hide what ended the run
                raise

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _verify(self, step: int) -> dict[str, Any]:
        """The manifest of a step's checkpoint, whose files are read once in the life of this object."""
        if step not in self._manifests:
            self._manifests[step] = manifest.check(self._path(step))
        return self._manifests[step]

    def _write_all(self):
        """What the thread does: writes what waits, until nothing does or something fails."""
        while True:
            with self._turn:
                job, self._waiting = self._waiting, None
                if job is None or self._error is not None:
                    self._thread = None
                    self._turn.notify_all()
                    return
            try:
                self._write(job)
            except Exception as error:  # handed to the thread that trains
                failure = WriteError(f"cannot save step {job.step}: {_reason(error)}")
                failure.__cause__ = error
                with self._turn:
                    self._error = failure

    def _write(self, job: _Job):
        part = self.folder / _PART
        for leftover in (part, *self.folder.glob(f"{_OLD}*")):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            with _orbax() as orbax:
                orbax.save(part / "state", args=ocp.args.StandardSave(job.state))
            manifest.write(part, {"leaves": _leaves(job.state), "notes": job.notes})
            job.first()
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)  # on a full disk its room is needed
            raise
        self._manifests.pop(job.step, None)
        if self._path(job.step).exists():  # damaged: the run went on from an older one
            self._delete(job.step)
        os.rename(part, self._path(job.step))
        files.sync(self.folder)
        files.sync(self.folder.parent)
        self._good = job.step
        self._delete_old(job.step)

    def _delete_old(self, newest: int):
        """Deletes all but the newest, and those of later steps: damaged, as the run began before them."""
        steps = self.steps()
        past = [step for step in steps if step <= newest]
        for step in {*steps} - {*past[-self._keep :]}:
            self._delete(step)

    def _delete(self, step: int):
        old = self.folder / f"{_OLD}{step}"
        os.rename(self._path(step), old)  # a reader sees all of it or nothing
        shutil.rmtree(old, ignore_errors=True)


def _orbax() -> ocp.Checkpointer:
    """Reads and writes arrays in this thread, and waits for no other process."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _reason(error: BaseException) -> str:
    """Why a write failed, in a few words: orbax wraps what the operating system says in paragraphs."""
    if isinstance(error, WriteError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    text = " ".join(str(error).split())
    known = map(os.strerror, _CODES)
    return next((words for words in known if words in text), f"{type(error).__name__}: {text}")


def _abstract(template: Any) -> Any:
    """Where to restore to: shapes and dtypes on the first device, wherever the checkpoint was made."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), template)


def _leaves(tree: Any) -> dict[str, str]:
    """The dtype and the shape of each array, by its place in the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named.items()}


def _check(wanted: dict[str, str], found: dict[str, str], where: Path):
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"checkpoint {where} does not fit this config: {name} is {found.get(name, 'missing')} there, "
                f"{wanted.get(name, 'absent')} here; use the config it was trained with"
            )
