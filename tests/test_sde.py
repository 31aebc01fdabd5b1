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


COSINE_RATE, COSINE_S = np.pi / 2 / 1.008, 0.008
BETAS = 1e-4 + np.arange(1000) * (0.02 - 1e-4) / 999


def cosine_beta(t):
    """-d log alpha^2 / dt of arXiv 2102.09672, eq. 17."""
    return 2 * COSINE_RATE * np.tan(COSINE_RATE * (t + COSINE_S))


def ddpm_beta(t):
    """The noise rate at which a thousandth of time takes alpha^2 down by the factor 1 - beta."""
    return -1000 * np.log1p(-BETAS[np.minimum(np.asarray(1000 * t).astype(int), 999)])


# f and g as printed in arXiv 2011.13456 and 2206.00364 (edm) and, for the linear path, from d(1 -
# t) and t dt
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
    "edm": (lambda t: 0.0 * t, lambda t: np.sqrt(2 * t)),
    "cosine": (lambda t: -0.5 * cosine_beta(t), lambda t: np.sqrt(cosine_beta(t))),
    "ddpm": (lambda t: -0.5 * ddpm_beta(t), lambda t: np.sqrt(ddpm_beta(t))),
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


@pytest.mark.parametrize("name", [name for name in SDES if name != "ddpm"])
def test_alpha_and_sigma_solve_the_moment_equations_of_the_papers_sde(x64, name):
    """dm/dt = f m and dv/dt = 2 f v + g^2, from m = 1 and v = 0 (VE: sigma_min^2) at t = 0.

    DDPM's thousand kinks are not for an adaptive solver; its alpha is held against its betas below.
    """
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
    """Its mean and variance at n steps are an exact recursion in the package's f and g.

    The end is the golden section, so that the steps fall evenly on both sides of DDPM's 618 kinks.
    """
    middle = 0.618 * sde.t_max
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
    moving = coarse > 1e-12  # without drift and on the linear path the mean is exact
    np.testing.assert_allclose(coarse[moving] / fine[moving], 2.0, rtol=0.05)


@pytest.mark.parametrize("betas", [BETAS, np.array([0.3, 0.01, 0.999, 0.2])], ids=["ddpm", "any"])
def test_alpha_of_betas_is_their_running_product_and_log_linear_between(x64, betas):
    """alpha_bar of arXiv 2006.11239, and the square root of its neighbours' product half-way; sigma^2 is the rest."""
    sde, n = sdes.of_betas(betas), len(betas)
    product = np.append(1.0, np.cumprod(1 - betas))
    halves = np.sqrt(product[1:] * product[:-1])
    alpha2 = np.concatenate([product[1:], halves, product[:1]])
    t = np.concatenate([np.arange(1, n + 1), np.arange(n) + 0.5, [0.0]]) / n
    np.testing.assert_allclose(sde.alpha(jnp.asarray(t)) ** 2, alpha2, rtol=1e-11)
    np.testing.assert_allclose(sde.sigma(jnp.asarray(t)) ** 2, 1 - alpha2, rtol=1e-11)
    log_snr = np.log(alpha2[:-1] / (1 - alpha2[:-1]))
    np.testing.assert_allclose(sde.time_of_log_snr(jnp.asarray(log_snr)), t[:-1], rtol=1e-9)


def test_ddpm_is_of_its_betas_and_keeps_their_digits_in_float32(x64):
    t = np.append(np.geomspace(1e-5, 1e-3, 20), np.arange(1, 1001) / 1000)
    exact = sdes.of_betas(BETAS)
    double = jnp.asarray(t)
    np.testing.assert_allclose(sdes.ddpm().alpha(double), exact.alpha(double), rtol=1e-14)
    single = jnp.asarray(t, jnp.float32)
    true = exact.sigma(jnp.asarray(single, jnp.float64))
    assert sdes.ddpm().sigma(single).dtype == jnp.float32
    np.testing.assert_allclose(sdes.ddpm().sigma(single), true, rtol=1e-6)


def test_the_cosine_schedule_is_its_papers_and_keeps_its_digits_in_float32(x64):
    """alpha^2 = f(t) / f(0), f the squared cosine of arXiv 2102.09672, eq. 17; sigma^2 = 1 - alpha^2."""
    sde = sdes.cosine()
    t = np.append(np.geomspace(2.5e-5, 0.1, 20), np.linspace(0.1, 0.999, 20))
    f = lambda t: np.cos((t + COSINE_S) / (1 + COSINE_S) * np.pi / 2) ** 2
    np.testing.assert_allclose(sde.alpha(jnp.asarray(t)) ** 2, f(t) / f(0), rtol=1e-11)
    np.testing.assert_allclose(sde.sigma(jnp.asarray(t)) ** 2, 1 - f(t) / f(0), rtol=1e-9)
    single = jnp.asarray(t, jnp.float32)
    for fn in (sde.alpha, sde.sigma):
        assert fn(single).dtype == jnp.float32
        np.testing.assert_allclose(fn(single), fn(jnp.asarray(single, jnp.float64)), rtol=1e-6)


def test_ves_noise_at_equally_spaced_times_is_smlds_geometric_sequence(x64):
    """sigma_1 ... sigma_N with a common ratio from sigma_min to sigma_max (arXiv 2011.13456, appendix C)."""
    n = 232
    sigma = sdes.ve(0.01, 50.0).sigma(jnp.arange(n) / (n - 1))
    np.testing.assert_allclose(sigma, np.geomspace(0.01, 50.0, n), rtol=1e-12)


def test_edms_time_is_its_noise_level(x64):
    sde, t = sdes.edm(0.01, 20.0), jnp.array([0.01, 3.0, 20.0])
    assert (sde.t_min, sde.t_max) == (0.01, 20.0)
    np.testing.assert_array_equal(sde.sigma(t), t)
    np.testing.assert_array_equal(sde.alpha(t), 1.0)


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
    # to one rounding: beside its own derivative XLA divides by a constant in another way
    np.testing.assert_allclose(alpha, sde.alpha(t), rtol=5e-16)
    np.testing.assert_allclose(sigma, sde.sigma(t), rtol=5e-16)
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
