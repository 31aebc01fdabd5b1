"""A run as a whole: trained in a folder, restored from it, evaluated and sampled from."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from score_jax import evaluate, parallel, picture, sampling, train
from score_jax.build import Experiment
from score_jax.checkpoint import Checkpoints
from score_jax.data.base import Split, to_levels
from score_jax.data.base import take as take_examples
from score_jax.likelihood import log_likelihood
from score_jax.model import bind
from score_jax.runlog import RunLog
from score_jax.train import TrainState
from score_jax.types import Key, Params

# what a run's seed is folded with, for each use of randomness
_INIT, _TRAIN, _VALIDATION, _TEST, _SAMPLES = range(5)


def _key(experiment: Experiment, use: int) -> Key:
    return jax.random.fold_in(jax.random.key(experiment.seed), use)


def checkpoints_of(folder: Path, experiment: Experiment) -> Checkpoints:
    """The run's checkpoints."""
    return Checkpoints(folder / "checkpoints", experiment.train.keep)


def start_state(experiment: Experiment, checkpoints: Checkpoints) -> TrainState:
    """The newest saved state, or the state before the first step."""

    def init(key):
        n_emas = len(experiment.train.ema)
        return train.init_state(
            key, experiment.model, experiment.data.shape, experiment.optimizer, n_emas
        )

    # the "rbg" generator compiles in 2 s where the default one takes 15 s for a network's many
    # parameters; its numbers, and so the initial weights of a seed, differ between CPU, GPU and TPU
    bits = jax.random.bits(_key(experiment, _INIT), (4,), "uint32")
    key = jax.random.wrap_key_data(bits, impl="rbg")
    step = checkpoints.latest()
    if step is None:
        return jax.jit(init)(key)
    return checkpoints.restore(step, jax.eval_shape(init, key))


def averaged_params(folder: Path, experiment: Experiment) -> tuple[int, Params]:
    """The step and the averaged parameters of a run's newest checkpoint.

    Raises:
      FileNotFoundError: the run has no checkpoint.
    """
    saved = folder / "checkpoints"
    if not saved.is_dir() or (checkpoints := checkpoints_of(folder, experiment)).latest() is None:
        raise FileNotFoundError(
            f"no checkpoint in {saved}; train the run first: scripts/train.py --workdir={folder}"
        )
    state = start_state(experiment, checkpoints)
    return int(state.step), state.averaged()


def fit(folder: Path, experiment: Experiment, state: TrainState, checkpoints: Checkpoints) -> bool:
    """Trains from a state to the end of the run; False if a signal stopped it (`train.fit`)."""
    data, options = experiment.data, experiment.train
    prepare = train.prepare(data.levels, options.flip, experiment.labels)
    step_fn = train.make_train_step(
        experiment.loss,
        prepare,
        experiment.optimizer,
        options.ema,
        parallel.AXIS,
        options.accumulate,
    )
    n = min(options.eval_images, len(data.validation.x))
    validation = take_examples(data.validation, np.arange(n))
    values = {
        "loss": _per_example(experiment, evaluate.loss_values(experiment.validation_loss)),
        "elbo": _per_example(experiment, elbo(experiment)),
    }

    def validate(params):
        key = _key(experiment, _VALIDATION)
        return {
            f"val_{name}": float(np.mean(run(key, params, validation)[name], dtype=np.float64))
            for name, run in values.items()
        }

    draw_fn = draw(experiment)

    def save_picture(params, step):
        x = draw_fn(params, picture.count(data.shape))["x"]
        picture.save(folder / "samples" / f"step_{step:07d}.png", x, data.levels)

    return train.fit(
        state,
        step_fn,
        data.train,
        _key(experiment, _TRAIN),
        experiment.seed,
        options,
        checkpoints,
        RunLog(folder),
        validate=validate,
        draw=save_picture,
    )


def draw(experiment: Experiment) -> Callable[..., dict[str, np.ndarray]]:
    """run(params, n, label=None) -> {"x": n samples in data space, "nfe": ..., "ok": ...}.

    Sample i is a function of the seed and i alone: more samples begin with the same ones. A
    class-conditional model takes the class `label`, or goes through the classes in turn if it is
    None.
    """
    model, data = experiment.model, experiment.data

    def one_batch(common, arrays):
        (key, params), (index, label) = common, arrays
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        pair = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
        sde = model.sde(params)
        x = sampling.prior(pair[:, 0], sde, data.shape)
        draws = experiment.draw(pair[:, 1], sde, bind(model, params), x, label)
        return {"x": to_levels(draws.x, data.levels), "nfe": draws.nfe, "ok": draws.ok}

    mapped = parallel.map_examples(one_batch, experiment.eval.batch_size)

    def run(params, n, label=None):
        index = np.arange(n)
        labels = None
        if experiment.labels:
            labels = index % data.n_classes if label is None else np.full(n, label)
        result = mapped((_key(experiment, _SAMPLES), params), (index, labels))
        return result if labels is None else result | {"label": labels}

    return run


def elbo(experiment: Experiment) -> Callable[..., dict[str, Array]]:
    """The ELBO in bits/dim, as the eval section sets it."""
    return evaluate.elbo_bits(experiment.model, experiment.data.levels, experiment.eval.elbo_times)


def ode(experiment: Experiment) -> Callable[..., dict[str, Array]]:
    """Bits/dim by the probability-flow ODE, as the eval section sets it."""
    options = experiment.eval

    def likelihood(keys, sde, predict, x, label):
        return log_likelihood(
            keys,
            sde,
            predict,
            x,
            label,
            grid=options.grid(sde),
            trace=options.trace,
            solver=options.solver,
            n_steps=options.n_steps,
            rtol=options.rtol,
            atol=options.atol,
        )

    return evaluate.ode_bits(experiment.model, likelihood, experiment.data.levels)


def bits_per_dim(experiment: Experiment, params: Params, split: Split) -> dict[str, Any]:
    """Bits/dim of a split by the probability-flow ODE and by the ELBO, every example once.

    Where the data's density is known, also its exact value: the least that a model can reach.

    Raises:
      ArithmeticError: the ODE solver failed on some examples.
    """
    key = _key(experiment, _TEST)
    by_ode = _per_example(experiment, ode(experiment))(key, params, split)
    failed = int(np.sum(~by_ode["ok"]))
    if failed:
        raise ArithmeticError(
            f"the ODE solver failed on {failed} of {len(split.x)} examples; "
            "loosen config.eval.rtol and atol, or set config.eval.n_steps"
        )
    by_elbo = _per_example(experiment, elbo(experiment))(key, params, split)
    result = {
        "bpd": evaluate.estimate(by_ode["bpd"])._asdict(),
        "elbo": evaluate.estimate(by_elbo["elbo"])._asdict(),
        "nfe": float(np.mean(by_ode["nfe"])),
    }
    if experiment.data.log_prob is not None:
        bits = -experiment.data.log_prob(split.x) / (math.prod(experiment.data.shape) * math.log(2))
        result["exact"] = evaluate.estimate(np.asarray(bits))._asdict()
    return result


def _per_example(experiment: Experiment, fn: Callable):
    return evaluate.per_example(
        fn,
        experiment.data.levels,
        batch_size=experiment.eval.batch_size,
        labels=experiment.labels,
    )
