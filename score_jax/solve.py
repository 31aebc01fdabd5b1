"""Integration by diffrax of an ODE or SDE along a grid.

Time is replaced by the grid's u in [0, 1]: dy/du = field(t, y) dt/du. So every solver runs forwards
(diffrax's SRK solvers are wrong for t1 < t0), equal steps in u are the grid's steps, and an
adaptive solver meets a smooth problem even where the schedule is steep. The error that steps are
adapted to is that of the whole state: `each` gives every example of a batch its own steps, so that
its result does not depend on what else is in the batch; `together` takes the same for all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import lineax
from jax import Array
from jaxtyping import Bool, Float, Int

from score_jax import adams
from score_jax.grids import Grid, time_and_rate
from score_jax.types import Key, Keys

# the Newton iterations of a stage of an implicit solver
_ITERATIONS = 4
# of adaptive steps of an SDE, as a power of two: the tree resolves a Brownian path down to half of it
_SMALLEST_STEP = 2.0**-16


class _Dense(lineax.AbstractLinearSolver):
    """Solves with a square matrix in full.

    lineax's own solvers ask that a vector's type is the operator's to the letter, sharding included,
    which it is not under `jax.pmap`.
    """

    def init(self, operator, options):
        return operator.as_matrix()

    def compute(self, state, vector, options):
        flat, unravel = jax.flatten_util.ravel_pytree(vector)
        return unravel(jnp.linalg.solve(state, flat)), lineax.RESULTS.successful, {}

    def transpose(self, state, options):
        return state.T, options

    def conj(self, state, options):
        return state.conj(), options

    def assume_full_rank(self):
        return True


class _Newton(diffrax.VeryChord):
    """Newton's iterations with one Jacobian per step, always the same number of them.

    diffrax does not tell how many iterations a stage took; with a fixed number the evaluations are
    known. What they leave of the error is seen by the step control like any other.
    """

    def terminate(self, fn, y, args, options, state, tags):
        return state.step >= _ITERATIONS, state.result


class _Measured(diffrax.AbstractStepSizeController):
    """A controller that also adds up measure(y, error) over the accepted steps."""

    controller: diffrax.AbstractStepSizeController
    measure: Callable[[Any, Any], Array] = eqx.field(static=True)

    def wrap(self, direction):
        return _Measured(self.controller.wrap(direction), self.measure)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        t1, state = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        return t1, (state, jnp.zeros_like(self.measure(y0, y0)))

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, state):
        state, total = state
        keep, *times, state, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state
        )
        total = jnp.where(keep, total + self.measure(y1_candidate, y_error), total)
        return keep, *times, (state, total), result


ODE_SOLVERS = {
    "euler": diffrax.Euler,
    "heun": diffrax.Heun,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
    "kvaerno3": diffrax.Kvaerno3,
    "kvaerno5": diffrax.Kvaerno5,
}
# order of Adams' methods, for equal steps only
MULTISTEP = {"adams3": 3, "adams4": 4, "adams5": 5}
# solvers for additive noise, which depends on time only: with the evaluations of a step and the
# integrals of the Brownian path that they need
SDE_SOLVERS = {
    "euler": (diffrax.Euler, 1, diffrax.BrownianIncrement),
    "shark": (diffrax.ShARK, 2, diffrax.SpaceTimeLevyArea),
    "sra1": (diffrax.SRA1, 2, diffrax.SpaceTimeLevyArea),
    "spark": (diffrax.SPaRK, 3, diffrax.SpaceTimeLevyArea),
}


def adapts(solver: str) -> bool:
    """Whether a solver of either table estimates its error, so that its steps can be adapted."""
    return solver != "euler" and solver not in MULTISTEP


def is_implicit(solver: str) -> bool:
    """Whether a step takes a Jacobian, at one evaluation for each dimension of the state."""
    return issubclass(ODE_SOLVERS.get(solver, object), diffrax.AbstractImplicitSolver)


class Solution(NamedTuple):
    """The state at the grid's end, the evaluations of the field spent on it, and whether the solver succeeded."""

    y: Any
    nfe: Int[Array, "*b"]
    ok: Bool[Array, "*b"]


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
    measure: Callable[[Any, Any], Array] | None = None,
) -> Solution:
    """Integrates dy/dt = field(t, y) from grid(0) to grid(1).

    Args:
      field: a function of scalar time and of the state, any pytree.
      solver: one of ODE_SOLVERS, or of MULTISTEP for a given n_steps. The Kvaerno ones are
        implicit, for stiff problems of few dimensions: a step takes four evaluations for each
        implicit stage, and two Jacobians that count as one evaluation for each dimension of the
        state and one more.
      n_steps: if given, that many equal steps in u; else steps are adapted to rtol and atol.
      max_steps: bound on adaptive steps, rejected ones included; reaching it gives ok = False.
      measure: a number for a step's new state and its error, the state that the solver's embedded
        method would have reached less its own. The solution's y is then (state, the sum of these
        numbers over the steps); the sum is nan for a solver without such a method.
    """
    if solver in MULTISTEP:
        return _multistep(field, y, grid, solver, n_steps, measure)
    method = ODE_SOLVERS[solver]()
    if is_implicit(solver):
        method = ODE_SOLVERS[solver](
            root_finder=_Newton(rtol=rtol, atol=atol, linear_solver=_Dense())
        )

    if n_steps is None:
        controller = diffrax.PIDController(rtol=rtol, atol=atol)
    else:
        controller, max_steps = diffrax.ConstantStepSize(), n_steps + 1
    if measured := measure is not None and adapts(solver):
        controller = _Measured(controller, _oriented(solver, measure))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda u, y, args: _along(grid, field)(u, y)),
        method,
        t0=0.0,
        t1=1.0,
        dt0=0.01 if n_steps is None else 1.0 / n_steps,
        y0=y,
        stepsize_controller=controller,
        saveat=diffrax.SaveAt(t1=True, controller_state=measured),
        adjoint=diffrax.ForwardMode(),
        max_steps=max_steps,
        throw=False,
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(y))
    found = _solution(solution, *ode_evaluations(solver, size))
    total = solution.controller_state[1] if measured else jnp.asarray(jnp.nan)
    return found if measure is None else found._replace(y=(found.y, total))


def _along(grid: Grid, field: Callable[[Array, Any], Any]) -> Callable[[Array, Any], Any]:
    """dy / du of dy / dt = field(t, y)."""

    def slope(u, y):
        t, dt_du = time_and_rate(grid, u)
        return jax.tree.map(lambda d: d * dt_du, field(t, y))

    return slope


def _oriented(solver: str, measure: Callable[[Any, Any], Array]) -> Callable[[Any, Any], Array]:
    # diffrax 0.7.2 has the embedded method's weights less the solver's in Heun's table, and the
    # solver's less the embedded method's in all others
    sign = 1.0 if solver == "heun" else -1.0
    return lambda y, error: measure(y, jax.tree.map(lambda leaf: sign * leaf, error))


def _multistep(field, y, grid, solver, n_steps, measure) -> Solution:
    if n_steps is None:
        raise ValueError(f"{solver} takes equal steps only; set n_steps")
    order = MULTISTEP[solver]
    number = measure or (lambda y, error: jnp.zeros(()))
    y, total = adams.integrate(_along(grid, field), y, n_steps, order, number)
    evaluations = jnp.asarray(adams.evaluations(order, n_steps))
    return Solution(y if measure is None else (y, total), evaluations, _finite(y))


def sde(
    key: Key | Keys,
    drift: Callable[[Array, Array], Array],
    diffusion: Callable[[Array], Array],
    y: Float[Array, "*s"],
    grid: Grid,
    *,
    solver: str = "shark",
    n_steps: int | None,
    rtol: float = 1e-2,
    atol: float = 1e-2,
    max_steps: int = 4096,
) -> Solution:
    """Integrates dy = drift(t, y) dt + diffusion(t) dW along a grid.

    Steps that are adapted look up a Brownian path which is fixed in advance (a virtual Brownian
    tree), so that a rejected step is repeated on the same noise: noise drawn anew would favour
    increments that are easy to integrate. With additive noise this converges to the SDE's law
    (Foster & Jelincic 2023, arXiv 2311.14201).

    Args:
      key: the whole Brownian path is a function of it; [b] keys for y [b, *s] give each example a
        path of its own.
      diffusion: a scalar function of time; the noise is additive and isotropic.
      solver: one of SDE_SOLVERS; adaptive steps need one that `adapts`.
      n_steps: if given, that many equal steps in u; else steps are adapted to rtol and atol.
      max_steps: bound on adaptive steps, rejected ones included; reaching it gives ok = False.
    """
    method, evaluations, levy_area = SDE_SOLVERS[solver]

    def drift_u(u, y, args):
        t, dt_du = time_and_rate(grid, u)
        return drift(t, y) * dt_du

    def diffusion_u(u, y, args):
        t, dt_du = time_and_rate(grid, u)
        scale = diffusion(t) * jnp.sqrt(jnp.abs(dt_du))  # dW_t = sqrt |dt/du| dW_u
        return lineax.DiagonalLinearOperator(jnp.broadcast_to(scale, y.shape))

    def path(key):
        shape = jax.ShapeDtypeStruct(y.shape[key_axes:], y.dtype)
        if n_steps is None:
            return diffrax.VirtualBrownianTree(
                0.0, 1.0, 0.5 * _SMALLEST_STEP, shape, key, levy_area
            )
        return diffrax.UnsafeBrownianPath(shape, key, levy_area)

    key_axes = key.ndim
    if n_steps is None:
        # gentler than for an ODE, whose error is smooth in time
        controller = diffrax.PIDController(
            rtol=rtol, atol=atol, pcoeff=0.1, icoeff=0.3, dtmin=_SMALLEST_STEP, force_dtmin=False
        )
    else:
        controller, max_steps = diffrax.ConstantStepSize(), n_steps + 1
    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(
            diffrax.ODETerm(drift_u),
            diffrax.ControlTerm(diffusion_u, _Paths(path, key) if key_axes else path(key)),
        ),
        method(),
        t0=0.0,
        t1=1.0,
        dt0=0.01 if n_steps is None else 1.0 / n_steps,
        y0=y,
        stepsize_controller=controller,
        adjoint=diffrax.ForwardMode(),  # UnsafeBrownianPath allows no other but DirectAdjoint
        max_steps=max_steps,
        throw=False,
    )
    return _solution(solution, 0, evaluations)


def each(run: Callable[..., Solution], *examples) -> Solution:
    """Solves for every example alone: run(*examples) takes batches, here of one; nfe and ok are [b].

    Args:
      examples: pytrees of arrays [b, ...], or None.
    """

    def one(*example):
        solution = run(*jax.tree.map(lambda a: a[None], example))
        return solution._replace(y=jax.tree.map(lambda leaf: leaf[0], solution.y))

    return jax.vmap(one)(*examples)


def together(run: Callable[..., Solution], *examples) -> Solution:
    """Solves for the batch at once, under the same steps; nfe and ok are [b].

    It is quicker where the examples want about the same steps. The error is then the batch's root
    mean square, and an example's result depends a little on the others.
    """
    solution = run(*examples)
    n = len(jax.tree.leaves(solution.y)[0])
    return solution._replace(
        nfe=jnp.broadcast_to(solution.nfe, n),
        ok=jnp.broadcast_to(solution.ok, n),
    )


class _Paths(diffrax.AbstractBrownianPath):
    """Independent Brownian paths, one for each key, as one path of [b, *s]."""

    path: Callable = eqx.field(static=True)
    keys: Keys

    @property
    def t0(self):
        return self.path(self.keys[0]).t0

    @property
    def t1(self):
        return self.path(self.keys[0]).t1

    @property
    def levy_area(self):
        return self.path(self.keys[0]).levy_area

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        one = lambda key: self.path(key).evaluate(t0, t1, left, use_levy)
        increments = jax.vmap(one)(self.keys)
        # the length of the interval is that of all
        return eqx.tree_at(lambda i: i.dt, increments, t1 - t0) if use_levy else increments


def ode_evaluations(solver: str, size: int) -> tuple[int, int]:
    """Evaluations before the first step and in each step, with a state of `size` numbers."""
    method = ODE_SOLVERS[solver]
    if method is diffrax.Euler:
        return 0, 1
    stages = method.tableau.c.size + 1
    if is_implicit(solver):
        # the very first stage is solved for too, the others' first is the last step's last; diffrax
        # 0.7.2 takes two Jacobians, the one that a step starts with for a factor of zero
        return _ITERATIONS, (stages - 1) * _ITERATIONS + 2 * (1 + size)
    # first-same-as-last: a step's last stage serves as the next one's first
    return (1, stages - 1) if method.tableau.fsal else (0, stages)


def _solution(solution: diffrax.Solution, first: int, per_step: int) -> Solution:
    y = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    return Solution(
        y=y,
        nfe=first + per_step * solution.stats["num_steps"],
        # equal steps "succeed" whatever they compute
        ok=_finite(y) & (solution.result == diffrax.RESULTS.successful),
    )


def _finite(y: Any) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(y)]))
