"""Whole draws: the constructors that the samplers' table gives, thresholds, starts, grids and evaluations."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, assert_mean, coefficients

from score_jax import exact, grids, samplers, sampling, shapes, threshold
from score_jax import sde as sdes
from score_jax.types import Prediction

KEYS = jax.random.split(jax.random.key(0), 3)


def perfect(sde):
    return exact.predictor(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))


def start(sde, n=3):
    return sampling.prior(jax.random.split(jax.random.key(1), n), sde, (2,))


def few_steps(name):
    """The options that keep a draw short."""
    options = {"n_steps": 3, "n_levels": 4}
    return {k: v for k, v in options.items() if k in signature(name)}


def signature(name):
    return inspect.signature(sampling.DRAWS[name]).parameters


def test_every_sampler_of_the_table_is_a_draw_with_its_own_options_and_the_common_ones():
    for name, entry in samplers.SAMPLERS.items():
        own = {k: p for k, p in inspect.signature(entry.make).parameters.items() if k != "sde"}
        found = signature(name)
        assert list(found) == ["grid", "n_steps", *own, "denoise", "threshold", "percentile"]
        for option, parameter in own.items():
            of_draw = found[option]
            assert (of_draw.default, of_draw.annotation) == (
                parameter.default,
                parameter.annotation,
            )


def test_the_options_that_configs_rely_on_keep_their_defaults():
    defaults = lambda name: {k: p.default for k, p in signature(name).items()}
    common = dict(denoise=False, threshold="none", percentile=99.5)
    assert defaults("ddim") == dict(grid=grids.log_snr, n_steps=50, eta=0.0) | common
    found = defaults("euler_maruyama")
    assert found == dict(grid=grids.log_snr, n_steps=500, noise=1.0) | common


def test_a_wrong_option_is_no_option_of_the_sampler():
    with pytest.raises(TypeError, match="'snr'"):
        sampling.ddim(snr=0.1)


def test_an_option_reaches_its_sampler_and_no_other(x64):
    """DDIM's eta by both ways."""
    sde = sdes.vp()
    found = sampling.ddim(n_steps=4, eta=0.5)(KEYS, sde, perfect(sde), start(sde)).x
    times = grids.log_snr(sde)(jnp.linspace(0.0, 1.0, 5))
    direct = samplers.sample(KEYS, samplers.ddim(sde, eta=0.5), perfect(sde), start(sde), times)
    np.testing.assert_array_equal(found, direct)


@pytest.mark.parametrize("name", sampling.DRAWS)
def test_every_draw_reports_the_evaluations_it_makes(name):
    """With the final denoising, one more."""
    sde, calls = sdes.sub_vp(), []

    def predictor(x, t, label=None):
        jax.debug.callback(lambda _: calls.append(1), t[0])
        return Prediction(x0=0.1 * x, eps=(1 - 0.1 * sde.alpha(t[0])) / sde.sigma(t[0]) * x)

    draw = sampling.DRAWS[name](**few_steps(name), denoise=True)
    found = jax.jit(lambda x: draw(KEYS[:2], sde, predictor, x))(start(sde, 2))
    jax.effects_barrier()
    # `vmap` over samples that step together evaluates once for both
    np.testing.assert_array_equal(found.nfe, len(calls))
    assert np.all(found.ok)


@pytest.mark.parametrize("word", ["static", "dynamic"])
@pytest.mark.parametrize("name", ["ddim", "probability_flow", "reverse_sde", "annealed_langevin"])
def test_a_threshold_is_the_wrapped_prediction_in_every_step_and_at_the_end(x64, name, word):
    """Of N(m, V) scaled by 4: the percentile of two values is in use."""
    sde = sdes.vp()
    predict = exact.predictor(sde, exact.gaussian(4 * GAUSSIAN.mean, 16 * GAUSSIAN.covariance))
    options = few_steps(name) | dict(denoise=True)
    wrap = {
        "static": threshold.static,
        "dynamic": lambda *args: threshold.dynamic(*args, percentile=70.0),
    }[word]
    draw, plain = (
        sampling.DRAWS[name](**options | extra)
        for extra in (dict(threshold=word, percentile=70.0), {})
    )
    found = draw(KEYS, sde, predict, start(sde)).x
    np.testing.assert_allclose(found, plain(KEYS, sde, wrap(sde, predict), start(sde)).x, rtol=1e-9)
    assert np.abs(found).max() <= 1 + 1e-12
    assert np.abs(plain(KEYS, sde, predict, start(sde)).x).max() > 1


@pytest.mark.parametrize("name", ["ddim", "probability_flow", "reverse_sde"])
def test_a_grid_given_to_a_draw_replaces_its_own(x64, name):
    sde, options = sdes.vp(), few_steps(name)
    own = sampling.DRAWS[name](**options, grid=grids.quadratic)
    other = sampling.DRAWS[name](**options)
    args = KEYS, sde, perfect(sde), start(sde)
    replaced = other(*args, grid=grids.quadratic).x
    np.testing.assert_array_equal(own(*args).x, replaced)
    assert np.all(other(*args).x != replaced)


def test_a_temperature_scales_the_standard_deviation_of_gaussian_data(x64, sde):
    """Of zero mean, whose flow map is linear."""
    law = GAUSSIAN._replace(mean=np.zeros(2))
    predict = exact.predictor(sde, exact.gaussian(law.mean, law.covariance))
    draw = sampling.tempered(sampling.probability_flow(rtol=1e-6, atol=1e-6), 0.5)
    found = jax.jit(lambda x: draw(KEYS, sde, predict, x).x)(start(sde))
    expected = law.flow(0.5 * start(sde), *coefficients(sde, [sde.t_max, sde.t_min]))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_draws_by_annealed_langevin_have_the_mixtures_weights():
    """VE from 20 to 0.1, each level 1.5 times the next; 0.2 within 4 standard errors of 0.9 %.

    What is left of coarser levels' weights is about half of one, at 300 steps a level.
    """
    sde, n = sdes.ve(0.1, 20.0), 2000
    law = exact.mixture([0.2, 0.8], [[-2.0, -2.0], [2.0, 2.0]], 0.3)
    draw = sampling.annealed_langevin(n_levels=14, n_steps=300, denoise=True)
    keys, x = jax.random.split(jax.random.key(0), n), start(sde, n)
    found = jax.jit(lambda keys, x: draw(keys, sde, exact.predictor(sde, law), x))(keys, x)
    np.testing.assert_array_equal(found.nfe, 14 * 300 + 1)
    assert_mean(np.asarray(found.x.sum(axis=1) < 0, float)[:, None], [0.2])


@pytest.mark.parametrize("level", [None, 0.5])
def test_a_draw_by_langevin_is_the_recursion_of_its_step_at_one_level(x64, level):
    """In units of the data: starts N(0, start^2), x / alpha moves by step / 2 score + sqrt(step) z. And its x0."""
    sde = sdes.vp()
    log_snr = sdes.log_snr_ends(sde)[0] if level is None else jnp.asarray(-2 * np.log(level))
    t = sde.time_of_log_snr(log_snr)
    (alpha, sigma), (_, sigma_max) = coefficients(sde, [t, sde.t_max])
    y, noised = 0.7 * start(sde) / sigma_max, (1.0, sigma / alpha)
    for i in range(3):
        z = shapes.normal(shapes.fold_in(KEYS, i), y)
        y = jnp.asarray(y + 0.05 * GAUSSIAN.score(y, noised) + np.sqrt(0.1) * z)
    x0 = y + noised[1] ** 2 * GAUSSIAN.score(y, noised)
    for denoise, expected in ((False, alpha * y), (True, x0)):
        draw = sampling.langevin_dynamics(
            level=level, step=0.1, n_steps=3, start=0.7, denoise=denoise
        )
        found = jax.jit(lambda x, draw=draw: draw(KEYS, sde, perfect(sde), x).x)(start(sde))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_annealed_langevin_is_the_same_under_every_sde_of_the_same_levels(x64):
    """VP's x_t / alpha has EDM's levels: the same chain, in other units at the start and at the end."""
    vp = sdes.vp()
    (alpha, sigma), (alpha_min, sigma_min) = coefficients(vp, [vp.t_max, vp.t_min])
    edm = sdes.edm(sigma_min / alpha_min, sigma / alpha)
    draw, x = sampling.annealed_langevin(n_levels=6, n_steps=2), start(vp)
    found = draw(KEYS, vp, perfect(vp), x).x
    other = draw(KEYS, edm, perfect(edm), x / alpha).x
    np.testing.assert_allclose(found, alpha_min * other, rtol=1e-6)


def test_a_draw_that_ends_early_ends_at_that_time(x64):
    """In VP at t = 0.01, on the grid and in the denoising: the draw under an SDE with that t_min."""
    sde = sdes.vp()
    options = dict(n_steps=3, corrector="none", denoise=True)
    early, whole = (sampling.predictor_corrector(**options, t_end=t) for t in (0.01, None))
    found = early(KEYS, sde, perfect(sde), start(sde)).x
    other = sdes.vp(t_min=0.01)
    np.testing.assert_array_equal(found, whole(KEYS, other, perfect(other), start(sde)).x)
    assert np.all(found != whole(KEYS, sde, perfect(sde), start(sde)).x)


@pytest.mark.parametrize("name", ["ddim", "probability_flow", "reverse_sde", "annealed_langevin"])
def test_each_sample_is_drawn_with_its_own_label(x64, name):
    """Under a prediction that is x0 = label, whatever is denoised is the label, and steps lead near it."""
    sde, label = sdes.vp(), jnp.array([3.0, -2.0, 1.0])

    def predict(x, t, label):
        x0 = jnp.broadcast_to(label[:, None], x.shape)
        return Prediction(x0=x0, eps=(x - sde.alpha(t)[:, None] * x0) / sde.sigma(t)[:, None])

    options = {"n_steps": 30, "n_levels": 30}
    options = {k: v for k, v in options.items() if k in signature(name)}
    for denoise, tolerance in ((True, 1e-12), (False, 0.1)):
        draw = sampling.DRAWS[name](**options, denoise=denoise)
        found = draw(KEYS, sde, predict, start(sde), label).x
        np.testing.assert_allclose(found, jnp.stack([label, label], 1), atol=tolerance)
