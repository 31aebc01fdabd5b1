import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import random

from score_jax import nets, shapes
from score_jax.nets import MLP, UNet, check_image_size
from score_jax.nets.blocks import ResBlock, dropout, n_groups
from score_jax.nets.embed import Embedding, fourier, input_fourier, sinusoidal
from score_jax.nets.resample import RESAMPLINGS

N = 6
SMALL = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.5, n_classes=3)
NCSNPP = nets.ncsnpp(**SMALL, progressive_output="output_skip")
# network, event, largest c, and how many layers drop
NETS = {
    "unet": (UNet(**SMALL, n_augment=2), (4, 4, 2), 1000.0, 8),
    "ncsnpp": (NCSNPP, (4, 4, 2), 4.0, 10),
    "mlp": (MLP(width=16, depth=2, dropout=0.5, n_classes=3, n_augment=2), (5,), 1000.0, 2),
}
# of networks at initialisation, also those of NCSN++ that differ in name
ZEROS = {
    "unet": ["conv_out", "down_0_block_0/conv_1", "up_1_block_1/conv_1", "mid_attention/out"],
    "ncsnpp": ["up_0_output/conv", "up_1_output/conv", "down_0_downsample/conv_1"],
    "mlp": ["dense_out"],
}


@pytest.fixture(scope="module", params=["unet", "mlp"])
def problem(request):
    """A network, apply(x, c, label, keys, augment) with no parameter at zero, and inputs for it."""
    net, event, c_max, _ = NETS[request.param]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((N, *event), dtype=np.float32))
    c = jnp.linspace(0.0, c_max, N)
    params = jax.tree.map(
        lambda p: rng.normal(p.ndim == 1, 0.3, p.shape).astype(np.float32),
        jax.eval_shape(net.init, random.key(0), x, c),
    )

    @functools.partial(jax.jit, static_argnames="net")
    def apply(x, c, label=None, keys=None, augment=None, net=net):
        return net.apply(params, x, c, label, keys=keys, augment=augment)

    return net, apply, x, c


def n_parameters(net, size=32):
    x, c = jnp.zeros((1, size, size, 3)), jnp.zeros(1)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(net.init, random.key(0), x, c)))


def largest(difference):
    """Per example."""
    return np.max(np.abs(difference).reshape(len(difference), -1), axis=1)


@pytest.mark.parametrize("name", NETS)
def test_at_initialisation_the_output_and_what_residual_blocks_add_are_zero(name):
    net, event, _, _ = NETS[name]
    key = random.key(0, impl="rbg")  # compiles three times faster
    out, params = jax.jit(net.init_with_output)(key, jnp.ones((1, *event)), jnp.ones(1))
    assert not np.any(out)
    flat = flatten_dict(params["params"], sep="/")
    kernels = {path for path, p in flat.items() if path.endswith("/kernel") and not np.any(p)}
    assert {name + "/kernel" for name in ZEROS[name]} <= kernels
    assert not [path for path in kernels if "conv_0" in path or "dense_0" in path]


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


@pytest.mark.parametrize("name", NETS)
def test_no_two_layers_share_a_mask(name, monkeypatch):
    net, event, _, n_layers = NETS[name]
    x, c = jnp.zeros((N, *event)), jnp.zeros(N)
    layers = []
    monkeypatch.setattr(shapes, "fold_in", lambda keys, layer: layers.append(layer) or keys)
    jax.eval_shape(lambda key: net.init(key, x, c, keys=random.split(key, N)), random.key(0))
    assert len(layers) == len(set(layers)) == n_layers


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


def test_augmentation_is_heard_and_none_of_it_is_zeros(problem):
    _, apply, x, c = problem
    none, zeros = apply(x, c), jnp.zeros((N, 2))
    np.testing.assert_allclose(apply(x, c, augment=zeros), none, rtol=1e-5, atol=1e-5)
    for i in range(2):
        assert np.all(largest(apply(x, c, augment=zeros.at[:, i].set(1.0)) - none) > 1e-3)


def test_augmentation_is_a_linear_map_added_to_the_encoded_noise_level():
    rng = np.random.default_rng(0)
    net = Embedding(6, n_augment=2)
    encoded, augment = (jnp.asarray(rng.standard_normal((3, n), dtype=np.float32)) for n in (4, 2))
    params = net.init(random.key(0), encoded)["params"]
    without = {name: p for name, p in params.items() if name != "augment"}
    plain = Embedding(6)
    kernel = params["augment"].pop("kernel")
    assert kernel.shape == (2, 4) and not params["augment"]
    expected = plain.apply({"params": without}, encoded + augment @ kernel)
    out = net.apply({"params": without | {"augment": {"kernel": kernel}}}, encoded, None, augment)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [lambda k: UNet(**SMALL, n_augment=k), lambda k: MLP(n_augment=k)])
def test_a_network_without_augmentation_has_the_parameters_that_it_always_had(make):
    x, c = jnp.zeros((1, 4, 4, 2)), jnp.zeros(1)
    paths = lambda net: set(flatten_dict(jax.eval_shape(net.init, random.key(0), x, c)["params"]))
    assert paths(make(5)) - paths(make(0)) == {("embedding", "augment", "kernel")}
    told = jax.eval_shape(lambda: make(0).init(random.key(0), x, c, augment=jnp.ones((1, 3))))
    assert set(flatten_dict(told["params"])) == paths(make(0))


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


def test_ddpm_s_cifar10_network_has_35_746_307_parameters():
    assert n_parameters(UNet()) == n_parameters(nets.ddpm()) == 35_746_307


def conv(n_in, n_out, taps=9):
    return taps * n_in * n_out + n_out


def res_block(n_in, n_out, resized=False):
    shortcut = conv(n_in, n_out, taps=1) if resized or n_in != n_out else 0
    embedding = conv(512, n_out, taps=1)
    return 2 * n_in + conv(n_in, n_out) + embedding + 2 * n_out + conv(n_out, n_out) + shortcut


@pytest.mark.parametrize(
    "net, blocks, frequencies, millions",
    [
        # rounded: later papers print 62M for DDPM++ and 107M for deep NCSN++
        (nets.ddpmpp(), 4, 128, 62),
        (nets.ddpmpp_deep(), 8, 128, 107),
        (nets.ncsnpp(), 4, 256, 63),
        (nets.ncsnpp(embedding="positional"), 4, 128, 63),
        (nets.ncsnpp_deep(), 8, 256, 108),
    ],
)
def test_the_networks_of_song_et_al_have_the_parameters_of_their_layout(
    net, blocks, frequencies, millions
):
    attention = 2 * 256 + 4 * conv(256, 256, taps=1)
    embedding = conv(frequencies, 512, taps=1) + conv(512, 512, taps=1)
    low, high = res_block(128, 128), res_block(256, 256)
    # a level is its blocks, then the block that takes it to the next size
    down = (
        (conv(3, 128) + blocks * low + res_block(128, 128, resized=True))
        + (res_block(128, 256) + (blocks - 1) * high + blocks * attention)
        + (2 * res_block(256, 256, resized=True) + 2 * blocks * high)
    )
    mid = 2 * high + attention
    # the input of level 1 on the way down, last to come back there, has 128 channels
    up = (
        2 * (blocks + 1) * res_block(512, 256)
        + (blocks * res_block(512, 256) + res_block(384, 256) + attention)
        + 3 * res_block(256, 256, resized=True)
        + (res_block(384, 128) + blocks * res_block(256, 128))
        + (2 * 128 + conv(128, 3))
    )
    pyramid = conv(3, 128) + conv(128, 256) + conv(256, 256)
    expected = embedding + down + mid + up
    expected += pyramid if net.progressive_input == "residual" else 0
    assert n_parameters(net) == expected
    assert round(expected / 1e6) == millions


def test_the_constructors_pass_on_what_they_are_given():
    size = (16, (1, 1, 2), 1, (4,), 4, 0.3, 7)
    for make in (nets.ddpm, nets.ncsnpp, nets.vdm):
        net = make(*size)
        names = ("channels", "multipliers", "blocks", "attention", "groups", "dropout", "n_classes")
        assert tuple(getattr(net, name) for name in names) == size
    words = dict(
        resampling="naive", progressive_input="input_skip", progressive_output="residual"
    ) | dict(combine="cat", embedding="positional", fourier_scale=2.0)
    net = nets.ncsnpp(**words)
    assert {name: getattr(net, name) for name in words} == words
    assert (net.block_type, net.skip_rescale, net.attention_up) == ("biggan", True, "last")
    assert nets.vdm(input_frequencies=(3,)).input_frequencies == (3,)


def test_the_network_of_vdm_has_the_parameters_of_its_layout():
    attention = 2 * 128 + 4 * conv(128, 128, taps=1)
    block = res_block(128, 128)
    # the image and, for 2 frequencies, its sines and cosines
    ends = conv(3 * (1 + 4), 128) + 2 * 128 + conv(128, 3)
    embedding = conv(128, 512, taps=1) + conv(512, 512, taps=1)
    # 32 blocks on the way down, 33 on the way up, 2 in the middle
    expected = embedding + ends + 34 * block + attention + 33 * res_block(256, 128)
    assert n_parameters(nets.vdm()) == expected == 30_586_243


def test_the_waves_of_the_input_are_the_formula_far_from_zero_too():
    # float32 has 2**-18 for 37: a plain sine of 2**8 pi 37 would be wrong by 1e-3
    x = np.array([[-1.0, 0.3], [37.123, -0.99], [2 / 256, 250.7]], np.float32)
    angles = [np.pi * 2.0**n * x.astype(np.float64) for n in (7, 8)]
    expected = np.concatenate([np.sin(angles[0]), np.sin(angles[1]), np.cos(angles[0])], axis=1)
    out = input_fourier(jnp.asarray(x), (7, 8))
    assert out.shape == (3, 8) and out.dtype == np.float32
    np.testing.assert_allclose(out[:, :6], expected, atol=2e-6)
    np.testing.assert_allclose(out[:, 6:], np.cos(angles[1]), atol=2e-6)
    # of bfloat16 x they are as exact
    low = jnp.asarray(x, jnp.bfloat16)
    np.testing.assert_array_equal(
        input_fourier(low, (7, 8)), input_fourier(low.astype(jnp.float32), (7, 8))
    )
    _, slope = jax.jvp(lambda x: input_fourier(x, (8,)), (jnp.asarray(x),), (jnp.ones((3, 2)),))
    rate = 2**8 * np.pi
    exact = rate * np.concatenate([np.cos(angles[1]), -np.sin(angles[1])], axis=1)
    np.testing.assert_allclose(slope, exact, atol=2e-6 * rate)


def test_a_network_that_sees_only_the_waves_is_periodic():
    net = UNet(channels=4, multipliers=(1,), blocks=0, attention=(), input_frequencies=(1, 3))
    rng = np.random.default_rng(0)
    x, c = jnp.asarray(rng.standard_normal((2, 2, 2, 3), dtype=np.float32)), jnp.ones(2)
    params = jax.tree.map(
        lambda p: rng.normal(0.0, 0.3, p.shape).astype(np.float32),
        jax.eval_shape(net.init, random.key(0), x, c),
    )
    params["params"]["conv_in"]["kernel"][:, :, :3] = 0.0
    apply = jax.jit(net.apply)
    out = apply(params, x, c)
    assert out.shape == x.shape
    # the slowest is sin(2 pi x)
    np.testing.assert_allclose(apply(params, x + 1, c), out, atol=1e-4)
    assert np.all(largest(apply(params, x + 0.5, c) - out) > 1e-2)


def test_the_fourier_embedding_is_the_formula_at_frequencies_that_never_change():
    # the first numbers of numpy's frozen generator at seed 0
    w = 16 * np.array([1.764052345967664, 0.4001572083672233, 0.9787379841057392])
    c = np.array([-1.3, 0.7])
    expected = np.concatenate(
        [np.sin(2 * np.pi * w * c[:, None]), np.cos(2 * np.pi * w * c[:, None])], 1
    )
    np.testing.assert_allclose(fourier(jnp.asarray(c, jnp.float32), 6), expected, atol=2e-4)
    given = fourier(jnp.asarray(c, jnp.float32), 4, frequencies=(0.5, 2.0))
    np.testing.assert_allclose(given[1], np.sin(np.pi * np.array([0.7, 2.8, 1.2, 3.3])), atol=1e-5)
    half_scale = fourier(jnp.asarray(2 * c, jnp.float32), 6, scale=8.0)
    np.testing.assert_allclose(half_scale, expected, atol=2e-4)


def test_the_random_frequencies_have_the_given_scale():
    # sin^2 of w c at small c is (2 pi w c)^2, of mean (2 pi 16 c)^2 and relative deviation sqrt(2 / n)
    n, c = 10_000, 1e-5
    sine = fourier(jnp.array([c]), 2 * n)[0, :n]
    mean = np.mean(np.square(sine / (2 * np.pi * c)))
    assert abs(mean / 16**2 - 1) < 4 * np.sqrt(2 / n)


def test_the_random_frequencies_are_no_parameters_and_can_be_given():
    x, c = jnp.zeros((1, 4, 4, 2)), jnp.zeros(1)
    net = nets.ncsnpp(**SMALL)
    variables = jax.eval_shape(net.init, random.key(0), x, c)
    assert set(variables) == {"params"}
    assert set(variables["params"]["embedding"]) == {"dense_0", "dense_1", "label"}
    with pytest.raises(ValueError, match="^3 frequencies do not make 16 features; give 8"):
        jax.eval_shape(net.clone(frequencies=(1.0, 2.0, 3.0)).init, random.key(0), x, c)


def test_an_odd_width_of_the_fourier_embedding_is_refused():
    with pytest.raises(ValueError, match="^7 features .*; choose an even width of at least 2$"):
        fourier(jnp.zeros(1), 7)


@pytest.mark.parametrize("option", nets.CHOICES)
def test_an_unknown_word_is_refused_with_the_choices(option):
    x, c = jnp.zeros((1, 4, 4, 2)), jnp.zeros(1)
    message = f"^{option} is 'sideways'; choose from {', '.join(nets.CHOICES[option])}(\n|$)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(UNet(**SMALL, **{option: "sideways"}).init, random.key(0), x, c)


def test_concatenation_without_an_input_skip_is_refused():
    x, c = jnp.zeros((1, 4, 4, 2)), jnp.zeros(1)
    message = (
        "^combine 'cat' .* 'residual'; set progressive_input to 'input_skip', or combine to 'sum'"
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(nets.ncsnpp(**SMALL, combine="cat").init, random.key(0), x, c)


@pytest.mark.parametrize("name", RESAMPLINGS)
@pytest.mark.parametrize("way", ["down", "up"])
def test_a_biggan_block_starts_as_a_linear_map_of_the_resampled_image(name, way):
    x = random.normal(random.key(0), (2, 4, 6, 8))
    resample = getattr(RESAMPLINGS[name], way)
    block = ResBlock(8, 32, 0.0, 0, rescale=True, resample=resample)
    params = block.init(random.key(1), x, jnp.ones((2, 5)))
    shortcut = params["params"]["shortcut"]
    expected = resample(x) @ shortcut["kernel"] + shortcut["bias"]
    np.testing.assert_allclose(
        block.apply(params, x, jnp.ones((2, 5))), expected / np.sqrt(2), atol=1e-6
    )


@pytest.mark.parametrize("event", [(), (6,), (3, 2), (2, 1, 3)])
def test_the_mlp_takes_an_event_of_any_shape_as_the_vector_of_its_elements(event):
    net = MLP(width=8, depth=1)
    rng = np.random.default_rng(0)
    x, c = jnp.asarray(rng.standard_normal((2, *event), dtype=np.float32)), jnp.ones(2)
    params = jax.tree.map(
        lambda p: rng.normal(0.0, 0.3, p.shape).astype(np.float32),
        jax.eval_shape(net.init, random.key(0), x, c),
    )
    out = net.apply(params, x, c)
    assert out.shape == x.shape and np.any(out)
    np.testing.assert_array_equal(net.apply(params, x.reshape(2, -1), c), out.reshape(2, -1))
