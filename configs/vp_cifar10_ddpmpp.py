"""CIFAR-10, VP SDE, DDPM++ (Song et al. 2021, arXiv 2011.13456).

Published as "DDPM++ cont. (VP)": 3.16 bits/dim and FID 3.93 by the ODE (table 2), FID 2.55 by the
sampler set here (table 3). 1,300,000 steps of 128 images; for GPUs or TPUs. Not yet run at full
size.

python scripts/train.py --config=configs/vp_cifar10_ddpmpp.py
"""

from configs import common


def get_config():
    return common.score_sde_cifar10("vp", "ddpmpp")
