"""Data sets as records of arrays, and the map between integer levels and model space.

A stored value k in {0, .., levels - 1} with dequantization noise u in [0, 1) is v = k + u in
[0, levels), and the model sees

    x = 2 v / levels - 1  in [-1, 1),    log |dx / dv| = n_dims log(2 / levels).

`levels = None` says that the data are continuous: model space is the data's own space.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Num, UInt8


class Split(NamedTuple):
    """Examples in storage form: uint8 levels, or float32 for continuous data."""

    x: UInt8[np.ndarray, "n *s"] | Float[np.ndarray, "n *s"]
    label: Int[np.ndarray, "n"] | None


class DataSet(NamedTuple):
    """Three splits that share no example.

    Every choice is made on validation; only evaluation reads test.
    `log_prob(x)`, where it is known, is the exact log density of continuous data in nats.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    levels: int | None
    n_classes: int = 0
    class_names: tuple[str, ...] = ()
    log_prob: Callable[[Array], Array] | None = None

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
    """The examples of a split at `index`, positions or a mask."""
    return Split(split.x[index], None if split.label is None else split.label[index])


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
