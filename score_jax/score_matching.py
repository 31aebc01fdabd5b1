"""Score matching: s(x) is fitted to the score of a density that is given by points x ~ p alone.

Every loss here is an objective J(s, x) whose expectation is 1/2 E || s - grad log p ||^2, but for a
constant and, of the last, for a small error:

| loss                | J                                                             |
| ------------------- | ------------------------------------------------------------- |
| `explicit`          | 1/2 || s - grad log p ||^2, for a density that is known       |
| `implicit`          | tr(ds/dx) + 1/2 || s ||^2                                     |
| `sliced`            | v . ds/dx v + 1/2 (v . s)^2                                   |
| `sliced_vr`         | v . ds/dx v + 1/2 || s ||^2                                   |
| `finite_difference` | `sliced_vr` from s at x + h v and x - h v                     |

v is random, E[v v^T] = I; the constant is -1/2 E || grad log p ||^2. The points are x_t = alpha x0 +
sigma eps, or the data themselves, or simulated if the SDE has a force. With D dimensions, what is
minimised is

    E[ weight(t) 2 sigma^2 J ] / D,    of the data themselves E[ 2 J ] / D:

the units of `losses.denoising` on eps. As s = -eps_hat / sigma, explicit matching's loss is the
weighted squared error of eps_hat to the perfect network's, per dimension.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax import grids, losses, shapes
from score_jax.exact import NoisedLogp
from score_jax.model import Model
from score_jax.predict import combine
from score_jax.sde import SDE, perturb
from score_jax.simulate import simulate
from score_jax.types import Batch, Key, Keys, LossFn

MakeGrid = Callable[[SDE], grids.Grid]
ScoreFn = Callable[[Array], Array]


class Points(NamedTuple):
    """Where s is matched: draws x of the law of alpha x0 + sigma eps, the time t that the model is told.

    Attributes:
      scale: the unit of length, sigma of the noise, or 1 for the data themselves (alpha = 1, sigma =
        0).
      weight: of the example in the loss.
    """

    x: Float[Array, "b *s"]
    t: Float[Array, "b"]
    alpha: Float[Array, "b"]
    sigma: Float[Array, "b"]
    scale: Float[Array, "b"]
    weight: Float[Array, "b"]


# J(keys, score, points) of each example
Objective = Callable[[Keys, ScoreFn, Points], Float[Array, "b"]]


def explicit(
    model: Model,
    *,
    noised_logp: NoisedLogp,
    grid: MakeGrid = grids.log_snr,
    weight: losses.Weight = losses.simple,
    level: float | None = None,
) -> LossFn:
    """The squared distance to a known score (Hyvarinen 2005, eq. 2; Vincent 2011 gave it its name).

    For data of a known density, and an SDE without a force.

    Args:
      noised_logp: log-density of alpha x0 + sigma eps; see `exact`.
      grid, weight: as in `losses.denoising`.
      level: the one noise level sigma / alpha to match at, 0 for the data themselves, where the
        weight is 1 and the model is asked at t_min; None for all times of the SDE.
    """

    def objective(keys, score, at):
        total = lambda x: jnp.sum(noised_logp(x, at.alpha, at.sigma))
        return 0.5 * shapes.sum_event(jnp.square(score(at.x) - jax.grad(total)(at.x)))

    return _matching(model, objective, grid, weight, level)


def implicit(
    model: Model,
    *,
    grid: MakeGrid = grids.log_snr,
    weight: losses.Weight = losses.simple,
    level: float | None = None,
    simulation_steps: int = 32,
) -> LossFn:
    """The objective after integration by parts, with the exact trace (Hyvarinen 2005, theorem 1).

    A product with the Jacobian for each dimension: for data of few.

    Args:
      grid, weight, level: as in `explicit`.
      simulation_steps: to x_t, if the SDE has a force.
    """

    def objective(keys, score, at):
        basis = jnp.eye(shapes.event_size(at.x), dtype=at.x.dtype).reshape(-1, 1, *at.x.shape[1:])
        s, forms = _forms(score, at.x, jnp.broadcast_to(basis, (len(basis), *at.x.shape)))
        return jnp.sum(forms, axis=0) + 0.5 * shapes.sum_event(jnp.square(s))

    return _matching(model, objective, grid, weight, level, simulation_steps)


def rademacher(key: Key, shape: tuple[int, ...], dtype) -> Array:
    """Random signs."""
    return jax.random.rademacher(key, shape, dtype)


def gaussian(key: Key, shape: tuple[int, ...], dtype) -> Array:
    """Standard normal numbers."""
    return jax.random.normal(key, shape, dtype)


def sphere(key: Key, shape: tuple[int, ...], dtype) -> Array:
    """Uniform on a sphere: that of radius sqrt(D), where Song et al. 2019 have radius 1 and so E[v v^T] = I / D."""
    v = jax.random.normal(key, (shape[0], math.prod(shape[1:])), dtype)
    norm = jnp.sqrt(jnp.sum(jnp.square(v), axis=1, keepdims=True))
    return (math.sqrt(v.shape[1]) / norm * v).reshape(shape)


# name -> draw(key, (n, *event), dtype): n directions for one example, E[v v^T] = I
PROJECTIONS = {"rademacher": rademacher, "gaussian": gaussian, "sphere": sphere}


def sliced(
    model: Model,
    *,
    n_projections: int = 1,
    projection: str = "rademacher",
    grid: MakeGrid = grids.log_snr,
    weight: losses.Weight = losses.simple,
    level: float | None = None,
    simulation_steps: int = 32,
) -> LossFn:
    """The objective along random directions (Song et al. 2019, arXiv 1905.07088, section 3).

    v . A v with A = ds/dx + s s^T / 2: over random signs its variance is 2 sum_{i != j} A_ij^2, A
    made symmetric, divided by the number of directions; the Gaussian's has 2 sum_i A_ii^2 more. So
    does the same with A's derivative by a parameter for the gradient (the paper's corollary on the
    estimator's variance).

    Args:
      n_projections: independent directions of each example, whose mean is taken.
      projection: one of PROJECTIONS.
      grid, weight, level, simulation_steps: as in `implicit`.
    """

    def objective(keys, score, at):
        v = _directions(keys, at.x, n_projections, projection)
        s, forms = _forms(score, at.x, v)
        along = jax.vmap(lambda v: shapes.sum_event(v * s))(v)
        return jnp.mean(forms + 0.5 * jnp.square(along), axis=0)

    return _matching(model, objective, grid, weight, level, simulation_steps)


def sliced_vr(
    model: Model,
    *,
    n_projections: int = 1,
    projection: str = "rademacher",
    grid: MakeGrid = grids.log_snr,
    weight: losses.Weight = losses.simple,
    level: float | None = None,
    simulation_steps: int = 32,
) -> LossFn:
    """`sliced` with the known expectation 1/2 || s ||^2 for its second term: SSM-VR of the same paper.

    Song & Ermon 2019, arXiv 1907.05600, eq. 3, is this one.

    Args:
      n_projections, projection, grid, weight, level, simulation_steps: as in `sliced`.
    """

    def objective(keys, score, at):
        s, forms = _forms(score, at.x, _directions(keys, at.x, n_projections, projection))
        return jnp.mean(forms, axis=0) + 0.5 * shapes.sum_event(jnp.square(s))

    return _matching(model, objective, grid, weight, level, simulation_steps)


def finite_difference(
    model: Model,
    *,
    n_projections: int = 1,
    step: float = 0.1,
    grid: MakeGrid = grids.log_snr,
    weight: losses.Weight = losses.simple,
    level: float | None = None,
    simulation_steps: int = 32,
) -> LossFn:
    """`sliced_vr` on the sphere by differences instead of derivatives (Pang et al. 2020, arXiv 2007.03317: FD-SSM).

    With s+ and s- at x + h v and x - h v, the form for a score network is

        v . (s+ - s-) / (2 h) + 1/8 || s+ + s- ||^2,

    two evaluations of the network and no Jacobian product. The error is of order h^2, and none for
    a linear s. The paper's epsilon is the length of h v, h sqrt(D), and v its only projection.

    Args:
      n_projections: as in `sliced`.
      step: h in units of the noise, sigma; in units of x for the data themselves.
      grid, weight, level, simulation_steps: as in `implicit`.
    """

    def objective(keys, score, at):
        v = _directions(keys, at.x, n_projections, "sphere")
        h = step * shapes.like(at.scale, at.x)
        both = jnp.concatenate([at.x + h * v, at.x - h * v])
        # as one batch: a network mapped over a new axis is slower
        plus, minus = jnp.split(score(both.reshape(-1, *at.x.shape[1:])).reshape(both.shape), 2)
        terms = v * (plus - minus) / (2 * h) + 0.125 * jnp.square(plus + minus)
        return jnp.mean(jax.vmap(shapes.sum_event)(terms), axis=0)

    return _matching(model, objective, grid, weight, level, simulation_steps)


def _directions(keys: Keys, x: Array, n: int, projection: str) -> Float[Array, "n b *s"]:
    draw = lambda key: PROJECTIONS[projection](key, (n, *x.shape[1:]), x.dtype)
    return jax.vmap(draw, out_axes=1)(keys)


def _forms(score: ScoreFn, x: Array, v: Float[Array, "n b *s"]) -> tuple[Array, Array]:
    """s, and v . ds/dx v for each of the directions, [n, b]."""
    s, products = jax.vmap(lambda v: jax.jvp(score, (x,), (v,)), out_axes=(None, 0))(v)
    return s, jax.vmap(shapes.sum_event)(v * products)


def _matching(
    model: Model,
    objective: Objective,
    grid: MakeGrid,
    weight: losses.Weight,
    level: float | None,
    simulation_steps: int | None = None,
) -> LossFn:
    def loss(key, params, loss_state, batch, step):
        sde = model.sde(params)
        at = _points(key, sde, batch, grid, weight, level, simulation_steps)
        told = at.t, batch.label, shapes.fold_in(batch.keys, 1), batch.augment

        def score(x):
            """Of x, one point for each example, or several: one whole batch of points after the other."""
            several = lambda a: jnp.concatenate([a] * (len(x) // len(at.t)))
            t, label, keys, augment = jax.tree.map(several, told)
            pair = model.predict(params, x, t, label, keys=keys, augment=augment)
            return combine("score", sde, pair, t)

        values = objective(shapes.fold_in(batch.keys, 4), score, at)
        values *= 2 * jnp.square(at.scale) / shapes.event_size(batch.x)
        return jnp.mean(at.weight * values), ({}, loss_state)

    return loss


def _points(
    key: Key, sde: SDE, batch: Batch, grid: MakeGrid, weight, level, simulation_steps
) -> Points:
    ones = jnp.ones_like(batch.position)
    if level == 0.0:
        return Points(batch.x, sde.t_min * ones, ones, 0.0 * ones, ones, ones)
    if level is None:
        t, dt_du = grids.time_and_rate(grid(sde), grids.stratified(key, batch.position))
    else:
        # at one time there is no density of times to divide out
        t, dt_du = sde.time_of_log_snr(-2.0 * math.log(level) * ones), -ones
    alpha, sigma, keys = sde.alpha(t), sde.sigma(t), shapes.fold_in(batch.keys, 0)
    if sde.force is None:
        x = perturb(sde, batch.x, t, shapes.normal(keys, batch.x))
    else:
        x = simulate(keys, sde, batch.x, t, n_steps=simulation_steps)
    return Points(x, t, alpha, sigma, sigma, weight(sde, t, -dt_du))
