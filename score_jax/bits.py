"""Bits per dimension of a data set: a table of its examples, and the number with its errors.

The number is the mean over n examples. Its errors are two:

    (a) of this test set's number: what other probes (random), other dequantization noise (random)
        and a better solver (a bias) would change. The random parts are found by drawing each anew
        for a few examples, the other kept: half the mean square of the difference is the variance
        of one example. The bias is the mean difference from a refined solve with the same draws.
    (b) of the sampling of the test set: the standard deviation over examples / sqrt(n). Probes and
        noise are drawn for each example alone, so that (b) contains the random parts of (a).

The number is printed +- (b).
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from score_jax import files
from score_jax.evaluate import STREAMS, estimate, streams, together
from score_jax.table import Table, append, begin, read

TERMS = "prior", "volume", "dequantization", "importance"
ERRORS = "solver_error", "probe_stderr", "optimism"
# of the table of all examples, and of the table of those whose randomness is drawn anew
COLUMNS = ("index", "bpd", *TERMS, "nfe", *ERRORS, "elbo", "failed")
CHECK_COLUMNS = "index", "noise", "probe", "refined", "elbo_noise", "elbo_times"

# what becomes of the noise that the density has at t_min, by dequantization
_TRUNCATION = {
    None: "not corrected to t = 0",
    "uniform": "not corrected to t = 0",
    "flow": "not corrected to t = 0",
    "truncated_normal": "whose noise is the dequantization's",
    "decoder": "corrected to t = 0",
    "lattice_decoder": "corrected to t = 0",
    "denoised": "corrected to t = 0",
}


def measure(
    path: Path,
    made_for: dict[str, Any],
    size: int,
    run: Callable[..., Iterator[dict[str, np.ndarray]]],
) -> dict[str, np.ndarray]:
    """The columns of COLUMNS of all `size` examples, each computed once and written to the table at `path`.

    Args:
      made_for: what the numbers depend on; a table made for something else is not continued.
      run: run(start=0) of `evaluate.per_example`, its results those of `ode_bits` and, where there is
        a bound, of `elbo_bits`; without one "elbo" is nan.
    """
    table = Table(path, COLUMNS, np.arange(size))
    done = begin(table, made_for)
    for batch in run(start=done) if done < size else ():
        append(table, _rows(batch, done))
        done += len(batch["ok"])
    return read(table)


def _rows(batch: dict[str, np.ndarray], first: int) -> dict[str, np.ndarray]:
    """The columns of a batch; an example that failed has no numbers."""
    good = batch["ok"] & np.isfinite(batch["bpd"])
    if "elbo" in batch:
        good &= np.isfinite(batch["elbo"])
    batch = {"elbo": np.full(len(good), np.nan)} | batch
    names = "bpd", *TERMS, *ERRORS, "elbo"
    numbers = {name: np.where(good, batch[name], np.nan) for name in names}
    index = first + np.arange(len(good))
    return numbers | {"index": index, "nfe": batch["nfe"], "failed": (~good).astype(int)}


def check(
    path: Path,
    made_for: dict[str, Any],
    index: np.ndarray,
    run: Callable[..., Iterator[dict[str, np.ndarray]]],
    refined: Callable[..., Iterator[dict[str, np.ndarray]]],
) -> dict[str, np.ndarray]:
    """The columns of CHECK_COLUMNS of the examples `index`, as a table like that of `measure`.

    A solve that failed has no number.

    Args:
      run, refined: run(index, streams) of `evaluate.per_example`; the second is of a better solver.
    """
    table, n = Table(path, CHECK_COLUMNS, index), len(index)
    done = begin(table, made_for)
    if done < n:
        # other noise and the same probes and times, then the other way round
        (noise, rest), (other_noise, other_rest) = STREAMS, streams(1)
        draws = np.repeat([other_noise, noise], n), np.repeat([rest, other_rest], n)
        again, better = together(run(np.tile(index, 2), draws)), together(refined(index, STREAMS))
        solved = lambda found: np.where(found["ok"], found["bpd"], np.nan)
        again = {"elbo": np.full(2 * n, np.nan)} | again
        rows = {
            "index": index,
            "noise": solved(again)[:n],
            "probe": solved(again)[n:],
            "refined": solved(better),
            "elbo_noise": again["elbo"][:n],
            "elbo_times": again["elbo"][n:],
        }
        append(table, {name: values[done:] for name, values in rows.items()})
    return read(table)


def subset(n: int, size: int, seed: int) -> np.ndarray:
    """Indices of `size` of n examples, or of all, chosen at random by the seed and in order."""
    return np.sort(np.random.default_rng((seed, n)).permutation(n)[:size])


def summary(rows: dict[str, np.ndarray], checks: dict[str, np.ndarray] | None) -> dict[str, Any]:
    """The number of a table and its errors, all in the table's unit; failed examples are left out.

    Args:
      rows: columns of COLUMNS.
      checks: columns of CHECK_COLUMNS, for examples of `rows`: their numbers under other
        dequantization noise, another probe and a refined solve. None leaves unknown errors nan.
    Returns:
      "bpd" and "elbo": Estimates as dicts; "errors": of (a), "probe", "dequantization" and "solver"
      of the first, which is an Estimate of its bias, and "elbo", the random part of the second;
      "elbo_minus_bpd": paired; means of "terms", "optimism" and "nfe"; the number of "failed"
      examples.
    """
    good = rows["failed"] == 0
    kept = {name: values[good] for name, values in rows.items()}
    n = int(good.sum())
    again = _checked(kept, checks)
    difference = lambda name, of="bpd": again[of] - again[name]
    probe = math.sqrt(np.sum(kept["probe_stderr"] ** 2)) / n if n else math.nan
    if math.isnan(probe):  # one probe does not tell its own error
        probe = _spread(difference("probe"), n)
    redrawn = [_spread(difference(name, "elbo"), n) for name in ("elbo_noise", "elbo_times")]
    return {
        "bpd": estimate(kept["bpd"])._asdict(),
        "elbo": estimate(kept["elbo"])._asdict(),
        "elbo_minus_bpd": estimate(kept["elbo"] - kept["bpd"])._asdict(),
        "errors": {
            "probe": probe,
            "dequantization": _spread(difference("noise"), n),
            "solver": estimate(difference("refined"))._asdict(),
            "elbo": math.hypot(*redrawn),
        },
        "terms": {name: estimate(kept[name]).mean for name in TERMS},
        "optimism": estimate(kept["optimism"]).mean,
        "nfe": estimate(kept["nfe"]).mean,
        "failed": int(len(good) - n),
    }


def _checked(kept: dict, checks: dict | None) -> dict[str, np.ndarray]:
    """The checks beside what the table says of the same examples, where none of it failed."""
    if checks is None:
        return {name: np.zeros(0) for name in ("bpd", "elbo", *CHECK_COLUMNS)}
    _, i, j = np.intersect1d(kept["index"], checks["index"], return_indices=True)
    found = {name: kept[name][i] for name in ("bpd", "elbo")}
    found |= {name: checks[name][j] for name in CHECK_COLUMNS}
    has_elbo = np.any(np.isfinite(kept["elbo"]))
    needed = [name for name in found if has_elbo or not name.startswith("elbo")]
    whole = np.all([np.isfinite(found[name]) for name in needed], axis=0)
    return {name: values[whole] for name, values in found.items()}


def _spread(differences: np.ndarray, n: int) -> float:
    """The standard error of a mean over n from differences of two independent draws of some examples."""
    if not len(differences):
        return math.nan
    return math.sqrt(np.mean(differences**2) / 2 / n)


def prior_mismatch(x: np.ndarray, alpha: float, sigma: float) -> float:
    """KL(p_T || N(0, sigma^2 I)) in nats, where p_T = N(alpha m, alpha^2 C + sigma^2 I).

    m and C are the mean and covariance of data x [n, d]. It is what the likelihood loses by the
    prior that it takes at t_max; to leading order alpha^2 |m|^2 / (2 sigma^2).
    """
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=0)
    eigenvalues = np.linalg.svd((x - mean) / math.sqrt(max(len(x) - 1, 1)), compute_uv=False) ** 2
    ratio = (alpha / sigma) ** 2
    return float(0.5 * (ratio * np.sum(mean**2) + np.sum(_excess(ratio * eigenvalues))))


def _excess(v: np.ndarray) -> np.ndarray:
    """v - log(1 + v), also where it is v^2 / 2 and the difference has lost its digits."""
    return np.where(v < 1e-5, 0.5 * v**2, v - np.log1p(v))


def to_json(result: dict[str, Any]) -> str:
    """The text of a JSON file, numbers that are not known being null."""

    def known(value):
        if isinstance(value, dict):
            return {key: known(entry) for key, entry in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(known(result), indent=2) + "\n"


def report(result: dict[str, Any]) -> list[str]:
    """The number, its standard error and how it was computed, in a line, and in others what to hold it against.

    Args:
      result: `summary` and what `run.bits_per_dim` and scripts/eval.py add to it.
    """
    number = lambda name: f"{result[name]['mean']:.4f} +- {result[name]['stderr']:.4f}"
    unit, n, size = result["unit"], result["bpd"]["n"] + result["failed"], result["size"]
    errors = {name: f"{result['errors'][name]:.4f}" for name in ("probe", "dequantization")}
    errors["solver"] = f"{result['errors']['solver']['mean']:+.4f}"
    if not result["dequantization"]:
        del errors["dequantization"]
    how = [
        f"{n} examples" if n == size else f"the first {n} of {size} examples",
        ", ".join(f"{name} {error.replace('+nan', 'nan')}" for name, error in errors.items()),
        f"{result['nfe']:.0f} evaluations",
        *([_importance(result)] if result["importance"] > 1 else []),
        *([f"{result['dequantization']} dequantization"] if result["dequantization"] else []),
        *(["given the class"] if result["conditional"] else []),
        f"step {result['step']}, {result['weights']}",
    ]
    lines = [
        f"{result['split']} {number('bpd')} {unit} ({'; '.join(how)})",
        result["no_elbo"]
        or f"by the ELBO at most {number('elbo')}, with the same weights and on the same examples",
        f"log p at t_min = {result['t_min']:g}, {_TRUNCATION[result['dequantization']]}; "
        f"the prior at t_max costs {_known(result['prior_mismatch'])}",
    ]
    if result["failed"]:
        lines.insert(
            1,
            f"the solver failed on {result['failed']} of them, which are left out (failed = 1 in the "
            "table); loosen config.eval.rtol and atol, or set config.eval.n_steps",
        )
    if "kl" in result:
        lines.append(
            f"the data's own density has {number('exact')}: KL(data || model) {number('kl')}"
        )
    return lines


def _known(mismatch: float) -> str:
    return "what is not known" if math.isnan(mismatch) else f"{max(mismatch, 0):.1g}"


def _importance(result: dict[str, Any]) -> str:
    optimism = result["optimism"]
    known = "unknown from one" if math.isnan(optimism) else f"{optimism:.4f}"
    return f"{result['importance']} importance samples, optimism by probes {known}"


def write_curve(path: Path, results: Iterable[dict[str, Any]]):
    """Writes PATH.csv, a row for each result by weights and step, and PATH.png, a line for each of the weights."""
    names = "step", "weights", "bpd", "stderr", "n", "elbo", "elbo_stderr", "nfe", "failed"
    elbo = lambda r: (r["elbo"]["mean"], r["elbo"]["stderr"])
    rows = [
        [r["step"], r["weights"], *r["bpd"].values(), *elbo(r), r["nfe"], r["failed"]]
        for r in results
    ]
    lines = [",".join(str(value) for value in row) for row in (names, *rows)]
    files.write_text(path.with_suffix(".csv"), "\n".join(lines) + "\n")
    unit = next(iter(results))["unit"]
    files.write(path.with_suffix(".png"), lambda part: _curve(rows, unit).savefig(part))


def _curve(rows: Sequence[Sequence[Any]], unit: str):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=128, layout="tight")
    axes = figure.add_subplot(xlabel="training step", ylabel=unit)
    for i, weights in enumerate(dict.fromkeys(row[1] for row in rows)):
        steps, bpd, stderr, elbo = zip(
            *((row[0], row[2], row[3], row[5]) for row in rows if row[1] == weights), strict=True
        )
        axes.errorbar(steps, bpd, yerr=stderr, color=f"C{i}", marker="o", capsize=3, label=weights)
        axes.plot(steps, elbo, color=f"C{i}", linestyle="--", label=f"{weights}, ELBO")
    axes.legend(fontsize=7)
    return figure
