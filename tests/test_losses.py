"""Losses: their minimum, their gradient and their identities on Gaussian data, in closed form.

For data with variance lambda along a principal axis and s = alpha^2 / sigma^2, the perfect
prediction's squared error in eps is lambda s / (1 + lambda s), the posterior variance.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, SDES, assert_mean
from scipy.integrate import quad

from score_jax import exact, grids, losses
from score_jax import sde as sdes
from score_jax.model import Model
from score_jax.types import Batch, Prediction

EIGENVALUES = np.linalg.eigvalsh(GAUSSIAN.covariance)


def perfect(sde):
    predictor = exact.predictor(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))
    return Model(
        init=lambda key, shape: (),
        sde=lambda params: sde,
        predict=lambda params, x, t, label=None, *, keys=None: predictor(x, t, label),
    )


def linear_in_x(sde):
    """eps_hat = w x_t: wrong for every w, and of a known risk."""

    def predict(w, x, t, label=None, *, keys=None):
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return Prediction((x - sigma * w * x) / alpha, w * x)

    return Model(init=None, sde=lambda params: sde, predict=predict)


def batch(key, n=32):
    data, examples = jax.random.split(key)
    root = np.linalg.cholesky(GAUSSIAN.covariance)
    x = GAUSSIAN.mean + jax.random.normal(data, (n, 2)) @ root.T
    keys = jax.random.split(examples, n)
    return Batch(x, None, keys, jnp.arange(n) / n)


def values(loss, params=()):
    """The loss of 400 independent batches."""

    def one(key):
        times, examples = jax.random.split(key)
        return loss(times, params, (), batch(examples), 0)[0]

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 400))


def error(sde, t):
    """The perfect prediction's mean squared error in eps per dimension, at a scalar t."""
    t = np.asarray(t)
    s = np.exp(float(sdes.log_snr(sde, jnp.asarray(t, float))))
    return np.mean(EIGENVALUES * s / (1 + EIGENVALUES * s))


def minimum_under_likelihood_weighting(sde):
    """1/2 int E ||eps - eps_hat||^2 d log_snr / dimensions: log(1 + lambda s) / 2 between the ends."""
    ends = np.exp([float(end) for end in sdes.log_snr_ends(sde)])
    return 0.5 * np.mean(np.diff(np.log1p(np.outer(EIGENVALUES, ends[::-1]))))


# where the time density is far from uniform in log-SNR the weights' variance grows as 1 / t_min
COARSE = {
    "vp": lambda: sdes.vp(t_min=1e-2),
    "sub_vp": lambda: sdes.sub_vp(t_min=5e-2),
    "ve": lambda: sdes.ve(1e-2, 50.0),
    "linear": lambda: sdes.linear(2e-2, 0.98),
    "edm": lambda: sdes.edm(5e-2, 5.0),
    "cosine": lambda: sdes.cosine(t_min=1e-2, t_max=0.99),
    "ddpm": lambda: sdes.ddpm(t_min=1e-2),
}


@pytest.mark.parametrize(
    ("name", "grid"),
    [("vp", grids.log_snr), ("vp", grids.power), *((name, grids.uniform) for name in SDES)],
)
def test_the_likelihood_weighted_minimum_is_the_posterior_variance_whatever_the_grid(name, grid):
    sde = COARSE[name]()
    loss = losses.denoising(perfect(sde), grid=grid, weight=losses.likelihood)
    assert_mean(values(loss), minimum_under_likelihood_weighting(sde))


def test_the_likelihood_weighted_minimum_holds_down_to_the_default_t_min():
    sde = sdes.vp()
    assert_mean(values(losses.denoising(perfect(sde))), minimum_under_likelihood_weighting(sde))


def test_ddpms_minimum_is_the_posterior_variance_averaged_over_time():
    sde = sdes.vp()
    loss = losses.denoising(perfect(sde), grid=grids.uniform, weight=losses.simple, target="eps")
    assert_mean(values(loss), quad(lambda t: error(sde, t), sde.t_min, 1)[0] / (1 - sde.t_min))


def test_flow_matchings_minimum_is_the_variance_of_the_velocity():
    """Errors satisfy alpha x0_err = -sigma eps_err, so that in the velocity is eps_err / (1 - t)."""
    sde = sdes.linear()
    loss = losses.denoising(
        perfect(sde), grid=grids.uniform, weight=losses.simple, target="velocity"
    )
    integral = quad(lambda t: error(sde, t) / (1 - t) ** 2, sde.t_min, sde.t_max, limit=200)[0]
    assert_mean(values(loss), integral / (sde.t_max - sde.t_min))


def test_the_gradient_at_a_wrong_linear_prediction_is_the_risks():
    """E ||eps - w x||^2 / d = 1 - 2 w sigma + w^2 m, m = alpha^2 E ||x0||^2 / d + sigma^2."""
    sde, w = sdes.vp(), 0.4
    loss = losses.denoising(
        linear_in_x(sde), grid=grids.uniform, weight=losses.simple, target="eps"
    )

    def gradient(t):
        alpha, sigma = float(sde.alpha(jnp.asarray(t))), float(sde.sigma(jnp.asarray(t)))
        second = (GAUSSIAN.mean @ GAUSSIAN.mean + EIGENVALUES.sum()) / 2
        return -2 * sigma + 2 * w * (alpha**2 * second + sigma**2)

    found = values(lambda key, w, *rest: (jax.grad(lambda w: loss(key, w, *rest)[0])(w),), w)
    assert_mean(found, quad(gradient, sde.t_min, 1)[0] / (1 - sde.t_min))


def test_stratified_times_leave_the_noise_alone_to_vary():
    """weight t on ||eps||^2 / d, d = 64: its variance is E t^2 2/d from the noise and 1/12 from the time.

    A variance of 400 normal values has standard error sqrt(2 / 400) = 0.07 of itself.
    """
    n, d = 32, 64
    weight = lambda sde, t, dt_du: t
    loss = losses.denoising(linear_in_x(sdes.vp()), grid=grids.uniform, weight=weight)

    def variance(position):
        def one(key):
            times, examples = jax.random.split(key)
            keys = jax.random.split(examples, len(position))
            return loss(times, 0.0, (), Batch(jnp.zeros((len(keys), d)), None, keys, position), 0)

        found = jax.jit(jax.vmap(lambda key: one(key)[0]))
        return np.var(found(jax.random.split(jax.random.key(0), 400)))

    noise, time = 2 / d / 3, 1 / 12
    np.testing.assert_allclose(variance(jnp.arange(n) / n), noise / n, rtol=0.28)
    np.testing.assert_allclose(variance(jnp.zeros(1)), noise + time, rtol=0.28)


def test_the_weighted_eps_loss_is_the_g2_weighted_score_loss(x64, sde):
    """g^2 / 2 ||score - score_hat||^2 per unit time (Song et al. 2021), draw by draw."""
    g2 = lambda sde, t, dt_du: 0.5 * sdes.diffusion(sde, t) ** 2 * dt_du
    in_eps = losses.denoising(linear_in_x(sde), weight=losses.likelihood, target="eps")
    in_score = losses.denoising(linear_in_x(sde), weight=g2, target="score")
    arguments = (jax.random.key(1), 0.3, (), batch(jax.random.key(2), 8), 0)
    np.testing.assert_allclose(in_eps(*arguments)[0], in_score(*arguments)[0], rtol=1e-9)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts():
    sde = sdes.vp()
    whole = batch(jax.random.key(3), 8)
    denoising = losses.denoising(linear_in_x(sde))
    loss = jax.jit(lambda part: denoising(jax.random.key(4), 0.3, (), part, 0)[0])
    parts = [jax.tree.map(lambda a, half=half: a[half], whole) for half in (slice(4), slice(4, 8))]
    np.testing.assert_allclose(loss(whole), (loss(parts[0]) + loss(parts[1])) / 2, rtol=1e-5)
