"""Samples of x0 given a linear measurement y, by any model: `METHODS` lists how, `drawer` draws.

No method has a loop of its own: each is made of what `samplers.Steps` holds, a wrapper of `predict`
(`guide`), a projection, a sampler, and the times that are walked.
"""

from score_jax.posterior.ddrm import ddrm
from score_jax.posterior.dps import dps
from score_jax.posterior.method import Method, drawer
from score_jax.posterior.pigdm import pigdm
from score_jax.posterior.projection import projection
from score_jax.posterior.repaint import repaint
from score_jax.posterior.table import METHODS, Entry
from score_jax.posterior.twisted import tsmc

__all__ = [
    "METHODS",
    "Entry",
    "Method",
    "ddrm",
    "dps",
    "drawer",
    "pigdm",
    "projection",
    "repaint",
    "tsmc",
]
