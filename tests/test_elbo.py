"""The evidence lower bound on Gaussian data with the perfect prediction: each term in closed form, per example.

Along a principal axis with data N(mean, lambda), d = x - mean, and s = alpha^2 / sigma^2, the error
eps - eps_hat of an example is normal with second moment

    e(s) = (lambda s / (1 + lambda s))^2 + s d^2 / (1 + lambda s)^2,

    int e(s) d log s = log(1 + lambda s) + 1 / (1 + lambda s) - d^2 / (lambda (1 + lambda s)).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, SDES, assert_mean

from score_jax import dequantize, elbo, exact, grids
from score_jax import sde as sdes
from score_jax.types import Given

EIGENVALUES, AXES = np.linalg.eigh(GAUSSIAN.covariance)
X = np.array([[0.5, -0.3], [2.0, -1.5], [-0.4, 0.8]])
N = 2000


def estimates(sde, x, predictor=None, n_times=4, n=N, **options):
    """n independent estimates of each example's terms: a tree of [n, b]."""
    predictor = predictor or exact.predictor(
        sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance)
    )
    keys = jax.random.split(jax.random.key(0), n * len(x))
    tiled = jnp.tile(jnp.asarray(x, jnp.float32), (n, 1))
    options = dict(options, n_times=n_times)
    found = jax.jit(lambda k, x: elbo.negative_elbo(k, sde, predictor, x, **options))(keys, tiled)
    return jax.tree.map(lambda a: np.asarray(a).reshape(n, len(x)), found)


def closed_form(sde, x):
    s_max, s_min = (np.exp(float(end)) for end in sdes.log_snr_ends(sde))
    d2 = ((x - GAUSSIAN.mean) @ AXES) ** 2
    precision = lambda s: 1 / (1 + EIGENVALUES * s)
    integral = lambda s: -np.log(precision(s)) + precision(s) * (1 - d2 / EIGENVALUES)
    error = (EIGENVALUES * s_max * precision(s_max)) ** 2 + s_max * d2 * precision(s_max) ** 2
    return elbo.Terms(
        prior=0.5 * s_min * np.sum(x**2, 1),
        diffusion=0.5 * np.sum(integral(s_max) - integral(s_min), 1),
        reconstruction=0.5 * np.sum(np.log(2 * np.pi / s_max) + error, 1),
    )


@pytest.mark.parametrize("name", SDES)
def test_each_term_is_its_closed_form(name):
    sde = SDES[name]()
    found, true = estimates(sde, X), closed_form(sde, X)
    np.testing.assert_allclose(found.prior[0], true.prior, rtol=1e-4)
    assert_mean(found.diffusion, true.diffusion)
    assert_mean(found.reconstruction, true.reconstruction)


def test_one_time_has_the_same_expectation_as_many():
    sde = sdes.vp()
    assert_mean(estimates(sde, X, n_times=1, n=4 * N).diffusion, closed_form(sde, X).diffusion)


def test_the_terms_sum_to_the_negative_log_density_as_the_ends_go_to_infinity():
    """What the finite ends leave: the prior's alpha^2 and, at t_min, 1 / s: under 1e-4 for VE."""
    total = sum(closed_form(sdes.ve(1e-3, 1e4), X))
    np.testing.assert_allclose(total, -GAUSSIAN.logp(X, (1.0, 0.0)), atol=1e-4)


def test_the_bound_is_never_below_the_truth_and_a_wrong_model_is_worse():
    """With the perfect prediction it exceeds it by less than 1e-2 nats; a model of N(0, I) by its KL divergence."""
    sde = sdes.vp()
    rng = np.random.default_rng(1)
    x = rng.multivariate_normal(GAUSSIAN.mean, GAUSSIAN.covariance, 4 * N)
    kl = 0.5 * (
        np.trace(GAUSSIAN.covariance)
        + GAUSSIAN.mean @ GAUSSIAN.mean
        - 2
        - np.linalg.slogdet(GAUSSIAN.covariance)[1]
    )
    excess = lambda predictor: (
        sum(estimates(sde, x, predictor, n=1))[0] + GAUSSIAN.logp(x, (1.0, 0.0))
    )
    gap = np.mean(sum(closed_form(sde, x)) + GAUSSIAN.logp(x, (1.0, 0.0)))
    assert 0 < gap < 1e-2
    assert_mean(excess(None), gap)
    wrong = exact.predictor(sde, exact.gaussian(np.zeros(2), np.eye(2)))
    assert_mean(excess(wrong), kl)


def wrong_linear(sde):
    """The perfect prediction for other data, and in closed form the diffusion term at X, by the trapezium rule.

    eps - eps_hat = (I - A) eps - sqrt(s) A (x - mean), A = (I + s covariance)^-1.
    """
    mean, covariance = np.array([-0.5, 0.4]), np.array([[0.2, -0.1], [-0.1, 0.6]])
    smallest, largest = sorted(float(end) for end in sdes.log_snr_ends(sde))
    log_s = np.linspace(smallest, largest, 2001)
    s = np.exp(log_s)[:, None, None]
    a = np.linalg.inv(np.eye(2) + s * covariance)
    noise = np.sum((np.eye(2) - a) ** 2, (1, 2))[:, None]
    signal = s[:, 0] * np.sum((a @ (X - mean).T) ** 2, 1)
    diffusion = 0.5 * np.trapezoid(noise + signal, log_s, axis=0)
    return exact.predictor(sde, exact.gaussian(mean, covariance)), diffusion


@pytest.mark.parametrize("form", elbo.FORMS)
def test_all_forms_have_the_same_expectation_also_for_a_wrong_score(form):
    """Each of the perfect prediction and of a wrong linear one is within 4 standard errors of its closed form."""
    sde = sdes.vp()
    run = lambda predictor: estimates(sde, X, predictor, form=form).diffusion
    assert_mean(run(None), closed_form(sde, X).diffusion)
    predictor, diffusion = wrong_linear(sde)
    assert np.all(np.abs(diffusion - closed_form(sde, X).diffusion) > 1.0)
    assert_mean(run(predictor), diffusion)


@pytest.mark.parametrize(
    ("sigmas", "best"), [((1e-3, 1e-2), ("dsm", "skilling")), ((20.0, 50.0), ("vdm",))]
)
def test_each_form_has_the_least_variance_at_its_own_end_of_the_noise(sigmas, best):
    """With noise far below the data's scale eps_hat is next to 0, far above it next to eps."""
    sde = sdes.edm(*sigmas)
    std = {form: np.std(estimates(sde, X, form=form, n=200).diffusion) for form in elbo.FORMS}
    others = [value for form, value in std.items() if form not in best]
    assert 5 * max(std[form] for form in best) < min(others)


@pytest.mark.parametrize("data", ["uniform", "lattice"])
def test_the_bound_on_levels_with_the_discrete_decoder_is_their_probability(data):
    """For categorical pixels and the perfect prediction, within 4 standard errors, with no scaling to add.

    At 2 levels the decoder is their exact posterior, here at noise of a fifth of a box. What the
    ends leave is the prior's: 1e-5 nats.
    """
    sde, levels = sdes.edm(sigma_min=0.2, sigma_max=300.0), 2
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.02, 0.98]])
    noised_logp = {
        "uniform": exact.boxes(probabilities, np.linspace(-1, 1, levels + 1)),
        "lattice": exact.points(probabilities, np.array([-0.5, 0.5])),
    }[data]
    predictor = exact.predictor(sde, noised_logp)

    def run(keys, k):
        reconstruct = lambda keys, sde, predict, x, label: dequantize.reconstruction(
            keys, Given(sde, predict), k, levels, label, data=data, ridge=1e-5
        )
        x = dequantize.lattice(k, levels)
        if data == "uniform":
            x = dequantize.uniform_box(keys, Given(sde, predictor), k, levels).x
        times = jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys)
        options = dict(form="dsm", n_times=16, reconstruct=reconstruct)
        return sum(elbo.negative_elbo(times, sde, predictor, x, **options))

    k = np.tile(np.array([[0, 1, 1], [1, 0, 1]], np.uint8), (N, 1))
    found = jax.jit(run)(jax.random.split(jax.random.key(0), 2 * N), jnp.asarray(k))
    truth = -np.log(probabilities[np.arange(3), k[:2]]).sum(1)
    assert_mean(np.asarray(found).reshape(N, 2), truth)


def steps_of(sde, n_steps, grid=grids.log_snr):
    """Each step's t and the factor on || eps - eps_hat ||^2, in float64."""
    u = (jnp.arange(n_steps) + 0.5) / n_steps
    return elbo.time_and_weight(sde, grid(sde), u, n_steps)


def posterior(q_s, q_t, x_t, x0):
    """Mean and variance of q(x_s | x_t, x0), by conditioning the Gaussian q(x_s | x0) on a transition to x_t.

    q_s, q_t: (alpha, sigma).
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = q_s, q_t
    ratio = alpha_t / alpha_s
    transition = sigma_t**2 - (ratio * sigma_s) ** 2
    precision = 1 / sigma_s**2 + ratio**2 / transition
    return (alpha_s * x0 / sigma_s**2 + ratio * x_t / transition) / precision, 1 / precision


def ddpm_posterior(betas, i, x_t, x0):
    """That of DDPM's step i to i - 1 (Ho et al. 2020, arXiv 2006.11239, eq. 6-7), i counted from 1."""
    products = np.concatenate([[1.0], np.cumprod(1 - betas)])
    before, after, beta = products[i - 1], products[i], betas[i - 1]
    mean = np.sqrt(before) * beta * x0 + np.sqrt(1 - beta) * (1 - before) * x_t
    return mean / (1 - after), (1 - before) / (1 - after) * beta


def kl_of_step(of_x0, x0, x0_hat):
    """KL(q(x_s | x_t, x0) || q(x_s | x_t, x0_hat)), summed over dimensions, equal variances."""
    (mean, variance), (mean_hat, _) = of_x0(x0), of_x0(x0_hat)
    return np.sum((mean - mean_hat) ** 2, -1) / (2 * variance)


def draws(sde, t):
    """x0, x_t, eps, and a wrong prediction of them, for one example at each time."""
    predictor, _ = wrong_linear(sde)
    x0, eps = np.random.default_rng(0).normal(size=(2, len(t), 2))
    x_t = sdes.perturb(sde, jnp.asarray(x0), t, jnp.asarray(eps))
    pair = predictor(x_t, t)
    return x0, np.asarray(x_t), eps, np.asarray(pair.x0), np.asarray(pair.eps)


def test_ddpms_t_step_bound_from_its_gaussians_is_the_weighted_fisher_form(x64):
    """The sum over i = 2 ... n of Ho et al.'s L_(i-1), eq. 5, draw by draw and to 1e-10."""
    n = 50
    betas = np.linspace(1e-3, 0.2, n)
    sde = sdes.of_betas(betas, t_min=1 / n)
    t, weight = steps_of(sde, n - 1, grids.uniform)
    x0, x_t, eps, x0_hat, eps_hat = draws(sde, t)
    # the grid goes down from step n
    steps = np.arange(n, 1, -1)
    np.testing.assert_allclose(t, steps / n, rtol=1e-12)
    gaussians = [
        kl_of_step(
            lambda x, i=i, row=row: ddpm_posterior(betas, i, x_t[row], x), x0[row], x0_hat[row]
        )
        for row, i in enumerate(steps)
    ]
    fisher = weight / (n - 1) * np.sum((eps - eps_hat) ** 2, -1)
    np.testing.assert_allclose(fisher, gaussians, rtol=1e-10)


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve", "linear"])
def test_every_linear_sdes_steps_are_divergences_of_gaussians(x64, name):
    """By conditioning Gaussians, with the steps of a grid uniform in log-SNR; the rounding is the posterior's."""
    sde, n = SDES[name](), 40
    t, weight = steps_of(sde, n)
    x0, x_t, eps, x0_hat, eps_hat = draws(sde, t)
    s = grids.log_snr(sde)((jnp.arange(n) + 1) / n)
    at = lambda t: tuple(np.asarray(f(t))[:, None] for f in (sde.alpha, sde.sigma))
    mean, variance = posterior(at(s), at(t), x_t, x0)
    mean_hat, _ = posterior(at(s), at(t), x_t, x0_hat)
    gaussians = np.sum((mean - mean_hat) ** 2 / (2 * variance), -1)
    fisher = weight / n * np.sum((eps - eps_hat) ** 2, -1)
    np.testing.assert_allclose(fisher, gaussians, rtol=1e-8)
    # and in x0 the factor is SNR(s) - SNR(t)
    snr = lambda t: np.exp(np.asarray(sdes.log_snr(sde, t)))
    in_x0 = 0.5 * (snr(s) - snr(t)) * np.sum((x0 - x0_hat) ** 2, -1)
    np.testing.assert_allclose(in_x0, gaussians, rtol=1e-8)


def discrete(sde, n_steps):
    """The expected diffusion term at X of n_steps uniform in log-SNR, from e(s) in closed form."""
    t, weight = steps_of(sde, n_steps)
    s = np.exp(np.asarray(sdes.log_snr(sde, t), float))[:, None]
    d2 = (((X - GAUSSIAN.mean) @ AXES) ** 2)[:, None]
    precision = 1 / (1 + EIGENVALUES * s)
    error = np.sum((EIGENVALUES * s * precision) ** 2 + s * d2 * precision**2, -1)
    return np.asarray(weight) @ error.T / n_steps


def test_the_t_step_bound_tends_to_the_continuous_one_as_one_over_t(x64):
    """From above, with the perfect prediction; the excess halves as the steps double."""
    sde = sdes.vp()
    limit = closed_form(sde, X).diffusion
    excess = np.array([discrete(sde, n) - limit for n in (1000, 2000, 4000)])
    assert np.all(excess > 0)
    np.testing.assert_allclose(np.log2(excess[:-1] / excess[1:]), 1.0, atol=0.02)


@pytest.mark.parametrize("n_times", [4, 10])
def test_the_t_step_estimate_has_the_expectation_of_all_steps(n_times):
    """Also with fewer times than steps; with as many, each step is visited once."""
    sde = sdes.vp()
    found = estimates(sde, X, n_times=n_times, n_steps=10)
    assert_mean(found.diffusion, discrete(sde, 10))
    assert np.all(discrete(sde, 10) > 1.5 * closed_form(sde, X).diffusion)


def test_the_continuous_estimate_has_the_same_expectation_along_any_grid():
    sde = sdes.vp(t_min=1e-2)
    found = estimates(sde, X, grid=grids.uniform, n_times=16).diffusion
    assert_mean(found, closed_form(sde, X).diffusion)


def test_a_time_next_to_the_end_belongs_to_the_last_step():
    """u = 1 - 2^-24 rounds to 1 in float32 when it is multiplied by the number of steps."""
    sde = sdes.vp()
    u = jnp.array([1 - 2.0**-24, 1.0])
    t, weight = elbo.time_and_weight(sde, grids.uniform(sde), u, 1000)
    last, expected = steps_of(sde, 1000, grids.uniform)
    np.testing.assert_allclose(t, last[-1], rtol=1e-6)
    np.testing.assert_allclose(weight, expected[-1], rtol=1e-6)


def test_an_examples_estimate_depends_on_its_own_key_alone():
    sde = sdes.vp()
    predictor = exact.predictor(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))
    keys = jax.random.split(jax.random.key(2), 3)
    x = jnp.asarray(X, jnp.float32)
    run = jax.jit(lambda keys, x: elbo.negative_elbo(keys, sde, predictor, x, n_times=4))
    together, alone = run(keys, x), run(keys[1:2], x[1:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1:2], b, rtol=1e-6), together, alone)
