"""A noise schedule that is learned: what is trained is the density of time in log-SNR, between ends that are pinned.

The bound of variational diffusion models depends on the schedule through log-SNR at its two ends
alone (Kingma et al. 2021, arXiv 2107.00630, section 5.1): what lies between moves only the variance
of its estimate from random times, and is trained to lower that (appendix I.2; here `vdm`).

With z = (max - log_snr) / (max - min) in [0, 1], time is the integral of a density h,

    t(z) = int_0^z h,    h > 0 piecewise linear between equally spaced knots,    int_0^1 h = 1,

so both t of log-SNR and, by the root of a quadratic in each piece, log-SNR of t are closed forms:
samplers, grids and the gradient of the variance need both. The paper's monotone network (appendix
H) is smooth to all orders and cannot be inverted; here d log_snr / dt is continuous, with kinks at
the knots.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax.model import Model
from score_jax.sde import SDE
from score_jax.types import Key, Params


class Schedule(NamedTuple):
    """init(key) -> params; sde(params) -> SDE, whose log-SNR at t_min and t_max is the same for all params."""

    init: Callable[[Key], Params]
    sde: Callable[[Params], SDE]


def learned(
    log_snr_max: float = 13.3,
    log_snr_min: float = -5.0,
    n_knots: int = 33,
    floor: float = 0.02,
) -> Schedule:
    """A variance-preserving schedule on t in [0, 1], uniform in log-SNR until it is trained.

    Its parameters are the logarithms of the density at the knots, up to a constant.

    Args:
      log_snr_max, log_snr_min: log-SNR at t = 0 and at t = 1, where it is pinned; the defaults are
        the ends that the paper found by training on 8-bit images.
      n_knots: of the density, at least 2, equally spaced in log-SNR.
      floor: least density, as a fraction of the uniform one. A loss that is weighted by one over the
        density is bounded by it, wherever training goes.
    """
    n = n_knots - 1

    def density(params):
        """h at the knots, and its integral up to each of them, from 0 to 1."""
        h = jnp.exp(params - jax.lax.stop_gradient(jnp.max(params)))
        h = floor + (1 - floor) * h / jnp.mean(0.5 * (h[1:] + h[:-1]))
        to_knot = jnp.cumsum(0.5 * (h[1:] + h[:-1]) / n)
        # the last is 1 but for rounding; dividing makes it 1
        return h, jnp.concatenate([jnp.zeros(1, h.dtype), to_knot / to_knot[-1]])

    def sde(params: Float[Array, "n"]) -> SDE:
        h, to_knot = density(params)

        def log_snr(t):
            # compare_all: a search would be a loop inside the solver's
            i = jnp.searchsorted(to_knot, t, side="right", method="compare_all") - 1
            i = jnp.clip(i, 0, n - 1)
            # by the fraction of the piece's mass, 0 and 1 at its ends: log-SNR has no jumps, and at
            # t = 1 it is what it should be to the last digit
            fraction = (t - to_knot[i]) / (to_knot[i + 1] - to_knot[i])
            rise, mass = h[i + 1] - h[i], 0.5 * (h[i + 1] + h[i])
            # the root of h r + rise r^2 / 2 = mass in the form that does not cancel
            root = jnp.sqrt(h[i] ** 2 + 2 * rise * fraction * mass)
            z = (i + 2 * fraction * mass / (h[i] + root)) / n
            return (1 - z) * log_snr_max + z * log_snr_min

        def time(log_snr):
            z = n * (log_snr_max - log_snr) / (log_snr_max - log_snr_min)
            i = jnp.clip(jnp.floor(z).astype(int), 0, n - 1)
            r = z - i
            fraction = r * (h[i] + 0.5 * r * (h[i + 1] - h[i])) / (0.5 * (h[i + 1] + h[i]))
            return to_knot[i] + fraction * (to_knot[i + 1] - to_knot[i])

        # alpha^2 = sigmoid(log_snr), by softplus: the derivative of a sigmoid that is next to 1 has
        # lost its digits
        return SDE(
            alpha=lambda t: jnp.exp(-0.5 * jax.nn.softplus(-log_snr(t))),
            sigma=lambda t: jnp.exp(-0.5 * jax.nn.softplus(log_snr(t))),
            time_of_log_snr=time,
            t_min=0.0,
            t_max=1.0,
        )

    return Schedule(init=lambda key: jnp.zeros(n_knots), sde=sde)


def attach(make_model: Callable[[SDE], Model], schedule: Schedule) -> Model:
    """The model under a learned schedule, of parameters {"score": the model's, "schedule": the schedule's}.

    Its predictions have no gradient for the schedule, which would otherwise be trained to make the
    network's task easy; `sde(params)` has one, for the loss that knows what to do with it (`vdm`).

    Args:
      make_model: called with the schedule's SDE at the parameters at hand.
    """
    of_score = lambda params: make_model(schedule.sde(jax.lax.stop_gradient(params["schedule"])))

    def init(key, shape):
        k_score, k_schedule = jax.random.split(key)
        params = {"schedule": schedule.init(k_schedule)}
        return {"score": of_score(params).init(k_score, shape), **params}

    def predict(params, *args, **options):
        return of_score(params).predict(params["score"], *args, **options)

    def level_logp(params, *args):
        return of_score(params).level_logp(params["score"], *args)

    start = of_score({"schedule": schedule.init(jax.random.key(0))})
    return Model(
        init,
        sde=lambda params: schedule.sde(params["schedule"]),
        predict=predict,
        level_logp=start.level_logp and level_logp,
    )
