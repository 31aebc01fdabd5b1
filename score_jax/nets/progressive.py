"""The image beside the network: progressive input and output of NCSN++ (Song et al. 2021, arXiv
2011.13456, appendix H; for GANs StyleGAN2, Karras et al. 2020, arXiv 1912.04958, figure 7).

A pyramid is a second path. On the way down it starts as the image x, is halved with each level and
enters h there. On the way up h enters it at each level, and it becomes the network's output.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from score_jax.nets.blocks import (
    Downsample,
    Upsample,
    conv3x3,
    dense,
    group_norm,
    residual_sum,
    zero,
)
from score_jax.nets.resample import Image, Resampling

Pyramid = Float[Array, "b _ _ _"]
Level = Float[Array, "b h w _"]  # what leaves a level: its height and width

COMBINES = {
    "sum": lambda image, h: image + h,
    "cat": lambda image, h: jnp.concatenate([image, h], axis=-1),
}


class InputSkip(nn.Module):
    """h and, by a linear map of each pixel, the image; the pyramid is the image at h's size."""

    resampling: Resampling
    combine: str
    rescale: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, pyramid: Pyramid, h: Image) -> tuple[Level, Level]:
        pyramid = self.resampling.down(pyramid)
        image = dense(h.shape[-1], dtype=self.dtype, name="conv")(pyramid)
        return pyramid, COMBINES[self.combine](image, h)


class InputResidual(nn.Module):
    """The sum of h and the pyramid, halved by a convolution; the sum is both from there on."""

    resampling: Resampling
    combine: str
    rescale: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, pyramid: Pyramid, h: Image) -> tuple[Level, Level]:
        down = Downsample(h.shape[-1], self.resampling, self.dtype, name="downsample")
        h = residual_sum(down(pyramid), h, self.rescale)
        return h, h


class OutputSkip(nn.Module):
    """The pyramid is an image, the sum of what each level makes of its h, enlarged."""

    channels: int
    groups: int
    resampling: Resampling
    rescale: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, pyramid: Pyramid | None, h: Image) -> tuple[Level, Level]:
        image = nn.swish(group_norm(h, self.groups, self.dtype, "norm"))
        image = conv3x3(self.channels, kernel_init=zero, dtype=self.dtype, name="conv")(image)
        # at least float32: the output is a sum over the levels
        image = image.astype(jnp.promote_types(image.dtype, jnp.float32))
        if pyramid is not None:
            image = self.resampling.up(pyramid) + image
        return image, h


class OutputResidual(nn.Module):
    """The sum of h and the pyramid, enlarged by a convolution; the sum is both from there on."""

    channels: int
    groups: int
    resampling: Resampling
    rescale: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, pyramid: Pyramid | None, h: Image) -> tuple[Level, Level]:
        if pyramid is None:
            pyramid = nn.swish(group_norm(h, self.groups, self.dtype, "norm"))
            return conv3x3(h.shape[-1], dtype=self.dtype, name="conv")(pyramid), h
        up = Upsample(h.shape[-1], self.resampling, self.dtype, name="upsample")
        h = residual_sum(up(pyramid), h, self.rescale)
        return h, h


PROGRESSIVE_INPUTS = {"none": None, "input_skip": InputSkip, "residual": InputResidual}
PROGRESSIVE_OUTPUTS = {"none": None, "output_skip": OutputSkip, "residual": OutputResidual}
