"""Data sets as records of arrays, and the map between integer levels and model space.

A stored value k in {0, .., levels - 1} with dequantization noise u in [0, 1) is v = k + u in
[0, levels), and the model sees

    x = 2 v / levels - 1  in [-1, 1),    log |dx / dv| = n_dims log(2 / levels).

`levels = None` says that the data are continuous: model space is the data's own space.

A set larger than the memory is a memory map of a file, and a part of it is `Rows` of that map:
only what is indexed is read.
"""

import math
import mmap
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Num, UInt8


class Rows:
    """The rows `index` of an array, in that order, read when they are asked for.

    Indexed by an integer, a slice, positions or a mask over the rows, it gives a new array in
    memory. It has an array's shape, dtype, nbytes and length. To jax.tree it is a leaf.
    """

    def __init__(self, array: Num[Any, "n *s"], index: Int[np.ndarray, "b"]):
        if isinstance(array, Rows):
            array, index = array.array, array.index[index]
        self.array, self.index = array, index

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.index), *self.array.shape[1:])

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.array(self.array[self.index[key]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(
                "rows are read from their array: there is none to share without a copy"
            )
        return self[:] if dtype is None else self[:].astype(dtype)

    def __reduce__(self):
        array = self.array
        # numpy pickles a memory map as all that it holds; another process can map the file itself.
        # A part of a map does not know where it starts: its base is the map, not the file
        if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
            order = "C" if array.flags.c_contiguous else "F"
            source = array.filename, array.dtype, "r", array.offset, array.shape, order
            return _mapped_rows, (source, self.index)
        return Rows, (array, self.index)


def _mapped_rows(source: tuple, index: np.ndarray) -> Rows:
    return Rows(np.memmap(*source), index)


class Split(NamedTuple):
    """Examples in storage form: uint8 levels, or float32 for continuous data.

    x is an array in memory, a memory map, or `Rows` of one; labels are in memory.
    """

    x: UInt8[Any, "n *s"] | Float[Any, "n *s"]
    label: Int[np.ndarray, "n"] | None


class DataSet(NamedTuple):
    """Three splits that share no example.

    Every choice is made on validation; only evaluation reads test.
    Where they are known, `log_prob(x)` is the exact log density of continuous data in nats, and
    `noised_logp(x, alpha, sigma)` that of alpha x0 + sigma eps (see `exact`).
    """

    name: str
    train: Split
    validation: Split
    test: Split
    levels: int | None
    n_classes: int = 0
    class_names: tuple[str, ...] = ()
    log_prob: Callable[[Array], Array] | None = None
    noised_logp: Callable[[Array, Array, Array], Array] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.train.x.shape[1:]


def hold_out(split: Split, n: int) -> tuple[Split, Split]:
    """The split without n evenly spaced examples, and those n: train and validation."""
    size = len(split.x)
    if not 0 <= n < size:
        raise ValueError(
            f"n_validation = {n} must be at least 0 and less than the {size} training examples; "
            "set config.data.n_validation"
        )
    held = np.zeros(size, bool)
    held[np.arange(n) * size // max(n, 1)] = True
    return take(split, ~held), take(split, held)


def take(split: Split, index: np.ndarray) -> Split:
    """The examples of a split at `index`, positions or a mask.

    Those of an array in memory are copied; those of a memory map are `Rows`, and none is read.
    """
    label = None if split.label is None else split.label[index]
    if isinstance(split.x, (np.memmap, Rows)):
        return Split(Rows(split.x, np.arange(len(split.x))[index]), label)
    return Split(split.x[index], label)


def to_model(v: Num[Array | np.ndarray, "*s"], levels: int | None) -> Num[Array | np.ndarray, "*s"]:
    """x in [-1, 1] from levels plus noise, v in [0, levels]."""
    return v if levels is None else (2.0 * v - levels) / levels


def log_det(levels: int | None, n_dims: int) -> float:
    """log |dx / dv| of `to_model`, summed over the n_dims dimensions of an example, in nats.

    The log density of v is that of x plus this.
    """
    return 0.0 if levels is None else n_dims * math.log(2 / levels)


def to_levels(
    x: Float[Array | np.ndarray, "*s"], levels: int | None
) -> UInt8[Array, "*s"] | Float[Array | np.ndarray, "*s"]:
    """The integer levels, at most 256, that x in [-1, 1] lies in; values outside are clipped.

    Continuous data come back as they are.
    """
    if levels is None:
        return x
    # float32 may put to_model(k) this far below k; without it, floor would answer k - 1
    rounding = levels * 2.0**-23
    k = jnp.floor((x + 1) * (levels / 2) + rounding)
    return jnp.clip(k, 0, levels - 1).astype(jnp.uint8)
