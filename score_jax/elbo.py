"""The continuous-time evidence lower bound on log p(x).

Variational diffusion models (Kingma et al. 2021, arXiv 2107.00630, section 5), for continuous x.

For the generative model that draws x_T from the prior, follows the reverse SDE to t_min and ends
with the denoising Gaussian N(x0_hat, (sigma / alpha)^2 I) at t_min, minus log p(x) is at most the
sum of

    1. prior            KL( q(x_T | x) || N(0, sigma(t_max)^2 I) )
    2. diffusion        1/2 E int -d log_snr/dt || eps - eps_hat ||^2 dt
    3. reconstruction   -E log N(x; x0_hat(x_t_min), (sigma / alpha)^2 I).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax import grids, shapes
from score_jax.losses import likelihood
from score_jax.sde import SDE, log_snr, perturb
from score_jax.types import Keys, PredictFn


class Terms(NamedTuple):
    """The three terms of minus the bound, each in nats per example."""

    prior: Float[Array, "b"]
    diffusion: Float[Array, "b"]
    reconstruction: Float[Array, "b"]


def negative_elbo(
    keys: Keys,
    sde: SDE,
    predict: PredictFn,
    x: Float[Array, "b *s"],
    label: Array | None = None,
    *,
    n_times: int = 16,
) -> Terms:
    """An unbiased estimate of each example's three terms, its expectation over t from n_times stratified times.

    Args:
      keys: one per example; an example's estimate depends on its own key alone.
      x: examples in model space, dequantized.
      n_times: network evaluations spent on the diffusion term, plus one on the reconstruction.
    """
    squared_error = lambda t, eps: shapes.sum_event(
        jnp.square(eps - predict(perturb(sde, x, t, eps), t, label).eps)
    )
    grid = grids.log_snr(sde)
    offset = jax.vmap(jax.random.uniform)(shapes.fold_in(keys, 0))

    def add(i, total):
        t, dt_du = grids.time_and_rate(grid, (i + offset) / n_times)
        eps = shapes.normal(shapes.fold_in(keys, 2 + i), x)
        return total + likelihood(sde, t, -dt_du) * squared_error(t, eps)

    diffusion = jax.lax.fori_loop(0, n_times, add, jnp.zeros(x.shape[:1])) / n_times

    t_min = jnp.full(x.shape[:1], sde.t_min)
    normaliser = 0.5 * shapes.event_size(x) * (jnp.log(2 * jnp.pi) - log_snr(sde, t_min))
    # at t_min || x - x0_hat ||^2 alpha^2 / sigma^2 is || eps - eps_hat ||^2
    error = squared_error(t_min, shapes.normal(shapes.fold_in(keys, 1), x))

    t_max = jnp.asarray(sde.t_max)
    mean = sde.alpha(t_max) / sde.sigma(t_max) * x
    return Terms(0.5 * shapes.sum_event(jnp.square(mean)), diffusion, normaliser + 0.5 * error)
