"""The training step and loop: devices, resuming, signals, failures."""

import json
import os
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_jax import build, coupling, evaluate, parallel, run, shapes, snapshots, train
from score_jax.checkpoint import Checkpoints
from score_jax.data.base import Split
from score_jax.model import Model

TINY = dict(
    seed=3,
    data=dict(name="digits"),
    sde=dict(name="vp"),
    net=dict(name="unet", channels=8, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.3),
    model=dict(class_conditional=True),
    loss=dict(name="denoising"),
    optim=dict(name="adam", lr=1e-3, warmup=4, decay="cosine"),
    train=dict(
        steps=10,
        batch_size=8,
        log_every=4,
        eval_every=5,
        sample_every=0,
        save_every=5,
        eval_images=16,
        ema=(0.9, 0.99),
        flip=True,
    ),
    sample=dict(name="ddim", n_steps=2),
    eval=dict(batch_size=64, elbo_times=2),
)


@pytest.fixture(scope="session")
def tiny():
    return build.experiment(build.resolve(TINY))


def fit(folder, experiment, **options):
    experiment = experiment._replace(train=experiment.train._replace(**options))
    folder.mkdir(exist_ok=True)
    checkpoints = run.checkpoints_of(folder, experiment)
    stopped = run.fit(folder, experiment, run.start_state(experiment, checkpoints), checkpoints)
    return stopped, run.start_state(experiment, checkpoints)


def assert_same_bytes(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="session")
def uninterrupted(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    # training never reads the test split
    hidden = tiny._replace(data=tiny.data._replace(test=Split(tiny.data.test.x[:0], None)))
    stopped, state = fit(folder, hidden)
    assert stopped is None and int(state.step) == 10
    return SimpleNamespace(folder=folder, state=state)


def test_a_stopped_and_resumed_run_is_the_uninterrupted_one_bitwise(tiny, uninterrupted, tmp_path):

    # stopped where nothing else saves, in the middle of a logging window
    stopped, state = fit_and_stop(tmp_path / "run", tiny, after=6)
    assert stopped == signal.SIGTERM and int(state.step) == 6
    # rows that a killed process left behind the last save must go
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 8, "loss": 1.0}) + "\n" + '{"step": 9, "lo')
    stopped, state = fit(tmp_path / "run", tiny)
    assert stopped is None
    assert_same_bytes(state, uninterrupted.state)
    metrics = [folder / "metrics.jsonl" for folder in (tmp_path / "run", uninterrupted.folder)]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()


def fit_and_stop(folder, experiment, after):
    """Sends this process SIGTERM while step `after` is taken."""
    original = train.batch_indices

    def interrupting(seed, step, n, batch_size):
        if step == after - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(seed, step, n, batch_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "batch_indices", interrupting)
        return fit(folder, experiment)


def test_logged_rows_are_means_of_the_steps_in_between(uninterrupted):
    rows = [json.loads(line) for line in (uninterrupted.folder / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [4, 5, 8, 10, 10]
    assert {"val_loss", "val_elbo"} < rows[1].keys()
    assert "seconds" not in rows[0]


def test_one_device_takes_the_step_of_four(tiny):
    """With dropout, labels, flips and dequantization on."""
    prepare = train.prepare(tiny.data.levels, tiny.train.flip, tiny.labels)
    arguments = (tiny.loss, prepare, tiny.optimizer, tiny.train.ema)
    state = jax.jit(
        lambda key: train.init_state(key, tiny.model, tiny.data.shape, tiny.optimizer, 2)
    )(jax.random.key(0))
    # away from the zero initialisation, where the last layer hides what comes before it
    state = state._replace(params=jax.tree.map(lambda p: p + 0.05, state.params))
    indices, key = np.arange(8) * 7, jax.random.key(1)

    four = parallel.train_step(train.make_train_step(*arguments, parallel.AXIS))
    replicated, metrics_four = four(
        parallel.replicate(state), parallel.replicate(tiny.data.train), parallel.shard(indices), key
    )
    resident = jax.tree.map(jnp.asarray, tiny.data.train)
    one = jax.jit(train.make_train_step(*arguments))
    state_one, metrics_one = one(state, resident, indices, key)

    assert parallel.count() == 4
    np.testing.assert_allclose(metrics_four["loss"][0], metrics_one["loss"], rtol=2e-6)
    np.testing.assert_allclose(metrics_four["grad_norm"][0], metrics_one["grad_norm"], rtol=2e-5)
    # the first moments are the clipped gradients times a constant: linear in them, unlike Adam's update
    moments = [
        optax.tree_utils.tree_get(s.opt_state, "mu")
        for s in (parallel.unreplicate(replicated), state_one)
    ]
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moments[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * scale), *moments)


def quadratic(broken=lambda params: 0.0):
    """A model of one parameter and its loss, for tests of the loop itself; broken from step 7 on."""
    model = Model(lambda key, shape: jnp.ones(()), None, None)

    def loss(key, params, loss_state, batch, step):
        value = jnp.mean(jnp.square(params - batch.x))
        return value + jax.lax.cond(step >= 6, broken, lambda p: 0.0, params), ({}, loss_state)

    return model, loss


def test_a_step_of_gradient_descent_and_its_averages_are_those_computed_by_hand():
    model, loss = quadratic()
    data = Split(np.array([[2.0], [4.0]], np.float32), None)
    step = train.make_train_step(
        loss, train.prepare(None, False, False), optax.sgd(0.1), (0.0, 0.5)
    )
    state = train.init_state(jax.random.key(0), model, (1,), optax.sgd(0.1), 2)
    state, metrics = step(state, data, np.array([0, 1]), jax.random.key(0))
    # loss ((1-2)^2 + (1-4)^2) / 2 = 5, gradient (-2 - 6) / 2 = -4
    assert float(metrics["loss"]) == 5.0 and float(metrics["grad_norm"]) == 4.0
    np.testing.assert_allclose(state.params, 1.4, rtol=1e-6)
    np.testing.assert_allclose(state.emas[0], 1.4, rtol=1e-6)
    # at step 0 the rate is limited to (1 + 0) / (10 + 0)
    np.testing.assert_allclose(state.emas[1], 0.1 * 1.0 + 0.9 * 1.4, rtol=1e-6)


def everything(axis_name=None, accumulate=1):
    """(options, data, init, step): all that is random on, averages of all kinds, and a loss with a state.

    Small images, and a model that is one image.
    """
    options = train.Options(
        steps=10,
        batch_size=16,
        log_every=4,
        save_every=6,
        ema=(0.9,),
        ema_profiles=(0.05, 0.1),
        snapshot_every=3,
    )
    random = np.random.default_rng(0)
    data = Split(
        random.integers(0, 9, (24, 4, 4, 1)).astype(np.uint8),
        random.integers(0, 3, 24).astype(np.int32),
    )
    model = Model(lambda key, shape: {"image": jnp.ones(shape)}, None, None)

    def loss(key, params, loss_state, batch, step):
        noisy = batch.x + batch.eps + shapes.like(batch.label, batch.x)
        told = shapes.like(jnp.sum(batch.augment, axis=1), noisy)
        dropout = jax.vmap(lambda key: jax.random.bernoulli(key, 0.7, (4, 4, 1)))(batch.keys)
        error = dropout * jnp.square(params["image"] - noisy) * (1 + told**2)
        seen = 0.5 * loss_state["seen"] + 0.5 * jnp.mean(error)
        return jnp.mean(error), ({}, {"seen": seen, "calls": loss_state["calls"] + 1})

    prepare = train.prepare(
        9,
        True,
        True,
        n_classes=3,
        label_dropout=0.5,
        augment=0.3,
        couple=coupling.optimal,
        axis_name=axis_name,
    )
    optimizer, nothing_seen = optax.adam(0.1), {"seen": jnp.ones(()), "calls": jnp.int32(0)}
    step = train.make_train_step(
        loss,
        prepare,
        optimizer,
        options.ema,
        axis_name,
        accumulate,
        ema_profiles=options.ema_profiles,
    )
    init = lambda key: train.init_state(key, model, (4, 4, 1), optimizer, 3, nothing_seen)
    return options, data, init, step


def test_one_device_takes_the_step_of_four_with_everything_on():
    """Two steps, the second from averages and a state of the loss that the first made."""
    _, data, init, step = everything()
    one, four = jax.jit(step), parallel.train_step(everything(parallel.AXIS)[3])
    key = jax.random.key(1)
    state = init(jax.random.key(0))
    replicated, shared = parallel.replicate(state), parallel.replicate(data)
    for start in (0, 5):
        indices = np.arange(start, start + 16)
        state, metrics = one(state, jax.tree.map(jnp.asarray, data), indices, key)
        replicated, metrics_4 = four(replicated, shared, parallel.shard(indices), key)
        np.testing.assert_allclose(metrics_4["loss"], np.full(4, metrics["loss"]), rtol=2e-6)
    found = parallel.unreplicate(replicated)
    for a, b in zip(found.emas, state.emas, strict=True):
        np.testing.assert_allclose(a["image"], b["image"], atol=1e-5)
    seen, calls = replicated.loss_state["seen"], replicated.loss_state["calls"]
    np.testing.assert_allclose(seen, np.full(4, state.loss_state["seen"]), rtol=2e-6)
    assert calls.dtype == jnp.int32 and calls.tolist() == [2] * 4


class KilledError(Exception):
    """Ends a run between two saves."""


def fit_with_everything(folder, kill_at=None):
    """Goes on from the newest checkpoint to the last step, and returns the newest state."""
    options, data, init, step = everything(parallel.AXIS, accumulate=2)
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints")

    def newest():
        saved, key = checkpoints.latest(), jax.random.key(0)
        if saved is None:
            return jax.jit(init)(key)
        return checkpoints.restore(saved, jax.eval_shape(init, key))

    def write(step, averages):
        if step == kill_at:
            raise KilledError
        snapshots.write(folder / "snapshots", step, options.ema_profiles, averages)

    train.fit(
        newest(),
        step,
        data,
        jax.random.key(1),
        0,
        options,
        checkpoints,
        run.RunLog(folder),
        validate=lambda params: {},
        draw=lambda params, step: None,
        snapshot=write,
    )
    return newest()


def test_a_killed_run_goes_on_to_the_same_state_and_snapshots_with_everything_on(tmp_path):
    state = fit_with_everything(tmp_path / "whole")
    # at 6 before the checkpoint that is due there too, then at 9 after it
    for step, latest in ((6, None), (9, 6)):
        with pytest.raises(KilledError):
            fit_with_everything(tmp_path / "run", kill_at=step)
        assert Checkpoints(tmp_path / "run" / "checkpoints").latest() == latest
    assert_same_bytes(fit_with_everything(tmp_path / "run"), state)
    files = [sorted((tmp_path / name / "snapshots").iterdir()) for name in ("whole", "run")]
    assert [path.name for path in files[0]] == [f"step_{i:07d}.npz" for i in (3, 6, 9, 10)]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]

    # the state of the loss went through the checkpoint, once a step whatever the number of parts
    assert int(state.loss_state["calls"]) == 10
    # and the snapshots are of the power functions, the narrower first
    for i, name in ((1, "power:0.05"), (2, "power:0.1")):
        params, residual = snapshots.load_posthoc(
            tmp_path / "run" / "snapshots", state.params, snapshots.parse(name)
        )
        assert residual < 1e-6
        np.testing.assert_allclose(params["image"], state.emas[i]["image"], rtol=1e-5, atol=1e-6)
    assert np.abs(state.emas[1]["image"] - state.emas[2]["image"]).max() > 0.01


KEY = jax.random.key(7)
TOY = dict(
    data=dict(name="toy2d", shape="gaussians", n=1000),
    sde=dict(name="vp"),
    net=dict(name="mlp", width=16, depth=2, dropout=0.3),
    model=dict(class_conditional=True),
    loss=dict(name="denoising"),
    optim=dict(name="adam"),
    sample=dict(name="ddim"),
)


def toy(**options):
    return build.experiment(build.resolve(TOY | dict(train=options)))


def gradient(experiment, parts=1, n=16):
    """(loss, (metrics, loss_state)) and the gradient at parameters away from zero, dropout on."""
    state = train.init_state(jax.random.key(0), experiment.model, (2,), experiment.optimizer, 0)
    params = jax.tree.map(lambda p: p + 0.05, state.params)
    data = jax.tree.map(jnp.asarray, experiment.data.train)
    keys = jax.random.split(jax.random.key(1), n)
    batch = train.prepare(None, False, True)(keys, jnp.arange(n) / n, data, jnp.arange(n))

    def counting(key, params, loss_state, batch, step):
        loss, (metrics, _) = experiment.loss(key, params, (), batch, step)
        return loss, (metrics | {"first": batch.position[0]}, loss_state + 1)

    fn = train.loss_and_grad(counting, parts)
    return jax.jit(fn)(jax.random.key(2), params, 0, batch, 0)


def relative_error(tree, exact):
    """Of all leaves together, in the Euclidean norm."""
    difference = jax.tree.map(lambda a, b: a - b, tree, exact)
    return float(optax.global_norm(difference) / optax.global_norm(exact))


def test_a_batch_in_parts_has_the_loss_and_gradient_of_the_whole():
    (loss, (metrics, count)), whole = gradient(toy())
    assert (float(metrics["first"]), int(count)) == (0.0, 1)
    (loss_4, (metrics, count)), parts = gradient(toy(), parts=4)
    np.testing.assert_allclose(loss_4, loss, rtol=1e-6)
    assert relative_error(parts, whole) < 1e-6
    # metrics are means over the parts, and so is the loss's state
    assert (float(metrics["first"]), float(count)) == (np.mean([0, 4, 8, 12]) / 16, 1.0)


def test_a_batch_in_parts_learns_the_density_of_times_of_the_whole():
    experiment = build.experiment(
        build.resolve(TOY | {"loss": dict(name="denoising", time_bins=5)})
    )
    state = train.init_state(jax.random.key(0), experiment.model, (2,), experiment.optimizer, 0)
    params = jax.tree.map(lambda p: p + 0.05, state.params)
    data, keys = jax.tree.map(jnp.asarray, experiment.data.train), jax.random.split(KEY, 16)
    batch = train.prepare(None, False, True)(keys, jnp.arange(16) / 16, data, jnp.arange(16))

    def after(parts):
        fn = jax.jit(train.loss_and_grad(experiment.loss, parts))
        return fn(KEY, params, experiment.loss_state, batch, 0)[0][1][1]

    np.testing.assert_allclose(after(4).counts, after(1).counts, rtol=1e-5)
    np.testing.assert_allclose(after(4).squares, after(1).squares, rtol=1e-4)


def test_a_run_of_several_steps_per_call_writes_the_rows_of_one_and_goes_on_like_it(tmp_path):
    """The second, stopped at the end of its third call, in the middle of a logging window."""
    every = dict(steps=20, batch_size=8, log_every=4, save_every=0, ema=(0.9,))
    model, loss = quadratic()
    random = np.random.default_rng(0).standard_normal((21, 3)).astype(np.float32)
    states = {}
    for k, stops in ((1, [6, 20]), (2, [6, 20])):
        experiment = toy(steps_per_call=k, **every)._replace(model=model, loss=loss)
        for stop in stops:
            experiment = experiment._replace(train=experiment.train._replace(steps=stop))
            checkpoints = run.checkpoints_of(tmp_path / str(k), experiment)
            (tmp_path / str(k)).mkdir(exist_ok=True)
            train_only(tmp_path / str(k), experiment, checkpoints, Split(random, None))
        states[k] = run.start_state(experiment, checkpoints)
    # a loop's body is another program for the compiler: it may round otherwise
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, states[1], states[2])
    one, two = (
        [json.loads(line) for line in (tmp_path / str(k) / "metrics.jsonl").open()] for k in (1, 2)
    )
    assert list(dict.fromkeys(row["step"] for row in one)) == [4, 6, 8, 12, 16, 20]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        close(list(a.values()), list(b.values()))


def test_recomputed_activations_give_the_same_gradient():
    assert relative_error(gradient(toy(remat=True))[1], gradient(toy())[1]) < 1e-6
    args = (toy(remat=True).loss, toy().model.init(jax.random.key(0), (2,)))
    assert "remat" in str(loss_jaxpr(*args)) and "remat" not in str(loss_jaxpr(toy().loss, args[1]))


def test_bfloat16_keeps_float32_parameters_loss_and_gradient_within_its_rounding():
    (loss, _), exact = gradient(toy())
    (rounded, _), found = gradient(toy(compute="bfloat16"))
    assert rounded.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(rounded, loss, rtol=1e-2)
    # 8 bits: 2^-9 in each of the dozen roundings on the way; and it did round
    assert 2.0**-12 < relative_error(found, exact) < 12 * 2.0**-9
    # what is evaluated is float32
    params = toy().model.init(jax.random.key(0), (2,))
    args = (params, jnp.ones((1, 2)), jnp.full(1, 0.5), jnp.zeros(1, jnp.int32))
    assert "bf16" not in str(jax.make_jaxpr(toy(compute="bfloat16").model.predict)(*args))


def loss_jaxpr(loss, params):
    keys = jax.random.split(jax.random.key(1), 1)
    batch = train.Batch(jnp.ones((1, 2)), jnp.zeros(1, jnp.int32), keys, jnp.zeros(1))
    return jax.make_jaxpr(jax.grad(lambda p: loss(keys[0], p, (), batch, 0)[0]))(params)


def test_a_streamed_run_is_the_resident_one_bitwise_also_when_resumed(tmp_path):
    """Data on the disk, in batches that straddle epochs, over four devices."""
    x = np.random.default_rng(0).standard_normal((21, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    states = {}
    for name, data, options, stops in [
        ("resident", x, {}, [10]),
        ("streamed", mapped, dict(resident_gib=0.0, workers=2), [4, 10]),
    ]:
        experiment = toy(batch_size=8, ema=(0.9,), save_every=4, **options)
        model, loss = quadratic()
        experiment = experiment._replace(model=model, loss=loss)
        for stop in stops:
            experiment = experiment._replace(train=experiment.train._replace(steps=stop))
            checkpoints = run.checkpoints_of(tmp_path / name, experiment)
            (tmp_path / name).mkdir(exist_ok=True)
            train_only(tmp_path / name, experiment, checkpoints, Split(data, None))
        states[name] = run.start_state(experiment, checkpoints)
    assert int(states["streamed"].step) == 10
    assert_same_bytes(states["streamed"], states["resident"])


@pytest.mark.parametrize(
    ("broken", "name"),
    [(lambda p: 0 * p + jnp.nan, "loss is nan"), (lambda p: jnp.sqrt(0 * p), "grad_norm is nan")],
    ids=["loss", "gradient of a finite loss"],
)
def test_what_is_not_finite_stops_the_run_naming_the_step_and_the_last_checkpoint(
    tiny, tmp_path, broken, name
):
    model, loss = quadratic(broken)
    broken = tiny._replace(model=model, loss=loss, validation_loss=loss, labels=False)
    checkpoints = run.checkpoints_of(tmp_path, broken)
    with pytest.raises(
        FloatingPointError, match=f"{name} at step 7; the last good checkpoint is of step 5"
    ):
        train_only(tmp_path, broken, checkpoints)
    assert checkpoints.latest() == 5


def train_only(folder, experiment, checkpoints, data=None):
    """The loop without validation and pictures."""
    step = train.make_train_step(
        experiment.loss,
        train.prepare(None, False, False),
        experiment.optimizer,
        experiment.train.ema,
        parallel.AXIS,
    )
    return train.fit(
        run.start_state(experiment, checkpoints),
        step,
        Split(np.ones((16, 1), np.float32), None) if data is None else data,
        jax.random.key(0),
        0,
        experiment.train,
        checkpoints,
        run.RunLog(folder),
        validate=lambda params: {},
        draw=lambda params, step: None,
    )


def test_a_checkpoint_of_another_network_is_refused_by_name(tiny, uninterrupted):
    wider = TINY | {"net": TINY["net"] | {"channels": 16}}
    other = build.experiment(build.resolve(wider))
    checkpoints = run.checkpoints_of(uninterrupted.folder, other)
    with pytest.raises(ValueError, match="does not fit this config: .*conv_in.*use the config"):
        run.start_state(other, checkpoints)


def test_evaluation_counts_every_example_once_whatever_the_batch_size(tiny, uninterrupted):
    params = uninterrupted.state.averaged()
    split = Split(tiny.data.test.x[:13], tiny.data.test.label[:13])
    values = []
    for batch_size in (4, 13):
        experiment = tiny._replace(
            eval=tiny.eval._replace(batch_size=batch_size, n_steps=2, solver="heun")
        )
        per_example = run._per_example(experiment, run.ode(experiment))
        batches = per_example(jax.random.key(5), params, split)
        values.append(evaluate.together(batches)["bpd"])
    assert values[0].shape == (13,)
    np.testing.assert_allclose(values[0], values[1], atol=1e-5)
    assert len(np.unique(values[0])) == 13


def test_samples_are_keyed_one_by_one(tiny, uninterrupted):
    params = uninterrupted.state.averaged()
    # across the borders of batches
    draw = run.draw(tiny._replace(eval=tiny.eval._replace(batch_size=4)))
    many, few = draw(params, 6), draw(params, 3)
    np.testing.assert_array_equal(many["x"][:3], few["x"])
    np.testing.assert_array_equal(many["label"], np.arange(6))


def test_the_step_compiles_once():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **kwargs: (
            compiled.append(event) if "backend_compile" in event else None
        )
    )
    model, loss = quadratic()
    data = parallel.replicate(Split(np.ones((16, 1), np.float32), None))
    step = parallel.train_step(
        train.make_train_step(
            loss, train.prepare(None, False, False), optax.adam(0.1), (0.9,), parallel.AXIS
        )
    )
    state = train.init_state(jax.random.key(0), model, (1,), optax.adam(0.1), 1)
    state, key, indices = parallel.replicate(state), jax.random.key(0), parallel.shard(np.arange(4))
    state, _ = step(state, data, indices, key)
    assert compiled
    compiled.clear()
    for _ in range(2):
        state, _ = step(state, data, indices, key)
    assert not compiled
