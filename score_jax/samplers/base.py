"""Samplers: one step from t to s < t, under one loop.

A sampler is a record of two functions. `init(x)` makes the carry of a multi-step method (None for
those without), and `step(keys, predict, x, t, s, carry) -> x, carry` moves x [b, *s] from the
scalar time t to s. A carry's leaves are [b, ...], an entry for each sample, or scalars, so that
whoever picks samples, as in particle resampling, can pick their carry with them.

Between s and t the forward SDE has x_t = alpha_ts x_s + sqrt(var_ts) z with

    alpha_ts = alpha_t / alpha_s,    var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2,

which are 1 and the difference of the variances for VE, sqrt(1 - beta_t) and beta_t for VP. A
corrector is a sampler whose step leaves x at time t; `corrected` puts one before a predictor. Times
may go up again under `either_way`, whose step to s > t is the forward SDE's.

An option `noise` is the level c of `dynamics` wherever it occurs: 0 for the probability-flow ODE, 1
for the reverse SDE.
"""

from collections.abc import Callable
from functools import partial
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


class Steps(NamedTuple):
    """What the loop repeats, and how it ends.

    Attributes:
      sampler, predict: predict is a function of x and t, labels already given.
      project: if given, x <- project(keys, x, s) after each step: a constraint on x at time s.
      finish: finish(keys, x, carry) is what becomes of the last x and carry.
    """

    sampler: Sampler
    predict: PredictFn
    project: Callable[[Keys, Array, Array], Array] | None = None
    finish: Callable[[Keys, Array, Any], Any] = lambda keys, x, carry: x


def sample(
    keys: Keys,
    sampler: Sampler,
    predict: PredictFn,
    x: Float[Array, "b *s"],
    times: Float[Array, "n"],
    *,
    project: Callable[[Keys, Array, Array], Array] | None = None,
) -> Float[Array, "b *s"]:
    """x moved through the given times, decreasing but for `either_way`, by the sampler: the one loop.

    Args:
      keys: one per sample; a sample depends on its own key alone, not on the batch it is drawn in.
      predict, project: as of `Steps`.
      x: samples of the prior, at times[0].
    """
    return run(keys, Steps(sampler, predict, project), x, times)


def run(keys: Keys, steps: Steps, x: Float[Array, "b *s"], times: Float[Array, "n"]) -> Any:
    """`sample` to the steps' own end."""
    body = lambda i, state: _step(keys, steps, times, i, state)
    state = jax.lax.fori_loop(0, times.shape[0] - 1, body, (x, steps.sampler.init(x)))
    return steps.finish(keys, *state)


def run_jitted(
    make: Callable[..., Steps],
    given: tuple,
    keys: Keys,
    x: Float[Array, "b *s"],
    times: Float[Array, "n"],
    *,
    gradients: bool,
) -> Any:
    """`run` with the steps make(*given), compiled; not to be called under jit itself.

    Args:
      make: called inside jit, so that parameters in `given` are arguments of the program. The same
        function compiles once.
      gradients: whether the steps take gradients of a network with respect to x. On the CPU XLA is
        5 to 20 times slower at those of convolutions inside of a loop: there Python is the loop,
        over one compiled step.
    """
    if not (gradients and jax.default_backend() == "cpu"):
        return _compiled_run(make, given, keys, x, times)
    state = _compiled_start(make, given, x)
    for i in range(times.shape[0] - 1):
        state = _compiled_step(make, given, keys, times, i, state)
    return _compiled_finish(make, given, keys, state)


def either_way(sde: SDE, sampler: Sampler) -> Sampler:
    """The sampler, and where s > t the forward SDE from t to s, which costs no evaluation: for times that go up again.

    x_s = alpha_s / alpha_t x_t + sqrt(sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2) z. A multi-step
    method begins anew after it.
    """

    def up(keys, predict, x, t, s, carry):
        growth, variance = transition(sde, s, t)
        return growth * x + jnp.sqrt(variance) * shapes.normal(keys, x), sampler.init(x)

    def step(keys, predict, x, t, s, carry):
        ways = (
            (lambda: up(keys, predict, x, t, s, carry)),
            (lambda: sampler.step(keys, predict, x, t, s, carry)),
        )
        return jax.lax.cond(s > t, *ways)

    return sampler._replace(step=step)


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


# folded into a step's keys for the projection; no sampler has as many draws in a step
_PROJECTION = 2**20


def _step(keys, steps, times, i, state):
    x, carry = state
    t, s, keys = times[i], times[i + 1], shapes.fold_in(keys, i)
    x, carry = steps.sampler.step(keys, steps.predict, x, t, s, carry)
    if steps.project is not None:
        x = steps.project(shapes.fold_in(keys, _PROJECTION), x, s)
    return x, carry


@partial(jax.jit, static_argnums=0)
def _compiled_run(make, given, keys, x, times):
    return run(keys, make(*given), x, times)


@partial(jax.jit, static_argnums=0)
def _compiled_start(make, given, x):
    return x, make(*given).sampler.init(x)


@partial(jax.jit, static_argnums=0)
def _compiled_step(make, given, keys, times, i, state):
    return _step(keys, make(*given), times, i, state)


@partial(jax.jit, static_argnums=0)
def _compiled_finish(make, given, keys, state):
    return make(*given).finish(keys, *state)
