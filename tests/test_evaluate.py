"""Evaluation: estimates by hand, bits and losses of Gaussian data in closed form, labels down to the prediction."""

import json
import math
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, Gaussian, assert_mean, coefficients
from test_elbo import closed_form
from test_exact import LEVELS, boxes
from test_exact import images as categorical
from test_losses import minimum_under_likelihood_weighting, perfect

from score_jax import (
    bits,
    build,
    dequantize,
    evaluate,
    exact,
    grids,
    losses,
    parallel,
    run,
    sampling,
    shapes,
)
from score_jax import sde as sdes
from score_jax.data.base import Split, take, to_model
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


def given(keys, params, x, label, streams):
    """The arguments themselves."""
    noise, rest = streams
    rows = {"x": x, "u": jax.vmap(jax.random.uniform)(keys), "scaled": params * x[:, 0]}
    rows |= {"noise": noise, "rest": rest}
    return rows if label is None else rows | {"label": label}


N = 13
POINTS = Split(np.arange(2 * N, dtype=np.float32).reshape(N, 2), np.arange(N, dtype=np.int32) * 3)


@pytest.mark.parametrize("batch_size", [4, 7, 100])
def test_every_example_comes_once_in_order_with_its_label(batch_size):
    run = evaluate.per_example(given, batch_size=batch_size, labels=True)
    batches = list(run(KEY, jnp.array(2.0), POINTS))
    assert len(batches) == math.ceil(N / batch_size)
    found = evaluate.together(batches)
    np.testing.assert_array_equal(found["x"], POINTS.x)
    np.testing.assert_array_equal(found["label"], POINTS.label)
    np.testing.assert_array_equal(found["scaled"], 2 * POINTS.x[:, 0])
    without = evaluate.per_example(given, batch_size=batch_size, labels=False)
    assert "label" not in evaluate.together(without(KEY, jnp.array(2.0), POINTS))


@pytest.mark.parametrize("start", [1, 6, 7, 12])
def test_from_a_later_start_come_the_examples_that_are_left(start):
    run = evaluate.per_example(given, batch_size=7, labels=True)
    whole = evaluate.together(run(KEY, jnp.array(2.0), POINTS))
    rest = evaluate.together(run(KEY, jnp.array(2.0), POINTS, start=start))
    for name, values in whole.items():
        np.testing.assert_array_equal(rest[name], values[start:])


def test_a_part_of_the_examples_comes_with_the_keys_of_the_whole_and_streams_of_its_own():
    run = evaluate.per_example(given, batch_size=7, labels=True)
    whole = evaluate.together(run(KEY, jnp.array(2.0), POINTS))
    index, noise = np.array([3, 3, 11]), np.array([5, 6, 7])
    part = evaluate.together(run(KEY, jnp.array(2.0), POINTS, index, (noise, 1)))
    for name in ("x", "u", "label", "scaled"):
        np.testing.assert_array_equal(part[name], whole[name][index])
    np.testing.assert_array_equal(part["noise"], noise)
    np.testing.assert_array_equal(part["rest"], [1, 1, 1])
    assert (whole["noise"][0], whole["rest"][0]) == evaluate.STREAMS


def test_draws_of_the_same_example_share_no_stream():
    streams = [stream for draw in range(3) for stream in evaluate.streams(draw)]
    assert len(set(streams)) == 6 and evaluate.streams(0) == evaluate.STREAMS


def test_levels_are_dequantized_into_model_space_by_each_examples_own_key():
    """Level k of 8 becomes a point of [k / 4 - 1, (k + 1) / 4 - 1), whatever the batch size."""
    levels = np.tile(np.arange(8, dtype=np.uint8), (12, 1))

    def points(batch_size):
        fn = evaluate.loss_values(lambda *args: (args[3].x[0], ({}, ())), 8)
        run = evaluate.per_example(fn, batch_size=batch_size, labels=False)
        return evaluate.together(run(KEY, (), Split(levels, None)))["loss"]

    found = points(4)
    np.testing.assert_array_equal(np.floor((found.astype(float) + 1) * 4), levels)
    np.testing.assert_array_equal(found, points(12))
    assert len(np.unique(found[:, 0])) == 12


# bits and losses


def of_gaussian(fn, x):
    """fn's values for points x [n, 2]."""
    run = evaluate.per_example(fn, batch_size=2000, labels=False)
    return evaluate.together(run(KEY, (), Split(x.astype(np.float32), None)))


def test_the_mean_of_the_loss_values_is_the_losss_minimum():
    sde = sdes.vp()
    x = np.random.default_rng(0).multivariate_normal(GAUSSIAN.mean, GAUSSIAN.covariance, 8000)
    found = of_gaussian(evaluate.loss_values(losses.denoising(perfect(sde)), None), x)["loss"]
    assert_mean(found, minimum_under_likelihood_weighting(sde))


def test_a_loss_value_is_of_one_example_at_a_time_of_its_own_with_its_label():
    """2000 times, uniform: mean 1/2 and variance 1/12 within 4 standard errors."""

    def loss(key, params, loss_state, batch, step):
        u = jnp.mod(jax.random.uniform(key) + batch.position, 1.0)
        return jnp.sum(u + batch.x[:, 0] + 10 * batch.label) + params, ({}, loss_state)

    n = 2000
    x, label = np.arange(n, dtype=np.float32)[:, None] % 7, np.arange(n, dtype=np.int32) % 5
    run = evaluate.per_example(evaluate.loss_values(loss, None), batch_size=500, labels=True)
    found = evaluate.together(run(KEY, jnp.array(64.0), Split(x, label)))["loss"].astype(float)
    u = found - 64 - x[:, 0] - 10 * label
    assert len(np.unique(u)) > 0.9 * n  # to the digits that the sum leaves
    assert_mean(np.stack([u, (u - 0.5) ** 2], 1), [1 / 2, 1 / 12])


def test_a_losss_time_is_drawn_apart_from_its_noise():
    """Losses draw noise, dropout and directions from streams 0, 1, 3 and 4 of the example's key (`types.Batch`)."""

    def loss(key, params, loss_state, batch, step):
        keys = [key, *batch.keys, *(jax.random.fold_in(batch.keys[0], i) for i in (0, 1, 3, 4))]
        found = jnp.stack([jax.random.uniform(k) for k in keys])
        return jnp.min(jnp.abs(found[1:] - found[0])), ({}, loss_state)

    assert np.all(of_gaussian(evaluate.loss_values(loss, None), np.zeros((8, 1)))["loss"] > 0)


POINT = np.array([2.0, -1.5])


def test_the_elbo_of_a_point_is_its_closed_form_in_nats():
    sde = sdes.vp()
    found = of_gaussian(evaluate.elbo_bits(perfect(sde), None, 4), np.tile(POINT, (4000, 1)))
    true = sum(closed_form(sde, POINT[None]))[0]
    assert_mean(found["elbo"], true)
    assert true > 3  # far enough from 0 for a factor to show


def heun(n_steps=4, **options):
    def likelihood(keys, sde, predict, x, label):
        arguments = dict(grid=grids.log_snr(sde), solver="heun", n_steps=n_steps) | options
        return log_likelihood(keys, sde, predict, x, label, **arguments)

    return likelihood


def test_bits_of_levels_are_those_of_the_density_plus_the_bits_of_a_step():
    """A step of 8 levels on [-1, 1] is 1/4 wide: minus log2 of it, 2 bits, are due beside those of the density."""
    model, keys = perfect(sdes.vp()), jax.random.split(KEY, 1)
    k = jnp.array([[7, 1]], jnp.uint8)
    x = to_model(dequantize.uniform(shapes.fold_in(keys, 0), k), 8)
    for make, name in (
        (lambda levels: evaluate.elbo_bits(model, levels, 2), "elbo"),
        (lambda levels: evaluate.ode_bits(model, heun(), levels), "bpd"),
    ):
        nats = jax.jit(make(None))(keys, (), x, None)[name]
        of_levels = jax.jit(make(8))(keys, (), k, None)[name]
        np.testing.assert_allclose(of_levels - nats / (2 * math.log(2)), 2.0, rtol=1e-5)


def test_the_terms_of_a_number_add_up_to_it_and_are_the_likelihoods_own():
    """In bits per dimension the signs turn: what an error adds to log p it takes from the bits."""
    sde, keys = sdes.vp(), jax.random.split(KEY, 3)
    model, k = perfect(sde), jnp.array([[7, 1], [0, 3], [4, 4]], jnp.uint8)
    likelihood = heun(n_probes=2, trace="gaussian")
    found = jax.jit(evaluate.ode_bits(model, likelihood, 8))(keys, (), k, None)
    total = found["prior"] + found["volume"] + found["dequantization"]
    np.testing.assert_allclose(found["bpd"], total, rtol=1e-6)
    x = to_model(dequantize.uniform(shapes.fold_in(keys, 0), k), 8)
    run = lambda keys, x: likelihood(keys, sde, bind(model, ()), x, None)
    result = jax.jit(run)(shapes.fold_in(keys, 1), x)
    for name, sign in {"prior": -1, "volume": -1, "solver_error": -1, "probe_stderr": 1}.items():
        own = sign * getattr(result, name) / (2 * math.log(2))
        np.testing.assert_allclose(found[name], own, rtol=1e-5, atol=1e-7)
    assert np.all(found["probe_stderr"] > 0) and np.all(found["nfe"] == 8)


def test_other_noise_and_other_probes_are_drawn_one_without_the_other():
    """Noise moves the latent, a probe does not; of the ELBO both move what is averaged over times."""
    model, keys = perfect(sdes.vp()), jax.random.split(KEY, 3)
    k = jnp.array([[7, 1], [0, 3], [4, 4]], jnp.uint8)
    fn = jax.jit(
        evaluate.both(
            evaluate.ode_bits(model, heun(trace="gaussian"), 8), evaluate.elbo_bits(model, 8, 2)
        )
    )
    run = lambda noise, rest: fn(keys, (), k, None, (jnp.full(3, noise), jnp.full(3, rest)))
    first, noise, probe = run(0, 1), run(2, 1), run(0, 3)
    default = fn(keys, (), k, None)
    jax.tree.map(np.testing.assert_array_equal, first, default)
    assert np.all(first["prior"] != noise["prior"])
    np.testing.assert_array_equal(first["prior"], probe["prior"])
    for other in (noise, probe):
        assert np.all(first["bpd"] != other["bpd"]) and np.all(first["elbo"] != other["elbo"])


def test_of_several_samples_the_number_is_the_importance_weighted_bound():
    """log 1/K sum exp a_j of samples that differ in their noise and share their probes, by numpy."""
    sde, keys, n = sdes.vp(), jax.random.split(KEY, 3), 4
    model, k = perfect(sde), jnp.array([[7, 1], [0, 3], [4, 4]], jnp.uint8)
    likelihood = heun(trace="gaussian")
    fn = evaluate.ode_bits(model, likelihood, 8, n_importance=n)
    found = jax.jit(fn)(keys, (), k, None)
    noise, probe = shapes.fold_in(keys, 0), shapes.fold_in(keys, 1)
    run = jax.jit(lambda x: likelihood(probe, sde, bind(model, ()), x, None).logp)
    draw = lambda j: to_model(dequantize.uniform(shapes.fold_in(noise, j), k), 8)
    a = np.stack([run(draw(j)) for j in range(n)]).astype(float) - 2 * math.log(4)
    bound = np.log(np.mean(np.exp(a), 0)) / (2 * math.log(2))
    np.testing.assert_allclose(found["bpd"], -bound, rtol=1e-5)
    np.testing.assert_allclose(
        found["importance"], -bound + a.mean(0) / (2 * math.log(2)), rtol=1e-4, atol=1e-5
    )
    assert np.all(found["importance"] < 0) and np.all(found["nfe"] == 8 * n)
    terms = sum(found[name] for name in bits.TERMS)
    np.testing.assert_allclose(found["bpd"], terms, rtol=1e-5)


@pytest.mark.parametrize("decoder", sorted(evaluate.DECODERS))
def test_the_elbo_of_a_perfect_model_is_the_entropy_unless_its_data_are_other_ones(decoder):
    """Of categorical pixels in boxes, to the bound's own noise of 0.05; "lattice" is for the boxes' middles."""
    x, truth = categorical(1000)
    sde = sdes.vp(t_min=1e-3)
    predictor = exact.predictor(sde, boxes())
    model = Model(
        init=lambda key, shape: (),
        sde=lambda params: sde,
        predict=lambda params, x, t, label=None, *, keys=None: predictor(x, t),
    )
    fn = evaluate.elbo_bits(model, LEVELS, 8, decoder=decoder)
    run = evaluate.per_example(fn, batch_size=1000, labels=False)
    gap = evaluate.together(run(KEY, (), Split(x, None)))["elbo"] - truth
    assert gap.std() / math.sqrt(1000) < 0.08
    if decoder == "lattice":
        assert gap.mean() > 1
    else:
        assert_mean(gap, 0.0)


IMAGES = dict(
    data=dict(name="digits"),
    sde=dict(name="vp"),
    net=dict(name="mlp", width=32, depth=2),
    loss=dict(name="denoising"),
    optim=dict(name="adam"),
    sample=dict(name="ddim"),
    eval=dict(solver="heun", n_steps=6, elbo_times=2),
)


@pytest.fixture(scope="module")
def images():
    """An experiment on digits, parameters whose output is not zero, and 75 images."""
    experiment = build.experiment(build.resolve(IMAGES))
    params = experiment.model.init(KEY, experiment.data.shape)
    params = jax.tree.map(lambda a: a + 0.05 * jax.random.normal(KEY, a.shape), params)
    return experiment, params, take(experiment.data.test, np.arange(75))


class Evaluated(NamedTuple):
    result: dict
    folder: Path
    rows: np.ndarray


def bits_of(images, folder):
    experiment, params, split = images
    result = run.bits_per_dim(experiment, params, split, folder / "bpd.csv", {})
    text = (folder / "bpd.csv").read_text()
    rows = np.array([line.split(",") for line in text.splitlines()[1:]], float)
    return Evaluated(result, folder, rows)


@pytest.fixture(scope="module")
def evaluated(images, tmp_path_factory):
    """In batches of 64 on four devices."""
    assert parallel.count() == 4
    return bits_of(images, tmp_path_factory.mktemp("eval"))


@pytest.mark.parametrize(("devices", "batch_size"), [(4, 7), (1, 7), (1, 64)])
def test_the_numbers_of_an_image_are_the_same_in_any_batch_on_any_devices(
    images, evaluated, monkeypatch, devices, batch_size
):
    """Those of all 75 images within 1e-5 bits/dim, on a fixed grid, of 64 in a batch on four devices."""
    experiment, params, split = images
    monkeypatch.setattr(parallel, "count", lambda: devices)
    monkeypatch.setattr(parallel, "local_count", lambda: devices)
    fn = evaluate.both(run.ode(experiment), run.elbo(experiment))
    per_example = evaluate.per_example(fn, batch_size=batch_size, labels=False)
    key = jax.random.fold_in(jax.random.key(0), run._TEST)
    found = evaluate.together(per_example(key, params, split))
    for name in ("bpd", "prior", "volume", "dequantization", "nfe", "solver_error", "elbo"):
        other = evaluated.rows[:, bits.COLUMNS.index(name)]
        np.testing.assert_allclose(found[name], other, rtol=0, atol=1e-5)
    assert len(np.unique(found["bpd"])) == 75 and np.std(found["bpd"]) > 1e-2


def test_a_killed_evaluation_goes_on_to_the_same_bytes(images, evaluated, tmp_path):
    """Cut within a row of the second batch, and in the examples evaluated again."""
    names = sorted(file.name for file in evaluated.folder.iterdir())
    assert names == ["bpd.csv", "bpd.csv.json", "bpd_again.csv", "bpd_again.csv.json"]
    for name in names:
        whole = (evaluated.folder / name).read_bytes()
        cut = len(whole) if name.endswith("json") else len(whole) - 500
        (tmp_path / name).write_bytes(whole[:cut])
    assert bits_of(images, tmp_path).result == evaluated.result
    for name in names:
        assert (tmp_path / name).read_bytes() == (evaluated.folder / name).read_bytes()


def test_one_failed_solve_is_recorded_and_left_out_and_other_parameters_begin_a_new_table(
    images, evaluated, tmp_path, capsys
):
    """The network knows no answer near one image; its parameters are changed by the least that there is."""
    experiment, params, split = images
    shutil.copytree(evaluated.folder, tmp_path, dirs_exist_ok=True)
    marked = to_model(split.x[5] + 0.5, 17)

    def broken(params, x, t, label=None, *, keys=None, augment=None):
        pair = experiment.model.predict(params, x, t, label)
        is_it = jnp.all(jnp.abs(marked - x) < 1.5 / 17, axis=(1, 2, 3))
        return jax.tree.map(lambda a: jnp.where(shapes.like(is_it, a), jnp.nan, a), pair)

    leaves, tree = jax.tree.flatten(params)
    leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].multiply(1 + 2**-20)
    other = experiment._replace(
        model=experiment.model._replace(predict=broken),
        eval=experiment.eval._replace(check_images=0),
    )
    result, _, rows = bits_of((other, jax.tree.unflatten(tree, leaves), split), tmp_path)
    out = capsys.readouterr().out
    assert "made with parameters = " in out and "kept as bpd.old.csv" in out
    old = (tmp_path / "bpd.old.csv").read_bytes()
    assert old == (evaluated.folder / "bpd.csv").read_bytes()

    np.testing.assert_array_equal(rows[:, -1], np.arange(75) == 5)
    assert np.all(np.isnan(rows[5, [1, 2, 3, 4, 5, 9]]))
    kept, before = (np.delete(r, 5, 0) for r in (rows, evaluated.rows))
    np.testing.assert_allclose(kept, before, rtol=0, atol=1e-4)
    assert (result["failed"], result["bpd"]["n"], result["elbo"]["n"]) == (1, 74, 74)
    np.testing.assert_allclose(result["bpd"]["mean"], kept[:, 1].mean(), rtol=1e-6)


def test_a_grid_is_found_once_for_the_parameters_and_kept(images, tmp_path):
    """Its steps are elsewhere; on either grid the number is the same up to the solver's error."""
    experiment, params, split = images
    options = experiment.eval._replace(fit_grid=True, check_images=0, n_steps=24, trace="exact")
    fitted = experiment._replace(eval=options), params, split
    result, _, rows = bits_of(fitted, tmp_path)
    (file,) = tmp_path.glob("grid_*.json")
    values = np.array(json.loads(file.read_text())["values"])
    assert np.all(np.diff(values) > 0) and len(values) == 11
    assert np.ptp(np.diff(values)) > 0.1 * np.mean(np.diff(values))
    file.write_text(file.read_text().replace(f"{values[5]}", f"{values[5] + 0.5}"))
    (tmp_path / "bpd.csv").unlink()
    moved, _, moved_rows = bits_of(fitted, tmp_path)
    assert np.any(moved_rows[:, 1] != rows[:, 1])  # the grid was read
    for found in (result, moved):
        np.testing.assert_allclose(found["bpd"]["mean"], result["bpd"]["mean"], atol=0.01)


# labels


MEANS, STD = np.array([[-2.0, 1.0], [0.5, 2.0], [3.0, -1.0]]), 0.01
LABELS = np.array([2, 0, 1, 1, 2, 0], np.int32)


def of_class(sde, std):
    """The perfect model of N(MEANS[label], std^2 I)."""

    def predict(params, x, t, label=None, *, keys=None, augment=None):
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
        evaluate.ode_bits(model, likelihood, None), batch_size=4, labels=True
    )
    found = evaluate.together(run(KEY, (), Split(x.astype(np.float32), LABELS)))
    at_min, at_max = coefficients(sde, [sde.t_min, sde.t_max])

    def logp(x, mean):
        data = Gaussian(mean, std**2 * np.eye(2))
        latent = data.flow(x, at_min, at_max)
        standard = -0.5 * np.sum((latent / at_max[1]) ** 2) - np.log(2 * np.pi * at_max[1] ** 2)
        return data.logp(x, at_min) + standard - data.logp(latent, at_max)

    true = [logp(x, MEANS[label]) for x, label in zip(x, LABELS, strict=True)]
    assert np.all(found["ok"])
    np.testing.assert_allclose(found["bpd"], -np.array(true), atol=3e-4)


def test_the_elbo_of_an_example_is_that_under_its_own_class():
    """Another class would cost |difference of the means|^2 / (2 std^2) nats, 8 at the least."""
    run = evaluate.per_example(
        evaluate.elbo_bits(of_class(sdes.vp(), 0.5), None, 16), batch_size=8, labels=True
    )
    labels = np.tile(LABELS, 50)
    found = evaluate.together(run(KEY, (), Split(MEANS[labels].astype(np.float32), labels)))
    # log(2 pi std^2) at the mean; the ends leave 3e-4, and the standard error is 1e-2
    assert_mean(found["elbo"], math.log(2 * math.pi * 0.25))


def test_of_a_known_density_its_own_value_and_the_divergence_from_it_are_reported(tmp_path):
    """Eight Gaussians: the perfect model's divergence is 0, but for the ends and the solver."""
    config = IMAGES | dict(
        data=dict(name="toy2d", shape="gaussians", n=4000),
        eval=dict(solver="heun", n_steps=64, elbo_times=1, trace="exact", check_images=0),
    )
    experiment = build.experiment(build.resolve(config))
    angle = np.arange(8) * np.pi / 4
    means = 1.5 * np.stack([np.cos(angle), np.sin(angle)], 1)
    predictor = exact.predictor(sdes.vp(), exact.mixture(np.full(8, 1 / 8), means, 0.1))
    model = Model(
        init=lambda key, shape: (),
        sde=lambda params: sdes.vp(),
        predict=lambda params, x, t, label=None, *, keys=None: predictor(x, t),
    )
    experiment = experiment._replace(model=model)
    found = run.bits_per_dim(experiment, (), experiment.data.test, tmp_path / "bpd.csv", {})
    # eight components of std 0.1 that hardly overlap: log 8 and a Gaussian's entropy
    entropy = math.log(8) + math.log(2 * math.pi * math.e * 0.1**2)
    assert found["unit"] == "nats"
    assert abs(found["exact"]["mean"] - entropy) < 4 * found["exact"]["stderr"]
    assert found["exact"]["n"] == found["kl"]["n"] == 400
    assert abs(found["kl"]["mean"]) < 0.01
    difference = found["bpd"]["mean"] - found["exact"]["mean"]
    np.testing.assert_allclose(found["kl"]["mean"], difference, atol=1e-6)
    # point by point the densities agree, so that this error is far below that of either
    assert found["kl"]["stderr"] < 0.05 * found["bpd"]["stderr"]
    assert all(math.isnan(found["errors"][name]) for name in ("dequantization", "elbo"))
    assert found["errors"]["probe"] == 0.0
