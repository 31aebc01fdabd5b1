"""Training: the pure step, and the loop around it.

Everything random in step k is a function of (seed, k, an example's index in the global batch), and
the order of the data of (seed, k), so a resumed run takes the steps of the uninterrupted one, and N
devices take those of one.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Int

from score_jax import augment as augmentation
from score_jax import coupling, dequantize, ema, parallel, shapes
from score_jax.checkpoint import Checkpoints
from score_jax.data import stream
from score_jax.data.base import Split
from score_jax.data.order import batch_indices
from score_jax.model import Model
from score_jax.runlog import Listener, RunLog
from score_jax.types import Batch, Key, LossFn, Params


class TrainState(NamedTuple):
    """All that training changes, arrays only. `emas` are first the exponential averages, then the power functions."""

    step: Int[Array, ""]
    params: Params
    emas: tuple[Params, ...]
    opt_state: optax.OptState
    loss_state: Any

    def averaged(self) -> Params:
        """The first moving average, or the parameters themselves if none is kept."""
        return self.emas[0] if self.emas else self.params


def init_state(
    key: Key,
    model: Model,
    shape: tuple[int, ...],
    optimizer: optax.GradientTransformation,
    n_emas: int,
    loss_state: Any = (),
) -> TrainState:
    """The state before the first step; the averages start at the initial parameters."""
    params = model.init(key, shape)
    emas = (params,) * n_emas
    return TrainState(jnp.zeros((), jnp.int32), params, emas, optimizer.init(params), loss_state)


def prepare(
    levels: int | None,
    flip: bool,
    labels: bool,
    points: Callable[..., Array] = dequantize.POINTS["uniform"],
    *,
    n_classes: int = 0,
    label_dropout: float = 0.0,
    augment: float = 0.0,
    couple: Callable[..., Array | None] = coupling.independent,
    axis_name: str | None = None,
) -> Callable[..., Batch]:
    """A function (keys, position, resident, indices) -> Batch, run inside the step.

    Args:
      levels: the data's number of levels, or None for continuous data, which stay as they are.
      flip: mirror each image left to right with probability 1/2.
      labels: whether the batch carries labels.
      points: one of `dequantize.POINTS`: what the loss gets of levels.
      label_dropout: probability that an example's label becomes n_classes, the networks' "no class".
      augment: probability of each of `augment`'s transforms.
      couple: one of `coupling.COUPLINGS`: the noise that goes with x, chosen over the global batch.
    """

    def fn(keys, position, resident: Split, indices) -> Batch:
        k_flip, k_dequantize, keys, k_label, k_augment, k_couple = (
            shapes.fold_in(keys, i) for i in range(6)
        )
        x = jnp.asarray(resident.x[indices])
        if flip:
            mirrored = jax.vmap(jax.random.bernoulli)(k_flip)
            x = jnp.where(shapes.like(mirrored, x), x[..., ::-1, :], x)
        if levels is not None:
            x = points(k_dequantize, x, levels)
        label = resident.label[indices] if labels else None
        if labels and label_dropout:
            dropped = jax.vmap(lambda key: jax.random.bernoulli(key, label_dropout))(k_label)
            label = jnp.where(dropped, n_classes, label)
        condition = None
        if augment:
            x, condition = augmentation.augment(k_augment, x, augment)
        # last: the noise is coupled to what the loss sees
        eps = couple(k_couple, x, axis_name)
        return Batch(x, label, keys, position, condition, eps)

    return fn


def loss_and_grad(loss_fn: LossFn, parts: int) -> Callable:
    """fn(key, params, loss_state, batch, step) -> (loss, (metrics, loss_state)), gradient: `jax.value_and_grad`'s.

    With parts > 1, the means over that many equal parts of the batch, one after another: one part's
    activations are in memory at a time. So it is with the loss's state, as over devices.
    """
    grad_fn = jax.value_and_grad(loss_fn, argnums=1, has_aux=True)
    if parts == 1:
        return grad_fn

    def fn(key, params, loss_state, batch, step):
        def one(total, part):
            # after the part before. XLA's compiler for the CPU drops optimization barriers, and would
            # keep the activations of all parts; this it must not simplify
            after = 0.0 * sum(leaf.ravel()[0] for leaf in jax.tree.leaves(total))
            part = part._replace(x=part.x + after)
            values, grads = grad_fn(key, params, loss_state, part, step)
            return jax.tree.map(jnp.add, total, grads), values

        split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
        # XLA compiles a convolution's gradient badly inside a loop on the CPU (jax issue 12868)
        unroll = jax.default_backend() == "cpu"
        start = jax.tree.map(jnp.zeros_like, params)
        total, values = jax.lax.scan(one, start, split, unroll=unroll)
        values = jax.tree.map(lambda a: jnp.mean(a, axis=0), values)
        return values, jax.tree.map(lambda g: g / parts, total)

    return fn


def make_train_step(
    loss_fn: LossFn,
    prepare_fn: Callable[..., Batch],
    optimizer: optax.GradientTransformation,
    ema_rates: tuple[float, ...],
    axis_name: str | None = None,
    accumulate: int = 1,
    *,
    ema_warmup: float = 10.0,
    ema_profiles: tuple[float, ...] = (),
    skip_broken: bool = False,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """step(state, resident, indices, key, votes=None) -> state, metrics, a pure function.

    Gradients are averaged over axis_name. So are metrics and the loss's state, whose integers must be
    the same on all devices, and `votes`, if there are any: one all-reduce takes them all. The moving
    averages are those of `ema.update`. `accumulate` is the number of parts (`loss_and_grad`) that a
    device takes its batch in. With `skip_broken`, a step with a metric that is not finite changes
    nothing but the number of the step.
    """
    grad_fn = loss_and_grad(loss_fn, accumulate)

    def step_fn(state, resident, indices, key, votes=None):
        k_loss, k_examples = jax.random.split(jax.random.fold_in(key, state.step))
        index, n = parallel.example_index(indices.shape[0], axis_name)
        keys = jax.vmap(lambda i: jax.random.fold_in(k_examples, i))(index)
        batch = prepare_fn(keys, index / n, resident, indices)

        (loss, aux), grads = grad_fn(k_loss, state.params, state.loss_state, batch, state.step)
        means = parallel.mean((loss, aux, grads, votes), axis_name)
        loss, (metrics, loss_state), grads, votes = means
        # a mean of integers is a float
        loss_state = jax.tree.map(lambda a, old: a.astype(old.dtype), loss_state, state.loss_state)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        emas = ema.update(state.emas, params, state.step, ema_rates, ema_warmup, ema_profiles)
        metrics = {"loss": loss, "grad_norm": optax.global_norm(grads), **metrics}
        new = TrainState(state.step + 1, params, emas, opt_state, loss_state)
        new = _unless_broken(metrics, new, state) if skip_broken else new
        return new, metrics if votes is None else metrics | {"votes": votes}

    return step_fn


def _unless_broken(metrics: dict[str, Array], new: TrainState, old: TrainState) -> TrainState:
    """The new state, or the old one with the new step if a metric is not finite."""
    # on every device alike: metrics are means over all. Selected, as in `cond` the compiler for the
    # CPU makes the gradient of a convolution slow (jax issue 12868)
    ok = jnp.stack([jnp.isfinite(value).all() for value in metrics.values()]).all()
    kept = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)
    return kept._replace(step=new.step)


class Options(NamedTuple):
    """How long a run is, what a step takes, and how many steps lie between events.

    Attributes:
      steps, batch_size: the length of the run, and the examples in a step over all devices
        together.
      log_every, eval_every, sample_every, save_every: steps between events; 0 for the last step
        only.
      eval_images: how many validation examples each validation uses.
      ema: rates of the exponential moving averages of the parameters; the first is evaluated and
        sampled from.
      ema_warmup: their rates are at most (1 + step) / (ema_warmup + step); 1 or 0 for no warm-up.
      ema_profiles: relative widths sigma_rel of power-function averages, tracked beside the
        exponential ones (`ema`).
      snapshot_every: steps between snapshots of the latter, of which any other average can be made
        after training (`snapshots`); there is one of the last step too. 0 for none.
      flip: mirror images left to right at random.
      label_dropout: probability that the network is not told an example's label.
      augment: probability of each of the transforms that the network is told of (`augment`); 0 for
        none.
      coupling: which noise goes with which example of a batch, one of `coupling.COUPLINGS`.
      keep: how many checkpoints to keep.
      compute: the network's arithmetic in training, "float32" or "bfloat16"; parameters, norms and
        the loss are float32 either way, and so are validation and samples.
      remat: compute each block's activations again in the backward pass instead of keeping them.
      accumulate: parts that a device takes its share of the batch in, one after another.
      resident_gib: a training split up to this size, in GiB, is kept on each device; a larger one
        is streamed.
      workers: processes that read a streamed split.
      steps_per_call: steps in one program, which spares a small network most of what each costs to
        start; the steps between events must be multiples of it.
      skip_nan: how many steps of the run may have a loss or a gradient that is not finite: each is
        left out and its examples noted in skipped.jsonl; the next one stops the run.
    """

    steps: int = 100_000
    batch_size: int = 128
    log_every: int = 100
    eval_every: int = 5000
    sample_every: int = 5000
    save_every: int = 5000
    eval_images: int = 1024
    ema: tuple[float, ...] = (0.9999,)
    ema_warmup: float = 10.0
    ema_profiles: tuple[float, ...] = ()
    snapshot_every: int = 0
    flip: bool = False
    label_dropout: float = 0.0
    augment: float = 0.0
    coupling: str = "independent"
    keep: int = 2
    compute: str = "float32"
    remat: bool = False
    accumulate: int = 1
    resident_gib: float = 1.0
    workers: int = 2
    steps_per_call: int = 1
    skip_nan: int = 0


def fit(
    state: TrainState,
    step_fn: Callable,
    data: Split,
    key: Key,
    seed: int,
    options: Options,
    checkpoints: Checkpoints,
    log: RunLog | Listener,
    *,
    validate: Callable[[Params], dict[str, float]],
    draw: Callable[[Params, int], None],
    snapshot: Callable[[int, tuple[Params, ...]], None] = lambda step, averages: None,
) -> signal.Signals | None:
    """Trains from the given state to the last step; returns None, or the signal that asked it to stop.

    A signal stops it after the step that is being taken, or at once in a validation or a picture:
    the state is saved, and what was due at its step is the first thing that the resumed run does.
    Several processes stop together, within two steps of the signal to any of them; what is due there
    is done by the resumed run.

    Args:
      step_fn: from `make_train_step` with axis name `parallel.AXIS`, unmapped.
      data: the training split.
      key: of all randomness in the steps; `seed` is that of the data's order.
      validate: metrics of the averaged parameters on the validation split.
      draw: writes a picture of samples of the averaged parameters at a step.
      snapshot: writes the power-function averages of a step; returns when they are on disk.
    Raises:
      FloatingPointError: the loss or its gradient is not finite; names the step and the last
        checkpoint.
      WriteError: a checkpoint, the log or a picture cannot be written.
    """
    start, n_steps = int(state.step), options.steps_per_call
    step_fn = parallel.train_step(step_fn, n_steps)
    state = parallel.replicate(state)
    notes = checkpoints.notes(start)
    logged = notes.get("unlogged", [])  # metrics since the last logged row, as floats
    pending = []  # metrics still on the device: reading one waits for its step

    def events(step, owed):
        """Does what is due after a step; what is left of it if a signal ends that."""
        left = list(owed)
        try:
            while left:
                averaged = parallel.unreplicate(state.averaged())
                if left[0] == "validation":
                    log.validation(step, stop.at_once(validate, averaged))
                else:
                    stop.at_once(draw, averaged, step)
                del left[0]
        except _Stop:
            pass
        if owed:
            log.restart_clock(step)
        return left

    def skip(step, why):
        """Notes a step that was left out; False if none more may be."""
        if log.skipped >= options.skip_nan:
            return False
        log.skip(step, why, batch_indices(seed, step - 1, len(data.x), options.batch_size))
        return True

    running = log.running(start, options.steps, options.batch_size, notes.get("rows"))
    # leaving waits for saves under way, also when a step or a validation fails
    feed = contextlib.closing(_feed(data, seed, start, options))
    with _StopSignals() as stop, checkpoints, running, feed as batches:
        if notes.get("owed"):  # by a run that a signal stopped
            if events(start, notes["owed"]):
                return stop.asked
            log.sync()
            checkpoints.change_notes(start, owed=[], rows=log.rows)
        ends, votes = range(start + n_steps, options.steps + 1, n_steps), None
        for step, (resident, indices) in zip(ends, batches, strict=True):
            state, metrics = step_fn(state, resident, indices, key, stop.votes())
            votes, before = metrics.pop("votes", None), votes
            pending.append(metrics)
            # two steps in flight keep a device busy; more would only hold their batches in memory
            jax.block_until_ready(pending[-2:-1])

            # read once: a signal after this waits for the next step's save
            stopping = stop.agreed(before)
            logging, validating, drawing, saving = (
                _due(step, every, options.steps)
                for every in (
                    options.log_every,
                    options.eval_every,
                    options.sample_every,
                    options.save_every,
                )
            )
            snapshotting = options.snapshot_every > 0 and _due(
                step, options.snapshot_every, options.steps
            )
            if logging or validating or drawing or saving or snapshotting or stopping:
                checkpoints.check()
                fetched = jax.device_get(parallel.unreplicate(pending))
                logged += _finite(_rows(fetched, n_steps), step, skip, checkpoints)
                pending = []
            if logging and logged:  # none if all were skipped
                # another loss, which a changed config brought, has other metrics than saved rows
                logged = [row for row in logged if row.keys() == logged[-1].keys()]
                log.train(
                    step, {name: np.mean([row[name] for row in logged]) for name in logged[0]}
                )
                logged = []
            if snapshotting:
                # before the step's checkpoint: what a resumed run does not take again is on disk
                snapshot(step, parallel.unreplicate(state.emas[len(options.ema) :]))
                log.restart_clock(step)
            owed = ["validation"] * validating + ["picture"] * drawing
            if not stopping:
                owed = events(step, owed)
            if saving or stopping or owed:
                # the rows so far are on the disk before the checkpoint that they belong to counts
                checkpoints.save(
                    step,
                    parallel.unreplicate(state),
                    logged,
                    first=log.sync,
                    owed=owed,
                    rows=log.rows,
                )
            if stopping or owed:
                return (stopping or stop.asked) if owed or step < options.steps else None
    return None


def _feed(data: Split, seed: int, start: int, options: Options) -> Iterator[tuple[Split, Array]]:
    """Each call's (resident, indices), from step `start` (counted from 0) to the last, laid out for the devices.

    Resident is the whole split, moved to the devices once, or the rows of one step alone, and of
    this process's devices.
    """
    n, n_steps = options.batch_size, options.steps_per_call
    own = parallel.rows(n)
    if start == options.steps:  # nothing but what a stopped run left to do
        return
    if data.x.nbytes <= options.resident_gib * 2**30:
        resident = parallel.replicate(Split(np.asarray(data.x), data.label))
        for first in range(start, options.steps, n_steps):
            steps = range(first, first + n_steps)
            rows = [batch_indices(seed, step, len(data.x), n)[own] for step in steps]
            indices = parallel.shard(np.stack(rows), axis=1)
            yield resident, indices if n_steps > 1 else indices[:, 0]
        return
    indices = parallel.shard(np.arange(n)[own] % (n // parallel.count()))
    ahead = stream.batches(data, seed, n, start, options.steps, rows=own, workers=options.workers)
    with ahead as batches:
        for batch in batches:
            yield parallel.shard(batch), indices


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _rows(fetched: list[dict], n_steps: int) -> list[dict]:
    """The metrics of each step, of calls of several."""
    if n_steps == 1:
        return fetched
    return [{k: v[i] for k, v in call.items()} for call in fetched for i in range(n_steps)]


def _finite(
    rows: list[dict], step: int, skip: Callable[[int, str], bool], checkpoints: Checkpoints
) -> list[dict[str, float]]:
    """The rows of the steps up to `step` as floats, without those that are skipped."""
    rows = [{name: float(value) for name, value in row.items()} for row in rows]
    good = []
    for at, row in enumerate(rows, step - len(rows) + 1):
        broken = [name for name, value in row.items() if not np.isfinite(value)]
        if not broken:
            good.append(row)
        elif not skip(at, f"{broken[0]} is {row[broken[0]]}"):
            checkpoints.wait()
            raise FloatingPointError(
                f"{broken[0]} is {row[broken[0]]} at step {at}; {checkpoints.kept()}; lower "
                "config.optim.lr or config.optim.clip, in another --workdir or with "
                "--allow_config_change, or leave such steps out with config.train.skip_nan"
            )
    return good


class _Stop(BaseException):
    """A signal asked to stop in what may be left unfinished; no handler of Exception is to take it."""


class _StopSignals:
    """While active, SIGINT and SIGTERM set `asked` instead of ending the process; a second one ends it.

    Under several processes each step carries what all were asked: they stop at the same one.
    """

    _KINDS = signal.SIGTERM, signal.SIGINT

    def __enter__(self):
        self.asked: signal.Signals | None = None
        self._leave = False
        self._alone = jax.process_count() == 1
        self._previous = {kind: signal.signal(kind, self._ask) for kind in self._KINDS}
        return self

    def votes(self) -> np.ndarray | None:
        """What the devices of this process say to the others [local devices, 2]; a lone process asks none."""
        if self._alone:
            return None
        votes = np.array([self.asked == kind for kind in self._KINDS], np.float32)
        return np.tile(votes, (parallel.local_count(), 1))

    def agreed(self, votes: Array | None) -> signal.Signals | None:
        """The signal to stop on after this step, the same on all processes.

        Args:
          votes: of an earlier step, whose result is there.
        """
        if self._alone:
            return self.asked
        if votes is None:
            return None
        means = np.asarray(parallel.unreplicate(votes)).reshape(-1, len(self._KINDS)).max(axis=0)
        return next((kind for kind, m in zip(self._KINDS, means, strict=True) if m > 0), None)

    def at_once(self, fn: Callable, *args) -> Any:
        """fn(*args), in which a signal raises `_Stop`; so does one that came before.

        Not under several processes, which take part in it together.
        """
        if not self._alone:
            return fn(*args)
        self._leave = True
        try:
            if self.asked:
                raise _Stop
            return fn(*args)
        finally:
            self._leave = False

    def _ask(self, signum, frame):
        self.asked = signal.Signals(signum)
        self._restore()
        if self._leave:
            raise _Stop

    def _restore(self):
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def __exit__(self, *exc):
        self._restore()
