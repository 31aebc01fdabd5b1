"""How a sampler is measured on problems with exact answers: its order of convergence, and W2 to the truth.

Orders of deterministic samplers are those of the map from x_T to x_0 on a mixture in the plane,
orders of stochastic ones those of mean and covariance for Gaussian data; all in log-SNR steps.
"""

import itertools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import affine
import jax
import jax.numpy as jnp
import methods
import numpy as np
from affine import Gaussian
from jax import Array
from methods import Method

from score_jax import exact, grids, sampling
from score_jax.sde import SDE
from score_jax.types import PredictFn

RATIO_END = 1e-2  # orders are measured down to this sigma / alpha
TOLERANCE = 0.15
ROUNDING = 1e-13  # relative errors below it say nothing of the order
MEAN = 0.5  # of every coordinate where weak orders are measured
MIXTURE = ((0.2, 0.8), ((-1.0, 0.5), (1.0, -0.5)), 0.2)


class Spectrum(NamedTuple):
    """The distinct eigenvalues of a covariance, and how many times each occurs."""

    values: np.ndarray
    counts: np.ndarray


def read_spectrum(path: str | None) -> Spectrum:
    """Eigenvalues from a .npy file, or `affine.natural` if None."""
    if path is None:
        return Spectrum(*np.unique(affine.natural(), return_counts=True))
    try:
        values = np.load(path)
    except ValueError as error:
        raise ValueError(f"--spectrum={path} is no .npy file of numbers") from error
    if not isinstance(values, np.ndarray) or values.ndim != 1 or not values.size:
        shape = getattr(values, "shape", "of several arrays")
        raise ValueError(f"--spectrum={path} has shape {shape}; give eigenvalues as one 1-D array")
    if values.dtype.kind not in "iuf" or not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError(f"--spectrum={path} has values that are not finite positive numbers")
    return Spectrum(*np.unique(values.astype(float), return_counts=True))


# orders


def until(sde: SDE, ratio: float) -> SDE:
    """The SDE with the t_min at which sigma / alpha is `ratio`."""
    return sde._replace(t_min=float(sde.time_of_log_snr(jnp.asarray(-2 * math.log(ratio)))))


class Problem(NamedTuple):
    """The mixture under an SDE: exact predictions, points at t_max, and where the ODE takes them."""

    predict: PredictFn
    start: Array
    end: Array


def mixture_problem(sde: SDE) -> Problem:
    """32 points of the exact law at t_max, and their ends by 1000 steps of order 8."""
    weights, means, std = MIXTURE
    predict = exact.predictor(sde, exact.mixture(weights, means, std))
    rng, t = np.random.default_rng(0), jnp.asarray(sde.t_max)
    x0 = np.asarray(means)[rng.choice(2, 32, p=weights)] + std * rng.standard_normal((32, 2))
    start = sde.alpha(t) * x0 + sde.sigma(t) * rng.standard_normal((32, 2))
    reference = sampling.probability_flow(solver="dopri8", n_steps=1000)
    return Problem(predict, start, ends(reference, sde, predict, start))


def ends(draw, sde: SDE, predict: PredictFn, x: Array) -> Array:
    keys = jax.random.split(jax.random.key(0), len(x))
    run = jax.jit(lambda keys, x: draw(keys, sde, predict, x).x, compiler_options=affine.COMPILER)
    return run(keys, x)


def strong_errors(method: Method, sde: SDE, problem: Problem, n_steps) -> list[float]:
    """Relative error of the map from x_T to x at t_min."""
    size = jnp.linalg.norm(problem.end)

    def error(n):
        found = ends(method.draw(n), sde, problem.predict, problem.start)
        return float(jnp.linalg.norm(found - problem.end) / size)

    return [error(n) for n in n_steps]


def weak_errors(method: Method, sde: SDE, spectrum: Spectrum, n_steps) -> list[list[float]]:
    """Relative errors of the mean and of the covariance at t_min, from the exact law at t_max."""
    data = Gaussian(np.full_like(spectrum.values, MEAN), spectrum.values)
    start, true = (affine.noised(sde, data, t) for t in (sde.t_max, sde.t_min))
    size = lambda a: float(np.sqrt(np.sum(spectrum.counts * a**2)))
    laws = [method.law(n, grids.log_snr, sde)(data, start) for n in n_steps]
    of_mean = [size(law.mean - true.mean) / size(true.mean) for law in laws]
    return [of_mean, [size(law.variance - true.variance) / size(true.variance) for law in laws]]


def order_errors(sde: SDE, spectrum: Spectrum, n_steps) -> Callable[[Method], list[list[float]]]:
    """A method's errors at sigma / alpha = RATIO_END: of the map, or of mean and covariance."""
    sde = until(sde, RATIO_END)
    problem = mixture_problem(sde)

    def errors(method):
        if is_stochastic(method):
            return weak_errors(method, sde, spectrum, n_steps)
        return [strong_errors(method, sde, problem, n_steps)]

    return errors


def orders(sde: SDE, chosen: dict[str, Method], spectrum: Spectrum, n_steps):
    """Method -> its errors."""
    errors_of, errors = order_errors(sde, spectrum, n_steps), {}
    for name, method in chosen.items():
        errors[name] = errors_of(method)
        print(f"{name}: " + ", ".join(f"{rate(e):.2f}" for e in errors[name]), flush=True)
    return errors


def rates(errors: list[float]) -> list[float]:
    """log2 of the ratios of successive errors; nan where rounding touches one."""
    return [
        math.log2(coarse / fine) if fine > ROUNDING else math.nan
        for coarse, fine in itertools.pairwise(errors)
    ]


def rate(errors: list[float]) -> float:
    """The last rate that rounding does not touch; nan if there is none."""
    return next((r for r in reversed(rates(errors)) if not math.isnan(r)), math.nan)


def order(errors: list[list[float]]) -> float:
    """The smallest rate; nan if all errors are zero to rounding."""
    return min((r for r in map(rate, errors) if not math.isnan(r)), default=math.nan)


def is_off(method: Method, errors: list[list[float]]) -> bool:
    return not abs(order(errors) - expected(method)) <= TOLERANCE


def is_stochastic(method: Method) -> bool:
    return method.order.startswith("weak")


def expected(method: Method) -> float:
    return float(re.search(r"[\d.]+", method.order)[0])


# W2


def exact_w2(
    method: Method, sde: SDE, spectrum: Spectrum, budget: int, grid=grids.log_snr
) -> float:
    """W2 to the data, from N(0, sigma(t_max)^2 I), with the most steps within the budget; nan if none is."""
    n = methods.steps_within(method, budget)
    if not n:
        return math.nan
    data = Gaussian(np.zeros_like(spectrum.values), spectrum.values)
    start = affine.noised(sde, Gaussian(data.mean, np.zeros_like(data.mean)), sde.t_max)
    return affine.w2(method.law(n, grid, sde)(data, start), data, spectrum.counts)


def start_error(sde: SDE, spectrum: Spectrum) -> float:
    """W2 of the exact ODE from N(0, sigma(t_max)^2 I) instead of the law of x at t_max."""
    data = Gaussian(np.zeros_like(spectrum.values), spectrum.values)
    first, last = (affine.noised(sde, data, t).variance for t in (sde.t_max, sde.t_min))
    start = float(sde.sigma(jnp.asarray(sde.t_max))) ** 2
    return affine.w2(Gaussian(data.mean, start / first * last), data, spectrum.counts)


def sampled_w2(x: np.ndarray, eigenvalues: np.ndarray, n_batches: int = 20) -> tuple[float, float]:
    """W2^2 of samples' Gaussian fit in each coordinate to the data, and its standard error.

    Products of the deviations in different batches, so that the noise of the fit does not add to
    the distance; the standard error is the jackknife's over batches.
    """
    batches = np.asarray(x).reshape(n_batches, -1, x.shape[-1])
    spread = np.sqrt(np.mean(batches**2, axis=1))
    spread *= 1 + 1 / (4 * batches.shape[1])  # the bias of a standard deviation of normals
    deviations = spread - np.sqrt(eigenvalues)

    def estimate(d):
        n = len(d)
        return (np.sum(np.sum(d, axis=0) ** 2) - np.sum(d**2)) / (n * (n - 1))

    left_out = [estimate(np.delete(deviations, i, axis=0)) for i in range(n_batches)]
    return estimate(deviations), math.sqrt((n_batches - 1) * np.var(left_out))


def sample(draw, sde: SDE, eigenvalues: np.ndarray, n: int) -> tuple[np.ndarray, float]:
    """n samples in the eigenbasis, drawn in `hartley`'s pixels, and the mean number of evaluations of each."""
    pixels = hartley(len(eigenvalues))
    predict = affine.predictor(sde, Gaussian(np.zeros_like(eigenvalues), eigenvalues))

    def predict_pixels(x, t, label=None):
        return jax.tree.map(lambda a: a @ pixels, predict(x @ pixels, t))

    key_start, key = jax.random.split(jax.random.key(0))
    start = sampling.prior(jax.random.split(key_start, n), sde, (len(eigenvalues),))
    run = jax.jit(lambda keys, x: draw(keys, sde, predict_pixels, x))
    found = run(jax.random.split(key, n), start)
    return np.asarray(found.x) @ pixels, float(np.mean(found.nfe))


def hartley(n: int) -> np.ndarray:
    """The orthonormal, symmetric matrix of the discrete Hartley transform: pixels spread over all coordinates."""
    angle = 2 * np.pi * np.outer(np.arange(n), np.arange(n)) / n
    return (np.cos(angle) + np.sin(angle)) / np.sqrt(n)


def share_outside(eigenvalues: np.ndarray) -> float:
    """The share of the data's pixels outside [-1, 1]."""
    variances = hartley(len(eigenvalues)) ** 2 @ eigenvalues
    return float(np.mean([math.erfc(1 / math.sqrt(2 * v)) for v in variances]))
