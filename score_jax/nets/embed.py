"""What the network is told besides x: the noise level c and the class."""

import flax.linen as nn
import jax.numpy as jnp
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


class Embedding(nn.Module):
    """A learned function of the noise level (DDPM, Appendix B), plus a vector per class.

    Attributes:
      frequencies: the width of the sinusoidal embedding.
      features: the width of the result.
      n_classes: row n_classes of the table is "no class"; 0 means no table.
    """

    frequencies: int
    features: int
    n_classes: int = 0

    @nn.compact
    def __call__(
        self, c: Float[Array, "b"], label: Int[Array, "b"] | None = None
    ) -> Float[Array, "b {self.features}"]:
        emb = sinusoidal(c, self.frequencies)
        emb = nn.Dense(self.features, kernel_init=fan_avg, name="dense_0")(emb)
        emb = nn.Dense(self.features, kernel_init=fan_avg, name="dense_1")(nn.swish(emb))
        if self.n_classes > 0:
            if label is None:
                label = jnp.full(c.shape, self.n_classes)
            # unit variance: the class has to be heard beside the noise level from the first step
            table_init = nn.initializers.normal(1.0)
            table = nn.Embed(
                self.n_classes + 1, self.features, embedding_init=table_init, name="label"
            )
            emb = emb + table(label)
        return emb
