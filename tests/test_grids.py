"""Grids: their ends, the density they give to t, and stratified times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SDES, coefficients
from scipy.special import logit
from scipy.stats import truncnorm

from score_jax import grids
from score_jax import sde as sdes

GRIDS = {
    "uniform": grids.uniform,
    "log_snr": grids.log_snr,
    "quadratic": grids.quadratic,
    "power": grids.power,
    "log_normal": grids.log_normal,
    "logit_normal": grids.logit_normal,
}
N = 4000
MIDPOINTS = (np.arange(N) + 0.5) / N


def times(grid, u):
    """One program: op by op there would be dozens."""
    return jax.jit(grid)(jnp.asarray(u))


def times_and_rates(grid, u):
    return jax.jit(lambda u: grids.time_and_rate(grid, u))(jnp.asarray(u))


@pytest.fixture(params=GRIDS)
def make(request):
    return GRIDS[request.param]


def test_a_grid_falls_from_t_max_to_t_min(x64, sde, make):
    t = times(make(sde), jnp.linspace(0.0, 1.0, 101))
    np.testing.assert_allclose([t[0], t[-1]], [sde.t_max, sde.t_min], rtol=1e-9, atol=1e-12)
    assert np.all(np.diff(t) < 0)


@pytest.mark.parametrize("make", [grids.uniform, grids.log_snr, grids.quadratic, grids.power])
def test_the_integral_over_time_is_the_mean_under_the_grid_over_its_density(x64, sde, make):
    """With h = 3 t^2, whose integral is t_max^3 - t_min^3; the midpoint rule in u is of order 2.

    Not for log_normal and logit_normal, which all but never come near the ends.
    """
    t, dt_du = times_and_rates(make(sde), MIDPOINTS)
    found = jnp.mean(3 * t**2 * -dt_du)
    np.testing.assert_allclose(found, sde.t_max**3 - sde.t_min**3, rtol=1e-4)


def log_sigma(sde, t):
    alpha, sigma = np.array(coefficients(sde, t)).T
    return np.log(sigma / alpha)


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("edm", 0.5, 2.0), *((name, -1.2, 1.2) for name in SDES)]
)
def test_log_normal_times_have_a_normal_log_sigma_cut_off_at_the_ends(x64, name, mean, std):
    """The share 1 - u of times is below grid(u): its normal probability between the ends, over that of both."""
    sde, u = SDES[name](), np.linspace(0, 1, 201)
    found = log_sigma(sde, times(grids.log_normal(sde, mean, std), u))
    low, high = log_sigma(sde, [sde.t_min, sde.t_max])
    law = truncnorm((low - mean) / std, (high - mean) / std, mean, std)
    # by the tail that has digits to compare
    np.testing.assert_allclose(law.cdf(found)[100:], 1 - u[100:], rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(law.sf(found)[:100], u[:100], rtol=1e-8, atol=1e-14)


def test_edms_training_times_have_mean_minus_1_2_and_std_1_2_in_log_sigma(x64):
    """Table 1 of arXiv 2206.00364; the ends, 4.2 and 4.7 std away, take less than 0.1 % from the std."""
    log_t = np.log(times(grids.log_normal(sdes.edm()), MIDPOINTS))
    np.testing.assert_allclose([log_t.mean(), log_t.std()], [-1.2, 1.2], rtol=1e-3)


@pytest.mark.parametrize("name", ["edm", "linear", "ddpm"])
def test_log_normal_keeps_float32_digits_in_both_tails(name):
    """Against float64 at the same u: log sigma within the roundings of log-SNR and of t."""
    sde = SDES[name]()
    u = np.concatenate([np.geomspace(1e-7, 0.1, 50), 1 - np.geomspace(1e-7, 0.9, 50), [0.0, 1.0]])
    u = u.astype(np.float32)
    found = times(grids.log_normal(sde), u)
    assert found.dtype == jnp.float32
    with jax.enable_x64(True):
        sde = SDES[name]()
        true = times(grids.log_normal(sde), np.asarray(u, float))
        rate = np.abs(jax.jit(lambda t: sdes.log_snr_rate(sde, t))(true))
    rounding = 2e-5 + rate * np.spacing(np.asarray(true, np.float32))
    assert np.all(np.abs(found - np.asarray(true)) * rate < rounding)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.7, 2.5)])
def test_logit_normal_times_have_a_normal_logit_cut_off_at_the_ends(x64, mean, std):
    """The law of Esser et al. 2024, eq. 19, on flow matching's time axis, inside its ends."""
    sde, u = sdes.linear(0.02, 0.99), np.linspace(0, 1, 201)
    t = times(grids.logit_normal(sde, mean, std), u)
    low, high = (logit([0.02, 0.99]) - mean) / std
    law = truncnorm(low, high, mean, std)
    np.testing.assert_allclose(law.cdf(logit(t))[100:], 1 - u[100:], rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(law.sf(logit(t))[:100], u[:100], rtol=1e-8, atol=1e-14)


def test_logit_normal_is_log_normal_in_sigma_over_alpha_on_flow_matchings_path(x64):
    sde, u = sdes.linear(), jnp.linspace(0, 1, 21)
    found, other = (
        times(grid(sde, 0.3, 1.4), u) for grid in (grids.logit_normal, grids.log_normal)
    )
    np.testing.assert_allclose(found, other, rtol=1e-9)


@pytest.mark.parametrize("name", ["vp", "ve", "edm"])
def test_logit_normal_stretches_its_interval_over_other_time_axes(x64, name):
    """The default linear SDE spans [0.001, 0.999]; the edm SDE, from 0.002, only the upper end."""
    sde = SDES[name]()
    t = times(grids.logit_normal(sde, 0.4), jnp.linspace(0, 1, 11))
    low, high = max(sde.t_min, 1e-3), min(sde.t_max, 0.999)
    standard = times(grids.logit_normal(sdes.linear(low, high), 0.4), jnp.linspace(0, 1, 11))
    share = (standard - low) / (high - low)
    expected = sde.t_min + (sde.t_max - sde.t_min) * share
    np.testing.assert_allclose(t, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["vp", "linear"])
def test_logit_normal_keeps_float32_digits_in_both_tails(name):
    """Against float64 at the same u: the law's own t, before the stretch, to 5e-6 of its distance to 0 and to 1.

    With the roundings of t.
    """
    u = np.concatenate([np.geomspace(1e-7, 0.1, 50), 1 - np.geomspace(1e-7, 0.9, 50), [0.0, 1.0]])
    u = u.astype(np.float32)
    found = times(grids.logit_normal(SDES[name]()), u)
    assert found.dtype == jnp.float32
    with jax.enable_x64(True):
        true = np.asarray(times(grids.logit_normal(SDES[name]()), np.asarray(u, float)))
    # both SDEs end, or are stretched from, 0.001 and 0.999
    share = (true - true.min()) / (true.max() - true.min())
    law = 0.001 + 0.998 * share
    rounding = 5e-6 * np.minimum(law, 1 - law) + 2 * np.spacing(np.float32(true))
    assert np.all(np.abs(found - true) < rounding)


@pytest.mark.parametrize(
    ("name", "make"),
    [("vp", grids.log_normal), ("vp", grids.logit_normal), ("ve", grids.log_normal)],
)
def test_an_end_out_of_float32s_reach_is_stopped_short_of(name, make):
    """At std 0.1 both ends lie 39 std and more from the mean."""
    sde = SDES[name]()
    t, dt_du = times_and_rates(make(sde, 0.0, 0.1), jnp.array([0.0, 0.5, 1.0]))
    assert np.all(np.isfinite(dt_du))
    assert sde.t_min < t[2] < t[1] < t[0] < sde.t_max


@pytest.mark.parametrize(
    ("name", "make"), [*((name, grids.log_normal) for name in SDES), ("vp", grids.logit_normal)]
)
def test_the_rate_of_a_normal_grid_is_its_slope(x64, name, make):
    """Central differences, off DDPM's kinks and on both sides of where the tails meet."""
    grid, h = make(SDES[name]()), 1e-7
    u = jnp.array([1e-3, 0.0437, 0.31, 0.5, 0.77, 0.957, 0.999])
    t, dt_du = times_and_rates(grid, u)
    below, at, above = times(grid, jnp.stack([u - h, u, u + h]))
    np.testing.assert_allclose(t, at, rtol=1e-12)
    np.testing.assert_allclose(dt_du, (above - below) / (2 * h), rtol=1e-5)


def test_the_uniform_grid_ends_at_t_min_in_float32(sde):
    np.testing.assert_array_equal(
        grids.uniform(sde)(jnp.array([0.0, 1.0])), np.float32([sde.t_max, sde.t_min])
    )


def test_the_log_snr_grid_spends_equal_log_snr_on_equal_u(x64, sde):
    t, dt_du = times_and_rates(grids.log_snr(sde), MIDPOINTS)
    largest, smallest = sdes.log_snr_ends(sde)
    g2_over_sigma2 = sdes.diffusion(sde, t) ** 2 / sde.sigma(t) ** 2
    np.testing.assert_allclose(g2_over_sigma2 * -dt_du, largest - smallest, rtol=1e-9)
    np.testing.assert_allclose(sdes.log_snr_rate(sde, t), g2_over_sigma2, rtol=1e-9)


def test_the_power_grid_is_karras_noise_levels_under_ve(x64):
    """sigma_i of arXiv 2206.00364, eq. 5, for its sigma_min = 0.002, sigma_max = 80, rho = 7, N = 18."""
    sde, n, rho = sdes.ve(0.002, 80.0), 18, 7.0
    sigma = sde.sigma(grids.power(sde, rho)(jnp.arange(n) / (n - 1)))
    i = np.arange(n)
    a, b = 80 ** (1 / rho), 0.002 ** (1 / rho)
    np.testing.assert_allclose(sigma, (a + i / (n - 1) * (b - a)) ** rho, rtol=1e-9)


def test_the_quadratic_grid_is_ddims_sub_sequence(x64):
    """tau_i = c i^2 of arXiv 2010.02502, appendix D.2, counted from the data, where t_min is 0."""
    sde, n = sdes.ve(), 10
    t = grids.quadratic(sde)(jnp.linspace(0.0, 1.0, n + 1))
    np.testing.assert_allclose(t[::-1], (np.arange(n + 1) / n) ** 2, atol=1e-12)
    edm = sdes.edm()
    u = jnp.linspace(0.0, 1.0, 7)
    np.testing.assert_allclose(grids.quadratic(edm)(u), grids.power(edm, 2.0)(u), rtol=1e-9)


def test_a_piecewise_grid_visits_its_log_snrs_and_the_ends(x64, sde):
    largest, smallest = sdes.log_snr_ends(sde)
    values = [-99.0, -2.0, 1.0, 1.5, 99.0]
    grid = grids.piecewise(values)(sde)
    found = times(lambda u: sdes.log_snr(sde, grid(u)), jnp.linspace(0.0, 1.0, 9))
    expected = [
        smallest,
        (smallest - 2) / 2,
        -2.0,
        -0.5,
        1.0,
        1.25,
        1.5,
        (1.5 + largest) / 2,
        largest,
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_reverse_walks_the_same_grid_upwards(x64, sde, make):
    u = jnp.linspace(0.0, 1.0, 11)
    upwards, grid = jax.jit(lambda u: (grids.reverse(make(sde))(u), make(sde)(u)))(u)
    np.testing.assert_allclose(upwards, grid[::-1], rtol=1e-9, atol=1e-12)


def test_stratified_points_fall_one_in_each_stratum():
    """One in each of n cells, counted from the offset: sorted, they are 1 / n apart around the circle."""
    n = 16
    position = jnp.arange(n) / n
    draw = jax.vmap(lambda key: grids.stratified(key, position))
    u = np.sort(draw(jax.random.split(jax.random.key(0), 500)), axis=1)
    assert u.min() >= 0
    assert u.max() < 1
    np.testing.assert_allclose(np.diff(u, axis=1), 1 / n, atol=1e-6)


def test_each_stratified_point_alone_is_uniform():
    """500 draws of one position: Kolmogorov-Smirnov distance under 1.95 / sqrt(500), its 0.1 % point."""
    keys = jax.random.split(jax.random.key(1), 500)
    u = np.sort(jax.vmap(lambda key: grids.stratified(key, jnp.array([0.375])))(keys)[:, 0])
    assert np.max(np.abs(u - (np.arange(500) + 0.5) / 500)) < 1.95 / np.sqrt(500)
