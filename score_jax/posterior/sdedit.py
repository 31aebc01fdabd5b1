"""SDEdit: an image noised to a level between none and all, and sampled from there (Meng et al. 2022, arXiv 2108.01073).

More noise keeps less of the image and makes it more like the data.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from score_jax import grids, samplers, sampling, shapes
from score_jax.samplers.base import Sampler, Steps, run_jitted
from score_jax.sde import SDE, log_snr_ends
from score_jax.types import Keys, Params, PredictFn


def drawer(
    model: Callable[[Params], tuple[SDE, PredictFn]],
    *,
    level: float = 1.0,
    make: Callable[[SDE], Sampler] = samplers.dpmpp_2m,
    n_steps: int = 100,
    grid: sampling.MakeGrid = grids.log_snr,
) -> Callable[..., Array]:
    """draw(keys, params, x0, label=None) -> x at t_min, by steps from sigma / alpha = level; compiles by itself.

    Args:
      model: of the parameters; predict takes a label or None.
      level: sigma / alpha of the noise, in units of the data.
      make: the sampler; one without noise changes x0 by the drawn noise alone.
    """

    def steps(params, label):
        sde, predict = model(params)
        return Steps(make(sde), lambda x, t: predict(x, t, label))

    def draw(keys: Keys, params: Params, x0: Array, label: Array | None = None):
        sde, _ = model(params)
        check_level(sde, level)
        start = sde.time_of_log_snr(jnp.asarray(-2 * math.log(level)))
        pair = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
        x = sde.alpha(start) * x0 + sde.sigma(start) * shapes.normal(pair[:, 0], x0)
        times = grid(sde._replace(t_max=start))(jnp.linspace(0.0, 1.0, n_steps + 1))
        return run_jitted(steps, (params, label), pair[:, 1], x, times, gradients=False)

    return draw


def check_level(sde: SDE, level: float) -> None:
    """Raises ValueError for a level that the SDE does not have."""
    highest, lowest = (math.exp(-0.5 * float(end)) for end in reversed(log_snr_ends(sde)))
    if not lowest < level <= highest:
        raise ValueError(
            f"level = {level:g} of the noise must be above {lowest:.3g} and at most {highest:.3g}"
        )
