"""Samplers and solvers against the exact answers for Gaussian data: the reverse process is affine at every n.

The references are the papers' formulas with the conditional means as matrices, in numpy. At a point
(t, s) a reference gives A, b, c of x_s = A x_t + b + c z; whole trajectories are compared with the
same z, so agreement is to rounding and not to Monte-Carlo error.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, SDES, assert_mean, coefficients

from score_jax import dynamics, exact, grids, samplers, sampling, shapes, solve
from score_jax import sde as sdes
from score_jax.types import Prediction

EYE = np.eye(2)


def perfect(sde):
    return exact.predictor(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))


def prior(n, sde, key):
    """Samples of the exact marginal at t_max, so that what is left is the sampler's own error."""
    mean, covariance = GAUSSIAN.moments(ends(sde)[0])
    return mean + jax.random.normal(key, (n, 2)) @ np.linalg.cholesky(covariance).T


def times(sde, n):
    return grids.log_snr(sde)(jnp.linspace(0.0, 1.0, n + 1))


# references: (c_t, c_s) -> A, b, c, where c_t = (alpha_t, sigma_t)


def conditional_means(c):
    """E[x0 | x] and E[eps | x] as matrices and offsets."""
    alpha, sigma = c
    mean, covariance = GAUSSIAN.moments(c)
    precision = np.linalg.inv(covariance)
    gain = alpha * GAUSSIAN.covariance @ precision
    return (gain, GAUSSIAN.mean - gain @ mean), (sigma * precision, -sigma * precision @ mean)


def posterior(c_t, c_s):
    """q(x_s | x_t, x0): factors of x_t and of x0, and the variance (Ho et al. 2020, eq. 6 and 7)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = c_t, c_s
    alpha_ts = alpha_t / alpha_s
    variance_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
    share = variance_ts / sigma_t**2
    return alpha_ts * sigma_s**2 / sigma_t**2, alpha_s * share, sigma_s**2 * share


def ancestral(c_t, c_s):
    """Ancestral sampling with the small variance: the posterior at the predicted x0."""
    of_x, of_x0, variance = posterior(c_t, c_s)
    (gain, offset), _ = conditional_means(c_t)
    return of_x * EYE + of_x0 * gain, of_x0 * offset, np.sqrt(variance)


def ancestral_large(c_t, c_s):
    """The same mean, with the variance that the forward SDE adds from s to t."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = c_t, c_s
    variance_ts = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    return *ancestral(c_t, c_s)[:2], np.sqrt(variance_ts)


def reverse_diffusion(c_t, c_s):
    """x - f + G^2 score + G z of the forward step x_t = x_s + f + G z (Song et al. 2021, 2011.13456, eq. 46)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = c_t, c_s
    f, g2 = alpha_t / alpha_s - 1, sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    mean, covariance = GAUSSIAN.moments(c_t)
    pull = g2 * np.linalg.inv(covariance)
    return (1 - f) * EYE - pull, pull @ mean, np.sqrt(g2)


def annealed_langevin(snr):
    """x + h score + sqrt(2 h) z at h = 2 (alpha_t / alpha_s snr sigma_t)^2."""

    def step(c_t, c_s):
        mean, covariance = GAUSSIAN.moments(c_t)
        h = 2 * (c_t[0] / c_s[0] * snr * c_t[1]) ** 2
        pull = h * np.linalg.inv(covariance)
        return EYE - pull, pull @ mean, np.sqrt(2 * h)

    return step


def ddim(eta):
    """Song et al. 2021 (arXiv 2010.02502), eq. 12, with noise of eta times the posterior's standard deviation."""

    def step(c_t, c_s):
        (gain, offset), (gain_eps, offset_eps) = conditional_means(c_t)
        alpha, sigma = c_s
        noise = eta * np.sqrt(posterior(c_t, c_s)[2])
        direction = np.sqrt(sigma**2 - noise**2)
        return alpha * gain + direction * gain_eps, alpha * offset + direction * offset_eps, noise

    return step


def euler_in_ratio(c_t, c_s):
    """Euler's method on d(x / alpha) / d(sigma / alpha) = eps."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = c_t, c_s
    _, (gain, offset) = conditional_means(c_t)
    h = sigma_s / alpha_s - sigma_t / alpha_t
    return alpha_s * (EYE / alpha_t + h * gain), alpha_s * h * offset, 0.0


def euler_maruyama(noise):
    """x + (s - t) (f x - (1 + noise^2) / 2 g^2 score) + noise g sqrt(t - s) z."""

    def steps(sde, ts):
        f, g = (np.asarray(fn(sde, ts), float) for fn in (sdes.drift, sdes.diffusion))
        for c_t, f_t, g_t, h in zip(coefficients(sde, ts), f, g, np.diff(ts), strict=False):
            mean, covariance = GAUSSIAN.moments(c_t)
            pull = 0.5 * (1 + noise**2) * g_t**2 * np.linalg.inv(covariance)
            yield EYE + h * (f_t * EYE + pull), -h * pull @ mean, noise * g_t * np.sqrt(-h)

    return steps


def each(step):
    """The affine maps between successive times of a reference in (c_t, c_s)."""
    return lambda sde, ts: itertools.starmap(step, itertools.pairwise(coefficients(sde, ts)))


REFERENCES = {
    "ddim": (lambda sde: samplers.ddim(sde, eta=0.0), each(euler_in_ratio)),
    "ddim, eta 1/2": (lambda sde: samplers.ddim(sde, eta=0.5), each(ddim(0.5))),
    "ddim, eta 1": (lambda sde: samplers.ddim(sde, eta=1.0), each(ancestral)),
    "ancestral": (samplers.ancestral, each(ancestral)),
    "ancestral, large": (
        lambda sde: samplers.ancestral(sde, variance="large"),
        each(ancestral_large),
    ),
    "reverse diffusion": (samplers.reverse_diffusion, each(reverse_diffusion)),
    "euler": (lambda sde: samplers.euler_maruyama(sde, noise=0.0), euler_maruyama(0.0)),
    "euler-maruyama": (lambda sde: samplers.euler_maruyama(sde, noise=1.0), euler_maruyama(1.0)),
    "euler-maruyama, noise 1/2": (
        lambda sde: samplers.euler_maruyama(sde, noise=0.5),
        euler_maruyama(0.5),
    ),
}


def walk(steps, x, noise):
    """The reference's trajectory; noise(i) is the normal draw of step i."""
    for i, (a, b, c) in enumerate(steps):
        x = x @ a.T + b + c * noise(i)
    return x


def walk_moments(steps, mean, covariance):
    for a, b, c in steps:
        mean, covariance = a @ mean + b, a @ covariance @ a.T + c**2 * EYE
    return mean, covariance


def ends(sde):
    """(alpha, sigma) at t_max, where sampling starts, and at t_min."""
    return coefficients(sde, [sde.t_max, sde.t_min])


def moments_and_products(x, mean):
    """Per sample, what averages to the mean and to the covariance."""
    d = x - mean
    return np.concatenate([d, d**2, d[:, :1] * d[:, 1:]], axis=1)


def assert_moments(x, mean, covariance):
    truth = np.array([0, 0, covariance[0, 0], covariance[1, 1], covariance[0, 1]])
    assert_mean(moments_and_products(np.asarray(x, float), mean), truth)


def test_every_step_is_its_papers_affine_map(x64, sde):
    """Eight steps, draw by draw; DDIM's is Euler in sigma / alpha, with eta = 1 ancestral sampling."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, ts = prior(3, sde, jax.random.key(1)), times(sde, 8)
    predictor = perfect(sde)

    @jax.jit
    def run(keys, x):
        return {
            name: samplers.sample(keys, make(sde), predictor, x, ts)
            for name, (make, _) in REFERENCES.items()
        }

    draw = lambda i: np.asarray(shapes.normal(shapes.fold_in(keys, i), x))
    found = run(keys, x)
    for name, (_, reference) in REFERENCES.items():
        expected = walk(reference(sde, ts), np.asarray(x), draw)
        np.testing.assert_allclose(found[name], expected, rtol=1e-7, atol=1e-9, err_msg=name)
    identity = found["ancestral"], found["ddim, eta 1"]
    np.testing.assert_allclose(*identity, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["ancestral", "euler-maruyama"])
def test_the_noise_is_normal_and_fresh_in_every_step(name):
    """The moments of 20000 samples at n = 20 against the recursion's, within 4 standard errors."""
    make, reference = REFERENCES[name]
    sde, n = sdes.vp(), 20000
    x, ts = prior(n, sde, jax.random.key(1)), times(sde, 20)
    keys = jax.random.split(jax.random.key(0), n)
    run = jax.jit(lambda keys, x: samplers.sample(keys, make(sde), perfect(sde), x, ts))
    start = GAUSSIAN.moments(ends(sde)[0])
    assert_moments(run(keys, x), *walk_moments(reference(sde, ts), *start))


@pytest.mark.parametrize("sde_name", SDES)
@pytest.mark.parametrize(
    "name", ["ancestral, large", "reverse diffusion", "euler", "euler-maruyama"]
)
def test_the_covariance_converges_to_the_data_at_order_one(x64, sde_name, name):
    """By the recursion, which the samplers follow to rounding. DDIM's order is the same under every SDE.

    Euler-Maruyama under VE in equal steps of log-SNR, which there are equal steps of t, is of order
    two: its error's first-order coefficient is the integral of an exact derivative that is zero at
    both ends. Euler's under the cosine schedule is so small that it shows above the second-order
    term at many steps only.
    """
    sde, (_, reference) = SDES[sde_name](), REFERENCES[name]
    start, (_, true) = (GAUSSIAN.moments(c) for c in ends(sde))

    def error(n):
        _, covariance = walk_moments(reference(sde, times(sde, n)), *start)
        return np.linalg.norm(covariance - true) / np.linalg.norm(true)

    n = 12800 if (name, sde_name) == ("euler", "cosine") else 400
    coarse, fine = error(n), error(2 * n)
    assert fine < 0.07
    order = 2 if (name, sde_name) == ("euler-maruyama", "ve") else 1
    np.testing.assert_allclose(coarse / fine, 2.0**order, rtol=0.1)


# correctors


def corrected_steps(sde, ts, snr, n_steps):
    """Annealed Langevin steps before each step of reverse diffusion, as affine maps."""
    correct = annealed_langevin(snr)
    for pair in itertools.pairwise(coefficients(sde, ts)):
        yield from [correct(*pair)] * n_steps
        yield reverse_diffusion(*pair)


def test_annealed_langevin_corrects_before_the_predictor_moves(x64, sde):
    """Draw by draw: three steps with two corrections each."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, ts, m = prior(3, sde, jax.random.key(1)), times(sde, 3), 2
    sampler = samplers.corrected(
        samplers.reverse_diffusion(sde), samplers.annealed_langevin(sde, snr=0.3, n_steps=m)
    )
    run = jax.jit(lambda keys, x: samplers.sample(keys, sampler, perfect(sde), x, ts))

    def draw(j):
        i, k = divmod(j, m + 1)
        step = shapes.fold_in(keys, i)
        corrector, predictor = shapes.fold_in(step, 0), shapes.fold_in(step, 1)
        key = predictor if k == m else shapes.fold_in(corrector, k)
        return np.asarray(shapes.normal(key, x))

    expected = walk(corrected_steps(sde, ts, 0.3, m), np.asarray(x), draw)
    np.testing.assert_allclose(run(keys, x), expected, rtol=1e-7, atol=1e-9)


def test_correcting_divides_a_coarse_predictors_error_by_at_least_two_and_a_half(x64, sde):
    """The covariance's error at 50 steps, by the recursion: from 17 to 25 % it falls to 4 to 7 %."""
    ts = times(sde, 50)
    start, (_, true) = (GAUSSIAN.moments(c) for c in ends(sde))

    def error(n_steps):
        steps = corrected_steps(sde, ts, 0.3, n_steps)
        return np.linalg.norm(walk_moments(steps, *start)[1] - true) / np.linalg.norm(true)

    assert error(2) < error(0) / 2.5
    assert error(2) < 0.08


def at_one_level(corrector, sde, predictor, keys, x, t, s):
    return jax.jit(lambda keys, x: corrector.step(keys, predictor, x, t, s, None)[0])(keys, x)


def test_annealed_langevin_has_the_closed_form_stationary_law():
    """From 0: N(mean, V (1 - h V^-1 / 2)^-1) of its steps h, 5 to 10 % wider than the marginal V; 4000 chains."""
    sde, n, snr = sdes.vp(), 4000, 0.3
    t, s = sde.time_of_log_snr(jnp.array([-1.0, -0.9]))
    (alpha, sigma), (alpha_s, _) = coefficients(sde, [t, s])
    mean, covariance = GAUSSIAN.moments((alpha, sigma))
    h = 2 * (alpha / alpha_s * snr * sigma) ** 2
    stationary = covariance @ np.linalg.inv(EYE - 0.5 * h * np.linalg.inv(covariance))
    corrector = samplers.annealed_langevin(sde, snr=snr, n_steps=60)
    keys = jax.random.split(jax.random.key(0), n)
    found = at_one_level(corrector, sde, perfect(sde), keys, jnp.zeros((n, 2)), t, s)
    assert_moments(found, mean, stationary)


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve"])
def test_langevins_step_is_the_papers_for_each_sample_alone(x64, name):
    """Algorithms 4 and 5 of 2011.13456: 2 alpha_i (snr |z| / |g|)^2 with alpha_i = 1 - beta_i, and 1 under VE."""
    sde, snr = SDES[name](), 0.2
    t, s = jnp.asarray(0.5), jnp.asarray(0.45)
    keys, x = jax.random.split(jax.random.key(0), 3), prior(3, sde, jax.random.key(1))
    corrector = samplers.langevin(sde, snr=snr)
    found = at_one_level(corrector, sde, perfect(sde), keys, x, t, s)
    alpha_i = 1.0 if name == "ve" else np.exp(-beta_integral(0.5) + beta_integral(0.45))
    z = np.asarray(shapes.normal(shapes.fold_in(keys, 0), x))
    for i in range(3):
        g = GAUSSIAN.score(x[i : i + 1], coefficients(sde, [t])[0])[0]
        h = 2 * alpha_i * (snr * np.linalg.norm(z[i]) / np.linalg.norm(g)) ** 2
        np.testing.assert_allclose(found[i], x[i] + h * g + np.sqrt(2 * h) * z[i], rtol=1e-9)


def beta_integral(t):
    return 0.1 * t + 0.5 * 19.9 * t**2


@pytest.mark.parametrize("name", ["sub_vp", "ve", "cosine", "linear"])
def test_predictor_corrector_has_the_moments_of_its_steps_in_many_dimensions(name):
    """N(m, v I) in 4096 dimensions, where |z|^2 / |score|^2 is V^2 / variance: 16 samples, 4 standard errors of 0.6 %.

    The recursion is in the scalar mean and variance.
    """
    sde = SDES[name]()
    m, v, snr, n_corrections, d = 0.5, 0.3, 0.3, 2, 4096
    draw = sampling.predictor_corrector(
        grid=grids.log_snr, n_steps=20, snr=snr, corrector_steps=n_corrections, denoise=False
    )
    ts = times(sde, 20)
    c_max = ends(sde)[0]
    mean, variance = c_max[0] * m, c_max[0] ** 2 * v + c_max[1] ** 2
    z = jax.random.normal(jax.random.key(1), (16, d))
    predictor = exact.predictor(sde, exact.mixture([1.0], [[m]], np.sqrt(v)))
    flat = lambda x, t, label=None: jax.tree.map(
        lambda a: a.reshape(x.shape), predictor(x.reshape(-1, 1), jnp.repeat(t, d))
    )
    run = jax.jit(lambda keys, x: draw(keys, sde, flat, x))
    found = run(jax.random.split(jax.random.key(0), 16), mean + np.sqrt(variance) * z)
    for (alpha_t, sigma_t), (alpha_s, sigma_s) in itertools.pairwise(coefficients(sde, ts)):
        marginal, ratio = alpha_t**2 * v + sigma_t**2, alpha_t / alpha_s
        for _ in range(n_corrections):
            square = variance + (mean - alpha_t * m) ** 2
            h = 2 * (ratio * snr * marginal) ** 2 / square
            mean -= h * (mean - alpha_t * m) / marginal
            variance = (1 - h / marginal) ** 2 * variance + 2 * h
        g2 = sigma_t**2 - ratio**2 * sigma_s**2
        mean = (2 - ratio) * mean - g2 * (mean - alpha_t * m) / marginal
        variance = (2 - ratio - g2 / marginal) ** 2 * variance + g2
    x = np.asarray(found.x, float).reshape(-1, 1)
    assert np.all(found.ok)
    assert_mean(np.concatenate([x, (x - mean) ** 2], 1), [mean, variance])


def test_ancestral_sampling_at_ddpms_times_is_ddpms_algorithm_2(x64):
    """In its betas and alpha_bars: the last step, i = 1, adds no noise and is the denoising."""
    betas = np.linspace(0.05, 0.4, 6)
    n, sde = 6, sdes.of_betas(betas, t_min=1 / 6)
    draw = sampling.predictor_corrector(
        n_steps=n - 1, predictor="ancestral_large", corrector="none", denoise=True
    )
    keys, x = jax.random.split(jax.random.key(0), 3), prior(3, sde, jax.random.key(1))
    found = jax.jit(lambda keys, x: draw(keys, sde, perfect(sde), x).x)(keys, x)
    alpha_bars, x = np.cumprod(1 - betas), np.asarray(x)
    for step, i in enumerate(reversed(range(n))):
        c = np.sqrt(alpha_bars[i]), np.sqrt(1 - alpha_bars[i])
        eps = -c[1] * GAUSSIAN.score(x, c)
        z = np.asarray(shapes.normal(shapes.fold_in(shapes.fold_in(keys, step), 1), found))
        x = (x - betas[i] / c[1] * eps) / np.sqrt(1 - betas[i])
        x += np.sqrt(betas[i]) * z * (i > 0)
    np.testing.assert_allclose(found, x, rtol=1e-9)


def test_reverse_diffusion_at_smlds_levels_is_the_papers_ve_predictor(x64):
    """x + d score + sqrt(d) z at d = sigma_{i+1}^2 - sigma_i^2, with sigma_0 = 0 (2011.13456, algorithm 2)."""
    n, sde = 6, sdes.ve(0.1, 10.0)
    draw = sampling.predictor_corrector(n_steps=n - 1, corrector="none")
    keys, x = jax.random.split(jax.random.key(0), 3), prior(3, sde, jax.random.key(1))
    found = jax.jit(lambda keys, x: draw(keys, sde, perfect(sde), x).x)(keys, x)
    sigmas, x = np.append(np.geomspace(10.0, 0.1, n), 0.0), np.asarray(x)
    for step, (high, low) in enumerate(itertools.pairwise(sigmas)):
        z = np.asarray(shapes.normal(shapes.fold_in(shapes.fold_in(keys, step), 1), found))
        x = x + (high**2 - low**2) * GAUSSIAN.score(x, (1.0, high))
        x += np.sqrt(high**2 - low**2) * z * (low > 0)
    np.testing.assert_allclose(found, x, rtol=1e-9)


def no_network(x, t):
    raise AssertionError("these steps need no prediction")


def test_the_projection_is_applied_after_each_step_with_the_time_reached():
    ts = jnp.array([1.0, 0.5, 0.25, 0.125])
    stay = samplers.Sampler(
        init=lambda x: None,
        step=lambda keys, predict, x, t, s, carry: (2 * x, carry),
        evaluations=0,
    )
    keys = jax.random.split(jax.random.key(0), 1)
    found = samplers.sample(
        keys, stay, no_network, jnp.ones((1, 1)), ts, project=lambda keys, x, s: x + s
    )
    assert found[0, 0] == ((1 * 2 + 0.5) * 2 + 0.25) * 2 + 0.125


def test_the_carry_goes_from_step_to_step():
    steps = samplers.Sampler(
        init=lambda x: jnp.zeros(()),
        step=lambda keys, predict, x, t, s, carry: (x + carry, carry + t - s),
        evaluations=0,
    )
    ts = jnp.array([1.0, 0.5, 0.25, 0.0])
    found = samplers.sample(
        jax.random.split(jax.random.key(0), 1), steps, no_network, jnp.zeros((1, 1)), ts
    )
    assert found[0, 0] == 0.5 + 0.75


# whole draws


def draw_from_exact_prior(draw, sde, n, predictor=None):
    keys = jax.random.split(jax.random.key(0), n)
    run = jax.jit(lambda keys, x: draw(keys, sde, predictor or perfect(sde), x))
    return run(keys, prior(n, sde, jax.random.key(1)))


@pytest.mark.parametrize(
    ("name", "solver", "tolerance", "bound"),
    [("vp", "dopri8", 1e-9, 1e-6), *((name, "tsit5", 1e-6, 1e-4) for name in SDES)],
)
def test_adaptive_probability_flow_is_the_closed_form_map(x64, name, solver, tolerance, bound):
    """Local errors at the tolerance add up to at most 100 of it, of the data's scale, 1."""
    sde = SDES[name]()
    draw = sampling.probability_flow(solver=solver, rtol=tolerance, atol=tolerance)
    found = draw_from_exact_prior(draw, sde, 3)
    x = prior(3, sde, jax.random.key(1))
    true = GAUSSIAN.flow(x, *ends(sde))
    assert np.all(found.ok)
    np.testing.assert_allclose(found.x, true, atol=bound)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_fixed_step_probability_flow_converges_at_its_solvers_order(x64, solver, order):
    sde = sdes.vp()
    x = prior(3, sde, jax.random.key(1))
    true = GAUSSIAN.flow(x, *ends(sde))

    def error(n):
        draw = sampling.probability_flow(solver=solver, n_steps=n)
        return np.linalg.norm(draw_from_exact_prior(draw, sde, 3).x - true)

    np.testing.assert_allclose(error(100) / error(200), 2.0**order, rtol=0.1)


@pytest.mark.parametrize(
    ("name", "solver"),
    [("vp", "euler"), ("vp", "sra1"), ("vp", "spark"), *((name, "shark") for name in SDES)],
)
def test_reverse_sde_has_the_datas_moments(name, solver):
    """4000 samples, 4 standard errors of 2 % in a variance; the bias of each at 200 steps is below 1/2 of one.

    Euler's bias is of order one, so it takes 1000 steps.
    """
    sde = SDES[name]()
    n_steps = 1000 if solver == "euler" else 200
    found = draw_from_exact_prior(sampling.reverse_sde(solver=solver, n_steps=n_steps), sde, 4000)
    assert np.all(found.ok)
    assert_moments(found.x, *GAUSSIAN.moments(ends(sde)[1]))


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("shark", 2), ("sra1", 2), ("spark", 2)]
)
def test_sde_solvers_move_a_perturbation_at_their_order(x64, solver, order):
    """Two starts on one Brownian path differ by a linear map: E[x_s | x_t] has slope alpha_t / alpha_s V_s / V_t."""
    sde, x = sdes.vp(), jnp.zeros((1, 2))
    c_max, c_min = ends(sde)
    before, after = GAUSSIAN.moments(c_max)[1], GAUSSIAN.moments(c_min)[1]
    true = c_max[0] / c_min[0] * after @ np.linalg.inv(before)
    keys = jnp.broadcast_to(jax.random.split(jax.random.key(0), 1), (3,))
    starts = jnp.concatenate([x, jnp.eye(2)])

    def error(n):
        draw = sampling.reverse_sde(solver=solver, n_steps=n)
        found = jax.jit(lambda keys, x: draw(keys, sde, perfect(sde), x).x)(keys, starts)
        return np.linalg.norm((found[1:] - found[0]).T - true)

    np.testing.assert_allclose(error(100) / error(200), 2.0**order, rtol=0.15)


MIXTURE = (np.array([0.2, 0.8]), np.array([[-1.0, 0.5], [1.0, -0.5]]), 0.2)


@pytest.mark.parametrize(
    "draw",
    [
        sampling.ddim(n_steps=200),
        sampling.ddim(n_steps=500, eta=1.0),
        sampling.euler_maruyama(n_steps=1000),
        sampling.predictor_corrector(n_steps=400, corrector="annealed_langevin"),
        sampling.probability_flow(solver="heun", n_steps=64),
    ],
    ids=["ddim", "ancestral", "euler-maruyama", "predictor-corrector", "heun"],
)
def test_a_mixtures_weights_and_moments_are_recovered(draw):
    """From the sampler's own prior, N(0, I); 4000 samples, so the weight 0.2 has standard error 0.0063."""
    sde, n = sdes.vp(), 4000
    weights, means, std = MIXTURE
    keys = jax.random.split(jax.random.key(0), n)
    x = sampling.prior(jax.random.split(jax.random.key(1), n), sde, (2,))
    predictor = exact.predictor(sde, exact.mixture(weights, means, std))
    found = np.asarray(jax.jit(lambda keys, x: draw(keys, sde, predictor, x).x)(keys, x), float)
    assert_mean(found @ (means[0] - means[1]) > 0, weights[0])  # the modes are 11 std apart
    mean = weights @ means
    spread = means - mean
    assert_moments(found, mean, std**2 * EYE + (weights * spread.T) @ spread)


@pytest.mark.parametrize(
    "draw",
    [
        sampling.ddim(n_steps=5, eta=1.0),
        sampling.euler_maruyama(n_steps=5),
        sampling.predictor_corrector(n_steps=5),
        sampling.probability_flow(),
        sampling.reverse_sde(n_steps=5),
    ],
    ids=["ancestral", "euler-maruyama", "predictor-corrector", "probability-flow", "reverse-sde"],
)
def test_a_sample_depends_on_its_own_key_and_start_alone(draw):
    """The others change, to starts that make an adaptive solver work harder; the first two do not, bitwise."""
    sde = sdes.vp()
    run = jax.jit(lambda keys, x: draw(keys, sde, perfect(sde), x))
    keys = jax.random.split(jax.random.key(0), 4)
    x = prior(4, sde, jax.random.key(1))
    others = keys.at[2:].set(jax.random.split(jax.random.key(2), 2))
    one, other = run(keys, x), run(others, x.at[2:].multiply(100.0))
    np.testing.assert_array_equal(one.x[:2], other.x[:2])
    np.testing.assert_array_equal(one.nfe[:2], other.nfe[:2])
    assert np.all(one.x[2:] != other.x[2:])


@pytest.mark.parametrize(
    ("draw", "nfe"),
    [
        (sampling.ddim(n_steps=3), 3),
        (sampling.euler_maruyama(n_steps=3, denoise=True), 3 + 1),
        (sampling.predictor_corrector(n_steps=3, corrector_steps=2), 3 * (2 + 1) + 1),
        *(
            (
                sampling.predictor_corrector(n_steps=3, predictor=word),
                3 * (1 + (word != "none")) + 1,
            )
            for word in sampling.PREDICTORS
        ),
    ],
)
def test_a_draw_reports_the_evaluations_it_makes(draw, nfe):
    sde, calls = sdes.sub_vp(), []
    count = counting(lambda t, x: x, calls)

    def predictor(x, t, label=None):
        return Prediction(x0=x, eps=count(t[0], x))

    found = jax.jit(lambda keys, x: draw(keys, sde, predictor, x))(
        jax.random.split(jax.random.key(0), 2), jnp.ones((2, 2))
    )
    jax.effects_barrier()
    assert np.all(found.ok)
    np.testing.assert_array_equal(found.nfe, len(calls))
    assert len(calls) == nfe


@pytest.mark.parametrize("make", [sampling.ddim, sampling.euler_maruyama])
def test_denoising_ends_with_the_x0_predicted_at_t_min(x64, make):
    sde = sdes.edm(sigma_min=0.5)
    keys, x = jax.random.split(jax.random.key(0), 3), prior(3, sde, jax.random.key(1))
    noisy, clean = (make(n_steps=3, denoise=d)(keys, sde, perfect(sde), x).x for d in (False, True))
    gain, offset = conditional_means((1.0, 0.5))[0]
    np.testing.assert_allclose(clean, noisy @ gain.T + offset, rtol=1e-9)


# solve


def counting(field, calls):
    def counted(t, x):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return field(t, x)

    return counted


@pytest.mark.parametrize("n_steps", [None, 10], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("solver", [s for s in solve.ODE_SOLVERS if not solve.is_implicit(s)])
def test_ode_reports_the_evaluations_it_makes(solver, n_steps):
    if solver == "euler" and n_steps is None:
        pytest.skip("Euler has no error estimate to adapt to")
    calls = []
    field = counting(lambda t, x: -x * jnp.cos(10 * t), calls)
    run = jax.jit(
        lambda x: solve.ode(field, x, lambda u: 2.0 - u, solver=solver, n_steps=n_steps, atol=1e-4)
    )
    found = run(jnp.ones(()))
    jax.effects_barrier()
    assert found.ok
    assert found.nfe == len(calls)


@pytest.mark.parametrize("solver", solve.SDE_SOLVERS)
def test_sde_reports_the_evaluations_it_makes(solver):
    calls = []
    drift = counting(lambda t, x: -x, calls)
    run = jax.jit(
        lambda key: solve.sde(
            key, drift, jnp.sqrt, jnp.ones(2), lambda u: 2.0 - u, solver=solver, n_steps=10
        )
    )
    found = run(jax.random.key(0))
    jax.effects_barrier()
    assert found.ok
    assert found.nfe == len(calls)


def test_running_out_of_steps_is_not_ok():
    field = lambda t, x: -x * jnp.cos(100 * t)
    run = lambda max_steps: solve.ode(field, jnp.ones(()), lambda u: u, max_steps=max_steps)
    assert not run(5).ok
    assert run(500).ok


def test_the_reverse_drift_at_any_noise_is_f_x_and_a_share_of_the_score(x64, sde):
    """f x - (1 + c^2) / 2 g^2 score (Song et al. 2021, eq. 6 and 13, at c = 1 and 0)."""
    x = np.array([[1.0, -0.5], [0.2, 0.4]])
    drifts = {
        noise: jax.jit(dynamics.reverse_drift(sde, perfect(sde), noise=noise))
        for noise in (0.0, 1.0, 1.7)
    }
    for t in np.linspace(sde.t_min, sde.t_max, 4):
        t = jnp.asarray(t)
        f, g = float(sdes.drift(sde, t)), float(sdes.diffusion(sde, t))
        score = GAUSSIAN.score(x, coefficients(sde, [t])[0])
        for noise in drifts:
            found = drifts[noise](t, jnp.asarray(x))
            expected = f * x - 0.5 * (1 + noise**2) * g**2 * score
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
