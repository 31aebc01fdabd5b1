"""Samplers of one evaluation a step and first order."""

import jax.numpy as jnp

from score_jax import dynamics, shapes
from score_jax.samplers.base import Sampler, check_ends, predict_at, score_at, share, transition
from score_jax.sde import SDE, diffusion


def ddim(sde: SDE, *, eta: float = 0.0) -> Sampler:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16), for every linear SDE; order 1.

    Args:
      eta: 0 integrates the probability-flow ODE; 1 is ancestral sampling with the posterior's
        (small) variance. In between it is the noise level c of `dynamics` in the limit of short
        steps: with h as in `exponential`, the noise in x_s has variance sigma_s^2 eta^2 (1 - e^(-2
        h)), where level c has sigma_s^2 (1 - e^(-2 c^2 h)).
    """

    def step(keys, predict, x, t, s, carry):
        pair = predict_at(predict, x, t)
        noise = eta * jnp.sqrt(share(sde, t, s))  # of x_s given x_t and x0, over sigma_s
        x = sde.alpha(s) * pair.x0 + sde.sigma(s) * jnp.sqrt(1 - noise**2) * pair.eps
        return (x + sde.sigma(s) * noise * shapes.normal(keys, x) if eta else x), carry

    return Sampler(init=lambda x: None, step=step, evaluations=1)


def euler_maruyama(sde: SDE, *, noise: float = 1.0) -> Sampler:
    """Euler-Maruyama on the reverse SDE at a noise level (`dynamics`); weak order 1, Euler's method at noise = 0.

    Args:
      noise: 1 for the reverse SDE, 0 for the probability-flow ODE.
    """
    if noise:
        check_ends(sde, "euler_maruyama")  # g is infinite there, the velocity is not

    def step(keys, predict, x, t, s, carry):
        drift = dynamics.reverse_drift(sde, predict, noise=noise)(t, x)
        scale = noise * diffusion(sde, t) * jnp.sqrt(t - s)
        x = x + (s - t) * drift
        return (x + scale * shapes.normal(keys, x) if noise else x), carry

    return Sampler(init=lambda x: None, step=step, evaluations=1)


def reverse_diffusion(sde: SDE, *, noise: float = 1.0) -> Sampler:
    """The forward SDE's discrete step turned around; weak order 1 (Song et al. 2021, arXiv 2011.13456, eq. 46).

    x_s = (2 - alpha_ts) x + (1 + c^2) / 2 var_ts score + c sqrt(var_ts) z.

    Args:
      noise: the level c of `dynamics`; 1 is the paper's predictor, 0 the one for its ODE.
    """

    def step(keys, predict, x, t, s, carry):
        alpha_ts, var_ts = transition(sde, t, s)
        weight = 0.5 * (1 + noise**2) * var_ts
        x = (2 - alpha_ts) * x + weight * score_at(sde, predict, x, t)
        return (x + noise * jnp.sqrt(var_ts) * shapes.normal(keys, x) if noise else x), carry

    return Sampler(init=lambda x: None, step=step, evaluations=1)


# DDPM's two choices: exact if the data are one point, and if they are N(0, I) under VP
VARIANCES = {
    "small": lambda sde, t, s: jnp.square(sde.sigma(s)) * share(sde, t, s),
    "large": lambda sde, t, s: transition(sde, t, s)[1],
}


def ancestral(sde: SDE, *, variance: str = "small") -> Sampler:
    """DDPM's sampler, for every linear SDE; weak order 1 (Ho et al. 2020, arXiv 2006.11239, algorithm 2).

    x_s = (x + var_ts score) / alpha_ts + noise; the mean is that of x_s given x_t and the predicted
    x0. Levels of noise between the ODE and "small" are eta of `ddim`.

    Args:
      variance: of the noise, one of VARIANCES: "small" is that of x_s given x_t and x0, var_ts
        sigma_s^2 / sigma_t^2, as score_sde has it for VE; "large" is var_ts, as it has for VP.
    """
    check_ends(sde, "ancestral")

    def step(keys, predict, x, t, s, carry):
        alpha_ts, var_ts = transition(sde, t, s)
        x = (x + var_ts * score_at(sde, predict, x, t)) / alpha_ts
        return x + jnp.sqrt(VARIANCES[variance](sde, t, s)) * shapes.normal(keys, x), carry

    return Sampler(init=lambda x: None, step=step, evaluations=1)
