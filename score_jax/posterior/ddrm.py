"""Denoising diffusion restoration models: sampling in the coordinates of A's singular value decomposition.

Kawar et al. 2022, arXiv 2201.11793, section 3, in x / alpha and r = sigma / alpha. With c = V^T x,
c0 that of the predicted x0, y_i = (U^T y)_i / s_i and its noise n_i = std / s_i, a step to r_s draws
coordinate i from N(mean, variance):

    not seen (s_i = 0)      c0_i + sqrt(1 - eta^2) r_s eps_i                  eta^2 r_s^2
    noisier than r_s        c0_i + sqrt(1 - eta^2) r_s (y_i - c0_i) / n_i     eta^2 r_s^2
    else                    (1 - eta_b) c0_i + eta_b y_i                      r_s^2 - eta_b^2 n_i^2

where eps_i = (c_i - c0_i) / r_t is that of the prediction. No gradient is taken.
"""

import jax.numpy as jnp
import numpy as np

from score_jax import shapes
from score_jax.posterior.method import Method, check_shares
from score_jax.samplers.base import Sampler, Steps, predict_at


def ddrm(*, eta: float = 0.85, eta_b: float = 1.0) -> Method:
    """DDRM, for measurements with a singular value decomposition.

    The start is the prior's draw: the paper centres it on y where A sees, which is little beside
    sigma / alpha at t_max.

    Args:
      eta: noise of coordinates that y says nothing of, or less than x_s does; the paper's.
      eta_b: how much of y is taken over where it says more.
    """
    check_shares(eta=eta, eta_b=eta_b)

    def steps(sde, predict, measurement, y):
        svd = measurement.svd
        if svd is None:
            raise ValueError(
                "ddrm needs a singular value decomposition, and this measurement has none; "
                "take pigdm or projection"
            )
        seen = svd.singular > 0
        singular = jnp.asarray(np.where(seen, svd.singular, 1.0), y.dtype)
        target, noise = svd.to_left(y) / singular, measurement.std / singular
        seen = jnp.asarray(seen)

        def step(keys, predict, x, t, s, carry):
            pair = predict_at(predict, x, t)
            c0, eps = svd.to_right(pair.x0), svd.to_right(pair.eps)
            r = sde.sigma(s) / sde.alpha(s)
            # where n_i is zero this is not taken, and must only be finite
            pull = (target - c0) / jnp.where(noise > 0, noise, 1.0)
            kept = jnp.sqrt(1 - eta**2) * r * jnp.where(seen, pull, eps)
            # what differs by coordinate is of their shape; what does not, a scalar
            is_data = seen & (r >= noise)
            mean = jnp.where(is_data, (1 - eta_b) * c0 + eta_b * target, c0 + kept)
            left = jnp.maximum(jnp.square(r) - jnp.square(eta_b * noise), 0.0)
            std = jnp.where(is_data, jnp.sqrt(left), eta * r)
            z = svd.to_right(shapes.normal(keys, x))
            return sde.alpha(s) * svd.from_right(mean + std * z), carry

        return Steps(Sampler(lambda x: None, step, evaluations=1), predict)

    return Method(steps)
