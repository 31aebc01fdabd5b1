"""The loss of variational diffusion models: minus the evidence lower bound of levels, whole.

    prior + diffusion + reconstruction    (Kingma et al. 2021, arXiv 2107.00630, section 3.5; `elbo`)

per dimension and in nats, at one time per example. The diffusion term has a schedule's whole effect
on the expected loss through log-SNR at the ends. Under a `schedule` whose ends are pinned the
interior is therefore free to minimise the variance of the estimate (appendix I.2): with q the
density of the drawn times in log-SNR, and l = 1/2 || eps - eps_hat ||^2 / D at a log-SNR,

    E[L] = int E[l],    E[L^2] = int E[l^2] / q,    least where q is proportional to sqrt(E[l^2]).

That gradient for the schedule needs l and q alone, and no backward pass through the network.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax import dequantize, elbo, grids, shapes
from score_jax.data.base import log_det, to_levels
from score_jax.model import Model
from score_jax.sde import SDE, log_snr, log_snr_ends, perturb
from score_jax.types import LossFn

# the last term: exact and without the network for data that are the boxes' middles or fill them
# evenly, or the denoising Gaussian's for any data
DECODERS = *dequantize.LEVEL_DATA, "gaussian"
# of the integral over x at t_min, in units of sigma: far in the tails of the noise
_TAIL, _POINTS = 8.0, 513


def vdm(
    model: Model,
    *,
    levels: int | None,
    grid: Callable[[SDE], grids.Grid] = grids.log_snr,
    decoder: str = "lattice",
) -> LossFn:
    """Minus the bound on log P(levels) per dimension, in nats, times stratified over the global batch.

    Its metrics are the three terms, and for data with levels their sum in bits, "bpd".

    Args:
      model: whose parameters include those of a schedule, if it is learned (`schedule.attach`); its
        gradient is then that of the variance. It is for times uniform in t: under another grid,
        which has a density of its own, it still is.
      levels: of the data; batches hold points of their boxes.
      grid: constructor from `grids`; for a learned schedule `grids.uniform`.
      decoder: one of DECODERS: "lattice" and "uniform" are `decoded`, of batches that hold the
        middles of the boxes or points uniform in them. "gaussian" is `elbo.denoising`, of the
        density of x, and takes a second evaluation of the network; the bits are then those of
        uniform dequantization.
    """

    def loss(key, params, loss_state, batch, step):
        n_dims, k_network = shapes.event_size(batch.x), shapes.fold_in(batch.keys, 1)
        predict = lambda x, t, label: model.predict(
            params, x, t, label, keys=k_network, augment=batch.augment
        )
        sde = model.sde(jax.lax.stop_gradient(params))
        t, weight = elbo.time_and_weight(sde, grid(sde), grids.stratified(key, batch.position))
        eps = shapes.normal(shapes.fold_in(batch.keys, 0), batch.x)
        error = eps - predict(perturb(sde, batch.x, t, eps), t, batch.label).eps
        diffusion = weight * shapes.sum_event(jnp.square(error)) / n_dims

        if decoder == "gaussian":
            k_last = shapes.fold_in(batch.keys, 3)
            last = elbo.denoising(k_last, sde, predict, batch.x, batch.label)
        else:
            k = to_levels(batch.x, levels).astype(jnp.int32)
            last = shapes.sum_event(decoded(sde, levels, decoder)[k])
        metrics = {
            "prior": jnp.mean(elbo.prior(sde, batch.x)) / n_dims,
            "diffusion": jnp.mean(diffusion),
            "reconstruction": jnp.mean(last) / n_dims,
        }
        bound = sum(metrics.values())
        if levels is not None:
            scaling = log_det(levels, 1) if decoder == "gaussian" else 0.0
            metrics["bpd"] = (bound - scaling) / math.log(2)

        moment = second_moment(model.sde(params), log_snr(sde, t), weight, diffusion)
        # only its gradient is added
        return bound + moment - jax.lax.stop_gradient(moment), (metrics, loss_state)

    return loss


def second_moment(
    sde: SDE, log_snr: Float[Array, "b"], weight: Float[Array, "b"], values: Float[Array, "b"]
) -> Float[Array, ""]:
    """E[L^2] of times uniform under `sde`, which alone has a gradient, from draws of any density.

    Over the square of 1/2 (log-SNR's range), which is L where eps_hat = 0. The scale is not the mean
    of the batch, of which a device sees only its part.

    Args:
      log_snr: where L was drawn, with density 1 / (2 weight).
      values: L there, weight || eps - eps_hat ||^2 / D.
    """
    rate = jax.jvp(sde.time_of_log_snr, (log_snr,), (jnp.ones_like(log_snr),))[1]
    density = -rate / (sde.t_max - sde.t_min)
    largest, smallest = log_snr_ends(sde)
    known = jnp.square(values / (largest - smallest)) * 2 / weight
    return jnp.mean(jax.lax.stop_gradient(known) / density)


def decoded(sde: SDE, levels: int, data: str = "lattice") -> Float[Array, "n"]:
    """The reconstruction term of a pixel of each level, its expectation over x at t_min, in nats.

    P(k | x) is proportional to the likelihood m_k of x at t_min, pixel by pixel: the decoder of
    variational diffusion models (Kingma et al. 2021, arXiv 2107.00630, section 3.3), and in
    `dequantize.reconstruction` that with no tilt. As a function of a pixel's level alone, its
    expectation over x is an integral in one dimension, here by the trapezium rule: without noise,
    and without the network.

    Args:
      data: one of `dequantize.LEVEL_DATA`; for boxes also the terms -log q(x | x0) + log q(x | k).
    """
    t = jnp.asarray(sde.t_min)
    width = 2.0 / levels * sde.alpha(t) / sde.sigma(t)
    half = _TAIL + (0.5 * width if data == "uniform" else 0.0)
    offset = half * jnp.linspace(-1.0, 1.0, _POINTS)[:, None]
    known = lambda steps: dequantize.LEVEL_DATA[data].known(offset - steps * width, width)[0]
    # the likelihoods of the levels to one side, over that of the level itself, added up outwards;
    # by symmetry the other side's are those of -x
    own, others = known(jnp.zeros(1)), known(jnp.arange(1.0, levels))
    none = jnp.full_like(own, -jnp.inf)
    above = jnp.concatenate([none, jax.lax.cumlogsumexp(others - own, axis=1)], axis=1)
    # over m_k, log 1 / P(k | x): levels - 1 - k are above, k below
    whole = jax.nn.softplus(jnp.logaddexp(above[:, ::-1], above[::-1]))
    density = jnp.exp(own) / jnp.sum(jnp.exp(own))
    # -log P + log m_k - E log q(x | x0); for the lattice the last two cancel
    return jnp.sum(density * (whole + own), axis=0) + 0.5 * math.log(2 * math.pi * math.e)
