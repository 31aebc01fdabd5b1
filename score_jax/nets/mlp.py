"""A residual network for small events of any shape, told the noise level as the U-Net is."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from score_jax.nets.blocks import dense, dropout, zero
from score_jax.nets.embed import Embedding, sinusoidal
from score_jax.types import Keys


class MLP(nn.Module):
    """For x [b, *s], flattened to vectors: `depth` residual blocks of two dense layers each.

    Attributes:
      width: of every layer.
      depth: number of blocks.
      dropout: rate in every block, in calls with keys.
      n_classes: 0 for a network without labels.
      dtype: to compute in, such as bfloat16; None is that of x. Parameters, statistics of norms,
        embedding and output have float32 at least.
      remat: whether blocks are computed again for the gradient instead of kept: less memory.
      outputs: numbers for each one of x.
      n_augment: numbers that describe an augmentation; 0 for a network without.
    """

    width: int = 128
    depth: int = 3
    dropout: float = 0.0
    n_classes: int = 0
    dtype: DTypeLike | None = None
    remat: bool = False
    outputs: int = 1
    n_augment: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *s"],
        c: Float[Array, "b"],
        label: Int[Array, "b"] | None = None,
        *,
        keys: Keys | None = None,
        augment: Float[Array, "b k"] | None = None,
    ) -> Float[Array, "b ..."]:
        embedding = Embedding(self.width, self.n_classes, self.n_augment, name="embedding")
        emb = nn.swish(embedding(sinusoidal(c, self.width), label, augment))

        def layer(name, **options):
            return dense(self.width, dtype=self.dtype, name=name, **options)

        def block(mdl, h, emb, keys, i):  # mdl is this network: remat has to see its parameters
            y = nn.LayerNorm(dtype=self.dtype, name=f"block_{i}_norm")(h)
            y = layer(f"block_{i}_dense_0")(y)
            y = nn.swish(y + layer(f"block_{i}_emb")(emb))
            y = dropout(keys, i, y, self.dropout)
            return h + layer(f"block_{i}_dense_1")(y)

        if self.remat:
            block = nn.remat(block, static_argnums=4)
        h = layer("dense_in")(x.reshape(x.shape[0], -1))
        for i in range(self.depth):
            h = block(self, h, emb, keys, i)
        size = math.prod(x.shape[1:]) * self.outputs
        out = dense(size, kernel_init=zero, dtype=self.dtype, name="dense_out")(nn.swish(h))
        shape = x.shape if self.outputs == 1 else (*x.shape[:-1], x.shape[-1] * self.outputs)
        return out.reshape(shape).astype(jnp.promote_types(x.dtype, jnp.float32))
