"""Langevin dynamics: samples of a density by its score alone, without a noise process.

    x <- x + step / 2 score(x) + sqrt(step) z,    z ~ N(0, I).

It is not Metropolis-adjusted: of N(0, v) its stationary variance is v / (1 - step / 4v), where the
exact chain, step -> 0, has v. A score is any function of x [b, *s]: autodiff of a log-density, an
energy network, or a score network at one noise level (`at_time`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax import shapes
from score_jax.predict import combine
from score_jax.sde import SDE
from score_jax.types import Keys, PredictFn

ScoreFn = Callable[[Array], Array]


def langevin(
    keys: Keys, score: ScoreFn, x: Float[Array, "b *s"], *, step: float | Array, n_steps: int
) -> Float[Array, "b *s"]:
    """x after n_steps of the given size (Song & Ermon 2019, arXiv 1907.05600, eq. 4).

    Args:
      keys: one per sample.
    """

    def body(i, x):
        z = shapes.normal(shapes.fold_in(keys, i), x)
        return x + 0.5 * step * score(x) + jnp.sqrt(step) * z

    return jax.lax.fori_loop(0, n_steps, body, x)


def annealed(
    keys: Keys,
    score: Callable[[Array, Array], Array],
    x: Float[Array, "b *s"],
    sigmas: Float[Array, "n"],
    *,
    step: float,
    n_steps: int,
) -> Float[Array, "b *s"]:
    """x after n_steps at each noise level in turn (Song & Ermon 2019, arXiv 1907.05600, algorithm 1).

    Args:
      keys: one per sample.
      score: function of x and sigma, the score of x0 + sigma eps; see `at_levels`.
      sigmas: decreasing; the paper's are geometric, as of `levels`.
      step: a step at level i is step sigma_i^2: the paper's epsilon / sigma_L^2.
      n_steps: steps at each level.
    """

    def body(i, x):
        at_level = lambda x: score(x, sigmas[i])
        h = step * jnp.square(sigmas[i])
        return langevin(shapes.fold_in(keys, i), at_level, x, step=h, n_steps=n_steps)

    return jax.lax.fori_loop(0, len(sigmas), body, x)


def levels(sigma_max: float | Array, sigma_min: float | Array, n: int) -> Float[Array, "n"]:
    """n noise levels from sigma_max down to sigma_min, a geometric sequence."""
    return jnp.exp(jnp.linspace(jnp.log(sigma_max), jnp.log(sigma_min), n))


def at_time(sde: SDE, predict: PredictFn, t: Array, label: Array | None = None) -> ScoreFn:
    """The score of x_t as a function of x alone, at a scalar time t."""

    def score(x):
        ts = jnp.full(x.shape[:1], t)
        return combine("score", sde, predict(x, ts, label), ts)

    return score


def at_levels(
    sde: SDE, predict: PredictFn, label: Array | None = None
) -> Callable[[Array, Array], Array]:
    """The score of x0 + sigma eps as a function of x and the scalar sigma, from a model under any linear SDE.

    x0 + sigma eps is x_t / alpha at the time where sigma_t / alpha is sigma.
    """

    def score(x, sigma):
        t = sde.time_of_log_snr(-2 * jnp.log(sigma))
        return -predict(sde.alpha(t) * x, jnp.full(x.shape[:1], t), label).eps / sigma

    return score
