"""Measures how much each convention moves a trained model's bits/dim, and what the number costs.

    python benchmarks/likelihood.py --workdir=runs/vp_digits

writes docs/likelihood.md and .png, for a model of levels trained with uniform dequantization. Each
convention is held against scripts/eval.py's default on the same images, with the same noise and
probes: the difference is of pairs, and much finer than either number.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import likelihood_cost as cost
import likelihood_page
import numpy as np

from score_jax import bits, cli, dequantize, evaluate, importance, model, run, shapes
from score_jax.data.base import log_det, to_model
from score_jax.types import Dequantized

T_MINS = 1e-5, 1e-4, 1e-3
SAMPLES = 1, 4, 16
N_PROBES = 2  # of the importance-weighted bound
ELBOS = {
    "vdm": ("vdm", "gaussian"),
    "dsm": ("dsm", "gaussian"),
    "skilling": ("skilling", "gaussian"),
    "vdm, decoder": ("vdm", "uniform"),
}
N_TIMES = 32


def at_points(offset: float):
    """No dequantization: the density at `offset` in the box, 0 its lower edge."""

    def draw(keys, given, k, levels, label=None):
        x = to_model(k.astype(jnp.float32) + offset, levels)
        return Dequantized(x, jnp.full(len(k), log_det(levels, shapes.event_size(k)), x.dtype))

    return draw


DRAWS = {name: dequantize.DEQUANTIZATIONS[name] for name in ("uniform", "decoder", "denoised")} | {
    "middle": at_points(0.5),
    "edge": at_points(0.0),
}


class Conventions:
    """A run's first n test images under one convention or another, with the keys of scripts/eval.py."""

    def __init__(self, problem: cost.Problem, solver: cost.Solver, n: int):
        self.problem, self.solver = problem, solver
        self.experiment = problem.experiment
        self.k = jnp.asarray(self.experiment.data.test.x[:n])
        key = run._key(self.experiment, run._TEST)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
        self.keys = keys
        self.k_noise, self.k_solve = (shapes.fold_in(keys, s) for s in evaluate.STREAMS)
        self.grid = solver.found_grid("none")
        self.drawers = {}

    def draw(self, name: str, t_min: float, k_noise=None, n: int | None = None) -> Dequantized:
        if name not in self.drawers:
            levels = self.experiment.data.levels

            @jax.jit
            def fn(params, keys, k, t_min):
                given = model.at(self.experiment.model, params)
                given = given._replace(sde=given.sde._replace(t_min=t_min))
                return DRAWS[name](keys, given, k, levels, None)

            self.drawers[name] = fn
        keys = (self.k_noise if k_noise is None else k_noise)[:n]
        return self.drawers[name](self.problem.params, keys, self.k[:n], t_min)

    def solve(self, point: Dequantized, t_min: float, trace="rademacher", k_solve=None):
        """log p of the drawn points, [n] in nats, without their weight."""
        sde = self.problem.sde._replace(t_min=t_min)
        n = len(point.x)
        keys = (self.k_solve if k_solve is None else k_solve)[:n]
        return self.solver(
            "none", self.grid, *cost.BEST, keys=keys, x=point.x, trace=trace, sde=sde
        ).logp

    def numbers(self, name="uniform", t_min=None, trace="rademacher") -> np.ndarray:
        """[n] in bits/dim."""
        t_min = self.problem.sde.t_min if t_min is None else t_min
        point = self.draw(name, t_min)
        value = self.solve(point, t_min, trace) + np.asarray(point.log_weight, np.float64)
        print(name, t_min, trace, -value.mean() / self.problem.unit, flush=True)
        return -value / self.problem.unit

    def bounds(self, n: int) -> dict[int, importance.Bound]:
        """The bound from K samples, the first n images, their probes shared."""
        t_min, logps, weights = self.problem.sde.t_min, [], []
        for j in range(max(SAMPLES)):
            point = self.draw("uniform", t_min, shapes.fold_in(self.k_noise, j), n)
            weights.append(point.log_weight)
            probes = (shapes.fold_in(self.k_solve, p) for p in range(N_PROBES))
            logps.append(np.stack([self.solve(point, t_min, k_solve=k) for k in probes], -1))
        return {
            samples: importance.bound(jnp.asarray(logps[:samples]), jnp.asarray(weights[:samples]))
            for samples in SAMPLES
        }

    def elbo(self, form: str, decoder: str) -> np.ndarray:
        """[n] in bits/dim."""
        fn = evaluate.elbo_bits(
            self.experiment.model, self.experiment.data.levels, N_TIMES, form, decoder
        )
        per_example = evaluate.per_example(fn, batch_size=40, labels=False)
        split = self.experiment.data.test
        key = run._key(self.experiment, run._TEST)
        index = np.arange(len(self.k))
        found = evaluate.together(per_example(key, self.problem.params, split, index))["elbo"]
        print(form, decoder, found.mean(), flush=True)
        return np.asarray(found, np.float64)


def measure(conventions: Conventions, n_bounds: int) -> dict:
    """All numbers of the tables, in bits/dim: estimates, and paired differences from `base`."""
    base = conventions.numbers()
    of_base = lambda values: (evaluate.estimate(values), evaluate.estimate(values - base))
    found = {"base": evaluate.estimate(base), "rows": {}, "t_min": {}}
    for name in ("decoder", "denoised", "middle", "edge"):
        found["rows"][name] = of_base(conventions.numbers(name))
    found["rows"]["gaussian"] = of_base(conventions.numbers(trace="gaussian"))
    for t_min in T_MINS:
        for name in ("uniform", "decoder"):
            found["t_min"][name, t_min] = of_base(conventions.numbers(name, t_min))
    found["elbo"] = {}
    for name, (form, decoder) in ELBOS.items():
        values = conventions.elbo(form, decoder)
        found["elbo"][name] = (*of_base(values), float(values.std(ddof=1)))
    unit, bounds = conventions.problem.unit, conventions.bounds(n_bounds)
    single = -np.asarray(bounds[max(SAMPLES)].single, np.float64) / unit
    found["bounds"] = {
        samples: (
            evaluate.estimate(-np.asarray(b.logp, np.float64) / unit),
            evaluate.estimate(-np.asarray(b.logp, np.float64) / unit - single),
            float(np.mean(b.optimism)) / unit,
            float(np.mean(b.effective)),
        )
        for samples, b in bounds.items()
    }
    found["single"] = evaluate.estimate(single)
    found["n_bounds"] = n_bounds
    found["n"] = len(base)
    return found


def subsets(folder: Path, n: int) -> list[tuple[int, float]]:
    """Means of the whole table of scripts/eval.py, of its full batches of 128, and of its first n rows."""
    bpd = np.genfromtxt(folder / "eval" / "bpd.csv", delimiter=",", names=True)["bpd"]
    sizes = len(bpd), len(bpd) // 128 * 128, n
    return [(size, float(bpd[:size].mean())) for size in sizes]


def main(argv: list[str]):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--n", type=int, default=16, help="images, of the costs")
    parser.add_argument("--n_paired", type=int, default=96, help="images, of the conventions")
    parser.add_argument("--out", type=Path, default=Path("docs/likelihood"))
    arguments = parser.parse_args(argv)
    cli.use_compilation_cache()
    begun = time.time()
    with cli.user_errors():
        problem = cost.load(arguments.workdir, arguments.n)
        printed = bits.report(json.loads((arguments.workdir / "eval" / "bpd.json").read_text()))
    solver = cost.Solver(problem)
    found = measure(Conventions(problem, solver, arguments.n_paired), arguments.n)
    costs = cost.measure(problem, solver, 16, exact=problem.x[0].size <= 100)
    cost.draw(costs["rows"], arguments.out.with_suffix(".png"))
    data = problem.experiment.data
    text = likelihood_page.page(
        found | {"subsets": subsets(arguments.workdir, arguments.n_paired)},
        costs,
        data.levels,
        problem.x[0].size,
        run=arguments.workdir,
        printed="\n".join(f"    {line}" for line in printed),
        prior=run._prior_mismatch(problem.experiment, problem.params),
        t_min=problem.sde.t_min,
        n_times=N_TIMES,
        cores=os.cpu_count(),
        jax=jax.__version__,
        command=f"python benchmarks/likelihood.py --workdir={arguments.workdir}",
        picture=arguments.out.with_suffix(".png").name,
        minutes=(time.time() - begun) / 60,
    )
    arguments.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
