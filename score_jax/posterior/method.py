"""A method of drawing x0 given a measurement y, and the draw by it along a grid from t_max to t_min."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from score_jax import grids, sampling
from score_jax.measurement import Measurement
from score_jax.samplers.base import Steps, run_jitted
from score_jax.sde import SDE
from score_jax.types import Keys, Params, PredictFn


class Method(NamedTuple):
    """How p(x0 | y) is sampled from.

    Attributes:
      steps: steps(sde, predict, measurement, y), with predict a function of x and t and an entry of
        y for each sample.
      gradients: whether they take gradients of predict.
      walk: the times that are stepped through, of the decreasing times of a grid.
      together: whether the samples of a batch depend on each other.
    """

    steps: Callable[[SDE, PredictFn, Measurement, Array], Steps]
    gradients: bool = False
    walk: Callable[[Array], Array] = lambda times: times
    together: bool = False


def check_shares(**shares: float) -> None:
    """Raises ValueError if an option is no share."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} = {value} is a share, at least 0 and at most 1")


def drawer(
    method: Method,
    model: Callable[[Params], tuple[SDE, PredictFn]],
    measurement: Measurement,
    *,
    n_steps: int = 100,
    grid: sampling.MakeGrid = grids.log_snr,
) -> Callable[..., Array]:
    """draw(keys, params, y, label=None) -> x at t_min, or what else the method's steps end with.

    It compiles by itself, once, and is not to be called under jit: steps with gradients of a network
    are driven from Python on the CPU (`samplers.run_jitted`).

    Args:
      model: of the parameters; predict takes a label or None.
      n_steps: of the grid, before the method's walk adds to them.
    """

    def steps(params, y, label):
        sde, predict = model(params)
        return method.steps(sde, lambda x, t: predict(x, t, label), measurement, y)

    def draw(keys: Keys, params: Params, y: Array, label: Array | None = None):
        sde, _ = model(params)
        pair = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
        shape = jax.eval_shape(measurement.adjoint, y).shape[1:]
        x = sampling.prior(pair[:, 0], sde, shape).astype(y.dtype)
        times = method.walk(grid(sde)(jnp.linspace(0.0, 1.0, n_steps + 1)))
        given = (params, y, label)
        return run_jitted(steps, given, pair[:, 1], x, times, gradients=method.gradients)

    return draw
