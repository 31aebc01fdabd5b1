"""RePaint: projection along a grid that goes up again, so that what is unknown can adapt to what is known.

Lugmayr et al. 2022, arXiv 2201.09865, section 4.2 and algorithm 1. After some steps down x is noised
back to where they began, by the forward SDE, and they are taken again. The paper goes up in as
many steps as it went down; one step has the same law.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_jax.posterior.method import Method, check_shares
from score_jax.posterior.projection import onto
from score_jax.samplers.base import Steps, either_way
from score_jax.samplers.first_order import ddim


def up_and_down(times: Float[Array, "n"], jump: int, repeats: int) -> Array:
    """Decreasing times in stretches of `jump` steps, each walked `repeats` times.

    The last stretch may be shorter. Each step down is taken `repeats` times in all; in the public
    code those of the first stretch, where x is little but noise, are taken once.
    """
    n_steps, path = len(times) - 1, [0]
    for start in range(0, n_steps, jump):
        down = list(range(start + 1, min(start + jump, n_steps) + 1))
        path += down + (repeats - 1) * [start, *down]
    return jnp.asarray(times)[np.asarray(path)]


def repaint(*, jump: int = 10, repeats: int = 10, eta: float = 1.0) -> Method:
    """`projection` on a walk that goes down, up and down again.

    The known part, which the projection draws anew also after a step up, has there the law that
    the step gives it.

    Args:
      jump, repeats: of `up_and_down`; the paper's are both 10, over 250 steps.
      eta: of `samplers.ddim`.
    """
    check_shares(eta=eta)
    if jump < 1 or repeats < 1:
        raise ValueError(f"jump = {jump} and repeats = {repeats} must be at least 1")

    def steps(sde, predict, measurement, y):
        sampler = either_way(sde, ddim(sde, eta=eta))
        return Steps(sampler, predict, onto(sde, measurement, y))

    return Method(steps, walk=lambda times: up_and_down(times, jump, repeats))
