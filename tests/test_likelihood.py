"""Log-likelihood by the probability-flow ODE against closed forms: Gaussian data, a mixture, the prior's own error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, SDES, Gaussian, assert_mean, coefficients

from score_jax import exact, grids
from score_jax import sde as sdes
from score_jax.likelihood import log_likelihood

X = np.array([[0.5, -0.3], [1.5, 0.2], [-0.7, 1.1], [0.0, -2.0]])
MIXTURE = (np.array([0.2, 0.8]), np.array([[-1.0, 0.5], [1.0, -0.5]]), 0.2)


def noised(gaussian=GAUSSIAN):
    return exact.gaussian(gaussian.mean, gaussian.covariance)


def solver(sde, noised_logp, **options):
    """log_likelihood(keys, x) with the perfect prediction and the exact density at t_max."""
    predictor = exact.predictor(sde, noised_logp)

    def prior_logp(sde, x):
        t_max = jnp.asarray(sde.t_max)
        return noised_logp(x, sde.alpha(t_max), sde.sigma(t_max))

    return jax.jit(
        lambda keys, x: log_likelihood(
            keys,
            sde,
            predictor,
            x,
            grid=grids.log_snr(sde),
            **dict(dict(trace="exact", prior_logp=prior_logp), **options),
        )
    )


def ends(sde):
    """(alpha, sigma) at t_min, where the data are, and at t_max."""
    return coefficients(sde, [sde.t_min, sde.t_max])


def keys(n):
    return jax.random.split(jax.random.key(0), n)


@pytest.mark.parametrize("name", SDES)
def test_the_log_density_and_the_latent_of_a_gaussian_are_the_closed_forms(name):
    """In float32 at rtol = atol = 1e-6. An error of the latent counts in its own unit, sigma(t_max)."""
    sde = SDES[name]()
    at_min, at_max = ends(sde)
    found = solver(sde, noised(), rtol=1e-6, atol=1e-6)(keys(4), jnp.asarray(X))
    assert np.all(found.ok)
    np.testing.assert_allclose(found.logp, GAUSSIAN.logp(X, at_min), rtol=0, atol=1e-4)
    scale = np.sqrt(at_max[1] ** 2 + at_max[0] ** 2)
    latent = GAUSSIAN.flow(X, at_min, at_max)
    np.testing.assert_allclose(found.latent / scale, latent / scale, rtol=0, atol=1e-4)


def test_the_log_density_of_a_mixture_is_the_closed_form():
    """On points of the modes, between them and outside; truth by direct summation in numpy."""
    sde, (weights, means, std) = sdes.vp(), MIXTURE
    x = np.array([[-1.0, 0.5], [1.2, -0.4], [0.0, 0.0], [1.5, 0.5]])
    alpha, sigma = ends(sde)[0]
    components = [
        Gaussian(mean, std**2 * np.eye(2)).logp(x, (alpha, sigma)) + np.log(weight)
        for weight, mean in zip(weights, means, strict=True)
    ]
    found = solver(sde, exact.mixture(*MIXTURE), rtol=1e-6, atol=1e-6)(keys(4), jnp.asarray(x))
    np.testing.assert_allclose(found.logp, np.logaddexp(*components), rtol=0, atol=2e-4)


def test_hutchinsons_trace_is_unbiased():
    """The mean over 2000 probes is the exact trace's answer on the same 20 steps, within 4 standard errors."""
    sde, x = sdes.vp(), jnp.asarray(X[1:2], jnp.float32)
    true = solver(sde, noised(), solver="heun", n_steps=20)(keys(1), x).logp
    estimate = solver(sde, noised(), solver="heun", n_steps=20, trace="hutchinson")
    found = estimate(keys(2000), jnp.tile(x, (2000, 1))).logp
    assert np.std(found) > 0.05  # the probes matter
    assert_mean(found, true)


def test_hutchinsons_trace_with_random_signs_is_exact_for_a_diagonal_jacobian(x64):
    gaussian = Gaussian(GAUSSIAN.mean, np.diag([0.5, 0.2]))
    sde = sdes.vp()
    run = lambda trace: solver(sde, noised(gaussian), solver="heun", n_steps=20, trace=trace)
    found, true = (run(trace)(keys(4), jnp.asarray(X)).logp for trace in ("hutchinson", "exact"))
    np.testing.assert_allclose(found, true, rtol=1e-12)


def test_an_examples_likelihood_depends_on_its_own_key_alone():
    """Bitwise, though the others change to ones that make the adaptive solver work harder."""
    run = solver(sdes.vp(), noised(), trace="hutchinson")
    x = jnp.asarray(X, jnp.float32)
    others = keys(4).at[2:].set(jax.random.split(jax.random.key(2), 2))
    one, other = run(keys(4), x), run(others, x.at[2:].multiply(100.0))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:2], b[:2]), one, other)
    assert np.all(one.logp[2:] != other.logp[2:])


def test_heun_on_the_grid_is_of_order_two(x64):
    sde = sdes.vp()
    true = GAUSSIAN.logp(X, ends(sde)[0])

    def error(n):
        found = solver(sde, noised(), solver="heun", n_steps=n)(keys(4), jnp.asarray(X))
        return np.linalg.norm(found.logp - true)

    np.testing.assert_allclose(error(64) / error(128), 4.0, rtol=0.1)


def test_the_standard_prior_is_off_by_alpha_times_the_mean(x64):
    """log N(z; alpha mean, V) - log N(z; 0, sigma^2) is about alpha mean . z / sigma^2 under VP: of rms alpha |mean|.

    The rms of 10000 normal values has relative standard error 1 / sqrt(20000); allowed are 4 and
    the next order, alpha |mean| / 2.
    """
    sde, gaussian = sdes.vp(), Gaussian(np.array([3.0, 0.0]), np.diag([0.5, 0.2]))
    at_max = ends(sde)[1]
    mean, covariance = gaussian.moments(at_max)
    z = np.random.default_rng(0).multivariate_normal(mean, covariance, 10000)
    gap = gaussian.logp(z, at_max) - np.asarray(sdes.prior_logp(sde, jnp.asarray(z)))
    size = at_max[0] * 3.0
    assert 0.019 < size < 0.021
    np.testing.assert_allclose(np.sqrt(np.mean(gap**2)) / size, 1.0, atol=4 / 141 + size / 2)


def test_the_log_likelihood_takes_the_standard_prior_by_default(x64):
    sde = sdes.vp()
    run = lambda **options: solver(sde, noised(), solver="heun", n_steps=8, **options)(
        keys(4), jnp.asarray(X)
    )
    exact_prior, default = run(), run(prior_logp=sdes.prior_logp)
    gap = GAUSSIAN.logp(default.latent, ends(sde)[1]) - sdes.prior_logp(sde, default.latent)
    np.testing.assert_allclose(exact_prior.logp - default.logp, gap, atol=1e-9)
