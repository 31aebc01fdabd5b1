"""DiT, the diffusion transformer (Peebles & Xie 2023, arXiv 2212.09748), with its adaLN-Zero blocks.

The image is cut into squares of `patch` x `patch` pixels, which become vectors, the tokens; a square
knows its place by a fixed position embedding. The embedding of noise level, class and augmentation
enters by the norms: each has no scale and shift of its own, but those that a linear map of the
embedding gives (adaLN), and what a block adds to the tokens is multiplied by a gate from the same
map, which starts as zero: every block starts as the identity.

There is no convolution: patches are made by reshaping.
"""

import math
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from score_jax.nets.blocks import dense, dropout, softmax_attention, zero
from score_jax.nets.embed import Embedding, sinusoidal
from score_jax.types import Keys

Tokens = Float[Array, "b t d"]

# of the sines and cosines of c
_FREQUENCY_FEATURES = 256


def check_patch(height: int, width: int, patch: int) -> None:
    """Raises ValueError if the image cannot be cut into squares of `patch` x `patch` pixels."""
    if height % patch or width % patch:
        common = math.gcd(height, width)
        fits = next(n for n in range(min(patch, common), 0, -1) if common % n == 0)
        raise ValueError(
            f"image size {height}x{width} is not divisible by the patch of {patch}x{patch} pixels; "
            f"use patch {fits}, or pad the images"
        )


def patchify(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b t _"]:
    """The squares, row by row, each as the vector of its pixels, row by row, channels last."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    return x.reshape(b, -1, patch * patch * c)


def unpatchify(tokens: Tokens, height: int, width: int, patch: int) -> Float[Array, "b h w c"]:
    """The image of this size whose squares they are: the inverse of `patchify`."""
    b, _, d = tokens.shape
    rows, columns, channels = height // patch, width // patch, d // patch**2
    x = tokens.reshape(b, rows, columns, patch, patch, channels).swapaxes(2, 3)
    return x.reshape(b, height, width, channels)


def position_embedding(rows: int, columns: int, features: int) -> Float[np.ndarray, "t d"]:
    """[sin(w j), cos(w j), sin(w i), cos(w i)] of the square in row i and column j, row by row.

    For features / 4 frequencies w, 10000^(-k / (features / 4)) at k = 0, 1, ..
    """
    quarter = features // 4
    frequencies = 10000.0 ** (-np.arange(quarter) / quarter)
    i, j = (np.outer(place.ravel(), frequencies) for place in np.indices((rows, columns)))
    return np.concatenate([np.sin(j), np.cos(j), np.sin(i), np.cos(i)], axis=1)


def _modulation(emb: Float[Array, "b e"], n: int, features: int, name: str) -> list[Array]:
    """n vectors [b, 1, features] for all tokens of an example, linear in swish(emb), zero at first."""
    out = dense(n * features, kernel_init=zero, name=name)(nn.swish(emb))
    return jnp.split(out[:, None, :], n, axis=-1)


def _modulated_norm(x: Tokens, shift: Array, scale: Array, dtype: DTypeLike | None) -> Tokens:
    norm = nn.LayerNorm(
        epsilon=1e-6, use_bias=False, use_scale=False, use_fast_variance=False, dtype=dtype
    )
    x = norm(x)
    return x * (1 + scale).astype(x.dtype) + shift.astype(x.dtype)


class Block(nn.Module):
    """x + gate attention(norm(x)), and to that again x + gate mlp(norm(x)).

    Attributes:
      heads: of the attention; they share the features of x evenly.
      hidden: units of the MLP's hidden layer.
      dropout: rate, of the attention's output and of the hidden layer.
      layer: the index of this block in the network, so that each draws masks of its own.
    """

    heads: int
    hidden: int
    dropout: float
    layer: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Tokens, emb: Float[Array, "b e"], *, keys: Keys | None = None) -> Tokens:
        b, t, d = x.shape
        linear = partial(dense, dtype=self.dtype)
        modulation = _modulation(emb, 6, d, "modulation")
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation

        def heads(name):
            return linear(d, name=name)(h).reshape(b, t, self.heads, -1).swapaxes(1, 2)

        h = _modulated_norm(x, shift, scale, self.dtype)
        h = softmax_attention(heads("query"), heads("key"), heads("value"))
        h = linear(d, name="out")(h.swapaxes(1, 2).reshape(b, t, d))
        x = x + gate.astype(x.dtype) * dropout(keys, 2 * self.layer, h, self.dropout)

        h = _modulated_norm(x, mlp_shift, mlp_scale, self.dtype)
        h = nn.gelu(linear(self.hidden, name="dense_0")(h), approximate=True)
        h = dropout(keys, 2 * self.layer + 1, h, self.dropout)
        return x + mlp_gate.astype(x.dtype) * linear(d, name="dense_1")(h)


class DiT(nn.Module):
    """The defaults are DiT-S/2. The paper's sizes, of patches of 2, 4 or 8 (its table 1):

        DiT-   S    B    L     XL
        width  384  768  1024  1152
        depth  12   12   24    28
        heads  6    12   16    16

    Attributes:
      patch: height and width of the squares, of which the image's size is a multiple.
      width: features of a token and of the embedding, a multiple of `heads` and of 4.
      depth: number of blocks.
      heads: of the attention.
      mlp_ratio: units of the MLPs' hidden layers, in widths.
      dropout: rate in every block, in calls with keys; the paper has none.
      n_classes: 0 for a network without labels.
      dtype: to compute in, such as bfloat16; None is that of x. Parameters, statistics of norms,
        softmax, embedding, what is linear in it, and output have float32 at least.
      remat: whether blocks are computed again for the gradient instead of kept: less memory.
      outputs: numbers for each one of x.
      n_augment: numbers that describe an augmentation; 0 for a network without.

    Raises ValueError, when called, on sizes that do not divide.
    """

    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    n_classes: int = 0
    dtype: DTypeLike | None = None
    remat: bool = False
    outputs: int = 1
    n_augment: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        c: Float[Array, "b"],
        label: Int[Array, "b"] | None = None,
        *,
        keys: Keys | None = None,
        augment: Float[Array, "b k"] | None = None,
    ) -> Float[Array, "b h w c*{self.outputs}"]:
        _, height, width, channels = x.shape
        check_patch(height, width, self.patch)
        self._check_width()
        embedding = Embedding(self.width, self.n_classes, self.n_augment, name="embedding")
        emb = embedding(sinusoidal(c, _FREQUENCY_FEATURES), label, augment)

        linear = partial(dense, dtype=self.dtype)
        h = linear(self.width, name="dense_in")(patchify(x, self.patch))
        place = position_embedding(height // self.patch, width // self.patch, self.width)
        h = h + jnp.asarray(place, h.dtype)
        block = nn.remat(Block) if self.remat else Block
        make = partial(block, self.heads, round(self.mlp_ratio * self.width), self.dropout)
        for i in range(self.depth):
            h = make(i, self.dtype, name=f"block_{i}")(h, emb, keys=keys)

        h = _modulated_norm(h, *_modulation(emb, 2, self.width, "modulation"), self.dtype)
        features = self.patch**2 * channels * self.outputs
        h = linear(features, kernel_init=zero, name="dense_out")(h)
        return unpatchify(
            h.astype(jnp.promote_types(x.dtype, jnp.float32)), height, width, self.patch
        )

    def _check_width(self):
        unit = math.lcm(4, self.heads)
        if self.width % unit:
            raise ValueError(
                f"width {self.width} is not divisible by {unit}, as {self.heads} heads and the position "
                f"embedding's four parts need it; use {-(-self.width // unit) * unit}"
            )
