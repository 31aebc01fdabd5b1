"""Dequantization: integer levels made a point of model space, so that a density bounds their probability.

For any q(x | k) and any normalised P(k | x),

    log P(k) >= E_q[ log p(x) + log P(k | x) - log q(x | k) ],

p being the model's density at t_min (Theis et al. 2016, arXiv 1511.01844, section 3.1; Ho et al.
2019, arXiv 1902.00275, section 3.1). Every evaluation here draws x and gives the last two terms as
one `log_weight`. Level k is the box [e_k, e_k+1] of width 2 / levels; c_k is its middle.

| name             | x at t_min                                   | P(k given x)                     |
| ---------------- | -------------------------------------------- | -------------------------------- |
| uniform          | uniform in the box                           | 1                                |
| truncated_normal | alpha c_k + sigma eps, eps cut off at the box | 1                                |
| decoder          | alpha x0 + sigma eps, x0 uniform in the box  | read from the network            |
| lattice_decoder  | alpha c_k + sigma eps                        | read from the network            |
| flow             | in the box, by a flow trained with the model | 1                                |
| denoised         | alpha x0 + sigma eps, x0 uniform in the box  | N(x0; x0_hat, (sigma / alpha)^2) |

The first puts points without noise where the model's density is that of noised ones: a perfect
model would lose at the edges of the boxes, by about sigma / alpha over their width. This is the
truncation at t_min, which the decoders and `denoised` correct.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Num

from score_jax import shapes, truncated
from score_jax.data.base import log_det, to_model
from score_jax.sde import perturb
from score_jax.types import Dequantized, Given, Keys

# in units of eps a nat of tilt; see `decoder`
RIDGE = 0.03
# the largest tilt, in nats a level
_STEEPEST = 30.0

_LOG_NORMAL = 0.5 * math.log(2 * math.pi)


def uniform(keys: Keys, x: Num[Array, "b *s"]) -> Float[Array, "b *s"]:
    """x + u, u uniform on [0, 1), each example from its own key."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(keys)
    return x.astype(jnp.float32) + noise


def uniform_box(
    keys: Keys,
    model: Given,
    k: Num[Array, "b *s"],
    levels: int | None,
    label: Array | None = None,
) -> Dequantized:
    """A point uniform in the box of its levels; not corrected for the noise that p has at t_min.

    Continuous data, levels = None, come back as they are, with weight 0.
    """
    x = k if levels is None else to_model(uniform(keys, k), levels)
    return Dequantized(x, jnp.full(len(k), log_det(levels, shapes.event_size(k)), x.dtype))


def denoised(
    keys: Keys,
    model: Given,
    k: Num[Array, "b *s"],
    levels: int | None,
    label: Array | None = None,
) -> Dequantized:
    """`uniform_box` noised to t_min, and the last denoising step's likelihood of the way back.

    That step is N(x0; x0_hat, (sigma / alpha)^2 I), as in `elbo`. For continuous data it is the whole
    correction; at the edges of boxes, where the posterior is no Gaussian, `decoder` is better.
    """
    box = uniform_box(shapes.fold_in(keys, 0), model, k, levels, label)
    sde = model.sde
    t = jnp.full(len(k), sde.t_min)
    eps = shapes.normal(shapes.fold_in(keys, 1), box.x)
    x = perturb(sde, box.x, t, eps)
    eps_hat = model.predict(x, t, label).eps
    # log N(x0; x0_hat, ..) - log q(x | x0), x0 - x0_hat being sigma / alpha (eps_hat - eps)
    back = eps_hat * eps - 0.5 * jnp.square(eps_hat) + shapes.like(jnp.log(sde.alpha(t)), x)
    return Dequantized(x, box.log_weight + shapes.sum_event(back))


def truncated_normal(
    keys: Keys,
    model: Given,
    k: Num[Array, "b *s"],
    levels: int,
    label: Array | None = None,
) -> Dequantized:
    """The middle of the box with the SDE's own noise at t_min, cut off at the box.

    Truncated-normal dequantization of i-DODE (Zheng et al. 2023, arXiv 2305.03935). It is for a model
    of the lattice, trained on the boxes' middles: where sigma is far below a box, a model of uniform
    boxes gives such points the density of all others, and log(box / noise) a dimension is lost.
    """
    alpha, sigma, width = _scales(model.sde, levels)
    eps = truncated.symmetric(keys, 0.5 * width, k.shape[1:])
    x = alpha * lattice(k, levels) + sigma * eps
    log_mass = truncated.log_mass(-0.5 * width, 0.5 * width)
    log_q = -0.5 * jnp.square(eps) - _LOG_NORMAL - log_mass - jnp.log(sigma)
    return Dequantized(x, -shapes.sum_event(log_q))


def decoder(
    keys: Keys,
    model: Given,
    k: Num[Array, "b *s"],
    levels: int,
    label: Array | None = None,
    *,
    data: str = "uniform",
    ridge: float = RIDGE,
) -> Dequantized:
    """Data noised to t_min, and a distribution over all levels for the way back: corrects the truncation.

    As a function of the level j, the likelihood m_j of x is known, a normal density or its mean over
    a box. Pixel by pixel, P(j | x) is proportional to m_j exp(tilt j), normalised over all levels,
    with the tilt at which the expected eps is the network's eps_hat: of all distributions with that
    mean, the nearest to m. So all that the network says of a pixel's surroundings is used. Where
    sigma is far below the width of a box only two levels compete, and a perfect network gives their
    exact posterior; with no tilt, on the lattice, this is the decoder of variational diffusion models
    (Kingma et al. 2021, arXiv 2107.00630).

    Args:
      data: what is noised, of LEVEL_DATA: "uniform" in the box, or the "lattice" of the boxes'
        middles; what the model was trained on.
      ridge: the tilt solves E eps - eps_hat = ridge * tilt, so that an error in eps_hat does not
        matter where x says next to nothing of the tilt. Any value gives a bound: 0 loses nothing with
        a perfect network, a quarter of the rms error in eps_hat is about best with another, infinity
        is no tilt.

    A model that knows P(j | x) itself needs no tilt.
    """
    x, log_p, log_q = _decoded(keys, model, k, levels, label, LEVEL_DATA[data], ridge)
    return Dequantized(x, log_p - log_q)


def reconstruction(
    keys: Keys,
    model: Given,
    k: Num[Array, "b *s"],
    levels: int,
    label: Array | None = None,
    *,
    data: str = "uniform",
    ridge: float = RIDGE,
) -> Float[Array, "b"]:
    """The last term of the ELBO of levels by `decoder`, in nats: -log P(k | x) + log q(x | k) - log q(x | x0).

    The last two cancel for the lattice; for boxes the last is taken by its mean. The ELBO's other
    terms are those of x0, a point of `uniform_box` or of `lattice`, and their sum bounds
    -log P(k): no log |dx / dv| is due.
    """
    kind = LEVEL_DATA[data]
    _, log_p, log_q = _decoded(keys, model, k, levels, label, kind, ridge)
    if kind is _POINT:
        return -log_p
    sigma = model.sde.sigma(jnp.asarray(model.sde.t_min))
    return log_q - log_p + shapes.event_size(k) * (_LOG_NORMAL + 0.5 + jnp.log(sigma))


def lattice(k: Num[Array, "b *s"], levels: int) -> Float[Array, "b *s"]:
    """The middles of the boxes, in model space."""
    return to_model(k.astype(jnp.float32) + 0.5, levels)


class _LevelData(NamedTuple):
    """Data of level k, all distances in units of the noise at t_min, sigma / alpha.

    position(keys, k, width): x0 less the middle of its box. known(offset, width): of x at `offset`
    from a level's middle, the log-density given that level, and the expected eps.
    """

    position: Callable
    known: Callable


_BOX = _LevelData(
    position=lambda keys, k, width: width * (uniform(keys, jnp.zeros_like(k)) - 0.5),
    known=lambda offset, width: (
        truncated.log_mass(offset - 0.5 * width, offset + 0.5 * width) - jnp.log(width),
        truncated.mean(offset - 0.5 * width, offset + 0.5 * width),
    ),
)
_POINT = _LevelData(
    position=lambda keys, k, width: jnp.zeros(k.shape),
    known=lambda offset, width: (-0.5 * jnp.square(offset) - _LOG_NORMAL, offset),
)
LEVEL_DATA = {"uniform": _BOX, "lattice": _POINT}


def _scales(sde, levels):
    """alpha and sigma at t_min, and a box's width in units of sigma / alpha."""
    t = jnp.asarray(sde.t_min)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return alpha, sigma, 2.0 / levels * alpha / sigma


def _decoded(keys, model, k, levels, label, kind, ridge):
    """x at t_min, and for each example log P(k | x) and log q(x | k)."""
    alpha, sigma, width = _scales(model.sde, levels)
    position = kind.position(shapes.fold_in(keys, 0), k, width)
    # from the middle of its box, not from x: x has lost the digits of so small a difference
    offset = position + shapes.normal(shapes.fold_in(keys, 1), position)
    x = alpha * lattice(k, levels) + sigma * offset
    log_q = kind.known(offset, width)[0] - jnp.log(sigma)

    k, t = k.astype(jnp.int32), jnp.full(len(k), model.sde.t_min)
    if model.level_logp is None:
        # one example at a time: an array of its size times the number of levels
        one = lambda args: _tilted(kind.known, levels, width, ridge, *args)
        log_p = jax.lax.map(one, (k, offset, model.predict(x, t, label).eps))
    else:
        all_levels = model.level_logp(x, t, label)
        log_p = jnp.take_along_axis(all_levels, k[..., None], -1)[..., 0]
    return x, shapes.sum_event(log_p), shapes.sum_event(log_q)


def _tilted(known, levels, width, ridge, k, offset, eps_hat):
    """log P(k | x) [*s] of one example, by bisection on the tilt: E eps falls as the tilt grows."""
    steps = (jnp.arange(levels) - k[..., None]).astype(offset.dtype)
    log_known, eps = known(offset[..., None] - steps * width, width)

    def halve(_, ends):
        low, high = ends
        tilt = 0.5 * (low + high)
        p = jax.nn.softmax(log_known + tilt[..., None] * steps)
        too_low = jnp.sum(p * eps, -1) - eps_hat > ridge * tilt
        return jnp.where(too_low, tilt, low), jnp.where(too_low, high, tilt)

    start = jnp.full(k.shape, _STEEPEST, offset.dtype)
    low, high = jax.lax.fori_loop(0, 30, halve, (-start, start))
    log_p = jax.nn.log_softmax(log_known + 0.5 * (low + high)[..., None] * steps)
    return jnp.take_along_axis(log_p, k[..., None], -1)[..., 0]


def flow(
    keys: Keys, model: Given, k: Num[Array, "b *s"], levels: int, label: Array | None = None
) -> Dequantized:
    """By the noise that the model was trained with (`variational`)."""
    return model.dequantize(keys, k, levels, label)


# what training makes of levels: points(keys, k, levels) -> x. A flow takes them as they are
POINTS = {
    "uniform": lambda keys, k, levels: to_model(uniform(keys, k), levels),
    "lattice": lambda keys, k, levels: lattice(k, levels),
    "flow": lambda keys, k, levels: k,
}
# name -> draw(keys, model, k, levels, label=None)
DEQUANTIZATIONS = {
    "uniform": uniform_box,
    "flow": flow,
    "denoised": denoised,
    "truncated_normal": truncated_normal,
    "decoder": decoder,
    "lattice_decoder": partial(decoder, data="lattice"),
}
