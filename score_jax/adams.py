"""Adams' multistep methods on equal steps: one evaluation a step, whatever the order.

Adams-Bashforth of order k integrates the polynomial through the last k slopes (Hairer, Norsett &
Wanner 1993, "Solving Ordinary Differential Equations I", section III.1). The first k - 1 steps, which
have no history, are taken by the classical Runge-Kutta method of order 4.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def weights(order: int) -> np.ndarray:
    """[order] weights of the slopes at 0, -1, .., whose sum is the integral from 0 to 1 of the polynomial."""
    nodes = -np.arange(order)
    powers = np.arange(order)
    return np.linalg.solve(nodes[None, :] ** powers[:, None], 1 / (powers + 1))


def evaluations(order: int, n_steps: int) -> int:
    """Of the field, in n_steps steps."""
    return n_steps + 3 * min(order - 1, n_steps)


def integrate(
    field: Callable[[Array, Any], Any],
    y: Any,
    n_steps: int,
    order: int,
    measure: Callable[[Any, Any], Array],
) -> tuple[Any, Array]:
    """The state at u = 1 from y at u = 0, by n_steps equal steps, and the sum over the steps of measure(y, error).

    Args:
      field: dy / du as a function of (u, y).
      order: of the method, up to 5; the start is of order 4.
      measure: of a step's new state and its error, that of the method of one order less on the same
        slopes. The steps of the start have none.
    """
    dt = 1.0 / n_steps
    table = _table(order, n_steps)
    high = weights(order)
    difference = np.append(weights(order - 1), 0.0) - high
    plus = lambda y, scale, slope: jax.tree.map(lambda a, k: a + dt * scale * k, y, slope)

    def mix(weights, history):
        return jax.tree.map(lambda h: jnp.tensordot(jnp.asarray(weights, h.dtype), h, 1), history)

    def evaluate(carry, row):
        y, slope, mean, history, total = carry
        u, shift, weight, is_first, ends_start, is_adams = row
        slope = field(u, plus(y, shift, slope))
        history = jax.tree.map(
            lambda h, k: jnp.where(is_first > 0, jnp.concatenate([k[None], h[:-1]]), h),
            history,
            slope,
        )
        mean = jax.tree.map(lambda m, k: (1 - is_first) * m + weight * k, mean, slope)
        y = plus(plus(y, ends_start, mean), is_adams, mix(high, history))
        error = jax.tree.map(lambda e: dt * is_adams * e, mix(difference, history))
        return (y, slope, mean, history, total + is_adams * measure(y, error)), None

    zeros = jax.tree.map(jnp.zeros_like, y)
    history = jax.tree.map(lambda a: jnp.zeros((order, *a.shape), a.dtype), zeros)
    dtype = jnp.result_type(*jax.tree.leaves(y))
    carry = (y, zeros, zeros, history, jnp.zeros_like(measure(y, zeros)))
    (y, *_, total), _ = jax.lax.scan(evaluate, carry, jnp.asarray(table, dtype))
    return y, total


def _table(order: int, n_steps: int) -> np.ndarray:
    """A row for each evaluation, so that one loop makes them all.

    u; how far along the last slope, in steps, it is made; its weight in a Runge-Kutta step; whether
    it is the first in its step; whether it ends a Runge-Kutta step; whether it is an Adams step.
    """
    n_start = min(order - 1, n_steps)
    stages = np.array(
        [[0, 0, 1, 1, 0, 0], [0.5, 0.5, 2, 0, 0, 0], [0.5, 0.5, 2, 0, 0, 0], [1, 1, 1, 0, 1, 0]]
    )
    stages = stages / [1, 1, 6, 1, 1, 1]
    start = np.tile(stages, (n_start, 1))
    start[:, 0] += np.repeat(np.arange(n_start), 4)
    steps = np.tile([0.0, 0, 0, 1, 0, 1], (n_steps - n_start, 1))
    steps[:, 0] = np.arange(n_start, n_steps)
    return np.concatenate([start, steps]) / [n_steps, 1, 1, 1, 1, 1]
