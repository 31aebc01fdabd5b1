"""What a model tells its network, and how it reads the answer, by networks that answer with what they were told."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SDES, coefficients

from score_jax import sde as sdes
from score_jax.model import Model, bind, denoiser, deterministic
from score_jax.predict import combine
from score_jax.types import Prediction


class Net(nn.Module):
    """A network whose output is answer(x, c, label, keys, augment) times its one parameter, 1."""

    answer: Callable

    @nn.compact
    def __call__(self, x, c, label=None, *, keys=None, augment=None):
        one = self.param("one", nn.initializers.ones, ())
        return one * jnp.broadcast_to(self.answer(x, c, label, keys, augment), x.shape)


def told(answer, sde, x, t, label=None, keys=None, augment=None, **options):
    """What `answer` makes of the network's arguments: with output "eps" the prediction's eps."""
    model = denoiser(Net(answer), sde, output="eps", **options)
    params = model.init(jax.random.key(0), x.shape[1:])
    return model.predict(params, x, t, label, keys=keys, augment=augment).eps


def noise_level(sde, t, **options):
    x = jnp.zeros((len(t), 1))
    return told(lambda x, c, *rest: c[:, None], sde, x, t, **options)[:, 0]


@pytest.mark.parametrize("name", SDES)
def test_the_log_snr_conditioning_is_the_share_of_the_range_passed_in_percent(name, x64):
    """0 at t_min, 100 at t_max, linear in log-SNR between."""
    sde = SDES[name]()
    ends = coefficients(sde, [sde.t_min, sde.t_max])
    largest, smallest = (2 * np.log(alpha / sigma) for alpha, sigma in ends)
    share = np.array([0.0, 0.01, 0.25, 0.5, 0.75, 1.0])
    t = sde.time_of_log_snr(jnp.asarray(largest + share * (smallest - largest)))
    np.testing.assert_allclose(noise_level(sde, t), 100 * share, atol=1e-6)
    np.testing.assert_allclose(noise_level(sde, t, conditioning="log_snr"), 100 * share, atol=1e-6)


def test_the_time_conditioning_is_999_t():
    found = noise_level(sdes.vp(), jnp.array([0.0, 1e-3, 0.5, 1.0]), conditioning="t")
    np.testing.assert_allclose(found, [0.0, 0.999, 499.5, 999.0], rtol=1e-6)


def test_the_time_conditioning_has_the_same_range_where_time_goes_beyond_one():
    found = noise_level(sdes.edm(sigma_max=80.0), jnp.array([0.8, 40.0, 80.0]), conditioning="t")
    np.testing.assert_allclose(found, [9.99, 499.5, 999.0], rtol=1e-6)
    within_one = noise_level(sdes.linear(t_max=0.9), jnp.array([0.5, 0.9]), conditioning="t")
    np.testing.assert_allclose(within_one, [499.5, 899.1], rtol=1e-6)


@pytest.mark.parametrize("name", SDES)
def test_log_sigma_conditioning_is_of_the_ratio_and_edms_is_a_quarter_of_it(name, x64):
    """NCSN++ embeds log sigma under VE; c_noise = log(sigma) / 4 in EDM, table 1, at sigma / alpha."""
    sde = SDES[name]()
    t = jnp.linspace(sde.t_min, sde.t_max, 9)
    log_sigma = [np.log(sigma / alpha) for alpha, sigma in coefficients(sde, t)]
    found = noise_level(sde, t, conditioning="log_sigma")
    np.testing.assert_allclose(found, log_sigma, rtol=1e-9, atol=1e-9)
    found = noise_level(sde, t, conditioning="edm")
    np.testing.assert_allclose(found, np.divide(log_sigma, 4), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_data_of_the_given_std_reach_the_network_with_unit_variance_at_every_time(
    name, sigma_data, x64
):
    """x at one standard deviation of alpha x0 + sigma eps, sqrt(alpha^2 sigma_data^2 + sigma^2), is told as 1."""
    sde = SDES[name]()
    t = jnp.linspace(sde.t_min, sde.t_max, 9)
    std = [np.hypot(alpha * sigma_data, sigma) for alpha, sigma in coefficients(sde, t)]
    x = jnp.asarray(std)[:, None] * jnp.array([1.0, -2.0])
    found = told(lambda x, *rest: x, sde, x, t, sigma_data=sigma_data)
    np.testing.assert_allclose(found, np.tile([1.0, -2.0], (9, 1)), rtol=1e-9)


def test_without_sigma_data_the_network_sees_x_itself(x64):
    x = jnp.array([[50.0, -3.0], [0.1, 20.0]])
    found = told(lambda x, *rest: x, sdes.ve(), x, jnp.array([0.2, 0.9]))
    np.testing.assert_allclose(found, x, rtol=1e-12)


@pytest.mark.parametrize("sigma_data", [None, 0.5])
def test_the_output_is_read_with_x_as_it_came_not_as_the_network_saw_it(sigma_data, x64):
    """v = alpha eps - sigma x0 = 0 at alpha^2 + sigma^2 = 1 leaves x0 = alpha x and eps = sigma x."""
    sde, t = sdes.vp(), jnp.array([0.1, 0.7])
    model = denoiser(Net(lambda *rest: 0.0), sde, output="v", sigma_data=sigma_data)
    x = jnp.array([[3.0], [-2.0]])
    found = model.predict(model.init(jax.random.key(0), (1,)), x, t)
    alpha, sigma = np.array(coefficients(sde, t)).T
    np.testing.assert_allclose(found.x0[:, 0], alpha * x[:, 0], rtol=1e-9)
    np.testing.assert_allclose(found.eps[:, 0], sigma * x[:, 0], rtol=1e-9)


def test_labels_keys_and_augmentations_reach_the_network():
    x, t, label = jnp.zeros((3, 1)), jnp.full(3, 0.5), jnp.array([4, 0, 2])
    found = told(lambda x, c, label, *rest: label[:, None] * 1.0, sdes.vp(), x, t, label)
    np.testing.assert_allclose(found[:, 0], label, rtol=1e-6)
    keys = jax.random.split(jax.random.key(1), 3)

    def first_bits(x, c, label, keys, augment):
        return 0.0 if keys is None else jax.vmap(jax.random.uniform)(keys)[:, None]

    found = told(first_bits, sdes.vp(), x, t, keys=keys)
    np.testing.assert_allclose(found[:, 0], [jax.random.uniform(key) for key in keys], rtol=1e-6)
    augment = jnp.array([[0.5], [-1.0], [2.0]])
    given = lambda x, c, label, keys, augment: 0.0 if augment is None else augment
    found = told(given, sdes.vp(), x, t, augment=augment)
    np.testing.assert_allclose(found, augment, rtol=1e-6)


def jacobian_of_score(conservative, x):
    """Of a network that is no gradient by itself, at one point."""
    turned = lambda x, c, *rest: (
        jnp.tanh(x @ jnp.array([[0.3, 1.0], [-0.5, 0.2]])) + 0.01 * c[:, None]
    )
    options = dict(output="v", sigma_data=0.7, conservative=conservative)
    model = denoiser(Net(turned), sdes.vp(), **options)
    params, t = model.init(jax.random.key(0), (2,)), jnp.array([0.4])
    score = lambda x: combine("score", sdes.vp(), model.predict(params, x[None], t), t)[0]
    return jax.jacfwd(score)(x)


def test_a_conservative_models_score_is_a_gradient_and_anothers_is_not(x64):
    """The Jacobian of a gradient is a Hessian, and symmetric, to the last digits."""
    x = jnp.array([0.3, -0.8])
    of_gradient, of_any = (jacobian_of_score(conservative, x) for conservative in (True, False))
    np.testing.assert_allclose(of_gradient[0, 1], of_gradient[1, 0], rtol=1e-12)
    assert abs(of_any[0, 1] - of_any[1, 0]) > 0.1


def test_a_conservative_models_output_is_the_gradient_of_half_the_product_with_x(x64):
    """Of net(x) = A x it is (A + A^T) x / 2: a linear score that is one already stays as it is."""
    a = jnp.array([[0.3, 1.0], [-0.5, 0.2]])
    x, t = jnp.array([[0.3, -0.8], [1.5, 0.1]]), jnp.array([0.4, 0.9])
    found = told(lambda x, *rest: x @ a.T, sdes.vp(), x, t, conservative=True)
    np.testing.assert_allclose(found, x @ (a + a.T) / 2, rtol=1e-6)


def recorded():
    """A model that answers with its parameters, the time, the label, and whether it was given keys."""

    def predict(params, x, t, label=None, *, keys=None, augment=None):
        row = jnp.stack([params + 0 * t, t, label + 0.0, jnp.full_like(t, keys is not None)], 1)
        return Prediction(row, -row)

    return Model(lambda key, shape: jnp.array(1.0), lambda params: sdes.ve(), predict)


def test_a_deterministic_model_ignores_keys_and_nothing_else():
    model, params, t = recorded(), jnp.array(7.0), jnp.array([0.25, 0.5])
    arguments = (params, jnp.zeros((2, 4)), t, jnp.array([3, 5]))
    keys = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(model.predict(*arguments, keys=keys).x0[:, 3], 1)
    quiet = deterministic(model)
    for found in (quiet.predict(*arguments, keys=keys), quiet.predict(*arguments)):
        np.testing.assert_array_equal(found.x0, [[7, 0.25, 3, 0], [7, 0.5, 5, 0]])
    assert (quiet.init, quiet.sde) == (model.init, model.sde)


def test_a_bound_model_is_a_function_of_x_t_and_label_without_dropout():
    found = bind(recorded(), jnp.array(7.0))(
        jnp.zeros((2, 4)), jnp.array([0.25, 0.5]), jnp.array([3, 5])
    )
    np.testing.assert_array_equal(found.x0, [[7, 0.25, 3, 0], [7, 0.5, 5, 0]])
