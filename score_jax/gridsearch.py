"""A grid for one model, one sampler and one number of steps, found by a short search.

With few steps it matters where they are, and where is best depends on the model and the sampler
(Sabour et al. 2024, arXiv 2404.14507, minimise a bound on the error; here it is the error itself).
The grid is log-SNR linear between values at equal distances in u (`grids.piecewise`); the error is
the distance of samples from those that the ODE has exactly, from the same few starts. That is a
least-squares problem, solved by Levenberg and Marquardt's method with forward-mode derivatives.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_jax import exact, grids, shapes
from score_jax.sde import SDE, log_snr
from score_jax.types import Keys, Params, PredictFn

_STARTS = {
    "uniform": grids.uniform,
    "log_snr": grids.log_snr,
    "quadratic": grids.quadratic,
    "power": grids.power,
}


class Found(NamedTuple):
    """The best grid's log-SNRs, for `grids.piecewise`, its error and those of the grids to begin with.

    Errors are root mean squares over the coordinates of the samples.
    """

    log_snrs: tuple[float, ...]
    error: float
    errors: dict[str, float]


def has_noise(draw: Callable, sde: SDE) -> bool:
    """Whether samples of a draw of `sampling` depend on its keys besides their starts, tried on a 2-D Gaussian."""
    predict = exact.predictor(sde, exact.gaussian(jnp.zeros(2), np.eye(2)))
    run = jax.jit(lambda keys, x: draw(keys, sde, predict, x, jnp.zeros(2, int)).x)
    keys, x = jax.random.split(jax.random.key(0), 2), sde.sigma(jnp.asarray(sde.t_max)) * jnp.eye(2)
    return not np.array_equal(run(keys, x), run(shapes.fold_in(keys, 1), x), equal_nan=True)


def of_draw(
    keys: Keys,
    draw: Callable,
    reference: Callable,
    sde: SDE,
    bind: Callable[[Params], PredictFn],
    params: Params,
    x: Float[Array, "b *s"],
    label: Array | None = None,
    *,
    n_parts: int = 10,
) -> Found:
    """The grid on which a draw of `sampling` comes nearest to a reference draw from the same x.

    Args:
      draw: of a fixed number of steps, without noise.
      reference: adaptive steps of the probability-flow ODE.
      bind: gives `predict` for params.
      n_parts: parts in which log-SNR is linear; more than there are steps have no use.
    Raises:
      ValueError: the draw has noise, or the reference fails.
    """

    def run(log_snrs, params, keys):
        return draw(keys, sde, bind(params), x, label, grids.piecewise(log_snrs)).x

    u = jnp.linspace(0.0, 1.0, n_parts + 1)
    starts = {name: log_snr(sde, make(sde)(u)) for name, make in _STARTS.items()}
    if has_noise(draw, sde):
        raise ValueError("a sampler with noise has no error to search a grid by; take one without")
    target = jax.jit(lambda params: reference(keys, sde, bind(params), x, label))(params)
    if failed := int(np.sum(~target.ok)):
        raise ValueError(
            f"the reference failed on {failed} of {len(x)} samples, so no error of a grid is known; "
            "take one of the grids with a name"
        )
    return search(run, (params, keys), target.x, starts)


def search(
    run: Callable[..., Array],
    args: Any,
    target: Float[Array, "b *s"],
    starts: dict[str, Array],
    *,
    n_iterations: int = 20,
) -> Found:
    """The increasing log-SNRs that bring run(log_snrs, *args) nearest to target; no chance is in it.

    Args:
      run: differentiable in the log-SNRs.
      starts: log-SNRs by name, of which the search begins with the best; their ends are kept.
      n_iterations: of one forward-mode derivative of `run` for each log-SNR.
    """
    some = next(iter(starts.values()))
    low, high = some[0], some[-1]

    def log_snrs(logits):
        shares = jnp.cumsum(jax.nn.softmax(logits))[:-1]
        return jnp.concatenate([low[None], low + (high - low) * shares, high[None]])

    @jax.jit
    def linearised(logits, args):
        def residual(logits):
            return (run(log_snrs(logits), *args) - target).ravel() / np.sqrt(target.size)

        # one column after the other: together they would take as many times the memory
        column = lambda direction: jax.jvp(residual, (logits,), (direction,))
        r, columns = jax.lax.map(column, jnp.eye(len(logits), dtype=logits.dtype))
        return r[0], columns.T

    def at(logits):
        r, jacobian = (np.asarray(a, np.float64) for a in linearised(jnp.asarray(logits), args))
        return logits, r, jacobian, np.linalg.norm(r)

    def logits_of(values):
        return np.log(np.diff(np.asarray(values)) / float(high - low)).astype(some.dtype)

    begun = {name: at(logits_of(values)) for name, values in starts.items()}
    errors = {name: float(error) for name, (*_, error) in begun.items()}
    best, damping = begun[min(errors, key=errors.get)], 1.0
    for _ in range(n_iterations):
        logits, r, jacobian, error = best
        normal = jacobian.T @ jacobian
        # the trace keeps it regular: a shift of all logits changes nothing
        scale = np.diag(normal) + 1e-6 * np.trace(normal) + np.finfo(np.float64).tiny
        move = np.linalg.solve(normal + damping * np.diag(scale), -jacobian.T @ r)
        trial = at((logits + np.clip(move, -1.0, 1.0)).astype(some.dtype))
        better = trial[-1] < error
        best, damping = (trial, damping / 3) if better else (best, damping * 4)
    found = np.asarray(log_snrs(jnp.asarray(best[0])))
    return Found(tuple(found.tolist()), float(best[-1]), errors)
