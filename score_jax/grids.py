"""Grids: where on the time axis a solver steps, and where a loss looks.

A grid is a smooth decreasing function of u in [0, 1] with grid(0) = t_max and grid(1) = t_min.
A sampler with n steps visits grid(i / n); an adaptive solver integrates in u; training draws u
uniformly, so that t = grid(u) has the density |du / dt| and the integral of h over time is E[h(t)
|dt / du|].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax.sde import SDE, log_snr_ends
from score_jax.types import Key

Grid = Callable[[Array], Array]


def uniform(sde: SDE) -> Grid:
    """Uniform in t."""
    return lambda u: sde.t_max + u * (sde.t_min - sde.t_max)


def log_snr(sde: SDE) -> Grid:
    """Uniform in log-SNR: the importance sampling of likelihood weighting for every linear SDE.

    It makes g^2 / sigma^2 |dt / du| constant (Song et al. 2021, arXiv 2101.09258,
    found it for each SDE).
    """
    largest, smallest = log_snr_ends(sde)
    return lambda u: sde.time_of_log_snr(smallest + u * (largest - smallest))


def power(sde: SDE, rho: float = 7.0) -> Grid:
    """Uniform in (sigma / alpha)^(1 / rho) (Karras et al. 2022, arXiv 2206.00364, eq. 5)."""
    largest, smallest = log_snr_ends(sde)
    start, end = jnp.exp(-0.5 / rho * smallest), jnp.exp(-0.5 / rho * largest)
    return lambda u: sde.time_of_log_snr(-2 * rho * jnp.log(start + u * (end - start)))


def reverse(grid: Grid) -> Grid:
    """The same grid walked from t_min up to t_max."""
    return lambda u: grid(1.0 - u)


def time_and_rate(grid: Grid, u: Array) -> tuple[Array, Array]:
    """t = grid(u) and dt / du."""
    return jax.jvp(grid, (u,), (jnp.ones_like(u),))


def stratified(key: Key, position: Float[Array, "b"]) -> Float[Array, "b"]:
    """u evenly spaced from one random offset: uniform one by one, and over the batch a low-variance rule.

    Args:
      key: the same for the whole global batch.
      position: index in the global batch divided by its size (Kingma et al. 2021, arXiv 2107.00630,
        appendix I.1).
    """
    return jnp.mod(jax.random.uniform(key) + position, 1.0)
