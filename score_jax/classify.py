"""A classifier made of a class-conditional generative model, and how calibrated a classifier is.

    p(y | x) = p(x | y) p(y) / sum_k p(x | k) p(k)    (Bayes)

with log p(x | k) from bits per dimension, for every class. They are estimates: all classes of an
image share their noise, times and probes, so that what these add to each cancels in the differences
(Li et al. 2023, arXiv 2303.16203, section 3). What is left of it makes the probabilities too sure.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from score_jax import evaluate
from score_jax.data.base import Split
from score_jax.types import Key, Params


class Bin(NamedTuple):
    """A row of a reliability table: predictions whose confidence is in (low, high]; means are nan of none."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class Calibration(NamedTuple):
    """How good probabilities of classes are on n examples.

    Attributes:
      accuracy: of the most probable class.
      nll: -log p(label), in nats.
      ece: expected calibration error, the mean over examples of | accuracy - confidence | of their
        bin (Guo et al. 2017, arXiv 1706.04599, eq. 3), the confidence being the probability of the
        most probable class. Of few examples it is too large: also the noise of a bin's accuracy
        counts.
      bins: the reliability table.
    """

    accuracy: evaluate.Estimate
    nll: evaluate.Estimate
    ece: float
    bins: tuple[Bin, ...]


def log_likelihoods(
    run: Callable,
    key: Key,
    params: Params,
    split: Split,
    *,
    n_classes: int,
    nats: float,
    column: str = "bpd",
    draws: int = 1,
    index: np.ndarray | None = None,
) -> Float[np.ndarray, "n k"]:
    """log p(x | class), in nats, of every example under every class.

    Args:
      run: of `evaluate.per_example` with labels, of `evaluate.ode_bits` or `evaluate.elbo_bits`.
      key: of the examples' randomness, which all classes share.
      nats: in a unit of the column, `evaluate.per_unit`.
      column: "bpd" of the former, "elbo" of the latter: then a bound takes the place of log p.
      draws: of an example's randomness, whose mean is taken.
      index: of the examples; None for all.
    """

    def bits(label, draw):
        labels = np.full(len(split.x), label, np.int32)
        batches = run(key, params, Split(split.x, labels), index, evaluate.streams(draw))
        return evaluate.together(batches)[column].astype(np.float64)

    means = [sum(bits(k, d) for d in range(draws)) / draws for k in range(n_classes)]
    return -nats * np.stack(means, axis=1)


def posterior(
    log_likelihood: Float[np.ndarray, "n k"],
    log_prior: np.ndarray | Sequence[float] | None = None,
) -> Float[np.ndarray, "n k"]:
    """log p(class | x) of log p(x | class), by Bayes.

    Args:
      log_prior: log p(class) up to a constant; None for classes that are equally probable.
    """
    joint = np.asarray(log_likelihood, np.float64)
    if log_prior is not None:
        joint = joint + np.asarray(log_prior, np.float64)
    return joint - logsumexp(joint, axis=1, keepdims=True)


def calibration(
    log_p: Float[np.ndarray, "n k"], label: Int[np.ndarray, "n"], n_bins: int = 15
) -> Calibration:
    """Accuracy, log-loss, calibration error and reliability table of log p(class | x).

    Args:
      n_bins: of equal width, over confidences in (0, 1].
    """
    log_p = np.asarray(log_p, np.float64)
    confidence, hit = np.exp(log_p.max(axis=1)), log_p.argmax(axis=1) == label
    # (low, high]: a confidence on an edge belongs to the bin below it, and 1 to the last
    place = np.clip(np.ceil(n_bins * confidence).astype(int) - 1, 0, n_bins - 1)
    bins = tuple(_bin(i, n_bins, confidence[place == i], hit[place == i]) for i in range(n_bins))
    gaps = [row.count * abs(row.accuracy - row.confidence) for row in bins if row.count]
    return Calibration(
        accuracy=evaluate.estimate(hit),
        nll=evaluate.estimate(-log_p[np.arange(len(label)), label]),
        ece=sum(gaps) / len(label),
        bins=bins,
    )


def _bin(i: int, n_bins: int, confidence: np.ndarray, hit: np.ndarray) -> Bin:
    mean = lambda values: float(values.mean()) if len(values) else math.nan
    return Bin(i / n_bins, (i + 1) / n_bins, len(hit), mean(confidence), mean(hit))


def temperature(log_p: Float[np.ndarray, "n k"], label: Int[np.ndarray, "n"]) -> float:
    """T for which p(class | x)^(1 / T), normalised, has the least log-loss: above 1 for a classifier too sure.

    Guo et al. 2017, arXiv 1706.04599, section 4.2. Found on examples other than those on which the
    calibration is reported, as posterior(log_p / T).
    """
    log_p, rows = np.asarray(log_p, np.float64), np.arange(len(label))
    loss = lambda log_t: -np.mean(posterior(log_p * math.exp(-log_t))[rows, label])
    # convex in 1 / T, so with one minimum in log T
    return float(math.exp(minimize_scalar(loss, bounds=(-10, 10), method="bounded").x))


def report(found: Calibration) -> list[str]:
    """The numbers as lines of text, the reliability table last; empty bins are left out."""
    numbers = f"accuracy {found.accuracy.mean:.4f} +- {found.accuracy.stderr:.4f}"
    numbers += f"  nll {found.nll.mean:.4f} +- {found.nll.stderr:.4f}  ece {found.ece:.4f}"
    rows = [
        f"({row.low:.3f}, {row.high:.3f}]  {row.count:10d}  {row.confidence:10.4f}  {row.accuracy:8.4f}"
        for row in found.bins
        if row.count
    ]
    return [numbers, "confidence in         count  confidence  accuracy", *rows]


def to_json(found: Calibration) -> dict[str, Any]:
    """The same as a dict of numbers; means of empty bins are None."""
    bins = [
        {name: None if value != value else value for name, value in row._asdict().items()}
        for row in found.bins
    ]
    numbers = {name: getattr(found, name)._asdict() for name in ("accuracy", "nll")}
    return numbers | {"ece": found.ece, "bins": bins}
