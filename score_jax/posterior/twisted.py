"""The twisted diffusion sampler: sequential Monte Carlo whose proposals are guided and whose weights make it exact.

Wu et al. 2023, arXiv 2306.17775, algorithm 1. The model is the chain of ancestral sampling, with
kernels p(x_s | x_t) = N(m, c^2 I), and p(y | x0) at its end. Given any guess g_t(x) of log p(y |
x_t), particles move by the kernel q of the guided score and have weights

    w(x_s) = p(x_s | x_t) / q(x_s | x_t) exp(g_s(x_s) - g_t(x_t)),

the last g being log p(y | x0) itself, at x0 = x / alpha. With infinitely many particles that is the
chain's posterior, whatever g is, and with infinitely many steps the model's; the product of the mean
weights is an unbiased estimate of p(y) under the chain. g may lack any function of t: it cancels.

g is `pigdm.gaussian`. The weight of g_s(x_s) is given at the start of the next step, which evaluates
the network there anyway. Where steps are so long that a step's guidance is many times its noise, a few
weights are far larger than the others: the estimates are unbiased and of little use.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float, Int

from score_jax import shapes
from score_jax.measurement import Measurement, log_likelihood
from score_jax.posterior.guide import Twist, add, through
from score_jax.posterior.method import Method
from score_jax.posterior.pigdm import gaussian
from score_jax.predict import combine
from score_jax.samplers.base import Sampler, Steps, check_ends, transition
from score_jax.samplers.first_order import VARIANCES
from score_jax.sde import SDE
from score_jax.types import Key, Keys


class Weights(NamedTuple):
    """Of each particle, since it was last drawn anew, and the estimate of log p(y) until then, its group's.

    In nats; of `log_weight` the factor g_s(x_s) is still missing.
    """

    log_weight: Float[Array, "b"]
    log_evidence: Float[Array, "b"]


class Particles(NamedTuple):
    """Weighted samples, groups of them one after the other, and log p(y) in nats by each group's estimate."""

    x: Float[Array, "b *s"]
    weight: Float[Array, "b"]
    log_evidence: Float[Array, "n"]


def systematic(key: Key, weight: Float[Array, "n"]) -> Int[Array, "n"]:
    """Which particles are drawn: i comes floor or ceil of n weight[i] times (Kitagawa 1996)."""
    n = len(weight)
    positions = (jnp.arange(n) + jax.random.uniform(key, dtype=weight.dtype)) / n
    # the sum may end below the last position by rounding
    return jnp.minimum(jnp.searchsorted(jnp.cumsum(weight), positions, side="right"), n - 1)


def effective_size(log_weight: Float[Array, "n"]) -> Float[Array, ""]:
    """(sum w)^2 / sum w^2: n of equal weights, 1 of a single one."""
    return jnp.exp(2 * logsumexp(log_weight) - logsumexp(2 * log_weight))


def sampler(
    sde: SDE,
    twist: Twist,
    *,
    particles: int | None = None,
    threshold: float = 0.5,
    variance: str = "small",
) -> Sampler:
    """Ancestral steps under guidance, with particles drawn anew where their weights have become uneven.

    Args:
      particles: in a group, of which the batch holds several, each with one y and one label for
        all its particles; None for one group.
      threshold: the effective share of particles below which they are drawn anew; 0 for never.
      variance: c^2, a word of `samplers.VARIANCES`.
    """
    check_ends(sde, "twisted sampling")

    def step(keys, predict, x, t, s, carry):
        ts = jnp.full(x.shape[:1], t)
        pair, value, gradient = through(predict, twist, x, ts)
        log_weight, log_evidence = carry.log_weight + value, carry.log_evidence
        moved = x, pair, value, gradient
        of_group = _grouped(particles, (keys, log_weight, log_evidence))
        index, log_weight, log_evidence = _ungrouped(
            jax.vmap(lambda k, w, e: _drawn(k[0], w, e, threshold))(*of_group)
        )
        size = particles or len(x)
        index = index + size * (jnp.arange(len(x)) // size)
        x, pair, value, gradient = jax.tree.map(lambda leaf: leaf[index], moved)

        alpha_ts, var_ts = transition(sde, t, s)
        std = jnp.sqrt(VARIANCES[variance](sde, t, s))
        score = combine("score", sde, add(sde, pair, gradient, x, ts), ts)
        z, shift = shapes.normal(keys, x), var_ts / alpha_ts * gradient
        # log N(x_s; m, c^2) - log N(x_s; m + shift, c^2) at x_s = m + shift + c z
        ratio = -shapes.sum_event(0.5 * jnp.square(shift / std) + shift / std * z)
        x = (x + var_ts * score) / alpha_ts + std * z
        return x, Weights(log_weight + ratio - value, log_evidence)

    zeros = lambda x: Weights(*(jnp.zeros(len(x), x.dtype) for _ in range(2)))
    return Sampler(init=zeros, step=step, evaluations=1)


def weighted(
    sde: SDE, measurement: Measurement, y: Array, particles: int | None = None
) -> Callable[[Keys, Array, Weights], Particles]:
    """finish(keys, x, carry) of `samplers.Steps`: the last weights, by p(y | x0) at x0 = x / alpha."""

    def finish(keys, x, carry):
        x0 = x / sde.alpha(jnp.asarray(sde.t_min, x.dtype))
        log_weight = carry.log_weight + log_likelihood(measurement, y, x0)
        grouped, log_evidence = _grouped(particles, (log_weight, carry.log_evidence))
        total = logsumexp(grouped, axis=1)
        weight = jnp.exp(grouped - total[:, None])
        log_mean = total - math.log(grouped.shape[1])
        return Particles(x, weight.reshape(-1), log_evidence[:, 0] + log_mean)

    return finish


def equal(finish: Callable[[Keys, Array, Weights], Particles], particles: int | None = None):
    """finish(keys, x, carry) -> samples of equal weight, drawn among the particles of each group."""

    def drawn(keys, x, carry):
        found = finish(keys, x, carry)
        keys, x, weight = _grouped(particles, (keys, found.x, found.weight))

        def one(key, x, weight):
            # a stream of its own: steps fold in their numbers
            return x[systematic(jax.random.fold_in(key, 2**30), weight)]

        return jax.vmap(one)(keys[:, 0], x, weight).reshape(found.x.shape)

    return drawn


def tsmc(
    *,
    particles: int | None = None,
    threshold: float = 0.5,
    variance: str = "small",
    data_variance: float = 1.0,
) -> Method:
    """Samples by `sampler`; those of a group are not independent, and often share ancestors.

    Args:
      particles, threshold, variance: as of `sampler`.
      data_variance: as of `pigdm`.
    """

    def steps(sde, predict, measurement, y):
        if not measurement.std > 0:
            raise ValueError(
                f"tsmc weights samples by p(y | x0), which std = {measurement.std} makes infinite; "
                "give a positive std, as 0.05"
            )
        check_groups(len(y), particles)
        twist = gaussian(sde, measurement, y, data_variance)
        options = dict(particles=particles, threshold=threshold, variance=variance)
        finish = equal(weighted(sde, measurement, y, particles), particles)
        return Steps(sampler(sde, twist, **options), predict, finish=finish)

    return Method(steps, gradients=True, together=True)


def check_groups(n: int, particles: int | None) -> None:
    """Raises ValueError if n samples are not whole groups."""
    if particles is not None and (particles < 1 or n % particles):
        raise ValueError(
            f"{n} samples are no whole number of groups of particles = {particles}; take a divisor"
        )


def _drawn(key, log_weight, log_evidence, threshold):
    """Indices, log-weights and log p(y) so far of one group, drawn anew if its effective size is too small."""
    total, n = logsumexp(log_weight), len(log_weight)
    is_uneven = effective_size(log_weight) < threshold * n
    # a stream of its own: the same keys draw the steps' noise
    index = systematic(jax.random.fold_in(key, 2**30), jnp.exp(log_weight - total))
    return (
        jnp.where(is_uneven, index, jnp.arange(n)),
        jnp.where(is_uneven, 0.0, log_weight),
        log_evidence + jnp.where(is_uneven, total - math.log(n), 0.0),
    )


def _grouped(particles, tree):
    return jax.tree.map(lambda a: a.reshape(-1, particles or len(a), *a.shape[1:]), tree)


def _ungrouped(tree):
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)
