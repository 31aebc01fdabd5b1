"""The second-moment density: what it leaves alone, what it converges to, what it saves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax import adaptive, losses, parallel, sde
from score_jax.model import Model
from score_jax.types import Batch, Prediction

N = 100_000
MIDPOINTS = (np.arange(N) + 0.5) / N
# E[L^2] = squares / counts
LOPSIDED = ([9.0, 2.0, 1.0, 5.0, 30.0], [0.0, 9.0, 1.0, 4.0, 0.3])


def lopsided():
    return adaptive.SecondMoment(*(jnp.array(sums) for sums in LOPSIDED))


def optimal(second_moments):
    """The density over bins with the given E[L^2], nine parts of the best one and one uniform."""
    root = np.sqrt(second_moments)
    return 0.9 * root / root.mean() + 0.1


def test_the_density_is_nine_parts_of_the_root_of_the_second_moment_and_one_uniform(x64):
    counts, squares = np.array(LOPSIDED)
    np.testing.assert_allclose(adaptive.density(lopsided()), optimal(squares / counts), rtol=1e-12)


def test_the_mean_over_draws_divided_by_their_density_is_the_integral(x64):
    """The midpoint rule in the uniform u; its error is within cells of 1e-5, weights up to 10."""
    u, importance = adaptive.sample(lopsided(), jnp.asarray(MIDPOINTS))
    for h, integral in ((np.ones_like, 1.0), (np.exp, np.e - 1), (lambda u: u > 0.3, 0.7)):
        np.testing.assert_allclose(np.mean(importance * h(np.asarray(u))), integral, rtol=1e-4)


def test_draws_stay_in_order_and_reach_both_ends():
    u, _ = adaptive.sample(lopsided(), jnp.linspace(0, 1, 1001))
    assert np.all(np.diff(u) > 0)
    np.testing.assert_allclose([u[0], u[-1]], [0, 1], atol=1e-6)


def test_the_second_moment_is_the_least_there_is_but_for_the_uniform_share(x64):
    """L = e^{4u}: E_p[(L / p)^2] is the integral of e^{8u} / p, in closed form bin by bin."""
    n = 50
    edges = np.linspace(0, 1, n + 1)
    moments = n * np.diff(np.exp(8 * edges)) / 8
    state = adaptive.SecondMoment(jnp.full(n, 1.0), jnp.asarray(moments))
    u, importance = adaptive.sample(state, jnp.asarray(MIDPOINTS))
    found = np.mean(np.square(importance * np.exp(4 * u)))
    np.testing.assert_allclose(found, np.mean(moments / optimal(moments)), rtol=1e-4)
    least, uniform = np.mean(np.sqrt(moments)) ** 2, np.mean(moments)
    assert least < found < least / 0.9
    assert found < 0.6 * uniform


def learn(state, steps, values, n=64):
    """The state after steps of n independent draws, whose losses are values(key, u)."""

    def step(state, key):
        times, noise = jax.random.split(key)
        u, _ = adaptive.sample(state, jax.random.uniform(times, (n,)))
        return adaptive.update(state, u, values(noise, u)), None

    keys = jax.random.split(jax.random.key(steps), steps)
    return jax.jit(lambda state: jax.lax.scan(step, state, keys)[0])(state)


def test_it_is_uniform_at_first_and_while_a_bin_is_empty():
    constant = lambda noise, u: 1.0 + 9.0 * (u > 0.5)
    for state in (adaptive.init(8), learn(adaptive.init(8), 10, constant)):
        np.testing.assert_array_equal(adaptive.density(state), np.ones(8))
    assert adaptive.density(learn(adaptive.init(8), 20, constant))[0] < 0.5
    one_bin = adaptive.update(adaptive.init(8), jnp.full(4, 0.1), jnp.ones(4))
    many = jax.tree.map(lambda sums: 50 * sums, one_bin)
    np.testing.assert_array_equal(adaptive.density(many), np.ones(8))


def test_a_loss_of_zero_leaves_it_uniform():
    state = learn(adaptive.init(8), 40, lambda noise, u: jnp.zeros_like(u))
    np.testing.assert_array_equal(adaptive.density(state), np.ones(8))


def test_it_converges_to_the_optimum_of_a_noisy_loss_and_follows_a_change():
    """L = a |z|, E[L^2] = a^2, of relative variance 2 per draw.

    The sums hold about 100 steps of 64 draws, in bin k a share p_k / 4: the root's relative standard
    error is sqrt(2 / (6400 p_k / 4)) / 2 and, with p above 0.1, at most 0.06.
    """
    scale = jnp.array([0.2, 1.0, 3.0, 8.0])

    def of(scale):
        draw = lambda noise, u: jax.random.normal(noise, u.shape)
        return lambda noise, u: scale[jnp.minimum((4 * u).astype(int), 3)] * draw(noise, u)

    state = learn(adaptive.init(4), 600, of(scale))
    np.testing.assert_allclose(adaptive.density(state), optimal(scale**2), rtol=4 * 0.06)
    # after 1500 steps the former loss counts e^-15
    state = learn(state, 1500, of(scale[::-1]))
    np.testing.assert_allclose(adaptive.density(state), optimal(scale[::-1] ** 2), rtol=4 * 0.06)


def test_an_update_is_linear_in_its_examples():
    """Parts of a batch, each updating the same state, average to the update of the whole."""
    u, values = jax.random.uniform(jax.random.key(0), (2, 12))
    whole = adaptive.update(lopsided(), u, values)
    parts = [adaptive.update(lopsided(), u[i::3], values[i::3]) for i in range(3)]
    mean = jax.tree.map(lambda *sums: sum(sums) / 3, *parts)
    for found, expected in zip(mean, whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("stratify", [True, False])
def test_four_devices_learn_the_density_that_one_does(stratify):
    vp = sde.vp()
    predict = lambda w, x, t, label=None, *, keys=None, augment=None: Prediction(x, w * x)
    model = Model(init=None, sde=lambda params: vp, predict=predict)
    loss = losses.denoising(model, time_bins=5, stratify=stratify)
    n, key = 16, jax.random.key(1)
    keys = jax.random.split(jax.random.key(2), n)
    whole = Batch(jax.random.normal(key, (n, 3)), None, keys, jnp.arange(n) / n)

    def step(state, part, axis_name=None):
        value, (_, state) = loss(key, 0.3, state, part, 0)
        return parallel.mean((value, state), axis_name)

    single = jax.jit(step)(lopsided(), whole)
    parts = jax.tree.map(lambda a: a.reshape(4, 4, *a.shape[1:]), whole)
    mapped = jax.pmap(
        lambda state, part: step(state, part, "devices"), axis_name="devices", in_axes=(None, 0)
    )
    found = jax.tree.map(lambda a: a[0], mapped(lopsided(), parts))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
