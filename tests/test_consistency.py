"""Consistency models: the loss at the true consistency function of Gaussian data, its parts, sampling, and training.

For N(mean, covariance) the probability-flow ODE scales each principal axis about the mean, so the
consistency function is known (`Gaussian.flow`). Moments up to the second are exact over sixteen
points, the products of four data and four noises.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import GAUSSIAN, SDES, assert_mean, coefficients
from scipy.special import ndtr

from score_jax import consistency, grids, predict, sampling, shapes
from score_jax import sde as sdes
from score_jax.model import Model
from score_jax.types import Batch, Prediction

EIGENVALUES, AXES = np.linalg.eigh(GAUSSIAN.covariance)
SQUARE = (
    1e6  # a pseudo-Huber constant far above all errors: the distance is the square / (2 SQUARE)
)


def ratio(sde, t):
    return sde.sigma(t) / sde.alpha(t)


def bent(p, y, s, s_min):
    """The consistency function of GAUSSIAN at p = 0, of y = x / alpha; p [2] bends it along each axis, not at s_min."""
    scale = ((EIGENVALUES + s_min**2) / (EIGENVALUES + s**2)) ** 0.5 * (1 + p * (1 - s_min / s))
    return GAUSSIAN.mean + (y - GAUSSIAN.mean) @ AXES * scale @ AXES.T


def flow(sde, p, x, t):
    y, s = x / sde.alpha(t)[:, None], ratio(sde, t)[:, None]
    return bent(p, y, s, ratio(sde, jnp.asarray(sde.t_min)))


def posterior_mean(sde, p, x, t):
    """E[x0 | x_t]: no consistency function."""
    y, s = x / sde.alpha(t)[:, None], ratio(sde, t)[:, None]
    scale = EIGENVALUES / (EIGENVALUES + s**2) + p
    return GAUSSIAN.mean + (y - GAUSSIAN.mean) @ AXES * scale @ AXES.T


def model_of(sde, f):
    def predict_fn(p, x, t, label=None, *, keys=None, augment=None):
        return Prediction(f(sde, p, x, t), x)

    return Model(init=None, sde=lambda params: sde, predict=predict_fn)


def sixteen_points(n):
    """Data and noise with the exact first and second moments, each pair at n evenly spaced positions."""
    corners = np.sqrt(2) * np.concatenate([np.eye(2), -np.eye(2)])
    data = GAUSSIAN.mean + corners @ np.linalg.cholesky(GAUSSIAN.covariance).T
    x, eps = (jnp.asarray(a.reshape(16, 2)) for a in np.broadcast_arrays(data[:, None], corners))
    position = (jnp.arange(n) + 0.5) / n
    every = lambda a: jnp.repeat(a, n, axis=0)
    keys = jax.random.split(jax.random.key(0), 16 * n)
    return Batch(every(x), None, keys, jnp.tile(position, 16), eps=every(eps))


def value_and_gradient(loss):
    """Of (p, batch, step), compiled."""
    value = lambda p, batch, step: loss(jax.random.key(1), p, (), batch, step)[0]
    return jax.jit(jax.value_and_grad(value))


@pytest.mark.parametrize("name", ["edm", "vp"])
def test_at_the_true_function_the_gradient_falls_as_one_over_n(x64, name):
    """By the squared distance, at 40, 80 and 160 intervals; at the posterior mean it does not fall."""
    sde, batch = SDES[name](), sixteen_points(2048)

    def gradients(f):
        loss = consistency.consistency(model_of(sde, f), steps=3, s0=40, s1=160, huber=SQUARE)
        run = value_and_gradient(loss)
        return [2 * SQUARE * np.linalg.norm(run(jnp.zeros(2), batch, k)[1]) for k in range(3)]

    coarse, middle, fine = gradients(flow)
    np.testing.assert_allclose(np.log2([coarse / middle, middle / fine]), 1.0, atol=0.05)
    assert fine < 0.006
    coarse, _, fine = gradients(posterior_mean)
    assert fine > coarse > 0.2


def papers(sde, batch, p, q, n, rho, mean, std, huber):
    """Each interval's probability and expected loss over sqrt(d), student p and teacher q (2310.14189, table 1)."""
    (alpha, sigma), (alpha_max, sigma_max) = coefficients(sde, [sde.t_min, sde.t_max])
    s_min, s_max = sigma / alpha, sigma_max / alpha_max
    i = np.arange(n)
    s = (s_min ** (1 / rho) + i / (n - 1) * (s_max ** (1 / rho) - s_min ** (1 / rho))) ** rho
    probability = np.diff(ndtr((np.log(s) - mean) / std))
    x, eps = np.asarray(batch.x), np.asarray(batch.eps)
    f = lambda p, s: bent(p, x + s * eps, s, s_min)
    error = np.array([f(p, high) - f(q, low) for low, high in itertools.pairwise(s)])
    c = huber * math.sqrt(2)
    distance = np.sqrt(np.sum(error**2, -1) + c**2) - c
    return probability / probability.sum(), np.mean(distance, -1) / np.diff(s) / math.sqrt(2)


def test_value_and_gradient_are_the_papers(x64):
    """The gradient is the student's alone. K even positions are off by at most 1 / K of each interval's term."""
    sde, k = sdes.vp(), 16384
    options = dict(rho=5.0, mean=-0.7, std=1.4, huber=0.05)
    loss = consistency.consistency(model_of(sde, flow), steps=1, s0=12, s1=12, **options)
    p = np.array([0.3, -0.2])
    found = value_and_gradient(loss)(jnp.asarray(p), sixteen_points(k), 0)
    reference = lambda student: papers(sde, sixteen_points(1), student, p, 13, **options)
    probability, terms = reference(p)
    h = 1e-5 * np.eye(2)
    slopes = np.array([(reference(p + d)[1] - reference(p - d)[1]) / 2e-5 for d in h])
    for value, of_intervals in zip((found[0], *found[1]), (terms, *slopes), strict=True):
        bound = np.sum(np.abs(of_intervals)) / k
        assert abs(value - of_intervals @ probability) < bound + 1e-8
        assert bound < 0.03 * abs(value)


@pytest.mark.parametrize(
    ("steps", "s0", "s1", "known"),
    [
        # 2310.14189, table 1: K' = 400000 / (log2(128) + 1) = 50000
        (400_000, 10, 1280, {0: 11, 49_999: 11, 50_000: 21, 349_999: 641, 350_000: 1281, 400_000: 1281}),
        # floor(12 / 2) = 6, K' = floor(1000 / (log2(6) + 1)) = 278
        (1000, 2, 12, {0: 3, 277: 3, 278: 5, 555: 5, 556: 9, 834: 13, 999: 13}),
        (3, 10, 1280, {0: 11, 1: 21, 2: 41, 10**6: 1281}),
        (100, 7, 7, {0: 8, 99: 8}),
    ],
)  # fmt: skip
def test_the_number_of_times_doubles_as_in_the_paper(steps, s0, s1, known):
    n_times = jax.jit(lambda k: consistency.n_times(k, steps=steps, s0=s0, s1=s1))
    assert {k: int(n_times(k)) for k in known} == known


def calls_of(sde, batch, step):
    """What the model is called with, (x_t, t, label, keys, augment): for the student, then for the teacher."""

    @jax.jit
    def run(batch, step):
        calls = []

        def predict_fn(params, x, t, label=None, *, keys=None, augment=None):
            calls.append((x, t, label, jax.random.key_data(keys), augment))
            return Prediction(x, x)

        model = Model(None, lambda params: sde, predict_fn)
        loss = consistency.consistency(model, steps=100, s1=40)
        loss(jax.random.key(1), None, (), batch, step)
        return calls

    return run(batch, step)


N = 8
BATCH = Batch(
    x=jnp.ones((N, 3)),
    label=jnp.arange(N),
    keys=jax.random.split(jax.random.key(0), N),
    position=jnp.arange(N) / N,
    augment=jnp.ones((N, 2)),
)


def test_student_and_teacher_share_noise_dropout_label_and_augmentation():
    sde = sdes.vp()
    student, teacher = calls_of(sde, BATCH, 0)
    (x_high, high, *of_student), (x_low, low, *of_teacher) = student, teacher
    assert np.all(low < high)
    jax.tree.map(np.testing.assert_array_equal, of_student, of_teacher)
    np.testing.assert_array_equal(of_student[0], BATCH.label)
    np.testing.assert_array_equal(of_student[2], BATCH.augment)
    eps = shapes.normal(shapes.fold_in(BATCH.keys, 0), BATCH.x)
    np.testing.assert_allclose(x_high, sdes.perturb(sde, BATCH.x, high, eps), rtol=1e-5)
    np.testing.assert_allclose(x_low, sdes.perturb(sde, BATCH.x, low, eps), rtol=1e-5)


def test_noise_coupled_to_the_data_is_taken_and_later_intervals_are_shorter():
    sde, batch = sdes.vp(), BATCH._replace(eps=2 * BATCH.x)
    (x_high, high, *_), (_, low, *_) = calls_of(sde, batch, 0)
    np.testing.assert_allclose(x_high, sdes.perturb(sde, batch.x, high, batch.eps), rtol=1e-5)
    (_, high_late, *_), (_, low_late, *_) = calls_of(sde, batch, 99)
    width = lambda high, low: ratio(sde, high) ** (1 / 7) - ratio(sde, low) ** (1 / 7)
    np.testing.assert_allclose(width(high, low) / width(high_late, low_late), 4.0, rtol=1e-2)


# sampling


def exact_predict(sde):
    zero = jnp.zeros(2)
    return lambda x, t, label=None: Prediction(flow(sde, zero, x, t), x)


def test_one_step_is_the_flows_map(x64, sde):
    c_max, c_min = coefficients(sde, [sde.t_max, sde.t_min])
    keys = jax.random.split(jax.random.key(0), 3)
    x = c_max[1] * jax.random.normal(jax.random.key(1), (3, 2))
    found = sampling.DRAWS["consistency"](n_steps=1)(keys, sde, exact_predict(sde), x)
    # the noise of the step to t_min is the root of a rounding error
    np.testing.assert_allclose(found.x, GAUSSIAN.flow(x, c_max, c_min), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.nfe, 1)


@pytest.mark.parametrize("name", ["vp", "linear"])
def test_any_number_of_steps_has_the_law_of_the_data(name):
    """Three steps of the exact function, 20000 samples: means and covariances within 4 standard errors."""
    sde, n = SDES[name](), 20000
    c_max, c_min = coefficients(sde, [sde.t_max, sde.t_min])
    mean, covariance = GAUSSIAN.moments(c_max)
    z = jax.random.normal(jax.random.key(1), (n, 2))
    draw = sampling.DRAWS["consistency"](n_steps=3)
    run = jax.jit(lambda keys, x: draw(keys, sde, exact_predict(sde), x).x)
    keys = jax.random.split(jax.random.key(0), n)
    found = run(keys, mean + z @ np.linalg.cholesky(covariance).T)
    mean, covariance = GAUSSIAN.moments(c_min)
    d = np.asarray(found, float) - mean
    products = np.concatenate([d, d**2, d[:, :1] * d[:, 1:]], axis=1)
    assert_mean(products, [0, 0, covariance[0, 0], covariance[1, 1], covariance[0, 1]])


def test_steps_go_to_t_min_and_out_again_by_algorithm_1(x64):
    """Draw by draw in the paper's symbols: x0 + sqrt(s^2 - s_min^2) z, and x0 itself at the end."""
    sde = sdes.edm(sigma_min=0.05, sigma_max=10.0)
    times = jnp.array([10.0, 2.0, 0.4, 0.05])
    keys = jax.random.split(jax.random.key(0), 3)
    x = 10.0 * jax.random.normal(jax.random.key(1), (3, 2))
    found = sampling.samplers.sample(
        keys, sampling.samplers.consistency(sde), exact_predict(sde), x, times
    )
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        end = GAUSSIAN.flow(x, (1.0, float(t)), (1.0, 0.05))
        z = np.asarray(shapes.normal(shapes.fold_in(keys, i), jnp.asarray(x)))
        x = end + math.sqrt(s**2 - 0.05**2) * z
    np.testing.assert_allclose(found, x, rtol=1e-9)
    np.testing.assert_allclose(found, end, rtol=1e-9)


# training


def polynomial(sde):
    """A model read by `predict.consistency` whose output is linear in x and polynomial in log s."""
    largest, smallest = sdes.log_snr_ends(sde)

    def predict_fn(p, x, t, label=None, *, keys=None, augment=None):
        u = 2 * (largest - sdes.log_snr(sde, t)) / (largest - smallest) - 1
        basis = jnp.cos(jnp.arange(7) * jnp.arccos(jnp.clip(u, -1, 1))[:, None])
        unit = x / jnp.sqrt(ratio(sde, t)[:, None] ** 2 + 0.25)
        out = jnp.einsum("bk,kij,bj->bi", basis, p["gain"], unit) + basis @ p["offset"]
        return predict.consistency(sde, out, x, t)

    init = lambda key, shape: {"gain": jnp.zeros((7, 2, 2)), "offset": jnp.zeros((7, 2))}
    return Model(init, lambda p: sde, predict_fn)


def test_training_finds_the_consistency_function():
    """From the noise of 2000 batches of 256: within 5 % of the data's standard deviation at every noise level."""
    sde, steps, n = sdes.edm(0.01, 20.0), 2000, 256
    model = polynomial(sde)
    loss = consistency.consistency(model, steps=steps, s0=10, s1=160, mean=0.0, huber=0.05)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, steps))
    root = np.linalg.cholesky(GAUSSIAN.covariance)

    def step_fn(carry, k):
        p, state = carry
        key, k_data, k_noise = jax.random.split(jax.random.fold_in(jax.random.key(0), k), 3)
        x = GAUSSIAN.mean + jax.random.normal(k_data, (n, 2)) @ root.T
        eps = jax.random.normal(k_noise, (n, 2))
        batch = Batch(x, None, jax.random.split(key, n), jnp.arange(n) / n, eps=eps)
        grads = jax.grad(lambda p: loss(key, p, (), batch, k)[0])(p)
        updates, state = optimizer.update(grads, state, p)
        return (optax.apply_updates(p, updates), state), None

    p = model.init(None, (2,))
    train = jax.jit(lambda carry: jax.lax.scan(step_fn, carry, jnp.arange(steps))[0][0])
    p = train((p, optimizer.init(p)))
    t = jnp.repeat(grids.log_snr(sde)(jnp.linspace(0.0, 1.0, 9)), 200)
    z = jax.random.normal(jax.random.key(3), (len(t), 2))
    x = GAUSSIAN.mean + jnp.sqrt(0.4 + t[:, None] ** 2) * z
    error = (model.predict(p, x, t).x0 - flow(sde, 0.0, x, t)).reshape(9, -1)
    rms = jnp.sqrt(jnp.mean(jnp.square(error), axis=1))
    assert np.all(rms < 0.05 * math.sqrt(EIGENVALUES.mean()))
    assert rms[-1] < 1e-6
