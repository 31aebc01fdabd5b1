"""Grids: their ends, the density they give to t, and stratified times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax import grids
from score_jax import sde as sdes

GRIDS = {"uniform": grids.uniform, "log_snr": grids.log_snr, "power": grids.power}
N = 4000
MIDPOINTS = (np.arange(N) + 0.5) / N


@pytest.fixture(params=GRIDS)
def make(request):
    return GRIDS[request.param]


def test_a_grid_falls_from_t_max_to_t_min(x64, sde, make):
    t = make(sde)(jnp.linspace(0.0, 1.0, 101))
    np.testing.assert_allclose([t[0], t[-1]], [sde.t_max, sde.t_min], rtol=1e-9, atol=1e-12)
    assert np.all(np.diff(t) < 0)


def test_the_integral_over_time_is_the_mean_under_the_grid_over_its_density(x64, sde, make):
    """With h = 3 t^2, whose integral is t_max^3 - t_min^3; the midpoint rule in u is of order 2."""
    t, dt_du = grids.time_and_rate(make(sde), jnp.asarray(MIDPOINTS))
    found = jnp.mean(3 * t**2 * -dt_du)
    np.testing.assert_allclose(found, sde.t_max**3 - sde.t_min**3, rtol=1e-4)


def test_the_log_snr_grid_spends_equal_log_snr_on_equal_u(x64, sde):
    t, dt_du = grids.time_and_rate(grids.log_snr(sde), jnp.asarray(MIDPOINTS))
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


def test_reverse_walks_the_same_grid_upwards(x64, sde, make):
    u = jnp.linspace(0.0, 1.0, 11)
    grid = make(sde)
    np.testing.assert_allclose(grids.reverse(grid)(u), grid(u)[::-1], rtol=1e-9, atol=1e-12)


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
