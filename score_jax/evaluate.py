"""Evaluation: bits per dimension of a split, every example once, and samples."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_jax import dequantize, elbo, parallel, shapes
from score_jax.data.base import Split, log_det, to_model
from score_jax.likelihood import Likelihood
from score_jax.model import Model, bind
from score_jax.types import Batch, Key, LossFn, Params


class Estimate(NamedTuple):
    """A mean over n examples and its standard error."""

    mean: float
    stderr: float
    n: int


def estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error of independent values [n]."""
    stderr = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean(dtype=np.float64)), float(stderr), len(values))


def per_example(
    fn: Callable[..., dict[str, Array]], levels: int | None, *, batch_size: int, labels: bool
) -> Callable[[Key, Params, Split], dict[str, np.ndarray]]:
    """run(key, params, split) -> fn's results for every example of a split once, in order.

    An example's dequantization, probe and times come from its own key, folded from its index:
    results do not depend on batch size or devices.

    Args:
      fn: fn(keys, params, x, label) -> dict of [b] arrays, x dequantized and in model space.
    """

    def one_batch(common, arrays):
        (key, params), (index, x, label) = common, arrays
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        if levels is not None:
            x = dequantize.uniform(shapes.fold_in(keys, 0), x)
        return fn(shapes.fold_in(keys, 1), params, to_model(x, levels), label)

    mapped = parallel.map_examples(one_batch, batch_size)

    def run(key, params, split):
        arrays = (np.arange(len(split.x)), split.x, split.label if labels else None)
        return mapped((key, params), arrays)

    return run


def ode_bits(
    model: Model, likelihood: Callable[..., Likelihood], levels: int | None
) -> Callable[..., dict[str, Array]]:
    """For `per_example`: "bpd" by the probability-flow ODE, its "nfe", and "ok" unless the solver failed.

    Bits per dimension of integer levels; of the density itself, in its own space, if levels is
    None.
    """

    def fn(keys, params, x, label):
        # an accelerator's fast products are too coarse at the smallest noise levels
        with jax.default_matmul_precision("float32"):
            result = likelihood(keys, model.sde(params), bind(model, params), x, label)
        return {"bpd": _bits(-result.logp, x, levels), "nfe": result.nfe, "ok": result.ok}

    return fn


def elbo_bits(model: Model, levels: int | None, n_times: int) -> Callable[..., dict[str, Array]]:
    """For `per_example`: minus the ELBO, "elbo", in bits per dimension."""

    def fn(keys, params, x, label):
        with jax.default_matmul_precision("float32"):
            terms = elbo.negative_elbo(
                keys, model.sde(params), bind(model, params), x, label, n_times=n_times
            )
        return {"elbo": _bits(sum(terms), x, levels)}

    return fn


def loss_values(loss_fn: LossFn) -> Callable[..., dict[str, Array]]:
    """For `per_example`: the training loss of each example alone, at a time of its own."""

    def fn(keys, params, x, label):
        def one(key, x, label):
            labels = None if label is None else label[None]
            batch = Batch(x[None], labels, key[None], jnp.zeros(1))
            k_time = jax.random.fold_in(key, 2)  # the loss folds 0 and 1 into the example's key
            return loss_fn(k_time, params, (), batch, 0)[0]

        return {"loss": jax.vmap(one, in_axes=(0, 0, None if label is None else 0))(keys, x, label)}

    return fn


def _bits(nats: Array, x: Array, levels: int | None) -> Array:
    n_dims = shapes.event_size(x)
    return (nats - log_det(levels, n_dims)) / (n_dims * math.log(2))
