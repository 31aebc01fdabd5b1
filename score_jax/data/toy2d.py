"""Two-dimensional densities to look at, within [-2, 2] but for the tails of their noise."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_jax import exact
from score_jax.data.base import DataSet, Split

_POINTS = 1  # keeps the streams of the points apart from those of the data's order


class Toy(NamedTuple):
    """sample(rng, n) -> points, labels or None; log_prob and noised_logp where they have a closed form."""

    sample: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray | None]]
    n_classes: int = 0
    log_prob: Callable[[Array], Array] | None = None
    noised_logp: exact.NoisedLogp | None = None


def toy2d(shape: str = "moons", n: int = 50_000, seed: int = 0) -> DataSet:
    """Points in the plane, continuous; validation and test are n // 10 points each.

    Args:
      shape: "moons", "checkerboard", "spirals", "gaussians" (eight on a circle) or "unequal" (two of
        mass 0.8 and 0.2, far apart). All but the first and the third know their log density, the last
        two also that of noised points.
      n: number of training points.
      seed: of the points; the three splits are drawn from separate streams.
    """
    if shape not in SHAPES:
        raise ValueError(
            f"no toy2d shape {shape!r}; set config.data.shape to one of {', '.join(SHAPES)}"
        )
    toy = SHAPES[shape]

    def split(stream: int, n: int) -> Split:
        x, label = toy.sample(np.random.default_rng((seed, stream, _POINTS)), n)
        return Split(x.astype(np.float32), None if label is None else label.astype(np.int32))

    splits = split(0, n), split(1, n // 10), split(2, n // 10)
    known = dict(log_prob=toy.log_prob, noised_logp=toy.noised_logp)
    return DataSet(f"toy2d_{shape}", *splits, None, toy.n_classes, **known)


def moons(noise: float = 0.08) -> Toy:
    """Two interleaved half circles of radius 1, blurred."""

    def sample(rng, n):
        label = rng.integers(2, size=n)
        sign = 1 - 2 * label
        angle = rng.uniform(0, math.pi, n)
        upper = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=1)
        return sign[:, None] * upper + noise * rng.standard_normal((n, 2)), label

    return Toy(sample, 2)


def checkerboard() -> Toy:
    """Uniform on the eight unit squares of [-2, 2]^2 whose corner coordinates have an even sum."""

    def sample(rng, n):
        column = rng.integers(-2, 2, n)
        row = 2 * rng.integers(-1, 1, n) + column % 2
        return np.stack([column, row], axis=1) + rng.random((n, 2)), None

    def log_prob(x: Float[Array | np.ndarray, "n 2"]) -> Float[Array, "n"]:
        corner = jnp.floor(x)
        inside = jnp.all((corner >= -2) & (corner < 2), axis=1) & (jnp.sum(corner, axis=1) % 2 == 0)
        return jnp.where(inside, -math.log(8), -jnp.inf)

    return Toy(sample, log_prob=log_prob)


def spirals(turns: float = 1.5, noise: float = 0.04) -> Toy:
    """Two arms, one the other turned by 180 degrees, from the centre to radius 1.8, blurred."""

    def sample(rng, n):
        label = rng.integers(2, size=n)
        along = np.sqrt(
            rng.random(n)
        )  # the arc's length grows with the radius: this spreads points evenly
        angle = 2 * math.pi * turns * along + math.pi * label
        arm = 1.8 * along[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return arm + noise * rng.standard_normal((n, 2)), label

    return Toy(sample, 2)


def gaussians(radius: float = 1.5, std: float = 0.1) -> Toy:
    """Eight equal isotropic Gaussians, evenly spaced on a circle."""
    angle = np.arange(8) * (math.pi / 4)
    return _mixture(None, radius * np.stack([np.cos(angle), np.sin(angle)], axis=1), std)


def unequal(distance: float = 3.0, std: float = 0.15) -> Toy:
    """Two isotropic Gaussians of mass 0.8 and 0.2, with next to no density between them.

    As in Song & Ermon 2019 (arXiv 1907.05600, section 3.2), whose distance is 14 standard deviations.
    """
    end = np.full(2, distance / math.sqrt(8))
    return _mixture([0.8, 0.2], np.stack([end, -end]), std)


def _mixture(weights: list[float] | None, means: np.ndarray, std: float) -> Toy:
    n_components = len(means)

    def sample(rng, n):
        label = rng.choice(n_components, size=n, p=weights)
        return means[label] + std * rng.standard_normal((n, 2)), label

    # the mixture is not made before it is asked: that would start JAX when this module is imported
    def noised_logp(x, alpha, sigma):
        shares = np.full(n_components, 1 / n_components) if weights is None else weights
        return exact.mixture(shares, means, std)(x, alpha, sigma)

    log_prob = lambda x: noised_logp(jnp.asarray(x), jnp.ones(()), jnp.zeros(()))
    return Toy(sample, n_components, log_prob, noised_logp)


SHAPES = {
    "moons": moons(),
    "checkerboard": checkerboard(),
    "spirals": spirals(),
    "gaussians": gaussians(),
    "unequal": unequal(),
}
