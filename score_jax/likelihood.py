"""Exact log-likelihood by the probability-flow ODE (Song et al. 2021, arXiv 2011.13456, eq. 39; Chen et al. 2018).

Along dx/dt = v(x, t) the log-density changes by -div v, so log p at t_min is log p at t_max of the
point that x flows to, plus the integral of div v from t_min to t_max.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from score_jax import dynamics, solve
from score_jax import sde as sdes
from score_jax.grids import Grid, reverse
from score_jax.sde import SDE
from score_jax.types import Key, Keys, PredictFn


class Likelihood(NamedTuple):
    """Per example: log-density at t_min in nats, the latent at t_max, evaluations of (v, div v), solver success."""

    logp: Float[Array, "b"]
    latent: Float[Array, "b *s"]
    nfe: Int[Array, "b"]
    ok: Bool[Array, "b"]


def rademacher(key: Key, x: Float[Array, "*s"]) -> Float[Array, "1 *s"]:
    """One probe of random signs, E[probe probe^T] = I: Hutchinson's estimator of the trace."""
    return jax.random.rademacher(key, (1, *x.shape), x.dtype)


def basis(key: Key, x: Float[Array, "*s"]) -> Float[Array, "n *s"]:
    """All unit vectors, whose quadratic forms sum to the exact trace, at the cost of n = x.size products."""
    return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)


TRACES = {"hutchinson": rademacher, "exact": basis}


def log_likelihood(
    keys: Keys,
    sde: SDE,
    predict: PredictFn,
    x: Float[Array, "b *s"],
    label: Int[Array, "b"] | None = None,
    *,
    grid: Grid,
    trace: str = "hutchinson",
    prior_logp=sdes.prior_logp,
    **solver,
) -> Likelihood:
    """Log-density of x at t_min, in nats, by the probability-flow ODE.

    One probe is drawn per example and kept for the whole solve: the right-hand side must be a
    function of (t, x). Drift and divergence come from one `jax.jvp`; each example has its own step
    control.

    Args:
      keys: one per example; an example's result depends on its own key alone.
      grid: from `grids`; the solver's independent variable.
      trace: "hutchinson" (unbiased, one product) or "exact" (one product per dimension).
      prior_logp: log-density at t_max, called as prior_logp(sde, x).
      **solver: arguments of `solve.ode`: solver, n_steps, or rtol and atol.
    """

    def one(key, x, label):
        probes = TRACES[trace](key, x)
        labels = None if label is None else label[None]
        velocity = dynamics.reverse_drift(sde, lambda x, t: predict(x, t, labels))

        def field(t, state):
            x, _ = state
            push = lambda probe: jax.jvp(lambda y: velocity(t, y[None])[0], (x,), (probe,))
            v, products = jax.vmap(push, out_axes=(None, 0))(probes)
            return v, jnp.sum(probes * products)

        solution = solve.ode(field, (x, jnp.zeros((), x.dtype)), reverse(grid), **solver)
        latent, volume = solution.y
        return Likelihood(
            prior_logp(sde, latent[None])[0] + volume, latent, solution.nfe, solution.ok
        )

    return jax.vmap(one, in_axes=(0, 0, None if label is None else 0))(keys, x, label)
