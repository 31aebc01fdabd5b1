"""The benchmarks' measures of accuracy, where their answer is known without them."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from score_jax import grids, sampling
from score_jax import sde as sdes

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import accuracy_page
import affine
import measure
import methods
from affine import Gaussian

DATA = Gaussian(np.array([0.5, -0.3, 0.1]), np.array([2.0, 0.3, 0.01]))


@pytest.fixture
def untyped():
    """Inside the exact laws, keys are paths and units, which no annotation allows."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def ancestral(sde, times):
    """Mean and variance by the posterior of x_s given x_t and the predicted x0, coordinate by coordinate."""
    law = affine.noised(sde, DATA, sde.t_max)
    mean, variance = law
    alpha, sigma = np.asarray(sde.alpha(times)), np.asarray(sde.sigma(times))
    for a_t, s_t, a, s in zip(alpha, sigma, alpha[1:], sigma[1:], strict=False):
        share = 1 - (a_t * s / (a * s_t)) ** 2
        gain = a_t * DATA.variance / (a_t**2 * DATA.variance + s_t**2)
        of_x0, of_x = a * share, a_t / a * (s / s_t) ** 2
        mean = of_x * mean + of_x0 * (DATA.mean + gain * (mean - a_t * DATA.mean))
        variance = (of_x + of_x0 * gain) ** 2 * variance + s**2 * share
    return mean, variance


def test_the_exact_law_of_ancestral_sampling_is_the_recursions(x64, untyped):
    sde, n = sdes.vp(), 7
    draw = sampling.DRAWS["ancestral"](n_steps=n)
    found = affine.stepping(draw, sde, n)(DATA, affine.noised(sde, DATA, sde.t_max))
    mean, variance = ancestral(sde, grids.log_snr(sde)(jnp.linspace(0.0, 1.0, n + 1)))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-9)


@pytest.mark.parametrize("name", ["shark", "corrected"])
def test_the_exact_law_is_that_of_samples(x64, untyped, name):
    """Of a solver that uses both integrals of its Brownian path, and of three draws a step; 20000 samples."""
    sde, n, n_samples = sdes.vp(t_min=0.1), 8, 20000
    start = affine.noised(sde, DATA, sde.t_max)
    if name == "shark":
        draw = sampling.reverse_sde(solver=name, n_steps=n)
        law = affine.units(draw, sde, 2 * n)(DATA, start)
    else:
        draw = sampling.predictor_corrector(
            grid=grids.log_snr, n_steps=n, corrector="annealed_langevin", corrector_steps=2, snr=0.4
        )
        law = affine.stepping(draw, sde, n)(DATA, start)
    z = jax.random.normal(jax.random.key(1), (n_samples, 3))
    x = start.mean + np.sqrt(start.variance) * z
    run = jax.jit(lambda keys, x: draw(keys, sde, affine.predictor(sde, DATA), x).x)
    found = np.asarray(run(jax.random.split(jax.random.key(0), n_samples), x))
    stderr = np.sqrt(law.variance / n_samples)
    assert np.all(np.abs(found.mean(axis=0) - law.mean) < 4 * stderr)
    assert np.all(np.abs(found.var(axis=0) / law.variance - 1) < 4 * np.sqrt(2 / n_samples))


def test_thresholding_is_not_taken_for_an_affine_map(x64, untyped):
    """DDIM's steps are affine, with noise too; clipped predictions are not."""
    make = lambda **options: sampling.DRAWS["ddim"](n_steps=3, **options)
    answer = lambda **options: affine.is_affine(make(**options), sdes.vp(), 3, DATA)
    assert answer(eta=0.5)
    assert not answer(threshold="static")


def test_euler_maruyama_under_ve_has_first_order_errors_of_its_ends_only(x64, untyped):
    """Steps of h in log-SNR add h^2 u (u - L) / (2 (L + u)) to the variance, shrunk by the rest of the way."""
    sde, n, eigenvalues = sdes.ve(0.1, 5.0), 20000, np.array([0.3, 4.0, 20.0])
    data = Gaussian(np.zeros(3), eigenvalues)
    start, true = (affine.noised(sde, data, t) for t in (sde.t_max, sde.t_min))
    method = methods.all_methods()["euler_maruyama"]
    found = method.law(n, grids.log_snr, sde)(data, start).variance - true.variance
    first, last = start.variance - eigenvalues, true.variance - eigenvalues
    ends = last / true.variance**2 - first / start.variance**2
    step = np.log(first / last) / n
    np.testing.assert_allclose(found, step / 2 * true.variance**2 * ends, rtol=0.005)


def test_seeds_2_shows_its_order_where_there_is_signal_at_the_start(x64, untyped):
    method, spectrum = methods.all_methods()["seeds_2"], measure.Spectrum(DATA.variance, np.ones(3))
    late, whole = (
        measure.order(measure.weak_errors(method, measure.until(sde, 0.01), spectrum, (320, 640)))
        for sde in (sdes.vp()._replace(t_max=0.6), sdes.vp())
    )
    assert abs(late - 2.0) < 0.1
    assert whole > 2.7


def test_no_sampler_is_named_at_the_floor():
    """0.9 is below it by accident; with noise there is none."""
    found = {"a": [0.9], "b": [1.0], "c": [2.0]}
    cells = lambda names, floor: accuracy_page.best_cells(found, names, 0, floor)
    assert cells(["a", "b"], 1.0) == ["several, at the start's error", "1"]
    assert cells(["c"], 1.0) == ["`c`", "2"]
    assert cells(["a", "b"], 0.0) == ["`a`", "0.9"]


def test_w2_by_sampling_is_unbiased_and_its_standard_error_covers():
    """Of samples 10 % too wide, and of true ones, where a plain fit would read sqrt(d / 2n) = 0.18 for 0."""
    eigenvalues = np.ones(64)
    z = np.random.default_rng(0).standard_normal((1000, 64))
    for width in (1.0, 1.1):
        square, error = measure.sampled_w2(width * z, eigenvalues)
        assert abs(square - 64 * (width - 1) ** 2) < 4 * error
        assert error < 0.05


def test_rates_ignore_errors_at_rounding():
    errors = [4e-9, 1e-9, 2.5e-10, 1e-16]
    assert measure.rate(errors) == 2.0
    assert np.isnan(measure.rate([1e-16, 2e-16]))


def test_the_natural_spectrum_has_its_pixel_variance():
    values = affine.natural(16, 0.25)
    np.testing.assert_allclose(np.mean(values), 0.25)
    np.testing.assert_allclose(values[1] / values[2], 4.0)  # frequencies 1 and 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((2, 2)), r"shape \(2, 2\); give eigenvalues as one 1-D array"),
        (np.array([1.0, 0.0]), "not finite positive"),
        (np.array([1.0, np.inf]), "not finite positive"),
        (np.array(["a"]), "not finite positive"),
    ],
)
def test_a_wrong_spectrum_is_one_clear_line(tmp_path, values, message):
    path = tmp_path / "spectrum.npy"
    np.save(path, values)
    with pytest.raises(ValueError, match=message):
        measure.read_spectrum(str(path))


def test_a_spectrum_counts_equal_eigenvalues(tmp_path):
    path = tmp_path / "spectrum.npy"
    np.save(path, np.array([2, 1, 2]))
    found = measure.read_spectrum(str(path))
    np.testing.assert_array_equal(found.values, [1.0, 2.0])
    np.testing.assert_array_equal(found.counts, [1, 2])
