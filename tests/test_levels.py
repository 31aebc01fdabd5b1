"""The posterior of pixels with levels against the exact score of boxes, whose levels have known probabilities."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SDES

from score_jax import exact, levels, shapes
from score_jax.model import denoiser
from score_jax.nets.mlp import MLP
from score_jax.nets.unet import UNet
from score_jax.sde import perturb

N_LEVELS, N_PIXELS = 16, 3
PROBABILITIES = np.random.default_rng(0).dirichlet(np.full(N_LEVELS, 0.3), N_PIXELS) + 1e-6
PROBABILITIES /= PROBABILITIES.sum(axis=1, keepdims=True)
EDGES = np.linspace(-1, 1, N_LEVELS + 1)


def noised(sde, n=40, seed=1):
    """(x_t, t): n examples of the pixels at noise levels over the whole axis."""
    rng = np.random.default_rng(seed)
    k = np.stack([rng.choice(N_LEVELS, n, p=p) for p in PROBABILITIES], axis=1)
    x0 = 2 * (k + rng.random(k.shape)) / N_LEVELS - 1
    t = jnp.linspace(sde.t_min, sde.t_max, n)
    noise = jnp.asarray(rng.standard_normal(k.shape))
    return jax.jit(lambda x0, t: perturb(sde, x0, t, noise))(jnp.asarray(x0), t), t


def logits(x):
    return jnp.broadcast_to(jnp.log(jnp.asarray(PROBABILITIES, x.dtype)), (*x.shape, N_LEVELS))


def truth(sde, x, t):
    return jax.jit(exact.predictor(sde, exact.boxes(PROBABILITIES, EDGES)))(x, t)


def posterior(sde, x, t):
    """With the true probabilities."""
    return jax.jit(lambda x, t: levels.posterior(sde, logits(x), x, t))(x, t)


@pytest.mark.parametrize("name", SDES)
def test_with_the_true_probabilities_the_means_are_those_of_the_exact_score(name):
    """In float32, at all noise levels: boxes from thousandths to hundreds of sigma wide; truth in float64."""
    x, t = noised(SDES[name]())
    x, t = np.asarray(x), np.asarray(t)
    pair = posterior(SDES[name](), x, t).mean
    with jax.enable_x64(True):
        sde = SDES[name]()
        x64, t64 = (jnp.asarray(a, jnp.float64) for a in (x, t))
        true = truth(sde, x64, t64)
        # alpha and sigma themselves are rounded: by so much the edges move, in units of sigma
        scale = shapes.like((sde.alpha(t64) + sde.sigma(t64)) / sde.sigma(t64), x64)
    assert np.all(np.abs(pair.eps - true.eps) < 2e-7 * np.asarray(scale) + 1e-5)
    np.testing.assert_allclose(pair.x0, true.x0, rtol=0, atol=2e-5)


def test_its_derivative_is_that_of_the_exact_score(x64):
    """The divergence that a likelihood integrates, on both sides of the change of formula."""
    sde = SDES["vp"]()
    x, t = noised(sde, n=60)
    slope = lambda fn, x: jax.jvp(lambda x: fn(x).eps, (x,), (jnp.ones_like(x),))[1]
    derivative = jax.jit(slope, static_argnums=0)
    found = derivative(lambda x: posterior(sde, x, t).mean, x)
    true = derivative(lambda x: truth(sde, x, t), x)
    np.testing.assert_allclose(found, true, rtol=1e-3, atol=1e-4)


def test_the_level_given_the_noisy_pixel_is_bayes_rule():
    """By quadrature over each box, where sigma is a tenth, one and ten times its width."""
    sde = SDES["ve"]()
    t = sde.time_of_log_snr(-2 * jnp.log(2 / N_LEVELS * jnp.array([0.1, 1.0, 10.0])))
    x = jnp.array([[0.3, -0.99, 0.55]] * 3)
    log_p = posterior(sde, x, t).log_p
    inside = EDGES[:-1, None] + (np.arange(200) + 0.5) / 200 * (2 / N_LEVELS)
    z = (np.asarray(x)[..., None, None] - inside) / np.asarray(sde.sigma(t))[:, None, None, None]
    mass = np.exp(-0.5 * z**2).mean(-1) * PROBABILITIES
    np.testing.assert_allclose(np.exp(log_p), mass / mass.sum(-1, keepdims=True), atol=1e-4)


def test_a_point_far_outside_the_boxes_has_the_noise_of_the_way_to_the_nearest():
    sde = SDES["vp"]()
    x, t = jnp.array([[-30.0, 30.0, 0.0]]), jnp.array([1e-4])
    flat = jnp.zeros((1, 3, N_LEVELS))
    pair = jax.jit(lambda x, t: levels.posterior(sde, flat, x, t).mean)(x, t)
    reached = (x[0, :2] - sde.alpha(t) * jnp.array([-1.0, 1.0])) / sde.sigma(t)
    np.testing.assert_allclose(pair.eps[0, :2], reached, rtol=1e-3)
    assert np.all(np.isfinite(pair.x0)) and np.all(np.abs(pair.x0) <= 1.0)


class Constant(nn.Module):
    """A network that says log w, whatever it sees."""

    @nn.compact
    def __call__(self, x, c, label=None, *, keys=None, augment=None):
        return logits(x).reshape(len(x), -1)


def test_a_model_whose_network_knows_the_levels_is_the_perfect_model():
    sde = SDES["vp"]()
    model = denoiser(Constant(), sde, output="levels", n_levels=N_LEVELS)
    x, t = noised(sde)
    true, found = truth(sde, x, t), jax.jit(model.predict)({}, x, t)
    np.testing.assert_allclose(found.eps, true.eps, atol=1e-3)
    log_p = jax.jit(model.level_logp)({}, x, t)
    np.testing.assert_allclose(log_p, posterior(sde, x, t).log_p, atol=1e-6)


def test_networks_give_as_many_logits_as_asked_for_each_number():
    x, c = jnp.zeros((2, 4, 4, 3)), jnp.zeros(2)
    unet = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), outputs=5)
    for net in (unet, MLP(width=8, depth=1, outputs=5)):
        out, _ = jax.eval_shape(lambda net=net: net.init_with_output(jax.random.key(0), x, c))
        assert out.shape == (2, 4, 4, 15)
    with pytest.raises(ValueError, match="'output_skip' adds up images, not 5 outputs"):
        unet.clone(progressive_output="output_skip").init(jax.random.key(0), x, c)


def test_what_a_network_is_sure_of_yields_to_what_is_seen():
    """A level that it takes for 60 nats likelier is 13 sigma away, which is 84 nats: the level that x is in wins."""
    sde = SDES["ve"]()
    width = 2 / N_LEVELS
    t = sde.time_of_log_snr(-2 * jnp.log(jnp.array([width])))
    sure = jnp.zeros((1, 1, N_LEVELS)).at[0, 0, 0].set(60.0)
    x = jnp.array([[-1 + 14 * width]])  # between two boxes, 13 away from the edge of the first
    found = jax.jit(lambda x, t: levels.posterior(sde, sure, x, t))(x, t)
    assert abs(found.mean.eps[0, 0]) < 1
    # the log-odds of the first against the one that x is in: 60 less the tail's 13^2 / 2 + log(13 sqrt(2 pi))
    odds = found.log_p[0, 0, 0] - found.log_p[0, 0, 13]
    expected = 60 - 13**2 / 2 - np.log(13 * np.sqrt(2 * np.pi)) - np.log(0.3413)
    np.testing.assert_allclose(odds, expected, atol=0.02)


def test_the_gradient_and_the_derivative_agree_at_every_noise_level():
    """Reverse mode meets also the formula that is not taken."""
    sde = SDES["vp"]()
    x, t = noised(sde, n=60)
    total = lambda x: jnp.sum(posterior(sde, x, t).mean.eps)
    _, derivative = jax.jit(lambda x: jax.jvp(total, (x,), (jnp.ones_like(x),)))(x)
    gradient = jax.jit(jax.grad(total))(x)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(jnp.sum(gradient), derivative, rtol=1e-4)
