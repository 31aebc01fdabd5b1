"""The conditional flow, whose density is held against its Jacobian, and its training against a known score model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import ndtr

from score_jax import dequantize, exact, losses, variational
from score_jax import sde as sdes
from score_jax.model import Model
from score_jax.nets.dequantizer import CouplingFlow
from score_jax.types import Batch, Given

SHAPES = [(5,), (3, 2, 2)]
NET = CouplingFlow(width=8, depth=3)


def example(shape, scale=0.0, n=1):
    """Levels in [-1, 1], logits and parameters, `scale` of noise added to the initial ones."""
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(n, *shape)), jnp.float32) for _ in range(2))
    params = jax.jit(NET.init)(jax.random.key(0), x, y)
    return x, y, jax.tree.map(lambda a: a + scale * rng.normal(size=a.shape), params)


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_is_uniform_before_training(shape):
    x, y, params = example(shape)
    u, log_q = jax.jit(NET.apply)(params, x, y)
    np.testing.assert_allclose(u, jax.nn.sigmoid(y), rtol=1e-5)
    np.testing.assert_allclose(log_q, 0.0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_density_of_the_noise_is_one_over_the_jacobian_from_uniform_noise(shape):
    """log q(u) = -log |det du / dv| at v = sigmoid(y), by autodiff, in every dimension changed by the flow."""
    x, y, params = example(shape, 0.3)
    flat = lambda v: NET.apply(params, x, jax.scipy.special.logit(v).reshape(y.shape))[0].ravel()
    v = jax.nn.sigmoid(y).ravel()
    jacobian = np.asarray(jax.jit(jax.jacfwd(flat))(v), float)
    u, log_q = jax.jit(NET.apply)(params, x, y)
    np.testing.assert_allclose(log_q, -np.linalg.slogdet(jacobian)[1], rtol=1e-3)
    assert np.all(np.abs(u.ravel() - v) > 1e-3)
    assert np.linalg.norm(jacobian - np.diag(np.diag(jacobian))) > 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_a_draw_lies_in_its_box_and_depends_on_its_own_key_and_levels_alone(shape):
    levels, dequantizer = 16, variational.flow(NET)
    params = example(shape, 0.3)[2]["params"]
    k = jnp.asarray(np.random.default_rng(1).integers(0, levels, (3, *shape)), jnp.uint8)
    keys = jax.random.split(jax.random.key(1), 3)
    draw = jax.jit(lambda keys, k: dequantizer.draw(params, keys, k, levels))
    together, alone = draw(keys, k), draw(keys[1:2], k[1:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1:2], b, rtol=1e-4), together, alone)
    u = (np.asarray(together.x, float) + 1) * levels / 2 - k
    assert u.min() > -1e-5
    assert u.max() < 1 + 1e-5
    assert jax.tree.structure(dequantizer.init(keys[0], shape)) == jax.tree.structure(params)


# training

LEVELS, STD = 4, 0.15
PROBABILITIES = np.random.default_rng(0).dirichlet(np.full(LEVELS, 2.0), 2)
SDE = sdes.ve(sigma_min=0.02, sigma_max=20.0)
# not boxes: every level is a Gaussian in the middle of its box, a third of which lies outside
NOISED = exact.points(PROBABILITIES, (2 * np.arange(LEVELS) + 1) / LEVELS - 1, STD)


def score_model():
    """The perfect score of NOISED times a parameter, which is 1."""
    perfect = exact.predictor(SDE, NOISED)

    def predict(params, x, t, label=None, *, keys=None, augment=None):
        pair = perfect(x, t)
        return pair._replace(eps=params * pair.eps)

    return Model(lambda key, shape: jnp.ones(()), lambda params: SDE, predict)


def bound(draw):
    """log p at t_min + log_weight of each of all images [16, 500], and their log-probabilities [16]."""
    k = np.stack(np.meshgrid(*2 * [np.arange(LEVELS)], indexing="ij"), -1).reshape(-1, 2)
    tiled = jnp.asarray(np.repeat(k, 500, 0), jnp.uint8)
    point = jax.jit(draw)(jax.random.split(jax.random.key(9), len(tiled)), tiled)
    t = jnp.asarray(SDE.t_min)
    found = NOISED(point.x, SDE.alpha(t), SDE.sigma(t)) + point.log_weight
    middles, std = (2 * np.arange(LEVELS) + 1) / LEVELS - 1, np.hypot(STD, float(SDE.sigma(t)))
    edges = np.linspace(-1, 1, LEVELS + 1)
    mass = np.diff(ndtr((edges[:, None] - middles) / std), axis=0)  # [level, point]
    inside = mass @ PROBABILITIES.T
    return np.asarray(found, float).reshape(-1, 500), np.log(inside[k, np.arange(2)]).sum(1)


def trained(steps=300, batch=128):
    """The dequantizer trained for the fixed score model, by the losses a run would use, and all parameters."""
    model = score_model()
    dequantizer = variational.flow(CouplingFlow(width=16, depth=2))
    loss_fn = variational.frozen(losses.denoising(model))
    loss_fn = variational.joint(loss_fn, dequantizer, LEVELS)
    key = jax.random.key(0)
    params = {
        "score": jnp.ones(()),
        "dequantizer": jax.jit(dequantizer.init, static_argnums=1)(key, (2,)),
    }
    optimizer = optax.adam(1e-2)

    def step(carry, i):
        params, state = carry
        k_time, k_data, k_examples = jax.random.split(jax.random.fold_in(key, i), 3)
        k = jax.random.randint(k_data, (batch, 2), 0, LEVELS)
        keys = jax.random.split(k_examples, batch)
        examples = Batch(k, None, keys, jnp.arange(batch) / batch)
        grads, _ = jax.grad(loss_fn, argnums=1, has_aux=True)(k_time, params, (), examples, i)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps))[0])
    params, _ = run((params, optimizer.init(params)))
    return dequantizer, params


def test_a_flow_trained_for_a_fixed_score_model_tightens_the_bound_and_never_passes_the_truth():
    """It closes over half of uniform noise's gap; the score model's parameter has not moved."""
    dequantizer, params = trained()
    assert params["score"] == 1.0
    uniform, truth = bound(
        lambda keys, k: dequantize.uniform_box(keys, Given(SDE, None), k, LEVELS)
    )
    flow, _ = bound(lambda keys, k: dequantizer.draw(params["dequantizer"], keys, k, LEVELS))
    gap, left = np.mean(truth - uniform.mean(1)), np.mean(truth - flow.mean(1))
    assert gap > 0.05
    assert left < 0.5 * gap
    stderr = flow.std(1) / 500**0.5
    assert np.all(truth - flow.mean(1) > -4 * stderr)


def test_the_joint_loss_is_the_score_loss_at_the_draw_plus_the_draws_log_density():
    """Here of uniform noise, log q = 0. The score model's parameter has a gradient, unless it is frozen."""
    model, dequantizer = score_model(), variational.flow(CouplingFlow(width=4, depth=2))
    params = {
        "score": jnp.ones(()),
        "dequantizer": jax.jit(dequantizer.init, static_argnums=1)(jax.random.key(0), (2,)),
    }
    keys = jax.random.split(jax.random.key(1), 8)
    batch = Batch(jnp.tile(jnp.asarray([[0, 3]]), (8, 1)), None, keys, jnp.arange(8) / 8)
    key, plain = jax.random.key(2), losses.denoising(model)

    @jax.jit
    def by_hand(params):
        fold = lambda i: jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
        x = dequantizer.draw(params["dequantizer"], fold(0), batch.x, LEVELS).x
        return plain(key, params["score"], (), batch._replace(x=x, keys=fold(1)), 0)[0]

    for loss_fn, moves in ((plain, True), (variational.frozen(plain), False)):
        loss_fn = variational.joint(loss_fn, dequantizer, LEVELS)
        run = jax.jit(jax.value_and_grad(loss_fn, argnums=1, has_aux=True))
        (value, (metrics, _)), grads = run(key, params, (), batch, 0)
        np.testing.assert_allclose(metrics["dequantization"], -np.log(2 / LEVELS), rtol=1e-5)
        np.testing.assert_allclose(value, by_hand(params) - np.log(2 / LEVELS), rtol=1e-5)
        assert (grads["score"] != 0) == moves
        assert sum(jnp.sum(jnp.abs(g)) for g in jax.tree.leaves(grads["dequantizer"])) > 0
