"""Multi-step methods: one evaluation a step, and polynomials through the latest predictions (`History`).

The first step has one prediction, and so is DDIM's: its error is of second order in the step, once.
On a grid from noise that has almost no signal this is invisible, because the prediction hardly changes
there, at a rate of about alpha / sigma at t_max; from a start with more signal the order is at most 2
(3 for UniPC, which corrects that step).
"""

import jax.numpy as jnp

from score_jax import shapes
from score_jax.samplers.base import Sampler, check_ends, predict_at
from score_jax.samplers.exponential import (
    DATA,
    NOISE,
    differences,
    empty,
    half_log_snr,
    integrals,
    push,
    time_at,
)
from score_jax.sde import SDE


def dpmpp_2m(sde: SDE, *, noise: float = 0.0) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2); order 2.

    Args:
      noise: the level c of `dynamics`; see `dpmpp_2m_sde`.
    """
    check_ends(sde, "dpmpp_2m")
    return _two_step(sde, noise)


def dpmpp_2m_sde(sde: SDE, *, noise: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095); weak order 2.

    Args:
      noise: the level c of `dynamics`; 1 is the paper's method, 0 is `dpmpp_2m`.
    """
    check_ends(sde, "dpmpp_2m_sde")
    return _two_step(sde, noise)


def dpmpp_3m(sde: SDE) -> Sampler:
    """DPM-Solver++(3M): the parabola in lambda through three predictions of x0, integrated exactly; order 3.

    The form of Lu et al. 2022, arXiv 2211.01095, in its public code has half this one's coefficient
    of the second difference, which makes it a method of order 2.
    """
    check_ends(sde, "dpmpp_3m")
    return _adams(sde, DATA, 3, half_log_snr, lambda sde, half: half)


def deis_tab3(sde: SDE) -> Sampler:
    """tAB3-DEIS (Zhang & Chen 2023, arXiv 2204.13902, section 3); order 4.

    The cubic in t through four predictions of eps, integrated by quadrature. t, unlike lambda,
    belongs to the SDE, and so does the result; under `sde.ve` it is lambda but for scale.
    """
    check_ends(sde, "deis_tab3")
    return _adams(sde, NOISE, 4, lambda sde, t: t, time_at)


def unipc_2(sde: SDE) -> Sampler:
    """UniPC-2 on the predicted x0 (Zhao et al. 2023, arXiv 2302.04867, algorithms 1 and 2); order 3. See `unipc_3`."""
    check_ends(sde, "unipc_2")
    return _unipc(sde, 2)


def unipc_3(sde: SDE) -> Sampler:
    """UniPC-3 on the predicted x0 (Zhao et al. 2023, arXiv 2302.04867, algorithms 1 and 2); order 4.

    UniP-p moves x by the polynomial in lambda through the p latest predictions. The prediction made
    where it arrived then corrects it: UniC-p's polynomial has that point in addition, so the two
    differ by Newton's next term. Both polynomials are integrated exactly, which meets the paper's
    conditions on the coefficients for every B(h). x at t_min is not corrected: that would be an
    evaluation for an error of the method's own order.
    """
    check_ends(sde, "unipc_3")
    return _unipc(sde, 3)


# Adams-Bashforth's coefficients of 1 to 4 predictions in equal steps, newest first
ADAMS_BASHFORTH = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def ipndm(sde: SDE) -> Sampler:
    """iPNDM (Zhang & Chen 2023, arXiv 2204.13902, appendix); order 2.

    DDIM's step, with four predictions of eps combined as by Adams and Bashforth. Their coefficients
    are for equal steps in sigma / alpha, where the order is 4; elsewhere the combination is the mean
    of eps over the step to first order only.
    """
    check_ends(sde, "ipndm")

    def step(keys, predict, x, t, s, carry):
        history = push(carry, NOISE.read(predict_at(predict, x, t)), half_log_snr(sde, t))
        row = jnp.asarray(ADAMS_BASHFORTH, x.dtype)[jnp.minimum(carry.count, 3)]
        eps = sum(row[i] * value for i, value in enumerate(history.values))
        exact = NOISE.step(sde, t, s, 0.0)
        return exact.of_x * x + exact.of_f * eps, history

    return Sampler(init=empty(4), step=step, evaluations=1)


def _two_step(sde, noise):
    def step(keys, predict, x, t, s, carry):
        lambda_t, lambda_s = half_log_snr(sde, t), half_log_snr(sde, s)
        exact = DATA.step(sde, t, s, noise)
        history = push(carry, DATA.read(predict_at(predict, x, t)), lambda_t)
        x0, slope = differences(history)
        middle = x0 + jnp.where(carry.count > 0, 0.5 * (lambda_s - lambda_t), 0.0) * slope
        x = exact.of_x * x + exact.of_f * middle
        return (x + exact.of_z * shapes.normal(keys, x) if noise else x), history

    return Sampler(init=empty(2), step=step, evaluations=1)


def _adams(sde, form, n, knot, clock):
    # the polynomial through n predictions, in a clock: knot(sde, t), or clock(sde, lambda)
    def step(keys, predict, x, t, s, carry):
        here, exact = half_log_snr(sde, t), form.step(sde, t, s, 0.0)
        h = half_log_snr(sde, s) - here
        history = push(carry, form.read(predict_at(predict, x, t)), knot(sde, t))
        weights = integrals(exact.rate, h, history.knots[:-1], lambda u: clock(sde, here + u))
        move = sum(
            jnp.where(history.count > j, weight, 0.0) * term
            for j, (weight, term) in enumerate(zip(weights, differences(history), strict=True))
        )
        return exact.of_x * x + exact.scale * move, history

    return Sampler(init=empty(n), step=step, evaluations=1)


def _unipc(sde, p):
    def step(keys, predict, x, t, s, carry):
        here = half_log_snr(sde, t)
        history = push(carry, DATA.read(predict_at(predict, x, t)), here)
        terms = differences(history)
        old = carry.knots
        missed = integrals(1.0, here - old[0], old[:-1], lambda u: old[0] + u)
        used = jnp.minimum(carry.count, p)  # predictions behind the move to t
        x = x + sde.alpha(t) * sum(
            jnp.where(used == j, missed[j], 0.0) * terms[j] for j in range(1, p + 1)
        )
        exact = DATA.step(sde, t, s, 0.0)
        h = half_log_snr(sde, s) - here
        weights = integrals(1.0, h, history.knots[: p - 1], lambda u: here + u)
        move = sum(jnp.where(history.count > j, weights[j], 0.0) * terms[j] for j in range(p))
        return exact.of_x * x + exact.scale * move, history

    return Sampler(init=empty(p + 1), step=step, evaluations=1)
