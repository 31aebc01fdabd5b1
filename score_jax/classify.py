"""A classifier made of a class-conditional generative model, and how calibrated a classifier is.

    p(y | x) = p(x | y) p(y) / sum_k p(x | k) p(k)    (Bayes)

with log p(x | k) from bits per dimension, for every class. They are estimates: all classes of an
image share their noise, times and probes, so that what these add to each cancels in the differences
(Li et al. 2023, arXiv 2303.16203, section 3). What is left of it makes the probabilities too sure.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from score_jax import evaluate
from score_jax.table import Table, append, begin, read


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


class Assessed(NamedTuple):
    """Probabilities as they are, and with the temperature that was fitted on other examples, if any were."""

    plain: Calibration
    temperature: float | None
    tempered: Calibration | None


def measure(
    path: Path,
    made_for: dict[str, Any],
    size: int,
    n_classes: int,
    column: str,
    run: Callable[..., Iterator[dict[str, np.ndarray]]],
) -> Float[np.ndarray, "n k"]:
    """The number of each of `size` examples under each class, computed once and written to the table at `path`.

    A row for each example and class; nan where the solver failed or the number is not finite.

    Args:
      made_for: what the numbers depend on; a table made for something else is not continued.
      column: of the results, "elbo" or "bpd".
      run: run(index=, label=, start=) of `evaluate.per_example` with labels, of `evaluate.elbo_bits`
        or `evaluate.ode_bits`. An example's randomness is keyed by its index alone, so that all
        classes share it.
    """
    index, label = np.divmod(np.arange(size * n_classes), n_classes)
    label = label.astype(np.int32)
    table = Table(path, ("index", "class", column), index)
    done = begin(table, made_for)
    for batch in run(index=index, label=label, start=done) if done < len(index) else ():
        good = batch.get("ok", True) & np.isfinite(batch[column])
        values = np.where(good, batch[column], np.nan)
        rows = slice(done, done + len(values))
        append(table, {"index": index[rows], "class": label[rows], column: values})
        done += len(values)
    return read(table)[column].reshape(size, n_classes)


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
        ece=sum(gaps) / len(label) if len(label) else math.nan,
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


def assess(
    log_p: Float[np.ndarray, "n k"],
    label: Int[np.ndarray, "n"],
    other: tuple[Float[np.ndarray, "b k"], Int[np.ndarray, "b"]] | None = None,
) -> Assessed:
    """The calibration of log p(class | x), and of what the temperature makes of it; rows with nan are left out.

    Args:
      other: such probabilities and labels of other examples, to fit the temperature on.
    """
    log_p, label = _known(log_p, label)
    plain = calibration(log_p, label)
    if other is None:
        return Assessed(plain, None, None)
    found = temperature(*_known(*other))
    return Assessed(plain, found, calibration(posterior(log_p / found), label))


def _known(log_p, label):
    known = ~np.isnan(log_p).any(axis=1)
    return log_p[known], label[known]


def to_json(found: Calibration) -> dict[str, Any]:
    """A dict of numbers; means of empty bins are None."""
    bins = [
        {name: None if value != value else value for name, value in row._asdict().items()}
        for row in found.bins
    ]
    means = {name: getattr(found, name)._asdict() for name in ("accuracy", "nll")}
    return means | {"ece": found.ece, "bins": bins}
