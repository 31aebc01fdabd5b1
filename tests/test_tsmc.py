"""The twisted sampler against its own chain, whose law, evidence and posterior are closed for Gaussian data."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Gaussian, assert_mean, coefficients

from score_jax import exact, grids, posterior, samplers
from score_jax import measurement as measurements
from score_jax import sde as sdes
from score_jax.posterior import guide, mixture, twisted
from score_jax.posterior.pigdm import gaussian

D, STD = 2, 0.3
# with 12 a few weights are far larger than the others: unbiased still, but slow to converge
FEW, MORE = 12, 48
A, Y = np.array([[1.0, -0.6]]), np.array([0.9])
DATA = Gaussian(np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]]))
WRONG = 1.5  # for the variance of the data: a twist that the weights have to mend


def perfect(sde):
    predict = exact.predictor(sde, exact.gaussian(DATA.mean, DATA.covariance))
    return lambda x, t: predict(x, t)


def times_of(sde, n_steps=FEW):
    return grids.log_snr(sde)(jnp.linspace(0.0, 1.0, n_steps + 1))


def chain(sde, variance, n_steps=FEW):
    """The law of x / alpha at the end of unconditional ancestral sampling: affine steps, in numpy."""
    cs = coefficients(sde, times_of(sde, n_steps))
    mean, covariance = np.zeros(D), cs[0][1] ** 2 * np.eye(D)
    for (alpha_t, sigma_t), (alpha_s, sigma_s) in itertools.pairwise(cs):
        growth = alpha_t / alpha_s
        added = sigma_t**2 - growth**2 * sigma_s**2
        m, v = DATA.moments((alpha_t, sigma_t))
        pull = added * np.linalg.inv(v)
        factor = (np.eye(D) - pull) / growth
        mean = factor @ mean + pull @ m / growth
        noise = added if variance == "large" else added * sigma_s**2 / sigma_t**2
        covariance = factor @ covariance @ factor.T + noise * np.eye(D)
    alpha = cs[-1][0]
    return mixture.Mixture(np.ones(1), mean[None] / alpha, covariance[None] / alpha**2)


def runner(sde, particles, n_steps=FEW, **options):
    """run(key, groups) -> Particles of that many groups."""
    measurement = measurements.matrix(A, STD)

    def run(key, groups):
        n = groups * particles
        y = jnp.broadcast_to(jnp.asarray(Y), (n, 1))
        key_x, key = jax.random.split(key)
        x = sde.sigma(jnp.asarray(sde.t_max)) * jax.random.normal(key_x, (n, D))
        twist = gaussian(sde, measurement, y, WRONG)
        steps = samplers.Steps(
            twisted.sampler(sde, twist, particles=particles, **options),
            perfect(sde),
            finish=twisted.weighted(sde, measurement, y, particles),
        )
        return samplers.run(jax.random.split(key, n), steps, x, times_of(sde, n_steps))

    return jax.jit(run, static_argnums=1)


@pytest.mark.parametrize(
    ("threshold", "variance", "make"),
    [(0.5, "small", sdes.vp), (1.1, "large", sdes.edm), (0.0, "small", sdes.vp)],
)
def test_the_estimate_of_the_evidence_is_unbiased(x64, threshold, variance, make):
    """With resampling now and then, always, and never; few particles, few steps, and a twist that is wrong."""
    sde = make()
    _, log_evidence = mixture.posterior(chain(sde, variance), A, STD, Y)
    run = runner(sde, 4, threshold=threshold, variance=variance)
    found = run(jax.random.key(0), 8000)
    ratios = np.exp(np.asarray(found.log_evidence) - log_evidence)
    assert_mean(ratios, 1.0)
    assert 0.01 < ratios.std() < 2


def test_the_posterior_mean_converges_in_particles(x64):
    """The squared error falls as one over the particles, to the posterior of the chain."""
    sde = sdes.vp()
    truth, _ = mixture.posterior(chain(sde, "small", MORE), A, STD, Y)
    alpha = coefficients(sde, [sde.t_min])[0][0]

    def error(particles, groups):
        found = runner(sde, particles, MORE)(jax.random.key(1), groups)
        weighted = (found.weight[:, None] * found.x / alpha).reshape(groups, particles, D)
        means = np.asarray(weighted.sum(axis=1))
        return means, np.mean(np.sum((means - truth.means[0]) ** 2, axis=1))

    (_, few), (means, many) = error(8, 2000), error(128, 400)
    assert 13 < few / many < 19
    # what is left of the bias at 128 particles is far below the standard error
    assert_mean(means, truth.means[0])


def test_the_chains_posterior_and_evidence_converge_in_steps_to_the_datas(x64):
    """At first order: with the two tests above, that is the limit of the sampler in particles and in steps."""
    data = mixture.Mixture(np.ones(1), DATA.mean[None], DATA.covariance[None])
    truth, log_evidence = mixture.posterior(data, A, STD, Y)

    def errors(n_steps):
        found, log_found = mixture.posterior(chain(sdes.vp(), "small", n_steps), A, STD, Y)
        gaps = found.means - truth.means, found.covariances - truth.covariances
        return [*map(np.linalg.norm, gaps), abs(log_found - log_evidence)]

    few, more = errors(400), errors(800)
    assert max(more) < 0.02
    np.testing.assert_allclose(np.divide(few, more), 2, atol=0.2)


def test_the_drawn_particles_have_the_posteriors_moments(x64):
    sde = sdes.vp()
    truth, _ = mixture.posterior(chain(sde, "small"), A, STD, Y)
    groups, particles = 400, 64
    method = posterior.tsmc(particles=particles, data_variance=WRONG)

    @jax.jit
    def run(key, y):
        key_x, key = jax.random.split(key)
        x = sde.sigma(jnp.asarray(sde.t_max)) * jax.random.normal(key_x, (len(y), D))
        steps = method.steps(sde, perfect(sde), measurements.matrix(A, STD), y)
        return samplers.run(jax.random.split(key, len(y)), steps, x, times_of(sde))

    x = run(jax.random.key(2), jnp.tile(jnp.asarray(Y), (groups * particles, 1)))
    x = np.asarray(x / coefficients(sde, [sde.t_min])[0][0]).reshape(groups, particles, D)
    assert_mean(x.mean(axis=1), truth.means[0])
    apart = x - truth.means[0]
    squares = np.einsum("gpi,gpj->gij", apart, apart) / particles
    assert_mean(squares, truth.covariances[0])


def test_one_particle_is_guided_sampling_and_without_guidance_plain_sampling(x64):
    sde = sdes.vp()
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (3, D))
    twist = gaussian(sde, measurements.matrix(A, STD), jnp.tile(Y, (3, 1)), 0.4)
    nothing = lambda x0, t: (jnp.zeros(len(x0)), jnp.zeros_like(x0))
    guided = guide.guided(sde, perfect(sde), twist)

    @jax.jit
    def run(x):
        draw = lambda sampler, predict: samplers.sample(keys, sampler, predict, x, times_of(sde))
        alone = [twisted.sampler(sde, g, particles=1) for g in (twist, nothing)]
        found = [draw(sampler, perfect(sde)) for sampler in alone]
        return found, [draw(samplers.ancestral(sde), p) for p in (guided, perfect(sde))]

    for found, expected in zip(*run(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_groups_know_nothing_of_each_other(x64):
    sde = sdes.vp()
    measurement = measurements.matrix(A, STD)
    keys = jax.random.split(jax.random.key(0), 12)
    x = jax.random.normal(jax.random.key(1), (12, D))
    y = jnp.repeat(jnp.array([[0.9], [-1.5], [0.3]]), 4, axis=0)

    @jax.jit
    def run(keys, x, y):
        twist = gaussian(sde, measurement, y, WRONG)
        sampler = twisted.sampler(sde, twist, particles=4, threshold=1.1)
        finish = twisted.weighted(sde, measurement, y, 4)
        return samplers.run(
            keys, samplers.Steps(sampler, perfect(sde), finish=finish), x, times_of(sde)
        )

    # the second group beside another one
    first, second = np.r_[:8], np.r_[8:12, 4:8]
    one, other = (run(keys[i], x[i], y[i]) for i in (first, second))
    np.testing.assert_allclose(one.x[4:], other.x[4:], rtol=1e-9)
    np.testing.assert_allclose(one.weight[4:], other.weight[4:], rtol=1e-9)
    np.testing.assert_allclose(one.log_evidence[1:], other.log_evidence[1:], rtol=1e-9)
    assert np.all(np.abs(one.log_evidence[0] - other.log_evidence[0]) > 1e-3)


def test_systematic_resampling_draws_each_its_share_to_within_one(x64):
    weight = jnp.array([0.05, 0.5, 0.0, 0.3, 0.15])
    keys = jax.random.split(jax.random.key(0), 2000)
    index = jax.jit(jax.vmap(lambda key: twisted.systematic(key, weight)))(keys)
    counts = np.stack([np.sum(np.asarray(index) == i, axis=1) for i in range(5)], axis=1)
    assert np.all(np.abs(counts - 5 * np.asarray(weight)) < 1)
    keep = [0, 1, 3, 4]
    assert np.all(counts[:, 2] == 0)
    assert_mean(counts[:, keep], 5 * np.asarray(weight)[keep])


def test_the_effective_size_is_n_of_equal_weights_and_one_of_a_single_one():
    log_weights = jnp.array([[-3.0, -3.0, -3.0], [0.0, -200.0, -200.0], [np.log(3), 0.0, -200.0]])
    sizes = jax.jit(jax.vmap(twisted.effective_size))(log_weights)
    np.testing.assert_allclose(sizes, [3, 1, 16 / 10], rtol=1e-5)


def test_what_particles_cannot_do_is_refused_in_one_line(x64):
    sde = sdes.vp()
    steps = lambda std, **options: posterior.tsmc(**options).steps(
        sde, perfect(sde), measurements.matrix(A, std), jnp.zeros((6, 1))
    )
    with pytest.raises(ValueError, match=r"^tsmc weights samples by .* give a positive std"):
        steps(0.0)
    with pytest.raises(ValueError, match=r"^6 samples are no whole number of groups of particles"):
        steps(0.1, particles=4)
