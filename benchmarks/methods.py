"""The samplers that are compared: the package's table, some with other options, and diffrax's solvers."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import affine
import diffrax
from affine import Gaussian

from score_jax import grids, samplers, sampling, solve
from score_jax.sde import vp


class Method(NamedTuple):
    """A sampler in n steps of a grid.

    Attributes:
      order: expected, in words: "2" of an ODE's solution, "weak 2" of a law's moments.
      source: where the method is from.
      draw: draw(n_steps, grid) -> draw(keys, sde, predict, x), as in `sampling`.
      law: law(n_steps, grid, sde) -> the exact law of its results, as in `affine`; None if there is
        none.
      evaluations: of the network, in n_steps.
    """

    order: str
    source: str
    draw: Callable[..., affine.Draw]
    law: Callable[..., Callable[[Gaussian, Gaussian], Gaussian]] | None
    evaluations: Callable[[int], int]


# an entry of the table with options of its own
VARIANTS = {
    "ddim, eta=1": ("ddim", dict(eta=1.0), "weak 1"),
    "ancestral, variance=large": ("ancestral", dict(variance="large"), "weak 1"),
    "euler_maruyama, noise=0": ("euler_maruyama", dict(noise=0.0), "1"),
}


def all_methods() -> dict[str, Method]:
    table = {
        name: _stepping(entry.make, entry.order, entry.source)
        for name, entry in samplers.SAMPLERS.items()
        if entry.order != "-"  # of another kind of model than one of the score
    }
    variants = {
        name: _stepping(
            partial(samplers.SAMPLERS[of].make, **options), order, samplers.SAMPLERS[of].source
        )
        for name, (of, options, order) in VARIANTS.items()
    }
    return table | variants | _odes() | _sdes()


def steps_within(method: Method, budget: int) -> int:
    """The most steps that cost no more than `budget` evaluations; 0 if one step does."""
    n = budget
    while n and method.evaluations(n) > budget:
        n -= 1
    return n


def _stepping(make, order: str, source: str) -> Method:
    draw = lambda n, grid=grids.log_snr: sampling.stepping(make)(n_steps=n, grid=grid)
    law = lambda n, grid, sde: affine.stepping(draw(n, grid), sde, n)
    return Method(order, source, draw, law, lambda n: n * make(vp()).evaluations)


def _odes() -> dict[str, Method]:
    methods = {}
    for name, solver in solve.ODE_SOLVERS.items():
        draw = lambda n, grid=grids.log_snr, name=name: sampling.probability_flow(
            grid=grid, solver=name, n_steps=n
        )
        law = lambda n, grid, sde, draw=draw: affine.units(draw(n, grid), sde, 0)
        order = str(solver().order(None))
        if solve.is_implicit(name):  # affine up to its Newton iterations
            law = None
        methods[f"diffrax {name}"] = Method(order, "diffrax", draw, law, partial(_ode_cost, name))
    return methods


def _sdes() -> dict[str, Method]:
    methods = {}
    for name, (solver, cost, _) in solve.SDE_SOLVERS.items():
        draw = lambda n, grid=grids.log_snr, name=name: sampling.reverse_sde(
            grid=grid, solver=name, n_steps=n
        )
        law = lambda n, grid, sde, draw=draw: affine.units(draw(n, grid), sde, 2 * n)
        # diffrax's table for additive noise, where its stochastic Runge-Kutta methods are of weak order 2
        order = "weak 1" if solver is diffrax.Euler else "weak 2"
        evaluations = lambda n, cost=cost: n * cost
        methods[f"diffrax {name} (SDE)"] = Method(order, "diffrax", draw, law, evaluations)
    return methods


def _ode_cost(solver: str, n_steps: int) -> int:
    # the size counts for the Jacobians of implicit solvers only
    first, each = solve.ode_evaluations(solver, 1)
    return first + each * n_steps
