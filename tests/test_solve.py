"""diffrax along a grid: implicit solvers, adaptive steps on a fixed Brownian path, control of a batch's steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, assert_mean, coefficients

from score_jax import exact, parallel, sampling, solve
from score_jax import sde as sdes


def perfect(sde):
    return exact.predictor(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))


def ends(sde):
    return coefficients(sde, [sde.t_max, sde.t_min])


def prior(n, sde):
    mean, covariance = GAUSSIAN.moments(ends(sde)[0])
    return mean + jax.random.normal(jax.random.key(1), (n, 2)) @ np.linalg.cholesky(covariance).T


def drawn(draw, sde, n):
    run = jax.jit(lambda keys, x: draw(keys, sde, perfect(sde), x))
    return run(jax.random.split(jax.random.key(0), n), prior(n, sde))


def counting(calls):
    """-x cos(10 t), counting its evaluations, and those of its derivative once for each direction."""
    note = lambda value: jax.debug.callback(lambda _: calls.append(1), value)

    @jax.custom_jvp
    def field(t, x):
        note(t)
        return -x * jnp.cos(10 * t)

    @field.defjvp
    def derivative(primals, tangents):
        (t, x), (_, dx) = primals, tangents
        note(dx[0])
        return field(t, x), -dx * jnp.cos(10 * t)

    return field


@pytest.mark.parametrize("n_steps", [None, 10], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("solver", ["kvaerno3", "kvaerno5"])
def test_an_implicit_solver_reports_its_evaluations_and_its_jacobians(solver, n_steps):
    calls = []
    field, options = counting(calls), dict(solver=solver, n_steps=n_steps, atol=1e-4)
    run = jax.jit(lambda x: solve.ode(field, x, lambda u: 2.0 - u, **options))
    found = run(jnp.ones(3))
    jax.effects_barrier()
    assert found.ok
    assert found.nfe == len(calls)


@pytest.mark.parametrize(("solver", "order"), [("kvaerno3", 3), ("kvaerno5", 5)])
def test_implicit_solvers_converge_at_their_order(x64, solver, order):
    """dx/dt = -x^2 cos(t): four Newton iterations leave nothing that the order would show."""
    run = jax.jit(
        lambda n: (
            solve.ode(
                lambda t, x: -jnp.cos(t) * x**2,
                jnp.ones(1),
                lambda u: 2 * u,
                solver=solver,
                n_steps=n,
            ).y
        ),
        static_argnums=0,
    )
    error = lambda n: abs(float(run(n)[0]) - 1 / (1 + np.sin(2.0)))
    np.testing.assert_allclose(error(20) / error(40), 2.0**order, rtol=0.25)


def test_an_implicit_solver_takes_long_steps_on_a_stiff_problem(x64):
    """dx/dt = -1e4 (x - cos t): an explicit one is held to steps of 3e-4 by stability."""
    field = lambda t, x: -1e4 * (x - jnp.cos(t))
    run = lambda solver: solve.ode(
        field, jnp.ones(1), lambda u: 2 * u, solver=solver, rtol=1e-4, max_steps=20000
    )
    stiff, explicit = run("kvaerno5"), run("tsit5")
    for found in (stiff, explicit):
        assert found.ok
        np.testing.assert_allclose(found.y, np.cos(2.0), atol=1e-3)
    assert stiff.nfe < explicit.nfe / 10


def test_an_implicit_solver_runs_on_all_devices_and_solves_for_a_pytree(x64):
    """The coupled (x, y) turns by an angle of 2; the states of `pmap` have a sharding of their own."""

    def turned(rate, start):
        field = lambda t, state: {"x": rate * state["y"], "y": -rate * state["x"]}
        options = dict(solver="kvaerno3", n_steps=40)
        return solve.each(lambda state: solve.ode(field, state, lambda u: 2 * u, **options), start)

    x, y = np.arange(1.0, 9.0), np.arange(8.0)
    found = parallel.map_examples(turned, 8)(jnp.ones(()), {"x": x, "y": y})
    assert np.all(found.ok)
    c, s = np.cos(2.0), np.sin(2.0)
    np.testing.assert_allclose(found.y["x"], c * x + s * y, atol=1e-3)
    np.testing.assert_allclose(found.y["y"], c * y - s * x, atol=1e-3)


# adaptive steps of the reverse SDE


@pytest.mark.parametrize("solver", ["shark", "spark", "sra1"])
def test_adaptive_sde_steps_report_the_evaluations_they_make(solver):
    calls = []

    def drift(t, x):
        jax.debug.callback(lambda _: calls.append(1), t)
        return -x * jnp.cos(20 * t)

    run = jax.jit(
        lambda key: solve.sde(
            key, drift, jnp.sqrt, jnp.ones(2), lambda u: 2.0 - u, solver=solver, n_steps=None
        )
    )
    found = run(jax.random.key(0))
    jax.effects_barrier()
    assert found.ok
    assert found.nfe == len(calls)


def test_adaptive_sde_samples_have_the_datas_moments():
    """4000 samples: noise drawn anew after a rejection would favour the increments that pass."""
    sde = sdes.vp()
    found = drawn(sampling.reverse_sde(n_steps=None, rtol=1e-2, atol=1e-2), sde, 4000)
    mean, covariance = GAUSSIAN.moments(ends(sde)[1])
    assert np.all(found.ok)
    assert len(np.unique(found.nfe)) > 10  # each sample has its own steps
    d = np.asarray(found.x, float) - mean
    moments = np.concatenate([d, d**2, d[:, :1] * d[:, 1:]], axis=1)
    truth = [0, 0, covariance[0, 0], covariance[1, 1], covariance[0, 1]]
    assert_mean(moments, truth)


# one control for the batch


@pytest.mark.parametrize(
    "make",
    [
        lambda **each: sampling.probability_flow(solver="heun", n_steps=8, **each),
        lambda **each: sampling.reverse_sde(n_steps=8, **each),
    ],
    ids=["ode", "sde"],
)
def test_with_fixed_steps_a_batchs_control_changes_nothing(x64, make):
    sde = sdes.vp()
    alone, batch = (drawn(make(per_sample=each), sde, 3) for each in (True, False))
    np.testing.assert_allclose(alone.x, batch.x, rtol=1e-9)
    np.testing.assert_array_equal(alone.nfe, batch.nfe)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_a_batchs_adaptive_steps_are_the_same_for_all_and_reach_the_flow_map(x64, name):
    sde = {"vp": sdes.vp, "ve": sdes.ve}[name]()
    draw = sampling.probability_flow(rtol=1e-6, atol=1e-6, per_sample=False)
    found = drawn(draw, sde, 5)
    assert np.all(found.ok) and found.ok.shape == (5,)
    assert len(np.unique(found.nfe)) == 1 and found.nfe.shape == (5,)
    np.testing.assert_allclose(found.x, GAUSSIAN.flow(prior(5, sde), *ends(sde)), atol=1e-4)


def test_a_sample_follows_its_own_brownian_path_whatever_the_steps(x64):
    """Alone at 1e-2 or in a batch at 1e-3, the key gives the same sample, to the coarse one's error."""
    sde = sdes.vp()
    make = lambda tol, each: sampling.reverse_sde(n_steps=None, rtol=tol, atol=tol, per_sample=each)
    alone, batch = (drawn(make(*options), sde, 8) for options in ((1e-2, True), (1e-3, False)))
    assert len(np.unique(batch.nfe)) == 1
    assert batch.nfe[0] > 1.5 * np.mean(alone.nfe)
    assert np.sqrt(np.mean((alone.x - batch.x) ** 2)) < 0.05 * np.std(batch.x)


def test_only_solvers_with_an_error_estimate_adapt():
    assert {
        name for name in (*solve.ODE_SOLVERS, *solve.SDE_SOLVERS) if not solve.adapts(name)
    } == {"euler"}


# Adams' multistep methods


def logistic(n_steps, solver, **options):
    """dx/dt = -x^2 cos(t) from 1 at 0 to 2, whose solution is 1 / (1 + sin t), and dy/dt = x."""
    field = lambda t, s: {"x": -jnp.cos(t) * s["x"] ** 2, "y": s["x"][0]}
    start = {"x": jnp.ones(2), "y": jnp.zeros(())}
    run = jax.jit(
        lambda start: solve.ode(
            field, start, lambda u: 2 * u, solver=solver, n_steps=n_steps, **options
        )
    )
    return run(start)


@pytest.mark.parametrize(("solver", "order"), solve.MULTISTEP.items())
def test_multistep_solvers_converge_at_their_order(x64, solver, order):
    true = 1 / (1 + np.sin(2.0))
    error = lambda n: abs(float(logistic(n, solver).y["x"][1]) - true)
    np.testing.assert_allclose(error(200) / error(400), 2.0**order, rtol=0.15)


@pytest.mark.parametrize("n_steps", [2, 9])
def test_a_multistep_solver_makes_one_evaluation_a_step_after_its_start(n_steps):
    calls = []
    field = counting(calls)
    run = jax.jit(
        lambda x: solve.ode(field, x, lambda u: 2.0 - u, solver="adams4", n_steps=n_steps)
    )
    found = run(jnp.ones(3))
    jax.effects_barrier()
    assert found.ok
    assert found.nfe == len(calls) == {2: 8, 9: 18}[n_steps]


def test_a_multistep_solver_refuses_to_adapt_its_steps():
    with pytest.raises(ValueError, match="adams4 takes equal steps only; set n_steps"):
        solve.ode(lambda t, x: x, jnp.ones(1), lambda u: u, solver="adams4")


@pytest.mark.parametrize("options", [dict(n_steps=40), dict(n_steps=None, rtol=1e-4, atol=1e-4)])
@pytest.mark.parametrize("solver", ["heun", "tsit5", "dopri5", "dopri8", "adams4"])
def test_the_measured_errors_are_the_embedded_methods_less_the_solvers(x64, solver, options):
    """As quadratures of t^p: nothing for a p that both have exactly; else Euler's and Adams-Bashforth's fall short."""
    if solver == "adams4" and options["n_steps"] is None:
        pytest.skip("equal steps only")
    low = {"heun": 1, "tsit5": 4, "dopri5": 4, "dopri8": 7, "adams4": 3}[solver]
    measure = lambda y, error: error[0]

    def total(power):
        field = lambda t, y: jnp.full(1, (power + 1.0) * t**power)
        run = lambda: solve.ode(
            field, jnp.zeros(1), lambda u: 1.0 + u, solver=solver, measure=measure, **options
        )
        found = jax.jit(run)()
        assert found.ok
        return float(found.y[1])

    assert abs(total(low - 1)) < 1e-12
    if solver in ("heun", "adams4"):
        assert total(low) < -1e-9


def test_a_solver_without_an_embedded_method_measures_nothing(x64):
    measured = lambda solver: logistic(8, solver, measure=lambda y, error: error["y"]).y[1]
    assert np.isnan(measured("euler"))
    assert np.isfinite(measured("adams3")) and np.isfinite(measured("heun"))


def test_rejected_steps_add_nothing_to_the_measured_error(x64):
    """Each accepted step counts one: as many as there are between the ends, fewer than were tried."""
    field = lambda t, y: -y * jnp.cos(40 * t)
    run = lambda tol: solve.ode(
        field,
        jnp.ones(1),
        lambda u: 2 * u,
        rtol=tol,
        atol=tol,
        measure=lambda y, error: 1.0 + 0 * y[0],
    )
    found = run(1e-6)
    first, each = solve.ode_evaluations("tsit5", 1)
    tried = (int(found.nfe) - first) // each
    assert 0 < float(found.y[1]) < tried
