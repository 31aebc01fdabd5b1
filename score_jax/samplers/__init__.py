"""Samplers under one loop: `base` says what one is, `table` lists them, the others hold their steps."""

from score_jax.samplers.base import Sampler, Steps, either_way, run, run_jitted, sample
from score_jax.samplers.consistency import consistency
from score_jax.samplers.correctors import annealed_langevin, corrected, langevin, stay
from score_jax.samplers.first_order import (
    VARIANCES,
    ancestral,
    ddim,
    euler_maruyama,
    reverse_diffusion,
)
from score_jax.samplers.multistep import (
    deis_tab3,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    ipndm,
    unipc_2,
    unipc_3,
)
from score_jax.samplers.single_step import dpm_solver_2, dpm_solver_3, dpmpp_2s, edm_heun, seeds_2
from score_jax.samplers.table import SAMPLERS, Entry

__all__ = [
    "SAMPLERS",
    "VARIANCES",
    "Entry",
    "Sampler",
    "Steps",
    "ancestral",
    "annealed_langevin",
    "consistency",
    "corrected",
    "ddim",
    "deis_tab3",
    "dpm_solver_2",
    "dpm_solver_3",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "edm_heun",
    "either_way",
    "euler_maruyama",
    "ipndm",
    "langevin",
    "reverse_diffusion",
    "run",
    "run_jitted",
    "sample",
    "seeds_2",
    "stay",
    "unipc_2",
    "unipc_3",
]
