"""Evaluation example by example: bits per dimension by the ODE and by the ELBO, and the training loss.

A number of an example is a function of the example, of the parameters and of its own key, folded
from its index: not of the batch it is in, nor of the number of devices. Random are the
dequantization noise and the rest (probes, times); either can be drawn anew with the other kept,
which is how the error bars are found (`bits`).

The unit is bits per dimension for integer levels, and nats per example for continuous data, whose
density has a unit of its own (`per_unit`).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_jax import coupling, dequantize, elbo, importance, parallel, shapes
from score_jax import model as models
from score_jax.data.base import Split
from score_jax.likelihood import Likelihood
from score_jax.model import Model
from score_jax.types import Batch, Dequantized, Key, Keys, LossFn, Params

# what is folded into an example's key for its dequantization noise, and for all else
STREAMS = 0, 1
# the last term of the ELBO: the density of a uniformly dequantized example, or the probability of
# its levels when those are spread over their boxes, or are the boxes' middles (`dequantize.decoder`)
DECODERS = "gaussian", *dequantize.LEVEL_DATA


class Estimate(NamedTuple):
    """A mean over n examples and its standard error."""

    mean: float
    stderr: float
    n: int


def estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error of independent values [n], both nan of none."""
    values = np.asarray(values, np.float64)
    mean = values.mean() if len(values) else math.nan
    stderr = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(mean), float(stderr), len(values))


def streams(draw: int) -> tuple[int, int]:
    """The streams of another draw of an example's randomness; draw 0 is `STREAMS`."""
    return 2 * draw, 2 * draw + 1


def per_unit(levels: int | None, n_dims: int) -> float:
    """Nats in one unit of an example's number: a bit per dimension, or one nat for continuous data."""
    return 1.0 if levels is None else n_dims * math.log(2)


def per_example(fn: Callable[..., dict[str, Array]], *, batch_size: int, labels: bool) -> Callable:
    """run(key, params, split, index=None, streams=STREAMS, start=0, label=None) -> an iterator of fn's results.

    Every example of the split, or of `index`, comes once and in order: dicts of arrays [b] on the
    host, batch after batch. The last batch is padded. An iteration from a later `start`, counted in
    examples, has the batches of the whole one, of which it leaves out what lies before: what it
    gives is the same to the last bit. Labels given as `label`, one for each of `index`, take the
    place of the split's, of a run with labels.

    Args:
      fn: fn(keys, params, x, label, streams) -> dict of [b] arrays, x as it is stored.
      batch_size: examples per call, over all devices together.
    """

    def one_batch(common, arrays):
        (key, params), (index, x, label, noise, rest) = common, arrays
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        return fn(keys, params, x, label, (noise, rest))

    mapped = parallel.map_batch(one_batch)

    def run(
        key: Key,
        params: Params,
        split: Split,
        index: np.ndarray | None = None,
        streams: tuple[Any, Any] = STREAMS,
        start: int = 0,
        label: np.ndarray | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        index = np.arange(len(split.x)) if index is None else np.asarray(index)
        noise, rest = (np.broadcast_to(np.asarray(s, np.int32), len(index)) for s in streams)
        n_batch = min(batch_size, len(split.x))  # also of a part: the same program
        common = parallel.replicate((key, params))
        for first in range(start // n_batch * n_batch, len(index), n_batch):
            rows = np.minimum(np.arange(first, first + n_batch), len(index) - 1)
            i, given = index[rows], None
            if labels:
                given = split.label[i] if label is None else label[rows]
            result = mapped(common, (i, split.x[i], given, noise[rows], rest[rows]))
            kept = slice(max(start - first, 0), min(n_batch, len(index) - first))
            yield {name: values[kept] for name, values in result.items()}

    return run


def together(batches: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The results of all batches, joined."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def ode_bits(
    model: Model,
    likelihood: Callable[..., Likelihood],
    levels: int | None,
    draw: Callable[..., Dequantized] = dequantize.uniform_box,
    n_importance: int = 1,
) -> Callable[..., dict[str, Array]]:
    """For `per_example`: each example's number by the probability-flow ODE, and what it is made of.

    "bpd", the sum of its terms "prior", "volume", "dequantization" and "importance"; "probe_stderr";
    the signed "solver_error"; all in the unit of `per_unit`. "nfe"; "ok" unless the solver failed.

    Args:
      likelihood: likelihood(keys, sde, predict, x, label), x in model space.
      draw: one of `dequantize.DEQUANTIZATIONS`.
      n_importance: samples of the importance-weighted bound (`importance`), which share their
        probes. "importance" is what they gain over their mean, "optimism" how much of that is the
        probes' noise; the other terms and the errors are means over them.
    """

    def fn(keys, params, x, label, streams=STREAMS):
        given = models.at(model, params)
        k_noise, k_solve = (_fold_in(keys, stream) for stream in streams)

        def one(j):
            # a single one has the noise that the ELBO has
            k_draw = k_noise if n_importance == 1 else _fold_in(k_noise, j)
            point = draw(k_draw, given, x, levels, label)
            result = likelihood(k_solve, given.sde, given.predict, point.x, label)
            return point.log_weight, result

        # an accelerator's fast products are too coarse at the smallest noise levels
        with jax.default_matmul_precision("float32"):
            log_weight, result = jax.lax.map(one, jnp.arange(n_importance))
        mean = jax.tree.map(lambda a: jnp.mean(a, axis=0), (result, log_weight))
        (average, weight), unit = mean, per_unit(levels, shapes.event_size(x))
        bound = importance.bound(result.prior[..., None] + result.volumes, log_weight)
        whole = bound.logp
        # the exact trace has no noise, and one sample no log of a mean
        noiseless = (average.probe_stderr == 0) | (n_importance == 1)
        optimism = jnp.where(noiseless, 0.0, bound.optimism)
        return {
            "bpd": -whole / unit,
            "prior": -average.prior / unit,
            "volume": -average.volume / unit,
            "dequantization": -weight / unit,
            "importance": (average.logp + weight - whole) / unit,
            "optimism": optimism / unit,
            "solver_error": -average.solver_error / unit,
            "probe_stderr": average.probe_stderr / unit,
            "nfe": jnp.sum(result.nfe, axis=0),
            "ok": jnp.all(result.ok, axis=0),
        }

    return fn


def elbo_bits(
    model: Model,
    levels: int | None,
    n_times: int,
    form: str = "vdm",
    decoder: str = "gaussian",
    draw: Callable[..., Dequantized] = dequantize.uniform_box,
) -> Callable[..., dict[str, Array]]:
    """For `per_example`: minus the ELBO, "elbo".

    Args:
      n_times, form: of `elbo.negative_elbo`.
      decoder: one of DECODERS.
      draw: `dequantize.uniform_box`, or with the decoder "gaussian" also `dequantize.flow`.
    """

    def fn(keys, params, x, label, streams=STREAMS):
        k_noise, k_times = (_fold_in(keys, stream) for stream in streams)
        with jax.default_matmul_precision("float32"):
            given = models.at(model, params)
            point, weight = draw(k_noise, given, x, levels, label)
            reconstruct = elbo.denoising
            if decoder != "gaussian":
                weight = 0.0
                if decoder == "lattice":
                    point = dequantize.lattice(x, levels)
                reconstruct = lambda keys, sde, predict, _, label: dequantize.reconstruction(
                    keys, given, x, levels, label, data=decoder
                )
            terms = elbo.negative_elbo(
                *(k_times, given.sde, given.predict, point, label),
                n_times=n_times,
                form=form,
                reconstruct=reconstruct,
            )
        return {"elbo": (sum(terms) - weight) / per_unit(levels, shapes.event_size(x))}

    return fn


def both(*fns: Callable[..., dict[str, Array]]) -> Callable[..., dict[str, Array]]:
    """For `per_example`: the results of several functions in one dict, in one program."""

    def fn(*args):
        return {name: values for each in fns for name, values in each(*args).items()}

    return fn


def loss_values(
    loss_fn: LossFn,
    levels: int | None,
    points: Callable[..., Array] = dequantize.POINTS["uniform"],
    couple: Callable[..., Array | None] = coupling.independent,
) -> Callable[..., dict[str, Array]]:
    """For `per_example`: the training loss of each example alone, "loss", at a time of its own.

    Args:
      points: one of `dequantize.POINTS`, as in training.
      couple: one of `coupling.COUPLINGS`, as in training. But for "independent", an example's noise and
        loss then depend on what else is in the batch.
    """

    def fn(keys, params, x, label, streams=STREAMS):
        def one(key, x, label, eps):
            labels, eps = (None if a is None else a[None] for a in (label, eps))
            batch = Batch(x[None], labels, key[None], jnp.zeros(1), eps=eps)
            k_time = jax.random.fold_in(key, 2)  # as a loss does that draws a time for each example
            return loss_fn(k_time, params, (), batch, 0)[0]

        k_noise, k_loss = (_fold_in(keys, stream) for stream in streams)
        x = x if levels is None else points(k_noise, x, levels)
        eps = couple(_fold_in(k_noise, 1), x, parallel.AXIS)
        in_axes = (0, 0, *(None if a is None else 0 for a in (label, eps)))
        return {"loss": jax.vmap(one, in_axes=in_axes)(k_loss, x, label, eps)}

    return fn


def _fold_in(keys: Keys, data) -> Keys:
    """Each key with `data` folded in, one number for all or one for each."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(jnp.asarray(data), keys.shape))
