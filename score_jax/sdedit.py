"""SDEdit (Meng et al. 2022, arXiv 2108.01073): an image from a rough one, noised to a time t0 and drawn from there."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax.sde import SDE, log_snr_ends, perturb


def sdedit(draw: Callable, guide: Float[Array, "n *s"], t0: float) -> Callable:
    """The draw that starts from alpha(t0) guide + sigma(t0) eps at t0, its steps between t0 and t_min.

    A later t0 keeps less of the guide and is nearer to the model's samples. The paper draws by the
    reverse SDE and finds 0.3 to 0.6 good, where t_max is 1.

    Args:
      draw: one of `sampling`; one without noise changes the guide by the drawn noise alone.
      guide: in model space, one for each sample, or one for all.
      t0: after t_min, at most t_max; `time_of_level` has that of a level of noise.
    """

    def edited(keys, sde, predict, x, label=None, grid=None):
        if not sde.t_min < t0 <= sde.t_max:
            raise ValueError(
                f"t0 is {t0}; it must be after the SDE's t_min, {sde.t_min}, and at most its t_max, "
                f"{sde.t_max}"
            )
        # samples of the prior are noise and nothing else
        eps = x / sde.sigma(jnp.asarray(sde.t_max))
        given = jnp.broadcast_to(guide, x.shape)
        start = perturb(sde, given, jnp.full(len(x), t0, x.dtype), eps)
        return draw(keys, sde._replace(t_max=t0), predict, start, label, grid)

    return edited


def time_of_level(sde: SDE, level: float) -> float:
    """The time at which sigma / alpha is `level`; ValueError if the SDE has none after t_min."""
    highest, lowest = (math.exp(-0.5 * float(end)) for end in reversed(log_snr_ends(sde)))
    if lowest < level <= highest:
        t = min(float(sde.time_of_log_snr(jnp.asarray(-2 * math.log(level)))), sde.t_max)
        # in float32 the time of a level just above the lowest may be t_min itself
        if t > sde.t_min:
            return t
    raise ValueError(
        f"level = {level:g} of the noise must be above {lowest:.6g} and at most {highest:.6g}"
    )
