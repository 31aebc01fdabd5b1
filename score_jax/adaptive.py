"""A density of u in [0, 1] that follows the loss: proportional to the root of its second moment.

    E_u[ L(u) ] = E_p[ L(u) / p(u) ],    p proportional to sqrt(E[L(u)^2]) has the least variance

(Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 18, over the steps of DDPM; here over bins of u, so
that it goes with every grid). The state is sums over examples seen, older steps counting less, and
an update is linear in what each example adds: the mean of the states of several devices is the
state that one device would have.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

# of the sums, per step: the density follows the last 100 steps or so
DECAY = 0.99
# steps that are seen before the density leaves the uniform one
WARMUP = 10
# share of the uniform density that stays mixed in: no example weighs more than 1 / UNIFORM times
# its loss, for at most 1 / (1 - UNIFORM) times the least second moment
UNIFORM = 0.1


class SecondMoment(NamedTuple):
    """Sums over steps, for each bin of u, of the share of examples in it and of their squared losses."""

    counts: Float[Array, "n"]
    squares: Float[Array, "n"]


def init(n_bins: int) -> SecondMoment:
    """The state before the first step, whose density is uniform."""
    return SecondMoment(jnp.zeros(n_bins), jnp.zeros(n_bins))


def density(state: SecondMoment) -> Float[Array, "n"]:
    """p in each bin; its mean is 1. Uniform until WARMUP steps are seen and no bin is empty."""
    counts, squares = state
    root = jnp.sqrt(squares / jnp.where(counts > 0, counts, 1.0))
    total = jnp.mean(root)
    # each step adds 1 to the sum of the counts
    ready = jnp.all(counts > 0) & (jnp.sum(counts) > WARMUP) & (total > 0)
    p = (1 - UNIFORM) * root / jnp.where(ready, total, 1.0) + UNIFORM
    return jnp.where(ready, p, 1.0)


def sample(
    state: SecondMoment, u: Float[Array, "b"]
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """Uniform u as draws from the density, by its inverse distribution function, and 1 / p at each.

    The map is increasing, so stratified u stay stratified.
    """
    p = density(state)
    n = len(p)
    ends = jnp.cumsum(p) / n
    starts = ends - p / n
    i = jnp.sum(u[:, None] >= ends[:-1], axis=1)
    within = jnp.clip((u - starts[i]) / (p[i] / n), 0.0, 1.0)
    return (i + within) / n, 1.0 / p[i]


def update(state: SecondMoment, u: Float[Array, "b"], values: Float[Array, "b"]) -> SecondMoment:
    """The state after a step whose losses at u are `values`, not yet divided by the density."""
    n = len(state.counts)
    in_bin = jax.nn.one_hot(jnp.clip((u * n).astype(int), 0, n - 1), n)
    return SecondMoment(
        DECAY * state.counts + jnp.mean(in_bin, axis=0),
        DECAY * state.squares + jnp.mean(in_bin * jnp.square(values)[:, None], axis=0),
    )
