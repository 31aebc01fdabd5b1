"""An SDE with a force against the Fokker-Planck equation, solved on a grid: simulation, losses, flow.

Data: a mixture of two Gaussians on the line. dp/dt = -d/dx [(f x + force) p] + g^2 / 2 d^2p/dx^2 from
t_min, where p is the noised mixture, by central differences of the fluxes and Crank-Nicolson.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean
from scipy.linalg import solve_banded

from score_jax import dynamics, exact, grids, predict, sampling
from score_jax import score_matching as sm
from score_jax import sde as sdes
from score_jax.likelihood import log_likelihood
from score_jax.model import Model
from score_jax.simulate import simulate
from score_jax.types import Batch, Prediction

SDE = sdes.anharmonic()
WEIGHTS, MEANS, STD = np.array([0.3, 0.7]), np.array([-1.0, 1.2]), 0.35
DX = 0.01  # at 0.02 the log-likelihood is off by 8e-3 in the tails, at 0.01 by 2e-3
X = DX * np.arange(-700, 701)
TIMES = np.linspace(SDE.t_min, SDE.t_max, 1001)


def initial(x):
    """The density at t_min."""
    t = jnp.asarray(SDE.t_min)
    logp = exact.mixture(WEIGHTS, MEANS[:, None], STD)(
        jnp.asarray(x)[:, None], SDE.alpha(t), SDE.sigma(t)
    )
    return np.exp(np.asarray(logp, float))


@functools.cache
def fokker_planck():
    """p at TIMES and X. No flux leaves at the ends."""
    faces = (X[1:] + X[:-1]) / 2
    middles = (TIMES[1:] + TIMES[:-1]) / 2
    with jax.enable_x64(True):
        sde = sdes.anharmonic()
        t = jnp.asarray(middles)
        f, g = np.asarray(sdes.drift(sde, t)), np.asarray(sdes.diffusion(sde, t))
        force = np.asarray(sde.force(t, jnp.broadcast_to(jnp.asarray(faces), (len(t), len(faces)))))
    p = [initial(X)]
    for i, dt in enumerate(np.diff(TIMES)):
        velocity, rate = f[i] * faces + force[i], 0.5 * g[i] ** 2 / DX
        # the flux through a face, of the cell to the left and of that to the right
        left, right = velocity / 2 + rate, velocity / 2 - rate
        upper, lower = np.append(0, -right), np.append(left, 0)
        diagonal = np.append(-left, 0) + np.append(0, right)
        bands = np.stack([upper, diagonal, lower]) * dt / DX / 2
        change = bands[1] * p[-1]
        change[:-1] += bands[0, 1:] * p[-1][1:]
        change[1:] += bands[2, :-1] * p[-1][:-1]
        p.append(solve_banded((1, 1), np.array([[0], [1], [0]]) - bands, p[-1] + change))
    return np.stack(p)


@functools.cache
def score_table():
    return np.gradient(np.log(np.maximum(fokker_planck(), 1e-30)), DX, axis=1, edge_order=2)


def score(table, x, t):
    """The table's score at x [b, d] and t [b]: cubic between four points of X, linear between TIMES."""
    row = (t - SDE.t_min) / (TIMES[1] - TIMES[0])
    column = jnp.clip((x - X[0]) / DX, 2.0, len(X) - 3.0)
    i = jnp.clip(row.astype(int), 0, len(TIMES) - 2)[:, None]
    j = column.astype(int)
    u, share = column - j, row[:, None] - i
    weights = [
        -u * (u - 1) * (u - 2) / 6,
        (u + 1) * (u - 1) * (u - 2) / 2,
        -(u + 1) * u * (u - 2) / 2,
        (u + 1) * u * (u - 1) / 6,
    ]
    return sum(
        w * ((1 - share) * table[i, j + k] + share * table[i + 1, j + k])
        for k, w in zip(range(-1, 3), weights, strict=True)
    )


def true_predict(table):
    return lambda x, t, label=None: predict.read("score", SDE, score(table, x, t), x, t)


def data(key, n):
    which, noise = jax.random.split(key)
    means = jnp.asarray(MEANS, jnp.float32)[
        jax.random.choice(which, 2, (n,), p=jnp.asarray(WEIGHTS))
    ]
    return (means + STD * jax.random.normal(noise, (n,)))[:, None]


def test_the_drift_is_the_gradient_of_the_well(x64):
    """-beta / 2 dU/dx, U = x^2 / 2 - strength alpha^2 width log cosh(x / width)."""
    sde = sdes.anharmonic(strength=1.5, width=0.4, beta_min=0.2, beta_max=5.0)
    x, t = jnp.linspace(-2.0, 2.0, 9), jnp.asarray(0.3)
    alpha = np.exp(-0.5 * (0.2 * 0.3 + 2.4 * 0.3**2))
    well = lambda x: x**2 / 2 - 1.5 * alpha**2 * 0.4 * jnp.log(jnp.cosh(x / 0.4))
    expected = -0.5 * (0.2 + 4.8 * 0.3) * jax.vmap(jax.grad(well))(x)
    np.testing.assert_allclose(sdes.drift(sde, t) * x + sde.force(t, x), expected, rtol=1e-9)


def test_the_law_at_t_max_is_as_near_to_the_prior_as_vps():
    """Under VP the mean is left at alpha(1) = 0.0066 times the data's; here both moments are of that order."""
    p = fokker_planck()[-1] * DX
    mean, square = p @ X, p @ X**2
    assert abs(mean) < 2 * 0.0066 * 1.2
    assert abs(square - 1) < 2 * 0.0066
    # where the force is at work, the law is not VP's
    half = fokker_planck()[300] * DX
    alpha = float(SDE.alpha(jnp.asarray(TIMES[300])))
    assert abs(half @ X - alpha * WEIGHTS @ MEANS) > 0.1


def test_simulated_moments_are_the_fokker_planck_equations():
    """At four times, 20000 paths each."""
    rows, n = np.array([10, 200, 400, 1000]), 20000
    data_key, path_key = jax.random.split(jax.random.key(0))
    t = jnp.asarray(np.repeat(TIMES[rows], n), jnp.float32)
    run = jax.jit(lambda keys, x, t: simulate(keys, SDE, x, t))
    x = run(jax.random.split(path_key, len(t)), data(data_key, len(t)), t)
    powers = np.asarray(x, float).reshape(len(rows), n, 1) ** np.arange(1, 5)
    p = fokker_planck()[rows] * DX
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    assert_mean(powers.swapaxes(0, 1), p @ X[:, None] ** np.arange(1, 5))


def test_simulation_is_of_order_2_and_1_with_euler(x64):
    """Under the force c beta / 2 x the mean, the difference of two paths of one noise, goes as alpha^(1 - c)."""
    c, key = 0.4, jax.random.key(0)
    linear_part = sdes.vp()
    sde = linear_part._replace(force=lambda t, x: -c * sdes.drift(linear_part, t) * x)
    t = jnp.asarray([0.7])
    truth = sde.alpha(t)[0] ** (1 - c) * sde.alpha(jnp.asarray(sde.t_min)) ** c

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def error(n_steps, solver):
        run = lambda x: simulate(key[None], sde, x, t, n_steps=n_steps, solver=solver)
        return (run(jnp.ones((1, 1))) - run(jnp.zeros((1, 1))))[0, 0] - truth

    for solver, order in (("shark", 2), ("euler", 1)):
        ratio = error(32, solver) / error(64, solver)
        np.testing.assert_allclose(np.log2(ratio), order, atol=0.1)


def perturbed_model(table):
    """The true score plus theta times a bump: no objective should want any of it."""

    def predict_fn(theta, x, t, label=None, *, keys=None, augment=None):
        s = score(table, x, t) + theta * jnp.sin(2 * x)
        return predict.read("score", SDE, s, x, t)

    return Model(init=None, sde=lambda theta: SDE, predict=predict_fn)


def test_the_true_score_is_where_every_objective_without_it_is_stationary():
    """Differences by a step of 0.01 sigma: their own error is below the standard error."""
    model = perturbed_model(jnp.asarray(score_table(), jnp.float32))
    options = dict(simulation_steps=16)
    family = [
        sm.implicit(model, **options),
        sm.sliced(model, projection="gaussian", **options),
        sm.sliced_vr(model, **options),
        sm.finite_difference(model, step=0.01, **options),
    ]

    def gradients(key):
        data_key, examples, times = jax.random.split(key, 3)
        keys = jax.random.split(examples, 64)
        batch = Batch(data(data_key, 64), None, keys, jnp.arange(64) / 64)
        total = lambda theta, loss: loss(times, theta, (), batch, 0)[0]
        return jnp.stack([jax.grad(total)(0.0, loss) for loss in family])

    assert_mean(jax.jit(jax.vmap(gradients))(jax.random.split(jax.random.key(1), 200)), 0.0)


def test_log_likelihood_with_the_true_score_is_the_density_at_t_min():
    """What is left is the table's, of second order in DX."""
    table = jnp.asarray(score_table(), jnp.float32)
    last = jnp.asarray(np.log(fokker_planck()[-1]), jnp.float32)
    x = jnp.linspace(-2.0, 2.2, 8)[:, None]
    found = jax.jit(
        lambda keys, table, x: log_likelihood(
            keys,
            SDE,
            true_predict(table),
            x,
            grid=grids.uniform(SDE),
            trace="exact",
            prior_logp=lambda sde, x: jnp.interp(x[:, 0], jnp.asarray(X), last),
            solver="heun",
            n_steps=200,
        )
    )(jax.random.split(jax.random.key(0), 8), table, x)
    np.testing.assert_allclose(found.logp, np.log(initial(x[:, 0])), atol=5e-3)


@pytest.mark.parametrize("noise", [0.0, 1.0, 0.5])
def test_the_reverse_drift_is_the_forward_one_less_the_scores_part(x64, noise):
    """f x + force - (1 + c^2) / 2 g^2 score."""
    sde = sdes.anharmonic()
    x, t = jnp.linspace(-2.0, 2.0, 5)[:, None], jnp.asarray(0.4)
    score = lambda x: -jnp.tanh(x) - x
    predictor = lambda x, t, label=None: predict.read("score", sde, score(x), x, t)
    found = dynamics.reverse_drift(sde, predictor, noise=noise)(t, x)
    g2 = sdes.diffusion(sde, t) ** 2
    expected = sdes.drift(sde, t) * x + sde.force(t, x) - 0.5 * (1 + noise**2) * g2 * score(x)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_four_devices_simulate_what_one_does():
    """Through the loss, each device with its own quarter of the examples."""
    predictor = lambda w, x, t, label=None, *, keys=None, augment=None: Prediction(x, w * x)
    loss = sm.sliced(Model(None, lambda w: SDE, predictor), simulation_steps=4)
    keys = jax.random.split(jax.random.key(2), 8)
    batch = Batch(data(jax.random.key(3), 8), None, keys, jnp.arange(8) / 8)
    fn = lambda batch: loss(jax.random.key(4), 0.3, (), batch, 0)[0]
    quarters = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), batch)
    np.testing.assert_allclose(np.mean(jax.pmap(fn)(quarters)), jax.jit(fn)(batch), rtol=1e-5)


def test_draws_of_the_reverse_sde_and_of_the_flow_have_the_datas_moments():
    """From N(0, I), which is off by alpha(1): 1000 draws do not see it."""
    table, n = jnp.asarray(score_table(), jnp.float32), 1000
    keys = jax.random.split(jax.random.key(5), n)
    x = sampling.prior(keys, SDE, (1,))
    steps = dict(grid=grids.uniform, n_steps=100, per_sample=False)
    for draw in (sampling.reverse_sde(**steps), sampling.probability_flow(solver="heun", **steps)):
        run = jax.jit(lambda keys, table, x, draw=draw: draw(keys, SDE, true_predict(table), x).x)
        found = np.asarray(run(keys, table, x), float)
        exact_moments = fokker_planck()[0] * DX @ X[:, None] ** np.arange(1, 4)
        assert_mean(found ** np.arange(1, 4), exact_moments)
