"""Posterior methods on mixtures, whose posterior is closed: writes docs/posterior_accuracy.md and .png.

    python benchmarks/posterior_accuracy.py
    python benchmarks/posterior_accuracy.py --quick --out=/tmp/quick

The network is perfect, so that what is seen is the method's own error. Under 10 minutes on two cores.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import guided_step
import jax
import jax.numpy as jnp
import numpy as np

from score_jax import cli, exact, grids, posterior, samplers, sampling
from score_jax import measurement as measurements
from score_jax import sde as sdes
from score_jax.files import write_text
from score_jax.posterior import mixture, twisted
from score_jax.posterior.pigdm import gaussian

COMPONENTS, COMPONENT_STD = 4, 0.2
DIRECTIONS = 128  # of sliced W2


class Size(NamedTuple):
    """How much is computed."""

    dims: tuple[int, ...] = (2, 8, 32)
    stds: tuple[float, ...] = (0.05, 0.3)
    repetitions: int = 20
    n: int = 500
    n_steps: int = 100
    particles: tuple[int, ...] = (8, 64, 512, 4096)
    steps: tuple[int, ...] = (10, 25, 100, 400)


QUICK = Size((2,), (0.3,), 3, 50, 10, (8, 32), (5, 10))
EXACT = "(exact draws)"


class Problem(NamedTuple):
    """Data, a measurement, and one y [m] for each repetition with the posterior given it and log p(y)."""

    prior: mixture.Mixture
    a: np.ndarray
    std: float
    ys: np.ndarray
    truths: list[mixture.Mixture]
    log_evidences: np.ndarray


class Errors(NamedTuple):
    """Of each repetition [n]: sliced W2, and the errors of mean and covariance in units of the data's."""

    w2: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray


def problem(d: int, std: float, repetitions: int) -> Problem:
    """Four components around random means, and half as many measurements as dimensions, in random directions."""
    rng = np.random.default_rng(d)
    means = rng.normal(size=(COMPONENTS, d))
    weights = np.arange(1, COMPONENTS + 1) / np.sum(np.arange(1, COMPONENTS + 1))
    covariances = np.tile(COMPONENT_STD**2 * np.eye(d), (COMPONENTS, 1, 1))
    prior = mixture.Mixture(weights, means, covariances)
    a = rng.normal(size=(d // 2, d)) / math.sqrt(d)
    x = mixture.draw(rng, prior, repetitions)
    ys = x @ a.T + std * rng.standard_normal((repetitions, len(a)))
    truths, log_evidences = zip(*(mixture.posterior(prior, a, std, y) for y in ys), strict=True)
    return Problem(prior, a, std, ys, list(truths), np.asarray(log_evidences))


def data_variance(prior: mixture.Mixture) -> float:
    """Of a coordinate, on average: what `pigdm` and `tsmc` are told of the data."""
    _, covariance = mixture.moments(prior)
    return float(np.mean(np.diag(covariance)))


def methods(n: int, variance: float) -> dict[str, posterior.Method]:
    return {
        "projection": posterior.projection(),
        "repaint": posterior.repaint(),
        "ddrm": posterior.ddrm(),
        "dps, zeta=0.1": posterior.dps(zeta=0.1),
        "dps, zeta=0.3": posterior.dps(zeta=0.3),
        "dps": posterior.dps(),
        "pigdm": posterior.pigdm(data_variance=variance),
        "pigdm, eta=0": posterior.pigdm(data_variance=variance, eta=0.0),
        "tsmc": posterior.tsmc(particles=n, data_variance=variance),
    }


def model_of(prior: mixture.Mixture, sde) -> Callable:
    predict = exact.predictor(sde, exact.mixture(prior.weights, prior.means, COMPONENT_STD))
    return lambda params: (sde, lambda x, t, label: predict(x, t))


def evaluations(method: posterior.Method, n_steps: int) -> int:
    times = np.asarray(method.walk(jnp.linspace(1.0, 0.0, n_steps + 1)))
    return int(np.sum(np.diff(times) < 0))


def samples(method: posterior.Method, of: Problem, size: Size) -> np.ndarray:
    """[repetitions, n, d], at t_min and divided by alpha there."""
    sde = sdes.vp()
    operator = measurements.matrix(of.a, of.std)
    draw = posterior.drawer(method, model_of(of.prior, sde), operator, n_steps=size.n_steps)
    y = jnp.asarray(np.repeat(of.ys, size.n, axis=0), jnp.float32)
    x = draw(jax.random.split(jax.random.key(0), len(y)), (), y)
    alpha = float(sde.alpha(jnp.asarray(sde.t_min)))
    return np.asarray(x, float).reshape(len(of.ys), size.n, -1) / alpha


def errors_of(x: np.ndarray, reference: np.ndarray, truth: mixture.Mixture, prior) -> tuple:
    """Of one repetition's samples [n, d]; the reference are as many exact ones."""
    directions = np.random.default_rng(0).normal(size=(DIRECTIONS, x.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    gaps = np.sort(x @ directions.T, axis=0) - np.sort(reference @ directions.T, axis=0)
    mean, covariance = mixture.moments(truth)
    _, scale = mixture.moments(prior)
    return (
        np.sqrt(np.mean(np.square(gaps))),
        np.linalg.norm(x.mean(axis=0) - mean) / np.sqrt(np.trace(scale)),
        np.linalg.norm(np.cov(x.T) - covariance) / np.linalg.norm(scale),
    )


def compare(of: Problem, size: Size) -> dict[str, Errors]:
    """Row -> its errors; the first two rows are exact draws and draws that ignore y."""
    rng = np.random.default_rng(1)
    fresh = lambda: [mixture.draw(rng, truth, size.n) for truth in of.truths]
    references = fresh()
    found = {
        EXACT: fresh(),
        "(the prior)": [mixture.draw(rng, of.prior, size.n) for _ in of.truths],
    }
    for name, method in methods(size.n, data_variance(of.prior)).items():
        start = time.time()
        found[name] = samples(method, of, size)
        print(f"d={of.a.shape[1]} std={of.std} {name}: {time.time() - start:.1f} s", flush=True)
    rows = {}
    for name, xs in found.items():
        each = zip(xs, references, of.truths, strict=True)
        rows[name] = Errors(*np.array([errors_of(*item, of.prior) for item in each]).T)
    return rows


def convergence(of: Problem, size: Size) -> dict[tuple[int, int], tuple]:
    """(particles, steps) -> the errors of the weighted mean and of log p(y), in nats, of each repetition."""
    sde = sdes.vp()
    operator = measurements.matrix(of.a, of.std)
    _, predict = model_of(of.prior, sde)(())
    alpha, found = float(sde.alpha(jnp.asarray(sde.t_min))), {}
    means = np.array([mixture.moments(truth)[0] for truth in of.truths])
    spread = np.sqrt(np.trace(mixture.moments(of.prior)[1]))

    def run(particles, y, keys, times):
        twist = gaussian(sde, operator, y, data_variance(of.prior))
        steps = samplers.Steps(
            twisted.sampler(sde, twist, particles=particles),
            lambda x, t: predict(x, t, None),
            finish=twisted.weighted(sde, operator, y, particles),
        )
        pair = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
        x = sampling.prior(pair[:, 0], sde, (of.a.shape[1],))
        return samplers.run(pair[:, 1], steps, x, times)

    for particles in size.particles:
        compiled = jax.jit(partial(run, particles))
        y = jnp.asarray(np.repeat(of.ys, particles, axis=0), jnp.float32)
        keys = jax.random.split(jax.random.key(1), len(y))
        for n_steps in size.steps:
            times = grids.log_snr(sde)(jnp.linspace(0.0, 1.0, n_steps + 1))
            out = compiled(y, keys, times)
            weighted = np.asarray(out.weight[:, None] * out.x / alpha, float)
            mean = weighted.reshape(len(of.ys), particles, -1).sum(axis=1)
            off = np.linalg.norm(mean - means, axis=1) / spread
            nats = np.abs(np.asarray(out.log_evidence, float) - of.log_evidences)
            found[particles, n_steps] = off, nats
    return found


PAGE = """# How near to the posterior

Written by `{command}` in {minutes:.0f} minutes of CPU time, jax {jax}.
The data are a mixture of {components} Gaussians of standard deviation {component_std} around random means,
in {dims} dimensions; y = A x + noise has half as many entries as x, in random directions. The
posterior is then a mixture in closed form (`score_jax/posterior/mixture.py`). The network is perfect:
what is seen is the method's own error, and a trained network adds to it.

{n} samples for each of {repetitions} measurements, by {n_steps} steps uniform in log-SNR under `vp`; the
standard errors are over the measurements. The first row are exact draws, where an error is that of
a finite sample: nothing can be below it but by chance. The second ignores y. `pigdm` and `tsmc` know
the mean variance of a coordinate; the particles of `tsmc` are the {n} samples. `repaint` has
{repaint_evaluations} evaluations a sample, all others {n_steps}. All have their defaults but for what is
said; `dps` has zeta = 1.

![Sliced W2 of each method, and the error of twisted sampling by particles and by steps](posterior_accuracy.png)

{ranking}

## Sliced W2

W2 between the samples and as many exact draws, projected on a direction; the root mean square over
{directions} random directions.

{w2}

## Mean

The distance of the samples' mean to the posterior's, over the root of the data's total variance.

{mean}

## Covariance

The error of the samples' covariance in Frobenius norm, over the norm of the data's covariance.

{covariance}

## Twisted sampling in both limits

The weights make the sampler exact for the chain of its steps as the particles grow, and the chain is
the model's as the steps do: neither limit alone is enough. In {convergence_dim} dimensions at std =
{convergence_std}: the error of the weighted mean as above, and of log p(y) in nats.

{limits}

{convergence}
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(values: np.ndarray) -> str:
    """Mean and standard error over repetitions."""
    return f"{values.mean():.3g} ± {values.std(ddof=1) / math.sqrt(len(values)):.1g}"


def error_table(found: dict, field: str) -> str:
    names = next(iter(found.values()))
    header = ["", *(f"d = {d}, std = {std}" for d, std in found)]
    rows = [
        [f"`{name}`", *(cell(getattr(of[name], field)) for of in found.values())] for name in names
    ]
    return table(header, rows)


def ranking(found: dict) -> str:
    """All rows by sliced W2 in each setting, with what the repetitions cannot tell apart."""
    rows = []
    for (d, std), errors in found.items():
        names = sorted(errors, key=lambda name: errors[name].w2.mean())
        text = f"`{names[0]}`"
        for better, worse in itertools.pairwise(names):
            text += f" {'<' if is_less(errors[better].w2, errors[worse].w2) else '~'} `{worse}`"
        rows.append([str(d), str(std), text])
    note = (
        "By sliced W2, the nearest first; `~` where two neighbours differ by less than two standard\n"
        "errors of their difference, which is taken measurement by measurement. What follows after\n"
        "`(the prior)` is farther than draws that ignore y."
    )
    return note + "\n\n" + table(["d", "std", "order"], rows)


def is_less(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the mean of b - a, paired by repetition, is above two of its standard errors."""
    gaps = b - a
    return gaps.mean() > 2 * gaps.std(ddof=1) / math.sqrt(len(gaps))


def limits_text(found: dict) -> str:
    """What more particles do at the most steps, and more steps with the most particles."""
    most = max(found)
    lines = []
    for i, name in enumerate(("particles", "steps")):
        line = [key for key in found if key[1 - i] == most[1 - i]]
        changes = []
        for k, what in enumerate(("mean", "log p(y)")):
            first, last = found[line[0]][k], found[line[-1]][k]
            verb = "falls" if is_less(last, first) else "does not fall clearly, going"
            changes.append(f"{verb} from {cell(first)} to {cell(last)} ({what})")
        lines.append(
            f"- {most[1 - i]} {('steps', 'particles')[i]}, {line[0][i]} to {line[-1][i]} {name}: "
            f"the error {' and '.join(changes)}."
        )
    return "\n".join(lines)


def convergence_table(found: dict) -> str:
    particles, steps = ([*dict.fromkeys(key[i] for key in found)] for i in (0, 1))
    header = ["particles", *(f"{n} steps: mean, log p(y)" for n in steps)]
    rows = [
        [str(p), *(", ".join(cell(value) for value in found[p, n]) for n in steps)]
        for p in particles
    ]
    return table(header, rows)


def plot(path: Path, found: dict, limits: dict):
    """Sliced W2 of every row in every setting; and the error of the mean by particles and by steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.8), dpi=100, layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1.6, 1, 1))
    names = list(next(iter(found.values())))
    for i, ((d, std), errors) in enumerate(found.items()):
        w2 = np.array([errors[name].w2 for name in names])
        panels[0].errorbar(
            np.arange(len(names)) + 0.1 * (i - (len(found) - 1) / 2),
            w2.mean(axis=1),
            2 * w2.std(axis=1, ddof=1) / math.sqrt(w2.shape[1]),
            fmt="os^vDP"[i % 6],
            markersize=4,
            label=f"d = {d}, std = {std}",
        )
    panels[0].set(yscale="log", title="sliced W2, bars of two standard errors")
    panels[0].set_xticks(range(len(names)), names, rotation=35, ha="right")
    for i, name in enumerate(("particles", "steps")):
        for fixed in dict.fromkeys(key[1 - i] for key in limits):
            line = [key for key in limits if key[1 - i] == fixed]
            off = np.array([limits[key][0] for key in line])
            panels[1 + i].errorbar(
                [key[i] for key in line],
                off.mean(axis=1),
                2 * off.std(axis=1, ddof=1) / math.sqrt(off.shape[1]),
                marker="o",
                markersize=4,
                label=f"{fixed} {('steps', 'particles')[i]}",
            )
        panels[1 + i].set(xscale="log", yscale="log", xlabel=name, title="tsmc: error of the mean")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path)


def main(argv: list[str]):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small problem: whether it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs")
    options = parser.parse_args(argv)
    size = QUICK if options.quick else Size()
    with cli.user_errors():
        options.out.mkdir(parents=True, exist_ok=True)
    problems = {(d, s): problem(d, s, size.repetitions) for d in size.dims for s in size.stds}
    found = {key: compare(of, size) for key, of in problems.items()}
    chosen = size.dims[len(size.dims) // 2], size.stds[-1]
    limits = convergence(problems[chosen], size)
    write(options.out, size, found, chosen, limits, argv, time.process_time() / 60)


def write(out: Path, size: Size, found: dict, chosen: tuple, limits: dict, argv, minutes: float):
    """The page and its picture; what `guided_step.py` has written stays."""
    path = out / "posterior_accuracy.md"
    page = PAGE.format(
        command=" ".join(["python benchmarks/posterior_accuracy.py", *argv]),
        minutes=minutes,
        jax=jax.__version__,
        components=COMPONENTS,
        component_std=COMPONENT_STD,
        dims=", ".join(map(str, size.dims)),
        directions=DIRECTIONS,
        n=size.n,
        repetitions=size.repetitions,
        n_steps=size.n_steps,
        repaint_evaluations=evaluations(posterior.repaint(), size.n_steps),
        ranking=ranking(found),
        **{field: error_table(found, field) for field in Errors._fields},
        convergence_dim=chosen[0],
        convergence_std=chosen[1],
        limits=limits_text(limits),
        convergence=convergence_table(limits),
    )
    cost = guided_step.section(path)
    write_text(path, page + (f"\n{cost}" if cost else ""))
    plot(path.with_suffix(".png"), found, limits)
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
