"""What benchmarks/objectives.py measures of a config: a short training, and the model it leaves against the truth."""

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_jax import build, evaluate, exact, run, sampling, train
from score_jax.build import Config, Experiment
from score_jax.data.order import batch_indices
from score_jax.model import bind
from score_jax.sde import perturb
from score_jax.train import TrainState
from score_jax.types import Params

LOG_SNRS = (8.0, 5.0, 2.0, -1.0, -4.0)
N_ANGLES = 64
_GROUP = 20  # steps that are timed together
_SCORE, _DRAWS = 10, 11  # what a seed is folded with, beside the uses that `run` has


class Trained(NamedTuple):
    """A run's end and its cost.

    Attributes:
      step_seconds, compile_seconds: of one step, and of compiling it.
      mib: memory of a step's intermediate values, beside the state and the data.
    """

    state: TrainState
    step_seconds: float
    compile_seconds: float
    mib: float


def fit(experiment: Experiment) -> Trained:
    """Trains by the steps of `run.fit`, on one device and without what lies between them.

    Raises:
      FloatingPointError: the loss of a step is not finite.
    """
    data, options = experiment.data, experiment.train
    step = run.train_step(experiment)
    state = train.init_state(
        *(key_of(experiment, run._INIT), experiment.model, data.shape, experiment.optimizer),
        *(len(options.ema), experiment.loss_state),
    )
    state = jax.tree.map(jnp.array, state)  # each leaf is donated: no two may be one array
    resident, key = jax.device_put(data.train), key_of(experiment, run._TRAIN)
    indices = lambda i: batch_indices(experiment.seed, i, len(data.train.x), options.batch_size)

    begun = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0).lower(state, resident, indices(0), key)
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - begun
    seconds = []
    for first in range(0, options.steps, _GROUP):
        n = min(_GROUP, options.steps - first)
        begun = time.perf_counter()
        for i in range(first, first + n):
            state, metrics = compiled(state, resident, indices(i), key)
        loss = float(metrics["loss"])  # waits for the step
        seconds.append((time.perf_counter() - begun) / n)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {first + n}")
    mib = compiled.memory_analysis().temp_size_in_bytes / 2**20
    # the median: what else runs on the machine for a while does not count
    return Trained(state, float(np.median(seconds)), compile_seconds, mib)


def key_of(experiment: Experiment, use: int):
    return jax.random.fold_in(jax.random.key(experiment.seed), use)


def score_errors(experiment: Experiment, params: Params, n: int) -> list[tuple[float, float]]:
    """The error of the score of n noised test points at each of LOG_SNRS (`relative_rms`)."""
    data = experiment.data
    x0 = jnp.asarray(data.test.x[:n])

    def squares(params, log_snr, key):
        sde, predict = experiment.model.sde(params), bind(experiment.model, params)
        t = jnp.full(len(x0), sde.time_of_log_snr(log_snr))
        x = perturb(sde, x0, t, jax.random.normal(key, x0.shape))
        # at one noise level the score is eps times a number
        true = exact.predictor(sde, data.noised_logp)(x, t).eps
        error = predict(x, t).eps - true
        return jnp.sum(jnp.square(error), axis=1), jnp.sum(jnp.square(true), axis=1)

    keys = jax.random.split(key_of(experiment, _SCORE), len(LOG_SNRS))
    found = jax.jit(jax.vmap(squares, in_axes=(None, 0, 0)))(params, jnp.asarray(LOG_SNRS), keys)
    return [relative_rms(*pair) for pair in zip(*np.asarray(found, np.float64), strict=True)]


def relative_rms(
    error: Float[np.ndarray, "n"], size: Float[np.ndarray, "n"]
) -> tuple[float, float]:
    """sqrt(mean error / mean size) of squares, and its standard error by the delta method."""
    ratio = error.mean() / size.mean()
    stderr = np.std(error - ratio * size, ddof=1) / (size.mean() * math.sqrt(len(error)))
    return math.sqrt(ratio), float(stderr / (2 * math.sqrt(ratio)))


def likelihood(experiment: Experiment, params: Params, n: int | None) -> dict[str, Any]:
    """Of n test examples, or all: "nll", -log p by the ODE in nats or bits/dim, each a mean and its standard error.

    Also "above", over the true -log p, for data that know it.
    """
    data, index = experiment.data, np.arange(len(experiment.data.test.x))[:n]
    per_example = evaluate.per_example(
        run.ode(experiment), batch_size=experiment.eval.batch_size, labels=experiment.labels
    )
    batches = per_example(key_of(experiment, run._TEST), params, data.test, index)
    values = evaluate.together(batches)["bpd"].astype(np.float64)
    found = {"nll": evaluate.estimate(values)[:2]}
    if data.log_prob is not None:
        true = -np.asarray(data.log_prob(data.test.x[index]), np.float64)
        found["above"] = evaluate.estimate(values - true)[:2]
    return found


def draws(config: Config, params: Params, n: int, **sample) -> Float[np.ndarray, "n *s"]:
    """n samples by the config's sample section, with other options or, given a name, another section."""
    section = sample if "name" in sample else config["sample"] | sample
    experiment = build.experiment(build.resolve(config | {"sample": section}))
    start, rest = jax.random.split(key_of(experiment, _DRAWS))

    @jax.jit
    def fn(params) -> Array:
        sde = experiment.model.sde(params)
        x = sampling.prior(jax.random.split(start, n), sde, experiment.data.shape)
        return experiment.draw(jax.random.split(rest, n), sde, bind(experiment.model, params), x).x

    return np.asarray(fn(params))


def sliced_w2(a: Float[np.ndarray, "n 2"], b: Float[np.ndarray, "n 2"]) -> float:
    """W2 of the projections of n and n points, root mean square over N_ANGLES directions of the plane."""
    angles = np.arange(N_ANGLES) * math.pi / N_ANGLES
    directions = np.stack([np.cos(angles), np.sin(angles)])
    gaps = np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)
    return float(np.sqrt(np.mean(gaps**2)))
