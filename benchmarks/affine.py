"""The exact law of a sampler's result for Gaussian data, without Monte-Carlo error.

In the eigenbasis of the covariance the data are N(mean, diag(eigenvalues)), and with the exact
score nearly every sampler acts on each coordinate alone, by a map that is affine in the start x_T
and in each standard normal draw z_k:

    x_0 = c + A x_T + sum_k B_k z_k,    so that    var x_0 = A^2 var x_T + sum_k B_k^2.

The noise is taken from the sampler's hands: samplers draw by `shapes.normal` alone, which becomes a
look-up in a table of which A and B are the derivatives; diffrax's Brownian path becomes one with a
single draw that is not zero, one sample for each draw.
"""

from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_jax import shapes
from score_jax.sde import SDE
from score_jax.types import PredictFn, Prediction

WAYS = 4  # draws that a step may tell apart by each of two folds of its key, and one more without
BLOCK = 256  # eigenvalues at a time, which bounds the table's memory
# thousands of small programs: the time is their compilation
COMPILER = {"xla_backend_optimization_level": 0}


class Gaussian(NamedTuple):
    """N(mean, variance) in each coordinate."""

    mean: np.ndarray
    variance: np.ndarray


# draw(keys, sde, predict, x) -> record with the samples as `x`
Draw = Callable[..., NamedTuple]


def natural(side: int = 16, pixel_variance: float = 0.25) -> np.ndarray:
    """Eigenvalues [side^2] of images whose power falls as one over the squared frequency.

    They are those of a stationary periodic covariance; the mean's is that of the lowest frequency.
    """
    k = np.fft.fftfreq(side, 1 / side)
    power = 1 / np.maximum(k[:, None] ** 2 + k**2, 1).ravel()
    return power * (pixel_variance * power.size / power.sum())


def predictor(sde: SDE, data: Gaussian) -> PredictFn:
    """E[x0 | x_t] and E[eps | x_t] of Gaussian data."""

    def predict(x, t, label=None):
        alpha, sigma = shapes.like(sde.alpha(t), x), shapes.like(sde.sigma(t), x)
        gain = (x - alpha * data.mean) / (alpha**2 * data.variance + sigma**2)
        return Prediction(x0=data.mean + alpha * data.variance * gain, eps=sigma * gain)

    return predict


def noised(sde: SDE, data: Gaussian, t: float) -> Gaussian:
    """The law of x_t."""
    alpha, sigma = float(sde.alpha(jnp.asarray(t))), float(sde.sigma(jnp.asarray(t)))
    return Gaussian(alpha * data.mean, alpha**2 * data.variance + sigma**2)


def stepping(draw: Draw, sde: SDE, n_steps: int) -> Callable[[Gaussian, Gaussian], Gaussian]:
    """law(data, start) of a sampler of `score_jax.samplers`, by one backward pass."""

    def moments(data, start):
        run = lambda x, z: _with_table(z, lambda: draw((), sde, predictor(sde, data), x).x)
        x, z = start.mean[None], jnp.zeros((n_steps, WAYS + 1, WAYS + 1, *start.mean.shape))
        mean, pull = jax.vjp(run, x, z)
        of_start, of_noise = pull(jnp.ones_like(mean))
        noise = jnp.sum(jnp.square(of_noise), axis=(0, 1, 2))
        return Gaussian(mean[0], of_start[0] ** 2 * start.variance + noise)

    return _in_blocks(jax.jit(moments, compiler_options=COMPILER))


def units(draw: Draw, sde: SDE, n_draws: int) -> Callable[[Gaussian, Gaussian], Gaussian]:
    """law(data, start) of a diffrax solver in equal steps, by one sample for the start and each normal draw.

    Args:
      n_draws: 0 of an ODE; of an SDE 2 a step, W and H, also if the solver asks for W alone.
    """

    def moments(data, start):
        run = lambda keys, data, x: draw(keys, sde, predictor(sde, data), x).x
        mean = run(jnp.array([-1]), data, start.mean[None])
        keys = jnp.arange(-1, n_draws)  # the first sample has a start and no noise
        x = jnp.where(keys[:, None] == -1, 1.0, jnp.zeros_like(start.mean))
        squares = jnp.square(run(keys, data._replace(mean=jnp.zeros_like(data.mean)), x))
        return Gaussian(mean[0], squares[0] * start.variance + jnp.sum(squares[1:], axis=0))

    def on_unit_paths(data, start):
        with mock.patch.object(diffrax, "UnsafeBrownianPath", UnitPath):
            return moments(data, start)

    return _in_blocks(jax.jit(on_unit_paths, compiler_options=COMPILER))


def is_affine(draw: Draw, sde: SDE, n_steps: int, data: Gaussian, rtol: float = 1e-6) -> bool:
    """Whether draws at random x_T and noise are those of a map affine in both, in each coordinate alone."""

    def difference(x, z):
        run = lambda x, z: _with_table(z, lambda: draw((), sde, predictor(sde, data), x).x)
        origin, pull = jax.vjp(run, jnp.zeros_like(x), jnp.zeros_like(z))
        of_start, of_noise = pull(jnp.ones_like(x))
        affine = origin + of_start * x + jnp.sum(of_noise * z, axis=(0, 1, 2))
        found = run(x, z)
        return jnp.max(jnp.abs(found - affine)) / jnp.max(jnp.abs(found))

    key_x, key_z = jax.random.split(jax.random.key(0))
    x = jax.random.normal(key_x, (1, *data.mean.shape))
    z = jax.random.normal(key_z, (n_steps, WAYS + 1, WAYS + 1, *data.mean.shape))
    return bool(jax.jit(difference, compiler_options=COMPILER)(x, z) < rtol)


def w2(law: Gaussian, data: Gaussian, counts: np.ndarray) -> float:
    """The 2-Wasserstein distance between Gaussians with the same axes, coordinate i standing for counts[i]."""
    spread = np.sqrt(law.variance) - np.sqrt(data.variance)
    return float(np.sqrt(np.sum(counts * ((law.mean - data.mean) ** 2 + spread**2))))


class UnitPath(diffrax.UnsafeBrownianPath):
    """A Brownian path of equal steps whose draw number `key` is one, and all others zero: W at 2 i, H at 2 i + 1."""

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        i = jnp.round(t0 / (t1 - t0))
        unit = lambda k: jnp.full(self.shape.shape, self.key == k, self.shape.dtype)
        w = jnp.sqrt(t1 - t0) * unit(2 * i)
        if not use_levy:
            return w
        if self.levy_area is diffrax.BrownianIncrement:
            return diffrax.BrownianIncrement(dt=t1 - t0, W=w)
        h = jnp.sqrt((t1 - t0) / 12) * unit(2 * i + 1)
        return diffrax.SpaceTimeLevyArea(dt=t1 - t0, W=w, H=h)


def _with_table(z: Array, run: Callable[[], Array]) -> Array:
    """run() with keys that are paths: a step's index, then what was folded in, and noise z at that path."""

    def normal(path, x):
        step, *folds = path
        # one more than the fold, as 0 is for no fold; out of the table is an error, not the last row
        first, second = (fold + 1 for fold in [*folds, -1, -1][:2])
        draw = z.at[step, first, second].get(mode="fill", fill_value=jnp.nan)
        return jnp.broadcast_to(draw, x.shape)

    replaced = dict(normal=normal, fold_in=lambda path, i: (*path, i))
    with mock.patch.multiple(shapes, **replaced):
        return run()


def _in_blocks(law):
    def whole(data, start):
        n = -(-len(data.mean) // BLOCK)
        blocks = lambda record: zip(*(np.array_split(a, n) for a in record), strict=True)
        parts = [
            law(Gaussian(*d), Gaussian(*s))
            for d, s in zip(blocks(data), blocks(start), strict=True)
        ]
        return Gaussian(*(np.concatenate(a) for a in zip(*parts, strict=True)))

    return whole
