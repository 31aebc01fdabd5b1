"""Training a classifier of x_t: -log p(label | x_t, t) at times of a grid, and how good it is at each noise level.

The minimum over all functions is the true p(label | x_t), whatever the density of times (Dhariwal &
Nichol 2021, arXiv 2105.05233, section 4, train on uniform times of the diffusion).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from score_jax import dequantize, grids, shapes
from score_jax.model import Model
from score_jax.sde import SDE, log_snr_ends, perturb
from score_jax.types import LossFn

# sigma / alpha at which a classifier is looked at, of data that span [-1, 1]
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


def log_p_by_level(
    model: Model, levels: int | None, points: Callable[..., Array] = dequantize.POINTS["uniform"]
) -> Callable[..., dict[str, Array]]:
    """For `evaluate.per_example`: log p(class | x_t), [b, k], at each of NOISE_LEVELS and at t_min, next to no noise.

    By name: the level, and "t_min"; without levels that the SDE has not.

    Args:
      levels: of the data, or None.
      points: one of `dequantize.POINTS`, as in training.
    """

    def fn(keys, params, x, label, streams):
        k_points, k_noise = (
            jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(stream, keys.shape))
            for stream in streams
        )
        x = x if levels is None else points(k_points, x, levels)
        sde = model.sde(params)
        of_level = lambda level: sde.time_of_log_snr(jnp.asarray(-2 * math.log(level)))
        known = [level for level in NOISE_LEVELS if _has(sde, level)]
        times = {"t_min": sde.t_min} | {f"{level:g}": of_level(level) for level in known}

        def log_p(i, time):
            t, eps = jnp.full(len(x), time), shapes.normal(shapes.fold_in(k_noise, i), x)
            return model.class_logp(params, perturb(sde, x, t, eps), t)

        return {name: log_p(i, time) for i, (name, time) in enumerate(times.items())}

    return fn


def _has(sde: SDE, level: float) -> bool:
    with jax.ensure_compile_time_eval():
        largest, smallest = (float(end) for end in log_snr_ends(sde))
    return smallest <= -2 * math.log(level) <= largest


def by_level(*args: Any) -> Callable[..., dict[str, Array]]:
    """For `evaluate.per_example`: "cross_entropy_at_NAME" and "accuracy_at_NAME" of each of `log_p_by_level`."""
    log_p = log_p_by_level(*args)

    def fn(keys, params, x, label, streams):
        values = {}
        for name, logp in log_p(keys, params, x, label, streams).items():
            values[f"cross_entropy_at_{name}"], values[f"accuracy_at_{name}"] = score(logp, label)
        return values

    return fn
