"""Linear diffusions x_t = alpha(t) x_0 + sigma(t) eps, eps ~ N(0, I), t in [t_min, t_max].

The pair (alpha, sigma) determines the SDE dx = f(t) x dt + g(t) dW (Kingma et al. 2021, arXiv
2107.00630):

    log_snr = log alpha^2 / sigma^2,    f = d log alpha / dt,    g^2 = -sigma^2 d log_snr / dt.

An SDE is a record of three functions of a time array, alpha, sigma and the inverse of log_snr; all
else is derived here. t_min is where sigma / alpha is about 1e-3 of data that spans [-1, 1]: noise
far below the step between 8-bit levels.

A record may also have a force, a non-linear term of the drift: dx = (f(t) x + force(t, x)) dt +
g(t) dW from t_min on, where x_t_min = alpha x_0 + sigma eps. Then x_t given x_0 has no closed form
and is simulated (`simulate`); alpha and sigma stand for f and g, for the log-SNR by which times are
placed, and for the units of a network's output, score = -eps_hat / sigma.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_jax import shapes

TimeFn = Callable[[Array], Array]
Force = Callable[[Array, Array], Array]


class SDE(NamedTuple):
    """alpha(t), sigma(t), the time at a given log-SNR, the ends of the time axis, and force(t, x) or None."""

    alpha: TimeFn
    sigma: TimeFn
    time_of_log_snr: TimeFn
    t_min: float
    t_max: float
    force: Force | None = None


def vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5) -> SDE:
    """Variance-preserving SDE with linear beta (Song et al. 2021, arXiv 2011.13456, eq. 32-33).

    Args:
      beta_min, beta_max: noise rate at t = 0 and t = 1, per unit time.
      t_min: smallest time used in training and sampling; sigma(t_min) is about sqrt(beta_min
        t_min).
    """

    # expm1 and log1p: 1 - exp loses all digits near t = 0
    def time(log_snr):
        return _beta_time(jax.nn.softplus(-log_snr), beta_min, beta_max)

    return SDE(
        alpha=lambda t: jnp.exp(-0.5 * _beta_integral(t, beta_min, beta_max)),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(-_beta_integral(t, beta_min, beta_max))),
        time_of_log_snr=time,
        t_min=t_min,
        t_max=1.0,
    )


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 5e-3) -> SDE:
    """Sub-VP SDE: alpha as in `vp`, sigma = 1 - alpha^2 (Song et al. 2021, arXiv 2011.13456, eq. 29).

    Args:
      beta_min, beta_max: noise rate at t = 0 and t = 1, per unit time.
      t_min: smallest time; sigma(t_min) is about beta_min t_min, so it is larger here than for
        `vp`.
    """

    # alpha / sigma = 1 / (2 sinh(integral / 2))
    def time(log_snr):
        return _beta_time(2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * log_snr)), beta_min, beta_max)

    return SDE(
        alpha=lambda t: jnp.exp(-0.5 * _beta_integral(t, beta_min, beta_max)),
        sigma=lambda t: -jnp.expm1(-_beta_integral(t, beta_min, beta_max)),
        time_of_log_snr=time,
        t_min=t_min,
        t_max=1.0,
    )


def ve(sigma_min: float = 1e-3, sigma_max: float = 50.0) -> SDE:
    """Variance-exploding SDE: alpha = 1, sigma geometric in t (Song et al. 2021, arXiv 2011.13456, appendix C).

    sigma(t) = sigma_min (sigma_max / sigma_min)^t; the variance of the paper's eq. 29 is less by
    sigma_min^2, so that it starts at 0. At t = (i - 1) / (N - 1), i = 1 ... N, these are the N noise
    levels of SMLD, also known as NCSN (same appendix).

    Args:
      sigma_min, sigma_max: standard deviation of the noise at t = 0 and t = 1, in units of the
        data.
    """
    rate = math.log(sigma_max / sigma_min)
    return SDE(
        alpha=lambda t: jnp.ones_like(t),
        sigma=lambda t: sigma_min * jnp.exp(rate * t),
        time_of_log_snr=lambda log_snr: (-0.5 * log_snr - math.log(sigma_min)) / rate,
        t_min=0.0,
        t_max=1.0,
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> SDE:
    """EDM's SDE: alpha = 1, sigma = t, so that time is the noise level (Karras et al. 2022, arXiv 2206.00364, table 1).

    Args:
      sigma_min, sigma_max: the ends t_min and t_max, in units of the data.
    """
    return SDE(
        alpha=lambda t: jnp.ones_like(t),
        sigma=lambda t: t,
        time_of_log_snr=lambda log_snr: jnp.exp(-0.5 * log_snr),
        t_min=sigma_min,
        t_max=sigma_max,
    )


def cosine(s: float = 0.008, t_min: float = 2.5e-5, t_max: float = 0.999) -> SDE:
    """Cosine schedule: alpha = cos(a) / cos(a_0), a = pi/2 (t + s) / (1 + s), variance preserving.

    Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17, in continuous time.

    Args:
      s: offset that keeps the noise rate at t = 0 above zero.
      t_min, t_max: the ends, inside (0, 1); log-SNR is infinite at 0 and at 1. The default t_max is
        the last of 1000 steps but one, after which the paper clips its noise rate.
    """
    scale = 0.5 * math.pi / (1 + s)
    sin_0, cos_0 = math.sin(scale * s), math.cos(scale * s)

    # sin^2 a - sin^2 a_0 = sin(a - a_0) sin(a + a_0): 1 - alpha^2 loses all digits near t = 0
    def sigma(t):
        return jnp.sqrt(jnp.sin(scale * t) * jnp.sin(scale * (t + 2 * s))) / cos_0

    # a - a_0 from its own sine and cosine: a itself is a_0 and little more near t = 0
    def time(log_snr):
        rise = cos_0**2 * jax.nn.sigmoid(-log_snr)
        sin, cos = jnp.sqrt(sin_0**2 + rise), cos_0 * jnp.sqrt(jax.nn.sigmoid(log_snr))
        return jnp.arctan2(rise / (sin * cos_0 + cos * sin_0), cos * cos_0 + sin * sin_0) / scale

    return SDE(
        alpha=lambda t: jnp.sin(scale * (1 - t)) / cos_0,  # the cosine, with its digits near t = 1
        sigma=sigma,
        time_of_log_snr=time,
        t_min=t_min,
        t_max=t_max,
    )


def ddpm(
    beta_min: float = 1e-4, beta_max: float = 0.02, n_betas: int = 1000, t_min: float = 1e-5
) -> SDE:
    """DDPM's schedule (Ho et al. 2020, arXiv 2006.11239, section 4): n_betas betas, linear from beta_min to beta_max.

    Its step i is here at t = i / n_betas; see `of_betas`.

    Args:
      beta_min, beta_max: the first and the last beta, a variance per step, inside (0, 1).
      n_betas: number of steps.
      t_min: as in `vp`. With 1 / n_betas, n_betas - 1 steps of the uniform grid, and denoising at
        the end, `ancestral` sampling is DDPM's algorithm 2.
    """
    return of_betas(np.linspace(beta_min, beta_max, n_betas), t_min=t_min)


def of_betas(betas, t_min: float = 1e-5) -> SDE:
    """The variance-preserving SDE with alpha(i / n)^2 = (1 - betas[0]) ... (1 - betas[i - 1]), exactly, for all i.

    In between the noise rate is constant: log alpha is piecewise linear.

    Args:
      betas: [n], variances per step, inside (0, 1).
      t_min: smallest time; sigma(t_min) is about sqrt(n betas[0] t_min).
    """
    betas = np.asarray(betas, np.float64)
    n = len(betas)
    # -log alpha^2 over each step, and at the start of each step
    rises = -np.log1p(-betas)
    starts = np.cumsum(rises) - rises

    def integral(t):
        i = jnp.clip((n * t).astype(int), 0, n - 1)
        return jnp.asarray(starts, t.dtype)[i] + jnp.asarray(rises, t.dtype)[i] * (n * t - i)

    def time(log_snr):
        value = jax.nn.softplus(-log_snr)
        knots = jnp.asarray(starts, value.dtype)
        # compare_all: a search would be a loop inside the solver's
        i = jnp.searchsorted(knots, value, method="compare_all") - 1
        i = jnp.clip(i, 0, n - 1)
        return (i + (value - knots[i]) / jnp.asarray(rises, value.dtype)[i]) / n

    return SDE(
        alpha=lambda t: jnp.exp(-0.5 * integral(t)),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(-integral(t))),
        time_of_log_snr=time,
        t_min=t_min,
        t_max=1.0,
    )


def linear(t_min: float = 1e-3, t_max: float = 0.999) -> SDE:
    """Linear interpolation alpha = 1 - t, sigma = t: flow matching's path (Lipman et al. 2023, arXiv 2210.02747).

    Args:
      t_min, t_max: the ends, inside (0, 1); log-SNR is infinite at 0 and at 1.
    """
    return SDE(
        alpha=lambda t: 1.0 - t,
        sigma=lambda t: t,
        time_of_log_snr=lambda log_snr: jax.nn.sigmoid(-0.5 * log_snr),
        t_min=t_min,
        t_max=t_max,
    )


def anharmonic(
    strength: float = 2.0,
    width: float = 0.5,
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    t_min: float = 1e-5,
) -> SDE:
    """`vp` in a well with two bottoms that becomes a parabola: an SDE whose kernel has no closed form.

    VP's drift is that of a harmonic well, -beta / 2 grad ||x||^2 / 2. Here each coordinate's well is

        U = x^2 / 2 - strength alpha^2 width log cosh(x / width),

    so that force(t, x) = beta / 2 strength alpha(t)^2 tanh(x / width): bounded, and gone with the
    signal's power. At t = 1 the law is as near to N(0, I) as under `vp`, up to terms of the order
    of alpha(1). Song et al. 2021 (arXiv 2011.13456, section 3.3 and appendix A) train such SDEs on
    simulated x_t by sliced score matching.

    Args:
      strength: of the force, in units of x; above `width` the well has two bottoms at t = 0, near
        -strength and strength if it is far above. Negative pushes inwards.
      width: length over which the force changes its sign, positive.
      beta_min, beta_max, t_min: as in `vp`.
    """
    linear_part = vp(beta_min, beta_max, t_min)

    def force(t, x):
        beta = beta_min + (beta_max - beta_min) * t
        factor = 0.5 * beta * strength * jnp.square(linear_part.alpha(t))
        return shapes.like(factor, x) * jnp.tanh(x / width)

    return linear_part._replace(force=force)


def log_snr(sde: SDE, t: Array) -> Array:
    """log(alpha^2 / sigma^2), decreasing in t."""
    return 2.0 * (jnp.log(sde.alpha(t)) - jnp.log(sde.sigma(t)))


def log_snr_ends(sde: SDE) -> tuple[Array, Array]:
    """log-SNR at t_min and at t_max: the largest and the smallest."""
    return log_snr(sde, jnp.asarray(sde.t_min)), log_snr(sde, jnp.asarray(sde.t_max))


def drift(sde: SDE, t: Array) -> Array:
    """f(t) = d log alpha / dt; the SDE's drift is f(t) x, and the force if there is one."""
    return _derivative(lambda u: jnp.log(sde.alpha(u)), t)


def diffusion(sde: SDE, t: Array) -> Array:
    """g(t) = sigma sqrt(-d log_snr / dt)."""
    return sde.sigma(t) * jnp.sqrt(log_snr_rate(sde, t))


def log_snr_rate(sde: SDE, t: Array) -> Array:
    """-d log_snr / dt = g^2 / sigma^2, positive."""
    return -_derivative(lambda u: log_snr(sde, u), t)


def path(sde: SDE, t: Array) -> tuple[Array, Array, Array, Array]:
    """alpha, sigma and their derivatives alpha', sigma' at t."""
    ones = jnp.ones_like(t)
    alpha, d_alpha = jax.jvp(sde.alpha, (t,), (ones,))
    sigma, d_sigma = jax.jvp(sde.sigma, (t,), (ones,))
    return alpha, sigma, d_alpha, d_sigma


def perturb(
    sde: SDE, x0: Float[Array, "b *s"], t: Float[Array, "b"], eps: Float[Array, "b *s"]
) -> Float[Array, "b *s"]:
    """x_t = alpha(t) x0 + sigma(t) eps, without a force."""
    return shapes.like(sde.alpha(t), x0) * x0 + shapes.like(sde.sigma(t), x0) * eps


def prior_logp(sde: SDE, x: Float[Array, "b *s"]) -> Float[Array, "b"]:
    """Log-density in nats of N(0, sigma(t_max)^2 I), which stands for p at t_max.

    The true density there is wider by alpha(t_max) times the data: under `vp` the stand-in is off
    by about alpha(1) |mean of the data| = 0.0066 |mean| nats a dimension and point.
    """
    sigma = sde.sigma(jnp.asarray(sde.t_max))
    normaliser = 0.5 * jnp.log(2 * jnp.pi) + jnp.log(sigma)
    return -shapes.sum_event(0.5 * jnp.square(x / sigma) + normaliser)


def _derivative(fn: TimeFn, t: Array) -> Array:
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]


def _beta_integral(t, beta_min, beta_max):
    return beta_min * t + 0.5 * (beta_max - beta_min) * t**2


def _beta_time(integral, beta_min, beta_max):
    # the positive root of the quadratic, in the form that does not cancel at small t
    return 2 * integral / (beta_min + jnp.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * integral))
