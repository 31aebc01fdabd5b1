"""Linear measurements y = A x + std n, n ~ N(0, I), given by functions: no matrix of A is kept.

`linear` makes one of any function that is linear in x, with the adjoint A^T by transposing the
program. Where a singular value decomposition A = U S V^T is cheap it is given as functions too: V^T
x are as many coordinates as x has, and `singular` is what A multiplies each by, zero for those that
it does not see. What posterior sampling asks of A is then little:

    pseudo_inverse(y) = A^+ y,    solve(r, a, b) = (a A A^T + b I)^-1 r.

x is [b, *event], y [b, *its own shape].
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_jax import shapes
from score_jax.types import Keys

_ITERATIONS = 200  # of conjugate gradients at most, where there is no decomposition
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, and what Pillow calls "L"
_RELATIVE_ZERO = 1e-4  # below it, times the largest, float32 leaves no digits of what was measured


class SVD(NamedTuple):
    """A = U S V^T as functions.

    Attributes:
      singular: [*k], of each coordinate of V^T x; zero where A sees nothing.
      to_right, from_right: V^T x and V c, which are inverse to each other.
      to_left, from_left: U^T y, zero where `singular` is, and U c.
    """

    singular: np.ndarray
    to_right: Callable[[Array], Array]
    from_right: Callable[[Array], Array]
    to_left: Callable[[Array], Array]
    from_left: Callable[[Array], Array]


class Measurement(NamedTuple):
    """y = A x + std n: A x, A^T y, the noise's standard deviation, and the decomposition of A or None."""

    apply: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    std: float
    svd: SVD | None = None


def measure(keys: Keys, measurement: Measurement, x: Array) -> Array:
    """y = A x + std n, the noise of example i from keys[i]."""
    y = measurement.apply(x)
    return y + measurement.std * shapes.normal(keys, y)


def log_likelihood(measurement: Measurement, y: Array, x: Array) -> Array:
    """log p(y | x) [b] in nats; std must be positive."""
    z = (y - measurement.apply(x)) / measurement.std
    normaliser = 0.5 * math.log(2 * math.pi) + math.log(measurement.std)
    return -shapes.sum_event(0.5 * jnp.square(z) + normaliser)


def pseudo_inverse(measurement: Measurement, y: Array) -> Array:
    """A^+ y: of all x that A maps nearest to y, the one of least norm."""
    if measurement.svd is None:
        # A^T A x = A^T y, begun at zero: A A^T z = y has no solution where y is off the range of A
        normal = lambda x: measurement.adjoint(measurement.apply(x))
        return _conjugate_gradients(normal, measurement.adjoint(y), 1.0, 0.0)
    svd = measurement.svd
    return svd.from_right(svd.to_left(y) * _inverse(svd.singular))


def solve(measurement: Measurement, r: Array, a: Array | float, b: Array | float) -> Array:
    """(a A A^T + b I)^-1 r on the range of A; what r has outside of it, which no x changes, is dropped.

    Without a decomposition by conjugate gradients, one system for each example, to a residual of 1e-5
    or as near as 200 iterations come; then r stays whole, and with b = 0 has to be on the range of A.

    Args:
      a, b: scalars or [batch], not negative, and one of them positive.
    """
    if measurement.svd is None:
        product = lambda v: measurement.apply(measurement.adjoint(v))
        return _conjugate_gradients(product, r, a, b)
    svd = measurement.svd
    c = svd.to_left(r)
    seen = jnp.asarray(svd.singular > 0)
    a, b = shapes.like(jnp.asarray(a, r.dtype), c), shapes.like(jnp.asarray(b, r.dtype), c)
    values = a * jnp.asarray(np.square(svd.singular), r.dtype) + b
    return svd.from_left(jnp.where(seen, c / jnp.where(seen, values, 1.0), 0.0))


def linear(
    apply: Callable[[Array], Array],
    shape: tuple[int, ...],
    std: float = 0.0,
    svd: SVD | None = None,
) -> Measurement:
    """Any function of x [b, *shape] that is linear and treats each example alone."""

    def adjoint(y):
        x = jax.ShapeDtypeStruct((len(y), *shape), y.dtype)
        return jax.linear_transpose(apply, x)(y)[0]

    return Measurement(apply, adjoint, std, svd)


def inpaint(mask: np.ndarray, std: float = 0.0) -> Measurement:
    """y [b, m] are the entries of x where `mask`, of the event's shape, is true, in its order."""
    mask = np.asarray(mask, bool)
    if not mask.any():
        raise ValueError(f"the mask of shape {mask.shape} observes nothing; make some of it true")
    flat = mask.ravel()
    index = np.flatnonzero(flat)
    apply = lambda x: x.reshape(len(x), -1)[:, index]

    def scatter(y):
        return jnp.zeros((len(y), flat.size), y.dtype).at[:, index].set(y)

    svd = SVD(
        singular=flat.astype(float),
        to_right=lambda x: x.reshape(len(x), -1),
        from_right=lambda c: c.reshape(len(c), *mask.shape),
        to_left=scatter,
        from_left=lambda c: c[:, index],
    )
    return linear(apply, mask.shape, std, svd)


def random_mask(
    shape: tuple[int, ...], share: float, std: float = 0.0, seed: int = 0
) -> Measurement:
    """`inpaint` with a share of the pixels, chosen at random: the same for all channels of an image.

    Args:
      shape: of x; the last of three axes are channels.
      share: of pixels that are observed, at least one.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share} of observed pixels must be above 0 and at most 1")
    pixels = shape[:-1] if len(shape) == 3 else shape
    size = math.prod(pixels)
    chosen = np.zeros(size, bool)
    order = np.random.default_rng(seed).permutation(size)
    chosen[order[: max(1, round(share * size))]] = True
    mask = chosen.reshape(pixels)
    return inpaint(np.repeat(mask[..., None], shape[-1], -1) if len(shape) == 3 else mask, std)


def grey(
    shape: tuple[int, ...], std: float = 0.0, weights: tuple[float, ...] = _LUMA
) -> Measurement:
    """y [b, h, w, 1] is the sum of the channels of x [b, h, w, c], weighted: what colorization is given."""
    if len(shape) != 3 or shape[-1] != len(weights):
        raise ValueError(
            f"colorization needs images of {len(weights)} channels, and one is {shape} here"
        )
    return _separable(shape, (None, None, np.asarray(weights)[None]), std)


def average_pool(shape: tuple[int, ...], factor: int, std: float = 0.0) -> Measurement:
    """y [b, h / factor, w / factor, c] are the means of squares of pixels: what super-resolution is given."""
    height, width, _ = _image(shape, "super-resolution")
    if factor < 1 or height % factor or width % factor:
        raise ValueError(
            f"factor = {factor} must divide the image's {height}x{width}; choose another factor"
        )
    mean = lambda size: np.repeat(np.eye(size // factor), factor, axis=1) / factor
    return _separable(shape, (mean(height), mean(width), None), std)


def blur(shape: tuple[int, ...], width: float, std: float = 0.0) -> Measurement:
    """y is x [b, h, w, c] under a Gaussian filter; outside of the image its edge goes on.

    Args:
      width: standard deviation of the filter in pixels, which is cut off at 4 of them.
    """
    height, columns, _ = _image(shape, "deblurring")
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width = {width} of the blur must be a positive number of pixels")
    reach = math.ceil(4 * width)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * np.square(offsets / width))
    kernel /= kernel.sum()

    def matrix(size):
        rows = np.zeros((size, size))
        for offset, weight in zip(offsets, kernel, strict=True):
            rows[np.arange(size), np.clip(np.arange(size) + offset, 0, size - 1)] += weight
        return rows

    return _separable(shape, (matrix(height), matrix(columns), None), std)


def matrix(a: np.ndarray, std: float = 0.0) -> Measurement:
    """y = A x for vectors x [b, d] and a matrix A [m, d]."""
    a = np.asarray(a)
    return _separable((a.shape[1],), (a,), std)


def _separable(
    shape: tuple[int, ...], factors: tuple[np.ndarray | None, ...], std: float
) -> Measurement:
    """A matrix along each axis of the event, None for the identity: the decompositions' product is A's."""
    parts = [None if f is None else np.linalg.svd(f) for f in factors]
    singular = np.ones(shape)
    for axis, part in enumerate(parts):
        if part is not None:
            values = np.zeros(shape[axis])
            values[: len(part[1])] = part[1]
            singular = singular * values.reshape(
                [-1 if k == axis else 1 for k in range(len(shape))]
            )
    singular = np.where(singular > _RELATIVE_ZERO * singular.max(), singular, 0.0)
    out = tuple(n if f is None else len(f) for n, f in zip(shape, factors, strict=True))
    left = [None if part is None else part[0] for part in parts]
    right = [None if part is None else part[2] for part in parts]
    transposed = lambda matrices: [None if m is None else m.T for m in matrices]
    seen = (singular > 0).astype(float)

    def to_left(y):
        return _resized(_along(y, transposed(left)), shape) * jnp.asarray(seen, y.dtype)

    svd = SVD(
        singular=singular,
        to_right=lambda x: _along(x, right),
        from_right=lambda c: _along(c, transposed(right)),
        to_left=to_left,
        from_left=lambda c: _along(_resized(c * jnp.asarray(seen, c.dtype), out), left),
    )
    return linear(lambda x: _along(x, factors), shape, std, svd)


def _along(x: Array, factors) -> Array:
    """x with each matrix applied along its axis of the event."""
    for axis, factor in enumerate(factors, start=1):
        if factor is not None:
            moved, factor = jnp.moveaxis(x, axis, -1), jnp.asarray(factor.T, x.dtype)
            # an accelerator's fast products would blur what is divided by small singular values
            moved = jnp.matmul(moved, factor, precision="float32")
            x = jnp.moveaxis(moved, -1, axis)
    return x


def _resized(c: Array, shape: tuple[int, ...]) -> Array:
    """The event cut off or filled with zeros at the end of each axis."""
    c = c[(slice(None), *(slice(n) for n in shape))]
    fill = [(0, n - k) for n, k in zip(shape, c.shape[1:], strict=True)]
    return jnp.pad(c, [(0, 0), *fill])


def _inverse(singular: np.ndarray) -> np.ndarray:
    return np.where(singular > 0, 1 / np.where(singular > 0, singular, 1.0), 0.0)


def _image(shape: tuple[int, ...], task: str) -> tuple[int, ...]:
    if len(shape) != 3:
        raise ValueError(f"{task} needs images [height, width, channels], and one is {shape} here")
    return shape


def _conjugate_gradients(product, r, a, b):
    """(a P + b I)^-1 r, product(v) = P v of a batch, P symmetric and of each example alone."""
    a, b = (jnp.broadcast_to(jnp.asarray(c, r.dtype), r.shape[:1]) for c in (a, b))

    def one(r, a, b):
        of_one = lambda v: a * product(v[None])[0] + b * v
        return jax.scipy.sparse.linalg.cg(of_one, r, maxiter=_ITERATIONS)[0]

    return jax.vmap(one)(r, a, b)
