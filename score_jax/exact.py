"""Distributions whose noised density is known, so that samplers and likelihoods can be held against the truth.

Each constructor returns noised_logp(x, alpha, sigma): the log-density in nats of alpha x0 + sigma
eps at x [b, *s], with alpha and sigma scalars or [b]. At alpha = 1, sigma = 0 it is the data's own
density. `predictor` turns it into the perfect network by autodiff.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from score_jax import predict, shapes, truncated
from score_jax.sde import SDE
from score_jax.types import PredictFn

NoisedLogp = Callable[[Array, Array, Array], Array]


def gaussian(mean, covariance) -> NoisedLogp:
    """N(mean, covariance), mean [d], covariance [d, d]."""
    mean = jnp.asarray(mean)
    eigenvalues, vectors = (jnp.asarray(a, mean.dtype) for a in np.linalg.eigh(covariance))

    def noised_logp(x, alpha, sigma):
        alpha, sigma = shapes.like(alpha, x), shapes.like(sigma, x)
        variance = alpha**2 * eigenvalues + sigma**2
        z = (x - alpha * mean) @ vectors
        return -0.5 * jnp.sum(z**2 / variance + jnp.log(2 * jnp.pi * variance), axis=-1)

    return noised_logp


def mixture(weights, means, std: float) -> NoisedLogp:
    """Sum over k of weights[k] N(means[k], std^2 I), means [k, d]."""
    log_weights, means = jnp.log(jnp.asarray(weights)), jnp.asarray(means)

    def noised_logp(x, alpha, sigma):
        alpha, sigma = shapes.like(alpha, x)[..., None], shapes.like(sigma, x)[..., None]
        variance = (alpha * std) ** 2 + sigma**2
        square = jnp.square(x[:, None] - alpha * means) / variance
        components = -0.5 * jnp.sum(square + jnp.log(2 * jnp.pi * variance), axis=-1)
        return logsumexp(log_weights + components, axis=-1)

    return noised_logp


def boxes(probabilities, edges) -> NoisedLogp:
    """Independent dimensions, each a mixture of uniform boxes: categorical pixels after uniform dequantization.

    Args:
      probabilities: [d, levels], rows sum to one.
      edges: [levels + 1], increasing: level k is spread evenly over [edges[k], edges[k + 1]].
    """
    edges = jnp.asarray(edges)
    log_heights = jnp.log(jnp.asarray(probabilities)) - jnp.log(jnp.diff(edges))

    def noised_logp(x, alpha, sigma):
        alpha, sigma = shapes.like(alpha, x)[..., None], shapes.like(sigma, x)[..., None]
        upper = (alpha * edges[1:] - x[..., None]) / sigma
        lower = (alpha * edges[:-1] - x[..., None]) / sigma
        mass = truncated.log_mass(lower, upper)
        return jnp.sum(logsumexp(log_heights + mass - jnp.log(alpha), axis=-1), axis=-1)

    return noised_logp


def points(probabilities, values, std: float = 0.0) -> NoisedLogp:
    """Independent dimensions, each a mixture of N(values[k], std^2): categorical pixels on a lattice.

    Args:
      probabilities: [d, levels], rows sum to one.
      values: [levels], in model space.
      std: of each point; 0 for the lattice itself, which has a density once it is noised.
    """
    values, log_weights = jnp.asarray(values), jnp.log(jnp.asarray(probabilities))

    def noised_logp(x, alpha, sigma):
        alpha, sigma = shapes.like(alpha, x)[..., None], shapes.like(sigma, x)[..., None]
        variance = (alpha * std) ** 2 + sigma**2
        square = jnp.square(x[..., None] - alpha * values) / variance
        components = -0.5 * (square + jnp.log(2 * jnp.pi * variance))
        return jnp.sum(logsumexp(log_weights + components, axis=-1), axis=-1)

    return noised_logp


def predictor(sde: SDE, noised_logp: NoisedLogp) -> PredictFn:
    """The perfect prediction, from the score of the noised density."""

    def predict_fn(x, t, label=None):
        total = lambda x: jnp.sum(noised_logp(x, sde.alpha(t), sde.sigma(t)))
        return predict.read("score", sde, jax.grad(total)(x), x, t)

    return predict_fn
