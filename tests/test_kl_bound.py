"""What the g^2-weighted loss bounds: the divergence from the reverse SDE's density, not from the ODE's.

For any score s, with the prior pi and all at t_min (Song et al. 2021, arXiv 2101.09258, theorem 1),

    KL(q || p_SDE) <= KL(q_T || pi) + 1/2 int g^2 E_q || score - s ||^2 dt.

On Gaussian data in one dimension with a score that is linear in x every density is Gaussian, with
moments that follow linear ODEs; these are solved to 1e-9 with the drift of `dynamics`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean
from scipy.integrate import solve_ivp

from score_jax import dynamics, elbo
from score_jax import sde as sdes
from score_jax.types import Prediction

DATA = 0.7, 0.25  # mean, variance
OTHER = -0.4, 0.8


def marginal(sde, t, gaussian=DATA):
    """Mean and variance of the diffused Gaussian."""
    mean, variance = gaussian
    return sde.alpha(t) * mean, sde.alpha(t) ** 2 * variance + sde.sigma(t) ** 2


def true_score(sde, t, gaussian=DATA):
    """Slope and offset of the score as a function of x."""
    mean, variance = marginal(sde, t, gaussian)
    return -1 / variance, mean / variance


def changed(by=lambda t: 1.0, shift=0.0):
    """The true score with its slope multiplied and its offset moved."""

    def score(sde, t):
        slope, offset = true_score(sde, t)
        return by(t) * slope, offset + shift

    return score


WRONG = {
    "steeper": changed(lambda t: 1.3),
    "flatter": changed(lambda t: 0.6),
    "moved": changed(shift=0.5),
    "periodic": changed(lambda t: 1 + 0.4 * jnp.sin(20 * t)),
    "of another Gaussian": lambda sde, t: true_score(sde, t, OTHER),
}


def predictor(sde, score):
    def predict(x, t, label=None):
        slope, offset = (c[:, None] for c in score(sde, t))
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        eps = -sigma * (slope * x + offset)
        return Prediction((x - sigma * eps) / alpha, eps)

    return predict


def generated(sde, score, noise, start):
    """Mean and variance at t_min of the model at this noise level, from N(start) at t_max."""
    drift = dynamics.reverse_drift(sde, predictor(sde, score), noise=noise)

    @jax.jit
    def coefficients(t):
        at_0, at_1 = drift(t, jnp.array([[0.0], [1.0]]))[:, 0]
        return at_1 - at_0, at_0, (noise * sdes.diffusion(sde, t)) ** 2

    def rate(t, moments):
        slope, offset, g2 = (float(c) for c in coefficients(t))
        # time runs backwards, so the noise adds as t falls
        return slope * moments[0] + offset, 2 * slope * moments[1] - g2

    ends = (sde.t_max, sde.t_min)
    return solve_ivp(rate, ends, start, rtol=1e-9, atol=1e-11, method="DOP853").y[:, -1]


def kl(q, p):
    """Between two Gaussians, each (mean, variance)."""
    return 0.5 * float((q[0] - p[0]) ** 2 / p[1] + q[1] / p[1] - 1 - jnp.log(q[1] / p[1]))


def bound(sde, score, start):
    """The theorem's right-hand side: the mismatch of the prior, and the integral by Gauss's rule."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    half = 0.5 * (sde.t_max - sde.t_min)
    t = jnp.asarray(sde.t_min + half * (1 + nodes))
    (a, b), (slope, offset), (mean, variance) = score(sde, t), true_score(sde, t), marginal(sde, t)
    error = ((slope - a) * mean + offset - b) ** 2 + (slope - a) ** 2 * variance
    integral = half * np.sum(weights * 0.5 * sdes.diffusion(sde, t) ** 2 * error)
    return kl(marginal(sde, jnp.asarray(sde.t_max)), start), float(integral)


def at_t_min(sde, gaussian=DATA):
    return marginal(sde, jnp.asarray(sde.t_min), gaussian)


def prior(sde):
    return 0.0, float(sde.sigma(jnp.asarray(sde.t_max))) ** 2


@pytest.mark.parametrize("name", WRONG)
def test_the_bound_holds_for_the_reverse_sdes_density_whatever_the_score(x64, name):
    sde = sdes.vp(t_min=1e-3)
    reached = generated(sde, WRONG[name], 1.0, prior(sde))
    divergence = kl(at_t_min(sde), reached)
    assert 1e-3 < divergence <= sum(bound(sde, WRONG[name], prior(sde))) * (1 + 1e-6)


@pytest.mark.parametrize("name", ["steeper", "flatter"])
def test_the_bound_does_not_hold_for_the_odes_density(x64, name):
    """The same scores, at which the ODE is farther from the data than the bound allows, by more than half."""
    sde = sdes.vp(t_min=1e-3)
    reached = generated(sde, WRONG[name], 0.0, prior(sde))
    divergence = kl(at_t_min(sde), reached)
    assert divergence > 1.5 * sum(bound(sde, WRONG[name], prior(sde)))


def test_at_the_true_score_the_bound_and_the_odes_divergence_are_the_mismatch_of_the_prior(x64):
    """The SDE forgets the prior, so that its divergence is less than a tenth of that."""
    sde = sdes.vp(t_min=1e-3)
    start = 0.3, 0.5  # a prior that is clearly wrong
    mismatch, integral = bound(sde, true_score, start)
    assert integral == 0 and mismatch > 0.1
    data = at_t_min(sde)
    ode, reverse = (kl(data, generated(sde, true_score, c, start)) for c in (0.0, 1.0))
    np.testing.assert_allclose(ode, mismatch, rtol=1e-6)
    assert 0 <= reverse < 0.1 * mismatch


def test_at_the_true_score_and_the_true_prior_there_is_no_gap(x64):
    sde = sdes.vp(t_min=1e-3)
    start = marginal(sde, jnp.asarray(sde.t_max))
    reached = generated(sde, true_score, 1.0, start)
    np.testing.assert_allclose(reached, at_t_min(sde), rtol=1e-7)


def test_the_bound_is_an_equality_if_the_score_is_that_of_what_it_generates(x64):
    """Another Gaussian's score from that Gaussian's own prior generates it, by the SDE as by the ODE."""
    sde = sdes.vp(t_min=1e-3)
    start = marginal(sde, jnp.asarray(sde.t_max), OTHER)
    total = sum(bound(sde, WRONG["of another Gaussian"], start))
    np.testing.assert_allclose(total, kl(at_t_min(sde), at_t_min(sde, OTHER)), rtol=1e-7)
    for noise in (0.0, 1.0):
        reached = generated(sde, WRONG["of another Gaussian"], noise, start)
        np.testing.assert_allclose(reached, at_t_min(sde, OTHER), rtol=1e-7)


def test_the_elbo_is_the_bound_and_the_information_that_x_at_t_min_has_of_the_data():
    """E[prior + diffusion] of `elbo` exceeds the bound by I(x0; x at t_min) = log(1 + snr variance) / 2."""
    sde = sdes.vp(t_min=1e-3)
    score, n = WRONG["steeper"], 20000
    data, keys = jax.random.split(jax.random.key(0))
    x = DATA[0] + DATA[1] ** 0.5 * jax.random.normal(data, (n, 1))
    predict = predictor(sde, score)
    run = jax.jit(lambda keys, x: elbo.negative_elbo(keys, sde, predict, x, n_times=8))
    terms = run(jax.random.split(keys, n), x)
    snr = np.exp(float(sdes.log_snr_ends(sde)[0]))
    expected = sum(bound(sde, score, prior(sde))) + 0.5 * np.log1p(snr * DATA[1])
    assert_mean(terms.prior + terms.diffusion, expected)
