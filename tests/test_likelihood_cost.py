"""The benchmark of the likelihood's cost: its steps are the library's, and its truth is one for all coordinates."""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax import grids, likelihood, steps, whiten
from score_jax import sde as sdes
from score_jax.model import Model, bind
from score_jax.types import Prediction

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import likelihood_cost as cost

KNOTS = -10.0, -4.0, 0.0, 3.0, 8.0, 13.0


def make_problem(dtype=np.float32):
    """Three dimensions, a prediction with no structure but smoothness."""
    sde = sdes.vp()

    def predict(params, x, t, label=None, *, keys=None, augment=None):
        alpha, sigma = (c(t)[:, None] for c in (sde.alpha, sde.sigma))
        eps = sigma * x / (0.3 * alpha**2 + sigma**2) + 0.2 * sigma * jnp.sin(x[:, ::-1])
        return Prediction((x - sigma * eps) / alpha, eps)

    data = SimpleNamespace(levels=None, shape=(3,))
    model = Model(lambda key, shape: {}, lambda params: sde, predict)
    rng = np.random.default_rng(0)
    mix = np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 0.3], [0.0, 0.0, 0.2]])
    x = (rng.normal(size=(200, 3)) @ mix + 0.3).astype(dtype)
    keys = jax.random.split(jax.random.key(1), 4)
    gaussians = {"none": None, "isotropic": None, "covariance": whiten.covariance(x)}
    experiment = SimpleNamespace(model=model, data=data)
    return cost.Problem(experiment, {}, keys, x[:4], x[4:8], gaussians)


def solved(problem, whitening, grid, **options):
    """By the library."""

    @jax.jit
    def fn(keys, x):
        predict = bind(problem.experiment.model, {})
        options_of_all = dict(grid=grid(problem.sde), whiten=problem.gaussians[whitening])
        return likelihood.log_likelihood(keys, problem.sde, predict, x, **options_of_all, **options)

    return fn(problem.keys, jnp.asarray(problem.x))


@pytest.mark.parametrize(
    ("whitening", "solver", "n_steps", "trace"),
    [
        ("none", "dopri5", 6, "gaussian"),
        ("covariance", "adams4", 12, "rademacher"),
        ("none", "adams3", 12, "exact"),
    ],
)
def test_steps_from_python_are_those_of_the_library(whitening, solver, n_steps, trace):
    problem = make_problem()
    options = dict(solver=solver, n_steps=n_steps, trace=trace)
    found = cost.Solver(problem)(whitening, KNOTS, solver, n_steps, trace=trace)
    expected = solved(problem, whitening, steps.smooth(KNOTS), **options)
    np.testing.assert_allclose(found.logp, expected.logp, rtol=0, atol=5e-5)
    np.testing.assert_allclose(found.latent, expected.latent, rtol=0, atol=5e-5)
    np.testing.assert_allclose(found.own, expected.solver_error, rtol=1e-3, atol=5e-5)
    assert found.nfe == expected.nfe[0]


def test_a_probes_estimate_moves_by_the_control_variate_when_whitened(x64):
    problem = make_problem(np.float64)
    plain, whitened = (
        solved(problem, whitening, grids.log_snr, solver="adams5", n_steps=600).logp
        for whitening in ("none", "covariance")
    )
    moved = cost.control(problem, "covariance")
    assert np.std(moved) > 0.1
    np.testing.assert_allclose(plain - whitened, moved, rtol=0, atol=1e-6)
