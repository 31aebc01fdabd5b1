import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import random

from score_jax import shapes
from score_jax.nets import DiT, check_patch, dit
from score_jax.nets.blocks import softmax_attention

N = 6
SIZES = dict(patch=2, width=8, depth=2, heads=2)
NET = DiT(**SIZES, dropout=0.5, n_classes=3, n_augment=2)
EVENT = (4, 6, 2)


def abstract(net, event=EVENT):
    x, c = jnp.zeros((1, *event)), jnp.zeros(1)
    return jax.eval_shape(net.init, random.key(0), x, c)


@pytest.fixture(scope="module")
def problem():
    """apply(x, c, label, keys, augment) with no parameter at zero, and inputs for it."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.normal(0.0, 0.4, p.shape).astype(np.float32), abstract(NET))

    @functools.partial(jax.jit, static_argnames="net")
    def apply(x, c, label=None, keys=None, augment=None, net=NET):
        return net.apply(params, x, c, label, keys=keys, augment=augment)

    x = jnp.asarray(rng.standard_normal((N, *EVENT), dtype=np.float32))
    return apply, x, jnp.linspace(0.0, 1000.0, N)


def largest(difference):
    """Per example."""
    return np.max(np.abs(difference).reshape(len(difference), -1), axis=1)


def test_the_network_starts_as_zero_and_each_block_as_the_identity():
    out, params = jax.jit(NET.init_with_output)(
        random.key(0, impl="rbg"), jnp.ones((1, *EVENT)), jnp.ones(1)
    )
    assert not np.any(out)
    flat = flatten_dict(params["params"], sep="/")
    zero = {path for path, p in flat.items() if path.endswith("kernel") and not np.any(p)}
    assert zero == {
        f"{layer}/kernel"
        for layer in ("dense_out", "modulation", "block_0/modulation", "block_1/modulation")
    }
    block = dit.Block(heads=2, hidden=32, dropout=0.0, layer=0)
    x = random.normal(random.key(1), (2, 3, 8))
    same, _ = jax.jit(block.init_with_output)(random.key(2, impl="rbg"), x, jnp.ones((2, 8)))
    np.testing.assert_array_equal(same, x)


def test_after_two_steps_every_parameter_has_a_gradient_but_the_keys_biases():
    rng = np.random.default_rng(0)
    x, target = jnp.asarray(rng.standard_normal((2, N, *EVENT), dtype=np.float32))
    c, label = jnp.linspace(0.0, 1000.0, N), jnp.arange(N) % 4
    augment = jnp.asarray(rng.random((N, 2), dtype=np.float32))
    params = jax.jit(NET.init)(random.key(0, impl="rbg"), x, c)

    @jax.jit
    def gradient(params):
        out = lambda params: NET.apply(params, x, c, label, augment=augment)
        return jax.grad(lambda params: jnp.mean(jnp.square(out(params) - target)))(params)

    for _ in range(2):
        params = jax.tree.map(lambda p, g: p - g, params, gradient(params))
    flat = flatten_dict(gradient(params)["params"], sep="/")
    # the same number for every key changes no softmax
    without = {path for path, g in flat.items() if np.max(np.abs(g)) < 1e-8}
    assert without == {f"block_{i}/key/bias" for i in range(2)}


def test_a_mask_depends_on_the_example_s_key_only(problem):
    apply, x, c = problem
    label, keys = jnp.arange(N) % 3, random.split(random.key(3), N)
    out = apply(x, c, label, keys)
    order = jnp.array([4, 0, 5, 2, 1, 3])
    permuted = apply(x[order], c[order], label[order], keys[order])
    np.testing.assert_allclose(permuted, out[order], rtol=1e-4, atol=1e-4)
    # and it does depend on it
    assert np.all(largest(apply(x, c, label, keys[order]) - out) > 1e-2)


def test_no_two_layers_share_a_mask(monkeypatch):
    x, c = jnp.zeros((N, *EVENT)), jnp.zeros(N)
    layers = []
    monkeypatch.setattr(shapes, "fold_in", lambda keys, layer: layers.append(layer) or keys)
    jax.eval_shape(lambda key: NET.init(key, x, c, keys=random.split(key, N)), random.key(0))
    assert len(layers) == len(set(layers)) == 4


def test_label_and_augmentation_are_heard_and_none_stands_for_no_class_and_zeros(problem):
    apply, x, c = problem
    none = apply(x, c)
    label, augment = jnp.full(N, 3), jnp.zeros((N, 2))
    same = apply(x, c, label, augment=augment)
    np.testing.assert_allclose(same, none, rtol=1e-5, atol=1e-5)
    for i in range(2):
        assert np.all(largest(apply(x, c, label.at[:].set(i), augment=augment) - none) > 1e-2)
        moved = apply(x, c, label, augment=augment.at[:, i].set(1.0))
        assert np.all(largest(moved - none) > 1e-3)


def test_the_noise_level_is_heard(problem):
    apply, x, c = problem
    same = jnp.broadcast_to(x[:1], x.shape)
    out = apply(same, c)
    assert np.all(largest(out[1:] - out[:-1]) > 1e-2)


def test_tokens_are_the_squares_of_the_image_row_by_row():
    x = np.arange(2 * 6 * 9 * 2.0).reshape(2, 6, 9, 2)
    tokens = dit.patchify(jnp.asarray(x), 3)
    assert tokens.shape == (2, 6, 18)
    for t, (i, j) in enumerate(np.ndindex(2, 3)):
        square = x[:, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
        np.testing.assert_array_equal(tokens[:, t], square.reshape(2, -1))
    np.testing.assert_array_equal(dit.unpatchify(tokens, 6, 9, 3), x)


def test_the_position_embedding_is_the_formula():
    # 8 features: w = 1, 10000**-0.5; the column first
    out = dit.position_embedding(3, 5, 8)
    assert out.shape == (15, 8)
    row, column = 2, 4
    angles = np.array([column, 0.01 * column, row, 0.01 * row])
    sines, cosines = np.sin(angles), np.cos(angles)
    expected = [*sines[:2], *cosines[:2], *sines[2:], *cosines[2:]]
    np.testing.assert_allclose(out[row * 5 + column], expected, atol=1e-12)
    np.testing.assert_array_equal(out[0], [0, 0, 1, 1, 0, 0, 1, 1])


def test_only_the_position_embedding_tells_the_squares_apart(problem, monkeypatch):
    apply, x, c = problem
    order = np.array([3, 0, 5, 1, 4, 2])
    shuffle = lambda x: dit.unpatchify(dit.patchify(x, 2)[:, order], 4, 6, 2)
    assert np.all(largest(apply(shuffle(x), c) - shuffle(apply(x, c))) > 1e-2)
    nowhere = lambda rows, columns, features: np.zeros((rows * columns, features))
    monkeypatch.setattr(dit, "position_embedding", nowhere)
    net = NET.clone(mlp_ratio=4.01)  # another program, with as many units
    shuffled, out = apply(shuffle(x), c, net=net), apply(x, c, net=net)
    np.testing.assert_allclose(shuffled, shuffle(out), rtol=1e-4, atol=1e-4)


def test_attention_is_the_mean_of_the_values_weighted_by_softmax():
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 2, 3, 5, 4))
    value = rng.standard_normal((2, 3, 5, 6))
    out = softmax_attention(*(jnp.asarray(a, jnp.float32) for a in (query, key, value)))
    for n in np.ndindex(2, 3):
        weights = np.exp(query[n] @ key[n].T / 2)  # sqrt(4)
        expected = weights / weights.sum(axis=1, keepdims=True) @ value[n]
        np.testing.assert_allclose(out[n], expected, atol=1e-5)


@pytest.mark.parametrize("size, patch, fits", [((28, 28), 8, 7), ((32, 20), 6, 4), ((9, 32), 2, 1)])
def test_an_image_that_cannot_be_cut_is_refused(size, patch, fits):
    message = (
        rf"^image size {size[0]}x{size[1]} is not divisible by the patch of {patch}x{patch} pixels; "
        rf"use patch {fits}, or pad the images$"
    )
    with pytest.raises(ValueError, match=message):
        check_patch(*size, patch)
    with pytest.raises(ValueError, match=message[:-1]):
        abstract(NET.clone(patch=patch), (*size, 1))
    check_patch(*size, fits)


@pytest.mark.parametrize(
    "width, heads, unit, use", [(10, 2, 4, 12), (8, 3, 12, 12), (30, 5, 20, 40)]
)
def test_a_width_that_cannot_be_shared_is_refused(width, heads, unit, use):
    message = f"^width {width} is not divisible by {unit}, as {heads} heads .*; use {use}(\n|$)"
    with pytest.raises(ValueError, match=message):
        abstract(NET.clone(width=width, heads=heads))
    abstract(NET.clone(width=use, heads=heads))


def linear(n_in, n_out):
    return n_in * n_out + n_out


@pytest.mark.parametrize(
    "width, depth, heads, millions",
    [(384, 12, 6, 33), (1024, 24, 16, 458)],
)
def test_the_networks_of_peebles_and_xie_have_the_parameters_of_their_layout(
    width, depth, heads, millions
):
    # their table of sizes counts a network for 1000 classes that also tells a variance
    net = DiT(2, width, depth, heads, n_classes=1000, outputs=2)
    n = sum(p.size for p in jax.tree.leaves(abstract(net, (32, 32, 4))))
    embedding = linear(256, width) + linear(width, width) + 1001 * width
    block = linear(width, 6 * width) + 4 * linear(width, width)
    block += linear(width, 4 * width) + linear(4 * width, width)
    ends = linear(16, width) + linear(width, 2 * width) + linear(width, 32)
    assert n == embedding + depth * block + ends
    assert round(n / 1e6) == millions


def test_several_outputs_for_each_number_are_beside_it():
    # of a network whose output is the last layer's bias, at one square per image
    net, x, c = (
        DiT(patch=2, width=4, depth=0, heads=1, outputs=3),
        jnp.zeros((1, 2, 2, 2)),
        jnp.zeros(1),
    )
    params = jax.tree.map(
        lambda p: jnp.zeros(p.shape), jax.eval_shape(net.init, random.key(0), x, c)
    )
    params["params"]["dense_out"]["bias"] = bias = jnp.arange(24.0)
    np.testing.assert_array_equal(jax.jit(net.apply)(params, x, c)[0], bias.reshape(2, 2, 6))
