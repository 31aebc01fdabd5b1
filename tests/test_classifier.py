"""The noise-conditional classifier: its network, its loss against entropies in closed form, and a whole run."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_mean, coefficients
from scipy.integrate import quad
from scipy.stats import norm

from score_jax import build, cross_entropy, evaluate, exact, grids, model, run
from score_jax import sde as sdes
from score_jax.build import ConfigError
from score_jax.data.base import Split
from score_jax.model import Model
from score_jax.nets.blocks import dense
from score_jax.nets.classifier import Classifier
from score_jax.nets.embed import sinusoidal
from score_jax.types import Batch

STD = 0.5


def two_classes(sde):
    """The exact classifier of N(-1, STD^2) and N(1, STD^2), equally probable."""

    def class_logp(params, x, t, *, keys=None):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        slope = 2 * alpha / ((alpha * STD) ** 2 + sigma**2)
        logits = params * slope * x[:, 0]
        return jnp.stack([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], axis=1)

    return Model(lambda key, shape: jnp.ones(()), lambda params: sde, None, class_logp=class_logp)


def draws(n, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=n).astype(np.int32)
    x = (2 * label - 1)[:, None] + STD * rng.standard_normal((n, 1))
    return x.astype(np.float32), label


def entropy_and_accuracy(alpha, sigma):
    """H(class | x_t) and the best accuracy, in numpy; the logit of x_t is normal with variance twice its mean."""
    distance = 2 * alpha / math.hypot(alpha * STD, sigma)
    mean, spread = 0.5 * distance**2, distance
    loss = lambda z: norm.pdf(z) * np.logaddexp(0, -(mean + spread * z))
    return quad(loss, -10, 10)[0], norm.cdf(0.5 * distance)


@pytest.mark.parametrize("stratify", [True, False])
def test_the_exact_classifiers_loss_is_the_conditional_entropy_and_its_accuracy_the_best(stratify):
    """Over uniform times; 300 batches of 32, whose means are independent."""
    sde = sdes.vp()
    loss = cross_entropy.cross_entropy(two_classes(sde), stratify=stratify)

    def one(key, x, label):
        batch = Batch(x, label, jax.random.split(key, 32), jnp.arange(32) / 32)
        value, (metrics, _) = loss(key, jnp.ones(()), (), batch, 0)
        return value, metrics["accuracy"]

    x, label = draws(300 * 32)
    keys = jax.random.split(jax.random.key(0), 300)
    found = jax.jit(jax.vmap(one))(keys, x.reshape(300, 32, 1), label.reshape(300, 32))
    ts = np.linspace(sde.t_min, sde.t_max, 201)
    expected = np.trapezoid(
        [entropy_and_accuracy(*c) for c in coefficients(sde, ts)], ts, axis=0
    ) / (sde.t_max - sde.t_min)
    assert_mean(np.stack(found, axis=1), expected)


def test_the_exact_classifier_minimises_the_loss_over_the_slope_of_its_logit():
    """The gradient for a factor of the logit is zero at 1, with opposite signs beside it."""
    sde = sdes.vp()
    loss = cross_entropy.cross_entropy(two_classes(sde), grid=grids.log_snr)
    x, label = draws(4000)
    keys, position = jax.random.split(jax.random.key(0), 4000), jnp.arange(100) / 100

    def value(factor, x, label, keys):
        return loss(keys[0], factor, (), Batch(x, label, keys, position), 0)[0]

    parts = x.reshape(40, 100, 1), label.reshape(40, 100), keys.reshape(40, 100)
    slopes = jax.jit(jax.vmap(jax.grad(value), (None, 0, 0, 0)))
    assert_mean(slopes(1.0, *parts), 0.0)
    assert np.mean(slopes(0.5, *parts)) < -1e-3 < 1e-3 < np.mean(slopes(2.0, *parts))


def test_at_t_min_and_at_each_noise_level_the_validation_is_the_closed_form():
    """The exact classifier's log-loss is the entropy of the class given x_t, and its accuracy the best."""
    sde, n = sdes.vp(), 4000
    fn = cross_entropy.by_level(two_classes(sde), None)
    measure = evaluate.per_example(fn, batch_size=n, labels=True)
    x, label = draws(n)
    found = evaluate.together(measure(jax.random.key(0), jnp.ones(()), Split(x, label)))
    levels = {"t_min": 1e-3} | {f"{level:g}": level for level in cross_entropy.NOISE_LEVELS}
    quantities = "cross_entropy", "accuracy"
    assert found.keys() == {f"{q}_at_{name}" for name in levels for q in quantities}
    for name, level in levels.items():
        expected = entropy_and_accuracy(1.0, level)  # alpha scales signal and noise alike
        assert_mean(np.stack([found[f"{q}_at_{name}"] for q in quantities], axis=1), expected)


class Small(nn.Module):
    """Dense layers of x and c, to three classes."""

    @nn.compact
    def __call__(self, x, c, label=None, *, keys=None, augment=None):
        h = jnp.concatenate([x, sinusoidal(c, 16)], axis=1)
        for width in (64, 64):
            h = nn.swish(dense(width)(h))
        return dense(3)(h)


def test_a_trained_classifier_says_the_true_probabilities_of_the_classes():
    """Three classes in the plane, 1500 steps: within 0.03 on the mean over x_t, where guessing is 0.2 off and more."""
    weights = np.array([0.5, 0.2, 0.3])
    means = np.array([[1.0, 0.0], [-0.5, 0.8], [-0.4, -0.9]])
    sde = sdes.vp()
    net = model.classifier(Small(), sde)
    loss = cross_entropy.cross_entropy(net)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 1500))

    def data(key, n):
        k_label, k_x = jax.random.split(key)
        label = jax.random.choice(k_label, 3, (n,), p=jnp.asarray(weights))
        return jnp.asarray(means, jnp.float32)[label] + 0.4 * jax.random.normal(k_x, (n, 2)), label

    @jax.jit
    def trained(key):
        def step(state, key):
            params, opt_state = state
            k_data, k_loss, k_examples = jax.random.split(key, 3)
            batch = Batch(
                *data(k_data, 256), jax.random.split(k_examples, 256), jnp.arange(256) / 256
            )
            grads = jax.grad(lambda p: loss(k_loss, p, (), batch, 0)[0])(params)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        params = net.init(key, (2,))
        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, 1500))[0]

    params, _ = trained(jax.random.key(0))
    x, _ = data(jax.random.key(1), 2000)
    for ratio in (0.3, 1.0, 3.0):
        t = jnp.full(2000, sde.time_of_log_snr(jnp.asarray(-2 * math.log(ratio))))
        x_t = sdes.perturb(sde, x, t, jax.random.normal(jax.random.key(2), x.shape))
        joint = [
            exact.mixture([1.0], means[[k]], 0.4)(x_t, sde.alpha(t), sde.sigma(t)) for k in range(3)
        ]
        expected = jax.nn.softmax(jnp.stack(joint, axis=1) + jnp.log(weights))
        error = np.abs(np.exp(net.class_logp(params, x_t, t)) - expected)
        baseline = np.abs(weights - expected)
        assert error.mean() < 0.03 and error.mean() < 0.2 * baseline.mean(), ratio


NET = Classifier(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), n_classes=3, dropout=0.3)


@pytest.fixture(scope="module")
def images():
    """Images, noise levels, and parameters away from the zeros that training starts with."""
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    c = jnp.array([0.0, 10.0, 50.0, 90.0])
    params = jax.jit(NET.init)(jax.random.key(1), x, c)
    noise = jax.random.normal(jax.random.key(2), (1000,))
    moved = jax.tree.map(lambda p: p + 0.1 * jnp.resize(noise, p.shape), params)
    return x, c, params, moved


@pytest.fixture(scope="module")
def apply():
    return jax.jit(lambda params, x, c, keys=None: NET.apply(params, x, c, keys=keys))


def test_before_training_every_class_is_equally_probable(images, apply):
    x, c, start, moved = images
    np.testing.assert_array_equal(apply(start, x, c), np.zeros((4, 3)))
    assert np.std(apply(moved, x, c)) > 1e-3


def test_the_logits_of_an_image_depend_on_it_and_its_noise_level_alone(images, apply):
    x, c, _, params = images
    logits = apply(params, x, c)
    turned = apply(params, x[::-1], c[::-1])
    np.testing.assert_allclose(turned, logits[::-1], rtol=1e-4, atol=1e-5)
    assert np.all(np.abs(apply(params, x, c + 30) - logits).max(axis=1) > 1e-3)


def test_dropout_is_on_with_keys_and_of_each_image_its_own(images, apply):
    x, c, _, params = images
    keys = jax.random.split(jax.random.key(3), 4)
    logits, dropped = apply(params, x, c), apply(params, x, c, keys)
    assert np.all(np.abs(dropped - logits).max(axis=1) > 1e-4)
    again = apply(params, x, c, keys.at[0].set(keys[1]))
    np.testing.assert_allclose(again[1:], dropped[1:], rtol=1e-5, atol=1e-6)
    assert np.abs(again[0] - dropped[0]).max() > 1e-4


def test_every_pixel_has_a_say(images, apply):
    """The gradient for x, by which it guides, reaches the whole image."""
    x, c, _, params = images
    gradient = jax.jit(jax.grad(lambda x: NET.apply(params, x, c)[:, 0].sum()))(x)
    assert np.all(np.abs(gradient) > 0)


def test_remat_and_bfloat16_change_no_parameter_and_little_of_the_logits(images, apply):
    x, c, _, params = images
    logits = apply(params, x, c)
    found = jax.jit(NET.clone(remat=True).apply)(params, x, c)
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)
    narrow = jax.jit(NET.clone(dtype=jnp.bfloat16).apply)(params, x, c)
    assert narrow.dtype == jnp.float32
    assert 0 < np.abs(narrow - logits).max() < 0.1 * np.abs(logits).max()


def test_a_size_that_cannot_be_halved_is_refused():
    x = jnp.zeros((1, 6, 6, 1))
    with pytest.raises(ValueError, match="image size 6x6 is not divisible by 4"):
        NET.clone(multipliers=(1, 1, 1)).init(jax.random.key(0), x, jnp.zeros(1))


def test_a_deterministic_classifier_ignores_keys():
    logp = lambda params, x, t, *, keys=None: jnp.full((1, 1), keys is not None)
    noisy = Model(None, None, None, class_logp=logp)
    keys = jax.random.split(jax.random.key(0), 1)
    assert noisy.class_logp((), 0, 0, keys=keys)[0, 0]
    assert not model.deterministic(noisy).class_logp((), 0, 0, keys=keys)[0, 0]


def test_the_classifiers_input_is_scaled_and_told_the_noise_as_a_denoisers_is(x64):
    class Told(nn.Module):
        @nn.compact
        def __call__(self, x, c, label=None, *, keys=None, augment=None):
            return jnp.stack([x[:, 0], c], axis=1)

    sde, t = sdes.vp(), jnp.array([0.1, 0.7])
    made = model.classifier(Told(), sde, conditioning="t", sigma_data=0.7)
    x = jnp.array([[3.0], [-2.0]])
    logp = made.class_logp({}, x, t)
    alpha, sigma = np.array(coefficients(sde, t)).T
    scaled = x[:, 0] / np.hypot(0.7 * alpha, sigma)
    np.testing.assert_allclose(logp[:, 0] - logp[:, 1], scaled - 999 * t, rtol=1e-9)
    np.testing.assert_allclose(np.exp(logp).sum(axis=1), 1.0)


CONFIG = dict(
    data=dict(name="digits"),
    sde=dict(name="vp"),
    net=dict(name="classifier", channels=16, multipliers=(1, 2), blocks=1, attention=()),
    model=dict(output="class"),
    loss=dict(name="cross_entropy"),
    optim=dict(name="adam", lr=3e-3, warmup=5),
    sample=dict(name="ddim"),
    train=dict(steps=200, batch_size=64, ema=(0.9,), log_every=20, eval_every=0, eval_images=100),
    eval=dict(batch_size=100),
)


def test_a_run_learns_validates_by_noise_level_and_draws_no_pictures(tmp_path):
    experiment = build.experiment(build.resolve(CONFIG))
    assert experiment.labels and "a classifier" in experiment.no_bits
    assert "guides those of another run" in experiment.no_samples
    checkpoints = run.checkpoints_of(tmp_path, experiment)
    assert (
        run.fit(tmp_path, experiment, run.start_state(experiment, checkpoints), checkpoints) is None
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    first, last = rows[0], rows[-1]
    metrics, levels = ("accuracy", "cross_entropy"), ("t_min", "0.1", "0.3", "1", "3", "10")
    expected = {f"val_{name}_at_{level}" for name in metrics for level in levels}
    assert last.keys() == {"step", "val_loss"} | expected
    assert {"loss", "accuracy"} < first.keys()
    # ten classes: a guess has log 10 = 2.30, and 0.1
    assert first["loss"] < 2.35 and last["val_loss"] < 1.9
    assert last["val_accuracy_at_0.1"] > 0.6 > 0.25 > last["val_accuracy_at_10"]
    assert not (tmp_path / "samples").exists()


REFUSED = {
    "loss alone": (dict(net=dict(name="unet")), "set all three, or none"),
    "network alone": (dict(loss=dict(name="denoising")), "config.loss.name is 'denoising'"),
    "output alone": (dict(model=dict(output="eps")), "config.model.output is 'eps'"),
    "points": (dict(data=dict(name="toy2d")), "needs images"),
    "told what to say": (
        dict(model=dict(output="class", class_conditional=True)),
        "config.model.class_conditional is True, which is not for the classifier",
    ),
    "labels dropped": (
        dict(model=dict(output="class"), train=dict(label_dropout=0.1)),
        "config.train.label_dropout is 0.1, .* set it to 0.0",
    ),
    "augmented": (dict(train=dict(augment=0.1)), "config.train.augment is 0.1"),
    "coupled": (dict(train=dict(coupling="optimal")), "config.train.coupling is 'optimal'"),
    "lattice": (dict(dequantize=dict(name="lattice")), "config.dequantize.name is 'lattice'"),
    "gradient": (dict(model=dict(output="class", conservative=True)), "conservative is True"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_with_a_classifier_is_refused_in_one_line(case):
    sections, match = REFUSED[case]
    config = build.resolve(CONFIG | sections)
    with pytest.raises(ConfigError, match=match) as error:
        build.experiment(config)
    assert "\n" not in str(error.value)


def test_a_classifier_of_data_without_labels_is_refused(monkeypatch):
    images = np.zeros((4, 8, 8, 1), np.uint8)
    split = Split(images, None)
    unlabelled = lambda: build.DataSet("plain", split, split, split, 256)
    monkeypatch.setitem(build.SECTIONS["data"], "plain", unlabelled)
    config = build.resolve(CONFIG | dict(data=dict(name="plain")))
    with pytest.raises(ConfigError, match="'classifier', but plain has no labels"):
        build.experiment(config)
