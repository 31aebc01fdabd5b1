"""What a network's output means. Every kind is out = a(t) x0 + b(t) eps for a pair (a, b), but for one.

With x_t = alpha x0 + sigma eps that is a two-by-two system, so one inverse reads every kind and the
same pair gives the training target:

    x0 = (b x - sigma out) / det,    eps = (alpha out - a x) / det,    det = alpha b - sigma a.

The exception is `consistency`, whose coefficients are infinite at t_min; it is no training target.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax import shapes
from score_jax.sde import SDE, path
from score_jax.types import Prediction

Coefficients = Callable[[SDE, Array], tuple[Array, Array]]
Reader = Callable[[SDE, Array, Array, Array], Prediction]

SIGMA_DATA = 0.5  # of images in [-1, 1]


def _edm(sde: SDE, t: Array) -> tuple[Array, Array]:
    # F with x0 = c_skip x + c_out F, sigma_data as there (Karras et al. 2022, arXiv 2206.00364, table
    # 1), at s = sigma / alpha
    s = sde.sigma(t) / sde.alpha(t)
    norm = jnp.sqrt(s**2 + SIGMA_DATA**2)
    return s / (SIGMA_DATA * norm), -SIGMA_DATA / norm


KINDS: dict[str, Coefficients] = {
    "x0": lambda sde, t: (jnp.ones_like(t), jnp.zeros_like(t)),
    "eps": lambda sde, t: (jnp.zeros_like(t), jnp.ones_like(t)),
    "score": lambda sde, t: (jnp.zeros_like(t), -1.0 / sde.sigma(t)),
    "v": lambda sde, t: (-sde.sigma(t), sde.alpha(t)),  # Salimans & Ho 2022, arXiv 2202.00512
    "velocity": lambda sde, t: path(sde, t)[2:],  # dx_t / dt at fixed x0 and eps
    "edm": _edm,
}


def combine(kind: str, sde: SDE, pair: Prediction, t: Float[Array, "b"]) -> Float[Array, "b *s"]:
    """The quantity `kind`, a x0 + b eps, of a pair: the target in training, the score or velocity in sampling."""
    a, b = (shapes.like(c, pair.x0) for c in KINDS[kind](sde, t))
    return a * pair.x0 + b * pair.eps


def read(
    kind: str, sde: SDE, out: Float[Array, "b *s"], x: Float[Array, "b *s"], t: Float[Array, "b"]
) -> Prediction:
    """The prediction that a network's output of this kind stands for at (x, t)."""
    a, b = KINDS[kind](sde, t)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    a, b, alpha, sigma, det = (
        shapes.like(c, x) for c in (a, b, alpha, sigma, alpha * b - sigma * a)
    )
    return Prediction(x0=(b * x - sigma * out) / det, eps=(alpha * out - a * x) / det)


def consistency(
    sde: SDE, out: Float[Array, "b *s"], x: Float[Array, "b *s"], t: Float[Array, "b"]
) -> Prediction:
    """x0 = c_skip x / alpha + c_out out, which is x / alpha at t_min whatever the output is.

    Song et al. 2023, arXiv 2303.01469, eq. 5 and appendix C, at s = sigma / alpha, with d = s - s_min:

        c_skip = SIGMA_DATA^2 / (d^2 + SIGMA_DATA^2),    c_out = SIGMA_DATA d / sqrt(s^2 + SIGMA_DATA^2).

    x0 is where the path through x_t ends (`score_jax.consistency`), and eps the slope of the straight
    line from there to x_t, (x - alpha x0) / sigma, and not a mean of noise.
    """
    ratio = lambda t: sde.sigma(t) / sde.alpha(t)
    s = ratio(t)
    # not rounding's difference of two equal numbers, but zero
    d = jnp.where(t > sde.t_min, s - ratio(jnp.asarray(sde.t_min, t.dtype)), 0.0)
    norm = d**2 + SIGMA_DATA**2
    skip, rest, scale, alpha, s = (
        shapes.like(c, x)
        for c in (
            SIGMA_DATA**2 / norm,
            d**2 / norm,
            SIGMA_DATA * d / jnp.sqrt(s**2 + SIGMA_DATA**2),
            sde.alpha(t),
            s,
        )
    )
    y = x / alpha
    return Prediction(x0=skip * y + scale * out, eps=(rest * y - scale * out) / s)


# what a network may be read as
OUTPUTS: dict[str, Reader] = {kind: partial(read, kind) for kind in KINDS} | {
    "consistency": consistency
}
