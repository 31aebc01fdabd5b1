"""Dequantizations on pixels whose probabilities are known: what each bound must read, image by image.

With the exact posterior of the levels log p + log_weight is log P(k), whatever the noise drawn: no
average has to be taken.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean
from scipy.special import log_ndtr, logsumexp, ndtr
from scipy.stats import truncnorm

from score_jax import dequantize, exact, truncated
from score_jax import sde as sdes
from score_jax.types import Given, Prediction

LEVELS, DIMS, N = 8, 4, 300
PROBABILITIES = np.random.default_rng(0).dirichlet(np.full(LEVELS, 0.7), DIMS)
# a threshold: all of one level but one in a hundred
PROBABILITIES[0] = 0.01 / (LEVELS - 1)
PROBABILITIES[0, 2] = 0.99
KEYS = jax.random.split(jax.random.key(0), N)


def no_network(x, t, label=None):
    raise AssertionError("this dequantization needs no network")


def images(probabilities):
    """Images of independent categorical pixels [N, d], and the log-probability of each."""
    rng = np.random.default_rng(1)
    levels = probabilities.shape[1]
    k = np.stack([rng.choice(levels, N, p=p) for p in probabilities], 1)
    return k.astype(np.uint8), np.log(probabilities[np.arange(len(probabilities)), k]).sum(1)


def density(probabilities, data):
    levels = probabilities.shape[1]
    if data == "uniform":
        return exact.boxes(probabilities, np.linspace(-1, 1, levels + 1))
    return exact.points(probabilities, (2 * np.arange(levels) + 1) / levels - 1)


def ends(sde):
    t = jnp.asarray(sde.t_min)
    return float(sde.alpha(t)), float(sde.sigma(t))


def bound(draw, sde, noised_logp, k, levels, predictor=None, level_logp=None, **options):
    """log p at t_min + log_weight, [n]."""
    predictor = predictor or exact.predictor(sde, noised_logp)

    def run(keys, k):
        point = draw(keys, Given(sde, predictor, level_logp), k, levels, **options)
        t = jnp.asarray(sde.t_min)
        return noised_logp(point.x, sde.alpha(t), sde.sigma(t)) + point.log_weight

    return np.asarray(jax.jit(run)(KEYS[: len(k)], jnp.asarray(k)), float)


def bits(nats, truth):
    """Mean bits/dim above the truth's."""
    return np.mean(truth - nats) / (DIMS * np.log(2))


def truncation(sde):
    """Nats an image that the noise at t_min costs: E log p_0(x) / p_t_min(x), by the midpoint rule."""
    (alpha, sigma), n = ends(sde), 20_000
    edges = np.linspace(-1, 1, LEVELS + 1)
    x = -1 + 2 * (np.arange(n * LEVELS) + 0.5) / (n * LEVELS)
    masses = np.diff(ndtr((alpha * edges - x[:, None]) / sigma), axis=1)
    logs = np.log(masses @ PROBABILITIES.T / alpha).reshape(LEVELS, n, DIMS).mean(1)
    return np.sum(PROBABILITIES * (np.log(PROBABILITIES) - logs.T))


# the normal distribution between two bounds


@pytest.mark.parametrize("width", [0.05, 1.0, 8.0, 300.0])
def test_the_mass_and_the_mean_between_two_bounds_are_scipys(width):
    """In float32, up to 30 deviations out on both sides, where differences of Phi have no digits left."""
    middle = np.linspace(-20, 20, 81) + width / 2 * np.linspace(-1, 1, 81)
    lower = np.asarray(middle - width / 2, np.float32)
    upper = np.asarray(middle + width / 2, np.float32)
    a, b = (np.where(lower + upper > 0, -x, y) for x, y in ((upper, lower), (lower, upper)))
    a, b = a.astype(float), b.astype(float)
    log_mass = logsumexp(np.stack([log_ndtr(b), log_ndtr(a)]), 0, b=np.array([[1.0], [-1.0]]))
    bounds = jnp.asarray(lower), jnp.asarray(upper)
    np.testing.assert_allclose(truncated.log_mass(*bounds), log_mass, rtol=2e-4, atol=2e-4)
    mean = truncnorm.mean(lower.astype(float), upper.astype(float))
    np.testing.assert_allclose(truncated.mean(*bounds), mean, rtol=2e-3, atol=2e-3)


# the points


def boxed(name, sde, levels):
    """Noise in units of the box and its log_weight, in the outermost boxes of two dimensions."""
    k = np.tile(np.array([[0, levels - 1]], np.uint8), (40000, 1))
    keys = jax.random.split(jax.random.key(0), len(k))
    draw = dequantize.DEQUANTIZATIONS[name]
    point = jax.jit(lambda keys, k: draw(keys, Given(sde, no_network), k, levels))(
        keys, jnp.asarray(k)
    )
    scale = 1.0 if name == "uniform" else ends(sde)[0]
    u = (np.asarray(point.x, float) / scale + 1) * levels / 2 - k
    assert u.min() > -1e-5
    assert u.max() < 1 + 1e-5
    return u, np.asarray(point.log_weight, float)


def test_uniform_points_weigh_the_volume_of_their_box():
    u, log_weight = boxed("uniform", sdes.vp(), 256)
    np.testing.assert_allclose(log_weight, 2 * np.log(2 / 256), rtol=1e-6)
    assert_mean(np.square(u - 0.5), 1 / 12)


def test_truncated_normal_points_have_the_density_of_their_weight():
    """E_q 1/q is the volume of the box times alpha^2; here alpha = 0.8 and a box is 2 sigma / alpha wide."""
    u, log_weight = boxed("truncated_normal", sdes.linear(t_min=0.2), 4)
    assert_mean(np.exp(log_weight), (0.8 * 2 / 4) ** 2)
    assert_mean(np.square(2 * (u - 0.5)), truncnorm.var(-1, 1))


@pytest.mark.parametrize("name", dequantize.DEQUANTIZATIONS)
def test_a_point_depends_on_its_own_key_alone(name):
    k = jnp.asarray([[1, 2], [1, 2], [7, 0]], jnp.uint8)
    draw = dequantize.DEQUANTIZATIONS[name]
    predictor = lambda x, t, label: Prediction(x, jnp.sin(x))
    # a flow's own draw: tested in test_dequantizer
    noise = lambda keys, k, levels, label: dequantize.uniform_box(
        keys, Given(None, None), k, levels
    )
    run = jax.jit(lambda keys, k: draw(keys, Given(sdes.vp(), predictor, dequantize=noise), k, 8))
    together, alone = run(KEYS[:3], k), run(KEYS[1:2], k[1:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1:2], b, rtol=1e-6), together, alone)
    assert np.all(together.x[0] != together.x[1])


def test_continuous_data_come_back_as_they_are():
    x = jnp.asarray([[0.3, -5.0]])
    point = dequantize.uniform_box(KEYS[:1], Given(sdes.vp(), no_network), x, None)
    np.testing.assert_array_equal(point.x, x)
    np.testing.assert_array_equal(point.log_weight, [0.0])


# bits per dimension of categorical pixels


@pytest.mark.parametrize("t_min", [1e-5, 1e-4, 1e-3])
def test_the_decoder_removes_the_truncation_at_t_min_image_by_image(t_min):
    """Of each image's log-probability all but 0.01 nats is found in 99 of 100 draws; uncorrected, the offset shows."""
    k, truth = images(PROBABILITIES)
    sde, noised_logp = sdes.vp(t_min=t_min), density(PROBABILITIES, "uniform")
    found = bound(dequantize.decoder, sde, noised_logp, k, LEVELS, ridge=1e-5)
    assert np.quantile(np.abs(found - truth), 0.99) < 0.01
    assert abs(bits(found, truth)) < 5e-4
    uncorrected = bound(dequantize.uniform_box, sde, noised_logp, k, LEVELS)
    assert_mean(truth - uncorrected, truncation(sde))
    assert truncation(sde) > 20 * abs(np.mean(truth - found))
    shrunk = bound(dequantize.decoder, sde, noised_logp, k, LEVELS)
    assert -1e-4 < bits(shrunk, truth) < 0.5 * bits(uncorrected, truth)


@pytest.mark.parametrize("data", ["uniform", "lattice"])
def test_with_two_levels_the_tilt_is_the_posterior_at_any_noise(data):
    """At sigma / alpha equal to half a box both levels compete everywhere; alpha is 2/3."""
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.02, 0.98]])
    k, truth = images(probabilities)
    sde, noised_logp = sdes.linear(t_min=1 / 3), density(probabilities, data)
    found = bound(dequantize.decoder, sde, noised_logp, k, 2, data=data, ridge=1e-6)
    np.testing.assert_allclose(found, truth, atol=2e-3)


@pytest.mark.parametrize("data", ["uniform", "lattice"])
def test_a_models_own_level_probabilities_are_taken_where_it_has_them(data):
    """With the exact posterior there is no error left at 1.5 sigma a box, where many levels compete."""
    levels = 32
    probabilities = np.random.default_rng(3).dirichlet(np.full(levels, 0.5), DIMS)
    k, truth = images(probabilities)
    sde, noised_logp = sdes.edm(sigma_min=2 / levels / 1.5), density(probabilities, data)
    edges = np.linspace(-1, 1, levels + 1)

    def level_logp(x, t, label):
        x, sigma = x[..., None], t[:, None, None]
        if data == "uniform":
            known = truncated.log_mass((edges[:-1] - x) / sigma, (edges[1:] - x) / sigma)
        else:
            known = -0.5 * jnp.square((x - 0.5 * (edges[1:] + edges[:-1])) / sigma)
        return jax.nn.log_softmax(jnp.log(probabilities) + known)

    found = bound(dequantize.decoder, sde, noised_logp, k, levels, None, level_logp, data=data)
    np.testing.assert_allclose(found, truth, atol=2e-3)
    tilted = bound(dequantize.decoder, sde, noised_logp, k, levels, data=data)
    assert bits(tilted, truth) > 0.05  # one number a pixel cannot say as much


@pytest.mark.parametrize("data", ["uniform", "lattice"])
def test_without_a_tilt_the_decoder_knows_the_lattice_only(data):
    """P(k | x) is then the likelihood of x given k over the sum of all levels'."""
    levels, sde = 32, sdes.edm(sigma_min=2 / 32 / 1.5)
    k = np.array([[0, 1, 13, 31]], np.uint8).repeat(3, 0)
    predictor = lambda x, t, label: Prediction(x, jnp.full_like(x, 0.7))
    options = dict(data=data, ridge=np.inf)
    point = dequantize.decoder(KEYS[:3], Given(sde, predictor), jnp.asarray(k), levels, **options)
    x, edges = np.asarray(point.x, float)[..., None], np.linspace(-1, 1, levels + 1)
    sigma = sde.t_min
    if data == "uniform":
        likelihoods = np.diff(ndtr((edges - x) / sigma)) * levels / 2
    else:
        offset = (x - 0.5 * (edges[1:] + edges[:-1])) / sigma
        likelihoods = np.exp(-0.5 * offset**2) / (sigma * np.sqrt(2 * np.pi))
    # log P - log q: the likelihood of the level itself cancels
    expected = -np.log(likelihoods.sum(-1)).sum(-1)
    np.testing.assert_allclose(point.log_weight, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("error", [0.1, 0.3])
def test_with_a_network_in_error_the_decoder_is_a_bound_and_the_ridge_keeps_it_tight(error):
    k, truth = images(PROBABILITIES)
    sde, noised_logp = sdes.vp(t_min=1e-3), density(PROBABILITIES, "uniform")
    perfect = exact.predictor(sde, noised_logp)

    def predictor(x, t, label=None):
        noise = error * jax.random.normal(jax.random.key(5), x.shape)
        return Prediction(x, perfect(x, t).eps + noise)

    run = lambda draw, **options: bits(
        bound(draw, sde, noised_logp, k, LEVELS, predictor, **options), truth
    )
    free, held = (run(dequantize.decoder, ridge=ridge) for ridge in (1e-5, dequantize.RIDGE))
    assert 0 < held < 0.5 * free


def test_the_probabilities_of_all_levels_sum_to_one_for_any_prediction():
    """One x, seen from each level: x's offset from level k's middle is its offset from level 0's less k widths."""
    levels, width = 6, 1.3
    k, x = np.meshgrid(np.arange(levels), np.array([-2.0, 0.4, 3.0, 9.0]), indexing="ij")
    eps_hat = jnp.broadcast_to(jnp.asarray([3.0, -0.2, -50.0, 0.5]), k.shape)
    for kind in dequantize.LEVEL_DATA.values():
        args = jnp.asarray(k), jnp.asarray(x - k * width, jnp.float32), eps_hat
        log_p = dequantize._tilted(kind.known, levels, width, 1e-3, *args)
        np.testing.assert_allclose(jnp.exp(log_p).sum(0), 1.0, rtol=1e-4)


def test_truncated_normal_dequantization_of_a_model_of_the_lattice_is_exact_where_sigma_is_small():
    """And with a box of 2 sigma it is a bound, by the noise that was cut off."""
    k, truth = images(PROBABILITIES)
    noised_logp = density(PROBABILITIES, "lattice")
    run = lambda sigma: bound(
        dequantize.truncated_normal, sdes.edm(sigma_min=sigma), noised_logp, k, LEVELS
    )
    np.testing.assert_allclose(run(0.125 / 6), truth, atol=1e-3)
    assert bits(run(0.125), truth) > 0.05


# continuous data


def test_the_denoised_bound_on_a_gaussian_is_its_integral_over_the_noise():
    """In one dimension, by Gauss-Hermite quadrature over eps; at little noise it is the log-density itself."""
    mean, variance, x = 0.5, 0.3, np.array([[-0.4]])
    noised_logp = exact.gaussian(np.array([mean]), np.array([[variance]]))
    draw = dequantize.denoised

    def integral(alpha, sigma):
        eps, weights = np.polynomial.hermite_e.hermegauss(40)
        z = alpha * x[0] + sigma * eps
        marginal = alpha**2 * variance + sigma**2
        x0_hat = mean + alpha * variance / marginal * (z - alpha * mean)
        normal = lambda d, v: -0.5 * (d**2 / v + np.log(2 * np.pi * v))
        terms = normal(z - alpha * mean, marginal) - normal(z - alpha * x[0], sigma**2)
        return weights @ (terms + normal(x[0] - x0_hat, (sigma / alpha) ** 2)) / weights.sum()

    for sde in (sdes.vp(t_min=0.1), sdes.vp(t_min=1e-3)):
        tiled = np.repeat(x, N, 0).astype(np.float32)
        found = bound(draw, sde, noised_logp, tiled, None)
        assert_mean(found, integral(*ends(sde)))
    truth = -0.5 * ((x[0, 0] - mean) ** 2 / variance + np.log(2 * np.pi * variance))
    np.testing.assert_allclose(integral(*ends(sdes.vp(t_min=1e-5))), truth, atol=1e-4)


def test_the_denoised_bound_on_levels_adds_the_scaling_of_the_box():
    k, truth = images(PROBABILITIES)
    sde, noised_logp = sdes.vp(t_min=1e-4), density(PROBABILITIES, "uniform")
    found = bound(dequantize.denoised, sde, noised_logp, k, LEVELS)
    assert 0.0 < bits(found, truth) < 0.03
