"""A residual network for vectors, told the noise level as the U-Net is."""

import flax.linen as nn
from jax import Array
from jaxtyping import Float, Int

from score_jax.nets.blocks import dense, dropout, zero
from score_jax.nets.embed import Embedding
from score_jax.types import Keys


class MLP(nn.Module):
    """For x [b, d]: `depth` residual blocks of two dense layers each.

    Attributes:
      width: of every layer.
      depth: number of blocks.
      dropout: rate in every block, in calls with keys.
      n_classes: 0 for a network without labels.
    """

    width: int = 128
    depth: int = 3
    dropout: float = 0.0
    n_classes: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b d"],
        c: Float[Array, "b"],
        label: Int[Array, "b"] | None = None,
        *,
        keys: Keys | None = None,
    ) -> Float[Array, "b d"]:
        emb = nn.swish(
            Embedding(self.width, self.width, self.n_classes, name="embedding")(c, label)
        )
        h = dense(self.width, name="dense_in")(x)
        for i in range(self.depth):
            y = nn.LayerNorm(name=f"block_{i}_norm")(h)
            y = dense(self.width, name=f"block_{i}_dense_0")(y)
            y = nn.swish(y + dense(self.width, name=f"block_{i}_emb")(emb))
            y = dropout(keys, i, y, self.dropout)
            h = h + dense(self.width, name=f"block_{i}_dense_1")(y)
        return dense(x.shape[-1], kernel_init=zero, name="dense_out")(nn.swish(h))
