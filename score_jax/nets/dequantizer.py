"""A conditional flow on the unit cube: the dequantization noise u of given levels, with its density.

Affine coupling layers (Dinh et al. 2017, arXiv 1605.08803, section 3.2) on y = logit(u), each told the
levels, as in Flow++ (Ho et al. 2019, arXiv 1902.00275, section 3.1). y starts as the logit of uniform
noise and every layer as the identity: u is uniform before training.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_jax import shapes
from score_jax.nets.blocks import conv3x3, dense, zero

# log of the largest factor by which one layer stretches or shrinks y
_MOST = 3.0


class CouplingFlow(nn.Module):
    """(u, log q(u | x)) from the logits y of uniform noise, for x [b, *s], the levels in [-1, 1].

    Layer i changes one half of the dimensions given the other half and x: of images [h w c] the
    white squares of a checkerboard and then the black ones, by convolutions; of other events every
    second dimension, by dense layers. The other half enters as u, so that every input is bounded.

    Attributes:
      width: channels, or units, of a layer's hidden layers.
      depth: number of layers, at least 2 for every dimension to be changed.
    """

    width: int = 32
    depth: int = 4

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *s"], y: Float[Array, "b *s"]
    ) -> tuple[Float[Array, "b *s"], Float[Array, "b"]]:
        # sigmoid'(y), the density of the logits of uniform noise
        log_density = lambda y: jax.nn.log_sigmoid(y) + jax.nn.log_sigmoid(-y)
        log_q = log_density(y)
        for i in range(self.depth):
            kept = jnp.asarray((_parity(x.shape[1:]) + i) % 2, y.dtype)
            given = kept * (2 * jax.nn.sigmoid(y) - 1)
            shift, scale = self._conditioner(i, x, given, kept)
            log_scale = (1 - kept) * _MOST * jnp.tanh(scale / _MOST)
            y = y * jnp.exp(log_scale) + (1 - kept) * shift
            log_q = log_q - log_scale
        return jax.nn.sigmoid(y), shapes.sum_event(log_q - log_density(y))

    def _conditioner(self, i, x, given, kept):
        is_image = x.ndim == 4
        layer = conv3x3 if is_image else dense
        inputs = [x, given, jnp.broadcast_to(kept, x.shape)]
        if not is_image:
            inputs = [a.reshape(len(x), -1) for a in inputs]
        size = inputs[0].shape[-1]
        h = nn.swish(layer(self.width, name=f"layer_{i}_in")(jnp.concatenate(inputs, -1)))
        h = h + nn.swish(layer(self.width, name=f"layer_{i}_middle")(h))
        out = layer(2 * size, kernel_init=zero, name=f"layer_{i}_out")(h)
        return tuple(a.reshape(x.shape) for a in jnp.split(out, 2, -1))


def _parity(shape: tuple[int, ...]) -> np.ndarray:
    """0 or 1 for each dimension of an event: a checkerboard over all axes, so also over channels."""
    return np.indices(shape).sum(0) % 2
