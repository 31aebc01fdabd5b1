"""The U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239, Appendix B).

Level i works at 1 / 2^i of the image's size with channels * multipliers[i] channels. All that is
computed on the way down is kept, also the input of each level, and concatenated to the inputs of
the blocks on the way up, last first; hence one more block per level there:

    level 0   x - conv - block - block - down            up - block - block - block - norm - conv
    level 1                      block - block - down    up - block - block - block
    ..                                 block - attention - block
"""

import itertools

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from score_jax.nets.blocks import (
    Attention,
    Downsample,
    ResBlock,
    Upsample,
    conv3x3,
    group_norm,
    zero,
)
from score_jax.nets.embed import Embedding
from score_jax.types import Keys


def check_image_size(height: int, width: int, multipliers: tuple[int, ...]) -> None:
    """Raises ValueError if the image cannot be halved once between each two levels of the U-Net."""
    factor = 2 ** (len(multipliers) - 1)
    if height % factor or width % factor:
        levels = next(n for n in itertools.count() if height % 2**n or width % 2**n)
        raise ValueError(
            f"image size {height}x{width} is not divisible by {factor} = 2**(len(multipliers) - 1) "
            f"for multipliers {multipliers}; use {levels} multipliers at most, or pad the images"
        )


class UNet(nn.Module):
    """The defaults are DDPM's CIFAR-10 network: 35,746,307 parameters.

    Attributes:
      channels: at full resolution.
      multipliers: of `channels`, one per level; each level halves the size of the one before.
      blocks: residual blocks per level on the way down.
      attention: the image heights at which attention follows each block; the lowest level has one
        in the middle anyway. A height that does not occur is ignored.
      groups: largest number of groups in the norms; narrow layers have fewer (`blocks.n_groups`).
      dropout: rate in every residual block, in calls with keys.
      n_classes: 0 for a network without labels.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    groups: int = 32
    dropout: float = 0.1
    n_classes: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        c: Float[Array, "b"],
        label: Int[Array, "b"] | None = None,
        *,
        keys: Keys | None = None,
    ) -> Float[Array, "b h w c"]:
        check_image_size(x.shape[1], x.shape[2], self.multipliers)
        emb = Embedding(self.channels, 4 * self.channels, self.n_classes, name="embedding")(
            c, label
        )
        layer = itertools.count()

        def block(h, channels, name):
            make = ResBlock(channels, self.groups, self.dropout, next(layer), name=name)
            return make(h, emb, keys=keys)

        def block_and_attention(h, level, i, way):
            h = block(h, self.channels * self.multipliers[level], f"{way}_{level}_block_{i}")
            if h.shape[1] in self.attention:
                h = Attention(self.groups, name=f"{way}_{level}_attention_{i}")(h)
            return h

        last = len(self.multipliers) - 1
        h = conv3x3(self.channels, name="conv_in")(x)
        skips = [h]
        for level in range(last + 1):
            for i in range(self.blocks):
                h = block_and_attention(h, level, i, "down")
                skips.append(h)
            if level < last:
                h = Downsample(name=f"down_{level}_downsample")(h)
                skips.append(h)

        h = block(h, h.shape[-1], "mid_block_0")
        h = Attention(self.groups, name="mid_attention")(h)
        h = block(h, h.shape[-1], "mid_block_1")

        for level in reversed(range(last + 1)):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block_and_attention(h, level, i, "up")
            if level > 0:
                h = Upsample(name=f"up_{level}_upsample")(h)

        h = nn.swish(group_norm(h, self.groups, "norm_out"))
        return conv3x3(x.shape[-1], kernel_init=zero, name="conv_out")(h)
