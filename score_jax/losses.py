"""Denoising score matching: every loss of the family is (time density, weight, target) of one function.

    E[ weight(t) || target(x0, eps) - target(x0_hat, eps_hat) ||^2 ] / dimensions,    t = grid(u), u
    uniform.

| loss          | source                    | grid         | weight       | target   |
| ------------- | ------------------------- | ------------ | ------------ | -------- |
| denoising     | 2101.09258, theorem 1     | log_snr      | likelihood   | eps      |
| ddpm          | 2006.11239, eq. 14        | uniform      | simple       | eps      |
| ncsn          | 1907.05600, eq. 5-6       | log_snr      | simple       | eps      |
| edm           | 2206.00364, table 1       | log_normal   | edm          | eps      |
| min_snr       | 2303.09556                | uniform      | min_snr      | eps      |
| soft_min_snr  | 2401.11605                | uniform      | soft_min_snr | eps      |
| sigmoid       | 2303.00848; 2410.19324    | log_snr      | sigmoid      | eps      |
| flow_matching | 2210.02747, eq. 9         | uniform      | simple       | velocity |

ddpm and ncsn take 1000 and 10 discrete times; `ddpm` with n_times = None is the continuous loss of
Song et al. 2021 (arXiv 2011.13456, eq. 7). NCSN's weight sigma^2 is on the score -eps / sigma.

Papers put their weights on different quantities. A prediction satisfies x_t = alpha x0_hat + sigma
eps_hat, so an error e in eps is one of -e sigma / alpha in x0 and, if alpha^2 + sigma^2 = 1, of
e / alpha in v: with snr = alpha^2 / sigma^2 the same loss has the weights

    w_eps = w_x0 / snr = w_v (1 + 1 / snr)    on the squared errors of the three.

Here they are on eps; with another target, the same factor makes another loss.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from score_jax import adaptive, grids, shapes
from score_jax.model import Model
from score_jax.predict import SIGMA_DATA, combine
from score_jax.sde import SDE, log_snr, log_snr_rate, perturb
from score_jax.types import Batch, Key, LossFn, Prediction

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


def edm_weight(sigma_data: float = SIGMA_DATA) -> Weight:
    """(s^2 + sigma_data^2) / (s sigma_data)^2 on x0, s = sigma / alpha (Karras et al. 2022, arXiv 2206.00364, table 1).

    It is 1 on the output of `predict.KINDS["edm"]`, at the sigma_data of that.
    """
    return lambda sde, t, dt_du: 1 + jnp.exp(-log_snr(sde, t)) / sigma_data**2


def min_snr_weight(gamma: float = 5.0) -> Weight:
    """min(snr, gamma) on x0, min(snr, gamma) / snr on eps (Hang et al. 2023, arXiv 2303.09556)."""
    return lambda sde, t, dt_du: jnp.minimum(1.0, gamma * jnp.exp(-log_snr(sde, t)))


def soft_min_snr_weight(gamma: float = 4.0) -> Weight:
    """1 / (1 / snr + 1 / gamma) on x0, a smooth minimum of snr and gamma (Crowson et al. 2024, arXiv 2401.11605).

    Args:
      gamma: 1 / sigma_data^2; the default is for data of standard deviation 0.5.
    """
    # gamma / (gamma + snr) on eps
    return lambda sde, t, dt_du: jax.nn.sigmoid(math.log(gamma) - log_snr(sde, t))


def sigmoid_weight(bias: float = 2.0) -> Weight:
    """`likelihood` times sigmoid(bias - log_snr): what is seen only at low noise counts less.

    Kingma & Gao 2023, arXiv 2303.00848. A lower bias leaves more of it out, for larger images
    (Hoogeboom et al. 2024, arXiv 2410.19324).
    """
    return lambda sde, t, dt_du: likelihood(sde, t, dt_du) * jax.nn.sigmoid(bias - log_snr(sde, t))


def _uniforms(key: Key, batch: Batch, stratify: bool) -> Array:
    if stratify:
        return grids.stratified(key, batch.position)
    return jax.vmap(jax.random.uniform)(shapes.fold_in(batch.keys, 2))


def _times(sde: SDE, grid, level: float | None, n_times: int | None, u: Array):
    if level is not None:
        t = sde.time_of_log_snr(jnp.asarray(-2 * math.log(level)))
        return jnp.full_like(u, t), jnp.ones_like(u)
    if n_times is not None:
        u = jnp.minimum(jnp.floor(u * n_times), n_times - 1) / (n_times - 1)
    t, dt_du = grids.time_and_rate(grid(sde), u)
    return t, -dt_du


def denoising(
    model: Model,
    *,
    grid: Callable[[SDE], grids.Grid] = grids.log_snr,
    weight: Weight = likelihood,
    target: str = "eps",
    n_times: int | None = None,
    level: float | None = None,
    stratify: bool = True,
    time_bins: int = 0,
) -> LossFn:
    """The denoising score matching loss, of noise drawn here unless the batch brings its own.

    Args:
      model: gives the SDE and the prediction.
      grid: constructor from `grids`; sets the density of t.
      weight: factor on the squared error.
      target: one of `predict.KINDS`; the squared error is taken in this quantity.
      n_times: the number of discrete times, at equal steps of u from t_max to t_min, both
        included, which are equally probable; None for all. Under `sde.ddpm` with t_min = 1 / n, n
        times of the uniform grid are DDPM's i / n. The weight `likelihood` then makes the ELBO's
        integral a Riemann sum.
      level: the one noise level sigma / alpha (Vincent 2011), in the place of the grid's; for
        weights that do not depend on the rate, which is 1.
      stratify: u evenly spaced over the global batch; False draws each on its own.
      time_bins: if not 0, u is drawn from `adaptive`'s density over so many bins, which changes the
        variance, not the expectation; the loss state is then that of `adaptive.init(time_bins)`,
        otherwise ().
    """

    def loss(key, params, loss_state, batch, step):
        sde = model.sde(params)
        u, importance = _uniforms(key, batch, stratify), 1.0
        if time_bins:
            u, importance = adaptive.sample(loss_state, u)
        t, dt_du = _times(sde, grid, level, n_times, u)
        eps = batch.eps
        if eps is None:
            eps = shapes.normal(shapes.fold_in(batch.keys, 0), batch.x)
        x_t = perturb(sde, batch.x, t, eps)
        keys = shapes.fold_in(batch.keys, 1)
        pair = model.predict(params, x_t, t, batch.label, keys=keys, augment=batch.augment)
        error = combine(target, sde, pair, t) - combine(target, sde, Prediction(batch.x, eps), t)
        mean_square = shapes.sum_event(jnp.square(error)) / shapes.event_size(error)
        values = weight(sde, t, dt_du) * mean_square
        if time_bins:
            loss_state = adaptive.update(loss_state, u, jax.lax.stop_gradient(values))
        return jnp.mean(importance * values), ({}, loss_state)

    return loss


ddpm = partial(denoising, grid=grids.uniform, weight=simple, n_times=1000)
# geometric levels for every SDE; the paper has 10, from 1 to 0.01
ncsn = partial(denoising, weight=simple, n_times=10)
flow_matching = partial(denoising, grid=grids.uniform, weight=simple, target="velocity")


def edm(
    model: Model,
    *,
    sigma_data: float = SIGMA_DATA,
    mean: float = -1.2,
    std: float = 1.2,
    n_times: int | None = None,
    stratify: bool = True,
    time_bins: int = 0,
) -> LossFn:
    """`denoising` with `edm_weight`, at the times of `grids.log_normal` with this mean and std."""
    grid = partial(grids.log_normal, mean=mean, std=std)
    times = dict(grid=grid, n_times=n_times, stratify=stratify, time_bins=time_bins)
    return denoising(model, weight=edm_weight(sigma_data), **times)


def min_snr(
    model: Model,
    *,
    gamma: float = 5.0,
    grid: Callable[[SDE], grids.Grid] = grids.uniform,
    n_times: int | None = None,
    stratify: bool = True,
    time_bins: int = 0,
) -> LossFn:
    """`denoising` with `min_snr_weight`."""
    times = dict(grid=grid, n_times=n_times, stratify=stratify, time_bins=time_bins)
    return denoising(model, weight=min_snr_weight(gamma), **times)


def soft_min_snr(
    model: Model,
    *,
    gamma: float = 4.0,
    grid: Callable[[SDE], grids.Grid] = grids.uniform,
    n_times: int | None = None,
    stratify: bool = True,
    time_bins: int = 0,
) -> LossFn:
    """`denoising` with `soft_min_snr_weight`."""
    times = dict(grid=grid, n_times=n_times, stratify=stratify, time_bins=time_bins)
    return denoising(model, weight=soft_min_snr_weight(gamma), **times)


def sigmoid(
    model: Model,
    *,
    bias: float = 2.0,
    grid: Callable[[SDE], grids.Grid] = grids.log_snr,
    n_times: int | None = None,
    stratify: bool = True,
    time_bins: int = 0,
) -> LossFn:
    """`denoising` with `sigmoid_weight`, which any grid gives the same expectation."""
    times = dict(grid=grid, n_times=n_times, stratify=stratify, time_bins=time_bins)
    return denoising(model, weight=sigmoid_weight(bias), **times)
