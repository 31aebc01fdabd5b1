"""The importance-weighted bound where log P(levels) is an integral in closed form, and noise is added by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean
from scipy.special import ndtr

from score_jax import dequantize, exact, importance, shapes
from score_jax import sde as sdes
from score_jax.types import Given

LEVELS, N = 8, 2000
PROBABILITIES = np.random.default_rng(0).dirichlet(np.full(LEVELS, 2.0), 2)
K = np.array([[1, 6]], np.uint8)


def run(n, noise=None, draw=dequantize.uniform_box, *, k=K, count=N):
    """Bounds of `count` copies of an image, under boxes blurred by noise of half a box at t_min."""
    sde = sdes.edm(sigma_min=1 / LEVELS)
    logp = exact.boxes(PROBABILITIES, np.linspace(-1, 1, LEVELS + 1))
    predictor = exact.predictor(sde, logp)
    alpha, sigma = jnp.ones(()), jnp.asarray(1 / LEVELS)

    def log_p(keys, x):
        clean = logp(x, alpha, sigma)[:, None]
        return clean if noise is None else clean + noise(keys, x)

    def fn(keys, k):
        k_probe, k_draw = shapes.fold_in(keys, 0), shapes.fold_in(keys, 1)

        def one(j):
            model = Given(sde, predictor)
            point = draw(shapes.fold_in(k_draw, j), model, k, LEVELS)
            return log_p(k_probe, point.x), point.log_weight

        return importance.bound(*jax.lax.map(one, jnp.arange(n)))

    keys = jax.random.split(jax.random.key(0), count)
    return jax.tree.map(np.asarray, jax.jit(fn)(keys, jnp.asarray(np.tile(k, (count, 1)))))


def truth():
    """log of the blurred density's integral over the box, by the midpoint rule: exact to 1e-6."""
    edges = np.linspace(-1, 1, LEVELS + 1)
    x = edges[K[0], None] + (np.arange(2000) + 0.5) / 2000 * (2 / LEVELS)  # [2, points]
    steps = np.diff(ndtr((x[..., None] - edges) * LEVELS)[..., ::-1], axis=-1)[..., ::-1]
    density = np.sum(steps * PROBABILITIES[:, None], -1) * LEVELS / 2
    return np.sum(np.log(density.mean(1) * 2 / LEVELS)), np.sum(
        np.log(density * 2 / LEVELS).mean(1)
    )


def test_the_bound_tightens_with_every_k_toward_the_truth():
    """At K = 1 it is the mean of log p over the box; at 64 within 4 standard errors of the truth less Var / 2K."""
    exact_value, one_sample = truth()
    bounds = {n: run(n) for n in (1, 4, 64)}
    assert_mean(bounds[1].logp, one_sample)
    means = [np.mean(bounds[n].logp) for n in (1, 4, 64)]
    assert means[0] < means[1] < means[2]
    errors = np.std(np.exp(bounds[1].logp - exact_value)) ** 2 / 2
    assert_mean(bounds[64].logp, exact_value - errors / 64)
    for n in (1, 4, 64):
        assert_mean(bounds[n].single, one_sample)


def test_one_sample_is_the_plain_bound_and_many_are_their_log_mean():
    """By hand, on log p of two probes."""
    logps = jnp.asarray([[[0.0, 2.0]], [[3.0, 3.0]]])
    found = importance.bound(logps, jnp.asarray([[1.0], [-1.0]]))
    np.testing.assert_allclose(found.logp, np.log((np.exp(2.0) + np.exp(2.0)) / 2), rtol=1e-6)
    np.testing.assert_allclose(found.single, 2.0)
    np.testing.assert_allclose(found.effective, 2.0, rtol=1e-6)
    # each weight 1/2; the probes' errors are (-1, 1) and (0, 0), their difference of variance 4 / 2
    np.testing.assert_allclose(found.optimism, 0.5 * 0.25 * 1.0, rtol=1e-6)
    np.testing.assert_allclose(found.noise, 0.5, rtol=1e-6)


def own_noise(std):
    """Noise of two probes that differs from point to point."""

    def noise(keys, x):
        bits = jax.lax.bitcast_convert_type(x[:, 0], jnp.int32)
        keys = jax.vmap(jax.random.fold_in)(keys, bits)
        return std * jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)

    return noise


@pytest.mark.parametrize("n", [2, 16])
def test_a_noisy_log_p_makes_the_bound_optimistic_by_what_is_estimated(n):
    """Noise of variance s^2 = 0.09 in the mean of two probes, at nearly equal weights: s^2 / 2 (1 - 1 / n) nats."""
    variance = 0.09
    clean, noisy = run(n), run(n, own_noise((2 * variance) ** 0.5))
    bias = noisy.logp - clean.logp
    assert np.mean(bias) > 4 * np.std(bias) / N**0.5
    assert_mean(noisy.noise, variance)
    assert_mean(bias - noisy.optimism, 0.0)
    np.testing.assert_allclose(np.mean(noisy.optimism), variance / 2 * (1 - 1 / n), rtol=0.1)
    # the single-sample bound has none
    assert_mean(noisy.single - clean.single, 0.0)


def test_noise_that_all_samples_share_adds_no_optimism():
    """The keys of log p are the same for all K."""
    noise = lambda keys, x: jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    clean, noisy = run(16), run(16, noise)
    assert np.std(noisy.logp - clean.logp) > 0.5
    assert_mean(noisy.logp - clean.logp, 0.0)
    assert np.max(noisy.optimism) < 1e-6
    assert np.max(noisy.noise) < 1e-6


def test_with_one_probe_the_optimism_is_unknown():
    found = run(4, count=3)
    assert np.all(np.isnan(found.optimism)) and np.all(np.isnan(found.noise))


def test_an_examples_bound_depends_on_its_own_key_alone():
    more, fewer = run(4, own_noise(0.1), count=5), run(4, own_noise(0.1), count=3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:3], b, rtol=1e-5), more, fewer)
