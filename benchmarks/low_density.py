"""Score matching on the data themselves, and its cure by noise (Song & Ermon 2019, arXiv 1907.05600, section 3.2).

Of two Gaussians of mass 0.8 and 0.2 with next to no data between them. The data say nothing of the
score where they are not, and even the true score does not tell Langevin dynamics how much mass lies
beyond a region that it does not cross. Noise fills the region, and its levels hand the proportions
down.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from objectives_measure import draws, fit, key_of

from score_jax import build, langevin
from score_jax.build import Config, Experiment
from score_jax.model import bind
from score_jax.predict import combine
from score_jax.types import Params

SIZE, N_AXIS = 2.2, 89  # of the plane's map
RATIO = 1.0  # sigma / alpha, of the noise that fills the space between
STEP, N_STEPS = 0.004, 2000  # of Langevin dynamics on the data
START = 1.5  # its standard deviation

_LANGEVIN = dict(name="langevin", step=STEP, n_steps=N_STEPS, start=START)
SECTIONS: dict[str, Config] = {
    # the score itself is the network's output: it has the data's scale, eps that of t_min
    "data": dict(
        model=dict(output="score"), loss=dict(name="sliced_vr", level=0.0), sample=_LANGEVIN
    ),
    "noise": dict(
        model=dict(output="v"),
        loss=dict(name="denoising"),
        sample=dict(name="annealed_langevin", n_levels=20, n_steps=50, step=0.2),
    ),
}


def measure(configs: dict[str, Config], n: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Numbers and arrays for the picture.

    Args:
      configs: resolved, of the two SECTIONS.
      n: samples.
    Returns:
      "error_data", "error_noise": of the two scores over the plane, root mean square over that of the
      true one; "shares": how many of n samples are in the heavier component, by sampler. The maps of
      the error over that same size, and the samples by name.
    """
    experiments = {name: build.experiment(config) for name, config in configs.items()}
    params = {name: fit(experiment).state.averaged() for name, experiment in experiments.items()}
    numbers, arrays = {}, {}
    for name, ratio in (("data", 0.0), ("noise", RATIO)):
        error, size = fields(experiments[name], params[name], ratio)
        arrays[f"map_{name}"] = np.sqrt(error / size.mean()).reshape(N_AXIS, N_AXIS)
        numbers[f"error_{name}"] = math.sqrt(error.sum() / size.sum())

    samples = {
        "data": np.asarray(experiments["data"].data.test.x[:n]),
        "langevin": draws(configs["data"], params["data"], n),
        "langevin_exact": true_langevin(experiments["data"], n),
        "annealed": draws(configs["noise"], params["noise"], n),
        "ode": draws(configs["noise"], params["noise"], n, name="ddim", n_steps=100),
    }
    numbers["shares"] = {
        name: [float(np.mean(x.sum(axis=1) > 0)), len(x)] for name, x in samples.items()
    }
    return numbers, arrays | samples


def fields(experiment: Experiment, params: Params, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Squares of the score's error and of the true score over the plane, [N_AXIS^2] each, at sigma / alpha = ratio."""
    axis = np.linspace(-SIZE, SIZE, N_AXIS)
    plane = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), jnp.float32)
    noised_logp = experiment.data.noised_logp

    @jax.jit
    def fn(params):
        sde = experiment.model.sde(params)
        if ratio:
            t = sde.time_of_log_snr(jnp.asarray(-2 * math.log(ratio)))
            alpha, sigma = sde.alpha(t), sde.sigma(t)
        else:
            t, alpha, sigma = jnp.asarray(sde.t_min), jnp.ones(()), jnp.zeros(())
        ts = jnp.full(len(plane), t)
        found = combine("score", sde, bind(experiment.model, params)(alpha * plane, ts), ts)
        true = jax.grad(lambda x: jnp.sum(noised_logp(x, alpha, sigma)))(alpha * plane)
        return jnp.sum(jnp.square(found - true), axis=1), jnp.sum(jnp.square(true), axis=1)

    error, size = fn(params)
    return np.asarray(error, np.float64), np.asarray(size, np.float64)


def true_langevin(experiment: Experiment, n: int) -> np.ndarray:
    """Samples by the same Langevin dynamics from the data's true score."""
    noised_logp = experiment.data.noised_logp
    score = jax.grad(lambda x: jnp.sum(noised_logp(x, jnp.ones(()), jnp.zeros(()))))
    start, rest = jax.random.split(key_of(experiment, 12))
    x = START * jax.random.normal(start, (n, *experiment.data.shape))
    fn = jax.jit(lambda keys, x: langevin.langevin(keys, score, x, step=STEP, n_steps=N_STEPS))
    return np.asarray(fn(jax.random.split(rest, n), x))
