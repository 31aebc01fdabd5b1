"""Every stepping sampler by name, with the order that is expected of it and where it comes from."""

from collections.abc import Callable
from typing import NamedTuple

from score_jax.samplers.base import Sampler
from score_jax.samplers.consistency import consistency
from score_jax.samplers.first_order import ancestral, ddim, euler_maruyama, reverse_diffusion
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


class Entry(NamedTuple):
    """make(sde, **options) -> Sampler, its order of convergence in words or "-", its paper and the place in it."""

    make: Callable[..., Sampler]
    order: str
    source: str


SAMPLERS = {
    "ddim": Entry(ddim, "1", "Song et al. 2021, arXiv 2010.02502, eq. 12"),
    "ancestral": Entry(ancestral, "weak 1", "Ho et al. 2020, arXiv 2006.11239, algorithm 2"),
    "reverse_diffusion": Entry(
        reverse_diffusion, "weak 1", "Song et al. 2021, arXiv 2011.13456, eq. 46"
    ),
    "euler_maruyama": Entry(euler_maruyama, "weak 1", "Song et al. 2021, arXiv 2011.13456, eq. 6"),
    "edm_heun": Entry(edm_heun, "2", "Karras et al. 2022, arXiv 2206.00364, algorithm 2"),
    "dpm_solver_2": Entry(dpm_solver_2, "2", "Lu et al. 2022, arXiv 2206.00927, algorithm 1"),
    "dpm_solver_3": Entry(dpm_solver_3, "3", "Lu et al. 2022, arXiv 2206.00927, algorithm 2"),
    "dpmpp_2s": Entry(dpmpp_2s, "2", "Lu et al. 2022, arXiv 2211.01095, algorithm 1"),
    "dpmpp_2m": Entry(dpmpp_2m, "2", "Lu et al. 2022, arXiv 2211.01095, algorithm 2"),
    "dpmpp_2m_sde": Entry(
        dpmpp_2m_sde, "weak 2", "Lu et al. 2022, arXiv 2211.01095, SDE-DPM-Solver++(2M)"
    ),
    "dpmpp_3m": Entry(dpmpp_3m, "3", "Lu et al. 2022, arXiv 2211.01095, its public code"),
    "unipc_2": Entry(unipc_2, "3", "Zhao et al. 2023, arXiv 2302.04867, algorithms 1 and 2"),
    "unipc_3": Entry(unipc_3, "4", "Zhao et al. 2023, arXiv 2302.04867, algorithms 1 and 2"),
    "deis_tab3": Entry(deis_tab3, "4", "Zhang & Chen 2023, arXiv 2204.13902, section 3"),
    "ipndm": Entry(ipndm, "2", "Zhang & Chen 2023, arXiv 2204.13902, appendix"),
    "seeds_2": Entry(seeds_2, "weak 2", "Gonzalez et al. 2023, arXiv 2305.14267, SEEDS-2"),
    "consistency": Entry(consistency, "-", "Song et al. 2023, arXiv 2303.01469, algorithm 1"),
}
