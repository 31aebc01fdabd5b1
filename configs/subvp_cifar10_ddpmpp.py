"""CIFAR-10, sub-VP SDE, DDPM++ (Song et al. 2021, arXiv 2011.13456).

Published as "DDPM++ cont. (sub-VP)": 3.02 bits/dim and FID 3.16 by the ODE (table 2), FID 2.61 by
the sampler set here (table 3). 1,300,000 steps of 128 images; for GPUs or TPUs. Not yet run at full
size.

python scripts/train.py --config=configs/subvp_cifar10_ddpmpp.py
"""

from configs import common


def get_config():
    return common.score_sde_cifar10("sub_vp", "ddpmpp")
