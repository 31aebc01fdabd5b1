"""Posterior methods against what is exact for Gaussian data, and the mixture's posterior against quadrature."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import Gaussian, assert_mean, coefficients

from score_jax import exact, grids, posterior, samplers, shapes
from score_jax import measurement as measurements
from score_jax import predict as predictions
from score_jax import sde as sdes
from score_jax.posterior import guide, mixture
from score_jax.posterior.pigdm import gaussian
from score_jax.posterior.projection import onto
from score_jax.posterior.repaint import up_and_down
from score_jax.types import Prediction

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import posterior_accuracy

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
    step = lambda x, t, s: sampler.step(KEYS, steps.predict, x, t, s, sampler.init(x))[0]
    return jax.jit(step)(jnp.asarray(x), jnp.asarray(t), jnp.asarray(s))


def test_pigdm_has_the_exact_posterior_score_of_gaussian_data(x64, sde):
    """With the decomposition of A and without, at three noise levels for each of two y."""
    t = jnp.repeat(grids.log_snr(sde)(jnp.array([0.1, 0.5, 0.9])), 2)
    c, y = coefficients(sde, t), np.tile(Y, (3, 1))
    alpha, sigma = np.array(c).T[..., None]
    x = alpha * np.tile(X, (3, 1)) + sigma * np.tile(X[::-1], (3, 1))

    @jax.jit
    def run(x, y, t):
        by_svd = measurements.matrix(A, STD)
        by_iteration = measurements.linear(lambda x: x @ A.T, (D,), STD)
        twists = [gaussian(sde, m, y, VARIANCE) for m in (by_svd, by_iteration)]
        return [guide.guided(sde, perfect(sde), twist)(x, t) for twist in twists]

    scores = np.array([given(y[i]).score(x[i : i + 1], c[i])[0] for i in range(6)])
    for pair in run(jnp.asarray(x), jnp.asarray(y), t):
        np.testing.assert_allclose(alpha * pair.x0 + sigma * pair.eps, x, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(-pair.eps / sigma, scores, rtol=1e-6)


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

    @jax.jit
    def run(x):
        total = lambda x: jnp.sum(twist(perfect(sde)(x, t).x0, t)[0])
        return guide.through(perfect(sde), twist, x, t)[1:], jax.value_and_grad(total)(x)

    (value, gradient), (total, expected) = run(jnp.asarray(X))
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)
    np.testing.assert_allclose(np.sum(value), total, rtol=1e-12)


@pytest.mark.parametrize("kind", ["matrix", "inpaint"])
def test_projection_sets_what_is_measured_to_its_noised_value_and_moves_nothing_else(x64, kind):
    mask = np.array([True, False, True])
    measurement = measurements.matrix(A) if kind == "matrix" else measurements.inpaint(mask)
    sde = sdes.vp()
    (alpha, sigma), unseen = coefficients(sde, [0.4])[0], measurement.svd.singular == 0

    @jax.jit
    def run(x, y):
        moved = onto(sde, measurement, y)(KEYS, x, 0.4)
        z = shapes.normal(KEYS, x)
        measured = measurement.apply(moved), measurement.apply(z)
        return moved, *measured, *(measurement.svd.to_right(v)[:, unseen] for v in (x, moved))

    x, y, z, old, new = run(jnp.asarray(X), jnp.asarray(Y))
    np.testing.assert_allclose(y, alpha * Y + sigma * z, rtol=1e-12)
    np.testing.assert_allclose(new, old, rtol=1e-10, atol=1e-12)
    if kind == "inpaint":
        np.testing.assert_array_equal(x[:, ~mask], X[:, ~mask])
        np.testing.assert_array_equal(x[:, mask], y)


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


def test_repaints_repeats_bring_what_is_hidden_nearer_to_its_posterior(x64):
    """Two coordinates of correlation 0.9, one seen: given y = 1.5 the other has mean 1.35."""
    sde, covariance = sdes.vp(), np.array([[1.0, 0.9], [0.9, 1.0]])
    predict = exact.predictor(sde, exact.gaussian(np.zeros(2), covariance))
    measurement = measurements.inpaint(np.array([True, False]))
    keys, y = jax.random.split(jax.random.key(0), 1000), jnp.full((1000, 1), 1.5)

    def mean(repeats):
        method = posterior.repaint(jump=5, repeats=repeats)
        of_params = lambda params: (sde, lambda x, t, label: predict(x, t))
        draw = posterior.drawer(method, of_params, measurement, n_steps=20)
        return np.mean(draw(keys, (), y)[:, 1])

    once, often = mean(1), mean(8)
    assert once < often and abs(often - 1.35) < 0.5 * abs(once - 1.35), (once, often)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: posterior.projection(eta=2.0), "eta = 2.0 is a share, at least 0 and at most 1"),
        (lambda: posterior.repaint(eta=-0.1), "eta = -0.1 is a share, at least 0 and at most 1"),
        (lambda: posterior.ddrm(eta_b=1.5), "eta_b = 1.5 is a share, at least 0 and at most 1"),
        (lambda: posterior.dps(eta=1.1), "eta = 1.1 is a share, at least 0 and at most 1"),
        (lambda: posterior.pigdm(eta=1.1), "eta = 1.1 is a share, at least 0 and at most 1"),
        (
            lambda: gaussian(sdes.vp(), measurements.matrix(A), jnp.asarray(Y), 0.0),
            "data_variance = 0.0 must be positive; images in [-1, 1] have up to 1",
        ),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message


def test_a_step_up_restores_the_marginal_and_a_step_down_is_the_samplers(x64, sde):
    """x_t = a x_s + c z with a^2 var x_s + c^2 = var x_t and a mean x_s = mean x_t, exactly."""
    s, t = grids.log_snr(sde)(jnp.array([0.7, 0.4]))
    base = samplers.ddim(sde, eta=0.5)
    either = samplers.either_way(sde, base)

    @jax.jit
    def run(x, t, s):
        step = lambda sampler, x, t, s: sampler.step(KEYS, perfect(sde), x, t, s, None)[0]
        up = [step(either, x, s, t) for x in (jnp.zeros_like(x), jnp.ones_like(x))]
        return step(either, x, t, s), step(base, x, t, s), *up

    down, expected, noise, one = run(jnp.asarray(X), t, s)
    np.testing.assert_allclose(down, expected, rtol=1e-12)
    z = shapes.normal(KEYS, noise)
    np.testing.assert_allclose(noise / z, noise[0, 0] / z[0, 0], rtol=1e-9)
    c, growth = noise[0, 0] / z[0, 0], (one - noise)[0, 0]
    c_s, c_t = coefficients(sde, [s, t])
    variance = lambda c: c[0] ** 2 * VARIANCE + c[1] ** 2
    np.testing.assert_allclose(growth**2 * variance(c_s) + c**2, variance(c_t), rtol=1e-9)
    np.testing.assert_allclose(growth * c_s[0], c_t[0], rtol=1e-9)


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
    found = step_of(steps, X, t, s)
    plain = step_of(samplers.Steps(samplers.ddim(sde, eta=1.0), perfect(sde)), X, t, s)
    gain = c[0] * VARIANCE / (c[0] ** 2 * VARIANCE + c[1] ** 2)
    residual = Y - (MEAN + gain * (X - c[0] * MEAN)) @ A.T
    gradient = -2 * gain * residual @ A
    step = zeta / np.linalg.norm(residual, axis=1, keepdims=True)
    np.testing.assert_allclose(found, plain - step * gradient, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "make_sde"),
    zip(
        posterior.METHODS,
        [sdes.ve, sdes.sub_vp, sdes.edm, sdes.vp, sdes.linear, sdes.cosine],
        strict=True,
    ),
)
def test_every_method_draws_its_class_where_nothing_is_measured(x64, name, make_sde):
    """Independent coordinates, the middle one unseen: given y it has the mean of the class, at any number of steps."""
    sde = make_sde()
    groups, particles, shifts = 40, 8, np.array([0.0, 1.0])

    def model(params):
        def predict(x, t, label):
            shift = jnp.asarray(shifts)[label][:, None]
            pair = perfect(sde)(x - sde.alpha(t)[:, None] * shift, t)
            return Prediction(pair.x0 + shift, pair.eps)

        return sde, predict

    options = dict(particles=particles) if name == "tsmc" else {}
    # the compiled loop for all: one program
    method = posterior.METHODS[name].make(**options)._replace(gradients=False)
    measurement = measurements.inpaint(np.array([True, False, True]), std=0.2)
    draw = posterior.drawer(method, model, measurement, n_steps=4)
    label = jnp.repeat(jnp.array([0, 1]), groups * particles)
    keys = jax.random.split(jax.random.key(3), len(label))
    x = draw(keys, (), jnp.tile(jnp.array([0.4, -0.7]), (len(label), 1)), label)
    # particles of a group share ancestors: what is independent are groups
    means = np.asarray(x[:, 1]).reshape(2, groups, particles).mean(axis=2)
    for shift, of_class in zip(shifts, means, strict=True):
        assert_mean(of_class, MEAN[1] + shift)


@pytest.mark.parametrize("name", ["repaint", "tsmc"])
def test_the_loop_from_python_is_the_compiled_loop(x64, name):
    """Of the two methods that have all there is: a projection and times that go up, a carry and an end."""
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


def test_the_benchmarks_errors_of_shifted_points_are_those_of_the_shift():
    """In two dimensions sliced W2 is |shift| / sqrt(2), up to the chance of the directions."""
    rng, shift = np.random.default_rng(0), np.array([0.3, -0.4])
    truth = mixture.Mixture(np.ones(1), np.zeros((1, 2)), np.diag([0.5, 1.5])[None])
    x = mixture.draw(rng, truth, 4000)
    x -= x.mean(axis=0)
    w2, mean, covariance = posterior_accuracy.errors_of(x + shift, x, truth, truth)
    # cos^2 of a random angle has mean 1/2 and variance 1/8
    error = np.sqrt(1 / 8 / posterior_accuracy.DIRECTIONS)
    assert abs(w2**2 / 0.25 - 0.5) < 4 * error
    np.testing.assert_allclose(mean, 0.5 / np.sqrt(2.0), rtol=1e-9)
    assert covariance < 0.1


def test_the_benchmark_tells_apart_what_differs_by_two_standard_errors():
    """Paired: a common spread that is far larger than the difference does not hide it."""
    rng = np.random.default_rng(0)
    common, noise = rng.normal(size=(2, 20))
    noise = (noise - noise.mean()) / noise.std(ddof=1) / 10 * np.sqrt(20)
    base = 10 * common
    assert posterior_accuracy.is_less(base, base + 0.21 + noise)
    assert not posterior_accuracy.is_less(base, base + 0.19 + noise)
    assert not posterior_accuracy.is_less(base + 0.21 + noise, base)
