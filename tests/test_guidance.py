"""Guidance on labelled mixtures, where p(class | x_t) and every class's score are closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, assert_mean, coefficients

from score_jax import exact, guidance, guided, predict, sampling, sdedit, shapes
from score_jax import sde as sdes
from score_jax.model import Model
from score_jax.predict import combine
from score_jax.sde import perturb
from score_jax.types import Prediction

WEIGHTS = np.array([0.5, 0.2, 0.3])
MEANS = np.array([[1.0, 0.0], [-0.5, 0.8], [-0.4, -0.9]])
STD, N = 0.4, 6
# noise levels from small to large beside MEANS
RATIOS = np.array([0.05, 0.3, 0.8, 2.0, 5.0, 9.0])


def times(sde, ratios=RATIOS):
    return sde.time_of_log_snr(-2 * jnp.log(jnp.asarray(ratios, float)))


def points(sde, t):
    """x_t of points of all three classes, and labels that are not theirs alone."""
    x0 = jnp.asarray(np.tile(MEANS, (2, 1))) + 0.2
    eps = jax.random.normal(jax.random.key(0), x0.shape, x0.dtype)
    return perturb(sde, x0, t, eps), jnp.array([0, 1, 2, 1, 2, 0])


def of_class(k):
    return exact.mixture([1.0], MEANS[[k]], STD)


def joint_logp(x, alpha, sigma):
    """log p(class) p(x_t | class), [b, 3]."""
    noised = jnp.stack([of_class(k)(x, alpha, sigma) for k in range(3)], axis=1)
    return noised + jnp.log(WEIGHTS)


def class_logp(sde):
    """log p(class | x_t)."""
    return lambda x, t: jax.nn.log_softmax(joint_logp(x, sde.alpha(t), sde.sigma(t)))


def conditional(sde):
    """The exact class-conditional model, whose class 3 is "no class"."""
    models = [exact.predictor(sde, of_class(k)) for k in range(3)]
    models.append(exact.predictor(sde, exact.mixture(WEIGHTS, MEANS, STD)))

    def predict_fn(x, t, label=None):
        label = jnp.full(len(x), 3) if label is None else label
        pairs = jax.tree.map(lambda *a: jnp.stack(a), *[model(x, t) for model in models])
        return jax.tree.map(lambda a: a[label, jnp.arange(len(x))], pairs)

    return predict_fn


def unconditional(sde):
    return exact.predictor(sde, exact.mixture(WEIGHTS, MEANS, STD))


def assert_pairs(found, expected, tolerance=1e-9):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_consistent(sde, pair, x, t):
    np.testing.assert_allclose(perturb(sde, pair.x0, t, pair.eps), x, rtol=1e-9, atol=1e-9)


def score_of(sde, logp, x, t):
    total = lambda x: jnp.sum(logp(x, shapes.like(sde.alpha(t), x)[:, 0], sde.sigma(t)))
    return jax.grad(total)(x)


def test_the_exact_classifier_at_scale_one_gives_exactly_the_conditional_model(x64, sde):
    t = times(sde)
    x, label = points(sde, t)
    log_prob = guidance.of_label(class_logp(sde))
    guided = guidance.classifier(sde, unconditional(sde), log_prob, 1.0)
    assert_pairs(guided(x, t, label), conditional(sde)(x, t, label))


def test_classifier_guidance_tilts_the_noised_density_by_a_power_of_the_classifier(x64, sde):
    """The score of p(x_t) p(y | x_t)^s, by autodiff of that density, for a scale of each sample."""
    t, scales = times(sde), jnp.array([0.0, 0.5, 1.0, 2.0, 4.0, 7.5])
    x, label = points(sde, t)
    guided = guidance.classifier(
        sde, unconditional(sde), guidance.of_label(class_logp(sde)), scales
    )
    pair = guided(x, t, label)

    def tilted(x, alpha, sigma):
        joint = joint_logp(x, alpha, sigma)
        whole = jax.scipy.special.logsumexp(joint, axis=1)
        return whole + scales * (joint[jnp.arange(N), label] - whole)

    np.testing.assert_allclose(
        combine("score", sde, pair, t), score_of(sde, tilted, x, t), rtol=1e-8, atol=1e-9
    )
    assert_consistent(sde, pair, x, t)


def test_classifier_guidance_gives_the_label_to_a_conditional_model(x64):
    """p(x_t | y) p(y | x_t): of the class, pushed once more."""
    sde = sdes.vp()
    t = times(sde)
    x, label = points(sde, t)
    log_prob = guidance.of_label(class_logp(sde))
    found = guidance.classifier(sde, conditional(sde), log_prob, 1.0)(x, t, label)
    no_class = guidance.of_class(conditional(sde), 3)
    twice = guidance.classifier(sde, no_class, log_prob, 2.0)(x, t, label)
    assert_pairs(found, twice)


def test_a_classifier_of_another_sde_is_asked_at_the_same_noise_level(x64, sde):
    """All exact classifiers are the same function of x_t / alpha and sigma / alpha."""
    own = sdes.edm()
    t = times(sde)
    x, label = points(sde, t)
    found = guidance.across(sde, own, guidance.of_label(class_logp(own)))(x, t, label)
    expected = guidance.of_label(class_logp(sde))(x, t, label)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_a_classifier_is_not_asked_beyond_the_ends_of_its_time():
    sde, own = sdes.edm(), sdes.linear()
    ask = guidance.across(sde, own, lambda x, t, label: t)
    sigma = jnp.array([0.002, 80.0]) * jnp.array([0.01, 1e4])
    found = ask(jnp.zeros((2, 1)), sigma, None)
    np.testing.assert_allclose(found, [own.t_min, own.t_max], rtol=1e-6)
    # less noise than it knows: the signal is as large as at t_min; more: the noise is as at t_max
    scaled = guidance.across(sde, own, lambda x, t, label: x[:, 0])(jnp.ones((2, 1)), sigma, None)
    expected = own.alpha(own.t_min), own.sigma(own.t_max) / sigma[1]
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
def test_classifier_free_guidance_is_the_exact_classifiers_at_the_same_scale(x64, sde, scale):
    """p(x_t) p(y | x_t)^s: scale 0 is no class, 1 the class, and 1 + w is Ho and Salimans' (1 + w) eps_y - w eps."""
    t = times(sde)
    x, label = points(sde, t)
    found = guidance.classifier_free(sde, conditional(sde), 3, scale)(x, t, label)
    log_prob = guidance.of_label(class_logp(sde))
    assert_pairs(
        found, guidance.classifier(sde, unconditional(sde), log_prob, scale)(x, t, label), 1e-8
    )
    w = scale - 1
    given, free = conditional(sde)(x, t, label), conditional(sde)(x, t)
    np.testing.assert_allclose(found.eps, (1 + w) * given.eps - w * free.eps, atol=1e-9)
    assert_consistent(sde, found, x, t)


def test_each_sample_may_have_a_scale_of_its_own(x64):
    sde = sdes.vp()
    t, scales = times(sde), jnp.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    x, label = points(sde, t)
    found = guidance.classifier_free(sde, conditional(sde), 3, scales)(x, t, label)
    for i, scale in enumerate(np.asarray(scales)):
        one = guidance.classifier_free(sde, conditional(sde), 3, float(scale))(x, t, label)
        assert_pairs([a[i] for a in found], [a[i] for a in one])


def test_without_a_label_classifier_free_guidance_is_the_unconditional_model(x64):
    sde = sdes.vp()
    t = times(sde)
    x, _ = points(sde, t)
    found = guidance.classifier_free(sde, conditional(sde), 3, 4.0)(x, t)
    assert_pairs(found, unconditional(sde)(x, t))


@pytest.mark.parametrize("make", [sdes.edm, sdes.vp])
def test_the_interval_is_open_below_and_closed_above(x64, make):
    """Outside (0.3, 2] in sigma / alpha the conditional model; EDM's time is the ratio: edges are hit exactly."""
    sde = make()
    on_edges = make is sdes.edm
    ratios = [0.05, 0.3, 0.31, 1.0, 2.0, 2.01] if on_edges else [0.05, 0.29, 0.31, 1.0, 1.99, 2.01]
    t = jnp.array(ratios) if on_edges else times(sde, ratios)
    x, label = points(sde, t)
    model = conditional(sde)
    found = guidance.classifier_free(sde, model, 3, 3.0, interval=(0.3, 2.0))(x, t, label)
    always = guidance.classifier_free(sde, model, 3, 3.0)(x, t, label)
    inside = np.array([False, False, True, True, True, False])[:, None]
    assert_pairs(
        found, [np.where(inside, a, b) for a, b in zip(always, model(x, t, label), strict=True)]
    )
    assert not np.allclose(always.eps, model(x, t, label).eps)


def test_an_interval_is_each_samples_own_under_vmap(x64):
    """As solvers with a step size for each sample call it."""
    sde = sdes.edm()
    t = jnp.array([0.05, 0.31, 1.0, 2.0, 2.01, 9.0])
    x, label = points(sde, t)
    guided = guidance.classifier_free(sde, conditional(sde), 3, 3.0, interval=(0.3, 2.0))
    one = lambda x, t, label: jax.tree.map(lambda a: a[0], guided(x[None], t[None], label[None]))
    assert_pairs(jax.jit(jax.vmap(one))(x, t, label), guided(x, t, label))


@pytest.mark.parametrize("ratio, expected", [(0.1, 1), (1.0, 2), (9.0, 1)])
def test_outside_the_interval_the_second_evaluation_is_spared(ratio, expected):
    calls = []

    def counted(x, t, label=None):
        jax.debug.callback(lambda: calls.append(1))
        return Prediction(x, x)

    sde = sdes.edm()
    guided = jax.jit(guidance.classifier_free(sde, counted, 3, 3.0, interval=(0.3, 2.0)))
    jax.block_until_ready(guided(jnp.zeros((2, 2)), jnp.full(2, ratio), jnp.zeros(2, int)))
    jax.effects_barrier()
    assert len(calls) == expected


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_rescaling_takes_vs_standard_deviation_to_the_conditional_models(x64, sde, share):
    """In numpy: v is scaled by share std_y / std + 1 - share, sample by sample, and the pair stays consistent."""
    t = times(sde)
    given, free = (jax.random.normal(jax.random.key(i), (N, 3, 4)) for i in range(2))
    x = jax.random.normal(jax.random.key(2), (N, 3, 4))

    def model(x, t, label=None):
        eps = jnp.where((label == 3)[:, None, None], free, given)
        return predict.read("eps", sde, eps, x, t)

    label = jnp.zeros(N, int)
    plain = guidance.classifier_free(sde, model, 3, 5.0)(x, t, label)
    found = guidance.classifier_free(sde, model, 3, 5.0, rescale=share)(x, t, label)
    v, v_plain, v_given = (
        np.asarray(combine("v", sde, pair, t)) for pair in (found, plain, model(x, t, label))
    )
    for i in range(N):
        factor = share * v_given[i].std() / v_plain[i].std() + 1 - share
        np.testing.assert_allclose(v[i], factor * v_plain[i], rtol=1e-6, atol=1e-9)
    if share == 1.0:
        np.testing.assert_allclose(v.std(axis=(1, 2)), v_given.std(axis=(1, 2)), rtol=1e-6)
    assert_consistent(sde, found, x, t)


def gaussian(mean, covariance):
    return exact.gaussian(jnp.asarray(mean), np.asarray(covariance))


def test_the_product_of_two_gaussians_has_the_product_gaussians_score(x64, sde):
    """Precisions add, weighted: N(m1, C1)^w1 N(m2, C2)^w2 at the noise level, in numpy."""
    means = np.array([[0.5, -0.3], [-1.0, 0.4]])
    covariances = np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.6]]])
    weights = 1.0, 0.7
    t = times(sde)
    x, _ = points(sde, t)
    models = [
        exact.predictor(sde, gaussian(*each)) for each in zip(means, covariances, strict=True)
    ]
    pair = guidance.product(sde, models, weights)(x, t)
    score = combine("score", sde, pair, t)
    for i, (alpha, sigma) in enumerate(coefficients(sde, t)):
        noised = [np.linalg.inv(alpha**2 * c + sigma**2 * np.eye(2)) for c in covariances]
        precision = sum(w * p for w, p in zip(weights, noised, strict=True))
        shift = sum(w * p @ (alpha * m) for w, p, m in zip(weights, noised, means, strict=True))
        mean = np.linalg.solve(precision, shift)
        np.testing.assert_allclose(score[i], -precision @ (np.asarray(x[i]) - mean), rtol=1e-7)
    assert_consistent(sde, pair, x, t)


def independent(sde):
    """A law of four corners, and the conditional ones of the two signs, independent given x_t: the last is of both."""
    corners = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    law = lambda keep: exact.predictor(
        sde, exact.mixture(np.full(keep.sum(), 1 / keep.sum()), corners[keep], STD)
    )
    right, top = corners[:, 0] > 0, corners[:, 1] > 0
    everything = np.ones(4, bool)
    return [law(keep) for keep in (everything, right, top, right & top, right & ~top)]


def test_and_of_two_independent_conditions_is_the_model_of_both(x64, sde):
    whole, right, top, both, _ = independent(sde)
    t = times(sde)
    x, _ = points(sde, t)
    pair = guidance.conjunction(whole, [right, top])(x, t)
    assert_pairs(pair, both(x, t), 1e-8)
    assert_consistent(sde, pair, x, t)


def test_not_divides_by_the_probability_of_the_condition(x64, sde):
    """The score of p(x_t) / p(top | x_t)^w, where p(top | x_t) is a logistic function of x_t's second coordinate."""
    whole, _, top, _, _ = independent(sde)
    t, w = times(sde), 0.6
    x, _ = points(sde, t)
    pair = guidance.negation(whole, [top], [w])(x, t)
    variance = (sde.alpha(t) * STD) ** 2 + sde.sigma(t) ** 2
    slope = 2 * sde.alpha(t) / variance
    gradient = slope * jax.nn.sigmoid(-slope * x[:, 1])  # of log p(top | x_t), in that coordinate
    expected = combine("score", sde, whole(x, t), t).at[:, 1].add(-w * gradient)
    np.testing.assert_allclose(combine("score", sde, pair, t), expected, rtol=1e-8, atol=1e-9)


def test_and_not_is_liu_et_als_formula(x64, sde):
    """eps + w (eps_right - eps_top) (arXiv 2206.01714): right, and not the top."""
    whole, right, top, _, _ = independent(sde)
    t, w = times(sde), 0.7
    x, _ = points(sde, t)
    not_top = guidance.negation(whole, [top])
    pair = guidance.conjunction(whole, [right, not_top], [w, w])(x, t)
    eps = whole(x, t).eps + w * (right(x, t).eps - top(x, t).eps)
    np.testing.assert_allclose(pair.eps, eps, atol=1e-9)
    assert_consistent(sde, pair, x, t)


def test_a_conjunction_with_one_condition_is_classifier_free_guidance(x64):
    sde = sdes.vp()
    t = times(sde)
    x, _ = points(sde, t)
    model, label = conditional(sde), jnp.full(N, 1)
    no_class, given = (guidance.of_class(model, k) for k in (3, 1))
    found = guidance.conjunction(no_class, [given], [2.5])(x, t)
    assert_pairs(found, guidance.classifier_free(sde, model, 3, 2.5)(x, t, label))


def test_x0_keeps_its_digits_where_the_signal_is_weak():
    """In float32, alpha = 1e-3: through (x - sigma eps) / alpha, x0 would err by 1e-4 and more."""
    sde = sdes.linear()
    t = jnp.full(N, 0.999)
    x0 = jax.random.normal(jax.random.key(0), (2, N, 2))
    x = jax.random.normal(jax.random.key(1), (N, 2))

    def model(x, t, label=None):
        pairs = [predict.read("x0", sde, each, x, t) for each in x0]
        free = (label == 3)[:, None]
        return jax.tree.map(lambda a, b: jnp.where(free, a, b), *pairs)

    found = guidance.classifier_free(sde, model, 3, 2.3)(x, t, jnp.zeros(N, int)).x0
    np.testing.assert_allclose(found, 2.3 * x0[1] - 1.3 * x0[0], atol=2e-6)


def test_guided_samples_are_of_the_class(x64):
    """By the ODE under exact guidance at scale 1: the moments of class 1, whose weight is 0.2."""
    sde, n = sdes.vp(), 2000
    keys = jax.random.split(jax.random.key(0), n)
    log_prob = guidance.of_label(class_logp(sde))
    model = guidance.classifier(sde, unconditional(sde), log_prob, 1.0)
    draw = sampling.DRAWS["dpmpp_2m"](n_steps=40)
    x = jax.jit(lambda x: draw(keys, sde, model, x, jnp.full(n, 1)).x)(
        sampling.prior(keys, sde, (2,))
    )
    # the prior's missing mean, alpha(1), and 40 steps are below the standard error of 2000 points
    assert_mean(x, MEANS[1])
    assert_mean((x - MEANS[1]) ** 2, STD**2)


@pytest.mark.parametrize("make", [sdes.vp, sdes.ve])
def test_sdedit_follows_the_flow_from_the_noised_guide(x64, make):
    """Of Gaussian data, by the ODE: the closed-form flow of alpha(t0) guide + sigma(t0) eps from t0 to t_min."""
    sde = make()
    t0 = sdedit.time_of_level(sde, 1.0)
    keys = jax.random.split(jax.random.key(0), 4)
    guide = jnp.array([[0.3, 0.1], [2.0, -1.0], [0.0, 0.0], [-0.4, 0.7]])
    noise = sampling.prior(keys, sde, (2,))
    model = exact.predictor(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))
    draw = sdedit.sdedit(sampling.probability_flow(rtol=1e-8, atol=1e-8), guide, t0)
    found = draw(keys, sde, model, noise)
    c_min, c_0, c_max = coefficients(sde, [sde.t_min, t0, sde.t_max])
    start = c_0[0] * guide + c_0[1] * noise / c_max[1]
    np.testing.assert_allclose(found.x, GAUSSIAN.flow(start, c_0, c_min), atol=1e-5)
    assert np.all(found.ok)


def test_sdedit_with_the_guide_noised_a_little_keeps_it_and_from_t_max_forgets_it(x64):
    sde, n = sdes.edm(), 3
    keys = jax.random.split(jax.random.key(0), n)
    model = exact.predictor(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))
    noise, draw = sampling.prior(keys, sde, (2,)), sampling.ddim(n_steps=20)
    guide = jnp.asarray(np.tile([0.6, -0.1], (n, 1)))
    near = sdedit.sdedit(draw, guide, 0.01)(keys, sde, model, noise).x
    np.testing.assert_allclose(near, guide, atol=0.03)
    # one guide for all samples
    far = sdedit.sdedit(draw, 0 * guide[:1], sde.t_max)(keys, sde, model, noise).x
    np.testing.assert_allclose(far, draw(keys, sde, model, noise).x, atol=1e-12)


@pytest.mark.parametrize("t0", [1e-5, 1.5])
def test_sdedit_from_outside_the_time_axis_is_refused(t0):
    sde, x = sdes.vp(), jnp.zeros((1, 2))
    keys = jax.random.split(jax.random.key(0), 1)
    with pytest.raises(ValueError, match=f"t0 is {t0}; it must be after .* 1e-05, and at most"):
        sdedit.sdedit(sampling.ddim(), x, t0)(keys, sde, unconditional(sde), x)


def test_levels_of_noise_are_times_within_the_sdes_own(x64, sde):
    for level in (0.05, 1.0, 4.0):
        t = sdedit.time_of_level(sde, level)
        ((alpha, sigma),) = coefficients(sde, [t])
        np.testing.assert_allclose(sigma / alpha, level, rtol=1e-9)
    with pytest.raises(ValueError, match=r"^level = 1e\+30 of the noise must be above .* at most"):
        sdedit.time_of_level(sde, 1e30)


def network(sde, traced):
    """The exact conditional model and classifier as records, of the parameters nothing but a shift of x0."""

    def predict_fn(params, x, t, label=None):
        traced.append(1)
        moved = x - shapes.like(sde.alpha(t), x) * params
        return predict.read("eps", sde, conditional(sde)(moved, t, label).eps, x, t)

    class_logp_fn = lambda params, x, t: params * class_logp(sde)(x, t)
    fixed = lambda params: sde
    model = Model(None, fixed, predict_fn)
    return model, Model(None, fixed, None, class_logp=class_logp_fn)


def guided_model(sde, make, labels, unwanted=(), traced=None, **options):
    model, judge = network(sde, [] if traced is None else traced)
    asked = guided.Asked(labels, unwanted, 3)
    return guided.attach(model, make(**options), asked, judge=judge)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpmpp_2m", {"n_steps": 6}),
        ("ddim", {"n_steps": 6, "eta": 1.0, "denoise": True}),
        ("annealed_langevin", {"n_levels": 2, "n_steps": 3}),
        ("probability_flow", {"n_steps": 3, "solver": "heun"}),
    ],
)
def test_a_draw_from_python_is_the_compiled_one(x64, name, options):
    """Of classifier guidance, whose gradients are why; with parameters that are arguments, and one program."""
    sde, traced, n = sdes.vp(), [], 4
    model = guided_model(sde, guided.classifier, (1,), traced=traced, scale=2.0)
    draw = sampling.DRAWS[name](**options)
    keys, label = jax.random.split(jax.random.key(0), n), jnp.array([0, 1, 2, 1])
    x = sampling.prior(keys, sde, (2,))

    def drawn(model, params):
        return draw(keys, sde, lambda *args: model.predict(params, *args), x, label)

    alone = guided.compiled(model)
    for shift in (0.0, 0.5):
        params = jnp.asarray(shift), jnp.asarray(0.8)
        traced.clear()
        with jax.disable_jit():
            found = drawn(alone, params)
        assert len(traced) == (0 if shift else 1)
        for a, b in zip(found, jax.jit(lambda params: drawn(model, params))(params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_the_methods_of_composition_are_their_formulas(x64):
    """In eps, of classes 0 and 1 wanted and 2 not; the product's powers sum to its weight."""
    sde = sdes.vp()
    t, params = times(sde), (jnp.asarray(0.0), jnp.asarray(1.0))
    x, _ = points(sde, t)
    model = conditional(sde)
    zero, one, two, free = (model(x, t, jnp.full(N, k)).eps for k in range(4))
    eps = lambda *args, **options: guided_model(sde, *args, **options).predict(params, x, t).eps
    both = eps(guided.all_of, (0, 1), (2,), weight=1.5, not_weight=0.5)
    expected = free + 1.5 * (zero - free) + 1.5 * (one - free) - 0.5 * (two - free)
    np.testing.assert_allclose(both, expected, atol=1e-9)
    neither = eps(guided.none_of, (), (2, 1), weight=0.4)
    np.testing.assert_allclose(neither, free - 0.4 * (two + one - 2 * free), atol=1e-9)
    np.testing.assert_allclose(eps(guided.product, (0, 1)), 0.5 * (zero + one), atol=1e-9)


def test_a_method_asks_a_classifier_of_another_sde_at_the_same_noise_level(x64):
    """The exact classifier, trained under EDM's SDE, at scale 1 on a model without classes: the conditional model."""
    sde, own = sdes.vp(), sdes.edm()
    free, judge = Model(None, lambda params: sde, None), network(own, [])[1]
    free = free._replace(predict=lambda params, x, t, label=None: unconditional(sde)(x, t))
    asked = guided.Asked((), (), 3)
    model = guided.attach(free, guided.classifier(), asked, knows_classes=False, judge=judge)
    t = times(sde)
    x, label = points(sde, t)
    pair = model.predict((None, jnp.asarray(1.0)), x, t, label)
    assert_pairs(pair, conditional(sde)(x, t, label), 1e-8)
