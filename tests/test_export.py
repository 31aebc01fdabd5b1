"""What runs in a hot loop lowers for GPU and TPU: static shapes, no host callbacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from test_train import TINY

from score_jax import build, likelihood, run, train
from score_jax.model import bind

PLATFORMS = ["cuda", "tpu"]


@pytest.fixture(scope="module")
def experiment():
    return build.experiment(build.resolve(TINY))


def abstract_params(experiment):
    init = lambda key: experiment.model.init(key, experiment.data.shape)
    return jax.eval_shape(init, jax.random.key(0))


def lowered(fn, *args):
    """The exported program's text; every platform must be able to lower it."""
    text = export.export(jax.jit(fn), platforms=PLATFORMS)(*args).mlir_module()
    assert "callback" not in text
    return text


def test_the_train_step_lowers(experiment):
    data = experiment.data
    prepare = train.prepare(data.levels, True, True)
    step = train.make_train_step(experiment.loss, prepare, experiment.optimizer, (0.9, 0.99))
    state = jax.eval_shape(
        lambda key: train.init_state(key, experiment.model, data.shape, experiment.optimizer, 2),
        jax.random.key(0),
    )
    assert "convolution" in lowered(step, state, data.train, np.arange(8), jax.random.key(0))


@pytest.mark.parametrize("name", build.SECTIONS["sample"])
def test_every_sampler_lowers(experiment, name):
    draw = build.SECTIONS["sample"][name]()
    labels = jnp.arange(2, dtype=jnp.int32)

    def fn(params, keys, x):
        predict = bind(experiment.model, params)
        return draw(keys, experiment.model.sde(params), predict, x, labels)

    keys, x = jax.random.split(jax.random.key(0), 2), jnp.zeros((2, *experiment.data.shape))
    assert "while" in lowered(fn, abstract_params(experiment), keys, x)


@pytest.mark.parametrize("trace", likelihood.TRACES)
def test_the_likelihood_lowers(experiment, trace):
    experiment = experiment._replace(eval=experiment.eval._replace(trace=trace))
    x = jnp.zeros((2, *experiment.data.shape))
    keys, labels = jax.random.split(jax.random.key(0), 2), jnp.zeros(2, jnp.int32)
    assert "while" in lowered(run.ode(experiment), keys, abstract_params(experiment), x, labels)
