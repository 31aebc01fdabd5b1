"""Bayes' classifier against closed forms, and calibration numbers of predictions whose calibration is known."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean

from score_jax import build, classify, evaluate, exact
from score_jax import run as run_module
from score_jax.data.base import Split
from score_jax.model import Model

KEY = jax.random.key(0)
WEIGHTS = np.array([0.5, 0.2, 0.3])
MEANS = np.array([[1.0, 0.0], [-0.5, 0.8], [-0.4, -0.9]])
STD = 0.4
POINTS = np.random.default_rng(0).normal(0, 0.8, (12, 2)).astype(np.float32)


def class_probabilities(x, weights):
    """In numpy: the classes' densities differ in exp(-|x - m|^2 / 2 std^2) only."""
    densities = np.exp(-0.5 * np.sum((x[:, None] - MEANS) ** 2, axis=2) / STD**2)
    joint = weights * densities
    return joint / joint.sum(axis=1, keepdims=True)


def log_densities(x):
    of_class = lambda k: exact.mixture([1.0], MEANS[[k]], STD)
    one, zero = jnp.ones(()), jnp.zeros(())
    return np.stack([of_class(k)(jnp.asarray(x), one, zero) for k in range(3)], axis=1)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_bayes_with_exact_densities_is_the_closed_form(x64, weights):
    x = POINTS.astype(float)
    log_prior = None if weights is None else np.log(7 * weights)  # up to a constant
    found = classify.posterior(log_densities(x), log_prior)
    expected = class_probabilities(x, np.ones(3) if weights is None else weights)
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-9)


def test_bayes_does_not_overflow_at_the_size_of_images_log_densities():
    found = classify.posterior(np.array([[-3e4, -3e4 - 2.0], [1e5, 0.0]]))
    expected = [[-math.log1p(math.exp(-2)), -2 - math.log1p(math.exp(-2))], [0, -1e5]]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def noisy(keys, params, x, label, streams):
    """2 label + x, and noise of the example's key and first stream; unsolved is class 1 of a negative x."""
    keys = jax.vmap(jax.random.fold_in)(keys, streams[0])
    noise = jax.vmap(jax.random.uniform)(keys)
    return {"bpd": 2.0 * label + x[:, 0] + noise, "ok": (label != 1) | (x[:, 0] > 0)}


@pytest.fixture(scope="module")
def noisy_run():
    return partial(evaluate.per_example(noisy, batch_size=8, labels=True), KEY, ())


def test_the_classes_of_an_example_share_its_noise_and_a_failed_solve_has_no_number(
    noisy_run, tmp_path
):
    run = partial(noisy_run, Split(POINTS, None))
    found = classify.measure(tmp_path / "class.csv", {}, 12, 3, "bpd", run)
    np.testing.assert_allclose(found[:, 2] - found[:, 0], 4.0, rtol=1e-5)
    noise = found[:, 0] - POINTS[:, 0]
    assert np.all((noise > 0) & (noise < 1)) and len(np.unique(noise)) == 12
    np.testing.assert_array_equal(np.isnan(found[:, 1]), POINTS[:, 0] <= 0)


def test_a_killed_table_of_classes_goes_on_to_the_same_bytes(noisy_run, tmp_path):
    """Cut within a row of the third batch of five."""
    run, file = partial(noisy_run, Split(POINTS, None)), tmp_path / "class.csv"
    found = classify.measure(file, {}, 12, 3, "bpd", run)
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert lines[0] == b"index,class,bpd\n" and len(lines) == 37
    assert [line.split(b",")[:2] for line in lines[1:5]] == [
        [b"0", b"0"],
        [b"0", b"1"],
        [b"0", b"2"],
        [b"1", b"0"],
    ]
    file.write_bytes(b"".join(lines[:20])[:-3])
    starts = []
    counted = lambda **options: starts.append(options["start"]) or run(**options)
    np.testing.assert_array_equal(classify.measure(file, {}, 12, 3, "bpd", counted), found)
    assert file.read_bytes() == whole and starts == [18]


ANGLES = np.arange(8) * math.pi / 4
ON_CIRCLE = 1.5 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)


def conditional(sde, std):
    """The exact model of N(ON_CIRCLE[label], std^2 I), and a function: the noised density of class k."""

    def predict(params, x, t, label=None, *, keys=None, augment=None):
        of_class = exact.gaussian(jnp.asarray(ON_CIRCLE, x.dtype)[label], std**2 * np.eye(2))
        return exact.predictor(sde, of_class)(x, t)

    density = lambda k: exact.mixture([1.0], ON_CIRCLE[[k]], std)
    return Model(lambda key, shape: (), lambda params: sde, predict), density


@pytest.fixture(scope="module")
def eight_gaussians():
    """An experiment on eight Gaussians with their exact model, its SDE, and a function: the density of class k."""
    config = dict(
        data=dict(name="toy2d", shape="gaussians", n=100),
        sde=dict(name="vp", beta_max=40.0),
        net=dict(name="mlp"),
        loss=dict(name="denoising"),
        optim=dict(name="adam"),
        sample=dict(name="ddim"),
        model=dict(class_conditional=True),
        eval=dict(batch_size=6, trace="exact", rtol=1e-5, atol=1e-5, elbo_times=8),
    )
    experiment = build.experiment(build.resolve(config))
    sde = experiment.model.sde(())
    model, density = conditional(sde, 0.1)
    return experiment._replace(model=model), sde, density


def exact_log_densities(sde, density, x, t):
    """[n, 8], of noised points at t."""
    t = jnp.full(len(x), t)
    logp = [density(k)(jnp.asarray(x), sde.alpha(t), sde.sigma(t)) for k in range(8)]
    return np.stack(logp, axis=1)


def test_bayes_from_the_ode_of_a_conditional_model_is_the_closed_form(eight_gaussians, tmp_path):
    """Densities at t_min; what is left is the solver's error, and alpha(1) = 5e-5 times the mean in the prior."""
    experiment, sde, density = eight_gaussians
    # on the circle, between two classes: up to 30 standard deviations from the others
    angle = np.array([0.37, 0.40, 0.02, 1.17, 4.3, 5.5])
    x = (1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)
    path = tmp_path / "class.csv"
    found = run_module.class_log_likelihoods(experiment, (), Split(x, None), path, {}, "ode")
    exact_logp = exact_log_densities(sde, density, x, sde.t_min)
    np.testing.assert_allclose(found, exact_logp, rtol=1e-3, atol=1e-2)
    probabilities = np.exp(classify.posterior(found))
    np.testing.assert_allclose(probabilities, jax.nn.softmax(exact_logp), atol=5e-3)
    assert np.any((probabilities > 0.1) & (probabilities < 0.9))


def test_shared_noise_leaves_less_of_itself_in_the_log_odds(eight_gaussians, tmp_path):
    """Of two classes as wide as they are apart, by the bound: one draw for both, and a draw for each."""
    experiment, sde, _ = eight_gaussians
    model, density = conditional(sde, 1.0)
    experiment = experiment._replace(model=model)
    x = np.random.default_rng(1).normal(0, 1.5, (400, 2)).astype(np.float32)
    run = evaluate.per_example(run_module.elbo(experiment), batch_size=400, labels=True)
    run = partial(run, KEY, (), Split(x, None))
    exact_logp = exact_log_densities(sde, density, x, sde.t_min)
    truth = exact_logp[:, 0] - exact_logp[:, 1]
    shared = -classify.measure(tmp_path / "class.csv", {}, 400, 2, "elbo", run)
    label, other = np.ones(400, np.int32), evaluate.streams(1)
    own = -evaluate.together(run(np.arange(400), other, label=label))["elbo"]
    errors = [shared[:, 0] - class_1 - truth for class_1 in (shared[:, 1], own)]
    for error in errors:
        assert_mean(error, 0.0)  # a perfect model's bound is log p, on average over the noise
    assert np.var(errors[0]) < 0.05 * np.var(errors[1])


def test_of_a_model_that_ignores_labels_the_posterior_is_the_prior_exactly(
    eight_gaussians, tmp_path
):
    """Whatever the bound's noise: all classes have the same."""
    experiment, sde, density = eight_gaussians
    blind = exact.predictor(sde, density(3))
    predict = lambda params, x, t, label=None, *, keys=None, augment=None: blind(x, t)
    model = experiment.model._replace(predict=predict)
    label = np.repeat(np.arange(8), [5, 1, 1, 3, 2, 2, 4, 2]).astype(np.int32)
    train = Split(experiment.data.train.x[:20], label)
    test = Split(experiment.data.test.x, experiment.data.test.label)
    blind_run = experiment._replace(model=model, data=experiment.data._replace(train=train))
    result = run_module.class_probabilities(blind_run, (), [(test, tmp_path / "class.csv", {})])
    assert result["prior"] == [0.25, 0.05, 0.05, 0.15, 0.1, 0.1, 0.2, 0.1]
    plain = result["probabilities"]["bayes"]["plain"]
    frequencies = np.array(result["prior"])[test.label]
    assert plain["nll"]["mean"] == pytest.approx(-np.mean(np.log(frequencies)), abs=1e-12)
    assert plain["accuracy"]["mean"] == np.mean(test.label == 0)  # the most frequent class
    (only,) = [row for row in plain["bins"] if row["count"]]
    assert only["confidence"] == pytest.approx(0.25) and only["count"] == len(test.x)


def test_the_exact_posterior_is_calibrated_and_one_of_doubled_log_odds_is_not():
    """In each bin of confidence, of 20000 draws of the mixture, within 4 standard errors."""
    rng = np.random.default_rng(2)
    label = rng.choice(3, size=20_000, p=WEIGHTS)
    x = MEANS[label] + 2 * STD * rng.standard_normal((len(label), 2))  # so that classes overlap
    log_density = -0.5 * np.sum((x[:, None] - MEANS) ** 2, axis=2) / (2 * STD) ** 2

    def deviations(*terms):
        rows = classify.calibration(classify.posterior(log_density, sum(terms)), label).bins
        rows = [row for row in rows if row.count > 100]
        variance = lambda row: row.confidence * (1 - row.confidence) / row.count
        return [(row.accuracy - row.confidence) / math.sqrt(variance(row)) for row in rows]

    calibrated = deviations(np.log(WEIGHTS))
    assert len(calibrated) >= 9 and np.max(np.abs(calibrated)) < 4
    assert np.max(np.abs(deviations(log_density, np.log(WEIGHTS)))) > 8  # the density squared
    losses = [
        classify.calibration(classify.posterior(log_density, prior), label).nll.mean
        for prior in (np.log(WEIGHTS), None)
    ]
    assert losses[0] < losses[1] - 0.01


def predictions(confidences, accuracies, n=100):
    """For each confidence n two-class predictions, of which that share is right."""
    log_p = np.log(np.repeat([[c, 1 - c] for c in confidences], n, axis=0))
    right = np.concatenate([np.arange(n) < round(a * n) for a in accuracies])
    return log_p, np.where(right, 0, 1)


def test_calibrated_predictions_have_no_calibration_error():
    confidences = [0.55, 0.65, 0.75, 0.85, 0.95]
    found = classify.calibration(*predictions(confidences, confidences), n_bins=10)
    assert found.ece < 1e-12
    assert found.accuracy.mean == pytest.approx(0.75) and found.accuracy.n == 500
    entropy = -np.mean([c * math.log(c) + (1 - c) * math.log(1 - c) for c in confidences])
    assert found.nll.mean == pytest.approx(entropy)


def test_overconfident_predictions_have_the_gap_weighted_by_the_bins_sizes():
    """300 at 0.95 of which 60 % are right, 100 at 0.65 of which 75 %: (3 * 0.35 + 0.1) / 4."""
    log_p, label = predictions([0.95, 0.95, 0.95, 0.65], [0.6, 0.6, 0.6, 0.75])
    found = classify.calibration(log_p, label, n_bins=10)
    assert found.ece == pytest.approx((3 * 0.35 + 0.10) / 4)
    rows = {row.low: row for row in found.bins if row.count}
    assert [len(found.bins), *sorted(rows)] == [10, 0.6, 0.9]
    top = rows[0.9]
    assert (top.high, top.count) == (1.0, 300)
    np.testing.assert_allclose([top.confidence, top.accuracy], [0.95, 0.6])


def test_an_edge_belongs_to_the_bin_below_it_and_certainty_to_the_last():
    """Two bins: 1/2 is in (0, 1/2], certainty in (1/2, 1]."""
    log_p = np.array([[math.log(0.5), math.log(0.5)], [0.0, -np.inf]])
    found = classify.calibration(log_p, np.array([0, 0]), n_bins=2)
    assert [row.count for row in found.bins] == [1, 1]
    assert found.ece == pytest.approx(0.25)  # half of them are off by a half


def test_the_class_that_counts_is_the_most_probable_one():
    log_p = np.log([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]])
    found = classify.calibration(log_p, np.array([1, 2]))
    assert found.accuracy.mean == 0.5
    assert found.nll.mean == pytest.approx(-0.5 * (math.log(0.5) + math.log(0.3)))


def test_the_temperature_undoes_overconfidence():
    """Confidence 0.9 that is right in 60 %: logit(0.9) / logit(0.6), after which nothing is left."""
    log_p, label = predictions([0.9], [0.6])
    logit = lambda p: math.log(p / (1 - p))
    found = classify.temperature(log_p, label)
    assert found == pytest.approx(logit(0.9) / logit(0.6), rel=1e-4)
    assert classify.calibration(classify.posterior(log_p / found), label).ece < 1e-4


def test_the_temperature_is_of_the_other_examples_and_failed_ones_are_left_out():
    """Fitted where 0.9 is right in 60 %, judged where it is right in 75 %; a row of nan on either side."""
    logit = lambda p: math.log(p / (1 - p))
    nan = np.full((1, 2), np.nan)

    def failed(log_p, label):
        return np.concatenate([nan, log_p]), np.concatenate([[1], label])

    judged, other = (failed(*predictions([0.9], [share])) for share in (0.75, 0.6))
    found = classify.assess(*judged, other)
    assert found.temperature == pytest.approx(logit(0.9) / logit(0.6), rel=1e-4)
    assert found.plain.accuracy.n == 100 and found.plain.ece == pytest.approx(0.15)
    assert found.tempered.ece == pytest.approx(0.15, abs=1e-4)  # now confidence 0.6
    assert classify.assess(*judged) == (found.plain, None, None)
