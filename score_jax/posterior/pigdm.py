"""Pseudoinverse-guided diffusion: p(x0 | x_t) taken for a Gaussian of a variance that depends on t alone.

Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", section 3:

    p(y | x_t) = N(A x0, r_t^2 A A^T + std^2 I),    r_t^2 = v s^2 / (v + s^2),    s = sigma / alpha,

with x0 predicted. r_t^2 is the variance of x0 given x_t if the data are N(mean, v I), for which the
guidance is exact; the paper has v = 1.
"""

import jax.numpy as jnp

from score_jax import shapes
from score_jax.measurement import Measurement, solve
from score_jax.posterior.guide import Twist, guided
from score_jax.posterior.method import Method, check_shares
from score_jax.samplers.base import Steps
from score_jax.samplers.first_order import ddim
from score_jax.sde import SDE


def gaussian(sde: SDE, measurement: Measurement, y, data_variance: float) -> Twist:
    """log p(y | x_t), without its normaliser, and the gradient A^T (r_t^2 A A^T + std^2 I)^-1 (y - A x0)."""
    if not data_variance > 0:
        raise ValueError(
            f"data_variance = {data_variance} must be positive; images in [-1, 1] have up to 1"
        )

    def twist(x0, t):
        variance = jnp.square(sde.sigma(t) / sde.alpha(t))
        variance = data_variance * variance / (data_variance + variance)
        residual = y - measurement.apply(x0)
        solved = solve(measurement, residual, variance, measurement.std**2)
        return -0.5 * shapes.sum_event(residual * solved), measurement.adjoint(solved)

    return twist


def pigdm(*, data_variance: float = 1.0, eta: float = 1.0) -> Method:
    """DDIM steps on predictions guided by `gaussian`.

    The paper's algorithm 1 weights the guidance by r_t^2 and its own factor of the step; here it is
    the score's term as derived, for any sampler.

    Args:
      data_variance: v, of a pixel or coordinate.
      eta: of `samplers.ddim`.
    """
    check_shares(eta=eta)

    def steps(sde, predict, measurement, y):
        twist = gaussian(sde, measurement, y, data_variance)
        return Steps(ddim(sde, eta=eta), guided(sde, predict, twist))

    return Method(steps, gradients=True)
