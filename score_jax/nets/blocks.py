"""The parts of the U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239, Appendix B)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax import shapes
from score_jax.nets.embed import fan_avg
from score_jax.types import Keys

Image = Float[Array, "b h w c"]

conv3x3 = partial(nn.Conv, kernel_size=(3, 3), kernel_init=fan_avg)
dense = partial(nn.Dense, kernel_init=fan_avg)
# what is added to a residual path starts as zero
zero = nn.initializers.zeros


def dropout(
    keys: Keys | None, layer: int, x: Float[Array, "b *s"], rate: float
) -> Float[Array, "b *s"]:
    """x with a share `rate` of its elements set to zero, the others scaled up; x if keys is None.

    Example i's mask is a function of keys[i] and `layer`: the rest of the batch does not matter.
    """
    if keys is None or rate == 0.0:
        return x
    mask = partial(jax.random.bernoulli, p=1.0 - rate, shape=x.shape[1:])
    keep = jax.vmap(mask)(shapes.fold_in(keys, layer))
    return jnp.where(keep, x / (1.0 - rate), 0.0)


def n_groups(channels: int, most: int) -> int:
    """The largest divisor of `channels` up to `most` with 4 channels or more in each group.

    32 at the widths of DDPM. In a narrow network a group of one channel would lose its mean.
    """
    largest = max(1, min(most, channels // 4))
    return next(n for n in range(largest, 0, -1) if channels % n == 0)


def group_norm(x: Image, groups: int, name: str) -> Image:
    # not E x^2 - (E x)^2, which loses the digits of a small variance around a large mean
    norm = nn.GroupNorm(
        n_groups(x.shape[-1], groups), epsilon=1e-6, use_fast_variance=False, name=name
    )
    return norm(x)


class ResBlock(nn.Module):
    """x + f(x, emb): two convolutions, each after norm and swish; `emb` is added between them.

    Attributes:
      channels: of the output; if x has another number, a linear map of each pixel takes x there.
      groups: largest number of groups in the norms.
      dropout: rate, before the second convolution.
      layer: the index of this block in the network, so that each draws masks of its own.
    """

    channels: int
    groups: int
    dropout: float
    layer: int

    @nn.compact
    def __call__(
        self, x: Image, emb: Float[Array, "b e"], *, keys: Keys | None = None
    ) -> Float[Array, "b h w {self.channels}"]:
        h = nn.swish(group_norm(x, self.groups, "norm_0"))
        h = conv3x3(self.channels, name="conv_0")(h)
        h = h + dense(self.channels, name="emb")(nn.swish(emb))[:, None, None, :]
        h = nn.swish(group_norm(h, self.groups, "norm_1"))
        h = dropout(keys, self.layer, h, self.dropout)
        h = conv3x3(self.channels, kernel_init=zero, name="conv_1")(h)
        if x.shape[-1] != self.channels:
            x = dense(self.channels, name="shortcut")(x)
        return x + h


class Attention(nn.Module):
    """x + self-attention over all pixels, with one head as wide as x."""

    groups: int

    @nn.compact
    def __call__(self, x: Image) -> Image:
        b, h, w, c = x.shape
        tokens = group_norm(x, self.groups, "norm").reshape(b, h * w, c)
        query, key, value = (dense(c, name=name)(tokens) for name in ("query", "key", "value"))
        # at least float32: a softmax over hundreds of pixels needs the digits
        wide = jnp.promote_types(x.dtype, jnp.float32)
        logits = jnp.einsum("bic,bjc->bij", query, key, preferred_element_type=wide)
        weights = nn.softmax(logits / jnp.sqrt(c)).astype(value.dtype)
        out = jnp.einsum("bij,bjc->bic", weights, value)
        out = dense(c, kernel_init=zero, name="out")(out)
        return x + out.reshape(b, h, w, c)


class Downsample(nn.Module):
    """Half the height and width, which must be even, by a convolution with stride 2."""

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "b h/2 w/2 c"]:
        # zeros below and to the right only, as TensorFlow's SAME pads an even size
        padding = ((0, 1), (0, 1))
        return conv3x3(x.shape[-1], strides=2, padding=padding, name="conv")(x)


class Upsample(nn.Module):
    """Twice the height and width: each pixel repeated 2 x 2, then a convolution."""

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "b 2*h 2*w c"]:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return conv3x3(x.shape[-1], name="conv")(x)
