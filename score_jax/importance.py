"""The K-sample importance-weighted bound, and the optimism that a noisy log p leaves in it.

    log P(k) >= E log 1/K sum_j exp(a_j),    a_j = log p(x_j) + log_weight_j,    x_j ~ q(x | k),

tighter with every K (Burda et al. 2016, arXiv 1509.00519, theorem 1). It is one only if log p is
exact: noise e_j in a_j, of mean 0, adds to second order

    1/2 ( sum_j w_j C_jj - sum_ij w_i w_j C_ij ),    C = Cov(e),  w = softmax(a),

at most s^2 / 2 nats with independent noise of variance s^2. What the e_j have in common cancels, so
all K solves share their probes; C is then estimated from how the probes differ.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float


class Bound(NamedTuple):
    """Per example, in nats.

    Attributes:
      logp: the K-sample bound.
      single: the mean of the K one-sample bounds, to compare.
      optimism: estimate of what the probes' noise adds to `logp`, to be subtracted; nan with one probe.
      noise: its variance s^2, of what differs between the K; nan with one probe.
      effective: 1 / sum_j w_j^2, the number of samples that the bound rests on.
    """

    logp: Float[Array, "b"]
    single: Float[Array, "b"]
    optimism: Float[Array, "b"]
    noise: Float[Array, "b"]
    effective: Float[Array, "b"]


def bound(logps: Float[Array, "k b p"], log_weights: Float[Array, "k b"]) -> Bound:
    """The bound from K samples' log p by each of p probes, the same p for all K, and their log-weights."""
    n, n_probes = len(logps), logps.shape[-1]
    log_ratios = jnp.mean(logps, -1) + log_weights
    weights = jax.nn.softmax(log_ratios, axis=0)

    # of the mean over the probes
    def variance(deviations):
        if n_probes == 1:
            return jnp.full(deviations.shape[:-1], jnp.nan)
        return jnp.sum(deviations, -1) / (n_probes * (n_probes - 1.0))

    error = logps - jnp.mean(logps, -1, keepdims=True)
    shared = jnp.sum(weights[..., None] * error, 0)
    own = jnp.sum(weights[..., None] * jnp.square(error - shared), 0)
    noise = jnp.sum(jnp.square(error - jnp.mean(error, 0)), 0) / max(n - 1, 1)
    return Bound(
        logp=logsumexp(log_ratios, axis=0) - jnp.log(n),
        single=jnp.mean(log_ratios, 0),
        optimism=0.5 * variance(own),
        noise=variance(noise),
        effective=1.0 / jnp.sum(jnp.square(weights), 0),
    )
