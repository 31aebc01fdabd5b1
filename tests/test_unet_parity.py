"""The U-Net computes what `diffusers` does for DDPM's CIFAR-10 network, under equal weights.

The configuration is that of google/ddpm-cifar10-32. A few numbers of a narrow network's output are
kept here, so that one test needs no torch; with torch and diffusers (0.42), all of it is compared.
"""

import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from score_jax.nets import UNet

MULTIPLIERS = (1, 2, 2, 2)
NARROW = dict(channels=32, groups=8)  # 8 groups in every layer, as diffusers has it
# diffusers' output for the narrow network, [image, row, column, channel]
NARROW_OUTPUT = {
    (0, 0, 0, 0): 0.073372,
    (0, 0, 31, 1): 0.053534,
    (0, 15, 16, 2): -1.482968,
    (1, 31, 0, 0): 0.156036,
    (1, 31, 31, 1): 0.448896,
    (1, 16, 15, 2): -1.194596,
}

# our names -> diffusers' names, in this order
RENAMES = [
    (r"^embedding\.dense_0", "time_embedding.linear_1"),
    (r"^embedding\.dense_1", "time_embedding.linear_2"),
    (r"^(down|up)_(\d)_block_(\d)", r"\1_blocks.\2.resnets.\3"),
    (r"^(down|up)_(\d)_attention_(\d)", r"\1_blocks.\2.attentions.\3"),
    (r"^(down|up)_(\d)_(down|up)sample", r"\1_blocks.\2.\1samplers.0"),
    (r"^mid_block_(\d)", r"mid_block.resnets.\1"),
    (r"^mid_attention", "mid_block.attentions.0"),
    (r"^norm_out", "conv_norm_out"),
    (r"(attentions\.\d)\.norm", r"\1.group_norm"),
    (r"(attentions\.\d)\.(query|key|value)", lambda m: f"{m[1]}.to_{m[2][0]}"),
    (r"(attentions\.\d)\.out", r"\1.to_out.0"),
    (r"(resnets\.\d|resnet_\w+)\.norm_0", r"\1.norm1"),
    (r"(resnets\.\d|resnet_\w+)\.norm_1", r"\1.norm2"),
    (r"(resnets\.\d|resnet_\w+)\.conv_0", r"\1.conv1"),
    (r"(resnets\.\d|resnet_\w+)\.conv_1", r"\1.conv2"),
    (r"(resnets\.\d|resnet_\w+)\.emb", r"\1.time_emb_proj"),
    (r"(resnets\.\d|resnet_\w+)\.shortcut", r"\1.conv_shortcut"),
    (r"(kernel|scale)$", "weight"),
]


def diffusers_name(path, last, renames=RENAMES):
    """`last` is the lowest level: diffusers counts from it on the way up."""
    name = ".".join(path)
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"^up_blocks\.(\d)", lambda m: f"up_blocks.{last - int(m[1])}", name)


def problem(net, size=32):
    """Random weights everywhere, also where training starts from zero or one, and inputs."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, size, size, 3), dtype=np.float32)
    c = np.array([3.0, 870.0], np.float32)
    shapes = flatten_dict(jax.eval_shape(net.init, jax.random.key(0), x, c)["params"])
    params = {}
    for path in sorted(shapes):
        shape = shapes[path].shape
        noise = rng.standard_normal(shape, dtype=np.float32)
        if path[-1] == "kernel":
            params[path] = noise / np.sqrt(np.prod(shape[:-1], dtype=np.float32))
        else:
            params[path] = 0.2 * noise + (path[-1] == "scale")
        if path[0] == "conv_in":
            params[path] *= 1e-3  # variance about 1e-6: the first norm shows its epsilon
    return params, x, c


def output(net, params, x, c):
    return np.asarray(jax.jit(net.apply)({"params": unflatten_dict(params)}, x, c))


def in_diffusers(net, named, x, c):
    """The output of a network of diffusers with these weights, by its names."""
    import torch

    state = net.state_dict()
    assert set(named) == set(state)
    for name, value in named.items():
        # [h, w, in, out] -> [out, in, h, w], [in, out] -> [out, in] or, a shortcut, [out, in, 1, 1]
        value = np.moveaxis(value, (-1, -2), (0, 1)) if value.ndim > 1 else value
        state[name] = torch.from_numpy(value.copy()).reshape(state[name].shape)
    net.load_state_dict(state, strict=True)
    with torch.no_grad():
        x, c = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(c)
        return net.eval()(x, c).sample.numpy().transpose(0, 2, 3, 1)


def diffusers_output(params, x, c, channels, groups):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    net = diffusers.UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=tuple(channels * m for m in MULTIPLIERS),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        center_input_sample=False,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=groups,
    )
    named = {diffusers_name(path, last=3): value for path, value in params.items()}
    return in_diffusers(net, named, x, c), sum(p.numel() for p in net.parameters())


def test_the_narrow_network_gives_the_stored_output_of_diffusers():
    net = UNet(**NARROW)
    out = output(net, *problem(net))
    np.testing.assert_allclose(
        [out[i] for i in NARROW_OUTPUT], [*NARROW_OUTPUT.values()], atol=1e-4
    )


def test_the_stored_output_is_that_of_diffusers():
    out, _ = diffusers_output(*problem(UNet(**NARROW)), **NARROW)
    np.testing.assert_allclose(
        [out[i] for i in NARROW_OUTPUT], [*NARROW_OUTPUT.values()], atol=1e-4
    )


@pytest.mark.parametrize(
    "size, n_params", [(NARROW, None), (dict(channels=128, groups=32), 35_746_307)]
)
def test_the_output_is_that_of_diffusers_at_every_pixel(size, n_params):
    net = UNet(**size)
    params, x, c = problem(net)
    expected, expected_n_params = diffusers_output(params, x, c, **size)
    out = output(net, params, x, c)
    print("largest difference", np.abs(out - expected).max(), "at scale", expected.std())
    np.testing.assert_allclose(out, expected, atol=1e-4)
    if n_params is not None:
        assert expected_n_params == sum(p.size for p in params.values()) == n_params
