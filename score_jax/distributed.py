"""Processes: several that train one run together, one on each host or one for each device.

All run the same program on the same config, and take the same steps (`parallel`). Process 0 alone
writes: the log, pictures, snapshots and checkpoints, whose state is the same everywhere. All read
the run's folder, which must be the same one for all.
"""

import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")

_SECONDS = 300  # to wait for the other processes to start


def initialize(
    coordinator: str | None = None,
    n_processes: int | None = None,
    process: int | None = None,
    *,
    detect: bool = False,
):
    """Joins this process with the others of a run; to be called before anything asks JAX for devices.

    Does nothing if no argument is given.

    Args:
      coordinator: HOST:PORT of process 0, which the others can reach; the port is a free one there.
      n_processes, process: how many there are, and which this is, counted from 0.
      detect: what is not given is taken from the environment: SLURM's (srun), Open MPI's, or that of
        a TPU pod. On a GPU cluster each process then has one device.
    Raises:
      ValueError: something is missing, or the others cannot be reached; one line.
    """
    given = {"--coordinator": coordinator, "--processes": n_processes, "--process": process}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given) and not detect:
        return
    if missing and not detect:
        raise ValueError(
            f"{missing[0]} is missing; a run of several processes wants --coordinator=HOST:PORT, "
            "--processes and --process, or --distributed where a scheduler knows them"
        )
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"--coordinator is {coordinator!r}; it must be HOST:PORT, as node01:29500")
    if not missing and not 0 <= process < n_processes:
        raise ValueError(
            f"--process is {process}; it must be at least 0 and less than --processes, {n_processes}"
        )
    # it would take SIGTERM to itself; the training loop agrees on where to stop
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            n_processes,
            process,
            cluster_detection_method=None if detect else "deactivate",
            initialization_timeout=_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the processes of the run do not find each other: {error}; start all of them, with the "
            "same --coordinator=HOST:PORT and --processes and each with its own --process"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def first(fn: Callable[[], T]) -> T | None:
    """fn() on process 0, for which the others wait; they get None.

    Raises:
      ValueError, OSError: fn's own, on process 0; on the others, a ValueError that says so.
    """
    result = error = None
    if is_first():
        try:
            result = fn()
        except (ValueError, OSError) as raised:
            error = raised
    if jax.process_count() > 1:
        failed = bool(multihost_utils.broadcast_one_to_all(np.int32(error is not None)))
        if failed and error is None:
            raise ValueError("process 0 of the run cannot start; it says why")
    if error is not None:
        raise error
    return result


def check_same(**values: Any):
    """Raises a ValueError unless each value is the same on all processes; all call it.

    Args:
      values: by what they are called in the message.
    """
    digests = np.array([zlib.crc32(repr(value).encode()) for value in values.values()], np.uint32)
    every = digests[None]
    if jax.process_count() > 1:
        every = multihost_utils.process_allgather(digests)
    for name, column in zip(values, every.T, strict=True):
        other = np.flatnonzero(column != column[0])
        if len(other):
            raise ValueError(
                f"the {name} of process {other[0]} is not that of process 0; give all processes the "
                "same options, and one --workdir that all of them see"
            )
