"""Samplers: one step from t to s < t, under one loop.

A sampler is a record of two functions. `init(x)` makes the carry of a multi-step method (None for
those without), and `step(keys, predict, x, t, s, carry) -> x, carry` moves x [b, *s] from the
scalar time t to s.

Between s and t the forward SDE has x_t = alpha_ts x_s + sqrt(var_ts) z with

    alpha_ts = alpha_t / alpha_s,    var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2,

which are 1 and the difference of the variances for VE, sqrt(1 - beta_t) and beta_t for VP. A
corrector is a sampler whose step leaves x at time t; `corrected` puts one before a predictor.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax import dynamics, shapes
from score_jax.predict import combine
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
        noise = eta * jnp.sqrt(_share(sde, t, s))  # of x_s given x_t and x0, over sigma_s
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


def reverse_diffusion(sde: SDE) -> Sampler:
    """The forward SDE's discrete step turned around; weak order 1 (Song et al. 2021, arXiv 2011.13456, eq. 46).

    x_s = (2 - alpha_ts) x + var_ts score + sqrt(var_ts) z.
    """

    def step(keys, predict, x, t, s, carry):
        alpha_ts, var_ts = _transition(sde, t, s)
        x = (2 - alpha_ts) * x + var_ts * _score(sde, predict, x, t)
        return x + jnp.sqrt(var_ts) * shapes.normal(keys, x), carry

    return Sampler(init=lambda x: None, step=step, evaluations=1)


# DDPM's two choices: exact if the data are one point, and if they are N(0, I) under VP
VARIANCES = {
    "small": lambda sde, t, s: jnp.square(sde.sigma(s)) * _share(sde, t, s),
    "large": lambda sde, t, s: _transition(sde, t, s)[1],
}


def ancestral(sde: SDE, *, variance: str = "small") -> Sampler:
    """DDPM's sampler, for every linear SDE; weak order 1 (Ho et al. 2020, arXiv 2006.11239, algorithm 2).

    x_s = (x + var_ts score) / alpha_ts + noise; the mean is that of x_s given x_t and the predicted
    x0.

    Args:
      variance: of the noise, one of VARIANCES: "small" is that of x_s given x_t and x0, var_ts
        sigma_s^2 / sigma_t^2, as score_sde has it for VE; "large" is var_ts, as it has for VP.
    """

    def step(keys, predict, x, t, s, carry):
        alpha_ts, var_ts = _transition(sde, t, s)
        x = (x + var_ts * _score(sde, predict, x, t)) / alpha_ts
        return x + jnp.sqrt(VARIANCES[variance](sde, t, s)) * shapes.normal(keys, x), carry

    return Sampler(init=lambda x: None, step=step, evaluations=1)


# no step at all: the predictor of annealed Langevin dynamics (NCSN), or no corrector
stay = Sampler(
    init=lambda x: None, step=lambda keys, predict, x, t, s, carry: (x, carry), evaluations=0
)


def langevin(sde: SDE, *, snr: float = 0.16, n_steps: int = 1) -> Sampler:
    """Corrector: Langevin steps of size 2 (alpha_ts snr |z| / |score|)^2.

    Song et al. 2021, arXiv 2011.13456, algorithms 4 and 5. Each sample has its own norms and so its
    own step; the paper's code averages them over the batch, where one sample then depends on the
    others. The norms are near their means in many dimensions only: in two or three a step close to
    a mode, where the score is zero, is of any size, and `annealed_langevin` is the one to take.

    Args:
      snr: the ratio of a step's score to its noise, in norm, at alpha_ts = 1.
      n_steps: Langevin steps at each time.
    """

    def size(score, z, t, s):
        ratio = shapes.sum_event(jnp.square(z)) / shapes.sum_event(jnp.square(score))
        return 2 * jnp.square(sde.alpha(t) / sde.alpha(s) * snr) * ratio

    return _langevin(sde, size, n_steps)


def annealed_langevin(sde: SDE, *, snr: float = 0.16, n_steps: int = 1) -> Sampler:
    """Corrector: Langevin steps of size 2 (alpha_ts snr sigma_t)^2, the same for every x.

    With `stay` for a predictor it is annealed Langevin dynamics (Song & Ermon 2019, arXiv
    1907.05600, algorithm 1), snr = sqrt(epsilon) / (2 sigma_L) in that paper's symbols.

    Args:
      snr: the step's length in units of the noise level.
      n_steps: Langevin steps at each time.
    """
    size = lambda score, z, t, s: 2 * jnp.square(sde.alpha(t) / sde.alpha(s) * snr * sde.sigma(t))
    return _langevin(sde, size, n_steps)


def corrected(predictor: Sampler, corrector: Sampler) -> Sampler:
    """The corrector's steps at time t, then the predictor's from t to s.

    Song et al. 2021, arXiv 2011.13456, algorithm 1, has them in the other order, and its public code
    in this one. They differ at the ends alone: here x is corrected at t_max and not at t_min, where
    denoising would undo it.
    """

    def step(keys, predict, x, t, s, carry):
        first, second = carry
        x, first = corrector.step(shapes.fold_in(keys, 0), predict, x, t, s, first)
        x, second = predictor.step(shapes.fold_in(keys, 1), predict, x, t, s, second)
        return x, (first, second)

    return Sampler(
        init=lambda x: (corrector.init(x), predictor.init(x)),
        step=step,
        evaluations=corrector.evaluations + predictor.evaluations,
    )


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


def _share(sde, t, s):
    # var_ts / sigma_t^2 = 1 - (alpha_t sigma_s / alpha_s sigma_t)^2, the difference without cancellation
    return -jnp.expm1(log_snr(sde, t) - log_snr(sde, s))


def _transition(sde, t, s):
    return sde.alpha(t) / sde.alpha(s), jnp.square(sde.sigma(t)) * _share(sde, t, s)


def _score(sde, predict, x, t):
    ts = jnp.full(x.shape[:1], t)
    return combine("score", sde, predict(x, ts), ts)


def _langevin(sde, size, n_steps):
    def step(keys, predict, x, t, s, carry):
        def move(i, x):
            score, z = _score(sde, predict, x, t), shapes.normal(shapes.fold_in(keys, i), x)
            h = shapes.like(size(score, z, t, s), x)
            return x + h * score + jnp.sqrt(2 * h) * z

        return jax.lax.fori_loop(0, n_steps, move, x), carry

    return Sampler(init=lambda x: None, step=step, evaluations=n_steps)
