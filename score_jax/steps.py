"""Where a solver of the likelihood should step, found once per model on a few images.

On a fine grid the error that each step adds to log p is known from the solver's embedded method.
A method of local order q makes an error of about c(u) h^q in a step of length h, and for a given
number of steps the sum is least where all are equal: the density of steps is proportional to
c^(1 / q) (de Boor 1973, "Good approximation by splines with variable knots").
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from score_jax import grids, likelihood, solve
from score_jax.sde import SDE, log_snr_ends
from score_jax.types import Keys, PredictFn
from score_jax.whiten import Gaussian

_SOLVER, _ORDER = "dopri5", 5  # the order of its embedded method's error in one step
# relative to uniform steps, the density of steps is at least this
_LEAST_DENSITY = 0.2
# by which a part of the grid may be longer, in logarithm, than the one beside it: near three times
_MOST_GROWTH = 1.0
# of a smooth grid's slope at a value, relative to the flatter of the two lines there; with least +
# most / 2 = 3 / 2 no cubic is anywhere flatter than at its ends may be
_LEAST_SLOPE, _MOST_SLOPE = 0.2, 2.6


def local_errors(
    keys: Keys,
    sde: SDE,
    predict: PredictFn,
    x: Float[Array, "b *s"],
    label: Int[Array, "b"] | None = None,
    *,
    trace: str = "rademacher",
    whiten: Gaussian | None = None,
    n_fine: int = 32,
) -> Float[Array, "b n"]:
    """What each of n_fine equal steps in log-SNR adds to the error of logp in nats, from t_max to t_min."""
    grid = grids.reverse(grids.log_snr(sde))

    def one(key, x, label):
        problem = likelihood.initial_value(
            key, sde, predict, x, label, trace=trace, n_probes=1, whiten=whiten
        )

        def step(state, i):
            part = lambda v: grid((i + v) / n_fine)
            found = solve.ode(
                problem.field,
                state,
                part,
                solver=_SOLVER,
                n_steps=1,
                measure=problem.error_of_logp,
            )
            return found.y

        _, errors = jax.lax.scan(step, problem.start, jnp.arange(n_fine).astype(x.dtype))
        return errors[::-1]

    return jax.vmap(one, in_axes=(0, 0, None if label is None else 0))(keys, x, label)


def log_snrs(sde: SDE, errors: Float[np.ndarray, "b n"], n_parts: int = 10) -> tuple[float, ...]:
    """The n_parts + 1 increasing log-SNRs of the grid whose steps have equal errors, for `smooth`.

    Args:
      errors: of `local_errors`.
    """
    size = np.sqrt(np.mean(np.square(np.asarray(errors, np.float64)), axis=0))
    density = size ** (1 / _ORDER)
    # one rough step says little about its own length: average over three
    padded = np.pad(density, 1, mode="edge")
    density = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    density = np.maximum(density, _LEAST_DENSITY * np.mean(density))
    # as for a mesh, lengths of bounded slope: a spline through values that jump may go backwards
    length, i = np.mean(density) / (n_parts * density), np.arange(len(density))
    growth = _MOST_GROWTH * np.abs(np.subtract.outer(i, i)) / len(density)
    density = 1 / np.min(length + growth, axis=1)
    mass = np.append(0.0, np.cumsum(density)) / np.sum(density)
    largest, smallest = (float(end) for end in log_snr_ends(sde))
    edges = np.linspace(smallest, largest, len(density) + 1)
    return tuple(np.interp(np.linspace(0.0, 1.0, n_parts + 1), mass, edges).tolist())


def smooth(log_snrs: Sequence[float] | Array) -> Callable[[SDE], grids.Grid]:
    """`grids.piecewise` with a natural cubic spline through the values instead of lines.

    A solver of high order needs a grid without kinks. Two derivatives are continuous, except where
    the spline's slope would let it go backwards: it is bounded as by Fritsch and Carlson (1980,
    "Monotone piecewise cubic interpolation"), and one is. The values of `log_snrs` are too even
    for that.
    """

    inner, n = jnp.asarray(log_snrs)[1:-1], len(log_snrs) - 1

    def make(sde):
        largest, smallest = log_snr_ends(sde)
        values = jnp.concatenate([jnp.atleast_1d(smallest), inner, jnp.atleast_1d(largest)])
        line = jnp.diff(values)
        curvature = jnp.pad(_natural(n) @ jnp.diff(values, 2), 1)
        first = line - (2 * curvature[:-1] + curvature[1:]) / 6
        slope = jnp.append(first, line[-1] + curvature[-2] / 6)
        sides = jnp.pad(line, 1, mode="edge")
        flatter = jnp.minimum(sides[:-1], sides[1:])
        slope = jnp.clip(slope, _LEAST_SLOPE * flatter, _MOST_SLOPE * flatter)
        coefficients = jnp.stack([values[:-1], values[1:], slope[:-1] - line, line - slope[1:]])

        def grid(u):
            i = jnp.clip((n * u).astype(int), 0, n - 1)
            b = n * u - i
            a = 1 - b
            low, high, turn_low, turn_high = coefficients[:, i]
            cubic = a * b * (a * turn_low + b * turn_high)
            return sde.time_of_log_snr(a * low + b * high + cubic)

        return grid

    return make


def _natural(n: int) -> np.ndarray:
    """From second differences, the second derivatives at the inner knots of a spline straight at its ends.

    The knots are 0, 1, .., n.
    """
    ones = np.ones(n - 2)
    return 6 * np.linalg.inv(4 * np.eye(n - 1) + np.diag(ones, 1) + np.diag(ones, -1))
