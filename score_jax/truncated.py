"""The standard normal distribution between two bounds, accurate in float32 far out in either tail."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import log_ndtr
from jaxtyping import Float

from score_jax.types import Keys


def log_mass(lower: Float[Array, "*n"], upper: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log(Phi(upper) - Phi(lower)), lower < upper."""
    # on the side of zero where both tails are small
    flip = lower + upper > 0
    lower, upper = jnp.where(flip, -upper, lower), jnp.where(flip, -lower, upper)
    log_lower, log_upper = log_ndtr(lower), log_ndtr(upper)
    return log_upper + jnp.log(-jnp.expm1(log_lower - log_upper))


def mean(lower: Float[Array, "*n"], upper: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """E[eps | lower < eps < upper] = (phi(lower) - phi(upper)) / (Phi(upper) - Phi(lower))."""
    log_normaliser = 0.5 * jnp.log(2 * jnp.pi) + log_mass(lower, upper)
    ratio = lambda x: jnp.exp(-0.5 * jnp.square(x) - log_normaliser)
    # where both ratios have lost their digits, the bound next to zero is the mean
    return jnp.clip(ratio(lower) - ratio(upper), lower, upper)


def symmetric(keys: Keys, bound: Array, shape: tuple[int, ...]) -> Float[Array, "b *s"]:
    """eps given |eps| < bound, each example's array of this shape from its own key."""
    return jax.vmap(lambda key: jax.random.truncated_normal(key, -bound, bound, shape))(keys)
