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


def plateaus(n):
    """Errors [n, 32] of which a random stretch is 3 to 9 decades above the rest, and one such by hand."""
    rng = np.random.default_rng(0)
    sizes = np.exp(0.5 * rng.standard_normal((n, 32)))
    for size in sizes:
        start, stop = np.sort(rng.choice(33, 2, replace=False))
        size[start:stop] *= 10 ** rng.uniform(3, 9)
    return np.append(sizes, [[1e-8] * 24 + [1.0] * 8], axis=0)


def log_snr_on(u, sde, values):
    return sdes.log_snr(sde, jax.vmap(steps.smooth(values)(sde))(u))


def test_a_found_grid_has_no_jump_of_density_and_two_derivatives_whatever_the_errors(x64):
    """Its parts grow by little more than e, and the spline needs no bound: its curvature has no jump."""
    sde = sdes.edm()
    found = np.array([steps.log_snrs(sde, size[None]) for size in plateaus(100)])
    parts = np.diff(found)
    assert np.max(np.abs(np.diff(np.log(parts)))) < 1.5
    assert np.median(parts.max(1) / parts.min(1)) > 4
    knots, h = np.arange(1, 10) / 10, 1e-3
    u = jnp.asarray(knots[:, None] + h * np.arange(-4, 5)).ravel()
    values = jax.jit(jax.vmap(lambda values: log_snr_on(u, sde, values)))(jnp.asarray(found))
    second = np.diff(values.reshape(-1, 9, 9), 2) / h**2
    # a cubic's second derivative is linear: continued from either side it must meet at the knot
    left = 2 * second[..., 2] - second[..., 1]
    right = 2 * second[..., 4] - second[..., 5]
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-4 * np.max(np.abs(second)))


@pytest.mark.parametrize("found", [True, False], ids=["found", "any"])
def test_a_smooth_grid_never_goes_backwards(x64, found):
    """Nowhere is it flatter than a fifth of the flattest line between its values, even if those jump."""
    sde = sdes.edm()
    largest, smallest = sdes.log_snr_ends(sde)
    if found:
        values = np.array([steps.log_snrs(sde, size[None]) for size in plateaus(100)])
    else:
        parts = 10 ** np.random.default_rng(1).uniform(-3, 0, (100, 10))
        mass = np.append(np.zeros((100, 1)), np.cumsum(parts, 1), 1) / parts.sum(1, keepdims=True)
        values = smallest + (largest - smallest) * mass
    u = jnp.linspace(0.0, 1.0, 1001)
    dense = jax.jit(jax.vmap(lambda values: log_snr_on(u, sde, values)))(jnp.asarray(values))
    slopes, lines = 1000 * np.diff(dense), 10 * np.diff(values)
    assert np.all(slopes.min(1) > 0.2 * (1 - 1e-6) * lines.min(1))


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
