"""Devices: the one module that knows how many there are, here and in the other processes of a run.

Training is data-parallel: state replicated, examples sharded, gradients averaged over the named
axis by the step itself. Evaluation maps a function of examples over all devices, padding the last
batch.

Several processes, one for each host or for each device, run the same program side by side
(`distributed`). The named axis goes over the devices of all of them, process after process. What a
process holds are arrays for its own devices alone, [local devices, ...], of which it gives its part
of the global batch. Each calls the same functions of this module in the same order, and waits for
the others where they exchange something: in a step, and in `map_batch`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

AXIS = "devices"


def count() -> int:
    """The number of devices that a global batch is divided over, of all processes together."""
    return jax.device_count()


def local_count() -> int:
    """The number of devices of this process; every process has as many."""
    return jax.local_device_count()


def rows(n: int) -> slice:
    """Which of the n examples of a global batch are this process's."""
    share = n // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


# one function for the process, so that it compiles once; on the same axis as the step, whose
# first call would otherwise be compiled for arrays laid out in another way than its own results
_copy = jax.pmap(lambda _, leaf: leaf, axis_name=AXIS, in_axes=(0, None))


def replicate(tree: Any) -> Any:
    """The tree with a leading axis of local devices, one copy on each; all processes give the same tree."""
    return _copy(np.arange(local_count()), tree)


def unreplicate(tree: Any) -> Any:
    """The first local device's copy, on that device; indexing the replicated array would gather it first."""
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree)


def shard(batch: Any, axis: int = 0) -> Any:
    """This process's examples [b, ...] as [local devices, b / local devices, ...].

    Args:
      axis: of the examples; with axis = 1, [k, b, ...] becomes [local devices, k, b / local
        devices, ...].
    """

    def split(a):
        parts = a.reshape(*a.shape[:axis], local_count(), -1, *a.shape[axis + 1 :])
        return np.moveaxis(parts, axis, 0)

    return jax.tree.map(split, batch)


def train_step(step: Callable, n_steps: int = 1) -> Callable:
    """Maps step(state, resident, batch, key, *more) over the devices; the old state's memory is reused for the new one.

    `state` and `resident` are replicated, `batch` is sharded, `key` is the same for all. What more
    there is, has the axis of the local devices too; None is left out.

    Args:
      n_steps: steps in one call, one after another in one program: `batch` has theirs on an axis
        [n_steps, ...] after that of the devices, and so have the metrics.
    """

    def call(state, resident, batch, key, more):
        one = lambda state, batch: step(state, resident, batch, key, *more)
        return one(state, batch) if n_steps == 1 else jax.lax.scan(one, state, batch)

    mapped = jax.pmap(call, axis_name=AXIS, in_axes=(0, 0, 0, None, 0), donate_argnums=0)
    # virtual devices share one pool of threads: with a second step in flight, an all-reduce of the
    # first may wait for ever for a device whose thread the second one holds
    waits = jax.default_backend() == "cpu" and count() > 1

    def run(state, resident, batch, key, *more):
        more = tuple(m for m in more if m is not None)
        result = mapped(state, resident, batch, key, more)
        return jax.block_until_ready(result) if waits else result

    return run


def example_index(n: int, axis_name: str | None) -> tuple[Array, int]:
    """The global-batch indices of this device's n examples, and the global batch's size."""
    if axis_name is None:
        return jnp.arange(n), n
    return jax.lax.axis_index(axis_name) * n + jnp.arange(n), n * jax.lax.axis_size(axis_name)


def gather(a: Array, axis_name: str | None) -> Array:
    """The global batch [n, ...] of the devices' parts, in order, on each of them."""
    return a if axis_name is None else jax.lax.all_gather(a, axis_name, tiled=True)


def mean(tree: Any, axis_name: str | None) -> Any:
    """The mean over devices, by a single all-reduce: a network's many small arrays go as one vector.

    Whether a compiler would join one for each leaf depends on the platform and on their sizes. The
    mean of integers is a float.
    """
    leaves, structure = jax.tree.flatten(tree)
    if axis_name is None or not leaves or jax.lax.axis_size(axis_name) == 1:
        return tree
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    dtype = jnp.result_type(jnp.float32, *leaves)
    flat = jnp.concatenate([leaf.ravel().astype(dtype) for leaf in leaves])
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = jnp.split(jax.lax.pmean(flat, axis_name), ends[:-1])

    def one(part, leaf):
        is_float = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return part.reshape(leaf.shape).astype(leaf.dtype if is_float else dtype)

    means = [one(part, leaf) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, means)


def map_examples(fn: Callable, batch_size: int, *, compiled: bool = True) -> Callable[..., Any]:
    """Maps fn over all examples of arrays [n, ...], each exactly once.

    The result is to be kept and called often: it compiles once for each n up to the batch size.

    Args:
      fn: called as fn(common, arrays) with arrays [b, ...]; returns a tree of [b, ...] arrays, each
        example's result a function of `common` and of that example alone.
      batch_size: examples per call, over all devices together; rounded up to a multiple of their
        number. The last batch is padded by repeating its last example, and the padding's results
        are dropped.
      compiled: False leaves fn and its loops to Python, operation by operation, on one device.

    Returns:
      run(common, arrays) -> the results [n, ...] in order, on the host of every process; all give
      the same arguments.
    """
    mapped = map_batch(fn) if compiled else _by_operation(fn)

    def run(common, arrays):
        n = len(jax.tree.leaves(arrays)[0])
        common, n_batch = replicate(common), min(batch_size, n)

        def one_batch(start):
            index = np.minimum(np.arange(start, start + n_batch), n - 1)
            result = mapped(common, jax.tree.map(lambda a: a[index], arrays))
            return jax.tree.map(lambda a: a[: n - start], result)

        results = [one_batch(start) for start in range(0, n, n_batch)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)

    return run


def map_batch(fn: Callable) -> Callable[..., Any]:
    """Maps fn(common, arrays) over one batch of any size, padded to a multiple of the devices.

    Each process maps its share, and hands the results to the others.

    Returns:
      run(common, arrays) -> the results on the host; `common` is replicated already, and `arrays`
      are the whole batch on every process.
    """
    mapped = jax.pmap(fn, axis_name=AXIS)

    def run(common, arrays):
        n = len(jax.tree.leaves(arrays)[0])
        index = np.minimum(np.arange(-(-n // count()) * count()), n - 1)
        own = index[rows(len(index))]
        result = mapped(common, shard(jax.tree.map(lambda a: a[own], arrays)))
        result = jax.tree.map(lambda a: np.asarray(a).reshape(-1, *a.shape[2:]), result)
        if jax.process_count() > 1:
            result = multihost_utils.process_allgather(result, tiled=True)
        return jax.tree.map(lambda a: a[:n], result)

    return run


def _by_operation(fn):
    def run(common, arrays):
        with jax.disable_jit():
            result = fn(unreplicate(common), jax.tree.map(jnp.asarray, arrays))
        return jax.tree.map(np.asarray, result)

    return run
