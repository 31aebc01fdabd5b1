"""Thresholding: x0 stays in the data's range, and eps belongs to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax import predict, threshold
from score_jax.shapes import like
from score_jax.types import Prediction

X0 = 3 * jax.random.normal(jax.random.key(0), (4, 5, 5, 1))


def predictor(sde):
    return lambda x, t, label=None: predict.read("x0", sde, X0.astype(x.dtype), x, t)


@pytest.fixture(params=[threshold.static, threshold.dynamic])
def wrap(request):
    return request.param


def test_the_pair_stays_consistent(x64, sde, wrap):
    x, t = 2 * jnp.ones(X0.shape), sde.time_of_log_snr(jnp.linspace(-3.0, 3.0, 4))
    pair = wrap(sde, predictor(sde))(x, t)
    assert isinstance(pair, Prediction)
    alpha, sigma = like(sde.alpha(t), x), like(sde.sigma(t), x)
    np.testing.assert_allclose(alpha * pair.x0 + sigma * pair.eps, x, rtol=1e-9)
    np.testing.assert_allclose(np.abs(pair.x0).max(), 1.0, rtol=1e-12)


def test_static_clips_to_the_range(sde):
    x, t = jnp.zeros(X0.shape), jnp.full(4, 0.5)
    found = threshold.static(sde, predictor(sde))(x, t).x0
    np.testing.assert_allclose(found, np.clip(X0, -1, 1), rtol=1e-6)


@pytest.mark.parametrize("percentile", [60.0, 90.0])
def test_dynamic_divides_by_each_samples_percentile(x64, sde, percentile):
    """In numpy: s is the percentile of |x0|, x0 is clipped to [-s, s] and divided by s."""
    x, t = jnp.zeros(X0.shape), jnp.full(4, 0.5)
    found = threshold.dynamic(sde, predictor(sde), percentile=percentile)(x, t).x0
    for one, x0 in zip(found, np.asarray(X0), strict=True):
        s = np.percentile(np.abs(x0), percentile)
        assert s > 1
        np.testing.assert_allclose(one, np.clip(x0, -s, s) / s, rtol=1e-6)


def test_a_sample_whose_percentile_is_in_the_range_is_clipped_only(sde):
    """Small predictions but for one pixel: none is scaled up to the range."""
    x, t = jnp.zeros(X0.shape), jnp.full(4, 0.5)
    x0 = (0.1 * X0).at[:, 0, 0].set(9.0)
    outlier = lambda x, t, label=None: predict.read("x0", sde, x0, x, t)
    found = threshold.dynamic(sde, outlier, percentile=60.0)(x, t).x0
    np.testing.assert_allclose(found, np.clip(x0, -1, 1), rtol=1e-6)
