"""Diffusion posterior sampling: after each step, a step down the gradient of the residual's norm.

Chung et al. 2023, arXiv 2209.14687, algorithm 1: with r = y - A x0, x0 predicted from x_t,

    x_s <- x_s - zeta / |r| grad_{x_t} |r|^2.

The likelihood that it stands for puts a point for p(x0 | x_t); its gradient, 1 / (2 std^2) in
the place of zeta / |r|, is right only as sigma goes to zero, and stiff for small std. With zeta /
|r| the measurement's noise is not in the method at all.
"""

import jax.numpy as jnp

from score_jax import shapes
from score_jax.posterior.guide import through
from score_jax.posterior.method import Method, check_shares
from score_jax.samplers.base import Sampler, Steps
from score_jax.samplers.first_order import ddim


def dps(*, zeta: float = 1.0, eta: float = 1.0) -> Method:
    """DDIM steps, each followed by one of length 2 zeta |grad_{x_t} |r||.

    Args:
      zeta: the paper's zeta', of the order of 1 for images in [-1, 1] over 1000 steps; the public
        code has the gradient of |r|, and so half the step. In few dimensions 1 is too much.
      eta: of `samplers.ddim`.
    """
    check_shares(eta=eta)

    def steps(sde, predict, measurement, y):
        base = ddim(sde, eta=eta)

        def twist(x0, t):
            r = y - measurement.apply(x0)
            norm = jnp.sqrt(shapes.sum_event(jnp.square(r)))
            unit = r / shapes.like(jnp.maximum(norm, jnp.finfo(r.dtype).tiny), r)
            return -norm, measurement.adjoint(unit)

        def step(keys, predict, x, t, s, carry):
            pair, _, gradient = through(predict, twist, x, jnp.full(x.shape[:1], t))
            x, carry = base.step(keys, lambda x, t: pair, x, t, s, carry)
            return x + 2 * zeta * gradient, carry

        return Steps(Sampler(base.init, step, evaluations=1), predict)

    return Method(steps, gradients=True)
