"""The best-fit Gaussian of data: its fit from examples, and the functions of its covariance."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import coefficients

from score_jax import whiten
from score_jax.data.base import Rows, to_model

RNG = np.random.default_rng(0)
D = 6
AXES = np.linalg.qr(RNG.standard_normal((D, D)))[0].T
VARIANCES = np.array([4.0, 1.0, 0.3, 0.02, 0.02, 0.02])
COVARIANCE = AXES.T * VARIANCES @ AXES
EXAMPLES = RNG.multivariate_normal(RNG.standard_normal(D), COVARIANCE, 500).reshape(500, 2, 3)


def matrix(gaussian, function=lambda v: v):
    """function(S) as [D, D]."""
    unit = jnp.eye(D).reshape(D, *gaussian.mean.shape)
    return np.asarray(whiten.apply(gaussian, function, unit)).reshape(D, D)


def known():
    """The Gaussian of AXES and VARIANCES: three principal components, and the rest."""
    return whiten.Gaussian(
        jnp.zeros((2, 3)), jnp.asarray(AXES[:3]), jnp.asarray(VARIANCES[:3]), jnp.asarray(0.02)
    )


def test_a_function_of_the_covariance_is_that_of_its_eigenvalues(x64):
    for function in (lambda v: v, lambda v: 1 / jnp.sqrt(v)):
        true = AXES.T * np.asarray(function(VARIANCES)) @ AXES
        np.testing.assert_allclose(matrix(known(), function), true, atol=1e-12)
        np.testing.assert_allclose(whiten.sum_of(known(), function), np.trace(true), rtol=1e-12)


def test_whitened_noised_data_have_unit_covariance_and_colouring_is_the_inverse(x64, sde):
    """C = alpha^2 S + sigma^2 I: C^(-1/2) C C^(-1/2) = I, and log det C^(1/2) as numpy has it."""
    gaussian = known()._replace(mean=jnp.asarray(RNG.standard_normal((2, 3))))
    for t in (sde.t_min, 0.3 * sde.t_max, sde.t_max):
        t, (alpha, sigma) = jnp.asarray(t), coefficients(sde, [t])[0]
        c = alpha**2 * COVARIANCE + sigma**2 * np.eye(D)
        unit = alpha * gaussian.mean + jnp.eye(D).reshape(D, 2, 3)
        scale = np.asarray(whiten.whitened(gaussian, sde, t, unit)).reshape(D, D)
        np.testing.assert_allclose(scale @ c @ scale, np.eye(D), atol=1e-8)
        log_det = 0.5 * np.linalg.slogdet(c)[1]
        np.testing.assert_allclose(whiten.log_det(gaussian, sde, t), log_det, rtol=1e-9, atol=1e-9)
        back = whiten.coloured(gaussian, sde, t, whiten.whitened(gaussian, sde, t, unit))
        np.testing.assert_allclose(back, unit, atol=1e-9 * max(1.0, sigma))


def test_the_fits_have_the_examples_moments(x64):
    flat = EXAMPLES.reshape(500, D)
    moments = np.cov(flat.T, bias=True)
    for fit, true in {
        whiten.covariance: moments,
        whiten.diagonal: np.diag(np.diag(moments)),
        whiten.isotropic: np.trace(moments) / D * np.eye(D),
    }.items():
        gaussian = fit(EXAMPLES)
        np.testing.assert_allclose(gaussian.mean, EXAMPLES.mean(0), rtol=1e-12)
        np.testing.assert_allclose(matrix(gaussian), true, atol=1e-12)


def test_beyond_the_rank_is_the_mean_of_the_other_eigenvalues(x64):
    gaussian = whiten.covariance(EXAMPLES, rank=2)
    eigenvalues = np.linalg.eigvalsh(np.cov(EXAMPLES.reshape(500, D).T, bias=True))
    found = np.linalg.eigvalsh(matrix(gaussian))
    true = [*[eigenvalues[:4].mean()] * 4, *eigenvalues[4:]]
    np.testing.assert_allclose(found, true, rtol=1e-10)


def test_subspace_iteration_finds_the_principal_components(x64, monkeypatch):
    """On 40 dimensions, eigenvalues falling by 0.7 each; then the rank is 8 and the iterations 4."""
    x = RNG.standard_normal((300, 40)) * 0.7 ** (np.arange(40) / 2)
    true = whiten.covariance(x, rank=8)
    monkeypatch.setattr(whiten, "_LARGEST_COVARIANCE", 39)
    found = whiten.covariance(x, rank=8)
    np.testing.assert_allclose(found.variances, true.variances, rtol=1e-6)
    np.testing.assert_allclose(found.rest, true.rest, rtol=1e-4)
    overlap = np.abs(np.sum(np.asarray(found.vectors) * np.asarray(true.vectors), axis=1))
    np.testing.assert_allclose(overlap, 1.0, atol=1e-4)


@pytest.mark.parametrize("fit", [whiten.isotropic, whiten.diagonal, whiten.covariance])
def test_integer_levels_are_fitted_as_they_are_after_uniform_dequantization(x64, fit):
    """The variance of uniform noise, width^2 / 12, is added; a pixel that never changes has no less than that."""
    levels = 16
    k = RNG.integers(0, levels, (400, 4)).astype(np.uint8)
    k[:, 0] = 3
    noise = (np.arange(400) + 0.5) / 400
    width = 2 / levels
    gaussian, plain = fit(k, levels), fit(to_model(k + 0.5, levels))
    gap = whiten.sum_of(gaussian, lambda v: v) - whiten.sum_of(plain, lambda v: v)
    np.testing.assert_allclose(gap, 4 * width**2 * np.var(noise), rtol=1e-4)
    np.testing.assert_allclose(gaussian.mean, plain.mean)
    assert whiten.diagonal(k, levels).rest[0] >= width**2 / 12


def test_at_most_n_rows_are_read_evenly_spaced_in_chunks(x64, monkeypatch):
    monkeypatch.setattr(whiten, "_CHUNK", 7)
    index = np.arange(0, 500, 10)
    found = whiten.covariance(Rows(EXAMPLES, np.arange(500)), n_rows=50)
    true = np.cov(EXAMPLES[index].reshape(50, D).T, bias=True)
    np.testing.assert_allclose(matrix(found), true, atol=1e-12)
