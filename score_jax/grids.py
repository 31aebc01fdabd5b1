"""Grids: where on the time axis a solver steps, and where a loss looks.

A grid is a smooth decreasing function of u in [0, 1] with grid(0) = t_max and grid(1) = t_min.
A sampler with n steps visits grid(i / n); an adaptive solver integrates in u; training draws u
uniformly, so that t = grid(u) has the density |du / dt| and the integral of h over time is E[h(t)
|dt / du|].
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Float

from score_jax.sde import SDE, log_snr_ends
from score_jax.types import Key

Grid = Callable[[Array], Array]


def uniform(sde: SDE) -> Grid:
    """Uniform in t."""
    # this form is exact at both ends, also in float32
    return lambda u: (1 - u) * sde.t_max + u * sde.t_min


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


def quadratic(sde: SDE) -> Grid:
    """Uniform in sqrt(t): DDIM's quadratic sub-sequence (Song et al. 2021, arXiv 2010.02502, appendix D.2).

    Between uniform in t and uniform in log-SNR where t is a step's number, as under `sde.ddpm` and
    `sde.vp`. Under `sde.edm`, whose t is sigma, it is `power` at rho = 2.
    """
    start, end = math.sqrt(sde.t_max), math.sqrt(sde.t_min)
    return lambda u: jnp.square((1 - u) * start + u * end)


def piecewise(log_snrs: Sequence[float] | Array) -> Callable[[SDE], Grid]:
    """Log-SNR linear in u between increasing values at equal distances: the grids that `gridsearch` finds.

    The first and the last value are replaced by the SDE's ends.
    """

    def make(sde):
        largest, smallest = log_snr_ends(sde)
        inner = jnp.asarray(log_snrs)[1:-1]
        values = jnp.concatenate([jnp.atleast_1d(smallest), inner, jnp.atleast_1d(largest)])
        u_values = jnp.linspace(0.0, 1.0, len(values))
        return lambda u: sde.time_of_log_snr(jnp.interp(u, u_values, values))

    return make


def log_normal(sde: SDE, mean: float = -1.2, std: float = 1.2) -> Grid:
    """log(sigma / alpha) normal, cut off at the SDE's ends: EDM's training density (Karras et al. 2022, table 1).

    arXiv 2206.00364. For training; a sampler would take long steps at both ends. An end more than
    12 std from the mean has no probability in float32, and u = 0 or 1 stops short of it.

    Args:
      mean, std: of log(sigma / alpha) before it is cut off; the defaults are for data of standard
        deviation 0.5.
    """
    largest, smallest = log_snr_ends(sde)
    z = _cut_off_normal((-0.5 * largest - mean) / std, (-0.5 * smallest - mean) / std)
    return lambda u: sde.time_of_log_snr(-2 * (mean + std * z(u)))


def logit_normal(sde: SDE, mean: float = 0.0, std: float = 1.0) -> Grid:
    """log(t / (1 - t)) normal, cut off at the ends: flow matching's density of Esser et al. 2024, eq. 19.

    arXiv 2403.03206. For training, as `log_normal`, which under `sde.linear` it is, since there
    sigma / alpha = t / (1 - t). An end outside [0.001, 0.999] is where t of the law is 0.001 or
    0.999: what lies between is stretched over [t_min, t_max].

    Args:
      mean, std: of the logit of t before it is cut off; a mean above 0 leans towards noise.
    """
    low, high = max(sde.t_min, 1e-3), min(sde.t_max, 1 - 1e-3)
    logit = lambda t: math.log(t / (1 - t))
    z = _cut_off_normal(*((jnp.asarray(logit(end)) - mean) / std for end in (low, high)))
    stretch = (sde.t_max - sde.t_min) / (high - low)
    return lambda u: sde.t_min + stretch * (jax.nn.sigmoid(mean + std * z(u)) - low)


def _cut_off_normal(low: Array, high: Array) -> Grid:
    """z(u), falling from high to low: 1 - u is the share below z of a standard normal cut off at both."""
    # the mass of both tails outside the ends, and between them
    upper, lower = ndtr(-high), ndtr(low)
    inside = 1 - upper - lower

    def z(u):
        above, below = _beyond(upper, u * inside), _beyond(lower, (1 - u) * inside)
        # the quantile of the smaller tail: 1 - p has lost the digits of p
        is_above = above < below
        tail = jnp.where(is_above, above, below)
        # an end that is too far out has a tail of 0 and would be at infinity
        tail = jnp.maximum(tail, jnp.finfo(tail.dtype).tiny)
        return jnp.where(is_above, -1.0, 1.0) * ndtri(tail)

    return z


def _beyond(tail: Array, share: Array) -> Array:
    """tail + share of a share that is at least 0: compiled, the sum of a tail below rounding can come out smaller."""
    total = tail + share
    return jnp.where(total < tail, tail, total)


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
