"""Batches of a split that stays on the disk, read ahead by worker processes.

The batch of a step is a pure function of (seed, step), as in `order`: workers share no state, a run
that resumes asks for its next step, and the batches are those of a split that is on the devices.
grain runs the workers. From their first moment on they leave SIGINT and SIGTERM, which a terminal
or a scheduler sends to all processes of a run, to their parent, and they end when it does.
"""

import contextlib
import functools
import gc
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection, parent_process, resource_tracker
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags

from score_jax.data.base import Rows, Split, take
from score_jax.data.order import batch_indices

AHEAD = 2  # results that each worker, or the thread, makes before they are asked for

_SHARED = "/dev/shm"
_STOP = {signal.SIGINT, signal.SIGTERM}  # meant for the parent, which saves and stops
_SECONDS = 10.0  # to free shared memory, which takes about a millisecond

T = TypeVar("T")


def batches(
    split: Split,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    *,
    rows: slice = slice(None),
    workers: int,
) -> contextlib.AbstractContextManager[Iterator[Split]]:
    """A context with an iterator over the batches of steps start, .., stop - 1, counted from 0.

    Leaving it ends the workers.

    Args:
      rows: which of a batch are read, those of this process among several.
      workers: processes that read; 0 reads in a thread of this one, as for a split in memory, which
        every worker would have to copy.
    """
    if isinstance(split.x, np.memmap):  # as Rows, another process maps the same file
        split = take(split, np.arange(len(split.x)))
    on_disk = isinstance(split.x, Rows) and isinstance(split.x.array, np.memmap)
    batch = functools.partial(_batch, split, seed, batch_size, rows)
    nbytes = split.x.nbytes // len(split.x) * len(range(batch_size)[rows])
    return in_order(batch, start, stop, nbytes, workers=workers if on_disk else 0)


def _batch(split: Split, seed: int, batch_size: int, rows: slice, step: int) -> Split:
    index = batch_indices(seed, step, len(split.x), batch_size)[rows]
    return Split(split.x[index], None if split.label is None else split.label[index])


@contextlib.contextmanager
def in_order(
    fn: Callable[[int], T], start: int, stop: int, nbytes: int, *, workers: int
) -> Iterator[Iterator[T]]:
    """A context with an iterator over fn(start), .., fn(stop - 1), called ahead of time.

    Args:
      fn: pickled for the workers; what it raises is raised here. The script that calls this must
        have its `if __name__ == "__main__"`: workers import it.
      nbytes: the size of a result, about.
      workers: processes that call fn; 0 calls it in a thread of this one, as is done where there is
        too little shared memory. Each starts a new interpreter and imports what fn needs.
    """
    import grain  # takes a while to import: only who streams needs it

    # grain reads this flag for each worker, also where none were parsed, as in a notebook, and fails
    # (grain issue 1355): only there it is marked as given, with its default, and no other one is
    flag = "grain_enable_multiprocess_worker_profiling"
    if flag in flags.FLAGS and not flags.FLAGS.is_parsed():
        flags.FLAGS[flag].present = True
    workers = workers if _fits(workers, nbytes) else 0
    threads = 0 if workers else 1
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD * threads)
    dataset = grain.MapDataset.range(start, stop).map(fn).to_iter_dataset(reading)
    dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD),
        worker_init_fn=_start_worker,
    )
    if workers:  # copies, in a thread, while the caller is busy
        dataset = grain.experimental.ThreadPrefetchIterDataset(
            dataset.map(_own), prefetch_buffer_size=1
        )
        resource_tracker.ensure_running()  # whichever thread starts it unblocks the signals there
    iterator = iter(dataset)
    try:
        with _blocked_signals():
            iterator.start_prefetch()
        yield iterator
    finally:
        iterator.close()
        if workers:
            _free(grain.multiprocessing.SharedMemoryArray)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Threads and processes that are started inside never see the signals of `_STOP`.

    A new thread has the mask of the one that starts it, and so has a process: grain's threads start
    the workers, and a handler set in a worker would come seconds after its start. A signal to this
    process waits, or goes to another of its threads; none is lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _free(kind: Any):
    """Waits until no shared memory is left of results that nobody holds.

    Else the program, ended before that, would end with a warning.

    Args:
      kind: grain's type of arrays in shared memory, which one thread of its own frees in turn.
    """
    gc.collect()  # grain leaves the last results in cycles
    thread = getattr(kind, "_del_thread_pool", None)
    if thread is not None:
        thread.apply_async(int).wait(_SECONDS)  # comes after all that were let go before


def _fits(workers: int, nbytes: int) -> bool:
    """Whether there is shared memory for what the workers make ahead: a bus error ends one without.

    grain hands arrays over in it. Each worker and the thread that listens to it keep AHEAD and are
    busy with one more. A pipe would do without, but a worker that is still writing cannot be ended.
    """
    if not os.path.isdir(_SHARED):  # no such limit but on Linux
        return True
    needed, free = 2 * (AHEAD + 1) * workers * nbytes, shutil.disk_usage(_SHARED).free
    if needed > free:
        print(
            f"{workers} workers need {needed / 1e6:.0f} MB of shared memory, but {_SHARED} has "
            f"{free / 1e6:.0f} MB free (docker: --shm-size); a thread does their work",
            file=sys.stderr,
        )
    return needed <= free


def _own(tree: Any) -> Any:
    """The result in memory of its own, so that whoever keeps it keeps no shared memory."""
    return jax.tree.map(lambda leaf: np.array(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)


def _start_worker(_index: int, _count: int):
    """Makes a worker end with its parent, and keeps it off the accelerators."""
    jax.config.update("jax_platforms", "cpu")
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(parent):
    connection.wait([parent.sentinel])
    os._exit(1)
