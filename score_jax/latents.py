"""Latent codes: the probability-flow ODE as a map between data at t_min and latents x_T at t_max, both ways.

The map is invertible, so that codes can be moved and decoded again: interpolation and temperature
(Song et al. 2021, arXiv 2011.13456, section 4.3).
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax import dynamics, shapes, solve
from score_jax.grids import Grid, log_snr, reverse
from score_jax.sde import SDE
from score_jax.types import PredictFn


def encode(
    sde: SDE, predict: PredictFn, x: Float[Array, "b *s"], label: Array | None = None, **options
) -> solve.Solution:
    """The latents x_T of data x; y is [b, *s], nfe and ok are [b].

    Args:
      options: of `flow`.
    """
    return flow(sde, predict, x, reverse(log_snr(sde)), label, **options)


def decode(
    sde: SDE, predict: PredictFn, x: Float[Array, "b *s"], label: Array | None = None, **options
) -> solve.Solution:
    """The data of latents x_T: the inverse of `encode`, up to the solver's error."""
    return flow(sde, predict, x, log_snr(sde), label, **options)


def flow(
    sde: SDE,
    predict: PredictFn,
    x: Float[Array, "b *s"],
    grid: Grid,
    label: Array | None = None,
    *,
    per_sample: bool = True,
    **options,
) -> solve.Solution:
    """x moved by the probability-flow ODE from grid(0) to grid(1); y is [b, *s], nfe and ok are [b].

    Args:
      per_sample: steps are controlled for each sample alone (`solve.each`), or for the batch.
      options: of `solve.ode`: solver, n_steps, rtol, atol.
    """

    def run(x, label):
        velocity = dynamics.reverse_drift(sde, lambda x, t: predict(x, t, label))
        return solve.ode(velocity, x, grid, **options)

    return (solve.each if per_sample else solve.together)(run, x, label)


def slerp(
    a: Float[Array, "b *s"], b: Float[Array, "b *s"], share: float | Float[Array, "b"]
) -> Float[Array, "b *s"]:
    """The points a share of the way from a to b on the great circle, the norm going linearly from |a| to |b|.

    Gaussian latents in d dimensions have norms near sqrt(d), and so have points of the circle, but
    not those of the line between them (White 2016, arXiv 1609.04468; formula of Shoemake 1985). No
    circle is singled out by opposite points.
    """
    norm_a, norm_b = (shapes.like(jnp.sqrt(shapes.sum_event(jnp.square(x))), x) for x in (a, b))
    unit_a, unit_b = a / norm_a, b / norm_b
    length = lambda x: shapes.like(jnp.sqrt(shapes.sum_event(jnp.square(x))), x)
    # arccos has lost the small angles
    angle = 2 * jnp.arctan2(length(unit_a - unit_b), length(unit_a + unit_b))
    share = shapes.like(jnp.asarray(share, a.dtype), a)
    # sin(k angle) / sin(angle) as a quotient of sinc, whose limit at angle 0 is k
    weight = lambda k: k * jnp.sinc(k * angle / jnp.pi) / jnp.sinc(angle / jnp.pi)
    direction = weight(1 - share) * unit_a + weight(share) * unit_b
    return ((1 - share) * norm_a + share * norm_b) * direction
