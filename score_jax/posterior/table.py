"""Every method by name."""

from collections.abc import Callable
from typing import NamedTuple

from score_jax.posterior.ddrm import ddrm
from score_jax.posterior.dps import dps
from score_jax.posterior.method import Method
from score_jax.posterior.pigdm import pigdm
from score_jax.posterior.projection import projection
from score_jax.posterior.repaint import repaint
from score_jax.posterior.twisted import tsmc


class Entry(NamedTuple):
    """make(**options) -> Method, what it does in words, and its paper."""

    make: Callable[..., Method]
    what: str
    source: str


METHODS = {
    "projection": Entry(
        projection,
        "what is measured is set to its noised value after each step",
        "Song et al. 2021, arXiv 2011.13456, appendix I",
    ),
    "repaint": Entry(
        repaint,
        "projection on a grid that goes up again",
        "Lugmayr et al. 2022, arXiv 2201.09865",
    ),
    "ddrm": Entry(
        ddrm,
        "steps in the coordinates of the singular value decomposition",
        "Kawar et al. 2022, arXiv 2201.11793",
    ),
    "dps": Entry(
        dps,
        "each step followed by one down the residual's gradient",
        "Chung et al. 2023, arXiv 2209.14687",
    ),
    "pigdm": Entry(
        pigdm,
        "guidance as if x0 given x_t were Gaussian",
        "Song et al. 2023, Pseudoinverse-Guided Diffusion Models",
    ),
    "tsmc": Entry(
        tsmc,
        "particles under guidance, with weights that make it exact in the limit",
        "Wu et al. 2023, arXiv 2306.17775",
    ),
}
