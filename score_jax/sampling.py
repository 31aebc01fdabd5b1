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


def ddim(
    *,
    grid: MakeGrid = grids.log_snr,
    n_steps: int = 50,
    eta: float = 0.0,
    denoise: bool = False,
):
    """Draws by `samplers.ddim`; `denoise` ends with the x0 predicted at t_min, at one more evaluation."""
    return _stepping(lambda sde: samplers.ddim(sde, eta=eta), grid, n_steps, denoise)


def euler_maruyama(
    *,
    grid: MakeGrid = grids.log_snr,
    n_steps: int = 500,
    noise: float = 1.0,
    denoise: bool = False,
):
    """Draws by `samplers.euler_maruyama`; `denoise` ends with the x0 predicted at t_min, at one more evaluation."""
    return _stepping(lambda sde: samplers.euler_maruyama(sde, noise=noise), grid, n_steps, denoise)


PREDICTORS = {
    "reverse_diffusion": samplers.reverse_diffusion,
    "ancestral": samplers.ancestral,
    "ancestral_large": lambda sde: samplers.ancestral(sde, variance="large"),
    "euler_maruyama": samplers.euler_maruyama,
    "ddim": samplers.ddim,
    "none": lambda sde: samplers.stay,
}
CORRECTORS = {
    "langevin": samplers.langevin,
    "annealed_langevin": samplers.annealed_langevin,
    "none": lambda sde, **options: samplers.stay,
}


def predictor_corrector(
    *,
    grid: MakeGrid = grids.uniform,
    n_steps: int = 1000,
    predictor: str = "reverse_diffusion",
    corrector: str = "langevin",
    snr: float = 0.16,
    corrector_steps: int = 1,
    denoise: bool = True,
):
    """Draws by `samplers.corrected`, the predictor-corrector samplers of Song et al. 2021, arXiv 2011.13456.

    Args:
      grid: the paper's is uniform in t; log_snr or power suit `sde.edm`, whose t is sigma.
      predictor, corrector: words of PREDICTORS and CORRECTORS.
      snr, corrector_steps: of the corrector, if it is not "none"; 0.16 is the paper's for VE on
        CIFAR-10.
      denoise: end with the x0 predicted at t_min, at one more evaluation.
    """

    def make(sde):
        correct = CORRECTORS[corrector](sde, snr=snr, n_steps=corrector_steps)
        return samplers.corrected(PREDICTORS[predictor](sde), correct)

    return _stepping(make, grid, n_steps, denoise)


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


def _stepping(make: Callable[[SDE], samplers.Sampler], grid: MakeGrid, n_steps: int, denoise: bool):
    def draw(keys, sde, predict, x, label=None):
        sampler = make(sde)
        labelled = lambda x, t: predict(x, t, label)
        times = grid(sde)(jnp.linspace(0.0, 1.0, n_steps + 1))
        x = samplers.sample(keys, sampler, labelled, x, times)
        if denoise:
            x = labelled(x, jnp.full(len(x), times[-1])).x0
        nfe = jnp.full(len(x), n_steps * sampler.evaluations + denoise)
        return Draws(x, nfe, jnp.all(jnp.isfinite(x.reshape(len(x), -1)), axis=1))

    return draw
