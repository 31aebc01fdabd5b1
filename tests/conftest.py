"""What the mathematical tests share: float64, a Gaussian whose every answer is closed-form, Monte-Carlo agreement."""

import math
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax import cli
from score_jax import sde as sdes

# Compiling takes most of the time of small problems: without optimising, and with XLA's older way to
# emit fusions where it still has that, it takes a third of it, and two programs of the same formula
# round differently. Read when the first device is asked for; flags that are given come last and count.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__ < (0, 11):  # later ones end at a flag that they do not know
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{QUICK_TO_COMPILE} {os.environ.get('XLA_FLAGS', '')}"

# parallel tests need several devices; scripts under test run in processes of their own, with one
jax.config.update("jax_num_cpu_devices", 4)
cli.use_compilation_cache()

SDES = {
    "vp": sdes.vp,
    "sub_vp": sdes.sub_vp,
    "ve": sdes.ve,
    "edm": sdes.edm,
    "cosine": sdes.cosine,
    "ddpm": sdes.ddpm,
    "linear": sdes.linear,
}


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs of all files together would take many gigabytes."""
    yield
    memory = Path("/proc/self/statm")
    if memory.exists() and int(memory.read_text().split()[1]) * 4096 > 4 * 2**30:
        jax.clear_caches()


@pytest.fixture
def x64():
    """float64 inside the test. An SDE must be made inside too: its constants have the precision of its making."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=SDES)
def sde(request):
    """Each SDE of the package. Name `x64` before it in a test's arguments."""
    return SDES[request.param]()


class Gaussian(NamedTuple):
    """N(mean, covariance) data under x_t = alpha x0 + sigma eps, in numpy and float64. `c` is (alpha, sigma)."""

    mean: np.ndarray
    covariance: np.ndarray

    def moments(self, c):
        alpha, sigma = c
        return alpha * self.mean, alpha**2 * self.covariance + sigma**2 * np.eye(len(self.mean))

    def logp(self, x, c):
        mean, covariance = self.moments(c)
        z = np.linalg.solve(np.linalg.cholesky(covariance), (np.asarray(x, float) - mean).T)
        return -0.5 * np.sum(z**2, 0) - 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]

    def score(self, x, c):
        mean, covariance = self.moments(c)
        return -np.linalg.solve(covariance, (np.asarray(x, float) - mean).T).T

    def flow(self, x, c_from, c_to):
        """The probability-flow ODE's map: each principal axis is shifted and scaled to the new marginal."""
        (m, v), (m_to, v_to) = self.moments(c_from), self.moments(c_to)
        axes = np.linalg.eigh(self.covariance)[1]
        scale = np.sqrt(np.diag(axes.T @ v_to @ axes) / np.diag(axes.T @ v @ axes))
        return m_to + (np.asarray(x, float) - m) @ axes * scale @ axes.T


GAUSSIAN = Gaussian(np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]]))


def coefficients(sde, times):
    """The pairs (alpha, sigma) at several times, as numbers."""
    t = jnp.asarray(times, float)
    return list(zip(sde.alpha(t).tolist(), sde.sigma(t).tolist(), strict=True))


def assert_mean(values, exact):
    """The mean over axis 0 of independent estimates is within 4 standard errors of the truth, in each coordinate."""
    values = np.asarray(values, float)
    stderr = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    deviations = (values.mean(axis=0) - exact) / stderr
    assert np.all(np.abs(deviations) < 4), f"{deviations} standard errors of {stderr}"
