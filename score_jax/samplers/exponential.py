"""Exact solutions that exponential integrators approximate, written once for every linear SDE.

In lambda = log(alpha / sigma), half the log-SNR, and with h = lambda_s - lambda_t, the reverse SDE at noise level c
(`dynamics`; c = 0 is the probability-flow ODE) leads from t to s by

    x_s = sigma_s / sigma_t e^(-c^2 h) x_t + alpha_s I(1 + c^2, x0) + sigma_s sqrt(1 - e^(-2 c^2 h)) z,
    x_s = alpha_s / alpha_t x_t + (1 + c^2) sigma_s I(-1, eps) + c sigma_s sqrt(e^(2 h) - 1) z,

where I(rate, f) is the integral over lambda, from lambda_t to lambda_s, of rate e^(-rate (lambda_s - lambda)) f,
with f the prediction along the path (Lu et al. 2022, arXiv 2206.00927, proposition 3.1, and arXiv 2211.01095,
proposition 4.1, both at c = 0). I(rate, 1) = 1 - e^(-rate h), so a method that puts a polynomial for f is exact
wherever the prediction is constant. x / alpha, or x / sigma, depends on the SDE through lambda alone: at the same
lambdas every SDE has the same result, up to that scale.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_jax.sde import SDE, log_snr
from score_jax.types import Prediction

# Gauss-Legendre on [0, 1]: to 1e-15 as long as rate h is below 7
NODES, WEIGHTS = (0.5 * a for a in np.polynomial.legendre.leggauss(12))
NODES = 0.5 + NODES


class Step(NamedTuple):
    """x_s = of_x x_t + of_f f + of_z z for a constant prediction f; rate and scale are those of its integral."""

    of_x: Array
    of_f: Array
    of_z: Array
    rate: float
    scale: Array


class Form(NamedTuple):
    """One of the two solutions: the prediction that it integrates, and its step(sde, t, s, c)."""

    read: Callable[[Prediction], Array]
    step: Callable[[SDE, Array, Array, float], Step]


def half_log_snr(sde: SDE, t: Array) -> Array:
    """lambda = log(alpha / sigma)."""
    return 0.5 * log_snr(sde, t)


def time_at(sde: SDE, half: Array) -> Array:
    """The time at which lambda has the given value."""
    return sde.time_of_log_snr(2 * half)


def _data(sde, t, s, c):
    h = half_log_snr(sde, s) - half_log_snr(sde, t)
    rate, alpha, sigma = 1 + c**2, sde.alpha(s), sde.sigma(s)
    return Step(
        of_x=sigma / sde.sigma(t) * jnp.exp(-(c**2) * h),
        of_f=-alpha * jnp.expm1(-rate * h),
        of_z=sigma * jnp.sqrt(-jnp.expm1(-2 * c**2 * h)),
        rate=rate,
        scale=alpha,
    )


def _noise(sde, t, s, c):
    h = half_log_snr(sde, s) - half_log_snr(sde, t)
    scale = (1 + c**2) * sde.sigma(s)
    return Step(
        of_x=sde.alpha(s) / sde.alpha(t),
        of_f=-scale * jnp.expm1(h),
        of_z=c * sde.sigma(s) * jnp.sqrt(jnp.expm1(2 * h)),
        rate=-1.0,
        scale=scale,
    )


DATA = Form(lambda pair: pair.x0, _data)
NOISE = Form(lambda pair: pair.eps, _noise)


def integrals(
    rate: float, h: Array, knots: tuple[Array, ...], clock: Callable[[Array], Array]
) -> list[Array]:
    """I(rate, p_j) for Newton's polynomials p_j = (y - knots[0]) ... (y - knots[j - 1]), j = 0 ... len(knots).

    Args:
      clock: y, the variable of the polynomials, as a function of lambda - lambda_t in [0, h].
    """
    u = h * jnp.asarray(NODES, h.dtype)
    weight = h * jnp.asarray(WEIGHTS, h.dtype) * rate * jnp.exp(-rate * (h - u))
    values, y = [-jnp.expm1(-rate * h)], clock(u)
    for knot in knots:
        weight = weight * (y - knot)
        values.append(jnp.sum(weight))
    return values


class History(NamedTuple):
    """The carry of every multi-step method: the latest predictions, newest first, and where on its clock each was.

    It starts empty; `count` is the number of predictions so far, and the first steps are of lower
    order for lack of them.
    """

    count: Array
    values: tuple[Float[Array, "b *s"], ...]
    knots: tuple[Array, ...]


def empty(n: int) -> Callable[[Array], History]:
    """init(x) of a method that looks at n predictions."""

    def init(x):
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        # apart from every time or lambda and from each other: differences over them are finite, and not used
        knots = tuple(jnp.asarray(-1e3 * (i + 1), dtype) for i in range(n))
        return History(jnp.zeros((), jnp.int32), (jnp.zeros_like(x),) * n, knots)

    return init


def push(history: History, value: Array, knot: Array) -> History:
    """The history with one more prediction, and without its oldest."""
    return History(
        history.count + 1,
        (value, *history.values[:-1]),
        (knot.astype(history.knots[0].dtype), *history.knots[:-1]),
    )


def differences(history: History) -> list[Array]:
    """Divided differences f[0], f[0, 1], f[0, 1, 2] ... of the predictions over their knots."""
    row, knots, newest = list(history.values), history.knots, []
    for width in range(len(knots)):
        newest.append(row[0])
        row = [
            (near - far) / (knots[i] - knots[i + width + 1])
            for i, (near, far) in enumerate(itertools.pairwise(row))
        ]
    return newest
