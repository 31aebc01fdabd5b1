"""The U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239, appendix B), and by its options those of DDPM++
and NCSN++ (Song et al. 2021, arXiv 2011.13456, appendix H); `families` has the published settings.

Level i works at 1 / 2^i of the image's size with channels * multipliers[i] channels. All that is
computed on the way down is kept, also the input of each level, and concatenated to the inputs of
the blocks on the way up, last first; hence one more block per level there:

    level 0   x - conv - block - block - down            up - block - block - block - norm - conv
    level 1                      block - block - down    up - block - block - block
    ..                                 block - attention - block

There is no division of the output by sigma, as NCSN++ has for VE: that is `predict`'s kind "eps",
whose score is -output / sigma.
"""

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
    Upsample,
    conv3x3,
    dense,
    group_norm,
    zero,
)
from score_jax.nets.embed import Embedding, fourier, input_fourier, sinusoidal
from score_jax.nets.progressive import COMBINES, PROGRESSIVE_INPUTS, PROGRESSIVE_OUTPUTS
from score_jax.nets.resample import RESAMPLINGS
from score_jax.types import Keys

# what changes the size between levels: a convolution of its own, or a residual block
BLOCK_TYPES = {"ddpm": {"down": Downsample, "up": Upsample}, "biggan": None}
# which of a level's blocks on the way up attention follows, if any
ATTENTION_UP = {"each": lambda i, last: True, "last": lambda i, last: i == last}
EMBEDDINGS = {
    "positional": lambda net, c: sinusoidal(c, net.channels),
    "fourier": lambda net, c: fourier(c, 2 * net.channels, net.fourier_scale, net.frequencies),
}

# the options of UNet that are words: option -> choices
CHOICES = {
    "block_type": BLOCK_TYPES,
    "resampling": RESAMPLINGS,
    "progressive_input": PROGRESSIVE_INPUTS,
    "progressive_output": PROGRESSIVE_OUTPUTS,
    "combine": COMBINES,
    "embedding": EMBEDDINGS,
    "attention_up": ATTENTION_UP,
}


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
      block_type: "ddpm" changes the size by a convolution between levels, "biggan" in a residual
        block.
      resampling: "naive" or "fir", with the filter (1, 3, 3, 1) (see `resample`).
      progressive_input: "none", "input_skip" or "residual": how the image enters the levels below
        the first (see `progressive`).
      progressive_output: "none", "output_skip" or "residual": how the levels below the first enter
        the output.
      combine: "sum" or "cat", of what "input_skip" brings with what is there.
      skip_rescale: whether residual sums are divided by sqrt(2).
      embedding: of c: "positional", sines of geometric frequencies, for c up to 1000, or "fourier",
        sines of random frequencies, for c = log sigma, which spans ten or so.
      fourier_scale: standard deviation of the random frequencies, in turns per unit of c.
      attention_up: on the way up attention follows "each" block or only the "last" of a level.
      frequencies: the random frequencies of weights trained elsewhere, as many as `channels`.
      dtype: to compute in, such as bfloat16; None is that of x. Parameters, statistics of norms,
        softmax, embedding and output have float32 at least in any case.
      remat: whether blocks are computed again for the gradient instead of kept: less memory.
      outputs: numbers for each one of x; with more than one the last layer is of single pixels.
      n_augment: numbers that describe an augmentation; 0 for a network without.
      input_frequencies: integers n for which sin(2^n pi x) and cos(2^n pi x) are channels of the input
        beside x.

    Raises ValueError, when called, on a word that is none of `CHOICES` and on sizes, widths and
    combinations that cannot work.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    groups: int = 32
    dropout: float = 0.1
    n_classes: int = 0
    block_type: str = "ddpm"
    resampling: str = "naive"
    progressive_input: str = "none"
    progressive_output: str = "none"
    combine: str = "sum"
    skip_rescale: bool = False
    embedding: str = "positional"
    fourier_scale: float = 16.0
    attention_up: str = "each"
    frequencies: tuple[float, ...] | None = None
    dtype: DTypeLike | None = None
    remat: bool = False
    outputs: int = 1
    n_augment: int = 0
    input_frequencies: tuple[int, ...] = ()

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
        check_image_size(x.shape[1], x.shape[2], self.multipliers)
        self._check_words()
        resampling = RESAMPLINGS[self.resampling]
        embedding = Embedding(4 * self.channels, self.n_classes, self.n_augment, name="embedding")
        emb = embedding(EMBEDDINGS[self.embedding](self, c), label, augment)
        layer = itertools.count()
        res_block, attention = (
            nn.remat(part) if self.remat else part for part in (ResBlock, Attention)
        )
        common = dict(rescale=self.skip_rescale, dtype=self.dtype)

        def block(h, channels, name, resample=None):
            make = partial(res_block, channels, self.groups, self.dropout, next(layer))
            return make(resample=resample, **common, name=name)(h, emb, keys=keys)

        def attend(h, name):
            return attention(self.groups, **common, name=name)(h)

        def block_and_attention(h, level, i, way, attended=True):
            h = block(h, self.channels * self.multipliers[level], f"{way}_{level}_block_{i}")
            if attended and h.shape[1] in self.attention:
                h = attend(h, f"{way}_{level}_attention_{i}")
            return h

        def resize(h, level, way):
            name = f"{way}_{level}_{way}sample"
            if BLOCK_TYPES[self.block_type] is None:
                return block(h, h.shape[-1], name, getattr(resampling, way))
            make = BLOCK_TYPES[self.block_type][way]
            return make(h.shape[-1], resampling, self.dtype, name=name)(h)

        last = len(self.multipliers) - 1
        feed = PROGRESSIVE_INPUTS[self.progressive_input]
        pyramid = x
        h = x
        if self.input_frequencies:
            h = jnp.concatenate([x, input_fourier(x, self.input_frequencies)], axis=-1)
        h = conv3x3(self.channels, dtype=self.dtype, name="conv_in")(h)
        skips = [h]
        for level in range(last + 1):
            for i in range(self.blocks):
                h = block_and_attention(h, level, i, "down")
                skips.append(h)
            if level < last:
                h = resize(h, level, "down")
                if feed is not None:
                    make = feed(resampling, self.combine, **common, name=f"down_{level}_input")
                    pyramid, h = make(pyramid, h)
                skips.append(h)

        h = block(h, h.shape[-1], "mid_block_0")
        h = attend(h, "mid_attention")
        h = block(h, h.shape[-1], "mid_block_1")

        collect = PROGRESSIVE_OUTPUTS[self.progressive_output]
        pyramid = None
        for level in reversed(range(last + 1)):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                attended = ATTENTION_UP[self.attention_up](i, self.blocks)
                h = block_and_attention(h, level, i, "up", attended)
            if collect is not None:
                make = partial(collect, x.shape[-1], self.groups, resampling, **common)
                pyramid, h = make(name=f"up_{level}_output")(pyramid, h)
            if level > 0:
                h = resize(h, level, "up")

        if self.progressive_output == "output_skip":
            out = pyramid
        else:
            h = nn.swish(group_norm(h, self.groups, self.dtype, "norm_out"))
            layer_out = conv3x3 if self.outputs == 1 else dense
            features = x.shape[-1] * self.outputs
            out = layer_out(features, kernel_init=zero, dtype=self.dtype, name="conv_out")(h)
        return out.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _check_words(self):
        for option, choices in CHOICES.items():
            word = getattr(self, option)
            if word not in choices:
                raise ValueError(f"{option} is {word!r}; choose from {', '.join(choices)}")
        if self.progressive_output == "output_skip" and self.outputs > 1:
            raise ValueError(
                f"progressive_output 'output_skip' adds up images, not {self.outputs} outputs for each "
                "number; set it to 'none' or 'residual'"
            )
        if self.combine == "cat" and self.progressive_input != "input_skip":
            raise ValueError(
                f"combine 'cat' has nothing to combine with progressive_input "
                f"{self.progressive_input!r}; set progressive_input to 'input_skip', or combine to 'sum'"
            )
