"""Devices: what they exchange, and that their number and the steps in a call change nothing."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax import build, parallel, run, train

TOY = dict(
    data=dict(name="toy2d", shape="gaussians", n=1000),
    sde=dict(name="vp"),
    net=dict(name="mlp", width=16, depth=2, dropout=0.3),
    loss=dict(name="denoising"),
    optim=dict(name="adam", lr=1e-2, warmup=2),
    sample=dict(name="ddim"),
)
COLLECTIVES = "all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute"


def toy(**sections):
    return build.experiment(build.resolve(TOY | dict(train=dict(ema=(0.9,))) | sections))


def first_state(experiment):
    options, loss_state = experiment.train, experiment.loss_state
    return train.init_state(
        jax.random.key(0),
        experiment.model,
        (2,),
        experiment.optimizer,
        len(options.ema),
        loss_state,
    )


def arguments(experiment, indices=None):
    resident = parallel.replicate(experiment.data.train)
    indices = parallel.shard(np.arange(16)) if indices is None else indices
    return parallel.replicate(first_state(experiment)), resident, indices, jax.random.key(1)


def collectives(experiment):
    """How many of each kind there are: in the program, and as it is compiled."""
    mapped = jax.pmap(
        run.train_step(experiment, parallel.AXIS), axis_name=parallel.AXIS, in_axes=(0, 0, 0, None)
    )
    lowered = mapped.lower(*arguments(experiment))
    written = re.findall(r'"?stablehlo\.(\w+)"?\(', lowered.as_text())
    compiled = re.findall(r" ([a-z-]+?)(?:-start)?\(", lowered.compile().as_text())
    return [
        {kind: n for kind in COLLECTIVES if (n := names.count(kind))}
        for names in ([name.replace("_", "-") for name in written], compiled)
    ]


def test_a_training_step_has_one_all_reduce_whatever_the_number_of_parameters_and_of_metrics():
    """In the program, whose many small arrays not every compiler would join."""
    # with a state of the loss, and its metrics
    adaptive = toy(loss=dict(name="denoising", time_bins=8))
    assert len(jax.tree.leaves(first_state(adaptive).loss_state)) > 0
    for experiment in (toy(), adaptive):
        assert collectives(experiment) == [{"all-reduce": 1}] * 2


def test_only_coupling_gathers_examples_and_their_noise():
    coupled = toy(
        train=dict(ema=(0.9,), coupling="optimal"),
        sde=dict(name="linear"),
        loss=dict(name="flow_matching"),
        model=dict(output="velocity"),
    )
    written, _ = collectives(coupled)
    assert written == {"all-reduce": 1, "all-gather": 2}


def test_the_mean_is_that_of_each_leaf_and_of_its_kind():
    tree = {
        "a": np.arange(8, dtype=np.float32).reshape(4, 2),
        "b": (np.array([1, 2, 3, 4], np.int32), np.ones((4, 2, 3), jnp.bfloat16)),
        "none": None,
    }
    found = jax.pmap(lambda t: parallel.mean(t, parallel.AXIS), axis_name=parallel.AXIS)(tree)
    np.testing.assert_array_equal(found["a"], np.tile([3.0, 4.0], (4, 1)))
    np.testing.assert_array_equal(found["b"][0], np.full(4, 2.5))
    np.testing.assert_array_equal(found["b"][1], np.ones((4, 2, 3)))
    kinds = [leaf.dtype for leaf in jax.tree.leaves(found)]
    assert kinds == [jnp.float32, jnp.float32, jnp.bfloat16]
    assert parallel.mean(tree, None) is tree


@pytest.mark.parametrize("axis", [0, 1])
def test_a_shard_holds_consecutive_examples_of_each_step(axis):
    steps = np.stack([np.arange(8), np.arange(8) + 100])
    if axis == 0:
        np.testing.assert_array_equal(parallel.shard(steps[0]), np.arange(8).reshape(4, 2))
    else:
        found = parallel.shard(steps, axis=1)
        assert found.shape == (4, 2, 2)
        np.testing.assert_array_equal(found[1], [[2, 3], [102, 103]])


def test_each_process_takes_its_own_share_of_a_batch_and_together_they_take_all(monkeypatch):
    assert parallel.rows(8) == slice(0, 8)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    parts = []
    for process in range(4):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(np.arange(24)[parallel.rows(24)])
    assert [len(part) for part in parts] == [6] * 4
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(24))


def test_several_steps_in_one_call_are_the_steps_of_several_calls():
    """Dropout and a warm-up on: the randomness and the learning rate of each step are its own.

    Up to the rounding of two programs.
    """
    experiment = toy()
    step = run.train_step(experiment, parallel.AXIS)
    batches = np.arange(48).reshape(3, 16)
    one, three = parallel.train_step(step), parallel.train_step(step, 3)
    state, resident, _, key = arguments(experiment)
    rows = []
    for batch in batches:
        state, metrics = one(state, resident, parallel.shard(batch), key)
        rows.append(metrics)
    together, metrics = three(*arguments(experiment, parallel.shard(batches, axis=1)))
    # Adam divides gradients by their size, also small ones; a step moves by 1e-3
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), together, state)
    assert metrics["loss"].shape == (4, 3)
    for name in metrics:
        each = np.stack([r[name] for r in rows], axis=1)
        np.testing.assert_allclose(metrics[name], each, rtol=1e-5)
    assert len(np.unique(metrics["loss"][0])) == 3
