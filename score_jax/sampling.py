"""Whole draws: from the prior at t_max along a grid to t_min, by stepping samplers or by diffrax.

Each constructor returns draw(keys, sde, predict, x, label=None, grid=None) -> Draws, where x are
samples of the prior and `grid`, if given, replaces the constructor's. A sample is a function of its
own key. Options that all draws have:

    grid: where the solver steps; a function of the SDE. ("langevin", at one noise level, has none.)
    denoise: end with the x0 predicted at t_min, at one more evaluation.
    threshold, percentile: a word of THRESHOLDS, for the predicted x0; the percentile is of "dynamic".

Of the steps, `DRAWS` has every sampler by name.
"""

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from score_jax import dynamics, grids, langevin, latents, samplers, shapes, solve
from score_jax import threshold as thresholds
from score_jax.grids import Grid
from score_jax.sde import SDE, diffusion
from score_jax.types import Keys

MakeGrid = Callable[[SDE], Grid]


class Draws(NamedTuple):
    """Samples at t_min, the network evaluations that each took, and whether its solver succeeded."""

    x: Float[Array, "b *s"]
    nfe: Int[Array, "b"]
    ok: Bool[Array, "b"]


THRESHOLDS = {
    "none": lambda sde, predict, percentile: predict,
    "static": lambda sde, predict, percentile: thresholds.static(sde, predict),
    "dynamic": lambda sde, predict, percentile: thresholds.dynamic(
        sde, predict, percentile=percentile
    ),
}


def prior(keys: Keys, sde: SDE, shape: tuple[int, ...]) -> Float[Array, "b *s"]:
    """Samples [b, *shape] of N(0, sigma(t_max)^2 I), which stands for p at t_max."""
    noise = shapes.normal(keys, jnp.zeros((len(keys), *shape)))
    return sde.sigma(jnp.asarray(sde.t_max)) * noise


def stepping(make: Callable[..., samplers.Sampler], *, default_steps: int = 50) -> Callable:
    """The constructor of draws by a sampler: its keyword options are the sampler's and the common ones.

    Its signature says so, defaults and types included.
    """
    own = [p for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]

    def common(
        *,
        grid: MakeGrid = grids.log_snr,
        n_steps: int = default_steps,
        denoise: bool = False,
        threshold: str = "none",
        percentile: float = 99.5,
    ):
        return grid, n_steps, (denoise, threshold, percentile)

    shared = inspect.signature(common).parameters
    signature = inspect.Signature([shared["grid"], shared["n_steps"], *own, *_last(shared)])

    def constructor(**options):
        signature.bind(**options)
        names = {p.name for p in own}
        grid, n_steps, ending = common(**{k: v for k, v in options.items() if k not in names})
        of_sampler = {k: v for k, v in options.items() if k in names}
        return _stepping(lambda sde: make(sde, **of_sampler), grid, n_steps, *ending)

    constructor.__signature__ = signature
    constructor.__doc__ = make.__doc__
    return constructor


def _last(parameters):
    return [p for name, p in parameters.items() if name not in ("grid", "n_steps")]


PREDICTORS = {
    "reverse_diffusion": samplers.reverse_diffusion,
    "ancestral": samplers.ancestral,
    "ancestral_large": lambda sde: samplers.ancestral(sde, variance="large"),
    "euler_maruyama": samplers.euler_maruyama,
    "ddim": samplers.ddim,
    "none": lambda sde: samplers.stay,
}
CORRECTORS = {
    "langevin": samplers.langevin,
    "annealed_langevin": samplers.annealed_langevin,
    "none": lambda sde, **options: samplers.stay,
}


def predictor_corrector(
    *,
    grid: MakeGrid = grids.uniform,
    n_steps: int = 1000,
    predictor: str = "reverse_diffusion",
    corrector: str = "langevin",
    snr: float = 0.16,
    corrector_steps: int = 1,
    t_end: float | None = None,
    denoise: bool = True,
    threshold: str = "none",
    percentile: float = 99.5,
):
    """Draws by `samplers.corrected`, the predictor-corrector samplers of Song et al. 2021, arXiv 2011.13456.

    Args:
      grid: the paper's is uniform in t; log_snr or power suit `sde.edm`, whose t is sigma.
      predictor, corrector: words of PREDICTORS and CORRECTORS.
      snr, corrector_steps: of the corrector, if it is not "none"; 0.16 is the paper's for VE on
        CIFAR-10.
      t_end: the time at which the steps end, if not at t_min; between t_min and t_max.
    """

    def make(sde):
        correct = CORRECTORS[corrector](sde, snr=snr, n_steps=corrector_steps)
        return samplers.corrected(PREDICTORS[predictor](sde), correct)

    draw = _stepping(make, grid, n_steps, denoise, threshold, percentile)
    if t_end is None:
        return draw
    return lambda keys, sde, *args, **options: draw(
        keys, sde._replace(t_min=t_end), *args, **options
    )


def annealed_langevin(
    *,
    grid: MakeGrid = grids.log_snr,
    n_levels: int = 30,
    n_steps: int = 30,
    step: float = 0.2,
    denoise: bool = False,
    threshold: str = "none",
    percentile: float = 99.5,
):
    """Draws by `langevin.annealed` at the noise levels sigma / alpha of a grid (Song & Ermon 2019, arXiv 1907.05600).

    The paper has 10 levels of 100 steps, where sigma goes from 1 to 0.01: the range of an SDE of
    today wants more levels, each at most about 1.7 times the next.

    Args:
      grid: of the levels; log_snr makes them geometric.
      n_steps: at each level.
      step: epsilon / sigma_L^2 in the paper's symbols.
    """

    def run(keys, sde, predict, x, label, grid):
        times = grid(jnp.linspace(0.0, 1.0, n_levels))
        score = langevin.at_levels(sde, predict, label)
        sigmas = sde.sigma(times) / sde.alpha(times)
        start, end = sde.alpha(times[0]), sde.alpha(times[-1])
        y = langevin.annealed(keys, score, x / start, sigmas, step=step, n_steps=n_steps)
        return _draws(end * y, n_levels * n_steps)

    return _whole(run, grid, denoise, threshold, percentile)


def langevin_dynamics(
    *,
    level: float | None = None,
    step: float = 0.01,
    n_steps: int = 1000,
    start: float = 1.0,
    denoise: bool = False,
    threshold: str = "none",
    percentile: float = 99.5,
):
    """Draws by `langevin.langevin` at one noise level: of the data, for a model that was trained on them alone.

    There are no times to step along, so no grid.

    Args:
      level: sigma / alpha; None asks the model at t_min, as score matching on the data does.
      step: in squared units of the data; well below 4 times the smallest variance there is.
      start: standard deviation of the normal starts, in units of the data.
      denoise: the x0 predicted at the level.
    """

    def run(keys, sde, predict, x, label, grid):
        t_min, t_max = jnp.asarray(sde.t_min), jnp.asarray(sde.t_max)
        score = langevin.at_time(sde, predict, t_min, label)
        alpha = sde.alpha(t_min)
        x = alpha * start / sde.sigma(t_max) * x
        h = jnp.square(alpha) * step
        return _draws(langevin.langevin(keys, score, x, step=h, n_steps=n_steps), n_steps)

    def draw(keys, sde, predict, x, label=None, grid: MakeGrid | None = None):
        if level is not None:
            sde = sde._replace(t_min=sde.time_of_log_snr(jnp.asarray(-2 * math.log(level))))
        return whole(keys, sde, predict, x, label)

    whole = _whole(run, grids.uniform, denoise, threshold, percentile)
    return draw


def probability_flow(
    *,
    grid: MakeGrid = grids.log_snr,
    solver: str = "tsit5",
    n_steps: int | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    per_sample: bool = True,
    denoise: bool = False,
    threshold: str = "none",
    percentile: float = 99.5,
):
    """Draws by diffrax on the probability-flow ODE: n_steps equal steps of the grid, or adaptive steps if None.

    Args:
      per_sample: the steps are controlled for each sample alone, or for a device's batch.
    """

    def run(keys, sde, predict, x, label, grid):
        steps = dict(solver=solver, n_steps=n_steps, rtol=rtol, atol=atol)
        return Draws(*latents.flow(sde, predict, x, grid, label, per_sample=per_sample, **steps))

    return _whole(run, grid, denoise, threshold, percentile)


def reverse_sde(
    *,
    grid: MakeGrid = grids.log_snr,
    solver: str = "shark",
    n_steps: int | None = 200,
    noise: float = 1.0,
    rtol: float = 1e-2,
    atol: float = 1e-2,
    per_sample: bool = True,
    denoise: bool = False,
    threshold: str = "none",
    percentile: float = 99.5,
):
    """Draws by diffrax on the reverse SDE at a noise level (`dynamics`): n_steps equal steps, or adaptive if None.

    Args:
      per_sample: the steps are controlled for each sample alone, or for a device's batch.
    """

    def run(keys, sde, predict, x, label, grid):
        def solution(keys, x, label):
            # a batch of one under `each`, whose one key makes the path
            drift = dynamics.reverse_drift(sde, lambda x, t: predict(x, t, label), noise=noise)
            rate = lambda t: noise * diffusion(sde, t)
            steps = dict(solver=solver, n_steps=n_steps, rtol=rtol, atol=atol)
            return solve.sde(keys, drift, rate, x, grid, **steps)

        return Draws(*(solve.each if per_sample else solve.together)(solution, keys, x, label))

    return _whole(run, grid, denoise, threshold, percentile)


def _stepping(make: Callable[[SDE], samplers.Sampler], grid: MakeGrid, n_steps: int, *ending):
    def run(keys, sde, predict, x, label, grid):
        sampler = make(sde)
        times = grid(jnp.linspace(0.0, 1.0, n_steps + 1))
        x = samplers.sample(keys, sampler, lambda x, t: predict(x, t, label), x, times)
        return _draws(x, n_steps * sampler.evaluations)

    return _whole(run, grid, *ending)


def _draws(x: Array, nfe: int) -> Draws:
    return Draws(x, jnp.full(len(x), nfe), _finite(x))


def _finite(x):
    return jnp.all(jnp.isfinite(x.reshape(len(x), -1)), axis=1)


def _whole(run: Callable, make_grid: MakeGrid, denoise: bool, threshold: str, percentile: float):
    """The draw that runs on thresholded predictions and ends, if asked, with the predicted x0."""

    def draw(keys, sde, predict, x, label=None, grid: MakeGrid | None = None):
        within = THRESHOLDS[threshold](sde, predict, percentile)
        draws = run(keys, sde, within, x, label, (grid or make_grid)(sde))
        if not denoise:
            return draws
        x0 = within(draws.x, jnp.full(len(x), sde.t_min, x.dtype), label).x0
        return Draws(x0, draws.nfe + 1, draws.ok & _finite(x0))

    return draw


# by order. "weak 1": their error falls as slowly as Euler's, from a larger one; "-": no error of
# steps, each is a whole way from noise to data
_STEPS = {"weak 1": 500, "-": 2}
DRAWS = {
    name: stepping(entry.make, default_steps=_STEPS.get(entry.order, 50))
    for name, entry in samplers.SAMPLERS.items()
} | {
    "predictor_corrector": predictor_corrector,
    "annealed_langevin": annealed_langevin,
    "langevin": langevin_dynamics,
    "probability_flow": probability_flow,
    "reverse_sde": reverse_sde,
}
ddim, euler_maruyama = DRAWS["ddim"], DRAWS["euler_maruyama"]


def tempered(draw: Callable, temperature: float) -> Callable:
    """The draw from starts of temperature times the prior's standard deviation, p(x_T)^(1 / temperature^2).

    As in flows (Kingma & Dhariwal 2018, arXiv 1807.03039), for the probability-flow ODE (Song et
    al. 2021, arXiv 2011.13456, section 4.3): below 1, samples are more typical and less varied; of
    Gaussian data of zero mean they have temperature times the standard deviation. It is for the
    ODE's samplers: noise on the way makes the start forgotten.
    """

    def tempered_draw(keys, sde, predict, x, label=None, grid: MakeGrid | None = None):
        return draw(keys, sde, predict, temperature * x, label, grid)

    return tempered_draw
