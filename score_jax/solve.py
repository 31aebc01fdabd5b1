"""Integration by diffrax of one example's ODE or SDE along a grid.

Time is replaced by the grid's u in [0, 1]: dy/du = field(t, y) dt/du. So every solver runs forwards
(diffrax's SRK solvers are wrong for t1 < t0), equal steps in u are the grid's steps, and an
adaptive solver meets a smooth problem even where the schedule is steep. `jax.vmap` over examples
gives each its own step control: its result then does not depend on what else is in the batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import lineax
from jax import Array
from jaxtyping import Bool, Float, Int

from score_jax.grids import Grid, time_and_rate
from score_jax.types import Key

ODE_SOLVERS = {
    "euler": diffrax.Euler,
    "heun": diffrax.Heun,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
}
# solvers for additive noise: the diffusion depends on time only
SDE_SOLVERS = {
    "euler": (diffrax.Euler, 1, diffrax.BrownianIncrement),
    "shark": (diffrax.ShARK, 2, diffrax.SpaceTimeLevyArea),
    "sra1": (diffrax.SRA1, 2, diffrax.SpaceTimeLevyArea),
    "spark": (diffrax.SPaRK, 3, diffrax.SpaceTimeLevyArea),
}


class Solution(NamedTuple):
    """The state at the grid's end, the evaluations of the field spent on it, and whether the solver succeeded."""

    y: Any
    nfe: Int[Array, ""]
    ok: Bool[Array, ""]


def ode(
    field: Callable[[Array, Any], Any],
    y: Any,
    grid: Grid,
    *,
    solver: str = "tsit5",
    n_steps: int | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> Solution:
    """Integrates dy/dt = field(t, y) from grid(0) to grid(1).

    Args:
      field: a function of scalar time and of the state, any pytree.
      solver: one of ODE_SOLVERS.
      n_steps: if given, that many equal steps in u; else steps are adapted to rtol and atol.
      max_steps: bound on adaptive steps, rejected ones included; reaching it gives ok = False.
    """
    method = ODE_SOLVERS[solver]()

    def term(u, y, args):
        t, dt_du = time_and_rate(grid, u)
        return jax.tree.map(lambda d: d * dt_du, field(t, y))

    if n_steps is None:
        steps = dict(
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol), max_steps=max_steps
        )
    else:
        steps = dict(stepsize_controller=diffrax.ConstantStepSize(), max_steps=n_steps + 1)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(term),
        method,
        t0=0.0,
        t1=1.0,
        dt0=0.01 if n_steps is None else 1.0 / n_steps,
        y0=y,
        adjoint=diffrax.ForwardMode(),
        throw=False,
        **steps,
    )
    return _solution(solution, *_ode_evaluations(method))


def sde(
    key: Key,
    drift: Callable[[Array, Array], Array],
    diffusion: Callable[[Array], Array],
    y: Float[Array, "*s"],
    grid: Grid,
    *,
    solver: str = "shark",
    n_steps: int,
) -> Solution:
    """Integrates dy = drift(t, y) dt + diffusion(t) dW along a grid, in equal steps in u.

    Args:
      key: the whole Brownian path is a function of it.
      diffusion: a scalar function of time; the noise is additive and isotropic.
      solver: one of SDE_SOLVERS.
    """
    method, evaluations, levy_area = SDE_SOLVERS[solver]

    def drift_u(u, y, args):
        t, dt_du = time_and_rate(grid, u)
        return drift(t, y) * dt_du

    def diffusion_u(u, y, args):
        t, dt_du = time_and_rate(grid, u)
        scale = diffusion(t) * jnp.sqrt(jnp.abs(dt_du))  # dW_t = sqrt |dt/du| dW_u
        return lineax.DiagonalLinearOperator(jnp.broadcast_to(scale, y.shape))

    path = diffrax.UnsafeBrownianPath(shape=y.shape, key=key, levy_area=levy_area)
    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(diffrax.ODETerm(drift_u), diffrax.ControlTerm(diffusion_u, path)),
        method(),
        t0=0.0,
        t1=1.0,
        dt0=1.0 / n_steps,
        y0=y,
        adjoint=diffrax.ForwardMode(),  # UnsafeBrownianPath allows no other but DirectAdjoint
        max_steps=n_steps + 1,
        throw=False,
    )
    return _solution(solution, 0, evaluations)


def _ode_evaluations(method) -> tuple[int, int]:
    """Evaluations before the first step and in each step."""
    if isinstance(method, diffrax.Euler):
        return 0, 1
    stages = method.tableau.c.size + 1
    # first-same-as-last: a step's last stage serves as the next one's first
    return (1, stages - 1) if method.tableau.fsal else (0, stages)


def _solution(solution: diffrax.Solution, first: int, per_step: int) -> Solution:
    y = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(y)]
    return Solution(
        y=y,
        nfe=first + per_step * solution.stats["num_steps"],
        # equal steps "succeed" whatever they compute
        ok=jnp.all(jnp.stack(finite)) & (solution.result == diffrax.RESULTS.successful),
    )
