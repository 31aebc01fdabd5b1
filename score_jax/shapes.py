"""Shape helpers shared by everything that treats `x` as [b, *event]."""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax.types import Keys


def like(t: Array, x: Array) -> Array:
    """`t`, a scalar or [b], with trailing axes so that it multiplies x [b, *s]."""
    return jnp.reshape(t, jnp.shape(t) + (1,) * (x.ndim - jnp.ndim(t))) if jnp.ndim(t) else t


def sum_event(x: Float[Array, "b *s"]) -> Float[Array, "b"]:
    """The sum over all axes but the first."""
    return jnp.sum(x.reshape(x.shape[0], -1), axis=1)


def event_size(x: Array) -> int:
    """The number of dimensions of one example of x [b, *s]."""
    return math.prod(x.shape[1:])


def fold_in(keys: Keys, data) -> Keys:
    """Each example's key with `data` folded in: a new independent stream per example."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def normal(keys: Keys, x: Float[Array, "b *s"]) -> Float[Array, "b *s"]:
    """Standard normal noise of x's shape, example i drawn from keys[i]."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
