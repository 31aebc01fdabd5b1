"""Couplings: the exact assignment, the same on any number of devices, and what it does to the velocity."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from conftest import assert_mean
from scipy.integrate import quad
from scipy.optimize import linear_sum_assignment
from scipy.special import comb, ndtr

from score_jax import coupling, parallel, shapes


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


def test_the_assignment_is_scipys_of_the_squared_distances():
    """Of events with several axes; it costs less than none."""
    keys, x = keys_and_data(32, 5, 1)
    eps, found = np.asarray(shapes.normal(keys, x), float), optimal(keys, x)
    distances = np.sum(np.square(np.asarray(x, float)[:, None] - eps), axis=(2, 3))
    rows, columns = linear_sum_assignment(distances)
    np.testing.assert_array_equal(rows, np.arange(32))
    np.testing.assert_array_equal(found, eps[columns])
    assert cost(x, found) < 0.9 * cost(x, eps)


def test_in_one_dimension_the_smallest_noise_goes_to_the_smallest_datum():
    keys, x = keys_and_data(32, 1)
    found = optimal(keys, x)
    order = np.argsort(x[:, 0])
    np.testing.assert_array_equal(found[order, 0], np.sort(shapes.normal(keys, x)[:, 0]))


def test_the_noise_of_the_batch_is_the_same_in_another_order():
    keys, x = keys_and_data(32, 5, 1)
    found, drawn = optimal(keys, x), shapes.normal(keys, x)
    assert np.any(found != drawn)
    rows = lambda a: sorted(np.asarray(a)[..., 0].tolist())
    assert rows(found) == rows(drawn)


def test_four_devices_couple_as_one():
    keys, x = keys_and_data(32, 5, 1)
    one = optimal(keys, x)
    four = jax.pmap(
        lambda keys, x: coupling.optimal(keys, x, parallel.AXIS), axis_name=parallel.AXIS
    )(*parallel.shard((keys, x)))
    assert parallel.count() == 4
    np.testing.assert_array_equal(one, four.reshape(32, 5, 1))


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
