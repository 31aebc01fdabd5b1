"""A run as a whole: trained in a folder, restored from it, evaluated and sampled from."""

import hashlib
import math
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_jax import (
    bits,
    build,
    classify,
    distributed,
    evaluate,
    parallel,
    picture,
    reliability,
    sampling,
    shapes,
    snapshots,
    steps,
    table,
    train,
)
from score_jax.build import EvalOptions, Experiment
from score_jax.checkpoint import Checkpoints
from score_jax.coupling import COUPLINGS
from score_jax.cross_entropy import by_level, log_p_by_level
from score_jax.data.base import Split, to_levels, to_model
from score_jax.data.base import take as take_examples
from score_jax.dequantize import DEQUANTIZATIONS
from score_jax.likelihood import log_likelihood
from score_jax.model import at, bind
from score_jax.runlog import Listener, RunLog
from score_jax.train import TrainState
from score_jax.types import Key, Params
from score_jax.whiten import WHITENINGS
from score_jax.workdir import load_config

# what a run's seed is folded with, for each use of randomness
_INIT, _TRAIN, _VALIDATION, _TEST, _SAMPLES, _GRID = range(6)
_GRID_EXAMPLES = 64  # on which the likelihood's grid is found


def _key(experiment: Experiment, use: int) -> Key:
    return jax.random.fold_in(jax.random.key(experiment.seed), use)


def checkpoints_of(folder: Path, experiment: Experiment) -> Checkpoints:
    """The run's checkpoints."""
    return Checkpoints(folder / "checkpoints", experiment.train.keep)


def start_state(
    experiment: Experiment, checkpoints: Checkpoints, step: int | None = None
) -> TrainState:
    """The state saved at a step, by default the newest, or the state before the first step if none is saved."""

    def init(key):
        options = experiment.train
        return train.init_state(
            key,
            experiment.model,
            experiment.data.shape,
            experiment.optimizer,
            len(options.ema) + len(options.ema_profiles),
            experiment.loss_state,
        )

    # the "rbg" generator compiles in 2 s where the default one takes 15 s for a network's many
    # parameters; its numbers, and so the initial weights of a seed, differ between CPU, GPU and TPU
    words = jax.random.bits(_key(experiment, _INIT), (4,), "uint32")
    key = jax.random.wrap_key_data(words, impl="rbg")
    step = checkpoints.latest() if step is None else step
    if step is None:
        state = jax.jit(init)(key)
        return state if experiment.frozen is None else _with_score(state, *experiment.frozen)
    return checkpoints.restore(step, jax.eval_shape(init, key))


def _with_score(state: TrainState, folder: Path, sections: dict[str, Any]) -> TrainState:
    """The state with the score model of the run in a folder, in the averages too.

    Raises:
      ValueError: the sections of that run's config are others.
    """
    config = build.resolve(load_config(folder))
    for name, section in sections.items():
        if config[name] != section:
            raise ValueError(
                f"config.dequantize.frozen is {folder}, a run whose config.{name} is {config[name]}, not "
                f"{section}; set config.{name} to that run's, or choose another run"
            )
    score = averaged_params(folder, build.experiment(config))[1]
    replaced = lambda params: params | {"score": score}
    copy = lambda tree: jax.tree.map(jnp.array, tree)  # each is donated to the first step
    return state._replace(
        params=copy(replaced(state.params)), emas=tuple(copy(replaced(ema)) for ema in state.emas)
    )


def averaged_params(
    folder: Path, experiment: Experiment, word: str | None = None
) -> tuple[int, Params]:
    """The step and the averaged parameters of a run's newest checkpoint, by a word of `weights`.

    Raises:
      FileNotFoundError: the run has no checkpoint.
    """
    saved_steps(folder)
    (choose,) = weights(folder, experiment, word).values()
    state = start_state(experiment, checkpoints_of(folder, experiment))
    return int(state.step), choose(state)


def saved_steps(folder: Path) -> list[int]:
    """The steps of a run's checkpoints, increasing.

    Raises:
      FileNotFoundError: the run has no checkpoint.
    """
    saved = folder / "checkpoints"
    steps = Checkpoints(saved).steps()
    if not steps:
        raise FileNotFoundError(
            f"no checkpoint in {saved}; train the run first: scripts/train.py --workdir={folder}"
        )
    return steps


def weights(
    folder: Path, experiment: Experiment, word: str | None = None
) -> dict[str, Callable[[TrainState], Params]]:
    """The parameters of a state that a word names, by name; None is the first moving average.

    Args:
      word: the place of a moving average that the run tracks, from 0; "raw" for the parameters
        themselves; "all" of these; or "power:SIGMA_REL" or "exponential:RATE", made of the run's
        snapshots (`snapshots.load_posthoc`), which says on stdout what it misses.
    Raises:
      ConfigError: it names none.
    """
    names = [f"ema {rate:g}" for rate in experiment.train.ema]
    names += [f"power {width:g}" for width in experiment.train.ema_profiles]
    tracked = {name: lambda state, i=i: state.emas[i] for i, name in enumerate(names)}
    tracked["raw"] = lambda state: state.params
    if word == "all":
        return tracked
    if word is not None and ":" in word:
        made = partial(_posthoc, folder / "snapshots", word, snapshots.parse(word))
        return {word.replace(":", " "): made}
    keys = dict(zip([*map(str, range(len(names))), "raw"], tracked, strict=True))
    key = word or next(iter(keys))
    if key not in keys:
        choices = ", ".join(f"{k} ({name})" if k != name else k for k, name in keys.items())
        raise build.ConfigError(
            f"--ema={key}: the run has no such average; choose from {choices}, all, or one made of "
            "snapshots, as power:0.1"
        )
    return {keys[key]: tracked[keys[key]]}


def _posthoc(folder: Path, word: str, profile: Callable, state: TrainState) -> Params:
    step = int(state.step)
    params, residual = snapshots.load_posthoc(folder, state.params, profile, step)
    print(f"{word} at step {step}, from {folder}: the profile is met to {residual:.1%}")
    return params


def train_step(experiment: Experiment, axis_name: str | None = None) -> Callable:
    """`train.make_train_step` of all that the config says of a step."""
    data, options = experiment.data, experiment.train
    prepare = train.prepare(
        data.levels,
        options.flip,
        experiment.labels,
        experiment.points,
        n_classes=data.n_classes,
        label_dropout=options.label_dropout,
        augment=options.augment,
        couple=COUPLINGS[options.coupling],
        axis_name=axis_name,
    )
    return train.make_train_step(
        experiment.loss,
        prepare,
        experiment.optimizer,
        options.ema,
        axis_name,
        options.accumulate,
        ema_warmup=options.ema_warmup,
        ema_profiles=options.ema_profiles,
        skip_broken=options.skip_nan > 0,
    )


def validation(experiment: Experiment) -> Callable[[Experiment, Params], dict[str, float]]:
    """validate(experiment, params) -> the metrics on the validation split, of one or another seed, compiled once."""
    data, options = experiment.data, experiment.train
    split = take_examples(
        data.validation, np.arange(min(options.eval_images, len(data.validation.x)))
    )
    loss = evaluate.loss_values(
        experiment.validation_loss, data.levels, experiment.points, COUPLINGS[options.coupling]
    )
    fns = [loss]
    if not (experiment.no_bits or experiment.no_elbo):
        fns.append(elbo(experiment))
    if experiment.model.class_logp is not None:
        fns.append(by_level(experiment.model, data.levels, experiment.points))
    runs = [_per_example(experiment, fn) for fn in fns]

    def validate(experiment, params):
        key = _key(experiment, _VALIDATION)
        return {
            f"val_{name}": evaluate.estimate(values).mean
            for run in runs
            for name, values in evaluate.together(run(key, params, split)).items()
        }

    return validate


def fit(
    folder: Path, experiment: Experiment, state: TrainState, checkpoints: Checkpoints
) -> signal.Signals | None:
    """Trains from a state to the end of the run; the signal that stopped it, or None (`train.fit`)."""
    data, options = experiment.data, experiment.train
    step_fn = train_step(experiment, parallel.AXIS)
    validate = validation(experiment)
    draw_fn = None if experiment.no_samples else draw(experiment)

    def save_picture(params, step):
        if draw_fn is None:
            return
        x = draw_fn(params, picture.count(data.shape))["x"]
        if distributed.is_first():
            picture.save(folder / "samples" / f"step_{step:07d}.png", x, data.levels)

    def save_snapshot(step, averages):
        if distributed.is_first():
            snapshots.write(folder / "snapshots", step, options.ema_profiles, averages)

    return train.fit(
        state,
        step_fn,
        data.train,
        _key(experiment, _TRAIN),
        experiment.seed,
        options,
        checkpoints,
        RunLog(folder) if distributed.is_first() else Listener(folder),
        validate=partial(validate, experiment),
        draw=save_picture,
        snapshot=save_snapshot,
    )


def draw(experiment: Experiment, *, compiled: bool = True) -> Callable[..., dict[str, np.ndarray]]:
    """run(params, n, label=None) -> {"x": n samples in data space, "nfe": ..., "ok": ...}.

    Sample i is a function of the seed and i alone: more samples begin with the same ones. A
    class-conditional model takes the class `label`, or goes through the classes in turn if it is
    None.

    Args:
      compiled: as of `parallel.map_examples`.
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

    mapped = parallel.map_examples(one_batch, experiment.eval.batch_size, compiled=compiled)

    def run(params, n, label=None):
        index = np.arange(n)
        labels = None
        if experiment.labels:
            labels = index % data.n_classes if label is None else np.full(n, label)
        result = mapped((_key(experiment, _SAMPLES), params), (index, labels))
        return result if labels is None else result | {"label": labels}

    return run


def elbo(experiment: Experiment) -> Callable[..., dict[str, Array]]:
    """The ELBO, as the eval section sets it."""
    options = experiment.eval
    is_flow = options.dequantize == "flow" and options.elbo_decoder == "gaussian"
    return evaluate.elbo_bits(
        experiment.model,
        experiment.data.levels,
        options.elbo_times,
        options.elbo_form,
        options.elbo_decoder,
        DEQUANTIZATIONS["flow" if is_flow else "uniform"],
    )


def ode(
    experiment: Experiment, found: dict[str, Any] | None = None
) -> Callable[..., dict[str, Array]]:
    """Bits/dim by the probability-flow ODE, as the eval section sets it.

    Args:
      found: arguments of `log_likelihood` that `prepare_ode` found for the model.
    """
    options = experiment.eval

    def likelihood(keys, sde, predict, x, label):
        arguments = dict(
            grid=options.grid(sde),
            trace=options.trace,
            n_probes=options.n_probes,
            solver=options.solver,
            n_steps=options.n_steps,
            rtol=options.rtol,
            atol=options.atol,
        )
        return log_likelihood(keys, sde, predict, x, label, **arguments | (found or {}))

    return evaluate.ode_bits(
        experiment.model,
        likelihood,
        experiment.data.levels,
        DEQUANTIZATIONS[options.dequantize],
        options.importance,
    )


def prepare_ode(
    experiment: Experiment, params: Params, folder: Path, made_for: dict[str, Any]
) -> dict[str, Any]:
    """What the likelihood's solver is to know: the Gaussian near the data, and where the model needs steps.

    The latter is found on training examples, once for the parameters, and kept in the folder.
    """
    options, data = experiment.eval, experiment.data
    found = {"whiten": WHITENINGS[options.whiten](data.train.x, data.levels)}
    if not options.fit_grid:
        return found
    whiten_and_trace = found | {"trace": options.trace}

    def errors(keys, params, x, label, streams):
        with jax.default_matmul_precision("float32"):
            model = at(experiment.model, params)
            draw = DEQUANTIZATIONS[options.dequantize]
            point = draw(shapes.fold_in(keys, 0), model, x, data.levels, label)
            return {
                "error": steps.local_errors(
                    shapes.fold_in(keys, 1),
                    model.sde,
                    model.predict,
                    point.x,
                    label,
                    **whiten_and_trace,
                )
            }

    def log_snrs():
        index = np.unique(np.linspace(0, len(data.train.x) - 1, _GRID_EXAMPLES).astype(int))
        examples = take_examples(data.train, index)
        run = _per_example(experiment, errors)(_key(experiment, _GRID), params, examples)
        return steps.log_snrs(experiment.model.sde(params), evaluate.together(run)["error"])

    kinds = "parameters", "data", "seed", "sde", "net", "model"
    made_for = {kind: made_for.get(kind) for kind in kinds}
    made_for |= {key: getattr(options, key) for key in ("whiten", "trace", "dequantize", "t_min")}
    path = folder / f"grid_{made_for['parameters'][:8]}.json"
    grid = steps.smooth(table.kept(path, made_for, log_snrs))
    return found | {"grid": grid(experiment.model.sde(params))}


def class_log_likelihoods(
    experiment: Experiment,
    params: Params,
    split: Split,
    path: Path,
    made_for: dict[str, Any],
    by: str = "elbo",
) -> np.ndarray:
    """log p(x | class), in nats, of a split's examples under each class of a class-conditional model, [n, classes].

    What `classify.posterior` makes a classifier of; nan where the solver failed. Writes a table to
    `path`, and goes on with one that a killed evaluation left there.

    Args:
      made_for: as of `bits_per_dim`.
      by: "elbo", the bound in the place of log p, or "ode"; both as the eval section sets them.
    """
    options, data = experiment.eval, experiment.data
    if options.t_min is not None:
        experiment = _starting_at(experiment, options.t_min)
    made_for = made_for | {"parameters": _digest(params), "by": by}
    if by == "elbo":
        fn, column = elbo(experiment), "elbo"
    else:
        found = prepare_ode(experiment, params, path.parent, made_for)
        fn, column = ode(experiment, found), "bpd"
    per_example = partial(_per_example(experiment, fn), _key(experiment, _TEST), params, split)
    values = classify.measure(path, made_for, len(split.x), data.n_classes, column, per_example)
    return -evaluate.per_unit(data.levels, math.prod(data.shape)) * values


def class_probabilities(
    experiment: Experiment,
    params: Params,
    examples: Sequence[tuple[Split, Path, dict[str, Any]]],
    by: str | None = "elbo",
) -> dict[str, Any]:
    """How good p(class | x) is on examples of a class-conditional model's, or a classifier's, run.

    Of a class-conditional model it is "bayes", of `class_log_likelihoods` and the frequencies of the
    training split's classes; of a classifier those of `cross_entropy.log_p_by_level`.

    Args:
      examples: a split, the path of its table and what the table is made for, as of
        `bits_per_dim`; and after it one to fit temperatures on, if any. A classifier writes no tables.
      by: as of `class_log_likelihoods`; None for a classifier.
    Returns:
      `reliability.summary`; "by"; the "prior" of the classes, or None.
    """
    data, model = experiment.data, experiment.model
    prior = None
    if model.class_logp is None:
        prior = np.bincount(data.train.label, minlength=data.n_classes) / len(data.train.label)
        with np.errstate(divide="ignore"):  # a class that is not there has probability 0
            log_prior = np.log(prior)

        def found(split, path, made_for):
            logp = class_log_likelihoods(experiment, params, split, path, made_for, by)
            return {"bayes": classify.posterior(logp, log_prior)}

    else:
        fn = log_p_by_level(model, data.levels, experiment.points)
        per_example = partial(_per_example(experiment, fn), _key(experiment, _TEST), params)
        found = lambda split, *_: evaluate.together(per_example(split))

    judged, *others = [(found(*part), part[0].label) for part in examples]
    result = reliability.summary(*judged, *others)
    return result | {"by": by, "prior": None if prior is None else prior.tolist()}


def _refined(options: EvalOptions) -> EvalOptions:
    """Four times the steps, or a tenth of the tolerances: most of the error of the former is gone."""
    if options.n_steps is not None:
        return options._replace(n_steps=4 * options.n_steps)
    return options._replace(rtol=0.1 * options.rtol, atol=0.1 * options.atol)


def bits_per_dim(
    experiment: Experiment, params: Params, split: Split, path: Path, made_for: dict[str, Any]
) -> dict[str, Any]:
    """Bits/dim of a split by the probability-flow ODE and by the ELBO, every example once.

    Writes the table of the examples to `path` and that of those evaluated again beside it, and goes
    on with tables that a killed evaluation left there.

    Args:
      made_for: what the numbers depend on beside the parameters; tables made for something else are
        not continued.
    Returns:
      `bits.summary`; "unit"; where the data's density is known, "exact", the least that a model can
      reach, and "kl", what this one is above it; "prior_mismatch" (`bits.prior_mismatch`); t_min;
      "no_elbo", why there is no bound, or None.
    """
    options, data = experiment.eval, experiment.data
    if options.t_min is not None:
        experiment = _starting_at(experiment, options.t_min)
    key, n = _key(experiment, _TEST), len(split.x)
    made_for = made_for | {"parameters": _digest(params)}
    found = prepare_ode(experiment, params, path.parent, made_for)
    bounds = () if experiment.no_elbo else (elbo(experiment),)
    per_example = _per_example(experiment, evaluate.both(ode(experiment, found), *bounds))
    rows = bits.measure(path, made_for, n, partial(per_example, key, params, split))

    index, checks = bits.subset(n, options.check_images, experiment.seed), None
    if len(index):
        again = _refined(options)._replace(batch_size=min(options.batch_size, len(index)))
        refined = experiment._replace(eval=again)
        checks = bits.check(
            path.with_name(f"{path.stem}_again.csv"),
            made_for | {"check_images": options.check_images},
            index,
            partial(per_example, key, params, split),
            partial(_per_example(refined, ode(refined, found)), key, params, split),
        )
    result = bits.summary(rows, checks) | {
        "importance": options.importance,
        "unit": "nats" if data.levels is None else "bits/dim",
        "t_min": float(experiment.model.sde(params).t_min),
        "prior_mismatch": _prior_mismatch(experiment, params),
        "no_elbo": experiment.no_elbo,
    }
    if data.log_prob is not None:
        exact = -np.asarray(data.log_prob(split.x), np.float64)
        result["exact"] = evaluate.estimate(exact)._asdict()
        result["kl"] = evaluate.estimate((rows["bpd"] - exact)[rows["failed"] == 0])._asdict()
    return result


def _starting_at(experiment: Experiment, t_min: float) -> Experiment:
    """The experiment whose model's time begins at t_min; what its network is told of a time does not change."""
    model = experiment.model
    later = lambda params: model.sde(params)._replace(t_min=t_min)
    return experiment._replace(model=model._replace(sde=later))


def _prior_mismatch(experiment: Experiment, params: Params) -> float:
    data, sde = experiment.data, experiment.model.sde(params)
    if sde.force is not None:
        return math.nan
    t_max = jnp.asarray(sde.t_max)
    # a thousand examples tell the mean and the large variances
    some = np.unique(np.linspace(0, len(data.train.x) - 1, 1000).astype(int))
    # levels are the middles of their boxes
    middle = 0.0 if data.levels is None else 0.5
    x = to_model(np.asarray(data.train.x[some], np.float64) + middle, data.levels)
    nats = bits.prior_mismatch(
        x.reshape(len(x), -1), float(sde.alpha(t_max)), float(sde.sigma(t_max))
    )
    return nats / evaluate.per_unit(data.levels, math.prod(data.shape))


def _digest(params: Params) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _per_example(experiment: Experiment, fn: Callable):
    return evaluate.per_example(fn, batch_size=experiment.eval.batch_size, labels=experiment.labels)
