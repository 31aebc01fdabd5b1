"""CIFAR-10, VP SDE, DDPM's network (Song et al. 2021, arXiv 2011.13456).

Published as "DDPM cont. (VP)": 3.21 bits/dim and FID 3.69 by the ODE (table 2). 1,300,000 steps of
128 images; for GPUs or TPUs. Not yet run at full size.

python scripts/train.py --config=configs/vp_cifar10_ddpm.py
"""

from configs import common


def get_config():
    return common.score_sde_cifar10("vp", "ddpm")
