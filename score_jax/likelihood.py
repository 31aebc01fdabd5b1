"""Exact log-likelihood by the probability-flow ODE (Song et al. 2021, arXiv 2011.13456, eq. 39; Chen et al. 2018).

Along dx/dt = v(x, t) the log-density changes by -div v, so log p at t_min is log p at t_max of the
point that x flows to, plus the integral of div v from t_min to t_max, the volume term.

With a Gaussian N(mean, S) near the data (`whiten`), the flow of that Gaussian, v_G, is taken out.
Let C = alpha^2 S + sigma^2 I, y = C^(-1/2) (x - alpha mean), w = sigma C^(-1/2), r = -1/2 d log_snr/dt;
then

    dy/dt = C^(-1/2) (v - v_G) = r w (eps - w y),
    div v = d/dt log det C^(1/2) + div (v - v_G),    div (v - v_G) = r tr(sigma deps/dx - w^2).

The first part of div v is integrated exactly; of the second, Hutchinson's estimator with probes z
in x's coordinates is r (z . sigma deps/dx z - |w z|^2): the Gaussian's own quadratic form is a control
variate of known mean. For Gaussian data both right-hand sides vanish.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from score_jax import dynamics, solve
from score_jax import sde as sdes
from score_jax import whiten as whitening
from score_jax.grids import Grid, reverse
from score_jax.sde import SDE
from score_jax.types import Key, Keys, PredictFn
from score_jax.whiten import Gaussian


class Likelihood(NamedTuple):
    """Per example, in nats where not said otherwise.

    Attributes:
      logp: log-density at t_min, prior + volume.
      prior: log-density of the latent at t_max.
      volume: integral of div v, the mean of `volumes`, one for each probe.
      probe_stderr: standard error of `volume` over the probes; 0 for the exact trace, nan with one
        probe.
      solver_error: how much higher logp would be by the solver's embedded method of lower order,
        summed over the steps; nan if it has none. An indication of the error: with long steps of
        Runge-Kutta's methods it can be many times too small.
      latent: the point that x flows to at t_max.
      nfe: evaluations of (v, div v).
      ok: whether the solver succeeded.
    """

    logp: Float[Array, "b"]
    prior: Float[Array, "b"]
    volume: Float[Array, "b"]
    volumes: Float[Array, "b n"]
    probe_stderr: Float[Array, "b"]
    solver_error: Float[Array, "b"]
    latent: Float[Array, "b *s"]
    nfe: Int[Array, "b"]
    ok: Bool[Array, "b"]


def rademacher(key: Key, x: Float[Array, "*s"], n: int) -> Float[Array, "n 1 *s"]:
    """Probes of random signs, E[probe probe^T] = I: Hutchinson's estimator of the trace."""
    return jax.random.rademacher(key, (n, 1, *x.shape), x.dtype)


def gaussian(key: Key, x: Float[Array, "*s"], n: int) -> Float[Array, "n 1 *s"]:
    """Probes of standard normal numbers; their variance also has the diagonal's part."""
    return jax.random.normal(key, (n, 1, *x.shape), x.dtype)


def basis(key: Key, x: Float[Array, "*s"], n: int) -> Float[Array, "1 d *s"]:
    """All unit vectors, whose quadratic forms sum to the exact trace, at the cost of d = x.size products."""
    return jnp.eye(x.size, dtype=x.dtype).reshape(1, x.size, *x.shape)


TRACES = {"rademacher": rademacher, "gaussian": gaussian, "exact": basis}

# (t, y) -> dy/dt and, for each probe, its estimate of the part of div v that is not known
_Field = Callable[[Array, Array], tuple[Array, Array]]


def log_likelihood(
    keys: Keys,
    sde: SDE,
    predict: PredictFn,
    x: Float[Array, "b *s"],
    label: Int[Array, "b"] | None = None,
    *,
    grid: Grid,
    trace: str = "rademacher",
    n_probes: int = 1,
    whiten: Gaussian | None = None,
    prior_logp=sdes.prior_logp,
    **solver,
) -> Likelihood:
    """Log-density of x at t_min, in nats, by the probability-flow ODE.

    Probes are drawn once per example and kept for the whole solve: the right-hand side must be a
    function of (t, x). Drift and divergence come from one `jax.jvp`; each example has its own step
    control.

    Args:
      keys: one per example; an example's result depends on its own key alone.
      grid: from `grids`; the solver's independent variable.
      trace: "rademacher" or "gaussian" (unbiased, one product a probe), or "exact" (one product per
        dimension, whatever n_probes is).
      n_probes: independent estimates of the volume along one path, whose mean is taken.
      whiten: solves in the coordinates in which this Gaussian stands still, and estimates only
        what the divergence differs by from that Gaussian's. None: in x.
      prior_logp: log-density at t_max, called as prior_logp(sde, x).
      **solver: arguments of `solve.ode`: solver, n_steps, or rtol and atol.
    """

    def one(key, x, label):
        options = dict(trace=trace, n_probes=n_probes, whiten=whiten)
        problem = initial_value(key, sde, predict, x, label, **options)
        solution = solve.ode(
            problem.field, problem.start, reverse(grid), measure=problem.error_of_logp, **solver
        )
        state, error = solution.y
        latent, volumes = problem.finish(state)
        prior, volume = prior_logp(sde, latent[None])[0], jnp.mean(volumes)
        return Likelihood(
            logp=prior + volume,
            prior=prior,
            volume=volume,
            volumes=volumes,
            probe_stderr=_stderr(volumes, trace),
            solver_error=error,
            latent=latent,
            nfe=solution.nfe,
            ok=solution.ok,
        )

    return jax.vmap(one, in_axes=(0, 0, None if label is None else 0))(keys, x, label)


class Problem(NamedTuple):
    """The initial value problem of one example, from t_min to t_max, whose state is a point and a volume per probe.

    Attributes:
      start: the state at t_min.
      field: its derivative with respect to time, as a function of (t, state).
      error_of_logp: what an error of the state adds to logp, as a function of (state, error).
      finish: the latent and the volumes [n], in nats, of the state at t_max.
    """

    start: Any
    field: Callable[[Array, Any], Any]
    error_of_logp: Callable[[Any, Any], Array]
    finish: Callable[[Any], tuple[Array, Array]]


def initial_value(
    key: Key,
    sde: SDE,
    predict: PredictFn,
    x: Float[Array, "*s"],
    label: Int[Array, ""] | None = None,
    *,
    trace: str,
    n_probes: int,
    whiten: Gaussian | None,
) -> Problem:
    """What `log_likelihood` solves for one example; its arguments, without the batch."""
    probes = TRACES[trace](key, x, n_probes)
    labels = None if label is None else label[None]
    fn = lambda x, t: predict(x, t, labels)
    volumes = jnp.zeros(len(probes), x.dtype)
    if whiten is None:
        field = _plain(sde, fn, probes)
        return Problem(
            start=(x, volumes),
            field=lambda t, state: field(t, state[0]),
            error_of_logp=lambda state, error: jnp.mean(error[1]),
            finish=lambda state: state,
        )
    field = _whitened(sde, fn, whiten, probes)
    t_min, t_max = (jnp.asarray(t, x.dtype) for t in (sde.t_min, sde.t_max))
    known = whitening.log_det(whiten, sde, t_max) - whitening.log_det(whiten, sde, t_min)
    return Problem(
        start=(whitening.whitened(whiten, sde, t_min, x), volumes),
        field=lambda t, state: field(t, state[0]),
        # in y, log p is about -|y|^2 / 2
        error_of_logp=lambda state, error: jnp.mean(error[1]) - jnp.sum(state[0] * error[0]),
        finish=lambda state: (whitening.coloured(whiten, sde, t_max, state[0]), known + state[1]),
    )


def _plain(sde: SDE, predict: PredictFn, probes: Float[Array, "n m *s"]) -> _Field:
    velocity = dynamics.reverse_drift(sde, predict)

    def field(t, x):
        v, products = _products(lambda x: velocity(t, x[None])[0], x, probes)
        return v, _dots(probes, products)

    return field


def _whitened(
    sde: SDE, predict: PredictFn, whiten: Gaussian, probes: Float[Array, "n m *s"]
) -> _Field:
    # all that |w z|^2 needs of the probes
    squares = jnp.square(probes)
    along = jnp.square(whitening.coordinates(whiten, probes)).reshape(*probes.shape[:2], -1)

    def field(t, y):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        rate = 0.5 * sdes.log_snr_rate(sde, t)
        w_square = lambda variance: sigma**2 / (alpha**2 * variance + sigma**2)
        w = lambda variance: jnp.sqrt(w_square(variance))

        x = whitening.coloured(whiten, sde, t, y)
        eps, products = _products(lambda x: predict(x[None], t[None]).eps[0], x, probes)
        dy = rate * (whitening.apply(whiten, w, eps) - whitening.apply(whiten, w_square, y))

        rest = w_square(whiten.rest)
        known = _dots(rest * squares, 1.0)
        if len(whiten.vectors):
            known += _dots(w_square(whiten.variances) - rest, along)
        return dy, rate * (sigma * _dots(probes, products) - known)

    return field


def _products(fn, x, probes):
    """fn(x), and its Jacobian's product with each of the probes."""
    push = lambda probe: jax.jvp(fn, (x,), (probe,))
    flat = probes.reshape(-1, *x.shape)
    value, products = jax.vmap(push, out_axes=(None, 0))(flat)
    return value, products.reshape(probes.shape)


def _dots(a, b):
    product = a * b
    return jnp.sum(product, axis=tuple(range(1, product.ndim)))


def _stderr(volumes, trace):
    if trace == "exact":
        return jnp.zeros((), volumes.dtype)
    # of one value it is nan
    return jnp.std(volumes, ddof=1) / jnp.sqrt(len(volumes))
