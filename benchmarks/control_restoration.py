"""Test images measured and drawn again by each method, and how near the draws are to the truth."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from control_runs import Kept, Run, as_levels, as_points, kept
from jax import Array
from skimage.metrics import structural_similarity

from score_jax import measurement as measurements
from score_jax import posterior
from score_jax.data.base import DataSet
from score_jax.measurement import Measurement
from score_jax.model import bind
from score_jax.posterior.tasks import TASKS, named_mask

STD = 0.05  # of the measurement's noise, of data in [-1, 1]
WIDTH, FACTOR = 1.5, 4
TRIVIAL, LINEAR = "A^+ y", "linear"
N_TRAIN = 10_000  # training images whose mean and covariance the linear estimate knows


class Way(NamedTuple):
    """A method with its options, and the steps of its grid."""

    method: posterior.Method
    n_steps: int
    options: dict[str, Any]

    @property
    def particles(self) -> int:
        """How many it walks for an image."""
        return self.options.get("particles", 1)


class Scores(NamedTuple):
    """Of each image [n].

    Attributes:
      psnr: in dB, of images from 0 to 1.
      ssim: structural similarity.
      residual: |y - A x| / std, the root mean square over y; 1 on average of the truth.
    """

    psnr: np.ndarray
    ssim: np.ndarray
    residual: np.ndarray


def ways(evaluations: int) -> dict[str, Way]:
    """Every method, with as many evaluations of the network for an image; a multiple of 20."""
    given = {name: (evaluations, {}) for name in posterior.METHODS}
    given["repaint"] = evaluations // 4, dict(jump=5, repeats=4)
    given["tsmc"] = evaluations // 4, dict(particles=4)
    return {
        name: Way(posterior.METHODS[name].make(**options), n_steps, options)
        for name, (n_steps, options) in given.items()
    }


def evaluations_of(way: Way) -> int:
    """Of the network, for an image: the steps down, of every particle."""
    times = np.asarray(way.method.walk(jnp.linspace(1.0, 0.0, way.n_steps + 1)))
    return way.particles * int(np.sum(np.diff(times) < 0))


def operator(task: str, shape: tuple[int, ...]) -> Measurement:
    options = dict(mask=named_mask("center", shape), factor=FACTOR, width=WIDTH)
    chosen = {name: options[name] for name in TASKS[task].options}
    return TASKS[task].make(shape, std=STD, **chosen)


def test_images(data: DataSet, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n images from all over the test split, in levels, and their classes or zeros."""
    index = np.linspace(0, len(data.test.x) - 1, n).astype(int)
    label = np.zeros(n, int) if data.test.label is None else data.test.label[index]
    return np.asarray(data.test.x[index]), label


def measured(task: str, data: DataSet, n: int) -> tuple[Measurement, Array, Array]:
    """The measurement, the true images and y of each."""
    a, x0 = operator(task, data.shape), as_points(test_images(data, n)[0], data.levels)
    return a, x0, measurements.measure(jax.random.split(jax.random.key(1), n), a, x0)


def restored(
    model: Run, tasks: tuple[str, ...], n: int, evaluations: int, folder: Path
) -> dict[str, dict[str, Kept]]:
    """Task -> method -> one x for each image; a class-conditional model is not told the class."""
    data, found = model.experiment.data, {}
    for task in tasks:
        a, _, y = measured(task, data, n)
        setting = [model.made_of, task, n, STD, WIDTH, FACTOR]
        estimates = {
            TRIVIAL: lambda a=a, y=y: measurements.pseudo_inverse(a, y),
            LINEAR: lambda a=a, y=y: linear_estimate(a, y, data),
        }
        found[task] = {name: Kept(np.asarray(fn()), 0.0) for name, fn in estimates.items()}
        for name, way in ways(evaluations).items():
            path = folder / f"{model.data_name}_{task}_{name}.npz"
            measure = partial(_drawn, model, way, a, y)
            found[task][name] = kept(path, [*setting, way.n_steps, way.options], measure)
    return found


def _drawn(model: Run, way: Way, a: Measurement, y: Array) -> Array:
    net = model.experiment.model
    of_params = lambda params: (net.sde(params), bind(net, params))
    draw = posterior.drawer(way.method, of_params, a, n_steps=way.n_steps)
    keys = jax.random.split(jax.random.key(2), len(y) * way.particles)
    # a group's draws are of equal weight: the first is as good as any
    return draw(keys, model.params, jnp.repeat(y, way.particles, axis=0))[:: way.particles]


def linear_estimate(a: Measurement, y: Array, data: DataSet) -> np.ndarray:
    """mean + C A^T (A C A^T + std^2 I)^-1 (y - A mean): of all estimates linear in y the best on average.

    Mean and covariance C are those of training images. For Gaussian data it is the posterior's mean.
    """
    index = np.linspace(0, len(data.train.x) - 1, min(N_TRAIN, len(data.train.x))).astype(int)
    x = np.asarray(as_points(np.asarray(data.train.x[index]), data.levels), float)
    x = x.reshape(len(x), -1)
    mean, covariance = x.mean(axis=0), np.cov(x.T)
    unit = jnp.eye(x.shape[1]).reshape(-1, *data.shape)
    matrix = np.asarray(a.apply(unit), float).reshape(len(unit), -1).T
    cross = covariance @ matrix.T
    total = matrix @ cross + a.std**2 * np.eye(len(matrix))
    gaps = np.asarray(y, float).reshape(len(y), -1) - mean @ matrix.T
    return (mean + np.linalg.solve(total, gaps.T).T @ cross.T).reshape(len(y), *data.shape)


def scores(task: str, model: Run, x: np.ndarray) -> Scores:
    """Of draws for the first len(x) images."""
    data = model.experiment.data
    a, truth, y = measured(task, data, len(x))
    unit = lambda x: as_levels(np.asarray(x), data.levels) / (data.levels - 1)
    pairs = list(zip(unit(truth), unit(x), strict=True))
    off = (np.asarray(y) - np.asarray(a.apply(jnp.asarray(x, y.dtype)))) / STD
    return Scores(
        psnr=np.array([psnr(*pair) for pair in pairs]),
        ssim=np.array([ssim(*pair) for pair in pairs]),
        residual=np.sqrt(np.mean(off.reshape(len(x), -1) ** 2, axis=1)),
    )


def psnr(truth: np.ndarray, x: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, of images from 0 to 1."""
    return float(-10 * np.log10(np.mean((truth - x) ** 2)))


def ssim(truth: np.ndarray, x: np.ndarray) -> float:
    """Structural similarity of images [h, w, c] from 0 to 1, with the Gaussian windows of Wang et al. 2004."""
    return float(
        structural_similarity(
            truth,
            x,
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
