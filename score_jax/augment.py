"""EDM's augmentation: the network is told what was done to an image, so that none of it leaks into samples.

Each transform is drawn with probability p, and the network gets its parameters; to sample, it is
asked for images to which nothing was done, all of them 0 (Karras et al. 2022, arXiv 2206.00364,
appendix F.2, table 6). In the order in which they are applied, and what the network is told:

| transform                            | drawn from       | condition                |
| ------------------------------------ | ---------------- | ------------------------ |
| x flip, left to right; always drawn  | a0 in {0, 1}     | a0                       |
| y flip, upside down                  | a1 in {0, 1}     | a1                       |
| scaling by 2^(0.2 a2)                | a2 normal        | a2                       |
| rotation by a3, counter-clockwise    | a3 in (-pi, pi)  | cos a3 - 1, sin a3       |
| stretch by 2^(0.2 a5) along the axis | a4 in (-pi, pi), | a5 cos 2 a4, a5 sin 2 a4 |
| at angle a4, and its inverse across  | a5 normal        |                          |
| shift to the right by a6, down by a7 | a6, a7 normal    | a6, a7                   |
| eighths of the width and height      |                  |                          |

Two things differ from the paper. Its condition of a stretch, a5 cos a4 and a5 sin a4, stands for
two: turning the axis by pi leaves it where it is, but turns the sign of a5. That of twice the angle
stands for one, so that here the condition alone says what is done (`transform`). And it resamples
through a grid of twice the size with a wavelet's filter; here pixels are interpolated by cubics,
which blurs a little when pixels fall between pixels and does not guard against aliasing when an
image shrinks. That too is a function of the condition, and nothing at 0.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax.types import Key, Keys

N_CONDITIONS = 9
_LOG_SCALE = 0.2 * math.log(2)  # of a scaling or stretch at a2 or a5 = 1
_SHIFT = 1 / 8  # of the image's width or height, at a6 or a7 = 1


def augment(
    keys: Keys, x: Float[Array, "b h w c"], p: float
) -> tuple[Float[Array, "b h w c"], Float[Array, "b 9"]]:
    """The images after transforms drawn for each from its own key, and the conditions that say which.

    Args:
      p: probability of each transform but the x flip, which is always drawn; 0 leaves every image
        as it is, not flipped either. The paper takes 0.12 for CIFAR-10, 0.15 for larger faces.
    """
    condition = jax.vmap(lambda key: draw(key, p))(keys).astype(x.dtype)
    return transform(x, condition), condition


def draw(key: Key, p: float) -> Float[Array, "9"]:
    """The condition of one image; a transform that is not drawn has 0."""
    k_drawn, k_flips, k_angles, k_normals = jax.random.split(key, 4)
    drawn = jax.random.bernoulli(k_drawn, jnp.array([float(p > 0), p, p, p, p, p]))
    flips = jax.random.bernoulli(k_flips, shape=(2,))
    turn, axis = jax.random.uniform(k_angles, (2,), minval=-math.pi, maxval=math.pi)
    scale, stretch, *shift = jax.random.normal(k_normals, (4,))
    double = jnp.array([jnp.cos(2 * axis), jnp.sin(2 * axis)])
    each = (
        flips[:1],
        flips[1:],
        scale[None],
        jnp.array([jnp.cos(turn) - 1, jnp.sin(turn)]),
        stretch * double,
        jnp.array(shift),
    )
    return jnp.concatenate(
        [jnp.where(d, values, 0.0) for d, values in zip(drawn, each, strict=True)]
    )


def transform(
    x: Float[Array, "b h w c"], condition: Float[Array, "b 9"]
) -> Float[Array, "b h w c"]:
    """The images after the transforms that their conditions stand for, mirrored where they would end."""
    return jax.vmap(_transform)(x, condition)


def _transform(x: Float[Array, "h w c"], condition: Float[Array, "9"]) -> Float[Array, "h w c"]:
    height, width, _ = x.shape
    x_flip, y_flip, scale, cos_less_1, sin, stretch_cos, stretch_sin, right, down = condition
    # where each pixel of the result comes from: all maps are the inverse ones, the last one first,
    # of coordinates to the right and downwards from the middle of the image
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    middle = jnp.array([(width - 1) / 2, (height - 1) / 2], x.dtype)
    points = jnp.stack([columns, rows], axis=-1) - middle
    points = points - _SHIFT * jnp.array([width, height]) * jnp.stack([right, down])

    cos = 1 + cos_less_1
    rotate = jnp.array([[cos, -sin], [sin, cos]])
    flip = jnp.array([1 - 2 * x_flip, 1 - 2 * y_flip]) * jnp.exp(-_LOG_SCALE * scale)
    # an accelerator's fast products are too coarse for positions
    with jax.default_matmul_precision("float32"):
        linear = flip[:, None] * (rotate @ _stretch(-stretch_cos, -stretch_sin))
        points = points @ linear.T + middle
    return interpolate(x, points[..., 1], points[..., 0])


def _stretch(cos: Float[Array, ""], sin: Float[Array, ""]) -> Float[Array, "2 2"]:
    """exp of _LOG_SCALE [[cos, -sin], [-sin, -cos]]: angles are negative downwards."""
    size = jnp.hypot(cos, sin)
    along = jnp.sinh(_LOG_SCALE * size) / jnp.where(size > 0, size, 1.0)
    middle = jnp.cosh(_LOG_SCALE * size)
    cos, sin = along * cos, along * sin
    return jnp.array([[middle + cos, -sin], [-sin, middle - cos]])


def interpolate(
    x: Float[Array, "h w c"], row: Float[Array, "*s"], column: Float[Array, "*s"]
) -> Float[Array, "*s c"]:
    """The image between its pixels, by cubic convolution; beyond the first and the last pixel it is its mirror image.

    Exact at pixels and for quadratics inside, of third order else (Keys 1981, "Cubic convolution
    interpolation for digital image processing", eq. 15 with a = -1/2).
    """
    (i, of_row), (j, of_column) = (
        _taps(at, size) for at, size in zip((row, column), x.shape, strict=False)
    )
    pixels = x[i[..., :, None], j[..., None, :]]
    weights = of_row[..., :, None] * of_column[..., None, :]
    return jnp.sum(weights[..., None] * pixels, axis=(-3, -2))


def _taps(at: Float[Array, "*s"], size: int) -> tuple[Array, Array]:
    """The four pixels around a position along an axis, and their weights."""
    first = jnp.floor(at)
    u = at - first
    weights = (
        ((2 - u) * u - 1) * u / 2,
        ((3 * u - 5) * u**2 + 2) / 2,
        ((4 - 3 * u) * u + 1) * u / 2,
        (u - 1) * u**2 / 2,
    )
    index = first[..., None].astype(int) + jnp.arange(-1, 3)
    period = 2 * (size - 1)
    index = jnp.mod(index, period)
    return jnp.minimum(index, period - index), jnp.stack(weights, axis=-1)
