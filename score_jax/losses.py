"""Denoising score matching: every loss of the family is (time density, weight, target) of one function.

    E[ weight(t) || target(x0, eps) - target(x0_hat, eps_hat) ||^2 ] / dimensions,    t = grid(u), u
    uniform.

| loss                                       | grid    | weight     | target   |
| ------------------------------------------ | ------- | ---------- | -------- |
| DDPM, NCSN's sigma^2 (2011.13456, eq. 7)   | uniform | simple     | eps      |
| likelihood weighting (2101.09258, thm. 1) | log_snr | likelihood | eps      |
| flow matching (2210.02747, eq. 9)          | uniform | simple     | velocity |
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from score_jax import grids, shapes
from score_jax.model import Model
from score_jax.predict import combine
from score_jax.sde import SDE, log_snr_rate, perturb
from score_jax.types import LossFn, Prediction

# weight(sde, t, |dt / du|), a factor [b] on the squared error of the target
Weight = Callable[[SDE, Array, Array], Array]


def simple(sde: SDE, t: Array, dt_du: Array) -> Array:
    """One, under the grid's own time density."""
    return jnp.ones_like(t)


def likelihood(sde: SDE, t: Array, dt_du: Array) -> Array:
    """g^2 / (2 sigma^2) per unit time: the loss on eps is then minus the ELBO's integral, in nats per dimension.

    Song et al. 2021, arXiv 2101.09258, theorem 1; the time density divides out, so any grid gives the
    same expectation.
    """
    return 0.5 * log_snr_rate(sde, t) * dt_du


def denoising(
    model: Model,
    *,
    grid: Callable[[SDE], grids.Grid] = grids.log_snr,
    weight: Weight = likelihood,
    target: str = "eps",
) -> LossFn:
    """The denoising score matching loss, times stratified over the global batch.

    Args:
      model: gives the SDE and the prediction.
      grid: constructor from `grids`; sets the density of t.
      weight: factor on the squared error.
      target: one of `predict.KINDS`; the squared error is taken in this quantity.
    """

    def loss(key, params, loss_state, batch, step):
        sde = model.sde(params)
        t, dt_du = grids.time_and_rate(grid(sde), grids.stratified(key, batch.position))
        eps = shapes.normal(shapes.fold_in(batch.keys, 0), batch.x)
        x_t = perturb(sde, batch.x, t, eps)
        pair = model.predict(params, x_t, t, batch.label, keys=shapes.fold_in(batch.keys, 1))
        error = combine(target, sde, pair, t) - combine(target, sde, Prediction(batch.x, eps), t)
        mean_square = shapes.sum_event(jnp.square(error)) / shapes.event_size(error)
        return jnp.mean(weight(sde, t, -dt_du) * mean_square), ({}, loss_state)

    return loss
