"""Measures what a trained model's bits/dim cost: error against evaluations, and what whitening takes from the probes.

    python benchmarks/likelihood_cost.py --workdir=runs/vp_digits --out=docs/likelihood_cost

writes OUT.md and OUT.png. A network takes longer to compile than to evaluate, so that each of its
right-hand sides is compiled once, and equal steps are taken here by the library's own tables. Truth
is a fine solve of the same model, the same dequantized images and the same probes; whitened
coordinates change a probe's estimate by a closed form, so that one fine solve serves all.
"""

import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from score_jax import (
    adams,
    build,
    cli,
    evaluate,
    grids,
    likelihood,
    run,
    shapes,
    solve,
    steps,
    whiten,
)
from score_jax import sde as sdes
from score_jax.data.base import to_model
from score_jax.model import bind
from score_jax.sde import SDE

# steps, of about 25, 37, 49 and 73 evaluations
BUDGETS = {
    "adams3": (19, 31, 43, 67),
    "adams4": (16, 28, 40, 64),
    "adams5": (13, 25, 37, 61),
    "tsit5": (4, 6, 8, 12),
    "dopri5": (4, 6, 8, 12),
    "dopri8": (2, 3, 4, 6),
}
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)  # of adaptive tsit5
REFERENCE = "adams5", 300
CHECK = "dopri8", 24
BEST = "adams4", 40
WHITENINGS = "none", "isotropic", "covariance"
N_FINE, PARTS = 32, 10  # of the search for a grid
TARGET = 0.003


class Problem(NamedTuple):
    """A model and n images: keys of the probes, and dequantized images of test and train."""

    experiment: build.Experiment
    params: dict
    keys: jax.Array
    x: np.ndarray
    x_train: np.ndarray
    gaussians: dict

    @property
    def sde(self) -> SDE:
        return self.experiment.model.sde(self.params)

    @property
    def unit(self) -> float:
        """Nats in one unit of the numbers."""
        return evaluate.per_unit(self.experiment.data.levels, self.x[0].size)


class Solution(NamedTuple):
    """Of n images, in nats: log p, the solver's own estimate of its error, and the latents; evaluations."""

    logp: np.ndarray
    own: np.ndarray
    latent: np.ndarray
    nfe: float


class Row(NamedTuple):
    """Errors of one way to solve over the images, in the problem's unit."""

    whitening: str
    grid: str
    solver: str
    nfe: float
    bias: float
    stderr: float
    rms: float
    estimate: float
    worst: float


def load(folder: Path, n: int) -> Problem:
    """The newest averaged parameters of a run."""
    experiment = build.experiment(cli.load_run(folder, [], "eval"))
    if experiment.labels:
        raise build.ConfigError(f"--workdir={folder} is a class-conditional run; take another one")
    _, params = run.averaged_params(folder, experiment)
    data = experiment.data
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(n))

    def dequantized(split, stream):
        x = np.asarray(split.x[np.arange(n) * len(split.x) // n], np.float32)
        if data.levels is None:
            return x
        noise = jax.vmap(lambda key: jax.random.uniform(key, data.shape))
        return np.asarray(to_model(x + noise(shapes.fold_in(keys, stream)), data.levels))

    full = whiten.covariance(data.train.x, data.levels)
    one = whiten.isotropic(data.train.x, data.levels).rest
    # in the other's form: both are arguments of one program
    isotropic = full._replace(variances=jnp.full_like(full.variances, one), rest=one)
    gaussians = {"none": None, "isotropic": isotropic, "covariance": full}
    x, x_train = dequantized(data.test, 1), dequantized(data.train, 2)
    return Problem(experiment, params, keys, x, x_train, gaussians)


# equal steps


class Programs(NamedTuple):
    """start(params, gaussian, keys, x) -> state; slope(.., t, state); finish(.., state) -> log p, latent."""

    start: object
    slope: object
    finish: object


def programs(model, trace: str) -> Programs:
    """The three parts of `likelihood.initial_value`, of a batch whose states are flat: [b, x and volume]."""

    def of_one(part):
        def fn(params, gaussian, keys, x, *args):
            built, predict = model.sde(params), bind(model, params)

            def one(key, x, *args):
                options = dict(trace=trace, n_probes=1, whiten=gaussian)
                problem = likelihood.initial_value(key, built, predict, x, **options)
                return part(problem, built, x, *args)

            return jax.vmap(one)(keys, x, *args)

        return jax.jit(fn)

    flat = lambda state: jnp.concatenate([state[0].ravel(), state[1]])
    pair = lambda x, state: (state[: x.size].reshape(x.shape), state[x.size :])

    def finish(problem, built, x, state):
        latent, volumes = problem.finish(pair(x, state))
        return sdes.prior_logp(built, latent[None])[0] + volumes[0], latent

    return Programs(
        start=of_one(lambda problem, built, x: flat(problem.start)),
        slope=of_one(lambda problem, built, x, t, state: flat(problem.field(t, pair(x, state)))),
        finish=of_one(finish),
    )


def walk(slope, y: np.ndarray, solver: str, n_steps: int):
    """The state at u = 1, and for each step the new state and its error, embedded less own.

    Args:
      slope: dy / du as a function of (u, y).
    """
    if solver in solve.MULTISTEP:
        return _adams(slope, y, solve.MULTISTEP[solver], n_steps)
    return _runge_kutta(slope, y, solve.ODE_SOLVERS[solver].tableau, n_steps)


def _runge_kutta(slope, y, tableau: diffrax.ButcherTableau, n_steps: int):
    h, first, passed = 1 / n_steps, None, []
    for i in range(n_steps):
        k = [slope(i * h, y) if first is None else first]
        for a, c in zip(tableau.a_lower, tableau.c, strict=True):
            k.append(slope((i + float(c)) * h, y + h * np.tensordot(a, k, 1)))
        y = y + h * np.tensordot(tableau.b_sol, k, 1)
        first = k[-1] if tableau.fsal else None
        passed.append((y, -h * np.tensordot(tableau.b_error, k, 1)))
    return y, passed


def _adams(slope, y, order: int, n_steps: int):
    h, history, passed = 1 / n_steps, [], []
    weights = adams.weights(order)
    difference = np.append(adams.weights(order - 1), 0.0) - weights
    for i in range(n_steps):
        history = [slope(i * h, y), *history[: order - 1]]
        if i >= order - 1:
            y = y + h * np.tensordot(weights, history, 1)
            passed.append((y, h * np.tensordot(difference, history, 1)))
            continue
        half, k1 = (i + 0.5) * h, history[0]
        k2 = slope(half, y + 0.5 * h * k1)
        k3 = slope(half, y + 0.5 * h * k2)
        k4 = slope((i + 1) * h, y + h * k3)
        y = y + h * (k1 + 2 * k2 + 2 * k3 + k4) / 6
    return y, passed


def evaluations(solver: str, n_steps: int) -> int:
    if solver in solve.MULTISTEP:
        return adams.evaluations(solve.MULTISTEP[solver], n_steps)
    first, per_step = solve.ode_evaluations(solver, 0)
    return first + per_step * n_steps


class Solver:
    """Solves for batches of one size, from t_min to t_max, on compiled programs that it keeps."""

    def __init__(self, problem: Problem):
        self.problem, self.size = problem, len(problem.x)
        self.of_trace = {}

    def __call__(
        self,
        whitening,
        log_snrs,
        solver,
        n_steps,
        *,
        keys=None,
        x=None,
        trace="rademacher",
        sde=None,
    ) -> Solution:
        """By default of the problem's own images and probes; `log_snrs` None is uniform in log-SNR."""
        x = self.problem.x if x is None else np.asarray(x)
        keys = self.problem.keys if keys is None else keys
        parts = []
        for start in range(0, len(x), self.size):
            i = np.minimum(np.arange(start, start + self.size), len(x) - 1)
            kept = min(self.size, len(x) - start)
            arguments = whitening, log_snrs, solver, n_steps, keys[i], x[i], trace, sde
            parts.append([a[:kept] for a in self.one_batch(*arguments)])
        logp, own, latent = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Solution(logp, own, latent, evaluations(solver, n_steps))

    def one_batch(self, whitening, log_snrs, solver, n_steps, keys, x, trace, sde):
        state, passed, programs = self.steps(
            whitening, log_snrs, solver, n_steps, keys, x, trace, sde
        )
        logp, latent = programs.finish(state.astype(np.float32))
        return (
            np.asarray(logp, np.float64),
            self.measured(whitening, passed).sum(0),
            np.asarray(latent),
        )

    def steps(self, whitening, log_snrs, solver, n_steps, keys, x, trace="rademacher", sde=None):
        gaussian = self.problem.gaussians[whitening]
        if trace not in self.of_trace:
            self.of_trace[trace] = programs(self.problem.experiment.model, trace)
        common = self.problem.params, gaussian, keys, jnp.asarray(x)
        bound = Programs(*(partial(fn, *common) for fn in self.of_trace[trace]))
        time_of = grid_of(self.problem.sde if sde is None else sde, log_snrs)

        def slope(u, y):
            t, rate = time_of(u)
            t = jnp.full(len(x), t, jnp.float32)
            return np.asarray(bound.slope(t, y.astype(np.float32)), np.float64) * rate

        state, passed = walk(slope, np.asarray(bound.start(), np.float64), solver, n_steps)
        return state, passed, bound

    def measured(self, whitening, passed) -> np.ndarray:
        """[steps, n] what each step's error adds to log p (`likelihood.Problem.error_of_logp`)."""
        moved = 0.0 if whitening == "none" else 1.0
        dot = lambda y, error: np.sum(y[:, :-1] * error[:, :-1], 1)
        return np.array([error[:, -1] - moved * dot(y, error) for y, error in passed])

    def found_grid(self, whitening) -> tuple[float, ...]:
        """Where `steps` finds that training images need the solver's steps."""
        _, passed, _ = self.steps(
            whitening, None, "dopri5", N_FINE, self.problem.keys, self.problem.x_train
        )
        errors = self.measured(whitening, passed)[::-1].T
        return steps.log_snrs(self.problem.sde, errors, PARTS)


def grid_of(sde: SDE, log_snrs):
    """u -> t and dt / du, from t_min up, uniform in log-SNR or smooth through the values."""
    grid = grids.log_snr(sde) if log_snrs is None else steps.smooth(log_snrs)(sde)
    both = jax.jit(partial(grids.time_and_rate, grids.reverse(grid)))
    return lambda u: tuple(map(float, both(jnp.float32(u))))


# adaptive steps


def adaptive(problem: Problem, solver: str, grid, is_white: bool):
    """run(whitening, tolerance) -> Likelihood, each image with steps of its own."""

    @jax.jit
    def fn(params, gaussian, keys, x, tolerance):
        model = problem.experiment.model
        built = model.sde(params)
        options = dict(solver=solver, rtol=tolerance, atol=tolerance, whiten=gaussian)
        return likelihood.log_likelihood(
            keys, built, bind(model, params), x, grid=grid(built), **options
        )

    def run_one(whitening, tolerance):
        found = fn(problem.params, problem.gaussians[whitening], problem.keys, problem.x, tolerance)
        logp, own = (np.asarray(a, np.float64) for a in (found.logp, found.solver_error))
        return Solution(logp, own, np.asarray(found.latent), float(np.mean(found.nfe)))

    return run_one


# measurements


def control(problem: Problem, whitening: str) -> np.ndarray:
    """What the control variate takes from each image's estimate with its Rademacher probe, in nats.

    The integral of r (|w z|^2 - tr w^2) from t_min to t_max (`likelihood`); r w^2 is half the rate of
    log(v + sigma^2 / alpha^2), v an eigenvalue of S.
    """
    gaussian = problem.gaussians[whitening]
    if gaussian is None:
        return np.zeros(len(problem.x))
    ratios = [(problem.sde.sigma(t) / problem.sde.alpha(t)) ** 2 for t in ends(problem.sde)]
    integral = lambda v: 0.5 * (jnp.log(v + ratios[1]) - jnp.log(v + ratios[0]))
    probe = jax.vmap(lambda key, x: likelihood.rademacher(key, x, 1)[0, 0])(
        problem.keys, jnp.asarray(problem.x)
    )
    products = jax.vmap(lambda z: jnp.sum(z * whiten.apply(gaussian, integral, z)))(probe)
    return np.asarray(products - whiten.sum_of(gaussian, integral), np.float64)


def ends(sde: SDE) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(sde.t_min), jnp.asarray(sde.t_max)


def truth(problem: Problem, solver: Solver) -> tuple[dict[str, np.ndarray], tuple[float, float]]:
    """log p of a fine solve by whitening, and the mean and rms of its difference from another without whitening."""
    fine = solver("covariance", None, *REFERENCE).logp + control(problem, "covariance")
    other = solver("none", None, *CHECK).logp
    gap = (other - fine) / problem.unit
    # fine + control is in the coordinates of none
    by_whitening = {name: fine - control(problem, name) for name in WHITENINGS}
    return by_whitening, (float(gap.mean()), float(np.sqrt(np.mean(gap**2))))


def curve(problem: Problem, solver: Solver, true: dict, found: dict) -> list[Row]:
    """A row for each whitening, grid, solver and budget; adaptive steps; the field's standard."""
    rows = []

    def add(whitening, grid, name, solution):
        error = -(solution.logp - true[whitening]) / problem.unit
        rms = lambda a: float(np.sqrt(np.mean(np.square(a))))
        stderr = float(error.std(ddof=1) / math.sqrt(len(error)))
        own = rms(solution.own / problem.unit)
        rows.append(
            Row(
                whitening,
                grid,
                name,
                solution.nfe,
                float(error.mean()),
                stderr,
                rms(error),
                own,
                float(np.abs(error).max()),
            )
        )
        print(*rows[-1], flush=True)

    for whitening in WHITENINGS:
        for grid, log_snrs in {"log_snr": None, "found": found[whitening]}.items():
            for name, budgets in BUDGETS.items():
                for n_steps in budgets:
                    add(whitening, grid, name, solver(whitening, log_snrs, name, n_steps))
    for whitening in WHITENINGS:
        if whitening != "covariance":  # the same program
            tsit5 = adaptive(problem, "tsit5", grids.log_snr, whitening != "none")
        for tolerance in TOLERANCES:
            add(whitening, "log_snr", f"tsit5 at {tolerance:g}", tsit5(whitening, tolerance))
    standard = adaptive(problem, "dopri5", grids.uniform, False)
    add("none", "uniform in t", "dopri5 at 1e-05", standard("none", 1e-5))
    return rows


class Spread(NamedTuple):
    """Of one probe's estimate: standard deviation, and the mean difference from the exact trace with its error."""

    whitening: str
    trace: str
    std: float
    left: float
    gap: float
    stderr: float


def spreads(problem: Problem, solver: Solver, found: dict, n_probes: int, exact: bool):
    """A Spread for each whitening and trace, from n_probes solves on the same steps."""
    truth = None
    if exact:
        truth = solver("covariance", found["covariance"], *BEST, trace="exact").logp
    rows, plain = [], {}
    for whitening in WHITENINGS:
        for trace in ("rademacher", "gaussian"):
            logps = []
            for i in range(n_probes):
                keys = shapes.fold_in(problem.keys, 10 + i)
                logps.append(
                    solver(whitening, found[whitening], *BEST, keys=keys, trace=trace).logp
                )
            values = -np.array(logps) / problem.unit
            variance = float(values.var(axis=0, ddof=1).mean())
            plain.setdefault(trace, variance)
            gap = (math.nan, math.nan)
            if exact:
                found_gap = evaluate.estimate(values.mean(0) + truth / problem.unit)
                gap = found_gap.mean, found_gap.stderr
            rows.append(
                Spread(whitening, trace, math.sqrt(variance), variance / plain[trace], *gap)
            )
            print(*rows[-1], flush=True)
    return rows


# the page


def draw(rows: list[Row], path: Path):
    """The rms over images against evaluations, a panel for each whitening and grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), dpi=110, layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    names = [*BUDGETS, "tsit5 at"]
    for i, grid in enumerate(("log_snr", "found")):
        for j, whitening in enumerate(WHITENINGS):
            axes = panels[i, j]
            for k, name in enumerate(names):
                is_own = lambda solver, name=name: (
                    solver == name or (name not in BUDGETS and solver.startswith(name))
                )
                own = [
                    r
                    for r in rows
                    if (r.whitening, r.grid) == (whitening, grid) and is_own(r.solver)
                ]
                label = name if name in BUDGETS else "tsit5, adaptive"
                x, y = [r.nfe for r in own], [r.rms for r in own]
                axes.plot(x, y, color=f"C{k}", marker="os^vDP*"[k], markersize=5, label=label)
            standard = [r for r in rows if r.grid == "uniform in t"]
            axes.plot(
                [r.nfe for r in standard],
                [r.rms for r in standard],
                "kx",
                label="dopri5 in t, tolerance 1e-5",
            )
            axes.axhline(TARGET, color="grey", linewidth=0.8)
            axes.set(title=f"whitening {whitening}, grid {grid}", xscale="log", yscale="log")
            ticks = (25, 50, 100, 200, 500)
            axes.set_xticks(ticks, [str(b) for b in ticks])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    for axes in panels[1]:
        axes.set_xlabel("evaluations")
    for axes in panels[:, 0]:
        axes.set_ylabel("rms error of an image, bits/dim")
    panels[0, 0].legend(fontsize=8)
    figure.savefig(path)


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def row_cells(r: Row) -> list[str]:
    bias = f"{r.bias:+.4f} +- {r.stderr:.4f}"
    return [
        r.whitening,
        r.grid,
        r.solver,
        f"{r.nfe:.0f}",
        bias,
        f"{r.rms:.4f}",
        f"{r.estimate:.4f}",
    ]


ROW_HEADER = [
    "whitening",
    "grid",
    "solver",
    "evaluations",
    "error of the mean",
    "rms of an image",
    "own estimate",
]


def best_rows(rows: list[Row]) -> list[Row]:
    """The row of least rms at each budget of equal steps, the adaptive ones that reach TARGET, and the standard."""
    ranges = ((20, 30), (30, 43), (43, 60), (60, 90))
    equal = [r for r in rows if r.solver in BUDGETS]
    best = []
    for low, high in ranges:
        best.append(min((r for r in equal if low <= r.nfe < high), key=lambda r: r.rms))
    good = [r for r in rows if r.solver not in BUDGETS and r.rms <= TARGET]
    chosen = sorted(good, key=lambda r: r.nfe)[:1]
    standard = [r for r in rows if r.grid == "uniform in t"]
    return best + [r for r in chosen if r not in standard] + standard


def spread_table(rows: list[Spread]) -> str:
    def cells(r):
        gap = "-" if math.isnan(r.gap) else f"{r.gap:+.4f} +- {r.stderr:.4f}"
        return [r.whitening, r.trace, f"{r.std:.4f}", f"{r.left:.0%}", gap]

    header = ["whitening", "probe", "standard deviation", "variance left", "less the exact trace"]
    return table(header, [cells(r) for r in rows])


PAGE = """# What bits/dim cost: {name}

    {command}

{name}, {n} test images, uniform dequantization, one Rademacher probe; {minutes:.0f} minutes. Truth: {solver} in
{n_steps} steps, same images, same probes; another fine solve differs by {gap:+.5f} in the mean, {rms:.5f} rms. An
evaluation is one `jax.jvp`. Errors in bits/dim: of the mean over the images with its standard error, the
root mean square over the images, and the rms of the solver's own estimate (`solver_error`).

![rms error against evaluations]({picture})

## The best at each budget

{best}

## Probes

The standard deviation of one image's number over {n_probes} probes, the share of the variance that
whitening leaves, and how much the probes' mean differs from the exact trace.

{spreads}

## All

{rows}
"""


def page(measured: dict) -> str:
    rows = measured["rows"]
    return PAGE.format(
        **{key: value for key, value in measured.items() if key not in ("rows", "spreads", "gap")},
        solver=REFERENCE[0],
        n_steps=REFERENCE[1],
        gap=measured["gap"][0],
        rms=measured["gap"][1],
        best=table(ROW_HEADER, [row_cells(r) for r in best_rows(rows)]),
        rows=table(ROW_HEADER, [row_cells(r) for r in rows]),
        spreads=spread_table(measured["spreads"]),
    )


def measure(problem: Problem, solver: Solver, n_probes: int, exact: bool) -> dict:
    true, gap = truth(problem, solver)
    print("another fine solve", *gap, flush=True)
    found = {name: solver.found_grid(name) for name in WHITENINGS}
    return {
        "rows": curve(problem, solver, true, found),
        "spreads": spreads(problem, solver, found, n_probes, exact),
        "gap": gap,
        "n": len(problem.x),
        "n_probes": n_probes,
        "name": problem.experiment.data.name,
    }


def main(argv: list[str]):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--n", type=int, default=16, help="images")
    parser.add_argument("--n_probes", type=int, default=8)
    parser.add_argument(
        "--exact", action="store_true", help="also the exact trace, of one product a dimension"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/likelihood_cost"))
    arguments = parser.parse_args(argv)
    cli.use_compilation_cache()
    begun = time.time()
    with cli.user_errors():
        problem = load(arguments.workdir, arguments.n)
    measured = measure(problem, Solver(problem), arguments.n_probes, arguments.exact)
    draw(measured["rows"], arguments.out.with_suffix(".png"))
    command = (
        f"python benchmarks/likelihood_cost.py --workdir={arguments.workdir} --n={arguments.n}"
    )
    text = page(
        measured
        | {
            "command": command + (" --exact" if arguments.exact else ""),
            "minutes": (time.time() - begun) / 60,
            "picture": arguments.out.with_suffix(".png").name,
        }
    )
    arguments.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
