"""The benchmark of the likelihood's cost: its steps are the library's, and its truth is one for all coordinates."""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax import likelihood, steps, whiten
from score_jax import sde as sdes
from score_jax.model import Model, bind
from score_jax.types import Prediction

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import likelihood_cost as cost

KNOTS = -10.0, -4.0, 0.0, 3.0, 8.0, 13.0


@pytest.fixture(scope="module")
def problem():
    """Three dimensions, a prediction with no structure but smoothness."""
    sde = sdes.vp()

    def predict(params, x, t, label=None, *, keys=None):
        alpha, sigma = (c(t)[:, None] for c in (sde.alpha, sde.sigma))
        eps = sigma * x / (0.3 * alpha**2 + sigma**2) + 0.2 * sigma * jnp.sin(x[:, ::-1])
        return Prediction((x - sigma * eps) / alpha, eps)

    data = SimpleNamespace(levels=None, shape=(3,))
    model = Model(lambda key, shape: {}, lambda params: sde, predict)
    rng = np.random.default_rng(0)
    mix = np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 0.3], [0.0, 0.0, 0.2]])
    x = (rng.normal(size=(200, 3)) @ mix + 0.3).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 4)
    gaussians = {"none": None, "isotropic": None, "covariance": whiten.covariance(x)}
    experiment = SimpleNamespace(model=model, data=data)
    return cost.Problem(experiment, {}, keys, x[:4], x[4:8], gaussians)


@pytest.mark.parametrize(
    ("whitening", "solver", "n_steps", "trace"),
    [
        ("none", "dopri5", 6, "gaussian"),
        ("covariance", "adams4", 12, "rademacher"),
        ("covariance", "dopri8", 3, "rademacher"),
        ("none", "adams3", 12, "exact"),
    ],
)
def test_steps_from_python_are_those_of_the_library(problem, whitening, solver, n_steps, trace):
    found = cost.Solver(problem)(whitening, KNOTS, solver, n_steps, trace=trace)
    expected = jax.jit(
        lambda keys, x: likelihood.log_likelihood(
            keys,
            problem.sde,
            bind(problem.experiment.model, {}),
            x,
            grid=steps.smooth(KNOTS)(problem.sde),
            whiten=problem.gaussians[whitening],
            solver=solver,
            n_steps=n_steps,
            trace=trace,
        )
    )(problem.keys, problem.x)
    np.testing.assert_allclose(found.logp, expected.logp, rtol=0, atol=5e-5)
    np.testing.assert_allclose(found.latent, expected.latent, rtol=0, atol=5e-5)
    np.testing.assert_allclose(found.own, expected.solver_error, rtol=1e-3, atol=5e-5)
    assert found.nfe == expected.nfe[0]


def test_a_probes_estimate_moves_by_the_control_variate_when_whitened(problem):
    solver = cost.Solver(problem)
    plain, whitened = (
        solver(whitening, None, "adams5", 120).logp for whitening in ("none", "covariance")
    )
    moved = cost.control(problem, "covariance")
    assert np.std(moved) > 0.1
    np.testing.assert_allclose(plain - whitened, moved, rtol=0, atol=2e-4)
