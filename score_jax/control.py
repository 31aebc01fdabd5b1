"""Samples that were asked for, of a run: given a measurement, of a class, near an example, between two.

Each function prepares: it refuses what cannot work, and evaluates no network. What it returns computes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_jax import build, guided, interpolation, measurement, posterior, run, sdedit
from score_jax.data.base import to_levels, to_model
from score_jax.measurement import Measurement
from score_jax.model import Model, bind
from score_jax.types import Params


class Loaded(NamedTuple):
    """A run: its config, what that stands for, and the step and parameters that are drawn from."""

    config: build.Config
    experiment: build.Experiment
    step: int
    params: Params

    def of_params(self, params: Params):
        """The SDE and predict of parameters."""
        return self.experiment.model.sde(params), bind(self.experiment.model, params)


class Judge(NamedTuple):
    """A classifier: its model, parameters and number of classes, and whether its SDE is that of the model."""

    model: Model
    params: Params
    n_classes: int
    same_sde: bool


class Result(NamedTuple):
    """Arrays by name, in storage form; what of them is shown; whether each sample succeeded."""

    arrays: dict[str, np.ndarray]
    shown: np.ndarray
    ok: np.ndarray


Compute = Callable[[], Result]


def measured(
    loaded: Loaded,
    method: posterior.Method,
    operator: Measurement,
    given: np.ndarray,
    label: int | None,
    *,
    n: int,
    n_steps: int,
    seed: int,
) -> Compute:
    """n samples given a measurement of `given` [1, *event], in batches; shown after it and the measurement.

    A measurement that is an image of the data's size is shown itself, another one by the simplest x
    that agrees with it.
    """
    experiment, x0 = loaded.experiment, _model_space(loaded, given)
    levels = experiment.data.levels
    # one row of noise for the measurement, the others for the samples
    keys = jax.random.split(jax.random.key(seed), n + 1)
    y = measurement.measure(keys[:1], operator, x0)
    repeated = jnp.repeat(y, n, axis=0)
    # refuses what the method cannot do
    method.steps(*loaded.of_params(loaded.params), operator, repeated)
    draw = posterior.drawer(method, loaded.of_params, operator, n_steps=n_steps)
    size = n if method.together else min(n, experiment.eval.batch_size)

    def compute():
        labels = None if label is None else jnp.full(size, label)
        # the last batch is filled up: one program for all
        rows = (np.minimum(np.arange(i, i + size), n - 1) for i in range(0, n, size))
        parts = [draw(keys[1:][row], loaded.params, repeated[row], labels) for row in rows]
        x = jnp.concatenate(parts)[:n]
        is_image = y.ndim == 4 and y.shape[1:3] == x0.shape[1:3]
        # the pseudo-inverse would undo a blur, and tint a grey image
        shown = (
            jnp.broadcast_to(y, x0.shape) if is_image else measurement.pseudo_inverse(operator, y)
        )
        arrays = dict(input=given) | {
            name: np.asarray(to_levels(a, levels)) for name, a in (("measured", shown), ("x", x))
        }
        ok = np.all(np.isfinite(np.asarray(x).reshape(n, -1)), axis=1)
        return Result(arrays, np.concatenate(list(arrays.values())), ok)

    return compute


def of_class(
    loaded: Loaded,
    name: str,
    guide: guided.Guide,
    labels: tuple[int, ...],
    unwanted: tuple[int, ...],
    judge: Judge | None,
    *,
    n: int,
    seed: int,
) -> Compute:
    """n samples by the run's own sampler and the method of `guided.METHODS` that has this name."""
    experiment, entry = loaded.experiment, guided.METHODS[name]
    knows, n_classes, extra = experiment.labels, experiment.data.n_classes, {}
    if judge is not None:
        n_classes, extra = judge.n_classes, dict(judge=judge.model, same_sde=judge.same_sde)
    asked = guided.Asked(labels, unwanted, n_classes)
    dropout = experiment.train.label_dropout
    guided.check(name, asked, knows_classes=knows, label_dropout=dropout)
    model = guided.attach(experiment.model, guide, asked, knows_classes=knows, **extra)
    # the other methods do not look at the labels of samples
    one_each = entry.labels == (0, 1)
    data = experiment.data._replace(n_classes=n_classes)
    replaced = experiment._replace(model=model, labels=one_each, seed=seed, data=data)
    draw = guided.draw(replaced, gradients=entry.classifier)
    params = loaded.params, None if judge is None else judge.params

    def compute():
        found = draw(params, n, labels[0] if one_each and labels else None)
        arrays = {key: found[key] for key in ("x", "label") if key in found}
        return Result(arrays, found["x"], found["ok"])

    return compute


def edited(
    loaded: Loaded, given: np.ndarray, label: int | None, *, level: float, n: int, seed: int
) -> Compute:
    """n samples from `given` [1, *event] noised to a level, by the run's own sampler; shown after it."""
    experiment = loaded.experiment
    t0 = sdedit.time_of_level(experiment.model.sde(loaded.params), level)
    draw = sdedit.sdedit(experiment.draw, _model_space(loaded, given), t0)
    # without a class, none in turn
    replaced = experiment._replace(draw=draw, seed=seed, labels=label is not None)
    run_draw = run.draw(replaced)

    def compute():
        found = run_draw(loaded.params, n, label)
        arrays = dict(input=given, x=found["x"])
        return Result(arrays, np.concatenate(list(arrays.values())), found["ok"])

    return compute


def between(
    loaded: Loaded, make: interpolation.MakeRow, given: np.ndarray, label: int | None, *, n: int
) -> Compute:
    """n examples from given[0] to given[1]; images are shown side by side."""
    levels, row = loaded.experiment.data.levels, make(loaded.of_params)

    def compute():
        shares = jnp.linspace(0.0, 1.0, n)
        found = row(loaded.params, _model_space(loaded, given), shares, label)
        x = np.asarray(to_levels(found.y, levels))
        shown = np.concatenate(list(x), axis=1)[None] if x.ndim == 4 else x
        return Result(dict(input=given, x=x), shown, np.asarray(found.ok))

    return compute


def _model_space(loaded, stored):
    # the middles of the levels
    levels = loaded.experiment.data.levels
    middle = 0.0 if levels is None else 0.5
    return jnp.asarray(to_model(stored.astype(np.float32) + middle, levels))
