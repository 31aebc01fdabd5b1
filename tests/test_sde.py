"""SDEs: drift, diffusion and marginals against the papers' formulas and against each other."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SDES
from scipy.integrate import solve_ivp
from scipy.stats import norm

from score_jax import sde as sdes

BETA_MIN, BETA_MAX, SIGMA_MIN, SIGMA_MAX = 0.1, 20.0, 1e-3, 50.0


def beta(t):
    return BETA_MIN + t * (BETA_MAX - BETA_MIN)


def beta_integral(t):
    return BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t**2


# f and g as printed in arXiv 2011.13456 and, for the linear path, from d(1 - t) and t dt
PAPERS = {
    "vp": (lambda t: -0.5 * beta(t), lambda t: np.sqrt(beta(t))),
    "sub_vp": (
        lambda t: -0.5 * beta(t),
        lambda t: np.sqrt(beta(t) * -np.expm1(-2 * beta_integral(t))),
    ),
    "ve": (
        lambda t: 0.0 * t,
        lambda t: (
            SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** t * np.sqrt(2 * np.log(SIGMA_MAX / SIGMA_MIN))
        ),
    ),
    "linear": (lambda t: -1 / (1 - t), lambda t: np.sqrt(2 * t / (1 - t))),
}


@pytest.mark.parametrize("name", SDES)
def test_drift_and_diffusion_are_the_papers_formulas(x64, name):
    sde = SDES[name]()
    t = jnp.linspace(sde.t_min, sde.t_max, 1001)
    f, g = PAPERS[name]
    np.testing.assert_allclose(sdes.drift(sde, t), f(np.asarray(t)), rtol=1e-12)
    np.testing.assert_allclose(sdes.diffusion(sde, t), g(np.asarray(t)), rtol=1e-12)


@pytest.mark.parametrize("name", SDES)
def test_drift_and_diffusion_keep_float32_digits_down_to_t_min(name):
    sde = SDES[name]()
    t = jnp.geomspace(max(sde.t_min, 1e-5), sde.t_max, 200)
    assert t.dtype == jnp.float32
    f, g = PAPERS[name]
    exact_t = np.asarray(t, np.float64)
    np.testing.assert_allclose(sdes.drift(sde, t), f(exact_t), rtol=1e-5)
    np.testing.assert_allclose(sdes.diffusion(sde, t), g(exact_t), rtol=1e-5)


@pytest.mark.parametrize("name", SDES)
def test_alpha_and_sigma_solve_the_moment_equations_of_the_papers_sde(x64, name):
    """dm/dt = f m and dv/dt = 2 f v + g^2, from m = 1 and v = 0 (VE: sigma_min^2) at t = 0."""
    sde = SDES[name]()
    f, g = PAPERS[name]
    t = np.linspace(0, sde.t_max, 12)[1:]
    right_side = lambda t, y: [f(t) * y[0], 2 * f(t) * y[1] + g(t) ** 2]
    start = [1.0, SIGMA_MIN**2 if name == "ve" else 0.0]
    moments = solve_ivp(
        right_side, (0, sde.t_max), start, "DOP853", t_eval=t, rtol=1e-11, atol=1e-14
    )
    mean, variance = moments.y
    np.testing.assert_allclose(sde.alpha(jnp.asarray(t)), mean, rtol=1e-8)
    np.testing.assert_allclose(sde.sigma(jnp.asarray(t)) ** 2, variance, rtol=1e-8)


def test_the_moments_of_euler_maruyama_forwards_converge_to_the_marginals_at_order_one(x64, sde):
    """Its mean and variance at n steps are an exact recursion in the package's f and g."""
    middle = 0.6 * sde.t_max
    start, end = (jnp.asarray(t, float) for t in (sde.t_min, middle))
    exact = np.array([sde.alpha(end) / sde.alpha(start), sde.sigma(end) ** 2])

    def error(n):
        t = jnp.linspace(sde.t_min, middle, n + 1)[:-1]
        h = (middle - sde.t_min) / n
        mean, variance = 1.0, float(sde.sigma(start) ** 2)
        for f, g in zip(
            *map(np.asarray, (sdes.drift(sde, t), sdes.diffusion(sde, t))), strict=True
        ):
            mean, variance = mean * (1 + f * h), variance * (1 + f * h) ** 2 + g**2 * h
        return np.abs(np.array([mean, variance]) - exact) / exact

    coarse, fine = error(2000), error(4000)
    assert np.all(fine < 1e-2)
    moving = exact != [1.0, -1.0]  # VE's mean is exact
    np.testing.assert_allclose(coarse[moving] / fine[moving], 2.0, rtol=0.05)


def test_time_of_log_snr_inverts_log_snr_over_the_whole_range(x64, sde):
    t = jnp.linspace(sde.t_min, sde.t_max, 1001)
    np.testing.assert_allclose(sde.time_of_log_snr(sdes.log_snr(sde, t)), t, rtol=1e-10)


def test_time_of_log_snr_inverts_log_snr_in_float32(sde):
    """Within a few roundings of log-SNR at 14, and one of t: near t = 1 the linear path's falls by 2000 a unit of t."""
    largest, smallest = sdes.log_snr_ends(sde)
    log_snr = jnp.linspace(largest, smallest, 201)
    t = sde.time_of_log_snr(log_snr)
    rounding = 1e-5 + sdes.log_snr_rate(sde, t) * np.spacing(np.asarray(t))
    assert np.all(np.abs(sdes.log_snr(sde, t) - log_snr) < rounding)


def test_noise_at_t_min_is_about_a_thousandth_and_log_snr_is_finite_at_both_ends(sde):
    t_min = jnp.asarray(sde.t_min)
    assert 3e-4 < sde.sigma(t_min) / sde.alpha(t_min) < 3e-3
    largest, smallest = sdes.log_snr_ends(sde)
    assert jnp.isfinite(largest)
    assert jnp.isfinite(smallest)
    assert largest > smallest


def test_path_gives_the_marginals_and_their_slopes(x64, sde):
    t, h = jnp.linspace(sde.t_min, sde.t_max, 7)[1:-1], 1e-6
    alpha, sigma, d_alpha, d_sigma = sdes.path(sde, t)
    np.testing.assert_array_equal(alpha, sde.alpha(t))
    np.testing.assert_array_equal(sigma, sde.sigma(t))
    slope = lambda fn: (fn(t + h) - fn(t - h)) / (2 * h)
    np.testing.assert_allclose(d_alpha, slope(sde.alpha), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(d_sigma, slope(sde.sigma), rtol=1e-6)


def test_perturb_scales_each_example_by_its_own_time(x64, sde):
    t = jnp.array([sde.t_min, 0.3, sde.t_max])
    x0, eps = np.arange(12.0).reshape(3, 2, 2), np.arange(12.0)[::-1].reshape(3, 2, 2)
    found = sdes.perturb(sde, jnp.asarray(x0), t, jnp.asarray(eps))
    for i in range(3):
        np.testing.assert_allclose(
            found[i], float(sde.alpha(t[i])) * x0[i] + float(sde.sigma(t[i])) * eps[i]
        )


def test_the_prior_is_a_normal_of_standard_deviation_sigma(x64, sde):
    x = np.array([[[0.3], [-2.0]], [[40.0], [1.0]]])
    exact = norm.logpdf(x, scale=float(sde.sigma(jnp.asarray(sde.t_max)))).sum((1, 2))
    np.testing.assert_allclose(sdes.prior_logp(sde, jnp.asarray(x)), exact, rtol=1e-9)
