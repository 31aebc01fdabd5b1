"""The optimizer, by hand: where a gradient is constant, Adam's moments cancel and a step is -lr sign(gradient).

In float32 the removal of the moments' bias, 1 - b2^k, leaves an error of 1e-5.
"""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_jax import optim


def updates(optimizer, gradients, params=None):
    """The update of every step, as a tree of [steps, ...]; the parameters stay where they are."""
    params = jnp.zeros_like(gradients[0]) if params is None else params
    state, found = optimizer.init(params), []
    for gradient in gradients:
        update, state = optimizer.update(gradient, state, params)
        found.append(np.asarray(update))
    return np.stack(found)


def rates(n, **options):
    """The learning rate of the first n steps."""
    return -updates(optim.adam(**options), [jnp.ones(())] * n)


def test_the_rate_rises_linearly_and_stays():
    found = rates(8, steps=100, lr=0.4, warmup=4)
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4], rtol=1e-4)


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_warm_up_the_first_step_is_at_the_full_rate(warmup):
    np.testing.assert_allclose(rates(3, steps=9, lr=0.4, warmup=warmup), 0.4, rtol=1e-4)


def test_the_cosine_falls_from_the_warm_up_to_zero_at_the_last_step():
    """8 steps down after 2 up: lr (1 + cos(pi k / 8)) / 2, half way at k = 4."""
    found = rates(12, steps=10, lr=0.4, warmup=2, decay="cosine")
    np.testing.assert_allclose(found[:3], [0.2, 0.4, 0.4], rtol=1e-4)
    np.testing.assert_allclose(found[4], 0.4 * (2 + np.sqrt(2)) / 4, rtol=1e-4)
    np.testing.assert_allclose(found[6], 0.2, rtol=1e-4)
    np.testing.assert_allclose(found[8], 0.4 * (2 - np.sqrt(2)) / 4, rtol=1e-4)
    assert 0 < found[9] < 0.04 * 0.4
    np.testing.assert_allclose(found[10:], 0, atol=1e-7)


def test_the_line_falls_from_the_warm_up_to_zero_at_the_last_step():
    found = rates(12, steps=10, lr=0.4, warmup=2, decay="linear")
    np.testing.assert_allclose(found[2:], 0.4 * np.maximum(1 - np.arange(10) / 8, 0), atol=1e-5)


def test_a_run_shorter_than_the_warm_up_only_warms_up():
    found = rates(3, steps=3, lr=0.4, warmup=8, decay="cosine")
    np.testing.assert_allclose(found, [0.05, 0.1, 0.15], rtol=1e-4)


def test_the_moments_are_adams():
    """Gradients 1 and then 0: m = b1 / (1 + b1) and v = b2 / (1 + b2) once their bias is removed."""
    optimizer = optim.adam(9, lr=0.1, warmup=0, b1=0.6, b2=0.8, eps=0.0)
    found = updates(optimizer, [jnp.ones(()), jnp.zeros(())])
    np.testing.assert_allclose(found, [-0.1, -0.1 * (0.6 / 1.6) / np.sqrt(0.8 / 1.8)], rtol=1e-4)


# eps far above the gradient: a step is -(lr / eps) gradient, and lr = eps shows the gradient itself
BARE = dict(steps=9, lr=1e9, eps=1e9, warmup=0)


@pytest.mark.parametrize(
    ("clip", "scale"), [(5.0, 0.5), (1.0, 0.1), (10.5, 1.0), (1e6, 1.0), (0.0, 1.0)]
)
def test_a_gradient_is_clipped_by_its_norm_over_all_parameters(clip, scale):
    """Of norm sqrt(6^2 + 8^2) = 10 over two leaves, each below 10."""
    gradient = {"a": jnp.array([6.0, 0.0]), "b": jnp.array(-8.0)}
    optimizer = optim.adam(clip=clip, **BARE)
    update, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose(update["a"], [-6.0 * scale, 0.0], rtol=1e-4)
    np.testing.assert_allclose(update["b"], 8.0 * scale, rtol=1e-4)


def test_weights_decay_at_the_rate_of_the_step_beside_the_gradient():
    """Without a gradient p <- p (1 - lr decay), unclipped; in warm-up lr is its half, then its whole."""
    optimizer = optim.adam(9, lr=0.1, warmup=2, clip=1e-3, weight_decay=0.5)
    p = jnp.array([4.0, -2.0])
    state = optimizer.init(p)
    for shrunk in (1 - 0.05 * 0.5, (1 - 0.05 * 0.5) * (1 - 0.1 * 0.5)):
        update, state = optimizer.update(jnp.zeros(2), state, p)
        p = optax.apply_updates(p, update)
        np.testing.assert_allclose(p, np.array([4.0, -2.0]) * shrunk, rtol=1e-6)


def test_weights_do_not_decay_by_default():
    found = updates(optim.adam(9, lr=0.1, warmup=0), [jnp.zeros(2)], jnp.array([4.0, -2.0]))
    np.testing.assert_array_equal(found, 0)
