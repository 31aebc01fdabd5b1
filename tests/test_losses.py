"""Losses: their minimum, their gradient and their identities on Gaussian data, in closed form.

For data with variance lambda along a principal axis and s = alpha^2 / sigma^2, the perfect
prediction's squared error in eps is lambda s / (1 + lambda s), the posterior variance. Where the
minimum is but not its value, also on a mixture of two Gaussians.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, SDES, assert_mean
from scipy.integrate import quad
from scipy.stats import norm

from score_jax import adaptive, exact, grids, losses, shapes
from score_jax import sde as sdes
from score_jax.model import Model
from score_jax.types import Batch, Prediction

EIGENVALUES = np.linalg.eigvalsh(GAUSSIAN.covariance)
WEIGHTS, MEANS, STD = np.array([0.4, 0.6]), np.array([[-1.2, 0.8], [0.8, -1.0]]), 0.25


def perfect(sde):
    predictor = exact.predictor(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))
    return Model(
        init=lambda key, shape: (),
        sde=lambda params: sde,
        predict=lambda params, x, t, label=None, *, keys=None, augment=None: predictor(x, t),
    )


def linear_in_x(sde):
    """eps_hat = w x_t: wrong for every w, and of a known risk."""

    def predict(w, x, t, label=None, *, keys=None, augment=None):
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return Prediction((x - sigma * w * x) / alpha, w * x)

    return Model(init=None, sde=lambda params: sde, predict=predict)


def batch(key, n=32):
    data, examples = jax.random.split(key)
    root = np.linalg.cholesky(GAUSSIAN.covariance)
    x = GAUSSIAN.mean + jax.random.normal(data, (n, 2)) @ root.T
    keys = jax.random.split(examples, n)
    return Batch(x, None, keys, jnp.arange(n) / n)


def mixture_batch(key):
    components, key = jax.random.split(key)
    given = batch(key)
    chosen = jax.random.choice(components, len(WEIGHTS), given.x.shape[:1], p=jnp.asarray(WEIGHTS))
    noise = shapes.normal(shapes.fold_in(given.keys, 9), given.x)
    return given._replace(x=jnp.asarray(MEANS, noise.dtype)[chosen] + STD * noise)


def values(loss, params=(), loss_state=(), draw=batch):
    """The loss of 400 independent batches."""

    def one(key):
        times, examples = jax.random.split(key)
        return loss(times, params, loss_state, draw(examples), 0)[0]

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 400))


def error(sde, t):
    """The perfect prediction's mean squared error in eps per dimension, at a scalar t."""
    t = np.asarray(t)
    s = np.exp(float(sdes.log_snr(sde, jnp.asarray(t, float))))
    return np.mean(EIGENVALUES * s / (1 + EIGENVALUES * s))


def minimum_under_likelihood_weighting(sde):
    """1/2 int E ||eps - eps_hat||^2 d log_snr / dimensions: log(1 + lambda s) / 2 between the ends."""
    ends = np.exp([float(end) for end in sdes.log_snr_ends(sde)])
    return 0.5 * np.mean(np.diff(np.log1p(np.outer(EIGENVALUES, ends[::-1]))))


# where the time density is far from uniform in log-SNR the weights' variance grows as 1 / t_min
COARSE = {
    "vp": lambda: sdes.vp(t_min=1e-2),
    "sub_vp": lambda: sdes.sub_vp(t_min=5e-2),
    "ve": lambda: sdes.ve(1e-2, 50.0),
    "linear": lambda: sdes.linear(2e-2, 0.98),
    "edm": lambda: sdes.edm(5e-2, 5.0),
    "cosine": lambda: sdes.cosine(t_min=1e-2, t_max=0.99),
    "ddpm": lambda: sdes.ddpm(t_min=1e-2),
}


@pytest.mark.parametrize(
    ("name", "grid"),
    [("vp", grids.log_snr), ("vp", grids.power), *((name, grids.uniform) for name in SDES)],
)
def test_the_likelihood_weighted_minimum_is_the_posterior_variance_whatever_the_grid(name, grid):
    sde = COARSE[name]()
    loss = losses.denoising(perfect(sde), grid=grid, weight=losses.likelihood)
    assert_mean(values(loss), minimum_under_likelihood_weighting(sde))


def test_the_likelihood_weighted_minimum_holds_down_to_the_default_t_min():
    sde = sdes.vp()
    assert_mean(values(losses.denoising(perfect(sde))), minimum_under_likelihood_weighting(sde))


def test_the_continuous_simple_minimum_is_the_posterior_variance_averaged_over_time():
    sde = sdes.vp()
    loss = losses.ddpm(perfect(sde), n_times=None)
    assert_mean(values(loss), quad(lambda t: error(sde, t), sde.t_min, 1)[0] / (1 - sde.t_min))


@pytest.mark.parametrize(
    ("path", "factor"),
    [
        (sdes.linear, lambda t: 1 / (1 - t)),
        (partial(sdes.cosine, s=0.0, t_min=1e-3), lambda t: np.pi / 2 / np.cos(np.pi / 2 * t)),
    ],
    ids=["linear", "cosine"],
)
def test_flow_matchings_minimum_is_the_variance_of_the_velocity(path, factor):
    """Errors satisfy alpha x0_err = -sigma eps_err: in the velocity (sigma' - alpha' sigma / alpha) eps_err."""
    sde = path()
    loss = losses.flow_matching(perfect(sde))
    squared = lambda t: error(sde, t) * factor(t) ** 2
    integral = quad(squared, sde.t_min, sde.t_max, limit=200)[0]
    assert_mean(values(loss), integral / (sde.t_max - sde.t_min))


def test_the_gradient_at_a_wrong_linear_prediction_is_the_risks():
    """E ||eps - w x||^2 / d = 1 - 2 w sigma + w^2 m, m = alpha^2 E ||x0||^2 / d + sigma^2."""
    sde, w = sdes.vp(), 0.4
    loss = losses.denoising(
        linear_in_x(sde), grid=grids.uniform, weight=losses.simple, target="eps"
    )

    def gradient(t):
        alpha, sigma = float(sde.alpha(jnp.asarray(t))), float(sde.sigma(jnp.asarray(t)))
        second = (GAUSSIAN.mean @ GAUSSIAN.mean + EIGENVALUES.sum()) / 2
        return -2 * sigma + 2 * w * (alpha**2 * second + sigma**2)

    found = values(lambda key, w, *rest: (jax.grad(lambda w: loss(key, w, *rest)[0])(w),), w)
    assert_mean(found, quad(gradient, sde.t_min, 1)[0] / (1 - sde.t_min))


def test_stratified_times_leave_the_noise_alone_to_vary_and_independent_ones_do_not():
    """weight t on ||eps||^2 / d, d = 64: its variance is E t^2 2/d from the noise and 1/12 from the time.

    A variance of 400 normal values has standard error sqrt(2 / 400) = 0.07 of itself.
    """
    n, d = 32, 64
    weight = lambda sde, t, dt_du: t

    def variance(position, **options):
        loss = losses.denoising(
            linear_in_x(sdes.vp()), grid=grids.uniform, weight=weight, **options
        )

        def one(key):
            times, examples = jax.random.split(key)
            keys = jax.random.split(examples, len(position))
            return loss(times, 0.0, (), Batch(jnp.zeros((len(keys), d)), None, keys, position), 0)

        found = jax.jit(jax.vmap(lambda key: one(key)[0]))
        return np.var(found(jax.random.split(jax.random.key(0), 400)))

    noise, time = 2 / d / 3, 1 / 12
    np.testing.assert_allclose(variance(jnp.arange(n) / n), noise / n, rtol=0.28)
    np.testing.assert_allclose(variance(jnp.zeros(1)), noise + time, rtol=0.28)
    independent = variance(jnp.arange(n) / n, stratify=False)
    np.testing.assert_allclose(independent, (noise + time) / n, rtol=0.28)


def test_the_weighted_eps_loss_is_the_g2_weighted_score_loss(x64, sde):
    """g^2 / 2 ||score - score_hat||^2 per unit time (Song et al. 2021), draw by draw."""
    g2 = lambda sde, t, dt_du: 0.5 * sdes.diffusion(sde, t) ** 2 * dt_du
    in_eps = losses.denoising(linear_in_x(sde), weight=losses.likelihood, target="eps")
    in_score = losses.denoising(linear_in_x(sde), weight=g2, target="score")
    arguments = (jax.random.key(1), 0.3, (), batch(jax.random.key(2), 8), 0)
    found = jax.jit(lambda: [loss(*arguments)[0] for loss in (in_eps, in_score)])()
    np.testing.assert_allclose(*found, rtol=1e-9)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts():
    sde = sdes.vp()
    whole = batch(jax.random.key(3), 8)
    denoising = losses.denoising(linear_in_x(sde))
    loss = jax.jit(lambda part: denoising(jax.random.key(4), 0.3, (), part, 0)[0])
    parts = [jax.tree.map(lambda a, half=half: a[half], whole) for half in (slice(4), slice(4, 8))]
    np.testing.assert_allclose(loss(whole), (loss(parts[0]) + loss(parts[1])) / 2, rtol=1e-5)


def in_x0(s):
    """The perfect prediction's mean squared error in x0 per dimension, at SNR s."""
    return np.mean(EIGENVALUES / (1 + EIGENVALUES * s))


def over_time(sde, integrand):
    """The mean over uniform t of a function of SNR."""
    snr = lambda t: np.exp(float(sdes.log_snr(sde, jnp.asarray(t, float))))
    return quad(lambda t: integrand(snr(t)), sde.t_min, sde.t_max)[0] / (sde.t_max - sde.t_min)


def ddpms_minimum():
    """Over the 1000 values of alpha-bar / (1 - alpha-bar)."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    return np.mean([s * in_x0(s) for s in alpha_bar / (1 - alpha_bar)])


def ncsns_minimum():
    return np.mean([s * in_x0(s) for s in np.geomspace(1, 0.01, 10) ** -2])


def edms_minimum(sigma_data, law):
    def integrand(log_sigma):
        sigma = np.exp(log_sigma)
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        return weight * in_x0(sigma**-2) * law.pdf(log_sigma)

    return quad(integrand, np.log(0.002), np.log(80), limit=200)[0]


def min_snrs_minimum():
    return over_time(sdes.vp(), lambda s: min(s, 2.0) * in_x0(s))


def soft_min_snrs_minimum():
    return over_time(sdes.vp(), lambda s: in_x0(s) / (1 / s + 1 / 3.0))


def sigmoids_minimum(bias):
    """The integral over log-SNR v of sigmoid(bias - v) times half the error in eps."""
    integrand = lambda v: 0.5 * np.exp(v) * in_x0(np.exp(v)) / (1 + np.exp(v - bias))
    smallest, largest = (float(end) for end in reversed(sdes.log_snr_ends(sdes.vp())))
    return quad(integrand, smallest, largest)[0]


# preset -> loss at the perfect prediction, and its minimum
PRESETS = {
    "ddpm": (lambda model: losses.ddpm(model(sdes.ddpm(t_min=1e-3))), ddpms_minimum),
    "ncsn": (lambda model: losses.ncsn(model(sdes.ve(0.01, 1.0))), ncsns_minimum),
    "ncsn of t = sigma": (lambda model: losses.ncsn(model(sdes.edm(0.01, 1.0))), ncsns_minimum),
    "edm": (
        lambda model: losses.edm(model(sdes.edm())),
        lambda: edms_minimum(0.5, norm(-1.2, 1.2)),
    ),
    "edm, other numbers": (
        lambda model: losses.edm(model(sdes.edm()), sigma_data=0.8, mean=-0.5, std=0.7),
        lambda: edms_minimum(0.8, norm(-0.5, 0.7)),
    ),
    "min_snr": (lambda model: losses.min_snr(model(sdes.vp()), gamma=2.0), min_snrs_minimum),
    "soft_min_snr": (
        lambda model: losses.soft_min_snr(model(sdes.vp()), gamma=3.0),
        soft_min_snrs_minimum,
    ),
    "sigmoid": (lambda model: losses.sigmoid(model(sdes.vp())), lambda: sigmoids_minimum(2.0)),
    "sigmoid, other grid": (
        lambda model: losses.sigmoid(model(sdes.vp()), bias=-1.0, grid=grids.log_normal),
        lambda: sigmoids_minimum(-1.0),
    ),
    "one level": (
        lambda model: losses.denoising(model(sdes.vp()), weight=losses.simple, level=0.5),
        lambda: 4.0 * in_x0(4.0),
    ),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_minimum_is_its_papers_weight_times_the_posterior_variance(name):
    make, minimum = PRESETS[name]
    assert_mean(values(make(perfect)), minimum())


OTHERS = {
    "denoising": lambda model: losses.denoising(model(sdes.vp())),
    "flow_matching": lambda model: losses.flow_matching(model(sdes.linear())),
}
PERFECT = {name: make for name, (make, _) in PRESETS.items()} | OTHERS


def around(base, sde):
    """base(sde, c, x, t)'s prediction of eps plus a x + b, params (a, b, c)."""

    def predict(params, x, t, label=None, *, keys=None, augment=None):
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        eps = base(sde, params[2], x, t) + params[0] * x + params[1]
        return Prediction((x - sigma * eps) / alpha, eps)

    return Model(init=None, sde=lambda params: sde, predict=predict)


def gradients(name, base, draw):
    """A function of c: the gradient of each batch's loss by a (2), b (2) and c, [400, 5]."""
    loss = PERFECT[name](partial(around, base))

    def gradient(key, params, *rest):
        by = jax.grad(lambda params: loss(key, params, *rest)[0])(params)
        return (jnp.append(jnp.concatenate(by[:2]), by[2]),)

    return jax.jit(lambda c: values(gradient, (jnp.zeros(2), jnp.zeros(2), c), draw=draw))


@pytest.mark.parametrize("name", PERFECT)
def test_the_true_score_is_every_presets_minimiser(name):
    truth = exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance)
    base = lambda sde, c, x, t: exact.predictor(sde, truth)(x, t).eps
    assert_mean(gradients(name, base, batch)(0.0)[:, :4], 0.0)


@pytest.mark.parametrize("name", PERFECT)
def test_a_mixtures_score_is_every_presets_minimiser_and_a_gaussians_of_its_moments_is_not(name):
    """On the line from the one to the other; the Gaussian's is a minimiser among linear functions of x."""
    mean = WEIGHTS @ MEANS
    covariance = (WEIGHTS * (MEANS - mean).T) @ (MEANS - mean) + STD**2 * np.eye(2)
    truth, gaussian = exact.mixture(WEIGHTS, MEANS, STD), exact.gaussian(mean, covariance)

    def base(sde, c, x, t):
        eps = [exact.predictor(sde, logp)(x, t).eps for logp in (truth, gaussian)]
        return (1 - c) * eps[0] + c * eps[1]

    at = gradients(name, base, mixture_batch)
    assert_mean(at(0.0), 0.0)
    found = np.asarray(at(1.0))
    assert_mean(found[:, :4], 0.0)
    # standard errors, of 20 at the least
    assert np.mean(found[:, 4]) > 10 * np.std(found[:, 4]) / np.sqrt(len(found))


def same(sde, first, *others):
    """(weight, target) pairs are one loss, draw by draw, at a wrong prediction."""
    arguments = (jax.random.key(1), 0.3, (), batch(jax.random.key(2), 8), 0)

    def value(weight, target):
        loss = losses.denoising(linear_in_x(sde), weight=weight, target=target)
        return loss(*arguments)[0]

    found = jax.jit(lambda: [value(*pair) for pair in (first, *others)])()
    np.testing.assert_allclose(found[1:], found[0], rtol=1e-8)


def snr_of(sde, t):
    return jnp.square(sde.alpha(t) / sde.sigma(t))


# an SDE whose alpha^2 + sigma^2 is not 1
UNSCALED = sdes.sub_vp


def test_edms_weight_on_eps_is_the_papers_on_x0_and_one_on_its_network(x64):
    paper = lambda sde, t, _: (1 / snr_of(sde, t) + 0.25) / (0.25 / snr_of(sde, t))
    same(UNSCALED(), (losses.edm_weight(), "eps"), (paper, "x0"), (losses.simple, "edm"))


def test_min_snrs_weight_on_eps_is_the_papers_on_x0_and_on_v(x64):
    clipped = lambda sde, t, _: jnp.minimum(snr_of(sde, t), 5.0)
    on_v = lambda sde, t, _: clipped(sde, t, _) / (snr_of(sde, t) + 1)
    same(sdes.vp(), (losses.min_snr_weight(), "eps"), (clipped, "x0"), (on_v, "v"))


def test_min_snrs_weight_is_one_below_gamma_and_gamma_over_snr_above(x64):
    sde, snr = sdes.cosine(), np.array([1e-3, 1.0, 2.9, 3.1, 50.0, 1e4])
    t = sde.time_of_log_snr(jnp.log(snr))
    found = losses.min_snr_weight(3.0)(sde, t, jnp.ones(6))
    np.testing.assert_allclose(found, [1, 1, 1, 3 / 3.1, 3 / 50, 3e-4], rtol=1e-9)


def test_soft_min_snrs_weight_is_the_papers_on_x0(x64):
    """1 / (sigma^2 + 1 / gamma) of alpha = 1."""
    paper = lambda sde, t, _: 1 / (1 / snr_of(sde, t) + 1 / 4.0)
    same(UNSCALED(), (losses.soft_min_snr_weight(), "eps"), (paper, "x0"))


def test_the_sigmoid_weight_is_simpler_diffusions_on_x0(x64):
    """- d log_snr / dt e^bias sigmoid(log_snr - bias) / 2."""
    rate = lambda sde, t, dt_du: 0.5 * sdes.log_snr_rate(sde, t) * dt_du
    on_x0 = lambda sde, t, dt_du: (
        rate(sde, t, dt_du) * jnp.exp(-1.0) / (1 + jnp.exp(-1.0) / snr_of(sde, t))
    )
    same(UNSCALED(), (losses.sigmoid_weight(-1.0), "eps"), (on_x0, "x0"))


def times_of(make, n, **options):
    """The times that a loss looks at, for a batch of n."""

    def found():
        seen = []
        weight = lambda sde, t, dt_du: seen.append(t) or jnp.ones_like(t)
        loss = make(weight=weight, **options)
        loss(jax.random.key(0), 0.3, (), batch(jax.random.key(1), n), 0)
        return seen[0]

    return np.sort(jax.jit(found)())


def test_ddpms_times_are_its_steps_and_its_noise_that_of_its_betas(x64):
    sde = sdes.ddpm(t_min=1e-3)
    t = times_of(partial(losses.ddpm, linear_in_x(sde)), 1000)
    np.testing.assert_allclose(t, np.arange(1, 1001) / 1000, rtol=1e-12)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(sde.alpha(jnp.asarray(t)) ** 2, alpha_bar, rtol=1e-9)


def test_ncsns_times_are_its_noise_levels_equally_often(x64):
    """Of 2000 independent times each of 10 levels takes 200, standard deviation sqrt(180)."""
    sde, levels = sdes.ve(0.01, 1.0), np.geomspace(0.01, 1, 10)
    for n, options in ((10, {}), (2000, {"stratify": False})):
        sigma = sde.sigma(
            jnp.asarray(times_of(partial(losses.ncsn, linear_in_x(sde)), n, **options))
        )
        found, counts = np.unique(np.round(np.asarray(sigma), 9), return_counts=True)
        np.testing.assert_allclose(found, levels, rtol=1e-6)
        assert np.all(np.abs(counts - n / 10) < 4 * np.sqrt(0.09 * n))


def test_discrete_times_under_likelihood_weighting_are_the_riemann_sum(x64):
    """Of the integral in nats, whose integrand in u is constant but for the error, at 4 points."""
    sde, n = sdes.vp(), 4
    loss = losses.denoising(linear_in_x(sde), n_times=n)
    one = batch(jax.random.key(5), n)
    found = loss(
        jax.random.key(6), 0.0, (), one._replace(x=jnp.zeros((n, 2)), eps=jnp.ones((n, 2))), 0
    )
    largest, smallest = sdes.log_snr_ends(sde)
    np.testing.assert_allclose(found[0], (largest - smallest) / 2, rtol=1e-6)


def test_at_one_level_the_loss_is_the_same_under_every_sde(x64):
    arguments = (jax.random.key(1), (), (), batch(jax.random.key(2), 8), 0)
    at = lambda sde: losses.denoising(perfect(sde), weight=losses.simple, level=0.7)(*arguments)[0]
    found = jax.jit(lambda: [at(sdes.vp()), at(sdes.edm()), at(sdes.linear())])()
    np.testing.assert_allclose(found, found[0], rtol=1e-7)


def test_noise_that_a_batch_brings_takes_the_place_of_the_drawn():
    """eps = 0 at sigma = 0.5, alpha = 1: the error of eps_hat = w x_t is w x."""
    given = batch(jax.random.key(2), 8)
    given = given._replace(eps=jnp.zeros_like(given.x))
    loss = losses.denoising(linear_in_x(sdes.ve()), weight=losses.simple, level=0.5)
    found = loss(jax.random.key(1), 0.3, (), given, 0)[0]
    np.testing.assert_allclose(found, np.mean((0.3 * given.x) ** 2), rtol=1e-5)


def test_the_network_is_told_what_augmentation_did():
    """A network that answers with what it is told, which is the noise, makes no error."""

    def predict(params, x, t, label=None, *, keys=None, augment=None):
        return Prediction(x, augment)

    told = Model(init=None, sde=lambda params: sdes.vp(), predict=predict)
    given = batch(jax.random.key(2), 8)
    given = given._replace(augment=given.x, eps=given.x)
    assert losses.denoising(told)(jax.random.key(1), (), (), given, 0)[0] == 0.0


@pytest.mark.parametrize("n_times", [None, 10])
def test_second_moment_times_leave_the_expectation_alone(n_times):
    """A state far from the optimum; bins do not line up with the discrete times."""
    state = adaptive.SecondMoment(jnp.full(7, 9.0), jnp.array([0.0, 9.0, 1.0, 4.0, 0.1, 30.0, 2.0]))
    sde = sdes.ve(0.01, 1.0)
    loss = losses.ncsn(perfect(sde), n_times=n_times, time_bins=7)
    log_sigmas = lambda x: error(sde, x)
    expected = ncsns_minimum() if n_times else quad(log_sigmas, 0, 1)[0]
    assert_mean(values(loss, loss_state=state), expected)


def test_second_moment_times_lower_the_variance_where_the_loss_is_all_in_a_few():
    """Likelihood weighting under uniform time, nearly all of it in the first hundredth."""
    sde = sdes.vp(t_min=1e-4)
    options = dict(grid=grids.uniform, stratify=False)
    loss = losses.denoising(perfect(sde), time_bins=100, **options)

    def step(state, key):
        times, examples = jax.random.split(key)
        return loss(times, (), state, batch(examples), 0)[1][1], None

    keys = jax.random.split(jax.random.key(7), 200)
    state, _ = jax.jit(lambda: jax.lax.scan(step, adaptive.init(100), keys))()
    adapted = values(loss, loss_state=state)
    assert_mean(adapted, minimum_under_likelihood_weighting(sde))
    plain = values(losses.denoising(perfect(sde), **options))
    assert np.var(adapted) < np.var(plain) / 10
