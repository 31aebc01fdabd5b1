"""DiT computes what `diffusers` (0.42) does, under equal weights.

A few numbers of a small network's output are kept here, so that one test needs no torch.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from score_jax.nets import DiT

SMALL = DiT(patch=2, width=48, depth=3, heads=4, n_classes=10)
SHAPE = (12, 12, 3)
# larger patches, one block, two outputs for each number
OTHER = DiT(patch=4, width=32, depth=1, heads=2, n_classes=4, outputs=2)
# diffusers' output for the small network, [image, row, column, channel]
OUTPUT = {
    (0, 0, 0, 0): -1.015953,
    (0, 0, 11, 1): 0.623093,
    (1, 5, 6, 2): 0.027836,
    (1, 11, 0, 0): 1.151260,
    (2, 11, 11, 1): 0.417477,
    (2, 7, 4, 2): -0.006277,
}

# our names -> diffusers' names, in this order
RENAMES = [
    (r"^dense_in", "pos_embed.proj"),
    (r"^modulation", "proj_out_1"),
    (r"^dense_out", "proj_out_2"),
    (r"^block_(\d+)\.modulation", r"transformer_blocks.\1.norm1.linear"),
    (r"^block_(\d+)\.(query|key|value)", lambda m: f"block_{m[1]}.attn1.to_{m[2][0]}"),
    (r"^block_(\d+)\.out", r"block_\1.attn1.to_out.0"),
    (r"^block_(\d+)\.dense_0", r"block_\1.ff.net.0.proj"),
    (r"^block_(\d+)\.dense_1", r"block_\1.ff.net.2"),
    (r"^block_", "transformer_blocks."),
    (r"^embedding\.dense_0", "timestep_embedder.linear_1"),
    (r"^embedding\.dense_1", "timestep_embedder.linear_2"),
    (r"^embedding\.label", "class_embedder.embedding_table"),
    (r"(kernel|embedding)$", "weight"),
]


def problem(net, shape):
    """Random weights everywhere, also where training starts from zero, and inputs."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, *shape), dtype=np.float32)
    c = np.array([0.5, 3.0, 870.0], np.float32)
    label = np.array([0, net.n_classes - 1, net.n_classes])
    shapes = flatten_dict(jax.eval_shape(net.init, jax.random.key(0), x, c)["params"])
    params = {}
    for path in sorted(shapes):
        noise = rng.standard_normal(shapes[path].shape, dtype=np.float32)
        scale = 1 / np.sqrt(noise.shape[0]) if path[-1] == "kernel" else 0.3
        params[path] = noise * np.float32(scale)
    return params, x, c, label


def output(net, params, x, c, label):
    return np.asarray(jax.jit(net.apply)({"params": unflatten_dict(params)}, x, c, label))


def diffusers_network(net, shape):
    diffusers = pytest.importorskip("diffusers")
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=net.heads,
        attention_head_dim=net.width // net.heads,
        in_channels=shape[2],
        out_channels=shape[2] * net.outputs,
        num_layers=net.depth,
        sample_size=shape[0],
        patch_size=net.patch,
        num_embeds_ada_norm=net.n_classes,
        norm_eps=1e-6,
    )


def named_weights(net, params, channels):
    """The weights by diffusers' names, with its order of axes."""
    for path, value in params.items():
        name = ".".join(path)
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if path == ("dense_in", "kernel"):
            # a convolution there: [row, column, in, out] -> [out, in, row, column]
            value = value.reshape(net.patch, net.patch, channels, -1).transpose(3, 2, 0, 1)
        elif path[-1] == "kernel":
            value = value.T
        if path[:2] == ("embedding", "dense_0") and path[-1] == "kernel":
            value = np.roll(value, 128, axis=1)  # the cosines come first there
        if path[0] != "embedding":
            yield name, value
            continue
        # each block has an embedding of its own there
        for i in range(net.depth):
            yield f"transformer_blocks.{i}.norm1.emb.{name}", value


def diffusers_output(net, params, x, c, label):
    torch = pytest.importorskip("torch")
    reference = diffusers_network(net, x.shape[1:])
    named = dict(named_weights(net, params, x.shape[3]))
    reference.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in named.items()})
    with torch.no_grad():
        x, c, label = (torch.from_numpy(a.copy()) for a in (x.transpose(0, 3, 1, 2), c, label))
        return reference.eval()(x, c, label).sample.numpy().transpose(0, 2, 3, 1)


def test_the_small_network_gives_the_stored_output_of_diffusers():
    out = output(SMALL, *problem(SMALL, SHAPE))
    np.testing.assert_allclose([out[i] for i in OUTPUT], [*OUTPUT.values()], atol=1e-4)


@pytest.mark.parametrize("net, shape", [(SMALL, SHAPE), (OTHER, (16, 16, 4))])
def test_the_output_is_that_of_diffusers_at_every_pixel(net, shape):
    args = problem(net, shape)
    expected = diffusers_output(net, *args)
    out = output(net, *args)
    print("largest difference", np.abs(out - expected).max(), "at scale", expected.std())
    np.testing.assert_allclose(out, expected, atol=1e-4)
    if net is SMALL:
        np.testing.assert_allclose([expected[i] for i in OUTPUT], [*OUTPUT.values()], atol=1e-4)


def test_the_largest_network_of_the_paper_has_as_many_parameters_as_that_of_diffusers():
    torch = pytest.importorskip("torch")
    net, shape = DiT(2, 1152, 28, 16, n_classes=1000, outputs=2), (32, 32, 4)
    with torch.device("meta"):
        reference = diffusers_network(net, shape)
    embedding = reference.transformer_blocks[0].norm1.emb
    # the one embedding of the paper is copied to each block there
    copies = (net.depth - 1) * sum(p.numel() for p in embedding.parameters())
    expected = sum(p.numel() for p in reference.parameters()) - copies
    args = jnp.zeros((1, *shape)), jnp.zeros(1)
    params = jax.eval_shape(net.init, jax.random.key(0), *args)
    assert sum(p.size for p in jax.tree.leaves(params)) == expected == 674_834_720
