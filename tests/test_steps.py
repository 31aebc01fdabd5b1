"""The grid of a likelihood solve, found from the local errors of a few images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SDES, coefficients

from score_jax import exact, grids, steps
from score_jax import sde as sdes
from score_jax.likelihood import log_likelihood

MIXTURE = (np.array([0.2, 0.8]), np.array([[-1.0, 0.5], [1.0, -0.5]]), 0.02)


@pytest.mark.parametrize("name", ["vp", "edm", "linear"])
def test_equal_errors_leave_the_grid_uniform_in_log_snr(x64, name):
    sde = SDES[name]()
    largest, smallest = sdes.log_snr_ends(sde)
    found = steps.log_snrs(sde, np.full((3, 32), -0.1), 8)
    np.testing.assert_allclose(found, np.linspace(smallest, largest, 9), atol=1e-9)
    u = jnp.linspace(0.0, 1.0, 50)
    by_spline, uniform = (
        jax.jit(grid)(u) for grid in (steps.smooth(found)(sde), grids.log_snr(sde))
    )
    np.testing.assert_allclose(by_spline, uniform, rtol=1e-9)


def test_errors_of_c_of_u_times_h_to_the_fifth_give_a_density_of_c_to_the_fifth_root(x64):
    """With c = (1 + v)^10 in v of [0, 1] the density is (1 + v)^2, whose integral is a cube.

    What is left is the mean over three of the 200 steps.
    """
    sde = sdes.vp()
    largest, smallest = sdes.log_snr_ends(sde)
    middle = (np.arange(200) + 0.5) / 200
    found = steps.log_snrs(sde, np.array([1.0, -2.0])[:, None] * (1 + middle) ** 10, 10)
    v = np.cbrt(1 + 7 * np.linspace(0, 1, 11)) - 1
    np.testing.assert_allclose(found, smallest + v * (largest - smallest), rtol=0, atol=1e-3)
    assert all(isinstance(value, float) for value in found)


def test_a_smooth_grid_passes_through_its_values_with_two_derivatives_and_the_sdes_ends(x64):
    for name in ("vp", "ve", "edm"):
        sde = SDES[name]()
        largest, smallest = sdes.log_snr_ends(sde)
        values = smallest + (largest - smallest) * np.array([0.0, 0.1, 0.3, 0.4, 0.8, 1.0])
        knots = jnp.linspace(0.0, 1.0, 6)
        grid = steps.smooth(values.tolist())(sde)
        times = jax.jit(grid)(knots)
        np.testing.assert_allclose(sdes.log_snr(sde, times), values, atol=1e-6)
        np.testing.assert_allclose(times[jnp.array([0, 5])], [sde.t_max, sde.t_min], atol=1e-9)
    derivatives = jax.jit(jax.vmap(jax.value_and_grad(jax.grad(lambda u: -2 * jnp.log(grid(u))))))
    below, above = derivatives(knots[1:-1] - 1e-9), derivatives(knots[1:-1])
    for left, right in zip(below, above, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-4)


def test_the_found_grid_makes_a_smaller_error_on_other_points():
    """A mixture of narrow parts, whose flow turns where the parts separate: at least 3 times less in rms."""
    sde = sdes.edm(sigma_max=8.0)
    weights, means, std = MIXTURE
    predict = exact.predictor(sde, exact.mixture(*MIXTURE))
    rng = np.random.default_rng(0)
    x = jnp.asarray(means[rng.choice(2, 32, p=weights)] + std * rng.standard_normal((32, 2)))
    keys = jax.random.split(jax.random.key(0), 16)
    errors = jax.jit(lambda keys, x: steps.local_errors(keys, sde, predict, x, trace="exact"))(
        keys, x[:16]
    )
    # the parts, at a distance of 2.2, separate where sigma is about 1, far from the end at t_min
    size = np.sqrt(np.mean(np.square(errors), axis=0))
    assert np.sum(size * np.arange(32)) / np.sum(size) < 14
    found = steps.smooth(steps.log_snrs(sde, np.asarray(errors)))
    alpha, sigma = (jnp.asarray(c) for c in coefficients(sde, [sde.t_min])[0])

    def prior_logp(sde, x):
        t_max = jnp.asarray(sde.t_max)
        return exact.mixture(*MIXTURE)(x, sde.alpha(t_max), sde.sigma(t_max))

    def error(grid):
        run = jax.jit(
            lambda keys, x: log_likelihood(
                keys,
                sde,
                predict,
                x,
                grid=grid(sde),
                trace="exact",
                prior_logp=prior_logp,
                solver="tsit5",
                n_steps=8,
            )
        )
        gap = run(keys, x[16:]).logp - exact.mixture(*MIXTURE)(x[16:], alpha, sigma)
        return float(jnp.sqrt(jnp.mean(jnp.square(gap))))

    plain, better = error(grids.log_snr), error(found)
    assert better < plain / 3, (plain, better)
