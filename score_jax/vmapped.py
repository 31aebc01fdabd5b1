"""Trials of small networks as one program: the train step of one, mapped over all by `jax.vmap`.

Each trial has the state, the data's order and the random keys of its single run, so that it takes
the same steps up to the order of summation, and leaves the same folder but for the pictures. What may
differ between trials is what need not be compiled anew:

    seed        the keys, the initial parameters and the order are arguments of the program
    optim.lr    Adam's update is proportional to it: the first trial's update is scaled
    train.ema   each trial tracks the averages of all, and keeps its own
"""

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from score_jax import build, parallel, run, snapshots, train, trials, workdir
from score_jax.build import ConfigError, Experiment
from score_jax.checkpoint import Checkpoints
from score_jax.data.base import Split
from score_jax.data.fingerprint import fingerprint
from score_jax.data.order import batch_indices
from score_jax.files import WriteError
from score_jax.runlog import RunLog
from score_jax.sweep import Trial
from score_jax.train import TrainState
from score_jax.trials import StopSignals

VARIES = "seed", "optim.lr", "train.ema"


def check(found: list[Trial]):
    """Raises ConfigError unless the trials can be trained as one program."""
    first = found[0].config
    net = first["net"]["name"]
    if net != "mlp":
        raise ConfigError(
            f"--vmap is for config.net.name='mlp', not {net!r}: convolutions with a kernel for each "
            "trial take 2 to 3 times as long on the CPU as one after another; leave out --vmap"
        )
    # by which the update is known to be proportional to lr
    if first["optim"]["name"] != "adam":
        raise ConfigError(
            f"--vmap is for config.optim.name='adam', not {first['optim']['name']!r}; leave out --vmap"
        )
    for trial in found[1:]:
        old, new = workdir.flat(first), workdir.flat(trial.config)
        for key in old | new:
            if key not in VARIES and old.get(key) != new.get(key):
                raise ConfigError(
                    f"--vmap: trials differ in config.{key}; one program takes trials that differ in "
                    f"{', '.join(VARIES)}; leave out --vmap"
                )
    if first["train"]["skip_nan"]:
        raise ConfigError(
            f"--vmap skips no steps, but config.train.skip_nan is {first['train']['skip_nan']}; set it "
            "to 0, or leave out --vmap"
        )
    data = build.experiment(first).data
    if data.train.x.nbytes > first["train"]["resident_gib"] * 2**30:
        raise ConfigError(
            "--vmap keeps the training data on the device, but they are larger than "
            f"config.train.resident_gib = {first['train']['resident_gib']:g}; set it higher, or leave "
            "out --vmap"
        )


class Member(NamedTuple):
    """A trial in the program, and where it is written.

    Attributes:
      lr: its config.optim.lr.
    """

    name: str
    folder: Path
    experiment: Experiment
    lr: float
    checkpoints: Checkpoints


class Stack(NamedTuple):
    """The train step of several trials, and what it takes beside their state.

    Attributes:
      rates: of the moving averages that are tracked: those of all members, each once.
      step: the step to be mapped over the devices, where state, indices and metrics have an axis of
        members, and the keys are `common`.
      common: each member's key, and the factor of its updates.
    """

    rates: tuple[float, ...]
    step: Callable
    common: tuple[Array, Array]


def stack(members: list[Member]) -> Stack:
    """The members' train step; all but the options of VARIES is the first one's."""
    first = members[0].experiment
    rates = tuple(dict.fromkeys(rate for m in members for rate in m.experiment.train.ema))
    experiment = first._replace(train=first.train._replace(ema=rates))

    def one(state, resident, indices, common):
        key, factor = common
        optimizer = _scaled(first.optimizer, factor)
        step_fn = run.train_step(experiment._replace(optimizer=optimizer), parallel.AXIS)
        return step_fn(state, resident, indices, key)

    keys = jnp.stack([run._key(m.experiment, run._TRAIN) for m in members])
    factors = jnp.asarray([m.lr / members[0].lr for m in members], jnp.float32)
    return Stack(rates, jax.vmap(one, in_axes=(0, None, 0, 0)), (keys, factors))


def _scaled(optimizer: optax.GradientTransformation, factor: Array) -> optax.GradientTransformation:
    def update(grads, state, params=None):
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda u: factor * u, updates), state

    return optax.GradientTransformation(optimizer.init, update)


def together(
    members: list[Member], states: list[TrainState], rates: tuple[float, ...]
) -> TrainState:
    """The members' states as one, each leaf with an axis of members first."""

    def widened(m, state):
        own = m.experiment.train.ema
        # an average that is not the member's own is never read
        emas = [state.emas[own.index(rate)] if rate in own else state.params for rate in rates]
        return state._replace(emas=(*emas, *state.emas[len(own) :]))

    wide = [widened(m, state) for m, state in zip(members, states, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *wide)


def alone(members: list[Member], state: TrainState, rates: tuple[float, ...]) -> list[TrainState]:
    """The members' states, on the host, as their single runs have them."""
    state = jax.device_get(state)

    def narrowed(i, m):
        mine = jax.tree.map(lambda leaf: leaf[i], state)
        own = tuple(mine.emas[rates.index(rate)] for rate in m.experiment.train.ema)
        return mine._replace(emas=own + mine.emas[len(rates) :])

    return [narrowed(i, m) for i, m in enumerate(members)]


def orders(members: list[Member], start: int) -> Iterator[np.ndarray]:
    """Each step's indices [members, b], from step `start` (counted from 0) to the last."""
    options, n = members[0].experiment.train, len(members[0].experiment.data.train.x)
    # about an epoch at once: a permutation is made for it, and only the newest ones are kept
    chunk = max(1, n // options.batch_size)
    for block in itertools.count(start // chunk):
        made = [
            batch_indices(m.experiment.seed, block, n, chunk * options.batch_size) for m in members
        ]
        parts = np.stack(made).reshape(len(members), chunk, options.batch_size)
        for i in range(chunk):
            step = block * chunk + i
            if step == options.steps:
                return
            if step >= start:
                yield parts[:, i]


class Writer:
    """Writes what a member computes into its folder, as its single run would.

    Attributes:
      error: why it has failed, or "".
      owes_validation: whether a signal stopped the run before it in the validation of its last step.
    """

    def __init__(self, member: Member, start: int, context: contextlib.ExitStack):
        self.error = ""
        self._member, self._log = member, RunLog(member.folder)
        options = member.experiment.train
        notes = member.checkpoints.notes(start)
        self._logged = notes.get("unlogged", [])
        self.owes_validation = "validation" in notes.get("owed", [])
        context.enter_context(member.checkpoints)
        with _quiet():
            running = self._log.running(start, options.steps, options.batch_size, notes.get("rows"))
            context.enter_context(running)

    def take(self, step: int, rows: list[dict[str, float]]) -> bool:
        """Takes the metrics of the steps up to this one; False if the trial has failed."""
        for i, row in enumerate(rows):
            for name, value in row.items():
                if not np.isfinite(value) and not self.error:
                    self.error = (
                        f"{name} is {value} at step {step - len(rows) + 1 + i}; "
                        f"{self._member.checkpoints.kept()}"
                    )
        if not self.error:
            self._logged += rows
        return not self.error

    def log(self, step: int):
        means = {name: np.mean([row[name] for row in self._logged]) for name in self._logged[0]}
        self._logged = []
        with _quiet():
            self._log.train(step, means)

    def validation(self, step: int, metrics: dict[str, float]):
        with _quiet():
            self._log.validation(step, metrics)

    def settle(self, step: int):
        """What was owed at the step of a checkpoint is done."""
        self._log.sync()
        self._member.checkpoints.change_notes(step, owed=[], rows=self._log.rows)

    def restart_clock(self, step: int):
        self._log.restart_clock(step)

    def save(self, step: int, state: TrainState):
        log = self._log
        self._member.checkpoints.save(step, state, self._logged, first=log.sync, rows=log.rows)


def _quiet():
    """A run's own progress is for one run at a time; the sweep's table shows all."""
    return contextlib.redirect_stdout(io.StringIO())


def fit(
    members: list[Member],
    states: list[TrainState],
    stop: StopSignals,
    tell: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Trains all members from their states, which are of the same step; returns why some have failed, by name.

    A trial whose loss or gradient is not finite is left as its last checkpoint has it; the others go
    on.

    Args:
      tell: called after something was written.
    """
    stacked, options, start = stack(members), members[0].experiment.train, int(states[0].step)
    data = members[0].experiment.data.train
    step_fn = parallel.train_step(stacked.step)
    state = parallel.replicate(together(members, states, stacked.rates))
    resident = parallel.replicate(Split(np.asarray(data.x), data.label))
    validate, pending = run.validation(members[0].experiment), []
    is_due = lambda every, step: train._due(step, every, options.steps)
    with contextlib.ExitStack() as context:
        writers = [Writer(m, start, context) for m in members]
        for m, writer, mine in zip(members, writers, states, strict=True):
            if writer.owes_validation:
                writer.validation(start, validate(m.experiment, mine.averaged()))
                writer.settle(start)
        for step, indices in enumerate(orders(members, start), start + 1):
            indices = parallel.shard(indices, axis=1)
            state, metrics = step_fn(state, resident, indices, stacked.common)
            pending.append(metrics)
            # two steps in flight keep a device busy; more would only hold their metrics in memory
            jax.block_until_ready(pending[-2:-1])

            stopping = stop.asked is not None  # read once, as in `train.fit`
            logging, validating, saving = (
                is_due(every, step)
                for every in (options.log_every, options.eval_every, options.save_every)
            )
            snapshotting = options.snapshot_every > 0 and is_due(options.snapshot_every, step)
            if not (logging or validating or saving or snapshotting or stopping):
                continue
            rows, pending = jax.device_get(parallel.unreplicate(pending)), []
            members_rows = [
                [{name: float(a[i]) for name, a in row.items()} for row in rows]
                for i in range(len(members))
            ]
            good = [w.take(step, mine) for w, mine in zip(writers, members_rows, strict=True)]
            # all of it, before what takes time that is not training
            for writer in itertools.compress(writers, good):
                if logging:
                    writer.log(step)
            own = alone(members, parallel.unreplicate(state), stacked.rates)
            for m, writer, mine in itertools.compress(
                zip(members, writers, own, strict=True), good
            ):
                if validating:
                    writer.validation(step, validate(m.experiment, mine.averaged()))
                if snapshotting:
                    averages = mine.emas[len(m.experiment.train.ema) :]
                    snapshots.write(m.folder / "snapshots", step, options.ema_profiles, averages)
                if saving or stopping:
                    writer.save(step, mine)
            for writer in writers:
                writer.restart_clock(step)
            tell()
            if stopping or not any(good):
                break
    return {m.name: w.error for m, w in zip(members, writers, strict=True) if w.error}


def run_all(folder: Path, found: list[Trial], stop: StopSignals, tell: Callable[[set[str]], None]):
    """Trains trials that `check` has passed, from their newest checkpoints to the end or to a signal.

    Those that were stopped at different steps are trained one group after another. One whose folder
    cannot be used has failed, and the others go on.
    """
    with contextlib.ExitStack() as locks:
        groups = {}
        for trial in found:
            trials.begin(folder, trial.name)
            try:
                member, state = _open(folder, trial, locks)
            except (ValueError, OSError) as error:
                trials.end(folder, trial.name, 2, " ".join(str(error).split()))
            else:
                groups.setdefault(int(state.step), []).append((member, state))
        for group in groups.values():
            if stop.asked is None:
                _run_group(folder, *map(list, zip(*group, strict=True)), stop, tell)
    tell(set())


def _open(folder: Path, trial: Trial, locks: contextlib.ExitStack) -> tuple[Member, TrainState]:
    """What train.py does before it trains."""
    where, experiment = folder / trial.name, build.experiment(trial.config)
    data = fingerprint(experiment.data)
    workdir.claim(where, trial.config, data, complete=build.resolve)
    locks.enter_context(workdir.lock(where))
    checkpoints = run.checkpoints_of(where, experiment)
    state = run.start_state(experiment, checkpoints)
    workdir.record(where, trial.config, data)
    return Member(trial.name, where, experiment, trial.config["optim"]["lr"], checkpoints), state


def _run_group(
    folder: Path,
    members: list[Member],
    states: list[TrainState],
    stop: StopSignals,
    tell: Callable[[set[str]], None],
):
    names = {member.name for member in members}
    tell(names)
    try:
        errors = fit(members, states, stop, lambda: tell(names))
    except WriteError as error:  # a full disk is full for all
        errors = dict.fromkeys(names, str(error))
    for name in names:
        code = 1 if name in errors else 130 if stop.asked is not None else 0
        trials.end(folder, name, code, errors.get(name, ""))
