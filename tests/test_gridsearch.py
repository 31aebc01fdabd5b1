"""The search for a grid: a known optimum is found, and fewer steps do better on it than on the grids to begin with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax import exact, grids, gridsearch, sampling
from score_jax import sde as sdes


def test_the_search_finds_a_known_optimum(x64):
    """run is the identity, so the best log-SNRs are the target itself."""
    target = jnp.array([-4.0, -3.0, 0.5, 1.0, 6.0])
    starts = {"even": jnp.linspace(-4.0, 6.0, 5), "odd": jnp.array([-4.0, -3.9, -3.8, -3.7, 6.0])}
    found = gridsearch.search(lambda values: values, (), target, starts, n_iterations=30)
    np.testing.assert_allclose(found.log_snrs, target, atol=1e-5)
    assert found.error < 1e-5
    rms = {name: np.sqrt(np.mean((start - target) ** 2)) for name, start in starts.items()}
    np.testing.assert_allclose([found.errors[k] for k in rms], list(rms.values()), rtol=1e-9)


SDE = sdes.vp()
LAW = exact.mixture([0.2, 0.8], [[-1.0, 0.5], [1.0, -0.5]], 0.2)
PREDICT = exact.predictor(SDE, LAW)
EXACT = sampling.probability_flow(rtol=1e-5, atol=1e-5)


def starts(seed, n):
    return sampling.prior(jax.random.split(jax.random.key(seed), n), SDE, (2,))


def searched(draw, n=300, n_parts=8):
    keys, bind = jax.random.split(jax.random.key(0), n), lambda params: PREDICT
    return gridsearch.of_draw(keys, draw, EXACT, SDE, bind, {}, starts(1, n), n_parts=n_parts)


def test_ten_steps_on_the_found_grid_are_nearer_to_the_flow_of_other_starts_than_on_any_other_grid():
    """By a sixth or more than the best of four, DPM-Solver++(2M) on the mixture; the same again is the same grid."""
    draw = sampling.DRAWS["dpmpp_2m"](n_steps=10)
    found = searched(draw)
    assert found == searched(draw)
    fresh, keys = starts(2, 2000), jax.random.split(jax.random.key(3), 2000)
    true = jax.jit(lambda x: EXACT(keys, SDE, PREDICT, x).x)(fresh)
    run = jax.jit(lambda times, x: draw(keys, SDE, PREDICT, x, None, lambda sde: lambda u: times).x)
    u = jnp.linspace(0.0, 1.0, 11)

    def error(grid):
        return float(jnp.sqrt(jnp.mean((run(grid(SDE)(u), fresh) - true) ** 2)))

    others = {name: error(getattr(grids, name)) for name in found.errors}
    assert error(grids.piecewise(found.log_snrs)) < min(others.values()) / 1.2


def test_a_sampler_with_noise_is_refused():
    with pytest.raises(ValueError, match="a sampler with noise has no error to search a grid by"):
        searched(sampling.ddim(n_steps=3, eta=1.0), n=4)


@pytest.mark.parametrize(
    ("draw", "noisy"),
    [
        (sampling.DRAWS["ancestral"](n_steps=3), True),
        (sampling.ddim(n_steps=3, eta=0.0), False),
        (sampling.ddim(n_steps=3, eta=0.1), True),
        (sampling.annealed_langevin(n_levels=2, n_steps=2, denoise=True), True),
        (sampling.probability_flow(threshold="dynamic"), False),
    ],
    ids=["ancestral", "ddim", "ddim with eta", "langevin", "ode"],
)
def test_noise_is_what_depends_on_the_keys(draw, noisy):
    assert gridsearch.has_noise(draw, SDE) == noisy


def test_a_failed_reference_is_refused_and_counted():
    def failing(keys, sde, predict, x, label):
        return sampling.Draws(x, jnp.zeros(len(x), int), jnp.arange(len(x)) < 1)

    keys, draw = jax.random.split(jax.random.key(0), 4), sampling.ddim(n_steps=3)
    with pytest.raises(ValueError, match="the reference failed on 3 of 4 samples"):
        gridsearch.of_draw(keys, draw, failing, SDE, lambda params: PREDICT, {}, starts(1, 4))
