"""The evidence lower bound on log p(x), in continuous time and of T steps.

Variational diffusion models (Kingma et al. 2021, arXiv 2107.00630, section 5), for continuous x.

For the generative model that draws x_T from the prior, follows the reverse SDE to t_min and ends
with the denoising Gaussian N(x0_hat, (sigma / alpha)^2 I) at t_min, minus log p(x) is at most the
sum of

    1. prior            KL( q(x_T | x) || N(0, sigma(t_max)^2 I) )
    2. diffusion        1/2 E int -d log_snr/dt || eps - eps_hat ||^2 dt
    3. reconstruction   -E log N(x; x0_hat(x_t_min), (sigma / alpha)^2 I).

Theorem 3 of Song et al. 2021 (arXiv 2101.09258) has the same bound in two other forms. With score
= -eps_hat / sigma, and its terms that do not depend on the network written as the entropies of
q(x_t_min | x) and q(x_T | x), which the other two terms take, they leave for the diffusion

    dsm       1/2 E int -d log_snr/dt ( || eps - eps_hat ||^2 - || eps ||^2 + D ) dt
    skilling  1/2 E int -d log_snr/dt ( || eps_hat ||^2 - 2 sigma div eps_hat + D ) dt,

D dimensions: the same expectation, by E || eps ||^2 = D and Stein's identity, with other variances.
Where eps_hat is near eps (much noise) vdm's is the least; where it is near 0 (noise finer than any
structure of the data), that of the two others.

The generative model may instead take T steps t_1 > ... > t_T > t_min to t_min, each from t to the
next, s, by q(x_s | x_t, x0) with x0_hat for x0: ancestral sampling (Ho et al. 2020, arXiv 2006.11239,
eq. 5-8). Then the diffusion term is the sum of T divergences of Gaussians, and each is

    1/2 (SNR(s) - SNR(t)) E || x0 - x0_hat ||^2 = 1/2 (SNR(s) / SNR(t) - 1) E || eps - eps_hat ||^2

(Kingma et al. 2021, section 4, for every linear SDE), which tends to the integral as T grows, like 1/T.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax import grids, shapes
from score_jax.losses import likelihood
from score_jax.sde import SDE, log_snr, perturb
from score_jax.types import Keys, PredictFn


class Terms(NamedTuple):
    """The three terms of minus the bound, each in nats per example."""

    prior: Float[Array, "b"]
    diffusion: Float[Array, "b"]
    reconstruction: Float[Array, "b"]


def vdm(keys, sde, predict, x_t, t, label, eps) -> Float[Array, "b"]:
    """|| eps - eps_hat ||^2 (Kingma et al. 2021, arXiv 2107.00630, section 5)."""
    return shapes.sum_event(jnp.square(eps - predict(x_t, t, label).eps))


def dsm(keys, sde, predict, x_t, t, label, eps) -> Float[Array, "b"]:
    """The denoising form of Song et al. 2021, whose || eps ||^2 is that of the draw."""
    known = shapes.event_size(eps) - shapes.sum_event(jnp.square(eps))
    return vdm(keys, sde, predict, x_t, t, label, eps) + known


def skilling(keys, sde, predict, x_t, t, label, eps) -> Float[Array, "b"]:
    """The form with the score's divergence, estimated with a probe of random signs (Skilling-Hutchinson)."""
    draw = lambda key: jax.random.rademacher(key, x_t.shape[1:], x_t.dtype)
    probe = jax.vmap(draw)(keys)
    eps_hat, product = jax.jvp(lambda x: predict(x, t, label).eps, (x_t,), (probe,))
    terms = jnp.square(eps_hat) + 1.0 - 2 * shapes.like(sde.sigma(t), x_t) * probe * product
    return shapes.sum_event(terms)


# name -> form(keys, sde, predict, x_t, t, label, eps): twice the diffusion term per unit of log-SNR
FORMS = {"vdm": vdm, "dsm": dsm, "skilling": skilling}


def denoising(
    keys: Keys, sde: SDE, predict: PredictFn, x: Float[Array, "b *s"], label: Array | None = None
) -> Float[Array, "b"]:
    """The reconstruction term of continuous x: -log N(x; x0_hat, (sigma / alpha)^2 I) at one draw of x_t_min."""
    t_min = jnp.full(x.shape[:1], sde.t_min)
    normaliser = 0.5 * shapes.event_size(x) * (jnp.log(2 * jnp.pi) - log_snr(sde, t_min))
    eps = shapes.normal(keys, x)
    # at t_min || x - x0_hat ||^2 alpha^2 / sigma^2 is || eps - eps_hat ||^2
    x_t = perturb(sde, x, t_min, eps)
    return normaliser + 0.5 * vdm(keys, sde, predict, x_t, t_min, label, eps)


def time_and_weight(
    sde: SDE, grid: grids.Grid, u: Float[Array, "b"], n_steps: int | None = None
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """For u uniform in [0, 1): a time, and the factor on || eps - eps_hat ||^2 whose expectation is the diffusion term.

    Args:
      grid: t = grid(u); of any number of steps they are grid(i / n_steps).
      n_steps: T of the generative model; None is continuous time, whatever the grid.
    """
    if n_steps is None:
        t, dt_du = grids.time_and_rate(grid, u)
        return t, likelihood(sde, t, -dt_du)
    i = jnp.clip(jnp.floor(u * n_steps), 0, n_steps - 1)  # u next to 1 may round up
    t, s = grid(i / n_steps), grid((i + 1) / n_steps)
    return t, 0.5 * n_steps * jnp.expm1(log_snr(sde, s) - log_snr(sde, t))


def prior(sde: SDE, x: Float[Array, "b *s"]) -> Float[Array, "b"]:
    """The prior term: KL( N(alpha x, sigma^2 I) || N(0, sigma^2 I) ) at t_max."""
    t_max = jnp.asarray(sde.t_max)
    return 0.5 * shapes.sum_event(jnp.square(sde.alpha(t_max) / sde.sigma(t_max) * x))


def negative_elbo(
    keys: Keys,
    sde: SDE,
    predict: PredictFn,
    x: Float[Array, "b *s"],
    label: Array | None = None,
    *,
    n_times: int = 16,
    n_steps: int | None = None,
    grid: Callable[[SDE], grids.Grid] = grids.log_snr,
    form: str = "vdm",
    reconstruct: Callable[..., Float[Array, "b"]] = denoising,
) -> Terms:
    """An unbiased estimate of each example's three terms, its expectation over t from n_times stratified times.

    Args:
      keys: one per example; an example's estimate depends on its own key alone.
      x: examples in model space, dequantized.
      n_times: network evaluations spent on the diffusion term, plus one on the reconstruction. With
        n_times = n_steps each step has one.
      n_steps: T, of the bound for a generative model of so many steps along the grid; None is
        continuous time.
      grid: constructor from `grids`. In continuous time it sets the density of the times and with it
        the variance alone; with n_steps, what is estimated.
      form: of the diffusion term, one of FORMS.
      reconstruct: the last term, called as reconstruct(keys, sde, predict, x, label). For data that
        have levels `dequantize.reconstruction` of the levels; the sum is then minus the bound on
        their log-probability.
    """
    along = grid(sde)
    offset = jax.vmap(jax.random.uniform)(shapes.fold_in(keys, 0))

    def add(i, total):
        t, weight = time_and_weight(sde, along, (i + offset) / n_times, n_steps)
        k_eps = shapes.fold_in(keys, 2 + i)
        eps = shapes.normal(k_eps, x)
        x_t = perturb(sde, x, t, eps)
        square = FORMS[form](shapes.fold_in(k_eps, 0), sde, predict, x_t, t, label, eps)
        return total + weight * square

    diffusion = jax.lax.fori_loop(0, n_times, add, jnp.zeros(x.shape[:1])) / n_times
    return Terms(
        prior=prior(sde, x),
        diffusion=diffusion,
        reconstruction=reconstruct(shapes.fold_in(keys, 1), sde, predict, x, label),
    )
