"""Each sampler of the table: its order, its exactness, its evaluations, and what it shares with the others.

The exponential integrators depend on the SDE through lambda = log(alpha / sigma) alone, so one test
shows that all SDEs give the same x / alpha, and orders are measured under one.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, SDES, coefficients

from score_jax import exact, grids, samplers, shapes, solve
from score_jax import sde as sdes
from score_jax.samplers import exponential
from score_jax.types import Prediction

TABLE = samplers.SAMPLERS
ODE = [name for name, entry in TABLE.items() if entry.order.isdigit()]
# their steps are in t, or by way of t_min, or their variance is of x and not of x / alpha
OF_THE_SDE = ("euler_maruyama", "reverse_diffusion", "deis_tab3", "consistency")
KEYS = jax.random.split(jax.random.key(0), 3)
X = np.random.default_rng(0).normal(size=(3, 2))


def at_lambda(sde, half):
    return exponential.time_at(sde, jnp.asarray(half, float))


def start(sde):
    """lambda at t_max."""
    return float(exponential.half_log_snr(sde, jnp.asarray(sde.t_max)))


def by_hand(sampler, predict, x, times, keys=KEYS):
    """`samplers.sample` without compilation: for a few steps of many samplers."""
    carry = sampler.init(x)
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        x, carry = sampler.step(shapes.fold_in(keys, i), predict, x, t, s, carry)
    return x


def smooth(sde):
    """A non-linear prediction that is a function of x / alpha and sigma / alpha, whatever the SDE."""

    def predict(x, t):
        alpha, sigma = shapes.like(sde.alpha(t), x), shapes.like(sde.sigma(t), x)
        x0 = jnp.tanh(x / alpha + 0.3) / (1 + sigma / alpha)
        return Prediction(x0=x0, eps=(x - alpha * x0) / sigma)

    return predict


def point(sde, x0):
    """The perfect prediction of data that are one point."""

    def predict(x, t):
        alpha, sigma = shapes.like(sde.alpha(t), x), shapes.like(sde.sigma(t), x)
        x0s = jnp.broadcast_to(x0, x.shape)
        return Prediction(x0=x0s, eps=(x - alpha * x0s) / sigma)

    return predict


# orders


def driven(sampler, predict, x, sde, lo, hi):
    """n -> x after n equal steps in lambda from lo to hi: one program for every n."""

    def run(n):
        time = lambda i: at_lambda(sde, lo + (hi - lo) * i / n)

        def body(i, state):
            return sampler.step(KEYS, predict, state[0], time(i), time(i + 1), state[1])

        return jax.lax.fori_loop(0, n, body, (x, sampler.init(x)))[0]

    return jax.jit(run)


def mixture(sde):
    return exact.predictor(
        sde, exact.mixture([0.3, 0.7], np.array([[-0.6, 0.4], [0.5, -0.3]]), 0.4)
    )


END = math.log(100.0)  # sigma = 1e-2


@functools.cache
def solution(lo):
    """The start at lambda = lo under VP, and DPM-Solver-3's result in 6000 steps, within 1e-11."""
    sde = sdes.vp()
    t = at_lambda(sde, lo)
    x = jax.random.normal(jax.random.key(1), (3, 2)) * jnp.hypot(sde.sigma(t), sde.alpha(t))
    return x, driven(samplers.dpm_solver_3(sde), mixture(sde), x, sde, lo, END)(6000)


def measured_order(name, lo):
    """From the errors at 320 and 640 steps under VP."""
    sde, (x, true) = sdes.vp(), solution(lo)
    run = driven(TABLE[name].make(sde), mixture(sde), x, sde, lo, END)
    coarse, fine = (np.linalg.norm(run(n) - true) for n in (320, 640))
    return math.log2(coarse / fine)


@pytest.mark.parametrize("name", ODE)
def test_ode_samplers_have_the_order_of_the_table(x64, name):
    order = measured_order(name, start(sdes.vp()))
    np.testing.assert_allclose(order, int(TABLE[name].order), atol=0.1)


@pytest.mark.parametrize(("name", "order"), [("dpmpp_3m", 2), ("deis_tab3", 2), ("unipc_3", 3)])
def test_a_start_with_much_signal_shows_the_first_steps_order(x64, name, order):
    """alpha / sigma = 0.37, against 0.0066 at the end of VP."""
    np.testing.assert_allclose(measured_order(name, -1.0), order, atol=0.15)


class Line(NamedTuple):
    """N(mean, variance) data in one dimension, and how the SDE at noise level c moves them."""

    mean: float
    variance: float

    def predict(self, sde):
        def predict(x, t):
            alpha, sigma = shapes.like(sde.alpha(t), x), shapes.like(sde.sigma(t), x)
            pull = (x - alpha * self.mean) / (alpha**2 * self.variance + sigma**2)
            return Prediction(x0=self.mean + alpha * self.variance * pull, eps=sigma * pull)

        return predict

    def slope(self, c_t, c_s, noise):
        """d E[x_s | x_t] / d x_t: alpha_s / alpha_t without a score, the flow map's at c = 0."""
        spread_t, spread_s = (math.sqrt(a**2 * self.variance + b**2) / a for a, b in (c_t, c_s))
        return c_s[0] / c_t[0] * (spread_s / spread_t) ** (1 + noise**2)


LINE = Line(0.4, 0.5)


def affine(monkeypatch, sampler, predict, sde, lo, hi):
    """n -> the slope in x of the result's mean and its variance for a given variance at the start, exactly.

    The recursion of the moments of x and the carry together: its matrices are derivatives of one
    step, with the noise a vector that takes the place of the normal draws.
    """
    x = jnp.zeros((1, 1))
    leaves, tree = jax.tree.flatten((x, sampler.init(x)))
    of_sample = [leaf.ndim > 0 for leaf in leaves]

    def split(leaves):
        return [[leaf for leaf, o in zip(leaves, of_sample, strict=True) if o == w] for w in (1, 0)]

    def step(state, z, rest, t, s):
        draws, state, rest = iter(z), iter(state.reshape(-1, 1, 1)), iter(rest)
        monkeypatch.setattr(shapes, "normal", lambda keys, x: next(draws).reshape(x.shape))
        x, carry = jax.tree.unflatten(tree, [next(state if o else rest) for o in of_sample])
        state, rest = split(jax.tree.leaves(sampler.step(KEYS[:1], predict, x, t, s, carry)))
        return jnp.concatenate(state).ravel(), rest

    def run(n, variance):
        time = lambda i: at_lambda(sde, lo + (hi - lo) * i / n)

        def body(i, moments):
            slope, covariance, rest = moments
            apply = lambda state, z: step(state, z, rest, time(i), time(i + 1))
            (of_state, of_z), rest = jax.jacfwd(apply, (0, 1), has_aux=True)(slope, jnp.zeros(2))
            return of_state @ slope, of_state @ covariance @ of_state.T + of_z @ of_z.T, rest

        first = jnp.zeros(sum(of_sample)).at[0].set(1.0)
        moments = first, variance * jnp.outer(first, first), split(leaves)[1]
        slope, covariance, _ = jax.lax.fori_loop(0, n, body, moments)
        return slope[0], covariance[0, 0]

    return jax.jit(run)


NOISY = {
    "ancestral": (samplers.ancestral, 1.0, 1),
    "reverse_diffusion": (samplers.reverse_diffusion, 1.0, 1),
    "reverse_diffusion, 1/2": (lambda sde: samplers.reverse_diffusion(sde, noise=0.5), 0.5, 1),
    "reverse_diffusion, 0": (lambda sde: samplers.reverse_diffusion(sde, noise=0.0), 0.0, 1),
    "euler_maruyama": (samplers.euler_maruyama, 1.0, 1),
    "euler_maruyama, 1/2": (lambda sde: samplers.euler_maruyama(sde, noise=0.5), 0.5, 1),
    "ddim, 1/2": (lambda sde: samplers.ddim(sde, eta=0.5), 0.5, 1),
    "dpmpp_2s, 1": (lambda sde: samplers.dpmpp_2s(sde, noise=1.0), 1.0, 2),
    "dpmpp_2m_sde": (samplers.dpmpp_2m_sde, 1.0, 2),
    "dpmpp_2m_sde, 1/2": (lambda sde: samplers.dpmpp_2m_sde(sde, noise=0.5), 0.5, 2),
    "seeds_2": (samplers.seeds_2, 1.0, 2),
    "seeds_2, 1/2": (lambda sde: samplers.seeds_2(sde, noise=0.5), 0.5, 2),
}


def ends(sde, lo):
    return coefficients(sde, [at_lambda(sde, lo), at_lambda(sde, END)])


@pytest.mark.parametrize("name", NOISY)
def test_stochastic_samplers_have_their_weak_order_and_noise_level(x64, monkeypatch, name):
    """Mean and variance for Gaussian data, which are the SDE's at level c and no other in the limit.

    By the recursion, so without Monte-Carlo error. At c = 1 the predicted x0 is a martingale, and
    the mean of what integrates it is exact.
    """
    sde, (make, noise, order) = sdes.vp(), NOISY[name]
    c_t, c_s = ends(sde, -2.0)
    before, after = (a**2 * LINE.variance + b**2 for a, b in (c_t, c_s))
    slope = LINE.slope(c_t, c_s, noise)
    run = affine(monkeypatch, make(sde), LINE.predict(sde), sde, -2.0, END)

    def error(n):
        found = run(n, 1.3 * before)
        # what is too much at the start is passed on with the mean's slope
        return np.linalg.norm(np.array(found) / (slope, after + 0.3 * before * slope**2) - 1)

    coarse, fine = error(320), error(640)
    assert fine < 0.03
    np.testing.assert_allclose(math.log2(coarse / fine), order, atol=0.1)
    assert name not in TABLE or TABLE[name].order == f"weak {order}"


def test_heuns_churn_is_a_noise_level_and_keeps_the_order(x64, monkeypatch):
    """churn = c^2 h: the variance is of Heun's order, the mean's slope of the noise level's, one."""
    sde, noise = sdes.vp(), 0.5
    c_t, c_s = ends(sde, -2.0)
    before, after = (a**2 * LINE.variance + b**2 for a, b in (c_t, c_s))
    truth = np.array([LINE.slope(c_t, c_s, noise), after])

    def errors(n):
        sampler = samplers.edm_heun(sde, churn=noise**2 * (END + 2.0) / n)
        run = affine(monkeypatch, sampler, LINE.predict(sde), sde, -2.0, END)
        return np.abs(np.array(run(n, before)) / truth - 1)

    np.testing.assert_allclose(np.log2(errors(320) / errors(640)), [1, 2], atol=0.1)


# identities


def test_every_sde_gives_the_same_result_over_alpha_at_the_same_lambdas(x64):
    """Uneven steps; with the same noise. The others step in t, or their variance is not of x / alpha."""
    halves = [-2.5, -1.7, -1.2, 0.9, 3.0]
    found = {}
    for sde_name, make in SDES.items():
        sde = make()
        times = at_lambda(sde, halves)
        (alpha, sigma), (alpha_end, _) = coefficients(sde, times[jnp.array([0, -1])])
        x = jnp.asarray(alpha * np.ones((3, 2)) + sigma * X)
        for name, entry in TABLE.items():
            if name not in OF_THE_SDE:
                result = by_hand(entry.make(sde), smooth(sde), x, times) / alpha_end
                known = found.setdefault(name, np.asarray(result))
                np.testing.assert_allclose(result, known, rtol=1e-8, err_msg=f"{name}, {sde_name}")
    assert len({result.tobytes() for result in found.values()}) == len(found)


def test_ode_samplers_are_exact_where_the_prediction_does_not_change(x64):
    """Data of one point: x0 and eps are constant along the flow. Three uneven steps, the whole way."""
    for sde in (sdes.vp(), sdes.linear()):
        x0 = jnp.array([0.7, -0.4])
        times = at_lambda(sde, [start(sde), -1.0, 1.5, END])
        (alpha, sigma), (alpha_s, sigma_s) = coefficients(sde, times[jnp.array([0, -1])])
        x = 1.1 + jnp.asarray(X)
        true = alpha_s * x0 + sigma_s * (x - alpha * x0) / sigma
        for name in ODE:
            found = by_hand(TABLE[name].make(sde), point(sde, x0), x, times)
            np.testing.assert_allclose(found, true, rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_2s", "ddim", "ancestral"])
def test_data_predictors_have_the_exact_law_where_x0_does_not_change(x64, monkeypatch, name):
    """At noise level 1 and data of one point: x_s / sigma_s is an Ornstein-Uhlenbeck process in lambda."""
    sde = sdes.vp()
    options = {"dpmpp_2s": dict(noise=1.0), "ddim": dict(eta=1.0)}.get(name, {})
    sampler = TABLE[name].make(sde, **options)
    run = affine(monkeypatch, sampler, point(sde, jnp.array([0.7])), sde, -2.0, 1.0)
    c_t, c_s = coefficients(sde, [at_lambda(sde, -2.0), at_lambda(sde, 1.0)])
    slope, variance = c_s[1] / c_t[1] * math.exp(-3), c_s[1] ** 2 * -math.expm1(-6)
    np.testing.assert_allclose(run(5, 0.0), [slope, variance], rtol=1e-9)


def test_the_first_step_of_every_multi_step_sampler_is_ddims(x64):
    sde = sdes.linear()
    times, x = at_lambda(sde, [-2.0, -1.0]), jnp.asarray(X)
    expected = by_hand(samplers.ddim(sde), smooth(sde), x, times)
    for name in ("dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3", "deis_tab3", "ipndm"):
        found = by_hand(TABLE[name].make(sde), smooth(sde), x, times)
        np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=name)


def test_a_noise_level_of_zero_is_the_ode_sampler(x64):
    sde = sdes.vp()
    times, x = at_lambda(sde, [-2.0, -1.0, 0.5]), jnp.asarray(X)
    for name, ode in {"dpmpp_2m_sde": "dpmpp_2m", "seeds_2": "dpm_solver_2"}.items():
        pair = TABLE[name].make(sde, noise=0.0), TABLE[ode].make(sde)
        np.testing.assert_array_equal(*(by_hand(s, smooth(sde), x, times) for s in pair))


POLYNOMIALS = {
    "dpmpp_3m": ("x0", exponential.half_log_snr, 2),
    "deis_tab3": ("eps", lambda sde, t: t, 3),
    # in equal steps of its clock
    "ipndm": ("eps", lambda sde, t: sde.sigma(t) / sde.alpha(t), 3),
}


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_multi_step_samplers_integrate_polynomials_of_their_clock_exactly(x64, name):
    """Once they have their history: two steps after the first three, uneven ones where they may be."""
    (kind, clock, degree), sde = POLYNOMIALS[name], sdes.linear()
    ratios = [3.0, 2.5, 2.0, 1.5, 1.0, 0.5] if name == "ipndm" else [3.0, 2.0, 1.2, 0.9, 0.4, 0.3]
    times = at_lambda(sde, -np.log(ratios))
    polynomial = lambda t: (clock(sde, t) - 0.8) ** degree

    def predict(x, t):
        value = shapes.like(polynomial(t), x) + 0 * x
        return Prediction(**({"x0": value, "eps": x} if kind == "x0" else {"x0": x, "eps": value}))

    x, sampler = jnp.ones((3, 1)), TABLE[name].make(sde)
    early, late = (by_hand(sampler, predict, x, times[:n])[0, 0] for n in (4, 6))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    low, high = exponential.half_log_snr(sde, times[jnp.array([3, 5])])
    halves = low + (high - low) * 0.5 * (nodes + 1)
    # d(x / sigma) = e^lambda x0 d lambda, d(x / alpha) = -e^-lambda eps d lambda
    scale, sign = (sde.sigma, 1) if kind == "x0" else (sde.alpha, -1)
    slope = sign * np.exp(sign * halves) * polynomial(at_lambda(sde, halves))
    rise = np.sum(0.5 * (high - low) * weights * slope)
    np.testing.assert_allclose(late / scale(times[5]), early / scale(times[3]) + rise, rtol=1e-11)


def test_deis_under_ve_is_the_polynomial_in_lambda(x64):
    """There t is linear in lambda, so a clock of lambda gives the same; under the linear SDE it does not."""
    halves = [-2.5, -1.7, -1.2, 0.1, 0.9]
    x, found = jnp.asarray(X), {}
    for name in ("ve", "linear"):
        sde = SDES[name]()
        # a time that is lambda: DEIS's polynomial is in it
        clock = sde._replace(
            alpha=lambda t, sde=sde: sde.alpha(at_lambda(sde, -t)),
            sigma=lambda t, sde=sde: sde.sigma(at_lambda(sde, -t)),
            time_of_log_snr=lambda log_snr: -0.5 * log_snr,
            t_min=-END,
            t_max=2.5,
        )
        run = lambda s: by_hand(samplers.deis_tab3(s), smooth(s), x, at_lambda(s, halves))
        found[name] = run(sde) - run(clock)
    np.testing.assert_allclose(found["ve"], 0.0, atol=1e-12)
    assert np.all(np.abs(found["linear"]) > 1e-5)


def test_heun_without_churn_is_diffraxs_in_sigma_over_alpha(x64):
    """Equal steps in r, where diffrax's are; d(x / alpha) / dr = eps."""
    sde, n = sdes.vp(), 12
    r_max, r_min = 20.0, 0.05
    ratios = lambda u: (1 - u) * r_max + u * r_min
    time = lambda r: exponential.time_at(sde, -jnp.log(r))
    predict, x = smooth(sde), shapes.normal(KEYS[:1], jnp.zeros((1, 2)))

    def field(r, y):
        t = time(r)
        return predict(sde.alpha(t) * y[None], jnp.full(1, t)).eps[0]

    times = time(ratios(jnp.linspace(0.0, 1.0, n + 1)))
    found = by_hand(samplers.edm_heun(sde), predict, x, times, KEYS[:1])
    expected = solve.ode(field, x[0] / sde.alpha(times[0]), ratios, solver="heun", n_steps=n).y
    np.testing.assert_allclose(found[0] / sde.alpha(times[-1]), expected, rtol=1e-9)


def test_heun_with_churn_is_edms_algorithm_2(x64):
    """Draw by draw, in the paper's symbols; no churn outside [s_min, s_max], and none above sigma_max."""
    sde = sdes.edm(sigma_min=0.05, sigma_max=10.0)
    sigmas = np.array([10.0, 9.5, 4.0, 1.0, 0.3, 0.05])
    options = dict(churn=0.2, s_min=0.5, s_max=9.8, s_noise=1.1)
    x = 10.0 * jnp.asarray(X)
    predict = exact.predictor(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))
    found = by_hand(samplers.edm_heun(sde, **options), predict, x, jnp.asarray(sigmas))
    slope = lambda x, sigma: -sigma * GAUSSIAN.score(x, (1.0, sigma))
    x = np.asarray(x)
    for i, (high, low) in enumerate(itertools.pairwise(sigmas)):
        hat = min(1.2 * high, 10.0) if 0.5 <= high <= 9.8 else high
        z = np.asarray(shapes.normal(shapes.fold_in(KEYS, i), found))
        x = x + 1.1 * np.sqrt(hat**2 - high**2) * z
        d = slope(x, hat)
        x = x + (low - hat) * 0.5 * (d + slope(x + (low - hat) * d, low))
    np.testing.assert_allclose(found, x, rtol=1e-9)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_the_two_step_samplers_are_the_papers_for_uneven_steps(x64, name):
    """2211.01095, algorithm 2, and its SDE form: D = (1 + 1 / 2r) x0 - 1 / 2r x0_before, r = h_before / h."""
    sde, halves = sdes.vp(), [-2.5, -1.7, -1.2, 0.1, 0.9]
    times, predict, x = at_lambda(sde, halves), smooth(sde), X
    c, noise, before = coefficients(sde, times), name == "dpmpp_2m_sde", None
    found = by_hand(TABLE[name].make(sde), predict, jnp.asarray(x), times)
    for i, ((_, sigma_t), (alpha_s, sigma_s)) in enumerate(itertools.pairwise(c)):
        h = halves[i + 1] - halves[i]
        x0 = d = np.asarray(predict(jnp.asarray(x), jnp.full(3, times[i])).x0)
        if i > 0:
            r = (halves[i] - halves[i - 1]) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x, before = sigma_s / sigma_t * math.exp(-noise * h) * x, x0
        x = x - alpha_s * math.expm1(-(1 + noise) * h) * d
        z = np.asarray(shapes.normal(shapes.fold_in(KEYS, i), found))
        x = x + noise * sigma_s * math.sqrt(-math.expm1(-2 * h)) * z
    np.testing.assert_allclose(found, x, rtol=1e-9)


def unipc_of_the_paper(p, sde, predict, x, times):
    """Algorithms 1 and 2 of 2302.04867 on x0, with B(h) = e^-h - 1 and its linear systems for the coefficients."""
    halves = [float(exponential.half_log_snr(sde, t)) for t in times]
    c = coefficients(sde, times)
    network = lambda x, i: np.asarray(predict(jnp.asarray(x), jnp.full(len(x), times[i])).x0)

    def coefficients_of(r, h):
        # sum over m of r_m^(k - 1) a_m = h phi_k+1(h) k! / B(h) at -h, phi_k+1 = (phi_k - 1 / k!) / h
        b, phi = math.expm1(-h), math.expm1(-h) / -h
        rhs = []
        for k in range(1, len(r) + 1):
            phi = (phi - 1 / math.factorial(k)) / -h
            rhs.append(-h * phi * math.factorial(k) / b)
        return np.linalg.solve(np.vander(r, increasing=True).T, rhs)

    def move(x, i, order, outputs, corrected):
        h = halves[i] - halves[i - 1]
        r = [(halves[i - 1 - m] - halves[i - 1]) / h for m in range(1, order)]
        d = [(outputs[i - 1 - m] - outputs[i - 1]) / r_m for m, r_m in enumerate(r, 1)]
        if corrected:
            r, d = [*r, 1.0], [*d, outputs[i] - outputs[i - 1]]
        a = coefficients_of(np.array(r), h) if r else []
        slope = sum((a_m * d_m for a_m, d_m in zip(a, d, strict=True)), np.zeros_like(x))
        ((_, sigma), (alpha_i, sigma_i)), b = c[i - 1 : i + 1], math.expm1(-h)
        return sigma_i / sigma * x - alpha_i * b * (outputs[i - 1] + slope)

    x, outputs = np.asarray(x), [network(x, 0)]
    for i in range(1, len(times)):
        order = min(p, i)
        predicted = move(x, i, order, outputs, False)
        outputs.append(network(predicted, i))
        x = move(x, i, order, outputs, True)
    return predicted


@pytest.mark.parametrize("p", [2, 3])
def test_unipc_is_the_papers_for_uneven_steps(x64, p):
    sde = sdes.vp()
    times = at_lambda(sde, [-2.5, -1.7, -1.2, 0.1, 0.9, 2.2, 3.0])
    x = jnp.asarray(X)
    found = by_hand(TABLE[f"unipc_{p}"].make(sde), smooth(sde), x, times)
    np.testing.assert_allclose(found, unipc_of_the_paper(p, sde, smooth(sde), x, times), rtol=1e-9)


# one loop


def test_samplers_report_the_evaluations_they_make(x64):
    sde = sdes.vp()
    times, x = at_lambda(sde, [-2.0, -1.0, 0.5, 1.0]), jnp.ones((3, 2))
    for name, entry in TABLE.items():
        calls, sampler = [], entry.make(sde)

        def counted(x, t, calls=calls):
            calls.append(t)
            return smooth(sde)(x, t)

        by_hand(sampler, counted, x, times)
        assert len(calls) == 3 * sampler.evaluations, name


def test_float32_is_float64_to_rounding():
    """Every ODE sampler in the compiled loop, over 12 steps; float32 stays float32."""

    @jax.jit
    def run(x):
        sde = sdes.vp()
        times = grids.log_snr(sde)(jnp.linspace(0.0, 1.0, 13))
        one = lambda name: samplers.sample(KEYS, TABLE[name].make(sde), smooth(sde), x, times)
        return {name: one(name) for name in ODE}

    single = run(jnp.asarray(X))
    with jax.enable_x64(True):
        double = run(jnp.asarray(X))
    for name in ODE:
        assert single[name].dtype == jnp.float32, name
        assert np.all(np.isfinite(double[name])), name
        np.testing.assert_allclose(single[name], double[name], rtol=1e-5, atol=2e-6, err_msg=name)


def resampled(sampler, log_weight):
    """The sampler, with its particles drawn anew after each step, in proportion to their weights at time s."""

    def step(keys, predict, x, t, s, carry):
        state = sampler.step(shapes.fold_in(keys, 0), predict, x, t, s, carry)
        key = jax.random.fold_in(keys[0], 1)
        chosen = jax.random.categorical(key, log_weight(state[0], s), shape=(len(x),))
        return jax.tree.map(lambda leaf: leaf[chosen] if leaf.ndim else leaf, state)

    return sampler._replace(step=step)


def test_particles_are_resampled_with_their_history_and_projected(x64):
    """All weight on the third: all are what it is alone, under a constraint on the first coordinate."""
    sde = sdes.vp()
    times, x = at_lambda(sde, np.linspace(-2.0, 2.0, 7)), jnp.asarray(X)
    sampler = samplers.unipc_3(sde)
    third = resampled(sampler, lambda x, s: jnp.log(jnp.arange(3) == 2))
    project = lambda keys, x, s: x.at[:, 0].set(0.5 * sde.alpha(s))
    run = lambda sampler, x, keys: samplers.sample(
        keys, sampler, smooth(sde), x, times, project=project
    )
    together, alone = run(third, x, KEYS), run(sampler, x[2:], KEYS[2:])
    np.testing.assert_allclose(together, jnp.tile(alone, (3, 1)), rtol=1e-12)
    np.testing.assert_allclose(together[:, 0], 0.5 * sde.alpha(times[-1]), rtol=1e-12)


@pytest.mark.parametrize("name", TABLE)
def test_an_infinite_log_snr_is_refused_in_one_line_where_it_matters(x64, name):
    sde = sdes.linear(t_max=1.0)
    if name in ("ddim", "reverse_diffusion"):
        found = by_hand(
            TABLE[name].make(sde), smooth(sde), jnp.asarray(X), jnp.array([1.0, 0.7, 0.5])
        )
        assert np.all(np.isfinite(found))
        return
    with pytest.raises(ValueError) as error:
        TABLE[name].make(sde)
    message = str(error.value)
    assert message == (
        f"t_max = 1.0 has log-SNR -inf, where {name} is undefined; "
        "move t_max inside the SDE's time axis, or take ddim on the uniform grid"
    )
