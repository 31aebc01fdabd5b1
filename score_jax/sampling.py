"""Whole draws: from the prior at t_max along a grid to t_min, by stepping samplers or by diffrax.

Each constructor returns draw(keys, sde, predict, x, label=None) -> Draws, where x are samples of
the prior. A sample is a function of its own key.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from score_jax import dynamics, grids, samplers, shapes, solve
from score_jax.grids import Grid
from score_jax.sde import SDE, diffusion
from score_jax.types import Keys

MakeGrid = Callable[[SDE], Grid]


class Draws(NamedTuple):
    """Samples at t_min, the network evaluations that each took, and whether its solver succeeded."""

    x: Float[Array, "b *s"]
    nfe: Int[Array, "b"]
    ok: Bool[Array, "b"]


def prior(keys: Keys, sde: SDE, shape: tuple[int, ...]) -> Float[Array, "b *s"]:
    """Samples [b, *shape] of N(0, sigma(t_max)^2 I), which stands for p at t_max."""
    noise = shapes.normal(keys, jnp.zeros((len(keys), *shape)))
    return sde.sigma(jnp.asarray(sde.t_max)) * noise


def ddim(*, grid: MakeGrid = grids.log_snr, n_steps: int = 50, eta: float = 0.0):
    """Draws by `samplers.ddim`."""
    return _stepping(lambda sde: samplers.ddim(sde, eta=eta), grid, n_steps)


def euler_maruyama(*, grid: MakeGrid = grids.log_snr, n_steps: int = 500, noise: float = 1.0):
    """Draws by `samplers.euler_maruyama`."""
    return _stepping(lambda sde: samplers.euler_maruyama(sde, noise=noise), grid, n_steps)


def probability_flow(
    *,
    grid: MakeGrid = grids.log_snr,
    solver: str = "tsit5",
    n_steps: int | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
):
    """Draws by diffrax on the probability-flow ODE: n_steps equal steps of the grid, or adaptive steps if None."""

    def draw(keys, sde, predict, x, label=None):
        def one(x, label):
            velocity = dynamics.reverse_drift(sde, lambda x, t: predict(x, t, label))
            field = lambda t, x: velocity(t, x[None])[0]
            steps = dict(solver=solver, n_steps=n_steps, rtol=rtol, atol=atol)
            return solve.ode(field, x, grid(sde), **steps)

        return Draws(*_each(one, x, label))

    return draw


def reverse_sde(
    *,
    grid: MakeGrid = grids.log_snr,
    solver: str = "shark",
    n_steps: int = 200,
    noise: float = 1.0,
):
    """Draws by diffrax on the reverse SDE at a noise level (`dynamics`), in n_steps equal steps of the grid."""

    def draw(keys, sde, predict, x, label=None):
        def one(key_x, label):
            key, x = key_x
            drift = dynamics.reverse_drift(sde, lambda x, t: predict(x, t, label), noise=noise)
            return solve.sde(
                key,
                lambda t, x: drift(t, x[None])[0],
                lambda t: noise * diffusion(sde, t),
                x,
                grid(sde),
                solver=solver,
                n_steps=n_steps,
            )

        return Draws(*_each(one, (keys, x), label))

    return draw


def _each(one: Callable, examples, label: Array | None) -> solve.Solution:
    if label is None:
        return jax.vmap(lambda example: one(example, None))(examples)
    return jax.vmap(lambda example, label: one(example, label[None]))(examples, label)


def _stepping(make: Callable[[SDE], samplers.Sampler], grid: MakeGrid, n_steps: int):
    def draw(keys, sde, predict, x, label=None):
        sampler = make(sde)
        times = grid(sde)(jnp.linspace(0.0, 1.0, n_steps + 1))
        x = samplers.sample(keys, sampler, lambda x, t: predict(x, t, label), x, times)
        nfe = jnp.full(len(x), n_steps * sampler.evaluations)
        return Draws(x, nfe, jnp.all(jnp.isfinite(x.reshape(len(x), -1)), axis=1))

    return draw
