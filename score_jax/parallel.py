"""Devices: the one module that knows how many there are.

Training is data-parallel: state replicated, examples sharded, gradients averaged over the named
axis by the step itself. Evaluation maps a function of examples over all devices, padding the last
batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

AXIS = "devices"


def count() -> int:
    """The number of devices that a batch is divided over."""
    return jax.local_device_count()


# one function for the process, so that it compiles once; on the same axis as the step, whose
# first call would otherwise be compiled for arrays laid out in another way than its own results
_copy = jax.pmap(lambda _, leaf: leaf, axis_name=AXIS, in_axes=(0, None))


def replicate(tree: Any) -> Any:
    """The tree with a leading device axis, one copy on each device."""
    return _copy(np.arange(count()), tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy, on that device; indexing the replicated array would gather it first."""
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree)


def shard(batch: Any) -> Any:
    """Arrays [b, ...] as [devices, b / devices, ...]."""
    return jax.tree.map(lambda a: a.reshape(count(), -1, *a.shape[1:]), batch)


def train_step(step: Callable) -> Callable:
    """Maps step(state, resident, batch, key) over the devices; the old state's memory is reused for the new one.

    `state` and `resident` are replicated, `batch` is sharded, `key` is the same for all.
    """
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, 0, None), donate_argnums=0)
    if jax.default_backend() != "cpu" or count() == 1:
        return mapped
    # virtual devices share one pool of threads: with a second step in flight, an all-reduce of the
    # first may wait for ever for a device whose thread the second one holds
    return lambda *args: jax.block_until_ready(mapped(*args))


def example_index(n: int, axis_name: str | None) -> tuple[Array, int]:
    """The global-batch indices of this device's n examples, and the global batch's size."""
    if axis_name is None:
        return jnp.arange(n), n
    return jax.lax.axis_index(axis_name) * n + jnp.arange(n), n * jax.lax.axis_size(axis_name)


def mean(tree: Any, axis_name: str | None) -> Any:
    """The mean over devices."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def map_examples(fn: Callable, batch_size: int) -> Callable[..., Any]:
    """Maps fn over all examples of arrays [n, ...], each exactly once.

    The result is to be kept and called often: it compiles once for each n up to the batch size.

    Args:
      fn: called as fn(common, arrays) with arrays [b, ...]; returns a tree of [b, ...] arrays, each
        example's result a function of `common` and of that example alone.
      batch_size: examples per call, over all devices together; rounded up to a multiple of their
        number. The last batch is padded by repeating its last example, and the padding's results
        are dropped.

    Returns:
      run(common, arrays) -> the results [n, ...] in order, on the host.
    """
    mapped = map_batch(fn)

    def run(common, arrays):
        n = len(jax.tree.leaves(arrays)[0])
        common, n_batch = replicate(common), min(batch_size, n)

        def one_batch(start):
            rows = np.minimum(np.arange(start, start + n_batch), n - 1)
            result = mapped(common, jax.tree.map(lambda a: a[rows], arrays))
            return jax.tree.map(lambda a: a[: n - start], result)

        results = [one_batch(start) for start in range(0, n, n_batch)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)

    return run


def map_batch(fn: Callable) -> Callable[..., Any]:
    """Maps fn(common, arrays) over one batch of any size, padded to a multiple of the devices.

    Returns:
      run(common, arrays) -> the results on the host; `common` is replicated already.
    """
    mapped = jax.pmap(fn, axis_name=AXIS)

    def run(common, arrays):
        n = len(jax.tree.leaves(arrays)[0])
        rows = np.minimum(np.arange(-(-n // count()) * count()), n - 1)
        result = mapped(common, shard(jax.tree.map(lambda a: a[rows], arrays)))
        return jax.tree.map(lambda a: np.asarray(a).reshape(-1, *a.shape[2:])[:n], result)

    return run
