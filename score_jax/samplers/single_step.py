"""Runge-Kutta methods in lambda or sigma / alpha: several evaluations in each step, and no history."""

import math

import jax.numpy as jnp

from score_jax import shapes
from score_jax.samplers.base import Sampler, check_ends, predict_at
from score_jax.samplers.exponential import (
    DATA,
    NOISE,
    Form,
    half_log_snr,
    time_at,
)
from score_jax.sde import SDE


def edm_heun(
    sde: SDE,
    *,
    churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float | None = None,
    s_noise: float = 1.0,
) -> Sampler:
    """EDM's sampler, Heun's method with churn (Karras et al. 2022, arXiv 2206.00364, algorithm 2); order 2.

    In the variables x / alpha and r = sigma / alpha, where the probability-flow ODE is d(x / alpha)
    / dr = eps, for every linear SDE. First noise is added, from r to (1 + churn) r, never above r
    at t_max; then Heun's method leads down. churn = c^2 h in steps of length h in lambda is, as
    they become short, noise level c of `dynamics`. Every step has its second evaluation, as t_min
    is not at r = 0; the paper's last step, Euler's to r = 0, is to take x0 predicted at t_min.

    Args:
      churn: gamma of the paper, min(S_churn / N, sqrt(2) - 1) for its N steps.
      s_min, s_max: r between which there is churn; None is no upper end.
      s_noise: standard deviation of the noise that is added.
    """
    check_ends(sde, "edm_heun")
    ratio = lambda t: sde.sigma(t) / sde.alpha(t)
    highest = math.inf if s_max is None else s_max

    def gamma(t):
        # up to t_max: a network knows nothing of times above
        room = ratio(jnp.full_like(t, sde.t_max)) / ratio(t) - 1
        inside = (s_min <= ratio(t)) & (ratio(t) <= highest)
        return jnp.where(inside, jnp.clip(room, 0.0, churn), 0.0)

    def step(keys, predict, x, t, s, carry):
        eps = lambda x, t: predict_at(predict, sde.alpha(t) * x, t).eps
        x = x / sde.alpha(t)
        if churn:
            g = gamma(t)
            # sqrt((1 + g)^2 - 1)
            x = x + s_noise * ratio(t) * jnp.sqrt(g * (2 + g)) * shapes.normal(keys, x)
            t = jnp.where(g > 0, time_at(sde, half_log_snr(sde, t) - jnp.log1p(g)), t)
        h = ratio(s) - ratio(t)
        first = eps(x, t)
        second = eps(x + h * first, s)
        return sde.alpha(s) * (x + 0.5 * h * (first + second)), carry

    return Sampler(init=lambda x: None, step=step, evaluations=2)


def dpm_solver_2(sde: SDE) -> Sampler:
    """DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927, algorithm 1); order 2.

    The exponential midpoint rule in lambda on the predicted eps.
    """
    check_ends(sde, "dpm_solver_2")
    return _midpoint(sde, NOISE, 0.0)


def dpmpp_2s(sde: SDE, *, noise: float = 0.0) -> Sampler:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv 2211.01095, algorithm 1, r = 1/2); order 2, weak order 2 with noise.

    The exponential midpoint rule in lambda on the predicted x0.

    Args:
      noise: the level c of `dynamics`; 0 is the paper's method, 1 is SEEDS-2 (see `seeds_2`) on x0.
    """
    check_ends(sde, "dpmpp_2s")
    return _midpoint(sde, DATA, noise)


def seeds_2(sde: SDE, *, noise: float = 1.0) -> Sampler:
    """SEEDS-2 (Gonzalez et al. 2023, arXiv 2305.14267); weak order 2.

    The exponential midpoint rule in lambda on the predicted eps, where the midpoint has met the
    first half of the step's noise.

    Args:
      noise: the level c of `dynamics`; 1 is the paper's method, 0 is `dpm_solver_2`.
    """
    check_ends(sde, "seeds_2")
    return _midpoint(sde, NOISE, noise)


def dpm_solver_3(sde: SDE) -> Sampler:
    """DPM-Solver-3 (Lu et al. 2022, arXiv 2206.00927, algorithm 2, r_1 = 1/3 and r_2 = 2/3); order 3."""
    check_ends(sde, "dpm_solver_3")

    def step(keys, predict, x, t, s, carry):
        start = half_log_snr(sde, t)
        h = half_log_snr(sde, s) - start
        eps = lambda x, t: predict_at(predict, x, t).eps
        # e^h - 1, and phi with h phi the integral of e^(h - u) u / h over [0, h]
        grow = jnp.expm1
        phi = lambda h: grow(h) / h - 1

        def move(time, r, slope):
            scale = sde.sigma(time)
            return sde.alpha(time) / sde.alpha(t) * x - scale * (grow(r * h) * first + slope)

        t_1, t_2 = time_at(sde, start + h / 3), time_at(sde, start + 2 * h / 3)
        first = eps(x, t)
        d_1 = eps(move(t_1, 1 / 3, 0.0), t_1) - first
        d_2 = eps(move(t_2, 2 / 3, 2 * phi(2 * h / 3) * d_1), t_2) - first
        return move(s, 1.0, 1.5 * phi(h) * d_2), carry

    return Sampler(init=lambda x: None, step=step, evaluations=3)


def _midpoint(sde: SDE, form: Form, noise: float) -> Sampler:
    def step(keys, predict, x, t, s, carry):
        middle = time_at(sde, 0.5 * (half_log_snr(sde, t) + half_log_snr(sde, s)))
        f = lambda x, t: form.read(predict_at(predict, x, t))
        half, rest = form.step(sde, t, middle, noise), form.step(sde, middle, s, noise)
        whole = form.step(sde, t, s, noise)
        u = half.of_x * x + half.of_f * f(x, t)
        if not noise:
            return whole.of_x * x + whole.of_f * f(u, middle), carry
        # one Brownian path: what the midpoint met is part of the whole step's noise
        z_1 = half.of_z * shapes.normal(shapes.fold_in(keys, 0), x)
        z_2 = rest.of_z * shapes.normal(shapes.fold_in(keys, 1), x)
        return whole.of_x * x + whole.of_f * f(u + z_1, middle) + rest.of_x * z_1 + z_2, carry

    return Sampler(init=lambda x: None, step=step, evaluations=2)
