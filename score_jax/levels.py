"""Pixels that have levels: x0 and eps at x_t once the probabilities of the levels are given.

A level k, dequantized uniformly, is the box [e_k, e_k+1] of model space. Let w_k be the probability
of a pixel's level k given x_t at all other pixels. Bayes' rule has the rest in closed form, pixel by
pixel, with d_k = (x_t - alpha e_k) / sigma, which is eps at the box's edge:

    P(k | x_t)      is proportional to  w_k (Phi(d_k) - Phi(d_k+1)),
    E[eps | k, x_t] = (phi(d_k+1) - phi(d_k)) / (Phi(d_k) - Phi(d_k+1)),

the mean of a normal distribution cut off at the edges. So a network that says w, which hardly changes
where the noise is finer than a level, has a score as sharp there as the boxes are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr
from jaxtyping import Float

from score_jax import shapes
from score_jax.sde import SDE
from score_jax.types import Prediction

# in units of sigma: a narrower box is beyond what differences of Phi resolve in float32
_NARROW = 0.1
# in units of sigma: a point further outside all boxes is read as if it were at this distance
_FAR = 5.0


class Posterior(NamedTuple):
    """log P(k | x_t) of each pixel, and the means of x0 and eps."""

    log_p: Float[Array, "b *s k"]
    mean: Prediction


def posterior(
    sde: SDE, logits: Float[Array, "b *s k"], x: Float[Array, "b *s"], t: Float[Array, "b"]
) -> Posterior:
    """What x_t says of levels whose log w are `logits`, up to a constant for each pixel."""
    n_levels = logits.shape[-1]
    edges = jnp.linspace(-1.0, 1.0, n_levels + 1, dtype=x.dtype)
    centers = 0.5 * (edges[1:] + edges[:-1])
    alpha, sigma = (shapes.like(c(t), x) for c in (sde.alpha, sde.sigma))
    inside = jnp.clip(x, -alpha - _FAR * sigma, alpha + _FAR * sigma)
    beyond = (x - inside) / sigma
    alpha, sigma, inside = alpha[..., None], sigma[..., None], inside[..., None]

    middle = (inside - alpha * centers) / sigma
    width = alpha * (2.0 / n_levels) / sigma
    log_mass, shift = _narrow(middle, width)
    log_mass_wide, shift_wide = _wide((inside - alpha * edges) / sigma, middle)
    narrow = width < _NARROW
    log_mass = jnp.where(narrow, log_mass, log_mass_wide)
    shift = jnp.where(narrow, shift, shift_wide)

    log_p = jax.nn.log_softmax(logits + log_mass)
    p = jnp.exp(log_p)
    # two sums: x0 from eps, or eps from x0, would lose digits where sigma / alpha is large or small
    x0 = jnp.sum(p * (centers - sigma / alpha * shift), -1)
    eps = jnp.sum(p * (middle + shift), -1) + beyond
    return Posterior(log_p, Prediction(x0, eps))


def _narrow(middle, width):
    # both to second order in the width, relative
    log_mass = -0.5 * middle**2 + jnp.log(width) - 0.5 * jnp.log(2 * jnp.pi)
    return log_mass + width**2 * (middle**2 - 1) / 24, -middle * width**2 / 12


def _wide(d, middle):
    """Log mass, and the mean of eps minus the middle, between neighboring d, decreasing."""
    tail, density = ndtr(-jnp.abs(d)), jnp.exp(-0.5 * d**2) / jnp.sqrt(2 * jnp.pi)
    upper, lower = d[..., :-1], d[..., 1:]
    tails = jnp.where(
        (upper > 0) == (lower > 0),
        jnp.abs(tail[..., :-1] - tail[..., 1:]),
        1.0 - tail[..., :-1] - tail[..., 1:],
    )
    # far outside a box its mass has left float32's range, and the nearest edge is all of it
    floor = jnp.finfo(d.dtype).tiny ** 0.5
    near = jnp.clip(0.0, lower, upper)
    far = tails <= floor
    mass = jnp.where(far, 1.0, tails)
    mean = jnp.where(far, near, (density[..., 1:] - density[..., :-1]) / mass)
    distance = jnp.where(far, jnp.abs(near), 1.0)
    log_far = -0.5 * distance**2 - jnp.log(distance) - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.where(far, log_far, jnp.log(mass)), mean - middle
