import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import random

from score_jax import shapes
from score_jax.nets import MLP, UNet, check_image_size
from score_jax.nets.blocks import dropout, n_groups
from score_jax.nets.embed import sinusoidal

N = 6
UNET = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.5, n_classes=3)
NETS = {
    "unet": (UNET, (4, 4, 2)),
    "mlp": (MLP(width=16, depth=2, dropout=0.5, n_classes=3), (5,)),
}


@pytest.fixture(scope="module", params=NETS)
def problem(request):
    """A network, apply(x, c, label, keys) with no parameter at zero, and inputs for it."""
    net, event = NETS[request.param]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((N, *event), dtype=np.float32))
    c = jnp.linspace(0.0, 1000.0, N)
    params = jax.tree.map(
        lambda p: rng.normal(p.ndim == 1, 0.3, p.shape).astype(np.float32),
        jax.eval_shape(net.init, random.key(0), x, c),
    )

    @functools.partial(jax.jit, static_argnames="net")
    def apply(x, c, label=None, keys=None, net=net):
        return net.apply(params, x, c, label, keys=keys)

    return net, apply, x, c


def largest(difference):
    """Per example."""
    return np.max(np.abs(difference).reshape(len(difference), -1), axis=1)


def test_ddpm_s_cifar10_network_has_35_746_307_parameters():
    x, c = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1)
    params = jax.eval_shape(UNet().init, random.key(0), x, c)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 35_746_307


def test_at_initialisation_the_output_and_what_residual_blocks_add_are_zero(problem):
    net, _, x, c = problem
    key = random.key(0, impl="rbg")  # compiles three times faster
    out, params = jax.jit(net.init_with_output)(key, x, c)
    assert not np.any(out)
    zeros = {path for path, p in flatten_dict(params["params"]).items() if not np.any(p)}
    if isinstance(net, UNet):
        assert {("conv_out", "kernel"), ("mid_attention", "out", "kernel")} < zeros
        assert {
            ("down_0_block_0", "conv_1", "kernel"),
            ("up_1_block_1", "conv_1", "kernel"),
        } < zeros
        assert ("down_0_block_0", "conv_0", "kernel") not in zeros


def test_a_mask_depends_on_the_example_s_key_only(problem):
    _, apply, x, c = problem
    label = jnp.arange(N) % 3
    keys = random.split(random.key(3), N)
    out = apply(x, c, label, keys)

    order = jnp.array([4, 0, 5, 2, 1, 3])
    permuted = apply(x[order], c[order], label[order], keys[order])
    np.testing.assert_allclose(permuted, out[order], rtol=1e-4, atol=1e-4)

    half = slice(N // 2, N)
    np.testing.assert_allclose(
        apply(x[half], c[half], label[half], keys[half]), out[half], rtol=1e-4, atol=1e-4
    )
    # and it does depend on it
    moved = apply(x, c, label, keys[order])
    assert np.all(largest(moved - out) > 1e-2)


def test_dropout_keeps_the_mean_and_layers_are_independent():
    keys = random.split(random.key(0), 4)
    kept = [dropout(keys, layer, jnp.ones((4, 10_000)), 0.2) for layer in (0, 1)]
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.8)}
    deviations = [kept[0] - 1, kept[1] - 1, (kept[0] - 1) * (kept[1] - 1)]
    for deviation, std in zip(deviations, [0.5, 0.5, 0.25], strict=True):  # sqrt(0.2 / 0.8) = 0.5
        assert abs(np.mean(deviation)) < 4 * std / np.sqrt(deviation.size)


def test_no_two_layers_share_a_mask(problem, monkeypatch):
    net, _, x, c = problem
    layers = []
    monkeypatch.setattr(shapes, "fold_in", lambda keys, layer: layers.append(layer) or keys)
    jax.eval_shape(lambda key: net.init(key, x, c, keys=random.split(key, N)), random.key(0))
    assert len(layers) == len(set(layers)) == (8 if isinstance(net, UNet) else 2)


def test_without_keys_nothing_is_dropped(problem):
    net, apply, x, c = problem
    keys = random.split(random.key(3), N)
    expected = apply(x, c, keys=keys, net=net.clone(dropout=0.0))
    np.testing.assert_allclose(apply(x, c), expected, rtol=1e-5, atol=1e-5)


def test_no_label_is_the_null_class_and_classes_differ(problem):
    _, apply, x, c = problem
    none = apply(x, c)
    np.testing.assert_allclose(apply(x, c, jnp.full(N, 3)), none, rtol=1e-5, atol=1e-5)
    first, second = apply(x, c, jnp.full(N, 0)), apply(x, c, jnp.full(N, 1))
    for difference in (first - none, second - none, first - second):
        assert np.all(largest(difference) > 1e-2)


def test_the_sinusoidal_embedding_is_the_formula():
    # 6 features: w = 1, 10000**-0.5, 10000**-1
    angles = 700.0 * np.array([1.0, 0.01, 0.0001])
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    out = sinusoidal(jnp.array([0.0, 700.0]), 6)
    np.testing.assert_allclose(out, [[0, 0, 0, 1, 1, 1], expected], atol=1e-4)


def test_an_odd_embedding_width_is_refused():
    with pytest.raises(ValueError, match="^33 features .*; choose an even width of at least 4$"):
        sinusoidal(jnp.zeros(1), 33)


@pytest.mark.parametrize("size", [(28, 28), (32, 28)])
def test_an_image_that_cannot_be_halved_is_refused(size):
    message = (
        rf"^image size {size[0]}x{size[1]} is not divisible by 8 "
        r"= 2\*\*\(len\(multipliers\) - 1\) for multipliers \(1, 2, 2, 2\); "
        r"use 3 multipliers at most, or pad the images"
    )
    with pytest.raises(ValueError, match=message):
        check_image_size(*size, (1, 2, 2, 2))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(UNet().init, random.key(0), jnp.zeros((1, *size, 3)), jnp.zeros(1))
    check_image_size(*size, (1, 2, 2))


@pytest.mark.parametrize(
    "channels, most, expected",
    [
        (128, 32, 32),
        (256, 32, 32),
        (384, 32, 32),
        (32, 32, 8),
        (96, 32, 24),
        (144, 32, 24),
        (13, 32, 1),
        (3, 32, 1),
    ],
)
def test_groups_divide_the_channels_and_hold_four_or_more(channels, most, expected):
    assert n_groups(channels, most) == expected
