"""Predictions: every kind of output, read and combined, at every noise level."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, SDES, coefficients

from score_jax import exact, predict
from score_jax.sde import perturb, ve
from score_jax.types import Prediction


def pair_and_point(sde, n=9):
    """A pair (x0, eps), times over the whole axis, and the x_t that the pair makes."""
    t = jnp.linspace(sde.t_min, sde.t_max, n)
    x0, eps = jax.random.normal(jax.random.key(0), (2, n, 3, 2))
    return Prediction(x0, eps), t, perturb(sde, x0, t, eps)


@pytest.mark.parametrize("kind", predict.KINDS)
def test_reading_a_kind_undoes_combining_it_at_every_noise_level(x64, sde, kind):
    pair, t, x = pair_and_point(sde)
    found = predict.read(kind, sde, predict.combine(kind, sde, pair, t), x, t)
    # x0 from eps, or eps from x0, loses the digits of sigma / alpha, at most 1e5
    np.testing.assert_allclose(found.x0, pair.x0, atol=1e-9)
    np.testing.assert_allclose(found.eps, pair.eps, atol=1e-9)


@pytest.mark.parametrize("kind", predict.OUTPUTS)
def test_whatever_the_network_says_the_pair_makes_x(x64, sde, kind):
    _, t, x = pair_and_point(sde)
    out = jax.random.normal(jax.random.key(1), x.shape)
    pair = predict.OUTPUTS[kind](sde, out, x, t)
    np.testing.assert_allclose(perturb(sde, pair.x0, t, pair.eps), x, rtol=1e-9, atol=1e-9)


def test_v_is_inverted_by_salimans_and_ho_up_to_the_norm_of_alpha_and_sigma(x64, sde):
    """x0 = (alpha x - sigma v) / (alpha^2 + sigma^2); the norm is 1 under VP only."""
    _, t, x = pair_and_point(sde)
    v = jax.random.normal(jax.random.key(1), x.shape)
    alpha, sigma = (c(t)[:, None, None] for c in (sde.alpha, sde.sigma))
    norm = alpha**2 + sigma**2
    pair = predict.read("v", sde, v, x, t)
    np.testing.assert_allclose(pair.x0, (alpha * x - sigma * v) / norm, rtol=1e-9)
    np.testing.assert_allclose(pair.eps, (sigma * x + alpha * v) / norm, rtol=1e-9)


def test_edm_is_karras_preconditioning(x64):
    """D = c_skip x + c_out F at sigma_data = 0.5 (arXiv 2206.00364, table 1), under VE, where alpha = 1."""
    sde = ve(0.002, 80.0)
    _, t, x = pair_and_point(sde)
    out = jax.random.normal(jax.random.key(1), x.shape)
    s = sde.sigma(t)[:, None, None]
    c_skip, c_out = 0.25 / (s**2 + 0.25), s * 0.5 / jnp.sqrt(s**2 + 0.25)
    np.testing.assert_allclose(
        predict.read("edm", sde, out, x, t).x0, c_skip * x + c_out * out, rtol=1e-9
    )


def test_edm_reads_x_over_alpha_under_every_sde(x64, sde):
    _, t, x = pair_and_point(sde)
    out = jax.random.normal(jax.random.key(1), x.shape)
    alpha, sigma = (c(t)[:, None, None] for c in (sde.alpha, sde.sigma))
    s = sigma / alpha
    c_skip, c_out = 0.25 / (s**2 + 0.25), s * 0.5 / jnp.sqrt(s**2 + 0.25)
    found = predict.read("edm", sde, out, x, t).x0
    np.testing.assert_allclose(found, c_skip * x / alpha + c_out * out, rtol=1e-8)


def test_consistency_is_the_papers_form_in_x_over_alpha(x64, sde):
    """f = c_skip y + c_out F (arXiv 2303.01469, appendix C), sigma_data = 0.5, eps the line from there to x_t."""
    _, t, x = pair_and_point(sde)
    out = jax.random.normal(jax.random.key(1), x.shape)
    alpha, sigma = (c(t)[:, None, None] for c in (sde.alpha, sde.sigma))
    s = sigma / alpha
    c_skip, c_out = 0.25 / ((s - s[0]) ** 2 + 0.25), 0.5 * (s - s[0]) / jnp.sqrt(0.25 + s**2)
    found = predict.consistency(sde, out, x, t)
    np.testing.assert_allclose(found.x0, c_skip * x / alpha + c_out * out, rtol=1e-9, atol=1e-12)
    eps = (x - alpha * found.x0) / sigma
    np.testing.assert_allclose(found.eps, eps, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", SDES)
def test_a_consistency_function_is_x_over_alpha_at_t_min_in_float32_too(name):
    sde = SDES[name]()
    x, out = jax.random.normal(jax.random.key(0), (2, 5, 3))
    t = jnp.full(5, sde.t_min)
    read = partial(predict.consistency, sde)
    for found in (read(1e4 * out, x, t), jax.jit(read)(1e4 * out, x, t)):
        np.testing.assert_allclose(found.x0, x / sde.alpha(t)[:, None], rtol=3e-7)
        np.testing.assert_array_equal(found.eps, 0.0)


def test_the_perfect_prediction_of_gaussian_data_is_its_conditional_mean(x64, sde):
    """The score is -(alpha^2 Sigma + sigma^2 I)^-1 (x - alpha mean), x0 = (x + sigma^2 score) / alpha."""
    predictor = exact.predictor(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))
    x = jnp.array([[1.0, -2.0], [0.3, 0.1]])
    ts = np.linspace(sde.t_min, sde.t_max, 5)
    for t, (alpha, sigma) in zip(ts, coefficients(sde, ts), strict=True):
        times = jnp.full(2, t)
        pair = predictor(x, times)
        score = GAUSSIAN.score(x, (alpha, sigma))
        np.testing.assert_allclose(predict.combine("score", sde, pair, times), score, rtol=1e-8)
        np.testing.assert_allclose(pair.x0, (x + sigma**2 * score) / alpha, rtol=1e-7)
