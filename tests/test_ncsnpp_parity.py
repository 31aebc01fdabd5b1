"""NCSN++ and DDPM++ compute what torch does, under equal weights.

There are two references. `diffusers` (0.42) has the layout of the 256 x 256 networks. For the other
options `in_torch` follows the published networks of Song et al. 2021 layer by layer, with diffusers'
filters. A few numbers of both are kept here, so that some tests need no torch.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_unet_parity import RENAMES, diffusers_name, in_diffusers, output, problem

from score_jax import nets
from score_jax.nets.blocks import Downsample, Upsample
from score_jax.nets.resample import RESAMPLINGS

SIGMA = np.array([0.3, 2.0], np.float32)
SKIPS = dict(progressive_input="input_skip", progressive_output="output_skip")
# 128 channels: in narrower networks some norms of diffusers have more groups than ours
FACES = nets.ncsnpp(128, (1, 1, 2), blocks=1, attention=(8,), **SKIPS)
FACES_RENAMES = [
    (r"^up_0_output\.norm", "conv_norm_out"),
    (r"^up_0_output\.conv", "conv_out"),
    (r"^(down|up)_(\d)_(?:in|out)put\.", r"\1_blocks.\2.skip_"),
    (r"^(down|up)_(\d)_\1sample", r"\1_blocks.\2.resnet_\1"),
    (r"^up_(\d)_attention_\d", r"up_\1_attention_0"),
    *RENAMES,
]
NARROW = dict(channels=16, multipliers=(1, 2, 2), blocks=1, attention=(8,))
VARIANTS = {
    "ncsnpp": nets.ncsnpp(**NARROW),
    "ddpmpp": nets.ddpmpp(**NARROW),
    "cat, residual": nets.ncsnpp(
        **NARROW, progressive_input="input_skip", combine="cat", progressive_output="residual"
    ),
    "naive residual": nets.ncsnpp(**NARROW, resampling="naive", progressive_output="residual"),
    "convolutions": nets.UNet(**NARROW, resampling="fir", skip_rescale=True),
}
# the references' output at these places, [image, row, column, channel]
PLACES = [(0, 0, 0, 0), (0, 7, 8, 1), (0, 15, 15, 2), (1, 0, 15, 1), (1, 8, 7, 2), (1, 15, 0, 0)]
OUTPUT = {
    "faces": [-0.420736, -0.340931, 0.388899, 0.248251, 0.447264, -0.309942],
    "ncsnpp": [-0.479819, -0.628827, -0.169109, 0.261970, -0.291081, -0.003453],
    "ddpmpp": [-0.546295, 0.983040, 0.600169, -0.127987, -0.249063, -0.498034],
    "cat, residual": [0.078819, 1.358540, 0.279968, -0.040547, 0.396599, 0.498101],
    "naive residual": [-0.182446, -0.128510, 0.404978, 0.007141, 1.040566, -0.325618],
    "convolutions": [-0.152437, -0.626032, 0.302377, -0.426095, 0.037783, -0.234214],
}


def inputs(net):
    params, x, _ = problem(net, size=16)
    return params, x, np.log(SIGMA) if net.embedding == "fourier" else 300 * SIGMA


def in_places(out):
    return np.array([out[place] for place in PLACES])


def diffusers_network(net, height):
    diffusers = pytest.importorskip("diffusers")
    heights = [height // 2**level for level in range(len(net.multipliers))]
    kinds = ["AttnSkip" if h in net.attention else "Skip" for h in heights]
    return diffusers.UNet2DModel(
        sample_size=height,
        block_out_channels=tuple(net.channels * m for m in net.multipliers),
        layers_per_block=net.blocks,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        attention_head_dim=None,
        time_embedding_type="fourier",
        mid_block_scale_factor=math.sqrt(2),
        norm_eps=1e-6,
    )


def faces_in_diffusers():
    reference = diffusers_network(FACES, 16)
    params, x, _ = inputs(FACES)
    named = {diffusers_name(path, 2, FACES_RENAMES): value for path, value in params.items()}
    # not a parameter of ours: the same numbers as in nets.embed
    named["time_proj.weight"] = 16 * np.random.RandomState(0).standard_normal(128)
    # diffusers takes sigma for log sigma, and divides by it
    return in_diffusers(reference, named, x, SIGMA) * SIGMA[:, None, None, None]


def in_torch(net, params, x, c):
    """DDPM++ and NCSN++ without the skips of `FACES`, as torch functions of our weights."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.models.downsampling import FirDownsample2D, downsample_2d
    from diffusers.models.upsampling import FirUpsample2D, upsample_2d
    from torch.nn import functional as fn

    fir = net.resampling == "fir"
    p = {".".join(path): torch.from_numpy(np.asarray(v)) for path, v in params.items()}

    def conv(h, name, **options):
        weight = p[name + ".kernel"]
        weight = weight if weight.ndim == 4 else weight[None, None]
        return fn.conv2d(h, weight.permute(3, 2, 0, 1), p[name + ".bias"], **options)

    def linear(h, name):
        return h @ p[name + ".kernel"] + p[name + ".bias"]

    def norm(h, name):
        groups = min(h.shape[1] // 4, 32)
        return fn.group_norm(h, groups, p[name + ".scale"], p[name + ".bias"], 1e-6)

    def down(h):
        return downsample_2d(h, (1, 3, 3, 1)) if fir else fn.avg_pool2d(h, 2)

    def up(h):
        if fir:
            return upsample_2d(h, (1, 3, 3, 1))
        return fn.interpolate(h, scale_factor=2, mode="nearest")

    def resized(h, name, way):
        """By a convolution."""
        if not fir:
            if way == "up":
                return conv(up(h), name, padding=1)
            return conv(fn.pad(h, (0, 1, 0, 1)), name, stride=2)
        weight, bias = p[name + ".kernel"].permute(3, 2, 0, 1), p[name + ".bias"]
        layer = (FirUpsample2D if way == "up" else FirDownsample2D)(1, 1, use_conv=True)
        layer.Conv2d_0.weight, layer.Conv2d_0.bias = map(torch.nn.Parameter, (weight, bias))
        layer.out_channels = len(bias)
        return layer(h)

    def add(x, h):
        return (x + h) / math.sqrt(2)

    def block(x, name, resize=lambda h: h):
        h = conv(resize(fn.silu(norm(x, name + ".norm_0"))), name + ".conv_0", padding=1)
        h = h + linear(fn.silu(emb), name + ".emb")[:, :, None, None]
        h = conv(fn.silu(norm(h, name + ".norm_1")), name + ".conv_1", padding=1)
        x = resize(x)
        return add(conv(x, name + ".shortcut") if name + ".shortcut.kernel" in p else x, h)

    def attention(x, name):
        tokens = norm(x, name + ".norm").flatten(2).transpose(1, 2)
        query, key, value = (linear(tokens, f"{name}.{part}") for part in ("query", "key", "value"))
        weights = fn.softmax(query @ key.transpose(1, 2) / math.sqrt(x.shape[1]), dim=-1)
        h = linear(weights @ value, name + ".out")
        return add(x, h.transpose(1, 2).reshape(x.shape))

    def changed(h, level, way):
        name, resize = f"{way}_{level}_{way}sample", {"down": down, "up": up}[way]
        if net.block_type == "biggan":
            return block(h, name, resize)
        return resized(h, name + ".conv", way)

    x, c = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(c)
    if net.embedding == "fourier":
        frequencies = 16 * np.random.RandomState(0).standard_normal(net.channels)
        angle = 2 * np.pi * c[:, None] * torch.from_numpy(frequencies.astype(np.float32))
    else:
        half = net.channels // 2
        angle = c[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / (half - 1))
    emb = linear(torch.cat([torch.sin(angle), torch.cos(angle)], dim=1), "embedding.dense_0")
    emb = linear(fn.silu(emb), "embedding.dense_1")

    pyramid, last = x, len(net.multipliers) - 1
    h = conv(x, "conv_in", padding=1)
    skips = [h]
    for level in range(last + 1):
        for i in range(net.blocks):
            h = block(h, f"down_{level}_block_{i}")
            if h.shape[2] in net.attention:
                h = attention(h, f"down_{level}_attention_{i}")
            skips.append(h)
        if level < last:
            h = changed(h, level, "down")
            if net.progressive_input == "residual":
                pyramid = resized(pyramid, f"down_{level}_input.downsample.conv", "down")
                h = pyramid = add(pyramid, h)
            if net.progressive_input == "input_skip":
                pyramid = down(pyramid)
                h = torch.cat([conv(pyramid, f"down_{level}_input.conv"), h], dim=1)
            skips.append(h)
    h = block(attention(block(h, "mid_block_0"), "mid_attention"), "mid_block_1")
    for level in range(last, -1, -1):
        for i in range(net.blocks + 1):
            h = block(torch.cat([h, skips.pop()], dim=1), f"up_{level}_block_{i}")
            once = net.attention_up == "last"
            if h.shape[2] in net.attention and (i == net.blocks or not once):
                h = attention(h, f"up_{level}_attention_{i}")
        if net.progressive_output == "residual":
            name = f"up_{level}_output"
            if level == last:
                pyramid = conv(fn.silu(norm(h, name + ".norm")), name + ".conv", padding=1)
            else:
                h = pyramid = add(resized(pyramid, name + ".upsample.conv", "up"), h)
        if level > 0:
            h = changed(h, level, "up")
    out = conv(fn.silu(norm(h, "norm_out")), "conv_out", padding=1)
    return out.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", ["faces", *VARIANTS])
def test_the_output_is_the_stored_one_of_torch(name):
    net = FACES if name == "faces" else VARIANTS[name]
    out = output(net, *inputs(net))
    np.testing.assert_allclose(in_places(out), OUTPUT[name], atol=1e-4)


@pytest.mark.parametrize("name", ["faces", *VARIANTS])
def test_the_output_is_that_of_torch_at_every_pixel(name):
    net = FACES if name == "faces" else VARIANTS[name]
    expected = faces_in_diffusers() if name == "faces" else in_torch(net, *inputs(net))
    out = output(net, *inputs(net))
    print("largest difference", np.abs(out - expected).max(), "at scale", expected.std())
    np.testing.assert_allclose(out, expected, atol=1e-4)
    np.testing.assert_allclose(in_places(expected), OUTPUT[name], atol=1e-4)


def test_the_256_x_256_network_has_as_many_parameters_as_that_of_diffusers():
    torch = pytest.importorskip("torch")
    net = nets.ncsnpp(multipliers=(1, 1, 2, 2, 2, 2, 2), blocks=2, **SKIPS)
    with torch.device("meta"):
        reference = diffusers_network(net, 256)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)), jnp.zeros(1))
    # the frequencies are not trained there either
    expected = sum(p.numel() for p in reference.parameters() if p.requires_grad)
    assert sum(p.size for p in jax.tree.leaves(shapes)) == expected


@pytest.mark.parametrize("layer, way", [(Downsample, "Down"), (Upsample, "Up")])
def test_a_convolution_with_the_fir_filter_is_that_of_diffusers(layer, way):
    torch = pytest.importorskip("torch")
    sampling = pytest.importorskip(f"diffusers.models.{way.lower()}sampling")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 8, 3), dtype=np.float32)
    kernel = rng.standard_normal((3, 3, 3, 5), dtype=np.float32)
    bias = rng.standard_normal(5, dtype=np.float32)
    reference = getattr(sampling, f"Fir{way}sample2D")(3, 5, use_conv=True)
    reference.Conv2d_0.weight = torch.nn.Parameter(
        torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    )
    reference.Conv2d_0.bias = torch.nn.Parameter(torch.from_numpy(bias))
    expected = reference(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    params = {"params": {"conv": {"kernel": kernel, "bias": bias}}}
    out = layer(5, RESAMPLINGS["fir"]).apply(params, jnp.asarray(x))
    np.testing.assert_allclose(out, expected.transpose(0, 2, 3, 1), atol=1e-5)
