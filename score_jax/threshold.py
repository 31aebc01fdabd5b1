"""Thresholding: the predicted x0 kept in the data's range [-1, 1], of images in model space.

A predicted x0 outside the range is an error that later steps carry on, the more so the stronger the
guidance. Each function wraps `predict` and recomputes eps, so that the pair stays consistent
(Saharia et al. 2022, arXiv 2205.11487, section 2.3).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from score_jax import predict as predictions
from score_jax import shapes
from score_jax.sde import SDE
from score_jax.types import PredictFn


def static(sde: SDE, predict: PredictFn) -> PredictFn:
    """Predictions with x0 clipped to [-1, 1]."""
    return _on_x0(sde, predict, lambda x0: jnp.clip(x0, -1.0, 1.0))


def dynamic(sde: SDE, predict: PredictFn, *, percentile: float = 99.5) -> PredictFn:
    """Predictions with x0 clipped to [-s, s] and divided by s, s each sample's percentile of |x0|, at least 1.

    Where s = 1 it is `static`. Values pile up at the ends less than there, because an x0 that is
    too large is scaled down as a whole.

    Args:
      percentile: in percent.
    """

    def move(x0):
        values = jnp.abs(x0.reshape(len(x0), -1))
        s = shapes.like(jnp.maximum(1.0, jnp.percentile(values, percentile, axis=1)), x0)
        return jnp.clip(x0, -s, s) / s

    return _on_x0(sde, predict, move)


def _on_x0(sde: SDE, predict: PredictFn, move: Callable[[Array], Array]) -> PredictFn:
    def moved(x, t, label=None):
        return predictions.read("x0", sde, move(predict(x, t, label).x0), x, t)

    return moved
