"""Posterior methods against what is exact for Gaussian data, and the mixture's posterior against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import Gaussian, coefficients

from score_jax import exact, grids, posterior, samplers, shapes
from score_jax import measurement as measurements
from score_jax import predict as predictions
from score_jax import sde as sdes
from score_jax.posterior import guide, mixture, sdedit
from score_jax.posterior.pigdm import gaussian
from score_jax.posterior.projection import onto
from score_jax.posterior.repaint import up_and_down
from score_jax.types import Prediction

RNG = np.random.default_rng(0)
D, MEAN, VARIANCE, STD = 3, np.array([0.5, -0.3, 0.2]), 0.6, 0.25
A = RNG.normal(size=(2, D))
Y = np.array([[0.4, -0.7], [1.0, 0.2]])
DATA = Gaussian(MEAN, VARIANCE * np.eye(D))
KEYS = jax.random.split(jax.random.key(0), 2)
X = RNG.normal(size=(2, D))


def perfect(sde):
    predict = exact.predictor(sde, exact.gaussian(DATA.mean, DATA.covariance))
    return lambda x, t: predict(x, t)


def given(y):
    """N(mean, covariance) of x0 given y."""
    one = mixture.Mixture(np.ones(1), DATA.mean[None], DATA.covariance[None])
    found, _ = mixture.posterior(one, A, STD, y)
    return Gaussian(found.means[0], found.covariances[0])


def step_of(steps, x, t, s):
    sampler = steps.sampler
    return sampler.step(KEYS, steps.predict, x, jnp.asarray(t), jnp.asarray(s), sampler.init(x))[0]


@pytest.mark.parametrize("has_svd", [True, False])
def test_pigdm_has_the_exact_posterior_score_of_gaussian_data(x64, sde, has_svd):
    measurement = measurements.matrix(A, STD)
    if not has_svd:
        measurement = measurements.linear(lambda x: x @ A.T, (D,), STD)
    twist = gaussian(sde, measurement, jnp.asarray(Y), VARIANCE)
    predict = guide.guided(sde, perfect(sde), twist)
    for u in (0.1, 0.5, 0.9):
        t = grids.log_snr(sde)(jnp.asarray(u))
        ts = jnp.full(2, t)
        (c,) = coefficients(sde, [t])
        x = c[0] * X + c[1] * X[::-1]
        pair = predict(jnp.asarray(x), ts)
        np.testing.assert_allclose(c[0] * pair.x0 + c[1] * pair.eps, x, rtol=1e-9, atol=1e-12)
        for i in range(2):
            score = given(Y[i]).score(x[i : i + 1], c)[0]
            np.testing.assert_allclose(-pair.eps[i] / c[1], score, rtol=1e-6)


def test_pigdm_converges_to_the_flow_of_the_posterior_at_first_order(x64):
    sde = sdes.vp()
    measurement = measurements.matrix(A, STD)
    steps = posterior.pigdm(data_variance=VARIANCE, eta=0.0).steps(
        sde, perfect(sde), measurement, jnp.asarray(Y)
    )
    run = jax.jit(lambda x, times: samplers.run(KEYS, steps, x, times))
    ends = coefficients(sde, [sde.t_max, sde.t_min])
    true = np.concatenate([given(Y[i]).flow(X[i : i + 1], *ends) for i in range(2)])

    def error(n):
        found = run(jnp.asarray(X), grids.log_snr(sde)(jnp.linspace(0.0, 1.0, n + 1)))
        return np.linalg.norm(found - true)

    coarse, fine = error(160), error(320)
    assert fine < 0.05 and 1.8 < coarse / fine < 2.2


def test_the_gradient_of_the_twist_is_that_of_its_value(x64):
    sde = sdes.ve()
    measurement = measurements.matrix(A, STD)
    twist = gaussian(sde, measurement, jnp.asarray(Y), 0.9)
    t = jnp.full(2, 0.5)
    total = lambda x: jnp.sum(twist(perfect(sde)(x, t).x0, t)[0])
    _, value, gradient = guide.through(perfect(sde), twist, jnp.asarray(X), t)
    np.testing.assert_allclose(gradient, jax.grad(total)(jnp.asarray(X)), rtol=1e-9)
    np.testing.assert_allclose(jnp.sum(value), total(jnp.asarray(X)), rtol=1e-12)


@pytest.mark.parametrize("kind", ["matrix", "inpaint"])
def test_projection_sets_what_is_measured_to_its_noised_value_and_moves_nothing_else(x64, kind):
    mask = np.array([True, False, True])
    measurement = measurements.matrix(A) if kind == "matrix" else measurements.inpaint(mask)
    sde = sdes.vp()
    s = jnp.asarray(0.4)
    x = onto(sde, measurement, jnp.asarray(Y))(KEYS, jnp.asarray(X), s)
    z = shapes.normal(KEYS, x)
    noised = sde.alpha(s) * Y + sde.sigma(s) * measurement.apply(z)
    np.testing.assert_allclose(measurement.apply(x), noised, rtol=1e-12)
    if kind == "inpaint":
        np.testing.assert_array_equal(x[:, ~mask], X[:, ~mask])
        np.testing.assert_allclose(x[:, mask], sde.alpha(s) * Y + sde.sigma(s) * z[:, mask])
    unseen = measurement.svd.singular == 0
    old, new = (measurement.svd.to_right(jnp.asarray(v))[:, unseen] for v in (X, x))
    np.testing.assert_allclose(new, old, rtol=1e-10, atol=1e-12)


def test_projection_runs_as_the_loops_hook_with_noise_that_is_not_the_steps(x64):
    """At the last time what is measured is y, but for noise of sigma(t_min) that no step has drawn."""
    sde = sdes.vp()
    measurement = measurements.matrix(A)
    draw = posterior.drawer(
        posterior.projection(),
        lambda params: (sde, lambda x, t, label: perfect(sde)(x, t)),
        measurement,
        n_steps=10,
    )
    t_min = jnp.asarray(sde.t_min)
    x = draw(KEYS, (), jnp.asarray(Y))
    noise = (measurement.apply(x) - sde.alpha(t_min) * Y) / sde.sigma(t_min)
    assert 0.05 < np.linalg.norm(noise) < 8 * np.linalg.norm(A)
    pair = jax.vmap(lambda key: jax.random.split(key, 2))(KEYS)
    of_step = measurement.apply(shapes.normal(shapes.fold_in(pair[:, 1], 9), x))
    assert np.all(np.abs(noise - of_step) > 1e-3)


def test_repaints_walk_repeats_each_stretch():
    times = jnp.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    found = up_and_down(times, jump=2, repeats=2)
    expected = [5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 0, 1, 0]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(up_and_down(times, jump=2, repeats=1), times)
    with pytest.raises(ValueError, match=r"^jump = 0 and repeats = 2 must be at least 1$"):
        posterior.repaint(jump=0, repeats=2)


def test_a_step_up_restores_the_marginal_and_a_step_down_is_the_samplers(x64, sde, monkeypatch):
    """x_t = a x_s + c z with a^2 var x_s + c^2 = var x_t and a mean x_s = mean x_t, exactly."""
    s, t = (grids.log_snr(sde)(jnp.asarray(u)) for u in (0.7, 0.4))
    base = samplers.ddim(sde, eta=0.5)
    sampler = samplers.either_way(sde, base)
    x = jnp.asarray(X)
    down = sampler.step(KEYS, perfect(sde), x, t, s, None)[0]
    np.testing.assert_allclose(down, base.step(KEYS, perfect(sde), x, t, s, None)[0], rtol=1e-12)
    up = lambda x, z: _with_noise(
        monkeypatch, z, lambda: sampler.step(KEYS, perfect(sde), x, s, t, None)[0]
    )
    zero, one = jnp.zeros((2, D)), jnp.ones((2, D))
    growth, noise = up(one, zero)[0, 0], up(zero, one)[0, 0]
    c_s, c_t = coefficients(sde, [s, t])
    variance = lambda c: c[0] ** 2 * VARIANCE + c[1] ** 2
    np.testing.assert_allclose(growth**2 * variance(c_s) + noise**2, variance(c_t), rtol=1e-9)
    np.testing.assert_allclose(growth * c_s[0], c_t[0], rtol=1e-9)


def _with_noise(monkeypatch, z, run):
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "normal", lambda keys, x: z)
        return run()


def test_ddrm_draws_each_coordinate_as_the_paper_says(x64):
    """Singular values 0, one whose noise is above r_s, and one below, by the paper's formulas in numpy."""
    sde = sdes.edm()
    t, s, std, eta, eta_b = 2.0, 0.5, 0.2, 0.7, 0.9
    singular = np.array([0.1, 4.0])  # noises 2 and 0.05, against r_s = 0.5
    u, _, vt = np.linalg.svd(A)
    a = u @ np.hstack([np.diag(singular), np.zeros((2, 1))]) @ vt
    x0 = RNG.normal(size=(2, D))
    x = jnp.asarray(x0 + t * X)
    predict = lambda x, t: Prediction(jnp.asarray(x0), jnp.asarray(X))
    measurement = measurements.matrix(a, std)
    steps = posterior.ddrm(eta=eta, eta_b=eta_b).steps(sde, predict, measurement, jnp.asarray(Y))
    found = np.asarray(step_of(steps, x, t, s)) @ vt.T
    z = np.asarray(shapes.normal(KEYS, x))
    c0, c = x0 @ vt.T, np.asarray(x) @ vt.T
    y = Y @ u / singular
    z = _right_noise(measurement, z) @ vt.T
    keep = np.sqrt(1 - eta**2) * s
    np.testing.assert_allclose(
        found[:, 0], c0[:, 0] + keep * (y[:, 0] - c0[:, 0]) / 2.0 + eta * s * z[:, 0]
    )
    mean = (1 - eta_b) * c0[:, 1] + eta_b * y[:, 1]
    left = np.sqrt(s**2 - (eta_b * 0.05) ** 2)
    np.testing.assert_allclose(found[:, 1], mean + left * z[:, 1])
    np.testing.assert_allclose(
        found[:, 2], c0[:, 2] + keep * (c[:, 2] - c0[:, 2]) / t + eta * s * z[:, 2]
    )


def _right_noise(measurement, z):
    """The noise as an event: ddrm draws it as one and looks at its coordinates."""
    return np.asarray(measurement.svd.from_right(measurement.svd.to_right(jnp.asarray(z))))


def test_ddrm_ends_at_y_where_there_is_no_noise_and_needs_a_decomposition(x64):
    sde = sdes.ve()
    measurement = measurements.inpaint(np.array([True, False, True]))
    steps = posterior.ddrm().steps(sde, perfect(sde), measurement, jnp.asarray(Y))
    x = step_of(steps, jnp.asarray(X), 0.5, 0.0)
    z = shapes.normal(KEYS, x)
    np.testing.assert_allclose(x[:, ::2], Y + sde.sigma(jnp.asarray(0.0)) * z[:, ::2], rtol=1e-12)
    plain = measurements.linear(lambda x: x, (D,))
    with pytest.raises(ValueError, match="^ddrm needs a singular value decomposition, and this"):
        posterior.ddrm().steps(sde, perfect(sde), plain, jnp.asarray(X))


def test_dps_steps_down_the_gradient_of_the_squared_residual(x64):
    """For Gaussian data x0 is affine in x: its Jacobian is the gain, the same for every x."""
    sde, zeta = sdes.vp(), 0.4
    t, s = 0.5, 0.4
    (c,) = coefficients(sde, [t])
    measurement = measurements.matrix(A, STD)
    steps = posterior.dps(zeta=zeta).steps(sde, perfect(sde), measurement, jnp.asarray(Y))
    found = step_of(steps, jnp.asarray(X), t, s)
    base = samplers.ddim(sde, eta=1.0)
    plain = base.step(KEYS, perfect(sde), jnp.asarray(X), jnp.asarray(t), jnp.asarray(s), None)[0]
    gain = c[0] * VARIANCE / (c[0] ** 2 * VARIANCE + c[1] ** 2)
    residual = Y - (MEAN + gain * (X - c[0] * MEAN)) @ A.T
    gradient = -2 * gain * residual @ A
    step = zeta / np.linalg.norm(residual, axis=1, keepdims=True)
    np.testing.assert_allclose(found, plain - step * gradient, rtol=1e-9)


@pytest.mark.parametrize("name", posterior.METHODS)
def test_the_loop_from_python_is_the_compiled_loop(x64, name):
    sde = sdes.vp()
    method = posterior.METHODS[name].make()
    times = method.walk(grids.log_snr(sde)(jnp.linspace(0.0, 1.0, 5)))
    measurement = measurements.matrix(A, STD)
    make = lambda y: method.steps(sde, perfect(sde), measurement, y)
    run = lambda gradients: samplers.run_jitted(
        make, (jnp.asarray(Y),), KEYS, jnp.asarray(X), times, gradients=gradients
    )
    np.testing.assert_allclose(run(True), run(False), rtol=1e-9)


def test_steps_from_python_are_compiled_once(x64):
    sde = sdes.edm()
    traced = []

    def make(shift):
        def predict(x, t):
            traced.append(1)
            return predictions.read("x0", sde, x - shift, x, t)

        return samplers.Steps(samplers.ddim(sde), predict)

    run = lambda shift: samplers.run_jitted(
        make, (shift,), KEYS, jnp.asarray(X), jnp.array([3.0, 2.0, 1.0, 0.5]), gradients=True
    )
    first, second = run(jnp.asarray(1.0)), run(jnp.asarray(2.0))
    assert len(traced) == 1
    assert np.all(np.abs(first - second) > 0.1)


def test_sdedit_starts_at_the_level_of_noise_and_keeps_the_image_at_little(x64):
    sde = sdes.vp()
    model = lambda params: (sde, lambda x, t, label: perfect(sde)(x, t))
    draw = lambda level, **options: sdedit.drawer(model, level=level, n_steps=20, **options)(
        KEYS, (), jnp.asarray(X)
    )
    np.testing.assert_allclose(draw(2e-3), X, atol=0.02)
    stay = lambda sde: samplers.stay
    pair = jax.vmap(lambda key: jax.random.split(key, 2))(KEYS)
    z = shapes.normal(pair[:, 0], jnp.asarray(X))
    alpha = 1 / np.sqrt(1 + 0.7**2)  # variance preserving at sigma / alpha = 0.7
    np.testing.assert_allclose(draw(0.7, make=stay), alpha * (X + 0.7 * z), rtol=1e-9)
    with pytest.raises(ValueError, match=r"^level = 1e\+06 of the noise must be above 0.001"):
        draw(1e6)


def test_the_posterior_of_a_mixture_is_bayes_rule_on_a_grid():
    weights = np.array([0.3, 0.7])
    means = np.array([[-0.5, 0.2], [0.8, -0.4]])
    roots = np.array([[[0.5, 0.0], [0.2, 0.3]], [[0.4, 0.0], [-0.1, 0.5]]])
    prior = mixture.Mixture(weights, means, roots @ roots.transpose(0, 2, 1))
    a, std, y = np.array([[0.9, -0.5]]), 0.3, np.array([0.6])
    found, log_evidence = mixture.posterior(prior, a, std, y)
    line = np.linspace(-5, 5, 801)
    points = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    density = lambda m: sum(
        w * scipy.stats.multivariate_normal(mean, c).pdf(points)
        for w, mean, c in zip(*m, strict=True)
    )
    joint = density(prior) * scipy.stats.norm(points @ a[0], std).pdf(y)
    area = (line[1] - line[0]) ** 2
    np.testing.assert_allclose(log_evidence, np.log(joint.sum() * area), rtol=1e-9)
    truth = joint / (joint.sum() * area)
    np.testing.assert_allclose(density(found), truth, atol=1e-9 * truth.max())
    mean, covariance = mixture.moments(found)
    true_mean = truth @ points * area
    np.testing.assert_allclose(mean, true_mean, rtol=1e-9)
    apart = points - true_mean
    np.testing.assert_allclose(covariance, (truth * area * apart.T) @ apart, rtol=1e-9)
    drawn = mixture.draw(np.random.default_rng(0), found, 20000)
    errors = np.sqrt(np.diag(covariance) / 20000)
    assert np.all(np.abs(drawn.mean(axis=0) - mean) < 4 * errors)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=4 * covariance.max() / 80)
