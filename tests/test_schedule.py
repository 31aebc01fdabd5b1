"""The learned schedule: pinned ends, monotone, its own inverse, and the density that its parameters say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax import schedule
from score_jax import sde as sdes
from score_jax.model import Model
from score_jax.types import Prediction

N_KNOTS = 9
LARGEST, SMALLEST = 13.3, -5.0


def make(scale, seed=0, **options):
    """The SDE at parameters drawn from N(0, scale^2)."""
    made = schedule.learned(LARGEST, SMALLEST, N_KNOTS, **options)
    return made.sde(scale * jax.random.normal(jax.random.key(seed), (N_KNOTS,)))


def density(params, floor):
    """The density of time in z, at the knots and as a function: the floor, and what exp(params) says for the rest."""
    knots = np.linspace(0, 1, len(params))
    free = np.exp(np.asarray(params, float))
    values = floor + (1 - floor) * free / np.trapezoid(free, knots)
    return lambda z: np.interp(z, knots, values)


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0, 100.0])
def test_the_ends_are_the_same_to_the_last_bit_whatever_the_parameters(scale):
    ends = np.array(sdes.log_snr_ends(make(scale)))
    np.testing.assert_array_equal(ends, np.array(sdes.log_snr_ends(make(0.0))))
    np.testing.assert_allclose(ends, [LARGEST, SMALLEST], rtol=3e-7)


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0, 100.0])
def test_log_snr_falls_with_time_and_so_do_its_derivatives_say(scale):
    sde, t = make(scale), jnp.linspace(0.0, 1.0, 2001)
    assert np.all(np.diff(sdes.log_snr(sde, t)) < 0)
    assert np.all(sdes.log_snr_rate(sde, t) > 0)


def test_time_of_log_snr_is_the_inverse_also_in_float32():
    sde, t = make(1.0), jnp.linspace(0.0, 1.0, 2001)
    log_snr = sdes.log_snr(sde, t)
    np.testing.assert_allclose(sde.time_of_log_snr(log_snr), t, atol=1e-6)
    log_snr = jnp.linspace(SMALLEST, LARGEST, 2001)
    back = sdes.log_snr(sde, sde.time_of_log_snr(log_snr))
    # a rounding of t moves log-SNR by 6e-8 d log_snr/dt
    slope = sdes.log_snr_rate(sde, sde.time_of_log_snr(log_snr))
    assert np.all(np.abs(back - log_snr) < 1e-6 * (2 + 0.2 * slope))


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_time_of_log_snr_is_the_inverse_in_float64(x64, scale):
    sde, t = make(scale), jnp.linspace(0.0, 1.0, 2001)
    np.testing.assert_allclose(sde.time_of_log_snr(sdes.log_snr(sde, t)), t, atol=1e-13)
    log_snr = jnp.linspace(SMALLEST, LARGEST, 2001)
    np.testing.assert_allclose(sdes.log_snr(sde, sde.time_of_log_snr(log_snr)), log_snr, atol=1e-11)


def test_time_is_the_integral_of_the_density_that_the_parameters_say(x64):
    floor, params = 0.1, jax.random.normal(jax.random.key(3), (N_KNOTS,))
    sde = schedule.learned(LARGEST, SMALLEST, N_KNOTS, floor).sde(params)
    z = np.linspace(0, 1, 8 * (N_KNOTS - 1) + 1)  # the trapezium rule is exact between the knots
    h = density(params, floor)(z)
    time = np.concatenate([[0], np.cumsum(0.5 * (h[1:] + h[:-1]) * np.diff(z))])
    log_snr = LARGEST + z * (SMALLEST - LARGEST)
    np.testing.assert_allclose(sde.time_of_log_snr(jnp.asarray(log_snr)), time, atol=1e-13)
    rate = sdes.log_snr_rate(sde, jnp.asarray(time))
    np.testing.assert_allclose(rate, (LARGEST - SMALLEST) / h, rtol=1e-8)


def test_before_training_time_is_uniform_in_log_snr():
    made = schedule.learned(LARGEST, SMALLEST, N_KNOTS)
    t = jnp.linspace(0.0, 1.0, 101)
    log_snr = sdes.log_snr(made.sde(made.init(jax.random.key(0))), t)
    np.testing.assert_allclose(log_snr, LARGEST + t * (SMALLEST - LARGEST), atol=3e-6)


def test_the_floor_bounds_the_rate_of_log_snr_wherever_training_goes():
    """One over the density, which is at least floor / range."""
    params = jnp.where(jnp.arange(N_KNOTS) == 4, 1e3, -1e3)
    sde = schedule.learned(LARGEST, SMALLEST, N_KNOTS, floor=0.05).sde(params)
    rate = sdes.log_snr_rate(sde, jnp.linspace(0.0, 1.0, 501))
    np.testing.assert_allclose(np.max(rate), (LARGEST - SMALLEST) / 0.05, rtol=1e-5)


def test_alpha_sigma_drift_and_diffusion_keep_their_digits_in_float32():
    """Against float64: at the ends 1 - alpha is 1e-6 and 1 - sigma 3e-3."""
    t = np.linspace(0, 1, 501).astype(np.float32)

    def quantities():
        sde = make(1.0)
        functions = sde.alpha, sde.sigma, *(lambda t, f=f: f(sde, t) for f in (sdes.drift,))
        return [
            np.asarray(f(jnp.asarray(t))) for f in (*functions, lambda t: sdes.diffusion(sde, t))
        ]

    single = quantities()
    with jax.enable_x64(True):
        params = np.asarray(jax.random.normal(jax.random.key(0), (N_KNOTS,), jnp.float32))
        sde = schedule.learned(LARGEST, SMALLEST, N_KNOTS).sde(jnp.asarray(params, float))
        time = jnp.asarray(t, float)
        log_snr = sdes.log_snr(sde, time)
        rate = sdes.log_snr_rate(sde, time)
        alpha, sigma = jax.nn.sigmoid(log_snr) ** 0.5, jax.nn.sigmoid(-log_snr) ** 0.5
        exact = alpha, sigma, -0.5 * sigma**2 * rate, sigma * rate**0.5
    for found, true in zip(single, exact, strict=True):
        np.testing.assert_allclose(found, true, rtol=2e-5)


def test_the_sde_is_differentiable_in_its_parameters():
    """The derivative of log-SNR at a time, against a difference in float64."""
    with jax.enable_x64(True):
        made = schedule.learned(LARGEST, SMALLEST, N_KNOTS)
        params, direction = jax.random.normal(jax.random.key(2), (2, N_KNOTS))
        t = jnp.linspace(0.05, 0.95, 7)
        for quantity in (sdes.log_snr, lambda sde, t: sde.time_of_log_snr(10 * t - 3)):
            at = lambda step, q=quantity: q(made.sde(params + step * direction), t)
            found = jax.jvp(at, (0.0,), (1.0,))[1]
            np.testing.assert_allclose(found, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-6)


def test_a_solver_meets_no_loop_in_it():
    sde, t = make(1.0), jnp.linspace(0.0, 1.0, 5)
    for function in (sde.alpha, sde.sigma, sde.time_of_log_snr):
        program = str(jax.make_jaxpr(function)(t))
        assert "while" not in program and "scan" not in program


def linear_model(sde):
    """eps_hat = w log_snr x: a prediction that reads the schedule."""

    def predict(params, x, t, label=None, *, keys=None, augment=None):
        eps = params["w"] * sdes.log_snr(sde, t)[:, None] * x
        return Prediction((x - sde.sigma(t)[:, None] * eps) / sde.alpha(t)[:, None], eps)

    init = lambda key, shape: {"w": jnp.full(shape, 0.3)}
    return Model(init, lambda params: sde, predict)


def test_the_attached_model_predicts_under_the_schedule_and_has_no_gradient_for_it():
    made = schedule.learned(LARGEST, SMALLEST, N_KNOTS)
    model = schedule.attach(linear_model, made)
    params = model.init(jax.random.key(0), (2,))
    params["schedule"] = jax.random.normal(jax.random.key(1), (N_KNOTS,))
    assert model.level_logp is None
    assert params["score"]["w"].shape == (2,)
    x, t = jax.random.normal(jax.random.key(2), (3, 2)), jnp.array([0.1, 0.5, 0.9])

    predict = lambda params: model.predict(params, x, t, None, keys=None).eps
    expected = 0.3 * sdes.log_snr(made.sde(params["schedule"]), t)[:, None] * x
    np.testing.assert_allclose(predict(params), expected, rtol=1e-6)
    grads = jax.grad(lambda params: jnp.sum(jnp.square(predict(params))))(params)
    assert np.all(np.asarray(grads["schedule"]) == 0)
    assert np.all(np.asarray(grads["score"]["w"]) != 0)
    # its SDE has one
    moved = jax.grad(lambda params: sdes.log_snr(model.sde(params), t[1]))(params)["schedule"]
    assert np.any(np.asarray(moved) != 0)


def test_the_attached_model_knows_levels_if_the_model_does():
    def with_levels(sde):
        level_logp = lambda params, x, t, label=None: sdes.log_snr(sde, t) + params["w"][0]
        return linear_model(sde)._replace(level_logp=level_logp)

    made = schedule.learned(LARGEST, SMALLEST, N_KNOTS)
    model = schedule.attach(with_levels, made)
    params = model.init(jax.random.key(0), (2,))
    t = jnp.array([0.25])
    found = model.level_logp(params, jnp.zeros((1, 2)), t)
    np.testing.assert_allclose(
        found, sdes.log_snr(made.sde(params["schedule"]), t) + 0.3, rtol=1e-6
    )
