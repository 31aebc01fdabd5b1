"""Samplers: one step from t to s < t, under one loop.

A sampler is a record of two functions. `init(x)` makes the carry of a multi-step method (None for
those without), and `step(keys, predict, x, t, s, carry) -> x, carry` moves x [b, *s] from the
scalar time t to s.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax import dynamics, shapes
from score_jax.sde import SDE, diffusion, log_snr
from score_jax.types import Keys, PredictFn


class Sampler(NamedTuple):
    """A step, the carry it starts with, and the network evaluations that it spends."""

    init: Callable[[Array], Any]
    step: Callable[..., tuple[Array, Any]]
    evaluations: int


def ddim(sde: SDE, *, eta: float = 0.0) -> Sampler:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16), for every linear SDE; order 1.

    Args:
      eta: 0 integrates the probability-flow ODE; 1 is ancestral sampling with the posterior's
        (small) variance.
    """

    def step(keys, predict, x, t, s, carry):
        pair = predict(x, jnp.full(x.shape[:1], t))
        # the variance of x_s given x_t and x0, over sigma_s^2: 1 - (alpha_t sigma_s / alpha_s
        # sigma_t)^2
        share = -jnp.expm1(log_snr(sde, t) - log_snr(sde, s))
        noise = eta * jnp.sqrt(share)
        x = sde.alpha(s) * pair.x0 + sde.sigma(s) * jnp.sqrt(1 - noise**2) * pair.eps
        return (x + sde.sigma(s) * noise * shapes.normal(keys, x) if eta else x), carry

    return Sampler(init=lambda x: None, step=step, evaluations=1)


def euler_maruyama(sde: SDE, *, noise: float = 1.0) -> Sampler:
    """Euler-Maruyama on the reverse SDE at a noise level (`dynamics`); weak order 1, Euler's method at noise = 0.

    Args:
      noise: 1 for the reverse SDE, 0 for the probability-flow ODE.
    """

    def step(keys, predict, x, t, s, carry):
        drift = dynamics.reverse_drift(sde, predict, noise=noise)(t, x)
        scale = noise * diffusion(sde, t) * jnp.sqrt(t - s)
        x = x + (s - t) * drift
        return (x + scale * shapes.normal(keys, x) if noise else x), carry

    return Sampler(init=lambda x: None, step=step, evaluations=1)


def sample(
    keys: Keys,
    sampler: Sampler,
    predict: PredictFn,
    x: Float[Array, "b *s"],
    times: Float[Array, "n"],
    *,
    project: Callable[[Array, Array], Array] | None = None,
) -> Float[Array, "b *s"]:
    """x moved through the given decreasing times by the sampler: the one loop.

    Args:
      keys: one per sample; a sample depends on its own key alone, not on the batch it is drawn in.
      predict: function of x and t, labels already given.
      x: samples of the prior, at times[0].
      project: if given, x <- project(x, s) after each step: a constraint on x at time s.
    """

    def body(i, state):
        x, carry = state
        x, carry = sampler.step(shapes.fold_in(keys, i), predict, x, times[i], times[i + 1], carry)
        return (x if project is None else project(x, times[i + 1])), carry

    return jax.lax.fori_loop(0, times.shape[0] - 1, body, (x, sampler.init(x)))[0]
