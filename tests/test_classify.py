"""Bayes' classifier against closed forms, and calibration numbers of predictions whose calibration is known."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    """2 label + x, and noise of the example's key and first stream."""
    keys = jax.vmap(jax.random.fold_in)(keys, streams[0])
    noise = jax.vmap(jax.random.uniform)(keys)
    return {"bpd": 2.0 * label + x[:, 0] + noise, "elbo": -1.0 * label}


@pytest.fixture(scope="module")
def run():
    return evaluate.per_example(noisy, batch_size=8, labels=True)


def test_the_classes_of_an_example_share_its_noise(run):
    split = Split(POINTS, None)
    found = classify.log_likelihoods(run, KEY, (), split, n_classes=3, nats=0.5)
    np.testing.assert_allclose(np.diff(found, axis=1), -1.0, rtol=1e-5)
    noise = -found[:, 0] / 0.5 - POINTS[:, 0]
    assert np.all((noise > 0) & (noise < 1)) and len(np.unique(noise)) == 12


def test_draws_are_averaged_and_any_column_and_part_can_be_taken(run):
    options = dict(n_classes=2, nats=1.0)
    split = Split(POINTS, None)
    draw = [
        evaluate.together(
            run(KEY, (), Split(POINTS, np.zeros(12, np.int32)), None, evaluate.streams(d))
        )
        for d in range(3)
    ]
    found = classify.log_likelihoods(run, KEY, (), split, draws=3, **options)
    np.testing.assert_allclose(found[:, 0], -np.mean([d["bpd"] for d in draw], axis=0), rtol=1e-5)
    index = np.array([7, 2])
    part = classify.log_likelihoods(run, KEY, (), split, draws=3, index=index, **options)
    np.testing.assert_allclose(part, found[index], rtol=1e-6)
    bounds = classify.log_likelihoods(run, KEY, (), split, column="elbo", **options)
    np.testing.assert_allclose(bounds, np.tile([0.0, 1.0], (12, 1)))


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
    angles = np.arange(8) * math.pi / 4
    means = 1.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    density = lambda k: exact.mixture([1.0], means[[k]], 0.1)
    models = [exact.predictor(sde, density(k)) for k in range(8)]

    def predict(params, x, t, label=None, *, keys=None, augment=None):
        pairs = jax.tree.map(lambda *a: jnp.stack(a), *[model(x, t) for model in models])
        return jax.tree.map(lambda a: a[label, jnp.arange(len(x))], pairs)

    model = Model(lambda key, shape: (), lambda params: sde, predict)
    return experiment._replace(model=model), sde, density


def test_bayes_from_the_ode_of_a_conditional_model_is_the_closed_form(eight_gaussians):
    """Densities at t_min; what is left is the solver's error, and alpha(1) = 5e-5 times the mean in the prior."""
    experiment, sde, density = eight_gaussians
    # on the circle, between two classes: up to 30 standard deviations from the others
    angle = np.array([0.37, 0.40, 0.02, 1.17, 4.3, 5.5])
    x = (1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)
    found = run_module.class_log_likelihoods(experiment, (), Split(x, None), "ode")
    t = jnp.full(6, sde.t_min)
    exact_logp = [density(k)(jnp.asarray(x), sde.alpha(t), sde.sigma(t)) for k in range(8)]
    exact_logp = np.stack(exact_logp, axis=1)
    np.testing.assert_allclose(found, exact_logp, rtol=1e-3, atol=1e-2)
    probabilities = np.exp(classify.posterior(found))
    np.testing.assert_allclose(probabilities, jax.nn.softmax(exact_logp), atol=5e-3)
    assert np.any((probabilities > 0.1) & (probabilities < 0.9))


def test_bayes_from_bounds_finds_the_class_of_each_example(eight_gaussians):
    """30 draws of noised classes 0.1 wide, 1.1 apart; the bound's noise is shared by all classes."""
    experiment, _, _ = eight_gaussians
    split = experiment.data.train
    split = Split(split.x[:30], split.label[:30])
    found = run_module.class_log_likelihoods(experiment, (), split, draws=2)
    assert found.shape == (30, 8)
    assert classify.calibration(classify.posterior(found), split.label).accuracy.mean == 1.0


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


def test_a_calibration_can_be_read_and_saved():
    found = classify.calibration(*predictions([0.95, 0.65], [0.6, 0.75]), n_bins=10)
    lines = classify.report(found)
    assert lines[0].startswith("accuracy 0.6750 +- 0.0332  nll") and lines[0].endswith("ece 0.2250")
    assert lines[2].split() == ["(0.600,", "0.700]", "100", "0.6500", "0.7500"]
    assert len(lines) == 4  # empty bins are left out
    saved = json.loads(json.dumps(classify.to_json(found), allow_nan=False))
    assert saved["ece"] == found.ece and saved["bins"][0]["accuracy"] is None
    assert saved["bins"][9]["count"] == 100 and saved["accuracy"]["mean"] == found.accuracy.mean
