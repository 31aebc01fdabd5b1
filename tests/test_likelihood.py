"""Log-likelihood by the probability-flow ODE against closed forms: Gaussian data, a mixture, the prior's own error.

In x and in whitened coordinates.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, SDES, Gaussian, assert_mean, coefficients

from score_jax import exact, grids, whiten
from score_jax import sde as sdes
from score_jax.likelihood import TRACES, log_likelihood

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
    estimate = solver(sde, noised(), solver="heun", n_steps=20, trace="rademacher")
    found = estimate(keys(2000), jnp.tile(x, (2000, 1))).logp
    assert np.std(found) > 0.05  # the probes matter
    assert_mean(found, true)


def test_hutchinsons_trace_with_random_signs_is_exact_for_a_diagonal_jacobian(x64):
    gaussian = Gaussian(GAUSSIAN.mean, np.diag([0.5, 0.2]))
    sde = sdes.vp()
    run = lambda trace: solver(sde, noised(gaussian), solver="heun", n_steps=20, trace=trace)
    found, true = (run(trace)(keys(4), jnp.asarray(X)).logp for trace in ("rademacher", "exact"))
    np.testing.assert_allclose(found, true, rtol=1e-12)


def test_an_examples_likelihood_depends_on_its_own_key_alone():
    """Bitwise, though the others change to ones that make the adaptive solver work harder."""
    run = solver(sdes.vp(), noised(), trace="rademacher")
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


# in whitened coordinates


def fitted(gaussian, dtype=jnp.float32):
    """The data's own Gaussian, as a fit of rank d would have it."""
    variances, vectors = np.linalg.eigh(gaussian.covariance)
    arrays = (gaussian.mean, vectors.T, variances, 1.0)
    return whiten.Gaussian(*(jnp.asarray(a, dtype) for a in arrays))


def natural(d):
    """A Gaussian of d dimensions whose variances fall from 10 to 1e-3."""
    rng = np.random.default_rng(d)
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return Gaussian(rng.standard_normal(d), axes * np.geomspace(10, 1e-3, d) @ axes.T)


@pytest.mark.parametrize("name", SDES)
def test_one_step_of_euler_is_exact_for_a_gaussian_that_is_whitened(name):
    """64 dimensions in float32, any probes; all that is left is rounding, 1e-5 bits/dim.

    The point is off by a rounding error in units of sigma(t_min): allowed is 1e-4 in y, for which
    |y| is about 8, and as much for the sum of the 64 logarithms and squares.
    """
    sde, gaussian = SDES[name](), natural(64)
    x = np.random.default_rng(1).multivariate_normal(gaussian.mean, gaussian.covariance, 4)
    x = x.astype(np.float32)
    run = solver(
        sde,
        noised(gaussian),
        trace="rademacher",
        n_probes=3,
        whiten=fitted(gaussian),
        solver="euler",
        n_steps=1,
    )
    found = run(keys(4), jnp.asarray(x))
    bits = 64 * np.log(2)
    true = gaussian.logp(x, ends(sde)[0])
    np.testing.assert_allclose(found.logp / bits, true / bits, rtol=0, atol=3e-5)
    assert np.all(found.probe_stderr / bits < 1e-5)
    at_min, at_max = ends(sde)
    scale = np.sqrt(at_max[1] ** 2 + at_max[0] ** 2)
    latent = gaussian.flow(x, at_min, at_max)
    np.testing.assert_allclose(found.latent / scale, latent / scale, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found.nfe, 1)
    np.testing.assert_array_equal(np.isnan(found.solver_error), True)  # Euler embeds no other


def test_two_steps_are_exact_for_an_image_sized_gaussian_of_low_rank():
    """28 x 28 in float32: five principal components and one variance for the rest, a score in closed form."""
    rng, d, sde = np.random.default_rng(0), 784, sdes.vp()
    vectors = np.linalg.qr(rng.standard_normal((d, 5)))[0].T
    variances, rest = np.array([60.0, 20.0, 9.0, 4.0, 1.0]), 0.02
    arrays = (rng.standard_normal((28, 28)), vectors, variances, rest)
    gaussian = whiten.Gaussian(*(jnp.asarray(a, jnp.float32) for a in arrays))
    numpy_mean = np.asarray(arrays[0]).ravel()

    def noised_logp(x, alpha, sigma):
        alpha, sigma = jnp.reshape(alpha, (-1, 1)), jnp.reshape(sigma, (-1, 1))
        z = x.reshape(len(x), d) - alpha * gaussian.mean.ravel()
        along = jnp.matmul(z, gaussian.vectors.T)
        inside, outside = alpha**2 * gaussian.variances + sigma**2, alpha**2 * rest + sigma**2
        square = (
            jnp.sum(along**2 * (1 / inside - 1 / outside), 1) + jnp.sum(z**2, 1) / outside[:, 0]
        )
        log_det = jnp.sum(jnp.log(2 * jnp.pi * inside), 1)
        return -0.5 * (square + log_det + (d - 5) * jnp.log(2 * jnp.pi * outside[:, 0]))

    true = Gaussian(numpy_mean, vectors.T * (variances - rest) @ vectors + rest * np.eye(d))
    x = rng.multivariate_normal(true.mean, true.covariance, 3).astype(np.float32)
    run = solver(
        sde,
        noised_logp,
        trace="gaussian",
        n_probes=2,
        whiten=gaussian,
        solver="heun",
        n_steps=2,
    )
    found = run(keys(3), jnp.asarray(x.reshape(3, 28, 28)))
    bits = d * np.log(2)
    np.testing.assert_allclose(found.logp / bits, true.logp(x, ends(sde)[0]) / bits, atol=1e-5)
    assert np.all(found.probe_stderr / bits < 1e-5)
    assert np.all(np.abs(found.solver_error) / bits < 1e-5)


CORRELATED = np.array([[0.7, 0.5], [0.5, 0.6]])
WHITENINGS = {
    "none": None,
    "isotropic": ([0.2, 0.1], np.zeros((0, 2)), [], 0.6),
    "diagonal": ([0.2, 0.1], np.zeros((0, 2)), [], [0.9, 0.4]),
    "covariance": ([0.2, 0.1], np.linalg.eigh(CORRELATED)[1].T, np.linalg.eigh(CORRELATED)[0], 1.0),
}


def whitening(name):
    arrays = WHITENINGS[name]
    return arrays and whiten.Gaussian(*(jnp.asarray(a, float) for a in arrays))


def test_every_whitening_gives_the_log_density_of_a_mixture_its_terms_and_its_latent(x64):
    """The Gaussian is not the mixture's own: with the exact trace all solve the same ODE."""
    sde, density = sdes.vp(), exact.mixture(*MIXTURE)
    x = jnp.asarray([[-1.0, 0.5], [1.2, -0.4], [0.0, 0.0], [1.5, 0.5]])
    alpha, sigma = (jnp.asarray(c) for c in ends(sde)[0])
    by_name = {
        name: solver(sde, density, whiten=whitening(name), rtol=1e-8, atol=1e-8)(keys(4), x)
        for name in WHITENINGS
    }
    for found in by_name.values():
        np.testing.assert_allclose(found.logp, density(x, alpha, sigma), atol=2e-6)
        for field in ("prior", "volume", "latent"):
            np.testing.assert_allclose(
                getattr(found, field), getattr(by_name["none"], field), atol=2e-6
            )
        np.testing.assert_array_equal(found.probe_stderr, 0.0)
        np.testing.assert_allclose(found.logp, found.prior + found.volume, rtol=1e-12)


def stretched(name):
    """A whitening of the plane for pairs of coordinates in 16 dimensions."""
    if name == "none":
        return None
    mean, vectors, variances, rest = (np.asarray(a, float) for a in WHITENINGS[name])
    rest = np.tile(rest, 8) if rest.ndim else rest
    arrays = (np.tile(mean, 8), np.kron(np.eye(8), vectors), np.tile(variances, 8), rest)
    if not len(vectors):
        arrays = (arrays[0], np.zeros((0, 16)), [], rest)
    return whiten.Gaussian(*(jnp.asarray(a, float) for a in arrays))


@pytest.mark.parametrize(
    ("name", "trace"),
    [
        ("none", "gaussian"),
        ("isotropic", "rademacher"),
        ("diagonal", "gaussian"),
        ("covariance", "rademacher"),
        ("covariance", "gaussian"),
    ],
)
def test_every_estimated_trace_is_unbiased_and_its_standard_error_calibrated(name, trace):
    """Eight independent pairs of coordinates, 400 keys of 64 probes: of the z-scores 5 % are beyond Student's 2.0.

    That share has a standard error of 1.1 %, and the ratio of the spreads one of 1 / sqrt(800);
    allowed are 4.
    """

    def pairs(x, alpha, sigma):
        alpha, sigma = (jnp.repeat(jnp.broadcast_to(c, len(x)), 8) for c in (alpha, sigma))
        logp = exact.mixture(*MIXTURE)(x.reshape(-1, 2), alpha, sigma)
        return jnp.sum(logp.reshape(-1, 8), axis=1)

    sde, x = sdes.vp(), jnp.linspace(-0.5, 0.5, 16)[None]
    options = dict(whiten=stretched(name), solver="euler", n_steps=20)
    run = lambda **more: solver(sde, pairs, **options, **more)
    true = run()(keys(1), x).logp
    found = run(trace=trace, n_probes=64)(keys(400), jnp.tile(x, (400, 1)))
    assert_mean(found.logp, true)
    z = (np.asarray(found.logp) - np.asarray(true)) / np.asarray(found.probe_stderr)
    assert abs(np.mean(np.abs(z) > 2.0) - 0.05) < 0.044
    spread = np.std(found.logp) / np.sqrt(np.mean(np.square(found.probe_stderr)))
    np.testing.assert_allclose(spread, 1.0, atol=4 / np.sqrt(800))


def test_one_probe_has_no_standard_error_and_the_exact_trace_none_to_have():
    x = jnp.asarray(X[:2], jnp.float32)
    stderr = lambda trace: np.asarray(
        solver(sdes.vp(), noised(), solver="euler", n_steps=2, trace=trace)(keys(2), x).probe_stderr
    )
    assert set(TRACES) == {"rademacher", "gaussian", "exact"}
    np.testing.assert_array_equal(np.isnan(stderr("gaussian")), True)
    np.testing.assert_array_equal(stderr("exact"), 0.0)


def test_the_probes_that_see_only_the_rest_of_the_divergence_vary_less():
    """The mixture of two near parts, whose flow is nearly its Gaussian's: of the variance, a hundredth remains."""
    parts = (np.array([0.5, 0.5]), np.array([[-0.2, -0.2], [0.2, 0.2]]), 0.3)
    covariance = 0.09 * np.eye(2) + 0.04 * np.ones((2, 2))
    x = jnp.tile(jnp.asarray([[0.1, -0.3]]), (200, 1))

    def spread(gaussian):
        run = solver(
            sdes.vp(),
            exact.mixture(*parts),
            trace="gaussian",
            whiten=gaussian,
            solver="heun",
            n_steps=16,
        )
        return np.std(run(keys(200), x).volume)

    assert spread(fitted(Gaussian(np.zeros(2), covariance))) < 0.1 * spread(None)


@pytest.mark.parametrize(
    "options", [dict(solver="dopri5", n_steps=24), dict(solver="adams4", n_steps=60)]
)
def test_the_solver_error_has_the_size_of_the_error(x64, options):
    """On 40 points of the mixture, within a factor of 10 either way of the root mean square."""
    sde, rng = sdes.vp(), np.random.default_rng(0)
    weights, means, std = MIXTURE
    x = means[rng.choice(2, 40, p=weights)] + std * rng.standard_normal((40, 2))
    run = solver(sde, exact.mixture(*MIXTURE), whiten=whitening("covariance"), **options)
    found = run(keys(40), jnp.asarray(x))
    alpha, sigma = ends(sde)[0]
    error = found.logp - exact.mixture(*MIXTURE)(
        jnp.asarray(x), jnp.asarray(alpha), jnp.asarray(sigma)
    )
    rms = lambda a: float(jnp.sqrt(jnp.mean(jnp.square(a))))
    assert 0.1 < rms(found.solver_error) / rms(error) < 10, (rms(found.solver_error), rms(error))
