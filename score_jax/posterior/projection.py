"""score_sde's conditioning: after each step what is measured is set to what it would be at that noise level.

Song et al. 2021, arXiv 2011.13456, appendix I.2 and I.3: inpainting replaces the known pixels by y
noised to time s, colorization the grey one of three channels that an orthogonal matrix makes of the
colours. For any A that is the nearest x with A x = alpha_s y + sigma_s A z,

    x <- x + A^+ (alpha_s y + sigma_s A z - A x),    z ~ N(0, I).

It is cheap and approximate: the rest of x is stepped without regard to y, and has only the network
to make it agree. Noise in y is taken for signal, and where A hardly sees, as a blur the fine detail,
A^+ makes it large: for such A and noise take `pigdm` or `ddrm`.
"""

import jax.numpy as jnp

from score_jax import shapes
from score_jax.measurement import Measurement, pseudo_inverse
from score_jax.posterior.method import Method, check_shares
from score_jax.samplers.base import Steps
from score_jax.samplers.first_order import ddim
from score_jax.sde import SDE


def onto(sde: SDE, measurement: Measurement, y):
    """project(keys, x, s) for `samplers.Steps`: x with the measured part at its value noised to time s."""

    def project(keys, x, s):
        s = jnp.asarray(s, x.dtype)
        noised = sde.alpha(s) * y + sde.sigma(s) * measurement.apply(shapes.normal(keys, x))
        return x + pseudo_inverse(measurement, noised - measurement.apply(x))

    return project


def projection(*, eta: float = 1.0) -> Method:
    """DDIM steps, each followed by the projection.

    Args:
      eta: of `samplers.ddim`; 1 is ancestral sampling.
    """
    check_shares(eta=eta)

    def steps(sde, predict, measurement, y):
        return Steps(ddim(sde, eta=eta), predict, onto(sde, measurement, y))

    return Method(steps)
