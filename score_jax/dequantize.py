"""Dequantization: integer levels made continuous, so that a density bounds their probability.

With v = levels + u, u uniform on [0, 1): log P(levels) >= E log p(v), where P integrates p over
the unit cube above the levels (Theis et al. 2016, arXiv 1511.01844, section 3.1).
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Num

from score_jax.types import Keys


def uniform(keys: Keys, x: Num[Array, "b *s"]) -> Float[Array, "b *s"]:
    """x + u, u uniform on [0, 1), each example from its own key."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(keys)
    return x.astype(jnp.float32) + noise
