"""Moving averages of the parameters over a run: tracked while it trains, or put together when it is over.

theta_k are the parameters after step k = 1, 2, ..., t. An average weighs them by a profile, a density
of training time on (0, t] in steps; theta_k has its mass between k - 1 and k:

    exponential of rate beta   -log(beta) beta^(t - tau) / (1 - beta^t)
    power function             (gamma + 1) tau^gamma / t^(gamma + 1)

The first looks back over a number of steps, 1 / (1 - beta), the second over a share of the run: its
standard deviation is sigma_rel t,

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

(Karras et al. 2024, "EDM2", arXiv 2312.02696, section 3.1; eq. 121, 123.) Sums of power functions that
end at different steps come near every other smooth profile, so snapshots of one or two of these
averages are enough to choose the profile after training (section 3.2, algorithm 3): `power` or
`exponential` is wanted, `solve` says which sum of snapshots it is, and how far off.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int
from scipy.special import hyp1f1

from score_jax.types import Params

# of gamma = 0, the average of all steps alike; no profile that grows with time is wider
LARGEST_SIGMA_REL = 12**-0.5


def sigma_rel(gamma: float) -> float:
    """The standard deviation of a power function's profile, as a share of the run (eq. 123)."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma(sigma_rel: float) -> float:
    """The exponent of the power function of this width: the largest root of a cubic (eq. 126, algorithm 2)."""
    s = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max())


def update(
    averages: tuple[Params, ...],
    params: Params,
    step: Int[Array, ""],
    rates: tuple[float, ...],
    warmup: float,
    sigma_rels: tuple[float, ...],
) -> tuple[Params, ...]:
    """The averages after a step to new parameters: first the exponential ones, then the power functions.

    Args:
      step: how many steps the averages have seen before.
      rates: of the exponential averages; each is at most (1 + step) / (warmup + step), so that early
        averages forget the initial parameters: until its rate is reached an average is nearly the
        power function of gamma = warmup - 2.
      warmup: 1 or 0 for none.
      sigma_rels: of the power functions, which keep the share (1 - 1 / k)^(gamma + 1) at step k
        (eq. 127): none of the initial parameters.
    """
    warm = (1.0 + step) / (warmup + step)
    shares = [1.0 - jnp.minimum(rate, warm) for rate in rates]
    # by expm1 and log1p: 1 - 1 / k has lost digits after many steps
    forgotten = jnp.log1p(-1.0 / (1.0 + step))
    shares += [-jnp.expm1((gamma(width) + 1.0) * forgotten) for width in sigma_rels]
    return tuple(
        optax.incremental_update(params, average, share)
        for average, share in zip(averages, shares, strict=True)
    )


class Profile(NamedTuple):
    """A profile that is wanted, by its integrals over training time, in float64.

    Attributes:
      square: that of its square, in 1 / steps.
      products: products(steps, gammas), those of its products with the power functions of exponents
        `gammas` that end at `steps`.
    """

    square: float
    products: Callable[[Float[np.ndarray, "n"], Float[np.ndarray, "n"]], Float[np.ndarray, "n"]]


def power(sigma_rel: float, step: float) -> Profile:
    """The power function of width `sigma_rel` that ends at a step (eq. 151).

    Args:
      sigma_rel: greater than 0 and at most LARGEST_SIGMA_REL.
    """
    products = partial(_products, float(step), gamma(sigma_rel))
    return Profile(float(products(float(step), gamma(sigma_rel))), products)


def exponential(rate: float, step: float) -> Profile:
    """The exponential average that ends at a step, and starts from nothing: none of the initial parameters.

    Args:
      rate: greater than 0 and less than 1.
    """
    c = -math.log(rate)
    total = -math.expm1(-c * step)

    def products(steps, gammas):
        # the integral of tau^gamma e^(c tau) up to m is m^(gamma + 1) / (gamma + 1) e^(c m) 1F1(1; gamma + 2; -c m)
        m = np.minimum(steps, step)
        inside = (m / steps) ** (gammas + 1) * hyp1f1(1.0, gammas + 2, -c * m)
        return c / total * np.exp(-c * (step - m)) * inside

    return Profile(c / 2 / math.tanh(c * step / 2), products)


def _products(s, gamma_s, t, gamma_t):
    m = np.minimum(s, t)
    shares = (m / s) ** (gamma_s + 1) * (m / t) ** (gamma_t + 1)
    return (gamma_s + 1) * (gamma_t + 1) / (gamma_s + gamma_t + 1) * shares / m


def solve(
    steps: Float[np.ndarray, "n"], sigma_rels: Float[np.ndarray, "n"], target: Profile
) -> tuple[Float[np.ndarray, "n"], float]:
    """The combination of power-function averages that is nearest to a profile, by least squares, and what is left.

    Its coefficients sum to one, so that parameters which rest are met exactly.

    Args:
      steps, sigma_rels: of each average, where it ended and how wide it is.

    Returns:
      The coefficients, and the root mean square of the profile's error over that of the profile. Below
      0.01 the average is as good as tracked; at 0.3 it is another one. Coefficients far above one also
      enlarge the rounding of the averages: they come from widths far from the target's.
    """
    gammas = np.array([gamma(width) for width in sigma_rels])
    gram = _products(steps[:, None], gammas[:, None], steps, gammas)
    norms = np.sqrt(np.diag(gram))
    gram, products = gram / norms / norms[:, None], target.products(steps, gammas) / norms
    # of unknowns y = coefficients * norms, and the multiplier of sum(y / norms) = 1, of which the
    # smallest are taken if two averages are alike
    unit = np.linalg.norm(1 / norms)
    ones = (1 / norms / unit)[:, None]
    system = np.block([[gram, ones], [ones.T, np.zeros((1, 1))]])
    y = np.linalg.lstsq(system, np.append(products, 1 / unit), rcond=None)[0][:-1]
    left = target.square - 2 * y @ products + y @ gram @ y
    return y / norms, math.sqrt(max(left, 0.0) / target.square)


def combine(averages: Iterable[Params], coefficients: Float[np.ndarray, "n"]) -> Params:
    """The sum of averages times coefficients, on the host in float64; one average at a time is in memory."""
    scaled = lambda average, c: jax.tree.map(lambda leaf: c * np.asarray(leaf, np.float64), average)
    terms = (scaled(average, c) for average, c in zip(averages, coefficients, strict=True))
    return reduce(partial(jax.tree.map, np.add), terms)
