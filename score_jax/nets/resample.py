"""Half and twice the height and width of images, without parameters.

naive: down is the mean of 2 x 2 pixels, up repeats each pixel 2 x 2.

fir: the filter k = (1, 3, 3, 1) along height and along width, on every other position to go down,
between zeros to go up, against aliasing (Zhang 2019, arXiv 1904.11486; in this form StyleGAN2,
Karras et al. 2020, arXiv 1912.04958). Pixels beyond the border are zero. Along one axis,

    down[i]  = (x[2i-1] + 3 x[2i] + 3 x[2i+1] + x[2i+2]) / 8
    up[2i]   = (x[i-1] + 3 x[i]) / 4,    up[2i+1] = (3 x[i] + x[i+1]) / 4.

These are sums of slices because XLA has no fast gradient for grouped convolutions on the CPU.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

Image = Float[Array, "b h w c"]

HEIGHT, WIDTH = 1, 2


class Resampling(NamedTuple):
    """How sizes change, alone and together with a convolution of 3 x 3 that does no padding.

    Attributes:
      down, up: half and twice the height and width.
      before_down: with one row and column more, of which a convolution with stride 2 makes half the
        height and width.
      before_up: twice the height and width and one pixel on each side, which a convolution removes.
    """

    down: Callable[[Array], Array]
    up: Callable[[Array], Array]
    before_down: Callable[[Array], Array]
    before_up: Callable[[Array], Array]


def _pad(x: Image, low: int, high: int) -> Float[Array, "b _ _ c"]:
    return jnp.pad(x, ((0, 0), (low, high), (low, high), (0, 0)))


def _mean(x: Image) -> Float[Array, "b h/2 w/2 c"]:
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def _repeat(x: Image) -> Float[Array, "b 2*h 2*w c"]:
    return jnp.repeat(jnp.repeat(x, 2, axis=HEIGHT), 2, axis=WIDTH)


def _blur(x: Image, axis: int, stride: int) -> Float[Array, "b _ _ c"]:
    """The filter at each position, or every other one, where all four taps are inside."""
    n = x.shape[axis] - 3
    taps = [lax.slice_in_dim(x, j, j + n, stride, axis) for j in range(4)]
    return (taps[0] + 3 * taps[1] + 3 * taps[2] + taps[3]) / 8


def _interpolate(x: Image, axis: int) -> Float[Array, "b _ _ c"]:
    """Between each two neighbours, 1/4 and 3/4 of the way: n pixels become 2 n - 2."""
    left, right = (lax.slice_in_dim(x, j, x.shape[axis] - 1 + j, axis=axis) for j in (0, 1))
    pairs = jnp.stack([3 * left + right, left + 3 * right], axis=axis + 1) / 4
    return pairs.reshape(*x.shape[:axis], 2 * left.shape[axis], *x.shape[axis + 1 :])


def _fir_down(x: Image) -> Float[Array, "b h/2 w/2 c"]:
    return _blur(_blur(_pad(x, 1, 1), HEIGHT, 2), WIDTH, 2)


def _fir_before_down(x: Image) -> Float[Array, "b h+1 w+1 c"]:
    return _blur(_blur(_pad(x, 2, 2), HEIGHT, 1), WIDTH, 1)


def _fir_before_up(x: Image) -> Float[Array, "b 2*h+2 2*w+2 c"]:
    return _interpolate(_interpolate(_pad(x, 1, 1), HEIGHT), WIDTH)


def _fir_up(x: Image) -> Float[Array, "b 2*h 2*w c"]:
    return _fir_before_up(x)[:, 1:-1, 1:-1, :]


RESAMPLINGS = {
    "naive": Resampling(
        down=_mean,
        up=_repeat,
        # zeros below and to the right only, as TensorFlow's SAME pads an even size
        before_down=lambda x: _pad(x, 0, 1),
        before_up=lambda x: _pad(_repeat(x), 1, 1),
    ),
    "fir": Resampling(
        down=_fir_down, up=_fir_up, before_down=_fir_before_down, before_up=_fir_before_up
    ),
}
