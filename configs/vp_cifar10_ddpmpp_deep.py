"""CIFAR-10, VP SDE, DDPM++ with twice the blocks (Song et al. 2021, arXiv 2011.13456).

Published as "DDPM++ cont. deep (VP)": 3.13 bits/dim and FID 3.08 by the ODE (table 2), FID 2.41 by
the sampler set here (table 3). 950,000 steps of 128 images; for GPUs or TPUs. Not yet run at full
size.

python scripts/train.py --config=configs/vp_cifar10_ddpmpp_deep.py
"""

from configs import common


def get_config():
    return common.score_sde_cifar10("vp", "ddpmpp_deep")
