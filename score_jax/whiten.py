"""The data's best-fit Gaussian N(mean, S) in model space, and coordinates in which it stands still.

If x_0 were Gaussian, x_t would have the mean alpha mean and the covariance C = alpha^2 S + sigma^2 I,
and the probability-flow ODE would keep

    y = C^(-1/2) (x - alpha mean)

constant. For other data y moves little, and slowly, so that a solver needs few steps. All these
matrices share S's eigenvectors: each is a function of S, applied in them.

S is one variance for all directions, one for each coordinate, or principal components and one
variance for the rest (Tipping & Bishop 1999, "Probabilistic principal component analysis", eq. 7-8:
the largest eigenvalues, and the mean of the others).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Num

from score_jax.data.base import to_model
from score_jax.sde import SDE

_CHUNK = 1000
# up to here the covariance is computed in full
_LARGEST_COVARIANCE = 4096
_ITERATIONS = 4
_LEAST_VARIANCE = 1e-6  # of a coordinate that never changes


class Gaussian(NamedTuple):
    """Mean and covariance of a Gaussian: variances along n orthonormal vectors, `rest` in all other directions.

    With n = 0, `rest` may have a variance for each coordinate.
    """

    mean: Float[Array, "*s"]
    vectors: Float[Array, "n d"]
    variances: Float[Array, "n"]
    rest: Float[Array, "*s"] | Float[Array, ""]


def coordinates(gaussian: Gaussian, x: Float[Array, "*b"]) -> Float[Array, "n d"]:
    """The components along the vectors of examples stacked."""
    flat = x.reshape(-1, gaussian.mean.size)
    # by default a GPU or TPU would multiply with fewer digits
    return jnp.matmul(flat, gaussian.vectors.T, precision="highest")


def apply(
    gaussian: Gaussian, function: Callable[[Array], Array], x: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """function(S) x, of one example [*s] or any number of them stacked; `function` is of a variance."""
    rest = function(gaussian.rest)
    if not len(gaussian.vectors):
        return rest * x
    along = (function(gaussian.variances) - rest) * coordinates(gaussian, x)
    return rest * x + jnp.matmul(along, gaussian.vectors, precision="highest").reshape(x.shape)


def sum_of(gaussian: Gaussian, function: Callable[[Array], Array]) -> Float[Array, ""]:
    """The trace of function(S)."""
    others = gaussian.mean.size - len(gaussian.vectors)
    rest = jnp.mean(function(gaussian.rest))
    return jnp.sum(function(gaussian.variances)) + others * rest


def whitened(
    gaussian: Gaussian, sde: SDE, t: Float[Array, ""], x: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """y = C^(-1/2) (x - alpha mean)."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    scale = lambda variance: 1 / jnp.sqrt(alpha**2 * variance + sigma**2)
    return apply(gaussian, scale, x - alpha * gaussian.mean)


def coloured(
    gaussian: Gaussian, sde: SDE, t: Float[Array, ""], y: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """x = alpha mean + C^(1/2) y."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    scale = lambda variance: jnp.sqrt(alpha**2 * variance + sigma**2)
    return alpha * gaussian.mean + apply(gaussian, scale, y)


def log_det(gaussian: Gaussian, sde: SDE, t: Float[Array, ""]) -> Float[Array, ""]:
    """log det C^(1/2), in nats."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return 0.5 * sum_of(gaussian, lambda variance: jnp.log(alpha**2 * variance + sigma**2))


# fits


def isotropic(x: Num[Any, "n *s"], levels: int | None = None, *, n_rows: int = 20_000) -> Gaussian:
    """The mean and one variance for all directions; arguments as for `covariance`."""
    gaussian = diagonal(x, levels, n_rows=n_rows)
    return gaussian._replace(rest=jnp.mean(gaussian.rest))


def diagonal(x: Num[Any, "n *s"], levels: int | None = None, *, n_rows: int = 20_000) -> Gaussian:
    """The mean and a variance for each coordinate; arguments as for `covariance`."""
    chunks = lambda: _chunks(x, levels, n_rows)
    mean = _mean(chunks)
    variances = _mean(lambda: (np.square(chunk - mean) for chunk in chunks()))
    variances = np.maximum(variances, _LEAST_VARIANCE) + _dequantized(levels)
    return _gaussian(x.shape[1:], mean, np.zeros((0, mean.size)), [], variances)


def covariance(
    x: Num[Any, "n *s"], levels: int | None = None, *, rank: int = 1024, n_rows: int = 20_000
) -> Gaussian:
    """The mean and the `rank` largest principal components, at most one for each dimension.

    Args:
      x: examples in model space; or integer levels, whose Gaussian after uniform dequantization is
        then fitted. An array in memory, a memory map, or `data.base.Rows` of one.
      levels: of the integers, or None.
      rank: beyond it the variance is taken to be the same in all directions; rank x d floats are
        kept.
      n_rows: as many examples are read, evenly spaced.
    """
    chunks = lambda: _chunks(x, levels, n_rows)
    mean = _mean(chunks)
    centred = lambda: (chunk - mean for chunk in chunks())
    n, d = min(len(x), n_rows), mean.size
    rank = min(rank, d)
    if d <= _LARGEST_COVARIANCE:
        total = sum(chunk.T @ chunk for chunk in centred()) / n
        variances, vectors = np.linalg.eigh(total)
        variances, vectors = variances[::-1][:rank], vectors[:, ::-1][:, :rank].T
        trace = np.trace(total)
    else:
        variances, vectors = _largest(centred, n, d, rank)
        trace = np.sum(_mean(lambda: (np.square(chunk) for chunk in centred())))
    rest = (trace - np.sum(variances)) / (d - rank) if rank < d else 0.0
    floor = lambda v: np.maximum(v, _LEAST_VARIANCE) + _dequantized(levels)
    return _gaussian(x.shape[1:], mean, vectors, floor(variances), floor(rest))


# `fit(x, levels)` by name; "none" leaves x as it is
WHITENINGS: dict[str, Callable[..., Gaussian | None]] = {
    "none": lambda x, levels=None: None,
    "isotropic": isotropic,
    "diagonal": diagonal,
    "covariance": covariance,
}


def _chunks(x: Any, levels: int | None, n_rows: int) -> Iterator[np.ndarray]:
    rows = np.arange(min(len(x), n_rows)) * len(x) // min(len(x), n_rows)
    for start in range(0, len(rows), _CHUNK):
        chunk = np.asarray(x[rows[start : start + _CHUNK]], np.float64)
        # + 1/2: the mean of the dequantization's noise
        chunk = chunk if levels is None else to_model(chunk + 0.5, levels)
        yield chunk.reshape(len(chunk), -1)


def _dequantized(levels: int | None) -> float:
    # the variance of noise that is uniform over a level's width
    return 0.0 if levels is None else (2 / levels) ** 2 / 12


def _mean(chunks: Callable[[], Iterator[np.ndarray]]) -> np.ndarray:
    total, n = 0.0, 0
    for chunk in chunks():
        total, n = total + np.sum(chunk, axis=0), n + len(chunk)
    return total / n


def _largest(
    centred: Callable[[], Iterator[np.ndarray]], n: int, d: int, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues of the covariance and their vectors, by subspace iteration.

    Halko, Martinsson & Tropp 2011 (arXiv 0909.4061), algorithms 4.4 and 5.3.
    """
    times = lambda basis: sum(chunk.T @ (chunk @ basis) for chunk in centred()) / n
    basis = np.random.default_rng(0).standard_normal((d, min(rank + 10, d)))
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(times(basis))[0]
    variances, vectors = np.linalg.eigh(basis.T @ times(basis))
    return variances[::-1][:rank], (basis @ vectors)[:, ::-1][:, :rank].T


def _gaussian(shape, mean, vectors, variances, rest) -> Gaussian:
    rest = np.asarray(rest)
    rest = rest.reshape(shape) if rest.ndim else rest
    return Gaussian(
        *(
            jnp.asarray(np.asarray(a, float))
            for a in (mean.reshape(shape), vectors, variances, rest)
        )
    )
