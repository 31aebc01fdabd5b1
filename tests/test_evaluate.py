"""Evaluation: estimates by hand, bits and losses of Gaussian data in closed form, labels down to the prediction."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, Gaussian, assert_mean, coefficients
from test_elbo import closed_form
from test_losses import minimum_under_likelihood_weighting, perfect

from score_jax import build, evaluate, exact, grids, losses, run, sampling
from score_jax import sde as sdes
from score_jax.data.base import Split
from score_jax.likelihood import log_likelihood
from score_jax.model import Model, bind

KEY = jax.random.key(0)


# estimates


def test_an_estimate_is_the_mean_and_its_standard_error():
    """Of 1, 2, 3, 6: deviations -2, -1, 0, 3, variance 14 / 3, standard error sqrt(14 / 3 / 4)."""
    found = evaluate.estimate(np.array([1.0, 2.0, 3.0, 6.0], np.float32))
    assert (found.mean, found.n) == (3.0, 4)
    np.testing.assert_allclose(found.stderr, math.sqrt(14 / 12), rtol=1e-6)


def test_one_value_has_no_standard_error():
    found = evaluate.estimate(np.array([2.5], np.float32))
    assert (found.mean, found.n) == (2.5, 1) and math.isnan(found.stderr)


def test_a_mean_is_taken_in_float64():
    """2^24 + 1 is no float32."""
    assert evaluate.estimate(np.array([2**24, 1, 1, 1], np.float32)).mean == (2**24 + 3) / 4


# per example


def given(keys, params, x, label):
    """The arguments themselves."""
    rows = {"x": x, "u": jax.vmap(jax.random.uniform)(keys), "scaled": params * x[:, 0]}
    return rows if label is None else rows | {"label": label}


@pytest.mark.parametrize("batch_size", [4, 8, 100])
def test_every_example_comes_once_in_order_with_its_label(batch_size):
    n = 13
    x, label = np.arange(2 * n, dtype=np.float32).reshape(n, 2), np.arange(n, dtype=np.int32) * 3
    run = evaluate.per_example(given, None, batch_size=batch_size, labels=True)
    found = run(KEY, jnp.array(2.0), Split(x, label))
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_array_equal(found["label"], label)
    np.testing.assert_array_equal(found["scaled"], 2 * x[:, 0])
    without = evaluate.per_example(given, None, batch_size=batch_size, labels=False)
    assert "label" not in without(KEY, jnp.array(2.0), Split(x, label))


def test_levels_are_dequantized_into_model_space_by_each_examples_own_key():
    """Level k of 8 becomes a point of [k / 4 - 1, (k + 1) / 4 - 1), whatever the batch size."""
    levels = np.tile(np.arange(8, dtype=np.uint8), (12, 1))
    runs = [evaluate.per_example(given, 8, batch_size=b, labels=False) for b in (4, 12)]
    found, other = (run(KEY, jnp.array(1.0), Split(levels, None)) for run in runs)
    np.testing.assert_array_equal(np.floor((found["x"].astype(float) + 1) * 4), levels)
    for name in ("x", "u"):
        np.testing.assert_array_equal(found[name], other[name])
    assert len(np.unique(found["x"][:, 0])) == len(np.unique(found["u"])) == 12


# bits and losses


def of_gaussian(fn, x):
    """fn's values for points x [n, 2]."""
    run = evaluate.per_example(fn, None, batch_size=2000, labels=False)
    return run(KEY, (), Split(x.astype(np.float32), None))


def test_the_mean_of_the_loss_values_is_the_losss_minimum():
    sde = sdes.vp()
    x = np.random.default_rng(0).multivariate_normal(GAUSSIAN.mean, GAUSSIAN.covariance, 8000)
    found = of_gaussian(evaluate.loss_values(losses.denoising(perfect(sde))), x)["loss"]
    assert_mean(found, minimum_under_likelihood_weighting(sde))


def test_a_loss_value_is_of_one_example_at_a_time_of_its_own_with_its_label():
    """2000 times, uniform: mean 1/2 and variance 1/12 within 4 standard errors."""

    def loss(key, params, loss_state, batch, step):
        u = jnp.mod(jax.random.uniform(key) + batch.position, 1.0)
        return jnp.sum(u + batch.x[:, 0] + 10 * batch.label) + params, ({}, loss_state)

    n = 2000
    x, label = np.arange(n, dtype=np.float32)[:, None] % 7, np.arange(n, dtype=np.int32) % 5
    run = evaluate.per_example(evaluate.loss_values(loss), None, batch_size=500, labels=True)
    found = run(KEY, jnp.array(64.0), Split(x, label))["loss"].astype(float)
    u = found - 64 - x[:, 0] - 10 * label
    assert len(np.unique(u)) > 0.9 * n  # to the digits that the sum leaves
    assert_mean(np.stack([u, (u - 0.5) ** 2], 1), [1 / 2, 1 / 12])


def test_a_losss_time_is_drawn_apart_from_its_noise():
    """`losses.denoising` draws noise and dropout from streams 0 and 1 of the example's key."""

    def loss(key, params, loss_state, batch, step):
        keys = [key, *batch.keys, *(jax.random.fold_in(batch.keys[0], i) for i in (0, 1))]
        found = jnp.stack([jax.random.uniform(k) for k in keys])
        return jnp.min(jnp.abs(found[1:] - found[0])), ({}, loss_state)

    assert np.all(of_gaussian(evaluate.loss_values(loss), np.zeros((8, 1)))["loss"] > 0)


POINT = np.array([2.0, -1.5])


def test_the_elbo_of_a_point_is_its_closed_form_in_bits_per_dimension():
    """From nats of two dimensions: divided by 2 log 2."""
    sde = sdes.vp()
    found = of_gaussian(evaluate.elbo_bits(perfect(sde), None, 4), np.tile(POINT, (4000, 1)))
    true = sum(closed_form(sde, POINT[None]))[0] / (2 * math.log(2))
    assert_mean(found["elbo"], true)
    assert true > 3  # far enough from 0 for a factor to show


def test_bits_of_levels_are_those_of_the_density_plus_the_bits_of_a_step():
    """A step of 8 levels on [-1, 1] is 1/4 wide: minus log2 of it, 2 bits, are due beside those of the density."""
    model, x = perfect(sdes.vp()), jnp.asarray(POINT, jnp.float32)[None]
    keys = jax.random.split(KEY, 1)

    def likelihood(keys, sde, predict, x, label):
        options = dict(grid=grids.log_snr(sde), solver="heun", n_steps=4)
        return log_likelihood(keys, sde, predict, x, label, **options)

    for make, name in (
        (lambda levels: evaluate.elbo_bits(model, levels, 2), "elbo"),
        (lambda levels: evaluate.ode_bits(model, likelihood, levels), "bpd"),
    ):
        density, levels = (jax.jit(make(n))(keys, (), x, None)[name] for n in (None, 8))
        np.testing.assert_allclose(levels - density, 2.0, rtol=1e-5)


# labels


MEANS, STD = np.array([[-2.0, 1.0], [0.5, 2.0], [3.0, -1.0]]), 0.01
LABELS = np.array([2, 0, 1, 1, 2, 0], np.int32)


def of_class(sde, std):
    """The perfect model of N(MEANS[label], std^2 I)."""

    def predict(params, x, t, label=None, *, keys=None):
        assert label is not None and label.shape == x.shape[:1]
        noised = exact.gaussian(jnp.asarray(MEANS, jnp.float32)[label], std**2 * np.eye(2))
        return exact.predictor(sde, noised)(x, t)

    return Model(lambda key, shape: (), lambda params: sde, predict)


@pytest.mark.parametrize(
    "draw",
    [
        sampling.ddim(n_steps=30),
        sampling.ddim(n_steps=30, eta=1.0),
        sampling.euler_maruyama(n_steps=200),
        sampling.probability_flow(),
        sampling.probability_flow(solver="heun", n_steps=30),
        sampling.reverse_sde(),
    ],
    ids=["ddim", "ancestral", "euler_maruyama", "adaptive", "heun", "reverse_sde"],
)
def test_a_sample_is_of_its_own_class(draw):
    """Within 6 standard deviations of 0.01 of a mean that lies 2 or more from the others."""
    sde = sdes.vp(t_min=1e-4)
    model = of_class(sde, STD)

    @jax.jit
    def run(keys, label):
        x = sampling.prior(keys, sde, (2,))
        return draw(jax.random.split(KEY, len(keys)), sde, bind(model, ()), x, label)

    found = run(jax.random.split(jax.random.key(1), len(LABELS)), jnp.asarray(LABELS))
    assert np.all(found.ok)
    np.testing.assert_allclose(found.x, MEANS[LABELS], rtol=0, atol=6 * STD)


def test_the_likelihood_of_an_example_is_that_under_its_own_class():
    """Through `per_example` and `ode_bits`: at t_min, with the standard prior for the true one at t_max."""
    sde, std = sdes.vp(), 0.5
    model = of_class(sde, std)

    def likelihood(keys, sde, predict, x, label):
        options = dict(grid=grids.log_snr(sde), trace="exact", rtol=1e-6, atol=1e-6)
        return log_likelihood(keys, sde, predict, x, label, **options)

    x = MEANS[LABELS] + np.array([0.3, -0.6])
    run = evaluate.per_example(
        evaluate.ode_bits(model, likelihood, None), None, batch_size=4, labels=True
    )
    found = run(KEY, (), Split(x.astype(np.float32), LABELS))
    at_min, at_max = coefficients(sde, [sde.t_min, sde.t_max])

    def logp(x, mean):
        data = Gaussian(mean, std**2 * np.eye(2))
        latent = data.flow(x, at_min, at_max)
        standard = -0.5 * np.sum((latent / at_max[1]) ** 2) - np.log(2 * np.pi * at_max[1] ** 2)
        return data.logp(x, at_min) + standard - data.logp(latent, at_max)

    true = [logp(x, MEANS[label]) for x, label in zip(x, LABELS, strict=True)]
    assert np.all(found["ok"])
    np.testing.assert_allclose(found["bpd"], -np.array(true) / (2 * np.log(2)), atol=2e-4)


def test_the_elbo_of_an_example_is_that_under_its_own_class():
    """Another class would cost |difference of the means|^2 / (2 std^2) nats, 8 at the least."""
    run = evaluate.per_example(
        evaluate.elbo_bits(of_class(sdes.vp(), 0.5), None, 16), None, batch_size=8, labels=True
    )
    labels = np.tile(LABELS, 50)
    found = run(KEY, (), Split(MEANS[labels].astype(np.float32), labels))["elbo"]
    # log2(2 pi std^2) / 2 at the mean; the ends leave 2e-4, and the standard error is 1e-2
    assert_mean(found, 0.5 * math.log2(2 * math.pi * 0.25))


def test_the_exact_density_of_the_data_is_reported_beside_the_models(tmp_path):
    config = dict(
        data=dict(name="toy2d", shape="gaussians", n=10_000),
        sde=dict(name="vp"),
        net=dict(name="mlp", width=8, depth=1),
        loss=dict(name="denoising"),
        optim=dict(name="adam"),
        sample=dict(name="ddim"),
        eval=dict(solver="heun", n_steps=1, elbo_times=1, batch_size=1000),
    )
    experiment = build.experiment(build.resolve(config))
    params = run.start_state(experiment, run.checkpoints_of(tmp_path, experiment)).params
    found = run.bits_per_dim(experiment, params, experiment.data.test)["exact"]
    # eight components of std 0.1 that hardly overlap: log 8 and a Gaussian's entropy
    entropy = math.log(8) + math.log(2 * math.pi * math.e * 0.1**2)
    assert abs(found["mean"] - entropy / (2 * math.log(2))) < 4 * found["stderr"]
    assert found["stderr"] < 0.05 and found["n"] == 1000
