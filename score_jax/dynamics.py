"""Right-hand sides of the probability-flow ODE and of the reverse SDEs, as functions of (t, x), t a scalar.

With v = alpha' x0 + sigma' eps, the velocity of x_t at the predicted x0 and eps (which equals f x -
g^2 score / 2, but stays finite where f does not), and with any noise level c >= 0,

    dx = (v - c^2 / 2 g^2 score) dt + c g dW,   time running backwards,

has the marginals of the forward SDE: c = 0 is the probability-flow ODE (Song et al. 2021, arXiv
2011.13456, eq. 13), c = 1 the reverse SDE (eq. 6), between and beyond them Huang et al. 2021 (arXiv
2106.02808). A force of the SDE is part of its drift, and so of all of these.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from score_jax.predict import combine
from score_jax.sde import SDE, diffusion
from score_jax.types import PredictFn


def reverse_drift(
    sde: SDE, predict: PredictFn, *, noise: float = 0.0
) -> Callable[[Array, Array], Array]:
    """v - c^2 / 2 g^2 score, and force, at noise level c; the probability-flow ODE's right-hand side at c = 0."""

    def field(t, x):
        ts = jnp.full(x.shape[:1], t)
        pair = predict(x, ts)
        velocity = combine("velocity", sde, pair, ts)
        if sde.force is not None:
            velocity += sde.force(t, x)
        if noise == 0.0:
            return velocity
        return velocity - 0.5 * jnp.square(noise * diffusion(sde, t)) * combine(
            "score", sde, pair, ts
        )

    return field
