"""Latent codes of Gaussian data against the closed-form flow map, there and back, and the great circle between two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, coefficients

from score_jax import exact, latents
from score_jax.types import Prediction

TIGHT = dict(rtol=1e-7, atol=1e-7)


def perfect(sde):
    return exact.predictor(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))


def test_codes_are_the_flow_maps_and_lead_back(x64, sde):
    """At tolerance 1e-7 both ways; the codes are in units of the noise at t_max."""
    x = jax.random.normal(jax.random.key(0), (3, 2))
    c_min, c_max = coefficients(sde, [sde.t_min, sde.t_max])

    @jax.jit
    def there_and_back(x):
        code = latents.encode(sde, perfect(sde), x, **TIGHT)
        return code, latents.decode(sde, perfect(sde), code.y, **TIGHT)

    code, back = there_and_back(x)
    assert np.all(code.ok) and np.all(back.ok) and code.nfe.shape == (3,)
    expected = GAUSSIAN.flow(x, c_min, c_max)
    np.testing.assert_allclose(code.y / c_max[1], expected / c_max[1], atol=1e-5)
    np.testing.assert_allclose(back.y, x, atol=1e-5)


def test_a_code_is_made_with_its_label(x64, sde):
    """Under a prediction that is x0 = label: x_t = alpha label + sigma eps keeps its eps."""
    label, x = jnp.array([1.0, -2.0]), jnp.array([[0.5], [0.7]])

    def predict(x, t, label):
        x0 = jnp.broadcast_to(label[:, None], x.shape)
        return Prediction(x0=x0, eps=(x - sde.alpha(t)[:, None] * x0) / sde.sigma(t)[:, None])

    (alpha, sigma), (alpha_max, sigma_max) = coefficients(sde, [sde.t_min, sde.t_max])
    code = latents.encode(sde, predict, x, label, solver="dopri5", **TIGHT)
    eps = (x - alpha * label[:, None]) / sigma
    expected = alpha_max * label[:, None] + sigma_max * eps
    np.testing.assert_allclose(code.y, expected, rtol=1e-4)


A, B = jnp.array([[3.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 1.0], [-1.0, 1.0]])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_slerp_turns_at_a_constant_rate_and_its_norm_goes_linearly(x64, share):
    """From two pairs at right angles, as angles in the plane."""
    found = latents.slerp(A.astype(float), B.astype(float), share)
    norm = np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(norm, [3 - 2 * share, np.sqrt(2)], rtol=1e-12)
    angle = np.arctan2(found[:, 1], found[:, 0])
    quarter = np.pi / 2
    np.testing.assert_allclose(angle, [share * quarter, (0.5 + share) * quarter], atol=1e-12)


def test_slerp_of_neighbours_is_the_line_between_them_and_of_equals_themselves():
    """In float32, where arccos of the cosine would lose an angle of 1e-4; a share for each sample."""
    a = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
    share = jnp.array([0.1, 0.5, 0.9])
    near = a + 1e-4 * jax.random.normal(jax.random.key(1), a.shape)
    line = a + share[:, None, None, None] * (near - a)
    np.testing.assert_allclose(latents.slerp(a, near, share), line, atol=2e-6)
    np.testing.assert_allclose(latents.slerp(a, a, share), a, rtol=1e-5)
