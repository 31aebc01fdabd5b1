"""What the network is told besides x: the noise level c, the class and the augmentation; and x in waves."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

# "variance scaling" of DDPM: uniform, variance 2 / (fan_in + fan_out)
fan_avg = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def sinusoidal(c: Float[Array, "b"], features: int) -> Float[Array, "b features"]:
    """[sin(w c), cos(w c)] for features / 2 frequencies w, geometric from 1 to 1 / 10000."""
    if features < 4 or features % 2:
        raise ValueError(
            f"{features} features cannot hold the sine and cosine of two or more frequencies; "
            "choose an even width of at least 4"
        )
    half = features // 2
    angle = c[:, None] * 10000.0 ** (-jnp.arange(half) / (half - 1))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def fourier(
    c: Float[Array, "b"],
    features: int,
    scale: float = 16.0,
    frequencies: tuple[float, ...] | None = None,
) -> Float[Array, "b features"]:
    """[sin(2 pi w c), cos(2 pi w c)] for features / 2 frequencies w (Tancik et al. 2020, 2006.10739).

    They are drawn from N(0, scale^2), the same in every program, unless `frequencies` gives them.
    """
    if features < 2 or features % 2:
        raise ValueError(
            f"{features} features cannot hold the sine and cosine of each frequency; "
            "choose an even width of at least 2"
        )
    if frequencies is None:
        # not a parameter: nothing may move it. This generator of numpy is frozen, so that a
        # checkpoint meets the frequencies that it was trained with
        frequencies = scale * np.random.RandomState(0).standard_normal(features // 2)
    if len(frequencies) != features // 2:
        raise ValueError(
            f"{len(frequencies)} frequencies do not make {features} features; "
            f"give {features // 2}, or None to draw them"
        )
    angle = 2 * math.pi * c[:, None] * jnp.asarray(frequencies, c.dtype)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def input_fourier(
    x: Float[Array, "*s c"], exponents: tuple[int, ...]
) -> Float[Array, "*s {2*len(exponents)}*c"]:
    """[sin(2^n pi x), .., cos(2^n pi x), ..] for each n of `exponents`, of each channel (Kingma et al.
    2021, arXiv 2107.00630, appendix C), which tell apart values that differ by a fraction of a level.

    For x of levels in [-1, 1], 2 / 256 apart; x is read with float32's digits at least.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    turns = [2.0 ** (n - 1) * x for n in exponents]
    # whole turns are taken off first, without rounding: a sine of 2^n pi x loses as many digits as
    # there are before the point, and it is the digits after it that count
    angles = [2 * math.pi * (turn - jnp.round(turn)) for turn in turns]
    return jnp.concatenate([wave(a) for wave in (jnp.sin, jnp.cos) for a in angles], axis=-1)


class Embedding(nn.Module):
    """A learned function of the encoded noise level (DDPM, appendix B), plus a vector per class.

    What augmentation did to an example, `augment`, is a vector that is zero if it did nothing. A
    linear map of it, without bias, is added to the encoded noise level (Karras et al. 2022, arXiv
    2206.00364, appendix F.2).

    Attributes:
      features: the width of the result.
      n_classes: row n_classes of the table is "no class"; 0 means no table.
      n_augment: numbers in `augment`, of which None stands for zeros; 0 means no map: it is ignored.
    """

    features: int
    n_classes: int = 0
    n_augment: int = 0

    @nn.compact
    def __call__(
        self,
        encoded: Float[Array, "b f"],
        label: Int[Array, "b"] | None = None,
        augment: Float[Array, "b k"] | None = None,
    ) -> Float[Array, "b {self.features}"]:
        if self.n_augment > 0:
            if augment is None:
                augment = jnp.zeros((encoded.shape[0], self.n_augment), encoded.dtype)
            width = encoded.shape[1]
            linear = nn.Dense(width, use_bias=False, kernel_init=fan_avg, name="augment")
            encoded = encoded + linear(augment)
        emb = nn.Dense(self.features, kernel_init=fan_avg, name="dense_0")(encoded)
        emb = nn.Dense(self.features, kernel_init=fan_avg, name="dense_1")(nn.swish(emb))
        if self.n_classes > 0:
            if label is None:
                label = jnp.full(encoded.shape[0], self.n_classes)
            # unit variance: the class has to be heard beside the noise level from the first step
            table_init = nn.initializers.normal(1.0)
            table = nn.Embed(
                self.n_classes + 1, self.features, embedding_init=table_init, name="label"
            )
            emb = emb + table(label)
        return emb
