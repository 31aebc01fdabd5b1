"""Couplings: the exact assignment, the same on any number of devices, and what it does to the velocity."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from conftest import GAUSSIAN, assert_mean
from scipy.integrate import quad
from scipy.optimize import linear_sum_assignment
from scipy.special import comb, ndtr

from score_jax import coupling, grids, latents, losses, parallel, predict, shapes
from score_jax import sde as sdes
from score_jax.model import Model
from score_jax.types import Batch


def keys_and_data(n, *shape, seed=0):
    """Data that are no unit normal, so that transport has something to do."""
    k_noise, k_data = jax.random.split(jax.random.key(seed))
    x = 0.4 + 0.7 * jax.random.normal(k_data, (n, *shape))
    return jax.random.split(k_noise, n), x


def cost(x, eps):
    return np.sum(np.square(np.asarray(x, float) - np.asarray(eps, float)))


@jax.jit
def optimal(keys, x):
    return coupling.optimal(keys, x, None)


def assert_same_noise(found, drawn):
    """Up to the rounding of two programs, where no two draws are as near to each other."""
    np.testing.assert_allclose(found, drawn, rtol=1e-6)


def test_the_assignment_is_scipys_of_the_squared_distances():
    """Of events with several axes; it costs less than none."""
    keys, x = keys_and_data(32, 5, 1)
    eps, found = np.asarray(shapes.normal(keys, x), float), optimal(keys, x)
    distances = np.sum(np.square(np.asarray(x, float)[:, None] - eps), axis=(2, 3))
    rows, columns = linear_sum_assignment(distances)
    np.testing.assert_array_equal(rows, np.arange(32))
    assert_same_noise(found, eps[columns])
    assert cost(x, found) < 0.9 * cost(x, eps)


def test_in_one_dimension_the_smallest_noise_goes_to_the_smallest_datum():
    keys, x = keys_and_data(32, 1)
    found = optimal(keys, x)
    order = np.argsort(x[:, 0])
    assert_same_noise(found[order, 0], np.sort(shapes.normal(keys, x)[:, 0]))


def test_the_noise_of_the_batch_is_the_same_in_another_order():
    keys, x = keys_and_data(32, 5, 1)
    found, drawn = optimal(keys, x), shapes.normal(keys, x)
    rows = lambda a: np.asarray(sorted(np.asarray(a)[..., 0].tolist()))
    assert_same_noise(rows(found), rows(drawn))
    assert not np.allclose(found, drawn, rtol=1e-6)


def test_four_devices_couple_as_one():
    keys, x = keys_and_data(32, 5, 1)
    one = optimal(keys, x)
    four = jax.pmap(
        lambda keys, x: coupling.optimal(keys, x, parallel.AXIS), axis_name=parallel.AXIS
    )(*parallel.shard((keys, x)))
    assert parallel.count() == 4
    assert_same_noise(one, four.reshape(32, 5, 1))


def test_gathered_parts_are_the_batch_on_every_device():
    a = jnp.arange(24.0).reshape(8, 3)
    gather = lambda a: parallel.gather(a, parallel.AXIS)
    found = jax.pmap(gather, axis_name=parallel.AXIS)(parallel.shard(a))
    np.testing.assert_array_equal(found, np.broadcast_to(a, (4, 8, 3)))
    np.testing.assert_array_equal(parallel.gather(a, None), a)


def test_without_coupling_the_loss_draws_the_noise():
    assert coupling.COUPLINGS["independent"](*keys_and_data(4, 2), None) is None


def mean_order_statistics(n):
    """The means of n sorted standard normal draws."""

    def density(z, i):
        ranked = comb(n - 1, i) * ndtr(z) ** i * ndtr(-z) ** (n - 1 - i)
        return n * ranked * math.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)

    return np.array([quad(lambda z, i=i: z * density(z, i), -9, 9)[0] for i in range(n)])


def test_the_larger_the_batch_the_less_the_velocity_varies_at_a_point():
    """Data N(0, v), x_t = (x0 + eps) / 2: what of eps - x0 a linear function of x_t leaves, in 2000 batches.

    Sorted with sorted, E[x0 eps] is sqrt(v) times the mean of the squared means of the sorted draws:
    sqrt(v) / pi for batches of two, and 0 for one, where the variance left is 4 v / (1 + v).
    """
    v, n_batches, left = 0.25, 2000, {1: 4 * 0.25 / (1 + 0.25)}
    for n in (2, 8):
        keys, x = keys_and_data(n_batches * n, 1)
        x = math.sqrt(v) * (x - 0.4) / 0.7
        keys, x = keys.reshape(n_batches, n), x.reshape(n_batches, n, 1)
        eps = jax.jit(jax.vmap(optimal))(keys, x)
        product = math.sqrt(v) * np.mean(mean_order_statistics(n) ** 2)
        # of the velocity on x_t
        slope = 0.5 * (1 - v) / (0.25 * (1 + v + 2 * product))
        left[n] = 1 + v - 2 * product - slope * 0.5 * (1 - v)
        assert_mean(np.mean(np.square(eps - x - slope * 0.5 * (x + eps)), (1, 2)), left[n])
    assert left[8] < 0.4 * left[2] < 0.3 * left[1]


SDE = sdes.linear()


def of_velocity(velocity):
    """A model of dx_t / dt: velocity(params, x, t)."""

    def predict_fn(params, x, t, label=None, *, keys=None, augment=None):
        return predict.read("velocity", SDE, velocity(params, x, t), x, t)

    return Model(init=None, sde=lambda params: SDE, predict=predict_fn)


def coupled(keys, x):
    n = len(x)
    return Batch(x, None, keys, jnp.arange(n) / n, eps=coupling.optimal(keys, x, None))


def sampled(model, params, x, **options):
    """The prior's x taken to t_min along the flow, under uniform time."""
    predict_fn = lambda x, t, label: model.predict(params, x, t, label)
    return latents.flow(SDE, predict_fn, x, grids.uniform(SDE), **options).y


def test_along_the_optimal_map_the_coupled_paths_are_straight_and_one_euler_step_is_the_map():
    """x = m + V^1/2 eps is a convex function's gradient: no permutation of its pairs costs less.

    At x_t = (1 - t) x + t eps the velocity is eps - x, with eps = ((1 - t) V^1/2 + t I)^-1 (x_t - (1 - t) m).
    """
    eigenvalues, axes = np.linalg.eigh(GAUSSIAN.covariance)
    roots, turn, mean = np.sqrt(eigenvalues), jnp.asarray(axes), jnp.asarray(GAUSSIAN.mean)
    optimal_map = lambda eps: mean + (eps @ turn * roots) @ turn.T

    def velocity(params, x, t):
        t = t[:, None]
        eps = (x - (1 - t) * mean) @ turn / ((1 - t) * roots + t) @ turn.T
        return eps - optimal_map(eps)

    keys, x = keys_and_data(32, 2)
    order = jax.random.permutation(jax.random.key(1), 32)
    partner = shapes.normal(keys, x)[order]
    batch, model = coupled(keys, optimal_map(partner)), of_velocity(velocity)
    np.testing.assert_array_equal(batch.eps, partner)
    loss = losses.flow_matching(model)
    value = lambda batch: loss(jax.random.key(2), (), (), batch, 0)[0]
    assert value(batch) < 1e-10
    assert value(batch._replace(eps=None)) > 0.1

    at = lambda t: (1 - t) * optimal_map(partner) + t * partner
    found = sampled(model, (), at(SDE.t_max), solver="euler", n_steps=1)
    np.testing.assert_allclose(found, at(SDE.t_min), atol=1e-5)


def test_a_velocity_fitted_to_coupled_batches_takes_the_prior_to_the_data_and_far_in_one_step():
    """Data N(m, v) in batches of 8, c = E[(x0 - m) eps]: 24 fits linear in x, to 256 batches each.

    Of all velocities linear in x the best is a(t) + b(t) (x_t - E x_t), where a = -m and b = Cov(eps -
    x0, x_t) / Var(x_t), half the rate of log Var(x_t): its flow takes mean and variance of x_t at one
    time to those at the other, whatever c is. One Euler step from t near 1 multiplies by 1 - b, near
    c, which would be 0 without coupling and sqrt(v) for batches without end. b here is of degree 5 in
    t, which is off by 1e-4.
    """
    m, v, n, n_batches, replicates, degree = 0.4, 0.49, 8, 256, 24, 5
    c = math.sqrt(v) * np.mean(mean_order_statistics(n) ** 2)

    def velocity(params, x, t):
        of_t = jnp.stack([jnp.cos(k * jnp.arccos(2 * t - 1)) for k in range(degree + 1)], axis=1)
        return of_t @ params[: degree + 1][:, None] + x * (of_t @ params[degree + 1 :])[:, None]

    model = of_velocity(velocity)
    loss, zeros = losses.flow_matching(model), jnp.zeros(2 * (degree + 1))

    def fitted(key):
        k_data, k_noise, k_times = jax.random.split(key, 3)
        x = m + math.sqrt(v) * jax.random.normal(k_data, (n_batches, n, 1))
        keys = jax.random.split(k_noise, (n_batches, n))
        batches = jax.vmap(coupled)(keys, x)
        times = jax.random.split(k_times, n_batches)

        def total(params):
            of_one = lambda key, batch: loss(key, params, (), batch, 0)[0]
            return jnp.mean(jax.vmap(of_one)(times, batches))

        gradient = jax.grad(total)
        return -jnp.linalg.solve(jax.jacfwd(gradient)(zeros), gradient(zeros))

    def ends(key):
        """The prior's mean, and one standard deviation above it, at t_min: by the flow, and by one step."""
        params = fitted(key)
        x = (1 - SDE.t_max) * m + jnp.array([[0.0], [1.0]]) * deviation(SDE.t_max)
        flow = sampled(model, params, x)
        step = sampled(model, params, x, solver="euler", n_steps=1)
        return jnp.stack([jnp.append(y[0], y[1] - y[0]) for y in (flow, step)])

    def deviation(t):
        return math.sqrt((1 - t) ** 2 * v + t**2 + 2 * t * (1 - t) * c)

    found = jax.jit(lambda keys: jax.lax.map(ends, keys))(
        jax.random.split(jax.random.key(0), replicates)
    )
    t, t_min = SDE.t_max, SDE.t_min
    slope = (t - (1 - t) * v + (1 - 2 * t) * c) / deviation(t) ** 2
    one_step = deviation(t) * (1 + (t_min - t) * slope)
    mean = (1 - t_min) * m
    assert_mean(found, np.array([[mean, deviation(t_min)], [mean, one_step]]))
    assert one_step > 0.7 * math.sqrt(v)
