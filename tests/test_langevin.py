"""Langevin dynamics: its steps on a Gaussian are affine, and only annealing finds the weights of far modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, assert_mean

from score_jax import exact, langevin, shapes

KEYS = jax.random.split(jax.random.key(0), 3)


def test_langevin_is_the_affine_recursion_of_its_step(x64):
    """Draw by draw: x + h / 2 score + sqrt(h) z."""
    x, h = jax.random.normal(jax.random.key(1), (3, 2)), 0.3
    precision = np.linalg.inv(GAUSSIAN.covariance)
    score = lambda x: -(x - GAUSSIAN.mean) @ precision
    found = langevin.langevin(KEYS, score, x, step=h, n_steps=4)
    for i in range(4):
        z = shapes.normal(shapes.fold_in(KEYS, i), x)
        x = jnp.asarray(x + 0.5 * h * GAUSSIAN.score(x, (1.0, 0.0)) + np.sqrt(h) * z)
    np.testing.assert_allclose(found, x, rtol=1e-9)


def test_its_stationary_variance_is_the_closed_form_of_a_finite_step():
    """v / (1 - h / 4v) for N(0, v): a quarter more at h = 0.8 v; 4000 chains."""
    keys, v, h = jax.random.split(jax.random.key(0), 4000), 0.7, 0.8 * 0.7
    run = jax.jit(lambda keys: langevin.langevin(keys, lambda x: -x / v, zeros, step=h, n_steps=40))
    zeros = jnp.zeros((4000, 1))
    x = np.asarray(run(keys))
    assert_mean(np.concatenate([x, x**2], 1), [0.0, v / (1 - h / (4 * v))])


def test_annealed_langevin_scales_its_step_with_the_level(x64):
    """alpha_i = epsilon sigma_i^2 / sigma_L^2 of arXiv 1907.05600, algorithm 1, draw by draw."""
    x, epsilon, m = jnp.ones((3, 2)), 0.02, 2
    sigmas = langevin.levels(4.0, 0.5, 4)
    np.testing.assert_allclose(sigmas, [4.0, 2.0, 1.0, 0.5])
    precision = lambda s: jnp.linalg.inv(GAUSSIAN.covariance + s**2 * jnp.eye(2))
    score = lambda x, s: -(x - GAUSSIAN.mean) @ precision(s)
    found = langevin.annealed(KEYS, score, x, sigmas, step=epsilon / 0.5**2, n_steps=m)
    for i, sigma in enumerate([4.0, 2.0, 1.0, 0.5]):
        alpha = epsilon * sigma**2 / 0.5**2
        for j in range(m):
            z = shapes.normal(shapes.fold_in(shapes.fold_in(KEYS, i), j), x)
            score_of_x = GAUSSIAN.score(x, (1.0, sigma))
            x = jnp.asarray(x + alpha / 2 * score_of_x + np.sqrt(alpha) * z)
    np.testing.assert_allclose(found, x, rtol=1e-9)


def test_a_model_under_any_sde_gives_the_scores_of_levels_and_of_times(x64, sde):
    predict = exact.predictor(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))
    x = jax.random.normal(jax.random.key(1), (3, 2))
    for sigma in (0.1, 1.0, 20.0):
        found = langevin.at_levels(sde, predict)(x, jnp.asarray(sigma))
        np.testing.assert_allclose(found, GAUSSIAN.score(x, (1.0, sigma)), rtol=1e-6)
    t = sde.time_of_log_snr(jnp.asarray(0.4))
    c = float(sde.alpha(t)), float(sde.sigma(t))
    found = langevin.at_time(sde, predict, t)(x)
    np.testing.assert_allclose(found, GAUSSIAN.score(x, c), rtol=1e-6)


# figure 3 of arXiv 1907.05600, with the numbers of its public code: 1280 starts in [-8, 8]^2
MIXTURE = exact.mixture([0.2, 0.8], [[-5.0, -5.0], [5.0, 5.0]], 1.0)
N = 1280


def in_the_light_mode(sample):
    """Whether each sample from uniform starts is in the mode of weight 1/5: on its side of the line between."""
    starts = jax.random.uniform(jax.random.key(1), (N, 2), minval=-8.0, maxval=8.0)
    x = jax.jit(sample)(jax.random.split(jax.random.key(0), N), starts)
    return np.asarray(x.sum(axis=1) < 0, float)


def score(x, sigma):
    return jax.grad(lambda x: jnp.sum(MIXTURE(x, jnp.ones(()), sigma)))(x)


def test_naive_langevin_keeps_the_weights_of_its_starts():
    """About half of the samples end in the mode of weight 1/5, 20 standard errors from it: 1000 steps of 0.1."""
    plain = lambda x: score(x, jnp.zeros(()))
    light = in_the_light_mode(
        lambda keys, x: langevin.langevin(keys, plain, x, step=0.1, n_steps=1000)
    )
    assert light.mean() > 0.2 + 20 * np.sqrt(0.2 * 0.8 / N)
    assert abs(light.mean() - 0.5) < 0.05


def test_annealed_langevin_finds_the_modes_weights():
    """1/5 within 4 standard errors of 1.1 %: ten levels from 20 to 1, 400 steps at each.

    What is left of the starts and of coarser levels is 0.5 % then, 1.8 % at the paper's 100 steps.
    """
    sigmas = langevin.levels(20.0, 1.0, 10)
    light = in_the_light_mode(
        lambda keys, x: langevin.annealed(keys, score, x, sigmas, step=0.1, n_steps=400)
    )
    assert_mean(light[:, None], [0.2])


@pytest.mark.parametrize("n", [2, 10])
def test_levels_are_geometric_with_both_ends(n):
    sigmas = langevin.levels(50.0, 0.01, n)
    np.testing.assert_allclose([sigmas[0], sigmas[-1]], [50.0, 0.01], rtol=1e-5)
    np.testing.assert_allclose(sigmas[1:] / sigmas[:-1], (0.01 / 50.0) ** (1 / (n - 1)), rtol=1e-4)
