"""VDM's loss: exact log P of an enumerable distribution less the gaps, and the schedule that its variance wants.

On Gaussian data with the perfect prediction, e the posterior variances lambda s / (1 + lambda s) at
s = SNR, || eps - eps_hat ||^2 is a sum of e times chi^2, so that per dimension

    E[l] = sum e / (2 D),    E[l^2] = ((sum e)^2 + 2 sum e^2) / (2 D)^2.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import GAUSSIAN, SDES, assert_mean
from scipy.special import log_ndtr, logsumexp

from score_jax import dequantize, exact, grids, losses, schedule, vdm
from score_jax import sde as sdes
from score_jax.model import Model
from score_jax.types import Batch, Prediction

EIGENVALUES, AXES = np.linalg.eigh(GAUSSIAN.covariance)
LARGEST, SMALLEST, N_KNOTS, FLOOR = 10.0, -8.0, 13, 0.02
MADE = schedule.learned(LARGEST, SMALLEST, N_KNOTS, FLOOR)
PARAMS = {"score": (), "schedule": jax.random.normal(jax.random.key(7), (N_KNOTS,))}


def perfect(noised_logp):
    """A model constructor: the perfect prediction under any SDE."""

    def make(sde):
        predictor = exact.predictor(sde, noised_logp)
        return Model(
            init=lambda key, shape: (),
            sde=lambda params: sde,
            predict=lambda params, x, t, label=None, **options: predictor(x, t, label),
        )

    return make


def linear_in_x(sde):
    """eps_hat = w x_t, wrong for every w."""

    def predict(w, x, t, label=None, **options):
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return Prediction((x - sigma * w * x) / alpha, w * x)

    return Model(init=None, sde=lambda params: sde, predict=predict)


GAUSSIAN_MODEL = schedule.attach(perfect(exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance)), MADE)


def batch(key, n):
    data, examples = jax.random.split(key)
    root = np.linalg.cholesky(GAUSSIAN.covariance)
    x = GAUSSIAN.mean + jax.random.normal(data, (n, 2)) @ root.T
    return Batch(x, None, jax.random.split(examples, n), jnp.arange(n) / n)


def over_batches(fn, n_batches=400, n=64):
    """fn(times' key, batch) of independent batches."""

    def one(key):
        times, examples = jax.random.split(key)
        return fn(times, batch(examples, n))

    return jax.jit(lambda keys: jax.lax.map(one, keys))(
        jax.random.split(jax.random.key(0), n_batches)
    )


LOG_SNR = np.linspace(SMALLEST, LARGEST, 4801)
ERRORS = EIGENVALUES * np.exp(LOG_SNR)[:, None] / (1 + EIGENVALUES * np.exp(LOG_SNR)[:, None])
FIRST = ERRORS.sum(1) / 4
SECOND = (ERRORS.sum(1) ** 2 + 2 * (ERRORS**2).sum(1)) / 16


def density(params):
    """The schedule's density of time in log-SNR at LOG_SNR, from its definition."""
    knots = np.linspace(LARGEST, SMALLEST, N_KNOTS)
    free = np.exp(np.asarray(params, float))
    values = FLOOR + (1 - FLOOR) * free / np.trapezoid(free, np.linspace(0, 1, N_KNOTS))
    return np.interp(LOG_SNR, knots[::-1], values[::-1]) / (LARGEST - SMALLEST)


def second_moment(params):
    """E[L^2] = int E[l^2] / q."""
    return np.trapezoid(SECOND / density(params), LOG_SNR)


def gaussian_terms():
    """The expected terms per dimension, in closed form."""
    s_max, s_min = np.exp(LARGEST), np.exp(SMALLEST)
    second = np.mean(GAUSSIAN.mean**2) + np.mean(EIGENVALUES)
    diffusion = 0.5 * np.mean(np.log1p(EIGENVALUES * s_max) - np.log1p(EIGENVALUES * s_min))
    error = np.mean(EIGENVALUES * s_max / (1 + EIGENVALUES * s_max))
    return {
        "prior": 0.5 * s_min * second,
        "diffusion": diffusion,
        "reconstruction": 0.5 * (np.log(2 * np.pi / s_max) + error),
    }


def test_the_expected_terms_do_not_depend_on_the_schedules_interior():
    """Each term at parameters drawn at random, against a closed form that knows the ends only."""
    loss = vdm.vdm(GAUSSIAN_MODEL, levels=None, grid=grids.uniform, decoder="gaussian")
    found, metrics = over_batches(
        lambda key, batch: (lambda out: (out[0], out[1][0]))(loss(key, PARAMS, (), batch, 0))
    )
    terms = gaussian_terms()
    assert metrics.keys() == terms.keys()
    for name, true in terms.items():
        assert_mean(metrics[name], true)
    np.testing.assert_allclose(found, sum(metrics[name] for name in terms), rtol=1e-5)
    assert_mean(found, sum(terms.values()))


@pytest.mark.parametrize("grid", [grids.uniform, grids.log_snr])
def test_the_schedules_gradient_is_that_of_the_second_moment_by_finite_differences(grid):
    """Of times uniform under the schedule, whatever times are drawn."""
    loss = vdm.vdm(GAUSSIAN_MODEL, levels=None, grid=grid, decoder="gaussian")
    grad = jax.grad(lambda params, key, batch: loss(key, params, (), batch, 0)[0])
    found = over_batches(lambda key, batch: grad(PARAMS, key, batch)["schedule"])
    start, h = np.asarray(PARAMS["schedule"], float), 1e-5
    differences = [
        (second_moment(start + h * e) - second_moment(start - h * e)) / (2 * h)
        for e in np.eye(N_KNOTS)
    ]
    assert_mean(found, np.array(differences) / (0.5 * (LARGEST - SMALLEST)) ** 2)


def test_training_takes_the_density_of_time_to_its_optimum_and_the_variance_with_it():
    """q proportional to sqrt(E[l^2]), where E[L^2] = (int sqrt(E[l^2]))^2."""
    loss = vdm.vdm(GAUSSIAN_MODEL, levels=None, grid=grids.uniform, decoder="gaussian")
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 400))
    start = {"score": (), "schedule": MADE.init(jax.random.key(0))}

    def step(carry, key):
        params, state = carry
        times, examples = jax.random.split(key)
        part = batch(examples, 256)
        grads = jax.grad(lambda params: loss(times, params, (), part, 0)[0])(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), 400)
    run = jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), keys)[0][0])
    trained = run()["schedule"]

    root = np.sqrt(SECOND)
    optimum = np.trapezoid(root, LOG_SNR)
    assert second_moment(start["schedule"]) > 1.5 * optimum**2
    assert optimum**2 < second_moment(trained) < 1.02 * optimum**2
    best = root / optimum
    large = best > 0.3 * best.max()  # elsewhere few times are drawn
    np.testing.assert_allclose(density(trained)[large], best[large], rtol=0.15)

    # the values themselves, one time each, under both schedules
    for params in (start["schedule"], trained):
        given = {"score": (), "schedule": params}
        values = over_batches(
            lambda key, batch, given=given: loss(key, given, (), batch, 0)[1][0]["diffusion"],
            n_batches=10000,
            n=1,
        )
        assert_mean(values**2, second_moment(params))


@pytest.mark.parametrize("name", SDES)
def test_for_a_fixed_sde_the_diffusion_term_is_denoisings_likelihood_loss(name):
    """Draw by draw, and so is the gradient: nothing is added."""
    model, w = linear_in_x(SDES[name]()), 0.3
    part = batch(jax.random.key(2), 8)
    plain = losses.denoising(model, grid=grids.log_snr, weight=losses.likelihood, target="eps")
    # a decoder of levels, so that the network is in one term alone
    whole = vdm.vdm(model, levels=4, grid=grids.log_snr)
    key = jax.random.key(3)
    by = lambda fn, **options: jax.jit(jax.value_and_grad(fn, **options))(w)
    (value, (metrics, _)), found = by(lambda w: whole(key, w, (), part, 0), has_aux=True)
    expected, slope = by(lambda w: plain(key, w, (), part, 0)[0])
    np.testing.assert_allclose(metrics["diffusion"], expected, rtol=1e-5)
    bits = metrics.pop("bpd") * np.log(2)
    np.testing.assert_allclose([value, bits], float(sum(metrics.values())), rtol=1e-6)
    np.testing.assert_allclose(found, slope, rtol=1e-5)


def test_with_uniform_dequantization_the_gaussian_decoders_bits_are_those_of_the_levels():
    """Per dimension log P(k) is log p(x) + log(2 / levels)."""
    loss = vdm.vdm(linear_in_x(sdes.vp()), levels=8, grid=grids.log_snr, decoder="gaussian")
    value, (metrics, _) = loss(jax.random.key(0), 0.3, (), batch(jax.random.key(1), 4), 0)
    np.testing.assert_allclose(metrics["bpd"], (value + np.log(8 / 2)) / np.log(2), rtol=1e-6)


@pytest.mark.parametrize("data", dequantize.LEVEL_DATA)
@pytest.mark.parametrize("log_snr_max", [2.0, 13.3])
def test_the_decoders_term_is_its_integral(data, log_snr_max):
    """E[-log P(k | x) + log q(x | k) - log q(x | x0)] with every density written out, in model space and float64."""
    levels = 5
    sde = schedule.learned(log_snr_max).sde(jnp.zeros(33))
    found = vdm.decoded(sde, levels, data)
    sigma = np.exp(-0.5 * log_snr_max)  # over alpha
    edges = np.linspace(-1, 1, levels + 1)
    middles, half = 0.5 * (edges[1:] + edges[:-1]), 1 / levels

    def log_m(x):
        z = (x[:, None] - middles) / sigma
        if data == "lattice":
            return -0.5 * z**2 - 0.5 * np.log(2 * np.pi * sigma**2)
        # the mean of that over each box, from the side where the tail has digits
        upper, lower = (log_ndtr(-np.abs(z) + sign * half / sigma) for sign in (1, -1))
        return upper + np.log1p(-np.exp(lower - upper)) - np.log(2 * half)

    alpha = float(sde.alpha(jnp.asarray(0.0)))
    # densities are of x / alpha, save in the last term
    known = -0.5 * np.log(2 * np.pi * np.e * (alpha * sigma) ** 2)
    for k in (0, 3):
        spread = 9 * sigma + (half if data == "uniform" else 0)
        x = middles[k] + spread * np.linspace(-1, 1, 20001)
        log_p = log_m(x)
        integrand = np.exp(log_p[:, k]) * (logsumexp(log_p, axis=1) - np.log(alpha) - known)
        np.testing.assert_allclose(found[k], np.trapezoid(integrand, x), rtol=1e-5, atol=2e-6)


# three pixels of four levels, correlated
LEVELS = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
_RNG = np.random.default_rng(0)
LOG_P = 1.2 * _RNG.normal(size=64) - 0.5 * np.ptp(LEVELS, axis=1)
LOG_P -= logsumexp(LOG_P)


def noised(alpha, sigma):
    """A grid over x, its cell's volume, and at each point log q(x, k) for all 64 images."""
    axis = np.arange(-alpha - 6 * sigma, alpha + 6 * sigma, 0.5 * sigma)
    x = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    means = alpha * (2 * LEVELS + 1 - 4) / 4
    square = np.sum(x**2, 1)[:, None] - 2 * x @ means.T + np.sum(means**2, 1)
    normaliser = 1.5 * np.log(2 * np.pi * sigma**2)
    return x, (axis[1] - axis[0]) ** 3, LOG_P - 0.5 * square / sigma**2 - normaliser


def coefficients(sde, t):
    return tuple(float(f(jnp.asarray(t))) for f in (sde.alpha, sde.sigma))


def prior_gap(sde):
    """KL(q(x_T) || N(0, sigma_T^2 I)) by the trapezium rule."""
    alpha, sigma = coefficients(sde, sde.t_max)
    x, volume, joint = noised(alpha, sigma)
    log_q = logsumexp(joint, axis=1)
    log_prior = -0.5 * np.sum((x / sigma) ** 2, 1) - 1.5 * np.log(2 * np.pi * sigma**2)
    return volume * np.sum(np.exp(log_q) * (log_q - log_prior))


def decoder_gap(sde):
    """E KL(P(k | x) || product of the pixels' decoders) over x at t_min."""
    alpha, sigma = coefficients(sde, sde.t_min)
    x, volume, joint = noised(alpha, sigma)
    log_q = logsumexp(joint, axis=1, keepdims=True)
    values = alpha * (2 * np.arange(4) + 1 - 4) / 4
    likelihood = -0.5 * ((x[..., None] - values) / sigma) ** 2
    pixels = likelihood - logsumexp(likelihood, axis=-1, keepdims=True)
    decoder = sum(pixels[:, i, LEVELS[:, i]] for i in range(3))
    return volume * np.sum(np.exp(joint) * (joint - log_q - decoder))


def test_on_three_pixels_of_four_levels_it_is_the_entropy_and_the_two_gaps():
    """Exact log P less the gaps, both above 10 standard errors."""
    made = schedule.learned(3.5, 0.0, N_KNOTS)
    lattice = (2 * LEVELS + 1 - 4) / 4
    model = schedule.attach(perfect(exact.mixture(np.exp(LOG_P), lattice, 0.0)), made)
    loss = vdm.vdm(model, levels=4, grid=grids.uniform)

    n = 1024

    def one(key):
        k_data, k_times, k_examples = jax.random.split(key, 3)
        i = jax.random.categorical(k_data, jnp.asarray(LOG_P), shape=(n,))
        x = dequantize.lattice(jnp.asarray(LEVELS)[i], 4)
        part = Batch(x, None, jax.random.split(k_examples, n), jnp.arange(n) / n)
        bits = loss(k_times, PARAMS, (), part, 0)[1][0]["bpd"]
        # the images drawn are known, and with them the noise of their -log P
        return 3 * bits * jnp.log(2.0) + jnp.mean(jnp.asarray(LOG_P)[i])

    run = jax.jit(lambda keys: jax.lax.map(one, keys))
    excess = run(jax.random.split(jax.random.key(5), 400))
    sde = made.sde(PARAMS["schedule"])
    gaps = prior_gap(sde), decoder_gap(sde)
    assert min(gaps) > 10 * np.std(excess) / np.sqrt(len(excess))
    assert_mean(excess, sum(gaps))
