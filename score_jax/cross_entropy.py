"""Training a classifier of x_t: -log p(label | x_t, t) at times of a grid, and how good it is at each noise level.

The minimum over all functions is the true p(label | x_t), whatever the density of times (Dhariwal &
Nichol 2021, arXiv 2105.05233, section 4, train on uniform times of the diffusion).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from score_jax import dequantize, grids, shapes
from score_jax.model import Model
from score_jax.sde import SDE, perturb
from score_jax.types import LossFn

# sigma / alpha at which a classifier is validated, of data that span [-1, 1]
NOISE_LEVELS = 0.1, 0.3, 1.0, 3.0, 10.0


def cross_entropy(
    model: Model, *, grid: Callable[[SDE], grids.Grid] = grids.uniform, stratify: bool = True
) -> LossFn:
    """The mean of -log p(label | x_t, t), in nats; its metric is the "accuracy", both over all times.

    Args:
      model: of `model.classifier`.
      grid: constructor from `grids`; sets the density of t.
      stratify: u evenly spaced over the global batch; False draws each on its own.
    """

    def loss(key, params, loss_state, batch, step):
        sde = model.sde(params)
        if stratify:
            u = grids.stratified(key, batch.position)
        else:
            u = jax.vmap(jax.random.uniform)(shapes.fold_in(batch.keys, 2))
        t, eps = grid(sde)(u), shapes.normal(shapes.fold_in(batch.keys, 0), batch.x)
        x_t, keys = perturb(sde, batch.x, t, eps), shapes.fold_in(batch.keys, 1)
        logp = model.class_logp(params, x_t, t, keys=keys)
        losses, hits = score(logp, batch.label)
        return jnp.mean(losses), ({"accuracy": jnp.mean(hits)}, loss_state)

    return loss


def score(
    logp: Float[Array, "b k"], label: Int[Array, "b"]
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """-log p(label) of each example in nats, and 1 where the label is the most probable class, 0 elsewhere."""
    losses = -jnp.take_along_axis(logp, label[:, None], axis=1)[:, 0]
    return losses, (jnp.argmax(logp, axis=1) == label).astype(logp.dtype)


def by_level(
    model: Model,
    levels: int | None,
    points: Callable[..., Array] = dequantize.POINTS["uniform"],
    noise_levels: tuple[float, ...] = NOISE_LEVELS,
) -> Callable[..., dict[str, Array]]:
    """For `evaluate.per_example`: "cross_entropy_at_S" and "accuracy_at_S" of each noise level S = sigma / alpha.

    Args:
      levels: of the data, or None.
      points: one of `dequantize.POINTS`, as in training.
      noise_levels: within the SDE's.
    """

    def fn(keys, params, x, label, streams):
        k_points, k_noise = (
            jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(stream, keys.shape))
            for stream in streams
        )
        x = x if levels is None else points(k_points, x, levels)
        sde, values = model.sde(params), {}
        for i, level in enumerate(noise_levels):
            t = jnp.full(len(x), sde.time_of_log_snr(jnp.asarray(-2 * math.log(level))))
            x_t = perturb(sde, x, t, shapes.normal(shapes.fold_in(k_noise, i), x))
            losses, hits = score(model.class_logp(params, x_t, t), label)
            values |= {f"cross_entropy_at_{level:g}": losses, f"accuracy_at_{level:g}": hits}
        return values

    return fn
