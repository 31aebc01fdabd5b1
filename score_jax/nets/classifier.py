"""A classifier of noisy images: the U-Net's way down, pooled (Dhariwal & Nichol 2021, arXiv 2105.05233, section 4)."""

import itertools
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from score_jax.nets.blocks import (
    Attention,
    Downsample,
    ResBlock,
    conv3x3,
    dense,
    group_norm,
    n_groups,
    softmax_attention,
    zero,
)
from score_jax.nets.embed import Embedding, sinusoidal
from score_jax.nets.resample import RESAMPLINGS
from score_jax.nets.unet import check_image_size
from score_jax.types import Keys

_HEADS = 8  # of the pool, at most


class _AttentionPool(nn.Module):
    """The mean of the pixels' values, weighted by attention to a query made of their mean, head by head.

    Each position has a vector of its own, of unit variance: from the first step on the heads look at
    different places, where a plain mean would forget where things are.
    """

    heads: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, pixels: Float[Array, "b n c"]) -> Float[Array, "b c"]:
        b, _, c = pixels.shape
        place = self.param("position", nn.initializers.normal(1.0), pixels.shape[1:])
        pixels = pixels + place.astype(pixels.dtype)

        def linear(x, name):
            return dense(c, dtype=self.dtype, name=name)(x).reshape(
                b, -1, self.heads, c // self.heads
            )

        query = linear(jnp.mean(pixels, axis=1, keepdims=True), "query")
        key, value = linear(pixels, "key"), linear(pixels, "value")
        by_head = (jnp.moveaxis(a, 2, 1) for a in (query, key, value))
        return softmax_attention(*by_head).reshape(b, c)


class Classifier(nn.Module):
    """The logits of the classes, [b, n_classes], called as the other networks are; it ignores label and augment.

    The pixels of the lowest level are pooled by attention. Before training every class has the same
    probability.

    Attributes:
      channels, multipliers, blocks, attention, groups, dropout: as in `unet.UNet`.
      n_classes: of the data.
      dtype, remat: as in `unet.UNet`; the logits have float32 at least.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    groups: int = 32
    dropout: float = 0.1
    n_classes: int = 0
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        c: Float[Array, "b"],
        label: Int[Array, "b"] | None = None,
        *,
        keys: Keys | None = None,
        augment: Float[Array, "b k"] | None = None,
    ) -> Float[Array, "b {self.n_classes}"]:
        check_image_size(x.shape[1], x.shape[2], self.multipliers)
        emb = Embedding(4 * self.channels, name="embedding")(sinusoidal(c, self.channels))
        layer = itertools.count()
        res_block, attention = (
            nn.remat(part) if self.remat else part for part in (ResBlock, Attention)
        )

        def block(h, channels, name):
            make = partial(res_block, channels, self.groups, self.dropout, next(layer))
            return make(dtype=self.dtype, name=name)(h, emb, keys=keys)

        def attend(h, name):
            return attention(self.groups, dtype=self.dtype, name=name)(h)

        h = conv3x3(self.channels, dtype=self.dtype, name="conv_in")(x)
        last = len(self.multipliers) - 1
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.blocks):
                h = block(h, self.channels * multiplier, f"down_{level}_block_{i}")
                if h.shape[1] in self.attention:
                    h = attend(h, f"down_{level}_attention_{i}")
            if level < last:
                name = f"down_{level}_downsample"
                h = Downsample(h.shape[-1], RESAMPLINGS["naive"], self.dtype, name=name)(h)

        h = block(h, h.shape[-1], "mid_block_0")
        h = attend(h, "mid_attention")
        h = block(h, h.shape[-1], "mid_block_1")

        h = nn.swish(group_norm(h, self.groups, self.dtype, "norm_out"))
        pixels = h.reshape(len(x), -1, h.shape[-1])
        pooled = _AttentionPool(n_groups(h.shape[-1], _HEADS), self.dtype, name="pool")(pixels)
        logits = dense(self.n_classes, kernel_init=zero, dtype=self.dtype, name="out")(pooled)
        return logits.astype(jnp.promote_types(x.dtype, jnp.float32))
