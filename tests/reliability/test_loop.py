"""The loop when a signal stops it and when a step is not finite: on one parameter, whose path is known."""

import json
import os
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_jax import parallel, train
from score_jax.checkpoint import Checkpoints
from score_jax.data.base import Split
from score_jax.data.order import batch_indices
from score_jax.model import Model
from score_jax.runlog import RunLog

DATA = Split(np.full((16, 1), 3.0, np.float32), None)
MODEL = Model(lambda key, shape: jnp.ones(()), None, None)
PREPARE = train.prepare(None, False, False)
SGD = optax.chain(optax.sgd(0.1), optax.scale_by_schedule(lambda count: 1.0))  # it counts


def loss(broken):
    """(params - x)^2, not finite in the steps `broken`; its state counts the steps."""
    at = jnp.asarray(broken, int) - 1

    def fn(key, params, loss_state, batch, step):
        value = jnp.mean(jnp.square(params - batch.x))
        is_bad = jnp.isin(step, at)
        value += jax.lax.cond(is_bad, lambda p: 0 * p + jnp.nan, lambda p: 0 * p, params)
        return value, ({}, loss_state + 1.0)

    return fn


def fit(folder, *, broken=(), validate=lambda params: {"val_loss": 0.5}, draw=None, **options):
    """Trains a folder's run from its newest checkpoint; the signal, the state, and what was drawn."""
    defaults = dict(steps=10, batch_size=4, log_every=4, eval_every=5, sample_every=5, save_every=5)
    options = train.Options(**defaults | dict(ema=(0.5,)) | options)
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", options.keep)
    key = jax.random.key(0)
    state = train.init_state(key, MODEL, (1,), SGD, 1, loss_state=jnp.zeros(()))
    if checkpoints.latest() is not None:
        state = checkpoints.restore(checkpoints.latest(), state)
    step = train.make_train_step(
        loss(broken), PREPARE, SGD, (0.5,), parallel.AXIS, skip_broken=options.skip_nan > 0
    )
    drawn = []
    stopped = train.fit(
        state,
        step,
        DATA,
        key,
        0,
        options,
        checkpoints,
        RunLog(folder),
        validate=validate,
        draw=draw or (lambda params, at: drawn.append(at)),
    )
    newest = checkpoints.latest()
    return SimpleNamespace(
        stopped=stopped,
        state=None if newest is None else checkpoints.restore(newest, state),
        drawn=drawn,
        owed=checkpoints.notes(newest or 0).get("owed"),
    )


def assert_same(folder, other, a, b):
    jax.tree.map(np.testing.assert_array_equal, a.state, b.state)
    for name in ("metrics.jsonl", "skipped.jsonl"):
        paths = [path / name for path in (folder, other)]
        assert paths[0].exists() == paths[1].exists()
        assert not paths[0].exists() or paths[0].read_bytes() == paths[1].read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = fit(folder)
    assert result.stopped is None and result.drawn == [5, 10] and result.owed == []
    return SimpleNamespace(folder=folder, result=result)


def asking(signum, then):
    """A function that sends this process a signal and then goes on, if it is let."""

    def fn(*args):
        os.kill(os.getpid(), signum)
        return then(*args)

    return fn


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [5, 10])
def test_a_signal_in_a_step_saves_before_what_is_due_then_which_the_resumed_run_does_first(
    whole, tmp_path, monkeypatch, step, signum
):
    original = train.batch_indices
    asked = lambda *args: (
        asking(signum, original)(*args) if args[1] == step - 1 else original(*args)
    )
    never = lambda *args: pytest.fail("the grace period is for the save") if step == 5 else {}
    with monkeypatch.context() as patch:
        patch.setattr(train, "batch_indices", asked)
        done = []  # up to the signal
        validate = lambda params: done.append("validation") or {"val_loss": 0.5}
        result = fit(tmp_path / "run", validate=validate if step == 10 else never)
    assert result.stopped == signum and int(result.state.step) == step
    assert result.owed == ["validation", "picture"] and len(done) == (step == 10)
    again = fit(tmp_path / "run")
    assert again.stopped is None and again.drawn == [5, 10][step == 10 :] and again.owed == []
    assert_same(tmp_path / "run", whole.folder, again, whole.result)


@pytest.mark.parametrize("step", [5, 10])
@pytest.mark.parametrize("what", ["validation", "picture"])
def test_a_signal_in_a_validation_or_a_picture_ends_it_and_saves(whole, tmp_path, what, step):
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == step // 5:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("goes on")
        return {"val_loss": 0.5}

    option = {"validate" if what == "validation" else "draw": interrupted}
    result = fit(tmp_path / "run", save_every=0, **option)
    assert result.stopped == signal.SIGTERM and int(result.state.step) == step
    assert result.owed == ["validation", "picture"][what == "picture" :]
    again = fit(tmp_path / "run")
    assert again.stopped is None and again.drawn[-1] == 10 and again.owed == []
    assert_same(tmp_path / "run", whole.folder, again, whole.result)


def test_a_resumed_run_that_is_stopped_in_what_it_owes_still_owes_it(whole, tmp_path):
    stopping = asking(signal.SIGTERM, lambda *args: pytest.fail("goes on"))
    for _ in range(3):
        result = fit(tmp_path / "run", draw=stopping)
        assert int(result.state.step) == 5 and "picture" in result.owed
    assert_same(tmp_path / "run", whole.folder, fit(tmp_path / "run"), whole.result)


def test_a_signal_between_a_validation_and_a_picture_leaves_the_picture(
    whole, tmp_path, monkeypatch
):
    original = RunLog.validation

    def validation(self, *args):
        original(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "validation", validation)
        result = fit(tmp_path / "run", draw=lambda *args: pytest.fail("draws"))
    assert int(result.state.step) == 5 and result.owed == ["picture"]
    assert_same(tmp_path / "run", whole.folder, fit(tmp_path / "run"), whole.result)


def test_a_row_that_a_resumed_run_wrote_before_it_was_killed_is_not_written_twice(whole, tmp_path):
    """It is killed in the picture, after the validation that it owed."""

    class KillError(Exception):
        pass

    def killed(*args):
        raise KillError

    fit(tmp_path / "run", validate=asking(signal.SIGTERM, None))
    with pytest.raises(KillError):
        fit(tmp_path / "run", draw=killed)
    assert_same(tmp_path / "run", whole.folder, fit(tmp_path / "run"), whole.result)


def test_a_step_that_is_not_finite_is_skipped_and_leaves_all_but_the_step_as_it_was(tmp_path):
    """A step of the others shrinks the distance to 3 to 0.8 of it."""
    result = fit(tmp_path / "run", broken=(3, 9), skip_nan=2)
    assert result.stopped is None
    params, ema = 1.0, 1.0
    for step in (0, 1, 3, 4, 5, 6, 7, 9):
        params = 3 + 0.8 * (params - 3)
        rate = min(0.5, (1 + step) / (10 + step))
        ema = rate * ema + (1 - rate) * params
    state = result.state
    assert int(state.step) == 10 and float(state.loss_state) == 8
    np.testing.assert_allclose([state.params, state.emas[0]], [params, ema], rtol=1e-5)
    assert int(optax.tree_utils.tree_get(state.opt_state, "count")) == 8
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").open()]
    assert rows == [
        {"step": at, "why": "loss is nan", "indices": batch_indices(0, at - 1, 16, 4).tolist()}
        for at in (3, 9)
    ]
    # means are over what was not skipped: steps 1, 2 and 4, at distances 2, 1.6 and 1.28
    first = json.loads((tmp_path / "run" / "metrics.jsonl").open().readline())
    assert first["loss"] == pytest.approx((2**2 + 1.6**2 + 1.28**2) / 3)


def test_one_more_than_may_be_skipped_stops_the_run_also_after_a_resume(tmp_path):
    message = (
        "loss is nan at step 9; the last good checkpoint is of step 5 in .*; lower config.optim"
    )
    for _ in range(2):  # the second process knows of step 3
        with pytest.raises(FloatingPointError, match=message):
            fit(tmp_path / "run", broken=(3, 9), skip_nan=1)
    with pytest.raises(FloatingPointError, match="loss is nan at step 3; no checkpoint was saved"):
        fit(tmp_path / "none", broken=(3, 9))


def test_a_window_of_skipped_steps_only_has_no_row(tmp_path):
    fit(tmp_path / "run", broken=(1, 2, 3, 4), skip_nan=4)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "loss" in row] == [8, 10]


def test_a_run_that_skips_nothing_has_the_same_bytes_with_and_without_leave_to(whole, tmp_path):
    assert_same(tmp_path / "run", whole.folder, fit(tmp_path / "run", skip_nan=3), whole.result)
