"""Exact densities, dequantization, and the whole path to bits per dimension on data whose entropy is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, assert_mean
from scipy.special import ndtr

from score_jax import dequantize, evaluate, exact, grids
from score_jax import sde as sdes
from score_jax.data.base import Split
from score_jax.likelihood import log_likelihood
from score_jax.model import Model

LEVELS, DIMS = 8, 4
PROBABILITIES = np.random.default_rng(0).dirichlet(np.full(LEVELS, 0.7), DIMS)
EDGES = np.linspace(-1.0, 1.0, LEVELS + 1)
ENTROPY = -np.sum(PROBABILITIES * np.log2(PROBABILITIES)) / DIMS


def boxes():
    return exact.boxes(PROBABILITIES, EDGES)


def box_density(x, alpha, sigma):
    """The noised density of each dimension at points x [n], in numpy: [n, DIMS]."""
    steps = np.diff(ndtr((x[:, None] - alpha * EDGES) / sigma), axis=1)
    return -steps @ (PROBABILITIES / np.diff(EDGES)).T / alpha


def truncation(sde):
    """Bits per dimension that the noise at t_min costs: E log2 p_0(x) / p_t_min(x) over the data."""
    t = jnp.asarray(sde.t_min, float)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    n = 100_000
    x = -1 + 2 * (np.arange(n * LEVELS) + 0.5) / (n * LEVELS)
    logs = np.log2(box_density(x, alpha, sigma)).reshape(LEVELS, n, DIMS).mean(1)  # by level
    own = np.log2(PROBABILITIES / np.diff(EDGES))
    return np.sum(PROBABILITIES * (own - logs.T)) / DIMS


# densities


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.05), (0.6, 0.5), (0.05, 1.0)])
@pytest.mark.parametrize(
    "make",
    [
        lambda: exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance),
        lambda: exact.mixture([0.2, 0.8], [[-1.0, 0.5], [1.0, -0.5]], 0.2),
        lambda: exact.boxes(PROBABILITIES[:2], EDGES),
    ],
    ids=["gaussian", "mixture", "boxes"],
)
def test_a_noised_density_integrates_to_one(x64, make, alpha, sigma):
    """By the trapezium rule in two dimensions, whose error on a smooth density falls faster than any power."""
    x = np.linspace(-6, 6, 241)
    points = jnp.asarray(np.stack(np.meshgrid(x, x), -1).reshape(-1, 2))
    density = jnp.exp(jax.jit(make())(points, jnp.asarray(alpha), jnp.asarray(sigma)))
    np.testing.assert_allclose(jnp.sum(density) * (x[1] - x[0]) ** 2, 1.0, rtol=1e-6)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 1e-3), (0.7, 0.7), (0.0066, 1.0)])
def test_the_noised_boxes_are_differences_of_the_normal_distribution(alpha, sigma):
    """In float32: at alpha = 0.0066 the boxes are 1 / 600 wide and the differences lose three digits."""
    x = np.linspace(-1.0, 1.0, 403)
    points = jnp.asarray(np.tile(x[:, None], DIMS), jnp.float32)
    found = jax.jit(boxes())(points, jnp.asarray(alpha), jnp.asarray(sigma))
    truth = np.log(box_density(np.asarray(points[:, 0], float), alpha, sigma)).sum(1)
    np.testing.assert_allclose(found, truth, rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 1e-3), (1.0, 1e-2), (0.0066, 1.0)])
def test_the_boxes_score_is_finite_in_float32_far_outside_them(alpha, sigma):
    """It points back; at thousands of sigma exp(-z^2 / 2) has no digits left that say how strongly."""
    x = np.array([-5.0, -2.0, -1.1, 0.0, 1.1, 2.0, 5.0], np.float32)
    total = lambda x: jnp.sum(boxes()(x, jnp.asarray(alpha), jnp.asarray(sigma)))
    score = jax.jit(jax.grad(total))(jnp.tile(jnp.asarray(x)[:, None], DIMS))
    assert np.all(np.isfinite(score))
    outside = np.abs(x) > 1
    np.testing.assert_array_equal(
        np.sign(score[outside]), -np.tile(np.sign(x[outside, None]), DIMS)
    )


# dequantization


def test_dequantization_noise_is_uniform_on_the_unit_interval():
    """80000 draws: mean 1/2 and variance 1/12, each within 4 standard errors; never 1."""
    x = jnp.tile(jnp.arange(4, dtype=jnp.uint8)[:, None], (1, 20000))
    u = np.asarray(dequantize.uniform(jax.random.split(jax.random.key(0), 4), x), float)
    u = (u - np.arange(4)[:, None]).ravel()
    assert u.min() >= 0
    assert u.max() < 1
    assert_mean(np.stack([u, (u - 0.5) ** 2], 1), [1 / 2, 1 / 12])


def test_dequantization_noise_comes_from_each_examples_own_key():
    x, keys = jnp.zeros((3, 2, 2), jnp.uint8), jax.random.split(jax.random.key(0), 3)
    together = dequantize.uniform(keys, x)
    np.testing.assert_array_equal(together[1:2], dequantize.uniform(keys[1:2], x[1:2]))
    assert np.all(together[0] != together[1])


# bits per dimension


def images(n):
    """n images of independent categorical pixels and the bits per dimension that each has in truth."""
    rng = np.random.default_rng(1)
    x = np.stack([rng.choice(LEVELS, n, p=p) for p in PROBABILITIES], 1).astype(np.uint8)
    return x, -np.log2(PROBABILITIES[np.arange(DIMS), x]).mean(1)


def measured(sde, x, **solver):
    predictor = exact.predictor(sde, boxes())
    model = Model(
        init=lambda key, shape: (),
        sde=lambda params: sde,
        predict=lambda params, x, t, label=None, *, keys=None: predictor(x, t, label),
    )

    def likelihood(keys, sde, predict, x, label):
        return log_likelihood(
            keys, sde, predict, x, label, grid=grids.log_snr(sde), trace="exact", **solver
        )

    fn = evaluate.ode_bits(model, likelihood, LEVELS)
    run = evaluate.per_example(fn, batch_size=300, labels=False)
    return evaluate.together(run(jax.random.key(0), (), Split(x, None)))


def test_bits_per_dimension_of_categorical_pixels_fall_to_their_entropy_as_the_root_of_t_min():
    """Through levels, dequantization, scaling, the ODE and its offset, under VP.

    Image by image the bits in truth are known, so the differences, whose mean is the truncation at
    t_min, vary little: each mean is within 4 of their standard errors of the integral of the
    noised density.
    """
    x, truth = images(300)
    assert_mean(truth, ENTROPY)
    bias = {}
    for t_min in (1e-5, 1e-3):
        sde = sdes.vp(t_min=t_min)
        found = measured(sde, x, rtol=1e-4, atol=1e-4)
        assert np.all(found["ok"])
        assert_mean(found["bpd"] - truth, truncation(sde))
        assert_mean(found["bpd"], ENTROPY + truncation(sde))
        bias[t_min] = np.mean(found["bpd"] - truth)
    assert 0 < bias[1e-5] < 0.02
    assert bias[1e-3] > 4 * bias[1e-5]
    np.testing.assert_allclose(
        truncation(sdes.vp(t_min=1e-3)) / truncation(sdes.vp()), 10, rtol=0.3
    )
