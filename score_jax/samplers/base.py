"""Samplers: one step from t to s < t, under one loop.

A sampler is a record of two functions. `init(x)` makes the carry of a multi-step method (None for
those without), and `step(keys, predict, x, t, s, carry) -> x, carry` moves x [b, *s] from the
scalar time t to s. A carry's leaves are [b, ...], an entry for each sample, or scalars, so that
whoever picks samples, as in particle resampling, can pick their carry with them.

Between s and t the forward SDE has x_t = alpha_ts x_s + sqrt(var_ts) z with

    alpha_ts = alpha_t / alpha_s,    var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2,

which are 1 and the difference of the variances for VE, sqrt(1 - beta_t) and beta_t for VP. A
corrector is a sampler whose step leaves x at time t; `corrected` puts one before a predictor.

An option `noise` is the level c of `dynamics` wherever it occurs: 0 for the probability-flow ODE, 1
for the reverse SDE.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_jax import shapes
from score_jax.predict import combine
from score_jax.sde import SDE, log_snr, log_snr_ends
from score_jax.types import Keys, PredictFn, Prediction


class Sampler(NamedTuple):
    """A step, the carry it starts with, and the network evaluations that it spends."""

    init: Callable[[Array], Any]
    step: Callable[..., tuple[Array, Any]]
    evaluations: int


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


def share(sde: SDE, t: Array, s: Array) -> Array:
    """var_ts / sigma_t^2."""
    # 1 - (alpha_t sigma_s / alpha_s sigma_t)^2, the difference without cancellation
    return -jnp.expm1(log_snr(sde, t) - log_snr(sde, s))


def transition(sde: SDE, t: Array, s: Array) -> tuple[Array, Array]:
    """alpha_ts and var_ts."""
    return sde.alpha(t) / sde.alpha(s), jnp.square(sde.sigma(t)) * share(sde, t, s)


def predict_at(predict: PredictFn, x: Float[Array, "b *s"], t: Array) -> Prediction:
    """The prediction at the scalar time t."""
    return predict(x, jnp.full(x.shape[:1], t))


def score_at(sde: SDE, predict: PredictFn, x: Float[Array, "b *s"], t: Array) -> Array:
    """The predicted score at the scalar time t."""
    return combine("score", sde, predict_at(predict, x, t), jnp.full(x.shape[:1], t))


def check_ends(sde: SDE, method: str) -> None:
    """Refuses an SDE whose log-SNR is infinite at t_min or t_max, for a method that divides by alpha or sigma there.

    One whose ends depend on parameters under a transformation is not looked at.
    """
    with jax.ensure_compile_time_eval():
        values = log_snr_ends(sde)
    for name, t, value in zip(("t_min", "t_max"), (sde.t_min, sde.t_max), values, strict=True):
        if not isinstance(value, jax.core.Tracer) and not np.isfinite(value):
            raise ValueError(
                f"{name} = {t} has log-SNR {value}, where {method} is undefined;"
                f" move {name} inside the SDE's time axis, or take ddim on the uniform grid"
            )
