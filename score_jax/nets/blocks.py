"""The parts of the U-Nets of DDPM (Ho et al. 2020, arXiv 2006.11239, appendix B) and NCSN++ (Song et
al. 2021, arXiv 2011.13456, appendix H).

Every part has a `dtype` to compute in, None for that of its input: then convolutions and products
run in it, while parameters, the statistics of norms, softmax and the embedding keep theirs.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from score_jax import shapes
from score_jax.nets.embed import fan_avg
from score_jax.nets.resample import Image, Resampling
from score_jax.types import Keys

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


def group_norm(x: Image, groups: int, dtype: DTypeLike | None, name: str) -> Image:
    # not E x^2 - (E x)^2, which loses the digits of a small variance around a large mean
    norm = nn.GroupNorm(
        n_groups(x.shape[-1], groups),
        epsilon=1e-6,
        use_fast_variance=False,
        dtype=dtype,
        name=name,
    )
    return norm(x)


def residual_sum(x: Image, h: Image, rescale: bool) -> Image:
    """x + h; with `rescale` divided by sqrt(2), which keeps the variance of two independent terms."""
    return (x + h) * math.sqrt(0.5) if rescale else x + h


class ResBlock(nn.Module):
    """x + f(x, emb): two convolutions, each after norm and swish; `emb` is added between them.

    Attributes:
      channels: of the output; if x has another number, a linear map of each pixel takes x there.
      groups: largest number of groups in the norms.
      dropout: rate, before the second convolution.
      layer: the index of this block in the network, so that each draws masks of its own.
      rescale: whether the sum is divided by sqrt(2).
      resample: `Resampling.down` or `.up` for a block that changes the size, as BigGAN's do (Brock et
        al. 2019, arXiv 1809.11096): both terms of the sum, before the first convolution of each.
    """

    channels: int
    groups: int
    dropout: float
    layer: int
    rescale: bool = False
    resample: Callable[[Array], Array] | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Image, emb: Float[Array, "b e"], *, keys: Keys | None = None
    ) -> Float[Array, "b _ _ {self.channels}"]:
        convolution = partial(conv3x3, self.channels, dtype=self.dtype)
        linear_shortcut = x.shape[-1] != self.channels or self.resample is not None
        h = nn.swish(group_norm(x, self.groups, self.dtype, "norm_0"))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = convolution(name="conv_0")(h)
        shift = dense(self.channels, name="emb")(nn.swish(emb))
        h = h + shift[:, None, None, :].astype(h.dtype)
        h = nn.swish(group_norm(h, self.groups, self.dtype, "norm_1"))
        h = dropout(keys, self.layer, h, self.dropout)
        h = convolution(kernel_init=zero, name="conv_1")(h)
        if linear_shortcut:
            x = dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return residual_sum(x, h, self.rescale)


def softmax_attention(
    query: Float[Array, "*n i d"], key: Float[Array, "*n j d"], value: Float[Array, "*n j e"]
) -> Float[Array, "*n i e"]:
    """For each query the mean of the values, weighted by softmax(<query, key> / sqrt(d))."""
    # at least float32: a softmax over hundreds of pixels needs the digits
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("...id,...jd->...ij", query, key, preferred_element_type=wide)
    weights = nn.softmax(logits / jnp.sqrt(query.shape[-1])).astype(value.dtype)
    return jnp.einsum("...ij,...je->...ie", weights, value)


class Attention(nn.Module):
    """x + self-attention over all pixels, with one head as wide as x; `rescale` as in ResBlock."""

    groups: int
    rescale: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Image) -> Image:
        b, h, w, c = x.shape
        linear = partial(dense, c, dtype=self.dtype)
        tokens = group_norm(x, self.groups, self.dtype, "norm").reshape(b, h * w, c)
        query, key, value = (linear(name=name)(tokens) for name in ("query", "key", "value"))
        out = linear(kernel_init=zero, name="out")(softmax_attention(query, key, value))
        return residual_sum(x, out.reshape(b, h, w, c), self.rescale)


class Downsample(nn.Module):
    """Half the height and width, which must be even, by a convolution with stride 2."""

    channels: int
    resampling: Resampling
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "b h/2 w/2 {self.channels}"]:
        convolution = conv3x3(
            self.channels, strides=2, padding="VALID", dtype=self.dtype, name="conv"
        )
        return convolution(self.resampling.before_down(x))


class Upsample(nn.Module):
    """Twice the height and width, then a convolution."""

    channels: int
    resampling: Resampling
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "b 2*h 2*w {self.channels}"]:
        convolution = conv3x3(self.channels, padding="VALID", dtype=self.dtype, name="conv")
        return convolution(self.resampling.before_up(x))
